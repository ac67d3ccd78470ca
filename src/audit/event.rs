//! The closed set of events, with what each carries.

use std::{
    cell::Cell, fmt, net::SocketAddr, num::NonZeroU16, path::PathBuf, sync::Arc, time::Duration,
};

use super::{Audit, Owed, Reason};
use crate::{auth::Identity, mcp::Aim, sys::random};

/// Something that an auditor or an operator has to be able to find later.
#[derive(Clone, Debug)]
pub enum Event {
    /// Requests are served from now on.
    Ready,
    /// No new requests; those accepted are finished.
    Stopping,
    /// Nobody has asked for a while: the process ends, the socket stays.
    IdleExit,
    /// The gateway before this one was killed, or its host was: what it permitted and has
    /// recorded no outcome of may have happened or not. Who it was, where that can be told.
    Unfinished {
        pid: Option<u32>,
        /// When it started, in microseconds since the Unix epoch.
        since: Option<u64>,
    },
    ConfigRefused {
        file: PathBuf,
        line: usize,
        key: Option<String>,
        message: String,
    },
    /// What was decided about one request, before anything reached a child.
    Decision(Decision),
    /// What became of a request that was allowed.
    Outcome(Outcome),
    /// `principal` is the [`crate::auth::PrincipalKey`] of whom it serves.
    ChildStarted {
        child: u64,
        pid: u32,
        principal: Option<String>,
    },
    /// Somebody got the child that was started before anybody needed it.
    ChildTaken {
        child: u64,
        pid: u32,
        principal: String,
    },
    /// `expected`: because its session ended or thv stopped.
    ChildExited {
        child: u64,
        pid: u32,
        exit: Exit,
        expected: bool,
        /// Why thv ended it, where it is the child's own fault.
        fault: Option<Reason>,
    },
    /// One line that a child wrote to its standard error, as bytes.
    ChildStderr {
        child: u64,
        pid: u32,
        line: Vec<u8>,
    },
    /// One connection of a child to the outside, at its end: allowed or refused.
    Egress(Egress),
    /// A child did not start: `layer` is the layer of the sandbox that could not
    /// be applied, or another of the words that thv-journal(7) lists.
    LayerFailed {
        layer: String,
        reason: String,
    },
    KeysFetched {
        issuer: String,
        keys: usize,
    },
    /// `cached`: keys from before are still in use.
    KeysUnavailable {
        issuer: String,
        cached: bool,
        error: String,
    },
    /// Policies failed while they were evaluated; the request was denied.
    PolicyError {
        request_id: RequestId,
        policies: Vec<String>,
        errors: Vec<String>,
    },
    /// Tools of a server's that are in nobody's list, for their names.
    ToolsHidden {
        tools: Vec<String>,
    },
    /// Records were lost because a sink could not take them; made by the queue itself.
    Dropped {
        count: u64,
        first: u64,
        last: u64,
    },
}

/// The decision on one request.
#[derive(Clone, Debug)]
pub struct Decision {
    pub request_id: RequestId,
    /// `None` while nobody has been authenticated.
    pub who: Option<Arc<Identity>>,
    /// The JSON-RPC method, where the body got that far.
    pub method: Option<Arc<str>>,
    pub aim: Aim,
    pub verdict: Verdict,
    /// The policies that decided, by name.
    pub policies: Arc<[String]>,
    /// The HTTP status of a refusal.
    pub status: Option<u16>,
    /// How many requests were refused, or more, where they are on record together.
    pub requests: Option<NonZeroU16>,
    pub peer: Option<String>,
    /// [`super::session_tag`] of the session.
    pub session: Option<Arc<str>>,
    /// [`super::tag`] of the credentials that were refused.
    pub token: Option<String>,
    /// The configuration, policies included, that it was decided by.
    pub version: Option<Arc<str>>,
    pub(super) is_on_record: bool,
}

impl Decision {
    /// A refusal about which nothing else is known yet.
    pub fn denied(request_id: RequestId, reason: Reason, status: u16) -> Self {
        Self {
            verdict: Verdict::Deny(reason),
            status: Some(status),
            ..Self::allowed(request_id, Arc::default())
        }
    }

    /// A permission by these policies.
    pub fn allowed(request_id: RequestId, policies: Arc<[String]>) -> Self {
        Self {
            request_id,
            who: None,
            method: None,
            aim: Aim::Server,
            verdict: Verdict::Allow,
            policies,
            status: None,
            requests: None,
            peer: None,
            session: None,
            token: None,
            version: None,
            is_on_record: false,
        }
    }

    /// Records it as it is now, and keeps no more than that it did: what comes after this
    /// has an outcome.
    pub fn put_on_record(&mut self, audit: &Audit) {
        let mut rest = Self::allowed(self.request_id, Arc::default());
        rest.is_on_record = true;
        audit.record(&Event::Decision(std::mem::replace(self, rest)));
    }

    /// The same of a permission: what comes of it is owed from now on.
    pub fn permits(&mut self, audit: &Audit) -> Owed {
        self.put_on_record(audit);
        audit.owes(self.request_id)
    }

    pub fn is_on_record(&self) -> bool {
        self.is_on_record
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    Allow,
    Deny(Reason),
}

/// What became of one allowed request.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub request_id: RequestId,
    /// `None`: the server answered with a result.
    pub reason: Option<Reason>,
    /// The HTTP status, where one was sent.
    pub status: Option<u16>,
    pub duration: Duration,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

impl Outcome {
    /// Of what no child has answered.
    pub fn unanswered(request_id: RequestId, reason: Option<Reason>, status: Option<u16>) -> Self {
        Self {
            request_id,
            reason,
            status,
            duration: Duration::ZERO,
            bytes_in: 0,
            bytes_out: 0,
        }
    }
}

/// One connection that a child has asked for.
#[derive(Clone, Debug)]
pub struct Egress {
    pub child: u64,
    pub pid: u32,
    /// The [`crate::auth::PrincipalKey`] of whom the child serves.
    pub principal: String,
    /// `HOST:PORT`, as the configuration says it, or as the child has asked for it.
    pub host: String,
    /// The address that was dialled, once there was one.
    pub address: Option<SocketAddr>,
    pub allowed: bool,
    /// Why it was refused, or did not come to a good end.
    pub reason: Option<Reason>,
    /// The same in full, where there is more to say.
    pub error: Option<String>,
    pub duration: Duration,
    /// Bytes that left.
    pub sent: u64,
    pub received: u64,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// Its memory ran out.
    OutOfMemory,
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::OutOfMemory => f.write_str("out of memory"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// The random name that joins everything recorded about one request.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct RequestId([u8; 16]);

impl RequestId {
    /// A new one.
    pub fn random() -> Self {
        // For many at once: it is a name, and no secret.
        thread_local! {
            static AHEAD: Cell<([[u8; 16]; AT_ONCE], usize)> = const { Cell::new(([[0; 16]; AT_ONCE], 0)) };
        }
        AHEAD.with(|ahead| {
            let (mut ids, mut left) = ahead.get();
            if left == 0 {
                random::fill(ids.as_flattened_mut())
                    .expect("the kernel gives random bytes, or nothing here is safe");
                left = ids.len();
            }
            left -= 1;
            ahead.set((ids, left));
            Self(ids[left])
        })
    }
}

impl RequestId {
    /// Of its text.
    pub(super) const LENGTH: usize = 32;

    pub(super) fn text(self, buffer: &mut [u8; Self::LENGTH]) -> &str {
        hex(&self.0, buffer)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text(&mut [0; Self::LENGTH]))
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Adds `bytes` in lower-case digits.
pub(super) fn hex<'t>(bytes: &[u8], text: &'t mut [u8]) -> &'t str {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    std::str::from_utf8(text).expect("digits are ASCII")
}

/// Names of requests that are drawn in one go.
const AT_ONCE: usize = 16;

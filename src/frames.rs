//! What gateway and runner say to each other.
//!
//! One frame is one packet of a `SOCK_SEQPACKET` Unix socket: a JSON object of
//! at most [`MAX_FRAME`] bytes, with descriptors attached where the frame says
//! so. The gateway can name no command, path or host; the runner computes what
//! to start from the root-owned configuration. Used by `child` (the gateway's
//! side) and `runner`.

use serde::{Deserialize, Serialize};

/// The version of this conversation; both sides must speak the same.
pub const VERSION: u16 = 1;

/// Bytes of one frame.
pub const MAX_FRAME: usize = 4096;

/// What the gateway asks.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "frame")]
pub enum Request {
    /// The first frame, and only the first. The runner re-reads its
    /// configuration, answers [`Reply::Hello`], or [`Reply::Refused`] and hangs up.
    Hello {
        version: u16,
        /// The key both were given (a systemd credential), lower-case hex.
        key: String,
        /// `config::Config::digest` as the gateway read it.
        digest: String,
    },
    /// Start a child. Answered by [`Reply::Started`] or [`Reply::Failed`].
    Start {
        /// The gateway's number for it, never used twice on one connection.
        child: u64,
        /// Whose it is: `auth::PrincipalKey`, 64 hex digits. Names the state directory.
        principal: String,
    },
    /// End a child: its process gets the signal; `Kill` ends everything in its sandbox at once.
    Signal { child: u64, signal: Signal },
}

/// The signals a gateway may ask for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Signal {
    /// SIGTERM to the server process.
    Terminate,
    /// SIGKILL to the sandbox's init: everything in it ends.
    Kill,
}

/// What the runner answers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "frame")]
pub enum Reply {
    Hello {
        version: u16,
        /// The digest as the runner read it; when it differs from the gateway's, one of both is stale.
        digest: String,
    },
    /// Carries four descriptors: write end of the child's stdin, read ends of
    /// its stdout and stderr, and a pidfd of its init (to wait on).
    Started { child: u64, pid: i32 },
    /// The child was not started, and nothing of it is left.
    Failed {
        child: u64,
        /// The sandbox layer that could not be applied, or `exec`, `limit`, `config`.
        layer: String,
        /// Cause and cure, for the journal.
        reason: String,
    },
    /// The child has ended and is reaped.
    Exited { child: u64, status: Status, out_of_memory: bool },
    /// The conversation ends: wrong key, version or configuration. For the journal.
    Refused { reason: String },
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    Code(i32),
    Signal(i32),
}

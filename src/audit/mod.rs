//! What happened, for auditors: a closed set of events, each with fixed fields.
//!
//! `Audit::record` never blocks and never fails a request: what a sink cannot
//! take now waits in a bounded queue, and what the queue cannot hold is counted
//! and reported. Never a token, never an argument of a call. Called by
//! `pipeline`, `session`, `child` and `daemon`; thv-journal(7) is the manual.

mod encode;
mod event;
mod journal;
mod kind;
mod message;
mod owed;
mod queue;
#[cfg(test)]
mod real;
mod reason;
mod record;
mod text;

use std::{
    collections::VecDeque,
    fmt,
    io::{self, Write},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use aws_lc_rs::digest;
use tokio::sync::Notify;

use crate::config::ServerName;

pub use event::{Decision, Egress, Event, Exit, Outcome, RequestId, Verdict};
pub use kind::Kind;
pub use owed::Owed;
pub use queue::Backlog;
pub use reason::Reason;
pub use record::Record;

/// Where events go. Cheap to clone; all clones share one sequence.
#[derive(Clone)]
pub struct Audit(Arc<Inner>);

struct Inner {
    sink: Sink,
    /// Whether the gateway ends the requests that still run.
    cuts: AtomicBool,
}

enum Sink {
    Queue(queue::Queue),
    Memory { memory: Memory, server: String },
}

impl Audit {
    /// To the journal's socket, normally [`JOURNAL`], which need not be there yet.
    pub fn journal(socket: &Path, server: &ServerName) -> io::Result<Self> {
        let queue = queue::Queue::direct(
            journal::Socket::new(socket)?,
            encode::native(server.as_str()),
        )?;
        Ok(Self::to(Sink::Queue(queue)))
    }

    /// The same for a loop that wakes journald once for all that one turn of it has recorded:
    /// who calls this calls [`Audit::hand_on`] before a turn's end, and before anything
    /// comes of what was recorded.
    pub fn journal_in_turns(socket: &Path, server: &ServerName) -> io::Result<Self> {
        let queue = queue::Queue::in_turns(
            journal::Socket::new(socket)?,
            encode::native(server.as_str()),
        )?;
        Ok(Self::to(Sink::Queue(queue)))
    }

    /// One JSON object a line, to `out` (normally stderr), with the names and
    /// shapes of `journalctl -o json`. Written by a thread of its own.
    pub fn stderr(out: impl Write + Send + 'static, server: &ServerName) -> io::Result<Self> {
        let queue = queue::Queue::threaded(Lines(out), encode::json(server.as_str()))?;
        Ok(Self::to(Sink::Queue(queue)))
    }

    /// Into memory, to be read back.
    pub fn memory(server: &ServerName) -> (Self, Memory) {
        let memory = Memory::default();
        let sink = Sink::Memory {
            memory: memory.clone(),
            server: server.to_string(),
        };
        (Self::to(sink), memory)
    }

    fn to(sink: Sink) -> Self {
        let cuts = AtomicBool::new(false);
        Self(Arc::new(Inner { sink, cuts }))
    }

    /// Records one event. Never blocks, never fails.
    pub fn record(&self, event: &Event) {
        match &self.0.sink {
            Sink::Queue(queue) => queue.put(event),
            Sink::Memory { memory, server } => memory.put(event, server),
        }
    }

    /// Hands on what was recorded and waits for the end of its turn.
    pub fn hand_on(&self) {
        match &self.0.sink {
            Sink::Queue(queue) => queue.hand_on(),
            Sink::Memory { .. } => {}
        }
    }

    /// What waits, and what was lost so far.
    pub fn backlog(&self) -> Backlog {
        match &self.0.sink {
            Sink::Queue(queue) => queue.backlog(),
            Sink::Memory { .. } => Backlog::default(),
        }
    }

    /// Waits until nothing is queued any more, at most this long; for the end
    /// of a process. Blocks: not for the async runtime's threads.
    pub fn flush(&self, within: Duration) -> bool {
        match &self.0.sink {
            Sink::Queue(queue) => queue.flush(within),
            Sink::Memory { .. } => true,
        }
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Audit({:?})", self.backlog())
    }
}

/// The records of [`Audit::memory`]: the latest few thousand.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// How many there were, and the latest.
    inner: Arc<Mutex<(u64, VecDeque<Record>)>>,
    more: Arc<Notify>,
}

impl Memory {
    /// Everything recorded so far, in order.
    pub fn records(&self) -> Vec<Record> {
        self.lock().1.iter().cloned().collect()
    }

    /// Waits until `enough` says so of everything recorded so far.
    pub async fn until(&self, enough: impl Fn(&[Record]) -> bool) {
        loop {
            // Before looking: what comes in between is not missed.
            let more = self.more.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            if enough(&self.records()) {
                return;
            }
            more.await;
        }
    }

    fn put(&self, event: &Event, server: &str) {
        let mut inner = self.lock();
        inner.0 += 1;
        let record = Record::of(event, server, queue::now(), Some(inner.0));
        if inner.1.len() == MAX_MEMORY {
            inner.1.pop_front();
        }
        inner.1.push_back(record);
        drop(inner);
        self.more.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, (u64, VecDeque<Record>)> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's id as records show it.
pub fn session_tag(id: &str) -> Arc<str> {
    tag(id.as_bytes()).into()
}

/// Something secret as records show it: enough to join records, not enough to use.
pub fn tag(secret: &[u8]) -> String {
    let hash = digest::digest(&digest::SHA256, secret);
    event::hex(&hash.as_ref()[..8], &mut [0; 16]).to_owned()
}

/// A writer as a sink: each record is a line.
struct Lines<W>(W);

impl<W: Write + Send + 'static> queue::Sink for Lines<W> {
    fn send(&mut self, record: &[u8]) -> queue::Sent {
        // A closed stderr stays closed: waiting for it would only fill the queue.
        match self.0.write_all(record).and_then(|()| self.0.flush()) {
            Ok(()) => queue::Sent::Yes,
            Err(_) => queue::Sent::Never,
        }
    }
}

/// Where journald listens for native records.
pub const JOURNAL: &str = "/run/systemd/journal/socket";

/// Records kept by [`Audit::memory`].
const MAX_MEMORY: usize = 4096;

#[cfg(test)]
mod fixture {
    //! A journald as far as its socket goes.

    use std::{
        io::IoSliceMut,
        os::{
            fd::{AsFd, AsRawFd},
            unix::net::UnixDatagram,
        },
        path::{Path, PathBuf},
        time::Duration,
    };

    use nix::{
        poll::{PollFd, PollFlags, PollTimeout, poll},
        sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
    };

    use crate::config::ServerName;

    pub(super) fn server() -> ServerName {
        ServerName::parse("github").unwrap()
    }

    pub(super) struct Journald<S = UnixDatagram> {
        socket: S,
        path: PathBuf,
        dir: tempfile::TempDir,
    }

    #[derive(Clone)]
    pub(super) struct Received {
        pub(super) fields: Vec<(String, String)>,
        pub(super) as_file: bool,
    }

    impl Journald<()> {
        /// A place for it, where nothing listens yet.
        pub(super) fn prepare() -> Self {
            let dir = tempfile::tempdir().unwrap();
            Self {
                socket: (),
                path: dir.path().join("socket"),
                dir,
            }
        }

        pub(super) fn bind(self) -> Journald {
            let socket = UnixDatagram::bind(&self.path).unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(30)))
                .unwrap();
            Journald {
                socket,
                path: self.path,
                dir: self.dir,
            }
        }
    }

    impl<S> Journald<S> {
        pub(super) fn path(&self) -> &Path {
            &self.path
        }
    }

    impl Journald {
        pub(super) fn start() -> Self {
            Journald::prepare().bind()
        }

        /// Goes away, reads what had been sent to it, and listens again at the same path.
        pub(super) fn restart(self) -> (Self, Vec<Received>) {
            std::fs::remove_file(&self.path).unwrap();
            self.socket.set_nonblocking(true).unwrap();
            // What is sent from here on is refused: else it would be lost between the last reading and the end.
            self.socket.shutdown(std::net::Shutdown::Read).unwrap();
            let rest = std::iter::from_fn(|| self.try_receive()).collect();
            let away = Journald {
                socket: (),
                path: self.path,
                dir: self.dir,
            };
            (away.bind(), rest)
        }

        /// Whether nothing has come that was not received.
        pub(super) fn is_empty(&self) -> bool {
            let mut asked = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            poll(&mut asked, PollTimeout::ZERO).unwrap() == 0
        }

        #[track_caller]
        pub(super) fn receive(&self) -> Received {
            self.try_receive().expect("a record should have arrived")
        }

        fn try_receive(&self) -> Option<Received> {
            let mut buffer = vec![0; 1 << 20];
            let mut control = nix::cmsg_space!([i32; 1]);
            let (length, file) = {
                let mut slices = [IoSliceMut::new(&mut buffer)];
                let message = recvmsg::<()>(
                    self.socket.as_raw_fd(),
                    &mut slices,
                    Some(&mut control),
                    MsgFlags::MSG_CMSG_CLOEXEC,
                )
                .ok()?;
                let file = message.cmsgs().unwrap().find_map(|cmsg| match cmsg {
                    ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
                    _ => None,
                });
                (message.bytes, file)
            };
            buffer.truncate(length);
            let as_file = file.is_some();
            if let Some(fd) = file {
                // By another open: it has an offset of its own, and needs no `unsafe`.
                buffer = std::fs::read(format!("/proc/self/fd/{fd}")).unwrap();
                nix::unistd::close(fd).unwrap();
            }
            Some(Received {
                fields: parse(&buffer),
                as_file,
            })
        }
    }

    impl Received {
        pub(super) fn field(&self, name: &str) -> Option<&str> {
            self.fields
                .iter()
                .find(|(field, _)| field == name)
                .map(|(_, value)| value.as_str())
        }
    }

    /// The native protocol, read as journald reads it.
    pub(super) fn parse(mut bytes: &[u8]) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let mut fields = Vec::new();
        while let Some(end) = bytes.iter().position(|byte| matches!(byte, b'=' | b'\n')) {
            let (name, length, start) = if bytes[end] == b'=' {
                let length = bytes[end + 1..]
                    .iter()
                    .position(|byte| *byte == b'\n')
                    .unwrap();
                (text(&bytes[..end]), length, end + 1)
            } else {
                let length = u64::from_le_bytes(bytes[end + 1..end + 9].try_into().unwrap());
                (
                    text(&bytes[..end]),
                    usize::try_from(length).unwrap(),
                    end + 9,
                )
            };
            fields.push((name, text(&bytes[start..start + length])));
            assert_eq!(bytes[start + length], b'\n');
            bytes = &bytes[start + length + 1..];
        }
        assert!(bytes.is_empty());
        fields
    }
}

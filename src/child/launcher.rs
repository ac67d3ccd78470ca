//! Asks the runner to start and to signal children.
//!
//! One task owns the connection. It is made when the first child is asked for,
//! so that nothing but a permitted call ever wakes the runner, and made again
//! when the runner went away. When the connection ends, so have its children:
//! the runner sees to that.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};
use tokio::{
    io::unix::AsyncFd,
    net::{TcpListener, unix::pipe},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::{debug, warn};

use crate::{
    auth::PrincipalKey,
    child::{early::LastWords, unreached},
    frames::{self, Caller, Reply, Request, Signal, Status},
    sys,
};

/// How the runner is reached.
#[derive(Debug)]
pub enum Connection {
    /// The socket of `thv-runner@NAME.socket`.
    Path(PathBuf),
    /// One end of a socketpair whose other end a runner of our own has.
    Inherited(OwnedFd),
}

/// The asking side. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Launcher {
    asks: mpsc::Sender<Ask>,
}

/// One running child. Dropping it closes its pipes; the runner still has to be
/// told to end it ([`Launcher::signal`]).
#[derive(Debug)]
pub(super) struct Process {
    pub(super) number: u64,
    /// The process id of the sandbox's init, as the runner sees it.
    pub(super) pid: u32,
    pub(super) stdin: pipe::Sender,
    pub(super) stdout: pipe::Receiver,
    pub(super) stderr: pipe::Receiver,
    /// The sockets that listen in its network, for its ways out.
    pub(super) doors: Vec<TcpListener>,
    /// Sockets of its network that are there to be connected, if it speaks HTTP.
    pub(super) dialers: Vec<OwnedFd>,
    /// Says once how the child ended.
    pub(super) ended: oneshot::Receiver<Ended>,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// Reaped by the runner.
    Exited { status: Status, out_of_memory: bool },
    /// The runner went away, and the child with it.
    RunnerGone,
}

/// Why there is no child.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StartError {
    /// A sandbox layer, `exec`, `limit` or `config`: said by the runner.
    #[error("{layer}: {reason}")]
    Failed { layer: String, reason: String },
    /// It runs, and nobody listens where it should; what it has said about that is not for clients.
    #[error("http: {reason}")]
    NotListening { reason: String, said: LastWords },
    #[error("the runner cannot be reached: {0}")]
    Unreachable(String),
    #[error("the runner refuses this gateway: {0}")]
    Refused(String),
    /// The configuration was edited since this gateway read it.
    #[error("the configuration has changed since this gateway started")]
    Stale,
    #[error("the child did not start within {} seconds", START_DEADLINE.as_secs())]
    Deadline,
}

impl StartError {
    /// The sandbox layer that is at fault, or what stands in for it.
    pub fn layer(&self) -> &str {
        match self {
            Self::Failed { layer, .. } => layer,
            Self::NotListening { .. } => "http",
            _ => "runner",
        }
    }

    /// All that there is to say, for the journal.
    pub fn in_full(&self) -> String {
        match self {
            Self::NotListening { said, .. } => match said.telling_line() {
                Some(line) => format!("{self}; it says: {line}"),
                None => self.to_string(),
            },
            _ => self.to_string(),
        }
    }
}

#[derive(Debug)]
enum Ask {
    Start {
        principal: PrincipalKey,
        caller: Option<Caller>,
        answer: oneshot::Sender<Result<Process, StartError>>,
    },
    Signal {
        child: u64,
        signal: Signal,
    },
}

impl Launcher {
    /// The handle, and the task that must run beside it; the task ends when the
    /// last handle is gone.
    pub fn new(
        connection: Connection,
        key: String,
        digest: String,
    ) -> (Self, impl Future<Output = ()>) {
        let (asks, inbox) = mpsc::channel(MAX_ASKS);
        let work = Work {
            source: Some(connection),
            key,
            digest,
            link: None,
            next: 1,
            starting: HashMap::new(),
            running: HashMap::new(),
        };
        (Self { asks }, work.run(inbox))
    }

    /// Has the runner start a child for `principal`, and tell it so where there is a `caller`.
    pub(super) async fn start(
        &self,
        principal: PrincipalKey,
        caller: Option<Caller>,
    ) -> Result<Process, StartError> {
        let (answer, told) = oneshot::channel();
        let gone = || StartError::Unreachable("the gateway is stopping".to_owned());
        let ask = async {
            let ask = Ask::Start {
                principal,
                caller,
                answer,
            };
            self.asks.send(ask).await.map_err(|_| gone())?;
            told.await.map_err(|_| gone())?
        };
        timeout(START_DEADLINE, ask)
            .await
            .unwrap_or(Err(StartError::Deadline))
    }

    /// Asks for a signal; what becomes of it is told by [`Process::ended`].
    pub(super) async fn signal(&self, child: u64, signal: Signal) {
        let _ = self.asks.send(Ask::Signal { child, signal }).await;
    }

    /// Ends a child that nobody was given, from where nothing can be waited for.
    pub(super) fn kill(&self, child: u64) {
        let signal = Signal::Kill;
        if self.asks.try_send(Ask::Signal { child, signal }).is_err() {
            debug!(
                child,
                "a child is left to the end of the runner's connection"
            );
        }
    }
}

struct Work {
    /// Taken for good when it was inherited: that runner is not replaced.
    source: Option<Connection>,
    key: String,
    digest: String,
    link: Option<AsyncFd<OwnedFd>>,
    next: u64,
    starting: HashMap<u64, oneshot::Sender<Result<Process, StartError>>>,
    running: HashMap<u64, oneshot::Sender<Ended>>,
}

impl Work {
    async fn run(mut self, mut inbox: mpsc::Receiver<Ask>) {
        loop {
            tokio::select! {
                ask = inbox.recv() => match ask {
                    Some(ask) => self.ask(ask).await,
                    None => return,
                },
                reply = receive(self.link.as_ref()) => match reply {
                    Ok(Some((reply, descriptors))) => self.reply(reply, descriptors).await,
                    Ok(None) => self.lost("it closed the connection"),
                    Err(error) => self.lost(&error.to_string()),
                },
            }
        }
    }

    async fn ask(&mut self, ask: Ask) {
        match ask {
            Ask::Start {
                principal,
                caller,
                answer,
            } => {
                if self.link.is_none()
                    && let Err(error) = self.connect().await
                {
                    let _ = answer.send(Err(error));
                    return;
                }
                let child = self.next;
                self.next += 1;
                let frame = Request::Start {
                    child,
                    principal: principal.to_string(),
                    caller,
                };
                self.starting.insert(child, answer);
                self.send(&frame).await;
            }
            // A connection that is gone has taken its children along.
            Ask::Signal { child, signal } if self.link.is_some() => {
                self.send(&Request::Signal { child, signal }).await
            }
            Ask::Signal { .. } => {}
        }
    }

    async fn connect(&mut self) -> Result<(), StartError> {
        let broken = unreached::broken(self.place());
        let unreachable = |error: io::Error| StartError::Unreachable(format!("{error}{broken}"));
        let socket = match self.source.take() {
            Some(Connection::Path(path)) => {
                let socket = dial(&path);
                self.source = Some(Connection::Path(path.clone()));
                socket.map_err(|error| {
                    StartError::Unreachable(unreached::unconnected(&path, &error))
                })?
            }
            Some(Connection::Inherited(socket)) => socket,
            None => return Err(StartError::Unreachable("it has ended".to_owned())),
        };
        let link = sys::readiness(socket).map_err(unreachable)?;
        let hello = Request::Hello {
            version: frames::VERSION,
            key: self.key.clone(),
            digest: self.digest.clone(),
        };
        let greeting = async {
            send(&link, &hello).await?;
            receive(Some(&link)).await
        };
        let greeted = timeout(HELLO_DEADLINE, greeting).await.map_err(|_| {
            StartError::Unreachable(unreached::silent(self.place(), HELLO_DEADLINE))
        })?;
        match greeted.map_err(unreachable)? {
            Some((
                Reply::Hello {
                    version: frames::VERSION,
                    digest,
                },
                _,
            )) => {
                if digest != self.digest {
                    return Err(StartError::Stale);
                }
                self.link = Some(link);
                Ok(())
            }
            Some((Reply::Refused { reason }, _)) => Err(StartError::Refused(reason)),
            Some(_) => Err(StartError::Refused(
                "it speaks another version; restart thv.target".to_owned(),
            )),
            None => Err(StartError::Unreachable(format!(
                "it closed the connection{broken}"
            ))),
        }
    }

    /// Where its runner listens, if that is a unit's.
    fn place(&self) -> Option<&Path> {
        match &self.source {
            Some(Connection::Path(path)) => Some(path),
            _ => None,
        }
    }

    async fn reply(&mut self, reply: Reply, descriptors: Vec<OwnedFd>) {
        match reply {
            Reply::Started {
                child,
                pid,
                listeners,
                dialers,
            } => {
                self.started((child, pid, [listeners, dialers]), descriptors)
                    .await
            }
            Reply::Failed {
                child,
                layer,
                reason,
            } => {
                if let Some(answer) = self.starting.remove(&child) {
                    let _ = answer.send(Err(StartError::Failed { layer, reason }));
                }
            }
            Reply::Exited {
                child,
                status,
                out_of_memory,
            } => {
                if let Some(ended) = self.running.remove(&child) {
                    let _ = ended.send(Ended::Exited {
                        status,
                        out_of_memory,
                    });
                }
            }
            Reply::Hello { .. } | Reply::Refused { .. } => self.lost("it said hello twice"),
        }
    }

    async fn started(
        &mut self,
        (child, pid, [listeners, dialers]): (u64, u32, [usize; 2]),
        descriptors: Vec<OwnedFd>,
    ) {
        let Some(answer) = self.starting.remove(&child) else {
            return;
        };
        let (end, ended) = oneshot::channel();
        self.running.insert(child, end);
        let built =
            build((child, pid, [listeners, dialers]), descriptors, ended).map_err(|error| {
                StartError::Unreachable(format!("its descriptors are not usable: {error}"))
            });
        // Nobody waits any more, or it cannot be used: a child must not be left behind.
        if answer.send(built).is_err() {
            self.send(&Request::Signal {
                child,
                signal: Signal::Kill,
            })
            .await;
        }
    }

    async fn send(&mut self, frame: &Request) {
        let Some(link) = &self.link else { return };
        let sent = timeout(SEND_DEADLINE, send(link, frame)).await;
        match sent {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.lost(&error.to_string()),
            Err(_) => self.lost("it does not read"),
        }
    }

    fn lost(&mut self, why: &str) {
        if self.running.is_empty() && self.starting.is_empty() {
            debug!(why, "runner connection ended");
        } else {
            warn!(
                why,
                children = self.running.len(),
                "runner connection lost, its children are gone"
            );
        }
        self.link = None;
        for (_, answer) in self.starting.drain() {
            let _ = answer.send(Err(StartError::Unreachable(why.to_owned())));
        }
        for (_, ended) in self.running.drain() {
            let _ = ended.send(Ended::RunnerGone);
        }
    }
}

fn build(
    (child, pid, [listeners, dialers]): (u64, u32, [usize; 2]),
    mut descriptors: Vec<OwnedFd>,
    ended: oneshot::Receiver<Ended>,
) -> io::Result<Process> {
    let wrong = || {
        let expected = format!("four, {listeners} and {dialers} were expected");
        io::Error::new(io::ErrorKind::InvalidData, expected)
    };
    let all = OWN_DESCRIPTORS.saturating_add(listeners);
    if Some(descriptors.len()) != all.checked_add(dialers) {
        return Err(wrong());
    }
    let dialers = descriptors.split_off(all);
    let doors = descriptors
        .split_off(OWN_DESCRIPTORS)
        .into_iter()
        .map(|door| {
            let door = std::net::TcpListener::from(door);
            door.set_nonblocking(true)?;
            TcpListener::from_std(door)
        })
        .collect::<io::Result<Vec<_>>>()?;
    // The pidfd is for a gateway that must wait without its runner; this one hears `Exited`.
    let [stdin, stdout, stderr, _pidfd]: [OwnedFd; OWN_DESCRIPTORS] =
        descriptors.try_into().map_err(|_| wrong())?;
    Ok(Process {
        number: child,
        pid,
        stdin: pipe::Sender::from_owned_fd(stdin)?,
        stdout: pipe::Receiver::from_owned_fd(stdout)?,
        stderr: pipe::Receiver::from_owned_fd(stderr)?,
        doors,
        dialers,
        ended,
    })
}

fn dial(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket)
}

async fn send(link: &AsyncFd<OwnedFd>, frame: &Request) -> io::Result<()> {
    loop {
        let mut ready = link.writable().await?;
        if let Ok(sent) = ready.try_io(|link| frames::send(link.as_fd(), frame, &[])) {
            return sent;
        }
    }
}

/// The next frame; never, while there is no connection.
async fn receive(link: Option<&AsyncFd<OwnedFd>>) -> io::Result<Option<(Reply, Vec<OwnedFd>)>> {
    let Some(link) = link else {
        return std::future::pending().await;
    };
    loop {
        let mut ready = link.readable().await?;
        if let Ok(received) = ready.try_io(|link| frames::receive(link.as_fd())) {
            return received;
        }
    }
}

/// How long a child may take from the question to its exec.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long the runner may take to answer hello, its own activation included.
const HELLO_DEADLINE: Duration = Duration::from_secs(15);
/// How long a frame may wait in a full socket.
const SEND_DEADLINE: Duration = Duration::from_secs(5);
/// Streams and pidfd.
const OWN_DESCRIPTORS: usize = 4;
/// Questions waiting for the task.
const MAX_ASKS: usize = 64;

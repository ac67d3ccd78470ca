//! Where children come from: the runner, or somewhere else.
//!
//! Whatever a server speaks, a session is given the same: a place for lines, a
//! place where lines come from, and the word of the end.

use std::{
    os::fd::OwnedFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::HeaderValue;
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, duplex},
    net::TcpListener,
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};

use crate::{
    auth::Owner,
    child::{
        Ended, Launcher, Lends, StartError,
        early::{Errors, LastWords},
        http::{Entrance, Fault, Mirror, Peer, Talk, Way, Wire},
        launcher::Process,
    },
    config::Inside,
    fetch::{Endpoint, Io},
    frames::{Caller, Signal, Status},
};

/// One running child, whatever it is. Dropping it closes its streams; it still
/// has to be told to end ([`Source::signal`]).
pub struct Child {
    pub number: u64,
    /// The process id of the sandbox's init, as the runner sees it; 0 where there is no process.
    pub pid: u32,
    pub stdin: Box<dyn AsyncWrite + Send + Unpin>,
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// What it writes for people.
    pub errors: Vec<Errors>,
    /// The sockets that listen in its network, for its ways out.
    pub doors: Vec<TcpListener>,
    /// What must run beside it, where its streams are not its own.
    pub translation: Option<Translation>,
    /// Says once how the child ended.
    pub ended: oneshot::Receiver<Ended>,
}

/// Between a session's lines and what the server speaks.
pub struct Translation {
    /// Begins it, with the memory that it may have.
    pub work: Box<dyn FnOnce(Arc<dyn Lends>) -> Work + Send>,
    /// Requests that will have no answer, by their numbers.
    pub faults: mpsc::Receiver<(u64, Fault)>,
}

/// What goes on beside a child.
pub(super) type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Makes children of one kind.
pub struct Source(Kind);

enum Kind {
    /// Lines on standard streams.
    Stdio(Launcher),
    /// HTTP on the child's own loopback.
    Inside {
        launcher: Launcher,
        inside: Inside,
        /// How long it may take to listen.
        patience: Duration,
        /// Bytes of one message of its.
        longest: usize,
        mirror: Arc<Mirror>,
    },
    /// HTTP at a URL; there is no process.
    Remote(Remote),
}

/// A server that somebody else runs.
struct Remote {
    endpoint: Arc<Endpoint>,
    shown: Shown,
    /// Bytes of one message of its.
    longest: usize,
    mirror: Arc<Mirror>,
    next: AtomicU64,
}

/// What each conversation shows the server, by whose it is.
pub type Shown = Box<dyn Fn(&Owner) -> Showing + Send + Sync>;

/// What one conversation shows the server.
pub struct Showing {
    /// Asked each time that something is said.
    pub now: Box<dyn Fn() -> Option<HeaderValue> + Send + Sync>,
    /// Told that the server does not accept it.
    pub refused: Box<dyn Fn() + Send + Sync>,
}

impl Showing {
    /// The same from beginning to end.
    pub fn always(shown: Option<HeaderValue>) -> Self {
        Self {
            now: Box::new(move || shown.clone()),
            refused: Box::new(|| ()),
        }
    }
}

impl Source {
    /// Lines on standard streams.
    pub fn stdio(launcher: Launcher) -> Self {
        Self(Kind::Stdio(launcher))
    }

    /// HTTP at a URL, where each conversation shows what `shown` says.
    pub fn remote(endpoint: Endpoint, shown: Shown, longest: usize) -> Self {
        Self(Kind::Remote(Remote {
            endpoint: Arc::new(endpoint),
            shown,
            longest,
            mirror: Arc::default(),
            next: AtomicU64::new(1),
        }))
    }

    /// HTTP that is listened for inside, within `patience`.
    pub fn inside(launcher: Launcher, inside: Inside, patience: Duration, longest: usize) -> Self {
        Self(Kind::Inside {
            launcher,
            inside,
            patience,
            longest,
            mirror: Arc::default(),
        })
    }

    /// Makes a child for `owner`, and has it told who calls where there is a `caller`.
    pub async fn start(&self, owner: &Owner, caller: Option<Caller>) -> Result<Child, StartError> {
        let whose = owner.principal();
        match &self.0 {
            Kind::Stdio(launcher) => Ok(own_streams(launcher.start(whose, caller).await?)),
            Kind::Inside {
                launcher,
                inside,
                patience,
                longest,
                mirror,
            } => {
                let process = launcher.start(whose, caller).await?;
                let about = (inside, (*patience, *longest), mirror);
                listening(launcher, process, about).await
            }
            Kind::Remote(remote) => Ok(remote.begin(owner).await),
        }
    }

    /// Asks for a signal; what becomes of it is told by [`Child::ended`].
    pub async fn signal(&self, child: u64, signal: Signal) {
        match &self.0 {
            Kind::Stdio(launcher) | Kind::Inside { launcher, .. } => {
                launcher.signal(child, signal).await;
            }
            // It ends with its translation.
            Kind::Remote(_) => {}
        }
    }
}

fn own_streams(process: Process) -> Child {
    Child {
        number: process.number,
        pid: process.pid,
        stdin: Box::new(process.stdin),
        stdout: Box::new(process.stdout),
        errors: vec![Errors::of(process.stderr)],
        doors: process.doors,
        translation: None,
        ended: process.ended,
    }
}

/// Waits until the process listens, and talks to it from then on.
async fn listening(
    launcher: &Launcher,
    mut process: Process,
    (inside, (patience, longest), mirror): (&Inside, (Duration, usize), &Arc<Mirror>),
) -> Result<Child, StartError> {
    // Whoever waits for it may go away.
    let unready = Unready {
        launcher: launcher.clone(),
        child: process.number,
    };
    let dialers: Vec<OwnedFd> = std::mem::take(&mut process.dialers);
    let entrance = Entrance::new(&inside.door, dialers).map_err(|error| {
        StartError::Unreachable(format!("its descriptors are not usable: {error}"))
    })?;
    let mut said = [process.stdout, process.stderr].map(Errors::of);
    let first = match connected(&entrance, patience, &mut process.ended, &mut said).await {
        Ok(first) => first,
        Err(reason) => {
            let said = last_words((process.number, process.pid), &mut said).await;
            return Err(StartError::NotListening { reason, said });
        }
    };
    let peer = Peer {
        authority: entrance.authority(),
        way: Way::Inside(entrance),
        path: inside.path.clone(),
        shown: Showing::always(None),
        longest,
        mirror: mirror.clone(),
    };
    let (stdin, stdout, translation) = translated(peer, Some(first)).await;
    let (input, launcher, number) = (process.stdin, launcher.clone(), process.number);
    let work = Box::new(move |lends| {
        Box::pin(async move {
            (translation.work)(lends).await;
            // Servers of this kind do not end with their input.
            drop(input);
            launcher.signal(number, Signal::Terminate).await;
        }) as Work
    });
    std::mem::forget(unready);
    Ok(Child {
        number,
        pid: process.pid,
        stdin: Box::new(stdin),
        stdout: Box::new(stdout),
        errors: said.into(),
        doors: process.doors,
        translation: Some(Translation {
            work,
            faults: translation.faults,
        }),
        ended: process.ended,
    })
}

impl Remote {
    async fn begin(&self, owner: &Owner) -> Child {
        let peer = Peer {
            way: Way::Remote(self.endpoint.clone()),
            authority: self.endpoint.authority().to_owned(),
            path: self.endpoint.path().to_owned(),
            shown: (self.shown)(owner),
            longest: self.longest,
            mirror: self.mirror.clone(),
        };
        let (stdin, stdout, translation) = translated(peer, None).await;
        let (end, ended) = oneshot::channel();
        let work = Box::new(move |lends| {
            Box::pin(async move {
                (translation.work)(lends).await;
                let _ = end.send(Ended::Exited {
                    status: Status::Code(0),
                    out_of_memory: false,
                });
            }) as Work
        });
        Child {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            pid: 0,
            stdin: Box::new(stdin),
            stdout: Box::new(stdout),
            errors: Vec::new(),
            doors: Vec::new(),
            translation: Some(Translation {
                work,
                faults: translation.faults,
            }),
            ended,
        }
    }
}

/// The session's ends of a conversation over HTTP, and the work between.
async fn translated(
    peer: Peer,
    first: Option<Box<dyn Io>>,
) -> (DuplexStream, DuplexStream, Translation) {
    let (stdin, input) = duplex(BUFFER);
    let (output, stdout) = duplex(BUFFER);
    let (tell, faults) = mpsc::channel(MAX_FAULTS);
    let wire = match first {
        Some(io) => Wire::over(io).await.ok(),
        None => None,
    };
    let work = Box::new(move |lends| {
        let talk = Talk::new((peer, wire), output, tell, lends);
        Box::pin(talk.run(input)) as Work
    });
    (stdin, stdout, Translation { work, faults })
}

/// A process that was started and that nobody has been given yet.
struct Unready {
    launcher: Launcher,
    child: u64,
}

impl Drop for Unready {
    fn drop(&mut self) {
        self.launcher.kill(self.child);
    }
}

/// The first connection to what listens there, or why there is none within that time. What the server writes meanwhile
/// is read.
async fn connected(
    entrance: &Entrance,
    patience: Duration,
    ended: &mut oneshot::Receiver<Ended>,
    said: &mut [Errors; 2],
) -> Result<Box<dyn Io>, String> {
    let deadline = Instant::now() + patience;
    loop {
        let error = match entrance.connect().await {
            Ok(io) => return Ok(io),
            Err(error) => error,
        };
        said.iter_mut().for_each(Errors::read_ahead);
        if Instant::now() >= deadline {
            return Err(format!(
                "nothing listens at {entrance} within {} s (limits.start-timeout): {error}; `port` or `socket` must be where it does",
                patience.as_secs()
            ));
        }
        // Nobody says when a port is bound: it is tried.
        tokio::select! {
            _ = &mut *ended => return Err("the server ended before it listened".to_owned()),
            () = sleep(POLL) => {}
        }
    }
}

/// What it has written, on either stream: for people both.
async fn last_words((child, pid): (u64, u32), said: &mut [Errors; 2]) -> LastWords {
    let [output, errors] = said;
    let text = [output.last_words().await, errors.last_words().await].join(&b'\n');
    LastWords { child, pid, text }
}

/// How often a port is tried.
const POLL: Duration = Duration::from_millis(25);
/// Bytes between a session and its translation.
const BUFFER: usize = 64 << 10;
/// Requests without an answer that the session has not heard of.
const MAX_FAULTS: usize = 64;

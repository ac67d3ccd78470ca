//! One gateway process: load, build in order, ready, serve, drain.
//!
//! `serve`, the demo and the foreground form all run this. Decides nothing
//! about a request. A configuration that cannot be served is a mode, not an
//! exit: every client is told 503 until the files are mended.

mod backend;
mod build;
mod edge;
mod misconfigured;
mod problem;
mod refusing;
mod reload;
mod serving;
mod tenancy;
mod vetting;

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    audit::{Audit, Event},
    child::Connection,
    config::{self, Config, OwnerRule, Problems, ServerName},
    egress::Resolver,
    http::{
        Entrance,
        peer::{Listener, Peer, Stream},
    },
    runner::Foreground,
    systemd::{Credentials, Notifier},
    time::Clock,
};

use build::build;
pub use build::policy_problems;
use tenancy::Tenancy;
pub use tenancy::{given, served};

/// What a gateway is run with: everything that surrounds it.
pub struct Setup {
    pub server: ServerName,
    /// Reads the configuration; called again when its files have changed.
    pub load: Box<dyn Fn() -> Result<Config, Problems> + Send + Sync>,
    /// Says whether the files may have changed since the last look.
    pub changed: Box<dyn FnMut() -> bool + Send + Sync>,
    pub listener: Listener,
    /// How to reach the runner, and the key that it knows.
    pub runner: Connection,
    pub key: String,
    /// Secrets that the configuration names.
    pub credentials: Credentials,
    pub audit: Audit,
    pub clock: Clock,
    /// Who is asked for the addresses of what children may reach.
    pub resolver: Resolver,
    /// Where keys of issuers are kept from one process to the next.
    pub state: Option<PathBuf>,
    pub notifier: Notifier,
    /// Whether to exit when idle: only where a socket unit starts us again.
    pub may_exit: bool,
}

impl Setup {
    /// Without systemd: beside a runner of its own, until it is told to stop. Secrets
    /// are the runner's to read, and nothing is kept or looked for again.
    pub fn in_foreground(
        root: &Path,
        server: &ServerName,
        socket: impl Into<OwnedFd>,
        runner: &Foreground,
        audit: Audit,
    ) -> io::Result<Self> {
        let way = Connection::Inherited(runner.socket.try_clone()?);
        Self::alone(root, server, socket, (way, runner.key.clone()), audit)
    }

    /// The same, whatever runner there is.
    fn alone(
        root: &Path,
        server: &ServerName,
        socket: impl Into<OwnedFd>,
        (runner, key): (Connection, String),
        audit: Audit,
    ) -> io::Result<Self> {
        let (root, name) = (root.to_owned(), server.clone());
        Ok(Self {
            server: server.clone(),
            load: Box::new(move || config::load(&root, &name, OwnerRule::RootOrCaller)),
            changed: Box::new(|| false),
            listener: Listener::from_fd(socket.into())?,
            runner,
            key,
            credentials: Credentials::default(),
            audit,
            clock: Clock::system(),
            resolver: Resolver::system(),
            state: None,
            notifier: Notifier::none(),
            may_exit: false,
        })
    }
}

/// How a gateway ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exit {
    /// Asked to, or idle: exit status 0.
    Done,
    /// Misconfigured, and nobody asks any more: exit status 78.
    Misconfigured,
}

/// Runs until told to stop, or idle.
pub async fn run(setup: Setup) -> Result<Exit> {
    let tenancy = match &setup.state {
        Some(directory) => {
            let (tenancy, last) = Tenancy::begin(directory, &setup.credentials.names())?;
            if let Some(last) = last {
                setup.audit.record(&last);
            }
            Some(tenancy)
        }
        None => None,
    };
    let exit = run_here(setup).await?;
    if let Some(tenancy) = tenancy {
        tenancy.end();
    }
    Ok(exit)
}

async fn run_here(mut setup: Setup) -> Result<Exit> {
    let mut signals = Signals::new(setup.may_exit)?;
    let mut first = None;
    loop {
        // The way in comes first: misconfigured or not, it is the one that clients know.
        let mut entrance = Arc::new(Entrance::unknown());
        let built = (setup.load)().and_then(|config| {
            let (described, tls) = edge::entrance(&config, &setup);
            entrance = Arc::new(described);
            tls?;
            build(config, &setup)
        });
        match built {
            Ok((gateway, launching)) => {
                if let Some(directory) = &setup.state {
                    tenancy::serves(directory, &gateway.config.digest);
                }
                return serving::serve(
                    Arc::new(gateway),
                    entrance,
                    launching,
                    setup,
                    first,
                    &mut signals,
                )
                .await;
            }
            Err(problems) => {
                record_refusal(&problems, &setup);
                let asked = (entrance, first.take());
                match misconfigured::answer(&mut setup, asked, &problems, &mut signals).await? {
                    misconfigured::Way::Mended(connection) => first = Some(connection),
                    misconfigured::Way::Out(exit) => return Ok(exit),
                }
            }
        }
    }
}

fn record_refusal(problems: &Problems, setup: &Setup) {
    for problem in problems.iter() {
        setup.audit.record(&Event::ConfigRefused {
            file: problem.file.to_path_buf(),
            line: problem.line as usize,
            key: Some(problem.key.clone()).filter(|key| !key.is_empty()),
            message: match problem.help.as_str() {
                "" => problem.message.clone(),
                help => format!("{}; {help}", problem.message),
            },
        });
    }
}

/// A connection that was accepted before it was known who answers it.
type Accepted = (Stream, Peer);

/// The signals that end a gateway, or make it read its configuration again.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Only where a socket unit starts the next process; a terminal's end means the end.
    hangup: Option<Signal>,
}

impl Signals {
    fn new(reloads: bool) -> Result<Self> {
        let hangup = reloads.then(|| signal(SignalKind::hangup())).transpose()?;
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup,
        })
    }

    /// Waits for the next one that ends it.
    async fn stop(&mut self) {
        while self.next().await != Told::Stop {}
    }

    /// Waits for the next of them.
    async fn next(&mut self) -> Told {
        let Self {
            terminate,
            interrupt,
            hangup,
        } = self;
        let reload = async {
            match hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => Told::Stop,
            _ = interrupt.recv() => Told::Stop,
            _ = reload => Told::Reload,
        }
    }
}

/// What a signal says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Told {
    Stop,
    Reload,
}

/// How long to leave a full descriptor table alone before accepting again (fault-36).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

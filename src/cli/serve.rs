//! `thv serve NAME`: the gateway, as thv@NAME.service starts it.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, Result};
use nix::sys::prctl;

use super::exit;
use crate::{
    audit::{Audit, JOURNAL},
    child::Connection,
    config::{self, OwnerRule, ServerName, Stamp},
    daemon::{self, Exit, Setup},
    egress::Resolver,
    frames,
    http::peer::Listener,
    sys,
    systemd::{self, Notifier, Wanted},
    telemetry,
    time::Clock,
};

/// Serves until told to stop, or idle.
pub(super) fn run(root: &Path, name: &ServerName) -> Result<ExitCode> {
    // First, while there is one thread: it unsets what systemd passed.
    let socket = systemd::take(SOCKET, Wanted::Stream).with_context(|| {
        format!("`{name}` is served by `systemctl enable --now thv@{name}.socket`")
    })?;
    // Ids of sessions and keys are made of it (fault-50).
    sys::is_random().context(
        "the kernel gives no random bytes; it needs getrandom(2), which a SystemCallFilter= may have taken away",
    )?;
    // It holds tokens and keys: nobody else of its user looks into it.
    prctl::set_dumpable(false).context("closing its memory to others")?;
    let notifier = Notifier::from_environment();
    let filter = std::env::var(telemetry::FILTER_VARIABLE).ok();
    let _diagnostics = telemetry::init(telemetry::Target::Journal, filter.as_deref())?;
    let credentials = systemd::Credentials::from_environment();
    let key = credentials.read(frames::KEY_CREDENTIAL, frames::MAX_KEY)?;
    let key = String::from_utf8(key)
        .context("the runner's key is not text")?
        .trim()
        .to_owned();
    let audit = Audit::journal_in_turns(Path::new(JOURNAL), name)
        .context("opening a socket for the journal")?;
    let (recorded, last_recorded) = (audit.clone(), audit.clone());
    // One thread: a request is short, and what waking another costs is more than it would do.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(move || recorded.hand_on())
        .build()
        .context("starting the runtime")?;
    let exit = runtime.block_on(async {
        let (root, server) = (root.to_owned(), name.clone());
        let (root_again, server_again) = (root.clone(), server.clone());
        // Of the files as they were before they were last read: what is edited after that is
        // seen as a change.
        let seen = Arc::new(Mutex::new(None));
        let seen_again = seen.clone();
        let see = |seen: &Mutex<Option<Stamp>>, now| {
            let seen = seen.lock().map(|mut seen| seen.replace(now));
            seen.ok().flatten()
        };
        daemon::run(Setup {
            credentials,
            server: server.clone(),
            load: Box::new(move || {
                let (config, stamp) = config::load_stamped(&root, &server, OwnerRule::Root);
                see(&seen, stamp);
                config
            }),
            changed: Box::new(move || {
                let now = config::stamp(&root_again, &server_again, OwnerRule::Root);
                see(&seen_again, now.clone()) != Some(now)
            }),
            listener: Listener::from_fd(socket).context("using the socket from systemd")?,
            runner: Connection::Path(PathBuf::from(format!("/run/thv/runner/{name}.sock"))),
            key,
            audit,
            clock: Clock::system(),
            resolver: Resolver::system(),
            state: systemd::state_directory(),
            notifier,
            may_exit: true,
        })
        .await
    });
    last_recorded.hand_on();
    Ok(match exit? {
        Exit::Done => ExitCode::SUCCESS,
        Exit::Misconfigured => ExitCode::from(exit::CONFIG),
    })
}

/// `FileDescriptorName=` in thv@.socket.
const SOCKET: &str = "mcp";

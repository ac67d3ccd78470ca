//! The runner: starts, limits and reaps children for its own gateway.
//!
//! One thread, no async runtime, so that a copy of it can become anything. It
//! reads small frames from a peer that knows its key, and computes what to start
//! from the root-owned configuration alone. When the gateway goes, so do its
//! children; when nobody is left, so does the runner.

mod child;
mod foreground;
mod link;
mod person;
mod refused;
mod serve;
mod spare;
mod staging;
mod vault;
mod visit;

use std::{
    collections::HashMap,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixDatagram,
    },
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::prctl,
};

pub use foreground::{Foreground, foreground};
pub use person::Person;
pub use refused::are_namespaces_refused;
pub use visit::{missing_from_visits, visit};

use crate::{
    config::{self, OwnerRule, ServerName},
    frames, sandbox, sys,
    systemd::{self, Notifier, Wanted},
    telemetry,
};

/// What a runner works with.
struct Setup {
    root: PathBuf,
    server: ServerName,
    owner: OwnerRule,
    /// Lower-case hex; whoever says hello must know it.
    key: String,
    /// Where directories of principals are made.
    state: Option<PathBuf>,
    /// Where images stand.
    images: Option<PathBuf>,
    /// Parts of the host that were put elsewhere before root was given up.
    staged: HashMap<PathBuf, PathBuf>,
    /// Secrets of its children.
    vault: vault::Vault,
    /// Whether it is in another network than whoever has made its socket: systemd, or the
    /// gateway that has started it.
    is_apart: bool,
    host: sandbox::Host,
    notifier: Notifier,
}

/// Runs as thv-runner@NAME.service: socket, key and directories come from systemd.
pub fn run_as_service(root: &Path, server: &ServerName) -> Result<ExitCode> {
    let socket = systemd::take(SOCKET, Wanted::Packets)
        .with_context(|| format!("the runner of `{server}` is started by thv@{server}.socket"))?;
    let notifier = Notifier::from_environment();
    let filter = std::env::var(telemetry::FILTER_VARIABLE).ok();
    telemetry::init_single_threaded(telemetry::Target::Journal, filter.as_deref())?;
    let key =
        systemd::Credentials::from_environment().read(frames::KEY_CREDENTIAL, frames::MAX_KEY)?;
    let setup = Setup {
        root: root.to_owned(),
        server: server.clone(),
        owner: OwnerRule::Root,
        key: text(key)?,
        images: systemd::state_directory().map(|state| sandbox::Installed::store(&state)),
        state: systemd::state_directory(),
        staged: HashMap::new(),
        vault: vault::Vault::from_environment(server),
        is_apart: is_apart(&socket),
        host: sandbox::Host::look(),
        notifier,
    };
    nonblocking(&socket)?;
    serve::run(&setup, serve::Peers::Listener(socket))
}

/// Runs for a gateway without systemd, over descriptor 0, with the key as the
/// first line of descriptor 1's other end; see [`foreground()`].
pub fn run_in_foreground(root: &Path, server: &ServerName) -> Result<ExitCode> {
    let filter = std::env::var(telemetry::FILTER_VARIABLE).ok();
    telemetry::init_single_threaded(
        telemetry::Target::Stderr,
        Some(filter.as_deref().unwrap_or("warn")),
    )?;
    let (channel, key) = foreground::inherited()?;
    // Without systemd there is no state directory but the one that `thv pull --into` was given.
    let state = root.join("var/lib/thv-runner").join(server.as_str());
    let images = sandbox::Installed::store(&state);
    let mut vault = vault::Vault::from_environment(server);
    let mut staged = HashMap::new();
    if let Some(person) = Person::to_become() {
        // By the eyes of whom it becomes: the files may be theirs.
        let config = person.for_a_moment(|| config::load(root, server, OwnerRule::RootOrCaller))?;
        // A broken configuration is reported when the gateway says hello.
        if let Ok(config) = config {
            vault.keep(&config);
            staged = staging::stage(&config, &images)
                .context("making the server reachable for an ordinary user")?;
        }
        person.become_for_good()?;
    }
    // The gateway's end is this runner's end. Only now: a change of user forgets it (prctl(2)).
    prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)
        .context("tying its life to the gateway's")?;
    let setup = Setup {
        root: root.to_owned(),
        server: server.clone(),
        owner: OwnerRule::RootOrCaller,
        key,
        state: None,
        images: Some(staged.get(&images).cloned().unwrap_or(images)),
        staged,
        vault,
        is_apart: is_apart(&channel),
        host: sandbox::Host::look(),
        notifier: Notifier::none(),
    };
    nonblocking(&channel)?;
    serve::run(&setup, serve::Peers::One(channel))
}

/// Whether this process is in another network than the one that `socket` was made in. Where
/// the kernel does not say so (before 5.14), it is taken to be in the same.
fn is_apart(socket: &OwnedFd) -> bool {
    let networks = || -> std::io::Result<bool> {
        let own = UnixDatagram::unbound()?;
        Ok(sys::network::of_socket(own.as_fd())? != sys::network::of_socket(socket.as_fd())?)
    };
    networks().unwrap_or(false)
}

fn nonblocking(socket: &OwnedFd) -> Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(socket, FcntlArg::F_GETFL)?);
    fcntl(socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).context("using its socket")?;
    Ok(())
}

fn text(key: Vec<u8>) -> Result<String> {
    Ok(String::from_utf8(key)
        .context("the key is not text")?
        .trim()
        .to_owned())
}

/// `FileDescriptorName=` in thv-runner@.socket.
const SOCKET: &str = "runner";

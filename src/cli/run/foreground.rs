//! Serving in this process: the gateway here, its runner as a child.
//!
//! The same gateway and runner as those of the units; what is missing is what
//! only systemd gives: a user for each, and (by hand) a delegated cgroup.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;

use super::{announce, file::Wish, load, program, pulled};
use crate::{
    audit::{Audit, JOURNAL},
    cli::{exit, say, scratch::Scratch},
    config::ServerName,
    daemon::{self, Exit, Setup},
    runner::{self, Person, are_namespaces_refused},
    systemd::{CredentialError, Credentials, Notifier},
    telemetry,
};

/// Serves until a signal.
pub(super) fn run(mut wish: Wish, address: SocketAddr) -> Result<ExitCode> {
    announce(&wish);
    // No cgroup is delegated to what a person starts.
    wish.cgroup_is_optional = true;
    let listener = TcpListener::bind(address)
        .with_context(|| format!("listening on {address}, see --port"))?;
    let address = listener.local_addr()?;
    let person = Person::to_become();
    if let Some(fault) =
        are_namespaces_refused(person.as_ref()).context("trying to make namespaces")?
    {
        say(&no_sandbox(&fault.reason, wish.image.is_some()));
        return Ok(ExitCode::from(exit::OS));
    }
    let files = Scratch::new("thv-run")?;
    wish.write(files.root(), address)
        .context("writing the server's configuration")?;
    let config = match load(files.root(), &wish)? {
        Ok(config) => config,
        Err(code) => return Ok(code),
    };
    check_credentials(&wish)?;
    if let Some(person) = &person {
        files.give(person)?;
    }
    if wish.image.is_some() {
        pulled::pull(files.root(), &wish, person.as_ref())?;
    }
    let uid = person.map_or(geteuid().as_raw(), |person| person.uid());
    say(&format!(
        "thv: gateway and server run as uid {uid}, the same for both; nothing limits the server's memory \
         (as a systemd unit, without --foreground, something does)"
    ));
    let resource = config.resource.url;
    let ready = format!(
        "thv: `{}` is served at {resource}, listening on {address}, until Ctrl-C",
        wish.name
    );
    let around = Around {
        person,
        notifier: Notifier::none(),
        audit: Audit::stderr(io::stderr(), &wish.name)?,
        diagnostics: telemetry::Target::Stderr,
        level: "warn",
    };
    serve(files.root(), &wish.name, listener, around, &ready)
}

/// What is refused, and the ways out: before anything is fetched for it.
fn no_sandbox(reason: &str, is_image: bool) -> String {
    let what = if is_image { "IMAGE" } else { "COMMAND" };
    let place = if is_in_container() {
        "this container does not let thv make one"
    } else {
        "this host does not let thv make one"
    };
    format!(
        "thv: {what}: it would run in a sandbox, and {place}: {reason}\n\
         thv: besides that, there are these ways: \
         run `thv run` on the host itself; or run the server in a container of its own, where it speaks HTTP, \
         and have thv stand before it: [upstream] in thv.toml(5). Neither an IMAGE nor `-- COMMAND` is run \
         without a sandbox"
    )
}

/// As far as anybody says so: podman, Docker, Kubernetes.
fn is_in_container() -> bool {
    ["/run/.containerenv", "/.dockerenv"]
        .iter()
        .any(|mark| Path::new(mark).exists())
        || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
        || std::env::var_os("container").is_some()
}

/// Serves as the transient unit that [`super::transient`] has started.
pub(in crate::cli) fn serve_in_unit(
    root: &Path,
    name: &ServerName,
    address: SocketAddr,
) -> Result<ExitCode> {
    let listener = TcpListener::bind(address)
        .with_context(|| format!("listening on {address}; `--port` chooses another"))?;
    let around = Around {
        person: Person::to_become(),
        notifier: Notifier::from_environment(),
        audit: Audit::journal(Path::new(JOURNAL), name)?,
        diagnostics: telemetry::Target::Journal,
        level: "info",
    };
    serve(root, name, listener, around, "serving")
}

/// What differs between the two.
struct Around {
    person: Option<Person>,
    notifier: Notifier,
    audit: Audit,
    diagnostics: telemetry::Target,
    level: &'static str,
}

fn serve(
    root: &Path,
    server: &ServerName,
    listener: TcpListener,
    around: Around,
    ready: &str,
) -> Result<ExitCode> {
    // Before any thread: the runner is forked, and root is given up for good.
    let runner = runner::foreground(&program()?, root, server)?;
    if let Some(person) = &around.person {
        person.become_for_good()?;
    }
    // It holds tokens and keys: nobody else of its user looks into it, its server least of all.
    nix::sys::prctl::set_dumpable(false).context("closing its memory to others")?;
    let filter = std::env::var(telemetry::FILTER_VARIABLE).ok();
    let filter = filter.as_deref().unwrap_or(around.level);
    let _diagnostics = telemetry::init(around.diagnostics, Some(filter))?;
    // One thread: a request is short, and what waking another costs is more than it would do.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let exit = runtime.block_on(async {
        let setup = Setup {
            notifier: around.notifier,
            ..Setup::in_foreground(root, server, listener, &runner, around.audit)?
        };
        // The socket listens already: who connects from here on is answered.
        say(ready);
        daemon::run(setup).await
    })?;
    Ok(match exit {
        Exit::Done => ExitCode::SUCCESS,
        Exit::Misconfigured => ExitCode::from(exit::CONFIG),
    })
}

/// Each credential is there, or nothing is started.
fn check_credentials(wish: &Wish) -> Result<()> {
    for (_, credential) in &wish.secrets {
        match Credentials::from_environment().look_for(credential) {
            Ok(_) => {}
            // That a unit gives them is no help to who has none.
            Err(CredentialError::NoDirectory) => bail!(
                "--secret {credential}: in the foreground a credential is a file of that name in the directory that CREDENTIALS_DIRECTORY names, and it names none: `CREDENTIALS_DIRECTORY=DIR thv run …`, or leave `--foreground` out"
            ),
            Err(error) => bail!("--secret {credential}: {error}"),
        }
    }
    Ok(())
}

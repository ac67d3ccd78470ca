//! Diagnostics for people who operate thv: `tracing` events to the journal or to stderr.
//!
//! Whoever logs only copies the event into a bounded queue; one thread hands it
//! on (to `tracing-journald`, whose socket blocks). A queue that is full drops
//! and counts: a slow or stopped journal never stalls a request. Not audit:
//! nothing here has to be kept. Set up once by `main`; the runner, which may
//! have no threads, uses `init_single_threaded`.

mod forward;
mod inline;

use std::{io, time::Duration};

use tracing::{Dispatch, dispatcher};
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::{EnvFilter, Registry, fmt, layer::SubscriberExt};

pub use forward::Guard;
use forward::{Forward, Make, Reader};
use inline::Datagrams;

/// The environment variable that `main` reads for `filter`, such as `thv=debug`.
pub const FILTER_VARIABLE: &str = "THV_LOG";

/// Where diagnostics go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Target {
    Journal,
    Stderr,
}

/// Diagnostics were set up before.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("diagnostics are set up already")]
    Twice,
    #[error("no thread for diagnostics")]
    Thread(#[source] io::Error),
}

/// Sets up diagnostics for the whole process. Keep the guard until the end: dropping it
/// waits a moment for what is still queued. A `filter` that cannot be read is
/// reported and replaced by the default, `info`.
pub fn init(to: Target, filter: Option<&str>) -> Result<Guard, InitError> {
    let (make, reader): (Make, _) = match to {
        Target::Journal => (Box::new(journal), Reader::MessageAlone),
        Target::Stderr => (Box::new(|| Some(stderr())), Reader::Both),
    };
    let (forward, guard) = Forward::start(make, reader).map_err(InitError::Thread)?;
    let (filter, problem) = read_filter(filter);
    install(
        Registry::default().with(filter).with(forward).into(),
        problem,
    )?;
    Ok(guard)
}

/// The same without a thread and without a queue: lines that the journal does
/// not take at once are lost. `journal` is the path of its socket.
pub fn init_single_threaded(to: Target, filter: Option<&str>) -> Result<(), InitError> {
    let (filter, problem) = read_filter(filter);
    let dispatch: Dispatch = match to {
        Target::Journal => {
            let lines = fmt::layer()
                .with_ansi(false)
                .without_time()
                .with_level(false)
                .with_writer(Datagrams::new(JOURNAL.as_ref()));
            Registry::default().with(filter).with(lines).into()
        }
        Target::Stderr => Registry::default()
            .with(filter)
            .with(fmt::layer().with_ansi(false).with_writer(io::stderr))
            .into(),
    };
    install(dispatch, problem)
}

fn install(dispatch: Dispatch, problem: Option<String>) -> Result<(), InitError> {
    dispatcher::set_global_default(dispatch).map_err(|_| InitError::Twice)?;
    if let Some(problem) = problem {
        tracing::warn!(%problem, "{FILTER_VARIABLE} cannot be read, logging at the default level");
    }
    Ok(())
}

fn read_filter(filter: Option<&str>) -> (EnvFilter, Option<String>) {
    match filter
        .filter(|filter| !filter.is_empty())
        .map(EnvFilter::try_new)
    {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(DEFAULT_FILTER), Some(error.to_string())),
        None => (EnvFilter::new(DEFAULT_FILTER), None),
    }
}

/// `None` while journald is away: asked again with the next event.
fn journal() -> Option<Dispatch> {
    let layer = tracing_journald::layer().ok()?;
    let layer = layer
        // Otherwise every field is called F_SOMETHING.
        .with_field_prefix(None)
        .with_syslog_identifier("thv".to_owned())
        .with_priority_mappings(PriorityMappings {
            error: Priority::Error,
            warn: Priority::Warning,
            info: Priority::Informational,
            debug: Priority::Debug,
            trace: Priority::Debug,
        });
    Some(Registry::default().with(layer).into())
}

fn stderr() -> Dispatch {
    Registry::default()
        .with(fmt::layer().with_ansi(false).with_writer(io::stderr))
        .into()
}

const DEFAULT_FILTER: &str = "info";
const JOURNAL: &str = "/run/systemd/journal/socket";
/// How long the end of the process waits for queued diagnostics.
const FLUSH: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_cannot_be_read_is_reported_and_replaced() {
        assert_eq!(read_filter(None).0.to_string(), "info");
        assert_eq!(read_filter(Some("")).0.to_string(), "info");
        let (filter, problem) = read_filter(Some("thv=debug"));
        assert_eq!((filter.to_string().as_str(), problem), ("thv=debug", None));
        let (filter, problem) = read_filter(Some("thv=loud"));
        assert_eq!(
            (filter.to_string().as_str(), problem.is_some()),
            ("info", true)
        );
    }
}

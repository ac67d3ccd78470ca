//! The mode in which every client is told 503.

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, interval, sleep, sleep_until, timeout},
};
use tracing::{info, warn};

use crate::{
    audit::Event,
    config::Problems,
    daemon::{ACCEPT_PAUSE, Accepted, Exit, Setup, Signals, refusing::refuse},
    http::{Entrance, Refusal},
};

/// How the mode ended.
pub(super) enum Way {
    /// The files have changed: try again, and answer this one first.
    Mended(Accepted),
    Out(Exit),
}

/// Answers 503 until the files have changed, or nobody has asked for a while.
pub(super) async fn answer(
    setup: &mut Setup,
    (entrance, first): (Arc<Entrance>, Option<Accepted>),
    problems: &Problems,
    signals: &mut Signals,
) -> Result<Way> {
    let (drain, draining) = watch::channel(false);
    let mut connections = JoinSet::new();
    let answered = |accepted| {
        let (entrance, draining) = (entrance.clone(), draining.clone());
        let reason = || Refusal::Misconfigured;
        refuse(entrance, accepted, draining, setup.audit.clone(), reason)
    };
    if let Some(accepted) = first {
        connections.spawn(answered(accepted));
    }
    let summary = problems
        .iter()
        .next()
        .map(ToString::to_string)
        .unwrap_or_default();
    setup.notifier.status(&format!("misconfigured: {summary}"));
    setup.notifier.ready();
    let mut asked = Instant::now();
    // Not a sleep of each round: those who ask would keep it from ever ending.
    let mut watchdog = interval(WATCHDOG);
    loop {
        tokio::select! {
            accepted = setup.listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok(accepted) if (setup.changed)() => {
                    info!("the configuration has changed, reading it again");
                    // Those that were accepted before are still answered.
                    connections.detach_all();
                    return Ok(Way::Mended(accepted));
                }
                Ok(accepted) => {
                    asked = Instant::now();
                    connections.spawn(answered(accepted));
                }
                Err(error) => {
                    warn!(%error, "accepting failed, pausing");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = sleep_until(asked + PATIENCE), if setup.may_exit && connections.is_empty() => {
                setup.notifier.stopping();
                return Ok(Way::Out(Exit::Misconfigured));
            }
            _ = watchdog.tick() => setup.notifier.alive(),
            () = signals.stop() => {
                setup.notifier.stopping();
                setup.audit.record(&Event::Stopping);
                let _ = drain.send(true);
                let _ = timeout(LAST_ANSWERS, async { while connections.join_next().await.is_some() {} }).await;
                return Ok(Way::Out(Exit::Done));
            }
        }
    }
}

/// Connections told 503 at once.
const MAX_CONNECTIONS: usize = 256;
/// How long nobody must have asked before the process leaves with status 78.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the last answers may take to leave.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// How often the watchdog is told that this still answers.
const WATCHDOG: Duration = Duration::from_secs(5);

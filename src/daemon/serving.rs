//! Accepting, sweeping, idling out and draining.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Result;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, interval_at, sleep, sleep_until, timeout_at},
};
use tracing::{info, warn};

use crate::{
    audit::{Audit, Event},
    daemon::{
        ACCEPT_PAUSE, Accepted, Exit, Setup, Signals, Told,
        build::Launching,
        edge::{Reloading, places},
        refusing::refuse,
        reload::Trial,
    },
    http::{Entrance, Refusal, peer::Listener},
    pipeline::{self, Gateway},
    sys::memory,
    systemd::Notifier,
};

/// Serves until a signal, or until nothing has happened for `limits.exit-idle`.
pub(super) async fn serve(
    gateway: Arc<Gateway>,
    entrance: Arc<Entrance>,
    launching: Launching,
    setup: Setup,
    first: Option<Accepted>,
    signals: &mut Signals,
) -> Result<Exit> {
    let (drain, draining) = watch::channel(false);
    let mut background = JoinSet::new();
    background.spawn(launching);
    let mut connections = JoinSet::new();
    if let Some(accepted) = first {
        take(&mut connections, &gateway, &entrance, &draining, accepted);
    }
    let limits = gateway.config.limits.clone();
    let places = places(limits.connections);
    let has_room =
        |taken| taken < places || (taken < places + SPARE && entrance.roster.has_room_to_make());
    let mut tls = Reloading::new(&entrance, &setup.clock);
    let setup = Arc::new(setup);
    let mut trial = Trial::default();
    // Whoever waits is answered first.
    let mut tick = interval_at(Instant::now() + TICK, TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_new = true;
    let mut quiet_since = Instant::now();
    let mut pauses = Pauses::default();
    setup.notifier.ready();
    setup.audit.record(&Event::Ready);
    info!("serving {}", gateway.config.resource.url);

    loop {
        let quiet = connections.is_empty() && gateway.sessions.is_idle();
        if !quiet {
            quiet_since = Instant::now();
        }
        let may_exit = setup.may_exit && quiet && !limits.exit_idle.is_zero();
        tokio::select! {
            accepted = setup.listener.accept(), if has_room(connections.len()) => match accepted {
                Ok(accepted) => {
                    if connections.len() >= places {
                        entrance.roster.make_room();
                    }
                    take(&mut connections, &gateway, &entrance, &draining, accepted);
                }
                Err(error) => {
                    warn!(%error, "accepting failed, pausing");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    warn!(%error, "a connection's task failed");
                }
            }
            () = gateway.sessions.one_ended() => {}
            _ = tick.tick() => {
                gateway.sessions.sweep(Instant::now());
                tls.look();
                // Reading policies takes much that serving does not.
                if pauses.has_lasted(gateway.asked.load(Ordering::Relaxed)) || is_new {
                    gateway.authenticator.rest();
                    memory::give_back();
                }
                is_new = false;
                setup.notifier.alive();
                setup.notifier.status(&format!(
                    "connections: {}, sessions: {}, unread: {} KiB",
                    connections.len(), gateway.sessions.count(), gateway.sessions.unread() >> 10,
                ));
            }
            () = sleep_until(quiet_since + limits.exit_idle), if may_exit => {
                // A connection that arrives from here on waits in the socket's
                // queue, which is systemd's, and starts the next process.
                if setup.audit.backlog().waiting == 0 {
                    setup.audit.record(&Event::IdleExit);
                    setup.notifier.stopping();
                    return Ok(Exit::Done);
                }
                quiet_since = Instant::now();
            }
            () = gateway.stale.notified() => {
                info!("the configuration has changed, making way for a new process");
                break;
            }
            told = signals.next() => match told {
                Told::Reload => trial.begin(&gateway, &setup),
                Told::Stop => break,
            },
            () = trial.succeeds(&gateway, &setup) => break,
        }
    }

    setup.notifier.stopping();
    setup.audit.record(&Event::Stopping);
    let _ = drain.send(true);
    gateway.sessions.end_streams();
    gateway.clients.close();
    let deadline = Instant::now() + DRAIN_DEADLINE;
    let mut late = Late::new(&setup, &entrance);
    tokio::select! {
        _ = timeout_at(deadline, all_answered(&mut connections, &gateway, &setup.notifier)) => {}
        // Where the socket is systemd's, they are the next process's.
        () = late.turn_away(&setup.listener), if !setup.may_exit => {}
        // Told twice: stop now.
        () = signals.stop() => {}
    }
    gateway.sessions.end_all().await;
    let _ = timeout_at(Instant::now() + LAST_ANSWERS, async {
        while connections.join_next().await.is_some() {}
        late.end().await;
    })
    .await;
    // What still runs now is cut, and on record as that.
    setup.audit.cuts();
    connections.shutdown().await;
    late.connections.shutdown().await;
    let _ = timeout_at(Instant::now() + LAST_ANSWERS, gone(gateway)).await;
    let audit = setup.audit.clone();
    tokio::task::spawn_blocking(move || audit.flush(LAST_ANSWERS)).await?;
    Ok(Exit::Done)
}

/// Waits until nothing is left of any request, which may be so only after its connection.
async fn gone(gateway: Arc<Gateway>) {
    let mut lasts = gateway.lasts.subscribe();
    drop(gateway);
    while lasts.changed().await.is_ok() {}
}

/// Finds when nobody asks anything any more: what answers have needed can be given back then.
#[derive(Default)]
struct Pauses {
    asked: u64,
    /// Since when that is the number.
    ticks: u32,
}

impl Pauses {
    /// Whether there is a pause, where so many requests have come, or it is twice as long as when
    /// that was so last: what ends in a pause, as connections do, has needed something, too.
    /// Asked at each tick.
    fn has_lasted(&mut self, asked: u64) -> bool {
        self.ticks = if asked == self.asked {
            self.ticks.saturating_add(1)
        } else {
            0
        };
        self.asked = asked;
        self.ticks.is_multiple_of(PAUSE) && (self.ticks / PAUSE).is_power_of_two()
    }
}

fn take(
    connections: &mut JoinSet<()>,
    gateway: &Arc<Gateway>,
    entrance: &Arc<Entrance>,
    draining: &watch::Receiver<bool>,
    accepted: Accepted,
) {
    let (stream, peer) = accepted;
    let gateway = gateway.clone();
    // Boxed, because it is large and is handed on several times.
    let answer = move |asked, peer| Box::pin(pipeline::take(gateway.clone(), asked, peer));
    let entrance = entrance.clone();
    connections.spawn(entrance.serve(stream, peer, draining.clone(), answer));
}

/// Those who come to a socket that ends with this process, while it ends: nobody is there after it
/// who could answer them.
struct Late {
    connections: JoinSet<()>,
    entrance: Arc<Entrance>,
    audit: Audit,
    drain: watch::Sender<bool>,
}

impl Late {
    fn new(setup: &Setup, entrance: &Arc<Entrance>) -> Self {
        Self {
            connections: JoinSet::new(),
            entrance: entrance.clone(),
            audit: setup.audit.clone(),
            drain: watch::Sender::new(false),
        }
    }

    /// Tells each that this server stops. Never ends.
    async fn turn_away(&mut self, listener: &Listener) {
        loop {
            tokio::select! {
                accepted = listener.accept(), if self.connections.len() < MAX_LATE => match accepted {
                    Ok(accepted) => {
                        let (entrance, audit) = (self.entrance.clone(), self.audit.clone());
                        let draining = self.drain.subscribe();
                        let reason = || Refusal::Restarting;
                        self.connections.spawn(refuse(entrance, accepted, draining, audit, reason));
                    }
                    Err(error) => {
                        warn!(%error, "accepting failed, pausing");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = self.connections.join_next() => {}
            }
        }
    }

    /// Waits until the last of them has its answer.
    async fn end(&mut self) {
        let _ = self.drain.send(true);
        while self.connections.join_next().await.is_some() {}
    }
}

/// Every connection closed, and every call answered or failed.
async fn all_answered(connections: &mut JoinSet<()>, gateway: &Gateway, notifier: &Notifier) {
    let mut tick = interval(TICK);
    loop {
        tokio::select! {
            ended = connections.join_next() => if ended.is_none() && gateway.sessions.in_flight() == 0 {
                return;
            } else if ended.is_none() {
                tick.tick().await;
            },
            _ = tick.tick() => {
                gateway.sessions.sweep(Instant::now());
                // A drain may take longer than the watchdog waits.
                notifier.alive();
            }
        }
    }
}

/// How often overdue calls and idle sessions are looked for, and the watchdog told.
const TICK: Duration = Duration::from_secs(1);
/// Ticks without a request that are a pause.
const PAUSE: u32 = 3;
/// How long running calls may take after SIGTERM; the unit's TimeoutStopSec is longer.
const DRAIN_DEADLINE: Duration = Duration::from_secs(20);
/// How long the last answers and records may take to leave.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
/// Connections that are told of the end at once.
const MAX_LATE: usize = 64;
/// Connections beyond the limit while others are being closed for them.
const SPARE: usize = 16;

#[cfg(test)]
mod tests {
    use std::{fs, net::TcpListener, path::Path};

    use nix::sys::signal::{self, raise};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        signal::unix::{SignalKind, signal},
    };

    use super::*;
    use crate::{
        audit::{Kind, Memory},
        child::Connection,
        config::ServerName,
        daemon::{build::build, edge},
    };

    /// A gateway that lets in everybody, and what it records. Its configuration is in that directory.
    fn gateway(root: &Path, listener: TcpListener) -> (Gateway, Launching, Setup, Memory) {
        let servers = root.join("etc/thv/servers");
        fs::create_dir_all(&servers).unwrap();
        let text = "command = [\"/bin/sh\"]\nresource = \"http://localhost/x\"\nauthz.allow = \"authenticated\"\nauth.mode = \"none\"\n";
        fs::write(servers.join("it.toml"), text).unwrap();
        let server = ServerName::parse("it").unwrap();
        let (audit, memory) = Audit::memory(&server);
        let nobody = (Connection::Path("/nowhere".into()), String::new());
        let setup = Setup::alone(root, &server, listener, nobody, audit).unwrap();
        let config = (setup.load)().unwrap();
        let (gateway, launching) = build(config, &setup).unwrap();
        (gateway, launching, setup, memory)
    }

    /// fault-9: what is cut is waited for until nothing is left of it, and no longer.
    #[tokio::test]
    async fn a_gateway_is_gone_when_the_last_request_has_let_go_of_it() {
        let root = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (gateway, ..) = gateway(root.path(), listener);
        let gateway = Arc::new(gateway);
        let (go_on, wait) = tokio::sync::oneshot::channel::<()>();
        let request = gateway.clone();
        tokio::spawn(async move {
            let _ = wait.await;
            drop(request);
        });
        let mut gone = std::pin::pin!(gone(gateway));
        for _ in 0..100 {
            tokio::select! {
                biased;
                () = &mut gone => panic!("it is not"),
                () = tokio::task::yield_now() => {}
            }
        }
        go_on.send(()).unwrap();
        let patience = Duration::from_secs(60);
        tokio::time::timeout(patience, gone).await.expect("it is");
    }

    /// fault-9: what is read of those who come late, and is cut with the last of the others, is on record before the end.
    #[tokio::test]
    async fn what_is_cut_of_those_who_come_late_is_on_record_before_the_end() {
        let root = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (gateway, launching, setup, memory) = gateway(root.path(), listener);
        let (entrance, _) = edge::entrance(&gateway.config, &setup);
        // They mean nothing to other tests of this process.
        let mut signals = Signals {
            terminate: signal(SignalKind::user_defined1()).unwrap(),
            interrupt: signal(SignalKind::user_defined2()).unwrap(),
            hangup: None,
        };
        let stop = || raise(signal::SIGUSR1).unwrap();
        let (gateway, entrance) = (Arc::new(gateway), Arc::new(entrance));
        let serves = async {
            let served = serve(gateway, entrance, launching, setup, None, &mut signals);
            assert_eq!(served.await.unwrap(), Exit::Done);
            // Nothing else has had a turn since.
            memory.records()
        };
        let clients = async {
            let mut busy = TcpStream::connect(address).await.unwrap();
            let head = b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nContent-Length: 9\r\n\r\n{";
            busy.write_all(head).await.unwrap();
            stop();
            memory
                .until(|records| records.iter().any(|record| record.kind() == Kind::Stopping))
                .await;
            let mut late = TcpStream::connect(address).await.unwrap();
            // Settings, a request whose only field is none, and a ping.
            late.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                .await
                .unwrap();
            late.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
            late.write_all(&[0, 0, 1, 1, 5, 0, 0, 0, 1, 0x82])
                .await
                .unwrap();
            late.write_all(&[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8])
                .await
                .unwrap();
            let mut heard = [0; 9];
            while heard[3] != 6 {
                late.read_exact(&mut heard).await.unwrap();
                let rest = u64::from(heard[2]);
                tokio::io::copy(&mut (&mut late).take(rest), &mut tokio::io::sink())
                    .await
                    .unwrap();
            }
            stop();
            (busy, late)
        };
        let (records, _open) = tokio::join!(serves, clients);
        let unseen = records
            .iter()
            .filter(|record| record.field("THV_REASON") == Some("framing"));
        assert_eq!(unseen.count(), 1, "{records:#?}");
    }

    #[test]
    fn a_pause_is_told_when_it_begins_and_then_ever_more_rarely() {
        let mut pauses = Pauses::default();
        let mut told = |asked, ticks| -> Vec<u32> {
            let ticks = 1..=ticks;
            ticks.filter(|_| pauses.has_lasted(asked)).collect()
        };
        assert_eq!(told(0, 30), [3, 6, 12, 24]);
        assert!(told(1, PAUSE).is_empty());
        assert!(told(2, PAUSE).is_empty());
        // The ticks that it had already count.
        assert_eq!(told(2, 10), [1, 4, 10]);
    }
}

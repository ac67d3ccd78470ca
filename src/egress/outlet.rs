//! All ways out of one child: accepts at its doors until it ends.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{Instant, sleep},
};
use tracing::warn;

use super::{
    connection::{self, Ledger},
    dial::Resolver,
};
use crate::{
    audit::{Audit, Reason},
    config::{Config, Door, Network, PROXY, Way},
};

/// What all children of one server may reach.
#[derive(Debug)]
pub struct Rules {
    network: Network,
    connections: usize,
    bytes: u64,
    pub(super) resolver: Resolver,
    pub(super) audit: Audit,
}

/// Whose connections they are.
#[derive(Clone, Debug)]
pub struct Child {
    pub number: u64,
    pub pid: u32,
    /// The principal's key.
    pub principal: String,
}

/// One child's ways out.
pub(super) struct Outlet {
    pub(super) rules: Arc<Rules>,
    pub(super) child: Child,
    slots: Arc<Semaphore>,
    moved: AtomicU64,
    pace: Mutex<Pace>,
}

impl Rules {
    pub fn new(config: &Config, resolver: Resolver, audit: Audit) -> Self {
        Self {
            network: config.sandbox.network.clone(),
            connections: config.limits.egress_connections,
            bytes: config.limits.egress_bytes,
            resolver,
            audit,
        }
    }

    /// The lines, in order.
    pub(super) fn ways(&self) -> &[Way] {
        self.network.ways()
    }

    /// Serves the doors of one child until `closed` is dropped or says so; then
    /// cuts what is still open. Every connection is on record when this returns.
    pub async fn serve(
        self: Arc<Self>,
        child: Child,
        doors: Vec<TcpListener>,
        closed: watch::Receiver<bool>,
    ) {
        let outlet = Arc::new(Outlet {
            slots: Arc::new(Semaphore::new(self.connections)),
            rules: self,
            child,
            moved: AtomicU64::new(0),
            pace: Mutex::new(Pace::full()),
        });
        let mut listening = JoinSet::new();
        for door in doors {
            listening.spawn(outlet.clone().listen(door, closed.clone()));
        }
        while listening.join_next().await.is_some() {}
    }
}

impl Outlet {
    async fn listen(self: Arc<Self>, door: TcpListener, mut closed: watch::Receiver<bool>) {
        let Some(way) = door.local_addr().ok().and_then(|at| self.behind(at)) else {
            warn!("a child's network listens where no line of `egress` is");
            return;
        };
        let mut open = JoinSet::new();
        loop {
            tokio::select! {
                accepted = door.accept() => match accepted {
                    Ok((stream, _)) => self.clone().take(stream, way.clone(), &mut open),
                    Err(error) => {
                        warn!(%error, "accepting a child's connection failed, pausing");
                        sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
                Some(_) = open.join_next() => continue,
                () = end(&mut closed) => break,
            }
            // The rest waits in the socket's queue: a child cannot fill the journal.
            let wait = self.pace().next(Instant::now());
            tokio::select! {
                () = sleep(wait) => {}
                () = end(&mut closed) => break,
            }
        }
        open.shutdown().await;
    }

    /// What a door is for.
    fn behind(&self, at: SocketAddr) -> Option<Behind> {
        if at == PROXY && self.rules.network.has_proxy() {
            return Some(Behind::Proxy);
        }
        let way = self.rules.ways().iter().find(|way| match way.door {
            Door::Named(address) | Door::Forward(address) => address == at,
            Door::Proxy => false,
        });
        way.cloned().map(Behind::Way)
    }

    fn take(self: Arc<Self>, stream: TcpStream, behind: Behind, open: &mut JoinSet<()>) {
        let asked = match &behind {
            Behind::Way(way) => way.to.to_string(),
            // Until it has said where to.
            Behind::Proxy => PROXY.to_string(),
        };
        let mut ledger = Ledger::open(&self, asked);
        match self.slots.clone().try_acquire_owned() {
            Ok(slot) => {
                open.spawn(async move {
                    connection::run(&self, &mut ledger, stream, behind).await;
                    drop(slot);
                });
            }
            // Closed at once.
            Err(_) => ledger.deny(Reason::EgressLimit, None),
        }
    }

    /// Counts bytes that are about to move; says no once there are too many.
    pub(super) fn count(&self, bytes: u64) -> bool {
        let before = self.moved.fetch_add(bytes, Ordering::Relaxed);
        before.saturating_add(bytes) <= self.rules.bytes
    }

    fn pace(&self) -> std::sync::MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn end(closed: &mut watch::Receiver<bool>) {
    // Nobody is left to say it: it is over, too.
    let _ = closed.wait_for(|closed| *closed).await;
}

/// What a door leads to.
#[derive(Clone)]
pub(super) enum Behind {
    Way(Way),
    Proxy,
}

/// How fast one child may open connections: some at once, then one after the other.
struct Pace {
    /// When the next would be due, were there no allowance.
    due: Instant,
}

impl Pace {
    fn full() -> Self {
        Self {
            due: Instant::now(),
        }
    }

    /// How long to wait before the next connection.
    fn next(&mut self, now: Instant) -> Duration {
        self.due = self.due.max(now) + BETWEEN;
        self.due
            .saturating_duration_since(now)
            .saturating_sub(BETWEEN * BURST)
    }
}

/// How long to leave a full descriptor table alone.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Between two connections of one child in the long run.
const BETWEEN: Duration = Duration::from_millis(20);
/// Connections that need not wait for that.
const BURST: u32 = 100;

#[cfg(test)]
impl Outlet {
    /// One that may move so many bytes.
    pub(super) fn of(bytes: u64) -> Self {
        let server = crate::config::ServerName::parse("x").expect("it is a name");
        Self {
            rules: Arc::new(Rules {
                network: Network::default(),
                connections: 1,
                bytes,
                resolver: Resolver::system(),
                audit: Audit::memory(&server).0,
            }),
            child: Child {
                number: 1,
                pid: 1,
                principal: String::new(),
            },
            slots: Arc::new(Semaphore::new(1)),
            moved: AtomicU64::new(0),
            pace: Mutex::new(Pace::full()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_let_through_and_a_flood_is_slowed_down() {
        let mut pace = Pace::full();
        let start = Instant::now();
        for _ in 0..BURST {
            assert_eq!(pace.next(start), Duration::ZERO);
        }
        let mut now = start;
        for _ in 0..500 {
            let wait = pace.next(now);
            now += wait;
        }
        assert_eq!(now - start, BETWEEN * 500);
        now += Duration::from_secs(60);
        assert_eq!(pace.next(now), Duration::ZERO);
    }
}

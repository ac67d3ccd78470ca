//! Children that are started before anybody needs them: for programs that take long to load.
//!
//! There are none before the first session, and none when nobody has had one for
//! `limits.exit-idle`: a server that nobody uses runs nothing. One that waits here is
//! nobody's: it was told nothing, reaches nothing (its ways out are served with its
//! session), and whoever takes it opens the conversation as with any other. Used by
//! `starting` and `table`.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{copy, sink},
    sync::{
        Notify,
        oneshot::{self, error::TryRecvError},
    },
    time::Instant,
};

use crate::{
    audit::{Event, Reason},
    auth::Owner,
    child::{Child, Ended, Lends, stdio::Reading},
    session::{
        Sessions,
        ending::{self, ChildContext, ChildOutput, Served},
        exchange::Failure,
        load::Slots,
        outbox::outbox,
        room::Room,
    },
};

/// The children that wait, and those on the way here and away.
pub(super) struct Warm {
    /// How many are to wait.
    wanted: usize,
    /// Sessions, and how many there may be: what waits here counts as one each.
    slots: Slots,
    most: usize,
    reading: Reading,
    /// That of those who go away.
    memory: Arc<Room>,
    pool: Mutex<Pool>,
    /// Said when there is one more, or one less.
    changed: Notify,
}

#[derive(Default)]
struct Pool {
    /// The next one is the last.
    ready: Vec<Child>,
    starting: usize,
    leaving: usize,
    /// Somebody sees to it that there are enough.
    is_filled: bool,
    /// There will be no more.
    is_closed: bool,
    /// Since when nobody has had a session.
    idle_since: Option<Instant>,
}

impl Pool {
    fn count(&self) -> usize {
        self.ready.len() + self.starting + self.leaving
    }
}

impl Warm {
    pub(super) fn new(
        wanted: usize,
        (slots, most): (Slots, usize),
        reading: Reading,
        memory: Arc<Room>,
    ) -> Self {
        Self {
            wanted,
            slots,
            most,
            reading,
            memory,
            pool: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Starts what is missing, one after the other: each takes a processor for a while.
    async fn fill(self: Arc<Self>, context: ChildContext) {
        while self.lacks_one() {
            let started = tokio::select! {
                started = ending::start(&context, &Owner::EVERYBODY, None) => started,
                // A start can hang. With the gateway ends whatever its runner has begun.
                () = self.closed() => return,
            };
            let has_failed = started.is_err();
            let unneeded = self.arrived(started.ok());
            self.changed.notify_waiters();
            if let Some(child) = unneeded {
                self.clone().see_out(child, context, true).await;
                return;
            }
            // Why is on record; the next session has it tried anew.
            if has_failed {
                return;
            }
        }
    }

    /// Waits until nobody will need one any more.
    async fn closed(&self) {
        loop {
            let changed = self.changed.notified();
            if self.pool().is_closed {
                return;
            }
            changed.await;
        }
    }

    /// One that was started, or was not, is no longer on the way; it is given back if
    /// nobody will need it.
    fn arrived(&self, child: Option<Child>) -> Option<Child> {
        let mut pool = self.pool();
        pool.starting -= 1;
        pool.is_filled &= child.is_some();
        let child = child?;
        if pool.is_closed {
            pool.leaving += 1;
            Some(child)
        } else {
            pool.ready.insert(0, child);
            None
        }
    }

    /// Takes a place for one more, if one is wanted and there is room.
    fn lacks_one(&self) -> bool {
        let mut pool = self.pool();
        let lacks = !pool.is_closed
            && pool.ready.len() + pool.starting < self.wanted
            && self.slots.count() + pool.count() < self.most;
        if lacks {
            pool.starting += 1;
        } else {
            pool.is_filled = false;
        }
        lacks
    }

    async fn see_out(self: Arc<Self>, child: Child, context: ChildContext, is_unwanted: bool) {
        let (_, nothing) = outbox(1);
        let unneeded = Unneeded {
            end: Notify::new(),
            is_unwanted,
            memory: self.memory.clone(),
        };
        if is_unwanted {
            unneeded.end.notify_one();
        }
        ending::tend(Arc::new(unneeded), child, (nothing, self.reading), context).await;
        self.pool().leaving -= 1;
        self.changed.notify_waiters();
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        // No code path leaves it half changed, so a panic elsewhere does not taint it.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sessions {
    /// A child that waits, for whoever has a slot. Only where there is no room for another
    /// is one waited for that comes or goes.
    pub(super) async fn take_warm(&self) -> Option<Child> {
        let warm = &self.warm;
        if warm.wanted == 0 {
            return None;
        }
        loop {
            let changed = warm.changed.notified();
            let (mut taken, mut dead) = (None, Vec::new());
            let is_full = {
                let mut pool = warm.pool();
                pool.idle_since = None;
                while taken.is_none()
                    && let Some(mut child) = pool.ready.pop()
                {
                    if is_running(&mut child) {
                        taken = Some(child);
                    } else {
                        pool.leaving += 1;
                        dead.push(child);
                    }
                }
                warm.slots.count() + pool.count() > warm.most
            };
            for child in dead {
                let seen_out = warm.clone().see_out(child, self.context(), false);
                self.tasks().spawn(seen_out);
            }
            if taken.is_some() || !is_full {
                return taken;
            }
            changed.await;
        }
    }

    /// Has what is missing started, beside everything else.
    pub(super) fn fill_warm(&self) {
        let is_filled = {
            let mut pool = self.warm.pool();
            std::mem::replace(&mut pool.is_filled, true)
        };
        if !is_filled {
            self.tasks().spawn(self.warm.clone().fill(self.context()));
        }
    }

    /// Ends those that wait when nobody has had a session for so long; never where that is zero.
    pub(super) fn cool(&self, now: Instant, patience: Duration) {
        let is_idle = self.is_idle();
        let unneeded = {
            let mut pool = self.warm.pool();
            if !is_idle || patience.is_zero() {
                pool.idle_since = None;
                return;
            }
            let since = *pool.idle_since.get_or_insert(now);
            if now.duration_since(since) < patience {
                return;
            }
            let unneeded = std::mem::take(&mut pool.ready);
            pool.leaving += unneeded.len();
            unneeded
        };
        self.see_all_out(unneeded);
    }

    /// Ends those that wait, for good.
    pub(super) fn close_warm(&self) {
        let unneeded = {
            let mut pool = self.warm.pool();
            pool.is_closed = true;
            let unneeded = std::mem::take(&mut pool.ready);
            pool.leaving += unneeded.len();
            unneeded
        };
        self.warm.changed.notify_waiters();
        self.see_all_out(unneeded);
    }

    fn see_all_out(&self, children: Vec<Child>) {
        for child in children {
            let seen_out = self.warm.clone().see_out(child, self.context(), true);
            self.tasks().spawn(seen_out);
        }
    }

    /// Records whose a child is that was started for nobody.
    pub(super) fn record_taken(&self, child: &Child, owner: &Owner) {
        self.setup.audit.record(&Event::ChildTaken {
            child: child.number,
            pid: child.pid,
            principal: owner.principal().to_string(),
        });
    }
}

/// Whether the child still runs; one that has ended can still say how.
fn is_running(child: &mut Child) -> bool {
    let ended = match child.ended.try_recv() {
        Err(TryRecvError::Empty) => return true,
        Ok(ended) => ended,
        Err(TryRecvError::Closed) => Ended::RunnerGone,
    };
    let (end, told) = oneshot::channel();
    let _ = end.send(ended);
    child.ended = told;
    false
}

/// What a child serves that serves nobody any more.
struct Unneeded {
    end: Notify,
    is_unwanted: bool,
    memory: Arc<Room>,
}

impl Served for Unneeded {
    fn principal(&self) -> String {
        Owner::EVERYBODY.principal().to_string()
    }

    fn lends(&self) -> Arc<dyn Lends> {
        self.memory.clone()
    }

    fn end(&self) -> &Notify {
        &self.end
    }

    fn is_unwanted(&self) -> bool {
        self.is_unwanted
    }

    fn in_flight(&self) -> usize {
        0
    }

    fn fail_all(&self, _: Failure) {}

    fn unheard(&self) -> u64 {
        0
    }

    fn written(&self, _: usize) {}

    fn hang_up(&self) {
        self.end.notify_one();
    }

    fn fail_one(&self, _: u64, _: Failure) {}

    async fn hear(self: Arc<Self>, mut stdout: ChildOutput, _: Reading) -> Option<Reason> {
        let _ = copy(&mut stdout, &mut sink()).await;
        None
    }
}

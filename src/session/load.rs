//! How much one user, and all of them, may have at once.
//!
//! A slot is taken before anything starts and given back when it is dropped,
//! so that no way out forgets it. Counts; decides nothing else. Used by `table`
//! for sessions and by `calls` for what is in flight.

use std::sync::{Arc, Mutex, PoisonError};

use foldhash::HashMap;

use crate::auth::PrincipalKey;

/// Which limit is reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum LimitReached {
    Server,
    User,
}

/// The slots of one kind.
#[derive(Clone)]
pub(super) struct Slots(Arc<SlotLimits>);

/// How many there may be, and are.
struct SlotLimits {
    all: usize,
    each: usize,
    taken: Mutex<SlotsTaken>,
}

#[derive(Default)]
struct SlotsTaken {
    all: usize,
    each: HashMap<PrincipalKey, usize>,
}

/// One slot, until it is dropped.
pub(super) struct Slot {
    of: Slots,
    user: PrincipalKey,
}

impl Slots {
    /// So many at once: of everybody, and of each.
    pub(super) fn new(all: usize, each: usize) -> Self {
        Self(Arc::new(SlotLimits {
            all,
            each,
            taken: Mutex::default(),
        }))
    }

    /// One slot for this user, or which limit is in the way.
    pub(super) fn take(&self, user: PrincipalKey) -> Result<Slot, LimitReached> {
        let mut taken = self.taken();
        self.fits(&taken, user)?;
        taken.all += 1;
        *taken.each.entry(user).or_default() += 1;
        drop(taken);
        Ok(Slot {
            of: self.clone(),
            user,
        })
    }

    /// Whether there is one.
    pub(super) fn look(&self, user: PrincipalKey) -> Result<(), LimitReached> {
        self.fits(&self.taken(), user)
    }

    fn fits(&self, taken: &SlotsTaken, user: PrincipalKey) -> Result<(), LimitReached> {
        if taken.each.get(&user).copied().unwrap_or_default() >= self.0.each {
            Err(LimitReached::User)
        } else if taken.all >= self.0.all {
            Err(LimitReached::Server)
        } else {
            Ok(())
        }
    }

    pub(super) fn count(&self) -> usize {
        self.taken().all
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, SlotsTaken> {
        // No code path leaves it half changed.
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.of.taken();
        taken.all -= 1;
        if let Some(count) = taken.each.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                taken.each.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Identity;

    #[test]
    fn each_bound_is_reached_beside_what_still_fits_and_a_dropped_place_is_free() {
        let key = |subject: &str| Identity::example("https://i", subject).principal_key();
        let slots = Slots::new(3, 2);
        let first = slots.take(key("a")).ok();
        let second = slots.take(key("a")).ok();
        assert_eq!(slots.take(key("a")).err(), Some(LimitReached::User));
        let third = slots.take(key("b")).ok();
        assert_eq!(slots.look(key("c")), Err(LimitReached::Server));
        drop(first);
        assert_eq!(slots.look(key("c")), Ok(()));
        assert_eq!(slots.look(key("a")), Ok(()));
        drop((second, third));
        assert_eq!((slots.count(), slots.taken().each.len()), (0, 0));
    }
}

//! How much one user, and all of them, may have at once.
//!
//! A place is taken before anything starts and given back when it is dropped,
//! so that no way out forgets it. Counts; decides nothing else. Used by `table`
//! for sessions and by `calls` for what is in flight.

use std::sync::{Arc, Mutex, PoisonError};

use foldhash::HashMap;

use crate::auth::PrincipalKey;

/// Which bound is reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Over {
    Server,
    User,
}

/// Places of one kind.
#[derive(Clone)]
pub(super) struct Places(Arc<Inner>);

struct Inner {
    all: usize,
    each: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    each: HashMap<PrincipalKey, usize>,
}

/// One place, until it is dropped.
pub(super) struct Place {
    of: Places,
    user: PrincipalKey,
}

impl Places {
    /// So many at once: of everybody, and of each.
    pub(super) fn new(all: usize, each: usize) -> Self {
        Self(Arc::new(Inner {
            all,
            each,
            taken: Mutex::default(),
        }))
    }

    /// One place for this user, or which bound is in the way.
    pub(super) fn take(&self, user: PrincipalKey) -> Result<Place, Over> {
        let mut taken = self.taken();
        self.fits(&taken, user)?;
        taken.all += 1;
        *taken.each.entry(user).or_default() += 1;
        drop(taken);
        Ok(Place {
            of: self.clone(),
            user,
        })
    }

    /// Whether there is one.
    pub(super) fn look(&self, user: PrincipalKey) -> Result<(), Over> {
        self.fits(&self.taken(), user)
    }

    fn fits(&self, taken: &Taken, user: PrincipalKey) -> Result<(), Over> {
        if taken.each.get(&user).copied().unwrap_or_default() >= self.0.each {
            Err(Over::User)
        } else if taken.all >= self.0.all {
            Err(Over::Server)
        } else {
            Ok(())
        }
    }

    pub(super) fn count(&self) -> usize {
        self.taken().all
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, Taken> {
        // No code path leaves it half changed.
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
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
        let places = Places::new(3, 2);
        let first = places.take(key("a")).ok();
        let second = places.take(key("a")).ok();
        assert_eq!(places.take(key("a")).err(), Some(Over::User));
        let third = places.take(key("b")).ok();
        assert_eq!(places.look(key("c")), Err(Over::Server));
        drop(first);
        assert_eq!(places.look(key("c")), Ok(()));
        assert_eq!(places.look(key("a")), Ok(()));
        drop((second, third));
        assert_eq!((places.count(), places.taken().each.len()), (0, 0));
    }
}

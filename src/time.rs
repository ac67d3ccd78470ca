//! Clocks as values, so that tests own the time.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};

/// Wall time, for what tokens and records say. For measuring durations use `tokio::time::Instant`,
/// and [`Clock::slept`] where a host that sleeps must not stop them.
#[derive(Clone)]
pub struct Clock {
    now: Arc<dyn Fn() -> u64 + Send + Sync>,
    slept: Arc<dyn Fn() -> Duration + Send + Sync>,
}

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self::new(|| {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs())
        })
        .sleeping(|| {
            // What differs between the two (clock_gettime(2)) is the time asleep.
            let read = |clock| clock_gettime(clock).map(Duration::from).unwrap_or_default();
            read(ClockId::CLOCK_BOOTTIME).saturating_sub(read(ClockId::CLOCK_MONOTONIC))
        })
    }

    /// A clock that says what `now` says: Unix time in seconds. Its host never sleeps.
    pub fn new(now: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self {
            now: Arc::new(now),
            slept: Arc::new(|| Duration::ZERO),
        }
    }

    /// The same, where the host sleeps now and then.
    pub fn sleeping(self, slept: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self {
            slept: Arc::new(slept),
            ..self
        }
    }

    /// Unix time in seconds.
    pub fn now(&self) -> u64 {
        (self.now)()
    }

    /// How long this host has slept since some moment in the past: `Instant` leaves it out.
    pub fn slept(&self) -> Duration {
        (self.slept)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A few instructions lie between the two readings; a night does not.
    #[test]
    fn a_host_that_is_awake_sleeps_no_further() {
        let clock = Clock::system();
        let before = clock.slept();
        assert!(clock.slept().abs_diff(before) < Duration::from_secs(1));
    }
}

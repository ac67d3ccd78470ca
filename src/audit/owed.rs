//! The outcome that a permitted request owes, while there is nobody to record it.

use std::sync::atomic::Ordering;

use super::{Audit, Event, Outcome, Reason, RequestId};

impl Audit {
    /// Does what a permitted request needs before it can be answered. Where its client goes
    /// away meanwhile that is its outcome; else whoever handles the result records it.
    pub async fn unless_gone<T>(&self, request: RequestId, work: impl Future<Output = T>) -> T {
        let owed = Owed(self, request);
        let done = work.await;
        std::mem::forget(owed);
        done
    }

    /// From now on requests end because the gateway does, and not because their clients go.
    pub fn cuts(&self) {
        self.0.cuts.store(true, Ordering::Relaxed);
    }

    /// Why a request ends that nobody has answered.
    pub fn why_unanswered(&self) -> Reason {
        if self.0.cuts.load(Ordering::Relaxed) {
            Reason::Stopping
        } else {
            Reason::ClientGone
        }
    }
}

struct Owed<'a>(&'a Audit, RequestId);

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        // Whoever catches the panic answers the request, and records that.
        if std::thread::panicking() {
            return;
        }
        let gone = Outcome::unanswered(self.1, Some(self.0.why_unanswered()), None);
        self.0.record(&Event::Outcome(gone));
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::config::ServerName;

    /// fault-10: a panic before a permitted request was sent is no second outcome, for whoever catches it records one.
    #[test]
    fn a_panic_is_recorded_by_whoever_catches_it_and_by_nobody_else() {
        let (audit, memory) = Audit::memory(&ServerName::parse("it").unwrap());
        let poll = |work: &mut dyn FnMut()| {
            let works = audit.unless_gone(RequestId::random(), async { work() });
            let mut works = Box::pin(works);
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            let ended = catch_unwind(AssertUnwindSafe(|| works.as_mut().poll(&mut context)));
            drop(works);
            ended.is_ok()
        };
        assert!(!poll(&mut || panic!("on purpose")));
        assert_eq!(memory.records().len(), 0);
        let mut waits =
            Box::pin(audit.unless_gone(RequestId::random(), std::future::pending::<()>()));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waits.as_mut().poll(&mut context).is_pending());
        drop(waits);
        assert_eq!(memory.records().len(), 1, "its client has gone");
    }
}

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
        let gone = Outcome::unanswered(self.1, Some(self.0.why_unanswered()), None);
        self.0.record(&Event::Outcome(gone));
    }
}

//! The outcome that a permitted request owes, as a value: whoever has it records it, once.

use std::{sync::atomic::Ordering, thread};

use super::{Audit, Event, Outcome, Reason, RequestId};

impl Audit {
    /// What a request owes that was permitted just now.
    pub fn owes(&self, request: RequestId) -> Owed {
        Owed(Some((self.clone(), request)))
    }

    /// From now on requests end because the gateway does, and not because their clients go.
    pub fn cuts(&self) {
        self.0.cuts.store(true, Ordering::Relaxed);
    }

    /// Why a request ends that nobody has answered.
    pub fn why_unanswered(&self) -> Reason {
        if thread::panicking() {
            Reason::Internal
        } else if self.0.cuts.load(Ordering::Relaxed) {
            Reason::Stopping
        } else {
            Reason::ClientGone
        }
    }
}

/// Recorded where it is dropped, too: the client has gone, the gateway stops, or a panic ends the work.
pub struct Owed(Option<(Audit, RequestId)>);

impl Owed {
    /// From now on it is owed by who takes it.
    #[must_use]
    pub fn take(&mut self) -> Self {
        Self(self.0.take())
    }

    /// Records what has become of the request, if that is still to be done.
    pub fn settle(&mut self, outcome: impl FnOnce(&Audit, RequestId) -> Outcome) {
        if let Some((audit, request)) = self.0.take() {
            audit.record(&Event::Outcome(outcome(&audit, request)));
        }
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.settle(|audit, request| {
            // The answer to a request whose work has ended in a panic.
            let status = thread::panicking().then_some(500);
            Outcome::unanswered(request, Some(audit.why_unanswered()), status)
        });
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::config::ServerName;

    /// fault-10: one outcome, whether who owes it records it, goes, or ends in a panic, with or without it.
    #[test]
    fn what_is_owed_is_recorded_once() {
        let (audit, memory) = Audit::memory(&ServerName::parse("it").unwrap());
        let owes = || audit.owes(RequestId::random());
        let mut owed = owes();
        owed.settle(|_, request| Outcome::unanswered(request, None, None));
        drop(owed);
        drop(owes());
        for keeps in [false, true] {
            let mut owed = owes();
            let kept = keeps.then(|| owed.take());
            let ended = catch_unwind(AssertUnwindSafe(move || {
                let _owed = owed;
                panic!("on purpose");
            }));
            assert!(ended.is_err());
            drop(kept);
        }
        audit.cuts();
        drop(owes());
        let records = memory.records();
        let reasons: Vec<_> = records.iter().map(|it| it.field("THV_REASON")).collect();
        let (gone, internal) = (Some("client-gone"), Some("internal"));
        assert_eq!(reasons, [None, gone, internal, gone, Some("stopping")]);
    }
}

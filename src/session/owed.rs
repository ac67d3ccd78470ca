//! What a permitted call owes until its answer: a record to the auditors, and after a while a
//! stream to its client. Used by `calls`.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    audit::{Outcome, Owed, Reason},
    mcp::{Call, Era},
    session::calls::InFlight,
};

/// The record that every permitted request owes the auditors.
pub(super) struct OutcomeOwed {
    owed: Owed,
    started: Instant,
    bytes_in: usize,
}

impl OutcomeOwed {
    pub(super) fn new(owed: Owed, call: &Call, started: Instant) -> Self {
        Self {
            owed,
            started,
            bytes_in: call.message().bytes().len(),
        }
    }

    pub(super) fn settle(owed: Option<Self>, reason: Option<Reason>, bytes_out: usize) {
        if let Some(mut owed) = owed {
            owed.owed.settle(|_, request_id| Outcome {
                request_id,
                reason,
                status: None,
                duration: owed.started.elapsed(),
                bytes_in: owed.bytes_in as u64,
                bytes_out: bytes_out as u64,
            });
        }
    }
}

impl InFlight {
    /// Records what became of it, once.
    pub(super) fn settle(&mut self, reason: Option<Reason>, bytes_out: usize) {
        OutcomeOwed::settle(self.outcome.take(), reason, bytes_out);
    }

    /// Has its client given a stream to wait on, if it has waited for long.
    pub(super) fn tell_late(&self, now: Instant, era: Era) {
        let owed = self.outcome.as_ref();
        if owed.is_some_and(|owed| now.duration_since(owed.started) >= soon(era)) {
            self.stream.tell_late();
        }
    }
}

/// How long an answer may take before the client is given a stream to wait on; looked at once a
/// second. Who has a session is told by status of nothing that fails, and can take up a stream
/// again whose connection is lost, but not what has not begun.
fn soon(era: Era) -> Duration {
    match era {
        Era::Legacy => Duration::from_secs(1),
        Era::Modern => SOON,
    }
}

/// The longer of the two.
pub(super) const SOON: Duration = Duration::from_secs(5);

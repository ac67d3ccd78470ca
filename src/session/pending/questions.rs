//! What a server has asked its client, and which answers are still taken.
//!
//! A client whose answer is on its way cannot know that its question was withdrawn meanwhile, or has been answered
//! already: such an answer is accepted and has no effect, as MCP wants it of whoever hears an answer after a
//! cancellation. There are clients that lose their connection by an error there. Used by `listening`,
//! `conversation` and `reversed`.

use bytes::Bytes;

/// The questions of one session, the oldest first.
#[derive(Default)]
pub(in crate::session) struct Questions(Vec<SentQuestion>);

/// A request of the server's that a client was given.
struct SentQuestion {
    /// As JSON, in the one spelling.
    id: Bytes,
    /// The number of the stream that it came on.
    on: u64,
    waits: bool,
}

impl Questions {
    pub(in crate::session) fn ask(&mut self, id: Bytes, on: u64) {
        // A server that uses an id again means this one.
        self.0.retain(|question| question.id != id);
        let waits = true;
        self.0.push(SentQuestion { id, on, waits });
    }

    /// Whether its client may answer this.
    pub(in crate::session) fn wait_for(&self, id: &[u8]) -> bool {
        self.find(id).is_some_and(|question| question.waits)
    }

    /// Whether its client was asked this, also if it was withdrawn or answered; of those the latest are known.
    pub(in crate::session) fn know(&self, id: &[u8]) -> bool {
        self.find(id).is_some()
    }

    /// The stream on which this was asked.
    pub(in crate::session) fn stream_of(&self, id: &[u8]) -> Option<u64> {
        Some(self.find(id)?.on)
    }

    /// Whether any waits.
    pub(in crate::session) fn wait(&self) -> bool {
        self.0.iter().any(|question| question.waits)
    }

    /// Whether any waits on that stream.
    pub(in crate::session) fn waits_on(&self, on: u64) -> bool {
        self.0
            .iter()
            .any(|question| question.waits && question.on == on)
    }

    /// It waits no more, but is known for a while.
    pub(in crate::session) fn close(&mut self, id: &[u8]) {
        let closes = |question: &mut SentQuestion| {
            let is_it = question.waits && *question.id == *id;
            if is_it {
                question.waits = false;
            }
            is_it
        };
        if self.0.iter_mut().any(closes) {
            self.bound();
        }
    }

    /// Forgets a question altogether; the stream on which it waits for its answer.
    pub(in crate::session) fn remove(&mut self, id: &[u8]) -> Option<u64> {
        let at = self.0.iter().position(|question| *question.id == *id)?;
        let question = self.0.remove(at);
        question.waits.then_some(question.on)
    }

    /// Closes the oldest of those that wait, if there is no room for one more.
    pub(in crate::session) fn make_room(&mut self) -> Option<(Bytes, u64)> {
        if self.0.iter().filter(|question| question.waits).count() < MAX_WAITING {
            return None;
        }
        let oldest = self.0.iter_mut().find(|question| question.waits)?;
        oldest.waits = false;
        let gone = (oldest.id.clone(), oldest.on);
        self.bound();
        Some(gone)
    }

    /// Closes all that wait on that stream.
    pub(in crate::session) fn close_all(&mut self, on: u64) -> Vec<Bytes> {
        let all = self.0.iter_mut();
        let these = all.filter(|question| question.waits && question.on == on);
        let closed = these.map(|question| {
            question.waits = false;
            question.id.clone()
        });
        let closed = closed.collect();
        self.bound();
        closed
    }

    fn find(&self, id: &[u8]) -> Option<&SentQuestion> {
        self.0.iter().find(|question| *question.id == *id)
    }

    fn bound(&mut self) {
        let closed = self.0.iter().filter(|question| !question.waits).count();
        let mut more = closed.saturating_sub(MAX_KNOWN);
        self.0.retain(|question| {
            let goes = !question.waits && more > 0;
            more -= usize::from(goes);
            !goes
        });
    }
}

/// Requests of the server's that no client has answered. Where there are more the oldest is given up: a client that
/// leaves one unanswered would otherwise be asked nothing any more in the end.
const MAX_WAITING: usize = 64;
/// Those that were answered or withdrawn and are still known, each by an id of 256 bytes at most.
const MAX_KNOWN: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> Bytes {
        number.to_string().into()
    }

    /// fault-46, tok-132: what is known of questions is bounded, those that wait apart from those that do not.
    #[test]
    fn the_latest_questions_are_known() {
        let mut questions = Questions::default();
        for number in 0..MAX_WAITING {
            assert_eq!(questions.make_room(), None);
            questions.ask(id(number), 7);
        }
        assert_eq!(questions.make_room(), Some((id(0), 7)));
        questions.ask(id(MAX_WAITING), 0);
        assert!(questions.know(b"0") && !questions.wait_for(b"0"));
        for number in 0..=MAX_WAITING {
            questions.close(&id(number));
            questions.close(&id(number));
        }
        assert_eq!(questions.0.len(), MAX_KNOWN);
        assert!(!questions.know(b"0") && questions.know(b"1") && !questions.wait_for(b"1"));
        // The same id once more is another question.
        questions.ask(id(1), 0);
        assert!(questions.wait_for(b"1"));
        assert_eq!(questions.close_all(0), [id(1)]);
        assert_eq!(questions.close_all(0), [""; 0]);
    }
}

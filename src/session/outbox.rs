//! Lines that wait for a child: so many, and in no more memory than they need. A large one comes
//! out in its parts, one behind the other.
//!
//! A session has one for as long as it lives, and nothing waits in it most of that time: the
//! channels of tokio would keep room for 32 values and more.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::{line::Line, own::OwnLine};

/// The end at which lines are put in.
pub(super) struct Outbox(Arc<Channel>);

/// The end at which they come out.
pub(super) struct OutboxReader(Arc<Channel>);

/// What both ends share.
struct Channel {
    queue: Mutex<LineQueue>,
    /// There are lines, or there will be no more.
    more: Notify,
    /// There is room, or nobody takes any more.
    room: Notify,
}

struct LineQueue {
    waiting: VecDeque<Bytes>,
    /// How many of them there may be.
    most: usize,
    /// Bytes of what was put in beyond that, since it was last full.
    beyond: usize,
    /// One of the ends is gone.
    closed: bool,
}

/// Why a line was not put in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NotQueued {
    Full,
    Closed,
}

/// A queue for at most `most` lines.
pub(super) fn outbox(most: usize) -> (Outbox, OutboxReader) {
    let queue = LineQueue {
        waiting: VecDeque::new(),
        most,
        beyond: 0,
        closed: false,
    };
    let channel = Arc::new(Channel {
        queue: Mutex::new(queue),
        more: Notify::new(),
        room: Notify::new(),
    });
    (Outbox(channel.clone()), OutboxReader(channel))
}

/// What has a place in a full queue.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Beyond {
    /// It ends what the child does: nobody would do it later.
    End,
    /// It answers what the child has asked, and is said once.
    Answer,
}

impl Outbox {
    pub(super) fn try_send(&self, line: impl Into<Line>) -> Result<(), NotQueued> {
        self.put(line.into(), (0, 0))
    }

    /// The same for a line of the gateway's own that a full queue must not lose: so many more have a place.
    pub(super) fn try_send_beyond(&self, line: OwnLine, what: Beyond) -> Result<(), NotQueued> {
        match what {
            Beyond::End => self.put(line.into(), (ENDS, MAX_ENDS)),
            Beyond::Answer if line.len() > LONGEST_ANSWER => Err(NotQueued::Full),
            Beyond::Answer => self.put(line.into(), (ENDS, MAX_ANSWERS)),
        }
    }

    /// Puts it in; where the queue is full, still if no more than so many lines and bytes wait `beyond` what may.
    fn put(&self, line: Line, beyond: (usize, usize)) -> Result<(), NotQueued> {
        let mut queue = self.0.queue();
        if queue.closed {
            return Err(NotQueued::Closed);
        }
        if queue.waiting.len() < queue.most {
            queue.beyond = 0;
        } else {
            let bytes = queue.beyond + line.len();
            if queue.waiting.len() >= queue.most + beyond.0 || bytes > beyond.1 {
                return Err(NotQueued::Full);
            }
            queue.beyond = bytes;
        }
        match line {
            Line::Whole(text) => queue.waiting.push_back(text),
            // Together: nothing comes between them.
            Line::Parts(parts) => queue.waiting.extend(parts),
        }
        drop(queue);
        self.0.more.notify_one();
        Ok(())
    }

    /// The same, but waits for room; by one at a time. `false` if nobody takes it any more.
    pub(super) async fn send(&self, line: Line) -> bool {
        loop {
            match self.try_send(line.clone()) {
                Ok(()) => return true,
                Err(NotQueued::Closed) => return false,
                Err(NotQueued::Full) => self.0.room.notified().await,
            }
        }
    }
}

impl OutboxReader {
    /// The next line, or part of one; `None` when there will be no more. Safe to drop and call again.
    pub(super) async fn recv(&mut self) -> Option<Bytes> {
        loop {
            if let Some(next) = self.next() {
                return next;
            }
            self.0.more.notified().await;
        }
    }

    /// The next one, or that there will be none, if either can be said now.
    fn next(&self) -> Option<Option<Bytes>> {
        let mut queue = self.0.queue();
        let line = queue.next();
        let is_over = line.is_some() || queue.closed;
        drop(queue);
        if line.is_some() {
            self.0.room.notify_one();
        }
        is_over.then_some(line)
    }

    /// The next line that is there already.
    #[cfg(test)]
    pub(super) fn try_recv(&mut self) -> Option<Bytes> {
        self.0.queue().next()
    }
}

impl Channel {
    fn queue(&self) -> MutexGuard<'_, LineQueue> {
        // No code path leaves it half changed, so a panic elsewhere does not taint it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LineQueue {
    fn next(&mut self) -> Option<Bytes> {
        let line = self.waiting.pop_front();
        if self.waiting.is_empty() && self.waiting.capacity() > USUAL {
            self.waiting = VecDeque::new();
        }
        line
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        // What waits is still taken out.
        self.0.queue().closed = true;
        self.0.more.notify_one();
    }
}

impl Drop for OutboxReader {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.closed = true;
        queue.waiting = VecDeque::new();
        drop(queue);
        self.0.room.notify_one();
    }
}

/// Bytes of lines that may wait for a child that does not read; a single longer one still goes.
pub(super) const MAX_UNWRITTEN: usize = 8 << 20;
/// Bytes of a queue that are not counted as anybody's.
pub(super) const SHORT_QUEUE: usize = 64 << 10;
/// Lines for which room is kept when none wait.
const USUAL: usize = 8;
/// Lines that wait beyond what else may: what those that end something end has had its place before.
const ENDS: usize = 1024;
/// Bytes of all of them: what they name may be long.
const MAX_ENDS: usize = 1 << 20;
/// The same where there are answers among them, and of one: a child asks as often as it likes, under ids as long as it
/// likes.
const MAX_ANSWERS: usize = 64 << 10;
const LONGEST_ANSWER: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: usize) -> OwnLine {
        OwnLine::example(number.to_string())
    }

    fn text(number: usize) -> Bytes {
        Bytes::from(number.to_string())
    }

    #[tokio::test]
    async fn lines_come_out_in_order_and_wait_for_room() {
        let (outbox, mut lines) = outbox(20);
        let sent = async {
            for number in 0..1000 {
                assert!(outbox.send(line(number).into()).await);
                if number % 7 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        };
        let received = async {
            for number in 0..1000 {
                assert_eq!(lines.recv().await, Some(text(number)));
            }
        };
        tokio::join!(sent, received);
        assert!(outbox.0.queue().waiting.capacity() <= USUAL);
    }

    /// probe-68: what ends something has its place behind all that waits, and that has a bound, too.
    #[tokio::test]
    async fn what_ends_something_has_its_place_in_a_full_queue() {
        let (outbox, mut lines) = outbox(1);
        assert_eq!(outbox.try_send(line(1)), Ok(()));
        for number in 0..ENDS {
            assert_eq!(outbox.try_send_beyond(line(number), Beyond::End), Ok(()));
        }
        assert_eq!(
            outbox.try_send_beyond(line(2), Beyond::End),
            Err(NotQueued::Full)
        );
        assert_eq!(lines.recv().await, Some(text(1)));
        assert_eq!(outbox.try_send_beyond(line(3), Beyond::End), Ok(()));
        for number in (0..ENDS).chain([3]) {
            assert_eq!(outbox.try_send(line(3)), Err(NotQueued::Full));
            assert_eq!(lines.recv().await, Some(text(number)));
        }
        assert_eq!(outbox.try_send(line(3)), Ok(()));
    }

    /// fault-46: what a child is answered that reads nothing has a smaller bound, for it asks as often as it likes, under ids
    /// as long as it likes.
    #[test]
    fn answers_in_a_full_queue_are_few_bytes() {
        let (outbox, mut lines) = outbox(4);
        let [fits, long] = [0, 1].map(|more| OwnLine::example(vec![b'x'; LONGEST_ANSWER + more]));
        let refused = outbox.try_send_beyond(long.clone(), Beyond::Answer);
        assert_eq!(refused, Err(NotQueued::Full));
        assert_eq!(outbox.try_send_beyond(long, Beyond::End), Ok(()));
        while outbox.try_send_beyond(fits.clone(), Beyond::Answer).is_ok() {}
        // What ends something has its place all the same.
        assert_eq!(outbox.try_send_beyond(fits, Beyond::End), Ok(()));
        let held: usize = std::iter::from_fn(|| lines.try_recv())
            .map(|line| line.len())
            .sum();
        assert!(held <= MAX_ANSWERS + 8 * LONGEST_ANSWER, "{held}");
        assert!(held >= MAX_ANSWERS, "{held}");
    }

    /// What names a task by a long id is not lost for that; all of it together has a bound, until there was room again.
    #[tokio::test]
    async fn what_ends_something_may_be_long_and_not_all_of_it() {
        let (outbox, mut lines) = outbox(1);
        let long = || OwnLine::example(vec![b'x'; MAX_ENDS / 4]);
        for _ in 0..2 {
            assert_eq!(outbox.try_send(line(1)), Ok(()));
            for _ in 0..4 {
                assert_eq!(outbox.try_send_beyond(long(), Beyond::End), Ok(()));
            }
            assert_eq!(
                outbox.try_send_beyond(line(2), Beyond::End),
                Err(NotQueued::Full)
            );
            while lines.try_recv().is_some() {}
        }
    }

    #[tokio::test]
    async fn what_waits_when_its_sender_goes_is_still_taken() {
        let (outbox, mut lines) = outbox(2);
        assert_eq!(outbox.try_send(line(1)), Ok(()));
        assert_eq!(outbox.try_send(line(2)), Ok(()));
        assert_eq!(outbox.try_send(line(3)), Err(NotQueued::Full));
        drop(outbox);
        assert_eq!(lines.recv().await, Some(text(1)));
        assert_eq!(lines.recv().await, Some(text(2)));
        assert_eq!(lines.recv().await, None);
    }

    #[tokio::test]
    async fn who_waits_hears_that_the_other_end_is_gone() {
        let (sender, mut lines) = outbox(1);
        let waits = tokio::spawn(async move { lines.recv().await });
        tokio::task::yield_now().await;
        drop(sender);
        assert_eq!(waits.await.unwrap(), None);

        let (sender, lines) = outbox(1);
        assert!(sender.send(line(1).into()).await);
        let waits = tokio::spawn(async move { sender.send(line(2).into()).await });
        tokio::task::yield_now().await;
        drop(lines);
        assert!(!waits.await.unwrap());
    }
}

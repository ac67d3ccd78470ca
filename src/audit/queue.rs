//! Between those who record and a sink that may be slow, full or away.
//!
//! At most [`MAX_WAITING`] records wait. The oldest go first, counted, and as
//! soon as the sink takes records again it is told how many and which are
//! missing. A record keeps its number and its time however late it arrives, so
//! that numbers received and numbers reported missing leave no hole.
//!
//! To wake whoever reads the sink costs more than all else about a record, so
//! records of one turn of a loop can go together.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::Event;

/// Where records go in the end.
pub(super) trait Sink: Send + 'static {
    fn send(&mut self, record: &[u8]) -> Sent;

    /// Sends several at once where that costs less, and says how many of them went: the first
    /// ones. What is to become of the next, `send` says.
    fn send_first(&mut self, _records: &[&[u8]]) -> usize {
        0
    }
}

/// Appends the record of an event, of which there are the time and the number, in the form that a
/// sink takes.
pub(super) type Encode = Box<dyn FnMut(&Event, Duration, Option<u64>, &mut Vec<u8>) + Send>;

/// Whether a sink took a record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Sent {
    Yes,
    /// Not now; try the same one again later.
    Later,
    /// Not ever this one: counted as dropped.
    Never,
}

/// How much waits and how much was lost.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Backlog {
    pub waiting: usize,
    /// Since the start.
    pub dropped: u64,
}

/// The queue and its thread, which ends when the queue is dropped.
pub(super) struct Queue(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// There may be something to do for the thread.
    work: Condvar,
    /// Nothing waits any more.
    empty: Condvar,
    /// Who may use the sink, and when.
    pace: Pace,
}

/// When a record is handed to its sink.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Pace {
    /// At once, by whoever records: the sink never blocks.
    AtOnce,
    /// The same with [`Queue::hand_on`], so that a reader is woken once for several.
    InTurns,
    /// By the thread: the sink may block.
    Threaded,
}

struct State {
    /// `None` while the thread uses it, outside the lock.
    sink: Option<Box<dyn Sink>>,
    encode: Encode,
    waiting: VecDeque<Item>,
    /// Of records that have gone, for those that come.
    spare: Vec<Vec<u8>>,
    /// Bytes of what waits.
    bytes: usize,
    /// Records that the thread is about to send.
    in_hand: usize,
    gap: Gap,
    dropped: u64,
    numbers: u64,
    /// What waits is the thread's to send: the sink blocks, or did not take it.
    is_threads: bool,
    closed: bool,
}

struct Item {
    number: u64,
    bytes: Vec<u8>,
}

/// Records lost since the sink was last told.
#[derive(Clone, Copy, Debug, Default)]
struct Gap {
    count: u64,
    first: u64,
    last: u64,
}

impl Queue {
    /// For a sink that never blocks: whoever records tries it at once.
    pub(super) fn direct(sink: impl Sink, encode: Encode) -> io::Result<Self> {
        Self::new(Box::new(sink), encode, Pace::AtOnce)
    }

    /// The same for whoever calls [`Queue::hand_on`] before anything comes of what was recorded.
    pub(super) fn in_turns(sink: impl Sink, encode: Encode) -> io::Result<Self> {
        Self::new(Box::new(sink), encode, Pace::InTurns)
    }

    /// For a sink that may block: only the queue's thread uses it.
    pub(super) fn threaded(sink: impl Sink, encode: Encode) -> io::Result<Self> {
        Self::new(Box::new(sink), encode, Pace::Threaded)
    }

    fn new(sink: Box<dyn Sink>, encode: Encode, pace: Pace) -> io::Result<Self> {
        let state = State {
            sink: Some(sink),
            encode,
            waiting: VecDeque::new(),
            spare: Vec::new(),
            bytes: 0,
            in_hand: 0,
            gap: Gap::default(),
            dropped: 0,
            numbers: 0,
            is_threads: false,
            closed: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            empty: Condvar::new(),
            pace,
        });
        let worker = Arc::clone(&shared);
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || worker.run())?;
        Ok(Self(shared))
    }

    /// Numbers the event and hands it on, or keeps it for later.
    pub(super) fn put(&self, event: &Event) {
        let shared = &*self.0;
        let time = now();
        let mut state = shared.lock();
        state.numbers += 1;
        let number = state.numbers;
        // What a child says must not push out what is known about it (fault-44).
        if matches!(event, Event::ChildStderr { .. }) && state.waiting.len() >= MAX_NOISE {
            state.lose(number);
        } else {
            let mut bytes = state.spare.pop().unwrap_or_default();
            (state.encode)(event, time, Some(number), &mut bytes);
            state.keep(Item { number, bytes });
        }
        match shared.pace {
            _ if state.is_threads => {}
            Pace::Threaded => shared.leave_to_thread(state),
            Pace::InTurns if state.waiting.len() < MAX_TURN => {}
            Pace::InTurns | Pace::AtOnce => shared.hand_on(state),
        }
    }

    /// Gives the sink what was recorded in this turn.
    pub(super) fn hand_on(&self) {
        let state = self.0.lock();
        if !state.is_threads && !state.nothing_waits() {
            self.0.hand_on(state);
        }
    }

    pub(super) fn backlog(&self) -> Backlog {
        let state = self.0.lock();
        Backlog {
            waiting: state.waiting.len() + state.in_hand,
            dropped: state.dropped,
        }
    }

    pub(super) fn flush(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut state = self.0.lock();
        while !state.nothing_waits() || state.sink.is_none() {
            if !state.is_threads {
                // Nobody else would say when it has gone. Then nothing waits, or the thread has it.
                self.0.hand_on(state);
                state = self.0.lock();
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self
                .0
                .empty
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.hand_on();
        self.0.lock().closed = true;
        self.0.work.notify_one();
        // Not joined: a sink that blocks must not hold up the end of the process. Who cares calls flush().
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what waits, in order; the thread does where the sink does not take it now.
    fn hand_on(&self, mut state: MutexGuard<'_, State>) {
        let mut sink = state
            .sink
            .take()
            .expect("the thread has it only while what waits is its to send");
        if state.waiting.len() > 1 {
            let together = state.waiting.iter().take(MAX_TURN);
            let together: Vec<&[u8]> = together.map(|item| &item.bytes[..]).collect();
            let sent = sink.send_first(&together);
            for _ in 0..sent {
                if let Some(gone) = state.next() {
                    state.reuse(gone);
                }
            }
        }
        while let Some(item) = state.next() {
            match sink.send(&item.bytes) {
                Sent::Yes => state.reuse(item),
                Sent::Never => state.lose(item.number),
                Sent::Later => {
                    state.put_back(item);
                    break;
                }
            }
        }
        state.sink = Some(sink);
        if !state.nothing_waits() {
            self.leave_to_thread(state);
        }
    }

    fn leave_to_thread(&self, mut state: MutexGuard<'_, State>) {
        state.is_threads = true;
        drop(state);
        self.work.notify_one();
    }

    /// The thread: sends what waits, in order, until the queue is dropped.
    fn run(&self) {
        let mut state = self.lock();
        let mut pause = FIRST_RETRY;
        loop {
            while !state.is_threads {
                self.empty.notify_all();
                if state.closed {
                    return;
                }
                state = self
                    .work
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            let (sent, all);
            (state, sent, all) = self.drain(state);
            // A sink that is merely busy takes more in a moment; one that is away is asked ever more rarely.
            pause = if sent > 0 {
                FIRST_RETRY
            } else {
                (pause * 2).min(LAST_RETRY)
            };
            if all {
                state.is_threads = false;
            } else {
                if state.closed {
                    return;
                }
                state = self
                    .work
                    .wait_timeout(state, pause)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
        }
    }

    /// Sends until nothing waits (`true`) or the sink takes no more, and says how many went.
    /// Holds the lock only between records.
    fn drain<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
    ) -> (MutexGuard<'a, State>, usize, bool) {
        let mut count = 0;
        let mut sink = state
            .sink
            .take()
            .expect("only the one thread takes the sink, and gives it back");
        let all = loop {
            let gap = std::mem::take(&mut state.gap);
            let item = if gap.count > 0 {
                Some(state.report(gap))
            } else {
                state.next()
            };
            let Some(item) = item else { break true };
            state.in_hand = usize::from(gap.count == 0);
            drop(state);
            let sent = sink.send(&item.bytes);
            state = self.lock();
            state.in_hand = 0;
            match (sent, gap.count > 0) {
                (Sent::Yes, _) => count += 1,
                (Sent::Later, false) => {
                    state.put_back(item);
                    break false;
                }
                (Sent::Later, true) => {
                    state.gap.merge(gap);
                    break false;
                }
                (Sent::Never, false) => state.lose(item.number),
                // Nobody is left to whom to report.
                (Sent::Never, true) => {}
            }
        };
        state.sink = Some(sink);
        (state, count, all)
    }
}

impl State {
    fn nothing_waits(&self) -> bool {
        self.waiting.is_empty() && self.gap.count == 0
    }

    fn keep(&mut self, item: Item) {
        self.bytes += item.bytes.len();
        self.waiting.push_back(item);
        self.shrink();
    }

    fn put_back(&mut self, item: Item) {
        self.bytes += item.bytes.len();
        self.waiting.push_front(item);
        self.shrink();
    }

    fn shrink(&mut self) {
        while self.waiting.len() > MAX_WAITING || (self.bytes > MAX_BYTES && self.waiting.len() > 1)
        {
            let oldest = self.next().expect("more than one waits");
            self.lose(oldest.number);
        }
    }

    fn next(&mut self) -> Option<Item> {
        let item = self.waiting.pop_front()?;
        self.bytes -= item.bytes.len();
        Some(item)
    }

    /// Keeps the memory of a record that has gone.
    fn reuse(&mut self, item: Item) {
        let mut bytes = item.bytes;
        if self.spare.len() < MAX_SPARE && bytes.capacity() <= MAX_SPARE_BYTES {
            bytes.clear();
            self.spare.push(bytes);
        }
    }

    /// The record about lost ones. It has no number: it stands for those it names.
    fn report(&mut self, gap: Gap) -> Item {
        let event = Event::Dropped {
            count: gap.count,
            first: gap.first,
            last: gap.last,
        };
        let mut bytes = Vec::new();
        (self.encode)(&event, now(), None, &mut bytes);
        Item {
            number: gap.last,
            bytes,
        }
    }

    fn lose(&mut self, number: u64) {
        self.dropped += 1;
        self.gap.add(number);
    }
}

impl Gap {
    fn add(&mut self, number: u64) {
        self.merge(Self {
            count: 1,
            first: number,
            last: number,
        });
    }

    fn merge(&mut self, other: Self) {
        let first = if self.count == 0 {
            other.first
        } else {
            self.first.min(other.first)
        };
        *self = Self {
            count: self.count + other.count,
            first,
            last: self.last.max(other.last),
        };
    }
}

pub(super) fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Records that wait for a sink; beyond it, the oldest is dropped and counted.
const MAX_WAITING: usize = 1024;
/// Records of one turn, and of one system call; more are handed on at once.
const MAX_TURN: usize = 64;
/// Records whose memory is kept for others, and bytes of each: enough for the next turn.
const MAX_SPARE: usize = MAX_TURN;
const MAX_SPARE_BYTES: usize = 2 << 10;
/// Beyond so many, what children say is not kept any more.
const MAX_NOISE: usize = MAX_WAITING / 2;
/// Bytes of those records; likewise.
const MAX_BYTES: usize = 4 << 20;
/// How long until a sink that took no more is tried again: first this, then twice as long each time …
const FIRST_RETRY: Duration = Duration::from_millis(1);
/// … up to this.
const LAST_RETRY: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::audit::{Audit, fixture::server};

    /// A writer that waits for leave before each line.
    struct Slow {
        leave: mpsc::Receiver<()>,
        written: mpsc::Sender<serde_json::Value>,
    }

    impl io::Write for Slow {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            self.leave
                .recv()
                .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
            assert_eq!(line.last(), Some(&b'\n'));
            self.written
                .send(serde_json::from_slice(line).unwrap())
                .unwrap();
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Leave for each line is given by the one end, and the lines come out at the other.
    fn slow() -> (Audit, mpsc::Sender<()>, mpsc::Receiver<serde_json::Value>) {
        let ((give, leave), (written, lines)) = (mpsc::channel(), mpsc::channel());
        let audit = Audit::stderr(Slow { leave, written }, &server()).unwrap();
        (audit, give, lines)
    }

    #[test]
    fn a_stderr_that_nobody_reads_holds_up_nobody() {
        let (audit, leave, lines) = slow();
        for _ in 0..3_000 {
            audit.record(&Event::Ready);
        }
        let backlog = audit.backlog();
        assert!(
            backlog.waiting <= MAX_WAITING + 1 && backlog.dropped >= 3_000 - MAX_WAITING as u64 - 1,
            "{backlog:?}"
        );
        assert!(!audit.flush(Duration::from_millis(1)));
        // What waits, what the writer had in its hands, and the reports.
        (0..MAX_WAITING + 8).for_each(|_| leave.send(()).unwrap());
        assert!(audit.flush(Duration::from_secs(30)));
        let lines: Vec<_> = lines.try_iter().collect();
        let number = |value: &serde_json::Value| value.as_str().unwrap().parse::<u64>().unwrap();
        let arrived = lines
            .iter()
            .filter(|line| line["THV_EVENT"] == "ready")
            .count() as u64;
        // Two reports where the first one was what the writer had in its hands.
        let reports = lines
            .iter()
            .filter(|line| line["THV_EVENT"] == "records-dropped");
        let dropped: u64 = reports.map(|report| number(&report["THV_DROPPED"])).sum();
        assert_eq!(arrived + dropped, 3_000);
        assert_eq!(number(&lines.last().unwrap()["THV_SEQ"]), 3_000);
    }

    /// A sink that takes everything.
    struct Taken;

    impl Sink for Taken {
        fn send(&mut self, _: &[u8]) -> Sent {
            Sent::Yes
        }
    }

    #[test]
    fn of_records_that_have_gone_little_memory_is_kept_and_nothing_that_they_said() {
        let small_or_large = |_: &Event, _, number: Option<u64>, out: &mut Vec<u8>| {
            assert_eq!(*out, b"");
            let is_large = number.is_some_and(|number| number % 2 == 0);
            out.resize(if is_large { MAX_SPARE_BYTES + 1 } else { 1 }, b'x');
        };
        let queue = Queue::in_turns(Taken, Box::new(small_or_large)).unwrap();
        for _ in 0..4 * MAX_TURN {
            queue.put(&Event::Ready);
        }
        assert!(queue.flush(Duration::from_secs(10)));
        let kept: Vec<usize> = queue.0.lock().spare.iter().map(Vec::capacity).collect();
        assert!((1..=MAX_SPARE).contains(&kept.len()), "{kept:?}");
        assert!(kept.iter().all(|size| *size <= MAX_SPARE_BYTES), "{kept:?}");
    }

    /// What is recorded while somebody waits is not left to a turn that may not come.
    #[test]
    fn whoever_waits_for_all_to_go_does_not_wait_for_those_who_record() {
        let queue = Queue::in_turns(Taken, crate::audit::encode::native("it")).unwrap();
        thread::scope(|scope| {
            let records = scope.spawn(|| (0..100_000).for_each(|_| queue.put(&Event::Ready)));
            while !records.is_finished() {
                assert!(queue.flush(Duration::from_secs(10)));
            }
        });
        assert!(queue.flush(Duration::ZERO));
        assert_eq!(queue.backlog(), Backlog::default());
    }

    #[test]
    fn a_closed_stderr_is_given_up_record_by_record() {
        let (audit, leave, _lines) = slow();
        drop(leave);
        (0..10).for_each(|_| audit.record(&Event::Ready));
        assert!(audit.flush(Duration::from_secs(30)));
        assert_eq!(
            audit.backlog(),
            Backlog {
                waiting: 0,
                dropped: 10
            }
        );
    }
}

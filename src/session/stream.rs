//! One stream of events towards a client, and the client's end of it.
//!
//! What was sent is kept for a while, within bounds, so that a legacy client
//! that lost its connection can go on where it was (mcp-L6). A stream belongs
//! to one request, or is the session's own (number 0); its events are never
//! sent on another. Made by `session`, read by `http`.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker},
};

#[cfg(test)]
use bytes::Bytes;

use crate::{
    audit::Audit,
    session::{
        Session,
        exchange::{Event, Finish},
    },
};

/// How much of itself a stream tells its client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Style {
    /// No ids: it cannot be taken up again.
    Plain,
    /// Each event has an id to go on from.
    Ids,
    /// An id before there is any event, too (2025-11-25; older clients choke on it).
    Primed,
}

/// The session's side.
pub(super) struct Stream {
    pub(super) number: u64,
    style: Style,
    state: Mutex<State>,
}

struct State {
    /// Read and unread events, in order.
    kept: VecDeque<Event>,
    /// The sequence number of the first of them; the first of all has 1.
    first: u64,
    /// The sequence number of the event to be read next.
    next: u64,
    /// Bytes of all that is kept, and of the messages among it that are unread.
    bytes: usize,
    unread: usize,
    /// Nothing more will come.
    done: bool,
    /// Which reader may read: the latest.
    reader: u64,
    attached: bool,
    /// A client was told an id, and may come back with it.
    known: bool,
    waker: Option<Waker>,
}

impl Stream {
    pub(super) fn new(number: u64, style: Style) -> Arc<Self> {
        let state = State {
            kept: VecDeque::new(),
            first: 1,
            next: 1,
            bytes: 0,
            unread: 0,
            done: false,
            reader: 0,
            attached: false,
            known: false,
            waker: None,
        };
        Arc::new(Self {
            number,
            style,
            state: Mutex::new(state),
        })
    }

    /// A reader from the event after `after` on, or from the first unread one.
    /// Whoever read before reads no more.
    pub(super) fn attach(self: &Arc<Self>, after: Option<u64>) -> Exchange {
        let mut state = self.state();
        state.reader += 1;
        state.attached = true;
        if let Some(after) = after {
            let end = state.first + state.kept.len() as u64;
            state.next = after.saturating_add(1).clamp(state.first, end);
            let read = (state.next - state.first) as usize;
            state.unread = state.kept.iter().skip(read).map(waiting).sum();
        }
        state.wake();
        Exchange {
            stream: self.clone(),
            reader: state.reader,
            last: state.next - 1,
            style: self.style,
            finish: None,
            cancels: None,
            records: None,
        }
    }

    /// Adds a message, if somebody keeps up with the stream or may come back to it.
    pub(super) fn tell(&self, message: Event) -> bool {
        let mut state = self.state();
        let unread = state.unread_events();
        let bytes = waiting(&message);
        let fits =
            unread + 1 < MAX_EVENTS && (state.unread == 0 || state.unread + bytes <= MAX_UNREAD);
        if !fits || state.done || !(state.attached || state.known) {
            return false;
        }
        state.push(message);
        true
    }

    /// Adds the last event; there is always room for it.
    pub(super) fn end(&self, last: Event) {
        let mut state = self.state();
        if !state.done {
            state.push(last);
            state.done = true;
        }
    }

    /// Ends the stream without a last event.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.done = true;
        state.wake();
    }

    /// Whether a client listens, or may come back and listen.
    pub(super) fn is_heard(&self) -> bool {
        let state = self.state();
        !state.done && (state.attached || state.known)
    }

    /// Whether a client may come back for it.
    pub(super) fn is_known(&self) -> bool {
        let state = self.state();
        // More than an answer alone was sent, so it is being read as events.
        self.style != Style::Plain && (state.known || state.first + state.kept.len() as u64 > 2)
    }

    /// Whether there was an event of that number, which a client may have seen: of what
    /// came after it as much is told again as is kept, its answer in any case.
    pub(super) fn has_come_to(&self, event: u64) -> bool {
        let state = self.state();
        event < state.first + state.kept.len() as u64
    }

    /// Bytes of what is kept.
    pub(super) fn kept(&self) -> usize {
        self.state().bytes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code path leaves the state half changed, so a panic elsewhere does not taint it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, event: Event) {
        self.bytes += size(&event);
        self.unread += waiting(&event);
        self.kept.push_back(event);
        // What was read is kept only as far as there is room.
        while self.first < self.next && (self.kept.len() > MAX_EVENTS || self.bytes > MAX_UNREAD) {
            self.forget_first();
        }
        self.wake();
    }

    fn forget_first(&mut self) {
        if let Some(event) = self.kept.pop_front() {
            self.bytes -= size(&event);
            self.first += 1;
        }
    }

    fn unread_events(&self) -> usize {
        self.kept.len() - (self.next - self.first) as usize
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// The client's end of one stream. Dropping it does not cancel a legacy
/// client's call (mcp-L4); it does cancel a modern one's (mcp-T7).
pub struct Exchange {
    stream: Arc<Stream>,
    reader: u64,
    /// The event that was read last: whoever reads after this one changes nothing of that.
    last: u64,
    style: Style,
    finish: Option<Finish>,
    cancels: Option<Weak<Session>>,
    /// Where it is on record what became of the request.
    records: Option<Audit>,
}

impl Exchange {
    /// Has what became of the request on record before anybody reads it.
    pub(super) fn recorded_in(mut self, audit: &Audit) -> Self {
        self.records = Some(audit.clone());
        self
    }

    /// Has the answer pass through `finish` (lists are filtered so).
    pub fn finished_by(mut self, finish: Finish) -> Self {
        self.finish = Some(finish);
        self
    }

    /// Cancels the call if this is dropped before the answer.
    pub(super) fn cancelling(mut self, session: Weak<Session>) -> Self {
        self.cancels = Some(session);
        self
    }

    /// Without ids: several of these share one HTTP answer, which is none of them (batches).
    pub fn plain(mut self) -> Self {
        self.style = Style::Plain;
        self
    }

    /// From here on the client reads events: says how.
    pub fn as_events(&self) -> Style {
        if self.style != Style::Plain {
            self.stream.state().known = true;
        }
        self.style
    }

    /// The id of the event that was read last, or of one so many before it.
    pub fn event_id(&self, before: usize) -> String {
        format!(
            "{}-{}",
            self.stream.number,
            self.last.saturating_sub(before as u64)
        )
    }

    /// The next event; `None` after the answer, or when another reader took over.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut state = self.stream.state();
        if state.reader != self.reader {
            return Poll::Ready(None);
        }
        let read = (state.next - state.first) as usize;
        let Some(event) = state.kept.get(read).cloned() else {
            if state.done {
                return Poll::Ready(None);
            }
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        self.last = state.next;
        state.next += 1;
        state.unread -= waiting(&event);
        if self.style == Style::Plain {
            state.forget_first();
        }
        drop(state);
        if let (Event::Answer(_) | Event::Failed(_), Some(audit)) = (&event, &self.records) {
            audit.hand_on();
        }
        Poll::Ready(Some(match (event, &self.finish) {
            (Event::Answer(answer), Some(finish)) => Event::Answer(finish(answer)),
            (event, _) => event,
        }))
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let mut state = self.stream.state();
        if state.reader != self.reader {
            return;
        }
        state.attached = false;
        state.waker = None;
        let done = state.done;
        drop(state);
        if !done && let Some(session) = self.cancels.take().and_then(|session| session.upgrade()) {
            session.abandon(self.stream.number);
        }
    }
}

#[cfg(test)]
impl Exchange {
    /// For the tests of other modules: a session's own stream on which nothing is said.
    pub(crate) fn example() -> (Arc<impl Sized>, Self) {
        let stream = Stream::new(0, Style::Primed);
        let exchange = stream.attach(None);
        (stream, exchange)
    }

    /// The same: a request of which so much is said, and no end.
    pub(crate) fn talking(messages: usize) -> (Arc<impl Sized>, Self) {
        let stream = Stream::new(1, Style::Ids);
        let exchange = stream.attach(None);
        for _ in 0..messages {
            assert!(stream.tell(Event::Message("said".into())));
        }
        (stream, exchange)
    }

    /// The same: a modern request that has its answer.
    pub(crate) fn answered(answer: Bytes) -> Self {
        let stream = Stream::new(1, Style::Plain);
        stream.end(Event::Answer(answer));
        stream.attach(None)
    }
}

/// An event id of ours: the stream, and the place in it.
pub(super) fn place(event_id: &str) -> Option<(u64, u64)> {
    let (stream, sequence) = event_id.split_once('-')?;
    let number = |text: &str| {
        let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| text.parse().ok()).flatten()
    };
    Some((number(stream)?, number(sequence)?))
}

fn size(event: &Event) -> usize {
    match event {
        Event::Message(text) | Event::Answer(text) => text.len(),
        Event::Failed(_) => 0,
    }
}

/// What of an event counts as waiting: an answer always has its place.
fn waiting(event: &Event) -> usize {
    match event {
        Event::Message(text) => text.len(),
        Event::Answer(_) | Event::Failed(_) => 0,
    }
}

/// Events of one stream: unread ones, beyond which messages are left out, and kept ones.
const MAX_EVENTS: usize = 256;
/// Bytes of messages waiting for one client, and of what is kept; a single longer one still goes (conn-3).
const MAX_UNREAD: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::{audit, config::ServerName};

    fn message(text: &str) -> Event {
        Event::Message(Bytes::copy_from_slice(text.as_bytes()))
    }

    async fn texts(exchange: &mut Exchange) -> Vec<String> {
        let mut texts = Vec::new();
        while let Some(Event::Message(text) | Event::Answer(text)) = exchange.next().await {
            texts.push(String::from_utf8(text.to_vec()).unwrap());
        }
        texts
    }

    /// What became of a request has reached journald when its client reads the answer, also from a stream.
    #[tokio::test]
    async fn an_answer_is_on_record_before_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let journal = UnixDatagram::bind(&path).unwrap();
        journal.set_nonblocking(true).unwrap();
        let audit = Audit::journal_in_turns(&path, &ServerName::parse("it").unwrap()).unwrap();
        let stream = Stream::new(1, Style::Primed);
        let mut reader = stream.attach(None).recorded_in(&audit);
        assert!(stream.tell(message("1")));
        audit.record(&audit::Event::Ready);
        stream.end(Event::Answer("end".into()));
        assert!(matches!(reader.next().await, Some(Event::Message(_))));
        let mut record = [0; 4096];
        // Those of one turn go together while nobody is told of them.
        assert!(journal.recv(&mut record).is_err());
        assert!(matches!(reader.next().await, Some(Event::Answer(_))));
        assert!(journal.recv(&mut record).unwrap() > 0);
    }

    /// mcp-L6: from the event that was seen last, and nothing else.
    #[tokio::test]
    async fn a_reader_that_comes_back_gets_what_it_has_not_seen() {
        let stream = Stream::new(7, Style::Ids);
        let mut first = stream.attach(None);
        first.as_events();
        for text in ["a", "b", "c"] {
            assert!(stream.tell(message(text)));
        }
        first.next().await;
        first.next().await;
        assert_eq!(first.event_id(0), "7-2");
        drop(first);
        assert!(stream.tell(message("d")), "it may come back");
        stream.end(Event::Answer(Bytes::from_static(b"end")));
        assert_eq!(
            texts(&mut stream.attach(Some(1))).await,
            ["b", "c", "d", "end"]
        );
        assert_eq!(texts(&mut stream.attach(Some(4))).await, ["end"]);
        assert_eq!(texts(&mut stream.attach(Some(99))).await, [""; 0]);
    }

    #[tokio::test]
    async fn the_latest_reader_reads_alone() {
        let stream = Stream::new(0, Style::Ids);
        let mut first = stream.attach(None);
        first.as_events();
        let mut second = stream.attach(None);
        assert!(stream.tell(message("a")));
        assert!(first.next().await.is_none());
        assert_eq!(first.event_id(0), "0-0");
        drop(first);
        assert!(matches!(second.next().await, Some(Event::Message(_))));
        // What was read keeps its id, whoever comes back to before it.
        let third = stream.attach(Some(0));
        assert_eq!(
            (second.event_id(0), third.event_id(0)),
            ("0-1".into(), "0-0".into())
        );
    }

    #[test]
    fn what_nobody_can_come_back_for_is_not_kept() {
        let stream = Stream::new(1, Style::Plain);
        let reader = stream.attach(None);
        assert!(stream.tell(message("a")));
        drop(reader);
        assert!(!stream.tell(message("b")) && !stream.is_known());
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded() {
        let stream = Stream::new(1, Style::Ids);
        let mut reader = stream.attach(None);
        reader.as_events();
        for _ in 0..MAX_EVENTS * 2 {
            assert!(stream.tell(message("x")));
            reader.next().await;
        }
        assert_eq!(stream.kept(), MAX_EVENTS);
        let told = (0..MAX_EVENTS * 2)
            .filter(|_| stream.tell(message("x")))
            .count();
        assert_eq!(told, MAX_EVENTS - 1, "the last place is the answer's");
    }

    #[test]
    fn an_event_id_is_two_numbers() {
        assert_eq!(place("3-14"), Some((3, 14)));
        for text in [
            "",
            "3",
            "-1",
            "3-",
            "+3-1",
            "3-1-2",
            "a-b",
            "99999999999999999999-1",
        ] {
            assert_eq!(place(text), None, "{text}");
        }
    }
}

//! One stream of events towards a client, and the client's end of it.
//!
//! What was sent is kept for a while, within bounds, so that a legacy client
//! that lost its connection can go on where it was (mcp-L6). A stream belongs
//! to one request, or is the session's own (number 0); its events are never
//! sent on another. Made by `session`, read by `http`.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use tokio::time::timeout;

use crate::{
    aside::cut_down,
    audit::Audit,
    session::{
        Session,
        exchange::{Event, Finish},
        owed::SOON,
        room::{Room, UNCOUNTED},
    },
};

#[cfg(test)]
use crate::session::room::Rooms;

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
    /// The memory of what waits in it.
    room: Arc<Room>,
    buffer: Mutex<EventBuffer>,
}

struct EventBuffer {
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
    /// It takes longer than a client waits for an answer without a stream.
    late: bool,
    /// Which reader may read: the latest.
    reader: u64,
    attached: bool,
    /// Nobody has read from it yet, and its client is expected to.
    awaited: bool,
    /// A client was told an id, and may come back with it.
    known: bool,
    waker: Option<Waker>,
}

impl Stream {
    pub(super) fn new(number: u64, style: Style, room: &Arc<Room>) -> Arc<Self> {
        let buffer = EventBuffer {
            kept: VecDeque::new(),
            first: 1,
            next: 1,
            bytes: 0,
            unread: 0,
            done: false,
            late: false,
            reader: 0,
            attached: false,
            awaited: false,
            known: false,
            waker: None,
        };
        Arc::new(Self {
            number,
            style,
            room: room.clone(),
            buffer: Mutex::new(buffer),
        })
    }

    /// A reader from the event after `after` on, or from the first unread one.
    /// Whoever read before reads no more.
    pub(super) fn attach(self: &Arc<Self>, after: Option<u64>) -> Exchange {
        let mut buffer = self.buffer();
        buffer.reader += 1;
        buffer.attached = true;
        buffer.awaited = false;
        if let Some(after) = after {
            let end = buffer.first + buffer.kept.len() as u64;
            buffer.next = after.saturating_add(1).clamp(buffer.first, end);
            let read = (buffer.next - buffer.first) as usize;
            buffer.unread = buffer.kept.iter().skip(read).map(waiting).sum();
        }
        buffer.wake();
        Exchange {
            stream: self.clone(),
            reader: buffer.reader,
            last: buffer.next - 1,
            style: self.style,
            finish: Finishing::Nothing,
            cancels: None,
            records: None,
        }
    }

    /// Has what is told wait for its first reader.
    pub(super) fn wait_for_reader(&self) {
        self.buffer().awaited = true;
    }

    /// Whether it waits for its first reader.
    pub(super) fn is_awaited(&self) -> bool {
        let buffer = self.buffer();
        !buffer.done && buffer.awaited
    }

    /// How many events nobody has read.
    pub(super) fn unread(&self) -> usize {
        self.buffer().unread_events()
    }

    /// Adds a message, if somebody keeps up with the stream or may come back to it.
    pub(super) fn tell(&self, message: Event) -> bool {
        let mut buffer = self.buffer();
        let unread = buffer.unread_events();
        let bytes = waiting(&message);
        let fits =
            unread + 1 < MAX_EVENTS && (buffer.unread == 0 || buffer.unread + bytes <= MAX_UNREAD);
        if !fits || buffer.done || !(buffer.attached || buffer.known || buffer.awaited) {
            return false;
        }
        // It may wait for long, and must not keep what it was read with.
        let message = match message {
            Event::Message(text) if text.len() <= UNCOUNTED => {
                Event::Message(Bytes::copy_from_slice(&text))
            }
            message => message,
        };
        let message = match message {
            Event::Message(text) if buffer.bytes + bytes > UNCOUNTED => {
                match buffer.room_for(text, &self.room) {
                    Some(text) => Event::Message(text),
                    None => return false,
                }
            }
            message => message,
        };
        buffer.push(message);
        true
    }

    /// Adds the last event; there is always room for it.
    pub(super) fn end(&self, last: Event) {
        let mut buffer = self.buffer();
        if !buffer.done {
            buffer.push(last);
            buffer.done = true;
        }
    }

    /// Ends the stream without a last event.
    pub(super) fn close(&self) {
        let mut buffer = self.buffer();
        buffer.done = true;
        buffer.wake();
    }

    /// Whoever waits for something soon waits no more.
    pub(super) fn tell_late(&self) {
        let mut buffer = self.buffer();
        if !buffer.late {
            buffer.late = true;
            buffer.wake();
        }
    }

    /// Whether a client listens, or may come back and listen.
    pub(super) fn is_heard(&self) -> bool {
        let buffer = self.buffer();
        !buffer.done && (buffer.attached || buffer.known)
    }

    /// Keeps nothing that was read.
    pub(super) fn forget_read(&self) {
        let mut buffer = self.buffer();
        while buffer.first < buffer.next {
            buffer.forget_first();
        }
    }

    /// Whether all of it was read.
    pub(super) fn is_read(&self) -> bool {
        self.buffer().unread_events() == 0
    }

    /// Whether it had a reader, and has none.
    pub(super) fn is_left(&self) -> bool {
        let buffer = self.buffer();
        buffer.reader > 0 && !buffer.attached
    }

    /// Whether a client may come back for it.
    pub(super) fn is_known(&self) -> bool {
        let buffer = self.buffer();
        // More than an answer alone was sent, so it is being read as events.
        self.style != Style::Plain && (buffer.known || buffer.first + buffer.kept.len() as u64 > 2)
    }

    /// Whether there was an event of that number, which a client may have seen: of what
    /// came after it as much is told again as is kept, its answer in any case.
    pub(super) fn has_come_to(&self, event: u64) -> bool {
        let buffer = self.buffer();
        event < buffer.first + buffer.kept.len() as u64
    }

    /// Bytes of what is kept.
    pub(super) fn kept(&self) -> usize {
        self.buffer().bytes
    }

    fn buffer(&self) -> MutexGuard<'_, EventBuffer> {
        // No code path leaves it half changed, so a panic elsewhere does not taint it.
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventBuffer {
    fn push(&mut self, event: Event) {
        self.bytes += size(&event);
        self.unread += waiting(&event);
        if self.kept.capacity() == 0 {
            // Of most streams it is the only one.
            self.kept.reserve_exact(1);
        }
        self.kept.push_back(event);
        // What was read is kept only as far as there is room.
        while self.first < self.next && (self.kept.len() > MAX_EVENTS || self.bytes > MAX_READ) {
            self.forget_first();
        }
        self.wake();
    }

    /// The text, counted, in place of what was read where there is no other.
    fn room_for(&mut self, text: Bytes, room: &Arc<Room>) -> Option<Bytes> {
        loop {
            let held = room.hold_all(text.clone());
            if held.is_some() || self.first == self.next {
                return held;
            }
            self.forget_first();
        }
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
    finish: Finishing,
    cancels: Option<Weak<Session>>,
    /// Where it is on record what became of the request.
    records: Option<Audit>,
}

/// There is no event yet, and a client waits no longer without a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Late;

/// How far it is with what is done to the answer.
enum Finishing {
    Nothing,
    Waits(Finish),
    /// Others are served meanwhile; the answer counts as unread until it is done.
    Begun(Pin<Box<dyn Future<Output = Bytes> + Send>>),
}

impl Exchange {
    /// Has what became of the request on record before anybody reads it.
    pub(super) fn recorded_in(mut self, audit: &Audit) -> Self {
        self.records = Some(audit.clone());
        self
    }

    /// Has the answer pass through `finish` (lists are filtered so).
    pub fn finished_by(mut self, finish: Finish) -> Self {
        self.finish = Finishing::Waits(finish);
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
            self.stream.buffer().known = true;
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

    /// The same, unless it takes long: whoever asks has no clock of its own, for the session has
    /// an eye on all of them at once; but not on a list that is still to be cut down.
    pub async fn next_soon(&mut self) -> Result<Option<Event>, Late> {
        let soon = std::future::poll_fn(|context| match self.poll_next(context) {
            Poll::Ready(event) => Poll::Ready(Some(Ok(event))),
            Poll::Pending if self.stream.buffer().late => Poll::Ready(Some(Err(Late))),
            Poll::Pending if matches!(self.finish, Finishing::Begun(_)) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        match soon.await {
            Some(soon) => soon,
            None => Box::pin(timeout(SOON, self.next())).await.map_err(|_| Late),
        }
    }

    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut buffer = self.stream.buffer();
        if buffer.reader != self.reader {
            return Poll::Ready(None);
        }
        let read = (buffer.next - buffer.first) as usize;
        let Some(event) = buffer.kept.get(read).cloned() else {
            if buffer.done {
                return Poll::Ready(None);
            }
            buffer.waker = Some(context.waker().clone());
            return Poll::Pending;
        };
        let event = match (event, &self.finish) {
            (Event::Answer(answer), Finishing::Waits(_) | Finishing::Begun(_)) => {
                // Whoever takes over meanwhile wakes this one.
                buffer.waker = Some(context.waker().clone());
                drop(buffer);
                let answer = ready!(self.finished(answer, context));
                buffer = self.stream.buffer();
                if buffer.reader != self.reader {
                    return Poll::Ready(None);
                }
                Event::Answer(answer)
            }
            (event, _) => event,
        };
        self.last = buffer.next;
        buffer.next += 1;
        buffer.unread -= waiting(&event);
        if self.style == Style::Plain {
            buffer.forget_first();
        }
        drop(buffer);
        if let (Event::Answer(_) | Event::Failed(_), Some(audit)) = (&event, &self.records) {
            audit.hand_on();
        }
        Poll::Ready(Some(event))
    }

    /// The answer as the client is to see it.
    fn finished(&mut self, answer: Bytes, context: &mut Context<'_>) -> Poll<Bytes> {
        let mut work = match std::mem::replace(&mut self.finish, Finishing::Nothing) {
            Finishing::Nothing => return Poll::Ready(answer),
            Finishing::Waits(finish) if answer.len() <= LONG_LIST => {
                return Poll::Ready(finish(answer));
            }
            Finishing::Waits(finish) => {
                let room = self.stream.room.clone();
                Box::pin(cut_down(move || {
                    let before = answer.as_ptr();
                    let done = finish(answer);
                    // What stays as it was is counted.
                    if done.as_ptr() == before {
                        done
                    } else {
                        room.hold_anyway(done)
                    }
                }))
            }
            Finishing::Begun(work) => work,
        };
        let done = work.as_mut().poll(context);
        if done.is_pending() {
            self.finish = Finishing::Begun(work);
        }
        done
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let mut buffer = self.stream.buffer();
        if buffer.reader != self.reader {
            return;
        }
        buffer.attached = false;
        buffer.waker = None;
        let done = buffer.done;
        drop(buffer);
        if !done && let Some(session) = self.cancels.take().and_then(|session| session.upgrade()) {
            session.abandon(self.stream.number);
        }
    }
}

#[cfg(test)]
fn example() -> Arc<Room> {
    let user = crate::auth::Identity::example("https://a", "alice");
    Rooms::new(1).room(user.principal_key())
}

#[cfg(test)]
impl Exchange {
    /// For the tests of other modules: a session's own stream on which nothing is said.
    pub(crate) fn example() -> (Arc<impl Sized>, Self) {
        let stream = Stream::new(0, Style::Primed, &example());
        let exchange = stream.attach(None);
        (stream, exchange)
    }

    /// The same, on which this was said, and is not counted: it would be another owner's.
    pub(crate) fn example_with(said: &Bytes) -> (Arc<impl Sized + use<>>, Self) {
        let stream = Stream::new(0, Style::Primed, &example());
        let exchange = stream.attach(None);
        stream.buffer().push(Event::Message(said.clone()));
        (stream, exchange)
    }

    /// The same: a request of which so much is said, and no end.
    pub(crate) fn talking(messages: usize) -> (Arc<impl Sized>, Self) {
        let stream = Stream::new(1, Style::Ids, &example());
        let exchange = stream.attach(None);
        for _ in 0..messages {
            assert!(stream.tell(Event::Message("said".into())));
        }
        (stream, exchange)
    }

    /// The same: a modern request that has its answer.
    pub(crate) fn answered(answer: Bytes) -> Self {
        let stream = Stream::new(1, Style::Plain, &example());
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

/// Bytes of a list that is cut down where everybody waits: of the shortest names there are three hundred, which are
/// some milliseconds of decisions.
const LONG_LIST: usize = 4 << 10;
/// Events of one stream: unread ones, beyond which messages are left out, and kept ones.
const MAX_EVENTS: usize = 256;
/// Bytes of messages waiting for one client; a single longer one still goes (conn-3).
const MAX_UNREAD: usize = 1 << 20;
/// Bytes of what is kept of a stream although it was read.
const MAX_READ: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixDatagram, sync::mpsc, time::Duration};

    use super::*;
    use crate::{audit, auth::Identity, config::ServerName};

    fn new(number: u64, style: Style) -> Arc<Stream> {
        Stream::new(number, style, &example())
    }

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
        let stream = new(1, Style::Primed);
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

    /// fault-46: a server's few words do not keep the megabytes that it has written them with.
    #[test]
    fn what_waits_does_not_keep_what_it_was_read_with() {
        let stream = new(1, Style::Ids);
        let _reader = stream.attach(None);
        let line = Bytes::from(vec![b'x'; 1 << 20]);
        for at in 0..MAX_EVENTS / 2 {
            let words = line.slice(at..at + 60);
            assert!(stream.tell(Event::Message(words)));
        }
        assert!(line.is_unique());
    }

    /// mcp-L6: from the event that was seen last, and nothing else.
    #[tokio::test]
    async fn a_reader_that_comes_back_gets_what_it_has_not_seen() {
        let stream = new(7, Style::Ids);
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

    /// A long list is cut down while others are served, here the one who lets it be done; and whoever comes back
    /// meanwhile gets it as if nobody had begun. A short one is done at once.
    #[tokio::test]
    async fn a_long_list_is_cut_down_beside_the_loop() {
        let patience = Duration::from_secs(60);
        let here = std::thread::current().id();
        let cut = move |answer: Bytes| {
            assert_ne!(std::thread::current().id(), here);
            answer.slice(..3)
        };
        let list = Bytes::from(vec![b'x'; LONG_LIST + 1]);
        let stream = new(7, Style::Ids);
        let (go_on, wait) = mpsc::channel();
        let mut reader = stream.attach(None).finished_by(Box::new(move |answer| {
            wait.recv_timeout(patience).unwrap();
            cut(answer)
        }));
        reader.as_events();
        assert!(stream.tell(message("a")));
        stream.end(Event::Answer(list.clone()));
        assert!(matches!(reader.next().await, Some(Event::Message(_))));
        assert!(timeout(Duration::ZERO, reader.next()).await.is_err());
        // What is still being done was not read, and has no id yet.
        assert_eq!(reader.event_id(0), "7-1");
        let read = reader.next();
        let (last, ()) = tokio::join!(read, async { go_on.send(()).unwrap() });
        assert!(matches!(last, Some(Event::Answer(text)) if text == "xxx"));
        assert_eq!(reader.event_id(0), "7-2");
        assert!(reader.next().await.is_none());

        let (_go_on, wait) = mpsc::channel();
        let mut lost = stream.attach(Some(1)).finished_by(Box::new(move |answer| {
            let _: Result<(), _> = wait.recv_timeout(patience);
            answer
        }));
        assert!(timeout(Duration::ZERO, lost.next()).await.is_err());
        let mut found = stream.attach(Some(1)).finished_by(Box::new(cut));
        assert!(lost.next().await.is_none());
        assert_eq!(texts(&mut found).await, ["xxx"]);

        let stream = new(8, Style::Plain);
        stream.end(Event::Answer(list.slice(..LONG_LIST)));
        let mut reader = stream.attach(None).finished_by(Box::new(move |answer| {
            assert_eq!(std::thread::current().id(), here);
            answer.slice(..2)
        }));
        assert_eq!(texts(&mut reader).await, ["xx"]);
    }

    /// A list that is long in being cut down is waited for on a stream, as an answer that is long in coming is.
    #[tokio::test(start_paused = true)]
    async fn a_list_that_is_not_cut_down_soon_is_late() {
        let patience = Duration::from_secs(60);
        let stream = new(7, Style::Plain);
        let (go_on, wait) = mpsc::channel();
        let mut reader = stream.attach(None).finished_by(Box::new(move |answer| {
            wait.recv_timeout(patience).unwrap();
            answer
        }));
        stream.end(Event::Answer(vec![b'x'; LONG_LIST + 1].into()));
        let (first, ()) = tokio::join!(reader.next_soon(), tokio::time::advance(SOON));
        assert!(matches!(first, Err(Late)));
        go_on.send(()).unwrap();
        assert!(matches!(reader.next().await, Some(Event::Answer(_))));
    }

    #[tokio::test]
    async fn the_latest_reader_reads_alone() {
        let stream = new(0, Style::Ids);
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
        let stream = new(1, Style::Plain);
        let reader = stream.attach(None);
        assert!(stream.tell(message("a")));
        drop(reader);
        assert!(!stream.tell(message("b")) && !stream.is_known());
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded() {
        let stream = new(1, Style::Ids);
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

    /// conn-3: of all the streams of a session there is no more than its room; what was read gives way to what was not,
    /// and what is read makes room.
    #[tokio::test]
    async fn what_waits_in_all_streams_of_a_session_is_bounded() {
        let rooms = Rooms::new(1);
        let room = rooms.room(Identity::example("https://a", "alice").principal_key());
        let text = "x".repeat(32 << 10);
        let fill = |stream: &Stream| {
            (0..MAX_EVENTS)
                .filter(|_| stream.tell(message(&text)))
                .count()
        };
        let mut streams = Vec::new();
        let mut told = 0;
        for number in 1..=64 {
            let stream = Stream::new(number, Style::Ids, &room);
            let reader = stream.attach(None);
            reader.as_events();
            told += fill(&stream);
            streams.push((stream, reader));
        }
        let bytes = told * text.len();
        assert_eq!(bytes, rooms.taken());
        assert!((15 << 20..=16 << 20).contains(&bytes), "{bytes}");
        let (stream, mut reader) = streams.pop().unwrap();
        assert!(!stream.tell(message(&text)), "there is no room left");
        assert!(stream.tell(message("x")), "a little there always is");
        // Another user has room all the same.
        let other = rooms.room(Identity::example("https://a", "bob").principal_key());
        let other = Stream::new(1, Style::Plain, &other);
        let _other = other.attach(None);
        assert!(other.tell(message(&text)) && other.tell(message(&text)));

        // What one stream has kept although it was read is no reason to keep anything out of it.
        let (first, mut keeps_up) = streams.remove(0);
        for _ in 0..MAX_UNREAD / text.len() {
            keeps_up.next().await;
        }
        for _ in 0..MAX_EVENTS {
            assert!(first.tell(message(&text)));
            keeps_up.next().await;
        }
        assert!(first.kept() <= MAX_READ + text.len());
        assert!(matches!(reader.next().await, Some(Event::Message(_))));
        drop((streams, first, keeps_up, stream, reader, other, _other));
        assert_eq!(rooms.taken(), 0);
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

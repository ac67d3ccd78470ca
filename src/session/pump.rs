//! What a child says, line by line, to whom it is for.
//!
//! `run` reads a child's output to its end, for a session or for those that share the child; `take` hands one session
//! one line. Used by `ending` and `shared`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    io::AsyncRead,
    task::consume_budget,
    time::{Instant, timeout_at},
};
use tracing::{debug, warn};

use crate::{
    aside::{aside, is_large},
    audit::Reason,
    child::{
        Lends, Share,
        stdio::{self, Reading, Why},
    },
    json::{Kind, Value},
    mcp::{Members, Message},
    session::{
        Session,
        blame::Suspect,
        calls::{AnswerKind, Answered},
        exchange::Failure,
        own::OwnMessage,
        pending::GATHER,
    },
};

/// Whom a child's lines are for.
pub(super) trait Hears: Send + Sync + 'static {
    /// Handles one line; `false` for what the protocol does not allow, which is dropped (sse-2).
    /// A large one comes from another thread: nothing is held while it is read.
    fn take(&self, line: Bytes) -> bool;
    /// Whether the child has asked something since this was asked last.
    fn was_asked(&self) -> bool;
    /// Asks the clients what has come together.
    fn ask_clients(&self);
    /// Whether the child goes on however often it has broken the protocol: what one user has it
    /// write must not end it for others.
    fn bears_all(&self) -> bool {
        false
    }
    /// The request of that number was to be answered by a line that is left out.
    fn fail_one(&self, number: u64, failure: Failure);
    /// The child's question of that number is left out, for want of room: it is told that nobody will answer.
    fn refuse(&self, _number: u64) {}
    /// The memory of a line that has not come to its end, where that is counted.
    fn lends(&self) -> Option<Arc<dyn Lends>> {
        None
    }
}

impl Hears for Session {
    fn take(&self, line: Bytes) -> bool {
        take(self, line)
    }

    fn was_asked(&self) -> bool {
        self.was_asked()
    }

    fn ask_clients(&self) {
        self.ask_clients();
    }

    fn fail_one(&self, number: u64, failure: Failure) {
        self.fail_one(number, failure);
    }

    fn refuse(&self, number: u64) {
        let id = number.to_string();
        let id = id.as_bytes();
        self.say(&OwnMessage::NobodyThere { id });
    }

    fn lends(&self) -> Option<Arc<dyn Lends>> {
        Some(self.room.clone())
    }
}

/// Reads until the child's output ends, or until it has broken the protocol too often.
/// What it did wrong, if that is why nobody reads on.
pub(super) fn run(
    hears: Arc<impl Hears>,
    stdout: impl AsyncRead + Send + Unpin,
    reading: Reading,
) -> impl Future<Output = Option<Reason>> + Send {
    // Here, and not in the future: that would have room for it twice, as long as the child lives.
    let mut lines = reading.lines(stdout, hears.lends());
    async move {
        let mut violations = 0_u64;
        let mut complaints = Complaints::default();
        let mut due = None;
        let mut left_out = LeftOut(None);
        loop {
            // One read may bring thousands: others have their turn between them.
            consume_budget().await;
            let line = match due {
                None => lines.next().await,
                // What is asked together is told together. Boxed: most children never ask anything.
                Some(at) => match Box::pin(timeout_at(at, lines.next())).await {
                    Ok(line) => line,
                    Err(_) => {
                        hears.ask_clients();
                        due = None;
                        continue;
                    }
                },
            };
            let kept = match line {
                Ok(stdio::Line::Text(text)) if text.trim_ascii().is_empty() => {
                    drop(lines.share());
                    continue;
                }
                Ok(stdio::Line::Text(text)) => {
                    let kept = taken(hears.clone(), text, lines.share()).await;
                    if hears.was_asked() {
                        due = due.or(Some(Instant::now() + GATHER));
                    }
                    kept
                }
                Ok(stdio::Line::Left { part, ends, why })
                    if why == Why::NoRoom || hears.bears_all() =>
                {
                    // Boxed: most children never write such a line.
                    let left = (ends, why, reading.longest);
                    let read = left_out.read((part, lines.share()), left, &*hears);
                    if !Box::pin(read).await {
                        continue;
                    }
                    complaints.say_left_out(why, reading.longest);
                    if why == Why::NoRoom {
                        // That is not its fault.
                        continue;
                    }
                    false
                }
                Ok(stdio::Line::Left { .. }) => {
                    warn!(
                        limit = reading.longest,
                        "the server wrote a line longer than `limits.message`, ending it"
                    );
                    return Some(Reason::ChildLine);
                }
                Ok(stdio::Line::End) => return None,
                Err(error) => {
                    debug!(%error, "reading the server's output failed");
                    return None;
                }
            };
            if kept {
                violations = 0;
                continue;
            }
            violations += 1;
            if violations < MAX_VIOLATIONS {
                continue;
            }
            if !hears.bears_all() {
                warn!(violations, "the server writes what is no MCP, ending it");
                return Some(Reason::ChildProtocol);
            }
            if violations == MAX_VIOLATIONS && complaints.may_be_said() {
                warn!(violations, "the server writes what is no MCP, left out");
            }
        }
    }
}

/// Hands on the line, of which so much was counted; `false` for what the protocol does not allow.
///
/// What comes behind a large line waits until that was read, for whomever it is: who is to have the
/// large one is known only then, and what one client is told must keep its order. It is bounded by
/// `limits.message`, about 5 ms a MiB; and a child that others share is read no faster for that.
fn taken(
    taker: Arc<impl Hears>,
    text: Bytes,
    share: Option<Box<Share>>,
) -> impl Future<Output = bool> + Send {
    aside(text.len(), move || {
        // From here on it is counted as what was said.
        drop(share);
        taker.take(text)
    })
}

/// A line that is left out, while it comes.
struct LeftOut(Option<Box<Suspect>>);

impl LeftOut {
    /// Reads the next part of it, and fails the request that it was to answer as soon as that is known. Whether
    /// this part was the first.
    async fn read(
        &mut self,
        (part, share): (Bytes, Option<Box<Share>>),
        (ends, why, longest): (bool, Why, usize),
        hears: &impl Hears,
    ) -> bool {
        let begins = self.0.is_none();
        let mut suspect = self.0.take().unwrap_or_default();
        let read = aside(part.len(), move || {
            suspect.read(&part);
            drop((part, share));
            suspect
        });
        let mut suspect = read.await;
        // Nobody waits for the end of what says at once whose answer it is; what says so last is
        // believed when all of it was read.
        let begun = suspect.begun().filter(|_| begins);
        if let Some(number) = begun.or(suspect.whole().filter(|_| ends)) {
            suspect.was_told();
            let failure = match why {
                Why::TooLong => Failure::TooLarge(longest),
                Why::NoRoom => Failure::NoRoom,
            };
            hears.fail_one(number, failure);
        }
        if !ends {
            self.0 = Some(suspect);
        } else if why == Why::NoRoom
            && let Some(number) = suspect.asked()
        {
            hears.refuse(number);
        }
        begins
    }
}

/// How often a server that goes on is complained of: what it writes must not fill the journal.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
}

impl Complaints {
    /// Of a line that is left out, of which one may be at most so long.
    fn say_left_out(&mut self, why: Why, longest: usize) {
        if !self.may_be_said() {
            return;
        }
        match why {
            Why::TooLong => warn!(
                limit = longest,
                "the server wrote a line longer than `limits.message`, left out"
            ),
            Why::NoRoom => warn!("there is no room for what the server writes, left out"),
        }
    }

    fn may_be_said(&mut self) -> bool {
        let may = self.last.is_none_or(|last| last.elapsed() >= BETWEEN);
        if may {
            self.last = Some(Instant::now());
        }
        may
    }
}

/// Hands a session one line of its child's.
pub(super) fn take(session: &Session, line: Bytes) -> bool {
    let Some(message) = read(session, &line) else {
        session.blame(&line);
        return false;
    };
    match message.root().kind() {
        Kind::Object => take_one(session, &message),
        Kind::Array if session.takes_batches() => {
            each(&message, |text| session.room.hold_anyway(text))
                .map(|message| message.is_some_and(|message| take_one(session, &message)))
                .reduce(|all, one| all && one)
                .unwrap_or(false)
        }
        _ => false,
    }
}

/// The messages of a batch (mcp-O2); `None` for what is none. A small one does not keep the memory of all.
/// What is copied for that is what `keep` makes of it.
pub(super) fn each(
    batch: &Message,
    keep: impl Fn(Bytes) -> Bytes,
) -> impl Iterator<Item = Option<Message>> {
    batch.root().elements().map(move |one| {
        let (all, span) = (batch.bytes(), one.span());
        let text = if span.len() < all.len() / 2 {
            keep(Bytes::copy_from_slice(&all[span]))
        } else {
            all.slice(span)
        };
        let is_one = one.kind() == Kind::Object;
        is_one.then(|| Message::parse(text).ok()).flatten()
    })
}

fn take_one(session: &Session, message: &Message) -> bool {
    let members = Members::of(message.root());
    match (members.method.and_then(Value::as_str), members.id) {
        (None, Some(id)) => answer(session, message, id, &members),
        (Some(method), Some(id)) => request(session, message, &method, id),
        (Some(method), None) => {
            notification(session, message, &method);
            true
        }
        (None, None) => false,
    }
}

fn answer(session: &Session, message: &Message, id: Value<'_>, members: &Members<'_>) -> bool {
    let Some(number) = id.as_u64() else {
        return false;
    };
    let answer = match (members.result, members.error) {
        (Some(_), None) => AnswerKind::Result,
        (None, Some(_)) => AnswerKind::Error,
        _ => AnswerKind::Neither,
    };
    let answered = session.answer(number, answer, message);
    answered != Answered::Unknown
}

fn request(session: &Session, message: &Message, method: &str, id: Value<'_>) -> bool {
    let length = id.span().len();
    if !matches!(id.kind(), Kind::String | Kind::Number) || length > MAX_ANSWERED_ID {
        return false;
    }
    if method == "ping" {
        return session.say(&OwnMessage::Pong { id: id.raw() });
    }
    let asked = if session.modern_server().is_some() || length > MAX_SERVER_ID {
        // A modern server asks by its answers alone (sse-6). And a question's id is kept until it is answered.
        false
    } else if session.legacy_server().is_some() {
        session.question(message, method, id)
    } else {
        session.ask(message.bytes().clone(), Bytes::copy_from_slice(id.raw()))
    };
    if !asked {
        session.count_unheard();
        debug!(method, "no client listens to the server's request");
        session.say(&OwnMessage::NobodyThere { id: id.raw() });
    }
    true
}

fn notification(session: &Session, message: &Message, method: &str) {
    let params = message.root().get("params");
    if method == "notifications/cancelled"
        && let Some(id) = params.and_then(|params| params.get("requestId"))
    {
        session.unask(id.raw());
        if session.ended_by_child(id) || session.listening_cancelled(id) {
            return;
        }
    }
    if method == "notifications/tools/list_changed" {
        session.tools.changed();
    }
    if !session.pass_on(message, method) {
        session.count_unheard();
        debug!(method, "no client listens to the server's notification");
    }
}

/// The message that a line is. Carriage returns between its tokens would end an SSE line, and are made spaces once
/// it is known that there are none elsewhere (sse-1): in a string they are no JSON.
/// All of a large one counts for as long as anything keeps a part of it; what is kept of others counts where it is.
fn read(session: &Session, line: &Bytes) -> Option<Message> {
    let parse = |line: Bytes| {
        let is_large = is_large(line.len());
        let line = if is_large {
            session.room.hold_anyway(line)
        } else {
            line
        };
        Message::parse(line).ok()
    };
    let message = parse(line.clone())?;
    if !line.contains(&b'\r') {
        return Some(message);
    }
    let mut line = line.to_vec();
    stdio::flatten(&mut line);
    parse(line.into())
}

/// Lines in a row that are no MCP, before the child is given up.
const MAX_VIOLATIONS: u64 = 100;
/// Time between complaints about a server that goes on all the same.
const BETWEEN: Duration = Duration::from_secs(60);
/// Bytes of the id of a request of the server's that a client may be asked; and of one that is answered at all:
/// answers wait, too, where the server does not read.
const MAX_SERVER_ID: usize = 256;
pub(super) const MAX_ANSWERED_ID: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
            mpsc,
        },
    };

    use tokio::{io::AsyncReadExt as _, task::yield_now, time::timeout};

    use super::*;
    use crate::{
        auth::Identity,
        mcp::Era,
        session::{exchange::Event as Heard, room::Rooms, testing},
    };

    /// Whoever takes a line when he is told to.
    struct Waits(Mutex<mpsc::Receiver<()>>);

    impl Hears for Waits {
        fn take(&self, line: Bytes) -> bool {
            let patience = Duration::from_secs(60);
            line.len() == 2 || self.0.lock().unwrap().recv_timeout(patience).is_ok()
        }

        fn was_asked(&self) -> bool {
            false
        }

        fn ask_clients(&self) {}

        fn fail_one(&self, _: u64, _: Failure) {}
    }

    /// fault-46: what is kept of a batch keeps no more than twice what it is itself, and whoever counts knows of it.
    #[test]
    fn a_small_message_does_not_keep_the_memory_of_its_batch() {
        let large = format!(
            r#"[{{"method":"a"}},{{"method":"{}"}},1]"#,
            "b".repeat(1000)
        );
        let batch = Message::parse(large.into()).unwrap();
        let copied = Cell::new(0);
        let keep = |text: Bytes| {
            copied.set(copied.get() + text.len());
            text
        };
        let parts: Vec<_> = each(&batch, keep).collect();
        assert_eq!(copied.get(), r#"{"method":"a"}"#.len() + 1);
        let within = |part: &Option<Message>| {
            let part = part.as_ref()?.bytes();
            let all = batch.bytes().as_ptr_range();
            Some(all.contains(&part.as_ptr()))
        };
        let within: Vec<_> = parts.iter().map(within).collect();
        assert_eq!(within, [Some(false), Some(true), None]);
    }

    /// A large answer is read while others are served: here it is the loop that says when it may be taken.
    #[tokio::test]
    async fn a_large_line_keeps_nobody_else_waiting() {
        let (go_on, wait) = mpsc::channel();
        let output = [b"{}\n".to_vec(), b"x".repeat(2 << 20), b"\n{}\n".to_vec()].concat();
        let reading = Reading {
            longest: 4 << 20,
            rate: u64::MAX,
            counts: true,
        };
        let hears = Arc::new(Waits(Mutex::new(wait)));
        let heard = run(hears.clone(), &output[..], reading);
        tokio::join!(heard, async { go_on.send(()).unwrap() });
        assert!(hears.0.lock().unwrap().try_recv().is_err(), "it was taken");
    }

    /// What goes on whatever it hears.
    struct Bears;

    impl Hears for Bears {
        fn take(&self, line: Bytes) -> bool {
            line.len() == 2
        }

        fn was_asked(&self) -> bool {
            false
        }

        fn ask_clients(&self) {}

        fn bears_all(&self) -> bool {
            true
        }

        fn fail_one(&self, _: u64, _: Failure) {}
    }

    /// conn-3: a question for which there is no room is answered as one that no client hears: its server waits.
    #[tokio::test]
    async fn a_question_without_room_is_answered() {
        let (session, mut lines) = testing::session(Era::Legacy);
        session.open("2025-11-25");
        let mut own = session.listen().unwrap();
        own.as_events();
        let text = "x".repeat(200 << 10);
        let output = format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"sampling/createMessage\",\"params\":{{\"v\":\"{text}\"}}}}\n"
        );
        let reading = || Reading {
            longest: 1 << 20,
            rate: u64::MAX,
            counts: true,
        };
        run(session.clone(), output.as_bytes(), reading()).await;
        assert!(lines.try_recv().is_none());
        assert!(own.next().await.is_some());
        while session.room.lend(1 << 10) {}
        run(session.clone(), output.as_bytes(), reading()).await;
        let told = lines.try_recv().unwrap();
        assert!(
            told.starts_with(br#"{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"#),
            "{told:?}"
        );
    }

    /// conn-3: what is told as it came counts once while it is unread, and a line of nothing not at all.
    #[tokio::test]
    async fn what_waits_counts_once() {
        let rooms = Rooms::new(1);
        let alice = Identity::example("https://a", "alice");
        let (session, _lines) = testing::session_of(alice, Era::Legacy, &rooms);
        session.open("2025-11-25");
        let own = session.listen().unwrap();
        own.as_events();
        let size = 40 << 10;
        let text = "x".repeat(size);
        let log = format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{{"data":"{text}"}}}}"#
        );
        assert!(take(&session, log.into()));
        let waits = rooms.taken();
        assert!((size..size + 200).contains(&waits), "{waits}");
        drop(own);
        let blank = [vec![b' '; 1 << 20], b"\n".to_vec()].concat();
        let (mut child, output) = tokio::io::duplex(4 << 20);
        let reading = Reading {
            longest: 4 << 20,
            rate: u64::MAX,
            counts: true,
        };
        let reads = run(session.clone(), output, reading);
        let writes = async {
            tokio::io::AsyncWriteExt::write_all(&mut child, &blank)
                .await
                .unwrap();
            for _ in 0..1000 {
                yield_now().await;
            }
            assert_eq!(rooms.taken(), waits);
            drop(child);
        };
        tokio::join!(reads, writes);
    }

    /// json-16: an answer to what was never asked counts against its server, and one that comes too late does not.
    #[tokio::test]
    async fn an_answer_to_nothing_is_no_message() {
        let (session, _lines) = testing::session(Era::Legacy);
        let asks = r#"{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{"name":"t"}}"#;
        let mut asked = testing::asked(&session, asks);
        let answer = |id: &str| {
            let answer = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#);
            take(&session, answer.into())
        };
        for nothing in ["0", "2", "5", "\"1\"", "1.0", "-1", "null"] {
            assert!(!answer(nothing), "{nothing}");
        }
        assert_eq!(session.in_flight(), 1);
        assert!(answer("1"));
        assert!(matches!(asked.next().await, Some(Heard::Answer(_))));
        assert!(answer("1"), "late");
        assert!(asked.next().await.is_none());
    }

    /// sse-6: a modern server asks by its answers alone: what else it asks is refused, though there is a client that listens.
    #[tokio::test]
    async fn what_a_modern_server_asks_by_itself_is_refused() {
        let (session, mut lines) = testing::eliciting();
        let mut listens = session.listen().unwrap();
        for method in ["elicitation/create", "roots/list", "sampling/createMessage"] {
            let asks = format!(
                r#"{{"jsonrpc":"2.0","id":"q","method":"{method}","params":{{"message":"?"}}}}"#
            );
            assert!(take(&session, asks.into()));
            let told: Vec<_> = std::iter::from_fn(|| lines.try_recv()).collect();
            let [told] = &told[..] else {
                panic!("{told:?}");
            };
            assert!(told.starts_with(br#"{"jsonrpc":"2.0","id":"q","error":{"code":-32601"#));
            let heard = timeout(Duration::ZERO, listens.next()).await;
            assert!(heard.is_err(), "{method}: {heard:?}");
        }
    }

    /// Whoever goes on, and writes down whose answer was too long.
    #[derive(Default)]
    struct Notes(Mutex<Vec<String>>);

    impl Hears for Notes {
        fn take(&self, line: Bytes) -> bool {
            let line = String::from_utf8(line.to_vec()).unwrap();
            self.0.lock().unwrap().push(line);
            true
        }

        fn was_asked(&self) -> bool {
            false
        }

        fn ask_clients(&self) {}

        fn bears_all(&self) -> bool {
            true
        }

        fn fail_one(&self, number: u64, failure: Failure) {
            assert!(matches!(failure, Failure::TooLarge(_)), "{failure:?}");
            self.0.lock().unwrap().push(number.to_string());
        }
    }

    /// sse-2: an answer that is too long names its request wherever its id stands, and what is no answer names
    /// none, however it is cut; whoever needs not wait for its end does not.
    #[tokio::test]
    async fn an_overlong_answer_is_blamed_by_its_end_as_by_its_beginning() {
        const LONGEST: usize = 64 << 10;
        for size in [LONGEST, 4 * LONGEST] {
            let text = "x".repeat(size);
            for (line, said) in [
                (format!(r#"{{"result":{{"v":"{text}"}},"id":7}}"#), "7"),
                (format!(r#"{{"id":7,"result":{{"v":"{text}"}}}}"#), "7"),
                (format!(r#"{{"id":7,"result":{{"v":"{text}"#), "7"),
                (
                    format!(r#"{{"v":"{text}","id" : 7 , "error":{{"id":8}} }} "#),
                    "7",
                ),
                // A name in a text, a deeper one, a second one; another's words beside an answer.
                (format!(r#"{{"result":{{"v":"{text}\"}},\"id\":7}}"}}"#), ""),
                (format!(r#"{{"result":{{"v":"{text}","id":7}}}}"#), ""),
                (format!(r#"{{"result":"{text}","id":7,"id":8}}"#), ""),
                (
                    format!(r#"{{"method":"x","params":"{text}","id":7,"result":1}}"#),
                    "",
                ),
                (format!(r#"called with {text}{{"result":1,"id":7}}"#), ""),
                (
                    format!(r#"{{"called":"{text}"}} {{"result":1,"id":7}}"#),
                    "",
                ),
                (format!(r#"{{"result":"{text}","id":7"#), ""),
            ] {
                let notes = Arc::new(Notes::default());
                let output = format!("{line}\n{{}}\n");
                let reading = Reading {
                    longest: LONGEST,
                    rate: u64::MAX,
                    counts: true,
                };
                assert_eq!(run(notes.clone(), output.as_bytes(), reading).await, None);
                let all = notes.0.lock().unwrap();
                let expected: &[&str] = if said.is_empty() {
                    &["{}"]
                } else {
                    &[said, "{}"]
                };
                let begins: String = line.chars().take(30).collect();
                assert_eq!(*all, expected, "{begins}");
            }
        }
    }

    /// What says at once whose answer it is ends that call before it has ended itself.
    #[tokio::test]
    async fn an_endless_answer_is_blamed_while_it_comes() {
        let notes = Arc::new(Notes::default());
        let begins = format!(r#"{{"id":7,"result":"{}"#, "x".repeat(1 << 10));
        let output = begins.as_bytes().chain(tokio::io::repeat(b'x'));
        let reading = Reading {
            longest: 1 << 10,
            rate: u64::MAX,
            counts: true,
        };
        let heard = run(notes.clone(), output, reading);
        let told = async {
            while notes.0.lock().unwrap().is_empty() {
                yield_now().await;
            }
        };
        tokio::select! {
            _ = heard => panic!("it has no end"),
            () = told => {}
        }
        assert_eq!(*notes.0.lock().unwrap(), ["7"]);
    }

    /// What a server writes without an end keeps nobody waiting until it has ended.
    #[tokio::test]
    async fn others_have_their_turn_between_the_lines_of_a_flood() {
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = turns.clone();
        let others = tokio::spawn(async move {
            loop {
                counted.fetch_add(1, Ordering::Relaxed);
                yield_now().await;
            }
        });
        let reading = Reading {
            longest: 10,
            rate: u64::MAX,
            counts: true,
        };
        run(Arc::new(Bears), &b"{}\n\n".repeat(50_000)[..], reading).await;
        others.abort();
        let turns = turns.load(Ordering::Relaxed);
        assert!(turns >= 500, "{turns}");
    }

    /// probe-70: a server that is borne cannot fill the journal by what is said of it.
    #[tokio::test]
    async fn a_server_that_goes_on_is_not_complained_of_again_and_again() {
        let said = testing::Complaints::default();
        let _here = said.counted();
        let part = [b"x\n".repeat(100), b"longer than it may be\n{}\n".to_vec()].concat();
        let reading = Reading {
            longest: 10,
            rate: u64::MAX,
            counts: true,
        };
        run(Arc::new(Bears), &part.repeat(1000)[..], reading).await;
        assert_eq!(said.count(), 1);
    }

    /// sse-2, probe-69: an answer for which there is no room while it comes fails its call at once, and no child is
    /// ended for it.
    #[tokio::test]
    async fn an_answer_without_room_fails_its_call_alone() {
        let (session, _lines) = testing::session(Era::Legacy);
        let ask = |id: &str| {
            let call = format!(
                r#"{{"jsonrpc":"2.0","id":"{id}","method":"tools/call","params":{{"name":"x"}}}}"#
            );
            testing::asked(&session, &call)
        };
        let [mut first, mut second, mut third] = ["a", "b", "c"].map(ask);
        while session.room.lend(1 << 10) {}
        let text = "x".repeat(200 << 10);
        let large = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"v":"{text}"}}}}"#);
        let half = format!(r#"{{"jsonrpc":"2.0","id":3,"result":{{"v":"{text}"#);
        let small = r#"{"jsonrpc":"2.0","id":2,"result":{}}"#;
        let more = MAX_VIOLATIONS as usize + 1;
        let output = format!("{large}\n").repeat(more) + small + "\n" + &half;
        let reading = Reading {
            longest: 2 << 20,
            rate: u64::MAX,
            counts: true,
        };
        let heard = run(session.clone(), output.as_bytes(), reading).await;
        assert_eq!(heard, None);
        for failed in [&mut first, &mut third] {
            let told = timeout(Duration::from_secs(10), failed.next()).await;
            assert!(
                matches!(told, Ok(Some(Heard::Failed(Failure::NoRoom)))),
                "{told:?}"
            );
        }
        let answered = second.next().await;
        assert!(matches!(answered, Some(Heard::Answer(_))), "{answered:?}");
    }
}

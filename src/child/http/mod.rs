//! MCP over HTTP, where the gateway is the client (Streamable HTTP).
//!
//! Gives the session what a child's pipes would: it takes messages as lines and
//! gives back lines. What of a conversation is HTTP alone stays here: headers,
//! the server's session id, streams that are taken up again, the end. Nothing
//! is redirected, nothing is sent twice, and nothing that a client has shown is
//! passed on. Used by `source`.

mod answers;
mod entrance;
mod events;
mod head;
mod mirror;
mod output;
mod sending;
mod sockets;
mod turns;
mod wire;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method};
use tokio::{
    io::DuplexStream,
    sync::{Notify, Semaphore, mpsc},
    time::{sleep, timeout},
};
use tracing::debug;

use crate::{
    aside::aside,
    child::{
        Lends, Showing,
        stdio::{Line, Lines},
    },
    fetch::Endpoint,
};

pub(super) use entrance::Entrance;
use head::{Asks, Kind, Outgoing};
pub(super) use mirror::Mirror;
use output::Output;
use turns::{MAX_REQUESTS, Turns};
pub(super) use wire::Wire;

/// Why a request has no answer of the server's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// There is no connection to the server.
    Unreachable,
    /// The connection ended before the answer; whether the request took effect is not known.
    Lost,
    /// It answered with a status that is no answer to a request.
    Refused,
    /// What it answered is no MCP.
    BadAnswer,
    /// A message of its was longer than so many bytes.
    TooLarge(usize),
    /// It knows nothing of its own session any more.
    Gone,
    /// Too much waits for it: it was told nothing of the request.
    Busy,
    /// There was no room for what it answered.
    NoRoom,
}

/// How connections come, and what is said on each of them besides MCP.
pub(super) struct Peer {
    pub(super) way: Way,
    pub(super) authority: String,
    /// With a query, if there is one.
    pub(super) path: String,
    pub(super) shown: Showing,
    /// Bytes of one message of the server's.
    pub(super) longest: usize,
    /// What the server's tools want to be said in headers, too.
    pub(super) mirror: Arc<Mirror>,
}

pub(super) enum Way {
    Inside(Entrance),
    Remote(Arc<Endpoint>),
}

/// One conversation.
pub(super) struct Talk {
    peer: Peer,
    /// The memory of what is on its way.
    lends: Arc<dyn Lends>,
    known: Mutex<Known>,
    idle: Mutex<Vec<Wire>>,
    /// Requests that may stay open.
    open: Semaphore,
    output: tokio::sync::Mutex<Output>,
    faults: mpsc::Sender<(u64, Fault)>,
    /// Said once when there is nothing to go on with.
    gone: Notify,
}

/// What `initialize` has brought.
#[derive(Default)]
struct Known {
    session: Option<HeaderValue>,
    version: Option<HeaderValue>,
}

impl Talk {
    /// `first` is a connection that is there already.
    pub(super) fn new(
        (peer, first): (Peer, Option<Wire>),
        output: DuplexStream,
        faults: mpsc::Sender<(u64, Fault)>,
        lends: Arc<dyn Lends>,
    ) -> Arc<Self> {
        Arc::new(Self {
            peer,
            lends,
            known: Mutex::default(),
            idle: Mutex::new(first.into_iter().collect()),
            open: Semaphore::new(MAX_OPEN),
            output: tokio::sync::Mutex::new(Output::new(output)),
            faults,
            gone: Notify::new(),
        })
    }

    /// Talks until `input` ends or the server has forgotten the conversation.
    pub(super) async fn run(self: Arc<Self>, input: DuplexStream) {
        // As long as the longest that the session sends: it counts them itself.
        let mut lines = Lines::new(input, usize::MAX);
        let mut turns = Turns::default();
        loop {
            turns.go_on(&self);
            tokio::select! {
                // It goes on whatever waits: what ends something comes the same way.
                line = lines.next() => {
                    let Ok(Line::Text(line)) = line else { break };
                    let mirror = self.peer.mirror.clone();
                    let read = aside(line.len(), move || Outgoing::read(line, &mirror));
                    let Some(message) = read.await else { continue };
                    self.take(message, &mut turns).await;
                }
                () = turns.changed() => {}
                () = self.gone.notified() => return,
            }
        }
        turns.end().await;
        self.leave().await;
    }

    async fn take(self: &Arc<Self>, mut message: Outgoing, turns: &mut Turns) {
        match message.kind {
            Kind::Request(number, _) => {
                if !turns.ask(message, &self.lends) {
                    let _ = self.faults.send((number, Fault::Busy)).await;
                }
            }
            Kind::Cancelled(number) if turns.forget(number) => {}
            Kind::Cancelled(number) => {
                if self.hears_cancels(message.is_modern()) {
                    // Where the client's own words, which may be long, have no room, the gateway's have.
                    if !turns.tell(message, &self.lends) {
                        turns.tell_own(Outgoing::cancelled(number));
                    }
                }
                turns.abort(number);
            }
            Kind::Initialized => {
                // Before anything else: some servers answer nothing earlier.
                self.tell(message).await;
                turns.listen(self);
            }
            Kind::Answer => {
                let instead = message.take_instead();
                if !turns.tell(message, &self.lends) {
                    // The server waits for one.
                    match instead {
                        Some(instead) => turns.tell_own(instead),
                        None => debug!("an answer to the server was left out"),
                    }
                }
            }
            Kind::Other => {
                if !turns.tell(message, &self.lends) {
                    debug!("the server takes no notifications: one was left out");
                }
            }
        }
    }

    /// Sends what has no answer.
    async fn tell(&self, message: Outgoing) {
        let told = async {
            let mut answer = self.post(message).await?;
            self.check_session(answer.head.status)?;
            if answer.head.status.is_success() && answer.drained(self.peer.longest).await {
                self.keep(answer).await;
            } else {
                debug!(status = %answer.head.status, "the server does not take a notification");
            }
            Ok::<(), Fault>(())
        };
        match timeout(TELL, told).await {
            Ok(Ok(())) => {}
            Ok(Err(Fault::Gone)) => self.gone.notify_one(),
            Ok(Err(fault)) => debug!(?fault, "a notification did not reach the server"),
            Err(_) => debug!("the server did not take a notification in time"),
        }
    }

    async fn request(&self, number: u64, asks: Asks, message: Outgoing) {
        // Its turn does not end: whoever subscribes keeps nobody's calls waiting for ever.
        let open = (asks == Asks::Listen).then(|| self.open.try_acquire());
        if let Some(Err(_)) = open {
            let _ = self.faults.send((number, Fault::Refused)).await;
            return;
        }
        let is_modern = message.is_modern();
        if let Err(fault) = self.ask(number, asks, message).await {
            // The end of its process says more than the end of its connection.
            if fault == Fault::Lost && matches!(self.peer.way, Way::Inside(_)) {
                sleep(LAST_WORDS).await;
            }
            let _ = self.faults.send((number, fault)).await;
            if fault == Fault::Gone {
                self.gone.notify_one();
            }
            // Nobody hears what may still come: the server need not go on with it.
            if fault == Fault::NoRoom && self.hears_cancels(is_modern) {
                self.tell(Outgoing::cancelled(number)).await;
            }
        }
    }

    /// Whether a request is cancelled by a message: to close its stream is the whole cancel in the stateless version
    /// (mcp-T7), and `initialize` has none.
    fn hears_cancels(&self, is_modern: bool) -> bool {
        !is_modern && self.lock().version.is_some()
    }

    /// Ends the server's session (mcp-L7), if it can be had soon.
    async fn leave(&self) {
        if self.lock().session.is_none() {
            return;
        }
        let goodbye = async {
            let request = self.request_head(Method::DELETE).body(Bytes::new().into());
            let answer = self.send(request.map_err(|_| Fault::BadAnswer)?).await?;
            debug!(status = %answer.head.status, "the server was told that its session ends");
            Ok::<(), Fault>(())
        };
        let _ = timeout(GOODBYE, goodbye).await;
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const SESSION_ID: &str = "mcp-session-id";
/// Of the requests at once those that may stay open, subscriptions; a further one is refused.
const MAX_OPEN: usize = MAX_REQUESTS / 2;
/// How long a server may take over a message that has no answer.
const TELL: Duration = Duration::from_secs(10);
/// How long the end of a process may take to be known, after that of its connections.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long the server may take to hear of the end.
const GOODBYE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::OwnedFd};

    use tempfile::TempDir;
    use tokio::{
        io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, duplex},
        net::{UnixListener, UnixStream},
        sync::oneshot,
        task::JoinSet,
    };

    use super::*;
    use crate::{
        child::{share::tests::Purse, stdio::Reading},
        config::InsideDoor,
    };

    /// Where a server can be reached in a directory.
    fn peer() -> (UnixListener, Peer, TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let server = UnixListener::bind(dir.path().join("s")).unwrap();
        let place: OwnedFd = File::open(dir.path()).unwrap().into();
        let door = InsideDoor::Socket("s".into());
        let peer = Peer {
            way: Way::Inside(Entrance::new(&door, vec![place]).unwrap()),
            authority: "localhost".to_owned(),
            path: "/".to_owned(),
            shown: Showing::always(None),
            longest: 1 << 20,
            mirror: Arc::default(),
        };
        (server, peer, dir)
    }

    type Faults = mpsc::Receiver<(u64, Fault)>;
    type Rest = (TempDir, DuplexStream, JoinSet<()>);

    /// A server that answers nothing, and a conversation with it.
    fn silent(purse: Arc<Purse>) -> (UnixListener, DuplexStream, Faults, Rest) {
        agreed(purse, None)
    }

    /// The same, where they have agreed on that version.
    fn agreed(
        purse: Arc<Purse>,
        version: Option<&'static str>,
    ) -> (UnixListener, DuplexStream, Faults, Rest) {
        let (server, peer, dir) = peer();
        let (stdin, input) = duplex(1 << 20);
        let (output, stdout) = duplex(1 << 10);
        let (tell, faults) = mpsc::channel(MAX_REQUESTS);
        let talk = Talk::new((peer, None), output, tell, purse);
        talk.lock().version = version.map(HeaderValue::from_static);
        let mut work = JoinSet::new();
        work.spawn(talk.run(input));
        (server, stdin, faults, (dir, stdout, work))
    }

    /// fault-46: many long calls of a server that thinks about them are no memory of the gateway's.
    #[tokio::test]
    async fn a_message_that_was_sent_is_not_kept_until_its_answer() {
        struct Told(
            String,
            #[expect(dead_code, reason = "it tells")] oneshot::Sender<()>,
        );
        impl AsRef<[u8]> for Told {
            fn as_ref(&self) -> &[u8] {
                self.0.as_bytes()
            }
        }
        for meta in [
            "",
            r#","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}"#,
        ] {
            let (server, peer, _dir) = peer();
            let (output, _stdout) = duplex(1 << 10);
            let (tell, _faults) = mpsc::channel(1);
            let purse = Purse::of(8 << 20);
            let talk = Talk::new((peer, None), output, tell, purse.clone());
            let many = "0,".repeat(1 << 20);
            let (is_kept, gone) = oneshot::channel();
            let text = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"x","arguments":[{many}0]{meta}}}}}"#
            );
            let text = Bytes::from_owner(Told(text, is_kept));
            let mut message = Outgoing::read(text, &talk.peer.mirror).unwrap();
            assert!(message.count(0, &talk.lends) && purse.left() < 6 << 20);
            assert_eq!(message.is_modern(), !meta.is_empty());
            let reads = async {
                let (mut io, _) = server.accept().await.unwrap();
                tokio::io::copy(&mut io, &mut tokio::io::sink()).await
            };
            let patience = Duration::from_secs(60);
            tokio::select! {
                _ = talk.request(1, Asks::Other, message) => panic!("nothing was answered"),
                _ = reads => panic!("the connection stays"),
                gone = timeout(patience, gone) => assert!(gone.is_ok(), "it is kept"),
            }
            assert_eq!(purse.left(), 8 << 20);
        }
    }

    /// Many subscriptions leave turns for calls: whose they are, a shared server's other users would wait for ever.
    #[tokio::test]
    async fn subscriptions_keep_no_call_waiting() {
        let (server, mut stdin, mut faults, _rest) = silent(Purse::of(1 << 20));
        let mut said = String::new();
        for number in 1..=MAX_REQUESTS {
            said +=
                &format!(r#"{{"jsonrpc":"2.0","id":{number},"method":"subscriptions/listen"}}"#);
            said.push('\n');
        }
        said += r#"{"jsonrpc":"2.0","id":99,"method":"tools/call"}"#;
        said.push('\n');
        stdin.write_all(said.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        let patience = Duration::from_secs(60);
        for _ in 0..=MAX_OPEN {
            all.push(timeout(patience, server.accept()).await.unwrap().unwrap());
        }
        for _ in MAX_OPEN..MAX_REQUESTS {
            let fault = timeout(patience, faults.recv()).await.unwrap().unwrap();
            assert!(fault.0 as usize <= MAX_REQUESTS && fault.1 == Fault::Refused);
        }
    }

    /// A server that answers nothing is told of no more than it may have at once, and what is cancelled makes room
    /// however many wait behind it.
    #[tokio::test]
    async fn what_is_cancelled_makes_room_however_many_wait() {
        let (server, mut stdin, _faults, _rest) = silent(Purse::of(1 << 20));
        let mut said = String::new();
        for number in 1..=MAX_REQUESTS * 8 {
            said += &format!(r#"{{"jsonrpc":"2.0","id":{number},"method":"tools/call"}}"#);
            said.push('\n');
        }
        stdin.write_all(said.as_bytes()).await.unwrap();
        let patience = Duration::from_secs(60);
        let mut all = Vec::new();
        for round in 0..2 {
            for _ in 0..MAX_REQUESTS {
                all.push(timeout(patience, server.accept()).await.unwrap().unwrap());
            }
            let mut said = String::new();
            let before = round * MAX_REQUESTS;
            for number in before + 1..=before + MAX_REQUESTS {
                said += &format!(
                    r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{number}}}}}"#
                );
                said.push('\n');
            }
            stdin.write_all(said.as_bytes()).await.unwrap();
        }
        timeout(patience, server.accept()).await.unwrap().unwrap();
    }

    /// A stream that is not ended behind its answer takes a turn for half a second, whatever else is said on it.
    #[tokio::test(start_paused = true)]
    async fn who_goes_on_behind_an_answer_keeps_no_turn() {
        let (server, mut stdin, _faults, _rest) = silent(Purse::of(1 << 20));
        let call = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\"}\n";
        stdin.write_all(call).await.unwrap();
        let (mut io, _) = server.accept().await.unwrap();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
        let answer = r#"data: {"jsonrpc":"2.0","id":1,"result":{}}"#;
        let said = format!("{head}{answer}\n\n");
        io.write_all(said.as_bytes()).await.unwrap();
        for _ in 0..50 {
            sleep(Duration::from_millis(100)).await;
            if io.write_all(b": and\n").await.is_err() {
                return;
            }
        }
        panic!("it is still listened to");
    }

    /// Large messages to a server and from it are read while others are served: here it is the loop that says when
    /// they may be.
    #[tokio::test]
    async fn large_messages_are_read_beside_the_loop() {
        let (server, peer, _dir) = peer();
        let mirror = peer.mirror.clone();
        // Whoever reads one has to wait for that.
        let locked = || {
            let (mirror, (go_on, wait)) = (mirror.clone(), std::sync::mpsc::channel());
            let (tell, told) = std::sync::mpsc::channel();
            let holds = std::thread::spawn(move || {
                let _known = mirror.known();
                tell.send(()).unwrap();
                wait.recv_timeout(Duration::from_secs(10)).is_ok()
            });
            told.recv().unwrap();
            (go_on, holds)
        };
        let (mut stdin, input) = duplex(1 << 20);
        let (output, _stdout) = duplex(1 << 10);
        let (tell, _faults) = mpsc::channel(1);
        let talk = Talk::new((peer, None), output, tell, Purse::of(8 << 20));

        let text = "x".repeat(2 << 20);
        let (go_on, holds) = locked();
        let list = format!(r#"{{"id":1,"result":{{"tools":["{text}"]}}}}"#);
        let learns = async { talk.learn(1, Asks::Tools, &list.into()).await };
        let (is_answer, ()) = tokio::join!(learns, async { go_on.send(()).unwrap() });
        assert!(holds.join().unwrap() && is_answer);

        let (go_on, holds) = locked();
        let call = format!(
            r#"{{"id":1,"method":"tools/call","params":{{"name":"x","v":"{text}","_meta":{{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}}}}"#
        );
        let mut work = JoinSet::new();
        work.spawn(talk.run(input));
        stdin.write_all(call.as_bytes()).await.unwrap();
        stdin.write_all(b"\n").await.unwrap();
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        go_on.send(()).unwrap();
        assert!(holds.join().unwrap());
        timeout(Duration::from_secs(60), server.accept())
            .await
            .unwrap()
            .unwrap();
    }
    /// probe-68: what is cancelled ends however much waits; what has no room to wait is refused at once.
    #[tokio::test]
    async fn a_cancel_is_heard_however_much_waits() {
        let purse = Purse::of(16 << 20);
        let (server, mut stdin, mut faults, mut rest) = silent(purse.clone());
        let text = "x".repeat(4 << 20);
        let mut said = String::new();
        for number in 1..=133 {
            let text = if number > 128 { &*text } else { "" };
            said += &format!(
                r#"{{"jsonrpc":"2.0","id":{number},"method":"tools/call","params":{{"v":"{text}"}}}}"#
            );
            said.push('\n');
        }
        said += r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
        said.push('\n');
        let patience = Duration::from_secs(20);
        let mut all = Vec::new();
        let told = timeout(patience, stdin.write_all(said.as_bytes()));
        let (told, ()) = tokio::join!(told, async {
            for _ in 0..MAX_REQUESTS {
                all.push(timeout(patience, server.accept()).await.unwrap().unwrap());
            }
        });
        told.expect("it is not read").unwrap();
        let mut gone = tokio::io::sink();
        let ended = tokio::io::copy(&mut all[0].0, &mut gone);
        timeout(patience, ended).await.expect("it goes on").unwrap();
        for number in [132, 133] {
            let fault = timeout(patience, faults.recv()).await.unwrap();
            assert_eq!(fault, Some((number, Fault::Busy)));
        }
        let left = purse.left();
        assert!(left < 4 << 20, "{left}");
        // It comes back with what is cancelled before it was sent, and with the conversation.
        let cancel =
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":131}}"#;
        stdin.write_all(cancel.as_bytes()).await.unwrap();
        stdin.write_all(b"\n").await.unwrap();
        until(|| purse.left() >= left + (4 << 20)).await;
        rest.2.shutdown().await;
        assert_eq!(purse.left(), 16 << 20);
    }

    /// fault-21: a server that takes no notifications is told of calls all the same, and nobody keeps more of them
    /// than there is room for.
    #[tokio::test]
    async fn what_has_no_answer_holds_up_no_call() {
        let purse = Purse::of(100 << 10);
        let (server, mut stdin, _faults, mut rest) = silent(purse.clone());
        let note = format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"v":"{}"}}}}"#,
            "x".repeat(500)
        );
        let mut said = format!("{note}\n").repeat(300);
        said += r#"{"jsonrpc":"2.0","id":7,"method":"tools/call"}"#;
        said.push('\n');
        let patience = Duration::from_secs(20);
        stdin.write_all(said.as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        for _ in 0..2 {
            let (io, _) = timeout(patience, server.accept()).await.unwrap().unwrap();
            heard.push(request(io).await);
        }
        heard.sort_by_key(|request| request.ends_with(&note));
        assert!(heard[0].contains(r#""id":7,"#) && heard[1].ends_with(&note));
        assert!(purse.left() < 1 << 10);
        rest.2.shutdown().await;
        assert_eq!(purse.left(), 100 << 10);
    }

    /// A cancellation with a long reason is told in the gateway's words where there is no room for it.
    #[tokio::test]
    async fn a_cancel_without_room_is_told_in_other_words() {
        let (server, mut stdin, _faults, _rest) = agreed(Purse::of(0), Some("2025-06-18"));
        let said = format!(
            "{}\n{{\"method\":\"notifications/cancelled\",\"params\":{{\"requestId\":1,\"reason\":\"{}\"}}}}\n",
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call"}"#,
            "x".repeat(100 << 10)
        );
        stdin.write_all(said.as_bytes()).await.unwrap();
        let patience = Duration::from_secs(20);
        let own =
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
        loop {
            let (io, _) = timeout(patience, server.accept()).await.unwrap().unwrap();
            if request(io).await.ends_with(own) {
                return;
            }
        }
    }

    /// A server that has asked something hears an answer, however little room there is: the client's, or an error in
    /// its place.
    #[tokio::test]
    async fn a_question_is_answered_without_room() {
        let short = r#"{"jsonrpc":"2.0","id":"q","result":{}}"#.to_owned();
        let long = format!(
            r#"{{"jsonrpc":"2.0","id":"q","result":{{"v":"{}"}}}}"#,
            "x".repeat(100 << 10)
        );
        let middling = long.replace(&"x".repeat(100 << 10), &"x".repeat(5 << 10));
        let error = r#"{"jsonrpc":"2.0","id":"q","error":{"code":-32603,"message":"the client's answer found no room, ask again later"}}"#;
        for (room, answer, is_telling, told) in [
            (0, &short, false, &*short),
            (0, &short, true, &*short),
            (0, &middling, true, error),
            (0, &long, false, error),
            (1 << 20, &long, true, &*long),
        ] {
            let (server, mut stdin, _faults, _rest) = silent(Purse::of(room));
            let patience = Duration::from_secs(20);
            if is_telling {
                let note = b"{\"method\":\"notifications/progress\"}\n";
                stdin.write_all(note).await.unwrap();
                let (mut io, _) = timeout(patience, server.accept()).await.unwrap().unwrap();
                stdin.write_all(answer.as_bytes()).await.unwrap();
                stdin.write_all(b"\n").await.unwrap();
                // It is read before the notification is taken.
                for _ in 0..1000 {
                    tokio::task::yield_now().await;
                }
                io.write_all(ACCEPTED).await.unwrap();
            } else {
                stdin.write_all(answer.as_bytes()).await.unwrap();
                stdin.write_all(b"\n").await.unwrap();
            }
            let (io, _) = timeout(patience, server.accept()).await.unwrap().unwrap();
            assert!(request(io).await.ends_with(told), "{room} {is_telling}");
        }
    }

    /// A call whose answer finds no room does not go on at a server of sessions.
    #[tokio::test(start_paused = true)]
    async fn a_call_that_fails_for_room_is_cancelled() {
        let (server, mut stdin, mut faults, _rest) = agreed(Purse::of(0), Some("2025-06-18"));
        let modern =
            r#","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}"#;
        let patience = Duration::from_secs(60);
        for (number, params) in [(1, ""), (2, modern)] {
            let call = format!("{{\"id\":{number},\"method\":\"tools/call\"{params}}}\n");
            stdin.write_all(call.as_bytes()).await.unwrap();
            let (mut io, _) = server.accept().await.unwrap();
            let half = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {}",
                "x".repeat(100 << 10)
            );
            io.write_all(half.as_bytes()).await.unwrap();
            assert_eq!(faults.recv().await, Some((number, Fault::NoRoom)));
            let told = timeout(patience, server.accept()).await;
            assert_eq!(told.is_ok(), params.is_empty());
            if let Ok(told) = told {
                let (io, _) = told.unwrap();
                let own = r#""method":"notifications/cancelled","params":{"requestId":1}}"#;
                assert!(request(io).await.ends_with(own));
            }
        }
    }

    /// One stream of the server's own is listened to, however often a client says that it has begun.
    #[tokio::test]
    async fn the_servers_own_stream_is_opened_once() {
        let (server, mut stdin, _faults, _rest) = silent(Purse::of(1 << 20));
        let patience = Duration::from_secs(20);
        let mut kept = Vec::new();
        let mut heard = async |said: &[u8]| {
            let (mut io, _) = timeout(patience, server.accept()).await.unwrap().unwrap();
            let mut head = Vec::new();
            while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                assert!(io.read_buf(&mut head).await.unwrap() > 0);
            }
            io.write_all(said).await.unwrap();
            kept.push(io);
            head.starts_with(b"GET")
        };
        let events = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
        let none = b"HTTP/1.1 405 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
        let begun = b"{\"method\":\"notifications/initialized\"}\n";
        // One that has none may have one later.
        for stream in [&none[..], events] {
            stdin.write_all(begun).await.unwrap();
            assert!(!heard(ACCEPTED).await && heard(stream).await);
        }
        for _ in 0..3 {
            stdin.write_all(begun).await.unwrap();
            assert!(!heard(ACCEPTED).await);
        }
    }

    /// Answers wait for their room once: many large ones at a time come whole, one after the other.
    #[tokio::test]
    async fn a_large_answer_needs_its_room_once() {
        const ANSWERS: usize = 6;
        let purse = Purse::of(4 << 20);
        let (server, mut peer, _dir) = peer();
        peer.longest = 2 << 20;
        let (mut stdin, input) = duplex(1 << 20);
        let (output, stdout) = duplex(64 << 10);
        let (tell, mut faults) = mpsc::channel(MAX_REQUESTS);
        let talk = Talk::new((peer, None), output, tell, purse.clone());
        let mut work = JoinSet::new();
        work.spawn(talk.run(input));
        for number in 1..=ANSWERS {
            let call = format!("{{\"id\":{number},\"method\":\"tools/call\"}}\n");
            stdin.write_all(call.as_bytes()).await.unwrap();
            let (mut io, _) = server.accept().await.unwrap();
            work.spawn(async move {
                let text = "x".repeat(1 << 20);
                let answer = format!(r#"{{"id":{number},"result":"{text}"}}"#);
                let length = answer.len();
                let said = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{answer}"
                );
                let _ = io.write_all(said.as_bytes()).await;
                std::future::pending::<()>().await;
            });
        }
        // So many have come that there is no room for another.
        until(|| purse.left() < 1 << 20).await;
        let reading = Reading {
            longest: 2 << 20,
            rate: u64::MAX,
            counts: false,
        };
        let mut lines = reading.lines(stdout, Some(purse.clone()));
        let patience = Duration::from_secs(20);
        for _ in 0..ANSWERS {
            tokio::select! {
                line = timeout(patience, lines.next()) => match line.unwrap().unwrap() {
                    Line::Text(text) => assert!(text.len() > 1 << 20),
                    line => panic!("{line:?}"),
                },
                fault = faults.recv() => panic!("{fault:?}"),
            }
        }
        until(|| purse.left() == 4 << 20).await;
    }

    /// Of a call that is cancelled while its answer is handed on nothing is kept, also where nothing is said after it.
    #[tokio::test]
    async fn half_an_answer_of_a_cancelled_call_is_said_to_its_end() {
        let purse = Purse::of(4 << 20);
        let (server, mut stdin, _faults, mut rest) = silent(purse.clone());
        let call = b"{\"id\":1,\"method\":\"tools/call\"}\n";
        stdin.write_all(call).await.unwrap();
        let (mut io, _) = server.accept().await.unwrap();
        let answer = format!(r#"{{"id":1,"result":"{}"}}"#, "x".repeat(500 << 10));
        let length = answer.len();
        let said = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{answer}"
        );
        io.write_all(said.as_bytes()).await.unwrap();
        let patience = Duration::from_secs(20);
        let mut heard = vec![0; 1 << 10];
        let begins = rest.1.read_exact(&mut heard);
        timeout(patience, begins).await.unwrap().unwrap();
        let cancel = b"{\"method\":\"notifications/cancelled\",\"params\":{\"requestId\":1}}\n";
        stdin.write_all(cancel).await.unwrap();
        let mut session = tokio::io::BufReader::new(&mut rest.1);
        let ends = session.read_until(b'\n', &mut heard);
        timeout(patience, ends).await.unwrap().unwrap();
        assert_eq!(heard, format!("{answer}\n").as_bytes());
        until(|| purse.left() == 4 << 20).await;
    }

    /// The same where calls are cancelled together, of which one is in the middle of its answer and the other waits for
    /// its turn with its own, or goes on with what the first has begun.
    #[tokio::test]
    async fn half_answers_of_calls_that_end_together_are_said_to_their_end() {
        const LONG: usize = 500 << 10;
        let answer = |number| format!(r#"{{"id":{number},"result":"{}"}}"#, "x".repeat(LONG));
        let cancel = |number| {
            format!(
                "{{\"method\":\"notifications/cancelled\",\"params\":{{\"requestId\":{number}}}}}\n"
            )
        };
        let patience = Duration::from_secs(20);
        let settles = async || {
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
        };
        for second in ["together", "later", "while it is said"] {
            let purse = Purse::of(4 << 20);
            let (server, mut stdin, _faults, mut rest) = silent(purse.clone());
            let mut kept = Vec::new();
            for number in 1..=2 {
                let call = format!("{{\"id\":{number},\"method\":\"tools/call\"}}\n");
                stdin.write_all(call.as_bytes()).await.unwrap();
                let (mut io, _) = server.accept().await.unwrap();
                let answer = answer(number);
                let length = answer.len();
                let said = format!(
                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{answer}"
                );
                io.write_all(said.as_bytes()).await.unwrap();
                // The first is being said, which takes its memory twice; the second comes behind it.
                until(|| purse.left() <= (4 << 20) - (1 + number) * LONG).await;
                kept.push(io);
            }
            let mut session = tokio::io::BufReader::new(&mut rest.1);
            let mut reads = async |expected: &str| {
                let mut heard = vec![0; expected.len()];
                let read = session.read_exact(&mut heard);
                timeout(patience, read).await.expect(second).unwrap();
                assert!(heard == expected.as_bytes(), "{second}");
            };
            let (first, begun) = (answer(1) + "\n", answer(2) + "\n");
            reads(&first[..1 << 10]).await;
            let mut cancels = cancel(1);
            if second == "together" {
                cancels += &cancel(2);
            }
            stdin.write_all(cancels.as_bytes()).await.unwrap();
            settles().await;
            if second == "later" {
                stdin.write_all(cancel(2).as_bytes()).await.unwrap();
                settles().await;
            }
            reads(&first[1 << 10..]).await;
            if second == "while it is said" {
                reads(&begun[..1 << 10]).await;
                stdin.write_all(cancel(2).as_bytes()).await.unwrap();
                settles().await;
                reads(&begun[1 << 10..]).await;
            }
            until(|| purse.left() == 4 << 20).await;
        }
    }

    /// A cancellation needs no room, also while something else is told.
    #[tokio::test]
    async fn a_cancel_waits_for_its_turn_without_room() {
        let (server, mut stdin, _faults, _rest) = agreed(Purse::of(0), Some("2025-06-18"));
        let patience = Duration::from_secs(20);
        let mut all = Vec::new();
        for said in [
            r#"{"id":1,"method":"tools/call"}"#,
            r#"{"method":"notifications/progress"}"#,
        ] {
            stdin.write_all(said.as_bytes()).await.unwrap();
            stdin.write_all(b"\n").await.unwrap();
            all.push(timeout(patience, server.accept()).await.unwrap().unwrap());
        }
        let cancel = r#"{"method":"notifications/cancelled","params":{"requestId":1}}"#;
        stdin.write_all(cancel.as_bytes()).await.unwrap();
        stdin.write_all(b"\n").await.unwrap();
        // The call has ended: it was read.
        let mut gone = tokio::io::sink();
        let ended = tokio::io::copy(&mut all[0].0, &mut gone);
        timeout(patience, ended).await.unwrap().unwrap();
        all[1].0.write_all(ACCEPTED).await.unwrap();
        let (io, _) = timeout(patience, server.accept()).await.unwrap().unwrap();
        assert!(request(io).await.contains("notifications/cancelled"));
    }

    /// probe-69: what servers have begun to answer is no more memory than there is for it, however they answer: one
    /// answer that has no room fails, and small ones come.
    #[tokio::test(start_paused = true)]
    async fn half_answers_share_a_bound() {
        let json = "content-type: application/json\r\n";
        for (head, before) in [
            (format!("{json}content-length: 300000"), ""),
            (format!("{json}transfer-encoding: chunked"), "493e0\r\n"),
            ("content-type: text/event-stream".to_owned(), "data: "),
            (
                "content-type: text/event-stream".to_owned(),
                "data: {}\ndata: ",
            ),
        ] {
            let purse = Purse::of(400 << 10);
            let (server, mut stdin, mut faults, mut rest) = silent(purse.clone());
            let mut answers = JoinSet::new();
            let half = format!(
                "HTTP/1.1 200 OK\r\n{head}\r\n\r\n{before}{}",
                "x".repeat(299_000)
            );
            for number in 1..=3 {
                let call = format!("{{\"id\":{number},\"method\":\"tools/call\"}}\n");
                stdin.write_all(call.as_bytes()).await.unwrap();
                let (mut io, _) = server.accept().await.unwrap();
                let said = if number == 3 {
                    let answer = r#"{"id":3,"result":{}}"#;
                    let length = answer.len();
                    format!("HTTP/1.1 200 OK\r\n{json}content-length: {length}\r\n\r\n{answer}")
                } else {
                    half.clone()
                };
                answers.spawn(async move {
                    let _ = io.write_all(said.as_bytes()).await;
                    std::future::pending::<()>().await;
                });
                match number {
                    1 => {
                        until(|| purse.left() < 100 << 10).await;
                    }
                    2 => assert_eq!(faults.recv().await, Some((2, Fault::NoRoom)), "{head}"),
                    _ => {
                        let mut line = String::new();
                        let mut session = tokio::io::BufReader::new(&mut rest.1);
                        session.read_line(&mut line).await.unwrap();
                        assert_eq!(line, "{\"id\":3,\"result\":{}}\n");
                    }
                }
            }
            let cancel = r#"{"method":"notifications/cancelled","params":{"requestId":1}}"#;
            stdin.write_all(cancel.as_bytes()).await.unwrap();
            stdin.write_all(b"\n").await.unwrap();
            until(|| purse.left() == 400 << 10).await;
        }
    }

    /// What a server says to a message that has no answer.
    const ACCEPTED: &[u8] =
        b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

    /// Lets others go on until something is so.
    async fn until(is_so: impl Fn() -> bool) {
        for _ in 0..1_000_000 {
            if is_so() {
                return;
            }
            tokio::task::yield_now().await;
        }
        panic!("it is not so");
    }

    /// What comes as a request, to the end of its body or of its connection.
    async fn request(mut io: UnixStream) -> String {
        let mut heard = Vec::with_capacity(64 << 10);
        while !heard.ends_with(b"}") && io.read_buf(&mut heard).await.unwrap() > 0 {}
        String::from_utf8(heard).unwrap()
    }
}

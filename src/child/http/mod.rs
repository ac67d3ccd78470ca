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
mod wire;

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method};
use tokio::{
    io::DuplexStream,
    sync::{Notify, Semaphore, mpsc},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tracing::debug;

use crate::{
    aside::aside,
    child::{
        Showing,
        stdio::{Line, Lines},
    },
    fetch::{Endpoint, Io},
};

pub(super) use entrance::Entrance;
use head::{Asks, Kind, Outgoing};
pub(super) use mirror::Mirror;
use output::Output;
use wire::Wire;

/// Why a request has no answer of the server's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// There is no connection to the server.
    Unreachable,
    /// The connection ended before the answer; whether the request took effect is not known.
    Lost,
    /// It answered with a status that is no answer to a request.
    Refused,
    /// What it answered is no MCP, or too much.
    BadAnswer,
    /// It knows nothing of its own session any more.
    Gone,
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
    known: Mutex<Known>,
    idle: Mutex<Vec<Wire>>,
    /// Requests at once; the others wait.
    turns: Semaphore,
    /// Those of them that stay open.
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
    pub(super) async fn new(
        peer: Peer,
        first: Option<Box<dyn Io>>,
        output: DuplexStream,
        faults: mpsc::Sender<(u64, Fault)>,
    ) -> Arc<Self> {
        let wire = match first {
            Some(io) => Wire::over(io).await.ok(),
            None => None,
        };
        Arc::new(Self {
            peer,
            known: Mutex::default(),
            idle: Mutex::new(wire.into_iter().collect()),
            turns: Semaphore::new(MAX_REQUESTS),
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
        let mut running = JoinSet::new();
        let mut waiting: HashMap<u64, AbortHandle> = HashMap::new();
        // What has no answer keeps its order, and holds up nothing that has one.
        let (notes, mut noted) = mpsc::channel(MAX_NOTES);
        let talk = self.clone();
        running.spawn(async move {
            while let Some(note) = noted.recv().await {
                talk.tell(note).await;
            }
        });
        let mut held = Held::default();
        loop {
            while running.len() < MAX_RUNNING
                && let Some(message) = held.first()
            {
                self.pass(message, &notes, (&mut running, &mut waiting))
                    .await;
            }
            tokio::select! {
                line = lines.next(), if held.has_room() => {
                    let Ok(Line::Text(line)) = line else { break };
                    let mirror = self.peer.mirror.clone();
                    let read = aside(line.len(), move || Outgoing::read(line, &mirror));
                    let Some(message) = read.await else { continue };
                    match message.kind {
                        // What a server does not answer must not keep its own end from being heard.
                        Kind::Cancelled(number) if held.forget(number) => {}
                        Kind::Cancelled(_) => {
                            self.pass(message, &notes, (&mut running, &mut waiting)).await;
                        }
                        _ => held.last(message),
                    }
                }
                Some(_) = running.join_next() => {
                    waiting.retain(|_, request| !request.is_finished());
                }
                () = self.gone.notified() => return,
            }
        }
        running.abort_all();
        while running.join_next().await.is_some() {}
        self.leave().await;
    }

    async fn pass(
        self: &Arc<Self>,
        message: Outgoing,
        notes: &mpsc::Sender<Outgoing>,
        (running, waiting): (&mut JoinSet<()>, &mut HashMap<u64, AbortHandle>),
    ) {
        match message.kind {
            Kind::Request(number, asks) => {
                let talk = self.clone();
                let request =
                    running.spawn(async move { talk.request(number, asks, message).await });
                waiting.insert(number, request);
            }
            Kind::Cancelled(number) => {
                // To close the stream is the whole cancel in the stateless version (mcp-T7).
                if !message.is_modern() && self.lock().version.is_some() {
                    let _ = notes.send(message).await;
                }
                if let Some(request) = waiting.remove(&number) {
                    request.abort();
                }
            }
            Kind::Initialized => {
                // Before anything else: some servers answer nothing earlier.
                self.tell(message).await;
                let talk = self.clone();
                running.spawn(async move { talk.listen().await });
            }
            // Its task ends with this one, never before.
            Kind::Other => drop(notes.send(message).await),
        }
    }

    /// Sends what has no answer.
    async fn tell(&self, message: Outgoing) {
        let told = async {
            let mut answer = self.post(message).await?;
            self.check_session(answer.head.status)?;
            if answer.head.status.is_success() && answer.whole(self.peer.longest).await.is_ok() {
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
        let Ok(_turn) = self.turns.acquire().await else {
            return;
        };
        if let Err(fault) = self.ask(number, asks, message).await {
            // The end of its process says more than the end of its connection.
            if fault == Fault::Lost && matches!(self.peer.way, Way::Inside(_)) {
                sleep(LAST_WORDS).await;
            }
            let _ = self.faults.send((number, fault)).await;
            if fault == Fault::Gone {
                self.gone.notify_one();
            }
        }
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

/// What waits for a task, in order.
#[derive(Default)]
struct Held {
    messages: VecDeque<Outgoing>,
    bytes: usize,
}

impl Held {
    fn has_room(&self) -> bool {
        self.messages.len() < MAX_HELD && self.bytes < MAX_HELD_BYTES
    }

    fn last(&mut self, message: Outgoing) {
        self.bytes += message.size();
        self.messages.push_back(message);
    }

    fn first(&mut self) -> Option<Outgoing> {
        let message = self.messages.pop_front()?;
        self.bytes -= message.size();
        Some(message)
    }

    /// Drops the request of that number; `false` if it does not wait here.
    fn forget(&mut self, number: u64) -> bool {
        let is_it = |held: &Outgoing| matches!(held.kind, Kind::Request(it, _) if it == number);
        let at = self.messages.iter().position(is_it);
        let gone = at.and_then(|at| self.messages.remove(at));
        self.bytes -= gone.as_ref().map_or(0, |gone| gone.size());
        gone.is_some()
    }
}

const SESSION_ID: &str = "mcp-session-id";
/// Requests at once towards one server. A child in the sandbox has a few connections more:
/// for its own stream, for notifications, and those that wait.
const MAX_REQUESTS: usize = 32;
/// Of those that may stay open, subscriptions; a further one is refused.
const MAX_OPEN: usize = MAX_REQUESTS / 2;
/// Tasks of one conversation: requests that wait included.
const MAX_RUNNING: usize = 128;
/// Messages that wait until there are fewer, and their bytes; then no more is read.
const MAX_HELD: usize = 1024;
const MAX_HELD_BYTES: usize = 8 << 20;
/// Messages without an answer that wait for their turn.
const MAX_NOTES: usize = 64;
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
        io::{AsyncWriteExt, duplex},
        net::UnixListener,
        sync::oneshot,
    };

    use super::*;
    use crate::config::InsideDoor;

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

    /// A server that answers nothing, and a conversation with it.
    async fn silent() -> (
        UnixListener,
        DuplexStream,
        mpsc::Receiver<(u64, Fault)>,
        (TempDir, DuplexStream, JoinSet<()>),
    ) {
        let (server, peer, dir) = peer();
        let (stdin, input) = duplex(1 << 20);
        let (output, stdout) = duplex(1 << 10);
        let (tell, faults) = mpsc::channel(MAX_REQUESTS);
        let talk = Talk::new(peer, None, output, tell).await;
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
            let talk = Talk::new(peer, None, output, tell).await;
            let many = "0,".repeat(1 << 20);
            let (is_kept, gone) = oneshot::channel();
            let text = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"x","arguments":[{many}0]{meta}}}}}"#
            );
            let text = Bytes::from_owner(Told(text, is_kept));
            let message = Outgoing::read(text, &talk.peer.mirror).unwrap();
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
        }
    }

    /// Many subscriptions leave turns for calls: whose they are, a shared server's other users would wait for ever.
    #[tokio::test]
    async fn subscriptions_keep_no_call_waiting() {
        let (server, mut stdin, mut faults, _rest) = silent().await;
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
        let (server, mut stdin, _faults, _rest) = silent().await;
        let mut said = String::new();
        for number in 1..=MAX_RUNNING * 2 {
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
        let (server, mut stdin, _faults, _rest) = silent().await;
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
        let talk = Talk::new(peer, None, output, tell).await;

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
}

//! MCP over HTTP, where the gateway is the client (Streamable HTTP).
//!
//! Gives the session what a child's pipes would: it takes messages as lines and
//! gives back lines. What of a conversation is HTTP alone stays here: headers,
//! the server's session id, streams that are taken up again, the end. Nothing
//! is redirected, nothing is sent twice, and nothing that a client has shown is
//! passed on. Used by `source`.

mod events;
mod head;
mod sockets;
mod wire;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use tokio::{
    io::{AsyncWriteExt, DuplexStream},
    sync::{Notify, Semaphore, mpsc},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use crate::{
    child::stdio::{self, Line, Lines, MAX_LINE},
    fetch::{Endpoint, Io},
    json::{Kind as Json, Value},
    mcp::Message,
};

use events::Reader;
use head::{Asks, Kind, Outgoing};
pub(super) use sockets::Sockets;
use wire::{Answer, Wire};

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
    pub(super) shown: Box<dyn Fn() -> Option<HeaderValue> + Send + Sync>,
}

pub(super) enum Way {
    Inside(Arc<Sockets>),
    Remote(Arc<Endpoint>),
}

/// One conversation.
pub(super) struct Talk {
    peer: Peer,
    known: Mutex<Known>,
    idle: Mutex<Vec<Wire>>,
    /// Requests at once; the others wait.
    turns: Semaphore,
    output: tokio::sync::Mutex<DuplexStream>,
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

/// From where on a stream is taken up again, and when.
struct Place {
    last: Option<HeaderValue>,
    retry: Duration,
}

/// How far a stream has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Heard {
    /// What was asked has its answer.
    Answer,
    /// Messages, then the end.
    Some,
    Nothing,
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
            output: tokio::sync::Mutex::new(output),
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
        loop {
            tokio::select! {
                line = lines.next(), if running.len() < MAX_RUNNING => {
                    let Ok(Line::Text(line)) = line else { break };
                    if let Some(message) = Outgoing::read(line) {
                        self.pass(message, &mut running, &mut waiting).await;
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
        running: &mut JoinSet<()>,
        waiting: &mut HashMap<u64, AbortHandle>,
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
                    self.tell(&message).await;
                }
                if let Some(request) = waiting.remove(&number) {
                    request.abort();
                }
            }
            Kind::Initialized => {
                self.tell(&message).await;
                let talk = self.clone();
                running.spawn(async move { talk.listen().await });
            }
            Kind::Other => self.tell(&message).await,
        }
    }

    /// Sends what has no answer, before anything that comes after it.
    async fn tell(&self, message: &Outgoing) {
        let told = async {
            let mut answer = self.post(message).await?;
            self.check_session(answer.head.status)?;
            if answer.head.status.is_success() && answer.whole(MAX_LINE).await.is_ok() {
                self.keep(answer).await;
            } else {
                debug!(status = %answer.head.status, "the server does not take a notification");
            }
            Ok::<(), Fault>(())
        };
        match timeout(TELL, told).await {
            Ok(Ok(())) => {}
            Ok(Err(fault)) => debug!(?fault, "a notification did not reach the server"),
            Err(_) => debug!("the server did not take a notification in time"),
        }
    }

    async fn request(&self, number: u64, asks: Asks, message: Outgoing) {
        let Ok(_turn) = self.turns.acquire().await else {
            return;
        };
        if let Err(fault) = self.ask(number, asks, &message).await {
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

    async fn ask(&self, number: u64, asks: Asks, message: &Outgoing) -> Result<(), Fault> {
        let mut answer = self.post(message).await?;
        let status = answer.head.status;
        if status != StatusCode::OK {
            return self.refused(number, asks, answer).await;
        }
        if asks == Asks::Initialize {
            let session = answer.head.headers.get(SESSION_ID).cloned();
            self.lock().session = session.filter(|session| session.to_str().is_ok());
        }
        match media_type(&answer.head.headers) {
            Some(Media::Json) => {
                let text = answer.whole(MAX_LINE).await.map_err(|_| Fault::Lost)?;
                let text = text.ok_or(Fault::BadAnswer)?;
                let answers = self.learn(number, asks, &text);
                self.hear(&text).await;
                self.keep(answer).await;
                if answers {
                    Ok(())
                } else {
                    Err(Fault::BadAnswer)
                }
            }
            Some(Media::Events) => self.follow(number, asks, answer).await,
            None => Err(Fault::BadAnswer),
        }
    }

    /// Reads a request's stream to the answer, coming back to it where the server allows.
    async fn follow(&self, number: u64, asks: Asks, answer: Answer) -> Result<(), Fault> {
        let mut place = Place::new();
        let mut answer = answer;
        let mut vain = 0;
        loop {
            match self.read(answer, Some((number, asks)), &mut place).await? {
                Heard::Answer => return Ok(()),
                Heard::Some => vain = 0,
                Heard::Nothing => vain += 1,
            }
            if place.last.is_none() || vain > MAX_VAIN {
                return Err(Fault::Lost);
            }
            sleep(place.retry).await;
            answer = self.get(place.last.clone()).await?;
            self.check_session(answer.head.status)?;
            let events = media_type(&answer.head.headers) == Some(Media::Events);
            if answer.head.status != StatusCode::OK || !events {
                return Err(Fault::Lost);
            }
        }
    }

    /// The server's own stream: read for as long as there is one.
    async fn listen(&self) {
        let mut place = Place::new();
        let mut pause = place.retry;
        loop {
            let opened = self.get(place.last.clone()).await;
            match opened {
                Ok(answer) if answer.head.status == StatusCode::OK => {
                    if media_type(&answer.head.headers) != Some(Media::Events) {
                        return;
                    }
                    match self.read(answer, None, &mut place).await {
                        Ok(Heard::Nothing) => pause = (pause * 2).min(MAX_PAUSE),
                        Ok(_) => pause = place.retry,
                        Err(_) => return,
                    }
                }
                Ok(answer) => {
                    if self.check_session(answer.head.status).is_err() {
                        self.gone.notify_one();
                    }
                    // It has none: most servers do not (mcp-L1).
                    if !answer.head.status.is_server_error() {
                        return;
                    }
                    pause = (pause * 2).min(MAX_PAUSE);
                }
                Err(_) => pause = (pause * 2).min(MAX_PAUSE),
            }
            sleep(pause.max(place.retry)).await;
        }
    }

    /// Reads one stream of events to its end, or a little beyond the answer.
    async fn read(
        &self,
        mut answer: Answer,
        until: Option<(u64, Asks)>,
        place: &mut Place,
    ) -> Result<Heard, Fault> {
        let mut reader = Reader::new(MAX_LINE);
        let mut heard = Heard::Nothing;
        loop {
            let chunk = if heard == Heard::Answer {
                // What may still come is little, and not worth waiting for.
                match timeout(REST, answer.chunk()).await {
                    Ok(chunk) => chunk,
                    Err(_) => return Ok(heard),
                }
            } else {
                answer.chunk().await
            };
            match chunk {
                Ok(Some(chunk)) => reader.push(&chunk),
                Ok(None) => {
                    place.update(&reader);
                    self.keep(answer).await;
                    return Ok(heard);
                }
                Err(error) => {
                    debug!(%error, "a stream of the server's was cut off");
                    place.update(&reader);
                    return Ok(heard);
                }
            }
            while let Some(text) = reader.next().map_err(|_| Fault::BadAnswer)? {
                if heard != Heard::Answer {
                    let answers =
                        until.is_some_and(|(number, asks)| self.learn(number, asks, &text));
                    heard = if answers { Heard::Answer } else { Heard::Some };
                }
                self.hear(&text).await;
            }
        }
    }

    /// An answer with another status than 200: an error of the protocol's, or no answer at all.
    async fn refused(&self, number: u64, asks: Asks, mut answer: Answer) -> Result<(), Fault> {
        let status = answer.head.status;
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            warn!(%status, "the server does not accept what it is shown");
            return Err(Fault::Refused);
        }
        if status.is_client_error() && media_type(&answer.head.headers) == Some(Media::Json) {
            let text = answer.whole(MAX_LINE).await.map_err(|_| Fault::Lost)?;
            let message = text.and_then(|text| Message::parse(text).ok());
            let error = message
                .as_ref()
                .and_then(|message| message.root().get("error"));
            // A server that knows no such session says so with an error, too.
            self.check_session(status)?;
            if let Some(error) = error.filter(|error| error.kind() == Json::Object) {
                let id = number.to_string();
                let error = [
                    br#"{"jsonrpc":"2.0","id":"#,
                    id.as_bytes(),
                    br#","error":"#,
                    error.raw(),
                    b"}",
                ];
                self.hear(&error.concat()).await;
                self.keep(answer).await;
                return Ok(());
            }
        }
        self.check_session(status)?;
        if asks == Asks::Discover && status.is_client_error() {
            // Whatever a server says to that, it is a legacy one (mcp-T27).
            let error = format!(
                r#"{{"jsonrpc":"2.0","id":{number},"error":{{"code":-32601,"message":"{status}"}}}}"#
            );
            self.hear(error.as_bytes()).await;
            return Ok(());
        }
        debug!(%status, "the server refuses a request");
        Err(Fault::Refused)
    }

    /// 404 means that a session has ended, where there is one (mcp-L7).
    fn check_session(&self, status: StatusCode) -> Result<(), Fault> {
        if status == StatusCode::NOT_FOUND && self.lock().session.is_some() {
            return Err(Fault::Gone);
        }
        Ok(())
    }

    /// Whether a message is the answer; what `initialize` agreed on is remembered.
    fn learn(&self, number: u64, asks: Asks, text: &Bytes) -> bool {
        let Ok(message) = Message::parse(text.clone()) else {
            return false;
        };
        let root = message.root();
        let id = root.get("id").and_then(Value::as_number);
        if root.get("method").is_some() || id != Some(number.to_string().as_str()) {
            return false;
        }
        if asks == Asks::Initialize {
            let version = root
                .get("result")
                .and_then(|result| result.get("protocolVersion"));
            let version = version.and_then(Value::as_str);
            self.lock().version = version.and_then(|version| HeaderValue::from_str(&version).ok());
        }
        true
    }

    /// Gives a message to the session, as a line; it is checked there like any child's.
    async fn hear(&self, text: &[u8]) {
        let line = stdio::line(text.to_vec());
        // Nobody reads any more: the session is ending, and this with it.
        let _ = self.output.lock().await.write_all(&line).await;
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

    async fn post(&self, message: &Outgoing) -> Result<Answer, Fault> {
        let request = if message.is_modern() {
            message.headers(self.bare_head(Method::POST))
        } else {
            self.request_head(Method::POST)
        };
        let request = request
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, text/event-stream")
            .body(message.bytes.clone().into())
            .map_err(|_| Fault::BadAnswer)?;
        self.send(request).await
    }

    async fn get(&self, last: Option<HeaderValue>) -> Result<Answer, Fault> {
        let mut request = self
            .request_head(Method::GET)
            .header(header::ACCEPT, "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let request = request.body(Bytes::new().into());
        self.send(request.map_err(|_| Fault::BadAnswer)?).await
    }

    /// What every request of a session says.
    fn request_head(&self, method: Method) -> http::request::Builder {
        let mut request = self.bare_head(method);
        let known = self.lock();
        if let Some(session) = &known.session {
            request = request.header(SESSION_ID, session);
        }
        if let Some(version) = &known.version {
            request = request.header("mcp-protocol-version", version);
        }
        request
    }

    /// What every request says.
    fn bare_head(&self, method: Method) -> http::request::Builder {
        let request = Request::builder()
            .method(method)
            .uri(&self.peer.path)
            .header(header::HOST, &self.peer.authority)
            // Nothing to unpack is nothing that can explode.
            .header(header::ACCEPT_ENCODING, "identity")
            .header(
                header::USER_AGENT,
                concat!("thv/", env!("CARGO_PKG_VERSION")),
            );
        match (self.peer.shown)() {
            Some(shown) => request.header(header::AUTHORIZATION, shown),
            None => request,
        }
    }

    /// Sends a request once: again only where not a byte of it has left.
    async fn send(&self, mut request: Request<wire::Body>) -> Result<Answer, Fault> {
        while let Some(wire) = self.take_idle() {
            match wire.ask(request).await {
                Ok(answer) => return Ok(answer),
                Err(refused) => match refused.unsent {
                    Some(unsent) => request = *unsent,
                    None => {
                        debug!(error = %refused.error, "the connection to the server was lost");
                        return Err(Fault::Lost);
                    }
                },
            }
        }
        let io = self.connect().await.ok_or(Fault::Unreachable)?;
        let wire = Wire::over(io).await.map_err(|_| Fault::Unreachable)?;
        wire.ask(request).await.map_err(|refused| {
            debug!(error = %refused.error, "the connection to the server was lost");
            Fault::Lost
        })
    }

    async fn connect(&self) -> Option<Box<dyn Io>> {
        match &self.peer.way {
            Way::Inside(sockets) => match sockets.connect().await {
                Ok(connected) => Some(Box::new(connected)),
                Err(error) => {
                    debug!(%error, "the server in the sandbox takes no connection");
                    None
                }
            },
            Way::Remote(endpoint) => match endpoint.connect().await {
                Ok(io) => Some(io),
                Err(error) => {
                    warn!(%error, "the server cannot be reached");
                    None
                }
            },
        }
    }

    fn take_idle(&self) -> Option<Wire> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|wire| wire.idle_since.elapsed() < IDLE);
        idle.pop()
    }

    /// Keeps the connection of an answer that was read to its end.
    async fn keep(&self, answer: Answer) {
        let Some(wire) = answer.done().await else {
            return;
        };
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push(wire);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    fn new() -> Self {
        Self {
            last: None,
            retry: RETRY,
        }
    }

    fn update(&mut self, reader: &Reader) {
        if let Some(last) = &reader.last {
            self.last = HeaderValue::from_str(last)
                .ok()
                .filter(|last| !last.is_empty());
        }
        if let Some(retry) = reader.retry {
            self.retry = retry.clamp(MIN_RETRY, MAX_PAUSE);
        }
    }
}

/// The two forms that an answer may have, not encoded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Media {
    Json,
    Events,
}

fn media_type(headers: &HeaderMap) -> Option<Media> {
    let encoded = headers.get_all(header::CONTENT_ENCODING).iter();
    if encoded
        .into_iter()
        .any(|coding| coding.as_bytes() != b"identity")
    {
        return None;
    }
    let mut kinds = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(kind), None) = (kinds.next(), kinds.next()) else {
        return None;
    };
    let kind = kind.as_bytes().split(|byte| *byte == b';').next()?;
    let is = |name: &[u8]| kind.trim_ascii().eq_ignore_ascii_case(name);
    if is(b"application/json") {
        Some(Media::Json)
    } else {
        is(b"text/event-stream").then_some(Media::Events)
    }
}

const SESSION_ID: &str = "mcp-session-id";
/// Requests at once towards one server. A child in the sandbox has a few connections more:
/// for its own stream, for notifications, and those that wait.
const MAX_REQUESTS: usize = 32;
/// Tasks of one conversation: requests that wait included.
const MAX_RUNNING: usize = 128;
/// Connections that wait for the next request.
const MAX_IDLE: usize = 4;
/// How long; shorter than most servers' patience, so that they do not close one while it is used.
const IDLE: Duration = Duration::from_secs(3);
/// How long a server may take over a message that has no answer.
const TELL: Duration = Duration::from_secs(10);
/// How long a stream is read after the answer that it was for.
const REST: Duration = Duration::from_millis(500);
/// When to come back to a stream, if its server does not say; at once is too soon, ever.
const RETRY: Duration = Duration::from_secs(1);
const MIN_RETRY: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// How often a request's stream is taken up again without anything on it.
const MAX_VAIN: u32 = 20;
/// How long the end of a process may take to be known, after that of its connections.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long the server may take to hear of the end.
const GOODBYE: Duration = Duration::from_secs(1);

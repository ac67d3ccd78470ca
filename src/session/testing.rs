//! A session whose child is a channel, for the tests of this room.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::timeout;
use tracing::{
    Subscriber,
    subscriber::{DefaultGuard, set_default},
};
use tracing_subscriber::{
    Layer, Registry,
    layer::{self, SubscriberExt as _},
};

use super::{
    Event, Exchange, Seal, SendError, Session,
    bridge::Bridge,
    load::Slots,
    outbox::{OutboxReader, outbox},
    pump,
    room::Rooms,
};
use crate::{
    audit::{Audit, RequestId},
    auth::Identity,
    authz::Engine,
    config::{Authz, ServerName},
    mcp::{
        Call, Era, Message, Shape,
        bridge::LegacyServer,
        reverse::{Discovered, ModernServer},
    },
    time::Clock,
};

/// A session of Alice's, and what its child is told.
pub(super) fn session(era: Era) -> (Arc<Session>, OutboxReader) {
    let alice = Identity::example("https://a", "alice");
    session_of(alice, era, &Rooms::new(1))
}

/// A session of theirs, with its share of that memory.
pub(super) fn session_of(owner: Identity, era: Era, rooms: &Rooms) -> (Arc<Session>, OutboxReader) {
    session_under(&Authz::Authenticated, owner, era, rooms)
}

/// A session of Alice's whose calls have these places.
pub(super) fn session_with(era: Era, calls: Slots) -> (Arc<Session>, OutboxReader) {
    let alice = Identity::example("https://a", "alice");
    session_of_all(&Authz::Authenticated, alice, era, (calls, &Rooms::new(1)))
}

/// The same, where that decides what they may do and hear.
pub(super) fn session_under(
    authz: &Authz,
    owner: Identity,
    era: Era,
    rooms: &Rooms,
) -> (Arc<Session>, OutboxReader) {
    session_of_all(authz, owner, era, (Slots::new(64, 64), rooms))
}

fn session_of_all(
    authz: &Authz,
    owner: Identity,
    era: Era,
    (calls, rooms): (Slots, &Rooms),
) -> (Arc<Session>, OutboxReader) {
    let server = ServerName::parse("it").unwrap();
    let (audit, _) = Audit::memory(&server);
    let engine = Engine::build(authz, &server).unwrap();
    let (stdin, lines) = outbox(64);
    let session = Session::new(
        "0123456789abcdef0123456789abcdef".to_owned(),
        Arc::new(owner),
        audit,
        (Duration::from_secs(60), calls, rooms),
        era,
        stdin,
        (Arc::new(Seal::fleeting(Clock::new(|| 0))), Arc::new(engine)),
    );
    (session, lines)
}

/// How often something was logged.
#[derive(Clone, Default)]
pub(super) struct Complaints(Arc<AtomicUsize>);

impl Complaints {
    /// Counts what is logged in this thread from now on.
    pub(super) fn counted(&self) -> DefaultGuard {
        set_default(Registry::default().with(self.clone()))
    }

    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl<S: Subscriber> Layer<S> for Complaints {
    fn on_event(&self, _: &tracing::Event<'_>, _: layer::Context<'_, S>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// What will answer this request of Alice's, of the session's era.
pub(super) fn asked(session: &Arc<Session>, request: &str) -> Exchange {
    tried(session, request).unwrap()
}

/// The same, or why nothing will.
pub(super) fn tried(session: &Arc<Session>, request: &str) -> Result<Exchange, SendError> {
    tried_by("alice", session, request)
}

/// The same for a request of somebody's.
pub(super) fn tried_by(
    who: &str,
    session: &Arc<Session>,
    request: &str,
) -> Result<Exchange, SendError> {
    let is_modern = session.era == Era::Modern;
    let call = Call::read(request.to_owned().into(), is_modern).unwrap();
    let id = call.id().unwrap().clone();
    let identity = Identity::example("https://a", who);
    let mut owed = session.audit.owes(RequestId::random());
    session.request(&call, &identity, id, &mut owed)
}

/// Its owner cancels the request of that id, which is JSON.
pub(super) fn cancels(session: &Arc<Session>, id: &str) {
    let cancel = format!(
        r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{id}}}}}"#
    );
    let cancel = Call::read(cancel.into(), false).unwrap();
    let permit = session.engine.decide(session.owner(), cancel).unwrap();
    let mut owed = session.audit.owes(RequestId::random());
    let told = session.send(permit, session.owner(), &mut owed);
    assert!(told.is_ok());
}

/// What comes of this response of a legacy client's.
pub(super) fn responds(session: &Session, response: &str) -> Result<(), SendError> {
    let call = Call::read(response.to_owned().into(), false).unwrap();
    let Shape::Response(id) = call.shape() else {
        panic!("it is a response");
    };
    session.admits(&call)?;
    session.respond(&call, id)
}

/// The child says that.
#[track_caller]
pub(super) fn say(session: &Session, line: impl Into<Bytes>) {
    assert!(pump::take(session, line.into()));
}

/// What was said to the child by now.
pub(super) fn said(lines: &mut OutboxReader) -> Vec<String> {
    let lines = std::iter::from_fn(|| lines.try_recv());
    lines
        .map(|line| String::from_utf8(line.to_vec()).unwrap())
        .collect()
}

/// The next event, which is there to be read.
pub(super) async fn now(exchange: &mut Exchange) -> Option<Event> {
    let next = timeout(Duration::from_secs(1), exchange.next());
    next.await.expect("there is nothing to be read")
}

/// The events that are there to be read.
pub(super) fn by_now(exchange: &mut Exchange) -> Vec<Event> {
    let mut context = Context::from_waker(Waker::noop());
    let mut events = Vec::new();
    while let Poll::Ready(Some(event)) = exchange.poll_next(&mut context) {
        events.push(event);
    }
    events
}

/// What a message or an answer says.
#[track_caller]
pub(super) fn text(event: Option<Event>) -> String {
    match event {
        Some(Event::Message(text) | Event::Answer(text)) => {
            String::from_utf8(text.to_vec()).unwrap()
        }
        other => panic!("{other:?}"),
    }
}

/// The same, before a server of the legacy era that has said these capabilities.
pub(super) fn bridged(capabilities: &str) -> (Arc<Session>, OutboxReader) {
    bridged_in(capabilities, &Rooms::new(1))
}

/// The same, with its share of that memory.
pub(super) fn bridged_in(capabilities: &str, rooms: &Rooms) -> (Arc<Session>, OutboxReader) {
    let alice = Identity::example("https://a", "alice");
    let (session, lines) = session_of(alice, Era::Modern, rooms);
    let said = format!(r#"{{"id":1,"result":{{"capabilities":{capabilities}}}}}"#);
    let said = Message::parse(said.into()).unwrap();
    assert!(session.bridge_by(Bridge::ToLegacy(LegacyServer::read(&said).unwrap())));
    (session, lines)
}

/// A session of a legacy client before a server of the modern era that has said these capabilities.
pub(super) fn reversed(capabilities: &str) -> (Arc<Session>, OutboxReader) {
    reversed_in(capabilities, &Rooms::new(1))
}

/// The same, with its share of that memory.
pub(super) fn reversed_in(capabilities: &str, rooms: &Rooms) -> (Arc<Session>, OutboxReader) {
    reversed_for(r#"{"elicitation":{}}"#, capabilities, rooms)
}

/// The same, whose client can be asked; its session is open.
pub(super) fn eliciting() -> (Arc<Session>, OutboxReader) {
    let (session, lines) = reversed_for(r#"{"elicitation":{},"roots":{}}"#, "{}", &Rooms::new(1));
    session.open("2025-11-25");
    (session, lines)
}

fn reversed_for(client: &str, capabilities: &str, rooms: &Rooms) -> (Arc<Session>, OutboxReader) {
    let alice = Identity::example("https://a", "alice");
    let (session, lines) = session_of(alice, Era::Legacy, rooms);
    let said = format!(
        r#"{{"id":1,"result":{{"supportedVersions":["2026-07-28"],"capabilities":{capabilities}}}}}"#
    );
    let said = Message::parse(said.into()).unwrap();
    let initialize = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{{"protocolVersion":"2025-11-25","capabilities":{client}}}}}"#
    );
    let initialize = Call::read(initialize.into(), false).unwrap();
    let server = ModernServer::new(Discovered::read(&said).unwrap(), &initialize);
    assert!(session.bridge_by(Bridge::ToModern(server)));
    (session, lines)
}

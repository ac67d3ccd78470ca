//! A session whose child is a channel, for the tests of this room.

use std::{sync::Arc, time::Duration};

use super::{
    Exchange, Seal, Session,
    bridge::Bridge,
    load::Slots,
    outbox::{OutboxReader, outbox},
    room::Rooms,
};
use crate::{
    audit::{Audit, RequestId},
    auth::Identity,
    authz::Engine,
    config::{Authz, ServerName},
    mcp::{
        Call, Era, Message,
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

/// The same, where that decides what they may do and hear.
pub(super) fn session_under(
    authz: &Authz,
    owner: Identity,
    era: Era,
    rooms: &Rooms,
) -> (Arc<Session>, OutboxReader) {
    let server = ServerName::parse("it").unwrap();
    let (audit, _) = Audit::memory(&server);
    let engine = Engine::build(authz, &server).unwrap();
    let (stdin, lines) = outbox(64);
    let session = Session::new(
        "0123456789abcdef0123456789abcdef".to_owned(),
        Arc::new(owner),
        audit,
        (Duration::from_secs(60), Slots::new(64, 64), rooms),
        era,
        stdin,
        (Arc::new(Seal::fleeting(Clock::new(|| 0))), Arc::new(engine)),
    );
    (session, lines)
}

/// What will answer this request of Alice's, of the session's era.
pub(super) fn asked(session: &Arc<Session>, request: &str) -> Exchange {
    let is_modern = session.era == Era::Modern;
    let call = Call::read(request.to_owned().into(), is_modern).unwrap();
    let id = call.id().unwrap().clone();
    let alice = Identity::example("https://a", "alice");
    session
        .request(
            &call,
            &alice,
            id,
            &mut session.audit.owes(RequestId::random()),
        )
        .unwrap()
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

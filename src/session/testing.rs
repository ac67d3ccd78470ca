//! A session whose child is a channel, for the tests of this room.

use std::{sync::Arc, time::Duration};

use super::{
    Seal, Session,
    load::Places,
    outbox::{Lines, outbox},
    room::Rooms,
};
use crate::{
    audit::Audit,
    auth::Identity,
    authz::Engine,
    config::{Authz, ServerName},
    mcp::{Era, Message, bridge::LegacyServer},
    time::Clock,
};

/// A session of Alice's, and what its child is told.
pub(super) fn session(era: Era) -> (Arc<Session>, Lines) {
    let alice = Identity::example("https://a", "alice");
    session_of(alice, era, &Rooms::new(1))
}

/// A session of theirs, with its share of that memory.
pub(super) fn session_of(owner: Identity, era: Era, rooms: &Rooms) -> (Arc<Session>, Lines) {
    let server = ServerName::parse("it").unwrap();
    let (audit, _) = Audit::memory(&server);
    let engine = Engine::build(&Authz::Authenticated, &server).unwrap();
    let (stdin, lines) = outbox(64);
    let session = Session::new(
        "0123456789abcdef0123456789abcdef".to_owned(),
        Arc::new(owner),
        audit,
        (Duration::from_secs(60), Places::new(64, 64), rooms),
        era,
        stdin,
        (Arc::new(Seal::fleeting(Clock::new(|| 0))), Arc::new(engine)),
    );
    (session, lines)
}

/// The same, before a server of the legacy era that has said these capabilities.
pub(super) fn bridged(capabilities: &str) -> (Arc<Session>, Lines) {
    let (session, lines) = session(Era::Modern);
    let said = format!(r#"{{"id":1,"result":{{"capabilities":{capabilities}}}}}"#);
    let said = Message::parse(said.into()).unwrap();
    session.bridged(LegacyServer::read(&said).unwrap());
    (session, lines)
}

//! What a child speaks: asked once, when its session begins, and remembered with it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    json::Value,
    mcp::{
        Call, Message,
        bridge::LegacyServer,
        reverse::{self, ModernServer},
        version,
    },
    session::{
        Sent, Session,
        exchange::Failure,
        own::OwnMessage,
        table::{OpenError, answer_of},
    },
};

/// Readies a child for modern clients: it speaks as they do, or from now on what
/// goes between is translated.
pub(super) async fn for_modern(
    session: &Arc<Session>,
    patience: Duration,
) -> Result<(), OpenError> {
    let probe = session.ask_own(PROBE, |number| OwnMessage::Discover { number })?;
    match answer_of(Sent::Exchange(probe)).await {
        Ok(answer)
            if Message::parse(answer.clone()).is_ok_and(|answer| reverse::is_modern(&answer)) =>
        {
            Ok(())
        }
        // Whatever else it says to that, it is a legacy one (mcp-T27).
        Ok(_) | Err(Failure::Timeout) => bridge(session, patience).await,
        Err(failure) => Err(OpenError::Failed(failure)),
    }
}

/// Opens the conversation with a legacy child, on behalf of modern clients.
async fn bridge(session: &Arc<Session>, patience: Duration) -> Result<(), OpenError> {
    let asked = session.ask_own(patience, |number| OwnMessage::Initialize { number })?;
    let answer = answer_of(Sent::Exchange(asked))
        .await
        .map_err(OpenError::Failed)?;
    let server = Message::parse(answer)
        .ok()
        .and_then(|answer| LegacyServer::read(&answer))
        .ok_or(OpenError::NoVersion)?;
    session.say(&OwnMessage::Initialized);
    session.bridged(server);
    Ok(())
}

/// Has a child that refused `initialize` serve its legacy client all the same, if it
/// speaks modern MCP (mcp-T18): what it would have answered.
pub(super) async fn for_legacy(session: &Arc<Session>, initialize: &Call) -> Option<Bytes> {
    let probe = session.ask_own(PROBE, |number| OwnMessage::Discover { number });
    let answer = answer_of(Sent::Exchange(probe.ok()?)).await.ok()?;
    let server = ModernServer::read(&Message::parse(answer).ok()?, initialize)?;
    let wanted = initialize
        .params()
        .and_then(|params| params.get("protocolVersion"));
    let wanted = wanted.and_then(Value::as_str).unwrap_or_default();
    let version = version::LEGACY.iter().find(|version| **version == wanted);
    let text = server.initialized(initialize.id()?, version.unwrap_or(&version::LEGACY[0]));
    session.reversed.set(server).ok()?;
    Some(text.into())
}

/// How long a child may think about what it speaks before it is taken for a legacy one (mcp-T27).
const PROBE: Duration = Duration::from_secs(10);

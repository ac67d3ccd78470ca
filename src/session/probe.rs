//! What a child speaks: asked once, when its first session begins, and remembered as long as it lives.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::OnceCell;

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

/// What a child has answered to `server/discover`, `None` if it is a legacy one: those
/// that share it need not ask again.
#[derive(Default)]
pub(super) struct Spoken(OnceCell<Option<Message>>);

/// What a child is asked first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum First {
    Discover,
    /// It would end at anything else.
    Initialize,
}

/// What came of that.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Readied {
    Yes,
    /// It ended when it was asked what it speaks.
    Ended,
}

/// Readies a child for modern clients: it speaks as they do, or from now on what
/// goes between is translated.
pub(super) async fn for_modern(
    session: &Arc<Session>,
    patience: Duration,
    first: First,
) -> Result<Readied, OpenError> {
    if first == First::Initialize && bridge(session, patience).await? {
        return Ok(Readied::Yes);
    }
    match discovered(session).await {
        Ok(Some(_)) => Ok(Readied::Yes),
        // Whatever else it says to that, it is a legacy one (mcp-T27).
        Ok(None) | Err(Failure::Timeout) => {
            let is_open = first == First::Discover && bridge(session, patience).await?;
            is_open.then_some(Readied::Yes).ok_or(OpenError::NoVersion)
        }
        Err(Failure::ChildEnded) if first == First::Discover => Ok(Readied::Ended),
        Err(failure) => Err(OpenError::Failed(failure)),
    }
}

/// The child's answer to `server/discover`, if it speaks modern MCP.
async fn discovered(session: &Session) -> Result<Option<Message>, Failure> {
    match session.spoken.get() {
        // One that only thinks for long is asked again.
        Some(spoken) => spoken
            .0
            .get_or_try_init(|| discover(session))
            .await
            .cloned(),
        None => discover(session).await,
    }
}

async fn discover(session: &Session) -> Result<Option<Message>, Failure> {
    let probe = session
        .ask_own(PROBE, |number| OwnMessage::Discover { number })
        .map_err(|_| Failure::ChildEnded)?;
    let answer = answer_of(Sent::Exchange(probe)).await?;
    let answer = Message::parse(answer).ok();
    Ok(answer.filter(reverse::is_modern))
}

/// Opens the conversation with a legacy child, on behalf of modern clients; `false` if it refuses.
async fn bridge(session: &Arc<Session>, patience: Duration) -> Result<bool, OpenError> {
    let asked = session.ask_own(patience, |number| OwnMessage::Initialize { number })?;
    let answer = answer_of(Sent::Exchange(asked))
        .await
        .map_err(OpenError::Failed)?;
    let answer = Message::parse(answer).ok();
    let Some(server) = answer.and_then(|answer| LegacyServer::read(&answer)) else {
        return Ok(false);
    };
    session.say(&OwnMessage::Initialized);
    session.bridged(server);
    Ok(true)
}

/// Has a child that refused `initialize` serve its legacy client all the same, if it
/// speaks modern MCP (mcp-T18): what it would have answered.
pub(super) async fn for_legacy(session: &Arc<Session>, initialize: &Call) -> Option<Bytes> {
    let answer = discovered(session).await.ok()??;
    let server = ModernServer::read(&answer, initialize)?;
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

//! Where a permitted message goes, and how its session comes to be.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, StatusCode};

use super::{Gateway, failed};
use crate::{
    audit::Owed,
    auth::Identity,
    authz::Permit,
    child::StartError,
    http::{Refusal, Response, modern, names::SESSION_ID, reply},
    mcp::{Era, Target},
    session::{OpenError, Session},
};

/// Where a permitted message goes.
pub(super) enum Place {
    /// Into a session of its own, which it opens.
    New,
    Session(Arc<Session>),
    /// Into the session of whoever asks without one.
    Shared,
    /// Nowhere: it means nothing in its era.
    Nowhere,
}

/// Where it goes, when the session of whoever asks without one is there, and what its server's
/// tools have said in headers is compared with the body.
pub(super) async fn found(
    gateway: &Gateway,
    identity: &Arc<Identity>,
    headers: &HeaderMap,
    (permit, place): (&Permit, Place),
) -> Result<Place, Refusal> {
    let session = match (place, permit.call().era()) {
        (place @ (Place::New | Place::Nowhere), _) => return Ok(place),
        (place @ Place::Session(_), Era::Legacy) => return Ok(place),
        (Place::Session(session), Era::Modern) => Some(session),
        (Place::Shared, _) => None,
    };
    let about = (permit, session);
    // Boxed, for what only some requests need.
    let compared = Box::pin(compared(gateway, identity, headers, about)).await;
    compared.map(Place::Session)
}

async fn compared(
    gateway: &Gateway,
    identity: &Arc<Identity>,
    headers: &HeaderMap,
    (permit, session): (&Permit, Option<Arc<Session>>),
) -> Result<Arc<Session>, Refusal> {
    let session = match session {
        Some(session) => session,
        None => {
            let session = gateway.sessions.shared(identity).await;
            session.map_err(|error| not_opened(gateway, error))?
        }
    };
    if let Target::Tool(name) = permit.call().target()
        && let Some(tool) = session.tool(name).await
    {
        modern::parameters_agree(headers, permit.call(), &tool.mirrored)?;
    }
    Ok(session)
}

pub(super) async fn open(
    gateway: &Gateway,
    identity: &Arc<Identity>,
    permit: Permit,
    owed: &mut Owed,
) -> Response {
    let id = permit.call().id().cloned();
    match gateway.sessions.open(identity, permit, owed).await {
        Ok((session, answer)) => {
            let mut response = reply::json(StatusCode::OK, answer);
            if let Some(session) =
                session.and_then(|session| HeaderValue::from_str(session.id()).ok())
            {
                response.headers_mut().insert(&SESSION_ID, session);
            }
            response
        }
        Err(error) => failed(gateway, owed, &not_opened(gateway, error), id.as_ref()),
    }
}

pub(super) fn not_opened(gateway: &Gateway, error: OpenError) -> Refusal {
    // Refused: the key, the version or the configuration of this process is not the runner's.
    if matches!(
        error,
        OpenError::Start(StartError::Stale | StartError::Refused(_))
    ) {
        gateway.stale.notify_one();
        return Refusal::Restarting;
    }
    Refusal::Open(error)
}

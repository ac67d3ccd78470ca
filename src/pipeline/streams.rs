//! A legacy client's GET and DELETE: the streams of its session, and its end.
//!
//! They ride on the identity that the session is bound to; no message reaches a
//! child from here.

use std::sync::Arc;

use http::{HeaderMap, StatusCode, request::Parts};
use tokio::time::Instant;

use super::{Gateway, Refused, accepted, legacy_version, only_permitted, session_id};
use crate::{
    audit::Decision,
    auth::Identity,
    http::{
        Refusal, Response,
        body::Events,
        names::{LAST_EVENT_ID, VERSION, one},
        reply, route,
    },
    mcp::version,
    session::{Resumed, Session},
};

/// Opens the session's own stream, or goes on with one that was lost (mcp-L1, mcp-L6).
pub(super) fn open(
    gateway: &Gateway,
    head: &Parts,
    identity: &Identity,
    record: &mut Decision,
) -> Result<Response, Refused> {
    legacy_only(&head.headers)?;
    route::get_headers(&head.headers)?;
    let session = entered(gateway, head, identity, record)?;
    let Resumed { exchange, id, list } = match one(&head.headers, &LAST_EVENT_ID)? {
        Some(last) => session.resume(last).map_err(Refusal::from)?,
        None => Resumed {
            exchange: session.listen().map_err(Refusal::Send)?,
            id: None,
            list: None,
        },
    };
    done(gateway, record);
    let exchange = only_permitted(gateway, identity, list, exchange);
    let mut events = Events::new(id, None, exchange);
    if let Some(left) = gateway.authenticator.time_left(identity) {
        events.end_at(Instant::now() + left);
    }
    Ok(reply::events(events))
}

/// Ends the session by its client's wish.
pub(super) fn end(
    gateway: &Gateway,
    head: &Parts,
    identity: &Identity,
    record: &mut Decision,
) -> Result<Response, Refused> {
    legacy_only(&head.headers)?;
    let session = entered(gateway, head, identity, record)?;
    gateway.sessions.close(&session);
    done(gateway, record);
    Ok(reply::empty(StatusCode::NO_CONTENT))
}

/// Modern MCP has neither sessions nor streams of their own (mcp-T18); a version that
/// nobody serves is none here either (mcp-L8).
fn legacy_only(headers: &HeaderMap) -> Result<(), Refusal> {
    if one(headers, &VERSION)? == Some(version::MODERN) {
        return Err(Refusal::MethodNotAllowed(route::MODERN_METHODS));
    }
    legacy_version(headers)
}

fn entered(
    gateway: &Gateway,
    head: &Parts,
    identity: &Identity,
    record: &mut Decision,
) -> Result<Arc<Session>, Refusal> {
    let id = session_id(&head.headers)?.ok_or(Refusal::SessionIdMissing)?;
    record.method = Some(head.method.as_str().into());
    let session = gateway
        .sessions
        .enter(identity, id)
        .map_err(Refusal::NoSession)?;
    record.session = Some(session.tag());
    Ok(session)
}

pub(super) fn done(gateway: &Gateway, record: &mut Decision) {
    record.policies = ["session".to_owned()].into();
    accepted(&mut record.permits(&gateway.audit));
}

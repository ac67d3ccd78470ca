//! The way of one request: who, what, may they, to whom, what came of it.
//!
//! Reads from top to bottom. Every way out of `answer` leaves a decision
//! record; what was allowed leaves an outcome record as well, under the same id.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header::HeaderMap, request::Parts};
use hyper::body::Incoming;

use crate::{
    audit::{self, Audit, Decision, Event, Outcome, RequestId, Verdict},
    auth::{AuthError, Authenticator, Identity, Presented},
    authz::{DenyReason, Engine, Permit},
    child::StartError,
    config::Config,
    http::{Peer, Refusal, Response, body, reply, route, route::Route},
    mcp::{Call, CallError, Era, Id, Message, method, version},
    session::{Exchange, OpenError, Sent, Session, Sessions},
};

/// What answers requests: built once by `daemon`, from one configuration.
pub struct Gateway {
    pub config: Config,
    pub authenticator: Authenticator,
    pub engine: Arc<Engine>,
    pub sessions: Sessions,
    pub audit: Audit,
    /// Says that the configuration was edited and this gateway should make way.
    pub stale: tokio::sync::Notify,
    pub metadata: Bytes,
    pub metadata_paths: Vec<String>,
}

/// Answers one request and records what was decided.
pub async fn handle(gateway: &Gateway, request: Request<Incoming>, peer: Peer) -> Response {
    let mut record = Decision::allowed(RequestId::random(), Vec::new());
    record.peer = Some(peer.to_string());
    match answer(gateway, request, peer, &mut record).await {
        Ok(response) => response,
        Err(Refused { refusal, id }) => {
            record.verdict = Verdict::Deny(refusal.reason());
            record.status = Some(refusal.status().as_u16());
            gateway.audit.record(&Event::Decision(record));
            refusal.response(Some(&gateway.config), id.as_ref())
        }
    }
}

async fn answer(
    gateway: &Gateway,
    request: Request<Incoming>,
    peer: Peer,
    record: &mut Decision,
) -> Result<Response, Refused> {
    let (head, body) = request.into_parts();
    match route::route(&head, &gateway.config, &gateway.metadata_paths)? {
        Route::Metadata => return Ok(reply::json(StatusCode::OK, gateway.metadata.clone())),
        Route::Mcp => {}
    }
    let identity = gateway
        .authenticator
        .authenticate(&Presented {
            method: &head.method,
            headers: &head.headers,
            query: head.uri.query(),
            local: peer.local(),
        })
        .await?;
    record.who = Some((&*identity).into());
    gateway.authenticator.check_scopes(&identity)?;
    match head.method {
        Method::DELETE => return end_session(gateway, &head, &identity, record),
        Method::POST => route::post_headers(&head.headers)?,
        _ => Err(Refusal::MethodNotAllowed(route::MCP_METHODS))?,
    }
    let body = body::read(body, gateway.config.limits.body).await?;
    let call = Call::read(body, version_of(&head.headers)? == Some(version::MODERN))
        .map_err(Refusal::Call)?;
    record.method = Some(call.method().to_owned());
    record.aim = (&call.target()).into();
    let id = call.id().cloned();
    let decided = permitted_call(gateway, &head, &identity, call, record);
    let (permit, place) = decided.map_err(|refusal| Refused { refusal, id })?;
    gateway.audit.record(&Event::Decision(record.clone()));
    Ok(deliver(gateway, &identity, permit, place, record.request_id).await)
}

/// Where a permitted message goes.
enum Place {
    /// Into a session of its own, which it opens.
    New,
    Session(Arc<Session>),
}

/// Nothing is sent and nothing started here: it only says whether, and where to.
fn permitted_call(
    gateway: &Gateway,
    head: &Parts,
    identity: &Identity,
    call: Call,
    record: &mut Decision,
) -> Result<(Permit, Place), Refusal> {
    if call.era() == Era::Modern {
        return Err(Refusal::Version(version::MODERN.to_owned()));
    }
    let permit = gateway.engine.decide(identity, call).map_err(|denied| {
        record.policies = denied.policies;
        if denied.reason == DenyReason::PolicyError {
            let (request_id, policies) = (record.request_id, record.policies.clone());
            gateway.audit.record(&Event::PolicyError {
                request_id,
                policies,
                errors: denied.errors,
            });
        }
        match denied.reason {
            // There is no answer to a notification that could say more.
            DenyReason::Method if denied.call.id().is_none() => {
                CallError::Invalid("an unknown notification").into()
            }
            reason => denied
                .scopes
                .and_then(|step| gateway.authenticator.scopes_to_ask_for(identity, step))
                .map_or(Refusal::Denied(reason), Refusal::Scope),
        }
    })?;
    record.policies = permit.policies().to_vec();
    let session = session_id(&head.headers)?;
    if permit.call().method() == "initialize" {
        return match session {
            None if gateway.sessions.is_full() => Err(Refusal::Open(OpenError::Full)),
            None => Ok((permit, Place::New)),
            Some(_) => Err(Refusal::Call(CallError::Invalid(
                "initialize opens a session of its own",
            ))),
        };
    }
    let session = gateway
        .sessions
        .enter(identity, session.ok_or(Refusal::SessionIdMissing)?)
        .map_err(Refusal::NoSession)?;
    record.session = Some(audit::session_tag(session.id()));
    session.admits(permit.call())?;
    Ok((permit, Place::Session(session)))
}

async fn deliver(
    gateway: &Gateway,
    identity: &Identity,
    permit: Permit,
    place: Place,
    request: RequestId,
) -> Response {
    let id = permit.call().id().cloned();
    let list = permit.call().method().to_owned();
    let sent = match place {
        Place::New => return open(gateway, identity, permit, request).await,
        Place::Session(session) => session.send(permit, request),
    };
    match (sent, id) {
        (Ok(Sent::Exchange(exchange)), Some(id)) => {
            reply::exchange(id, only_permitted(gateway, identity, list, exchange)).await
        }
        (Ok(_), _) => {
            gateway
                .audit
                .record(&Event::Outcome(outcome(request, None)));
            reply::empty(StatusCode::ACCEPTED)
        }
        (Err(error), id) => failed(gateway, request, &Refusal::Send(error), id.as_ref()),
    }
}

async fn open(
    gateway: &Gateway,
    identity: &Identity,
    permit: Permit,
    request: RequestId,
) -> Response {
    let id = permit.call().id().cloned();
    match gateway.sessions.open(identity, permit, request).await {
        Ok((session, answer)) => {
            let mut response = reply::json(StatusCode::OK, answer);
            if let Some(session) =
                session.and_then(|session| HeaderValue::from_str(session.id()).ok())
            {
                response.headers_mut().insert(SESSION_ID, session);
            }
            response
        }
        Err(error) => {
            // Refused: the key, the version or the configuration of this process is not the runner's.
            if matches!(
                error,
                OpenError::Start(StartError::Stale | StartError::Refused(_))
            ) {
                gateway.stale.notify_one();
                return failed(gateway, request, &Refusal::Restarting, id.as_ref());
            }
            // What became of a call that reached its session is recorded there.
            if matches!(error, OpenError::Failed(_)) {
                return Refusal::Open(error).response(Some(&gateway.config), id.as_ref());
            }
            failed(gateway, request, &Refusal::Open(error), id.as_ref())
        }
    }
}

fn end_session(
    gateway: &Gateway,
    head: &Parts,
    identity: &Identity,
    record: &mut Decision,
) -> Result<Response, Refused> {
    let id = session_id(&head.headers)?.ok_or(Refusal::SessionIdMissing)?;
    let session = gateway
        .sessions
        .enter(identity, id)
        .map_err(Refusal::NoSession)?;
    record.method = Some(head.method.to_string());
    record.policies = vec!["session".to_owned()];
    record.session = Some(audit::session_tag(session.id()));
    gateway.audit.record(&Event::Decision(record.clone()));
    gateway.sessions.close(&session);
    gateway
        .audit
        .record(&Event::Outcome(outcome(record.request_id, None)));
    Ok(reply::empty(StatusCode::NO_CONTENT))
}

/// A list shows exactly what the same identity may call.
fn only_permitted(
    gateway: &Gateway,
    identity: &Identity,
    list: String,
    exchange: Exchange,
) -> Exchange {
    if !method::is_filtered_list(&list) {
        return exchange;
    }
    let (engine, identity) = (gateway.engine.clone(), identity.clone());
    exchange.finished_by(Box::new(move |answer| {
        let filtered = Message::parse(answer.clone())
            .ok()
            .and_then(|message| engine.filter(&identity, &list, &message));
        filtered.map_or(answer, Bytes::from)
    }))
}

/// The way out for what was permitted and could not be done.
fn failed(gateway: &Gateway, request: RequestId, refusal: &Refusal, id: Option<&Id>) -> Response {
    gateway
        .audit
        .record(&Event::Outcome(outcome(request, Some(refusal))));
    refusal.response(Some(&gateway.config), id)
}

/// The outcome of what no child has answered.
fn outcome(request_id: RequestId, refusal: Option<&Refusal>) -> Outcome {
    let (reason, status) = (
        refusal.map(Refusal::reason),
        refusal.map(|refusal| refusal.status().as_u16()),
    );
    Outcome {
        request_id,
        reason,
        status,
        duration: Duration::ZERO,
        bytes_in: 0,
        bytes_out: 0,
    }
}

/// The version that the request names, if it is one that exists here.
fn version_of(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let Some(named) = one(headers, VERSION)? else {
        return Ok(None);
    };
    if named == version::MODERN || version::LEGACY.contains(&named) {
        Ok(Some(named))
    } else {
        Err(Refusal::Version(named.chars().take(32).collect()))
    }
}

fn session_id(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    one(headers, SESSION_ID)
}

/// A header that may come at most once, as visible text.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Refusal> {
    let mut lines = headers.get_all(name).iter();
    match (lines.next(), lines.next()) {
        (None, _) => Ok(None),
        (Some(line), None) => line.to_str().map(Some).map_err(|_| Refusal::Header),
        (Some(_), Some(_)) => Err(Refusal::Header),
    }
}

/// A refusal, and the id of the request that it answers, where that is known.
struct Refused {
    refusal: Refusal,
    id: Option<Id>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, id: None }
    }
}

impl From<AuthError> for Refused {
    fn from(error: AuthError) -> Self {
        Refusal::Auth(error).into()
    }
}

const SESSION_ID: &str = "mcp-session-id";
const VERSION: &str = "mcp-protocol-version";

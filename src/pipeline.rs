//! The way of one request: who, what, may they, to whom, what came of it.
//!
//! Reads from top to bottom. Every way out of `answer` but the public metadata's and
//! the answers to browsers' own questions leaves a decision record; what was allowed leaves an outcome record as well,
//! under the same id.

mod batch;
mod caught;
mod legacy_sse;
mod place;
mod reading;
mod streams;
mod undecided;
mod upstream;

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, request::Parts};
use hyper::body::Incoming;
use tokio::sync::watch;
use tracing::error;

use crate::{
    audit::{self, Audit, Decision, Event, Outcome, Owed, Verdict},
    auth::{self, AuthError, Authenticator, Exchange as TokenExchange, Identity, Presented},
    authz::{DenyReason, Engine, Permit},
    config::Config,
    http::{
        Peer, Refusal, Response, body,
        budget::{Budget, Lent},
        cors, modern,
        names::{SESSION_ID, VERSION, one},
        reply,
        reply::{Manner, Table},
        route,
        route::Route,
    },
    mcp::{Call, CallError, Era, Id, Message, NoCall, Target, cache, method, tools, version},
    session::{Exchange, SendError, Sent, Sessions},
};

use caught::{Panicked, caught};
pub use legacy_sse::Clients;
use place::{Place, found, open};
use reading::read;
use undecided::Undecided;
pub use undecided::take;

/// What answers requests: built once by `daemon`, from one configuration.
pub struct Gateway {
    pub config: Config,
    pub authenticator: Authenticator,
    pub engine: Arc<Engine>,
    pub sessions: Sessions,
    /// Those of the transport of 2024-11-05.
    pub clients: Clients,
    /// Where callers' tokens are exchanged, for a server that is shown others.
    pub exchange: Option<Arc<TokenExchange>>,
    pub audit: Audit,
    /// Requests that have come, ever.
    pub asked: AtomicU64,
    /// Says that the configuration was edited and this gateway should make way.
    pub stale: tokio::sync::Notify,
    /// The memory that requests' bodies share.
    pub bodies: Budget,
    /// The beginning of the configuration's digest, for the record (fault-52).
    pub version: Arc<str>,
    pub metadata: Bytes,
    pub metadata_paths: Vec<String>,
    /// Closed when it is gone: each request has it for as long as there is anything of that.
    pub lasts: watch::Sender<()>,
}

/// Answers one request and records what was decided. What is large stays with the caller, or has a
/// box of its own where it is rare: all that a request keeps while it waits is copied with it.
async fn handle(
    gateway: &Gateway,
    request: &mut Result<(Parts, Incoming), Refusal>,
    peer: &Peer,
) -> Response {
    gateway.asked.fetch_add(1, Ordering::Relaxed);
    let mut record = Undecided::new(&gateway.audit);
    let headers = request.as_ref().map(|request| &request.0.headers).ok();
    record.peer = Some(peer.client(gateway.config.proxies.as_ref(), headers));
    record.version = Some(gateway.version.clone());
    let page = headers.and_then(|headers| cors::listed(headers, &gateway.config));
    let done = match request {
        Ok(request) => caught(pin!(answer(gateway, request, peer, &mut record))).await,
        Err(refusal) => Ok(Err(std::mem::replace(refusal, Refusal::Internal).into())),
    };
    record.settle();
    let mut response = match done {
        Ok(Ok(response)) => response,
        Ok(Err(refused)) => deny(gateway, &mut record, refused),
        Err(Panicked) => {
            error!(request = %record.request_id, "the work on a request ended in a panic, the others go on");
            if record.is_on_record() {
                // Its outcome is owed by whatever the panic has left, or recorded where that was dropped.
                Refusal::Internal.response(Some(&gateway.config), None)
            } else {
                deny(gateway, &mut record, Refusal::Internal.into())
            }
        }
    };
    if let Some(origin) = page {
        cors::allow(&mut response, origin);
    }
    // What became of it is on record before anybody is told.
    gateway.audit.hand_on();
    response
}

fn deny(gateway: &Gateway, record: &mut Decision, Refused { refusal, id }: Refused) -> Response {
    record.verdict = Verdict::Deny(refusal.reason());
    record.status = Some(refusal.status().as_u16());
    record.requests = refusal.requests();
    record.put_on_record(&gateway.audit);
    refusal.response(Some(&gateway.config), id.as_ref())
}

async fn answer(
    gateway: &Gateway,
    (head, body): &mut (Parts, Incoming),
    peer: &Peer,
    record: &mut Undecided<'_>,
) -> Result<Response, Refused> {
    let route = route::route(head, &gateway.config, &gateway.metadata_paths)?;
    if route == Route::Metadata {
        return Ok(reply::json(StatusCode::OK, gateway.metadata.clone()));
    }
    if let Route::Preflight(methods) = route {
        return Ok(cors::preflight(&head.headers, methods));
    }
    let identity = gateway
        .authenticator
        .authenticate(&Presented {
            method: &head.method,
            headers: &head.headers,
            query: head.uri.query(),
            local: peer.local(),
        })
        .await
        .inspect_err(|_| record.token = auth::shown(&head.headers).map(audit::tag))?;
    record.who = Some(identity.clone());
    gateway.authenticator.check_scopes(&identity)?;
    match head.method {
        _ if route == Route::Sse => return legacy_sse::open(gateway, head, &identity, record),
        Method::POST if route == Route::Messages => route::message_headers(&head.headers)?,
        Method::DELETE => return streams::end(gateway, head, &identity, record),
        Method::GET => return streams::open(gateway, head, &identity, record),
        Method::POST => route::post_headers(&head.headers)?,
        _ => Err(Refusal::MethodNotAllowed(route::MCP_METHODS))?,
    }
    let body = body::read(
        (head.version, body),
        gateway.config.limits.body,
        (&gateway.bodies, &identity),
    )
    .await?;
    if route == Route::Messages {
        return Box::pin(legacy_sse::post(gateway, head, &identity, body, record)).await;
    }
    if batch::is_one(&body.0) {
        upstream::make_ready(gateway, head, &identity, Era::Legacy).await?;
        return Box::pin(batch::answer(gateway, head, &identity, body, record)).await;
    }
    let modern = one(&head.headers, &VERSION)? == Some(version::MODERN);
    let (permitted, id) = {
        let (call, lent) = read(body, modern, (&gateway.bodies, &identity), record).await?;
        let id = call.id().cloned();
        match permitted_call(gateway, head, &identity, call, record) {
            Ok((permit, place)) => ((permit, lent, place), id),
            Err(refusal) => return Err(Refused { refusal, id }),
        }
    };
    let mut owed = record.permits(&gateway.audit);
    let coming = carried_out(gateway, head, &identity, permitted, &mut owed).await;
    // What its connection has read it into is free from now on, for what comes next.
    let table = Table::of(head);
    Ok(match coming {
        Ok(Coming::Exchange(mut exchange, manner)) => {
            let first = exchange.next_soon().await;
            let code = reply::code(&first, manner.era).await;
            reply::exchange((first, code), exchange, manner, table)
        }
        Ok(Coming::Nothing) => {
            accepted(&mut owed);
            reply::empty(StatusCode::ACCEPTED)
        }
        Ok(Coming::Opened(response)) => response,
        Err(refusal) => failed(gateway, &mut owed, &refusal, id.as_ref()),
    })
}

/// Nothing is sent and nothing started here: it only says whether, and where to.
fn permitted_call(
    gateway: &Gateway,
    head: &Parts,
    identity: &Identity,
    call: Call,
    record: &mut Decision,
) -> Result<(Permit, Place), Refusal> {
    let era = call.era();
    match era {
        Era::Modern => modern::agree(&head.headers, &call)?,
        Era::Legacy => legacy_version(&head.headers)?,
    }
    let permit = permitted(gateway, identity, call, record)?;
    if era == Era::Modern {
        let awaiting = gateway.sessions.awaiting(identity, permit.call());
        if let Some(session) = awaiting.map_err(SendError::State)? {
            return Ok((permit, Place::Session(session)));
        }
        let full = gateway.sessions.full(identity);
        let full = full.filter(|_| gateway.sessions.lacks_shared(identity));
        return match (permit.call().id(), full) {
            // json-18: accepted without effect, whatever it names.
            (None, _) => Ok((permit, Place::Nowhere)),
            (Some(_), Some(full)) => Err(Refusal::Open(full)),
            (Some(_), None) => Ok((permit, Place::Shared)),
        };
    }
    let session = session_id(&head.headers)?;
    if permit.call().method() == "initialize" {
        return match (session, gateway.sessions.full(identity)) {
            (None, Some(full)) => Err(Refusal::Open(full)),
            (None, None) => Ok((permit, Place::New)),
            (Some(_), _) => Err(Refusal::Call(CallError::Invalid(
                "initialize opens a session of its own",
            ))),
        };
    }
    let session = gateway
        .sessions
        .enter(identity, session.ok_or(Refusal::SessionIdMissing)?)
        .map_err(Refusal::NoSession)?;
    record.session = Some(session.tag());
    session.admits(permit.call()).map_err(Refusal::of_call)?;
    Ok((permit, Place::Session(session)))
}

/// What a policy says of the call, whichever way it came.
fn permitted(
    gateway: &Gateway,
    identity: &Identity,
    call: Call,
    record: &mut Decision,
) -> Result<Permit, Refusal> {
    let era = call.era();
    if call.id().is_some() && !method::is_of(era, call.method()) {
        return Err(no_method(era));
    }
    if let Target::Tool(name) = call.target()
        && !(gateway.config.any_tool_name || tools::is_plain(name))
    {
        return Err(Refusal::NoTool);
    }
    let permit = gateway.engine.decide(identity, call).map_err(|denied| {
        record.policies = denied.policies.into();
        if denied.reason == DenyReason::PolicyError {
            let (request_id, policies) = (record.request_id, record.policies.to_vec());
            gateway.audit.record(&Event::PolicyError {
                request_id,
                policies,
                errors: denied.errors,
            });
        }
        match denied.reason {
            DenyReason::Method if denied.call.id().is_none() => Refusal::Unheard,
            DenyReason::Method => no_method(era),
            reason => denied
                .scopes
                .and_then(|step| gateway.authenticator.scopes_to_ask_for(identity, step))
                .map_or(Refusal::Denied(reason), Refusal::Scope),
        }
    })?;
    record.policies = permit.policies().clone();
    Ok(permit)
}

/// What comes of a call that was permitted.
enum Coming {
    Exchange(Exchange, Manner),
    Nothing,
    /// It has opened a session, or not.
    Opened(Response),
}

/// Sees to what a permitted call needs, and hands it to its session.
async fn carried_out(
    gateway: &Gateway,
    head: &mut Parts,
    identity: &Arc<Identity>,
    (permit, lent, place): (Permit, Lent, Place),
    owed: &mut Owed,
) -> Result<Coming, Refusal> {
    upstream::make_ready_for(gateway, head, identity, permit.call().era()).await?;
    let session = match found(gateway, identity, &head.headers, (&permit, place)).await? {
        Place::Session(session) => session,
        Place::New => {
            // A start may take long, and needs it no more.
            drop(Table::of(head));
            let opened = Box::pin(open(gateway, identity, permit, owed)).await;
            return Ok(Coming::Opened(opened));
        }
        Place::Shared | Place::Nowhere => return Ok(Coming::Nothing),
    };
    let (era, id) = (permit.call().era(), permit.call().id().cloned());
    let method = permit.call().method();
    let is_listen = method == method::LISTEN;
    let list = method::filtered_list(method);
    let cacheable = method::is_cacheable(method).then(|| method.to_owned());
    let sent = session.send(permit, identity, owed);
    lent.handed_to(&session);
    let sent = sent.map_err(|error| match (era, &id) {
        (Era::Legacy, Some(_)) => Refusal::of_call(error),
        (Era::Legacy, None) => Refusal::Send(error),
        (Era::Modern, _) => Refusal::of_shared(error),
    })?;
    let (Sent::Exchange(exchange), Some(id)) = (sent, id) else {
        return Ok(Coming::Nothing);
    };
    let until = is_listen
        .then(|| gateway.authenticator.time_left(identity))
        .flatten();
    let exchange = match era {
        Era::Legacy => only_permitted(gateway, identity, list, exchange),
        Era::Modern => only_own(gateway, identity, cacheable, exchange),
    };
    Ok(Coming::Exchange(exchange, Manner { id, era, until }))
}

/// A list shows exactly what the same identity may call; any other answer is as it came.
fn only_permitted(
    gateway: &Gateway,
    identity: &Identity,
    list: Option<&'static str>,
    exchange: Exchange,
) -> Exchange {
    let Some(list) = list else { return exchange };
    let (engine, identity) = (gateway.engine.clone(), identity.clone());
    exchange.finished_by(Box::new(move |answer| {
        let filtered = Message::parse(answer.clone())
            .ok()
            .and_then(|message| engine.filter(&identity, list, &message));
        filtered.map_or(answer, Bytes::from)
    }))
}

/// The same for a modern answer, which must not say either that everybody may be
/// shown it where policies tell callers apart (mcp-T30).
fn only_own(
    gateway: &Gateway,
    identity: &Identity,
    cacheable: Option<String>,
    exchange: Exchange,
) -> Exchange {
    let Some(method) = cacheable.filter(|_| gateway.engine.tells_callers_apart()) else {
        return exchange;
    };
    let (engine, identity) = (gateway.engine.clone(), identity.clone());
    exchange.finished_by(Box::new(move |answer| {
        let Ok(message) = Message::parse(answer.clone()) else {
            return answer;
        };
        let Some(filtered) = engine.filter(&identity, &method, &message) else {
            return cache::private(&message).map_or(answer, Bytes::from);
        };
        let filtered = Bytes::from(filtered);
        match Message::parse(filtered.clone()) {
            Ok(list) => cache::cut(&list).into(),
            Err(_) => filtered,
        }
    }))
}

/// The way out for what was permitted and could not be done.
fn failed(gateway: &Gateway, owed: &mut Owed, refusal: &Refusal, id: Option<&Id>) -> Response {
    settle(owed, Some(refusal));
    refusal.response(Some(&gateway.config), id)
}

/// What was permitted was done, and no child answers it.
fn accepted(owed: &mut Owed) {
    settle(owed, None);
}

/// Records the outcome of what no child has answered. What has reached its session is recorded there.
fn settle(owed: &mut Owed, refusal: Option<&Refusal>) {
    let status = refusal.map(|refusal| refusal.status().as_u16());
    owed.settle(|_, request| Outcome::unanswered(request, refusal.map(Refusal::reason), status));
}

/// A legacy request may name a version, and then one that exists.
fn legacy_version(headers: &HeaderMap) -> Result<(), Refusal> {
    match one(headers, &VERSION)? {
        Some(named) if named != version::MODERN && !version::LEGACY.contains(&named) => Err(
            Refusal::Version(named.chars().take(32).collect(), Era::Legacy),
        ),
        _ => Ok(()),
    }
}

/// Nobody may call it: modern MCP has a status for that, legacy has none (tok-125).
fn no_method(era: Era) -> Refusal {
    match era {
        Era::Legacy => Refusal::Denied(DenyReason::Method),
        Era::Modern => Refusal::NoMethod,
    }
}

fn session_id(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    one(headers, &SESSION_ID)
}

/// A refusal, and the id of the request that it answers, where that is known.
#[derive(Debug)]
struct Refused {
    refusal: Refusal,
    id: Option<Id>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, id: None }
    }
}

impl From<NoCall> for Refused {
    fn from(NoCall { error, id }: NoCall) -> Self {
        let refusal = error.into();
        Self { refusal, id }
    }
}

impl From<AuthError> for Refused {
    fn from(error: AuthError) -> Self {
        Refusal::Auth(error).into()
    }
}

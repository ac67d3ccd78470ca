//! The transport of 2024-11-05: one stream for all that a client is told, and a
//! path of its own for what it says.
//!
//! Off unless configured. The stream is the session: it belongs to whoever opened
//! it, and when it ends so does the session, for nothing of it can be taken up
//! again. What may be said, and what is recorded, is decided where every other
//! request's is.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use http::{StatusCode, request::Parts};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    time::Instant,
};

use super::{
    Gateway, Refused, accepted, failed, legacy_version, only_permitted, permitted,
    place::not_opened, read, upstream,
};
use crate::{
    audit::{Decision, Outcome, Owed, Verdict},
    auth::{Identity, PrincipalKey},
    authz::{DenyReason, Permit},
    http::{
        Refusal, Response,
        body::{self, Events, Joining},
        budget::Lent,
        names::{VERSION, one},
        reply, route,
    },
    mcp::{CallError, Era, Id, method, version},
    session::{NoSession, OpenError, SendError, Sent, Session},
    sys::random,
};

/// The clients of this transport.
#[derive(Default)]
pub struct Clients(Arc<Table>);

type Table = Mutex<HashMap<String, Arc<Client>>>;

/// One open stream.
struct Client {
    owner: Identity,
    whose: PrincipalKey,
    joining: mpsc::Sender<Joining>,
    state: Mutex<State>,
    /// When its stream ends, if that is with a token.
    until: Mutex<Option<Instant>>,
}

enum State {
    /// It has not said `initialize`.
    Fresh,
    /// Its child starts.
    Opening,
    Open(Arc<Session>),
}

impl Clients {
    /// Nothing more is joined to any stream: each ends with what it waits for.
    pub fn close(&self) {
        lock(&self.0).clear();
    }

    /// The client of that id, if it is this identity's (tok-15).
    fn find(&self, identity: &Identity, id: &str) -> Result<Arc<Client>, NoSession> {
        let client = lock(&self.0).get(id).cloned().ok_or(NoSession::Unknown)?;
        if client.owner.owns_session_of(identity) {
            Ok(client)
        } else {
            Err(NoSession::Mismatch)
        }
    }
}

/// Ends a client's session with its stream.
struct Leaving {
    id: String,
    table: Weak<Table>,
    client: Arc<Client>,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(table) = self.table.upgrade() {
            lock(&table).remove(&self.id);
        }
        if let State::Open(session) = &*lock(&self.client.state) {
            session.close();
        }
    }
}

/// Opens a client's stream, which begins with where its messages go.
pub(super) fn open(
    gateway: &Gateway,
    head: &Parts,
    identity: &Identity,
    record: &mut Decision,
) -> Result<Response, Refused> {
    if one(&head.headers, &VERSION)? == Some(version::MODERN) {
        return Err(Refusal::NotFound.into());
    }
    legacy_version(&head.headers)?;
    route::get_headers(&head.headers)?;
    record.method = Some(head.method.as_str().into());
    let id = new_id();
    let (joining, inbox) = mpsc::channel(MAX_JOINING);
    let whose = identity.principal_key();
    let client = Arc::new(Client {
        owner: identity.clone(),
        whose,
        joining,
        state: Mutex::new(State::Fresh),
        until: Mutex::new(None),
    });
    let table = &gateway.clients.0;
    {
        let mut clients = lock(table);
        // As many as could have sessions: more would be streams for nothing.
        let limits = &gateway.config.limits;
        if clients.len() >= limits.sessions {
            return Err(Refusal::Open(OpenError::Full).into());
        }
        let is_own = |client: &&Arc<Client>| client.whose == whose;
        if clients.values().filter(is_own).count() >= limits.sessions_per_user {
            return Err(Refusal::Open(OpenError::UserFull).into());
        }
        clients.insert(id.clone(), client.clone());
    }
    super::streams::done(gateway, record);
    let path = gateway.config.resource.path.trim_end_matches('/');
    let endpoint = body::endpoint(&format!("{path}{}?{SESSION}={id}", route::MESSAGES));
    let leaving = Leaving {
        id,
        table: Arc::downgrade(table),
        client,
    };
    let mut events = Events::joined(endpoint, inbox, Box::new(leaving));
    let patience = gateway
        .authenticator
        .time_left(identity)
        .map_or(FRESH, |left| left.min(FRESH));
    events.end_at(Instant::now() + patience);
    Ok(reply::events(events))
}

/// Takes a message; what comes of it is told on the client's stream, a refusal of the message, too: clients read
/// nothing but the status of what they are answered here, and some of them say nothing more after a bad one.
pub(super) async fn post(
    gateway: &Gateway,
    head: &Parts,
    identity: &Arc<Identity>,
    body: (Bytes, Lent),
    record: &mut Decision,
) -> Result<Response, Refused> {
    let id = session_of(head.uri.query()).ok_or(Refusal::SessionIdMissing)?;
    let client = gateway
        .clients
        .find(identity, id)
        .map_err(Refusal::NoSession)?;
    match taken(gateway, head, (identity, &client), body, record).await {
        Err(Refused {
            refusal,
            id: Some(id),
        }) if is_of_the_message(&refusal) => {
            // Before it is on record: else it is refused in the other way.
            let Ok(place) = client.joining.try_reserve() else {
                return Err(Refused {
                    refusal,
                    id: Some(id),
                });
            };
            record.verdict = Verdict::Deny(refusal.reason());
            record.status = Some(TOLD.as_u16());
            record.put_on_record(&gateway.audit);
            place.send(Joining::Text(refusal.rpc(Some(&id))));
            Ok(reply::empty(TOLD))
        }
        taken => taken,
    }
}

/// Whether it says what is wrong with a message, to whoever has sent it, and not with a request over HTTP, its token or
/// its session, where clients go by the status and by headers.
fn is_of_the_message(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::Call(_)
        | Refusal::NoMethod
        | Refusal::NoTool
        | Refusal::Denied(DenyReason::Method)
        | Refusal::Open(_)
        | Refusal::Exchange(_) => true,
        Refusal::Send(error) => !matches!(error, SendError::Gone),
        _ => false,
    }
}

async fn taken(
    gateway: &Gateway,
    head: &Parts,
    (identity, client): (&Arc<Identity>, &Arc<Client>),
    body: (Bytes, Lent),
    record: &mut Decision,
) -> Result<Response, Refused> {
    let (call, lent) = read(body, false, (&gateway.bodies, identity), record).await?;
    let id = call.id().cloned();
    let refused = |refusal| Refused {
        refusal,
        id: id.clone(),
    };
    legacy_version(&head.headers).map_err(refused)?;
    if call.era() == Era::Modern {
        let other = CallError::Invalid("this transport is of another protocol version");
        return Err(refused(other.into()));
    }
    let permit = permitted(gateway, identity, call, record).map_err(refused)?;
    if permit.call().method() == "initialize" {
        if let Some(full) = gateway.sessions.full(identity) {
            return Err(refused(Refusal::Open(full)));
        }
        let opening = Opening::of(client).map_err(refused)?;
        return initialize(gateway, head, identity, (permit, opening), record).await;
    }
    let session = match &*lock(&client.state) {
        State::Open(session) => session.clone(),
        State::Fresh | State::Opening => {
            return Err(refused(CallError::Invalid("initialize comes first").into()));
        }
    };
    record.session = Some(session.tag());
    session
        .admits(permit.call())
        .map_err(|error| refused(Refusal::Send(error)))?;
    // Before anything is sent: the answer needs a place to go.
    let place = client.joining.try_reserve().map_err(|error| {
        refused(Refusal::Send(match error {
            TrySendError::Full(()) => SendError::Busy,
            TrySendError::Closed(()) => SendError::Gone,
        }))
    })?;
    extend(gateway, client, identity);
    let mut owed = record.permits(&gateway.audit);
    if let Err(refusal) = upstream::make_ready_for(gateway, head, identity, Era::Legacy).await {
        drop(place);
        return Ok(not_done(gateway, client, &mut owed, &refusal, id.as_ref()));
    }
    let list = method::filtered_list(permit.call().method());
    let sent = session.send(permit, identity, &mut owed);
    lent.handed_to(&session);
    match (sent, id) {
        (Ok(Sent::Exchange(exchange)), Some(id)) => {
            let exchange = only_permitted(gateway, identity, list, exchange);
            place.send(Joining::Exchange(id, exchange));
        }
        (Ok(_), _) => accepted(&mut owed),
        (Err(error), id) => {
            drop(place);
            let refusal = Refusal::Send(error);
            return Ok(not_done(gateway, client, &mut owed, &refusal, id.as_ref()));
        }
    }
    Ok(reply::empty(TOLD))
}

async fn initialize(
    gateway: &Gateway,
    head: &Parts,
    identity: &Arc<Identity>,
    (permit, opening): (Permit, Opening),
    record: &mut Decision,
) -> Result<Response, Refused> {
    let id = permit.call().id().cloned();
    let client = opening.client.clone();
    let mut owed = record.permits(&gateway.audit);
    let failed = |owed: &mut Owed, refusal| not_done(gateway, &client, owed, &refusal, id.as_ref());
    if let Err(refusal) = upstream::make_ready_for(gateway, head, identity, Era::Legacy).await {
        return Ok(failed(&mut owed, refusal));
    }
    let (session, answer) = match gateway.sessions.open(identity, permit, &mut owed).await {
        Ok(opened) => opened,
        Err(error) => return Ok(failed(&mut owed, not_opened(gateway, error))),
    };
    let gone = |error| {
        let refusal = Refusal::Send(error);
        Ok(refusal.response(Some(&gateway.config), id.as_ref()))
    };
    let mut told = vec![Joining::Text(answer)];
    if let Some(session) = session {
        let until = ends(gateway, identity);
        *lock(&client.until) = until;
        told.push(Joining::Until(until));
        match session.listen() {
            Ok(own) => told.push(Joining::Own(own)),
            Err(error) => return gone(error),
        }
        opening.opened(session);
    }
    for joins in told {
        if client.joining.try_send(joins).is_err() {
            return gone(SendError::Gone);
        }
    }
    Ok(reply::empty(TOLD))
}

/// When a stream ends that this identity has opened.
fn ends(gateway: &Gateway, identity: &Identity) -> Option<Instant> {
    let left = gateway.authenticator.time_left(identity)?;
    Some(Instant::now() + left)
}

/// The stream is all of the session, and nothing of it can be taken up again: where its owner has shown a newer token, it
/// ends with that (tok-69).
fn extend(gateway: &Gateway, client: &Client, identity: &Identity) {
    let until = ends(gateway, identity);
    let mut known = lock(&client.until);
    let is_later = match (until, *known) {
        (Some(until), Some(known)) => until > known + SAME,
        _ => false,
    };
    if is_later && client.joining.try_send(Joining::Until(until)).is_ok() {
        *known = until;
    }
}

/// The way out for what was permitted and could not be done: told as `post` tells what was refused.
fn not_done(
    gateway: &Gateway,
    client: &Client,
    owed: &mut Owed,
    refusal: &Refusal,
    id: Option<&Id>,
) -> Response {
    let place = client.joining.try_reserve();
    let (Some(id), Ok(place), true) = (id, place, is_of_the_message(refusal)) else {
        return failed(gateway, owed, refusal, id);
    };
    let reason = refusal.reason();
    owed.settle(|_, request| Outcome::unanswered(request, Some(reason), Some(TOLD.as_u16())));
    place.send(Joining::Text(refusal.rpc(Some(id))));
    reply::empty(TOLD)
}

/// A client whose child starts: it may try again if that comes to nothing.
struct Opening {
    client: Arc<Client>,
}

impl Opening {
    fn of(client: &Arc<Client>) -> Result<Self, Refusal> {
        let mut state = lock(&client.state);
        if !matches!(*state, State::Fresh) {
            return Err(CallError::Invalid("initialize comes once").into());
        }
        *state = State::Opening;
        Ok(Self {
            client: client.clone(),
        })
    }

    fn opened(&self, session: Arc<Session>) {
        let mut state = lock(&self.client.state);
        // Its stream has ended meanwhile, and saw no session to end.
        if self.client.joining.is_closed() {
            session.close();
        }
        *state = State::Open(session);
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut state = lock(&self.client.state);
        if matches!(*state, State::Opening) {
            *state = State::Fresh;
        }
    }
}

/// The one session that the query names.
fn session_of(query: Option<&str>) -> Option<&str> {
    let mut named = query?
        .split('&')
        .filter_map(|part| part.strip_prefix(SESSION)?.strip_prefix('='));
    let session = named.next()?;
    named.next().is_none().then_some(session)
}

/// 128 random bits: hard to guess, though it opens nothing without its owner's token (mcp-S2).
fn new_id() -> String {
    random::digits::<16>()
        .expect("the operating system gives random bytes, or nothing here is safe")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The parameter that names a client.
const SESSION: &str = "sessionId";
/// What waits to join one stream; more than can be in flight.
const MAX_JOINING: usize = 96;
/// What a message is answered whose answer is on the stream.
const TOLD: StatusCode = StatusCode::ACCEPTED;
/// One token's end, looked at twice.
const SAME: Duration = Duration::from_secs(1);
/// How long a stream may be open before `initialize` has come.
const FRESH: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_names_one_session() {
        assert_eq!(session_of(Some("sessionId=ab")), Some("ab"));
        assert_eq!(session_of(Some("x=1&sessionId=ab")), Some("ab"));
        for query in [
            "",
            "sessionid=ab",
            "sessionIdx=ab",
            "sessionId=a&sessionId=b",
        ] {
            assert_eq!(session_of(Some(query)), None, "{query}");
        }
        assert_eq!(session_of(None), None);
    }
}

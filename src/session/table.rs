//! All sessions of one gateway.
//!
//! Opens, finds and ends them, and says how many there are; `pipeline` has every session from here, and `daemon`
//! sweeps and ends them by it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use foldhash::HashMap;
use tokio::{
    sync::{Notify, oneshot},
    task::JoinSet,
    time::Instant,
};

use crate::{
    audit::{Audit, Owed, Reason},
    auth::{Identity, PrincipalKey},
    authz::{Engine, Permit},
    child::{Source, StartError, stdio::Reading},
    config::Scope,
    egress,
    json::Value,
    mcp::{Era, Message, version},
    session::{
        SendError, Sent, Session,
        exchange::{Event, Failure},
        leaving::Left,
        load::{LimitReached, Slots},
        pending::seal::Seal,
        probe::{self, FirstRequest, Readied, Untold},
        reversed::is_refusal,
        room::Rooms,
        shared::SharedChild,
        warm::Warm,
    },
    sys::random,
};

/// What sessions are made with.
pub struct Setup {
    /// Where children come from.
    pub source: Arc<Source>,
    /// What children may reach.
    pub egress: Arc<egress::Rules>,
    pub audit: Audit,
    /// Whom one child serves.
    pub scope: Scope,
    /// Whether the server is told who calls.
    pub pass_identity: bool,
    /// Whether its tools may have any name.
    pub any_tool_name: bool,
    /// Children that are started ahead, while there are sessions.
    pub warm: usize,
    /// How long they wait without one; for ever where that is zero.
    pub exit_idle: Duration,
    /// Sessions at once, those that are ending included; of all, and of one user.
    pub sessions: (usize, usize),
    /// Calls that wait for an answer at once, likewise.
    pub calls: (usize, usize),
    pub call_timeout: Duration,
    pub reading: Reading,
    /// Bytes of the largest message that a client may send.
    pub longest_body: usize,
    pub session_idle: Duration,
    /// Closes what modern clients of legacy children carry from round to round.
    pub seal: Arc<Seal>,
    /// Decides who may hear of what.
    pub engine: Arc<Engine>,
}

/// The table: session ids to sessions, and the tasks that tend them.
pub struct Sessions {
    pub(super) setup: Setup,
    pub(super) slots: Slots,
    pub(super) calls: Slots,
    pub(super) rooms: Rooms,
    pub(super) warm: Arc<Warm>,
    /// Shared children that have not ended for good.
    pub(super) children: Arc<AtomicUsize>,
    pub(super) backends: Mutex<HashMap<PrincipalKey, Arc<Backend>>>,
    pub(super) table: Arc<Mutex<HashMap<String, Arc<Session>>>>,
    shared: Mutex<HashMap<PrincipalKey, Arc<PrincipalSession>>>,
    left: Mutex<Left>,
    tasks: Mutex<JoinSet<()>>,
    pub(super) ended: Arc<Notify>,
    untold: Untold,
}

/// Where the session of one principal's sessionless requests is; locked while it is made.
type PrincipalSession = tokio::sync::Mutex<Weak<Session>>;

/// Where the child is that several sessions share; locked while it starts.
type Backend = tokio::sync::Mutex<Weak<SharedChild>>;

/// Why a session was not opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    #[error("there are already as many sessions as `limits.sessions` allows")]
    Full,
    #[error("this user has already as many sessions as `limits.sessions-per-user` allows")]
    UserFull,
    #[error("{0}")]
    Start(#[from] StartError),
    /// The server neither discovers nor initializes, or agrees on what nobody speaks.
    #[error("this server speaks no protocol version that is served here")]
    NoVersion,
    #[error("{}", .0.message())]
    Failed(Failure),
    #[error("{0}")]
    Send(#[from] SendError),
}

impl From<LimitReached> for OpenError {
    fn from(over: LimitReached) -> Self {
        match over {
            LimitReached::Server => Self::Full,
            LimitReached::User => Self::UserFull,
        }
    }
}

impl Sessions {
    pub fn new(setup: Setup) -> Self {
        let slots = Slots::new(setup.sessions.0, setup.sessions.1);
        let calls = Slots::new(setup.calls.0, setup.calls.1);
        let rooms = Rooms::new(setup.reading.longest.max(setup.longest_body));
        let nobodys = rooms.room(PrincipalKey::EVERYBODY);
        let slots_and_most = (slots.clone(), setup.sessions.0);
        let warm = Warm::new(setup.warm, slots_and_most, setup.reading, nobodys);
        Self {
            setup,
            slots,
            calls,
            rooms,
            warm: Arc::new(warm),
            children: Arc::default(),
            backends: Mutex::default(),
            table: Arc::default(),
            shared: Mutex::default(),
            left: Mutex::default(),
            tasks: Mutex::default(),
            ended: Arc::default(),
            untold: Untold::default(),
        }
    }

    /// Starts a child for `identity` and has it answer the permitted
    /// `initialize`. The session exists once that answer is no error; the
    /// answer is returned either way, with the session where there is one.
    pub async fn open(
        &self,
        identity: &Arc<Identity>,
        permit: Permit,
        owed: &mut Owed,
    ) -> Result<(Option<Arc<Session>>, Bytes), OpenError> {
        let opening = self.begin(identity, Era::Legacy).await?;
        let session = &opening.session;
        // The text alone: nobody counts what else is known of it while its child starts to speak.
        let initialize = permit.call().message().bytes().clone();
        let mut answer = answer_of(session.send(permit, identity, owed)?)
            .await
            .map_err(OpenError::Failed)?;
        if is_refusal(&answer) {
            // Perhaps it speaks nothing that has this request (mcp-T18).
            answer = probe::for_legacy(session, initialize)
                .await
                .unwrap_or(answer);
        }
        let Some(version) = agreed_version(&answer) else {
            session.settle_opening(Some(Reason::ServerError), answer.len());
            return Ok((None, answer));
        };
        // Its client could not name it in what it asks next (mcp-L8, mcp-L9).
        if !version.is_empty() && !version::LEGACY.contains(&&*version) {
            session.settle_opening(Some(Reason::ChildProtocol), answer.len());
            return Err(OpenError::NoVersion);
        }
        session.settle_opening(None, answer.len());
        session.open(&version);
        if session.has_ended() {
            return Err(OpenError::Failed(Failure::ChildEnded));
        }
        Ok((Some(opening.keep()), answer))
    }

    /// The session that serves what `identity` asks without one: there is one a
    /// principal, started by the first who asks.
    pub async fn shared(&self, identity: &Arc<Identity>) -> Result<Arc<Session>, OpenError> {
        let place = lock(&self.shared)
            .entry(identity.principal_key())
            .or_default()
            .clone();
        if let Ok(place) = place.try_lock()
            && let Some(session) = usable(&place)
        {
            return Ok(session);
        }
        // Boxed: it is once for many requests.
        Box::pin(self.shared_in(&place, identity)).await
    }

    async fn shared_in(
        &self,
        place: &PrincipalSession,
        identity: &Arc<Identity>,
    ) -> Result<Arc<Session>, OpenError> {
        let mut place = place.lock().await;
        if let Some(session) = usable(&place) {
            return Ok(session);
        }
        let session = self.opened(identity).await?;
        *place = Arc::downgrade(&session);
        Ok(session)
    }

    /// A new session for modern clients. There are servers that end at a first message that is not
    /// `initialize`: what ends when it is asked what it speaks is started once more and not asked (mcp-T27).
    async fn opened(&self, identity: &Arc<Identity>) -> Result<Arc<Session>, OpenError> {
        let patience = self.setup.call_timeout;
        let asked = self.untold.first(Instant::now());
        let mut first = asked;
        loop {
            let opening = self.begin(identity, Era::Modern).await?;
            let readied = probe::for_modern(&opening.session, patience, first).await;
            match readied.inspect_err(|_| self.untold.forget())? {
                Readied::Ended => {
                    first = FirstRequest::Initialize;
                    // Its slot is free when its child has been seen out.
                    opening.seen_out().await;
                }
                readied => {
                    self.untold.learn(readied, asked, Instant::now());
                    return Ok(opening.keep());
                }
            }
        }
    }

    /// The session of that id, if it is this identity's. Another identity's is
    /// as unknown as none (tok-15): the reason is for the record only.
    pub fn enter(&self, identity: &Identity, id: &str) -> Result<Arc<Session>, NoSession> {
        let session = lock(&self.table)
            .get(id)
            .filter(|session| session.is_open())
            .cloned()
            .ok_or(NoSession::Unknown)?;
        if session.owner().owns_session_of(identity) {
            Ok(session)
        } else {
            Err(NoSession::Mismatch)
        }
    }

    /// The session of that id, whoever may enter it.
    pub(super) fn find(&self, id: &str) -> Option<Arc<Session>> {
        lock(&self.table).get(id).cloned()
    }

    pub(super) fn seal(&self) -> &Seal {
        &self.setup.seal
    }

    /// Ends a session by its client's wish.
    pub fn close(&self, session: &Session) {
        lock(&self.table).remove(session.id());
        session.close();
    }

    /// Fails overdue calls and ends idle sessions. Called about once a second.
    pub fn sweep(&self, now: Instant) {
        let sessions: Vec<_> = lock(&self.table).values().cloned().collect();
        for session in &sessions {
            if session.sweep(now, self.setup.session_idle) {
                self.close(session);
            }
        }
        self.make_room(&sessions, &mut lock(&self.left), now);
        lock(&self.backends).retain(|_, backend| {
            Arc::strong_count(backend) > 1
                || backend
                    .try_lock()
                    .is_ok_and(|shared| shared.strong_count() > 0)
        });
        // A place that somebody holds is in use.
        lock(&self.shared).retain(|_, place| {
            Arc::strong_count(place) > 1
                || place
                    .try_lock()
                    .is_ok_and(|session| session.strong_count() > 0)
        });
        self.cool(now, self.setup.exit_idle);
        while self.tasks().try_join_next().is_some() {}
    }

    /// Why this identity may open no more sessions now, if that is so.
    pub fn full(&self, identity: &Identity) -> Option<OpenError> {
        let over = self.slots.look(identity.principal_key()).err()?;
        Some(over.into())
    }

    /// Whether a sessionless request of this identity would have to open one.
    pub fn lacks_shared(&self, identity: &Identity) -> bool {
        let shared = lock(&self.shared);
        let place = shared.get(&identity.principal_key());
        // One that is locked is being made.
        place.is_none_or(|place| {
            place
                .try_lock()
                .is_ok_and(|session| session.strong_count() == 0)
        })
    }

    /// Waits until a session has ended for good.
    pub async fn one_ended(&self) {
        self.ended.notified().await;
    }

    /// Whether there is no session and no child left.
    pub fn is_idle(&self) -> bool {
        self.slots.count() == 0 && self.children.load(Ordering::Relaxed) == 0
    }

    /// How many sessions there are, those that are starting or ending included.
    pub fn count(&self) -> usize {
        self.slots.count()
    }

    /// Bytes of large messages that wait until clients have read them.
    pub fn unread(&self) -> usize {
        self.rooms.taken()
    }

    /// How many calls wait for a child's answer.
    pub fn in_flight(&self) -> usize {
        lock(&self.table)
            .values()
            .map(|session| session.in_flight())
            .sum()
    }

    /// Ends the streams that would stay open: there will be nothing more on them.
    pub fn end_streams(&self) {
        for session in lock(&self.table).values() {
            session.end_streams();
        }
    }

    /// Ends every session; what is in flight is told that its outcome is not known.
    pub async fn end_all(&self) {
        let sessions: Vec<_> = lock(&self.table)
            .drain()
            .map(|(_, session)| session)
            .collect();
        for session in sessions {
            session.fail_all(Failure::ShuttingDown);
            session.close();
        }
        self.close_warm();
        let mut tasks = std::mem::take(&mut *self.tasks());
        while tasks.join_next().await.is_some() {}
    }

    pub(super) fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why there is no session to enter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NoSession {
    Unknown,
    /// It is another identity's.
    Mismatch,
}

/// A session that is being opened: it ends with whoever opens it, unless it is kept.
pub(super) struct OpeningSession {
    pub(super) session: Arc<Session>,
    pub(super) kept: bool,
    /// Ends when nothing is left of it, its slot included.
    pub(super) gone: oneshot::Receiver<()>,
}

impl OpeningSession {
    fn keep(mut self) -> Arc<Session> {
        self.kept = true;
        self.session.clone()
    }

    /// Ends it, and waits until nothing is left of it.
    async fn seen_out(mut self) {
        self.session.close();
        let _ = (&mut self.gone).await;
    }
}

impl Drop for OpeningSession {
    fn drop(&mut self) {
        if !self.kept {
            self.session.close();
        }
    }
}

pub(super) async fn answer_of(sent: Sent) -> Result<Bytes, Failure> {
    let Sent::Exchange(mut exchange) = sent else {
        return Err(Failure::BadAnswer);
    };
    loop {
        match exchange.next().await {
            Some(Event::Answer(answer)) => return Ok(answer),
            Some(Event::Failed(failure)) => return Err(failure),
            // Before its session exists a client has nowhere to hear this.
            Some(Event::Message(_)) => {}
            None => return Err(Failure::ChildEnded),
        }
    }
}

/// The version that the child's answer to `initialize` names, or nothing; `None` if it is an error.
fn agreed_version(answer: &Bytes) -> Option<String> {
    let message = Message::parse(answer.clone()).ok()?;
    let version = message.root().get("result")?.get("protocolVersion");
    Some(
        version
            .and_then(Value::as_str)
            .unwrap_or_default()
            .into_owned(),
    )
}

pub(super) fn new_id() -> String {
    random::digits::<16>()
        .expect("the operating system gives random bytes, or nothing here is safe")
}

/// The session that stands there, if it still serves.
fn usable(place: &Weak<Session>) -> Option<Arc<Session>> {
    place.upgrade().filter(|session| session.is_usable())
}

pub(super) fn lock<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

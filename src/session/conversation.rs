//! One session: who owns it, what is in flight, and the way in.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use crate::{
    audit::{Audit, Event as Audited, Outcome, Reason, RequestId},
    auth::Identity,
    authz::Permit,
    child::stdio,
    mcp::{Call, Id, Shape},
    session::{
        exchange::{Event, Exchange, Failure},
        own::OwnMessage,
        rewrite::{progress_token, renumbered},
    },
};

/// A conversation of one identity with one child.
pub struct Session {
    pub(super) id: String,
    owner: Identity,
    audit: Audit,
    call_timeout: Duration,
    /// Lines for the child. Bounded: a child that does not read is not waited for (probe-68).
    stdin: mpsc::Sender<Bytes>,
    /// Bytes of those lines.
    unwritten: AtomicUsize,
    state: Mutex<State>,
    /// Messages of the child's that nobody could be given.
    unheard: AtomicU64,
    /// Said once when the session must end.
    pub(super) end: Notify,
}

pub(super) struct State {
    /// The number of the next request towards the child; never used twice.
    next: u64,
    in_flight: HashMap<u64, InFlight>,
    /// The server's own requests that a client may answer, by their id as JSON.
    asked: HashSet<Bytes>,
    last_used: Instant,
    unwanted: bool,
    /// Its `initialize` was answered: its client may come in.
    open: bool,
    ended: bool,
}

impl State {
    fn admits(&self, id: &Id) -> Result<(), SendError> {
        if self.in_flight.values().any(|other| other.id == *id) {
            return Err(SendError::DuplicateId);
        }
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            Err(SendError::Busy)
        } else {
            Ok(())
        }
    }
}

struct InFlight {
    id: Id,
    events: mpsc::Sender<Event>,
    /// Bytes of the messages among them that wait.
    unread: Arc<AtomicUsize>,
    deadline: Instant,
    progress_token: Option<Bytes>,
    outcome: OutcomeOwed,
}

/// The record that every permitted request owes the auditors.
struct OutcomeOwed {
    request: RequestId,
    started: Instant,
    bytes_in: usize,
}

/// What became of a message that was sent.
pub enum Sent {
    /// A request: its answers come here.
    Exchange(Exchange),
    /// A notification or a response: nothing will come.
    Accepted,
}

/// Why a message did not enter the session.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SendError {
    #[error("the session has ended")]
    Gone,
    #[error("a request with this id is already in flight")]
    DuplicateId,
    #[error("the server is busy")]
    Busy,
    #[error("nobody asked for this response")]
    NotAsked,
}

impl Session {
    pub(super) fn new(
        id: String,
        owner: Identity,
        audit: Audit,
        call_timeout: Duration,
        stdin: mpsc::Sender<Bytes>,
    ) -> Arc<Self> {
        let state = State {
            next: 1,
            in_flight: HashMap::new(),
            asked: HashSet::new(),
            last_used: Instant::now(),
            unwanted: false,
            open: false,
            ended: false,
        };
        Arc::new(Self {
            id,
            owner,
            audit,
            call_timeout,
            stdin,
            unwritten: AtomicUsize::new(0),
            state: Mutex::new(state),
            unheard: AtomicU64::new(0),
            end: Notify::new(),
        })
    }

    /// The session's id: 128 random bits, visible ASCII (mcp-L7).
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn owner(&self) -> &Identity {
        &self.owner
    }

    /// Whether [`Session::send`] would take this now: asked before the decision
    /// is recorded, so that a refusal is recorded as one.
    pub fn admits(&self, call: &Call) -> Result<(), SendError> {
        let state = self.lock()?;
        match call.shape() {
            Shape::Request(id) => state.admits(id),
            Shape::Notification => Ok(()),
            Shape::Response(id) if state.asked.contains(id.as_json()) => Ok(()),
            Shape::Response(_) => Err(SendError::NotAsked),
        }
    }

    /// Sends what a policy permitted. The request's outcome is recorded under
    /// `request`, whether or not the client waits for it.
    pub fn send(&self, permit: Permit, request: RequestId) -> Result<Sent, SendError> {
        let call = permit.into_call();
        match call.shape() {
            Shape::Request(id) => self.request(&call, id.clone(), request).map(Sent::Exchange),
            Shape::Notification => self.notify(&call).map(|()| Sent::Accepted),
            Shape::Response(id) => self.respond(&call, id).map(|()| Sent::Accepted),
        }
    }

    /// Ends the session by its client's wish or the gateway's; its child is given time to leave.
    pub fn close(&self) {
        self.state().unwanted = true;
        self.end.notify_one();
    }

    /// Its child has nothing more to say.
    pub(super) fn hang_up(&self) {
        self.end.notify_one();
    }

    /// Whether it ends because somebody wanted it to.
    pub(super) fn is_unwanted(&self) -> bool {
        self.state().unwanted
    }

    fn request(&self, call: &Call, id: Id, request: RequestId) -> Result<Exchange, SendError> {
        let mut state = self.lock()?;
        state.admits(&id)?;
        let number = state.next;
        let (events, receiver) = mpsc::channel(MAX_EVENTS);
        self.write(renumbered(call, number))?;
        let now = Instant::now();
        state.next += 1;
        state.last_used = now;
        let outcome = OutcomeOwed {
            request,
            started: now,
            bytes_in: call.message().bytes().len(),
        };
        let deadline = now + self.call_timeout;
        let unread = Arc::new(AtomicUsize::new(0));
        let exchange = Exchange::new(receiver, unread.clone());
        state.in_flight.insert(
            number,
            InFlight {
                id,
                events,
                unread,
                deadline,
                progress_token: progress_token(call),
                outcome,
            },
        );
        Ok(exchange)
    }

    fn notify(&self, call: &Call) -> Result<(), SendError> {
        let mut state = self.lock()?;
        state.last_used = Instant::now();
        if call.method() != "notifications/cancelled" {
            return self.write(stdio::line(call.message().bytes().to_vec()));
        }
        let Some(named) = call.params().and_then(|params| params.get("requestId")) else {
            return Ok(());
        };
        let number = state
            .in_flight
            .iter()
            .find(|(_, call)| call.id.as_json() == named.raw())
            .map(|(number, _)| *number);
        // Another's id, or one already answered: accepted without effect (json-18).
        let Some(number) = number else { return Ok(()) };
        let text = number.to_string();
        self.write(stdio::line(
            call.message().with(&[(named.span(), text.as_bytes())]),
        ))?;
        if let Some(cancelled) = state.in_flight.remove(&number) {
            self.fail(cancelled, Failure::Cancelled);
        }
        Ok(())
    }

    fn respond(&self, call: &Call, id: &Id) -> Result<(), SendError> {
        let mut state = self.lock()?;
        state.last_used = Instant::now();
        if !state.asked.contains(id.as_json()) {
            return Err(SendError::NotAsked);
        }
        // Only then: a client that is told to try again must find its question still there.
        self.write(stdio::line(call.message().bytes().to_vec()))?;
        state.asked.remove(id.as_json());
        Ok(())
    }

    /// The child's answer to request `number`: what it is, and its text under the client's id.
    pub(super) fn answer(
        &self,
        number: u64,
        answer: Answer,
        text: impl FnOnce(&Id) -> Bytes,
    ) -> Answered {
        let mut state = self.state();
        match state.in_flight.remove(&number) {
            Some(call) => {
                state.last_used = Instant::now();
                match answer {
                    Answer::Neither => self.fail(call, Failure::BadAnswer),
                    Answer::Result | Answer::Error => {
                        let text = text(&call.id);
                        let reason = (answer == Answer::Error).then_some(Reason::ServerError);
                        self.finish(call, reason, text.len(), Event::Answer(text));
                    }
                }
                Answered::Delivered
            }
            // Cancelled or timed out: the child could not know (fault-17).
            None if (1..state.next).contains(&number) => Answered::Late,
            None => Answered::Unknown,
        }
    }

    /// Gives a notification of the child's to the client it is meant for, or
    /// to the one most lately heard from; `false` if nobody listens.
    pub(super) fn pass_on(&self, message: Bytes, token: Option<&[u8]>) -> bool {
        let state = self.state();
        let meant = match token {
            Some(token) => state
                .in_flight
                .values()
                .find(|call| call.progress_token.as_deref() == Some(token)),
            None => newest_listener(&state),
        };
        meant.is_some_and(|call| tell(call, message))
    }

    /// Gives a request of the child's to a client that can answer it.
    pub(super) fn ask(&self, message: Bytes, id: Bytes) -> bool {
        let mut state = self.state();
        // While `initialize` is in flight nobody listens: its client waits for the answer alone.
        if !state.open || state.asked.len() >= MAX_ASKED {
            return false;
        }
        let heard = newest_listener(&state).is_some_and(|call| tell(call, message));
        if heard {
            state.asked.insert(id);
        }
        heard
    }

    /// Forgets a request of the child's that it has itself cancelled.
    pub(super) fn unask(&self, id: &[u8]) {
        self.state().asked.remove(id);
    }

    pub(super) fn say(&self, own: &OwnMessage<'_>) -> bool {
        self.write(own.line()).is_ok()
    }

    /// Fails what is overdue, and says whether the session itself has been idle too long.
    pub(super) fn sweep(&self, now: Instant, idle: Duration) -> bool {
        let mut state = self.state();
        let overdue: Vec<u64> = state
            .in_flight
            .iter()
            .filter(|(_, call)| call.deadline <= now)
            .map(|(number, _)| *number)
            .collect();
        for number in overdue {
            self.say(&OwnMessage::Cancelled {
                number,
                reason: "timeout",
            });
            if let Some(call) = state.in_flight.remove(&number) {
                self.fail(call, Failure::Timeout);
            }
        }
        state.in_flight.is_empty() && now.duration_since(state.last_used) >= idle
    }

    /// Nothing more will come: fails what is in flight.
    pub(super) fn fail_all(&self, failure: Failure) {
        let mut state = self.state();
        state.ended = true;
        let calls: Vec<InFlight> = state.in_flight.drain().map(|(_, call)| call).collect();
        for call in calls {
            self.fail(call, failure);
        }
    }

    /// Counts a message of the child's that nobody could be given.
    pub(super) fn count_unheard(&self) {
        self.unheard.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    pub(super) fn unheard(&self) -> u64 {
        self.unheard.load(Ordering::Relaxed)
    }

    pub(super) fn open(&self) {
        self.state().open = true;
    }

    pub(super) fn is_open(&self) -> bool {
        self.state().open
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state().ended
    }

    pub(super) fn in_flight(&self) -> usize {
        self.state().in_flight.len()
    }

    fn fail(&self, call: InFlight, failure: Failure) {
        self.finish(call, Some(failure.reason()), 0, Event::Failed(failure));
    }

    /// The way out of every request: the outcome is recorded, then the client told.
    fn finish(&self, call: InFlight, reason: Option<Reason>, bytes_out: usize, event: Event) {
        self.audit.record(&Audited::Outcome(Outcome {
            request_id: call.outcome.request,
            reason,
            status: None,
            duration: call.outcome.started.elapsed(),
            bytes_in: call.outcome.bytes_in as u64,
            bytes_out: bytes_out as u64,
        }));
        // A client that has gone, or is too slow to be kept, misses its answer.
        let _ = call.events.try_send(event);
    }

    /// So many bytes of lines have reached the child.
    pub(super) fn written(&self, bytes: usize) {
        self.unwritten.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn write(&self, line: Bytes) -> Result<(), SendError> {
        let bytes = line.len();
        // Counted first: the writer may be done with it before this goes on.
        let before = self.unwritten.fetch_add(bytes, Ordering::Relaxed);
        let sent = if before > 0 && before + bytes > MAX_UNWRITTEN {
            Err(mpsc::error::TrySendError::Full(line))
        } else {
            self.stdin.try_send(line)
        };
        sent.inspect_err(|_| self.written(bytes))
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => SendError::Busy,
                mpsc::error::TrySendError::Closed(_) => SendError::Gone,
            })
    }

    fn lock(&self) -> Result<MutexGuard<'_, State>, SendError> {
        let state = self.state();
        if state.ended {
            Err(SendError::Gone)
        } else {
            Ok(state)
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code path leaves the state half changed, so a panic elsewhere does not taint it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a child's answer holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    Result,
    Error,
    /// Both, or neither: no JSON-RPC answer (json-17).
    Neither,
}

/// What became of an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answered {
    Delivered,
    Late,
    Unknown,
}

/// Gives a message to a client, if it keeps up: the last place is its answer's.
fn tell(call: &InFlight, message: Bytes) -> bool {
    let bytes = message.len();
    let unread = call.unread.load(Ordering::Relaxed);
    if call.events.capacity() <= 1 || (unread > 0 && unread + bytes > MAX_UNREAD) {
        return false;
    }
    call.unread.fetch_add(bytes, Ordering::Relaxed);
    call.events.try_send(Event::Message(message)).is_ok()
}

/// The open stream of the latest request: where messages go that name no request.
fn newest_listener(state: &State) -> Option<&InFlight> {
    state
        .in_flight
        .iter()
        .filter(|(_, call)| !call.events.is_closed())
        .max_by_key(|(number, _)| **number)
        .map(|(_, call)| call)
}

/// Requests a child has not yet answered, per session; beyond it, 503.
const MAX_IN_FLIGHT: usize = 64;
/// Events waiting for one client; one that reads slower than that loses its stream.
const MAX_EVENTS: usize = 256;
/// Bytes of messages waiting for one client; a single longer one still goes (conn-3).
const MAX_UNREAD: usize = 1 << 20;
/// Bytes of lines waiting for a child that does not read; a single longer one still goes.
const MAX_UNWRITTEN: usize = 8 << 20;
/// Requests of the server's that no client has answered.
const MAX_ASKED: usize = 64;

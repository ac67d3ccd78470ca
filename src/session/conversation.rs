//! One session: who owns it, what is in flight, and the way in.
//!
//! What its [`SessionState`] holds is written down here; what is done with a part of that stands in the file that the part
//! is from, as more of `impl Session`. Made by `starting`; entered by `pipeline`, and by `shared` and `pump` with
//! what a child says.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use foldhash::HashMap;
use tokio::{sync::Notify, time::Instant};

use crate::{
    audit::{self, Audit, Owed},
    auth::{Identity, PrincipalKey},
    authz::{Engine, Permit},
    mcp::{Call, Era, Id, Shape, spelled, version},
    session::{
        SendError, Sent,
        bridge::Bridge,
        calls::InFlight,
        exchange::Failure,
        line::Line,
        listening::{INITIALIZED, SessionStreams},
        load::Slots,
        outbox::{MAX_UNWRITTEN, NotQueued, Outbox, SHORT_QUEUE},
        owed::OutcomeOwed,
        own::OwnMessage,
        pending::{questions::Questions, seal::Seal},
        probe::Spoken,
        reversed::Reversed,
        room::{Room, Rooms},
        stream::Style,
        subscriptions::{Resources, subscribing::Subscribed},
        tasks::{Tasks, progress::RunningTasks},
        tools::KnownTools,
    },
};

/// A conversation of one identity with one child.
pub struct Session {
    pub(super) id: String,
    /// The id as records show it.
    tag: Arc<str>,
    owner: Arc<Identity>,
    /// The owner's, which takes a hash to say.
    principal: PrincipalKey,
    pub(super) audit: Audit,
    pub(super) call_timeout: Duration,
    /// How many calls may wait for an answer, of its user and of all.
    pub(super) calls: Slots,
    /// The memory of what waits for its clients.
    pub(super) room: Arc<Room>,
    /// What its clients speak.
    pub(super) era: Era,
    /// What stands between, where its child does not speak its clients' era.
    pub(super) bridge: OnceLock<Box<Bridge>>,
    /// What the child speaks, where others share it.
    pub(super) spoken: OnceLock<Arc<Spoken>>,
    /// Closes what modern clients carry from round to round.
    pub(super) seal: Arc<Seal>,
    /// Decides who may hear of what.
    pub(super) engine: Arc<Engine>,
    /// Lines for the child. Bounded: a child that does not read is not waited for (probe-68).
    stdin: Outbox,
    /// Bytes of those lines.
    unwritten: AtomicUsize,
    state: Mutex<SessionState>,
    /// Messages of the child's that nobody could be given.
    unheard: AtomicU64,
    /// The child has asked what its clients are still to be asked.
    pub(super) asking: AtomicBool,
    /// What its child's tools want to be known of them.
    pub(super) tools: KnownTools,
    /// Said once when the session must end.
    pub(super) end: Notify,
}

pub(super) struct SessionState {
    /// The number of the next request towards the child; never used twice.
    pub(super) next: u64,
    pub(super) in_flight: HashMap<u64, InFlight>,
    /// The server's own requests that a client may answer.
    pub(super) asked: Questions,
    pub(super) last_used: Instant,
    unwanted: bool,
    /// Its `initialize` was answered: its client may come in.
    pub(super) open: bool,
    /// The protocol version that was agreed on then.
    version: String,
    pub(super) streams: SessionStreams,
    ended: bool,
    /// From which level on a legacy child writes log messages, once it was told.
    pub(super) level: Option<usize>,
    pub(super) reversed: Reversed,
    pub(super) tasks: Tasks,
    pub(super) progress: RunningTasks,
    pub(super) resources: Resources,
    pub(super) subscribed: Subscribed,
}

impl SessionState {
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    pub(super) fn admits(&self, era: Era, id: &Id) -> Result<(), SendError> {
        // Modern requests of several clients meet in one child: only theirs is whose id is whose.
        let twice = |call: &InFlight| {
            era == Era::Legacy && spelled(call.id.as_json()) == spelled(id.as_json())
        };
        if self.in_flight.values().any(twice) {
            return Err(SendError::DuplicateId);
        }
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            Err(SendError::Busy)
        } else {
            Ok(())
        }
    }
}

impl Session {
    pub(super) fn new(
        id: String,
        owner: Arc<Identity>,
        audit: Audit,
        (call_timeout, calls, rooms): (Duration, Slots, &Rooms),
        era: Era,
        stdin: Outbox,
        (seal, engine): (Arc<Seal>, Arc<Engine>),
    ) -> Arc<Self> {
        let state = SessionState {
            next: 1,
            in_flight: HashMap::default(),
            asked: Questions::default(),
            last_used: Instant::now(),
            unwanted: false,
            open: false,
            version: String::new(),
            streams: SessionStreams::default(),
            ended: false,
            level: None,
            reversed: Reversed::default(),
            tasks: Tasks::default(),
            progress: RunningTasks::default(),
            resources: Resources::default(),
            subscribed: Subscribed::default(),
        };
        let principal = owner.principal_key();
        Arc::new(Self {
            tag: audit::session_tag(&id),
            id,
            principal,
            room: rooms.room(principal),
            owner,
            audit,
            call_timeout,
            calls,
            era,
            bridge: OnceLock::new(),
            spoken: OnceLock::new(),
            seal,
            engine,
            stdin,
            unwritten: AtomicUsize::new(0),
            state: Mutex::new(state),
            unheard: AtomicU64::new(0),
            asking: AtomicBool::new(false),
            tools: KnownTools::default(),
            end: Notify::new(),
        })
    }

    /// The session's id: 128 random bits, visible ASCII (mcp-L7).
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The id as records show it.
    pub fn tag(&self) -> Arc<str> {
        self.tag.clone()
    }

    pub(super) fn owner(&self) -> &Identity {
        &self.owner
    }

    /// Whose it is.
    pub(super) fn principal(&self) -> PrincipalKey {
        self.principal
    }

    /// Whether [`Session::send`] would take this now: asked before the decision
    /// is recorded, so that a refusal is recorded as one.
    pub fn admits(&self, call: &Call) -> Result<(), SendError> {
        let state = self.lock()?;
        match call.shape() {
            Shape::Request(id) => {
                state.admits(self.era, id)?;
                Ok(self.calls.look(self.principal)?)
            }
            Shape::Notification => Ok(()),
            Shape::Response(id) if self.has_asked(&state, id) => Ok(()),
            Shape::Response(_) => Err(SendError::NotAsked),
        }
    }

    /// Sends what a policy permitted. A request's outcome is the session's to record from then
    /// on, whether or not the client waits for it.
    pub fn send(
        self: &Arc<Self>,
        permit: Permit,
        identity: &Identity,
        owed: &mut Owed,
    ) -> Result<Sent, SendError> {
        let call = permit.into_call();
        match call.shape() {
            Shape::Request(id) => self
                .request(&call, identity, id.clone(), owed)
                .map(Sent::Exchange),
            Shape::Notification => self.notify(&call).map(|()| Sent::Accepted),
            Shape::Response(id) => self.respond(&call, id).map(|()| Sent::Accepted),
        }
    }

    /// Whether a call stays whole while its answer is waited for, as one that a server may have made again. Of any
    /// other what waits is counted as the session's, and nothing is kept.
    pub fn keeps_calls(&self) -> bool {
        self.modern_server().is_some()
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

    pub(super) fn style(&self, state: &SessionState) -> Style {
        match (self.era, state.version.as_str()) {
            (Era::Modern, _) => Style::Plain,
            (Era::Legacy, "2025-11-25") => Style::Primed,
            (Era::Legacy, _) => Style::Ids,
        }
    }

    pub(super) fn notify(&self, call: &Call) -> Result<(), SendError> {
        let mut state = self.lock()?;
        state.last_used = Instant::now();
        self.await_listener(&mut state, call.method());
        if call.method() != "notifications/cancelled" && self.modern_server().is_some() {
            drop(state);
            self.heard_initialized(call.method());
            return Ok(());
        }
        if call.method() != "notifications/cancelled" {
            return self.write(Line::of(call.message(), &[]));
        }
        let Some(named) = call.param("requestId") else {
            return Ok(());
        };
        let number = state
            .in_flight
            .iter()
            .find(|(_, call)| spelled(call.id.as_json()) == spelled(named.raw()))
            .map(|(number, call)| (*number, call.number(*number)));
        // Another's id, or one already answered: accepted without effect (json-18).
        let Some((number, told)) = number else {
            return Ok(());
        };
        if let Some(told) = told {
            let text = told.to_string();
            let said = self.write(Line::of(call.message(), &[(named.span(), text.as_bytes())]));
            // It says so once: where its own words, which may be long, have no room the gateway's have.
            let own = OwnMessage::Cancelled {
                number: told,
                reason: "the client has cancelled",
            };
            if said.is_err() && !self.say(&own) {
                return said;
            }
        }
        if let Some(cancelled) = state.in_flight.remove(&number) {
            self.fail(&mut state, cancelled, Failure::Cancelled);
        }
        Ok(())
    }

    pub(super) fn respond(&self, call: &Call, id: &Id) -> Result<(), SendError> {
        let mut state = self.lock()?;
        state.last_used = Instant::now();
        if !state.asked.wait_for(&spelled(id.as_json())) {
            // Its client could not know that nobody waits for it any more.
            let known = self.has_asked(&state, id);
            return if known {
                Ok(())
            } else {
                Err(SendError::NotAsked)
            };
        }
        if self.modern_server().is_some() {
            return self.respond_to_modern(&mut state, call, id);
        }
        // Only then: a client that is told to try again must find its question still there.
        self.write(Line::of(call.message(), &[]))?;
        state.asked.close(&spelled(id.as_json()));
        Ok(())
    }

    /// Says that to the child, unless that reads nothing and its queue is full. What ends something there is kept all
    /// the same until it reads: nobody would end it later.
    pub(super) fn say(&self, own: &OwnMessage<'_>) -> bool {
        let line = own.line();
        if self.write(line.clone()).is_ok() {
            return true;
        }
        let Some(beyond) = own.beyond() else {
            return false;
        };
        let bytes = line.len();
        self.unwritten.fetch_add(bytes, Ordering::Relaxed);
        let sent = self.stdin.try_send_beyond(line, beyond);
        sent.inspect_err(|_| self.written(bytes)).is_ok()
    }

    /// Fails what is overdue, and says whether the session itself has been idle too long.
    pub(super) fn sweep(&self, now: Instant, idle: Duration) -> bool {
        let mut state = self.state();
        let overdue: Vec<(u64, Option<u64>)> = state
            .in_flight
            .iter()
            .filter(|(_, call)| call.is_overdue(now))
            .map(|(number, call)| (*number, call.number(*number)))
            .collect();
        for (number, told) in overdue {
            if let Some(number) = told {
                self.say(&OwnMessage::Cancelled {
                    number,
                    reason: "timeout",
                });
            }
            if let Some(call) = state.in_flight.remove(&number) {
                self.withdraw(&mut state, &call);
                self.fail(&mut state, call, Failure::Timeout);
            }
        }
        for call in state.in_flight.values() {
            call.tell_late(now, self.era);
        }
        self.listen_again(&mut state, now);
        self.look_after_tasks(&mut state, now);
        self.give_up_results(&mut state, now);
        self.look_at_watched(&mut state, now);
        self.give_up_subscribing(&mut state, now);
        self.sweep_streams(&mut state, now);
        self.forget_read_if_scarce(&mut state);
        if state.in_flight.is_empty() {
            // Thousands of sessions wait for their users most of the time.
            state.in_flight.shrink_to_fit();
        }
        let is_idle = state.in_flight.is_empty() && now.duration_since(state.last_used) >= idle;
        if state.owes_missed(now) {
            drop(state);
            self.tell_missed(now);
        }
        is_idle
    }

    /// Nothing more will come: fails what is in flight.
    pub(super) fn fail_all(&self, failure: Failure) {
        let mut state = self.state();
        state.ended = true;
        let opening = state.reversed.opening.take();
        OutcomeOwed::settle(opening, Some(failure.reason()), 0);
        let calls: Vec<InFlight> = state.in_flight.drain().map(|(_, call)| call).collect();
        for call in calls {
            self.fail(&mut state, call, failure);
        }
        state.streams.close();
    }

    /// Counts a message of the child's that nobody could be given.
    pub(super) fn count_unheard(&self) {
        self.unheard.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    pub(super) fn unheard(&self) -> u64 {
        self.unheard.load(Ordering::Relaxed)
    }

    /// Its client may come in, under the version that was agreed on.
    pub(super) fn open(&self, version: &str) {
        let mut state = self.state();
        state.open = true;
        version.clone_into(&mut state.version);
        self.await_listener(&mut state, INITIALIZED);
    }

    /// Whether this version was agreed on.
    pub fn speaks(&self, version: &str) -> bool {
        self.state().version == version
    }

    /// Whether its child may say several things at once.
    pub(super) fn takes_batches(&self) -> bool {
        match self.legacy_server() {
            Some(server) => server.batches(),
            None => self.speaks(version::BATCHES),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.state().open
    }

    /// Whether it can take more.
    pub(super) fn is_usable(&self) -> bool {
        let state = self.state();
        !state.ended && !state.unwanted
    }

    pub(super) fn has_ended(&self) -> bool {
        self.state().has_ended()
    }

    /// How many calls wait for an answer; those that are meant to stay open are none.
    pub(super) fn in_flight(&self) -> usize {
        let state = self.state();
        let waits = |call: &&InFlight| !call.is_subscription();
        state.in_flight.values().filter(waits).count()
    }

    /// So many bytes of lines have reached the child.
    pub(super) fn written(&self, bytes: usize) {
        self.unwritten.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn write(&self, line: impl Into<Line>) -> Result<(), SendError> {
        let line = line.into();
        let bytes = line.len();
        // Counted first: the writer may be done with it before this goes on.
        let before = self.unwritten.fetch_add(bytes, Ordering::Relaxed);
        let line = if before > 0 && before + bytes > MAX_UNWRITTEN {
            None
        } else if before + bytes > SHORT_QUEUE {
            // Many children that do not read are many such queues.
            line.kept(|part| self.room.hold_all(part))
        } else {
            Some(line)
        };
        let sent = line.map_or(Err(NotQueued::Full), |line| self.stdin.try_send(line));
        sent.inspect_err(|_| self.written(bytes))
            .map_err(|error| match error {
                NotQueued::Full => SendError::Busy,
                NotQueued::Closed => SendError::Gone,
            })
    }

    pub(super) fn lock(&self) -> Result<MutexGuard<'_, SessionState>, SendError> {
        let state = self.state();
        if state.ended {
            Err(SendError::Gone)
        } else {
            Ok(state)
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, SessionState> {
        // No code path leaves the state half changed, so a panic elsewhere does not taint it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Requests a child has not yet answered, per session; one more is refused.
const MAX_IN_FLIGHT: usize = 64;

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;

    use super::*;
    use crate::{
        auth::Identity,
        session::{
            Exchange, Late, exchange::Event, outbox::OutboxReader, pump, room::Rooms, testing,
        },
    };

    /// probe-68: the lines of many sessions whose children do not read are bounded together, each user's apart; what
    /// is read makes room.
    #[test]
    fn what_waits_for_children_that_do_not_read_is_bounded_for_a_user() {
        let rooms = Rooms::new(1);
        let line = Bytes::from(vec![b'x'; 3 << 20]);
        let fill = |who: &str| {
            let mut all = Vec::new();
            let mut taken = 0;
            for _ in 0..32 {
                let who = Identity::example("https://a", who);
                let (session, lines) = testing::session_of(who, Era::Legacy, &rooms);
                let sent = (0..4).take_while(|_| session.write(line.clone()).is_ok());
                taken += sent.count();
                all.push((session, lines));
            }
            (all, taken)
        };
        let (mut alice, taken) = fill("alice");
        assert_eq!(
            taken,
            (64 << 20) / line.len(),
            "of 64 that fit in their queues"
        );
        let (session, lines) = &mut alice[31];
        assert_eq!(session.write(line.clone()), Err(SendError::Busy));
        let small = Bytes::from_static(b"small");
        assert_eq!(session.write(small.clone()), Ok(()));
        assert_eq!(lines.try_recv(), Some(small));
        let (bob, taken) = fill("bob");
        assert_eq!(taken, (32 << 20) / line.len(), "half of what she leaves");
        drop(bob);
        let (first, lines) = &mut alice[0];
        let read = lines.try_recv().unwrap();
        first.written(read.len());
        drop(read);
        assert_eq!(alice[31].0.write(line), Ok(()));
    }

    /// probe-68, mcp-T28: the subscription of a client that goes while the child reads nothing ends when that reads again, and
    /// so does the call that took too long.
    #[tokio::test(start_paused = true)]
    async fn what_has_ended_while_the_child_read_nothing_ends_there_when_it_reads_again() {
        let (session, mut lines) = testing::session(Era::Modern);
        let asks = |id: u64, method: &str| {
            let request = format!(
                r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{{"name":"t"}}}}"#
            );
            testing::asked(&session, &request)
        };
        let listens = asks(1, "subscriptions/listen");
        let _waits = asks(2, "tools/call");
        while session.say(&OwnMessage::Discover { number: 0 }) {}
        drop(listens);
        session.sweep(Instant::now() + session.call_timeout, Duration::MAX);
        let mut ended = Vec::new();
        while let Some(line) = lines.try_recv() {
            session.written(line.len());
            let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
            ended.extend(line["params"]["requestId"].as_u64());
        }
        assert_eq!(ended, [1, 2]);
        assert_eq!(session.unwritten.load(Ordering::Relaxed), 0);
    }

    /// probe-68: a server that asks something while it reads nothing hears when it reads again that nobody will answer, or
    /// that somebody is there.
    #[test]
    fn what_a_child_asks_while_it_reads_nothing_is_answered_when_it_reads_again() {
        for (asks, told) in [
            (
                "roots/list",
                r#""error":{"code":-32601,"message":"no client is listening"}"#,
            ),
            ("ping", r#""result":{}"#),
        ] {
            let (session, mut lines) = testing::session(Era::Legacy);
            while session.say(&OwnMessage::Discover { number: 0 }) {}
            let asks = format!(r#"{{"jsonrpc":"2.0","id":"q","method":"{asks}"}}"#);
            assert!(pump::take(&session, asks.into()));
            let mut last = Bytes::new();
            while let Some(line) = lines.try_recv() {
                session.written(line.len());
                last = line;
            }
            let told = format!("{{\"jsonrpc\":\"2.0\",\"id\":\"q\",{told}}}\n");
            assert_eq!(last, told);
            assert_eq!(session.unwritten.load(Ordering::Relaxed), 0);
        }
    }

    /// fault-46: so many calls of one session wait for its child at once; one more is refused, until one of them is over.
    #[tokio::test]
    async fn one_session_has_so_many_calls_in_flight() {
        let slots = Slots::new(100, 100);
        let (session, mut lines) = testing::session_with(Era::Legacy, slots);
        let asks = |id: u64| {
            format!(
                r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"t"}}}}"#
            )
        };
        let mut waiting = Vec::new();
        for id in 1..=64 {
            assert_eq!(session.admits(&call(&asks(id))), Ok(()), "{id}");
            waiting.push(testing::asked(&session, &asks(id)));
            assert!(lines.try_recv().is_some());
        }
        let more = call(&asks(65));
        assert_eq!(session.admits(&more), Err(SendError::Busy));
        let sent = testing::tried(&session, &asks(65));
        assert_eq!(sent.err(), Some(SendError::Busy));
        assert!(lines.try_recv().is_none(), "its child hears nothing of it");
        let answer = r#"{"jsonrpc":"2.0","id":7,"result":{}}"#;
        assert!(pump::take(&session, answer.into()));
        assert_eq!(session.admits(&more), Ok(()));
    }

    /// A cancellation is heard, too, when the child reads again, if not in the words of whoever was long about it.
    #[tokio::test]
    async fn what_a_client_cancels_while_the_child_reads_nothing_is_cancelled_there_later() {
        for reason in [10, 5000] {
            let (session, mut lines) = testing::session(Era::Legacy);
            let asks = r#"{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"t"}}"#;
            let _waits = testing::asked(&session, asks);
            while session.say(&OwnMessage::Discover { number: 0 }) {}
            let cancels = json!({
                "jsonrpc": "2.0", "method": "notifications/cancelled",
                "params": { "requestId": "a", "reason": "x".repeat(reason) },
            });
            assert_eq!(session.notify(&call(&cancels.to_string())), Ok(()));
            assert_eq!(session.in_flight(), 0);
            let mut last = Bytes::new();
            while let Some(line) = lines.try_recv() {
                session.written(line.len());
                last = line;
            }
            let last: serde_json::Value = serde_json::from_slice(&last).unwrap();
            assert_eq!(last["method"], "notifications/cancelled");
            assert_eq!(last["params"]["requestId"], 1);
            assert_eq!(session.unwritten.load(Ordering::Relaxed), 0);
        }
    }

    /// json-14, json-18: what a client cancels is the call that it names, under the number that the child knows; what it has
    /// not asked, or what has another id, goes on.
    #[tokio::test]
    async fn a_client_cancels_the_call_that_it_names() {
        let (session, mut lines) = testing::session(Era::Legacy);
        let asks = |id: &str| {
            let request = format!(
                r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"t"}}}}"#
            );
            testing::asked(&session, &request)
        };
        let mut calls = [asks("7"), asks("\"a\"")];
        let mut told = || std::iter::from_fn(|| lines.try_recv()).count();
        assert_eq!(told(), 2);
        let cancels = |id: &str| {
            let text = format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{id}}}}}"#
            );
            session.notify(&call(&text))
        };
        for other in ["1", "2", "\"7\"", "\"b\"", "null", "[7]"] {
            assert_eq!(cancels(other), Ok(()));
            assert_eq!((session.in_flight(), told()), (2, 0), "{other}");
        }
        assert_eq!(cancels("\"a\""), Ok(()));
        let line = lines.try_recv().unwrap();
        let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(line["params"]["requestId"], 2);
        assert_eq!(session.in_flight(), 1);
        let ended = calls[1].next().await;
        assert!(matches!(ended, Some(Event::Failed(Failure::Cancelled))));
    }

    /// Whoever has waited for five seconds, or for one in a session, is given a stream, and nobody else; who listens only
    /// then is told so at once.
    #[tokio::test(start_paused = true)]
    async fn who_waits_for_long_waits_on_a_stream() {
        who_waits(Era::Modern, 1000).await;
        who_waits(Era::Legacy, 200).await;
    }

    async fn who_waits(era: Era, fifth: u64) {
        let (session, _lines) = testing::session(era);
        let asks = |id: u64| {
            let request = format!(
                r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"t"}}}}"#
            );
            testing::asked(&session, &request)
        };
        let (mut first, mut unread) = (asks(1), asks(2));
        let look = || session.sweep(Instant::now(), Duration::MAX);
        tokio::time::advance(Duration::from_millis(3 * fifth)).await;
        let mut second = asks(3);
        let looks = async {
            look();
            tokio::task::yield_now().await;
            tokio::time::advance(Duration::from_millis(2 * fifth)).await;
            look();
        };
        tokio::select! {
            biased;
            late = first.next_soon() => assert!(matches!(late, Err(Late))),
            _ = second.next_soon() => panic!("it has time"),
            () = async {
                looks.await;
                tokio::time::sleep(Duration::from_secs(60)).await;
            } => panic!("it has none"),
        }
        assert!(matches!(unread.next_soon().await, Err(Late)));
        session.fail_all(Failure::ChildEnded);
        for mut asked in [first, second, unread] {
            assert!(matches!(
                asked.next_soon().await,
                Ok(Some(Event::Failed(_)))
            ));
        }
    }

    fn call(body: &str) -> Call {
        Call::read(Bytes::copy_from_slice(body.as_bytes()), false).unwrap()
    }

    /// A legacy client's session with a modern child, what that is told, and a call of Alice's that asks her something.
    async fn reversed() -> (Arc<Session>, OutboxReader, Exchange) {
        let (session, mut lines) = testing::eliciting();
        let asks = r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"x"}}"#;
        let asked = testing::asked(&session, asks);
        lines.recv().await.unwrap();
        let question = r#"{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required","inputRequests":{"a":{"method":"elicitation/create","params":{"message":"?","requestedSchema":{"type":"object","properties":{}}}}}}}"#;
        assert!(pump::take(&session, question.into()));
        (session, lines, asked)
    }

    /// json-18: a client that spells an id otherwise means the same question, also one that was made of a modern
    /// server's answer.
    #[tokio::test]
    async fn a_modern_servers_question_is_answered_under_any_spelling_of_its_id() {
        let (session, mut lines, _asked) = reversed().await;
        let answers = call(
            r#"{"jsonrpc":"2.0","id":"thv-1-1\u002d0","result":{"action":"accept","content":{}}}"#,
        );
        let Shape::Response(id) = answers.shape() else {
            panic!("it is a response");
        };
        assert_eq!(session.respond(&answers, id), Ok(()));
        let again = lines.try_recv().expect("the call is made again");
        assert!(String::from_utf8_lossy(&again).contains(r#""inputResponses":{"a":{"#));
        assert_eq!(session.respond(&answers, id), Ok(()));
        assert!(lines.try_recv().is_none(), "it was answered already");
    }
    /// A call that was made again ends when what it goes by now fails, and not when what it went by before does.
    #[tokio::test]
    async fn a_call_that_was_made_again_fails_with_its_last_number() {
        let (session, mut lines, mut asked) = reversed().await;
        session.fail_one(1, Failure::ChildEnded);
        assert_eq!(session.in_flight(), 1, "its client is asked");
        let answers =
            call(r#"{"jsonrpc":"2.0","id":"thv-1-1-0","result":{"action":"accept","content":{}}}"#);
        let Shape::Response(id) = answers.shape() else {
            panic!("it is a response");
        };
        session.respond(&answers, id).unwrap();
        let again = lines.try_recv().expect("the call is made again");
        assert!(
            again.starts_with(br#"{"jsonrpc":"2.0","id":2,"#),
            "{again:?}"
        );
        session.fail_one(1, Failure::ChildEnded);
        assert_eq!(session.in_flight(), 1, "it is another request by now");
        session.fail_one(2, Failure::Unreachable);
        assert!(matches!(asked.next().await, Some(Event::Message(_))));
        let last = asked.next().await;
        assert!(matches!(last, Some(Event::Failed(Failure::Unreachable))));
    }

    /// conn-3: what became of an `initialize` whose answer has no room is on record as that, before its client is told.
    #[tokio::test]
    async fn an_opening_whose_answer_is_dropped_owes_no_outcome() {
        for (has_room, owes) in [(true, true), (false, false)] {
            let (session, _lines) = testing::session(Era::Legacy);
            let body = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#;
            let mut opening = testing::asked(&session, body);
            let full = (!has_room).then(|| session.room.hold_anyway(vec![0; 64 << 20].into()));
            let text = "x".repeat(SHORT_QUEUE);
            let answer = format!(r#"{{"id":1,"result":{{"instructions":"{text}"}}}}"#);
            assert!(pump::take(&session, answer.into()));
            let told = opening.next().await.unwrap();
            assert_eq!(matches!(told, Event::Answer(_)), has_room, "{told:?}");
            assert_eq!(session.state().reversed.opening.is_some(), owes);
            drop(full);
        }
    }
}

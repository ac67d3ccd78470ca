//! Subscriptions of modern clients, and what a legacy child is told of those.
//!
//! Such a child knows nothing of them: it is asked for the resources that matter to
//! anybody, and what it says of changes goes to each subscription that wants it, under that
//! one's name. A subscription is acknowledged when the child has said which of its
//! resources it tells of, and with those alone; what it tells earlier waits (mcp-T28).

pub(super) mod hearing;
pub(super) mod renewing;
pub(super) mod subscribing;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    auth::Identity,
    json::Value,
    mcp::{
        Call, Era, Message, method,
        subscription::{self, Uri, Wanted},
        task,
    },
    session::{
        SendError, Session,
        calls::{AnswerKind, InFlight},
        conversation::SessionState,
        exchange::{Event, Failure},
        own::OwnMessage,
        room::Room,
        subscriptions::subscribing::ResourceSubscription,
    },
};

/// What a request subscribes to.
pub(super) enum CallSubscription {
    /// A modern client's stays open (`subscriptions/listen`).
    Listen {
        /// As whom it hears of resources.
        hearer: Arc<Identity>,
        /// At a legacy child, which knows nothing of it.
        bridged: Option<Box<BridgedSubscription>>,
    },
    /// A legacy client's to one resource (`resources/subscribe`).
    Resource(Box<ResourceSubscription>),
}

/// A modern client's subscription at a legacy child.
pub(super) struct BridgedSubscription {
    wanted: Wanted,
    /// What it would have been told before it was acknowledged; `None` once it is.
    held: Option<Vec<Bytes>>,
}

/// The resources that a legacy child was asked to tell of.
#[derive(Default)]
pub(super) struct Resources {
    /// Under these numbers, until then, and has not answered.
    asked: BTreeMap<u64, (Uri, Instant)>,
    /// The same, without what is known of them.
    waiting: BTreeSet<Uri>,
    /// Those that it tells of.
    taken: BTreeSet<Uri>,
    /// Those that nobody wants any more, which it could not be told as it read nothing.
    untold: BTreeSet<Uri>,
}

impl Resources {
    fn ask(&mut self, number: u64, uri: &Uri, deadline: Instant) {
        self.asked.insert(number, (uri.clone(), deadline));
        self.waiting.insert(uri.clone());
    }

    /// The one that is kept of it.
    fn known(&self, uri: &str) -> Option<&Uri> {
        let all = [&self.taken, &self.waiting, &self.untold];
        all.into_iter().find_map(|known| known.get(uri))
    }

    /// The resource that was asked for under that number; no longer.
    fn answered(&mut self, number: u64) -> Option<Uri> {
        let (uri, _) = self.asked.remove(&number)?;
        self.waiting.remove(&uri);
        Some(uri)
    }

    fn overdue(&self, now: Instant) -> Vec<u64> {
        let all = self.asked.iter();
        let overdue = all.filter(|(_, (_, deadline))| *deadline <= now);
        overdue.map(|(number, _)| *number).collect()
    }
}

impl BridgedSubscription {
    fn wants_resource(&self, uri: &str) -> bool {
        self.wanted.uris.iter().any(|wanted| **wanted == *uri)
    }

    /// Keeps for later what it may not be told yet: not twice, and not without bounds; `false` if it is left out.
    fn hold(held: &mut Vec<Bytes>, message: &Message, room: &Arc<Room>) -> bool {
        if held.contains(message.bytes()) {
            return true;
        }
        let bytes: usize = held.iter().map(Bytes::len).sum();
        if held.len() >= MAX_HELD || bytes + message.bytes().len() > MAX_HELD_BYTES {
            return false;
        }
        // What it was a part of is not kept with it.
        let text = room.hold_all(Bytes::copy_from_slice(message.bytes()));
        held.extend(text.clone());
        text.is_some()
    }
}

impl Session {
    /// What the call subscribes to, of which the child is told as far as it must be; refused where there is no room for
    /// what it names.
    pub(super) fn subscription_of(
        &self,
        state: &mut SessionState,
        call: &Call,
        identity: &Identity,
    ) -> Result<Option<CallSubscription>, SendError> {
        if call.method() != method::LISTEN {
            let resource = self.resource_subscription(state, call, identity)?;
            return Ok(resource.map(CallSubscription::Resource));
        }
        let bridged = self.bridged_subscription(state, call)?;
        if let Some(subscription) = &bridged {
            self.subscribe(state, subscription)?;
        }
        let hearer = Arc::new(identity.clone());
        Ok(Some(CallSubscription::Listen { hearer, bridged }))
    }

    /// Goes on with what the request of that number subscribes to.
    pub(super) fn has_begun_to_subscribe(&self, state: &mut SessionState, number: u64) {
        let call = state.in_flight.get(&number);
        match call.and_then(|call| call.subscription.as_ref()) {
            Some(CallSubscription::Listen { bridged, .. }) if bridged.is_some() => {
                self.acknowledge(state);
            }
            Some(CallSubscription::Resource(_)) => self.ask_for_next(state),
            _ => {}
        }
    }

    /// What a legacy child's client will be told of what it wants.
    fn bridged_subscription(
        &self,
        state: &SessionState,
        call: &Call,
    ) -> Result<Option<Box<BridgedSubscription>>, SendError> {
        let Some(server) = self.legacy_server() else {
            return Ok(None);
        };
        let mut wanted = Wanted::read(call).told_by(server.capabilities());
        if !wanted.tasks.is_empty() && !task::is_taken_by(call) {
            // It is told so instead.
            return Ok(None);
        }
        // Another's are as unknown as none. What is known already is kept once.
        let known = |task: &Arc<str>| Some(state.tasks.known.get_key_value(task)?.0.clone());
        wanted.tasks = wanted.tasks.iter().filter_map(known).collect();
        for uri in &mut wanted.uris {
            *uri = match state.resources.known(uri) {
                Some(known) => known.clone(),
                None => self.claimed(uri)?,
            };
        }
        let held = Some(Vec::new());
        Ok(Some(Box::new(BridgedSubscription { wanted, held })))
    }

    /// The URI, counted for as long as anybody knows it.
    pub(super) fn claimed(&self, uri: &str) -> Result<Uri, SendError> {
        let claim = self.room.claim(uri.len()).ok_or(SendError::Busy)?;
        Ok(Uri::claimed(uri, claim))
    }

    /// Asks the child to tell of what nobody wanted to hear of before.
    fn subscribe(
        &self,
        state: &mut SessionState,
        subscription: &BridgedSubscription,
    ) -> Result<(), SendError> {
        for uri in &subscription.wanted.uris {
            if state.resources.taken.contains(uri) || state.resources.waiting.contains(uri) {
                continue;
            }
            if state.resources.asked.len() >= MAX_ASKED {
                return Err(SendError::Busy);
            }
            let number = state.next;
            self.write(OwnMessage::Subscribe { number, uri }.line())?;
            state.next += 1;
            state.resources.untold.remove(uri);
            let deadline = Instant::now() + self.call_timeout;
            state.resources.ask(number, uri, deadline);
        }
        Ok(())
    }

    /// Has the child no longer tell of what nobody else wants to hear of.
    pub(super) fn unsubscribe(&self, state: &mut SessionState, subscription: &BridgedSubscription) {
        for uri in &subscription.wanted.uris {
            // Of what it has not answered yet it is told so when it has.
            if !is_wanted(state, uri) && state.resources.taken.remove(uri) {
                self.say_unsubscribe(state, uri);
            }
        }
    }

    fn say_unsubscribe(&self, state: &mut SessionState, uri: &Uri) {
        let number = state.next;
        if self.say(&OwnMessage::Unsubscribe { number, uri }) {
            state.next += 1;
        } else if state.resources.untold.len() < MAX_ASKED {
            state.resources.untold.insert(uri.clone());
        }
    }

    /// Takes the child's answer to request `number`, if that asked it to tell of a resource.
    pub(super) fn subscribe_answered(
        &self,
        state: &mut SessionState,
        number: u64,
        answer: AnswerKind,
    ) -> bool {
        let Some(uri) = state.resources.answered(number) else {
            return false;
        };
        if answer != AnswerKind::Result {
            refuse(state, &uri);
        } else if is_wanted(state, &uri) {
            state.resources.taken.insert(uri);
        } else {
            self.say_unsubscribe(state, &uri);
        }
        self.acknowledge(state);
        true
    }

    /// Waits no longer for what the child does not answer: it does not tell of that.
    pub(super) fn give_up_subscribing(&self, state: &mut SessionState, now: Instant) {
        for uri in std::mem::take(&mut state.resources.untold) {
            self.say_unsubscribe(state, &uri);
        }
        let overdue = state.resources.overdue(now);
        if overdue.is_empty() {
            return;
        }
        for number in overdue {
            let Some(uri) = state.resources.answered(number) else {
                continue;
            };
            self.say(&OwnMessage::Cancelled {
                number,
                reason: "timeout",
            });
            // It may have begun to all the same.
            self.say_unsubscribe(state, &uri);
            refuse(state, &uri);
        }
        self.acknowledge(state);
    }

    /// Acknowledges the subscriptions of whose resources the child has answered each.
    pub(super) fn acknowledge(&self, state: &mut SessionState) {
        let mut begun = Vec::new();
        for call in state.in_flight.values_mut() {
            let Some(subscription) = call.bridged_subscription() else {
                continue;
            };
            let waiting = &state.resources.waiting;
            let mut uris = subscription.wanted.uris.iter();
            if subscription.held.is_some() && !uris.any(|uri| waiting.contains(uri)) {
                begun.extend_from_slice(&subscription.wanted.tasks);
                call.acknowledge();
            }
        }
        if begun.is_empty() {
            return;
        }
        for task in &begun {
            if let Some(known) = state.tasks.known.get_mut(task) {
                known.watched.begin();
            }
        }
        self.look_at_watched(state, Instant::now());
    }

    /// The child has ended a client's subscription by naming it, as it may in place of
    /// an answer (mcp-T28).
    pub(super) fn ended_by_child(&self, named: Value<'_>) -> bool {
        let mut state = self.state();
        let is_open = |number: &u64| {
            let call = state.in_flight.get(number);
            // A legacy child knows of none.
            call.is_some_and(|call| call.is_subscription() && call.bridged_subscription().is_none())
        };
        let Some(number) = named.as_u64().filter(is_open) else {
            return false;
        };
        if let Some(call) = state.in_flight.remove(&number) {
            self.end_well(&mut state, call);
        }
        true
    }

    /// Fails the calls that are meant to stay open.
    pub(super) fn fail_open_ended(&self, state: &mut SessionState, failure: Failure) {
        let open: Vec<u64> = state
            .in_flight
            .iter()
            .filter(|(_, call)| call.is_subscription())
            .map(|(number, _)| *number)
            .collect();
        for number in open {
            let Some(call) = state.in_flight.remove(&number) else {
                continue;
            };
            if self.era == Era::Modern {
                // Its child goes on for the calls that are answered still.
                if call.bridged_subscription().is_none() {
                    self.say(&OwnMessage::Cancelled {
                        number,
                        reason: "shutting down",
                    });
                }
                self.end_well(state, call);
            } else {
                self.fail(state, call, failure);
            }
        }
    }

    /// Ends a subscription as one that its server has ended (mcp-T28).
    pub(super) fn end_well(&self, state: &mut SessionState, mut call: InFlight) {
        if let Some(subscription) = call.bridged_subscription_mut() {
            // Nothing comes before that, not even the end.
            let taken = &state.resources.taken;
            subscription.wanted.uris.retain(|uri| taken.contains(uri));
            call.acknowledge();
        }
        let text = Bytes::from(match self.legacy_server() {
            Some(server) => server.ended(&call.id),
            None => subscription::ended(&call.id, None),
        });
        self.finish(state, call, None, text.len(), Event::Answer(text));
    }

    /// Tells each subscription that wants it; `false` if there is none.
    pub(super) fn publish(&self, message: &Message, method: &str) -> bool {
        let wants = |call: &InFlight| {
            let subscription = call.bridged_subscription();
            subscription.is_some_and(|it| it.wanted.wants(method, message))
        };
        // Most of a session's subscriptions are one caller's, who is asked about once.
        let mut hearers: Vec<Arc<Identity>> = Vec::new();
        for call in self.state().in_flight.values().filter(|call| wants(call)) {
            let hearer = call.hearer().filter(|it| !hearers.contains(it));
            hearers.extend(hearer.cloned());
        }
        hearers.retain(|hearer| self.may_hear(|_| vec![hearer.clone()], message, method));
        let mut state = self.state();
        let mut heard = false;
        for call in state.in_flight.values_mut() {
            let may = call.hearer().is_some_and(|it| hearers.contains(it));
            if !may || !wants(call) {
                continue;
            }
            let Some(CallSubscription::Listen {
                bridged: Some(subscription),
                ..
            }) = &mut call.subscription
            else {
                continue;
            };
            heard |= match &mut subscription.held {
                Some(held) => BridgedSubscription::hold(held, message, &self.room),
                None => {
                    let text = subscription::labelled(message, &call.id);
                    call.stream.tell(Event::Message(text.into()))
                }
            };
        }
        heard
    }
}

impl InFlight {
    /// Whether it is meant to stay open.
    pub(super) fn is_subscription(&self) -> bool {
        matches!(self.subscription, Some(CallSubscription::Listen { .. }))
    }

    /// Whether it should have its answer by now.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.deadline <= now && !self.is_subscription()
    }

    /// What it is told of by a legacy child, if it is a subscription there.
    pub(super) fn bridged_subscription(&self) -> Option<&BridgedSubscription> {
        match &self.subscription {
            Some(CallSubscription::Listen { bridged, .. }) => bridged.as_deref(),
            _ => None,
        }
    }

    fn bridged_subscription_mut(&mut self) -> Option<&mut BridgedSubscription> {
        match &mut self.subscription {
            Some(CallSubscription::Listen { bridged, .. }) => bridged.as_deref_mut(),
            _ => None,
        }
    }

    /// As whom a subscription hears of resources.
    pub(super) fn hearer(&self) -> Option<&Arc<Identity>> {
        match &self.subscription {
            Some(CallSubscription::Listen { hearer, .. }) => Some(hearer),
            _ => None,
        }
    }

    /// Whether it is to be told how that task stands.
    pub(super) fn wants_task(&self, name: &str) -> bool {
        self.bridged_subscription().is_some_and(|subscription| {
            let mut tasks = subscription.wanted.tasks.iter();
            subscription.held.is_none() && tasks.any(|task| **task == *name)
        })
    }

    /// Tells a subscription's client what it will be told, and then what there was to tell, unless it was told.
    fn acknowledge(&mut self) {
        let Some(CallSubscription::Listen {
            bridged: Some(subscription),
            ..
        }) = &mut self.subscription
        else {
            return;
        };
        let Some(held) = subscription.held.take() else {
            return;
        };
        let text = Bytes::from(subscription.wanted.acknowledged(&self.id));
        self.stream.tell(Event::Message(text));
        for message in held.into_iter().flat_map(Message::parse) {
            let method = message.root().get("method").and_then(Value::as_str);
            if method.is_some_and(|method| subscription.wanted.wants(&method, &message)) {
                let text = subscription::labelled(&message, &self.id);
                self.stream.tell(Event::Message(text.into()));
            }
        }
    }
}

/// The child does not tell of that resource: nobody is told that it would.
fn refuse(state: &mut SessionState, uri: &str) {
    for call in state.in_flight.values_mut() {
        if let Some(subscription) = call.bridged_subscription_mut() {
            subscription.wanted.uris.retain(|wanted| **wanted != *uri);
        }
    }
}

fn is_wanted(state: &SessionState, uri: &str) -> bool {
    let mut calls = state.in_flight.values();
    calls.any(|call| {
        let subscription = call.bridged_subscription();
        subscription.is_some_and(|subscription| subscription.wants_resource(uri))
    })
}

/// Resources that a child was asked for and has not answered.
const MAX_ASKED: usize = 1024;
/// Messages that wait for one subscription to be acknowledged, and their bytes.
const MAX_HELD: usize = 64;
const MAX_HELD_BYTES: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        mcp::meta,
        session::{
            Exchange,
            outbox::OutboxReader,
            pump,
            room::Rooms,
            testing::{asked, bridged, bridged_in, by_now, said, say, text, tried},
        },
    };

    /// A session at a legacy child that tells of resources, and what that is told.
    fn session() -> (Arc<Session>, OutboxReader) {
        bridged(r#"{"resources":{"subscribe":true}}"#)
    }

    fn listen(session: &Arc<Session>, uris: &[String]) -> Result<Exchange, SendError> {
        let wanted = serde_json::json!({ "resourceSubscriptions": uris });
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{{"notifications":{wanted}}}}}"#
        );
        tried(session, &body)
    }

    fn request(session: &Arc<Session>, asks: &str) -> Exchange {
        asked(session, &format!(r#"{{"jsonrpc":"2.0","id":1,{asks}}}"#))
    }

    fn uris(names: std::ops::Range<usize>) -> Vec<String> {
        names.map(|name| format!("a:{name:04}")).collect()
    }

    /// What the client has been told by now.
    fn told(exchange: &mut Exchange) -> Vec<String> {
        let events = by_now(exchange).into_iter();
        events.map(|event| text(Some(event))).collect()
    }

    /// mcp-T28: nothing comes before the acknowledgement, not the end either; and what waits for it is bounded.
    #[test]
    fn a_subscription_that_waits_is_acknowledged_before_anything_else() {
        for ends in [true, false] {
            let (session, mut lines) = session();
            let mut events = listen(&session, &uris(0..2)).unwrap();
            assert_eq!(said(&mut lines).len(), 2);
            say(&session, r#"{"id":1,"result":{}}"#.to_owned());
            for number in 0..200 {
                let text = "x".repeat(if number < 100 { 0 } else { 60 << 10 });
                say(
                    &session,
                    format!(
                        r#"{{"method":"notifications/resources/updated","params":{{"uri":"a:0000/{number}","text":"{text}"}}}}"#
                    ),
                );
            }
            assert_eq!(told(&mut events), [""; 0]);
            if ends {
                session.end_streams();
            } else {
                say(
                    &session,
                    r#"{"id":2,"error":{"code":1,"message":"no"}}"#.to_owned(),
                );
            }
            let told = told(&mut events);
            assert!(told[0].contains(r#""notifications":{"resourceSubscriptions":["a:0000"]}"#));
            assert_eq!(told.len(), 1 + MAX_HELD + usize::from(ends));
            let last = told.last().unwrap();
            assert_eq!(last.contains(r#""resultType":"complete""#), ends, "{last}");
        }
    }

    /// conn-3: a URI is kept once in a session, however many subscribe to it, and counted until nobody knows it any more.
    /// Where there is no room for one the subscription is refused; what a subscription is to be told later counts, too.
    #[test]
    fn what_is_subscribed_to_is_kept_once_and_counted() {
        let rooms = Rooms::new(1);
        let (session, mut lines) = bridged_in(r#"{"resources":{"subscribe":true}}"#, &rooms);
        let long = |names: std::ops::Range<usize>| -> Vec<String> {
            names.map(|name| format!("a:{name:0>498}")).collect()
        };
        let first = listen(&session, &long(0..32)).unwrap();
        assert_eq!(rooms.taken(), 32 * 500);
        let second = listen(&session, &long(0..33)).unwrap();
        assert_eq!(rooms.taken(), 33 * 500);
        assert_eq!(said(&mut lines).len(), 33);
        drop(first);
        let updated = r#"{"method":"notifications/resources/updated","params":{"uri":"URI"}}"#;
        let updated = updated.replace("URI", &long(32..33)[0]);
        say(&session, updated.clone());
        assert_eq!(rooms.taken(), 33 * 500 + updated.len());
        drop(second);
        // The child may still say that it tells of them.
        assert_eq!(rooms.taken(), 33 * 500);
        let all = (1..session.state().next).collect::<Vec<u64>>();
        for number in all {
            session.fail_one(number, Failure::ChildEnded);
        }
        assert_eq!(rooms.taken(), 0);
        let rest = session.room.claim((16 << 20) - 1000).unwrap();
        assert_eq!(listen(&session, &long(0..3)).err(), Some(SendError::Busy));
        assert_eq!(rooms.taken(), (16 << 20) - 1000);
        let two = listen(&session, &long(0..2));
        assert!(two.is_ok());
        drop((rest, two));
    }

    /// conn-3: who subscribes and leaves, again and again, leaves nothing at a child that answers late, and no more than so
    /// much at one that never answers.
    #[tokio::test(start_paused = true)]
    async fn who_subscribes_and_leaves_leaves_nothing() {
        let (session, mut lines) = session();
        let mut asked = Vec::new();
        for round in 0..MAX_ASKED / 32 {
            drop(listen(&session, &uris(round * 32..round * 32 + 32)).unwrap());
            asked.extend(said(&mut lines));
        }
        assert_eq!(asked.len(), MAX_ASKED);
        assert_eq!(
            listen(&session, &uris(5000..5001)).err(),
            Some(SendError::Busy)
        );
        // What it was asked for and has not answered is not asked for again.
        let mut stays = listen(&session, &uris(0..1)).unwrap();
        assert_eq!(said(&mut lines), [""; 0]);
        for line in &asked[..32] {
            let number = Message::parse(line.clone().into()).unwrap();
            let number = number.root().get("id").and_then(Value::as_number);
            say(
                &session,
                format!(r#"{{"id":{},"result":{{}}}}"#, number.unwrap()),
            );
        }
        assert!(told(&mut stays)[0].contains("a:0000"));
        let back = said(&mut lines);
        assert!(back.len() == 31 && back.iter().all(|line| line.contains("unsubscribe")));
        // The rest is given up with the time of a call.
        let idle = Duration::from_secs(3600);
        session.sweep(Instant::now() + session.call_timeout, idle);
        let resources = |session: &Session| {
            let state = session.state();
            let all = &state.resources;
            (all.asked.len(), all.waiting.len(), all.taken.len())
        };
        assert_eq!(resources(&session), (0, 0, 1));
        said(&mut lines);
        drop(stays);
        assert_eq!(resources(&session), (0, 0, 0));
        let back = said(&mut lines);
        assert!(
            back.len() == 1 && back[0].contains("unsubscribe"),
            "{back:?}"
        );
    }

    /// mcp-T28, mcp-T29: what the child logs is no part of a subscription, whatever that says it wants: nothing comes before
    /// the acknowledgement, and who asked for log messages in a call has them there.
    #[test]
    fn what_the_child_logs_is_told_to_calls_alone() {
        let (session, mut lines) = bridged(r#"{"resources":{"subscribe":true},"logging":{}}"#);
        let meta = r#""_meta":{"progressToken":"p","io.modelcontextprotocol/logLevel":"info"}"#;
        let mut listens = request(
            &session,
            &format!(
                r#""method":"subscriptions/listen","params":{{"notifications":{{"resourceSubscriptions":["a:b"]}},{meta}}}"#
            ),
        );
        let asked = said(&mut lines);
        let asked = Message::parse(asked.last().unwrap().clone().into()).unwrap();
        let number = asked.root().get("id").and_then(Value::as_number).unwrap();
        let log = r#"{"method":"notifications/message","params":{"level":"error","data":"x"}}"#;
        say(&session, log.to_owned());
        // Nor may it guess by which number the subscription goes here.
        for guess in 0..8 {
            let named = [
                format!(r#""progressToken":{guess},"progress":1"#),
                format!(r#""_meta":{{"{}":{guess}}}"#, meta::SUBSCRIPTION),
            ];
            for named in named {
                say(
                    &session,
                    format!(r#"{{"method":"notifications/progress","params":{{{named}}}}}"#),
                );
            }
        }
        assert_eq!(told(&mut listens), [""; 0]);
        say(&session, format!(r#"{{"id":{number},"result":{{}}}}"#));
        assert_eq!(told(&mut listens).len(), 1);
        let mut calls = request(
            &session,
            &format!(r#""method":"tools/call","params":{{"name":"t",{meta}}}"#),
        );
        say(&session, log.to_owned());
        assert_eq!(told(&mut calls), [log]);
        assert_eq!(told(&mut listens), [""; 0]);
    }

    /// conn-3: a child that reads nothing when somebody leaves is told so later.
    #[tokio::test(start_paused = true)]
    async fn what_nobody_wants_any_more_is_taken_back_when_the_child_reads_again() {
        let (session, mut lines) = session();
        let leaves = listen(&session, &uris(0..2)).unwrap();
        let late = listen(&session, &uris(2..4)).unwrap();
        said(&mut lines);
        let answer = |number: u64| say(&session, format!(r#"{{"id":{number},"result":{{}}}}"#));
        answer(1);
        answer(2);
        while session.say(&OwnMessage::Discover { number: 0 }) {}
        drop((leaves, late));
        answer(4);
        let idle = Duration::from_secs(3600);
        session.sweep(Instant::now() + session.call_timeout, idle);
        said(&mut lines);
        // What is wanted again meanwhile is not taken back.
        let _back = listen(&session, &uris(0..1)).unwrap();
        assert_eq!(said(&mut lines).len(), 1);
        for expected in [3, 0] {
            session.sweep(Instant::now(), idle);
            let back = said(&mut lines);
            let unsubscribes = |line: &String| line.contains("resources/unsubscribe");
            assert!(back.iter().all(unsubscribes), "{back:?}");
            assert_eq!(back.len(), expected, "{back:?}");
        }
    }

    /// What a subscription may not be told yet keeps nothing else in memory, and what is left out for want of room is counted.
    #[test]
    fn what_waits_for_an_acknowledgement_keeps_only_itself() {
        let (session, mut lines) = session();
        let _waits = listen(&session, &uris(0..1)).unwrap();
        said(&mut lines);
        for number in 0..MAX_HELD + 3 {
            let line = format!(
                r#"{{"method":"notifications/resources/updated","params":{{"uri":"a:0000/{number}"}}}}"#
            );
            let line = Bytes::from(line.into_bytes());
            assert!(pump::take(&session, line.clone()));
            assert!(line.is_unique(), "{number}");
        }
        assert_eq!(session.unheard(), 3);
    }
}

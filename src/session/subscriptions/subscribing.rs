//! What a legacy client subscribes to, and as whom it hears of that.
//!
//! A modern child is asked for one resource more at a time, so that what it says to that is said of this
//! one: the client has its answer when the child has acknowledged the resource, and hears nothing of it before
//! (mcp-T28). What may have changed while the child told nothing is told when it tells again, and not more
//! often than a client can bear: a server may end whatever it is asked, again and again.

use std::{borrow::Cow, collections::HashSet, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    auth::Identity,
    json::Value,
    mcp::{
        Call, Message, answer,
        subscription::{self, MAX_URIS, Uri, Wanted},
    },
    session::{
        SendError, Session,
        calls::{AnswerKind, InFlight},
        conversation::SessionState,
        exchange::{Event, Failure},
        subscriptions::{CallSubscription, hearing::UPDATED},
    },
};

/// A call by which a legacy client subscribes to a resource.
pub(in crate::session) struct ResourceSubscription {
    uri: Uri,
    hearer: Arc<Identity>,
    /// It waits here for a modern child's acknowledgement.
    waits: bool,
}

/// What a legacy client has subscribed to.
#[derive(Default)]
pub(in crate::session) struct Subscribed {
    all: Vec<SubscribedResource>,
    /// As whom it has subscribed last.
    last: Option<Arc<Identity>>,
}

struct SubscribedResource {
    uri: Uri,
    /// As whom the client hears of it.
    hearer: Arc<Identity>,
    /// It may have changed while the child told nothing.
    missed: bool,
    /// A modern child has acknowledged it the last time.
    told: bool,
}

impl InFlight {
    /// Whether it is answered when a modern child acknowledges a resource: the child knows nothing of the call.
    pub(in crate::session) fn awaits_acknowledgement(&self) -> bool {
        self.resource_subscription().is_some_and(|it| it.waits)
    }

    /// The resource that a legacy client subscribes to by it.
    fn resource_subscription(&self) -> Option<&ResourceSubscription> {
        match &self.subscription {
            Some(CallSubscription::Resource(it)) => Some(it),
            _ => None,
        }
    }

    /// The same, which its answer has decided on.
    fn take_resource_subscription(&mut self) -> Option<Box<ResourceSubscription>> {
        let is_one = |it: &mut CallSubscription| matches!(it, CallSubscription::Resource(_));
        match self.subscription.take_if(is_one)? {
            CallSubscription::Resource(it) => Some(it),
            CallSubscription::Listen { .. } => None,
        }
    }
}

impl Subscribed {
    pub(in crate::session) fn uris(&self) -> impl Iterator<Item = &Uri> {
        self.all.iter().map(|one| &one.uri)
    }

    /// The one that is kept of it.
    fn known(&self, uri: &str) -> Option<&Uri> {
        self.uris().find(|known| ***known == *uri)
    }

    /// Whether the child tells of it.
    fn is_told(&self, uri: &str) -> bool {
        self.all.iter().any(|one| one.told && *one.uri == *uri)
    }

    /// Whether a change of that resource is among what is to be heard.
    fn concerns(&self, uri: &str) -> bool {
        self.uris().any(|known| subscription::concerns(known, uri))
    }

    /// As whom, each of them, the client hears of that resource; as whoever subscribed last if it has not
    /// subscribed to any such.
    pub(in crate::session) fn hearers_of(&self, uri: &str) -> Vec<Arc<Identity>> {
        let mut hearers: Vec<Arc<Identity>> = Vec::new();
        for one in &self.all {
            let is_new = !hearers.iter().any(|it| Arc::ptr_eq(it, &one.hearer));
            if is_new && subscription::concerns(&one.uri, uri) {
                hearers.push(one.hearer.clone());
            }
        }
        if hearers.is_empty() {
            hearers.extend(self.last.clone());
        }
        hearers
    }

    /// The identity, shared with what it has subscribed to already.
    fn hearer(&mut self, identity: &Identity) -> Arc<Identity> {
        let all = self.all.iter().map(|one| &one.hearer);
        let known = all.chain(&self.last).find(|known| ***known == *identity);
        let known = known.cloned();
        let hearer = known.unwrap_or_else(|| Arc::new(identity.clone()));
        self.last.insert(hearer).clone()
    }

    fn add(&mut self, uri: Uri, hearer: Arc<Identity>) {
        match self.all.iter_mut().find(|one| one.uri == uri) {
            Some(one) => (one.hearer, one.told) = (hearer, true),
            None => self.all.push(SubscribedResource {
                uri,
                hearer,
                missed: false,
                told: true,
            }),
        }
    }

    /// Whether it was one of them.
    fn remove(&mut self, uri: &str) -> bool {
        let before = self.all.len();
        self.all.retain(|one| *one.uri != *uri);
        self.all.len() != before
    }
}

/// What the client was not told of while a modern child told nothing.
#[derive(Default)]
pub(in crate::session) struct Missed {
    owed: bool,
    /// When it was told such things last.
    told: Option<Instant>,
}

impl Missed {
    fn may_be_told(&self, now: Instant) -> bool {
        self.told
            .is_none_or(|told| now.duration_since(told) >= BETWEEN)
    }
}

impl SessionState {
    /// The child has ended what it told by.
    pub(in crate::session) fn misses(&mut self) {
        self.reversed.missed.owed = true;
        for one in &mut self.subscribed.all {
            one.missed = true;
        }
    }

    /// Whether the client is to be told now of what it may have missed.
    pub(in crate::session) fn owes_missed(&self, now: Instant) -> bool {
        let reversed = &self.reversed;
        reversed.missed.owed && reversed.listening.is_heard() && reversed.missed.may_be_told(now)
    }

    /// The resource that the child is being asked for besides those that it tells of.
    pub(in crate::session) fn asked_for(&self) -> Option<&Uri> {
        let call = self.in_flight.get(&self.reversed.asking?)?;
        Some(&call.resource_subscription()?.uri)
    }

    /// The call for that, if the resource is among these: it will be answered now.
    pub(in crate::session) fn take_asking(
        &mut self,
        wanted: &Wanted,
    ) -> Option<(InFlight, Box<ResourceSubscription>)> {
        self.asked_for().filter(|uri| wanted.uris.contains(uri))?;
        let mut call = self.in_flight.remove(&self.reversed.asking.take()?)?;
        let subscription = call.take_resource_subscription()?;
        Some((call, subscription))
    }

    /// The child tells of what the call has subscribed to.
    pub(in crate::session) fn has_subscribed(&mut self, call: &mut InFlight) {
        if let Some(it) = call.take_resource_subscription() {
            self.subscribed.add(it.uri, it.hearer);
        }
    }

    /// The eldest call that waits for such a resource.
    fn waiting(&self, is_so: impl Fn(&str) -> bool) -> Option<u64> {
        let waits = |call: &InFlight| {
            let subscription = call.resource_subscription();
            subscription.is_some_and(|it| it.waits && is_so(&it.uri))
        };
        let waiting = self.in_flight.iter().filter(|(_, call)| waits(call));
        waiting.map(|(number, _)| *number).min()
    }
}

impl Session {
    /// Notes what a legacy client's call says of what it wants to hear, and what it subscribes to.
    pub(in crate::session) fn resource_subscription(
        &self,
        state: &mut SessionState,
        call: &Call,
        identity: &Identity,
    ) -> Result<Option<Box<ResourceSubscription>>, SendError> {
        let method = call.method();
        if !matches!(method, "resources/subscribe" | "resources/unsubscribe") {
            return Ok(None);
        }
        let server = self.modern_server();
        let waits = server.is_some_and(|server| server.tells_of_resources());
        // Who hears what is only then of interest.
        if !waits && !self.engine.tells_callers_apart() {
            return Ok(None);
        }
        let uri = call
            .param("uri")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if method == "resources/unsubscribe" {
            // Also to what it has not subscribed to yet.
            while let Some(waiting) = state.waiting(|waits| *waits == *uri)
                && let Some(call) = state.in_flight.remove(&waiting)
            {
                self.fail(state, call, Failure::Cancelled);
            }
            if state.subscribed.remove(&uri)
                && let Some(server) = server
            {
                self.listen_to_child(state, server);
            }
            return Ok(None);
        }
        let most = if waits { MAX_URIS } else { MAX_SUBSCRIBED };
        let waiting = state.in_flight.values();
        let subscribes = |call: &&InFlight| call.resource_subscription().is_some();
        let waiting = waiting.filter(subscribes).count();
        let uri = match state.subscribed.known(&uri) {
            Some(known) => known.clone(),
            None if state.subscribed.all.len() + waiting >= most => return Err(SendError::Busy),
            None => self.claimed(&uri)?,
        };
        Ok(Some(Box::new(ResourceSubscription {
            uri,
            hearer: state.subscribed.hearer(identity),
            waits,
        })))
    }

    /// Asks a modern child for the next resource that a call waits for, unless it is being asked for one; or no longer
    /// for one that no call waits for any more.
    pub(in crate::session) fn ask_for_next(&self, state: &mut SessionState) {
        let Some(server) = self.modern_server() else {
            return;
        };
        if state.has_ended() {
            return;
        }
        // What it tells of already it need not be asked for.
        while let Some(known) = state.waiting(|uri| state.subscribed.is_told(uri))
            && let Some(mut call) = state.in_flight.remove(&known)
        {
            state.has_subscribed(&mut call);
            self.done(state, call);
        }
        if state.asked_for().is_some() {
            return;
        }
        state.reversed.asking = state.waiting(|_| true);
        let listening = &state.reversed.listening;
        // What was refused has its pause, unless somebody asks for more.
        if state.reversed.asking.is_some() || (listening.is_open() && !listening.is_waiting()) {
            self.listen_to_child(state, server);
        }
    }

    /// A modern child says what of a subscription it will tell of.
    pub(in crate::session) fn acknowledged(&self, message: &Message) {
        let params = message.root().get("params");
        let Some(number) = params.and_then(subscription::named) else {
            return;
        };
        let mut state = self.state();
        let Some(ear) = state.reversed.ear(number) else {
            return;
        };
        if let Some(replaced) = ear.acknowledged(number) {
            self.replace(replaced);
        }
        let Some(wanted) = state.reversed.listening.heard_by(number) else {
            return;
        };
        let wanted = wanted.clone();
        let told = params.and_then(|params| params.get("notifications"));
        let told = told.and_then(|told| told.get("resourceSubscriptions"));
        let told = told.iter().flat_map(|told| told.elements());
        let told: HashSet<Cow<'_, str>> = told.filter_map(Value::as_str).collect();
        for one in &mut state.subscribed.all {
            one.told = told.contains(&*one.uri);
        }
        if let Some((call, it)) = state.take_asking(&wanted) {
            if told.contains(&*it.uri) {
                state.subscribed.add(it.uri, it.hearer);
                self.done(&mut state, call);
            } else {
                // Nor is it asked for that again by what follows.
                state.reversed.listening.is_not_told(&it.uri);
                state.subscribed.remove(&it.uri);
                self.not_told(&mut state, call);
            }
        }
        self.ask_for_next(&mut state);
        drop(state);
        self.tell_missed(Instant::now());
    }

    /// The call whose resource the child was asked for will have no acknowledgement.
    pub(in crate::session) fn not_acknowledged(
        &self,
        state: &mut SessionState,
        call: InFlight,
        end: SubscriptionEnd<'_>,
    ) {
        match end {
            SubscriptionEnd::Answered(AnswerKind::Error, message) => {
                self.deliver(state, call, AnswerKind::Error, message);
            }
            SubscriptionEnd::Failed(failure) => self.fail(state, call, failure),
            SubscriptionEnd::Answered(..) | SubscriptionEnd::Named => self.not_told(state, call),
        }
    }

    fn done(&self, state: &mut SessionState, call: InFlight) {
        let text = answer::result(call.id.as_json(), b"{}");
        self.finish(state, call, None, text.len(), Event::Answer(text.into()));
    }

    fn not_told(&self, state: &mut SessionState, call: InFlight) {
        let text = answer::refused(
            &call.id,
            -32602,
            "the server does not tell of this resource",
        );
        self.delivered(state, call, AnswerKind::Error, text.into());
    }

    /// Whether what a modern child says by a subscription, or of a resource, is for its legacy client.
    pub(in crate::session) fn is_for_legacy(&self, message: &Message, method: &str) -> bool {
        let params = message.root().get("params");
        let number = params.and_then(subscription::named);
        if number.is_none() && method != UPDATED {
            return true;
        }
        let mut state = self.state();
        let mut is_heard = |number| {
            let ear = state.reversed.ear(number);
            ear.is_some_and(|ear| ear.is_heard_by(number))
        };
        if number.is_some_and(|number| !is_heard(number)) {
            return false;
        }
        let uri = params.and_then(|params| params.get("uri"));
        let uri = uri.and_then(Value::as_str);
        method != UPDATED || uri.is_some_and(|uri| state.subscribed.concerns(&uri))
    }

    /// Tells the client what may have changed while a modern child told nothing, if it is time to.
    pub(in crate::session) fn tell_missed(&self, now: Instant) {
        let Some(server) = self.modern_server() else {
            return;
        };
        let mut missed = Wanted::all_of(server.capabilities());
        {
            let mut state = self.state();
            if !state.owes_missed(now) {
                return;
            }
            state.reversed.missed = Missed {
                owed: false,
                told: Some(now),
            };
            for one in &mut state.subscribed.all {
                if std::mem::take(&mut one.missed) {
                    missed.uris.push(one.uri.clone());
                }
            }
        }
        for (method, text) in missed.may_have_changed() {
            if let Ok(message) = Message::parse(text.into()) {
                self.pass_on_plain(&message, method);
            }
        }
    }
}

/// How a subscription has ended that the child had not acknowledged.
#[derive(Clone, Copy)]
pub(in crate::session) enum SubscriptionEnd<'a> {
    Answered(AnswerKind, &'a Message),
    Failed(Failure),
    /// The child has named it (mcp-T28).
    Named,
}

/// Resources that a legacy client may subscribe to at a legacy child, where policies decide who hears of which.
const MAX_SUBSCRIBED: usize = 1024;
/// Time between what a client is told because its server has ended what it told by.
const BETWEEN: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        config::{Authz, PolicyFile},
        mcp::{Era, meta},
        session::{Exchange, outbox::OutboxReader, own::OwnMessage, room::Rooms, testing},
    };

    /// A session of a legacy client at a modern child that tells of tools and resources, and what that is told.
    fn session() -> (Arc<Session>, OutboxReader) {
        testing::reversed(
            r#"{"tools":{"listChanged":true},"prompts":{"listChanged":false},"resources":{"subscribe":true}}"#,
        )
    }

    fn named(
        session: &Arc<Session>,
        id: &str,
        method: &str,
        uri: &str,
    ) -> Result<Exchange, SendError> {
        let params = json!({ "uri": uri });
        let body = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
        testing::tried(session, &body.to_string())
    }

    fn request(session: &Arc<Session>, method: &str, uri: &str) -> Result<Exchange, SendError> {
        named(session, uri, method, uri)
    }

    fn subscribe(session: &Arc<Session>, uri: &str) -> Exchange {
        request(session, "resources/subscribe", uri).unwrap()
    }

    /// What the child has been told: the number and the resources of each subscription, and the numbers of those that are ended.
    fn said(lines: &mut OutboxReader) -> (Vec<(u64, Vec<String>)>, Vec<u64>) {
        let (mut began, mut ended) = (Vec::new(), Vec::new());
        while let Some(line) = lines.try_recv() {
            let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
            let params = &line["params"];
            match line["method"].as_str() {
                Some("subscriptions/listen") => {
                    let uris = &params["notifications"]["resourceSubscriptions"];
                    let uris = serde_json::from_value(uris.clone()).unwrap_or_default();
                    began.push((line["id"].as_u64().unwrap(), uris));
                }
                Some("notifications/cancelled") => {
                    ended.push(params["requestId"].as_u64().unwrap());
                }
                other => panic!("{other:?}"),
            }
        }
        (began, ended)
    }

    /// The one subscription that the child has been asked for, which is for these resources.
    #[track_caller]
    fn asked(lines: &mut OutboxReader, uris: &[&str]) -> u64 {
        match said(lines).0.as_slice() {
            [(number, asked)] if *asked == uris => *number,
            other => panic!("{other:?}"),
        }
    }

    fn say(session: &Session, message: serde_json::Value) {
        testing::say(session, message.to_string());
    }

    fn acknowledge(session: &Session, number: u64, uris: &[&str]) {
        let told = json!({ "resourceSubscriptions": uris });
        let params = json!({ "notifications": told, "_meta": { meta::SUBSCRIPTION: number } });
        say(
            session,
            json!({ "method": subscription::ACKNOWLEDGED, "params": params }),
        );
    }

    fn ends(session: &Session, number: u64) {
        say(session, json!({ "id": number, "result": {} }));
    }

    fn changes(session: &Session, number: u64, uri: &str) {
        let params = json!({ "uri": uri, "_meta": { meta::SUBSCRIPTION: number } });
        say(session, json!({ "method": UPDATED, "params": params }));
    }

    /// What has come, as one word each: the resource, the list or what the answer is.
    fn heard(exchange: &mut Exchange) -> Vec<String> {
        let mut heard = Vec::new();
        for event in testing::by_now(exchange) {
            heard.push(match event {
                Event::Message(text) => {
                    let message: serde_json::Value = serde_json::from_slice(&text).unwrap();
                    let uri = message["params"]["uri"].as_str();
                    let word = uri.or(message["method"].as_str()).unwrap();
                    word.trim_start_matches("notifications/").to_owned()
                }
                Event::Answer(text) => {
                    let answer: serde_json::Value = serde_json::from_slice(&text).unwrap();
                    answer.get("result").unwrap_or(&answer["error"]).to_string()
                }
                Event::Failed(failure) => failure.code().to_owned(),
            });
        }
        heard
    }

    /// conn-3: what a legacy client subscribes to is kept once, counted, also where the child is asked for it and tells of
    /// it; and refused where there is no room for it.
    #[tokio::test]
    async fn what_a_legacy_client_subscribes_to_is_kept_once_and_counted() {
        let rooms = Rooms::new(1);
        let capabilities = r#"{"resources":{"subscribe":true}}"#;
        let (session, mut lines) = testing::reversed_in(capabilities, &rooms);
        let long = |number: usize| format!("a:{number:0>998}");
        let mut all = Vec::new();
        for number in 0..8 {
            let id = number.to_string();
            let waits = named(&session, &id, "resources/subscribe", &long(number)).unwrap();
            all.push(long(number));
            assert_eq!(rooms.taken(), 1000 * all.len());
            let told: Vec<&str> = all.iter().map(String::as_str).collect();
            let number = asked(&mut lines, &told);
            acknowledge(&session, number, &told);
            drop((waits, said(&mut lines)));
        }
        let again = named(&session, "again", "resources/subscribe", &long(0)).unwrap();
        assert_eq!(rooms.taken(), 8000);
        let rest = session.room.claim((16 << 20) - 8000 - 999).unwrap();
        let more = named(&session, "more", "resources/subscribe", &long(8));
        assert_eq!(more.err(), Some(SendError::Busy));
        drop((rest, again));
        drop((session, lines));
        assert_eq!(rooms.taken(), 0);
    }

    const NOT_TOLD: &str =
        r#"{"code":-32602,"message":"the server does not tell of this resource"}"#;

    /// mcp-T28: who subscribes has the answer when the child has taken the resource, and hears of it only then; what it heard
    /// before it hears all the while, and once.
    #[tokio::test]
    async fn who_subscribes_is_answered_when_the_child_has_acknowledged() {
        let (session, mut lines) = session();
        let mut own = session.listen().unwrap();
        session.heard_initialized("notifications/initialized");
        let first = asked(&mut lines, &[]);
        acknowledge(&session, first, &[]);
        let mut a = subscribe(&session, "a:a");
        let second = asked(&mut lines, &["a:a"]);
        changes(&session, second, "a:a");
        // Another subscription's word is not this one's.
        acknowledge(&session, first, &["a:a"]);
        assert_eq!((heard(&mut a), heard(&mut own)), (vec![], vec![]));
        acknowledge(&session, second, &["a:a"]);
        assert_eq!(heard(&mut a), ["{}"]);
        assert_eq!(said(&mut lines), (vec![], vec![first]));
        changes(&session, second, "a:a");
        assert_eq!(heard(&mut own), ["a:a"]);

        let mut b = subscribe(&session, "a:b");
        let third = asked(&mut lines, &["a:a", "a:b"]);
        changes(&session, second, "a:a/1");
        changes(&session, third, "a:b");
        changes(&session, third, "a:a/1");
        assert_eq!(
            (heard(&mut b), heard(&mut own)),
            (vec![], vec!["a:a/1".to_owned()])
        );
        acknowledge(&session, third, &["a:a", "a:b"]);
        changes(&session, second, "a:a/2");
        changes(&session, third, "a:a/2");
        changes(&session, third, "a:c");
        assert_eq!(
            (heard(&mut b), heard(&mut own)),
            (vec!["{}".to_owned()], vec!["a:a/2".to_owned()])
        );
        assert_eq!(heard(&mut subscribe(&session, "a:b")), ["{}"]);
        assert_eq!(said(&mut lines), (vec![], vec![second]));
        let mut no_longer = request(&session, "resources/unsubscribe", "a:a").unwrap();
        assert_eq!(heard(&mut no_longer), ["{}"]);
        changes(&session, third, "a:a");
        assert_eq!(heard(&mut own), [""; 0]);
        asked(&mut lines, &["a:b"]);
        assert_eq!(session.unheard(), 0);
    }

    /// mcp-T28: what the child does not take, or refuses in whichever way, is an error; what it told before it tells, and it
    /// is not asked for that again.
    #[tokio::test]
    async fn what_the_child_does_not_take_is_an_error_and_nothing_else() {
        let (session, mut lines) = session();
        let mut own = session.listen().unwrap();
        let mut a = subscribe(&session, "a:a");
        let told = asked(&mut lines, &["a:a"]);
        acknowledge(&session, told, &["a:a"]);
        assert_eq!(heard(&mut a), ["{}"]);
        let refusal = json!({ "code": -32000, "message": "no", "data": 1.5 });
        for (how, expected) in [
            ("error", refusal.to_string()),
            ("result", NOT_TOLD.to_owned()),
            ("cancelled", NOT_TOLD.to_owned()),
            ("lost", "server-refused".to_owned()),
        ] {
            let mut b = subscribe(&session, "a:b");
            let number = asked(&mut lines, &["a:a", "a:b"]);
            match how {
                "error" => say(&session, json!({ "id": number, "error": refusal })),
                "result" => ends(&session, number),
                "cancelled" => {
                    let params = json!({ "requestId": number });
                    say(
                        &session,
                        json!({ "method": "notifications/cancelled", "params": params }),
                    );
                }
                _ => session.fail_one(number, Failure::Refused),
            }
            assert_eq!(heard(&mut b), [expected], "{how}");
            changes(&session, told, "a:a");
            changes(&session, told, "a:b");
            assert_eq!(heard(&mut own), ["a:a"], "{how}");
            assert_eq!(said(&mut lines), (vec![], vec![]), "{how}");
        }
        let mut b = subscribe(&session, "a:b");
        let number = asked(&mut lines, &["a:a", "a:b"]);
        acknowledge(&session, number, &["a:a"]);
        assert_eq!(heard(&mut b), [NOT_TOLD]);
        assert_eq!(said(&mut lines), (vec![], vec![told]));
        // Nor by what follows it.
        let _c = subscribe(&session, "a:c");
        asked(&mut lines, &["a:a", "a:c"]);
    }

    /// Who subscribes again before the child has heard that he no longer did is answered by the child, whatever it ends
    /// meanwhile; and who no longer wants what he waits for has an end to that.
    #[tokio::test]
    async fn who_changes_his_mind_has_an_answer_to_each_call() {
        let (session, mut lines) = session();
        let mut a = subscribe(&session, "a:a");
        let first = asked(&mut lines, &["a:a"]);
        acknowledge(&session, first, &["a:a"]);
        assert_eq!(heard(&mut a), ["{}"]);
        for ends_first in [false, true] {
            let _no = request(&session, "resources/unsubscribe", "a:a").unwrap();
            asked(&mut lines, &[]);
            let mut again = subscribe(&session, "a:a");
            let asked = asked(&mut lines, &["a:a"]);
            if ends_first {
                ends(&session, asked - 3);
            }
            assert_eq!(heard(&mut again), [""; 0]);
            acknowledge(&session, asked, &["a:a"]);
            assert_eq!(heard(&mut again), ["{}"]);
            said(&mut lines);
        }
        // One that the child ends names what is asked for again.
        let mut b = subscribe(&session, "a:b");
        let both = asked(&mut lines, &["a:a", "a:b"]);
        acknowledge(&session, both, &["a:a", "a:b"]);
        assert_eq!(heard(&mut b), ["{}"]);
        let _no = request(&session, "resources/unsubscribe", "a:a").unwrap();
        asked(&mut lines, &["a:b"]);
        let mut again = subscribe(&session, "a:a");
        let number = asked(&mut lines, &["a:b", "a:a"]);
        ends(&session, both);
        acknowledge(&session, number, &["a:b", "a:a"]);
        assert_eq!(heard(&mut again), ["{}"]);

        let mut c = subscribe(&session, "a:c");
        said(&mut lines);
        let mut no = named(&session, "no", "resources/unsubscribe", "a:c").unwrap();
        assert_eq!(heard(&mut c), ["cancelled"]);
        assert_eq!(heard(&mut no), ["{}"]);
        // What is heard already is what remains.
        assert_eq!(said(&mut lines).0, []);
        // What it tells of no longer it is asked for, and says so.
        ends(&session, number);
        let renewed = asked(&mut lines, &["a:b", "a:a"]);
        acknowledge(&session, renewed, &["a:b"]);
        let mut gone = subscribe(&session, "a:a");
        assert_eq!(heard(&mut gone), [""; 0]);
        let number = asked(&mut lines, &["a:b", "a:a"]);
        acknowledge(&session, number, &["a:b"]);
        assert_eq!(heard(&mut gone), [NOT_TOLD]);
        assert_eq!(heard(&mut subscribe(&session, "a:b")), ["{}"]);
    }

    /// What takes the place of another, and is refused, has its pauses as what is alone.
    #[tokio::test(start_paused = true)]
    async fn a_child_that_refuses_what_is_made_anew_is_not_asked_without_a_pause() {
        let (session, mut lines) = session();
        for (uri, all) in [("a:a", &["a:a"][..]), ("a:b", &["a:a", "a:b"])] {
            let _done = subscribe(&session, uri);
            acknowledge(&session, asked(&mut lines, all), all);
        }
        said(&mut lines);
        let _no = request(&session, "resources/unsubscribe", "a:a").unwrap();
        let mut number = asked(&mut lines, &["a:b"]);
        let begin = Instant::now();
        let mut times = Vec::new();
        while begin.elapsed() < Duration::from_secs(120) {
            say(&session, json!({ "id": number, "error": { "code": 7 } }));
            while let began = said(&mut lines).0
                && begin.elapsed() < Duration::from_secs(120)
            {
                if let [(next, _)] = began.as_slice() {
                    number = *next;
                    times.push(begin.elapsed().as_secs());
                    break;
                }
                tokio::time::advance(Duration::from_secs(1)).await;
                session.sweep(Instant::now(), Duration::MAX);
            }
        }
        assert_eq!(times, [0, 1, 3, 7, 15, 31, 63]);
    }

    /// Each is asked for by itself, and only its own answer is its; whose client does not wait any more is not asked for.
    #[tokio::test(start_paused = true)]
    async fn several_who_subscribe_have_their_turns() {
        let (session, mut lines) = session();
        let [mut a, mut b, mut c] = ["a:a", "a:b", "a:c"].map(|uri| subscribe(&session, uri));
        let mut a_too = named(&session, "again", "resources/subscribe", "a:a").unwrap();
        let number = asked(&mut lines, &["a:a"]);
        acknowledge(&session, number, &["a:a"]);
        assert_eq!([&mut a, &mut a_too].map(heard), [["{}"], ["{}"]]);
        let number = asked(&mut lines, &["a:a", "a:b"]);
        assert_eq!([&mut b, &mut c].map(heard), [[""; 0]; 2]);
        say(&session, json!({ "id": number, "error": { "code": 7 } }));
        assert_eq!(heard(&mut b), [r#"{"code":7}"#]);
        let number = asked(&mut lines, &["a:a", "a:c"]);
        testing::cancels(&session, r#""a:c""#);
        assert_eq!(heard(&mut c), ["cancelled"]);
        // That it was asked for is taken back, and of the call itself the child never heard.
        assert_eq!(said(&mut lines), (vec![], vec![number]));
    }

    /// A child that does not acknowledge is not waited for longer than for any answer, and what comes behind has its turn.
    #[tokio::test(start_paused = true)]
    async fn a_child_that_does_not_acknowledge_is_not_waited_for_longer_than_for_an_answer() {
        let (session, mut lines) = session();
        let mut a = subscribe(&session, "a:a");
        let mute = asked(&mut lines, &["a:a"]);
        tokio::time::advance(session.call_timeout / 2).await;
        session.sweep(Instant::now(), Duration::MAX);
        let mut b = subscribe(&session, "a:b");
        tokio::time::advance(session.call_timeout / 2).await;
        assert_eq!(
            (said(&mut lines), heard(&mut a)),
            ((vec![], vec![]), vec![])
        );
        session.sweep(Instant::now(), Duration::MAX);
        assert_eq!(heard(&mut a), ["timeout"]);
        let (began, ended) = said(&mut lines);
        assert_eq!(ended, [mute]);
        assert_eq!(began[0].1, ["a:b"]);
        acknowledge(&session, mute, &["a:a"]);
        acknowledge(&session, began[0].0, &["a:b"]);
        assert_eq!(heard(&mut b), ["{}"]);
        assert_eq!(said(&mut lines), (vec![], vec![]));
        // A child that reads nothing is asked when it does.
        while session.say(&OwnMessage::Discover { number: 0 }) {}
        let mut c = subscribe(&session, "a:c");
        while lines.try_recv().is_some() {}
        acknowledge(&session, began[0].0, &["a:b", "a:c"]);
        assert_eq!(heard(&mut c), [""; 0]);
        tokio::time::advance(Duration::from_secs(1)).await;
        session.sweep(Instant::now(), Duration::MAX);
        let number = asked(&mut lines, &["a:b", "a:c"]);
        acknowledge(&session, number, &["a:c"]);
        assert_eq!(heard(&mut c), ["{}"]);
    }

    /// probe-68: a client subscribes to so many, those that wait included.
    #[tokio::test]
    async fn more_resources_than_one_subscription_may_name_are_refused() {
        let (session, mut lines) = session();
        let uris: Vec<String> = (0..=MAX_URIS)
            .map(|number| format!("a:{number:02}"))
            .collect();
        let uris: Vec<&str> = uris.iter().map(String::as_str).collect();
        for (number, uri) in uris[..MAX_URIS - 2].iter().enumerate() {
            let _done = subscribe(&session, uri);
            let asked = asked(&mut lines, &uris[..=number]);
            acknowledge(&session, asked, &uris);
        }
        let _waits = uris[MAX_URIS - 2..MAX_URIS]
            .iter()
            .map(|uri| subscribe(&session, uri));
        let _waits: Vec<Exchange> = _waits.collect();
        let more = request(&session, "resources/subscribe", uris[MAX_URIS]);
        assert_eq!(more.err(), Some(SendError::Busy));
        assert_eq!(heard(&mut subscribe(&session, uris[0])), ["{}"]);
    }

    /// probe-68: the same at a legacy child, where it matters who hears of what: one more is answered by 503, while one that is
    /// known is not one more, and one that has ended leaves its place.
    #[tokio::test]
    async fn more_resources_than_are_kept_track_of_at_a_legacy_child_are_refused() {
        let policy = PolicyFile {
            path: "/etc/thv/policies/all.cedar".into(),
            text: "permit(principal, action, resource);".to_owned(),
        };
        let (alice, rooms) = (Identity::example("https://a", "alice"), Rooms::new(1));
        let policies = Authz::Policies(vec![policy]);
        let (session, mut lines) = testing::session_under(&policies, alice, Era::Legacy, &rooms);
        let mut answer = |exchange: Exchange| {
            let line = lines.try_recv().expect("the child is asked");
            let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
            say(&session, json!({ "id": line["id"], "result": {} }));
            drop(exchange);
        };
        for number in 1..MAX_SUBSCRIBED {
            answer(subscribe(&session, &format!("a:{number}")));
        }
        let last = subscribe(&session, "a:last");
        let busy = |uri: &str| request(&session, "resources/subscribe", uri).err();
        assert_eq!(
            busy("a:more"),
            Some(SendError::Busy),
            "one is not answered yet"
        );
        answer(last);
        assert_eq!(busy("a:more"), Some(SendError::Busy));
        answer(subscribe(&session, "a:1"));
        answer(request(&session, "resources/unsubscribe", "a:1").unwrap());
        answer(subscribe(&session, "a:more"));
        assert_eq!(session.state().subscribed.all.len(), MAX_SUBSCRIBED);
    }

    /// What may have changed while the child told nothing is told when it tells again, whoever it was that ended it: not at
    /// first, not where one replaces another, and not before it is acknowledged.
    #[tokio::test(start_paused = true)]
    async fn what_may_have_changed_between_two_subscriptions_is_told() {
        let (session, mut lines) = session();
        let mut own = session.listen().unwrap();
        session.heard_initialized("notifications/initialized");
        acknowledge(&session, asked(&mut lines, &[]), &[]);
        for (uri, all) in [("a:a", &["a:a"][..]), ("a:b", &["a:a", "a:b"])] {
            let _done = subscribe(&session, uri);
            acknowledge(&session, asked(&mut lines, all), all);
        }
        let _done = subscribe(&session, "a:b");
        session.sweep(Instant::now(), Duration::MAX);
        assert_eq!(heard(&mut own), [""; 0]);
        let open = said(&mut lines);
        assert_eq!(open.0, []);
        let last = open.1.last().unwrap() + 2;
        ends(&session, last);
        let again = asked(&mut lines, &["a:a", "a:b"]);
        assert_eq!(heard(&mut own), [""; 0]);
        // What is subscribed to meanwhile has not been missed.
        let _c = subscribe(&session, "a:c");
        let with_c = asked(&mut lines, &["a:a", "a:b", "a:c"]);
        assert_eq!(with_c, again + 2);
        acknowledge(&session, with_c, &["a:a", "a:c"]);
        assert_eq!(heard(&mut own), ["tools/list_changed", "a:a", "a:b"]);
        acknowledge(&session, with_c, &["a:a", "a:c"]);
        assert_eq!(heard(&mut own), [""; 0]);
    }

    /// A server that ends what it tells by again and again has a client told so once a minute, and not forgotten.
    #[tokio::test(start_paused = true)]
    async fn a_child_that_always_ends_floods_nobody() {
        let (session, mut lines) = session();
        let mut own = session.listen().unwrap();
        let _done = subscribe(&session, "a:a");
        let mut open = asked(&mut lines, &["a:a"]);
        acknowledge(&session, open, &["a:a"]);
        let begin = Instant::now();
        let mut told = Vec::new();
        while begin.elapsed() < Duration::from_secs(600) {
            tokio::time::advance(Duration::from_secs(1)).await;
            session.sweep(Instant::now(), Duration::MAX);
            // One that lasts is made again at once.
            if begin.elapsed().as_secs().is_multiple_of(11) {
                ends(&session, open);
                open = asked(&mut lines, &["a:a"]);
                acknowledge(&session, open, &["a:a"]);
            }
            let heard = heard(&mut own);
            if !heard.is_empty() {
                assert_eq!(heard, ["tools/list_changed", "a:a"]);
                told.push(begin.elapsed().as_secs());
            }
        }
        assert_eq!(told, [11, 71, 131, 191, 251, 311, 371, 431, 491, 551]);
        // What was ended last is told of when its minute is over.
        for _ in 0..60 {
            tokio::time::advance(Duration::from_secs(1)).await;
            session.sweep(Instant::now(), Duration::MAX);
        }
        assert_eq!(heard(&mut own), ["tools/list_changed", "a:a"]);
        for _ in 0..120 {
            tokio::time::advance(Duration::from_secs(1)).await;
            session.sweep(Instant::now(), Duration::MAX);
        }
        assert_eq!(heard(&mut own), [""; 0]);
    }

    /// Of each resource the client hears as whoever subscribed to it, and to what it is a part of; else as the last.
    #[test]
    fn each_resource_is_heard_as_whoever_subscribed_to_it() {
        let mut subscribed = Subscribed::default();
        let [wide, narrow] = ["wide", "narrow"].map(|name| Identity::example("https://a", name));
        for (uri, who) in [
            ("a:a", &wide),
            ("a:a/b", &narrow),
            ("a:b", &wide),
            ("a:c", &narrow),
            ("a:b", &narrow),
            ("a:a/c", &wide),
        ] {
            let hearer = subscribed.hearer(who);
            subscribed.add(uri.into(), hearer);
        }
        let mut last = subscribed.hearer(&narrow);
        let check = |subscribed: &Subscribed, uri: &str, expected: &[&Identity]| {
            let hearers = subscribed.hearers_of(uri);
            let hearers: Vec<&Identity> = hearers.iter().map(|it| &**it).collect();
            assert_eq!(hearers, expected, "{uri}");
        };
        check(&subscribed, "a:a", &[&wide]);
        check(&subscribed, "a:a/b/c", &[&wide, &narrow]);
        check(&subscribed, "a:b", &[&narrow]);
        check(&subscribed, "a:d", &[&narrow]);
        assert!(subscribed.remove("a:a") && !subscribed.remove("a:a"));
        check(&subscribed, "a:a/b/c", &[&narrow]);
        check(&subscribed, "a:a/c", &[&wide]);
        last = subscribed.hearer(&last);
        // Three resources, the latest, and here.
        assert_eq!(Arc::strong_count(&last), 5, "one token is kept once");
    }
}

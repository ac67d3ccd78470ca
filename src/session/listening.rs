//! Where the child's own messages go, and how a client comes back to a stream.
//!
//! Each message goes to exactly one stream (mcp-L5). One that names no request
//! goes to the latest request's stream, as most servers speak while they work;
//! what is about the server as a whole goes to the session's own stream, where
//! its client has opened it.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use tokio::time::{Duration, Instant};

use crate::{
    json::Value,
    mcp::{
        Era, Id, Message, bridge, meta, spelled,
        subscription::{self, ACKNOWLEDGED},
        task,
    },
    session::{
        SendError, Session,
        bridge::Bridge,
        calls::InFlight,
        conversation::SessionState,
        exchange::{Event, Failure},
        logs,
        own::OwnMessage,
        reversed,
        stream::{self, Exchange, Stream},
    },
};

/// The streams of a session besides those of requests in flight.
#[derive(Default)]
pub(super) struct SessionStreams {
    /// The session's own (GET), once it was opened, or while it may be soon.
    own: Option<Arc<Stream>>,
    /// Until then it may.
    awaited: Option<Instant>,
    /// Streams that have ended, oldest first, for whom lost the end.
    kept: VecDeque<EndedStream>,
}

/// The stream of a request that has its answer.
struct EndedStream {
    stream: Arc<Stream>,
    id: Id,
    list: Option<&'static str>,
    since: Instant,
}

/// A stream that a client has come back to.
pub struct Resumed {
    pub exchange: Exchange,
    /// The id of the request whose answer ends it; `None` for the session's own stream.
    pub id: Option<Id>,
    /// The request's method, if its answer is filtered.
    pub list: Option<&'static str>,
}

/// Why a client cannot come back to a stream.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoStream {
    #[error("{0}")]
    Gone(#[from] SendError),
    /// Never sent, or no longer kept.
    #[error("no such event")]
    Event,
}

impl SessionStreams {
    /// Whether its client had opened the session's own stream, and reads it no more.
    pub(super) fn is_left(&self) -> bool {
        self.own.as_ref().is_some_and(|own| own.is_left())
    }

    /// Keeps an ended stream, if a client may come back for its end.
    pub(super) fn keep(&mut self, call: InFlight) {
        if !call.stream.is_known() {
            return;
        }
        self.kept.push_back(EndedStream {
            stream: call.stream,
            id: call.id,
            list: call.list,
            since: Instant::now(),
        });
        let bytes = |kept: &VecDeque<EndedStream>| {
            kept.iter().map(|kept| kept.stream.kept()).sum::<usize>()
        };
        while self.kept.len() > MAX_KEPT || bytes(&self.kept) > MAX_KEPT_BYTES {
            self.kept.pop_front();
        }
    }

    fn sweep(&mut self, now: Instant) {
        self.kept
            .retain(|kept| now.duration_since(kept.since) < KEPT_FOR);
    }

    /// Keeps nothing that was read.
    fn forget_read(&mut self) {
        self.kept.retain(|kept| !kept.stream.is_read());
        if let Some(own) = &self.own {
            own.forget_read();
        }
    }

    /// Has what comes on the session's own stream wait for its client, who opens it only now.
    fn await_client(&mut self, now: Instant, stream: impl FnOnce() -> Arc<Stream>) {
        let own = self.own.get_or_insert_with(|| {
            let own = stream();
            own.wait_for_reader();
            own
        });
        if own.is_awaited() {
            self.awaited = Some(now + GRACE);
        }
    }

    /// The client goes on without opening that stream, and its server has asked something there.
    fn hurry(&mut self, now: Instant) {
        if let Some(until) = &mut self.awaited {
            *until = (*until).min(now + HURRY);
        }
    }

    /// The session's own stream, which nobody has opened in that time; it is there no more.
    fn not_opened(&mut self, now: Instant) -> Option<Arc<Stream>> {
        self.awaited.take_if(|until| *until <= now)?;
        self.own.take_if(|own| own.is_awaited())
    }

    /// Tells the session's own stream, if somebody listens to it.
    pub(super) fn tell(&self, event: Event) -> bool {
        let own = self.own.as_ref().filter(|own| own.is_heard());
        own.is_some_and(|own| own.tell(event))
    }

    /// Nothing more will come on the session's own stream.
    pub(super) fn close(&mut self) {
        if let Some(own) = self.own.take() {
            own.close();
        }
    }
}

impl Session {
    /// The text, counted if it is large, in place of what was read where there is no other; `None` if there is no
    /// room for it.
    pub(super) fn hold(&self, state: &mut SessionState, text: Bytes) -> Option<Bytes> {
        self.room.hold(text.clone()).or_else(|| {
            state.forget_read();
            self.room.hold(text)
        })
    }

    /// What was read is kept for those who come back, but not where what is to be read needs its room.
    pub(super) fn forget_read_if_scarce(&self, state: &mut SessionState) {
        if self.room.is_scarce() {
            state.forget_read();
        }
    }

    /// Opens the session's own stream; whoever listened to it before hears no more.
    pub fn listen(&self) -> Result<Exchange, SendError> {
        let mut state = self.lock()?;
        state.last_used = Instant::now();
        let style = self.style(&state);
        let own = state
            .streams
            .own
            .get_or_insert_with(|| Stream::new(OWN, style, &self.room));
        Ok(own.attach(None))
    }

    /// Who says that is about to listen to the session's own stream, if ever: what is for that waits a while.
    pub(super) fn await_listener(&self, state: &mut SessionState, method: &str) {
        if method != INITIALIZED || !state.open {
            return;
        }
        let style = self.style(state);
        let stream = || Stream::new(OWN, style, &self.room);
        state.streams.await_client(Instant::now(), stream);
    }

    /// Keeps no stream longer than it may be: what waits for a client that has not come is for nobody.
    pub(super) fn sweep_streams(&self, state: &mut SessionState, now: Instant) {
        state.streams.sweep(now);
        state.progress.sweep(now);
        let Some(own) = state.streams.not_opened(now) else {
            return;
        };
        for id in state.asked.close_all(OWN) {
            self.say(&OwnMessage::NobodyThere { id: &id });
        }
        for _ in 0..own.unread() {
            self.count_unheard();
        }
    }

    /// Goes on with the stream of the event `last` after it (mcp-L6).
    pub fn resume(&self, last: &str) -> Result<Resumed, NoStream> {
        let (number, after) = stream::place(last).ok_or(NoStream::Event)?;
        let mut state = self.lock()?;
        state.last_used = Instant::now();
        let (stream, id, list) = if number == OWN {
            let own = state.streams.own.as_ref();
            own.map(|own| (own, None, None))
        } else if let Some(call) = state.in_flight.get(&number) {
            Some((&call.stream, Some(&call.id), call.list))
        } else {
            let kept = state.streams.kept.iter();
            kept.rev()
                .find(|kept| kept.stream.number == number)
                .map(|kept| (&kept.stream, Some(&kept.id), kept.list))
        }
        .filter(|(stream, ..)| stream.is_known() && stream.has_come_to(after))
        .ok_or(NoStream::Event)?;
        Ok(Resumed {
            exchange: stream.attach(Some(after)).recorded_in(&self.audit),
            id: id.cloned(),
            list,
        })
    }

    /// Ends what would stay open: the session's own stream, subscriptions, and calls that
    /// wait for a client who can no longer come in.
    pub(super) fn end_streams(&self) {
        let mut state = self.state();
        state.streams.close();
        self.fail_open_ended(&mut state, Failure::ShuttingDown);
        self.give_up_waiting(&mut state);
    }

    /// Gives a notification of the child's to the one stream it is meant for; `false` if nobody hears it.
    pub(super) fn pass_on(&self, message: &Message, method: &str) -> bool {
        match self.bridge() {
            Some(Bridge::ToLegacy(_)) if is_about_the_server(method) => {
                self.publish(message, method)
            }
            Some(Bridge::ToLegacy(_)) if method == task::TOLD_BY_LEGACY => self.task_says(message),
            Some(Bridge::ToModern(_)) => self.pass_on_from_modern(message, method),
            _ => self.pass_on_plain(message, method),
        }
    }

    fn pass_on_from_modern(&self, message: &Message, method: &str) -> bool {
        match method {
            task::TOLD => return self.followed_says(message),
            ACKNOWLEDGED => self.acknowledged(message),
            // It asks by its answers alone (sse-6): there is nothing that it could withdraw.
            CANCELLED => {}
            // Nobody has asked for it.
            _ if !self.is_for_legacy(message, method) => {}
            _ => {
                let text = subscription::unlabelled(message).into();
                return Message::parse(text)
                    .is_ok_and(|message| self.pass_on_plain(&message, method));
            }
        }
        true
    }

    pub(super) fn pass_on_plain(&self, message: &Message, method: &str) -> bool {
        let params = message.root().get("params");
        let subscription = params
            .and_then(|params| params.get("_meta"))
            .and_then(|meta| meta.get(meta::SUBSCRIPTION));
        let hearers = |uri: &str| {
            let state = self.state();
            let Some(subscription) = subscription else {
                return state.subscribed.hearers_of(uri);
            };
            let call = named(&state, subscription);
            Vec::from_iter(call.and_then(InFlight::hearer).cloned())
        };
        if !self.may_hear(hearers, message, method) {
            return false;
        }
        let mut state = self.state();
        if matches!(method, task::TOLD_BY_LEGACY | task::TOLD) {
            state.progress.ends(params);
        }
        if let Some(subscription) = subscription {
            let call = named(&state, subscription);
            return call.is_some_and(|call| {
                let id = [(subscription.span(), call.id.as_json())];
                tell(&call.stream, message.with(&id).into())
            });
        }
        if method == "notifications/progress" {
            return pass_on_progress(&state, message, params);
        }
        let stream = self.stream_for(&state, method, params);
        stream.is_some_and(|stream| tell(stream, message.bytes().clone()))
    }

    /// The stream for a notification that names no request.
    fn stream_for<'a>(
        &self,
        state: &'a SessionState,
        method: &str,
        params: Option<Value<'_>>,
    ) -> Option<&'a Arc<Stream>> {
        match self.era {
            Era::Modern if method == "notifications/message" => {
                let level = params
                    .and_then(|params| params.get("level"))
                    .and_then(Value::as_str);
                let level = level.and_then(|level| bridge::log_level(&level));
                // A modern child has chosen by itself; a legacy one says everything.
                logs::hearer(state, level, self.legacy_server().is_none())
            }
            Era::Modern => None,
            Era::Legacy if method == CANCELLED => params
                .and_then(|params| params.get("requestId"))
                .and_then(|id| state.asked_on(id))
                .or_else(|| any(state)),
            Era::Legacy if is_about_the_server(method) => own(state).or_else(|| any(state)),
            Era::Legacy => any(state),
        }
    }

    /// Gives a request of the child's to a client that can answer it.
    pub(super) fn ask(&self, message: Bytes, id: Bytes) -> bool {
        let mut state = self.state();
        // While `initialize` is in flight nobody listens: its client waits for the answer alone.
        if !state.open {
            return false;
        }
        let heard = any(&state).filter(|stream| tell(stream, message));
        let Some(on) = heard.map(|stream| stream.number) else {
            return false;
        };
        if let Some((oldest, on)) = state.asked.make_room() {
            self.say(&OwnMessage::NobodyThere { id: &oldest });
            let call = state.in_flight.get(&on);
            state.withdraw(
                &oldest,
                call.map(|call| &*call.stream),
                "nobody has answered",
            );
        }
        state.asked.ask(Bytes::copy_from_slice(&spelled(&id)), on);
        true
    }

    /// Whether its client was asked this, if only once.
    pub(super) fn has_asked(&self, state: &SessionState, id: &Id) -> bool {
        let id = spelled(id.as_json());
        state.asked.know(&id) || (self.modern_server().is_some() && reversed::is_past(state, &id))
    }

    /// Forgets a request of the child's that it has itself cancelled.
    pub(super) fn unask(&self, id: &[u8]) {
        let mut state = self.state();
        state.asked.close(&spelled(id));
        Self::forget_question(&mut state, id);
    }
}

/// Gives progress to the call or the task whose token it names, under the client's own; `false` if nobody hears it.
fn pass_on_progress(state: &SessionState, message: &Message, params: Option<Value<'_>>) -> bool {
    let token = params.and_then(|params| params.get("progressToken"));
    let Some(token) = token else {
        return false;
    };
    let (stream, own) = match named(state, token) {
        Some(call) => (Some(&call.stream), call.progress_token.as_ref()),
        None => state.told_of_task(token),
    };
    let Some((stream, own)) = stream.zip(own) else {
        return false;
    };
    tell(stream, message.with(&[(token.span(), own)]).into())
}

/// The request that the child names by the number it was given.
fn named<'a>(state: &'a SessionState, number: Value<'_>) -> Option<&'a InFlight> {
    let number = state.reversed.first(number.as_u64()?);
    let call = state.in_flight.get(&number);
    // A legacy child knows of no subscription.
    call.filter(|call| call.bridged_subscription().is_none())
}

/// The stream of the latest request that somebody listens to.
fn newest(state: &SessionState) -> Option<&Arc<Stream>> {
    state
        .in_flight
        .iter()
        .filter(|(_, call)| call.stream.is_heard())
        .max_by_key(|(number, _)| **number)
        .map(|(_, call)| &call.stream)
}

fn own(state: &SessionState) -> Option<&Arc<Stream>> {
    state.streams.own.as_ref().filter(|own| own.is_heard())
}

/// The stream for what is about nothing in particular.
fn any(state: &SessionState) -> Option<&Arc<Stream>> {
    let awaited = || {
        let own = state.streams.own.as_ref();
        own.filter(|own| own.is_awaited())
    };
    newest(state).or_else(|| own(state)).or_else(awaited)
}

impl SessionState {
    /// A call begins: a server that answers none before its question has its answer does not wait for long.
    pub(super) fn hurry(&mut self, now: Instant) {
        if self.asked.waits_on(OWN) {
            self.streams.hurry(now);
        }
    }

    /// The stream on which the client was asked this, if it is still heard.
    fn asked_on(&self, id: Value<'_>) -> Option<&Arc<Stream>> {
        let number = self.asked.stream_of(&spelled(id.raw()))?;
        let stream = match number {
            OWN => self.streams.own.as_ref(),
            _ => self.in_flight.get(&number).map(|call| &call.stream),
        };
        stream.filter(|stream| stream.is_heard() || stream.is_awaited())
    }

    /// Where the progress of the task goes that its child tells under that token, and the client's own token.
    fn told_of_task(&self, token: Value<'_>) -> (Option<&Arc<Stream>>, Option<&Bytes>) {
        let Some(told) = self.progress.of(token) else {
            return (None, None);
        };
        let result = told.result.and_then(|number| self.in_flight.get(&number));
        let result = result.map(|call| &call.stream);
        let stream = result.filter(|stream| stream.is_heard());
        let stream = stream.or_else(|| own(self)).or_else(|| any(self));
        (stream, told.token.as_ref())
    }

    /// Tells the client, where it was asked or else on the session's own stream, that its answer is not waited for
    /// any more.
    pub(super) fn withdraw(&self, id: &[u8], on: Option<&Stream>, why: &str) {
        let text = [
            br#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"#,
            id,
            br#","reason":""#,
            why.as_bytes(),
            br#""}}"#,
        ];
        let text = Event::Message(text.concat().into());
        let is_told = on.is_some_and(|stream| stream.tell(text.clone()));
        // Also where its client is still to open that: the question waits there, too.
        if let Some(own) = self.streams.own.as_ref().filter(|_| !is_told) {
            own.tell(text);
        }
    }

    fn forget_read(&mut self) {
        self.streams.forget_read();
        for call in self.in_flight.values() {
            call.stream.forget_read();
        }
    }
}

fn is_about_the_server(method: &str) -> bool {
    method.ends_with("/list_changed") || method == "notifications/resources/updated"
}

fn tell(stream: &Stream, message: Bytes) -> bool {
    stream.tell(Event::Message(message))
}

/// The number of the session's own stream.
pub(super) const OWN: u64 = 0;
/// How long what is for the session's own stream waits for its client to open that. Clients do so only when
/// `notifications/initialized` was accepted, and a server that asks for roots does so when it hears that: over a slow
/// line it was always first. Some never do, and their server must not wait long for nobody.
const GRACE: Duration = Duration::from_secs(10);
/// How long still once its client makes calls: those that open it do so before, or together with their first.
const HURRY: Duration = Duration::from_secs(1);
/// What a client says when its session is open.
pub(super) const INITIALIZED: &str = "notifications/initialized";
/// What a server says that waits no more for an answer.
const CANCELLED: &str = "notifications/cancelled";
/// Ended streams of a session that can be taken up again, their bytes, and for how long.
const MAX_KEPT: usize = 16;
const MAX_KEPT_BYTES: usize = 2 << 20;
const KEPT_FOR: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        auth::Identity,
        mcp::Call,
        session::{
            pump,
            room::Rooms,
            testing::{self, now, said},
        },
    };

    const ASKS: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","_meta":{"progressToken":1}}}"#;

    /// A step of the first request's, or the answer to the request of that number, of so many bytes.
    fn step(bytes: usize) -> Bytes {
        let text = "x".repeat(bytes);
        format!(r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":1,"progress":1,"message":"{text}"}}}}"#).into()
    }

    fn answer(number: u64, bytes: usize) -> Bytes {
        let text = "x".repeat(bytes);
        format!(r#"{{"jsonrpc":"2.0","id":{number},"result":{{"text":"{text}"}}}}"#).into()
    }

    /// conn-3, mcp-L6: what is kept of streams for who comes back makes room for what nobody has read yet.
    #[tokio::test]
    async fn what_was_read_makes_room_for_an_answer() {
        let (session, _lines) = testing::session(Era::Legacy);
        let mut asked = testing::asked(&session, ASKS);
        asked.as_events();
        for _ in 0..2 {
            assert!(pump::take(&session, step(100 << 10)));
            assert!(matches!(asked.next().await, Some(Event::Message(_))));
        }
        let others = session
            .room
            .hold_anyway(vec![0; (16 << 20) - (300 << 10)].into());
        let second = ASKS.replace(r#""id":1"#, r#""id":2"#);
        let mut second = testing::asked(&session, &second);
        assert!(pump::take(&session, answer(2, 90 << 10)));
        assert!(matches!(second.next().await, Some(Event::Answer(_))));
        // Where nothing more was read, there is no room.
        drop(second);
        let third = ASKS.replace(r#""id":1"#, r#""id":3"#);
        let mut third = testing::asked(&session, &third);
        assert!(pump::take(&session, answer(3, 400 << 10)));
        let told = third.next().await;
        assert!(
            matches!(told, Some(Event::Failed(Failure::NoRoom))),
            "{told:?}"
        );
        drop(others);
    }

    fn responds(session: &Session, id: &str) -> Result<(), SendError> {
        let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#);
        testing::responds(session, &text)
    }

    fn asks(session: &Session, id: &str) {
        let text = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"elicitation/create"}}"#);
        assert!(pump::take(session, text.into()));
    }

    /// tok-132: an answer to what the server does not wait for any more is accepted, and does not reach it; the
    /// server's word for it comes on the stream of the question.
    #[tokio::test]
    async fn an_answer_that_comes_too_late_has_no_effect() {
        let (session, mut lines) = testing::session(Era::Legacy);
        session.open("2025-11-25");
        let mut own = session.listen().unwrap();
        own.as_events();
        asks(&session, r#""\u00e9""#);
        let mut asked = testing::asked(&session, ASKS);
        let cancel =
            r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"é"}}"#;
        assert!(pump::take(&session, cancel.into()));
        assert!(matches!(now(&mut own).await, Some(Event::Message(_))));
        assert!(matches!(now(&mut own).await, Some(Event::Message(text)) if text == cancel));
        asks(&session, "7");
        assert!(matches!(now(&mut asked).await, Some(Event::Message(_))));
        assert_eq!(said(&mut lines).len(), 1, "the call");
        assert_eq!(responds(&session, "7"), Ok(()));
        assert_eq!(said(&mut lines).len(), 1);
        for (id, taken) in [
            ("7", Ok(())),
            (r#""é""#, Ok(())),
            ("8", Err(SendError::NotAsked)),
            (r#""7""#, Err(SendError::NotAsked)),
            (r#""thv-1-1-0""#, Err(SendError::NotAsked)),
        ] {
            assert_eq!(responds(&session, id), taken, "{id}");
        }
        assert_eq!(said(&mut lines), [""; 0]);
    }

    /// What its client does not answer keeps no server from asking more: the oldest is given up, and both are told.
    #[tokio::test]
    async fn of_many_questions_that_nobody_answers_the_oldest_is_given_up() {
        let (session, mut lines) = testing::session(Era::Legacy);
        session.open("2025-11-25");
        let mut own = session.listen().unwrap();
        own.as_events();
        for number in 0..65 {
            asks(&session, &number.to_string());
            assert!(matches!(now(&mut own).await, Some(Event::Message(_))));
        }
        let Some(Event::Message(told)) = now(&mut own).await else {
            panic!("nothing was told");
        };
        let told = String::from_utf8(told.to_vec()).unwrap();
        assert!(told.contains(r#""notifications/cancelled","params":{"requestId":0,"#));
        let heard = said(&mut lines);
        assert!(
            heard.len() == 1 && heard[0].starts_with(r#"{"jsonrpc":"2.0","id":0,"error""#),
            "{heard:?}"
        );
        assert_eq!(responds(&session, "0"), Ok(()));
        assert_eq!(said(&mut lines), [""; 0]);
        for number in 1..65 {
            assert_eq!(responds(&session, &number.to_string()), Ok(()));
        }
        assert_eq!(said(&mut lines).len(), 64);
    }

    /// The same where the client is still to open its stream: it is not shown as open what was given up meanwhile.
    #[tokio::test]
    async fn a_question_that_is_given_up_before_it_is_shown_is_withdrawn_behind_it() {
        let (session, _lines) = testing::session(Era::Legacy);
        session.open("2025-11-25");
        for number in 0..65 {
            asks(&session, &number.to_string());
        }
        let mut own = session.listen().unwrap();
        own.as_events();
        for number in 0..65 {
            let begins = format!(r#"{{"jsonrpc":"2.0","id":{number},"#);
            assert!(
                matches!(now(&mut own).await, Some(Event::Message(text)) if text.starts_with(begins.as_bytes()))
            );
        }
        let withdrawn = br#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":0,"reason":"nobody has answered"}}"#;
        assert!(matches!(now(&mut own).await, Some(Event::Message(text)) if text == withdrawn[..]));
    }

    /// mcp-L5: a server that has asked something, and answers nothing before it is answered, waits a second for the stream of a
    /// client that makes calls, not ten.
    #[tokio::test(start_paused = true)]
    async fn a_question_does_not_wait_for_long_once_its_client_calls() {
        let (session, mut lines) = testing::session(Era::Legacy);
        session.open("2025-11-25");
        let idle = Duration::from_secs(600);
        asks(&session, "7");
        tokio::time::advance(HURRY * 2).await;
        session.sweep(Instant::now(), idle);
        assert_eq!(said(&mut lines), [""; 0]);
        let _asked = testing::asked(&session, ASKS);
        assert_eq!(said(&mut lines).len(), 1, "its call");
        session.sweep(Instant::now(), idle);
        assert_eq!(said(&mut lines), [""; 0]);
        tokio::time::advance(HURRY).await;
        session.sweep(Instant::now(), idle);
        assert!(said(&mut lines)[0].contains("-32601"));
    }

    /// mcp-L1, mcp-L5: what a server asks and says before its client has opened the session's own stream waits for that,
    /// but not for long, and not where a call is read.
    #[tokio::test(start_paused = true)]
    async fn what_comes_before_the_clients_own_stream_waits_for_it() {
        const CHANGED: &str = r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#;
        let initialized = format!(r#"{{"jsonrpc":"2.0","method":"{INITIALIZED}"}}"#);
        let initialized = Call::read(initialized.into(), false).unwrap();
        let idle = Duration::from_secs(600);
        let begin = || {
            let (session, lines) = testing::session(Era::Legacy);
            session.open("2025-11-25");
            (session, lines)
        };
        for opens in ["in time", "late", "late, and says so"] {
            let (session, mut lines) = begin();
            assert!(session.resume("0-0").is_err(), "it was not opened");
            tokio::time::advance(GRACE - Duration::from_secs(1)).await;
            if opens == "late, and says so" {
                session.notify(&initialized).unwrap();
                assert_eq!(said(&mut lines).len(), 1);
            }
            asks(&session, "7");
            assert!(pump::take(&session, CHANGED.into()));
            // One that is withdrawn meanwhile is not answered once more.
            asks(&session, "8");
            let cancel =
                r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":8}}"#;
            assert!(pump::take(&session, cancel.into()));
            if opens != "in time" {
                tokio::time::advance(Duration::from_secs(1)).await;
            }
            session.sweep(Instant::now(), idle);
            let heard = said(&mut lines);
            if opens == "late" {
                let refused = r#"{"jsonrpc":"2.0","id":7,"error":{"code":-32601,"message":"no client is listening"}}"#;
                assert_eq!(heard, [format!("{refused}\n")]);
                assert_eq!(session.unheard(), 4);
                assert!(session.state().streams.own.is_none());
                assert_eq!(responds(&session, "7"), Ok(()));
                assert_eq!(said(&mut lines), [""; 0]);
                // Now that nobody is expected it is as ever.
                asks(&session, "9");
                assert!(said(&mut lines)[0].contains("-32601"));
                let mut own = session.listen().unwrap();
                asks(&session, "10");
                assert!(
                    matches!(now(&mut own).await, Some(Event::Message(text)) if text.ends_with(br#""id":10,"method":"elicitation/create"}"#))
                );
                continue;
            }
            assert_eq!(heard, [""; 0]);
            let mut own = session.listen().unwrap();
            own.as_events();
            for starts in [
                r#"{"jsonrpc":"2.0","id":7,"#,
                CHANGED,
                r#"{"jsonrpc":"2.0","id":8,"#,
                cancel,
            ] {
                let next = now(&mut own).await;
                assert!(
                    matches!(&next, Some(Event::Message(text)) if text.starts_with(starts.as_bytes())),
                    "{next:?}"
                );
            }
            assert_eq!(responds(&session, "7"), Ok(()));
            assert_eq!(said(&mut lines).len(), 1);
            tokio::time::advance(GRACE).await;
            session.sweep(Instant::now(), idle);
            asks(&session, "9");
            assert!(matches!(now(&mut own).await, Some(Event::Message(_))));
        }
        // Who reads an answer is there.
        let (session, _lines) = begin();
        let mut asked = testing::asked(&session, ASKS);
        assert!(pump::take(&session, CHANGED.into()));
        assert!(matches!(now(&mut asked).await, Some(Event::Message(text)) if text == CHANGED));
        // While nothing is said nothing is kept.
        session.sweep(Instant::now() + GRACE, idle);
        assert!(session.state().streams.own.is_none());
    }

    /// conn-3: what waits for a client that may not come is bounded as for one that does not read, counted, and given back.
    #[tokio::test(start_paused = true)]
    async fn what_waits_for_a_client_that_does_not_come_is_bounded_and_given_back() {
        let rooms = Rooms::new(1);
        let alice = Identity::example("https://a", "alice");
        let (session, _lines) = testing::session_of(alice, Era::Legacy, &rooms);
        session.open("2025-11-25");
        let text = "x".repeat(100 << 10);
        let text = format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{{"data":"{text}"}}}}"#
        );
        for _ in 0..300 {
            assert!(pump::take(&session, text.clone().into()));
        }
        let taken = rooms.taken();
        // What was read of a line is held beside it.
        assert!(taken > 900 << 10 && taken <= 2 << 20, "{taken}");
        let dropped = session.unheard();
        session.sweep(Instant::now() + GRACE, Duration::MAX);
        assert_eq!((rooms.taken(), session.unheard()), (0, 300));
        assert!(dropped < 300);
    }

    /// mcp-L6: an answer that was read is kept for who comes back; not where its user has much that is not read,
    /// whichever session it is in.
    #[tokio::test]
    async fn what_was_read_is_not_kept_where_its_user_has_much_to_read() {
        let rooms = Rooms::new(1);
        let alice = || Identity::example("https://a", "alice");
        let (session, _lines) = testing::session_of(alice(), Era::Legacy, &rooms);
        let mut asked = testing::asked(&session, ASKS);
        asked.as_events();
        assert!(pump::take(&session, step(10)));
        assert!(pump::take(&session, answer(1, 1 << 20)));
        let resumes = || session.resume("1-1").is_ok();
        let idle = Duration::from_secs(600);
        session.sweep(Instant::now(), idle);
        assert!(resumes() && rooms.taken() > 1 << 20);
        let (other, _others) = testing::session_of(alice(), Era::Legacy, &rooms);
        let much = other.room.hold_anyway(vec![0; 40 << 20].into());
        session.sweep(Instant::now(), idle);
        assert!(resumes(), "it is not read yet");
        while asked.next().await.is_some() {}
        drop(much);
        session.sweep(Instant::now(), idle);
        assert!(resumes());
        let mut again = session.resume("1-1").unwrap().exchange;
        while again.next().await.is_some() {}
        drop((again, asked));
        let _much = other.room.hold_anyway(vec![0; 40 << 20].into());
        session.sweep(Instant::now(), idle);
        assert!(!resumes());
        assert_eq!(rooms.taken(), 40 << 20);
    }
}

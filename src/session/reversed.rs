//! A legacy client's session with a child that speaks nothing but modern MCP.
//!
//! What such a child does not know is answered here (ping, log level,
//! subscriptions); a question that it asks by its answer goes to the client as
//! a request, and the call is made again with what the client said, as modern
//! MCP has it (mcp-M1).

use bytes::Bytes;
use foldhash::HashMap;
use tokio::time::Instant;

use crate::{
    json::{Kind, Value},
    mcp::{
        Call, Id, Message, answer, bridge,
        input::{self, Question},
        reverse::{Given, ModernServer},
        spelled,
    },
    session::{
        SendError, Session,
        calls::{InFlight, RequestWay},
        conversation::SessionState,
        exchange::{Event, Failure},
        line::Line,
        listening::OWN,
        owed::OutcomeOwed,
        pending::{MAX_ASKED_BYTES, MAX_QUESTIONS, PATIENCE},
        subscriptions::{renewing::Ear, subscribing::Missed},
        tasks::following::{Following, TaskOutcome},
    },
};

/// What such a session remembers.
#[derive(Default)]
pub(super) struct Reversed {
    /// Numbers that calls go by which were made again, and their first ones.
    again: HashMap<u64, u64>,
    /// The call whose resource the child was asked for last.
    pub(super) asking: Option<u64>,
    pub(super) missed: Missed,
    /// The subscription at the child, and that to tasks.
    pub(super) listening: Ear,
    pub(super) watching: Ear,
    /// The record that the client's `initialize` owes while the child is asked what it speaks.
    pub(super) opening: Option<OutcomeOwed>,
}

impl Reversed {
    /// The number that a call began with.
    pub(super) fn first(&self, number: u64) -> u64 {
        self.again.get(&number).copied().unwrap_or(number)
    }
}

/// A legacy client's call, to be made again with what the server asks for.
pub(super) struct Again {
    /// No more of it than that takes: people may think about it for long.
    message: Message,
    /// The number that the child knows it by, if it was made again.
    pub(super) number: Option<u64>,
    pub(super) rounds: u32,
    /// The task that the child has made of it.
    pub(super) task: Option<Following>,
    /// As JSON.
    state: Option<Bytes>,
    /// What the client is being asked.
    questions: Vec<InputRequest>,
}

/// What a modern child's answer asks for (`inputRequests`), as a question to the client.
pub(super) struct InputRequest {
    question: Question,
    /// The id that it has towards the client, as JSON.
    id: Bytes,
    answer: Option<Bytes>,
}

impl InputRequest {
    pub(super) fn key(&self) -> &str {
        &self.question.key
    }
}

impl Again {
    pub(super) fn is_asking_nothing(&self) -> bool {
        self.questions.is_empty()
    }

    pub(super) fn may_ask_more(&self) -> bool {
        self.rounds <= MAX_ROUNDS
    }

    pub(super) fn ask(&mut self, questions: Vec<InputRequest>) {
        self.questions = questions;
    }

    /// What the client has answered, under the names that the child has for it.
    pub(super) fn answers(&mut self) -> Vec<(String, Bytes)> {
        let answered = self.questions.drain(..);
        answered
            .map(|asked| (asked.question.key, asked.answer.unwrap_or_default()))
            .collect()
    }
}

impl SessionState {
    /// The call that began as `first` goes by another number towards the child.
    pub(super) fn renumber(&mut self, first: u64, before: Option<u64>, number: u64) {
        if let Some(before) = before {
            self.reversed.again.remove(&before);
        }
        self.reversed.again.insert(number, first);
    }
}

impl Session {
    /// Asks the client what a modern child's answer to `call` asks for; the call is given
    /// back where that answer is one, and dropped where it waits or has failed.
    pub(super) fn asks_for_more(
        &self,
        state: &mut SessionState,
        number: u64,
        mut call: InFlight,
        (message, outcome): (&Message, Option<TaskOutcome>),
    ) -> Option<InFlight> {
        let result = message.root().get("result");
        if call
            .again
            .as_deref()
            .is_some_and(|again| again.task.is_some())
        {
            return self.task_stands(state, number, call, (result?, outcome));
        }
        let kind = result.and_then(|result| result.get("resultType"));
        match kind.and_then(Value::as_str).as_deref() {
            Some("input_required") => {}
            Some("task") if server_has_tasks(self) => {
                let call = self.follow(state, number, call, result?)?;
                self.fail(state, call, Failure::BadAnswer);
                return None;
            }
            // Of an extension that nobody was told of.
            Some("task") => {
                self.fail(state, call, Failure::BadAnswer);
                return None;
            }
            _ => return Some(call),
        }
        let asked = match (call.again.as_deref_mut(), result) {
            (Some(again), Some(result)) => self.is_asked(again, number, result),
            _ => Err(Failure::BadAnswer),
        };
        match asked {
            Ok(()) => self.ask_legacy(state, number, call),
            Err(failure) => self.fail(state, call, failure),
        }
        None
    }

    /// What the child's result asks for is what the call is to be made again with.
    fn is_asked(&self, again: &mut Again, number: u64, result: Value<'_>) -> Result<(), Failure> {
        again.rounds += 1;
        let questions = self.questions_of(result, number, again.rounds)?;
        let state = result.get("requestState").map(Value::raw);
        if !again.may_ask_more() || state.is_some_and(|state| state.len() > MAX_ASKED_BYTES) {
            return Err(Failure::BadAnswer);
        }
        if let Some(state) = state {
            let state = self.room.hold_all(Bytes::copy_from_slice(state));
            again.state = Some(state.ok_or(Failure::NoRoom)?);
        }
        again.questions = questions;
        Ok(())
    }

    /// Asks the client what its call is being asked.
    pub(super) fn ask_legacy(&self, state: &mut SessionState, number: u64, mut call: InFlight) {
        call.deadline = Instant::now() + PATIENCE;
        let again = call.again.as_deref().expect("it was asked just now");
        let all_heard = again.questions.iter().all(|asked| {
            let text = Event::Message(asked.question.request(&asked.id).into());
            let in_call = call.stream.is_heard() && call.stream.tell(text.clone());
            let heard = in_call || state.streams.tell(text);
            if heard {
                let on = if in_call { number } else { OWN };
                state.asked.ask(asked.id.clone(), on);
            }
            heard
        });
        if !all_heard {
            forget(state, &call);
            self.fail(state, call, Failure::NoInput);
            return;
        }
        let is_nothing = again.questions.is_empty();
        state.in_flight.insert(number, call);
        if is_nothing {
            self.make_again(state, number);
        }
    }

    pub(super) fn questions_of(
        &self,
        result: Value<'_>,
        number: u64,
        round: u32,
    ) -> Result<Vec<InputRequest>, Failure> {
        let server = self.modern_server().ok_or(Failure::BadAnswer)?;
        let requests = result.get("inputRequests");
        let mut questions = Vec::new();
        let mut bytes = 0;
        for (key, request) in requests.iter().flat_map(|requests| requests.members()) {
            let question = Question::required(&key, request).ok_or(Failure::BadAnswer)?;
            bytes += question.size();
            let many = questions.len() == MAX_QUESTIONS || bytes > MAX_ASKED_BYTES;
            if many || question.lacking(server.abilities()).is_some() {
                return Err(Failure::BadAnswer);
            }
            let question = self.kept(question).ok_or(Failure::NoRoom)?;
            let id = format!("{OURS}{number}-{round}-{}\"", questions.len());
            questions.push(InputRequest {
                question,
                id: id.into(),
                answer: None,
            });
        }
        Ok(questions)
    }

    /// Takes the client's answer to what a modern child has asked for.
    pub(super) fn respond_to_modern(
        &self,
        state: &mut SessionState,
        call: &Call,
        id: &Id,
    ) -> Result<(), SendError> {
        // Ours has one spelling, which is the one that all of its spellings have.
        let id = spelled(id.as_json());
        let of = |asked: &InputRequest| *asked.id == *id;
        let waiting = state.in_flight.iter_mut().find_map(|(number, call)| {
            let again = call.again.as_deref_mut()?;
            again.questions.iter().any(of).then_some((*number, again))
        });
        let Some((number, again)) = waiting else {
            state.asked.remove(&id);
            return Ok(());
        };
        let given = again.questions.iter().flat_map(|asked| &asked.answer);
        let room = MAX_ANSWER_BYTES.saturating_sub(given.map(Bytes::len).sum());
        let result = call.message().root().get("result");
        let result = result.filter(|result| result.span().len() <= room);
        for asked in again.questions.iter_mut().filter(|asked| of(asked)) {
            let answer = result.filter(|result| asked.question.fits(*result));
            asked.answer = match answer.map(|answer| Bytes::copy_from_slice(answer.raw())) {
                // A client that is told to try again finds its question still there.
                Some(answer) => Some(self.room.hold_all(answer).ok_or(SendError::Busy)?),
                None => asked.question.refused().map(Bytes::from_static),
            };
            state.asked.remove(&id);
            if asked.answer.is_none() {
                // There is no way to tell a modern server that nobody will answer.
                if let Some(call) = state.in_flight.remove(&number) {
                    forget(state, &call);
                    self.fail(state, call, Failure::NoInput);
                }
                return Ok(());
            }
        }
        if again.questions.iter().all(|asked| asked.answer.is_some()) {
            self.make_again(state, number);
        }
        Ok(())
    }

    /// Makes the call again, with what the client has answered.
    fn make_again(&self, state: &mut SessionState, first: u64) {
        if self.update_task(state, first) {
            return;
        }
        let number = state.next;
        state.next += 1;
        let Some(server) = self.modern_server() else {
            return;
        };
        let level = level(server, state);
        let Some(call) = state.in_flight.get_mut(&first) else {
            return;
        };
        let Some(again) = call.again.as_deref_mut() else {
            return;
        };
        let responses = answer::object(again.answers());
        // Told once: what it answers says what it is to be told next.
        let told = again.state.take();
        let given = Given {
            responses: &responses,
            state: told.as_deref(),
        };
        let changes = server.request(&again.message, number, level, Some(given));
        let line = Line::changed(&again.message, &changes);
        let before = again.number.replace(number);
        call.deadline = Instant::now() + self.call_timeout;
        state.renumber(first, before, number);
        if let Err(error) = self.write(line)
            && let Some(call) = state.in_flight.remove(&first)
        {
            self.fail(state, call, Failure::unsaid(error));
        }
    }

    /// Forgets what a call that ends has left to be remembered.
    pub(super) fn forget_again(&self, state: &mut SessionState, call: &InFlight) {
        if call.again.is_some() {
            self.end_task(state, call);
            forget(state, call);
        }
    }
}

impl InFlight {
    /// For a legacy client's call to a modern child.
    pub(super) fn again(session: &Session, call: &Call) -> Option<Box<Again>> {
        let asks = session.modern_server().is_some() && input::may_ask(call.method());
        asks.then(|| {
            Box::new(Again {
                message: ModernServer::outline(call.message()),
                number: None,
                rounds: 0,
                task: None,
                state: None,
                questions: Vec::new(),
            })
        })
    }

    /// The number that the child knows the call by, which began as `first`; `None` if
    /// the child waits for the call to be made again, has answered it, or knows nothing of it.
    pub(super) fn number(&self, first: u64) -> Option<u64> {
        if self.is_answered() || self.awaits_acknowledgement() {
            return None;
        }
        match self.again.as_deref() {
            Some(again) if !again.questions.is_empty() => None,
            Some(again) => Some(again.number.unwrap_or(first)),
            None => Some(first),
        }
    }
}

fn forget(state: &mut SessionState, call: &InFlight) {
    if let Some(again) = &call.again {
        for asked in &again.questions {
            // Of what it has answered its client waits for nothing.
            if let Some(on) = state.asked.remove(&asked.id) {
                let stream = Some(&*call.stream).filter(|_| on != OWN);
                state.withdraw(&asked.id, stream, "the call has ended");
            }
        }
        if let Some(number) = again.number {
            state.reversed.again.remove(&number);
        }
    }
}

/// Whether that is the id, as JSON, of a question that a call of this session may have asked.
pub(super) fn is_past(state: &SessionState, id: &[u8]) -> bool {
    let number = || {
        let rest = str::from_utf8(id).ok()?.strip_prefix(OURS)?;
        let mut parts = rest.strip_suffix('"')?.splitn(3, '-');
        let mut next = || {
            let part = parts.next()?;
            let plain = part.bytes().all(|byte| byte.is_ascii_digit());
            part.parse::<u64>().ok().filter(|_| plain)
        };
        let (number, round, question) = (next()?, next()?, next()?);
        let may_be = round <= MAX_ROUNDS.into() && question < MAX_QUESTIONS as u64;
        may_be.then_some(number)
    };
    number().is_some_and(|number| (1..state.next).contains(&number))
}

/// What becomes of a client's request to a modern child.
pub(super) fn way_to_modern(
    state: &mut SessionState,
    server: &ModernServer,
    call: &Call,
    id: &Id,
) -> RequestWay {
    let can = |kind: &str| server.capabilities().get(kind).is_some();
    let none = || RequestWay::Here(answer::refused(id, -32601, "Method not found"));
    let done = || RequestWay::Here(answer::result(id.as_json(), b"{}"));
    match call.method() {
        "ping" => done(),
        "logging/setLevel" if can("logging") => {
            let level = call.param("level");
            match level
                .and_then(Value::as_str)
                .and_then(|level| bridge::log_level(&level))
            {
                Some(level) => {
                    state.level = Some(level);
                    done()
                }
                None => RequestWay::Here(answer::refused(id, -32602, "no such level")),
            }
        }
        // It is answered when the child has acknowledged the resource.
        "resources/subscribe" if server.tells_of_resources() => RequestWay::Open,
        "resources/unsubscribe" if server.tells_of_resources() => done(),
        "logging/setLevel" | "resources/subscribe" | "resources/unsubscribe" => none(),
        // Those of older versions are others than the newer extension's.
        method if method.starts_with("tasks/") => none(),
        _ => {
            let changes = server.request(call.message(), state.next, level(server, state), None);
            RequestWay::Child(Line::changed(call.message(), &changes))
        }
    }
}

/// Whether the child was told that it may make tasks.
fn server_has_tasks(session: &Session) -> bool {
    session
        .modern_server()
        .is_some_and(|server| server.makes_tasks())
}

/// From which level on log messages are wanted: legacy servers log without being told to.
fn level(server: &ModernServer, state: &SessionState) -> Option<&'static str> {
    let logs = server
        .capabilities()
        .get("logging")
        .is_some_and(|logs| !logs.is_null());
    logs.then(|| state.level.map_or("info", bridge::level_name))
}

/// Whether an answer to `initialize` is an error.
pub(super) fn is_refusal(answer: &Bytes) -> bool {
    Message::parse(answer.clone()).is_ok_and(|answer| {
        answer
            .root()
            .get("error")
            .is_some_and(|error| error.kind() == Kind::Object)
    })
}

/// How the ids begin, as JSON, under which a client is asked.
const OURS: &str = "\"thv-";
/// How often one call may ask.
const MAX_ROUNDS: u32 = 32;
/// Bytes of what a client answers in one round; more is none.
const MAX_ANSWER_BYTES: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        mcp::Shape,
        session::{
            own::OwnMessage,
            pump,
            room::Rooms,
            testing::{self, now, text},
        },
    };

    /// fault-46: where each of many values stands is not kept for as long as a call waits, only their text.
    #[test]
    fn a_call_that_may_be_made_again_keeps_little_but_its_text() {
        let (session, _lines) = testing::reversed(r#"{"tools":{}}"#);
        let many = "0,".repeat(100_000);
        let text = format!(
            r#"{{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{{"name":"x","arguments":{{"v":[{many}0]}}}}}}"#
        );
        let call = Call::read(text.into(), false).unwrap();
        let again = InFlight::again(&session, &call).unwrap();
        assert_eq!(again.message.bytes(), call.message().bytes());
        assert!(call.message().document_size() > 1 << 20);
        let kept = again.message.document_size();
        assert!(kept < 1 << 10, "{kept}");
    }

    /// conn-3: what a modern child asks, what it wants to be told with the answers, and those are counted until the call is
    /// made again. Without room for the first the call ends; a client without room for its answer may give it again.
    #[tokio::test]
    async fn what_a_call_that_is_made_again_waits_with_is_counted() {
        let rooms = Rooms::new(1);
        let (session, mut lines) = testing::reversed_in(r#"{"tools":{}}"#, &rooms);
        let size = 60 << 10;
        let long = "x".repeat(size);
        let asks = |number: u64, more: &str| {
            format!(
                r#"{{"id":{number},"result":{{"resultType":"input_required","inputRequests":{{"a":{{"method":"elicitation/create","params":{{"message":"{long}"}}}},"b":{{"method":"elicitation/create","params":{{"message":"b"}}}}}}{more}}}}}"#
            )
        };
        let call = r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"x"}}"#;
        let says = |name: &str, more: &str| {
            let body = format!(
                r#"{{"jsonrpc":"2.0","id":"{name}","result":{{"action":"accept","content":{{"v":"{more}"}}}}}}"#
            );
            let call = Call::read(body.into(), false).unwrap();
            let id = match call.shape() {
                Shape::Response(id) => id.clone(),
                other => panic!("{other:?}"),
            };
            session.respond(&call, &id)
        };
        let mut exchange = testing::asked(&session, call);
        let more = format!(r#","requestState":"{long}""#);
        assert!(pump::take(&session, asks(1, &more).into()));
        for _ in 0..2 {
            let asked = exchange.next().await;
            assert!(matches!(asked, Some(Event::Message(_))), "{asked:?}");
        }
        let waits = rooms.taken();
        // And the question in its stream, for a client that comes back.
        assert!((3 * size..3 * size + 1000).contains(&waits), "{waits}");
        let rest = session.room.claim((16 << 20) - waits).unwrap();
        assert_eq!(says("thv-1-1-0", &long), Err(SendError::Busy));
        drop(rest);
        assert_eq!(says("thv-1-1-0", &long), Ok(()));
        let waits = rooms.taken();
        assert!((4 * size..4 * size + 1000).contains(&waits), "{waits}");
        while lines.try_recv().is_some() {}
        assert_eq!(says("thv-1-1-1", "b"), Ok(()));
        let again = lines.try_recv().unwrap();
        assert!(again.len() > 2 * size);
        drop(again);
        let made = rooms.taken();
        assert!((size..size + 300).contains(&made), "{made}");

        let _rest = session.room.claim((16 << 20) - made).unwrap();
        assert!(pump::take(&session, asks(2, "").into()));
        let told = exchange.next().await;
        assert!(
            matches!(told, Some(Event::Failed(Failure::NoRoom))),
            "{told:?}"
        );
    }

    /// A call that cannot be made again, or whose task cannot be told what its client has said, because the child reads
    /// nothing, says so: that has not ended.
    #[tokio::test]
    async fn a_call_that_goes_on_at_a_child_that_reads_nothing_fails_as_busy() {
        const ASKS: &str =
            r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"x"}}"#;
        const INPUT: &str = r#""inputRequests":{"a":{"method":"elicitation/create","params":{"message":"?","requestedSchema":{"type":"object","properties":{}}}}}"#;
        for (is_task, ends) in [(false, false), (true, false), (false, true), (true, true)] {
            let tasks = r#"{"extensions":{"io.modelcontextprotocol/tasks":{}}}"#;
            let (session, mut lines) = testing::reversed(tasks);
            let mut asked = testing::asked(&session, ASKS);
            let hears = |number: u64, result: &str| {
                let line = format!(r#"{{"jsonrpc":"2.0","id":{number},"result":{{{result}}}}}"#);
                assert!(pump::take(&session, line.into()));
            };
            if is_task {
                hears(1, r#""resultType":"task","taskId":"k""#);
                let says = format!(
                    r#"{{"jsonrpc":"2.0","method":"notifications/tasks","params":{{"taskId":"k","status":"input_required",{INPUT}}}}}"#
                );
                assert!(pump::take(&session, says.into()));
            } else {
                hears(1, &format!(r#""resultType":"input_required",{INPUT}"#));
            }
            assert!(text(now(&mut asked).await).contains("thv-1-1-0"));
            while lines.try_recv().is_some() {}
            if ends {
                drop(lines);
            } else {
                while session.say(&OwnMessage::Discover { number: 0 }) {}
            }
            assert_eq!(answers(&session, "thv-1-1-0"), Ok(()));
            let told = now(&mut asked).await;
            match told {
                Some(Event::Failed(Failure::Busy)) if !ends => {}
                Some(Event::Failed(Failure::ChildEnded)) if ends => {}
                other => panic!("{is_task}, {ends}: {other:?}"),
            }
        }
    }

    fn answers(session: &Session, id: &str) -> Result<(), SendError> {
        let text = format!(r#"{{"jsonrpc":"2.0","id":"{id}","result":{{"action":"decline"}}}}"#);
        testing::responds(session, &text)
    }

    /// tok-132: when a call ends otherwise its client is told that what it was asked is not waited for any more, once and
    /// where it was asked, and an answer that is on its way all the same is accepted and has no effect.
    #[tokio::test]
    async fn a_question_whose_call_has_ended_is_withdrawn() {
        const ASKS: &str =
            r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"x"}}"#;
        for ends in ["cancelled", "late", "declined"] {
            let (session, mut lines) = testing::eliciting();
            let mut own = session.listen().unwrap();
            own.as_events();
            let mut asked = testing::asked(&session, ASKS);
            asked.as_events();
            let question = r#"{"method":"elicitation/create","params":{"message":"?","requestedSchema":{"type":"object","properties":{}}}}"#;
            let roots = r#"{"method":"roots/list"}"#;
            let second = if ends == "declined" { roots } else { question };
            let result = format!(
                r#"{{"resultType":"input_required","inputRequests":{{"a":{question},"b":{second}}}}}"#
            );
            let line = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#);
            assert!(pump::take(&session, line.into()));
            for id in ["thv-1-1-0", "thv-1-1-1"] {
                assert!(text(now(&mut asked).await).contains(id));
            }
            match ends {
                "cancelled" => {
                    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":2}}"#;
                    let cancel = Call::read(cancel.into(), false).unwrap();
                    session.notify(&cancel).unwrap();
                }
                "late" => {
                    session.sweep(Instant::now() + PATIENCE, Duration::MAX);
                }
                // There are no roots in that.
                _ => assert_eq!(answers(&session, "thv-1-1-1"), Ok(())),
            }
            let mut gone = vec!["thv-1-1-0"];
            gone.extend((ends != "declined").then_some("thv-1-1-1"));
            for id in gone {
                let told = text(now(&mut asked).await);
                assert!(
                    told.contains("notifications/cancelled") && told.contains(id),
                    "{told}"
                );
            }
            assert!(
                matches!(now(&mut asked).await, Some(Event::Failed(_))),
                "{ends}"
            );
            while lines.try_recv().is_some() {}
            for id in ["thv-1-1-0", "thv-1-1-1"] {
                assert_eq!(answers(&session, id), Ok(()), "{ends}");
            }
            for never in [
                "thv-2-1-0",
                "thv-0-1-0",
                "thv-1-1",
                "thv-1-1-+1",
                "thv-1-1-16",
                "thv-1-33-0",
                "x",
            ] {
                assert_eq!(
                    answers(&session, never),
                    Err(SendError::NotAsked),
                    "{never}"
                );
            }
            assert!(lines.try_recv().is_none());
            session.end_streams();
            assert!(now(&mut own).await.is_none(), "it has come on one stream");
        }
    }
}

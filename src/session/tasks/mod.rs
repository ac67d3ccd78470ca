//! Tasks of a legacy child's, for modern clients, which have them as an extension.
//!
//! A tool that its server runs as a task, or can, is called as one for a client that takes
//! tasks. What a task asks is told with its state and answered by `tasks/update`. They belong to
//! whom the child belongs to: another's tasks are another child's, and unknown here. What they
//! have come to is in `results`, who subscribes to them in `watching`.

pub(super) mod following;
pub(super) mod progress;
pub(super) mod results;
pub(super) mod watching;

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use foldhash::HashMap;
use tracing::warn;

use crate::{
    json::Value,
    mcp::{
        Call, Era, Id, Message, Target, answer,
        bridge::LegacyServer,
        input::{Abilities, Question},
        method, spelled,
        subscription::Wanted,
        task::{self, Standing},
        tools::TaskSupport,
    },
    session::{
        SendError, Session,
        bridge::Bridge,
        calls::{InFlight, RequestWay},
        conversation::SessionState,
        exchange::{Event, Failure},
        own::{self, OwnMessage},
        pending::{Input, OpenQuestion},
        rewrite::as_task,
        room::{Claim, Room},
        tasks::{
            results::ResultRequest,
            watching::{TaskLook, Watched},
        },
    },
};

/// What is known of the tasks of one child.
#[derive(Default)]
pub(super) struct Tasks {
    pub(super) known: HashMap<Arc<str>, KnownTask>,
    /// The one that is forgotten first comes first.
    eldest: VecDeque<Arc<str>>,
    /// The child was asked for results under these numbers.
    pub(super) results: HashMap<u64, ResultRequest>,
    /// It was asked on nobody's behalf how tasks stand, under these.
    pub(super) looks: HashMap<u64, TaskLook>,
    pub(super) strays: Strays,
}

/// Tasks that a child may still make of calls when nobody waits to hear of them any more.
///
/// Each is ended, and none can be where no call was. One that says of such a task that it goes on, whenever it is told
/// to end it, would be told so for ever.
#[derive(Default)]
pub(super) struct Strays {
    may_come: u16,
    is_let_go: bool,
}

impl Strays {
    /// There was a request, which may become one if it is a call.
    pub(super) fn called(&mut self, method: &str) {
        if method == "tools/call" {
            self.may_come = (self.may_come + 1).min(MAX_STRAYS);
        }
    }

    /// Whether one that has come is to be ended.
    pub(super) fn ends_one(&mut self) -> bool {
        let may = self.may_come > 0;
        self.may_come = self.may_come.saturating_sub(1);
        if !may && !std::mem::replace(&mut self.is_let_go, true) {
            warn!(
                "the server makes more tasks than it was called, and is told no more to end those that nobody waits for"
            );
        }
        may
    }
}

/// A task that the child has made for a client of this session.
pub(super) struct KnownTask {
    abilities: Abilities,
    pub(super) questions: Vec<OpenQuestion>,
    /// The number under which the child was asked for its result: older servers ask nothing before.
    pub(super) asked: Option<u64>,
    pub(super) watched: Watched,
    /// For its id.
    _claim: Claim,
}

/// What a modern client's request has to do with a task.
#[derive(Clone, Copy, Debug)]
pub(super) enum About {
    /// Perhaps it makes one.
    Making(Abilities),
    Standing,
    Ending {
        /// The child has made it for a client of this session.
        is_known: bool,
    },
}

impl Tasks {
    /// From now on it is known; `false` if there is no room for that.
    fn remember(&mut self, task: &str, abilities: Abilities, room: &Arc<Room>) -> bool {
        if self.known.contains_key(task) {
            return true;
        }
        let Some(claim) = room.claim(task.len()) else {
            return false;
        };
        let known = KnownTask {
            abilities,
            questions: Vec::new(),
            asked: None,
            watched: Watched::default(),
            _claim: claim,
        };
        let task: Arc<str> = task.into();
        self.known.insert(task.clone(), known);
        self.eldest.push_back(task);
        if self.eldest.len() > MAX_TASKS
            && let Some(eldest) = self.eldest.pop_front()
        {
            self.known.remove(&eldest);
        }
        true
    }

    /// Keeps a question of the child's for whoever asks how its task stands; `false` if nobody can be asked.
    pub(super) fn keep(&mut self, task: &str, question: Question, id: Value<'_>) -> bool {
        let id = Bytes::copy_from_slice(id.raw());
        self.takes(task, OpenQuestion { question, id }).is_ok()
    }

    /// Keeps a question of a task, unless it cannot be asked.
    fn takes(&mut self, task: &str, asked: OpenQuestion) -> Result<(), OpenQuestion> {
        let all = self.known.values().flat_map(|known| &known.questions);
        let bytes: usize = all.map(|it| it.question.size()).sum();
        match self.known.get_mut(task) {
            Some(known) if bytes + asked.question.size() <= MAX_ALL_BYTES => known.takes(asked),
            _ => Err(asked),
        }
    }

    /// The task, if its client is asked something.
    pub(super) fn asking(&self, task: &str) -> Option<&KnownTask> {
        let known = self.known.get(task)?;
        (!known.questions.is_empty()).then_some(known)
    }

    /// Whether the child has made this task of a call.
    pub(super) fn has(&self, task: &str) -> bool {
        self.known.contains_key(task)
    }

    /// Forgets what the child no longer wants to know.
    pub(super) fn forget_question(&mut self, id: &[u8]) {
        for known in self.known.values_mut() {
            known.questions.retain(|asked| spelled(&asked.id) != id);
        }
    }
}

impl KnownTask {
    /// Keeps a question, unless it cannot be asked.
    fn takes(&mut self, asked: OpenQuestion) -> Result<(), OpenQuestion> {
        let bytes: usize = self.questions.iter().map(|it| it.question.size()).sum();
        let mut others = self.questions.iter();
        let is_new = others.all(|it| it.question.key != asked.question.key);
        let fits =
            self.questions.len() < MAX_QUESTIONS && bytes + asked.question.size() <= MAX_BYTES;
        if is_new && fits && asked.question.lacking(self.abilities).is_none() {
            self.questions.push(asked);
            self.watched.look_now();
            Ok(())
        } else {
            Err(asked)
        }
    }
}

impl Session {
    /// What becomes of a modern client's request to a legacy child, if it is about tasks.
    pub(super) fn way_of_task(
        &self,
        state: &mut SessionState,
        server: &LegacyServer,
        call: &Call,
        id: &Id,
    ) -> Result<Option<RequestWay>, SendError> {
        Ok(match (call.method(), self.about(state, call)) {
            ("tasks/get" | "tasks/update" | "tasks/cancel", _) if !task::is_taken_by(call) => {
                Some(RequestWay::Here(task::missing(id)))
            }
            ("tasks/update", _) => Some(self.update(state, server, call, id)?),
            ("tools/call", Some(About::Making(_))) => {
                Some(RequestWay::Child(as_task(call, state.next)))
            }
            // It would only say that it cannot.
            ("tools/call", None) if self.support(call) == Some(TaskSupport::Required) => {
                Some(RequestWay::Here(task::missing(id)))
            }
            (method::LISTEN, _) if wants_tasks_it_does_not_take(call) => {
                Some(RequestWay::Here(task::missing(id)))
            }
            _ => None,
        })
    }

    /// What the request has to do with a task, if anything.
    pub(super) fn about(&self, state: &SessionState, call: &Call) -> Option<About> {
        self.legacy_server()?;
        match call.method() {
            "tools/call" if self.support(call).is_some() => {
                task::is_taken_by(call).then(|| About::Making(Abilities::of(call)))
            }
            "tasks/get" => Some(About::Standing),
            "tasks/cancel" => {
                let task = call.param("taskId").and_then(Value::as_str);
                let is_known = task.is_some_and(|it| state.tasks.known.contains_key(it.as_ref()));
                Some(About::Ending { is_known })
            }
            _ => None,
        }
    }

    /// How the child runs the tool that is called as a task, if it does.
    fn support(&self, call: &Call) -> Option<TaskSupport> {
        let Target::Tool(name) = call.target() else {
            return None;
        };
        let makes = self
            .legacy_server()
            .is_some_and(|server| server.makes_tasks());
        makes.then(|| self.tools.get(name)?.task).flatten()
    }

    /// Gives the child what the client says to its questions.
    fn update(
        &self,
        state: &mut SessionState,
        server: &LegacyServer,
        call: &Call,
        id: &Id,
    ) -> Result<RequestWay, SendError> {
        let task = call.param("taskId").and_then(Value::as_str);
        let Some(known) = task.and_then(|task| state.tasks.known.get_mut(task.as_ref())) else {
            return Ok(RequestWay::Here(answer::refused(
                id,
                -32602,
                "no such task",
            )));
        };
        self.give_answers(&mut known.questions, call)?;
        Ok(RequestWay::Here(done(server, id)))
    }

    /// Tells the client what the child's result says of a task; the call is given back if
    /// that says nothing of any, and dropped where it is told or waits.
    pub(super) fn task_answered(
        &self,
        state: &mut SessionState,
        number: u64,
        mut call: InFlight,
        message: &Message,
    ) -> Option<InFlight> {
        let (Some(server), Some(about)) = (self.legacy_server(), call.task) else {
            return Some(call);
        };
        // Where older servers refuse to end what has ended, modern ones do nothing.
        if let About::Ending { is_known: true } = about
            && error_code(message) == Some("-32602")
        {
            let text = done(server, &call.id);
            self.tell(state, call, text.into());
            return None;
        }
        let result = message.root().get("result");
        let task = match about {
            About::Making(_) => result.and_then(|result| result.get("task")),
            About::Standing | About::Ending { .. } => result,
        };
        let named = |task: &Value<'_>| task.get("taskId").and_then(Value::as_str).is_some();
        // A server that has made none has simply answered.
        let Some(task) = task.filter(named) else {
            return Some(call);
        };
        let Some(name) = task::id(task) else {
            if let About::Making(_) = about {
                self.has_it_ended(state, task, Vec::new());
            }
            self.fail(state, call, Failure::BadAnswer);
            return None;
        };
        let meta = server.meta_of(result);
        let text = match about {
            About::Ending { .. } => {
                let text = done(server, &call.id);
                self.tell(state, call, text.into());
                return None;
            }
            About::Making(abilities) => {
                if !state.tasks.remember(&name, abilities, &self.room) {
                    self.has_it_ended(state, task, Vec::new());
                    self.fail(state, call, Failure::NoRoom);
                    return None;
                }
                self.asks_in_task(state, &mut call, &name);
                task::modern(task, "task", &Standing::Said, &meta)
            }
            About::Standing if task::has_outcome(task) => {
                self.wait_for_result(state, number, call, (&name, task));
                return None;
            }
            About::Standing => {
                let standing = self.standing(state, &name, task);
                task::modern(task, "complete", &standing, &meta)
            }
        };
        let text = answer::result(call.id.as_json(), &text);
        self.tell(state, call, text.into());
        None
    }

    /// What the child has asked in the call by now it asks in the task that the call has become.
    fn asks_in_task(&self, state: &mut SessionState, call: &mut InFlight, name: &str) {
        let input = call.input.as_deref_mut();
        for asked in input.map(Input::questions).unwrap_or_default() {
            if let Err(asked) = state.tasks.takes(name, asked) {
                self.say(&OwnMessage::NobodyThere { id: &asked.id });
            }
        }
    }

    /// How a task stands that goes on, by what it says of itself and what it has asked.
    pub(super) fn standing<'a>(
        &self,
        state: &'a mut SessionState,
        name: &str,
        task: Value<'_>,
    ) -> Standing<'a> {
        let status = task.get("status").and_then(Value::as_str);
        match status.as_deref() {
            Some("input_required") => {
                // Its questions come with that. Where there is no room for it now, then when somebody asks again.
                let _ = self.ask_result(state, name, true);
                let known = state.tasks.known.get(name);
                known.map_or(Standing::Working, KnownTask::asks)
            }
            // It may have asked all the same.
            Some("working") => state
                .tasks
                .asking(name)
                .map_or(Standing::Said, KnownTask::asks),
            _ => Standing::Said,
        }
    }

    /// Has the child end a task that it has just made, and that nobody will know of.
    pub(super) fn has_it_ended(&self, state: &mut SessionState, task: Value<'_>, more: Vec<u8>) {
        let Some(id) = task.get("taskId") else { return };
        let own = OwnMessage::TaskOf {
            number: state.next,
            what: "cancel",
            task: id.raw(),
            more,
        };
        // It may be long, and waits as what clients say does.
        if self.write(own.line()).is_ok() {
            state.next += 1;
        } else {
            warn!("a task that no client knows runs on: the server reads nothing");
        }
    }

    /// The same, if that is what the message answers to the call.
    pub(super) fn end_made(&self, state: &mut SessionState, call: &InFlight, message: &Message) {
        let result = message.root().get("result").filter(|_| call.makes_task());
        if let Some(task) = result.and_then(|result| result.get("task")) {
            self.has_it_ended(state, task, Vec::new());
        }
    }

    /// The same, if that is what the message says when no call waits for it any more: nobody would know of the task.
    pub(super) fn end_made_late(&self, state: &mut SessionState, message: &Message) {
        let (speaks, makes) = match self.bridge() {
            Some(Bridge::ToLegacy(server)) => (Era::Legacy, server.makes_tasks()),
            Some(Bridge::ToModern(server)) => (Era::Modern, server.makes_tasks()),
            None => (self.era, true),
        };
        let result = message.root().get("result").filter(|_| makes);
        let task = result.and_then(|result| task::made(result, speaks));
        // One that has ended is what some say that they have been told to end.
        let Some(task) = task.filter(|task| task::goes_on(*task)) else {
            return;
        };
        // A server may say twice what a client knows, or is to know.
        let is_known = task::id(task).is_some_and(|id| {
            let is_of = |call: &InFlight| {
                call.is_told_of(&id) || call.following().is_some_and(|it| it.is_of(&id))
            };
            let mut calls = state.in_flight.values();
            state.tasks.has(&id) || state.progress.has(&id) || calls.any(is_of)
        });
        if is_known || !state.tasks.strays.ends_one() {
            return;
        }
        let more = match (self.modern_server(), speaks) {
            (Some(server), _) => following::with_meta(server, b""),
            (None, Era::Modern) => own::meta_member(),
            (None, Era::Legacy) => Vec::new(),
        };
        self.has_it_ended(state, task, more);
    }

    pub(super) fn tell(&self, state: &mut SessionState, call: InFlight, text: Bytes) {
        self.finish(state, call, None, text.len(), Event::Answer(text));
    }
}

impl KnownTask {
    /// How its task stands that waits for its client.
    pub(super) fn asks(&self) -> Standing<'_> {
        if self.questions.is_empty() {
            return Standing::Working;
        }
        let questions = self.questions.iter();
        Standing::Asks(questions.map(|asked| &asked.question).collect())
    }
}

impl InFlight {
    /// Whether it may become a task.
    pub(super) fn makes_task(&self) -> bool {
        matches!(self.task, Some(About::Making(_)))
    }
}

/// Whether a subscription names tasks that its client does not take.
fn wants_tasks_it_does_not_take(call: &Call) -> bool {
    !task::is_taken_by(call) && !Wanted::read(call).tasks.is_empty()
}

fn done(server: &LegacyServer, id: &Id) -> Vec<u8> {
    let meta = server.meta_of(None);
    let result = answer::object([("resultType", &br#""complete""#[..]), ("_meta", &meta)]);
    answer::result(id.as_json(), &result)
}

fn error_code(message: &Message) -> Option<&str> {
    message.root().get("error")?.get("code")?.as_number()
}

/// Tasks of which something is known, what one of them asks at once, its bytes, and those of all that they ask.
pub(super) const MAX_TASKS: usize = 1024;
const MAX_QUESTIONS: usize = 16;
const MAX_BYTES: usize = 256 << 10;
const MAX_ALL_BYTES: usize = 4 << 20;
/// Tasks that a child may make too late and that are ended, however many calls there were.
const MAX_STRAYS: u16 = 4096;

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::{
        child::{Lends as _, stdio::Reading},
        session::{
            Exchange,
            outbox::OutboxReader,
            pump,
            room::Rooms,
            testing::{self, asked, bridged_in, said, say, text},
        },
    };

    /// A bridged session whose tool `t` is a task alone, and what its child is told.
    fn session() -> (Arc<Session>, OutboxReader) {
        session_in(&Rooms::new(1))
    }

    /// The same, with its share of that memory.
    fn session_in(rooms: &Rooms) -> (Arc<Session>, OutboxReader) {
        let tasks = r#"{"tasks":{"requests":{"tools":{"call":{}}}}}"#;
        let (session, lines) = bridged_in(tasks, rooms);
        let tool =
            r#"{"id":0,"result":{"tools":[{"name":"t","execution":{"taskSupport":"required"}}]}}"#;
        session.tools.learn(&Message::parse(tool.into()).unwrap());
        (session, lines)
    }

    fn ask(session: &Arc<Session>, method: &str, params: &str) -> Exchange {
        let meta = r#""_meta":{"io.modelcontextprotocol/clientCapabilities":{"roots":{},"extensions":{"io.modelcontextprotocol/tasks":{}}}}"#;
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{{params},{meta}}}}}"#
        );
        asked(session, &body)
    }

    fn answer(session: &Session, number: u32, result: &str) {
        let line = format!(r#"{{"jsonrpc":"2.0","id":{number},"result":{result}}}"#);
        say(session, line);
    }

    async fn next(exchange: &mut Exchange) -> String {
        text(testing::now(exchange).await)
    }

    /// conn-3: who asks how a task stands and leaves, again and again, leaves nothing while its result does not come.
    #[tokio::test(start_paused = true)]
    async fn who_leaves_before_the_result_comes_leaves_nothing() {
        let (session, mut lines) = session();
        let _made = ask(&session, "tools/call", r#""name":"t""#);
        answer(&session, 1, r#"{"task":{"taskId":"k","status":"working"}}"#);
        for number in [2].into_iter().chain(4..104) {
            let get = ask(&session, "tasks/get", r#""taskId":"k""#);
            answer(&session, number, r#"{"taskId":"k","status":"completed"}"#);
            drop(get);
            said(&mut lines);
        }
        let mut stays = ask(&session, "tasks/get", r#""taskId":"k""#);
        answer(&session, 104, r#"{"taskId":"k","status":"completed"}"#);
        let told = ResultRequest::told;
        let kept: Vec<usize> = session.state().tasks.results.values().map(told).collect();
        assert_eq!(kept, [1]);
        answer(&session, 3, r#"{"content":[]}"#);
        assert!(next(&mut stays).await.contains(r#""result":{"#));
    }

    /// fault-46: a server's ids of tasks are remembered by the thousand, and each of them is short; a task with another is
    /// ended, however long that is.
    #[tokio::test]
    async fn a_task_with_too_long_an_id_is_no_answer_and_ends() {
        for (longer, is_remembered) in [(0, true), (1, false), (1 << 20, false)] {
            let (session, mut lines) = session();
            let mut made = ask(&session, "tools/call", r#""name":"t""#);
            let id = "k".repeat(task::MAX_ID - 2 + longer);
            let result = format!(r#"{{"task":{{"taskId":"{id}","status":"working"}}}}"#);
            answer(&session, 1, &result);
            let told = made.next().await;
            assert_eq!(
                session.state().tasks.known.len(),
                usize::from(is_remembered)
            );
            let cancels = format!(r#""method":"tasks/cancel","params":{{"taskId":"{id}"}}"#);
            let is_cancelled = said(&mut lines).iter().any(|it| it.contains(&cancels));
            assert_eq!(is_cancelled, !is_remembered);
            match told {
                Some(Event::Answer(_)) if is_remembered => {}
                Some(Event::Failed(Failure::BadAnswer)) if !is_remembered => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// conn-3: where there is no room for the id of one more, the call fails and its task is ended.
    #[tokio::test]
    async fn a_task_that_there_is_no_room_for_ends() {
        let rooms = Rooms::new(1);
        let (session, mut lines) = session_in(&rooms);
        let made = r#"{"task":{"taskId":"kept","status":"working"}}"#;
        let _kept = ask(&session, "tools/call", r#""name":"t""#);
        answer(&session, 1, made);
        assert_eq!(rooms.taken(), "kept".len());
        let _rest = session.room.claim((16 << 20) - "kept".len()).unwrap();
        let mut fails = ask(&session, "tools/call", r#""name":"t""#);
        answer(&session, 2, &made.replace("kept", "more"));
        let told = fails.next().await;
        assert!(
            matches!(told, Some(Event::Failed(Failure::NoRoom))),
            "{told:?}"
        );
        let said = said(&mut lines);
        assert!(
            said.last()
                .unwrap()
                .contains(r#"tasks/cancel","params":{"taskId":"more"}"#)
        );
        assert_eq!(session.state().tasks.known.len(), 1);
    }

    /// conn-3: a call becomes a task while its client is asked something. Where there is no room for that answer, or its
    /// client does not come back, nobody hears of the task: it is ended, once.
    #[tokio::test(start_paused = true)]
    async fn a_task_whose_client_was_asked_and_never_hears_of_it_ends() {
        const MADE: &str = r#"{"task":{"taskId":"k","status":"working"}}"#;
        let is_cancel = |line: &&String| line.contains(r#"tasks/cancel","params":{"taskId":"k"}"#);
        for (has_room, comes_back) in [(true, true), (true, false), (false, true), (false, false)] {
            let rooms = Rooms::new(1);
            let (session, mut lines) = session_in(&rooms);
            let mut made = ask(&session, "tools/call", r#""name":"t""#);
            let asks = r#"{"jsonrpc":"2.0","id":"q","method":"roots/list"}"#;
            assert!(pump::take(&session, asks.into()));
            session.ask_clients();
            let asked = Message::parse(next(&mut made).await.into()).unwrap();
            let result = asked.root().get("result").unwrap();
            let state = result.get("requestState").unwrap().as_str().unwrap();
            said(&mut lines);
            let rest = (!has_room).then(|| session.room.claim((16 << 20) - rooms.taken()).unwrap());
            answer(&session, 1, MADE);
            drop(rest);
            let heard = said(&mut lines);
            let ended = heard.iter().filter(is_cancel).count();
            assert_eq!(ended, usize::from(!has_room), "{heard:?}");
            let refused = heard
                .iter()
                .filter(|line| line.contains(r#""id":"q","error""#));
            assert_eq!(refused.count(), usize::from(!has_room), "{heard:?}");
            if comes_back {
                let back = format!(r#""name":"t","requestState":"{state}","inputResponses":{{}}"#);
                let told = ask(&session, "tools/call", &back).next().await;
                match told {
                    Some(Event::Answer(_)) if has_room => {}
                    Some(Event::Failed(Failure::NoRoom)) if !has_room => {}
                    other => panic!("{other:?}"),
                }
            } else {
                let later = Instant::now() + Duration::from_secs(600);
                session.sweep(later, Duration::MAX);
            }
            assert_eq!(session.in_flight(), 0);
            let heard = said(&mut lines);
            let ended = heard.iter().filter(is_cancel).count();
            assert_eq!(ended, usize::from(has_room && !comes_back), "{heard:?}");
        }
    }

    /// fault-46: what a server asks in its tasks waits until they are looked at, and there may be a thousand.
    #[tokio::test]
    async fn what_all_tasks_ask_together_has_a_bound() {
        let rooms = Rooms::new(1);
        let (session, mut lines) = session_in(&rooms);
        let text = "x".repeat(MAX_BYTES - 100);
        let fit = MAX_ALL_BYTES / MAX_BYTES;
        for number in 1..=fit + 2 {
            let _made = ask(&session, "tools/call", r#""name":"t""#);
            let made = format!(r#"{{"task":{{"taskId":"k{number}","status":"working"}}}}"#);
            answer(&session, u32::try_from(number).unwrap(), &made);
            let meta = format!(
                r#""_meta":{{"io.modelcontextprotocol/related-task":{{"taskId":"k{number}"}}}}"#
            );
            let asks = format!(
                r#"{{"jsonrpc":"2.0","id":"q{number}","method":"roots/list","params":{{"x":"{text}",{meta}}}}}"#
            );
            assert!(pump::take(&session, asks.into()));
        }
        let said = said(&mut lines);
        let refused = said.iter().filter(|line| line.contains(r#""error""#));
        assert_eq!(refused.count(), 2, "they are told that nobody is there");
        assert!((fit * text.len()..MAX_ALL_BYTES).contains(&rooms.taken()));
    }

    /// mcp-M1, fault-46: a task asks what its maker can answer, and no more of it than may wait; the eldest tasks of too many
    /// are forgotten.
    #[tokio::test]
    async fn a_task_asks_what_its_client_can_answer_and_no_more_than_may_wait() {
        let (session, mut lines) = session();
        let makes = |number: u32| {
            let made = ask(&session, "tools/call", r#""name":"t""#);
            let task = format!(r#"{{"task":{{"taskId":"k{number}","status":"working"}}}}"#);
            answer(&session, number, &task);
            made
        };
        drop(makes(1));
        said(&mut lines);
        let mut asks = |method: &str, id: usize| {
            let meta = r#""_meta":{"io.modelcontextprotocol/related-task":{"taskId":"k1"}}"#;
            let text = format!(
                r#"{{"jsonrpc":"2.0","id":"q{id}","method":"{method}","params":{{"message":"?",{meta}}}}}"#
            );
            assert!(pump::take(&session, text.into()));
            let refused = said(&mut lines);
            assert!(refused.iter().all(|line| line.contains("-32601")));
            refused.is_empty()
        };
        // Its client has said that it has roots, and nothing else.
        assert!(!asks("elicitation/create", 0));
        for id in 1..=MAX_QUESTIONS {
            assert!(asks("roots/list", id), "{id}");
        }
        assert!(!asks("roots/list", MAX_QUESTIONS + 1));
        for number in 2..=MAX_TASKS + 1 {
            let number = u32::try_from(number).unwrap();
            drop(makes(number));
            said(&mut lines);
        }
        let state = session.state();
        assert_eq!(state.tasks.known.len(), MAX_TASKS);
        assert!(!state.tasks.has("k1") && state.tasks.has("k2"));
    }

    /// A task of which its server tells when the call has ended here is nobody's, and so is a second one of the same call:
    /// the server is told to end it, and not what a client knows, however often it is said.
    #[tokio::test(start_paused = true)]
    async fn a_task_that_comes_too_late_or_is_one_too_many_ends() {
        let (session, mut lines) = session();
        let calls = || {
            let number = u32::try_from(session.state().next).unwrap();
            (number, ask(&session, "tools/call", r#""name":"t""#))
        };
        let stands = |lines: &mut OutboxReader, number: u32, id: &str, status: &str| {
            said(lines);
            let task = format!(r#"{{"task":{{"taskId":"{id}","status":"{status}"}}}}"#);
            answer(&session, number, &task);
            let ends = |line: &String| line.contains("tasks/cancel");
            let ended = said(lines).into_iter().find(ends)?;
            let ended: serde_json::Value = serde_json::from_str(&ended).unwrap();
            Some(ended["params"]["taskId"].as_str().unwrap().to_owned())
        };
        let makes = |lines: &mut OutboxReader, number, id| stands(lines, number, id, "working");
        let ended = |id: &str| Some(id.to_owned());
        let (gone, client) = calls();
        drop(client);
        assert_eq!(makes(&mut lines, gone, "a"), ended("a"));
        let (slow, _client) = calls();
        session.sweep(Instant::now() + session.call_timeout, Duration::MAX);
        assert_eq!(makes(&mut lines, slow, "b"), ended("b"));
        let (twice, _client) = calls();
        assert_eq!(makes(&mut lines, twice, "c"), None);
        assert_eq!(makes(&mut lines, twice, "c"), None);
        assert_eq!(makes(&mut lines, twice, "d"), ended("d"));
        // What is said of the cancelling, by some as of a task that was made, has no answer.
        let own = u32::try_from(session.state().next - 1).unwrap();
        assert_eq!(stands(&mut lines, own, "d", "cancelled"), None);

        // Also while its client, which was asked something, knows of none yet.
        let (asked, _client) = calls();
        asks(&session);
        session.ask_clients();
        assert_eq!(makes(&mut lines, asked, "e"), None);
        assert_eq!(makes(&mut lines, asked, "e"), None);
        assert_eq!(makes(&mut lines, asked, "f"), ended("f"));
        said(&mut lines);
        session.sweep(Instant::now() + Duration::from_secs(600), Duration::MAX);
        let withdrawn = said(&mut lines);
        let ends = |line: &String| line.contains("tasks/cancel") && line.contains("\"e\"");
        assert!(withdrawn.iter().any(ends), "{withdrawn:?}");

        // What tells of a task makes none.
        let number = u32::try_from(session.state().next).unwrap();
        drop(ask(&session, "tasks/get", r#""taskId":"foreign""#));
        answer(
            &session,
            number,
            r#"{"taskId":"foreign","status":"working"}"#,
        );
        assert!(
            !said(&mut lines)
                .iter()
                .any(|line| line.contains("tasks/cancel"))
        );
    }

    /// The same before a server of the clients' own era, and before a modern one of a legacy client.
    #[tokio::test(start_paused = true)]
    async fn a_task_that_comes_too_late_ends_whatever_its_server_speaks() {
        let tasks = r#"{"extensions":{"io.modelcontextprotocol/tasks":{}}}"#;
        for (kind, (session, mut lines)) in [
            ("legacy", testing::session(Era::Legacy)),
            ("modern", testing::session(Era::Modern)),
            ("reversed", testing::reversed(tasks)),
        ] {
            let calls = |id: u32| {
                let text = format!(
                    r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"t"}}}}"#
                );
                let number = u32::try_from(session.state().next).unwrap();
                (number, asked(&session, &text))
            };
            let result = |id: &str, status: &str| match kind {
                "legacy" => format!(r#"{{"task":{{"taskId":"{id}","status":"{status}"}}}}"#),
                _ => format!(r#"{{"resultType":"task","taskId":"{id}","status":"{status}"}}"#),
            };
            let ended = |lines: &mut OutboxReader| {
                let said = said(lines).into_iter();
                let ended: Vec<_> = said.filter(|it| it.contains("tasks/cancel")).collect();
                let has_meta = |line: &String| line.contains("\"_meta\":{");
                assert!(ended.iter().all(|it| has_meta(it) == (kind != "legacy")));
                let named = |line: &String| {
                    let line: serde_json::Value = serde_json::from_str(line).unwrap();
                    line["params"]["taskId"].as_str().unwrap().to_owned()
                };
                ended.iter().map(named).collect::<Vec<_>>()
            };
            let (late, _client) = calls(1);
            session.sweep(Instant::now() + session.call_timeout, Duration::MAX);
            for (status, ends) in [("cancelled", 0), ("open", 0), ("working", 1)] {
                answer(&session, late, &result("a", status));
                assert_eq!(ended(&mut lines), vec!["a"; ends], "{kind}");
            }
            // What a client knows stays, however often it is said, until it has ended.
            let (made, _client) = calls(2);
            for _ in 0..2 {
                answer(&session, made, &result("b", "working"));
                assert_eq!(ended(&mut lines), [""; 0], "{kind}");
            }
            // What tells of a task makes none.
            answer(&session, late, r#"{"taskId":"c","status":"working"}"#);
            assert_eq!(ended(&mut lines), [""; 0], "{kind}");
        }
    }

    /// fault-46: a server that says of a task that it goes on, whenever it is told to end it, is told so no more often
    /// than it was called, nor than some hundred times; what may be complained of is so once.
    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_end_its_tasks_is_let_go() {
        let complaints = testing::Complaints::default();
        let _here = complaints.counted();
        let (session, mut lines) = testing::session(Era::Legacy);
        let calls = |lines: &mut OutboxReader, times: u16| {
            for id in 0..times {
                let text = format!(
                    r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"t"}}}}"#
                );
                let _client = asked(&session, &text);
                session.sweep(Instant::now() + session.call_timeout, Duration::MAX);
                while let Some(line) = lines.try_recv() {
                    session.written(line.len());
                }
            }
        };
        let vain = |lines: &mut OutboxReader| {
            let goes_on = r#"{"task":{"taskId":"a","status":"working"}}"#;
            answer(&session, 1, goes_on);
            let mut vain = 0;
            while let Some(line) = lines.try_recv() {
                session.written(line.len());
                let line: serde_json::Value = serde_json::from_slice(&line).unwrap();
                assert_eq!(line["method"], "tasks/cancel");
                vain += 1;
                assert!(vain <= MAX_STRAYS);
                let number = u32::try_from(line["id"].as_u64().unwrap()).unwrap();
                answer(&session, number, goes_on);
            }
            vain
        };
        for (called, told) in [(1, 1), (3, 3), (MAX_STRAYS + 1, MAX_STRAYS)] {
            calls(&mut lines, called);
            assert_eq!((vain(&mut lines), complaints.count()), (told, 1));
        }
    }

    /// Two clients of one user ask at once how a task stands that has ended: both are told.
    #[tokio::test(start_paused = true)]
    async fn whoever_asks_how_a_task_stands_is_told() {
        let (session, mut lines) = session();
        let _made = ask(&session, "tools/call", r#""name":"t""#);
        answer(&session, 1, r#"{"task":{"taskId":"x","status":"working"}}"#);
        let mut both = [
            ask(&session, "tasks/get", r#""taskId":"x""#),
            ask(&session, "tasks/get", r#""taskId":"x""#),
        ];
        for number in [2, 3] {
            answer(&session, number, r#"{"taskId":"x","status":"completed"}"#);
        }
        let said = said(&mut lines);
        let asked = |line: &&String| line.contains("tasks/result");
        assert_eq!(said.iter().filter(asked).count(), 1, "{said:?}");
        answer(&session, 4, r#"{"n":7}"#);
        for told in &mut both {
            let text = next(told).await;
            assert!(text.contains(r#""result":{"n":7}"#), "{text}");
        }
    }

    /// What a child never answers is forgotten with the call's time, and asked for again by whoever asks again.
    #[tokio::test(start_paused = true)]
    async fn a_result_that_never_comes_is_not_waited_for_for_ever() {
        let (session, mut lines) = session();
        let _made = ask(&session, "tools/call", r#""name":"t""#);
        answer(&session, 1, r#"{"task":{"taskId":"x","status":"working"}}"#);
        let mut waits = ask(&session, "tasks/get", r#""taskId":"x""#);
        answer(&session, 2, r#"{"taskId":"x","status":"completed"}"#);
        let idle = Duration::from_secs(3600);
        let second = Duration::from_secs(1);
        let now = Instant::now();
        session.sweep(now + session.call_timeout - second, idle);
        assert_eq!(session.state().tasks.results.len(), 1);
        session.sweep(now + session.call_timeout, idle);
        assert_eq!(session.state().tasks.results.len(), 0);
        let failed = waits.next().await;
        assert!(
            matches!(failed, Some(Event::Failed(Failure::Timeout))),
            "{failed:?}"
        );
        let heard = said(&mut lines);
        let cancelled = |line: &&String| line.contains("cancelled") && line.contains(":3,");
        assert_eq!(heard.iter().filter(cancelled).count(), 1, "{heard:?}");

        // Of a task that asks it is waited for as long as anybody looks; the question outlives it.
        asks(&session);
        for number in [4, 6, 7] {
            let mut stands = ask(&session, "tasks/get", r#""taskId":"x""#);
            answer(
                &session,
                number,
                r#"{"taskId":"x","status":"input_required"}"#,
            );
            assert!(next(&mut stands).await.contains("\"q\":{"));
            tokio::time::advance(session.call_timeout - second).await;
            session.sweep(Instant::now(), idle);
            assert_eq!(session.state().tasks.results.len(), 1);
        }
        let asked = |line: &&String| line.contains("tasks/result");
        let heard = said(&mut lines);
        assert_eq!(heard.iter().filter(asked).count(), 1, "{heard:?}");
        tokio::time::advance(second).await;
        session.sweep(Instant::now(), idle);
        assert_eq!(session.state().tasks.results.len(), 0);
        assert_eq!(session.state().tasks.known["x"].questions.len(), 1);
    }

    /// conn-3: where there is no room for what a task has come to, or for how it stands, whoever waits for that is told so
    /// at once, and the child is asked again.
    #[tokio::test(start_paused = true)]
    async fn what_a_task_has_come_to_and_has_no_room_fails_at_once() {
        const ENDED: &str = r#"{"taskId":"x","status":"completed"}"#;
        let (session, mut lines) = session();
        let _made = ask(&session, "tools/call", r#""name":"t""#);
        answer(&session, 1, r#"{"task":{"taskId":"x","status":"working"}}"#);
        let text = "x".repeat(200 << 10);
        let has_no_room = async |number: u32| {
            let mut lent = 0;
            while session.room.lend(1 << 10) {
                lent += 1 << 10;
            }
            let line = format!(r#"{{"jsonrpc":"2.0","id":{number},"result":{{"v":"{text}"}}}}"#);
            let (longest, rate) = (2 << 20, u64::MAX);
            let line = format!("{line}\n");
            pump::run(
                session.clone(),
                line.as_bytes(),
                Reading {
                    longest,
                    rate,
                    counts: true,
                },
            )
            .await;
            session.room.take_back(lent);
        };
        let mut get = ask(&session, "tasks/get", r#""taskId":"x""#);
        answer(&session, 2, ENDED);
        has_no_room(3).await;
        let told = timeout(Duration::from_secs(1), get.next()).await;
        assert!(
            matches!(told, Ok(Some(Event::Failed(Failure::NoRoom)))),
            "{told:?}"
        );
        let mut again = ask(&session, "tasks/get", r#""taskId":"x""#);
        answer(&session, 4, ENDED);
        answer(&session, 5, r#"{"n":7}"#);
        assert!(next(&mut again).await.contains(r#""n":7"#));

        // So for who subscribes to it.
        let wanted = r#""notifications":{"taskIds":["x"]}"#;
        let mut events = ask(&session, "subscriptions/listen", wanted);
        next(&mut events).await;
        let asks = async |lines: &mut OutboxReader, number: u32, what: &str| {
            said(lines);
            tokio::time::advance(session.call_timeout / 2).await;
            session.sweep(Instant::now(), Duration::MAX);
            let heard = said(lines);
            let asked = format!(r#""id":{number},"method":"tasks/{what}""#);
            assert!(heard.iter().any(|it| it.contains(&asked)), "{heard:?}");
        };
        has_no_room(7).await;
        asks(&mut lines, 8, "get").await;
        answer(&session, 8, ENDED);
        has_no_room(9).await;
        asks(&mut lines, 10, "get").await;
        answer(&session, 10, ENDED);
        answer(&session, 11, r#"{"n":8}"#);
        assert!(next(&mut events).await.contains(r#""n":8"#));
    }

    /// Who asks how a task stands hears why the child was not asked what it has come to.
    #[tokio::test]
    async fn a_task_of_which_nothing_more_can_be_asked_fails_with_what_is_short() {
        const ENDED: &str = r#"{"taskId":"foreign","status":"completed"}"#;
        let rooms = Rooms::new(1);
        let (session, mut lines) = session_in(&rooms);
        // No call here has become it, and its id has no room beside how it stood.
        let mut get = ask(&session, "tasks/get", r#""taskId":"foreign""#);
        let rest = (16 << 20) - ENDED.len() - 3;
        let rest = session.room.claim(rest).unwrap();
        answer(&session, 1, ENDED);
        let told = get.next().await;
        assert!(
            matches!(told, Some(Event::Failed(Failure::NoRoom))),
            "{told:?}"
        );
        drop(rest);

        let mut get = ask(&session, "tasks/get", r#""taskId":"foreign""#);
        while session.say(&OwnMessage::Discover { number: 0 }) {}
        answer(&session, 2, ENDED);
        let told = get.next().await;
        assert!(
            matches!(told, Some(Event::Failed(Failure::Busy))),
            "{told:?}"
        );
        said(&mut lines);
        let mut get = ask(&session, "tasks/get", r#""taskId":"foreign""#);
        drop(lines);
        answer(&session, 3, ENDED);
        let told = get.next().await;
        assert!(
            matches!(told, Some(Event::Failed(Failure::ChildEnded))),
            "{told:?}"
        );
    }

    /// A child is asked how few tasks stand at a time, and one that does not answer is asked again.
    #[tokio::test(start_paused = true)]
    async fn of_many_tasks_that_are_subscribed_to_few_are_asked_for_at_once() {
        let (session, mut lines) = session();
        let names: Vec<String> = (1..=20).map(|n| format!("\"x{n}\"")).collect();
        for (name, number) in names.iter().zip(1..) {
            let _made = ask(&session, "tools/call", r#""name":"t""#);
            let task = format!(r#"{{"task":{{"taskId":{name},"status":"working"}}}}"#);
            answer(&session, number, &task);
        }
        // What a child says of a task that nobody subscribes to, nobody hears.
        let told = |name: &str| {
            let line = format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/tasks/status","params":{{"taskId":{name},"status":"working"}}}}"#
            );
            assert!(pump::take(&session, line.into()));
        };
        told("\"x1\"");
        assert_eq!(session.unheard(), 1);
        said(&mut lines);
        let wanted = format!(r#""notifications":{{"taskIds":[{}]}}"#, names.join(","));
        let mut events = ask(&session, "subscriptions/listen", &wanted);
        let acknowledged = next(&mut events).await;
        assert!(
            names
                .iter()
                .all(|name| acknowledged.contains(name.as_str()))
        );
        assert_eq!(said(&mut lines).len(), 16);
        told("\"x1\"");
        told("\"x1\"");
        told("\"x2\"");
        told("\"y\"");
        assert!(next(&mut events).await.contains(r#""taskId":"x1""#));
        assert!(next(&mut events).await.contains(r#""taskId":"x2""#));
        assert_eq!(session.unheard(), 2);
        tokio::time::advance(session.call_timeout).await;
        let idle = Duration::from_secs(3600);
        session.sweep(Instant::now(), idle);
        // Those that were not asked for before come first.
        assert_eq!(said(&mut lines).len(), 4);
        tokio::time::advance(Duration::from_secs(1)).await;
        session.sweep(Instant::now(), idle);
        let again = said(&mut lines);
        assert!(again.len() == 12 && again.iter().all(|line| line.contains("tasks/get")));
        // It leaves, and nothing more is asked.
        drop(events);
        tokio::time::advance(session.call_timeout * 2).await;
        session.sweep(Instant::now(), idle);
        assert_eq!(said(&mut lines), Vec::<String>::new());
    }

    /// What a child says of a task at endless length is not kept, and no more is told of that task.
    #[tokio::test(start_paused = true)]
    async fn a_task_that_is_told_of_at_length_is_not_watched_any_more() {
        for (length, heard) in [(1 << 10, true), (300 << 10, false)] {
            let (session, mut lines) = session();
            let _made = ask(&session, "tools/call", r#""name":"t""#);
            answer(&session, 1, r#"{"task":{"taskId":"x","status":"working"}}"#);
            let mut events = ask(
                &session,
                "subscriptions/listen",
                r#""notifications":{"taskIds":["x"]}"#,
            );
            next(&mut events).await;
            said(&mut lines);
            let text = "m".repeat(length);
            let line = format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/tasks/status","params":{{"taskId":"x","status":"completed","statusMessage":"{text}"}}}}"#
            );
            assert!(pump::take(&session, line.into()));
            let asked = said(&mut lines);
            assert_eq!(
                asked.iter().any(|line| line.contains("tasks/result")),
                heard,
                "{asked:?}"
            );
            assert_eq!(session.state().tasks.results.len(), usize::from(heard));
        }
    }

    /// conn-3: how tasks stood that have ended is kept until their results come: what they say of themselves alone, and
    /// of that as much as there is room for. Of the others it is asked again.
    #[tokio::test(start_paused = true)]
    async fn how_tasks_stood_that_have_ended_has_a_size() {
        let rooms = Rooms::new(1);
        let (session, mut lines) = session_in(&rooms);
        let text = "m".repeat(200 << 10);
        let many = 100;
        let tell = |name: usize, more: &str| {
            let line = format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/tasks/status","params":{{"taskId":"k{name}","status":"completed",{more}}}}}"#
            );
            assert!(pump::take(&session, line.into()));
        };
        let mut heard = Vec::new();
        for name in 0..many {
            let number = session.state().next;
            let _made = ask(&session, "tools/call", r#""name":"t""#);
            let made = format!(r#"{{"task":{{"taskId":"k{name}","status":"working"}}}}"#);
            answer(&session, u32::try_from(number).unwrap(), &made);
            if name % 50 == 49 {
                let names: Vec<String> =
                    (name - 49..=name).map(|it| format!("\"k{it}\"")).collect();
                let wanted = format!(r#""notifications":{{"taskIds":[{}]}}"#, names.join(","));
                heard.push(ask(&session, "subscriptions/listen", &wanted));
            }
            said(&mut lines);
        }
        let ids = rooms.taken();
        // What is no part of it.
        tell(0, &format!(r#""own":"{text}""#));
        assert!(rooms.taken() < ids + 100, "{}", rooms.taken());
        said(&mut lines);
        for name in 1..many {
            tell(name, &format!(r#""statusMessage":"{text}""#));
            said(&mut lines);
        }
        let bound = 16 << 20;
        assert!((bound - text.len() * 2..=bound).contains(&rooms.taken()));
        let asked: Vec<u64> = session.state().tasks.results.keys().copied().collect();
        assert_eq!(asked.len(), 1 + rooms.taken() / text.len());
        // One call more, for which there is no room.
        let number = u32::try_from(session.state().next).unwrap();
        let mut get = ask(&session, "tasks/get", r#""taskId":"k99""#);
        let stands = format!(r#"{{"taskId":"k99","status":"completed","statusMessage":"{text}"}}"#);
        answer(&session, number, &stands);
        let told = get.next().await;
        assert!(
            matches!(told, Some(Event::Failed(Failure::NoRoom))),
            "{told:?}"
        );
        for number in asked {
            answer(&session, u32::try_from(number).unwrap(), "{}");
            said(&mut lines);
        }
        while let Ok(Some(_)) = timeout(Duration::from_millis(1), heard[0].next()).await {}
        while let Ok(Some(_)) = timeout(Duration::from_millis(1), heard[1].next()).await {}
        assert_eq!(rooms.taken(), ids);
        // The others are asked about again.
        tokio::time::advance(session.call_timeout).await;
        session.sweep(Instant::now(), Duration::MAX);
        let again = said(&mut lines);
        assert!(again.iter().any(|line| line.contains("tasks/get")));
    }

    fn asks(session: &Session) {
        let related = r#""_meta":{"io.modelcontextprotocol/related-task":{"taskId":"x"}}"#;
        let line =
            format!(r#"{{"jsonrpc":"2.0","id":"q","method":"roots/list","params":{{{related}}}}}"#);
        assert!(pump::take(session, line.into()));
    }
}

//! Tasks of a legacy child's, for modern clients, which have them as an extension.
//!
//! A tool that its server runs as a task alone is called as one for a client that takes
//! tasks. A task that has ended is told with its result, which an older server gives to
//! another question; what it asks in between is told with its state and answered by
//! `tasks/update`. They belong to whom the child belongs to: another's tasks are another
//! child's, and unknown here.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use crate::{
    json::Value,
    mcp::{
        Call, Id, Message, Target,
        bridge::LegacyServer,
        input::{self, Abilities, Question},
        meta,
        reverse::refused_with,
        task::{self, Standing},
    },
    session::{
        SendError, Session,
        calls::{Answer, InFlight, Way},
        conversation::State,
        exchange::{Event, Failure},
        own::OwnMessage,
        pending::Asked,
        rewrite::renumbered,
    },
};

/// What is known of the tasks of one child.
#[derive(Default)]
pub(super) struct Tasks {
    known: HashMap<String, Known>,
    /// The one that is forgotten first comes first.
    eldest: VecDeque<String>,
    /// The child was asked for results under these numbers.
    results: HashMap<u64, Pending>,
}

struct Known {
    abilities: Abilities,
    questions: Vec<Asked>,
    /// The number under which the child was asked for its result: older servers ask nothing before.
    asked: Option<u64>,
}

struct Pending {
    task: String,
    /// Who is told with it, and how the task stood then.
    told: Vec<(u64, Message)>,
}

/// What of a task a modern client's request is about.
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
    fn remember(&mut self, task: &str, abilities: Abilities) {
        if self.known.contains_key(task) {
            return;
        }
        let known = Known {
            abilities,
            questions: Vec::new(),
            asked: None,
        };
        self.known.insert(task.to_owned(), known);
        self.eldest.push_back(task.to_owned());
        if self.eldest.len() > MAX_TASKS
            && let Some(eldest) = self.eldest.pop_front()
        {
            self.known.remove(&eldest);
        }
    }

    /// Keeps a question of the child's for whoever asks how its task stands; `false` if nobody can be asked.
    pub(super) fn keep(&mut self, task: &str, question: Question, id: Value<'_>) -> bool {
        let Some(known) = self.known.get_mut(task) else {
            return false;
        };
        let bytes: usize = known.questions.iter().map(|it| it.question.size()).sum();
        let is_new = known
            .questions
            .iter()
            .all(|it| it.question.key != question.key);
        let fits = known.questions.len() < MAX_QUESTIONS && bytes + question.size() <= MAX_BYTES;
        let takes = is_new && fits && question.lacking(known.abilities).is_none();
        if takes {
            let id = Bytes::copy_from_slice(id.raw());
            known.questions.push(Asked { question, id });
        }
        takes
    }

    /// Forgets what the child no longer wants to know.
    pub(super) fn forget_question(&mut self, id: &[u8]) {
        for known in self.known.values_mut() {
            known.questions.retain(|asked| *asked.id != *id);
        }
    }
}

impl Session {
    /// What becomes of a modern client's request to a legacy child, if it is about tasks.
    pub(super) fn way_of_task(
        &self,
        state: &mut State,
        server: &LegacyServer,
        call: &Call,
        id: &Id,
    ) -> Result<Option<Way>, SendError> {
        Ok(match (call.method(), self.about(state, call)) {
            ("tasks/get" | "tasks/update" | "tasks/cancel", _) if !task::is_taken_by(call) => {
                Some(Way::Here(task::missing(id)))
            }
            ("tasks/update", _) => Some(self.update(state, server, call, id)?),
            ("tools/call", Some(About::Making(_))) => Some(Way::Child(as_task(call, state.next))),
            // It would only say that it cannot.
            ("tools/call", None) if self.is_task_alone(call) => Some(Way::Here(task::missing(id))),
            _ => None,
        })
    }

    /// What of a task the request is about.
    pub(super) fn about(&self, state: &State, call: &Call) -> Option<About> {
        self.bridge.get()?;
        match call.method() {
            "tools/call" if self.is_task_alone(call) => {
                task::is_taken_by(call).then(|| About::Making(Abilities::of(call)))
            }
            "tasks/get" => Some(About::Standing),
            "tasks/cancel" => {
                let task = call.params().and_then(|params| params.get("taskId"));
                let task = task.and_then(Value::as_str);
                let is_known = task.is_some_and(|it| state.tasks.known.contains_key(it.as_ref()));
                Some(About::Ending { is_known })
            }
            _ => None,
        }
    }

    fn is_task_alone(&self, call: &Call) -> bool {
        let Target::Tool(name) = call.target() else {
            return false;
        };
        let makes = self.bridge.get().is_some_and(LegacyServer::makes_tasks);
        makes && self.tools.get(name).is_some_and(|tool| tool.is_task)
    }

    /// Gives the child what the client says to its questions.
    fn update(
        &self,
        state: &mut State,
        server: &LegacyServer,
        call: &Call,
        id: &Id,
    ) -> Result<Way, SendError> {
        let params = call.params();
        let task = params
            .and_then(|params| params.get("taskId"))
            .and_then(Value::as_str);
        let Some(known) = task.and_then(|task| state.tasks.known.get_mut(task.as_ref())) else {
            return Ok(Way::Here(refused_with(id, -32602, "no such task")));
        };
        self.give_answers(&mut known.questions, call)?;
        Ok(Way::Here(done(server, id).to_vec()))
    }

    /// Tells the client what the child's result says of a task; the call is given back if
    /// that says nothing of any, and dropped where it is told or waits.
    pub(super) fn task_answered(
        &self,
        state: &mut State,
        number: u64,
        call: InFlight,
        message: &Message,
    ) -> Option<InFlight> {
        let (Some(server), Some(about)) = (self.bridge.get(), call.task) else {
            return Some(call);
        };
        // Where older servers refuse to end what has ended, modern ones do nothing.
        if let About::Ending { is_known: true } = about
            && error_code(message) == Some("-32602")
        {
            let text = done(server, &call.id);
            self.tell(state, call, text);
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
        let name = task
            .get("taskId")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let meta = server.meta_of(result);
        let text = match about {
            About::Making(abilities) => {
                state.tasks.remember(&name, abilities);
                task::modern(task, "task", &Standing::Said, &meta)
            }
            About::Ending { .. } => {
                let text = done(server, &call.id);
                self.tell(state, call, text);
                return None;
            }
            About::Standing => {
                let status = task.get("status").and_then(Value::as_str);
                match status.as_deref() {
                    Some("completed" | "failed") => {
                        let pending = self.ask_result(state, &name);
                        if let Some(pending) =
                            pending.and_then(|it| state.tasks.results.get_mut(&it))
                        {
                            pending.told.push((number, message.clone()));
                            state.in_flight.insert(number, call);
                        } else {
                            self.fail(state, call, Failure::ChildEnded);
                        }
                        return None;
                    }
                    Some("input_required") => {
                        self.ask_result(state, &name);
                        let known = state.tasks.known.get(name.as_ref());
                        let questions = known.iter().flat_map(|known| &known.questions);
                        let questions: Vec<_> = questions.map(|asked| &asked.question).collect();
                        let standing = match questions.is_empty() {
                            true => Standing::Working,
                            false => Standing::Asks(questions),
                        };
                        task::modern(task, "complete", &standing, &meta)
                    }
                    _ => task::modern(task, "complete", &Standing::Said, &meta),
                }
            }
        };
        let text = input::response(call.id.as_json(), &text);
        self.tell(state, call, text);
        None
    }

    /// Asks the child for the result of a task, unless it was asked already; under which number.
    fn ask_result(&self, state: &mut State, name: &str) -> Option<u64> {
        if let Some(asked) = state.tasks.known.get(name).and_then(|known| known.asked) {
            return Some(asked);
        }
        if state.tasks.results.len() >= MAX_TASKS {
            return None;
        }
        let number = state.next;
        let task = serde_json::Value::from(name).to_string();
        let own = OwnMessage::TaskOf {
            number,
            what: "result",
            task: task.as_bytes(),
            more: Vec::new(),
        };
        if !self.say(&own) {
            return None;
        }
        state.next += 1;
        if let Some(known) = state.tasks.known.get_mut(name) {
            known.asked = Some(number);
        }
        let pending = Pending {
            task: name.to_owned(),
            told: Vec::new(),
        };
        state.tasks.results.insert(number, pending);
        Some(number)
    }

    /// Takes the child's answer to request `number`, if that asked for a task's result.
    pub(super) fn result_answered(
        &self,
        state: &mut State,
        number: u64,
        answer: Answer,
        message: &Message,
    ) -> bool {
        let Some(pending) = state.tasks.results.remove(&number) else {
            return false;
        };
        if let Some(known) = state.tasks.known.get_mut(&pending.task) {
            known.asked = None;
            known.questions.clear();
        }
        // Where nobody has asked how it stands it is asked for again then.
        for (first, stood) in pending.told {
            if let Some(call) = state.in_flight.remove(&first) {
                self.tell_ended(state, call, &stood, (answer, message));
            }
        }
        true
    }

    fn tell_ended(
        &self,
        state: &mut State,
        call: InFlight,
        stood: &Message,
        (answer, message): (Answer, &Message),
    ) {
        let root = message.root();
        let outcome = match answer {
            Answer::Result => root.get("result").map(Ok),
            Answer::Error => root.get("error").map(Err),
            Answer::Neither => None,
        };
        let (Some(server), Some(task), Some(outcome)) =
            (self.bridge.get(), stood.root().get("result"), outcome)
        else {
            return self.fail(state, call, Failure::BadAnswer);
        };
        let meta = server.meta_of(Some(task));
        let text = task::modern(task, "complete", &Standing::Ended(outcome), &meta);
        let text = input::response(call.id.as_json(), &text);
        self.tell(state, call, text);
    }

    fn tell(&self, state: &mut State, call: InFlight, text: Bytes) {
        self.finish(state, call, None, text.len(), Event::Answer(text));
    }
}

fn done(server: &LegacyServer, id: &Id) -> Bytes {
    let mut result = br#"{"resultType":"complete","_meta":"#.to_vec();
    result.extend_from_slice(&server.meta_of(None));
    result.push(b'}');
    input::response(id.as_json(), &result)
}

fn error_code(message: &Message) -> Option<&str> {
    message.root().get("error")?.get("code")?.as_number()
}

/// The call as a line that asks for a task.
fn as_task(call: &Call, number: u64) -> Bytes {
    let line = renumbered(call, number, true);
    let Ok(message) = Message::parse(line.clone()) else {
        return line;
    };
    // A call of a tool names it, so there is a member after this one.
    let Some(params) = message.root().get("params") else {
        return line;
    };
    let start = params.span().start + 1;
    let change = (start..start, br#""task":{},"#.to_vec());
    meta::changed(&message, vec![change]).into()
}

/// Tasks of which something is known, what one of them asks at once, and its bytes.
const MAX_TASKS: usize = 1024;
const MAX_QUESTIONS: usize = 16;
const MAX_BYTES: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::time::timeout;

    use super::*;
    use crate::{
        audit::{Audit, RequestId},
        auth::Identity,
        config::ServerName,
        mcp::Era,
        session::{Exchange, Seal, load::Places, outbox::outbox, pump},
        time::Clock,
    };

    /// Two clients of one user ask at once how a task stands that has ended: both are told.
    #[tokio::test(start_paused = true)]
    async fn whoever_asks_how_a_task_stands_is_told() {
        let (audit, _) = Audit::memory(&ServerName::parse("it").unwrap());
        let (stdin, mut lines) = outbox(64);
        let alice = Identity::example("https://a", "alice");
        let session = Session::new(
            "0123456789abcdef0123456789abcdef".to_owned(),
            alice.clone(),
            audit,
            (Duration::from_secs(60), Places::new(64, 64)),
            Era::Modern,
            stdin,
            Arc::new(Seal::fleeting(Clock::new(|| 0))),
        );
        let opened =
            r#"{"id":1,"result":{"capabilities":{"tasks":{"requests":{"tools":{"call":{}}}}}}}"#;
        let opened = Message::parse(opened.into()).unwrap();
        session.bridged(LegacyServer::read(&opened).unwrap());
        let tool =
            r#"{"id":0,"result":{"tools":[{"name":"t","execution":{"taskSupport":"required"}}]}}"#;
        session.tools.learn(&Message::parse(tool.into()).unwrap());
        let ask = |method: &str, params: &str| -> Exchange {
            let meta = r#""_meta":{"io.modelcontextprotocol/clientCapabilities":{"extensions":{"io.modelcontextprotocol/tasks":{}}}}"#;
            let body = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{{params},{meta}}}}}"#
            );
            let call = Call::read(body.into(), true).unwrap();
            let id = call.id().unwrap().clone();
            session
                .request(&call, &alice, id, RequestId::random())
                .unwrap()
        };
        let answer = |number: u32, result: &str| {
            let line = format!(r#"{{"jsonrpc":"2.0","id":{number},"result":{result}}}"#);
            assert!(pump::take(&session, line.into()));
        };
        let _made = ask("tools/call", r#""name":"t""#);
        answer(1, r#"{"task":{"taskId":"x","status":"working"}}"#);
        let mut both = [
            ask("tasks/get", r#""taskId":"x""#),
            ask("tasks/get", r#""taskId":"x""#),
        ];
        for number in [2, 3] {
            answer(number, r#"{"taskId":"x","status":"completed"}"#);
        }
        let mut said = Vec::new();
        while let Some(line) = lines.try_recv() {
            said.push(String::from_utf8(line.to_vec()).unwrap());
        }
        let asked = |line: &&String| line.contains("tasks/result");
        assert_eq!(said.iter().filter(asked).count(), 1, "{said:?}");
        answer(4, r#"{"n":7}"#);
        for told in &mut both {
            let told = timeout(Duration::from_secs(1), told.next()).await;
            let Ok(Some(Event::Answer(text))) = told else {
                panic!("not told");
            };
            let text = String::from_utf8(text.to_vec()).unwrap();
            assert!(text.contains(r#""result":{"n":7}"#), "{text}");
        }
    }
}

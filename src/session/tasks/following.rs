//! A modern child's task, for a legacy client, which knows nothing of such tasks: it waits
//! for the answer to its call as ever.
//!
//! The child is asked how the task stands as often as it says, and asked to say so by itself;
//! what it asks meanwhile goes to the client as a request; and the call's end, whoever makes
//! it, is the task's.

use std::{
    collections::HashSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    json::Value,
    mcp::{Era, Message, answer, reverse::ModernServer, subscription::Wanted, task},
    session::{
        Session,
        calls::{AnswerKind, InFlight},
        conversation::SessionState,
        exchange::Failure,
        own::OwnMessage,
        reversed::Again,
    },
};

/// The task that a call has become.
pub(in crate::session) struct Following {
    /// Its id, as JSON and as it reads.
    task: Bytes,
    name: Arc<str>,
    /// When the child is asked next; never while it is being asked.
    due: Option<Instant>,
    every: Duration,
    /// The questions that were answered, by what their names hash to: a server may name them for a while, and there may
    /// be many.
    answered: HashSet<u64>,
}

impl Following {
    /// Whether that is its task.
    pub(super) fn is_of(&self, task: &str) -> bool {
        *self.name == *task
    }

    fn rest(&mut self) {
        self.due = Some(Instant::now() + self.every);
    }
}

impl Session {
    /// Follows the task that the child has made of a call; it is given back if it has made none that has a usable id.
    pub(in crate::session) fn follow(
        &self,
        state: &mut SessionState,
        number: u64,
        mut call: InFlight,
        result: Value<'_>,
    ) -> Option<InFlight> {
        let task = (result.get("taskId"), task::id(result));
        let ((Some(task), Some(name)), Some(again)) = (task, call.again.as_deref_mut()) else {
            if let Some(server) = self.modern_server() {
                self.has_it_ended(state, result, with_meta(server, b""));
            }
            return Some(call);
        };
        let mut following = Following {
            task: Bytes::copy_from_slice(task.raw()),
            name: name.into(),
            due: None,
            every: task::pause(result, Era::Modern),
            answered: HashSet::new(),
        };
        following.rest();
        again.task = Some(following);
        state.in_flight.insert(number, call);
        self.watch_tasks(state);
        None
    }

    /// Has the child say by itself how the tasks stand that calls have become.
    pub(in crate::session) fn watch_tasks(&self, state: &mut SessionState) {
        let Some(server) = self.modern_server() else {
            return;
        };
        let following = state.in_flight.values().filter_map(InFlight::following);
        let mut tasks: Vec<Arc<str>> = following.map(|it| it.name.clone()).collect();
        // One set has one order, to be known again.
        tasks.sort_unstable();
        let wanted = Wanted {
            tasks,
            ..Wanted::default()
        };
        let mut ear = std::mem::take(&mut state.reversed.watching);
        self.listen_at(state, server, wanted, &mut ear);
        state.reversed.watching = ear;
    }

    /// The child says by itself how a task stands; `false` if no call of this session has become it.
    pub(in crate::session) fn followed_says(&self, message: &Message) -> bool {
        let task = message.root().get("params");
        let name = task.and_then(|task| task.get("taskId"));
        let name = name.and_then(Value::as_str);
        let (Some(task), Some(name)) = (task, name) else {
            return false;
        };
        let outcome = outcome(task);
        let mut state = self.state();
        let mut calls = state.in_flight.iter();
        let found = calls.find(|(_, call)| call.following().is_some_and(|it| *it.name == *name));
        let Some((number, _)) = found.map(|(number, call)| (*number, call)) else {
            return false;
        };
        let is_asking =
            |call: &InFlight| !call.again.as_deref().is_some_and(Again::is_asking_nothing);
        // While its client is asked something, that is what is waited for.
        if let Some(call) = state.in_flight.remove(&number) {
            if is_asking(&call) {
                state.in_flight.insert(number, call);
            } else if let Some(call) = self.task_stands(&mut state, number, call, (task, outcome)) {
                state.in_flight.insert(number, call);
            }
        }
        true
    }

    /// Asks the child how tasks stand that it is time to ask for.
    pub(in crate::session) fn look_after_tasks(&self, state: &mut SessionState, now: Instant) {
        let Some(server) = self.modern_server() else {
            return;
        };
        let due = |call: &InFlight| {
            let again = call.again.as_deref()?;
            let due = again.task.as_ref()?.due?;
            (due <= now && again.is_asking_nothing()).then_some(())
        };
        let calls = state.in_flight.iter();
        let all: Vec<u64> = calls
            .filter_map(|(number, call)| due(call).map(|()| *number))
            .collect();
        for first in all {
            let number = state.next;
            let again = state.in_flight.get_mut(&first);
            let Some(again) = again.and_then(|call| call.again.as_deref_mut()) else {
                continue;
            };
            let before = again.number;
            let Some(following) = &mut again.task else {
                continue;
            };
            if !self.say(&about(server, number, "get", &following.task, b"")) {
                // It reads nothing now; it is asked again when it may.
                continue;
            }
            following.due = None;
            again.number = Some(number);
            state.next += 1;
            state.renumber(first, before, number);
        }
    }

    /// What a task has come to, if that is what a modern child's answer says.
    pub(in crate::session) fn outcome_of_task(
        &self,
        answer: AnswerKind,
        message: &Message,
    ) -> Option<TaskOutcome> {
        let server = self.modern_server()?;
        // Elsewhere it is what a tool says of itself.
        if answer != AnswerKind::Result || !server.makes_tasks() {
            return None;
        }
        outcome(message.root().get("result")?)
    }

    /// What the child says of the task that a call has become, and what that has come to: the call is given back
    /// if it is no such call.
    pub(in crate::session) fn task_stands(
        &self,
        state: &mut SessionState,
        number: u64,
        mut call: InFlight,
        (result, outcome): (Value<'_>, Option<TaskOutcome>),
    ) -> Option<InFlight> {
        let again = call.again.as_deref_mut()?;
        let following = again.task.as_mut()?;
        following.every = task::pause(result, Era::Modern);
        let status = result.get("status").and_then(Value::as_str);
        match status.as_deref() {
            Some("completed" | "failed") => {}
            Some("cancelled") => {
                again.task = None;
                self.fail(state, call, Failure::Cancelled);
                return None;
            }
            Some("input_required") => {
                self.task_asks(state, number, call, result);
                return None;
            }
            _ => {
                following.rest();
                state.in_flight.insert(number, call);
                return None;
            }
        }
        // It has ended: there is nothing to cancel.
        again.task = None;
        match outcome {
            Some((answer, text)) => self.deliver(state, call, answer, &text),
            None => self.fail(state, call, Failure::BadAnswer),
        }
        None
    }

    /// Asks the client what a task asks, as far as it was not asked already.
    fn task_asks(
        &self,
        state: &mut SessionState,
        number: u64,
        mut call: InFlight,
        result: Value<'_>,
    ) {
        let Some(again) = call.again.as_deref_mut() else {
            return self.fail(state, call, Failure::NoInput);
        };
        again.rounds += 1;
        let mut questions = match self.questions_of(result, number, again.rounds) {
            Ok(questions) if again.may_ask_more() => questions,
            Err(Failure::NoRoom) => return self.fail(state, call, Failure::NoRoom),
            _ => return self.fail(state, call, Failure::NoInput),
        };
        if let Some(following) = &mut again.task {
            questions.retain(|asked| !following.answered.contains(&hashed(asked.key())));
            following.rest();
        }
        if questions.is_empty() {
            // It has not seen yet what it was told.
            again.rounds -= 1;
            state.in_flight.insert(number, call);
        } else {
            again.ask(questions);
            self.ask_legacy(state, number, call);
        }
    }

    /// Tells the child what the client has answered; `false` if the call is no task.
    pub(in crate::session) fn update_task(&self, state: &mut SessionState, first: u64) -> bool {
        let number = state.next;
        let (Some(server), Some(call)) = (self.modern_server(), state.in_flight.get_mut(&first))
        else {
            return false;
        };
        let Some(again) = call.again.as_deref_mut() else {
            return false;
        };
        if again.task.is_none() {
            return false;
        }
        let answers = again.answers();
        let Some(following) = &mut again.task else {
            return false;
        };
        let names = answers.iter().map(|(key, _)| hashed(key));
        following.answered.extend(names);
        let mut more = b",".to_vec();
        answer::member(&mut more, "inputResponses", &answer::object(answers));
        let own = about(server, number, "update", &following.task, &more);
        let said = self.write(own.line());
        following.rest();
        call.deadline = Instant::now() + self.call_timeout;
        // That it has heard is not waited for: how the task stands tells more.
        state.next += 1;
        if let Err(error) = said
            && let Some(call) = state.in_flight.remove(&first)
        {
            self.fail(state, call, Failure::unsaid(error));
        }
        true
    }

    /// Has the child end a task whose call has ended.
    pub(in crate::session) fn end_task(&self, state: &mut SessionState, call: &InFlight) {
        if state.reversed.watching.is_wanted()
            && !state
                .in_flight
                .values()
                .any(|call| call.following().is_some())
        {
            self.watch_tasks(state);
        }
        let (Some(server), Some(following)) = (self.modern_server(), call.following()) else {
            return;
        };
        let number = state.next;
        state.next += 1;
        self.say(&about(server, number, "cancel", &following.task, b""));
    }
}

/// What a task has come to: its result or error, as the answer to a call.
pub(in crate::session) type TaskOutcome = (AnswerKind, Message);

/// The outcome of a task of which that is said, read before anybody needs the session: it may be large.
fn outcome(task: Value<'_>) -> Option<TaskOutcome> {
    let status = task.get("status").and_then(Value::as_str)?;
    let (answer, name) = match &*status {
        "completed" => (AnswerKind::Result, "result"),
        "failed" => (AnswerKind::Error, "error"),
        _ => return None,
    };
    let text = [
        &br#"{"jsonrpc":"2.0","id":0,""#[..],
        name.as_bytes(),
        b"\":",
        task.get(name).map_or(&b"{}"[..], Value::raw),
        b"}",
    ];
    let message = Message::parse(text.concat().into()).ok()?;
    Some((answer, message))
}

impl InFlight {
    /// Has the child asked once more how the task stands that it has become; `false` if it is none.
    pub(in crate::session) fn looks_later(&mut self) -> bool {
        let following = self.again.as_deref_mut().and_then(|it| it.task.as_mut());
        following.map(Following::rest).is_some()
    }

    /// The task that it has become.
    pub(in crate::session) fn following(&self) -> Option<&Following> {
        self.again.as_deref()?.task.as_ref()
    }
}

fn hashed(key: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

fn about<'a>(
    server: &ModernServer,
    number: u64,
    what: &'static str,
    task: &'a [u8],
    more: &[u8],
) -> OwnMessage<'a> {
    OwnMessage::TaskOf {
        number,
        what,
        task,
        more: with_meta(server, more),
    }
}

/// These members of a request and what each says to a modern child.
pub(super) fn with_meta(server: &ModernServer, more: &[u8]) -> Vec<u8> {
    let mut members = more.to_vec();
    members.push(b',');
    answer::member(&mut members, "_meta", server.own_meta().as_bytes());
    members
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{exchange::Event, pump, testing};

    /// What a tool says of itself is no task's outcome, whatever its words: nothing is made of it where nobody's call can be
    /// a task, and its client has it as it came where it can.
    #[tokio::test]
    async fn a_result_with_a_status_of_its_own_is_a_result() {
        const OWN: &str = r#""status":"completed","result":{"own":1},"content":[]"#;
        let tasks = r#"{"extensions":{"io.modelcontextprotocol/tasks":{}}}"#;
        for (capabilities, may_be) in [("{}", false), (tasks, true)] {
            let (session, _lines) = testing::reversed(capabilities);
            let asks = r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"x"}}"#;
            let mut asked = testing::asked(&session, asks);
            let said = format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{{OWN}}}}}"#);
            let message = Message::parse(said.clone().into()).unwrap();
            let outcome = session.outcome_of_task(AnswerKind::Result, &message);
            assert_eq!(outcome.is_some(), may_be);
            assert!(pump::take(&session, said.into()));
            let told = asked.next().await;
            let Some(Event::Answer(text)) = told else {
                panic!("{told:?}");
            };
            assert!(String::from_utf8_lossy(&text).contains(OWN), "{text:?}");
        }
    }

    /// fault-46: each call that has become one keeps its task's id; the child is told to end one that is not kept.
    #[tokio::test]
    async fn a_task_with_too_long_an_id_is_not_followed_and_ends() {
        for (longer, is_followed) in [(0, true), (1, false)] {
            let tasks = r#"{"extensions":{"io.modelcontextprotocol/tasks":{}}}"#;
            let (session, mut lines) = testing::reversed(tasks);
            let asks = r#"{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"x"}}"#;
            let mut asked = testing::asked(&session, asks);
            let id = "k".repeat(task::MAX_ID - 2 + longer);
            let made = format!(
                r#"{{"jsonrpc":"2.0","id":1,"result":{{"resultType":"task","taskId":"{id}"}}}}"#
            );
            assert!(pump::take(&session, made.into()));
            let follows = session
                .state()
                .in_flight
                .values()
                .any(|it| it.following().is_some());
            assert_eq!(follows, is_followed);
            let cancels =
                format!(r#""method":"tasks/cancel","params":{{"taskId":"{id}","_meta":{{"#);
            let mut said = Vec::new();
            while let Some(line) = lines.try_recv() {
                said.push(String::from_utf8(line.to_vec()).unwrap());
            }
            let is_cancelled = said.iter().any(|line| line.contains(&cancels));
            assert_eq!(is_cancelled, !is_followed, "{said:?}");
            if !is_followed {
                let told = asked.next().await;
                assert!(
                    matches!(told, Some(Event::Failed(Failure::BadAnswer))),
                    "{told:?}"
                );
            }
        }
    }
}

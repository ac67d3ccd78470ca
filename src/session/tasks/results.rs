//! What tasks of a legacy child's have come to, which it is asked for once they have ended.
//!
//! The other half of `tasks`: whoever asks how such a task stands, and whoever subscribes to it, is told both
//! together. How it stood is kept until then, counted as the session's.

use std::sync::Arc;

use bytes::Bytes;
use foldhash::HashMap;
use tokio::time::Instant;

use crate::{
    json::Value,
    mcp::{
        Message, answer,
        task::{self, Standing},
    },
    session::{
        Session,
        calls::{AnswerKind, InFlight},
        conversation::SessionState,
        exchange::Failure,
        own::OwnMessage,
        room::Claim,
        tasks::{MAX_TASKS, Tasks},
    },
};

/// A child that was asked for a task's result.
pub(in crate::session) struct ResultRequest {
    task: Arc<str>,
    /// Who is told with it, and how the task stood then: what it said of itself, as JSON.
    told: Vec<(u64, Bytes)>,
    /// How it stood when those were to be told that subscribe to it.
    pub(in crate::session) watched: Option<Bytes>,
    /// Until when it is waited for, unless somebody asks again.
    deadline: Instant,
    /// For its id, where nothing else keeps that.
    _claim: Option<Claim>,
}

#[cfg(test)]
impl ResultRequest {
    pub(in crate::session) fn told(&self) -> usize {
        self.told.len()
    }
}

impl Tasks {
    /// Keeps no answer for calls that have ended before the result came.
    fn forget_who_left(&mut self, name: &str, in_flight: &HashMap<u64, InFlight>) {
        let asked = self.known.get(name).and_then(|known| known.asked);
        if let Some(pending) = asked.and_then(|asked| self.results.get_mut(&asked)) {
            pending
                .told
                .retain(|(first, _)| in_flight.contains_key(first));
        }
    }
}

impl Session {
    /// How a task stands, to be told with what it has come to; `None` if there is no room for it.
    pub(in crate::session) fn stood(&self, task: Value<'_>) -> Option<Bytes> {
        self.room.hold_all(task::outline(task).into())
    }

    /// Has the call, which asks how a task stands, wait for what that has come to, to be told both together.
    pub(in crate::session) fn wait_for_result(
        &self,
        state: &mut SessionState,
        number: u64,
        call: InFlight,
        (name, task): (&str, Value<'_>),
    ) {
        let stood = self.stood(task).ok_or(Failure::NoRoom);
        let asked = stood.and_then(|stood| {
            let pending = self.ask_result(state, name, false)?;
            pending.told.push((number, stood));
            Ok(())
        });
        match asked {
            Ok(()) => {
                state.in_flight.insert(number, call);
                state.tasks.forget_who_left(name, &state.in_flight);
            }
            Err(failure) => self.fail(state, call, failure),
        }
    }

    /// Asks the child for the result of a task, unless it was asked already. Of a task that
    /// `asks` its client it comes when that has answered: it is waited for as long as anybody looks.
    pub(in crate::session) fn ask_result<'a>(
        &self,
        state: &'a mut SessionState,
        name: &str,
        asks: bool,
    ) -> Result<&'a mut ResultRequest, Failure> {
        let deadline = Instant::now() + self.call_timeout;
        if let Some(asked) = state.tasks.known.get(name).and_then(|known| known.asked) {
            let pending = state.tasks.results.get_mut(&asked);
            let pending = pending.ok_or(Failure::Busy)?;
            if asks {
                pending.deadline = deadline;
            }
            return Ok(pending);
        }
        if state.tasks.results.len() >= MAX_TASKS {
            return Err(Failure::Busy);
        }
        // One that no call here has become is named for as long as it is asked for.
        let known = state.tasks.known.get_key_value(name);
        let (task, claim) = match known.map(|(task, _)| task.clone()) {
            Some(task) => (task, None),
            None => {
                let claim = self.room.claim(name.len());
                (name.into(), Some(claim.ok_or(Failure::NoRoom)?))
            }
        };
        let number = state.next;
        let id = serde_json::Value::from(name).to_string();
        let own = OwnMessage::TaskOf {
            number,
            what: "result",
            task: id.as_bytes(),
            more: Vec::new(),
        };
        self.write(own.line()).map_err(Failure::unsaid)?;
        state.next += 1;
        if let Some(known) = state.tasks.known.get_mut(name) {
            known.asked = Some(number);
        }
        let pending = ResultRequest {
            task,
            told: Vec::new(),
            watched: None,
            deadline,
            _claim: claim,
        };
        Ok(state.tasks.results.entry(number).or_insert(pending))
    }

    /// Waits no longer for results that the child does not give.
    pub(in crate::session) fn give_up_results(&self, state: &mut SessionState, now: Instant) {
        let overdue = state.tasks.results.extract_if(|_, it| it.deadline <= now);
        let overdue: Vec<(u64, ResultRequest)> = overdue.collect();
        for (number, pending) in overdue {
            self.say(&OwnMessage::Cancelled {
                number,
                reason: "timeout",
            });
            self.give_up_result(state, pending, now, Failure::Timeout);
        }
    }

    /// Request `number` will have no answer; `false` if that asked for no task's result.
    pub(in crate::session) fn result_failed(
        &self,
        state: &mut SessionState,
        number: u64,
        failure: Failure,
    ) -> bool {
        let pending = state.tasks.results.remove(&number);
        let now = Instant::now();
        let given_up = pending.map(|it| self.give_up_result(state, it, now, failure));
        given_up.is_some()
    }

    fn give_up_result(
        &self,
        state: &mut SessionState,
        pending: ResultRequest,
        now: Instant,
        failure: Failure,
    ) {
        // What it has asked may still be answered.
        if let Some(known) = state.tasks.known.get_mut(&pending.task) {
            known.asked = None;
            known.watched.look_later(now);
        }
        for (first, _) in pending.told {
            if let Some(call) = state.in_flight.remove(&first) {
                self.fail(state, call, failure);
            }
        }
    }

    /// Takes the child's answer to request `number`, if that asked for a task's result.
    pub(in crate::session) fn result_answered(
        &self,
        state: &mut SessionState,
        number: u64,
        answer: AnswerKind,
        message: &Message,
    ) -> bool {
        let Some(pending) = state.tasks.results.remove(&number) else {
            return false;
        };
        if let Some(known) = state.tasks.known.get_mut(&pending.task) {
            known.asked = None;
            known.questions.clear();
            // Who subscribes to it is told of its end, if this was one.
            known.watched.look_now();
        }
        let outcome = outcome(answer, message);
        if let (Some(stood), Some(outcome)) = (pending.watched, outcome) {
            self.watched_ended(state, &pending.task, &stood, outcome);
        }
        // Where nobody has asked how it stands it is asked for again then.
        for (first, stood) in pending.told {
            if let Some(call) = state.in_flight.remove(&first) {
                self.tell_ended(state, call, &stood, outcome);
            }
        }
        true
    }

    fn tell_ended(
        &self,
        state: &mut SessionState,
        call: InFlight,
        stood: &Bytes,
        outcome: Option<Result<Value<'_>, Value<'_>>>,
    ) {
        let (Some(server), Ok(stood), Some(outcome)) =
            (self.legacy_server(), Message::parse(stood.clone()), outcome)
        else {
            return self.fail(state, call, Failure::BadAnswer);
        };
        let task = stood.root();
        let meta = server.meta_of(Some(task));
        let text = task::modern(task, "complete", &Standing::Ended(outcome), &meta);
        let text = answer::result(call.id.as_json(), &text);
        self.tell(state, call, text.into());
    }
}

/// What the call of a task has come to, by the child's answer when it is asked for that.
fn outcome(answer: AnswerKind, message: &Message) -> Option<Result<Value<'_>, Value<'_>>> {
    let root = message.root();
    match answer {
        AnswerKind::Result => root.get("result").map(Ok),
        AnswerKind::Error => root.get("error").map(Err),
        AnswerKind::Neither => None,
    }
}

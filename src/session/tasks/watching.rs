//! How tasks of a legacy child's stand, for modern clients that subscribe to them.
//!
//! Such a child may say when something changes, and need not: it is also asked, as often as
//! it says, while anybody wants to hear it. Each subscription is told what it has not been
//! told yet, whole, as `tasks/get` would (mcp-T28). Only tasks are watched that this
//! session's own calls have become: nobody hears of another's (mcp-L11).

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use foldhash::HashMap;
use tokio::time::Instant;

use crate::{
    json::Value,
    mcp::{
        Era, Message, subscription,
        task::{self, Standing},
    },
    session::{
        Session,
        calls::AnswerKind,
        conversation::SessionState,
        exchange::Event,
        own::OwnMessage,
        tasks::{KnownTask, Tasks},
    },
};

/// What is to be known of a task that somebody subscribes to.
pub(in crate::session) struct Watched {
    /// When the child is asked next how it stands; never while it is being asked.
    due: Option<Instant>,
    every: Duration,
    /// Somebody wants to hear of it.
    is_wanted: bool,
    is_being_asked: bool,
    /// What each subscription, by its call's number, was told last.
    told: HashMap<u64, u64>,
}

/// A question to the child how a task stands.
pub(in crate::session) struct TaskLook {
    task: Arc<str>,
    deadline: Instant,
}

impl Default for Watched {
    fn default() -> Self {
        Self {
            due: None,
            every: task::SHORTEST_PAUSE,
            is_wanted: false,
            is_being_asked: false,
            told: HashMap::default(),
        }
    }
}

impl Watched {
    /// One more subscription wants to hear of it.
    pub(in crate::session) fn begin(&mut self) {
        self.is_wanted = true;
        self.look_now();
    }

    /// Something has changed, or may have.
    pub(in crate::session) fn look_now(&mut self) {
        if self.is_wanted {
            self.due = Some(Instant::now());
        }
    }

    pub(in crate::session) fn look_later(&mut self, now: Instant) {
        if self.is_wanted {
            self.due = Some(now + self.every);
        }
    }

    /// There is nothing more to be heard of it, or nobody to hear it.
    fn end(&mut self) {
        self.due = None;
        self.is_wanted = false;
        self.told.clear();
    }
}

impl Tasks {
    /// What was asked has no answer: how it stands is asked again.
    fn looks_later(&mut self, look: &TaskLook, now: Instant) {
        if let Some(known) = self.known.get_mut(&look.task) {
            known.watched.is_being_asked = false;
            known.watched.look_later(now);
        }
    }
}

impl Session {
    /// Asks the child how tasks stand that somebody subscribes to and that it is time to ask for.
    pub(in crate::session) fn look_at_watched(&self, state: &mut SessionState, now: Instant) {
        let overdue = state.tasks.looks.extract_if(|_, it| it.deadline <= now);
        let overdue: Vec<TaskLook> = overdue.map(|(_, look)| look).collect();
        for look in overdue {
            state.tasks.looks_later(&look, now);
        }
        let is_due = |known: &KnownTask| {
            let watched = &known.watched;
            !watched.is_being_asked && watched.due.is_some_and(|due| due <= now)
        };
        let due = state.tasks.known.iter().filter(|(_, known)| is_due(known));
        let room = MAX_LOOKS.saturating_sub(state.tasks.looks.len());
        let due: Vec<Arc<str>> = due.map(|(name, _)| name.clone()).take(room).collect();
        for name in due {
            let is_wanted = is_wanted(state, &name);
            let Some(known) = state.tasks.known.get_mut(&name) else {
                continue;
            };
            if !is_wanted {
                known.watched.end();
                continue;
            }
            let number = state.next;
            let task = serde_json::Value::from(&*name).to_string();
            if !self.say(&OwnMessage::TaskOf {
                number,
                what: "get",
                task: task.as_bytes(),
                more: Vec::new(),
            }) {
                // It reads nothing now; it is asked again when it may.
                continue;
            }
            state.next += 1;
            known.watched.due = None;
            known.watched.is_being_asked = true;
            let look = TaskLook {
                task: name,
                deadline: now + self.call_timeout,
            };
            state.tasks.looks.insert(number, look);
        }
    }

    /// Request `number` will have no answer; `false` if that did not ask how a watched task stands.
    pub(in crate::session) fn look_failed(&self, state: &mut SessionState, number: u64) -> bool {
        let look = state.tasks.looks.remove(&number);
        let failed = look.map(|look| state.tasks.looks_later(&look, Instant::now()));
        failed.is_some()
    }

    /// Takes the child's answer to request `number`, if that asked how a watched task stands.
    pub(in crate::session) fn look_answered(
        &self,
        state: &mut SessionState,
        number: u64,
        answer: AnswerKind,
        message: &Message,
    ) -> bool {
        let Some(look) = state.tasks.looks.remove(&number) else {
            return false;
        };
        let Some(known) = state.tasks.known.get_mut(&look.task) else {
            return true;
        };
        known.watched.is_being_asked = false;
        let task = message.root().get("result");
        let is_it = |task: &Value<'_>| named(*task).is_some_and(|name| *name == *look.task);
        match (answer, task.filter(is_it)) {
            (AnswerKind::Result, Some(_)) => self.stands(state, &look.task, message),
            // The child has forgotten it.
            (AnswerKind::Error, _) => known.watched.end(),
            _ => known.watched.look_later(Instant::now()),
        }
        true
    }

    /// The child says by itself how a task stands; `false` if nobody wants to hear that.
    pub(in crate::session) fn task_says(&self, message: &Message) -> bool {
        let mut state = self.state();
        let name = message.root().get("params").and_then(named);
        let Some(name) = name.filter(|name| is_wanted(&state, name)) else {
            return false;
        };
        self.stands(&mut state, &name, message);
        true
    }

    /// Tells those that subscribe to a task how it stands, which the message's result or parameters say.
    fn stands(&self, state: &mut SessionState, name: &str, message: &Message) {
        let (Some(task), Some(known)) = (told_in(message), state.tasks.known.get_mut(name)) else {
            return;
        };
        if message.bytes().len() > MAX_STATUS {
            // It would be kept until the result comes, and so would those of all the others.
            return known.watched.end();
        }
        known.watched.every = task::pause(task, Era::Legacy);
        if task::has_outcome(task) {
            // It is told with that.
            known.watched.due = None;
            let asked = self.stood(task).and_then(|stood| {
                let pending = self.ask_result(state, name, false).ok()?;
                pending.watched = Some(stood);
                Some(())
            });
            if asked.is_none() {
                // Where there is no room now it is asked again how it stands.
                self.look_later(state, name);
            }
            return;
        }
        let text = task::told(task, &self.standing(state, name, task));
        self.tell_watching(state, name, &text);
        let Some(known) = state.tasks.known.get_mut(name) else {
            return;
        };
        let status = task.get("status").and_then(Value::as_str);
        if status.as_deref() == Some("cancelled") {
            known.watched.end();
        } else {
            known.watched.look_later(Instant::now());
        }
    }

    /// Tells them what the task has come to.
    pub(in crate::session) fn watched_ended(
        &self,
        state: &mut SessionState,
        name: &str,
        stood: &Bytes,
        outcome: Result<Value<'_>, Value<'_>>,
    ) {
        if let Ok(stood) = Message::parse(stood.clone()) {
            let text = task::told(stood.root(), &Standing::Ended(outcome));
            self.tell_watching(state, name, &text);
        }
        if let Some(known) = state.tasks.known.get_mut(name) {
            known.watched.end();
        }
    }

    fn look_later(&self, state: &mut SessionState, name: &str) {
        if let Some(known) = state.tasks.known.get_mut(name) {
            known.watched.look_later(Instant::now());
        }
    }

    /// Tells each subscription that names the task, under its name, unless that is what it was told last.
    fn tell_watching(&self, state: &mut SessionState, name: &str, text: &[u8]) {
        let (Some(known), Ok(message)) = (
            state.tasks.known.get_mut(name),
            Message::parse(text.to_vec().into()),
        ) else {
            return;
        };
        let told = &mut known.watched.told;
        told.retain(|number, _| state.in_flight.contains_key(number));
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let text = hasher.finish();
        for (number, call) in &state.in_flight {
            if call.wants_task(name) && told.insert(*number, text) != Some(text) {
                let text = subscription::labelled(&message, &call.id);
                call.stream.tell(Event::Message(text.into()));
            }
        }
    }
}

fn is_wanted(state: &SessionState, name: &str) -> bool {
    let mut calls = state.in_flight.values();
    calls.any(|call| call.wants_task(name))
}

fn named(task: Value<'_>) -> Option<String> {
    Some(task.get("taskId")?.as_str()?.into_owned())
}

/// The task that an answer or a notification tells of.
fn told_in(message: &Message) -> Option<Value<'_>> {
    let root = message.root();
    root.get("result").or_else(|| root.get("params"))
}

/// Bytes of a message that says how a task stands.
const MAX_STATUS: usize = 256 << 10;
/// Such questions that a child has not answered.
const MAX_LOOKS: usize = 16;

//! Calls that wait for their client: a legacy child's question becomes the
//! modern answer that asks for input (mcp-M1).
//!
//! The child's call stays as it is, and counts as busy, with a deadline of its
//! own; the client comes back for it with the answers and the sealed state that
//! names it. A call is never made a second time: what does not find its call
//! waiting is refused.

pub(super) mod questions;
pub(super) mod seal;
pub(super) mod visits;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    audit::Owed,
    auth::Identity,
    json::Value,
    mcp::{
        Call, Id, Message,
        input::{self, Abilities, Need, Question},
        spelled, task,
    },
    session::{
        SendError, Session, Sessions,
        calls::{AnswerKind, InFlight},
        conversation::SessionState,
        exchange::{Event, Failure},
        line::Line,
        logs::Logs,
        owed::OutcomeOwed,
        own::OwnMessage,
        pending::seal::{Binding, StateError, Ticket},
        rewrite::progress_token,
        room::KeptMessage,
        stream::{Exchange, Stream, Style},
        tasks::About,
    },
};

/// What a modern client's call at a legacy child may be asked, and was.
pub(super) struct Input {
    holder: Binding,
    binding: Binding,
    abilities: Abilities,
    questions: Vec<OpenQuestion>,
    /// How often the client was asked.
    round: u64,
    /// It was, and has not come back: nobody reads the call's stream.
    pub(super) waits: bool,
    /// The answer to the call, which came all the same.
    told: Option<EarlyAnswer>,
    /// What the child would have asked, had the client been able to answer.
    pub(super) lacked: Option<Need>,
    /// The child has answered, and it is the client's user who goes somewhere first.
    away: bool,
}

/// A question of a legacy child's that its client has not answered.
pub(super) struct OpenQuestion {
    pub(super) question: Question,
    /// The child's own id for it, as JSON; empty where the child has asked by its answer.
    pub(super) id: Bytes,
}

/// What the child has answered to a call whose client is being asked.
enum EarlyAnswer {
    Answer(AnswerKind, KeptMessage),
    /// There was no room for it.
    Dropped,
}

impl Input {
    /// For a call that may be asked something.
    pub(super) fn of(call: &Call, holder: &Binding) -> Option<Box<Self>> {
        input::may_ask(call.method()).then(|| {
            Box::new(Self {
                holder: *holder,
                binding: seal::binding(holder, call),
                abilities: Abilities::of(call),
                questions: Vec::new(),
                round: 0,
                waits: false,
                told: None,
                lacked: None,
                away: false,
            })
        })
    }

    fn takes(&self, question: &Question) -> bool {
        let size = |asked: &OpenQuestion| asked.question.size();
        let bytes: usize = self.questions.iter().map(size).sum();
        self.questions.len() < MAX_QUESTIONS
            && bytes + question.size() <= MAX_ASKED_BYTES
            && !self.has(&question.key)
    }

    fn has(&self, key: &str) -> bool {
        self.questions.iter().any(|asked| asked.question.key == key)
    }

    /// Has the client's user go there; `false` if that is too much, or more than the client can. The child's
    /// `answer` is what there is to be told if nobody goes.
    pub(super) fn sends_away(
        &mut self,
        visits: Vec<Question>,
        (answer, message): (AnswerKind, KeptMessage),
    ) -> bool {
        for question in visits {
            if let Some(need) = question.lacking(self.abilities) {
                self.lacked = Some(need);
            }
            if self.lacked.is_some() || !self.takes(&question) {
                self.questions.clear();
                return false;
            }
            let id = Bytes::new();
            self.questions.push(OpenQuestion { question, id });
        }
        self.told = Some(EarlyAnswer::Answer(answer, message));
        self.away = true;
        true
    }

    /// Whether the call says that its user has been everywhere.
    pub(super) fn has_been_away(&self, call: &Call) -> bool {
        let given = call.param("inputResponses");
        let went = |asked: &OpenQuestion| {
            let action = given?.get(&asked.question.key)?.get("action")?.as_str()?;
            (action == "accept").then_some(())
        };
        self.away && self.questions.iter().all(|asked| went(asked).is_some())
    }

    /// What was asked and not answered.
    pub(super) fn questions(&mut self) -> Vec<OpenQuestion> {
        std::mem::take(&mut self.questions)
    }

    /// Keeps the answer to a call whose client is being asked; one that `goes_on` as a task
    /// still wants to know. `None` is one that there is no room for.
    pub(super) fn keep(&mut self, answer: Option<(AnswerKind, KeptMessage)>, goes_on: bool) {
        if !goes_on {
            self.questions.clear();
        }
        self.told = Some(match answer {
            Some((answer, message)) => EarlyAnswer::Answer(answer, message),
            None => EarlyAnswer::Dropped,
        });
    }
}

impl Session {
    /// Has a legacy child's question wait for a client's next look at its call; `false`
    /// if there is nobody to ask.
    pub(super) fn question(&self, message: &Message, method: &str, id: Value<'_>) -> bool {
        let question = Question::asked(method, id, message);
        let Some(question) = question.and_then(|question| self.kept(question)) else {
            return false;
        };
        let mut state = self.state();
        let related = task::related(message.root().get("params"));
        if let Some(task) = related.as_deref().filter(|task| state.tasks.has(task)) {
            return state.tasks.keep(task, question, id);
        }
        let may_wait = Self::may_wait(&state);
        // A task that is not known yet is the work of a call that becomes one, and can still be asked in.
        let Some(input) = asked_of(&mut state, related.is_some()) else {
            return false;
        };
        if let Some(need) = question.lacking(input.abilities) {
            input.lacked = Some(need);
            return false;
        }
        if !input.takes(&question) || (!input.waits && !may_wait) {
            return false;
        }
        let id = Bytes::copy_from_slice(id.raw());
        input.questions.push(OpenQuestion { question, id });
        self.asking.store(true, Ordering::Relaxed);
        true
    }

    /// The question, counted until it is answered; `None` if there is no room for it.
    pub(super) fn kept(&self, question: Question) -> Option<Question> {
        question.kept(|params| self.room.hold_all(params))
    }

    /// Whether one more call may wait for its client.
    pub(super) fn may_wait(state: &SessionState) -> bool {
        state.in_flight.values().filter(|call| call.waits()).count() < MAX_WAITING
    }

    /// Asks the clients what has come together, in place of an answer.
    pub(super) fn ask_clients(&self) {
        let mut state = self.state();
        for (number, call) in &mut state.in_flight {
            let due = |input: &Input| !input.waits && !input.questions.is_empty();
            if call.input.as_deref().is_some_and(due) {
                self.ask_client(*number, call);
            }
        }
    }

    /// Whether the child has asked something since this was asked last.
    pub(super) fn was_asked(&self) -> bool {
        self.asking.swap(false, Ordering::Relaxed)
    }

    pub(super) fn ask_client(&self, number: u64, call: &mut InFlight) {
        let (Some(server), Some(input)) = (self.legacy_server(), call.input.as_deref_mut()) else {
            return;
        };
        input.round += 1;
        input.waits = true;
        let state = self.seal.seal(&Ticket {
            session: self.id.clone(),
            number,
            round: input.round,
            expires: self.seal.now() + PATIENCE.as_secs(),
            binding: input.binding,
        });
        let questions = input.questions.iter().map(|asked| &asked.question);
        let text = Bytes::from(input::required(&call.id, questions, &state, server.info()));
        call.deadline = Instant::now() + PATIENCE;
        (call.logs, call.progress_token) = (None, None);
        call.settle(None, text.len());
        // No more than its questions are.
        call.stream.end(Event::Answer(self.room.hold_anyway(text)));
    }

    /// Gives the child what the call answers of these. What it does not answer, or not with
    /// what was asked for, is left to be asked again.
    pub(super) fn give_answers(
        &self,
        questions: &mut Vec<OpenQuestion>,
        call: &Call,
    ) -> Result<(), SendError> {
        let responses = call.param("inputResponses");
        let mut written = Ok(());
        questions.retain(|asked| {
            let given = responses
                .and_then(|all| all.get(&asked.question.key))
                .filter(|given| asked.question.fits(*given));
            let Some(given) = given.filter(|_| written.is_ok()) else {
                return true;
            };
            if asked.id.is_empty() {
                return false;
            }
            written = self.write(Line::answering(&asked.id, given));
            written.is_err()
        });
        written
    }

    /// Goes on with the call that the state names. Nothing reaches the child but the
    /// answers to what it has asked.
    pub(super) fn go_on(
        self: &Arc<Self>,
        call: &Call,
        ticket: &Ticket,
        id: Id,
        owed: &mut Owed,
    ) -> Result<Exchange, SendError> {
        let mut guard = self.lock().map_err(|_| StateError::Lost)?;
        let state = &mut *guard;
        let now = Instant::now();
        state.last_used = now;
        self.log_from(state, call)?;
        let waiting = waiting_for(state, ticket).ok_or(StateError::Used)?;
        let input = waiting.input.as_deref_mut().ok_or(StateError::Used)?;
        input.abilities = Abilities::of(call);
        if let Some(About::Making(abilities)) = &mut waiting.task {
            // It has become one, or may: who no longer takes it must not be told of it.
            if !task::is_taken_by(call) {
                return Err(StateError::Mismatch.into());
            }
            *abilities = input.abilities;
        }
        // The client may come back with the same state: nothing has changed but what was taken.
        self.give_answers(&mut input.questions, call)?;
        waiting.id = id;
        waiting.stream = Stream::new(ticket.number, Style::Plain, &self.room);
        waiting.outcome = Some(OutcomeOwed::new(owed.take(), call, now));
        waiting.logs = Logs::of(call, || input.holder);
        waiting.progress_token = progress_token(call);
        waiting.deadline = now + self.call_timeout;
        input.waits = false;
        let exchange = waiting.stream.attach(None).recorded_in(&self.audit);
        if let Some(told) = input.told.take() {
            if let Some(call) = state.in_flight.remove(&ticket.number) {
                match told {
                    EarlyAnswer::Answer(answer, told) => {
                        let message = &told.message;
                        self.answered(state, ticket.number, call, (answer, message));
                    }
                    EarlyAnswer::Dropped => self.fail(state, call, Failure::NoRoom),
                }
            }
        } else if !input.questions.is_empty() {
            self.ask_client(ticket.number, waiting);
        }
        drop(guard);
        Ok(exchange.cancelling(Arc::downgrade(self)))
    }

    /// Whether that call waits for its client, who was asked so often.
    fn waits_for(&self, ticket: &Ticket) -> bool {
        waiting_for(&mut self.state(), ticket).is_some()
    }

    /// Ends the calls that wait for what a client says: it would come to another process.
    pub(super) fn give_up_waiting(&self, state: &mut SessionState) {
        let waiting: Vec<u64> = state
            .in_flight
            .iter()
            .filter(|(number, call)| call.waits() || call.number(**number).is_none())
            .map(|(number, _)| *number)
            .collect();
        for number in waiting {
            if let Some(call) = state.in_flight.remove(&number) {
                self.withdraw(state, &call);
                self.fail(state, call, Failure::ShuttingDown);
            }
        }
    }

    /// Keeps the answer to a call whose client is being asked, which began under the first of these numbers and was
    /// asked under the other; `false` if none such waits.
    pub(super) fn keeps_answer(
        &self,
        state: &mut SessionState,
        (number, asked): (u64, u64),
        (answer, message): (AnswerKind, &Message),
    ) -> bool {
        // One that has its answer takes no other.
        let keeps = |call: &InFlight| call.waits() && call.number(number) == Some(asked);
        if !state.in_flight.get(&number).is_some_and(keeps) {
            return false;
        }
        let Some(mut call) = state.in_flight.remove(&number) else {
            return false;
        };
        let kept = self.room.keep(message).map(|kept| (answer, kept));
        if kept.is_none() && call.makes_task() {
            // Its client will not hear of it.
            self.withdraw(state, &call);
            self.end_made(state, &call, message);
        }
        let goes_on = kept.is_some() && call.makes_task() && answer == AnswerKind::Result;
        if let Some(input) = call.input.as_deref_mut() {
            input.keep(kept, goes_on);
        }
        state.in_flight.insert(number, call);
        true
    }

    /// Tells the child that nobody will answer what it has asked in this call, nor know of the task that it has become.
    pub(super) fn withdraw(&self, state: &mut SessionState, call: &InFlight) {
        let told = call.input.as_deref().and_then(|input| input.told.as_ref());
        if let Some(EarlyAnswer::Answer(_, kept)) = told {
            self.end_made(state, call, &kept.message);
        }
        let asked = call.input.iter().flat_map(|input| &input.questions);
        for asked in asked.filter(|asked| !asked.id.is_empty()) {
            self.say(&OwnMessage::NobodyThere { id: &asked.id });
        }
    }

    /// Forgets what the child no longer wants to know.
    pub(super) fn forget_question(state: &mut SessionState, id: &[u8]) {
        let id = &*spelled(id);
        for input in state
            .in_flight
            .values_mut()
            .filter_map(|call| call.input.as_deref_mut())
        {
            input.questions.retain(|asked| spelled(&asked.id) != id);
        }
        state.tasks.forget_question(id);
    }
}

impl InFlight {
    /// Whether its client was asked something and has not come back.
    pub(super) fn waits(&self) -> bool {
        self.input.as_deref().is_some_and(|input| input.waits)
    }

    /// Whether the child has answered it meanwhile.
    pub(super) fn is_answered(&self) -> bool {
        self.input
            .as_deref()
            .is_some_and(|input| input.told.is_some())
    }

    /// Whether that answer is that it has become this task.
    pub(super) fn is_told_of(&self, task: &str) -> bool {
        let told = self.input.as_deref().and_then(|input| input.told.as_ref());
        let Some(EarlyAnswer::Answer(_, kept)) = told else {
            return false;
        };
        let made = kept.message.root().get("result");
        let made = made.and_then(|result| result.get("task"));
        made.and_then(task::id).as_deref() == Some(task)
    }
}

impl Sessions {
    /// The session in which the call waits that this one goes on with; `None` if it
    /// goes on with none of a gateway's. Sends nothing and starts nothing.
    pub fn awaiting(
        &self,
        identity: &Identity,
        call: &Call,
    ) -> Result<Option<Arc<Session>>, StateError> {
        let seal = self.seal();
        let Some(state) = seal::brought(call).filter(|state| seal.is_named_in(state)) else {
            return Ok(None);
        };
        let ticket = open(seal, &state, &seal::holder(identity), call)?;
        let session = self
            .find(&ticket.session)
            .filter(|session| session.is_usable())
            .ok_or(StateError::Lost)?;
        if session.waits_for(&ticket) {
            Ok(Some(session))
        } else {
            Err(StateError::Used)
        }
    }
}

/// What the state says, if it was given to this caller for this call.
pub(super) fn open(
    seal: &seal::Seal,
    state: &str,
    holder: &Binding,
    call: &Call,
) -> Result<Ticket, StateError> {
    let ticket = seal.open(state)?;
    if ticket.binding == seal::binding(holder, call) {
        Ok(ticket)
    } else {
        Err(StateError::Mismatch)
    }
}

pub(super) fn waiting_for<'a>(
    state: &'a mut SessionState,
    ticket: &Ticket,
) -> Option<&'a mut InFlight> {
    let call = state.in_flight.get_mut(&ticket.number)?;
    let input = call.input.as_deref()?;
    (input.waits && input.round == ticket.round && input.binding == ticket.binding).then_some(call)
}

/// The call that a child's question is asked in. The child names none, so it is the
/// latest that somebody reads; where calls of several callers are open it might be
/// another's, and then it is none.
fn asked_of(state: &mut SessionState, in_task: bool) -> Option<&mut Input> {
    let mut holder = None;
    let mut best: Option<(bool, u64)> = None;
    for (number, call) in &state.in_flight {
        let Some(input) = call.input.as_deref() else {
            continue;
        };
        if *holder.get_or_insert(input.holder) != input.holder {
            return None;
        }
        if input.told.is_none() && (!in_task || call.makes_task()) {
            best = best.max(Some((!input.waits, *number)));
        }
    }
    let (_, number) = best?;
    state.in_flight.get_mut(&number)?.input.as_deref_mut()
}

/// How long a client may take to come back with what it was asked: people read, think and type.
pub(super) const PATIENCE: Duration = Duration::from_secs(600);
/// How long a child's further questions are waited for, to be asked together.
pub(super) const GATHER: Duration = Duration::from_millis(20);
/// What one call may ask at once, and its bytes; more is refused to the child. For clients of both eras.
pub(super) const MAX_QUESTIONS: usize = 16;
pub(super) const MAX_ASKED_BYTES: usize = 1 << 20;
/// Calls of a session that wait for their clients; no further one may ask.
const MAX_WAITING: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{
        outbox::OutboxReader,
        pump::{self, MAX_ANSWERED_ID},
        room::Rooms,
        testing::{bridged, bridged_in, tried, tried_by},
    };

    fn message(text: &str) -> Message {
        Message::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    /// A bridged session, and what its child is told.
    fn session() -> (Arc<Session>, OutboxReader) {
        bridged("{}")
    }

    fn call(session: &Arc<Session>, who: &str) -> Exchange {
        let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","_meta":{"io.modelcontextprotocol/clientCapabilities":{"elicitation":{}}}}}"#;
        send(session, body, who)
    }

    fn send(session: &Arc<Session>, body: &str, who: &str) -> Exchange {
        tried_by(who, session, body).unwrap()
    }

    /// The call again, with these responses to what it was asked.
    fn back(asked: Option<Event>, responses: &str) -> String {
        let Some(Event::Answer(asked)) = asked else {
            panic!("nothing was asked");
        };
        let asked = Message::parse(asked).unwrap();
        let result = asked.root().get("result").unwrap();
        let state = result.get("requestState").and_then(Value::as_str).unwrap();
        format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"x","requestState":"{state}","inputResponses":{{{responses}}},"_meta":{{"io.modelcontextprotocol/clientCapabilities":{{"elicitation":{{}}}}}}}}}}"#
        )
    }

    fn ask(session: &Session, id: usize, size: usize) -> bool {
        let text = "x".repeat(size);
        let question = message(&format!(
            r#"{{"id":{id},"method":"elicitation/create","params":{{"message":"{text}"}}}}"#
        ));
        let id = question.root().get("id").unwrap();
        session.question(&question, "elicitation/create", id)
    }

    /// mcp-M3: where several callers share a child, nobody is asked another's question.
    #[tokio::test]
    async fn a_question_that_may_be_anothers_is_asked_of_nobody() {
        let (session, _lines) = session();
        assert!(!ask(&session, 0, 1), "nobody calls");
        let mut alice = call(&session, "alice");
        let bob = call(&session, "bob");
        assert!(!ask(&session, 1, 1));
        drop(bob);
        assert!(ask(&session, 2, 1));
        session.ask_clients();
        let Some(Event::Answer(text)) = alice.next().await else {
            panic!("nothing was asked");
        };
        assert!(
            text.starts_with(br#"{"jsonrpc":"2.0","id":1,"result":{"resultType":"input_required""#)
        );
        // Her call waits, so it counts, and her question keeps others from being asked in it.
        assert_eq!(session.in_flight(), 1);
        let _bob = call(&session, "bob");
        assert!(!ask(&session, 3, 1));
    }

    /// mcp-M2: of each state that a call is given in its rounds the last alone is good.
    #[tokio::test]
    async fn a_state_is_of_one_round() {
        let (session, _lines) = session();
        let mut alice = call(&session, "alice");
        assert!(ask(&session, 0, 1) && ask(&session, 1, 1));
        session.ask_clients();
        let first = back(alice.next().await, r#""0":{"action":"decline"}"#);
        let asked = send(&session, &first, "alice").next().await;
        // One question is still open, so there is another round.
        let second = back(asked, r#""1":{"action":"decline"}"#);
        let used = tried(&session, &first).err();
        assert_eq!(used, Some(SendError::State(StateError::Used)));
        assert_eq!(session.in_flight(), 1);
        let mut goes_on = send(&session, &second, "alice");
        assert!(pump::take(&session, r#"{"id":1,"result":{}}"#.into()));
        assert!(matches!(goes_on.next().await, Some(Event::Answer(_))));
    }

    /// conn-3: what a child answers while the clients of its calls are still asked is kept for them as far as there is
    /// room; a call for whose answer there is none ends, and says so.
    #[tokio::test]
    async fn answers_that_are_kept_for_who_is_asked_have_a_size() {
        let (session, _lines) = session();
        let mut calls = Vec::new();
        for number in 1..=MAX_WAITING {
            calls.push(call(&session, "alice"));
            assert!(ask(&session, number, 1));
            session.ask_clients();
        }
        let text = "x".repeat(2 << 20);
        for number in 1..=MAX_WAITING {
            let answer = format!(r#"{{"id":{number},"result":{{"v":"{text}"}}}}"#);
            assert!(pump::take(&session, answer.into()));
        }
        let (mut kept, mut dropped) = (0, 0);
        for mut asked in calls {
            let again = back(asked.next().await, "");
            match send(&session, &again, "alice").next().await {
                Some(Event::Answer(answer)) => kept += usize::from(answer.len() > text.len()),
                Some(Event::Failed(Failure::NoRoom)) => dropped += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!((6..=8).contains(&kept), "{kept}");
        assert_eq!(kept + dropped, MAX_WAITING);
        assert_eq!(session.in_flight(), 0);
    }

    /// conn-3: what a child asks is counted until it is answered, and so is what it answers before, with where each of its
    /// many values stands. A question that there is no room for is asked of nobody.
    #[tokio::test]
    async fn what_is_asked_and_answered_meanwhile_is_counted() {
        let rooms = Rooms::new(1);
        let (session, _lines) = bridged_in("{}", &rooms);
        let mut alice = call(&session, "alice");
        let size = 50 << 10;
        for id in 0..4 {
            assert!(ask(&session, id, size));
            assert!(rooms.taken() >= (id + 1) * size);
        }
        let rest = session.room.claim((16 << 20) - rooms.taken()).unwrap();
        assert!(!ask(&session, 4, 1));
        drop(rest);
        session.ask_clients();
        // One that the client has answered is kept no longer.
        let back = back(alice.next().await, r#""0":{"action":"decline"}"#);
        let asks = send(&session, &back, "alice").next().await;
        let back = self::back(asks, "");
        let asked = rooms.taken();
        assert!((3 * size..4 * size).contains(&asked), "{asked}");
        let many = "0,".repeat(30 << 10);
        let answer = format!(r#"{{"id":1,"result":{{"v":[{many}0]}}}}"#);
        assert!(pump::take(&session, answer.clone().into()));
        // What it has asked is not asked any more.
        let kept = rooms.taken();
        assert!(kept > 8 * answer.len(), "{kept}");
        let told = send(&session, &back, "alice").next().await;
        assert!(matches!(told, Some(Event::Answer(_))), "{told:?}");
        drop(told);
        assert_eq!(rooms.taken(), 0);
    }

    /// A child that asks under an id that is too long to be kept waits for an answer all the same.
    #[tokio::test]
    async fn a_question_with_too_long_an_id_is_answered_here() {
        for (length, is_asked) in [(254, true), (255, false), (MAX_ANSWERED_ID - 2, false)] {
            let (session, mut lines) = session();
            let _alice = call(&session, "alice");
            lines.recv().await.unwrap();
            let id = "q".repeat(length);
            let asks = format!(
                r#"{{"id":"{id}","method":"elicitation/create","params":{{"message":"?"}}}}"#
            );
            assert!(pump::take(&session, asks.clone().into()));
            let nobody = format!(r#"{{"jsonrpc":"2.0","id":"{id}","error":{{"code":-32601,"#);
            let told = lines.try_recv();
            assert_eq!(told.is_none(), is_asked);
            assert!(told.is_none_or(|told| told.starts_with(nobody.as_bytes())));
            let more = "q".repeat(MAX_ANSWERED_ID);
            assert!(!pump::take(&session, asks.replace(&id, &more).into()));
        }
    }

    #[tokio::test]
    async fn what_is_asked_at_once_has_a_size() {
        let (session, _lines) = session();
        let _alice = call(&session, "alice");
        assert!(ask(&session, 0, MAX_ASKED_BYTES / 2));
        assert!(!ask(&session, 1, MAX_ASKED_BYTES / 2));
        assert!(!ask(&session, 0, 1), "it has that name already");
        assert!(ask(&session, 2, 1));
    }

    /// A child that spells its id otherwise when it takes a question back means the same one.
    #[tokio::test]
    async fn a_question_is_taken_back_under_any_spelling_of_its_id() {
        let (session, _lines) = session();
        let _alice = call(&session, "alice");
        let asks = r#"{"id":"\u00e9","method":"elicitation/create","params":{"message":"?"}}"#;
        assert!(pump::take(&session, asks.into()));
        let takes_back = r#"{"method":"notifications/cancelled","params":{"requestId":"é"}}"#;
        assert!(pump::take(&session, takes_back.into()));
        session.ask_clients();
        let waits = |call: &InFlight| call.waits();
        assert!(!session.state().in_flight.values().any(waits));
    }

    /// The deadline of a call that waits is its own, and its child hears that nobody will answer.
    #[tokio::test(start_paused = true)]
    async fn a_call_whose_client_does_not_come_back_ends() {
        let (session, mut lines) = session();
        let _alice = call(&session, "alice");
        lines.recv().await.unwrap();
        assert!(ask(&session, 7, 1));
        session.ask_clients();
        let (now, idle) = (Instant::now(), Duration::from_secs(3600));
        session.sweep(now + PATIENCE - Duration::from_secs(1), idle);
        assert_eq!(session.in_flight(), 1);
        session.sweep(now + PATIENCE, idle);
        assert_eq!(session.in_flight(), 0);
        let told = [lines.recv().await.unwrap(), lines.recv().await.unwrap()].concat();
        let told = String::from_utf8(told).unwrap();
        assert!(told.contains("notifications/cancelled") && told.contains(r#""id":7,"error""#));
    }
}

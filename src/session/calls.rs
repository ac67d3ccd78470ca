//! The calls of a session: from the line that is written to the answer or the failure.
//!
//! Every request has its [`InFlight`] from `request` to `finish`, which is the one way out: it puts the outcome on
//! record and then tells the client. Used by `conversation` for what clients send, and by `pump` for what the child
//! answers.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    audit::{Owed, Reason},
    auth::Identity,
    mcp::{Call, Era, Id, Message, method},
    session::{
        SendError, Session,
        conversation::SessionState,
        exchange::{Event, Failure},
        line::Line,
        load::Slot,
        logs::Logs,
        owed::OutcomeOwed,
        own::OwnMessage,
        pending::{
            self, Input,
            seal::{self, Binding, StateError},
            visits::Away,
        },
        reversed::{Again, way_to_modern},
        rewrite::{progress_token, renumbered},
        stream::{Exchange, Stream, Style},
        subscriptions::{CallSubscription, subscribing::SubscriptionEnd},
        tasks::{About, following::TaskOutcome},
    },
};

/// A request that the child has not answered.
pub(super) struct InFlight {
    pub(super) id: Id,
    pub(super) stream: Arc<Stream>,
    /// It is answered by then, unless it is meant to stay open.
    pub(super) deadline: Instant,
    pub(super) progress_token: Option<Bytes>,
    /// Its method, if its answer is filtered.
    pub(super) list: Option<&'static str>,
    /// Its answer says who may keep it.
    pub(super) cacheable: bool,
    /// Which log messages it asked for.
    pub(super) logs: Option<Box<Logs>>,
    /// `None` for what the gateway itself asked, and where the client was told already.
    pub(super) outcome: Option<OutcomeOwed>,
    /// What it subscribes to.
    pub(super) subscription: Option<CallSubscription>,
    /// What is needed to make a legacy client's call to a modern child again.
    pub(super) again: Option<Box<Again>>,
    /// It opens the session: who opens it decides what becomes of it.
    pub(super) opens: bool,
    /// What a legacy child may ask a modern client in it.
    pub(super) input: Option<Box<Input>>,
    /// What a modern client's request has to do with a legacy child's task.
    pub(super) task: Option<About>,
    /// Its slot among all calls, given back with it; the gateway's own have none.
    pub(super) slot: Option<Slot>,
}

impl InFlight {
    /// One of which nothing more is known.
    fn new(id: Id, stream: Arc<Stream>, deadline: Instant) -> Self {
        Self {
            id,
            stream,
            deadline,
            progress_token: None,
            list: None,
            cacheable: false,
            logs: None,
            outcome: None,
            subscription: None,
            again: None,
            opens: false,
            input: None,
            task: None,
            slot: None,
        }
    }
}

/// A client's call that is to be made.
struct ClientCall<'a> {
    call: &'a Call,
    identity: &'a Identity,
    /// Who makes it, where a legacy child may ask him something.
    holder: Option<Binding>,
    id: Id,
    owed: &'a mut Owed,
}

impl ClientCall<'_> {
    /// The call from now on, whose answer comes on that stream.
    fn in_flight(self, session: &Session, stream: Arc<Stream>, now: Instant) -> InFlight {
        let (call, method) = (self.call, self.call.method());
        let holder = || self.holder.unwrap_or_else(|| seal::holder(self.identity));
        InFlight {
            progress_token: progress_token(call),
            list: method::filtered_list(method),
            cacheable: method::is_cacheable(method),
            logs: Logs::of(call, holder),
            outcome: Some(OutcomeOwed::new(self.owed.take(), call, now)),
            again: InFlight::again(session, call),
            opens: method == "initialize",
            input: self.holder.and_then(|holder| Input::of(call, &holder)),
            ..InFlight::new(self.id, stream, now + session.call_timeout)
        }
    }
}

impl Session {
    pub(super) fn request(
        self: &Arc<Self>,
        call: &Call,
        identity: &Identity,
        id: Id,
        owed: &mut Owed,
    ) -> Result<Exchange, SendError> {
        let bridged = self.legacy_server().is_some();
        let holder = bridged.then(|| seal::holder(identity));
        let mut away = None;
        if let Some(holder) = &holder
            && let Some(brought) = seal::brought(call)
        {
            let ticket = pending::open(&self.seal, &brought, holder, call)?;
            if ticket.session != self.id {
                return Err(StateError::Lost.into());
            }
            if !self.has_been_away(call, &ticket)? {
                return self.go_on(call, &ticket, id, owed);
            }
            away = Some(ticket);
        }
        let mut state = self.lock()?;
        let mut away = match away {
            Some(ticket) => Some(Away::taken(&mut state, &ticket)?),
            None => None,
        };
        // A legacy child would take a call that goes on for one that begins.
        // Of a task's it is told apart by that.
        if bridged && away.is_none() && goes_on(call) && !call.method().starts_with("tasks/") {
            return Err(SendError::NotAsked);
        }
        let mut slot = away.as_mut().and_then(Away::slot);
        let made = ClientCall {
            call,
            identity,
            holder,
            id,
            owed,
        };
        let made = self.make(&mut state, made, &mut slot);
        match away {
            // Who is told to try again finds it as it was.
            Some(away) if made.is_err() => away.waits_on(&mut state, slot),
            Some(away) => self.withdraw(&mut state, &away.call),
            None => {}
        }
        made
    }

    /// Makes the call, in its `slot` or one of its own.
    fn make(
        self: &Arc<Self>,
        state: &mut SessionState,
        made: ClientCall<'_>,
        slot: &mut Option<Slot>,
    ) -> Result<Exchange, SendError> {
        let call = made.call;
        state.admits(self.era, &made.id)?;
        if slot.is_none() {
            *slot = Some(self.calls.take(self.principal())?);
        }
        self.log_from(state, call)?;
        let subscription = self.subscription_of(state, call, made.identity)?;
        let subscribes = subscription.is_some();
        let task = self.about(state, call);
        let way = self.way_of(state, call, &made.id)?;
        // Something else may have been said to the child first.
        let number = state.next;
        let answered = self.written_or_answered(way)?;
        let now = Instant::now();
        state.next += 1;
        state.last_used = now;
        state.progress.waits(call, number);
        state.tasks.strays.called(call.method());
        let stream = Stream::new(number, self.style(state), &self.room);
        let exchange = stream.attach(None).recorded_in(&self.audit);
        let mut begun = made.in_flight(self, stream, now);
        (begun.subscription, begun.task, begun.slot) = (subscription, task, slot.take());
        state.in_flight.insert(number, begun);
        state.hurry(now);
        if subscribes {
            self.has_begun_to_subscribe(state, number);
        }
        self.look_at_watched(state, now);
        if let Some(text) = answered
            && let Some(call) = state.in_flight.remove(&number)
        {
            self.finish(state, call, None, text.len(), Event::Answer(text));
        }
        Ok(match self.era {
            Era::Legacy => exchange,
            Era::Modern => exchange.cancelling(Arc::downgrade(self)),
        })
    }

    /// Writes what goes to the child; the answer of what is answered here.
    fn written_or_answered(&self, way: RequestWay) -> Result<Option<Bytes>, SendError> {
        match way {
            RequestWay::Child(line) => self.write(line).map(|()| None),
            RequestWay::Here(text) => Ok(Some(text.into())),
            RequestWay::Open => Ok(None),
        }
    }

    /// Asks something of the gateway's own, within `patience`.
    pub(super) fn ask_own<'a>(
        &self,
        patience: Duration,
        own: impl FnOnce(u64) -> OwnMessage<'a>,
    ) -> Result<Exchange, SendError> {
        let mut state = self.lock()?;
        let number = state.next;
        self.write(own(number).line())?;
        state.next += 1;
        let stream = Stream::new(number, Style::Plain, &self.room);
        let exchange = stream.attach(None);
        let deadline = Instant::now() + patience;
        let begun = InFlight::new(Id::own(), stream, deadline);
        state.in_flight.insert(number, begun);
        Ok(exchange)
    }

    /// A modern client has closed the stream of its request: that is the cancel (mcp-T7).
    pub(super) fn abandon(&self, number: u64) {
        let mut state = self.state();
        if let Some(call) = state.in_flight.remove(&number) {
            // A legacy child knows of no subscription.
            if call.bridged_subscription().is_none() {
                self.say(&OwnMessage::Cancelled {
                    number,
                    reason: "the client has gone",
                });
            }
            self.withdraw(&mut state, &call);
            let gone = Event::Failed(Failure::Cancelled);
            let why = self.audit.why_unanswered();
            self.finish(&mut state, call, Some(why), 0, gone);
        }
    }

    /// The child's answer to request `number`, which stands at `id` in it.
    pub(super) fn answer(&self, number: u64, answer: AnswerKind, message: &Message) -> Answered {
        let ahead = self.worded_ahead(number, answer, message);
        let outcome = self.outcome_of_task(answer, message);
        let mut state = self.state();
        let asked = number;
        if self.result_answered(&mut state, asked, answer, message)
            || self.look_answered(&mut state, asked, answer, message)
            || self.subscribe_answered(&mut state, asked, answer)
            || self.listening_ended(
                &mut state,
                asked,
                SubscriptionEnd::Answered(answer, message),
            )
        {
            return Answered::Delivered;
        }
        let number = state.reversed.first(number);
        if self.keeps_answer(&mut state, (number, asked), (answer, message)) {
            return Answered::Delivered;
        }
        match state.in_flight.remove(&number) {
            // It is not what the child was asked last, or was answered already.
            Some(call) if call.number(number) != Some(asked) => {
                state.in_flight.insert(number, call);
                self.end_made_late(&mut state, message);
                Answered::Late
            }
            Some(call) => {
                self.takes_answer(
                    &mut state,
                    number,
                    call,
                    (answer, message),
                    (ahead, outcome),
                );
                Answered::Delivered
            }
            // Cancelled or timed out: the child could not know (fault-17).
            None if (1..state.next).contains(&number) => {
                self.end_made_late(&mut state, message);
                Answered::Late
            }
            None => Answered::Unknown,
        }
    }

    /// The child has answered the call: its client is told, or is asked first for what the answer wants. What was made of
    /// that answer beforehand is its wording for the client, and the outcome of a task.
    fn takes_answer(
        &self,
        state: &mut SessionState,
        number: u64,
        mut call: InFlight,
        (answer, message): (AnswerKind, &Message),
        (worded, outcome): (Option<Bytes>, Option<TaskOutcome>),
    ) {
        state.last_used = Instant::now();
        if answer == AnswerKind::Result {
            state.has_subscribed(&mut call);
        }
        if answer != AnswerKind::Neither {
            self.progresses(state, number, &call, message);
        }
        let reversed = self.modern_server().is_some() && answer == AnswerKind::Result;
        let call = if reversed {
            self.asks_for_more(state, number, call, (message, outcome))
        } else {
            Some(call)
        };
        let call = call.and_then(|call| self.sends_away(state, number, call, (answer, message)));
        match (call, worded) {
            (Some(call), Some(text)) if call.task.is_none() => {
                self.delivered(state, call, answer, text);
            }
            (Some(call), _) => self.answered(state, number, call, (answer, message)),
            (None, _) => {}
        }
    }

    /// What the child has answered to a call, which may be a task.
    pub(super) fn answered(
        &self,
        state: &mut SessionState,
        number: u64,
        call: InFlight,
        (answer, message): (AnswerKind, &Message),
    ) {
        let call = if call.task.is_some() && answer != AnswerKind::Neither {
            self.task_answered(state, number, call, message)
        } else {
            Some(call)
        };
        if let Some(call) = call {
            self.deliver(state, call, answer, message);
        }
    }

    /// What the child was asked under that number will have no answer.
    pub(super) fn fail_one(&self, number: u64, failure: Failure) {
        let mut state = self.state();
        let asked = number;
        if self.result_failed(&mut state, asked, failure)
            || self.look_failed(&mut state, asked)
            || self.subscribe_answered(&mut state, asked, AnswerKind::Neither)
            || self.listening_ended(&mut state, asked, SubscriptionEnd::Failed(failure))
        {
            return;
        }
        let number = state.reversed.first(asked);
        let call = state.in_flight.get_mut(&number);
        let Some(call) = call.filter(|call| call.number(number) == Some(asked)) else {
            return;
        };
        // How a task stands is asked again.
        if !call.looks_later()
            && let Some(call) = state.in_flight.remove(&number)
        {
            self.fail(&mut state, call, failure);
        }
    }

    pub(super) fn fail(&self, state: &mut SessionState, call: InFlight, failure: Failure) {
        self.finish(
            state,
            call,
            Some(failure.reason()),
            0,
            Event::Failed(failure),
        );
    }

    /// The way out of every request: the outcome is recorded, then the client told.
    pub(super) fn finish(
        &self,
        state: &mut SessionState,
        mut call: InFlight,
        mut reason: Option<Reason>,
        mut bytes_out: usize,
        mut event: Event,
    ) {
        if let Event::Answer(text) = event {
            event = match self.hold(state, text) {
                Some(text) => Event::Answer(text),
                None => {
                    (reason, bytes_out) = (Some(Failure::NoRoom.reason()), 0);
                    Event::Failed(Failure::NoRoom)
                }
            };
        }
        if call.opens && matches!(event, Event::Answer(_)) {
            state.reversed.opening = call.outcome.take();
        }
        call.settle(reason, bytes_out);
        self.forget_again(state, &call);
        if call.awaits_acknowledgement() {
            self.ask_for_next(state);
        }
        if let Some(subscription) = call.bridged_subscription() {
            self.unsubscribe(state, subscription);
        }
        call.stream.end(event);
        // A client that lost the connection may come back for the answer.
        state.streams.keep(call);
    }

    /// Records what became of the `initialize` that a child did not know.
    pub(super) fn settle_opening(&self, reason: Option<Reason>, bytes_out: usize) {
        let opening = self.state().reversed.opening.take();
        OutcomeOwed::settle(opening, reason, bytes_out);
    }
}

impl Session {
    /// Whether a client's request goes to the child, under the number `state.next`, or is answered here.
    fn way_of(
        &self,
        state: &mut SessionState,
        call: &Call,
        id: &Id,
    ) -> Result<RequestWay, SendError> {
        if let Some(server) = self.modern_server() {
            return Ok(way_to_modern(state, server, call, id));
        }
        if let Some(server) = self.legacy_server()
            && let Some(way) = self.way_of_task(state, server, call, id)?
        {
            return Ok(way);
        }
        Ok(match (self.legacy_server(), call.method()) {
            // A legacy child has said it all already, and knows of no subscription.
            (Some(server), method::DISCOVER) => RequestWay::Here(server.discovered(id)),
            (Some(_), method::LISTEN) => RequestWay::Open,
            (bridge, _) => RequestWay::Child(renumbered(call, state.next, bridge.is_some())),
        })
    }
}

/// What becomes of a request.
pub(super) enum RequestWay {
    /// This line goes to the child.
    Child(Line),
    /// It is answered here.
    Here(Vec<u8>),
    /// It stays open here.
    Open,
}

/// Whether the request answers what an earlier one was asked.
fn goes_on(call: &Call) -> bool {
    call.param("requestState").is_some() || call.param("inputResponses").is_some()
}

/// What a child's answer holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum AnswerKind {
    Result,
    Error,
    /// Both, or neither: no JSON-RPC answer (json-17).
    Neither,
}

/// What became of an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answered {
    Delivered,
    Late,
    Unknown,
}

//! The calls of a session: from the line that is written to the answer or the failure.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    audit::{Event as Audited, Outcome, Reason, RequestId},
    mcp::{Call, Era, Id, Message, bridge, method},
    session::{
        SendError, Session,
        conversation::State,
        exchange::{Event, Failure},
        load::Place,
        own::OwnMessage,
        rewrite::{progress_token, renumbered},
        stream::{Exchange, Stream, Style},
    },
};

/// A request that the child has not answered.
pub(super) struct InFlight {
    pub(super) id: Id,
    pub(super) stream: Arc<Stream>,
    /// `None` for one that is meant to stay open.
    pub(super) deadline: Option<Instant>,
    pub(super) progress_token: Option<Bytes>,
    /// Its method, if its answer is filtered.
    pub(super) list: Option<&'static str>,
    /// Its answer says who may keep it.
    cacheable: bool,
    /// From which level on it asked for log messages.
    pub(super) logs: Option<usize>,
    /// `None` for what the gateway itself asked.
    outcome: Option<OutcomeOwed>,
    /// Its place among all calls, given back with it.
    _place: Option<Place>,
}

/// The record that every permitted request owes the auditors.
struct OutcomeOwed {
    request: RequestId,
    started: Instant,
    bytes_in: usize,
}

impl Session {
    pub(super) fn request(
        self: &Arc<Self>,
        call: &Call,
        id: Id,
        request: RequestId,
    ) -> Result<Exchange, SendError> {
        let mut state = self.lock()?;
        state.admits(self.era, &id)?;
        let place = self.calls.take(self.owner().principal_key())?;
        let number = state.next;
        let bridged = self.bridge.get().is_some();
        // A legacy child would take a call that goes on for one that begins.
        if bridged && goes_on(call) {
            return Err(SendError::NotAsked);
        }
        let discovered = match self.bridge.get() {
            Some(server) if call.method() == method::DISCOVER => Some(server.discovered(&id)),
            Some(_) => {
                self.write(renumbered(call, number, true))?;
                None
            }
            None => {
                self.write(renumbered(call, number, false))?;
                None
            }
        };
        let now = Instant::now();
        state.next += 1;
        state.last_used = now;
        let outcome = OutcomeOwed {
            request,
            started: now,
            bytes_in: call.message().bytes().len(),
        };
        let stream = Stream::new(number, self.style(&state));
        let exchange = stream.attach(None);
        state.in_flight.insert(
            number,
            InFlight {
                id,
                stream,
                deadline: (call.method() != method::LISTEN || bridged)
                    .then(|| now + self.call_timeout),
                progress_token: progress_token(call),
                list: method::filtered_list(call.method()),
                cacheable: method::is_cacheable(call.method()),
                logs: logs(call),
                outcome: Some(outcome),
                _place: Some(place),
            },
        );
        // A legacy child has said it all already.
        if let Some(text) = discovered.map(Bytes::from)
            && let Some(call) = state.in_flight.remove(&number)
        {
            self.finish(&mut state, call, None, text.len(), Event::Answer(text));
        }
        Ok(match self.era {
            Era::Legacy => exchange,
            Era::Modern => exchange.cancelling(Arc::downgrade(self)),
        })
    }

    /// Asks something of the gateway's own, within `patience`.
    pub(super) fn ask_own(
        &self,
        patience: Duration,
        own: impl FnOnce(u64) -> OwnMessage<'static>,
    ) -> Result<Exchange, SendError> {
        let mut state = self.lock()?;
        let number = state.next;
        self.write(own(number).line())?;
        state.next += 1;
        let stream = Stream::new(number, Style::Plain);
        let exchange = stream.attach(None);
        state.in_flight.insert(
            number,
            InFlight {
                id: Id::own(),
                stream,
                deadline: Some(Instant::now() + patience),
                progress_token: None,
                list: None,
                cacheable: false,
                logs: None,
                outcome: None,
                _place: None,
            },
        );
        Ok(exchange)
    }

    /// A modern client has closed the stream of its request: that is the cancel (mcp-T7).
    pub(super) fn abandon(&self, number: u64) {
        let mut state = self.state();
        if let Some(call) = state.in_flight.remove(&number) {
            self.say(&OwnMessage::Cancelled {
                number,
                reason: "the client has gone",
            });
            let gone = Event::Failed(Failure::Cancelled);
            self.finish(&mut state, call, Some(Reason::ClientGone), 0, gone);
        }
    }

    /// The child's answer to request `number`, which stands at `id` in it.
    pub(super) fn answer(
        &self,
        number: u64,
        answer: Answer,
        message: &Message,
        id: Range<usize>,
    ) -> Answered {
        let mut state = self.state();
        match state.in_flight.remove(&number) {
            Some(call) => {
                state.last_used = Instant::now();
                match answer {
                    Answer::Neither => self.fail(&mut state, call, Failure::BadAnswer),
                    Answer::Result | Answer::Error => {
                        let text = Bytes::from(match self.bridge.get() {
                            Some(server) => server.answered(message, &call.id, call.cacheable),
                            None => message.with(&[(id, call.id.as_json())]),
                        });
                        let reason = (answer == Answer::Error).then_some(Reason::ServerError);
                        let bytes = text.len();
                        self.finish(&mut state, call, reason, bytes, Event::Answer(text));
                    }
                }
                Answered::Delivered
            }
            // Cancelled or timed out: the child could not know (fault-17).
            None if (1..state.next).contains(&number) => Answered::Late,
            None => Answered::Unknown,
        }
    }

    /// Fails the calls that are meant to stay open.
    pub(super) fn fail_open_ended(&self, state: &mut State, failure: Failure) {
        let open: Vec<u64> = state
            .in_flight
            .iter()
            .filter(|(_, call)| call.deadline.is_none())
            .map(|(number, _)| *number)
            .collect();
        for call in open {
            if let Some(call) = state.in_flight.remove(&call) {
                self.fail(state, call, failure);
            }
        }
    }

    pub(super) fn fail(&self, state: &mut State, call: InFlight, failure: Failure) {
        self.finish(
            state,
            call,
            Some(failure.reason()),
            0,
            Event::Failed(failure),
        );
    }

    /// The way out of every request: the outcome is recorded, then the client told.
    fn finish(
        &self,
        state: &mut State,
        call: InFlight,
        reason: Option<Reason>,
        bytes_out: usize,
        event: Event,
    ) {
        if let Some(owed) = &call.outcome {
            self.audit.record(&Audited::Outcome(Outcome {
                request_id: owed.request,
                reason,
                status: None,
                duration: owed.started.elapsed(),
                bytes_in: owed.bytes_in as u64,
                bytes_out: bytes_out as u64,
            }));
        }
        call.stream.end(event);
        // A client that lost the connection may come back for the answer.
        state.listening.keep(call);
    }
}

/// Whether the request answers what an earlier one was asked.
fn goes_on(call: &Call) -> bool {
    call.params().is_some_and(|params| {
        params.get("requestState").is_some() || params.get("inputResponses").is_some()
    })
}

/// From which level on the request wants to hear log messages.
fn logs(call: &Call) -> Option<usize> {
    let level = call.meta("io.modelcontextprotocol/logLevel")?.as_str()?;
    bridge::log_level(&level)
}

/// What a child's answer holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
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

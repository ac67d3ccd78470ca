//! Subscriptions of modern clients to a legacy child.
//!
//! The child knows nothing of them: it is told which resources matter to
//! anybody, and what it says of changes goes to each subscription that wants
//! it, under that one's name (mcp-T28).

use bytes::Bytes;

use crate::{
    json::Value,
    mcp::{
        Call, Era, Message,
        subscription::{self, Wanted},
        task,
    },
    session::{
        SendError, Session,
        calls::InFlight,
        conversation::State,
        exchange::{Event, Failure},
        own::OwnMessage,
    },
};

impl Session {
    /// What the client will be told of what it wants, if this call subscribes at a legacy child.
    pub(super) fn subscribes(&self, state: &State, call: &Call) -> Option<Box<Wanted>> {
        let server = self.bridge.get()?;
        if call.method() != crate::mcp::method::LISTEN {
            return None;
        }
        let mut wanted = Wanted::read(call).told_by(server.capabilities());
        if !wanted.tasks.is_empty() && !task::is_taken_by(call) {
            // It is told so instead.
            return None;
        }
        // Another's are as unknown as none.
        wanted
            .tasks
            .retain(|task| state.tasks.known.contains_key(task));
        Some(Box::new(wanted))
    }

    /// Has the child tell of what nobody wanted to hear of before.
    pub(super) fn subscribe(&self, state: &mut State, wanted: &Wanted) -> Result<(), SendError> {
        for uri in &wanted.uris {
            if is_wanted(state, uri) {
                continue;
            }
            let number = state.next;
            self.write(OwnMessage::Subscribe { number, uri }.line())?;
            // Its answer is not waited for, and counts as late.
            state.next += 1;
        }
        for task in &wanted.tasks {
            if let Some(known) = state.tasks.known.get_mut(task) {
                known.watched.begin();
            }
        }
        Ok(())
    }

    /// Has the child no longer tell of what nobody else wants to hear of.
    pub(super) fn unsubscribe(&self, state: &mut State, wanted: &Wanted) {
        for uri in &wanted.uris {
            if is_wanted(state, uri) {
                continue;
            }
            let number = state.next;
            state.next += 1;
            self.say(&OwnMessage::Unsubscribe { number, uri });
        }
    }

    /// The child has ended a client's subscription by naming it, as it may in place of
    /// an answer (mcp-T28).
    pub(super) fn ended_by_child(&self, named: Value<'_>) -> bool {
        let mut state = self.state();
        let number = named.as_number().and_then(|number| number.parse().ok());
        let is_open = |number: &u64| {
            let call = state.in_flight.get(number);
            // A legacy child knows of none.
            call.is_some_and(|call| call.is_subscription() && call.wanted.is_none())
        };
        let Some(number) = number.filter(is_open) else {
            return false;
        };
        if let Some(call) = state.in_flight.remove(&number) {
            self.end_well(&mut state, call);
        }
        true
    }

    /// Fails the calls that are meant to stay open.
    pub(super) fn fail_open_ended(&self, state: &mut State, failure: Failure) {
        let open: Vec<u64> = state
            .in_flight
            .iter()
            .filter(|(_, call)| call.deadline.is_none())
            .map(|(number, _)| *number)
            .collect();
        for number in open {
            let Some(call) = state.in_flight.remove(&number) else {
                continue;
            };
            if self.era == Era::Modern && call.is_subscription() {
                // Its child goes on for the calls that are answered still.
                if call.wanted.is_none() {
                    self.say(&OwnMessage::Cancelled {
                        number,
                        reason: "shutting down",
                    });
                }
                self.end_well(state, call);
            } else {
                self.fail(state, call, failure);
            }
        }
    }

    /// Ends a subscription as one that its server has ended (mcp-T28).
    pub(super) fn end_well(&self, state: &mut State, call: InFlight) {
        let text = Bytes::from(match self.bridge.get() {
            Some(server) => server.ended(&call.id),
            None => subscription::ended(&call.id, b""),
        });
        self.finish(state, call, None, text.len(), Event::Answer(text));
    }

    /// Tells each subscription that wants it; `false` if there is none.
    pub(super) fn publish(&self, message: &Message, method: &str) -> bool {
        let state = self.state();
        let mut heard = false;
        for call in state.in_flight.values() {
            if call
                .wanted
                .as_ref()
                .is_some_and(|wanted| wanted.wants(method, message))
            {
                let text = subscription::labelled(message, &call.id);
                heard |= call.stream.tell(Event::Message(text.into()));
            }
        }
        heard
    }
}

impl InFlight {
    /// Whether it is meant to stay open.
    pub(super) fn is_subscription(&self) -> bool {
        self.deadline.is_none()
    }

    /// Tells a subscription's client what it will be told.
    pub(super) fn acknowledge(&self) {
        if let Some(wanted) = &self.wanted {
            let text = Bytes::from(wanted.acknowledged(&self.id));
            self.stream.tell(Event::Message(text));
        }
    }
}

fn is_wanted(state: &State, uri: &String) -> bool {
    let mut calls = state.in_flight.values();
    calls.any(|call| {
        call.wanted
            .as_ref()
            .is_some_and(|wanted| wanted.uris.contains(uri))
    })
}

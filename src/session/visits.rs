//! A legacy server's refusal that says where its user must go first (-32042), for a modern client.
//!
//! Modern MCP has no such code: the client is asked to have its user go there, as it is asked for
//! anything else, and when that is done its call is made again, as the older versions have it. Nothing
//! waits at the server meanwhile: it has answered. Used by `calls`.

use crate::{
    json::Value,
    mcp::{Call, Message, input::Question},
    session::{
        SendError, Session,
        calls::{Answer, InFlight},
        conversation::State,
        pending::waiting_for,
        seal::{StateError, Ticket},
    },
};

impl Session {
    /// Asks the client to have its user go where the child's answer says; the call is given back where
    /// that says nothing of the kind, or the client cannot.
    pub(super) fn sends_away(
        &self,
        state: &mut State,
        number: u64,
        mut call: InFlight,
        (answer, message): (Answer, &Message),
    ) -> Option<InFlight> {
        let input = call.input.as_deref_mut().filter(|_| call.task.is_none());
        let visits = (answer == Answer::Error).then(|| visits(message)).flatten();
        let (Some(input), Some(visits)) = (input, visits) else {
            return Some(call);
        };
        if self.room.is_full()
            || !Self::may_wait(state)
            || !input.sends_away(visits, (answer, message))
        {
            return Some(call);
        }
        self.ask_client(number, &mut call);
        state.in_flight.insert(number, call);
        None
    }

    /// Whether the client comes back from where its user had to go: then its call is to be made again.
    pub(super) fn has_been_away(&self, call: &Call, ticket: &Ticket) -> Result<bool, SendError> {
        let mut state = self.lock().map_err(|_| StateError::Lost)?;
        let waiting = waiting_for(&mut state, ticket).ok_or(StateError::Used)?;
        let input = waiting.input.as_deref();
        let has_been = input.is_some_and(|input| input.has_been_away(call));
        if has_been {
            state.in_flight.remove(&ticket.number);
        }
        Ok(has_been)
    }
}

/// Where the answer says that somebody must go.
fn visits(message: &Message) -> Option<Vec<Question>> {
    let error = message.root().get("error")?;
    let code = error.get("code").and_then(Value::as_number);
    let listed = error.get("data")?.get("elicitations")?;
    let visits: Option<Vec<Question>> = listed.elements().map(Question::visit).collect();
    visits.filter(|visits| code == Some(FIRST_A_VISIT) && !visits.is_empty())
}

const FIRST_A_VISIT: &str = "-32042";

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
        calls::{AnswerKind, InFlight},
        conversation::SessionState,
        load::Slot,
        pending::{
            seal::{StateError, Ticket},
            waiting_for,
        },
        room::KeptMessage,
        tasks::About,
    },
};

impl Session {
    /// Asks the client to have its user go where the child's answer says; the call is given back where
    /// that says nothing of the kind, or the client cannot.
    pub(in crate::session) fn sends_away(
        &self,
        state: &mut SessionState,
        number: u64,
        mut call: InFlight,
        (answer, message): (AnswerKind, &Message),
    ) -> Option<InFlight> {
        // A task has ended with it, and the client knows its id: to make the call again would make another.
        let may = matches!(call.task, None | Some(About::Making(_)));
        let input = call.input.as_deref_mut().filter(|_| may);
        let visits = (answer == AnswerKind::Error)
            .then(|| visits(message))
            .flatten();
        let (Some(input), Some(visits)) = (input, visits) else {
            return Some(call);
        };
        let visits = visits.into_iter().map(|visit| self.kept(visit)).collect();
        let kept: Option<(Vec<Question>, KeptMessage)> =
            Option::zip(visits, self.room.keep(message));
        let Some((visits, message)) = kept.filter(|_| Self::may_wait(state)) else {
            return Some(call);
        };
        if !input.sends_away(visits, (answer, message)) {
            return Some(call);
        }
        self.ask_client(number, &mut call);
        state.in_flight.insert(number, call);
        None
    }

    /// Whether the client comes back from where its user had to go: then its call is to be made again.
    pub(in crate::session) fn has_been_away(
        &self,
        call: &Call,
        ticket: &Ticket,
    ) -> Result<bool, SendError> {
        let mut state = self.lock().map_err(|_| StateError::Lost)?;
        let waiting = waiting_for(&mut state, ticket).ok_or(StateError::Used)?;
        let input = waiting.input.as_deref();
        Ok(input.is_some_and(|input| input.has_been_away(call)))
    }
}

/// A call that is to be made again, in place of itself.
pub(in crate::session) struct Away {
    number: u64,
    pub(in crate::session) call: InFlight,
}

impl Away {
    /// The one that waits for who brings this: nobody else can make it again meanwhile.
    pub(in crate::session) fn taken(
        state: &mut SessionState,
        ticket: &Ticket,
    ) -> Result<Self, SendError> {
        waiting_for(state, ticket).ok_or(StateError::Used)?;
        let number = ticket.number;
        let call = state.in_flight.remove(&number).ok_or(StateError::Used)?;
        Ok(Self { number, call })
    }

    /// Its slot among all calls.
    pub(in crate::session) fn slot(&mut self) -> Option<Slot> {
        self.call.slot.take()
    }

    /// It could not be made: its client may come back once more.
    pub(in crate::session) fn waits_on(mut self, state: &mut SessionState, slot: Option<Slot>) {
        self.call.slot = slot;
        state.in_flight.insert(self.number, self.call);
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::session::{
        exchange::Event,
        outbox::OutboxReader,
        own::OwnMessage,
        pump,
        stream::Exchange,
        testing::{bridged, tried},
    };

    fn send(session: &Arc<Session>, more: &str) -> Result<Exchange, SendError> {
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"x",{more}"_meta":{{"io.modelcontextprotocol/clientCapabilities":{{"elicitation":{{"url":{{}}}}}}}}}}}}"#
        );
        tried(session, &body)
    }

    /// A session, what its child is told, and the state that the client of a call is given to come back with.
    async fn sent_away() -> (Arc<Session>, OutboxReader, String) {
        let (session, mut lines) = bridged("{}");
        let mut asked = send(&session, "").unwrap();
        lines.recv().await.unwrap();
        let refusal = r#"{"id":1,"error":{"code":-32042,"message":"go","data":{"elicitations":[{"mode":"url","elicitationId":"e","url":"https://a/","message":"go"}]}}}"#;
        assert!(pump::take(&session, refusal.into()));
        let Some(Event::Answer(text)) = asked.next().await else {
            panic!("nothing was asked");
        };
        let question = Message::parse(text).unwrap();
        let result = question.root().get("result").unwrap();
        let state = result.get("requestState").and_then(Value::as_str);
        let state = state.unwrap().into_owned();
        (session, lines, state)
    }

    /// A call that cannot be made again now can be later, and is not made again because the server says more.
    #[tokio::test]
    async fn a_call_that_comes_back_too_early_may_come_back_once_more() {
        let (session, mut lines, state) = sent_away().await;
        let back = |action: &str| {
            format!(r#""requestState":"{state}","inputResponses":{{"e":{{"action":"{action}"}}}},"#)
        };
        // The server says its answer twice.
        assert!(pump::take(&session, r#"{"id":1,"result":{}}"#.into()));
        while session.say(&OwnMessage::Discover { number: 0 }) {}
        let early = send(&session, &back("accept"));
        assert_eq!(early.err(), Some(SendError::Busy));
        while lines.try_recv().is_some() {}
        let _made = send(&session, &back("accept")).unwrap();
        let line = lines.try_recv().expect("it is made again");
        assert!(line.starts_with(br#"{"jsonrpc":"2.0","id":2,"method":"tools/call""#));
        let used = send(&session, &back("accept"));
        assert_eq!(used.err(), Some(SendError::State(StateError::Used)));
        assert_eq!(session.in_flight(), 1);
    }

    /// conn-3: where there is no room for what it waits with, the client hears what the server has said.
    #[tokio::test]
    async fn a_call_that_there_is_no_room_for_does_not_wait_for_who_is_away() {
        let (session, _lines) = bridged("{}");
        let mut asked = send(&session, "").unwrap();
        let rest = session.room.claim((16 << 20) - 100);
        let refusal = r#"{"id":1,"error":{"code":-32042,"message":"go","data":{"elicitations":[{"mode":"url","elicitationId":"e","url":"https://a/","message":"go"}]}}}"#;
        assert!(pump::take(&session, refusal.into()));
        let Some(Event::Answer(text)) = asked.next().await else {
            panic!("nothing was told");
        };
        assert!(String::from_utf8_lossy(&text).contains(r#""message":"go""#));
        assert_eq!(session.in_flight(), 0);
        drop(rest);
    }

    /// Who does not go there hears what the server has said first, whatever it says later.
    #[tokio::test]
    async fn a_call_is_not_made_again_for_who_has_not_been_away() {
        let (session, mut lines, state) = sent_away().await;
        assert!(pump::take(&session, r#"{"id":1,"result":{}}"#.into()));
        let declined =
            format!(r#""requestState":"{state}","inputResponses":{{"e":{{"action":"decline"}}}},"#);
        let mut declined = send(&session, &declined).unwrap();
        assert!(lines.try_recv().is_none(), "it is not made again");
        let Some(Event::Answer(text)) = declined.next().await else {
            panic!("nothing was answered");
        };
        assert!(String::from_utf8_lossy(&text).contains(r#""message":"go""#));
    }
}

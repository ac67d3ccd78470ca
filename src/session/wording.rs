//! What the child has answered, in the words of the call's client: its id, its era, and without
//! the tools that nobody is shown.
//!
//! Whether a caller may see an element of a list is not decided here: that is done when the
//! answer is read. Used by `calls`, and by what ends a call otherwise.

use bytes::Bytes;

use crate::{
    aside::is_large,
    audit::Reason,
    json::Value,
    mcp::{
        Era, Id, Message,
        input::{self, Need},
        meta, method,
    },
    session::{
        Session,
        calls::{AnswerKind, InFlight},
        conversation::SessionState,
        exchange::{Event, Failure},
    },
};

/// What of a call decides how its client is told what the child has answered.
struct Wording {
    id: Id,
    list: Option<&'static str>,
    cacheable: bool,
    is_subscription: bool,
    lacked: Option<Need>,
}

impl InFlight {
    fn wording(&self) -> Wording {
        Wording {
            id: self.id.clone(),
            list: self.list,
            cacheable: self.cacheable,
            is_subscription: self.is_subscription(),
            lacked: self.input.as_ref().and_then(|input| input.lacked),
        }
    }
}

impl Session {
    /// What the client will be told with a large answer, for which nobody waits who needs the session.
    pub(super) fn worded_ahead(
        &self,
        number: u64,
        answer: AnswerKind,
        message: &Message,
    ) -> Option<Bytes> {
        if !is_large(message.bytes().len()) || answer == AnswerKind::Neither {
            return None;
        }
        let wording = {
            let state = self.state();
            let call = state.in_flight.get(&state.reversed.first(number))?;
            let tells = call.task.is_none() && call.following().is_none() && !call.waits();
            tells.then(|| call.wording())?
        };
        Some(self.worded(&wording, answer, message))
    }

    /// Gives the call's client what the child has answered.
    pub(super) fn deliver(
        &self,
        state: &mut SessionState,
        call: InFlight,
        answer: AnswerKind,
        message: &Message,
    ) {
        if answer == AnswerKind::Neither {
            return self.fail(state, call, Failure::BadAnswer);
        }
        let text = self.worded(&call.wording(), answer, message);
        self.delivered(state, call, answer, text);
    }

    /// The child's answer in the words of the call's client.
    fn worded(&self, wording: &Wording, answer: AnswerKind, message: &Message) -> Bytes {
        let failed = answer == AnswerKind::Error;
        let is_of_tools = wording.list == Some(method::TOOLS);
        if self.era == Era::Modern && is_of_tools {
            self.tools.learn(message);
        }
        let cut = is_of_tools.then(|| self.without_odd_tools(message));
        let cut = cut.flatten();
        let message = cut.as_ref().unwrap_or(message);
        let id = &wording.id;
        Bytes::from(match (self.legacy_server(), wording.lacked) {
            // It would have asked, and could not go on without.
            (Some(_), Some(need)) if failed => input::missing(id, need),
            (Some(server), _) => server.answered(message, id, wording.cacheable),
            (None, _) if let Some(server) = self.modern_server() => server.answered(message, id),
            (None, _) => {
                let root = message.root();
                // What ends a subscription names it twice.
                let named = wording.is_subscription.then(|| {
                    let meta = root.get("result")?.get("_meta")?;
                    meta.get(meta::SUBSCRIPTION)
                });
                let change = |name: Value<'_>| (name.span(), id.as_json());
                match (root.get("id").map(change), named.flatten().map(change)) {
                    (Some(first), Some(second)) => {
                        let mut changes = [first, second];
                        changes.sort_by_key(|(span, _)| span.start);
                        message.with(&changes)
                    }
                    (first, second) => message.with(first.or(second).as_slice()),
                }
            }
        })
    }

    /// Tells the call's client.
    pub(super) fn delivered(
        &self,
        state: &mut SessionState,
        call: InFlight,
        answer: AnswerKind,
        text: Bytes,
    ) {
        let failed = answer == AnswerKind::Error;
        let reason = failed.then_some(Reason::ServerError);
        let bytes = text.len();
        self.finish(state, call, reason, bytes, Event::Answer(text));
    }
}

//! Who may hear that a resource has changed.
//!
//! Who subscribes to a resource hears of its parts, too, which nobody was asked about then; and a server
//! may speak of others unasked. So a policy is asked about each, as if it were subscribed to alone, for
//! whoever has subscribed; what is not permitted is not passed. Used where notices are passed on, and never
//! while a session's state is held: a refusal takes long to work out, and a server may speak on and on.

use std::sync::Arc;

use crate::{
    auth::Identity,
    json::Value,
    mcp::{Call, Message, method},
    session::{Session, conversation::State},
};

impl Session {
    /// As whom the client hears what it subscribes to by this call; of a legacy client's it is noted for all.
    pub(super) fn hears(
        state: &mut State,
        call: &Call,
        identity: &Identity,
    ) -> Option<Arc<Identity>> {
        match call.method() {
            method::LISTEN => Some(Arc::new(identity.clone())),
            "resources/subscribe" => {
                state.hearer = Some(Arc::new(identity.clone()));
                None
            }
            _ => None,
        }
    }

    /// Whether that one, or else the session's owner, may hear what the message says.
    pub(super) fn may_hear(
        &self,
        hearer: impl FnOnce() -> Option<Arc<Identity>>,
        message: &Message,
        method: &str,
    ) -> bool {
        if method != UPDATED || !self.engine.tells_callers_apart() {
            return true;
        }
        let params = message.root().get("params");
        let uri = params.and_then(|params| params.get("uri"));
        let hearer = hearer();
        let hearer = hearer.as_deref().unwrap_or_else(|| self.owner());
        // Nobody can decide on what has no name.
        uri.and_then(Value::as_str)
            .is_some_and(|uri| self.engine.may_hear_of(hearer, &uri))
    }
}

/// The notification that a resource has changed.
const UPDATED: &str = "notifications/resources/updated";

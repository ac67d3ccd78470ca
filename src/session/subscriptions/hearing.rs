//! Who may hear that a resource has changed.
//!
//! Who subscribes to a resource hears of its parts, too, which nobody was asked about then; and a server
//! may speak of others unasked. So a policy is asked about each, as if it were subscribed to alone, for
//! whoever has subscribed; what is not permitted is not passed. Used where notices are passed on, and never
//! while a session's state is held: a refusal takes long to work out, and a server may speak on and on.

use std::sync::Arc;

use crate::{auth::Identity, json::Value, mcp::Message, session::Session};

impl Session {
    /// Whether any of those who hear of a resource, or else the session's owner, may hear what the message says.
    pub(in crate::session) fn may_hear(
        &self,
        hearers: impl FnOnce(&str) -> Vec<Arc<Identity>>,
        message: &Message,
        method: &str,
    ) -> bool {
        if method != UPDATED || !self.engine.tells_callers_apart() {
            return true;
        }
        let params = message.root().get("params");
        let uri = params.and_then(|params| params.get("uri"));
        // Nobody can decide on what has no name.
        let Some(uri) = uri.and_then(Value::as_str) else {
            return false;
        };
        let hearers = hearers(&uri);
        let may = |hearer: &Identity| self.engine.may_hear_of(hearer, &uri);
        match hearers.as_slice() {
            [] => may(self.owner()),
            hearers => hearers.iter().any(|hearer| may(hearer)),
        }
    }
}

/// The notification that a resource has changed.
pub(in crate::session) const UPDATED: &str = "notifications/resources/updated";

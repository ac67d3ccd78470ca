//! The messages a client may send: closed lists.
//!
//! Each method in [`DECIDED`] is a Cedar action of the same name. Anything that
//! is in neither list is refused (json-27): a method nobody has thought about
//! is not forwarded.

use crate::mcp::Era;

/// Requests that need a policy's permit.
pub const DECIDED: &[&str] = &[
    "initialize",
    "tools/list",
    "tools/call",
    "prompts/list",
    "prompts/get",
    "resources/list",
    "resources/templates/list",
    "resources/read",
    "resources/subscribe",
    "resources/unsubscribe",
    "completion/complete",
    "logging/setLevel",
    "tasks/list",
    "tasks/get",
    "tasks/result",
    "tasks/update",
    "tasks/cancel",
    LISTEN,
];

/// Requests of modern MCP (2026-07-28, and its tasks).
const MODERN: &[&str] = &[
    DISCOVER,
    "tools/list",
    "tools/call",
    "prompts/list",
    "prompts/get",
    "resources/list",
    "resources/templates/list",
    "resources/read",
    "completion/complete",
    "tasks/get",
    "tasks/update",
    "tasks/cancel",
    LISTEN,
];

/// Those of them that older versions do not have.
const MODERN_ONLY: &[&str] = &[DISCOVER, "tasks/update", LISTEN];

/// What modern clients ask in place of `initialize`.
pub const DISCOVER: &str = "server/discover";

/// The request of modern MCP whose answer is a stream that stays open.
pub const LISTEN: &str = "subscriptions/listen";

/// What tools there are.
pub const TOOLS: &str = "tools/list";

/// What is about the conversation alone, and rides on the session's identity.
pub const RIDING: &[&str] = &[
    "ping",
    "notifications/initialized",
    "notifications/cancelled",
    "notifications/progress",
    "notifications/roots/list_changed",
    "notifications/tasks/status",
];

/// The Cedar action that a method is decided as: who may open a session may ask what there is.
pub fn action(method: &str) -> &str {
    if method == DISCOVER {
        "initialize"
    } else {
        method
    }
}

/// Whether a policy decides on this method.
pub fn is_decided(method: &str) -> bool {
    DECIDED.contains(&method)
}

/// The method, if its answer is a list that shows only what its reader may call.
pub fn filtered_list(method: &str) -> Option<&'static str> {
    [TOOLS, "prompts/list", "resources/list"]
        .into_iter()
        .find(|list| *list == method)
}

/// Whether a modern answer to this method says who may keep it (mcp-T30).
pub fn is_cacheable(method: &str) -> bool {
    filtered_list(method).is_some()
        || matches!(
            method,
            DISCOVER | "resources/templates/list" | "resources/read"
        )
}

/// Whether this era has the request.
pub fn is_of(era: Era, method: &str) -> bool {
    match era {
        Era::Modern => MODERN.contains(&method),
        Era::Legacy => !MODERN_ONLY.contains(&method),
    }
}

/// Whether this method rides on the session's identity.
pub fn is_riding(method: &str) -> bool {
    RIDING.contains(&method)
}

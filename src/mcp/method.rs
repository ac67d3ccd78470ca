//! The messages a client may send: closed lists.
//!
//! Each method in [`DECIDED`] is a Cedar action of the same name. Anything that
//! is in neither list is refused (json-27): a method nobody has thought about
//! is not forwarded.

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
    "tasks/cancel",
];

/// What is about the conversation alone, and rides on the session's identity.
pub const RIDING: &[&str] = &[
    "ping",
    "notifications/initialized",
    "notifications/cancelled",
    "notifications/progress",
    "notifications/roots/list_changed",
    "notifications/tasks/status",
];

/// Whether a policy decides on this method.
pub fn is_decided(method: &str) -> bool {
    DECIDED.contains(&method)
}

/// Whether the answer to this method is a list that shows only what its reader may call.
pub fn is_filtered_list(method: &str) -> bool {
    matches!(method, "tools/list" | "prompts/list" | "resources/list")
}

/// Whether this method rides on the session's identity.
pub fn is_riding(method: &str) -> bool {
    RIDING.contains(&method)
}

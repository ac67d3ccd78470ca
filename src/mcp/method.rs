//! The methods a client may call: a closed list, each a Cedar action of the same name.
//!
//! Anything else is answered `-32601` (json-27): a method nobody has thought
//! about is not forwarded.

/// Methods that need a permit.
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

/// A method that needs no permit: it rides on the session's identity, and is
/// about the conversation alone.
pub const PING: &str = "ping";

/// Whether a request of this method may be decided on at all.
pub fn is_decided(method: &str) -> bool {
    DECIDED.contains(&method)
}

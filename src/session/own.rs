//! What the gateway itself says to a child: a closed set.
//!
//! The one other way into a child than a `Permit`: what is not here the gateway cannot say of itself. Used all over
//! `session`, and nowhere else.

use std::fmt::Display;

use bytes::Bytes;
use serde_json::json;

use crate::{
    child::stdio,
    mcp::{answer, meta, method, version},
    session::{line::Line, outbox::Beyond},
};

/// A message that no client sent.
pub(super) enum OwnMessage<'a> {
    /// `notifications/cancelled` for the gateway's request number.
    Cancelled {
        number: u64,
        reason: &'static str,
    },
    /// The child asked for something and no client can hear it.
    NobodyThere {
        id: &'a [u8],
    },
    /// Asks whether the child speaks modern MCP (mcp-T27).
    Discover {
        number: u64,
    },
    /// Has a modern child tell of changes (`wanted` and `meta` are JSON).
    Listen {
        number: u64,
        wanted: &'a str,
        meta: &'a str,
    },
    /// Opens the conversation with a legacy child on which modern requests are to come.
    Initialize {
        number: u64,
    },
    /// Opens the conversation with a child that several clients share; whether it may ask them anything.
    Open {
        number: u64,
        asks: bool,
    },
    /// That this conversation is open.
    Initialized,
    /// Has a legacy child write its log messages from this level on: who wants which is decided here.
    LogFrom {
        number: u64,
        level: &'static str,
    },
    /// Has a legacy child tell when this resource changes, or no longer.
    Subscribe {
        number: u64,
        uri: &'a str,
    },
    Unsubscribe {
        number: u64,
        uri: &'a str,
    },
    /// What the child's tools are, or a further page of them.
    ListTools {
        number: u64,
        is_legacy: bool,
        cursor: Option<&'a str>,
    },
    /// Asks for something of a task (`task` is its id as JSON, `more` further members).
    TaskOf {
        number: u64,
        what: &'static str,
        task: &'a [u8],
        more: Vec<u8>,
    },
    /// The answer to the child's ping.
    Pong {
        id: &'a [u8],
    },
}

impl OwnMessage<'_> {
    /// What it has a place for in a full queue, if it has one.
    pub(super) fn beyond(&self) -> Option<Beyond> {
        match self {
            Self::Cancelled { .. } | Self::TaskOf { what: "cancel", .. } => Some(Beyond::End),
            Self::NobodyThere { .. } | Self::Pong { .. } => Some(Beyond::Answer),
            _ => None,
        }
    }

    /// The message as a line for the child.
    pub(super) fn line(&self) -> OwnLine {
        OwnLine(stdio::line(match self {
            Self::Cancelled { number, reason } => format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{number},"reason":"{reason}"}}}}"#
            )
            .into_bytes(),
            Self::Discover { number } => {
                request(*number, method::DISCOVER, json!({ "_meta": meta() }))
            }
            Self::ListTools {
                number,
                is_legacy,
                cursor,
            } => {
                let mut params = json!({});
                if let Some(cursor) = cursor {
                    params["cursor"] = (*cursor).into();
                }
                if !is_legacy {
                    params["_meta"] = meta();
                }
                request(*number, method::TOOLS, params)
            }
            Self::Initialize { number } => {
                // All that any client may be asked: which one can be is decided call by call.
                let mut all = what_users_are_asked();
                all["roots"] = json!({});
                initialize(*number, all)
            }
            Self::Open { number, asks: true } => initialize(*number, what_users_are_asked()),
            Self::Open { number, .. } => initialize(*number, json!({})),
            Self::Initialized => {
                br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#.to_vec()
            }
            Self::Listen {
                number,
                wanted,
                meta,
            } => {
                let params = format_args!(r#"{{"_meta":{meta},"notifications":{wanted}}}"#);
                request(*number, method::LISTEN, params)
            }
            Self::LogFrom { number, level } => {
                request(*number, "logging/setLevel", json!({ "level": level }))
            }
            Self::Subscribe { number, uri } => {
                request(*number, "resources/subscribe", json!({ "uri": uri }))
            }
            Self::Unsubscribe { number, uri } => {
                request(*number, "resources/unsubscribe", json!({ "uri": uri }))
            }
            Self::TaskOf {
                number,
                what,
                task,
                more,
            } => {
                // Both are of messages that were parsed, hence text.
                let (task, more) = (String::from_utf8_lossy(task), String::from_utf8_lossy(more));
                let params = format_args!(r#"{{"taskId":{task}{more}}}"#);
                request(*number, &format!("tasks/{what}"), params)
            }
            Self::NobodyThere { id } => {
                answer::error(id, br#"{"code":-32601,"message":"no client is listening"}"#)
            }
            Self::Pong { id } => answer::result(id, b"{}"),
        }))
    }
}

/// A line that says such a message, and can say nothing else.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct OwnLine(Bytes);

impl OwnLine {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// What it says, without its end.
    #[cfg(test)]
    pub(super) fn text(&self) -> Bytes {
        self.0.slice(..self.len() - 1)
    }

    /// One of any text.
    #[cfg(test)]
    pub(super) fn example(text: impl Into<Bytes>) -> Self {
        Self(text.into())
    }
}

impl From<OwnLine> for Line {
    fn from(line: OwnLine) -> Self {
        Self::Whole(line.0)
    }
}

/// A request of the gateway's own; `params` are JSON.
fn request(number: u64, method: &str, params: impl Display) -> Vec<u8> {
    format!(r#"{{"jsonrpc":"2.0","id":{number},"method":"{method}","params":{params}}}"#)
        .into_bytes()
}

/// Opens a conversation as a client with these capabilities.
fn initialize(number: u64, capabilities: serde_json::Value) -> Vec<u8> {
    let params = json!({
        "protocolVersion": version::LEGACY[0],
        "capabilities": capabilities,
        "clientInfo": { "name": "thv", "version": env!("CARGO_PKG_VERSION") },
    });
    request(number, "initialize", params)
}

/// The capabilities of a client whose user, or whose model, can be asked anything.
fn what_users_are_asked() -> serde_json::Value {
    json!({ "elicitation": { "form": {}, "url": {} }, "sampling": { "tools": {} } })
}

/// What each modern request says (mcp-T20).
fn meta() -> serde_json::Value {
    json!({
        meta::VERSION: version::MODERN,
        meta::CAPABILITIES: {},
        meta::CLIENT: { "name": "thv", "version": env!("CARGO_PKG_VERSION") },
    })
}

/// The same as one more member of a modern request's parameters.
pub(super) fn meta_member() -> Vec<u8> {
    format!(r#","_meta":{}"#, meta()).into_bytes()
}

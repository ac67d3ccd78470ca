//! What the gateway itself says to a child: a closed set.
//!
//! The one other way into a child than a `Permit`: what is not here the gateway cannot say of itself. Used all over
//! `session`, and nowhere else.

use bytes::Bytes;
use serde_json::json;

use crate::{
    child::stdio,
    mcp::{meta, version},
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
    /// Whether it ends what the child does, or what that waits for, and is said once.
    pub(super) fn ends_something(&self) -> bool {
        matches!(
            self,
            Self::Cancelled { .. }
                | Self::TaskOf { what: "cancel", .. }
                | Self::NobodyThere { .. }
                | Self::Pong { .. }
        )
    }

    /// The message as a line for the child.
    pub(super) fn line(&self) -> Bytes {
        let text = match self {
            Self::Cancelled { number, reason } => format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{number},"reason":"{reason}"}}}}"#
            )
            .into_bytes(),
            Self::Discover { number } => {
                let params = json!({ "_meta": meta() });
                format!(
                    r#"{{"jsonrpc":"2.0","id":{number},"method":"server/discover","params":{params}}}"#
                )
                .into_bytes()
            }
            Self::ListTools { number, is_legacy, cursor } => {
                let mut params = json!({});
                if let Some(cursor) = cursor {
                    params["cursor"] = (*cursor).into();
                }
                if !is_legacy {
                    params["_meta"] = meta();
                }
                format!(r#"{{"jsonrpc":"2.0","id":{number},"method":"tools/list","params":{params}}}"#)
                    .into_bytes()
            }
            Self::Initialize { number } => {
                // All that any client may be asked: which one can be is decided call by call.
                let params = json!({
                    "protocolVersion": version::LEGACY[0],
                    "capabilities": {
                        "elicitation": { "form": {}, "url": {} },
                        "sampling": { "tools": {} },
                        "roots": {},
                    },
                    "clientInfo": { "name": "thv", "version": env!("CARGO_PKG_VERSION") },
                });
                format!(
                    r#"{{"jsonrpc":"2.0","id":{number},"method":"initialize","params":{params}}}"#
                )
                .into_bytes()
            }
            Self::Open { number, asks } => {
                let capabilities = if *asks {
                    json!({ "elicitation": { "form": {}, "url": {} }, "sampling": { "tools": {} } })
                } else {
                    json!({})
                };
                let params = json!({
                    "protocolVersion": version::LEGACY[0],
                    "capabilities": capabilities,
                    "clientInfo": { "name": "thv", "version": env!("CARGO_PKG_VERSION") },
                });
                format!(
                    r#"{{"jsonrpc":"2.0","id":{number},"method":"initialize","params":{params}}}"#
                )
                .into_bytes()
            }
            Self::Initialized => {
                br#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#.to_vec()
            }
            Self::Listen { number, wanted, meta } => format!(
                r#"{{"jsonrpc":"2.0","id":{number},"method":"subscriptions/listen","params":{{"_meta":{meta},"notifications":{wanted}}}}}"#
            )
            .into_bytes(),
            Self::LogFrom { number, level } => format!(
                r#"{{"jsonrpc":"2.0","id":{number},"method":"logging/setLevel","params":{{"level":"{level}"}}}}"#
            )
            .into_bytes(),
            Self::TaskOf { number, what, task, more } => [
                format!(r#"{{"jsonrpc":"2.0","id":{number},"method":"tasks/{what}","params":{{"taskId":"#).as_bytes(),
                task,
                more,
                b"}}",
            ]
            .concat(),
            Self::Subscribe { number, uri } => resource("subscribe", *number, uri),
            Self::Unsubscribe { number, uri } => resource("unsubscribe", *number, uri),
            Self::NobodyThere { id } => {
                let message = br#","error":{"code":-32601,"message":"no client is listening"}}"#;
                [br#"{"jsonrpc":"2.0","id":"#, *id, message].concat()
            }
            Self::Pong { id } => [br#"{"jsonrpc":"2.0","id":"#, *id, br#","result":{}}"#].concat(),
        };
        stdio::line(text)
    }
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

fn resource(what: &str, number: u64, uri: &str) -> Vec<u8> {
    let params = json!({ "uri": uri });
    format!(r#"{{"jsonrpc":"2.0","id":{number},"method":"resources/{what}","params":{params}}}"#)
        .into_bytes()
}

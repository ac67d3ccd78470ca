//! Members of `_meta`: the names that MCP has for them, and those that are the gateway's. It adds
//! some, all else staying byte for byte, and takes its own from nobody.

use std::ops::Range;

use crate::{
    json::{Kind, Value},
    mcp::{
        Message,
        answer::{member, object},
    },
};

/// What every name begins with that is the protocol's own.
pub const RESERVED: &str = "io.modelcontextprotocol/";
/// What a modern request says each time: its version, what its client can, and what that is (mcp-T20).
pub const VERSION: &str = "io.modelcontextprotocol/protocolVersion";
pub const CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
pub const CLIENT: &str = "io.modelcontextprotocol/clientInfo";
/// From which level on a modern request wants to hear log messages.
pub const LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";
/// What a modern answer says of its server.
pub const SERVER: &str = "io.modelcontextprotocol/serverInfo";
/// The subscription that a notification is told for.
pub const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";
/// The task that a legacy server's message is about.
pub const RELATED_TASK: &str = "io.modelcontextprotocol/related-task";

/// Who calls, for a server that all of its users share.
pub const CALLER: &str = "thv/identity";

/// Its value, as JSON.
pub fn caller(issuer: &str, subject: &str, kind: &str) -> Vec<u8> {
    serde_json::json!({ "issuer": issuer, "subject": subject, "kind": kind })
        .to_string()
        .into_bytes()
}

/// Whether a client says what only the gateway may. Each of its `inputResponses` may reach a server
/// as a result of its own.
pub(super) fn is_forged(params: Option<Value<'_>>, result: Option<Value<'_>>) -> bool {
    let says = |within: Value<'_>| {
        let meta = within.get("_meta");
        meta.is_some_and(|meta| meta.get(CALLER).is_some())
    };
    let given = params.and_then(|params| params.get("inputResponses"));
    let mut given = given.iter().flat_map(|given| given.members());
    given.any(|(_, given)| says(given)) || params.into_iter().chain(result).any(says)
}

/// A part of a message's text, and what stands there instead.
pub type Change = (Range<usize>, Vec<u8>);

/// What it takes for `members` (names and JSON) to stand in a message's `params._meta`.
pub fn added(message: &Message, members: &[(&str, &[u8])]) -> Vec<Change> {
    let root = message.root();
    let params = root
        .get("params")
        .filter(|params| params.kind() == Kind::Object);
    let meta = params
        .and_then(|params| params.get("_meta"))
        .filter(|meta| meta.kind() == Kind::Object);
    let mut changes = Vec::new();
    let mut text = Vec::new();
    for (name, value) in members {
        // A name must not stand there twice.
        if let Some(old) = meta.and_then(|meta| meta.get(name)) {
            changes.push((old.span(), value.to_vec()));
            continue;
        }
        if !text.is_empty() {
            text.push(b',');
        }
        member(&mut text, name, value);
    }
    if text.is_empty() {
        return changes;
    }
    if let Some(meta) = meta {
        changes.push(first_in(meta, text));
        return changes;
    }
    let meta = [b"{", text.as_slice(), b"}"].concat();
    let mut named = Vec::new();
    changes.push(match (root.get("params"), params) {
        (_, Some(params)) => match params.get("_meta") {
            Some(odd) => (odd.span(), meta),
            None => {
                member(&mut named, "_meta", &meta);
                first_in(params, named)
            }
        },
        (Some(odd), None) => (odd.span(), object([("_meta", meta)])),
        (None, None) => {
            member(&mut named, "params", &object([("_meta", meta)]));
            first_in(root, named)
        }
    });
    changes
}

/// The message with the changes, which must not overlap.
pub fn changed(message: &Message, mut changes: Vec<Change>) -> Vec<u8> {
    changes.sort_by_key(|(span, _)| span.start);
    let changes: Vec<(Range<usize>, &[u8])> = changes
        .iter()
        .map(|(span, text)| (span.clone(), text.as_slice()))
        .collect();
    message.with(&changes)
}

fn first_in(object: Value<'_>, mut members: Vec<u8>) -> Change {
    let start = object.span().start + 1;
    if object.members().next().is_some() {
        members.push(b',');
    }
    (start..start, members)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let message = Message::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap();
        let members: [(&str, &[u8]); 2] = [("a", b"1"), ("b", b"2")];
        let changed = changed(&message, added(&message, &members));
        assert_eq!(String::from_utf8(changed).unwrap(), expected);
    }

    #[test]
    fn members_are_added_wherever_there_is_room_and_never_twice() {
        check(r#"{"m":0}"#, r#"{"params":{"_meta":{"a":1,"b":2}},"m":0}"#);
        check(r#"{ }"#, r#"{"params":{"_meta":{"a":1,"b":2}} }"#);
        check(r#"{"params":[]}"#, r#"{"params":{"_meta":{"a":1,"b":2}}}"#);
        check(r#"{"params":{}}"#, r#"{"params":{"_meta":{"a":1,"b":2}}}"#);
        check(
            r#"{"params":{"x":1.0}}"#,
            r#"{"params":{"_meta":{"a":1,"b":2},"x":1.0}}"#,
        );
        check(
            r#"{"params":{"_meta":7}}"#,
            r#"{"params":{"_meta":{"a":1,"b":2}}}"#,
        );
        check(
            r#"{"params":{"_meta":{ "c":1}}}"#,
            r#"{"params":{"_meta":{"a":1,"b":2, "c":1}}}"#,
        );
        check(
            r#"{"params":{"_meta":{"b":3}}}"#,
            r#"{"params":{"_meta":{"a":1,"b":2}}}"#,
        );
        check(
            r#"{"params":{"_meta":{"b":3,"\u0061":0}}}"#,
            r#"{"params":{"_meta":{"b":2,"\u0061":1}}}"#,
        );
    }
}

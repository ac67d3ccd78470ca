//! What of a client's message is changed on its way to the child.

use bytes::Bytes;

use crate::{
    child::stdio,
    json::Value,
    mcp::{Call, bridge, version},
};

/// The client's request under the gateway's own number, as a line; and where it
/// is `bridged` to a legacy child, without what is newer; and where it
/// names a version that no session can have, the newest legacy one (mcp-L9): a server
/// that echoes what it hears would agree on what its client could then not use.
pub(super) fn renumbered(call: &Call, number: u64, bridged: bool) -> Bytes {
    let message = call.message();
    let text = number.to_string();
    let mut changes = Vec::with_capacity(3);
    if let Some(id) = message.root().get("id") {
        changes.push((id.span(), text.as_bytes()));
    }
    let version = (call.method() == "initialize")
        .then(|| {
            call.params()
                .and_then(|params| params.get("protocolVersion"))
        })
        .flatten();
    if let Some(version) = version
        && !version
            .as_str()
            .is_some_and(|named| version::LEGACY.contains(&&*named))
    {
        changes.push((version.span(), version::NEWEST_LEGACY_JSON));
    }
    // Several clients may use one token: towards the child it is the request's own number.
    let older = bridged
        .then(|| bridge::legacy_params(call, text.as_bytes()))
        .flatten();
    if let Some((span, older)) = &older {
        changes.push((span.clone(), older.as_slice()));
    } else if let Some(token) = call.meta("progressToken") {
        changes.push((token.span(), text.as_bytes()));
    }
    changes.sort_by_key(|(span, _)| span.start);
    stdio::line(message.with(&changes))
}

/// The token, as JSON, that the client's request asks progress under.
pub(super) fn progress_token(call: &Call) -> Option<Bytes> {
    call.meta("progressToken")
        .map(Value::raw)
        .map(Bytes::copy_from_slice)
}

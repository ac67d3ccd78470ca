//! What of a client's message is changed on its way to the child.

use bytes::Bytes;

use crate::{
    json::Value,
    mcp::{Call, bridge, version},
    session::line::Line,
};

/// The client's request under the gateway's own number, as a line; and where it
/// is `bridged` to a legacy child, without what is newer; and where it
/// names a version that no session can have, the newest legacy one (mcp-L9): a server
/// that echoes what it hears would agree on what its client could then not use.
pub(super) fn renumbered(call: &Call, number: u64, bridged: bool) -> Line {
    changed(call, number, bridged, &[])
}

/// The same as a line that asks a legacy child for a task.
pub(super) fn as_task(call: &Call, number: u64) -> Line {
    // A call of a tool names it, so there is a member after this one.
    changed(call, number, true, br#""task":{},"#)
}

/// `first` stands before all other parameters.
fn changed(call: &Call, number: u64, bridged: bool, first: &[u8]) -> Line {
    let message = call.message();
    let mut text = itoa::Buffer::new();
    let text = text.format(number);
    let mut changes = Vec::with_capacity(3);
    if let Some(id) = call.id_value() {
        changes.push((id.span(), text.as_bytes()));
    }
    let version = (call.method() == "initialize")
        .then(|| call.param("protocolVersion"))
        .flatten();
    if let Some(version) = version
        && !version
            .as_str()
            .is_some_and(|named| version::LEGACY.contains(&&*named))
    {
        changes.push((version.span(), version::NEWEST_LEGACY_JSON));
    }
    // Several clients may use one token: towards the child it is the request's own number.
    let mut older = bridged
        .then(|| bridge::legacy_params(call, text.as_bytes()))
        .flatten();
    if let Some(params) = call.params().filter(|_| !first.is_empty()) {
        let inside = params.span().start + 1;
        match &mut older {
            Some((span, older)) if *span == params.span() => {
                older.splice(1..1, first.iter().copied());
            }
            _ => changes.push((inside..inside, first)),
        }
    }
    if let Some((span, older)) = &older {
        changes.push((span.clone(), older.as_slice()));
    } else if let Some(token) = call.meta("progressToken") {
        changes.push((token.span(), text.as_bytes()));
    }
    changes.sort_by_key(|(span, _)| span.start);
    Line::of(message, &changes)
}

/// The token, as JSON, that the client's request asks progress under.
pub(super) fn progress_token(call: &Call) -> Option<Bytes> {
    call.meta("progressToken")
        .map(Value::raw)
        .map(Bytes::copy_from_slice)
}

//! JSON that the gateway writes itself: JSON-RPC answers, and objects of values that are JSON already.
//!
//! Whatever value it is given keeps its bytes. Used all over `mcp` and `session`, and by `child` for servers that
//! speak HTTP.

use serde_json::json;

use crate::mcp::Id;

/// The answer to the request `id` (JSON) with that result (JSON).
pub fn result(id: &[u8], result: &[u8]) -> Vec<u8> {
    answer(id, br#","result":"#, result)
}

/// The answer to the request `id` (JSON) with that error (JSON).
pub fn error(id: &[u8], error: &[u8]) -> Vec<u8> {
    answer(id, br#","error":"#, error)
}

/// A refusal of the gateway's own.
pub fn refused(id: &Id, code: i32, message: &str) -> Vec<u8> {
    let text = json!({ "code": code, "message": message }).to_string();
    error(id.as_json(), text.as_bytes())
}

/// The modern answer to a call that needs what its client has not said that it can (mcp-T21).
pub(super) fn lacking(id: &Id, message: &str, capabilities: serde_json::Value) -> Vec<u8> {
    let text = json!({
        "code": -32021,
        "message": message,
        "data": { "requiredCapabilities": capabilities },
    })
    .to_string();
    error(id.as_json(), text.as_bytes())
}

/// An object with these members, each a name and JSON.
pub fn object<N: AsRef<str>, V: AsRef<[u8]>>(members: impl IntoIterator<Item = (N, V)>) -> Vec<u8> {
    let mut out = b"{".to_vec();
    for (name, value) in members {
        if out.len() > 1 {
            out.push(b',');
        }
        member(&mut out, name.as_ref(), value.as_ref());
    }
    out.push(b'}');
    out
}

/// A member of an object that is being written.
pub fn member(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(serde_json::Value::from(name).to_string().as_bytes());
    out.push(b':');
    out.extend_from_slice(value);
}

fn answer(id: &[u8], what: &[u8], value: &[u8]) -> Vec<u8> {
    [br#"{"jsonrpc":"2.0","id":"#, id, what, value, b"}"].concat()
}

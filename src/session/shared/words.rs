//! What `switch` and `heard` answer themselves, and how they read names. Pure.

use bytes::Bytes;

use crate::json::Value;

/// The id of the task that an answer says was made.
pub(in crate::session) fn made_task(result: Value<'_>) -> Option<Value<'_>> {
    let within = result.get("task").and_then(|task| task.get("taskId"));
    within.or_else(|| result.get("taskId"))
}

/// A string as it reads, however it is written.
pub(in crate::session) fn text_of(value: Value<'_>) -> Bytes {
    let text = value.as_str().map(|text| Bytes::from(text.into_owned()));
    text.unwrap_or_else(|| Bytes::copy_from_slice(value.raw()))
}

pub(in crate::session) fn answer(id: &[u8], rest: &[u8]) -> Bytes {
    [br#"{"jsonrpc":"2.0","id":"#, id, b",", rest, b"}"]
        .concat()
        .into()
}

pub(in crate::session) const DONE: &[u8] = br#""result":{}"#;
pub(in crate::session) const NO_METHOD: &[u8] =
    br#""error":{"code":-32601,"message":"not where a server is shared by all its users"}"#;
pub(in crate::session) const NO_TASK: &[u8] =
    br#""error":{"code":-32602,"message":"no such task"}"#;
pub(in crate::session) const TOO_MANY: &[u8] =
    br#""error":{"code":-32603,"message":"too many subscriptions"}"#;

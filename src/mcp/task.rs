//! Tasks, as the two eras have them: 2025-11-25 in the protocol itself, where the client
//! asks for one; modern MCP as an extension, where the server makes one.
//!
//! Pure. Used by `session` for children that speak another era than their clients.

use std::{borrow::Cow, time::Duration};

use serde_json::json;

use crate::{
    json::{Kind, Value},
    mcp::{
        Call, Era, Id, answer,
        answer::member,
        bridge::modern_error,
        edit::{Fate, edited},
        input::Question,
        meta,
        reverse::plain,
    },
};

/// The extension's name among capabilities.
pub const EXTENSION: &str = "io.modelcontextprotocol/tasks";

/// Whether the client of a modern request can be given a task in place of an answer.
pub fn is_taken_by(call: &Call) -> bool {
    call.meta(meta::CAPABILITIES).is_some_and(has_extension)
}

/// Whether capabilities name the extension.
pub fn has_extension(capabilities: Value<'_>) -> bool {
    let extensions = capabilities.get("extensions");
    let tasks = extensions.and_then(|extensions| extensions.get(EXTENSION));
    tasks.is_some_and(|tasks| tasks.kind() == Kind::Object)
}

/// Whether a legacy server's capabilities say that tools can be called as tasks.
pub fn are_made_by(capabilities: Value<'_>) -> bool {
    let path = ["tasks", "requests", "tools", "call"];
    let call = path
        .iter()
        .try_fold(capabilities, |said, name| said.get(name));
    call.is_some_and(|call| call.kind() == Kind::Object)
}

/// The id that a server has given a task; `None` where that is none, or longer than anybody remembers.
pub fn id(task: Value<'_>) -> Option<Cow<'_, str>> {
    let id = task.get("taskId")?;
    (id.span().len() <= MAX_ID).then(|| id.as_str()).flatten()
}

/// The task that a server of that era has made of a call, by the call's result.
pub fn made(result: Value<'_>, era: Era) -> Option<Value<'_>> {
    match era {
        Era::Legacy => result.get("task"),
        Era::Modern => {
            let kind = result.get("resultType").and_then(Value::as_str);
            (kind.as_deref() == Some("task")).then_some(result)
        }
    }
}

/// Bytes of a task's id as JSON: thousands of them are remembered.
pub const MAX_ID: usize = 2 << 10;

/// The task that the message is about, as the server names it.
pub fn related(params: Option<Value<'_>>) -> Option<String> {
    let related = params?.get("_meta")?.get(meta::RELATED_TASK)?;
    Some(related.get("taskId")?.as_str()?.into_owned())
}

/// Whether it has come to its end, whichever.
pub fn has_ended(task: Value<'_>) -> bool {
    let status = task.get("status").and_then(Value::as_str);
    matches!(
        status.as_deref(),
        Some("completed" | "failed" | "cancelled")
    )
}

/// Whether it goes on, by what it says: what else a result calls its task may be anything.
pub fn goes_on(task: Value<'_>) -> bool {
    let status = task.get("status").and_then(Value::as_str);
    id(task).is_some() && matches!(status.as_deref(), Some("working" | "input_required"))
}

/// Whether the task has ended with a result or an error, by what it says of itself.
pub fn has_outcome(task: Value<'_>) -> bool {
    let status = task.get("status").and_then(Value::as_str);
    matches!(status.as_deref(), Some("completed" | "failed"))
}

/// How a task of a legacy server's stands, for a modern client.
pub enum Standing<'a> {
    /// As the server says.
    Said,
    /// It works on, whatever it says: what it says cannot be told yet.
    Working,
    /// It asks its client this.
    Asks(Vec<&'a Question>),
    /// The call's result, or its error.
    Ended(Result<Value<'a>, Value<'a>>),
}

/// The modern result that a legacy server's task makes: `kind` is its `resultType`.
pub fn modern(task: Value<'_>, kind: &str, standing: &Standing<'_>, meta: &[u8]) -> Vec<u8> {
    let mut out = b"{".to_vec();
    member(&mut out, "resultType", json!(kind).to_string().as_bytes());
    out.push(b',');
    detailed(&mut out, task, standing);
    out.push(b',');
    member(&mut out, "_meta", meta);
    out.push(b'}');
    out
}

/// What a modern subscription is told of a legacy server's task: all that `tasks/get` would say.
pub fn told(task: Value<'_>, standing: &Standing<'_>) -> Vec<u8> {
    let mut out = format!(r#"{{"jsonrpc":"2.0","method":"{TOLD}","params":{{"#).into_bytes();
    detailed(&mut out, task, standing);
    out.extend_from_slice(b"}}");
    out
}

/// The members of a modern task.
fn detailed(out: &mut Vec<u8>, task: Value<'_>, standing: &Standing<'_>) {
    let start = out.len();
    let status = match standing {
        Standing::Said => None,
        Standing::Working => Some(&b"\"working\""[..]),
        Standing::Asks(_) => Some(&b"\"input_required\""[..]),
        Standing::Ended(Ok(_)) => Some(&b"\"completed\""[..]),
        Standing::Ended(Err(_)) => Some(&b"\"failed\""[..]),
    };
    for (name, modern) in NAMES {
        let value = match (name, status, task.get(name)) {
            ("status", Some(status), _) => status,
            (_, _, Some(value)) => value.raw(),
            // Unlimited is said, too.
            ("ttl", ..) => b"null",
            _ => continue,
        };
        if out.len() > start {
            out.push(b',');
        }
        member(out, modern, value);
    }
    match standing {
        Standing::Said | Standing::Working => {}
        Standing::Asks(questions) => {
            let questions = questions.iter();
            let questions = questions.map(|question| (&question.key, question.as_input()));
            out.push(b',');
            member(out, "inputRequests", &answer::object(questions));
        }
        Standing::Ended(outcome) => {
            let (name, value) = match outcome {
                Ok(result) if result.kind() == Kind::Object => ("result", plain(*result)),
                Ok(result) => ("result", result.raw().to_vec()),
                Err(error) => ("error", modern_error(*error)),
            };
            out.push(b',');
            member(out, name, &value);
        }
    }
}

/// The modern answer to what is about tasks, or to a call that its server runs as one alone, for a
/// client that takes none.
pub fn missing(id: &Id) -> Vec<u8> {
    let message = "this needs tasks, which this client does not take";
    answer::lacking(id, message, json!({ "extensions": { EXTENSION: {} } }))
}

/// What a task of a legacy server's says of itself, and nothing else: as much as it takes to tell of its end later.
pub fn outline(task: Value<'_>) -> Vec<u8> {
    edited(task, b"", |name, _| {
        let is_told = name == "_meta" || NAMES.iter().any(|(legacy, _)| *legacy == name);
        if is_told { Fate::Stays } else { Fate::Goes }
    })
}

/// How long to wait before asking again how a task of that era stands: as it says, within
/// what is kind to the server and to whoever waits.
pub fn pause(task: Value<'_>, era: Era) -> Duration {
    let said = task.get(match era {
        Era::Legacy => "pollInterval",
        Era::Modern => "pollIntervalMs",
    });
    said.and_then(Value::as_number)
        .and_then(|milliseconds| milliseconds.parse().ok())
        .map_or(SHORTEST_PAUSE, Duration::from_millis)
        .clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// The notification that says how a task stands, as the extension has it, and 2025-11-25.
pub const TOLD: &str = "notifications/tasks";
pub const TOLD_BY_LEGACY: &str = "notifications/tasks/status";
pub const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// What a task says of itself: its name in 2025-11-25, and the extension's.
const NAMES: [(&str, &str); 7] = [
    ("taskId", "taskId"),
    ("status", "status"),
    ("statusMessage", "statusMessage"),
    ("createdAt", "createdAt"),
    ("lastUpdatedAt", "lastUpdatedAt"),
    ("ttl", "ttlMs"),
    ("pollInterval", "pollIntervalMs"),
];

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::mcp::Message;

    fn message(text: &str) -> Message {
        Message::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    #[track_caller]
    fn check(standing: &Standing<'_>, expected: &str) {
        let task = message(
            r#"{"taskId":"t\/1","status":"completed","createdAt":"2026-11-26T00:00:00Z","ttl":60000.0,"pollInterval":500,"own":1}"#,
        );
        let outline = outline(task.root());
        assert!(!str::from_utf8(&outline).unwrap().contains("own"));
        let outline = Message::parse(outline.into()).unwrap();
        for task in [&task, &outline] {
            let text = modern(task.root(), "complete", standing, b"{}");
            assert_eq!(
                String::from_utf8(text).unwrap(),
                format!(
                    r#"{{"resultType":"complete","taskId":"t\/1","status":{expected},"_meta":{{}}}}"#
                )
            );
        }
    }

    /// mcp-L11: what a task says of itself keeps its bytes, under the other era's names.
    #[test]
    fn a_task_has_the_names_that_modern_clients_know() {
        let times = r#""createdAt":"2026-11-26T00:00:00Z","ttlMs":60000.0,"pollIntervalMs":500"#;
        check(&Standing::Said, &format!(r#""completed",{times}"#));
        check(&Standing::Working, &format!(r#""working",{times}"#));
        let result = message(
            r#"{"isError":true,"n":1.0,"_meta":{"io.modelcontextprotocol/related-task":{"taskId":"t"}}}"#,
        );
        check(
            &Standing::Ended(Ok(result.root())),
            &format!(r#""completed",{times},"result":{{"isError":true,"n":1.0}}"#),
        );
        // mcp-T24: nor may they see there what modern MCP does not have.
        for (code, modern) in [("-32603", "-32603"), ("-32042", "-32603")] {
            let error = message(&format!(r#" {{"code":{code} ,"message":"m"}}"#));
            check(
                &Standing::Ended(Err(error.root())),
                &format!(r#""failed",{times},"error":{{"code":{modern} ,"message":"m"}}"#),
            );
        }
    }

    #[test]
    fn who_takes_and_who_makes_tasks_says_so() {
        let call = |capabilities: &str| {
            let text = format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"t","_meta":{{"io.modelcontextprotocol/clientCapabilities":{capabilities}}}}}}}"#
            );
            Call::read(text.into(), true).unwrap()
        };
        assert!(is_taken_by(&call(
            r#"{"extensions":{"io.modelcontextprotocol/tasks":{}}}"#
        )));
        assert!(!is_taken_by(&call(
            r#"{"extensions":{"io.modelcontextprotocol/tasks":null}}"#
        )));
        assert!(!is_taken_by(&call("{}")));
        let made = |capabilities: &'static str| {
            are_made_by(Message::parse(capabilities.into()).unwrap().root())
        };
        assert!(made(r#"{"tasks":{"requests":{"tools":{"call":{}}}}}"#));
        assert!(!made(r#"{"tasks":{"requests":{"tools":{"call":null}}}}"#));
        assert!(!made(r#"{"tasks":{"list":{}}}"#));
    }
}

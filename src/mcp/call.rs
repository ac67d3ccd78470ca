//! One message from a client, read once.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;

use crate::{
    json::{JsonError, Kind, Place, Value},
    mcp::{Message, members::Members, meta, method, subscription},
};

/// Which half of MCP's history a message belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Era {
    /// Protocol versions to 2025-11-25: `initialize`, sessions.
    Legacy,
    /// 2026-07-28: stateless, per-request `_meta`.
    Modern,
}

/// A request id as the client wrote it: a string or an integer, quotes
/// included, so that `1` and `"1"` differ and both are echoed byte for byte.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Id(Arc<[u8]>);

impl Id {
    /// The id of a message, from the value of its `id` member.
    fn of(value: Value<'_>) -> Result<Self, CallError> {
        let fits = match value.kind() {
            Kind::String => value.span().len() <= MAX_ID + 2,
            // Integers within i64, spelled as integers: 1.0 and 1e2 are refused (json-11, json-12).
            Kind::Number => value
                .as_number()
                .is_some_and(|text| text.parse::<i64>().is_ok() && text != "-0"),
            _ => false,
        };
        if fits {
            // An id is kept for as long as its call: what was read with it is not, for its sake.
            Ok(Self(value.raw().into()))
        } else {
            Err(CallError::Invalid("id"))
        }
    }

    /// For what the gateway itself asks: no client has it.
    pub fn own() -> Self {
        Self(b"0"[..].into())
    }

    /// The id as JSON.
    pub fn as_json(&self) -> &[u8] {
        &self.0
    }
}

/// An id, as JSON, in the one spelling that all of its spellings have: a client answers a
/// server's `"\u00e9"` by `"é"`, and means it.
pub fn spelled(id: &[u8]) -> Cow<'_, [u8]> {
    if !id.contains(&b'\\') {
        return id.into();
    }
    let text = serde_json::from_slice::<String>(id).ok();
    text.map_or(id.into(), |text| {
        serde_json::Value::from(text)
            .to_string()
            .into_bytes()
            .into()
    })
}

/// What kind of JSON-RPC message a [`Call`] is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Shape {
    Request(Id),
    Notification,
    /// An answer to a request that the server sent.
    Response(Id),
}

/// What a call is aimed at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Target<'a> {
    /// The server as a whole.
    Server,
    Tool(&'a str),
    Prompt(&'a str),
    /// A resource by its URI, as the client spelled it.
    Resource(&'a str),
}

/// One message from a client that may be decided on.
#[derive(Clone, Debug)]
pub struct Call {
    message: Message,
    shape: Shape,
    method: Arc<str>,
    aim: Aim,
    era: Era,
    /// Where these stand, and `_meta` in `params`.
    id: Option<Place>,
    params: Option<Place>,
    meta: Option<Place>,
}

/// A [`Target`] of its own; whoever keeps it shares the name with its call.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Aim {
    Server,
    Tool(Arc<str>),
    Prompt(Arc<str>),
    Resource(Arc<str>),
}

impl Call {
    /// Reads a request body. `modern_header` says that the HTTP request named
    /// the modern version.
    pub fn read(body: Bytes, modern_header: bool) -> Result<Self, NoCall> {
        let message =
            Message::parse(body)
                .map(Message::on_one_line)
                .map_err(|error| match error {
                    JsonError::Syntax(_) => CallError::NotJson,
                    JsonError::Duplicate(_) => CallError::Invalid("a member is named twice"),
                    JsonError::Depth(_) => CallError::Invalid("nested too deeply"),
                    JsonError::Nodes => CallError::Invalid("too many values"),
                })?;
        let root = message.root();
        if root.kind() == Kind::Array {
            return Err(CallError::Invalid("batches are not part of this protocol version").into());
        }
        if root.kind() != Kind::Object {
            return Err(CallError::Invalid("a message is an object").into());
        }
        let members = Members::of(root);
        let found = Self::found(&members, modern_header);
        let Found {
            shape,
            method,
            aim,
            era,
            meta,
        } = found.map_err(|error| NoCall {
            error,
            // Of what may have been a request (JSON-RPC 2.0, section 5).
            id: members
                .method
                .and(members.id)
                .and_then(|id| Id::of(id).ok()),
        })?;
        let [id, params, meta] =
            [members.id, members.params, meta].map(|value| value.map(Value::place));
        Ok(Self {
            message,
            shape,
            method,
            aim,
            era,
            id,
            params,
            meta,
        })
    }

    /// What its members say.
    fn found<'a>(members: &Members<'a>, modern_header: bool) -> Result<Found<'a>, CallError> {
        if members.jsonrpc.and_then(Value::as_str).as_deref() != Some("2.0") {
            return Err(CallError::Invalid("jsonrpc is not \"2.0\""));
        }
        let shape = shape(members)?;
        let (params, result) = (members.params, members.result);
        if meta::is_forged(params, result) {
            return Err(CallError::Params(
                "`_meta` names `thv/identity`, which the gateway alone may say",
            ));
        }
        let method = members.method.and_then(Value::as_str);
        let method: Arc<str> = method.unwrap_or_default().into();
        let meta = params.and_then(|params| params.get("_meta"));
        if params.is_some_and(|params| is_said_twice(params, meta)) {
            return Err(IN_ANOTHER_CASE);
        }
        // It is kept for as long as its call, as the id is.
        let token = meta.and_then(|meta| meta.get("progressToken"));
        if token.is_some_and(|token| token.span().len() > MAX_ID + 2) {
            return Err(CallError::Params("progressToken is too long"));
        }
        let modern_body = meta.is_some_and(|meta| meta.get(meta::VERSION).is_some());
        // `initialize` is legacy whatever version it names itself (mcp-L9).
        let modern = modern_body || (modern_header && *method != *"initialize");
        let era = if modern { Era::Modern } else { Era::Legacy };
        // What its era does not have is refused as that, not for what it is aimed at.
        let aim = if method::is_of(era, &method) {
            aim(&method, params)?
        } else {
            Aim::Server
        };
        Ok(Found {
            shape,
            method,
            aim,
            era,
            meta,
        })
    }

    /// Has its message's bytes in what `keep` makes of them.
    pub fn keep(&mut self, keep: impl FnOnce(Bytes) -> Bytes) {
        self.message.keep(keep);
    }

    pub fn message(&self) -> &Message {
        &self.message
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The method; empty for a response.
    pub fn method(&self) -> &str {
        &self.method
    }

    /// The same, for whoever keeps it.
    pub fn kept_method(&self) -> Arc<str> {
        self.method.clone()
    }

    pub fn era(&self) -> Era {
        self.era
    }

    /// The request's id; `None` for notifications and responses.
    pub fn id(&self) -> Option<&Id> {
        match &self.shape {
            Shape::Request(id) => Some(id),
            Shape::Notification | Shape::Response(_) => None,
        }
    }

    pub fn target(&self) -> Target<'_> {
        match &self.aim {
            Aim::Server => Target::Server,
            Aim::Tool(name) => Target::Tool(name),
            Aim::Prompt(name) => Target::Prompt(name),
            Aim::Resource(uri) => Target::Resource(uri),
        }
    }

    /// The same, for whoever keeps it.
    pub fn aim(&self) -> Aim {
        self.aim.clone()
    }

    /// A member of `params._meta`.
    pub fn meta(&self, name: &str) -> Option<Value<'_>> {
        self.message.at(self.meta?).get(name)
    }

    /// The `params` member, where there is one.
    pub fn params(&self) -> Option<Value<'_>> {
        Some(self.message.at(self.params?))
    }

    /// A member of `params`.
    pub fn param(&self, name: &str) -> Option<Value<'_>> {
        self.params()?.get(name)
    }

    /// The `id` member, where there is one.
    pub fn id_value(&self) -> Option<Value<'_>> {
        Some(self.message.at(self.id?))
    }
}

/// What the members of a call say.
struct Found<'a> {
    shape: Shape,
    method: Arc<str>,
    aim: Aim,
    era: Era,
    meta: Option<Value<'a>>,
}

/// Why a body is no call: the client's fault.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum CallError {
    /// JSON-RPC `-32700`.
    #[error("the body is not JSON")]
    NotJson,
    /// JSON-RPC `-32600`.
    #[error("not a JSON-RPC message: {0}")]
    Invalid(&'static str),
    /// JSON-RPC `-32602`.
    #[error("wrong parameters: {0}")]
    Params(&'static str),
}

/// A body that is no call, and the id of the request that it may have been.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error}")]
pub struct NoCall {
    pub error: CallError,
    pub id: Option<Id>,
}

impl From<CallError> for NoCall {
    fn from(error: CallError) -> Self {
        Self { error, id: None }
    }
}

fn shape(members: &Members<'_>) -> Result<Shape, CallError> {
    let id = members.id.map(Id::of).transpose()?;
    // A request has no answer, and an answer no parameters.
    let misplaced = if members.method.is_some() {
        members.result.or(members.error)
    } else {
        members.params
    };
    if members.others || misplaced.is_some() {
        return Err(CallError::Invalid("an unknown member"));
    }
    match members.method {
        Some(method) => {
            let name = method
                .as_str()
                .ok_or(CallError::Invalid("method is not a string"))?;
            if name.is_empty() || name.len() > MAX_METHOD {
                return Err(CallError::Invalid("method is empty or too long"));
            }
            if members
                .params
                .is_some_and(|params| params.kind() != Kind::Object)
            {
                return Err(CallError::Params("params is not an object"));
            }
            let notifies = name.starts_with("notifications/");
            match id {
                Some(_) if notifies => Err(CallError::Invalid("a notification has no id")),
                Some(id) => Ok(Shape::Request(id)),
                None if notifies => Ok(Shape::Notification),
                None => Err(CallError::Invalid("a request needs an id")),
            }
        }
        None => {
            let one = members.result.is_some() != members.error.is_some();
            let id = id
                .filter(|_| one)
                .ok_or(CallError::Invalid("neither a request nor a response"))?;
            Ok(Shape::Response(id))
        }
    }
}

fn aim(method: &str, params: Option<Value<'_>>) -> Result<Aim, CallError> {
    let text = |member: &'static str, error| {
        if params.is_some_and(|params| has_namesake(params, &[member])) {
            return Err(IN_ANOTHER_CASE);
        }
        params
            .and_then(|params| params.get(member))
            .and_then(Value::as_str)
            .map(Arc::from)
            .ok_or(CallError::Params(error))
    };
    match method {
        "tools/call" => {
            let arguments = params.and_then(|params| params.get("arguments"));
            if arguments.is_some_and(|arguments| arguments.kind() != Kind::Object) {
                return Err(CallError::Params("arguments is not an object"));
            }
            Ok(Aim::Tool(text("name", "name is not a string")?))
        }
        "prompts/get" => Ok(Aim::Prompt(text("name", "name is not a string")?)),
        "resources/read" => Ok(Aim::Resource(text("uri", "uri is not a string")?)),
        "resources/subscribe" | "resources/unsubscribe" => {
            let uri = text("uri", "uri is not a string")?;
            // It is kept for as long as its session.
            if uri.len() > subscription::MAX_URI {
                return Err(CallError::Params("uri is too long"));
            }
            Ok(Aim::Resource(uri))
        }
        _ => Ok(Aim::Server),
    }
}

/// Whether something that is read, replaced or added on the way stands there in another case.
fn is_said_twice(params: Value<'_>, meta: Option<Value<'_>>) -> bool {
    let within = |within: Option<Value<'_>>, members| {
        within.is_some_and(|within| has_namesake(within, members))
    };
    has_namesake(params, IN_PARAMS)
        || within(meta, &["progressToken", meta::CALLER])
        || within(
            params.get("notifications"),
            &["resourceSubscriptions", "taskIds"],
        )
}

/// Whether one of these has a namesake in another case. A server whose parser ignores case
/// (Go's encoding/json does) would read `Name` after `name`, and do what nobody has decided on.
fn has_namesake(object: Value<'_>, members: &[&str]) -> bool {
    object.named().any(|(name, _)| {
        // What is read has names of ASCII alone.
        let odd = (!name.is_ascii()).then(|| String::from_utf8_lossy(&name));
        let is_namesake = |member: &&str| {
            let is_like = match &odd {
                Some(name) => folded(name).eq(folded(member)),
                None => name.eq_ignore_ascii_case(member.as_bytes()),
            };
            is_like && *name != *member.as_bytes()
        };
        members.iter().any(is_namesake)
    })
}

/// Without case, as such parsers see it: two letters beyond ASCII are `s` and `k` (json-7).
fn folded(text: &str) -> impl Iterator<Item = char> {
    text.chars().map(|letter| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        letter => letter.to_ascii_lowercase(),
    })
}

const IN_ANOTHER_CASE: CallError =
    CallError::Params("a member that is decided on stands there in another case, too");
/// Members of `params` that say whose something is, or what was permitted, whatever the method.
const IN_PARAMS: &[&str] = &[
    "_meta",
    "arguments",
    "notifications",
    "progressToken",
    "requestId",
    "taskId",
];
/// Bytes of a string id, without its quotes (json-12).
const MAX_ID: usize = 256;
/// Bytes of a method's name.
const MAX_METHOD: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Call, CallError> {
        Call::read(Bytes::copy_from_slice(body.as_bytes()), false).map_err(|none| none.error)
    }

    #[track_caller]
    fn refused(body: &str, code: &str) {
        let error = read(body).expect_err(body);
        let found = match error {
            CallError::NotJson => "-32700",
            CallError::Invalid(_) => "-32600",
            CallError::Params(_) => "-32602",
        };
        assert_eq!(found, code, "{body}: {error}");
    }

    #[track_caller]
    fn accepted(body: &str) -> Call {
        read(body).unwrap_or_else(|error| panic!("{body}: {error}"))
    }

    const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;

    /// json-9: a method has a name, which is kept for as long as its call.
    #[test]
    fn a_method_has_a_name_of_some_length() {
        let named = |name: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{name}"}}"#);
        accepted(&named(&"m".repeat(MAX_METHOD)));
        refused(&named(&"m".repeat(MAX_METHOD + 1)), "-32600");
        refused(&named(""), "-32600");
        refused(&named("m").replace("\"m\"", "1"), "-32600");
    }

    /// json-1, json-2, json-3
    #[test]
    fn what_is_not_one_json_document_is_no_message() {
        accepted(PING);
        accepted(&format!(" \r\n{PING}\n"));
        for body in [
            "",
            "{",
            "NaN",
            "{\"a\":1,}",
            "// x\n{}",
            "\u{feff}{}",
            "\"\\ud800\"",
            "{\"a\":\"\u{1}\"}",
        ] {
            refused(body, "-32700");
        }
        refused(&format!("{PING} {PING}"), "-32700");
        refused(&format!("{PING}x"), "-32700");
        assert_eq!(
            Call::read(Bytes::from_static(b"{\"a\":\"\xff\"}"), false)
                .unwrap_err()
                .error,
            CallError::NotJson
        );
        let utf16: Vec<u8> = PING.encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(
            Call::read(utf16.into(), false).unwrap_err().error,
            CallError::NotJson
        );
    }

    /// json-4, json-6
    #[test]
    fn deep_and_doubled_members_are_refused() {
        let deep = |n: usize| {
            format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":{{"a":{}{}}}}}"#,
                "[".repeat(n),
                "]".repeat(n)
            )
        };
        accepted(&deep(62));
        refused(&deep(63), "-32600");
        for body in [
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","m\u0065thod":"tools/call"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"x":1,"x":2}}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_meta":{"p":1,"p":1}}}"#,
        ] {
            refused(body, "-32600");
        }
    }

    /// json-7, inc-5
    #[test]
    fn the_envelope_has_its_four_members_and_no_others() {
        for body in [
            r#"{"jsonrpc":"2.0","id":1,"Method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/call"}"#,
            "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\",\"param\u{17f}\":{}}",
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","error":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","err\u006fr":null}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{},"params":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"error":{},"params":null}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{},"":0}"#,
        ] {
            refused(body, "-32600");
        }
        // Inside params other names pass, and mean nothing.
        let call = accepted(
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"title":"b","name":"a"}}"#,
        );
        assert_eq!(call.target(), Target::Tool("a"));
    }

    /// json-7: Go's encoding/json takes the last of `name` and `Name`, so a policy on one would decide on another tool.
    #[test]
    fn what_is_decided_on_stands_there_in_one_case_alone() {
        for (method, params) in [
            ("tools/call", r#"{"name":"allowed","Name":"secret"}"#),
            ("tools/call", r#"{"NAM\u0045":"secret","name":"allowed"}"#),
            ("prompts/get", r#"{"name":"allowed","nAme":"secret"}"#),
            (
                "resources/read",
                r#"{"uri":"file:///ok","URI":"file:///etc/shadow"}"#,
            ),
        ] {
            refused(
                &format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#),
                "-32602",
            );
        }
    }

    /// json-7, json-18, json-19: the same for what says who calls, and whose a call, a token or a task is.
    #[test]
    fn what_is_rewritten_stands_there_in_one_case_alone() {
        for (method, params) in [
            (
                "tools/list",
                r#"{"_Meta":{"thv/identity":{"subject":"root"}}}"#,
            ),
            ("tools/list", r#"{"_meta":{},"_META":null}"#),
            (
                "tools/list",
                r#"{"_meta":{"THV/identity":{"subject":"root"}}}"#,
            ),
            (
                "tools/list",
                r#"{"_meta":{"progressToken":1,"ProgressToken":2}}"#,
            ),
            (
                "tools/list",
                "{\"_meta\":{\"progre\u{17f}sTo\u{212a}en\":2}}",
            ),
            ("tools/call", r#"{"name":"a","Arguments":{}}"#),
            ("tasks/get", r#"{"taskId":"mine","TaskID":"theirs"}"#),
            (
                "tasks/cancel",
                r#"{"ta\u017fkId":"theirs","taskId":"mine"}"#,
            ),
            (
                "subscriptions/listen",
                r#"{"notifications":{},"Notifications":{"resourceSubscriptions":["x:y"]}}"#,
            ),
            (
                "subscriptions/listen",
                r#"{"notifications":{"ResourceSubscriptions":["x:y"]}}"#,
            ),
        ] {
            refused(
                &format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#),
                "-32602",
            );
        }
        for (method, params) in [
            ("cancelled", r#"{"requestId":1,"requestID":2}"#),
            ("progress", r#"{"progressToken":1,"progresstoken":2}"#),
        ] {
            refused(
                &format!(
                    r#"{{"jsonrpc":"2.0","method":"notifications/{method}","params":{params}}}"#
                ),
                "-32602",
            );
        }
        // What a tool is called with is its own.
        accepted(
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"_Meta":1,"TaskId":1}}}"#,
        );
    }

    /// json-8
    #[test]
    fn batches_and_positional_arrays_are_refused() {
        for body in [
            "[]".to_owned(),
            format!("[{PING}]"),
            r#"["2.0",1,"tools/call",{}]"#.to_owned(),
        ] {
            refused(&body, "-32600");
        }
        for body in ["1", "\"x\"", "null", "true"] {
            refused(body, "-32600");
        }
    }

    /// json-9
    #[test]
    fn the_version_of_json_rpc_is_exact() {
        for version in ["2", "\"2.00\"", "\"1.0\"", "null", "2.0"] {
            refused(
                &format!(r#"{{"jsonrpc":{version},"id":1,"method":"ping"}}"#),
                "-32600",
            );
        }
        refused(r#"{"id":1,"method":"ping"}"#, "-32600");
    }

    /// json-10, json-11, json-12, json-14
    #[test]
    fn an_id_is_a_short_string_or_an_integer_and_keeps_its_spelling() {
        let with = |id: &str| format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#);
        for id in [
            "null",
            "1.5",
            "1.0",
            "1e2",
            "true",
            "{}",
            "[]",
            "-0",
            "9223372036854775808",
            "1e400",
        ] {
            refused(&with(id), "-32600");
        }
        refused(&with(&format!("\"{}\"", "x".repeat(257))), "-32600");
        for id in [
            "1",
            "\"1\"",
            "-7",
            "9223372036854775807",
            "\"\\u0041\"",
            "\"\"",
        ] {
            assert_eq!(accepted(&with(id)).id().unwrap().as_json(), id.as_bytes());
        }
        assert_ne!(accepted(&with("1")).id(), accepted(&with("\"1\"")).id());
    }

    /// json-15
    #[test]
    fn notifications_have_no_id_and_requests_have_one() {
        refused(
            r#"{"jsonrpc":"2.0","id":1,"method":"notifications/initialized"}"#,
            "-32600",
        );
        refused(r#"{"jsonrpc":"2.0","method":"tools/list"}"#, "-32600");
        let call = accepted(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#);
        assert_eq!(call.shape(), &Shape::Notification);
    }

    /// json-20
    #[test]
    fn parameters_of_another_shape_are_refused() {
        for params in [
            r#"[]"#,
            r#""x""#,
            r#"{}"#,
            r#"{"name":1}"#,
            r#"{"name":"a","arguments":[]}"#,
            r#"{"name":"a","arguments":null}"#,
        ] {
            refused(
                &format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#),
                "-32602",
            );
        }
        refused(
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call"}"#,
            "-32602",
        );
    }

    /// json-21: what is decided on is the name's own bytes.
    #[test]
    fn names_are_taken_as_they_are_written() {
        for name in [
            "e\u{301}",
            "\u{e9}",
            "a ",
            "A",
            "../x",
            "\u{202e}x",
            "x\\u0000",
            "line\\nbreak",
        ] {
            let call = accepted(&format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{name}"}}}}"#
            ));
            let written: String = serde_json::from_str(&format!("\"{name}\"")).unwrap();
            assert_eq!(call.target(), Target::Tool(&written));
        }
    }

    /// json-26
    #[test]
    fn a_resource_is_its_uri_as_the_client_spelled_it() {
        for uri in [
            "file:///etc/shadow",
            "FILE:///etc/%2e%2e/shadow",
            "http://169.254.169.254/",
        ] {
            let call = accepted(&format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{{"uri":"{uri}"}}}}"#
            ));
            assert_eq!(call.target(), Target::Resource(uri));
        }
    }

    #[test]
    fn a_response_has_a_result_or_an_error() {
        let call = accepted(r#"{"jsonrpc":"2.0","id":"s1","result":{}}"#);
        assert!(matches!(call.shape(), Shape::Response(id) if id.as_json() == b"\"s1\""));
        accepted(r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":""}}"#);
        refused(
            r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{}}"#,
            "-32600",
        );
        refused(r#"{"jsonrpc":"2.0","id":1}"#, "-32600");
        refused(r#"{"jsonrpc":"2.0","result":{}}"#, "-32600");
    }

    /// mcp-L9, mcp-T19: `initialize` is legacy, whatever it names.
    #[test]
    fn the_era_is_named_by_each_request() {
        let modern = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#;
        assert_eq!(accepted(modern).era(), Era::Modern);
        assert_eq!(accepted(PING).era(), Era::Legacy);
        assert_eq!(
            Call::read(Bytes::from_static(PING.as_bytes()), true)
                .unwrap()
                .era(),
            Era::Modern
        );
        let initialize = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2026-07-28"}}"#;
        assert_eq!(
            Call::read(Bytes::from_static(initialize.as_bytes()), true)
                .unwrap()
                .era(),
            Era::Legacy
        );
    }

    /// JSON-RPC 2.0, section 5: a request that is refused is told so under its id, wherever that can be read.
    #[test]
    fn a_request_that_is_refused_keeps_its_id() {
        for (body, id) in [
            (
                r#"{"jsonrpc":"2.0","id":7,"method":"ping","params":null}"#,
                Some("7"),
            ),
            (
                r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"a","arguments":null},"id":"x"}"#,
                Some("\"x\""),
            ),
            (r#"{"id":7,"method":"ping"}"#, Some("7")),
            (r#"{"jsonrpc":"2.0","id":7,"method":1}"#, Some("7")),
            (r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#, None),
            (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, None),
            (r#"{"jsonrpc":"2.0","method":"ping"}"#, None),
            (r#"{"jsonrpc":"2.0","id":7,"result":1,"error":1}"#, None),
            (r#"[{"jsonrpc":"2.0","id":7,"method":"ping"}]"#, None),
            ("{", None),
        ] {
            let none = Call::read(Bytes::from_static(body.as_bytes()), false).unwrap_err();
            let found = none.id.as_ref().map(Id::as_json);
            assert_eq!(found, id.map(str::as_bytes), "{body}");
        }
    }

    /// fault-46: what a session keeps of a subscription is as short; what is only read may have any name.
    #[test]
    fn who_subscribes_names_no_long_resource() {
        let with = |method, length: usize| {
            let uri = "u".repeat(length);
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{"uri":"{uri}"}}}}"#)
        };
        for method in ["resources/subscribe", "resources/unsubscribe"] {
            accepted(&with(method, subscription::MAX_URI));
            refused(&with(method, subscription::MAX_URI + 1), "-32602");
        }
        accepted(&with("resources/read", subscription::MAX_URI + 1));
    }

    /// fault-46: so does its progress token, which is as short.
    #[test]
    fn a_progress_token_is_no_longer_than_an_id() {
        let with = |length| {
            let token = "t".repeat(length);
            format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"x","_meta":{{"progressToken":"{token}"}}}}}}"#
            )
        };
        accepted(&with(MAX_ID));
        refused(&with(MAX_ID + 1), "-32602");
    }

    /// fault-46: the id of a call waits as long as the call does, and its body not for it.
    #[test]
    fn an_id_keeps_no_body() {
        struct Body(Vec<u8>, #[expect(dead_code, reason = "counted")] Arc<()>);
        impl AsRef<[u8]> for Body {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        let alive = Arc::new(());
        let text = r#"{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"x"}}"#;
        let body = Bytes::from_owner(Body(text.into(), alive.clone()));
        let id = Call::read(body, false).unwrap().id().unwrap().clone();
        assert_eq!(id.as_json(), b"\"a\"");
        assert_eq!(Arc::strong_count(&alive), 1);
    }

    #[test]
    fn replacing_spans_leaves_every_other_byte() {
        let text = r#"{ "jsonrpc":"2.0", "id" : "a\u0062", "method":"ping", "params":{"n":1.0e+2,"u":"\u00e9é"} }"#;
        let call = accepted(text);
        let id = call.message().root().get("id").unwrap().span();
        let changed = call.message().with(&[(id, b"77")]);
        assert_eq!(
            String::from_utf8(changed).unwrap(),
            text.replace(r#""a\u0062""#, "77")
        );
    }
}

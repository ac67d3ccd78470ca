//! One message from a client, read once.

use std::{borrow::Cow, ops::Range};

use bytes::Bytes;

use crate::json::{self, Document, JsonError, Kind, Value};

/// Which half of MCP's history a message belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Era {
    /// Protocol versions to 2025-11-25: `initialize`, sessions.
    Legacy,
    /// 2026-07-28: stateless, per-request `_meta`.
    Modern,
}

/// A JSON-RPC message: its bytes, and what stands where in them.
#[derive(Clone, Debug)]
pub struct Message {
    bytes: Bytes,
    document: Document,
}

impl Message {
    /// Reads one JSON document strictly.
    pub fn parse(bytes: Bytes) -> Result<Self, JsonError> {
        let document = Document::parse(&bytes, json::MESSAGE)?;
        Ok(Self { bytes, document })
    }

    pub fn root(&self) -> Value<'_> {
        self.document.root(&self.bytes)
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The message's text with `replacements` in place of the given spans;
    /// they must be in order and must not overlap. All else stays byte for byte.
    pub fn with(&self, replacements: &[(Range<usize>, &[u8])]) -> Vec<u8> {
        let grown: usize = replacements.iter().map(|(_, text)| text.len()).sum();
        let mut out = Vec::with_capacity(self.bytes.len() + grown);
        let mut at = 0;
        for (span, text) in replacements {
            out.extend_from_slice(&self.bytes[at..span.start]);
            out.extend_from_slice(text);
            at = span.end;
        }
        out.extend_from_slice(&self.bytes[at..]);
        out
    }
}

/// A request id as the client wrote it: a string or an integer, quotes
/// included, so that `1` and `"1"` differ and both are echoed byte for byte.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Id(Bytes);

impl Id {
    /// The id of a message, from the value of its `id` member.
    fn of(bytes: &Bytes, value: Value<'_>) -> Result<Self, CallError> {
        let fits = match value.kind() {
            Kind::String => value.span().len() <= MAX_ID + 2,
            // Integers within i64, spelled as integers: 1.0 and 1e2 are refused (json-11, json-12).
            Kind::Number => value.as_number().is_some_and(|text| text.parse::<i64>().is_ok() && text != "-0"),
            _ => false,
        };
        if fits { Ok(Self(bytes.slice(value.span()))) } else { Err(CallError::Invalid("id")) }
    }

    /// The id as JSON.
    pub fn as_json(&self) -> &[u8] {
        &self.0
    }
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
    method: String,
    target: Named,
    era: Era,
}

#[derive(Clone, Debug)]
enum Named {
    Server,
    Tool(String),
    Prompt(String),
    Resource(String),
}

impl Call {
    /// Reads a request body. `modern_header` says that the HTTP request named
    /// the modern version.
    pub fn read(body: Bytes, modern_header: bool) -> Result<Self, CallError> {
        let message = Message::parse(body).map_err(|error| match error {
            JsonError::Syntax(_) => CallError::NotJson,
            JsonError::Duplicate(_) => CallError::Invalid("a member is named twice"),
            JsonError::Depth(_) => CallError::Invalid("nested too deeply"),
            JsonError::Nodes => CallError::Invalid("too many values"),
        })?;
        let root = message.root();
        if root.kind() == Kind::Array {
            return Err(CallError::Invalid("batches are not part of this protocol version"));
        }
        if root.kind() != Kind::Object {
            return Err(CallError::Invalid("a message is an object"));
        }
        if root.get("jsonrpc").and_then(Value::as_str).as_deref() != Some("2.0") {
            return Err(CallError::Invalid("jsonrpc is not \"2.0\""));
        }
        let shape = shape(&message)?;
        let method = root.get("method").and_then(Value::as_str).unwrap_or_default().into_owned();
        let params = root.get("params");
        let target = target(&method, params)?;
        let modern_body = params
            .and_then(|params| params.get("_meta"))
            .is_some_and(|meta| meta.get("io.modelcontextprotocol/protocolVersion").is_some());
        // `initialize` is legacy whatever version it names (mcp-L9).
        let modern = (modern_header || modern_body) && method != "initialize";
        let era = if modern { Era::Modern } else { Era::Legacy };
        Ok(Self { message, shape, method, target, era })
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
        match &self.target {
            Named::Server => Target::Server,
            Named::Tool(name) => Target::Tool(name),
            Named::Prompt(name) => Target::Prompt(name),
            Named::Resource(uri) => Target::Resource(uri),
        }
    }

    /// The `params` member, where there is one.
    pub fn params(&self) -> Option<Value<'_>> {
        self.message.root().get("params")
    }
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

fn shape(message: &Message) -> Result<Shape, CallError> {
    let root = message.root();
    let method = root.get("method");
    let id = root.get("id").map(|id| Id::of(message.bytes(), id)).transpose()?;
    // Only these members: `Method` or `paramſ` is somebody else's parser's idea (json-7).
    let allowed: &[&str] =
        if method.is_some() { &["jsonrpc", "id", "method", "params"] } else { &["jsonrpc", "id", "result", "error"] };
    if root.members().any(|(name, _)| !allowed.contains(&name.as_ref())) {
        return Err(CallError::Invalid("an unknown member"));
    }
    match method {
        Some(method) => {
            let name = method.as_str().ok_or(CallError::Invalid("method is not a string"))?;
            if name.is_empty() || name.len() > MAX_METHOD {
                return Err(CallError::Invalid("method is empty or too long"));
            }
            if root.get("params").is_some_and(|params| params.kind() != Kind::Object) {
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
            let one = root.get("result").is_some() != root.get("error").is_some();
            let id = id.filter(|_| one).ok_or(CallError::Invalid("neither a request nor a response"))?;
            Ok(Shape::Response(id))
        }
    }
}

fn target(method: &str, params: Option<Value<'_>>) -> Result<Named, CallError> {
    let text = |member: &'static str, error| {
        params
            .and_then(|params| params.get(member))
            .and_then(Value::as_str)
            .map(Cow::into_owned)
            .ok_or(CallError::Params(error))
    };
    match method {
        "tools/call" => {
            let arguments = params.and_then(|params| params.get("arguments"));
            if arguments.is_some_and(|arguments| arguments.kind() != Kind::Object) {
                return Err(CallError::Params("arguments is not an object"));
            }
            Ok(Named::Tool(text("name", "name is not a string")?))
        }
        "prompts/get" => Ok(Named::Prompt(text("name", "name is not a string")?)),
        "resources/read" | "resources/subscribe" | "resources/unsubscribe" => {
            Ok(Named::Resource(text("uri", "uri is not a string")?))
        }
        _ => Ok(Named::Server),
    }
}

/// Bytes of a string id, without its quotes (json-12).
const MAX_ID: usize = 256;
/// Bytes of a method's name.
const MAX_METHOD: usize = 128;

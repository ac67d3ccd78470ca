//! A legacy server as a modern client sees it.
//!
//! Pure: what `initialize` said becomes what `server/discover` says, a modern
//! request loses what older versions do not know, and an answer gains what
//! modern clients need (mcp-T20, mcp-T22, mcp-T24, mcp-T30). Used by `session`
//! for children that do not speak modern MCP.

use serde_json::{Map, json};

use crate::{
    json::{Kind, Value},
    mcp::{
        Call, Id, Message,
        answer::{self, member},
        edit::{Fate, edited},
        meta::{self, Change},
        subscription, task, version,
    },
};

/// What a legacy server said of itself.
#[derive(Debug)]
pub struct LegacyServer {
    /// Its `serverInfo`, as it was written where that is short.
    info: String,
    capabilities: serde_json::Value,
    /// Its tools can be called as tasks.
    tasks: bool,
    instructions: Option<String>,
    /// It speaks the version in which several messages may come in one.
    batches: bool,
}

impl LegacyServer {
    /// Reads its answer to `initialize`; `None` if that is no result.
    pub fn read(answer: &Message) -> Option<Self> {
        let result = answer.root().get("result")?;
        let capabilities = result.get("capabilities");
        Some(Self {
            info: info(result.get("serverInfo")),
            capabilities: known(capabilities),
            tasks: capabilities.is_some_and(task::are_made_by),
            instructions: instructions(result),
            batches: result
                .get("protocolVersion")
                .and_then(Value::as_str)
                .is_some_and(|version| version == version::BATCHES),
        })
    }

    /// Whether it may say several things at once.
    pub fn batches(&self) -> bool {
        self.batches
    }

    /// Its `serverInfo`, as it was written.
    pub fn info(&self) -> &str {
        &self.info
    }

    /// What it said that it can, as far as modern MCP knows it.
    pub fn capabilities(&self) -> &serde_json::Value {
        &self.capabilities
    }

    /// Whether its tools can be called as tasks.
    pub fn makes_tasks(&self) -> bool {
        self.tasks
    }

    /// Whether it writes log messages.
    pub fn logs(&self) -> bool {
        self.capabilities.get("logging").is_some()
    }

    /// The answer to `server/discover`.
    pub fn discovered(&self, id: &Id) -> Vec<u8> {
        let mut result = json!({
            "supportedVersions": [version::MODERN],
            "capabilities": self.capabilities,
        });
        if let Some(instructions) = &self.instructions {
            result["instructions"] = instructions.as_str().into();
        }
        if self.tasks {
            result["capabilities"]["extensions"] = json!({ task::EXTENSION: {} });
        }
        let text = answer::result(id.as_json(), result.to_string().as_bytes());
        match Message::parse(text.clone().into()) {
            Ok(message) => self.answered(&message, id, true),
            Err(_) => text,
        }
    }

    /// The answer that ends a subscription.
    pub fn ended(&self, id: &Id) -> Vec<u8> {
        subscription::ended(id, Some(&self.info))
    }

    /// Its answer, under the client's id, with what modern clients need.
    pub fn answered(&self, answer: &Message, id: &Id, cacheable: bool) -> Vec<u8> {
        let root = answer.root();
        let mut changes: Vec<Change> = Vec::new();
        if let Some(own) = root.get("id") {
            changes.push((own.span(), id.as_json().to_vec()));
        }
        if let Some(result) = root.get("result") {
            changes.push((result.span(), self.completed(result, cacheable)));
        }
        if let Some(code) = root.get("error").and_then(|error| error.get("code"))
            && let Some(modern) = code.as_number().and_then(modern_code)
        {
            changes.push((code.span(), modern.to_vec()));
        }
        meta::changed(answer, changes)
    }

    /// A result, its members as they were but for those that are the gateway's to say.
    fn completed(&self, result: Value<'_>, cacheable: bool) -> Vec<u8> {
        let mut first = br#""resultType":"complete""#.to_vec();
        if cacheable {
            first.extend_from_slice(br#","ttlMs":0,"cacheScope":"private""#);
        }
        first.extend_from_slice(br#","_meta":"#);
        first.extend_from_slice(&self.meta_of(Some(result)));
        if result.kind() != Kind::Object {
            return [b"{", first.as_slice(), b"}"].concat();
        }
        edited(result, &first, |name, _| match name {
            "_meta" | "resultType" | "ttlMs" | "cacheScope" => Fate::Goes,
            _ => Fate::Stays,
        })
    }

    /// The result's `_meta`, whose reserved names are the gateway's to say.
    pub fn meta_of(&self, result: Option<Value<'_>>) -> Vec<u8> {
        let mut info = Vec::new();
        member(&mut info, meta::SERVER, self.info.as_bytes());
        let meta = result.and_then(|result| result.get("_meta"));
        match meta.filter(|meta| meta.kind() == Kind::Object) {
            Some(meta) => edited(meta, &info, |name, _| unless_reserved(name)),
            None => [b"{", info.as_slice(), b"}"].concat(),
        }
    }
}

/// What of the request a legacy server may see, with `token` for its progress token: the one
/// change that this takes, if any.
pub fn legacy_params(call: &Call, token: &[u8]) -> Option<Change> {
    let params = call.params()?;
    let meta = legacy_meta(params, token);
    // A modern client does not ask for a task: to an older server this would be just that.
    let asks = |name: &str| name == "task" && call.method() == "tools/call";
    // What it was asked for is no business of a server that has asked by a refusal.
    let newer = |name: &str| asks(name) || matches!(name, "requestState" | "inputResponses");
    if !params.members().any(|(name, _)| newer(&name)) {
        return meta;
    }
    let kept = edited(params, b"", |name, _| match (name, &meta) {
        (name, _) if newer(name) => Fate::Goes,
        ("_meta", Some((_, meta))) => Fate::Becomes(meta.clone()),
        _ => Fate::Stays,
    });
    Some((params.span(), kept))
}

fn legacy_meta(params: Value<'_>, token: &[u8]) -> Option<Change> {
    let meta = params.get("_meta")?;
    if meta.kind() != Kind::Object {
        return Some((meta.span(), b"{}".to_vec()));
    }
    let kept = edited(meta, b"", |name, _| match name {
        "progressToken" => Fate::Becomes(token.to_vec()),
        name => unless_reserved(name),
    });
    Some((meta.span(), kept))
}

/// The protocol's own names stay on their side of the bridge.
pub(super) fn unless_reserved(name: &str) -> Fate {
    if name.starts_with(meta::RESERVED) {
        Fate::Goes
    } else {
        Fate::Stays
    }
}

/// How much a log message of that level matters (RFC 5424); `None` for no level.
pub fn log_level(level: &str) -> Option<usize> {
    LEVELS.iter().position(|known| *known == level)
}

/// The level's own name.
pub fn level_name(level: usize) -> &'static str {
    LEVELS[level.min(LEVELS.len() - 1)]
}

/// The capabilities that modern MCP knows, and of each what it tells: nothing else of what may stand
/// there is kept with a session.
pub(super) fn known(capabilities: Option<Value<'_>>) -> serde_json::Value {
    let mut known = Map::new();
    for name in ["tools", "prompts", "resources", "completions", "logging"] {
        let Some(said) = capabilities.and_then(|all| all.get(name)) else {
            continue;
        };
        let mut tells = Map::new();
        for what in ["listChanged", "subscribe"] {
            if said.get(what).and_then(Value::as_bool) == Some(true) {
                tells.insert(what.to_owned(), true.into());
            }
        }
        known.insert(name.to_owned(), tells.into());
    }
    known.into()
}

/// A `serverInfo` as it was written; of a longer one, which has pictures in it, what it is called, and one that says
/// nothing where there is none.
pub(super) fn info(said: Option<Value<'_>>) -> String {
    let info = said.and_then(|said| short_object(said, MAX_INFO).or_else(|| called(said)));
    info.unwrap_or_else(|| NAMELESS.to_owned())
}

/// What somebody is called, as it was written.
pub(super) fn called(info: Value<'_>) -> Option<String> {
    if info.kind() != Kind::Object {
        return None;
    }
    let said = |name| {
        let value = info
            .get(name)
            .filter(|value| value.span().len() <= MAX_NAME);
        value.map(|value| String::from_utf8_lossy(value.raw()))
    };
    // The first two are not left out (2025-11-25, `Implementation`).
    let [name, version] = ["name", "version"].map(|name| said(name).unwrap_or("\"\"".into()));
    let title = said("title").map(|title| format!(r#","title":{title}"#));
    let title = title.unwrap_or_default();
    Some(format!(r#"{{"name":{name},"version":{version}{title}}}"#))
}

/// A result's `instructions`. Long ones are left out: the half of a sentence may say the contrary of it.
pub(super) fn instructions(result: Value<'_>) -> Option<String> {
    let said = result.get("instructions")?;
    let said = (said.span().len() <= MAX_INSTRUCTIONS).then(|| said.as_str())?;
    said.map(String::from)
}

/// An object as it was written, if it is no longer than `most` bytes.
pub(super) fn short_object(said: Value<'_>, most: usize) -> Option<String> {
    let is_kept = said.kind() == Kind::Object && said.span().len() <= most;
    is_kept.then(|| String::from_utf8_lossy(said.raw()).into_owned())
}

/// A legacy server's error with a code that modern MCP has, where it is told within something else.
pub(super) fn modern_error(error: Value<'_>) -> Vec<u8> {
    let code = error.get("code");
    let modern = code.and_then(|code| modern_code(code.as_number()?));
    let text = error.raw();
    match (code, modern) {
        (Some(code), Some(modern)) => {
            let at = code.span().start - error.span().start;
            let rest = at + code.span().len();
            [&text[..at], modern, &text[rest..]].concat()
        }
        _ => text.to_vec(),
    }
}

/// Codes that modern MCP must not see: a resource that is not there, and a visit that is needed first.
fn modern_code(code: &str) -> Option<&'static [u8]> {
    match code {
        "-32002" => Some(b"-32602"),
        "-32042" => Some(b"-32603"),
        _ => None,
    }
}

/// A `serverInfo` that says nothing.
const NAMELESS: &str = r#"{"name":"","version":""}"#;

/// Bytes of a `serverInfo` as JSON: it is kept with its session, and told with each answer.
const MAX_INFO: usize = 16 << 10;

/// Bytes of each part of what somebody is called, where all that is said of it is too long.
const MAX_NAME: usize = 1 << 10;

/// Bytes of a server's `instructions` as JSON: they are kept with its session.
const MAX_INSTRUCTIONS: usize = 64 << 10;

const LEVELS: [&str; 8] = [
    "debug",
    "info",
    "notice",
    "warning",
    "error",
    "critical",
    "alert",
    "emergency",
];

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(text: &str) -> Message {
        Message::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    fn server() -> LegacyServer {
        LegacyServer::read(&message(
            r#"{"id":1,"result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{"listChanged":true},"tasks":{},"logging":{}},
                "serverInfo":{"name":"old", "version":"1"},"instructions":"be kind"}}"#,
        ))
        .unwrap()
    }

    #[test]
    fn what_initialize_said_is_what_discover_says() {
        let discovered: serde_json::Value =
            serde_json::from_slice(&server().discovered(&Id::own())).unwrap();
        assert_eq!(
            discovered["result"],
            json!({
                "resultType": "complete", "ttlMs": 0, "cacheScope": "private",
                "supportedVersions": ["2026-07-28"], "instructions": "be kind",
                "capabilities": { "tools": { "listChanged": true }, "logging": {} },
                "_meta": { "io.modelcontextprotocol/serverInfo": { "name": "old", "version": "1" } },
            })
        );
        assert!(LegacyServer::read(&message(r#"{"id":1,"error":{}}"#)).is_none());
    }

    #[test]
    fn of_what_a_server_says_of_itself_little_is_kept() {
        let long = |size: usize| "x".repeat(size - 2);
        let read = |logging: &str, info: &str, instructions: &str| {
            LegacyServer::read(&message(&format!(
                r#"{{"id":1,"result":{{"capabilities":{{"logging":{logging},"tools":{{"x":{logging},"listChanged":true}},"completions":{{}}}},
                    "serverInfo":{info},"instructions":"{instructions}"}}}}"#
            )))
            .unwrap()
        };
        let many = format!(r#"{{"a":[{}0]}}"#, r#"{"":0},"#.repeat(100_000));
        let info = |size| format!(r#"{{"name":"{}"}}"#, long(size - 9));
        let most = read(&many, &info(MAX_INFO), &long(MAX_INSTRUCTIONS));
        assert_eq!(
            *most.capabilities(),
            json!({ "tools": { "listChanged": true }, "completions": {}, "logging": {} })
        );
        assert!(most.logs());
        assert_eq!(most.info().len(), MAX_INFO);
        assert_eq!(most.instructions.unwrap().len(), MAX_INSTRUCTIONS - 2);
        let more = read("{}", &info(MAX_INFO + 1), &long(MAX_INSTRUCTIONS + 1));
        assert_eq!(more.info(), NAMELESS);
        assert_eq!(more.instructions, None);
        // A picture is no reason to forget a name.
        let named = r#"{"name":"\u0061","title":"A"}"#;
        let picture = named.replace(
            '}',
            &format!(r#","icons":[{{"src":"{}"}}]}}"#, long(MAX_INFO)),
        );
        let more = read("{}", &picture, "");
        assert_eq!(more.info(), r#"{"name":"\u0061","version":"","title":"A"}"#);
    }

    /// json-22, json-23: numbers stay as they were; the protocol's own names in `_meta` are the gateway's.
    #[test]
    fn an_answer_gains_what_modern_clients_need_and_loses_nothing() {
        let answer = message(
            r#"{"jsonrpc":"2.0","id":9,"result":{"n":9007199254740993,"resultType":"x","_meta":{"mine":1.0,"io.modelcontextprotocol/serverInfo":"forged"}}}"#,
        );
        let text = String::from_utf8(server().answered(&answer, &Id::own(), false)).unwrap();
        assert_eq!(
            text,
            r#"{"jsonrpc":"2.0","id":0,"result":{"resultType":"complete","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"old", "version":"1"},"mine":1.0},"n":9007199254740993}}"#
        );
    }

    /// mcp-T28
    #[test]
    fn a_subscription_ends_with_an_answer() {
        let ended = String::from_utf8(server().ended(&Id::own())).unwrap();
        assert_eq!(
            ended,
            r#"{"jsonrpc":"2.0","id":0,"result":{"resultType":"complete","_meta":{"io.modelcontextprotocol/subscriptionId":0,"io.modelcontextprotocol/serverInfo":{"name":"old", "version":"1"}}}}"#
        );
    }

    /// mcp-T24
    #[test]
    fn codes_that_modern_mcp_must_not_see_are_translated() {
        for (code, modern) in [
            ("-32002", "-32602"),
            ("-32042", "-32603"),
            ("-32601", "-32601"),
        ] {
            let answer = |code| format!(r#"{{"id":0,"error":{{"code":{code},"message":"x"}}}}"#);
            let answered = server().answered(&message(&answer(code)), &Id::own(), true);
            assert_eq!(String::from_utf8(answered).unwrap(), answer(modern));
        }
    }

    #[test]
    fn a_legacy_server_sees_nothing_of_the_newer_protocol() {
        let call = Call::read(
            Bytes::from_static(br#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","progressToken":"t","a\"b":[1]}}}"#),
            true,
        )
        .unwrap();
        let (_, meta) = legacy_params(&call, b"7").unwrap();
        assert_eq!(meta, br#"{"progressToken":7,"a\"b":[1]}"#);
    }

    /// mcp-L11: a modern client's `task` is not taken for the older way to ask for one.
    #[test]
    fn a_legacy_server_is_not_asked_for_a_task_by_a_modern_client() {
        let call = |params: &str| {
            let text =
                format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#);
            let call = Call::read(text.into(), true).unwrap();
            legacy_params(&call, b"7").map(|(_, kept)| String::from_utf8(kept).unwrap())
        };
        assert_eq!(call(r#"{"name":"t"}"#), None);
        assert_eq!(
            call(r#"{"task":{"ttl":1},"name":"t","arguments":{"task":1.0}}"#).as_deref(),
            Some(r#"{"name":"t","arguments":{"task":1.0}}"#)
        );
        assert_eq!(
            call(r#"{"name":"t","task":{},"_meta":{"io.modelcontextprotocol/x":1,"mine":2}}"#)
                .as_deref(),
            Some(r#"{"name":"t","_meta":{"mine":2}}"#)
        );
    }
}

//! A modern server as a legacy client sees it.
//!
//! Pure: what `server/discover` said becomes what `initialize` says, a request
//! gains what modern servers need to be told each time (mcp-T20), and an answer
//! loses what older versions do not know. Used by `session` for children that
//! speak nothing but modern MCP.

use serde_json::json;

use crate::{
    json::{Kind, Value},
    mcp::{
        Call, Id, Message,
        answer::{self, member},
        bridge,
        edit::{Fate, edited},
        input::Abilities,
        meta::{self, Change},
        task, version,
    },
};

/// What a modern server has said of itself to `server/discover`: as much as is kept of that.
#[derive(Clone, Debug)]
pub struct Discovered {
    capabilities: serde_json::Value,
    /// Its `serverInfo`, as it was written where that is short.
    info: String,
    instructions: Option<String>,
    /// It may make tasks of calls.
    tasks: bool,
}

impl Discovered {
    /// Reads its answer; `None` if that is none of a server that speaks modern MCP.
    pub fn read(answer: &Message) -> Option<Self> {
        let result = answer.root().get("result")?;
        let modern = |version: Value<'_>| version.as_str().as_deref() == Some(version::MODERN);
        let versions = result.get("supportedVersions")?;
        versions.elements().any(modern).then_some(())?;
        Some(Self {
            tasks: result.get("capabilities").is_some_and(task::has_extension),
            capabilities: bridge::known(result.get("capabilities")),
            info: bridge::info(
                result
                    .get("_meta")
                    .and_then(|meta| meta.get(meta::SERVER))
                    .or_else(|| result.get("serverInfo")),
            ),
            instructions: bridge::instructions(result),
        })
    }
}

/// What a modern server said of itself, and what its client did.
#[derive(Debug)]
pub struct ModernServer {
    said: Discovered,
    /// The version that it is spoken to in, as JSON.
    version: String,
    /// The client's capabilities as modern MCP has them, and its `clientInfo`, as JSON.
    can: String,
    client: Option<String>,
    abilities: Abilities,
}

impl ModernServer {
    /// One that has said that, for the client that says `initialize`.
    pub fn new(said: Discovered, initialize: &Call) -> Self {
        let server = said;
        let is_object = |value: &Value<'_>| value.kind() == Kind::Object;
        let said = initialize.params();
        let said = |name| said.and_then(|said| said.get(name)).filter(is_object);
        let capabilities = said("capabilities");
        let mut can: Vec<(&str, &[u8])> = Vec::new();
        for name in ["elicitation", "sampling", "roots"] {
            let Some(capability) = capabilities.and_then(|all| all.get(name)).filter(is_object)
            else {
                continue;
            };
            // There is no telling a modern server that roots have changed.
            let capability = if name == "roots" {
                b"{}"
            } else {
                capability.raw()
            };
            // Left out, not emptied: an elicitation that names no mode means forms.
            if capability.len() <= MAX_SAID {
                can.push((name, capability));
            }
        }
        let extensions = json!({ task::EXTENSION: {} }).to_string();
        if server.tasks {
            // Who waits for its call has it followed here.
            can.push(("extensions", extensions.as_bytes()));
        }
        let can = answer::object(can);
        Self {
            said: server,
            version: json!(version::MODERN).to_string(),
            can: String::from_utf8_lossy(&can).into_owned(),
            client: said("clientInfo").and_then(|info| {
                bridge::short_object(info, MAX_SAID).or_else(|| bridge::called(info))
            }),
            abilities: Abilities::read(capabilities),
        }
    }

    pub fn capabilities(&self) -> &serde_json::Value {
        &self.said.capabilities
    }

    /// Whether it tells when resources change that somebody subscribes to.
    pub fn tells_of_resources(&self) -> bool {
        self.said.capabilities["resources"]["subscribe"] == true
    }

    /// Whether it may make tasks of calls.
    pub fn makes_tasks(&self) -> bool {
        self.said.tasks
    }

    /// What its client can be asked.
    pub fn abilities(&self) -> Abilities {
        self.abilities
    }

    /// The answer to `initialize`.
    pub fn initialized(&self, id: &Id, version: &str) -> Vec<u8> {
        let mut result =
            json!({ "protocolVersion": version, "capabilities": self.said.capabilities });
        if let Some(instructions) = &self.said.instructions {
            result["instructions"] = instructions.as_str().into();
        }
        let mut result = result.to_string();
        result.pop();
        let result = format!(r#"{result},"serverInfo":{}}}"#, self.said.info);
        answer::result(id.as_json(), result.as_bytes())
    }

    /// What each request says in `_meta`, as members; log messages from `level` (JSON) on are wanted.
    fn meta<'a>(
        &'a self,
        level: Option<&'a str>,
    ) -> impl Iterator<Item = (&'static str, &'a [u8])> {
        let members = [
            (meta::VERSION, Some(&*self.version)),
            (meta::CAPABILITIES, Some(&*self.can)),
            (meta::CLIENT, self.client.as_deref()),
            (meta::LOG_LEVEL, level),
        ];
        let members = members.into_iter();
        members.filter_map(|(name, value)| Some((name, value?.as_bytes())))
    }

    /// The same, as an object.
    pub fn own_meta(&self) -> String {
        let text = answer::object(self.meta(None));
        String::from_utf8_lossy(&text).into_owned()
    }

    /// A legacy client's request under the gateway's `number`, with what modern servers
    /// need, and what an earlier one like it was asked for, if it goes on.
    pub fn request(
        &self,
        call: &Message,
        number: u64,
        level: Option<&'static str>,
        given: Option<Given<'_>>,
    ) -> Vec<Change> {
        let number = number.to_string().into_bytes();
        let root = call.root();
        let params = root.get("params");
        let token = params
            .and_then(|params| params.get("_meta"))
            .and_then(|meta| meta.get("progressToken"));
        let mut changes: Vec<Change> = [root.get("id"), token]
            .into_iter()
            .flatten()
            .map(|value| (value.span(), number.clone()))
            .collect();
        let level = level.map(|level| format!("\"{level}\""));
        let members: Vec<(&str, &[u8])> = self.meta(level.as_deref()).collect();
        changes.extend(meta::added(call, &members));
        if let (Some(given), Some(params)) = (given, params) {
            let mut more = Vec::new();
            let members = [
                ("inputResponses", Some(given.responses)),
                ("requestState", given.state),
            ];
            for (name, value) in members {
                let Some(value) = value else { continue };
                match params.get(name) {
                    Some(old) => changes.push((old.span(), value.to_vec())),
                    None => {
                        member(&mut more, name, value);
                        more.push(b',');
                    }
                }
            }
            // Whatever can be asked for input names something, so there are members after these.
            let start = params.span().start + 1;
            changes.push((start..start, more));
        }
        changes.sort_by_key(|(span, _)| span.start);
        changes
    }

    /// What [`Self::request`] needs of a call: one of many small values takes sixteen times its text otherwise.
    pub fn outline(call: &Message) -> Message {
        call.outline(&[
            &["id", "params"],
            &["_meta", "inputResponses", "requestState"],
            &[
                "progressToken",
                meta::VERSION,
                meta::CAPABILITIES,
                meta::CLIENT,
                meta::LOG_LEVEL,
            ],
        ])
    }

    /// Its answer, under the client's id, without what older versions do not know.
    pub fn answered(&self, answer: &Message, id: &Id) -> Vec<u8> {
        let root = answer.root();
        let mut changes: Vec<Change> = Vec::new();
        if let Some(own) = root.get("id") {
            changes.push((own.span(), id.as_json().to_vec()));
        }
        if let Some(result) = root
            .get("result")
            .filter(|result| result.kind() == Kind::Object)
        {
            changes.push((result.span(), plain(result)));
        }
        meta::changed(answer, changes)
    }
}

/// What a call was asked for, and the state that it goes on from.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// As a JSON object.
    pub responses: &'a [u8],
    /// As JSON.
    pub state: Option<&'a [u8]>,
}

/// A result without what modern MCP alone has in it.
pub(super) fn plain(result: Value<'_>) -> Vec<u8> {
    edited(result, b"", |name, value| match name {
        "resultType" | "ttlMs" | "cacheScope" => Fate::Goes,
        "_meta" if value.kind() == Kind::Object => {
            let is_reserved = |name: &str| name.starts_with(meta::RESERVED);
            if value.members().all(|(name, _)| is_reserved(&name)) {
                Fate::Goes
            } else {
                Fate::Becomes(edited(value, b"", |name, _| bridge::unless_reserved(name)))
            }
        }
        _ => Fate::Stays,
    })
}

/// Bytes of a client's `clientInfo`, and of each of its capabilities, as JSON: they are kept with its
/// session, and each request tells them.
const MAX_SAID: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(text: &str) -> Message {
        Message::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    fn call(text: &str) -> Call {
        Call::read(Bytes::copy_from_slice(text.as_bytes()), false).unwrap()
    }

    fn server() -> ModernServer {
        let initialize = call(
            r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18",
                "capabilities":{"roots":{"listChanged":true},"elicitation":{},"tasks":{}},"clientInfo":{"name":"old", "version":"1"}}}"#,
        );
        let discovered = message(
            r#"{"id":0,"result":{"supportedVersions":["2026-07-28"],"capabilities":{"tools":{"listChanged":true},"extensions":{}},
                "instructions":"be kind","_meta":{"io.modelcontextprotocol/serverInfo":{"name":"new","version":"2"}}}}"#,
        );
        ModernServer::new(Discovered::read(&discovered).unwrap(), &initialize)
    }

    #[test]
    fn what_discover_said_is_what_initialize_says() {
        let answer: serde_json::Value =
            serde_json::from_slice(&server().initialized(&Id::own(), "2025-06-18")).unwrap();
        assert_eq!(
            answer,
            json!({ "jsonrpc": "2.0", "id": 0, "result": {
                "protocolVersion": "2025-06-18", "instructions": "be kind",
                "capabilities": { "tools": { "listChanged": true } },
                "serverInfo": { "name": "new", "version": "2" },
            } })
        );
        let other = message(r#"{"id":0,"result":{"supportedVersions":["2027-01-01"]}}"#);
        assert!(Discovered::read(&other).is_none());
        assert!(Discovered::read(&message(r#"{"id":0,"error":{}}"#)).is_none());
    }

    #[test]
    fn of_what_server_and_client_say_of_themselves_little_is_kept() {
        let object = |size: usize| format!(r#"{{"x":"{}"}}"#, "x".repeat(size - 8));
        let read = |size: usize| {
            let large = object(size);
            let initialize = call(&format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{{"clientInfo":{large},
                    "capabilities":{{"elicitation":{large},"sampling":{{}},"roots":{{}}}}}}}}"#
            ));
            let discovered = message(&format!(
                r#"{{"id":0,"result":{{"supportedVersions":["2026-07-28"],"serverInfo":{large},
                    "capabilities":{{"logging":{large},"prompts":{{}}}},"instructions":"{}"}}}}"#,
                "x".repeat(4 * size)
            ));
            ModernServer::new(Discovered::read(&discovered).unwrap(), &initialize)
        };
        let (most, more) = (read(MAX_SAID), read(MAX_SAID + 1));
        let large = object(MAX_SAID);
        assert_eq!(
            most.can,
            format!(r#"{{"elicitation":{large},"sampling":{{}},"roots":{{}}}}"#)
        );
        assert_eq!(most.client.as_ref(), Some(&large));
        assert_eq!(most.said.info, large);
        // The others are there all the same.
        assert_eq!(more.can, r#"{"sampling":{},"roots":{}}"#);
        assert_eq!(more.client.as_deref(), Some(r#"{"name":"","version":""}"#));
        let said: serde_json::Value =
            serde_json::from_slice(&more.initialized(&Id::own(), "2025-06-18")).unwrap();
        assert_eq!(
            said["result"],
            json!({
                "protocolVersion": "2025-06-18", "capabilities": { "prompts": {}, "logging": {} },
                "serverInfo": { "name": "", "version": "" },
            })
        );
    }

    /// mcp-M1: whatever stands there, and wherever.
    #[test]
    fn a_call_is_made_again_of_its_outline_as_of_itself() {
        let given = Given {
            responses: b"{\"a\":1}",
            state: Some(b"\"s\""),
        };
        for meta in [
            "",
            r#","_meta":{}"#,
            r#","_meta":{"other":{"progressToken":1}}"#,
            r#","_meta":{"x\u0041":[1],"progressToken":"p","io.modelcontextprotocol/clientInfo":{"name":"x"}}"#,
            r#","_meta":[1,2]"#,
            r#","inputResponses":{"b":[2]},"_meta":{"io.modelcontextprotocol/logLevel":"error"},"requestState":[[]]"#,
        ] {
            for text in [
                format!(
                    r#"{{"id":1,"params":{{"name":"x","arguments":{{"id":[1,{{}}]}}{meta}}}}}"#
                ),
                format!(
                    r#"{{"params":{{"arguments":[1,2]{meta}}},"method":"tools/call","id":"a"}}"#
                ),
            ] {
                let call = message(&text);
                let outline = ModernServer::outline(&call);
                for (level, given) in [(None, None), (Some("info"), Some(given))] {
                    let [made, expected] = [&outline, &call]
                        .map(|call| meta::changed(call, server().request(call, 7, level, given)));
                    assert_eq!(String::from_utf8(made), String::from_utf8(expected));
                }
            }
        }
    }

    /// mcp-T20
    #[test]
    fn a_request_says_what_modern_servers_are_told_each_time() {
        let asked = message(
            r#"{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"x","arguments":{"n":1.0},"_meta":{"progressToken":"p"}}}"#,
        );
        let text = String::from_utf8(meta::changed(
            &asked,
            server().request(&asked, 7, Some("info"), None),
        ))
        .unwrap();
        let meta = r#""io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{"elicitation":{},"roots":{}},"io.modelcontextprotocol/clientInfo":{"name":"old", "version":"1"}"#;
        assert_eq!(
            text,
            format!(
                r#"{{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{{"name":"x","arguments":{{"n":1.0}},"_meta":{{{meta},"io.modelcontextprotocol/logLevel":"info","progressToken":7}}}}}}"#
            )
        );
        let bare =
            message(r#"{"jsonrpc":"2.0","id":"a","method":"prompts/get","params":{"name":"x"}}"#);
        let given = Given {
            responses: b"{}",
            state: Some(br#""s""#),
        };
        let text = String::from_utf8(meta::changed(
            &bare,
            server().request(&bare, 8, None, Some(given)),
        ))
        .unwrap();
        assert_eq!(
            text,
            format!(
                r#"{{"jsonrpc":"2.0","id":8,"method":"prompts/get","params":{{"_meta":{{{meta}}},"inputResponses":{{}},"requestState":"s","name":"x"}}}}"#
            )
        );
    }

    /// json-22: what is left stays as it was written.
    #[test]
    fn an_answer_loses_what_older_versions_do_not_know() {
        let check = |result: &str, plain: &str| {
            let answer = message(&format!(r#"{{"jsonrpc":"2.0","id":9,"result":{result}}}"#));
            let text = String::from_utf8(server().answered(&answer, &Id::own())).unwrap();
            assert_eq!(
                text,
                format!(r#"{{"jsonrpc":"2.0","id":0,"result":{plain}}}"#)
            );
        };
        check(
            r#"{"resultType":"complete","n":9007199254740993,"_meta":{"io.modelcontextprotocol/serverInfo":{}},"ttlMs":1,"cacheScope":"public"}"#,
            r#"{"n":9007199254740993}"#,
        );
        check(r#"{"_meta":{"k":1.0}}"#, r#"{"_meta":{"k":1.0}}"#);
        check("7", "7");
    }
}

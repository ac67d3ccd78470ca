//! What a server asks of a client in the middle of a call, in both eras.
//!
//! Pure. A legacy server sends a request of its own; modern MCP answers the
//! call with `input_required` and the client makes it again with the answers
//! (mcp-M1). Used by `session` for children that speak another era than their
//! clients.

use bytes::Bytes;
use serde_json::json;

use crate::{
    json::{Kind, Value},
    mcp::{
        Call, Id, Message, answer,
        edit::{Fate, edited},
        meta,
    },
};

/// The calls whose answer may ask for input.
pub fn may_ask(method: &str) -> bool {
    matches!(method, "tools/call" | "prompts/get" | "resources/read")
}

/// What a client said that it can be asked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Abilities {
    form: bool,
    visit: bool,
    sampling: bool,
    sampling_tools: bool,
    roots: bool,
}

impl Abilities {
    /// From the client's capabilities, which both eras spell alike.
    pub fn read(capabilities: Option<Value<'_>>) -> Self {
        let of = |name| capabilities.and_then(|all| all.get(name)).filter(is_object);
        let (elicitation, sampling) = (of("elicitation"), of("sampling"));
        let mode = |name| {
            let mode = elicitation.and_then(|modes| modes.get(name));
            mode.filter(is_object).is_some()
        };
        Self {
            // Who names no mode means forms: there was nothing else at first.
            form: mode("form") || (elicitation.is_some() && !mode("url")),
            visit: mode("url"),
            sampling: sampling.is_some(),
            sampling_tools: sampling.is_some_and(|sampling| sampling.get("tools").is_some()),
            roots: of("roots").is_some(),
        }
    }

    /// Those of a modern request.
    pub fn of(call: &Call) -> Self {
        Self::read(call.meta(meta::CAPABILITIES))
    }

    fn allow(self, need: Need) -> bool {
        match need {
            Need::Form => self.form,
            Need::Visit => self.visit,
            Need::Sampling => self.sampling,
            Need::SamplingTools => self.sampling_tools,
            Need::Roots => self.roots,
        }
    }
}

/// What a question needs of a client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Need {
    Form,
    Visit,
    Sampling,
    SamplingTools,
    Roots,
}

impl Need {
    /// As client capabilities.
    fn capabilities(self) -> serde_json::Value {
        match self {
            Self::Form => json!({ "elicitation": { "form": {} } }),
            Self::Visit => json!({ "elicitation": { "url": {} } }),
            Self::Sampling => json!({ "sampling": {} }),
            Self::SamplingTools => json!({ "sampling": { "tools": {} } }),
            Self::Roots => json!({ "roots": {} }),
        }
    }
}

/// One thing that is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// Its name among those of one call.
    pub key: String,
    method: Method,
    need: Need,
    /// As JSON.
    params: Bytes,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Method {
    Elicit,
    Sample,
    Roots,
}

impl Question {
    /// A legacy server's request, as modern MCP puts it; `None` for what that does not have.
    pub fn asked(method: &str, id: Value<'_>, message: &Message) -> Option<Self> {
        let key = id
            .as_str()
            .unwrap_or_else(|| String::from_utf8_lossy(id.raw()))
            .into_owned();
        Self::new(key, method, message.root().get("params"))
    }

    /// One of a modern server's `inputRequests`.
    pub fn required(key: &str, request: Value<'_>) -> Option<Self> {
        let method = request.get("method")?.as_str()?;
        Self::new(key.to_owned(), &method, request.get("params"))
    }

    /// A place to go to that a legacy server's refusal names.
    pub fn visit(visit: Value<'_>) -> Option<Self> {
        let key = visit.get("elicitationId")?.as_str()?.into_owned();
        let visit = Self::new(key, "elicitation/create", Some(visit));
        visit.filter(|visit| visit.need == Need::Visit)
    }

    fn new(key: String, method: &str, params: Option<Value<'_>>) -> Option<Self> {
        let is_long = key.len() > MAX_KEY;
        if is_long || params.is_some_and(|params| params.kind() != Kind::Object) {
            return None;
        }
        let mode = params
            .and_then(|params| params.get("mode"))
            .and_then(Value::as_str);
        let tools = params.is_some_and(|params| params.get("tools").is_some());
        let (method, need) = match (method, mode.as_deref()) {
            ("elicitation/create", None | Some("form")) => (Method::Elicit, Need::Form),
            ("elicitation/create", Some("url")) => (Method::Elicit, Need::Visit),
            ("sampling/createMessage", _) if tools => (Method::Sample, Need::SamplingTools),
            ("sampling/createMessage", _) => (Method::Sample, Need::Sampling),
            ("roots/list", _) => (Method::Roots, Need::Roots),
            _ => return None,
        };
        // Names and promises of the one era that the other does not have.
        let text = params.map_or_else(
            || b"{}".to_vec(),
            |params| {
                edited(params, b"", |name, _| match is_of_one_era(name) {
                    true => Fate::Goes,
                    false => Fate::Stays,
                })
            },
        );
        Some(Self {
            key,
            method,
            need,
            params: text.into(),
        })
    }

    /// The same with what `keep` makes of what is asked: that is kept until it is answered. `None` if it makes nothing.
    pub fn kept(mut self, keep: impl FnOnce(Bytes) -> Option<Bytes>) -> Option<Self> {
        self.params = keep(self.params)?;
        Some(self)
    }

    /// What a client lacks to be asked this.
    pub fn lacking(&self, abilities: Abilities) -> Option<Need> {
        (!abilities.allow(self.need)).then_some(self.need)
    }

    /// Bytes that it takes to ask.
    pub fn size(&self) -> usize {
        self.key.len() + self.params.len()
    }

    /// Whether this can be what was asked for.
    pub fn fits(&self, answer: Value<'_>) -> bool {
        let text = |name| answer.get(name).and_then(Value::as_str);
        match self.method {
            Method::Elicit => {
                let action = text("action");
                matches!(action.as_deref(), Some("accept" | "decline" | "cancel"))
            }
            Method::Sample => {
                text("role").is_some()
                    && answer
                        .get("content")
                        .is_some_and(|content| matches!(content.kind(), Kind::Object | Kind::Array))
            }
            Method::Roots => answer
                .get("roots")
                .is_some_and(|roots| roots.kind() == Kind::Array),
        }
    }

    /// As a request to a legacy client, under `id`.
    pub fn request(&self, id: &[u8]) -> Vec<u8> {
        let mut text = br#"{"jsonrpc":"2.0","id":"#.to_vec();
        text.extend_from_slice(id);
        text.extend_from_slice(br#","method":"#);
        text.extend_from_slice(self.method().as_bytes());
        text.extend_from_slice(br#","params":"#);
        if self.need == Need::Visit {
            // Older versions have a name for each visit.
            text.extend_from_slice(br#"{"elicitationId":"#);
            text.extend_from_slice(id);
            text.push(b',');
            text.extend_from_slice(&self.params[1..]);
        } else {
            text.extend_from_slice(&self.params);
        }
        text.push(b'}');
        text
    }

    /// As one of the modern `inputRequests`.
    pub fn as_input(&self) -> Vec<u8> {
        answer::object([
            ("method", self.method().as_bytes()),
            ("params", &self.params[..]),
        ])
    }

    /// What stands for an answer that the client would not give; `None` if nothing can.
    pub fn refused(&self) -> Option<&'static [u8]> {
        (self.method == Method::Elicit).then_some(br#"{"action":"cancel"}"#)
    }

    /// Its method, as JSON.
    fn method(&self) -> &'static str {
        match self.method {
            Method::Elicit => "\"elicitation/create\"",
            Method::Sample => "\"sampling/createMessage\"",
            Method::Roots => "\"roots/list\"",
        }
    }
}

/// The modern answer that asks for input.
pub fn required<'a>(
    id: &Id,
    questions: impl Iterator<Item = &'a Question>,
    state: &str,
    server_info: &str,
) -> Vec<u8> {
    let questions = questions.map(|question| (&question.key, question.as_input()));
    let (state, said) = (json!(state).to_string(), [(meta::SERVER, server_info)]);
    let result = answer::object([
        ("resultType", br#""input_required""#.to_vec()),
        ("inputRequests", answer::object(questions)),
        ("requestState", state.into_bytes()),
        ("_meta", answer::object(said)),
    ]);
    answer::result(id.as_json(), &result)
}

/// The modern answer to a call that failed for want of a client's capability (mcp-T21).
pub fn missing(id: &Id, need: Need) -> Vec<u8> {
    let message = "the server needs what this client cannot be asked";
    answer::lacking(id, message, need.capabilities())
}

fn is_object(value: &Value<'_>) -> bool {
    value.kind() == Kind::Object
}

fn is_of_one_era(name: &str) -> bool {
    matches!(name, "_meta" | "elicitationId" | "task")
}

/// Bytes of a question's name: it may be remembered for as long as its call lasts.
const MAX_KEY: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Message {
        Message::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    fn question(method: &str, params: &str) -> Option<Question> {
        let text = format!(r#"{{"id":"q\u0031","method":"{method}","params":{params}}}"#);
        let message = message(&text);
        Question::asked(method, message.root().get("id").unwrap(), &message)
    }

    /// mcp-M1, mcp-M3: what is asked stays as it was written, but for what modern MCP has dropped.
    #[test]
    fn a_legacy_servers_question_becomes_an_input_request() {
        let question = question(
            "elicitation/create",
            r#"{"_meta":{"progressToken":1},"mode":"url","elicitationId":"e","n":1.0}"#,
        )
        .unwrap();
        let text = required(&Id::own(), [&question].into_iter(), "s", "{}");
        assert_eq!(
            String::from_utf8(text).unwrap(),
            r#"{"jsonrpc":"2.0","id":0,"result":{"resultType":"input_required","inputRequests":{"q1":{"method":"elicitation/create","params":{"mode":"url","n":1.0}}},"requestState":"s","_meta":{"io.modelcontextprotocol/serverInfo":{}}}}"#
        );
        assert_eq!(
            String::from_utf8(question.request(b"7")).unwrap(),
            r#"{"jsonrpc":"2.0","id":7,"method":"elicitation/create","params":{"elicitationId":7,"mode":"url","n":1.0}}"#
        );
        assert!(self::question("elicitation/create", r#"{"mode":"smoke"}"#).is_none());
        assert!(self::question("roots/list", "[]").is_none());
        assert!(self::question("tools/list", "{}").is_none());
    }

    #[track_caller]
    fn check(capabilities: &str, able: [bool; 5]) {
        let message = message(capabilities);
        let abilities = Abilities::read(Some(message.root()));
        let questions = [
            ("elicitation/create", "{}"),
            ("elicitation/create", r#"{"mode":"url"}"#),
            ("sampling/createMessage", "{}"),
            ("sampling/createMessage", r#"{"tools":[]}"#),
            ("roots/list", "{}"),
        ];
        let found = questions.map(|(method, params)| {
            let question = question(method, params).unwrap();
            question.lacking(abilities).is_none()
        });
        assert_eq!(found, able, "{capabilities}");
    }

    /// mcp-M1: nobody is asked what they have not said that they can answer.
    #[test]
    fn a_client_is_asked_what_it_can_answer() {
        check("{}", [false; 5]);
        check(r#"{"elicitation":{}}"#, [true, false, false, false, false]);
        check(
            r#"{"elicitation":{"url":{}}}"#,
            [false, true, false, false, false],
        );
        check(
            r#"{"elicitation":{"url":{},"form":{}},"roots":{}}"#,
            [true, true, false, false, true],
        );
        check(r#"{"sampling":{}}"#, [false, false, true, false, false]);
        check(
            r#"{"sampling":{"tools":{}}}"#,
            [false, false, true, true, false],
        );
        check(
            r#"{"elicitation":true,"sampling":1,"roots":null}"#,
            [false; 5],
        );
    }

    #[test]
    fn an_answer_has_the_form_of_what_was_asked() {
        for (method, answer, fits) in [
            ("elicitation/create", r#"{"action":"decline"}"#, true),
            ("elicitation/create", r#"{"action":"perhaps"}"#, false),
            ("elicitation/create", "12345", false),
            (
                "sampling/createMessage",
                r#"{"role":"assistant","content":{}}"#,
                true,
            ),
            ("sampling/createMessage", r#"{"role":"assistant"}"#, false),
            ("roots/list", r#"{"roots":[]}"#, true),
            ("roots/list", r#"{"roots":{}}"#, false),
        ] {
            let question = question(method, "{}").unwrap();
            assert_eq!(question.fits(message(answer).root()), fits, "{answer}");
        }
    }

    /// fault-46
    #[test]
    fn a_question_with_a_long_name_is_none() {
        let asks = message(r#"{"method":"roots/list"}"#);
        let named = |length| Question::required(&"k".repeat(length), asks.root());
        assert!(named(MAX_KEY).is_some() && named(MAX_KEY + 1).is_none());
    }

    /// mcp-T21
    #[test]
    fn what_a_client_lacks_is_named() {
        let text = String::from_utf8(missing(&Id::own(), Need::Roots)).unwrap();
        assert!(
            text.contains("-32021") && text.contains(r#"{"requiredCapabilities":{"roots":{}}}"#)
        );
    }
}

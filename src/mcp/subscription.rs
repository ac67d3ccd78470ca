//! What a subscription of modern MCP wants to hear of, and how it is told (mcp-T28).
//!
//! Pure. Used by `session` where server and client do not both speak modern MCP.

use std::{
    borrow::Borrow,
    fmt,
    hash::{Hash, Hasher},
    ops::Deref,
    sync::Arc,
};

use serde_json::json;

use crate::{
    json::{Kind, Value},
    mcp::{Call, Id, Message, answer, meta},
};

/// What one subscription is about.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Wanted {
    pub tools: bool,
    pub prompts: bool,
    pub resources: bool,
    /// URIs of resources whose changes are of interest.
    pub uris: Vec<Uri>,
    /// Ids of tasks whose standing is.
    pub tasks: Vec<Arc<str>>,
}

/// The URI of a resource: however many know it have one text of it.
#[derive(Clone)]
pub struct Uri(Arc<Text>);

struct Text {
    text: Box<str>,
    /// What whoever counts it has for it.
    _claim: Box<dyn Send + Sync>,
}

impl Uri {
    /// With a claim that lasts as long as it does.
    pub fn claimed(text: &str, claim: impl Send + Sync + 'static) -> Self {
        Self(Arc::new(Text {
            text: text.into(),
            _claim: Box::new(claim),
        }))
    }
}

impl From<&str> for Uri {
    fn from(text: &str) -> Self {
        Self::claimed(text, ())
    }
}

impl Deref for Uri {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0.text
    }
}

impl Borrow<str> for Uri {
    fn borrow(&self) -> &str {
        self
    }
}

impl PartialEq for Uri {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Uri {}

impl PartialOrd for Uri {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Uri {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (**self).cmp(&**other)
    }
}

impl Hash for Uri {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl Wanted {
    /// What the request `subscriptions/listen` asks for.
    pub fn read(call: &Call) -> Self {
        let wanted = call.param("notifications");
        let wants = |name| {
            let wants = wanted.and_then(|wanted| wanted.get(name));
            wants.and_then(Value::as_bool) == Some(true)
        };
        let named = |name| {
            let mut named: Vec<String> = wanted
                .and_then(|wanted| wanted.get(name))
                .iter()
                .flat_map(|all| all.elements())
                .filter_map(|one| one.as_str().map(String::from))
                .filter(|one| one.len() <= MAX_URI)
                .take(MAX_URIS)
                .collect();
            named.sort_unstable();
            named.dedup();
            named.into_iter()
        };
        Self {
            tools: wants("toolsListChanged"),
            prompts: wants("promptsListChanged"),
            resources: wants("resourcesListChanged"),
            uris: named("resourceSubscriptions")
                .map(|uri| uri.as_str().into())
                .collect(),
            tasks: named("taskIds").map(Arc::from).collect(),
        }
    }

    /// All that a server with these capabilities tells of by itself.
    pub fn all_of(capabilities: &serde_json::Value) -> Self {
        let tells = |kind: &str| capabilities[kind]["listChanged"] == true;
        Self {
            tools: tells("tools"),
            prompts: tells("prompts"),
            resources: tells("resources"),
            ..Self::default()
        }
    }

    /// What of it a server with these capabilities can tell; of its tasks they say nothing.
    pub fn told_by(mut self, capabilities: &serde_json::Value) -> Self {
        let all = Self::all_of(capabilities);
        self.tools &= all.tools;
        self.prompts &= all.prompts;
        self.resources &= all.resources;
        if capabilities["resources"]["subscribe"] != true {
            self.uris.clear();
        }
        self
    }

    /// Whether there is nothing to be told.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a notification of the server's is among it.
    pub fn wants(&self, method: &str, message: &Message) -> bool {
        match method {
            "notifications/tools/list_changed" => self.tools,
            "notifications/prompts/list_changed" => self.prompts,
            "notifications/resources/list_changed" => self.resources,
            "notifications/resources/updated" => {
                let uri = message
                    .root()
                    .get("params")
                    .and_then(|params| params.get("uri"));
                let uri = uri.and_then(Value::as_str);
                uri.is_some_and(|uri| self.uris.iter().any(|wanted| concerns(wanted, &uri)))
            }
            _ => false,
        }
    }

    /// The first message of the subscription, which says what of it will be told.
    pub fn acknowledged(&self, id: &Id) -> Vec<u8> {
        let text = format!(
            r#"{{"jsonrpc":"2.0","method":"{ACKNOWLEDGED}","params":{{"notifications":{}}}}}"#,
            self.notifications()
        );
        match Message::parse(text.clone().into()) {
            Ok(message) => labelled(&message, id),
            Err(_) => text.into_bytes(),
        }
    }

    /// The notifications, with their methods, by which all of it but tasks may have changed.
    pub fn may_have_changed(&self) -> Vec<(&'static str, Vec<u8>)> {
        let lists = [
            ("notifications/tools/list_changed", self.tools),
            ("notifications/prompts/list_changed", self.prompts),
            ("notifications/resources/list_changed", self.resources),
        ];
        let lists = lists.into_iter().filter(|(_, is_wanted)| *is_wanted);
        let lists =
            lists.map(|(method, _)| (method, json!({ "jsonrpc": "2.0", "method": method })));
        let updated = self.uris.iter().map(|uri| {
            let (method, params) = ("notifications/resources/updated", json!({ "uri": **uri }));
            let text = json!({ "jsonrpc": "2.0", "method": method, "params": params });
            (method, text)
        });
        let all = lists.chain(updated);
        all.map(|(method, text)| (method, text.to_string().into_bytes()))
            .collect()
    }

    /// As `params.notifications` of the request.
    pub fn notifications(&self) -> serde_json::Value {
        let mut wanted = json!({});
        for (name, is_wanted) in [
            ("toolsListChanged", self.tools),
            ("promptsListChanged", self.prompts),
            ("resourcesListChanged", self.resources),
        ] {
            if is_wanted {
                wanted[name] = true.into();
            }
        }
        if !self.uris.is_empty() {
            wanted["resourceSubscriptions"] = self.uris.iter().map(|uri| &**uri).collect();
        }
        if !self.tasks.is_empty() {
            wanted["taskIds"] = self.tasks.iter().map(|task| &**task).collect();
        }
        wanted
    }
}

/// The number that a notification of a gateway's own subscription names it by.
pub fn named(params: Value<'_>) -> Option<u64> {
    let named = params.get("_meta")?.get(meta::SUBSCRIPTION)?;
    named.as_u64()
}

/// Whether who wants to hear of the resource `wanted` wants to hear that `uri` has changed: it may be
/// a part of it.
pub fn concerns(wanted: &str, uri: &str) -> bool {
    uri.strip_prefix(wanted)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || wanted.ends_with('/'))
}

/// The answer that ends the subscription `id` well, and says what the server is (JSON) where that has to be said.
pub fn ended(id: &Id, server_info: Option<&str>) -> Vec<u8> {
    let named = [(meta::SUBSCRIPTION, id.as_json())];
    let info = server_info.map(|info| (meta::SERVER, info.as_bytes()));
    let said = answer::object(named.into_iter().chain(info));
    let result = answer::object([("resultType", &br#""complete""#[..]), ("_meta", &said)]);
    answer::result(id.as_json(), &result)
}

/// The notification, as one of the subscription `id`.
pub fn labelled(message: &Message, id: &Id) -> Vec<u8> {
    meta::changed(
        message,
        meta::added(message, &[(meta::SUBSCRIPTION, id.as_json())]),
    )
}

/// The notification without the name of the subscription that it came for.
pub fn unlabelled(message: &Message) -> Vec<u8> {
    let params = message.root().get("params");
    let named = params
        .and_then(|params| params.get("_meta"))
        .filter(|meta| meta.kind() == Kind::Object && meta.get(meta::SUBSCRIPTION).is_some());
    let Some(named) = named else {
        return message.bytes().to_vec();
    };
    let others = named
        .members()
        .filter(|(name, _)| name != meta::SUBSCRIPTION);
    let text = answer::object(others.map(|(name, value)| (name, value.raw())));
    message.with(&[(named.span(), &text)])
}

/// The message that a subscription begins with.
pub const ACKNOWLEDGED: &str = "notifications/subscriptions/acknowledged";
/// Resources that one subscription may name, and tasks; further ones are not acknowledged.
pub const MAX_URIS: usize = 64;
/// Bytes of one of them: who subscribes has it kept for as long as his session or his stream.
pub const MAX_URI: usize = 2 << 10;

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn message(text: &str) -> Message {
        Message::parse(Bytes::copy_from_slice(text.as_bytes())).unwrap()
    }

    /// mcp-T28
    #[test]
    fn what_is_acknowledged_is_what_was_wanted_and_can_be_told() {
        // What is too long to be kept is no resource that anybody tells of.
        let long = "l".repeat(MAX_URI + 1);
        let body = r#"{"jsonrpc":"2.0","id":"s","method":"subscriptions/listen","params":{"notifications":
            {"toolsListChanged":true,"promptsListChanged":true,"resourcesListChanged":false,"resourceSubscriptions":["b","a","@","b"],"x":1}}}"#;
        let body = body.replace('@', &long);
        let call = Call::read(Bytes::from(body), true).unwrap();
        let capabilities = json!({ "tools": { "listChanged": true }, "prompts": {}, "resources": { "subscribe": true, "listChanged": true } });
        let wanted = Wanted::read(&call).told_by(&capabilities);
        assert_eq!(
            String::from_utf8(wanted.acknowledged(call.id().unwrap())).unwrap(),
            r#"{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":"s"},"notifications":{"toolsListChanged":true,"resourceSubscriptions":["a","b"]}}}"#
        );
        let updated = |uri: &str| message(&format!(r#"{{"params":{{"uri":"{uri}"}}}}"#));
        for (method, uri, wants) in [
            ("notifications/tools/list_changed", "", true),
            ("notifications/prompts/list_changed", "", false),
            ("notifications/resources/list_changed", "", false),
            ("notifications/resources/updated", "a", true),
            ("notifications/resources/updated", "A", false),
            ("notifications/resources/updated", "a/b", true),
            ("notifications/resources/updated", "ab", false),
            ("notifications/resources/updated", "", false),
            ("notifications/message", "a", false),
        ] {
            assert_eq!(wanted.wants(method, &updated(uri)), wants, "{method} {uri}");
        }
        assert!(Wanted::read(&call).told_by(&json!({})).is_nothing());
    }

    #[test]
    fn a_label_comes_off_as_it_went_on() {
        let plain = message(r#"{"method":"m","params":{"_meta":{"k":1.0},"uri":"a"}}"#);
        let labelled = labelled(&plain, &Id::own());
        let labelled = Message::parse(labelled.into()).unwrap();
        assert_eq!(unlabelled(&labelled), plain.bytes().to_vec());
        assert_eq!(unlabelled(&plain), plain.bytes().to_vec());
    }
}

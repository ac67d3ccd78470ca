//! What of a message its HTTP headers must say (mcp-T8, mcp-T12 … T15).

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, request::Builder};

use super::mirror::{Mirror, encoded};
use crate::{
    child::share::{Lends, Share},
    json::Value,
    mcp::{Message, meta, method, version},
};

/// One message towards the server, and what it is.
pub(super) struct Outgoing {
    /// Nothing else is kept of it: what stands where takes more than the text, and there may be many that wait.
    text: Bytes,
    pub(super) kind: Kind,
    /// What a stateless request says in its headers, too.
    modern: Option<Modern>,
    /// What is said in place of a client's answer where that has no room: the server waits for one.
    instead: Option<Box<str>>,
    /// The memory that it has, if it is counted.
    share: Option<Share>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// It wants an answer under this number of the gateway's.
    Request(u64, Asks),
    /// The request of this number is no longer waited for.
    Cancelled(u64),
    /// `notifications/initialized`.
    Initialized,
    /// The answer to what the server has asked.
    Answer,
    /// Another notification: nothing comes back.
    Other,
}

/// What a request is about, as far as this room cares.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Asks {
    Initialize,
    Discover,
    Tools,
    /// It is meant to stay open.
    Listen,
    Other,
}

struct Modern {
    method: HeaderValue,
    name: Option<HeaderValue>,
    mirrored: Vec<(HeaderName, HeaderValue)>,
}

impl Outgoing {
    /// Reads a message of the session's; `None` for what is none.
    pub(super) fn read(text: Bytes, mirror: &Mirror) -> Option<Self> {
        let message = Message::parse(text.clone()).ok()?;
        let root = message.root();
        let params = root.get("params");
        let member = |name| params.and_then(|params| params.get(name));
        let method = root.get("method").and_then(Value::as_str);
        let kind = match (method.as_deref(), root.get("id")) {
            (Some(method), Some(id)) => Kind::Request(
                id.as_u64()?,
                match method {
                    "initialize" => Asks::Initialize,
                    "server/discover" => Asks::Discover,
                    "tools/list" => Asks::Tools,
                    method::LISTEN => Asks::Listen,
                    _ => Asks::Other,
                },
            ),
            (Some("notifications/cancelled"), None) => {
                let number = member("requestId").and_then(Value::as_u64);
                number.map_or(Kind::Other, Kind::Cancelled)
            }
            (Some("notifications/initialized"), None) => Kind::Initialized,
            (None, Some(_)) => Kind::Answer,
            _ => Kind::Other,
        };
        let named = member("_meta").and_then(|said| said.get(meta::VERSION));
        let is_modern = named.and_then(Value::as_str).as_deref() == Some(version::MODERN);
        let modern = match method.as_deref().filter(|_| is_modern) {
            Some(method) => {
                let name = match method {
                    "tools/call" | "prompts/get" => member("name"),
                    "resources/read" => member("uri"),
                    _ if method.starts_with("tasks/") => member("taskId"),
                    _ => None,
                };
                let name = name.and_then(Value::as_str);
                let mirrored = match (method, &name) {
                    ("tools/call", Some(tool)) => mirror.headers(tool, member("arguments")),
                    _ => Vec::new(),
                };
                Some(Modern {
                    method: HeaderValue::from_str(method).ok()?,
                    name: name.and_then(|name| encoded(&name)),
                    mirrored,
                })
            }
            None => None,
        };
        let question = root.get("id").filter(|_| kind == Kind::Answer);
        let instead = question.and_then(|id| unheard(id.raw()));
        Some(Self {
            text,
            kind,
            modern,
            instead,
            share: None,
        })
    }

    /// The gateway's own error in place of a client's answer; `None` if this is none.
    pub(super) fn take_instead(&mut self) -> Option<Self> {
        let text = String::from(self.instead.take()?);
        Some(Self::own(text, Kind::Answer))
    }

    /// The gateway's own word that a request is no longer waited for.
    pub(super) fn cancelled(number: u64) -> Self {
        let text = format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{number}}}}}"#
        );
        Self::own(text, Kind::Cancelled(number))
    }

    fn own(text: String, kind: Kind) -> Self {
        Self {
            text: text.into(),
            kind,
            modern: None,
            instead: None,
            share: None,
        }
    }

    /// Counts its memory until it was sent, if that is more than `uncounted`; `false` where there is no room for it.
    pub(super) fn count(&mut self, uncounted: usize, lends: &Arc<dyn Lends>) -> bool {
        let size = self.size();
        if size <= uncounted {
            return true;
        }
        let mut share = Share::of(lends.clone());
        let has_room = share.take(size);
        self.share = has_room.then_some(share);
        has_room
    }

    /// Bytes of memory that it takes.
    fn size(&self) -> usize {
        let modern = self.modern.as_ref();
        let name = modern.and_then(|modern| modern.name.as_ref());
        let mirrored = modern.iter().flat_map(|modern| &modern.mirrored);
        let values = name.into_iter().chain(mirrored.map(|(_, value)| value));
        self.text.len() + values.map(HeaderValue::len).sum::<usize>()
    }

    /// Whether it is of the stateless version: there is no session then.
    pub(super) fn is_modern(&self) -> bool {
        self.modern.is_some()
    }

    /// The headers that go with it, and its text.
    pub(super) fn into_parts(self, request: Builder) -> (Builder, Bytes) {
        let text = match self.share {
            Some(share) => share.with(self.text),
            None => self.text,
        };
        let Some(modern) = self.modern else {
            return (request, text);
        };
        let mut request = request
            .header("mcp-protocol-version", version::MODERN)
            .header("mcp-method", modern.method);
        if let Some(name) = modern.name {
            request = request.header("mcp-name", name);
        }
        for (name, value) in modern.mirrored {
            request = request.header(name, value);
        }
        (request, text)
    }
}

/// An error as the answer to the question of that id, if it is short.
fn unheard(id: &[u8]) -> Option<Box<str>> {
    let id = std::str::from_utf8(id).ok()?;
    let error = format!(
        r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32603,"message":"the client's answer found no room, ask again later"}}}}"#
    );
    (error.len() <= MAX_OWN).then(|| error.into())
}

/// Bytes of the gateway's own words to a server, which are not counted.
const MAX_OWN: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(text: &str) -> Vec<(String, String)> {
        let text = Bytes::copy_from_slice(text.as_bytes());
        let outgoing = Outgoing::read(text.clone(), &Mirror::default()).unwrap();
        let (request, sent) = outgoing.into_parts(http::Request::builder());
        assert_eq!(sent, text);
        let request = request.body(()).unwrap();
        let text = |(name, value): (&HeaderName, &HeaderValue)| {
            (name.to_string(), value.to_str().unwrap().to_owned())
        };
        request.headers().iter().map(text).collect()
    }

    /// mcp-T8, mcp-T12, mcp-T14: what the body says, and encoded where a header could not hold it.
    #[test]
    fn a_modern_request_says_itself_in_its_headers() {
        for (name, told) in [
            ("plain", "plain"),
            ("with space", "with space"),
            (" edge", "=?base64?IGVkZ2U=?="),
            ("é", "=?base64?w6k=?="),
            ("=?base64?eA==?=", "=?base64?PT9iYXNlNjQ/ZUE9PT89?="),
        ] {
            let text = format!(
                r#"{{"id":1,"method":"tools/call","params":{{"name":"{name}","_meta":{{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}}}}"#
            );
            let found = headers(&text);
            assert_eq!(found[1], ("mcp-method".to_owned(), "tools/call".to_owned()));
            assert_eq!(found[2], ("mcp-name".to_owned(), told.to_owned()));
        }
        assert_eq!(
            headers(r#"{"id":1,"method":"tools/call","params":{"name":"x"}}"#),
            []
        );
    }

    #[test]
    fn messages_are_told_apart() {
        let kind = |text: &'static str| {
            let text = Bytes::from_static(text.as_bytes());
            Outgoing::read(text, &Mirror::default()).map(|it| it.kind)
        };
        assert_eq!(
            kind(r#"{"id":7,"method":"initialize"}"#),
            Some(Kind::Request(7, Asks::Initialize))
        );
        assert_eq!(
            kind(r#"{"method":"notifications/cancelled","params":{"requestId":7}}"#),
            Some(Kind::Cancelled(7))
        );
        assert_eq!(kind(r#"{"id":"a","result":{}}"#), Some(Kind::Answer));
        assert_eq!(kind(r#"{"method":"notifications/x"}"#), Some(Kind::Other));
        assert_eq!(kind("nonsense"), None);
    }
}

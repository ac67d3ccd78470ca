//! Lists, cut down to what their reader may call.
//!
//! An element stays exactly if the call it advertises would be permitted now
//! (CVE list: ToolHive #6216). The rest of the answer stays byte for byte.

use std::ops::Range;

use super::decide::{Caller, Engine};
use crate::{
    auth::Identity,
    json::{Kind, Value},
    mcp::{Message, Target},
};

/// How a list method's answer looks, and which call its elements advertise.
struct List {
    member: &'static str,
    names: &'static str,
    method: &'static str,
    target: fn(&str) -> Target<'_>,
}

impl Engine {
    /// The answer to `method` without what `identity` may not call; `None` if nothing had to go.
    ///
    /// `answer` is the whole JSON-RPC message from the server, which is not
    /// trusted to have the shape it should: what cannot be read as a list is
    /// replaced by an empty one.
    pub fn filter(&self, identity: &Identity, method: &str, answer: &Message) -> Option<Vec<u8>> {
        let list = list(method)?;
        let result = answer.root().get("result")?;
        if result.kind() != Kind::Object {
            let empty = format!("{{\"{}\":[]}}", list.member);
            return Some(answer.with(&[(result.span(), empty.as_bytes())]));
        }
        let elements = result.get(list.member)?;
        if elements.kind() != Kind::Array {
            return Some(answer.with(&[(elements.span(), b"[]")]));
        }
        let cuts = cuts(elements, &self.caller(identity), &list);
        let cuts: Vec<(Range<usize>, &[u8])> = cuts.into_iter().map(|span| (span, &b""[..])).collect();
        if cuts.is_empty() { None } else { Some(answer.with(&cuts)) }
    }
}

/// The spans to leave out: each removed element with the separator on that side of it where one must go.
fn cuts(elements: Value<'_>, caller: &Caller<'_>, list: &List) -> Vec<Range<usize>> {
    let elements: Vec<(Range<usize>, bool)> =
        elements.elements().map(|element| (element.span(), stays(element, caller, list))).collect();
    let mut kept_before = false;
    let mut cuts = Vec::new();
    for (index, (span, stays)) in elements.iter().enumerate() {
        if *stays {
            kept_before = true;
        } else if kept_before {
            cuts.push(elements[index - 1].0.end..span.end);
        } else {
            let end = elements.get(index + 1).map_or(span.end, |(next, _)| next.start);
            cuts.push(span.start..end);
        }
    }
    cuts
}

fn stays(element: Value<'_>, caller: &Caller<'_>, list: &List) -> bool {
    element
        .get(list.names)
        .and_then(Value::as_str)
        .is_some_and(|name| caller.may_call(list.method, &(list.target)(&name)))
}

fn list(method: &str) -> Option<List> {
    let (member, names, method, target): (_, _, _, fn(&str) -> Target<'_>) = match method {
        "tools/list" => ("tools", "name", "tools/call", |name| Target::Tool(name)),
        "prompts/list" => ("prompts", "name", "prompts/get", |name| Target::Prompt(name)),
        "resources/list" => ("resources", "uri", "resources/read", |uri| Target::Resource(uri)),
        _ => return None,
    };
    Some(List { member, names, method, target })
}

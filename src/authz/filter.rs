//! Lists, cut down to what their reader may call.
//!
//! An element stays exactly if the call it advertises would be permitted now
//! (CVE list: ToolHive #6216). The rest of the answer stays byte for byte.

use std::ops::Range;

use super::decide::{Caller, Engine};
use crate::{
    auth::Identity,
    json::{Kind, Value},
    mcp::{Message, Target, edit::cuts},
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
        let caller = self.caller(identity);
        let cuts = cuts(elements, |index, element| {
            index < MAX_LISTED && stays(element, &caller, &list)
        });
        let cuts: Vec<(Range<usize>, &[u8])> =
            cuts.into_iter().map(|span| (span, &b""[..])).collect();
        if cuts.is_empty() {
            None
        } else {
            Some(answer.with(&cuts))
        }
    }
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
        "prompts/list" => ("prompts", "name", "prompts/get", |name| {
            Target::Prompt(name)
        }),
        "resources/list" => ("resources", "uri", "resources/read", |uri| {
            Target::Resource(uri)
        }),
        _ => return None,
    };
    Some(List {
        member,
        names,
        method,
        target,
    })
}

/// Elements of one answer that are decided on; those beyond it are not listed. Servers page longer lists.
const MAX_LISTED: usize = 5_000;

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        authz::fixture::{alice, engine},
        config::{Authz, ServerName},
    };

    const SOME: &str = r#"
        permit (principal, action, resource) when { resource has name && resource.name like "ok*" };
        permit (principal, action == Action::"resources/read", resource) when { resource.uri like "file:///ok/*" };
        forbid (principal, action, resource == Tool::"ok-not");
    "#;

    fn filter(method: &str, answer: &str) -> Option<String> {
        let answer = Message::parse(Bytes::from(answer.to_owned())).unwrap();
        engine(SOME)
            .filter(&alice(), method, &answer)
            .map(|bytes| String::from_utf8(bytes).unwrap())
    }

    #[track_caller]
    fn tools(before: &str, after: &str) {
        let wrap = |list: &str| {
            format!(
                r#" {{"jsonrpc" : "2.0","id":1e0,"result":{{"_meta":{{"tools":[1]}},"tools":{list},"nextCursor":"x\u0041"}} }}"#
            )
        };
        let expected = if before == after {
            None
        } else {
            Some(wrap(after))
        };
        assert_eq!(filter("tools/list", &wrap(before)), expected, "{before}");
    }

    #[test]
    fn what_may_not_be_called_is_cut_out_and_all_else_stays_byte_for_byte() {
        tools(
            r#"[ {"name":"ok1"} , {"name":"ok2"} ]"#,
            r#"[ {"name":"ok1"} , {"name":"ok2"} ]"#,
        );
        tools(
            r#"[ {"name":"no"} , {"name":"ok2"} ]"#,
            r#"[ {"name":"ok2"} ]"#,
        );
        tools(
            r#"[ {"name":"ok1"} , {"name":"no"} ]"#,
            r#"[ {"name":"ok1"} ]"#,
        );
        tools(
            r#"[{"name":"ok1"}, {"name":"no"} ,{"name":"ok2", "x": 1.50}]"#,
            r#"[{"name":"ok1"} ,{"name":"ok2", "x": 1.50}]"#,
        );
        tools(
            r#"[{"name":"a"},{"name":"b"},{"name":"ok"},{"name":"c"},{"name":"d"}]"#,
            r#"[{"name":"ok"}]"#,
        );
        tools(r#"[ {"name":"a"} , {"name":"b"} ]"#, "[  ]");
        tools("[]", "[]");
    }

    #[test]
    fn a_tool_that_is_forbidden_is_not_listed_however_its_name_is_spelled() {
        tools(r#"[{"name":"ok-not"},{"name":"ok"}]"#, r#"[{"name":"ok"}]"#);
        tools(
            r#"[{"name":"ok\u002dnot"},{"n\u0061me":"ok"}]"#,
            r#"[{"n\u0061me":"ok"}]"#,
        );
    }

    #[test]
    fn an_element_without_a_name_is_not_listed() {
        tools(
            r#"["ok",null,["ok"],{},{"name":null},{"name":["ok"]},{"Name":"ok"},{"title":"ok"},{"name":"ok"}]"#,
            r#"[{"name":"ok"}]"#,
        );
    }

    #[test]
    fn an_answer_that_is_no_list_becomes_an_empty_one() {
        let answer = |result: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"result":{result}}}"#);
        for (result, after) in [
            (r#"{"tools":{"name":"secret"}}"#, r#"{"tools":[]}"#),
            (r#"{"tools":"secret"}"#, r#"{"tools":[]}"#),
            (r#"[{"name":"secret"}]"#, r#"{"tools":[]}"#),
            (r#""secret""#, r#"{"tools":[]}"#),
        ] {
            assert_eq!(filter("tools/list", &answer(result)), Some(answer(after)));
        }
        for untouched in [r#"{}"#, r#"{"prompts":[{"name":"x"}]}"#] {
            assert_eq!(filter("tools/list", &answer(untouched)), None);
        }
        assert_eq!(
            filter(
                "tools/list",
                r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"x"}}"#
            ),
            None
        );
    }

    #[test]
    fn a_list_that_is_longer_than_anybody_reads_is_cut_off() {
        let list = |count| format!("[{}]", vec![r#"{"name":"x"}"#; count].join(","));
        let answer = |count| {
            format!(
                r#"{{"jsonrpc":"2.0","id":1,"result":{{"tools":{}}}}}"#,
                list(count)
            )
        };
        let engine =
            Engine::build(&Authz::Authenticated, &ServerName::parse("github").unwrap()).unwrap();
        let filter = |count| {
            engine.filter(
                &alice(),
                "tools/list",
                &Message::parse(Bytes::from(answer(count))).unwrap(),
            )
        };
        assert_eq!(filter(MAX_LISTED), None);
        assert_eq!(
            filter(MAX_LISTED + 3),
            Some(answer(MAX_LISTED).into_bytes())
        );
    }

    #[test]
    fn prompts_and_resources_are_cut_by_their_own_methods() {
        let answer = |member: &str, list: &str| {
            format!(r#"{{"jsonrpc":"2.0","id":1,"result":{{"{member}":{list}}}}}"#)
        };
        assert_eq!(
            filter(
                "prompts/list",
                &answer("prompts", r#"[{"name":"ok"},{"name":"no"}]"#)
            ),
            Some(answer("prompts", r#"[{"name":"ok"}]"#))
        );
        assert_eq!(
            filter(
                "resources/list",
                &answer(
                    "resources",
                    r#"[{"name":"ok","uri":"file:///etc"},{"uri":"file:///ok/1"}]"#
                )
            ),
            Some(answer("resources", r#"[{"uri":"file:///ok/1"}]"#))
        );
        for method in ["tools/call", "initialize", "resources/templates/list"] {
            assert_eq!(
                filter(method, &answer("tools", r#"[{"name":"no"}]"#)),
                None,
                "{method}"
            );
        }
    }

    #[test]
    fn whoever_may_do_everything_sees_everything() {
        let engine =
            Engine::build(&Authz::Authenticated, &ServerName::parse("github").unwrap()).unwrap();
        let answer = Message::parse(Bytes::from_static(
            br#"{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"x"}]}}"#,
        ))
        .unwrap();
        assert_eq!(engine.filter(&alice(), "tools/list", &answer), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn the_list_shows_exactly_what_may_be_called(names in prop::collection::vec("(ok)?(-not)?[a-c]?", 0..12)) {
            let tools: Vec<_> = names.iter().map(|name| serde_json::json!({"name": name, "inputSchema": {}})).collect();
            let answer = serde_json::json!({"jsonrpc": "2.0", "id": 1, "result": {"tools": tools}}).to_string();
            let engine = engine(SOME);
            let message = Message::parse(Bytes::from(answer.clone())).unwrap();
            let left = engine.filter(&alice(), "tools/list", &message).unwrap_or_else(|| answer.into_bytes());
            let left: serde_json::Value = serde_json::from_slice(&left).unwrap();
            let shown: Vec<_> = left["result"]["tools"].as_array().unwrap().iter().map(|tool| tool["name"].as_str().unwrap()).collect();
            let callable: Vec<_> =
                names.iter().filter(|name| engine.decide(&alice(), crate::authz::fixture::tool(name)).is_ok()).collect();
            prop_assert_eq!(shown, callable);
        }
    }
}

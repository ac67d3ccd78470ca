//! Which scopes a denied call lacks: the step-up of RFC 6750 §3.1 and of MCP authorization.
//!
//! Only what would cure is asked for: a call that no scope permits is denied for
//! good, so that clients do not ask their users in circles (tok-91).

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
};

use cedar_policy::Policy;
use serde_json::Value;

use super::{entity, slice, wording};
use crate::mcp::method;

/// Sets of scopes by method; those that one policy names stay together.
pub(super) type Steps = HashMap<&'static str, Vec<Vec<String>>>;

/// The sets of scopes that policies name.
pub(super) fn steps(policies: &[Policy]) -> Steps {
    let named: Vec<_> = policies
        .iter()
        .map(|policy| (policy, named(policy)))
        .filter(|(_, named)| !named.is_empty())
        .collect();
    let of = |method: &str| {
        let action = entity::action(method);
        let of_it = named
            .iter()
            .filter(|(policy, _)| slice::speaks_of(policy, &action));
        let mut sets: Vec<Vec<String>> = distinct(of_it.map(|(_, named)| named.clone()));
        // Where several policies must agree, all that they name together.
        let all: Vec<String> = distinct(sets.concat());
        if sets.len() > 1 && !sets.contains(&all) {
            sets.truncate(MAX_STEPS);
            sets.push(all);
        }
        sets
    };
    method::DECIDED
        .iter()
        .map(|method| (*method, of(method)))
        .collect()
}

/// Of the scopes that a token has and those of a step, the fewest that still permit, in the
/// order of their names: all at once, for whoever asks for the new ones alone may lose the
/// others, and none that is not needed (mcp-S4). What policies name first is kept first.
pub(super) fn fewest(
    sets: &[Vec<String>],
    held: &[String],
    step: &[String],
    permits: impl Fn(&[String]) -> bool,
) -> Vec<String> {
    let counts = |scope: &&String| sets.iter().flatten().any(|named| named == *scope);
    let mut needed: Vec<String> = held.iter().filter(counts).cloned().collect();
    needed.extend(step.iter().filter(|scope| !held.contains(scope)).cloned());
    if !permits(&needed) {
        // A policy looks at the token's scopes in a way that is not understood here.
        needed = step.to_vec();
    } else if needed.len() <= MAX_TRIED {
        for at in (0..needed.len()).rev() {
            let scope = needed.remove(at);
            if !permits(&needed) {
                needed.insert(at, scope);
            }
        }
    }
    needed.sort_unstable();
    needed
}

/// Each once, in their order. There may be thousands, and somebody waits for the answer.
fn distinct<T: Clone + Eq + Hash>(all: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut known = HashSet::new();
    all.into_iter()
        .filter(|one| known.insert(one.clone()))
        .collect()
}

/// The scopes that a policy compares with `principal.scopes`, in its order.
fn named(policy: &Policy) -> Vec<String> {
    let text = policy.to_cedar();
    let quick = text.as_deref().and_then(wording::named);
    // Its JSON form takes reading it anew, while nobody else is answered.
    let found = quick.unwrap_or_else(|| in_json(policy));
    // RFC 6749 §3.3: others are in no token, and fit into no header.
    let legal = |scope: &String| {
        !scope.is_empty()
            && scope
                .bytes()
                .all(|byte| matches!(byte, 0x21 | 0x23..=0x5B | 0x5D..=0x7E))
    };
    distinct(found.into_iter().filter(legal))
}

fn in_json(policy: &Policy) -> Vec<String> {
    let mut found = Vec::new();
    if let Ok(json) = policy.to_json() {
        walk(&json, &mut found);
    }
    found
}

/// `principal.scopes.contains("…")`, `containsAll` and `containsAny`, in Cedar's JSON form of a policy.
fn walk(json: &Value, found: &mut Vec<String>) {
    match json {
        Value::Object(members) => {
            for name in COMPARES {
                if let Some(call) = members.get(name)
                    && is_scopes(&call["left"])
                {
                    texts(&call["right"], found);
                }
            }
            members.values().for_each(|value| walk(value, found));
        }
        Value::Array(elements) => elements.iter().for_each(|value| walk(value, found)),
        _ => {}
    }
}

fn is_scopes(json: &Value) -> bool {
    json["."]["attr"] == "scopes" && json["."]["left"]["Var"] == "principal"
}

/// The string literals below an expression.
fn texts(json: &Value, found: &mut Vec<String>) {
    match json {
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    Value::String(text) if name == "Value" => found.push(text.clone()),
                    value => texts(value, found),
                }
            }
        }
        Value::Array(elements) => elements.iter().for_each(|value| texts(value, found)),
        _ => {}
    }
}

/// What compares them.
pub(super) const COMPARES: [&str; 3] = ["contains", "containsAll", "containsAny"];
/// Scopes that are tried one by one for one denied call.
const MAX_TRIED: usize = 64;
/// Sets that are tried for one denied call.
const MAX_STEPS: usize = 16;

#[cfg(test)]
mod tests {
    use cedar_policy::Policy;

    use super::{in_json, wording};
    use crate::{
        auth::Kind,
        authz::{
            DenyReason,
            fixture::{alice, engine, tool},
        },
        mcp::Call,
    };

    /// What the wording says is what Cedar's own reading of it says, where it says anything at all.
    #[test]
    fn scopes_are_found_in_the_wording_as_cedar_finds_them() {
        let plain = r#"principal.scopes.contains("a") // not principal.scopes.contains("z")
            && principal has scopes && principal . scopes
            .containsAll(["b", "c",]) || principal.scopes.containsAny([]) && resource.uri like "scopes*""#;
        let plain = format!("{plain} || // said on an old line\rprincipal.scopes.contains(\"d\")");
        let odd = [
            r#"principal["scopes"].contains("a")"#,
            r#"principal["\u{73}copes"].contains("a")"#,
            r#"(principal).scopes.contains("a")"#,
            r#"principal.scopes.contains("\x61")"#,
            r#"principal.scopes.contains(if true then "a" else "b")"#,
            r#"principal.scopes.containsAll(principal.scopes)"#,
            r#"{scopes: ["x"]}.scopes.contains("x")"#,
            r#"context.principal.scopes.contains("x")"#,
            r#"principal.scopes == ["a"] && "scopes" == "scopes""#,
        ];
        let reads = |when: &str| {
            let text =
                format!("@id(\"it\")\npermit (principal, action, resource) when {{ {when} }};");
            let policy = Policy::parse(None, &text).unwrap();
            (wording::named(&text), in_json(&policy))
        };
        let (quick, slow) = reads(&plain);
        assert_eq!(quick.as_ref(), Some(&slow));
        assert_eq!(slow, ["a", "b", "c", "d"]);
        for when in odd {
            let (quick, slow) = reads(when);
            assert!(quick.is_none_or(|quick| quick == slow), "{when}");
        }
        assert_eq!(reads("true"), (Some(Vec::new()), Vec::new()));
    }

    fn lacks(cedar: &str, call: Call) -> Option<Vec<String>> {
        let denied = engine(cedar).decide(&alice(), call).unwrap_err();
        assert_eq!(denied.reason, DenyReason::Policy);
        denied.scopes
    }

    fn lacks_of(scopes: &[&str], cedar: &str) -> Option<Vec<String>> {
        let caller = alice().with(Kind::User, None, &[], scopes);
        engine(cedar).decide(&caller, tool("x")).unwrap_err().scopes
    }

    fn some(scopes: &[&str]) -> Option<Vec<String>> {
        Some(scopes.iter().map(|scope| (*scope).to_owned()).collect())
    }

    /// tok-91: what a policy wants besides is named, all of it at once.
    #[test]
    fn a_denied_call_that_scopes_would_permit_names_them() {
        assert_eq!(
            lacks(
                r#"permit (principal, action, resource) when { principal.scopes.contains("repo:write") };"#,
                tool("x")
            ),
            some(&["repo:write"])
        );
        for attribute in [r"\u{73}copes", r"sco\x70es"] {
            let text = format!(
                r#"permit (principal, action, resource) when {{ principal["{attribute}"].contains("a") }};"#
            );
            assert_eq!(lacks(&text, tool("x")), some(&["a"]));
        }
        assert_eq!(
            lacks(
                r#"permit (principal, action, resource) when { principal.scopes.containsAll(["b", "a"]) };"#,
                tool("x")
            ),
            some(&["a", "b"])
        );
        assert_eq!(
            lacks(
                r#"permit (principal, action, resource);
                   forbid (principal, action, resource) unless { principal.scopes.contains("one") };
                   forbid (principal, action, resource) unless { principal.scopes.contains("two") };"#,
                tool("x")
            ),
            some(&["one", "two"])
        );
    }

    /// tok-91: what no scope would cure is denied without a word about scopes.
    #[test]
    fn a_denied_call_that_no_scope_permits_names_none() {
        for cedar in [
            r#"permit (principal, action, resource) when { principal.groups.contains("admins") };"#,
            r#"permit (principal, action, resource) when { principal.scopes.contains("x") && principal.subject == "bob" };"#,
            r#"permit (principal, action == Action::"tools/list", resource) when { principal.scopes.contains("x") };"#,
            r#"permit (principal, action, resource); forbid (principal, action, resource == Tool::"x");"#,
        ] {
            assert_eq!(lacks(cedar, tool("x")), None, "{cedar}");
        }
    }

    /// mcp-S4: all that the operation needs at once, what the token has of it included, or a
    /// client that asks for the new one alone loses the old one.
    #[test]
    fn what_is_named_is_all_that_is_needed_and_no_more() {
        let both = r#"permit (principal, action, resource);
               forbid (principal, action, resource) unless { principal.scopes.contains("tools:read") };
               forbid (principal, action, resource) unless { principal.scopes.contains("two") };"#;
        assert_eq!(
            lacks_of(&["tools:read", "other"], both),
            some(&["tools:read", "two"])
        );
        assert_eq!(
            lacks_of(
                &[],
                r#"permit (principal, action, resource) when { principal.scopes.containsAny(["read", "admin"]) };"#,
            ),
            some(&["read"])
        );
        assert_eq!(
            lacks_of(
                &["x"],
                r#"permit (principal, action, resource) when { principal.scopes.contains("zoo") || principal.scopes.contains("admin") };"#,
            ),
            some(&["zoo"])
        );
    }

    /// No token can have a scope that RFC 6749 §3.3 does not allow, and no header could name it.
    #[test]
    fn what_is_no_scope_is_not_asked_for() {
        for scope in ["a b", "\u{e9}", "\\\"", ""] {
            let cedar = format!(
                r#"permit (principal, action, resource) when {{ principal.scopes.contains("{scope}") }};"#
            );
            assert_eq!(lacks(&cedar, tool("x")), None, "{scope}");
        }
    }
}

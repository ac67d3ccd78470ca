//! Which scopes a denied call lacks: the step-up of RFC 6750 §3.1 and of MCP authorization.
//!
//! Only what would cure is asked for: a call that no scope permits is denied for
//! good, so that clients do not ask their users in circles (tok-91).

use std::collections::HashMap;

use cedar_policy::Policy;
use serde_json::Value;

use super::{entity, slice};
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
        let mut sets: Vec<Vec<String>> = Vec::new();
        for (policy, named) in &named {
            if slice::speaks_of(policy, &action) && !sets.contains(named) {
                sets.push(named.clone());
            }
        }
        // Where several policies must agree, all that they name together.
        let mut all: Vec<String> = sets.concat();
        all.sort_unstable();
        all.dedup();
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

/// The texts that a policy compares with `principal.scopes`, sorted.
fn named(policy: &Policy) -> Vec<String> {
    let mut found = Vec::new();
    if let Ok(json) = policy.to_json() {
        walk(&json, &mut found);
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// `principal.scopes.contains("…")`, `containsAll` and `containsAny`, in Cedar's JSON form of a policy.
fn walk(json: &Value, found: &mut Vec<String>) {
    match json {
        Value::Object(members) => {
            for name in ["contains", "containsAll", "containsAny"] {
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

/// Sets that are tried for one denied call.
const MAX_STEPS: usize = 16;

#[cfg(test)]
mod tests {
    use crate::{
        authz::{
            DenyReason,
            fixture::{alice, engine, tool},
        },
        mcp::Call,
    };

    fn lacks(cedar: &str, call: Call) -> Option<Vec<String>> {
        let denied = engine(cedar).decide(&alice(), call).unwrap_err();
        assert_eq!(denied.reason, DenyReason::Policy);
        denied.scopes
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
}

//! Which policies can have a say in a request, found without evaluating them.
//!
//! Cedar evaluates every policy for every request. A policy whose scope names
//! another action, or another resource by `==`, cannot contribute and cannot
//! err either, so leaving it out changes no answer (a test compares both ways).

use std::collections::HashMap;

use cedar_policy::{
    ActionConstraint, AuthorizationError, Authorizer, Decision, Effect, Entities, EntityUid,
    Policy, PolicySet, Request, ResourceConstraint,
};

use super::entity;
use crate::mcp::method;

/// The policies that apply to one action.
#[derive(Debug, Default)]
pub(super) struct Slice {
    /// For whatever resource.
    any: PolicySet,
    /// Besides, for exactly this resource.
    only: HashMap<EntityUid, PolicySet>,
}

/// What the policies say.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Answer {
    pub(super) permits: Vec<String>,
    pub(super) forbids: Vec<String>,
    /// Policies that could not be evaluated, with why.
    pub(super) errors: Vec<(String, String)>,
}

/// Where an action could be permitted, as far as that shows without evaluating anything.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reach {
    /// A policy could permit it to somebody on this server.
    Here,
    /// Policies permit it on these servers alone (`Server::"NAME"`), and this is none of them.
    Elsewhere(Vec<String>),
    /// No policy permits it.
    Nowhere,
}

/// The slices of all actions, by method.
pub(super) fn slices(policies: &[Policy]) -> HashMap<&'static str, Slice> {
    method::DECIDED
        .iter()
        .map(|method| (*method, Slice::of(&entity::action(method), policies)))
        .collect()
}

impl Slice {
    fn of(action: &EntityUid, policies: &[Policy]) -> Self {
        let mut slice = Self::default();
        for policy in policies.iter().filter(|policy| speaks_of(policy, action)) {
            let set = match policy.resource_constraint() {
                ResourceConstraint::Eq(resource) => slice.only.entry(resource).or_default(),
                _ => &mut slice.any,
            };
            set.add(policy.clone())
                .expect("policy names are unique: read() refuses doubles");
        }
        slice
    }

    /// How far its `permit`s reach, by the servers that they name.
    pub(super) fn reach(&self, server: &EntityUid) -> Reach {
        let sets = self.only.values().chain([&self.any]);
        let permits = sets
            .flat_map(PolicySet::policies)
            .filter(|policy| policy.effect() == Effect::Permit);
        let mut others = Vec::new();
        for permit in permits {
            match named_server(permit) {
                Some(other) if other != *server => others.push(other.to_string()),
                _ => return Reach::Here,
            }
        }
        others.sort_unstable();
        others.dedup();
        if others.is_empty() {
            Reach::Nowhere
        } else {
            Reach::Elsewhere(others)
        }
    }

    /// Asks every policy that can have a say.
    pub(super) fn ask(
        &self,
        authorizer: &Authorizer,
        request: &Request,
        entities: &Entities,
    ) -> Answer {
        let only = request
            .resource()
            .and_then(|resource| self.only.get(resource));
        let mut answer = Answer::default();
        for set in only.into_iter().chain([&self.any]) {
            answer.add(authorizer, request, set, entities);
        }
        answer
    }
}

impl Answer {
    fn add(
        &mut self,
        authorizer: &Authorizer,
        request: &Request,
        set: &PolicySet,
        entities: &Entities,
    ) {
        let response = authorizer.is_authorized(request, set, entities);
        let reasons = match response.decision() {
            Decision::Allow => &mut self.permits,
            Decision::Deny => &mut self.forbids,
        };
        reasons.extend(response.diagnostics().reason().map(ToString::to_string));
        reasons.sort_unstable();
        let errors = response.diagnostics().errors();
        self.errors.extend(
            errors.map(|AuthorizationError::PolicyEvaluationError(error)| {
                (error.policy_id().to_string(), error.to_string())
            }),
        );
        self.errors.sort_unstable();
    }
}

/// The server that a policy's scope names.
fn named_server(policy: &Policy) -> Option<EntityUid> {
    let named = match policy.resource_constraint() {
        ResourceConstraint::Eq(named)
        | ResourceConstraint::In(named)
        | ResourceConstraint::IsIn(_, named) => named,
        ResourceConstraint::Any | ResourceConstraint::Is(_) => return None,
    };
    let is_server = entity::is_server(&named);
    is_server.then_some(named)
}

pub(super) fn speaks_of(policy: &Policy, action: &EntityUid) -> bool {
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        // The schema has no action groups: `in` means one of these.
        ActionConstraint::In(actions) => actions.contains(action),
        ActionConstraint::Eq(only) => only == *action,
    }
}

#[cfg(test)]
mod tests {
    use cedar_policy::{Context, Entity};
    use proptest::prelude::*;

    use super::*;
    use crate::{
        authz::{
            fixture::{alice, engine, file},
            policy,
        },
        config::ServerName,
        mcp::Target,
    };

    fn question(method: &str, target: &Target<'_>) -> (Request, Entities) {
        let server: Entity = entity::server(&ServerName::parse("github").unwrap());
        let resource = entity::target(target, &server.uid());
        let principal = entity::principal(&alice());
        let uid = resource.as_ref().unwrap_or(&server).uid();
        let request = Request::new(
            principal.uid(),
            entity::action(method),
            uid,
            Context::empty(),
            None,
        )
        .unwrap();
        (
            request,
            Entities::from_entities([principal, server].into_iter().chain(resource), None).unwrap(),
        )
    }

    fn scope() -> impl Strategy<Value = String> {
        let effect = prop::sample::select(vec!["permit", "forbid"]);
        let principal = prop::sample::select(vec![
            "principal",
            "principal is User",
            r#"principal == User::"https://sso.example.com|alice""#,
            r#"principal == User::"https://sso.example.com|bob""#,
        ]);
        let action = prop::sample::select(vec![
            "action",
            r#"action == Action::"tools/call""#,
            r#"action in [Action::"tools/call", Action::"tools/list"]"#,
        ]);
        let resource = prop::sample::select(vec![
            "resource",
            "resource is Tool",
            r#"resource == Tool::"a""#,
            r#"resource == Tool::"b""#,
            r#"resource in Server::"github""#,
        ]);
        let when = prop::sample::select(vec![
            "",
            r#"when { principal.subject == "alice" }"#,
            r#"unless { principal.subject == "alice" }"#,
            "when { 9223372036854775807 + 1 > 0 }",
        ]);
        (effect, principal, action, resource, when).prop_map(
            |(effect, principal, action, resource, when)| {
                format!("{effect} ({principal}, {action}, {resource}) {when};")
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_slice_answers_what_all_policies_together_answer(texts in prop::collection::vec(scope(), 1..10)) {
            // Some of these never apply, which read() refuses: keep the others.
            let texts: Vec<_> = texts.into_iter().filter(|text| policy::read(&[file("/p/x.cedar", text)], false).is_ok()).collect();
            prop_assume!(!texts.is_empty());
            let policies = policy::read(&[file("/p/x.cedar", &texts.join("\n"))], false).unwrap();
            let slices = slices(&policies);
            let whole = PolicySet::from_policies(policies).unwrap();
            for (method, target) in
                [("tools/call", Target::Tool("a")), ("tools/call", Target::Tool("b")), ("tools/call", Target::Tool("c")), ("tools/list", Target::Server)]
            {
                let (request, entities) = question(method, &target);
                let sliced = slices[method].ask(&Authorizer::new(), &request, &entities);
                let mut all = Answer::default();
                all.add(&Authorizer::new(), &request, &whole, &entities);
                prop_assert_eq!(&sliced.errors, &all.errors);
                prop_assert_eq!(&sliced.forbids, &all.forbids);
                // Cedar names the permits only where no forbid matched.
                if all.forbids.is_empty() {
                    prop_assert_eq!(&sliced.permits, &all.permits);
                }
            }
        }
    }

    /// fault-54. Run with `--nocapture` for the numbers.
    #[test]
    fn a_long_list_under_many_policies_is_cut_in_bounded_time() {
        let one_a_tool: String = (0..1_000).map(|n| format!("permit (principal, action == Action::\"tools/call\", resource == Tool::\"t{n}\");\n")).collect();
        let general: String = (0..100)
            .map(|n| format!("permit (principal, action == Action::\"tools/call\", resource) when {{ principal.groups.contains(\"g{n}\") && resource.name like \"x{n}*\" }};\n"))
            .collect();
        let tools: Vec<_> = (0..200)
            .map(
                |n| serde_json::json!({"name": format!("t{n}"), "inputSchema": {"type": "object"}}),
            )
            .collect();
        let answer =
            serde_json::json!({"jsonrpc": "2.0", "id": 1, "result": {"tools": tools}}).to_string();
        let answer = crate::mcp::Message::parse(bytes::Bytes::from(answer)).unwrap();
        for (what, text, removed) in [
            ("1,000 policies of one tool each", one_a_tool, false),
            ("100 policies for every tool", general, true),
        ] {
            let before = std::time::Instant::now();
            let engine = engine(&text);
            let built = before.elapsed();
            let before = std::time::Instant::now();
            assert_eq!(
                engine.filter(&alice(), "tools/list", &answer).is_some(),
                removed
            );
            let listed = before.elapsed();
            eprintln!("{what}: built in {built:?}, a list of 200 tools cut in {listed:?}");
            assert!(listed < std::time::Duration::from_secs(10));
        }
    }
}

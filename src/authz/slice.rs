//! Which policies can have a say in a request, found without evaluating them.
//!
//! Cedar evaluates every policy for every request. A policy whose scope names
//! another action, or another resource by `==`, cannot contribute and cannot
//! err either, so leaving it out changes no answer (a test compares both ways).

use std::collections::HashMap;

use cedar_policy::{
    ActionConstraint, AuthorizationError, Authorizer, Decision, Entities, EntityUid, Policy, PolicySet, Request, ResourceConstraint,
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

/// The slices of all actions, by method.
pub(super) fn slices(policies: &[Policy]) -> HashMap<&'static str, Slice> {
    method::DECIDED.iter().map(|method| (*method, Slice::of(&entity::action(method), policies))).collect()
}

impl Slice {
    fn of(action: &EntityUid, policies: &[Policy]) -> Self {
        let mut slice = Self::default();
        for policy in policies.iter().filter(|policy| speaks_of(policy, action)) {
            let set = match policy.resource_constraint() {
                ResourceConstraint::Eq(resource) => slice.only.entry(resource).or_default(),
                _ => &mut slice.any,
            };
            set.add(policy.clone()).expect("policy names are unique: read() refuses doubles");
        }
        slice
    }

    /// Asks every policy that can have a say.
    pub(super) fn ask(&self, authorizer: &Authorizer, request: &Request, entities: &Entities) -> Answer {
        let only = request.resource().and_then(|resource| self.only.get(resource));
        let mut answer = Answer::default();
        for set in only.into_iter().chain([&self.any]) {
            answer.add(authorizer, request, set, entities);
        }
        answer
    }
}

impl Answer {
    fn add(&mut self, authorizer: &Authorizer, request: &Request, set: &PolicySet, entities: &Entities) {
        let response = authorizer.is_authorized(request, set, entities);
        let reasons = match response.decision() {
            Decision::Allow => &mut self.permits,
            Decision::Deny => &mut self.forbids,
        };
        reasons.extend(response.diagnostics().reason().map(ToString::to_string));
        reasons.sort_unstable();
        let errors = response.diagnostics().errors();
        self.errors.extend(errors.map(|AuthorizationError::PolicyEvaluationError(error)| {
            (error.policy_id().to_string(), error.to_string())
        }));
        self.errors.sort_unstable();
    }
}

fn speaks_of(policy: &Policy, action: &EntityUid) -> bool {
    match policy.action_constraint() {
        ActionConstraint::Any => true,
        // The schema has no action groups: `in` means one of these.
        ActionConstraint::In(actions) => actions.contains(action),
        ActionConstraint::Eq(only) => only == *action,
    }
}

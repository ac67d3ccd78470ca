//! Permissions that were given, so that the same question is not worked out twice.
//!
//! What the policies say depends on what they can see of the caller, on the method and on the
//! target, and on nothing else: no time, no address, and the policies of an engine never
//! change. All of it is in the key, and keys are compared whole, so that what is remembered is
//! what would be decided (a test compares both ways). Refusals are worked out each time.

use std::sync::{Arc, Mutex, PoisonError};

use foldhash::HashMap;

use crate::{
    auth::{Identity, Kind},
    mcp::{Call, Target, method},
};

/// The policies that permitted each question that was asked lately.
#[derive(Debug, Default)]
pub(super) struct Remembered(Mutex<Generations>);

/// When the young are many they are the old, and those that were old are forgotten.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Question, Arc<[String]>>,
    old: HashMap<Question, Arc<[String]>>,
}

/// Everything that a decision depends on.
#[derive(Debug, Eq, Hash, PartialEq)]
pub(super) struct Question(Vec<u8>);

impl Question {
    /// `None` for what is not remembered: long ones, and what asks for more than its target.
    pub(super) fn of(identity: &Identity, call: &Call) -> Option<Self> {
        if call.method() == method::LISTEN {
            return None;
        }
        Self::about(identity, call.method(), &call.target())
    }

    /// `None` for a long one.
    pub(super) fn about(identity: &Identity, method: &str, target: &Target<'_>) -> Option<Self> {
        let mut question = Self(Vec::with_capacity(MAX_QUESTION / 2));
        question.0.push(match identity.kind() {
            Kind::User => 0,
            Kind::Client => 1,
        });
        question.text(identity.issuer());
        question.text(identity.subject());
        question.list(identity.client().into_iter());
        question.list(identity.groups().iter());
        question.list(identity.scopes().iter());
        question.text(method);
        let (kind, name) = match *target {
            Target::Server => (0, ""),
            Target::Tool(name) => (1, name),
            Target::Prompt(name) => (2, name),
            Target::Resource(uri) => (3, uri),
        };
        question.0.push(kind);
        question.text(name);
        (question.0.len() <= MAX_QUESTION).then_some(question)
    }

    /// Length first, so that no two rows of texts give the same bytes.
    fn text(&mut self, text: &str) {
        self.0.extend_from_slice(&text.len().to_ne_bytes());
        // What is longer is not remembered, and need not be copied.
        let end = text.len().min(MAX_QUESTION);
        self.0.extend_from_slice(&text.as_bytes()[..end]);
    }

    fn list<'a>(&mut self, texts: impl Iterator<Item = &'a str>) {
        // In front of each there is a byte that stands in front of nothing else.
        for text in texts {
            self.0.push(1);
            self.text(text);
        }
        self.0.push(0);
    }
}

impl Remembered {
    /// The policies by which this was permitted before.
    pub(super) fn recall(&self, question: &Question) -> Option<Arc<[String]>> {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(policies) = generations.young.get(question) {
            return Some(policies.clone());
        }
        let (question, policies) = generations.old.remove_entry(question)?;
        generations.keep(question, policies.clone());
        Some(policies)
    }

    /// This was permitted by these.
    pub(super) fn keep(&self, question: Question, policies: Arc<[String]>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .keep(question, policies);
    }
}

impl Generations {
    fn keep(&mut self, mut question: Question, policies: Arc<[String]>) {
        if self.young.len() >= MAX_YOUNG {
            self.old = std::mem::take(&mut self.young);
        }
        question.0.shrink_to_fit();
        self.young.insert(question, policies);
    }
}

/// Bytes of one question.
const MAX_QUESTION: usize = 1024;
/// Questions of one generation, of which there are two.
const MAX_YOUNG: usize = 2048;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::authz::{
        Engine,
        fixture::{alice, call, engine, tool},
    };

    fn small(text: &str) -> Vec<&str> {
        text.split(',').filter(|part| !part.is_empty()).collect()
    }

    /// A permit and its policies, or nothing.
    fn decided(engine: &Engine, identity: &Identity, call: Call) -> Option<Arc<[String]>> {
        let permit = engine.decide(identity, call).ok()?;
        Some(permit.policies().clone())
    }

    const POLICIES: &str = r#"
        @id("groups")  permit (principal, action, resource) when { principal.groups.contains("a") };
        @id("scopes")  permit (principal, action == Action::"tools/call", resource) when { principal.scopes.contains("a") };
        @id("client")  permit (principal is Client, action, resource) when { principal has client && principal.client == "a" };
        @id("users")   permit (principal is User, action == Action::"tools/list", resource);
        @id("subject") permit (principal, action, resource) when { principal.subject == "alicea" };
        @id("tool")    permit (principal, action == Action::"tools/call", resource == Tool::"a,b");
        @id("never")   forbid (principal, action == Action::"tools/call", resource) when { resource.name like "b*" };
    "#;

    proptest! {
        /// Whoever asks, in whatever order, hears from an engine that remembers what one that has
        /// never been asked anything would say.
        #[test]
        fn what_is_remembered_is_what_would_be_decided(
            asked in proptest::collection::vec(
                ("(,?[ab]){0,2}", "(,?[ab]){0,2}", proptest::option::of("[ab]?"), any::<bool>(), "[ab,]{0,3}", 0..4_u8),
                1..40,
            )
        ) {
            let remembers = engine(POLICIES);
            for (groups, scopes, client, person, name, method) in asked {
                let kind = if person { Kind::User } else { Kind::Client };
                let identity = alice().with(kind, client.as_deref(), &small(&groups), &small(&scopes));
                let asks = || match method {
                    0 => tool(&name),
                    1 => call("prompts/get", &format!(r#"{{"name":"{name}"}}"#)),
                    2 => call("resources/read", &format!(r#"{{"uri":"{name}"}}"#)),
                    _ => call("tools/list", "{}"),
                };
                let anew = decided(&fresh(), &identity, asks());
                prop_assert_eq!(decided(&remembers, &identity, asks()), anew.clone());
                prop_assert_eq!(decided(&remembers, &identity, asks()), anew);
            }
        }
    }

    #[test]
    fn questions_that_differ_in_anything_are_told_apart() {
        let lists: [&[&str]; 7] = [
            &[],
            &[""],
            &["a"],
            &["a", ""],
            &["a", "b"],
            &["ab"],
            &["b", "a"],
        ];
        let mut seen = Vec::new();
        for (kind, client) in [
            (Kind::User, None),
            (Kind::User, Some("")),
            (Kind::User, Some("a")),
            (Kind::Client, Some("a")),
        ] {
            for groups in lists {
                for scopes in lists {
                    for asked in [
                        tool(""),
                        tool("a"),
                        call("prompts/get", r#"{"name":"a"}"#),
                        call("tools/list", "{}"),
                        call("prompts/list", "{}"),
                    ] {
                        let identity = alice().with(kind, client, groups, scopes);
                        seen.push(Question::of(&identity, &asked).unwrap());
                    }
                }
            }
        }
        for (subject, issuer) in [("a", "bc"), ("ab", "c"), ("", "abc")] {
            let identity = Identity::example(issuer, subject);
            seen.push(Question::of(&identity, &tool("a")).unwrap());
        }
        let mut keys: Vec<_> = seen.iter().map(|question| &question.0).collect();
        keys.sort();
        assert!(keys.windows(2).all(|two| two[0] != two[1]));
    }

    fn fresh() -> Engine {
        engine(POLICIES)
    }

    #[test]
    fn what_is_long_or_asks_for_more_than_its_target_is_not_remembered() {
        let listen = call(
            "subscriptions/listen",
            r#"{"notifications":{"resourceSubscriptions":["x:y"]}}"#,
        );
        assert!(Question::of(&alice(), &listen).is_none());
        assert!(Question::of(&alice(), &tool(&"x".repeat(MAX_QUESTION))).is_none());
        assert!(Question::of(&alice(), &tool("x")).is_some());
    }

    #[test]
    fn no_more_than_two_generations_are_kept_and_what_is_asked_again_stays() {
        let remembered = Remembered::default();
        let question = |number: usize| Question(number.to_string().into_bytes());
        let policies: Arc<[_]> = ["p".to_owned()].into();
        for number in 0..MAX_YOUNG * 4 {
            remembered.keep(question(number), policies.clone());
            assert!(remembered.recall(&question(0)).is_some(), "{number}");
            let generations = remembered.0.lock().unwrap();
            assert!(generations.young.len() <= MAX_YOUNG && generations.old.len() <= MAX_YOUNG);
        }
        assert!(remembered.recall(&question(1)).is_none());
    }
}

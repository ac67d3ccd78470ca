//! One call, one identity → [`Permit`] or [`Denied`].

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use cedar_policy::{Authorizer, Context, Entities, Entity, EntityUid, Policy, Request};

use super::{
    entity, policy,
    policy::{Named, PolicyProblem},
    remembered::{Question, Remembered},
    scopes::{self, Steps},
    slice::{self, Answer, Reach, Slice},
};
use crate::{
    audit::Reason,
    auth::Identity,
    config::{Authz, ServerName},
    json::Kind,
    mcp::{Call, Shape, Target, method},
};

/// Decides for one server.
#[derive(Debug)]
pub struct Engine {
    server: Entity,
    rules: Rules,
}

#[derive(Debug)]
enum Rules {
    Authenticated,
    Policies {
        authorizer: Authorizer,
        principals: Vec<Named>,
        slices: HashMap<&'static str, Slice>,
        policies: Vec<Policy>,
        /// Sets of scopes that could turn a denial, by method: found out at the first one.
        steps: OnceLock<Steps>,
        vetted: String,
        remembered: Box<Remembered>,
    },
}

/// Proof that a policy permitted one call: what `session` wants before it sends anything.
///
/// Only [`Engine::decide`] makes one. It cannot be written out,
///
/// ```compile_fail,E0451
/// fn forge(call: thv::mcp::Call) -> thv::authz::Permit {
///     thv::authz::Permit { call, policies: Vec::new().into() }
/// }
/// ```
///
/// nor be used twice,
///
/// ```compile_fail,E0599
/// fn twice(permit: thv::authz::Permit) -> (thv::authz::Permit, thv::authz::Permit) {
///     (permit.clone(), permit)
/// }
/// ```
///
/// nor be opened outside this crate,
///
/// ```compile_fail,E0624
/// fn open(permit: thv::authz::Permit) -> thv::mcp::Call {
///     permit.into_call()
/// }
/// ```
///
/// while holding, reading and asking for one is fine:
///
/// ```
/// use thv::{auth::Identity, authz::{Denied, Engine, Permit}, mcp::Call};
///
/// fn ask(engine: &Engine, identity: &Identity, call: Call) -> Result<Permit, Denied> {
///     let permit = engine.decide(identity, call)?;
///     assert!(!permit.policies().is_empty());
///     Ok(permit)
/// }
/// ```
#[must_use = "a permit that is not sent decided nothing"]
#[derive(Debug)]
pub struct Permit {
    call: Call,
    policies: Arc<[String]>,
}

impl Permit {
    /// The call, to be sent now.
    pub(crate) fn into_call(self) -> Call {
        self.call
    }

    pub fn call(&self) -> &Call {
        &self.call
    }

    /// The policies that permitted it, by name; never empty.
    pub fn policies(&self) -> &Arc<[String]> {
        &self.policies
    }
}

/// A call that is not permitted.
#[derive(Debug)]
pub struct Denied {
    pub call: Call,
    /// The `forbid`s that matched, or the policies that failed; empty when nothing permitted the call.
    pub policies: Vec<String>,
    pub reason: DenyReason,
    /// The scopes that the policies want for it, of which the token lacks some.
    pub scopes: Option<Vec<String>>,
    /// For [`DenyReason::PolicyError`]: what Cedar said, for the operator only.
    pub errors: Vec<String>,
}

/// Why a call is not permitted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DenyReason {
    /// A policy forbids it, or none permits it.
    Policy,
    /// A policy could not be evaluated: an operator has to look.
    PolicyError,
    /// A method that nobody may call (`-32601`).
    Method,
}

impl From<DenyReason> for Reason {
    fn from(reason: DenyReason) -> Self {
        match reason {
            DenyReason::Policy => Self::Policy,
            DenyReason::PolicyError => Self::PolicyError,
            DenyReason::Method => Self::MethodUnknown,
        }
    }
}

impl Engine {
    /// Reads `[authz]` of a server's configuration.
    pub fn build(authz: &Authz, server: &ServerName) -> Result<Self, Vec<PolicyProblem>> {
        Self::build_again(authz, server, None)
    }

    /// The same for one that may have been built before: `vetted` is what [`Engine::vetted`] said
    /// then. It is as good as whoever has kept it, so that must be nobody but the gateway itself.
    pub fn build_again(
        authz: &Authz,
        server: &ServerName,
        vetted: Option<&str>,
    ) -> Result<Self, Vec<PolicyProblem>> {
        let rules = match authz {
            Authz::Authenticated => Rules::Authenticated,
            Authz::Policies(files) => {
                let sum = policy::vetted(files);
                let policies = policy::read(files, vetted == Some(&sum))?;
                Rules::Policies {
                    authorizer: Authorizer::new(),
                    principals: policy::principals(&policies),
                    slices: slice::slices(&policies),
                    policies,
                    steps: OnceLock::new(),
                    vetted: sum,
                    remembered: Box::default(),
                }
            }
        };
        Ok(Self {
            server: entity::server(server),
            rules,
        })
    }

    /// What says that these policies have passed, for the next time they are read.
    pub fn vetted(&self) -> Option<&str> {
        match &self.rules {
            Rules::Authenticated => None,
            Rules::Policies { vetted, .. } => Some(vetted),
        }
    }

    /// Where policies could permit `method` to somebody: elsewhere than here, nobody may.
    /// Nothing is evaluated.
    pub fn reach(&self, method: &str) -> Reach {
        match &self.rules {
            Rules::Authenticated => Reach::Here,
            Rules::Policies { slices, .. } => slices
                .get(method)
                .map_or(Reach::Nowhere, |slice| slice.reach(&self.server.uid())),
        }
    }

    /// The principals that policies name.
    pub fn principals(&self) -> &[Named] {
        match &self.rules {
            Rules::Authenticated => &[],
            Rules::Policies { principals, .. } => principals,
        }
    }

    /// Decides one call. What is permitted is what the [`Permit`] holds: no second look at any bytes.
    #[allow(
        clippy::result_large_err,
        reason = "both ways carry the call, and neither is the rare one"
    )]
    pub fn decide(&self, identity: &Identity, call: Call) -> Result<Permit, Denied> {
        // About the conversation alone: whoever owns the session may; `session` compares on every message.
        if matches!(call.shape(), Shape::Response(_)) || method::is_riding(call.method()) {
            return Ok(Permit {
                call,
                policies: [SESSION.to_owned()].into(),
            });
        }
        let known = match &self.rules {
            Rules::Authenticated => None,
            Rules::Policies { remembered, .. } => {
                Question::of(identity, &call).map(|question| (remembered, question))
            }
        };
        if let Some((remembered, question)) = &known
            && let Some(policies) = remembered.recall(question)
        {
            return Ok(Permit { call, policies });
        }
        let verdict = self.caller(identity).call(&call);
        match verdict {
            Verdict::Permit(policies) => {
                let policies: Arc<[String]> = policies.into();
                if let Some((remembered, question)) = known {
                    remembered.keep(question, policies.clone());
                }
                Ok(Permit { call, policies })
            }
            Verdict::Deny {
                reason,
                policies,
                errors,
            } => Err(Denied {
                scopes: match reason {
                    DenyReason::Policy => self.step_up(identity, &call),
                    DenyReason::PolicyError | DenyReason::Method => None,
                },
                call,
                policies,
                reason,
                errors,
            }),
        }
    }

    /// The scopes with which a denied call would be permitted, if those that the policies
    /// name make it so.
    fn step_up(&self, identity: &Identity, call: &Call) -> Option<Vec<String>> {
        let Rules::Policies {
            policies, steps, ..
        } = &self.rules
        else {
            return None;
        };
        let permits = |scopes: &[String]| {
            let stepped_up = Caller {
                principal: entity::principal_with(identity, scopes.iter().map(String::as_str)),
                ..self.caller(identity)
            };
            stepped_up.may_call(call.method(), &call.target())
        };
        let steps = steps.get_or_init(|| policy::on_large_stack(|| scopes::steps(policies)));
        let sets = steps.get(call.method())?;
        let held = &identity.scopes().to_vec()[..];
        let step = sets.iter().find(|step| {
            let new = step.iter().filter(|scope| !held.contains(scope));
            permits(&held.iter().chain(new).cloned().collect::<Vec<_>>())
        })?;
        Some(scopes::fewest(sets, held, step, permits))
    }

    /// Whether [`Engine::decide`] would permit it.
    pub fn may_call(&self, identity: &Identity, method: &str, target: &Target<'_>) -> bool {
        self.caller(identity).may_call(method, target)
    }

    /// Whether it may hear that a resource has changed: whether it may subscribe to that one alone.
    pub fn may_hear_of(&self, identity: &Identity, uri: &str) -> bool {
        let Rules::Policies { remembered, .. } = &self.rules else {
            return true;
        };
        let (method, target) = (SUBSCRIBE, Target::Resource(uri));
        let question = Question::about(identity, method, &target);
        let known = |question: &Question| remembered.recall(question).is_some();
        if question.as_ref().is_some_and(known) {
            return true;
        }
        let Verdict::Permit(policies) = self.caller(identity).verdict(method, &target) else {
            return false;
        };
        if let Some(question) = question {
            remembered.keep(question, policies.into());
        }
        true
    }

    /// Whether one caller may see what another may not.
    pub fn tells_callers_apart(&self) -> bool {
        matches!(self.rules, Rules::Policies { .. })
    }

    /// Prepares any number of decisions for one identity.
    pub(super) fn caller(&self, identity: &Identity) -> Caller<'_> {
        Caller {
            engine: self,
            principal: entity::principal(identity),
            ambiguous: identity.issuer().contains('|'),
        }
    }
}

/// An identity about to be decided on.
pub(super) struct Caller<'a> {
    engine: &'a Engine,
    principal: Entity,
    /// The issuer holds the separator of `ISSUER|SUBJECT`: two callers could have one entity id.
    ambiguous: bool,
}

enum Verdict {
    Permit(Vec<String>),
    Deny {
        reason: DenyReason,
        policies: Vec<String>,
        errors: Vec<String>,
    },
}

impl Caller<'_> {
    pub(super) fn may_call(&self, method: &str, target: &Target<'_>) -> bool {
        matches!(self.verdict(method, target), Verdict::Permit(_))
    }

    /// A call is permitted if all that it asks for is.
    fn call(&self, call: &Call) -> Verdict {
        let verdict = self.verdict(call.method(), &call.target());
        if call.method() != method::LISTEN || !matches!(verdict, Verdict::Permit(_)) {
            return verdict;
        }
        let notifications = call.params().and_then(|params| params.get("notifications"));
        // How a task stands is told with its result.
        if notifications.is_some_and(|wanted| wanted.get("taskIds").is_some()) {
            let told = self.verdict("tasks/get", &Target::Server);
            if matches!(told, Verdict::Deny { .. }) {
                return told;
            }
        }
        // Each resource by itself, as if it were subscribed to alone.
        let resources = notifications.and_then(|wanted| wanted.get("resourceSubscriptions"));
        let Some(resources) = resources else {
            return verdict;
        };
        let denied = resources
            .elements()
            .take(MAX_SUBSCRIBED + 1)
            .enumerate()
            .find_map(|(index, uri)| {
                let uri = uri.as_str().filter(|_| index < MAX_SUBSCRIBED);
                let verdict = match uri {
                    Some(uri) => self.verdict(SUBSCRIBE, &Target::Resource(&uri)),
                    // Nobody can decide on what has no name.
                    None => deny(DenyReason::Policy),
                };
                matches!(verdict, Verdict::Deny { .. }).then_some(verdict)
            });
        let is_list = resources.kind() == Kind::Array;
        denied.unwrap_or(if is_list {
            verdict
        } else {
            deny(DenyReason::Policy)
        })
    }

    /// The one decision: calls and lists both come here.
    fn verdict(&self, method: &str, target: &Target<'_>) -> Verdict {
        let method = method::action(method);
        if !method::is_decided(method) {
            return deny(DenyReason::Method);
        }
        match &self.engine.rules {
            Rules::Authenticated => Verdict::Permit(vec![AUTHENTICATED.to_owned()]),
            Rules::Policies {
                authorizer, slices, ..
            } => {
                let slice = slices
                    .get(method)
                    .expect("slices() makes one for every decided method");
                match self.question(method, target) {
                    Ok((request, entities)) => judge(slice.ask(authorizer, &request, &entities)),
                    Err(error) => policy_error(Vec::new(), vec![error]),
                }
            }
        }
    }

    fn question(&self, method: &str, target: &Target<'_>) -> Result<(Request, Entities), String> {
        if self.ambiguous {
            return Err(
                "an issuer with `|` in it cannot be told from another issuer and subject"
                    .to_owned(),
            );
        }
        let server = &self.engine.server;
        let resource = entity::target(target, &server.uid());
        let resource_uid: EntityUid = resource.as_ref().unwrap_or(server).uid();
        let request = Request::new(
            self.principal.uid(),
            entity::action(method),
            resource_uid,
            Context::empty(),
            None,
        )
        .map_err(|error| error.to_string())?;
        let all = [self.principal.clone(), server.clone()]
            .into_iter()
            .chain(resource);
        let entities = Entities::from_entities(all, None).map_err(|error| error.to_string())?;
        Ok((request, entities))
    }
}

fn deny(reason: DenyReason) -> Verdict {
    Verdict::Deny {
        reason,
        policies: Vec::new(),
        errors: Vec::new(),
    }
}

/// Cedar skips a policy that fails, and a skipped `forbid` permits: so one error denies (cedar-1).
fn judge(answer: Answer) -> Verdict {
    if !answer.errors.is_empty() {
        let (policies, errors) = answer.errors.into_iter().unzip();
        return policy_error(policies, errors);
    }
    if answer.forbids.is_empty() && !answer.permits.is_empty() {
        return Verdict::Permit(answer.permits);
    }
    Verdict::Deny {
        reason: DenyReason::Policy,
        policies: answer.forbids,
        errors: Vec::new(),
    }
}

fn policy_error(policies: Vec<String>, errors: Vec<String>) -> Verdict {
    Verdict::Deny {
        reason: DenyReason::PolicyError,
        policies,
        errors,
    }
}

/// The policy name in records of what rides on a session's identity.
const SESSION: &str = "session";
/// The method, and action, that each resource of a subscription is decided as.
const SUBSCRIBE: &str = "resources/subscribe";
/// Resources of one subscription.
const MAX_SUBSCRIBED: usize = 256;
/// The policy name in records where `allow = "authenticated"` decided.
const AUTHENTICATED: &str = "authenticated";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        auth::Kind,
        authz::fixture::{ISSUER, alice, build, call, engine, file, tool},
    };

    /// Permitted by these policies.
    #[track_caller]
    fn permitted(engine: &Engine, identity: &Identity, call: Call, by: &[&str]) {
        match engine.decide(identity, call) {
            Ok(permit) => assert_eq!(permit.policies()[..], *by),
            Err(denied) => panic!("denied: {denied:?}"),
        }
    }

    /// Denied for this reason because of these policies.
    #[track_caller]
    fn denied(engine: &Engine, identity: &Identity, call: Call, reason: DenyReason, by: &[&str]) {
        match engine.decide(identity, call) {
            Ok(permit) => panic!("permitted: {permit:?}"),
            Err(denied) => assert_eq!(
                (denied.reason, denied.policies),
                (reason, by.iter().map(|id| (*id).to_owned()).collect())
            ),
        }
    }

    #[test]
    fn what_no_policy_permits_is_denied_and_what_one_permits_is_not() {
        let engine = engine(
            r#"@id("echo") permit (principal, action == Action::"tools/call", resource == Tool::"echo");"#,
        );
        permitted(&engine, &alice(), tool("echo"), &["github:echo"]);
        denied(&engine, &alice(), tool("Echo"), DenyReason::Policy, &[]);
        denied(
            &engine,
            &alice(),
            call("tools/list", "{}"),
            DenyReason::Policy,
            &[],
        );
        denied(
            &engine,
            &alice(),
            call("prompts/get", r#"{"name":"echo"}"#),
            DenyReason::Policy,
            &[],
        );
    }

    /// What a subscription is told of a task is what tasks/get would say.
    #[test]
    fn who_may_not_ask_how_a_task_stands_does_not_hear_it_either() {
        let engine = engine(
            r#"
            @id("listen") permit (principal, action == Action::"subscriptions/listen", resource);
            @id("get") permit (principal, action == Action::"tasks/get", resource) when { principal.groups.contains("a") };
            "#,
        );
        let listen = |wanted: &str| {
            let params = format!(r#"{{"notifications":{wanted}}}"#);
            call("subscriptions/listen", &params)
        };
        let member = alice().with(Kind::User, None, &["a"], &[]);
        permitted(&engine, &alice(), listen("{}"), &["github:listen"]);
        let tasks = r#"{"taskIds":["t"]}"#;
        permitted(&engine, &member, listen(tasks), &["github:listen"]);
        denied(&engine, &alice(), listen(tasks), DenyReason::Policy, &[]);
    }

    #[test]
    fn a_forbid_wins_and_is_named() {
        let engine = engine(
            r#"
            permit (principal, action, resource);
            @id("no rm") forbid (principal, action, resource == Tool::"rm");
            @id("no r") forbid (principal, action == Action::"tools/call", resource) when { resource.name like "r*" };
            "#,
        );
        permitted(&engine, &alice(), tool("ls"), &["github:policy0"]);
        denied(
            &engine,
            &alice(),
            tool("rm"),
            DenyReason::Policy,
            &["github:no r", "github:no rm"],
        );
    }

    #[test]
    fn a_policy_may_ask_who_the_caller_is() {
        let engine = engine(
            r#"
            @id("ops")    permit (principal is User, action, resource) when { principal.groups.contains("ops") };
            @id("scoped") permit (principal, action == Action::"resources/read", resource)
                          when { principal.scopes.contains("read") && resource.uri like "file:///srv/*" };
            @id("bob")    permit (principal == User::"https://sso.example.com|bob", action, resource);
            @id("ci")     permit (principal is Client, action, resource)
                          when { principal has client && principal.client == "ci" && principal.issuer == "https://sso.example.com" };
            "#,
        );
        let ops = alice().with(Kind::User, None, &["dev", "ops"], &[]);
        permitted(&engine, &ops, tool("x"), &["github:ops"]);
        // The group is a user's; a program that names it in its token is no user.
        let program = alice().with(Kind::Client, None, &["ops"], &[]);
        denied(&engine, &program, tool("x"), DenyReason::Policy, &[]);

        let reader = alice().with(Kind::User, None, &[], &["read"]);
        let read = |uri: &str| call("resources/read", &format!(r#"{{"uri":"{uri}"}}"#));
        permitted(&engine, &reader, read("file:///srv/a"), &["github:scoped"]);
        denied(
            &engine,
            &reader,
            read("file:///etc/shadow"),
            DenyReason::Policy,
            &[],
        );
        denied(
            &engine,
            &alice(),
            read("file:///srv/a"),
            DenyReason::Policy,
            &[],
        );

        permitted(
            &engine,
            &Identity::example(ISSUER, "bob"),
            tool("x"),
            &["github:bob"],
        );
        denied(
            &engine,
            &Identity::example("https://other.example.com", "bob"),
            tool("x"),
            DenyReason::Policy,
            &[],
        );

        let client = |name| alice().with(Kind::Client, name, &[], &[]);
        permitted(&engine, &client(Some("ci")), tool("x"), &["github:ci"]);
        denied(
            &engine,
            &client(Some("ci2")),
            tool("x"),
            DenyReason::Policy,
            &[],
        );
        denied(&engine, &client(None), tool("x"), DenyReason::Policy, &[]);
    }

    #[test]
    fn a_policy_may_speak_of_one_server_and_not_of_another() {
        let text = r#"permit (principal, action, resource in Server::"github");"#;
        permitted(&engine(text), &alice(), tool("x"), &["github:policy0"]);
        permitted(
            &engine(text),
            &alice(),
            call("initialize", "{}"),
            &["github:policy0"],
        );
        denied(
            &engine(&text.replace("github", "gitlab")),
            &alice(),
            tool("x"),
            DenyReason::Policy,
            &[],
        );
    }

    /// tok-79: a program and a person of the same name are two principals.
    #[test]
    fn a_client_credentials_token_is_a_client_and_not_a_user() {
        let engine = engine(
            r#"permit (principal == Client::"https://sso.example.com|alice", action, resource);"#,
        );
        permitted(
            &engine,
            &alice().with(Kind::Client, None, &[], &[]),
            tool("x"),
            &["github:policy0"],
        );
        denied(&engine, &alice(), tool("x"), DenyReason::Policy, &[]);
    }

    /// cedar-1, cedar-3: the erring `forbid` would permit by Cedar's own rule.
    #[test]
    fn a_policy_that_cannot_be_evaluated_denies() {
        let engine = engine(
            r#"
            @id("all") permit (principal, action, resource);
            @id("sum") forbid (principal, action == Action::"tools/call", resource) when { 9223372036854775807 + 1 > 0 };
            "#,
        );
        permitted(&engine, &alice(), call("tools/list", "{}"), &["github:all"]);
        let denied = engine.decide(&alice(), tool("x")).unwrap_err();
        assert_eq!(
            (denied.reason, denied.policies),
            (DenyReason::PolicyError, vec!["github:sum".to_owned()])
        );
        assert!(denied.errors[0].contains("overflow"), "{:?}", denied.errors);
        assert!(!engine.may_call(&alice(), "tools/call", &Target::Tool("x")));
    }

    /// cedar-4, cedar-5, inc-24: text that would be an entity or an address if it were read as Cedar's JSON or Cedar's language.
    #[test]
    fn a_name_that_looks_like_cedar_is_only_a_name() {
        let engine = engine(
            r#"
            @id("admin") permit (principal == User::"https://sso.example.com|admin", action, resource);
            @id("free")  permit (principal, action, resource == Tool::"free");
            "#,
        );
        for name in [
            r#"{"__entity":{"type":"User","id":"https://sso.example.com|admin"}}"#,
            r#"{"__extn":{"fn":"ip","arg":"10.0.0.1"}}"#,
            r#"free" || true || "#,
            "free\0",
            r#"Tool::"free""#,
        ] {
            denied(
                &engine,
                &Identity::example(ISSUER, name),
                tool("x"),
                DenyReason::Policy,
                &[],
            );
            denied(&engine, &alice(), tool(name), DenyReason::Policy, &[]);
            permitted(
                &engine,
                &Identity::example(ISSUER, name),
                tool("free"),
                &["github:free"],
            );
        }
        permitted(
            &engine,
            &Identity::example(ISSUER, "admin"),
            tool("x"),
            &["github:admin"],
        );
    }

    /// cedar-6, cedar-7: what Cedar's own JSON reader chokes on or misreads never gets there.
    #[test]
    fn arguments_do_not_reach_the_policies_and_a_doubled_name_reaches_nobody() {
        let engine = engine(r#"permit (principal, action, resource == Tool::"echo");"#);
        for argument in [
            "1.5",
            "null",
            "9223372036854775808",
            r#"{"__entity":1}"#,
            "1e999",
        ] {
            let params = format!(r#"{{"name":"echo","arguments":{{"x":{argument}}}}}"#);
            permitted(
                &engine,
                &alice(),
                call("tools/call", &params),
                &["github:policy0"],
            );
        }
        let doubled = br#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","n\u0061me":"rm"}}"#;
        assert!(Call::read(bytes::Bytes::from_static(doubled), false).is_err());
    }

    #[test]
    fn an_issuer_that_holds_the_separator_is_nobody() {
        let engine = engine(r#"permit (principal == User::"https://a|b|c", action, resource);"#);
        permitted(
            &engine,
            &Identity::example("https://a", "b|c"),
            tool("x"),
            &["github:policy0"],
        );
        denied(
            &engine,
            &Identity::example("https://a|b", "c"),
            tool("x"),
            DenyReason::PolicyError,
            &[],
        );
    }

    /// cedar-9: what looks the same need not be the same.
    #[test]
    fn names_are_compared_as_they_are_spelled_without_normalization() {
        let engine = engine("permit (principal, action, resource == Tool::\"caf\u{e9}\");");
        permitted(&engine, &alice(), tool("caf\u{e9}"), &["github:policy0"]);
        denied(
            &engine,
            &alice(),
            tool("cafe\u{301}"),
            DenyReason::Policy,
            &[],
        );
    }

    #[test]
    fn a_method_that_nobody_may_call_is_denied_even_where_everything_is_permitted() {
        let all = engine("permit (principal, action, resource);");
        let server = ServerName::parse("github").unwrap();
        let authenticated = Engine::build(&Authz::Authenticated, &server).unwrap();
        for method in [
            "sampling/createMessage",
            "Tools/call",
            "tools/call ",
            "server/discovery",
        ] {
            denied(
                &all,
                &alice(),
                call(method, r#"{"name":"x"}"#),
                DenyReason::Method,
                &[],
            );
            denied(
                &authenticated,
                &alice(),
                call(method, r#"{"name":"x"}"#),
                DenyReason::Method,
                &[],
            );
        }
        for method in method::DECIDED {
            let params = r#"{"name":"x","uri":"file:///x"}"#;
            permitted(&all, &alice(), call(method, params), &["github:policy0"]);
            permitted(
                &authenticated,
                &alice(),
                call(method, params),
                &["authenticated"],
            );
        }
    }

    #[test]
    fn what_is_about_the_conversation_alone_rides_on_the_session() {
        let engine = engine("forbid (principal, action, resource);");
        for body in [
            r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
        ] {
            let call = Call::read(bytes::Bytes::from(body), false).unwrap();
            permitted(&engine, &alice(), call, &["session"]);
        }
        let unknown = br#"{"jsonrpc":"2.0","method":"notifications/anything"}"#;
        let call = Call::read(bytes::Bytes::from_static(unknown), false).unwrap();
        denied(&engine, &alice(), call, DenyReason::Method, &[]);
    }

    /// inc-6: what was decided on is what is sent.
    #[test]
    fn the_permit_holds_the_very_bytes_that_were_decided_on() {
        let body = br#"{ "jsonrpc":"2.0","method":"tools/call", "id":1.0e0 }"#;
        assert!(Call::read(bytes::Bytes::from_static(body), false).is_err());
        let body = br#"{ "jsonrpc":"2.0","id":1, "method":"tools\/call","params":{"name":"\u0065cho","arguments":{"n":1e400}} }"#;
        let call = Call::read(bytes::Bytes::from_static(body), false).unwrap();
        let permit = engine(r#"permit (principal, action, resource == Tool::"echo");"#)
            .decide(&alice(), call)
            .unwrap();
        assert_eq!(permit.into_call().message().bytes().as_ref(), body);
    }

    #[test]
    fn policies_of_several_files_count_together_and_are_named_after_their_files() {
        let engine = build(vec![
            file(
                "/etc/thv/policies/base.cedar",
                r#"permit (principal, action, resource);"#,
            ),
            file(
                "/etc/thv/policies/locks.cedar",
                r#"@id("rm") forbid (principal, action, resource == Tool::"rm");"#,
            ),
        ])
        .unwrap();
        permitted(&engine, &alice(), tool("ls"), &["base:policy0"]);
        denied(
            &engine,
            &alice(),
            tool("rm"),
            DenyReason::Policy,
            &["locks:rm"],
        );
    }
}

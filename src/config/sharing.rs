//! Whom one child serves, what is started ahead, and what a server is told of its caller.
//!
//! Each of these rests on the others, on where the server runs and on how callers
//! prove who they are; what cannot go together is refused here, once. Used by
//! `fragment` and `resolve`.

use std::collections::BTreeMap;

use super::{
    Auth, EnvValue, Sandbox, Scope, Transport, UpstreamAuthorization,
    load::Loader,
    table::{At, Said, Table, Value},
    value,
};

/// The keys as one file has them.
#[derive(Debug, Default)]
pub(super) struct SharingFragment {
    scope: Said<Scope>,
    warm: Said<u64>,
    pass_identity: Said<bool>,
}

/// What they come to.
pub(super) struct Sharing {
    pub(super) scope: Scope,
    pub(super) warm: usize,
    pub(super) pass_identity: bool,
}

/// What surrounds them.
pub(super) struct Beside<'a> {
    pub(super) transport: Option<&'a Transport>,
    pub(super) auth: Option<&'a Auth>,
    pub(super) sandbox: Option<&'a Sandbox>,
    pub(super) env: &'a BTreeMap<String, Said<EnvValue>>,
    pub(super) sessions: usize,
}

impl SharingFragment {
    /// Takes its keys over those of the lower layers.
    pub(super) fn read(top: &mut Table<'_>, lower: Self) -> Self {
        Self {
            scope: top.over("scope", lower.scope, |value| {
                value.parsed(value::scope_of_child)
            }),
            warm: top.over("warm", lower.warm, Value::count),
            pass_identity: top.over("pass-identity", lower.pass_identity, Value::truth),
        }
    }

    /// `None` when something was reported.
    pub(super) fn resolve(self, loader: &mut Loader, beside: &Beside<'_>) -> Option<Sharing> {
        let Self {
            scope,
            warm,
            pass_identity,
        } = self;
        let is = match &scope {
            Said::Given(scope) => scope.value,
            _ => Scope::default(),
        };
        let passes = matches!(&pass_identity, Said::Given(passes) if passes.value);
        let mut wrong = Vec::new();
        if let (Said::Given(scope), Some(Transport::Remote(upstream))) = (&scope, beside.transport)
            && is == Scope::Server
            && matches!(upstream.authorization, UpstreamAuthorization::Exchange(_))
        {
            wrong.push(scope.place.problem(
                "tokens are exchanged for each caller, and \"server\" is one conversation for all: whose would it show?",
                "write `scope = \"user\"`, or set `authorization = { credential = \"NAME\" }`",
            ));
        }
        if let Said::Given(warm) = &warm
            && let Some((message, help)) = not_ahead(warm, is, passes, beside)
        {
            wrong.push(warm.place.problem(message, help));
        }
        if let (Said::Given(passes), true) = (&pass_identity, passes)
            && let Some((message, help)) = not_told(is, beside)
        {
            wrong.push(passes.place.problem(message, help));
        }
        if passes && is != Scope::Server {
            for name in IDENTITY_VARIABLES {
                let place = beside.env.get(name).and_then(Said::place);
                wrong.extend(place.map(|place| {
                    place.problem(
                        "`pass-identity` sets this variable",
                        "rename it, or set `pass-identity = false`",
                    )
                }));
            }
        }
        let is_good = wrong.is_empty();
        for problem in wrong {
            loader.report(problem);
        }
        is_good.then(|| Sharing {
            scope: is,
            warm: warm
                .given()
                .and_then(|n| usize::try_from(n).ok())
                .unwrap_or(0),
            pass_identity: passes,
        })
    }
}

/// Why no children can be started ahead, and what to do.
fn not_ahead(
    warm: &At<u64>,
    scope: Scope,
    passes: bool,
    beside: &Beside<'_>,
) -> Option<(&'static str, &'static str)> {
    if matches!(beside.transport, Some(Transport::Remote(_))) {
        Some(("nothing is started for a server at a `url`", "remove it"))
    } else if scope == Scope::Server {
        Some((
            "under `scope = \"server\"` there is one child, and none to be had ahead",
            "remove it",
        ))
    } else if passes {
        Some((
            "a child that is started ahead cannot be told by `pass-identity` whose it will be",
            "remove one of the two",
        ))
    } else if beside.sandbox.is_some_and(|sandbox| sandbox.state) {
        Some((
            "a child that is started ahead has no user yet whose `sandbox.state` it could be shown",
            "remove one of the two",
        ))
    } else if warm.value > beside.sessions as u64 {
        Some((
            "children that are started ahead count as sessions, and `limits.sessions` is less",
            "lower it, or raise `limits.sessions`",
        ))
    } else {
        None
    }
}

/// Why a server cannot be told who calls, and what to do.
fn not_told(scope: Scope, beside: &Beside<'_>) -> Option<(&'static str, &'static str)> {
    if matches!(beside.auth, Some(Auth::None)) {
        Some((
            "with `mode = \"none\"` nobody has proved who they are",
            "remove it",
        ))
    } else if matches!(beside.transport, Some(Transport::Remote(_))) && scope != Scope::Server {
        Some((
            "a server at a `url` has no environment of ours",
            "remove it; `token-exchange` lets such a server know its caller, `scope = \"server\"` tells it in each request",
        ))
    } else {
        None
    }
}

/// The variables by which a child of one user is told whose it is: issuer, subject, and what kind of subject.
pub const IDENTITY_VARIABLES: [&str; 3] = ["THV_ISSUER", "THV_SUBJECT", "THV_SUBJECT_KIND"];

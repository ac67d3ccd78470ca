//! What is known of widespread identity providers: a hint is worth an afternoon.

use crate::config::{Issuer, ServerName, TokenKind};

/// What will probably go wrong with the tokens of this issuer, and the line that mends it.
pub(super) fn hint(issuer: &Issuer, server: &ServerName) -> Option<(&'static str, String)> {
    let says = |suffix: &str| host(&issuer.issuer).is_some_and(|host| is_below(host, suffix));
    if says("accounts.google.com") {
        return (issuer.token == TokenKind::Access && issuer.introspection.is_none()).then(|| {
            (
                "Google's access tokens are opaque: callers show ID tokens",
                "set `token = \"id\"`, the client's id as `audience`, and `required-claims = { hd = \"…\" }`"
                    .to_owned(),
            )
        });
    }
    if says("okta.com") && !issuer.issuer.contains("/oauth2/") {
        return Some((
            "access tokens of an Okta organisation's own server are for Okta alone",
            "name a custom authorization server, as `https://ORG.okta.com/oauth2/default`"
                .to_owned(),
        ));
    }
    if says("token.actions.githubusercontent.com")
        && issuer.subjects.is_empty()
        && issuer.required_claims.is_empty()
    {
        return Some((
            "every repository of GitHub has this issuer, and may ask for any audience",
            "set `subjects = [\"repo:ORGANISATION/…\"]`".to_owned(),
        ));
    }
    let provider = untyped(&issuer.issuer)?;
    (issuer.token == TokenKind::Access && !issuer.legacy_typ).then(|| {
        (
            "access tokens of this provider mostly say `typ: JWT` or nothing, and would be refused",
            format!(
                "for {provider} set `typ = \"legacy\"`; `thv token explain {server}` shows what a token says"
            ),
        )
    })
}

/// The providers whose access tokens are not typed as RFC 9068 wants it.
pub(super) fn untyped(issuer: &str) -> Option<&'static str> {
    let host = host(issuer)?;
    [
        ("login.microsoftonline.com", "Microsoft Entra ID"),
        ("sts.windows.net", "Microsoft Entra ID"),
        ("okta.com", "Okta"),
        ("auth0.com", "Auth0"),
        ("token.actions.githubusercontent.com", "GitHub Actions"),
        ("kubernetes.default.svc", "Kubernetes"),
        ("kubernetes.default.svc.cluster.local", "Kubernetes"),
    ]
    .into_iter()
    .find(|(suffix, _)| is_below(host, suffix))
    .map(|(_, name)| name)
    .or_else(|| issuer.contains("/realms/").then_some("Keycloak"))
}

fn host(issuer: &str) -> Option<&str> {
    let after = issuer.split_once("://")?.1;
    after.split(['/', ':']).next()
}

fn is_below(host: &str, suffix: &str) -> bool {
    host.strip_suffix(suffix)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

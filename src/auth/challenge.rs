//! `WWW-Authenticate` (RFC 6750 §3, RFC 9728 §5.1), on one line.

use http::HeaderValue;

use super::{AuthError, Fault, metadata_url};
use crate::config::{Auth, Dpop, Issuer, Resource};

/// The challenge that goes with an answer; none where the token is not at fault.
/// Nothing of the request is repeated in it.
pub fn challenge(error: &AuthError, auth: &Auth, resource: &Resource) -> Option<HeaderValue> {
    let none = Vec::new();
    let issuers = match auth {
        Auth::Oidc(issuers) => issuers,
        Auth::Peer | Auth::None => &none,
    };
    let mut scopes = common_scopes(issuers);
    let mut schemes = schemes(issuers);
    let parameters = match error {
        AuthError::Missing => "",
        AuthError::Malformed(_) => {
            "error=\"invalid_request\", error_description=\"The Authorization header is malformed\""
        }
        AuthError::Rejected(fault) => {
            if *fault == Fault::Unbound {
                schemes = vec![DPOP];
            }
            "error=\"invalid_token\", error_description=\"The token is not valid here\""
        }
        AuthError::Scope(needed) => {
            scopes.clone_from(needed);
            "error=\"insufficient_scope\", error_description=\"The token was issued for less\""
        }
        AuthError::Proof => {
            schemes = vec![DPOP];
            "error=\"invalid_dpop_proof\", error_description=\"The proof is not valid here\""
        }
        AuthError::Nonce(_) => {
            schemes = vec![DPOP];
            "error=\"use_dpop_nonce\", error_description=\"The proof needs a nonce\""
        }
        AuthError::IssuerDown { .. } => return None,
    };
    let mut parameters = vec![parameters.to_owned()];
    parameters.push(format!("resource_metadata=\"{}\"", metadata_url(resource)));
    if !scopes.is_empty() {
        parameters.push(format!("scope=\"{}\"", scopes.join(" ")));
    }
    let challenges: Vec<_> = schemes
        .iter()
        .map(|scheme| {
            let mut all: Vec<_> = parameters
                .iter()
                .filter(|parameter| !parameter.is_empty())
                .map(String::as_str)
                .collect();
            if *scheme == DPOP {
                all.push(ALGORITHMS);
            }
            format!("{scheme} {}", all.join(", "))
        })
        .collect();
    HeaderValue::from_str(&challenges.join(", ")).ok()
}

fn schemes(issuers: &[Issuer]) -> Vec<&'static str> {
    let any = |wanted: fn(Dpop) -> bool| issuers.iter().any(|issuer| wanted(issuer.dpop));
    let mut schemes = Vec::new();
    if issuers.is_empty() || any(|dpop| dpop != Dpop::Required) {
        schemes.push(BEARER);
    }
    if any(|dpop| dpop != Dpop::Off) {
        schemes.push(DPOP);
    }
    schemes
}

/// What every issuer's tokens need, whose ever they will be; never a catalogue of all
/// that could be asked for.
pub(super) fn common_scopes(issuers: &[Issuer]) -> Vec<String> {
    let mut scopes: Vec<String> = Vec::new();
    for scope in issuers.iter().flat_map(|issuer| &issuer.scopes) {
        if !scopes.contains(scope) {
            scopes.push(scope.clone());
        }
    }
    scopes
}

const BEARER: &str = "Bearer";
const DPOP: &str = "DPoP";
/// What a proof may be signed with (RFC 9449 §5.1).
const ALGORITHMS: &str = "algs=\"ES256 ES384 EdDSA Ed25519 PS256 PS384 PS512 RS256 RS384 RS512\"";

#[cfg(test)]
mod tests {
    use super::{
        super::{
            AuthError, Fault,
            testing::{self, bearer, bench, token},
        },
        challenge,
    };
    use crate::config::{Auth, Dpop, Issuer, KeySource, Resource};

    fn resource() -> Resource {
        Resource {
            url: "https://MCP.example.com/github".to_owned(),
            origin: "https://mcp.example.com".to_owned(),
            authority: "mcp.example.com".to_owned(),
            path: "/github".to_owned(),
        }
    }

    fn text(error: &AuthError) -> Option<String> {
        with(|_| {}, error)
    }

    /// Where the issuer was changed in this way.
    fn with(change: impl FnOnce(&mut Issuer), error: &AuthError) -> Option<String> {
        let mut issuer = testing::issuer(KeySource::Discovery);
        change(&mut issuer);
        challenge(error, &Auth::Oidc(vec![issuer]), &resource())
            .map(|value| value.to_str().unwrap().to_owned())
    }

    /// mcp-A6: scopes are named before anybody has to guess, and all at once.
    #[test]
    fn the_scopes_that_every_call_needs_are_in_each_challenge() {
        let scoped = |issuer: &mut Issuer| issuer.scopes = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(
            with(scoped, &AuthError::Missing).unwrap(),
            format!("Bearer {WHERE}, scope=\"a b\"")
        );
        let needed = AuthError::Scope(vec!["a".to_owned(), "c".to_owned()]);
        let text = with(scoped, &needed).unwrap();
        assert!(
            text.starts_with("Bearer error=\"insufficient_scope\", error_description=\""),
            "{text}"
        );
        assert!(text.ends_with(&format!("{WHERE}, scope=\"a c\"")), "{text}");
    }

    /// RFC 9449 §7.1, §9: on one line with the other scheme, where both are spoken.
    #[test]
    fn proofs_are_asked_for_where_they_are_taken() {
        let accepted = |issuer: &mut Issuer| issuer.dpop = Dpop::Accepted;
        let required = |issuer: &mut Issuer| issuer.dpop = Dpop::Required;
        let both = with(accepted, &AuthError::Missing).unwrap();
        assert!(
            both.starts_with(&format!("Bearer {WHERE}, DPoP {WHERE}, algs=\"ES256 ")),
            "{both}"
        );
        let one = with(required, &AuthError::Missing).unwrap();
        assert!(one.starts_with(&format!("DPoP {WHERE}, algs=\"")), "{one}");
        for (error, code) in [
            (AuthError::Proof, "invalid_dpop_proof"),
            (AuthError::Nonce("x".to_owned()), "use_dpop_nonce"),
            (AuthError::Rejected(Fault::Unbound), "invalid_token"),
        ] {
            let text = with(accepted, &error).unwrap();
            assert!(
                text.starts_with(&format!("DPoP error=\"{code}\", ")),
                "{text}"
            );
            assert!(!text.contains("Bearer"), "{text}");
        }
    }

    const WHERE: &str =
        "resource_metadata=\"https://mcp.example.com/.well-known/oauth-protected-resource/github\"";

    /// tok-1, tok-3, mcp-A2: RFC 6750 §3.1: no error where no token was shown.
    #[test]
    fn a_challenge_says_where_tokens_come_from_and_what_was_wrong() {
        assert_eq!(
            text(&AuthError::Missing).unwrap(),
            format!("Bearer {WHERE}")
        );
        for (error, code) in [
            (AuthError::Malformed(Fault::Form), "invalid_request"),
            (AuthError::Rejected(Fault::Expired), "invalid_token"),
        ] {
            let text = text(&error).unwrap();
            assert!(
                text.starts_with(&format!("Bearer error=\"{code}\", error_description=\"")),
                "{text}"
            );
            assert!(text.ends_with(WHERE), "{text}");
            // Two at most of an outer and an inner quote each, and nothing that breaks the line.
            assert_eq!(text.matches('"').count(), 6);
        }
        assert_eq!(
            text(&AuthError::IssuerDown {
                issuer: "x".to_owned(),
                retry_after: 5
            }),
            None
        );
    }

    /// Whoever probes learns nothing: each fault is answered alike, and nothing of the token comes back.
    #[test]
    fn every_refused_token_gets_the_same_words() {
        let bench = bench();
        let faults = [
            token().claim("aud", "https://other.example").sign(),
            token().claim("sub", "quote\"me\r\n").sign(),
            token().header("kid", "quote\"me").sign(),
            token().claim("exp", 1).sign(),
            "opaque".to_owned(),
        ];
        let answers =
            faults.map(|token| text(&bench.ask(&bearer(&token), None).unwrap_err()).unwrap());
        assert!(
            answers
                .iter()
                .all(|answer| *answer == answers[0] && !answer.contains("quote")),
            "{answers:?}"
        );
    }
}

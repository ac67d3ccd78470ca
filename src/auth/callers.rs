//! Whom of an issuer's callers a server lets in: what its `[[auth.issuer]]` says
//! about clients, subjects and other claims.

use std::borrow::Cow;

use super::{
    AuthError, Fault,
    jwt::{Claims, MAX_ID},
};
use crate::{
    config::{ClaimValue, Issuer, RequiredClaim, TokenKind},
    json::{Kind, Value},
};

/// The client that the token was issued to, if it is one of those that may come.
pub(super) fn client<'a>(
    claims: &'a Claims,
    issuer: &Issuer,
) -> Result<Option<Cow<'a, str>>, AuthError> {
    let names = if issuer.legacy_typ || issuer.token == TokenKind::Id {
        &CLIENT_CLAIMS
    } else {
        &CLIENT_CLAIMS[..2]
    };
    let mut found = None;
    for name in names {
        if let Some(client) = claims.text(name, MAX_ID)? {
            if !issuer.clients.is_empty() && !is_one_of(&client, &issuer.clients) {
                return Err(AuthError::Rejected(Fault::Client));
            }
            found.get_or_insert(client);
        }
    }
    if found.is_none() && !issuer.clients.is_empty() {
        return Err(AuthError::Rejected(Fault::Client));
    }
    // An ID token is for the client that asked for it: one of ours, unless `clients` says
    // whose else may be passed on (OpenID Connect Core §3.1.3.7).
    let of_another = |client: &Cow<'_, str>| !is_one_of(client, &issuer.audience);
    if issuer.token == TokenKind::Id
        && issuer.clients.is_empty()
        && found.as_ref().is_some_and(of_another)
    {
        return Err(AuthError::Rejected(Fault::Client));
    }
    Ok(found)
}

fn is_one_of(name: &str, list: &[String]) -> bool {
    list.iter().any(|one| one == name)
}

/// The subject against `subjects`, `revoked` and `issued-after` (tok-89).
pub(super) fn subject(subject: &str, claims: &Claims, issuer: &Issuer) -> Result<(), AuthError> {
    if !issuer.subjects.is_empty()
        && !issuer
            .subjects
            .iter()
            .any(|pattern| pattern.matches(subject))
    {
        return Err(AuthError::Rejected(Fault::Subject));
    }
    let named = issuer
        .revoked
        .iter()
        .any(|pattern| pattern.matches(subject));
    let old = match issuer.issued_after {
        // A token that does not say when it was issued may be of any age.
        Some(after) => claims.seconds("iat")?.is_none_or(|issued| issued < after),
        None => false,
    };
    if named || old {
        Err(AuthError::Rejected(Fault::Revoked))
    } else {
        Ok(())
    }
}

/// Every claim of `required-claims`, with one of its values.
pub(super) fn required(claims: &Claims, issuer: &Issuer) -> Result<(), AuthError> {
    issuer
        .required_claims
        .iter()
        .try_for_each(|required| one_required(claims, required))
}

pub(super) fn one_required(claims: &Claims, required: &RequiredClaim) -> Result<(), AuthError> {
    let good = claims.get(&required.name).is_some_and(|claim| {
        let mut accepted = required.accepted.iter();
        match claim.kind() {
            // A list holds the value among others.
            Kind::Array => accepted.any(|value| claim.elements().any(|one| is(one, value))),
            _ => accepted.any(|value| is(claim, value)),
        }
    });
    // Anybody can say that they have an address (OpenID Connect Core §5.7).
    let vouched = required.name != "email"
        || claims
            .get("email_verified")
            .is_some_and(|verified| is(verified, &ClaimValue::Truth(true)));
    if good && vouched {
        Ok(())
    } else {
        Err(AuthError::Rejected(Fault::RequiredClaim))
    }
}

/// Equal in type and value: the text `"1"` is not the number 1.
fn is(claim: Value<'_>, value: &ClaimValue) -> bool {
    match value {
        ClaimValue::Text(text) => claim.as_str().as_deref() == Some(text),
        ClaimValue::Truth(truth) => claim.as_bool() == Some(*truth),
        ClaimValue::Number(number) => {
            claim.as_number().and_then(|text| text.parse().ok()) == Some(*number)
        }
    }
}

/// The service account of `kubernetes`, by `sub` and by the cluster's own claim.
pub(super) fn service_account(
    subject: &str,
    claims: &Claims,
    issuer: &Issuer,
) -> Result<(), AuthError> {
    let Some(account) = &issuer.kubernetes else {
        return Ok(());
    };
    let claim = claims.get("kubernetes.io");
    let said = |path: &[&str]| {
        path.iter()
            .try_fold(claim?, |value, name| value.get(name))
            .and_then(Value::as_str)
    };
    let good = subject
        == format!(
            "system:serviceaccount:{}:{}",
            account.namespace, account.name
        )
        && said(&["namespace"]).as_deref() == Some(&account.namespace)
        && said(&["serviceaccount", "name"]).as_deref() == Some(&account.name);
    if good {
        Ok(())
    } else {
        Err(AuthError::Rejected(Fault::Subject))
    }
}

/// What names the client: RFC 9068, OpenID Connect Core, then what Okta and Entra ID v1 say instead.
pub(super) const CLIENT_CLAIMS: [&str; 4] = ["client_id", "azp", "cid", "appid"];

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::{
        Fault,
        testing::{AUDIENCE, NOW, bench_with, token},
    };
    use crate::config::{ClaimValue, Issuer, Pattern, RequiredClaim, ServiceAccount, TokenKind};

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|text| Pattern::new(text)).collect()
    }

    #[test]
    fn only_listed_subjects_come_in() {
        let listed = bench_with(|issuer| issuer.subjects = patterns(&["alice", "repo:acme/*"]));
        listed.accepts(&token().sign());
        listed.accepts(&token().claim("sub", "repo:acme/x:ref:main").sign());
        for subject in ["bob", "Alice", "alice ", "repo:acme", "xrepo:acme/x"] {
            listed.refuses(&token().claim("sub", subject).sign(), Fault::Subject);
        }
    }

    /// tok-89: who is revoked by configuration stays out with a token that is otherwise good.
    #[test]
    fn revoked_subjects_and_old_tokens_stay_out() {
        let revoked = bench_with(|issuer| issuer.revoked = patterns(&["bob", "temp-*"]));
        revoked.accepts(&token().sign());
        for subject in ["bob", "temp-7"] {
            revoked.refuses(&token().claim("sub", subject).sign(), Fault::Revoked);
        }
        let recent = bench_with(|issuer| {
            issuer.issued_after = Some(NOW - 10);
            issuer.legacy_typ = true;
        });
        recent.accepts(&token().claim("iat", NOW - 10).sign());
        recent.refuses(&token().claim("iat", NOW - 11).sign(), Fault::Revoked);
        // One that does not say when it was issued may be of any age.
        recent.refuses(&token().without("iat").sign(), Fault::Revoked);
    }

    fn requiring(name: &'static str, accepted: Vec<ClaimValue>) -> impl FnOnce(&mut Issuer) {
        move |issuer| {
            issuer.required_claims = vec![RequiredClaim {
                name: name.to_owned(),
                accepted,
            }];
        }
    }

    #[test]
    fn a_required_claim_has_one_of_its_values_in_type_and_in_value() {
        let text = |text: &str| ClaimValue::Text(text.to_owned());
        let cases: [(_, Vec<Value>, Vec<Value>); 3] = [
            (
                vec![text("acme"), text("1")],
                vec![json!("acme"), json!("1"), json!(["x", "acme"])],
                vec![
                    json!("Acme"),
                    json!(1),
                    json!(null),
                    json!({}),
                    json!(["x"]),
                    json!([]),
                ],
            ),
            (
                vec![ClaimValue::Truth(true)],
                vec![json!(true)],
                vec![json!("true"), json!(1), json!(false)],
            ),
            (
                vec![ClaimValue::Number(1)],
                vec![json!(1), json!([2, 1])],
                vec![json!("1"), json!(1.5), json!(true), json!(10)],
            ),
        ];
        for (accepted, good, bad) in cases {
            let bench = bench_with(requiring("tid", accepted));
            bench.refuses(&token().sign(), Fault::RequiredClaim);
            for value in good {
                bench.accepts(&token().claim("tid", value).sign());
            }
            for value in bad {
                bench.refuses(&token().claim("tid", value).sign(), Fault::RequiredClaim);
            }
        }
    }

    /// tok-81: an address counts once the provider has verified it, and never as identity.
    #[test]
    fn a_required_address_must_be_verified() {
        let address = ClaimValue::Text("alice@example.com".to_owned());
        let bench = bench_with(requiring("email", vec![address]));
        let shown = |verified: Value| {
            token()
                .claim("email", "alice@example.com")
                .claim("email_verified", verified)
                .sign()
        };
        assert_eq!(bench.accepts(&shown(json!(true))).subject(), "alice");
        for verified in [json!(false), json!("true"), json!(1), json!(null)] {
            bench.refuses(&shown(verified), Fault::RequiredClaim);
        }
        bench.refuses(
            &token().claim("email", "alice@example.com").sign(),
            Fault::RequiredClaim,
        );
        bench.refuses(
            &token()
                .claim("email", "alice@example.com@evil.example")
                .claim("email_verified", true)
                .sign(),
            Fault::RequiredClaim,
        );
    }

    fn service_token(namespace: &str, account: &str) -> super::super::testing::Token {
        token()
            .without("typ")
            .without("client_id")
            .without("scope")
            .without("groups")
            .claim(
                "sub",
                format!("system:serviceaccount:{namespace}:{account}"),
            )
            .claim(
                "kubernetes.io",
                json!({
                    "namespace": namespace,
                    "serviceaccount": {"name": account, "uid": "1"},
                    "pod": {"name": "p", "uid": "2"},
                }),
            )
    }

    #[test]
    fn a_service_account_is_one_name_in_one_namespace() {
        let bench = bench_with(|issuer| {
            issuer.legacy_typ = true;
            issuer.kubernetes = Some(ServiceAccount {
                namespace: "tools".to_owned(),
                name: "mcp-client".to_owned(),
            });
        });
        let identity = bench.accepts(&service_token("tools", "mcp-client").sign());
        assert_eq!(identity.subject(), "system:serviceaccount:tools:mcp-client");
        for (namespace, account) in [
            ("tools", "other"),
            ("other", "mcp-client"),
            ("tools:mcp-client", "x"),
        ] {
            bench.refuses(&service_token(namespace, account).sign(), Fault::Subject);
        }
        // Both must say so: the claim alone, or `sub` alone, is not enough.
        let good = service_token("tools", "mcp-client");
        bench.refuses(
            &good.clone().without("kubernetes.io").sign(),
            Fault::Subject,
        );
        bench.refuses(&good.clone().claim("sub", "alice").sign(), Fault::Subject);
        bench.refuses(
            &good
                .claim("kubernetes.io", json!({"namespace": "tools"}))
                .sign(),
            Fault::Subject,
        );
    }

    /// tok-76, tok-90: where ID tokens are configured, they and nothing else are taken.
    #[test]
    fn an_id_token_is_accepted_where_configured() {
        let bench = bench_with(|issuer| {
            issuer.token = TokenKind::Id;
            issuer.audience = vec!["client-1".to_owned()];
        });
        let id_token = token()
            .header("typ", "JWT")
            .without("client_id")
            .claim("aud", "client-1")
            .claim("azp", "client-1")
            .claim("nonce", "n")
            .claim("at_hash", "h");
        assert_eq!(
            bench.accepts(&id_token.clone().sign()).client(),
            Some("client-1")
        );
        bench.refuses(
            &id_token.clone().header("typ", "at+jwt").sign(),
            Fault::Type,
        );
        bench.refuses(
            &id_token.clone().claim("aud", "client-2").sign(),
            Fault::Audience,
        );
        // Made for another client, and only lent to this audience (OpenID Connect Core §3.1.3.7).
        bench.refuses(
            &id_token
                .claim("aud", json!(["client-1", AUDIENCE]))
                .claim("azp", "client-2")
                .sign(),
            Fault::Client,
        );
    }
}

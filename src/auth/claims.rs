//! The claims of an access token against the issuer's configuration
//! (RFC 9068 §4, RFC 7519 §4.1, OpenID Connect Core §2 for what marks an ID token).

use std::{borrow::Cow, sync::Arc};

use super::{
    AuthError, Fault, Identity, Kind as Principal, PrincipalKey, Texts, callers,
    jwt::{Claims, Header, MAX_ID},
};
use crate::{
    config::{Dpop, Issuer, TokenKind},
    json::{Kind, Value},
};

/// The issuer that a token names, if it names one.
pub(super) fn issuer(claims: &Claims) -> Result<Cow<'_, str>, AuthError> {
    claims
        .get("iss")
        .and_then(Value::as_str)
        .ok_or(AuthError::Rejected(Fault::Issuer))
}

/// What the claims say, once they have passed; worth nothing until somebody who may
/// say so has vouched for them: a signature, or the issuer itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Claimed {
    pub(super) identity: Arc<Identity>,
    /// SHA-256 thumbprint of the key that the token is bound to (RFC 9449 §6.1).
    pub(super) bound_to: Option<String>,
}

/// Checks a JWT's header and claims, all that does not need the issuer's keys.
pub(super) fn check(
    header: &Header,
    claims: &Claims,
    issuer: &Issuer,
    now: u64,
) -> Result<Claimed, AuthError> {
    key_urls(header, issuer)?;
    kind_of_token(header, claims, issuer)?;
    check_claims(claims, Source::Token, issuer, now)
}

/// Where claims were found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Source {
    Token,
    /// The issuer's answer to a question (RFC 7662 §2.2), in which `sub` may be missing:
    /// then the client acts for itself.
    Answer,
}

/// Checks claims, wherever they came from, and says whose they are.
pub(super) fn check_claims(
    claims: &Claims,
    source: Source,
    issuer: &Issuer,
    now: u64,
) -> Result<Claimed, AuthError> {
    audience(claims, issuer)?;
    let expires_at = times(claims, issuer, now)?;
    let bound_to = binding(claims, issuer)?;
    claims.text("jti", MAX_ID)?;
    let mut subject = claims.text("sub", MAX_ID)?;
    if subject.is_none() && source == Source::Answer {
        subject = claims.text("client_id", MAX_ID)?;
    }
    let subject = subject.ok_or(AuthError::Rejected(Fault::Claim))?;
    if subject.is_empty() || subject.chars().any(char::is_control) {
        return Err(AuthError::Rejected(Fault::Claim));
    }
    let client = callers::client(claims, issuer)?;
    callers::subject(&subject, claims, issuer)?;
    callers::required(claims, issuer)?;
    callers::service_account(&subject, claims, issuer)?;
    // A program acting for itself, never the user of that name (RFC 9700 §4.15): whichever
    // claim says so, read here or not.
    let names_a_client =
        |name: &&str| claims.get(name).and_then(Value::as_str).as_ref() == Some(&subject);
    let kind = if callers::CLIENT_CLAIMS.iter().any(names_a_client) {
        Principal::Client
    } else {
        Principal::User
    };
    let principal_key = PrincipalKey::of(kind, &issuer.issuer, &subject);
    let identity = Identity {
        issuer: issuer.issuer.clone(),
        subject: subject.into_owned(),
        kind,
        client: client.map(Cow::into_owned),
        scopes: scopes(claims, issuer)?,
        groups: groups(claims)?,
        expires_at,
        principal_key,
    };
    Ok(Claimed {
        identity: Arc::new(identity),
        bound_to,
    })
}

/// No word about where the key is, unless it is this issuer's habit (tok-46).
pub(super) fn key_urls(header: &Header, issuer: &Issuer) -> Result<(), AuthError> {
    if header.points_elsewhere && !issuer.ignores_key_urls {
        return Err(AuthError::Rejected(Fault::Form));
    }
    Ok(())
}

/// A token of the configured kind, and no other kind of JWT (RFC 8725 §3.11).
pub(super) fn kind_of_token(
    header: &Header,
    claims: &Claims,
    issuer: &Issuer,
) -> Result<(), AuthError> {
    let untyped = matches!(header.typ.as_deref(), Some("jwt") | None);
    let right = match issuer.token {
        TokenKind::Id => untyped,
        TokenKind::Access => {
            let of_an_id_token = ["nonce", "at_hash", "c_hash"]
                .iter()
                .any(|marker| claims.get(marker).is_some());
            let named = header.typ.as_deref() == Some("at+jwt") || (untyped && issuer.legacy_typ);
            named && !of_an_id_token
        }
    };
    if right {
        declared_kind(claims, issuer.token, &["typ", "token_use"])
    } else {
        Err(AuthError::Rejected(Fault::Type))
    }
}

/// What claims say about the kind of their token, where the provider says it there: Keycloak
/// in `typ`, Cognito and Hydra in `token_use`. A security event (RFC 8417 §2.2), such as a
/// logout, is no token to be shown, even where its header does not say so.
pub(super) fn declared_kind(
    claims: &Claims,
    wanted: TokenKind,
    names: &[&str],
) -> Result<(), AuthError> {
    let other: &[&str] = match wanted {
        TokenKind::Access => &["id", "id_token"],
        TokenKind::Id => &["access", "access_token", "bearer", "dpop"],
    };
    let says_other = |name: &&str| {
        let said = claims.get(name).and_then(Value::as_str);
        said.is_some_and(|said| {
            let said = said.to_ascii_lowercase();
            other.contains(&&*said) || NEVER_SHOWN.contains(&&*said)
        })
    };
    if claims.get("events").is_some() || names.iter().any(says_other) {
        Err(AuthError::Rejected(Fault::Type))
    } else {
        Ok(())
    }
}

pub(super) fn audience(claims: &Claims, issuer: &Issuer) -> Result<(), AuthError> {
    let wrong = AuthError::Rejected(Fault::Audience);
    let Some(audience) = claims.get("aud") else {
        return Err(wrong);
    };
    let ours = |named: &str| {
        let named = bare(named);
        issuer.audience.iter().any(|ours| bare(ours) == named)
    };
    let good = match audience.kind() {
        Kind::String => audience.as_str().is_some_and(|named| ours(&named)),
        Kind::Array => {
            let named: Option<Vec<_>> = audience.elements().map(Value::as_str).collect();
            named.is_some_and(|named| {
                // All of them under `single-audience`: the same one may come twice (tok-77).
                named.iter().any(|named| ours(named))
                    && (!issuer.single_audience || named.iter().all(|named| ours(named)))
            })
        }
        _ => false,
    };
    if good { Ok(()) } else { Err(wrong) }
}

/// With or without one trailing slash; everything else byte for byte (tok-75).
fn bare(url: &str) -> &str {
    url.strip_suffix('/').unwrap_or(url)
}

/// The key that the token is bound to, if it is and may be.
pub(super) fn binding(claims: &Claims, issuer: &Issuer) -> Result<Option<String>, AuthError> {
    let Some(confirmation) = claims.get("cnf") else {
        return match issuer.dpop {
            Dpop::Required => Err(AuthError::Rejected(Fault::Unbound)),
            Dpop::Off | Dpop::Accepted => Ok(None),
        };
    };
    // Bound in a way that nobody checks here: whoever shows it may have stolen it (tok-113).
    if issuer.dpop == Dpop::Off || confirmation.member_count() != 1 {
        return Err(AuthError::Rejected(Fault::Claim));
    }
    let thumbprint = confirmation
        .get("jkt")
        .and_then(Value::as_str)
        .filter(|thumbprint| thumbprint.len() == THUMBPRINT)
        .ok_or(AuthError::Rejected(Fault::Claim))?;
    Ok(Some(thumbprint.into_owned()))
}

/// `exp`, `nbf` and `iat`; returns `exp`.
pub(super) fn times(claims: &Claims, issuer: &Issuer, now: u64) -> Result<u64, AuthError> {
    let leeway = issuer.leeway.as_secs();
    let expires = claims
        .seconds("exp")?
        .ok_or(AuthError::Rejected(Fault::Claim))?;
    let from = claims.seconds("nbf")?;
    let issued = claims.seconds("iat")?;
    if issued.is_none() && !issuer.legacy_typ {
        return Err(AuthError::Rejected(Fault::Claim));
    }
    if now >= expires.saturating_add(leeway) {
        return Err(AuthError::Rejected(Fault::Expired));
    }
    if from.max(issued).is_some_and(|from| from > now + leeway) {
        return Err(AuthError::Rejected(Fault::NotYetValid));
    }
    // Also catches milliseconds taken for seconds (tok-66).
    let start = issued.or(from).unwrap_or(now);
    if from.max(issued).is_some_and(|from| from > expires)
        || expires - start.min(expires) > issuer.max_lifetime.as_secs()
    {
        return Err(AuthError::Rejected(Fault::Claim));
    }
    Ok(expires)
}

fn scopes(claims: &Claims, issuer: &Issuer) -> Result<Texts, AuthError> {
    let wrong = || AuthError::Rejected(Fault::Claim);
    let list = match (
        claims.get("scope"),
        claims.get("scp").filter(|_| issuer.legacy_typ),
    ) {
        (None, None) => return Ok(Texts::default()),
        (Some(scope), _) => Listed::Words(scope.as_str().ok_or_else(wrong)?),
        // Okta says a list, Entra ID a string.
        (None, Some(scopes)) if scopes.kind() == Kind::Array => {
            Listed::Elements(strings(scopes).ok_or_else(wrong)?)
        }
        (None, Some(scope)) => Listed::Words(scope.as_str().ok_or_else(wrong)?),
    };
    let list = list.texts();
    // RFC 6749 §3.3.
    let legal = |scope: &&str| {
        !scope.is_empty()
            && scope
                .bytes()
                .all(|byte| matches!(byte, 0x21 | 0x23..=0x5B | 0x5D..=0x7E))
    };
    // Last, for it costs the square of the number, and nobody has vouched for the claims yet.
    let distinct = |list: &[&str]| {
        list.iter()
            .enumerate()
            .all(|(at, scope)| !list[..at].contains(scope))
    };
    if list.len() <= MAX_SCOPES && list.iter().all(legal) && distinct(&list) {
        Ok(with_implied(list, &issuer.implied_scopes)[..].into())
    } else {
        Err(wrong())
    }
}

/// The scopes with those that they stand for, and those that these stand for (tok-85).
fn with_implied<'a>(mut list: Vec<&'a str>, table: &'a [(String, Vec<String>)]) -> Vec<&'a str> {
    let mut next = 0;
    while let Some(scope) = list.get(next) {
        let implied = table
            .iter()
            .filter(|(name, _)| name == scope)
            .flat_map(|(_, implied)| implied);
        let new: Vec<_> = implied
            .map(String::as_str)
            .filter(|implied| !list.contains(implied))
            .collect();
        list.extend(new);
        next += 1;
    }
    list
}

/// Scopes as a claim lists them.
enum Listed<'a> {
    /// With one space between two of them.
    Words(Cow<'a, str>),
    Elements(Vec<Cow<'a, str>>),
}

impl Listed<'_> {
    fn texts(&self) -> Vec<&str> {
        match self {
            Self::Words(text) if text.is_empty() => Vec::new(),
            Self::Words(text) => text.split(' ').collect(),
            Self::Elements(list) => list.iter().map(|text| &**text).collect(),
        }
    }
}

fn groups(claims: &Claims) -> Result<Texts, AuthError> {
    let Some(groups) = claims.get("groups") else {
        return Ok(Texts::default());
    };
    let list = if groups.kind() == Kind::Array {
        strings(groups)
    } else {
        None
    };
    list.filter(|list| list.len() <= MAX_GROUPS)
        .map(|list| list[..].into())
        .ok_or(AuthError::Rejected(Fault::Claim))
}

fn strings(list: Value<'_>) -> Option<Vec<Cow<'_, str>>> {
    list.elements().map(Value::as_str).collect()
}

/// Kinds of token that are for the provider alone, or tell something.
const NEVER_SHOWN: [&str; 5] = [
    "refresh",
    "refresh_token",
    "offline",
    "logout",
    "logout_token",
];
/// Characters of a SHA-256 in base64url.
const THUMBPRINT: usize = 43;
const MAX_SCOPES: usize = 256;
const MAX_GROUPS: usize = 1024;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::{
        super::{
            Fault, Kind,
            testing::{AUDIENCE, HEADER, ISSUER, LEEWAY, NOW, bench, bench_with, spelled, token},
        },
        MAX_GROUPS,
    };

    const DAY: u64 = 24 * 60 * 60;

    /// tok-49, tok-50, tok-51: an access token says that it is one.
    #[test]
    fn the_type_is_that_of_an_access_token() {
        let strict = bench();
        for typ in [
            "at+jwt",
            "AT+JWT",
            "application/at+jwt",
            "Application/AT+jwt",
        ] {
            strict.accepts(&token().header("typ", typ).sign());
        }
        for typ in [
            "JWT",
            "dpop+jwt",
            "logout+jwt",
            "secevent+jwt",
            "oauth-authz-req+jwt",
            "entity-statement+jwt",
            "oauth-id-jag+jwt",
            "at+jwt ",
            "application/application/at+jwt",
            "text/at+jwt",
        ] {
            strict.refuses(&token().header("typ", typ).sign(), Fault::Type);
        }
        strict.refuses(&token().without("typ").sign(), Fault::Type);
        for typ in [json!(null), json!(1), json!(["at+jwt"]), json!("")] {
            strict.refuses(&token().header("typ", typ).sign(), Fault::Type);
        }
    }

    /// tok-49, tok-90: some providers say `JWT` or nothing; of those, an ID token is still none.
    #[test]
    fn a_legacy_type_is_accepted_where_configured_and_an_id_token_never() {
        let legacy = bench_with(|issuer| issuer.legacy_typ = true);
        legacy.accepts(&token().without("typ").sign());
        for typ in ["JWT", "jwt", "application/jwt", "at+jwt"] {
            legacy.accepts(&token().header("typ", typ).sign());
        }
        for typ in ["logout+jwt", "dpop+jwt", "oauth-id-jag+jwt"] {
            legacy.refuses(&token().header("typ", typ).sign(), Fault::Type);
        }
        for marker in ["nonce", "at_hash", "c_hash"] {
            legacy.refuses(
                &token().header("typ", "JWT").claim(marker, "x").sign(),
                Fault::Type,
            );
            bench().refuses(&token().claim(marker, "x").sign(), Fault::Type);
        }
    }

    /// tok-60: half a minute for clocks that differ, and not a second more.
    #[test]
    fn an_expired_token_is_refused() {
        let bench = bench();
        let old = |exp: u64| token().claim("iat", NOW - 300).claim("exp", exp).sign();
        bench.accepts(&old(NOW - LEEWAY + 1));
        bench.refuses(&old(NOW - LEEWAY), Fault::Expired);
        bench.refuses(&old(NOW - LEEWAY - 1), Fault::Expired);
        let exact = bench_with(|issuer| issuer.leeway = Duration::ZERO);
        exact.accepts(&old(NOW + 1));
        exact.refuses(&old(NOW), Fault::Expired);
    }

    /// tok-60: also a token that has been accepted before.
    #[test]
    fn a_token_that_was_good_expires() {
        let bench = bench();
        let token = token().sign();
        bench.accepts(&token);
        bench.set_time(NOW + 300 + LEEWAY - 1);
        bench.accepts(&token);
        bench.set_time(NOW + 300 + LEEWAY);
        bench.refuses(&token, Fault::Expired);
    }

    /// tok-70: a clock that is set back revives nothing.
    #[test]
    fn time_does_not_run_backwards() {
        let bench = bench();
        let old = token().sign();
        bench.set_time(NOW + 3600);
        bench.refuses(&old, Fault::Expired);
        bench.set_time(NOW);
        bench.refuses(&old, Fault::Expired);
    }

    /// tok-61, tok-62, tok-64, inc-21: a time is a number, and `exp` must be there.
    #[test]
    fn a_time_of_another_type_is_refused_and_not_skipped() {
        let bench = bench();
        bench.refuses(&token().without("exp").sign(), Fault::Claim);
        for value in [
            json!("1800000300"),
            json!(true),
            json!(null),
            json!([1_800_000_300]),
            json!({}),
            json!(-1),
            json!(-1.5),
        ] {
            for name in ["exp", "nbf", "iat"] {
                bench.refuses(&token().claim(name, value.clone()).sign(), Fault::Claim);
            }
        }
        bench.refuses(&token().claim("exp", 0).sign(), Fault::Expired);
    }

    /// tok-63, tok-65, tok-66: fractions are cut, and nothing is too large to be read.
    #[test]
    fn numbers_of_every_size_are_read_as_what_they_are() {
        let bench = bench_with(|issuer| issuer.leeway = Duration::ZERO);
        let with = |exp: &str| {
            let claims = token()
                .claims_text()
                .replace(&format!("\"exp\":{}", NOW + 300), &format!("\"exp\":{exp}"));
            assert!(claims.contains(exp));
            spelled(HEADER, claims)
        };
        bench.accepts(&with(&format!("{}.9", NOW + 300)));
        bench.accepts(&with(&format!("{}.0e0", NOW + 1)));
        bench.refuses(&with(&format!("{NOW}.9")), Fault::Expired);
        bench.accepts(&with(&(NOW + DAY).to_string()));
        for exp in [
            &*(NOW + DAY + 1).to_string(),
            "10000000000",
            "1e10",
            "1e99",
            "9223372036854775808",
            "18446744073709551615",
            "18446744073709551616",
            "1E400",
            &*format!("{}000", NOW + 300),
        ] {
            bench.refuses(&with(exp), Fault::Claim);
        }
        // Far away is no fault of its own.
        bench.set_time(9_999_999_900);
        bench.accepts(
            &token()
                .claim("iat", 9_999_999_900_u64)
                .claim("exp", 10_000_000_000_u64)
                .sign(),
        );
    }

    /// tok-67, tok-68: not before its time, and not from the future.
    #[test]
    fn a_token_is_not_good_before_its_time() {
        let bench = bench();
        bench.accepts(&token().claim("nbf", NOW + LEEWAY).sign());
        bench.accepts(&token().claim("nbf", 0).sign());
        bench.refuses(
            &token().claim("nbf", NOW + LEEWAY + 1).sign(),
            Fault::NotYetValid,
        );
        bench.accepts(&token().claim("iat", NOW + LEEWAY).sign());
        bench.refuses(
            &token().claim("iat", NOW + LEEWAY + 1).sign(),
            Fault::NotYetValid,
        );
        bench.refuses(
            &token().claim("nbf", NOW + 20).claim("exp", NOW + 10).sign(),
            Fault::Claim,
        );
        bench.refuses(
            &token().claim("iat", NOW + 20).claim("exp", NOW + 10).sign(),
            Fault::Claim,
        );
        bench.refuses(&token().without("iat").sign(), Fault::Claim);
        bench_with(|issuer| issuer.legacy_typ = true).accepts(&token().without("iat").sign());
    }

    /// tok-71, tok-72: an issuer is compared byte for byte.
    #[test]
    fn another_issuer_is_refused_however_alike() {
        let bench = bench();
        for issuer in [
            json!(null),
            json!(7),
            json!([ISSUER]),
            json!([ISSUER, "https://evil.example"]),
            json!(""),
            json!("https://evil.example"),
            json!(format!("{ISSUER}/")),
            json!(ISSUER.to_uppercase()),
            json!("https://sso.example.com:443/realms/corp"),
            json!("https://sso.example.com/realms/%63orp"),
            json!("http://sso.example.com/realms/corp"),
            json!(format!(" {ISSUER}")),
        ] {
            bench.refuses(&token().claim("iss", issuer).sign(), Fault::Issuer);
        }
        bench.refuses(&token().without("iss").sign(), Fault::Issuer);
    }

    /// tok-73, tok-74, tok-77: the audience is a string, or strings, one of which is ours.
    #[test]
    fn the_audience_names_this_server() {
        let bench = bench();
        bench.accepts(&token().claim("aud", json!([AUDIENCE])).sign());
        bench.accepts(
            &token()
                .claim("aud", json!(["https://other.example", AUDIENCE]))
                .sign(),
        );
        bench.refuses(&token().without("aud").sign(), Fault::Audience);
        for audience in [
            json!(null),
            json!({}),
            json!({"aud": AUDIENCE}),
            json!(1),
            json!([]),
            json!(""),
            json!([1, AUDIENCE]),
            json!([[AUDIENCE]]),
            json!([AUDIENCE, null]),
            json!("https://other.example"),
            json!(["https://other.example"]),
        ] {
            bench.refuses(&token().claim("aud", audience).sign(), Fault::Audience);
        }
    }

    /// tok-75, tok-76: but for one slash at the end, byte for byte.
    #[test]
    fn an_audience_that_resembles_ours_is_another() {
        let bench = bench();
        bench.accepts(&token().claim("aud", format!("{AUDIENCE}/")).sign());
        for audience in [
            "https://mcp.example.com",
            "https://mcp.example.com/",
            "https://mcp.example.com/git",
            "https://mcp.example.com/github/x",
            "https://mcp.example.com/github//",
            "https://mcp.example.com/github#a",
            "https://mcp.example.com/github?a",
            "https://mcp.example.com/GitHub",
            "HTTPS://mcp.example.com/github",
            "https://mcp.example.com:443/github",
            "mcp.example.com/github",
            "https://mcp.example.com.evil.example/github",
            "editor",
            "*",
        ] {
            bench.refuses(&token().claim("aud", audience).sign(), Fault::Audience);
        }
        let listed = bench_with(|issuer| {
            issuer.audience = vec![
                "https://mcp.example.com/github/".to_owned(),
                "api".to_owned(),
            ]
        });
        for audience in [AUDIENCE, "https://mcp.example.com/github/", "api"] {
            listed.accepts(&token().claim("aud", audience).sign());
        }
    }

    /// tok-78: a subject can be written into a record.
    #[test]
    fn a_subject_is_a_short_plain_text() {
        let bench = bench();
        bench.refuses(&token().without("sub").sign(), Fault::Claim);
        for subject in [
            json!(""),
            json!(7),
            json!(null),
            json!(["alice"]),
            json!("a".repeat(256)),
            json!("a\nb"),
            json!("a\u{0}"),
            json!("a\u{7f}"),
            json!("a\u{85}"),
            json!("a\tb"),
        ] {
            bench.refuses(&token().claim("sub", subject).sign(), Fault::Claim);
        }
        assert_eq!(
            bench
                .accepts(&token().claim("sub", "a".repeat(255)).sign())
                .subject()
                .len(),
            255
        );
        assert_eq!(
            bench
                .accepts(&token().claim("sub", "Ålice|x").sign())
                .subject(),
            "Ålice|x"
        );
    }

    /// tok-79: a program whose id is a user's name is not that user.
    #[test]
    fn a_client_acting_for_itself_is_no_user() {
        let bench = bench();
        let user = bench.accepts(&token().sign());
        assert_eq!(user.kind(), Kind::User);
        for name in ["client_id", "azp", "cid", "appid"] {
            let client = bench.accepts(&token().claim(name, "alice").sign());
            assert_eq!(client.kind(), Kind::Client, "{name}");
            assert_ne!(
                client.principal_key().to_string(),
                user.principal_key().to_string()
            );
            assert!(!client.owns_session_of(&user));
        }
    }

    /// tok-81: an address is no name, and none is taken for one.
    #[test]
    fn only_the_subject_identifies() {
        let bench = bench();
        let claims = [
            ("email", "root@example.com"),
            ("preferred_username", "root"),
            ("upn", "root@good@evil"),
            ("name", "root"),
        ];
        let token = claims
            .into_iter()
            .fold(token(), |token, (name, value)| token.claim(name, value));
        assert_eq!(bench.accepts(&token.clone().sign()).subject(), "alice");
        bench.refuses(&token.without("sub").sign(), Fault::Claim);
    }

    /// tok-82, tok-83, tok-84: scopes are words, as they were written.
    #[test]
    fn scopes_are_distinct_words() {
        let bench = bench();
        let scopes = |value: &str| {
            bench
                .accepts(&token().claim("scope", value).sign())
                .scopes()
                .to_vec()
        };
        assert_eq!(
            scopes("tools:read Tools:Read"),
            ["tools:read", "Tools:Read"]
        );
        assert!(scopes("").is_empty());
        assert!(
            bench
                .accepts(&token().without("scope").sign())
                .scopes()
                .is_empty()
        );
        for value in [
            json!(["a"]),
            json!(7),
            json!(null),
            json!("a a"),
            json!("a  b"),
            json!(" a"),
            json!("a "),
            json!("a\tb"),
            json!("a\"b"),
            json!("a\\b"),
            json!("ä"),
        ] {
            bench.refuses(&token().claim("scope", value).sign(), Fault::Claim);
        }
    }

    /// tok-83: `scp` is read where the provider is an old one.
    #[test]
    fn scp_is_read_of_legacy_issuers_alone() {
        let legacy = bench_with(|issuer| issuer.legacy_typ = true);
        let token = || token().without("scope");
        assert_eq!(
            legacy
                .accepts(&token().claim("scp", json!(["a", "b"])).sign())
                .scopes(),
            ["a", "b"]
        );
        assert_eq!(
            legacy.accepts(&token().claim("scp", "a b").sign()).scopes(),
            ["a", "b"]
        );
        legacy.refuses(&token().claim("scp", json!(["a", 1])).sign(), Fault::Claim);
        legacy.refuses(&token().claim("scp", json!(["a b"])).sign(), Fault::Claim);
        assert!(
            bench()
                .accepts(&token().claim("scp", "a b").sign())
                .scopes()
                .is_empty()
        );
    }

    /// tok-86: groups are texts, and not too many.
    #[test]
    fn groups_are_texts_and_capped() {
        let bench = bench();
        assert_eq!(bench.accepts(&token().sign()).groups(), ["staff"]);
        assert!(
            bench
                .accepts(&token().without("groups").sign())
                .groups()
                .is_empty()
        );
        let text = "{\"__entity\":{\"type\":\"User\",\"id\":\"admin\"}}";
        assert_eq!(
            bench
                .accepts(&token().claim("groups", json!([text])).sign())
                .groups(),
            [text]
        );
        bench.accepts(&token().claim("groups", vec!["g"; MAX_GROUPS]).sign());
        bench.refuses(
            &token().claim("groups", vec!["g"; MAX_GROUPS + 1]).sign(),
            Fault::Claim,
        );
        for groups in [
            json!([{"__entity": {"type": "User", "id": "admin"}}]),
            json!([1]),
            json!([["a"]]),
            json!({"a": 1}),
            json!(null),
        ] {
            bench.refuses(&token().claim("groups", groups).sign(), Fault::Claim);
        }
    }

    /// tok-87: on whose behalf somebody acts gives no rights.
    #[test]
    fn an_actor_changes_nothing() {
        let bench = bench();
        let plain = bench.accepts(&token().sign());
        let acting = token()
            .claim("act", json!({"sub": "root"}))
            .claim("may_act", json!({"sub": "root"}));
        assert_eq!(bench.accepts(&acting.sign()), plain);
    }

    /// tok-88: a bearer token may be shown again; its id is short.
    #[test]
    fn a_token_may_be_used_again_and_its_id_is_short() {
        let bench = bench();
        let same = token().sign();
        assert_eq!(bench.accepts(&same), bench.accepts(&same));
        bench.accepts(&token().claim("jti", "j".repeat(255)).sign());
        bench.refuses(&token().claim("jti", "j".repeat(256)).sign(), Fault::Claim);
        bench.refuses(&token().claim("jti", 7).sign(), Fault::Claim);
    }

    /// tok-113: bound to a key that nobody shows here.
    #[test]
    fn a_sender_constrained_token_is_refused() {
        for bound in [
            json!({"jkt": "abc"}),
            json!({"x5t#S256": "abc"}),
            json!({}),
            json!(null),
        ] {
            bench().refuses(&token().claim("cnf", bound).sign(), Fault::Claim);
        }
    }

    #[test]
    fn a_list_of_clients_is_really_compared() {
        let listed =
            bench_with(|issuer| issuer.clients = vec!["editor".to_owned(), "agent".to_owned()]);
        assert_eq!(listed.accepts(&token().sign()).client(), Some("editor"));
        listed.accepts(&token().without("client_id").claim("azp", "agent").sign());
        listed.refuses(&token().claim("client_id", "other").sign(), Fault::Client);
        listed.refuses(&token().claim("azp", "other").sign(), Fault::Client);
        listed.refuses(&token().without("client_id").sign(), Fault::Client);
        listed.refuses(
            &token().claim("client_id", json!(["editor"])).sign(),
            Fault::Claim,
        );
        bench().accepts(&token().without("client_id").sign());
    }

    /// tok-77: where configured, a token for us is for nobody else.
    #[test]
    fn a_single_audience_is_the_only_one() {
        let strict = bench_with(|issuer| {
            issuer.single_audience = true;
            issuer.audience = vec![AUDIENCE.to_owned(), "second".to_owned()];
        });
        strict.accepts(&token().sign());
        strict.accepts(&token().claim("aud", json!([AUDIENCE, "second"])).sign());
        strict.refuses(
            &token()
                .claim("aud", json!([AUDIENCE, "https://other.example"]))
                .sign(),
            Fault::Audience,
        );
    }

    /// tok-66: how long a token may live is the issuer's own matter within `max-lifetime`.
    #[test]
    fn a_token_that_lives_too_long_is_refused() {
        let short = bench_with(|issuer| issuer.max_lifetime = Duration::from_secs(600));
        short.accepts(&token().claim("exp", NOW + 600).sign());
        short.refuses(&token().claim("exp", NOW + 601).sign(), Fault::Claim);
        let long = bench_with(|issuer| issuer.max_lifetime = Duration::from_secs(2 * DAY));
        long.accepts(&token().claim("exp", NOW + 2 * DAY).sign());
    }

    /// tok-85: a broad scope stands for narrow ones, through any number of steps and in no circle.
    #[test]
    fn a_scope_brings_those_that_it_implies() {
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let bench = bench_with(|issuer| {
            issuer.implied_scopes = vec![
                ("admin".to_owned(), list(&["write", "audit"])),
                ("write".to_owned(), list(&["read", "admin"])),
            ];
        });
        let scopes = |scope: &str| {
            let identity = bench.accepts(&token().claim("scope", scope).sign());
            identity.scopes().to_vec()
        };
        assert_eq!(scopes("admin"), ["admin", "write", "audit", "read"]);
        assert_eq!(scopes("read"), ["read"]);
        assert_eq!(scopes("Admin"), ["Admin"]);
    }

    /// tok-26: claims are read before the signature, so nobody may make that dear.
    #[test]
    fn a_crowd_of_scopes_costs_no_more_than_one_long_one() {
        let bench = bench();
        let cost = |scope: String| {
            let token = token().claim("scope", scope).sign();
            let once = || {
                let start = std::time::Instant::now();
                bench.refuses(&token, Fault::Claim);
                start.elapsed()
            };
            (0..7).map(|_| once()).min().unwrap()
        };
        let letters = || ('a'..='z').chain('A'..='Z');
        let pairs: Vec<_> = letters()
            .flat_map(|one| letters().map(move |two| format!("{one}{two}")))
            .flat_map(|pair| [pair.clone(), format!("{pair}1")])
            .take(3000)
            .collect();
        let (crowd, long) = (cost(pairs.join(" ")), cost("\u{e9}".repeat(5000)));
        assert!(crowd < 20 * long, "{crowd:?} against {long:?}");
    }

    /// tok-51, tok-76: what a provider says in the claims about the kind of a token counts, too.
    #[test]
    fn a_token_that_calls_itself_something_else_is_refused() {
        let legacy = bench_with(|issuer| issuer.legacy_typ = true);
        let id = bench_with(|issuer| issuer.token = crate::config::TokenKind::Id);
        let of = |name: &str, value: serde_json::Value| {
            token()
                .header("typ", "JWT")
                .claim("client_id", AUDIENCE)
                .claim(name, value)
                .sign()
        };
        for other in ["Refresh", "Offline", "Logout", "refresh_token"] {
            for name in ["typ", "token_use"] {
                legacy.refuses(&of(name, json!(other)), Fault::Type);
                id.refuses(&of(name, json!(other)), Fault::Type);
            }
        }
        for (name, value) in [("typ", "ID"), ("token_use", "id")] {
            legacy.refuses(&of(name, json!(value)), Fault::Type);
            id.accepts(&of(name, json!(value)));
        }
        for (name, value) in [("typ", "Bearer"), ("token_use", "access")] {
            legacy.accepts(&of(name, json!(value)));
            id.refuses(&of(name, json!(value)), Fault::Type);
        }
        // A security event, such as a logout (OpenID Connect Back-Channel Logout §2.4).
        let events = json!({"http://schemas.openid.net/event/backchannel-logout": {}});
        legacy.refuses(&of("events", events.clone()), Fault::Type);
        id.refuses(&of("events", events), Fault::Type);
        // What nobody knows says nothing.
        legacy.accepts(&of("typ", json!("JWT")));
        legacy.accepts(&of("token_use", json!(1)));
    }
}

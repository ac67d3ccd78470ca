//! Why a token is or is not accepted, check by check: for `thv token explain`.
//!
//! Asks the functions that decide, one by one, and the authenticator for the
//! verdict, so that an explanation cannot differ from what a server would do.
//! Shows claims of the token to whoever already holds it; never its signature.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use http::{HeaderMap, HeaderValue, Method, header};
use serde::Serialize;

use super::{
    AuthError, Authenticator, Fault, Identity, IntrospectionError, Notice, Presented, Surroundings,
    bearer::{self, Scheme, Shown},
    callers, claims, jwt,
    jwt::Unverified,
};
use crate::{
    config::{Auth, Dpop, Issuer, Pattern, Resource, TokenKind},
    json::Value,
    systemd::Credentials,
    time::Clock,
};

/// What was looked at, and what came of it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Check {
    /// What was looked at, such as `aud`.
    pub what: &'static str,
    pub passed: bool,
    /// What the token says, and what it was compared with.
    pub compared: String,
}

/// All checks of one token that could be made, and the verdict.
#[derive(Debug)]
pub struct Explanation {
    pub checks: Vec<Check>,
    pub verdict: Result<Arc<Identity>, AuthError>,
}

impl Explanation {
    /// Whether the token is refused for nothing but a slash at the end of its issuer.
    pub fn is_near_miss(&self) -> bool {
        self.checks
            .iter()
            .any(|check| !check.passed && check.compared.ends_with(NEAR_MISS))
    }
}

/// Explains what a server with this `[auth]` makes of `token`.
pub async fn explain(
    auth: &Auth,
    resource: &Resource,
    credentials: &Credentials,
    clock: Clock,
    token: &str,
) -> Result<Explanation, IntrospectionError> {
    let trouble: Arc<Mutex<Option<String>>> = Arc::default();
    let heard = trouble.clone();
    let notices: super::Notices = Arc::new(move |notice| {
        if let Notice::Unavailable { error, .. } = notice {
            *heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
    });
    let around = Surroundings {
        resource,
        clock: clock.clone(),
        notices: &notices,
        credentials,
    };
    let authenticator = Authenticator::build(auth, around)?;
    let mut headers = HeaderMap::new();
    // Where every token must be bound, no other scheme gets as far as the token.
    let (scheme, name) = if wants_proof(auth) {
        (Scheme::Dpop, "DPoP")
    } else {
        (Scheme::Bearer, "Bearer")
    };
    // What no header can hold, such as the line ends of a token that was wrapped, is no better in one.
    let line = format!(
        "{name} {}",
        token.replace(|c: char| !matches!(c, ' '..='~'), "?")
    );
    if let Ok(line) = HeaderValue::from_str(&line) {
        headers.insert(header::AUTHORIZATION, line);
    }
    let mut checks = Vec::new();
    let form = bearer::credentials(&headers, None, &[scheme]).and_then(Shown::checked);
    let kind = match form {
        Ok(_) => "of the kind that a bearer token has",
        Err(_) => "too many, or not all of a bearer token: no quotes, braces, spaces or line ends",
    };
    checks.push(Check {
        what: "form",
        passed: form.is_ok(),
        compared: format!("{} characters, {kind}", token.len()),
    });
    if form.is_ok() {
        match jwt::read(token) {
            Ok(unverified) => of_jwt(&mut checks, auth, &unverified, clock.now()),
            Err(_) if !jwt::is_jwt(token) && asks(auth) => {}
            Err(error) => checks.push(Check {
                what: "JWT",
                passed: false,
                compared: unreadable(&error).to_owned(),
            }),
        }
    }
    let verdict = authenticator
        .authenticate(&Presented {
            method: &Method::POST,
            headers: &headers,
            query: None,
            local: None,
        })
        .await;
    let trouble = trouble
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if checks.iter().all(|check| check.passed) {
        let opaque = !jwt::is_jwt(token) && asks(auth);
        checks.push(if opaque {
            of_answer(&verdict, trouble)
        } else {
            of_signature(&verdict, trouble)
        });
    }
    let verdict = verdict.and_then(|identity| {
        let enough = authenticator.check_scopes(&identity);
        let needed = authenticator.scopes_for_all(&identity);
        if !needed.is_empty() {
            checks.push(Check {
                what: "scope",
                passed: enough.is_ok(),
                compared: format!(
                    "`{}`; every call needs `{}`",
                    identity.scopes().to_vec().join(" "),
                    needed.join(" ")
                ),
            });
        }
        enough.map(|()| identity)
    });
    Ok(Explanation { checks, verdict })
}

/// Whether all issuers' tokens must be bound to a key.
fn wants_proof(auth: &Auth) -> bool {
    match auth {
        Auth::Oidc(issuers) => issuers.iter().all(|issuer| issuer.dpop == Dpop::Required),
        Auth::Peer | Auth::None => false,
    }
}

/// Whether an issuer is asked about tokens that are no JWT.
fn asks(auth: &Auth) -> bool {
    match auth {
        Auth::Oidc(issuers) => issuers.iter().any(|issuer| issuer.introspection.is_some()),
        Auth::Peer | Auth::None => false,
    }
}

fn of_jwt(checks: &mut Vec<Check>, auth: &Auth, token: &Unverified<'_>, now: u64) {
    let Auth::Oidc(issuers) = auth else { return };
    let said = |name: &str| shown(token.claims.get(name));
    let named = claims::issuer(&token.claims).ok();
    let issuer = issuers
        .iter()
        .find(|issuer| named.as_deref() == Some(&issuer.issuer));
    let known: Vec<_> = issuers
        .iter()
        .map(|issuer| format!("`{}`", issuer.issuer))
        .collect();
    checks.push(Check {
        what: "iss",
        passed: issuer.is_some(),
        compared: format!(
            "{}; configured: {}, byte for byte{}",
            said("iss"),
            known.join(", "),
            near_miss(named.as_deref(), issuers)
        ),
    });
    let Some(issuer) = issuer else { return };
    let mut check = |what, passed: Result<(), AuthError>, compared| {
        checks.push(Check {
            what,
            passed: passed.is_ok(),
            compared,
        });
    };
    if token.header.points_elsewhere {
        let compared = "the header says where a key would be, and nobody looks there; \
                        for a provider that always writes it set `key-urls = \"ignored\"` of this issuer";
        let passed = claims::key_urls(&token.header, issuer);
        check("jku, x5u", passed, compared.to_owned());
    }
    check(
        "typ",
        claims::kind_of_token(&token.header, &token.claims, issuer),
        of_type(token, issuer),
    );
    let audience = issuer.audience.join("`, `");
    check(
        "aud",
        claims::audience(&token.claims, issuer),
        format!("{}; accepted: `{audience}`", said("aud")),
    );
    check(
        "exp, nbf, iat",
        claims::times(&token.claims, issuer, now).map(drop),
        of_times(token, issuer, now),
    );
    check(
        "client",
        callers::client(&token.claims, issuer).map(drop),
        format!(
            "client_id {}, azp {}; accepted: {}",
            said("client_id"),
            said("azp"),
            any_of(&issuer.clients)
        ),
    );
    let subject = token.claims.get("sub").and_then(Value::as_str);
    let subject = subject.unwrap_or_default();
    check(
        "sub",
        callers::subject(&subject, &token.claims, issuer)
            .and_then(|()| callers::service_account(&subject, &token.claims, issuer)),
        of_subject(said("sub"), issuer),
    );
    for required in &issuer.required_claims {
        check(
            "required claim",
            callers::one_required(&token.claims, required),
            format!("{} is {}", required.name, said(&required.name)),
        );
    }
    check(
        "cnf",
        claims::binding(&token.claims, issuer).map(drop),
        format!(
            "{}; `dpop` of this issuer is `{}`",
            said("cnf"),
            match issuer.dpop {
                Dpop::Off => "off",
                Dpop::Accepted => "accepted",
                Dpop::Required => "required",
            }
        ),
    );
    // All the rest of the claims: whatever is left fails here. It asks the same once more,
    // so it says nothing new where something has failed before.
    let rest = claims::check(&token.header, &token.claims, issuer, now);
    if rest.is_ok() || checks.iter().all(|check| check.passed) {
        checks.push(Check {
            what: "other claims",
            passed: rest.is_ok(),
            compared: format!(
                "sub {}, scope {}, groups {}",
                said("sub"),
                said("scope"),
                said("groups")
            ),
        });
    }
    let algorithm = token.header.algorithm;
    let listed = issuer
        .algorithms
        .iter()
        .any(|name| algorithm.is_called(name));
    let name = match format!("{algorithm:?}") {
        name if name.starts_with("Ed") => name,
        name => name.to_uppercase(),
    };
    checks.push(Check {
        what: "alg",
        passed: listed,
        compared: format!("{name}; accepted: {}", issuer.algorithms.join(" ")),
    });
}

/// The commonest mistake with issuers, in words.
const NEAR_MISS: &str =
    "; only the slash at the end differs: write `issuer` exactly as the token says it";

fn near_miss(named: Option<&str>, issuers: &[Issuer]) -> &'static str {
    let bare = |text: &str| text.trim_end_matches('/').to_owned();
    let differs = |issuer: &Issuer| {
        named.is_some_and(|named| named != issuer.issuer && bare(named) == bare(&issuer.issuer))
    };
    if issuers.iter().any(differs) {
        NEAR_MISS
    } else {
        ""
    }
}

fn of_times(token: &Unverified<'_>, issuer: &Issuer, now: u64) -> String {
    let when = |name: &str| {
        token
            .claims
            .get(name)
            .and_then(Value::as_number)?
            .parse()
            .ok()
    };
    let said = |name: &str| match when(name) {
        Some(at) => moment(at, now),
        None => shown(token.claims.get(name)),
    };
    let late = now.saturating_add(issuer.leeway.as_secs());
    let is_ahead = ["nbf", "iat"]
        .into_iter()
        .filter_map(when)
        .any(|at: u64| at > late);
    let clock = if is_ahead {
        "; a token from the future: is the clock of this host right (`timedatectl`), and the provider's?"
    } else {
        ""
    };
    format!(
        "exp {}, nbf {}, iat {}; leeway {} s, at most {} s of life{clock}",
        said("exp"),
        said("nbf"),
        said("iat"),
        issuer.leeway.as_secs(),
        issuer.max_lifetime.as_secs()
    )
}

/// A time as people read it, and how far it is from now.
fn moment(at: u64, now: u64) -> String {
    let text = match UNIX_EPOCH.checked_add(Duration::from_secs(at)) {
        // What comes after has no name in RFC 3339.
        Some(time) if at < END_OF_9999 => humantime::format_rfc3339_seconds(time).to_string(),
        _ => at.to_string(),
    };
    if at > now {
        format!("{text} (in {} s)", at - now)
    } else {
        format!("{text} ({} s ago)", now - at)
    }
}

fn any_of(texts: &[String]) -> String {
    if texts.is_empty() {
        "any".to_owned()
    } else {
        format!("`{}`", texts.join("`, `"))
    }
}

fn of_subject(said: String, issuer: &Issuer) -> String {
    let texts = |patterns: &[Pattern]| -> Vec<String> {
        patterns
            .iter()
            .map(|pattern| pattern.as_str().to_owned())
            .collect()
    };
    let mut text = format!("{said}; accepted: {}", any_of(&texts(&issuer.subjects)));
    if let Some(account) = &issuer.kubernetes {
        text = format!(
            "{said}; accepted: service account `{}` of namespace `{}`",
            account.name, account.namespace
        );
    }
    if !issuer.revoked.is_empty() {
        text = format!("{text}; revoked: {}", any_of(&texts(&issuer.revoked)));
    }
    text
}

fn of_type(token: &Unverified<'_>, issuer: &Issuer) -> String {
    let typ = token
        .header
        .typ
        .as_deref()
        .map_or("absent".to_owned(), |typ| format!("`{typ}`"));
    if issuer.token == TokenKind::Id {
        return format!("{typ}; accepted: JWT or none, because `token = \"id\"`");
    }
    if issuer.legacy_typ {
        return format!("{typ}; accepted: at+jwt, JWT or none, without nonce, at_hash, c_hash");
    }
    let passes = claims::kind_of_token(&token.header, &token.claims, issuer).is_ok();
    if passes {
        return format!("{typ}; accepted: at+jwt");
    }
    format!(
        "{typ}; accepted: at+jwt; for a provider that says JWT or nothing set `typ = \"legacy\"` of this issuer"
    )
}

/// What only the issuer's keys can tell; everything else has passed.
fn of_signature(verdict: &Result<Arc<Identity>, AuthError>, trouble: Option<String>) -> Check {
    let compared = match verdict {
        Ok(_) => "by the issuer's key of that name and algorithm".to_owned(),
        Err(AuthError::IssuerDown { issuer, .. }) => format!(
            "the keys of `{issuer}` cannot be had: {}",
            trouble.unwrap_or_else(|| "no answer".to_owned())
        ),
        Err(AuthError::Rejected(Fault::Binding) | AuthError::Proof) => {
            "good, and bound to a key: clients show it as `Authorization: DPoP` with a proof"
                .to_owned()
        }
        Err(AuthError::Rejected(Fault::KeyUnknown)) => {
            "the issuer publishes no usable key of the name in `kid`".to_owned()
        }
        Err(AuthError::Rejected(Fault::Algorithm)) => {
            "the key of that name is for another algorithm".to_owned()
        }
        Err(_) => "the signature is not that key's".to_owned(),
    };
    Check {
        what: "signature",
        passed: verdict.is_ok(),
        compared,
    }
}

/// What the issuer said of a token that is no JWT.
fn of_answer(verdict: &Result<Arc<Identity>, AuthError>, trouble: Option<String>) -> Check {
    let compared = match verdict {
        Ok(_) => "the issuer says that it is good, and for whom".to_owned(),
        Err(AuthError::IssuerDown { issuer, .. }) => format!(
            "`{issuer}` cannot be asked: {}",
            trouble.unwrap_or_else(|| "no answer".to_owned())
        ),
        Err(AuthError::Rejected(Fault::Inactive)) => {
            "the issuer says that it is not, or no longer, good".to_owned()
        }
        Err(AuthError::Rejected(Fault::Binding) | AuthError::Proof) => {
            "good, and bound to a key: clients show it as `Authorization: DPoP` with a proof"
                .to_owned()
        }
        Err(AuthError::Rejected(fault)) => {
            format!("the issuer knows it, and what it says does not pass: {fault:?}")
        }
        Err(error) => error.to_string(),
    };
    Check {
        what: "introspection",
        passed: verdict.is_ok(),
        compared,
    }
}

fn unreadable(error: &AuthError) -> &'static str {
    match error {
        AuthError::Rejected(Fault::Algorithm) => {
            "`alg` is none of the asymmetric ones, exactly spelled"
        }
        AuthError::Rejected(Fault::KeyUnknown) => "`kid` is not a short text",
        AuthError::Rejected(Fault::Type) => "`typ` is not a short text",
        _ => {
            "not three base64url parts of strict JSON, or a header with crit, jwk, x5c, zip or cty"
        }
    }
}

/// A claim as it was written, cut and without what a terminal would act on.
fn shown(value: Option<Value<'_>>) -> String {
    let Some(value) = value else {
        return "absent".to_owned();
    };
    let text = String::from_utf8_lossy(value.raw());
    let cut: String = text
        .chars()
        .take(MAX_SHOWN)
        .flat_map(char::escape_debug)
        .collect();
    let dots = if text.chars().count() > MAX_SHOWN {
        "…"
    } else {
        ""
    };
    format!("{}{dots}", cut.replace("\\\"", "\""))
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passed { "ok" } else { "NO" };
        write!(f, "{verdict}  {:<20} {}", self.what, self.compared)
    }
}

/// The last second that four digits of a year can name, in Unix time.
const END_OF_9999: u64 = 253_402_300_799;
/// Characters of a claim that are shown.
const MAX_SHOWN: usize = 200;

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{KEYS, NOW, issuer, resource, set, token},
        *,
    };
    use crate::config::KeySource;

    async fn explained(token: &str, change: impl Fn(&mut Issuer)) -> Explanation {
        let files = tempfile::tempdir().unwrap();
        let path = files.path().join("keys.json");
        std::fs::write(&path, set(KEYS.published()).to_string()).unwrap();
        let mut issuer = issuer(KeySource::File(path));
        change(&mut issuer);
        explain(
            &Auth::Oidc(vec![issuer]),
            &resource(),
            &Credentials::default(),
            Clock::new(|| NOW),
            token,
        )
        .await
        .unwrap()
    }

    /// The check that failed first, with what it compared.
    async fn failed(token: &str) -> (&'static str, String) {
        let explanation = explained(token, |_| {}).await;
        assert!(explanation.verdict.is_err());
        let check = explanation
            .checks
            .into_iter()
            .find(|check| !check.passed)
            .unwrap();
        (check.what, check.compared)
    }

    #[tokio::test]
    async fn a_good_token_passes_every_check() {
        let explanation = explained(&token().sign(), |_| {}).await;
        assert_eq!(explanation.verdict.unwrap().subject(), "alice");
        assert!(explanation.checks.iter().all(|check| check.passed));
        assert_eq!(explanation.checks.last().unwrap().what, "signature");
    }

    #[tokio::test]
    async fn each_refusal_names_what_was_compared() {
        for (bad, what, word) in [
            ("a b".to_owned(), "form", "characters"),
            ("a.b".to_owned(), "JWT", "three"),
            (token().header("typ", "JWT").sign(), "typ", "legacy"),
            (
                token().claim("iss", "https://evil.example").sign(),
                "iss",
                "evil.example",
            ),
            (
                token().claim("aud", "https://other.example").sign(),
                "aud",
                "other.example",
            ),
            (
                token().claim("exp", NOW - 100).sign(),
                "exp, nbf, iat",
                "Z (100 s ago)",
            ),
            (
                token().claim("iat", NOW + 1000).sign(),
                "exp, nbf, iat",
                "clock",
            ),
            (
                token().claim("exp", u64::MAX).sign(),
                "exp, nbf, iat",
                "exp 18446744073709551615 (in ",
            ),
            (
                token()
                    .claim("iss", format!("{}/", testing_issuer()))
                    .sign(),
                "iss",
                "only the slash",
            ),
            (token().without("sub").sign(), "other claims", "absent"),
            (token().signed_by(&KEYS.stranger), "signature", "key"),
        ] {
            let (found, compared) = failed(&bad).await;
            assert_eq!(found, what, "{compared}");
            assert!(compared.contains(word), "{compared}");
            let is_near = explained(&bad, |_| {}).await.is_near_miss();
            assert_eq!(is_near, word == "only the slash", "{compared}");
        }
    }

    fn testing_issuer() -> String {
        issuer(KeySource::Discovery).issuer
    }

    /// What has failed already is not said again under another name.
    #[tokio::test]
    async fn one_fault_is_one_no() {
        let expired = token().claim("exp", NOW - 100).sign();
        let explanation = explained(&expired, |_| {}).await;
        let failed = explanation.checks.iter().filter(|check| !check.passed);
        assert_eq!(failed.count(), 1, "{:?}", explanation.checks);
        let all: String = explanation.checks.iter().map(ToString::to_string).collect();
        assert!(all.contains("`off`") && all.contains("  ES256;"), "{all}");
        assert!(!all.contains("legacy"), "{all}");
    }

    #[tokio::test]
    async fn an_explanation_shows_no_signature_and_no_control_characters() {
        let good = token().claim("aud", "x\u{1b}[31m\ny").sign();
        let signature = good.rsplit('.').next().unwrap().to_owned();
        let text: String = explained(&good, |_| {})
            .await
            .checks
            .iter()
            .map(|check| format!("{check}\n"))
            .collect();
        assert!(!text.contains(&signature));
        assert!(!text.contains('\u{1b}'));
    }

    #[tokio::test]
    async fn keys_that_cannot_be_had_are_told_with_their_error() {
        let explanation = explained(&token().sign(), |issuer| {
            issuer.keys = KeySource::File("/nonexistent/keys.json".into());
        })
        .await;
        let last = explanation.checks.last().unwrap();
        assert!(
            !last.passed && last.compared.contains("/nonexistent/keys.json"),
            "{last}"
        );
        assert!(matches!(
            explanation.verdict,
            Err(AuthError::IssuerDown { .. })
        ));
    }

    /// A token for which a proof is missing here is not forged.
    #[tokio::test]
    async fn a_bound_token_is_explained_where_only_those_are_taken() {
        let bound = token().claim("cnf", serde_json::json!({"jkt": "A".repeat(43)}));
        for dpop in [Dpop::Accepted, Dpop::Required] {
            let explanation = explained(&bound.clone().sign(), |issuer| issuer.dpop = dpop).await;
            let last = explanation.checks.last().unwrap();
            assert!(last.compared.contains("bound to a key"), "{dpop:?}: {last}");
        }
        let explanation = explained(&bound.signed_by(&KEYS.stranger), |issuer| {
            issuer.dpop = Dpop::Required;
        })
        .await;
        let last = explanation.checks.last().unwrap();
        assert!(last.compared.contains("not that key"), "{last}");
    }

    #[test]
    fn an_opaque_token_has_no_signature_to_blame() {
        for (fault, word) in [
            (Fault::Inactive, "no longer"),
            (Fault::Audience, "Audience"),
        ] {
            let check = of_answer(&Err(AuthError::Rejected(fault)), None);
            assert_eq!((check.what, check.passed), ("introspection", false));
            assert!(check.compared.contains(word), "{check}");
        }
    }
}

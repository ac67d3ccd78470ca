//! Tokens that are no JWT: the issuer is asked about each (RFC 7662).

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::{
    AuthError, Fault, Notice, Notices, Surroundings,
    claims::{self, Claimed, Source},
    discovery::Discovery,
    jwt::Claims,
    keys,
    names::Name,
};
use crate::{
    config::{self, Issuer, TokenKind},
    fetch::{FetchError, Fetcher},
    json::Value,
    systemd::{CredentialError, Credentials},
};

/// Asks one issuer.
pub(super) struct Introspector {
    issuer: Issuer,
    url: Option<String>,
    fetcher: Fetcher,
    discovery: Discovery,
    /// `Basic …` with this server's own client at the issuer.
    authorization: String,
    notices: Notices,
    /// Questions at once.
    turns: Semaphore,
    /// When it last could not say anything: not every token waits for that again.
    failed: Mutex<Option<Instant>>,
    /// When, and why.
    refused: Mutex<HashMap<Name, (Instant, Fault)>>,
}

/// Why an introspector cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum IntrospectionError {
    #[error("the secret of a client: {0}")]
    Credential(#[from] CredentialError),
    #[error("the credential `{0}` is empty or not plain text")]
    Secret(String),
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

impl Introspector {
    pub(super) fn new(
        issuer: &Issuer,
        asked: &config::Introspection,
        around: &Surroundings<'_>,
    ) -> Result<Self, IntrospectionError> {
        Ok(Self {
            issuer: issuer.clone(),
            url: asked.url.clone(),
            fetcher: keys::fetcher(issuer)?,
            discovery: Discovery::new(&issuer.issuer),
            authorization: client(&asked.client_id, &asked.credential, around.credentials)?,
            notices: around.notices.clone(),
            turns: Semaphore::new(MAX_QUESTIONS),
            failed: Mutex::default(),
            refused: Mutex::default(),
        })
    }

    /// What the issuer says of a token, once it has passed the same checks as a JWT's claims.
    /// `name` is the token's hash: what was refused a moment ago is refused again.
    pub(super) async fn ask(
        &self,
        token: &str,
        name: &Name,
        now: u64,
    ) -> Result<Claimed, AuthError> {
        if let Some(fault) = self.was_refused(name) {
            return Err(AuthError::Rejected(fault));
        }
        let down = || AuthError::IssuerDown {
            issuer: self.issuer.issuer.clone(),
            retry_after: RETRY.as_secs(),
        };
        // Whoever does not get a turn soon is told so, not kept.
        let turn = timeout(RETRY, self.turns.acquire()).await;
        // Looked at last: what a turn was waited for may have failed.
        let (Ok(Ok(_turn)), false) = (turn, self.lately_failed()) else {
            return Err(down());
        };
        let claims = self.question(token).await.map_err(|trouble| {
            if trouble.lasts {
                *self.failed() = Some(Instant::now());
            }
            (self.notices)(Notice::Unavailable {
                issuer: self.issuer.issuer.clone(),
                cached: false,
                error: trouble.error,
            });
            down()
        })?;
        let checked = match claims {
            Some(claims) => self
                .is_ours(&claims)
                .and_then(|()| claims::check_claims(&claims, Source::Answer, &self.issuer, now)),
            None => Err(AuthError::Rejected(Fault::Inactive)),
        };
        if let Err(AuthError::Rejected(fault)) = checked {
            self.remember_refusal(*name, fault);
        }
        checked
    }

    fn is_ours(&self, claims: &Claims) -> Result<(), AuthError> {
        if claims::issuer(claims)? != self.issuer.issuer {
            return Err(AuthError::Rejected(Fault::Issuer));
        }
        // Active is a refresh token, too; the hint in the question is no more than that.
        let names = ["typ", "token_use", "token_type"];
        claims::declared_kind(claims, TokenKind::Access, &names)?;
        let kind = claims.get("token_type").and_then(Value::as_str);
        if kind.is_some_and(|kind| kind.eq_ignore_ascii_case("dpop")) && claims.get("cnf").is_none()
        {
            return Err(AuthError::Rejected(Fault::Binding));
        }
        Ok(())
    }

    /// The claims of an active token; none for one that is not.
    async fn question(&self, token: &str) -> Result<Option<Claims>, Trouble> {
        let body = format!("token={}&token_type_hint=access_token", form(token));
        let (url, origin) = match &self.url {
            Some(url) => (url.clone(), None),
            None => {
                let endpoints = self.discovery.endpoints(&self.fetcher).await;
                let endpoints = endpoints.map_err(Trouble::lasting)?;
                let url = endpoints.introspection.ok_or(
                    "its discovery document names no introspection_endpoint; set `introspection.url`",
                );
                let url = url.map_err(|error| Trouble::lasting(error.to_owned()))?;
                (url, Some(self.issuer.issuer.as_str()))
            }
        };
        let answer = self
            .fetcher
            .post(&url, origin, &self.authorization, &body)
            .await
            .map_err(|error| {
                self.discovery.forget();
                let text = format!("introspection at `{url}`: {error}");
                match error {
                    // Our credentials are at fault, not the caller's token (tok-109).
                    FetchError::Status(status) if matches!(status.as_u16(), 401 | 403) => {
                        Trouble::lasting(format!(
                            "introspection at `{url}` refuses this server's client: {status}"
                        ))
                    }
                    // What it makes of a stranger's token must not keep everybody else out.
                    FetchError::Status(status) if status.is_client_error() => {
                        Trouble::of_the_token(text)
                    }
                    _ => Trouble::lasting(text),
                }
            })?;
        // Signed answers are of another type, and were not asked for (tok-112).
        if answer.media_type != "application/json" {
            return Err(Trouble::of_the_token(format!(
                "introspection at `{url}`: it answered `{}`, not application/json",
                answer.media_type
            )));
        }
        let claims = Claims::read(&answer.body).map_err(|_| {
            Trouble::of_the_token(format!(
                "introspection at `{url}`: its answer is no JSON object"
            ))
        })?;
        let active = claims.get("active").and_then(|active| active.as_bool());
        Ok((active == Some(true)).then_some(claims))
    }

    fn lately_failed(&self) -> bool {
        self.failed().is_some_and(|when| when.elapsed() < RETRY)
    }

    fn failed(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn was_refused(&self, name: &Name) -> Option<Fault> {
        let (when, fault) = self.refused().get(name).copied()?;
        (when.elapsed() < NEGATIVE).then_some(fault)
    }

    fn remember_refusal(&self, name: Name, fault: Fault) {
        let mut refused = self.refused();
        if refused.len() >= MAX_REFUSED {
            refused.retain(|_, (when, _)| when.elapsed() < NEGATIVE);
        }
        if refused.len() < MAX_REFUSED {
            refused.insert(name, (Instant::now(), fault));
        }
    }

    fn refused(&self) -> std::sync::MutexGuard<'_, HashMap<Name, (Instant, Fault)>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why there is no answer.
struct Trouble {
    error: String,
    /// Whether the next token would fare no better.
    lasts: bool,
}

impl Trouble {
    fn lasting(error: String) -> Self {
        Self { error, lasts: true }
    }

    fn of_the_token(error: String) -> Self {
        Self {
            error,
            lasts: false,
        }
    }
}

/// What a client at an issuer shows for itself: its name, and the secret in this credential.
pub(super) fn client(
    id: &str,
    credential: &str,
    credentials: &Credentials,
) -> Result<String, IntrospectionError> {
    let secret = credentials.read(credential, MAX_SECRET)?;
    let secret = String::from_utf8(secret)
        .ok()
        .map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
        .filter(|text| !text.is_empty() && !text.chars().any(char::is_control))
        .ok_or_else(|| IntrospectionError::Secret(credential.to_owned()))?;
    // Both are form-encoded before they are joined (RFC 6749 §2.3.1).
    let pair = format!("{}:{}", form(id), form(&secret));
    Ok(format!("Basic {}", STANDARD.encode(pair)))
}

/// `application/x-www-form-urlencoded`, of which the unreserved characters stay.
pub(super) fn form(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

/// How long an issuer's yes holds, at most (tok-111).
pub(super) const POSITIVE: u64 = 60;
/// How long its no holds.
const NEGATIVE: Duration = Duration::from_secs(10);
/// How long to wait for a turn, and what callers are told to wait.
const RETRY: Duration = Duration::from_secs(5);
const MAX_QUESTIONS: usize = 16;
const MAX_REFUSED: usize = 4096;
/// Bytes of the client's secret.
const MAX_SECRET: usize = 4096;

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use serde_json::{Value, json};

    use super::{
        super::{
            Authenticator, Identity, Surroundings,
            testing::{
                AUDIENCE, KEYS, NOW, Provider, Reply, bearer, issuer, post, raw, resource, unheard,
            },
        },
        *,
    };
    use crate::{
        config::{Auth, KeySource},
        systemd::Credentials,
        time::Clock,
    };

    const ASK: &str = "/introspect";

    /// A server that asks about tokens which are no JWT.
    struct Asking {
        provider: Provider,
        authenticator: Authenticator,
        now: Arc<AtomicU64>,
        told: Arc<Mutex<Vec<Notice>>>,
    }

    impl Asking {
        async fn start() -> Self {
            let provider = Provider::with(&[&KEYS.es256]).await;
            let directory = tempfile::tempdir().unwrap();
            std::fs::write(directory.path().join("sso"), "s p+c\n").unwrap();
            let issuer = Issuer {
                issuer: provider.issuer(),
                introspection: Some(config::Introspection {
                    url: Some(provider.url(ASK)),
                    client_id: "thv:1".to_owned(),
                    credential: "sso".to_owned(),
                }),
                ..issuer(KeySource::Discovery)
            };
            let now = Arc::new(AtomicU64::new(NOW));
            let (read, told) = (now.clone(), Arc::new(Mutex::new(Vec::new())));
            let hear = told.clone();
            let notices: Notices = Arc::new(move |notice| hear.lock().unwrap().push(notice));
            let around = Surroundings {
                resource: &resource(),
                clock: Clock::new(move || read.load(Ordering::Relaxed)),
                notices: &notices,
                credentials: &Credentials::within(directory.path().to_owned()),
            };
            let authenticator = Authenticator::build(&Auth::Oidc(vec![issuer]), around).unwrap();
            Self {
                provider,
                authenticator,
                now,
                told,
            }
        }

        fn says(&self, change: impl FnOnce(&mut Value)) {
            let mut answer = json!({
                "active": true, "iss": self.provider.issuer(), "aud": AUDIENCE, "sub": "alice",
                "client_id": "editor", "iat": NOW, "exp": NOW + 300, "scope": "a b",
            });
            change(&mut answer);
            self.provider.set(ASK, Reply::Json(answer));
        }

        async fn shows(&self, token: &str) -> Result<Identity, AuthError> {
            self.authenticator
                .authenticate(&post(&bearer(token), None))
                .await
                .map(Arc::unwrap_or_clone)
        }

        fn alarms(&self) -> String {
            format!("{:?}", self.told.lock().unwrap())
        }
    }

    fn is_down(answer: &Result<Identity, AuthError>) -> bool {
        matches!(answer, Err(AuthError::IssuerDown { .. }))
    }

    /// RFC 7662 §2.1: a form, under this server's own credentials.
    #[tokio::test]
    async fn an_opaque_token_is_asked_about_and_what_is_said_is_the_identity() {
        let asking = Asking::start().await;
        asking.says(|_| {});
        let identity = asking.shows("opaque+1/~").await.unwrap();
        assert_eq!(
            (identity.subject(), identity.client()),
            ("alice", Some("editor"))
        );
        assert_eq!(identity.scopes(), ["a", "b"]);
        let request = asking.provider.heard().pop().unwrap();
        assert!(
            request.starts_with("POST /introspect HTTP/1.1\r\n"),
            "{request}"
        );
        let expected = STANDARD.encode("thv%3A1:s%20p%2Bc");
        assert!(
            request.to_ascii_lowercase().contains(&format!(
                "authorization: basic {}",
                expected.to_ascii_lowercase()
            )),
            "{request}"
        );
        assert!(
            request.ends_with("\r\n\r\ntoken=opaque%2B1%2F~&token_type_hint=access_token"),
            "{request}"
        );
    }

    /// tok-19: what has the form of a JWT is never asked about, whoever signed it.
    #[tokio::test]
    async fn a_jwt_is_not_asked_about() {
        let asking = Asking::start().await;
        asking.says(|_| {});
        assert!(asking.shows(&asking.provider.token().sign()).await.is_ok());
        for token in [
            asking.provider.token().signed_by(&KEYS.stranger),
            asking
                .provider
                .token()
                .claim("iss", "https://other.example")
                .sign(),
            asking.provider.token().claim("exp", NOW - 100).sign(),
            "eyJhbGciOiJkaXIifQ.a.b.c.d".to_owned(),
        ] {
            assert!(matches!(
                asking.shows(&token).await,
                Err(AuthError::Rejected(_))
            ));
        }
        assert_eq!(asking.provider.asked(ASK), 0);
        for opaque in ["a", "a.b", "a.b.c", "a.b.c.d"] {
            assert!(asking.shows(opaque).await.is_ok());
        }
        assert_eq!(asking.provider.asked(ASK), 4);
    }

    /// tok-106, tok-107: only the truth value `true` is a yes.
    #[tokio::test]
    async fn what_is_not_active_is_refused() {
        let asking = Asking::start().await;
        for (number, active) in [
            json!(false),
            json!("true"),
            json!(1),
            json!(null),
            json!([true]),
        ]
        .into_iter()
        .enumerate()
        {
            asking.says(|answer| answer["active"] = active.clone());
            assert_eq!(
                asking.shows(&format!("t{number}")).await,
                Err(AuthError::Rejected(Fault::Inactive)),
                "{active}"
            );
        }
        asking.says(|answer| drop(answer.as_object_mut().unwrap().remove("active")));
        assert_eq!(
            asking.shows("absent").await,
            Err(AuthError::Rejected(Fault::Inactive))
        );
    }

    /// tok-108: the same rules as for a JWT's claims.
    #[tokio::test]
    async fn what_is_said_is_checked_like_the_claims_of_a_jwt() {
        let asking = Asking::start().await;
        let cases: [(&str, Option<Value>, Fault); 10] = [
            ("iss", None, Fault::Issuer),
            ("iss", Some(json!("https://evil.example")), Fault::Issuer),
            ("aud", None, Fault::Audience),
            ("aud", Some(json!("https://other.example")), Fault::Audience),
            ("exp", None, Fault::Claim),
            ("exp", Some(json!(NOW - 100)), Fault::Expired),
            ("exp", Some(json!("soon")), Fault::Claim),
            ("sub", Some(json!("")), Fault::Claim),
            ("sub", Some(json!(null)), Fault::Claim),
            ("cnf", Some(json!({"jkt": "x"})), Fault::Claim),
        ];
        for (number, (name, value, fault)) in cases.into_iter().enumerate() {
            asking.says(|answer| match value {
                Some(value) => answer[name] = value,
                None => drop(answer.as_object_mut().unwrap().remove(name)),
            });
            assert_eq!(
                asking.shows(&format!("t{number}")).await,
                Err(AuthError::Rejected(fault)),
                "{name}"
            );
        }
    }

    /// tok-79: a client that acts for itself has no `sub` in many providers' answers; it is no user.
    #[tokio::test]
    async fn a_client_without_a_user_is_itself() {
        let asking = Asking::start().await;
        asking.says(|answer| drop(answer.as_object_mut().unwrap().remove("sub")));
        let identity = asking.shows("t1").await.unwrap();
        assert_eq!(
            (identity.subject(), identity.kind()),
            ("editor", super::super::Kind::Client)
        );
        asking.says(|answer| {
            for name in ["sub", "client_id"] {
                answer.as_object_mut().unwrap().remove(name);
            }
        });
        assert_eq!(
            asking.shows("t2").await,
            Err(AuthError::Rejected(Fault::Claim))
        );
    }

    /// tok-109, tok-110, tok-112: whatever goes wrong between us and the issuer is not the token's fault.
    #[tokio::test]
    async fn trouble_with_the_issuer_is_an_outage_and_never_a_yes() {
        let asking = Asking::start().await;
        let json = "Content-Type: application/json\r\n";
        for (number, reply) in [
            raw("401 Unauthorized", "", ""),
            raw("500 Internal Server Error", "", ""),
            raw("302 Found", "Location: /elsewhere\r\n", ""),
            raw(
                "200 OK",
                "Content-Type: application/token-introspection+jwt\r\n",
                "e30.e30.x",
            ),
            raw("200 OK", json, "{\"active\":true,\"active\":true}"),
            raw("200 OK", json, "[true]"),
            raw("200 OK", json, ""),
        ]
        .into_iter()
        .enumerate()
        {
            asking.provider.set(ASK, reply);
            let answer = asking.shows(&format!("t{number}")).await;
            assert!(is_down(&answer), "{number}: {answer:?}");
            super::super::testing::pass(RETRY).await;
        }
        assert!(
            asking
                .alarms()
                .contains("refuses this server's client: 401")
        );
        // Nothing of it was remembered.
        asking.says(|_| {});
        assert!(asking.shows("t0").await.is_ok());
    }

    /// tok-110: an outage is asked about once in a while, not once a token; and one that
    /// a single token brings about is that token's alone.
    #[tokio::test]
    async fn an_outage_is_not_asked_about_for_each_token() {
        let asking = Asking::start().await;
        asking
            .provider
            .set(ASK, raw("503 Service Unavailable", "", ""));
        for number in 0..20 {
            assert!(is_down(&asking.shows(&format!("t{number}")).await));
        }
        assert_eq!(asking.provider.asked(ASK), 1);
        assert_eq!(asking.told.lock().unwrap().len(), 1);
        asking.says(|_| {});
        super::super::testing::pass(RETRY).await;
        assert!(asking.shows("good").await.is_ok());
        asking.provider.set(ASK, raw("400 Bad Request", "", ""));
        assert!(is_down(&asking.shows("strange").await));
        asking.says(|_| {});
        assert!(asking.shows("another").await.is_ok());
    }

    /// tok-110: a silent issuer costs its deadline.
    #[tokio::test(start_paused = true)]
    async fn a_silent_issuer_is_an_outage() {
        let asking = Asking::start().await;
        asking.provider.set(ASK, Reply::Silence);
        assert!(is_down(&asking.shows("t").await));
    }

    /// tok-111: a yes holds for a minute at most and never beyond `exp`, a no for ten seconds.
    #[tokio::test]
    async fn answers_are_remembered_for_a_short_while() {
        let asking = Asking::start().await;
        asking.says(|_| {});
        for _ in 0..3 {
            assert!(asking.shows("good").await.is_ok());
        }
        assert_eq!(asking.provider.asked(ASK), 1);
        asking.now.store(NOW + POSITIVE - 1, Ordering::Relaxed);
        assert!(asking.shows("good").await.is_ok());
        assert_eq!(asking.provider.asked(ASK), 1);
        asking.now.store(NOW + POSITIVE, Ordering::Relaxed);
        asking.says(|answer| answer["active"] = json!(false));
        for _ in 0..3 {
            assert!(asking.shows("good").await.is_err());
        }
        assert_eq!(asking.provider.asked(ASK), 2);
        super::super::testing::pass(NEGATIVE).await;
        assert!(asking.shows("good").await.is_err());
        assert_eq!(asking.provider.asked(ASK), 3);
        // Expired in the meantime, whatever was said a moment ago.
        asking.says(|answer| answer["exp"] = json!(NOW + POSITIVE + 10));
        assert!(asking.shows("short").await.is_ok());
        asking.now.store(NOW + POSITIVE + 40, Ordering::Relaxed);
        assert_eq!(
            asking.shows("short").await,
            Err(AuthError::Rejected(Fault::Expired))
        );
    }

    #[tokio::test]
    async fn a_secret_that_is_not_there_stops_the_start_and_names_the_credential() {
        let asked = config::Introspection {
            url: None,
            client_id: "thv".to_owned(),
            credential: "sso".to_owned(),
        };
        let issuer = issuer(KeySource::Discovery);
        let directory = tempfile::tempdir().unwrap();
        let credentials = Credentials::within(directory.path().to_owned());
        let notices = unheard();
        let resource = resource();
        let around = Surroundings {
            resource: &resource,
            clock: Clock::new(|| NOW),
            notices: &notices,
            credentials: &credentials,
        };
        let refused = |text: &str| {
            std::fs::write(directory.path().join("sso"), text).unwrap();
            Introspector::new(&issuer, &asked, &around)
                .err()
                .map(|error| error.to_string())
        };
        let missing = Introspector::new(&issuer, &asked, &around).err().unwrap();
        assert!(missing.to_string().contains("sso"), "{missing}");
        assert!(refused("\n").unwrap().contains("`sso`"));
        assert!(refused("a\nb").is_some());
        assert!(refused("good\n").is_none());
    }

    /// tok-19: also one that only a lenient reader would take for a JWT.
    #[tokio::test]
    async fn what_others_may_read_as_a_jwt_is_not_asked_about() {
        let asking = Asking::start().await;
        asking.says(|_| {});
        let good = asking.provider.token().sign();
        let (header, rest) = good.split_once('.').unwrap();
        for token in [
            format!("{good}."),
            format!("{good}.."),
            format!("{header}=.{rest}"),
            format!("{}.{rest}", STANDARD.encode(" {\"alg\":\"ES256\"} ")),
            format!("{}.{rest}", STANDARD.encode("\n\t{\"alg\":\"ES256\"}")),
            format!("{header}."),
        ] {
            assert!(
                matches!(
                    asking.shows(&token).await,
                    Err(AuthError::Rejected(_) | AuthError::Malformed(_))
                ),
                "{token}"
            );
        }
        assert_eq!(asking.provider.asked(ASK), 0);
    }

    /// tok-111: never beyond `exp`, leeway or not: the issuer's own clock says when it is over.
    #[tokio::test]
    async fn a_yes_is_not_remembered_beyond_exp() {
        let asking = Asking::start().await;
        asking.says(|answer| answer["exp"] = json!(NOW + 10));
        assert!(asking.shows("t").await.is_ok());
        asking.now.store(NOW + 10, Ordering::Relaxed);
        asking.says(|answer| answer["active"] = json!(false));
        assert_eq!(
            asking.shows("t").await,
            Err(AuthError::Rejected(Fault::Inactive))
        );
    }

    /// tok-108: active is also what may only be exchanged for an access token, or needs a proof.
    #[tokio::test]
    async fn an_active_token_of_another_kind_is_refused() {
        let asking = Asking::start().await;
        for (number, (name, value, fault)) in [
            ("token_use", "refresh_token", Some(Fault::Type)),
            ("typ", "Refresh", Some(Fault::Type)),
            ("token_type", "refresh_token", Some(Fault::Type)),
            ("token_type", "DPoP", Some(Fault::Binding)),
            ("token_use", "access_token", None),
            ("token_type", "bearer", None),
        ]
        .into_iter()
        .enumerate()
        {
            asking.says(|answer| answer[name] = json!(value));
            let answer = asking.shows(&format!("t{number}")).await;
            match fault {
                Some(fault) => {
                    assert_eq!(answer, Err(AuthError::Rejected(fault)), "{name} {value}")
                }
                None => assert!(answer.is_ok(), "{name} {value}"),
            }
        }
    }

    /// For the record, the second refusal has the reason of the first.
    #[tokio::test]
    async fn a_remembered_no_keeps_its_reason() {
        let asking = Asking::start().await;
        asking.says(|answer| answer["aud"] = json!("https://other.example"));
        for _ in 0..2 {
            assert_eq!(
                asking.shows("t").await,
                Err(AuthError::Rejected(Fault::Audience))
            );
        }
        assert_eq!(asking.provider.asked(ASK), 1);
    }
}

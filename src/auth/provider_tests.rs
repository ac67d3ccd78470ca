//! Keys over the wire: a provider that answers, lies, is slow, moves its keys and goes away.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

use super::{
    AuthError, Authenticator, Fault, Identity,
    tests::{Keys, NOW, ask, claims, header, issuer, nobody, with},
};
use crate::{
    config::{Auth, Issuer, KeySource},
    time::Clock,
};

/// What the provider answers at `/jwks`.
#[derive(Clone)]
enum Answer {
    Keys(Value),
    Status(u16),
    Body { kind: &'static str, text: String },
    Redirect(String),
    /// Accepts, and never answers.
    Nothing,
}

struct Provider {
    url: String,
    answer: Arc<Mutex<Answer>>,
    discoveries: Arc<AtomicUsize>,
    fetches: Arc<AtomicUsize>,
    issuer: Arc<Mutex<String>>,
    max_age: Arc<Mutex<Option<u64>>>,
    _serving: JoinSet<()>,
}

impl Provider {
    async fn start(keys: &Keys) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut provider = Self {
            answer: Arc::new(Mutex::new(Answer::Keys(keys.all()))),
            discoveries: Arc::default(),
            fetches: Arc::default(),
            issuer: Arc::new(Mutex::new(url.clone())),
            max_age: Arc::default(),
            url: url.clone(),
            _serving: JoinSet::new(),
        };
        let (answer, discoveries, fetches) = (provider.answer.clone(), provider.discoveries.clone(), provider.fetches.clone());
        let (named, max_age) = (provider.issuer.clone(), provider.max_age.clone());
        provider._serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, discoveries, fetches) = (answer.clone(), discoveries.clone(), fetches.clone());
                let (named, max_age, url) = (named.clone(), max_age.clone(), url.clone());
                connections.spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let discovery = request.uri().path() == "/.well-known/openid-configuration";
                        let (mut status, mut kind, mut location) = (200, "application/json", None);
                        let mut silent = false;
                        let text = if discovery {
                            discoveries.fetch_add(1, Ordering::SeqCst);
                            json!({ "issuer": *named.lock().unwrap(), "jwks_uri": format!("{url}/jwks") }).to_string()
                        } else {
                            fetches.fetch_add(1, Ordering::SeqCst);
                            match answer.lock().unwrap().clone() {
                                Answer::Keys(keys) => keys.to_string(),
                                Answer::Status(other) => {
                                    status = other;
                                    String::new()
                                }
                                Answer::Body { kind: other, text } => {
                                    kind = other;
                                    text
                                }
                                Answer::Redirect(to) => {
                                    status = 302;
                                    location = Some(to);
                                    String::new()
                                }
                                Answer::Nothing => {
                                    silent = true;
                                    String::new()
                                }
                            }
                        };
                        let mut response = Response::builder().status(status).header(header::CONTENT_TYPE, kind);
                        if let Some(to) = location {
                            response = response.header(header::LOCATION, to);
                        }
                        if let Some(seconds) = *max_age.lock().unwrap() {
                            response = response.header(header::CACHE_CONTROL, format!("public, max-age={seconds}"));
                        }
                        let response = response.body(Full::new(Bytes::from(text))).unwrap();
                        async move {
                            if silent {
                                std::future::pending::<()>().await;
                            }
                            Ok::<_, Infallible>(response)
                        }
                    });
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        provider
    }

    fn answer(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    fn counts(&self) -> (usize, usize) {
        (self.discoveries.load(Ordering::SeqCst), self.fetches.load(Ordering::SeqCst))
    }

    fn authenticator(&self) -> Authenticator {
        let issuer = Issuer { issuer: self.url.clone(), ..issuer(KeySource::Discovery) };
        Authenticator::build(&Auth::Oidc(vec![issuer]), Clock::new(|| NOW), &nobody()).unwrap()
    }

    fn token(&self, keys: &Keys, changes: &Value) -> String {
        self.token_of(keys, "es256", changes)
    }

    fn token_of(&self, keys: &Keys, kid: &str, changes: &Value) -> String {
        let claims = with(with(claims(), &json!({ "iss": self.url })), changes);
        format!("Bearer {}", keys.token(&with(header(), &json!({ "kid": kid })), &claims))
    }
}

async fn shown(authenticator: &Authenticator, token: &str) -> Result<Identity, AuthError> {
    ask(authenticator, &[token], None).await
}

/// Moves the clock that keys age by, without letting it run on by itself.
async fn later(seconds: u64) {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

/// tok-103: a thousand first requests ask once.
#[tokio::test]
async fn a_thousand_first_requests_ask_the_provider_once() {
    let keys = Keys::generate();
    let provider = Provider::start(&keys).await;
    let authenticator = Arc::new(provider.authenticator());
    let mut requests = JoinSet::new();
    for number in 0..1000 {
        let token = provider.token(&keys, &json!({ "sub": format!("user{number}") }));
        let authenticator = authenticator.clone();
        requests.spawn(async move { shown(&authenticator, &token).await.is_ok() });
    }
    assert!(requests.join_all().await.into_iter().all(|accepted| accepted));
    assert_eq!(provider.counts(), (1, 1));
}

/// tok-92, tok-93: a flood of unknown names asks once, and good tokens go on working.
#[tokio::test]
async fn a_flood_of_unknown_key_names_asks_once_in_a_while() {
    let keys = Keys::generate();
    let provider = Provider::start(&keys).await;
    let authenticator = provider.authenticator();
    let good = provider.token(&keys, &json!({}));
    shown(&authenticator, &good).await.unwrap();
    let before = provider.counts().1;
    for round in 0..2 {
        for number in 0..500 {
            let unknown = provider.token_of(&keys, &format!("k{round}-{number}"), &json!({}));
            assert_eq!(shown(&authenticator, &unknown).await, Err(AuthError::Rejected(Fault::KeyUnknown)));
            let other = provider.token(&keys, &json!({ "jti": format!("{number}") }));
            assert!(shown(&authenticator, &other).await.is_ok());
        }
        assert_eq!(provider.counts().1 - before, round, "within the cool-down nobody is asked");
        later(31).await;
    }
}

/// tok-94, tok-95: a new key is taken with the first token, an old one goes when its set has aged.
#[tokio::test]
async fn keys_rotate_without_a_failed_request() {
    let (old, new) = (Keys::generate(), Keys::generate());
    let provider = Provider::start(&old).await;
    let authenticator = provider.authenticator();
    let with_old = provider.token(&old, &json!({}));
    shown(&authenticator, &with_old).await.unwrap();
    later(31).await;
    let both = json!({ "keys": [old.jwk("es256"), with(new.jwk("es256"), &json!({ "kid": "next" }))] });
    provider.answer(Answer::Keys(both));
    let with_new = provider.token_of(&new, "next", &json!({}));
    assert!(shown(&authenticator, &with_new).await.is_ok());
    assert!(shown(&authenticator, &with_old).await.is_ok());
    provider.answer(Answer::Keys(json!({ "keys": [with(new.jwk("es256"), &json!({ "kid": "next" }))] })));
    later(601).await;
    assert_eq!(shown(&authenticator, &with_old).await, Err(AuthError::Rejected(Fault::KeyUnknown)));
    assert!(shown(&authenticator, &with_new).await.is_ok());
}

/// tok-97, fault-26, inc-19: a provider that is down at first is waited for; nobody's token is called bad.
#[tokio::test]
async fn a_provider_that_is_down_at_first_is_no_verdict() {
    let keys = Keys::generate();
    let provider = Provider::start(&keys).await;
    provider.answer(Answer::Status(503));
    let authenticator = provider.authenticator();
    let token = provider.token(&keys, &json!({}));
    for _ in 0..3 {
        let answer = shown(&authenticator, &token).await;
        assert!(matches!(answer, Err(AuthError::IssuerDown { retry_after: 1..=5, .. })), "{answer:?}");
    }
    assert_eq!(provider.counts().1, 1, "asked once, not by every request");
    provider.answer(Answer::Keys(keys.all()));
    later(6).await;
    assert!(shown(&authenticator, &token).await.is_ok());
}

/// tok-96, tok-98, tok-99, tok-100, fault-27, fault-29: whatever comes instead of keys, those from before serve on, for an hour.
#[tokio::test]
async fn keys_from_before_serve_on_while_the_provider_fails() {
    let keys = Keys::generate();
    let elsewhere = Provider::start(&Keys::generate()).await;
    let many = json!({ "keys": (0..100_000).map(|n| json!({ "kty": "RSA", "kid": n })).collect::<Vec<_>>() });
    for failure in [
        Answer::Status(500),
        Answer::Status(404),
        Answer::Body { kind: "text/html", text: "<html>".to_owned() },
        Answer::Body { kind: "text/html", text: keys.all().to_string() },
        Answer::Body { kind: "application/json", text: "{\"keys\":[]}".to_owned() },
        Answer::Body { kind: "application/json", text: "{\"keys\":[{\"kty\":\"oct\",\"k\":\"AA\"}]}".to_owned() },
        Answer::Body { kind: "application/json", text: "{\"keys\":".to_owned() },
        Answer::Body { kind: "application/json", text: format!("{}{}", " ".repeat(600 << 10), keys.all()) },
        Answer::Keys(many),
        Answer::Redirect(format!("{}/jwks", elsewhere.url)),
        Answer::Redirect("http://169.254.169.254/".to_owned()),
    ] {
        let provider = Provider::start(&keys).await;
        let authenticator = provider.authenticator();
        let token = provider.token(&keys, &json!({}));
        shown(&authenticator, &token).await.unwrap();
        provider.answer(failure);
        later(700).await;
        let before = provider.counts().1;
        for number in 0..20 {
            let other = provider.token(&keys, &json!({ "jti": format!("{number}") }));
            assert!(shown(&authenticator, &other).await.is_ok());
        }
        assert_eq!(provider.counts().1, before + 1, "no stampede");
        later(3000).await;
        let answer = shown(&authenticator, &token).await;
        assert!(matches!(answer, Err(AuthError::IssuerDown { .. })), "{answer:?}");
        provider.answer(Answer::Keys(keys.all()));
        later(31).await;
        assert!(shown(&authenticator, &token).await.is_ok());
    }
    assert_eq!(elsewhere.counts(), (0, 0), "no redirect was followed");
}

/// tok-99, fault-28: a provider that never answers costs five seconds, once.
#[tokio::test]
async fn a_silent_provider_is_given_up() {
    let keys = Keys::generate();
    let provider = Provider::start(&keys).await;
    provider.answer(Answer::Nothing);
    let authenticator = provider.authenticator();
    let token = provider.token(&keys, &json!({}));
    let started = std::time::Instant::now();
    assert!(matches!(shown(&authenticator, &token).await, Err(AuthError::IssuerDown { .. })));
    assert!(started.elapsed() < Duration::from_secs(20), "the deadline is a deadline");
    assert!(matches!(shown(&authenticator, &token).await, Err(AuthError::IssuerDown { .. })));
    assert_eq!(provider.counts().1, 1);
}

/// tok-101: another issuer's document is not believed.
#[tokio::test]
async fn a_document_of_another_issuer_is_not_believed() {
    let keys = Keys::generate();
    let provider = Provider::start(&keys).await;
    let authenticator = provider.authenticator();
    let token = provider.token(&keys, &json!({}));
    for other in [format!("{}/", provider.url), "https://evil.example".to_owned()] {
        *provider.issuer.lock().unwrap() = other;
        assert!(matches!(shown(&authenticator, &token).await, Err(AuthError::IssuerDown { .. })));
        later(6).await;
    }
    assert_eq!(provider.counts().1, 0, "its keys were not asked for");
    provider.issuer.lock().unwrap().clone_from(&provider.url);
    assert!(shown(&authenticator, &token).await.is_ok());
}

/// tok-105: what a provider says of caching is believed within bounds.
#[tokio::test]
async fn cache_headers_are_believed_within_bounds() {
    for (said, fresh, old) in [(31_536_000, 590, 620), (0, 50, 70)] {
        let keys = Keys::generate();
        let provider = Provider::start(&keys).await;
        *provider.max_age.lock().unwrap() = Some(said);
        let authenticator = provider.authenticator();
        shown(&authenticator, &provider.token(&keys, &json!({}))).await.unwrap();
        // Fresh: used at once, whatever a refresh behind it may do; old: asked for first.
        provider.answer(Answer::Keys(json!({ "keys": [Keys::generate().jwk("es256")] })));
        later(fresh).await;
        assert!(shown(&authenticator, &provider.token(&keys, &json!({ "jti": "2" }))).await.is_ok(), "{said}");
        let provider = Provider::start(&keys).await;
        *provider.max_age.lock().unwrap() = Some(said);
        let authenticator = provider.authenticator();
        shown(&authenticator, &provider.token(&keys, &json!({}))).await.unwrap();
        provider.answer(Answer::Keys(json!({ "keys": [Keys::generate().jwk("es256")] })));
        later(old).await;
        assert!(shown(&authenticator, &provider.token(&keys, &json!({ "jti": "2" }))).await.is_err(), "{said}");
    }
}

/// A token that was verified once is not verified again, until its time or its keys end.
#[tokio::test]
async fn a_verified_token_is_remembered_until_its_keys_change() {
    let keys = Keys::generate();
    let provider = Provider::start(&keys).await;
    let authenticator = provider.authenticator();
    let token = provider.token(&keys, &json!({}));
    let first = shown(&authenticator, &token).await.unwrap();
    assert_eq!(shown(&authenticator, &token).await.unwrap(), first);
    // Another token of the same bytes but one is another token.
    let mut changed = token.clone();
    let last = changed.pop().unwrap();
    changed.push(if last == 'A' { 'Q' } else { 'A' });
    assert!(shown(&authenticator, &changed).await.is_err());
    provider.answer(Answer::Keys(json!({ "keys": [Keys::generate().jwk("es256")] })));
    later(601).await;
    assert_eq!(shown(&authenticator, &token).await, Err(AuthError::Rejected(Fault::Signature)));
}

//! What the tests of this room share: keys that really sign, tokens, an
//! authenticator on a key file, and a provider on loopback that can misbehave.

#[path = "../../tests/it/signer.rs"]
mod signer;

use std::{
    collections::HashMap,
    io::Write as _,
    net::SocketAddr,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    sync::Notify,
    task::JoinSet,
};

pub(super) use self::signer::{Signer, base64url, compact};
pub(super) use super::{AuthError, Fault};
use super::{
    Authenticator, Identity, IntrospectionError, Notice, Notices, Presented, Surroundings,
    challenge,
};
use crate::{
    audit::Reason,
    config::{Auth, Dpop, Issuer, KeySource, Resource, TokenKind},
    http::Refusal,
    systemd::Credentials,
    time::Clock,
};

/// What the tests' clocks say.
pub(super) const NOW: u64 = 1_800_000_000;
pub(super) const ISSUER: &str = "https://sso.example.com/realms/corp";
pub(super) const AUDIENCE: &str = "https://mcp.example.com/github";
pub(super) const LEEWAY: u64 = 30;
pub(super) const ALGORITHMS: [&str; 9] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA",
];

/// The keys that the tests' issuer publishes, one an algorithm family.
pub(super) struct Keys {
    pub(super) es256: Signer,
    pub(super) es384: Signer,
    pub(super) rs256: Signer,
    pub(super) ps256: Signer,
    pub(super) ed25519: Signer,
    /// Not published.
    pub(super) stranger: Signer,
}

pub(super) static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    es256: Signer::new("es", "ES256"),
    es384: Signer::new("es384", "ES384"),
    rs256: Signer::new("rs", "RS256"),
    ps256: Signer::new("ps", "PS256"),
    ed25519: Signer::new("ed", "EdDSA"),
    stranger: Signer::new("es", "ES256"),
});

impl Keys {
    pub(super) fn published(&self) -> [&Signer; 5] {
        [
            &self.es256,
            &self.es384,
            &self.rs256,
            &self.ps256,
            &self.ed25519,
        ]
    }
}

/// A key set of these.
pub(super) fn set<'a>(signers: impl IntoIterator<Item = &'a Signer>) -> Value {
    json!({"keys": signers.into_iter().map(Signer::jwk).collect::<Vec<_>>()})
}

/// A token in the making: a good one, until a test spoils it.
#[derive(Clone)]
pub(super) struct Token {
    header: Value,
    claims: Value,
}

pub(super) fn token() -> Token {
    Token {
        header: json!({"typ": "at+jwt"}),
        claims: json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "client_id": "editor",
            "iat": NOW, "exp": NOW + 300, "jti": "1", "scope": "tools:read tools:call", "groups": ["staff"],
        }),
    }
}

impl Token {
    pub(super) fn header(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.header[name] = value.into();
        self
    }

    pub(super) fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.claims[name] = value.into();
        self
    }

    pub(super) fn without(mut self, name: &str) -> Self {
        self.header.as_object_mut().unwrap().remove(name);
        self.claims.as_object_mut().unwrap().remove(name);
        self
    }

    /// By the key of ES256, as most tests do not care.
    pub(super) fn sign(self) -> String {
        self.signed_by(&KEYS.es256)
    }

    /// Names the key and its algorithm, unless the test already has.
    pub(super) fn signed_by(mut self, signer: &Signer) -> String {
        for (name, value) in [("alg", signer.alg), ("kid", signer.kid)] {
            if self.header.get(name).is_none() {
                self.header[name] = json!(value);
            }
        }
        let alg = self.header["alg"].as_str().unwrap_or_default().to_owned();
        compact(
            self.header.to_string(),
            self.claims.to_string(),
            |message| signer.sign(&alg, message),
        )
    }

    pub(super) fn claims_text(&self) -> String {
        self.claims.to_string()
    }
}

/// A token with this header text and these claims' text, signed by the key of ES256.
pub(super) fn spelled(header: &str, payload: impl AsRef<[u8]>) -> String {
    KEYS.es256.token(header, payload)
}

pub(super) const HEADER: &str = r#"{"alg":"ES256","kid":"es","typ":"at+jwt"}"#;

pub(super) fn bearer(token: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(
        header::AUTHORIZATION,
        HeaderValue::try_from(format!("Bearer {token}")).unwrap(),
    );
    headers
}

/// The configuration of the tests' issuer.
pub(super) fn issuer(keys: KeySource) -> Issuer {
    Issuer {
        issuer: ISSUER.to_owned(),
        audience: vec![AUDIENCE.to_owned()],
        keys,
        single_audience: false,
        ca_file: None,
        token_file: None,
        allow_addresses: Vec::new(),
        algorithms: ALGORITHMS.map(str::to_owned).to_vec(),
        leeway: Duration::from_secs(LEEWAY),
        max_lifetime: Duration::from_secs(24 * 60 * 60),
        token: TokenKind::Access,
        legacy_typ: false,
        ignores_key_urls: false,
        clients: Vec::new(),
        subjects: Vec::new(),
        revoked: Vec::new(),
        issued_after: None,
        required_claims: Vec::new(),
        scopes: Vec::new(),
        implied_scopes: Vec::new(),
        kubernetes: None,
        introspection: None,
        dpop: Dpop::Off,
        dpop_nonce: true,
    }
}

/// The resource of the tests' server.
pub(super) fn resource() -> Resource {
    Resource {
        url: AUDIENCE.to_owned(),
        origin: "https://mcp.example.com".to_owned(),
        authority: "mcp.example.com".to_owned(),
        path: "/github".to_owned(),
    }
}

/// An authenticator of the tests' resource, without credentials.
pub(super) fn build(
    auth: &Auth,
    clock: Clock,
    notices: &Notices,
) -> Result<Authenticator, IntrospectionError> {
    let around = Surroundings {
        resource: &resource(),
        clock,
        notices,
        credentials: &Credentials::default(),
    };
    Authenticator::build(auth, around)
}

/// What a POST with these headers presents.
pub(super) fn post<'a>(headers: &'a HeaderMap, query: Option<&'a str>) -> Presented<'a> {
    Presented {
        method: &Method::POST,
        headers,
        query,
        local: None,
    }
}

/// An authenticator whose issuer's keys are in a file, and whose clock the test owns.
pub(super) struct Bench {
    pub(super) authenticator: Authenticator,
    now: Arc<AtomicU64>,
    runtime: Runtime,
    _file: NamedTempFile,
}

pub(super) fn bench() -> Bench {
    bench_with(|_| {})
}

pub(super) fn bench_with(change: impl FnOnce(&mut Issuer)) -> Bench {
    bench_of(&set(KEYS.published()), change)
}

pub(super) fn bench_of(keys: &Value, change: impl FnOnce(&mut Issuer)) -> Bench {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(keys.to_string().as_bytes()).unwrap();
    let mut issuer = issuer(KeySource::File(file.path().to_owned()));
    change(&mut issuer);
    let (now, clock) = clock();
    let authenticator = build(&Auth::Oidc(vec![issuer]), clock, &unheard()).unwrap();
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    Bench {
        authenticator,
        now,
        runtime,
        _file: file,
    }
}

impl Bench {
    pub(super) fn set_time(&self, now: u64) {
        self.now.store(now, Ordering::Relaxed);
    }

    pub(super) fn ask(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
    ) -> Result<Identity, AuthError> {
        self.present(&post(headers, query))
    }

    pub(super) fn present(&self, presented: &Presented<'_>) -> Result<Identity, AuthError> {
        self.runtime
            .block_on(self.authenticator.authenticate(presented))
            .map(Arc::unwrap_or_clone)
    }

    #[track_caller]
    pub(super) fn accepts(&self, token: &str) -> Identity {
        self.ask(&bearer(token), None)
            .unwrap_or_else(|error| panic!("refused: {error:?}"))
    }

    /// Refused for this, and what is answered and written down about it. An
    /// authenticator has no way to a child: that none is started, tests/it shows.
    #[track_caller]
    pub(super) fn refuses(&self, token: &str, fault: Fault) {
        let error = self.ask(&bearer(token), None).unwrap_err();
        let shown = &token[..token.len().min(300)];
        assert_eq!(error, AuthError::Rejected(fault), "{shown}");
        self.is_told(error);
    }

    /// 401 with the one challenge and the one body, whatever the fault was.
    #[track_caller]
    fn is_told(&self, error: AuthError) {
        let reason = Reason::from(&error);
        assert!(reason.as_str().starts_with("token-"), "{reason:?}");
        let auth = Auth::Oidc(vec![issuer(KeySource::Discovery)]);
        let challenge = challenge(&error, &auth, &resource()).unwrap();
        assert_eq!(
            challenge,
            "Bearer error=\"invalid_token\", error_description=\"The token is not valid here\", \
         resource_metadata=\"https://mcp.example.com/.well-known/oauth-protected-resource/github\""
        );
        let answer = Refusal::Auth(error).response(None, None);
        assert_eq!(answer.status(), 401);
        assert_eq!(answer.headers()[header::CACHE_CONTROL], "no-store");
        let body = self.runtime.block_on(answer.into_body().collect()).unwrap();
        let body: Value = serde_json::from_slice(&body.to_bytes()).unwrap();
        assert_eq!(
            body,
            json!({"jsonrpc": "2.0", "error": {
                "code": -32603, "message": "the token is not valid here", "data": {"reason": "token-invalid"},
            }})
        );
    }
}

pub(super) fn clock() -> (Arc<AtomicU64>, Clock) {
    let now = Arc::new(AtomicU64::new(NOW));
    let read = now.clone();
    (now, Clock::new(move || read.load(Ordering::Relaxed)))
}

pub(super) fn unheard() -> Notices {
    Arc::new(|_: Notice| {})
}

/// What a provider does when a path is asked for.
#[derive(Clone)]
pub(super) enum Reply {
    Json(Value),
    /// Head and body as they go over the wire.
    Raw(Vec<u8>),
    /// Says nothing, ever.
    Silence,
    /// A body byte a second.
    Drip,
    /// This document, once the test says so.
    Held(Value, Arc<Notify>),
}

/// An identity provider on loopback that does as it is told, and counts.
pub(super) struct Provider {
    pub(super) address: SocketAddr,
    replies: Arc<Mutex<HashMap<String, Reply>>>,
    asked: Arc<Mutex<HashMap<String, usize>>>,
    connections: Arc<AtomicUsize>,
    heard: Heard,
    _serving: JoinSet<()>,
}

/// Every request as it came, body and all.
type Heard = Arc<Mutex<Vec<String>>>;

pub(super) const DISCOVERY: &str = "/.well-known/openid-configuration";
pub(super) const JWKS: &str = "/jwks";

impl Provider {
    /// One that works and has these keys.
    pub(super) async fn with(keys: &[&Signer]) -> Self {
        let provider = Self::start().await;
        provider.discovers(&provider.issuer(), &provider.url(JWKS));
        provider.set(JWKS, Reply::Json(set(keys.iter().copied())));
        provider
    }

    /// One that answers 404 to everything.
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (replies, asked, connections, heard) = (
            Arc::default(),
            Arc::default(),
            Arc::new(AtomicUsize::new(0)),
            Heard::default(),
        );
        let mut serving = JoinSet::new();
        serving.spawn(serve(
            listener,
            Arc::clone(&replies),
            Arc::clone(&asked),
            Arc::clone(&connections),
            Arc::clone(&heard),
        ));
        Self {
            address,
            replies,
            asked,
            connections,
            heard,
            _serving: serving,
        }
    }

    pub(super) fn issuer(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(super) fn set(&self, path: &str, reply: Reply) {
        self.replies.lock().unwrap().insert(path.to_owned(), reply);
    }

    pub(super) fn discovers(&self, issuer: &str, jwks_uri: &str) {
        self.set(
            DISCOVERY,
            Reply::Json(json!({"issuer": issuer, "jwks_uri": jwks_uri})),
        );
    }

    /// How often a path was asked for.
    pub(super) fn asked(&self, path: &str) -> usize {
        self.asked.lock().unwrap().get(path).copied().unwrap_or(0)
    }

    /// Every request so far.
    pub(super) fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub(super) fn token(&self) -> Token {
        token().claim("iss", self.issuer())
    }

    pub(super) fn authenticator(&self) -> Arc<Authenticator> {
        self.authenticator_that_tells(&unheard())
    }

    pub(super) fn authenticator_that_tells(&self, notices: &Notices) -> Arc<Authenticator> {
        let issuer = Issuer {
            issuer: self.issuer(),
            ..issuer(KeySource::Discovery)
        };
        // The tests' tokens live for minutes, and the tests for simulated hours.
        let clock = Clock::new(|| NOW);
        Arc::new(build(&Auth::Oidc(vec![issuer]), clock, notices).unwrap())
    }
}

pub(super) fn raw(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Reply {
    let body = body.as_ref();
    let mut text = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    text.extend_from_slice(body);
    Reply::Raw(text)
}

async fn serve(
    listener: TcpListener,
    replies: Arc<Mutex<HashMap<String, Reply>>>,
    asked: Arc<Mutex<HashMap<String, usize>>>,
    connections: Arc<AtomicUsize>,
    heard: Heard,
) {
    let mut open = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.fetch_add(1, Ordering::Relaxed);
        open.spawn(answer(
            stream,
            Arc::clone(&replies),
            Arc::clone(&asked),
            Arc::clone(&heard),
        ));
    }
}

async fn answer(
    mut stream: TcpStream,
    replies: Arc<Mutex<HashMap<String, Reply>>>,
    asked: Arc<Mutex<HashMap<String, usize>>>,
    heard: Heard,
) {
    let mut request = Vec::new();
    while !is_whole(&request) {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let text = String::from_utf8_lossy(&request).into_owned();
    heard.lock().unwrap().push(text.clone());
    let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
    *asked.lock().unwrap().entry(path.clone()).or_default() += 1;
    let reply = replies.lock().unwrap().get(&path).cloned();
    let json = |value: &Value| {
        raw(
            "200 OK",
            "Content-Type: application/json\r\n",
            value.to_string(),
        )
    };
    let reply = match reply {
        Some(Reply::Json(value)) => json(&value),
        Some(Reply::Held(value, released)) => {
            released.notified().await;
            json(&value)
        }
        Some(other) => other,
        None => raw("404 Not Found", "", ""),
    };
    match reply {
        Reply::Raw(text) => drop(stream.write_all(&text).await),
        Reply::Drip => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n").await;
            while stream.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        Reply::Silence | Reply::Json(_) | Reply::Held(..) => std::future::pending().await,
    }
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

/// Lets time pass at once. Between calls the clock runs: a paused one would jump
/// over deadlines while bytes are on their way.
pub(super) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

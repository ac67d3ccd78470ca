//! An authenticator whose issuer's keys are in a file, and what a token must be answered.

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::{HeaderMap, Method, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use tokio::runtime::{Builder, Runtime};

use super::{ALGORITHMS, AUDIENCE, ISSUER, KEYS, LEEWAY, NOW, bearer, set};
use crate::{
    audit::Reason,
    auth::{
        AuthError, Authenticator, Fault, Identity, IntrospectionError, Notice, Notices, Presented,
        Surroundings, challenge,
    },
    config::{Auth, Dpop, Issuer, KeySource, Resource, TokenKind},
    http::Refusal,
    systemd::Credentials,
    time::Clock,
};

/// The configuration of the tests' issuer.
pub(in crate::auth) fn issuer(keys: KeySource) -> Issuer {
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
pub(in crate::auth) fn resource() -> Resource {
    Resource {
        url: AUDIENCE.to_owned(),
        origin: "https://mcp.example.com".to_owned(),
        authority: "mcp.example.com".to_owned(),
        path: "/github".to_owned(),
    }
}

/// An authenticator of the tests' resource, without credentials.
pub(in crate::auth) fn build(
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
pub(in crate::auth) fn post<'a>(headers: &'a HeaderMap, query: Option<&'a str>) -> Presented<'a> {
    Presented {
        method: &Method::POST,
        headers,
        query,
        local: None,
    }
}

/// An authenticator whose issuer's keys are in a file, and whose clock the test owns.
pub(in crate::auth) struct Bench {
    pub(in crate::auth) authenticator: Authenticator,
    now: Arc<AtomicU64>,
    runtime: Runtime,
    _file: NamedTempFile,
}

pub(in crate::auth) fn bench() -> Bench {
    bench_with(|_| {})
}

pub(in crate::auth) fn bench_with(change: impl FnOnce(&mut Issuer)) -> Bench {
    bench_of(&set(KEYS.published()), change)
}

pub(in crate::auth) fn bench_of(keys: &Value, change: impl FnOnce(&mut Issuer)) -> Bench {
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
    pub(in crate::auth) fn set_time(&self, now: u64) {
        self.now.store(now, Ordering::Relaxed);
    }

    pub(in crate::auth) fn ask(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
    ) -> Result<Identity, AuthError> {
        self.present(&post(headers, query))
    }

    pub(in crate::auth) fn present(
        &self,
        presented: &Presented<'_>,
    ) -> Result<Identity, AuthError> {
        self.runtime
            .block_on(self.authenticator.authenticate(presented))
            .map(Arc::unwrap_or_clone)
    }

    #[track_caller]
    pub(in crate::auth) fn accepts(&self, token: &str) -> Identity {
        self.ask(&bearer(token), None)
            .unwrap_or_else(|error| panic!("refused: {error:?}"))
    }

    /// Refused for this, and what is answered and written down about it. An
    /// authenticator has no way to a child: that none is started, tests/it shows.
    #[track_caller]
    pub(in crate::auth) fn refuses(&self, token: &str, fault: Fault) {
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

pub(in crate::auth) fn clock() -> (Arc<AtomicU64>, Clock) {
    let now = Arc::new(AtomicU64::new(NOW));
    let read = now.clone();
    (now, Clock::new(move || read.load(Ordering::Relaxed)))
}

pub(in crate::auth) fn unheard() -> Notices {
    Arc::new(|_: Notice| {})
}

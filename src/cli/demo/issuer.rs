//! The demo's own identity provider: a key that nobody else has, for as long as
//! the process lives. Nothing that serves can reach it; tests use it too.

use std::{convert::Infallible, net::TcpListener, sync::Arc, time::SystemTime};

use anyhow::{Context as _, Result, anyhow};
use aws_lc_rs::{
    rand::{self, SystemRandom},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// A throw-away issuer on loopback. It ends when this is dropped.
pub struct DemoIssuer {
    issuer: String,
    key: EcdsaKeyPair,
    _serving: JoinSet<()>,
}

impl DemoIssuer {
    /// Makes a key and serves its public half on `listener`, within the running runtime.
    pub fn start(listener: TcpListener) -> Result<Self> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
            .map_err(|_| anyhow!("making a key"))?;
        let issuer = format!("http://{}", listener.local_addr()?);
        listener.set_nonblocking(true)?;
        let listener =
            tokio::net::TcpListener::from_std(listener).context("serving the demo's issuer")?;
        let documents = Arc::new(documents(&issuer, key.public_key().as_ref()));
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, documents));
        Ok(Self {
            issuer,
            key,
            _serving: serving,
        })
    }

    /// Its issuer identifier.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// An access token (RFC 9068) for one hour.
    pub fn token(&self, subject: &str, audience: &str, groups: &[&str]) -> Result<String> {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)?
            .as_secs();
        self.sign(&json!({
            "iss": self.issuer, "sub": subject, "aud": audience, "client_id": "thv-demo",
            "iat": now, "exp": now + LIFETIME, "jti": id()?, "groups": groups,
        }))
    }

    /// A token with just these claims.
    pub fn sign(&self, claims: &Value) -> Result<String> {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = part(&json!({ "alg": "ES256", "typ": "at+jwt", "kid": KID }));
        let signed = format!("{header}.{}", part(claims));
        let signature = self
            .key
            .sign(&SystemRandom::new(), signed.as_bytes())
            .map_err(|_| anyhow!("signing"))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// What is served: each path and its document.
fn documents(issuer: &str, public_key: &[u8]) -> [(&'static str, String); 2] {
    // An uncompressed point: 4, then x and y (SEC 1 §2.3.3).
    let coordinate = |at: usize| URL_SAFE_NO_PAD.encode(&public_key[at..at + 32]);
    let keys = json!({ "keys": [{
        "kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": KID, "x": coordinate(1), "y": coordinate(33),
    }] });
    let discovery = json!({ "issuer": issuer, "jwks_uri": format!("{issuer}/jwks") });
    [
        ("/.well-known/openid-configuration", discovery.to_string()),
        ("/jwks", keys.to_string()),
    ]
}

async fn serve(listener: tokio::net::TcpListener, documents: Arc<[(&'static str, String); 2]>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let documents = documents.clone();
        connections.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let found = documents
                    .iter()
                    .find(|(path, _)| *path == request.uri().path());
                let status = if found.is_some() {
                    StatusCode::OK
                } else {
                    StatusCode::NOT_FOUND
                };
                let text = found.map(|(_, text)| text.clone()).unwrap_or_default();
                let mut response = Response::new(Full::new(Bytes::from(text)));
                *response.status_mut() = status;
                let json = header::HeaderValue::from_static("application/json");
                response.headers_mut().insert(header::CONTENT_TYPE, json);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut server = http1::Builder::new();
            let _ = server
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

fn id() -> Result<String> {
    let mut random = [0; 16];
    rand::fill(&mut random).map_err(|_| anyhow!("no random bytes"))?;
    Ok(URL_SAFE_NO_PAD.encode(random))
}

const KID: &str = "demo";
/// Seconds.
const LIFETIME: u64 = 3600;

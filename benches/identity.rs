//! What it costs to say who calls: a token that was never seen against the bare
//! verification of its signature, and one that was seen a moment ago.
//!
//! Ratios in one run are what counts; `cargo bench --bench identity` prints them at the end.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on has failed, and its figures are its output"
)]

#[path = "../tests/it/signer.rs"]
#[allow(dead_code, reason = "tests need more of it")]
mod signer;

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    VerificationAlgorithm,
};
use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::json;
use tempfile::TempDir;
use thv::{
    auth::{Authenticator, Notices, Presented, Surroundings},
    config::{self, Auth, OwnerRule, Resource, ServerName},
    systemd::Credentials,
    time::Clock,
};

use signer::{Signer, base64url};

/// A key, and what verifies what it signs without anything around.
struct Key {
    signer: Signer,
    bare: ParsedPublicKey,
}

fn keys() -> [Key; 3] {
    let verifies: [(_, &'static dyn VerificationAlgorithm); 3] = [
        ("RS256", &RSA_PKCS1_2048_8192_SHA256),
        ("ES256", &ECDSA_P256_SHA256_FIXED),
        ("EdDSA", &ED25519),
    ];
    verifies.map(|(alg, algorithm)| {
        let signer = Signer::new(alg, alg);
        let bare = ParsedPublicKey::new(algorithm, signer.public_bytes()).unwrap();
        Key { signer, bare }
    })
}

fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// What is signed, and the signature.
fn token(signer: &Signer, id: usize) -> (String, Vec<u8>) {
    let header = json!({ "typ": "at+jwt", "alg": signer.alg, "kid": signer.kid });
    let claims = json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": "7f2c9a10-1c1d-4c55-9d54-1b5a7d7a2a34",
        "client_id": "desktop-editor", "iat": now(), "exp": now() + 3600, "jti": id.to_string(),
        "scope": "openid profile mcp:read mcp:call", "groups": ["staff", "developers", "on-call"],
        "preferred_username": "alice", "email": "alice@example.com", "email_verified": true,
    });
    let signed = format!(
        "{}.{}",
        base64url(header.to_string()),
        base64url(claims.to_string())
    );
    let signature = signer.sign(signer.alg, signed.as_bytes());
    (signed, signature)
}

fn shown(token: &(String, Vec<u8>)) -> HeaderMap {
    let line = format!("Bearer {}.{}", token.0, base64url(&token.1));
    let line = HeaderValue::try_from(line).unwrap();
    HeaderMap::from_iter([(header::AUTHORIZATION, line)])
}

fn authenticator(keys: &[Key], root: &TempDir) -> Authenticator {
    let etc = root.path().join("etc/thv");
    std::fs::create_dir_all(etc.join("servers")).unwrap();
    let keys: Vec<_> = keys.iter().map(|key| key.signer.jwk()).collect();
    std::fs::write(etc.join("keys.json"), json!({ "keys": keys }).to_string()).unwrap();
    std::fs::write(
        etc.join("servers/bench.toml"),
        format!(
            "command = [\"/bin/true\"]\nresource = \"{AUDIENCE}\"\nauthz.allow = \"authenticated\"\n\
             [[auth.issuer]]\nissuer = \"{ISSUER}\"\naudience = \"{AUDIENCE}\"\n\
             jwks-file = \"/etc/thv/keys.json\"\n"
        ),
    )
    .unwrap();
    let server = ServerName::parse("bench").unwrap();
    let config = config::load(root.path(), &server, OwnerRule::RootOrCaller)
        .unwrap_or_else(|problems| panic!("{problems}"));
    build(&config.auth, &config.resource)
}

fn build(auth: &Auth, resource: &Resource) -> Authenticator {
    let notices: Notices = Arc::new(|_| {});
    let around = Surroundings {
        resource,
        clock: Clock::system(),
        notices: &notices,
        credentials: &Credentials::default(),
    };
    Authenticator::build(auth, around).unwrap()
}

fn post(headers: &HeaderMap) -> Presented<'_> {
    Presented {
        method: &Method::POST,
        headers,
        query: None,
        local: None,
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn identity(criterion: &mut Criterion) {
    let keys = keys();
    let root = tempfile::tempdir().unwrap();
    let authenticator = authenticator(&keys, &root);
    let runtime = runtime();
    for key in &keys {
        // More than are remembered: each comes back as one that was never seen.
        let tokens: Vec<_> = (0..2 * REMEMBERED)
            .map(|id| token(&key.signer, id))
            .collect();
        let headers: Vec<_> = tokens.iter().map(shown).collect();
        let mut group = criterion.benchmark_group(key.signer.alg);
        group.bench_function("bare", |bencher| {
            let mut next = tokens.iter().cycle();
            bencher.iter(|| {
                let (signed, signature) = next.next().unwrap();
                key.bare
                    .verify_sig(black_box(signed.as_bytes()), signature)
                    .unwrap();
            });
        });
        let mut next = 0;
        group.bench_function("first", |bencher| {
            bencher.iter_custom(|count| {
                runtime.block_on(async {
                    let started = Instant::now();
                    for _ in 0..count {
                        next = (next + 1) % headers.len();
                        let shown = post(black_box(&headers[next]));
                        authenticator.authenticate(&shown).await.unwrap();
                    }
                    started.elapsed()
                })
            });
        });
        group.bench_function("again", |bencher| {
            bencher.iter_custom(|count| {
                runtime.block_on(async {
                    let started = Instant::now();
                    for _ in 0..count {
                        let shown = post(black_box(&headers[0]));
                        authenticator.authenticate(&shown).await.unwrap();
                    }
                    started.elapsed()
                })
            });
        });
        group.finish();
        side_by_side(key, &tokens, &headers, &authenticator, &runtime);
    }
}

/// The ratio that is promised, measured turn by turn so that a noisy machine is noisy for both.
fn side_by_side(
    key: &Key,
    tokens: &[(String, Vec<u8>)],
    headers: &[HeaderMap],
    authenticator: &Authenticator,
    runtime: &tokio::runtime::Runtime,
) {
    let mut ratios: Vec<f64> = (0..TURNS)
        .map(|turn| {
            let range = (turn * BATCH % tokens.len())..(turn * BATCH % tokens.len() + BATCH);
            let started = Instant::now();
            for (signed, signature) in &tokens[range.clone()] {
                key.bare.verify_sig(signed.as_bytes(), signature).unwrap();
            }
            let bare = started.elapsed();
            let first = runtime.block_on(async {
                let started = Instant::now();
                for headers in &headers[range] {
                    authenticator.authenticate(&post(headers)).await.unwrap();
                }
                started.elapsed()
            });
            ratio(first, bare)
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    println!(
        "{}: a first validation costs {:.2} times the bare verification (median of {TURNS} turns)\n",
        key.signer.alg,
        ratios[TURNS / 2]
    );
}

fn ratio(first: Duration, bare: Duration) -> f64 {
    first.as_secs_f64() / bare.as_secs_f64()
}

const ISSUER: &str = "https://sso.example.com/realms/corp";
const AUDIENCE: &str = "https://mcp.example.com/github";
/// What the authenticator remembers at most.
const REMEMBERED: usize = 4096;
const BATCH: usize = 128;
const TURNS: usize = 64;

criterion_group!(benches, identity);
criterion_main!(benches);

//! What it costs to say who calls: a token that was never seen against the bare
//! verification of its signature, and one that was seen a moment ago.
//!
//! Ratios in one run are what counts; `cargo bench --bench identity` prints them at the end.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on has failed, and its figures are its output"
)]

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair,
        Ed25519KeyPair, KeyPair as _, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
        RSA_PKCS1_SHA256, RsaKeyPair, RsaPublicKeyComponents,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::{Value, json};
use tempfile::TempDir;
use thv::{
    auth::{Authenticator, Notices, Presented, Surroundings},
    config::{self, Auth, OwnerRule, Resource, ServerName},
    systemd::Credentials,
    time::Clock,
};

/// A key with what it signs, and what verifies it without anything around.
struct Signer {
    alg: &'static str,
    jwk: Value,
    bare: ParsedPublicKey,
    sign: Sign,
}

type Sign = Box<dyn Fn(&[u8]) -> Vec<u8>>;

fn signers() -> [Signer; 3] {
    let rsa = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let public = RsaPublicKeyComponents::<Vec<u8>>::from(rsa.public_key());
    let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let (x, y) = ec.public_key().as_ref()[1..].split_at(32);
    let ed = Ed25519KeyPair::generate().unwrap();
    [
        Signer {
            alg: "RS256",
            jwk: json!({ "kty": "RSA", "n": base64url(public.n), "e": base64url(public.e) }),
            bare: ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, rsa.public_key()).unwrap(),
            sign: Box::new(move |text| {
                let mut signature = vec![0; rsa.public_modulus_len()];
                rsa.sign(
                    &RSA_PKCS1_SHA256,
                    &SystemRandom::new(),
                    text,
                    &mut signature,
                )
                .unwrap();
                signature
            }),
        },
        Signer {
            alg: "ES256",
            jwk: json!({ "kty": "EC", "crv": "P-256", "x": base64url(x), "y": base64url(y) }),
            bare: ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, ec.public_key()).unwrap(),
            sign: Box::new(move |text| {
                ec.sign(&SystemRandom::new(), text)
                    .unwrap()
                    .as_ref()
                    .to_vec()
            }),
        },
        Signer {
            alg: "EdDSA",
            jwk: json!({ "kty": "OKP", "crv": "Ed25519", "x": base64url(ed.public_key()) }),
            bare: ParsedPublicKey::new(&ED25519, ed.public_key()).unwrap(),
            sign: Box::new(move |text| ed.sign(text).as_ref().to_vec()),
        },
    ]
}

fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// What is signed, and the signature.
fn token(signer: &Signer, id: usize) -> (String, Vec<u8>) {
    let header = json!({ "typ": "at+jwt", "alg": signer.alg, "kid": signer.alg });
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
    let signature = (signer.sign)(signed.as_bytes());
    (signed, signature)
}

fn shown(token: &(String, Vec<u8>)) -> HeaderMap {
    let line = format!("Bearer {}.{}", token.0, base64url(&token.1));
    let line = HeaderValue::try_from(line).unwrap();
    HeaderMap::from_iter([(header::AUTHORIZATION, line)])
}

fn authenticator(signers: &[Signer], root: &TempDir) -> Authenticator {
    let etc = root.path().join("etc/thv");
    std::fs::create_dir_all(etc.join("servers")).unwrap();
    let keys: Vec<_> = signers
        .iter()
        .map(|signer| {
            let mut jwk = signer.jwk.clone();
            (jwk["kid"], jwk["alg"]) = (json!(signer.alg), json!(signer.alg));
            jwk
        })
        .collect();
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
    let signers = signers();
    let root = tempfile::tempdir().unwrap();
    let authenticator = authenticator(&signers, &root);
    let runtime = runtime();
    for signer in &signers {
        // More than are remembered: each comes back as one that was never seen.
        let tokens: Vec<_> = (0..2 * REMEMBERED).map(|id| token(signer, id)).collect();
        let headers: Vec<_> = tokens.iter().map(shown).collect();
        let mut group = criterion.benchmark_group(signer.alg);
        group.bench_function("bare", |bencher| {
            let mut next = tokens.iter().cycle();
            bencher.iter(|| {
                let (signed, signature) = next.next().unwrap();
                signer
                    .bare
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
        side_by_side(signer, &tokens, &headers, &authenticator, &runtime);
    }
}

/// The ratio that is promised, measured turn by turn so that a noisy machine is noisy for both.
fn side_by_side(
    signer: &Signer,
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
                signer
                    .bare
                    .verify_sig(signed.as_bytes(), signature)
                    .unwrap();
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
        signer.alg,
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

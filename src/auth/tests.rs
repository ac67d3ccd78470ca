//! Tokens, case by case: what is accepted, what is refused, and why.

use std::{fs, sync::Arc, time::Duration};

use aws_lc_rs::{
    rand::SystemRandom,
    rsa,
    signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue, header};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{AuthError, Authenticator, Fault, Identity, Kind, Notices};
use crate::{
    config::{Auth, Issuer, KeySource},
    time::Clock,
};

pub(super) const NOW: u64 = 1_800_000_000;
pub(super) const ISSUER: &str = "https://sso.example.com/realms/corp";
pub(super) const OURS: &str = "https://mcp.example.com/github";

/// A provider's keys, one of each kind.
pub(super) struct Keys {
    pub(super) es256: EcdsaKeyPair,
    es384: EcdsaKeyPair,
    ed25519: Ed25519KeyPair,
    rsa: RsaKeyPair,
}

impl Keys {
    pub(super) fn generate() -> Self {
        Self {
            es256: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            es384: EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap(),
            ed25519: Ed25519KeyPair::generate().unwrap(),
            rsa: RsaKeyPair::generate(rsa::KeySize::Rsa2048).unwrap(),
        }
    }

    /// The public half of each, as JWKs without `alg`.
    pub(super) fn jwk(&self, kid: &str) -> Value {
        let point = |public: &[u8], size: usize| {
            (encode(&public[1..=size]), encode(&public[1 + size..]))
        };
        match kid {
            "es256" => {
                let (x, y) = point(self.es256.public_key().as_ref(), 32);
                json!({ "kty": "EC", "crv": "P-256", "kid": kid, "x": x, "y": y })
            }
            "es384" => {
                let (x, y) = point(self.es384.public_key().as_ref(), 48);
                json!({ "kty": "EC", "crv": "P-384", "kid": kid, "x": x, "y": y })
            }
            "ed25519" => json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": encode(self.ed25519.public_key().as_ref()) }),
            "rs256" | "ps256" => {
                let public = self.rsa.public_key();
                let n = encode(public.modulus().big_endian_without_leading_zero());
                let e = encode(public.exponent().big_endian_without_leading_zero());
                json!({ "kty": "RSA", "kid": kid, "alg": kid.to_uppercase(), "n": n, "e": e })
            }
            other => panic!("{other}"),
        }
    }

    pub(super) fn all(&self) -> Value {
        let keys = ["es256", "es384", "ed25519", "rs256", "ps256"].map(|kid| self.jwk(kid));
        json!({ "keys": keys })
    }

    /// Signs `header.payload` by the algorithm named.
    pub(super) fn sign(&self, algorithm: &str, signed: &str) -> String {
        let random = SystemRandom::new();
        let rsa = |padding: &'static dyn RsaEncoding| {
            let mut signature = vec![0; self.rsa.public_modulus_len()];
            self.rsa.sign(padding, &random, signed.as_bytes(), &mut signature).unwrap();
            signature
        };
        let signature = match algorithm {
            "ES256" => self.es256.sign(&random, signed.as_bytes()).unwrap().as_ref().to_vec(),
            "ES384" => self.es384.sign(&random, signed.as_bytes()).unwrap().as_ref().to_vec(),
            "EdDSA" | "Ed25519" => self.ed25519.sign(signed.as_bytes()).as_ref().to_vec(),
            "RS256" => rsa(&RSA_PKCS1_SHA256),
            "PS256" => rsa(&RSA_PSS_SHA256),
            _ => Vec::new(),
        };
        encode(&signature)
    }

    /// A token of this header and these claims, signed by what the header names.
    pub(super) fn token(&self, header: &Value, claims: &Value) -> String {
        self.raw(header["alg"].as_str().unwrap_or("none"), &header.to_string(), &claims.to_string())
    }

    /// A token of these texts, signed by `algorithm`.
    fn raw(&self, algorithm: &str, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", encode(header.as_bytes()), encode(claims.as_bytes()));
        let signature = self.sign(algorithm, &signed);
        format!("{signed}.{signature}")
    }
}

pub(super) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(super) fn header() -> Value {
    json!({ "alg": "ES256", "typ": "at+jwt", "kid": "es256" })
}

pub(super) fn claims() -> Value {
    json!({
        "iss": ISSUER, "sub": "alice", "aud": OURS, "client_id": "editor", "jti": "1", "iat": NOW - 10, "exp": NOW + 600,
        "scope": "tools:read tools:call", "groups": ["dev"],
    })
}

/// `base` with members set (or, for null, removed).
pub(super) fn with(mut base: Value, changes: &Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            base.as_object_mut().unwrap().remove(name);
        } else {
            base[name] = value.clone();
        }
    }
    base
}

pub(super) fn issuer(keys: KeySource) -> Issuer {
    Issuer {
        issuer: ISSUER.to_owned(),
        audience: vec![OURS.to_owned()],
        keys,
        ca_file: None,
        algorithms: ["RS256", "RS384", "PS256", "PS384", "ES256", "ES384", "EdDSA"].map(str::to_owned).to_vec(),
        leeway: Duration::from_secs(30),
        legacy_typ: false,
        clients: Vec::new(),
    }
}

pub(super) fn nobody() -> Notices {
    Arc::new(|_| {})
}

/// An authenticator whose keys are in a file.
struct Desk {
    keys: Keys,
    authenticator: Authenticator,
    _files: TempDir,
}

impl Desk {
    fn open() -> Self {
        Self::with(Keys::generate(), None, |_| {})
    }

    fn with(keys: Keys, jwks: Option<Value>, change: impl Fn(&mut Issuer)) -> Self {
        let files = tempfile::tempdir().unwrap();
        let path = files.path().join("keys.json");
        fs::write(&path, jwks.unwrap_or_else(|| keys.all()).to_string()).unwrap();
        let mut issuer = issuer(KeySource::File(path));
        change(&mut issuer);
        let auth = Auth::Oidc(vec![issuer]);
        let authenticator = Authenticator::build(&auth, Clock::new(|| NOW), &nobody()).unwrap();
        Self { keys, authenticator, _files: files }
    }

    async fn shown(&self, token: &str) -> Result<Identity, AuthError> {
        ask(&self.authenticator, &[&format!("Bearer {token}")], None).await
    }

    async fn accepts(&self, header: Value, claims: Value) -> Identity {
        let token = self.keys.token(&header, &claims);
        self.shown(&token).await.unwrap_or_else(|error| panic!("{error:?}: {header} {claims}"))
    }

    async fn refuses(&self, header: Value, claims: Value, fault: Fault) {
        let token = self.keys.token(&header, &claims);
        self.refuses_token(&token, fault, &format!("{header} {claims}")).await;
    }

    async fn refuses_token(&self, token: &str, fault: Fault, what: &str) {
        assert_eq!(self.shown(token).await, Err(AuthError::Rejected(fault)), "{what}");
    }

    /// Claims that are refused, beside those that are accepted.
    async fn refuses_claims(&self, fault: Fault, changes: &[Value]) {
        self.accepts(header(), claims()).await;
        for change in changes {
            self.refuses(header(), with(claims(), change), fault).await;
        }
    }
}

pub(super) async fn ask(authenticator: &Authenticator, lines: &[&str], query: Option<&str>) -> Result<Identity, AuthError> {
    let mut headers = HeaderMap::new();
    for line in lines {
        headers.append(header::AUTHORIZATION, HeaderValue::from_bytes(line.as_bytes()).unwrap());
    }
    authenticator.authenticate(&headers, query).await
}

/// tok-1, tok-2, tok-8, tok-10, tok-11, tok-16: no bearer token, no identity, whatever else is shown.
#[tokio::test]
async fn what_is_no_bearer_token_counts_as_none() {
    let desk = Desk::open();
    let token = desk.keys.token(&header(), &claims());
    for lines in [&[][..], &["Basic YTpi"], &["Negotiate x"], &["DPoP x"], &["token"]] {
        assert_eq!(ask(&desk.authenticator, lines, None).await, Err(AuthError::Missing), "{lines:?}");
    }
    let query = format!("access_token={token}");
    assert_eq!(ask(&desk.authenticator, &[], Some(&query)).await, Err(AuthError::Missing));
    let mut headers = HeaderMap::new();
    for name in ["cookie", "x-forwarded-access-token", "x-auth-request-access-token", "mcp-session-id", "x-user", "x_user", "x-forwarded-user"] {
        headers.insert(name, HeaderValue::from_str(&token).unwrap());
    }
    assert_eq!(desk.authenticator.authenticate(&headers, None).await, Err(AuthError::Missing));
    assert!(desk.shown(&token).await.is_ok());
}

/// inc-18, tok-3, tok-4, tok-6, tok-7, tok-9, tok-12, tok-13, tok-14, tok-18
#[tokio::test]
async fn a_malformed_header_is_the_requests_fault() {
    let desk = Desk::open();
    let token = desk.keys.token(&header(), &claims());
    let good = format!("Bearer {token}");
    let long = format!("Bearer {}", "a".repeat(16_385));
    for line in [
        "Bearer", "Bearer ", "Bearer a b", "Bearer {\"payload\":\"x\"}", "Bearer a,b", "Bearer a%20b", "Bearer \"a\"",
        "Bearer\ta", &format!("{good}, Bearer x"), &long, "Bearer =", "Bearer a=b", "Bearer \u{e9}",
    ] {
        let answer = ask(&desk.authenticator, &[line], None).await;
        assert!(matches!(answer, Err(AuthError::Malformed(_))), "{line}: {answer:?}");
    }
    let two = ask(&desk.authenticator, &[&good, &good], None).await;
    assert_eq!(two, Err(AuthError::Malformed(Fault::Ambiguous)));
    let both = ask(&desk.authenticator, &[&good], Some("a=1&access_token=x")).await;
    assert_eq!(both, Err(AuthError::Malformed(Fault::Ambiguous)));
    assert!(ask(&desk.authenticator, &[&good], Some("a=access_token")).await.is_ok());
}

/// tok-5
#[tokio::test]
async fn the_schemes_name_is_written_in_any_case() {
    let desk = Desk::open();
    let token = desk.keys.token(&header(), &claims());
    for scheme in ["Bearer", "bearer", "BEARER", "bEaReR"] {
        assert!(ask(&desk.authenticator, &[&format!("{scheme} {token}")], None).await.is_ok(), "{scheme}");
    }
}

/// tok-17, tok-19, tok-20, tok-21, tok-23
#[tokio::test]
async fn a_token_is_three_strict_parts() {
    let desk = Desk::open();
    let token = desk.keys.token(&header(), &claims());
    let [head, payload, signature]: [&str; 3] = token.split('.').collect::<Vec<_>>().try_into().unwrap();
    for other in [
        head.to_owned(),
        format!("{head}.{payload}"),
        format!("{token}.x"),
        format!("{token}.x.y"),
        format!("{head}..{signature}"),
        "..".to_owned(),
        format!("{head}=.{payload}.{signature}"),
        format!("{head}.{payload}=.{signature}"),
        format!("{head}.{payload}.{signature}="),
        format!("{head}.{payload}+.{signature}"),
        format!("{head}.{payload}/.{signature}"),
        format!("{head}.~{payload}.{signature}"),
    ] {
        assert!(desk.shown(&other).await.is_err(), "{other}");
    }
    // Bits left over: the last character stands for fewer bits than it has.
    let odd = format!("{}{}", encode(b"{\"alg\":\"ES256\"} ").trim_end_matches('A'), "B");
    desk.refuses_token(&format!("{odd}.{payload}.{signature}"), Fault::Form, "bits left over").await;
    assert!(desk.shown(&token).await.is_ok());
}

/// tok-22, tok-23, tok-24, tok-25, tok-26
#[tokio::test]
async fn header_and_payload_are_strict_json_objects() {
    let desk = Desk::open();
    let (head, payload) = (header().to_string(), claims().to_string());
    let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    let insert = |text: &str, member: &str| format!("{},{member}}}", &text[..text.len() - 1]);
    let many: String = (0..130).map(|n| format!("\"c{n}\":0,")).collect::<String>() + "\"z\":0";
    assert!(desk.shown(&desk.keys.raw("ES256", &head, &insert(&payload, &format!("\"x\":{}", deep(15))))).await.is_ok());
    for (head, payload) in [
        ("[]".to_owned(), payload.clone()),
        (head.clone(), "[]".to_owned()),
        (head.clone(), format!("[{payload}]")),
        (head.clone(), "\"x\"".to_owned()),
        (head.clone(), "1".to_owned()),
        (head.clone(), String::new()),
        (head.clone(), format!("{payload}x")),
        (head.clone(), format!("\u{feff}{payload}")),
        (head.clone(), insert(&payload, "\"x\":\"\\ud800\"")),
        (head.clone(), insert(&payload, "\"sub\":\"bob\"")),
        (head.clone(), insert(&payload, "\"s\\u0075b\":\"bob\"")),
        (head.clone(), insert(&payload, "\"x\":{\"a\":1,\"a\":2}")),
        (insert(&head, "\"alg\":\"none\""), payload.clone()),
        (insert(&head, "\"x\":{\"a\":1,\"\\u0061\":2}"), payload.clone()),
        (head.clone(), insert(&payload, &format!("\"x\":{}", deep(17)))),
        (head.clone(), insert(&payload, &many)),
        (head.clone(), insert(&payload, &format!("\"x\":\"{}\"", "y".repeat(12 << 10)))),
    ] {
        let token = desk.keys.raw("ES256", &head, &payload);
        assert!(matches!(desk.shown(&token).await, Err(AuthError::Rejected(Fault::Form) | AuthError::Malformed(_))), "{head} {payload}");
    }
    let signed = format!("{}.{}", encode(head.as_bytes()), encode(&[payload.as_bytes(), b"\xff"].concat()));
    desk.refuses_token(&format!("{signed}.{}", desk.keys.sign("ES256", &signed)), Fault::Form, "not UTF-8").await;
}

/// tok-27, tok-28, tok-30, tok-31
#[tokio::test]
async fn only_the_algorithms_of_the_issuer_are_taken() {
    let desk = Desk::open();
    for algorithm in ["none", "None", "NONE", "nOnE", "HS256", "HS384", "HS512", "hs256", " RS256", "ES512", "ES256K", "ES521", "ES224", ""] {
        desk.refuses(with(header(), &json!({ "alg": algorithm })), claims(), Fault::Algorithm).await;
    }
    for algorithm in [json!(1), json!(["ES256"]), json!({}), json!(true)] {
        desk.refuses(with(header(), &json!({ "alg": algorithm })), claims(), Fault::Algorithm).await;
    }
    desk.refuses(with(header(), &json!({ "alg": null })), claims(), Fault::Algorithm).await;
    let narrow = Desk::with(Keys::generate(), None, |issuer| issuer.algorithms = vec!["RS256".to_owned()]);
    narrow.refuses(header(), claims(), Fault::Algorithm).await;
    narrow.accepts(json!({ "alg": "RS256", "typ": "at+jwt", "kid": "rs256" }), claims()).await;
}

/// tok-29: a public key is no secret to sign with.
#[tokio::test]
async fn a_public_key_does_not_sign() {
    use aws_lc_rs::hmac;
    let desk = Desk::open();
    let signed = format!("{}.{}", encode(br#"{"alg":"HS256","typ":"at+jwt","kid":"rs256"}"#), encode(claims().to_string().as_bytes()));
    for secret in [desk.keys.jwk("rs256").to_string().into_bytes(), desk.keys.es256.public_key().as_ref().to_vec(), Vec::new(), b"secret".to_vec()] {
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), signed.as_bytes());
        desk.refuses_token(&format!("{signed}.{}", encode(tag.as_ref())), Fault::Algorithm, "HMAC").await;
    }
}

/// tok-32, tok-33, tok-34: one algorithm a key.
#[tokio::test]
async fn each_key_verifies_by_its_own_algorithm_alone() {
    let desk = Desk::open();
    for (algorithm, kid) in [("ES256", "es256"), ("ES384", "es384"), ("EdDSA", "ed25519"), ("Ed25519", "ed25519"), ("RS256", "rs256"), ("PS256", "ps256")] {
        desk.accepts(json!({ "alg": algorithm, "typ": "at+jwt", "kid": kid }), claims()).await;
    }
    for (algorithm, kid) in [("PS256", "rs256"), ("RS256", "ps256"), ("RS256", "es256"), ("ES256", "es384"), ("ES384", "es256"), ("EdDSA", "es256"), ("ES256", "ed25519"), ("ES256", "rs256")] {
        desk.refuses(json!({ "alg": algorithm, "typ": "at+jwt", "kid": kid }), claims(), Fault::Signature).await;
    }
}

/// tok-35, tok-36, tok-37, tok-42
#[tokio::test]
async fn a_signature_is_the_named_keys_to_the_last_bit() {
    let desk = Desk::open();
    let token = desk.keys.token(&header(), &claims());
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let bytes = URL_SAFE_NO_PAD.decode(signature).unwrap();
    let flipped: Vec<u8> = bytes.iter().enumerate().map(|(at, byte)| if at == 5 { byte ^ 1 } else { *byte }).collect();
    // The order of P-256: r or s of that size, or zero, is no signature (CVE-2022-21449).
    let order = URL_SAFE_NO_PAD.decode("_____wAAAAD__________7zm-q2nF56E87nKwvxjJVE").unwrap();
    let der = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, desk.keys.es256.to_pkcs8v1().unwrap().as_ref()).unwrap();
    let der = der.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    for other in [
        Vec::new(), vec![0; 64], vec![1; 64], flipped, bytes[..63].to_vec(), [&bytes[..], b"x"].concat(),
        [&order[..], &bytes[32..]].concat(), [&bytes[..32], &order[..]].concat(), [&[0; 32][..], &bytes[32..]].concat(), der.as_ref().to_vec(),
    ] {
        desk.refuses_token(&format!("{signed}.{}", encode(&other)), Fault::Signature, "another signature").await;
    }
    let other = Keys::generate().token(&header(), &claims());
    desk.refuses_token(&other, Fault::Signature, "another key of the same name").await;
    assert!(desk.shown(&token).await.is_ok());
}

/// tok-43, tok-44, tok-45, tok-46, tok-47, tok-48, tok-52: what must be understood, fetched or unpacked is refused.
#[tokio::test]
async fn headers_that_bring_keys_or_extensions_are_refused() {
    let desk = Desk::open();
    for change in [
        json!({ "crit": ["exp"] }), json!({ "crit": ["b64"], "b64": true }), json!({ "crit": [] }), json!({ "crit": "x" }),
        json!({ "b64": false }), json!({ "jwk": desk.keys.jwk("es256") }), json!({ "jku": "http://127.0.0.1:1/keys" }),
        json!({ "jku": "http://169.254.169.254/" }), json!({ "x5u": "file:///etc/passwd" }), json!({ "x5c": ["MIIB"] }),
        json!({ "zip": "DEF" }), json!({ "cty": "JWT" }), json!({ "enc": "A256GCM" }),
    ] {
        desk.refuses(with(header(), &change), claims(), Fault::Form).await;
    }
    desk.accepts(with(header(), &json!({ "x5t": "abc", "x5t#S256": "abc", "extra": 1 })), claims()).await;
}

/// tok-49, tok-50, tok-51, tok-90: an access token, and no other kind.
#[tokio::test]
async fn only_access_tokens_are_taken() {
    let desk = Desk::open();
    for typ in ["at+jwt", "AT+JWT", "application/at+jwt", "Application/AT+JWT"] {
        desk.accepts(with(header(), &json!({ "typ": typ })), claims()).await;
    }
    for typ in ["JWT", "jwt", "dpop+jwt", "logout+jwt", "secevent+jwt", "oauth-authz-req+jwt", "entity-statement+jwt", "oauth-id-jag+jwt", "at+jwt2"] {
        desk.refuses(with(header(), &json!({ "typ": typ })), claims(), Fault::Type).await;
    }
    desk.refuses(with(header(), &json!({ "typ": null })), claims(), Fault::Type).await;
    desk.refuses(with(header(), &json!({ "typ": 1 })), claims(), Fault::Type).await;
    let legacy = Desk::with(Keys::generate(), None, |issuer| issuer.legacy_typ = true);
    legacy.accepts(with(header(), &json!({ "typ": "JWT" })), claims()).await;
    legacy.accepts(with(header(), &json!({ "typ": null })), claims()).await;
    legacy.refuses(with(header(), &json!({ "typ": "logout+jwt" })), claims(), Fault::Type).await;
    for marker in ["nonce", "at_hash", "c_hash"] {
        desk.refuses(header(), with(claims(), &json!({ marker: "x" })), Fault::Type).await;
        legacy.refuses(with(header(), &json!({ "typ": "JWT" })), with(claims(), &json!({ marker: "x" })), Fault::Type).await;
    }
}

/// tok-53, tok-54, tok-55, tok-56, tok-58, tok-59, tok-40: a name finds one usable key, or none.
#[tokio::test]
async fn a_key_is_found_by_its_exact_name() {
    let desk = Desk::open();
    let long = "k".repeat(300);
    for kid in ["../../dev/null", "/dev/null", "|sleep 10", "' UNION SELECT '1", "es256\r\nX: y", "es256\u{0}", "\u{1f511}", "ES256", "es256 ", &long] {
        desk.refuses(with(header(), &json!({ "kid": kid })), claims(), Fault::KeyUnknown).await;
    }
    for kid in [json!(1), json!([]), json!({}), json!(true), json!("")] {
        desk.refuses(with(header(), &json!({ "kid": kid })), claims(), Fault::KeyUnknown).await;
    }
    desk.refuses(with(header(), &json!({ "kid": null })), claims(), Fault::KeyUnknown).await;

    let keys = Keys::generate();
    let one = json!({ "keys": [keys.jwk("es256")] });
    let desk = Desk::with(keys, Some(one), |_| {});
    desk.accepts(with(header(), &json!({ "kid": null })), claims()).await;

    let keys = Keys::generate();
    let own = keys.jwk("es256");
    let mut unusable = vec![
        with(own.clone(), &json!({ "use": "enc" })),
        with(own.clone(), &json!({ "key_ops": ["sign"] })),
        with(own.clone(), &json!({ "alg": "ES384" })),
        with(own.clone(), &json!({ "crv": "P-384" })),
        with(own.clone(), &json!({ "d": "AA" })),
        with(own.clone(), &json!({ "x": "AA" })),
        json!({ "kty": "oct", "kid": "es256", "k": "c2VjcmV0" }),
    ];
    let rsa = keys.jwk("rs256");
    unusable.push(with(rsa.clone(), &json!({ "e": "AQ" })));
    unusable.push(with(rsa.clone(), &json!({ "e": "Ag" })));
    unusable.push(with(rsa, &json!({ "n": encode(&[0xff; 128]) })));
    for jwk in unusable {
        let set = json!({ "keys": [jwk.clone(), keys.jwk("ed25519")] });
        let desk = Desk::with(Keys::generate(), Some(set), |_| {});
        let token = keys.token(&with(header(), &json!({ "kid": jwk["kid"], "alg": if jwk["kty"] == "RSA" { "RS256" } else { "ES256" } })), &claims());
        desk.refuses_token(&token, Fault::KeyUnknown, &jwk.to_string()).await;
        let beside = keys.token(&json!({ "alg": "EdDSA", "typ": "at+jwt", "kid": "ed25519" }), &claims());
        assert!(desk.shown(&beside).await.is_ok(), "the others stay usable");
    }
    let twice = json!({ "keys": [own.clone(), with(Keys::generate().jwk("es256"), &json!({})), keys.jwk("ed25519")] });
    let desk = Desk::with(Keys::generate(), Some(twice), |_| {});
    desk.refuses_token(&keys.token(&header(), &claims()), Fault::KeyUnknown, "two keys of one name").await;
}

/// tok-60, tok-61, tok-62, tok-63, tok-64, tok-65, tok-66
#[tokio::test]
async fn a_token_ends_at_its_time() {
    let desk = Desk::open();
    for exp in [json!(NOW - 29), json!(NOW), json!(NOW as f64 + 300.9), json!(NOW + 3600)] {
        desk.accepts(header(), with(claims(), &json!({ "exp": exp, "iat": NOW - 60 }))).await;
    }
    for exp in [json!(NOW - 31), json!(NOW - 30), json!(1)] {
        desk.refuses(header(), with(claims(), &json!({ "exp": exp, "iat": NOW - 3000 })), Fault::Expired).await;
    }
    let exact = Desk::with(Keys::generate(), None, |issuer| issuer.leeway = Duration::ZERO);
    exact.refuses(header(), with(claims(), &json!({ "exp": NOW })), Fault::Expired).await;
    exact.accepts(header(), with(claims(), &json!({ "exp": NOW + 1 }))).await;
    for exp in ["null", "\"1900000000\"", "true", "[]", "{}", "-1", "0", "1e99", "1E400", "9223372036854775808", "18446744073709551615", "18446744073709551616"] {
        let text = claims().to_string().replace(&(NOW + 600).to_string(), exp);
        let token = desk.keys.raw("ES256", &header().to_string(), &text);
        desk.refuses_token(&token, Fault::Claim, exp).await;
    }
    desk.refuses_claims(Fault::Claim, &[json!({ "exp": null }), json!({ "exp": (NOW + 600) * 1000 }), json!({ "exp": NOW + 90_000 }), json!({ "exp": 10_000_000_000_u64 })]).await;
}

/// tok-67, tok-68, inc-21
#[tokio::test]
async fn a_token_begins_at_its_time() {
    let desk = Desk::open();
    for change in [json!({ "nbf": NOW + 30 }), json!({ "nbf": NOW - 5 }), json!({ "iat": NOW + 30 })] {
        desk.accepts(header(), with(claims(), &change)).await;
    }
    desk.refuses_claims(Fault::NotYetValid, &[json!({ "nbf": NOW + 31 }), json!({ "iat": NOW + 31 })]).await;
    for nbf in ["null", "\"1\"", "-1", "true", "[]", "1e400"] {
        let text = format!("{},\"nbf\":{nbf}}}", claims().to_string().trim_end_matches('}'));
        desk.refuses_token(&desk.keys.raw("ES256", &header().to_string(), &text), Fault::Claim, nbf).await;
    }
    desk.refuses_claims(Fault::Claim, &[json!({ "iat": null }), json!({ "iat": "x" }), json!({ "iat": NOW + 20, "exp": NOW + 10 }), json!({ "nbf": NOW + 20, "exp": NOW + 10 })]).await;
    let legacy = Desk::with(Keys::generate(), None, |issuer| issuer.legacy_typ = true);
    legacy.accepts(header(), with(claims(), &json!({ "iat": null }))).await;
}

/// tok-70: a clock that is set back revives nothing.
#[tokio::test]
async fn an_expired_token_stays_expired_when_the_clock_goes_back() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let keys = Keys::generate();
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("keys.json");
    fs::write(&path, keys.all().to_string()).unwrap();
    let now = Arc::new(AtomicU64::new(NOW));
    let shown = now.clone();
    let clock = Clock::new(move || shown.load(Ordering::Relaxed));
    let authenticator = Authenticator::build(&Auth::Oidc(vec![issuer(KeySource::File(path))]), clock, &nobody()).unwrap();
    let line = format!("Bearer {}", keys.token(&header(), &claims()));
    assert!(ask(&authenticator, &[&line], None).await.is_ok());
    for time in [NOW + 3600, NOW] {
        now.store(time, Ordering::Relaxed);
        assert_eq!(ask(&authenticator, &[&line], None).await, Err(AuthError::Rejected(Fault::Expired)), "{time}");
    }
}

/// tok-71, tok-72, tok-57
#[tokio::test]
async fn the_issuer_is_compared_byte_for_byte() {
    let desk = Desk::open();
    let mut wrong: Vec<Value> = ["", "https://evil.example", "https://sso.example.com/realms/corp/", "https://SSO.example.com/realms/corp",
        "https://sso.example.com:443/realms/corp", "https://sso.example.com/realms/%63orp", "http://sso.example.com/realms/corp"]
        .iter().map(|iss| json!({ "iss": iss })).collect();
    wrong.extend([json!({ "iss": null }), json!({ "iss": 5 }), json!({ "iss": [ISSUER, "https://evil.example"] }), json!({ "iss": [ISSUER] })]);
    desk.refuses_claims(Fault::Issuer, &wrong).await;
    // Another issuer's key of the same name is another key.
    let (ours, theirs) = (Keys::generate(), Keys::generate());
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str, keys: &Keys| {
        let path = files.path().join(name);
        fs::write(&path, keys.all().to_string()).unwrap();
        KeySource::File(path)
    };
    let other = Issuer { issuer: "https://other.example".to_owned(), ..issuer(file("b", &theirs)) };
    let auth = Auth::Oidc(vec![issuer(file("a", &ours)), other]);
    let authenticator = Authenticator::build(&auth, Clock::new(|| NOW), &nobody()).unwrap();
    let crossed = format!("Bearer {}", ours.token(&header(), &with(claims(), &json!({ "iss": "https://other.example" }))));
    assert_eq!(ask(&authenticator, &[&crossed], None).await, Err(AuthError::Rejected(Fault::Signature)));
    let straight = format!("Bearer {}", theirs.token(&header(), &with(claims(), &json!({ "iss": "https://other.example" }))));
    assert!(ask(&authenticator, &[&straight], None).await.is_ok());
}

/// tok-73, tok-74, tok-75, tok-76, tok-77: a token for somebody else is never taken.
#[tokio::test]
async fn the_audience_is_this_server() {
    let desk = Desk::open();
    for aud in [json!(OURS), json!([OURS]), json!(["https://other.example", OURS]), json!(format!("{OURS}/"))] {
        desk.accepts(header(), with(claims(), &json!({ "aud": aud }))).await;
    }
    let mut wrong = vec![json!({ "aud": null })];
    for aud in [json!(5), json!({}), json!([]), json!([1, OURS]), json!([null]), json!("https://mcp.example.com"), json!("https://mcp.example.com/git"),
        json!("https://mcp.example.com/github2"), json!("https://MCP.example.com/github"), json!("https://mcp.example.com/github#x"),
        json!("https://mcp.example.com/github//"), json!("editor"), json!([[OURS]]), json!("")] {
        wrong.push(json!({ "aud": aud }));
    }
    desk.refuses_claims(Fault::Audience, &wrong).await;
}

/// tok-78, tok-88, tok-113
#[tokio::test]
async fn subject_and_id_have_their_bounds() {
    let desk = Desk::open();
    desk.refuses_claims(Fault::Claim, &[
        json!({ "sub": null }), json!({ "sub": "" }), json!({ "sub": 5 }), json!({ "sub": "x".repeat(256) }), json!({ "sub": "a\nb" }),
        json!({ "sub": "a\u{7f}" }), json!({ "jti": "x".repeat(256) }), json!({ "jti": 1 }), json!({ "cnf": { "jkt": "x" } }), json!({ "cnf": { "x5t#S256": "x" } }),
    ]).await;
    // A bearer token may be shown twice (tok-88).
    desk.accepts(header(), claims()).await;
    desk.accepts(header(), claims()).await;
}

/// tok-79, tok-80, tok-81, tok-87
#[tokio::test]
async fn a_principal_is_issuer_subject_and_kind() {
    let desk = Desk::open();
    let alice = desk.accepts(header(), with(claims(), &json!({ "email": "root@corp", "preferred_username": "root", "act": { "sub": "root" } }))).await;
    assert_eq!((alice.issuer(), alice.subject(), alice.kind(), alice.client()), (ISSUER, "alice", Kind::User, Some("editor")));
    assert_eq!(alice.groups(), ["dev"]);
    assert_eq!(alice.scopes(), ["tools:read", "tools:call"]);
    let program = desk.accepts(header(), with(claims(), &json!({ "client_id": "alice" }))).await;
    assert_eq!(program.kind(), Kind::Client);
    assert_ne!(program.principal_key(), alice.principal_key());
    assert!(!program.owns_session_of(&alice));
    let other_client = desk.accepts(header(), with(claims(), &json!({ "client_id": "agent" }))).await;
    assert_eq!(other_client.principal_key(), alice.principal_key());
    assert!(!other_client.owns_session_of(&alice));
}

#[tokio::test]
async fn only_the_listed_clients_are_taken() {
    let desk = Desk::with(Keys::generate(), None, |issuer| issuer.clients = vec!["editor".to_owned()]);
    desk.refuses_claims(Fault::Client, &[json!({ "client_id": "other" }), json!({ "client_id": null }), json!({ "azp": "other" })]).await;
    desk.accepts(header(), with(claims(), &json!({ "client_id": null, "azp": "editor" }))).await;
}

/// tok-83, tok-86
#[tokio::test]
async fn scopes_and_groups_are_lists_of_words() {
    let desk = Desk::open();
    let groups = |n: usize| json!({ "groups": (0..n).map(|n| format!("g{n}")).collect::<Vec<_>>() });
    assert_eq!(desk.accepts(header(), with(claims(), &json!({ "scope": null }))).await.scopes(), Vec::<String>::new());
    desk.accepts(header(), with(claims(), &groups(1000))).await;
    desk.refuses_claims(Fault::Claim, &[
        json!({ "scope": ["a"] }), json!({ "scope": 5 }), json!({ "scope": "a a" }), json!({ "scope": "a  b" }), json!({ "scope": "\u{e9}" }), json!({ "scope": "a\"b" }),
        json!({ "groups": "dev" }), json!({ "groups": [1] }), json!({ "groups": [{ "__entity": { "type": "User", "id": "x" } }] }), groups(1025),
    ]).await;
    let legacy = Desk::with(Keys::generate(), None, |issuer| issuer.legacy_typ = true);
    for scp in [json!(["a", "b"]), json!("a b")] {
        assert_eq!(legacy.accepts(header(), with(claims(), &json!({ "scope": null, "scp": scp }))).await.scopes(), ["a", "b"]);
    }
    assert!(desk.accepts(header(), with(claims(), &json!({ "scope": null, "scp": ["a"] }))).await.scopes().is_empty());
}

//! Proofs of possession (RFC 9449) through the whole gateway: for each that is not good
//! the status, the challenge, the body, the record, and that nothing was started for it.

use aws_lc_rs::digest;
use serde_json::{Value, json};

use crate::{
    house::{House, initialize},
    identity::{
        CLIENTS, ISSUERS, Signer, base64url, caller, claims, is_told, last_decision, metadata, now,
    },
    refusals::{Forger, many_keys},
    wire::{self, Answer},
};

const ALGORITHMS: &str = "algs=\"ES256 ES384 EdDSA Ed25519 PS256 PS384 PS512 RS256 RS384 RS512\"";

/// One client with a token that is bound to its key.
struct Prover<'a> {
    house: &'a House,
    token: String,
}

impl<'a> Prover<'a> {
    async fn house() -> House {
        let accepted = "dpop = \"accepted\"\ndpop-nonce = false\n";
        many_keys().issuer(accepted).open().await
    }

    fn of(house: &'a House) -> Self {
        let cnf = json!({ "jkt": CLIENTS.thumbprint() });
        let token = Forger(house).claim("cnf", cnf);
        Self { house, token }
    }

    fn hash(&self) -> String {
        base64url(digest::digest(&digest::SHA256, self.token.as_bytes()))
    }

    fn header(&self) -> Value {
        json!({ "typ": "dpop+jwt", "alg": "ES256", "jwk": CLIENTS.jwk() })
    }

    fn claims(&self, id: &str) -> Value {
        json!({
            "jti": id, "htm": "POST", "htu": self.house.resource(), "iat": now(), "ath": self.hash(),
        })
    }

    fn good(&self, id: &str) -> String {
        CLIENTS.sign(&self.header(), &self.claims(id))
    }

    /// A good proof but for one member of its header; `null` is none.
    fn header_with(&self, name: &str, value: Value) -> String {
        let mut header = self.header();
        put(&mut header, name, value);
        CLIENTS.sign(&header, &self.claims(&id()))
    }

    /// A good proof but for one claim; `null` is none.
    fn claim(&self, name: &str, value: Value) -> String {
        let mut claims = self.claims(&id());
        put(&mut claims, name, value);
        CLIENTS.sign(&self.header(), &claims)
    }

    async fn shows(&self, proofs: &[&str]) -> Answer {
        let mut headers = vec![("DPoP-Irrelevant", "x")];
        headers.extend(proofs.iter().map(|proof| ("DPoP", *proof)));
        shown(self.house, &format!("DPoP {}", self.token), &headers).await
    }

    /// All of these are refused in the same words; then a good one opens a session.
    async fn all_are_refused(&self, cases: Vec<(&str, String)>) {
        for (what, proof) in cases {
            let answer = self.shows(&[&proof]).await;
            assert_eq!(answer.status, 401, "{what}: {answer:?}");
            self.is_refused(&answer);
        }
        let answer = self.shows(&[&self.good(&id())]).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let last = last_decision(self.house);
        assert!(
            last.contains("THV_DECISION=allow ") && last.contains("THV_SUBJECT=alice "),
            "{last}"
        );
    }

    fn is_refused(&self, answer: &Answer) {
        let challenge = format!(
            "DPoP error=\"invalid_dpop_proof\", error_description=\"The proof is not valid here\", {}, {ALGORITHMS}",
            metadata(self.house)
        );
        is_told(
            self.house,
            answer,
            (401, Some(&challenge)),
            ("the proof of possession is not valid here", "proof-invalid"),
            "proof-invalid",
        );
    }
}

fn put(object: &mut Value, name: &str, value: Value) {
    if value.is_null() {
        object.as_object_mut().unwrap().remove(name);
    } else {
        object[name] = value;
    }
}

/// One that was never used.
fn id() -> String {
    let mut bytes = [0; 12];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    base64url(bytes)
}

async fn shown(house: &House, authorization: &str, more: &[(&str, &str)]) -> Answer {
    let mut nobody = house.caller("nobody");
    nobody.token = None;
    let mut headers = vec![("Authorization", authorization)];
    headers.extend(more);
    let request = nobody.bytes_with("POST", &headers, &initialize("2025-11-25"));
    wire::exchange(house.address, &request).await
}

/// The token itself is not this caller's: told so under each scheme that is spoken.
fn is_not_theirs(house: &House, answer: &Answer, reason: &str) {
    let rest = format!(
        "error=\"invalid_token\", error_description=\"The token is not valid here\", {}",
        metadata(house)
    );
    let challenge = format!("Bearer {rest}, DPoP {rest}, {ALGORITHMS}");
    is_told(
        house,
        answer,
        (401, Some(&challenge)),
        ("the token is not valid here", "token-invalid"),
        reason,
    );
}

/// tok-114, tok-115: one proof, of its own type, signed by an asymmetric key that it brings along and that stays private.
#[tokio::test]
async fn a_proof_of_the_wrong_kind_is_refused() {
    let house = Prover::house().await;
    let prover = Prover::of(&house);
    let (one, two) = (prover.good("1"), prover.good("2"));
    for proofs in [
        &[][..],
        &[&*one, &*two],
        &[&*one, &*one],
        &[&*format!("{one}, {two}")],
    ] {
        prover.is_refused(&prover.shows(proofs).await);
    }
    let mut cases = vec![
        ("no proof at all", "x".to_owned()),
        ("empty", String::new()),
        ("no typ", prover.header_with("typ", Value::Null)),
        ("no key", prover.header_with("jwk", Value::Null)),
        ("crit", prover.header_with("crit", json!(["x"]))),
        (
            "another's signature",
            ISSUERS.sign(&prover.header(), &prover.claims("3")),
        ),
        ("no signature", {
            let good = prover.good("4");
            good[..=good.rfind('.').unwrap()].to_owned()
        }),
    ];
    for typ in ["jwt", "JWT", "at+jwt", "dpop"] {
        cases.push((typ, prover.header_with("typ", json!(typ))));
    }
    for alg in ["none", "HS256", "HS512", "RS256", "ES384", "es256"] {
        cases.push((alg, prover.header_with("alg", json!(alg))));
    }
    for private in ["d", "k"] {
        let mut jwk = CLIENTS.jwk();
        jwk[private] = json!("AQAB");
        cases.push(("a private key", prover.header_with("jwk", jwk)));
    }
    prover.all_are_refused(cases).await;
}

/// tok-116, tok-117: for this method, this resource as it is configured, and this token.
#[tokio::test]
async fn a_proof_for_something_else_is_refused() {
    let house = Prover::house().await;
    let prover = Prover::of(&house);
    let resource = house.resource();
    let mut cases = vec![
        ("no ath", prover.claim("ath", Value::Null)),
        (
            "another token's",
            prover.claim(
                "ath",
                json!(base64url(digest::digest(&digest::SHA256, b"other"))),
            ),
        ),
        ("the token itself", prover.claim("ath", json!(prover.token))),
        ("no htm", prover.claim("htm", Value::Null)),
        ("no htu", prover.claim("htu", Value::Null)),
    ];
    for method in ["GET", "post", "DELETE", ""] {
        cases.push(("method", prover.claim("htm", json!(method))));
    }
    for target in [
        format!("{resource}/"),
        format!("{resource}/x"),
        resource.replace("/mcp", "/other"),
        resource.replace("/mcp", ""),
        resource.replace("127.0.0.1", "localhost"),
        resource.replace("http:", "https:"),
        format!("http://evil.example/mcp?{resource}"),
        "/mcp".to_owned(),
        String::new(),
    ] {
        cases.push(("target", prover.claim("htu", json!(target))));
    }
    prover.all_are_refused(cases).await;
    // What comes after the path is no part of it (RFC 9449 §4.3), nor is the request's own Host.
    let queried = prover.claim("htu", json!(format!("{resource}?x=1#y")));
    let answer = prover.shows(&[&queried]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// tok-118: of this minute, and shown once, whatever else has changed in it.
#[tokio::test]
async fn a_proof_of_another_time_or_shown_again_is_refused() {
    let house = Prover::house().await;
    let prover = Prover::of(&house);
    // The clock is the system's: a second may pass on the way.
    let cases = vec![
        ("old", prover.claim("iat", json!(now() - 61))),
        ("ahead", prover.claim("iat", json!(now() + 70))),
        ("text", prover.claim("iat", json!(now().to_string()))),
        ("no iat", prover.claim("iat", Value::Null)),
        ("no jti", prover.claim("jti", Value::Null)),
        ("an empty jti", prover.claim("jti", json!(""))),
        ("a long jti", prover.claim("jti", json!("j".repeat(256)))),
    ];
    prover.all_are_refused(cases).await;
    for late in [now() - 50, now() + 50] {
        let answer = prover.shows(&[&prover.claim("iat", json!(late))]).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    // In a house where nothing was started yet, so that nothing can have been started for it.
    let house = Prover::house().await;
    let prover = Prover::of(&house);
    let first = prover.good("once");
    let answer = shown(
        &house,
        &format!("DPoP {}", prover.token),
        &[("DPoP", &first), ("Mcp-Session-Id", "0")],
    )
    .await;
    assert_eq!(
        answer.status, 400,
        "let in, and no session is opened within another: {answer:?}"
    );
    prover.is_refused(&prover.shows(&[&first]).await);
    let mut again = prover.claims("once");
    again["iat"] = json!(now() - 1);
    let again = CLIENTS.sign(&prover.header(), &again);
    prover.is_refused(&prover.shows(&[&again]).await);
}

/// tok-113, tok-120: whose token it is, the token says: another key, a certificate's hash and a header that
/// claims there was a certificate prove nothing.
#[tokio::test]
async fn a_token_of_another_key_is_refused() {
    let house = Prover::house().await;
    let prover = Prover::of(&house);
    let thief = Signer::generate();
    let mut header = prover.header();
    header["jwk"] = thief.jwk();
    let stolen = thief.sign(&header, &prover.claims("1"));
    is_not_theirs(&house, &prover.shows(&[&stolen]).await, "token-binding");
    let bearer = caller(&house, prover.token.clone()).initialize().await;
    is_not_theirs(&house, &bearer, "token-binding");

    let certificate = "MIIBszCCAVmgAwIBAgIUe0";
    let hash = base64url(digest::digest(&digest::SHA256, certificate.as_bytes()));
    let forwarded = [
        ("Client-Cert", format!(":{certificate}:")),
        (
            "X-Forwarded-Client-Cert",
            format!("Hash={hash};Cert={certificate}"),
        ),
        ("X-SSL-Client-Cert", certificate.to_owned()),
        ("X-SSL-Client-Verify", "SUCCESS".to_owned()),
    ];
    let forwarded: Vec<_> = forwarded
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    for cnf in [
        json!({ "x5t#S256": hash }),
        json!({ "x5t#S256": hash, "jkt": CLIENTS.thumbprint() }),
        json!({ "jkt": "short" }),
        json!({}),
    ] {
        let mut claims = claims(&house);
        claims["cnf"] = cnf;
        let token = ISSUERS.sign(
            &json!({ "typ": "at+jwt", "alg": "ES256", "kid": "es" }),
            &claims,
        );
        let answer = shown(&house, &format!("Bearer {token}"), &forwarded).await;
        is_not_theirs(&house, &answer, "token-claim");
        let bound = Prover {
            house: &house,
            token,
        };
        let answer = bound.shows(&[&bound.good(&id())]).await;
        is_not_theirs(&house, &answer, "token-claim");
    }
    let answer = prover.shows(&[&prover.good("2")]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

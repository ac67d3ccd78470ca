//! Proof that whoever shows a token holds the key that it is bound to (RFC 9449).
//!
//! The target is compared with the configured resource, never with Host or the
//! scheme of the last hop: a front that ends TLS changes both.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use aws_lc_rs::{constant_time, digest, hmac, rand};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, Method};

use super::{
    AuthError, jwk,
    jwt::{self, MAX_ID},
};
use crate::{config::Resource, json::Value};

/// Checks proofs for one resource, and remembers those that were shown.
pub(super) struct Proofs {
    resource: Resource,
    /// Of this process alone: a proof for another's nonce is asked for again.
    nonce_key: hmac::Key,
    /// Shortened hashes of proofs, and until when each would be good.
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    until: HashMap<[u8; 16], u64>,
    /// When those that were over were last thrown out: once a second is often enough.
    cleared: u64,
}

/// What a proof must be for.
pub(super) struct Wanted<'a> {
    pub(super) method: &'a Method,
    pub(super) token: &'a str,
    /// Thumbprint of the key that the token is bound to.
    pub(super) bound_to: &'a str,
    pub(super) nonce: bool,
    /// Unix time in seconds.
    pub(super) now: u64,
}

impl Proofs {
    pub(super) fn new(resource: &Resource) -> Self {
        let mut key = [0; 32];
        rand::fill(&mut key).expect("the system gives random bytes");
        Self {
            resource: resource.clone(),
            nonce_key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            seen: Mutex::default(),
        }
    }

    /// RFC 9449 §4.3, in its order where that matters.
    pub(super) fn check(&self, headers: &HeaderMap, wanted: &Wanted<'_>) -> Result<(), AuthError> {
        let mut lines = headers.get_all(PROOF).iter();
        let (Some(line), None) = (lines.next(), lines.next()) else {
            return Err(AuthError::Proof);
        };
        let proof = line
            .to_str()
            .ok()
            .filter(|proof| proof.len() <= MAX_PROOF)
            .ok_or(AuthError::Proof)?;
        let proof = jwt::read_proof(proof).map_err(|_| AuthError::Proof)?;
        let (key, thumbprint) =
            jwk::of_proof(proof.key(), proof.algorithm).ok_or(AuthError::Proof)?;
        if !key.verifies(proof.signed, proof.signature) {
            return Err(AuthError::Proof);
        }
        let text = |name: &str| proof.claims.get(name).and_then(Value::as_str);
        let issued = proof.claims.get("iat").and_then(Value::as_number);
        let issued: u64 = issued
            .and_then(|number| number.split('.').next()?.parse().ok())
            .ok_or(AuthError::Proof)?;
        let id = text("jti").ok_or(AuthError::Proof)?;
        let good = text("htm").as_deref() == Some(wanted.method.as_str())
            && text("htu").is_some_and(|target| self.is_ours(&target))
            && text("ath").as_deref() == Some(&hash(wanted.token))
            && wanted.now.abs_diff(issued) <= WINDOW
            && (1..=MAX_ID).contains(&id.len());
        if !good {
            return Err(AuthError::Proof);
        }
        // A proof of another key than the token's: the token is not this caller's (tok-120).
        if thumbprint != wanted.bound_to {
            return Err(AuthError::Rejected(super::Fault::Binding));
        }
        if wanted.nonce && !text("nonce").is_some_and(|nonce| self.is_current(&nonce, wanted.now)) {
            return Err(AuthError::Nonce(self.nonce(wanted.now / NONCE_LIFE)));
        }
        if self.is_new(&thumbprint, &id, issued + WINDOW, wanted.now) {
            Ok(())
        } else {
            Err(AuthError::Proof)
        }
    }

    /// Query and fragment are no part of it; scheme and host may be spelled in any case.
    fn is_ours(&self, target: &str) -> bool {
        let target = target.split(['?', '#']).next().unwrap_or_default();
        let host_at = target.find("://").map_or(0, |at| at + 3);
        let path_at = target[host_at..]
            .find('/')
            .map_or(target.len(), |at| host_at + at);
        let (origin, path) = target.split_at(path_at);
        let origin = origin.to_ascii_lowercase();
        let usual_port = if origin.starts_with("https:") {
            ":443"
        } else {
            ":80"
        };
        let origin = origin.strip_suffix(usual_port).unwrap_or(&origin);
        let path = if path.is_empty() { "/" } else { path };
        origin == self.resource.origin && path == self.resource.path
    }

    fn nonce(&self, slot: u64) -> String {
        let tag = hmac::sign(&self.nonce_key, &slot.to_be_bytes());
        URL_SAFE_NO_PAD.encode(&tag.as_ref()[..16])
    }

    /// The current one and the one before: nobody is sent away for being slow.
    fn is_current(&self, nonce: &str, now: u64) -> bool {
        let slot = now / NONCE_LIFE;
        [slot, slot.saturating_sub(1)].into_iter().any(|slot| {
            constant_time::verify_slices_are_equal(nonce.as_bytes(), self.nonce(slot).as_bytes())
                .is_ok()
        })
    }

    /// Whether this proof was not shown before; from now on it was. When there are too
    /// many to remember, none is new: forgetting one would let it in twice.
    fn is_new(&self, thumbprint: &str, id: &str, until: u64, now: u64) -> bool {
        let mut name = [0; 16];
        let whole = digest::digest(&digest::SHA256, format!("{thumbprint} {id}").as_bytes());
        name.copy_from_slice(&whole.as_ref()[..16]);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.until.len() >= MAX_SEEN && seen.cleared < now {
            seen.cleared = now;
            seen.until.retain(|_, until| *until >= now);
        }
        seen.until.len() < MAX_SEEN && seen.until.insert(name, until).is_none()
    }
}

/// `ath`: what a proof says of the token (RFC 9449 §4.2).
fn hash(token: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, token.as_bytes()))
}

const PROOF: &str = "dpop";
/// Bytes of a proof.
const MAX_PROOF: usize = 8 << 10;
/// Seconds that a proof may be old, or ahead of our clock (tok-118).
const WINDOW: u64 = 60;
/// Seconds for which one nonce is given out.
const NONCE_LIFE: u64 = 300;
/// Proofs remembered: two thousand a second for as long as one is good.
const MAX_SEEN: usize = 262_144;

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use serde_json::{Value, json};

    use super::{
        super::{
            Fault, Identity, Presented,
            testing::{AUDIENCE, Bench, KEYS, NOW, Signer, base64url, bench_with, compact, token},
        },
        *,
    };
    use crate::config::Dpop;

    /// A proof in the making: a good one, until a test spoils it.
    struct Proof {
        header: Value,
        claims: Value,
    }

    /// The client's own key: any that is not the issuer's.
    fn own() -> &'static Signer {
        &KEYS.stranger
    }

    fn public(signer: &Signer) -> Value {
        let mut jwk = signer.jwk();
        for name in ["kid", "alg", "use"] {
            jwk.as_object_mut().unwrap().remove(name);
        }
        jwk
    }

    fn thumbprint(signer: &Signer) -> String {
        let jwk = public(signer);
        let member = |name: &str| jwk[name].as_str().unwrap().to_owned();
        let canonical = match signer.alg {
            "EdDSA" => format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, member("x")),
            "RS256" | "PS256" => {
                format!(
                    r#"{{"e":"{}","kty":"RSA","n":"{}"}}"#,
                    member("e"),
                    member("n")
                )
            }
            _ => format!(
                r#"{{"crv":"{}","kty":"EC","x":"{}","y":"{}"}}"#,
                member("crv"),
                member("x"),
                member("y")
            ),
        };
        base64url(digest::digest(&digest::SHA256, canonical.as_bytes()))
    }

    fn bound_token() -> String {
        token()
            .claim("cnf", json!({"jkt": thumbprint(own())}))
            .sign()
    }

    fn proof(token: &str, id: &str) -> Proof {
        Proof {
            header: json!({"typ": "dpop+jwt", "alg": "ES256", "jwk": public(own())}),
            claims: json!({
                "jti": id, "htm": "POST", "htu": AUDIENCE, "iat": NOW, "ath": hash(token),
            }),
        }
    }

    impl Proof {
        fn header(mut self, name: &str, value: Value) -> Self {
            self.header[name] = value;
            self
        }

        fn claim(mut self, name: &str, value: Value) -> Self {
            self.claims[name] = value;
            self
        }

        fn without(mut self, name: &str) -> Self {
            self.header.as_object_mut().unwrap().remove(name);
            self.claims.as_object_mut().unwrap().remove(name);
            self
        }

        fn signed_by(&self, signer: &Signer) -> String {
            let alg = self.header["alg"].as_str().unwrap_or_default().to_owned();
            compact(self.header.to_string(), self.claims.to_string(), |text| {
                signer.sign(&alg, text)
            })
        }

        fn sign(&self) -> String {
            self.signed_by(own())
        }
    }

    fn bench() -> Bench {
        bench_with(|issuer| {
            issuer.dpop = Dpop::Accepted;
            issuer.dpop_nonce = false;
        })
    }

    fn shows(bench: &Bench, token: &str, proofs: &[&str]) -> Result<Identity, AuthError> {
        shows_by(bench, &Method::POST, token, proofs)
    }

    fn shows_by(
        bench: &Bench,
        method: &Method,
        token: &str,
        proofs: &[&str],
    ) -> Result<Identity, AuthError> {
        let mut headers = HeaderMap::new();
        let line = HeaderValue::try_from(format!("DPoP {token}")).unwrap();
        headers.insert(http::header::AUTHORIZATION, line);
        for proof in proofs {
            headers.append("dpop", HeaderValue::try_from(*proof).unwrap());
        }
        bench.present(&Presented {
            method,
            headers: &headers,
            query: None,
            local: None,
        })
    }

    #[test]
    fn a_bound_token_with_a_proof_of_its_key_is_accepted() {
        let bench = bench();
        let token = bound_token();
        let good = proof(&token, "1").sign();
        assert_eq!(shows(&bench, &token, &[&good]).unwrap().subject(), "alice");
        for (number, target) in [
            "https://mcp.example.com/github?x=1#y",
            "HTTPS://MCP.EXAMPLE.COM/github",
            "https://mcp.example.com:443/github",
        ]
        .into_iter()
        .enumerate()
        {
            let good = proof(&token, &format!("t{number}")).claim("htu", json!(target));
            assert!(shows(&bench, &token, &[&good.sign()]).is_ok(), "{target}");
        }
        for signer in [&KEYS.es384, &KEYS.rs256, &KEYS.ps256, &KEYS.ed25519] {
            let token = super::super::testing::token()
                .claim("cnf", json!({"jkt": thumbprint(signer)}))
                .sign();
            let good = proof(&token, signer.kid)
                .header("alg", json!(signer.alg))
                .header("jwk", public(signer))
                .signed_by(signer);
            assert!(shows(&bench, &token, &[&good]).is_ok(), "{}", signer.alg);
        }
    }

    /// tok-113: a bound token is no bearer token, and one that is not bound proves nothing.
    #[test]
    fn a_token_is_shown_under_its_own_scheme() {
        let (bench, plain) = (bench(), token().sign());
        bench.accepts(&plain);
        bench.refuses(&bound_token(), Fault::Binding);
        let good = proof(&plain, "1").sign();
        assert_eq!(
            shows(&bench, &plain, &[&good]),
            Err(AuthError::Rejected(Fault::Binding))
        );
        // Where nobody speaks DPoP, its scheme is unknown, and a bound token is refused.
        let deaf = bench_with(|_| {});
        let token = bound_token();
        let good = proof(&token, "1").sign();
        assert_eq!(shows(&deaf, &token, &[&good]), Err(AuthError::Missing));
        deaf.refuses(&token, Fault::Claim);
        // Where everybody must, a bearer token is not even looked at.
        let strict = bench_with(|issuer| {
            issuer.dpop = Dpop::Required;
            issuer.dpop_nonce = false;
        });
        assert!(shows(&strict, &token, &[&good]).is_ok());
        let good = proof(&plain, "2").sign();
        assert_eq!(
            shows(&strict, &plain, &[&good]),
            Err(AuthError::Rejected(Fault::Unbound))
        );
    }

    #[track_caller]
    fn refused(what: &str, spoil: impl FnOnce(Proof) -> Proof) {
        let bench = bench();
        let token = bound_token();
        let spoiled = spoil(proof(&token, "1")).sign();
        assert_eq!(
            shows(&bench, &token, &[&spoiled]),
            Err(AuthError::Proof),
            "{what}"
        );
    }

    /// tok-114: exactly one proof.
    #[test]
    fn a_proof_that_is_missing_or_doubled_is_refused() {
        let bench = bench();
        let token = bound_token();
        let (one, two) = (proof(&token, "1").sign(), proof(&token, "2").sign());
        let joined = format!("{one}, {two}");
        for proofs in [
            &[][..] as &[&str],
            &[one.as_str(), two.as_str()],
            &[one.as_str(), one.as_str()],
            &[joined.as_str()],
            &[""],
            &["x"],
            &["a.b.c"],
        ] {
            assert_eq!(shows(&bench, &token, proofs), Err(AuthError::Proof));
        }
        assert!(shows(&bench, &token, &[&one]).is_ok());
    }

    /// tok-115: of the right type, signed with an asymmetric algorithm by the key that it brings along.
    #[test]
    fn a_proof_of_the_wrong_kind_is_refused() {
        for typ in ["jwt", "at+jwt", "dpop"] {
            refused(typ, |proof| proof.header("typ", json!(typ)));
        }
        refused("no typ", |proof| proof.without("typ"));
        for alg in ["none", "HS256", "RS256", "ES384", "es256"] {
            refused(alg, |proof| proof.header("alg", json!(alg)));
        }
        refused("no key", |proof| proof.without("jwk"));
        refused("a key in words", |proof| proof.header("jwk", json!("x")));
        for private in ["d", "p", "k", "oth"] {
            refused(private, |proof| {
                let mut jwk = public(own());
                jwk[private] = json!("AQAB");
                proof.header("jwk", jwk)
            });
        }
        refused("crit", |proof| proof.header("crit", json!(["x"])));
        refused("jku", |proof| {
            proof.header("jku", json!("https://evil.example"))
        });
        // Somebody else's signature under our key.
        let (bench, token) = (bench(), bound_token());
        let forged = proof(&token, "1").signed_by(&KEYS.es256);
        assert_eq!(shows(&bench, &token, &[&forged]), Err(AuthError::Proof));
    }

    /// tok-116: for this method and this resource, as configured.
    #[test]
    fn a_proof_for_another_request_is_refused() {
        for method in ["GET", "post", "", "DELETE"] {
            refused(method, |proof| proof.claim("htm", json!(method)));
        }
        for target in [
            "https://mcp.example.com/other",
            "https://mcp.example.com/github/",
            "https://mcp.example.com/GitHub",
            "https://mcp.example.com",
            "https://evil.example/github",
            "http://mcp.example.com/github",
            "https://mcp.example.com:8443/github",
            "https://mcp.example.com:443@evil.example/github",
            "/github",
            "",
        ] {
            refused(target, |proof| proof.claim("htu", json!(target)));
        }
        for name in ["htm", "htu", "iat", "jti"] {
            refused(name, |proof| proof.without(name));
        }
        let (bench, token) = (bench(), bound_token());
        let for_delete = proof(&token, "1").claim("htm", json!("DELETE")).sign();
        assert!(shows_by(&bench, &Method::DELETE, &token, &[&for_delete]).is_ok());
    }

    /// tok-117: for this token.
    #[test]
    fn a_proof_for_another_token_is_refused() {
        refused("no ath", |proof| proof.without("ath"));
        refused("another", |proof| proof.claim("ath", json!(hash("other"))));
    }

    /// tok-118: fresh, and shown once.
    #[test]
    fn a_proof_that_is_old_or_was_shown_before_is_refused() {
        for issued in [NOW - WINDOW - 1, NOW + WINDOW + 1] {
            refused("time", |proof| proof.claim("iat", json!(issued)));
        }
        refused("text", |proof| proof.claim("iat", json!("1800000000")));
        refused("id", |proof| {
            proof.claim("jti", json!("x".repeat(MAX_ID + 1)))
        });
        refused("no id", |proof| proof.claim("jti", json!("")));
        let (bench, token) = (bench(), bound_token());
        for issued in [NOW - WINDOW, NOW + WINDOW] {
            let good = proof(&token, &issued.to_string()).claim("iat", json!(issued));
            assert!(shows(&bench, &token, &[&good.sign()]).is_ok());
        }
        let once = proof(&token, "once").sign();
        assert!(shows(&bench, &token, &[&once]).is_ok());
        assert_eq!(shows(&bench, &token, &[&once]), Err(AuthError::Proof));
        // The same id in another proof is the same id.
        let again = proof(&token, "once").claim("iat", json!(NOW - 1)).sign();
        assert_eq!(shows(&bench, &token, &[&again]), Err(AuthError::Proof));
    }

    /// tok-119: what was asked for a moment ago is no proof, unless it holds our word of now.
    #[test]
    fn a_proof_without_the_current_nonce_is_told_it() {
        let bench = bench_with(|issuer| issuer.dpop = Dpop::Required);
        let token = bound_token();
        let told = |proof: Proof| match shows(&bench, &token, &[&proof.sign()]) {
            Err(AuthError::Nonce(nonce)) => nonce,
            other => panic!("{other:?}"),
        };
        let nonce = told(proof(&token, "1"));
        assert_eq!(told(proof(&token, "2").claim("nonce", json!("old"))), nonce);
        assert_eq!(told(proof(&token, "3").claim("nonce", json!(1))), nonce);
        // Being told cost nothing: the same id may come again with the nonce.
        let good = |id: &str, now: u64| {
            proof(&token, id)
                .claim("nonce", json!(nonce))
                .claim("iat", json!(now))
        };
        assert!(shows(&bench, &token, &[&good("1", NOW).sign()]).is_ok());
        // Slow clients are not sent away, very slow ones are.
        bench.set_time(NOW + 299);
        assert!(shows(&bench, &token, &[&good("4", NOW + 299).sign()]).is_ok());
        let late = NOW + 2 * NONCE_LIFE;
        let token = super::super::testing::token()
            .claim("exp", late + 100)
            .claim("cnf", json!({"jkt": thumbprint(own())}))
            .sign();
        bench.set_time(late);
        let old = proof(&token, "5")
            .claim("nonce", json!(nonce))
            .claim("iat", json!(late));
        assert!(matches!(
            shows(&bench, &token, &[&old.sign()]),
            Err(AuthError::Nonce(_))
        ));
    }

    /// tok-120: whose token it is, is said by the token.
    #[test]
    fn a_proof_of_another_key_is_refused() {
        let (bench, token) = (bench(), bound_token());
        let other = proof(&token, "1")
            .header("jwk", public(&KEYS.es256))
            .signed_by(&KEYS.es256);
        assert_eq!(
            shows(&bench, &token, &[&other]),
            Err(AuthError::Rejected(Fault::Binding))
        );
        for bound in [
            json!({"x5t#S256": thumbprint(own())}),
            json!({"jkt": thumbprint(own()), "x5t#S256": "x"}),
            json!({"jkt": "short"}),
            json!({"jkt": 1}),
            json!({}),
            json!("x"),
            json!(null),
        ] {
            let token = super::super::testing::token()
                .claim("cnf", bound.clone())
                .sign();
            let good = proof(&token, "1").sign();
            assert_eq!(
                shows(&bench, &token, &[&good]),
                Err(AuthError::Rejected(Fault::Claim)),
                "{bound}"
            );
            bench.refuses(&token, Fault::Claim);
        }
    }

    /// Forgetting a proof would let it in twice, so when there are too many, new ones wait.
    #[test]
    fn proofs_that_are_over_make_room() {
        let proofs = Proofs::new(&super::super::testing::resource());
        for number in 0..MAX_SEEN {
            assert!(proofs.is_new("k", &number.to_string(), NOW, NOW));
        }
        assert!(!proofs.is_new("k", "one more", NOW, NOW));
        assert!(proofs.is_new("k", "later", NOW + 61, NOW + 1));
    }
}

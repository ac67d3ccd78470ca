//! JSON Web Keys (RFC 7517, RFC 7518 §6): which of a set are usable, each for
//! exactly one algorithm.

use std::{collections::HashMap, sync::Arc};

use aws_lc_rs::{
    digest,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, EcdsaVerificationAlgorithm,
        ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
        RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384,
        RSA_PSS_2048_8192_SHA512, RsaParameters,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::DecodingKey;

use crate::json::{self, Document, Kind, Value};

/// A signature algorithm that is accepted at all: asymmetric ones alone.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Algorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    /// Ed25519, under its old name `EdDSA` or its own (RFC 9864).
    Ed25519,
}

impl Algorithm {
    /// By its JOSE name, exactly.
    pub(super) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rs256,
            "RS384" => Self::Rs384,
            "RS512" => Self::Rs512,
            "PS256" => Self::Ps256,
            "PS384" => Self::Ps384,
            "PS512" => Self::Ps512,
            "ES256" => Self::Es256,
            "ES384" => Self::Es384,
            "EdDSA" | "Ed25519" => Self::Ed25519,
            _ => return None,
        })
    }

    /// Whether configuration means this one by `name`.
    pub(super) fn is_called(self, name: &str) -> bool {
        Self::parse(name) == Some(self)
    }

    fn family(self) -> Family {
        match self {
            Self::Rs256 | Self::Rs384 | Self::Rs512 | Self::Ps256 | Self::Ps384 | Self::Ps512 => {
                Family::Rsa
            }
            Self::Es256 => Family::P256,
            Self::Es384 => Family::P384,
            Self::Ed25519 => Family::Ed25519,
        }
    }

    fn rsa_parameters(self) -> Option<&'static RsaParameters> {
        Some(match self {
            Self::Rs256 => &RSA_PKCS1_2048_8192_SHA256,
            Self::Rs384 => &RSA_PKCS1_2048_8192_SHA384,
            Self::Rs512 => &RSA_PKCS1_2048_8192_SHA512,
            Self::Ps256 => &RSA_PSS_2048_8192_SHA256,
            Self::Ps384 => &RSA_PSS_2048_8192_SHA384,
            Self::Ps512 => &RSA_PSS_2048_8192_SHA512,
            Self::Es256 | Self::Es384 | Self::Ed25519 => return None,
        })
    }

    fn for_crate(self) -> jsonwebtoken::Algorithm {
        use jsonwebtoken::Algorithm as Theirs;
        match self {
            Self::Rs256 => Theirs::RS256,
            Self::Rs384 => Theirs::RS384,
            Self::Rs512 => Theirs::RS512,
            Self::Ps256 => Theirs::PS256,
            Self::Ps384 => Theirs::PS384,
            Self::Ps512 => Theirs::PS512,
            Self::Es256 => Theirs::ES256,
            Self::Es384 => Theirs::ES384,
            Self::Ed25519 => Theirs::EdDSA,
        }
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Family {
    Rsa,
    P256,
    P384,
    Ed25519,
}

/// A key that may verify signatures of one algorithm.
#[derive(Clone)]
pub(super) struct Key {
    algorithm: Algorithm,
    key: Public,
}

/// A public key, ready to verify.
#[derive(Clone)]
enum Public {
    /// Read and prepared once: `jsonwebtoken` does that for each signature, which for
    /// RSA costs a third of the verification again (benches/identity.rs).
    Rsa(Arc<ParsedPublicKey>),
    Other(DecodingKey),
}

impl Key {
    /// The one algorithm that the key is for (RFC 8725 §3.1).
    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Whether `signature` (base64url) is this key's over `signed`.
    pub(super) fn verifies(&self, signed: &[u8], signature: &str) -> bool {
        match &self.key {
            Public::Rsa(key) => decode(signature)
                .is_some_and(|signature| key.verify_sig(signed, &signature).is_ok()),
            Public::Other(key) => {
                jsonwebtoken::crypto::verify(signature, signed, key, self.algorithm.for_crate())
                    .unwrap_or(false)
            }
        }
    }
}

/// The usable keys of one issuer.
#[derive(Clone, Default)]
pub(super) struct KeySet {
    by_kid: HashMap<String, Key>,
    without_kid: Vec<Key>,
}

impl KeySet {
    /// Reads a JWK set. Unusable keys are left out one by one (RFC 7517 §5);
    /// `None` if the text is no JWK set at all, or has too many keys. `accepted` are the issuer's algorithms.
    pub(super) fn read(text: &[u8], accepted: &[Algorithm]) -> Option<Self> {
        let document = Document::parse(text, LIMITS).ok()?;
        let keys = document
            .root(text)
            .get("keys")
            .filter(|keys| keys.kind() == Kind::Array)?;
        let mut set = Self::default();
        let mut seen: HashMap<String, usize> = HashMap::new();
        if keys.elements().nth(MAX_KEYS).is_some() {
            return None;
        }
        for jwk in keys.elements() {
            let kid = jwk.get("kid");
            let name = kid.and_then(Value::as_str);
            if let Some(name) = &name {
                *seen.entry(name.clone().into_owned()).or_default() += 1;
            }
            let Some(key) = usable(jwk, accepted) else {
                continue;
            };
            match (kid, name) {
                (None, _) => set.without_kid.push(key),
                (Some(_), Some(name)) => {
                    set.by_kid.insert(name.into_owned(), key);
                }
                (Some(_), None) => {}
            }
        }
        // Two keys of one name: nobody can say which is meant, so neither is used (tok-58).
        set.by_kid.retain(|kid, _| seen.get(kid) == Some(&1));
        Some(set)
    }

    /// The key that a token names; without a name, the only one there is (tok-55).
    pub(super) fn find(&self, kid: Option<&str>) -> Option<&Key> {
        match kid {
            Some(kid) => self.by_kid.get(kid),
            None if self.len() == 1 => self.by_kid.values().chain(&self.without_kid).next(),
            None => None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_kid.len() + self.without_kid.len()
    }
}

/// The public key that a proof of possession brings along (RFC 9449 §4.2), for this
/// algorithm, and its thumbprint (RFC 7638).
pub(super) fn of_proof(jwk: Value<'_>, algorithm: Algorithm) -> Option<(Key, String)> {
    let private = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];
    if private.iter().any(|name| jwk.get(name).is_some()) {
        return None;
    }
    let key = usable(jwk, &[algorithm])?;
    let members: &[&str] = match algorithm.family() {
        Family::Rsa => &["e", "kty", "n"],
        Family::P256 | Family::P384 => &["crv", "kty", "x", "y"],
        Family::Ed25519 => &["crv", "kty", "x"],
    };
    let members: Option<Vec<_>> = members
        .iter()
        .map(|name| Some(format!("\"{name}\":\"{}\"", jwk.get(name)?.as_str()?)))
        .collect();
    let canonical = format!("{{{}}}", members?.join(","));
    let thumbprint = digest::digest(&digest::SHA256, canonical.as_bytes());
    Some((key, URL_SAFE_NO_PAD.encode(thumbprint)))
}

fn usable(jwk: Value<'_>, accepted: &[Algorithm]) -> Option<Key> {
    let text = |name| jwk.get(name).and_then(Value::as_str);
    if jwk.get("use").is_some() && text("use").as_deref() != Some("sig") {
        return None;
    }
    if let Some(operations) = jwk.get("key_ops")
        && !operations
            .elements()
            .any(|operation| operation.as_str().as_deref() == Some("verify"))
    {
        return None;
    }
    // A set with private or secret keys in it is somebody's accident: none of those is used.
    if jwk.get("d").is_some() || jwk.get("k").is_some() {
        return None;
    }
    let (family, key) = match (text("kty")?.as_ref(), text("crv").as_deref()) {
        ("RSA", None) => (Family::Rsa, Material::Rsa(rsa(&text("n")?, &text("e")?)?)),
        ("EC", Some("P-256")) => (
            Family::P256,
            Material::Other(curve(
                &text("x")?,
                &text("y")?,
                32,
                &ECDSA_P256_SHA256_FIXED,
            )?),
        ),
        ("EC", Some("P-384")) => (
            Family::P384,
            Material::Other(curve(
                &text("x")?,
                &text("y")?,
                48,
                &ECDSA_P384_SHA384_FIXED,
            )?),
        ),
        ("OKP", Some("Ed25519")) => {
            let x = text("x")?;
            let key =
                (decode(&x)?.len() == 32).then(|| DecodingKey::from_ed_components(&x).ok())??;
            (Family::Ed25519, Material::Other(key))
        }
        _ => return None,
    };
    let algorithm = match jwk.get("alg") {
        Some(named) => Algorithm::parse(&named.as_str()?)?,
        None => default_algorithm(family, accepted)?,
    };
    if algorithm.family() != family || !accepted.contains(&algorithm) {
        return None;
    }
    let key = match key {
        Material::Rsa(der) => {
            let key = ParsedPublicKey::new(algorithm.rsa_parameters()?, der).ok()?;
            Public::Rsa(Arc::new(key))
        }
        Material::Other(key) => Public::Other(key),
    };
    Some(Key { algorithm, key })
}

/// A key before its algorithm is known.
enum Material {
    /// An RSAPublicKey (RFC 8017 appendix A.1.1).
    Rsa(Vec<u8>),
    Other(DecodingKey),
}

/// The one algorithm of a key that names none: the usual one of its kind, or
/// the only one that the issuer may use it with.
fn default_algorithm(family: Family, accepted: &[Algorithm]) -> Option<Algorithm> {
    let usual = match family {
        Family::Rsa => Algorithm::Rs256,
        Family::P256 => Algorithm::Es256,
        Family::P384 => Algorithm::Es384,
        Family::Ed25519 => Algorithm::Ed25519,
    };
    if accepted.contains(&usual) {
        return Some(usual);
    }
    let mut fitting = accepted
        .iter()
        .filter(|algorithm| algorithm.family() == family);
    match (fitting.next(), fitting.next()) {
        (Some(only), None) => Some(*only),
        _ => None,
    }
}

fn rsa(n: &str, e: &str) -> Option<Vec<u8>> {
    let (modulus, exponent) = (decode(n)?, decode(e)?);
    // Some providers put a sign byte first, against RFC 7518 §2.
    let (modulus, exponent) = (without_zeros(&modulus), without_zeros(&exponent));
    let bits = modulus.len() * 8 - modulus.first()?.leading_zeros() as usize;
    // RFC 7518 §3.3: 2048 bits or more; the upper bound keeps one verification cheap.
    let sized = (MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits);
    let odd = exponent.last().is_some_and(|last| last % 2 == 1)
        && *exponent != [1]
        && exponent.len() <= 4;
    (sized && odd && !is_roca(modulus))
        .then(|| der(0x30, &[der_number(modulus), der_number(exponent)].concat()))
}

/// One element of DER (X.690 §8.1): tag, length, content.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length = without_zeros(&length);
    let mut element = vec![tag];
    match length {
        [] => element.push(0),
        [short] if *short < 0x80 => element.push(*short),
        long => {
            element.push(0x80 | u8::try_from(long.len()).unwrap_or(u8::MAX));
            element.extend_from_slice(long);
        }
    }
    element.extend_from_slice(content);
    element
}

/// A number that is never negative: a leading bit that would say so gets a zero before it.
fn der_number(number: &[u8]) -> Vec<u8> {
    let mut content = number.to_vec();
    if content.first().is_some_and(|first| first & 0x80 != 0) {
        content.insert(0, 0);
    }
    der(0x02, &content)
}

/// Whether a modulus was made by the generator of CVE-2017-15361, whose keys can be
/// factored: modulo every small prime it is then a power of 65537 (tok-41).
fn is_roca(modulus: &[u8]) -> bool {
    let is_power = |prime: u32| {
        let rest = modulus
            .iter()
            .fold(0, |rest, byte| (rest * 256 + u32::from(*byte)) % prime);
        let mut power = 1;
        (0..prime).any(|_| {
            let found = power == rest;
            power = power * (65537 % prime) % prime;
            found
        })
    };
    ROCA_PRIMES.iter().all(|prime| is_power(*prime))
}

fn without_zeros(number: &[u8]) -> &[u8] {
    &number[number.iter().take_while(|byte| **byte == 0).count()..]
}

fn curve(
    x: &str,
    y: &str,
    size: usize,
    algorithm: &'static EcdsaVerificationAlgorithm,
) -> Option<DecodingKey> {
    let point = [vec![UNCOMPRESSED], decode(x)?, decode(y)?].concat();
    let fits = decode(x)?.len() == size && decode(y)?.len() == size;
    // A point that is not on the curve is no key.
    let key = fits
        .then(|| ParsedPublicKey::new(algorithm, &point).ok())
        .flatten();
    key.and_then(|_| DecodingKey::from_ec_components(x, y).ok())
}

fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// What an uncompressed point starts with (SEC 1 §2.3.3).
const UNCOMPRESSED: u8 = 4;
/// Keys in one set.
const MAX_KEYS: usize = 64;
/// The primes whose product divides what that generator adds to, for the smallest of its keys.
const ROCA_PRIMES: [u32; 38] = [
    3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97,
    101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
];
const MIN_RSA_BITS: usize = 2048;
const MAX_RSA_BITS: usize = 8192;
/// What a JWK set may hold: `fetch` caps its bytes.
const LIMITS: json::Limits = json::Limits {
    depth: 8,
    nodes: 65_536,
};

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        super::{
            Fault,
            testing::{
                ALGORITHMS, KEYS, base64url, bench, bench_of, bench_with, compact, set, token,
            },
        },
        Algorithm, KeySet, MAX_KEYS,
    };

    fn read(keys: &Value) -> Option<KeySet> {
        let every: Vec<Algorithm> = ALGORITHMS
            .iter()
            .filter_map(|name| Algorithm::parse(name))
            .collect();
        KeySet::read(keys.to_string().as_bytes(), &every)
    }

    fn changed(jwk: &Value, name: &str, value: Value) -> Value {
        let mut jwk = jwk.clone();
        jwk[name] = value;
        jwk
    }

    #[track_caller]
    fn usable(jwk: &Value) {
        assert_eq!(read(&json!({"keys": [jwk]})).unwrap().len(), 1, "{jwk}");
    }

    /// Left out, and not in the way of the key beside it.
    #[track_caller]
    fn left_out(jwk: &Value) {
        let keys =
            read(&json!({"keys": [jwk, changed(&KEYS.ed25519.jwk(), "kid", json!("beside"))]}))
                .unwrap();
        assert_eq!(keys.len(), 1, "{jwk}");
        assert!(keys.find(Some("beside")).is_some(), "{jwk}");
    }

    #[test]
    fn every_published_key_verifies_its_own_tokens() {
        let bench = bench();
        for signer in KEYS.published() {
            assert_eq!(
                bench.accepts(&token().signed_by(signer)).subject(),
                "alice",
                "{}",
                signer.alg
            );
        }
    }

    /// tok-29, tok-30: no secret is ever made of a public key, or of anything.
    #[test]
    fn a_token_signed_with_a_public_key_as_secret_is_refused() {
        use aws_lc_rs::hmac;
        let bench = bench();
        let secrets = KEYS.published().into_iter().flat_map(|signer| {
            let jwk = signer.jwk();
            let n = jwk["n"].as_str().unwrap_or_default().as_bytes().to_vec();
            [
                signer.public_bytes(),
                jwk.to_string().into_bytes(),
                n,
                Vec::new(),
                b"secret".to_vec(),
            ]
            .map(|secret| (signer.kid, secret))
        });
        for (kid, secret) in secrets {
            for (alg, of_alg) in [
                ("HS256", hmac::HMAC_SHA256),
                ("HS384", hmac::HMAC_SHA384),
                ("HS512", hmac::HMAC_SHA512),
            ] {
                let header = json!({"alg": alg, "kid": kid, "typ": "at+jwt"}).to_string();
                let mac = |message: &[u8]| {
                    hmac::sign(&hmac::Key::new(of_alg, &secret), message)
                        .as_ref()
                        .to_vec()
                };
                bench.refuses(
                    &compact(&header, token().claims_text(), mac),
                    Fault::Algorithm,
                );
            }
        }
    }

    /// tok-31: the list is the issuer's own.
    #[test]
    fn an_algorithm_that_the_issuer_may_not_use_is_refused() {
        let bench = bench_with(|issuer| issuer.algorithms = vec!["ES256".to_owned()]);
        bench.accepts(&token().sign());
        bench.refuses(&token().signed_by(&KEYS.rs256), Fault::Algorithm);
        bench.refuses(&token().signed_by(&KEYS.ed25519), Fault::Algorithm);
    }

    /// tok-32, tok-33: a key is for one algorithm, and the signature is right for another here.
    #[test]
    fn a_key_is_used_with_its_one_algorithm() {
        let bench = bench();
        for (signer, alg) in [
            (&KEYS.rs256, "PS256"),
            (&KEYS.rs256, "RS512"),
            (&KEYS.ps256, "RS256"),
            (&KEYS.ps256, "PS384"),
        ] {
            bench.refuses(
                &token().header("alg", alg).signed_by(signer),
                Fault::Algorithm,
            );
        }
        bench.refuses(
            &token().header("alg", "ES256").signed_by(&KEYS.es384),
            Fault::Algorithm,
        );
        bench.refuses(
            &token().header("alg", "ES384").signed_by(&KEYS.es256),
            Fault::Algorithm,
        );
        bench.refuses(
            &token().header("alg", "EdDSA").signed_by(&KEYS.es256),
            Fault::Algorithm,
        );
    }

    /// tok-32: a key that names no algorithm gets one, and not a choice.
    #[test]
    fn a_key_without_an_algorithm_has_the_usual_one_of_its_kind() {
        let mut jwk = KEYS.rs256.jwk();
        jwk.as_object_mut().unwrap().remove("alg");
        let keys = json!({"keys": [jwk]});
        let bench = bench_of(&keys, |_| {});
        bench.accepts(&token().signed_by(&KEYS.rs256));
        bench.refuses(
            &token().header("alg", "PS256").signed_by(&KEYS.rs256),
            Fault::Algorithm,
        );
        let bench = bench_of(&keys, |issuer| issuer.algorithms = vec!["PS256".to_owned()]);
        bench.accepts(&token().header("alg", "PS256").signed_by(&KEYS.rs256));
    }

    /// tok-34: one algorithm of two names.
    #[test]
    fn ed25519_is_accepted_by_both_its_names() {
        let bench = bench();
        for alg in ["EdDSA", "Ed25519"] {
            bench.accepts(&token().header("alg", alg).signed_by(&KEYS.ed25519));
            bench.refuses(
                &token().header("alg", alg).signed_by(&KEYS.es256),
                Fault::Algorithm,
            );
        }
        let ed448 = json!({"kty": "OKP", "crv": "Ed448", "x": base64url([1; 57]), "kid": "ed448", "alg": "EdDSA"});
        left_out(&ed448);
    }

    /// tok-35: not a bit may differ.
    #[test]
    fn a_signature_that_was_touched_is_refused() {
        let bench = bench();
        for signer in KEYS.published() {
            let good = token().signed_by(signer);
            let (signed, _) = good.rsplit_once('.').unwrap();
            let signature = signer.sign(signer.alg, signed.as_bytes());
            let with = |signature: &[u8]| format!("{signed}.{}", base64url(signature));
            let mut flipped = signature.clone();
            flipped[7] ^= 0x10;
            let longer = [&signature[..], &[0]].concat();
            for wrong in [
                &[][..],
                &vec![0; signature.len()],
                &signature[1..],
                &signature[..signature.len() - 1],
                &flipped,
                &longer,
            ] {
                bench.refuses(&with(wrong), Fault::Signature);
            }
            // The same signature under other claims.
            let other = token().claim("sub", "bob").signed_by(signer);
            let (other, _) = other.rsplit_once('.').unwrap();
            bench.refuses(
                &format!("{other}.{}", base64url(&signature)),
                Fault::Signature,
            );
        }
    }

    /// tok-36, tok-37: r and s within their range, and as two numbers side by side.
    #[test]
    fn an_ecdsa_signature_has_one_form() {
        let bench = bench();
        let order = [
            0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
            0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63,
            0x25, 0x51,
        ];
        let good = token().sign();
        let (signed, _) = good.rsplit_once('.').unwrap();
        let signature = KEYS.es256.sign("ES256", signed.as_bytes());
        let (r, s) = signature.split_at(32);
        let with = |parts: &[&[u8]]| format!("{signed}.{}", base64url(parts.concat()));
        bench.accepts(&with(&[r, s]));
        for wrong in [
            [&[0; 32][..], &[0; 32]],
            [r, &[0; 32]],
            [&[0; 32], s],
            [&order, s],
            [r, &order],
            [&[0xff; 32], s],
            [s, r],
        ] {
            bench.refuses(&with(&wrong), Fault::Signature);
        }
        let integer = |number: &[u8]| {
            let sign = if number[0] >= 0x80 { vec![0] } else { vec![] };
            let number = [&sign[..], number].concat();
            [&[2, u8::try_from(number.len()).unwrap()][..], &number].concat()
        };
        let integers = [integer(r), integer(s)].concat();
        bench.refuses(
            &with(&[&[0x30, u8::try_from(integers.len()).unwrap()], &integers]),
            Fault::Signature,
        );
    }

    /// tok-40, tok-41: weak keys are none. (Wycheproof has the one of a known bad generator.)
    #[test]
    fn weak_rsa_keys_are_left_out() {
        let good = KEYS.rs256.jwk();
        usable(&good);
        for size in [64, 128, 255] {
            left_out(&changed(&good, "n", json!(base64url(vec![0xff; size]))));
        }
        left_out(&changed(&good, "n", json!(base64url(vec![0xff; 1025]))));
        for exponent in [
            &[1][..],
            &[0, 1],
            &[2],
            &[1, 0, 0],
            &[0],
            &[],
            &[1, 0, 0, 0, 1],
        ] {
            left_out(&changed(&good, "e", json!(base64url(exponent))));
        }
        // A sign byte is somebody's habit, and makes no other number.
        let jwk = bench_of(
            &json!({"keys": [changed(&good, "e", json!(base64url([0, 1, 0, 1])))]}),
            |_| {},
        );
        jwk.accepts(&token().signed_by(&KEYS.rs256));
    }

    /// tok-42, tok-55: a name names one key; without a name there must be only one.
    #[test]
    fn no_other_key_is_tried() {
        let bench = bench();
        bench.refuses(&token().header("kid", "es384").sign(), Fault::Algorithm);
        bench.refuses(&token().header("kid", "unknown").sign(), Fault::KeyUnknown);
        bench.refuses(&token().signed_by(&KEYS.stranger), Fault::Signature);
        let nameless = |signer: &super::super::testing::Signer| {
            let header = json!({"alg": signer.alg, "typ": "at+jwt"}).to_string();
            compact(&header, token().claims_text(), |message| {
                signer.sign(signer.alg, message)
            })
        };
        bench.refuses(&nameless(&KEYS.es256), Fault::KeyUnknown);
        let single = bench_of(&set([&KEYS.es256]), |_| {});
        single.accepts(&nameless(&KEYS.es256));
        single.refuses(&nameless(&KEYS.stranger), Fault::Signature);
    }

    /// tok-56: a key says what it is for.
    #[test]
    fn a_key_for_another_use_is_left_out() {
        let jwk = KEYS.es256.jwk();
        for value in [
            json!("enc"),
            json!("SIG"),
            json!(["sig"]),
            json!(null),
            json!(""),
        ] {
            left_out(&changed(&jwk, "use", value));
        }
        usable(&changed(&jwk, "key_ops", json!(["verify"])));
        usable(&changed(&jwk, "key_ops", json!(["sign", "verify"])));
        for value in [
            json!(["sign"]),
            json!(["encrypt"]),
            json!([]),
            json!("verify"),
            json!(null),
            json!([1]),
        ] {
            left_out(&changed(&jwk, "key_ops", value));
        }
        for alg in [
            json!("ES384"),
            json!("RS256"),
            json!("HS256"),
            json!("none"),
            json!("ECDH-ES"),
            json!(1),
            json!(null),
        ] {
            left_out(&changed(&jwk, "alg", alg));
        }
    }

    /// tok-58: of two keys with one name, neither is used.
    #[test]
    fn two_keys_of_one_name_are_no_key() {
        let twin = |jwk: Value| changed(&jwk, "kid", json!("es"));
        for other in [
            KEYS.stranger.jwk(),
            twin(KEYS.rs256.jwk()),
            KEYS.es256.jwk(),
            json!({"kty": "oct", "k": "AAAA", "kid": "es"}),
        ] {
            let bench = bench_of(
                &json!({"keys": [KEYS.es256.jwk(), other, KEYS.ed25519.jwk()]}),
                |_| {},
            );
            bench.refuses(&token().sign(), Fault::KeyUnknown);
            bench.accepts(&token().signed_by(&KEYS.ed25519));
        }
    }

    /// tok-59: and neither is anything that is secret, or malformed; each by itself.
    #[test]
    fn keys_that_cannot_be_used_are_left_out_one_by_one() {
        let (ec, rsa, ed) = (KEYS.es256.jwk(), KEYS.rs256.jwk(), KEYS.ed25519.jwk());
        left_out(&json!({"kty": "oct", "k": base64url("secret"), "kid": "o", "alg": "HS256"}));
        for (jwk, name, value) in [
            (&ec, "d", json!(base64url([1; 32]))),
            (&rsa, "d", json!(base64url([1; 256]))),
            (&ed, "d", json!(base64url([1; 32]))),
            (&ec, "x", json!(base64url([1; 32]))),
            (&ec, "x", json!(base64url([1; 31]))),
            (&ec, "y", json!(7)),
            (&ec, "y", json!("====")),
            (&ec, "crv", json!("P-384")),
            (&ec, "crv", json!("secp256k1")),
            (&ec, "crv", json!("Ed25519")),
            (&ec, "kty", json!("OKP")),
            (&ec, "kty", json!("RSA")),
            (&ec, "kty", json!("ec")),
            (&ec, "kid", json!(7)),
            (&rsa, "n", json!("")),
            (&rsa, "n", json!("not base64url!")),
            (&rsa, "e", json!(null)),
            (&rsa, "kty", json!("EC")),
            (&ed, "x", json!(base64url([1; 31]))),
            (&ed, "crv", json!("X25519")),
        ] {
            left_out(&changed(jwk, name, value));
        }
        for strange in [
            json!(null),
            json!("key"),
            json!([]),
            json!({}),
            json!({"kty": "AKP", "alg": "ML-DSA-44"}),
        ] {
            left_out(&strange);
        }
        // What nobody reads may be wrong.
        usable(&changed(&ec, "x5c", json!("no list")));
    }

    /// tok-99: and a set has a largest size.
    #[test]
    fn what_is_no_key_set_is_none() {
        for text in [
            "",
            "[]",
            "{}",
            "{\"keys\":{}}",
            "{\"keys\":null}",
            "<html></html>",
            "{\"keys\":[]}x",
            "{\"keys\":[],\"keys\":[]}",
        ] {
            assert!(
                KeySet::read(text.as_bytes(), &[Algorithm::Es256]).is_none(),
                "{text}"
            );
        }
        let named = |count: usize| json!({"keys": (0..count).map(|n| changed(&KEYS.es256.jwk(), "kid", json!(n.to_string()))).collect::<Vec<_>>()});
        assert_eq!(read(&named(MAX_KEYS)).unwrap().len(), MAX_KEYS);
        assert!(read(&named(MAX_KEYS + 1)).is_none());
    }
}

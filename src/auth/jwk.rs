//! JSON Web Keys (RFC 7517, RFC 7518 §6): which of a set are usable, each for
//! exactly one algorithm.

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, EcdsaVerificationAlgorithm, ParsedPublicKey};
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
            Self::Rs256 | Self::Rs384 | Self::Rs512 | Self::Ps256 | Self::Ps384 | Self::Ps512 => Family::Rsa,
            Self::Es256 => Family::P256,
            Self::Es384 => Family::P384,
            Self::Ed25519 => Family::Ed25519,
        }
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
    key: DecodingKey,
}

impl Key {
    /// The one algorithm that the key is for (RFC 8725 §3.1).
    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Whether `signature` (base64url) is this key's over `signed`.
    pub(super) fn verifies(&self, signed: &[u8], signature: &str) -> bool {
        jsonwebtoken::crypto::verify(signature, signed, &self.key, self.algorithm.for_crate()).unwrap_or(false)
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
        let keys = document.root(text).get("keys").filter(|keys| keys.kind() == Kind::Array)?;
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
            let Some(key) = usable(jwk, accepted) else { continue };
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

fn usable(jwk: Value<'_>, accepted: &[Algorithm]) -> Option<Key> {
    let text = |name| jwk.get(name).and_then(Value::as_str);
    if jwk.get("use").is_some() && text("use").as_deref() != Some("sig") {
        return None;
    }
    if let Some(operations) = jwk.get("key_ops")
        && !operations.elements().any(|operation| operation.as_str().as_deref() == Some("verify"))
    {
        return None;
    }
    // A set with private or secret keys in it is somebody's accident: none of those is used.
    if jwk.get("d").is_some() || jwk.get("k").is_some() {
        return None;
    }
    let (family, key) = match (text("kty")?.as_ref(), text("crv").as_deref()) {
        ("RSA", None) => (Family::Rsa, rsa(&text("n")?, &text("e")?)?),
        ("EC", Some("P-256")) => (Family::P256, curve(&text("x")?, &text("y")?, 32, &ECDSA_P256_SHA256_FIXED)?),
        ("EC", Some("P-384")) => (Family::P384, curve(&text("x")?, &text("y")?, 48, &ECDSA_P384_SHA384_FIXED)?),
        ("OKP", Some("Ed25519")) => {
            let x = text("x")?;
            (Family::Ed25519, (decode(&x)?.len() == 32).then(|| DecodingKey::from_ed_components(&x).ok())??)
        }
        _ => return None,
    };
    let algorithm = match jwk.get("alg") {
        Some(named) => Algorithm::parse(&named.as_str()?)?,
        None => default_algorithm(family, accepted)?,
    };
    (algorithm.family() == family && accepted.contains(&algorithm)).then_some(Key { algorithm, key })
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
    let mut fitting = accepted.iter().filter(|algorithm| algorithm.family() == family);
    match (fitting.next(), fitting.next()) {
        (Some(only), None) => Some(*only),
        _ => None,
    }
}

fn rsa(n: &str, e: &str) -> Option<DecodingKey> {
    let (modulus, exponent) = (decode(n)?, decode(e)?);
    // Some providers put a sign byte first, against RFC 7518 §2.
    let (modulus, exponent) = (without_zeros(&modulus), without_zeros(&exponent));
    let bits = modulus.len() * 8 - modulus.first()?.leading_zeros() as usize;
    // RFC 7518 §3.3: 2048 bits or more; the upper bound keeps one verification cheap.
    let sized = (MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits);
    let odd = exponent.last().is_some_and(|last| last % 2 == 1) && *exponent != [1] && exponent.len() <= 4;
    (sized && odd && !is_roca(modulus)).then(|| DecodingKey::from_rsa_raw_components(modulus, exponent))
}

/// Whether a modulus was made by the generator of CVE-2017-15361, whose keys can be
/// factored: modulo every small prime it is then a power of 65537 (tok-41).
fn is_roca(modulus: &[u8]) -> bool {
    let is_power = |prime: u32| {
        let rest = modulus.iter().fold(0, |rest, byte| (rest * 256 + u32::from(*byte)) % prime);
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

fn curve(x: &str, y: &str, size: usize, algorithm: &'static EcdsaVerificationAlgorithm) -> Option<DecodingKey> {
    let point = [vec![UNCOMPRESSED], decode(x)?, decode(y)?].concat();
    let fits = decode(x)?.len() == size && decode(y)?.len() == size;
    // A point that is not on the curve is no key.
    let key = fits.then(|| ParsedPublicKey::new(algorithm, &point).ok()).flatten();
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
    3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113,
    127, 131, 137, 139, 149, 151, 157, 163, 167,
];
const MIN_RSA_BITS: usize = 2048;
const MAX_RSA_BITS: usize = 8192;
/// What a JWK set may hold: `fetch` caps its bytes.
const LIMITS: json::Limits = json::Limits { depth: 8, nodes: 65_536 };

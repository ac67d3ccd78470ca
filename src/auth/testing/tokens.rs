//! Keys, and tokens that are good until a test spoils them.

use std::sync::LazyLock;

use http::{HeaderMap, HeaderValue, header};
use serde_json::{Value, json};

use super::{Signer, compact};

/// What the tests' clocks say.
pub(in crate::auth) const NOW: u64 = 1_800_000_000;
pub(in crate::auth) const ISSUER: &str = "https://sso.example.com/realms/corp";
pub(in crate::auth) const AUDIENCE: &str = "https://mcp.example.com/github";
pub(in crate::auth) const LEEWAY: u64 = 30;
pub(in crate::auth) const ALGORITHMS: [&str; 9] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA",
];

/// The keys that the tests' issuer publishes, one an algorithm family.
pub(in crate::auth) struct Keys {
    pub(in crate::auth) es256: Signer,
    pub(in crate::auth) es384: Signer,
    pub(in crate::auth) rs256: Signer,
    pub(in crate::auth) ps256: Signer,
    pub(in crate::auth) ed25519: Signer,
    /// Not published.
    pub(in crate::auth) stranger: Signer,
}

pub(in crate::auth) static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    es256: Signer::new("es", "ES256"),
    es384: Signer::new("es384", "ES384"),
    rs256: Signer::new("rs", "RS256"),
    ps256: Signer::new("ps", "PS256"),
    ed25519: Signer::new("ed", "EdDSA"),
    stranger: Signer::new("es", "ES256"),
});

impl Keys {
    pub(in crate::auth) fn published(&self) -> [&Signer; 5] {
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
pub(in crate::auth) fn set<'a>(signers: impl IntoIterator<Item = &'a Signer>) -> Value {
    json!({"keys": signers.into_iter().map(Signer::jwk).collect::<Vec<_>>()})
}

/// A token in the making: a good one, until a test spoils it.
#[derive(Clone)]
pub(in crate::auth) struct Token {
    header: Value,
    claims: Value,
}

pub(in crate::auth) fn token() -> Token {
    Token {
        header: json!({"typ": "at+jwt"}),
        claims: json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "client_id": "editor",
            "iat": NOW, "exp": NOW + 300, "jti": "1", "scope": "tools:read tools:call", "groups": ["staff"],
        }),
    }
}

impl Token {
    pub(in crate::auth) fn header(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.header[name] = value.into();
        self
    }

    pub(in crate::auth) fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.claims[name] = value.into();
        self
    }

    pub(in crate::auth) fn without(mut self, name: &str) -> Self {
        self.header.as_object_mut().unwrap().remove(name);
        self.claims.as_object_mut().unwrap().remove(name);
        self
    }

    /// By the key of ES256, as most tests do not care.
    pub(in crate::auth) fn sign(self) -> String {
        self.signed_by(&KEYS.es256)
    }

    /// Names the key and its algorithm, unless the test already has.
    pub(in crate::auth) fn signed_by(mut self, signer: &Signer) -> String {
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

    pub(in crate::auth) fn claims_text(&self) -> String {
        self.claims.to_string()
    }
}

/// A token with this header text and these claims' text, signed by the key of ES256.
pub(in crate::auth) fn spelled(header: &str, payload: impl AsRef<[u8]>) -> String {
    KEYS.es256.token(header, payload)
}

pub(in crate::auth) const HEADER: &str = r#"{"alg":"ES256","kid":"es","typ":"at+jwt"}"#;

pub(in crate::auth) fn bearer(token: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(
        header::AUTHORIZATION,
        HeaderValue::try_from(format!("Bearer {token}")).unwrap(),
    );
    headers
}

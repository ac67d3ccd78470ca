//! An issuer's key, and tokens of as many people as there are callers.

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
        RsaPublicKeyComponents,
    },
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::house::{AUDIENCE, ISSUER};

type Sign = Box<dyn Fn(&[u8]) -> Vec<u8>>;

pub struct Issuer {
    alg: &'static str,
    jwk: Value,
    sign: Sign,
}

impl Issuer {
    pub fn rs256() -> Self {
        let key = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        let public = RsaPublicKeyComponents::<Vec<u8>>::from(key.public_key());
        Self {
            alg: "RS256",
            jwk: json!({ "kty": "RSA", "n": base64url(public.n), "e": base64url(public.e) }),
            sign: Box::new(move |text| {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(
                    &RSA_PKCS1_SHA256,
                    &SystemRandom::new(),
                    text,
                    &mut signature,
                )
                .unwrap();
                signature
            }),
        }
    }

    pub fn es256() -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let (x, y) = key.public_key().as_ref()[1..].split_at(32);
        Self {
            alg: "ES256",
            jwk: json!({ "kty": "EC", "crv": "P-256", "x": base64url(x), "y": base64url(y) }),
            sign: Box::new(move |text| {
                key.sign(&SystemRandom::new(), text)
                    .unwrap()
                    .as_ref()
                    .to_vec()
            }),
        }
    }

    /// The issuer's document of keys.
    pub fn keys(&self) -> String {
        let mut jwk = self.jwk.clone();
        (jwk["kid"], jwk["alg"], jwk["use"]) = (json!("load"), json!(self.alg), json!("sig"));
        json!({ "keys": [jwk] }).to_string()
    }

    /// An hour's access token of one person.
    pub fn token(&self, person: usize) -> String {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let header = json!({ "typ": "at+jwt", "alg": self.alg, "kid": "load" });
        let claims = json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": format!("7f2c9a10-1c1d-4c55-9d54-{person:012}"),
            "client_id": "desktop-editor", "iat": now, "exp": now + 3600, "jti": person.to_string(),
            "scope": "openid profile mcp:read mcp:call", "groups": ["staff", "developers", "on-call"],
            "preferred_username": format!("person{person}"), "email": format!("person{person}@example.com"),
        });
        let signed = format!(
            "{}.{}",
            base64url(header.to_string()),
            base64url(claims.to_string())
        );
        let signature = (self.sign)(signed.as_bytes());
        format!("{signed}.{}", base64url(signature))
    }
}

fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

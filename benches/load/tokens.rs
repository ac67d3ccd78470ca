//! An issuer's key, and tokens of as many people as there are callers.

use serde_json::json;

use crate::{
    house::{AUDIENCE, ISSUER},
    signer::Signer,
};

pub struct Issuer(Signer);

impl Issuer {
    pub fn new(alg: &'static str) -> Self {
        Self(Signer::new("load", alg))
    }

    /// The issuer's document of keys.
    pub fn keys(&self) -> String {
        json!({ "keys": [self.0.jwk()] }).to_string()
    }

    /// An hour's access token of one person.
    pub fn token(&self, person: usize) -> String {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let header = json!({ "typ": "at+jwt", "alg": self.0.alg, "kid": self.0.kid });
        let claims = json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": format!("7f2c9a10-1c1d-4c55-9d54-{person:012}"),
            "client_id": "desktop-editor", "iat": now, "exp": now + 3600, "jti": person.to_string(),
            "scope": "openid profile mcp:read mcp:call", "groups": ["staff", "developers", "on-call"],
            "preferred_username": format!("person{person}"), "email": format!("person{person}@example.com"),
        });
        self.0.token(header.to_string(), claims.to_string())
    }
}

//! One OpenID provider, as configured: what of its tokens is accepted.

use std::{path::PathBuf, time::Duration};

use ipnet::IpNet;

/// One OpenID provider whose tokens are accepted.
#[derive(Clone, Debug)]
pub struct Issuer {
    /// The issuer identifier, compared byte for byte with `iss`.
    pub issuer: String,
    /// Accepted `aud` values; never empty.
    pub audience: Vec<String>,
    /// `true`: a token that names another audience besides is refused.
    pub single_audience: bool,
    /// Where the keys come from.
    pub keys: KeySource,
    /// PEM file of authorities trusted besides the system's; a path as in [`KeySource::File`].
    pub ca_file: Option<PathBuf>,
    /// What is shown to the provider when its documents are fetched.
    pub token_file: Option<TokenFile>,
    /// Addresses that a fetched document may lead to, besides public ones.
    pub allow_addresses: Vec<IpNet>,
    /// Accepted signature algorithms, by their JOSE names.
    pub algorithms: Vec<String>,
    /// Accepted clock difference (`exp`, `nbf`, `iat`).
    pub leeway: Duration,
    /// How long a token may live, from `iat` to `exp`.
    pub max_lifetime: Duration,
    /// What kind of token is shown.
    pub token: TokenKind,
    /// `true`: `typ` may be `JWT` or absent (`typ = "legacy"`).
    pub legacy_typ: bool,
    /// `true`: a token may say where a key would be (`key-urls = "ignored"`). Nobody looks there.
    pub ignores_key_urls: bool,
    /// Accepted `client_id`/`azp` values; empty means any.
    pub clients: Vec<String>,
    /// Accepted `sub` values; empty means any.
    pub subjects: Vec<Pattern>,
    /// Refused `sub` values, whatever else says.
    pub revoked: Vec<Pattern>,
    /// Unix time in seconds: tokens issued before are refused.
    pub issued_after: Option<u64>,
    /// Claims that must be there with one of the values.
    pub required_claims: Vec<RequiredClaim>,
    /// Scopes that every token must have.
    pub scopes: Vec<String>,
    /// Scopes that stand for others.
    pub implied_scopes: Vec<(String, Vec<String>)>,
    /// The service account that the token must be of.
    pub kubernetes: Option<ServiceAccount>,
    /// Whom to ask about tokens that are no JWT (RFC 7662).
    pub introspection: Option<Introspection>,
    /// Whether tokens are bound to a key of their client (RFC 9449).
    pub dpop: Dpop,
    /// Whether a proof must hold a nonce of ours (RFC 9449 §9).
    pub dpop_nonce: bool,
}

/// Where an issuer's keys come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KeySource {
    /// `ISSUER/.well-known/openid-configuration`, then its `jwks_uri`.
    Discovery,
    /// This JWK set (`jwks-url`).
    Url(String),
    /// This file (`jwks-file`); the path is the host's, the configuration root included.
    File(PathBuf),
}

/// What kind of token callers show.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TokenKind {
    /// An access token (RFC 9068).
    Access,
    /// An ID token (OpenID Connect Core §2), for providers that have nothing better.
    Id,
}

/// A bearer token for the provider itself, read again whenever it is needed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TokenFile {
    pub path: PathBuf,
    /// `scheme://host[:port]`: it is sent nowhere else.
    pub origin: String,
}

/// A Kubernetes service account.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceAccount {
    pub namespace: String,
    pub name: String,
}

/// Token introspection (RFC 7662).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Introspection {
    /// `None`: what the issuer's discovery document names.
    pub url: Option<String>,
    /// This resource server's own client at the provider.
    pub client_id: String,
    /// The systemd credential of the gateway's unit that holds the client's secret.
    pub credential: String,
}

/// Whether tokens are bound to a key of their client (RFC 9449).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Dpop {
    /// A bound token is refused.
    Off,
    /// Bound tokens are accepted with their proof, others as bearer tokens.
    Accepted,
    /// Only bound tokens are accepted.
    Required,
}

/// Text with `*` for any run of characters, the empty one included.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pattern(String);

impl Pattern {
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether all of `text` is what the pattern says. Time is the product of both lengths at most.
    pub fn matches(&self, text: &str) -> bool {
        let mut pieces = self.0.split('*');
        let first = pieces.next().unwrap_or_default();
        let Some(mut rest) = text.strip_prefix(first) else {
            return false;
        };
        let Some(last) = pieces.next_back() else {
            return rest.is_empty();
        };
        // The leftmost place of each piece leaves the most room for those that follow.
        for piece in pieces {
            let Some(at) = rest.find(piece) else {
                return false;
            };
            rest = &rest[at + piece.len()..];
        }
        rest.ends_with(last)
    }
}

/// A claim that must be there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RequiredClaim {
    pub name: String,
    /// Never empty; one of them is enough.
    pub accepted: Vec<ClaimValue>,
}

/// A value that a claim may be required to have.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ClaimValue {
    Text(String),
    Truth(bool),
    Number(i64),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_any_run_of_characters_and_nothing_else_is_special() {
        for (pattern, text) in [
            ("alice", "alice"),
            ("*", ""),
            ("*", "anything"),
            (
                "repo:acme/*:ref:refs/heads/main",
                "repo:acme/x/y:ref:refs/heads/main",
            ),
            ("a*b*c", "abc"),
            ("a*b*c", "a-b-b-c"),
            ("*.example", ".example"),
            ("a?c", "a?c"),
        ] {
            assert!(Pattern::new(pattern).matches(text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("alice", "alice2"),
            ("alice", "Alice"),
            ("", "x"),
            ("a*", "ba"),
            ("a*a", "a"),
            ("ab*ba", "aba"),
            ("a*b*c", "acb"),
            ("a?c", "abc"),
            (
                "repo:acme/*:ref:refs/heads/main",
                "repo:acme/x:ref:refs/heads/main2",
            ),
        ] {
            assert!(!Pattern::new(pattern).matches(text), "{pattern} {text}");
        }
    }
}

//! From a request's headers to an [`Identity`].

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::digest;
use http::HeaderMap;

use super::{
    AuthError, Fault, Identity, Kind, bearer, claims, jwt,
    jwt::Unverified,
    keys::{KeyRing, NoKey, Notices},
};
use crate::{
    config::{Auth, Issuer},
    fetch::FetchError,
    time::Clock,
};

/// Validates callers against one server's configuration.
pub struct Authenticator {
    /// Empty where nobody has to prove anything (`mode = "none"`).
    issuers: Vec<Trusted>,
    open: bool,
    clock: Clock,
    /// The latest time ever seen: a clock set back must not revive a token (tok-70).
    latest: AtomicU64,
    verified: Mutex<HashMap<[u8; 32], Verified>>,
}

struct Trusted {
    config: Issuer,
    keys: KeyRing,
}

/// A token that was good, for as long as nothing it rests on has changed.
struct Verified {
    identity: Identity,
    issuer: usize,
    /// Of the issuer's keys when the signature was verified.
    generation: u64,
}

impl Authenticator {
    /// Prepares the issuers of `auth`; asks nobody anything yet.
    pub fn build(auth: &Auth, clock: Clock, notices: &Notices) -> Result<Self, FetchError> {
        // The first of a process wins; it is the same each time.
        let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
        let trusted = |config: &Issuer| {
            KeyRing::new(config, notices.clone()).map(|keys| Trusted {
                config: config.clone(),
                keys,
            })
        };
        let (issuers, open) = match auth {
            Auth::Oidc(issuers) => (
                issuers.iter().map(trusted).collect::<Result<_, _>>()?,
                false,
            ),
            Auth::None => (Vec::new(), true),
        };
        Ok(Self {
            issuers,
            open,
            clock,
            latest: AtomicU64::new(0),
            verified: Mutex::default(),
        })
    }

    /// Keeps the issuers' keys in `directory` from one process to the next.
    pub fn keeping(self, directory: &Path) -> Self {
        for trusted in &self.issuers {
            trusted
                .keys
                .keep_in(directory, &trusted.config, &self.clock);
        }
        self
    }

    /// Says who sends a request with these headers and this query.
    pub async fn authenticate(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
    ) -> Result<Identity, AuthError> {
        if self.open {
            return Ok(anonymous());
        }
        let token = bearer::token(headers, query)?;
        let now = self.now();
        let name = fingerprint(token);
        if let Some(identity) = self.recall(&name, now) {
            return Ok(identity);
        }
        let unverified = jwt::read(token)?;
        let named = claims::issuer(&unverified.claims)?;
        let (index, trusted) = self
            .issuers
            .iter()
            .enumerate()
            .find(|(_, trusted)| trusted.config.issuer == named)
            .ok_or(AuthError::Rejected(Fault::Issuer))?;
        let identity = claims::check(&unverified.header, &unverified.claims, &trusted.config, now)?;
        let generation = trusted.verify(&unverified).await?;
        self.remember(
            name,
            Verified {
                identity: identity.clone(),
                issuer: index,
                generation,
            },
            now,
        );
        Ok(identity)
    }

    /// How long what this identity has opened may stay open: to the token's end, and its issuer's
    /// leeway (tok-69). `None` where nothing ends.
    pub fn time_left(&self, identity: &Identity) -> Option<Duration> {
        let leeway = self
            .issuers
            .iter()
            .find(|trusted| trusted.config.issuer == identity.issuer())
            .map(|trusted| trusted.config.leeway)?;
        let left = identity.expires_at().saturating_sub(self.now());
        Some(Duration::from_secs(left).saturating_add(leeway).min(LONG))
    }

    fn recall(&self, name: &[u8; 32], now: u64) -> Option<Identity> {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        let known = verified.get(name)?;
        let trusted = &self.issuers[known.issuer];
        let current = trusted.keys.generation() == Some(known.generation);
        if current
            && now
                < known
                    .identity
                    .expires_at()
                    .saturating_add(trusted.config.leeway.as_secs())
        {
            return Some(known.identity.clone());
        }
        verified.remove(name);
        None
    }

    fn remember(&self, name: [u8; 32], token: Verified, now: u64) {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= MAX_VERIFIED {
            verified.retain(|_, token| now < token.identity.expires_at());
            if verified.len() >= MAX_VERIFIED {
                // Those that are still in use cost one verification each to come back.
                verified.clear();
            }
        }
        verified.insert(name, token);
    }

    fn now(&self) -> u64 {
        let now = self.clock.now();
        self.latest.fetch_max(now, Ordering::Relaxed).max(now)
    }
}

impl Trusted {
    /// Checks the signature; says of which generation the key is.
    async fn verify(&self, token: &Unverified<'_>) -> Result<u64, AuthError> {
        let algorithm = token.header.algorithm;
        if !self
            .config
            .algorithms
            .iter()
            .any(|name| algorithm.is_called(name))
        {
            return Err(AuthError::Rejected(Fault::Algorithm));
        }
        let found =
            self.keys
                .find(token.header.kid.as_deref())
                .await
                .map_err(|error| match error {
                    NoKey::Unknown => AuthError::Rejected(Fault::KeyUnknown),
                    NoKey::Down(retry_after) => AuthError::IssuerDown {
                        issuer: self.config.issuer.clone(),
                        retry_after,
                    },
                })?;
        if found.key.algorithm() != algorithm {
            return Err(AuthError::Rejected(Fault::Algorithm));
        }
        if !found.key.verifies(token.signed, token.signature) {
            return Err(AuthError::Rejected(Fault::Signature));
        }
        Ok(found.generation)
    }
}

/// Whoever it is, where nobody has to say.
fn anonymous() -> Identity {
    Identity {
        issuer: String::new(),
        subject: "anonymous".to_owned(),
        kind: Kind::User,
        client: None,
        scopes: Vec::new(),
        groups: Vec::new(),
        expires_at: u64::MAX,
    }
}

fn fingerprint(token: &str) -> [u8; 32] {
    let mut name = [0; 32];
    name.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    name
}

#[cfg(test)]
impl Authenticator {
    /// The keys of each issuer, for the tests of keys.
    pub(super) fn issuers(&self) -> Vec<&KeyRing> {
        self.issuers.iter().map(|trusted| &trusted.keys).collect()
    }
}

/// Longer than any stream stays open, and short enough for every clock.
const LONG: Duration = Duration::from_secs(365 * 24 * 3600);
/// Verified tokens remembered at once.
const MAX_VERIFIED: usize = 4096;

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::{
        super::testing::{NOW, bearer, bench, clock, token, unheard},
        *,
    };

    #[test]
    fn a_token_says_who_calls() {
        let identity = bench().accepts(&token().sign());
        assert_eq!(
            (identity.issuer(), identity.subject()),
            (super::super::testing::ISSUER, "alice")
        );
        assert_eq!(
            (identity.kind(), identity.client()),
            (Kind::User, Some("editor"))
        );
        assert_eq!(
            (identity.scopes(), identity.groups()),
            (
                &["tools:read", "tools:call"].map(str::to_owned)[..],
                &["staff".to_owned()][..]
            )
        );
        assert_eq!(identity.expires_at(), NOW + 300);
    }

    #[tokio::test]
    async fn where_nobody_has_to_prove_anything_all_are_one_anonymous_user() {
        let open = Authenticator::build(&Auth::None, clock().1, &unheard()).unwrap();
        for headers in [HeaderMap::new(), bearer("nonsense")] {
            let identity = open.authenticate(&headers, None).await.unwrap();
            assert_eq!(
                (identity.issuer(), identity.subject(), identity.kind()),
                ("", "anonymous", Kind::User)
            );
        }
    }

    /// No token is kept, only its hash; and of those not more than so many.
    #[test]
    fn verified_tokens_are_remembered_up_to_a_number() {
        let bench = bench();
        for number in 0..3 {
            bench.accepts(&token().claim("jti", number.to_string()).sign());
            bench.accepts(&token().claim("jti", number.to_string()).sign());
        }
        let held = || bench.authenticator.verified.lock().unwrap().len();
        let identity = bench.accepts(&token().sign());
        let remember = |n: u64, expires_at| {
            let mut name = [0; 32];
            name[..8].copy_from_slice(&n.to_be_bytes());
            let identity = Identity {
                expires_at,
                ..identity.clone()
            };
            bench.authenticator.remember(
                name,
                Verified {
                    identity,
                    issuer: 0,
                    generation: 1,
                },
                NOW,
            );
        };
        for number in 0..3 * MAX_VERIFIED as u64 / 2 {
            remember(number, if number % 2 == 0 { NOW - 1 } else { NOW + 1 });
            assert!(held() <= MAX_VERIFIED);
        }
        assert!(
            held() > MAX_VERIFIED / 2,
            "those that have expired went first"
        );
    }

    #[test]
    fn a_refused_token_is_not_remembered() {
        let bench = bench();
        for _ in 0..2 {
            bench.refuses(
                &token().claim("aud", "https://other.example").sign(),
                Fault::Audience,
            );
        }
        assert!(bench.authenticator.verified.lock().unwrap().is_empty());
    }
}

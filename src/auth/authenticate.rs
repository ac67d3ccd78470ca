//! From a request's headers to an [`Identity`].

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use foldhash::HashMap;
use http::{HeaderMap, Method};

use super::{
    AuthError, Fault, Identity, IntrospectionError, LocalPeer,
    bearer::{self, Scheme, Shown},
    claims::{self, Claimed},
    dpop::{self, Proofs},
    introspection::{self, Introspector},
    jwt,
    jwt::Unverified,
    keys::{KeyRing, NoKey, Notices},
    local,
    names::{Name, Names},
};
use crate::{
    config::{Auth, Dpop, Issuer, Resource},
    systemd::Credentials,
    time::Clock,
};

/// Validates callers against one server's configuration.
pub struct Authenticator {
    way: Way,
    clock: Clock,
    /// The latest time ever seen: a clock set back must not revive a token (tok-70).
    latest: AtomicU64,
    names: Names,
    verified: Mutex<HashMap<Name, Verified>>,
}

/// How callers prove who they are.
enum Way {
    Tokens(Box<Tokens>),
    /// The kernel says so.
    Local,
    /// Nobody has to: who it is then.
    Open(Arc<Identity>),
}

struct Tokens {
    issuers: Vec<Trusted>,
    schemes: Vec<Scheme>,
    proofs: Proofs,
}

struct Trusted {
    config: Issuer,
    keys: KeyRing,
    introspector: Option<Introspector>,
}

/// A token that was good, for as long as nothing it rests on has changed.
#[derive(Clone)]
struct Verified {
    claimed: Claimed,
    issuer: usize,
    rests_on: RestsOn,
}

#[derive(Clone, Copy)]
enum RestsOn {
    /// The generation of the issuer's keys when the signature was verified.
    Keys(u64),
    /// The issuer's word, until then (Unix time in seconds).
    Word(u64),
}

/// What a request shows to say who sends it.
#[derive(Clone, Copy, Debug)]
pub struct Presented<'a> {
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
    pub query: Option<&'a str>,
    /// Who is at the other end of a Unix socket.
    pub local: Option<LocalPeer>,
}

/// What an authenticator is built into.
pub struct Surroundings<'a> {
    pub resource: &'a Resource,
    pub clock: Clock,
    /// Who hears of keys that came, and of those that did not.
    pub notices: &'a Notices,
    pub credentials: &'a Credentials,
}

impl Authenticator {
    /// Prepares the issuers of `auth`; asks nobody anything yet.
    pub fn build(auth: &Auth, around: Surroundings<'_>) -> Result<Self, IntrospectionError> {
        // The first of a process wins; it is the same each time.
        let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
        let way = match auth {
            Auth::Oidc(issuers) => Way::Tokens(Box::new(Tokens::build(issuers, &around)?)),
            Auth::Peer => Way::Local,
            Auth::None => Way::Open(Arc::new(Identity::user("", "anonymous"))),
        };
        Ok(Self {
            way,
            clock: around.clock,
            latest: AtomicU64::new(0),
            names: Names::new(),
            verified: Mutex::default(),
        })
    }

    /// Keeps the issuers' keys in `directory` from one process to the next.
    pub fn keeping(self, directory: &Path) -> Self {
        if let Way::Tokens(tokens) = &self.way {
            for trusted in &tokens.issuers {
                trusted
                    .keys
                    .keep_in(directory, &trusted.config, &self.clock);
            }
        }
        self
    }

    /// Says who sends a request.
    pub async fn authenticate(
        &self,
        presented: &Presented<'_>,
    ) -> Result<Arc<Identity>, AuthError> {
        let tokens = match &self.way {
            Way::Tokens(tokens) => tokens,
            Way::Local => {
                return Box::pin(local::identify(presented.local))
                    .await
                    .map(Arc::new);
            }
            Way::Open(anybody) => return Ok(anybody.clone()),
        };
        let shown = bearer::credentials(presented.headers, presented.query, &tokens.schemes)?;
        let now = self.now();
        let verified = self.verified(tokens, shown, now).await?;
        tokens.check_binding(presented, shown, &verified, now)?;
        Ok(verified.claimed.identity)
    }

    /// How long what this identity has opened may stay open: to the token's end, and its issuer's
    /// leeway (tok-69). `None` where nothing ends.
    pub fn time_left(&self, identity: &Identity) -> Option<Duration> {
        let Way::Tokens(tokens) = &self.way else {
            return None;
        };
        let leeway = tokens
            .issuers
            .iter()
            .find(|trusted| trusted.config.issuer == identity.issuer)
            .map(|trusted| trusted.config.leeway)?;
        let left = identity.expires_at().saturating_sub(self.now());
        Some(Duration::from_secs(left).saturating_add(leeway).min(LONG))
    }

    /// The scopes that every call of this identity needs (`scopes` of its issuer).
    pub fn scopes_for_all(&self, identity: &Identity) -> &[String] {
        let Way::Tokens(tokens) = &self.way else {
            return &[];
        };
        tokens
            .issuers
            .iter()
            .find(|trusted| trusted.config.issuer == identity.issuer)
            .map(|trusted| &trusted.config.scopes[..])
            .unwrap_or_default()
    }

    /// The scopes to ask for when a policy wants those of `step` besides; `None` where no
    /// token is shown, and so none with more scopes could be.
    pub fn scopes_to_ask_for(&self, identity: &Identity, step: Vec<String>) -> Option<Vec<String>> {
        if !matches!(self.way, Way::Tokens(_)) {
            return None;
        }
        let mut needed = self.scopes_for_all(identity).to_vec();
        for scope in step {
            if !needed.contains(&scope) {
                needed.push(scope);
            }
        }
        Some(needed)
    }

    /// Whether the token was issued for them.
    pub fn check_scopes(&self, identity: &Identity) -> Result<(), AuthError> {
        let needed = self.scopes_for_all(identity);
        if needed.iter().all(|scope| identity.scopes.contains(scope)) {
            Ok(())
        } else {
            Err(AuthError::Scope(needed.to_vec()))
        }
    }

    /// Lets go of what nobody has asked for in a while; it comes back when somebody does.
    pub fn rest(&self) {
        self.names.forget();
    }

    async fn verified(
        &self,
        tokens: &Tokens,
        shown: Shown<'_>,
        now: u64,
    ) -> Result<Verified, AuthError> {
        let name = match self.names.kept(shown.token) {
            Some(name) => name,
            // Its form first: what was kept has it.
            None => self.names.keep(shown.checked()?),
        };
        if let Some(known) = self.recall(tokens, &name, now) {
            return Ok(known);
        }
        let token = shown.checked()?;
        let asked = tokens.introspecting().filter(|_| !jwt::is_jwt(token));
        let verified = match asked {
            Some((issuer, introspector)) => {
                let claimed = Box::pin(introspector.ask(token, &name, now)).await?;
                // Within the leeway the issuer is asked each time: its clock decides (tok-111).
                let until = claimed.identity.expires_at();
                Verified {
                    claimed,
                    issuer,
                    rests_on: RestsOn::Word(until.min(now + introspection::POSITIVE)),
                }
            }
            None => Box::pin(tokens.verify(token, now)).await?,
        };
        self.remember(name, verified.clone(), now);
        Ok(verified)
    }

    fn recall(&self, tokens: &Tokens, name: &Name, now: u64) -> Option<Verified> {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        let known = verified.get(name)?;
        let trusted = &tokens.issuers[known.issuer];
        let current = match known.rests_on {
            RestsOn::Keys(generation) => trusted.keys.generation() == Some(generation),
            RestsOn::Word(until) => now < until,
        };
        let expires_at = known.claimed.identity.expires_at();
        if current && now < expires_at.saturating_add(trusted.config.leeway.as_secs()) {
            return Some(known.clone());
        }
        verified.remove(name);
        None
    }

    fn remember(&self, name: Name, token: Verified, now: u64) {
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= MAX_VERIFIED {
            verified.retain(|_, token| now < token.claimed.identity.expires_at());
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

impl Tokens {
    fn build(issuers: &[Issuer], around: &Surroundings<'_>) -> Result<Self, IntrospectionError> {
        let trusted = |config: &Issuer| {
            let introspector = config.introspection.as_ref();
            Ok(Trusted {
                config: config.clone(),
                keys: KeyRing::new(config, around.notices.clone(), around.clock.clone())?,
                introspector: introspector
                    .map(|asked| Introspector::new(config, asked, around))
                    .transpose()?,
            })
        };
        let any = |wanted: fn(Dpop) -> bool| issuers.iter().any(|issuer| wanted(issuer.dpop));
        let mut schemes = Vec::new();
        if any(|dpop| dpop != Dpop::Required) {
            schemes.push(Scheme::Bearer);
        }
        if any(|dpop| dpop != Dpop::Off) {
            schemes.push(Scheme::Dpop);
        }
        Ok(Self {
            issuers: issuers
                .iter()
                .map(trusted)
                .collect::<Result<_, IntrospectionError>>()?,
            schemes,
            proofs: Proofs::new(around.resource),
        })
    }

    /// The one issuer that is asked about tokens which are no JWT.
    fn introspecting(&self) -> Option<(usize, &Introspector)> {
        self.issuers
            .iter()
            .enumerate()
            .find_map(|(index, trusted)| Some((index, trusted.introspector.as_ref()?)))
    }

    async fn verify(&self, token: &str, now: u64) -> Result<Verified, AuthError> {
        let unverified = jwt::read(token)?;
        let named = claims::issuer(&unverified.claims)?;
        let (issuer, trusted) = self
            .issuers
            .iter()
            .enumerate()
            .find(|(_, trusted)| trusted.config.issuer == named)
            .ok_or(AuthError::Rejected(Fault::Issuer))?;
        let claimed = claims::check(&unverified.header, &unverified.claims, &trusted.config, now)?;
        let generation = trusted.verify(&unverified).await?;
        Ok(Verified {
            claimed,
            issuer,
            rests_on: RestsOn::Keys(generation),
        })
    }

    /// A bound token wants the proof of its key, under the scheme that says so; one that is
    /// not bound must not claim to be (RFC 9449 §7.2).
    fn check_binding(
        &self,
        presented: &Presented<'_>,
        shown: Shown<'_>,
        verified: &Verified,
        now: u64,
    ) -> Result<(), AuthError> {
        match (shown.scheme, &verified.claimed.bound_to) {
            (Scheme::Bearer, None) => Ok(()),
            (Scheme::Bearer, Some(_)) | (Scheme::Dpop, None) => {
                Err(AuthError::Rejected(Fault::Binding))
            }
            (Scheme::Dpop, Some(bound_to)) => self.proofs.check(
                presented.headers,
                &dpop::Wanted {
                    method: presented.method,
                    token: shown.checked()?,
                    bound_to,
                    nonce: self.issuers[verified.issuer].config.dpop_nonce,
                    now,
                },
            ),
        }
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

#[cfg(test)]
impl Authenticator {
    /// The keys of each issuer, for the tests of keys.
    pub(super) fn issuers(&self) -> Vec<&KeyRing> {
        let Way::Tokens(tokens) = &self.way else {
            return Vec::new();
        };
        tokens.issuers.iter().map(|trusted| &trusted.keys).collect()
    }
}

/// Longer than any stream stays open, and short enough for every clock.
const LONG: Duration = Duration::from_secs(365 * 24 * 3600);
/// Verified tokens remembered at once.
const MAX_VERIFIED: usize = 4096;

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::super::Kind;
    use super::{
        super::testing::{NOW, bearer, bench, build, clock, post, token, unheard},
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
            (identity.scopes().to_vec(), identity.groups().to_vec()),
            (
                ["tools:read", "tools:call"].map(str::to_owned).to_vec(),
                vec!["staff".to_owned()]
            )
        );
        assert_eq!(identity.expires_at(), NOW + 300);
    }

    #[tokio::test]
    async fn where_nobody_has_to_prove_anything_all_are_one_anonymous_user() {
        let open = build(&Auth::None, clock().1, &unheard()).unwrap();
        for headers in [HeaderMap::new(), bearer("nonsense")] {
            let identity = open.authenticate(&post(&headers, None)).await.unwrap();
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
            let identity = Arc::new(Identity {
                expires_at,
                ..identity.clone()
            });
            bench.authenticator.remember(
                name,
                Verified {
                    claimed: Claimed {
                        identity,
                        bound_to: None,
                    },
                    issuer: 0,
                    rests_on: RestsOn::Keys(1),
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

    /// tok-91: each scope once, and none of somebody who has no token.
    #[test]
    fn scopes_are_asked_for_once_and_only_of_those_who_show_tokens() {
        let list = |texts: &[&str]| -> Vec<String> {
            texts.iter().map(|text| (*text).to_owned()).collect()
        };
        let bench = super::super::testing::bench_with(|issuer| issuer.scopes = list(&["a", "b"]));
        let alice = Identity::example(super::super::testing::ISSUER, "alice");
        let asked = |authenticator: &Authenticator| {
            authenticator.scopes_to_ask_for(&alice, list(&["a", "c"]))
        };
        assert_eq!(asked(&bench.authenticator), Some(list(&["a", "b", "c"])));
        for auth in [Auth::Peer, Auth::None] {
            assert_eq!(asked(&build(&auth, clock().1, &unheard()).unwrap()), None);
        }
    }
}

//! One issuer's keys: fetched when they are needed, kept while they are good,
//! used a while longer when the provider is away.
//!
//! A refresh is one at a time, is counted when it is attempted, and replaces
//! the set only when it brought a usable key. There are no keys to fall back to.

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Mutex as Turn, task::JoinSet, time::Instant};

use super::jwk::{Algorithm, Key, KeySet};
use crate::{
    config::{Issuer, KeySource},
    fetch::{FetchError, Fetcher},
    json::{self, Document, Value},
};

/// What happens to keys, for the record.
#[derive(Clone, Debug)]
pub enum Notice {
    Fetched { issuer: String, keys: usize },
    /// `cached`: keys from before are still in use.
    Unavailable { issuer: String, cached: bool, error: String },
}

/// Who hears of it.
pub type Notices = Arc<dyn Fn(Notice) + Send + Sync>;

/// Why there is no key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NoKey {
    /// The issuer has none of that name.
    Unknown,
    /// Nobody can tell; seconds until the next attempt.
    Down(u64),
}

/// The keys of one issuer.
pub(super) struct KeyRing(Arc<Inner>);

struct Inner {
    issuer: String,
    source: KeySource,
    accepted: Vec<Algorithm>,
    fetcher: Fetcher,
    notices: Notices,
    state: Mutex<State>,
    /// Held by whoever refreshes.
    turn: Turn<()>,
    background: Mutex<JoinSet<()>>,
}

struct State {
    keys: Arc<KeySet>,
    /// Counts replacements.
    generation: u64,
    fetched: Option<Instant>,
    attempted: Option<Instant>,
    time_to_live: Duration,
    /// Names that the issuer did not have, and when it was asked.
    misses: HashMap<String, Instant>,
    jwks_uri: Option<(String, Instant)>,
}

impl KeyRing {
    pub(super) fn new(issuer: &Issuer, notices: Notices) -> Result<Self, FetchError> {
        let state = State {
            keys: Arc::default(),
            generation: 0,
            fetched: None,
            attempted: None,
            time_to_live: DEFAULT_TTL,
            misses: HashMap::new(),
            jwks_uri: None,
        };
        Ok(Self(Arc::new(Inner {
            issuer: issuer.issuer.clone(),
            source: issuer.keys.clone(),
            accepted: issuer.algorithms.iter().filter_map(|name| Algorithm::parse(name)).collect(),
            fetcher: Fetcher::new(issuer.ca_file.as_deref())?,
            notices,
            state: Mutex::new(state),
            turn: Turn::new(()),
            background: Mutex::default(),
        })))
    }

    /// The key of that name, fetched if need be.
    pub(super) async fn find(&self, kid: Option<&str>) -> Result<Key, NoKey> {
        let inner = &self.0;
        match inner.look(kid) {
            Look::Good(key) => return Ok(key),
            Look::Ageing(key) => {
                self.refresh_behind();
                return Ok(key);
            }
            Look::Absent => return Err(NoKey::Unknown),
            Look::Old | Look::Missing => {}
        }
        inner.refresh().await;
        let mut state = inner.state();
        let age = state.fetched.map(|fetched| fetched.elapsed());
        if age.is_none_or(|age| age > MAX_STALE) {
            return Err(NoKey::Down(state.until_next_attempt().as_secs().max(1)));
        }
        if let Some(key) = state.keys.find(kid) {
            return Ok(key.clone());
        }
        if let Some(kid) = kid {
            state.remember_miss(kid);
        }
        Err(NoKey::Unknown)
    }

    /// Counts replacements of the set, while the set is fresh; `None` while it is not.
    pub(super) fn generation(&self) -> Option<u64> {
        let state = self.0.state();
        let fresh = state.fetched.is_some_and(|fetched| fetched.elapsed() <= state.time_to_live);
        fresh.then_some(state.generation)
    }

    fn refresh_behind(&self) {
        let inner = self.0.clone();
        let mut background = self.0.background.lock().unwrap_or_else(PoisonError::into_inner);
        while background.try_join_next().is_some() {}
        if background.is_empty() {
            background.spawn(async move { inner.refresh().await });
        }
    }
}

/// What the set says about a name, without asking anybody.
enum Look {
    Good(Key),
    /// Good, and past half of its time.
    Ageing(Key),
    /// Past its time: to be asked for again before it is used.
    Old,
    Missing,
    /// Asked for a short while ago, and not there.
    Absent,
}

impl Inner {
    fn look(&self, kid: Option<&str>) -> Look {
        let state = self.state();
        let Some(age) = state.fetched.map(|fetched| fetched.elapsed()) else { return Look::Missing };
        match state.keys.find(kid) {
            None if age <= state.time_to_live && kid.is_some_and(|kid| state.lately_missed(kid)) => Look::Absent,
            None => Look::Missing,
            Some(_) if age > state.time_to_live => Look::Old,
            Some(key) if age > state.refresh_after() => Look::Ageing(key.clone()),
            Some(key) => Look::Good(key.clone()),
        }
    }

    /// Asks the issuer, unless somebody has just done so: then waits for what came of it.
    async fn refresh(&self) {
        let before = self.state().attempted;
        let _turn = self.turn.lock().await;
        {
            let mut state = self.state();
            if state.attempted != before || !state.until_next_attempt().is_zero() {
                return;
            }
            // Claimed before the question is asked, and counted whatever becomes of it (tok-93).
            state.attempted = Some(Instant::now());
        }
        let notice = match self.ask().await {
            Ok((set, time_to_live)) => {
                let keys = set.len();
                let mut state = self.state();
                state.misses.retain(|kid, _| set.find(Some(kid)).is_none());
                state.generation += 1;
                state.keys = Arc::new(set);
                state.time_to_live = time_to_live;
                state.fetched = Some(Instant::now());
                Notice::Fetched { issuer: self.issuer.clone(), keys }
            }
            Err(error) => {
                let mut state = self.state();
                // The pause is between questions, not from one question to the next:
                // a silent provider costs its deadline once, not each time.
                state.attempted = Some(Instant::now());
                // It may have moved.
                state.jwks_uri = None;
                let cached = state.fetched.is_some_and(|fetched| fetched.elapsed() <= MAX_STALE);
                Notice::Unavailable { issuer: self.issuer.clone(), cached, error }
            }
        };
        (self.notices)(notice);
    }

    async fn ask(&self) -> Result<(KeySet, Duration), String> {
        let (text, max_age) = match &self.source {
            KeySource::File(path) => (read_file(path)?, Some(FILE_TTL.as_secs())),
            KeySource::Url(url) => self.fetch_keys(url).await?,
            KeySource::Discovery => {
                let url = self.discover().await?;
                self.fetch_keys(&url).await?
            }
        };
        let set = KeySet::read(&text, &self.accepted).ok_or("its key set is not a JWK set")?;
        if set.len() == 0 {
            return Err("its key set holds no usable key".to_owned());
        }
        let seconds = max_age.unwrap_or(DEFAULT_TTL.as_secs());
        Ok((set, Duration::from_secs(seconds).clamp(MIN_TTL, MAX_TTL)))
    }

    async fn fetch_keys(&self, url: &str) -> Result<(Vec<u8>, Option<u64>), String> {
        let fetched = self.fetcher.get(url).await.map_err(|error| format!("key set `{url}`: {error}"))?;
        if !fetched.media_type.contains("json") {
            return Err(format!("key set `{url}`: it is `{}`, not JSON", fetched.media_type));
        }
        Ok((fetched.body.to_vec(), fetched.max_age))
    }

    /// Where the keys are, by OpenID Connect Discovery §4, or RFC 8414 §3.
    async fn discover(&self) -> Result<String, String> {
        if let Some((url, found)) = &self.state().jwks_uri
            && found.elapsed() < DISCOVERY_TTL
        {
            return Ok(url.clone());
        }
        let mut errors = Vec::new();
        for url in well_known(&self.issuer) {
            match self.fetcher.get(&url).await {
                Ok(fetched) => {
                    let jwks_uri = self.jwks_uri(&fetched.body).map_err(|error| format!("`{url}`: {error}"))?;
                    self.state().jwks_uri = Some((jwks_uri.clone(), Instant::now()));
                    return Ok(jwks_uri);
                }
                Err(error @ FetchError::Status(_)) => errors.push(format!("`{url}`: {error}")),
                // Unreachable there is unreachable under the next name too.
                Err(error) => return Err(format!("`{url}`: {error}")),
            }
        }
        Err(errors.join("; "))
    }

    fn jwks_uri(&self, text: &[u8]) -> Result<String, String> {
        let limits = json::Limits { depth: 16, nodes: 16_384 };
        let document = Document::parse(text, limits).map_err(|error| error.to_string())?;
        let root = document.root(text);
        // Discovery §4.3: another issuer's document says nothing about this one.
        if root.get("issuer").and_then(Value::as_str).as_deref() != Some(self.issuer.as_str()) {
            return Err("its `issuer` is another one; compare it with `auth.issuer.issuer`, byte for byte".to_owned());
        }
        let uri = root.get("jwks_uri").and_then(Value::as_str).ok_or("it has no `jwks_uri`")?;
        Ok(uri.into_owned())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// How long nobody may ask: longer while there are keys to use.
    fn until_next_attempt(&self) -> Duration {
        let pause = if self.fetched.is_some() { COOL_DOWN } else { RETRY };
        self.attempted.map_or(Duration::ZERO, |attempted| pause.saturating_sub(attempted.elapsed()))
    }

    /// Half of the time to live, and some more that differs from set to set, so
    /// that many gateways do not ask at once.
    fn refresh_after(&self) -> Duration {
        let spread = [self.generation, self.time_to_live.as_secs()].iter().fold(0_u64, |sum, part| sum.wrapping_mul(31) + part);
        self.time_to_live / 2 + self.time_to_live / 8 * u32::try_from(spread % 3).unwrap_or(0)
    }

    fn lately_missed(&self, kid: &str) -> bool {
        self.misses.get(kid).is_some_and(|asked| asked.elapsed() < MISS_TTL)
    }

    fn remember_miss(&mut self, kid: &str) {
        self.misses.retain(|_, asked| asked.elapsed() < MISS_TTL);
        if self.misses.len() < MAX_MISSES {
            self.misses.insert(kid.to_owned(), Instant::now());
        }
    }
}

/// Where a discovery document may stand.
fn well_known(issuer: &str) -> [String; 2] {
    let bare = issuer.strip_suffix('/').unwrap_or(issuer);
    let path_at = bare.find("://").and_then(|at| bare[at + 3..].find('/').map(|slash| at + 3 + slash)).unwrap_or(bare.len());
    let (origin, path) = bare.split_at(path_at);
    [
        format!("{bare}/.well-known/openid-configuration"),
        format!("{origin}/.well-known/oauth-authorization-server{path}"),
    ]
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("`{}`: {error}", path.display()))
}

/// How long a set is used without asking again, where the provider says nothing.
const DEFAULT_TTL: Duration = Duration::from_secs(300);
/// What the provider may say (tok-105).
const MIN_TTL: Duration = Duration::from_secs(60);
const MAX_TTL: Duration = Duration::from_secs(600);
/// How soon a changed key file is noticed.
const FILE_TTL: Duration = MIN_TTL;
/// How long keys are used while their issuer is away (tok-96).
const MAX_STALE: Duration = Duration::from_secs(3600);
/// Between two questions, while there are keys (tok-92).
const COOL_DOWN: Duration = Duration::from_secs(30);
/// Between two questions, while there are none (fault-26).
const RETRY: Duration = Duration::from_secs(5);
/// How long a discovery document is believed.
const DISCOVERY_TTL: Duration = Duration::from_secs(3600);
/// Names remembered that an issuer does not have.
const MAX_MISSES: usize = 128;
/// How long: short, because the nodes of a provider may learn of a new key one
/// after the other, and a good token must not be sent away for minutes.
const MISS_TTL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::well_known;

    /// mcp-A9: with a path, both ways of building the address.
    #[test]
    fn discovery_documents_are_looked_for_where_both_rules_say() {
        assert_eq!(
            well_known("https://sso.example.com/realms/corp"),
            [
                "https://sso.example.com/realms/corp/.well-known/openid-configuration",
                "https://sso.example.com/.well-known/oauth-authorization-server/realms/corp",
            ]
        );
        assert_eq!(
            well_known("https://sso.example.com/"),
            [
                "https://sso.example.com/.well-known/openid-configuration",
                "https://sso.example.com/.well-known/oauth-authorization-server",
            ]
        );
    }
}

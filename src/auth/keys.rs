//! One issuer's keys: fetched when they are needed, kept while they are good,
//! used a while longer when the provider is away.
//!
//! A refresh is one at a time, is counted when it is attempted, and replaces
//! the set only when it brought a usable key. There are no keys to fall back to.

use std::{
    collections::HashMap,
    fs::File,
    io::Read as _,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_lc_rs::rand;
use tokio::{sync::watch, task::JoinSet, time::Instant};

use super::jwk::{Algorithm, Key, KeySet};
use crate::{
    config::{Issuer, KeySource},
    fetch::{FetchError, Fetched, Fetcher},
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

/// A key, and the generation of the set that it was found in.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) key: Key,
    pub(super) generation: u64,
}

/// The keys of one issuer.
pub(super) struct KeyRing {
    inner: Arc<Inner>,
    /// The refresh, while one runs. It is no request's own: a caller who hangs up
    /// must not take it along, and with it the turn of all others.
    refreshing: Mutex<JoinSet<()>>,
}

struct Inner {
    issuer: String,
    source: KeySource,
    accepted: Vec<Algorithm>,
    fetcher: Fetcher,
    notices: Notices,
    state: Mutex<State>,
}

struct State {
    keys: KeySet,
    /// Counts replacements.
    generation: u64,
    fetched: Option<Instant>,
    /// When the last attempt began.
    attempted: Option<Instant>,
    /// When the last attempt failed, if it did.
    failed: Option<Instant>,
    /// Closed when the last attempt has ended.
    running: Option<watch::Receiver<()>>,
    time_to_live: Duration,
    /// The age at which the set is asked for again, behind the callers' backs.
    refresh_after: Duration,
    /// Names that the issuer did not have, and when it was asked.
    misses: HashMap<String, Instant>,
    jwks_uri: Option<(String, Instant)>,
}

impl KeyRing {
    pub(super) fn new(issuer: &Issuer, notices: Notices) -> Result<Self, FetchError> {
        let state = State {
            keys: KeySet::default(),
            generation: 0,
            fetched: None,
            attempted: None,
            failed: None,
            running: None,
            time_to_live: DEFAULT_TTL,
            refresh_after: DEFAULT_TTL,
            misses: HashMap::new(),
            jwks_uri: None,
        };
        let inner = Inner {
            issuer: issuer.issuer.clone(),
            source: issuer.keys.clone(),
            accepted: issuer.algorithms.iter().filter_map(|name| Algorithm::parse(name)).collect(),
            fetcher: Fetcher::new(issuer.ca_file.as_deref())?,
            notices,
            state: Mutex::new(state),
        };
        Ok(Self { inner: Arc::new(inner), refreshing: Mutex::default() })
    }

    /// The key of that name, fetched if need be.
    pub(super) async fn find(&self, kid: Option<&str>) -> Result<Found, NoKey> {
        let before = self.inner.state().generation;
        match self.inner.look(kid) {
            Look::Good(found) => return Ok(found),
            Look::Ageing(found) => {
                self.refresh();
                return Ok(found);
            }
            Look::Absent => return Err(NoKey::Unknown),
            Look::Old | Look::Missing => {}
        }
        if let Some(mut ended) = self.refresh() {
            // Nothing is ever sent: this ends with the sender.
            let _ = ended.changed().await;
        }
        let mut state = self.inner.state();
        if state.age().is_none_or(|age| age > MAX_STALE) {
            return Err(NoKey::Down(state.until_next_attempt().as_secs() + 1));
        }
        if let Some(found) = state.find(kid) {
            return Ok(found);
        }
        if let Some(kid) = kid
            && state.generation != before
        {
            state.remember_miss(kid);
        }
        Err(NoKey::Unknown)
    }

    /// Counts replacements of the set, while the set is fresh; `None` while it is not.
    pub(super) fn generation(&self) -> Option<u64> {
        let state = self.inner.state();
        state.age().is_some_and(|age| age <= state.time_to_live).then_some(state.generation)
    }

    /// Asks the issuer, unless that is being done or was done a moment ago. What is
    /// returned closes when the answer is there; `None` if nobody is asked.
    fn refresh(&self) -> Option<watch::Receiver<()>> {
        let mut state = self.inner.state();
        if let Some(running) = state.running.as_ref().filter(|running| running.has_changed().is_ok()) {
            return Some(running.clone());
        }
        if !state.until_next_attempt().is_zero() {
            return None;
        }
        // Claimed before the question is asked, and counted whatever becomes of it (tok-93).
        state.attempted = Some(Instant::now());
        let (running, ended) = watch::channel(());
        state.running = Some(ended.clone());
        drop(state);
        let inner = self.inner.clone();
        let mut refreshing = self.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        while refreshing.try_join_next().is_some() {}
        refreshing.spawn(async move {
            inner.refresh().await;
            drop(running);
        });
        Some(ended)
    }
}

/// What the set says about a name, without asking anybody.
enum Look {
    Good(Found),
    /// Good for now, but to be asked for again.
    Ageing(Found),
    /// Past its time: to be asked for again before it is used.
    Old,
    Missing,
    /// Asked for a short while ago, and not there.
    Absent,
}

impl Inner {
    fn look(&self, kid: Option<&str>) -> Look {
        let state = self.state();
        let Some(age) = state.age() else { return Look::Missing };
        let fresh = age <= state.time_to_live;
        match state.find(kid) {
            // Asking again does not make a nameless key the only one.
            None if fresh && kid.is_none_or(|kid| state.lately_missed(kid)) => Look::Absent,
            None => Look::Missing,
            // The issuer was asked lately and is away: its callers do not wait for that again and again.
            Some(found) if !fresh && age <= MAX_STALE && state.lately_failed() => Look::Ageing(found),
            Some(_) if !fresh => Look::Old,
            Some(found) if age > state.refresh_after => Look::Ageing(found),
            Some(found) => Look::Good(found),
        }
    }

    async fn refresh(&self) {
        let notice = match self.ask().await {
            Ok((set, time_to_live)) => {
                let keys = set.len();
                self.state().replace(set, time_to_live);
                Notice::Fetched { issuer: self.issuer.clone(), keys }
            }
            Err(error) => {
                let mut state = self.state();
                // It may have moved.
                state.jwks_uri = None;
                state.failed = Some(Instant::now());
                let cached = state.age().is_some_and(|age| age <= MAX_STALE);
                Notice::Unavailable { issuer: self.issuer.clone(), cached, error }
            }
        };
        (self.notices)(notice);
    }

    async fn ask(&self) -> Result<(KeySet, Duration), String> {
        let (text, max_age) = match &self.source {
            KeySource::File(path) => (read_file(path)?, Some(FILE_TTL.as_secs())),
            KeySource::Url(url) => document(url, self.fetcher.get(url).await)?,
            KeySource::Discovery => {
                let url = self.discover().await?;
                document(&url, self.fetcher.get_linked(&url, &self.issuer).await)?
            }
        };
        let set = KeySet::read(&text, &self.accepted).ok_or("its key set is not a JWK set")?;
        if set.len() == 0 {
            return Err("its key set holds no usable key".to_owned());
        }
        let seconds = max_age.unwrap_or(DEFAULT_TTL.as_secs());
        Ok((set, Duration::from_secs(seconds).clamp(MIN_TTL, MAX_TTL)))
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
                Ok(fetched) => match self.jwks_uri(&fetched.body) {
                    Ok(jwks_uri) => {
                        self.state().jwks_uri = Some((jwks_uri.clone(), Instant::now()));
                        return Ok(jwks_uri);
                    }
                    // Some answer every path, with a page for people.
                    Err(error) => errors.push(format!("`{url}`: {error}")),
                },
                Err(error @ (FetchError::Status(_) | FetchError::Redirect)) => errors.push(format!("`{url}`: {error}")),
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
    fn age(&self) -> Option<Duration> {
        self.fetched.map(|fetched| fetched.elapsed())
    }

    fn find(&self, kid: Option<&str>) -> Option<Found> {
        let generation = self.generation;
        self.keys.find(kid).map(|key| Found { key: key.clone(), generation })
    }

    fn replace(&mut self, set: KeySet, time_to_live: Duration) {
        self.misses.retain(|kid, _| set.find(Some(kid)).is_none());
        self.generation += 1;
        self.keys = set;
        self.fetched = Some(Instant::now());
        self.failed = None;
        self.time_to_live = time_to_live;
        self.refresh_after = time_to_live / 2 + time_to_live / 4 * u32::from(dice()) / 256;
    }

    /// How long nobody may ask: longer while there are keys to use.
    fn until_next_attempt(&self) -> Duration {
        let pause = if self.fetched.is_some() { COOL_DOWN } else { RETRY };
        // A failure may have taken longer than the pause that its beginning started.
        let last = self.attempted.max(self.failed);
        last.map_or(Duration::ZERO, |last| pause.saturating_sub(last.elapsed()))
    }

    fn lately_failed(&self) -> bool {
        self.failed.is_some_and(|failed| failed.elapsed() < 2 * COOL_DOWN)
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

/// A key set that was fetched, and how long it says it may be kept.
fn document(url: &str, fetched: Result<Fetched, FetchError>) -> Result<(Vec<u8>, Option<u64>), String> {
    let fetched = fetched.map_err(|error| format!("key set `{url}`: {error}"))?;
    if !fetched.media_type.contains("json") {
        return Err(format!("key set `{url}`: it is `{}`, not JSON", fetched.media_type));
    }
    Ok((fetched.body.to_vec(), fetched.max_age))
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut text));
    match read {
        Ok(_) if text.len() as u64 <= MAX_FILE => Ok(text),
        Ok(_) => Err(format!("`{}`: it is longer than {MAX_FILE} bytes", path.display())),
        Err(error) => Err(format!("`{}`: {error}", path.display())),
    }
}

/// One of 256, so that many gateways do not ask at once.
fn dice() -> u8 {
    let mut byte = [0];
    // Without randomness they do ask at once, and that is all.
    let _ = rand::fill(&mut byte);
    byte[0]
}

/// How long a set is used without asking again, where the provider says nothing.
const DEFAULT_TTL: Duration = Duration::from_secs(300);
/// What the provider may say (tok-105).
const MIN_TTL: Duration = Duration::from_secs(60);
const MAX_TTL: Duration = Duration::from_secs(600);
/// How soon a changed key file is noticed.
const FILE_TTL: Duration = MIN_TTL;
/// Bytes of a key file.
const MAX_FILE: u64 = 512 << 10;
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

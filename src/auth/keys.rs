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

use tokio::{sync::watch, task::JoinSet, time::Instant};
use tracing::warn;

use super::{
    discovery::Discovery,
    jwk::{Algorithm, Key, KeySet},
    shelf::{self, Shelf},
};
use crate::{
    config::{Issuer, KeySource},
    fetch::{FetchError, Fetched, Fetcher},
    files,
    sys::random,
    time::Clock,
};

/// What happens to keys, for the record.
#[derive(Clone, Debug)]
pub enum Notice {
    Fetched {
        issuer: String,
        keys: usize,
    },
    /// `cached`: keys from before are still in use.
    Unavailable {
        issuer: String,
        cached: bool,
        error: String,
    },
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
    discovery: Discovery,
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
    /// What the clock said of the host's sleep then: it ages a set, too (fault-35).
    slept_before: Duration,
    clock: Clock,
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
    /// Where the set is kept for the next process, and the time as it is written there.
    shelf: Option<(Shelf, Clock)>,
}

impl KeyRing {
    pub(super) fn new(issuer: &Issuer, notices: Notices, clock: Clock) -> Result<Self, FetchError> {
        let state = State {
            keys: KeySet::default(),
            generation: 0,
            fetched: None,
            slept_before: Duration::ZERO,
            clock,
            attempted: None,
            failed: None,
            running: None,
            time_to_live: DEFAULT_TTL,
            refresh_after: DEFAULT_TTL,
            misses: HashMap::new(),
            shelf: None,
        };
        let inner = Inner {
            issuer: issuer.issuer.clone(),
            source: issuer.keys.clone(),
            discovery: Discovery::new(&issuer.issuer),
            accepted: accepted(issuer),
            fetcher: fetcher(issuer)?,
            notices,
            state: Mutex::new(state),
        };
        Ok(Self {
            inner: Arc::new(inner),
            refreshing: Mutex::default(),
        })
    }

    /// Starts with the set that the last process has kept in `directory`, and
    /// keeps each new one there.
    pub(super) fn keep_in(&self, directory: &Path, issuer: &Issuer, clock: &Clock) {
        let Some(shelf) = shelf::of(directory, issuer) else {
            return;
        };
        let mut state = self.inner.state();
        if let Some((text, age, time_to_live)) = shelf.take_down(clock.now())
            && let Some(set) = KeySet::read(&text, &self.inner.accepted)
            && set.len() > 0
            && let Some(fetched) = Instant::now().checked_sub(age)
        {
            state.replace(set, time_to_live.clamp(MIN_TTL, MAX_TTL));
            state.fetched = Some(fetched);
        }
        state.shelf = Some((shelf, clock.clone()));
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
        // The issuer may have a new key, and nobody can be asked (fault-32).
        if state.failed.is_some() {
            return Err(NoKey::Down(state.until_next_attempt().as_secs() + 1));
        }
        Err(NoKey::Unknown)
    }

    /// Counts replacements of the set, while the set is fresh; `None` while it is not. Asks
    /// for the set again, behind the caller's back, when that is due.
    pub(super) fn generation(&self) -> Option<u64> {
        let (generation, age, refresh_after) = {
            let state = self.inner.state();
            let age = state.age().filter(|age| *age <= state.time_to_live)?;
            (state.generation, age, state.refresh_after)
        };
        // Callers whose tokens are known ask for no key: without this nobody would
        // refresh the set before all of them have to wait for it.
        if age > refresh_after {
            self.refresh();
        }
        Some(generation)
    }

    /// Asks the issuer, unless that is being done or was done a moment ago. What is
    /// returned closes when the answer is there; `None` if nobody is asked.
    fn refresh(&self) -> Option<watch::Receiver<()>> {
        let mut state = self.inner.state();
        if let Some(running) = state
            .running
            .as_ref()
            .filter(|running| running.has_changed().is_ok())
        {
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
        let mut refreshing = self
            .refreshing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
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
        let Some(age) = state.age() else {
            return Look::Missing;
        };
        let fresh = age <= state.time_to_live;
        match state.find(kid) {
            // Asking again does not make a nameless key the only one.
            None if fresh && kid.is_none_or(|kid| state.lately_missed(kid)) => Look::Absent,
            None => Look::Missing,
            // The issuer was asked lately and is away: its callers do not wait for that again and again.
            Some(found) if !fresh && age <= MAX_STALE && state.lately_failed() => {
                Look::Ageing(found)
            }
            Some(_) if !fresh => Look::Old,
            Some(found) if age > state.refresh_after => Look::Ageing(found),
            Some(found) => Look::Good(found),
        }
    }

    async fn refresh(&self) {
        let notice = match self.ask().await {
            Ok((set, text, time_to_live)) => {
                let keys = set.len();
                self.state().replace(set, time_to_live);
                self.keep(&text, time_to_live);
                Notice::Fetched {
                    issuer: self.issuer.clone(),
                    keys,
                }
            }
            Err(error) => {
                let mut state = self.state();
                // What its document names may have moved.
                self.discovery.forget();
                // The pause is between questions, not from one question to the next:
                // a silent provider costs its deadline once, not each time.
                state.attempted = Some(Instant::now());
                state.failed = Some(Instant::now());
                let cached = state.age().is_some_and(|age| age <= MAX_STALE);
                Notice::Unavailable {
                    issuer: self.issuer.clone(),
                    cached,
                    error,
                }
            }
        };
        (self.notices)(notice);
    }

    fn keep(&self, text: &[u8], time_to_live: Duration) {
        let shelf = self.state().shelf.clone();
        if let Some((shelf, clock)) = shelf
            && let Err(error) = shelf.put(text, time_to_live, clock.now())
        {
            // The next process will ask; this one goes on from memory (fault-39).
            warn!(%error, "the key set was not kept for the next start");
        }
    }

    async fn ask(&self) -> Result<(KeySet, Vec<u8>, Duration), String> {
        let (text, max_age) = match &self.source {
            KeySource::File(path) => (read_file(path)?, Some(FILE_TTL.as_secs())),
            KeySource::Url(url) => document(url, self.fetcher.get(url).await)?,
            KeySource::Discovery => {
                let url = self.discovery.endpoints(&self.fetcher).await?.jwks_uri;
                document(&url, self.fetcher.get_linked(&url, &self.issuer).await)?
            }
        };
        let set = usable(&text, &self.accepted)?;
        let seconds = max_age.unwrap_or(DEFAULT_TTL.as_secs());
        let time_to_live = Duration::from_secs(seconds).clamp(MIN_TTL, MAX_TTL);
        Ok((set, text, time_to_live))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn age(&self) -> Option<Duration> {
        let asleep = || self.clock.slept().saturating_sub(self.slept_before);
        self.fetched.map(|fetched| fetched.elapsed() + asleep())
    }

    fn find(&self, kid: Option<&str>) -> Option<Found> {
        let generation = self.generation;
        self.keys.find(kid).map(|key| Found {
            key: key.clone(),
            generation,
        })
    }

    fn replace(&mut self, set: KeySet, time_to_live: Duration) {
        self.misses.retain(|kid, _| set.find(Some(kid)).is_none());
        self.generation += 1;
        self.keys = set;
        self.fetched = Some(Instant::now());
        self.slept_before = self.clock.slept();
        self.failed = None;
        self.time_to_live = time_to_live;
        self.refresh_after = time_to_live / 2 + time_to_live / 4 * u32::from(dice()) / 256;
    }

    /// How long nobody may ask: longer while there are keys to use.
    fn until_next_attempt(&self) -> Duration {
        let pause = if self.fetched.is_some() {
            COOL_DOWN
        } else {
            RETRY
        };
        // A failure may have taken longer than the pause that its beginning started.
        let last = self.attempted.max(self.failed);
        last.map_or(Duration::ZERO, |last| pause.saturating_sub(last.elapsed()))
    }

    fn lately_failed(&self) -> bool {
        self.failed
            .is_some_and(|failed| failed.elapsed() < 2 * COOL_DOWN)
    }

    fn lately_missed(&self, kid: &str) -> bool {
        self.misses
            .get(kid)
            .is_some_and(|asked| asked.elapsed() < MISS_TTL)
    }

    fn remember_miss(&mut self, kid: &str) {
        self.misses.retain(|_, asked| asked.elapsed() < MISS_TTL);
        if self.misses.len() < MAX_MISSES {
            self.misses.insert(kid.to_owned(), Instant::now());
        }
    }
}

/// Who asks an issuer, as its configuration says.
pub(super) fn fetcher(issuer: &Issuer) -> Result<Fetcher, FetchError> {
    let fetcher = Fetcher::new(issuer.ca_file.as_deref())?.reaching(&issuer.allow_addresses);
    match &issuer.token_file {
        Some(token) => fetcher.showing(&token.path, &token.origin),
        None => Ok(fetcher),
    }
}

/// A key set that was fetched, and how long it says it may be kept.
fn document(
    url: &str,
    fetched: Result<Fetched, FetchError>,
) -> Result<(Vec<u8>, Option<u64>), String> {
    let fetched = fetched.map_err(|error| format!("key set `{url}`: {error}"))?;
    if !fetched.media_type.contains("json") {
        return Err(format!(
            "key set `{url}`: it is `{}`, not JSON",
            fetched.media_type
        ));
    }
    Ok((fetched.body.to_vec(), fetched.max_age))
}

/// What is wrong with the issuer's file of keys, where it has one: no token of its is good until that is mended.
pub fn fault_of_file(issuer: &Issuer) -> Option<String> {
    let KeySource::File(path) = &issuer.keys else {
        return None;
    };
    let usable = read_file(path).and_then(|text| usable(&text, &accepted(issuer)));
    usable.err()
}

fn accepted(issuer: &Issuer) -> Vec<Algorithm> {
    let names = issuer.algorithms.iter();
    names.filter_map(|name| Algorithm::parse(name)).collect()
}

fn usable(text: &[u8], accepted: &[Algorithm]) -> Result<KeySet, String> {
    let set = KeySet::read(text, accepted).ok_or("its key set is not a JWK set")?;
    if set.len() == 0 {
        return Err("its key set holds no usable key".to_owned());
    }
    Ok(set)
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    files::read(path, MAX_FILE).map_err(|error| format!("`{}`: {error}", path.display()))
}

/// One of 256, so that many gateways do not ask at once.
fn dice() -> u8 {
    let mut byte = [0];
    // Without randomness they do ask at once, and that is all.
    let _ = random::fill(&mut byte);
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
const MAX_FILE: usize = 512 << 10;
/// How long keys are used while their issuer is away (tok-96).
const MAX_STALE: Duration = Duration::from_secs(3600);
/// Between two questions, while there are keys (tok-92).
const COOL_DOWN: Duration = Duration::from_secs(30);
/// Between two questions, while there are none (fault-26).
const RETRY: Duration = Duration::from_secs(5);
/// Names remembered that an issuer does not have.
const MAX_MISSES: usize = 128;
/// How long: short, because the nodes of a provider may learn of a new key one
/// after the other, and a good token must not be sent away for minutes.
const MISS_TTL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Mutex},
        time::Duration,
    };

    use serde_json::json;
    use tokio::{sync::Notify, task::JoinSet, time::Instant};

    use super::{
        super::{
            AuthError, Authenticator, Fault, Notice, Notices,
            testing::{
                DISCOVERY, ISSUER, JWKS, KEYS, NOW, Provider, Reply, Signer, bearer, build, issuer,
                pass, post, raw, set, token, unheard,
            },
        },
        *,
    };
    use crate::config::{Auth, TokenFile};

    const SECOND: Duration = Duration::from_secs(1);

    async fn ask(authenticator: &Authenticator, token: &str) -> Result<(), AuthError> {
        authenticator
            .authenticate(&post(&bearer(token), None))
            .await
            .map(|_| ())
    }

    fn is_down(answer: &Result<(), AuthError>) -> bool {
        matches!(
            answer,
            Err(AuthError::IssuerDown {
                retry_after: 1..,
                ..
            })
        )
    }

    fn refused(fault: Fault) -> Result<(), AuthError> {
        Err(AuthError::Rejected(fault))
    }

    fn broken() -> Reply {
        raw("500 Internal Server Error", "", "")
    }

    /// A working provider, and an authenticator that has its keys.
    async fn warm() -> (Provider, Arc<Authenticator>) {
        let provider = Provider::with(&[&KEYS.es256, &KEYS.ed25519]).await;
        let authenticator = provider.authenticator();
        assert_eq!(ask(&authenticator, &provider.token().sign()).await, Ok(()));
        (provider, authenticator)
    }

    /// Lets other tasks run until `true`; what is waited for happens on this thread or this host.
    async fn until(mut happened: impl FnMut() -> bool) {
        while !happened() {
            tokio::task::yield_now().await;
        }
    }

    /// tok-103: and all of them are answered.
    #[tokio::test]
    async fn a_thousand_first_requests_ask_the_provider_once() {
        let provider = Provider::with(&[&KEYS.es256]).await;
        let authenticator = provider.authenticator();
        let mut requests = JoinSet::new();
        for number in 0..1000 {
            let (authenticator, token) = (
                authenticator.clone(),
                provider.token().claim("jti", number.to_string()).sign(),
            );
            requests.spawn(async move { ask(&authenticator, &token).await });
        }
        assert!(
            requests
                .join_all()
                .await
                .iter()
                .all(|answer| *answer == Ok(()))
        );
        assert_eq!((provider.asked(DISCOVERY), provider.asked(JWKS)), (1, 1));
    }

    /// tok-97, fault-26, inc-19: nobody is called a liar, nothing crashes, and it goes on when the provider does.
    #[tokio::test]
    async fn a_provider_that_is_away_at_first_is_asked_again() {
        let provider = Provider::start().await;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hear = heard.clone();
        let notices: Notices = Arc::new(move |notice| hear.lock().unwrap().push(notice));
        let authenticator = provider.authenticator_that_tells(&notices);
        let token = provider.token().sign();
        for _ in 0..3 {
            assert!(is_down(&ask(&authenticator, &token).await));
        }
        assert_eq!(
            provider.asked(DISCOVERY),
            1,
            "one question until the pause is over"
        );
        assert!(matches!(
            heard.lock().unwrap()[..],
            [Notice::Unavailable { cached: false, .. }]
        ));
        // A token that is good nowhere is refused all the same.
        assert_eq!(
            ask(&authenticator, &provider.token().claim("aud", "x").sign()).await,
            refused(Fault::Audience)
        );

        provider.discovers(&provider.issuer(), &provider.url(JWKS));
        provider.set(JWKS, Reply::Json(set([&KEYS.es256])));
        pass(RETRY).await;
        assert_eq!(ask(&authenticator, &token).await, Ok(()));
        assert!(matches!(
            heard.lock().unwrap()[1..],
            [Notice::Fetched { keys: 1, .. }]
        ));
    }

    /// tok-97: nothing listens there at all.
    #[tokio::test]
    async fn a_provider_that_refuses_connections_is_down() {
        let address = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let issuer = Issuer {
            issuer: format!("http://{address}"),
            ..issuer(KeySource::Discovery)
        };
        let authenticator =
            build(&Auth::Oidc(vec![issuer]), Clock::new(|| NOW), &unheard()).unwrap();
        assert!(is_down(
            &ask(
                &authenticator,
                &token().claim("iss", format!("http://{address}")).sign()
            )
            .await
        ));
    }

    /// fault-35: a set that was fetched before the host slept is asked for again when it wakes, for
    /// tokio's clock has stood still meanwhile.
    #[tokio::test]
    async fn keys_from_before_a_sleep_are_asked_for_again() {
        let provider = Provider::with(&[&KEYS.es256]).await;
        let slept = Arc::new(Mutex::new(Duration::from_secs(5)));
        let read = slept.clone();
        let clock = Clock::new(|| NOW).sleeping(move || *read.lock().unwrap());
        let issuer = Issuer {
            issuer: provider.issuer(),
            ..issuer(KeySource::Discovery)
        };
        let authenticator = build(&Auth::Oidc(vec![issuer]), clock, &unheard()).unwrap();
        let token = provider.token().sign();
        assert_eq!(ask(&authenticator, &token).await, Ok(()));
        assert_eq!(provider.asked(JWKS), 1);
        // The cool-down has passed: what is asked after the sleep is asked because of it.
        pass(COOL_DOWN + SECOND).await;
        assert_eq!(ask(&authenticator, &token).await, Ok(()));
        assert_eq!(provider.asked(JWKS), 1);
        *slept.lock().unwrap() += MAX_STALE * 2;
        assert_eq!(ask(&authenticator, &token).await, Ok(()));
        assert_eq!(provider.asked(JWKS), 2, "asked before it was used");
        // And the old set is not what an outage is survived on.
        provider.set(JWKS, broken());
        provider.set(DISCOVERY, broken());
        pass(COOL_DOWN + SECOND).await;
        *slept.lock().unwrap() += MAX_STALE + SECOND;
        assert!(is_down(&ask(&authenticator, &token).await));
    }

    /// fault-32: it has got a new key and cannot be asked: its old tokens are good, and its new ones no lie.
    #[tokio::test]
    async fn a_rotation_during_an_outage_makes_nobody_a_liar() {
        let (provider, authenticator) = warm().await;
        let old = provider.token().sign();
        let new = provider.token().signed_by(&KEYS.rs256);
        provider.set(JWKS, broken());
        provider.set(DISCOVERY, broken());
        pass(COOL_DOWN + SECOND).await;
        for _ in 0..3 {
            assert!(is_down(&ask(&authenticator, &new).await));
            assert_eq!(ask(&authenticator, &old).await, Ok(()));
        }
        provider.discovers(&provider.issuer(), &provider.url(JWKS));
        provider.set(JWKS, Reply::Json(set([&KEYS.es256, &KEYS.rs256])));
        pass(COOL_DOWN + SECOND).await;
        assert_eq!(ask(&authenticator, &new).await, Ok(()));
        assert_eq!(ask(&authenticator, &old).await, Ok(()));
    }

    /// tok-96, tok-98, fault-27: whatever it answers, the keys that were good stay good, for an hour.
    #[tokio::test]
    async fn keys_survive_an_outage_for_an_hour() {
        let (provider, authenticator) = warm().await;
        let token = provider.token().sign();
        let json = "Content-Type: application/json\r\n";
        let replies = [
            broken(),
            raw("404 Not Found", "", ""),
            raw("200 OK", "Content-Type: text/html\r\n", set([&KEYS.es256]).to_string()),
            raw("200 OK", json, "<html></html>"),
            raw("200 OK", json, ""),
            Reply::Json(json!({"keys": []})),
            Reply::Json(json!({"keys": [{"kty": "oct", "k": "AAAA"}]})),
            Reply::Json(json!([])),
            raw("204 No Content", json, ""),
            Reply::Raw(b"SSH-2.0-nothing\r\n".to_vec()),
            Reply::Raw(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{".to_vec()),
        ];
        for reply in replies {
            provider.set(JWKS, reply);
            let asked = provider.asked(JWKS);
            pass(DEFAULT_TTL + SECOND).await;
            assert_eq!(ask(&authenticator, &token).await, Ok(()));
            assert_eq!(provider.asked(JWKS), asked + 1);
        }
        // Eleven times five minutes have passed.
        pass(MAX_STALE - 11 * DEFAULT_TTL).await;
        assert!(is_down(&ask(&authenticator, &token).await));
        provider.set(JWKS, Reply::Json(set([&KEYS.es256])));
        pass(COOL_DOWN).await;
        assert_eq!(ask(&authenticator, &token).await, Ok(()));
    }

    /// tok-92, tok-93: however many names are made up, the provider hears of one a pause.
    #[tokio::test]
    async fn unknown_key_names_ask_the_provider_once_a_pause() {
        let (provider, authenticator) = warm().await;
        let good = provider.token().sign();
        for round in 1..=3 {
            pass(COOL_DOWN).await;
            for number in 0..1000 {
                let made_up = provider
                    .token()
                    .header("kid", format!("{round}-{number}"))
                    .sign();
                assert_eq!(
                    ask(&authenticator, &made_up).await,
                    refused(Fault::KeyUnknown)
                );
            }
            assert_eq!(provider.asked(JWKS), 1 + round);
            assert_eq!(ask(&authenticator, &good).await, Ok(()));
        }
        assert_eq!(
            provider.asked(DISCOVERY),
            1,
            "where the keys are is remembered"
        );
    }

    /// tok-93, fault-29: also while it fails, and with nothing held: attempts count, not successes.
    #[tokio::test]
    async fn a_failing_provider_is_asked_once_a_pause() {
        let (provider, authenticator) = warm().await;
        provider.set(JWKS, broken());
        pass(COOL_DOWN).await;
        for number in 0..1000 {
            let made_up = provider.token().header("kid", number.to_string()).sign();
            assert!(is_down(&ask(&authenticator, &made_up).await));
        }
        assert_eq!(provider.asked(JWKS), 2);
        let cold = provider.authenticator();
        for number in 0..1000 {
            assert!(is_down(
                &ask(
                    &cold,
                    &provider.token().header("kid", number.to_string()).sign()
                )
                .await
            ));
        }
        assert_eq!(provider.asked(JWKS), 3);
    }

    /// tok-92: what the provider did not have is not asked for again at every pause.
    #[tokio::test]
    async fn a_missed_name_is_remembered_for_a_while() {
        let (provider, authenticator) = warm().await;
        let unknown = provider.token().header("kid", "unknown").sign();
        pass(COOL_DOWN).await;
        for asked in [2, 2, 3] {
            assert_eq!(
                ask(&authenticator, &unknown).await,
                refused(Fault::KeyUnknown)
            );
            assert_eq!(provider.asked(JWKS), asked);
            pass(COOL_DOWN).await;
        }
    }

    /// tok-94: the first token of a new key is good, and those of the old one stay so.
    #[tokio::test]
    async fn a_rotation_refuses_nobody() {
        let (provider, authenticator) = warm().await;
        let new = Signer::new("new", "ES256");
        provider.set(JWKS, Reply::Json(set([&new, &KEYS.es256])));
        pass(COOL_DOWN).await;
        assert_eq!(
            ask(&authenticator, &provider.token().signed_by(&new)).await,
            Ok(())
        );
        assert_eq!(ask(&authenticator, &provider.token().sign()).await, Ok(()));
        assert_eq!(provider.asked(JWKS), 2);
    }

    /// tok-95: remembered tokens included.
    #[tokio::test]
    async fn a_removed_key_is_no_longer_good_after_its_time() {
        let (provider, authenticator) = warm().await;
        let token = provider.token().sign();
        provider.set(JWKS, Reply::Json(set([&KEYS.ed25519])));
        pass(DEFAULT_TTL + SECOND).await;
        assert_eq!(
            ask(&authenticator, &token).await,
            refused(Fault::KeyUnknown)
        );
        assert_eq!(
            ask(&authenticator, &provider.token().signed_by(&KEYS.ed25519)).await,
            Ok(())
        );
    }

    #[tokio::test]
    async fn a_set_that_ages_is_renewed_behind_its_users() {
        let (provider, authenticator) = warm().await;
        let released = Arc::new(Notify::new());
        provider.set(JWKS, Reply::Held(set([&KEYS.es256]), released.clone()));
        pass(DEFAULT_TTL - SECOND).await;
        // Another token, because the first is remembered and needs no key.
        for number in 0..3 {
            let token = provider
                .token()
                .claim("jti", format!("again {number}"))
                .sign();
            assert_eq!(ask(&authenticator, &token).await, Ok(()), "not held up");
        }
        until(|| provider.asked(JWKS) == 2).await;
        released.notify_one();
        let keys = &authenticator.issuers()[0];
        until(|| keys.inner.state().generation == 2).await;
        pass(DEFAULT_TTL / 2 - SECOND).await;
        assert_eq!(ask(&authenticator, &provider.token().sign()).await, Ok(()));
        assert_eq!(provider.asked(JWKS), 2);
    }

    #[tokio::test]
    async fn a_caller_who_hangs_up_takes_no_refresh_along() {
        let provider = Provider::with(&[&KEYS.es256]).await;
        let released = Arc::new(Notify::new());
        provider.set(JWKS, Reply::Held(set([&KEYS.es256]), released.clone()));
        let authenticator = provider.authenticator();
        let token = provider.token().sign();
        let (first, its_token) = (authenticator.clone(), token.clone());
        let impatient = tokio::spawn(async move { ask(&first, &its_token).await });
        until(|| provider.asked(JWKS) == 1).await;
        impatient.abort();
        assert!(impatient.await.unwrap_err().is_cancelled());
        released.notify_one();
        assert_eq!(ask(&authenticator, &token).await, Ok(()));
        assert_eq!(provider.asked(JWKS), 1);
    }

    /// tok-96, fault-28: one waits to find out, the others do not wait for a provider that is known to be away.
    #[tokio::test]
    async fn a_provider_that_says_nothing_holds_up_one_request() {
        let (provider, authenticator) = warm().await;
        provider.set(JWKS, Reply::Silence);
        pass(DEFAULT_TTL + SECOND).await;
        tokio::time::pause();
        let token = || provider.token().claim("jti", "another").sign();
        let start = Instant::now();
        assert_eq!(ask(&authenticator, &token()).await, Ok(()));
        assert!(
            start.elapsed() >= 5 * SECOND,
            "it was asked, and given its time"
        );
        for _ in 0..3 {
            let start = Instant::now();
            assert_eq!(ask(&authenticator, &token()).await, Ok(()));
            assert_eq!(start.elapsed(), Duration::ZERO);
            // Of a paused clock: takes no time, and lets the deadlines on the way pass.
            tokio::time::sleep(COOL_DOWN).await;
        }
    }

    /// tok-99: no provider makes thv wait or fill up.
    #[tokio::test]
    async fn a_set_that_is_too_long_or_too_slow_is_not_read() {
        let (provider, authenticator) = warm().await;
        let token = provider.token().sign();
        let many: Vec<_> = (0..100_000)
            .map(|n| json!({"kty": "oct", "kid": n.to_string()}))
            .collect();
        let huge = vec![b' '; 600 << 10];
        let endless = [
            &b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"[..],
            &huge,
        ]
        .concat();
        let gzip = raw(
            "200 OK",
            "Content-Type: application/json\r\nContent-Encoding: gzip\r\n",
            [0x1f, 0x8b, 8, 0],
        );
        for reply in [
            Reply::Json(json!({"keys": many})),
            Reply::Raw(endless),
            gzip,
        ] {
            provider.set(JWKS, reply);
            pass(DEFAULT_TTL + SECOND).await;
            assert_eq!(ask(&authenticator, &token).await, Ok(()));
            assert!(authenticator.issuers()[0].inner.state().failed.is_some());
        }
        provider.set(JWKS, Reply::Drip);
        pass(2 * COOL_DOWN).await;
        tokio::time::pause();
        let start = Instant::now();
        assert_eq!(ask(&authenticator, &token).await, Ok(()));
        assert!((5 * SECOND..6 * SECOND).contains(&start.elapsed()));
    }

    /// tok-100: not to another origin, not twice.
    #[tokio::test]
    async fn a_redirect_is_followed_once_and_within_the_origin() {
        let elsewhere = Provider::with(&[&KEYS.es256]).await;
        for (status, location, good) in [
            ("302 Found", elsewhere.url(JWKS), false),
            (
                "307 Temporary Redirect",
                format!("//{}{JWKS}", elsewhere.address),
                false,
            ),
            (
                "301 Moved Permanently",
                "https://evil.example/jwks".to_owned(),
                false,
            ),
            (
                "308 Permanent Redirect",
                "file:///etc/passwd".to_owned(),
                false,
            ),
            ("301 Moved Permanently", JWKS.to_owned(), false),
            ("301 Moved Permanently", "/moved".to_owned(), true),
        ] {
            let provider = Provider::with(&[]).await;
            provider.set(JWKS, raw(status, &format!("Location: {location}\r\n"), ""));
            provider.set("/moved", Reply::Json(set([&KEYS.es256])));
            let answer = ask(&provider.authenticator(), &provider.token().sign()).await;
            assert_eq!(answer.is_ok(), good, "{location}: {answer:?}");
            assert!(good || is_down(&answer));
        }
        assert_eq!(elsewhere.connections(), 0);
    }

    /// tok-101: a document of another issuer says nothing, and none sends thv somewhere inside.
    #[tokio::test]
    async fn a_discovery_document_that_lies_is_not_followed() {
        let elsewhere = Provider::with(&[&KEYS.es256]).await;
        let port = elsewhere.address.port();
        let provider = Provider::with(&[&KEYS.es256]).await;
        let same = provider.issuer();
        for (issuer, jwks_uri) in [
            (ISSUER.to_owned(), provider.url(JWKS)),
            (format!("{same}/"), provider.url(JWKS)),
            (same.to_uppercase(), provider.url(JWKS)),
            (same.clone(), format!("http://localhost:{port}{JWKS}")),
            (same.clone(), format!("http://user@127.0.0.1:{port}{JWKS}")),
            (same.clone(), format!("https://127.0.0.2:{port}{JWKS}")),
            (same.clone(), "http://sso.example.com/jwks".to_owned()),
            (same.clone(), "https://169.254.169.254/latest".to_owned()),
            (same.clone(), "https://10.0.0.1/jwks".to_owned()),
            (same.clone(), "https://[64:ff9b::7f00:1]/jwks".to_owned()),
            (same.clone(), "file:///etc/passwd".to_owned()),
            (same.clone(), "gopher://127.0.0.1/".to_owned()),
            (same.clone(), String::new()),
        ] {
            provider.discovers(&issuer, &jwks_uri);
            let answer = ask(&provider.authenticator(), &provider.token().sign()).await;
            assert!(is_down(&answer), "{issuer} {jwks_uri}: {answer:?}");
        }
        provider.set(
            DISCOVERY,
            Reply::Json(json!({"issuer": same, "jwks_uri": [provider.url(JWKS)]})),
        );
        assert!(is_down(
            &ask(&provider.authenticator(), &provider.token().sign()).await
        ));
        assert_eq!((provider.asked(JWKS), elsewhere.connections()), (0, 0));
    }

    /// A provider whose one well-known address has a page for people has its document at the other.
    #[tokio::test]
    async fn the_document_of_rfc_8414_is_read_where_there_is_no_other() {
        let provider = Provider::with(&[&KEYS.es256]).await;
        let document = json!({"issuer": provider.issuer(), "jwks_uri": provider.url(JWKS)});
        provider.set(
            "/.well-known/oauth-authorization-server",
            Reply::Json(document),
        );
        for page in [
            raw("404 Not Found", "", ""),
            raw("200 OK", "Content-Type: text/html\r\n", "<html></html>"),
        ] {
            provider.set(DISCOVERY, page);
            assert_eq!(
                ask(&provider.authenticator(), &provider.token().sign()).await,
                Ok(())
            );
        }
    }

    /// tok-105: what the provider says about its time is heard, within bounds.
    #[tokio::test]
    async fn a_set_is_kept_for_as_long_as_it_says_within_bounds() {
        for (says, kept) in [
            ("max-age=31536000", MAX_TTL),
            ("max-age=0", MIN_TTL),
            ("no-store", DEFAULT_TTL),
            ("public, Max-Age=120", 120 * SECOND),
        ] {
            let provider = Provider::with(&[]).await;
            let headers = format!(
                "Content-Type: application/jwk-set+json; charset=utf-8\r\nCache-Control: {says}\r\n"
            );
            provider.set(
                JWKS,
                raw("200 OK", &headers, set([&KEYS.es256]).to_string()),
            );
            let authenticator = provider.authenticator();
            assert_eq!(ask(&authenticator, &provider.token().sign()).await, Ok(()));
            let state = authenticator.issuers()[0].inner.state();
            assert_eq!(state.time_to_live, kept, "{says}");
            assert!((kept / 2..kept).contains(&state.refresh_after));
        }
    }

    /// tok-57: and a subject is one of its issuer (tok-80).
    #[tokio::test]
    async fn keys_are_held_per_issuer() {
        let (one, two) = (
            Provider::with(&[&KEYS.es256]).await,
            Provider::with(&[&KEYS.ed25519]).await,
        );
        let of = |provider: &Provider| Issuer {
            issuer: provider.issuer(),
            ..issuer(KeySource::Discovery)
        };
        let both = Auth::Oidc(vec![of(&one), of(&two)]);
        let both = build(&both, Clock::new(|| NOW), &unheard()).unwrap();
        let first = both
            .authenticate(&post(&bearer(&one.token().sign()), None))
            .await
            .unwrap();
        let second = both
            .authenticate(&post(&bearer(&two.token().signed_by(&KEYS.ed25519)), None))
            .await
            .unwrap();
        assert_ne!(
            first.principal_key().to_string(),
            second.principal_key().to_string()
        );
        assert!(!first.owns_session_of(&second));
        assert_eq!(
            ask(&both, &two.token().sign()).await,
            refused(Fault::KeyUnknown)
        );
        assert_eq!(
            ask(&both, &one.token().signed_by(&KEYS.ed25519)).await,
            refused(Fault::KeyUnknown)
        );
    }

    /// tok-46, tok-47: no address in a token is ever asked.
    #[tokio::test]
    async fn an_address_in_a_token_is_not_visited() {
        let (provider, authenticator) = warm().await;
        let attacker = Provider::with(&[&KEYS.stranger]).await;
        for name in ["jku", "x5u", "iss"] {
            let forged = provider.token().header(name, attacker.url(JWKS));
            let forged = if name == "iss" {
                forged.claim(name, attacker.issuer())
            } else {
                forged
            };
            assert!(
                ask(&authenticator, &forged.signed_by(&KEYS.stranger))
                    .await
                    .is_err()
            );
        }
        assert_eq!((attacker.connections(), provider.asked(JWKS)), (0, 1));
    }

    #[test]
    fn a_key_file_that_cannot_be_used_is_reported_and_not_fatal() {
        assert!(
            read_file(Path::new("/nonexistent"))
                .unwrap_err()
                .starts_with("`/nonexistent`: ")
        );
        assert_eq!(
            read_file(Path::new("/dev/zero")).unwrap_err(),
            "`/dev/zero`: it is not a regular file"
        );
    }

    /// tok-104: a new process starts with the keys of the last one, and asks nobody while they are fresh.
    #[tokio::test]
    async fn a_cold_start_asks_nobody_while_the_kept_keys_are_fresh() {
        let directory = tempfile::tempdir().unwrap();
        let provider = Provider::with(&[&KEYS.es256]).await;
        let now = Arc::new(Mutex::new(NOW));
        let start = || {
            let issuer = Issuer {
                issuer: provider.issuer(),
                ..issuer(KeySource::Discovery)
            };
            let shown = now.clone();
            let clock = Clock::new(move || *shown.lock().unwrap());
            let auth = Auth::Oidc(vec![issuer]);
            build(&auth, clock, &unheard())
                .unwrap()
                .keeping(directory.path())
        };
        let good = provider.token().claim("exp", NOW + 80_000).sign();
        assert_eq!(ask(&start(), &good).await, Ok(()));
        let asked = provider.asked(JWKS);
        for _ in 0..5 {
            assert_eq!(ask(&start(), &good).await, Ok(()));
        }
        assert_eq!(provider.asked(JWKS), asked);
        // The provider is away: kept keys serve for an hour, not longer.
        provider.set(JWKS, broken());
        provider.set(DISCOVERY, broken());
        *now.lock().unwrap() = NOW + 3000;
        assert_eq!(ask(&start(), &good).await, Ok(()));
        *now.lock().unwrap() = NOW + 3700;
        assert!(is_down(&ask(&start(), &good).await));
    }

    /// Nothing that names a person or could be replayed is sent to a provider, unless configured.
    #[tokio::test]
    async fn a_provider_is_shown_no_credentials() {
        let provider = Provider::with(&[&KEYS.es256]).await;
        let authenticator = provider.authenticator();
        assert!(accepts(&authenticator, &provider.token().sign()).await);
        let heard = provider.heard().join("\n").to_ascii_lowercase();
        assert!(heard.contains("get /jwks"));
        assert!(!heard.contains("\r\nauthorization:") && !heard.contains("\r\ncookie:"));
    }

    /// The token for the provider's own doors is shown at those, as the file holds it now.
    #[tokio::test]
    async fn a_token_file_is_read_again_and_shown_to_the_issuer_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "first\n").unwrap();
        let provider = Provider::with(&[&KEYS.es256]).await;
        let elsewhere = Provider::with(&[&KEYS.es256]).await;
        let shown = |keys: KeySource| {
            let issuer = Issuer {
                issuer: provider.issuer(),
                token_file: Some(TokenFile {
                    path: file.path().to_owned(),
                    origin: provider.issuer(),
                }),
                ..issuer(keys)
            };
            build(&Auth::Oidc(vec![issuer]), Clock::new(|| NOW), &unheard()).unwrap()
        };
        let own = shown(KeySource::Discovery);
        assert!(accepts(&own, &provider.token().sign()).await);
        std::fs::write(file.path(), "second\n").unwrap();
        let again = shown(KeySource::Discovery);
        assert!(accepts(&again, &provider.token().sign()).await);
        let with = |token: &str| {
            let line = format!("\r\nauthorization: bearer {token}\r\n");
            let heard = provider.heard();
            let all = heard.iter().map(|text| text.to_ascii_lowercase());
            all.filter(|text| text.contains(&line)).count()
        };
        assert_eq!((with("first"), with("second")), (2, 2));
        let other = shown(KeySource::Url(elsewhere.url(JWKS)));
        assert!(accepts(&other, &provider.token().sign()).await);
        let heard = elsewhere.heard().join("\n").to_ascii_lowercase();
        assert!(heard.contains("get /jwks") && !heard.contains("authorization"));
    }

    async fn accepts(authenticator: &Authenticator, token: &str) -> bool {
        authenticator
            .authenticate(&post(&bearer(token), None))
            .await
            .is_ok()
    }

    /// tok-94: tokens that were seen before hold up no refresh, or at its end all would wait for one.
    #[tokio::test]
    async fn keys_are_asked_for_again_while_all_tokens_are_known() {
        let (provider, authenticator) = warm().await;
        let token = provider.token().sign();
        assert_eq!(ask(&authenticator, &token).await, Ok(()));
        let asked = provider.asked(JWKS);
        // Whatever the dice say, it is time by now, and the set is still fresh.
        pass(DEFAULT_TTL - SECOND).await;
        assert_eq!(ask(&authenticator, &token).await, Ok(()));
        tokio::time::timeout(10 * SECOND, async {
            while provider.asked(JWKS) == asked {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("asked in the background");
    }
}

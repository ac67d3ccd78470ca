//! A token that the upstream accepts, for one that a caller has shown (RFC 8693).
//!
//! The caller's token goes to the token endpoint and nowhere else, and is kept
//! nowhere. What comes back is kept until it ends, for the same principal with
//! the same rights through the same client; one question at a time for each.

use std::{
    collections::HashMap,
    fmt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{HeaderMap, HeaderValue};
use serde::Deserialize;
use tokio::time::Instant;

use super::{
    Identity, IntrospectionError, PrincipalKey,
    bearer::shown,
    introspection::{client, form},
};
use crate::{
    config::TokenExchange,
    fetch::{FetchError, Fetcher},
    systemd::Credentials,
    time::Clock,
};

/// Exchanges tokens at one endpoint.
pub struct Exchange {
    config: TokenExchange,
    fetcher: Fetcher,
    /// `Basic …` with this server's own client.
    authorization: String,
    clock: Clock,
    kept: Mutex<HashMap<Rights, Arc<Kept>>>,
    seats: Mutex<HashMap<Owner, Arc<Seat>>>,
}

/// Whose conversation with the upstream it is.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Owner {
    principal: PrincipalKey,
    client: Option<String>,
}

impl Owner {
    /// All of a server's users together: whose a child is that serves everybody.
    pub const EVERYBODY: Self = Self {
        principal: PrincipalKey::EVERYBODY,
        client: None,
    };

    /// This principal through this client: whom a session belongs to.
    pub fn of(identity: &Identity) -> Self {
        Self {
            principal: identity.principal_key(),
            client: identity.client().map(str::to_owned),
        }
    }

    /// This principal, whatever the client.
    pub fn of_all_clients(identity: &Identity) -> Self {
        Self {
            principal: identity.principal_key(),
            client: None,
        }
    }

    pub fn principal(&self) -> PrincipalKey {
        self.principal
    }
}

/// The token that a caller has shown, for as long as the request. Says nothing of itself.
#[derive(Clone, Copy)]
pub struct CallerToken<'a>(&'a str);

impl<'a> CallerToken<'a> {
    /// The token of a request that was authenticated by it.
    pub fn of(headers: &'a HeaderMap) -> Option<Self> {
        let token = std::str::from_utf8(shown(headers)?).ok()?;
        (!token.is_empty()).then_some(Self(token))
    }
}

impl fmt::Debug for CallerToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallerToken")
    }
}

/// What a conversation shows the upstream now.
#[derive(Default)]
pub struct Seat(Mutex<Option<HeaderValue>>);

impl Seat {
    pub fn shown(&self) -> Option<HeaderValue> {
        lock(&self.0).clone()
    }
}

/// Why there is no token for the upstream.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The provider has looked at it and says no, or something unusable.
    #[error("the provider does not exchange the token for one of this server's upstream")]
    Refused(String),
    #[error("the provider cannot be asked for a token of this server's upstream")]
    Down(String),
}

impl ExchangeError {
    /// What exactly, for the journal.
    pub fn details(&self) -> &str {
        match self {
            Self::Refused(details) | Self::Down(details) => details,
        }
    }
}

/// What a token is exchanged for is the same for the same of these.
#[derive(Clone, Eq, Hash, PartialEq)]
struct Rights {
    owner: Owner,
    scopes: Vec<String>,
    groups: Vec<String>,
}

/// Locked while the provider is asked.
type Kept = tokio::sync::Mutex<Outcome>;

#[derive(Default)]
enum Outcome {
    #[default]
    Nothing,
    /// Until then, in Unix time; since when.
    Token(HeaderValue, u64, Instant),
    Failed(Instant, ExchangeError),
}

/// RFC 8693 §2.2.1.
#[derive(Deserialize)]
struct Answer {
    access_token: String,
    token_type: String,
    expires_in: Option<u64>,
}

impl Exchange {
    /// Prepares the endpoint; asks nobody anything yet.
    pub fn new(
        config: &TokenExchange,
        ca_file: Option<&Path>,
        credentials: &Credentials,
        clock: Clock,
    ) -> Result<Self, IntrospectionError> {
        Ok(Self {
            authorization: client(&config.client_id, &config.credential, credentials)?,
            fetcher: Fetcher::new(ca_file)?,
            config: config.clone(),
            clock,
            kept: Mutex::default(),
            seats: Mutex::default(),
        })
    }

    /// What the conversation of `owner` shows: whatever was last made ready for it.
    pub fn seat(&self, owner: &Owner) -> Arc<Seat> {
        let mut seats = lock(&self.seats);
        if seats.len() >= MAX_SEATS {
            // Those that nobody sits on; who has just been made ready is made so again.
            seats.retain(|_, seat| Arc::strong_count(seat) > 1);
        }
        seats.entry(owner.clone()).or_default().clone()
    }

    /// Sees that the conversation of `owner` has a token of this caller's.
    pub async fn make_ready(
        &self,
        owner: &Owner,
        identity: &Identity,
        token: CallerToken<'_>,
    ) -> Result<Arc<Seat>, ExchangeError> {
        let rights = Rights {
            owner: Owner::of(identity),
            scopes: identity.scopes().to_vec(),
            groups: identity.groups().to_vec(),
        };
        let kept = self.kept(rights);
        let mut kept = kept.lock().await;
        let shown = match &*kept {
            Outcome::Token(shown, until, _) if self.clock.now() < *until => shown.clone(),
            // Those who waited for the same question have the same answer.
            Outcome::Failed(when, error) if when.elapsed() < RETRY => return Err(error.clone()),
            _ => match self.ask(token).await {
                Ok((shown, until)) => {
                    *kept = Outcome::Token(shown.clone(), until, Instant::now());
                    shown
                }
                Err(error) => {
                    *kept = Outcome::Failed(Instant::now(), error.clone());
                    return Err(error);
                }
            },
        };
        let seat = self.seat(owner);
        *lock(&seat.0) = Some(shown);
        Ok(seat)
    }

    /// The upstream does not accept what this seat shows: the next call asks for another.
    pub fn forget(&self, seat: &Seat) {
        let Some(refused) = seat.shown() else { return };
        for kept in lock(&self.kept).values() {
            // Whoever holds it is about to change it.
            let Ok(mut kept) = kept.try_lock() else {
                continue;
            };
            // One that is new was refused for another reason: asking at each call would not help.
            if matches!(&*kept, Outcome::Token(shown, _, since) if *shown == refused && since.elapsed() >= RETRY)
            {
                *kept = Outcome::Nothing;
            }
        }
    }

    fn kept(&self, rights: Rights) -> Arc<Kept> {
        let mut kept = lock(&self.kept);
        if kept.len() >= MAX_KEPT {
            let now = self.clock.now();
            kept.retain(|_, entry| match entry.try_lock().as_deref() {
                Ok(Outcome::Token(_, until, _)) => now < *until,
                Ok(_) => false,
                Err(_) => true,
            });
            if kept.len() >= MAX_KEPT {
                // Those that are still in use cost one question each to come back.
                kept.clear();
            }
        }
        kept.entry(rights).or_default().clone()
    }

    async fn ask(&self, token: CallerToken<'_>) -> Result<(HeaderValue, u64), ExchangeError> {
        let config = &self.config;
        let mut body = format!(
            "grant_type={}&subject_token_type={ACCESS_TOKEN}&requested_token_type={ACCESS_TOKEN}&subject_token={}",
            form("urn:ietf:params:oauth:grant-type:token-exchange"),
            form(token.0),
        );
        for (name, value) in [
            ("audience", &config.audience),
            ("resource", &config.resource),
            ("scope", &config.scope),
        ] {
            if let Some(value) = value {
                body.push_str(&format!("&{name}={}", form(value)));
            }
        }
        let url = &config.token_url;
        let posted = self.fetcher.post(url, None, &self.authorization, &body);
        let answer = posted.await.map_err(|error| {
            let details = format!("token exchange at `{url}`: {error}");
            match error {
                FetchError::Status(status)
                    if status.is_client_error() && status.as_u16() != 429 =>
                {
                    ExchangeError::Refused(details)
                }
                _ => ExchangeError::Down(details),
            }
        })?;
        let wrong =
            |what: &str| ExchangeError::Refused(format!("token exchange at `{url}`: {what}"));
        if answer.media_type != "application/json" {
            return Err(wrong("its answer is not application/json"));
        }
        let answer: Answer =
            serde_json::from_slice(&answer.body).map_err(|_| wrong("its answer is no token"))?;
        if !answer.token_type.eq_ignore_ascii_case("bearer") {
            return Err(wrong("its token is not a bearer token"));
        }
        if answer.access_token == token.0 {
            return Err(wrong(
                "its token is the caller's own, which is not passed on",
            ));
        }
        let graphic = |byte: u8| byte.is_ascii_graphic();
        if answer.access_token.is_empty() || !answer.access_token.bytes().all(graphic) {
            return Err(wrong("its token is not one"));
        }
        let mut shown = HeaderValue::from_str(&format!("Bearer {}", answer.access_token))
            .map_err(|_| wrong("its token is not one"))?;
        shown.set_sensitive(true);
        let life = answer.expires_in.unwrap_or(UNSAID);
        // Used to the end it would end on its way.
        let life = life.saturating_sub(MARGIN.min(life / 2));
        Ok((shown, self.clock.now().saturating_add(life)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const ACCESS_TOKEN: &str = "urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Aaccess_token";
/// How long a failure holds: not every call waits for the next.
const RETRY: Duration = Duration::from_secs(5);
/// Seconds that a token lives whose provider does not say.
const UNSAID: u64 = 60;
/// Seconds before its end from which on a token is not used any more.
const MARGIN: u64 = 30;
/// Tokens kept; more cost a question each.
const MAX_KEPT: usize = 4096;
/// Owners that have been made ready.
const MAX_SEATS: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange() -> Exchange {
        let secrets = tempfile::tempdir().unwrap();
        std::fs::write(secrets.path().join("client"), "secret\n").unwrap();
        let config = TokenExchange {
            token_url: "http://127.0.0.1:9/token".to_owned(),
            client_id: "thv".to_owned(),
            credential: "client".to_owned(),
            audience: None,
            resource: None,
            scope: None,
        };
        let credentials = Credentials::within(secrets.path().to_owned());
        Exchange::new(&config, None, &credentials, Clock::system()).unwrap()
    }

    fn rights(identity: &Identity) -> Rights {
        Rights {
            owner: Owner::of(identity),
            scopes: identity.scopes().to_vec(),
            groups: identity.groups().to_vec(),
        }
    }

    /// The caller's token cannot be printed by mistake.
    #[test]
    fn a_callers_token_says_nothing_of_itself() {
        let mut headers = HeaderMap::new();
        let value = HeaderValue::from_static("Bearer eyJ.abc.def");
        headers.insert(http::header::AUTHORIZATION, value);
        let token = CallerToken::of(&headers).unwrap();
        assert_eq!(
            (token.0, format!("{token:?}").as_str()),
            ("eyJ.abc.def", "CallerToken")
        );
        assert!(CallerToken::of(&HeaderMap::new()).is_none());
    }

    /// Same principal, other client, scopes or groups: another token.
    #[test]
    fn a_token_is_kept_for_the_same_rights_alone() {
        use crate::auth::Kind;
        let alice = Identity::example("https://i", "alice");
        let same = [alice.clone(), alice.clone()].map(|it| rights(&it));
        assert!(same[0] == same[1]);
        for other in [
            Identity::example("https://i", "bob"),
            Identity::example("https://j", "alice"),
            alice.clone().with(Kind::User, Some("desktop"), &[], &[]),
            alice.clone().with(Kind::User, None, &["ops"], &[]),
            alice.clone().with(Kind::User, None, &[], &["write"]),
        ] {
            assert!(rights(&other) != rights(&alice), "{other:?}");
        }
    }

    /// A token that the upstream refuses is asked for anew, but not at every call.
    #[tokio::test(start_paused = true)]
    async fn what_the_upstream_refuses_is_not_kept() {
        let exchange = exchange();
        let alice = Identity::example("https://i", "alice");
        let shown = HeaderValue::from_static("Bearer up");
        let kept = exchange.kept(rights(&alice));
        *kept.lock().await = Outcome::Token(shown.clone(), u64::MAX, Instant::now());
        let token = CallerToken("mine");
        let owner = Owner::of(&alice);
        let seat = exchange.make_ready(&owner, &alice, token).await.unwrap();
        assert_eq!(seat.shown(), Some(shown));
        exchange.forget(&seat);
        assert!(
            matches!(*kept.lock().await, Outcome::Token(..)),
            "it is new"
        );
        tokio::time::advance(RETRY).await;
        exchange.forget(&seat);
        assert!(matches!(*kept.lock().await, Outcome::Nothing));
    }
}

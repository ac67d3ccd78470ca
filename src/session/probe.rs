//! What a child speaks: asked once, when its first session begins, and remembered as long as it lives; and for a while where
//! to ask another one of the server's would cost much.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::OnceCell, time::Instant};

use crate::{
    aside::aside,
    json::Value,
    mcp::{
        Call, Message,
        bridge::LegacyServer,
        reverse::{Discovered, ModernServer},
        version,
    },
    session::{
        Sent, Session,
        bridge::Bridge,
        exchange::Failure,
        own::OwnMessage,
        table::{OpenError, answer_of},
    },
};

/// What is kept of a child's answer to `server/discover`, `None` if it is a legacy one: those
/// that share it need not ask again.
#[derive(Default)]
pub(super) struct Spoken {
    told: OnceCell<Option<Discovered>>,
    /// It has opened a conversation with modern clients as a legacy one.
    is_bridged: AtomicBool,
}

/// What a child is asked first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum FirstRequest {
    Discover,
    /// It would end at anything else.
    Initialize,
}

/// What came of that.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Readied {
    /// It speaks as modern clients do.
    Modern,
    /// It has said that it does not.
    Legacy,
    /// It was not asked, or has said nothing.
    Untold,
    /// It ended when it was asked what it speaks.
    Ended,
}

/// What the children of a server were like that would not say what they speak: those that come after them are not asked,
/// for it took a start more, or long. Not for ever: it may have been chance, and a server is replaced under the same name.
#[derive(Default)]
pub(super) struct Untold(Mutex<Option<Instant>>);

impl Untold {
    /// What the next one is asked first.
    pub(super) fn first(&self, now: Instant) -> FirstRequest {
        match *self.until() {
            Some(until) if now < until => FirstRequest::Initialize,
            _ => FirstRequest::Discover,
        }
    }

    /// What came of asking one that first. Who was not asked has said nothing new, however long it took to begin.
    pub(super) fn learn(&self, readied: Readied, asked: FirstRequest, now: Instant) {
        match (readied, asked) {
            (Readied::Modern, _) => self.forget(),
            (Readied::Untold, FirstRequest::Discover) => *self.until() = Some(now + WHILE),
            _ => {}
        }
    }

    /// What comes next is asked.
    pub(super) fn forget(&self) {
        *self.until() = None;
    }

    fn until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Readies a child for modern clients: it speaks as they do, or from now on what
/// goes between is translated.
pub(super) async fn for_modern(
    session: &Arc<Session>,
    patience: Duration,
    first: FirstRequest,
) -> Result<Readied, OpenError> {
    if first == FirstRequest::Initialize && bridge(session, patience).await? {
        return Ok(Readied::Untold);
    }
    let told = discovered(session).await;
    let is_slow = matches!(told, Err(Failure::Timeout));
    match told {
        Ok(Some(_)) => Ok(Readied::Modern),
        // Whatever else it says to that, it is a legacy one (mcp-T27).
        Ok(None) | Err(Failure::Timeout) => {
            let is_asked = first == FirstRequest::Discover;
            if is_asked && bridge(session, patience).await? {
                return Ok(if is_slow {
                    Readied::Untold
                } else {
                    Readied::Legacy
                });
            }
            // It had not begun to read then, and refuses what it does not know.
            let is_modern = is_slow && matches!(discovered(session).await, Ok(Some(_)));
            is_modern
                .then_some(Readied::Modern)
                .ok_or(OpenError::NoVersion)
        }
        Err(Failure::ChildEnded | Failure::TooLarge(_)) if first == FirstRequest::Discover => {
            Ok(Readied::Ended)
        }
        Err(failure) => Err(OpenError::Failed(failure)),
    }
}

/// The child's answer to `server/discover`, if it speaks modern MCP.
async fn discovered(session: &Session) -> Result<Option<Discovered>, Failure> {
    match session.spoken.get() {
        // One that only thinks for long is asked again, unless it has said something older meanwhile: those that
        // wait here would wait one after the other for what it never answers.
        Some(spoken) => {
            let told = spoken.told.get_or_try_init(|| async {
                match spoken.is_bridged.load(Ordering::Relaxed) {
                    true => Ok(None),
                    false => discover(session).await,
                }
            });
            told.await.cloned()
        }
        None => discover(session).await,
    }
}

async fn discover(session: &Session) -> Result<Option<Discovered>, Failure> {
    let probe = session
        .ask_own(PROBE, |number| OwnMessage::Discover { number })
        .map_err(|_| Failure::ChildEnded)?;
    let answer = answer_of(Sent::Exchange(probe)).await?;
    let answer = Message::parse(answer).ok();
    Ok(answer.as_ref().and_then(Discovered::read))
}

/// Opens the conversation with a legacy child, on behalf of modern clients; `false` if it refuses.
async fn bridge(session: &Arc<Session>, patience: Duration) -> Result<bool, OpenError> {
    let asked = session.ask_own(patience, |number| OwnMessage::Initialize { number })?;
    let answer = answer_of(Sent::Exchange(asked))
        .await
        .map_err(OpenError::Failed)?;
    let answer = Message::parse(answer).ok();
    let Some(server) = answer.and_then(|answer| LegacyServer::read(&answer)) else {
        return Ok(false);
    };
    session.say(&OwnMessage::Initialized);
    session.bridge_by(Bridge::ToLegacy(server));
    if let Some(spoken) = session.spoken.get() {
        spoken.is_bridged.store(true, Ordering::Relaxed);
    }
    Ok(true)
}

/// Has a child that refused `initialize` serve its legacy client all the same, if it
/// speaks modern MCP (mcp-T18): what it would have answered.
pub(super) async fn for_legacy(session: &Arc<Session>, initialize: Bytes) -> Option<Bytes> {
    let said = discovered(session).await.ok()??;
    let size = initialize.len();
    let read = move || Call::read(initialize, false);
    let initialize = aside(size, read).await.ok()?;
    let server = ModernServer::new(said, &initialize);
    let wanted = initialize.param("protocolVersion");
    let wanted = wanted.and_then(Value::as_str).unwrap_or_default();
    let version = version::LEGACY.iter().find(|version| **version == wanted);
    let text = server.initialized(initialize.id()?, version.unwrap_or(&version::LEGACY[0]));
    let is_bridged = session.bridge_by(Bridge::ToModern(server));
    is_bridged.then(|| text.into())
}

/// How long a child may think about what it speaks before it is taken for a legacy one (mcp-T27).
const PROBE: Duration = Duration::from_secs(10);
/// How long it is remembered of a server's children that they do not say what they speak.
const WHILE: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::{
        mcp::Era,
        session::{outbox::OutboxReader, pump, testing},
    };

    /// The next line for the child, and its number.
    async fn line(lines: &mut OutboxReader) -> (String, u64) {
        let line = lines.recv().await.unwrap();
        let message = Message::parse(line.clone()).unwrap();
        let number = message.root().get("id").and_then(Value::as_number);
        let number = number.and_then(|number| number.parse().ok());
        let text = String::from_utf8(line.to_vec()).unwrap();
        (text, number.unwrap_or_default())
    }

    fn say(session: &Session, number: u64, rest: &str) {
        let text = format!(r#"{{"jsonrpc":"2.0","id":{number},{rest}}}"#);
        assert!(pump::take(session, text.into()));
    }

    const REFUSED: &str = r#""error":{"code":-32601,"message":"no"}"#;
    const MODERN: &str = r#""result":{"supportedVersions":["2026-07-28"],"capabilities":{}}"#;

    /// mcp-T27: one that takes long to start and speaks nothing older is asked once more when it answers.
    #[tokio::test]
    async fn a_slow_modern_server_is_no_legacy_one() {
        for (again, expected) in [(MODERN, true), (REFUSED, false)] {
            let (session, mut lines) = testing::session(Era::Modern);
            let patience = Duration::from_secs(20);
            let child = async {
                assert!(line(&mut lines).await.0.contains("server/discover"));
                session.sweep(Instant::now() + PROBE, Duration::MAX);
                assert!(line(&mut lines).await.0.contains("notifications/cancelled"));
                let (text, number) = line(&mut lines).await;
                assert!(text.contains("\"initialize\""));
                say(&session, number, REFUSED);
                let (text, number) = line(&mut lines).await;
                assert!(text.contains("server/discover"));
                say(&session, number, again);
            };
            let both = async {
                let readied = for_modern(&session, patience, FirstRequest::Discover);
                tokio::join!(readied, child).0
            };
            let readied = timeout(patience, both).await.unwrap();
            match expected {
                true => assert_eq!(readied.unwrap(), Readied::Modern),
                false => assert!(matches!(readied, Err(OpenError::NoVersion))),
            }
            assert!(session.legacy_server().is_none());
        }
    }
    /// mcp-T27: what is not asked because others of its server said nothing, and is no legacy one, is asked then.
    #[tokio::test]
    async fn a_modern_server_that_is_taken_for_a_legacy_one_is_asked_when_it_refuses() {
        let (session, mut lines) = testing::session(Era::Modern);
        let child = async {
            for (asked, answer) in [("\"initialize\"", REFUSED), ("server/discover", MODERN)] {
                let (text, number) = line(&mut lines).await;
                assert!(text.contains(asked), "{text}");
                say(&session, number, answer);
            }
        };
        let readied = for_modern(&session, PROBE, FirstRequest::Initialize);
        let (readied, ()) = tokio::join!(readied, child);
        assert_eq!(readied.unwrap(), Readied::Modern);
    }

    /// What says nothing is remembered for an hour, however often it is so, and forgotten by the first that speaks.
    #[test]
    fn what_a_server_does_not_say_is_remembered_for_a_while() {
        let (untold, now) = (Untold::default(), Instant::now());
        let minute = Duration::from_secs(60);
        assert_eq!(untold.first(now), FirstRequest::Discover);
        for readied in [Readied::Legacy, Readied::Modern] {
            untold.learn(readied, FirstRequest::Discover, now);
            assert_eq!(untold.first(now), FirstRequest::Discover);
        }
        untold.learn(Readied::Untold, FirstRequest::Discover, now);
        for minutes in 0..60 {
            let asked = untold.first(now + minute * minutes);
            assert_eq!(asked, FirstRequest::Initialize);
            // One that takes long to begin, too.
            untold.learn(Readied::Untold, asked, now + minute * (minutes + 5));
            untold.learn(Readied::Legacy, asked, now + minute * (minutes + 5));
        }
        assert_eq!(untold.first(now + minute * 60), FirstRequest::Discover);
        untold.learn(Readied::Untold, FirstRequest::Discover, now + minute * 60);
        assert_eq!(untold.first(now + minute * 61), FirstRequest::Initialize);
        untold.learn(Readied::Modern, FirstRequest::Initialize, now + minute * 62);
        assert_eq!(untold.first(now + minute * 62), FirstRequest::Discover);
    }

    /// mcp-T27: those that share a child which never says that it does not know the question wait for it together, not
    /// one after the other.
    #[tokio::test(start_paused = true)]
    async fn a_silent_legacy_server_is_waited_for_once_or_twice_however_many_share_it() {
        const MEMBERS: usize = 8;
        let spoken = Arc::<Spoken>::default();
        let began = Instant::now();
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..MEMBERS {
            let (session, mut lines) = testing::session(Era::Modern);
            let _ = session.spoken.set(spoken.clone());
            all.spawn(async move {
                let child = async {
                    loop {
                        let wait = Duration::from_millis(100);
                        if let Ok(line) = timeout(wait, lines.recv()).await {
                            let text = String::from_utf8(line.unwrap().to_vec()).unwrap();
                            if text.contains("\"initialize\"") {
                                let message = Message::parse(text.into()).unwrap();
                                let id = message.root().get("id").and_then(Value::as_number);
                                let number = id.unwrap().parse().unwrap();
                                let opened = r#""result":{"protocolVersion":"2025-11-25","capabilities":{}}"#;
                                say(&session, number, opened);
                            }
                        }
                        session.sweep(Instant::now(), Duration::MAX);
                    }
                };
                tokio::select! {
                    readied = for_modern(&session, PROBE, FirstRequest::Discover) => readied.unwrap(),
                    () = child => unreachable!(),
                }
            });
        }
        // The first, and who has asked while it was taken for a legacy one, has heard nothing.
        let readied = all.join_all().await;
        let untold = readied.iter().filter(|it| **it == Readied::Untold).count();
        let legacy = readied.iter().filter(|it| **it == Readied::Legacy).count();
        assert!(untold >= 1 && untold + legacy == MEMBERS, "{readied:?}");
        assert!(began.elapsed() <= PROBE * 3, "{:?}", began.elapsed());
    }
}

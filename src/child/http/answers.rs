//! What a server answers: one message, a stream of them, or none.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, warn};

use super::{
    Fault, SESSION_ID, Talk,
    events::Reader,
    head::{Asks, Outgoing},
    mirror::Mirror,
    wire::Answer,
};
use crate::{
    aside::aside,
    child::Share,
    json::{Kind as Json, Value},
    mcp::{Message, answer, version},
};

/// From where on a stream is taken up again, and when.
struct Place {
    last: Option<HeaderValue>,
    retry: Duration,
}

/// How far a stream has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Heard {
    /// What was asked has its answer.
    Answer,
    /// Messages, then the end.
    Some,
    Nothing,
}

impl Talk {
    pub(super) async fn ask(
        &self,
        number: u64,
        asks: Asks,
        message: Outgoing,
    ) -> Result<(), Fault> {
        let mut answer = self.post(message).await?;
        let status = answer.head.status;
        if status != StatusCode::OK {
            return self.refused(number, asks, answer).await;
        }
        if asks == Asks::Initialize {
            let session = answer.head.headers.get(SESSION_ID).cloned();
            self.lock().session = session.filter(|session| session.to_str().is_ok());
        }
        match media_type(&answer.head.headers) {
            Some(Media::Json) => {
                let mut share = self.share();
                let text = answer.whole(self.peer.longest, &mut share).await?;
                let answers = self.learn(number, asks, &text).await;
                self.hear(text, share).await;
                self.keep(answer).await;
                if answers {
                    Ok(())
                } else {
                    Err(Fault::BadAnswer)
                }
            }
            Some(Media::Events) => self.follow(number, asks, answer).await,
            None => Err(Fault::BadAnswer),
        }
    }

    /// Reads a request's stream to the answer, coming back to it where the server allows.
    async fn follow(&self, number: u64, asks: Asks, answer: Answer) -> Result<(), Fault> {
        let mut place = Place::new();
        let mut answer = answer;
        let mut vain = 0;
        loop {
            match self.read(answer, Some((number, asks)), &mut place).await? {
                Heard::Answer => return Ok(()),
                Heard::Some => vain = 0,
                Heard::Nothing => vain += 1,
            }
            if place.last.is_none() || vain > MAX_VAIN {
                return Err(Fault::Lost);
            }
            sleep(place.retry).await;
            answer = self.get(place.last.clone()).await?;
            self.check_session(answer.head.status)?;
            let events = media_type(&answer.head.headers) == Some(Media::Events);
            if answer.head.status != StatusCode::OK || !events {
                return Err(Fault::Lost);
            }
        }
    }

    /// The server's own stream: read for as long as there is one.
    pub(super) async fn listen(&self) {
        let mut place = Place::new();
        let mut pause = place.retry;
        loop {
            let opened = self.get(place.last.clone()).await;
            match opened {
                Ok(answer) if answer.head.status == StatusCode::OK => {
                    if media_type(&answer.head.headers) != Some(Media::Events) {
                        return;
                    }
                    match self.read(answer, None, &mut place).await {
                        Ok(Heard::Nothing) => pause = (pause * 2).min(MAX_PAUSE),
                        Ok(_) => pause = place.retry,
                        // It may be said again, and there be room for it.
                        Err(Fault::NoRoom) => pause = (pause * 2).min(MAX_PAUSE),
                        // What is said later is still to be heard.
                        Err(Fault::TooLarge(limit)) => {
                            warn!(
                                limit,
                                "the server wrote a message longer than `limits.message` on its own stream, left out"
                            );
                            pause = (pause * 2).min(MAX_PAUSE);
                        }
                        Err(_) => return,
                    }
                }
                Ok(answer) => {
                    if self.check_session(answer.head.status).is_err() {
                        self.gone.notify_one();
                    }
                    // It has none: most servers do not (mcp-L1). What it is shown may be
                    // accepted again after the next call.
                    let later = [StatusCode::UNAUTHORIZED, StatusCode::TOO_MANY_REQUESTS];
                    let status = answer.head.status;
                    if !status.is_server_error() && !later.contains(&status) {
                        return;
                    }
                    pause = (pause * 2).min(MAX_PAUSE);
                }
                Err(_) => pause = (pause * 2).min(MAX_PAUSE),
            }
            sleep(pause.max(place.retry)).await;
        }
    }

    /// Reads one stream of events to its end, or a little beyond the answer.
    async fn read(
        &self,
        mut answer: Answer,
        until: Option<(u64, Asks)>,
        place: &mut Place,
    ) -> Result<Heard, Fault> {
        let mut reader = Reader::new(self.peer.longest);
        let mut share = self.share();
        let mut heard = Heard::Nothing;
        // Set by the answer: what may still come is little, and not worth waiting for.
        let mut end = None;
        loop {
            let chunk = match end {
                Some(end) => match timeout_at(end, answer.chunk()).await {
                    Ok(chunk) => chunk,
                    Err(_) => return Ok(heard),
                },
                None => answer.chunk().await,
            };
            match chunk {
                Ok(Some(chunk)) => reader.push(&chunk),
                Ok(None) => {
                    place.update(&reader);
                    self.keep(answer).await;
                    return Ok(heard);
                }
                Err(error) => {
                    debug!(%error, "a stream of the server's was cut off");
                    place.update(&reader);
                    return Ok(heard);
                }
            }
            loop {
                let Ok(text) = reader.next() else {
                    place.update(&reader);
                    return Err(Fault::TooLarge(self.peer.longest));
                };
                let Some(text) = text else { break };
                if heard != Heard::Answer {
                    let answers = match until {
                        Some((number, asks)) => self.learn(number, asks, &text).await,
                        None => false,
                    };
                    heard = if answers { Heard::Answer } else { Heard::Some };
                    end = answers.then(|| Instant::now() + REST);
                }
                let own = share.split(text.len());
                self.hear(text, own).await;
            }
            share.shrink_to(reader.unfinished());
            if !share.wait_for(reader.unfinished()).await {
                place.update(&reader);
                return Err(Fault::NoRoom);
            }
        }
    }

    /// An answer with another status than 200: an error of the protocol's, or no answer at all.
    async fn refused(&self, number: u64, asks: Asks, mut answer: Answer) -> Result<(), Fault> {
        let status = answer.head.status;
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            warn!(
                %status,
                server = self.peer.authority,
                "the server does not accept what it is shown, which [upstream] of its file says"
            );
            if status == StatusCode::UNAUTHORIZED {
                (self.peer.shown.refused)();
            }
            return Err(Fault::Refused);
        }
        if status.is_client_error() && media_type(&answer.head.headers) == Some(Media::Json) {
            let mut share = self.share();
            let error = match answer.whole(self.peer.longest, &mut share).await {
                Ok(text) => aside(text.len(), move || error_for(number, text)).await,
                Err(Fault::TooLarge(_)) => None,
                Err(fault) => return Err(fault),
            };
            // A server that knows no such session says so with an error, too.
            self.check_session(status)?;
            if let Some(error) = error {
                self.hear(error, share).await;
                self.keep(answer).await;
                return Ok(());
            }
        }
        self.check_session(status)?;
        if asks == Asks::Discover && status.is_client_error() {
            // Whatever a server says to that, it is a legacy one (mcp-T27).
            let error = format!(
                r#"{{"jsonrpc":"2.0","id":{number},"error":{{"code":-32601,"message":"{status}"}}}}"#
            );
            self.hear(error.into(), self.share()).await;
            return Ok(());
        }
        debug!(%status, "the server refuses a request");
        Err(Fault::Refused)
    }

    /// 404 means that a session has ended, where there is one (mcp-L7).
    pub(super) fn check_session(&self, status: StatusCode) -> Result<(), Fault> {
        if status == StatusCode::NOT_FOUND && self.lock().session.is_some() {
            return Err(Fault::Gone);
        }
        Ok(())
    }

    /// Whether a message is the answer; what `initialize` agreed on is remembered.
    pub(super) async fn learn(&self, number: u64, asks: Asks, text: &Bytes) -> bool {
        let (text, mirror) = (text.clone(), self.peer.mirror.clone());
        let size = text.len();
        let learned = aside(size, move || learned((number, asks), text, &mirror)).await;
        let Some(version) = learned else {
            return false;
        };
        if asks == Asks::Initialize {
            self.lock().version = version;
        }
        true
    }

    /// Gives a message to the session.
    async fn hear(&self, text: Bytes, share: Share) {
        self.output.lock().await.say(text, share).await;
    }

    /// Gives it the rest of a message whose request was ended meanwhile.
    pub(super) async fn finish(&self) {
        // Nobody reads any more: the session is ending.
        let _ = self.output.lock().await.finish().await;
    }

    fn share(&self) -> Share {
        Share::of(self.lends.clone())
    }
}

impl Place {
    fn new() -> Self {
        Self {
            last: None,
            retry: RETRY,
        }
    }

    fn update(&mut self, reader: &Reader) {
        if let Some(last) = &reader.last {
            self.last = HeaderValue::from_str(last)
                .ok()
                .filter(|last| !last.is_empty());
        }
        if let Some(retry) = reader.retry {
            self.retry = retry.clamp(MIN_RETRY, MAX_PAUSE);
        }
    }
}

/// The version that the answer of this request agrees on, if it does; `None` if it is none of it.
fn learned(
    (number, asks): (u64, Asks),
    text: Bytes,
    mirror: &Mirror,
) -> Option<Option<HeaderValue>> {
    let message = Message::parse(text).ok()?;
    let root = message.root();
    let id = root.get("id").and_then(Value::as_number);
    if root.get("method").is_some() || id != Some(number.to_string().as_str()) {
        return None;
    }
    let result = root.get("result");
    if let (Asks::Tools, Some(result)) = (asks, result) {
        mirror.learn(result);
    }
    let version = result.filter(|_| asks == Asks::Initialize);
    Some(version.and_then(agreed_version))
}

/// The error of a refusal as the answer of this request.
fn error_for(number: u64, text: Bytes) -> Option<Bytes> {
    let message = Message::parse(text).ok()?;
    let error = message.root().get("error")?;
    let is_error = error.kind() == Json::Object;
    is_error.then(|| answer::error(number.to_string().as_bytes(), error.raw()).into())
}

/// The version that a result of `initialize` names, for each request that follows; nothing if it is none
/// that there is, which could be of any length.
fn agreed_version(result: Value<'_>) -> Option<HeaderValue> {
    let named = result.get("protocolVersion")?.as_str()?;
    let modern = (named == version::MODERN).then_some(version::MODERN);
    version::legacy(&named)
        .or(modern)
        .map(HeaderValue::from_static)
}

/// The two forms that an answer may have, not encoded.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Media {
    Json,
    Events,
}

fn media_type(headers: &HeaderMap) -> Option<Media> {
    let encoded = headers.get_all(header::CONTENT_ENCODING).iter();
    if encoded
        .into_iter()
        .any(|coding| coding.as_bytes() != b"identity")
    {
        return None;
    }
    let mut kinds = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(kind), None) = (kinds.next(), kinds.next()) else {
        return None;
    };
    let kind = kind.as_bytes().split(|byte| *byte == b';').next()?;
    let is = |name: &[u8]| kind.trim_ascii().eq_ignore_ascii_case(name);
    if is(b"application/json") {
        Some(Media::Json)
    } else {
        is(b"text/event-stream").then_some(Media::Events)
    }
}

/// How long a stream is read after the answer that it was for.
const REST: Duration = Duration::from_millis(500);
/// When to come back to a stream, if its server does not say; at once is too soon, ever.
const RETRY: Duration = Duration::from_secs(1);
const MIN_RETRY: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// How often a request's stream is taken up again without anything on it.
const MAX_VAIN: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_kept_if_it_is_one_that_is_served() {
        let agreed = |version: &str| {
            let result = format!(r#"{{"protocolVersion":{version}}}"#);
            agreed_version(Message::parse(result.into()).unwrap().root())
        };
        for served in ["2025-06-18", "2026-07-28"] {
            assert_eq!(agreed(&format!(r#""{served}""#)).unwrap(), served);
        }
        let long = format!(r#""{}""#, "9".repeat(1 << 20));
        for other in [&long, r#""2030-01-01""#, r#""""#, "7"] {
            assert_eq!(agreed(other), None);
        }
    }
}

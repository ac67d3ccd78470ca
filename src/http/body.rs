//! Request bodies, read whole and capped; answer bodies, whole or as events.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};

use crate::{
    http::{Refusal, reply},
    mcp::Id,
    session::{Event, Exchange},
};

/// The body of an answer.
pub enum Body {
    Whole(Option<Bytes>),
    Events(Box<Events>),
}

impl Body {
    pub fn empty() -> Self {
        Self::Whole(None)
    }
}

impl From<Vec<u8>> for Body {
    fn from(text: Vec<u8>) -> Self {
        Self::Whole(Some(text.into()))
    }
}

impl From<Bytes> for Body {
    fn from(text: Bytes) -> Self {
        Self::Whole(Some(text))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let text = match &mut *self {
            Self::Whole(text) => Poll::Ready(text.take()),
            Self::Events(events) => events.poll(context),
        };
        text.map(|text| text.map(|text| Ok(Frame::data(text))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64))
            }
            Self::Events(_) => SizeHint::default(),
        }
    }
}

/// An exchange as server-sent events (WHATWG HTML §9.2), until its answer.
pub struct Events {
    id: Id,
    first: Option<Event>,
    exchange: Option<Exchange>,
    keep_alive: Interval,
}

impl Events {
    pub fn new(id: Id, first: Option<Event>, exchange: Exchange) -> Self {
        let mut keep_alive = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            id,
            first,
            exchange: Some(exchange),
            keep_alive,
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let Some(exchange) = &mut self.exchange else {
            return Poll::Ready(None);
        };
        let event = match self.first.take() {
            Some(event) => Poll::Ready(Some(event)),
            None => exchange.poll_next(context),
        };
        match event {
            Poll::Ready(Some(Event::Message(message))) => {
                self.keep_alive.reset();
                Poll::Ready(Some(data(&message)))
            }
            Poll::Ready(Some(Event::Answer(answer))) => {
                self.exchange = None;
                Poll::Ready(Some(data(&answer)))
            }
            Poll::Ready(Some(Event::Failed(failure))) => {
                self.exchange = None;
                Poll::Ready(Some(data(&reply::failure(Some(&self.id), failure))))
            }
            Poll::Ready(None) => {
                self.exchange = None;
                Poll::Ready(None)
            }
            Poll::Pending => self
                .keep_alive
                .poll_tick(context)
                .map(|_| Some(Bytes::from_static(b":\n\n"))),
        }
    }
}

/// One event. The message holds no line break: lines are how it was read (sse-1).
fn data(message: &[u8]) -> Bytes {
    let mut event = BytesMut::with_capacity(message.len() + 24);
    event.extend_from_slice(b"event: message\ndata: ");
    event.extend_from_slice(message);
    event.extend_from_slice(b"\n\n");
    event.freeze()
}

/// Reads a request body whole: at most `max` bytes within `BODY_DEADLINE`.
pub async fn read(body: Incoming, max: usize) -> Result<Bytes, Refusal> {
    if body.size_hint().lower() > max as u64 {
        return Err(Refusal::TooLarge);
    }
    timeout(BODY_DEADLINE, collect(body, max))
        .await
        .unwrap_or(Err(Refusal::BodyTimeout))
}

async fn collect(mut body: Incoming, max: usize) -> Result<Bytes, Refusal> {
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Refusal::BodyIncomplete)?;
        // Trailers are dropped, never merged (h1-11).
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if whole.len() + data.len() > max {
            return Err(Refusal::TooLarge);
        }
        // The usual body is one frame: it is not copied.
        if whole.is_empty() && body.is_end_stream() {
            return Ok(data);
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// How long a request body may take (conn-2).
const BODY_DEADLINE: Duration = Duration::from_secs(30);
/// How often an open stream says that it is (sse-5).
const KEEP_ALIVE: Duration = Duration::from_secs(15);

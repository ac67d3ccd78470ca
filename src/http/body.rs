//! Request bodies, read whole and capped; answer bodies, whole or as events.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::Version;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, Sleep, interval_at, sleep_until, timeout},
};

use crate::{
    auth::Identity,
    http::{
        Refusal,
        budget::{Budget, Lent, Share},
        hush::hushed,
        reply,
    },
    mcp::Id,
    session::{Event, Exchange, Style, UNCOUNTED},
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

/// What joins a stream that is open.
pub enum Joining {
    /// A message that is whole.
    Text(Bytes),
    /// A request's messages and its answer.
    Exchange(Id, Exchange),
    /// The session's own stream. Its end is the end of all.
    Own(Exchange),
    /// When the stream ends in any case.
    Until(Option<Instant>),
}

/// Exchanges as server-sent events (WHATWG HTML §9.2), until the last has its answer.
pub struct Events {
    /// Texts that are ready to go.
    ready: VecDeque<Bytes>,
    open: Vec<Open>,
    keep_alive: Interval,
    until: Option<Pin<Box<Sleep>>>,
    /// More may come while this is there.
    joining: Option<mpsc::Receiver<Joining>>,
    /// Dropped with the stream.
    _guard: Option<Box<dyn Send>>,
}

/// One exchange whose answer has not come.
struct Open {
    /// The id of the request that is answered; `None` for a session's own stream.
    id: Option<Id>,
    exchange: Exchange,
    style: Style,
}

impl Events {
    /// One exchange, and what was read of it already.
    pub fn new(id: Option<Id>, first: Option<Event>, exchange: Exchange) -> Self {
        let mut events = Self::of(VecDeque::new(), Vec::new());
        let style = exchange.as_events();
        if style == Style::Primed {
            // Its place is before what was read: who comes back from there gets that again.
            let place = exchange.event_id(usize::from(first.is_some()));
            let priming = format!("id: {place}\nretry: {RETRY}\ndata:\n\n");
            events.ready.push_back(priming.into());
        }
        let open = Open {
            id,
            exchange,
            style,
        };
        if let Some(first) = first {
            let last = !matches!(first, Event::Message(_));
            let mut rest = VecDeque::new();
            events.ready.push_back(open.text(first, &mut rest));
            events.ready.append(&mut rest);
            if last {
                return events;
            }
        }
        events.open.push(open);
        events
    }

    /// Several exchanges in one (batches), after answers that are there already.
    pub fn batch(ready: Vec<Bytes>, exchanges: Vec<(Id, Exchange)>) -> Self {
        let ready = ready.iter().map(|answer| data(None, answer)).collect();
        let open = exchanges.into_iter().map(|(id, exchange)| Open {
            id: Some(id),
            exchange: exchange.plain(),
            style: Style::Plain,
        });
        Self::of(ready, open.collect())
    }

    /// A stream to which more is joined while it is open; it begins with `first`, which is
    /// an event already. `guard` is dropped when it ends.
    pub fn joined(first: Bytes, joining: mpsc::Receiver<Joining>, guard: Box<dyn Send>) -> Self {
        let mut events = Self::of(VecDeque::from([first]), Vec::new());
        events.joining = Some(joining);
        events._guard = Some(guard);
        events
    }

    /// Ends at that time, whatever may still come (tok-69).
    pub fn end_at(&mut self, end: Instant) {
        self.until = Some(Box::pin(sleep_until(end)));
    }

    fn of(ready: VecDeque<Bytes>, open: Vec<Open>) -> Self {
        let mut keep_alive = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            ready,
            open,
            keep_alive,
            until: None,
            joining: None,
            _guard: None,
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(text) = self.ready.pop_front() {
            return Poll::Ready(Some(text));
        }
        // First: it may say that this ends later, for whom nobody has asked for long.
        self.join(context);
        if let Some(until) = &mut self.until
            && until.as_mut().poll(context).is_ready()
        {
            self.open.clear();
            self.joining = None;
        }
        if let Some(text) = self.ready.pop_front() {
            return Poll::Ready(Some(text));
        }
        let mut at = 0;
        while at < self.open.len() {
            match self.open[at].exchange.poll_next(context) {
                Poll::Ready(Some(event)) => {
                    self.keep_alive.reset();
                    let last = !matches!(event, Event::Message(_));
                    let text = self.open[at].text(event, &mut self.ready);
                    if last {
                        self.open.swap_remove(at);
                    } else {
                        // One that says much keeps no other from being heard.
                        self.open.rotate_left(at + 1);
                    }
                    return Poll::Ready(Some(text));
                }
                Poll::Ready(None) => {
                    let ended = self.open.swap_remove(at);
                    // Without the session nothing more can join.
                    if ended.id.is_none() {
                        self.joining = None;
                    }
                }
                Poll::Pending => at += 1,
            }
        }
        if self.open.is_empty() && self.joining.is_none() {
            return Poll::Ready(None);
        }
        self.keep_alive
            .poll_tick(context)
            .map(|_| Some(Bytes::from_static(b":\n\n")))
    }

    fn join(&mut self, context: &mut Context<'_>) {
        let Some(joining) = &mut self.joining else {
            return;
        };
        loop {
            let (id, exchange) = match joining.poll_recv(context) {
                Poll::Pending => return,
                Poll::Ready(None) => {
                    self.joining = None;
                    return;
                }
                Poll::Ready(Some(Joining::Text(text))) => {
                    self.ready.push_back(data(None, &text));
                    continue;
                }
                Poll::Ready(Some(Joining::Until(until))) => {
                    self.until = until.map(|until| Box::pin(sleep_until(until)));
                    // Looked at now, or nobody would wake for it.
                    context.waker().wake_by_ref();
                    continue;
                }
                Poll::Ready(Some(Joining::Exchange(id, exchange))) => (Some(id), exchange),
                Poll::Ready(Some(Joining::Own(exchange))) => (None, exchange),
            };
            self.open.push(Open {
                id,
                exchange: exchange.plain(),
                style: Style::Plain,
            });
        }
    }
}

impl Open {
    /// The event as it is written; what of it comes after that is put into `rest`.
    fn text(&self, event: Event, rest: &mut VecDeque<Bytes>) -> Bytes {
        let place = (self.style != Style::Plain).then(|| self.exchange.event_id(0));
        let text = match event {
            Event::Message(text) | Event::Answer(text) => text,
            Event::Failed(failure) => reply::failure(self.id.as_ref(), failure),
        };
        if text.len() <= UNCOUNTED {
            return data(place.as_deref(), &text);
        }
        // Not copied: who writes it holds what its session has counted.
        let mut begins = data(place.as_deref(), b"");
        let ends = begins.split_off(begins.len() - EVENT_END.len());
        rest.extend([text, ends]);
        begins
    }
}

/// The first event of the transport of 2024-11-05: where its client sends messages.
pub fn endpoint(path: &str) -> Bytes {
    format!("event: endpoint\ndata: {path}\n\n").into()
}

/// One event. The message holds no line break: lines are how it was read (sse-1).
fn data(id: Option<&str>, message: &[u8]) -> Bytes {
    let mut event = BytesMut::with_capacity(message.len() + 48);
    if let Some(id) = id {
        event.extend_from_slice(format!("id: {id}\n").as_bytes());
    }
    event.extend_from_slice(b"event: message\ndata: ");
    event.extend_from_slice(message);
    event.extend_from_slice(EVENT_END);
    event.freeze()
}

/// Reads the body of a request of this version whole: at most `max` bytes within `BODY_DEADLINE`; and what it
/// has of the budget.
pub async fn read(
    (version, body): (Version, &mut Incoming),
    max: usize,
    (budget, user): (&Budget, &Identity),
) -> Result<(Bytes, Lent), Refusal> {
    if body.size_hint().lower() > max as u64 {
        return Err(Refusal::TooLarge);
    }
    let announced = body.size_hint().lower();
    let mut first = poll_fn(|context| {
        let (first, rang) = hushed(|| Pin::new(&mut *body).poll_frame(context));
        if rang && !body.is_end_stream() {
            // There is room for more, which is to come.
            context.waker().wake_by_ref();
        }
        Poll::Ready(first)
    })
    .await;
    // The usual body is one frame, and there already: it is not copied, and no clock is set for it.
    if let Poll::Ready(Some(Ok(frame))) = &mut first
        && body.is_end_stream()
        && let Some(data) = frame.data_mut()
        && data.len() <= max
        && data.len() <= uncounted(version)
    {
        return Ok((std::mem::take(data), Lent::nothing()));
    }
    let frames = (body, first, announced);
    let all = collect((version, frames), max, (budget, user));
    Box::pin(timeout(BODY_DEADLINE, all))
        .await
        .unwrap_or(Err(Refusal::BodyTimeout))
}

/// What a body says of its next frame.
type Next = Poll<Option<Result<Frame<Bytes>, hyper::Error>>>;

async fn collect(
    (version, (body, mut first, announced)): (Version, (&mut Incoming, Next, u64)),
    max: usize,
    (budget, user): (&Budget, &Identity),
) -> Result<(Bytes, Lent), Refusal> {
    let mut whole = BytesMut::new();
    let mut share: Option<Share> = None;
    loop {
        let next = match std::mem::replace(&mut first, Poll::Pending) {
            Poll::Ready(next) => next,
            Poll::Pending => body.frame().await,
        };
        let Some(frame) = next else { break };
        let frame = frame.map_err(|_| Refusal::BodyIncomplete)?;
        // Trailers are dropped, never merged (h1-11).
        let Ok(data) = frame.into_data() else {
            continue;
        };
        if whole.len() + data.len() > max {
            return Err(Refusal::TooLarge);
        }
        let is_whole = whole.is_empty() && body.is_end_stream();
        // For what has come, not for what is announced: announcing costs nothing.
        if whole.len() + data.len() > uncounted(version) {
            share
                .get_or_insert_with(|| budget.share(user))
                .grow_to(whole.len() + data.len())?;
        }
        // The usual body is one frame: it is not copied.
        if is_whole {
            return Ok((data, share.map_or(Lent::nothing(), Share::lent)));
        }
        if whole.len() + data.len() > LARGE_BODY {
            // Addresses, of which no more is memory than has come: what grows is copied else, while everybody waits.
            let rest = usize::try_from(announced).unwrap_or(max).min(max);
            whole.reserve(rest.saturating_sub(whole.len()));
        }
        whole.extend_from_slice(&data);
    }
    // The library takes the reset of a stream without an error for the end of its body (RFC 9113 §8.1): of
    // a request it is none.
    if version == Version::HTTP_2 && !body.is_end_stream() {
        return Err(Refusal::BodyIncomplete);
    }
    let text = whole.freeze();
    Ok((text, share.map_or(Lent::nothing(), Share::lent)))
}

/// Bytes of a body that are not counted: of HTTP/2 there are many on one connection.
fn uncounted(version: Version) -> usize {
    if version == Version::HTTP_2 {
        UNCOUNTED
    } else {
        SMALL_BODY
    }
}

const EVENT_END: &[u8] = b"\n\n";
/// What every connection of HTTP/1 may send without asking.
const SMALL_BODY: usize = 64 << 10;
/// From so many bytes on a body has a place for all that was announced.
const LARGE_BODY: usize = 1 << 20;
/// How long a request body may take (conn-2).
const BODY_DEADLINE: Duration = Duration::from_secs(30);
/// How often an open stream says that it is (sse-5).
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Milliseconds after which a client that lost its stream comes back (mcp-L3).
const RETRY: u32 = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Exchange;

    async fn next(events: &mut Events) -> Option<String> {
        let text = poll_fn(|context| events.poll(context)).await?;
        Some(String::from_utf8(text.to_vec()).unwrap())
    }

    /// tok-69: a stream that nobody has read for a while does not end where a newer token was shown in time; where none was,
    /// it does.
    #[tokio::test(start_paused = true)]
    async fn a_stream_that_was_not_read_lives_on_with_a_newer_token() {
        let minute = Duration::from_secs(60);
        for is_extended in [true, false] {
            let (joins, joining) = mpsc::channel(4);
            let mut events = Events::joined(Bytes::new(), joining, Box::new(()));
            events.end_at(Instant::now() + minute);
            assert!(next(&mut events).await.is_some());
            if is_extended {
                let until = Joining::Until(Some(Instant::now() + 5 * minute));
                joins.try_send(until).ok().unwrap();
            }
            tokio::time::advance(2 * minute).await;
            let text = Joining::Text("{}".into());
            joins.try_send(text).ok().unwrap();
            // What had come is said in any case.
            assert!(next(&mut events).await.unwrap().contains("{}"));
            let later = Joining::Text("[]".into());
            assert_eq!(joins.try_send(later).is_ok(), is_extended);
        }
    }

    /// A large message is one event like any other, whether or not it is the first, and none of its bytes is copied.
    #[tokio::test]
    async fn a_large_message_is_one_event_of_the_same_bytes() {
        let large = Bytes::from(vec![b'x'; UNCOUNTED + 1]);
        let whole = String::from_utf8(data(Some("0-1"), &large).to_vec()).unwrap();
        for is_first in [true, false] {
            let (_stream, exchange) = Exchange::example_with(&large);
            let mut exchange = exchange;
            let first = if is_first {
                exchange.next().await
            } else {
                None
            };
            let mut events = Events::new(None, first, exchange);
            let primed = next(&mut events).await.unwrap();
            assert!(primed.starts_with("id: 0-0\nretry: "));
            let mut written = String::new();
            let mut same = 0;
            while !written.ends_with("\n\n") {
                let part = poll_fn(|context| events.poll(context)).await;
                let part = part.unwrap();
                same += usize::from(part.as_ptr() == large.as_ptr());
                written += std::str::from_utf8(&part).unwrap();
            }
            assert!(written == whole && same == 1, "{is_first}");
        }
    }

    /// One stream for several calls: what one of them says keeps none of the others from its answer.
    #[tokio::test]
    async fn who_says_much_keeps_nobody_from_an_answer() {
        let call = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
        let call = crate::mcp::Call::read(call.into(), false).unwrap();
        let id = call.id().unwrap();
        let (_stream, talks) = Exchange::talking(100);
        let answered = Exchange::answered("answered".into());
        let mut events = Events::batch(
            Vec::new(),
            vec![(id.clone(), talks), (id.clone(), answered)],
        );
        let said = [next(&mut events).await, next(&mut events).await];
        assert!(
            said.iter().flatten().any(|text| text.contains("answered")),
            "{said:?}"
        );
    }

    /// sse-5, tok-69: an open stream says that it is, and ends with the token that opened it.
    #[tokio::test(start_paused = true)]
    async fn an_open_stream_says_so_until_its_token_ends() {
        let (_stream, exchange) = Exchange::example();
        let mut events = Events::new(None, None, exchange);
        let start = Instant::now();
        events.end_at(start + Duration::from_secs(40));
        let primed = next(&mut events).await.unwrap();
        assert!(primed.starts_with("id: 0-0\nretry: ") && primed.ends_with("\ndata:\n\n"));
        for seconds in [15, 30] {
            assert_eq!(next(&mut events).await.as_deref(), Some(":\n\n"));
            assert_eq!(start.elapsed().as_secs(), seconds);
        }
        assert_eq!(next(&mut events).await, None);
        assert_eq!(start.elapsed().as_secs(), 40);
    }
}

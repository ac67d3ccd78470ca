//! One connection, from its first request to its close.

use std::{
    convert::Infallible,
    future::{Future, pending},
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderValue, header};
use hyper::{
    Request,
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    sync::watch,
    task::yield_now,
    time::{Instant, sleep_until, timeout},
};
use tracing::debug;

use super::{
    activity::{Activity, Streams},
    beside::{First, beside},
    flood::{Frames, PREFACE},
    guarded::{Guarded, Unwatched, WRITE_DEADLINE},
    head::{Heads, MAX_HEAD, Verdict},
    hush::Hushable,
};
use crate::http::{Refusal, Response, reply::LastAnswer};

/// Which HTTP a connection speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    One,
    Two,
}

/// A request, or why it is not even looked at.
pub type Asked = Result<Request<Incoming>, Refusal>;

/// A stream between two requests. It has a box of its own, for it goes from hand to hand: what is
/// given by value takes its room in each future that it passes, as long as that lasts.
pub(super) type Rested<S> = Box<Guarded<S, Unwatched>>;

/// Serves HTTP on `stream` until the peer leaves, a limit ends it, or `drain`
/// says so: then what is running is answered, and no more is read.
pub(super) async fn serve<F>(
    mut stream: Rested<impl AsyncRead + AsyncWrite + Send + Unpin + 'static>,
    drain: &watch::Receiver<bool>,
    activity: &Activity,
    answer: &impl Fn(Asked) -> F,
) where
    F: Future<Output = Response> + Send + 'static,
{
    // Boxed: it is over in a moment, and a connection may last for days.
    if let Some(version) = Box::pin(version(&mut stream, drain)).await {
        serve_version(version, stream, drain, activity, answer).await;
    }
}

/// What is spoken; `None` if nothing is said in time.
async fn version(
    stream: &mut Guarded<impl AsyncRead + Unpin, Unwatched>,
    drain: &watch::Receiver<bool>,
) -> Option<Version> {
    let begun = stream.begins_with(&PREFACE[..1]);
    if !in_time(begun, HEADER_DEADLINE, drain, None).await? {
        return Some(Version::One);
    }
    // From here on it is a request's head, whose time runs.
    let preface = stream.begins_with(PREFACE);
    match in_time(preface, PREFACE_DEADLINE, drain, None).await {
        Some(true) => Some(Version::Two),
        Some(false) | None => Some(Version::One),
    }
}

/// The same, where it is known what is spoken.
pub(super) async fn serve_version<F>(
    version: Version,
    mut stream: Rested<impl AsyncRead + AsyncWrite + Send + Unpin + 'static>,
    drain: &watch::Receiver<bool>,
    activity: &Activity,
    answer: &impl Fn(Asked) -> F,
) where
    F: Future<Output = Response> + Send + 'static,
{
    match version {
        // Boxed: a connection pays for what it speaks, and nothing before it speaks …
        Version::One => loop {
            let speaks = Box::pin(serve_one(stream, drain.clone(), activity, answer));
            let Some(rested) = speaks.await else { return };
            stream = rested;
            // … nor while it is only kept open for what may come: thousands are.
            let more = in_time(stream.more(), LEFT_AFTER_REST, drain, Some(activity)).await;
            if more.is_none_or(|read| read == 0) {
                // Over TLS this says that it ends here, and that nobody has cut it.
                let _ = timeout(GOING, stream.shutdown()).await;
                return;
            }
        },
        Version::Two => Box::pin(serve_two(stream, drain.clone(), activity, answer)).await,
    }
}

/// What is read, unless that takes too long, fails or is to be drained.
async fn in_time<T>(
    read: impl Future<Output = io::Result<T>>,
    patience: Duration,
    drain: &watch::Receiver<bool>,
    activity: Option<&Activity>,
) -> Option<T> {
    tokio::select! {
        biased;
        read = timeout(patience, read) => read.ok()?.ok(),
        () = told(drain.clone(), activity) => None,
    }
}

/// Serves it to its end, or gives it back when it has answered and then rested for a while.
async fn serve_one<S, F>(
    stream: Rested<S>,
    drain: watch::Receiver<bool>,
    activity: &Activity,
    answer: &impl Fn(Asked) -> F,
) -> Option<Rested<S>>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let (verdict, begun) = (Verdict::default(), activity.begun());
    let stream = stream.watched(Heads::new(verdict.clone(), begun));
    let service = service_fn(|request: Request<Incoming>| {
        let (number, busy) = activity.begin();
        // No protocol is switched to: what comes next would be nobody's (RUSTSEC-2026-0033).
        let last = request.headers().contains_key(header::UPGRADE);
        let response = answer(match verdict.on(number) {
            Some(refusal) => Err(refusal),
            None => Ok(request),
        });
        async move {
            let mut response = response.await;
            if last {
                response
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| busy.until_sent(body)))
        }
    });
    let mut connection = http1::Builder::new()
        // What has not come whole is seen here, and hyper would set a clock for each request.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), service);
    let told = async {
        tokio::select! {
            biased;
            () = told(drain, Some(activity)) => Told::Drain,
            told = looked_after(activity, begun, &verdict) => told,
        }
    };
    let speaks = Hushable::new(Pin::new(&mut connection));
    let ended = match beside(pin!(speaks), pin!(told)).await {
        First::Work(ended) => ended,
        First::Signal(Told::Drain) => {
            Pin::new(&mut connection).graceful_shutdown();
            connection.await
        }
        First::Signal(Told::Late) => {
            debug!("a request's head has not come whole in time");
            // Over TLS this says that it ends here, and that nobody has cut it.
            let mut stream = connection.into_parts().io.into_inner();
            let _ = timeout(GOING, stream.shutdown()).await;
            return None;
        }
        First::Signal(Told::Rest) => {
            // All that was asked is answered, and all of that has left.
            let parts = connection.into_parts();
            let stream = parts.io.into_inner().unwatched();
            return stream.filter(|_| parts.read_buf.is_empty()).map(Box::new);
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection ended early");
    }
    None
}

/// What ends the work on a connection before its peer does.
enum Told {
    Drain,
    Rest,
    /// A head that has begun does not come to its end.
    Late,
}

/// Looks now and then at what an HTTP/1 connection does on which so many requests had begun
/// before: a clock for each request would cost more than all that it guards.
async fn looked_after(activity: &Activity, begun: u64, verdict: &Verdict) -> Told {
    // The head that is waited for, by the requests before it, and since when: the first one
    // from now on, though nothing of it may have come (over TLS), any other when it begins.
    let mut head = Some((begun, Instant::now()));
    let mut due = Instant::now() + REST;
    let mut busy_with = None;
    loop {
        sleep_until(due).await;
        let (now, number) = (Instant::now(), activity.begun());
        due = now + REST;
        let Some(idle_since) = activity.quiet_since() else {
            head = None;
            if busy_with.replace(number) == Some(number) {
                // What takes long, as an open stream does, is not looked at again and again.
                activity.quiet().await;
                due = Instant::now() + REST;
            }
            continue;
        };
        if verdict.is_unsent() {
            // The peer has not read all; how long it may read nothing is counted already.
            head = None;
            continue;
        }
        if number == begun || verdict.has_begun() {
            match head {
                Some((before, since)) if before == number => {
                    // It may have begun just after it was looked at last.
                    if now.duration_since(since) >= HEADER_DEADLINE.saturating_sub(REST * 2) {
                        return Told::Late;
                    }
                }
                _ => head = Some((number, now)),
            }
            continue;
        }
        head = None;
        let rested = idle_since + REST;
        if rested > now {
            due = rested;
        } else {
            return Told::Rest;
        }
    }
}

async fn serve_two<F>(
    stream: Rested<impl AsyncRead + AsyncWrite + Send + Unpin + 'static>,
    drain: watch::Receiver<bool>,
    activity: &Activity,
    answer: &impl Fn(Asked) -> F,
) where
    F: Future<Output = Response> + Send + 'static,
{
    let heads = Arc::new(AtomicUsize::new(0));
    let service = service_fn(|mut request: Request<Incoming>| {
        let (_, busy) = activity.begin();
        let kept = KeptHead::of(&request, &heads);
        let response = answer(if request.headers().len() > MAX_HEADERS {
            Err(Refusal::HeadTooLarge)
        } else if kept.is_too_much() {
            Err(Refusal::Overloaded)
        } else {
            // For as long as there is anything of its head.
            request.extensions_mut().insert(Arc::new(kept));
            Ok(request)
        });
        let activity = activity.clone();
        async move {
            let response = response.await;
            if response.extensions().get::<LastAnswer>().is_some() {
                activity.close();
            }
            Ok::<_, Infallible>(response.map(|body| busy.until_taken(body)))
        }
    });
    let frames = Frames::new(activity.clone());
    let streams = Streams::default();
    let _ends = streams.until_dropped();
    let connection = http2::Builder::new(streams.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEAD as u32)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_RESETS)
        .max_local_error_reset_streams(MAX_RESETS)
        .serve_connection(TokioIo::new(stream.watched(frames)), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        // One of them reads nothing: the others can come back.
        () = activity.stalled(WRITE_DEADLINE) => Ok(()),
        () = async {
            tokio::select! {
                () = told(drain, Some(activity)) => {}
                () = activity.idle(HEADER_DEADLINE) => {}
                () = activity.closed() => {}
            }
        } => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = &mut connection => ended,
                () = activity.stalled(WRITE_DEADLINE) => Ok(()),
                // Told to go, and it stays.
                () = activity.idle(GOING) => Ok(()),
            }
        }
    };
    streams.all_ended(GOING).await;
    if let Err(error) = ended {
        debug!(%error, "connection ended early");
    }
}

/// What the head of one request takes, of all that a connection of HTTP/2 keeps at once.
struct KeptHead {
    bytes: usize,
    all: Arc<AtomicUsize>,
}

impl KeptHead {
    fn of<B>(request: &Request<B>, all: &Arc<AtomicUsize>) -> Self {
        let target = request.uri().path_and_query();
        let lines = request.headers().iter().map(|(name, value)| {
            // As RFC 9113 §6.5.2 counts them: what a line takes besides is about that.
            name.as_str().len() + value.len() + 32
        });
        let bytes = target.map_or(0, |target| target.as_str().len()) + lines.sum::<usize>();
        all.fetch_add(bytes, Ordering::Relaxed);
        let all = all.clone();
        Self { bytes, all }
    }

    fn is_too_much(&self) -> bool {
        self.all.load(Ordering::Relaxed) > MAX_HEADS
    }
}

impl Drop for KeptHead {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Waits until the connection is to be drained and its first request, which may have
/// been on its way, had its time. Whoever waits for this looks first at what has come.
pub(super) async fn told(mut drain: watch::Receiver<bool>, activity: Option<&Activity>) {
    if drain.wait_for(|draining| *draining).await.is_err() {
        // Whoever could have said so has left this connection to itself.
        pending::<()>().await;
    }
    // What has come by now is seen first.
    yield_now().await;
    // Accepted, and perhaps not read yet: what comes at once is still answered.
    let spoken = async {
        match activity {
            Some(activity) => activity.spoken().await,
            None => pending().await,
        }
    };
    let _ = Box::pin(timeout(FIRST_REQUEST, spoken)).await;
}

/// How long a request's head may take, and how long a connection may wait for
/// one (h1-20, conn-1).
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// How long what begins like HTTP/2 may take to go on like it: a POST begins so, too.
const PREFACE_DEADLINE: Duration = Duration::from_secs(1);
/// After how long without a request an HTTP/1 connection lets go of its buffers.
const REST: Duration = Duration::from_millis(200);
/// How long it may wait for one from then on.
const LEFT_AFTER_REST: Duration = HEADER_DEADLINE.saturating_sub(REST);
/// Header lines of one request (h1-12).
pub(super) const MAX_HEADERS: usize = 64;
/// How long a connection that was accepted, and has said nothing, is waited for when draining.
const FIRST_REQUEST: Duration = Duration::from_secs(1);
/// How long an HTTP/2 client may take to leave when it is told to, and the end of a rest to be said.
const GOING: Duration = Duration::from_secs(1);
/// Requests at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 64;
/// Bytes of their heads: of each of them 8 KiB, or of some the 32 that a head may have.
const MAX_HEADS: usize = 512 << 10;
/// Bytes of bodies that a client may send before anybody reads them: of one request, of all.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;
const MAX_FRAME: u32 = 16 << 10;
/// Bytes of one answer that wait for the client.
const SEND_BUFFER: usize = 64 << 10;
/// Requests that the client took back, or that were its own mistake, and are not forgotten yet
/// (CVE-2023-44487, CVE-2025-8671).
const MAX_RESETS: usize = 32;

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use bytes::Bytes;
    use http::StatusCode;
    use http_body_util::{BodyExt as _, Full};
    use hyper::client;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        net::TcpStream,
        task::{JoinHandle, JoinSet},
        time::sleep,
    };

    use super::*;
    use crate::{
        auth::Identity,
        http::{
            body,
            budget::Budget,
            reply,
            testing::{connected, ends_after},
        },
        session::UNCOUNTED,
    };

    /// A served connection; time stands still but for what is waited for.
    fn connect(drain: watch::Receiver<bool>) -> (DuplexStream, JoinSet<()>) {
        let (client, server) = duplex(1 << 20);
        let mut serving = JoinSet::new();
        serving.spawn(serving_with(server, drain, says_it_again));
        (client, serving)
    }

    /// Answers with the body of the request.
    async fn says_it_again(asked: Asked) -> Response {
        let read = match asked {
            Ok(request) => {
                let budget = Budget::new(1 << 10);
                let user = Identity::example("https://i", "alice");
                let (version, mut body) = (request.version(), request.into_body());
                body::read((version, &mut body), 1 << 10, (&budget, &user))
                    .await
                    .map(|(text, _)| text)
            }
            Err(refusal) => Err(refusal),
        };
        match read {
            Ok(text) => reply::json(StatusCode::OK, text),
            Err(refusal) => refusal.response(None, None),
        }
    }

    async fn serving_with<F>(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        drain: watch::Receiver<bool>,
        answer: impl Fn(Asked) -> F,
    ) where
        F: Future<Output = Response> + Send + 'static,
    {
        let stream = Box::new(Guarded::new(stream));
        serve(stream, &drain, &Activity::new(), &answer).await;
    }

    /// What serves a connection of the system's.
    fn served<F>(
        stream: TcpStream,
        drain: watch::Receiver<bool>,
        answer: impl Fn(Asked) -> F + Send + Sync + 'static,
    ) -> JoinHandle<()>
    where
        F: Future<Output = Response> + Send + 'static,
    {
        tokio::spawn(serving_with(stream, drain, answer))
    }

    async fn answer_to(parts: &[&str]) -> (String, Duration) {
        let (_drain, draining) = watch::channel(false);
        let (mut client, _serving) = connect(draining);
        let started = Instant::now();
        for part in parts {
            client.write_all(part.as_bytes()).await.unwrap();
        }
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        (answer, started.elapsed())
    }

    /// conn-1, h1-20: a head that does not come to its end is waited for ten seconds.
    #[tokio::test(start_paused = true)]
    async fn a_slow_head_is_not_waited_for() {
        for parts in [
            &["POST / HT"][..],
            &["POST / HTTP/1.1\r\nHost: x\r\nX: "],
            &[],
        ] {
            let (answer, waited) = answer_to(parts).await;
            assert!(
                answer.is_empty() || answer.starts_with("HTTP/1.1 408"),
                "{answer}"
            );
            assert!(waited <= Duration::from_secs(11), "{waited:?}");
        }
    }

    /// conn-1: whoever is known to speak HTTP/1, as over TLS, and asks nothing is not waited for either.
    #[tokio::test(start_paused = true)]
    async fn whoever_asks_nothing_is_not_waited_for() {
        for begins in [&b""[..], b"POST / HT"] {
            let (mut client, server) = duplex(1 << 10);
            let (_drain, draining) = watch::channel(false);
            let answer = |_| async { reply::empty(StatusCode::OK) };
            let (stream, activity) = (Box::new(Guarded::new(server)), Activity::new());
            let served = serve_version(Version::One, stream, &draining, &activity, &answer);
            client.write_all(begins).await.unwrap();
            let waited = timeout(HEADER_DEADLINE + Duration::from_secs(1), served).await;
            assert!(waited.is_ok(), "{begins:?}");
        }
    }

    /// A client that has begun to ask for more is given all the time to read what it has asked for.
    #[tokio::test(start_paused = true)]
    async fn who_reads_a_large_answer_slowly_may_have_begun_the_next_request() {
        let (mut client, server) = duplex(1 << 10);
        let (_drain, draining) = watch::channel(false);
        let answer = |_| async { reply::json(StatusCode::OK, vec![b' '; 64 << 10]) };
        let _served = tokio::spawn(serving_with(server, draining, answer));
        let asked = b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHos";
        client.write_all(asked).await.unwrap();
        let mut answer = Vec::new();
        while answer.len() < 64 << 10 {
            sleep(Duration::from_secs(1)).await;
            assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0);
        }
        client
            .write_all(b"t: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        client.read_to_end(&mut answer).await.unwrap();
        assert!(answer.len() > 128 << 10, "{}", answer.len());
    }

    /// An open stream costs nothing while nothing is said on it, and its connection rests afterwards.
    #[tokio::test(start_paused = true)]
    async fn what_takes_long_is_not_looked_at_again_and_again() {
        let (activity, verdict) = (Activity::new(), Verdict::default());
        let mut looks = pin!(looked_after(&activity, 0, &verdict));
        let mut polls = 0;
        let (_, busy) = activity.begin();
        let ends = async {
            sleep(Duration::from_secs(3600)).await;
            drop(busy);
            Instant::now()
        };
        let looked = poll_fn(|context| {
            polls += 1;
            looks.as_mut().poll(context)
        });
        let (told, ended) = tokio::join!(biased; looked, ends);
        assert!(matches!(told, Told::Rest) && polls < 20, "{polls}");
        assert!(ended.elapsed() <= REST * 2);
    }

    /// conn-2: a body that does not come to its end is refused, and nothing is made of its beginning.
    #[tokio::test(start_paused = true)]
    async fn a_slow_body_is_refused() {
        let (answer, waited) =
            answer_to(&["POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"]).await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        assert!(
            answer.to_ascii_lowercase().contains("connection: close"),
            "{answer}"
        );
        assert!(waited <= Duration::from_secs(31), "{waited:?}");
    }

    /// conn-8: what comes behind a body that was not read is not taken for a request.
    #[tokio::test(start_paused = true)]
    async fn what_follows_an_unread_body_is_not_served() {
        let head = format!(
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n{}",
            "x".repeat(5000)
        );
        let (answer, _) = answer_to(&[&head, "GET /second HTTP/1.1\r\nHost: x\r\n\r\n"]).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    }

    /// fault-3: a connection that is told to drain answers what it has, and closes.
    #[tokio::test(start_paused = true)]
    async fn a_draining_connection_answers_what_it_has() {
        let (drain, draining) = watch::channel(false);
        let (mut client, mut serving) = connect(draining);
        client
            .write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{")
            .await
            .unwrap();
        yield_now().await;
        drain.send(true).unwrap();
        client.write_all(b"}").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        serving.join_next().await.unwrap().unwrap();
    }

    async fn next_answer(client: &mut DuplexStream) -> String {
        let mut answer = Vec::new();
        while !answer.ends_with(b"{}") {
            assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0);
        }
        String::from_utf8(answer).unwrap()
    }

    /// A request that comes in one piece is looked at once, and what has not come is waited for.
    #[tokio::test(start_paused = true)]
    async fn nobody_is_woken_by_the_end_of_a_body() {
        let (mut client, server) = duplex(1 << 10);
        let (_drain, draining) = watch::channel(false);
        let polls = Arc::new(AtomicUsize::new(0));
        let count = polls.clone();
        let mut serves = Box::pin(serving_with(server, draining, says_it_again));
        let _serving = tokio::spawn(poll_fn(move |context| {
            count.fetch_add(1, Ordering::Relaxed);
            serves.as_mut().poll(context)
        }));
        let length = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n";
        let mut looks = async |parts: &[&str]| {
            let before = polls.load(Ordering::Relaxed);
            for part in parts {
                client.write_all(part.as_bytes()).await.unwrap();
                for _ in 0..3 {
                    yield_now().await;
                }
            }
            assert!(next_answer(&mut client).await.contains("HTTP/1.1 200"));
            for _ in 0..3 {
                yield_now().await;
            }
            polls.load(Ordering::Relaxed) - before
        };
        let whole = format!("{length}\r\n{{}}");
        // It finds out first what is spoken.
        looks(&[&whole]).await;
        assert_eq!(looks(&[&whole]).await, 1);
        assert!(looks(&[&whole[..whole.len() - 2], "{}"]).await <= 3);
        assert!(looks(&[&whole[..whole.len() - 2], "{", "}"]).await <= 5);
        let expects = format!("{length}Expect: 100-continue\r\n\r\n");
        assert!(looks(&[&expects, "{}"]).await <= 4);
        let chunked = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n";
        assert!(looks(&[chunked]).await <= 4);
    }

    /// conn-1: a connection that has rested goes on where it was, and waits no longer than others.
    #[tokio::test(start_paused = true)]
    async fn a_connection_rests_between_requests_and_goes_on() {
        let (_drain, draining) = watch::channel(false);
        let (mut client, _serving) = connect(draining);
        let request = "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}";
        for cut in [0, 1, 20, request.len() - 1] {
            let (begin, rest) = request.split_at(cut);
            // With and without a rest before and within a request.
            for millis in [1, 1500, 8500] {
                sleep(Duration::from_millis(millis)).await;
                if !begin.is_empty() {
                    client.write_all(begin.as_bytes()).await.unwrap();
                    sleep(Duration::from_millis(millis)).await;
                }
                client.write_all(rest.as_bytes()).await.unwrap();
                let answer = next_answer(&mut client).await;
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            }
        }
        // The refusal of a head is that of the request that it was.
        client
            .write_all(b"POST / HTTP/1.1\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");

        let (_drain, draining) = watch::channel(false);
        let (mut client, _serving) = connect(draining);
        client.write_all(request.as_bytes()).await.unwrap();
        next_answer(&mut client).await;
        let answered = Instant::now();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        assert_eq!(answered.elapsed().as_secs(), HEADER_DEADLINE.as_secs());
    }

    /// conn-1: a head that comes bit by bit before a rest and after it has no more time than another.
    #[tokio::test(start_paused = true)]
    async fn a_slow_head_does_not_gain_by_a_rest() {
        let (_drain, draining) = watch::channel(false);
        let (mut client, _serving) = connect(draining);
        client
            .write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
            .await
            .unwrap();
        next_answer(&mut client).await;
        let answered = Instant::now();
        sleep(REST / 2).await;
        while client.write_all(b"x").await.is_ok() {
            sleep(Duration::from_secs(3)).await;
        }
        let waited = answered.elapsed();
        assert!(
            waited <= HEADER_DEADLINE + Duration::from_secs(3),
            "{waited:?}"
        );
    }

    /// An answer that its client takes its time to read is not cut off by a rest.
    #[tokio::test]
    async fn an_answer_that_is_read_late_is_whole() {
        let (mut client, stream) = connected().await;
        let (_drain, draining) = watch::channel(false);
        let answer = |_| async { reply::json(StatusCode::OK, vec![b' '; 16 << 20]) };
        let _served = served(stream, draining, answer);
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        // Longer than it takes to rest.
        sleep(REST * 2).await;
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert!(answer.len() > 16 << 20, "{}", answer.len());
    }

    /// conn-8: a peer that is told before it has sent all can say the rest, and reads then what it was told.
    #[tokio::test]
    async fn a_peer_that_goes_on_sending_reads_its_last_answer() {
        let (mut client, stream) = connected().await;
        let (_drain, draining) = watch::channel(false);
        let answer = |_| async { Refusal::TooLarge.response(None, None) };
        let _served = served(stream, draining, answer);
        client
            .write_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n")
            .await
            .unwrap();
        for _ in 0..8 {
            client.write_all(&[b'x'; 5000]).await.unwrap();
            sleep(REST / 2).await;
        }
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    }

    /// Promise 6: what has come over a connection that rested is answered before that is drained.
    #[tokio::test]
    async fn a_request_that_ends_a_rest_is_answered_before_its_connection_is_drained() {
        let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
        for rests in [false, true] {
            for _ in 0..10 {
                let (mut client, stream) = connected().await;
                let (drain, draining) = watch::channel(false);
                let served = served(stream, draining, |_| async {
                    reply::json(StatusCode::OK, b"{}".to_vec())
                });
                client.write_all(request).await.unwrap();
                let mut answer = Vec::new();
                while !answer.ends_with(b"{}") {
                    assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0);
                }
                if rests {
                    sleep(REST * 2).await;
                }
                // In one turn of the loop.
                client.try_write(request).unwrap();
                drain.send(true).unwrap();
                let mut answer = String::new();
                client.read_to_string(&mut answer).await.unwrap();
                assert!(
                    answer.starts_with("HTTP/1.1 200"),
                    "rests: {rests}, {answer:?}"
                );
                served.await.unwrap();
            }
        }
    }

    /// fault-37: what a connection costs that is only kept open.
    #[tokio::test]
    async fn a_connection_that_rests_holds_no_buffers() {
        let (mut client, stream) = connected().await;
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let (_drain, draining) = watch::channel(false);
        let activity = Activity::new();
        let answer = |_: Asked| async { reply::json(StatusCode::OK, b"{}".to_vec()) };
        let stream = Box::new(Guarded::new(stream));
        let rested = serve_one(stream, draining, &activity, &answer).await;
        assert!(rested.is_some_and(|stream| stream.first().is_empty()));
    }

    /// A peer that asks and asks and never reads is let go, without a token and for good.
    #[tokio::test]
    async fn a_peer_that_reads_nothing_does_not_keep_its_connection() {
        let (mut client, stream) = connected().await;
        let (_drain, draining) = watch::channel(false);
        let answer = |_| async { reply::json(StatusCode::OK, vec![b' '; 1 << 20]) };
        let served = served(stream, draining, answer);
        let flood = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
        client.write_all(&flood).await.unwrap();
        // Until the answers have filled what the kernel keeps.
        sleep(Duration::from_millis(300)).await;
        ends_after(WRITE_DEADLINE, served).await;
    }

    /// Promise 6: a request on a connection that was accepted is answered, however late the drain is told.
    #[tokio::test]
    async fn a_connection_that_was_accepted_is_answered_before_it_is_drained() {
        for early in [true, false] {
            let (mut client, stream) = connected().await;
            let (_drain, draining) = watch::channel(true);
            let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
            if early {
                client.write_all(request).await.unwrap();
            }
            let served = served(stream, draining, |_| async { reply::empty(StatusCode::OK) });
            if !early {
                yield_now().await;
                client.write_all(request).await.unwrap();
            }
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert!(
                answer.starts_with("HTTP/1.1 200"),
                "early: {early}, {answer:?}"
            );
            served.await.unwrap();
        }
    }

    /// A frame (RFC 9113 §4.1).
    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let [high, low] = u16::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![0, high, low, kind, flags, 0, 0, 0, stream];
        frame.extend_from_slice(payload);
        frame
    }

    /// A POST to `/`, with a body that is still to come, or without one.
    fn post(stream: u8, ends: bool) -> Vec<u8> {
        // `:method: POST`, `:scheme: http`, `:path: /`, `:authority: x`.
        let flags = if ends { 5 } else { 4 };
        frame(1, flags, stream, &[0x83, 0x86, 0x84, 0x01, 1, b'x'])
    }

    /// Sends frames after the preface, and tells when the connection ended.
    async fn frames(parts: &[Vec<u8>]) -> (Vec<u8>, Duration) {
        let (_drain, draining) = watch::channel(false);
        let (mut client, _serving) = connect(draining);
        let started = Instant::now();
        client.write_all(PREFACE).await.unwrap();
        for part in parts {
            client.write_all(part).await.unwrap();
        }
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        (answer, started.elapsed())
    }

    /// conn-13: an HTTP/2 client that asks nothing more is not kept.
    #[tokio::test(start_paused = true)]
    async fn an_idle_client_of_the_newer_version_is_let_go() {
        let settings = || frame(4, 0, 0, &[]);
        for parts in [&[][..], &[settings()], &[settings(), post(1, true)]] {
            let (_, waited) = frames(parts).await;
            assert!(waited <= HEADER_DEADLINE + GOING * 2, "{waited:?}");
        }
    }

    /// Whose answer was the last of its connection is told to go at once, and not when it has asked nothing for long.
    #[tokio::test(start_paused = true)]
    async fn a_client_of_the_newer_version_that_had_its_last_answer_is_let_go_at_once() {
        for (refusal, is_last) in [
            (Refusal::TooManyConnections, true),
            (Refusal::Misconfigured, true),
            (Refusal::TooLarge, false),
        ] {
            let (mut client, server) = duplex(1 << 20);
            let (_drain, draining) = watch::channel(false);
            let refusal = Arc::new(refusal);
            let answer = move |_| {
                let refusal = refusal.clone();
                async move { refusal.response(None, None) }
            };
            let mut serving = JoinSet::new();
            serving.spawn(serving_with(server, draining, answer));
            let started = Instant::now();
            let asks = [PREFACE, &frame(4, 0, 0, &[]), &post(1, true)].concat();
            client.write_all(&asks).await.unwrap();
            client.read_to_end(&mut Vec::new()).await.unwrap();
            let waited = started.elapsed();
            assert_eq!(waited <= GOING * 3, is_last, "{waited:?}");
        }
    }

    /// conn-2 in HTTP/2.
    #[tokio::test(start_paused = true)]
    async fn a_slow_body_is_refused_in_the_newer_version_too() {
        let (answer, waited) =
            frames(&[frame(4, 0, 0, &[]), post(1, false), frame(0, 0, 1, b"{")]).await;
        let refused = b"the body took too long";
        assert!(answer.windows(refused.len()).any(|part| part == refused));
        assert!(waited <= Duration::from_secs(45), "{waited:?}");
    }

    /// fault-46, conn-13: of bodies that nobody reads no more than so much is taken, however many there are on one
    /// connection; as they are read the rest is taken, too.
    #[tokio::test(start_paused = true)]
    async fn bodies_that_nobody_reads_share_a_window() {
        const STREAMS: usize = 8;
        const BODY: usize = 60_000;
        let (mut client, server) = duplex(1 << 20);
        let (_drain, draining) = watch::channel(false);
        let (read, told) = watch::channel(false);
        let answer = move |asked: Asked| {
            let mut told = told.clone();
            async move {
                let _ = told.wait_for(|read| *read).await;
                let _ = asked.unwrap().into_body().collect().await;
                reply::empty(StatusCode::ACCEPTED)
            }
        };
        let mut serving = JoinSet::new();
        serving.spawn(serving_with(server, draining, answer));
        client.write_all(PREFACE).await.unwrap();
        client.write_all(&frame(4, 0, 0, &[])).await.unwrap();
        let stream = |at: usize| u8::try_from(2 * at + 1).unwrap();
        for at in 0..STREAMS {
            client.write_all(&post(stream(at), false)).await.unwrap();
        }
        // What RFC 9113 gives to begin with; a stream takes a whole body in any case.
        let (mut room, mut sent) = (65_535, [0; STREAMS]);
        let mut all_sent = async || {
            loop {
                while let Some(at) = (0..STREAMS).find(|at| sent[*at] < BODY)
                    && room > 0
                {
                    let part = room.min(BODY - sent[at]).min(10_000);
                    let data = frame(0, 0, stream(at), &vec![b'x'; part]);
                    client.write_all(&data).await.unwrap();
                    sent[at] += part;
                    room -= part;
                }
                let mut head = [0; 9];
                let more = client.read_exact(&mut head);
                if timeout(Duration::from_secs(1), more).await.is_err() {
                    return sent.iter().sum::<usize>();
                }
                let [_, high, low, kind, .., on] = head;
                let mut payload = vec![0; usize::from(u16::from_be_bytes([high, low]))];
                client.read_exact(&mut payload).await.unwrap();
                assert_ne!(kind, 7, "it goes away: {payload:?}");
                if (kind, on) == (8, 0) {
                    let more = u32::from_be_bytes(payload.try_into().unwrap());
                    room += usize::try_from(more).unwrap();
                }
            }
        };
        assert_eq!(all_sent().await, CONNECTION_WINDOW as usize);
        read.send(true).unwrap();
        assert_eq!(all_sent().await, STREAMS * BODY);
    }

    /// conn-13: a window that stays shut holds an answer for half a minute.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_no_answer_is_let_go() {
        // SETTINGS_INITIAL_WINDOW_SIZE = 0
        let settings = frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]);
        let (_, waited) = frames(&[settings, post(1, false), frame(0, 1, 1, b"anything")]).await;
        assert!(waited >= WRITE_DEADLINE, "{waited:?}");
        assert!(waited <= WRITE_DEADLINE * 2 + GOING, "{waited:?}");
    }

    /// fault-3: what runs is answered, and the client is told to go.
    #[tokio::test(start_paused = true)]
    async fn a_draining_connection_of_the_newer_version_answers_what_it_has() {
        let (drain, draining) = watch::channel(false);
        let (mut client, mut serving) = connect(draining);
        client.write_all(PREFACE).await.unwrap();
        client.write_all(&frame(4, 0, 0, &[])).await.unwrap();
        client.write_all(&post(1, false)).await.unwrap();
        yield_now().await;
        drain.send(true).unwrap();
        client
            .write_all(&frame(0, 1, 1, b"{\"mine\":1}"))
            .await
            .unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert!(answer.windows(10).any(|part| part == b"{\"mine\":1}"));
        serving.join_next().await.unwrap().unwrap();
    }

    /// Asks once, with so large a body.
    async fn asks(version: Version, client: DuplexStream, size: usize) -> StatusCode {
        let body = Full::new(Bytes::from(vec![b'x'; size]));
        let request = Request::post("http://x/").header(header::HOST, "x");
        let (request, client) = (request.body(body).unwrap(), TokioIo::new(client));
        let mut others = JoinSet::new();
        let response = match version {
            Version::One => {
                let (mut sender, connection) =
                    client::conn::http1::handshake(client).await.unwrap();
                others.spawn(connection);
                sender.send_request(request).await
            }
            Version::Two => {
                let executor = hyper_util::rt::TokioExecutor::new();
                let handshake = client::conn::http2::handshake(executor, client);
                let (mut sender, connection) = handshake.await.unwrap();
                others.spawn(connection);
                sender.send_request(request).await
            }
        };
        response.unwrap().status()
    }

    /// fault-46, conn-13: there are many requests on a connection of HTTP/2, and the small body of each counts.
    #[tokio::test]
    async fn small_bodies_count_where_many_come_on_one_connection() {
        for (version, size, is_counted) in [
            (Version::Two, 100, false),
            (Version::Two, UNCOUNTED, false),
            (Version::Two, UNCOUNTED + 1, true),
            (Version::Two, 60 << 10, true),
            (Version::One, 60 << 10, false),
            (Version::One, 70 << 10, true),
        ] {
            let budget = Budget::new(1 << 20);
            let (all, held) = (budget.clone(), Arc::new(std::sync::Mutex::new(Vec::new())));
            let answer = move |asked: Asked| {
                let (all, held) = (all.clone(), held.clone());
                async move {
                    let (head, mut body) = asked.unwrap().into_parts();
                    let user = Identity::example("https://i", "alice");
                    let read = body::read((head.version, &mut body), 1 << 20, (&all, &user));
                    let read = read.await.unwrap();
                    held.lock().unwrap().push(read);
                    reply::empty(StatusCode::ACCEPTED)
                }
            };
            let (client, server) = duplex(1 << 20);
            let (_drain, draining) = watch::channel(false);
            let _serving = tokio::spawn(serving_with(server, draining, answer.clone()));
            assert_eq!(asks(version, client, size).await, StatusCode::ACCEPTED);
            let counted = if is_counted { size } else { 0 };
            assert_eq!(budget.bytes(), counted, "{version:?} {size}");
        }
    }
}

//! One connection, from accept to close.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{Notify, watch},
    time::{Sleep, sleep, timeout},
};
use tracing::debug;

use crate::http::Response;

/// Serves HTTP/1.1 on `stream` until the peer leaves, a limit ends it, or
/// `drain` says so: then what is running is answered, and no more is read.
pub async fn serve<F>(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    mut drain: watch::Receiver<bool>,
    answer: impl Fn(Request<Incoming>) -> F,
) where
    F: Future<Output = Response>,
{
    let spoken = Notify::new();
    let service = service_fn(|request| {
        spoken.notify_one();
        let response = answer(request);
        async { Ok::<_, Infallible>(response.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .half_close(false)
        .serve_connection(
            TokioIo::new(Heard {
                stream,
                stalled: None,
            }),
            service,
        );
    tokio::pin!(connection);
    let told = async {
        if drain.wait_for(|draining| *draining).await.is_err() {
            // Whoever could have said so has left this connection to itself.
            std::future::pending::<()>().await;
        }
        // Accepted, and perhaps not read yet: what comes at once is still answered.
        let _ = timeout(FIRST_REQUEST, spoken.notified()).await;
    };
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = told => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "connection ended early");
    }
}

/// A stream whose peer must go on reading: hyper has no deadline for that, and a
/// connection that nobody reads would stay for good.
struct Heard<S> {
    stream: S,
    /// Runs while a write makes no progress.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Heard<S> {
    fn judge(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        ready!(
            self.stalled
                .get_or_insert_with(|| Box::pin(sleep(WRITE_DEADLINE)))
                .as_mut()
                .poll(context)
        );
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.judge(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.judge(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// How long a peer may read nothing while there is something for it.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// How long a request's head may take, and how long a connection may wait for
/// one (h1-20, conn-1).
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// Header lines of one request (h1-12).
const MAX_HEADERS: usize = 64;
/// Bytes of a request's head, and of what is read ahead of a body (h1-13).
const MAX_HEAD: usize = 32 << 10;
/// How long a connection that was accepted, and has said nothing, is waited for when draining.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::http::{body, reply};

    /// A served connection; time stands still but for what is waited for.
    fn connect(drain: watch::Receiver<bool>) -> (DuplexStream, tokio::task::JoinSet<()>) {
        let (client, server) = duplex(1 << 20);
        let mut serving = tokio::task::JoinSet::new();
        serving.spawn(serve(server, drain, |request: Request<Incoming>| async {
            match body::read(request.into_body(), 1 << 10).await {
                Ok(text) => reply::json(StatusCode::OK, text),
                Err(refusal) => refusal.response(None, None),
            }
        }));
        (client, serving)
    }

    async fn answer_to(parts: &[&str]) -> (String, Duration) {
        let (_drain, draining) = watch::channel(false);
        let (mut client, _serving) = connect(draining);
        let started = tokio::time::Instant::now();
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
        tokio::task::yield_now().await;
        drain.send(true).unwrap();
        client.write_all(b"}").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        serving.join_next().await.unwrap().unwrap();
    }

    /// A peer that asks and asks and never reads is let go, without a token and for good.
    #[tokio::test]
    async fn a_peer_that_reads_nothing_does_not_keep_its_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let (_drain, draining) = watch::channel(false);
        let answer = |_| async { reply::json(StatusCode::OK, vec![b' '; 1 << 20]) };
        let served = tokio::spawn(serve(stream, draining, answer));
        let flood = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(100);
        client.write_all(&flood).await.unwrap();
        // Until the answers have filled what the kernel keeps.
        sleep(Duration::from_millis(300)).await;
        assert!(!served.is_finished());
        tokio::time::pause();
        tokio::time::advance(WRITE_DEADLINE + Duration::from_secs(1)).await;
        tokio::time::resume();
        timeout(Duration::from_secs(5), served)
            .await
            .expect("the connection ends")
            .unwrap();
    }

    /// Promise 6: a request on a connection that was accepted is answered, however late the drain is told.
    #[tokio::test]
    async fn a_connection_that_was_accepted_is_answered_before_it_is_drained() {
        for early in [true, false] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap())
                .await
                .unwrap();
            let (stream, _) = listener.accept().await.unwrap();
            let (_drain, draining) = watch::channel(true);
            let request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
            if early {
                client.write_all(request).await.unwrap();
            }
            let served = tokio::spawn(serve(stream, draining, |_| async {
                reply::empty(StatusCode::OK)
            }));
            if !early {
                tokio::task::yield_now().await;
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
}

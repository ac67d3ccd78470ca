//! One connection, from accept to close.

use std::{convert::Infallible, time::Duration};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
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
    let service = service_fn(|request| {
        let response = answer(request);
        async { Ok::<_, Infallible>(response.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let told = async {
        let _ = drain.wait_for(|draining| *draining).await;
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

/// How long a request's head may take, and how long a connection may wait for
/// one (h1-20, conn-1).
const HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// Header lines of one request (h1-12).
const MAX_HEADERS: usize = 64;
/// Bytes of a request's head, and of what is read ahead of a body (h1-13).
const MAX_HEAD: usize = 32 << 10;

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

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
}

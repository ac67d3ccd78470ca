//! One connection, from accept to close.

use std::{convert::Infallible, time::Duration};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;
use tracing::debug;

use crate::http::{Response, peer::Stream};

/// Serves HTTP/1.1 on `stream` until the peer leaves, a limit ends it, or
/// `drain` says so: then what is running is answered, and no more is read.
pub async fn serve<F>(stream: Stream, mut drain: watch::Receiver<bool>, answer: impl Fn(Request<Incoming>) -> F)
where
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

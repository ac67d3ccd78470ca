//! One HTTP connection, and one answer on it at a time.
//!
//! The connection is driven by whoever waits for its answer, so that nothing
//! goes on that nobody waits for.

use std::{pin::Pin, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{Request, response};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::{Body as _, Incoming},
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, timeout};

use super::Fault;
use crate::{child::Share, fetch::Io};

pub(super) type Body = Full<Bytes>;
type Driver = Pin<Box<dyn Future<Output = Result<(), hyper::Error>> + Send>>;

/// A connection that waits for its next request.
pub(in crate::child) struct Wire {
    sender: SendRequest<Body>,
    /// Gone with the connection: what still waits for it then hears so.
    driver: Option<Driver>,
    pub(super) idle_since: Instant,
}

/// Why there is no answer; with the request, if not a byte of it was sent.
pub(super) struct NotAsked {
    pub(super) error: hyper::Error,
    pub(super) unsent: Option<Box<Request<Body>>>,
}

/// An answer whose body is still to come.
pub(super) struct Answer {
    pub(super) head: response::Parts,
    body: Incoming,
    wire: Wire,
}

impl Wire {
    pub(in crate::child) async fn over(io: Box<dyn Io>) -> Result<Self, hyper::Error> {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(io))
            .await?;
        Ok(Self {
            sender,
            driver: Some(Box::pin(connection)),
            idle_since: Instant::now(),
        })
    }

    pub(super) async fn ask(mut self, request: Request<Body>) -> Result<Answer, NotAsked> {
        let answer = {
            let Self { sender, driver, .. } = &mut self;
            let answer = sender.try_send_request(request);
            tokio::pin!(answer);
            loop {
                tokio::select! {
                    answer = &mut answer => break answer,
                    () = driven(driver) => {}
                }
            }
        };
        match answer {
            Ok(answer) => {
                let (head, body) = answer.into_parts();
                Ok(Answer {
                    head,
                    body,
                    wire: self,
                })
            }
            Err(mut error) => Err(NotAsked {
                unsent: error.take_message().map(Box::new),
                error: error.into_error(),
            }),
        }
    }

    /// Whether it can take another request.
    async fn is_ready(&mut self) -> bool {
        let Self { sender, driver, .. } = self;
        let ready = async {
            tokio::select! {
                biased;
                () = driven(driver) => false,
                ready = sender.ready() => ready.is_ok(),
            }
        };
        timeout(SETTLE, ready).await.unwrap_or(false)
    }
}

impl Answer {
    /// The next piece of the body; `None` at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, hyper::Error> {
        loop {
            let frame = tokio::select! {
                frame = self.body.frame() => frame,
                () = driven(&mut self.wire.driver) => continue,
            };
            match frame {
                None => return Ok(None),
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The whole body, of at most `max` bytes, in memory that has its share.
    pub(super) async fn whole(&mut self, max: usize, share: &mut Share) -> Result<Bytes, Fault> {
        let mut whole = BytesMut::new();
        if let Some(length) = self.body.size_hint().exact() {
            // At once, where it is known: of many none has to wait in its middle.
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if length > max {
                return Err(Fault::TooLarge(max));
            }
            if !share.wait_for(length).await {
                return Err(Fault::NoRoom);
            }
            whole.reserve(length);
        }
        while let Some(chunk) = self.chunk().await.map_err(|_| Fault::Lost)? {
            let length = whole.len() + chunk.len();
            if length > max {
                return Err(Fault::TooLarge(max));
            }
            if !share.wait_for(length).await {
                return Err(Fault::NoRoom);
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }

    /// Whether the body has come to its end within `max` bytes; nothing is kept of it.
    pub(super) async fn drained(&mut self, max: usize) -> bool {
        let mut length = 0;
        loop {
            match self.chunk().await {
                Ok(Some(chunk)) if length + chunk.len() <= max => length += chunk.len(),
                Ok(None) => return true,
                _ => return false,
            }
        }
    }

    /// The connection, for the next request: only after the body's end.
    pub(super) async fn done(mut self) -> Option<Wire> {
        if self.wire.driver.is_none() || !self.wire.is_ready().await {
            return None;
        }
        self.wire.idle_since = Instant::now();
        Some(self.wire)
    }
}

/// Goes on with a connection until it has ended; never ends where it has.
async fn driven(driver: &mut Option<Driver>) {
    match driver {
        Some(connection) => {
            let _ = connection.await;
            *driver = None;
        }
        None => std::future::pending().await,
    }
}

/// Bytes of an answer's head.
const MAX_HEAD: usize = 64 << 10;
/// How long a connection may take to be ready again.
const SETTLE: Duration = Duration::from_millis(100);

//! What is sent to a server, and over which connection.

use std::{sync::PoisonError, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use tracing::{debug, warn};

use super::{
    Fault, SESSION_ID, Talk, Way,
    head::Outgoing,
    wire::{self, Answer, Wire},
};
use crate::fetch::Io;

impl Talk {
    pub(super) async fn post(&self, message: Outgoing) -> Result<Answer, Fault> {
        let request = if message.is_modern() {
            self.bare_head(Method::POST)
        } else {
            self.request_head(Method::POST)
        };
        // Gone with its last byte, not with its answer.
        let (request, text) = message.into_parts(request);
        let request = request
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, text/event-stream")
            .body(text.into())
            .map_err(|_| Fault::BadAnswer)?;
        self.send(request).await
    }

    pub(super) async fn get(&self, last: Option<HeaderValue>) -> Result<Answer, Fault> {
        let mut request = self
            .request_head(Method::GET)
            .header(header::ACCEPT, "text/event-stream");
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let request = request.body(Bytes::new().into());
        self.send(request.map_err(|_| Fault::BadAnswer)?).await
    }

    /// What every request of a session says.
    pub(super) fn request_head(&self, method: Method) -> http::request::Builder {
        let mut request = self.bare_head(method);
        let known = self.lock();
        if let Some(session) = &known.session {
            request = request.header(SESSION_ID, session);
        }
        if let Some(version) = &known.version {
            request = request.header("mcp-protocol-version", version);
        }
        request
    }

    /// What every request says.
    fn bare_head(&self, method: Method) -> http::request::Builder {
        let request = Request::builder()
            .method(method)
            .uri(&self.peer.path)
            .header(header::HOST, &self.peer.authority)
            // Nothing to unpack is nothing that can explode.
            .header(header::ACCEPT_ENCODING, "identity")
            .header(
                header::USER_AGENT,
                concat!("thv/", env!("CARGO_PKG_VERSION")),
            );
        match (self.peer.shown.now)() {
            Some(shown) => request.header(header::AUTHORIZATION, shown),
            None => request,
        }
    }

    /// Sends a request once: again only where not a byte of it has left.
    pub(super) async fn send(&self, mut request: Request<wire::Body>) -> Result<Answer, Fault> {
        while let Some(wire) = self.take_idle() {
            match wire.ask(request).await {
                Ok(answer) => return Ok(answer),
                Err(refused) => match refused.unsent {
                    Some(unsent) => request = *unsent,
                    None => {
                        debug!(error = %refused.error, "the connection to the server was lost");
                        return Err(Fault::Lost);
                    }
                },
            }
        }
        let io = self.connect().await.ok_or(Fault::Unreachable)?;
        let wire = Wire::over(io).await.map_err(|_| Fault::Unreachable)?;
        wire.ask(request).await.map_err(|refused| {
            debug!(error = %refused.error, "the connection to the server was lost");
            Fault::Lost
        })
    }

    async fn connect(&self) -> Option<Box<dyn Io>> {
        match &self.peer.way {
            Way::Inside(entrance) => match entrance.connect().await {
                Ok(io) => Some(io),
                Err(error) => {
                    debug!(%error, "the server in the sandbox takes no connection");
                    None
                }
            },
            Way::Remote(endpoint) => match endpoint.connect().await {
                Ok(io) => Some(io),
                Err(error) => {
                    warn!(%error, "the server cannot be reached");
                    None
                }
            },
        }
    }

    fn take_idle(&self) -> Option<Wire> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|wire| wire.idle_since.elapsed() < IDLE);
        idle.pop()
    }

    /// Keeps the connection of an answer that was read to its end.
    pub(super) async fn keep(&self, answer: Answer) {
        let Some(wire) = answer.done().await else {
            return;
        };
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push(wire);
        }
    }
}

/// Connections that wait for the next request.
const MAX_IDLE: usize = 4;
/// How long; shorter than most servers' patience, so that they do not close one while it is used.
const IDLE: Duration = Duration::from_secs(3);

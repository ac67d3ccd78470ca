//! Answers that may be long: read as they come, with a limit on silence instead of one on time.
//!
//! For images of containers. The asker says what is shown to the first origin; of
//! that nothing goes to where a redirect leads. Every such place must be `https` and,
//! on another host, public or listed, as with what a document links to.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
    time::timeout,
};

use super::{FetchError, Fetcher, MAX_HEAD, connect, target::Target};

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub url: &'a str,
    /// The origin whose document has named the URL; an administrator has where there is none.
    pub named_by: Option<&'a str>,
    /// The media types that are understood.
    pub accept: &'a str,
    /// The whole Authorization header, for this origin alone.
    pub authorization: Option<&'a str>,
    /// The first byte that is wanted.
    pub from: u64,
}

/// An answer of which the head has come.
pub struct Transfer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    body: Incoming,
    /// Drives the connection, and ends with this.
    _connection: JoinSet<()>,
}

impl Fetcher {
    /// Asks, follows redirects, and gives what comes once its head is there.
    pub async fn open(&self, question: Question<'_>) -> Result<Transfer, FetchError> {
        let first = match question.named_by {
            Some(origin) => Target::linked(question.url, origin)?,
            None => Target::parse(question.url)?,
        };
        if !first.tls {
            return Err(FetchError::Url(question.url.to_owned()));
        }
        let mut target = first.clone();
        for _ in 0..=MAX_REDIRECTS {
            let authorization = question
                .authorization
                .filter(|_| target.is_of_origin(&first));
            let asked = self.ask_at(&target, &question, authorization);
            let answer = timeout(HEAD_DEADLINE, asked)
                .await
                .unwrap_or(Err(FetchError::Silent))?;
            if !answer.status.is_redirection() {
                return Ok(answer);
            }
            let location = answer.headers.get(header::LOCATION);
            let location = location.and_then(|location| location.to_str().ok());
            target = location
                .and_then(|location| target.elsewhere(location, &first))
                .ok_or(FetchError::Redirect)?;
        }
        Err(FetchError::Redirect)
    }

    async fn ask_at(
        &self,
        target: &Target,
        question: &Question<'_>,
        authorization: Option<&str>,
    ) -> Result<Transfer, FetchError> {
        let mut request = Request::get(&target.path)
            .header(header::HOST, &target.authority)
            .header(header::ACCEPT, question.accept)
            .header(header::ACCEPT_ENCODING, "identity")
            .header(
                header::USER_AGENT,
                concat!("thv/", env!("CARGO_PKG_VERSION")),
            )
            .header(header::CONNECTION, "close");
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if question.from > 0 {
            request = request.header(header::RANGE, format!("bytes={}-", question.from));
        }
        let request = request
            .body(Empty::<Bytes>::new())
            .map_err(|_| FetchError::Url(target.path.clone()))?;
        let stream = connect(target, &self.allowed).await?;
        send(self.secured(target, stream).await?, request).await
    }
}

impl Transfer {
    /// The next bytes; `None` at the end. An end that comes too early is an error.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, FetchError> {
        loop {
            let frame = timeout(SILENCE, self.body.frame())
                .await
                .map_err(|_| FetchError::Silent)?;
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

    /// All of it, if it is not longer than `most` bytes.
    pub async fn whole(mut self, most: usize) -> Result<Vec<u8>, FetchError> {
        let mut whole = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            if whole.len() + chunk.len() > most {
                return Err(FetchError::TooLarge(most));
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole)
    }
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<Transfer, FetchError> {
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await?;
    let mut driving = JoinSet::new();
    driving.spawn(async move {
        // Its error is the body's, too.
        let _ = connection.await;
    });
    let (head, body) = sender.send_request(request).await?.into_parts();
    Ok(Transfer {
        status: head.status,
        headers: head.headers,
        body,
        _connection: driving,
    })
}

/// Storage behind storage; registries lead to one other place, as a rule.
const MAX_REDIRECTS: usize = 5;
/// From the name's resolution to the end of the answer's head.
const HEAD_DEADLINE: Duration = Duration::from_secs(15);
/// Between two pieces of a body.
pub(super) const SILENCE: Duration = Duration::from_secs(30);

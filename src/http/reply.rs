//! What a client is told, as HTTP.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use memchr::memmem;
use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::{
    http::{Body, Response, body::Events},
    mcp::{Id, Message},
    session::{self, Event, Exchange, Failure},
};

/// Marks an answer after which its connection is closed, in every version of HTTP.
#[derive(Clone, Copy, Debug)]
pub struct LastAnswer;

/// A JSON answer.
pub fn json(status: StatusCode, text: impl Into<Body>) -> Response {
    json_in(Table::default(), status, text)
}

/// Where an answer's headers are put: the memory of a request's, used once more. The next
/// request of the connection has it after that.
pub struct Table(HeaderMap);

impl Table {
    pub fn of(mut headers: HeaderMap) -> Self {
        headers.clear();
        Self(headers)
    }
}

impl Default for Table {
    fn default() -> Self {
        Self(HeaderMap::with_capacity(USUAL_HEADERS))
    }
}

fn json_in(table: Table, status: StatusCode, text: impl Into<Body>) -> Response {
    let mut response = with_status(table, status, text.into());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

/// An answer without a body.
pub fn empty(status: StatusCode) -> Response {
    with_status(Table::default(), status, Body::empty())
}

/// The answers of one exchange: JSON where the answer is all there is and it
/// comes soon, else events.
pub async fn exchange(id: Id, mut exchange: Exchange, table: Table) -> Response {
    match timeout(SOON, exchange.next()).await {
        Ok(Some(Event::Answer(answer))) => json_in(table, StatusCode::OK, answer),
        Ok(Some(Event::Failed(failed))) => json(failure_status(failed), failure(Some(&id), failed)),
        Ok(None) => json(
            failure_status(Failure::ChildEnded),
            failure(Some(&id), Failure::ChildEnded),
        ),
        Ok(Some(message)) => events(Events::new(Some(id), Some(message), exchange)),
        Err(_) => events(Events::new(Some(id), None, exchange)),
    }
}

/// The same for a modern request, whose answer's own code has a status (mcp-T10, mcp-T21).
/// A stream that is meant to stay open ends after `until`.
pub async fn modern_exchange(
    id: Id,
    exchange: Exchange,
    until: Option<Duration>,
    table: Table,
) -> Response {
    let mut response = self::exchange(id, exchange, table).await;
    if let (Body::Events(events), Some(until)) = (response.body_mut(), until) {
        events.end_at(Instant::now() + until);
    }
    if let Body::Whole(Some(text)) = response.body()
        && response.status() == StatusCode::OK
    {
        let text = text.clone();
        let code = session::aside(text.len(), move || code(&text)).await;
        if let Some(status) = code.and_then(modern_status) {
            *response.status_mut() = status;
        }
    }
    response
}

/// The code of an answer that is an error.
fn code(answer: &Bytes) -> Option<i64> {
    // The usual answer is none, and is not read again.
    memmem::find(answer, ERROR)?;
    let message = Message::parse(answer.clone()).ok()?;
    let code = message.root().get("error")?.get("code")?;
    code.as_number()?.parse().ok()
}

fn modern_status(code: i64) -> Option<StatusCode> {
    match code {
        -32601 => Some(StatusCode::NOT_FOUND),
        -32022..=-32020 => Some(StatusCode::BAD_REQUEST),
        _ => None,
    }
}

/// thv's own failure as a JSON-RPC error (`-32603`, `data.reason`).
pub fn failure(id: Option<&Id>, failure: Failure) -> Bytes {
    error(
        id,
        INTERNAL_ERROR,
        failure.message(),
        json!({ "reason": failure.code() }),
    )
}

/// The status that goes with a failure, where it is told before any event.
pub fn failure_status(failure: Failure) -> StatusCode {
    match failure {
        Failure::Timeout => StatusCode::GATEWAY_TIMEOUT,
        Failure::ChildEnded
        | Failure::OutOfMemory
        | Failure::BadAnswer
        | Failure::Unreachable
        | Failure::Refused => StatusCode::BAD_GATEWAY,
        Failure::NoRoom | Failure::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
        // The client knows; this only ends the request that it gave up.
        Failure::Cancelled | Failure::NoInput => StatusCode::OK,
    }
}

/// A JSON-RPC error; without an id where the request's is not known.
pub fn error(id: Option<&Id>, code: i32, message: &str, data: serde_json::Value) -> Bytes {
    let error = json!({ "code": code, "message": message, "data": data }).to_string();
    let mut text = br#"{"jsonrpc":"2.0","#.to_vec();
    if let Some(id) = id {
        text.extend_from_slice(b"\"id\":");
        text.extend_from_slice(id.as_json());
        text.push(b',');
    }
    text.extend_from_slice(b"\"error\":");
    text.extend_from_slice(error.as_bytes());
    text.push(b'}');
    text.into()
}

/// A stream of events.
pub fn events(events: Events) -> Response {
    let body = Body::Events(Box::new(events));
    let mut response = with_status(Table::default(), StatusCode::OK, body);
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn with_status(table: Table, status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = table.0;
    // Nothing here may be kept for another caller.
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

const ERROR: &[u8] = b"\"error\"";
/// Header lines of most requests.
const USUAL_HEADERS: usize = 12;
/// JSON-RPC: internal error.
pub const INTERNAL_ERROR: i32 = -32603;
/// How long an answer may take before the client is given a stream to wait on.
const SOON: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;
    use crate::mcp::Call;

    /// A large answer that may be an error is read beside what others are told.
    #[tokio::test]
    async fn others_go_on_while_the_code_of_a_large_answer_is_read() {
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = turns.clone();
        tokio::spawn(async move {
            loop {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        let data = "x".repeat(8 << 20);
        let answer =
            format!(r#"{{"jsonrpc":"2.0","id":1,"error":{{"code":-32601,"data":"{data}"}}}}"#);
        let call = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
        let id = Call::read(call.into(), false)
            .unwrap()
            .id()
            .unwrap()
            .clone();
        let response = modern_exchange(
            id,
            Exchange::answered(answer.into()),
            None,
            Table::default(),
        )
        .await;
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert!(turns.load(Ordering::Relaxed) > 0);
    }
}

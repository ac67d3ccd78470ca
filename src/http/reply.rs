//! What a client is told, as HTTP.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header, request::Parts};
use memchr::memmem;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    aside::aside,
    http::{Body, Response, body::Events},
    mcp::{Era, Id, Message},
    session::{Event, Exchange, Failure, Late},
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
    /// Of a request that needs its head no more.
    pub fn of(head: &mut Parts) -> Self {
        let (empty, ()) = Request::new(()).into_parts();
        let mut headers = std::mem::replace(head, empty).headers;
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

/// How the answer to a request is told.
pub struct Manner {
    pub id: Id,
    pub era: Era,
    /// When a stream ends that is meant to stay open, from now on.
    pub until: Option<Duration>,
}

/// What an exchange had to say soon: its first event, if there is one.
type First = Result<Option<Event>, Late>;

/// The code of a modern answer that is an error.
pub async fn code(first: &First, era: Era) -> Option<i64> {
    match (first, era) {
        (Ok(Some(Event::Answer(answer))), Era::Modern) => {
            let answer = answer.clone();
            aside(answer.len(), move || code_in(answer)).await
        }
        _ => None,
    }
}

fn code_in(answer: Bytes) -> Option<i64> {
    // The usual answer is none, and is not read again.
    memmem::find(&answer, ERROR)?;
    let message = Message::parse(answer).ok()?;
    let code = message.root().get("error")?.get("code")?;
    code.as_number()?.parse().ok()
}

/// The answers of one exchange: JSON where the answer is all there is and it
/// comes soon, else events. The code of a modern answer has a status (mcp-T10, mcp-T21). Legacy MCP has none for a
/// request that fails, and widespread clients of it take any but 200 for the end of their session.
pub fn exchange(
    (first, code): (First, Option<i64>),
    exchange: Exchange,
    Manner { id, era, until }: Manner,
    table: Table,
) -> Response {
    let message = match first {
        Ok(Some(Event::Answer(answer))) => {
            let status = code.and_then(modern_status).unwrap_or(StatusCode::OK);
            return json_in(table, status, answer);
        }
        Ok(Some(Event::Failed(failed))) => return failed_with(&id, era, failed),
        Ok(None) => return failed_with(&id, era, Failure::ChildEnded),
        Ok(message) => message,
        Err(Late) => None,
    };
    let mut answers = Events::new(Some(id), message, exchange);
    if let Some(until) = until {
        answers.end_at(Instant::now() + until);
    }
    events(answers)
}

fn failed_with(id: &Id, era: Era, failed: Failure) -> Response {
    let status = match era {
        Era::Legacy => StatusCode::OK,
        Era::Modern => failure_status(failed),
    };
    json(status, failure(Some(id), failed))
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
        &failure.message(),
        json!({ "reason": failure.code() }),
    )
}

/// The status that goes with a failure, where it is told before any event and to a client that makes something of it.
pub fn failure_status(failure: Failure) -> StatusCode {
    match failure {
        Failure::Timeout => StatusCode::GATEWAY_TIMEOUT,
        Failure::ChildEnded
        | Failure::OutOfMemory
        | Failure::BadAnswer
        | Failure::TooLarge(_)
        | Failure::Unreachable
        | Failure::Refused => StatusCode::BAD_GATEWAY,
        Failure::Busy | Failure::NoRoom | Failure::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
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
        let manner = Manner {
            id,
            era: Era::Modern,
            until: None,
        };
        let mut answered = Exchange::answered(answer.into());
        let first = answered.next_soon().await;
        let code = code(&first, manner.era).await;
        let response = exchange((first, code), answered, manner, Table::default());
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert!(turns.load(Ordering::Relaxed) > 0);
    }
}

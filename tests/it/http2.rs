//! HTTP/2: the same way for every request, and clients that do what no library would.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http2, header::HeaderMap};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use thv::aside::aside;
use tokio::{io::AsyncWriteExt as _, net::TcpStream, sync::oneshot, time::timeout};

use crate::{
    frames::{
        ACK, COMPRESSION_ERROR, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM,
        End, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, Frames, GOAWAY, HEADERS, PING, PRIORITY,
        PROTOCOL_ERROR, PUSH_PROMISE, RST_STREAM, SETTINGS, STREAM_CLOSED, WINDOW_UPDATE, block,
        frame, status,
    },
    house::{Caller, House, call, house, initialize},
    modern,
    wire::PATIENCE,
};

/// A client with a library, which says things well.
struct Client {
    requests: http2::SendRequest<Full<Bytes>>,
    caller: Caller,
}

impl Client {
    async fn open(house: &House, subject: &str) -> Self {
        let stream = TcpStream::connect(house.address).await.unwrap();
        let (requests, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        Self {
            requests,
            caller: house.caller(subject),
        }
    }

    async fn ask(&mut self, method: &str, path: &str, more: &[(&str, &str)], body: &str) -> Got {
        let answer = self
            .requests
            .send_request(self.request(method, path, more, body));
        let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
        let (head, body) = answer.into_parts();
        let body = timeout(PATIENCE, body.collect()).await.unwrap().unwrap();
        Got {
            status: head.status.as_u16(),
            headers: head.headers,
            body: String::from_utf8(body.to_bytes().to_vec()).unwrap(),
        }
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        more: &[(&str, &str)],
        body: &str,
    ) -> Request<Full<Bytes>> {
        let token = self.caller.token.clone().unwrap();
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.caller.address));
        let good = [
            ("authorization", format!("Bearer {token}")),
            ("content-type", "application/json".to_owned()),
            ("accept", "application/json, text/event-stream".to_owned()),
            (
                "mcp-session-id",
                self.caller.session.clone().unwrap_or_default(),
            ),
        ];
        for (name, value) in good {
            if !value.is_empty() && !more.iter().any(|(other, _)| *other == name) {
                request = request.header(name, value);
            }
        }
        for (name, value) in more {
            if !value.is_empty() {
                request = request.header(*name, *value);
            }
        }
        request
            .body(Full::new(Bytes::from(body.to_owned())))
            .unwrap()
    }
}

struct Got {
    status: u16,
    headers: HeaderMap,
    body: String,
}

/// A whole session, several calls at once on one connection, in the record like any other.
#[tokio::test]
async fn a_session_lives_on_one_connection() {
    let house = house().open().await;
    let mut alice = Client::open(&house, "alice").await;
    let opened = alice
        .ask("POST", "/mcp", &[], &initialize("2025-11-25"))
        .await;
    assert_eq!(opened.status, 200, "{}", opened.body);
    let session = opened.headers["mcp-session-id"].to_str().unwrap();
    alice.caller.session = Some(session.to_owned());
    // The requests are on their way before the first is waited for.
    let answers: Vec<_> = {
        let mut requests = Vec::new();
        let mut sender = alice.requests.clone();
        for number in 0..8 {
            let body = call(number, "echo", json!({ "number": number }));
            requests.push(tokio::spawn(sender.send_request(alice.request(
                "POST",
                "/mcp",
                &[],
                &body,
            ))));
        }
        requests
    };
    for (number, answer) in answers.into_iter().enumerate() {
        let answer = timeout(PATIENCE, answer).await.unwrap().unwrap().unwrap();
        assert_eq!(answer.status(), 200);
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(text.to_vec()).unwrap();
        assert!(text.contains(&format!("\"id\": {number}")), "{text}");
    }
    assert_eq!(alice.ask("DELETE", "/mcp", &[], "").await.status, 204);
    assert!(house.records.all().iter().any(|record| {
        record.contains("THV_METHOD=tools/call") && record.contains("THV_PEER_ADDR=127.0.0.1:")
    }));
}

/// Method, path, headers, body and the status of the answer.
type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a str, u16);

/// conn-15: what is refused over HTTP/1.1 is refused here, with the same words.
#[tokio::test]
async fn the_same_is_refused_as_over_the_older_version() {
    let house = house().with("[limits]\nbody = \"64K\"\n").open().await;
    let host = house.address.to_string();
    let long = "x".repeat(9000);
    let big = call(1, "echo", json!({ "x": "y".repeat(70_000) }));
    let first = initialize("2025-11-25");
    let long_path = format!("/mcp?{long}");
    let cases: &[Case<'_>] = &[
        ("POST", "/mcp", &[("authorization", "")], &first, 401),
        (
            "POST",
            "/mcp",
            &[("authorization", "Bearer x")],
            &first,
            401,
        ),
        (
            "POST",
            "/mcp",
            &[("origin", "http://evil.example")],
            &first,
            403,
        ),
        ("POST", "/mcp", &[("host", "evil.example")], &first, 400),
        ("POST", "/MCP", &[], &first, 404),
        ("POST", "//mcp", &[], &first, 404),
        ("PUT", "/mcp", &[], "", 405),
        ("TRACE", "/mcp", &[], "", 405),
        ("POST", "/mcp", &[("accept", "text/html")], &first, 406),
        ("POST", "/mcp", &[], &big, 413),
        ("POST", &long_path, &[], &first, 414),
        (
            "POST",
            "/mcp",
            &[("content-type", "text/plain")],
            &first,
            415,
        ),
        ("POST", "/mcp", &[("content-encoding", "gzip")], &first, 415),
        ("POST", "/mcp", &[("expect", "foo")], &first, 417),
        ("POST", "/mcp", &[], "{", 400),
        (
            "POST",
            "/mcp",
            &[("mcp-session-id", "none")],
            &call(1, "echo", json!({})),
            404,
        ),
    ];
    let mut client = Client::open(&house, "alice").await;
    for (method, path, headers, body, status) in cases {
        let got = client.ask(method, path, headers, body).await;
        assert_eq!(
            got.status, *status,
            "{method} {path:.20} {headers:?}: {}",
            got.body
        );
        assert!(!got.headers.contains_key("connection"));
    }
    // The host is said twice, and alike.
    let got = client.ask("POST", "/mcp", &[("host", &host)], &first).await;
    assert_eq!(got.status, 200, "{}", got.body);
    assert_eq!(house.children_started(), 1);
}

/// Requests that a frame client can put together.
struct Edge {
    house: House,
    host: String,
    /// Shown with each request, where there is one.
    bearer: Option<String>,
}

impl Edge {
    async fn open() -> Self {
        Self::at(house().open().await)
    }

    fn at(house: House) -> Self {
        let host = house.address.to_string();
        let bearer = None;
        Self {
            house,
            host,
            bearer,
        }
    }

    /// Whose requests have all that it takes to be served.
    async fn of_alice() -> Self {
        Self::open().await.for_alice()
    }

    fn for_alice(mut self) -> Self {
        self.bearer = Some(format!("Bearer {}", self.house.token("alice")));
        self
    }

    fn good<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<u8> {
        let mut fields = vec![
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/mcp"),
            (":authority", self.host.as_str()),
            ("content-type", "application/json"),
        ];
        if let Some(bearer) = &self.bearer {
            fields.push(("accept", "application/json, text/event-stream"));
            fields.push(("authorization", bearer));
        }
        fields.extend_from_slice(more);
        block(&fields)
    }

    fn request(&self, stream: u32, more: &[(&str, &str)]) -> Vec<u8> {
        frame(HEADERS, END_HEADERS | END_STREAM, stream, &self.good(more))
    }

    async fn end_of(&self, frames: &[u8]) -> End {
        let mut client = Frames::open(self.house.address).await;
        client.send(frames).await;
        client.end().await
    }

    /// So many are refused on record by now, and no more; gives the last one.
    async fn last_refused(&self, count: usize) -> String {
        let mut denied = self
            .house
            .records
            .wait_for_all(&["THV_DECISION=deny "], count)
            .await;
        assert_eq!(denied.len(), count, "{denied:#?}");
        denied.pop().unwrap()
    }

    /// Somebody else is served.
    async fn serves(&self) {
        assert_eq!(self.end_of(&self.request(1, &[])).await, End::Status(401));
    }
}

/// conn-14: a request that another program on the way could read in another way is none, however good its token
/// and its body: no server is started for it, and it is on record, whoever refused it.
#[tokio::test]
async fn a_malformed_request_is_a_protocol_error() {
    let edge = Edge::of_alice().await;
    let first = initialize("2025-11-25");
    let body = |parts: &[&[u8]]| {
        let last = parts.len() - 1;
        let frames = parts.iter().enumerate().map(|(at, part)| {
            let flags = if at == last { END_STREAM } else { 0 };
            frame(DATA, flags, 1, part)
        });
        frames.collect::<Vec<_>>().concat()
    };
    let with_body = |block: &[u8]| {
        let head = frame(HEADERS, END_HEADERS, 1, block);
        [head, body(&[first.as_bytes()])].concat()
    };
    let field = |name: &str, value: &str| with_body(&edge.good(&[(name, value)]));
    let bearer = edge.bearer.as_deref().unwrap();
    let rest = [
        ("content-type", "application/json"),
        ("accept", "*/*"),
        ("authorization", bearer),
    ];
    let fields = |fields: &[(&str, &str)]| with_body(&block(&[fields, &rest].concat()));
    let host = edge.host.as_str();
    let (post, http) = ((":method", "POST"), (":scheme", "http"));
    let (path, authority) = ((":path", "/mcp"), (":authority", host));
    let said = |length: usize, parts: &[&[u8]]| {
        let length = length.to_string();
        let block = edge.good(&[("content-length", length.as_str())]);
        [frame(HEADERS, END_HEADERS, 1, &block), body(parts)].concat()
    };
    let whole = first.as_bytes();
    let (half, other) = whole.split_at(20);
    let much = vec![b' '; whole.len()];
    let no_body = [("content-length", "3")];
    let trailers = |more: &[(&str, &str)]| {
        let head = frame(HEADERS, END_HEADERS, 1, &edge.good(&[]));
        let data = frame(DATA, 0, 1, whole);
        let last = frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(more));
        [head, data, last].concat()
    };
    let mut refused = 0;
    for (case, frames) in [
        ("line feed in a value", field("x", "a\nb")),
        ("carriage return in a value", field("x", "a\rb")),
        ("null in a value", field("x", "a\0b")),
        (
            "a request in a value",
            field("x", "a\r\n\r\nGET / HTTP/1.1"),
        ),
        ("line feed in a name", field("x\nb", "a")),
        ("carriage return in a name", field("x\rb", "a")),
        ("null in a name", field("x\0b", "a")),
        ("space in a name", field("x b", "a")),
        ("colon in a name", field("x:b", "a")),
        ("upper case name", field("X-Y", "a")),
        ("empty name", field("", "a")),
        ("connection", field("connection", "close")),
        (
            "connection that names",
            field("connection", "authorization"),
        ),
        ("keep-alive", field("keep-alive", "1")),
        ("proxy-connection", field("proxy-connection", "close")),
        ("transfer-encoding", field("transfer-encoding", "chunked")),
        ("upgrade", field("upgrade", "h2c")),
        ("te", field("te", "gzip")),
        ("unknown pseudo field", field(":x", "y")),
        ("response pseudo field", field(":status", "200")),
        ("two methods", field(":method", "GET")),
        ("two paths", field(":path", "/")),
        ("two schemes", field(":scheme", "https")),
        ("two authorities", field(":authority", host)),
        ("no method", fields(&[http, path, authority])),
        ("no path", fields(&[post, http, authority])),
        (
            "empty path",
            fields(&[post, http, (":path", ""), authority]),
        ),
        ("no scheme", fields(&[post, path, authority])),
        ("no authority", fields(&[post, http, path])),
        (
            "pseudo field after field",
            fields(&[post, http, path, ("x", "y"), authority]),
        ),
        (
            "space in the path",
            fields(&[post, http, (":path", "/mcp /x"), authority]),
        ),
        (
            "line feed in the path",
            fields(&[post, http, (":path", "/mcp\r\nx: y"), authority]),
        ),
        (
            "null in the path",
            fields(&[post, http, (":path", "/mcp\0"), authority]),
        ),
        (
            "space in the method",
            fields(&[(":method", "GE T"), http, path, authority]),
        ),
        (
            "line feed in the method",
            fields(&[(":method", "POST\r\n"), http, path, authority]),
        ),
        (
            "space in the authority",
            fields(&[post, http, path, (":authority", "a b")]),
        ),
        (
            "user in the authority",
            fields(&[post, http, path, (":authority", &format!("u@{host}"))]),
        ),
        ("longer than it says", said(whole.len() - 1, &[whole])),
        ("longer in parts", said(whole.len() - 1, &[half, other])),
        (
            "a part more than it says",
            said(whole.len(), &[whole, b" "]),
        ),
        ("shorter than it says", said(whole.len() + 1, &[whole])),
        ("much more than it says", said(1, &[whole, &much])),
        ("nothing is said to come", said(0, &[whole])),
        ("two lengths", {
            let (own, wrong) = (whole.len().to_string(), (whole.len() - 1).to_string());
            let two = [("content-length", &*own), ("content-length", &*wrong)];
            with_body(&edge.good(&two))
        }),
        ("a length that is no number", field("content-length", "+3")),
        ("two numbers in one", field("content-length", "3, 3")),
        ("without what it says", edge.request(1, &no_body)),
        ("a line feed behind the body", trailers(&[("x", "a\nb")])),
        (
            "a connection field behind the body",
            trailers(&[("connection", "x")]),
        ),
    ] {
        let end = edge.end_of(&frames).await;
        assert!(
            matches!(
                end,
                End::Reset(PROTOCOL_ERROR) | End::GoAway(PROTOCOL_ERROR) | End::Status(400)
            ),
            "{case}: {end:?}"
        );
        assert_eq!(edge.house.children_started(), 0, "{case}");
        refused += 1;
        let record = edge.last_refused(refused).await;
        let reasons = ["framing", "bad-header", "client-gone"];
        assert!(
            reasons.contains(&crate::house::field(&record, "THV_REASON").unwrap()),
            "{case}: {record}"
        );
        assert!(
            record.contains("THV_PEER_ADDR=127.0.0.1:"),
            "{case}: {record}"
        );
    }
    // Each of these has nothing wrong with it; what stands behind the body counts for nothing (h1-11), where a field
    // that says what is asked for is left out by the library.
    let fits = said(whole.len(), &[half, other]);
    let late = trailers(&[(":path", "/"), ("x", "y"), ("content-length", "1")]);
    for frames in [field("x", "a b"), field("te", "trailers"), fits, late] {
        assert_eq!(edge.end_of(&frames).await, End::Status(200));
    }
    edge.last_refused(refused).await;
    let stranger = Edge::open().await;
    let head = frame(HEADERS, END_HEADERS, 1, &stranger.good(&[]));
    let late = frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        1,
        &block(&[("authorization", bearer)]),
    );
    let frames = [head, frame(DATA, 0, 1, whole), late].concat();
    assert_eq!(stranger.end_of(&frames).await, End::Status(401));
}

/// json-5, conn-5: what is not announced is looked at, too, where it comes in one frame and is small.
#[tokio::test]
async fn a_body_over_a_small_limit_in_one_frame_is_refused() {
    const LIMIT: usize = 2048;
    let limits = "[limits]\nbody = \"2K\"\n";
    let edge = Edge::at(house().with(limits).open().await).for_alice();
    for (bytes, status) in [(LIMIT, 200), (LIMIT + 1, 413)] {
        let body = format!("{:bytes$}", initialize("2025-11-25"));
        let head = frame(HEADERS, END_HEADERS, 1, &edge.good(&[]));
        let body = frame(DATA, END_STREAM, 1, body.as_bytes());
        let end = edge.end_of(&[head, body].concat()).await;
        assert_eq!(end, End::Status(status), "{bytes}");
    }
}

/// conn-6 in HTTP/2: what has not ended is no request, however whole its message is, and it is on record as in HTTP/1.1:
/// where its stream is taken back, for whatever reason, at once or later, and where its connection ends.
#[tokio::test]
async fn a_body_that_does_not_end_reaches_no_child_and_is_on_record() {
    const NO_ERROR: u8 = 0;
    const CANCEL: u8 = 8;
    let edge = Edge::of_alice().await;
    let first = initialize("2025-11-25");
    let open = [
        frame(HEADERS, END_HEADERS, 1, &edge.good(&[])),
        frame(DATA, 0, 1, first.as_bytes()),
    ]
    .concat();
    let ping = frame(PING, 0, 0, b"12345678");
    let pong = async |client: &mut Frames| {
        client.send(&ping).await;
        while client.next().await.expect("a pong").0 != PING {}
    };
    let mut refused = 0;
    for reason in [Some(CANCEL), Some(NO_ERROR), Some(CANCEL), None] {
        for at_once in [false, true] {
            let mut client = Frames::open(edge.house.address).await;
            let end = reason.map(|reason| frame(RST_STREAM, 0, 1, &[0, 0, 0, reason]));
            if at_once {
                client
                    .send(&[open.clone(), end.unwrap_or_default()].concat())
                    .await;
                pong(&mut client).await;
            } else {
                client.send(&open).await;
                pong(&mut client).await;
                client.send(&end.unwrap_or_default()).await;
            }
            if reason.is_none() {
                drop(client);
            }
            refused += 1;
            // The first one is taken back while the issuer's keys are fetched: nobody knows yet whose it is.
            let denied = ["THV_EVENT=decision ", "THV_DECISION=deny "];
            let denied = edge.house.records.wait_for_all(&denied, refused).await;
            assert_eq!(denied.len(), refused, "{denied:#?}");
            for record in denied {
                let body = record.contains("THV_REASON=bad-header ")
                    && record.contains("THV_SUBJECT=alice ");
                assert!(
                    body || record.contains("THV_REASON=client-gone "),
                    "{record}"
                );
            }
        }
    }
    assert!(!edge.house.records.have(&["THV_DECISION=allow "]));
    assert_eq!(edge.house.children_started(), 0);
    let last = frame(DATA, END_STREAM, 1, &[]);
    assert_eq!(edge.end_of(&[open, last].concat()).await, End::Status(200));
}

/// The same of a batch, whose messages are on record each by itself: until it is read there are none.
#[tokio::test]
async fn a_batch_that_is_taken_back_while_it_is_read_is_on_record() {
    const CANCEL: u8 = 8;
    let edge = Edge::of_alice().await;
    let mut alice = edge.house.caller("alice");
    let opened = alice.post(&initialize("2025-03-26")).await;
    alice.session = opened.header("mcp-session-id").map(str::to_owned);
    let session = alice.session.as_deref().unwrap();
    // Large messages are read two at a time, and none while these two are.
    let mut go_on = Vec::new();
    for _ in 0..2 {
        let ((said, began), (end, wait)) = (oneshot::channel(), mpsc::channel::<()>());
        go_on.push(end);
        tokio::spawn(aside(usize::MAX, move || {
            let _ = said.send(());
            wait.recv_timeout(PATIENCE)
        }));
        timeout(PATIENCE, began).await.unwrap().unwrap();
    }
    let text = "x".repeat(1 << 20);
    let batch = format!("[{}]", call(1, "echo", json!({ "text": text })));
    let head = edge.good(&[("mcp-session-id", session)]);
    let mut client = Frames::open(edge.house.address).await;
    client.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
    client.send_body(1, batch.as_bytes()).await;
    client.send(&frame(PING, 0, 0, b"12345678")).await;
    while client.next().await.expect("a pong").0 != PING {}
    // What came before has its turn before this is answered.
    let ping = r#"{"jsonrpc":"2.0","id":9,"method":"ping"}"#;
    assert_eq!(alice.post(ping).await.status, 200);
    client
        .send(&frame(RST_STREAM, 0, 1, &[0, 0, 0, CANCEL]))
        .await;
    let gone = ["THV_DECISION=deny ", "THV_REASON=client-gone "];
    let gone = edge.house.records.wait_for_all(&gone, 1).await;
    drop(go_on);
    assert!(gone[0].contains("THV_SUBJECT=alice "), "{gone:?}");
    assert!(!edge.house.records.have(&["THV_METHOD=tools/call "]));
}

/// conn-15: two names for one host are two hosts.
#[tokio::test]
async fn an_authority_that_is_not_the_host_is_refused() {
    let edge = Edge::open().await;
    let host = edge.host.clone();
    for (more, status) in [
        (&[("host", "evil.example")][..], 400),
        (&[("host", host.as_str()), ("host", host.as_str())], 400),
        (&[("host", host.as_str())], 401),
    ] {
        assert_eq!(
            edge.end_of(&edge.request(1, more)).await,
            End::Status(status),
            "{more:?}"
        );
    }
}

/// conn-13: what RFC 9113 forbids ends the connection or the stream, with its code.
#[tokio::test]
async fn frames_that_are_wrong_end_the_connection() {
    let edge = Edge::open().await;
    let good = edge.request(1, &[]);
    let block = edge.good(&[]);
    let after = |frames: &[Vec<u8>]| frames.concat();
    for (case, frames, code) in [
        (
            "a frame that is too large",
            frame(DATA, 0, 1, &[0; 20_000]),
            FRAME_SIZE_ERROR,
        ),
        ("data of no stream", frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
        (
            "data of an idle stream",
            frame(DATA, 0, 5, b"x"),
            PROTOCOL_ERROR,
        ),
        (
            "a header block of no stream",
            frame(HEADERS, END_HEADERS, 0, &block),
            PROTOCOL_ERROR,
        ),
        (
            "a stream of the server's",
            frame(HEADERS, END_HEADERS, 2, &block),
            PROTOCOL_ERROR,
        ),
        (
            "a stream before the last",
            after(&[edge.request(5, &[]), edge.request(3, &[])]),
            PROTOCOL_ERROR,
        ),
        (
            "settings of a stream",
            frame(SETTINGS, 0, 1, &[]),
            PROTOCOL_ERROR,
        ),
        (
            "half a setting",
            frame(SETTINGS, 0, 0, &[0; 5]),
            FRAME_SIZE_ERROR,
        ),
        (
            "an acknowledgement that says more",
            frame(SETTINGS, ACK, 0, &[0; 6]),
            FRAME_SIZE_ERROR,
        ),
        (
            "a window that is too large",
            frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0]),
            FLOW_CONTROL_ERROR,
        ),
        (
            "a frame size that is too small",
            frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]),
            PROTOCOL_ERROR,
        ),
        (
            "push that is neither on nor off",
            frame(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 2]),
            PROTOCOL_ERROR,
        ),
        ("a short ping", frame(PING, 0, 0, &[0; 7]), FRAME_SIZE_ERROR),
        (
            "a ping of a stream",
            frame(PING, 0, 1, &[0; 8]),
            PROTOCOL_ERROR,
        ),
        (
            "no window update",
            frame(WINDOW_UPDATE, 0, 0, &[0; 4]),
            PROTOCOL_ERROR,
        ),
        (
            "a window update that is too large",
            frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
            FLOW_CONTROL_ERROR,
        ),
        (
            "a short window update",
            frame(WINDOW_UPDATE, 0, 0, &[0; 3]),
            FRAME_SIZE_ERROR,
        ),
        (
            "a reset of no stream",
            frame(RST_STREAM, 0, 0, &[0; 4]),
            PROTOCOL_ERROR,
        ),
        (
            "a reset of an idle stream",
            frame(RST_STREAM, 0, 1, &[0; 4]),
            PROTOCOL_ERROR,
        ),
        (
            "a short reset",
            after(&[good.clone(), frame(RST_STREAM, 0, 1, &[0; 3])]),
            FRAME_SIZE_ERROR,
        ),
        (
            "a promise",
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0; 8]),
            PROTOCOL_ERROR,
        ),
        (
            "a continuation of nothing",
            frame(CONTINUATION, END_HEADERS, 1, &block),
            PROTOCOL_ERROR,
        ),
        (
            "a header block with another frame in it",
            after(&[frame(HEADERS, 0, 1, &block), frame(PING, 0, 0, &[0; 8])]),
            PROTOCOL_ERROR,
        ),
        (
            "a header block that goes on in another stream",
            after(&[
                frame(HEADERS, 0, 1, &block),
                frame(CONTINUATION, END_HEADERS, 3, &[]),
            ]),
            PROTOCOL_ERROR,
        ),
        (
            "an index of no field",
            frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff, 0xff, 1]),
            COMPRESSION_ERROR,
        ),
        (
            "a table that is too large",
            frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                &[0x3f, 0xff, 0xff, 0xff, 1],
            ),
            COMPRESSION_ERROR,
        ),
        (
            "padding over the end",
            frame(DATA, 8, 1, &[9, 0]),
            PROTOCOL_ERROR,
        ),
    ] {
        let end = edge.end_of(&frames).await;
        // Where the library could be more exact, it says what is always true.
        let said = match end {
            End::GoAway(said) | End::Reset(said) => said == code || said == PROTOCOL_ERROR,
            // What is wrong comes after a request that is good.
            End::Status(401) => case == "a short reset" || case == "a stream before the last",
            End::Status(_) | End::Closed => false,
        };
        assert!(said, "{case}: {end:?}");
    }
    // Half-closed: what comes then is another error, and no request.
    let mut client = Frames::open(edge.house.address).await;
    client
        .send(&after(&[good, frame(DATA, END_STREAM, 1, b"x")]))
        .await;
    let ends = [client.end().await, client.end().await];
    assert!(
        [STREAM_CLOSED, PROTOCOL_ERROR]
            .iter()
            .any(|code| ends.contains(&End::Reset(*code)) || ends.contains(&End::GoAway(*code))),
        "{ends:?}"
    );
    // Frames that nobody knows are passed over, and a ping comes back.
    let mut client = Frames::open(edge.house.address).await;
    client
        .send(&after(&[
            frame(0x16, 0, 0, b"?"),
            frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]),
            frame(PING, 0, 0, b"12345678"),
        ]))
        .await;
    loop {
        let (kind, flags, _, payload) = client.next().await.expect("a pong");
        if kind == PING {
            assert_eq!((flags, payload.as_slice()), (ACK, &b"12345678"[..]));
            break;
        }
    }
    // What only begins like a preface is a request, and a bad one.
    let answer =
        crate::wire::exchange(edge.house.address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX").await;
    assert_eq!(answer.status, 400);
    edge.serves().await;
}

/// conn-13: floods of what costs nothing to send end with ENHANCE_YOUR_CALM, and others are served.
#[tokio::test]
async fn floods_are_told_to_calm_down() {
    let edge = Edge::open().await;
    let mut rapid = Vec::new();
    let mut made = Vec::new();
    for stream in (1..4000).step_by(2) {
        rapid.extend(edge.request(stream, &[]));
        rapid.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
        // CVE-2025-8671: the server is made to reset.
        made.extend(frame(HEADERS, END_HEADERS, stream, &edge.good(&[])));
        made.extend(frame(WINDOW_UPDATE, 0, stream, &[0; 4]));
    }
    let mut continued = frame(HEADERS, 0, 1, &edge.good(&[]));
    for _ in 0..2000 {
        continued.extend(frame(CONTINUATION, 0, 1, &block(&[("x", "y")])));
    }
    let mut endless = frame(HEADERS, 0, 1, &edge.good(&[]));
    let mut opened = frame(HEADERS, END_HEADERS, 1, &edge.good(&[]));
    for _ in 0..2000 {
        endless.extend(frame(CONTINUATION, 0, 1, &[]));
        opened.extend(frame(DATA, 0, 1, &[]));
    }
    // One field of 4000 bytes in the table, named again and again.
    let mut bomb = edge.good(&[]);
    bomb.extend([0x40, 1, b'x', 127, 0xa1, 0x1e]);
    bomb.extend(vec![b'y'; 4000]);
    bomb.extend(vec![0xbe; 10_000]);
    let bomb = frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb);
    let started = Instant::now();
    for (case, flood) in [
        ("rapid reset", rapid),
        ("made you reset", made),
        ("settings", frame(SETTINGS, 0, 0, &[]).repeat(3000)),
        (
            "acknowledged settings",
            frame(SETTINGS, ACK, 0, &[]).repeat(3000),
        ),
        ("pings", frame(PING, 0, 0, &[0; 8]).repeat(3000)),
        ("pongs", frame(PING, ACK, 0, &[0; 8]).repeat(3000)),
        (
            "priorities",
            frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]).repeat(3000),
        ),
        (
            "window updates",
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(3000),
        ),
        ("unknown frames", frame(0x20, 0, 0, &[]).repeat(3000)),
        ("a header block without an end", continued),
        ("a header block without anything", endless),
        ("empty data", opened),
    ] {
        let mut client = Frames::open(edge.house.address).await;
        client.send(&flood).await;
        let said = client.last_words().await;
        // Whoever still sends when it is closed may lose the last words on the way.
        let reset = said.is_none() && matches!(case, "made you reset" | "rapid reset");
        // Acknowledgements that nobody waits for are an error before they are a flood.
        let wrong = case.contains("acknowledged") && said == Some(PROTOCOL_ERROR);
        let zero = case == "made you reset" && said == Some(PROTOCOL_ERROR);
        assert!(
            said == Some(ENHANCE_YOUR_CALM) || reset || wrong || zero,
            "{case}: {said:?}"
        );
        edge.serves().await;
    }
    let end = edge.end_of(&bomb).await;
    assert!(
        matches!(
            end,
            End::GoAway(ENHANCE_YOUR_CALM) | End::Status(431) | End::Reset(PROTOCOL_ERROR)
        ),
        "{end:?}"
    );
    edge.serves().await;
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
    assert_eq!(edge.house.children_started(), 0);
}

/// conn-13: who takes back good requests as fast as he makes them is sent away before he has cost much, leaves
/// nothing behind, and keeps nobody else waiting.
#[tokio::test]
async fn good_requests_that_are_taken_back_at_once_start_little() {
    let edge = Edge::of_alice().await;
    let first = initialize("2025-11-25");
    let mut flood = Vec::new();
    for stream in (1..4000).step_by(2) {
        flood.extend(frame(HEADERS, END_HEADERS, stream, &edge.good(&[])));
        flood.extend(frame(DATA, END_STREAM, stream, first.as_bytes()));
        flood.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
    }
    let mut client = Frames::open(edge.house.address).await;
    let sends = async {
        client.send(&flood).await;
        client.last_words().await
    };
    let (said, ()) = tokio::join!(sends, edge.house.serves("bob"));
    assert!(matches!(said, None | Some(ENHANCE_YOUR_CALM)), "{said:?}");
    let started = edge.house.children_started();
    assert!(started <= 32, "{started}");
    edge.house.serves("alice").await;
}

/// h1-12, h1-13: heads have the same caps.
#[tokio::test]
async fn a_head_over_the_cap_is_refused_here_too() {
    let edge = Edge::open().await;
    let many = vec![("x", "y"); 70];
    assert_eq!(edge.end_of(&edge.request(1, &many)).await, End::Status(431));
    let value = "y".repeat(6000);
    let fields = vec![("x", value.as_str()); 2];
    assert_eq!(
        edge.end_of(&edge.request(1, &fields)).await,
        End::Status(401)
    );
    // More than fits: in as many frames as it takes.
    let large = edge.good(&vec![("x", value.as_str()); 8]);
    let (first, rest) = large.split_at(16_000);
    let mut frames = frame(HEADERS, END_STREAM, 1, first);
    for part in rest.chunks(16_000) {
        frames.extend(frame(CONTINUATION, 0, 1, part));
    }
    frames.extend(frame(CONTINUATION, END_HEADERS, 1, &[]));
    let end = edge.end_of(&frames).await;
    assert!(
        matches!(
            end,
            End::Status(431) | End::Reset(_) | End::GoAway(ENHANCE_YOUR_CALM)
        ),
        "{end:?}"
    );
    let last = edge.last_refused(3).await;
    assert!(last.contains("THV_REASON=framing "), "{last}");
}

/// Once for each connection, with how many requests there were on it; who hangs up at once is on record, too.
#[tokio::test]
async fn what_the_framing_refuses_is_on_record_once_a_connection() {
    let edge = Edge::open().await;
    let bad = |stream| edge.request(stream, &[("connection", "close")]);
    let mut endless = frame(HEADERS, 0, 1, &edge.good(&[]));
    for _ in 0..200 {
        endless.extend(frame(CONTINUATION, 0, 1, &block(&[("x", "y")])));
    }
    let ping = frame(PING, 0, 0, b"12345678");
    for (at, (requests, frames)) in [
        (1, bad(1)),
        (10, (1..21).step_by(2).flat_map(bad).collect()),
        (1, endless),
        // The good one is cut off with its connection.
        (
            1,
            [edge.request(1, &[]), frame(PING, 0, 1, &[0; 8])].concat(),
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = Frames::open(edge.house.address).await;
        client.send(&frames).await;
        client.end().await;
        drop(client);
        let last = edge.last_refused(at + 1).await;
        assert!(last.contains("THV_REASON=framing "), "{at}: {last}");
        let counted = format!("THV_REQUESTS={requests} ");
        assert!(last.contains(&counted), "{at}: {last}");
    }
    // A good one beside it is on record as ever.
    let mut client = Frames::open(edge.house.address).await;
    client.send(&[bad(1), edge.request(3, &[])].concat()).await;
    let ends = [client.end().await, client.end().await];
    assert!(ends.contains(&End::Status(401)), "{ends:?}");
    let last = edge.last_refused(5).await;
    assert!(last.contains("THV_REASON=token-missing "), "{last}");
    drop(client);
    edge.last_refused(6).await;
    // What is no request is none.
    let half = frame(HEADERS, 0, 1, &edge.good(&[]));
    for frames in [ping, frame(PING, 0, 1, &[0; 8]), half] {
        let mut client = Frames::open(edge.house.address).await;
        client.send(&frames).await;
        client.0.shutdown().await.unwrap();
        client.last_words().await;
    }
    edge.serves().await;
    let last = edge.last_refused(7).await;
    assert!(last.contains("THV_REASON=token-missing "), "{last}");
}

/// Requests at once: more than announced are refused, and come back.
#[tokio::test]
async fn streams_at_once_are_limited() {
    let edge = Edge::open().await;
    let mut frames = Vec::new();
    for stream in (1..400).step_by(2) {
        // Each waits for a body that does not come.
        frames.extend(frame(
            HEADERS,
            END_HEADERS,
            stream,
            &edge.good(&[("content-length", "3")]),
        ));
    }
    let mut client = Frames::open(edge.house.address).await;
    client.send(&frames).await;
    let mut refused = 0;
    while let Some(Some((kind, _, _, payload))) = client.next_within(Duration::from_secs(2)).await {
        const REFUSED_STREAM: [u8; 4] = [0, 0, 0, 7];
        if kind == RST_STREAM && payload == REFUSED_STREAM {
            refused += 1;
        }
        if kind == GOAWAY {
            break;
        }
    }
    assert!(refused > 0);
    drop(client);
    let framing = edge.house.records.wait_for_all(&["THV_REASON=framing "], 1);
    assert_eq!(framing.await.len(), 1);
    edge.serves().await;
}

/// conn-13, h1-13: the heads of the requests that wait on one connection have a bound of their own; one more is told
/// to come back, reaches nobody, and is served when there is room.
#[tokio::test]
async fn heads_at_once_are_limited() {
    let edge = Edge::of_alice().await;
    let value = "y".repeat(6000);
    let head = |stream, length| {
        let more = [
            ("x", value.as_str()),
            ("z", &value),
            ("content-length", length),
        ];
        frame(HEADERS, END_HEADERS, stream, &edge.good(&more))
    };
    let mut client = Frames::open(edge.house.address).await;
    // SETTINGS_HEADER_TABLE_SIZE = 0: each answer is spelled by itself.
    client
        .send(&frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0]))
        .await;
    // Each waits for a body that is still to come.
    let waiting: Vec<u32> = (1..120).step_by(2).collect();
    for stream in &waiting {
        client.send(&head(*stream, "3")).await;
    }
    // As RFC 9113 §6.5.2 counts them, without those that make the target.
    let lines = [
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
        ("authorization", edge.bearer.as_ref().unwrap()),
        ("x", &value),
        ("z", &value),
        ("content-length", "3"),
    ];
    let size: usize = lines
        .iter()
        .map(|(name, value)| name.len() + value.len() + 32)
        .sum();
    let fit = (512 << 10) / (size + "/mcp".len());
    let mut told = Vec::new();
    while told.len() < waiting.len() - fit {
        let (kind, _, stream, payload) = client.next().await.expect("an answer");
        if kind == HEADERS {
            assert_eq!(status(&payload), 503, "{stream}");
            told.push(stream);
        }
    }
    // Those that had come before them are not concerned.
    assert_eq!(told, waiting[fit..]);
    let denied = edge.last_refused(told.len()).await;
    assert!(denied.contains("THV_REASON=overloaded "), "{denied}");
    for stream in waiting.iter().filter(|stream| !told.contains(stream)) {
        client
            .send(&frame(DATA, END_STREAM, *stream, b"{}\n"))
            .await;
        loop {
            let (kind, _, of, payload) = client.next().await.expect("an answer");
            if kind == HEADERS {
                assert_eq!((status(&payload), of), (400, *stream));
                break;
            }
        }
    }
    client.send(&head(121, "3")).await;
    client.send(&frame(DATA, END_STREAM, 121, b"{}\n")).await;
    assert_eq!(client.end().await, End::Status(400));
    assert_eq!(edge.house.children_started(), 0);
}

/// Mended files are found by who comes next: nobody stays with the mode that says 503.
#[tokio::test]
async fn a_misconfigured_house_lets_its_connections_go() {
    let house = house().file("resource = 1\n").open().await;
    let mut client = Frames::open(house.address).await;
    let host = house.address.to_string();
    let fields = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/mcp"),
        (":authority", &host),
    ];
    client
        .send(&frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            1,
            &block(&fields),
        ))
        .await;
    let mut ends = Vec::new();
    while ends.last() != Some(&End::Closed) {
        ends.push(client.end().await);
    }
    for end in [End::Status(503), End::GoAway(0)] {
        assert!(ends.contains(&end), "{ends:?}");
    }
}

/// mcp-T7, mcp-L4: a stream that its client resets is a closed one: a modern request's is the cancel of that request
/// alone, a legacy one's cancels nothing.
#[tokio::test]
async fn a_reset_stream_cancels_a_modern_request_alone() {
    let house = house().open().await;
    let mut legacy = Client::open(&house, "alice").await;
    let opened = legacy
        .ask("POST", "/mcp", &[], &initialize("2025-11-25"))
        .await;
    legacy.caller.session = legacy_session(&opened.headers);
    let modern = Client::open(&house, "alice").await;
    let waits = |what: &str| {
        let params = json!({ "name": "wait", "arguments": { "for": what } });
        modern::body(1, "tools/call", params, json!({}))
    };
    let headers = [
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", "tools/call"),
        ("mcp-name", "wait"),
    ];
    let mut sender = modern.requests.clone();
    let mut open = |what: &str| {
        let request = modern.request("POST", "/mcp", &headers, &waits(what));
        tokio::spawn(sender.send_request(request))
    };
    let (lost, kept) = (open("lost"), open("kept"));
    let mut older = legacy.requests.clone();
    let older = tokio::spawn(older.send_request(legacy.request(
        "POST",
        "/mcp",
        &[],
        &call(7, "wait", json!({ "for": "older" })),
    )));
    let reached = async |legacy: bool, what: &str| {
        let caller = house.caller("alice");
        let session = Caller {
            session: legacy_session(&opened.headers),
            ..caller.clone()
        };
        let seen = async {
            loop {
                let lines = match legacy {
                    true => session.seen().await,
                    false => modern::seen(&caller).await,
                };
                if let Some(line) = lines.iter().find(|line| line.contains(what)) {
                    return serde_json::from_str::<serde_json::Value>(line).unwrap();
                }
            }
        };
        timeout(PATIENCE, seen).await.unwrap()
    };
    let number = reached(false, r#""for":"lost""#).await["id"].clone();
    reached(false, r#""for":"kept""#).await;
    reached(true, r#""for":"older""#).await;
    // What nobody waits for any more is reset; the connections stay.
    lost.abort();
    older.abort();
    let cancelled = reached(false, "notifications/cancelled").await;
    assert_eq!(cancelled["params"]["requestId"], number);
    let caller = house.caller("alice");
    modern::tool(&caller, "release", json!({ "for": "kept" })).await;
    let kept = timeout(PATIENCE, kept).await.unwrap().unwrap().unwrap();
    let text = kept.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&text).contains("released"));
    let session = Caller {
        session: legacy_session(&opened.headers),
        ..caller
    };
    let released = session.call("release", json!({ "for": "older" })).await;
    assert_eq!(released.said(), "done");
    let seen = session.seen().await;
    assert!(
        !seen.iter().any(|line| line.contains("cancelled")),
        "{seen:?}"
    );
}

fn legacy_session(headers: &HeaderMap) -> Option<String> {
    let session = headers["mcp-session-id"].to_str();
    session.ok().map(str::to_owned)
}

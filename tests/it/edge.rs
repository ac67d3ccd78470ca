//! The HTTP edge: what is refused before anybody looks at a token's owner or a body.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};

use crate::{
    house::{House, call, house, initialize},
    identity::{is_told, last_decision},
    modern,
    wire::{self, Answer, PATIENCE},
};

const MEDIA: &str = "the body must be application/json, not encoded";
const ACCEPT: &str = "the client must accept application/json and text/event-stream";

struct Edge {
    house: House,
    token: String,
    host: String,
}

impl Edge {
    async fn open() -> Self {
        let house = house().with("").open().await;
        let token = format!("Bearer {}", house.token("alice"));
        let host = house.address.to_string();
        Self { house, token, host }
    }

    /// A POST of an `initialize` with these headers in place of, or besides, the good ones.
    async fn post(&self, changed: &[(&str, &str)]) -> Answer {
        self.send("POST", "/mcp", changed, &initialize("2025-11-25"))
            .await
    }

    async fn send(
        &self,
        method: &str,
        target: &str,
        changed: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let good = [
            ("Host", self.host.as_str()),
            ("Authorization", &self.token),
            ("Content-Type", "application/json"),
            ("Accept", "application/json, text/event-stream"),
        ];
        let kept = good
            .into_iter()
            .filter(|(name, _)| !changed.iter().any(|(other, _)| other == name));
        let headers: Vec<_> = kept
            .chain(changed.iter().copied())
            .filter(|(_, value)| !value.is_empty())
            .collect();
        wire::exchange(
            self.house.address,
            &wire::request(method, target, &headers, body),
        )
        .await
    }

    /// Status and body are these, the record says why, and nothing was started for it.
    fn is_refused(&self, answer: &Answer, status: u16, message: &str, reason: &str) {
        is_told(
            &self.house,
            answer,
            (status, None),
            (message, reason),
            reason,
        );
    }

    /// Every refusal here must have left the runner alone.
    fn nothing_started(&self) {
        assert_eq!(self.house.children_started(), 0);
    }
}

/// tok-129, h1-8, h1-9, inc-20: the Host is one of ours, once, and nothing but a host.
#[tokio::test]
async fn a_request_for_another_host_is_refused() {
    let edge = Edge::open().await;
    let other = ("this host name is not served here", "host-not-accepted");
    let one = ("exactly one valid Host header is required", "bad-header");
    for host in ["evil.example", "127.0.0.1", "127.0.0.1:1", "[::1]:80"] {
        let answer = edge.post(&[("Host", host)]).await;
        edge.is_refused(&answer, 403, other.0, other.1);
    }
    let (own, user) = (&*edge.host, format!("user@{}", edge.host));
    let path = format!("{own}/?x");
    for host in [
        "a/?x",
        &path,
        &user,
        "127.0.0.1:port",
        "[::1",
        "a b",
        "a#b",
        "a,b:c",
        ":80",
        " ",
    ] {
        let answer = edge.post(&[("Host", host)]).await;
        edge.is_refused(&answer, 400, one.0, one.1);
    }
    for hosts in [
        &[("Host", "")][..],
        &[("Host", own), ("Host", own)],
        &[("Host", own), ("Host", "evil.example")],
    ] {
        edge.is_refused(&edge.post(hosts).await, 400, one.0, one.1);
    }
    // In absolute form a request has its host twice: alike, or it is for nobody.
    let first = initialize("2025-11-25");
    let absolute = async |authority: &str, host: &str| {
        let target = format!("http://{authority}/mcp");
        edge.send("POST", &target, &[("Host", host)], &first).await
    };
    for (authority, host) in [
        ("evil.example", own),
        (own, "evil.example"),
        (&user, own),
        (own, ""),
    ] {
        edge.is_refused(&absolute(authority, host).await, 400, one.0, one.1);
    }
    let evil = absolute("evil.example", "evil.example").await;
    edge.is_refused(&evil, 403, other.0, other.1);
    edge.nothing_started();
    assert_eq!(edge.post(&[]).await.status, 200);
    assert_eq!(absolute(own, own).await.status, 200);
}

/// tok-128, inc-3, mcp-T2, mcp-O1: an Origin that is present is one of ours.
#[tokio::test]
async fn a_request_from_another_origin_is_refused() {
    let edge = Edge::open().await;
    for origin in [
        "http://evil.example",
        "null",
        "https://127.0.0.1",
        "http://localhost",
    ] {
        let answer = edge.post(&[("Origin", origin)]).await;
        edge.is_refused(
            &answer,
            403,
            "this origin is not allowed",
            "origin-not-accepted",
        );
    }
    let ours = format!("http://{}", edge.host);
    let both = [("Origin", &*ours), ("Origin", "http://evil.example")];
    let answer = edge.post(&both).await;
    edge.is_refused(
        &answer,
        403,
        "this origin is not allowed",
        "origin-not-accepted",
    );
    // Neither what begins nor what ends as ours does.
    for other in [
        format!("{ours}.evil.example"),
        format!("{ours}@evil.example"),
        format!("{ours}0"),
        format!("http://evil.{}", edge.host),
        edge.host.clone(),
        ours[..ours.len() - 1].to_owned(),
    ] {
        let answer = edge.post(&[("Origin", &other)]).await;
        assert_eq!(answer.status, 403, "{other}: {answer:?}");
    }
    edge.nothing_started();
    assert_eq!(edge.post(&[("Origin", &ours)]).await.status, 200);
}

/// conn-20, inc-17: only the exact path serves; nothing is normalized.
#[tokio::test]
async fn only_the_exact_path_is_served() {
    let edge = Edge::open().await;
    for path in [
        "/",
        "//mcp",
        "/mcp/",
        "/MCP",
        "/mcp;x",
        "/mcp%2f",
        "/./mcp",
        "/x/../mcp",
        "/mcp/../mcp",
        "/%2e/mcp",
        "/x/%2e%2e/mcp",
        "/mcp/.",
        "/%6dcp",
        "/mcp%00",
        "/mcp%20",
        "/mcp#x",
        "/mcp#",
        "/#/mcp",
        "/mcp\\",
        "/mcp/sse",
        "/mcp/messages",
        "/mcpx",
        "mcp",
        "*",
    ] {
        let answer = edge
            .send("POST", path, &[], &initialize("2025-11-25"))
            .await;
        assert_eq!(
            answer.status,
            if path == "mcp" { 400 } else { 404 },
            "{path}"
        );
        if path != "mcp" {
            edge.is_refused(&answer, 404, "no such path", "path-unknown");
        }
    }
    edge.nothing_started();
    assert_eq!(edge.post(&[]).await.status, 200);
    // A query is no part of the path, and nobody's business (tok-8).
    let first = initialize("2025-11-25");
    let answer = edge.send("POST", "/mcp?x=secret-query", &[], &first).await;
    assert_eq!(answer.status, 200);
    let records = edge.house.records.all().join("\n");
    assert!(!records.contains("secret-query"), "{records}");
}

/// conn-16, conn-17, inc-4: exactly JSON, not encoded, before anything looks at the body.
#[tokio::test]
async fn a_body_that_is_not_json_by_its_header_is_refused() {
    let edge = Edge::open().await;
    for kind in [
        "",
        "text/plain",
        "application/json5",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
    ] {
        let answer = edge.post(&[("Content-Type", kind)]).await;
        edge.is_refused(&answer, 415, MEDIA, "media-type");
    }
    let twice = [
        ("Content-Type", "application/json"),
        ("Content-Type", "text/plain"),
    ];
    let answer = edge.post(&twice).await;
    edge.is_refused(&answer, 415, MEDIA, "media-type");
    for coding in ["gzip", "br", "identity, gzip"] {
        let answer = edge.post(&[("Content-Encoding", coding)]).await;
        edge.is_refused(&answer, 415, MEDIA, "media-type");
    }
    // Before the body: what it holds is no matter, and is not read.
    let odd = edge
        .send("POST", "/mcp", &[("Content-Type", "text/plain")], "{")
        .await;
    edge.is_refused(&odd, 415, MEDIA, "media-type");
    edge.nothing_started();
    for kind in ["application/json; charset=utf-8", "Application/JSON"] {
        assert_eq!(
            edge.post(&[("Content-Type", kind)]).await.status,
            200,
            "{kind}"
        );
    }
}

/// conn-18: a client must be able to read what it may be sent.
#[tokio::test]
async fn a_client_that_cannot_read_the_answer_is_refused() {
    let edge = Edge::open().await;
    for accept in ["", "application/json", "text/event-stream", "text/html"] {
        let answer = edge.post(&[("Accept", accept)]).await;
        edge.is_refused(&answer, 406, ACCEPT, "not-acceptable");
    }
    edge.nothing_started();
    for accept in [
        "*/*",
        "text/event-stream;q=0.5,application/json",
        "application/*, text/*",
    ] {
        assert_eq!(
            edge.post(&[("Accept", accept)]).await.status,
            200,
            "{accept}"
        );
    }
}

/// conn-19, tok-130, h1-15: methods that are not served say which are.
#[tokio::test]
async fn other_methods_are_refused_with_those_there_are() {
    let edge = Edge::open().await;
    for method in ["PUT", "OPTIONS", "HEAD", "TRACE", "get", "PATCH"] {
        let answer = edge.send(method, "/mcp", &[], "").await;
        assert_eq!(answer.status, 405, "{method}");
        if method != "HEAD" {
            edge.is_refused(&answer, 405, "method not allowed", "http-method");
        }
        assert_eq!(
            answer.header("allow"),
            Some("POST, GET, DELETE"),
            "{method}"
        );
        assert!(
            answer
                .headers
                .iter()
                .all(|(name, _)| !name.starts_with("access-control")),
            "{method}"
        );
    }
    edge.nothing_started();
}

/// conn-19: browsers are told of the pages of listed origins that these may ask, with what MCP takes, and may read
/// every answer; of no other origin they are told anything.
#[tokio::test]
async fn only_pages_of_listed_origins_may_ask_and_read() {
    let page = "https://page.example";
    let top = format!("origins = [\"{page}\"]\nlegacy-sse = true\n");
    let house = house().top(&top).open().await;
    let token = format!("Bearer {}", house.token("alice"));
    let host = house.address.to_string();
    let edge = Edge { house, token, host };
    let cors = |answer: &Answer| -> Vec<String> {
        let of = |(name, value): &(String, String)| format!("{name}: {value}");
        let names = answer
            .headers
            .iter()
            .filter(|(name, _)| name.starts_with("access-control-") || name == "vary");
        names.map(of).collect()
    };
    let asks = [
        ("Access-Control-Request-Method", "POST"),
        (
            "Access-Control-Request-Headers",
            "authorization,content-type, MCP-Protocol-Version,mcp-param-region,x-evil,cookie,a b",
        ),
        ("Authorization", ""),
        ("Content-Type", ""),
        ("Accept", "*/*"),
    ];
    let preflight = async |path: &str, origin: &str| {
        let headers = [&asks[..], &[("Origin", origin)]].concat();
        edge.send("OPTIONS", path, &headers, "").await
    };
    let metadata = "/.well-known/oauth-protected-resource/mcp";
    for (path, methods) in [
        ("/mcp", "POST, GET, DELETE"),
        (metadata, "GET"),
        ("/mcp/sse", "GET"),
        ("/mcp/messages", "POST"),
    ] {
        let answer = preflight(path, page).await;
        assert_eq!((answer.status, answer.body.len()), (204, 0), "{path}");
        for (name, value) in [
            ("access-control-allow-origin", page),
            ("access-control-allow-methods", methods),
            (
                "access-control-allow-headers",
                "authorization, content-type, mcp-protocol-version, mcp-param-region",
            ),
            ("access-control-max-age", "600"),
            ("vary", "origin"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{path}");
        }
        assert_eq!(answer.header("access-control-allow-credentials"), None);
    }
    // It is no way in, and no other path's.
    assert_eq!(preflight("/none", page).await.status, 404);
    let bare = [("Origin", page), ("Authorization", "")];
    assert_eq!(edge.send("OPTIONS", "/mcp", &bare, "").await.status, 405);
    let evil = [&asks[..], &[("Origin", page), ("Host", "evil.example")]].concat();
    assert_eq!(edge.send("OPTIONS", "/mcp", &evil, "").await.status, 403);
    edge.nothing_started();
    // Each answer can be read there, refusals and what leads to a token as well.
    let first = initialize("2025-11-25");
    for (method, path, more, status) in [
        ("POST", "/mcp", ("Authorization", ""), 401),
        ("POST", "/mcp", ("Accept", "text/html"), 406),
        ("GET", metadata, ("Authorization", ""), 200),
        ("POST", "/mcp", ("X", "y"), 200),
    ] {
        let answer = edge
            .send(method, path, &[("Origin", page), more], &first)
            .await;
        assert_eq!(answer.status, status, "{method} {path}");
        assert_eq!(
            cors(&answer),
            [
                &format!("access-control-allow-origin: {page}"),
                "access-control-expose-headers: mcp-session-id, www-authenticate, dpop-nonce, retry-after",
                "vary: origin",
            ]
        );
    }
    // Others': refused, or of no page.
    let own = format!("http://{}", edge.host);
    for (origin, status) in [
        ("https://evil.example", 403),
        ("https://page.example.evil.example", 403),
        ("http://page.example", 403),
        ("https://page.example:444", 403),
        ("null", 403),
        (&own, 405),
    ] {
        let answer = preflight("/mcp", origin).await;
        assert_eq!(answer.status, status, "{origin}");
        assert_eq!(cors(&answer), [""; 0], "{origin}");
    }
    let two = [("Origin", page), ("Origin", "https://evil.example")];
    let answer = edge.send("POST", "/mcp", &two, &first).await;
    assert_eq!((answer.status, cors(&answer)), (403, Vec::new()));
    let answer = edge.post(&[]).await;
    assert_eq!((answer.status, cors(&answer)), (200, Vec::new()));
}

/// conn-5, h1-14: a body over the cap is refused, announced or not.
#[tokio::test]
async fn a_body_over_the_cap_is_refused() {
    let house = house().with("[limits]\nbody = \"64K\"\n").open().await;
    let alice = house.session("alice").await;
    let big = call(1, "echo", serde_json::json!({ "x": "y".repeat(70_000) }));
    assert_eq!(alice.post(&big).await.status, 413);
    let head = String::from_utf8(alice.bytes("POST", "")).unwrap();
    let head = head.replace("Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n");
    let mut chunked = head.into_bytes();
    for part in big.as_bytes().chunks(8192) {
        chunked.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        chunked.extend_from_slice(part);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(wire::exchange(house.address, &chunked).await.status, 413);
    assert!(!alice.seen().await.iter().any(|line| line.contains("yyy")));
    let fits = call(1, "echo", serde_json::json!({ "x": "y".repeat(60_000) }));
    assert_eq!(alice.post(&fits).await.status, 200);
}

/// conn-6, inc-10: a body that ends early is not dispatched, even where what has come is a whole message.
#[tokio::test]
async fn a_body_that_ends_early_reaches_no_child() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let body = call(1, "echo", json!({ "marker": "cut-short" }));
    let whole = alice.bytes("POST", &body);
    let head = String::from_utf8(alice.bytes("POST", "")).unwrap();
    let framed = |by: &str, body: &str| {
        let head = head.replace("Content-Length: 0\r\n", by);
        format!("{head}{body}").into_bytes()
    };
    let longer = format!("Content-Length: {}\r\n", body.len() + 2);
    let chunked = "Transfer-Encoding: chunked\r\n";
    let chunk = format!("{:x}\r\n{body}\r\n", body.len());
    for request in [
        whole[..whole.len() - 3].to_vec(),
        framed(&longer, &body),
        framed(chunked, &chunk),
        framed(chunked, &format!("{chunk}0\r\n")),
        framed(chunked, &format!("{:x}\r\n{body}", body.len() + 2)),
    ] {
        let before = house.records.count("decision");
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        stream.write_all(&request).await.unwrap();
        drop(stream);
        // It has seen the end of it, and said so.
        house.records.wait_for_more("decision", before).await;
        let last = last_decision(&house);
        assert!(
            last.contains("THV_DECISION=deny ") && last.contains("THV_REASON=bad-header "),
            "{last}"
        );
    }
    let seen = alice.seen().await;
    assert!(
        !seen.iter().any(|line| line.contains("cut-short")),
        "{seen:?}"
    );
    let answer = wire::exchange(
        house.address,
        &framed(chunked, &format!("{chunk}0\r\n\r\n")),
    )
    .await;
    assert_eq!(answer.status, 200, "the control");
}

/// h1-12, h1-13, tok-13, conn-4: heads have their caps.
#[tokio::test]
async fn a_head_over_the_cap_is_refused() {
    let edge = Edge::open().await;
    let many: Vec<(&str, &str)> = (0..80).map(|_| ("X-A", "b")).collect();
    assert_eq!(edge.post(&many).await.status, 431);
    assert_eq!(
        edge.post(&[("X-A", &"b".repeat(300_000))]).await.status,
        431
    );
    // A flood is not read to its end.
    let flood = format!(
        "POST /mcp HTTP/1.1\r\nHost: {}\r\n{}\r\n",
        edge.host,
        "a:\r\n".repeat(1_000_000)
    );
    assert_eq!(flooded(edge.house.address, flood.as_bytes()).await, 431);
    let fits = format!("/mcp?{}", "q".repeat((8 << 10) - "/mcp?".len()));
    assert_eq!(edge.send("POST", &fits, &[], "{}").await.status, 400);
    for length in [(8 << 10) + 1, 9_000, 20_000] {
        let long = format!("/mcp?{}", "q".repeat(length - "/mcp?".len()));
        let answer = edge.send("POST", &long, &[], "{}").await;
        assert_eq!(answer.status, 414, "{answer:?}");
    }
    // No more of it is read than of any head.
    let long = format!("/mcp?{}", "q".repeat(100_000));
    assert_eq!(edge.send("POST", &long, &[], "{}").await.status, 431);
    let records = edge.house.records.all();
    let refused = records
        .iter()
        .filter(|record| record.contains("THV_DECISION=deny ") && record.contains("bad-header"));
    assert_eq!(refused.count(), 7, "{records:#?}");
    edge.nothing_started();
}

/// h1-3, h1-5, h1-7, h1-10, inc-22: what cannot be framed is refused, and nothing behind it is served (conn-7).
#[tokio::test]
async fn what_cannot_be_framed_ends_the_connection() {
    let edge = Edge::open().await;
    let good = format!(
        "Host: {}\r\nAuthorization: {}\r\nContent-Type: application/json\r\nAccept: */*\r\n",
        edge.host, edge.token
    );
    // The space that is accepted behind a size, for a control.
    let body = initialize("2025-11-25");
    let fits = format!(
        "POST /mcp HTTP/1.1\r\n{good}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n{:x} \r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    let answer = wire::exchange(edge.house.address, fits.as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    for (number, head) in [
        "Content-Length: 1\r\nContent-Length: 2\r\n",
        "Content-Length: +2\r\n",
        "Content-Length: 0x2\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "X: a\rb\r\n",
        "X: a\0b\r\n",
        "X: a\r\n folded\r\n",
        ": empty\r\n",
        "Content-Length: \r\n",
        "Content-Length: 2;\r\n",
        "Transfer-Encoding: \u{b}chunked\r\n",
        "Transfer-Encoding: chunked\u{b}\r\n",
        "X: a\r\n\tfolded\r\n",
        "no colon\r\n",
        "X y: a\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0x2\r\nab\r\n0\r\n",
        "Transfer-Encoding: chunked\r\n\r\n+2\r\nab\r\n0\r\n",
        "Transfer-Encoding: chunked\r\n\r\n-2\r\nab\r\n0\r\n",
        "Transfer-Encoding: chunked\r\n\r\n\r\n0\r\n",
        "Transfer-Encoding: chunked\r\n\r\n10000000000000002\r\nab\r\n0\r\n",
        "Transfer-Encoding: chunked\r\n\r\n2;x\ny\r\nab\r\n0\r\n",
        "Transfer-Encoding: chunked\r\n\r\n2;x\ry\r\nab\r\n0\r\n",
        "Transfer-Encoding: chunked\r\n\r\n2\nab\r\n0\r\n",
        "Transfer-Encoding: chunked\r\n\r\n2\r\nab\n0\r\n",
        "Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n",
    ]
    .into_iter()
    .enumerate()
    {
        let request = format!(
            "POST /mcp HTTP/1.1\r\n{good}{head}\r\nGET /second HTTP/1.1\r\nHost: {}\r\n\r\n",
            edge.host
        );
        let answer = wire::exchange(edge.house.address, request.as_bytes()).await;
        assert_eq!(answer.status, 400, "{head:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{head:?}");
        assert!(
            !answer.text().contains("HTTP/1.1"),
            "{head:?}: a second answer"
        );
        let records = edge.house.records.all();
        let bad = records
            .iter()
            .filter(|record| record.contains("THV_REASON=bad-header"));
        assert_eq!(bad.count(), number + 1, "{head:?}: {records:#?}");
    }
    assert_eq!(edge.house.children_started(), 1, "the control's");
}

/// h1-1, h1-2, h1-4, h1-5, h1-6, h1-7, h1-16: what a lenient reader would make sense of is refused, recorded, and the last thing read.
#[tokio::test]
async fn what_could_be_read_in_two_ways_is_refused() {
    let edge = Edge::open().await;
    let good = format!(
        "Host: {}\r\nAuthorization: {}\r\nContent-Type: application/json\r\nAccept: */*\r\n",
        edge.host, edge.token
    );
    let second = format!("GET /second HTTP/1.1\r\nHost: {}\r\n\r\n", edge.host);
    let mut refused = 0;
    for (line, more) in [
        (
            "POST /mcp HTTP/1.1",
            "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        ),
        (
            "POST /mcp HTTP/1.1",
            "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
        ),
        (
            "POST /mcp HTTP/1.1",
            "Content-Length: 2\r\nContent-Length: 2\r\n",
        ),
        ("POST /mcp HTTP/1.1", "Content-Length: 002\r\n"),
        ("POST /mcp HTTP/1.1", "Content-Length: 2, 2\r\n"),
        (
            "POST /mcp HTTP/1.1",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        ),
        ("POST /mcp HTTP/1.1", "Transfer-Encoding: gzip, chunked\r\n"),
        ("POST /mcp HTTP/1.1", "Transfer-Encoding: ,chunked\r\n"),
        ("POST /mcp HTTP/1.1", "Transfer-Encoding: gzip\r\n"),
        (
            "POST /mcp HTTP/1.1",
            "Transfer-Encoding: chunked, chunked\r\n",
        ),
        ("POST /mcp HTTP/1.1", "Transfer-Encoding: identity\r\n"),
        ("POST /mcp HTTP/1.1", "Transfer-Encoding:\r\n"),
        ("POST /mcp HTTP/1.0", "Transfer-Encoding: chunked\r\n"),
        ("POST /mcp HTTP/1.1\r\n X: a", "Content-Length: 2\r\n"),
        ("POST /mcp HTTP/1.1\r\n\tX: a", "Content-Length: 2\r\n"),
        ("POST /mcp HTTP/1.1\nX: a", "Content-Length: 2\r\n"),
        ("POST  /mcp HTTP/1.1", "Content-Length: 2\r\n"),
        ("POST /mcp HTTP/1.1 ", "Content-Length: 2\r\n"),
        ("POST\t/mcp HTTP/1.1", "Content-Length: 2\r\n"),
        ("POST /mcp http/1.1", "Content-Length: 2\r\n"),
        ("POST /m\u{e9} HTTP/1.1", "Content-Length: 2\r\n"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\rPOST /mcp HTTP/1.1", ""),
        ("POST /mcp HTTP/1.1", "X: y\nContent-Length: 2\r\n"),
        ("POST /mcp HTTP/0.9", "Content-Length: 2\r\n"),
        ("POST /mcp HTTP/1.9", "Content-Length: 2\r\n"),
        ("POST /mcp HTTP/2.0", "Content-Length: 2\r\n"),
        ("POST /mcp", "Content-Length: 2\r\n"),
    ] {
        let request = format!("{line}\r\n{good}{more}\r\n{{}}{second}");
        let answer = wire::exchange(edge.house.address, request.as_bytes()).await;
        assert_eq!(answer.status, 400, "{line} {more:?}");
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(
            !answer.text().contains("HTTP/1.1"),
            "{line} {more:?}: a second answer"
        );
        refused += 1;
        let records = edge.house.records.all();
        let bad = records
            .iter()
            .filter(|record| record.contains("THV_REASON=bad-header"));
        assert_eq!(bad.count(), refused, "{records:#?}");
    }
    // What came before is answered in its turn.
    let request = format!("{second}POST /mcp HTTP/1.1\r\n{good}Content-Length: 02\r\n\r\n{{}}");
    let answer = wire::exchange(edge.house.address, request.as_bytes()).await;
    assert_eq!(answer.status, 404);
    edge.nothing_started();
}

/// h1-11: a trailer is dropped, whatever it says.
#[tokio::test]
async fn trailers_are_dropped() {
    let edge = Edge::open().await;
    let body = initialize("2025-11-25");
    let request = format!(
        "POST /mcp HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nAccept: */*\r\nConnection: close\r\n\
         Transfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n{:x}\r\n{body}\r\n0\r\nContent-Length: 1\r\n",
        edge.host,
        body.len()
    );
    let token = format!("Authorization: {}\r\n", edge.token);
    let late = format!("{request}{token}\r\n");
    assert_eq!(
        wire::exchange(edge.house.address, late.as_bytes())
            .await
            .status,
        401
    );
    edge.nothing_started();
    let early = request.replacen("Connection", &format!("{token}Connection"), 1);
    let answer = wire::exchange(edge.house.address, format!("{early}\r\n").as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// h1-17: no other protocol is switched to, and what follows an Upgrade is not read.
#[tokio::test]
async fn an_upgrade_is_the_last_request() {
    let edge = Edge::open().await;
    // Behind what is refused a connection is closed anyway; behind the metadata it stays open else.
    let metadata = "/.well-known/oauth-protected-resource/mcp";
    let refused = ["h2c", "websocket", "TLS/1.2"].map(|protocol| (protocol, "/none", 404));
    for (protocol, path, status) in [refused[0], refused[1], refused[2], ("h2c", metadata, 200)] {
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {0}\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\n\
             HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\nGET /second HTTP/1.1\r\nHost: {0}\r\n\r\n",
            edge.host
        );
        let answer = wire::exchange(edge.house.address, request.as_bytes()).await;
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("connection"), Some("close"), "{path}");
        assert!(!answer.text().contains("HTTP/1.1"), "a second answer");
    }
    let connect = format!(
        "CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\nanything",
        edge.host
    );
    let answer = wire::exchange(edge.house.address, connect.as_bytes()).await;
    assert_eq!(answer.status, 405);
    assert_eq!(answer.header("connection"), Some("close"));
}

/// h1-18: one expectation is known.
#[tokio::test]
async fn an_unknown_expectation_is_refused() {
    let edge = Edge::open().await;
    for expectation in ["foo", "100-continue, foo", "x=y"] {
        assert_eq!(
            edge.post(&[("Expect", expectation)]).await.status,
            417,
            "{expectation}"
        );
        let last = last_decision(&edge.house);
        assert!(last.contains("THV_DECISION=deny "), "{last}");
    }
    edge.nothing_started();
    // The interim answer comes first.
    assert_eq!(edge.post(&[("Expect", "100-Continue")]).await.status, 100);
}

/// h1-19: headers that are read are text; others are not looked at.
#[tokio::test]
async fn high_bytes_are_refused_in_headers_that_are_read() {
    let edge = Edge::open().await;
    for name in [
        "Accept",
        "Mcp-Session-Id",
        "MCP-Protocol-Version",
        "Origin",
        "Mcp-Name",
        "Mcp-Method",
        "Mcp-Param-Region",
        "Last-Event-ID",
        "Host",
        "Content-Type",
        "Content-Encoding",
        "Expect",
        "DPoP",
        "Forwarded",
        "X-Forwarded-For",
    ] {
        assert_eq!(edge.post(&[(name, "\u{e9}")]).await.status, 400, "{name}");
        let last = last_decision(&edge.house);
        assert!(last.contains("THV_REASON=bad-header "), "{name}: {last}");
    }
    let bearer = format!("{}\u{e9}", edge.token);
    assert_eq!(edge.post(&[("Authorization", &bearer)]).await.status, 400);
    edge.nothing_started();
    assert_eq!(edge.post(&[("X-Name", "\u{e9}")]).await.status, 200);
}

/// conn-21: there is no path that answers without a token, whoever asks; liveness is the watchdog's.
#[tokio::test]
async fn no_health_path_is_open_to_anybody() {
    let edge = Edge::open().await;
    for path in [
        "/health", "/healthz", "/livez", "/readyz", "/ping", "/metrics", "/status",
    ] {
        for agent in ["kube-probe/1.33", "GoogleHC/1.0", "ELB-HealthChecker/2.0"] {
            let more = [("User-Agent", agent), ("Authorization", "")];
            assert_eq!(
                edge.send("GET", path, &more, "").await.status,
                404,
                "{path}"
            );
            assert_eq!(
                edge.send("GET", "/mcp", &more, "").await.status,
                401,
                "{agent}"
            );
        }
    }
    edge.nothing_started();
}

/// The status that comes while more is sent than anybody reads.
async fn flooded(address: std::net::SocketAddr, request: &[u8]) -> u16 {
    let stream = TcpStream::connect(address).await.unwrap();
    let (reading, mut writing) = stream.into_split();
    let request = request.to_vec();
    // It may be cut off at any time.
    let sent = tokio::spawn(async move {
        let _ = writing.write_all(&request).await;
        writing
    });
    let mut line = String::new();
    let mut reading = BufReader::new(reading);
    timeout(PATIENCE, reading.read_line(&mut line))
        .await
        .unwrap()
        .unwrap();
    drop(sent);
    line.split(' ')
        .nth(1)
        .unwrap_or_else(|| panic!("{line:?}"))
        .parse()
        .unwrap()
}

/// conn-11: a client that has closed its half has gone, as far as HTTP/1.1 can tell: its call is
/// the session's and goes on, its connection ends, and nobody else notices.
#[tokio::test]
async fn a_half_closed_connection_ends_and_its_call_goes_on() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    let waits = call(7, "wait", json!({ "for": "it" }));
    stream
        .write_all(&alice.bytes("POST", &waits))
        .await
        .unwrap();
    // Once it is with the server, the client closes its half.
    while !alice
        .seen()
        .await
        .iter()
        .any(|line| line.contains(r#""for":"it""#))
    {}
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    let seen = alice.seen().await;
    assert!(
        !seen
            .iter()
            .any(|line| line.contains("notifications/cancelled")),
        "{seen:?}"
    );
    let released = alice.call("release", json!({ "for": "it" })).await;
    assert_eq!(released.said(), "done");
}

/// conn-11, mcp-T7: a modern client's half-closed connection is a closed one: its request is cancelled, and that one alone.
#[tokio::test]
async fn a_half_closed_connection_cancels_a_modern_request() {
    let house = house().argument("--modern").open().await;
    let alice = house.caller("alice");
    let waits = |what: &str| {
        let params = json!({ "name": "wait", "arguments": { "for": what } });
        let body = modern::body(1, "tools/call", params, json!({}));
        modern::bytes(&alice, "tools/call", Some("wait"), &body)
    };
    let mut half = TcpStream::connect(house.address).await.unwrap();
    half.write_all(&waits("half")).await.unwrap();
    let kept = tokio::spawn({
        let (address, waits) = (house.address, waits("kept"));
        async move { wire::exchange(address, &waits).await }
    });
    let until = async |what: &str| {
        let seen = async {
            loop {
                let lines = modern::seen(&alice).await;
                if let Some(line) = lines.iter().find(|line| line.contains(what)) {
                    return serde_json::from_str::<Value>(line).unwrap();
                }
            }
        };
        timeout(PATIENCE, seen).await.unwrap()
    };
    let number = until(r#""for":"half""#).await["id"].clone();
    until(r#""for":"kept""#).await;
    half.shutdown().await.unwrap();
    let mut rest = Vec::new();
    let read = timeout(PATIENCE, half.read_to_end(&mut rest)).await;
    read.unwrap().unwrap();
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    let cancelled = until("notifications/cancelled").await;
    assert_eq!(cancelled["params"]["requestId"], number);
    modern::tool(&alice, "release", json!({ "for": "kept" })).await;
    assert_eq!(kept.await.unwrap().said(), "released");
}

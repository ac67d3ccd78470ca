//! Clients that take their time: over a head, a body, an answer. The gateway's clock is moved on, so that nobody waits.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    faults::pass,
    frames::{DATA, END_HEADERS, END_STREAM, Frames, HEADERS, SETTINGS, block, frame},
    house::{Caller, House, call, house, initialize},
    identity::last_decision,
    modern, tls,
    wire::{self, Events, PATIENCE},
};

/// A connection on which so much has been said.
async fn said(house: &House, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream
}

/// All that comes until it is closed.
async fn rest(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    // One that is cut may be reset.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut text))
        .await
        .expect("it stays open");
    String::from_utf8_lossy(&text).into_owned()
}

/// Lets the gateway see what has been said, and what its clock says: it has turns enough for both in the one thread that
/// it shares with this test.
async fn settle() {
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
}

/// Whether it has not been closed, and nothing has come on it.
fn is_open(stream: &TcpStream) -> bool {
    let mut some = [0; 1];
    matches!(stream.try_read(&mut some), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

/// conn-1, h1-20: a head that does not come to its end is waited for ten seconds, whoever sends it and however it
/// comes; what is only kept open, as long; and others are served meanwhile.
#[tokio::test]
async fn slow_heads_are_closed_after_ten_seconds_and_keep_nobody_waiting() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let whole = alice.bytes("POST", &call(1, "echo", json!({ "marker": "slow-head" })));
    let asked = String::from_utf8(whole.clone()).unwrap();
    let (head, _) = asked.split_once("\r\n\r\n").unwrap();
    let mut streams = Vec::new();
    for _ in 0..20 {
        for part in [
            "",
            "P",
            "PRI * HTT",
            &head[..20],
            head,
            &head[..head.len() - 1],
        ] {
            streams.push(said(&house, part.as_bytes()).await);
        }
        // One that has had its answer, and asks nothing more.
        let kept = format!(
            "GET /.well-known/oauth-protected-resource HTTP/1.1\r\nHost: {}\r\n\r\n",
            house.address
        );
        let mut stream = said(&house, kept.as_bytes()).await;
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0);
        }
        let text = String::from_utf8_lossy(&answer);
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        streams.push(stream);
    }
    let (mut dripping, mut late) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        dripping.push(said(&house, b"POST /mcp HTTP/1.1\r\nX: ").await);
        late.push(said(&house, b"P").await);
    }
    house.serves("bob").await;
    for _ in 0..3 {
        // What the test itself takes passes, too.
        pass(Duration::from_secs(2)).await;
        house.serves("bob").await;
        settle().await;
        let all = streams.iter().chain(&dripping).chain(&late);
        for (number, stream) in all.enumerate() {
            assert!(is_open(stream), "{number} has its ten seconds");
        }
        for stream in &mut dripping {
            stream.write_all(b"y").await.unwrap();
        }
    }
    // What begins like the other version gains no more than a second by it.
    for stream in &mut late {
        stream.write_all(b"OST /mcp HTTP/1.1\r\n").await.unwrap();
    }
    house.serves("bob").await;
    pass(Duration::from_secs(6)).await;
    settle().await;
    for stream in streams.into_iter().chain(dripping).chain(late) {
        assert!(!is_open(&stream), "it has had its ten seconds");
        let text = rest(stream).await;
        assert!(
            text.is_empty() || text.starts_with("HTTP/1.1 408"),
            "{text}"
        );
    }
    let seen = alice.seen().await;
    assert!(
        !seen.iter().any(|line| line.contains("slow-head")),
        "{seen:?}"
    );
    assert_eq!(wire::exchange(house.address, &whole).await.status, 200);
}

/// conn-2: a body that comes byte by byte is refused after thirty seconds, over either version; its beginning has
/// reached no server, and others are served meanwhile.
#[tokio::test]
async fn a_slow_body_is_refused_after_thirty_seconds() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let body = call(1, "echo", json!({ "marker": "slow-body" }));
    let whole = alice.bytes("POST", &body);
    let cut = whole.len() - 60;
    let chunked = String::from_utf8(alice.bytes("POST", "")).unwrap();
    let chunked = chunked.replace("Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n");
    let mut announced = said(&house, &whole[..cut]).await;
    let mut unending = said(&house, format!("{chunked}1\r\n{{\r\n").as_bytes()).await;
    for second in 0..24 {
        pass(Duration::from_secs(1)).await;
        announced
            .write_all(&whole[cut + second..][..1])
            .await
            .unwrap();
        unending.write_all(b"1\r\n \r\n").await.unwrap();
        if second % 10 == 0 {
            house.serves("bob").await;
        }
        if second % 10 == 0 {
            settle().await;
        }
        assert!(is_open(&announced) && is_open(&unending), "{second}");
    }
    let before = house.records.count("decision");
    pass(Duration::from_secs(7)).await;
    for stream in [announced, unending] {
        let text = rest(stream).await;
        assert!(text.starts_with("HTTP/1.1 408"), "{text}");
        assert!(text.contains("the body took too long"), "{text}");
        assert!(text.contains("connection: close"), "{text}");
    }
    house.records.wait_for_more("decision", before + 1).await;
    let last = last_decision(&house);
    assert!(
        last.contains("THV_DECISION=deny ") && last.contains("THV_REASON=body-timeout "),
        "{last}"
    );
    let seen = alice.seen().await;
    assert!(
        !seen.iter().any(|line| line.contains("slow-body")),
        "{seen:?}"
    );
    house.serves("alice").await;
}

/// conn-5, h1-14: what is too large is refused when that is known, not when all of it has come; what was
/// announced and did not come takes no memory.
#[tokio::test]
async fn a_body_over_the_cap_is_refused_while_it_comes() {
    let house = house().with("[limits]\nbody = \"64K\"\n").open().await;
    let alice = house.session("alice").await;
    let head = String::from_utf8(alice.bytes("POST", "")).unwrap();
    let length = |length: u64| {
        let announced = format!("Content-Length: {length}\r\n");
        head.replace("Content-Length: 0\r\n", &announced)
    };
    let chunked = head.replace("Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n");
    let much = format!("8000\r\n{}\r\n", "x".repeat(0x8000)).repeat(3);
    for (request, status) in [
        (length((64 << 10) + 1), "413"),
        (length(u64::MAX), "413"),
        (format!("{chunked}{much}"), "413"),
        (format!("{chunked}{much}7fffffffffffffff\r\n"), "413"),
    ] {
        let before = house.records.count("decision");
        let text = rest(said(&house, request.as_bytes()).await).await;
        let told = format!("HTTP/1.1 {status}");
        assert!(text.starts_with(&told), "{text}");
        assert!(text.contains("connection: close"), "{text}");
        assert_eq!(house.records.count("decision"), before + 1);
        let last = last_decision(&house);
        assert!(last.contains("THV_REASON=body-too-large "), "{last}");
    }
    let seen = alice.seen().await;
    assert!(!seen.iter().any(|line| line.contains("xxx")));
}

/// conn-8: of a body that nobody reads nothing is taken for a request, with a token or without.
#[tokio::test]
async fn nothing_of_an_unread_body_is_a_request() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let mut smuggled = alice.clone();
    smuggled.session = Some("5".repeat(32));
    let inner = smuggled.bytes("POST", &call(1, "echo", json!({ "marker": "smuggled" })));
    let inner = String::from_utf8(inner).unwrap();
    let second = format!(
        "GET /second HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        house.address
    );
    let host = format!(
        "Host: {}\r\nContent-Type: application/json\r\n",
        house.address
    );
    let mut stranger = 0;
    for (line, more) in [
        ("POST /none HTTP/1.1", ""),
        ("PUT /mcp HTTP/1.1", ""),
        ("POST /mcp HTTP/1.1", ""),
        ("GET /mcp HTTP/1.1", ""),
        ("POST /mcp HTTP/1.1", "Authorization: Bearer x\r\n"),
        ("POST /mcp HTTP/1.1", "Origin: http://evil.example\r\n"),
    ] {
        for size in [0, 100_000] {
            let body = format!("{inner}{}", " ".repeat(size));
            let request = format!(
                "{line}\r\n{host}{more}Content-Length: {}\r\n\r\n{body}{second}",
                body.len()
            );
            let text = rest(said(&house, request.as_bytes()).await).await;
            let answers = text.matches("HTTP/1.1 ").count();
            assert!((1..=2).contains(&answers), "{line}: {text}");
            assert_eq!(
                text.contains("no such path"),
                answers == 2 || line.contains("none")
            );
            stranger += 1;
        }
    }
    let records = house.records.all();
    let refused = records
        .iter()
        .filter(|it| it.contains("THV_DECISION=deny "));
    assert!(refused.count() >= stranger);
    assert!(!house.records.have(&["THV_REASON=session-unknown"]));
    // The control: that is what it would have been.
    let answer = wire::exchange(house.address, inner.as_bytes()).await;
    assert_eq!(answer.status, 404);
    assert!(house.records.have(&["THV_REASON=session-unknown"]));
}

/// A modern call, with log messages of every level.
fn asked(caller: &Caller, id: u32, name: &str, arguments: Value) -> Vec<u8> {
    let level = json!({ "io.modelcontextprotocol/logLevel": "debug" });
    let params = json!({ "name": name, "arguments": arguments });
    let body = modern::body(id, "tools/call", params, level);
    modern::bytes(caller, "tools/call", Some(name), &body)
}

/// conn-3: who does not read what is said to him is sent away after half a minute, his call is cancelled (his alone,
/// and on record), and what his server says meanwhile is read and reaches others.
#[tokio::test]
async fn a_client_that_reads_nothing_is_sent_away_and_its_call_is_cancelled() {
    let house = house().argument("--modern").open().await;
    let alice = house.caller("alice");
    let burst = json!({ "count": 64, "size": 1 << 19, "for": "never" });
    let mut stalled = said(&house, &asked(&alice, 5, "burst", burst)).await;
    let waits = json!({ "name": "wait", "arguments": { "for": "kept" } });
    // Without a level, so that what the server says is none of it.
    let waits = modern::body(6, "tools/call", waits, json!({}));
    let waits = modern::bytes(&alice, "tools/call", Some("wait"), &waits);
    let kept = said(&house, &waits).await;
    let until = async |what: &str| {
        let heard = async {
            loop {
                let lines = modern::seen(&alice).await;
                if lines.iter().any(|line| line.contains(what)) {
                    return lines;
                }
            }
        };
        timeout(PATIENCE, heard).await.expect(what)
    };
    // Behind 32 MiB that he does not take.
    until("\"kept\"").await;
    house.serves("bob").await;
    let cancelled = "notifications/cancelled";
    assert!(
        !modern::seen(&alice)
            .await
            .iter()
            .any(|line| line.contains(cancelled))
    );
    pass(Duration::from_secs(31)).await;
    let lines = until(cancelled).await;
    let number = |what: &str| {
        let line = lines.iter().find(|line| line.contains(what)).unwrap();
        serde_json::from_str::<Value>(line).unwrap()
    };
    assert_eq!(
        number(cancelled)["params"]["requestId"],
        number("\"burst\"")["id"]
    );
    assert_eq!(
        lines.iter().filter(|line| line.contains(cancelled)).count(),
        1
    );
    assert!(house.records.have(&["THV_REASON=client-gone"]));
    let mut text = Vec::new();
    let _ = timeout(PATIENCE, stalled.read_to_end(&mut text))
        .await
        .unwrap();
    assert!(text.len() < 24 << 20, "{} bytes were kept", text.len());
    modern::tool(&alice, "release", json!({ "for": "kept" })).await;
    assert!(rest(kept).await.contains("released"));
}

/// conn-12: a connection that is reset in the middle of an answer is one that was closed: its call is cancelled, and
/// on record as given up.
#[tokio::test]
async fn a_reset_in_the_middle_of_an_answer_cancels_its_call() {
    use nix::sys::socket::{setsockopt, sockopt::Linger};
    let house = house().argument("--modern").open().await;
    let alice = house.caller("alice");
    let notes = json!({ "count": 3, "size": 10, "for": "never" });
    let mut events = Events::open(house.address, &asked(&alice, 7, "burst", notes)).await;
    assert_eq!(events.next().await["method"], "notifications/message");
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(events.stream(), Linger, &at_once).unwrap();
    drop(events);
    let cancelled = async {
        while !modern::seen(&alice)
            .await
            .iter()
            .any(|line| line.contains("notifications/cancelled"))
        {}
    };
    timeout(PATIENCE, cancelled).await.expect("no cancel");
    assert!(
        house
            .records
            .have(&["THV_EVENT=outcome ", "THV_REASON=client-gone"])
    );
    assert_eq!(modern::tool(&alice, "echo", json!({})).await.status, 200);
}

/// sse-5: a stream says every fifteen seconds that it is, and that nobody on the way may keep or hold back what it
/// says, over either version's stream.
#[tokio::test]
async fn an_open_stream_says_that_it_is() {
    let house = house().open().await;
    let mut alice = house.caller("alice");
    let answer = alice.post(&initialize("2025-11-25")).await;
    alice.session = answer.header("mcp-session-id").map(str::to_owned);
    let waits = alice.stream(&call(3, "wait", json!({ "for": "x" }))).await;
    let own = Events::open(house.address, &alice.bytes("GET", "")).await;
    for mut stream in [own, waits] {
        let mut head = Vec::new();
        // What takes long is answered by a stream, some time after it was asked.
        pass(Duration::from_secs(2)).await;
        loop {
            let line = stream.line().await;
            if line.starts_with("data:") {
                break;
            }
            head.push(line.to_ascii_lowercase());
        }
        for field in [
            "content-type: text/event-stream",
            "x-accel-buffering: no",
            "cache-control: no-store",
        ] {
            assert!(head.iter().any(|line| line == field), "{field}: {head:?}");
        }
        for _ in 0..3 {
            pass(Duration::from_secs(15)).await;
            assert_eq!(stream.field(":").await, "");
        }
    }
}

/// conn-13: a client of HTTP/2 that takes nothing of its answer is sent away after half a minute, its call is cancelled,
/// and others are served meanwhile.
#[tokio::test]
async fn a_window_that_stays_shut_ends_its_connection_and_its_call() {
    let house = house().argument("--modern").open().await;
    let alice = house.caller("alice");
    let (host, bearer) = (
        house.address.to_string(),
        format!("Bearer {}", house.token("alice")),
    );
    let head = block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/mcp"),
        (":authority", &host),
        ("authorization", &bearer),
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", "tools/call"),
        ("mcp-name", "burst"),
    ]);
    let level = json!({ "io.modelcontextprotocol/logLevel": "debug" });
    let arguments = json!({ "count": 20, "size": 1000, "for": "never" });
    let params = json!({ "name": "burst", "arguments": arguments });
    let body = modern::body(1, "tools/call", params, level);
    let mut client = Frames::open(house.address).await;
    // SETTINGS_INITIAL_WINDOW_SIZE = 0
    client
        .send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]))
        .await;
    client.send(&frame(HEADERS, END_HEADERS, 1, &head)).await;
    client
        .send(&frame(DATA, END_STREAM, 1, body.as_bytes()))
        .await;
    let seen = async |what: &str| {
        let seen = async {
            while !modern::seen(&alice)
                .await
                .iter()
                .any(|line| line.contains(what))
            {}
        };
        timeout(PATIENCE, seen).await.expect(what);
    };
    seen("burst").await;
    // The answer has begun.
    while client.next().await.expect("an answer").0 != HEADERS {}
    for _ in 0..4 {
        house.serves("bob").await;
        pass(Duration::from_secs(16)).await;
    }
    seen("notifications/cancelled").await;
    assert!(
        house
            .records
            .have(&["THV_EVENT=outcome ", "THV_REASON=client-gone"])
    );
    while client.next().await.is_some() {}
}

/// conn-1: what comes before a request has its ten seconds as well: the words of a proxy, and a handshake.
#[tokio::test]
async fn slow_beginnings_are_closed() {
    let proxied =
        "[http]\ntrusted-proxies = [\"127.0.0.1\"]\nclient-address = \"proxy-protocol\"\n";
    let proxied = house().with(proxied).open().await;
    let secured = tls::secured().open().await;
    for (house, parts) in [
        (
            &proxied,
            &[
                "",
                "PROXY ",
                "PROXY TCP4 192.0.2.7 ",
                "\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c",
            ][..],
        ),
        (&secured, &["", "\x16", "\x16\x03\x01\x02\0\x01\0\x01"]),
    ] {
        let mut streams = Vec::new();
        for part in parts.repeat(10) {
            streams.push(said(house, part.as_bytes()).await);
        }
        settle().await;
        pass(Duration::from_secs(4)).await;
        settle().await;
        for stream in &streams {
            assert!(is_open(stream));
        }
        pass(Duration::from_secs(7)).await;
        for stream in streams {
            assert_eq!(rest(stream).await, "");
        }
    }
}

//! Servers that speak HTTP: in the sandbox, on their own loopback, and elsewhere.

use std::path::Path;

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt, net::TcpStream, time::timeout};

use crate::{
    house::{Caller, House, Plan, call, house},
    wire::{self, Answer, Events, PATIENCE},
};

/// A house whose server speaks HTTP inside the sandbox.
pub(crate) fn inside(arguments: &[&str]) -> Plan {
    let server = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/it/servers/streamable.py"
    );
    let mut command = vec!["/usr/bin/python3", "-u", server, "8080"];
    command.extend(arguments);
    house()
        .command(&command)
        .top("transport = \"http\"\nport = 8080\n")
}

/// The same, whose server listens at a socket in place of a port.
fn at_a_socket(arguments: &[&str]) -> Plan {
    let server = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/it/servers/streamable.py"
    );
    let mut command = vec!["/usr/bin/python3", "-u", server, "/run/mcp/it.sock"];
    command.extend(arguments);
    house()
        .command(&command)
        .top("transport = \"http\"\nsocket = \"/run/mcp/it.sock\"\n")
}

/// What has reached the server of this caller.
pub(crate) async fn seen(caller: &Caller) -> Vec<Value> {
    serde_json::from_str(&caller.call("seen", json!({})).await.said()).unwrap()
}

pub fn header<'a>(seen: &'a Value, name: &str) -> Option<&'a str> {
    seen["headers"][name].as_str()
}

pub async fn modern(
    caller: &Caller,
    method: &str,
    name: Option<&str>,
    mut params: Value,
) -> Answer {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    if let Some(name) = name {
        params["name"] = name.into();
    }
    let body = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{params}}}"#);
    let mut headers = vec![
        ("MCP-Protocol-Version", "2026-07-28"),
        ("Mcp-Method", method),
    ];
    headers.extend(name.map(|name| ("Mcp-Name", name)));
    wire::exchange(caller.address, &caller.bytes_with("POST", &headers, &body)).await
}

pub async fn tool(caller: &Caller, name: &str, arguments: Value) -> Answer {
    modern(
        caller,
        "tools/call",
        Some(name),
        json!({ "arguments": arguments }),
    )
    .await
}

async fn stream(house: &House, caller: &Caller) -> Events {
    Events::open(house.address, &caller.bytes("GET", "")).await
}

/// A server on its own loopback is spoken to as one on its standard streams would be.
#[tokio::test]
async fn a_server_in_the_sandbox_may_speak_http() {
    let house = inside(&["--late"]).open().await;
    let alice = house.session("alice").await;
    let answer = alice.call("echo", json!({ "n": 1 })).await;
    assert_eq!(answer.said(), "{\"n\": 1}");
    let note = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    assert_eq!(alice.post(note).await.status, 202);
    let seen = seen(&alice).await;
    let methods: Vec<_> = seen
        .iter()
        .map(|it| it["method"].as_str().unwrap())
        .collect();
    assert_eq!(
        methods.iter().filter(|method| **method == "POST").count(),
        4
    );
    for request in &seen {
        assert_eq!(header(request, "host"), Some("127.0.0.1:8080"));
        assert_eq!(header(request, "authorization"), None);
        assert_eq!(request["path"], "/mcp");
    }
    assert_eq!(header(&seen[0], "mcp-session-id"), None);
    let theirs = header(&seen[1], "mcp-session-id");
    assert!(theirs.unwrap().starts_with("s0-"));
    assert_eq!(header(&seen[1], "mcp-protocol-version"), Some("2025-11-25"));
    // Its own id is not the client's business.
    assert_ne!(alice.session.as_deref(), theirs);
    assert_eq!(alice.send("DELETE", "").await.status, 204);
    house.records.wait_for("child-exited").await;
    assert_eq!(alice.call("echo", json!({})).await.status, 404);
}

/// Events, several lines of data, messages of its own and questions go to whom they are for.
#[tokio::test]
async fn what_a_server_says_on_its_streams_arrives() {
    let house = inside(&[]).open().await;
    let alice = house.session("alice").await;
    let answer = alice.call("progress", json!({})).await;
    let events: Vec<_> = answer
        .text()
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str::<Value>(data).unwrap())
        .collect();
    assert_eq!(events.len(), 3, "{}", answer.text());
    assert_eq!(
        events[1]["params"],
        json!({ "progressToken": "p-progress", "progress": 2 })
    );
    assert_eq!(events[2]["result"]["content"][0]["text"], "done");

    let mut own = stream(&house, &alice).await;
    assert_eq!(own.field("id: ").await, "0-0");
    let note = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    assert_eq!(alice.post(note).await.status, 202);
    alice.call("announce", json!({})).await;
    assert_eq!(
        own.next().await["method"],
        "notifications/tools/list_changed"
    );

    let mut asked = alice.stream(&call(9, "ask", json!({}))).await;
    assert_eq!(asked.next().await["method"], "elicitation/create");
    let reply = r#"{"jsonrpc":"2.0","id":"mine-1","result":{"action":"decline"}}"#;
    assert_eq!(alice.post(reply).await.status, 202);
    let text = asked.next().await["result"]["content"][0]["text"].clone();
    assert!(text.as_str().unwrap().contains("decline"), "{text}");
}

/// json-22: the server's bytes are the client's, but for the id and line breaks between tokens.
#[tokio::test]
async fn an_answer_over_http_is_passed_on_byte_for_byte() {
    let house = inside(&[]).open().await;
    let alice = house.session("alice").await;
    let answer = alice.call("exact", json!({})).await;
    assert_eq!(
        answer.text(),
        "{\"jsonrpc\":\"2.0\",  \"result\" : {\"big\":9007199254740993, \"e\":1.0e+2,  \"u\":\"\\u00e9é\"}, \"id\":1}"
    );
}

/// mcp-L3, mcp-L6: a server may end a request's stream before the answer; it is taken up where it was.
#[tokio::test]
async fn a_stream_that_ends_early_is_taken_up_again() {
    let house = inside(&[]).open().await;
    let alice = house.session("alice").await;
    let answer = alice.call("polls", json!({})).await;
    assert_eq!(answer.json()["result"]["content"][0]["text"], "done");
    let text = answer.text();
    for number in 0..3 {
        assert_eq!(
            text.matches(&format!("\"poll {number}\"")).count(),
            1,
            "{text}"
        );
    }
}

/// mcp-L6: the server's own stream is taken up again where it was cut.
#[tokio::test]
async fn a_servers_own_stream_is_taken_up_again() {
    let house = inside(&[]).open().await;
    let alice = house.session("alice").await;
    let mut own = stream(&house, &alice).await;
    assert_eq!(own.field("id: ").await, "0-0");
    let note = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    assert_eq!(alice.post(note).await.status, 202);
    assert_eq!(alice.call("cut", json!({})).await.said(), "cut");
    assert_eq!(
        own.next().await["method"],
        "notifications/tools/list_changed"
    );
    let seen = seen(&alice).await;
    let again = |it: &&Value| header(it, "last-event-id") == Some("own-1");
    assert_eq!(seen.iter().filter(again).count(), 1);
}

/// Each way in which a server can answer wrongly has its own answer, and nothing else is harmed, whether it listens
/// at a port or at a socket.
#[tokio::test]
async fn what_is_no_answer_has_its_own() {
    for plan in [inside(&[]), at_a_socket(&[])] {
        let house = plan.open().await;
        each_has_its_own(&house).await;
        crash(&house).await;
    }
}

pub(crate) async fn each_has_its_own(house: &House) {
    let (alice, bob) = (house.session("alice").await, house.session("bob").await);
    for (tool, arguments, status, reason) in [
        ("garbage", json!({}), 200, "server-protocol-error"),
        ("other-type", json!({}), 200, "server-protocol-error"),
        ("unanswered", json!({}), 0, "server-ended"),
        ("huge", json!({}), 200, "message-too-large"),
        ("endless", json!({}), 200, "message-too-large"),
        ("drop", json!({}), 200, "server-ended"),
        ("status", json!({ "status": 500 }), 200, "server-refused"),
        ("status", json!({ "status": 401 }), 200, "server-refused"),
        ("status", json!({ "status": 202 }), 200, "server-refused"),
        (
            "redirect",
            json!({ "to": "http://127.0.0.1:8080/elsewhere" }),
            200,
            "server-refused",
        ),
    ] {
        let answer = alice.call(tool, arguments).await;
        let error = &answer.json()["error"];
        assert_eq!(error["data"]["reason"], reason, "{tool}");
        if reason == "message-too-large" {
            let message = error["message"].as_str().unwrap();
            assert!(message.contains("4194304 bytes") && message.contains("`limits.message`"));
        }
        if status != 0 {
            assert_eq!(answer.status, status, "{tool}");
        }
        assert_eq!(answer.header("www-authenticate"), None, "{tool}");
        assert_eq!(bob.call("echo", json!({})).await.said(), "{}", "{tool}");
    }
    // An error of the protocol's is the server's own answer, whatever its status.
    let answer = alice
        .call("failure", json!({ "status": 400, "code": -32602 }))
        .await;
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_i64()),
        (200, Some(-32602))
    );
    assert!(seen(&alice).await.iter().all(|it| it["path"] == "/mcp"));
    let answer = alice.call("exact", json!({})).await;
    assert!(
        answer.text().contains("9007199254740993"),
        "{}",
        answer.text()
    );
}

/// One server's crash is its own client's trouble.
async fn crash(house: &House) {
    let (alice, bob) = (house.session("alice").await, house.session("bob").await);
    let crashed = alice.call("crash", json!({})).await;
    assert_eq!(
        crashed.json()["error"]["data"]["reason"],
        "server-ended",
        "{}",
        crashed.text()
    );
    assert_eq!(bob.call("echo", json!({})).await.said(), "{}");
}

/// The server has ended its own session: so has ours, and a client begins anew.
#[tokio::test]
async fn a_forgotten_session_is_the_end_of_ours() {
    let house = inside(&[]).open().await;
    let mut alice = house.session("alice").await;
    alice.call("forget", json!({})).await;
    let answer = alice.call("echo", json!({})).await;
    assert_eq!(answer.json()["error"]["data"]["reason"], "server-ended");
    house.records.wait_for("child-died").await;
    assert_eq!(alice.call("echo", json!({})).await.status, 404);
    alice.session = None;
    alice.initialize().await;
    assert_eq!(alice.call("echo", json!({})).await.said(), "{}");
}

/// fault-16: a crash of a server that speaks HTTP is told as any crash, to its own callers alone.
#[tokio::test]
async fn a_crash_is_told_to_whom_it_concerns() {
    let house = inside(&[]).open().await;
    let (alice, bob) = (house.session("alice").await, house.session("bob").await);
    let answer = alice.call("crash", json!({})).await;
    assert_eq!(
        (
            answer.status,
            answer.json()["error"]["data"]["reason"].clone()
        ),
        (200, json!("server-ended"))
    );
    house.records.wait_for("child-died").await;
    assert!(house.records.have(&["child-died", "code 3"]));
    assert_eq!(bob.call("echo", json!({})).await.said(), "{}");
}

/// A server that does not listen is not started, and the journal says why: all that it has written, and in one line what
/// speaks of an error, which need not be its last.
#[tokio::test]
async fn a_server_that_does_not_listen_has_not_started() {
    for (argument, words, plan) in [
        ("--never", "I do not listen", inside as fn(&[&str]) -> Plan),
        ("--ends", "I cannot go on", inside),
        ("--never", "I do not listen", at_a_socket),
        ("--ends", "I cannot go on", at_a_socket),
    ] {
        let house = plan(&[argument])
            .with("[limits]\nstart-timeout = \"1s\"\n")
            .open()
            .await;
        let mut alice = house.caller("alice");
        let answer = alice.initialize().await;
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(!answer.text().contains(words), "{}", answer.text());
        for (event, words) in [
            ("layer-failed", words),
            ("child-stderr", words),
            ("child-stderr", "v1.2.3"),
        ] {
            let there = house.records.have(&[&format!("THV_EVENT={event} "), words]);
            assert!(there, "{event}, {words}: {:#?}", house.records.all());
        }
    }
}

/// probe-70: a server may say much before it listens.
#[tokio::test]
async fn a_server_that_says_much_first_listens_all_the_same() {
    let house = inside(&["--wordy"]).open().await;
    let alice = house.session("alice").await;
    assert_eq!(alice.call("echo", json!({})).await.said(), "{}");
    house.records.until("bytes left out").await;
}

/// More calls at once than there are connections wait for their turn, and a cancel gets through.
#[tokio::test]
async fn many_calls_share_the_connections_that_there_are() {
    let house = inside(&[]).open().await;
    let alice = house.session("alice").await;
    let calls: Vec<_> = (0..48)
        .map(|n| {
            let alice = alice.clone();
            tokio::spawn(async move { alice.post(&call(n, "hold", json!({}))).await })
        })
        .collect();
    let hang = {
        let alice = alice.clone();
        tokio::spawn(async move { alice.post(&call(99, "hang", json!({}))).await })
    };
    // All of them are on their way when one is cancelled.
    let cancel =
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":99}}"#;
    timeout(PATIENCE, async {
        while !hang.is_finished() {
            assert_eq!(alice.post(cancel).await.status, 202);
        }
    })
    .await
    .unwrap();
    assert_eq!(
        hang.await.unwrap().json()["error"]["data"]["reason"],
        "cancelled"
    );
    let release = r#"{"jsonrpc":"2.0","id":"mine-2","result":{}}"#;
    // Nobody asked for it: the gateway does not pass it on.
    assert_eq!(alice.post(release).await.status, 400);
    drop(calls);
}

/// The stateless version goes through: its headers say what the body says, and a hang-up is the cancel (mcp-T7).
#[tokio::test]
async fn a_modern_server_in_the_sandbox_is_spoken_to_without_sessions() {
    let house = inside(&["--modern"]).open().await;
    let alice = house.caller("alice");
    assert_eq!(
        tool(&alice, "echo", json!({ "n": 1 })).await.said(),
        "{\"n\": 1}"
    );
    let answer = modern(&alice, "tools/list", None, json!({})).await;
    assert!(answer.json()["result"]["tools"].as_array().unwrap().len() > 10);
    let answer = tool(&alice, "failure", json!({ "status": 404, "code": -32601 })).await;
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_i64()),
        (404, Some(-32601))
    );
    let params = json!({ "name": "hang", "arguments": {}, "_meta": {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    } });
    let body = format!(r#"{{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{params}}}"#);
    let headers = [
        ("MCP-Protocol-Version", "2026-07-28"),
        ("Mcp-Method", "tools/call"),
        ("Mcp-Name", "hang"),
    ];
    let request = alice.bytes_with("POST", &headers, &body);
    let mut hang = Some(TcpStream::connect(house.address).await.unwrap());
    hang.as_mut().unwrap().write_all(&request).await.unwrap();
    timeout(PATIENCE, async {
        loop {
            let seen = tool(&alice, "seen", json!({})).await.said();
            let seen: Vec<Value> = serde_json::from_str(&seen).unwrap();
            let has = |word: &str| {
                seen.iter()
                    .any(|it| it["body"].as_str().is_some_and(|body| body.contains(word)))
            };
            assert!(seen.iter().all(|it| header(it, "mcp-session-id").is_none()));
            assert!(!has("cancelled"), "closing is the cancel");
            if has("\"hang\"") {
                hang.take();
            }
            if seen.iter().any(|it| it["method"] == "HANGUP") {
                break;
            }
        }
    })
    .await
    .unwrap();
}

/// Modern clients of a legacy server that speaks HTTP: the probe's refusal is no harm (mcp-T27).
#[tokio::test]
async fn a_legacy_server_over_http_serves_modern_clients() {
    let house = inside(&[]).open().await;
    let alice = house.caller("alice");
    assert_eq!(
        tool(&alice, "echo", json!({ "n": 2 })).await.said(),
        "{\"n\": 2}"
    );
    let seen: Vec<Value> =
        serde_json::from_str(&tool(&alice, "seen", json!({})).await.said()).unwrap();
    assert!(
        seen[0]["body"]
            .as_str()
            .unwrap()
            .contains("server/discover")
    );
    assert!(seen[1]["body"].as_str().unwrap().contains("initialize"));
    assert_eq!(header(&seen[0], "mcp-method"), Some("server/discover"));
    assert_eq!(header(&seen[1], "mcp-method"), None);
}

/// Its secrets are in its environment, its port is told, and another sandbox's loopback is another.
#[tokio::test]
async fn a_server_is_told_its_port() {
    let house = inside(&[]).with("[env]\nA = \"b\"\n").open().await;
    let alice = house.session("alice").await;
    let environment: Value =
        serde_json::from_str(&alice.call("environ", json!({})).await.said()).unwrap();
    assert_eq!(
        (&environment["PORT"], &environment["A"]),
        (&json!("8080"), &json!("b"))
    );
}

/// The reference server, which is not ours, over its own HTTP: both eras of clients.
#[tokio::test]
async fn the_reference_server_speaks_http_in_the_sandbox() {
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/host/npm/node_modules");
    let server = packages.join("@modelcontextprotocol/server-everything/dist/index.js");
    let (Ok(server), true) = (server.canonicalize(), Path::new("/usr/bin/node").exists()) else {
        eprintln!(
            "skipped: `node` and the packages of tests/host/peers are needed; `tests/run` installs them"
        );
        return;
    };
    let server = server.to_str().unwrap();
    let house = house()
        .command(&["/usr/bin/node", server, "streamableHttp"])
        .readable(&packages.canonicalize().unwrap())
        .top("transport = \"http\"\nport = 3001\n")
        .with("[limits]\nstart-timeout = \"20s\"\n")
        .open()
        .await;
    let alice = house.session("alice").await;
    let note = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    assert_eq!(alice.post(note).await.status, 202);
    let answer = alice.call("echo", json!({ "message": "hello" })).await;
    assert_eq!(answer.said(), "Echo: hello");
    let list = alice
        .post(r#"{"jsonrpc":"2.0","id":2,"method":"tools/list"}"#)
        .await;
    assert!(list.json()["result"]["tools"].as_array().unwrap().len() > 5);
    let long = alice
        .call(
            "trigger-long-running-operation",
            json!({ "duration": 1, "steps": 2 }),
        )
        .await;
    assert!(
        long.text().contains("notifications/progress"),
        "{}",
        long.text()
    );
    assert!(long.json()["result"].is_object(), "{}", long.text());
    let bob = house.caller("bob");
    let answer = tool(&bob, "echo", json!({ "message": "modern" })).await;
    assert_eq!(answer.said(), "Echo: modern");
    assert_eq!(alice.send("DELETE", "").await.status, 204);
    house.records.wait_for("child-exited").await;
}

/// mcp-T16: parameters that a tool's schema marks are said to its server in headers, as its client has to say them.
#[tokio::test]
async fn parameters_that_a_tool_marks_are_said_in_headers() {
    let house = inside(&["--modern"]).open().await;
    let alice = house.caller("alice");
    let region = json!({ "region": "us-west1" });
    let answer = tool(&alice, "marked", region.clone()).await;
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_i64()),
        (400, Some(-32020))
    );
    // What the server reads there is what the body says, however the client has written it.
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let params = json!({ "name": "marked", "arguments": region, "_meta": meta });
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params });
    let headers = [
        ("MCP-Protocol-Version", "2026-07-28"),
        ("Mcp-Method", "tools/call"),
        ("Mcp-Name", "marked"),
        ("Mcp-Param-Region", "=?base64?dXMtd2VzdDE=?="),
    ];
    let request = alice.bytes_with("POST", &headers, &body.to_string());
    assert_eq!(
        wire::exchange(house.address, &request).await.said(),
        "us-west1"
    );
}

/// A socket in a directory of its own does as well as a port; as many connections as there are calls.
#[tokio::test]
async fn a_server_in_the_sandbox_may_listen_at_a_socket() {
    let house = at_a_socket(&[]).open().await;
    let (alice, bob) = (house.session("alice").await, house.session("bob").await);
    assert_eq!(
        alice.call("echo", json!({ "n": 1 })).await.said(),
        "{\"n\": 1}"
    );
    assert_eq!(
        alice.call("progress", json!({})).await.json()["result"]["content"][0]["text"],
        "done"
    );
    let environment: Value =
        serde_json::from_str(&bob.call("environ", json!({})).await.said()).unwrap();
    assert_eq!(environment["SOCKET"], "/run/mcp/it.sock");
    assert_eq!(environment["PORT"], Value::Null);
    let seen = seen(&alice).await;
    assert!(
        seen.iter()
            .all(|it| header(it, "host") == Some("localhost"))
    );
    assert_eq!(
        tool(&house.caller("carol"), "echo", json!({})).await.said(),
        "{}"
    );
    assert_eq!(alice.send("DELETE", "").await.status, 204);
    house.records.wait_for("child-exited").await;
    assert_eq!(bob.call("echo", json!({})).await.said(), "{}");
}

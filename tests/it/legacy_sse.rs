//! Clients of the transport of 2024-11-05: one stream to hear on, one path to speak to.

use std::{path::Path, time::Duration};

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    house::{Caller, House, Plan, call, house, initialize},
    wire::{self, Answer, Events, PATIENCE},
};

fn sse() -> Plan {
    house().top("legacy-sse = true\n")
}

/// A client with an open stream.
struct Client {
    caller: Caller,
    stream: Events,
    endpoint: String,
}

fn target(bytes: Vec<u8>, path: &str) -> Vec<u8> {
    let text = String::from_utf8(bytes).unwrap();
    text.replacen(" /mcp HTTP", &format!(" {path} HTTP"), 1)
        .into_bytes()
}

impl Client {
    async fn open(house: &House, subject: &str) -> Self {
        let caller = house.caller(subject);
        let request = target(caller.bytes("GET", ""), "/mcp/sse");
        let mut stream = Events::open(house.address, &request).await;
        assert_eq!(stream.field("event: ").await, "endpoint");
        let endpoint = stream.field("data: ").await;
        assert!(
            endpoint.starts_with("/mcp/messages?sessionId="),
            "{endpoint}"
        );
        Self {
            caller,
            stream,
            endpoint,
        }
    }

    async fn initialized(house: &House, subject: &str) -> Self {
        let mut client = Self::open(house, subject).await;
        assert_eq!(client.say(&initialize("2024-11-05")).await.status, 202);
        let answer = client.stream.next().await;
        assert_eq!(answer["result"]["protocolVersion"], "2024-11-05");
        client
    }

    async fn say(&self, body: &str) -> Answer {
        self.say_as(&self.caller, body).await
    }

    async fn say_as(&self, caller: &Caller, body: &str) -> Answer {
        let request = target(caller.bytes("POST", body), &self.endpoint);
        wire::exchange(caller.address, &request).await
    }

    /// What is said on the stream of a message that is refused.
    async fn refused(&mut self, body: &str) -> (Value, i64) {
        let answer = self.say(body).await;
        assert_eq!((answer.status, answer.text()), (202, String::new()));
        let said = self.stream.next().await;
        (said["id"].clone(), said["error"]["code"].as_i64().unwrap())
    }

    async fn call(&mut self, tool: &str, arguments: Value) -> Value {
        let answer = self.say(&call(1, tool, arguments)).await;
        assert_eq!((answer.status, answer.text()), (202, String::new()));
        self.stream.next().await
    }
}

/// Off unless configured: there is no such path.
#[tokio::test]
async fn the_old_transport_is_off_unless_it_is_configured() {
    let house = house().open().await;
    let alice = house.caller("alice");
    for (method, path) in [
        ("GET", "/mcp/sse"),
        ("POST", "/mcp/messages?sessionId=x"),
        ("GET", "/sse"),
    ] {
        let answer = wire::exchange(house.address, &target(alice.bytes(method, ""), path)).await;
        assert_eq!(answer.status, 404, "{path}");
    }
}

/// conn-10: streams that say nothing are counted like sessions, so that nobody holds all of them.
#[tokio::test]
async fn one_users_streams_leave_room_for_anothers() {
    let limits = "[limits]\nsessions = 3\nsessions-per-user = 2\n";
    let house = sse().with(limits).open().await;
    let open = |subject| Client::open(&house, subject);
    let (first, _second) = (open("alice").await, open("alice").await);
    let request = target(first.caller.bytes("GET", ""), "/mcp/sse");
    let refused = wire::exchange(house.address, &request).await;
    assert_eq!(refused.status, 429);
    assert_eq!(
        refused.json()["error"]["data"]["reason"],
        "user-session-limit"
    );
    let _bob = open("bob").await;
}

/// All that a client is told comes on its stream: answers, messages on the way, the server's questions.
#[tokio::test]
async fn a_client_of_the_old_transport_hears_everything_on_its_stream() {
    let house = sse().open().await;
    let mut alice = Client::initialized(&house, "alice").await;
    let note = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    assert_eq!(alice.say(note).await.status, 202);
    let answer = alice.call("echo", json!({ "n": 1 })).await;
    assert_eq!(answer["result"]["content"][0]["text"], "{\"n\": 1}");
    let step = alice.call("progress", json!({})).await;
    assert_eq!(
        step["params"],
        json!({ "progressToken": "p-progress", "progress": 1 })
    );
    assert_eq!(alice.stream.next().await["params"]["progress"], 2);
    assert_eq!(
        alice.stream.next().await["result"]["content"][0]["text"],
        "done"
    );
    let mut said = [
        alice.call("announce", json!({})).await,
        alice.stream.next().await,
    ];
    said.sort_by_key(|message| message["method"].is_null());
    assert_eq!(said[0]["method"], "notifications/tools/list_changed");
    let question = alice.call("ask", json!({})).await;
    assert_eq!(question["method"], "elicitation/create");
    let reply = r#"{"jsonrpc":"2.0","id":"mine-1","result":{"action":"decline"}}"#;
    assert_eq!(alice.say(reply).await.status, 202);
    assert!(
        alice.stream.next().await["result"]["content"][0]["text"]
            .as_str()
            .unwrap()
            .contains("decline")
    );
    // Several at once have each their answer.
    for n in 10..20 {
        assert_eq!(
            alice.say(&call(n, "echo", json!({ "n": n }))).await.status,
            202
        );
    }
    let mut ids = Vec::new();
    for _ in 10..20 {
        ids.push(alice.stream.next().await["id"].as_i64().unwrap());
    }
    ids.sort_unstable();
    assert_eq!(ids, (10..20).collect::<Vec<_>>());
}

/// tok-15, mcp-S2: the session's name opens nothing for another, nor without a token.
#[tokio::test]
async fn the_old_transports_session_belongs_to_who_opened_it() {
    let house = sse().open().await;
    let mut alice = Client::initialized(&house, "alice").await;
    let bob = house.caller("bob");
    let answer = alice.say_as(&bob, &call(1, "echo", json!({}))).await;
    assert_eq!(
        (
            answer.status,
            answer.json()["error"]["data"]["reason"].clone()
        ),
        (404, json!("session-unknown"))
    );
    assert!(house.records.have(&["session-of-another"]));
    let nobody = Caller {
        token: None,
        ..bob.clone()
    };
    let answer = alice.say_as(&nobody, &call(1, "echo", json!({}))).await;
    assert_eq!(answer.status, 401);
    assert!(answer.header("www-authenticate").is_some());
    let answer = wire::exchange(house.address, &target(nobody.bytes("GET", ""), "/mcp/sse")).await;
    assert_eq!(answer.status, 401);
    for query in [
        "",
        "?sessionId=",
        "?sessionId=00",
        "?sessionId=a&sessionId=b",
    ] {
        let request = target(
            bob.bytes("POST", &call(1, "echo", json!({}))),
            &format!("/mcp/messages{query}"),
        );
        let answer = wire::exchange(house.address, &request).await;
        assert!(matches!(answer.status, 400 | 404), "{query}");
    }
    assert_eq!(
        alice.call("echo", json!({})).await["result"]["content"][0]["text"],
        "{}"
    );
}

/// inc-16: the second way in has the same gate: policies decide, lists are filtered, headers and eras are checked.
#[tokio::test]
async fn the_old_transport_leads_through_the_same_gate() {
    let policy = r#"permit (principal, action == Action::"initialize", resource);
        permit (principal, action == Action::"tools/list", resource);
        permit (principal, action == Action::"tools/call", resource == Tool::"echo");"#;
    let house = sse().policy(policy).open().await;
    let mut alice = Client::open(&house, "alice").await;
    let answer = alice.refused(&call(1, "echo", json!({}))).await;
    assert_eq!(answer, (json!(1), -32600), "initialize comes first");
    assert_eq!(alice.say(&initialize("2024-11-05")).await.status, 202);
    alice.stream.next().await;
    let again = alice.refused(&initialize("2024-11-05")).await;
    assert_eq!(again.1, -32600, "and once");
    let answer = alice.say(&call(2, "secret", json!({}))).await;
    assert_eq!(
        (
            answer.status,
            answer.json()["error"]["data"]["reason"].clone()
        ),
        (403, json!("denied"))
    );
    assert_eq!(
        alice
            .say(r#"{"jsonrpc":"2.0","id":3,"method":"tools/list"}"#)
            .await
            .status,
        202
    );
    let tools = alice.stream.next().await["result"]["tools"].clone();
    assert_eq!(tools.as_array().unwrap().len(), 1, "{tools}");
    for (method, path, status) in [
        ("POST", "/mcp/sse", 405),
        ("GET", alice.endpoint.as_str(), 405),
        ("GET", "/mcp/sse/", 404),
    ] {
        let answer =
            wire::exchange(house.address, &target(alice.caller.bytes(method, ""), path)).await;
        assert_eq!(answer.status, status, "{path}");
    }
    for (headers, status) in [
        ([("Origin", "https://evil.example")], 403),
        ([("Content-Type", "text/plain")], 415),
        ([("MCP-Protocol-Version", "1999-01-01")], 400),
    ] {
        let request = alice
            .caller
            .bytes_with("POST", &headers, &call(4, "echo", json!({})));
        let answer = wire::exchange(house.address, &target(request, &alice.endpoint)).await;
        assert_eq!(answer.status, status);
    }
    let modern = r#"{"jsonrpc":"2.0","id":5,"method":"tools/list","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}"#;
    assert_eq!(alice.refused(modern).await, (json!(5), -32600));
    assert_eq!(alice.say("[]").await.status, 400);
    let records = house.records.all();
    assert!(
        records
            .iter()
            .any(|record| record.contains("THV_TOOL=secret") && record.contains("deny"))
    );
}

/// Its clients read no answer to what they post, and some say nothing more after a bad status: what is wrong with a
/// request is told on the stream. So newer clients, which ask `server/discover` first, go on with `initialize`.
#[tokio::test]
async fn a_refused_request_of_the_old_transport_is_answered_on_its_stream() {
    let house = sse().with("[limits]\ncalls = 1\n").open().await;
    let mut alice = Client::open(&house, "alice").await;
    let probe = r#"{"jsonrpc":"2.0","id":"p","method":"server/discover","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}}}"#;
    assert_eq!(alice.refused(probe).await, (json!("p"), -32600));
    assert_eq!(alice.say(&initialize("2024-11-05")).await.status, 202);
    alice.stream.next().await;
    let unknown = r#"{"jsonrpc":"2.0","id":2,"method":"no/such"}"#;
    assert_eq!(alice.refused(unknown).await, (json!(2), -32601));
    let odd = call(3, "no tool\u{202e}", json!({}));
    assert_eq!(alice.refused(&odd).await, (json!(3), -32602));
    let denied = ["THV_REASON=method-unknown", "THV_STATUS=202"];
    assert!(house.records.have(&denied));
    // What was permitted and found no room as well.
    assert_eq!(alice.say(&call(4, "hang", json!({}))).await.status, 202);
    let full = alice.refused(&call(5, "echo", json!({}))).await;
    assert_eq!(full, (json!(5), -32603));
    let failed = ["THV_REASON=call-limit", "THV_STATUS=202"];
    assert!(house.records.have(&failed));
}

/// A server that does not start is told on the stream, and may be asked for again.
#[tokio::test]
async fn a_start_that_fails_is_told_on_the_stream_of_the_old_transport() {
    let house = sse().command(&["/usr/bin/false-nobody-has"]).open().await;
    let mut alice = Client::open(&house, "alice").await;
    for _ in 0..2 {
        assert_eq!(alice.refused(&initialize("2024-11-05")).await.1, -32603);
    }
}

/// The stream is the session: its end is the child's, and the end of the child is the stream's.
#[tokio::test]
async fn the_old_transports_session_ends_with_its_stream() {
    let house = sse().open().await;
    let alice = Client::initialized(&house, "alice").await;
    let (caller, endpoint) = (alice.caller.clone(), alice.endpoint.clone());
    drop(alice);
    house.records.wait_for("child-exited").await;
    let request = target(caller.bytes("POST", &call(1, "echo", json!({}))), &endpoint);
    assert_eq!(wire::exchange(caller.address, &request).await.status, 404);

    let mut bob = Client::initialized(&house, "bob").await;
    let answer = bob.call("crash", json!({})).await;
    assert_eq!(answer["error"]["data"]["reason"], "server-ended");
    bob.stream.end().await;
}

/// tok-69: a stream that begins no session within a minute ends, and one that has begun one ends with its token, and its session with it.
#[tokio::test]
async fn a_stream_of_the_old_transport_ends_with_its_time() {
    let limits = "[limits]\nsession-idle = \"10h\"\n";
    let house = sse().with(limits).open().await;
    let mut fresh = Client::open(&house, "alice").await;
    let mut begun = Client::initialized(&house, "bob").await;
    assert_eq!(begun.call("echo", json!({})).await["id"], 1);
    pass(Duration::from_secs(61)).await;
    fresh.stream.end().await;
    assert_eq!(begun.call("echo", json!({})).await["id"], 1);
    assert_eq!(house.records.count("child-exited"), 0);
    pass(Duration::from_secs(3600 + 120)).await;
    begun.stream.end().await;
    house.records.wait_for("child-exited").await;
    assert_eq!(begun.say(&call(1, "echo", json!({}))).await.status, 404);
}

/// tok-69: who shows a newer token in time keeps the stream, which is all of the session.
#[tokio::test]
async fn a_stream_of_the_old_transport_lives_on_with_a_newer_token() {
    let limits = "[limits]\nsession-idle = \"10h\"\n";
    let house = sse().with(limits).open().await;
    let mut alice = Client::initialized(&house, "alice").await;
    // Time passes for the stream alone, not for tokens: this one ends an hour from now, as a new one would.
    for _ in 0..3 {
        pass(Duration::from_secs(3000)).await;
        assert_eq!(alice.call("echo", json!({})).await["id"], 1);
    }
    assert_eq!(house.records.count("child-exited"), 0);
    pass(Duration::from_secs(3600 + 120)).await;
    alice.stream.end().await;
    house.records.wait_for("child-exited").await;
}

/// Lets time pass for the gateway, whose pauses are measured by tokio's clock.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// Streams that wait for a first word are counted, and answers to a start that fails are told at once.
#[tokio::test]
async fn streams_of_the_old_transport_are_limited_as_sessions_are() {
    let house = sse()
        .argument("--refuse")
        .with("[limits]\nsessions = 2\nsessions-per-user = 2\n")
        .open()
        .await;
    let mut first = Client::open(&house, "alice").await;
    let second = Client::open(&house, "alice").await;
    let request = target(second.caller.bytes("GET", ""), "/mcp/sse");
    let answer = wire::exchange(house.address, &request).await;
    assert_eq!(
        (
            answer.status,
            answer.json()["error"]["data"]["reason"].clone()
        ),
        (503, json!("session-limit"))
    );
    drop(second);
    // That a stream is noticed to be gone is on no record: it is asked for its place.
    timeout(PATIENCE, async {
        while wire::head(house.address, &request).await != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    // The server's own refusal is its answer, and may be asked for again.
    for _ in 0..2 {
        assert_eq!(first.say(&initialize("2024-11-05")).await.status, 202);
        assert_eq!(first.stream.next().await["error"]["code"], -32602);
        house.records.wait_for("child-exited").await;
    }
}

/// A server that speaks the newest version alone is spoken to, too: what it needs for a call is asked on the stream.
#[tokio::test]
async fn a_modern_server_serves_clients_of_the_old_transport() {
    let house = sse().argument("--modern").open().await;
    let mut alice = Client::open(&house, "alice").await;
    let takes = "\"capabilities\":{\"elicitation\":{}}";
    let hello = initialize("2024-11-05").replace("\"capabilities\":{}", takes);
    assert_eq!(alice.say(&hello).await.status, 202);
    let answer = alice.stream.next().await;
    assert_eq!(answer["result"]["protocolVersion"], "2024-11-05");
    let answer = alice.call("echo", json!({ "n": 1 })).await;
    assert_eq!(answer["result"]["content"][0]["text"], "{\"n\": 1}");
    let asked = alice.call("need", json!({})).await;
    assert_eq!(asked["method"], "elicitation/create");
    let given = json!({ "jsonrpc": "2.0", "id": asked["id"], "result": { "action": "decline" } });
    assert_eq!(alice.say(&given.to_string()).await.status, 202);
    let answer = alice.stream.next().await;
    let said = answer["result"]["content"][0]["text"].as_str().unwrap();
    assert!(said.contains("decline"), "{said}");
}

/// The SDK's own client of the old transport, from the endpoint event to the server's question.
#[tokio::test]
async fn the_sdks_client_of_the_old_transport_is_served() {
    let modules = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/host/npm/node_modules");
    let script = "sse-client.mjs";
    if !modules.join("@modelcontextprotocol/sdk").exists() || !Path::new("/usr/bin/node").exists() {
        eprintln!(
            "skipped: `node` and the packages of tests/host/peers are needed; `tests/run` installs them"
        );
        return;
    }
    let house = sse().open().await;
    // Modules are looked for beside the script.
    let files = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(modules, files.path().join("node_modules")).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/servers")
        .join(script);
    std::fs::copy(source, files.path().join(script)).unwrap();
    let mut client = std::process::Command::new("/usr/bin/node");
    client
        .arg(files.path().join(script))
        .arg(format!("{}/sse", house.resource()))
        .arg(house.token("alice"));
    let done = tokio::task::spawn_blocking(move || client.output());
    let done = timeout(PATIENCE, done).await.unwrap().unwrap().unwrap();
    let said: Value = serde_json::from_slice(&done.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&done.stderr)));
    assert_eq!(
        (&said["server"], &said["echo"]),
        (&json!("scripted"), &json!("{\"n\": 1}")),
        "{said}"
    );
    // The SDK does not take the scripted question for one, and answers that.
    assert!(said["asked"].as_str().unwrap().contains("mine-1"), "{said}");
    house.records.wait_for("child-exited").await;
}

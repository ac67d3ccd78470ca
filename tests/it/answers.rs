//! Answers that come twice, late, for another or in no form that MCP has: each reaches whom it is for, or nobody.

use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    time::timeout,
};

use crate::{
    house::{Caller, House, call, house},
    modern,
    wire::{self, PATIENCE},
};

/// A request whose answer is waited for later.
async fn asked(caller: &Caller, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(caller.address).await.unwrap();
    let request = caller.bytes("POST", body);
    stream.write_all(&request).await.unwrap();
    stream
}

async fn answered(stream: TcpStream) -> wire::Answer {
    let read = wire::ask(stream, b"");
    timeout(PATIENCE, read).await.unwrap()
}

/// json-16: the second answer to a request, and one that comes after its client has cancelled it, reach nobody, not
/// even who has the same id now.
#[tokio::test]
async fn an_answer_that_comes_twice_or_late_reaches_nobody() {
    let house = house().open().await;
    let (alice, bob) = (house.session("alice").await, house.session("bob").await);
    let twice = alice.post(&call(5, "twice", json!({ "more": 5 }))).await;
    assert_eq!(twice.said(), "first");
    assert!(!twice.text().contains("again"), "{}", twice.text());
    let again = alice.post(&call(5, "echo", json!({ "n": 1 }))).await;
    assert_eq!(again.said(), "{\"n\": 1}");

    let _given_up = asked(&alice, &call(7, "wait", json!({ "for": "late" }))).await;
    alice.until_seen("late").await;
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}"#;
    assert_eq!(alice.post(cancel).await.status, 202);
    alice.until_seen("notifications/cancelled").await;
    let waits = asked(&alice, &call(7, "wait", json!({ "for": "mine" }))).await;
    alice.until_seen("mine").await;
    alice.call("release", json!({ "for": "late" })).await;
    assert_eq!(alice.call("echo", json!({})).await.said(), "{}");
    alice.call("release", json!({ "for": "mine" })).await;
    let text = answered(waits).await.text();
    assert_eq!(text.matches("released").count(), 1, "{text}");

    // Each of them may have been on its way when its request was cancelled: a server is not ended for it.
    let many = alice.post(&call(9, "twice", json!({ "more": 500 }))).await;
    assert_eq!(many.said(), "first");
    for caller in [&alice, &bob] {
        assert_eq!(caller.call("echo", json!({})).await.said(), "{}");
    }
}

/// json-14: a number and the text of its digits are two ids, which may both be in flight.
#[tokio::test]
async fn a_number_and_its_digits_are_two_ids() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let number = asked(&alice, &call(1, "wait", json!({ "for": "number" }))).await;
    let text = asked(&alice, &call("\"1\"", "wait", json!({ "for": "text" }))).await;
    alice.until_seen("number").await;
    alice.until_seen("\"text").await;
    for (what, stream, id) in [("text", text, json!("1")), ("number", number, json!(1))] {
        let release = call("\"r\"", "release", json!({ "for": what }));
        assert_eq!(alice.post(&release).await.said(), "done");
        let answer = answered(stream).await;
        assert_eq!(
            (&answer.json()["id"], answer.said()),
            (&id, "released".to_owned())
        );
    }
}

/// json-18: to cancel another's request has no effect, on its maker or its server, and is on record.
#[tokio::test]
async fn to_cancel_anothers_request_has_no_effect() {
    for scope in ["session", "server"] {
        let top = format!("scope = \"{scope}\"\n");
        let house = house().top(&top).open().await;
        let (alice, bob) = (house.session("alice").await, house.session("bob").await);
        let waits = asked(&alice, &call(41, "wait", json!({ "for": "x" }))).await;
        alice.until_seen("\"x").await;
        let before = house.records.count("decision");
        for id in ["41", "1", "2", "3", "4", "5", "\"41\""] {
            let cancel = format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{id}}}}}"#
            );
            assert_eq!(bob.post(&cancel).await.status, 202, "{id}");
        }
        let recorded = |record: &&String| {
            record.contains("THV_SUBJECT=bob ") && record.contains("notifications/cancelled")
        };
        assert_eq!(house.records.count("decision"), before + 7);
        assert_eq!(house.records.all().iter().filter(recorded).count(), 7);
        for caller in [&alice, &bob] {
            let seen = caller.seen().await;
            assert!(
                !seen.iter().any(|line| line.contains("cancelled")),
                "{seen:?}"
            );
        }
        alice.call("release", json!({ "for": "x" })).await;
        assert_eq!(answered(waits).await.said(), "released");
    }
}

/// sse-2: what stands around a message, or is missing of it, makes it none: it is dropped, and fails whom it names;
/// what comes after it is heard.
#[tokio::test]
async fn what_is_framed_in_another_way_is_no_message() {
    let house = house()
        .with("[limits]\ncall-timeout = \"3s\"\n")
        .open()
        .await;
    let alice = house.session("alice").await;
    let bob = house.session("bob").await;
    let result =
        r#"{"jsonrpc":"2.0","id":@,"result":{"content":[{"type":"text","text":"forged"}]}}"#;
    let line = |text: &str| format!("{text}\n");
    for (raw, fails) in [
        // A byte order mark, in UTF-8: whose answer it was to be is clear.
        (line(&format!("\u{ef}\u{bb}\u{bf}{result}")), true),
        (line(&result.replace("forged", "a\rb")), true),
        (line(&result.replace("forged", "a\u{0}b")), true),
        (line(&result.replace("forged", "\u{ff}")), true),
        (line(&result.replace("}}", "}")), true),
        (line(&format!("{result}{result}")), false),
        (line(&format!("data: {result}")), false),
        (line(&format!("event: message\ndata: {result}\n")), false),
        (line("event: message\nid: 7\nretry: 1\n"), false),
        (format!("Content-Length: {}\r\n\r\n", result.len()), false),
        (line(&format!("[{result}]")), false),
        (line(&format!("\"{}\"", result.replace('"', "\\\""))), false),
        (line("null"), false),
        (line("7"), false),
        (line(""), false),
        (line("\r"), false),
        (line(r#"{"jsonrpc":"2.0"}"#), false),
        (line(r#"{"jsonrpc":"2.0","id":"@","result":{}}"#), false),
        (line(r#"{"jsonrpc":"2.0","id":@.0,"result":{}}"#), false),
        (line(r#"{"jsonrpc":"2.0","id":null,"result":{}}"#), false),
    ] {
        let answer = alice
            .call("framed", json!({ "raw": raw, "answers": true }))
            .await;
        if fails {
            assert_eq!(
                (
                    answer.status,
                    &answer.json()["error"]["code"],
                    &answer.json()["error"]["data"]["reason"]
                ),
                (200, &json!(-32603), &json!("server-protocol-error")),
                "{raw:?}"
            );
        } else {
            assert_eq!(answer.said(), "mine", "{raw:?}");
        }
        assert!(!answer.text().contains("forged"), "{raw:?}");
        assert_eq!(alice.call("echo", json!({})).await.said(), "{}", "{raw:?}");
    }
    // A whole message at the end, but for the end of its line.
    let arguments = json!({ "raw": result, "ends": true });
    let answer = alice.call("framed", arguments).await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["data"]["reason"]),
        (200, &json!("server-ended"))
    );
    assert_eq!(bob.call("echo", json!({})).await.said(), "{}");
}

const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;

async fn listing(how: &str) -> House {
    let server = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/servers/exact.py");
    house()
        .command(&["/usr/bin/python3", "-u", server, "8080", "--list", how])
        .top("transport = \"http\"\nport = 8080\n")
        .policy(r#"permit (principal, action, resource) unless { resource == Tool::"heard" };"#)
        .open()
        .await
}

/// sse-3: a list is filtered however its answer is framed and called; what is no answer shows nothing.
#[tokio::test]
async fn a_list_is_filtered_however_it_comes() {
    for how in [
        "json",
        "json-upper",
        "lf",
        "crlf",
        "cr",
        "bom",
        "upper",
        "split",
        "twice",
    ] {
        let house = listing(how).await;
        let answer = house.session("alice").await.post(LIST).await;
        assert_eq!(answer.status, 200, "{how}: {}", answer.text());
        assert!(!answer.text().contains("heard"), "{how}: {}", answer.text());
        let tools = answer.json()["result"]["tools"].take();
        let names: Vec<&Value> = tools
            .as_array()
            .unwrap()
            .iter()
            .map(|it| &it["name"])
            .collect();
        assert_eq!(names, [&json!("exact")], "{how}");
    }
    for how in [
        "broken",
        "broken-cr",
        "broken-events",
        "201",
        "206",
        "203",
        "gzip",
        "text",
        "two-types",
        "no-type",
    ] {
        let house = listing(how).await;
        let alice = house.session("alice").await;
        let answer = alice.post(LIST).await;
        let is_status = how.parse::<u16>().is_ok();
        let reason = if is_status {
            "server-refused"
        } else {
            "server-protocol-error"
        };
        let told = &answer.json()["error"]["data"]["reason"];
        assert_eq!((answer.status, told), (200, &json!(reason)), "{how}");
        assert!(!answer.text().contains("heard"), "{how}: {}", answer.text());
        assert_eq!(
            alice
                .post(r#"{"jsonrpc":"2.0","id":2,"method":"ping"}"#)
                .await
                .status,
            200
        );
    }
}

/// json-24, mcp-T33: what a schema refers to is nobody's to fetch: not when it is listed, and not when its tool is
/// called.
#[tokio::test]
async fn nothing_that_a_schema_refers_to_is_fetched() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = format!("http://{}/schema", elsewhere.local_addr().unwrap());
    let script = "\
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if 'id' not in message: continue
    schema = {'$schema': sys.argv[1], '$id': sys.argv[1], 'type': 'object', '$ref': sys.argv[1],
              'properties': {'a': {'$ref': sys.argv[1] + '#/a', 'x-mcp-header': 'A'}}}
    result = {'content': []}
    if message['method'] == 'initialize':
        result = {'protocolVersion': message['params']['protocolVersion'], 'capabilities': {'tools': {}}, 'serverInfo': {'name': 'b', 'version': '1'}}
    elif message['method'] == 'tools/list':
        result = {'tools': [{'name': 'a', 'inputSchema': schema, 'outputSchema': schema, 'icons': [{'src': sys.argv[1]}]}]}
    print(json.dumps({'jsonrpc': '2.0', 'id': message['id'], 'result': result}), flush=True)
";
    let house = house()
        .command(&["/usr/bin/python3", "-u", "-c", script, &place])
        .open()
        .await;
    let alice = house.session("alice").await;
    let listed = alice.post(LIST).await;
    assert!(listed.text().contains(&place), "{}", listed.text());
    let mine = json!({ "a": { "$ref": place } });
    assert_eq!(alice.call("a", mine.clone()).await.status, 200);
    let modern = modern::tool(&house.caller("bob"), "a", mine).await;
    assert!(matches!(modern.status, 200 | 400), "{}", modern.text());
    let asked = elsewhere.accept();
    tokio::select! {
        biased;
        asked = asked => panic!("{asked:?}"),
        () = std::future::ready(()) => {}
    }
}

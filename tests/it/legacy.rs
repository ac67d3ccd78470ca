//! What clients of the older versions may count on: the version that was agreed on, cancelling,
//! ids that are theirs, and an end that is one.

use serde_json::{Value, json};

use crate::{
    house::{Caller, House, call, house, initialize},
    identity::last_decision,
    modern,
    wire::{self, Answer, Events},
};

/// A session that agreed on this version.
async fn session_of(house: &House, version: &str) -> Caller {
    let mut caller = house.caller("alice");
    let answer = caller.post(&initialize(version)).await;
    assert_eq!(answer.json()["result"]["protocolVersion"], version);
    caller.session = answer.header("mcp-session-id").map(str::to_owned);
    caller
}

async fn with(caller: &Caller, method: &str, more: &[(&str, &str)], body: &str) -> Answer {
    wire::exchange(caller.address, &caller.bytes_with(method, more, body)).await
}

/// mcp-L9: who names a version that is served has it; who names another is answered with one that
/// is, also by a server that echoes whatever it hears.
#[tokio::test]
async fn an_unknown_version_is_answered_with_one_that_is_served() {
    for scope in ["session", "user"] {
        let house = house().top(&format!("scope = \"{scope}\"\n")).open().await;
        for named in ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"] {
            session_of(&house, named).await;
        }
        for unknown in [json!("2099-01-01"), json!("1.0"), json!(""), json!(7)] {
            let mut alice = house.caller("alice");
            let body = initialize("x").replace("\"x\"", &unknown.to_string());
            let answer = alice.post(&body).await;
            assert_eq!(
                answer.json()["result"]["protocolVersion"],
                "2025-11-25",
                "{scope}: {unknown}"
            );
            alice.session = answer.header("mcp-session-id").map(str::to_owned);
            // What was agreed on can be said in every request.
            let version = [("MCP-Protocol-Version", "2025-11-25")];
            let answer = with(&alice, "POST", &version, &call(1, "echo", json!({}))).await;
            assert_eq!(answer.said(), "{}");
        }
    }
}

/// mcp-L9: a server that agrees on a version which nobody serves has no session with anybody.
#[tokio::test]
async fn a_server_that_agrees_on_an_unknown_version_is_none() {
    for version in ["2026-07-28", "1.0"] {
        let house = house().argument("--version").argument(version).open().await;
        let answer = house.caller("alice").initialize().await;
        assert_eq!(answer.header("mcp-session-id"), None);
        let error = &answer.json()["error"];
        assert_eq!(
            (answer.status, &error["data"]["reason"]),
            (502, &json!("child-protocol")),
            "{error}"
        );
        house.records.wait_for("child-exited").await;
        assert_eq!(house.records.count("outcome"), 1);
        assert!(
            house
                .records
                .have(&["THV_EVENT=outcome ", "child-protocol"])
        );
    }
}

/// mcp-L8, mcp-T11: the version is looked at in each request of a session, whatever its method; one that is
/// served need not be the one that was agreed on, and without any it is that one.
#[tokio::test]
async fn each_request_may_name_a_version_and_then_one_that_is_served() {
    let house = house().open().await;
    let alice = session_of(&house, "2025-06-18").await;
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let note = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    for (method, body) in [("POST", ping), ("POST", note), ("GET", ""), ("DELETE", "")] {
        for unknown in ["1999-01-01", "x", ""] {
            let unknown = [("MCP-Protocol-Version", unknown)];
            let answer = with(&alice, method, &unknown, body).await;
            assert_eq!(
                (answer.status, &answer.json()["error"]["code"]),
                (400, &json!(-32022)),
                "{method} {unknown:?}"
            );
            let last = last_decision(&house);
            assert!(last.contains("THV_REASON=version-unsupported "), "{last}");
        }
        let twice = [("MCP-Protocol-Version", "2025-06-18"); 2];
        assert_eq!(with(&alice, method, &twice, body).await.status, 400);
    }
    // The session is there still, and is what it was: no event comes before there is one.
    for newer in [&[("MCP-Protocol-Version", "2025-11-25")][..], &[]] {
        let bytes = alice.bytes_with("POST", newer, &call(1, "progress", json!({})));
        let answer = wire::exchange(house.address, &bytes).await;
        assert!(!answer.text().contains("retry"), "{}", answer.text());
        assert_eq!(answer.said(), "done");
    }
}

/// mcp-O2: of a batch the version is looked at as of any request, and messages of the stateless version are none of it.
#[tokio::test]
async fn a_batch_is_of_its_version_alone() {
    let house = house().argument("--marked").open().await;
    let alice = session_of(&house, "2025-03-26").await;
    let batch = format!("[{}]", call(1, "echo", json!({})));
    let unknown = [("MCP-Protocol-Version", "1999-01-01")];
    let answer = with(&alice, "POST", &unknown, &batch).await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["code"]),
        (400, &json!(-32022))
    );
    // In one it would go past what is looked at in a request of its own.
    let params = json!({ "name": "echo", "arguments": { "region": "us" } });
    let body = modern::body(1, "tools/call", params, json!({}));
    let headers = [
        ("MCP-Protocol-Version", "2026-07-28"),
        ("Mcp-Method", "tools/call"),
        ("Mcp-Name", "echo"),
    ];
    let answer = with(&alice, "POST", &headers, &format!("[{body}]")).await;
    let error = &answer.json()["error"];
    assert_eq!(error["code"], -32600, "{error}");
    assert!(
        error["message"].as_str().unwrap().contains("batches"),
        "{error}"
    );
    assert!(
        !alice
            .seen()
            .await
            .iter()
            .any(|line| line.contains("tools/call") && line.contains("echo"))
    );
}

/// mcp-O2: what is refused of a batch is told so under its own id, beside what is answered: its client waits for that.
#[tokio::test]
async fn what_is_refused_of_a_batch_keeps_its_id() {
    let house = house().open().await;
    let alice = session_of(&house, "2025-03-26").await;
    let bad = r#"{"jsonrpc":"2.0","id":"two","method":"ping","params":null}"#;
    let good = call(1, "echo", json!({}));
    let answer = alice.post(&format!("[{good},{bad}]")).await;
    assert_eq!(answer.status, 200);
    let text = answer.text();
    let told = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let messages: Vec<Value> = told
        .filter_map(|told| serde_json::from_str(told).ok())
        .collect();
    let of = |id: Value| messages.iter().find(|message| message["id"] == id);
    assert!(
        of(json!(1)).is_some_and(|answer| answer["result"].is_object()),
        "{messages:?}"
    );
    assert!(
        of(json!("two")).is_some_and(|answer| answer["error"]["code"] == -32602),
        "{messages:?}"
    );
}

/// A call in a batch that finds no room is refused and on record as one by itself is.
#[tokio::test]
async fn one_call_too_many_in_a_batch_is_told_as_one_by_itself() {
    let house = house().with("[limits]\ncalls = 1\n").open().await;
    let alice = session_of(&house, "2025-03-26").await;
    let calls = [1, 2].map(|id| call(id, "echo", json!({})));
    let answer = alice.post(&format!("[{}]", calls.join(","))).await;
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains("call-limit"), "{}", answer.text());
    assert!(answer.text().contains("\"result\""), "{}", answer.text());
    let status = |status: &str| house.records.have(&["THV_REASON=call-limit", status]);
    assert!(status("THV_STATUS=200") && !status("THV_STATUS=503"));
}

/// What a policy has permitted in a batch, and its child's queue has no room for, is told so under its own id beside what
/// waits for an answer, and is on record as failed: also a notification, which has none.
#[tokio::test]
async fn what_a_full_queue_does_not_take_of_a_batch_is_told_and_on_record() {
    let house = house().with("[limits]\nbody = \"20M\"\n").open().await;
    let alice = session_of(&house, "2025-03-26").await;
    let get = |id: &str, tool: &str, arguments| alice.bytes("POST", &call(id, tool, arguments));
    let _asleep = Events::open(house.address, &get("1", "sleep", json!({}))).await;
    let large = "x".repeat(5 << 20);
    let takes = call("\"takes\"", "echo", json!({ "x": large }));
    let note = json!({ "jsonrpc": "2.0", "method": "notifications/roots/list_changed", "params": { "x": large } });
    let batch = format!("[{takes},{},{note}]", takes.replace("takes", "lacks"));
    let mut told = Events::open(house.address, &alice.bytes("POST", &batch)).await;
    let (first, second) = (told.next().await, told.next().await);
    for (answer, id) in [(&first, json!("lacks")), (&second, Value::Null)] {
        assert_eq!(answer["id"], id, "{answer}");
        assert_eq!(
            answer["error"]["data"]["reason"], "in-flight-limit",
            "{answer}"
        );
    }
    let failed = ["THV_EVENT=outcome ", "THV_REASON=in-flight-limit "];
    let failed = house.records.wait_for_all(&failed, 2).await;
    assert_eq!(failed.len(), 2, "{failed:#?}");
    assert_eq!(alice.send("DELETE", "").await.status, 204);
    let last = told.next().await;
    assert_eq!(
        (&last["id"], &last["error"]["data"]["reason"]),
        (&json!("takes"), &json!("server-ended"))
    );
}

/// mcp-O2: what a server says at once is heard where that version was agreed on, message by message, and else is no message.
#[tokio::test]
async fn a_servers_batch_is_heard_where_there_are_batches() {
    for scope in ["session", "user"] {
        let top = format!("scope = \"{scope}\"\n");
        let house = house()
            .top(&top)
            .argument("--version")
            .argument("2025-03-26")
            .open()
            .await;
        let alice = session_of(&house, "2025-03-26").await;
        let answer = alice.call("together", json!({})).await;
        assert_eq!(answer.said(), "together", "{scope}: {}", answer.text());
        if scope == "session" {
            assert!(answer.text().contains("notifications/message"));
        }
        // Modern clients of such a server hear it as well.
        let answer = modern::tool(&house.caller("alice"), "together", json!({})).await;
        assert_eq!(answer.said(), "together", "{scope}");
    }
    let house = house().open().await;
    let alice = session_of(&house, "2025-11-25").await;
    assert_eq!(alice.call("together", json!({})).await.said(), "alone");
}

/// json-18, mcp-T25: a cancel reaches the server under the number that it has for the call, and the call is over: what the server
/// says of it later is nobody's, its id is free, and to cancel it again has no effect.
#[tokio::test]
async fn a_cancelled_call_is_over() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let waits = call("\"caf\\u00e9\"", "wait", json!({ "for": "it" }));
    let waiting = tokio::spawn({
        let alice = alice.clone();
        async move { alice.post(&waits).await }
    });
    let lines = alice.until_seen(r#""for":"it""#).await;
    let line = lines.iter().find(|line| line.contains(r#""for":"it""#));
    let number = serde_json::from_str::<Value>(line.unwrap()).unwrap()["id"].clone();
    // However the id is spelled.
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"café","reason":"enough"}}"#;
    let answer = alice.post(cancel).await;
    assert_eq!((answer.status, answer.body.len()), (202, 0));
    let answer = waiting.await.unwrap().json();
    assert_eq!(answer["error"]["data"]["reason"], "cancelled");
    assert_eq!(alice.post(cancel).await.status, 202);
    let cancelled = |lines: &[String]| -> Vec<Value> {
        let lines = lines.iter().filter(|line| line.contains("cancelled"));
        lines
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["params"].take())
            .collect()
    };
    assert_eq!(
        cancelled(&alice.seen().await),
        [json!({ "requestId": number, "reason": "enough" })]
    );
    // The server answers all the same, when the id is another call's.
    let more = call("\"caf\\u00e9\"", "wait", json!({ "for": "more" }));
    let again = tokio::spawn({
        let alice = alice.clone();
        async move { alice.post(&more).await }
    });
    alice.until_seen(r#""for":"more""#).await;
    for released in ["it", "more"] {
        let answer = alice.call("release", json!({ "for": released })).await;
        assert_eq!(answer.said(), "done");
    }
    assert_eq!(again.await.unwrap().said(), "released");
    assert_eq!(house.records.count("child-exited"), 0);
}

/// mcp-L2, tok-132: an answer is for the question whose id it has, however each side spells it, and once.
#[tokio::test]
async fn an_answer_has_its_questions_id_however_it_is_spelled() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let asks = call(1, "ask", json!({ "id": r#""caf\u00e9\/1""# }));
    let mut stream = alice.stream(&asks).await;
    assert_eq!(stream.next().await["id"], "café/1");
    let reply = r#"{"jsonrpc":"2.0","id":"café/1","result":{"action":"decline"}}"#;
    let other = reply.replace("café/1", "café/2");
    assert_eq!(alice.post(&other).await.status, 400);
    for _ in 0..2 {
        assert_eq!(alice.post(reply).await.status, 202);
    }
    let said = stream.next().await["result"]["content"][0]["text"].clone();
    assert!(said.as_str().unwrap().contains("decline"), "{said}");
    // Once more it has no effect.
    let seen = alice.seen().await;
    assert_eq!(seen.iter().filter(|line| *line == reply).count(), 1);
}

/// mcp-L7, mcp-L10: only its owner ends a session, and then all of it ends: its streams, its calls, its child.
#[tokio::test]
async fn the_end_of_a_session_is_its_owners_and_the_end_of_all_that_is_open() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let mut own = Events::open(house.address, &alice.bytes("GET", "")).await;
    own.field("id: ").await;
    let waiting = tokio::spawn({
        let alice = alice.clone();
        let waits = call(7, "wait", json!({ "for": "it" }));
        async move { alice.post(&waits).await }
    });
    alice.until_seen(r#""for":"it""#).await;
    let mut bob = house.caller("bob");
    bob.session.clone_from(&alice.session);
    for (caller, status) in [(&bob, 404), (&house.caller("alice"), 400)] {
        assert_eq!(caller.send("DELETE", "").await.status, status);
    }
    assert_eq!(alice.call("echo", json!({})).await.said(), "{}");
    assert_eq!(alice.send("DELETE", "").await.status, 204);
    let failed = waiting.await.unwrap();
    assert_eq!(
        (failed.status, &failed.json()["error"]["data"]["reason"]),
        (200, &json!("server-ended"))
    );
    own.end().await;
    house.records.wait_for("child-exited").await;
    for method in ["GET", "DELETE"] {
        assert_eq!(alice.send(method, "").await.status, 404, "{method}");
    }
}

//! One child for a session, a user or everybody: nothing of one is another's.

use serde_json::{Value, json};

use crate::{
    house::{Caller, House, Plan, call, house, initialize},
    wire::{self, Events},
};

fn crowd(scope: &str) -> Plan {
    let server = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/servers/crowd.py");
    house()
        .command(&["/usr/bin/python3", "-u", server])
        .top(&format!("scope = \"{scope}\"\n"))
}

async fn session_of(house: &House, subject: &str, version: &str) -> Caller {
    let mut caller = house.caller(subject);
    let answer = caller.post(&initialize(version)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["result"]["protocolVersion"], version);
    assert_eq!(answer.json()["id"], 0);
    caller.session = answer.header("mcp-session-id").map(str::to_owned);
    let open = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    assert_eq!(caller.post(open).await.status, 202);
    caller
}

/// What the child has been told, as this caller's `seen` says.
async fn told(caller: &Caller, method: &str) -> usize {
    let said = caller.post(&call(1, "seen", json!({}))).await.said();
    let seen: Vec<Value> = serde_json::from_str(&said).unwrap();
    seen.iter().filter(|it| it["method"] == method).count()
}

/// inc-7: two users at once in one child, 10,000 interleaved calls with colliding ids and tokens: none crosses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_calls_of_two_users_in_one_child_never_cross() {
    const BATCHES: usize = 50;
    const CALLS: usize = 50;
    let house = crowd("server").open().await;
    let mut tasks = Vec::new();
    for who in ["alice", "bob", "alice-again", "bob-again"] {
        let subject = who.split('-').next().unwrap();
        let caller = session_of(&house, subject, "2025-03-26").await;
        tasks.push(tokio::spawn(async move {
            for batch in 0..BATCHES {
                let body: Vec<Value> = (0..CALLS)
                    .map(|n| {
                        json!({ "jsonrpc": "2.0", "id": n, "method": "tools/call", "params": {
                            "name": "echo",
                            "arguments": { "who": who, "batch": batch, "n": n },
                            "_meta": { "progressToken": n },
                        } })
                    })
                    .collect();
                let answer = caller.post(&Value::Array(body).to_string()).await;
                let text = answer.text();
                let events: Vec<Value> = text
                    .lines()
                    .filter_map(|line| line.strip_prefix("data: "))
                    .filter(|data| !data.is_empty())
                    .map(|data| serde_json::from_str(data).unwrap())
                    .collect();
                let (mut answers, mut progress) = (vec![0; CALLS], vec![0; CALLS]);
                for event in &events {
                    let (n, told) = match event["method"].as_str() {
                        Some(_) => {
                            let n = event["params"]["progressToken"].as_u64().unwrap() as usize;
                            progress[n] += 1;
                            (n, event["params"]["message"].as_str().unwrap())
                        }
                        None => {
                            let n = event["id"].as_u64().unwrap() as usize;
                            answers[n] += 1;
                            (n, event["result"]["content"][0]["text"].as_str().unwrap())
                        }
                    };
                    let told: Value = serde_json::from_str(told).unwrap();
                    assert_eq!(told, json!({ "who": who, "batch": batch, "n": n }));
                }
                assert_eq!(answers, [1; CALLS], "{who} {batch}: {text}");
                assert_eq!(progress, [1; CALLS], "{who} {batch}");
            }
        }));
    }
    // Asked now: so many calls leave no room for old records.
    assert_eq!(house.children_started(), 1);
    for task in tasks {
        task.await.unwrap();
    }
}

/// One child a session, a user, or a server; and the child hears `initialize` once.
#[tokio::test]
async fn there_is_a_child_for_each_that_the_scope_names() {
    for (scope, children) in [("session", 3), ("user", 2), ("server", 1)] {
        let house = crowd(scope).open().await;
        let first = session_of(&house, "alice", "2025-11-25").await;
        let second = session_of(&house, "alice", "2025-06-18").await;
        let third = session_of(&house, "bob", "2025-03-26").await;
        assert_eq!(house.children_started(), children, "{scope}");
        for caller in [&first, &second, &third] {
            assert_eq!(told(caller, "initialize").await, 1, "{scope}");
            assert_eq!(told(caller, "notifications/initialized").await, 1);
        }
        // Another's session is another's still.
        let mut thief = house.caller("mallory");
        thief.session = first.session.clone();
        assert_eq!(thief.call("echo", json!({})).await.status, 404);
        // The child stays for the others, and ends with the last.
        assert_eq!(first.send("DELETE", "").await.status, 204);
        assert_eq!(second.call("echo", json!({})).await.said(), "{}");
        let exited = house.records.count("child-exited");
        second.send("DELETE", "").await;
        third.send("DELETE", "").await;
        while house.records.count("child-exited") < children {
            house.records.wait_for_more("child-exited", exited).await;
            tokio::task::yield_now().await;
        }
    }
}

/// What is asked without a session belongs to the user, whose child it shares with their sessions.
#[tokio::test]
async fn sessionless_requests_share_the_child_that_their_user_has() {
    for (scope, children) in [("session", 3), ("user", 2), ("server", 1)] {
        let house = crowd(scope).open().await;
        let session = session_of(&house, "alice", "2025-11-25").await;
        for subject in ["alice", "bob"] {
            let caller = house.caller(subject);
            let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
                "name": "echo", "arguments": { "who": subject },
                "_meta": { "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                           "io.modelcontextprotocol/clientCapabilities": {} },
            } });
            let headers = [
                ("MCP-Protocol-Version", "2026-07-28"),
                ("Mcp-Method", "tools/call"),
                ("Mcp-Name", "echo"),
            ];
            let bytes = caller.bytes_with("POST", &headers, &body.to_string());
            let answer = wire::exchange(caller.address, &bytes).await;
            assert_eq!(answer.said(), format!("{{\"who\": \"{subject}\"}}"));
        }
        assert_eq!(session.call("echo", json!({})).await.said(), "{}");
        assert_eq!(house.children_started(), children, "{scope}");
    }
}

/// Updates go to those who asked; the child hears of the first subscriber's coming and the last one's leaving.
#[tokio::test]
async fn updates_go_to_subscribers_alone_and_the_last_one_leaving_is_told() {
    let house = crowd("server").open().await;
    let alice = session_of(&house, "alice", "2025-11-25").await;
    let bob = session_of(&house, "bob", "2025-11-25").await;
    let on = |method: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":5,"method":"{method}","params":{{"uri":"a:b"}}}}"#)
    };
    for caller in [&alice, &bob] {
        assert_eq!(
            caller.post(&on("resources/subscribe")).await.json()["result"],
            json!({})
        );
    }
    let mut hears = Events::open(alice.address, &alice.bytes("GET", "")).await;
    hears.field("id: ").await;
    let mut other = Events::open(bob.address, &bob.bytes("GET", "")).await;
    other.field("id: ").await;
    bob.call("touch", json!({ "uri": "a:b" })).await;
    assert_eq!(hears.next().await["params"]["uri"], "a:b");
    assert_eq!(other.next().await["params"]["uri"], "a:b");
    // A stranger to it hears nothing: the next thing on this stream is of the second touch.
    alice.post(&on("resources/unsubscribe")).await;
    assert_eq!(told(&bob, "resources/unsubscribe").await, 0);
    bob.call("touch", json!({ "uri": "a:b" })).await;
    assert_eq!(other.next().await["params"]["uri"], "a:b");
    bob.post(&on("resources/unsubscribe")).await;
    assert_eq!(told(&bob, "resources/unsubscribe").await, 1);
    // Nobody's log messages either: of a child of everybody's they might tell of anybody.
    let level =
        r#"{"jsonrpc":"2.0","id":6,"method":"logging/setLevel","params":{"level":"debug"}}"#;
    assert_eq!(alice.post(level).await.json()["error"]["code"], -32601);
    house.records.wait_for("child-started").await;
    alice.send("DELETE", "").await;
    let rest = hears.end().await;
    assert!(!rest.contains("data: {"), "{rest}");
}

/// Cancelling names one's own calls alone, whatever number another's has.
#[tokio::test]
async fn a_cancel_reaches_ones_own_call_alone() {
    let house = crowd("server").open().await;
    let alice = session_of(&house, "alice", "2025-11-25").await;
    let bob = session_of(&house, "bob", "2025-11-25").await;
    let held = {
        let bob = bob.clone();
        tokio::spawn(async move { bob.call("hold", json!({ "for": "bob" })).await })
    };
    while told(&alice, "tools/call").await < 2
        || !alice.call("seen", json!({})).await.said().contains("hold")
    {
        tokio::task::yield_now().await;
    }
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
    assert_eq!(alice.post(cancel).await.status, 202);
    assert_eq!(told(&alice, "notifications/cancelled").await, 0);
    alice.call("release", json!({ "for": "bob" })).await;
    assert_eq!(held.await.unwrap().said(), "released");
}

/// A question goes to the one whose call it must belong to, and to nobody where users meet.
#[tokio::test]
async fn a_question_is_for_the_one_that_is_at_work() {
    let asks = |caller: Caller| async move {
        let mut events = caller.stream(&call(1, "ask", json!({}))).await;
        let mut next = events.next().await;
        if next["method"] == "elicitation/create" {
            let answer =
                json!({ "jsonrpc": "2.0", "id": next["id"], "result": { "action": "accept" } });
            assert_eq!(caller.post(&answer.to_string()).await.status, 202);
            next = events.next().await;
        }
        next["result"]["content"][0]["text"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let elicits = |house: &House, subject: &str| {
        let mut caller = house.caller(subject);
        async move {
            let body = initialize("2025-11-25").replace(
                "\"capabilities\":{}",
                "\"capabilities\":{\"elicitation\":{}}",
            );
            let answer = caller.post(&body).await;
            caller.session = answer.header("mcp-session-id").map(str::to_owned);
            caller
        }
    };
    let house = crowd("user").open().await;
    let alice = elicits(&house, "alice").await;
    let plain = session_of(&house, "alice", "2025-11-25").await;
    assert!(asks(alice).await.contains("accept"));
    // This one's client takes no questions.
    let told = plain.post(&call(1, "ask", json!({}))).await.said();
    assert!(told.contains("-32601"), "{told}");
    let house = crowd("server").open().await;
    let alice = elicits(&house, "alice").await;
    let told = alice.post(&call(1, "ask", json!({}))).await.said();
    assert!(told.contains("-32601"), "{told}");
}

/// fault-17: a lost child is told to all that share it, and the next session has another.
#[tokio::test]
async fn a_lost_child_ends_all_its_sessions_and_the_next_has_another() {
    let house = crowd("server").open().await;
    let alice = session_of(&house, "alice", "2025-11-25").await;
    let bob = session_of(&house, "bob", "2025-11-25").await;
    let held = {
        let bob = bob.clone();
        tokio::spawn(async move { bob.call("hold", json!({ "for": "bob" })).await })
    };
    while !alice.call("seen", json!({})).await.said().contains("hold") {
        tokio::task::yield_now().await;
    }
    let lost = alice.call("crash", json!({})).await;
    assert_eq!(lost.json()["error"]["data"]["reason"], "server-ended");
    let lost = held.await.unwrap();
    assert_eq!(lost.json()["error"]["data"]["reason"], "server-ended");
    house.records.wait_for("child-died").await;
    assert_eq!(bob.call("echo", json!({})).await.status, 404);
    let again = session_of(&house, "bob", "2025-11-25").await;
    assert_eq!(again.call("echo", json!({})).await.said(), "{}");
    assert_eq!(house.children_started(), 2);
}

/// Each bound refuses beside what still fits: 429 where it is the user's own, 503 where it is everybody's.
#[tokio::test]
async fn each_limit_refuses_beside_its_success() {
    let limits = "[limits]\nsessions = 3\nsessions-per-user = 2\ncalls = 2\ncalls-per-user = 1\n";
    let house = crowd("server").with(limits).open().await;
    let alice = session_of(&house, "alice", "2025-11-25").await;
    let _second = session_of(&house, "alice", "2025-11-25").await;
    let refused = house.caller("alice").post(&initialize("2025-11-25")).await;
    assert_eq!(refused.status, 429);
    assert_eq!(
        refused.json()["error"]["data"]["reason"],
        "user-session-limit"
    );
    let bob = session_of(&house, "bob", "2025-11-25").await;
    let refused = house.caller("carol").post(&initialize("2025-11-25")).await;
    assert_eq!(
        (refused.status, refused.header("retry-after")),
        (503, Some("5"))
    );
    assert_eq!(refused.json()["error"]["data"]["reason"], "session-limit");

    let hold = |caller: &Caller, what: &str| {
        let (caller, what) = (caller.clone(), what.to_owned());
        tokio::spawn(async move { caller.call("hold", json!({ "for": what })).await })
    };
    let first = hold(&alice, "alice");
    while !bob
        .call("seen", json!({}))
        .await
        .said()
        .contains("\"for\": \"alice\"")
    {
        tokio::task::yield_now().await;
    }
    let refused = alice.post(&call(2, "echo", json!({}))).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.json()["error"]["data"]["reason"], "user-call-limit");
    assert_eq!(bob.call("echo", json!({})).await.said(), "{}");
    bob.call("release", json!({ "for": "alice" })).await;
    assert_eq!(first.await.unwrap().said(), "released");
    assert_eq!(alice.call("echo", json!({})).await.said(), "{}");

    let house = crowd("server").with("[limits]\ncalls = 1\n").open().await;
    let alice = session_of(&house, "alice", "2025-11-25").await;
    let bob = session_of(&house, "bob", "2025-11-25").await;
    let decided = house.records.count("decision");
    let _held = hold(&alice, "ever");
    // Sent in the same breath.
    house.records.wait_for_more("decision", decided).await;
    let refused = bob.call("echo", json!({})).await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json()["error"]["data"]["reason"], "call-limit");
}

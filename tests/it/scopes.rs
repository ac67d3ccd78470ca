//! One child for a session, a user or everybody: nothing of one is another's.

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    bridge,
    house::{self, Caller, House, Plan, call, house, initialize},
    modern,
    wire::{self, Events, PATIENCE},
};

fn crowd(scope: &str) -> Plan {
    house::crowd(&format!("scope = \"{scope}\"\n"))
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
        second.send("DELETE", "").await;
        third.send("DELETE", "").await;
        let ended = ["THV_EVENT=child-exited "];
        house.records.wait_for_all(&ended, children).await;
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

/// mcp-T27: a child that several share is asked once what it speaks, whoever comes, and however its clients speak.
#[tokio::test]
async fn a_shared_child_is_asked_once_what_it_speaks() {
    let probes = |lines: &[String]| {
        let probe = |line: &&String| line.contains("\"server/discover\"");
        lines.iter().filter(probe).count()
    };
    for plan in [house(), house().argument("--modern")] {
        let house = plan.top("scope = \"server\"\n").open().await;
        for subject in ["alice", "bob"] {
            let (modern, legacy) = (house.caller(subject), house.session(subject).await);
            assert_eq!(modern::tool(&modern, "echo", json!({})).await.said(), "{}");
            assert_eq!(legacy.call("echo", json!({})).await.said(), "{}");
        }
        let lines = modern::seen(&house.caller("carol")).await;
        assert_eq!(probes(&lines), 1, "{lines:#?}");
        assert_eq!(house.children_started(), 1);
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
    // A part of it is its business, another resource is not.
    for uri in ["a:bc", "a:b/c"] {
        bob.call("touch", json!({ "uri": uri })).await;
    }
    assert_eq!(other.next().await["params"]["uri"], "a:b/c");
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
    let held = bob.begins("hold", json!({ "for": "bob" }));
    house.records.wait_until_held("bob").await;
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
    assert!(asks(alice.clone()).await.contains("accept"));
    // This one's client takes no questions, and that one's none of the other kind.
    let visit = json!({ "mode": "url", "url": "https://a", "message": "?", "elicitationId": "e" });
    for (caller, arguments) in [(&plain, json!({})), (&alice, visit.clone())] {
        let told = caller.post(&call(1, "ask", arguments)).await.said();
        assert!(told.contains("-32601"), "{told}");
    }
    let modern = house.caller("alice");
    let asked = |arguments: Value| {
        bridge::able(
            &modern,
            json!({ "elicitation": { "url": {} } }),
            "ask",
            arguments,
            json!({}),
        )
    };
    let (questions, _) = bridge::asked(&asked(visit).await);
    assert_eq!(questions["q"]["params"]["url"], "https://a");
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
    let held = bob.begins("hold", json!({ "for": "bob" }));
    house.records.wait_until_held("bob").await;
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

/// Each bound refuses beside what still fits: 429 where it is the user's own (conn-10), 503 where it is everybody's; that a
/// client with a session is told with 200, for some take another status for the end of all that they have running.
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

    let hold = |caller: &Caller, what: &str| caller.begins("hold", json!({ "for": what }));
    let first = hold(&alice, "alice");
    house.records.wait_until_held("alice").await;
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
    assert_eq!(refused.status, 200);
    assert_eq!(refused.json()["error"]["data"]["reason"], "call-limit");
    let failed = ["THV_REASON=call-limit", "THV_STATUS=200"];
    assert!(house.records.have(&failed));
    // One without a session has nothing to lose, and is told by status.
    let refused = modern::tool(&house.caller("bob"), "echo", json!({})).await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json()["error"]["data"]["reason"], "call-limit");
}

/// A legacy client that takes questions.
async fn elicits(house: &House, subject: &str) -> Caller {
    let mut caller = house.caller(subject);
    let takes = "\"capabilities\":{\"elicitation\":{}}";
    let body = initialize("2025-11-25").replace("\"capabilities\":{}", takes);
    let answer = caller.post(&body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    caller.session = answer.header("mcp-session-id").map(str::to_owned);
    caller
}

/// The stream of a session's own, once it is open.
async fn own_stream(caller: &Caller) -> Events {
    let mut stream = Events::open(caller.address, &caller.bytes("GET", "")).await;
    stream.field("id: ").await;
    stream
}

/// Two clients of one user take questions: one is asked only in its own call, on that call's stream, and only
/// while nobody else's call could be meant.
#[tokio::test]
async fn a_question_reaches_only_the_client_whose_call_it_was() {
    let house = crowd("user").open().await;
    let (first, second) = (
        elicits(&house, "alice").await,
        elicits(&house, "alice").await,
    );
    let mut other = own_stream(&second).await;
    let mut asked = Events::open(
        first.address,
        &first.bytes("POST", &call(1, "ask", json!({}))),
    )
    .await;
    let question = asked.next().await;
    assert_eq!(question["method"], "elicitation/create");
    // An answer of the other's is none.
    let answer =
        json!({ "jsonrpc": "2.0", "id": question["id"], "result": { "action": "decline" } });
    assert_eq!(second.post(&answer.to_string()).await.status, 400);
    let answer =
        json!({ "jsonrpc": "2.0", "id": question["id"], "result": { "action": "accept" } });
    assert_eq!(first.post(&answer.to_string()).await.status, 202);
    let said = asked.next().await["result"].to_string();
    assert!(
        said.contains("accept") && !said.contains("decline"),
        "{said}"
    );
    // While the other is at work too it might be meant as well.
    let held = second.begins("hold", json!({ "for": "x" }));
    house.records.wait_until_held("x").await;
    let told = first.call("ask", json!({})).await.said();
    assert!(told.contains("-32601"), "{told}");
    first.call("release", json!({ "for": "x" })).await;
    assert_eq!(held.await.unwrap().said(), "released");
    second.send("DELETE", "").await;
    let rest = other.end().await;
    assert!(!rest.contains("elicitation"), "{rest}");
}

/// mcp-M1: a modern client's call at a child that it shares with a session asks that client alone; it comes back
/// with the answer to the same call. Where users meet nobody is asked.
#[tokio::test]
async fn a_question_in_a_bridged_call_at_a_shared_child_is_its_callers() {
    let house = crowd("user").open().await;
    let session = elicits(&house, "alice").await;
    let mut stream = own_stream(&session).await;
    let alice = house.caller("alice");
    let (questions, state) =
        bridge::asked(&bridge::call(&alice, "ask", json!({}), json!({})).await);
    assert_eq!(questions["q"]["method"], "elicitation/create");
    // It waits, and the session goes on.
    assert_eq!(session.call("echo", json!({})).await.said(), "{}");
    let back = json!({ "requestState": state, "inputResponses": { "q": { "action": "accept" } } });
    // Another user, and the user's other client, hold nothing that goes on with it.
    let thief = bridge::call(&house.caller("bob"), "ask", json!({}), back.clone()).await;
    assert_eq!(thief.status, 400, "{}", thief.text());
    let said = bridge::call(&alice, "ask", json!({}), back).await.said();
    assert!(said.contains("accept"), "{said}");
    assert_eq!(
        told(&session, "tools/call").await,
        3,
        "the call was made once"
    );
    assert_eq!(house.children_started(), 1);
    session.send("DELETE", "").await;
    let rest = stream.end().await;
    assert!(!rest.contains("elicitation"), "{rest}");

    let house = crowd("server").open().await;
    let said = bridge::call(&house.caller("alice"), "ask", json!({}), json!({})).await;
    assert!(said.said().contains("-32601"), "{}", said.text());
}

/// mcp-M1, mcp-T28: legacy sessions share a child that speaks modern MCP alone: what it needs for a call is asked
/// of that call's client, even where users meet, and each session's subscription is its own.
#[tokio::test]
async fn legacy_sessions_share_a_modern_server() {
    let plan = house().argument("--modern").argument("--changes");
    let house = plan.top("scope = \"server\"\n").open().await;
    let (alice, bob) = (elicits(&house, "alice").await, elicits(&house, "bob").await);
    assert_eq!(house.children_started(), 1);
    let (mut hers, mut his) = (own_stream(&alice).await, own_stream(&bob).await);
    let open = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    assert_eq!(alice.post(open).await.status, 202);
    // It says so to each subscription as it begins, under that one's name.
    let changed = "notifications/tools/list_changed";
    assert_eq!(hers.next().await["method"], changed);

    let need = |caller: &Caller| caller.bytes("POST", &call(7, "need", json!({})));
    let mut first = Events::open(house.address, &need(&alice)).await;
    let mut second = Events::open(house.address, &need(&bob)).await;
    let (asks_her, asks_him) = (first.next().await, second.next().await);
    let accept = |to: &Value, who: &str| {
        let result = json!({ "action": "accept", "content": { "who": who } });
        json!({ "jsonrpc": "2.0", "id": to["id"], "result": result }).to_string()
    };
    assert_eq!(bob.post(&accept(&asks_him, "bob")).await.status, 202);
    assert_eq!(alice.post(&accept(&asks_her, "alice")).await.status, 202);
    for (stream, who, other) in [(&mut first, "alice", "bob"), (&mut second, "bob", "alice")] {
        let answer = stream.next().await;
        assert_eq!(answer["id"], 7);
        let said = answer["result"]["content"][0]["text"].as_str().unwrap();
        assert!(said.contains(who) && !said.contains(other), "{said}");
    }
    // A modern client is served by the same child.
    let said = modern::tool(&house.caller("carol"), "echo", json!({ "n": 1 })).await;
    assert_eq!(said.said(), "{\"n\": 1}");
    assert_eq!(house.children_started(), 1);
    assert_eq!(bob.post(open).await.status, 202);
    assert_eq!(his.next().await["method"], changed);
    alice.send("DELETE", "").await;
    let rest = hers.end().await;
    assert!(
        !rest.contains(changed) && !rest.contains("elicitation"),
        "{rest}"
    );
}

/// mcp-T28, inc-7: subscriptions of users who share a server that speaks modern MCP: one name, and each hears its own.
#[tokio::test]
async fn subscriptions_of_users_who_share_a_child_are_their_own() {
    let house = house().argument("--modern");
    let house = house.top("scope = \"server\"\n").open().await;
    let listen = |subject: &str, uri: &str| {
        let wanted = json!({ "resourceSubscriptions": [uri] });
        modern::listens(&house.caller(subject), "\"same\"", wanted)
    };
    let mut hers = Events::open(house.address, &listen("alice", "a:a")).await;
    let mut his = Events::open(house.address, &listen("bob", "b:b")).await;
    for stream in [&mut hers, &mut his] {
        for _ in ["acknowledged", "tools/list_changed"] {
            stream.next().await;
        }
    }
    let carol = house.caller("carol");
    for uri in ["c:c", "b:b", "a:a"] {
        modern::tool(&carol, "announce", json!({ "uri": uri })).await;
    }
    for (stream, uri) in [(&mut hers, "a:a"), (&mut his, "b:b")] {
        let updated = stream.next().await;
        let label = "io.modelcontextprotocol/subscriptionId";
        assert_eq!(
            updated["params"],
            json!({ "_meta": { label: "same" }, "uri": uri })
        );
    }
    // Who leaves ends his own.
    drop(hers);
    let lines = async {
        loop {
            let lines = modern::seen(&carol).await;
            if lines.iter().any(|line| line.contains("cancelled")) {
                return lines;
            }
        }
    };
    let lines = timeout(PATIENCE, lines).await.unwrap();
    let lines: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let number = |subscribed: &Value| {
        let wanted = &subscribed["params"]["notifications"]["resourceSubscriptions"];
        (*wanted == json!(["a:a"])).then(|| subscribed["id"].clone())
    };
    let ended = lines
        .iter()
        .find(|line| line["method"] == "notifications/cancelled");
    assert_eq!(
        lines.iter().find_map(number).unwrap(),
        ended.unwrap()["params"]["requestId"]
    );
    modern::tool(&carol, "announce", json!({ "uri": "b:b" })).await;
    assert_eq!(his.next().await["params"]["uri"], "b:b");
    assert_eq!(house.children_started(), 1);
}

/// mcp-T29: a log message of a child that a user's clients share is for the one whose call has asked for any, and where
/// users meet for nobody.
#[tokio::test]
async fn a_log_message_of_a_shared_child_goes_to_whoever_asked() {
    for (scope, heard) in [("user", true), ("server", false)] {
        let house = house().argument("--modern");
        let house = house.top(&format!("scope = \"{scope}\"\n")).open().await;
        let session = session_of(&house, "alice", "2025-11-25").await;
        let mut other = own_stream(&session).await;
        let alice = house.caller("alice");
        let log = async |meta: Value| {
            let params = json!({ "name": "log", "arguments": { "data": "hello" } });
            let body = modern::body(1, "tools/call", params, meta);
            let bytes = modern::bytes(&alice, "tools/call", Some("log"), &body);
            let answer = wire::exchange(house.address, &bytes).await;
            answer.text().contains("hello")
        };
        assert!(!log(json!({})).await);
        let level = json!({ "io.modelcontextprotocol/logLevel": "info" });
        assert_eq!(log(level).await, heard, "{scope}");
        session.send("DELETE", "").await;
        let rest = other.end().await;
        assert!(!rest.contains("hello"), "{rest}");
    }
}

/// A child that reads nothing fills what may wait for it, and still lets everybody leave, and ends.
#[tokio::test]
async fn nobody_is_kept_by_a_shared_child_that_does_not_read() {
    let house = house().top("scope = \"server\"\n").open().await;
    let (alice, bob) = (house.session("alice").await, house.session("bob").await);
    let _asleep = Events::open(
        alice.address,
        &alice.bytes("POST", &call(1, "sleep", json!({}))),
    )
    .await;
    let body = call(2, "echo", json!({ "x": "x".repeat(3 << 20) }));
    let mut sent = tokio::task::JoinSet::new();
    for number in 0..8 {
        let bob = bob.clone();
        let body = body.replacen("\"id\":2", &format!("\"id\":{}", number + 2), 1);
        sent.spawn(async move { bob.post(&body).await });
    }
    // Those that fit have no answer.
    let refused = sent.join_next().await.unwrap().unwrap();
    assert_eq!(refused.status, 200);
    assert_eq!(refused.json()["error"]["data"]["reason"], "in-flight-limit");
    for caller in [&bob, &alice] {
        assert_eq!(caller.send("DELETE", "").await.status, 204);
    }
    house.records.wait_for("child-exited").await;
}

/// A server over HTTP that answers one call of one user with an error of its transport has failed that call alone.
#[tokio::test]
async fn a_fault_of_a_shared_http_server_is_its_callers_alone() {
    let server = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/it/servers/streamable.py"
    );
    let plan = house().command(&["/usr/bin/python3", "-u", server, "8080"]);
    let plan = plan.top("transport = \"http\"\nport = 8080\nscope = \"server\"\n");
    let house = plan.open().await;
    let (alice, bob) = (house.session("alice").await, house.session("bob").await);
    let held = alice.begins("hold", json!({}));
    house.records.wait_until_held("").await;
    let failed = bob.call("status", json!({ "status": 500 })).await;
    assert_eq!(
        failed.json()["error"]["data"]["reason"],
        "server-refused",
        "{}",
        failed.text()
    );
    assert_eq!(
        bob.call("echo", json!({ "n": 1 })).await.said(),
        "{\"n\": 1}"
    );
    bob.call("release", json!({})).await;
    let held = held.await.unwrap();
    assert!(held.json()["error"].is_null(), "{}", held.text());
    assert_eq!(house.children_started(), 1);
}

/// inc-7, probe-69: what one user has a shared server print, or have too much of, costs nobody else their call or the server.
#[tokio::test]
async fn what_one_user_has_a_shared_server_print_ends_it_for_nobody() {
    let house = crowd("server")
        .with("[limits]\nmessage = \"64K\"\n")
        .open()
        .await;
    let mallory = session_of(&house, "mallory", "2025-11-25").await;
    let bob = session_of(&house, "bob", "2025-11-25").await;
    let hold = bob.bytes("POST", &call(1, "hold", json!({ "for": "bob" })));
    let waits = wire::exchange(house.address, &hold);
    let hostile = async {
        while !mallory
            .call("seen", json!({}))
            .await
            .said()
            .contains("hold")
        {}
        let print = mallory.call("print", json!({ "lines": 1000 })).await;
        assert_eq!(print.said(), "printed");
        for large in [
            json!({ "bytes": 1_000_000 }),
            json!({ "bytes": 1_000_000, "last": true }),
        ] {
            let large = mallory.call("large", large).await;
            assert_eq!(
                (large.status, &large.json()["error"]["data"]["reason"]),
                (200, &json!("message-too-large"))
            );
        }
        // The end of what is no answer names nobody, whoever waits.
        for number in 0..16 {
            let what = format!(
                r#"said: {}","result":1,"id":{number}}}"#,
                "x".repeat(1 << 17)
            );
            let print = mallory
                .call("print", json!({ "lines": 1, "what": what }))
                .await;
            assert_eq!(print.said(), "printed");
        }
        let fits = mallory.call("large", json!({ "bytes": 1000 })).await;
        assert_eq!(fits.said().len(), 1000);
        mallory.call("release", json!({ "for": "bob" })).await
    };
    let (answer, released) = tokio::join!(waits, hostile);
    assert_eq!(
        (answer.said(), released.said()),
        ("released".into(), "done".into())
    );
    assert_eq!(
        (house.children_started(), house.records.count("child-died")),
        (1, 0)
    );
}

/// conn-10: where nobody has said how many sessions a user may have, one user leaves room for another.
#[tokio::test]
async fn one_user_has_half_of_the_sessions() {
    let house = house().with("[limits]\nsessions = 3\n").open().await;
    let alice = [house.session("alice").await, house.session("alice").await];
    let third = house.caller("alice").initialize().await;
    assert_eq!(
        (third.status, &third.json()["error"]["data"]["reason"]),
        (429, &json!("user-session-limit"))
    );
    assert!(third.header("retry-after").is_some());
    let bob = house.session("bob").await;
    for caller in alice.iter().chain([&bob]) {
        assert_eq!(caller.call("echo", json!({})).await.status, 200);
    }
    assert_eq!(house.children_started(), 3);
}

/// json-16: of a server of one's own it takes as many lines in a row, and an answer between them is a new beginning.
#[tokio::test]
async fn a_server_of_ones_own_is_ended_for_lines_in_a_row_that_are_none() {
    let house = crowd("user").open().await;
    let alice = session_of(&house, "alice", "2025-11-25").await;
    for _ in 0..3 {
        let print = alice.call("print", json!({ "lines": 99 })).await;
        assert_eq!(print.said(), "printed");
    }
    assert_eq!(house.records.count("child-died"), 0);
    let print = alice.call("print", json!({ "lines": 100 })).await;
    assert_eq!(
        print.json()["error"]["data"]["reason"],
        "server-ended",
        "{print:?}"
    );
    house.records.wait_for("child-died").await;
    assert_eq!(alice.call("print", json!({ "lines": 1 })).await.status, 404);
}

/// conn-3: who does not read what a shared server says keeps nobody else waiting for it, and is kept no more than a stream holds.
#[tokio::test]
async fn a_client_that_does_not_read_keeps_nobody_else_waiting() {
    let house = crowd("server").open().await;
    let (alice, bob) = (
        session_of(&house, "alice", "2025-11-25").await,
        session_of(&house, "bob", "2025-11-25").await,
    );
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    let burst = call(5, "burst", json!({ "count": 128, "bytes": 1 << 19 }));
    stream
        .write_all(&alice.bytes("POST", &burst))
        .await
        .unwrap();
    // Behind 64 MiB that nobody takes.
    while !bob.call("seen", json!({})).await.said().contains("burst") {}
    let answer = bob.call("echo", json!({ "n": 1 })).await;
    assert!(answer.text().contains("{\\\"n\\\": 1}"), "{answer:?}");
    let mut text = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut text))
        .await
        .unwrap()
        .unwrap();
    assert!(text.len() < 24 << 20, "{} bytes were kept", text.len());
    assert!(String::from_utf8_lossy(&text).contains("done"));
    assert_eq!(house.children_started(), 1);
}

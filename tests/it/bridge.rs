//! Clients of one era and servers of the other.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use serde_json::{Value, json};
use thv::time::Clock;

use crate::{
    house::{Caller, house},
    modern::{self, body, seen, tool},
    wire::{self, Answer, Events},
};

/// A modern client that can be asked everything calls a tool, with what it has learned so far.
async fn call(caller: &Caller, name: &str, arguments: Value, more: Value) -> Answer {
    able(
        caller,
        json!({ "elicitation": {}, "sampling": {}, "roots": {} }),
        name,
        arguments,
        more,
    )
    .await
}

async fn able(caller: &Caller, can: Value, name: &str, arguments: Value, more: Value) -> Answer {
    let mut params = json!({ "name": name, "arguments": arguments });
    for (member, value) in more.as_object().unwrap() {
        params[member] = value.clone();
    }
    let meta = json!({ "io.modelcontextprotocol/clientCapabilities": can });
    let body = body(1, "tools/call", params, meta);
    let request = modern::bytes(caller, "tools/call", Some(name), &body);
    wire::exchange(caller.address, &request).await
}

/// What a call answers that asks for input: the questions and the state.
#[track_caller]
fn asked(answer: &Answer) -> (Value, String) {
    let result = answer.json()["result"].clone();
    assert_eq!(result["resultType"], "input_required", "{}", answer.text());
    let state = result["requestState"].as_str().unwrap().to_owned();
    (result["inputRequests"].clone(), state)
}

fn accept(state: &str) -> Value {
    json!({ "requestState": state, "inputResponses": { "mine-1": { "action": "accept", "content": { "n": 1 } } } })
}

#[track_caller]
fn refused(answer: &Answer, status: u16, reason: &str) {
    let error = &answer.json()["error"];
    assert_eq!(
        (answer.status, &error["data"]["reason"]),
        (status, &json!(reason)),
        "{}",
        answer.text()
    );
}

/// mcp-M1, mcp-M2: the call waits at its child until its client comes back with the answer.
#[tokio::test]
async fn a_legacy_servers_question_goes_to_a_modern_client_and_its_answer_back() {
    let house = house().open().await;
    let alice = house.caller("alice");
    let answer = call(&alice, "ask", json!({}), json!({})).await;
    let (questions, state) = asked(&answer);
    assert_eq!(answer.status, 200);
    assert_eq!(
        questions,
        json!({ "mine-1": { "method": "elicitation/create", "params": { "message": "?" } } })
    );
    assert!(!state.contains("alice") && answer.text().contains("serverInfo"));
    // What is no answer to that is asked for again, under another state.
    let mut state = state;
    for wrong in [
        json!({}),
        json!(null),
        json!({ "mine-1": 12345 }),
        json!({ "other": { "action": "accept" } }),
    ] {
        let more = json!({ "requestState": state, "inputResponses": wrong });
        let (again, next) = asked(&call(&alice, "ask", json!({}), more.clone()).await);
        assert!(again == questions && next != state);
        let used = call(&alice, "ask", json!({}), more).await;
        refused(&used, 400, "state-used");
        state = next;
    }
    let done = call(&alice, "ask", json!({}), accept(&state)).await;
    let heard: Value = serde_json::from_str(&done.said()).unwrap();
    assert_eq!(
        heard["result"],
        json!({ "action": "accept", "content": { "n": 1 } })
    );
    refused(
        &call(&alice, "ask", json!({}), accept(&state)).await,
        400,
        "state-used",
    );
    let lines = seen(&alice).await;
    assert_eq!(
        lines.iter().filter(|line| line.contains("\"ask\"")).count(),
        1,
        "{lines:#?}"
    );
    assert!(!lines.iter().any(|line| line.contains("requestState")));
    assert_eq!(house.children_started(), 1);
}

/// tok-133: what is not this caller's state for this call is refused, and reaches no child.
#[tokio::test]
async fn a_state_is_of_one_caller_and_one_call() {
    let house = house().open().await;
    let (alice, bob) = (house.caller("alice"), house.caller("bob"));
    let (_, state) = asked(&call(&alice, "ask", json!({ "a": 1 }), json!({})).await);
    let tampered = accept(&format!("{state}A"));
    refused(
        &call(&alice, "ask", json!({ "a": 1 }), tampered).await,
        400,
        "state-invalid",
    );
    let elsewhere = accept("thv1.00000000.AAAA");
    refused(
        &call(&alice, "ask", json!({ "a": 1 }), elsewhere).await,
        400,
        "state-invalid",
    );
    let answer = call(&alice, "ask", json!({ "a": 1 }), accept("a server's own")).await;
    assert_eq!(answer.status, 400);
    refused(
        &call(&alice, "ask", json!({ "a": 2 }), accept(&state)).await,
        400,
        "state-invalid",
    );
    refused(
        &call(&alice, "echo", json!({ "a": 1 }), accept(&state)).await,
        400,
        "state-invalid",
    );
    refused(
        &call(&bob, "ask", json!({ "a": 1 }), accept(&state)).await,
        400,
        "state-invalid",
    );
    assert_eq!(house.children_started(), 1, "none for bob");
    let told = house.records.all().join("\n");
    assert_eq!(
        told.matches("THV_REASON=state-of-another").count(),
        3,
        "{told}"
    );
    assert_eq!(
        told.matches("THV_REASON=state-invalid").count(),
        2,
        "{told}"
    );
    let done = call(&alice, "ask", json!({ "a": 1 }), accept(&state)).await;
    assert!(done.said().contains("accept"), "it still waits");
    let lines = seen(&alice).await;
    assert_eq!(
        lines.iter().filter(|line| line.contains("\"ask\"")).count(),
        1
    );
    assert!(!lines.iter().any(|line| line.contains("\"echo\"")));
}

/// tok-133: a state that is too old is refused; a child that is gone is an error, and the call is not made again.
#[tokio::test]
async fn a_state_ends_with_its_time_and_with_its_child() {
    let later = Arc::new(AtomicU64::new(0));
    let offset = later.clone();
    let system = Clock::system();
    let clock = Clock::new(move || system.now() + offset.load(Ordering::Relaxed));
    let house = house().clock(clock).open().await;
    let alice = house.caller("alice");
    let (_, state) = asked(&call(&alice, "ask", json!({}), json!({})).await);
    later.store(601, Ordering::Relaxed);
    refused(
        &call(&alice, "ask", json!({}), accept(&state)).await,
        400,
        "state-expired",
    );
    later.store(0, Ordering::Relaxed);
    assert_eq!(tool(&alice, "crash", json!({})).await.status, 502);
    house.records.wait_for("child-died").await;
    refused(
        &call(&alice, "ask", json!({}), accept(&state)).await,
        502,
        "state-lost",
    );
    assert_eq!(house.children_started(), 1, "none for what is lost");
    // Another child is another generation.
    tool(&alice, "echo", json!({})).await;
    refused(
        &call(&alice, "ask", json!({}), accept(&state)).await,
        502,
        "state-lost",
    );
    assert!(
        !seen(&alice)
            .await
            .iter()
            .any(|line| line.contains("\"ask\""))
    );
}

/// mcp-M1, mcp-T21: a client is asked only what it says that it can answer, and hears what it lacks where nothing else helps.
#[tokio::test]
async fn a_client_is_not_asked_what_it_cannot_answer() {
    let house = house().open().await;
    let alice = house.caller("alice");
    let sample =
        json!({ "method": "sampling/createMessage", "params": { "messages": [], "maxTokens": 1 } });
    let form_only = json!({ "elicitation": {} });
    let answer = able(&alice, form_only.clone(), "ask", sample.clone(), json!({})).await;
    assert!(
        answer.said().contains("-32601"),
        "the server went on without"
    );
    let mut must = sample;
    must["must"] = json!(true);
    let answer = able(&alice, form_only, "ask", must, json!({})).await;
    let error = &answer.json()["error"];
    assert_eq!((answer.status, &error["code"]), (400, &json!(-32021)));
    assert_eq!(
        error["data"]["requiredCapabilities"],
        json!({ "sampling": {} })
    );
}

/// The child does not wait, so the answer does, and comes with the next look at the call.
#[tokio::test]
async fn an_answer_that_comes_before_the_input_is_kept() {
    let house = house().open().await;
    let alice = house.caller("alice");
    let hasty = json!({ "impatient": true });
    let answer = call(&alice, "ask", hasty.clone(), json!({})).await;
    // Both may have come together: then there was nothing to ask.
    let said = if answer.json()["result"]["resultType"] == "input_required" {
        let (_, state) = asked(&answer);
        call(&alice, "ask", hasty, accept(&state)).await.said()
    } else {
        answer.said()
    };
    assert_eq!(said, "nobody said anything");
    assert_eq!(tool(&alice, "echo", json!({})).await.status, 200);
}

/// mcp-T28: one subscription hears of what it wanted, under its own name, as long as anybody wants it the child is told so.
#[tokio::test]
async fn a_subscription_hears_what_a_legacy_server_says_of_changes() {
    let house = house().argument("--changes").open().await;
    let alice = house.caller("alice");
    let listen = |id: &str, wanted: Value| {
        let body = body(
            id,
            "subscriptions/listen",
            json!({ "notifications": wanted }),
            json!({}),
        );
        modern::bytes(&alice, "subscriptions/listen", None, &body)
    };
    let discovered = modern::ask(&alice, "server/discover", json!({}))
        .await
        .json();
    assert_eq!(
        discovered["result"]["capabilities"],
        json!({ "tools": { "listChanged": true }, "resources": { "subscribe": true }, "logging": {} })
    );
    let wanted = json!({ "toolsListChanged": true, "promptsListChanged": true, "resourceSubscriptions": ["file:///a"] });
    let mut one = Events::open(house.address, &listen("\"one\"", wanted)).await;
    let mut two = Events::open(
        house.address,
        &listen(
            "2",
            json!({ "resourceSubscriptions": ["file:///b", "file:///a"] }),
        ),
    )
    .await;
    let label = "io.modelcontextprotocol/subscriptionId";
    let first = one.next().await;
    assert_eq!(first["method"], "notifications/subscriptions/acknowledged");
    assert_eq!(
        first["params"],
        json!({ "_meta": { label: "one" }, "notifications": { "toolsListChanged": true, "resourceSubscriptions": ["file:///a"] } })
    );
    two.next().await;
    for arguments in [
        json!({}),
        json!({ "uri": "file:///b" }),
        json!({ "uri": "file:///c" }),
        json!({ "uri": "file:///a" }),
    ] {
        let said = tool(&alice, "announce", arguments).await;
        assert!(!said.text().contains("notifications/"));
    }
    let tools = one.next().await;
    assert_eq!(
        tools,
        json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed", "params": { "_meta": { label: "one" } } })
    );
    let updated = |id: Value, uri: &str| json!({ "jsonrpc": "2.0", "method": "notifications/resources/updated", "params": { "_meta": { label: id }, "uri": uri } });
    assert_eq!(one.next().await, updated(json!("one"), "file:///a"));
    assert_eq!(two.next().await, updated(json!(2), "file:///b"));
    assert_eq!(two.next().await, updated(json!(2), "file:///a"));
    let count =
        |lines: &[String], what: &str| lines.iter().filter(|line| line.contains(what)).count();
    drop(two);
    let unsubscribed = async {
        loop {
            let lines = seen(&alice).await;
            if count(&lines, "resources/unsubscribe") > 0 {
                return lines;
            }
        }
    };
    let lines = tokio::time::timeout(wire::PATIENCE, unsubscribed)
        .await
        .unwrap();
    assert_eq!(count(&lines, "resources/subscribe"), 2);
    let gone = |uri: &str| {
        lines
            .iter()
            .any(|line| line.contains("unsubscribe") && line.contains(uri))
    };
    assert!(gone("file:///b") && !gone("file:///a"), "{lines:#?}");
    assert_eq!(
        count(&lines, "cancelled") + count(&lines, "subscriptions/listen"),
        0
    );
}

/// mcp-T29: a legacy server is told once how much anybody wants to hear, and each call hears what it asked for.
#[tokio::test]
async fn a_log_level_of_one_call_is_set_at_a_legacy_server() {
    let house = house().argument("--changes").open().await;
    let alice = house.caller("alice");
    let log = async |level: Option<&str>| {
        let meta = level.map_or(
            json!({}),
            |level| json!({ "io.modelcontextprotocol/logLevel": level }),
        );
        let body = body(
            1,
            "tools/call",
            json!({ "name": "log", "arguments": { "data": "hello" } }),
            meta,
        );
        let answer = wire::exchange(
            house.address,
            &modern::bytes(&alice, "tools/call", Some("log"), &body),
        )
        .await;
        answer.text().contains("hello")
    };
    assert!(!log(None).await);
    assert!(!log(Some("error")).await, "the server says info");
    assert!(log(Some("info")).await);
    assert!(!log(Some("error")).await);
    assert!(!log(None).await);
    let lines = seen(&alice).await;
    let levels: Vec<_> = lines
        .iter()
        .filter(|line| line.contains("logging/setLevel"))
        .collect();
    assert!(
        levels.len() == 2 && levels[0].contains("error") && levels[1].contains("info"),
        "{levels:?}"
    );
}

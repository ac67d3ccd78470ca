//! Clients of one era and servers of the other.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use base64::Engine as _;
use serde_json::{Value, json};
use thv::time::Clock;

use crate::{
    clients::peers,
    house::{self, Caller, House, house},
    modern::{self, body, seen, tool},
    wire::{self, Answer, Events},
};

/// What has reached the server.
async fn messages(caller: &Caller) -> Vec<Value> {
    let lines = caller.seen().await;
    let read = |line: &String| serde_json::from_str(line).unwrap();
    lines.iter().map(read).collect()
}

/// A modern client that can be asked everything calls a tool, with what it has learned so far.
pub async fn call(caller: &Caller, name: &str, arguments: Value, more: Value) -> Answer {
    able(
        caller,
        json!({ "elicitation": {}, "sampling": {}, "roots": {} }),
        name,
        arguments,
        more,
    )
    .await
}

pub async fn able(
    caller: &Caller,
    can: Value,
    name: &str,
    arguments: Value,
    more: Value,
) -> Answer {
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
pub fn asked(answer: &Answer) -> (Value, String) {
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

/// The child that serves now has heard of no call that asks.
pub async fn was_not_called(caller: &Caller) {
    let lines = seen(caller).await;
    assert!(
        !lines.iter().any(|line| line.contains("\"ask\"")),
        "{lines:?}"
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

/// Told with its own id that there is no such state, whoever's it is: that is for the record.
fn is_no_state(house: &House, answer: &Answer, reason: &str) {
    let none = "requestState is none that was given for this call";
    is_told(house, answer, (400, -32602, none, "state-invalid"), reason);
}

/// Status, body and the last record are these and no others. What only a child's own conversation
/// can tell was permitted before, so it is an outcome.
fn is_told(
    house: &House,
    answer: &Answer,
    (status, code, message, word): (u16, i64, &str, &str),
    reason: &str,
) {
    let error = json!({ "code": code, "message": message, "data": { "reason": word } });
    let body = json!({ "jsonrpc": "2.0", "id": 1, "error": error });
    assert_eq!((answer.status, answer.json()), (status, body), "{reason}");
    assert_eq!(answer.header("www-authenticate"), None, "{reason}");
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{reason}");
    let last = house.records.all().pop().unwrap();
    let is_refused = last.contains("THV_DECISION=deny ") || last.contains("THV_OUTCOME=failed ");
    let is_why = last.contains(&format!("THV_REASON={reason} "));
    assert!(is_refused && is_why, "{reason}: {last}");
}

/// tok-133: what is not this caller's state for this call is refused, and reaches no child.
#[tokio::test]
async fn a_state_is_of_one_caller_and_one_call() {
    let house = house().open().await;
    let (alice, bob) = (house.caller("alice"), house.caller("bob"));
    let (_, state) = asked(&call(&alice, "ask", json!({ "a": 1 }), json!({})).await);
    let middle = state.len() / 2;
    let mut changed = state.clone().into_bytes();
    changed[middle] = if changed[middle] == b'A' { b'B' } else { b'A' };
    for forged in [
        format!("{state}A"),
        String::from_utf8(changed).unwrap(),
        state[..middle].to_owned(),
        "thv1.00000000.AAAA".to_owned(),
    ] {
        let answer = call(&alice, "ask", json!({ "a": 1 }), accept(&forged)).await;
        is_no_state(&house, &answer, "state-invalid");
    }
    // Of another kind: a server's own perhaps, but this one has asked for nothing.
    for foreign in ["a server's own", ""] {
        let answer = call(&alice, "ask", json!({ "a": 1 }), accept(foreign)).await;
        let told = (400, -32600, "nobody asked for this response", "not-asked");
        is_told(&house, &answer, told, "not-asked");
    }
    for (caller, tool, arguments) in [
        (&alice, "ask", json!({ "a": 2 })),
        (&alice, "echo", json!({ "a": 1 })),
        (&bob, "ask", json!({ "a": 1 })),
    ] {
        let answer = call(caller, tool, arguments, accept(&state)).await;
        is_no_state(&house, &answer, "state-of-another");
    }
    assert_eq!(house.children_started(), 1, "none for bob");
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
    let old = call(&alice, "ask", json!({}), accept(&state)).await;
    let expired = "requestState has expired: make the call again";
    let told = (400, -32602, expired, "state-expired");
    is_told(&house, &old, told, "state-expired");
    later.store(0, Ordering::Relaxed);
    assert_eq!(tool(&alice, "crash", json!({})).await.status, 502);
    house.records.wait_for("child-died").await;
    let gone = "the server that asked is gone, and its call with it: make the call again";
    let lost = (502, -32603, gone, "state-lost");
    let answer = call(&alice, "ask", json!({}), accept(&state)).await;
    is_told(&house, &answer, lost, "state-lost");
    assert_eq!(house.children_started(), 1, "none for what is lost");
    // Another child is another generation.
    tool(&alice, "echo", json!({})).await;
    let answer = call(&alice, "ask", json!({}), accept(&state)).await;
    is_told(&house, &answer, lost, "state-lost");
    was_not_called(&alice).await;
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

/// mcp-M1, mcp-T24: a legacy server's refusal that says where to go first asks a modern client that can, and when its user
/// has been there the call is made again, by that client's own word; else the refusal stays one.
#[tokio::test]
async fn a_legacy_server_sends_a_modern_clients_user_away_first() {
    let house = house().open().await;
    let alice = house.caller("alice");
    let visit = async |can: Value, more: Value| {
        let can = json!({ "elicitation": can });
        able(&alice, can, "visit", json!({ "n": 1.0 }), more).await
    };
    let url = || json!({ "url": {} });
    let (questions, state) = asked(&visit(url(), json!({})).await);
    let place = |name: &str| json!({ "method": "elicitation/create", "params": { "mode": "url", "url": format!("https://{name}"), "message": "go" } });
    assert_eq!(questions, json!({ "a": place("a"), "b": place("b") }));
    let went = |a: &str, b: &str, state: &str| json!({ "requestState": state, "inputResponses": { "a": { "action": a }, "b": { "action": b } } });
    let done = visit(url(), went("accept", "accept", &state)).await;
    // It sees the call as it was, and nothing of what was asked meanwhile.
    let seen_by_it: Value = serde_json::from_str(&done.said()).unwrap();
    assert_eq!(
        seen_by_it,
        json!({ "name": "visit", "arguments": { "n": 1.0 }, "_meta": {} })
    );
    let again = visit(url(), went("accept", "accept", &state)).await;
    refused(&again, 400, "state-used");
    // Who does not go has the refusal, without a code that modern MCP does not have.
    let (_, state) = asked(&visit(url(), json!({})).await);
    let stays = visit(url(), went("accept", "decline", &state)).await;
    assert_eq!(stays.json()["error"]["code"], -32603, "{}", stays.text());
    assert!(stays.text().contains("go there first"));
    let lines = seen(&alice).await;
    let made = lines.iter().filter(|line| line.contains("\"visit\""));
    assert_eq!(made.count(), 3);
    // Whose client cannot is told what it lacks.
    visit(url(), json!({})).await;
    let lacks = visit(json!({}), json!({})).await;
    assert_eq!(
        (lacks.status, &lacks.json()["error"]["code"]),
        (400, &json!(-32021))
    );
    assert_eq!(
        lacks.json()["error"]["data"]["requiredCapabilities"],
        json!({ "elicitation": { "url": {} } })
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
    let listen = |id: &str, wanted: Value| modern::listens(&alice, id, wanted);
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

/// A legacy client that can be asked everything, in a session with a modern server.
async fn elder(house: &House, can: Value) -> (Caller, Value) {
    let mut caller = house.caller("alice");
    let body = json!({ "jsonrpc": "2.0", "id": "i", "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": can, "clientInfo": { "name": "elder", "version": "1" },
    } });
    let answer = caller.post(&body.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    caller.session = answer.header("mcp-session-id").map(str::to_owned);
    (caller, answer.json())
}

/// mcp-T18, mcp-T20: a server that knows no `initialize` is asked once what it speaks, and serves a legacy client.
#[tokio::test]
async fn a_modern_server_serves_legacy_clients() {
    let house = house()
        .argument("--modern")
        .argument("--changes")
        .open()
        .await;
    let (alice, initialized) = elder(&house, json!({ "elicitation": {}, "tasks": {} })).await;
    assert_eq!(
        initialized,
        json!({ "jsonrpc": "2.0", "id": "i", "result": {
            "protocolVersion": "2025-06-18",
            "capabilities": { "tools": { "listChanged": true }, "resources": { "subscribe": true }, "logging": {} },
            "serverInfo": { "name": "scripted", "version": "1" },
        } })
    );
    let list = alice
        .post(r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#)
        .await
        .json();
    let members: Vec<_> = list["result"].as_object().unwrap().keys().collect();
    assert_eq!(members, ["tools"]);
    assert_eq!(
        alice.call("echo", json!({ "n": 1 })).await.said(),
        "{\"n\": 1}"
    );
    let progress = alice.call("progress", json!({})).await.text();
    assert_eq!(
        progress.matches("\"progressToken\":\"p-progress\"").count(),
        2,
        "{progress}"
    );
    let ask = async |method: &str, params: Value| {
        let body = json!({ "jsonrpc": "2.0", "id": 2, "method": method, "params": params });
        let answer = alice.post(&body.to_string()).await.json();
        answer
            .get("result")
            .cloned()
            .unwrap_or(answer["error"]["code"].clone())
    };
    assert_eq!(ask("ping", json!({})).await, json!({}));
    assert_eq!(
        ask("logging/setLevel", json!({ "level": "error" })).await,
        json!({})
    );
    assert_eq!(
        ask("logging/setLevel", json!({ "level": "loud" })).await,
        -32602
    );
    assert_eq!(ask("tasks/list", json!({})).await, -32601);
    let heard: Value = serde_json::from_str(&alice.call("ask", json!({})).await.said()).unwrap();
    assert_eq!(
        heard["error"]["code"], -32601,
        "it may ask by its answers alone"
    );
    let lines = messages(&alice).await;
    let sent = |method: &str| {
        lines
            .iter()
            .filter(|line| line["method"] == method)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (sent("initialize").len(), sent("server/discover").len()),
        (1, 1)
    );
    assert_eq!(
        sent("ping").len() + sent("logging/setLevel").len() + sent("tasks/list").len(),
        0
    );
    let meta = |line: &Value| line["params"]["_meta"].clone();
    let mut expected = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": { "elicitation": {} },
        "io.modelcontextprotocol/clientInfo": { "name": "elder", "version": "1" },
        "io.modelcontextprotocol/logLevel": "info",
    });
    assert_eq!(meta(sent("tools/list")[0]), expected);
    let last = *sent("tools/call").last().unwrap();
    expected["io.modelcontextprotocol/logLevel"] = json!("error");
    expected["progressToken"] = last["id"].clone();
    assert_eq!(meta(last), expected);
    let outcomes = house.records.all();
    let failed = outcomes
        .iter()
        .filter(|record| record.contains("THV_OUTCOME=failed"))
        .count();
    assert_eq!(
        failed, 0,
        "the client's initialize has not failed: {outcomes:#?}"
    );
}

/// mcp-T27: there are servers that end at a first message that is not `initialize`. Such a one is started once more and
/// not asked what it speaks, and neither is the next; where there is a single place, too. Whatever the scope.
#[tokio::test]
async fn a_server_that_ends_when_it_is_asked_what_it_speaks_serves_modern_clients() {
    for scope in ["session", "user", "server"] {
        let plan = house()
            .argument("--strict")
            .top(&format!("scope = \"{scope}\"\n"));
        let house = plan.with("[limits]\nsessions = 1\n").open().await;
        let alice = house.caller("alice");
        assert_eq!(
            tool(&alice, "echo", json!({ "n": 1 })).await.said(),
            "{\"n\": 1}"
        );
        assert_eq!(house.children_started(), 2, "{scope}");
        assert_eq!(tool(&alice, "crash", json!({})).await.status, 502);
        let died = |house: &House| house.records.count("child-died");
        while died(&house) < 2 {
            house
                .records
                .wait_for_more("child-died", died(&house))
                .await;
        }
        let lines = seen(&alice).await;
        assert!(lines[0].contains("\"initialize\""), "{lines:?}");
        assert_eq!(house.children_started(), 3, "it is known by now");
    }
    // One that has no reason to be started again is not started for ever.
    let broken = house().command(&["/bin/false"]).open().await;
    let answer = tool(&broken.caller("alice"), "echo", json!({})).await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["data"]["reason"]),
        (502, &json!("server-ended"))
    );
    assert_eq!(broken.children_started(), 2);
}

/// One whose `initialize` is refused, and which does not speak the modern version either, has refused.
#[tokio::test]
async fn a_refused_initialize_stays_one() {
    let house = house().argument("--refuse").open().await;
    let answer = house
        .caller("alice")
        .post(&house::initialize("2025-11-25"))
        .await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["code"]),
        (200, &json!(-32602))
    );
    assert_eq!(answer.header("mcp-session-id"), None);
    let told = house.records.all().join("\n");
    assert_eq!(told.matches("THV_REASON=server-error").count(), 1, "{told}");
}

/// mcp-M1, mcp-M2: what a modern server asks for by its answer is asked of a legacy client, and the call made again under a new id.
#[tokio::test]
async fn a_modern_servers_need_goes_to_a_legacy_client_and_its_answer_back() {
    let house = house().argument("--modern").open().await;
    let (alice, _) = elder(&house, json!({ "elicitation": {}, "sampling": {} })).await;
    let need = |arguments: Value| alice.bytes("POST", &house::call(7, "need", arguments));
    let respond = async |to: &Value, member: &str, what: Value| {
        let body = json!({ "jsonrpc": "2.0", "id": to["id"], member: what });
        alice.post(&body.to_string()).await.status
    };
    let mut stream = Events::open(house.address, &need(json!({ "twice": true }))).await;
    let first = stream.next().await;
    assert_eq!(
        (&first["method"], &first["params"]),
        (&json!("elicitation/create"), &json!({ "message": "first" }))
    );
    assert_eq!(
        respond(
            &first,
            "result",
            json!({ "action": "accept", "content": { "n": 1 } })
        )
        .await,
        202
    );
    let second = stream.next().await;
    assert_eq!(second["params"]["message"], "second");
    assert_eq!(
        respond(&first, "result", json!({ "action": "accept" })).await,
        202,
        "that was answered, and this has no effect"
    );
    let never = json!({ "id": "thv-9-1-0" });
    assert_eq!(respond(&never, "result", json!({})).await, 400);
    // A refusal to be asked is the user's way out.
    assert_eq!(
        respond(&second, "error", json!({ "code": -1, "message": "no" })).await,
        202
    );
    let answer = stream.next().await;
    assert_eq!(answer["id"], 7);
    let said: Value =
        serde_json::from_str(answer["result"]["content"][0]["text"].as_str().unwrap()).unwrap();
    assert_eq!(
        said,
        json!({ "state": "second", "responses": { "what": { "action": "cancel" } } })
    );
    let lines = messages(&alice).await;
    let calls: Vec<_> = lines
        .iter()
        .filter(|line| line["params"]["name"] == "need")
        .collect();
    assert_eq!(calls.len(), 3);
    assert!(calls[0]["id"] != calls[1]["id"] && calls[1]["id"] != calls[2]["id"]);
    for call in &calls {
        assert_eq!(call["params"]["arguments"], json!({ "twice": true }));
        assert_eq!(call["params"]["_meta"]["progressToken"], call["id"]);
        assert_eq!(
            call["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"],
            "2026-07-28"
        );
    }
    assert_eq!(
        calls[1]["params"]["inputResponses"]["what"],
        json!({ "action": "accept", "content": { "n": 1 } })
    );

    // A state alone is brought back at once.
    let said = alice.call("need", json!({ "nothing": true })).await.said();
    assert_eq!(said, r#"{"responses": {}, "state": "first"}"#);
    // But not for ever.
    let endless = alice
        .call("need", json!({ "nothing": true, "forever": true }))
        .await;
    assert_eq!(
        endless.json()["error"]["data"]["reason"],
        "server-protocol-error"
    );
    let calls = alice.seen().await;
    let calls = calls.iter().filter(|line| line.contains("forever"));
    assert_eq!(calls.count(), 33, "once, and as often again as it may be");
    // What nobody will answer, and no answer stands for, ends the call.
    let mut stream = Events::open(
        house.address,
        &need(json!({ "method": "sampling/createMessage" })),
    )
    .await;
    let question = stream.next().await;
    assert_eq!(
        respond(&question, "error", json!({ "code": -1, "message": "no" })).await,
        202
    );
    assert_eq!(
        stream.next().await["error"]["data"]["reason"],
        "input-refused"
    );
    // So does what the client never said that it can be asked.
    let roots = alice.call("need", json!({ "method": "roots/list" })).await;
    assert_eq!(
        roots.json()["error"]["data"]["reason"],
        "server-protocol-error"
    );
    // A cancelled call wants no answer.
    let mut stream = Events::open(house.address, &need(json!({}))).await;
    let question = stream.next().await;
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":7}}"#;
    assert_eq!(alice.post(cancel).await.status, 202);
    let told = stream.next().await;
    assert_eq!(
        (&told["method"], &told["params"]["requestId"]),
        (&json!("notifications/cancelled"), &question["id"])
    );
    assert_eq!(
        respond(&question, "result", json!({ "action": "accept" })).await,
        202
    );
    let cancelled = alice
        .seen()
        .await
        .iter()
        .any(|line| line.contains("notifications/cancelled"));
    assert!(!cancelled, "the child has answered that call");
}

/// mcp-M1: all that a modern server may ask for at once, of a client that takes it: a form, a model and roots.
#[tokio::test]
async fn a_modern_server_asks_a_legacy_client_for_a_model_and_for_roots() {
    let house = house().argument("--modern").open().await;
    let can = json!({ "elicitation": {}, "sampling": {}, "roots": { "listChanged": true } });
    let (alice, _) = elder(&house, can).await;
    let methods = json!({ "form": "elicitation/create", "model": "sampling/createMessage", "roots": "roots/list" });
    let mut stream = Events::open(
        house.address,
        &alice.bytes(
            "POST",
            &house::call(7, "need", json!({ "methods": methods })),
        ),
    )
    .await;
    let given = json!({
        "form": { "action": "accept", "content": { "n": 1.5 } },
        "model": { "role": "assistant", "model": "m", "content": { "type": "text", "text": "é" } },
        "roots": { "roots": [{ "uri": "file:///a" }] },
    });
    for _ in 0..3 {
        let asked = stream.next().await;
        let key = methods.as_object().unwrap().iter();
        let mut key = key.filter(|(_, method)| **method == asked["method"]);
        let (key, _) = key.next().unwrap();
        let answer = json!({ "jsonrpc": "2.0", "id": asked["id"], "result": given[key] });
        assert_eq!(alice.post(&answer.to_string()).await.status, 202);
    }
    let answer = stream.next().await;
    let said = answer["result"]["content"][0]["text"].as_str().unwrap();
    let said: Value = serde_json::from_str(said).unwrap();
    assert_eq!(said, json!({ "state": "first", "responses": given }));
    let calls = messages(&alice).await;
    let calls: Vec<_> = calls
        .iter()
        .filter(|line| line["params"]["name"] == "need")
        .collect();
    assert_eq!(calls.len(), 2, "once all is said");
    // What it is told that the client can, and no more: nobody can tell it that roots have changed.
    assert_eq!(
        calls[0]["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"],
        json!({ "elicitation": {}, "sampling": {}, "roots": {} })
    );
}

/// mcp-T28: what a legacy client subscribes to is one subscription at a modern server.
#[tokio::test]
async fn a_modern_servers_changes_reach_a_legacy_client() {
    let house = house()
        .argument("--modern")
        .argument("--changes")
        .open()
        .await;
    let (alice, _) = elder(&house, json!({})).await;
    let mut own = Events::open(house.address, &alice.bytes("GET", "")).await;
    assert_eq!(own.line().await, "HTTP/1.1 200 OK");
    let initialized = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    assert_eq!(alice.post(initialized).await.status, 202);
    let changed = own.next().await;
    assert_eq!(
        changed,
        json!({ "jsonrpc": "2.0", "method": "notifications/tools/list_changed", "params": { "_meta": {} } })
    );
    let subscribe = |what: &str| {
        let params = r#"{"uri":"file:///a"}"#;
        format!(r#"{{"jsonrpc":"2.0","id":3,"method":"resources/{what}","params":{params}}}"#)
    };
    assert_eq!(
        alice.post(&subscribe("subscribe")).await.json()["result"],
        json!({})
    );
    // It says so to the new subscription too, as it begins, and then that the resource has changed.
    assert_eq!(own.next().await["method"], changed["method"]);
    let announce = async |uri: &str| {
        let said = alice.call("announce", json!({ "uri": uri })).await;
        assert_eq!(said.said(), "announced");
    };
    announce("file:///b").await;
    announce("file:///a").await;
    let updated = own.next().await;
    assert_eq!(
        updated,
        json!({ "jsonrpc": "2.0", "method": "notifications/resources/updated", "params": { "_meta": {}, "uri": "file:///a" } })
    );
    assert_eq!(
        alice.post(&subscribe("unsubscribe")).await.json()["result"],
        json!({})
    );
    announce("file:///a").await;
    let lines = messages(&alice).await;
    let sent = |method: &str| {
        lines
            .iter()
            .filter(|line| line["method"] == method)
            .collect::<Vec<_>>()
    };
    let wanted: Vec<_> = sent("subscriptions/listen")
        .iter()
        .map(|line| line["params"]["notifications"].clone())
        .collect();
    assert_eq!(
        wanted,
        [
            json!({ "toolsListChanged": true }),
            json!({ "toolsListChanged": true, "resourceSubscriptions": ["file:///a"] }),
            json!({ "toolsListChanged": true }),
        ]
    );
    let ended: Vec<_> = sent("notifications/cancelled")
        .iter()
        .map(|line| line["params"]["requestId"].clone())
        .collect();
    let begun: Vec<_> = sent("subscriptions/listen")
        .iter()
        .map(|line| line["id"].clone())
        .collect();
    assert_eq!(ended, begun[..2], "one after the other");
    assert_eq!(
        sent("notifications/initialized").len() + sent("resources/subscribe").len(),
        0
    );
    alice.send("DELETE", "").await;
    let rest = own.end().await;
    assert!(!rest.contains("resources/updated"), "{rest}");
}

/// What one call may ask at once, and how many calls may wait, is limited; what is too much is refused to the server.
#[tokio::test]
async fn a_legacy_server_asks_within_limits() {
    let house = house().open().await;
    let alice = house.caller("alice");
    let ids = |call: &str, count: usize| {
        (0..count)
            .map(|n| format!("{call}-{n}"))
            .collect::<Vec<_>>()
    };
    let many = json!({ "ids": ids("many", 17) });
    let (questions, _) = asked(&call(&alice, "ask", many, json!({})).await);
    assert_eq!(
        questions.as_object().unwrap().len(),
        16,
        "they come together"
    );
    let refused = |lines: &[String], id: &str| {
        let id = format!("\"{id}\"");
        lines
            .iter()
            .any(|line| line.contains(&id) && line.contains("-32601"))
    };
    let lines = seen(&alice).await;
    assert!(refused(&lines, "many-16") && !refused(&lines, "many-15"));
    for waiting in 1..16 {
        let one = json!({ "ids": [format!("one-{waiting}")] });
        asked(&call(&alice, "ask", one, json!({})).await);
    }
    let meta = json!({ "io.modelcontextprotocol/clientCapabilities": { "elicitation": {} } });
    let params = json!({ "name": "ask", "arguments": { "ids": ["late"] } });
    let late = modern::bytes(
        &alice,
        "tools/call",
        Some("ask"),
        &body(1, "tools/call", params, meta),
    );
    let stream = Events::open(house.address, &late).await;
    let told = async { while !refused(&seen(&alice).await, "late") {} };
    tokio::time::timeout(wire::PATIENCE, told).await.unwrap();
    drop(stream);
}

/// A server that is not ours and asks before it answers: a model, a person, and for roots.
#[tokio::test]
async fn a_real_legacy_server_asks_modern_clients() {
    let Some(peers) = peers("host/npm/node_modules/@modelcontextprotocol/server-everything") else {
        return;
    };
    let modules = peers.join("host/npm/node_modules").canonicalize();
    let modules = modules.unwrap();
    let program = modules.join("@modelcontextprotocol/server-everything/dist/index.js");
    let house = house()
        .command(&["/usr/bin/node", program.to_str().unwrap(), "stdio"])
        .readable(&modules)
        .open()
        .await;
    let alice = house.caller("alice");
    let sampled = json!({ "role": "assistant", "model": "m", "content": { "type": "text", "text": "from a model" } });
    let filled = json!({ "action": "accept", "content": { "name": "Alice", "check": true } });
    let roots = json!({ "roots": [{ "uri": "file:///a/root", "name": "a root" }] });
    for (tool, arguments, given, said) in [
        (
            "trigger-sampling-request",
            json!({ "prompt": "hello", "maxTokens": 5 }),
            sampled,
            "from a model",
        ),
        ("trigger-elicitation-request", json!({}), filled, "Alice"),
        ("get-roots-list", json!({}), roots, "file:///a/root"),
    ] {
        let answer = call(&alice, tool, arguments.clone(), json!({})).await;
        let (questions, state) = asked(&answer);
        let key = questions.as_object().unwrap().keys().next().unwrap();
        let more = json!({ "requestState": state, "inputResponses": { key: given } });
        let done = call(&alice, tool, arguments, more).await;
        let result = &done.json()["result"];
        assert_eq!(result["resultType"], "complete");
        assert!(done.text().contains(said), "{}", done.text());
    }
    let echo = call(&alice, "echo", json!({ "message": "hello" }), json!({})).await;
    assert_eq!(echo.said(), "Echo: hello");
    assert_eq!(house.children_started(), 1);
}

/// json-21: tools with names that could be taken for another's are in nobody's list, which is on record, and reach no server,
/// whatever is spoken on either side; where the configuration takes any name they are as they are.
#[tokio::test]
async fn tools_of_odd_names_are_hidden_and_cannot_be_called() {
    for arguments in [&["--odd"][..], &["--odd", "--modern"]] {
        let plan = || {
            arguments
                .iter()
                .fold(house(), |plan, more| plan.argument(more))
        };
        let house = plan().open().await;
        let (old, new) = (house.session("alice").await, house.caller("alice"));
        let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
        let lists = [
            old.post(list).await,
            modern::ask(&new, "tools/list", json!({})).await,
        ];
        for answer in &lists {
            let tools = answer.json()["result"]["tools"].take();
            assert_eq!(
                tools,
                json!([{ "name": "echo", "inputSchema": {} }]),
                "{answer:?}"
            );
        }
        assert_eq!(house.records.count("tools-hidden"), 2);
        let records = house.records.all().join("\n");
        assert!(
            records.contains("THV_TOOL=a/b") && records.contains("THV_TOOL=ｅcho"),
            "{records}"
        );
        for name in [
            "echo ",
            "",
            "ｅcho",
            "a/b",
            "no\u{0}ne",
            "ec\nho",
            "../echo",
            "\u{202e}echo",
            "ec\u{200b}ho",
            "\u{435}cho",
            "\u{e9}",
            "e\u{301}",
            &"x".repeat(1 << 20),
        ] {
            // A header can say it in one way alone.
            let encoded = base64::engine::general_purpose::STANDARD.encode(name);
            let encoded = format!("=?base64?{encoded}?=");
            let body = body(1, "tools/call", json!({ "name": name }), json!({}));
            let plain = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": { "name": name } });
            let mut answers = vec![old.post(&plain.to_string()).await];
            if encoded.len() < 8000 {
                let request = modern::bytes(&new, "tools/call", Some(&encoded), &body);
                answers.push(wire::exchange(new.address, &request).await);
            }
            for answer in answers {
                let error = &answer.json()["error"]["code"];
                assert_eq!(
                    (answer.status, error),
                    (200, &json!(-32602)),
                    "{name:.20?}: {answer:?}"
                );
            }
        }
        assert_eq!(old.call("echo", json!({})).await.status, 200);
        // Nothing is made alike: what is plain and of no tool is the server's own to refuse, as it is.
        for name in ["Echo", "ECHO", "echo.", "no_such_tool"] {
            let answer = old.call(name, json!({})).await;
            assert_eq!(answer.json()["error"]["code"], -32602, "{name}: {answer:?}");
            let said = format!("\"{name}\"");
            assert!(old.seen().await.iter().any(|line| line.contains(&said)));
        }
        for caller in [&old, &new] {
            let lines = match caller.session {
                Some(_) => caller.seen().await,
                None => seen(caller).await,
            };
            assert!(!lines.iter().any(|line| line.contains("a/b")), "{lines:?}");
        }
        house.end().await;

        let house = plan().top("any-tool-name = true\n").open().await;
        let old = house.session("alice").await;
        let answer = old.post(list).await.json();
        assert_eq!(
            answer["result"]["tools"].as_array().unwrap().len(),
            4,
            "{answer}"
        );
        old.call("a/b", json!({})).await;
        let lines = old.seen().await;
        assert!(lines.iter().any(|line| line.contains("a/b")), "{lines:?}");
        assert_eq!(house.records.count("tools-hidden"), 0);
    }
}

//! The stateless version: no sessions, everything in the request itself.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    house::{Caller, House, house},
    wire::{self, Answer, Events},
};

const VERSION: (&str, &str) = ("MCP-Protocol-Version", "2026-07-28");

/// A modern request's body.
pub fn body(id: impl std::fmt::Display, method: &str, mut params: Value, more: Value) -> String {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    for (name, value) in more.as_object().unwrap() {
        params["_meta"][name] = value.clone();
    }
    format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"{method}","params":{params}}}"#)
}

pub fn bytes(caller: &Caller, method: &str, name: Option<&str>, body: &str) -> Vec<u8> {
    let mut headers = vec![VERSION, ("Mcp-Method", method)];
    headers.extend(name.map(|name| ("Mcp-Name", name)));
    caller.bytes_with("POST", &headers, body)
}

/// The request by which a client subscribes to that, under an id that is JSON.
pub fn listens(caller: &Caller, id: impl std::fmt::Display, wanted: Value) -> Vec<u8> {
    let params = json!({ "notifications": wanted });
    let body = body(id, "subscriptions/listen", params, json!({}));
    bytes(caller, "subscriptions/listen", None, &body)
}

pub async fn ask(caller: &Caller, method: &str, params: Value) -> Answer {
    let name = params["name"].as_str().map(str::to_owned);
    let body = body(1, method, params, json!({}));
    wire::exchange(
        caller.address,
        &bytes(caller, method, name.as_deref(), &body),
    )
    .await
}

pub async fn tool(caller: &Caller, name: &str, arguments: Value) -> Answer {
    ask(
        caller,
        "tools/call",
        json!({ "name": name, "arguments": arguments }),
    )
    .await
}

pub async fn seen(caller: &Caller) -> Vec<String> {
    serde_json::from_str(&tool(caller, "seen", json!({})).await.said()).unwrap()
}

async fn modern(policy: Option<&str>) -> House {
    let plan = house().argument("--modern");
    match policy {
        Some(policy) => plan.policy(policy).open().await,
        None => plan.open().await,
    }
}

/// mcp-T1, mcp-T23, mcp-T26: one child answers one user's requests, whatever their connections; another user's is another.
#[tokio::test]
async fn each_user_has_one_child_and_no_session() {
    let house = modern(None).await;
    let (alice, bob) = (house.caller("alice"), house.caller("bob"));
    let answer = ask(&alice, "server/discover", json!({})).await;
    assert_eq!(
        answer.json()["result"]["supportedVersions"],
        json!(["2026-07-28"])
    );
    assert_eq!(answer.header("mcp-session-id"), None);
    let calls = (0..8).map(|n| {
        let alice = alice.clone();
        tokio::spawn(async move { tool(&alice, "echo", json!({ "n": n })).await.said() })
    });
    for (n, call) in calls.collect::<Vec<_>>().into_iter().enumerate() {
        assert_eq!(
            call.await.unwrap(),
            format!("{{\"n\": {n}}}"),
            "all have one id"
        );
    }
    assert_eq!(house.children_started(), 1);
    tool(&bob, "echo", json!({ "whose": "bob" })).await;
    assert_eq!(house.children_started(), 2);
    assert!(!seen(&alice).await.iter().any(|line| line.contains("bob")));
    // A session's id means nothing here (mcp-T18), and no message is a session's.
    let mut stale = alice.clone();
    stale.session = Some("0123456789abcdef0123456789abcdef".to_owned());
    assert_eq!(tool(&stale, "echo", json!({})).await.status, 200);
}

/// tok-121 … tok-126, mcp-T3, mcp-T4, mcp-T8, mcp-T9, mcp-T10, mcp-T12, mcp-T13, mcp-T18: what does not agree with itself reaches no child.
#[tokio::test]
async fn what_is_not_a_modern_request_reaches_no_child() {
    let house = modern(None).await;
    let alice = house.caller("alice");
    let call = |id| {
        body(
            id,
            "tools/call",
            json!({ "name": "echo", "arguments": {} }),
            json!({}),
        )
    };
    let send = async |headers: &[(&str, &str)], body: &str| {
        let answer = wire::exchange(house.address, &alice.bytes_with("POST", headers, body)).await;
        (
            answer.status,
            answer.json()["error"]["code"].as_i64().unwrap(),
        )
    };
    let (method, name) = (("Mcp-Method", "tools/call"), ("Mcp-Name", "echo"));
    let body = call(1);
    assert_eq!(send(&[method, name], &body).await, (400, -32020));
    assert_eq!(send(&[VERSION, name], &body).await, (400, -32020));
    assert_eq!(send(&[VERSION, method], &body).await, (400, -32020));
    assert_eq!(
        send(&[VERSION, method, ("Mcp-Name", "secret")], &body).await,
        (400, -32020)
    );
    assert_eq!(
        send(&[VERSION, method, name, name], &body).await,
        (400, -32020)
    );
    let old = body.replace("2026-07-28", "2099-01-01");
    let future = ("MCP-Protocol-Version", "2099-01-01");
    assert_eq!(send(&[future, method, name], &old).await, (400, -32022));
    let future = alice.bytes_with("POST", &[future, method, name], &old);
    let told = wire::exchange(house.address, &future).await.json();
    assert_eq!(told["error"]["data"]["requested"], "2099-01-01", "{told}");
    assert_eq!(
        told["error"]["data"]["supported"],
        json!(["2026-07-28"]),
        "{told}"
    );
    let bare = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo"}}"#;
    assert_eq!(send(&[VERSION, method, name], bare).await, (400, -32602));
    let unknown = body.replace("tools/call", "tools/destroy");
    let destroy = ("Mcp-Method", "tools/destroy");
    assert_eq!(send(&[VERSION, destroy], &unknown).await, (404, -32601));
    let ping = body.replace("tools/call", "ping");
    assert_eq!(
        send(&[VERSION, ("Mcp-Method", "ping")], &ping).await,
        (404, -32601)
    );
    for gone in ["initialize", "resources/subscribe"] {
        let body = body.replace("tools/call", gone);
        assert_eq!(
            send(&[VERSION, ("Mcp-Method", gone)], &body).await,
            (404, -32601)
        );
    }
    let response = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
    assert_eq!(send(&[VERSION], response).await, (400, -32600));
    // json-18: a notification is accepted, and has no effect.
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
    let answer = wire::exchange(house.address, &alice.bytes_with("POST", &[VERSION], cancel)).await;
    assert_eq!((answer.status, answer.body.len()), (202, 0));
    for method in ["GET", "DELETE"] {
        let answer = wire::exchange(house.address, &alice.bytes_with(method, &[VERSION], "")).await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
    }
    let mut nobody = alice.clone();
    nobody.token = None;
    assert_eq!(tool(&nobody, "echo", json!({})).await.status, 401);
    assert_eq!(house.children_started(), 0);
}

/// mcp-T30, mcp-T31: a list shows what its reader may call, and says that it is theirs alone.
#[tokio::test]
async fn a_list_is_cut_and_private_and_what_it_hides_is_refused() {
    let policy = r#"permit(principal, action, resource) unless { resource == Tool::"secret" };"#;
    let house = modern(Some(policy)).await;
    let alice = house.caller("alice");
    let list = ask(&alice, "tools/list", json!({})).await;
    assert_eq!(list.json()["result"]["cacheScope"], "private");
    assert_eq!(list.header("cache-control"), Some("no-store"));
    assert!(list.text().contains("\"echo\"") && !list.text().contains("\"secret\""));
    let discovered = ask(&alice, "server/discover", json!({})).await;
    assert_eq!(discovered.json()["result"]["cacheScope"], "private");
    assert_eq!(tool(&alice, "secret", json!({})).await.status, 403);
    assert!(
        !seen(&alice)
            .await
            .iter()
            .any(|line| line.contains("\"secret\""))
    );
    let open = modern(None).await;
    let list = ask(&open.caller("alice"), "tools/list", json!({})).await;
    assert_eq!(
        list.json()["result"]["cacheScope"],
        "public",
        "everybody sees the same"
    );
}

/// json-19: two clients of one user may use one progress token; each hears of its own call, under its own word.
#[tokio::test]
async fn progress_tokens_do_not_cross() {
    let house = modern(None).await;
    let alice = house.caller("alice");
    let calls = [json!("same"), json!(7), json!("same"), json!(7)].map(|token| {
        let body = body(
            1,
            "tools/call",
            json!({ "name": "progress" }),
            json!({ "progressToken": token }),
        );
        let request = bytes(&alice, "tools/call", Some("progress"), &body);
        let address = house.address;
        let answer = tokio::spawn(async move { wire::exchange(address, &request).await });
        (token, answer)
    });
    for (token, answer) in calls {
        let answer = answer.await.unwrap();
        let events: Vec<Value> = answer
            .text()
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .map(|data| serde_json::from_str(data).unwrap())
            .collect();
        assert_eq!(events.len(), 3);
        assert_eq!(events[0]["params"]["progressToken"], token);
        assert!(
            !answer.text().contains("id: "),
            "nothing to go on from (mcp-T18)"
        );
    }
    assert!(
        !seen(&alice)
            .await
            .iter()
            .any(|line| line.contains("\"same\""))
    );
}

/// mcp-T7, conn-12, json-18: closing the stream cancels that request, and no other, towards the child under its own number.
#[tokio::test]
async fn a_client_that_hangs_up_cancels_its_request_alone() {
    let house = modern(None).await;
    let alice = house.caller("alice");
    let waiting = |id, what: &str| {
        let params = json!({ "name": "wait", "arguments": { "for": what } });
        bytes(
            &alice,
            "tools/call",
            Some("wait"),
            &body(id, "tools/call", params, json!({})),
        )
    };
    tool(&alice, "echo", json!({})).await;
    let kept = tokio::spawn({
        let request = waiting(5, "kept");
        async move { wire::exchange(house_address(&request), &request).await }
    });
    let lost = {
        use tokio::io::AsyncWriteExt as _;
        let mut stream = tokio::net::TcpStream::connect(house.address).await.unwrap();
        stream.write_all(&waiting(5, "lost")).await.unwrap();
        stream
    };
    let until = async |what: &str| loop {
        let lines = seen(&alice).await;
        if lines.iter().any(|line| line.contains(what)) {
            return lines;
        }
    };
    until("\"lost\"").await;
    until("\"kept\"").await;
    // To say so is no way to cancel, whoever does (json-18).
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":5}}"#;
    for caller in [&alice, &house.caller("bob")] {
        let request = caller.bytes_with("POST", &[VERSION], cancel);
        let answer = wire::exchange(house.address, &request).await;
        assert_eq!((answer.status, answer.body.len()), (202, 0));
    }
    drop(lost);
    let lines = tokio::time::timeout(wire::PATIENCE, until("notifications/cancelled"))
        .await
        .unwrap();
    let number = |what: &str| {
        let line = lines.iter().find(|line| line.contains(what)).unwrap();
        serde_json::from_str::<Value>(line).unwrap()
    };
    assert_eq!(
        number("notifications/cancelled")["params"]["requestId"],
        number("\"lost\"")["id"]
    );
    assert!(house.records.have(&["THV_REASON=client-gone"]));
    let cancelled = lines
        .iter()
        .filter(|line| line.contains("notifications/cancelled"));
    assert_eq!(cancelled.count(), 1, "{lines:?}");
    tool(&alice, "release", json!({ "for": "kept" })).await;
    assert_eq!(kept.await.unwrap().said(), "released");
}

/// Where the request says that it goes.
fn house_address(request: &[u8]) -> std::net::SocketAddr {
    let text = String::from_utf8_lossy(request);
    let host = text.lines().find_map(|line| line.strip_prefix("Host: "));
    host.unwrap().trim().parse().unwrap()
}

/// mcp-T28: a subscription's messages come under its client's id; closing it ends it; each resource in it is decided on.
#[tokio::test]
async fn a_subscription_hears_its_own_and_needs_a_permit_for_each_resource() {
    let policy =
        r#"permit(principal, action, resource) unless { resource == Resource::"file:///secret" };"#;
    let house = modern(Some(policy)).await;
    let alice = house.caller("alice");
    let listen = |id: &str, resources: Value| {
        let wanted = json!({ "toolsListChanged": true, "resourceSubscriptions": resources });
        listens(&alice, id, wanted)
    };
    for secret in [
        json!(["file:///a", "file:///secret"]),
        json!([7]),
        json!("file:///secret"),
    ] {
        let answer = wire::exchange(house.address, &listen("1", secret)).await;
        assert_eq!(answer.status, 403);
    }
    assert_eq!(house.children_started(), 0);
    let mut one = Events::open(house.address, &listen("\"mine\"", json!(["file:///a"]))).await;
    let mut two = Events::open(house.address, &listen("\"mine\"", json!([]))).await;
    for stream in [&mut one, &mut two] {
        for method in [
            "notifications/subscriptions/acknowledged",
            "notifications/tools/list_changed",
        ] {
            let event = stream.next().await;
            assert_eq!(event["method"], method);
            let meta = &event["params"]["_meta"];
            assert_eq!(meta["io.modelcontextprotocol/subscriptionId"], "mine");
        }
    }
    drop(one);
    let cancelled = async {
        while !seen(&alice)
            .await
            .iter()
            .any(|line| line.contains("notifications/cancelled"))
        {}
    };
    tokio::time::timeout(wire::PATIENCE, cancelled)
        .await
        .unwrap();
}

/// mcp-T29: a log message is for the request that asked for any, and for nobody where that is not known.
#[tokio::test]
async fn a_log_message_goes_to_whoever_asked() {
    let house = modern(None).await;
    let alice = house.caller("alice");
    let log = |meta: Value| {
        let params = json!({ "name": "log", "arguments": { "data": "hello" } });
        bytes(
            &alice,
            "tools/call",
            Some("log"),
            &body(1, "tools/call", params, meta),
        )
    };
    let quiet = wire::exchange(house.address, &log(json!({}))).await;
    assert!(!quiet.text().contains("hello"));
    let level = json!({ "io.modelcontextprotocol/logLevel": "info" });
    let told = wire::exchange(house.address, &log(level)).await;
    assert!(told.text().contains("hello"), "{}", told.text());
}

/// sse-6: a modern server asks nobody anything.
#[tokio::test]
async fn a_modern_servers_own_request_is_refused() {
    let house = modern(None).await;
    let alice = house.caller("alice");
    let answer = tool(&alice, "ask", json!({})).await;
    let heard: Value = serde_json::from_str(&answer.said()).unwrap();
    assert_eq!(heard["error"]["code"], -32601);
    assert!(!answer.text().contains("elicitation/create"));
}

/// mcp-T19, mcp-T20, mcp-T22, mcp-T26, mcp-T30: a legacy server is initialized once, and answers as a modern one would.
#[tokio::test]
async fn a_legacy_server_serves_modern_clients() {
    let policy = r#"permit(principal, action, resource) unless { resource == Tool::"secret" };"#;
    let house = house().policy(policy).open().await;
    let alice = house.caller("alice");
    let discovered = ask(&alice, "server/discover", json!({})).await.json();
    assert_eq!(discovered["id"], 1);
    let result = &discovered["result"];
    assert_eq!(result["supportedVersions"], json!(["2026-07-28"]));
    assert_eq!(result["capabilities"], json!({ "tools": {} }));
    assert_eq!(result["resultType"], "complete");
    let info = &result["_meta"]["io.modelcontextprotocol/serverInfo"];
    assert_eq!(info["name"], "scripted");
    let list = ask(&alice, "tools/list", json!({})).await;
    let (said, list) = (list.text(), list.json());
    assert_eq!(list["result"]["cacheScope"], "private");
    assert_eq!(list["result"]["ttlMs"], 0);
    assert!(said.contains("\"echo\"") && !said.contains("\"secret\""));
    let answer = tool(&alice, "echo", json!({ "n": 1 })).await;
    assert_eq!(answer.json()["result"]["resultType"], "complete");
    assert_eq!(answer.said(), "{\"n\": 1}");
    assert_eq!(tool(&alice, "secret", json!({})).await.status, 403);
    // What would go on with a call that asked is none that begins.
    let params = json!({ "name": "echo", "arguments": { "again": 1 }, "requestState": "forged" });
    let answer = ask(&alice, "tools/call", params).await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["code"]),
        (400, &json!(-32600))
    );
    // It may ask nobody: nobody could come back with the answer to it.
    let heard = tool(&alice, "ask", json!({})).await.said();
    assert!(heard.contains("-32601"), "{heard}");
    let lines = seen(&alice).await;
    let count = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
    assert_eq!(
        (count("\"initialize\""), count("notifications/initialized")),
        (1, 1)
    );
    assert_eq!((count("\"secret\""), count("again")), (0, 0));
    assert_eq!(
        count("io.modelcontextprotocol/"),
        1,
        "the probe's alone: {lines:#?}"
    );
    assert_eq!(house.children_started(), 1);
    // A legacy client beside it has a child of its own.
    house.serves("alice").await;
    assert_eq!(house.children_started(), 2);
}

/// A server that answers neither question is no server, and leaves no child.
#[tokio::test]
async fn a_server_of_no_version_is_an_error_of_its_own() {
    let house = house().argument("--refuse").open().await;
    let answer = ask(&house.caller("alice"), "tools/list", json!({})).await;
    assert_eq!(answer.status, 502);
    house.records.wait_for("child-exited").await;
}

/// tok-127, mcp-T13, mcp-T16, mcp-T17: a parameter that a tool has said in a header, too, is said there as the body says it, or the call
/// reaches nobody; this gateway knows which ones they are without having been asked for the list.
#[tokio::test]
async fn parameters_in_headers_agree_with_the_body_or_reach_no_tool() {
    for plan in [house().argument("--modern"), house()] {
        let house = plan.argument("--marked").open().await;
        let alice = house.caller("alice");
        let send = async |arguments: Value, more: &[(&str, &str)]| {
            let body = body(
                1,
                "tools/call",
                json!({ "name": "echo", "arguments": arguments }),
                json!({}),
            );
            let mut headers = vec![VERSION, ("Mcp-Method", "tools/call"), ("Mcp-Name", "echo")];
            headers.extend_from_slice(more);
            wire::exchange(house.address, &alice.bytes_with("POST", &headers, &body)).await
        };
        let (region, n) = (("mcp-param-region", "us"), ("MCP-PARAM-N", "42.0"));
        let arguments = json!({ "region": "us", "n": 42 });
        for wrong in [
            &[][..],
            &[region],
            &[n],
            &[region, region, n],
            &[("Mcp-Param-Region", "eu"), n],
            &[("Mcp-Param-Region", "=?base64?dXM?="), n],
            &[region, ("Mcp-Param-N", "43")],
        ] {
            let answer = send(arguments.clone(), wrong).await;
            let error = &answer.json()["error"];
            assert_eq!(
                (answer.status, &error["code"]),
                (400, &json!(-32020)),
                "{wrong:?}"
            );
            assert_eq!(error["data"]["reason"], "header-mismatch");
        }
        // A value that is not there is not said.
        assert_eq!(send(json!({ "region": null }), &[region]).await.status, 400);
        let told = seen(&alice).await;
        assert!(!told.iter().any(|line| line.contains("echo")), "{told:?}");
        assert_eq!(
            told.iter()
                .filter(|line| line.contains("tools/list"))
                .count(),
            2,
            "{told:?}"
        );

        assert_eq!(send(arguments.clone(), &[region, n]).await.status, 200);
        let encoded = ("Mcp-Param-Region", "=?base64?dXM=?=");
        let other = ("Mcp-Param-Unknown", "whatever");
        assert_eq!(send(arguments, &[encoded, n, other]).await.status, 200);
        assert_eq!(send(json!({ "region": null }), &[]).await.status, 200);
        assert!(
            house.records.all().iter().any(|record| {
                record.contains("THV_EVENT=outcome") && record.contains("header-mismatch")
            }),
            "{:#?}",
            house.records.all()
        );
    }
}

/// mcp-T5, mcp-T6: an answer that is alone is JSON; one that is not is the end of a stream of what belongs to it.
#[tokio::test]
async fn an_answer_is_json_or_the_end_of_its_stream() {
    let house = modern(None).await;
    let alice = house.caller("alice");
    let alone = tool(&alice, "echo", json!({})).await;
    assert_eq!(alone.header("content-type"), Some("application/json"));
    let more = json!({ "progressToken": "p" });
    let body = body(1, "tools/call", json!({ "name": "progress" }), more);
    let answer = wire::exchange(
        house.address,
        &bytes(&alice, "tools/call", Some("progress"), &body),
    )
    .await;
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("x-accel-buffering", "no"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(answer.header(name), Some(value));
    }
    let text = answer.text();
    let events: Vec<Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let methods: Vec<_> = events
        .iter()
        .map(|event| event["method"].as_str())
        .collect();
    assert_eq!(
        methods,
        [
            Some("notifications/progress"),
            Some("notifications/progress"),
            None
        ]
    );
    assert_eq!(events[2]["id"], 1, "the last is the answer");
}

/// json-28: whatever a cursor says, it is said to the caller's own server, as it is.
#[tokio::test]
async fn a_cursor_reaches_its_callers_server_alone() {
    let house = modern(None).await;
    let (alice, bob) = (house.caller("alice"), house.caller("bob"));
    let forged = "bob's\u{0}../2";
    assert_eq!(
        ask(&alice, "tools/list", json!({ "cursor": forged }))
            .await
            .status,
        200
    );
    let told = seen(&alice).await;
    let said = format!("\"cursor\":{}", json!(forged));
    assert!(told.iter().any(|line| line.contains(&said)), "{told:?}");
    assert!(!seen(&bob).await.iter().any(|line| line.contains("cursor")));
}

/// mcp-T28: what ends a subscription names it as its client did, and ends well whichever way its server has of ending it.
#[tokio::test]
async fn a_subscription_ends_under_its_own_name() {
    for scope in ["session", "server"] {
        let top = format!("scope = \"{scope}\"\n");
        let house = house().argument("--modern").top(&top).open().await;
        let alice = house.caller("alice");
        for by in ["answer", "cancelled"] {
            let listen = listens(&alice, "\"mine\"", json!({ "toolsListChanged": true }));
            let mut open = Events::open(house.address, &listen).await;
            let mut other = Events::open(house.address, &listen).await;
            for stream in [&mut open, &mut other] {
                for _ in 0..2 {
                    assert!(stream.next().await["method"].is_string());
                }
            }
            tool(&alice, "unlisten", json!({ "by": by })).await;
            let ended = tokio::select! {
                ended = open.next() => ended,
                ended = other.next() => ended,
            };
            assert_eq!(
                (&ended["id"], &ended["result"]["resultType"]),
                (&json!("mine"), &json!("complete")),
                "{scope} {by}: {ended}"
            );
            let meta = &ended["result"]["_meta"];
            assert_eq!(meta["io.modelcontextprotocol/subscriptionId"], "mine");
            tool(&alice, "unlisten", json!({ "by": by })).await;
        }
        // The server has ended it: it is not told that the client has gone.
        let lines = seen(&alice).await;
        assert!(
            !lines
                .iter()
                .any(|line| line.contains("notifications/cancelled")),
            "{lines:?}"
        );
    }
}

/// mcp-T10: also where it is the server that does not have the method.
#[tokio::test]
async fn a_method_that_the_server_does_not_have_is_not_found() {
    let house = modern(None).await;
    let alice = house.caller("alice");
    let answer = ask(&alice, "prompts/list", json!({})).await;
    let error = &answer.json()["error"];
    assert_eq!((answer.status, &error["code"]), (404, &json!(-32601)));
    assert_eq!(error["message"], "no", "{answer:?}");
}

/// mcp-T30: a list that was cut is private also where its server has not said who may keep it.
#[tokio::test]
async fn a_list_that_was_cut_says_that_it_is_private() {
    let policy = r#"permit(principal, action, resource) unless { resource == Tool::"secret" };"#;
    for (policy, scope) in [(Some(policy), json!("private")), (None, Value::Null)] {
        let plan = house().argument("--modern").argument("--unhinted");
        let house = match policy {
            Some(policy) => plan.policy(policy).open().await,
            None => plan.open().await,
        };
        let list = ask(&house.caller("alice"), "tools/list", json!({})).await;
        assert_eq!(list.json()["result"]["cacheScope"], scope, "{policy:?}");
    }
}

/// mcp-T19: one path for both eras at once, and for one user: neither sees anything of the other.
#[tokio::test]
async fn both_eras_are_served_at_one_path() {
    let house = house().open().await;
    let legacy = house.session("alice").await;
    let alice = house.caller("alice");
    for n in 0..3 {
        let arguments = json!({ "n": n });
        assert_eq!(legacy.call("echo", arguments.clone()).await.status, 200);
        assert_eq!(tool(&alice, "echo", arguments).await.status, 200);
    }
    // A modern request in a session's clothes is modern all the same, and the session is none of its.
    assert_eq!(tool(&legacy, "echo", json!({ "n": 4 })).await.status, 200);
    assert!(
        !legacy
            .seen()
            .await
            .iter()
            .any(|line| line.contains("\"n\":4"))
    );
    assert!(
        seen(&alice)
            .await
            .iter()
            .any(|line| line.contains("\"n\":4"))
    );
}

/// sse-5, mcp-T6: a stream on which nothing is said says every 15 seconds that it is open, and nothing else.
#[tokio::test]
async fn a_stream_that_stays_open_says_that_it_is() {
    let house = modern(None).await;
    let alice = house.caller("alice");
    let listen = listens(&alice, 1, json!({ "toolsListChanged": true }));
    let mut open = Events::open(house.address, &listen).await;
    for _ in 0..2 {
        open.next().await;
    }
    for _ in 0..2 {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(15)).await;
        tokio::time::resume();
        // Each part of the body has its length before it.
        assert_eq!([open.line().await, open.line().await], ["3", ":"]);
    }
}

/// mcp-T27: what a server speaks is asked first, and whatever it says to that, or if it says nothing, it is a legacy one
/// unless it has said what it speaks.
#[tokio::test]
async fn a_server_that_does_not_know_the_question_is_a_legacy_one() {
    for arguments in [
        &["--unknown", "-32602"][..],
        &["--unknown", "7"],
        &["--deaf"],
    ] {
        let mut plan = house();
        for argument in arguments {
            plan = plan.argument(argument);
        }
        let house = plan.open().await;
        let alice = house.caller("alice");
        let asked = tokio::spawn({
            let alice = alice.clone();
            async move { tool(&alice, "echo", json!({ "n": 1 })).await }
        });
        house.records.wait_for("child-started").await;
        // It has ten seconds to say something.
        let steps = if arguments == ["--deaf"] { 150 } else { 0 };
        for _ in 0..steps {
            tokio::time::pause();
            tokio::time::advance(Duration::from_millis(100)).await;
            tokio::time::resume();
            tokio::task::yield_now().await;
        }
        let answer = asked.await.unwrap();
        assert_eq!(answer.said(), "{\"n\": 1}", "{arguments:?}");
        assert_eq!(answer.json()["result"]["resultType"], "complete");
        let lines = seen(&alice).await;
        assert!(lines[0].contains("server/discover"), "{lines:?}");
        let requests = lines.iter().filter(|line| line.contains("\"id\":"));
        assert!(
            requests.clone().nth(1).unwrap().contains("\"initialize\""),
            "{lines:?}"
        );
        if arguments != ["--deaf"] {
            continue;
        }
        // Nobody else waits for that, until it may have been replaced.
        let bob = house.caller("bob");
        assert_eq!(
            tool(&bob, "echo", json!({ "n": 2 })).await.said(),
            "{\"n\": 2}"
        );
        let lines = seen(&bob).await;
        assert!(lines[0].contains("\"initialize\""), "{lines:?}");
    }
}

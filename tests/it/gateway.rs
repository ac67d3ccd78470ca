//! The gateway from the wire to the child and back.

use std::{
    fs::{self, Permissions},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

use crate::{
    house::{Caller, House, call, house, initialize},
    identity::{self, is_exactly, last_decision},
    signer::Signer,
    wire,
};

#[tokio::test]
async fn without_a_token_nobody_gets_in_and_nothing_starts() {
    let house = house().open().await;
    let mut nobody = house.caller("x");
    nobody.token = None;
    for body in [
        initialize("2025-11-25"),
        call(1, "echo", json!({})),
        "nonsense".to_owned(),
    ] {
        let answer = nobody.post(&body).await;
        assert_eq!(answer.status, 401);
        let metadata = format!(
            "http://{}/.well-known/oauth-protected-resource/mcp",
            house.address
        );
        let challenge = answer.header("www-authenticate").unwrap();
        assert!(
            challenge.starts_with("Bearer ") && challenge.contains(&metadata),
            "{challenge}"
        );
        assert!(!challenge.contains("error="), "{challenge}");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    assert_eq!(house.children_started(), 0);
    // Beside it, the success.
    assert_eq!(
        house
            .session("alice")
            .await
            .call("echo", json!({"a": 1}))
            .await
            .said(),
        r#"{"a": 1}"#
    );
    assert_eq!(house.children_started(), 1);
}

/// tok-134: the metadata is for everybody, at both places, and is the configuration's, whatever Host says.
#[tokio::test]
async fn the_metadata_is_served_at_both_well_known_places() {
    // A name besides, by which it is reached and which is no part of what it is.
    let house = house()
        .top("hosts = [\"{address}\", \"alias.example\"]\n")
        .open()
        .await;
    let (own, alias) = (house.address.to_string(), "alias.example");
    let document = json!({
        "resource": house.resource(), "authorization_servers": [house.issuer.issuer()],
        "bearer_methods_supported": ["header"],
    });
    let ask = async |method: &str, path: &str, host: &str| {
        let request = wire::request(method, path, &[("Host", host)], "");
        wire::exchange(house.address, &request).await
    };
    for path in [
        "/.well-known/oauth-protected-resource/mcp",
        "/.well-known/oauth-protected-resource",
    ] {
        for host in [&*own, alias] {
            let answer = ask("GET", path, host).await;
            assert_eq!(answer.status, 200, "{host}");
            assert_eq!(answer.header("content-type"), Some("application/json"));
            assert_eq!(answer.json(), document, "{host}");
        }
        let spoofed = ask("GET", path, "evil.example").await;
        let refused = json!({ "jsonrpc": "2.0", "error": {
            "code": -32603, "message": "this host name is not served here", "data": { "reason": "host-not-accepted" },
        } });
        is_exactly(&house, &spoofed, (403, None), &refused, "host-not-accepted");
        let posted = ask("POST", path, &own).await;
        assert_eq!((posted.status, posted.header("allow")), (405, Some("GET")));
    }
    // Nor does it change where a challenge points, or whom a token is for.
    let named = |caller: &Caller| {
        let bytes = caller.bytes("POST", &initialize("2025-11-25"));
        let text = String::from_utf8(bytes).unwrap();
        text.replace(&format!("Host: {own}"), &format!("Host: {alias}"))
    };
    let mut nobody = house.caller("alice");
    nobody.token = None;
    let answer = wire::exchange(house.address, named(&nobody).as_bytes()).await;
    let challenge = format!("Bearer {}", identity::metadata(&house));
    let said = ("a bearer token is required", "token-missing");
    let told = (401, Some(&*challenge));
    identity::is_told(&house, &answer, told, said, "token-missing");
    let theirs = house
        .issuer
        .token("alice", &format!("http://{alias}/mcp"), &[])
        .unwrap();
    let theirs = identity::caller(&house, theirs);
    let answer = wire::exchange(house.address, named(&theirs).as_bytes()).await;
    identity::is_refused(&house, &answer, "token-audience");
    let answer = wire::exchange(house.address, named(&house.caller("alice")).as_bytes()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

/// tok-15, tok-131, inc-8, inc-9, mcp-L7, mcp-L10: another's session is as unknown as none.
#[tokio::test]
async fn a_session_answers_only_the_identity_that_opened_it() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let mut mallory = house.caller("mallory");
    mallory.session.clone_from(&alice.session);
    let none = json!({ "jsonrpc": "2.0", "id": 1, "error": {
        "code": -32603, "message": "no such session", "data": { "reason": "session-unknown" },
    } });
    let stolen = mallory.call("echo", json!({})).await;
    is_exactly(&house, &stolen, (404, None), &none, "session-of-another");
    let mut unknown = house.caller("mallory");
    unknown.session = Some("0".repeat(32));
    let guessed = unknown.call("echo", json!({})).await;
    is_exactly(&house, &guessed, (404, None), &none, "session-unknown");
    assert_eq!(stolen.body, guessed.body);
    unknown.session = None;
    let missing = json!({ "jsonrpc": "2.0", "id": 1, "error": {
        "code": -32603, "message": "Mcp-Session-Id is required", "data": { "reason": "session-missing" },
    } });
    let answer = unknown.call("echo", json!({})).await;
    is_exactly(&house, &answer, (400, None), &missing, "session-missing");
    assert_eq!(house.children_started(), 1);
    // 128 bits, at random: nobody counts to the next one (tok-131).
    let bob = house.session("bob").await;
    for id in [&alice.session, &bob.session] {
        let id = id.as_deref().unwrap();
        assert!(
            id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{id}"
        );
    }
    assert_ne!(alice.session, bob.session);
    // The same id with the same identity, under another token, works.
    let mut again = house.caller("alice");
    again.session.clone_from(&alice.session);
    assert_eq!(again.call("echo", json!({})).await.status, 200);
    assert!(
        !alice
            .seen()
            .await
            .iter()
            .any(|line| line.contains("mallory"))
    );
    assert!(house.records.have(&["session-of-another"]));
}

/// A tool that no policy permits is refused, is not in the list, and the child never hears of it.
#[tokio::test]
async fn what_no_policy_permits_reaches_no_child() {
    let house = house()
        .policy(
            r#"@id("all-but-secret") permit (principal, action, resource) unless { resource == Tool::"secret" };
               @id("not-bob") forbid (principal, action == Action::"initialize", resource) when { principal.subject == "bob" };"#,
        )
        .open()
        .await;
    let bob = house.caller("bob").initialize().await;
    assert_eq!(bob.status, 403);
    assert!(
        bob.header("www-authenticate").is_none(),
        "more scope would not help"
    );
    assert_eq!(house.children_started(), 0);
    let alice = house.session("alice").await;
    let refused = alice.call("secret", json!({})).await;
    assert_eq!(refused.status, 403);
    assert_eq!(refused.json()["id"], 1);
    assert_eq!(refused.json()["error"]["data"]["reason"], "denied");
    let unknown = alice.call("no_such_tool", json!({})).await;
    assert_eq!(
        unknown.status, 200,
        "permitted, so the server itself answers"
    );
    let list = alice
        .post(r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#)
        .await
        .json();
    let names: Vec<_> = list["result"]["tools"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| &tool["name"])
        .collect();
    assert!(
        names.contains(&&json!("echo")) && !names.contains(&&json!("secret")),
        "{names:?}"
    );
    assert!(
        !alice
            .seen()
            .await
            .iter()
            .any(|line| line.contains("secret"))
    );
    let records = house.records.all().join("\n");
    assert!(
        records.contains("not-bob") && records.contains("all-but-secret"),
        "{records}"
    );
}

/// json-27, tok-125: a method nobody has thought about is not forwarded.
#[tokio::test]
async fn an_unknown_method_is_answered_by_the_gateway() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let answer = alice
        .post(r#"{"jsonrpc":"2.0","id":"x","method":"tools/destroy"}"#)
        .await;
    let body = json!({ "jsonrpc": "2.0", "id": "x", "error": {
        "code": -32601, "message": "not permitted", "data": { "reason": "method-unknown" },
    } });
    is_exactly(&house, &answer, (200, None), &body, "method-unknown");
    assert!(
        !alice
            .seen()
            .await
            .iter()
            .any(|line| line.contains("destroy"))
    );
}

/// json-13, json-22, sse-2, inc-7, mcp-T25: ids are the gateway's own towards the child, and all else is byte for byte.
#[tokio::test]
async fn messages_pass_byte_for_byte_under_rewritten_ids() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let body = "{ \"id\":\"a\\u0062c\",\n \"jsonrpc\":\"2.0\",\r\n \"method\":\"tools/call\", \"params\":{\"name\":\"echo\",\"arguments\":{\"n\":9007199254740993,\"f\":1.0e+2,\"u\":\"\\u00e9é\"}} }";
    let answer = alice.post(body).await;
    assert!(
        answer.text().contains(r#""id": "a\u0062c""#),
        "{}",
        answer.text()
    );
    let seen = alice.seen().await;
    let line = seen
        .iter()
        .find(|line| line.contains("9007199254740993"))
        .unwrap();
    let flat = body.replace(['\r', '\n'], " ");
    let (before, after) = flat.split_once("\"a\\u0062c\"").unwrap();
    assert!(line.starts_with(before) && line.ends_with(after), "{line}");
    let number = &line[before.len()..line.len() - after.len()];
    assert!(number.parse::<u64>().is_ok(), "{number}");
    // The other way: what the server writes, garbage around it left out.
    let answer = alice.call("garbage", json!({})).await;
    assert_eq!(
        answer.text(),
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"big\":9007199254740993, \"e\":1.0e+2,\"u\":\"\\u00e9é\"}}"
    );
}

/// json-13: one id twice in flight is refused; the same id of another session is another id.
#[tokio::test]
async fn an_id_that_is_in_flight_is_not_taken_twice() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let bob = house.session("bob").await;
    let waiting = alice.stream(&call(5, "ask", json!({}))).await;
    let twice = async {
        loop {
            let answer = alice.post(&call(5, "echo", json!({}))).await;
            // Until the first has arrived, this one is the first.
            if answer.status == 400 {
                return answer;
            }
        }
    };
    let answer = tokio::time::timeout(wire::PATIENCE, twice).await.unwrap();
    assert_eq!(answer.json()["error"]["code"], -32600);
    assert_eq!(bob.post(&call(5, "echo", json!({}))).await.status, 200);
    drop(waiting);
    // However it is spelled; a number is no string.
    let carol = house.session("carol").await;
    let waits = carol.bytes("POST", &call("\"5\"", "wait", json!({ "for": "it" })));
    let waiting = tokio::spawn(async move { wire::exchange(house.address, &waits).await });
    while !carol
        .seen()
        .await
        .iter()
        .any(|line| line.contains("\"for\":\"it\""))
    {}
    let twice = carol.post(&call("\"\\u0035\"", "echo", json!({}))).await;
    assert_eq!(twice.json()["error"]["data"]["reason"], "id-in-use");
    assert_eq!(carol.post(&call(5, "echo", json!({}))).await.said(), "{}");
    carol.call("release", json!({ "for": "it" })).await;
    assert_eq!(waiting.await.unwrap().said(), "released");
}

/// mcp-L5, sse-1, sse-4: progress goes to the request that asked, as events; carriage returns do not break them.
#[tokio::test]
async fn progress_and_answer_come_as_events() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let answer = alice.call("progress", json!({})).await;
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    assert_eq!(answer.header("x-accel-buffering"), Some("no"));
    let events: Vec<Value> = answer
        .text()
        .split("\n\n")
        .filter(|event| event.contains("data: "))
        .map(|event| {
            let (fields, data) = event.split_once("\nevent: message\ndata: ").unwrap();
            assert!(
                fields.starts_with("id: ") && !fields.contains('\n'),
                "{event}"
            );
            serde_json::from_str(data).unwrap()
        })
        .collect();
    assert_eq!(events.len(), 3);
    assert_eq!(events[1]["params"]["progress"], 2);
    assert_eq!(events[1]["params"]["progressToken"], "p-progress");
    assert_eq!(events[2]["result"]["content"][0]["text"], "done");
    // An answer that is alone is plain JSON.
    assert_eq!(
        alice.call("echo", json!({})).await.header("content-type"),
        Some("application/json")
    );
}

/// A server that says more at once than its client's stream holds: messages are left out, never the answer.
#[tokio::test]
async fn a_burst_of_messages_does_not_push_out_the_answer() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let answer = alice
        .call("burst", json!({ "count": 5000, "size": 1 }))
        .await;
    assert_eq!(answer.said(), "done");
}

/// conn-3: what waits for a client that does not read is bounded by its bytes, too.
#[tokio::test]
async fn a_client_that_does_not_read_is_not_kept_everything() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let house = house().open().await;
    let alice = house.session("alice").await;
    let before = house.records.count("outcome");
    let mut stream = tokio::net::TcpStream::connect(house.address).await.unwrap();
    stream
        .write_all(&alice.bytes(
            "POST",
            &call(1, "burst", json!({ "count": 128, "size": 1 << 19 })),
        ))
        .await
        .unwrap();
    house.records.wait_for_more("outcome", before).await;
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await.unwrap();
    assert!(text.len() < 24 << 20, "{} bytes were kept", text.len());
    assert!(String::from_utf8_lossy(&text).contains("done"));
}

/// tok-132, json-18, sse-6, mcp-L2: an answer is taken only where that session's server has asked.
#[tokio::test]
async fn the_servers_question_reaches_its_client_and_the_answer_goes_back() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let bob = house.session("bob").await;
    let mut stream = alice.stream(&call(1, "ask", json!({}))).await;
    assert_eq!(stream.next().await["method"], "elicitation/create");
    let reply = r#"{"jsonrpc":"2.0","id":"mine-1","result":{"action":"decline"}}"#;
    // Nobody asked bob.
    let answer = bob.post(reply).await;
    let not_asked = json!({ "jsonrpc": "2.0", "error": {
        "code": -32600, "message": answer.json()["error"]["message"], "data": { "reason": "not-asked" },
    } });
    is_exactly(&house, &answer, (400, None), &not_asked, "not-asked");
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
    assert_eq!(
        bob.post(cancel).await.status,
        202,
        "of his own there is none, so it has no effect"
    );
    let taken = alice.post(reply).await;
    assert_eq!((taken.status, taken.body.len()), (202, 0));
    assert_eq!(alice.post(reply).await.status, 202, "it has no effect");
    let answer = stream.next().await;
    let heard: Value =
        serde_json::from_str(answer["result"]["content"][0]["text"].as_str().unwrap()).unwrap();
    assert_eq!(heard["result"]["action"], "decline");
    let seen = alice.seen().await;
    assert_eq!(seen.iter().filter(|line| *line == reply).count(), 1);
}

/// fault-15: a crash is told once, to the call that it hit; the session is gone, the next works.
#[tokio::test]
async fn a_server_that_dies_fails_its_calls_and_its_session_alone() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let bob = house.session("bob").await;
    let answer = alice.call("crash", json!({})).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["error"]["code"], -32603);
    assert_eq!(answer.json()["error"]["data"]["reason"], "server-ended");
    assert_eq!(alice.call("echo", json!({})).await.status, 404);
    assert_eq!(bob.call("echo", json!({})).await.status, 200);
    house.serves("alice").await;
}

/// fault-16, fault-17: a call that takes too long is cancelled towards the server and failed towards the client.
#[tokio::test]
async fn a_call_that_takes_too_long_is_failed_and_cancelled() {
    let house = house()
        .with("[limits]\ncall-timeout = \"1s\"\n")
        .open()
        .await;
    let alice = house.session("alice").await;
    let answer = alice.call("wait", json!({ "for": "it" })).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["error"]["data"]["reason"], "timeout");
    let seen = alice.seen().await;
    let line = |what: &str| -> Value {
        let line = seen.iter().find(|line| line.contains(what));
        serde_json::from_str(line.unwrap_or_else(|| panic!("{what}: {seen:?}"))).unwrap()
    };
    let cancelled = line("notifications/cancelled");
    assert_eq!(cancelled["params"]["requestId"], line("\"wait\"")["id"]);
    // What it says of it later is nobody's.
    let late = alice.call("release", json!({ "for": "it" })).await;
    assert_eq!(late.said(), "done");
    // Nor does one that has stopped to listen keep its client.
    let answer = alice.call("hang", json!({})).await;
    assert_eq!(answer.json()["error"]["data"]["reason"], "timeout");
}

/// json-16, json-17, json-25, sse-2: answers that are none fail their request; those to nothing are dropped.
#[tokio::test]
async fn answers_that_are_none_do_not_reach_a_client() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let bob = house.session("bob").await;
    for how in ["both", "neither"] {
        let answer = alice.call(how, json!({})).await;
        let body = answer.json();
        assert_eq!(
            (
                answer.status,
                &body["error"]["code"],
                &body["error"]["data"]["reason"]
            ),
            (200, &json!(-32603), &json!("server-protocol-error")),
            "{how}"
        );
        assert!(body["result"].is_null(), "{body}");
        let records = house.records.all();
        let mut outcomes = records
            .iter()
            .filter(|it| it.contains("THV_EVENT=outcome "));
        let last = outcomes.next_back().unwrap();
        assert!(last.contains("THV_REASON=child-protocol "), "{last}");
    }
    assert_eq!(alice.call("stray", json!({})).await.said(), "mine");
    // Neither do those that are no JSON, or too much of it, and nobody waits for them.
    for how in ["nan", "twice", "deep", "utf8"] {
        let broken = alice.call("broken", json!({ "how": how })).await;
        assert_eq!(
            (broken.status, &broken.json()["error"]["data"]["reason"]),
            (200, &json!("server-protocol-error")),
            "{how}"
        );
    }
    assert_eq!(bob.call("echo", json!({})).await.status, 200);
}

/// probe-71: what a server writes to its standard error is a field of its own record, without control bytes.
#[tokio::test]
async fn a_servers_errors_are_records_of_their_own() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    assert_eq!(alice.call("stderr", json!({})).await.said(), "said");
    alice.send("DELETE", "").await;
    house.records.wait_for("child-exited").await;
    let records = house.records.all();
    let line = records
        .iter()
        .find(|record| record.contains("forged"))
        .expect("the line was recorded");
    assert!(
        line.contains("child-stderr") && !line.contains('\u{1b}'),
        "{line}"
    );
}

/// mcp-L7: DELETE ends a session, and what comes after finds none.
#[tokio::test]
async fn a_session_that_is_ended_leaves_no_child() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    assert_eq!(alice.send("DELETE", "").await.status, 204);
    house.records.wait_for("child-exited").await;
    assert_eq!(alice.call("echo", json!({})).await.status, 404);
    assert_eq!(alice.send("DELETE", "").await.status, 404);
}

/// mcp-L9: `initialize` is legacy whatever it names, and the server hears of no version that it cannot know.
#[tokio::test]
async fn an_initialize_that_names_the_modern_version_is_answered_with_the_newest_legacy_one() {
    let house = house().open().await;
    let answer = house.caller("alice").post(&initialize("2026-07-28")).await;
    assert_eq!(answer.json()["result"]["protocolVersion"], "2025-11-25");
    let older = house.caller("alice").post(&initialize("2025-06-18")).await;
    assert_eq!(older.json()["result"]["protocolVersion"], "2025-06-18");
}

/// tok-122, mcp-L8, mcp-T11: other versions are refused by number, with those there are.
#[tokio::test]
async fn a_version_that_is_not_served_is_refused_with_those_that_are() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let token = format!("Bearer {}", house.token("alice"));
    let host = house.address.to_string();
    let with = |version: &'static str| {
        let headers = [
            ("Host", host.as_str()),
            ("Authorization", &token),
            ("Content-Type", "application/json"),
            ("Accept", "application/json, text/event-stream"),
            ("Mcp-Session-Id", alice.session.as_deref().unwrap()),
            ("MCP-Protocol-Version", version),
        ];
        wire::request("POST", "/mcp", &headers, &call(1, "echo", json!({})))
    };
    for version in ["1999-01-01", "x"] {
        let answer = wire::exchange(house.address, &with(version)).await;
        assert_eq!(
            (answer.status, &answer.json()["error"]["code"]),
            (400, &json!(-32022)),
            "{version}"
        );
        assert!(
            answer.json()["error"]["data"]["supported"]
                .as_array()
                .unwrap()
                .contains(&json!("2025-11-25"))
        );
        let last = last_decision(&house);
        assert!(last.contains("THV_REASON=version-unsupported "), "{last}");
    }
    // Who names none is an older client.
    assert_eq!(alice.call("echo", json!({})).await.status, 200);
    let seen = alice.seen().await;
    let calls = seen.iter().filter(|line| line.contains("\"echo\""));
    assert_eq!(calls.count(), 1, "{seen:?}");
    assert_eq!(
        wire::exchange(house.address, &with("2025-11-25"))
            .await
            .status,
        200
    );
}

/// A server that refuses `initialize`, or dies before it, opens no session.
#[tokio::test]
async fn a_refused_initialize_opens_no_session() {
    let house = house().argument("--refuse").open().await;
    let mut alice = house.caller("alice");
    let answer = alice.initialize().await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["code"]),
        (200, &json!(-32602))
    );
    assert!(alice.session.is_none());
    house.records.wait_for("child-exited").await;
}

/// fault-16: a server that never answers `initialize` keeps neither its client nor its slot.
#[tokio::test]
async fn an_initialize_that_takes_too_long_is_failed_and_its_slot_is_free_again() {
    let house = house()
        .argument("--silent")
        .with("[limits]\ncall-timeout = \"1s\"\nsessions = 1\n")
        .open()
        .await;
    let answer = house.caller("alice").initialize().await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["data"]["reason"]),
        (504, &json!("timeout"))
    );
    house.records.wait_for("child-exited").await;
    let outcomes = house.records.count("outcome");
    assert_eq!(
        outcomes,
        1,
        "one request has one outcome: {:#?}",
        house.records.all()
    );
}

/// A client that hangs up while its server starts leaves a decision, and an outcome that says so.
#[tokio::test]
async fn an_initialize_that_is_given_up_has_an_outcome() {
    use tokio::io::AsyncWriteExt as _;
    let house = house().open().await;
    let mut stream = tokio::net::TcpStream::connect(house.address).await.unwrap();
    stream
        .write_all(
            &house
                .caller("alice")
                .bytes("POST", &initialize("2025-11-25")),
        )
        .await
        .unwrap();
    house.records.wait_for("decision").await;
    drop(stream);
    house.records.wait_for("outcome").await;
}

#[tokio::test]
async fn more_sessions_than_allowed_are_refused_before_anything_starts() {
    let house = house().with("[limits]\nsessions = 1\n").open().await;
    let _alice = house.session("alice").await;
    let answer = house.caller("bob").initialize().await;
    assert_eq!(
        (answer.status, answer.header("retry-after")),
        (503, Some("5"))
    );
    assert_eq!(answer.json()["error"]["data"]["reason"], "session-limit");
    assert_eq!(house.children_started(), 1);
}

/// fault-8, fault-20: with a broken configuration everybody is told 503; a mended one serves on the same socket.
#[tokio::test]
async fn a_broken_configuration_is_a_mode_until_it_is_mended() {
    let house = house()
        .file("command = [\"/usr/bin/python3\"]\nresorce = \"x\"\n")
        .open()
        .await;
    let mut alice = house.caller("alice");
    for _ in 0..3 {
        let answer = alice.initialize().await;
        assert_eq!(
            (answer.status, answer.header("retry-after")),
            (503, Some("30"))
        );
        assert_eq!(answer.json()["error"]["message"], "misconfigured");
        assert!(
            !answer.text().contains("resorce"),
            "strangers are told no details"
        );
    }
    let records = house.records.all().join("\n");
    assert!(
        records.contains("servers/it.toml") && records.contains("resorce"),
        "{records}"
    );
    house.mend();
    assert_eq!(alice.initialize().await.status, 200);
}

/// Promise 6: who was accepted before the files were mended is answered all the same.
#[tokio::test]
async fn a_connection_from_before_the_mending_is_answered() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let house = house()
        .file("command = [\"/usr/bin/python3\"]\nresorce = \"x\"\n")
        .open()
        .await;
    let mut alice = house.caller("alice");
    let mut early = tokio::net::TcpStream::connect(house.address).await.unwrap();
    assert_eq!(
        alice.initialize().await.status,
        503,
        "and so the other one is accepted, too"
    );
    house.mend();
    assert_eq!(alice.initialize().await.status, 200);
    early
        .write_all(&alice.bytes("POST", &initialize("2025-11-25")))
        .await
        .unwrap();
    let mut answer = String::new();
    early.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer:?}");
}

/// fault-20: a program that cannot be started says which and why, in the record; the client is told `start-failed`.
#[tokio::test]
async fn a_program_that_does_not_exist_is_an_error_with_its_name() {
    let house = house()
        .command(&["/usr/bin/thv-no-such-program"])
        .open()
        .await;
    let answer = house.caller("alice").initialize().await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["data"]["reason"]),
        (503, &json!("start-failed"))
    );
    let records = house.records.all().join("\n");
    assert!(records.contains("thv-no-such-program"), "{records}");
}

/// What the kernel says of such a file names nobody and nothing: the record says what to do with it.
#[tokio::test]
async fn a_program_that_cannot_be_executed_is_an_error_that_says_what_it_lacks() {
    let place = tempfile::tempdir().unwrap();
    let program = place.path().join("server");
    for (text, mode, word) in [
        ("echo a script without its first line\n", 0o755, "`#!/PATH"),
        ("#!/bin/sh\n", 0o644, "`chmod a+x`"),
    ] {
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(mode)).unwrap();
        let house = house().command(&[program.to_str().unwrap()]).open().await;
        let answer = house.caller("alice").initialize().await;
        assert_eq!(answer.status, 503, "{}", answer.text());
        let records = house.records.all().join("\n");
        assert!(records.contains(word), "{word}: {records}");
    }
}

/// tok-135: the client's token, proof and cookies reach no child, by no way.
#[tokio::test]
async fn the_callers_credentials_do_not_reach_the_server() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let token = alice.token.clone().unwrap();
    let signature = token.rsplit('.').next().unwrap().to_owned();
    let shown = [
        ("Cookie", "secret-cookie"),
        ("DPoP", "secret-proof"),
        ("Proxy-Authorization", "secret-proxy"),
    ];
    let call = call(9, "echo", json!({ "a": 1 }));
    let answer = wire::exchange(house.address, &alice.bytes_with("POST", &shown, &call)).await;
    let echoed = json!({ "jsonrpc": "2.0", "id": 9, "result": {
        "content": [{ "type": "text", "text": "{\"a\": 1}" }],
    } });
    assert_eq!((answer.status, answer.json()), (200, echoed), "{answer:?}");
    let last = last_decision(&house);
    assert!(last.contains("THV_DECISION=allow "), "{last}");
    // All that a process is given: its input, environment, arguments and descriptors.
    let mut heard = alice.seen().await.join("\n");
    assert!(heard.contains("\"echo\"") && heard.contains("\"a\""));
    for probe in [
        json!({ "probe": "environment" }),
        json!({ "probe": "descriptors" }),
        json!({ "probe": "read", "argument": "/proc/self/cmdline" }),
        json!({ "probe": "read", "argument": "/proc/self/environ" }),
    ] {
        let said = alice.call("probe", probe.clone()).await.said();
        assert!(said.starts_with("[true"), "{probe}: {said}");
        heard.push_str(&said);
    }
    assert!(heard.contains("scripted.py") && heard.contains("LANG=C.UTF-8"));
    for secret in [
        token.as_str(),
        &signature,
        "Bearer",
        "secret-",
        "Authorization",
    ] {
        assert!(!heard.contains(secret), "{secret}");
    }
    let records = house.records.all().join("\n");
    assert!(!records.contains(&signature) && !records.contains("secret-"));
}

/// fault-14: a server that dies at its start is told with its first call, and the next one is tried.
#[tokio::test]
async fn a_server_that_dies_at_its_start_is_an_answer_to_its_own_client() {
    let house = house()
        .command(&["/usr/bin/python3", "-c", "raise SystemExit(7)"])
        .open()
        .await;
    for _ in 0..2 {
        let answer = house.caller("alice").initialize().await;
        assert_eq!(
            (answer.status, &answer.json()["error"]["data"]["reason"]),
            (502, &json!("server-ended"))
        );
    }
    house.records.wait_for("child-died").await;
    assert!(
        house.records.have(&["THV_EXIT=code 7"]),
        "{:#?}",
        house.records.all()
    );
}

/// fault-18: what a server has written before it ended is read.
#[tokio::test]
async fn the_last_words_of_a_server_are_heard() {
    let script = "import sys\nline = sys.stdin.readline()\nprint('{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"last\":\"word\"}}')";
    let house = house()
        .command(&["/usr/bin/python3", "-c", script])
        .open()
        .await;
    let answer = house.caller("alice").initialize().await;
    assert_eq!(answer.json()["result"]["last"], "word");
}

/// fault-19: a server that closes its output has ended, alive or not.
#[tokio::test]
async fn a_server_that_closes_its_output_has_ended() {
    let script = "import os, time\nos.close(1)\ntime.sleep(600)";
    let house = house()
        .command(&["/usr/bin/python3", "-c", script])
        .open()
        .await;
    let answer = house.caller("alice").initialize().await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["data"]["reason"]),
        (502, &json!("server-ended"))
    );
    house.records.wait_for("child-died").await;
}

/// fault-21, probe-68: a server that does not read is not waited for, and others are served.
#[tokio::test]
async fn a_server_that_does_not_read_holds_up_nobody() {
    let house = house()
        .with("[limits]\ncall-timeout = \"2s\"\n")
        .open()
        .await;
    let alice = house.session("alice").await;
    let bob = house.session("bob").await;
    // Its one process waits for a child of its own, and reads nothing.
    let hanging = alice.call("sleep", json!({}));
    let flood = async {
        let mut answers = Vec::new();
        for number in 0..80 {
            let big = call(
                format!("\"f{number}\""),
                "echo",
                json!({ "x": "y".repeat(200_000) }),
            );
            answers.push(alice.stream(&big).await);
        }
        answers
    };
    let (hung, _flood) = tokio::join!(hanging, flood);
    assert_eq!(hung.json()["error"]["data"]["reason"], "timeout");
    assert_eq!(bob.call("echo", json!({})).await.status, 200);
}

/// A file that is edited between gateway and runner is noticed: nothing starts by two readings of it.
#[tokio::test]
async fn a_gateway_with_an_old_configuration_makes_way() {
    let house = house().open().await;
    let mut alice = house.caller("alice");
    // Served by the old reading, until a child would be started by the new one.
    assert_eq!(alice.send("GET", "").await.status, 400);
    house.edit();
    let answer = alice.initialize().await;
    assert_eq!(
        (answer.status, answer.header("retry-after")),
        (503, Some("1"))
    );
    assert_eq!(house.children_started(), 0);
    assert_eq!(house.ended().await, thv::daemon::Exit::Done);
}

/// `mode = "none"` is a line that says so, and means everybody on this host.
#[tokio::test]
async fn without_authentication_everybody_on_this_host_is_anonymous() {
    let open = "command = [\"/usr/bin/cat\"]\nresource = \"http://{address}/mcp\"\n[auth]\nmode = \"none\"\n\
                [authz]\nallow = \"authenticated\"\n[sandbox]\noptional = [\"cgroup\"]\n";
    let house = house().file(open).open().await;
    let mut anybody = house.caller("x");
    anybody.token = None;
    // `cat` gives the request back, which is no answer: what matters is that one was started.
    let answer = anybody.send("GET", "").await;
    assert_eq!(answer.status, 400, "a stream needs a session");
    let metadata = wire::exchange(
        house.address,
        &wire::request(
            "GET",
            "/.well-known/oauth-protected-resource",
            &[("Host", &house.address.to_string())],
            "",
        ),
    )
    .await;
    assert_eq!(
        metadata.json()["authorization_servers"],
        json!(null),
        "there is nobody to send them to"
    );
    assert!(house.records.have(&["THV_SUBJECT=anonymous"]));
}

/// What `thv token explain` says is what the gateway does.
#[tokio::test]
async fn an_explained_token_is_judged_as_the_gateway_judges_it() {
    let house = house().open().await;
    let foreign = house
        .issuer
        .token("alice", "https://other.example/mcp", &[])
        .unwrap();
    let (none, other) = (Value::Null, json!("token-audience"));
    for (token, accepted, reason) in [(house.token("alice"), true, none), (foreign, false, other)] {
        let run = explained(&house, &token, &["--json"]).await;
        let said: Value = serde_json::from_slice(&run.stdout).unwrap();
        assert_eq!(
            (run.status.success(), &said["accepted"], &said["reason"]),
            (accepted, &json!(accepted), &reason),
            "{said:#}"
        );
        // What a policy is to name, or what is to be done.
        let issuer = house.issuer.issuer();
        let (principal, help) = (&said["principal"], &said["help"]);
        match accepted {
            true => assert_eq!(principal, &json!(format!("User::\"{issuer}|alice\""))),
            false => assert!(principal.is_null(), "{said:#}"),
        }
        assert_eq!(
            help.as_str()
                .is_some_and(|text| text.contains("`audience`")),
            !accepted,
            "{said:#}"
        );
        let mut caller = house.caller("alice");
        caller.token = Some(token);
        assert_eq!(caller.initialize().await.status == 200, accepted);
    }
}

/// `thv token explain`, given the token as an Authorization header has it.
async fn explained(house: &House, token: &str, more: &[&str]) -> Output {
    let mut thv = Command::new(env!("CARGO_BIN_EXE_thv"));
    thv.arg("--root").arg(house.root());
    thv.args(["token", "explain", "it"]).args(more);
    let line = format!("Authorization: Bearer {token}\n");
    let run = tokio::task::spawn_blocking(move || {
        let mut thv = thv
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        thv.stdin
            .take()
            .unwrap()
            .write_all(line.as_bytes())
            .unwrap();
        thv.wait_with_output().unwrap()
    });
    run.await.unwrap()
}

/// "Ask another provider" would send people on a journey.
#[tokio::test]
async fn for_a_slash_too_many_the_explanation_says_to_write_it_as_the_token_does() {
    let house = house().open().await;
    let signer = Signer::new("key", "ES256");
    let slash = format!("{}/", house.issuer());
    for (iss, word) in [
        (slash.as_str(), "as the token says `iss`"),
        ("https://other.example", "ask the provider"),
    ] {
        let claims = json!({ "iss": iss, "sub": "alice" }).to_string();
        let token = signer.token(r#"{"typ":"at+jwt","alg":"ES256","kid":"key"}"#, claims);
        let said = explained(&house, &token, &[]).await;
        let said = String::from_utf8_lossy(&said.stdout);
        let cure = said.lines().find(|line| line.starts_with("To do: "));
        assert!(cure.is_some_and(|cure| cure.contains(word)), "{said}");
    }
}

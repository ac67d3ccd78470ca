//! A legacy session's streams: its own, those of its requests, and coming back to one.

use serde_json::{Value, json};

use crate::{
    house::{Caller, House, call, house, initialize},
    wire::{self, Answer, Events},
};

async fn stream(house: &House, caller: &Caller, last: Option<&str>) -> Events {
    let more: Vec<_> = last
        .map(|last| ("Last-Event-ID", last))
        .into_iter()
        .collect();
    Events::open(house.address, &caller.bytes_with("GET", &more, "")).await
}

async fn get(house: &House, caller: &Caller, more: &[(&str, &str)]) -> Answer {
    wire::exchange(house.address, &caller.bytes_with("GET", more, "")).await
}

const REPLY: &str = r#"{"jsonrpc":"2.0","id":"mine-1","result":{"action":"decline"}}"#;

/// mcp-L1, mcp-L3, mcp-L5, sse-4: what is about the server comes on the session's own stream, and there alone.
#[tokio::test]
async fn a_session_has_a_stream_of_its_own() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let mut own = stream(&house, &alice, None).await;
    assert_eq!(own.field("id: ").await, "0-0");
    assert_eq!(own.line().await, "retry: 1000");
    assert_eq!(own.line().await, "data:");
    let answer = alice.call("announce", json!({})).await;
    assert_eq!(
        answer.header("content-type"),
        Some("application/json"),
        "nothing else came with it"
    );
    assert_eq!(own.field("id: ").await, "0-1");
    assert_eq!(
        own.next().await["method"],
        "notifications/tools/list_changed"
    );
    // Whoever opens it anew takes it over, and is told nothing twice.
    let mut again = stream(&house, &alice, None).await;
    assert_eq!(again.field("id: ").await, "0-1");
    own.end().await;
    alice.call("announce", json!({})).await;
    assert_eq!(again.field("id: ").await, "0-2");
    drop(again);
    alice.call("announce", json!({})).await;
    let mut back = stream(&house, &alice, Some("0-1")).await;
    for _ in 0..2 {
        assert_eq!(
            back.next().await["method"],
            "notifications/tools/list_changed"
        );
    }
}

/// mcp-L4, mcp-L6: a lost connection cancels nothing, and its stream goes on where it was, without what went elsewhere.
#[tokio::test]
async fn a_lost_stream_is_taken_up_again_after_the_last_event() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let bob = house.session("bob").await;
    let mut lost = alice.stream(&call(1, "ask", json!({}))).await;
    let primed = lost.field("id: ").await;
    let asked = lost.field("id: ").await;
    assert_eq!(lost.next().await["method"], "elicitation/create");
    drop(lost);
    assert_eq!(alice.post(REPLY).await.status, 202);
    let other = get(&house, &bob, &[("Last-Event-ID", &asked)]).await;
    assert_eq!(other.status, 400, "it is none of bob's");
    let mut rest = stream(&house, &alice, Some(&asked)).await;
    let answer = rest.next().await;
    assert_eq!(
        (&answer["id"], answer["result"].is_object()),
        (&json!(1), true)
    );
    rest.end().await;
    // From further back everything comes again, and in the same order.
    let mut all = stream(&house, &alice, Some(&primed)).await;
    assert_eq!(all.next().await["method"], "elicitation/create");
    assert_eq!(all.next().await["id"], 1);
    for unknown in ["999-1", "x", "", "1", "-1-1"] {
        let answer = get(&house, &alice, &[("Last-Event-ID", unknown)]).await;
        assert_eq!(answer.status, 400, "{unknown}");
        assert_eq!(answer.json()["error"]["data"]["reason"], "event-unknown");
    }
}

/// mcp-L6: an id that no event has had leads nowhere, also where it is another session's.
#[tokio::test]
async fn an_id_that_was_never_given_is_refused() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let other = house.session("alice").await;
    let mut own = stream(&house, &alice, None).await;
    own.field("id: ").await;
    for _ in 0..3 {
        alice.call("announce", json!({})).await;
        own.next().await;
    }
    let told = other.call("progress", json!({})).await.text();
    let theirs = told.lines().next().unwrap().strip_prefix("id: ").unwrap();
    assert!(theirs.ends_with("-0"), "{theirs}");
    let mut quiet = stream(&house, &other, None).await;
    quiet.field("id: ").await;
    for (caller, unknown) in [
        (&other, "0-3"),
        (&alice, "0-4"),
        (&alice, "0-18446744073709551615"),
        (&other, theirs.replace("-0", "-4").as_str()),
        (&alice, theirs),
    ] {
        let answer = get(&house, caller, &[("Last-Event-ID", unknown)]).await;
        assert_eq!(answer.status, 400, "{unknown}");
        assert_eq!(answer.json()["error"]["data"]["reason"], "event-unknown");
    }
    let twice = [("Last-Event-ID", "0-0"); 2];
    assert_eq!(get(&house, &other, &twice).await.status, 400);
    // Nobody's place was moved by it.
    other.call("announce", json!({})).await;
    assert_eq!(quiet.field("id: ").await, "0-1");
}

/// mcp-L6, conn-3: what is kept for who comes back is bounded: the oldest events of a stream are left out, its answer
/// never; of streams that have ended the latest are kept, and those for two minutes.
#[tokio::test]
async fn what_has_fallen_out_is_not_told_again_and_the_answer_is() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let mut long = alice
        .stream(&call(1, "progress", json!({ "steps": 600 })))
        .await;
    let primed = long.field("id: ").await;
    let (number, _) = primed.split_once('-').unwrap();
    let all = long.end().await;
    // Who reads too slowly is not told all of it.
    let told = all.matches("notifications/progress").count() as u64;
    assert!(told > 300, "{told}");
    let rest = stream(&house, &alice, Some(&primed)).await.end().await;
    let ids: Vec<u64> = rest
        .lines()
        .filter_map(|line| line.strip_prefix("id: "))
        .map(|id| {
            let (stream, event) = id.split_once('-').unwrap();
            assert_eq!(stream, number);
            event.parse().unwrap()
        })
        .skip(1)
        .collect();
    assert_eq!(ids, (told - 254..=told + 1).collect::<Vec<_>>());
    assert!(rest.contains("\"done\""));

    for _ in 0..15 {
        assert_eq!(alice.call("progress", json!({})).await.said(), "done");
    }
    let mut again = stream(&house, &alice, Some(&primed)).await;
    again.field("id: ").await;
    let last = alice.call("progress", json!({})).await.text();
    let answer = get(&house, &alice, &[("Last-Event-ID", &primed)]).await;
    assert_eq!(answer.status, 400, "sixteen came after it");
    let last = last.strip_prefix("id: ").unwrap();
    let last = last.split_once('\n').unwrap().0;
    let told = get(&house, &alice, &[("Last-Event-ID", last)]).await;
    assert_eq!((told.status, told.said()), (200, "done".to_owned()));
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_secs(121)).await;
    tokio::time::resume();
    let forgotten = async {
        while get(&house, &alice, &[("Last-Event-ID", last)]).await.status != 400 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(wire::PATIENCE, forgotten)
        .await
        .unwrap();
}

/// mcp-L6: a list is filtered on whatever way its answer comes, and for whoever comes back for it.
#[tokio::test]
async fn a_list_that_is_told_again_is_filtered_again() {
    let policy = r#"permit(principal, action, resource) unless { resource == Tool::"secret" };"#;
    let house = house().argument("--chatty").policy(policy).open().await;
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    for version in ["2025-11-25", "2025-03-26"] {
        let mut alice = house.caller("alice");
        let answer = alice.post(&initialize(version)).await;
        alice.session = answer.header("mcp-session-id").map(str::to_owned);
        let told = alice.post(list).await.text();
        let first = told.lines().find_map(|line| line.strip_prefix("id: "));
        let again = get(&house, &alice, &[("Last-Event-ID", first.unwrap())]).await;
        let batch = alice.post(&format!("[{list}]")).await.text();
        for (text, lists) in [
            (told, true),
            (again.text(), true),
            (batch, version == "2025-03-26"),
        ] {
            assert_eq!(text.contains("\"echo\""), lists, "{text}");
            assert!(!text.contains("\"secret\""), "{text}");
        }
    }
}

/// mcp-L1, mcp-L7: a stream is its session's, for its owner; and a client that takes no events has none.
#[tokio::test]
async fn streams_are_the_sessions_and_need_one() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let mut stranger = house.caller("bob");
    assert_eq!(stranger.send("GET", "").await.status, 400);
    stranger.session = alice.session.clone();
    assert_eq!(stranger.send("GET", "").await.status, 404);
    let picky = wire::request(
        "GET",
        "/mcp",
        &[
            ("Host", &house.address.to_string()),
            ("Authorization", &format!("Bearer {}", house.token("alice"))),
            ("Accept", "application/json"),
            ("Mcp-Session-Id", alice.session.as_deref().unwrap()),
        ],
        "",
    );
    assert_eq!(wire::exchange(house.address, &picky).await.status, 406);
    let modern = get(&house, &alice, &[("MCP-Protocol-Version", "2026-07-28")]).await;
    assert_eq!((modern.status, modern.header("allow")), (405, Some("POST")));
}

/// mcp-L5: a question with nobody at work comes on the session's own stream; without one it waits for that, and is
/// answered when nobody has opened it for a while.
#[tokio::test]
async fn a_question_with_nobody_at_work_comes_on_the_sessions_own_stream() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let bob = house.session("bob").await;
    let mut bobs = stream(&house, &bob, None).await;
    let mut own = stream(&house, &alice, None).await;
    let answer = alice.call("later", json!({})).await;
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let asked = own.next().await;
    assert_eq!(
        (&asked["method"], &asked["id"]),
        (&json!("roots/list"), &json!("mine-2"))
    );
    let reply = r#"{"jsonrpc":"2.0","id":"mine-2","result":{"roots":[]}}"#;
    assert_eq!(bob.post(reply).await.status, 400);
    assert_eq!(alice.post(reply).await.status, 202);
    let seen = alice.seen().await;
    assert!(seen.iter().any(|line| line == reply), "{seen:?}");
    // Bob has heard nothing of it: what comes first on his is his own.
    bob.call("announce", json!({})).await;
    assert_eq!(
        bobs.next().await["method"],
        "notifications/tools/list_changed"
    );

    let carol = house.session("carol").await;
    let dave = house.session("dave").await;
    for caller in [&carol, &dave] {
        assert_eq!(caller.call("later", json!({})).await.said(), "done");
    }
    // He comes late.
    let mut daves = stream(&house, &dave, None).await;
    assert_eq!(daves.next().await["method"], "roots/list");
    assert_eq!(dave.post(reply).await.status, 202);
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_secs(11)).await;
    tokio::time::resume();
    let answered = async {
        loop {
            let seen = carol.seen().await;
            if let Some(line) = seen.iter().find(|line| line.contains("mine-2")) {
                return line.clone();
            }
        }
    };
    let answered = tokio::time::timeout(wire::PATIENCE, answered)
        .await
        .unwrap();
    assert!(answered.contains("-32601"), "{answered}");
    let seen = dave.seen().await;
    assert!(seen.iter().any(|line| line == reply), "{seen:?}");
}

/// mcp-L3: ids come with events alone where priming is not known.
#[tokio::test]
async fn older_clients_are_not_told_of_an_id_without_an_event() {
    let house = house().open().await;
    let mut alice = house.caller("alice");
    let answer = alice.post(&initialize("2025-06-18")).await;
    alice.session = answer.header("mcp-session-id").map(str::to_owned);
    let answer = alice.call("progress", json!({})).await;
    assert!(
        answer.text().starts_with("id: 2-1\nevent: message\n"),
        "{}",
        answer.text()
    );
}

/// json-8, mcp-O2, mcp-T31: a batch is for those who agreed on the one version that has them.
#[tokio::test]
async fn a_batch_is_decided_message_by_message() {
    let policy = r#"permit(principal, action, resource) unless { resource == Tool::"secret" };"#;
    let house = house().policy(policy).open().await;
    let batch = format!(
        "[{},{},{},{},{}]",
        r#"{"jsonrpc":"2.0","id":3,"method":"tools/list"}"#,
        call(1, "echo", json!({ "a": 1 })),
        call("\"two\"", "secret", json!({})),
        r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#,
        initialize("2025-03-26")
    );
    let newer = house.session("alice").await;
    assert_eq!(newer.post(&batch).await.json()["error"]["code"], -32600);
    assert_eq!(house.caller("alice").post(&batch).await.status, 400);
    let mut alice = house.caller("alice");
    let answer = alice.post(&initialize("2025-03-26")).await;
    alice.session = answer.header("mcp-session-id").map(str::to_owned);
    let answer = alice.post(&batch).await;
    let text = answer.text();
    let mut answers: Vec<Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    answers.sort_by_key(|answer| answer["id"].to_string());
    assert_eq!(answers.len(), 4, "{text}");
    assert_eq!(answers[0]["error"]["data"]["reason"], "denied");
    let error = &answers[1]["error"];
    assert_eq!(error["code"], -32600);
    let said = error["message"].as_str().unwrap();
    assert!(said.contains("opens a session of its own"), "{said}");
    assert_eq!(answers[2]["result"]["content"][0]["text"], "{\"a\": 1}");
    // A list shows what may be called, also among others' answers.
    let tools = answers[3]["result"]["tools"].as_array().unwrap();
    let shows = |name: &str| tools.iter().any(|tool| tool["name"] == name);
    assert!(shows("echo") && !shows("secret"), "{text}");
    let seen = alice.seen().await;
    assert!(
        seen.iter()
            .any(|line| line.contains("notifications/initialized"))
    );
    assert!(
        !seen.iter().any(|line| line.contains("\"secret\"")),
        "{seen:?}"
    );
    for wrong in [
        "[]".to_owned(),
        "[1]".to_owned(),
        format!("[{}", "1".repeat(3)),
    ] {
        let answer = alice.post(&wrong).await;
        assert!(answer.text().contains("\"error\""), "{wrong}: {answer:?}");
    }
    let notes = r#"[{"jsonrpc":"2.0","method":"notifications/initialized"}]"#;
    assert_eq!(alice.post(notes).await.status, 202);
}

/// tok-132: an answer to what the server of this session has withdrawn is taken, and does not reach it.
#[tokio::test]
async fn an_answer_to_what_was_withdrawn_is_accepted_without_effect() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let withdrawn = [
        r#"{"jsonrpc":"2.0","id":"mine-3","method":"elicitation/create","params":{"message":"?"}}"#,
        r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"mine-3"}}"#,
        "",
    ];
    let arguments = json!({ "raw": withdrawn.join("\n"), "answers": true });
    let told = alice.call("framed", arguments).await;
    let (asked, cancelled) = (withdrawn[0], withdrawn[1]);
    assert!(told.text().contains(asked) && told.text().contains(cancelled));
    let reply = r#"{"jsonrpc":"2.0","id":"mine-3","result":{"action":"decline"}}"#;
    for _ in 0..2 {
        assert_eq!(alice.post(reply).await.status, 202);
    }
    let bob = house.session("bob").await;
    assert_eq!(bob.post(reply).await.status, 400);
    let seen = alice.seen().await;
    assert!(!seen.iter().any(|line| line == reply), "{seen:?}");
}

//! Tasks: those of either era for clients of either, and nobody's but their makers'.

use serde_json::{Value, json};

use crate::{
    house::{Caller, House, Plan, call, house, initialize},
    modern::{body, bytes},
    wire::{self, Answer, Events},
};

const EXTENSION: &str = "io.modelcontextprotocol/tasks";

fn plan(arguments: &[&str]) -> Plan {
    let script = format!("{}/tests/it/servers/tasks.py", env!("CARGO_MANIFEST_DIR"));
    let mut command = vec!["/usr/bin/python3", "-u", &script];
    command.extend(arguments);
    house().command(&command)
}

async fn house_of(arguments: &[&str]) -> House {
    plan(arguments).open().await
}

/// A modern request of a client that can be asked, and `takes` tasks or not.
async fn ask(caller: &Caller, method: &str, params: Value, takes: bool) -> Answer {
    let name = params["name"].as_str().or(params["taskId"].as_str());
    let name = name.map(str::to_owned);
    let mut can = json!({ "elicitation": {} });
    if takes {
        can["extensions"] = json!({ EXTENSION: {} });
    }
    let more = json!({ "io.modelcontextprotocol/clientCapabilities": can });
    let body = body(1, method, params, more);
    wire::exchange(
        caller.address,
        &bytes(caller, method, name.as_deref(), &body),
    )
    .await
}

/// What a modern client is told of the task it has made by calling this.
async fn make(caller: &Caller, tool: &str) -> String {
    let answer = ask(caller, "tools/call", json!({ "name": tool }), true).await;
    let result = &answer.json()["result"];
    let pause = if tool == "told" { 30000 } else { 10 };
    assert_eq!(
        (
            &result["resultType"],
            &result["status"],
            &result["ttlMs"],
            &result["pollIntervalMs"]
        ),
        (
            &json!("task"),
            &json!("working"),
            &json!(60000),
            &json!(pause)
        ),
        "{answer:?}"
    );
    result["taskId"].as_str().unwrap().to_owned()
}

/// A modern client subscribes to how tasks stand; the stream and what was acknowledged.
async fn watch(caller: &Caller, tasks: &[&str]) -> (Events, Value) {
    let wanted = json!({ "notifications": { "taskIds": tasks } });
    let can = json!({ "elicitation": {}, "extensions": { EXTENSION: {} } });
    let more = json!({ "io.modelcontextprotocol/clientCapabilities": can });
    let body = body("\"w\"", "subscriptions/listen", wanted, more);
    let request = bytes(caller, "subscriptions/listen", None, &body);
    let mut events = Events::open(caller.address, &request).await;
    let mut first = events.next_request().await;
    assert_eq!(first["method"], "notifications/subscriptions/acknowledged");
    (events, first["params"]["notifications"].take())
}

/// What a subscription is told next, which is its own and whole.
async fn told(events: &mut Events) -> Value {
    let mut next = events.next_request().await;
    assert_eq!(next["method"], "notifications/tasks", "{next}");
    let mut task = next["params"].take();
    assert_eq!(
        task["_meta"].take(),
        json!({ "io.modelcontextprotocol/subscriptionId": "w" })
    );
    assert!(
        task["ttlMs"] == 60000 && task["createdAt"].is_string() && task["resultType"].is_null()
    );
    task
}

/// How the task stands when it no longer works.
async fn stands(caller: &Caller, task: &str) -> Value {
    loop {
        let answer = ask(caller, "tasks/get", json!({ "taskId": task }), true).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let result = answer.json()["result"].take();
        assert_eq!(
            (&result["resultType"], &result["taskId"]),
            (&json!("complete"), &json!(task))
        );
        if result["status"] != "working" {
            return result;
        }
    }
}

/// The key of the one question that is asked.
#[track_caller]
fn question(asking: &Value) -> String {
    let requests = asking["inputRequests"].as_object();
    let (key, question) = requests.and_then(|all| all.iter().next()).unwrap();
    assert_eq!(
        (&question["method"], &question["params"]["message"]),
        (&json!("elicitation/create"), &json!("your name?"))
    );
    key.clone()
}

/// Answers a task's question.
async fn tell(caller: &Caller, task: &str, responses: Value) -> Value {
    let update = json!({ "taskId": task, "inputResponses": responses });
    let answer = ask(caller, "tasks/update", update, true).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

/// That a task has ended with what its caller had said.
#[track_caller]
fn repeats(task: &Value, said: &Value) {
    let text = task["result"]["content"][0]["text"].as_str().unwrap();
    assert_eq!(serde_json::from_str::<Value>(text).unwrap(), *said);
}

/// mcp-L11, mcp-T22: a modern client has the tasks of a server of either era, as the extension has them.
#[tokio::test]
async fn a_modern_client_has_tasks_of_servers_of_both_eras() {
    for arguments in [&["--modern"][..], &[]] {
        let house = house_of(arguments).await;
        let alice = house.caller("alice");
        let discovered = ask(&alice, "server/discover", json!({}), true).await.json();
        assert!(
            discovered["result"]["capabilities"]["extensions"][EXTENSION].is_object(),
            "{discovered}"
        );

        let slow = make(&alice, "slow").await;
        let done = stands(&alice, &slow).await;
        assert_eq!(
            (&done["status"], &done["result"]["content"][0]["text"]),
            (&json!("completed"), &json!("slow is done"))
        );
        assert!(done["result"]["_meta"].is_null(), "{done}");
        // It is told as often as it is asked for.
        assert_eq!(stands(&alice, &slow).await["status"], "completed");

        let bad = make(&alice, "bad").await;
        let done = stands(&alice, &bad).await;
        assert_eq!(
            (&done["status"], &done["error"]["code"]),
            (&json!("failed"), &json!(-32603))
        );

        let never = make(&alice, "never").await;
        let ended = ask(&alice, "tasks/cancel", json!({ "taskId": never }), true)
            .await
            .json();
        assert_eq!(
            (&ended["result"]["resultType"], &ended["result"]["taskId"]),
            (&json!("complete"), &Value::Null),
            "{ended}"
        );
        assert_eq!(stands(&alice, &never).await["status"], "cancelled");
        // What has ended is no error to end, but what there never was is.
        for (task, code) in [
            (never.as_str(), None),
            (&bad, None),
            ("no such", Some(-32602)),
        ] {
            let ended = ask(&alice, "tasks/cancel", json!({ "taskId": task }), true).await;
            let ended = ended.json();
            assert_eq!(ended["error"]["code"].as_i64(), code, "{task}: {ended}");
        }
        assert_eq!(stands(&alice, &bad).await["status"], "failed");

        // A task that asks is answered by an update, and a wrong answer is none.
        let asks = make(&alice, "asks").await;
        let asked = stands(&alice, &asks).await;
        assert_eq!(asked["status"], "input_required", "{asked}");
        let key = question(&asked);
        if arguments.is_empty() {
            for responses in [
                json!({ &key: { "action": "no such" } }),
                json!({ "other": { "action": "accept" } }),
            ] {
                tell(&alice, &asks, responses).await;
                assert_eq!(stands(&alice, &asks).await["status"], "input_required");
            }
        }
        let said = json!({ "action": "accept", "content": { "name": "Alice" } });
        let updated = tell(&alice, &asks, json!({ key: said })).await;
        assert_eq!(updated["result"]["resultType"], "complete", "{updated}");
        repeats(&stands(&alice, &asks).await, &said);
    }
}

/// mcp-T21: who takes no tasks is told what is missing, and the server hears nothing of the call.
#[tokio::test]
async fn a_client_without_the_extension_is_told_so() {
    let house = house_of(&[]).await;
    let alice = house.caller("alice");
    let answer = ask(&alice, "tools/call", json!({ "name": "slow" }), false).await;
    let error = &answer.json()["error"];
    assert_eq!((answer.status, &error["code"]), (400, &json!(-32021)));
    assert!(error["data"]["requiredCapabilities"]["extensions"][EXTENSION].is_object());
    for method in ["tasks/get", "tasks/update", "tasks/cancel"] {
        let params = json!({ "taskId": "t", "inputResponses": {} });
        let answer = ask(&alice, method, params, false).await;
        let error = &answer.json()["error"];
        assert_eq!((answer.status, &error["code"]), (400, &json!(-32021)));
    }
    let seen = ask(&alice, "tools/call", json!({ "name": "seen" }), false)
        .await
        .said();
    assert!(!seen.contains("slow") && !seen.contains("tasks/"), "{seen}");
}

/// A method of tasks that only older versions have is unknown, whatever its headers say of it.
#[tokio::test]
async fn the_older_methods_of_tasks_are_unknown_to_modern_clients() {
    let house = house_of(&[]).await;
    let alice = house.caller("alice");
    for method in ["tasks/result", "tasks/list"] {
        let body = body(1, method, json!({ "taskId": "t" }), json!({}));
        let answer = wire::exchange(alice.address, &bytes(&alice, method, None, &body)).await;
        assert_eq!(answer.json()["error"]["code"], -32601, "{answer:?}");
    }
}

/// mcp-L11, inc-7: another user's task is as unknown as none, whatever the era and whomever the child serves: it cannot be seen, fed or ended.
#[tokio::test]
async fn another_users_task_can_be_neither_seen_nor_ended() {
    for (arguments, scope) in [
        (&["--modern"][..], "session"),
        (&["--modern"], "server"),
        (&[], "session"),
        (&[], "server"),
    ] {
        let house = plan(arguments)
            .top(&format!("scope = \"{scope}\"\n"))
            .open()
            .await;
        let (alice, bob) = (house.caller("alice"), house.caller("bob"));
        let task = make(&alice, "never").await;
        let params = json!({ "taskId": task, "inputResponses": {} });
        for method in ["tasks/get", "tasks/update", "tasks/cancel"] {
            let answer = ask(&bob, method, params.clone(), true).await;
            assert_eq!(
                answer.json()["error"]["code"],
                -32602,
                "{method}: {answer:?}"
            );
        }
        // Nor one of an own session's, by the older protocol.
        if arguments.is_empty() {
            let session = house.session("alice").await;
            let other = house.session("bob").await;
            let create = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"never","task":{}}}"#;
            let made = session.post(create).await.json();
            assert_eq!(made["result"]["task"]["status"], "working", "{made}");
            for method in ["get", "cancel", "result"] {
                let body = format!(
                    r#"{{"jsonrpc":"2.0","id":2,"method":"tasks/{method}","params":{{"taskId":"task-1"}}}}"#
                );
                assert_eq!(
                    other.post(&body).await.json()["error"]["code"],
                    -32602,
                    "{method}"
                );
            }
        }
        // All of them are shown to whom all of them are.
        if arguments.is_empty() {
            let session = house.session("alice").await;
            let list = r#"{"jsonrpc":"2.0","id":3,"method":"tasks/list"}"#;
            let error = &session.post(list).await.json()["error"];
            let refused = json!(-32601);
            assert_eq!(error["code"] == refused, scope == "server", "{error}");
        }
        let looked = ask(&alice, "tasks/get", json!({ "taskId": task }), true)
            .await
            .json();
        assert_eq!(looked["result"]["status"], "working");
        let seen = ask(&alice, "tools/call", json!({ "name": "seen" }), true)
            .await
            .said();
        assert!(
            !seen.contains("tasks/cancel") && !seen.contains("tasks/update"),
            "{seen}"
        );
    }
}

/// A legacy client knows nothing of a modern server's tasks: its call is answered when the task has ended.
#[tokio::test]
async fn a_legacy_client_waits_for_a_modern_servers_task_as_for_any_call() {
    let house = house_of(&["--modern"]).await;
    let mut alice = house.caller("alice");
    let opened = alice
        .post(&initialize("2025-11-25").replace(
            r#""capabilities":{}"#,
            r#""capabilities":{"elicitation":{}}"#,
        ))
        .await;
    alice.session = opened.header("mcp-session-id").map(str::to_owned);
    assert_eq!(alice.call("slow", json!({})).await.said(), "slow is done");
    let failed = alice.call("bad", json!({})).await;
    assert_eq!(failed.json()["error"]["code"], -32603, "{failed:?}");

    // It is asked in the stream of its call.
    let mut events = Events::open(
        house.address,
        &alice.bytes("POST", &call(7, "asks", json!({}))),
    )
    .await;
    let question = events.next_request().await;
    assert_eq!(question["params"]["message"], "your name?", "{question}");
    let said = json!({ "jsonrpc": "2.0", "id": question["id"], "result": { "action": "decline" } });
    assert_eq!(alice.post(&said.to_string()).await.status, 202);
    let answer = events.next_request().await;
    assert_eq!(
        (&answer["id"], &answer["result"]["content"][0]["text"]),
        (&json!(7), &json!(r#"{"action": "decline"}"#)),
        "{answer}"
    );

    // Who takes the call back takes the task back.
    let mut events = Events::open(
        house.address,
        &alice.bytes("POST", &call(8, "never", json!({}))),
    )
    .await;
    loop {
        let seen = alice.call("seen", json!({})).await.said();
        if seen.matches("tasks/get").count() > 0 && seen.contains("\\\"never\\\"") {
            break;
        }
    }
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":8}}"#;
    assert_eq!(alice.post(cancel).await.status, 202);
    assert_eq!(events.end().await.matches("\"result\"").count(), 0);
    let seen = alice.call("seen", json!({})).await.said();
    assert_eq!(seen.matches("tasks/cancel").count(), 1, "{seen}");
}

/// mcp-T28, mcp-L11: who subscribes to a legacy server's task hears how it stands as `tasks/get` would say it, up to its end,
/// whether the server tells it by itself or has to be asked.
#[tokio::test]
async fn a_modern_client_hears_how_a_legacy_servers_task_stands() {
    let house = house_of(&[]).await;
    let alice = house.caller("alice");
    let ended = |task: &Value, status: &str| assert_eq!(task["status"], status, "{task}");
    for (tool, status) in [("slow", "completed"), ("bad", "failed")] {
        let task = make(&alice, tool).await;
        let (mut events, acknowledged) = watch(&alice, &[&task, "no such"]).await;
        assert_eq!(acknowledged, json!({ "taskIds": [task] }));
        ended(&told(&mut events).await, "working");
        let last = told(&mut events).await;
        ended(&last, status);
        match tool {
            "slow" => assert_eq!(last["result"]["content"][0]["text"], "slow is done"),
            _ => assert_eq!(last["error"]["code"], -32603),
        }
        // Who comes late hears the end all the same.
        let (mut late, _) = watch(&alice, &[&task]).await;
        assert_eq!(told(&mut late).await, last);
    }

    let asks = make(&alice, "asks").await;
    let (mut events, _) = watch(&alice, &[&asks]).await;
    ended(&told(&mut events).await, "working");
    let mut asked = told(&mut events).await;
    while asked["status"] == "working" {
        asked = told(&mut events).await;
    }
    ended(&asked, "input_required");
    let key = question(&asked);
    let said = json!({ "action": "accept", "content": { "name": "Alice" } });
    tell(&alice, &asks, json!({ key: said })).await;
    let mut last = told(&mut events).await;
    while last["status"] == "working" {
        last = told(&mut events).await;
    }
    ended(&last, "completed");
    repeats(&last, &said);

    // It is asked every half a minute, and says so at once.
    let task = make(&alice, "told").await;
    let (mut events, _) = watch(&alice, &[&task]).await;
    ended(&told(&mut events).await, "working");
    ask(&alice, "tools/call", json!({ "name": "finish" }), true).await;
    let last = told(&mut events).await;
    ended(&last, "completed");
    assert_eq!(last["result"]["content"][0]["text"], "told is done");

    let never = make(&alice, "never").await;
    let (mut events, _) = watch(&alice, &[&never]).await;
    ended(&told(&mut events).await, "working");
    ask(&alice, "tasks/cancel", json!({ "taskId": never }), true).await;
    ended(&told(&mut events).await, "cancelled");
}

/// mcp-L11: another's task is as unknown to a subscription as none, also where all users share a server, and whoever takes no tasks is told so.
#[tokio::test]
async fn nobody_hears_how_anothers_task_stands() {
    for scope in ["session", "server"] {
        let house = plan(&[])
            .top(&format!("scope = \"{scope}\"\n"))
            .open()
            .await;
        let (alice, bob) = (house.caller("alice"), house.caller("bob"));
        let hers = make(&alice, "told").await;
        let (mut she, _) = watch(&alice, &[&hers]).await;
        assert_eq!(told(&mut she).await["status"], "working");
        let (mut he, acknowledged) = watch(&bob, &[&hers]).await;
        assert_eq!(acknowledged, json!({}));
        ask(&alice, "tools/call", json!({ "name": "finish" }), true).await;
        let last = told(&mut she).await;
        assert_eq!(
            (&last["taskId"], &last["status"]),
            (&json!(hers), &json!("completed"))
        );
        // His own are told to him, and these alone.
        let his = make(&bob, "told").await;
        let (mut own, acknowledged) = watch(&bob, &[&hers, &his]).await;
        assert_eq!(acknowledged, json!({ "taskIds": [his] }));
        assert_eq!(told(&mut own).await["status"], "working");
        ask(&bob, "tools/call", json!({ "name": "finish" }), true).await;
        let last = told(&mut own).await;
        assert_eq!(
            (&last["taskId"], &last["status"]),
            (&json!(his), &json!("completed"))
        );
        house.end().await;
        let rest = [he.end().await, own.end().await].concat();
        assert_eq!(rest.matches("notifications/tasks").count(), 0, "{rest}");
    }

    let house = house_of(&[]).await;
    let alice = house.caller("alice");
    let wanted = json!({ "notifications": { "taskIds": ["t"] } });
    let answer = ask(&alice, "subscriptions/listen", wanted, false).await;
    let error = &answer.json()["error"];
    assert_eq!(
        (answer.status, &error["code"]),
        (400, &json!(-32021)),
        "{answer:?}"
    );
    assert!(error["data"]["requiredCapabilities"]["extensions"][EXTENSION].is_object());
}

/// A tool that can be a task is one for whoever takes tasks, and answers everybody else at once.
#[tokio::test]
async fn a_tool_that_can_be_a_task_is_one_for_whoever_takes_tasks() {
    let house = house_of(&[]).await;
    let alice = house.caller("alice");
    let plain = ask(&alice, "tools/call", json!({ "name": "either" }), false).await;
    assert_eq!(plain.said(), "at once");
    assert_eq!(plain.json()["result"]["resultType"], "complete");
    let task = make(&alice, "either").await;
    let done = stands(&alice, &task).await;
    assert_eq!(done["result"]["content"][0]["text"], "either is done");
}

/// mcp-M1: what a server asks before it says that it has made a task is asked in the call, and what it has asked by the time
/// that it says so, in the task: either way it is answered, and nothing is done twice.
#[tokio::test]
async fn a_question_before_its_task_is_known_is_answered() {
    let house = house_of(&[]).await;
    let alice = house.caller("alice");
    let said = json!({ "action": "accept", "content": { "n": 1 } });
    for (tool, asks_in_call) in [("early", true), ("hasty", false)] {
        let params = json!({ "name": tool });
        let mut answer = ask(&alice, "tools/call", params.clone(), true).await.json();
        let kind = answer["result"]["resultType"].take();
        // The two may also come apart: then it is asked in the call before it is known that a task is made.
        assert!(kind == "input_required" || !asks_in_call, "{answer}");
        if kind == "input_required" {
            let key = question(&answer["result"]);
            let mut again = params;
            again["requestState"] = answer["result"]["requestState"].clone();
            again["inputResponses"] = json!({ key: said });
            // It must be one that takes tasks.
            let other = ask(&alice, "tools/call", again.clone(), false).await;
            assert_eq!(other.status, 400, "{other:?}");
            answer = ask(&alice, "tools/call", again, true).await.json();
            assert_eq!(answer["result"]["resultType"], "task", "{answer}");
        }
        let task = answer["result"]["taskId"].as_str().unwrap();
        let mut standing = stands(&alice, task).await;
        if standing["status"] == "input_required" {
            tell(&alice, task, json!({ question(&standing): said })).await;
            standing = stands(&alice, task).await;
        }
        assert_eq!(standing["status"], "completed", "{standing}");
        repeats(&standing, &said);
        let seen = ask(&alice, "tools/call", json!({ "name": "seen" }), true)
            .await
            .said();
        let calls = format!("\\\"{tool}\\\"");
        assert_eq!(seen.matches(&calls).count(), 1, "{seen}");
    }
}

/// A modern server that tells by itself how a task stands ends a legacy client's call by that: it is asked only now and then.
#[tokio::test]
async fn a_legacy_clients_call_ends_when_a_modern_server_says_that_its_task_has() {
    for scope in ["session", "server"] {
        let house = plan(&["--modern"])
            .top(&format!("scope = \"{scope}\"\n"))
            .open()
            .await;
        let alice = house.session("alice").await;
        let answer = alice.call("told", json!({})).await;
        assert_eq!(answer.said(), "told is done");
        assert!(!answer.text().contains("notifications/tasks"), "{answer:?}");
        let seen = alice.call("seen", json!({})).await.said();
        assert_eq!(seen.matches("tasks/get").count(), 0, "{seen}");
        // Nobody wants to hear of it any more.
        let listened = seen.matches("taskIds").count();
        assert_eq!(
            (listened, seen.matches("notifications/cancelled").count()),
            (1, 1),
            "{seen}"
        );
    }
}

/// mcp-T24, mcp-M3: a legacy server that has the user go somewhere before it makes a task has the client asked, as before any
/// call, and the task is made when that is done; of a task that has ended so the refusal is told, without a code that modern
/// MCP does not have.
#[tokio::test]
async fn a_legacy_server_sends_a_modern_clients_user_away_before_a_task() {
    let house = house_of(&[]).await;
    let alice = house.caller("alice");
    let visit = async |can: Value, more: Value| {
        let mut params = json!({ "name": "visit" });
        params
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let can = json!({ "elicitation": can, "extensions": { EXTENSION: {} } });
        let more = json!({ "io.modelcontextprotocol/clientCapabilities": can });
        let body = body(1, "tools/call", params, more);
        let request = bytes(&alice, "tools/call", Some("visit"), &body);
        wire::exchange(alice.address, &request).await
    };
    let went = |answer: &Answer, action: &str| {
        let asks = answer.json()["result"].take();
        assert_eq!(asks["resultType"], "input_required", "{}", answer.text());
        assert_eq!(asks["inputRequests"]["e"]["params"]["url"], "https://e");
        let responses = json!({ "e": { "action": action } });
        json!({ "requestState": asks["requestState"], "inputResponses": responses })
    };
    let can = || json!({ "url": {} });
    let asked = visit(can(), json!({})).await;
    let made = visit(can(), went(&asked, "accept")).await.json();
    let made = &made["result"];
    assert_eq!(
        (&made["resultType"], &made["status"]),
        (&json!("task"), &json!("working")),
        "{made}"
    );
    let task = made["taskId"].as_str().unwrap();
    let ended = ask(&alice, "tasks/cancel", json!({ "taskId": task }), true).await;
    assert_eq!(ended.json()["result"]["resultType"], "complete");
    // Who does not go has the refusal.
    let asked = visit(can(), json!({})).await;
    let stays = visit(can(), went(&asked, "decline")).await.json();
    assert_eq!(stays["error"]["code"], -32603, "{stays}");
    assert_eq!(stays["error"]["message"], "go there first");
    // Whose client cannot is told what it lacks.
    let done = visit(can(), json!({})).await.json();
    assert_eq!(done["result"]["resultType"], "task", "{done}");
    let lacks = visit(json!({}), json!({})).await;
    assert_eq!(
        (lacks.status, &lacks.json()["error"]["code"]),
        (400, &json!(-32021))
    );

    let astray = make(&alice, "astray").await;
    let (mut events, _) = watch(&alice, &[&astray]).await;
    let looked = stands(&alice, &astray).await;
    let heard = loop {
        let heard = told(&mut events).await;
        if heard["status"] != "working" {
            break heard;
        }
    };
    for ended in [looked, heard] {
        assert_eq!(
            (&ended["status"], &ended["error"]["code"]),
            (&json!("failed"), &json!(-32603)),
            "{ended}"
        );
        // Where to go is not lost.
        assert_eq!(
            ended["error"]["data"]["elicitations"][0]["url"],
            "https://e"
        );
    }
}

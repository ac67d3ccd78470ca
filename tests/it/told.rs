//! What a server is told of who calls, and what it is never told.

use serde_json::{Value, json};

use crate::{
    house::{Caller, House, call, crowd, house},
    modern::{self, tool},
    wire::{self, Events},
};

/// The environment of a caller's server.
async fn environment(caller: &Caller) -> Value {
    serde_json::from_str(&caller.call("environment", json!({})).await.said()).unwrap()
}

fn nothing_secret(caller: &Caller, told: &str) {
    let token = caller.token.as_deref().unwrap();
    let signature = token.rsplit('.').next().unwrap();
    assert!(!told.contains(signature), "{told}");
}

/// Its own child's environment names the principal, under either scope that has one; the token is not there.
#[tokio::test]
async fn a_child_of_one_user_finds_him_in_its_environment() {
    for scope in ["session", "user"] {
        let top = format!("scope = \"{scope}\"\npass-identity = true\n");
        let house = crowd(&top).open().await;
        for subject in ["alice", "bob"] {
            let caller = house.session(subject).await;
            let told = environment(&caller).await;
            assert_eq!(told["THV_SUBJECT"], subject, "{scope}");
            assert_eq!(told["THV_ISSUER"], house.issuer(), "{scope}");
            assert_eq!(told["THV_SUBJECT_KIND"], "user", "{scope}");
            nothing_secret(&caller, &told.to_string());
            // What is asked without a session as well.
            let without = house.caller(subject);
            let said = tool(&without, "environment", json!({})).await.said();
            let told: Value = serde_json::from_str(&said).unwrap();
            assert_eq!(told["THV_SUBJECT"], subject, "{scope}");
        }
    }
    // Not unless it is configured.
    let house = crowd("").open().await;
    let told = environment(&house.session("alice").await).await;
    let ours = |(name, _): &(&String, &Value)| name.starts_with("THV_");
    assert_eq!(told.as_object().unwrap().iter().filter(ours).count(), 0);
}

/// A subject is passed as it is, whatever a shell would make of it; what is no plain text never gets here.
#[tokio::test]
async fn a_strange_subject_is_passed_as_it_is() {
    let house = crowd("pass-identity = true\n").open().await;
    for subject in ["$(id) `id`; \"x\" \\ 'y'", "() { :; }; id", "A=B é 日本 %s"] {
        let told = environment(&house.session(subject).await).await;
        assert_eq!(told["THV_SUBJECT"], subject);
    }
}

/// What has reached a shared child, by all.
async fn seen(caller: &Caller) -> Vec<Value> {
    serde_json::from_str(&caller.call("seen", json!({})).await.said()).unwrap()
}

async fn everybodys() -> House {
    let top = "scope = \"server\"\npass-identity = true\n";
    crowd(top).open().await
}

/// A child of everybody's finds in each request whose it is; all else of the message is as it was.
#[tokio::test]
async fn a_shared_child_finds_the_caller_in_each_request() {
    let house = everybodys().await;
    let (alice, bob) = (house.session("alice").await, house.session("bob").await);
    for body in [
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"cursor":"x"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{}}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"a/b":1}}}"#,
    ] {
        for caller in [&alice, &bob] {
            assert_eq!(caller.post(body).await.status, 200, "{body}");
        }
    }
    let carol = house.caller("carol");
    tool(&carol, "echo", json!({ "n": 1 })).await;
    let seen = seen(&bob).await;
    let who = |message: &Value| message["params"]["_meta"]["thv/identity"].clone();
    let lists: Vec<_> = seen
        .iter()
        .filter(|it| it["method"] == "tools/list")
        .collect();
    // And one that thv has sent for carol, to learn which headers the tool wants (tok-127).
    assert_eq!(lists.len(), 11);
    assert_eq!(who(lists[10])["subject"], "carol");
    for pair in lists.chunks_exact(2) {
        for (message, subject) in pair.iter().zip(["alice", "bob"]) {
            let expected = json!({ "issuer": house.issuer(), "subject": subject, "kind": "user" });
            assert_eq!(who(message), expected);
        }
    }
    assert_eq!(lists[4]["params"]["cursor"], "x");
    assert_eq!(lists[8]["params"]["_meta"]["a/b"], 1);
    let of_carol: Vec<_> = seen
        .iter()
        .filter(|it| it["params"]["name"] == "echo")
        .collect();
    assert_eq!(who(of_carol[0])["subject"], "carol");
    assert_eq!(of_carol[0]["params"]["arguments"], json!({ "n": 1 }));
    nothing_secret(&alice, &json!(seen).to_string());
    // Its environment names nobody.
    let told = environment(&alice).await;
    assert!(told["THV_SUBJECT"].is_null(), "{told}");
}

/// What the gateway alone may say it takes from no client, however it is written and whatever is configured.
#[tokio::test]
async fn nobody_can_say_who_somebody_is() {
    for house in [everybodys().await, crowd("").open().await] {
        let alice = house.session("alice").await;
        let forged = r#"{"issuer":"x","subject":"root","kind":"user"}"#;
        for name in ["thv/identity", r"thv\/identity", r"\u0074hv/identity"] {
            for (status, body) in [
                (
                    400,
                    format!(
                        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{{"_meta":{{"{name}":{forged}}}}}}}"#
                    ),
                ),
                (
                    400,
                    format!(
                        r#"{{"jsonrpc":"2.0","method":"notifications/initialized","params":{{"_meta":{{"{name}":null}}}}}}"#
                    ),
                ),
                (
                    400,
                    format!(
                        r#"{{"jsonrpc":"2.0","id":"q","result":{{"action":"accept","_meta":{{"{name}":1}}}}}}"#
                    ),
                ),
            ] {
                let answer = alice.post(&body).await;
                assert_eq!(answer.status, status, "{body}: {}", answer.text());
                assert_eq!(answer.json()["error"]["code"], -32602, "{body}");
            }
            let meta = json!({ "thv/identity": { "subject": "root" } });
            let params = json!({ "name": "echo", "arguments": {} });
            let body = modern::body(1, "tools/call", params, meta);
            let body = body.replace("thv/identity", name);
            let request = modern::bytes(&alice, "tools/call", Some("echo"), &body);
            let mut without = alice.clone();
            without.session = None;
            let answer = wire::exchange(alice.address, &request).await;
            assert_eq!(answer.status, 400, "{}", answer.text());
        }
        let seen = json!(seen(&alice).await).to_string();
        assert!(!seen.contains("root"), "{seen}");
        // An argument of that name is the tool's own.
        let said = alice
            .call("echo", json!({ "thv/identity": 1 }))
            .await
            .said();
        assert_eq!(said, r#"{"thv/identity": 1}"#);
    }
}

/// A legacy session at a server that speaks modern MCP alone, and a stream: the same there.
#[tokio::test]
async fn a_translated_request_names_its_caller_too() {
    let plan = house().argument("--modern");
    let plan = plan.top("scope = \"server\"\npass-identity = true\n");
    let house = plan.open().await;
    let alice = house.session("alice").await;
    let mut stream = Events::open(
        house.address,
        &alice.bytes("POST", &call(7, "progress", json!({}))),
    )
    .await;
    while stream.next().await["id"] != 7 {}
    let lines = alice.seen().await;
    let told = lines.iter().filter(|line| line.contains("\"progress\""));
    let told: Vec<Value> = told
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let meta = &told[0]["params"]["_meta"];
    assert_eq!(meta["thv/identity"]["subject"], "alice");
    assert_eq!(
        meta["io.modelcontextprotocol/protocolVersion"],
        "2026-07-28"
    );
}

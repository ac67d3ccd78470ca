//! Who hears what of changes, and from when until when.

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    backends::inside,
    house::{Caller, house},
    modern::{self, seen, tool},
    wire::{Events, PATIENCE},
};

const LABEL: &str = "io.modelcontextprotocol/subscriptionId";
const UPDATED: &str = "notifications/resources/updated";

/// A modern client subscribes to resources.
async fn listens(caller: &Caller, id: &str, uris: &[&str]) -> Events {
    let wanted = json!({ "resourceSubscriptions": uris });
    let request = modern::listens(caller, json!(id), wanted);
    Events::open(caller.address, &request).await
}

/// What the subscription hears first: which resources it will be told of.
async fn acknowledged(events: &mut Events, id: &str) -> Value {
    let mut first = events.next().await;
    assert_eq!(
        (&first["method"], &first["params"]["_meta"][LABEL]),
        (
            &json!("notifications/subscriptions/acknowledged"),
            &json!(id)
        ),
        "{first}"
    );
    first["params"]["notifications"].take()
}

/// Which resource has changed, as the subscription hears next.
async fn updated(events: &mut Events) -> String {
    let next = events.next().await;
    assert_eq!(next["method"], UPDATED, "{next}");
    next["params"]["uri"].as_str().unwrap().to_owned()
}

/// Until a line with all of these has reached the server.
async fn reached(caller: &Caller, words: &[&str]) -> String {
    let line = async {
        loop {
            let lines = seen(caller).await;
            let is_it = |line: &&String| words.iter().all(|word| line.contains(word));
            if let Some(line) = lines.iter().find(is_it) {
                return line.clone();
            }
        }
    };
    timeout(PATIENCE, line).await.expect("it was not said")
}

/// mcp-T28: a subscription at a legacy server is acknowledged when that has said which of its resources it tells of,
/// with these alone, and hears only then what there was to hear; one that waits keeps no other waiting.
#[tokio::test]
async fn a_subscription_is_acknowledged_with_what_a_legacy_server_has_taken() {
    for scope in ["session", "server"] {
        let plan = house().argument("--changes");
        let house = plan.top(&format!("scope = \"{scope}\"\n")).open().await;
        let alice = house.caller("alice");
        let uris = ["file:///a", "file:///refused", "file:///later"];
        let mut one = listens(&alice, "one", &uris).await;
        reached(&alice, &["resources/subscribe", "file:///later"]).await;
        let mut two = listens(&alice, "two", &["file:///later", "file:///b"]).await;
        reached(&alice, &["resources/subscribe", "file:///b"]).await;
        let mut three = listens(&alice, "three", &["file:///a"]).await;
        assert_eq!(
            acknowledged(&mut three, "three").await,
            json!({ "resourceSubscriptions": ["file:///a"] })
        );
        for uri in ["file:///a", "file:///refused", "file:///a"] {
            tool(&alice, "announce", json!({ "uri": uri })).await;
        }
        assert_eq!(updated(&mut three).await, "file:///a");
        tool(&alice, "release", json!({ "for": "file:///later" })).await;
        assert_eq!(
            acknowledged(&mut one, "one").await,
            json!({ "resourceSubscriptions": ["file:///a", "file:///later"] }),
            "{scope}"
        );
        assert_eq!(
            acknowledged(&mut two, "two").await,
            json!({ "resourceSubscriptions": ["file:///b", "file:///later"] })
        );
        // What came twice meanwhile is said once.
        tool(&alice, "announce", json!({ "uri": "file:///later" })).await;
        assert_eq!(updated(&mut one).await, "file:///a");
        assert_eq!(updated(&mut one).await, "file:///later");
        assert_eq!(updated(&mut two).await, "file:///later");
        let lines = seen(&alice).await;
        let asked = |line: &&String| line.contains("resources/subscribe");
        assert_eq!(lines.iter().filter(asked).count(), 4, "{lines:#?}");
        house.end().await;
    }
}

/// mcp-T28: what a legacy server never answers is not acknowledged, and is taken back when its time is over; what
/// nobody waits for any more is taken back when it has answered.
#[tokio::test]
async fn a_subscription_does_not_wait_for_ever_for_a_legacy_server() {
    let limits = "[limits]\ncall-timeout = \"2s\"\n";
    let house = house().argument("--changes").with(limits).open().await;
    let alice = house.caller("alice");
    let mut one = listens(&alice, "one", &["file:///mute", "file:///a"]).await;
    let leaves = listens(&alice, "two", &["file:///later"]).await;
    reached(&alice, &["resources/subscribe", "file:///later"]).await;
    drop(leaves);
    assert_eq!(
        acknowledged(&mut one, "one").await,
        json!({ "resourceSubscriptions": ["file:///a"] })
    );
    let asked = reached(&alice, &["resources/subscribe", "file:///mute"]).await;
    let asked: Value = serde_json::from_str(&asked).unwrap();
    let named = format!("\"requestId\":{}", asked["id"]);
    reached(&alice, &["notifications/cancelled", &named]).await;
    reached(&alice, &["resources/unsubscribe", "file:///mute"]).await;
    reached(&alice, &["resources/unsubscribe", "file:///later"]).await;
    tool(&alice, "announce", json!({ "uri": "file:///mute" })).await;
    tool(&alice, "announce", json!({ "uri": "file:///a" })).await;
    assert_eq!(updated(&mut one).await, "file:///a");
}

/// A legacy client's own stream.
async fn own_stream(caller: &Caller) -> Events {
    let mut stream = Events::open(caller.address, &caller.bytes("GET", "")).await;
    assert_eq!(stream.line().await, "HTTP/1.1 200 OK");
    stream
}

async fn asks_to_subscribe(caller: &Caller, uri: &str) -> Value {
    let params = json!({ "uri": uri });
    let request =
        json!({ "jsonrpc": "2.0", "id": uri, "method": "resources/subscribe", "params": params });
    caller.post(&request.to_string()).await.json()
}

async fn subscribe(caller: &Caller, uri: &str) {
    let answer = asks_to_subscribe(caller, uri).await;
    assert_eq!(answer["result"], json!({}), "{answer}");
}

/// The same for a legacy client's session.
async fn reached_session(caller: &Caller, words: &[&str]) -> String {
    let line = async {
        loop {
            let lines = caller.seen().await;
            let is_it = |line: &&String| words.iter().all(|word| line.contains(word));
            if let Some(line) = lines.iter().find(is_it) {
                return line.clone();
            }
        }
    };
    timeout(PATIENCE, line).await.expect("it was not said")
}

/// mcp-T28: a legacy client that subscribes at a modern server has its answer when that has acknowledged the resource, an
/// error if it does not, and hears nothing of it before; others are answered meanwhile.
#[tokio::test]
async fn a_legacy_client_subscribes_when_a_modern_server_has_acknowledged() {
    for scope in ["session", "server"] {
        let plan = house().argument("--modern").argument("--changes");
        let plan = plan.with("[limits]\ncall-timeout = \"2s\"\n");
        let house = plan.top(&format!("scope = \"{scope}\"\n")).open().await;
        let alice = house.session("alice").await;
        let mut own = own_stream(&alice).await;
        let announce = async |uri: &str| {
            let announced = alice.call("announce", json!({ "uri": uri })).await;
            assert_eq!(announced.said(), "announced", "{uri}");
        };
        subscribe(&alice, "file:///a").await;
        let begins = "notifications/tools/list_changed";
        assert_eq!(own.next_request().await["method"], begins);

        let later = tokio::spawn({
            let alice = alice.clone();
            async move { asks_to_subscribe(&alice, "file:///later").await }
        });
        reached_session(&alice, &["subscriptions/listen", "file:///later"]).await;
        announce("file:///later").await;
        announce("file:///a").await;
        assert_eq!(updated(&mut own).await, "file:///a", "{scope}");
        assert!(!later.is_finished());
        let release = json!({ "for": "file:///later" });
        assert_eq!(alice.call("release", release).await.said(), "done");
        let answer = later.await.unwrap();
        assert_eq!(answer["result"], json!({}), "{answer}");
        assert_eq!(own.next_request().await["method"], begins);
        announce("file:///later").await;
        assert_eq!(updated(&mut own).await, "file:///later");

        for (uri, code) in [
            ("file:///refused", json!(-32602)),
            ("file:///forbidden", json!(-32000)),
            ("file:///mute", json!("timeout")),
        ] {
            let answer = asks_to_subscribe(&alice, uri).await;
            let error = &answer["error"];
            let told = if code.is_string() {
                &error["data"]["reason"]
            } else {
                &error["code"]
            };
            assert_eq!(*told, code, "{answer}");
            announce(uri).await;
        }
        announce("file:///a").await;
        // It says so to the one that it has acknowledged without what it refuses.
        assert_eq!(own.next_request().await["method"], begins);
        assert_eq!(updated(&mut own).await, "file:///a");
        house.end().await;
    }
}

/// mcp-T28: what a modern server ends by itself goes on for a legacy client that has subscribed, whichever way it ends,
/// and as often as it does.
#[tokio::test]
async fn what_a_modern_server_ends_goes_on_for_a_legacy_client() {
    for (scope, by) in [
        ("session", "answer"),
        ("session", "cancelled"),
        ("server", "answer"),
        ("server", "cancelled"),
    ] {
        let plan = house().argument("--modern").argument("--changes");
        let house = plan.top(&format!("scope = \"{scope}\"\n")).open().await;
        let alice = house.session("alice").await;
        let mut own = own_stream(&alice).await;
        subscribe(&alice, "file:///a").await;
        // It says so to each subscription as it begins.
        let begins = "notifications/tools/list_changed";
        assert_eq!(own.next_request().await["method"], begins);
        for when in ["at once", "after a pause"] {
            alice.call("unlisten", json!({ "by": by })).await;
            if when == "at once" {
                // What may have changed between the two; the second time that is too soon.
                assert_eq!(own.next_request().await["method"], begins, "{scope} {by}");
                assert_eq!(updated(&mut own).await, "file:///a");
            }
            assert_eq!(own.next_request().await["method"], begins, "{scope} {by}");
            let announce = json!({ "uri": "file:///a" });
            assert_eq!(alice.call("announce", announce).await.said(), "announced");
            assert_eq!(updated(&mut own).await, "file:///a");
        }
        let lines = alice.seen().await;
        let listens = |line: &&String| line.contains("subscriptions/listen");
        let listens: Vec<&String> = lines.iter().filter(listens).collect();
        assert_eq!(listens.len(), 3, "{lines:#?}");
        assert!(listens.iter().all(|line| line.contains("file:///a")));
        let replaced = |line: &String| line.contains("notifications/cancelled");
        assert!(!lines.iter().any(replaced), "{lines:#?}");
        house.end().await;
    }
}

/// The same at a server that speaks HTTP, where each subscription is a connection, and may end without a word.
#[tokio::test]
async fn what_a_modern_server_ends_goes_on_over_http() {
    let house = inside(&["--modern", "--changes"]).open().await;
    let alice = house.session("alice").await;
    let mut own = own_stream(&alice).await;
    let announce = async |uri: &str| {
        let announced = alice.call("announce", json!({ "uri": uri })).await;
        assert_eq!(announced.said(), "announced", "{uri}");
    };
    for uri in ["file:///a", "file:///b"] {
        subscribe(&alice, uri).await;
    }
    let refused = asks_to_subscribe(&alice, "file:///forbidden").await;
    assert_eq!(refused["error"]["code"], -32000, "{refused}");
    announce("file:///b").await;
    assert_eq!(updated(&mut own).await, "file:///b");
    assert_eq!(alice.call("cut", json!({})).await.said(), "cut");
    let lists = own.next_request().await;
    assert_eq!(lists["method"], "notifications/tools/list_changed");
    for uri in ["file:///a", "file:///b"] {
        assert_eq!(
            updated(&mut own).await,
            uri,
            "it may have changed meanwhile"
        );
    }
    announce("file:///a").await;
    assert_eq!(updated(&mut own).await, "file:///a");
}

/// Bob may subscribe to everything but what is secret.
const NOT_BOB: &str = r#"
    permit (principal, action, resource);
    @id("secret") forbid (principal, action == Action::"resources/subscribe", resource)
        when { principal.subject == "bob" && resource.uri like "*secret*" };
"#;

/// Who subscribes to a resource hears of its parts by a policy's leave: a client of either era, at a server of either, and
/// whoever else shares that.
#[tokio::test]
async fn who_may_not_subscribe_to_a_part_does_not_hear_of_it() {
    for scope in ["session", "user", "server"] {
        for era in ["--changes", "--modern"] {
            let plan = house().argument("--changes").argument(era).policy(NOT_BOB);
            let house = plan.top(&format!("scope = \"{scope}\"\n")).open().await;
            for subject in ["alice", "bob"] {
                let (modern, legacy) = (house.caller(subject), house.session(subject).await);
                let mut own = own_stream(&legacy).await;
                subscribe(&legacy, "a:b").await;
                let mut events = listens(&modern, "x", &["a:b"]).await;
                acknowledged(&mut events, "x").await;
                let parts = ["a:b/secret", "a:b/open", "a:b"];
                for uri in parts {
                    let part = json!({ "uri": uri, "of": "a:b" });
                    assert_eq!(legacy.call("announce", part.clone()).await.status, 200);
                    // They may be of one child, which says it twice then.
                    assert_eq!(tool(&modern, "announce", part).await.status, 200);
                }
                let mut heard = [Vec::new(), Vec::new()];
                for (stream, heard) in [&mut own, &mut events].into_iter().zip(&mut heard) {
                    while heard.last().is_none_or(|last| last != "a:b") {
                        let next = stream.next_request().await;
                        if next["method"] == UPDATED {
                            heard.push(next["params"]["uri"].as_str().unwrap().to_owned());
                        }
                    }
                    heard.dedup();
                }
                let permitted = if subject == "bob" {
                    &parts[1..]
                } else {
                    &parts
                };
                for heard in heard {
                    assert_eq!(heard, permitted, "{subject}, {scope}, {era}");
                }
            }
            house.end().await;
        }
    }
}

/// Who is in the group `wide` may subscribe to everything, others to what is not secret.
const WIDE: &str = r#"
    permit (principal, action, resource);
    forbid (principal, action == Action::"resources/subscribe", resource)
        when { resource.uri like "*secret*" && !principal.groups.contains("wide") };
"#;

/// A legacy client hears of a resource by the token with which it subscribed to that one, whatever it subscribes to with
/// others in the same session, before and after.
#[tokio::test]
async fn each_resource_is_heard_by_the_token_that_subscribed_to_it() {
    for scope in ["session", "user", "server"] {
        for era in ["--changes", "--modern"] {
            let plan = house().argument("--changes").argument(era).policy(WIDE);
            let house = plan.top(&format!("scope = \"{scope}\"\n")).open().await;
            let narrow = house.session("alice").await;
            let wide = Caller {
                token: Some(house.token_in("alice", &["wide"])),
                ..narrow.clone()
            };
            let mut own = own_stream(&narrow).await;
            for (caller, uri) in [
                (&wide, "a:first"),
                (&narrow, "a:narrow"),
                (&wide, "a:twice"),
                (&narrow, "a:twice"),
                (&wide, "a:last"),
                // A part that may be heard, of what may not.
                (&wide, "a:narrow/open/secret"),
            ] {
                subscribe(caller, uri).await;
            }
            let mut heard = Vec::new();
            for of in ["a:first", "a:narrow", "a:twice", "a:last"] {
                let parts = [format!("{of}/secret"), format!("{of}/open")];
                for uri in parts {
                    let part = json!({ "uri": uri, "of": of });
                    assert_eq!(narrow.call("announce", part).await.said(), "announced");
                }
            }
            let of = json!({ "uri": "a:narrow/open/secret", "of": "a:narrow/open/secret" });
            assert_eq!(narrow.call("announce", of).await.said(), "announced");
            while heard
                .last()
                .is_none_or(|last| last != "a:narrow/open/secret")
            {
                let next = own.next_request().await;
                if next["method"] == UPDATED {
                    heard.push(next["params"]["uri"].as_str().unwrap().to_owned());
                }
            }
            let expected = [
                "a:first/secret",
                "a:first/open",
                "a:narrow/open",
                "a:twice/open",
                "a:last/secret",
                "a:last/open",
                "a:narrow/open/secret",
            ];
            assert_eq!(heard, expected, "{scope}, {era}");
            house.end().await;
        }
    }
}

//! Whom a good token makes its bearer, and whom not; and when that ends.
//!
//! The issuer's keys are in a file, so that its name may be any; the wall clock is the
//! test's where time passes.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use thv::time::Clock;

use crate::{
    house::{House, Plan, call, house, in_a_process_of_its_own, is_in_a_process_of_its_own},
    identity::{
        ISSUERS, caller, claims, is_refused, is_refused_beside, is_served, last_decision, metadata,
        now,
    },
    modern,
    provider::pass,
    wire::{self, Answer, Events},
};

const ONE: &str = "https://one.example";
const TWO: &str = "https://two.example";

/// A house that trusts the issuer `ONE`, with more lines of its table.
fn one(more: &str) -> Plan {
    let keys = json!({ "keys": [ISSUERS.jwk()] }).to_string();
    house()
        .trusting(ONE)
        .also("keys.json", keys)
        .issuer(&format!("jwks-file = \"/etc/thv/keys.json\"\n{more}"))
}

/// Two issuers, with the very same key even.
fn both() -> Plan {
    one(&format!(
        "[[auth.issuer]]\nissuer = \"{TWO}\"\naudience = \"http://{{address}}/mcp\"\njwks-file = \"/etc/thv/keys.json\"\n"
    ))
}

/// A good token with these claims in place of its own; `null` is none.
fn with(house: &House, changes: Value) -> String {
    let mut claims = claims(house);
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        }
    }
    ISSUERS.sign(&json!({ "typ": "at+jwt", "alg": "ES256" }), &claims)
}

/// No policy permits it, and no scope would help (403 without a challenge): told with the request's own id.
fn is_denied(house: &House, answer: &Answer, children: usize) {
    assert_eq!(answer.status, 403, "{answer:?}");
    assert_eq!(answer.header("www-authenticate"), None);
    assert_eq!(
        answer.json(),
        json!({ "jsonrpc": "2.0", "id": 0, "error": {
            "code": -32603, "message": "not permitted", "data": { "reason": "denied" },
        } })
    );
    let last = last_decision(house);
    assert!(last.contains("THV_REASON=policy "), "{last}");
    assert_eq!(house.children_started(), children);
}

/// tok-79: a program whose name is a user's is not that user, nor the other way round.
#[tokio::test]
async fn a_program_is_not_the_user_of_its_name() {
    let policy = |who: &str| {
        format!(r#"@id("who") permit (principal == {who}::"{ONE}|alice", action, resource);"#)
    };
    let person = |house: &House| with(house, json!({}));
    let program = |house: &House, by: &str| with(house, json!({ "client_id": null, by: "alice" }));

    let house = one("").policy(&policy("User")).open().await;
    for by in ["client_id", "azp", "cid", "appid"] {
        let answer = caller(&house, program(&house, by)).initialize().await;
        is_denied(&house, &answer, 0);
        let last = last_decision(&house);
        assert!(
            last.contains(&format!("THV_SUBJECT=alice THV_ISSUER={ONE} ")),
            "{last}"
        );
    }
    is_served(&house, &person(&house), "alice").await;

    let house = one("").policy(&policy("Client")).open().await;
    is_denied(
        &house,
        &caller(&house, person(&house)).initialize().await,
        0,
    );
    is_served(&house, &program(&house, "client_id"), "alice").await;

    // Where both may come in, neither is in the other's session.
    let house = one("").open().await;
    let alice = is_served(&house, &person(&house), "alice").await;
    let mut robot = is_served(&house, &program(&house, "azp"), "alice").await;
    assert_eq!(house.children_started(), 2);
    robot.session.clone_from(&alice.session);
    is_of_another(&house, &robot.call("echo", json!({})).await);
}

/// As if there were no such session; the record knows better.
fn is_of_another(house: &House, answer: &Answer) {
    assert_eq!(answer.status, 404, "{answer:?}");
    assert_eq!(answer.json()["error"]["data"]["reason"], "session-unknown");
    let last = last_decision(house);
    assert!(last.contains("THV_REASON=session-of-another "), "{last}");
}

/// tok-80: a subject is somebody at its issuer alone.
#[tokio::test]
async fn one_name_at_two_issuers_is_two_callers() {
    let theirs = |house: &House| with(house, json!({ "iss": TWO }));
    let policy =
        format!(r#"@id("one") permit (principal == User::"{ONE}|alice", action, resource);"#);
    let house = both().policy(&policy).open().await;
    let answer = caller(&house, theirs(&house)).initialize().await;
    is_denied(&house, &answer, 0);
    let last = last_decision(&house);
    assert!(
        last.contains(&format!("THV_SUBJECT=alice THV_ISSUER={TWO} ")),
        "{last}"
    );
    is_served(&house, &with(&house, json!({})), "alice").await;

    let house = both().open().await;
    let ours = is_served(&house, &with(&house, json!({})), "alice").await;
    let mut other = caller(&house, theirs(&house));
    assert_eq!(other.initialize().await.status, 200);
    assert_eq!(other.call("echo", json!({})).await.status, 200);
    let last = last_decision(&house);
    assert!(last.contains(&format!("THV_ISSUER={TWO} ")), "{last}");
    assert_eq!(house.children_started(), 2);
    let principals: Vec<_> = house
        .records
        .all()
        .iter()
        .filter_map(|record| record.split("THV_PRINCIPAL=").nth(1).map(ToOwned::to_owned))
        .collect();
    assert_eq!(principals.len(), 2, "{principals:?}");
    assert_ne!(principals[0], principals[1]);
    other.session.clone_from(&ours.session);
    is_of_another(&house, &other.call("echo", json!({})).await);
}

/// tok-81: an address is no name, whoever says it; and one with two hosts is at neither.
#[tokio::test]
async fn an_address_is_nobodys_name() {
    let policy = format!(
        r#"@id("names") permit (principal, action, resource)
           when {{ principal in [User::"{ONE}|victim@good.example", User::"{ONE}|victim"] }};"#
    );
    let house = one("").policy(&policy).open().await;
    for claims in [
        json!({ "email": "victim@good.example", "email_verified": true }),
        json!({ "preferred_username": "victim" }),
        json!({ "upn": "victim@good.example", "name": "victim", "unique_name": "victim" }),
        json!({ "sub": "victim@good.example@evil.example", "email": "victim@good.example" }),
    ] {
        let subject = claims["sub"].as_str().unwrap_or("alice").to_owned();
        let answer = caller(&house, with(&house, claims)).initialize().await;
        is_denied(&house, &answer, 0);
        let last = last_decision(&house);
        assert!(last.contains(&format!("THV_SUBJECT={subject} ")), "{last}");
    }
    is_served(&house, &with(&house, json!({ "sub": "victim" })), "victim").await;

    let house = one("required-claims = { email = \"a@good.example\" }\n")
        .open()
        .await;
    for (email, verified) in [
        (json!("a@good.example@evil.example"), json!(true)),
        (json!("a@evil.example@good.example"), json!(true)),
        (json!("A@good.example"), json!(true)),
        (json!(" a@good.example"), json!(true)),
        (json!("a@good.example"), json!(false)),
        (json!("a@good.example"), json!("true")),
        (json!("a@good.example"), Value::Null),
        (Value::Null, json!(true)),
    ] {
        let claims = json!({ "email": email, "email_verified": verified });
        let answer = caller(&house, with(&house, claims)).initialize().await;
        is_refused(&house, &answer, "token-required-claim");
    }
    let good = json!({ "email": "a@good.example", "email_verified": true });
    is_served(&house, &with(&house, good), "alice").await;
}

/// tok-77: a token may be for others besides, unless the server says that it must not.
#[tokio::test]
async fn a_token_for_others_too_is_good_unless_it_must_be_ours_alone() {
    let others = |house: &House| {
        let audience = json!([house.resource(), "https://other.example"]);
        with(house, json!({ "aud": audience }))
    };
    let house = one("").open().await;
    is_served(&house, &others(&house), "alice").await;
    let house = one("single-audience = true\n").open().await;
    let answer = caller(&house, others(&house)).initialize().await;
    is_refused(&house, &answer, "token-audience");
    let ours = json!([house.resource(), house.resource()]);
    is_served(&house, &with(&house, json!({ "aud": ours })), "alice").await;
}

/// tok-85: a scope may stand for narrower ones, through any number of steps; nothing but the table says so.
#[tokio::test]
async fn a_broad_scope_stands_for_narrow_ones() {
    let house = one(
        "scopes = [\"base\"]\nimplied-scopes = { root = [\"admin\"], admin = [\"base\", \"root\"] }\n",
    )
    .policy(
        r#"@id("all") permit (principal, action, resource);
           @id("calls") forbid (principal, action == Action::"tools/call", resource)
           unless { principal.scopes.contains("admin") };"#,
    )
    .open()
    .await;
    for scope in ["", "administrator", "Admin", "base:all", "*"] {
        let token = with(&house, json!({ "scope": scope }));
        let answer = caller(&house, token).initialize().await;
        assert_eq!(answer.status, 403, "{scope}: {answer:?}");
        let challenge = format!(
            "Bearer error=\"insufficient_scope\", error_description=\"The token was issued for less\", {}, \
             scope=\"base\"",
            metadata(&house)
        );
        assert_eq!(answer.header("www-authenticate"), Some(&*challenge));
        assert_eq!(
            answer.json(),
            json!({ "jsonrpc": "2.0", "error": {
                "code": -32603, "message": "the token lacks a scope", "data": { "reason": "scope-insufficient" },
            } })
        );
        let last = last_decision(&house);
        assert!(last.contains("THV_REASON=scope-insufficient "), "{last}");
        assert_eq!(house.children_started(), 0);
    }
    for scope in ["admin", "root", "other root"] {
        is_served(&house, &with(&house, json!({ "scope": scope })), "alice").await;
    }
}

/// A clock that says what the test says.
fn settable() -> (Arc<AtomicU64>, Clock) {
    let time = Arc::new(AtomicU64::new(now()));
    let read = time.clone();
    (time, Clock::new(move || read.load(Ordering::Relaxed)))
}

/// tok-70: a clock that is set back revives nothing that was over before.
#[tokio::test]
async fn a_clock_that_is_set_back_revives_no_token() {
    let (time, clock) = settable();
    let start = now();
    let house = one("").clock(clock).open().await;
    let token = with(&house, json!({ "iat": start, "exp": start + 300 }));
    let other = with(
        &house,
        json!({ "iat": start, "exp": start + 300, "jti": "2" }),
    );
    let later = with(&house, json!({ "iat": start + 350, "exp": start + 900 }));
    // It was good, and is remembered: let in, to be told that there is no such session.
    let mut alice = caller(&house, token.clone());
    alice.session = Some("0".repeat(32));
    assert_eq!(alice.call("echo", json!({})).await.status, 404);
    for at in [start + 400, start - 3600, start, start + 299] {
        time.store(at, Ordering::Relaxed);
        for token in [&token, &other] {
            let answer = caller(&house, token.clone()).initialize().await;
            is_refused(&house, &answer, "token-expired");
        }
    }
    is_served(&house, &later, "alice").await;
}

/// tok-69: what a token has opened ends with it, and a call that runs does not; the next one needs another.
#[tokio::test]
async fn streams_end_with_their_token_and_running_calls_do_not() {
    let (time, clock) = settable();
    let start = now();
    let house = one("leeway = \"5s\"\n").clock(clock).open().await;
    let mut alice = caller(
        &house,
        with(&house, json!({ "iat": start, "exp": start + 60 })),
    );
    assert_eq!(alice.initialize().await.status, 200);
    let mut own = Events::open(house.address, &alice.bytes("GET", "")).await;
    own.field("id: ").await;
    let mut running = alice.stream(&call(7, "wait", json!({ "for": "x" }))).await;
    // Both are open for certain once a call behind them is answered.
    while !alice
        .seen()
        .await
        .iter()
        .any(|line| line.contains("\"wait\""))
    {}

    // A moment before its end all is as it was, with the leeway.
    time.store(start + 64, Ordering::Relaxed);
    pass(Duration::from_secs(55)).await;
    assert_eq!(alice.call("announce", json!({})).await.status, 200);
    assert_eq!(
        own.next().await["method"],
        "notifications/tools/list_changed"
    );

    time.store(start + 66, Ordering::Relaxed);
    pass(Duration::from_secs(11)).await;
    own.end().await;
    let children = house.children_started();
    let answer = alice.call("echo", json!({})).await;
    is_refused_beside(&house, &answer, "token-expired", children);
    let answer = wire::exchange(house.address, &alice.bytes("GET", "")).await;
    is_refused_beside(&house, &answer, "token-expired", children);

    let mut renewed = alice.clone();
    renewed.token = Some(with(
        &house,
        json!({ "iat": start + 60, "exp": start + 600 }),
    ));
    let released = renewed
        .post(&call(2, "release", json!({ "for": "x" })))
        .await;
    assert_eq!(released.status, 200, "{released:?}");
    assert_eq!(
        running.next().await["result"]["content"][0]["text"],
        "released"
    );
}

/// tok-69: the same of what a modern client listens to.
#[tokio::test]
async fn a_modern_subscription_ends_with_its_token() {
    let (time, clock) = settable();
    let start = now();
    let house = one("leeway = \"5s\"\n")
        .argument("--modern")
        .clock(clock)
        .open()
        .await;
    let alice = caller(
        &house,
        with(&house, json!({ "iat": start, "exp": start + 60 })),
    );
    let listen = modern::listens(&alice, 1, json!({ "toolsListChanged": true }));
    let mut open = Events::open(house.address, &listen).await;
    assert_eq!(
        open.next().await["method"],
        "notifications/subscriptions/acknowledged"
    );
    time.store(start + 66, Ordering::Relaxed);
    pass(Duration::from_secs(66)).await;
    open.end().await;
    let children = house.children_started();
    let answer = modern::tool(&alice, "echo", json!({})).await;
    is_refused_beside(&house, &answer, "token-expired", children);
}

/// tok-89: who is revoked by an edited file stays out, and what they had open is closed at once.
#[test]
fn who_is_revoked_by_configuration_is_out_at_once() {
    let this = Command::new(std::env::current_exe().unwrap());
    in_a_process_of_its_own(this, "refusals_callers::beside_a_restart");
}

#[tokio::test]
#[ignore = "in a process that may be told to stop, by who_is_revoked_by_configuration_is_out_at_once"]
async fn beside_a_restart() {
    if !is_in_a_process_of_its_own() {
        return;
    }
    let house = one("").open().await;
    let alice = is_served(&house, &with(&house, json!({})), "alice").await;
    let mut own = Events::open(house.address, &alice.bytes("GET", "")).await;
    own.field("id: ").await;
    // The file is edited, and as `systemctl try-restart` does it, the gateway told to stop.
    let start = Instant::now();
    kill(Pid::this(), Signal::SIGTERM).unwrap();
    own.end().await;
    let closed = start.elapsed();
    assert!(closed < Duration::from_secs(5), "{closed:?}");
    assert_eq!(house.ended().await, thv::daemon::Exit::Done);

    let house = one("revoked = [\"alice\", \"contractor-*\"]\n")
        .open()
        .await;
    for subject in ["alice", "contractor-7"] {
        let token = with(&house, json!({ "sub": subject }));
        let answer = caller(&house, token).initialize().await;
        is_refused(&house, &answer, "token-revoked");
    }
    is_served(&house, &with(&house, json!({ "sub": "bob" })), "bob").await;
}

/// tok-89: all tokens that were issued before a time, or do not say when.
#[tokio::test]
async fn tokens_of_before_an_incident_are_refused() {
    const INCIDENT: u64 = 1_767_225_600;
    let house = one("issued-after = \"2026-01-01T00:00:00Z\"\ntyp = \"legacy\"\n")
        .clock(Clock::new(|| INCIDENT + 100))
        .open()
        .await;
    let issued_at = |at: Value| with(&house, json!({ "iat": at, "exp": INCIDENT + 300 }));
    for at in [json!(INCIDENT - 1), json!(INCIDENT - 3600), Value::Null] {
        let answer = caller(&house, issued_at(at)).initialize().await;
        is_refused(&house, &answer, "token-revoked");
    }
    is_served(&house, &issued_at(json!(INCIDENT)), "alice").await;
}

//! Calls that wait at a server of the older versions for what their client says.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use serde_json::{Value, json};

use crate::{
    bridge::{asked, call, was_not_called},
    faults::pass,
    house::{Caller, House, house, in_a_process_of_its_own, is_in_a_process_of_its_own},
    identity::{CLIENTS, Signer, caller, claims},
    issuer::Issuer,
    modern::{self, body, seen, tool},
    wire::{self, Answer},
};

/// The answer to what the scripted server asks, for the call that the state is of.
fn accept(state: &str) -> Value {
    json!({ "requestState": state, "inputResponses": { "mine-1": { "action": "accept" } } })
}

#[track_caller]
fn is_refused(house: &House, answer: &Answer, told: (u16, &str), reason: &str) {
    let error = &answer.json()["error"]["data"]["reason"];
    assert_eq!(
        (answer.status, error),
        (told.0, &json!(told.1)),
        "{answer:?}"
    );
    let last = house.records.all().pop().unwrap();
    assert!(last.contains(&format!("THV_REASON={reason} ")), "{last}");
}

/// Alice, by this program of hers.
fn through(house: &House, keys: &Signer, client: &str) -> Caller {
    let mut claims = claims(house);
    claims["client_id"] = json!(client);
    caller(
        house,
        keys.sign(&json!({ "typ": "at+jwt", "alg": "ES256" }), &claims),
    )
}

/// tok-133: it is of one method and of one of a user's programs, too, which share a child else.
#[tokio::test]
async fn a_state_is_of_one_method_and_one_program() {
    let issuer = Issuer::with(&[CLIENTS.jwk()]).await;
    let house = house().trusting(&issuer.name()).open().await;
    let editor = through(&house, &CLIENTS, "editor");
    let (_, state) = asked(&call(&editor, "ask", json!({}), json!({})).await);
    let other = through(&house, &CLIENTS, "other");
    let stolen = call(&other, "ask", json!({}), accept(&state)).await;
    is_refused(&house, &stolen, (400, "state-invalid"), "state-of-another");
    let mut params = accept(&state);
    params["name"] = json!("ask");
    params["arguments"] = json!({});
    let prompt = body(1, "prompts/get", params, json!({}));
    let prompt = modern::bytes(&editor, "prompts/get", Some("ask"), &prompt);
    let prompt = wire::exchange(house.address, &prompt).await;
    is_refused(&house, &prompt, (400, "state-invalid"), "state-of-another");
    let done = call(&editor, "ask", json!({}), accept(&state)).await;
    assert!(done.said().contains("accept"), "{done:?}");
    // What is asked without a session is the user's: both programs have one child.
    assert_eq!(tool(&other, "echo", json!({})).await.said(), "{}");
    assert_eq!(house.children_started(), 1);
    let lines = seen(&editor).await;
    assert!(!lines.iter().any(|line| line.contains("prompts/get")));
}

/// mcp-M2: the key is in the gateway's state directory, for nobody else to read. The next gateway knows the state of
/// the one before for what it was: its call is lost, and not made again. Without the key it is nobody's.
#[tokio::test]
async fn the_next_gateway_knows_that_a_call_is_lost() {
    let issuer = Issuer::with(&[CLIENTS.jwk()]).await;
    let (kept, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let plan = || house().trusting(&issuer.name());
    let first = plan().state(kept.path()).open().await;
    let alice = through(&first, &CLIENTS, "editor");
    let (_, state) = asked(&call(&alice, "ask", json!({}), json!({})).await);
    first.end().await;
    let files: Vec<_> = fs::read_dir(kept.path())
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap())
        .filter(fs::Metadata::is_file)
        .collect();
    assert!(!files.is_empty());
    for file in files {
        assert_eq!(file.permissions().mode() & 0o77, 0);
    }

    let next = plan().state(kept.path()).open().await;
    let alice = through(&next, &CLIENTS, "editor");
    let lost = call(&alice, "ask", json!({}), accept(&state)).await;
    is_refused(&next, &lost, (502, "state-lost"), "state-lost");
    assert_eq!(next.children_started(), 0);

    let stranger = plan().state(other.path()).open().await;
    let alice = through(&stranger, &CLIENTS, "editor");
    let none = call(&alice, "ask", json!({}), accept(&state)).await;
    is_refused(&stranger, &none, (400, "state-invalid"), "state-invalid");
    was_not_called(&alice).await;
}

/// It is neither a call that takes too long nor a session that nobody uses, and counts among what its user may have at once.
#[tokio::test]
async fn a_call_that_waits_for_its_client_is_busy_beyond_other_deadlines() {
    let limits = "[limits]\ncall-timeout = \"1s\"\nsession-idle = \"1s\"\nexit-idle = \"1s\"\ncalls-per-user = 1\n";
    let house = house().with(limits).open().await;
    let alice = house.caller("alice");
    let (_, state) = asked(&call(&alice, "ask", json!({}), json!({})).await);
    let second = call(&alice, "echo", json!({}), json!({})).await;
    is_refused(&house, &second, (429, "user-call-limit"), "user-call-limit");
    // Longer than all of them.
    pass(Duration::from_secs(3)).await;
    let done = call(&alice, "ask", json!({}), accept(&state)).await;
    assert!(done.said().contains("accept"), "{done:?}");
    assert_eq!(tool(&alice, "echo", json!({})).await.said(), "{}");
    assert_eq!(house.children_started(), 1);
    house.records.wait_for("child-exited").await;
}

/// A gateway that is told to stop does not wait for what people say.
#[test]
fn a_call_that_waits_for_its_client_keeps_no_gateway() {
    let test = "awaited::told_to_stop_while_a_call_waits";
    in_a_process_of_its_own(Command::new(std::env::current_exe().unwrap()), test);
}

#[tokio::test]
#[ignore = "in a process that may be told to stop, by a_call_that_waits_for_its_client_keeps_no_gateway"]
async fn told_to_stop_while_a_call_waits() {
    if !is_in_a_process_of_its_own() {
        return;
    }
    let house = house().open().await;
    let alice = house.caller("alice");
    asked(&call(&alice, "ask", json!({}), json!({})).await);
    kill(Pid::this(), Signal::SIGTERM).unwrap();
    // Waited for no longer than a gateway would wait for the answer.
    assert_eq!(house.ended().await, thv::daemon::Exit::Done);
}

/// What the gateway alone may say is in no answer of a client's either, which reaches the server as a result.
#[tokio::test]
async fn an_answer_cannot_say_who_somebody_is() {
    let house = house().top("pass-identity = true\n").open().await;
    let alice = house.caller("alice");
    let (_, state) = asked(&call(&alice, "ask", json!({}), json!({})).await);
    let mut forged = accept(&state);
    forged["inputResponses"]["mine-1"]["_meta"] = json!({ "thv/identity": { "subject": "root" } });
    let answer = call(&alice, "ask", json!({}), forged).await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["code"]),
        (400, &json!(-32602))
    );
    let done = call(&alice, "ask", json!({}), accept(&state)).await;
    assert!(done.said().contains("accept"), "{done:?}");
    let lines = seen(&alice).await;
    assert!(!lines.iter().any(|line| line.contains("thv/identity")));
}

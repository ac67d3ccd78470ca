//! Servers that are started before anybody needs them.

use std::{fs, path::Path, process::Command, time::Instant};

use serde_json::{Value, json};

use crate::{
    house::{
        CROWD, Caller, House, crowd, field, house, in_a_process_of_its_own,
        is_in_a_process_of_its_own,
    },
    lease::{self, Lease},
    modern::tool,
    wire::PATIENCE,
};

/// The numbers of children that records of that kind name, with the principal.
fn children(house: &House, kind: &str) -> Vec<(String, Option<String>)> {
    let event = format!("THV_EVENT={kind} ");
    let field = |record: &str, name: &str| {
        let name = format!(" {name}=");
        let (_, rest) = record.split_once(&name)?;
        Some(rest.split(' ').next().unwrap_or_default().to_owned())
    };
    let all = house.records.all();
    all.iter()
        .filter(|record| record.contains(&event))
        .map(|record| {
            (
                field(record, "THV_CHILD").unwrap(),
                field(record, "THV_PRINCIPAL"),
            )
        })
        .collect()
}

async fn until(house: &House, kind: &str, count: usize) {
    let event = format!("THV_EVENT={kind} ");
    house.records.wait_for_all(&[&event], count).await;
}

async fn said(caller: &Caller) -> Vec<Value> {
    serde_json::from_str(&caller.call("seen", json!({})).await.said()).unwrap()
}

/// None before the first session; then so many wait, each session takes one and another comes in its place.
#[tokio::test]
async fn a_session_takes_a_child_that_waits_and_another_comes_in_its_place() {
    let house = crowd("warm = 2\n").open().await;
    // A stranger's request starts nothing, nor does a refused one.
    let mut stranger = house.caller("alice");
    stranger.token = None;
    assert_eq!(stranger.initialize().await.status, 401);
    assert_eq!(house.children_started(), 0);
    let first = house.session("alice").await;
    until(&house, "child-started", 3).await;
    assert_eq!(children(&house, "child-taken"), []);
    let second = house.session("bob").await;
    until(&house, "child-started", 4).await;
    let third = tool(&house.caller("carol"), "echo", json!({ "n": 1 })).await;
    assert_eq!(third.said(), "{\"n\": 1}");
    until(&house, "child-started", 5).await;
    let (started, taken) = (
        children(&house, "child-started"),
        children(&house, "child-taken"),
    );
    assert!(started[0].1.is_some(), "it was started for its session");
    assert!(
        started[1..]
            .iter()
            .all(|(_, principal)| principal.is_none())
    );
    // The eldest first, and each somebody's own.
    let numbers = |of: &[(String, Option<String>)]| -> Vec<String> {
        of.iter().map(|(number, _)| number.clone()).collect()
    };
    assert_eq!(numbers(&taken), numbers(&started[1..3]));
    assert!(taken[0].1.is_some() && taken[0].1 != taken[1].1);
    for caller in [&first, &second] {
        let seen = said(caller).await;
        let opened = seen.iter().filter(|it| it["method"] == "initialize");
        assert_eq!(opened.count(), 1, "whoever takes it opens the conversation");
    }
}

/// Those that wait count as sessions: with all that may be, none is refused and no more are started.
#[tokio::test]
async fn what_waits_counts_and_keeps_nobody_out() {
    let house = crowd("warm = 2\n")
        .with("[limits]\nsessions = 3\n")
        .open()
        .await;
    let mut sessions = vec![house.session("alice").await];
    until(&house, "child-started", 3).await;
    // Both at once: each gets one that waits, and there is room for none besides.
    let (bob, carol) = tokio::join!(house.session("bob"), house.session("carol"));
    sessions.extend([bob, carol]);
    let refused = house.caller("dave").initialize().await;
    assert_eq!(refused.status, 503);
    for session in &sessions {
        assert_eq!(session.call("echo", json!({})).await.said(), "{}");
    }
    assert_eq!(house.children_started(), 3);
    // One leaves: there is room for the next session, and for none that waits.
    sessions[0].send("DELETE", "").await;
    house.records.wait_for("child-exited").await;
    let dave = house.session("dave").await;
    assert_eq!(dave.call("echo", json!({})).await.said(), "{}");
    assert_eq!(house.children_started(), 4);
}

/// When nobody has had a session for so long there is no process left, though the gateway stays; and it begins anew.
#[tokio::test]
async fn nothing_waits_where_nobody_calls() {
    let house = crowd("warm = 2\n")
        .with("[limits]\nexit-idle = \"1s\"\n")
        .open()
        .await;
    let alice = house.session("alice").await;
    until(&house, "child-started", 3).await;
    alice.send("DELETE", "").await;
    let ended = Instant::now();
    until(&house, "child-exited", 3).await;
    assert!(ended.elapsed() < PATIENCE);
    let runner = house.runner_pid();
    let tasks = Path::new("/proc").join(format!("{runner}/task/{runner}/children"));
    assert_eq!(fs::read_to_string(tasks).unwrap().trim(), "");
    let bob = house.session("bob").await;
    assert_eq!(bob.call("echo", json!({})).await.said(), "{}");
    until(&house, "child-started", 6).await;
}

/// One that ended while it waited is recorded as that, and is nobody's.
#[tokio::test]
async fn one_that_ended_while_it_waited_is_nobodys() {
    let house = crowd("warm = 1\n").open().await;
    let alice = house.session("alice").await;
    until(&house, "child-started", 2).await;
    let pid = house
        .records
        .all()
        .iter()
        .rfind(|record| record.contains("THV_EVENT=child-started "))
        .and_then(|record| field(record, "THV_CHILD_PID")?.parse().ok())
        .unwrap();
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let gone = async {
        while Path::new("/proc").join(pid.to_string()).exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    // Of its end nobody but its gateway is told, before it is told of another's.
    assert_eq!(alice.send("DELETE", "").await.status, 204);
    house.records.wait_for("child-exited").await;
    let bob = house.session("bob").await;
    assert_eq!(bob.call("echo", json!({})).await.said(), "{}");
    house.records.wait_for("child-died").await;
    assert_eq!(children(&house, "child-taken"), []);
}

/// One that listens already is there at once; and a user's shared child may be one that waited.
#[tokio::test]
async fn what_waits_may_speak_http_or_be_shared() {
    let server = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/it/servers/streamable.py"
    );
    let plan = house().command(&["/usr/bin/python3", "-u", server, "8080"]);
    let house = plan
        .top("transport = \"http\"\nport = 8080\nwarm = 1\nscope = \"user\"\n")
        .open()
        .await;
    let alice = house.session("alice").await;
    until(&house, "child-started", 2).await;
    let (bob, again) = (house.session("bob").await, house.session("bob").await);
    for caller in [&alice, &bob, &again] {
        assert_eq!(caller.call("echo", json!({})).await.said(), "{}");
    }
    let taken = children(&house, "child-taken");
    assert_eq!(taken.len(), 1, "one for both of his sessions");
}

/// Told to stop, a gateway does not wait for a start that nobody will need, and that hangs.
#[test]
fn a_stop_does_not_wait_for_one_that_hangs_in_its_start() {
    let this = Command::new(std::env::current_exe().unwrap());
    in_a_process_of_its_own(this, "warm::told_to_stop_while_one_hangs_in_its_start");
}

#[tokio::test]
#[ignore = "in a process of its own, by a_stop_does_not_wait_for_one_that_hangs_in_its_start"]
async fn told_to_stop_while_one_hangs_in_its_start() {
    if !is_in_a_process_of_its_own() {
        return;
    }
    let (place, program) = lease::program(&["/usr/bin/python3", "-u", CROWD]);
    let house = house()
        .command(&[program.to_str().unwrap()])
        .readable(place.path())
        .top("warm = 1\n")
        // Longer than is waited for below.
        .with("[limits]\nstart-timeout = \"25s\"\n")
        .open()
        .await;
    let alice = house.session("alice").await;
    until(&house, "child-started", 2).await;
    assert_eq!(alice.call("echo", json!({})).await.said(), "{}");
    let lease = Lease::on(&program);
    // He takes the one that waits, and the next is begun.
    let bob = house.session("bob").await;
    let lease = lease.asked().await;
    assert_eq!(bob.call("echo", json!({})).await.said(), "{}");
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(house.ended().await, thv::daemon::Exit::Done);
    drop(lease);
}

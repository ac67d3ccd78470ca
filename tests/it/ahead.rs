//! Sandboxes that are made before anybody asks for them.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::house::{Caller, children_of, house};

/// Several have come, so there is one for the next, and it is the same as the others in
/// all that a server can see; with the last session it is gone.
#[tokio::test]
async fn a_sandbox_that_was_made_ahead_is_like_any_other() {
    let house = house().open().await;
    let runner = house.runner_pid();
    let first = house.session("alice").await;
    let alone = look(&first).await;
    assert_eq!(children_of(runner).len(), 1, "one that is alone needs none");
    let second = house.session("bob").await;
    let with_spare = until(runner, 3).await;
    let third = house.session("carol").await;
    assert_eq!(look(&third).await, alone);
    // It became the third's: none of these has gone.
    let now = children_of(runner);
    assert!(
        with_spare.iter().all(|pid| now.contains(pid)),
        "{with_spare:?}, {now:?}"
    );
    until(runner, 4).await;
    for caller in [&first, &second, &third] {
        let before = house.records.count("child-exited");
        caller.send("DELETE", "").await;
        house.records.wait_for_more("child-exited", before).await;
    }
    assert_eq!(children_of(runner), Vec::<i32>::new());
}

/// A spare one that has ended, for whatever reason, is not what the next session gets.
#[tokio::test]
async fn a_sandbox_that_ended_before_its_time_is_replaced() {
    let house = house().open().await;
    let runner = house.runner_pid();
    let sessions = [house.session("alice").await, house.session("bob").await];
    let taken: Vec<i32> = children_of(runner);
    let all = until(runner, 3).await;
    let spare = all.iter().find(|pid| !taken.contains(pid));
    let Some(spare) = spare else {
        println!("not proven here: it was made before it could be told from the others");
        return;
    };
    let spare = nix::unistd::Pid::from_raw(*spare);
    nix::sys::signal::kill(spare, nix::sys::signal::Signal::SIGKILL).unwrap();
    let third = house.session("carol").await;
    assert_eq!(third.call("echo", json!({})).await.status, 200);
    for session in &sessions {
        assert_eq!(session.call("echo", json!({})).await.status, 200);
    }
}

/// Where no other session may come, or each has secrets, nothing is made for them.
#[tokio::test]
async fn where_nobody_else_may_come_none_is_made_ahead() {
    let house = house().with("[limits]\nsessions = 2\n").open().await;
    let runner = house.runner_pid();
    let alice = house.session("alice").await;
    let _bob = house.session("bob").await;
    // Longer than it would be waited for.
    let end = Instant::now() + Duration::from_millis(100);
    while Instant::now() < end {
        assert_eq!(alice.call("echo", json!({})).await.status, 200);
    }
    assert_eq!(children_of(runner).len(), 2);
}

/// Who is told of its caller was made for that caller: none is made ahead, and each is told of its own.
#[tokio::test]
async fn where_each_is_told_of_its_caller_none_is_made_ahead() {
    let house = house().top("pass-identity = true\n").open().await;
    let runner = house.runner_pid();
    let mut sessions = Vec::new();
    for subject in ["alice", "bob", "carol"] {
        sessions.push((subject, house.session(subject).await));
    }
    // Longer than it would be waited for.
    let end = Instant::now() + Duration::from_millis(100);
    while Instant::now() < end {
        for (subject, session) in &sessions {
            let asked = json!({ "probe": "environment", "argument": "" });
            let said = session.call("probe", asked).await.said();
            let told = format!("\\\"THV_SUBJECT\\\": \\\"{subject}\\\"");
            assert!(said.contains(&told), "{said}");
        }
    }
    assert_eq!(children_of(runner).len(), 3);
}

/// What a server can tell of its sandbox.
async fn look(caller: &Caller) -> Vec<String> {
    let mut seen = Vec::new();
    for (probe, argument) in [
        ("status", ""),
        ("descriptors", ""),
        ("environment", ""),
        ("limits", ""),
        ("list", "/"),
        ("list", "/dev"),
        ("list", "/etc"),
        ("list", "/tmp"),
        ("read", "/etc/hosts"),
        ("read", "/proc/self/uid_map"),
        ("read", "/proc/self/attr/current"),
        ("read", "/proc/net/dev"),
        ("open", "/proc/1/environ"),
        ("call", "mount"),
        ("call", "unshare"),
        ("kill-all", ""),
        ("family", "inet"),
        ("write", "/usr/x"),
    ] {
        let asked = json!({ "probe": probe, "argument": argument });
        let said = caller.call("probe", asked).await.said();
        seen.push(format!("{probe} {argument}: {said}"));
    }
    let listed = json!({ "probe": "list", "argument": "/proc" });
    let processes = caller.call("probe", listed).await.said();
    let own = processes
        .split(|c: char| !c.is_ascii_digit())
        .filter(|part| !part.is_empty())
        .count();
    seen.push(format!("{own} processes"));
    seen
}

/// The runner's children, once there are as many: the kernel tells nobody else of them, so they
/// are looked for.
async fn until(runner: u32, count: usize) -> Vec<i32> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let there = children_of(runner);
        if there.len() == count {
            return there;
        }
        assert!(Instant::now() < end, "{there:?}, not {count}");
        tokio::task::yield_now().await;
    }
}

//! Servers that say too much, or nothing ever again, and starts that take too long.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    house::{children_of, house},
    large::ALONE,
    lease::{self, Lease},
};

const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;

/// probe-72: a server that has closed its output has ended, however alive its process is.
#[tokio::test]
async fn a_server_that_closes_its_streams_and_stays_is_killed() {
    let house = house().open().await;
    let alice = house.session("alice").await;
    let before = children_of(house.runner_pid());
    assert_eq!(before.len(), 1, "its init");
    let answer = alice.call("mute", json!({})).await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["data"]["reason"]),
        (200, &json!("server-ended"))
    );
    house.records.wait_for("child-died").await;
    assert!(!Path::new(&format!("/proc/{}", before[0])).exists());
    assert_eq!(alice.call("echo", json!({})).await.status, 404);
}

/// probe-69: one line without end, and lines that are none of MCP, end their server, for a reason that is on
/// record; half a line is waited for as any answer is.
#[tokio::test]
async fn a_server_that_pours_out_anything_is_ended() {
    let house = house()
        .with("[limits]\ncall-timeout = \"3s\"\n")
        .open()
        .await;
    let bob = house.session("bob").await;
    let before = memory();
    for (bytes, lines, reason, fault) in [
        (1_u64 << 30, false, "message-too-large", "child-line"),
        (1 << 30, true, "server-ended", "child-protocol"),
        (1 << 16, false, "timeout", ""),
    ] {
        let alice = house.session("alice").await;
        let died = house.records.count("child-died");
        let argument = json!({ "to": 1, "bytes": bytes, "lines": lines }).to_string();
        let pour = json!({ "probe": "pours", "argument": argument });
        let (answer, other) = tokio::join!(alice.call("probe", pour), bob.call("echo", json!({})));
        let text = answer.text();
        assert_eq!(answer.status, 200, "{text}");
        assert!(text.contains(&format!("\"reason\":\"{reason}\"")), "{text}");
        assert!(text.contains("-32603"), "{text}");
        assert_eq!(other.status, 200);
        if fault.is_empty() {
            continue;
        }
        house.records.wait_for_more("child-died", died).await;
        let all = house.records.all();
        let record = all
            .iter()
            .rfind(|record| record.contains("THV_EVENT=child-died "));
        let record = record.unwrap();
        assert!(record.contains(&format!("THV_REASON={fault} ")), "{record}");
    }
    let grown = memory().saturating_sub(before);
    // Other tests run in this process, too.
    assert!(grown < 90 << 10, "{grown} KiB more than before");
}

/// probe-69: who writes more in a second than `limits.output` says waits, and nobody else does.
#[tokio::test]
async fn a_server_that_writes_fast_is_read_at_its_pace() {
    let burst = json!({ "count": 8, "size": 40_000 });
    let free = house().open().await;
    let alice = free.session("alice").await;
    let since = Instant::now();
    assert_eq!(alice.call("burst", burst.clone()).await.status, 200);
    let control = since.elapsed();

    let paced = house().with("[limits]\noutput = \"64K\"\n").open().await;
    let (alice, bob) = (paced.session("alice").await, paced.session("bob").await);
    let since = Instant::now();
    let others = async {
        let mut slowest = Duration::ZERO;
        for _ in 0..50 {
            let asked = Instant::now();
            assert_eq!(bob.call("echo", json!({})).await.status, 200);
            slowest = slowest.max(asked.elapsed());
        }
        slowest
    };
    let (answer, slowest) = tokio::join!(alice.call("burst", burst), others);
    assert!(answer.text().contains("done"), "nothing is lost");
    // 320,000 bytes are five seconds' worth, of which the first begins at once.
    let took = since.elapsed();
    assert!(took >= Duration::from_secs(3), "{took:?}");
    assert!(
        control < took,
        "the control took {control:?}, and this {took:?}"
    );
    assert!(slowest < took, "{slowest:?} of {took:?}");
}

/// probe-70: of a flood on standard error so much is kept and the rest counted, and nobody's decision is lost in it.
#[tokio::test]
async fn a_flood_of_errors_drowns_nobody_elses_records() {
    const LINES: u64 = 64_000;
    let house = house().open().await;
    let (alice, bob) = (house.session("alice").await, house.session("bob").await);
    let argument = json!({ "to": 2, "bytes": LINES * 1000, "lines": true }).to_string();
    let pour = json!({ "probe": "pours", "argument": argument });
    let since = Instant::now();
    let calls = async {
        for _ in 0..50 {
            assert_eq!(bob.call("echo", json!({})).await.status, 200);
        }
    };
    let (answer, ()) = tokio::join!(alice.call("probe", pour), calls);
    assert_eq!(answer.status, 200);
    alice.send("DELETE", "").await;
    house.records.wait_for("child-exited").await;
    let seconds = since.elapsed().as_secs();
    let all = house.records.all();
    let of_bob = |record: &&String| {
        record.contains("THV_EVENT=decision ")
            && record.contains("THV_SUBJECT=bob ")
            && record.contains("THV_TOOL=echo ")
    };
    assert_eq!(all.iter().filter(of_bob).count(), 50);
    let errors: Vec<_> = all
        .iter()
        .filter(|record| record.contains("THV_EVENT=child-stderr "))
        .collect();
    let left_out: u64 = errors
        .iter()
        .filter_map(|record| {
            record
                .split_once("MESSAGE=[")?
                .1
                .split(' ')
                .next()?
                .parse::<u64>()
                .ok()
        })
        .sum();
    let kept = errors
        .iter()
        .filter(|record| record.contains("xxxx"))
        .count() as u64;
    assert_eq!(kept + left_out, LINES, "{kept} kept");
    assert!(kept <= 100 * (seconds + 2), "{kept} in {seconds} s");
}

/// probe-73: what answers nobody's request is dropped, and a server that does little else is
/// ended; a flood of notices is passed on or dropped, none is kept, and the answer comes through it.
#[tokio::test]
async fn answers_to_nobody_and_floods_of_notices_are_dropped() {
    const FLOOD: usize = 100_000;
    let house = house().open().await;
    let alice = house.session("alice").await;
    let bob = house.session("bob").await;
    let flood = json!({ "count": FLOOD });
    let few = alice.call("strays", json!({ "count": 50 })).await;
    assert_eq!(few.said(), "mine");
    let noted = alice.call("notes", flood.clone()).await;
    assert_eq!(noted.status, 200);
    assert_eq!(noted.said(), "noted");
    let (many, other) = tokio::join!(alice.call("strays", flood), bob.call("echo", json!({})));
    assert_eq!(
        (many.status, &many.json()["error"]["data"]["reason"]),
        (200, &json!("server-ended"))
    );
    assert_eq!(other.status, 200);
    house.records.wait_for("child-died").await;
}

/// probe-74: a list that is longer than a line may be ends its server, and says so.
#[tokio::test]
async fn a_list_without_measure_is_an_error() {
    let _alone = ALONE.lock().await;
    // 100 MB, in one line.
    let house = house()
        .argument("--tools")
        .argument("100000")
        .argument("1000")
        .open()
        .await;
    let alice = house.session("alice").await;
    let before = memory();
    let answer = alice.post(LIST).await;
    let text = answer.text();
    assert_eq!(answer.status, 200, "{text}");
    assert!(text.contains("\"reason\":\"message-too-large\""), "{text}");
    house.records.wait_for("child-died").await;
    let grown = memory().saturating_sub(before);
    // Other tests run in this process, too.
    assert!(grown < 90 << 10, "{grown} KiB more than before");
}

/// probe-74: of very many tools in a line that is short enough, no more are decided about than a list may have.
#[tokio::test]
async fn a_list_of_very_many_tools_is_cut() {
    let house = house()
        .argument("--tools")
        .argument("30000")
        .argument("1")
        .open()
        .await;
    let alice = house.session("alice").await;
    let answer = alice.post(LIST).await.json();
    let tools = answer["result"]["tools"].as_array().unwrap();
    assert_eq!(tools.len(), 5_000);
}

/// probe-75: a start that hangs ends at its deadline, leaves its place to the next, and nothing behind.
#[tokio::test]
async fn a_start_that_hangs_ends_at_its_deadline() {
    let server = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/servers/scripted.py");
    let (place, program) = lease::program(&["/usr/bin/python3", "-u", server]);
    let house = house()
        .command(&[program.to_str().unwrap()])
        .readable(place.path())
        .with("[limits]\nstart-timeout = \"1s\"\nsessions = 1\n")
        .open()
        .await;
    let lease = Lease::on(&program);
    let mut alice = house.caller("alice");
    let (answer, lease) = tokio::join!(alice.initialize(), lease.asked());
    assert_eq!(
        (answer.status, &answer.json()["error"]["data"]["reason"]),
        (503, &json!("start-failed"))
    );
    assert!(
        house.records.have(&["limits.start-timeout"]),
        "{:?}",
        house.records.all()
    );
    assert_eq!(children_of(house.runner_pid()), Vec::<i32>::new());
    drop(lease);
    // The one place is free again.
    house.serves("alice").await;
}

/// KiB of memory of this process, in which the gateways of the tests run.
fn memory() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

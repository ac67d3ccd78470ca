//! Many connections: shares, what makes room, and what one costs.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    faults::pass,
    frames::{DATA, END_HEADERS, END_STREAM, Frames, HEADERS, block, frame},
    house::{House, Plan, call, house, initialize},
    run::Running,
    wire::{self, Answer, Events, PATIENCE},
};

/// A house in which the tests are a proxy, so that they can come from anywhere.
fn proxied(limits: &str) -> Plan {
    house().with(&format!(
        "[http]\ntrusted-proxies = [\"127.0.0.1\"]\nclient-address = \"proxy-protocol\"\n[limits]\n{limits}\n"
    ))
}

/// A connection from that address.
async fn from(house: &House, address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    let line = format!("PROXY TCP4 {address} 127.0.0.1 4711 443\r\n");
    stream.write_all(line.as_bytes()).await.unwrap();
    stream
}

/// Asks on a connection without a token: 401 is somebody who is served.
async fn ask(house: &House, stream: TcpStream) -> Answer {
    let mut stranger = house.caller("alice");
    stranger.token = None;
    wire::ask(stream, &stranger.bytes("POST", "{}")).await
}

/// One request of a connection that stays open.
async fn keep(house: &House, stream: &mut TcpStream) {
    let request = format!("GET /mcp HTTP/1.1\r\nHost: {}\r\n\r\n", house.address);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = timeout(PATIENCE, stream.read(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 401"));
}

/// conn-10: an address has its share; beyond it 429 says when to come back, and others are served.
#[tokio::test]
async fn one_address_has_a_share_of_the_connections() {
    let house = proxied("address-connections = 3").open().await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = from(&house, "192.0.2.7").await;
        keep(&house, &mut stream).await;
        held.push(stream);
    }
    let answer = ask(&house, from(&house, "192.0.2.7").await).await;
    assert_eq!(answer.status, 429, "{}", answer.text());
    assert_eq!(answer.header("retry-after"), Some("5"));
    assert_eq!(answer.header("connection"), Some("close"));
    let records = house.records.all();
    assert!(
        records
            .iter()
            .any(|record| record.contains("THV_REASON=connection-limit"))
    );
    assert_eq!(
        ask(&house, from(&house, "192.0.2.8").await).await.status,
        401
    );
    drop(held);
    timeout(PATIENCE, async {
        while ask(&house, from(&house, "192.0.2.7").await).await.status != 401 {}
    })
    .await
    .expect("the share is given back");
}

/// conn-9: where all places are taken, whoever holds most makes room, and what has a request stays.
#[tokio::test]
async fn idle_connections_make_room() {
    let house = proxied("connections = 30\naddress-connections = 30")
        .open()
        .await;
    let mut alice = house.caller("alice");
    let opened = alice.bytes("POST", &initialize("2025-11-25"));
    let opened = wire::ask(from(&house, "192.0.2.9").await, &opened).await;
    alice.session = opened.header("mcp-session-id").map(str::to_owned);
    let asks = |id, tool, arguments| alice.bytes("POST", &call(id, tool, arguments));
    let mut busy = from(&house, "192.0.2.9").await;
    busy.write_all(&asks(7, "wait", json!({ "for": "x" })))
        .await
        .unwrap();
    let mut idle = Vec::new();
    for _ in 0..120 {
        idle.push(from(&house, "192.0.2.7").await);
    }
    for other in 10..20 {
        let stream = from(&house, &format!("192.0.2.{other}")).await;
        assert_eq!(ask(&house, stream).await.status, 401);
    }
    let release = asks(8, "release", json!({ "for": "x" }));
    let released = wire::ask(from(&house, "192.0.2.8").await, &release).await;
    assert_eq!(released.status, 200, "{}", released.text());
    let mut answer = String::new();
    timeout(PATIENCE, busy.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// fault-37, conn-9: 10,000 that are kept open and do nothing cost little, and do not slow those that ask; where there is
/// no place left they make room, and no more of them than must.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_idle_connections_costs_little() {
    const ACTIVE: usize = 100;
    // The gateway, which is in this process, takes no more than half of its descriptors.
    let most = (descriptors() / 2).min(10_000);
    let house = house()
        .with(&format!("[limits]\nconnections = {most}\n"))
        .open()
        .await;
    let before = resident("self");
    let script = format!("{}/tests/it/servers/idle.py", env!("CARGO_MANIFEST_DIR"));
    let mut crowd = Command::new("/usr/bin/python3")
        .arg(script)
        .args([
            house.address.ip().to_string(),
            house.address.port().to_string(),
        ])
        .arg(most.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Its input ends with this test, and then so does it.
    let mut asks = crowd.stdin.take().unwrap();
    let mut told = BufReader::new(crowd.stdout.take().unwrap()).lines();
    let mut next = || tokio::task::block_in_place(|| told.next().unwrap().unwrap());
    assert_eq!(next(), "open");
    // Other tests are in this process as well.
    let each = resident("self").saturating_sub(before) / most;
    let mut stranger = house.caller("alice");
    stranger.token = None;
    let request = stranger.bytes("POST", "{}");
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..ACTIVE {
        let (address, request) = (house.address, request.clone());
        asking.spawn(async move {
            let started = Instant::now();
            assert_eq!(wire::exchange(address, &request).await.status, 401);
            started.elapsed()
        });
    }
    let mut times = asking.join_all().await;
    times.sort();
    let p99 = times[ACTIVE * 99 / 100];
    println!("{most} idle connections: {each} bytes each; {ACTIVE} at once: p99 {p99:?}");
    assert!(each <= 48 << 10, "{each} bytes");
    // Who makes room is looked for among all of them.
    assert!(p99 < PATIENCE, "{p99:?}");
    asks.write_all(b"\n").unwrap();
    let closed: usize = next().parse().unwrap();
    assert!((1..=most / 2).contains(&closed), "{closed}");
    drop(asks);
    tokio::task::block_in_place(|| crowd.wait()).unwrap();
}

/// What a call takes while it waits is not what its head was: that is long, and over when it has been read.
#[tokio::test]
async fn a_call_that_waits_holds_no_head() {
    const SESSIONS: usize = 4;
    const CALLS: usize = 60;
    let filler = "x".repeat(15_000);
    // HTTP/1 reads on into the memory that the head was in; one more head would not fit.
    for (version, most) in [(1, 45_000), (2, 20_000)] {
        let running = Running::start(&[], None).await;
        let mut callers = Vec::new();
        for _ in 0..SESSIONS {
            callers.push(running.session().await);
        }
        let host = running.address.to_string();
        let before = resident(running.pid());
        let (mut ones, mut twos) = (Vec::new(), Vec::new());
        for caller in &callers {
            let bodies = (0..CALLS).map(|number| call(number, "wait", json!({ "for": number })));
            if version == 1 {
                for body in bodies {
                    let mut stream = TcpStream::connect(running.address).await.unwrap();
                    let bytes = caller.bytes_with("POST", &[("x-filler", &filler)], &body);
                    stream.write_all(&bytes).await.unwrap();
                    ones.push(stream);
                }
                continue;
            }
            let bearer = format!("Bearer {}", caller.token.as_deref().unwrap());
            let head = block(&[
                (":method", "POST"),
                (":scheme", "http"),
                (":path", "/mcp"),
                (":authority", &host),
                ("content-type", "application/json"),
                ("accept", "application/json, text/event-stream"),
                ("authorization", &bearer),
                ("mcp-session-id", caller.session.as_deref().unwrap()),
                ("x-filler", &filler),
            ]);
            let mut frames = Frames::open(running.address).await;
            for (number, (stream, body)) in (1..).step_by(2).zip(bodies).enumerate() {
                if number == CALLS / 2 {
                    // More heads at once are more than one connection may have.
                    let before = (twos.len() * CALLS) + number;
                    running.says_often("holding ", before).await;
                }
                let head = frame(HEADERS, END_HEADERS, stream, &head);
                let body = frame(DATA, END_STREAM, stream, body.as_bytes());
                frames.send(&[head, body].concat()).await;
            }
            twos.push(frames);
        }
        running.says_often("holding ", SESSIONS * CALLS).await;
        let grown = resident(running.pid()).saturating_sub(before);
        let each = grown / (SESSIONS * CALLS);
        println!("HTTP/{version}: {each} bytes for each call that waits");
        assert!(each < most, "{each} bytes, HTTP/{version}");
    }
}

/// How many descriptors this process may have, once it has as many as it may.
fn descriptors() -> usize {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    usize::try_from(hard).unwrap()
}

/// Bytes of memory of that process.
fn resident(pid: impl std::fmt::Display) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kilobytes: usize = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes << 10
}

/// Many clients end without a word. Where their user has as many sessions as he may, the one that was left first makes
/// room; one whose client listens, or never has, stays.
#[tokio::test]
async fn a_session_that_was_left_makes_room_for_its_users_next() {
    let limits = "[limits]\nsessions-per-user = 4\nsession-idle = \"10h\"\n";
    let house = house().with(limits).open().await;
    let get = |caller: &crate::house::Caller| caller.bytes("GET", "");
    let quiet = house.session("alice").await;
    let listens = house.session("alice").await;
    let _stream = Events::open(house.address, &get(&listens)).await;
    let left = house.session("alice").await;
    drop(Events::open(house.address, &get(&left)).await);
    pass(Duration::from_secs(3)).await;
    // There is room for one more: nobody has to go.
    pass(Duration::from_secs(120)).await;
    assert_eq!(left.call("echo", json!({})).await.status, 200);
    let busy = house.session("alice").await;
    let refused = house.caller("alice").post(&initialize("2025-11-25")).await;
    assert_eq!(refused.status, 429);
    pass(Duration::from_secs(62)).await;
    house.records.wait_for("child-exited").await;
    assert_eq!(left.call("echo", json!({})).await.status, 404);
    let next = house.session("alice").await;
    for caller in [quiet, listens, busy, next] {
        assert_eq!(caller.call("echo", json!({})).await.said(), "{}");
    }
    assert_eq!(house.records.count("child-exited"), 1);
}

/// One at a time, also where its server takes long to end: the place is its own until then.
#[tokio::test]
async fn sessions_that_were_left_end_one_by_one() {
    let script = "\
import json, sys, time
for line in sys.stdin:
    message = json.loads(line)
    if 'id' not in message: continue
    result = {'content': []}
    if message['method'] == 'initialize':
        result = {'protocolVersion': '2025-11-25', 'capabilities': {'tools': {}}, 'serverInfo': {'name': 'b', 'version': '1'}}
    print(json.dumps({'jsonrpc': '2.0', 'id': message['id'], 'result': result}), flush=True)
time.sleep(600)
";
    let house = house()
        .command(&["/usr/bin/python3", "-u", "-c", script])
        .with("[limits]\nsessions-per-user = 3\nsession-idle = \"10h\"\n")
        .open()
        .await;
    let mut left = Vec::new();
    for _ in 0..3 {
        let caller = house.session("alice").await;
        drop(Events::open(house.address, &caller.bytes("GET", "")).await);
        left.push(caller);
    }
    // Whatever is due is done before somebody else's call comes back.
    let bob = house.session("bob").await;
    for seconds in [3, 62, 1, 1, 1] {
        pass(Duration::from_secs(seconds)).await;
        assert_eq!(bob.call("any", json!({})).await.status, 200);
    }
    let mut statuses = Vec::new();
    for caller in &left {
        statuses.push(caller.call("any", json!({})).await.status);
    }
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 200, 404]);
}

/// What goes on in a session is what its client may come back for: one with a task that has not ended, or whose server
/// waits for an answer, is given up when there is no other, though it was left first.
#[tokio::test]
async fn a_left_session_in_which_something_goes_on_makes_room_last() {
    let script = "\
import json, sys
def say(message): print(json.dumps({'jsonrpc': '2.0'} | message), flush=True)
for line in sys.stdin:
    message = json.loads(line)
    if message.get('method') not in ('initialize', 'tools/call', 'tasks/get'): continue
    result = {'content': []}
    if message['method'] == 'initialize':
        result = {'protocolVersion': '2025-11-25', 'capabilities': {'tools': {}}, 'serverInfo': {'name': 'b', 'version': '1'}}
    stands = {'taskId': 't', 'status': 'working', 'ttl': None}
    if message['method'] == 'tasks/get': result = stands | {'status': 'completed'}
    if message.get('params', {}).get('name') in ('task', 'done'): result = {'task': stands}
    say({'id': message['id'], 'result': result})
    if message.get('params', {}).get('name') == 'asks': say({'id': 'q', 'method': 'roots/list'})
";
    let house = house()
        .command(&["/usr/bin/python3", "-u", "-c", script])
        .with("[limits]\nsessions-per-user = 4\nsession-idle = \"10h\"\n")
        .open()
        .await;
    let mut left = Vec::new();
    for tool in ["task", "asks", "done", "any"] {
        let caller = house.session("alice").await;
        let mut stream = Events::open(house.address, &caller.bytes("GET", "")).await;
        assert_eq!(caller.call(tool, json!({})).await.status, 200);
        if tool == "asks" {
            stream.next_request().await;
        }
        if tool == "done" {
            let get = json!({ "jsonrpc": "2.0", "id": 9, "method": "tasks/get", "params": { "taskId": "t" } });
            assert_eq!(caller.post(&get.to_string()).await.status, 200);
        }
        drop(stream);
        left.push(caller);
        pass(Duration::from_secs(10)).await;
    }
    // The first was left for long enough, and none that nothing keeps.
    pass(Duration::from_secs(35)).await;
    house.session("bob").await;
    // The first that nothing keeps, the next such, and then the first of the others.
    for (ended, gone, seconds) in [(1, 2, 20), (2, 3, 62), (3, 0, 62)] {
        pass(Duration::from_secs(seconds)).await;
        house.records.wait_for_all(&["child-exited"], ended).await;
        assert_eq!(left[gone].call("any", json!({})).await.status, 404);
        house.session("alice").await;
    }
    assert_eq!(left[1].call("any", json!({})).await.status, 200);
}

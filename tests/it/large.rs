//! Messages as large as they may be.

use aws_lc_rs::digest::{SHA256, digest};
use nix::sys::socket::{setsockopt, sockopt::TcpMaxSeg};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::{
    house::{CROWD, Caller, House, field, house},
    wire::{self, Answer, PATIENCE},
};

/// How large the arguments of a call are.
const LARGE: usize = 32 << 20;
/// What is held is counted for the process: what holds so much comes one after the other.
pub static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Something no serializer would write, again and again.
fn odd(size: usize) -> String {
    let part = r#"{ "n":[1e400,-0,1.0,18446744073709551616] ,	"\u0041":"\u00e9é\ud83d\ude00😀\/ data: \r\n","a":{"z":1,"a" :2}},"#;
    let text = "xyzzy".repeat(20_000);
    let mut all = "{\"all\" : [".to_owned();
    while all.len() < size / 8 {
        all.push_str(part);
    }
    while all.len() < size {
        all.push_str(&format!("\"{text}\","));
    }
    all + "0]}"
}

/// Arguments that are one text of that size.
fn text(size: usize) -> String {
    format!("{{\"v\":\"{}\"}}", "x".repeat(size))
}

async fn large(limits: &str) -> House {
    large_in("session", limits).await
}

async fn large_in(scope: &str, limits: &str) -> House {
    let servers = format!("{}/tests/it/servers", env!("CARGO_MANIFEST_DIR"));
    let script = format!("{servers}/large.py");
    house()
        .command(&["/usr/bin/python3", "-u", &script])
        .top(&format!("scope = \"{scope}\"\n"))
        .with(&format!("[limits]\nmemory = \"1G\"\n{limits}"))
        .open()
        .await
}

fn call(id: &str, arguments: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"t","arguments":{arguments}}}}}"#
    )
}

/// The answer as its bytes: nothing here reads it as JSON.
fn expected(id: &str, arguments: &str) -> String {
    let line = r#"{"jsonrpc":"2.0","id":N,"method":"tools/call","params":{"name":"t","arguments":"#;
    // Its last bytes, and the end of the line.
    let tail = format!("{}}}}}\n", &arguments[arguments.len() - 1..]);
    let seen = digest(&SHA256, format!("{line}{tail}").as_bytes());
    let seen: String = seen
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!(
        r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[{{"type":"text","text":"{seen}"}}], "structuredContent" :{arguments}}}}}"#
    )
}

/// The bytes that this process holds at most since it began.
fn most_held() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
    kilobytes.parse::<usize>().unwrap() << 10
}

#[track_caller]
fn same(answer: &[u8], expected: &str) {
    // Both are too long to be shown.
    let at = answer
        .iter()
        .zip(expected.as_bytes())
        .position(|(a, b)| a != b);
    assert!(
        answer == expected.as_bytes(),
        "{} bytes for {}, another at {at:?}",
        answer.len(),
        expected.len()
    );
}

/// json-5, json-22: 32 MiB of whatever JSON allows pass both ways byte for byte where the limits
/// say so, one after the other, and nothing of one is kept when it has passed.
#[tokio::test]
async fn the_largest_messages_pass_both_ways_and_leave_nothing() {
    let _alone = ALONE.lock().await;
    let house = large("body = \"40M\"\nmessage = \"40M\"\n").await;
    let alice = house.session("alice").await;
    let arguments = odd(LARGE);
    let mut held = Vec::new();
    for round in 0..5 {
        let id = format!("\"{round}\\u0041\"");
        let answer = alice.post(&call(&id, &arguments)).await;
        assert_eq!(answer.status, 200);
        same(answer.message(), &expected(&id, &arguments));
        held.push(most_held());
    }
    // Other tests run here, too; what were kept of every message would be more.
    let grown = held[4] - held[0];
    assert!(grown < 3 * LARGE, "{held:?}");
}

/// A large message is not copied for the number that the server knows it by, and is one line all the same: also where
/// its client wrote it in many, and where the child is shared and it is numbered twice.
#[tokio::test]
async fn a_large_message_in_many_lines_reaches_the_child_as_one() {
    let _alone = ALONE.lock().await;
    for scope in ["session", "server"] {
        let servers = format!("{}/tests/it/servers", env!("CARGO_MANIFEST_DIR"));
        let script = format!("{servers}/large.py");
        let house = house()
            .command(&["/usr/bin/python3", "-u", &script])
            .top(&format!("scope = \"{scope}\"\n"))
            .with("[limits]\nmemory = \"1G\"\nmessage = \"8M\"\n")
            .open()
            .await;
        let alice = house.session("alice").await;
        for (id, space) in [("1", ""), ("2", "\n"), ("\"3\"", "\r\n\t")] {
            let arguments = format!("{{{space}\"v\":\"{}\"{space}}}", "x".repeat(2 << 20));
            let answer = alice.post(&call(id, &arguments)).await;
            assert_eq!(answer.status, 200);
            let seen = arguments.replace(['\n', '\r'], " ");
            same(answer.message(), &expected(id, &seen));
        }
    }
}

/// While one user's largest message is read, others are served: by the order of the records, calls that were made after
/// its last byte had come are decided before it is. Where it kept everybody waiting there would be one at most, which
/// had come first.
#[tokio::test]
async fn who_sends_a_large_message_keeps_nobody_else_waiting() {
    let _alone = ALONE.lock().await;
    let house = large("body = \"40M\"\nmessage = \"40M\"\n").await;
    let (alice, bob) = (house.session("alice").await, house.session("bob").await);
    let arguments = odd(LARGE);
    let request = alice.bytes("POST", &call("1", &arguments));
    let (last, most) = request.split_last().unwrap();
    let mut overtook = 0;
    for round in 0..10 {
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        stream.write_all(most).await.unwrap();
        bob.call(&format!("before-{round}"), json!({})).await;
        stream.write_all(&[*last]).await.unwrap();
        let after = format!("after-{round}");
        let read = async {
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            wire::parse(&answer)
        };
        tokio::pin!(read);
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut read => break answer,
                small = bob.call(&after, json!({})) => assert_eq!(small.status, 200),
            }
        };
        same(answer.message(), &expected("1", &arguments));
        let records = house.records.all();
        let is = |record: &&String, subject: &str, tool: &str| {
            record.contains("THV_EVENT=decision ")
                && record.contains(&format!("THV_SUBJECT={subject} "))
                && record.contains(&format!("THV_TOOL={tool} "))
        };
        let before_hers: Vec<&String> = records
            .iter()
            .rev()
            .skip_while(|record| !is(record, "alice", "t"))
            .collect();
        let overtaking = before_hers
            .iter()
            .filter(|record| is(record, "bob", &after));
        overtook = overtaking.count();
        if overtook >= 2 {
            break;
        }
    }
    assert!(overtook >= 2, "{overtook}");
}

/// While one user's very long list is cut down to what they may call, others are served: theirs that came after the
/// server's answer had are done before the list is. Where it kept everybody waiting there would be one at most.
#[tokio::test]
async fn who_asks_for_a_very_long_list_keeps_nobody_else_waiting() {
    let _alone = ALONE.lock().await;
    let house = house()
        .argument("--tools")
        .argument("20000")
        .argument("250")
        .with("[limits]\nmessage = \"40M\"\n")
        .open()
        .await;
    let (alice, bob) = (house.session("alice").await, house.session("bob").await);
    let list = alice.bytes("POST", r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#);
    let mut meanwhile = 0;
    for _ in 0..10 {
        let outcomes = outcomes_of_lists(&house);
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        stream.write_all(&list).await.unwrap();
        let mut answer = vec![0];
        meanwhile = 0;
        {
            // Before its first byte it is not done.
            let begins = stream.read_exact(&mut answer);
            tokio::pin!(begins);
            loop {
                let answered = outcomes_of_lists(&house) > outcomes;
                tokio::select! {
                    biased;
                    begun = &mut begins => {
                        begun.unwrap();
                        break;
                    }
                    small = bob.call("echo", json!({})) => assert_eq!(small.status, 200),
                }
                meanwhile += usize::from(answered);
            }
        }
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = wire::parse(&answer);
        let answer = answer.text();
        assert_eq!(answer.matches(r#""inputSchema""#).count(), 5_000);
        if meanwhile >= 2 {
            break;
        }
    }
    assert!(meanwhile >= 2, "{meanwhile}");
}

/// How many lists the server has given: what became of them is on record before they are cut down.
fn outcomes_of_lists(house: &House) -> usize {
    let records = house.records.all();
    let lists: Vec<&str> = records
        .iter()
        .filter(|record| record.contains("THV_METHOD=tools/list "))
        .filter_map(|record| field(record, "THV_REQUEST_ID"))
        .collect();
    let outcomes = records.iter().filter(|record| {
        let request = field(record, "THV_REQUEST_ID");
        record.contains("THV_EVENT=outcome ") && request.is_some_and(|it| lists.contains(&it))
    });
    outcomes.count()
}

/// conn-3: what waits for the clients of one session is bounded: of many who ask for large answers and read none, most are
/// told that theirs is lost, which is on record; another user is served all the while, and who reads makes room.
#[tokio::test]
async fn large_answers_that_nobody_reads_are_not_kept_without_measure() {
    const ASKED: usize = 24;
    let _alone = ALONE.lock().await;
    let house = house()
        .command(&["/usr/bin/python3", "-u", CROWD])
        .with("[limits]\nmemory = \"1G\"\n")
        .open()
        .await;
    let (alice, bob) = (house.session("alice").await, house.session("bob").await);
    let large = json!({ "bytes": 3 << 20 });
    let outcomes = house.records.count("outcome");
    let mut waiting = Vec::new();
    for number in 0..ASKED {
        // As over a network: the kernel takes little for who reads nothing.
        let socket = TcpSocket::new_v4().unwrap();
        setsockopt(&socket, TcpMaxSeg, &1400).unwrap();
        let mut stream = socket.connect(house.address).await.unwrap();
        let body = crate::house::call(100 + number, "large", large.clone());
        stream.write_all(&alice.bytes("POST", &body)).await.unwrap();
        waiting.push(stream);
    }
    let mut bobs = 0;
    while house.records.count("outcome") < outcomes + ASKED + bobs {
        let answer = bob.call("large", large.clone()).await;
        assert_eq!(answer.status, 200, "{}", answer.status);
        bobs += 1;
    }
    let records = house.records.all();
    let dropped = records
        .iter()
        .filter(|record| record.contains("THV_REASON=answer-dropped "));
    let dropped = dropped.count();
    assert!(dropped >= ASKED / 2, "{dropped}");
    let (mut read, mut refused) = (0, 0);
    for mut stream in waiting {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = wire::parse(&answer);
        match answer.status {
            // On a slow host it was long under way, and its client is told so in a stream.
            200 if answer.text().contains(r#""reason":"answer-dropped""#) => refused += 1,
            200 => read += 1,
            503 => {
                let error = &answer.json()["error"];
                assert_eq!(error["data"]["reason"], "answer-dropped");
                refused += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!((read, refused), (ASKED - dropped, dropped));
    assert!(read >= 2, "{read}");
    let answer = alice.call("large", large).await;
    assert_eq!((answer.status, answer.said().len()), (200, 3 << 20));
}

/// conn-3: what waits for children that do not read is counted once, as what waits: it does not use up what its user may
/// send, too.
#[tokio::test]
async fn what_a_deaf_child_does_not_read_keeps_no_body_from_being_read() {
    let _alone = ALONE.lock().await;
    let deaf = "import json, sys, time; \
        asked = json.loads(sys.stdin.readline()); \
        said = {'protocolVersion': '2025-11-25', 'capabilities': {}, 'serverInfo': {'name': 'x', 'version': '1'}}; \
        print(json.dumps({'jsonrpc': '2.0', 'id': asked['id'], 'result': said}), flush=True); \
        time.sleep(1000)";
    let house = house()
        .command(&["/usr/bin/python3", "-c", deaf])
        .with("[limits]\nmemory = \"1G\"\nbody = \"64M\"\n")
        .open()
        .await;
    // Two of these are more than all bodies of one user at once may be.
    let body = call("2", &text(50 << 20));
    let mut waiting = Vec::new();
    for number in 1..=2 {
        let alice = house.session("alice").await;
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        stream.write_all(&alice.bytes("POST", &body)).await.unwrap();
        waiting.push(stream);
        let allowed = ["THV_METHOD=tools/call ", "THV_DECISION=allow "];
        house.records.wait_for_all(&allowed, number).await;
    }
}

/// json-5, conn-5, sse-2: what is larger is told so, in both directions, with the limit and its name, and the next is
/// served; also where the child goes on.
#[tokio::test]
async fn what_is_larger_than_its_limit_is_refused_in_both_directions() {
    for scope in ["session", "user", "server"] {
        let limits = "body = \"256K\"\nmessage = \"128K\"\n";
        let house = large_in(scope, limits).await;
        refuses_what_is_larger(&house).await;
        if scope == "server" {
            assert_eq!(house.records.count("child-died"), 0);
        } else {
            house.records.wait_for("child-died").await;
        }
    }
}

async fn refuses_what_is_larger(house: &House) {
    let alice = house.session("alice").await;
    let fits = text(100 << 10);
    let answer = alice.post(&call("1", &fits)).await;
    same(answer.message(), &expected("1", &fits));
    let body = call("2", &text(256 << 10));
    assert_eq!(alice.post(&body).await.status, 413);
    // What its server would say to this is too long for a line of its.
    let answer = alice.post(&call("3", &text(130 << 10))).await;
    let error = &answer.json()["error"];
    assert_eq!(error["data"]["reason"], "message-too-large", "{error}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("131072 bytes") && message.contains("`limits.message`"));
    let outcome = ["THV_EVENT=outcome ", "THV_REASON=message-too-large "];
    house.records.wait_for_all(&outcome, 1).await;
    let bob = house.session("bob").await;
    assert_eq!(bob.post(&call("4", "{}")).await.status, 200);
}

/// A body that comes in many pieces is the same body.
#[tokio::test]
async fn a_large_body_in_small_chunks_passes_byte_for_byte() {
    let house = large("body = \"8M\"\nmessage = \"8M\"\n").await;
    let alice = house.session("alice").await;
    let arguments = odd(2 << 20);
    let answer = chunked(&alice, &call("7", &arguments)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    same(answer.message(), &expected("7", &arguments));
}

async fn chunked(caller: &Caller, body: &str) -> Answer {
    let whole = caller.bytes("POST", "");
    let head = String::from_utf8(whole).unwrap();
    let head = head.replace("Content-Length: 0\r\n", "Transfer-Encoding: chunked\r\n");
    let stream = TcpStream::connect(caller.address).await.unwrap();
    let (mut reading, mut writing) = stream.into_split();
    let body = body.as_bytes().to_vec();
    let sent = tokio::spawn(async move {
        let mut text = head.into_bytes();
        for chunk in body.chunks(1021) {
            text.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            text.extend_from_slice(chunk);
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"0\r\n\r\n");
        writing.write_all(&text).await.unwrap();
        writing
    });
    let mut answer = Vec::new();
    let read = reading.read_to_end(&mut answer);
    tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
    drop(sent.await.unwrap());
    wire::parse(&answer)
}

//! What breaks in the middle of everything: a panic, a clock, a certificate, a client that
//! is cut off, a processor and a memory that are too small.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::{Value, json};
use thv::time::Clock;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    frames::{DATA, END_HEADERS, END_STREAM, Frames, HEADERS, PING, block, frame},
    house::{
        CROWD, Caller, House, call, field, house, in_a_process_of_its_own, initialize,
        is_in_a_process_of_its_own,
    },
    lease::{self, Lease},
    modern,
    run::Running,
    wire::{self, Events, PATIENCE},
};

/// fault-10: a panic in the work on one request is that request's 500 and on record; its
/// neighbours' calls, and its caller's next, know nothing of it.
#[tokio::test]
async fn a_panic_ends_one_request_and_no_other() {
    let fuse = Arc::new(AtomicBool::new(false));
    let (burns, system) = (fuse.clone(), Clock::system());
    // What surrounds a gateway is an argument: this clock is not as good as it should be.
    let clock = Clock::new(move || {
        assert!(!burns.swap(false, Ordering::SeqCst), "on purpose");
        system.now()
    });
    let house = house().clock(clock).open().await;
    let (alice, bob) = (house.session("alice").await, house.session("bob").await);
    let waiting = bob.begins("wait", json!({ "for": "bob" }));
    house.records.wait_until_held("bob").await;
    fuse.store(true, Ordering::SeqCst);
    let answer = alice.call("echo", json!({})).await;
    assert_eq!(answer.status, 500, "{}", answer.text());
    assert_eq!(answer.json()["error"]["code"], -32603);
    assert_eq!(answer.json()["error"]["data"]["reason"], "internal");
    assert!(
        !answer.text().contains("purpose"),
        "strangers are told no details"
    );
    let records = house.records.all();
    let refused = records
        .iter()
        .filter(|record| record.contains("THV_REASON=internal"));
    assert_eq!(refused.clone().count(), 1, "{records:#?}");
    assert!(refused.clone().all(|record| {
        record.contains("THV_DECISION=deny") && record.contains("THV_STATUS=500")
    }));
    assert_eq!(alice.call("echo", json!({})).await.status, 200);
    bob.post(&call(2, "release", json!({ "for": "bob" }))).await;
    assert_eq!(waiting.await.unwrap().said(), "released");
}

/// fault-10: wherever a panic ends the work on a request, before it was permitted or after its session has taken it,
/// what was permitted has one outcome.
#[tokio::test]
async fn a_panic_leaves_one_outcome_wherever_it_comes() {
    let fuse = Arc::new(AtomicUsize::new(0));
    let (burns, system) = (fuse.clone(), Clock::system());
    let clock = Clock::new(move || {
        let burnt = |left: usize| left.checked_sub(1);
        let left = burns.fetch_update(Ordering::SeqCst, Ordering::SeqCst, burnt);
        assert_ne!(left, Ok(1), "on purpose");
        system.now()
    });
    let house = house().clock(clock).open().await;
    let alice = house.caller("alice");
    modern::tool(&alice, "echo", json!({})).await;
    let request = modern::listens(&alice, 1, json!({}));
    let mut permitted = 0;
    for looks in 1.. {
        let before = house.records.all().len();
        fuse.store(looks, Ordering::SeqCst);
        let mut answer = Events::open(house.address, &request).await;
        let head = answer.line().await;
        if fuse.swap(0, Ordering::SeqCst) > 0 {
            break;
        }
        assert!(head.starts_with("HTTP/1.1 500 "), "{looks}: {head}");
        let records = house.records.all().split_off(before);
        let of = |kind: &str| {
            let kind = format!("THV_EVENT={kind} ");
            records
                .iter()
                .filter(|record| record.contains(&kind))
                .count()
        };
        let allowed = records
            .iter()
            .any(|record| record.contains("THV_DECISION=allow"));
        permitted += usize::from(allowed);
        assert_eq!(
            (of("decision"), of("outcome")),
            (1, usize::from(allowed)),
            "{looks}: {records:#?}"
        );
    }
    assert!(
        permitted > 0,
        "a clock is looked at after the decision, too"
    );
}

/// A request that needs no token.
fn public(running: &Running) -> String {
    let path = "/.well-known/oauth-protected-resource";
    format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", running.address)
}

/// Tells it to stop, and waits until it has heard that: then whoever asks nothing is let go.
async fn told_to_stop(running: &Running) {
    // One that is answered is accepted, and no late one.
    let mut idle = TcpStream::connect(running.address).await.unwrap();
    idle.write_all(public(running).as_bytes()).await.unwrap();
    idle.read_u8().await.unwrap();
    running.signal(Signal::SIGTERM);
    let read = timeout(PATIENCE, idle.read_to_end(&mut Vec::new())).await;
    read.expect("an idle connection is drained").unwrap();
}

/// fault-9: told to stop twice, it stops: a running call is told that nobody knows its outcome,
/// without its 20 seconds, and what it left behind is nothing.
#[tokio::test]
async fn told_twice_it_stops_at_once_and_says_so() {
    let running = Running::start(&[], None).await;
    let caller = running.session().await;
    let waiting = caller.begins("wait", json!({ "for": "ever" }));
    running.says("holding ever").await;
    let since = Instant::now();
    told_to_stop(&running).await;
    running.signal(Signal::SIGTERM);
    let answer = waiting.await.unwrap();
    let message = answer.json();
    assert_eq!(message["error"]["code"], -32603, "{}", answer.text());
    assert_eq!(
        message["error"]["message"],
        "shutting down, outcome unknown"
    );
    let (said, code, _) = tokio::task::spawn_blocking(|| running.ended())
        .await
        .unwrap();
    assert!(
        since.elapsed() < Duration::from_secs(15),
        "{:?}",
        since.elapsed()
    );
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(
        said.matches("\"THV_TOOL\":\"wait\"").count(),
        1,
        "asked once, done once: {said}"
    );
}

/// fault-9: what still runs when a stop has waited long enough is cut, and the record does not say that its client went.
#[test]
fn what_a_stop_cuts_short_is_on_record_as_that() {
    let this = Command::new(std::env::current_exe().unwrap());
    in_a_process_of_its_own(this, "faults::told_to_stop_with_requests_that_do_not_end");
}

#[tokio::test]
#[ignore = "in a process that may be told to stop, by what_a_stop_cuts_short_is_on_record_as_that"]
async fn told_to_stop_with_requests_that_do_not_end() {
    if !is_in_a_process_of_its_own() {
        return;
    }
    let (place, program) = lease::program(&["/usr/bin/python3", "-u", CROWD]);
    let house = house()
        .command(&[program.to_str().unwrap()])
        .readable(place.path())
        // Longer than is waited for below.
        .with("[limits]\nstart-timeout = \"25s\"\n")
        .open()
        .await;
    house.serves("alice").await;
    let lease = Lease::on(&program);
    // Of two the server does not come up, two have not said all, and one goes away by itself.
    let (bob, carol) = (house.caller("bob"), house.caller("carol"));
    let bob_asks = bob.bytes("POST", &initialize("2025-11-25"));
    let carol_asks = modern::body("1", "tools/list", json!({}), json!({}));
    let carol_asks = modern::bytes(&carol, "tools/list", None, &carol_asks);
    let dave_asks = house
        .caller("dave")
        .bytes("POST", &initialize("2025-11-25"));
    let mut open = Vec::new();
    for asks in [
        &bob_asks[..],
        &carol_asks,
        &dave_asks[..dave_asks.len() - 1],
    ] {
        let mut client = TcpStream::connect(house.address).await.unwrap();
        client.write_all(asks).await.unwrap();
        open.push(client);
    }
    let host = house.address.to_string();
    let bearer = format!("Bearer {}", house.token("erin"));
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/mcp"),
        (":authority", host.as_str()),
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
        ("authorization", bearer.as_str()),
    ];
    let mut frames = Frames::open(house.address).await;
    let head = frame(HEADERS, END_HEADERS, 1, &block(&fields));
    // And one that the library refuses, on a connection that goes on.
    let refused = block(&[&fields[..], &[("connection", "close")]].concat());
    let refused = frame(HEADERS, END_HEADERS | END_STREAM, 3, &refused);
    frames
        .send(&[head.clone(), frame(DATA, 0, 1, b"{"), refused].concat())
        .await;
    let mut gone = Frames::open(house.address).await;
    gone.send(&[head, frame(DATA, 0, 1, b"{")].concat()).await;
    for client in [&mut frames, &mut gone] {
        client.send(&frame(PING, 0, 0, b"12345678")).await;
        while client.next().await.expect("a pong").0 != PING {}
    }
    let records = house.records.clone();
    let allowed = ["THV_EVENT=decision ", "THV_DECISION=allow "];
    records.wait_for_all(&allowed, 2 + 2).await;
    let lease = lease.asked().await;
    nix::sys::signal::raise(Signal::SIGTERM).unwrap();
    records.wait_for("stopping").await;
    drop(gone);
    let went = ["THV_DECISION=deny ", "THV_SUBJECT=erin "];
    let went = records.wait_for_all(&went, 1).await;
    assert!(went[0].contains("THV_REASON=bad-header "), "{went:#?}");
    // Told twice: it does not wait until its time is over.
    nix::sys::signal::raise(Signal::SIGTERM).unwrap();
    assert_eq!(house.ended().await, thv::daemon::Exit::Done);
    for (subject, event) in [
        ("bob", "THV_OUTCOME=failed "),
        ("carol", "THV_OUTCOME=failed "),
        ("dave", "THV_DECISION=deny "),
        ("erin", "THV_DECISION=deny "),
    ] {
        let of = format!("THV_SUBJECT={subject} ");
        let all = records.all();
        let decided = all.iter().rfind(|record| record.contains(&of)).unwrap();
        let id = format!(
            "THV_REQUEST_ID={} ",
            field(decided, "THV_REQUEST_ID").unwrap()
        );
        let ended: Vec<_> = all
            .iter()
            .filter(|record| record.contains(&id) && record.contains(event))
            .collect();
        assert_eq!(ended.len(), 1, "{subject}: {all:#?}");
        assert!(ended[0].contains("THV_REASON=stopping "), "{ended:#?}");
    }
    let all = records.all();
    let unseen = all.iter().filter(|record| {
        let cut = [
            "THV_DECISION=deny ",
            "THV_REASON=stopping ",
            "THV_PEER_ADDR=127.0.0.1:",
        ];
        cut.iter().all(|field| record.contains(field)) && !record.contains("THV_SUBJECT=")
    });
    assert_eq!(unseen.count(), 1, "{all:#?}");
    drop((lease, open, frames));
}

/// fault-9, mcp-T28: what would stay open ends with an answer when it is told to stop, under the name that its client knows,
/// whatever the server speaks.
#[tokio::test]
async fn a_subscription_ends_well_when_it_stops() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/servers/scripted.py");
    for speaks in ["--modern", "--changes"] {
        let command = ["--", "/usr/bin/python3", "-u", script, speaks];
        let running = Running::start(&command, None).await;
        let caller = running.caller("toolhive");
        let wanted = json!({ "toolsListChanged": true });
        let listen = modern::listens(&caller, "\"mine\"", wanted);
        let mut open = Events::open(running.address, &listen).await;
        assert_eq!(
            open.next().await["method"],
            "notifications/subscriptions/acknowledged"
        );
        told_to_stop(&running).await;
        let ended = loop {
            let event = open.next().await;
            if event["method"].is_null() {
                break event;
            }
        };
        let result = &ended["result"];
        assert_eq!(
            (
                &ended["id"],
                &result["resultType"],
                &result["_meta"]["io.modelcontextprotocol/subscriptionId"]
            ),
            (&json!("mine"), &json!("complete"), &json!("mine")),
            "{speaks}: {ended}"
        );
        open.end().await;
        let (said, code, _) = tokio::task::spawn_blocking(|| running.ended())
            .await
            .unwrap();
        assert_eq!(code, Some(0), "{said}");
    }
}

/// Whoever comes while it stops is told so at once, not when the last running call has ended: the
/// socket is its own, and nobody comes after it who would answer.
#[tokio::test]
async fn who_comes_while_it_stops_is_told_at_once() {
    let running = Running::start(&[], None).await;
    let caller = running.session().await;
    let waiting = caller.begins("wait", json!({ "for": "ever" }));
    running.says("holding ever").await;
    told_to_stop(&running).await;
    let since = Instant::now();
    for _ in 0..3 {
        let mut late = TcpStream::connect(running.address).await.unwrap();
        late.write_all(public(&running).as_bytes()).await.unwrap();
        let mut answer = String::new();
        late.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.to_lowercase().contains("retry-after: 1"), "{answer}");
    }
    // And who says nothing holds up nothing.
    let _silent = TcpStream::connect(running.address).await.unwrap();
    assert!(
        since.elapsed() < Duration::from_secs(10),
        "{:?}",
        since.elapsed()
    );
    assert!(!waiting.is_finished(), "it is still being waited for");
    running.signal(Signal::SIGTERM);
    assert_eq!(waiting.await.unwrap().json()["error"]["code"], -32603);
    let (said, code, _) = tokio::task::spawn_blocking(|| running.ended())
        .await
        .unwrap();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.matches("denied (stopping)").count(), 3, "{said}");
}

/// fault-46: many who may send large bodies send them at once. The memory for bodies is one for all: some
/// are told 503, nobody's gateway grows beyond it, and a small request is answered all the while.
#[tokio::test]
async fn the_memory_for_bodies_is_bounded_whatever_the_number_of_connections() {
    const CROWD: usize = 160;
    const BODY: usize = 4 << 20;
    let running = Running::start(&[], None).await;
    let caller = running.session().await;
    let body = call(1, "echo", json!({ "x": "y".repeat(BODY - 500) }));
    let whole = Arc::new(caller.bytes("POST", &body));
    // All but the last byte: a body that is held and never read to its end. Who is refused
    // meanwhile cannot write on.
    let hold = || {
        let (whole, address) = (whole.clone(), running.address);
        async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(&whole[..whole.len() - 1]).await;
            stream
        }
    };
    let mut crowd = JoinSet::new();
    for _ in 0..CROWD {
        crowd.spawn(hold());
    }
    let mut held = Vec::new();
    while let Some(done) = crowd.join_next().await {
        held.push(done.unwrap());
    }
    assert_eq!(
        caller.call("echo", json!({})).await.status,
        200,
        "small ones need no share"
    );
    wait_for_async("a large body to be refused", async || {
        let told = told(running.address, &whole).await;
        if told.starts_with("HTTP/1.1 200") {
            // Those who were refused last have left room.
            held.push(hold().await);
        }
        told.starts_with("HTTP/1.1 503") && told.contains("\"overloaded\"")
    })
    .await;
    let peak = peak_memory(running.pid());
    assert!(peak < 450 << 20, "{} MiB", peak >> 20);
    drop(held);
    // Who goes gives back what was held for it.
    wait_for_async("a large body to be taken again", async || {
        told(running.address, &whole)
            .await
            .starts_with("HTTP/1.1 200")
    })
    .await;
    let (said, code, _) = running.end();
    assert_eq!(code, Some(0));
    let overloaded = said.matches("\"THV_REASON\":\"overloaded\"").count();
    assert!(overloaded > CROWD / 2, "{overloaded}");
}

/// fault-47: what `cpu.max` of 5 % does is done to the gateway: 5 ms of each 100 it runs. Good tokens stay
/// good, every call is answered, and a deadline is a deadline.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_starved_gateway_is_slow_and_not_wrong() {
    let running = Running::start(&[], None).await;
    let starved = Starved::begin(running.pid());
    let silent = tokio::spawn({
        let address = running.address;
        async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let since = Instant::now();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            since.elapsed()
        }
    });
    let mut callers = JoinSet::new();
    for _ in 0..4 {
        let mut caller = running.caller("toolhive");
        callers.spawn(async move {
            let mut statuses = vec![caller.initialize().await.status];
            for _ in 0..5 {
                statuses.push(caller.call("echo", json!({})).await.status);
            }
            statuses
        });
    }
    while let Some(statuses) = callers.join_next().await {
        assert_eq!(statuses.unwrap(), [200; 6]);
    }
    let stranger = Caller {
        token: Some("x.y.z".to_owned()),
        ..running.caller("toolhive")
    };
    assert_eq!(
        stranger.call("echo", json!({})).await.status,
        401,
        "bad ones stay bad"
    );
    // A connection that says nothing has ten seconds.
    let waited = silent.await.unwrap();
    assert!((10..14).contains(&waited.as_secs()), "{waited:?}");
    drop(starved);
    let (said, code, _) = running.end();
    assert_eq!(code, Some(0), "{said}");
}

/// fault-48: a client whose network goes away says nothing about it. Within a minute its connection is
/// given up and its modern call cancelled towards the server; the call of another goes on.
#[tokio::test]
async fn a_client_that_is_cut_off_is_noticed_within_a_minute() {
    let house = house().argument("--modern").open().await;
    let alice = house.caller("alice");
    let waiting = |what: &str| {
        let params = json!({ "name": "wait", "arguments": { "for": what } });
        let body = modern::body(5, "tools/call", params, json!({}));
        modern::bytes(&alice, "tools/call", Some("wait"), &body)
    };
    modern::tool(&alice, "echo", json!({})).await;
    let kept = tokio::spawn({
        let (address, request) = (house.address, waiting("kept"));
        async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&request).await.unwrap();
            let mut answer = String::new();
            timeout(Duration::from_secs(120), stream.read_to_string(&mut answer))
                .await
                .unwrap()
                .unwrap();
            answer
        }
    });
    // A filter that lets nothing in (socket(7), SO_ATTACH_FILTER) makes a socket deaf: it acknowledges
    // nothing, resets nothing and says no goodbye, as if the cable was cut.
    let script = "\
import socket, struct, sys, ctypes
request = sys.stdin.buffer.read()
host, port = sys.argv[1].rsplit(':', 1)
stream = socket.create_connection((host, int(port)))
stream.sendall(request)
stream.recv(4096)
nothing = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0))
stream.setsockopt(socket.SOL_SOCKET, 26, struct.pack('HL', 1, ctypes.addressof(nothing)))
print('deaf', flush=True)
sys.stdin.close()
import signal
signal.pause()
";
    let deaf = Command::new("/usr/bin/python3")
        .args(["-c", script, &house.address.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut deaf = Ends(deaf);
    deaf.0
        .stdin
        .take()
        .unwrap()
        .write_all(&waiting("lost"))
        .unwrap();
    let out = deaf.0.stdout.take().unwrap();
    let line = tokio::task::spawn_blocking(move || BufReader::new(out).lines().next());
    assert_eq!(line.await.unwrap().unwrap().unwrap(), "deaf");
    let since = Instant::now();
    let gone = house.records.until("THV_REASON=client-gone");
    timeout(Duration::from_secs(62), gone)
        .await
        .expect("noticed within a minute");
    assert!(
        since.elapsed() > Duration::from_secs(10),
        "it was not silent: {:?}",
        since.elapsed()
    );
    let lines = modern::seen(&alice).await;
    let line = |what: &str| -> Value {
        serde_json::from_str(lines.iter().find(|line| line.contains(what)).unwrap()).unwrap()
    };
    assert_eq!(
        line("notifications/cancelled")["params"]["requestId"],
        line("\"lost\"")["id"]
    );
    modern::tool(&alice, "release", json!({ "for": "kept" })).await;
    assert!(kept.await.unwrap().contains("released"));
}

/// fault-31: an issuer whose certificate has expired, or is nobody's that is known, is away: 503, an error on
/// record, and not one byte in the clear or to an unknown. When it is mended, so is everything.
#[tokio::test]
async fn an_issuer_without_a_good_certificate_is_an_outage() {
    let issuer = TlsIssuer::start().await;
    let file = format!(
        "command = [\"/usr/bin/python3\", \"-u\", \"{servers}/scripted.py\"]\nresource = \"http://{{address}}/mcp\"\n\
         [[auth.issuer]]\nissuer = \"{url}\"\naudience = \"http://{{address}}/mcp\"\nca-file = \"/etc/thv/ca.pem\"\n\
         [authz]\nallow = \"authenticated\"\n[sandbox]\noptional = [\"cgroup\"]\nread-only = [\"{servers}\"]\n",
        servers = format_args!("{}/tests/it/servers", env!("CARGO_MANIFEST_DIR")),
        url = issuer.url,
    );
    // The expired one is believed, but for its time; of the other nobody has ever heard.
    let rounds = [
        ("expired", pem("ca.pem") + &pem("expired.pem"), "xpired"),
        // In which words depends on whether this host knows another of that name.
        ("other", pem("ca.pem"), "invalid peer certificate"),
    ];
    for (certificate, trusted, why) in rounds {
        let house = house().file(&file).also("ca.pem", trusted).open().await;
        issuer.publish(&house).await;
        issuer.show(certificate);
        let heard = issuer.heard();
        let answer = issuer.caller(&house).initialize().await;
        assert_eq!(answer.status, 503, "{certificate}: {}", answer.text());
        let reason = answer.json()["error"]["data"]["reason"].clone();
        assert_eq!(reason, "provider-unavailable");
        assert!(answer.header("retry-after").is_some());
        house.records.wait_for("keys-unavailable").await;
        let records = house.records.all();
        let is_alarm = |record: &&String| record.contains("THV_EVENT=keys-unavailable");
        let alarm = records.iter().rfind(is_alarm).unwrap();
        assert!(
            alarm.contains("PRIORITY=3") && alarm.contains(why),
            "{alarm}"
        );
        assert_eq!(
            issuer.heard(),
            heard,
            "{certificate}: it was told something all the same"
        );
        issuer.show("localhost");
        // Until it may be asked again, while there are no keys.
        pass(Duration::from_secs(6)).await;
        let answer = issuer.caller(&house).initialize().await;
        assert_eq!(answer.status, 200, "{:#?}", house.records.all());
    }
    let in_the_clear = issuer.in_the_clear.load(Ordering::SeqCst);
    assert_eq!(in_the_clear, 0, "never without TLS");
}

/// fault-33, fault-34: an hour forward ends the tokens of that hour, and no session; set back, the clock
/// revives none of them. Records keep their order by number.
#[tokio::test]
async fn a_clock_that_is_set_ends_tokens_and_nothing_else() {
    const HOUR: i64 = 3600;
    let offset = Arc::new(AtomicI64::new(0));
    let (shown, system) = (offset.clone(), Clock::system());
    let clock = Clock::new(move || {
        system
            .now()
            .saturating_add_signed(shown.load(Ordering::SeqCst))
    });
    let house = house()
        .with("[limits]\nsession-idle = \"10min\"\n")
        .clock(clock.clone())
        .open()
        .await;
    let early = house.session("alice").await;
    offset.store(HOUR + 120, Ordering::SeqCst);
    let answer = early.call("echo", json!({})).await;
    assert_eq!(answer.status, 401, "{}", answer.text());
    let token = |offset: i64| {
        let now = clock.now().saturating_add_signed(offset);
        let claims = json!({ "iss": house.issuer(), "sub": "alice", "aud": house.resource(), "client_id": "thv-demo",
                             "iat": now, "exp": now + 3600, "jti": "1", "groups": ["it"] });
        Some(house.issuer.sign(&claims).unwrap())
    };
    // Its session is as idle as it was, which is not at all: that is not the wall clock's to say.
    let late = Caller {
        token: token(0),
        ..early.clone()
    };
    assert_eq!(late.call("echo", json!({})).await.status, 200);
    offset.store(0, Ordering::SeqCst);
    assert_eq!(
        early.call("echo", json!({})).await.status,
        401,
        "what has expired stays expired"
    );
    assert_eq!(late.call("echo", json!({})).await.status, 200);
    offset.store(-HOUR, Ordering::SeqCst);
    assert_eq!(early.call("echo", json!({})).await.status, 401);
    assert_eq!(late.call("echo", json!({})).await.status, 200);
    let numbers: Vec<u64> = house
        .records
        .all()
        .iter()
        .map(|record| field(record, "THV_SEQ").unwrap().parse().unwrap())
        .collect();
    assert!(
        numbers.windows(2).all(|two| two[0] + 1 == two[1]),
        "{numbers:?}"
    );
}

/// fault-52: every decision names the configuration that it was made by, and it is one.
#[tokio::test]
async fn each_decision_names_its_version() {
    let one = decided_by(&house().open().await).await;
    let other = decided_by(
        &house()
            .policy("permit (principal, action, resource);")
            .open()
            .await,
    )
    .await;
    assert_eq!(one.len(), 16);
    assert!(one.bytes().all(|byte| byte.is_ascii_hexdigit()), "{one}");
    assert_ne!(one, other);
}

/// fault-50: without /proc nothing is half confined: it says what is missing, and serves nobody.
#[tokio::test]
async fn without_proc_it_refuses_and_says_why() {
    if !nix::unistd::Uid::effective().is_root() {
        eprintln!("skipped: taking /proc away needs root");
        return;
    }
    let script = "mount -t tmpfs none /proc && exec \"$0\" run --name it --port 0 --foreground \
                  --oidc-issuer http://127.0.0.1:1 --oidc-audience x -- /usr/bin/true";
    let done = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_thv")])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(!done.status.success(), "{said}");
    assert!(said.contains("/proc"), "{said}");
    assert!(
        !said.contains("listening on") && !said.contains("panicked"),
        "{said}"
    );
}

/// json-25: nobody reads a schema, and how deep a message may be is bounded: one that is nested without end is
/// no message, costs its own caller's call, and nobody else anything.
#[tokio::test]
async fn a_schema_that_never_ends_is_its_own_servers_trouble() {
    let script = "\
import json, sys
deep = 100_000
bomb = '{\"anyOf\":[' * deep + '{}' + ']}' * deep
for line in sys.stdin:
    message = json.loads(line)
    if 'id' not in message: continue
    if message['method'] == 'initialize':
        result = json.dumps({'protocolVersion': message['params']['protocolVersion'], 'capabilities': {'tools': {}}, 'serverInfo': {'name': 'b', 'version': '1'}})
    elif message['method'] == 'tools/list':
        result = '{\"tools\":[{\"name\":\"a\",\"inputSchema\":' + bomb + '}]}'
    else:
        result = json.dumps({'content': []})
    print('{\"jsonrpc\":\"2.0\",\"id\":' + json.dumps(message['id']) + ',\"result\":' + result + '}', flush=True)
";
    let house = house()
        .command(&["/usr/bin/python3", "-u", "-c", script])
        .policy("permit (principal, action, resource);")
        .with("[limits]\ncall-timeout = \"2s\"\n")
        .open()
        .await;
    let (alice, bob) = (house.session("alice").await, house.session("bob").await);
    let since = Instant::now();
    let listed = alice
        .post(r#"{"jsonrpc":"2.0","id":7,"method":"tools/list"}"#)
        .await;
    assert_eq!(
        listed.json()["error"]["code"],
        -32603,
        "{}",
        &listed.text()[..200.min(listed.text().len())]
    );
    assert!(
        since.elapsed() < Duration::from_secs(10),
        "{:?}",
        since.elapsed()
    );
    assert_eq!(bob.call("a", json!({})).await.status, 200);
}

/// json-28: a cursor is the server's own word. One that another caller was given reaches the server of
/// whoever sends it, and no other.
#[tokio::test]
async fn a_cursor_reaches_nobody_elses_server() {
    let house = house().open().await;
    let (alice, bob) = (house.session("alice").await, house.session("bob").await);
    let listed = bob
        .post(r#"{"jsonrpc":"2.0","id":7,"method":"tools/list","params":{"cursor":"of-alice"}}"#)
        .await;
    assert_eq!(listed.status, 200);
    let holds = |lines: &[String]| lines.iter().any(|line| line.contains("of-alice"));
    assert!(holds(&bob.seen().await), "the control");
    assert!(!holds(&alice.seen().await));
}

/// probe-14: whatever a server names its files, what it says of them is one record, without a byte
/// that a terminal would obey.
#[tokio::test]
async fn a_file_with_an_evil_name_is_logged_without_its_tricks() {
    let script = "\
import json, os, sys
name = '/tmp/a\\nMESSAGE_ID=1\\nTHV_DECISION=allow\\x1b]0;evil\\x07\\x1b[2J'
for line in sys.stdin:
    message = json.loads(line)
    if 'id' not in message: continue
    result = {'content': []}
    if message['method'] == 'initialize':
        result = {'protocolVersion': message['params']['protocolVersion'], 'capabilities': {'tools': {}}, 'serverInfo': {'name': 'b', 'version': '1'}}
    else:
        open(name, 'w').close()
        os.write(2, ('cannot read ' + os.listdir('/tmp')[0] + '\\n').encode())
    print(json.dumps({'jsonrpc': '2.0', 'id': message['id'], 'result': result}), flush=True)
";
    let house = house()
        .command(&["/usr/bin/python3", "-u", "-c", script])
        .open()
        .await;
    let alice = house.session("alice").await;
    assert_eq!(alice.call("any", json!({})).await.status, 200);
    house.records.wait_for_more("child-stderr", 2).await;
    alice.send("DELETE", "").await;
    house.records.wait_for("child-exited").await;
    let records = house.records.all();
    for record in &records {
        assert!(!record.chars().any(char::is_control), "{record:?}");
        if record.contains("evil") || record.contains("MESSAGE_ID=1 ") {
            assert!(record.contains("THV_EVENT=child-stderr "), "{record}");
        }
    }
    assert!(
        records.iter().any(|record| record.contains("evil")),
        "the control: {records:#?}"
    );
}

/// Asks again and again: whether there is room nobody says but by an answer.
async fn wait_for_async(what: &str, mut look: impl AsyncFnMut() -> bool) {
    let there = async { while !look().await {} };
    timeout(PATIENCE, there)
        .await
        .unwrap_or_else(|_| panic!("waited for {what}"));
}

/// Lets time pass for the gateway, whose pauses are measured by tokio's clock.
pub(crate) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// The version that all decisions of a house name.
async fn decided_by(house: &House) -> String {
    let alice = house.session("alice").await;
    alice.call("echo", json!({})).await;
    let stranger = Caller {
        token: None,
        ..alice.clone()
    };
    stranger.call("echo", json!({})).await;
    let versions: Vec<String> = house
        .records
        .all()
        .iter()
        .filter(|record| record.contains("THV_EVENT=decision "))
        .map(|record| field(record, "THV_CONFIG").unwrap().to_owned())
        .collect();
    assert!(
        versions.len() >= 3 && versions.iter().all(|version| *version == versions[0]),
        "{versions:?}"
    );
    versions[0].clone()
}

/// What is answered to a request that may not be read to its end.
async fn told(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let (mut reading, mut writing) = stream.split();
    let mut answer = Vec::new();
    let asked = async {
        // Who is refused cannot write on.
        let _ = writing.write_all(request).await;
    };
    let read = async {
        // And may be cut off before the end of it.
        let _ = timeout(PATIENCE, reading.read_to_end(&mut answer)).await;
    };
    tokio::join!(asked, read);
    String::from_utf8_lossy(&answer).into_owned()
}

/// The most memory that a process ever had.
fn peak_memory(pid: i32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.trim()
        .trim_end_matches(" kB")
        .parse::<usize>()
        .unwrap()
        << 10
}

/// A process that is let run 5 ms of each 100, until this is dropped.
struct Starved {
    ended: Arc<AtomicBool>,
    keeper: Option<std::thread::JoinHandle<()>>,
}

impl Starved {
    fn begin(pid: i32) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let end = ended.clone();
        #[allow(
            clippy::disallowed_methods,
            reason = "the pace is the point, no event is waited for"
        )]
        let keeper = std::thread::spawn(move || {
            let pid = nix::unistd::Pid::from_raw(pid);
            let tell = |signal| nix::sys::signal::kill(pid, signal);
            while !end.load(Ordering::SeqCst) {
                let _ = tell(Signal::SIGSTOP);
                std::thread::sleep(Duration::from_millis(95));
                let _ = tell(Signal::SIGCONT);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self {
            ended,
            keeper: Some(keeper),
        }
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

/// A process that ends with its test.
struct Ends(std::process::Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pem(name: &str) -> String {
    std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/tls")
            .join(name),
    )
    .unwrap()
}

/// An issuer at `https://localhost`, with one certificate or another, that counts what it hears.
struct TlsIssuer {
    url: String,
    acceptor: Arc<Mutex<TlsAcceptor>>,
    documents: Arc<Mutex<Vec<(String, String)>>>,
    /// Requests by TLS.
    requests: Arc<AtomicUsize>,
    /// Connections that did not begin with a handshake.
    in_the_clear: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl TlsIssuer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let acceptor = Arc::new(Mutex::new(acceptor("expired")));
        let documents = Arc::new(Mutex::new(Vec::new()));
        let (requests, in_the_clear) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut serving = JoinSet::new();
        let (shown, kept, asked, clear) = (
            acceptor.clone(),
            documents.clone(),
            requests.clone(),
            in_the_clear.clone(),
        );
        serving.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = shown.lock().unwrap().clone();
                let (kept, asked, clear) = (kept.clone(), asked.clone(), clear.clone());
                open.spawn(async move {
                    let mut first = [0];
                    if stream.peek(&mut first).await.unwrap_or(0) == 1 && first != [22] {
                        clear.fetch_add(1, Ordering::SeqCst);
                    }
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let mut request = Vec::new();
                    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
                        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    asked.fetch_add(1, Ordering::SeqCst);
                    let request = String::from_utf8_lossy(&request).into_owned();
                    let path = request.split(' ').nth(1).unwrap();
                    let kept: Vec<(String, String)> = kept.lock().unwrap().clone();
                    let text = kept.iter().find(|(name, _)| name == path).map(|(_, text)| text.as_str());
                    let status = if text.is_some() { "200 OK" } else { "404 Not Found" };
                    let text = text.unwrap_or("{}");
                    let answer = format!(
                        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{text}",
                        text.len()
                    );
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        Self {
            url: format!("https://localhost:{}", address.port()),
            acceptor,
            documents,
            requests,
            in_the_clear,
            _serving: serving,
        }
    }

    /// Takes the key of the house's other issuer for its own.
    async fn publish(&self, house: &House) {
        let address: SocketAddr = house
            .issuer()
            .strip_prefix("http://")
            .unwrap()
            .parse()
            .unwrap();
        let request = wire::request("GET", "/jwks", &[("Host", &address.to_string())], "");
        let keys = wire::exchange(address, &request).await.text();
        let discovery = json!({ "issuer": self.url, "jwks_uri": format!("{}/jwks", self.url) });
        *self.documents.lock().unwrap() = vec![
            (
                "/.well-known/openid-configuration".to_owned(),
                discovery.to_string(),
            ),
            ("/jwks".to_owned(), keys),
        ];
    }

    fn show(&self, certificate: &str) {
        *self.acceptor.lock().unwrap() = acceptor(certificate);
    }

    fn heard(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    fn caller(&self, house: &House) -> Caller {
        let now = Clock::system().now();
        let claims = json!({ "iss": self.url, "sub": "alice", "aud": house.resource(), "client_id": "thv-demo",
                             "iat": now, "exp": now + 3600, "jti": "1" });
        Caller {
            address: house.address,
            token: Some(house.issuer.sign(&claims).unwrap()),
            session: None,
        }
    }
}

fn acceptor(certificate: &str) -> TlsAcceptor {
    let chain =
        CertificateDer::from_pem_slice(pem(&format!("{certificate}.pem")).as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(pem(&format!("{certificate}.key")).as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

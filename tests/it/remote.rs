//! Servers that somebody else runs: what they see, and what becomes of their failures.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::{Value, json};
use thv::time::Clock;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    backends::{each_has_its_own, header, modern as ask_modern, tool},
    faults::pass,
    house::{Caller, House, Plan, call, house},
    modern,
    wire::{self, Events, PATIENCE},
};

/// A real server in a process of its own.
struct Upstream {
    port: u16,
    process: Child,
}

impl Upstream {
    fn start(arguments: &[&str]) -> Self {
        Self::at("0", arguments)
    }

    fn at(port: &str, arguments: &[&str]) -> Self {
        let server = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/it/servers/streamable.py"
        );
        let mut process = Command::new("/usr/bin/python3")
            .args(["-u", server, port])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let output = process.stdout.as_mut().unwrap();
        BufReader::new(output).read_line(&mut line).unwrap();
        Self {
            port: line.trim().parse().unwrap(),
            process,
        }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/mcp", self.port)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Stands before an upstream and keeps every byte that comes for it.
struct Tap {
    port: u16,
    heard: Arc<Mutex<Vec<u8>>>,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Tap {
    async fn before(upstream: u16, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (heard, connections) = (
            Arc::<Mutex<Vec<u8>>>::default(),
            Arc::<AtomicUsize>::default(),
        );
        let (kept, counted) = (heard.clone(), connections.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut running = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::Relaxed);
                let (kept, tls) = (kept.clone(), tls.clone());
                running.spawn(async move {
                    let Ok(to) = TcpStream::connect(("127.0.0.1", upstream)).await else {
                        return;
                    };
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                hand_on(stream, to, &kept).await;
                            }
                        }
                        None => hand_on(stream, to, &kept).await,
                    }
                });
            }
        });
        Self {
            port,
            heard,
            connections,
            _tasks: tasks,
        }
    }

    fn heard(&self) -> String {
        String::from_utf8_lossy(&self.heard.lock().unwrap()).into_owned()
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn hand_on(from: impl AsyncRead + AsyncWrite, to: TcpStream, kept: &Mutex<Vec<u8>>) {
    let (mut from_read, mut from_write) = tokio::io::split(from);
    let (mut to_read, mut to_write) = to.into_split();
    let there = async {
        let mut buffer = vec![0; 8192];
        while let Ok(read @ 1..) = from_read.read(&mut buffer).await {
            kept.lock().unwrap().extend_from_slice(&buffer[..read]);
            if to_write.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
    };
    let back = async {
        let _ = tokio::io::copy(&mut to_read, &mut from_write).await;
        let _ = from_write.shutdown().await;
    };
    tokio::select! {
        () = there => {}
        () = back => {}
    }
}

fn tls() -> (TlsAcceptor, PathBuf) {
    let ca = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls/ca.pem");
    (acceptor("localhost"), ca)
}

/// Speaks TLS with one of the certificates of tests/tls.
pub(crate) fn acceptor(certificate: &str) -> TlsAcceptor {
    let tls = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls");
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(tls.join(format!("{certificate}.pem")))
            .unwrap()
            .map(Result::unwrap)
            .collect();
    let key = PrivateKeyDer::from_pem_file(tls.join(format!("{certificate}.key"))).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

type Reply = Box<dyn Fn(&str, usize) -> (u16, String) + Send + Sync>;

/// A token endpoint that answers as it is told, and keeps what it was asked.
struct Provider {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl Provider {
    async fn start(reply: Reply) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let kept = asked.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                let whole = |request: &[u8]| {
                    let text = String::from_utf8_lossy(request).into_owned();
                    let (head, body) = text.split_once("\r\n\r\n")?;
                    let length = head.lines().find_map(|line| {
                        let (name, value) = line.split_once(": ")?;
                        name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().unwrap())
                    })?;
                    (body.len() >= length).then_some(text)
                };
                let request = loop {
                    if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        break None;
                    }
                    if let Some(request) = whole(&request) {
                        break Some(request);
                    }
                };
                let Some(request) = request else { continue };
                let count = {
                    let mut kept = kept.lock().unwrap();
                    kept.push(request.clone());
                    kept.len()
                };
                let (status, body) = reply(&request, count);
                let answer = format!(
                    "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self {
            port,
            asked,
            _tasks: tasks,
        }
    }

    fn upstream(&self) -> String {
        format!(
            "token-exchange = {{ token-url = \"http://127.0.0.1:{}/token\", client-id = \"thv\", credential = \"thv-client\", \
             audience = \"up\", scope = \"read write\" }}\n",
            self.port
        )
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

/// The subject of the token that is to be exchanged.
fn subject(request: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let token = request.split("subject_token=").nth(1).unwrap();
    let claims = token.split('.').nth(1).unwrap();
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    claims["sub"].as_str().unwrap().to_owned()
}

fn token_for(request: &str, expires_in: u64) -> String {
    json!({ "access_token": format!("up-{}", subject(request)), "token_type": "Bearer",
            "issued_token_type": "urn:ietf:params:oauth:token-type:access_token", "expires_in": expires_in })
    .to_string()
}

/// mcp-A3, inc-14: of every byte that the upstream sees none is the client's token, session or header.
#[tokio::test]
async fn an_upstream_sees_its_own_credential_and_nothing_of_the_callers() {
    let upstream = Upstream::start(&[]);
    let (acceptor, ca) = tls();
    let tap = Tap::before(upstream.port, Some(acceptor)).await;
    let plan = house()
        .remote(
            &format!("https://localhost:{}/mcp", tap.port),
            "ca-file = \"/etc/thv/ca.pem\"\nauthorization = { credential = \"up\" }",
        )
        .also("ca.pem", std::fs::read_to_string(ca).unwrap())
        .credential("up", "sesame\n");
    let house = plan.open().await;
    let alice = house.session("alice").await;
    let note = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    assert_eq!(alice.post(note).await.status, 202);
    // A client may show its token anywhere: what is not its message goes nowhere.
    let token = alice.token.clone().unwrap();
    let more = [
        ("Cookie", "secret-cookie"),
        ("X-Api-Key", "secret-key"),
        ("X-Forwarded-For", "192.0.2.7"),
        ("Traceparent", "secret-trace"),
        ("Proxy-Authorization", &*format!("Bearer {token}")),
        ("X-Forwarded-Access-Token", &token),
        ("Authentication", &token),
        ("Mcp-Param-Token", &token),
        ("Baggage", &token),
        ("User-Agent", "secret-agent"),
        ("Last-Event-ID", "secret-event"),
        ("Origin", &format!("http://{}", house.address)),
        ("Referer", "http://secret-referer/"),
        ("From", "secret-from"),
    ];
    let body = call(1, "echo", json!({ "n": 1 }));
    let request = alice.bytes_with("POST", &more, &body);
    let request = String::from_utf8(request).unwrap();
    let queried = request.replacen("/mcp ", "/mcp?key=secret-query ", 1);
    for request in [&request, &queried] {
        let answer = wire::exchange(alice.address, request.as_bytes()).await;
        assert_eq!(answer.said(), "{\"n\": 1}");
    }
    // Where the query has what a token is shown as, nothing is sent at all (tok-9).
    let shown = request.replacen("/mcp ", &format!("/mcp?access_token={token} "), 1);
    assert_eq!(
        wire::exchange(alice.address, shown.as_bytes()).await.status,
        400
    );
    let stateless = modern::bytes(
        &alice,
        "tools/call",
        Some("echo"),
        &modern::body(
            1,
            "tools/call",
            json!({ "name": "echo", "arguments": {} }),
            json!({}),
        ),
    );
    let stateless = String::from_utf8(stateless).unwrap();
    let lines: String = more
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    let stateless = stateless.replacen("Host:", &format!("{lines}Host:"), 1);
    assert_eq!(
        wire::exchange(alice.address, stateless.as_bytes())
            .await
            .said(),
        "{}"
    );
    let mut own = Events::open(alice.address, &alice.bytes_with("GET", &more[..10], "")).await;
    own.field("id: ").await;
    assert_eq!(
        tool(&alice, "echo", json!({ "n": 2 })).await.said(),
        "{\"n\": 2}"
    );
    let session = alice.session.clone().unwrap();
    assert_eq!(alice.send("DELETE", "").await.status, 204);
    house.records.wait_for("child-exited").await;
    let heard = tap.heard();
    let requests = heard.matches(" /mcp HTTP/1.1\r\n").count();
    assert!(heard.contains("DELETE /mcp") && requests > 5, "{heard}");
    assert_eq!(
        heard.matches("authorization: Bearer sesame\r\n").count(),
        requests
    );
    // What its own message says is the server's: of that nothing was added by the gateway.
    assert!(!heard.contains("identity\":"), "{heard}");
    let parts = token.split('.').chain([session.as_str(), token.as_str()]);
    for secret in parts.chain(["secret-", "192.0.2.7", "alice", &house.resource()]) {
        assert!(!heard.contains(secret), "`{secret}` was passed on: {heard}");
    }
}

/// Certificates count: who cannot prove to be the upstream, by an authority, a name and a date, is told nothing.
#[tokio::test]
async fn a_stranger_with_the_upstreams_address_is_told_nothing() {
    let upstream = Upstream::start(&[]);
    let trusted = "ca-file = \"/etc/thv/ca.pem\"\n";
    for (host, certificate, more) in [
        ("localhost", Some("localhost"), ""),
        ("127.0.0.1", Some("localhost"), trusted),
        ("localhost", Some("expired"), trusted),
        ("localhost", Some("other"), trusted),
        ("localhost", None, trusted),
    ] {
        let tap = Tap::before(upstream.port, certificate.map(acceptor)).await;
        let ca = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls/ca.pem");
        let plan = house()
            .remote(
                &format!("https://{host}:{}/mcp", tap.port),
                &format!("{more}authorization = {{ credential = \"up\" }}"),
            )
            .also("ca.pem", std::fs::read_to_string(ca).unwrap())
            .credential("up", "sesame");
        let house = plan.open().await;
        let answer = house.caller("alice").initialize().await;
        assert_eq!(answer.status, 502, "{host} {certificate:?}");
        assert_eq!(
            answer.json()["error"]["data"]["reason"],
            "server-unreachable"
        );
        assert!(tap.connections() > 0);
        let heard = tap.heard();
        assert!(
            !heard.contains("sesame") && !heard.contains("mcp"),
            "{heard}"
        );
    }
}

/// What is no answer is told as of a server of one's own, and nobody else's conversation is harmed by it.
#[tokio::test]
async fn what_an_upstream_answers_wrongly_has_its_own_answer() {
    let upstream = Upstream::start(&[]);
    let (acceptor, ca) = tls();
    let tap = Tap::before(upstream.port, Some(acceptor)).await;
    let house = house()
        .remote(
            &format!("https://localhost:{}/mcp", tap.port),
            "ca-file = \"/etc/thv/ca.pem\"\n",
        )
        .also("ca.pem", std::fs::read_to_string(ca).unwrap())
        .open()
        .await;
    each_has_its_own(&house).await;
}

/// A missing credential is a misconfiguration, not a call without one.
#[tokio::test]
async fn without_its_credential_nothing_is_said_to_an_upstream() {
    let upstream = Upstream::start(&[]);
    let tap = Tap::before(upstream.port, None).await;
    let url = format!("http://127.0.0.1:{}/mcp", tap.port);
    let house = house()
        .remote(&url, "authorization = { credential = \"up\" }")
        .open()
        .await;
    assert_eq!(house.caller("alice").initialize().await.status, 503);
    let told =
        |record: &String| record.contains("upstream.authorization") && record.contains("`up`");
    assert!(
        house.records.all().iter().any(told),
        "{:#?}",
        house.records.all()
    );
    assert_eq!(tap.connections(), 0);
}

/// tok-100: an upstream that points elsewhere is not followed, to its own origin or another.
#[tokio::test]
async fn a_redirect_of_an_upstream_is_not_followed() {
    let upstream = Upstream::start(&[]);
    let elsewhere = Tap::before(upstream.port, None).await;
    let house = house()
        .remote(&upstream.url(), "authorization = { credential = \"up\" }")
        .credential("up", "Basic c2VzYW1l")
        .open()
        .await;
    let alice = house.session("alice").await;
    for to in [
        format!("http://127.0.0.1:{}/mcp", elsewhere.port),
        "/other".to_owned(),
    ] {
        let answer = alice.call("redirect", json!({ "to": to })).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json()["error"]["data"]["reason"], "server-refused");
        assert_eq!(answer.header("location"), None);
    }
    assert_eq!(elsewhere.connections(), 0);
    let seen: Vec<Value> =
        serde_json::from_str(&alice.call("seen", json!({})).await.said()).unwrap();
    assert!(seen.iter().all(|it| it["path"] == "/mcp"));
    assert!(
        seen.iter()
            .all(|it| header(it, "authorization") == Some("Basic c2VzYW1l"))
    );
}

/// fault-29: an upstream that is away is told as such, and is asked again by the next.
#[tokio::test]
async fn an_upstream_that_is_away_may_come_back() {
    let upstream = Upstream::start(&[]);
    let port = upstream.port.to_string();
    let house = house().remote(&upstream.url(), "").open().await;
    let alice = house.session("alice").await;
    drop(upstream);
    let answer = alice.call("echo", json!({})).await;
    assert!(
        answer.json()["error"]["data"]["reason"].is_string(),
        "{}",
        answer.text()
    );
    let mut bob = house.caller("bob");
    let answer = bob.initialize().await;
    assert_eq!(answer.status, 502);
    assert_eq!(
        answer.json()["error"]["data"]["reason"],
        "server-unreachable"
    );
    let _back = Upstream::at(&port, &[]);
    assert_eq!(bob.initialize().await.status, 200);
    assert_eq!(bob.call("echo", json!({})).await.said(), "{}");
    // Hers is not known there any more.
    assert_eq!(
        alice.call("echo", json!({})).await.json()["error"]["data"]["reason"],
        "server-ended"
    );
}

/// A call that takes too long is cancelled at the upstream, and the others go on.
#[tokio::test]
async fn a_slow_upstream_holds_up_nobody_else() {
    let upstream = Upstream::start(&[]);
    let house = house()
        .remote(&upstream.url(), "")
        .with("[limits]\ncall-timeout = \"1s\"\n")
        .open()
        .await;
    let (alice, bob) = (house.session("alice").await, house.session("bob").await);
    let slow = alice.begins("hang", json!({}));
    assert_eq!(bob.call("echo", json!({})).await.said(), "{}");
    let slow = slow.await.unwrap();
    assert_eq!(
        (slow.status, &slow.json()["error"]["data"]["reason"]),
        (200, &json!("timeout"))
    );
    // The upstream can only be asked.
    timeout(PATIENCE, async {
        while !alice
            .call("seen", json!({}))
            .await
            .said()
            .contains("notifications/cancelled")
        {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

/// A stateless upstream, and a legacy one behind modern clients; the server's own stream, too.
#[tokio::test]
async fn both_eras_of_an_upstream_are_spoken_to() {
    for arguments in [&["--modern"][..], &[], &["--stateless"], &["--no-stream"]] {
        let upstream = Upstream::start(arguments);
        let house = house().remote(&upstream.url(), "").open().await;
        let alice = house.caller("alice");
        assert_eq!(
            tool(&alice, "echo", json!({ "n": 1 })).await.said(),
            "{\"n\": 1}",
            "{arguments:?}"
        );
        let list = ask_modern(&alice, "tools/list", None, json!({})).await;
        assert!(list.json()["result"]["tools"].is_array());
        if arguments == ["--modern"] {
            continue;
        }
        let bob = house.session("bob").await;
        let note = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        assert_eq!(bob.post(note).await.status, 202);
        assert_eq!(
            bob.call("progress", json!({})).await.json()["result"]["content"][0]["text"],
            "done"
        );
        if arguments.is_empty() {
            let mut own = Events::open(house.address, &bob.bytes("GET", "")).await;
            own.field("id: ").await;
            bob.call("announce", json!({})).await;
            assert_eq!(
                own.next().await["method"],
                "notifications/tools/list_changed"
            );
        }
    }
}

/// RFC 8693: each caller's token becomes one of the upstream's, asked for once, and no other is seen there.
#[tokio::test]
async fn a_callers_token_is_exchanged_for_one_of_the_upstreams() {
    let upstream = Upstream::start(&[]);
    let tap = Tap::before(upstream.port, None).await;
    let provider = Provider::start(Box::new(|request, _| (200, token_for(request, 300)))).await;
    let url = format!("http://127.0.0.1:{}/mcp", tap.port);
    let house = house()
        .remote(&url, &provider.upstream())
        .credential("thv-client", "a secret:\n")
        .open()
        .await;
    let (alice, bob) = (house.session("alice").await, house.session("bob").await);
    let calls = (0..8).map(|n| {
        let alice = alice.clone();
        tokio::spawn(async move { alice.post(&call(n, "echo", json!({}))).await.said() })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.unwrap(), "{}");
    }
    assert_eq!(tool(&bob, "echo", json!({})).await.said(), "{}");
    let seen: Vec<Value> =
        serde_json::from_str(&alice.call("seen", json!({})).await.said()).unwrap();
    for request in &seen {
        let whose = match header(request, "mcp-session-id") {
            Some(session) if session.starts_with("s0-") => "Bearer up-alice",
            Some(_) => "Bearer up-bob",
            None => continue,
        };
        assert_eq!(header(request, "authorization"), Some(whose));
    }
    let asked = provider.asked();
    assert_eq!(asked.len(), 2, "once for each: {asked:#?}");
    for part in [
        "authorization: Basic dGh2OmElMjBzZWNyZXQlM0E=\r\n",
        "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&",
        "subject_token_type=urn%3Aietf%3Aparams%3Aoauth%3Atoken-type%3Aaccess_token&",
        "&audience=up",
        "&scope=read%20write",
    ] {
        assert!(asked[0].contains(part), "{part}: {}", asked[0]);
    }
    let heard = tap.heard();
    for caller in [&alice, &bob] {
        let token = caller.token.as_deref().unwrap();
        for part in token.split('.').skip(1) {
            assert!(!heard.contains(part));
        }
    }
}

/// A token that has ended is not used: the provider is asked again.
#[tokio::test]
async fn an_exchanged_token_is_used_as_long_as_it_lives() {
    let upstream = Upstream::start(&[]);
    let provider = Provider::start(Box::new(|_, count| {
        let answer = json!({ "access_token": format!("up-{count}"), "token_type": "bearer", "expires_in": 0 });
        (200, answer.to_string())
    }))
    .await;
    let house = house()
        .remote(&upstream.url(), &provider.upstream())
        .credential("thv-client", "secret")
        .open()
        .await;
    let alice = house.session("alice").await;
    alice.call("echo", json!({})).await;
    let seen: Vec<Value> =
        serde_json::from_str(&alice.call("seen", json!({})).await.said()).unwrap();
    let shown: Vec<_> = seen
        .iter()
        .filter_map(|it| header(it, "authorization"))
        .collect();
    assert_eq!(shown, ["Bearer up-1", "Bearer up-2", "Bearer up-3"]);
}

/// What a caller's conversation has shown its upstream, in order and without repetition.
async fn shown(caller: &Caller) -> Vec<String> {
    let seen = caller.call("seen", json!({})).await.said();
    let seen: Vec<Value> = serde_json::from_str(&seen).unwrap();
    let mut shown: Vec<String> = Vec::new();
    for request in &seen {
        let next = header(request, "authorization").unwrap();
        if shown.last().is_none_or(|last| last != next) {
            shown.push(next.to_owned());
        }
    }
    shown
}

/// The tokens are numbered as they are asked for, whoever they are for.
async fn numbered(plan: impl FnOnce(Plan) -> Plan) -> (Upstream, Provider, House) {
    let upstream = Upstream::start(&[]);
    let provider = Provider::start(Box::new(|request, count| {
        let token = format!("up-{}-{count}", subject(request));
        let answer = json!({ "access_token": token, "token_type": "Bearer", "expires_in": 300 });
        (200, answer.to_string())
    }))
    .await;
    let house = house()
        .remote(&upstream.url(), &provider.upstream())
        .credential("thv-client", "secret");
    let house = plan(house).open().await;
    (upstream, provider, house)
}

/// A token is used for as long as its provider has said, less what a call may take; then the next call asks for
/// another, in the same conversation with the upstream.
#[tokio::test]
async fn an_exchanged_token_is_asked_for_anew_before_it_ends() {
    let offset = Arc::new(AtomicU64::new(0));
    let (read, system) = (offset.clone(), Clock::system());
    let clock = Clock::new(move || system.now() + read.load(Ordering::Relaxed));
    let (_upstream, provider, house) = numbered(|plan| plan.clock(clock)).await;
    let alice = house.session("alice").await;
    for (seconds, asked) in [(0, 1), (260, 1), (275, 2), (500, 2), (560, 3)] {
        offset.store(seconds, Ordering::Relaxed);
        assert_eq!(
            alice.call("echo", json!({})).await.said(),
            "{}",
            "{seconds}"
        );
        assert_eq!(provider.asked().len(), asked, "{seconds}");
    }
    let told = ["up-alice-1", "up-alice-2", "up-alice-3"].map(|token| format!("Bearer {token}"));
    assert_eq!(shown(&alice).await, told);
}

/// What the upstream does not accept is asked for anew, for its owner alone, and not at each call: a client hears
/// that its server has refused, and nothing of why.
#[tokio::test]
async fn a_token_that_the_upstream_refuses_is_asked_for_anew() {
    let (_upstream, provider, house) = numbered(|plan| plan).await;
    let (alice, bob) = (house.session("alice").await, house.session("bob").await);
    let refused = json!({ "status": 401 });
    for _ in 0..3 {
        let answer = alice.call("status", refused.clone()).await;
        assert_eq!(
            (answer.status, &answer.json()["error"]["data"]["reason"]),
            (200, &json!("server-refused"))
        );
        assert_eq!(answer.header("www-authenticate"), None);
    }
    // One that is new was refused for another reason.
    assert_eq!(provider.asked().len(), 2);
    pass(Duration::from_secs(6)).await;
    let again = alice.call("status", refused).await;
    assert_eq!(again.json()["error"]["data"]["reason"], "server-refused");
    assert_eq!(alice.call("echo", json!({})).await.said(), "{}");
    assert_eq!(bob.call("echo", json!({})).await.said(), "{}");
    let asked = provider.asked();
    let subjects: Vec<_> = asked.iter().map(|request| subject(request)).collect();
    assert_eq!(subjects, ["alice", "bob", "alice"]);
    let all = shown(&alice).await;
    assert_eq!(all.last().unwrap(), "Bearer up-alice-3", "{all:?}");
    assert!(all.contains(&"Bearer up-bob-2".to_owned()), "{all:?}");
    assert!(
        house
            .records
            .have(&["THV_EVENT=outcome ", "server-refused"])
    );
}

/// What the provider says no to, or cannot be asked, is told in words, and the upstream hears nothing.
#[tokio::test]
async fn a_token_that_is_not_exchanged_goes_nowhere() {
    let refused: Reply = Box::new(|_, _| (400, r#"{"error":"invalid_target"}"#.to_owned()));
    let unwell: Reply = Box::new(|_, _| (500, "{}".to_owned()));
    let nonsense: Reply = Box::new(|_, _| (200, "[]".to_owned()));
    let bound: Reply = Box::new(|_, _| {
        (
            200,
            r#"{"access_token":"x","token_type":"DPoP"}"#.to_owned(),
        )
    });
    let same: Reply = Box::new(|request, _| {
        let token = request
            .split("subject_token=")
            .nth(1)
            .unwrap()
            .split('&')
            .next()
            .unwrap();
        (
            200,
            json!({ "access_token": token, "token_type": "Bearer" }).to_string(),
        )
    });
    let split: Reply = Box::new(|_, _| {
        (
            200,
            json!({ "access_token": "a\r\nX-Evil: 1", "token_type": "Bearer" }).to_string(),
        )
    });
    for (reply, status, reason) in [
        (refused, 502, "exchange-refused"),
        (unwell, 503, "provider-unavailable"),
        (nonsense, 502, "exchange-refused"),
        (bound, 502, "exchange-refused"),
        (same, 502, "exchange-refused"),
        (split, 502, "exchange-refused"),
    ] {
        let upstream = Upstream::start(&[]);
        let tap = Tap::before(upstream.port, None).await;
        let provider = Provider::start(reply).await;
        let url = format!("http://127.0.0.1:{}/mcp", tap.port);
        let house = house()
            .remote(&url, &provider.upstream())
            .credential("thv-client", "secret")
            .open()
            .await;
        let mut alice: Caller = house.caller("alice");
        let answer = alice.initialize().await;
        assert_eq!(answer.status, status, "{}", answer.text());
        let error = &answer.json()["error"];
        assert_eq!(error["data"]["reason"], reason);
        assert!(
            error["message"]
                .as_str()
                .unwrap()
                .starts_with("the provider")
        );
        assert_eq!(answer.header("retry-after").is_some(), status == 503);
        assert_eq!(tool(&alice, "echo", json!({})).await.status, status);
        assert_eq!(tap.connections(), 0);
        // What has just failed is not asked again at once.
        assert_eq!(provider.asked().len(), 1);
        let outcomes = house.records.all();
        assert!(
            outcomes
                .iter()
                .any(|record| record.contains("outcome") && record.contains(reason)),
            "{outcomes:#?}"
        );
    }
}

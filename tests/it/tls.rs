//! TLS on the gateway's own socket: who is let in, who is told to use it, and new certificates.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    faults::pass,
    house::{Caller, House, Plan, call, house, initialize},
    wire::{self, PATIENCE},
};

const TLS: &str =
    "[tls]\ncertificate = \"/etc/thv/tls/chain.pem\"\nkey = \"/etc/thv/tls/key.pem\"\n";

/// Puts a pair of tests/tls where the house looks for one, each file in one step.
fn install(root: &Path, certificate: &str, key: &str) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls");
    let to = root.join("etc/thv/tls");
    fs::create_dir_all(&to).unwrap();
    for (file, name, mode) in [(certificate, "chain.pem", 0o644), (key, "key.pem", 0o600)] {
        let new = to.join(format!("{name}.new"));
        fs::copy(from.join(file), &new).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(mode)).unwrap();
        fs::rename(&new, to.join(name)).unwrap();
    }
}

pub fn secured() -> Plan {
    house()
        .with(TLS)
        .before(|root| install(root, "localhost.pem", "localhost.key"))
}

/// A client that believes these certificates and offers these protocols.
fn client(trusted: &[&str], protocols: &[&str]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    for file in trusted {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/tls")
            .join(file);
        roots
            .add(CertificateDer::from_pem_file(file).unwrap())
            .unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols
        .iter()
        .map(|name| name.as_bytes().to_vec())
        .collect();
    TlsConnector::from(Arc::new(config))
}

async fn connect(house: &House, client: &TlsConnector) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(house.address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    timeout(PATIENCE, client.connect(name, stream))
        .await
        .expect("no handshake in time")
}

/// Whether the certificate that is shown now is one of these.
async fn shows(house: &House, trusted: &str) -> bool {
    connect(house, &client(&[trusted], &[])).await.is_ok()
}

fn first(caller: &Caller) -> Vec<u8> {
    caller.bytes("POST", &initialize("2025-11-25"))
}

/// What is agreed on is spoken: HTTP/1.1, HTTP/2, and the older one where nothing is.
#[tokio::test]
async fn the_protocol_is_the_one_that_was_agreed_on() {
    let house = secured().open().await;
    let alice = house.caller("alice");
    for offered in [&[][..], &["http/1.1"]] {
        let stream = connect(&house, &client(&["ca.pem"], offered))
            .await
            .unwrap();
        let answer = wire::ask(stream, &first(&alice)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    for offered in [&["h2"][..], &["h2", "http/1.1"]] {
        let stream = connect(&house, &client(&["ca.pem"], offered))
            .await
            .unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut requests, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        let request = Request::post(format!("https://{}/mcp", house.address))
            .header("authorization", format!("Bearer {}", house.token("alice")))
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .body(Full::<bytes::Bytes>::from(initialize("2025-11-25")))
            .unwrap();
        let answer = timeout(PATIENCE, requests.send_request(request))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(answer.status(), 200);
        assert!(answer.into_body().collect().await.unwrap().to_bytes().len() > 10);
    }
    // Where nothing is in common, nothing is spoken.
    assert!(
        connect(&house, &client(&["ca.pem"], &["spdy/3"]))
            .await
            .is_err()
    );
    // HTTP/2 has to be agreed on.
    let mut stream = connect(&house, &client(&["ca.pem"], &["http/1.1"]))
        .await
        .unwrap();
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 400"));
}

/// A client that speaks in the clear is told so, whatever it asks, and nothing is done for it.
#[tokio::test]
async fn plain_http_to_a_tls_port_is_told_to_use_tls() {
    let house = secured().open().await;
    let answer = wire::exchange(house.address, &first(&house.caller("alice"))).await;
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("use https"), "{}", answer.text());
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(house.children_started(), 0);
    assert!(house.records.have(&["THV_REASON=bad-header"]));
}

/// fault-38: half-open connections and garbage are nobody's trouble but their own.
#[tokio::test]
async fn garbage_does_not_keep_others_out() {
    let house = secured().open().await;
    let mut kept = Vec::new();
    for number in 0..120 {
        let mut stream = TcpStream::connect(house.address).await.unwrap();
        let sent: &[u8] = match number % 4 {
            // Nothing; a handshake that does not go on; one that is none; an endless one.
            0 => b"",
            1 => b"\x16\x03\x01\x02\x00\x01",
            2 => b"\x16\x03\x01\x00\x05hello",
            _ => b"\x16\x03\x01\xff\xff",
        };
        stream.write_all(sent).await.unwrap();
        kept.push(stream);
    }
    let stream = connect(&house, &client(&["ca.pem"], &[])).await.unwrap();
    assert_eq!(
        wire::ask(stream, &first(&house.caller("alice")))
            .await
            .status,
        200
    );
}

/// A new pair counts for new connections, none of which fails meanwhile; a broken one does not count.
#[tokio::test]
async fn a_new_certificate_is_taken_without_a_failed_request() {
    let house = Arc::new(secured().open().await);
    assert!(shows(&house, "ca.pem").await && !shows(&house, "other.pem").await);
    let over = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    let mut asking = Vec::new();
    for _ in 0..4 {
        let (house, over, answered) = (house.clone(), over.clone(), answered.clone());
        asking.push(tokio::spawn(async move {
            let client = client(&["ca.pem", "other.pem"], &[]);
            let mut stranger = house.caller("alice");
            stranger.token = None;
            let request = stranger.bytes("POST", "{}");
            while !over.load(Ordering::Relaxed) {
                let stream = connect(&house, &client).await.expect("a handshake");
                assert_eq!(wire::ask(stream, &request).await.status, 401);
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    // A connection keeps what it began with.
    let mut old = connect(&house, &client(&["ca.pem"], &[])).await.unwrap();
    let install = |certificate: &str, key: &str| install(&house.root(), certificate, key);
    install("other.pem", "other.key");
    timeout(PATIENCE, async {
        while !shows(&house, "other.pem").await {}
    })
    .await
    .expect("no new certificate in time");
    let host = house.address.to_string();
    let plain = wire::request("GET", "/none", &[("Host", &host)], "");
    old.write_all(&plain).await.unwrap();
    let mut answer = Vec::new();
    old.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 404"));
    // One that is no pair, one that has ended, one that is nothing: the last good one stays.
    for (certificate, key) in [
        ("localhost.pem", "other.key"),
        ("expired.pem", "expired.key"),
        ("README.md", "localhost.key"),
    ] {
        install(certificate, key);
        let before = answered.load(Ordering::Relaxed);
        // Long enough for two looks of the gateway's, told by what is answered meanwhile.
        timeout(PATIENCE, async {
            for _ in 0..3 {
                pass(Duration::from_secs(1)).await;
                assert!(shows(&house, "other.pem").await, "{certificate}");
            }
            while answered.load(Ordering::Relaxed) == before {
                assert!(shows(&house, "other.pem").await, "{certificate}");
            }
        })
        .await
        .unwrap();
    }
    install("localhost.pem", "localhost.key");
    timeout(PATIENCE, async { while !shows(&house, "ca.pem").await {} })
        .await
        .expect("not mended in time");
    over.store(true, Ordering::Relaxed);
    for asked in asking {
        asked.await.expect("no request has failed");
    }
    assert!(answered.load(Ordering::Relaxed) > 10);
}

/// What lives is left alone when there is a new pair: a call that waits, a stream that is open and requests of HTTP/2
/// go on where they were, with the certificate that they began with; who comes now is shown the new one.
#[tokio::test]
async fn what_lives_goes_on_when_there_is_a_new_certificate() {
    let house = secured().open().await;
    let trusting = client(&["ca.pem"], &[]);
    let open = async || connect(&house, &trusting).await.unwrap();
    let mut alice = house.caller("alice");
    let opened = wire::ask(open().await, &first(&alice)).await;
    alice.session = opened.header("mcp-session-id").map(str::to_owned);
    let mut waits = open().await;
    let asks = call(7, "wait", json!({ "for": "x" }));
    waits.write_all(&alice.bytes("POST", &asks)).await.unwrap();
    waits.flush().await.unwrap();
    let mut own = BufReader::new(open().await);
    own.write_all(&alice.bytes("GET", "")).await.unwrap();
    own.flush().await.unwrap();
    until(&mut own, "data:").await;
    let stream = connect(&house, &client(&["ca.pem"], &["h2"])).await;
    let stream = TokioIo::new(stream.unwrap());
    let (mut requests, connection) = http2::handshake(TokioExecutor::new(), stream)
        .await
        .unwrap();
    tokio::spawn(connection);
    let seen = alice.bytes("POST", &call(8, "seen", json!({})));
    let is_asked = async { while !wire::ask(open().await, &seen).await.said().contains("wait") {} };
    timeout(PATIENCE, is_asked).await.unwrap();

    install(&house.root(), "other.pem", "other.key");
    timeout(PATIENCE, async {
        while !shows(&house, "other.pem").await {}
    })
    .await
    .expect("no new certificate in time");
    assert!(!shows(&house, "ca.pem").await);

    let newer = client(&["other.pem"], &[]);
    for (tool, arguments) in [("announce", json!({})), ("release", json!({ "for": "x" }))] {
        let stream = connect(&house, &newer).await.unwrap();
        let request = alice.bytes("POST", &call(9, tool, arguments));
        assert_eq!(wire::ask(stream, &request).await.status, 200, "{tool}");
    }
    until(&mut own, "notifications/tools/list_changed").await;
    let mut answer = Vec::new();
    let read = waits.read_to_end(&mut answer);
    timeout(PATIENCE, read).await.unwrap().unwrap();
    assert_eq!(wire::parse(&answer).said(), "released");
    let request = Request::post(format!("https://{}/mcp", house.address))
        .header("authorization", format!("Bearer {}", house.token("bob")))
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .body(Full::<bytes::Bytes>::from(initialize("2025-11-25")))
        .unwrap();
    let answer = timeout(PATIENCE, requests.send_request(request)).await;
    assert_eq!(answer.unwrap().unwrap().status(), 200);
}

/// Reads lines to one with this in it.
async fn until(stream: &mut BufReader<TlsStream<TcpStream>>, what: &str) {
    let mut line = String::new();
    while !line.contains(what) {
        line.clear();
        let read = timeout(PATIENCE, stream.read_line(&mut line)).await;
        assert_ne!(read.expect(what).unwrap(), 0, "{what}");
    }
}

/// A pair may come as credentials of the gateway's, and so may the next; half of a new one changes nothing.
#[tokio::test]
async fn a_pair_of_credentials_is_served_and_so_is_the_next() {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls");
    let text = |file: &str| fs::read_to_string(from.join(file)).unwrap();
    let house = house()
        .with("[tls]\ncertificate = { credential = \"chain\" }\nkey = { credential = \"key\" }\n")
        .credential("chain", &text("localhost.pem"))
        .credential("key", &text("localhost.key"))
        .open()
        .await;
    let stream = connect(&house, &client(&["ca.pem"], &[])).await.unwrap();
    let answer = wire::ask(stream, &first(&house.caller("alice"))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let put = |name: &str, file: &str| {
        let place = house.root().join("credentials");
        fs::write(place.join("new"), text(file)).unwrap();
        fs::rename(place.join("new"), place.join(name)).unwrap();
    };
    put("chain", "other.pem");
    // Long enough for two looks of the gateway's.
    for _ in 0..3 {
        pass(Duration::from_secs(1)).await;
        assert!(shows(&house, "ca.pem").await);
    }
    put("key", "other.key");
    timeout(PATIENCE, async {
        while !shows(&house, "other.pem").await {}
    })
    .await
    .expect("no new certificate in time");
    assert_eq!(house.children_started(), 1);
    // One that is not there is a problem, by its name.
    let house = crate::house::house()
        .with("[tls]\ncertificate = { credential = \"chain\" }\nkey = { credential = \"none\" }\n")
        .credential("chain", &text("localhost.pem"))
        .open()
        .await;
    house.records.wait_for("config-refused").await;
    // A drop-in may name it by now: it comes with a start.
    let cure = "`systemctl restart thv@it.service`";
    assert!(house.records.have(&["THV_CONFIG_KEY=tls", "none", cure]));
    assert_eq!(house.caller("alice").initialize().await.status, 503);
}

/// A key that others may read, or that is not there, is a problem of the configuration.
#[tokio::test]
async fn a_key_that_cannot_be_used_is_a_problem() {
    fn loose(root: &Path) {
        install(root, "localhost.pem", "localhost.key");
        let key = root.join("etc/thv/tls/key.pem");
        fs::set_permissions(key, fs::Permissions::from_mode(0o644)).unwrap();
    }
    fn another(root: &Path) {
        install(root, "localhost.pem", "other.key");
    }
    type Prepare = fn(&Path);
    let prepared: [(Prepare, &str); 3] = [
        (loose, "chmod"),
        (another, "no pair"),
        (|_| {}, "No such file"),
    ];
    for (prepare, word) in prepared {
        let house = house().with(TLS).before(prepare).open().await;
        house.records.wait_for("config-refused").await;
        let told = house.records.all().join("\n");
        assert!(told.contains(word), "{told}");
        assert!(told.contains("THV_CONFIG_KEY=tls"), "{told}");
        // Each is told in the language that it speaks.
        assert_eq!(house.caller("alice").initialize().await.status, 503);
        is_told_by_an_alert(&house).await;
    }
}

/// Where not even is known whether there is to be TLS, too.
#[tokio::test]
async fn a_file_that_cannot_be_read_is_told_of_in_the_words_of_tls() {
    let house = house().file("resorce = \"x\"\n").open().await;
    assert_eq!(house.caller("alice").initialize().await.status, 503);
    is_told_by_an_alert(&house).await;
    house.mend();
    assert_eq!(house.caller("alice").initialize().await.status, 200);
}

async fn is_told_by_an_alert(house: &House) {
    let client = client(&["ca.pem"], &[]);
    let error = connect(house, &client).await.unwrap_err();
    let error = error.into_inner().unwrap();
    assert_eq!(
        error.downcast_ref::<rustls::Error>(),
        Some(&rustls::Error::AlertReceived(
            rustls::AlertDescription::InternalError
        )),
        "{error}"
    );
}

/// A mistake elsewhere is told over TLS: clients get 503, not a broken handshake.
#[tokio::test]
async fn a_misconfigured_house_speaks_tls_all_the_same() {
    let house = secured().policy("permit (principal").open().await;
    let stream = connect(&house, &client(&["ca.pem"], &[])).await.unwrap();
    let answer = wire::ask(stream, &first(&house.caller("alice"))).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
}

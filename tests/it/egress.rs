//! A child's only way out: hosts that its configuration names, and nothing else.
//!
//! The hosts are real ones on loopback, reached by names that only the gateway's
//! resolver knows: what it was asked is what has left.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use serde_json::json;
use thv::egress::Resolver;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use crate::house::{
    Caller, House, Plan, field, house, in_a_process_of_its_own, is_in_a_process_of_its_own,
};

/// A host somewhere else.
struct Elsewhere {
    at: SocketAddr,
    /// First lines of what it was asked.
    heard: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
}

impl Elsewhere {
    async fn open() -> Self {
        Self::on(0, None).await
    }

    async fn with_tls() -> Self {
        Self::on(8443, Some(crate::remote::acceptor("localhost"))).await
    }

    async fn on(port: u16, tls: Option<TlsAcceptor>) -> Self {
        // An address for each, so that well-known ports are free.
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = std::process::id() * 64 + NEXT.fetch_add(1, Ordering::Relaxed);
        let [_, _, c, d] = number.to_be_bytes();
        let listener = TcpListener::bind((Ipv4Addr::new(127, 88, c, d), port))
            .await
            .unwrap();
        let (at, heard) = (listener.local_addr().unwrap(), Arc::default());
        let telling = Arc::clone(&heard);
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, heard) = (tls.clone(), Arc::clone(&telling));
                tokio::spawn(async move {
                    match tls {
                        None => answer(stream, heard).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                answer(stream, heard).await;
                            }
                        }
                    }
                });
            }
        });
        Self { at, heard, serving }
    }

    fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap().clone()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A very small web server: one answer to each line, whatever it is.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, heard: Arc<Mutex<Vec<String>>>) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
        let first = text.lines().next().unwrap_or_default().to_owned();
        let over = first.contains("HTTP/1.0") || text.contains("onnection: close");
        heard.lock().unwrap().push(first);
        let said =
            "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nContent-Type: text/plain\r\n\r\nreached";
        if stream.write_all(said.as_bytes()).await.is_err() || over {
            break;
        }
    }
    let _ = stream.shutdown().await;
}

/// A host, its door, and a house whose sandbox may reach it alone.
async fn one_allowed() -> (Elsewhere, String, Plan) {
    let host = Elsewhere::open().await;
    let names = Names::of(&[("allowed.test", host.at.ip())]);
    let door = format!("allowed.test:{}", host.at.port());
    let plan = house()
        .sandbox(&format!("egress = [\"{door} in 127.88.0.0/16\"]"))
        .resolver(names.resolver());
    (host, door, plan)
}

/// A resolver that knows these names alone, and what it was asked.
#[derive(Clone, Default)]
struct Names {
    known: Arc<Vec<(&'static str, IpAddr)>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Names {
    fn of(known: &[(&'static str, IpAddr)]) -> Self {
        Self {
            known: Arc::new(known.to_vec()),
            asked: Arc::default(),
        }
    }

    fn resolver(&self) -> Resolver {
        let names = self.clone();
        Resolver::new(move |name| {
            let found: Vec<_> = names
                .known
                .iter()
                .filter(|(known, _)| *known == name)
                .map(|(_, address)| *address)
                .collect();
            names.asked.lock().unwrap().push(name);
            async move { Ok(found) }
        })
    }

    fn asked(&self) -> Vec<String> {
        let mut asked = self.asked.lock().unwrap().clone();
        asked.sort();
        asked.dedup();
        asked
    }
}

struct Inside {
    house: House,
    caller: Caller,
}

impl Inside {
    async fn open(plan: Plan) -> Self {
        let house = plan.open().await;
        let caller = house.session("alice").await;
        Self { house, caller }
    }

    /// What came of a probe, and whether it got through.
    async fn tries(&self, probe: &str, argument: impl ToString) -> (bool, String) {
        let argument = argument.to_string();
        let answer = self
            .caller
            .call("probe", json!({ "probe": probe, "argument": argument }))
            .await;
        serde_json::from_str(&answer.said()).unwrap()
    }

    async fn works(&self, probe: &str, argument: impl ToString) -> String {
        let (through, what) = self.tries(probe, argument).await;
        assert!(through, "{probe}: {what}\n{:#?}", self.house.records.all());
        what
    }

    /// By Python's `requests`; says how often that was.
    async fn requests(&self, url: &str) -> usize {
        let (through, said) = self.tries("requests", url).await;
        if said.contains("not installed") {
            eprintln!("not proven here: {said}");
            return 0;
        }
        assert!(through && said == "reached", "{url}: {said}");
        1
    }

    /// Says this to a door and hears what comes back.
    async fn says(&self, to: &str, say: &str) -> (bool, String) {
        self.tries("says", json!({ "to": to, "say": say })).await
    }

    /// Asks the proxy; the whole answer.
    async fn connect(&self, target: &str) -> String {
        let say = format!("CONNECT {target} HTTP/1.1\r\n\r\n");
        self.says(PROXY, &say).await.1
    }

    /// Waits for as many egress records, and gives those of which this is part.
    async fn records(&self, part: &str, count: usize) -> Vec<String> {
        let words = ["THV_EVENT=egress ", part];
        self.house.records.wait_for_all(&words, count).await
    }
}

const PROXY: &str = "127.77.1.1:3128";
const NODE: &str = "/usr/bin/node";
const CURL: &str = "/usr/bin/curl";

fn is_there(program: &str) -> bool {
    let there = Path::new(program).exists();
    if !there {
        eprintln!("not proven here: there is no {program}");
    }
    there
}

/// probe-50…53, probe-55: an unmodified client of any kind reaches the one host, and nothing else is there.
#[tokio::test]
async fn one_named_host_is_reached_and_nothing_else() {
    let (host, other) = (Elsewhere::open().await, Elsewhere::open().await);
    let names = Names::of(&[
        ("allowed.test", host.at.ip()),
        ("other.test", other.at.ip()),
    ]);
    let (port, block) = (host.at.port(), host.at.ip());
    let inside = Inside::open(
        house()
            .sandbox(&format!("egress = [\"allowed.test:{port} in {block}\"]"))
            .resolver(names.resolver()),
    )
    .await;

    // Its doors are not the child's own (probe-63, probe-79).
    assert_eq!(inside.works("descriptors", "").await, "0 1 2 3");
    let url = format!("http://allowed.test:{port}/x");
    let door = format!("allowed.test:{port}");
    let (through, what) = inside.says(&door, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(through && what.ends_with("reached"), "{what}");
    assert_eq!(inside.works("fetch", &url).await, "reached");
    let mut reached = 2;
    if is_there(CURL) {
        let said = inside
            .works("run", json!([CURL, "-sS", "--max-time", "5", url]))
            .await;
        assert_eq!(said, "reached");
        reached += 1;
    }
    if is_there(NODE) {
        let script = format!(
            "fetch({url:?}).then(a => a.text()).then(t => {{ console.log(t); process.exit(0) }})"
        );
        let said = inside.works("run", json!([NODE, "-e", script])).await;
        assert_eq!(said, "reached\n");
        reached += 1;
    }
    reached += inside.requests(&url).await;
    assert_eq!(host.heard().len(), reached);

    // The others are there, seen from here, and not from inside.
    let outside = tokio::net::TcpStream::connect(other.at).await;
    assert!(
        outside.is_ok(),
        "the control failed, so this proves nothing"
    );
    for nowhere in [
        format!("other.test:{}", other.at.port()),
        format!("allowed.test:{}", if port == 9 { 10 } else { 9 }),
        format!("sub.allowed.test:{port}"),
        format!("allowed.test.evil.example:{port}"),
        other.at.to_string(),
        host.at.to_string(),
        inside.house.address.to_string(),
        PROXY.to_owned(),
        "169.254.169.254:80".to_owned(),
        "fd00:ec2::254:80".to_owned(),
        "::ffff:169.254.169.254:80".to_owned(),
        "metadata.google.internal:80".to_owned(),
        "192.0.2.1:443".to_owned(),
        "2606:4700::1111:443".to_owned(),
    ] {
        let (through, what) = inside.says(&nowhere, "GET / HTTP/1.0\r\n\r\n").await;
        assert!(!through, "{nowhere}: {what}");
    }
    assert_eq!(other.heard(), Vec::<String>::new());
    assert_eq!(names.asked(), ["allowed.test"]);

    let records = inside.records("THV_DECISION=allow", reached).await;
    assert_eq!(records.len(), reached, "{records:#?}");
    for record in records {
        for field in [
            format!("THV_EGRESS=allowed.test:{port} "),
            format!("THV_EGRESS_ADDR={} ", host.at),
            "THV_CHILD=1 ".to_owned(),
        ] {
            assert!(record.contains(&field), "{record}");
        }
        assert!(
            !record.contains("THV_BYTES_OUT=0") && !record.contains("THV_BYTES_IN=0"),
            "{record}"
        );
    }
}

/// probe-53: no name server is reached, whatever is asked, and the gateway's asks nobody.
#[tokio::test]
async fn no_question_to_a_name_server_leaves() {
    let server = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let names = Names::default();
    let inside = Inside::open(
        house()
            .sandbox("egress = [\"allowed.test:443\", \"*.wild.test:443\"]")
            .resolver(names.resolver()),
    )
    .await;
    for to in [
        format!("127.0.0.1:{port}"),
        "127.0.0.1:53".into(),
        "127.0.0.53:53".into(),
        "8.8.8.8:53".into(),
        "224.0.0.251:5353".into(),
        "::1:53".into(),
        "ff02::fb:5353".into(),
    ] {
        let (through, what) = inside.tries("datagram", &to).await;
        assert!(!through, "{to}: {what}");
    }
    for name in [
        "secret.evil.example",
        "secret.allowed.test",
        "secret.wild.test",
        "_dns.resolver.arpa",
    ] {
        let (through, what) = inside.tries("name", name).await;
        assert!(!through, "{name}: {what}");
    }
    assert_eq!(inside.works("name", "allowed.test").await, "127.77.0.1");
    let mut buffer = [0; 512];
    assert!(
        server.try_recv(&mut buffer).is_err(),
        "a question has arrived"
    );
    assert_eq!(names.asked(), Vec::<String>::new());
}

/// probe-54, probe-55, probe-51: what no line names is refused before anybody is asked for its address.
#[tokio::test]
async fn a_name_that_is_not_listed_is_refused_without_being_resolved() {
    let names = Names::default();
    let inside = Inside::open(
        house()
            .sandbox("egress = [\"allowed.test:443\", \"*.wild.test:443\"]")
            .resolver(names.resolver()),
    )
    .await;
    let targets = [
        "c2VjcmV0.evil.example:443",
        "allowed.test:80",
        "allowed.test.evil.example:443",
        "evilallowed.test:443",
        "sub.allowed.test:443",
        "wild.test:443",
        "evilwild.test:443",
        "a.wild.test.evil:443",
        "a.wild.test:22",
        "xn--allowed-.test:443",
        "[::]:443",
        "[::ffff:169.254.169.254]:443",
        "127.0.0.1:443",
        "2130706433:443",
        "0x7f000001:443",
        "0177.0.0.1:443",
        "169.254.169.254:443",
        "metadata.google.internal:443",
        "localhost:443",
        "user@allowed.test:443",
        "allowed%2etest:443",
        "allowed.test/:443",
        "127.77.0.1:443",
    ];
    for target in targets {
        let answer = inside.connect(target).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{target}: {answer}");
    }
    for target in [
        "allowed.test\0:443",
        "аllowed.test:443",
        "allowed.test",
        "allowed.test:+443",
        "a b:443",
    ] {
        let answer = inside
            .connect(
                &target
                    .chars()
                    .map(|c| if (c as u32) < 256 { c } else { 'ð' })
                    .collect::<String>(),
            )
            .await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{target}: {answer}");
    }
    assert_eq!(names.asked(), Vec::<String>::new());
    let denied = inside
        .records("THV_REASON=egress-not-listed", targets.len())
        .await;
    assert!(
        denied
            .iter()
            .all(|record| record.contains("THV_DECISION=deny"))
    );
    assert!(
        denied[0].contains("THV_EGRESS=c2VjcmV0.evil.example:443 "),
        "{}",
        denied[0]
    );
}

/// probe-58, probe-59: plain HTTP, other Hosts, bodies and what comes too early.
#[tokio::test]
async fn the_proxy_reads_requests_in_one_way_only() {
    let host = Elsewhere::open().await;
    let names = Names::of(&[("a.wild.test", host.at.ip())]);
    let target = format!("a.wild.test:{}", host.at.port());
    let inside = Inside::open(
        house()
            .sandbox(&format!(
                "egress = [\"*.{} in 127.88.0.0/16\"]",
                &target[2..]
            ))
            .resolver(names.resolver()),
    )
    .await;
    for (say, status) in [
        (
            format!("GET http://{target}/ HTTP/1.1\r\nHost: {target}\r\n\r\n"),
            405,
        ),
        (
            format!("CONNECT {target} HTTP/1.1\r\nHost: evil.test:443\r\n\r\n"),
            400,
        ),
        (
            format!("CONNECT {target} HTTP/1.1\r\nContent-Length: 4\r\n\r\nGET "),
            400,
        ),
        (
            format!("CONNECT {target} HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"),
            400,
        ),
        (
            format!("CONNECT {target} HTTP/1.1\r\n\r\nCONNECT {target} HTTP/1.1\r\n\r\n"),
            400,
        ),
        (
            format!("CONNECT {target} HTTP/1.1\r\n\r\nGET / HTTP/1.0\r\n\r\n"),
            400,
        ),
        (
            format!("CONNECT {target} HTTP/1.1\nHost: {target}\n\n"),
            400,
        ),
    ] {
        let (_, answer) = inside.says(PROXY, &say).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{say:?}: {answer}"
        );
    }
    assert_eq!(
        (host.heard(), names.asked()),
        (Vec::<String>::new(), Vec::<String>::new())
    );
    inside.records("THV_REASON=egress-request", 7).await;
    // And one that can be read.
    assert!(
        inside
            .connect(&target.to_uppercase())
            .await
            .starts_with("HTTP/1.1 200 ")
    );
}

/// probe-57: TLS for the name that was allowed, by its door and by the proxy; and nothing else on a port for TLS.
#[tokio::test]
async fn tls_is_for_the_allowed_name_alone() {
    let host = Elsewhere::with_tls().await;
    let names = Names::of(&[
        ("allowed.test", host.at.ip()),
        ("a.wild.test", host.at.ip()),
    ]);
    let inside = Inside::open(
        house()
            .sandbox("egress = [\"allowed.test:8443 in 127.88.0.0/16\", \"*.wild.test:8443 in 127.88.0.0/16\"]")
            .resolver(names.resolver()),
    )
    .await;
    let direct = |name: &str| json!({ "to": "allowed.test:8443", "name": name });
    let proxied = |name: &str| json!({ "to": PROXY, "connect": "a.wild.test:8443", "name": name });
    assert!(
        inside
            .works("tls", direct("allowed.test"))
            .await
            .ends_with("reached")
    );
    assert!(
        inside
            .works("tls", proxied("a.wild.test"))
            .await
            .ends_with("reached")
    );
    assert_eq!(
        inside.works("fetch", "https://allowed.test:8443/").await,
        "reached"
    );
    assert_eq!(
        inside.works("fetch", "https://a.wild.test:8443/").await,
        "reached"
    );
    let mut reached = 4;
    for url in ["https://allowed.test:8443/", "https://a.wild.test:8443/"] {
        if is_there(CURL) {
            let said = inside
                .works("run", json!([CURL, "-sSk", "--max-time", "5", url]))
                .await;
            assert_eq!(said, "reached");
            reached += 1;
        }
        if is_there(NODE) {
            let script = format!(
                "process.env.NODE_TLS_REJECT_UNAUTHORIZED = '0'; \
                 fetch({url:?}).then(a => a.text()).then(t => {{ console.log(t); process.exit(0) }}, e => {{ console.error(e); process.exit(1) }})"
            );
            let (through, said) = inside.tries("run", json!([NODE, "-e", script])).await;
            // Its `fetch` knows proxies from 22.21 and 24.0 on.
            assert!(
                through && said.ends_with("reached\n")
                    || url.contains("wild") && said.contains("fetch failed"),
                "{said}"
            );
            reached += usize::from(through);
        }
    }
    for url in ["https://allowed.test:8443/", "https://a.wild.test:8443/"] {
        reached += inside.requests(url).await;
    }
    assert_eq!(host.heard().len(), reached);
    for name in ["evil.test", "other.wild.test", "wild.test", "127.0.0.1"] {
        for way in [direct(name), proxied(name)] {
            let (through, what) = inside.tries("tls", &way).await;
            assert!(!through, "{way}: {what}");
        }
    }
    let (_, said) = inside
        .says("allowed.test:8443", "GET / HTTP/1.0\r\n\r\n")
        .await;
    assert!(!said.contains("HTTP"), "{said}");
    assert_eq!(
        host.heard().len(),
        reached,
        "what was said for another name has arrived"
    );
    let denied = inside.records("THV_REASON=egress-name", 9).await;
    assert!(
        denied.iter().all(
            |record| record.contains("THV_DECISION=deny") && record.contains("THV_BYTES_OUT=0")
        ),
        "{denied:#?}"
    );
}

/// probe-51, probe-56: an allowed name that leads inside is refused, and nobody is dialled.
#[tokio::test]
async fn an_allowed_name_that_leads_inside_is_refused() {
    let host = Elsewhere::open().await;
    let port = host.at.port();
    let leads = [
        ("a.in.test", "127.0.0.1"),
        ("b.in.test", "10.0.0.1"),
        ("c.in.test", "169.254.169.254"),
        ("d.in.test", "fd00:ec2::254"),
        ("e.in.test", "::ffff:169.254.169.254"),
        ("f.in.test", "64:ff9b::a9fe:a9fe"),
        ("g.in.test", "2002:a9fe:a9fe::"),
        ("h.in.test", "2001::1"),
        ("i.in.test", "::1"),
        ("j.in.test", "0.0.0.0"),
    ];
    let mut known: Vec<(&str, IpAddr)> = leads
        .iter()
        .map(|(name, address)| (*name, address.parse().unwrap()))
        .collect();
    // Here it is, and its line does not say so.
    known.push(("allowed.test", host.at.ip()));
    let names = Names::of(&known);
    let inside = Inside::open(
        house()
            .sandbox(&format!(
                "egress = [\"*.in.test:{port}\", \"allowed.test:{port}\"]"
            ))
            .resolver(names.resolver()),
    )
    .await;
    for (name, address) in leads {
        let answer = inside.connect(&format!("{name}:{port}")).await;
        assert!(
            answer.starts_with("HTTP/1.1 502 ") && answer.contains("no public address"),
            "{address}: {answer}"
        );
    }
    let (_, said) = inside
        .says(&format!("allowed.test:{port}"), "GET / HTTP/1.0\r\n\r\n")
        .await;
    assert!(!said.contains("reached"), "{said}");
    let denied = inside
        .records("THV_REASON=egress-address", leads.len() + 1)
        .await;
    assert!(
        denied
            .iter()
            .all(|record| record.contains("THV_DECISION=deny")
                && !record.contains("THV_EGRESS_ADDR"))
    );
    assert_eq!(host.heard(), Vec::<String>::new());
}

/// probe-60: connections and bytes of one child are counted, and end somewhere.
#[tokio::test]
async fn one_child_has_so_many_connections_and_so_many_bytes() {
    let (_host, door, plan) = one_allowed().await;
    let inside =
        Inside::open(plan.with("[limits]\negress-connections = 3\negress-bytes = \"64K\"\n")).await;
    assert_eq!(
        inside
            .works("hold", json!({ "to": door, "count": 5 }))
            .await,
        "3"
    );
    inside.records("THV_REASON=egress-limit", 2).await;
    // Another session has its own.
    let bob = Inside {
        caller: inside.house.session("bob").await,
        house: house().open().await,
    };
    let upload = "x".repeat(128 << 10);
    let _ = bob
        .tries("says", json!({ "to": door, "say": upload }))
        .await;
    let cut = inside.records("THV_REASON=egress-limit", 3).await;
    let cut = cut
        .iter()
        .find(|record| record.contains("THV_CHILD=2 "))
        .unwrap();
    let sent: usize = field(cut, "THV_BYTES_OUT").unwrap().parse().unwrap();
    assert!(sent <= 64 << 10, "{cut}");
    // And no more after it.
    let (_, said) = bob.says(&door, "GET / HTTP/1.0\r\n\r\n").await;
    assert!(!said.contains("reached"), "{said}");
}

/// probe-60: a child that opens connections without end is slowed down, and the record of each is there.
#[tokio::test]
async fn a_flood_of_connections_is_recorded_and_slowed_down() {
    let names = Names::default();
    let inside = Inside::open(
        house()
            .sandbox("egress = [\"*.wild.test:443\"]")
            .resolver(names.resolver()),
    )
    .await;
    let since = std::time::Instant::now();
    inside
        .works("hold", json!({ "to": PROXY, "count": 200 }))
        .await;
    assert!(since.elapsed().as_millis() > 1_500, "{:?}", since.elapsed());
    inside.records("THV_DECISION=deny", 200).await;
}

/// probe-61, probe-81: each session has doors of its own, and nobody else's loopback.
#[tokio::test]
async fn no_session_has_another_sessions_way_out() {
    let (_host, door, plan) = one_allowed().await;
    let alice = Inside::open(plan).await;
    let bob = Inside {
        caller: alice.house.session("bob").await,
        house: house().open().await,
    };
    alice.works("listen", "7777").await;
    assert!(alice.tries("tcp", "127.0.0.1:7777").await.0);
    assert!(!bob.tries("tcp", "127.0.0.1:7777").await.0);
    for (who, child) in [(&alice, 1), (&bob, 2)] {
        assert!(
            who.says(&door, "GET / HTTP/1.0\r\n\r\n")
                .await
                .1
                .ends_with("reached")
        );
        let records = alice.records(&format!("THV_CHILD={child} "), 1).await;
        assert_eq!(records.len(), 1, "{records:#?}");
    }
    // A server without `egress` has no door at all.
    let none = Inside::open(house()).await;
    assert!(!none.says(PROXY, "x").await.0 && !none.says("127.77.0.1:443", "x").await.0);
}

#[tokio::test]
async fn a_fixed_forward_leads_to_its_host() {
    let host = Elsewhere::open().await;
    let names = Names::of(&[("db.test", host.at.ip())]);
    let inside = Inside::open(
        house()
            .sandbox(&format!(
                "forward = [\"127.0.0.1:80=db.test:{0} in {1}\", \"[::1]:5432={2}\"]",
                host.at.port(),
                host.at.ip(),
                host.at
            ))
            .resolver(names.resolver()),
    )
    .await;
    for door in ["localhost:80", "127.0.0.1:80", "::1:5432"] {
        let (through, said) = inside.says(door, "GET / HTTP/1.0\r\n\r\n").await;
        assert!(through && said.ends_with("reached"), "{door}: {said}");
    }
    assert_eq!(names.asked(), ["db.test"]);
    inside.records(&format!("THV_EGRESS={} ", host.at), 1).await;
}

/// fault-49: a host that is down is said to be, and the others are not.
#[tokio::test]
async fn a_host_that_is_down_harms_no_other() {
    let (up, down) = (Elsewhere::open().await, Elsewhere::open().await);
    let names = Names::of(&[
        ("up.wild.test", up.at.ip()),
        ("down.wild.test", down.at.ip()),
    ]);
    let lines: Vec<_> = [&up, &down]
        .map(|host| format!("\"*.wild.test:{} in 127.88.0.0/16\"", host.at.port()))
        .to_vec();
    let plan = house().sandbox(&format!("egress = [{}]", lines.join(", ")));
    let inside = Inside::open(plan.resolver(names.resolver())).await;
    let closed = down.at;
    down.serving.abort();
    while tokio::net::TcpStream::connect(closed).await.is_ok() {}
    let target = |name: &str, host: SocketAddr| format!("{name}.wild.test:{}", host.port());
    for name in ["down", "nowhere"] {
        let answer = inside.connect(&target(name, closed)).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    }
    assert!(
        inside
            .connect(&target("up", up.at))
            .await
            .starts_with("HTTP/1.1 200 ")
    );
    for reason in ["egress-unreachable", "egress-unresolved"] {
        let records = inside.records(&format!("THV_REASON={reason} "), 1).await;
        assert!(records[0].contains("THV_DECISION=allow"), "{records:#?}");
    }
}

/// What the child had open when it ended is on record before its end is.
#[tokio::test]
async fn the_end_of_a_child_ends_its_connections() {
    let (_host, door, plan) = one_allowed().await;
    let inside = Inside::open(plan).await;
    assert_eq!(
        inside
            .works("hold", json!({ "to": door, "count": 2 }))
            .await,
        "2"
    );
    assert_eq!(inside.records("", 0).await.len(), 0, "they are still open");
    inside.caller.send("DELETE", "").await;
    inside.house.records.wait_for("child-exited").await;
    let all = inside.house.records.all();
    let at = |kind: &str| {
        all.iter()
            .rposition(|record| record.contains(&format!("THV_EVENT={kind} ")))
            .unwrap()
    };
    assert!(at("egress") < at("child-exited"), "{all:#?}");
    assert_eq!(inside.records("THV_DECISION=allow", 2).await.len(), 2);
}

/// `network = "host"`, which needs `dangerous = true`, is what it says.
#[tokio::test]
async fn the_hosts_network_is_the_hosts_network() {
    let host = Elsewhere::open().await;
    let inside = Inside::open(house().sandbox("network = \"host\"\ndangerous = true")).await;
    let (through, said) = inside
        .says(&host.at.to_string(), "GET / HTTP/1.0\r\n\r\n")
        .await;
    assert!(through && said.ends_with("reached"), "{said}");
    assert!(
        inside
            .works("name", "localhost")
            .await
            .contains("127.0.0.1")
    );
    // All the rest of the sandbox is around it.
    assert!(!inside.tries("open", "/etc/shadow").await.0);
}

/// probe-53, probe-54: at a real name server nothing arrives but the names that lines mean.
#[test]
fn nothing_but_allowed_names_arrives_at_a_real_name_server() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: a network and a resolv.conf of its own need root");
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        file.path(),
        "nameserver 127.0.0.1\nsearch .\noptions timeout:1 attempts:1\n",
    )
    .unwrap();
    let script = "ip link set lo up && mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
    let mut unshare = std::process::Command::new("unshare");
    unshare
        .args(["--net", "--mount", "sh", "-c", script])
        .arg(file.path())
        .arg(std::env::current_exe().unwrap());
    in_a_process_of_its_own(unshare, "egress::beside_a_real_name_server");
}

#[tokio::test]
#[ignore = "in a network of its own, by nothing_but_allowed_names_arrives_at_a_real_name_server"]
async fn beside_a_real_name_server() {
    if !is_in_a_process_of_its_own() {
        return;
    }
    let host = Elsewhere::open().await;
    let IpAddr::V4(address) = host.at.ip() else {
        unreachable!("it is one of 127.88")
    };
    let server = tokio::net::UdpSocket::bind("127.0.0.1:53").await.unwrap();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let telling = asked.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        loop {
            let (length, from) = server.recv_from(&mut buffer).await.unwrap();
            let (name, reply) = name_server_says(&buffer[..length], address);
            telling.lock().unwrap().push(name);
            server.send_to(&reply, from).await.unwrap();
        }
    });
    let port = host.at.port();
    let inside = Inside::open(house().sandbox(&format!(
        "egress = [\"allowed.test:{port} in 127.88.0.0/16\", \"*.wild.test:{port} in 127.88.0.0/16\"]"
    )))
    .await;
    let (_, said) = inside
        .says(&format!("allowed.test:{port}"), "GET / HTTP/1.0\r\n\r\n")
        .await;
    assert!(
        said.ends_with("reached"),
        "{said}\n{:#?}",
        inside.house.records.all()
    );
    // The control: from out here a question does arrive.
    let control = tokio::net::lookup_host("control.example:1").await;
    assert!(control.is_err());
    for name in [
        "c2VjcmV0.evil.example",
        "c2VjcmV0.allowed.test",
        "c2VjcmV0.wild.test",
    ] {
        assert!(!inside.tries("name", name).await.0, "{name}");
        for server in ["127.0.0.1:53", "8.8.8.8:53", "127.77.1.1:53"] {
            assert!(!inside.tries("datagram", server).await.0, "{server}");
        }
    }
    for target in [
        "c2VjcmV0.evil.example",
        "c2VjcmV0.allowed.test",
        "allowed.test.evil.example",
    ] {
        let answer = inside.connect(&format!("{target}:{port}")).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    }
    // What lies below a `*.` is asked for: its owner is trusted with that, as thv.toml(5) says.
    let answer = inside.connect(&format!("nowhere.wild.test:{port}")).await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    let mut asked = asked.lock().unwrap().clone();
    asked.sort();
    asked.dedup();
    assert_eq!(
        asked,
        ["allowed.test", "control.example", "nowhere.wild.test"]
    );
}

/// The name in a question, and the answer: `allowed.test` has one address, nothing else exists.
fn name_server_says(question: &[u8], address: Ipv4Addr) -> (String, Vec<u8>) {
    let name = asked_name(question);
    let known = (name == "allowed.test").then(|| vec![address]);
    let reply = name_reply(question, known);
    (name, reply)
}

/// The name in a question (RFC 1035 §4.1.2).
pub(crate) fn asked_name(question: &[u8]) -> String {
    let (mut at, mut labels) = (12, Vec::new());
    while question[at] != 0 {
        let end = at + 1 + usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..end]).to_lowercase());
        at = end;
    }
    labels.join(".")
}

/// Whether IPv4 addresses are asked for, which are the only ones that there are.
pub(crate) fn asks_for_addresses(question: &[u8]) -> bool {
    question[question_end(question) - 3] == 1
}

/// An answer of these addresses; `None` where there is no such name.
pub(crate) fn name_reply(question: &[u8], known: Option<Vec<Ipv4Addr>>) -> Vec<u8> {
    let code = if known.is_some() { 0x80 } else { 0x83 };
    let addresses = known
        .filter(|_| asks_for_addresses(question))
        .unwrap_or_default();
    let mut reply = question[..2].to_vec();
    let answers = u8::try_from(addresses.len()).unwrap();
    reply.extend([0x81, code, 0, 1, 0, answers, 0, 0, 0, 0]);
    reply.extend(&question[12..question_end(question)]);
    for address in addresses {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        reply.extend(address.octets());
    }
    reply
}

/// Where the one question ends, type and class included.
fn question_end(question: &[u8]) -> usize {
    let mut at = 12;
    while question[at] != 0 {
        at += 1 + usize::from(question[at]);
    }
    at + 5
}

//! What becomes of callers while their issuer's keys come, go, and cannot be had: whom
//! it cannot tell the gateway calls no liar, and it never asks more than it must.
//!
//! The issuer is a real one on loopback (`issuer`) that fails as it is told; the age of
//! keys is tokio's clock, which these tests advance (`pass`).

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use thv::time::Clock;

use crate::{
    house::{Caller, House, Plan, house},
    identity::{CLIENTS, ISSUERS, Signer, caller, is_refused, is_served, last_decision, now},
    issuer::{AS_JSON, DISCOVERY, Issuer, JWKS, Reply, raw},
    provider::pass,
    wire::Answer,
};

const SECOND: Duration = Duration::from_secs(1);
/// How long a set is fresh whose issuer does not say.
const TIME_TO_LIVE: Duration = Duration::from_secs(300);
/// How long it is used while its issuer is away.
const MAX_STALE: Duration = Duration::from_secs(3600);
const COOL_DOWN: Duration = Duration::from_secs(30);
/// Sessions must outlive the hours that pass here.
const LONG_SESSIONS: &str = "[limits]\nsession-idle = \"12h\"\n";

fn key(signer: &Signer, kid: &str) -> Value {
    let mut jwk = signer.jwk();
    jwk["kid"] = json!(kid);
    jwk
}

/// A token of this house's issuer, unlike any before, which the gateway has to verify.
fn fresh(house: &House, signer: &Signer, kid: &str) -> String {
    of(house.issuer(), house, signer, kid)
}

fn of(issuer: &str, house: &House, signer: &Signer, kid: &str) -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let header = json!({ "typ": "at+jwt", "alg": "ES256", "kid": kid });
    let claims = json!({
        "iss": issuer, "aud": house.resource(), "sub": "alice", "client_id": "editor", "iat": now(),
        "exp": now() + 300, "jti": NUMBER.fetch_add(1, Ordering::Relaxed).to_string(), "scope": "base",
    });
    signer.sign(&header, &claims)
}

fn trusting(issuer: &Issuer) -> Plan {
    house().trusting(&issuer.name()).with(LONG_SESSIONS)
}

/// A house, a session in it, and the issuer that vouched for it.
struct Scene {
    issuer: Issuer,
    house: House,
    alice: Caller,
}

impl Scene {
    async fn of(issuer: Issuer, more: &str) -> Self {
        let house = trusting(&issuer).issuer(more).open().await;
        let alice = is_served(&house, &fresh(&house, &ISSUERS, "es"), "alice").await;
        Self {
            issuer,
            house,
            alice,
        }
    }

    async fn start() -> Self {
        Self::of(Issuer::with(&[key(&ISSUERS, "es")]).await, "").await
    }

    async fn call(&self) -> Answer {
        let mut alice = self.alice.clone();
        alice.token = Some(fresh(&self.house, &ISSUERS, "es"));
        alice.call("echo", json!({ "still": "here" })).await
    }

    /// A token that was never seen is good, and its call is answered and recorded.
    async fn is_served(&self, what: &str) {
        let answer = self.call().await;
        assert_eq!(answer.status, 200, "{what}: {answer:?}");
        assert_eq!(answer.said(), "{\"still\": \"here\"}", "{what}");
        let last = last_decision(&self.house);
        assert!(
            last.contains("THV_DECISION=allow ") && last.contains("THV_SUBJECT=alice "),
            "{what}: {last}"
        );
    }

    /// Why the keys could not be had, as it was recorded last.
    fn alarm(&self) -> String {
        let records = self.house.records.all();
        let last = records
            .into_iter()
            .rfind(|record| record.contains("THV_EVENT=keys-unavailable "));
        last.unwrap()
    }
}

/// Nobody can tell: no challenge, and when to come again. `children` were started before.
pub(crate) fn is_put_off(house: &House, answer: &Answer, children: usize) -> Duration {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.header("www-authenticate"), None);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let mut body = answer.json();
    body.as_object_mut().unwrap().remove("id");
    assert_eq!(
        body,
        json!({ "jsonrpc": "2.0", "error": {
            "code": -32603, "message": "the identity provider cannot be reached",
            "data": { "reason": "provider-unavailable" },
        } })
    );
    let last = last_decision(house);
    assert!(last.contains("THV_REASON=provider-unavailable "), "{last}");
    assert_eq!(house.children_started(), children);
    let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&seconds), "{seconds}");
    Duration::from_secs(seconds)
}

/// tok-98: whatever stands where the keys were, those that were good stay good, for an hour and not longer.
#[tokio::test]
async fn what_is_no_key_set_replaces_none() {
    let scene = Scene::start().await;
    let good = json!({ "keys": [key(&ISSUERS, "es")] }).to_string();
    let replies = [
        ("500", raw("500 Internal Server Error", "", "")),
        ("404", raw("404 Not Found", "", "")),
        (
            "text/html",
            raw("200 OK", "Content-Type: text/html\r\n", good),
        ),
        ("HTML", raw("200 OK", AS_JSON, "<html></html>")),
        ("nothing", raw("200 OK", AS_JSON, "")),
        ("204", raw("204 No Content", AS_JSON, "")),
        ("no keys", Reply::Json(json!({ "keys": [] }))),
        (
            "no usable key",
            Reply::Json(json!({ "keys": [{ "kty": "oct", "kid": "es", "k": "AAAA" }] })),
        ),
        ("a list", Reply::Json(json!([key(&ISSUERS, "es")]))),
        ("another protocol", Reply::Raw(b"SSH-2.0-x\r\n".to_vec())),
        (
            "half of it",
            Reply::Raw(format!("HTTP/1.1 200 OK\r\n{AS_JSON}Content-Length: 100\r\n\r\n{{").into()),
        ),
    ];
    let mut passed = Duration::ZERO;
    for (count, (what, reply)) in replies.into_iter().enumerate() {
        scene.issuer.set(JWKS, reply);
        pass(TIME_TO_LIVE + SECOND).await;
        passed += TIME_TO_LIVE + SECOND;
        scene.is_served(what).await;
        assert_eq!(scene.issuer.asked(JWKS), 2 + count, "{what}");
        assert_eq!(
            scene.house.records.count("keys-unavailable"),
            1 + count,
            "{what}"
        );
    }
    pass(MAX_STALE - passed).await;
    is_put_off(&scene.house, &scene.call().await, 1);
    // Nor is a token that was seen before any better now.
    is_put_off(&scene.house, &scene.alice.call("echo", json!({})).await, 1);
    scene.issuer.publishes(&[key(&ISSUERS, "es")]);
    pass(COOL_DOWN).await;
    scene.is_served("back").await;
}

/// tok-98: an issuer whose certificate is another's is away, and its keys go on.
#[tokio::test]
async fn an_issuer_with_another_certificate_is_away() {
    let authority = include_str!("../tls/ca.pem").to_owned();
    let issuer = Issuer::with_tls(&[key(&ISSUERS, "es")]).await;
    let house = trusting(&issuer)
        .also("ca.pem", authority)
        .issuer("ca-file = \"/etc/thv/ca.pem\"\n")
        .open()
        .await;
    let alice = is_served(&house, &fresh(&house, &ISSUERS, "es"), "alice").await;
    let scene = Scene {
        issuer,
        house,
        alice,
    };
    for certificate in ["other", "expired"] {
        let asked = scene.issuer.asked(JWKS);
        scene.issuer.shows(certificate);
        pass(TIME_TO_LIVE + SECOND).await;
        scene.is_served(certificate).await;
        assert_eq!(scene.issuer.asked(JWKS), asked, "nothing was said to it");
        assert!(scene.alarm().contains("certificate"), "{}", scene.alarm());
    }
    pass(MAX_STALE).await;
    is_put_off(&scene.house, &scene.call().await, 1);
    scene.issuer.shows("localhost");
    pass(COOL_DOWN).await;
    scene.is_served("back").await;
}

/// tok-98, tok-99: a set that is too long, packed, or never comes is left alone within five seconds.
#[tokio::test]
async fn a_key_set_without_end_is_not_waited_for() {
    let scene = Scene::start().await;
    let many: Vec<_> = (0..100_000)
        .map(|number| json!({ "kty": "oct", "kid": number.to_string() }))
        .collect();
    let head = format!("HTTP/1.1 200 OK\r\n{AS_JSON}\r\n");
    let endless = [head.as_bytes(), &vec![b' '; 600 << 10]].concat();
    // Sixty-four megabytes in as many kilobytes; who unpacked them would find the good keys.
    let mut bomb = GzEncoder::new(Vec::new(), Compression::fast());
    let good = json!({ "keys": [key(&ISSUERS, "es")] }).to_string();
    bomb.write_all(good.as_bytes()).unwrap();
    bomb.write_all(&vec![b' '; 64 << 20]).unwrap();
    let bomb = bomb.finish().unwrap();
    assert!(bomb.len() < 512 << 10, "{}", bomb.len());
    let packed = raw(
        "200 OK",
        &format!("{AS_JSON}Content-Encoding: gzip\r\n"),
        bomb,
    );
    for (what, reply, why) in [
        (
            "many keys",
            Reply::Json(json!({ "keys": many })),
            "longer than",
        ),
        ("no end", Reply::Raw(endless), "longer than"),
        ("gzip", packed, "not a JWK set"),
    ] {
        scene.issuer.set(JWKS, reply);
        pass(TIME_TO_LIVE + SECOND).await;
        scene.is_served(what).await;
        assert!(scene.alarm().contains(why), "{what}: {}", scene.alarm());
    }
    let heard = scene.issuer.heard();
    let asks_plainly = |request: &String| {
        request
            .to_ascii_lowercase()
            .contains("\r\naccept-encoding: identity\r\n")
    };
    assert!(heard.iter().all(asks_plainly), "{heard:#?}");
    for (what, reply) in [("drip", Reply::Drip), ("silence", Reply::Silence)] {
        scene.issuer.set(JWKS, reply);
        pass(TIME_TO_LIVE + SECOND).await;
        let start = Instant::now();
        scene.is_served(what).await;
        let deadline = 5 * SECOND..15 * SECOND;
        assert!(deadline.contains(&start.elapsed()), "{:?}", start.elapsed());
        assert!(
            scene.alarm().contains("within 5 seconds"),
            "{}",
            scene.alarm()
        );
        // One has waited for all.
        let start = Instant::now();
        scene.is_served(what).await;
        assert!(start.elapsed() < 4 * SECOND, "{:?}", start.elapsed());
    }
}

/// tok-100: a key set is where it was said to be, or somewhere else of the same origin, and no further.
#[tokio::test]
async fn a_key_set_that_points_elsewhere_is_not_followed() {
    let elsewhere = Issuer::with(&[key(&ISSUERS, "es")]).await;
    let (there, address) = (elsewhere.url(JWKS), elsewhere.address);
    let issuer = Issuer::with(&[]).await;
    let house = trusting(&issuer).open().await;
    let moved = |status: &str, to: &str| raw(status, &format!("Location: {to}\r\n"), "");
    issuer.set("/twice", moved("302 Found", "/moved"));
    issuer.set(
        "/moved",
        Reply::Json(json!({ "keys": [key(&ISSUERS, "es")] })),
    );
    for (status, to) in [
        ("301 Moved Permanently", there.clone()),
        ("302 Found", there.replace("127.0.0.1", "localhost")),
        ("307 Temporary Redirect", format!("//{address}{JWKS}")),
        ("308 Permanent Redirect", there.replace("http:", "https:")),
        ("302 Found", "https://keys.example/jwks".to_owned()),
        ("302 Found", "file:///etc/passwd".to_owned()),
        ("302 Found", JWKS.to_owned()),
        ("302 Found", "/twice".to_owned()),
    ] {
        issuer.set(JWKS, moved(status, &to));
        let answer = caller(&house, fresh(&house, &ISSUERS, "es"))
            .initialize()
            .await;
        let wait = is_put_off(&house, &answer, 0);
        let alarm = house.records.all().join("\n");
        assert!(alarm.contains("it redirects elsewhere"), "{to}: {alarm}");
        pass(wait).await;
    }
    assert_eq!(elsewhere.connections(), 0);
    issuer.set(JWKS, moved("302 Found", "/moved"));
    is_served(&house, &fresh(&house, &ISSUERS, "es"), "alice").await;
}

/// tok-101: a document of another issuer says nothing, and no document leads inside, unless the operator says so.
#[tokio::test]
async fn a_discovery_document_that_lies_is_not_followed() {
    let authority = include_str!("../tls/ca.pem");
    let inside = Issuer::with_tls(&[key(&ISSUERS, "es")]).await;
    let port = inside.address.port();
    let issuer = Issuer::with(&[key(&ISSUERS, "es")]).await;
    let plan = || {
        trusting(&issuer)
            .also("ca.pem", authority.to_owned())
            .issuer("ca-file = \"/etc/thv/ca.pem\"\n")
    };
    let house = plan().open().await;
    let (same, own) = (issuer.name(), issuer.url(JWKS));
    let linked = [
        format!("https://localhost:{port}{JWKS}"),
        format!("http://localhost:{port}{JWKS}"),
        format!("https://127.0.0.1.:{port}{JWKS}"),
        format!("https://127.0.0.2:{port}{JWKS}"),
        format!("http://user@127.0.0.1:{port}{JWKS}"),
        format!("https://[::1]:{port}{JWKS}"),
        "http://sso.example/jwks".to_owned(),
        "https://10.0.0.1/jwks".to_owned(),
        "https://169.254.169.254/latest".to_owned(),
        "https://100.64.0.1/jwks".to_owned(),
        "https://1.1.1.1/jwks".to_owned(),
        "https://[fe80::1]/jwks".to_owned(),
        "https://[64:ff9b::7f00:1]/jwks".to_owned(),
        "https://[64:ff9b:1::7f00:1]/jwks".to_owned(),
        "https://[2002:7f00:1::]/jwks".to_owned(),
        "https://[2001:0:7f00:1::]/jwks".to_owned(),
        "https://[::ffff:127.0.0.1]/jwks".to_owned(),
        "file:///etc/passwd".to_owned(),
        "gopher://127.0.0.1/".to_owned(),
        String::new(),
    ];
    let others = [
        (format!("{same}/"), own.clone()),
        (same.to_uppercase(), own.clone()),
        ("https://evil.example".to_owned(), own.clone()),
    ];
    let linked = linked.into_iter().map(|uri| (same.clone(), uri));
    for (named, uri) in others.into_iter().chain(linked) {
        issuer.discovers(&named, &uri);
        let alarms = house.records.count("keys-unavailable");
        let answer = caller(&house, fresh(&house, &ISSUERS, "es"))
            .initialize()
            .await;
        let wait = is_put_off(&house, &answer, 0);
        assert_eq!(
            house.records.count("keys-unavailable"),
            alarms + 1,
            "{named} {uri}"
        );
        pass(wait).await;
    }
    assert_eq!((issuer.asked(JWKS), inside.connections()), (0, 0));
    assert!(issuer.asked(DISCOVERY) > 20);
    // What the operator lists may be linked to.
    issuer.discovers(&same, &format!("https://localhost:{port}{JWKS}"));
    let house = plan()
        .issuer("allow-addresses = [\"127.0.0.0/8\", \"::1/128\"]\n")
        .open()
        .await;
    is_served(&house, &fresh(&house, &ISSUERS, "es"), "alice").await;
    assert_eq!(inside.asked(JWKS), 1);
}

/// tok-57: a key's name means something at its issuer alone.
#[tokio::test]
async fn a_key_of_one_issuer_vouches_for_no_other() {
    let (ours, other) = (
        Issuer::with(&[key(&ISSUERS, "ours")]).await,
        Issuer::with(&[key(&CLIENTS, "theirs")]).await,
    );
    let second = format!(
        "[[auth.issuer]]\nissuer = \"{}\"\naudience = \"http://{{address}}/mcp\"\n",
        other.name()
    );
    let house = trusting(&ours).issuer(&second).open().await;
    let token =
        |issuer: &Issuer, signer: &Signer, kid: &str| of(&issuer.name(), &house, signer, kid);
    for stolen in [
        token(&other, &ISSUERS, "ours"),
        token(&ours, &CLIENTS, "theirs"),
    ] {
        let answer = caller(&house, stolen).initialize().await;
        is_refused(&house, &answer, "token-key-unknown");
    }
    for crossed in [
        token(&other, &ISSUERS, "theirs"),
        token(&ours, &CLIENTS, "ours"),
    ] {
        let answer = caller(&house, crossed).initialize().await;
        is_refused(&house, &answer, "token-signature");
    }
    // Each was asked by name no more than once a cool-down.
    for issuer in [&ours, &other] {
        assert!(issuer.asked(JWKS) <= 2, "{:?}", issuer.heard());
    }
    is_served(&house, &token(&ours, &ISSUERS, "ours"), "alice").await;
    let theirs = caller(&house, token(&other, &CLIENTS, "theirs"))
        .initialize()
        .await;
    assert_eq!(theirs.status, 200, "{theirs:?}");
    let last = last_decision(&house);
    assert!(
        last.contains(&format!("THV_ISSUER={} ", other.name())),
        "{last}"
    );
}

/// tok-104: however often it is started, a gateway asks once while its keys are fresh; and what it kept grows old.
#[tokio::test]
async fn gateways_that_come_and_go_ask_once() {
    let issuer = Issuer::with(&[key(&ISSUERS, "es")]).await;
    let state = tempfile::tempdir().unwrap();
    let later = Arc::new(AtomicU64::new(0));
    let open = async || {
        let (offset, system) = (later.clone(), Clock::system());
        let clock = Clock::new(move || system.now() + offset.load(Ordering::Relaxed));
        trusting(&issuer)
            .clock(clock)
            .state(state.path())
            .issuer("max-lifetime = \"30d\"\n")
            .open()
            .await
    };
    let token = |house: &House| {
        let header = json!({ "typ": "at+jwt", "alg": "ES256", "kid": "es" });
        let mut claims = crate::identity::claims(house);
        claims["exp"] = json!(now() + 86_400);
        ISSUERS.sign(&header, &claims)
    };
    for _ in 0..5 {
        let house = open().await;
        is_served(&house, &token(&house), "alice").await;
        house.end().await;
    }
    assert_eq!((issuer.asked(DISCOVERY), issuer.asked(JWKS)), (1, 1));
    assert_eq!(issuer.connections(), 2);
    // Away when it is started, and its keys are past their time, but not by an hour.
    issuer.set(JWKS, raw("500 Internal Server Error", "", ""));
    later.store(1800, Ordering::Relaxed);
    let house = open().await;
    is_served(&house, &token(&house), "alice").await;
    assert_eq!(house.records.count("keys-unavailable"), 1);
    house.end().await;
    later.store(3601, Ordering::Relaxed);
    let house = open().await;
    let answer = caller(&house, token(&house)).initialize().await;
    is_put_off(&house, &answer, 0);
    house.end().await;
    // Whoever could write there still makes no key of the issuer's.
    for entry in std::fs::read_dir(state.path()).unwrap() {
        std::fs::write(entry.unwrap().path(), "{").unwrap();
    }
    later.store(0, Ordering::Relaxed);
    let house = open().await;
    let answer = caller(&house, token(&house)).initialize().await;
    is_put_off(&house, &answer, 0);
    house.end().await;
    issuer.publishes(&[key(&ISSUERS, "es")]);
    let house = open().await;
    is_served(&house, &token(&house), "alice").await;
}

/// tok-105: an issuer says how long its keys are fresh, between a minute and ten.
#[tokio::test]
async fn an_issuer_that_says_forever_or_never_is_not_believed() {
    for (says, least, most) in [
        ("max-age=31536000", 250, 601),
        ("public, max-age=0", 15, 61),
        ("max-age=120", 40, 121),
    ] {
        let issuer = Issuer::with(&[]).await;
        let set = json!({ "keys": [key(&ISSUERS, "es")] }).to_string();
        let headers = format!("{AS_JSON}Cache-Control: {says}\r\n");
        issuer.set(JWKS, raw("200 OK", &headers, set));
        let scene = Scene::of(issuer, "").await;
        pass(Duration::from_secs(least)).await;
        scene.is_served(says).await;
        assert_eq!(scene.issuer.asked(JWKS), 1, "{says}");
        pass(Duration::from_secs(most - least)).await;
        scene.is_served(says).await;
        assert_eq!(scene.issuer.asked(JWKS), 2, "{says}");
    }
}

//! Key sets on a host whose name means something else from one question to the next: what
//! was checked is what is dialled, in a network and beside a name server of the test's own.

use std::{
    net::Ipv4Addr,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::json;
use tokio::net::{TcpListener, UdpSocket};

use crate::{
    egress::{asked_name, asks_for_addresses, name_reply},
    house::{house, in_a_process_of_its_own, is_in_a_process_of_its_own},
    identity::{ISSUERS, Signer, caller, claims, is_served, last_decision},
    issuer::{DISCOVERY, Issuer, JWKS},
    provider::pass,
};

/// A public address, which in that network is the test's.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(11, 22, 33, 44);

/// tok-102: a name is asked for once, and the address that was checked is the one that is dialled.
#[test]
fn the_address_that_was_checked_is_dialled() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: a network and a resolv.conf of its own need root");
        return;
    }
    let (hosts, servers) = (
        tempfile::NamedTempFile::new().unwrap(),
        tempfile::NamedTempFile::new().unwrap(),
    );
    let text = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n";
    std::fs::write(servers.path(), text).unwrap();
    let script = format!(
        "ip link set lo up && ip address add {PUBLIC}/32 dev lo && mount --bind \"$0\" /etc/resolv.conf && \
         mount --bind \"$1\" /etc/hosts && shift && exec \"$@\""
    );
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--net", "--mount", "sh", "-c", &script])
        .args([servers.path(), hosts.path()])
        .arg(std::env::current_exe().unwrap());
    in_a_process_of_its_own(unshare, "refusals_names::beside_a_name_server_that_lies");
}

#[tokio::test]
#[ignore = "in a network of its own, by the_address_that_was_checked_is_dialled"]
async fn beside_a_name_server_that_lies() {
    if !is_in_a_process_of_its_own() {
        return;
    }
    let names = UdpSocket::bind("127.0.0.1:53").await.unwrap();
    // What it answers to one question after the other, and how many came.
    let answers = Arc::new(Mutex::new(Vec::<Vec<Ipv4Addr>>::new()));
    let told = answers.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        loop {
            let (length, from) = names.recv_from(&mut buffer).await.unwrap();
            let question = &buffer[..length];
            let known = (asked_name(question) == "localhost").then(|| {
                let mut answers = told.lock().unwrap();
                if asks_for_addresses(question) && !answers.is_empty() {
                    answers.remove(0)
                } else {
                    // Nothing is asked for twice, so this is where a second look would lead.
                    vec![Ipv4Addr::LOCALHOST]
                }
            });
            let reply = name_reply(question, known);
            names.send_to(&reply, from).await.unwrap();
        }
    });
    let mut key = ISSUERS.jwk();
    key["kid"] = json!("es");
    let keys = TcpListener::bind((PUBLIC, 0)).await.unwrap();
    let port = keys.local_addr().unwrap().port();
    let trap = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .await
        .unwrap();
    let trap = Issuer::on(trap, "https", "localhost");
    let keys = Issuer::on(keys, "https", "localhost");
    for (issuer, signer) in [(&keys, key), (&trap, Signer::generate().jwk())] {
        issuer.shows("localhost");
        issuer.publishes(&[signer]);
    }
    let issuer = Issuer::with(&[]).await;
    issuer.discovers(&issuer.name(), &keys.url(JWKS));

    let house = house()
        .trusting(&issuer.name())
        .also("ca.pem", include_str!("../tls/ca.pem").to_owned())
        .issuer("ca-file = \"/etc/thv/ca.pem\"\n")
        .with("[limits]\nsession-idle = \"12h\"\n")
        .open()
        .await;
    let token = |id: &str| {
        let mut claims = claims(&house);
        claims["jti"] = json!(id);
        ISSUERS.sign(
            &json!({ "typ": "at+jwt", "alg": "ES256", "kid": "es" }),
            &claims,
        )
    };
    // Refused before anything was fetched, where the name leads inside from the start.
    let inside = [
        vec![Ipv4Addr::LOCALHOST],
        vec![PUBLIC, Ipv4Addr::LOCALHOST],
        vec![Ipv4Addr::new(10, 0, 0, 1)],
    ];
    for answer in inside.clone() {
        *answers.lock().unwrap() = vec![answer];
        let answer = caller(&house, token("early")).initialize().await;
        assert_eq!(answer.status, 503, "{answer:?}");
        let last = last_decision(&house);
        assert!(last.contains("THV_REASON=provider-unavailable "), "{last}");
        assert_eq!(house.children_started(), 0);
        pass(Duration::from_secs(5)).await;
    }
    // One question, one address, which is checked and dialled: where a second look would
    // have led, nobody came.
    *answers.lock().unwrap() = vec![vec![PUBLIC]];
    let mut alice = is_served(&house, &token("1"), "alice").await;
    assert_eq!((keys.connections(), trap.connections()), (1, 0));
    // The next time the name leads inside: it is not followed, and the old keys go on.
    for (number, answer) in inside.into_iter().enumerate() {
        *answers.lock().unwrap() = vec![answer];
        let alarms = house.records.count("keys-unavailable");
        pass(Duration::from_secs(301)).await;
        alice.token = Some(token(&format!("later {number}")));
        assert_eq!(alice.call("echo", json!({})).await.status, 200);
        assert_eq!(house.records.count("keys-unavailable"), alarms + 1);
        let records = house.records.all().join("\n");
        assert!(
            records.contains("is no name of a public address"),
            "{records}"
        );
    }
    assert_eq!((keys.connections(), trap.connections()), (1, 0));
    assert!(issuer.asked(DISCOVERY) > 3);
}

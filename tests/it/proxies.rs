//! Proxies before thv: whom they speak for, where they are believed.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    house::{House, field, house},
    wire::{self, PATIENCE},
};

/// Asks without a token, with something before the request and something in it.
async fn asked(house: &House, before: &[u8], more: &[(&str, &str)]) -> Option<u16> {
    let mut stranger = house.caller("alice");
    stranger.token = None;
    let request = [before, &stranger.bytes_with("POST", more, "{}")].concat();
    let mut stream = TcpStream::connect(house.address).await.unwrap();
    stream.write_all(&request).await.unwrap();
    let mut answer = Vec::new();
    // A connection that is cut may be reset.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&answer).into_owned();
    text.split(' ').nth(1)?.parse().ok()
}

fn last_peer(house: &House) -> String {
    let records = house.records.all();
    let last = records
        .iter()
        .rfind(|record| record.contains("THV_PEER_ADDR="))
        .unwrap();
    field(last, "THV_PEER_ADDR").unwrap().to_owned()
}

fn told(by: &str, proxies: &str) -> String {
    format!("[http]\ntrusted-proxies = [{proxies}]\nclient-address = \"{by}\"\n")
}

const FORGED: &[(&str, &str)] = &[
    ("X-Forwarded-For", "192.0.2.7"),
    ("Forwarded", "for=192.0.2.8;host=evil.example;proto=https"),
    ("X-Forwarded-Host", "evil.example"),
    ("X-Real-IP", "192.0.2.9"),
];

/// conn-22: nobody is believed who is not configured, and that is the default.
#[tokio::test]
async fn forwarded_headers_of_a_stranger_are_ignored() {
    for more in [
        String::new(),
        told("x-forwarded-for", "\"192.0.2.0/24\", \"unix\""),
    ] {
        let house = house().with(&more).open().await;
        assert_eq!(asked(&house, b"", FORGED).await, Some(401));
        assert!(
            last_peer(&house).starts_with("127.0.0.1:"),
            "{}",
            last_peer(&house)
        );
    }
}

/// conn-22: of a proxy that is, the record has what it says, from the one header that was named.
#[tokio::test]
async fn a_trusted_proxy_names_its_client_for_the_record() {
    let by_list = house()
        .with(&told("x-forwarded-for", "\"127.0.0.0/8\""))
        .open()
        .await;
    assert_eq!(asked(&by_list, b"", FORGED).await, Some(401));
    assert_eq!(last_peer(&by_list), "192.0.2.7");
    // What the client itself has sent stands to the left of what the proxy adds.
    let more = [("X-Forwarded-For", "203.0.113.1, 192.0.2.7, 127.0.0.9")];
    assert_eq!(asked(&by_list, b"", &more).await, Some(401));
    assert_eq!(last_peer(&by_list), "192.0.2.7");
    assert_eq!(asked(&by_list, b"", &[]).await, Some(401));
    assert!(last_peer(&by_list).starts_with("127.0.0.1:"));

    let by_element = house()
        .with(&told("forwarded", "\"127.0.0.1\""))
        .open()
        .await;
    assert_eq!(asked(&by_element, b"", FORGED).await, Some(401));
    assert_eq!(last_peer(&by_element), "192.0.2.8");
    // The host and the scheme that it names change nothing.
    let host = [("Host", "evil.example")];
    assert_eq!(asked(&by_element, b"", &host).await, Some(400));
}

/// conn-22: the PROXY protocol is asked of whom it is expected, and refused of everybody else.
#[tokio::test]
async fn the_proxy_protocol_is_for_proxies() {
    let first = b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 443\r\n";
    let second = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x7f\0\0\x01\x12\x67\x01\xbb";
    let proxied = house()
        .with(&told("proxy-protocol", "\"127.0.0.1\""))
        .open()
        .await;
    for before in [&first[..], second] {
        assert_eq!(asked(&proxied, before, FORGED).await, Some(401));
        assert_eq!(last_peer(&proxied), "192.0.2.7:4711");
    }
    // The proxy itself, which looks whether thv is there.
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    assert_eq!(asked(&proxied, local, &[]).await, Some(401));
    assert!(last_peer(&proxied).starts_with("127.0.0.1:"));
    // Once, and from the one that must say it.
    for before in [
        &b""[..],
        b"PROXY TCP4 192.0.2.7 127.0.0.1 4711\r\n",
        &[&first[..], b"\xff"].concat(),
    ] {
        assert!(matches!(
            asked(&proxied, before, &[]).await,
            None | Some(400)
        ));
    }
    assert_eq!(
        asked(&proxied, &[&first[..], first].concat(), &[]).await,
        Some(400)
    );

    for more in [String::new(), told("proxy-protocol", "\"192.0.2.1\"")] {
        let stranger = house().with(&more).open().await;
        for before in [&first[..], second] {
            assert_eq!(asked(&stranger, before, &[]).await, Some(400));
            assert!(last_peer(&stranger).starts_with("127.0.0.1:"));
        }
        assert_eq!(asked(&stranger, b"", &[]).await, Some(401));
        assert_eq!(stranger.children_started(), 0);
    }
}

fn binary(command: u8, family: u8, length: u16, rest: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([command, family]);
    header.extend(length.to_be_bytes());
    header.extend(rest);
    header
}

/// conn-22: a header of the PROXY protocol that is not to the letter is none: nothing behind it is served, and
/// nobody is named by it. Those that are, are.
#[tokio::test]
async fn a_malformed_header_of_a_proxy_ends_its_connection() {
    let house = house()
        .with(&told("proxy-protocol", "\"127.0.0.1\""))
        .open()
        .await;
    let four = [192, 0, 2, 7, 127, 0, 0, 1, 0x12, 0x67, 1, 0xbb];
    let mut six = [0; 36];
    (six[0], six[1], six[15], six[33]) = (0x20, 1, 7, 80);
    let more = [&four[..], &[4, 0, 1, 0]].concat();
    for (before, peer) in [
        (
            &b"PROXY TCP6 2001:db8::7 ::1 4711 443\r\n"[..],
            "[2001:db8::7]:4711",
        ),
        (&binary(0x21, 0x21, 36, &six), "[2001::7]:80"),
        (&binary(0x21, 0x11, 16, &more), "192.0.2.7:4711"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1:"),
        (b"PROXY UNKNOWN any thing\r\n", "127.0.0.1:"),
        // A Unix socket's, which has no such address.
        (&binary(0x21, 0x31, 216, &[b'/'; 216]), "127.0.0.1:"),
    ] {
        assert_eq!(asked(&house, before, FORGED).await, Some(401));
        assert!(last_peer(&house).starts_with(peer), "{}", last_peer(&house));
    }
    let records = house.records.count("decision");
    let long = [&b"PROXY UNKNOWN "[..], &[b'x'; 200], b"\r\n"].concat();
    for before in [
        &b"PROXY "[..],
        b"PROXY TCP4\r\n",
        b"PROXY TCP4 192.0.2.7 127.0.0.1 4711\r\n",
        b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 443 1\r\n",
        b"PROXY  TCP4 192.0.2.7 127.0.0.1 4711 443\r\n",
        b"PROXY TCP4 192.0.2.7 127.0.0.1 04711 443\r\n",
        b"PROXY TCP4 192.0.2.7 127.0.0.1 +4711 443\r\n",
        b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 65536\r\n",
        b"PROXY TCP4 192.0.2.07 127.0.0.1 4711 443\r\n",
        b"PROXY TCP4 192.0.2.256 127.0.0.1 4711 443\r\n",
        b"PROXY TCP4 2001:db8::7 ::1 4711 443\r\n",
        b"PROXY TCP6 192.0.2.7 127.0.0.1 4711 443\r\n",
        b"PROXY UDP4 192.0.2.7 127.0.0.1 4711 443\r\n",
        b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 443\n",
        b"PROXY TCP4 192.0.2.7 127.0.0.1 4711 443\r",
        b"proxy TCP4 192.0.2.7 127.0.0.1 4711 443\r\n",
        b" PROXY TCP4 192.0.2.7 127.0.0.1 4711 443\r\n",
        &long,
        &binary(0x22, 0x11, 12, &four),
        &binary(0x11, 0x11, 12, &four),
        &binary(0x31, 0x11, 12, &four),
        &binary(0x21, 0x11, 11, &four[..11]),
        &binary(0x21, 0x21, 12, &four),
        &binary(0x21, 0x11, u16::MAX, &four),
        b"\r\n\r\n\0\r\nQUIT\r",
    ] {
        let got = asked(&house, before, FORGED).await;
        let shown = String::from_utf8_lossy(before);
        assert!(matches!(got, None | Some(400)), "{shown:?}: {got:?}");
    }
    // None of them has asked anything of anybody.
    assert_eq!(house.records.count("decision"), records);
    assert_eq!(house.children_started(), 0);
    assert_eq!(
        asked(&house, b"PROXY UNKNOWN\r\n", &[]).await,
        Some(401),
        "others are served"
    );
}

/// conn-22: what stands for the client in a header that is not the one that was named is nothing, and neither is one
/// that says it wrongly: then the record has the proxy itself.
#[tokio::test]
async fn a_proxy_that_is_not_understood_names_nobody() {
    let by_list = house()
        .with(&told("x-forwarded-for", "\"127.0.0.1\""))
        .open()
        .await;
    let by_element = house()
        .with(&told("forwarded", "\"127.0.0.1\""))
        .open()
        .await;
    for more in [
        [("X-Forwarded-For", "unknown")],
        [("X-Forwarded-For", "192.0.2.7, evil")],
        [("X-Forwarded-For", "192.0.2.7.1")],
        [("X-Forwarded-For", "")],
        [("Forwarded", "for=192.0.2.8")],
        [("X-Real-IP", "192.0.2.9")],
    ] {
        assert_eq!(asked(&by_list, b"", &more).await, Some(401));
        assert!(last_peer(&by_list).starts_with("127.0.0.1:"), "{more:?}");
    }
    for more in [
        [("Forwarded", "for=_hidden")],
        [("Forwarded", "for=192.0.2.7;for=192.0.2.8")],
        [("Forwarded", "proto=https;host=evil.example")],
        [("Forwarded", "192.0.2.7")],
        [("X-Forwarded-For", "192.0.2.7")],
    ] {
        assert_eq!(asked(&by_element, b"", &more).await, Some(401));
        assert!(last_peer(&by_element).starts_with("127.0.0.1:"), "{more:?}");
    }
}

/// conn-22: on a Unix socket, where it is said so.
#[tokio::test]
async fn a_proxy_on_a_unix_socket_is_one_by_name() {
    let house = house()
        .on_unix_socket()
        .with(&told("x-forwarded-for", "\"unix\""))
        .open()
        .await;
    let mut stranger = house.caller("alice");
    stranger.token = None;
    let request = stranger.bytes_with("POST", &[("X-Forwarded-For", "192.0.2.7")], "{}");
    let answer = wire::exchange_unix(&house.socket(), &request).await;
    assert_eq!(answer.status, 401);
    assert_eq!(last_peer(&house), "192.0.2.7");
}

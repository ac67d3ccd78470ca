//! Whom a proxy speaks for: HAProxy's PROXY protocol, `Forwarded` and `X-Forwarded-For`.
//!
//! What is told here is for the record and for shares between clients, never for a
//! decision, and never which scheme, host or path was asked for. Only proxies that
//! the configuration names are asked at all.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use http::{HeaderMap, header};
use tokio::io::AsyncRead;

use super::guarded::{Guarded, Unwatched};
use crate::config::{Proxies, Told};

/// Reads the PROXY header that a trusted proxy begins with, and gives the client that
/// it names; nothing where the proxy speaks for itself.
pub(super) async fn preface(
    stream: &mut Guarded<impl AsyncRead + Unpin, Unwatched>,
) -> io::Result<Option<SocketAddr>> {
    if stream.begins_with(SIGNATURE).await? {
        return second(stream).await;
    }
    if stream.begins_with(b"PROXY ").await? {
        return first(stream).await;
    }
    Err(io::ErrorKind::InvalidData.into())
}

/// Version 1: a line of text.
async fn first(
    stream: &mut Guarded<impl AsyncRead + Unpin, Unwatched>,
) -> io::Result<Option<SocketAddr>> {
    let end = loop {
        let line = stream.first();
        let end = line.iter().take(MAX_LINE).position(|byte| *byte == b'\n');
        if let Some(end) = end {
            break end;
        }
        if line.len() >= MAX_LINE || stream.more().await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    };
    let client = std::str::from_utf8(&stream.first()[..end])
        .ok()
        .and_then(|line| line.strip_suffix('\r'))
        .and_then(line);
    let client = client.ok_or(io::ErrorKind::InvalidData)?;
    stream.take(end + 1);
    Ok(client)
}

fn line(text: &str) -> Option<Option<SocketAddr>> {
    let mut words = text.split(' ');
    if words.next()? != "PROXY" {
        return None;
    }
    let four = match words.next()? {
        // What follows it is to be ignored.
        "UNKNOWN" => return Some(None),
        "TCP4" => true,
        "TCP6" => false,
        _ => return None,
    };
    let mut address = || {
        let address: IpAddr = words.next()?.parse().ok()?;
        (address.is_ipv4() == four).then_some(address)
    };
    let (from, _to) = (address()?, address()?);
    let mut port = || {
        let word = words.next()?;
        let port: u16 = word.parse().ok()?;
        (port.to_string() == word).then_some(port)
    };
    let (port, _to) = (port()?, port()?);
    words
        .next()
        .is_none()
        .then_some(Some(SocketAddr::new(from, port)))
}

/// Version 2: binary.
async fn second(
    stream: &mut Guarded<impl AsyncRead + Unpin, Unwatched>,
) -> io::Result<Option<SocketAddr>> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidData);
    let mut wanted = HEAD;
    loop {
        while stream.first().len() < wanted {
            if stream.more().await? == 0 {
                return Err(wrong());
            }
        }
        if wanted > HEAD {
            break;
        }
        let head = &stream.first()[..HEAD];
        let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
        if length > MAX_BINARY {
            return Err(wrong());
        }
        if length == 0 {
            break;
        }
        wanted = HEAD + length;
    }
    let client = binary(&stream.first()[..wanted]).ok_or_else(wrong)?;
    stream.take(wanted);
    Ok(client)
}

fn binary(header: &[u8]) -> Option<Option<SocketAddr>> {
    let (head, rest) = header.split_at_checked(HEAD)?;
    match head[12] {
        // The proxy itself, which looks whether we are there.
        0x20 => return Some(None),
        0x21 => {}
        _ => return None,
    }
    match head[13] {
        0x11 => {
            let address = *rest.first_chunk::<12>()?;
            let [a, b, c, d, _, _, _, _, port @ .., _, _] = address;
            Some(Some(SocketAddr::new(
                [a, b, c, d].into(),
                u16::from_be_bytes(port),
            )))
        }
        0x21 => {
            let address = rest.first_chunk::<16>()?;
            let port = rest.get(32..34)?.try_into().ok()?;
            rest.get(34..36)?;
            Some(Some(SocketAddr::new(
                (*address).into(),
                u16::from_be_bytes(port),
            )))
        }
        // Sockets that have no such address.
        _ => Some(None),
    }
}

/// Whom the headers of a proxy name: the last one on the way that is no proxy of ours.
/// Nothing where they say nothing that can be believed.
pub fn client(proxies: &Proxies, headers: &HeaderMap) -> Option<IpAddr> {
    let name = match proxies.told {
        Told::Forwarded => header::FORWARDED,
        Told::XForwardedFor => header::HeaderName::from_static("x-forwarded-for"),
        Told::ProxyProtocol => return None,
    };
    let lines: Vec<_> = headers
        .get_all(name)
        .iter()
        .map(|line| line.to_str().ok())
        .collect::<Option<_>>()?;
    let mut told = None;
    // Each proxy adds to the right. What is left of the first stranger is what he says himself.
    for element in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
        let address = match proxies.told {
            Told::Forwarded => forwarded(element),
            _ => node(element.trim()),
        };
        let Some(address) = address else {
            return told;
        };
        told = Some(address);
        if !proxies.trusts(address) {
            break;
        }
    }
    told
}

/// `for=` of one element (RFC 7239 §4).
fn forwarded(element: &str) -> Option<IpAddr> {
    let mut found = element.split(';').filter_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        name.eq_ignore_ascii_case("for").then_some(value)
    });
    let (Some(value), None) = (found.next(), found.next()) else {
        return None;
    };
    node(
        value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'))
            .unwrap_or(value),
    )
}

/// An address, with or without a port.
fn node(text: &str) -> Option<IpAddr> {
    let bracketed = |text: &str| -> Option<IpAddr> {
        let (address, port) = text.strip_prefix('[')?.split_once(']')?;
        if !port.is_empty() {
            port.strip_prefix(':')?.parse::<u16>().ok()?;
        }
        address.parse().ok().filter(IpAddr::is_ipv6)
    };
    text.parse()
        .ok()
        .or_else(|| text.parse().ok().map(|address: SocketAddr| address.ip()))
        .or_else(|| bracketed(text))
}

/// What version 2 begins with.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of its fixed part.
const HEAD: usize = 16;
/// Bytes of its addresses and of what else a proxy may say.
const MAX_BINARY: usize = 2048;
/// Bytes of a line of version 1, as its specification says.
const MAX_LINE: usize = 107;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{io::AsyncWriteExt as _, time::timeout};

    use super::*;

    async fn told(text: &[u8]) -> Result<(Option<String>, Vec<u8>), io::ErrorKind> {
        let mut stream = Guarded::new(text);
        let client = preface(&mut stream).await.map_err(|error| error.kind())?;
        let client = client.map(|client| client.to_string());
        Ok((client, stream.first().to_vec()))
    }

    fn second(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend([command, family]);
        header.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        header.extend(rest);
        header
    }

    /// conn-22: the PROXY protocol is read to the byte, or not at all.
    #[tokio::test]
    async fn a_proxys_preface_names_its_client() {
        for (text, client) in [
            (
                "PROXY TCP4 192.0.2.1 10.0.0.1 4711 443\r\n",
                Some("192.0.2.1:4711"),
            ),
            (
                "PROXY TCP6 2001:db8::1 fd00::1 4711 443\r\n",
                Some("[2001:db8::1]:4711"),
            ),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff::1 ffff::1 1 1\r\n", None),
        ] {
            let (found, rest) = told(format!("{text}GET").as_bytes()).await.unwrap();
            assert_eq!((found.as_deref(), rest.as_slice()), (client, &b"GET"[..]));
        }
        let four = [192, 0, 2, 1, 10, 0, 0, 1, 0x12, 0x67, 1, 0xbb];
        let mut six = [0; 36];
        six[15] = 1;
        six[33] = 80;
        let with_more = [&four[..], &[4, 0, 1, 0]].concat();
        for (header, client) in [
            (second(0x21, 0x11, &four), Some("192.0.2.1:4711")),
            (second(0x21, 0x11, &with_more), Some("192.0.2.1:4711")),
            (second(0x21, 0x21, &six), Some("[::1]:80")),
            (second(0x21, 0x31, &[0; 216]), None),
            (second(0x20, 0, &[]), None),
        ] {
            let (found, rest) = told(&[&header[..], b"GET"].concat()).await.unwrap();
            assert_eq!((found.as_deref(), rest.as_slice()), (client, &b"GET"[..]));
        }
        for bad in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PROXY",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 4711\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 443 1\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 04711 443\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 65536\r\n",
            b"PROXY TCP4 2001:db8::1 10.0.0.1 1 1\r\n",
            b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 443\n",
            b"PROXY UDP4 192.0.2.1 10.0.0.1 4711 443\r\n",
            &[b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200], b"\r\n"].concat(),
            &second(0x22, 0x11, &four),
            &second(0x11, 0x11, &four),
            &second(0x21, 0x11, &four[..11]),
            &second(0x21, 0x21, &six[..35]),
            &second(0x21, 0x11, &[0; 3000]),
            &second(0x21, 0x11, &four)[..20],
        ] {
            assert!(
                told(bad).await.is_err(),
                "{:?}",
                String::from_utf8_lossy(bad)
            );
        }
    }

    /// conn-22: a line of version 1 is no longer than its specification says, and is not waited for beyond that.
    #[tokio::test(start_paused = true)]
    async fn a_line_that_a_proxy_does_not_end_is_refused() {
        const BEGINS: &str = "PROXY UNKNOWN ";
        for (length, is_line) in [(107, true), (108, false)] {
            let rest = "x".repeat(length - BEGINS.len() - 2);
            let found = told(format!("{BEGINS}{rest}\r\n").as_bytes()).await;
            assert_eq!(found.is_ok(), is_line, "{length}");
        }
        for (length, is_refused) in [(106, false), (107, true)] {
            let (mut proxy, stream) = tokio::io::duplex(1 << 10);
            let begun = BEGINS.to_owned() + &"x".repeat(length - BEGINS.len());
            proxy.write_all(begun.as_bytes()).await.unwrap();
            let mut stream = Guarded::new(stream);
            let found = timeout(Duration::from_secs(1), preface(&mut stream)).await;
            assert_eq!(
                found.is_ok_and(|found| found.is_err()),
                is_refused,
                "{length}"
            );
        }
    }

    #[track_caller]
    fn check(told: Told, lines: &[&str], client: Option<&str>) {
        let proxies = Proxies {
            networks: vec!["10.0.0.0/8".parse().unwrap()],
            unix: false,
            told,
        };
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", line.parse().unwrap());
            headers.append("forwarded", line.parse().unwrap());
        }
        let found = super::client(&proxies, &headers).map(|client| client.to_string());
        assert_eq!(found.as_deref(), client, "{lines:?}");
    }

    /// conn-22: the last stranger on the way, whatever he says of others.
    #[test]
    fn headers_are_read_from_the_right() {
        let x = Told::XForwardedFor;
        check(x, &[], None);
        check(x, &["192.0.2.1"], Some("192.0.2.1"));
        check(x, &["198.51.100.9, 192.0.2.1"], Some("192.0.2.1"));
        check(
            x,
            &["198.51.100.9", "192.0.2.1, 10.0.0.2"],
            Some("192.0.2.1"),
        );
        check(x, &["192.0.2.1:4711,10.0.0.2:1"], Some("192.0.2.1"));
        check(x, &["2001:db8::1"], Some("2001:db8::1"));
        check(x, &["[2001:db8::1]:4711"], Some("2001:db8::1"));
        check(x, &["192.0.2.1, unknown"], None);
        check(x, &["192.0.2.1, evil, 10.0.0.2"], Some("10.0.0.2"));
        check(x, &["10.0.0.3, 10.0.0.2"], Some("10.0.0.3"));
        let f = Told::Forwarded;
        check(f, &["for=192.0.2.1"], Some("192.0.2.1"));
        check(
            f,
            &["For=\"[2001:db8::1]:4711\";proto=https, for=10.0.0.2;by=10.0.0.1"],
            Some("2001:db8::1"),
        );
        check(f, &["for=192.0.2.1;for=198.51.100.1"], None);
        check(f, &["for=_hidden"], None);
        check(f, &["proto=https;host=evil"], None);
        check(f, &["192.0.2.1"], None);
    }
}

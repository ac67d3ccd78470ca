//! The first bytes of a connection: is it TLS, and for which name (RFC 8446 §4.1.2)?
//!
//! A name that was allowed must not be the way to another one behind the same
//! address (domain fronting, probe-57). Only the ClientHello is looked at; what
//! is in it is forwarded as it came. Pure.

/// What the first bytes have to say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Rule {
    pub(super) name: Expected,
    /// Nothing but TLS is spoken on this port.
    pub(super) tls: bool,
}

/// Which name a ClientHello has to have.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Expected {
    /// This one.
    Exactly(String),
    /// This one, or none.
    Perhaps(String),
    /// There is no name to compare with.
    Anything,
}

/// What is to be done with the bytes so far.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Look {
    /// Wait for more of them.
    More,
    Fine,
    Wrong(Why),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum Why {
    #[error("this port is for TLS, and something else was said")]
    NotTls,
    #[error("the TLS hello cannot be read")]
    Unreadable,
    #[error("TLS was begun without a name")]
    Nameless,
    #[error("TLS was begun for another name")]
    OtherName,
    #[error("TLS was begun for a hidden name (encrypted client hello)")]
    HiddenName,
    #[error("nothing was said in time")]
    Late,
}

impl Rule {
    /// Whether there is anything to look for.
    pub(super) fn is_needed(&self) -> bool {
        self.name != Expected::Anything
    }

    /// Looks at all bytes so far.
    pub(super) fn look(&self, bytes: &[u8]) -> Look {
        // A record of handshake, in any version of TLS.
        let begins = bytes
            .iter()
            .zip([HANDSHAKE, 3])
            .all(|(byte, wanted)| *byte == wanted);
        if !begins {
            return if self.tls {
                Look::Wrong(Why::NotTls)
            } else {
                Look::Fine
            };
        }
        match handshake(bytes) {
            Err(Part::Missing) if bytes.len() < MAX_HELLO => Look::More,
            Err(_) => Look::Wrong(Why::Unreadable),
            Ok(message) => match client_hello(&message) {
                Ok(hello) => self.judge(&hello),
                Err(()) => Look::Wrong(Why::Unreadable),
            },
        }
    }

    fn judge(&self, hello: &Hello) -> Look {
        if hello.hidden {
            return Look::Wrong(Why::HiddenName);
        }
        let said = hello.name.as_deref().map(str::to_ascii_lowercase);
        match (&self.name, said) {
            (Expected::Anything, _) | (Expected::Perhaps(_), None) => Look::Fine,
            (Expected::Exactly(_), None) => Look::Wrong(Why::Nameless),
            (Expected::Exactly(name) | Expected::Perhaps(name), Some(said)) if *name == said => {
                Look::Fine
            }
            _ => Look::Wrong(Why::OtherName),
        }
    }
}

/// Whether TLS is spoken on a port from the first byte on.
pub(super) fn is_tls_port(port: u16) -> bool {
    TLS_PORTS.contains(&port)
}

#[derive(Debug, Default, Eq, PartialEq)]
struct Hello {
    name: Option<String>,
    hidden: bool,
}

enum Part {
    Missing,
    Wrong,
}

/// The ClientHello message, put together from its records.
fn handshake(mut bytes: &[u8]) -> Result<Vec<u8>, Part> {
    let mut message = Vec::new();
    loop {
        let [kind, major, _, high, low, rest @ ..] = bytes else {
            return Err(Part::Missing);
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if *kind != HANDSHAKE || *major != 3 || length == 0 || length > MAX_RECORD {
            return Err(Part::Wrong);
        }
        let part = rest.get(..length).ok_or(Part::Missing)?;
        message.extend_from_slice(part);
        bytes = &rest[length..];
        if let [kind, a, b, c, ..] = message[..] {
            let length =
                usize::try_from(u32::from_be_bytes([0, a, b, c])).map_err(|_| Part::Wrong)?;
            if kind != CLIENT_HELLO || length > MAX_HELLO {
                return Err(Part::Wrong);
            }
            match message.len() - 4 {
                // Nothing may follow it in its record.
                there if there == length => return Ok(message.split_off(4)),
                there if there > length => return Err(Part::Wrong),
                _ => {}
            }
        }
    }
}

fn client_hello(message: &[u8]) -> Result<Hello, ()> {
    let mut left = message;
    // Version and random.
    take(&mut left, 34)?;
    // Session id, cipher suites, compression methods.
    vector(&mut left, 1)?;
    vector(&mut left, 2)?;
    vector(&mut left, 1)?;
    let mut hello = Hello::default();
    if left.is_empty() {
        return Ok(hello);
    }
    let mut extensions = vector(&mut left, 2)?;
    if !left.is_empty() {
        return Err(());
    }
    let mut seen = Vec::new();
    while !extensions.is_empty() {
        let kind = number(&mut extensions, 2)?;
        let body = vector(&mut extensions, 2)?;
        // Of two, one reader takes the first and another the last.
        if seen.contains(&kind) || seen.len() >= MAX_EXTENSIONS {
            return Err(());
        }
        seen.push(kind);
        match kind {
            SERVER_NAME => hello.name = Some(server_name(body)?),
            ENCRYPTED_HELLO | ENCRYPTED_NAME => hello.hidden = true,
            _ => {}
        }
    }
    Ok(hello)
}

/// A list of exactly one name (RFC 6066 §3).
fn server_name(mut body: &[u8]) -> Result<String, ()> {
    let mut list = vector(&mut body, 2)?;
    let kind = number(&mut list, 1)?;
    let name = vector(&mut list, 2)?;
    if !body.is_empty() || !list.is_empty() || kind != 0 || name.is_empty() {
        return Err(());
    }
    let text = std::str::from_utf8(name).map_err(|_| ())?;
    text.is_ascii().then(|| text.to_owned()).ok_or(())
}

/// A vector with a length of `width` bytes before it.
fn vector<'a>(left: &mut &'a [u8], width: usize) -> Result<&'a [u8], ()> {
    let length = number(left, width)?;
    take(left, length)
}

fn number(left: &mut &[u8], width: usize) -> Result<usize, ()> {
    let bytes = take(left, width)?;
    Ok(bytes
        .iter()
        .fold(0, |sum, byte| (sum << 8) | usize::from(*byte)))
}

fn take<'a>(left: &mut &'a [u8], count: usize) -> Result<&'a [u8], ()> {
    let (taken, rest) = left.split_at_checked(count).ok_or(())?;
    *left = rest;
    Ok(taken)
}

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: usize = 0;
/// draft-ietf-tls-esni, and its forerunner.
const ENCRYPTED_HELLO: usize = 0xfe0d;
const ENCRYPTED_NAME: usize = 0xffce;
const MAX_EXTENSIONS: usize = 64;
/// RFC 8446 §5.1.
const MAX_RECORD: usize = 1 << 14;
/// Bytes of a hello that is read; the longest in use have about two thousand.
const MAX_HELLO: usize = 32 << 10;
/// Ports that IANA or custom gives to TLS from the first byte on.
const TLS_PORTS: &[u16] = &[
    443, 465, 563, 636, 853, 989, 990, 992, 993, 994, 995, 2376, 3269, 5061, 5349, 5671, 5986,
    6443, 6514, 6697, 8443, 8883, 9443,
];

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};

    use super::*;

    /// What a real client says first.
    fn real(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut said = Vec::new();
        client.write_tls(&mut said).unwrap();
        said
    }

    /// A hello with these extensions, in records of at most `most` bytes.
    fn made(extensions: &[(u16, Vec<u8>)], most: usize) -> Vec<u8> {
        let two = |length: usize| u16::try_from(length).unwrap().to_be_bytes();
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        let mut all = Vec::new();
        for (kind, extension) in extensions {
            all.extend(kind.to_be_bytes());
            all.extend(two(extension.len()));
            all.extend(extension);
        }
        body.extend(two(all.len()));
        body.extend(all);
        let mut message = vec![1, 0];
        message.extend(two(body.len()));
        message.extend(body);
        message
            .chunks(most)
            .flat_map(|part| [&[22, 3, 1][..], &two(part.len()), part].concat())
            .collect()
    }

    fn sni(names: &[&str]) -> (u16, Vec<u8>) {
        let mut list = Vec::new();
        for name in names {
            list.push(0);
            list.extend(u16::try_from(name.len()).unwrap().to_be_bytes());
            list.extend(name.bytes());
        }
        (
            0,
            [&u16::try_from(list.len()).unwrap().to_be_bytes()[..], &list].concat(),
        )
    }

    fn rule(name: &str, tls: bool) -> Rule {
        Rule {
            name: Expected::Exactly(name.to_owned()),
            tls,
        }
    }

    /// probe-57: the name in the hello is the name that was allowed.
    #[test]
    fn a_hello_is_for_the_allowed_name_or_refused() {
        let rule = rule("allowed.com", true);
        assert_eq!(rule.look(&real("allowed.com")), Look::Fine);
        assert_eq!(rule.look(&real("evil.com")), Look::Wrong(Why::OtherName));
        assert_eq!(rule.look(&real("192.0.2.1")), Look::Wrong(Why::Nameless));
        assert_eq!(rule.look(&made(&[sni(&["ALLOWED.com"])], 9)), Look::Fine);
        for (extensions, why) in [
            (vec![sni(&["allowed.com", "evil.com"])], Why::Unreadable),
            (
                vec![sni(&["allowed.com"]), sni(&["evil.com"])],
                Why::Unreadable,
            ),
            (
                vec![sni(&["evil.com"]), sni(&["allowed.com"])],
                Why::Unreadable,
            ),
            (vec![sni(&["allowed.com\0"])], Why::OtherName),
            (vec![sni(&["allowed.com."])], Why::OtherName),
            (vec![sni(&[""])], Why::Unreadable),
            (vec![(0, Vec::new())], Why::Unreadable),
            (
                vec![sni(&["allowed.com"]), (0xfe0d, vec![0])],
                Why::HiddenName,
            ),
            (vec![(0xfe0d, vec![0])], Why::HiddenName),
            (Vec::new(), Why::Nameless),
        ] {
            assert_eq!(
                rule.look(&made(&extensions, 16_000)),
                Look::Wrong(why),
                "{extensions:?}"
            );
        }
        let mut trailing = made(&[sni(&["allowed.com"])], 16_000);
        let end = trailing.len();
        trailing[4] += 1;
        trailing.push(0);
        assert_eq!(rule.look(&trailing), Look::Wrong(Why::Unreadable));
        trailing.truncate(end);
    }

    #[test]
    fn a_forward_may_be_used_without_a_name_and_not_with_another() {
        let rule = Rule {
            name: Expected::Perhaps("db.corp".to_owned()),
            tls: true,
        };
        assert_eq!(rule.look(&real("192.0.2.1")), Look::Fine);
        assert_eq!(rule.look(&real("db.corp")), Look::Fine);
        assert_eq!(rule.look(&real("evil.com")), Look::Wrong(Why::OtherName));
    }

    /// probe-57: on a port for TLS nothing else is said; elsewhere it is not looked at, unless it is TLS.
    #[test]
    fn other_protocols_have_ports_of_their_own() {
        for text in [
            "GET / HTTP/1.1\r\n",
            "\0",
            "\x15\x03",
            "SSH-2.0",
            "\x16\x04",
        ] {
            assert_eq!(
                rule("a.b", true).look(text.as_bytes()),
                Look::Wrong(Why::NotTls),
                "{text:?}"
            );
            assert_eq!(
                rule("a.b", false).look(text.as_bytes()),
                Look::Fine,
                "{text:?}"
            );
        }
        assert_eq!(
            rule("a.b", false).look(&real("evil.com")),
            Look::Wrong(Why::OtherName)
        );
        assert_eq!(rule("a.b", false).look(&real("a.b")), Look::Fine);
    }

    #[test]
    fn a_hello_in_pieces_is_waited_for() {
        let whole = made(&[sni(&["a.b"])], 5);
        for end in 1..whole.len() {
            assert_eq!(rule("a.b", true).look(&whole[..end]), Look::More, "{end}");
        }
        assert_eq!(rule("a.b", true).look(&whole), Look::Fine);
        let mut endless = vec![22, 3, 1, 0x3f, 0xff, 1, 0, 0x7f, 0xff];
        endless.resize(MAX_HELLO, 0);
        assert_eq!(
            rule("a.b", true).look(&endless),
            Look::Wrong(Why::Unreadable)
        );
    }

    proptest! {
        #[test]
        fn whatever_is_said_it_is_judged_and_never_found_fine_by_accident(
            tail in proptest::collection::vec(any::<u8>(), 0..300), at in 0_usize..200, value: u8,
        ) {
            let rule = rule("a.b", true);
            let _ = rule.look(&[&[22, 3, 1][..], &tail].concat());
            let mut hello = real("c.d");
            let at = at.min(hello.len() - 1);
            hello[at] = value;
            prop_assert_ne!(rule.look(&hello), Look::Fine);
        }
    }
}

//! What a connection passes before its first request: its place, the word of a proxy,
//! and TLS.
//!
//! Nothing here looks at a request. Who must not come in is answered by the same
//! pipeline as everybody, with a refusal in place of the request.

use std::{
    io,
    num::NonZeroU16,
    pin::pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    sync::watch,
    time::timeout,
};
use tracing::{debug, warn};

use super::{
    activity::Activity,
    beside::{First, beside},
    connection::{self, Asked, Rested, Version},
    guarded::{Guarded, Unwatched},
    proxied,
    roster::{Roster, Seat},
};
use crate::{
    config::{Proxies, Told},
    http::{Peer, Refusal, Response, peer::Stream, tls::Tls},
};

/// The one way in.
pub struct Entrance {
    pub tls: Option<Arc<Tls>>,
    /// There should be TLS, or it is not known whether, and there is none.
    pub lacks_tls: bool,
    pub proxies: Option<Proxies>,
    pub roster: Roster,
    /// Connections of one address at once.
    pub share: usize,
}

impl Entrance {
    /// For everybody who comes while nothing is known of the configuration.
    pub fn unknown() -> Self {
        Self {
            tls: None,
            lacks_tls: true,
            proxies: None,
            roster: Roster::new(),
            share: usize::MAX,
        }
    }

    /// Serves one connection to its end. Thousands of them rest at any time: what is large is boxed,
    /// and what is handed on is borrowed.
    pub fn serve<F, A>(
        self: Arc<Self>,
        stream: Stream,
        peer: Peer,
        drain: watch::Receiver<bool>,
        answer: A,
    ) -> impl Future<Output = ()> + use<F, A>
    where
        F: Future<Output = Response> + Send + 'static,
        A: Fn(Asked, Peer) -> F,
    {
        let (stream, whom) = (Box::new(Guarded::new(stream)), Whom::new(peer));
        async move {
            let activity = Activity::new();
            let seat = self.roster.enter(&activity);
            let mut unseen = Unseen {
                activity: &activity,
                told: Some(|requests| answer(Err(Refusal::Framing(requests)), whom.peer())),
            };
            let serves = self.admit(stream, &whom, &seat, &activity, &drain, &answer);
            // It has no request, and somebody else may have one.
            let sheds = activity.shed_while_idle();
            let ended = beside(pin!(serves), pin!(sheds)).await;
            if let First::Work(Err(error)) = ended {
                debug!(%error, "connection ended before its first request");
            }
            if let Some(told) = unseen.tell() {
                // Nobody is told by this, but it is on record.
                told.await;
            }
        }
    }

    async fn admit<F>(
        &self,
        mut stream: Rested<Stream>,
        whom: &Whom,
        seat: &Seat<'_>,
        activity: &Activity,
        drain: &watch::Receiver<bool>,
        answer: &impl Fn(Asked, Peer) -> F,
    ) -> io::Result<()>
    where
        F: Future<Output = Response> + Send + 'static,
    {
        if self.proxies.as_ref().is_some_and(|proxies| {
            proxies.told == Told::ProxyProtocol && whom.peer().is_one_of(proxies)
        }) {
            Box::pin(named(&mut stream, whom)).await?;
        }
        let over = self
            .counted(whom.peer())
            .is_some_and(|address| seat.belongs_to(address) > self.share);
        let answer = |asked: Asked| {
            let asked = if over {
                Err(Refusal::TooManyConnections)
            } else {
                asked
            };
            answer(asked, whom.peer())
        };
        match &self.tls {
            None => {
                if self.lacks_tls && Box::pin(turned_away(&mut stream, whom.peer(), drain)).await? {
                    return Ok(());
                }
                connection::serve(stream, drain, activity, &answer).await;
            }
            Some(tls) => Box::pin(secured(tls, stream, activity, drain, &answer)).await?,
        }
        Ok(())
    }

    /// The address whose share this connection is of. This host and proxies are many in one.
    fn counted(&self, peer: Peer) -> Option<std::net::IpAddr> {
        match peer {
            Peer::Unix(_) => None,
            Peer::Tcp(address) if address.ip().to_canonical().is_loopback() => None,
            Peer::Tcp(address) => {
                let is_proxy = self
                    .proxies
                    .as_ref()
                    .is_some_and(|proxies| peer.is_one_of(proxies));
                (!is_proxy).then_some(address.ip())
            }
            Peer::Behind { client, .. } => Some(client.ip()),
        }
    }
}

/// Who is at the other end.
struct Whom {
    peer: Peer,
    /// The same and whom it speaks for, where a proxy that is trusted has said so.
    named: OnceLock<Peer>,
}

impl Whom {
    fn new(peer: Peer) -> Box<Self> {
        Box::new(Self {
            peer,
            named: OnceLock::new(),
        })
    }

    fn peer(&self) -> Peer {
        *self.named.get().unwrap_or(&self.peer)
    }
}

/// What a connection has read of requests that nothing else has seen, in whatever way it ends.
struct Unseen<'a, T: FnOnce(NonZeroU16) -> F, F> {
    activity: &'a Activity,
    /// Puts on record how many, also where nobody waits for that.
    told: Option<T>,
}

impl<T: FnOnce(NonZeroU16) -> F, F> Unseen<'_, T, F> {
    /// Puts them on record, if there are such.
    fn tell(&mut self) -> Option<F> {
        let told = self.told.take()?;
        let unseen = u16::try_from(self.activity.unseen()).unwrap_or(u16::MAX);
        NonZeroU16::new(unseen).map(told)
    }
}

impl<T: FnOnce(NonZeroU16) -> F, F> Drop for Unseen<'_, T, F> {
    fn drop(&mut self) {
        // Its connection was cut: no work is begun any more, and that there was none is recorded.
        drop(self.tell());
    }
}

/// Learns whom a proxy that is trusted speaks for, which it says first of all.
async fn named(stream: &mut Guarded<Stream, Unwatched>, whom: &Whom) -> io::Result<()> {
    let client = timeout(PROXY_DEADLINE, proxied::preface(stream))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .inspect_err(|error| {
            // Whoever only looks whether the port is open says nothing.
            if !stream.first().is_empty() {
                warn!(peer = %whom.peer, %error, "a trusted proxy does not say whom it speaks for");
            }
        })?;
    if let Some(client) = client {
        let _ = whom.named.set(whom.peer.speaks_for(client));
    }
    Ok(())
}

/// Whether it is TLS that comes.
async fn shakes_hands(stream: &mut Guarded<impl AsyncRead + Unpin, Unwatched>) -> io::Result<bool> {
    timeout(FIRST_BYTE, stream.begins_with(&[HANDSHAKE]))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Whether it is TLS that comes where there is none: then it is told so in the words of TLS,
/// and the connection is over. In those of HTTP it would look like a broken server.
async fn turned_away(
    stream: &mut Guarded<Stream, Unwatched>,
    peer: Peer,
    drain: &watch::Receiver<bool>,
) -> io::Result<bool> {
    let shakes = tokio::select! {
        shakes = shakes_hands(stream) => shakes?,
        () = connection::told(drain.clone(), None) => return Ok(true),
    };
    if shakes {
        warn!(%peer, "a client speaks TLS, and there is no certificate until the configuration is mended: it is told so by an alert");
        stream.write_all(&NO_TLS_NOW).await?;
        stream.shutdown().await?;
    }
    Ok(shakes)
}

async fn secured<F>(
    tls: &Tls,
    mut stream: Rested<impl AsyncRead + AsyncWrite + Send + Unpin + 'static>,
    activity: &Activity,
    drain: &watch::Receiver<bool>,
    answer: &impl Fn(Asked) -> F,
) -> io::Result<()>
where
    F: Future<Output = Response> + Send + 'static,
{
    let shaken = async {
        if shakes_hands(&mut stream).await? {
            tls.accept(*stream).await.map(Ok)
        } else {
            Ok(Err(stream))
        }
    };
    let shaken = tokio::select! {
        shaken = shaken => shaken?,
        () = connection::told(drain.clone(), None) => return Ok(()),
    };
    match shaken {
        Ok((stream, version)) => {
            let stream = Box::new(Guarded::new(stream));
            connection::serve_version(version, stream, drain, activity, answer).await;
        }
        // Nobody is sent away without a word, and nothing is done for whoever sent a
        // token in the clear.
        Err(stream) if !stream.first().is_empty() => {
            let answer = |asked: Asked| answer(Err(asked.err().unwrap_or(Refusal::Plaintext)));
            connection::serve_version(Version::One, stream, drain, activity, &answer).await;
        }
        Err(_) => {}
    }
    Ok(())
}

/// The first byte of a TLS record that begins a handshake (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;
/// A record of TLS with a fatal alert, `internal_error`: the fault is on this side (RFC 8446 §6.2).
const NO_TLS_NOW: [u8; 7] = [21, 3, 3, 0, 2, 2, 80];
/// How long a client may take for it.
const FIRST_BYTE: Duration = Duration::from_secs(10);
/// How long a proxy may take to say whom it speaks for.
const PROXY_DEADLINE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    };
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        task::JoinHandle,
    };
    use tokio_rustls::{TlsConnector, client::TlsStream};

    use super::*;
    use crate::{
        config::{self, Pem},
        http::{
            flood::PREFACE,
            guarded::WRITE_DEADLINE,
            reply,
            testing::{connected, ends, ends_after},
            tls::Source,
        },
        systemd::Credentials,
    };

    fn entrance(told: Option<Told>) -> Entrance {
        let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls");
        let source = Source {
            config: config::Tls {
                certificate: Pem::Credential("localhost.pem".to_owned()),
                key: Pem::Credential("localhost.key".to_owned()),
            },
            credentials: Credentials::within(tests.into()),
        };
        Entrance {
            tls: Some(Arc::new(Tls::load(source).unwrap())),
            lacks_tls: false,
            proxies: told.map(|told| Proxies {
                networks: vec!["127.0.0.1/32".parse().unwrap()],
                unix: false,
                told,
            }),
            roster: Roster::new(),
            share: 10,
        }
    }

    async fn enter(entrance: Entrance) -> (TcpStream, JoinHandle<()>, watch::Sender<bool>) {
        let (client, stream) = connected().await;
        let peer = stream.peer_addr().unwrap();
        let (drain, draining) = watch::channel(false);
        let answer = |_, _| async { reply::empty(StatusCode::OK) };
        let (stream, peer) = (Stream::Left(stream), Peer::Tcp(peer));
        let served = tokio::spawn(Arc::new(entrance).serve(stream, peer, draining, answer));
        (client, served, drain)
    }

    /// conn-10: an address has its share of the connections; not one that stands for many, a proxy's or this host's.
    #[test]
    fn the_address_that_is_counted_is_the_clients() {
        let mut entrance = entrance(Some(Told::ProxyProtocol));
        let proxies = entrance.proxies.as_mut().unwrap();
        proxies.networks = vec!["10.0.0.0/8".parse().unwrap()];
        let address = |text: &str| -> std::net::SocketAddr { text.parse().unwrap() };
        let (proxy, client) = (address("10.0.0.1:1"), address("192.0.2.1:1"));
        let behind = Peer::Tcp(proxy).speaks_for(client);
        for (peer, counted) in [
            (Peer::Tcp(client), Some(client.ip())),
            (Peer::Tcp(proxy), None),
            (behind, Some(client.ip())),
            (Peer::Tcp(proxy).speaks_for(proxy), Some(proxy.ip())),
            (Peer::Tcp(address("127.0.0.1:1")), None),
            (Peer::Tcp(address("[::ffff:127.0.0.1]:1")), None),
            (Peer::Unix(None), None),
        ] {
            assert_eq!(entrance.counted(peer), counted, "{peer:?}");
        }
    }

    /// fault-38: whoever does not come to an end of what it begins is let go.
    #[tokio::test]
    async fn a_slow_beginning_is_not_waited_for() {
        let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
        for (told, sent) in [
            (None, &b""[..]),
            (None, &hello[..1]),
            (None, &hello[..]),
            (Some(Told::ProxyProtocol), b""),
            (Some(Told::ProxyProtocol), b"PROXY TCP4 192.0.2.1"),
            (Some(Told::ProxyProtocol), b"\r\n\r\n\0\r\nQUIT\n\x21"),
            (Some(Told::ProxyProtocol), b"PROXY UNKNOWN\r\n\x16\x03\x01"),
        ] {
            let (mut client, served, _drain) = enter(entrance(told)).await;
            client.write_all(sent).await.unwrap();
            // The runtime sees what has come before time passes.
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            ends_after(FIRST_BYTE, served).await;
            let mut answer = Vec::new();
            let _ = client.read_to_end(&mut answer).await;
            assert!(answer.is_empty(), "{sent:?}");
        }
    }

    /// What the library refused is on record even where the connection has to make room for another.
    #[tokio::test]
    async fn a_connection_that_makes_room_leaves_no_request_unrecorded() {
        let entrance = Arc::new(Entrance {
            tls: None,
            ..entrance(None)
        });
        let (mut client, stream) = connected().await;
        let peer = Peer::Tcp(stream.peer_addr().unwrap());
        let (_drain, draining) = watch::channel(false);
        let (asked, mut refused) = tokio::sync::mpsc::unbounded_channel();
        let serving = entrance.clone();
        let served = tokio::spawn(async move {
            let answer = |request: Asked, peer: Peer| {
                asked.send((request.err(), peer)).unwrap();
                std::future::ready(reply::empty(StatusCode::OK))
            };
            let stream = Stream::Left(stream);
            serving.serve(stream, peer, draining, answer).await;
        });
        // Settings, and a head that says only how something is asked for, `:method: GET`.
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let head = [0, 0, 1, 1, 5, 0, 0, 0, 1, 0x82];
        for part in [PREFACE, &settings, &head] {
            client.write_all(part).await.unwrap();
        }
        let reset = [0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 1];
        let mut said = Vec::new();
        while !said.windows(reset.len()).any(|part| part == reset) {
            assert_ne!(client.read_buf(&mut said).await.unwrap(), 0, "{said:?}");
        }
        assert!(refused.try_recv().is_err());
        entrance.roster.make_room();
        served.await.unwrap();
        let (refusal, of) = refused.recv().await.unwrap();
        assert!(matches!(refusal, Some(Refusal::Framing(NonZeroU16::MIN))));
        assert_eq!(of.to_string(), peer.to_string());
        assert!(refused.recv().await.is_none());
    }

    async fn over_tls(client: TcpStream) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        let ca = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/tls/ca.pem");
        roots
            .add(CertificateDer::from_pem_file(ca).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(name, client).await.unwrap()
    }

    /// RFC 8446 §6.1: the end of a connection that rests is said in the words of TLS, or it could be an attacker's.
    #[tokio::test]
    async fn a_connection_over_tls_that_rested_ends_with_a_notice() {
        for drained in [true, false] {
            let (client, served, drain) = enter(entrance(None)).await;
            let mut client = over_tls(client).await;
            client
                .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                .await
                .unwrap();
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0);
            }
            // Longer than it takes to rest.
            tokio::time::sleep(Duration::from_millis(500)).await;
            if drained {
                drain.send(true).unwrap();
            } else {
                ends_after(Duration::from_secs(10), served).await;
            }
            client.read_to_end(&mut answer).await.unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 200"));
        }
    }

    /// By and by: what the peer has sent is seen meanwhile, and only then does its time begin.
    async fn a_minute_passes() {
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(1)).await;
            tokio::time::resume();
        }
    }

    /// The same of one whose request does not come to its end: its client knows that nobody else has cut it.
    #[tokio::test]
    async fn a_connection_over_tls_with_half_a_head_ends_with_a_notice() {
        for half in [&b"POST / HT"[..], b"POST / HTTP/1.1\r\nHost: x\r\nX: "] {
            let (client, served, _drain) = enter(entrance(None)).await;
            let mut client = over_tls(client).await;
            client.write_all(half).await.unwrap();
            a_minute_passes().await;
            ends(served).await;
            let mut answer = Vec::new();
            // Without the notice this is an error.
            client.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"");
        }
    }

    /// What TLS keeps for a peer that reads nothing is not kept for good, however small.
    #[tokio::test]
    async fn a_peer_that_reads_nothing_over_tls_is_let_go() {
        let (client, served, _drain) = enter(entrance(None)).await;
        let client = over_tls(client).await;
        let (_unread, mut client) = tokio::io::split(client);
        let flood = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
        // Until the answers have filled what the kernel keeps, and then the requests.
        let nothing_moves = Duration::from_millis(1500);
        while let Ok(sent) = timeout(nothing_moves, client.write_all(&flood)).await {
            sent.unwrap();
        }
        ends_after(WRITE_DEADLINE, served).await;
    }

    /// conn-1: whoever has shaken hands and asks nothing has no more time than who says nothing in the clear.
    #[tokio::test]
    async fn a_handshake_alone_does_not_keep_a_connection() {
        let (client, served, _drain) = enter(entrance(None)).await;
        let _client = over_tls(client).await;
        a_minute_passes().await;
        ends(served).await;
    }

    /// A connection that has not begun does not hold up a drain.
    #[tokio::test]
    async fn a_connection_in_its_handshake_is_drained() {
        let (mut client, served, drain) = enter(entrance(None)).await;
        client.write_all(b"\x16\x03\x01").await.unwrap();
        drain.send(true).unwrap();
        ends(served).await;
    }

    /// fault-37: what a connection costs while nothing is known of it.
    #[tokio::test]
    async fn the_task_of_a_connection_is_small() {
        let entrance = Arc::new(entrance(None));
        let (_client, stream) = connected().await;
        let (_drain, draining) = watch::channel(false);
        let peer = Peer::Tcp(stream.peer_addr().unwrap());
        let answer = |_, _| async { reply::empty(StatusCode::OK) };
        let served = entrance.serve(Stream::Left(stream), peer, draining, answer);
        assert!(size_of_val(&served) <= 1024, "{}", size_of_val(&served));
    }
}

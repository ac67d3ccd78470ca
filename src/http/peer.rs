//! Who is at the other end of a connection, and what a listener may be.

use std::{
    fmt, io,
    net::{SocketAddr, SocketAddrV4},
    os::fd::{AsRawFd, OwnedFd},
};

use http::HeaderMap;
use nix::sys::socket::{self, SockaddrLike, SockaddrStorage, setsockopt, sockopt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

use super::proxied;
use crate::{auth::LocalPeer, config::Proxies};

/// The other end of a connection, for the record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Peer {
    Tcp(SocketAddr),
    /// A process of this host; its user, as the kernel says (unix(7), SO_PEERCRED).
    Unix(Option<LocalPeer>),
    /// A client of a proxy that is trusted to name it.
    Behind {
        client: SocketAddr,
        /// The proxy's own user.
        local: Option<LocalPeer>,
    },
}

impl Peer {
    /// The user of this host that connects, where the kernel says so.
    pub fn local(self) -> Option<LocalPeer> {
        match self {
            Self::Unix(local) | Self::Behind { local, .. } => local,
            Self::Tcp(_) => None,
        }
    }

    /// Whether it is a proxy that may say whom it speaks for.
    pub fn is_one_of(self, proxies: &Proxies) -> bool {
        match self {
            Self::Tcp(address) => proxies.trusts(address.ip()),
            Self::Unix(_) => proxies.unix,
            Self::Behind { .. } => false,
        }
    }

    /// The client that it speaks for on this connection.
    pub(super) fn speaks_for(self, client: SocketAddr) -> Self {
        let local = self.local();
        Self::Behind { client, local }
    }

    /// Who asks, for the record: itself, or whom its headers name where it is trusted.
    pub fn client(self, proxies: Option<&Proxies>, headers: Option<&HeaderMap>) -> String {
        let told = match (proxies, headers) {
            (Some(proxies), Some(headers)) if self.is_one_of(proxies) => {
                proxied::client(proxies, headers)
            }
            _ => None,
        };
        match (told, self) {
            (Some(client), _) => client.to_string(),
            (None, Self::Tcp(SocketAddr::V4(address))) => text(address),
            (None, _) => self.to_string(),
        }
    }
}

/// As it is displayed: each request has this in its record, and to format it takes three times as long.
fn text(address: SocketAddrV4) -> String {
    let mut text = String::with_capacity("255.255.255.255:65535".len());
    for (octet, end) in address.ip().octets().into_iter().zip(['.', '.', '.', ':']) {
        text.push_str(itoa::Buffer::new().format(octet));
        text.push(end);
    }
    text.push_str(itoa::Buffer::new().format(address.port()));
    text
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address)
            | Self::Behind {
                client: address, ..
            } => address.fmt(f),
            Self::Unix(Some(local)) => write!(f, "uid {}", local.uid),
            Self::Unix(None) => f.write_str("unix"),
        }
    }
}

/// A listening stream socket, as systemd hands it over.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Takes a bound and listening socket. systemd passes blocking ones.
    pub fn from_fd(socket: OwnedFd) -> io::Result<Self> {
        let address: SockaddrStorage = socket::getsockname(socket.as_raw_fd())?;
        match address.family() {
            Some(socket::AddressFamily::Unix) => {
                let listener = std::os::unix::net::UnixListener::from(socket);
                listener.set_nonblocking(true)?;
                Ok(Self::Unix(UnixListener::from_std(listener)?))
            }
            Some(socket::AddressFamily::Inet | socket::AddressFamily::Inet6) => {
                let listener = std::net::TcpListener::from(socket);
                listener.set_nonblocking(true)?;
                notice_silence(&listener)?;
                Ok(Self::Tcp(TcpListener::from_std(listener)?))
            }
            _ => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the socket is neither TCP nor Unix",
            )),
        }
    }

    /// The next connection. Safe to drop and call again.
    pub async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Answers are small; waiting to fill a segment only delays them.
                let _ = stream.set_nodelay(true);
                Ok((Stream::Left(stream), Peer::Tcp(address)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let local = stream.peer_cred().ok().map(|peer| LocalPeer {
                    uid: peer.uid(),
                    gid: peer.gid(),
                });
                Ok((Stream::Right(stream), Peer::Unix(local)))
            }
        }
    }

    /// Whether the kernel says who connects: what `mode = "peer"` requires.
    pub fn is_unix(&self) -> bool {
        matches!(self, Self::Unix(_))
    }

    /// Whether only this host can connect: what `mode = "none"` requires.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(listener) => listener
                .local_addr()
                .is_ok_and(|address| address.ip().is_loopback()),
            Self::Unix(_) => true,
        }
    }
}

/// A client whose host or network is gone says nothing about it: the kernel asks, and
/// waits for what it has sent only so long (fault-48). Each accepted socket inherits it.
fn notice_silence(listener: &std::net::TcpListener) -> io::Result<()> {
    setsockopt(listener, sockopt::KeepAlive, &true)?;
    setsockopt(listener, sockopt::TcpKeepIdle, &SILENCE)?;
    setsockopt(listener, sockopt::TcpKeepInterval, &ASK_AGAIN)?;
    setsockopt(listener, sockopt::TcpKeepCount, &QUESTIONS)?;
    setsockopt(listener, sockopt::TcpUserTimeout, &UNHEARD)?;
    Ok(())
}

/// Seconds of silence after which a client is asked whether it is there.
const SILENCE: u32 = 20;
/// Seconds until it is asked again, and how often.
const ASK_AGAIN: u32 = 5;
const QUESTIONS: u32 = 4;
/// Milliseconds for which what was sent may stay unacknowledged. An open stream says
/// something every 15 seconds (`body::KEEP_ALIVE`), so both ways end within a minute.
const UNHEARD: u32 = 40_000;

/// One accepted connection.
pub type Stream = Either<TcpStream, UnixStream>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_it_is_displayed() {
        for address in [
            "0.0.0.0:0",
            "127.0.0.1:80",
            "255.255.255.255:65535",
            "10.0.200.9:49152",
        ] {
            let parsed: SocketAddrV4 = address.parse().unwrap();
            assert_eq!(text(parsed), address);
            assert_eq!(Peer::Tcp(parsed.into()).client(None, None), address);
        }
    }
    /// conn-22: what a header says of the client counts from the proxies that are configured, and from nobody whom one of
    /// them has named.
    #[test]
    fn a_client_is_named_by_configured_proxies_alone() {
        let proxies = |unix: bool| Proxies {
            networks: vec!["10.0.0.0/8".parse().unwrap()],
            unix,
            told: crate::config::Told::XForwardedFor,
        };
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "192.0.2.1".parse().unwrap());
        let address = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let named = Peer::Tcp(address("203.0.113.1:1")).speaks_for(address("10.0.0.1:1"));
        for (peer, unix, client) in [
            (Peer::Tcp(address("10.0.0.1:1")), false, "192.0.2.1"),
            (
                Peer::Tcp(address("[::ffff:10.0.0.1]:1")),
                false,
                "192.0.2.1",
            ),
            (Peer::Tcp(address("11.0.0.1:1")), true, "11.0.0.1:1"),
            (Peer::Tcp(address("127.0.0.1:1")), true, "127.0.0.1:1"),
            (Peer::Unix(None), true, "192.0.2.1"),
            (Peer::Unix(None), false, "unix"),
            (named, true, "10.0.0.1:1"),
        ] {
            let found = peer.client(Some(&proxies(unix)), Some(&headers));
            assert_eq!(found, client, "{peer:?} {unix}");
            assert_ne!(peer.client(None, Some(&headers)), "192.0.2.1");
        }
    }
}

//! Who is at the other end of a connection, and what a listener may be.

use std::{
    fmt, io,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
};

use http::HeaderMap;
use nix::sys::socket::{self, SockaddrLike, SockaddrStorage};
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
        told.map_or_else(|| self.to_string(), |client| client.to_string())
    }
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

/// One accepted connection.
pub type Stream = Either<TcpStream, UnixStream>;

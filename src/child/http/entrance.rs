//! How the gateway comes into a sandbox: by its loopback, or by its socket.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::Duration,
};

use nix::sys::stat::{SFlag, fstat};
use tokio::{net::UnixStream, time::timeout};

use super::sockets::Sockets;
use crate::{
    config::{InsideDoor, SOCKETS},
    fetch::Io,
    sys::mounts::{Follow, open_place},
};

/// The way to one child.
pub(crate) enum Entrance {
    Port(Arc<Sockets>),
    Socket(Directory),
}

/// The directory in which a child makes its socket.
pub(crate) struct Directory {
    place: OwnedFd,
    name: String,
}

impl Entrance {
    /// By what the child's stage has handed out.
    pub(crate) fn new(door: &InsideDoor, mut handed: Vec<OwnedFd>) -> io::Result<Self> {
        match door {
            InsideDoor::Port(port) => Ok(Self::Port(Sockets::new(*port, handed))),
            InsideDoor::Socket(name) => {
                let place = handed.pop();
                let place = place.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
                let name = name.clone();
                Ok(Self::Socket(Directory { place, name }))
            }
        }
    }

    pub(crate) async fn connect(&self) -> io::Result<Box<dyn Io>> {
        match self {
            Self::Port(sockets) => Ok(Box::new(sockets.connect().await?)),
            Self::Socket(directory) => Ok(Box::new(directory.connect().await?)),
        }
    }

    /// As the Host header wants it.
    pub(crate) fn authority(&self) -> String {
        match self {
            Self::Port(sockets) => sockets.address().to_string(),
            Self::Socket(_) => "localhost".to_owned(),
        }
    }
}

impl fmt::Display for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(sockets) => write!(f, "{} of the server's own network", sockets.address()),
            Self::Socket(directory) => write!(f, "`{SOCKETS}/{}`", directory.name),
        }
    }
}

impl Directory {
    async fn connect(&self) -> io::Result<UnixStream> {
        // A link would lead out of the sandbox: what is connected is the socket that lies there.
        let socket = open_place(self.place.as_fd(), Path::new(&self.name), Follow::No)?;
        let kind = SFlag::from_bits_truncate(fstat(&socket)?.st_mode) & SFlag::S_IFMT;
        if kind != SFlag::S_IFSOCK {
            return Err(io::Error::other("it is no socket"));
        }
        let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
        timeout(CONNECT, UnixStream::connect(path))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

/// How long a connection within one host may take.
const CONNECT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tokio::net::UnixListener;

    use super::*;

    /// probe-8: a child cannot have the gateway connect to a socket outside of its directory.
    #[tokio::test]
    async fn only_a_socket_that_lies_there_is_connected() {
        let outside = tempfile::tempdir().unwrap();
        let inside = tempfile::tempdir().unwrap();
        let _secret = UnixListener::bind(outside.path().join("secret")).unwrap();
        let connects = async |name: &str| {
            let place = std::fs::File::open(inside.path()).unwrap().into();
            let door = InsideDoor::Socket(name.to_owned());
            Entrance::new(&door, vec![place])
                .unwrap()
                .connect()
                .await
                .is_ok()
        };
        symlink(outside.path().join("secret"), inside.path().join("link")).unwrap();
        std::fs::write(inside.path().join("file"), "").unwrap();
        let listener = UnixListener::bind(inside.path().join("own")).unwrap();
        assert!(connects("own").await);
        drop(listener);
        for name in ["link", "file", "own", "missing"] {
            assert!(!connects(name).await, "{name}");
        }
        assert!(Entrance::new(&InsideDoor::Socket("x".to_owned()), Vec::new()).is_err());
    }
}

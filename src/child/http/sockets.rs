//! Connections to the loopback of a child's own network.
//!
//! The sockets were made in that network before the child's program began, and
//! are connected from here again and again: there are [`frames::DIALERS`] of
//! them, so there are never more connections.
//!
//! [`frames::DIALERS`]: crate::frames::DIALERS

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::sys;

/// The sockets that reach one child.
pub(crate) struct Sockets {
    address: SocketAddr,
    free: Mutex<Vec<OwnedFd>>,
    turns: Arc<Semaphore>,
}

impl Sockets {
    pub(crate) fn new(port: u16, sockets: Vec<OwnedFd>) -> Arc<Self> {
        Arc::new(Self {
            address: (Ipv4Addr::LOCALHOST, port).into(),
            turns: Arc::new(Semaphore::new(sockets.len())),
            free: Mutex::new(sockets),
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A new connection, when a socket is free.
    pub(crate) async fn connect(self: &Arc<Self>) -> io::Result<Connected> {
        let turn = self.turns.clone().acquire_owned().await;
        let turn = turn.map_err(io::Error::other)?;
        let socket = self.free().pop().expect("whose turn it is has a socket");
        let used = socket.try_clone();
        let lease = Lease {
            socket: Some(socket),
            home: self.clone(),
            _turn: turn,
        };
        let socket = TcpSocket::from_std_stream(used?.into());
        let stream = timeout(CONNECT, socket.connect(self.address))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        stream.set_nodelay(true)?;
        Ok(Connected {
            stream,
            _lease: lease,
        })
    }

    fn free(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection; its socket is free again when this is dropped.
pub(crate) struct Connected {
    // Dropped first, so that the runtime knows nothing of the socket when it is free.
    stream: TcpStream,
    _lease: Lease,
}

struct Lease {
    socket: Option<OwnedFd>,
    home: Arc<Sockets>,
    _turn: OwnedSemaphorePermit,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(socket) = self.socket.take() {
            // One that was never connected is as good.
            let _ = sys::disconnect(socket.as_fd());
            self.home.free().push(socket);
        }
    }
}

impl AsyncRead for Connected {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connected {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// How long a connection within one host may take.
const CONNECT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// One socket serves connection after connection, whoever closes first, and failures between.
    #[tokio::test]
    async fn a_socket_is_connected_again_and_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let made = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        let sockets = Sockets::new(port, vec![made]);
        for round in 0..20 {
            let mut ours = sockets.connect().await.unwrap();
            let (mut theirs, _) = listener.accept().await.unwrap();
            ours.write_all(b"ping").await.unwrap();
            let mut heard = [0; 4];
            theirs.read_exact(&mut heard).await.unwrap();
            if round % 3 == 0 {
                drop(theirs);
                assert_eq!(ours.read(&mut heard).await.unwrap_or(0), 0);
            } else if round % 3 == 1 {
                ours.shutdown().await.unwrap();
                assert_eq!(theirs.read(&mut heard).await.unwrap(), 0);
            }
        }
        drop(listener);
        for _ in 0..3 {
            assert!(sockets.connect().await.is_err());
        }
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        sockets.connect().await.unwrap();
        drop(listener);
    }
}

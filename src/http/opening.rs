//! The first bytes of a connection, read before it is known what they are of.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

/// A stream of which something was read already; who reads on gets that first.
#[derive(Debug)]
pub(super) struct Opened<S> {
    stream: S,
    first: Vec<u8>,
    at: usize,
}

impl<S> Opened<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            first: Vec::new(),
            at: 0,
        }
    }

    /// What was read and not taken.
    pub(super) fn first(&self) -> &[u8] {
        &self.first[self.at..]
    }

    /// Takes so many of the bytes that were read.
    pub(super) fn take(&mut self, bytes: usize) {
        self.at = (self.at + bytes).min(self.first.len());
    }
}

impl<S: AsyncRead + Unpin> Opened<S> {
    /// Reads some more. Zero at the end.
    pub(super) async fn more(&mut self) -> io::Result<usize> {
        self.first.reserve(AT_ONCE);
        self.stream.read_buf(&mut self.first).await
    }

    /// Whether the stream begins so. Reads no more than is needed to say.
    pub(super) async fn begins_with(&mut self, wanted: &[u8]) -> io::Result<bool> {
        loop {
            let first = self.first();
            let common = first.len().min(wanted.len());
            if first[..common] != wanted[..common] {
                return Ok(false);
            }
            if common == wanted.len() {
                return Ok(true);
            }
            if self.more().await? == 0 {
                return Ok(false);
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Opened<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.first.is_empty() {
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        }
        let part = this.first().len().min(buffer.remaining());
        buffer.put_slice(&this.first[this.at..this.at + part]);
        this.at += part;
        if this.at < this.first.len() {
            return Poll::Ready(Ok(()));
        }
        this.first = Vec::new();
        this.at = 0;
        if part == 0 {
            return Pin::new(&mut this.stream).poll_read(context, buffer);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Opened<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

/// Read at once: the usual first request fits.
const AT_ONCE: usize = 2 << 10;

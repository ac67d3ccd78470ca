//! The stream of a connection, and what watches over it.
//!
//! The one place of this side where bytes of a peer come in and answers go out. What
//! came is looked at by a [`Watch`] before anybody makes something of it; a peer that
//! does not read what it is told is let go. It is begun unwatched: the first bytes
//! say what the others are of.

use std::{
    borrow::Cow,
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// A stream that is watched.
pub(super) struct Guarded<S, W> {
    stream: S,
    watch: W,
    /// What was read and not passed on: first what may be, then what waits for more.
    held: Vec<u8>,
    /// How much of it may be passed on.
    cleared: usize,
    /// What becomes of all that is read later.
    end: Option<End>,
    /// Runs while a write makes no progress: hyper has no deadline for that.
    stalled: Option<Pin<Box<Sleep>>>,
    /// Runs when all is written, and the peer may still be sending.
    lingering: Option<Pin<Box<Sleep>>>,
}

enum End {
    /// Nothing is passed on.
    Deaf,
    /// The same, and it is an error.
    Broken,
}

/// Looks at what a peer sends before anybody else.
pub(super) trait Watch {
    /// How many of these bytes may be passed on, and what becomes of the others.
    /// Those that wait come again, with what follows them.
    fn read(&mut self, bytes: &[u8]) -> (usize, Rest);

    /// Something is to be written.
    fn writes(&mut self) {}

    /// So much was written.
    fn wrote(&mut self, _bytes: usize) {}

    /// All that was written has left.
    fn flushed(&mut self) {}

    /// Whether the peer would have more to send of what it began.
    fn is_amid(&self) -> bool {
        false
    }
}

/// What becomes of bytes that are not passed on.
pub(super) enum Rest {
    Waits,
    /// They are taken out, and so is all that follows; this stands in their place.
    Gone(Cow<'static, [u8]>),
    /// What follows cannot be made sense of.
    Broken,
}

/// Nobody's watch yet.
pub(super) struct Unwatched;

impl Watch for Unwatched {
    fn read(&mut self, bytes: &[u8]) -> (usize, Rest) {
        (bytes.len(), Rest::Waits)
    }
}

impl<S> Guarded<S, Unwatched> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            watch: Unwatched,
            held: Vec::new(),
            cleared: 0,
            end: None,
            stalled: None,
            lingering: None,
        }
    }

    /// What was read and not taken; who reads on gets it first.
    pub(super) fn first(&self) -> &[u8] {
        &self.held
    }

    /// Takes so many of the bytes that were read.
    pub(super) fn take(&mut self, bytes: usize) {
        self.held.drain(..bytes.min(self.cleared));
        self.cleared = self.held.len();
    }

    /// From here on, what came first included, it is watched.
    pub(super) fn watched<W: Watch>(self, watch: W) -> Guarded<S, W> {
        let mut guarded = Guarded {
            stream: self.stream,
            watch,
            held: self.held,
            cleared: 0,
            end: None,
            stalled: self.stalled,
            lingering: None,
        };
        guarded.look_at_held();
        guarded
    }
}

impl<S: AsyncRead + Unpin> Guarded<S, Unwatched> {
    /// Reads some more. Zero at the end. While nothing comes it takes no memory.
    pub(super) async fn more(&mut self) -> io::Result<usize> {
        let (stream, held) = (&mut self.stream, &mut self.held);
        let read = poll_fn(|context| {
            let mut space = [MaybeUninit::uninit(); AT_ONCE];
            let mut buffer = ReadBuf::uninit(&mut space);
            ready!(Pin::new(&mut *stream).poll_read(context, &mut buffer))?;
            held.extend_from_slice(buffer.filled());
            Poll::Ready(io::Result::Ok(buffer.filled().len()))
        })
        .await?;
        self.cleared = self.held.len();
        Ok(read)
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

impl<S, W: Watch> Guarded<S, W> {
    /// From here on it is not, where the next that comes is a beginning again.
    pub(super) fn unwatched(self) -> Option<Guarded<S, Unwatched>> {
        let is_between = self.end.is_none() && self.lingering.is_none() && !self.watch.is_amid();
        is_between.then(|| Guarded {
            cleared: self.held.len(),
            held: self.held,
            ..Guarded::new(self.stream)
        })
    }

    /// Judges what is held, of which nothing is cleared.
    fn look_at_held(&mut self) {
        let (passed, rest) = self.watch.read(&self.held);
        self.cleared = passed;
        match rest {
            Rest::Waits => {}
            Rest::Gone(instead) => {
                self.held.truncate(passed);
                self.held.extend_from_slice(&instead);
                self.cleared = self.held.len();
                self.end = Some(End::Deaf);
            }
            Rest::Broken => self.end = Some(End::Broken),
        }
    }

    /// The same for what was just read, when nothing is held: what may pass stays where
    /// it is. Says how much that is.
    fn look_at(&mut self, read: &[u8]) -> usize {
        let (passed, rest) = self.watch.read(read);
        match rest {
            Rest::Waits => self.held.extend_from_slice(&read[passed..]),
            Rest::Gone(instead) => {
                self.held = instead.into_owned();
                self.cleared = self.held.len();
                self.end = Some(End::Deaf);
            }
            Rest::Broken => self.end = Some(End::Broken),
        }
        passed
    }

    fn give(&mut self, buffer: &mut ReadBuf<'_>) {
        let part = self.cleared.min(buffer.remaining());
        buffer.put_slice(&self.held[..part]);
        self.held.drain(..part);
        self.cleared -= part;
        if self.held.is_empty() {
            // An idle connection keeps nothing.
            self.held = Vec::new();
        }
    }

    /// A write that makes no progress does so for a while, and no longer.
    fn written(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = written {
            self.stalled = None;
            return Poll::Ready(written.inspect(|bytes| self.watch.wrote(*bytes)));
        }
        ready!(
            self.stalled
                .get_or_insert_with(|| Box::pin(sleep(WRITE_DEADLINE)))
                .as_mut()
                .poll(context)
        );
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin, W> Guarded<S, W> {
    /// Reads on for nobody: a peer that leaves is still noticed, and one that
    /// goes on sending can read what it is told.
    fn discard(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut nobody = [0; 1024];
        for _ in 0..DISCARDED_AT_ONCE {
            let mut buffer = ReadBuf::new(&mut nobody);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin, W: Watch + Unpin> AsyncRead for Guarded<S, W> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.cleared > 0 {
                this.give(buffer);
                return Poll::Ready(Ok(()));
            }
            match this.end {
                Some(End::Deaf) => return this.discard(context),
                Some(End::Broken) => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                None => {}
            }
            let before = buffer.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
            let read = &buffer.filled()[before..];
            if read.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let passed = if this.held.is_empty() {
                this.look_at(read)
            } else {
                this.held.extend_from_slice(read);
                this.look_at_held();
                0
            };
            buffer.set_filled(before + passed);
            if passed > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin, W: Watch + Unpin> AsyncWrite for Guarded<S, W> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.watch.writes();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.written(context, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.watch.writes();
        let length = slices.iter().map(|slice| slice.len()).sum();
        let mut joined = [0; JOINED];
        let written = match joined.get_mut(..length) {
            // To copy so little costs less than to have the kernel gather it.
            Some(joined) => {
                let mut rest = &mut *joined;
                for slice in slices {
                    let (place, more) = rest.split_at_mut(slice.len());
                    place.copy_from_slice(slice);
                    rest = more;
                }
                Pin::new(&mut this.stream).poll_write(context, joined)
            }
            None => Pin::new(&mut this.stream).poll_write_vectored(context, slices),
        };
        this.written(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut this.stream).poll_flush(context))?;
        this.watch.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Until it has ended, what it was told last may not have arrived.
        this.watch.writes();
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(context))?;
            if this.end.is_none() && this.held.is_empty() && !this.watch.is_amid() {
                return Poll::Ready(Ok(()));
            }
        }
        // A close with something unread is a reset, which may overtake the answer.
        let over = this
            .lingering
            .get_or_insert_with(|| Box::pin(sleep(LINGER)))
            .as_mut()
            .poll(context);
        if over.is_ready() {
            return Poll::Ready(Ok(()));
        }
        this.discard(context)
    }
}

/// Bytes of an answer that are joined to be written.
const JOINED: usize = 1 << 10;
/// How long a peer may read nothing while there is something for it.
pub(super) const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// How long a peer may go on sending after its last answer.
const LINGER: Duration = Duration::from_secs(1);
/// Reads of what nobody will see, before others have their turn.
const DISCARDED_AT_ONCE: usize = 16;
/// Read at once in the beginning: the usual first request fits.
const AT_ONCE: usize = 2 << 10;

//! A session's child from its start to its end.
//!
//! Starts it, ties its streams to whom it serves, and sees it out: patience, signals, and the record of how it ended.
//! Used by `starting` and `warm`.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::{Notify, oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::timeout,
};
use tracing::{info, warn};

use crate::{
    audit::{Audit, Event, Exit, Reason},
    auth::{Owner, PrincipalKey},
    child::{Child, Ended, Lends, Source, StartError, Translation, stdio},
    egress,
    frames::{Caller, Signal, Status},
    session::{Session, exchange::Failure, line::Line, outbox::OutboxReader, pump},
};

/// What is around a child all its life.
pub(super) struct ChildContext {
    pub(super) source: Arc<Source>,
    pub(super) egress: Arc<egress::Rules>,
    pub(super) audit: Audit,
}

/// Starts a child for `owner`, and records it.
pub(super) async fn start(
    context: &ChildContext,
    owner: &Owner,
    caller: Option<Caller>,
) -> Result<Child, StartError> {
    // Nothing is started before it is on record for whom.
    context.audit.hand_on();
    let child = match context.source.start(owner, caller).await {
        Ok(child) => child,
        Err(error) => {
            context.audit.record(&Event::LayerFailed {
                layer: error.layer().to_owned(),
                reason: error.in_full(),
            });
            if let StartError::NotListening { said, .. } = &error {
                let log = stderr_of(said.child, said.pid, context.audit.clone());
                stdio::log_lines(said.end(), log).await;
            }
            return Err(error);
        }
    };
    let whose = owner.principal();
    context.audit.record(&Event::ChildStarted {
        child: child.number,
        pid: child.pid,
        principal: (whose != PrincipalKey::EVERYBODY).then(|| whose.to_string()),
    });
    Ok(child)
}

/// Records what a child writes for people, line by line.
fn stderr_of(child: u64, pid: u32, audit: Audit) -> impl FnMut(&[u8]) {
    move |line| {
        audit.record(&Event::ChildStderr {
            child,
            pid,
            line: line.to_vec(),
        });
    }
}

/// What a child says.
pub(super) type ChildOutput = Box<dyn AsyncRead + Send + Unpin>;

/// What a child serves: one session, or those that share it.
pub(super) trait Served: Send + Sync + 'static {
    /// Whose it is.
    fn principal(&self) -> String;
    /// The memory of what is on its way to the child or from it.
    fn lends(&self) -> Arc<dyn Lends>;
    /// Said once when it must end.
    fn end(&self) -> &Notify;
    /// Whether it ends because somebody wanted it to.
    fn is_unwanted(&self) -> bool;
    fn in_flight(&self) -> usize;
    fn fail_all(&self, failure: Failure);
    /// Messages of the child's that nobody was given.
    fn unheard(&self) -> u64;
    /// So many bytes have reached the child.
    fn written(&self, bytes: usize);
    /// Its child has nothing more to say.
    fn hang_up(&self);
    /// The request of that number will have no answer.
    fn fail_one(&self, number: u64, failure: Failure);
    /// Reads what the child says until that ends, or until the child has done what it
    /// may not, which is told.
    fn hear(
        self: Arc<Self>,
        stdout: ChildOutput,
        reading: stdio::Reading,
    ) -> impl Future<Output = Option<Reason>> + Send;
}

impl Served for Session {
    fn principal(&self) -> String {
        Session::principal(self).to_string()
    }

    fn lends(&self) -> Arc<dyn Lends> {
        self.room.clone()
    }

    fn end(&self) -> &Notify {
        &self.end
    }

    fn is_unwanted(&self) -> bool {
        self.is_unwanted()
    }

    fn in_flight(&self) -> usize {
        self.in_flight()
    }

    fn fail_all(&self, failure: Failure) {
        self.fail_all(failure);
    }

    fn unheard(&self) -> u64 {
        self.unheard()
    }

    fn written(&self, bytes: usize) {
        self.written(bytes);
    }

    fn hang_up(&self) {
        self.hang_up();
    }

    fn fail_one(&self, number: u64, failure: Failure) {
        self.fail_one(number, failure);
    }

    fn hear(
        self: Arc<Self>,
        stdout: ChildOutput,
        reading: stdio::Reading,
    ) -> impl Future<Output = Option<Reason>> + Send {
        pump::run(self, stdout, reading)
    }
}

/// Serves the session until it ends for whatever reason, then sees the child
/// out: end of its input, SIGTERM, SIGKILL, each with its time.
///
/// What serves it is begun here and not in what is returned: a future has room for all that it was
/// given for as long as it lasts, which is as long as the session.
pub(super) fn tend(
    session: Arc<impl Served>,
    child: Child,
    (lines, reading): (OutboxReader, stdio::Reading),
    context: ChildContext,
) -> impl Future<Output = ()> + Send {
    let ChildContext {
        source,
        egress,
        audit,
    } = context;
    let Child {
        number,
        pid,
        stdin,
        stdout,
        errors,
        doors,
        translation,
        ended,
    } = child;
    let child = number;
    let mut streams = JoinSet::new();
    let input = streams.spawn(write(session.clone(), lines, stdin, audit.clone()));
    let fault = Arc::new(OnceLock::new());
    streams.spawn(listen(session.clone(), stdout, reading, fault.clone()));
    for errors in errors {
        let log = stderr_of(child, pid, audit.clone());
        streams.spawn(stdio::log_lines(errors, log));
    }
    if let Some(Translation { work, mut faults }) = translation {
        streams.spawn(work(session.lends()));
        let session = session.clone();
        streams.spawn(async move {
            while let Some((number, fault)) = faults.recv().await {
                session.fail_one(number, fault.into());
            }
        });
    }
    let ways_out = (!doors.is_empty()).then(|| {
        let owner = egress::Child {
            number,
            pid,
            principal: session.principal(),
        };
        WaysOut::open(egress, owner, doors)
    });
    let mut tended = Tended {
        session,
        source,
        audit,
        number,
        pid,
        ended,
        fault,
        longest: reading.longest,
        input,
        _streams: streams,
        ways_out,
    };
    async move {
        let status = tokio::select! {
            () = tended.session.end().notified() => None,
            told = &mut tended.ended => Some(told.unwrap_or(Ended::RunnerGone)),
        };
        // Boxed: a session lasts longer than its end.
        Box::pin(tended.see_out(status)).await;
    }
}

/// A child that is served.
struct Tended<S> {
    session: Arc<S>,
    source: Arc<Source>,
    audit: Audit,
    number: u64,
    pid: u32,
    ended: oneshot::Receiver<Ended>,
    fault: Arc<OnceLock<Reason>>,
    /// Bytes of the longest line that it may write.
    longest: usize,
    /// What writes to it.
    input: AbortHandle,
    _streams: JoinSet<()>,
    ways_out: Option<WaysOut>,
}

/// What a child may reach, while it lives.
struct WaysOut {
    close: watch::Sender<bool>,
    serving: JoinSet<()>,
}

impl WaysOut {
    fn open(rules: Arc<egress::Rules>, owner: egress::Child, doors: Vec<TcpListener>) -> Self {
        let (close, closed) = watch::channel(false);
        let mut serving = JoinSet::new();
        serving.spawn(rules.serve(owner, doors, closed));
        Self { close, serving }
    }

    /// Returns when all that was open is on record.
    async fn close(mut self) {
        let _ = self.close.send(true);
        while self.serving.join_next().await.is_some() {}
    }
}

impl<S: Served> Tended<S> {
    /// How the child has ended, if it does so within that time.
    async fn ends_within(&mut self, patience: Duration) -> Option<Ended> {
        let told = timeout(patience, &mut self.ended).await.ok()?;
        Some(told.unwrap_or(Ended::RunnerGone))
    }

    /// From the end of the child, or what makes it end, to the record of that.
    async fn see_out(mut self, mut status: Option<Ended>) {
        // Asked now: whoever is told of its end may let go of the session.
        let expected = self.session.is_unwanted();
        if status.is_some() {
            // What it wrote before it ended is still to be read (fault-18).
            let _ = timeout(LAST_WORDS, self.session.end().notified()).await;
        } else if self.session.in_flight() > 0 && self.fault.get() != Some(&Reason::ChildLine) {
            // Its output ended: how it ended itself decides what its callers are told.
            status = self.ends_within(LAST_WORDS).await;
        }
        self.session.fail_all(match (self.fault.get(), status) {
            // Whose answer it was stands at its end, where some write that: all are told.
            (Some(Reason::ChildLine), _) => Failure::TooLarge(self.longest),
            (
                _,
                Some(Ended::Exited {
                    out_of_memory: true,
                    ..
                }),
            ) => Failure::OutOfMemory,
            _ => Failure::ChildEnded,
        });
        // Closes its input.
        self.input.abort();
        if status.is_none() {
            status = self.ends_within(TIME_TO_LEAVE).await;
        }
        for signal in [Signal::Terminate, Signal::Kill] {
            if status.is_none() {
                self.source.signal(self.number, signal).await;
                status = self.ends_within(TIME_TO_OBEY).await;
            }
        }
        let (child, pid) = (self.number, self.pid);
        let unheard = self.session.unheard();
        if unheard > 0 {
            info!(
                pid,
                unheard, "messages of the server's were dropped, because no client was listening"
            );
        }
        if status.is_none() {
            warn!(pid, "the runner did not report the end of a child");
        }
        // What it had open is on record before its end is.
        if let Some(ways_out) = self.ways_out {
            ways_out.close().await;
        }
        self.audit.record(&Event::ChildExited {
            child,
            pid,
            exit: exit_of(status),
            expected,
            fault: self.fault.get().copied(),
        });
    }
}

/// How a child has ended, for the record.
fn exit_of(status: Option<Ended>) -> Exit {
    let (status, out_of_memory) = match status {
        Some(Ended::Exited {
            status,
            out_of_memory,
        }) => (status, out_of_memory),
        Some(Ended::RunnerGone) | None => return Exit::Unknown,
    };
    match status {
        _ if out_of_memory => Exit::OutOfMemory,
        Status::Code(code) => Exit::Code(code),
        Status::Signal(signal) => Exit::Signal(signal),
    }
}

/// Reads what the child says until that ends, and notes what it did wrong.
async fn listen(
    session: Arc<impl Served>,
    stdout: ChildOutput,
    reading: stdio::Reading,
    noted: Arc<OnceLock<Reason>>,
) {
    // Also by a panic: a child that nobody listens to would keep its callers for good.
    let heard = HangsUp(session.clone());
    if let Some(fault) = session.hear(stdout, reading).await {
        let _ = noted.set(fault);
    }
    drop(heard);
}

struct HangsUp<S: Served>(Arc<S>);

impl<S: Served> Drop for HangsUp<S> {
    fn drop(&mut self) {
        self.0.hang_up();
    }
}

fn write(
    session: Arc<impl Served>,
    mut lines: OutboxReader,
    mut stdin: impl AsyncWrite + Send + Unpin,
    audit: Audit,
) -> impl Future<Output = ()> + Send {
    // Of a line that comes in parts.
    let mut bytes = 0;
    async move {
        while let Some(part) = lines.recv().await {
            // That it was permitted is on record before the child sees it.
            audit.hand_on();
            // It has closed its input: its output tells what becomes of it.
            if stdin.write_all(&part).await.is_err() {
                return;
            }
            bytes += part.len();
            if Line::is_end(&part) {
                session.written(std::mem::take(&mut bytes));
            }
        }
    }
}

/// How long the output of an ended child is read, or a child with ended output is waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a child may take after the end of its input (mcp-T27).
const TIME_TO_LEAVE: Duration = Duration::from_secs(2);
/// How long a child may take after each signal (probe-22).
const TIME_TO_OBEY: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use std::{
        io,
        pin::Pin,
        task::{Context, Poll},
    };

    use tokio::io::ReadBuf;

    use super::*;
    use crate::{mcp::Era, session::testing};

    struct Panics;

    impl AsyncRead for Panics {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            panic!("on purpose")
        }
    }

    /// fault-10: a panic in what listens to a child ends that child alone, and at once.
    #[tokio::test]
    async fn a_child_that_nobody_listens_to_any_more_is_ended() {
        let (session, _lines) = testing::session(Era::Legacy);
        let reading = stdio::Reading {
            longest: 1 << 10,
            rate: 1 << 10,
            counts: true,
        };
        let noted = Arc::default();
        let listens = tokio::spawn(listen(session.clone(), Box::new(Panics), reading, noted));
        let ended = timeout(Duration::from_secs(10), session.end.notified()).await;
        assert!(ended.is_ok() && listens.await.unwrap_err().is_panic());
    }

    /// fault-37: what a session costs while its user does something else, as most do at any time.
    #[tokio::test]
    async fn what_serves_a_session_is_small() {
        let (session, lines) = testing::session(Era::Legacy);
        assert!(size_of::<Session>() <= 1088, "{}", size_of::<Session>());
        let reading = stdio::Reading {
            longest: 1 << 10,
            rate: 1 << 10,
            counts: true,
        };
        let stdout = Box::new(tokio::io::empty());
        let listens = listen(session.clone(), stdout, reading, Arc::default());
        assert!(size_of_val(&listens) <= 456, "{}", size_of_val(&listens));
        let stdin: Box<dyn AsyncWrite + Send + Unpin> = Box::new(tokio::io::sink());
        let audit = session.audit.clone();
        let writes = write(session, lines, stdin, audit);
        assert!(size_of_val(&writes) <= 176, "{}", size_of_val(&writes));
        let errors = stdio::log_lines(tokio::io::empty(), |_| ());
        assert!(size_of_val(&errors) <= 152, "{}", size_of_val(&errors));
    }
}

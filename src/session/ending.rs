//! A session's child from its start to its end.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::{Notify, watch},
    task::JoinSet,
    time::timeout,
};
use tracing::{info, warn};

use crate::{
    audit::{Audit, Event, Exit, Reason},
    auth::{Owner, PrincipalKey},
    child::{Child, Ended, Source, StartError, Translation, stdio},
    egress,
    frames::{Caller, Signal, Status},
    session::{Session, exchange::Failure, line::Line, outbox::Lines, pump},
};

/// What a child's whole life needs.
pub(super) struct Around {
    pub(super) source: Arc<Source>,
    pub(super) egress: Arc<egress::Rules>,
    pub(super) audit: Audit,
}

/// Starts a child for `owner`, and records it.
pub(super) async fn start(
    around: &Around,
    owner: &Owner,
    caller: Option<Caller>,
) -> Result<Child, StartError> {
    // Nothing is started before it is on record for whom.
    around.audit.hand_on();
    let started = around.source.start(owner, caller).await;
    let child = started.inspect_err(|error| {
        around.audit.record(&Event::LayerFailed {
            layer: error.layer().to_owned(),
            reason: error.in_full(),
        });
    })?;
    let whose = owner.principal();
    around.audit.record(&Event::ChildStarted {
        child: child.number,
        pid: child.pid,
        principal: (whose != PrincipalKey::EVERYBODY).then(|| whose.to_string()),
    });
    Ok(child)
}

/// What a child says.
pub(super) type Output = Box<dyn AsyncRead + Send + Unpin>;

/// What a child serves: one session, or those that share it.
pub(super) trait Served: Send + Sync + 'static {
    /// Whose it is.
    fn principal(&self) -> String;
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
        stdout: Output,
        reading: stdio::Reading,
    ) -> impl Future<Output = Option<Reason>> + Send;
}

impl Served for Session {
    fn principal(&self) -> String {
        Session::principal(self).to_string()
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

    async fn hear(self: Arc<Self>, stdout: Output, reading: stdio::Reading) -> Option<Reason> {
        pump::run(self, stdout, reading).await
    }
}

/// Serves the session until it ends for whatever reason, then sees the child
/// out: end of its input, SIGTERM, SIGKILL, each with its time.
pub(super) async fn tend(
    session: Arc<impl Served>,
    child: Child,
    (lines, reading): (Lines, stdio::Reading),
    around: Around,
) {
    let Around {
        source,
        egress,
        audit,
    } = around;
    let Child {
        number,
        pid,
        stdin,
        stdout,
        errors,
        doors,
        translation,
        mut ended,
    } = child;
    let child = number;
    let mut streams = JoinSet::new();
    let input = streams.spawn(write(session.clone(), lines, stdin, audit.clone()));
    let fault = Arc::new(OnceLock::new());
    streams.spawn(listen(session.clone(), stdout, reading, fault.clone()));
    for errors in errors {
        let audit = audit.clone();
        streams.spawn(stdio::log_lines(errors, move |line| {
            audit.record(&Event::ChildStderr {
                child,
                pid,
                line: line.to_vec(),
            });
        }));
    }
    if let Some(Translation { work, mut faults }) = translation {
        streams.spawn(work);
        let session = session.clone();
        streams.spawn(async move {
            while let Some((number, fault)) = faults.recv().await {
                session.fail_one(number, fault.into());
            }
        });
    }

    let owner = egress::Child {
        number,
        pid,
        principal: session.principal(),
    };
    let (close_doors, closed) = watch::channel(false);
    let mut ways_out = JoinSet::new();
    ways_out.spawn(egress.serve(owner, doors, closed));

    let mut status = tokio::select! {
        () = session.end().notified() => None,
        told = &mut ended => Some(told.unwrap_or(Ended::RunnerGone)),
    };
    // Asked now: whoever is told of its end may let go of the session.
    let expected = session.is_unwanted();
    if status.is_some() {
        // What it wrote before it ended is still to be read (fault-18).
        let _ = timeout(LAST_WORDS, session.end().notified()).await;
    } else if session.in_flight() > 0 {
        // Its output ended: how it ended itself decides what its callers are told.
        status = timeout(LAST_WORDS, &mut ended)
            .await
            .ok()
            .map(|told| told.unwrap_or(Ended::RunnerGone));
    }
    session.fail_all(match status {
        Some(Ended::Exited {
            out_of_memory: true,
            ..
        }) => Failure::OutOfMemory,
        _ => Failure::ChildEnded,
    });
    // Closes its input.
    input.abort();
    if status.is_none() {
        status = timeout(TIME_TO_LEAVE, &mut ended)
            .await
            .ok()
            .map(|told| told.unwrap_or(Ended::RunnerGone));
    }
    for signal in [Signal::Terminate, Signal::Kill] {
        if status.is_none() {
            source.signal(number, signal).await;
            status = timeout(TIME_TO_OBEY, &mut ended)
                .await
                .ok()
                .map(|told| told.unwrap_or(Ended::RunnerGone));
        }
    }
    let unheard = session.unheard();
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
    let _ = close_doors.send(true);
    while ways_out.join_next().await.is_some() {}
    let exit = match status {
        Some(Ended::Exited {
            out_of_memory: true,
            ..
        }) => Exit::OutOfMemory,
        Some(Ended::Exited {
            status: Status::Code(code),
            ..
        }) => Exit::Code(code),
        Some(Ended::Exited {
            status: Status::Signal(signal),
            ..
        }) => Exit::Signal(signal),
        Some(Ended::RunnerGone) | None => Exit::Unknown,
    };
    audit.record(&Event::ChildExited {
        child,
        pid,
        exit,
        expected,
        fault: fault.get().copied(),
    });
}

/// Reads what the child says until that ends, and notes what it did wrong.
async fn listen(
    session: Arc<impl Served>,
    stdout: Output,
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

async fn write(
    session: Arc<impl Served>,
    mut lines: Lines,
    mut stdin: impl AsyncWrite + Unpin,
    audit: Audit,
) {
    // Of a line that comes in parts.
    let mut bytes = 0;
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
        };
        let noted = Arc::default();
        let listens = tokio::spawn(listen(session.clone(), Box::new(Panics), reading, noted));
        let ended = timeout(Duration::from_secs(10), session.end.notified()).await;
        assert!(ended.is_ok() && listens.await.unwrap_err().is_panic());
    }
}

//! One request's answers on their way back to the client.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::audit::Reason;

/// What comes back for one request, in order: any number of messages, then one answer.
#[derive(Debug)]
pub enum Event {
    /// A notification or a request of the server's, for this client.
    Message(Bytes),
    /// The answer: the child's own bytes under the client's id.
    Answer(Bytes),
    /// There will be no answer, and this is why.
    Failed(Failure),
}

/// Why a request that reached a session has no answer of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// The call took longer than `limits.call-timeout`.
    Timeout,
    /// The child ended before it answered.
    ChildEnded,
    /// The child ran out of its memory.
    OutOfMemory,
    /// The child answered with something that is no JSON-RPC answer (json-17).
    BadAnswer,
    /// The client itself cancelled.
    Cancelled,
    /// The gateway stops; whether the call took effect is not known.
    ShuttingDown,
}

impl Failure {
    /// Its word in `data.reason`.
    pub fn code(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::ChildEnded => "server-ended",
            Self::OutOfMemory => "server-out-of-memory",
            Self::BadAnswer => "server-protocol-error",
            Self::Cancelled => "cancelled",
            Self::ShuttingDown => "shutting-down",
        }
    }

    /// Its word in the record.
    pub fn reason(self) -> Reason {
        match self {
            Self::Timeout => Reason::CallTimeout,
            Self::ChildEnded | Self::OutOfMemory => Reason::ChildGone,
            Self::BadAnswer => Reason::ChildProtocol,
            Self::Cancelled => Reason::Cancelled,
            Self::ShuttingDown => Reason::Stopping,
        }
    }

    /// What a person reads.
    pub fn message(self) -> &'static str {
        match self {
            Self::Timeout => "the server did not answer in time",
            Self::ChildEnded => "the server ended before it answered",
            Self::OutOfMemory => "the server ran out of memory",
            Self::BadAnswer => "the server's answer is not a JSON-RPC answer",
            Self::Cancelled => "cancelled by the client",
            Self::ShuttingDown => "shutting down, outcome unknown",
        }
    }
}

/// What is done to an answer before the client sees it.
pub type Finish = Box<dyn Fn(Bytes) -> Bytes + Send>;

/// The client's end of one request. Dropping it does not cancel the call.
pub struct Exchange {
    pub(super) events: mpsc::Receiver<Event>,
    /// Bytes of the messages that wait in it.
    unread: Arc<AtomicUsize>,
    finish: Option<Finish>,
}

impl Exchange {
    pub(super) fn new(events: mpsc::Receiver<Event>, unread: Arc<AtomicUsize>) -> Self {
        Self {
            events,
            unread,
            finish: None,
        }
    }

    /// Has the answer pass through `finish` (lists are filtered so).
    pub fn finished_by(mut self, finish: Finish) -> Self {
        self.finish = Some(finish);
        self
    }

    /// The next event; `None` after the answer, or when this client was too
    /// slow to be kept (conn-3).
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    pub fn poll_next(
        &mut self,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Event>> {
        self.events
            .poll_recv(context)
            .map(|event| match (event, &self.finish) {
                (Some(Event::Answer(answer)), Some(finish)) => Some(Event::Answer(finish(answer))),
                (Some(Event::Message(message)), _) => {
                    self.unread.fetch_sub(message.len(), Ordering::Relaxed);
                    Some(Event::Message(message))
                }
                (event, _) => event,
            })
    }
}

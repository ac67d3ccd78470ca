//! What comes back to a client: events, and why there is no answer.
//!
//! Values alone. Told by `calls` and `listening` through a `stream`; read by `http`, which has a status and a text for
//! each failure.

use std::borrow::Cow;

use bytes::Bytes;

use crate::{audit::Reason, child::Fault, session::SendError};

/// What comes back for one request, in order: any number of messages, then one answer.
#[derive(Clone, Debug)]
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
    /// A message of the server's was longer than `limits.message`, so many bytes.
    TooLarge(usize),
    /// A server that speaks HTTP takes no connection.
    Unreachable,
    /// It took the request and refused it, or what it was shown.
    Refused,
    /// The client itself cancelled.
    Cancelled,
    /// The client would not or could not give what the server asked it for.
    NoInput,
    /// Too much waits for the server already: it was told nothing of the request.
    Busy,
    /// Too much waits to be read by clients already: the answer came and was dropped.
    NoRoom,
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
            Self::TooLarge(_) => "message-too-large",
            Self::Unreachable => "server-unreachable",
            Self::Refused => "server-refused",
            Self::Cancelled => "cancelled",
            Self::NoInput => "input-refused",
            Self::Busy => "server-busy",
            Self::NoRoom => "answer-dropped",
            Self::ShuttingDown => "shutting-down",
        }
    }

    /// Its word in the record.
    pub fn reason(self) -> Reason {
        match self {
            Self::Timeout => Reason::CallTimeout,
            Self::ChildEnded | Self::OutOfMemory => Reason::ChildGone,
            Self::BadAnswer => Reason::ChildProtocol,
            Self::TooLarge(_) => Reason::MessageTooLarge,
            Self::Unreachable => Reason::ServerUnreachable,
            Self::Refused => Reason::ServerRefused,
            Self::Cancelled => Reason::Cancelled,
            Self::NoInput => Reason::InputRefused,
            Self::Busy => Reason::InFlightLimit,
            Self::NoRoom => Reason::AnswerDropped,
            Self::ShuttingDown => Reason::Stopping,
        }
    }

    /// What a person reads.
    pub fn message(self) -> Cow<'static, str> {
        let said = match self {
            Self::Timeout => "the server did not answer in time",
            Self::ChildEnded => "the server ended before it answered",
            Self::OutOfMemory => "the server ran out of memory",
            Self::BadAnswer => "the server's answer is not a JSON-RPC answer",
            Self::TooLarge(limit) => {
                return format!(
                    "the server wrote a message of more than {limit} bytes, which is all that `limits.message` allows: \
                     ask for less, or have that raised"
                )
                .into();
            }
            Self::Unreachable => "the server cannot be reached",
            Self::Refused => "the server refuses the request",
            Self::Cancelled => "cancelled by the client",
            Self::NoInput => "the client did not give what the server asked it for",
            Self::Busy => "the server is busy and was told nothing of the request: try again",
            Self::NoRoom => {
                "the server answered, and too much waits to be read already: the answer is lost"
            }
            Self::ShuttingDown => "shutting down, outcome unknown",
        };
        said.into()
    }
}

impl Failure {
    /// Why a request fails of which the child could not be told more.
    pub(super) fn unsaid(error: SendError) -> Self {
        match error {
            SendError::Gone => Self::ChildEnded,
            _ => Self::Busy,
        }
    }
}

/// What is done to an answer before the client sees it; beside the loop where that is much.
pub type Finish = Box<dyn FnOnce(Bytes) -> Bytes + Send>;

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Unreachable => Self::Unreachable,
            Fault::Lost | Fault::Gone => Self::ChildEnded,
            Fault::Refused => Self::Refused,
            Fault::BadAnswer => Self::BadAnswer,
            Fault::TooLarge(limit) => Self::TooLarge(limit),
            Fault::Busy => Self::Busy,
            Fault::NoRoom => Self::NoRoom,
        }
    }
}

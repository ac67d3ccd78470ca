//! What became of a message that was to enter a session.

use crate::session::{load::LimitReached, pending::seal::StateError, stream::Exchange};

/// What became of a message that was sent.
pub enum Sent {
    /// A request: its answers come here.
    Exchange(Exchange),
    /// A notification or a response: nothing will come.
    Accepted,
}

/// Why a message did not enter the session.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SendError {
    #[error("the session has ended")]
    Gone,
    #[error("a request with this id is already in flight")]
    DuplicateId,
    #[error("the server is busy")]
    Busy,
    #[error("there are already as many calls as `limits.calls` allows")]
    ServerCalls,
    #[error("this user has already as many calls as `limits.calls-per-user` allows")]
    UserCalls,
    #[error("nobody asked for this response")]
    NotAsked,
    /// What it brings to go on from is nothing that waits here.
    #[error("{0}")]
    State(#[from] StateError),
}

impl From<LimitReached> for SendError {
    fn from(over: LimitReached) -> Self {
        match over {
            LimitReached::Server => Self::ServerCalls,
            LimitReached::User => Self::UserCalls,
        }
    }
}

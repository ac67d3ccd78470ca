//! A conversation bound to one identity, and the child that serves it.
//!
//! Calls are tasks of the session, not of the HTTP request: a legacy client
//! that hangs up does not cancel (mcp-L4). A client's message enters only as a
//! `Permit`; what the gateway itself must say to a child is the closed set in
//! `own`. Used only by `pipeline`, and by `daemon` for ending.

mod blame;
mod calls;
mod conversation;
mod ending;
mod exchange;
#[cfg(test)]
mod faithful;
mod following;
mod heard;
mod hearing;
mod leaving;
mod line;
mod listening;
mod load;
mod logs;
mod opening;
mod outbox;
mod own;
mod pending;
mod probe;
mod progress;
mod pump;
mod questions;
mod renewing;
mod results;
mod reversed;
mod rewrite;
mod room;
mod seal;
mod sent;
mod shared;
mod starting;
mod stream;
mod subscribing;
mod subscriptions;
mod switch;
mod table;
mod tasks;
#[cfg(test)]
mod testing;
mod tools;
mod visits;
mod warm;
mod watching;
mod wording;
mod words;

pub use conversation::Session;
pub use exchange::{Event, Failure, Finish};
pub use listening::{NoStream, Resumed};
pub use room::UNCOUNTED;
pub use seal::{Seal, StateError};
pub use sent::{SendError, Sent};
pub use stream::{Exchange, Late, Style};
pub use table::{NoSession, OpenError, Sessions, Setup};

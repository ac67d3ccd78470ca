//! A conversation bound to one identity, and the child that serves it.
//!
//! Calls are tasks of the session, not of the HTTP request: a legacy client
//! that hangs up does not cancel (mcp-L4). A client's message enters only as a
//! `Permit`; what the gateway itself must say to a child is the closed set in
//! `own`. Used only by `pipeline`, and by `daemon` for ending.
//!
//! Where what is:
//! - a session's life: `table` has all, `starting` and `warm` get it a child, `probe` learns what
//!   that speaks, `ending` ends both, `leaving` those whose clients went without a word;
//! - a message's way to the child: `conversation`, `calls`, `rewrite`, `outbox`; and back: `pump`
//!   reads what the child says, `wording` puts it in its client's words, `stream` and `listening`
//!   are where a client reads it;
//! - `pending`: a call that waits for its client, who was asked something; `tasks`;
//!   `subscriptions`; `reversed`: an older client at a newer child;
//! - `shared`: one child for several sessions;
//! - bounds: `room` for memory, `load` for numbers.

mod blame;
mod calls;
mod conversation;
mod ending;
mod exchange;
#[cfg(test)]
mod faithful;
mod leaving;
mod line;
mod listening;
mod load;
mod logs;
mod outbox;
mod own;
mod pending;
mod probe;
mod pump;
mod reversed;
mod rewrite;
mod room;
mod sent;
mod shared;
mod starting;
mod stream;
mod subscriptions;
mod table;
mod tasks;
#[cfg(test)]
mod testing;
mod tools;
mod warm;
mod wording;

pub use conversation::Session;
pub use exchange::{Event, Failure, Finish};
pub use listening::{NoStream, Resumed};
pub use pending::seal::{Seal, StateError};
pub use room::UNCOUNTED;
pub use sent::{SendError, Sent};
pub use stream::{Exchange, Late, Style};
pub use table::{NoSession, OpenError, Sessions, Setup};

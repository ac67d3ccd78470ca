//! A conversation bound to one identity, and the child that serves it.
//!
//! Calls are tasks of the session, not of the HTTP request: a legacy client
//! that hangs up does not cancel (mcp-L4). A client's message enters only as a
//! `Permit`; what the gateway itself must say to a child is the closed set in
//! `own`. Used only by `pipeline`, and by `daemon` for ending.

// A session and its table: who has one, how it begins, and how its child ends.
mod conversation;
mod ending;
mod leaving;
mod load;
mod sent;
mod starting;
mod table;
mod warm;

// A call on its way to the child: the line, and the queue that it waits in.
mod calls;
mod line;
mod outbox;
mod owed;
mod own;
mod rewrite;

// What the child says on its way to clients: answers, its own messages, streams, memory.
mod blame;
mod exchange;
mod listening;
mod logs;
mod pump;
mod room;
mod stream;
mod tools;
mod wording;

// One child for several sessions.
mod shared;

// Which era the child speaks, if it is not its clients'.
mod bridge;
mod probe;
mod reversed;

// What differs most between the eras: calls that wait for input, tasks, subscriptions.
mod pending;
mod subscriptions;
mod tasks;

#[cfg(test)]
mod faithful;
#[cfg(test)]
mod testing;

pub use conversation::Session;
pub use exchange::{Event, Failure, Finish};
pub use listening::{NoStream, Resumed};
pub use pending::seal::{Seal, StateError};
pub use room::UNCOUNTED;
pub use sent::{SendError, Sent};
pub use stream::{Exchange, Late, Style};
pub use table::{NoSession, OpenError, Sessions, Setup};

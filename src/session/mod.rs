//! A conversation bound to one identity, and the child that serves it.
//!
//! Calls are tasks of the session, not of the HTTP request: a legacy client
//! that hangs up does not cancel (mcp-L4). A client's message enters only as a
//! `Permit`; what the gateway itself must say to a child is the closed set in
//! `own`. Used only by `pipeline`, and by `daemon` for ending.

// A session and its table: who has one, how it begins, and how its child ends.
mod conversation;
mod ending;
mod load;
mod sent;
mod starting;
mod table;
mod warm;

// A call on its way to the child: the line, and the queue that it waits in.
mod calls;
mod line;
mod outbox;
mod own;
mod rewrite;

// What the child says on its way to clients: answers, its own messages and questions, streams, memory.
mod blame;
mod exchange;
mod hearing;
mod listening;
mod progress;
mod pump;
mod questions;
mod room;
mod stream;
mod tools;
mod wording;

// One child for several sessions: `shared` does, `switch` (towards the child) and `heard` (back) decide.
mod heard;
mod opening;
mod shared;
mod switch;
mod words;

// Which era the child speaks, if it is not its clients'.
mod bridge;
mod probe;

// Modern clients, legacy child: calls that wait for input, tasks, subscriptions, log messages.
mod logs;
mod pending;
mod results;
mod seal;
mod subscriptions;
mod tasks;
mod visits;
mod watching;

// A legacy client, modern child: calls made again, tasks that are waited for, subscriptions.
mod following;
mod renewing;
mod reversed;
mod subscribing;

#[cfg(test)]
mod faithful;
#[cfg(test)]
mod testing;

pub use conversation::Session;
pub use exchange::{Event, Failure, Finish};
pub use listening::{NoStream, Resumed};
pub use room::UNCOUNTED;
pub use seal::{Seal, StateError};
pub use sent::{SendError, Sent};
pub use stream::{Exchange, Late, Style};
pub use table::{NoSession, OpenError, Sessions, Setup};

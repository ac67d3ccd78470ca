//! MCP as values and bytes: no input, no output, no clock.
//!
//! A body is read once ([`Call::read`]); what was read is what is decided on
//! and what is forwarded.

// A message, what it has, and how it is changed without touching the rest of its bytes; what is written anew.
pub mod answer;
mod call;
pub mod edit;
mod members;
mod message;
pub mod meta;

// What there is in MCP: versions, methods, and what tools, lists and headers say.
pub mod cache;
pub mod header;
pub mod method;
pub mod tools;
pub mod version;

// Between the eras: a legacy server for modern clients, a modern one for legacy clients.
pub mod bridge;
pub mod input;
pub mod reverse;
pub mod subscription;
pub mod task;

pub use call::{Aim, Call, CallError, Era, Id, NoCall, Shape, Target, spelled};
pub use members::Members;
pub use message::Message;

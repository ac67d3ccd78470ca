//! MCP as values and bytes: no input, no output, no clock.
//!
//! A body is read once ([`Call::read`]); what was read is what is decided on
//! and what is forwarded.

pub mod bridge;
pub mod cache;
mod call;
pub mod edit;
pub mod header;
pub mod input;
mod members;
mod message;
pub mod meta;
pub mod method;
pub mod reverse;
pub mod subscription;
pub mod task;
pub mod tools;
pub mod version;

pub use call::{Aim, Call, CallError, Era, Id, NoCall, Shape, Target, spelled};
pub use members::Members;
pub use message::Message;

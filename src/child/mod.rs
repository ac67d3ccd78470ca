//! The MCP server as the gateway sees it.
//!
//! [`Launcher`] asks the runner for children and never starts a process
//! itself; a [`Child`] is three pipes, and the word when it has ended. `stdio`
//! frames lines. Used only by `session`.

mod launcher;
pub mod stdio;

pub use launcher::{Child, Connection, Ended, Launcher, StartError};

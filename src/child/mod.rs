//! The MCP server as the gateway sees it.
//!
//! A [`Source`] makes children of the kind that is configured: [`Launcher`] asks
//! the runner for processes and never starts one itself, `http` talks to those
//! that speak HTTP, here or elsewhere, `stdio` frames lines, and `share`
//! counts what is on its way. A [`Child`] is
//! the same to a session in each case: lines in, lines out, and the word when it
//! has ended. Used only by `session`.

mod early;
mod http;
mod launcher;
mod share;
mod source;
pub mod stdio;
mod unreached;

pub use self::http::Fault;
pub use launcher::{Connection, Ended, Launcher, StartError};
pub use share::{Lends, Share};
pub use source::{Child, Showing, Shown, Source, Translation};

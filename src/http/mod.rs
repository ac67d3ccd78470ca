//! The HTTP edge: connections, limits, routes, bodies, answers.
//!
//! Knows nothing of tokens or policies; hands each request of a known route to
//! `pipeline` and turns what comes back, refusals included, into HTTP.

// A connection: how it comes in, what it may do, and what watches over its bytes.
mod activity;
mod beside;
pub mod connection;
pub mod entrance;
mod roster;

mod chunked;
mod flood;
mod guarded;
mod head;
mod hush;

// Who is at its other end, and TLS.
pub mod certificate;
pub mod peer;
pub mod proxied;
pub mod tls;

// A request: its path and headers, its body, its answer.
pub mod body;
pub mod budget;
pub mod cors;
pub mod modern;
pub mod names;
pub mod refusal;
pub mod reply;
pub mod route;

#[cfg(test)]
mod testing;

pub use body::Body;
pub use entrance::Entrance;
pub use peer::Peer;
pub use refusal::Refusal;
pub use roster::Roster;
pub use tls::{Tls, TlsError};

/// Every answer of thv.
pub type Response = hyper::Response<Body>;

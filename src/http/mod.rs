//! The HTTP edge: connections, limits, routes, bodies, answers.
//!
//! Knows nothing of tokens or policies; hands each request of a known route to
//! `pipeline` and turns what comes back, refusals included, into HTTP.

mod activity;
pub mod body;
pub mod certificate;
mod chunked;
pub mod connection;
pub mod entrance;
mod flood;
mod guarded;
mod head;
pub mod modern;
pub mod peer;
pub mod proxied;
pub mod refusal;
pub mod reply;
mod roster;
pub mod route;
pub mod tls;

pub use body::Body;
pub use entrance::Entrance;
pub use peer::Peer;
pub use refusal::Refusal;
pub use roster::Roster;
pub use tls::{Tls, TlsError};

/// Every answer of thv.
pub type Response = hyper::Response<Body>;

//! The HTTP edge: connections, limits, routes, bodies, answers.
//!
//! Knows nothing of tokens or policies; hands each request of a known route to
//! `pipeline` and turns what comes back, refusals included, into HTTP.

mod activity;
pub mod body;
mod chunked;
pub mod connection;
mod flood;
mod head;
mod heard;
pub mod modern;
mod opening;
pub mod peer;
pub mod refusal;
pub mod reply;
pub mod route;

pub use body::Body;
pub use peer::Peer;
pub use refusal::Refusal;

/// Every answer of thv.
pub type Response = hyper::Response<Body>;

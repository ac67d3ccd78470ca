//! One binary of scenarios: builders set the scene, the wire tells what came of it.
#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test that cannot go on has failed, and nobody uses it from outside"
)]

/// What others say that conforms.
mod conformance;
/// What a request meets before anybody looks at its token.
mod edge;
/// A child's only way out.
mod egress;
/// From the wire to the child and back.
mod gateway;
mod house;
/// Tokens of every kind, through the whole gateway.
mod identity;
/// Servers that come as container images.
mod image;
/// Requests of the stateless version.
mod modern;
/// A real identity provider, and what becomes of it.
mod provider;
/// One server from one command line.
mod run;
/// Who may ask the runner for anything.
mod runner;
/// What a server can see and do from inside.
mod sandbox;
/// Whom one child serves.
mod scopes;
/// Streams of a session, and coming back to them.
mod streams;
mod wire;

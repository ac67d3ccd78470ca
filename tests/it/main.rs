//! One binary of scenarios: builders set the scene, the wire tells what came of it.
#![allow(
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test that cannot go on has failed, and nobody uses it from outside"
)]

/// Sandboxes that are made before anybody asks.
mod ahead;
/// Answers that come twice, late or for another.
mod answers;
/// Calls that wait for their clients.
mod awaited;
/// Servers that speak HTTP, in the sandbox and elsewhere.
mod backends;
/// Clients and servers of different eras.
mod bridge;
/// Clients that are not ours.
mod clients;
/// What others say that conforms.
mod conformance;
/// More connections than anybody needs.
mod crowds;
/// What a request meets before anybody looks at its token.
mod edge;
/// A child's only way out.
mod egress;
/// Bytes that come out as they went in.
mod faithful;
/// What breaks in the middle of everything.
mod faults;
/// Servers that say too much, or nothing.
mod floods;
/// What HTTP/2 looks like on the wire.
mod frames;
/// From the wire to the child and back.
mod gateway;
/// HTTP/2 as somebody else tests it.
mod h2spec;
mod house;
/// The same door, in HTTP/2.
mod http2;
/// Tokens of every kind, through the whole gateway.
mod identity;
/// Servers that come as container images.
mod image;
/// An identity provider that fails as it is told.
mod issuer;
/// Messages as large as they may be.
mod large;
/// A program that hangs in its exec.
mod lease;
/// What clients of the older versions may count on.
mod legacy;
/// The transport of 2024-11-05.
mod legacy_sse;
/// Requests of the stateless version.
mod modern;
/// A registry and images that are not ours.
mod others;
/// Servers that are not ours.
mod peers;
/// Images by podman.
mod podman;
/// A real identity provider, and what becomes of it.
mod provider;
/// Who may speak for others.
mod proxies;
/// Every numbered case of a token that is not good.
mod refusals;
/// Tokens that only their issuer can vouch for.
mod refusals_asked;
/// Whom a good token makes its bearer, and until when.
mod refusals_callers;
/// Bodies that are no message.
mod refusals_json;
/// What becomes of tokens while their issuer's keys come and go.
mod refusals_keys;
/// Modern requests whose headers say something else.
mod refusals_modern;
/// Key sets whose host has another address the next time.
mod refusals_names;
/// Proofs of possession that prove nothing.
mod refusals_proofs;
/// Keys and signatures that no library makes.
mod refusals_rsa;
/// Tokens, and what looks like one, in other places than theirs.
mod refusals_shown;
/// A registry of images, on loopback and by TLS.
mod registry;
/// Servers that somebody else runs.
mod remote;
mod request;
/// One server from one command line.
mod run;
/// Who may ask the runner for anything.
mod runner;
/// What a server can see and do from inside.
mod sandbox;
/// Whom one child serves.
mod scopes;
#[allow(dead_code, reason = "others need more of it")]
mod signer;
/// Clients that take their time.
mod slow;
mod start;
/// Streams of a session, and coming back to them.
mod streams;
/// Who hears what of changes, and from when until when.
mod subscriptions;
/// Work that outlives the call that began it.
mod tasks;
/// TLS of the gateway's own.
mod tls;
/// What a server is told of its caller.
mod told;
/// Servers that are started ahead.
mod warm;
mod wire;

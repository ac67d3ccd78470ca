//! thv puts MCP servers behind single sign-on, as ordinary systemd units.
//!
//! This page is the code map, in reading order, lowest layer last. A request's
//! whole way is on one screen in [`pipeline`]. Each entry ends in the one thing
//! that must stay true of it.

// Command line: a file a verb. Parses, calls one function, prints.
pub mod cli;

// One gateway process: build in order, ready, run, drain. Never decides anything about a request.
pub mod daemon;

// The way of one request on one screen. Every way out leaves an audit record.
pub mod pipeline;

// The HTTP edge: connections, limits, routes, answers. Knows nothing of tokens or policies.
pub mod http;

// A conversation bound to one identity. A message enters only as a `Permit` or an `OwnMessage`.
pub mod session;

// Cedar decides what an identity may do. The only maker of `Permit`s.
pub mod authz;

// The only way out of a child's network. The name first, then the address, and one record each.
pub mod egress;

// The MCP server as the gateway sees it: lines in, lines out, whatever it speaks. Never the caller's token.
pub mod child;

// What happened, for auditors: a closed set of events. Never a token, never an argument.
pub mod audit;

// Container images: fetched from a registry or read from an archive, checked, unpacked. Never runs one.
pub mod image;

// The runner process: starts, limits and reaps children. Reads frames of its own gateway only.
pub mod runner;

// What a child may see and do: a plan computed from the configuration, then applied in order.
pub mod sandbox;

// Who the caller is. The only maker of `Identity`s; knows nothing of MCP.
pub mod auth;

// MCP as values and bytes. No input or output.
pub mod mcp;

// Files to one typed `Config`. All problems at once, each with file, line and column.
pub mod config;

// What gateway and runner say to each other. Small, versioned, no paths and no commands.
pub mod frames;

// The only HTTP client. No surprise redirects, no proxies, everything capped.
pub mod fetch;

// Diagnostics for people who operate thv. A slow journal never stalls a request.
pub mod telemetry;

// Sockets by name, readiness, watchdog, credentials.
pub mod systemd;

// The one reader of strangers' JSON: strict, one pass, keeps where everything stands.
pub mod json;

// Work that grows with a message, beside the one loop. Depends on nothing that happens meanwhile.
pub mod aside;

// Many bytes looked at at once.
mod scan;

// Files where others may have put something else: regular, bounded, never waited for.
mod files;

// Clocks as values, so that tests own the time.
pub mod time;

// The only `unsafe` code: one system call a function, safe at its face.
pub mod sys;

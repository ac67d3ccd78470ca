//! Who the caller is.
//!
//! A bearer token becomes an [`Identity`] here and nowhere else: strictly read
//! (`jwt`), checked against what the issuer's configuration says (`claims`),
//! and verified with the issuer's own keys (`keys`, `jwk`), or vouched for by the
//! issuer itself (`introspection`). `callers` holds whom of them a server lets in,
//! `dpop` the proofs of those whose tokens are bound to a key, `local` the users of
//! this host. What a caller's token is exchanged for at the provider, for a server
//! elsewhere, is `exchange`'s. Knows nothing of
//! MCP or of policies. Called by `pipeline` for every request.

mod authenticate;
mod bearer;
mod callers;
mod challenge;
mod claims;
mod discovery;
mod dpop;
mod error;
mod exchange;
mod explain;
mod identity;
mod introspection;
mod jwk;
mod jwt;
mod keys;
mod local;
mod metadata;
mod names;
#[cfg(any(test, fuzzing))]
pub mod properties;
mod shelf;
#[cfg(test)]
mod testing;
mod texts;
#[cfg(test)]
mod wycheproof;

pub use authenticate::{Authenticator, Presented, Surroundings};
pub use bearer::shown;
pub use challenge::challenge;
pub use error::{AuthError, Fault};
pub use exchange::{CallerToken, Exchange, ExchangeError, Owner, Seat};
pub use explain::{Check, Explanation, explain};
pub use identity::{Identity, Kind, PrincipalKey};
pub use introspection::IntrospectionError;
pub use keys::{Notice, Notices, fault_of_file};
pub use local::{ISSUER as LOCAL_ISSUER, LocalPeer};
pub use metadata::{metadata, metadata_paths, metadata_url};
pub use texts::Texts;

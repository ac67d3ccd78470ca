//! Who the caller is.
//!
//! A bearer token becomes an [`Identity`] here and nowhere else: strictly read
//! (`jwt`), checked against what the issuer's configuration says (`claims`),
//! and verified with the issuer's own keys (`keys`, `jwk`). Knows nothing of
//! MCP or of policies. Called by `pipeline` for every request.

mod authenticate;
mod bearer;
mod challenge;
mod claims;
mod error;
mod explain;
mod identity;
mod jwk;
mod jwt;
mod keys;
mod metadata;
mod shelf;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod wycheproof;

pub use authenticate::Authenticator;
pub use challenge::challenge;
pub use error::{AuthError, Fault};
pub use explain::{Check, Explanation, explain};
pub use identity::{Identity, Kind, PrincipalKey};
pub use keys::{Notice, Notices};
pub use metadata::{metadata, metadata_paths, metadata_url};

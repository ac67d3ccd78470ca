//! Who the caller is.
mod identity;

pub use identity::{Identity, Kind, PrincipalKey};

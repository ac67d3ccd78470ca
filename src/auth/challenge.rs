//! `WWW-Authenticate` (RFC 6750 §3, RFC 9728 §5.1), on one line.

use http::HeaderValue;

use super::{AuthError, metadata_url};
use crate::config::Resource;

/// The challenge that goes with an answer; none where the token is not at fault.
/// Nothing of the request is repeated in it.
pub fn challenge(error: &AuthError, resource: &Resource) -> Option<HeaderValue> {
    let error = match error {
        AuthError::Missing => "",
        AuthError::Malformed(_) => {
            "error=\"invalid_request\", error_description=\"The Authorization header is malformed\", "
        }
        AuthError::Rejected(_) => "error=\"invalid_token\", error_description=\"The token is not valid here\", ",
        AuthError::IssuerDown { .. } => return None,
    };
    HeaderValue::from_str(&format!("Bearer {error}resource_metadata=\"{}\"", metadata_url(resource))).ok()
}

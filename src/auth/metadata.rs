//! Protected-resource metadata (RFC 9728): where callers of this server get their tokens.

use bytes::Bytes;
use serde_json::json;

use crate::config::{Auth, Config, Resource};

/// The document. Issuers and resource stand in it byte for byte as configured,
/// never through a URL type: clients compare them (mcp-A9).
pub fn metadata(config: &Config) -> Bytes {
    let issuers: Vec<&str> = match &config.auth {
        Auth::Oidc(issuers) => issuers.iter().map(|issuer| issuer.issuer.as_str()).collect(),
        Auth::None => Vec::new(),
    };
    let mut document = json!({ "resource": config.resource.url });
    // What has no element is left out (RFC 9728 §3.2).
    if !issuers.is_empty() {
        document["authorization_servers"] = json!(issuers);
        document["bearer_methods_supported"] = json!(["header"]);
    }
    document.to_string().into()
}

/// The paths that serve it: with the resource's path inserted (RFC 9728 §3.1), and the root.
pub fn metadata_paths(resource: &Resource) -> [String; 2] {
    [inserted(resource), WELL_KNOWN.to_owned()]
}

/// The URL that a challenge names (RFC 9728 §5.1).
pub fn metadata_url(resource: &Resource) -> String {
    format!("{}{}", resource.origin, inserted(resource))
}

fn inserted(resource: &Resource) -> String {
    let path = if resource.path == "/" { "" } else { &resource.path };
    format!("{WELL_KNOWN}{path}")
}

const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

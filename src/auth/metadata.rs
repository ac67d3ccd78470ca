//! Protected-resource metadata (RFC 9728): where callers of this server get their tokens.

use bytes::Bytes;
use serde_json::json;

use super::challenge::common_scopes;
use crate::config::{Auth, Config, Dpop, Resource};

/// The document. Issuers and resource stand in it byte for byte as configured,
/// never through a URL type: clients compare them (mcp-A9).
pub fn metadata(config: &Config) -> Bytes {
    document(&config.auth, &config.resource)
}

fn document(auth: &Auth, resource: &Resource) -> Bytes {
    let issuers = match auth {
        Auth::Oidc(issuers) => &issuers[..],
        Auth::Peer | Auth::None => &[],
    };
    let mut document = json!({ "resource": resource.url });
    // What has no element is left out (RFC 9728 §3.2).
    if !issuers.is_empty() {
        let names: Vec<_> = issuers.iter().map(|issuer| &issuer.issuer).collect();
        document["authorization_servers"] = json!(names);
        document["bearer_methods_supported"] = json!(["header"]);
    }
    let scopes = common_scopes(issuers);
    if !scopes.is_empty() {
        document["scopes_supported"] = json!(scopes);
    }
    if !issuers.is_empty() && issuers.iter().all(|issuer| issuer.dpop == Dpop::Required) {
        document["dpop_bound_access_tokens_required"] = json!(true);
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
    let path = if resource.path == "/" {
        ""
    } else {
        &resource.path
    };
    format!("{WELL_KNOWN}{path}")
}

const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{document, metadata_paths, metadata_url};
    use crate::config::{Auth, KeySource, Resource};

    fn resource(url: &str, path: &str) -> Resource {
        Resource {
            url: url.to_owned(),
            origin: "https://mcp.example.com".to_owned(),
            authority: "mcp.example.com".to_owned(),
            path: path.to_owned(),
        }
    }

    fn oidc(issuers: &[&str]) -> Auth {
        let issuer = |name: &&str| crate::config::Issuer {
            issuer: (*name).to_owned(),
            ..super::super::testing::issuer(KeySource::Discovery)
        };
        Auth::Oidc(issuers.iter().map(issuer).collect())
    }

    /// tok-134, mcp-A9: clients compare; a slash more or less is another issuer to them.
    #[test]
    fn names_stand_in_the_document_as_they_were_configured() {
        let auth = oidc(&[
            "https://sso.example.com",
            "https://sso.example.com/Realms/corp/",
        ]);
        let written = document(
            &auth,
            &resource("https://MCP.example.com:443/a%2Fb", "/a%2Fb"),
        );
        let wanted = json!({
            "resource": "https://MCP.example.com:443/a%2Fb",
            "authorization_servers": ["https://sso.example.com", "https://sso.example.com/Realms/corp/"],
            "bearer_methods_supported": ["header"],
        });
        assert_eq!(
            serde_json::from_slice::<serde_json::Value>(&written).unwrap(),
            wanted
        );
    }

    /// RFC 9728 §3.2: what would be empty is not there.
    #[test]
    fn without_issuers_there_is_only_the_resource() {
        let written = document(&Auth::None, &resource("http://127.0.0.1:1/mcp", "/mcp"));
        assert_eq!(&*written, br#"{"resource":"http://127.0.0.1:1/mcp"}"#);
    }

    /// mcp-A2, RFC 9728 §3.1: between host and path, and at the root.
    #[test]
    fn it_is_served_where_clients_look() {
        let deep = resource("https://mcp.example.com/a/b", "/a/b");
        assert_eq!(
            metadata_paths(&deep),
            [
                "/.well-known/oauth-protected-resource/a/b",
                "/.well-known/oauth-protected-resource"
            ]
        );
        assert_eq!(
            metadata_url(&deep),
            "https://mcp.example.com/.well-known/oauth-protected-resource/a/b"
        );
        let root = resource("https://mcp.example.com/", "/");
        assert_eq!(
            metadata_url(&root),
            "https://mcp.example.com/.well-known/oauth-protected-resource"
        );
    }
}

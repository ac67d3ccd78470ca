//! What an issuer says about itself (OpenID Connect Discovery §4, RFC 8414 §3).

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    fetch::{FetchError, Fetcher},
    json::{self, Document, Value},
};

/// The discovery document of one issuer, believed for a while.
pub(super) struct Discovery {
    issuer: String,
    found: Mutex<Option<(Endpoints, Instant)>>,
}

/// What is read of the document.
#[derive(Clone, Debug)]
pub(super) struct Endpoints {
    pub(super) jwks_uri: String,
    pub(super) introspection: Option<String>,
}

impl Discovery {
    pub(super) fn new(issuer: &str) -> Self {
        Self {
            issuer: issuer.to_owned(),
            found: Mutex::default(),
        }
    }

    /// The document's endpoints, fetched if need be.
    pub(super) async fn endpoints(&self, fetcher: &Fetcher) -> Result<Endpoints, String> {
        if let Some((endpoints, found)) = &*self.found()
            && found.elapsed() < TIME_TO_LIVE
        {
            return Ok(endpoints.clone());
        }
        let mut errors = Vec::new();
        for url in well_known(&self.issuer) {
            match fetcher.get(&url).await {
                Ok(fetched) => match self.read(&fetched.body) {
                    Ok(endpoints) => {
                        *self.found() = Some((endpoints.clone(), Instant::now()));
                        return Ok(endpoints);
                    }
                    // Some answer every path, with a page for people.
                    Err(error) => errors.push(format!("`{url}`: {error}")),
                },
                Err(error @ (FetchError::Status(_) | FetchError::Redirect)) => {
                    errors.push(format!("`{url}`: {error}"))
                }
                // Unreachable there is unreachable under the next name too.
                Err(error) => return Err(format!("`{url}`: {error}")),
            }
        }
        Err(errors.join("; "))
    }

    /// To be asked again: what it named may have moved.
    pub(super) fn forget(&self) {
        *self.found() = None;
    }

    fn read(&self, text: &[u8]) -> Result<Endpoints, String> {
        let limits = json::Limits {
            depth: 16,
            nodes: 16_384,
        };
        let document = Document::parse(text, limits).map_err(|error| error.to_string())?;
        let root = document.root(text);
        let said = |name| root.get(name).and_then(Value::as_str);
        // Discovery §4.3: another issuer's document says nothing about this one.
        if said("issuer").as_deref() != Some(self.issuer.as_str()) {
            return Err(
                "its `issuer` is another one; compare it with `auth.issuer.issuer`, byte for byte"
                    .to_owned(),
            );
        }
        Ok(Endpoints {
            jwks_uri: said("jwks_uri").ok_or("it has no `jwks_uri`")?.into_owned(),
            introspection: said("introspection_endpoint").map(|url| url.into_owned()),
        })
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Option<(Endpoints, Instant)>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a discovery document may stand.
fn well_known(issuer: &str) -> [String; 2] {
    let bare = issuer.strip_suffix('/').unwrap_or(issuer);
    let path_at = bare
        .find("://")
        .and_then(|at| bare[at + 3..].find('/').map(|slash| at + 3 + slash))
        .unwrap_or(bare.len());
    let (origin, path) = bare.split_at(path_at);
    [
        format!("{bare}/.well-known/openid-configuration"),
        format!("{origin}/.well-known/oauth-authorization-server{path}"),
    ]
}

/// How long a discovery document is believed.
const TIME_TO_LIVE: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    /// mcp-A9: with a path, both ways of building the address.
    #[test]
    fn discovery_documents_are_looked_for_where_both_rules_say() {
        assert_eq!(
            well_known("https://sso.example.com/realms/corp"),
            [
                "https://sso.example.com/realms/corp/.well-known/openid-configuration",
                "https://sso.example.com/.well-known/oauth-authorization-server/realms/corp",
            ]
        );
        assert_eq!(
            well_known("https://sso.example.com/"),
            [
                "https://sso.example.com/.well-known/openid-configuration",
                "https://sso.example.com/.well-known/oauth-authorization-server",
            ]
        );
    }
}

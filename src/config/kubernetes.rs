//! Kubernetes service accounts: what a pod finds mounted, and how they are named.
//!
//! The cluster's API server issues their tokens. Inside a pod it has a name of
//! its own, authorities and a token are mounted, and the issuer that tokens
//! name is read from that token: it differs from cluster to cluster.

use std::path::{Path, PathBuf};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::{ServiceAccount, TokenFile, load::Loader};
use crate::{
    files,
    json::{Document, Limits, Value},
};

/// What a pod knows of its cluster.
pub(super) struct Cluster {
    pub(super) issuer: String,
    pub(super) keys_url: String,
    pub(super) ca_file: PathBuf,
    pub(super) token: TokenFile,
}

/// The cluster that `issuer` means, if it means that of this pod.
pub(super) fn in_cluster(
    loader: &Loader,
    issuer: &str,
) -> Result<Option<Cluster>, (String, &'static str)> {
    let token_path = loader.on_host(Path::new(TOKEN));
    let mounted = files::read_text(&token_path, MAX_TOKEN).ok();
    let named = match (issuer, mounted) {
        (ISSUER, Some(token)) => issuer_of(token.trim()).ok_or((
            format!(
                "`{}` holds no token that names an issuer",
                token_path.display()
            ),
            "write the issuer's URL",
        ))?,
        (ISSUER, None) => {
            return Err((
                format!(
                    "`{ISSUER}` means the cluster of a pod, and `{}` is not here",
                    token_path.display()
                ),
                "on a host write the cluster's issuer URL, `kubernetes = {…}`, and `jwks-url` and `ca-file` as this host reaches it, see thv.toml(5)",
            ));
        }
        (API_SERVER, Some(_)) => issuer.to_owned(),
        _ => return Ok(None),
    };
    Ok(Some(Cluster {
        issuer: named,
        keys_url: format!("{API_SERVER}/openid/v1/jwks"),
        ca_file: loader.on_host(Path::new(AUTHORITIES)),
        token: TokenFile {
            path: token_path,
            origin: API_SERVER.to_owned(),
        },
    }))
}

/// `iss` of a token that is trusted for where it lies, not for its signature.
fn issuer_of(token: &str) -> Option<String> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let limits = Limits {
        depth: 16,
        nodes: 1024,
    };
    let document = Document::parse(&claims, limits).ok()?;
    let issuer = document.root(&claims).get("iss").and_then(Value::as_str)?;
    Some(issuer.into_owned())
}

/// The service account that a client id of the form `NAME.NAMESPACE.svc.cluster.local`
/// means on the command line.
pub fn service_account(client_id: &str) -> Option<ServiceAccount> {
    let (account, namespace) = client_id
        .strip_suffix(".svc.cluster.local")?
        .rsplit_once('.')?;
    Some(ServiceAccount {
        namespace: name(namespace).ok()?,
        name: name(account).ok()?,
    })
}

/// Reads a namespace's or an account's name (RFC 1123 §2.1, as Kubernetes has it).
pub(super) fn name(text: &str) -> Result<String, String> {
    let end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let legal = text.len() <= 253
        && text.starts_with(end)
        && text.ends_with(end)
        && text.chars().all(|c| end(c) || c == '-' || c == '.');
    if legal {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "{text:?} is no name in Kubernetes: small letters, digits, `-` and `.`"
        ))
    }
}

/// What configuration writes for the pod's own cluster.
pub(super) const ISSUER: &str = "kubernetes";
/// Bytes of a token.
const MAX_TOKEN: usize = 16 << 10;
/// The API server's name inside a cluster.
const API_SERVER: &str = "https://kubernetes.default.svc";
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const AUTHORITIES: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_id_with_the_clusters_suffix_is_a_service_account() {
        let account = service_account("mcp-client.tools.svc.cluster.local").unwrap();
        assert_eq!(
            (account.namespace.as_str(), account.name.as_str()),
            ("tools", "mcp-client")
        );
        for other in [
            "mcp-client",
            "tools.svc.cluster.local",
            ".tools.svc.cluster.local",
            "a..svc.cluster.local",
            "A.tools.svc.cluster.local",
            "a.tools.svc.cluster.local.evil",
        ] {
            assert_eq!(service_account(other), None, "{other}");
        }
    }

    #[test]
    fn the_issuer_is_read_from_the_pods_own_token() {
        let token = |claims: &str| format!("e30.{}.x", URL_SAFE_NO_PAD.encode(claims));
        assert_eq!(
            issuer_of(&token(r#"{"iss":"https://k.example"}"#)).as_deref(),
            Some("https://k.example")
        );
        for broken in ["", "x", "e30.###.x", &token("{}"), &token(r#"{"iss":1}"#)] {
            assert_eq!(issuer_of(broken), None, "{broken}");
        }
    }
}

//! A wish as the files that a configured server has.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use crate::{
    cli::provider,
    config::{self, ServerName},
};

/// What is to run, for whom, and how it is decided.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) name: ServerName,
    pub(super) image: Option<String>,
    /// The program and its arguments; of an image, what its own program is given.
    pub(super) command: Vec<String>,
    /// Where it listens in its own network, if it speaks HTTP.
    pub(super) target_port: Option<u16>,
    pub(super) resource: Option<String>,
    pub(super) hosts: Vec<String>,
    pub(super) issuer: String,
    pub(super) audience: Vec<String>,
    pub(super) client: Option<String>,
    pub(super) jwks_url: Option<String>,
    /// Where it was read from, and its text.
    pub(super) policy: Option<(PathBuf, String)>,
    pub(super) env: BTreeMap<String, String>,
    /// Variables, and the credentials that they are filled from.
    pub(super) secrets: Vec<(String, String)>,
    pub(super) read_only: Vec<PathBuf>,
    /// `HOST:PORT` that the server may connect to.
    pub(super) egress: Vec<String>,
    /// Whether the server starts where its memory cannot be limited.
    pub(super) cgroup_is_optional: bool,
}

impl Wish {
    /// Writes the configuration of a server at `address` below `root`.
    pub(super) fn write(&self, root: &Path, address: SocketAddr) -> io::Result<()> {
        let etc = root.join("etc/thv");
        for directory in ["servers", "policies"] {
            fs::create_dir_all(etc.join(directory))?;
        }
        if let Some((_, text)) = &self.policy {
            fs::write(etc.join(format!("policies/{}.cedar", self.name)), text)?;
        }
        let server = etc.join(format!("servers/{}.toml", self.name));
        fs::write(server, self.toml(address))?;
        // What a pod knows of its cluster stays where it is: its token changes.
        let mounted = Path::new(SERVICE_ACCOUNT);
        if mounted.exists() {
            let link = root.join(SERVICE_ACCOUNT.trim_start_matches('/'));
            fs::create_dir_all(link.parent().unwrap_or(root))?;
            std::os::unix::fs::symlink(mounted, link)?;
        }
        Ok(())
    }

    /// The server's file.
    fn toml(&self, address: SocketAddr) -> String {
        let mut text = String::from("# written by `thv run`\n");
        let mut line = |key: &str, value: String| {
            let _ = writeln!(text, "{key} = {value}");
        };
        let resource = match &self.resource {
            Some(resource) => resource.clone(),
            None => format!("http://{address}/mcp"),
        };
        let mut hosts = self.hosts.clone();
        if address.ip().is_loopback() {
            hosts.push(format!("localhost:{}", address.port()));
            hosts.push(address.to_string());
        }
        match &self.image {
            None => line("command", list(&self.command)),
            Some(image) => {
                line("image", quoted(image));
                if !self.command.is_empty() {
                    line("arguments", list(&self.command));
                }
            }
        }
        if let Some(port) = self.target_port {
            line("transport", quoted("http"));
            line("port", port.to_string());
        }
        line("resource", quoted(&resource));
        line("hosts", list(&hosts));
        text.push_str("\n[[auth.issuer]]\n");
        let mut line = |key: &str, value: String| {
            let _ = writeln!(text, "{key} = {value}");
        };
        line("issuer", quoted(&self.issuer));
        line("audience", list(&self.audience));
        if let Some(url) = &self.jwks_url {
            line("jwks-url", quoted(url));
        }
        if self.accepts_untyped() {
            line("typ", quoted("legacy"));
        }
        if let Some(client) = &self.client {
            text.push_str(&client_lines(client));
        }
        text.push_str("\n[authz]\n");
        match &self.policy {
            Some(_) => {
                let path = format!("/etc/thv/policies/{}.cedar", self.name);
                let _ = writeln!(text, "policies = [{}]", quoted(&path));
            }
            None => text.push_str("allow = \"authenticated\"\n"),
        }
        text.push_str("\n[sandbox]\n");
        let shown: Vec<_> = self
            .read_only
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let _ = writeln!(text, "read-only = {}", list(&shown));
        if !self.egress.is_empty() {
            let _ = writeln!(text, "egress = {}", list(&self.egress));
        }
        if self.cgroup_is_optional {
            text.push_str("optional = [\"cgroup\"]\n");
        }
        text.push_str("\n[env]\n");
        for (name, value) in &self.env {
            let _ = writeln!(text, "{} = {}", quoted(name), quoted(value));
        }
        for (name, credential) in &self.secrets {
            let _ = writeln!(
                text,
                "{} = {{ credential = {} }}",
                quoted(name),
                quoted(credential)
            );
        }
        text
    }

    /// Whether tokens without the type of access tokens are accepted: those of providers
    /// that are known not to write it.
    pub(super) fn accepts_untyped(&self) -> bool {
        provider::untyped(&self.issuer).is_some()
    }
}

fn list(values: &[String]) -> String {
    let values: Vec<_> = values.iter().map(|value| quoted(value)).collect();
    format!("[{}]", values.join(", "))
}

/// The lines of an issuer's table by which `--oidc-client-id` is compared: the
/// token's client, or the service account that Kubernetes names like a host.
fn client_lines(client: &str) -> String {
    match config::service_account(client) {
        Some(account) => format!(
            "kubernetes = {{ namespace = {:?}, service-account = {:?} }}\n",
            account.namespace, account.name
        ),
        None => format!("clients = [{}]\n", quoted(client)),
    }
}

/// A basic string of TOML. JSON's escapes are among its own; only DEL must be
/// escaped besides.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text)
        .to_string()
        .replace('\u{7f}', "\\u007f")
}

/// The flag behind a key of the file, for those who never saw the file.
pub(super) fn flag_of(key: &str) -> Option<&'static str> {
    let flags = [
        ("command", "-- COMMAND"),
        ("image", "IMAGE"),
        ("arguments", "-- ARGUMENTS"),
        ("resource", "--resource"),
        ("hosts", "--hosts"),
        ("auth.issuer[0].issuer", "--oidc-issuer"),
        ("auth.issuer[0].audience", "--oidc-audience"),
        ("auth.issuer[0].jwks-url", "--oidc-jwks-url"),
        ("auth.issuer[0].clients", "--oidc-client-id"),
        ("sandbox.read-only", "--volume"),
        ("sandbox.egress", "--permission-profile"),
        ("authz", "--policy"),
        ("env", "--env"),
    ];
    flags
        .into_iter()
        .find(|(prefix, _)| key.starts_with(prefix))
        .map(|(_, flag)| flag)
}

/// Where a pod finds its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

#[cfg(test)]
mod tests {
    use super::*;

    /// Text that would end a TOML string stays text.
    #[test]
    fn a_value_cannot_become_a_line_of_configuration() {
        for text in [
            "a\"\ncommand = [\"/bin/sh\"]",
            "\\",
            "\u{7f}\u{1}\t",
            "äöü 🦀",
            "'''",
        ] {
            let parsed: toml::Table = toml::from_str(&format!("x = {}", quoted(text))).unwrap();
            assert_eq!(parsed["x"].as_str(), Some(text));
        }
    }
}

//! What `thv check` says of the gateway's own socket: certificate, key and names.
//!
//! What a start would refuse is a problem. That a certificate ends soon, or is for
//! another name, a start would not notice, but every client will.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustls::pki_types::CertificateDer;

use super::{fragments, unit};
use crate::{
    config::{self, Config, OwnerRule, Pem},
    http::{
        Tls, TlsError,
        certificate::{self, DAY},
        tls::{PemError, Source},
    },
    systemd::Credentials,
    time::Clock,
};

/// One remark: the key that it is about, the message, and what to do.
pub(super) struct Remark {
    pub(super) key: &'static str,
    pub(super) message: String,
    pub(super) help: String,
    /// A start would refuse it.
    pub(super) stops: bool,
}

/// What is to be said of `[tls]`.
pub(super) fn remarks(
    root: &Path,
    config: &Config,
    clock: &Clock,
    units: OwnerRule,
) -> Vec<Remark> {
    let Some(tls) = &config.tls else {
        return Vec::new();
    };
    let drop_ins = fragments::said(root, "thv@", config.server.as_str());
    let mut remarks = Vec::new();
    let mut remark = |key, message: String, help: String, stops| {
        remarks.push(Remark {
            key,
            message,
            help,
            stops,
        });
    };
    if config.resource.origin.starts_with("http://") {
        remark(
            "resource",
            "it begins with `http`, but this server speaks TLS".to_owned(),
            "clients are given this URL: write `https`".to_owned(),
            false,
        );
    }
    let service = format!("thv@{}.service", config.server);
    let mut file_of = |pem: &Pem, key| match pem {
        Pem::File(path) => {
            if key == "tls.key"
                && let Some(is_certain) = only_root_reads(path, &drop_ins)
            {
                remark(
                    key,
                    format!(
                        "the gateway is not root but `thvg-{}`, and cannot read `{}`",
                        config.server,
                        path.display()
                    ),
                    format!(
                        "write `key = {{ credential = \"tls-key\" }}`, and `LoadCredential=tls-key:{}` below [Service] in `systemctl edit {service}`",
                        path.display()
                    ),
                    is_certain && units == OwnerRule::Root,
                );
            }
            Some(path.clone())
        }
        Pem::Credential(name) => match loaded_from(name, &drop_ins) {
            Loaded::File(path) => Some(super::below(root, &path)),
            Loaded::Otherwise => None,
            Loaded::Not => {
                remark(
                    key,
                    format!("no drop-in gives the gateway the credential `{name}`"),
                    format!(
                        "`systemctl edit {service}`, and add `LoadCredential={name}:/PATH` below [Service]"
                    ),
                    false,
                );
                None
            }
        },
    };
    let files = (
        file_of(&tls.certificate, "tls.certificate"),
        file_of(&tls.key, "tls.key"),
    );
    if let (Some(certificate), Some(key)) = files {
        remarks.extend(pair(config, certificate, key, clock));
    }
    remarks
}

/// What is to be said of a pair whose files can be looked at.
fn pair(config: &Config, certificate: PathBuf, key: PathBuf, clock: &Clock) -> Vec<Remark> {
    let remark = |key, message: String, help: &str, stops| Remark {
        key,
        message,
        help: help.to_owned(),
        stops,
    };
    let source = Source {
        config: config::Tls {
            certificate: Pem::File(certificate),
            key: Pem::File(key),
        },
        credentials: Credentials::default(),
    };
    let tls = match Tls::load(source) {
        Ok(tls) => tls,
        Err(error) => {
            let (message, hidden) = (error.to_string(), is_hidden(&error));
            let help = if hidden {
                "run this as root to have it looked at"
            } else {
                "mend the files; thv.toml(5) says how they must be"
            };
            return vec![remark(error.key(), message, help, !hidden)];
        }
    };
    let certificate = tls.certificate();
    let mut remarks = Vec::new();
    let mut warn = |message, help| {
        remarks.push(remark("tls.certificate", message, help, false));
    };
    let now = clock.now();
    match certificate::validity(&certificate) {
        Some((from, _)) if now < from => warn(
            "the certificate is not valid yet".to_owned(),
            "look at this host's clock",
        ),
        Some((_, until)) if until <= now => warn(
            "the certificate has expired".to_owned(),
            "renew it; no client accepts it",
        ),
        Some((_, until)) if until < now + SOON => warn(
            format!("the certificate ends in {} days", (until - now) / DAY),
            "renew it",
        ),
        Some(_) => {}
        None => warn(
            "the certificate does not say how long it is valid".to_owned(),
            "make it anew",
        ),
    }
    if tls.is_alone() && !is_issued_by_known(&certificate) {
        warn(
            "the file has one certificate, and this host knows no authority that has issued it"
                .to_owned(),
            "put those that lead to its authority after it (the full chain): clients do not look for them",
        );
    }
    let host = host(&config.resource.authority);
    if !certificate::is_for(&certificate, host) {
        warn(
            format!("the certificate is not for `{host}`, the host of `resource`"),
            "no client accepts it under that name",
        );
    }
    remarks
}

/// Whether an authority of this host, or itself, has issued a certificate: by name, which
/// is enough to remind a person.
fn is_issued_by_known(certificate: &CertificateDer<'_>) -> bool {
    let Some((issuer, subject)) = certificate::names(certificate) else {
        // Nothing is known, so nothing is said.
        return true;
    };
    let roots = rustls_native_certs::load_native_certs().certs;
    let mut subjects = roots
        .iter()
        .filter_map(|root| Some(certificate::names(root)?.1));
    issuer == subject || subjects.any(|name| name == issuer)
}

/// Without port and brackets.
fn host(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => authority.split(':').next().unwrap_or(authority),
    }
}

fn is_hidden(error: &TlsError) -> bool {
    let (TlsError::Certificate(error) | TlsError::Key(error)) = error else {
        return false;
    };
    matches!(error, PemError::Unreadable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
}

/// Whether neither others nor a group that the unit joins can read a file, and whether that is certain.
fn only_root_reads(path: &Path, drop_ins: &[String]) -> Option<bool> {
    let meta = fs::metadata(path).ok()?;
    let group = meta.mode() & 0o040 != 0;
    // A mode without its group's bits leaves nothing to an access control list, either.
    let is_certain = !group && meta.uid() == 0 && !unit::has(drop_ins, "User");
    (!group || !unit::has(drop_ins, "SupplementaryGroups")).then_some(is_certain)
}

/// Where a unit's credential comes from.
enum Loaded {
    File(String),
    /// Encrypted, or from somewhere else.
    Otherwise,
    Not,
}

fn loaded_from(name: &str, drop_ins: &[String]) -> Loaded {
    let settings = drop_ins
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(|line| line.trim().split_once('='));
    let mut loaded = Loaded::Not;
    for (setting, value) in settings {
        match (setting, value.split_once(':')) {
            ("LoadCredential", Some((id, path))) if id == name && path.starts_with('/') => {
                loaded = Loaded::File(path.to_owned());
            }
            (
                "LoadCredential"
                | "LoadCredentialEncrypted"
                | "SetCredential"
                | "SetCredentialEncrypted",
                _,
            ) if value.split(':').next() == Some(name) => loaded = Loaded::Otherwise,
            ("ImportCredential", _) => {
                let pattern = value.split(':').next().unwrap_or(value);
                let start = pattern.split('*').next().unwrap_or(pattern);
                if name.starts_with(start) && (pattern.contains('*') || name == pattern) {
                    loaded = Loaded::Otherwise;
                }
            }
            _ => {}
        }
    }
    loaded
}

/// Seconds before its end at which a certificate is spoken of.
const SOON: u64 = 14 * DAY;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use nix::unistd::geteuid;

    use super::*;
    use crate::config::ServerName;

    /// What is said where the files of tests/tls are installed, and the resource is that.
    fn said(
        resource: &str,
        pair: [&str; 2],
        mode: u32,
        tls: &str,
        drop_in: &str,
        now: u64,
    ) -> Vec<String> {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc/thv");
        for directory in ["servers", "tls"] {
            fs::create_dir_all(etc.join(directory)).unwrap();
        }
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls");
        let mut chain =
            fs::read_to_string(tests.join(pair[0].trim_start_matches("only "))).unwrap();
        if pair[0] == "localhost.pem" {
            chain.push_str(&fs::read_to_string(tests.join("ca.pem")).unwrap());
        }
        fs::write(etc.join("tls/chain.pem"), chain).unwrap();
        fs::copy(tests.join(pair[1]), etc.join("tls/key.pem")).unwrap();
        let key = etc.join("tls/key.pem");
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let text = format!(
            "command = [\"/bin/sh\"]\nresource = \"{resource}\"\nauthz.allow = \"authenticated\"\nauth.mode = \"none\"\n[tls]\n{tls}\n"
        );
        fs::write(etc.join("servers/x.toml"), text).unwrap();
        if !drop_in.is_empty() {
            let text = format!("[Service]\n{drop_in}\n");
            unit::write_drop_in(root.path(), "thv@x.service", "tls.conf", &text).unwrap();
        }
        let name = ServerName::parse("x").unwrap();
        let config = config::load(root.path(), &name, OwnerRule::RootOrCaller).unwrap();
        remarks(
            root.path(),
            &config,
            &Clock::new(move || now),
            OwnerRule::Root,
        )
        .iter()
        .map(|remark| {
            format!(
                "{}{}: {}",
                if remark.stops { "!" } else { "" },
                remark.key,
                remark.message
            )
        })
        .collect()
    }

    const FILES: &str = "certificate = \"/etc/thv/tls/chain.pem\"\nkey = \"/etc/thv/tls/key.pem\"";
    const CREDENTIALS: &str =
        "certificate = { credential = \"chain\" }\nkey = { credential = \"key\" }";
    const LOADED: &str =
        "LoadCredential=chain:/etc/thv/tls/chain.pem\nLoadCredential=key:/etc/thv/tls/key.pem";
    /// In the year 2026.
    const NOW: u64 = 1_796_000_000;

    #[test]
    fn a_pair_that_fits_is_not_spoken_of() {
        let good = ["localhost.pem", "localhost.key"];
        let url = "https://localhost:8443/x";
        assert_eq!(said(url, good, 0o600, CREDENTIALS, LOADED, NOW), [""; 0]);
        let joins = "SupplementaryGroups=ssl-cert";
        assert_eq!(said(url, good, 0o640, FILES, joins, NOW), [""; 0]);
    }

    #[track_caller]
    fn speaks_of(found: &[String], words: &[&str]) {
        assert_eq!(found.len(), words.len(), "{found:?}");
        for (found, word) in found.iter().zip(words) {
            assert!(found.contains(word), "{found:?}: {word}");
        }
    }

    #[test]
    fn what_a_client_will_not_accept_is_warned_of() {
        let (good, url) = (["localhost.pem", "localhost.key"], "https://localhost/x");
        let expired = ["expired.pem", "expired.key"];
        let other = "https://mcp.example.com/x";
        let found = said(other, good, 0o600, CREDENTIALS, LOADED, NOW);
        speaks_of(&found, &["not for `mcp.example.com`"]);
        let found = said(
            "http://localhost:1/x",
            good,
            0o600,
            CREDENTIALS,
            LOADED,
            NOW,
        );
        speaks_of(&found, &["begins with `http`"]);
        let found = said(url, expired, 0o600, CREDENTIALS, LOADED, NOW);
        speaks_of(&found, &["has expired"]);
        // Ten days before the end of the one, and long before the beginning of the other.
        let end_of_2020 = 1_609_459_200 - 10 * DAY;
        let found = said(url, expired, 0o600, CREDENTIALS, LOADED, end_of_2020);
        speaks_of(&found, &["ends in 10 days"]);
        let found = said(url, good, 0o600, CREDENTIALS, LOADED, end_of_2020);
        speaks_of(&found, &["not valid yet"]);
    }

    #[test]
    fn a_certificate_without_its_chain_is_warned_of() {
        let (bare, url) = (
            ["only localhost.pem", "localhost.key"],
            "https://localhost/x",
        );
        let found = said(url, bare, 0o600, CREDENTIALS, LOADED, NOW);
        speaks_of(&found, &["one certificate"]);
        // One that has signed itself has no other to bring.
        let other = ["other.pem", "other.key"];
        assert_eq!(said(url, other, 0o600, CREDENTIALS, LOADED, NOW), [""; 0]);
    }

    #[test]
    fn what_a_start_would_refuse_is_a_problem() {
        let (good, url) = (["localhost.pem", "localhost.key"], "https://localhost/x");
        let found = said(
            url,
            ["localhost.pem", "other.key"],
            0o600,
            CREDENTIALS,
            LOADED,
            NOW,
        );
        speaks_of(&found, &["!tls: certificate and key are no pair"]);
        let found = said(
            url,
            ["README.md", "other.key"],
            0o600,
            CREDENTIALS,
            LOADED,
            NOW,
        );
        speaks_of(
            &found,
            &["!tls.certificate: there is no certificate (PEM) in `"],
        );
        let found = said(url, good, 0o644, CREDENTIALS, LOADED, NOW);
        speaks_of(&found, &["!tls.key: others may read"]);
    }

    #[test]
    fn what_the_gateway_will_not_have_is_warned_of() {
        let (good, url) = (["localhost.pem", "localhost.key"], "https://localhost/x");
        let found = said(url, good, 0o600, FILES, "", NOW);
        speaks_of(&found, &["tls.key: the gateway is not root but `thvg-x`"]);
        assert_eq!(
            found[0].starts_with('!'),
            geteuid().is_root(),
            "of a key that root alone can read it is certain"
        );
        // A list of access control may let it in.
        let found = said(url, good, 0o640, FILES, "", NOW);
        speaks_of(&found, &["tls.key: the gateway is not root"]);
        assert!(!found[0].starts_with('!'), "{found:?}");
        let joins = said(url, good, 0o640, FILES, "SupplementaryGroups = keys", NOW);
        assert_eq!(joins, [""; 0]);
        let found = said(url, good, 0o600, CREDENTIALS, "", NOW);
        speaks_of(&found, &["credential `chain`", "credential `key`"]);
        let encrypted = "LoadCredentialEncrypted=key\nImportCredential=cha*";
        assert_eq!(said(url, good, 0o600, CREDENTIALS, encrypted, NOW), [""; 0]);
    }
}

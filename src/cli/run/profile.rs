//! `--permission-profile`: ToolHive's form of what a server may reach (JSON).
//!
//! What cannot be held is refused: a profile that is read and half obeyed would
//! promise a protection, or a permission, that is not there.

use std::{fs, path::PathBuf};

use serde::Deserialize;

use crate::cli::Usage;

/// What a server may reach.
#[derive(Debug, Default)]
pub(super) struct Profile {
    /// Paths of this host that it may read.
    pub(super) read: Vec<PathBuf>,
    /// `HOST:PORT` that it may connect to.
    pub(super) egress: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    #[allow(dead_code, reason = "a name for people")]
    name: Option<String>,
    #[serde(default)]
    read: Vec<String>,
    #[serde(default)]
    write: Vec<String>,
    #[serde(default)]
    network: Option<Network>,
    #[serde(default)]
    privileged: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Network {
    #[serde(default)]
    mode: Option<String>,
    #[serde(default)]
    outbound: Option<Outbound>,
    #[serde(default)]
    inbound: Option<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Outbound {
    #[serde(default)]
    insecure_allow_all: bool,
    #[serde(default)]
    allow_host: Vec<String>,
    #[serde(default)]
    allow_port: Vec<u16>,
}

/// Reads the profile `name`: a built-in one, or a file's path.
pub(super) fn read(name: &str) -> Result<Profile, Usage> {
    match name {
        "none" => return Ok(Profile::default()),
        "network" => {
            return Err(Usage(
                "--permission-profile network: no server has the whole network here; \
                 name its hosts in a profile: `{\"network\":{\"outbound\":{\"allow_host\":[\"HOST\"]}}}`"
                    .to_owned(),
            ));
        }
        _ => {}
    }
    let wrong = |what: String| Usage(format!("--permission-profile {name}: {what}"));
    let text = fs::read_to_string(name)
        .map_err(|error| wrong(format!("{error}; write `none`, or the path of a profile")))?;
    parse(&text).map_err(wrong)
}

fn parse(text: &str) -> Result<Profile, String> {
    let written: Written = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if written.privileged {
        return Err("`privileged`: no server is; remove it".to_owned());
    }
    if let Some(path) = written.write.first() {
        return Err(format!(
            "`write`: a server does not write to this host; remove `{path}`, or move it to `read`"
        ));
    }
    let network = written.network.unwrap_or_default();
    if network.inbound.is_some() {
        return Err("`network.inbound`: nothing connects to a server here; remove it".to_owned());
    }
    if let Some(mode) = network.mode.filter(|mode| mode != "none") {
        return Err(format!(
            "`network.mode`: `{mode}` would be a network of this host; remove it"
        ));
    }
    let egress = outbound(network.outbound.unwrap_or_default())?;
    let read = written.read.into_iter().map(|path| {
        if path.contains("://") || path.contains(':') {
            Err(format!(
                "`read`: `{path}` names two places; a server sees paths at their own place, write the path alone"
            ))
        } else if path.starts_with('/') {
            Ok(PathBuf::from(path))
        } else {
            Err(format!("`read`: `{path}` is not an absolute path"))
        }
    });
    Ok(Profile {
        read: read.collect::<Result<_, _>>()?,
        egress,
    })
}

/// The one place where a profile's network becomes the server's: each host with each port,
/// as a line of `sandbox.egress`. Without a port it is that of HTTPS.
fn outbound(wanted: Outbound) -> Result<Vec<String>, String> {
    if wanted.insecure_allow_all {
        return Err(
            "`network.outbound.insecure_allow_all`: no server has the whole network here; \
             name its hosts in `allow_host`"
                .to_owned(),
        );
    }
    if wanted.allow_host.is_empty() && !wanted.allow_port.is_empty() {
        return Err(
            "`network.outbound.allow_port`: ports of which hosts? name them in `allow_host`"
                .to_owned(),
        );
    }
    let ports = if wanted.allow_port.is_empty() {
        vec![HTTPS]
    } else {
        wanted.allow_port
    };
    let mut lines = Vec::new();
    for host in &wanted.allow_host {
        // `.example.com` is the host itself and all below it.
        let hosts = match host.strip_prefix('.') {
            Some(above) => vec![above.to_owned(), format!("*.{above}")],
            None => vec![host.clone()],
        };
        for host in hosts {
            lines.extend(ports.iter().map(|port| format!("{host}:{port}")));
        }
    }
    Ok(lines)
}

const HTTPS: u16 = 443;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_that_can_be_held_is_read() {
        let profile = parse(
            r#"{"name":"x","read":["/srv/a"],"write":[],"network":{"outbound":{"insecure_allow_all":false}}}"#,
        );
        assert_eq!(profile.unwrap().read, [PathBuf::from("/srv/a")]);
        assert!(read("none").unwrap().read.is_empty());
    }

    #[test]
    fn hosts_and_ports_become_lines_of_egress() {
        let lines = |text: &str| parse(text).unwrap().egress;
        assert_eq!(
            lines(r#"{"network":{"outbound":{"allow_host":["a.example",".b.example"]}}}"#),
            ["a.example:443", "b.example:443", "*.b.example:443"]
        );
        assert_eq!(
            lines(
                r#"{"network":{"outbound":{"allow_host":["a.example"],"allow_port":[80,8443]}}}"#
            ),
            ["a.example:80", "a.example:8443"]
        );
        assert!(lines("{}").is_empty());
    }

    #[test]
    fn what_would_not_take_effect_is_refused() {
        for (text, word) in [
            (r#"{"privileged":true}"#, "privileged"),
            (r#"{"write":["/srv"]}"#, "write"),
            (
                r#"{"network":{"outbound":{"insecure_allow_all":true}}}"#,
                "outbound",
            ),
            (
                r#"{"network":{"outbound":{"allow_port":[443]}}}"#,
                "allow_port",
            ),
            (r#"{"network":{"inbound":{}}}"#, "inbound"),
            (r#"{"network":{"mode":"host"}}"#, "mode"),
            (r#"{"read":["/a:/b"]}"#, "two places"),
            (r#"{"read":["a"]}"#, "absolute"),
            (r#"{"reed":[]}"#, "unknown field"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
        assert!(read("network").is_err());
        assert!(read("/nowhere.json").is_err());
    }
}

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
                 leave it away, and the server has none"
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
    outbound(network.outbound.unwrap_or_default())?;
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
    })
}

/// The one place where a profile's network becomes the server's.
fn outbound(wanted: Outbound) -> Result<(), String> {
    if wanted.insecure_allow_all || !wanted.allow_host.is_empty() || !wanted.allow_port.is_empty() {
        return Err(
            "`network.outbound`: a server has no network in this version; remove it".to_owned(),
        );
    }
    Ok(())
}

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
    fn what_would_not_take_effect_is_refused() {
        for (text, word) in [
            (r#"{"privileged":true}"#, "privileged"),
            (r#"{"write":["/srv"]}"#, "write"),
            (
                r#"{"network":{"outbound":{"insecure_allow_all":true}}}"#,
                "outbound",
            ),
            (
                r#"{"network":{"outbound":{"allow_host":["a.example"]}}}"#,
                "outbound",
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

//! `thv secret set|remove NAME KEY`, `thv secret list NAME`: secrets of a server,
//! encrypted, for its runner alone.
//!
//! The secret goes from standard input to systemd-creds(1) and never through this
//! process. The runner's unit gets a drop-in that loads it; the gateway's does not.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder},
    io::{self, IsTerminal as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::{Usage, below, print, say, unit};
use crate::{
    config::{self, EnvValue, OwnerRule, ServerName},
    frames,
};

/// With `pull`, for the unit that fetches its image in place of the runner.
pub(super) fn set(root: &Path, name: &ServerName, key: &str, pull: bool) -> Result<ExitCode> {
    let key = own_name(key)?;
    if io::stdin().is_terminal() {
        say("thv: type the secret, then Return and Ctrl-D; it is shown as you type");
    }
    let stored = stored(name, &key);
    encrypt(root, &key, &stored)?;
    let text = format!(
        "# written by `thv secret set {}{name} {key}`\n[Service]\nLoadCredentialEncrypted={key}:{stored}\n",
        if pull { "--pull " } else { "" }
    );
    let service = format!(
        "thv-{}@{name}.service",
        if pull { "fetch" } else { "runner" }
    );
    let written = unit::write_drop_in(root, &service, &drop_in(&key), &text)?;
    print(&format!("{}\n", written.display()))?;
    if unit::is_host(root) {
        unit::systemctl(&["daemon-reload"])?;
    }
    if pull {
        say(&format!(
            "thv: name it in the registry's table: `[registry.\"HOST\"]` with `credential = \"{key}\"`; then `thv pull {name}`"
        ));
        return Ok(ExitCode::SUCCESS);
    }
    say(&format!(
        "thv: name it in the server's file, as `VARIABLE = {{ credential = \"{key}\" }}` below [env]"
    ));
    say(&format!(
        "thv: it counts from the next start of the runner: `systemctl try-restart {service}`"
    ));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn remove(root: &Path, name: &ServerName, key: &str) -> Result<ExitCode> {
    let key = own_name(key)?;
    let service = format!("thv-runner@{name}.service");
    // The unit first: one that loads what is gone does not start.
    let drop_in = unit::remove_drop_in(root, &service, &drop_in(&key))?;
    let path = below(root, &stored(name, &key));
    let secret = match fs::remove_file(&path) {
        Ok(()) => Some(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            return Err(error).with_context(|| {
                format!(
                    "removing `{}` (this is root's to do: try `sudo`)",
                    path.display()
                )
            });
        }
    };
    let removed: Vec<_> = drop_in.into_iter().chain(secret).collect();
    if removed.is_empty() {
        bail!(
            "`thv secret set {name} {key}` has stored nothing here; `thv secret list {name}` says what there is"
        );
    }
    for path in &removed {
        print(&format!("{}\n", path.display()))?;
    }
    if unit::is_host(root) {
        unit::systemctl(&["daemon-reload"])?;
    }
    if is_loaded(root, name, &key) {
        say(&format!(
            "thv: another drop-in still loads `{key}`: `systemctl cat {service}`"
        ));
    }
    say(&format!(
        "thv: what runs keeps it until the runner's next start: `systemctl try-restart {service}`"
    ));
    Ok(ExitCode::SUCCESS)
}

/// One secret, by what is known of it without reading it.
#[derive(Debug, Eq, PartialEq, Serialize)]
struct Listed {
    key: String,
    /// Whether a drop-in gives it to the runner.
    loaded: bool,
    /// The variables of the server's file that name it.
    variables: Vec<String>,
}

pub(super) fn list(root: &Path, name: &ServerName, json: bool) -> Result<ExitCode> {
    let named = match config::load(root, name, OwnerRule::RootOrCaller) {
        Ok(config) => config.env,
        Err(problems) => {
            say(&format!(
                "thv: what `{name}` names is not known: {}; see `thv check {name}`",
                problems.first()
            ));
            BTreeMap::new()
        }
    };
    let all = listed(root, name, &named);
    if json {
        let text = serde_json::to_string_pretty(&all).context("writing JSON")?;
        print(&format!("{text}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    for secret in &all {
        let state = if secret.loaded { "set" } else { "MISSING" };
        let used = if secret.variables.is_empty() {
            "(no variable names it)".to_owned()
        } else {
            secret.variables.join(", ")
        };
        print(&format!("{:<28} {state:<8} {used}\n", secret.key))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn listed(root: &Path, name: &ServerName, env: &BTreeMap<String, EnvValue>) -> Vec<Listed> {
    let mut variables: BTreeMap<String, Vec<String>> = loaded(root, ("thv-runner@", name))
        .into_iter()
        .filter(|key| !key.contains('*'))
        .map(|key| (key, Vec::new()))
        .collect();
    for (variable, value) in env {
        if let EnvValue::Credential(key) | EnvValue::CredentialFile(key) = value {
            variables
                .entry(key.clone())
                .or_default()
                .push(variable.clone());
        }
    }
    variables
        .into_iter()
        .map(|(key, variables)| Listed {
            loaded: is_loaded(root, name, &key),
            key,
            variables,
        })
        .collect()
}

/// The key, if it may be one of a server's secrets.
fn own_name(key: &str) -> Result<String> {
    let key = config::credential(key).map_err(Usage)?;
    if key == frames::KEY_CREDENTIAL {
        return Err(Usage(format!("`{key}` is a name of thv's own; choose another")).into());
    }
    Ok(key)
}

fn stored(name: &ServerName, key: &str) -> String {
    format!("{STORE}/thv.{name}.{key}")
}

fn drop_in(key: &str) -> String {
    format!("50-secret-{key}.conf")
}

/// Has standard input encrypted to `stored`, in one step for whoever reads it.
fn encrypt(root: &Path, key: &str, stored: &str) -> Result<()> {
    let path = below(root, stored);
    let root_only = || {
        format!(
            "writing `{}` (this is root's to do: try `sudo`)",
            path.display()
        )
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(below(root, STORE))
        .with_context(root_only)?;
    let mut new = path.clone().into_os_string();
    new.push(format!(".new-{}", std::process::id()));
    let status = Command::new("systemd-creds")
        .arg("encrypt")
        .arg(format!("--name={key}"))
        .arg("-")
        .arg(&new)
        .stdin(Stdio::inherit())
        .status()
        .context("running `systemd-creds`, which is systemd's")?;
    let done = if status.success() {
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600))
            .and_then(|()| fs::rename(&new, &path))
            .with_context(root_only)
    } else {
        Err(anyhow::anyhow!(
            "`systemd-creds encrypt` failed ({status}); nothing is changed"
        ))
    };
    if let Err(error) = done {
        let _ = fs::remove_file(&new);
        bail!(error);
    }
    Ok(())
}

/// Whether a drop-in gives the runner of `name` the credential `key`.
pub(super) fn is_loaded(root: &Path, name: &ServerName, key: &str) -> bool {
    is_given(root, ("thv-runner@", name), key)
}

/// The same of the unit that is made from a template.
pub(super) fn is_given(root: &Path, unit: (&str, &ServerName), key: &str) -> bool {
    loaded(root, unit)
        .iter()
        .any(|loaded| match loaded.split_once('*') {
            Some((start, _)) => key.starts_with(start),
            None => loaded == key,
        })
}

/// What drop-ins load; a pattern (`ImportCredential=`) with its star.
fn loaded(root: &Path, (template, name): (&str, &ServerName)) -> BTreeSet<String> {
    let texts = unit::drop_ins(root, template, name.as_str());
    let settings = texts.iter().flat_map(|text| text.lines());
    settings
        .filter_map(|line| line.trim().split_once('='))
        .filter(|(setting, _)| {
            matches!(
                *setting,
                "LoadCredential"
                    | "LoadCredentialEncrypted"
                    | "SetCredential"
                    | "SetCredentialEncrypted"
                    | "ImportCredential"
            )
        })
        .filter_map(|(_, value)| value.split(':').next())
        .filter(|key| !key.is_empty())
        .map(ToOwned::to_owned)
        .collect()
}

/// Where systemd keeps what is encrypted for this host.
const STORE: &str = "/etc/credstore.encrypted";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_drop_in_loads_is_found() {
        let root = tempfile::tempdir().unwrap();
        let name = ServerName::parse("x").unwrap();
        let text = "[Service]\nLoadCredentialEncrypted=a:/etc/credstore.encrypted/thv.x.a\n\
                    LoadCredential=b\nImportCredential=x.*\n#LoadCredential=c\n";
        unit::write_drop_in(root.path(), "thv-runner@x.service", "50-a.conf", text).unwrap();
        for (key, loaded) in [
            ("a", true),
            ("b", true),
            ("c", false),
            ("x.y", true),
            ("y", false),
        ] {
            assert_eq!(is_loaded(root.path(), &name, key), loaded, "{key}");
        }
        assert!(!is_loaded(
            root.path(),
            &ServerName::parse("z").unwrap(),
            "a"
        ));
    }

    #[test]
    fn a_key_that_is_no_credentials_name_is_refused_before_anything_is_read() {
        let root = tempfile::tempdir().unwrap();
        let name = ServerName::parse("x").unwrap();
        for bad in ["", "a/b", "..", "a b", "a:b", "runner-key", "a\nUser=root"] {
            let error = set(root.path(), &name, bad, false).unwrap_err();
            assert!(error.is::<Usage>(), "{bad:?}: {error:#}");
        }
        assert!(fs::read_dir(root.path()).unwrap().next().is_none());
    }

    #[test]
    fn what_is_set_is_listed_and_removed_and_nothing_else_is() {
        let root = tempfile::tempdir().unwrap();
        let name = ServerName::parse("x").unwrap();
        let service = "thv-runner@x.service";
        let store = below(root.path(), STORE);
        fs::create_dir_all(&store).unwrap();
        for key in ["a", "b"] {
            let text = format!(
                "[Service]\nLoadCredentialEncrypted={key}:{}\n",
                stored(&name, key)
            );
            unit::write_drop_in(root.path(), service, &drop_in(key), &text).unwrap();
            fs::write(below(root.path(), &stored(&name, key)), "encrypted").unwrap();
        }
        let env = BTreeMap::from([
            ("A".to_owned(), EnvValue::Credential("a".to_owned())),
            ("C".to_owned(), EnvValue::CredentialFile("c".to_owned())),
            ("D".to_owned(), EnvValue::Text("d".to_owned())),
        ]);
        let listed = |key: &str, loaded: bool, variables: &[&str]| Listed {
            key: key.to_owned(),
            loaded,
            variables: variables.iter().map(|name| (*name).to_owned()).collect(),
        };
        assert_eq!(
            super::listed(root.path(), &name, &env),
            [
                listed("a", true, &["A"]),
                listed("b", true, &[]),
                listed("c", false, &["C"])
            ]
        );
        remove(root.path(), &name, "a").unwrap();
        assert!(!is_loaded(root.path(), &name, "a") && is_loaded(root.path(), &name, "b"));
        assert_eq!(fs::read_dir(&store).unwrap().count(), 1);
        // There is nothing left to remove, and that is said.
        let error = remove(root.path(), &name, "a").unwrap_err().to_string();
        assert!(error.contains("thv secret list x"), "{error}");
        assert!(
            remove(root.path(), &name, "runner-key")
                .unwrap_err()
                .is::<Usage>()
        );
    }
}

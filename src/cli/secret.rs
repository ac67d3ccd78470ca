//! `thv secret set NAME KEY`: a secret of a server, encrypted, for its runner alone.
//!
//! The secret goes from standard input to systemd-creds(1) and never through this
//! process. The runner's unit gets a drop-in that loads it; the gateway's does not.

use std::{
    fs::{self, DirBuilder},
    io::{self, IsTerminal as _},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};

use super::{Usage, below, print, say, unit};
use crate::{
    config::{self, ServerName},
    frames,
};

pub(super) fn set(root: &Path, name: &ServerName, key: &str) -> Result<ExitCode> {
    let key = config::credential(key).map_err(Usage)?;
    if key == frames::KEY_CREDENTIAL {
        return Err(Usage(format!("`{key}` is a name of thv's own; choose another")).into());
    }
    if io::stdin().is_terminal() {
        say("thv: type the secret, then Return and Ctrl-D; it is shown as you type");
    }
    let stored = format!("{STORE}/thv.{name}.{key}");
    encrypt(root, &key, &stored)?;
    let text = format!(
        "# written by `thv secret set {name} {key}`\n[Service]\nLoadCredentialEncrypted={key}:{stored}\n"
    );
    let service = format!("thv-runner@{name}.service");
    let written = unit::write_drop_in(root, &service, &format!("50-secret-{key}.conf"), &text)?;
    print(&format!("{}\n", written.display()))?;
    if unit::is_host(root) {
        unit::systemctl(&["daemon-reload"])?;
    }
    say(&format!(
        "thv: name it in the server's file, as `VARIABLE = {{ credential = \"{key}\" }}` below [env]"
    ));
    say(&format!(
        "thv: it counts from the next start of the runner: `systemctl try-restart {service}`"
    ));
    Ok(ExitCode::SUCCESS)
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
pub(super) fn is_given(root: &Path, (template, name): (&str, &ServerName), key: &str) -> bool {
    unit::drop_ins(root, template, name.as_str())
        .iter()
        .flat_map(|text| text.lines())
        .filter_map(|line| line.trim().split_once('='))
        .any(|(setting, value)| match setting {
            "LoadCredential"
            | "LoadCredentialEncrypted"
            | "SetCredential"
            | "SetCredentialEncrypted" => value.split(':').next() == Some(key),
            // A pattern, mostly with a star at its end.
            "ImportCredential" => {
                let (start, _) = value.split_once(['*', ':']).unwrap_or((value, ""));
                key.starts_with(start) && (value.contains('*') || key == start)
            }
            _ => false,
        })
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
            let error = set(root.path(), &name, bad).unwrap_err();
            assert!(error.is::<Usage>(), "{bad:?}: {error:#}");
        }
        assert!(fs::read_dir(root.path()).unwrap().next().is_none());
    }
}

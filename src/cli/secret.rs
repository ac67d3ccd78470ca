//! `thv secret set|remove NAME KEY`, `thv secret list NAME`: secrets of a server,
//! encrypted, each for one of its units: the runner, or with `--pull` what fetches its image, or with `--gateway` the gateway.
//!
//! The secret goes from standard input to systemd-creds(1) and never through this
//! process. That unit gets a drop-in that loads it; the others do not.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, IsTerminal as _},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::{
            DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _,
            PermissionsExt as _,
        },
    },
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use super::{
    Usage, below,
    credentials::{STORE, Whose, files, is_given, is_loaded, loaded, stored},
    fragments, overlooked, print, say, unit,
};
use crate::{
    config::{self, EnvValue, OwnerRule, Problems, Registry, ServerName},
    frames,
};

pub(super) fn set(root: &Path, name: &ServerName, key: &str, whose: Whose) -> Result<ExitCode> {
    let key = own_name(key)?;
    unit::warn_of_no_server(root, name);
    let named = Named::of(root, name).unwrap_or_default();
    // The runner is to have nothing that is not a server's, and whose it is can be told.
    if whose == Whose::Runner
        && !named.is_a_variables(&key)
        && let Some(place) = named.gateway.get(&key)
    {
        return Err(Usage(format!(
            "`{key}` is the gateway's ({place}): `thv secret set --gateway {name} {key}` gives it one"
        ))
        .into());
    }
    let stored = stored(name, &key);
    // One file for two units would give each what is the other's.
    let loads_it = |other: &Whose| source(root, name, &key, *other).as_ref() == Some(&stored);
    let mut others = Whose::ALL.into_iter().filter(|other| *other != whose);
    if let Some(other) = others.find(loads_it) {
        return Err(Usage(format!(
            "`{key}` is a secret of the {} already: choose another name, or `thv secret remove {name} {key}` first",
            other.who()
        ))
        .into());
    }
    if io::stdin().is_terminal() {
        say("thv: type the secret, then Return and Ctrl-D; it is shown as you type");
    }
    encrypt(root, &key, &stored)?;
    let text = format!(
        "# written by `thv secret set {}{name} {key}`\n[Service]\nLoadCredentialEncrypted={key}:{stored}\n",
        whose.flag()
    );
    let service = format!("{}{name}.service", whose.template());
    let written = unit::write_drop_in(root, &service, &drop_in(&key), &text)?;
    print(&format!("{}\n", written.display()))?;
    if unit::is_host(root) {
        unit::systemctl(&["daemon-reload"])?;
    }
    match whose {
        Whose::Fetch => {
            say(&format!(
                "thv: name it in the registry's table: `[registry.\"HOST\"]` with `credential = \"{key}\"`; then `thv pull {name}`"
            ));
            return Ok(ExitCode::SUCCESS);
        }
        Whose::Gateway if !named.gateway.contains_key(&key) => say(&format!(
            "thv: name it in the server's file, as `credential = \"{key}\"` of `introspection`, of [upstream] or of [tls]"
        )),
        Whose::Runner if !named.is_a_variables(&key) => say(&format!(
            "thv: name it in the server's file, as `VARIABLE = {{ credential = \"{key}\" }}` below [env]"
        )),
        Whose::Gateway | Whose::Runner => {}
    }
    if let Some(other) = source(root, name, &key, whose).filter(|source| *source != stored) {
        say(&format!(
            "thv: another drop-in loads `{key}` from `{other}`, and counts: remove its line, `systemctl cat {service}` shows where it is"
        ));
    }
    say(&format!(
        "thv: it counts from the next start of the {}: `systemctl try-restart {service}`",
        whose.who()
    ));
    Ok(ExitCode::SUCCESS)
}

/// From where a unit of a server's loads a secret, by what counts of all that drop-ins say.
fn source(root: &Path, name: &ServerName, key: &str, whose: Whose) -> Option<String> {
    let texts = fragments::said(root, whose.template(), name.as_str());
    let loaded = files(root, &texts);
    Some(loaded.get(key)?.source.to_owned())
}

pub(super) fn remove(root: &Path, name: &ServerName, key: &str) -> Result<ExitCode> {
    let key = own_name(key)?;
    let mut removed = Vec::new();
    let mut had = Vec::new();
    // The units first: one that loads what is gone does not start.
    for whose in Whose::ALL {
        let service = format!("{}{name}.service", whose.template());
        if let Some(path) = unit::remove_drop_in(root, &service, &drop_in(&key))? {
            removed.push(path);
            had.push(whose);
        }
    }
    let path = below(root, &stored(name, &key));
    match fs::remove_file(&path) {
        Ok(()) => removed.push(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| {
                format!(
                    "removing `{}` (this is root's to do: try `sudo`)",
                    path.display()
                )
            });
        }
    }
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
    for whose in Whose::ALL {
        let service = format!("{}{name}.service", whose.template());
        if is_given(root, (whose.template(), name), &key) {
            say(&format!(
                "thv: another drop-in still loads `{key}`: `systemctl cat {service}`"
            ));
        }
        // What fetches runs once.
        if had.contains(&whose) && whose != Whose::Fetch {
            say(&format!(
                "thv: what runs keeps it until the {}'s next start: `systemctl try-restart {service}`",
                whose.who()
            ));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One secret, by what is known of it without reading it.
#[derive(Debug, Eq, PartialEq, Serialize)]
struct Listed {
    key: String,
    /// Whether a drop-in gives it to the unit that needs it.
    loaded: bool,
    /// The variables of the server's file that name it.
    variables: Vec<String>,
    /// The registries that it is for: such a secret is not the runner's, but the fetching unit's.
    registries: Vec<String>,
    /// The keys of the server's file that name it for the gateway.
    gateway: Vec<String>,
}

/// Who asks for secrets in a server's configuration.
#[derive(Default)]
struct Named {
    env: BTreeMap<String, EnvValue>,
    registries: BTreeMap<String, Registry>,
    /// The gateway's own, and the key that names each.
    gateway: BTreeMap<String, String>,
}

impl Named {
    fn of(root: &Path, name: &ServerName) -> Result<Self, Problems> {
        let config = config::load(root, name, OwnerRule::RootOrCaller)?;
        let gateway = overlooked::wanted(&config).into_iter();
        let gateway = gateway.map(|(key, credential)| (credential, key)).collect();
        let own = config.image.as_ref().and_then(|image| image.repository());
        let own = own.map(|repository| repository.registry.clone());
        let mut registries = config.registries;
        // Those of thv.toml are for all servers; this one asks its own image's.
        registries.retain(|host, _| own.as_ref() == Some(host));
        Ok(Self {
            env: config.env,
            registries,
            gateway,
        })
    }

    fn is_a_variables(&self, key: &str) -> bool {
        self.env.values().any(|value| {
            matches!(value, EnvValue::Credential(named) | EnvValue::CredentialFile(named) if named == key)
        })
    }
}

pub(super) fn list(root: &Path, name: &ServerName, json: bool) -> Result<ExitCode> {
    let named = Named::of(root, name).unwrap_or_else(|problems| {
        say(&format!(
            "thv: what `{name}` names is not known, see `thv check {name}`: {}",
            problems.first()
        ));
        Named::default()
    });
    let all = listed(root, name, &named);
    if json {
        let text = serde_json::to_string_pretty(&all).context("writing JSON")?;
        print(&format!("{text}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if all.is_empty() {
        say(&format!(
            "thv: `{name}` has no secret: `thv secret set {name} KEY` gives it one"
        ));
    }
    for secret in &all {
        let state = if secret.loaded { "set" } else { "MISSING" };
        let registries = secret
            .registries
            .iter()
            .map(|host| format!("[registry.\"{host}\"]"));
        let variables = secret.variables.iter().cloned();
        let gateway = secret.gateway.iter().cloned();
        let used: Vec<String> = variables.chain(registries).chain(gateway).collect();
        let used = if used.is_empty() {
            "(nothing names it)".to_owned()
        } else {
            used.join(", ")
        };
        print(&format!("{:<28} {state:<8} {used}\n", secret.key))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn listed(root: &Path, name: &ServerName, named: &Named) -> Vec<Listed> {
    let mut all: BTreeMap<String, Listed> = BTreeMap::new();
    let entry = |key: &str| Listed {
        key: key.to_owned(),
        loaded: true,
        variables: Vec::new(),
        registries: Vec::new(),
        gateway: Vec::new(),
    };
    for whose in Whose::ALL {
        let unit = whose.template();
        let texts = fragments::said(root, unit, name.as_str());
        let files = files(root, &texts);
        let given = loaded(root, (unit, name)).into_iter();
        for key in given.filter(|key| !key.contains('*')) {
            let is_gone = files
                .get(key.as_str())
                .is_some_and(|file| file.is_there == Some(false));
            let secret = all.entry(key.clone()).or_insert_with(|| entry(&key));
            secret.loaded &= !is_gone;
        }
    }
    for (variable, value) in &named.env {
        if let EnvValue::Credential(key) | EnvValue::CredentialFile(key) = value {
            let secret = all.entry(key.clone()).or_insert_with(|| entry(key));
            secret.variables.push(variable.clone());
            secret.loaded &= is_loaded(root, name, key);
        }
    }
    for (key, place) in &named.gateway {
        let secret = all.entry(key.clone()).or_insert_with(|| entry(key));
        secret.gateway.push(place.clone());
        secret.loaded &= is_given(root, (Whose::Gateway.template(), name), key);
    }
    for (host, registry) in &named.registries {
        if let Some(key) = &registry.credential {
            let secret = all.entry(key.clone()).or_insert_with(|| entry(key));
            secret.registries.push(host.clone());
            secret.loaded &= is_given(root, ("thv-fetch@", name), key);
        }
    }
    all.into_values().collect()
}

/// The key, if it may be one of a server's secrets.
fn own_name(key: &str) -> Result<String> {
    let key = config::credential(key).map_err(Usage)?;
    if key == frames::KEY_CREDENTIAL {
        return Err(Usage(format!("`{key}` is a name of thv's own; choose another")).into());
    }
    Ok(key)
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
    // Whoever may not write here is told so before systemd-creds asks for more.
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .with_context(root_only)?;
    if let Err(error) = something_to_read(io::stdin().as_fd()) {
        let _ = fs::remove_file(&new);
        return Err(error);
    }
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

/// An empty secret is a slip (`< /dev/null`, a file that was not written). Nothing is
/// read here: a pipe that was closed without a byte says so, and a file has a length.
fn something_to_read(input: BorrowedFd<'_>) -> Result<()> {
    let mut waiting = [PollFd::new(input, PollFlags::POLLIN)];
    poll(&mut waiting, PollTimeout::NONE).context("waiting for standard input")?;
    let has_bytes = waiting[0]
        .revents()
        .is_some_and(|events| events.contains(PollFlags::POLLIN));
    let about = fs::File::from(input.try_clone_to_owned()?).metadata()?;
    let kind = about.file_type();
    let is_nothing = kind.is_file() && about.len() == 0;
    let is_null = kind.is_char_device() && about.rdev() == libc::makedev(1, 3);
    if has_bytes && !is_nothing && !is_null {
        return Ok(());
    }
    Err(Usage("standard input is empty: nothing is stored".to_owned()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_is_no_credentials_name_is_refused_before_anything_is_read() {
        let root = tempfile::tempdir().unwrap();
        let name = ServerName::parse("x").unwrap();
        for bad in ["", "a/b", "..", "a b", "a:b", "runner-key", "a\nUser=root"] {
            let error = set(root.path(), &name, bad, Whose::Runner).unwrap_err();
            assert!(error.is::<Usage>(), "{bad:?}: {error:#}");
        }
        assert!(fs::read_dir(root.path()).unwrap().next().is_none());
    }

    #[test]
    fn an_empty_secret_is_a_slip_and_nothing_of_another_is_read() {
        let (read, write) = nix::unistd::pipe().unwrap();
        nix::unistd::write(&write, b"hush").unwrap();
        something_to_read(read.as_fd()).unwrap();
        let mut text = [0; 8];
        assert_eq!(nix::unistd::read(&read, &mut text).unwrap(), 4);
        drop(write);
        assert!(something_to_read(read.as_fd()).is_err());
        let null = fs::File::open("/dev/null").unwrap();
        assert!(something_to_read(null.as_fd()).is_err());
        let mut file = tempfile::tempfile().unwrap();
        assert!(something_to_read(file.as_fd()).is_err());
        io::Write::write_all(&mut file, b"hush").unwrap();
        something_to_read(file.as_fd()).unwrap();
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
        let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let listed = |key: &str, loaded: bool, variables: &[&str], registries: &[&str]| Listed {
            key: key.to_owned(),
            loaded,
            variables: own(variables),
            registries: own(registries),
            gateway: Vec::new(),
        };
        let text = "[Service]\nLoadCredentialEncrypted=r\n";
        fs::write(store.join("r"), "encrypted").unwrap();
        unit::write_drop_in(root.path(), "thv-fetch@x.service", &drop_in("r"), text).unwrap();
        let registry = |key: &str| Registry {
            credential: Some(key.to_owned()),
            ..Registry::default()
        };
        // `a` is the runner's: the unit that fetches has none of that name.
        let registries = BTreeMap::from([
            ("docker.io".to_owned(), registry("r")),
            ("ghcr.io".to_owned(), registry("a")),
        ]);
        assert_eq!(
            super::listed(
                root.path(),
                &name,
                &Named {
                    env,
                    registries,
                    ..Named::default()
                }
            ),
            [
                listed("a", false, &["A"], &["ghcr.io"]),
                listed("b", true, &[], &[]),
                listed("c", false, &["C"], &[]),
                listed("r", true, &[], &["docker.io"]),
            ]
        );
        remove(root.path(), &name, "r").unwrap();
        assert!(!is_given(root.path(), ("thv-fetch@", &name), "r"));
        remove(root.path(), &name, "a").unwrap();
        assert!(!is_loaded(root.path(), &name, "a") && is_loaded(root.path(), &name, "b"));
        assert_eq!(fs::read_dir(&store).unwrap().count(), 2);
        // A drop-in that loads a file that is gone gives nothing.
        fs::remove_file(below(root.path(), &stored(&name, "b"))).unwrap();
        assert_eq!(
            super::listed(root.path(), &name, &Named::default()),
            [listed("b", false, &[], &[])]
        );
        // Unless another drop-in has a default for it.
        let default = "[Service]\nSetCredential=b:default\n";
        unit::write_drop_in(root.path(), service, "x.conf", default).unwrap();
        assert_eq!(
            super::listed(root.path(), &name, &Named::default()),
            [listed("b", true, &[], &[])]
        );
        // There is nothing left to remove, and that is said.
        let error = remove(root.path(), &name, "a").unwrap_err().to_string();
        assert!(error.contains("thv secret list x"), "{error}");
        assert!(
            remove(root.path(), &name, "runner-key")
                .unwrap_err()
                .is::<Usage>()
        );
    }

    #[test]
    fn a_secret_of_the_gateways_is_no_runners() {
        let root = tempfile::tempdir().unwrap();
        let servers = root.path().join("etc/thv/servers");
        fs::create_dir_all(&servers).unwrap();
        let text = "url = \"https://up.example/mcp\"\nresource = \"https://h/x\"\nauth.mode = \"none\"\nauthz.allow = \"authenticated\"\n\
            upstream.authorization = { credential = \"up\" }\n";
        fs::write(servers.join("x.toml"), text).unwrap();
        let name = ServerName::parse("x").unwrap();
        let error = set(root.path(), &name, "up", Whose::Runner).unwrap_err();
        let told = error.to_string();
        assert!(
            error.is::<Usage>() && told.contains("`thv secret set --gateway x up`"),
            "{told}"
        );
        let named = Named::of(root.path(), &name).unwrap();
        let listed = |loaded| Listed {
            key: "up".to_owned(),
            loaded,
            variables: Vec::new(),
            registries: Vec::new(),
            gateway: vec!["upstream.authorization".to_owned()],
        };
        assert_eq!(super::listed(root.path(), &name, &named), [listed(false)]);
        let text = format!(
            "[Service]\nLoadCredentialEncrypted=up:{}\n",
            stored(&name, "up")
        );
        // The runner's is none of the gateway's.
        for (unit, loaded) in [("thv-runner@x.service", false), ("thv@x.service", true)] {
            let file = below(root.path(), &stored(&name, "up"));
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, "encrypted").unwrap();
            unit::write_drop_in(root.path(), unit, &drop_in("up"), &text).unwrap();
            assert_eq!(
                super::listed(root.path(), &name, &named),
                [listed(loaded)],
                "{unit}"
            );
        }
        // One file is one unit's, and what was written by hand later counts before it.
        let error = set(root.path(), &name, "up", Whose::Gateway).unwrap_err();
        let told = error.to_string();
        assert!(
            error.is::<Usage>() && told.contains("`thv secret remove x up`"),
            "{told}"
        );
        let source = || source(root.path(), &name, "up", Whose::Gateway);
        assert_eq!(source(), Some(stored(&name, "up")));
        let text = "[Service]\nLoadCredentialEncrypted=up\n";
        unit::write_drop_in(root.path(), "thv@x.service", "override.conf", text).unwrap();
        assert_eq!(source().as_deref(), Some("up"));
        unit::remove_drop_in(root.path(), "thv@x.service", "override.conf").unwrap();
        remove(root.path(), &name, "up").unwrap();
        assert_eq!(super::listed(root.path(), &name, &named), [listed(false)]);
        assert!(
            !root
                .path()
                .join("etc/systemd/system/thv@x.service.d")
                .exists()
        );
    }
}

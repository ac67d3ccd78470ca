//! `thv secret set|remove NAME KEY`, `thv secret list NAME`: secrets of a server,
//! encrypted, for its runner alone.
//!
//! The secret goes from standard input to systemd-creds(1) and never through this
//! process. The runner's unit gets a drop-in that loads it; the gateway's does not.

use std::{
    collections::{BTreeMap, BTreeSet},
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

use super::{Usage, below, fragments, print, say, unit};
use crate::{
    config::{self, EnvValue, OwnerRule, Registry, ServerName},
    frames,
};

/// With `pull`, for the unit that fetches its image in place of the runner.
pub(super) fn set(root: &Path, name: &ServerName, key: &str, pull: bool) -> Result<ExitCode> {
    let key = own_name(key)?;
    unit::warn_of_no_server(root, name);
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
    if !is_named(root, name, &key) {
        say(&format!(
            "thv: name it in the server's file, as `VARIABLE = {{ credential = \"{key}\" }}` below [env]"
        ));
    }
    say(&format!(
        "thv: it counts from the next start of the runner: `systemctl try-restart {service}`"
    ));
    Ok(ExitCode::SUCCESS)
}

/// Whether a variable of the server's file names it already.
fn is_named(root: &Path, name: &ServerName, key: &str) -> bool {
    config::load(root, name, OwnerRule::RootOrCaller).is_ok_and(|config| {
        config.env.values().any(|value| {
            matches!(value, EnvValue::Credential(named) | EnvValue::CredentialFile(named) if named == key)
        })
    })
}

pub(super) fn remove(root: &Path, name: &ServerName, key: &str) -> Result<ExitCode> {
    let key = own_name(key)?;
    let service = format!("thv-runner@{name}.service");
    // The units first: one that loads what is gone does not start.
    let of_runner = unit::remove_drop_in(root, &service, &drop_in(&key))?;
    let fetch = format!("thv-fetch@{name}.service");
    let of_fetch = unit::remove_drop_in(root, &fetch, &drop_in(&key))?;
    let was_runners = of_runner.is_some();
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
    let removed: Vec<_> = of_runner
        .into_iter()
        .chain(of_fetch)
        .chain(secret)
        .collect();
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
    if was_runners {
        say(&format!(
            "thv: what runs keeps it until the runner's next start: `systemctl try-restart {service}`"
        ));
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
}

/// Who asks for secrets in a server's configuration.
#[derive(Default)]
struct Named {
    env: BTreeMap<String, EnvValue>,
    registries: BTreeMap<String, Registry>,
}

pub(super) fn list(root: &Path, name: &ServerName, json: bool) -> Result<ExitCode> {
    let named = match config::load(root, name, OwnerRule::RootOrCaller) {
        Ok(config) => {
            let own = config.image.as_ref().and_then(|image| image.repository());
            let own = own.map(|repository| repository.registry.clone());
            let mut registries = config.registries;
            // Those of thv.toml are for all servers; this one asks its own image's.
            registries.retain(|host, _| own.as_ref() == Some(host));
            Named {
                env: config.env,
                registries,
            }
        }
        Err(problems) => {
            say(&format!(
                "thv: what `{name}` names is not known, see `thv check {name}`: {}",
                problems.first()
            ));
            Named::default()
        }
    };
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
        let used: Vec<String> = secret.variables.iter().cloned().chain(registries).collect();
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
    };
    for unit in ["thv-runner@", "thv-fetch@"] {
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

/// A credential that a drop-in has systemd read from a file.
pub(super) struct FromFile<'t> {
    pub(super) name: &'t str,
    /// As the drop-in says it: an absolute path, or a name in one of systemd's stores.
    pub(super) source: &'t str,
    pub(super) is_encrypted: bool,
    /// Whether it is there; `None` where that cannot be known: for root alone to see, or a specifier of systemd's.
    pub(super) is_there: Option<bool>,
}

/// What drop-ins give a unit, as systemd sums it up: the last of each name since the last empty value.
#[derive(Default)]
struct Given<'t> {
    /// By their names, with their sources and whether they are encrypted.
    loaded: BTreeMap<&'t str, (&'t str, bool)>,
    set: BTreeSet<&'t str>,
    imported: BTreeSet<&'t str>,
}

fn given(texts: &[String]) -> Given<'_> {
    let mut given = Given::default();
    for (setting, value) in unit::settings(texts) {
        let (name, source) = value.split_once(':').unwrap_or((value, value));
        match setting {
            "LoadCredential" | "LoadCredentialEncrypted" if value.is_empty() => {
                given.loaded.clear();
            }
            "LoadCredential" | "LoadCredentialEncrypted" => {
                let is_encrypted = setting == "LoadCredentialEncrypted";
                given.loaded.insert(name, (source, is_encrypted));
            }
            "SetCredential" | "SetCredentialEncrypted" if value.is_empty() => given.set.clear(),
            "SetCredential" | "SetCredentialEncrypted" => {
                given.set.insert(name);
            }
            "ImportCredential" if value.is_empty() => given.imported.clear(),
            "ImportCredential" => {
                given.imported.insert(name);
            }
            _ => {}
        }
    }
    given
}

fn from_file<'t>(
    root: &Path,
    name: &'t str,
    (source, is_encrypted): (&'t str, bool),
) -> FromFile<'t> {
    let (stores, passed) = match is_encrypted {
        false => ("credstore", "@system"),
        true => ("credstore.encrypted", "@encrypted"),
    };
    let places = match source.starts_with('/') {
        true => vec![source.to_owned()],
        false => STORES
            .iter()
            .map(|place| format!("{place}/{stores}/{source}"))
            .chain([format!("/run/credentials/{passed}/{source}")])
            .collect(),
    };
    let mut is_there = Some(false);
    for place in places {
        match below(root, &place).try_exists() {
            Ok(true) => {
                is_there = Some(true);
                break;
            }
            Ok(false) => {}
            Err(_) => is_there = None,
        }
    }
    FromFile {
        name,
        source,
        is_encrypted,
        is_there: is_there.filter(|_| !source.contains('%') && !source.is_empty()),
    }
}

/// The files of credentials that drop-ins of a unit name, but those that may be missing:
/// `SetCredential=` of the same name is a default.
pub(super) fn files<'t>(root: &Path, texts: &'t [String]) -> BTreeMap<&'t str, FromFile<'t>> {
    let Given { loaded, set, .. } = given(texts);
    let files = loaded
        .into_iter()
        .map(|(name, source)| (name, from_file(root, name, source)));
    files
        .filter(|(name, file)| file.is_there != Some(false) || !set.contains(name))
        .collect()
}

/// What makes a file of a credential that is missing.
pub(super) fn cure(template: &str, name: &ServerName, file: &FromFile<'_>) -> String {
    let FromFile {
        name: key, source, ..
    } = file;
    if *source == stored(name, key) {
        let pull = if template == "thv-fetch@" {
            "--pull "
        } else {
            ""
        };
        return format!("run `thv secret set {pull}{name} {key}`");
    }
    let path = match source.starts_with('/') {
        true => (*source).to_owned(),
        false if file.is_encrypted => format!("{STORE}/{source}"),
        false => format!("/etc/credstore/{source}"),
    };
    let make = match file.is_encrypted {
        true => format!("run `systemd-creds encrypt --name={key} - {path}`"),
        false => format!("make the file `{path}`"),
    };
    format!("{make}, or `systemctl edit {template}{name}.service`")
}

/// What drop-ins load; a pattern (`ImportCredential=`) with its star.
fn loaded(root: &Path, (template, name): (&str, &ServerName)) -> BTreeSet<String> {
    let texts = fragments::said(root, template, name.as_str());
    let Given {
        loaded,
        set,
        imported,
    } = given(&texts);
    let all = loaded.into_keys().chain(set).chain(imported);
    all.filter(|key| !key.is_empty())
        .map(ToOwned::to_owned)
        .collect()
}

/// Where systemd keeps what is encrypted for this host.
const STORE: &str = "/etc/credstore.encrypted";
/// Where its stores are (systemd.exec(5), `LoadCredential=`).
const STORES: &[&str] = &["/etc", "/run", "/usr/local/lib", "/usr/lib"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_drop_in_loads_is_found() {
        let root = tempfile::tempdir().unwrap();
        let name = ServerName::parse("x").unwrap();
        let text = "[Service]\nLoadCredentialEncrypted=a:/etc/credstore.encrypted/thv.x.a\n\
                    LoadCredential = b\nImportCredential=z*\nImportCredential=\nImportCredential=x.*\n#LoadCredential=c\n\
                    SetCredential=d:x\nSetCredentialEncrypted=\nSetCredential=e:x\n";
        unit::write_drop_in(root.path(), "thv-runner@x.service", "50-a.conf", text).unwrap();
        for (key, loaded) in [
            ("a", true),
            ("b", true),
            ("c", false),
            ("d", false),
            ("e", true),
            ("x.y", true),
            ("y", false),
            ("z", false),
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
            super::listed(root.path(), &name, &Named { env, registries }),
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
}

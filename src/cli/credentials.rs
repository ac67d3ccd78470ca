//! What credentials the units of a server are given: by which of systemd's settings, from which files, and how one
//! that is missing is made. Looks at names alone, and reads no secret.
//!
//! Used by `secret`, `check` and what that asks.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{below, fragments, unit};
use crate::config::ServerName;

/// Which of a server's units a secret is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Whose {
    Runner,
    /// The unit that fetches its image.
    Fetch,
    Gateway,
}

impl Whose {
    pub(super) const ALL: [Self; 3] = [Self::Runner, Self::Fetch, Self::Gateway];

    pub(super) fn template(self) -> &'static str {
        match self {
            Self::Runner => "thv-runner@",
            Self::Fetch => "thv-fetch@",
            Self::Gateway => "thv@",
        }
    }

    pub(super) fn who(self) -> &'static str {
        match self {
            Self::Runner => "runner",
            Self::Fetch => "unit that fetches",
            Self::Gateway => "gateway",
        }
    }

    /// What `thv secret set` is told for it.
    pub(super) fn flag(self) -> &'static str {
        match self {
            Self::Runner => "",
            Self::Fetch => "--pull ",
            Self::Gateway => "--gateway ",
        }
    }
}

/// Where `thv secret set` keeps one.
pub(super) fn stored(name: &ServerName, key: &str) -> String {
    format!("{STORE}/thv.{name}.{key}")
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
    let whose = Whose::ALL
        .into_iter()
        .find(|one| one.template() == template);
    if let (true, Some(whose)) = (*source == stored(name, key), whose) {
        return format!("run `thv secret set {}{name} {key}`", whose.flag());
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
pub(super) fn loaded(root: &Path, (template, name): (&str, &ServerName)) -> BTreeSet<String> {
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
pub(super) const STORE: &str = "/etc/credstore.encrypted";
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
}

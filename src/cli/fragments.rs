//! Where systemd finds a unit: its file, what masks or replaces that, and its drop-ins, in the order
//! of systemd.unit(5). Reads files alone, so that it can be asked of a root that is not this host's.
//!
//! Used by whoever wants to know what the unit of a server says: `check`, `path`, `secret` and `listen`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::below;
use crate::files;

/// What files of this host say of the service `template` + `name`, in the order in which it counts: its drop-ins, and
/// before them the unit itself where it is not the package's.
pub(super) fn said(root: &Path, template: &str, name: &str) -> Vec<String> {
    let mut texts = Vec::new();
    let (unit, of_all) = (
        format!("{template}{name}.service"),
        format!("{template}.service"),
    );
    if let Found::Replaced(path) = found(root, &unit, &of_all) {
        texts.push(DEFAULTS.to_owned());
        texts.extend(files::read_text(&path, MAX_FILE).map(without_the_key));
    }
    texts.extend(drop_ins(root, template, name, "service"));
    texts
}

/// What drop-ins of the server's listening socket say.
pub(super) fn of_socket(root: &Path, name: &str) -> Vec<String> {
    drop_ins(root, "thv@", name, "socket")
}

/// What is so where a unit does not say it, and is otherwise in the package's.
const DEFAULTS: &str = "DynamicUser=no\nPrivateNetwork=no\nPrivateTmp=no\nProtectHome=no\n";

/// The key between gateway and runner is of the package's own unit, and nobody's secret.
fn without_the_key(text: String) -> String {
    text.lines()
        .filter(|line| !line.contains("=runner-key:"))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// The texts of the drop-ins that apply to it: by file name, where of one name the first counts that is found.
fn drop_ins(root: &Path, template: &str, name: &str, kind: &str) -> Vec<String> {
    let mut files = BTreeMap::new();
    let own = specific_first(template, name, kind);
    let mut directories = Vec::new();
    for units in SEARCHED {
        directories.extend(own.iter().map(|unit| format!("{units}/{unit}.d")));
    }
    // Those of every unit of the kind are asked last, wherever they lie.
    directories.extend(SEARCHED.iter().map(|units| format!("{units}/{kind}.d")));
    for directory in directories {
        let entries = fs::read_dir(below(root, &directory)).into_iter().flatten();
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if path
                .extension()
                .is_some_and(|extension| extension == "conf")
            {
                let name = path.file_name().map(ToOwned::to_owned);
                files.entry(name).or_insert(path);
            }
        }
    }
    // A link to /dev/null is no regular file, and so says nothing.
    files
        .values()
        .filter_map(|path| files::read_text(path, MAX_FILE).ok())
        .collect()
}

/// The names whose drop-ins are a unit's, the most specific first: `thv-runner@x`, `thv-runner@`, and
/// what is left where each word is taken off its template, `thv-@x`, `thv-@` and `thv-`.
fn specific_first(template: &str, name: &str, kind: &str) -> Vec<String> {
    let mut units = Vec::new();
    let mut prefix = template.trim_end_matches('@').to_owned();
    loop {
        units.push(format!("{prefix}@{name}.{kind}"));
        units.push(format!("{prefix}@.{kind}"));
        if prefix.ends_with('-') {
            units.push(format!("{prefix}.{kind}"));
        }
        let Some((shorter, _)) = prefix.trim_end_matches('-').rsplit_once('-') else {
            return units;
        };
        prefix = format!("{shorter}-");
    }
}

/// What systemd takes for a unit of this name.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Found {
    /// The package's, or none at all.
    Shipped,
    /// This file, in place of the package's.
    Replaced(PathBuf),
    /// Nothing: this says that there is to be none.
    Masked(PathBuf),
}

/// Looks for `unit`, and where it has no file of its own for the template `of_all` that it is made from.
pub(super) fn found(root: &Path, unit: &str, of_all: &str) -> Found {
    for name in [unit, of_all] {
        for units in SEARCHED {
            let path = below(root, &format!("{units}/{name}"));
            let Ok(meta) = path.symlink_metadata() else {
                continue;
            };
            let is_masked = fs::read_link(&path).is_ok_and(|to| to == Path::new("/dev/null"))
                || meta.is_file() && meta.len() == 0;
            return match (*units == SHIPPED, is_masked) {
                (true, _) => Found::Shipped,
                (false, true) => Found::Masked(path),
                (false, false) => Found::Replaced(path),
            };
        }
    }
    Found::Shipped
}

/// Where systemd looks for a system's units, the first that has one wins (systemd.unit(5), as `systemctl show -p UnitPath` shows it).
const SEARCHED: &[&str] = &[
    "/etc/systemd/system.control",
    "/run/systemd/system.control",
    "/run/systemd/transient",
    "/run/systemd/generator.early",
    "/etc/systemd/system",
    "/etc/systemd/system.attached",
    "/run/systemd/system",
    "/run/systemd/system.attached",
    "/run/systemd/generator",
    "/usr/local/lib/systemd/system",
    SHIPPED,
    "/run/systemd/generator.late",
];
const SHIPPED: &str = "/usr/lib/systemd/system";
/// Bytes of a unit's file or of a drop-in.
const MAX_FILE: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = below(root, path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// As systemd 257 showed it in `DropInPaths`.
    #[test]
    fn drop_ins_are_found_wherever_systemd_looks_and_the_first_of_a_name_counts() {
        let root = tempfile::tempdir().unwrap();
        let texts = || said(root.path(), "thv-runner@", "x").concat();
        // Each of them is found before those above it.
        for (at, directory) in [
            "/usr/lib/systemd/system/service.d",
            "/etc/systemd/system/service.d",
            "/usr/lib/systemd/system/thv-runner@.service.d",
            "/usr/lib/systemd/system/thv-runner@x.service.d",
            "/usr/local/lib/systemd/system/thv-.service.d",
            "/run/systemd/system/thv-runner@x.service.d",
            "/etc/systemd/system/thv-.service.d",
            "/etc/systemd/system/thv-@.service.d",
            "/etc/systemd/system/thv-@x.service.d",
            "/etc/systemd/system/thv-runner@.service.d",
            "/etc/systemd/system/thv-runner@x.service.d",
            "/run/systemd/system.control/thv-runner@x.service.d",
            "/etc/systemd/system.control/thv-runner@x.service.d",
        ]
        .iter()
        .enumerate()
        {
            write(
                root.path(),
                &format!("{directory}/same.conf"),
                &format!("A={at}\n"),
            );
            assert_eq!(texts(), format!("A={at}\n"), "{directory}");
        }
        // Those of others do not count, and neither does what is called otherwise.
        for other in [
            "thv-runner@y.service.d/y.conf",
            "thv@.service.d/y.conf",
            "thv-runner@x.service.d/y",
            "thv-runner@x.socket.d/y.conf",
        ] {
            write(
                root.path(),
                &format!("/etc/systemd/system/{other}"),
                "B=1\n",
            );
        }
        assert_eq!(texts(), "A=12\n");
        // By name, wherever they lie.
        write(
            root.path(),
            "/usr/lib/systemd/system/service.d/z.conf",
            "Z=1\n",
        );
        write(
            root.path(),
            "/etc/systemd/system/thv-runner@x.service.d/a.conf",
            "A=a\n",
        );
        assert_eq!(texts(), "A=a\nA=12\nZ=1\n");
        let null = "/etc/systemd/system.control/thv-runner@x.service.d/z.conf";
        symlink("/dev/null", below(root.path(), null)).unwrap();
        assert_eq!(texts(), "A=a\nA=12\n", "it is masked");
    }

    #[test]
    fn the_gateway_has_no_drop_ins_of_shorter_names() {
        assert_eq!(
            specific_first("thv@", "my-server", "service"),
            ["thv@my-server.service", "thv@.service"]
        );
    }

    #[test]
    fn a_unit_in_place_of_the_packages_says_what_it_says_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let at = |unit: &str| found(root.path(), unit, "thv@.service");
        assert_eq!(at("thv@x.service"), Found::Shipped);
        write(
            root.path(),
            "/usr/lib/systemd/system/thv@.service",
            "PrivateTmp=yes\n",
        );
        assert_eq!(at("thv@x.service"), Found::Shipped);
        assert!(said(root.path(), "thv@", "x").is_empty());
        write(
            root.path(),
            "/usr/local/lib/systemd/system/thv@.service",
            "A=1\nLoadCredential=runner-key:/k\n",
        );
        let local = below(root.path(), "/usr/local/lib/systemd/system/thv@.service");
        assert_eq!(at("thv@x.service"), Found::Replaced(local));
        let texts = said(root.path(), "thv@", "x").concat();
        assert!(
            texts.contains("A=1\n") && texts.contains("ProtectHome=no\n"),
            "{texts}"
        );
        assert!(!texts.contains("runner-key"), "{texts}");
        // A file of the instance's own comes before any template.
        let own = below(root.path(), "/run/systemd/system/thv@x.service");
        fs::create_dir_all(own.parent().unwrap()).unwrap();
        symlink("/dev/null", &own).unwrap();
        assert_eq!(at("thv@x.service"), Found::Masked(own));
        write(root.path(), "/etc/systemd/system/thv@.service", "");
        let all = below(root.path(), "/etc/systemd/system/thv@.service");
        assert_eq!(at("thv@y.service"), Found::Masked(all));
    }
}

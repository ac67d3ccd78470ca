//! `thv path NAME PATH`: a drop-in by which the runner's unit shows a host path.
//!
//! A child sees at most what its runner sees, and the runner's unit hides homes
//! and temporary files and locks everything against writing. This opens the
//! unit; what the child sees of it is still said by `[sandbox]`.

use std::{os::unix::ffi::OsStrExt as _, path::Path, process::ExitCode};

use anyhow::Result;

use super::{Usage, fragments, print, say, unit};
use crate::config::{self, ServerName};

pub(super) fn run(root: &Path, name: &ServerName, path: &Path, write: bool) -> Result<ExitCode> {
    let text = path
        .to_str()
        .ok_or_else(|| Usage("the path is not UTF-8".to_owned()))?;
    let path = config::plain_path(text).map_err(Usage)?;
    unit::warn_of_no_server(root, name);
    if unit::is_host(root) && matches!(path.try_exists(), Ok(false)) {
        return Err(Usage(format!(
            "there is no `{}` on this host: make it first, or correct the path",
            path.display()
        ))
        .into());
    }
    if !write {
        config::shown_path(text).map_err(Usage)?;
    }
    let Some(lines) = lines(&path, write) else {
        say(&format!(
            "thv: the runner of `{name}` can read `{0}` already; name it in the server's file: [sandbox] read-only = [\"{0}\"]",
            path.display()
        ));
        return Ok(ExitCode::SUCCESS);
    };
    let service = format!("thv-runner@{name}.service");
    let file = file_name(&path)?;
    let said = if write { " --write" } else { "" };
    let text = format!(
        "# written by `thv path {name} {}{said}`\n[Service]\n{lines}",
        path.display()
    );
    let written = unit::write_drop_in(root, &service, &file, &text)?;
    print(&format!("{}\n", written.display()))?;
    if unit::is_host(root) {
        unit::systemctl(&["daemon-reload"])?;
    }
    if write {
        say(
            "thv: this opens the path to the runner; a child's own writable directory is [sandbox] state = true",
        );
    } else {
        say(&format!(
            "thv: name it in the server's file: [sandbox] read-only = [\"{}\"]",
            path.display()
        ));
    }
    say(&format!(
        "thv: it counts from the next start of the runner: `systemctl try-restart {service}`"
    ));
    Ok(ExitCode::SUCCESS)
}

/// Whether `path` lies where the runner's unit hides what the host has.
pub(super) fn is_hidden(path: &Path) -> bool {
    config::HOMES
        .iter()
        .chain(TEMPORARY)
        .any(|hidden| path.starts_with(hidden))
}

/// Whether drop-ins show `path` (or a directory above it) to the unit that is made from a template,
/// or may do so: what systemd makes of specifiers and quotes is not known here.
pub(super) fn is_shown(root: &Path, unit: (&str, &ServerName), path: &Path) -> bool {
    let drop_ins = fragments::said(root, unit.0, unit.1.as_str());
    if !in_homes(path) {
        // With a dynamic user systemd makes them private whatever is said.
        let is_off = |setting| unit::is_off(&drop_ins, setting);
        return is_off("PrivateTmp") && is_off("DynamicUser") || is_bound(&drop_ins, path);
    }
    let said = unit::settings(&drop_ins).filter(|(name, _)| *name == "ProtectHome");
    match said.last() {
        Some((_, "tmpfs")) => is_bound(&drop_ins, path),
        // What systemd does not know it passes over, and what counts then is not known here.
        Some((_, value)) => !unit::is_one_of(unit::YES, value),
        // The unit itself says `yes`, under which a mount below a home is dropped.
        None => false,
    }
}

fn is_bound(drop_ins: &[String], path: &Path) -> bool {
    let mut shown = Vec::new();
    for (name, value) in unit::settings(drop_ins) {
        match (name, value) {
            // One list of systemd's, which an empty value of either empties.
            ("BindPaths" | "BindReadOnlyPaths", "") => shown.clear(),
            ("BindPaths" | "BindReadOnlyPaths", value) => {
                shown.extend(value.split_whitespace().map(destination));
            }
            _ => {}
        }
    }
    shown.into_iter().any(|place| {
        // What systemd expands or unquotes may be whatever begins so.
        match place.split_once(['%', '\\', '"', '\'']) {
            Some((start, _)) => path.as_os_str().as_bytes().starts_with(start.as_bytes()),
            None => path.starts_with(place),
        }
    })
}

/// Where the unit finds what `[-]SOURCE[:DESTINATION[:OPTIONS]]` binds.
fn destination(entry: &str) -> &str {
    let mut parts = entry.trim_start_matches('-').split(':');
    let source = parts.next().unwrap_or(entry);
    parts.next().filter(|at| !at.is_empty()).unwrap_or(source)
}

fn in_homes(path: &Path) -> bool {
    config::HOMES.iter().any(|home| path.starts_with(home))
}

/// What the unit needs for `path`; `None` where it needs nothing.
fn lines(path: &Path, write: bool) -> Option<String> {
    let hidden = is_hidden(path);
    if !hidden && !write {
        return None;
    }
    let shown = path.display();
    let mut lines = String::new();
    if in_homes(path) {
        // Under `yes` the homes are inaccessible, and systemd drops mounts below such places.
        lines.push_str("ProtectHome=tmpfs\n");
    }
    lines.push_str(&match (hidden, write) {
        (true, false) => format!("BindReadOnlyPaths={shown}\n"),
        (true, true) => format!("BindPaths={shown}\n"),
        (false, _) => format!("ReadWritePaths={shown}\n"),
    });
    Some(lines)
}

/// `50-path-…`, with the path escaped as systemd does it, so that no two paths share a file.
fn file_name(path: &Path) -> Result<String, Usage> {
    let text = path.to_string_lossy();
    let escaped = text
        .trim_start_matches('/')
        .replace('-', "\\x2d")
        .replace('/', "-");
    let file = format!("50-path-{escaped}.conf");
    if file.len() > MAX_FILE_NAME {
        return Err(Usage(
            "the path is too long for a drop-in's name; use `systemctl edit`".to_owned(),
        ));
    }
    Ok(file)
}

/// What `PrivateTmp=` hides.
const TEMPORARY: &[&str] = &["/tmp", "/var/tmp"];

/// `NAME_MAX`, with room for the name under which it is written.
const MAX_FILE_NAME: usize = 230;

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, write: bool, expected: Option<(&str, &str)>) {
        let root = tempfile::tempdir().unwrap();
        let name = ServerName::parse("x").unwrap();
        run(root.path(), &name, Path::new(path), write).unwrap();
        let directory = root
            .path()
            .join("etc/systemd/system/thv-runner@x.service.d");
        match expected {
            None => assert!(!directory.exists()),
            Some((file, lines)) => {
                let text = std::fs::read_to_string(directory.join(file)).unwrap();
                assert_eq!(text.split_once("[Service]\n").unwrap().1, lines);
                assert_eq!(
                    is_shown(
                        root.path(),
                        ("thv-runner@", &name),
                        &Path::new(path).join("below")
                    ),
                    is_hidden(Path::new(path))
                );
            }
        }
    }

    #[test]
    fn a_path_needs_what_its_unit_takes_away() {
        check("/srv/repos", false, None);
        check(
            "/srv/repos",
            true,
            Some(("50-path-srv-repos.conf", "ReadWritePaths=/srv/repos\n")),
        );
        check(
            "/home/a/my-repos/",
            false,
            Some((
                "50-path-home-a-my\\x2drepos.conf",
                "ProtectHome=tmpfs\nBindReadOnlyPaths=/home/a/my-repos\n",
            )),
        );
        check(
            "/root/x",
            true,
            Some((
                "50-path-root-x.conf",
                "ProtectHome=tmpfs\nBindPaths=/root/x\n",
            )),
        );
        check(
            "/tmp/x",
            false,
            Some(("50-path-tmp-x.conf", "BindReadOnlyPaths=/tmp/x\n")),
        );
    }

    #[test]
    fn a_path_that_a_unit_file_could_read_otherwise_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let name = ServerName::parse("x").unwrap();
        for bad in [
            "srv",
            "/",
            "/a/../b",
            "/home/a b",
            "/home/%h",
            "/home/a:b",
            "/home/a\nUser=root",
            "/home/\"a",
            "/home/a\\b",
        ] {
            assert!(
                run(root.path(), &name, Path::new(bad), true).is_err(),
                "{bad:?}"
            );
        }
        assert!(!root.path().join("etc").exists());
    }

    #[test]
    fn drop_ins_show_what_lies_below_their_paths() {
        let text = "[Service]\nBindPaths=/tmp/e\nBindReadOnlyPaths=\nBindReadOnlyPaths=/tmp/a -/tmp/b:/x /srv/f:/tmp/f:rbind\n \
                    BindPaths = /tmp/c /tmp/%i/g\n#BindPaths=/tmp/d\n";
        let drop_ins = [text.to_owned()];
        for (path, shown) in [
            ("/tmp/a/x", true),
            // It is at /x.
            ("/tmp/b", false),
            ("/tmp/c", true),
            ("/tmp/d", false),
            ("/tmp/ab", false),
            ("/tmp/f/x", true),
        ] {
            let text = text.replace(" /tmp/%i/g", "");
            assert_eq!(is_bound(&[text], Path::new(path)), shown, "{path}");
        }
        // What the specifier is, systemd knows.
        assert!(is_bound(&drop_ins, Path::new("/tmp/d")));
        assert!(!is_bound(&drop_ins, Path::new("/var/tmp/d")));
    }

    /// Measured on systemd 257: under `ProtectHome=yes` a bind mount below /home is dropped.
    #[test]
    fn a_home_is_shown_only_where_the_unit_lets_it_be() {
        let name = ServerName::parse("x").unwrap();
        for (lines, shown) in [
            ("BindReadOnlyPaths=/home/a", false),
            ("ProtectHome=tmpfs", false),
            ("ProtectHome=tmpfs\nBindReadOnlyPaths=/home/a", true),
            (
                "ProtectHome=tmpfs\nProtectHome=yes\nBindReadOnlyPaths=/home/a",
                false,
            ),
            ("ProtectHome=read-only", true),
            ("ProtectHome = No", true),
            ("ProtectHome=no\nProtectHome=ON", false),
            ("ProtectHome=no\nProtectHome=tmp", true),
        ] {
            let root = tempfile::tempdir().unwrap();
            let text = format!("[Service]\n{lines}\n");
            unit::write_drop_in(root.path(), "thv-runner@x.service", "a.conf", &text).unwrap();
            assert_eq!(
                is_shown(root.path(), ("thv-runner@", &name), Path::new("/home/a/x")),
                shown,
                "{lines}"
            );
        }
    }
}

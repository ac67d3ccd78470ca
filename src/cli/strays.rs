//! Files that look like configuration and that nobody reads: a server's in another directory, drop-ins that are called or placed
//! otherwise than thv's or systemd's. Called by `check`.

use std::{fs, path::Path};

use super::{below, overlooked::Remark};
use crate::config::{Problem, ServerName};

/// What was likely meant for this server.
pub(super) fn of(root: &Path, server: &ServerName) -> Vec<Remark> {
    let mut remarks = Vec::new();
    let mut stray = |path: &str, help: String| {
        remarks.push((String::new(), format!("`{path}` is not read"), help));
    };
    let own = format!("/etc/thv/servers/{server}");
    if below(root, &format!("{own}.d")).is_dir() {
        stray(
            &format!("{own}.d"),
            format!("drop-ins are in `{own}.toml.d`: rename it"),
        );
    }
    for directory in [format!("{own}.toml.d"), "/etc/thv/thv.toml.d".to_owned()] {
        for name in names(root, &directory) {
            if name.ends_with(".conf") {
                stray(
                    &format!("{directory}/{name}"),
                    "drop-ins end with `.toml`: rename it".to_owned(),
                );
            }
        }
    }
    for path in ELSEWHERE.map(|place| format!("{place}/{server}.toml")) {
        // That one is read for every server, whatever one is called.
        if path != "/etc/thv/thv.toml" && below(root, &path).exists() {
            stray(
                &path,
                format!("this server's file is `{own}.toml`: remove it"),
            );
        }
    }
    // As systemd would name them of a server that is no instance.
    for unit in [
        format!("thv@{server}"),
        format!("thv-runner@{server}"),
        format!("thv-{server}.service"),
        format!("thv-{server}.socket"),
    ] {
        let is_one = !unit.contains('@') && below(root, &format!("{UNITS}/{unit}")).exists();
        let directory = format!("{UNITS}/{unit}.d");
        if !is_one && below(root, &directory).is_dir() {
            stray(
                &directory,
                format!(
                    "drop-ins are in `thv@{server}.service.d` for the gateway, `thv-runner@{server}.service.d` for the runner and `thv@{server}.socket.d`: rename it"
                ),
            );
        }
    }
    for template in ["thv@", "thv-runner@"] {
        for unit in [
            format!("{template}{server}.service"),
            format!("{template}{server}.socket"),
            format!("{template}.service"),
            format!("{template}.socket"),
        ] {
            let directory = format!("{UNITS}/{unit}.d");
            for name in names(root, &directory) {
                if !name.ends_with(".conf") && !is_put_aside(&name) {
                    stray(
                        &format!("{directory}/{name}"),
                        "systemd's drop-ins end with `.conf`: rename it, then `systemctl daemon-reload`"
                            .to_owned(),
                    );
                }
            }
        }
    }
    remarks
}

/// Files of servers that would be, were they in their directory.
pub(super) fn of_all(root: &Path) -> Vec<Problem> {
    let mut strays = Vec::new();
    for place in ELSEWHERE {
        for name in names(root, place) {
            let server = name.strip_suffix(".toml");
            let server = server.and_then(|name| ServerName::parse(name).ok());
            let Some(server) = server.filter(|_| name != "thv.toml") else {
                continue;
            };
            let right = below(root, &format!("/etc/thv/servers/{server}.toml"));
            // Of one that is there twice its own check speaks.
            if !right.exists() {
                let file = below(root, &format!("{place}/{name}"));
                let help = format!("run `mv -n {} {}`", file.display(), right.display());
                strays.push(Problem::of_file(&file, "it is not read".to_owned(), help));
            }
        }
    }
    strays
}

/// The visible files of a directory, in order.
fn names(root: &Path, directory: &str) -> Vec<String> {
    let entries = fs::read_dir(below(root, directory)).into_iter().flatten();
    let files = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        (!entry.path().is_dir()).then(|| entry.file_name().into_string().ok())?
    });
    let mut names: Vec<_> = files.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    names
}

/// Whether it is called as what editors, packages and people keep beside.
fn is_put_aside(name: &str) -> bool {
    name.ends_with('~')
        || [
            ".bak",
            ".orig",
            ".old",
            ".save",
            ".disabled",
            ".off",
            ".dpkg-",
            ".rpm",
            ".new",
            ".swp",
        ]
        .iter()
        .any(|mark| name.contains(mark))
}

/// Where servers' files are put by mistake.
const ELSEWHERE: [&str; 3] = ["/etc/thv", "/etc/thv/servers.d", "/etc/thv/conf.d"];
/// Where an administrator's units are.
const UNITS: &str = "/etc/systemd/system";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_reads_is_told_with_where_it_belongs() {
        let root = tempfile::tempdir().unwrap();
        let name = ServerName::parse("x").unwrap();
        let write = |path: &str| {
            let path = below(root.path(), path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        let told = || {
            let remarks = of(root.path(), &name).into_iter();
            remarks
                .map(|(_, message, help)| format!("{message}; {help}"))
                .collect::<Vec<_>>()
        };
        for fine in [
            "/etc/thv/servers/x.toml",
            "/etc/thv/servers/x.toml.d/a.toml",
            "/etc/thv/thv.toml",
            "/etc/systemd/system/thv@x.socket.d/50-listen.conf",
            "/etc/systemd/system/thv@x.socket.d/50-listen.conf.bak",
            "/etc/systemd/system/thv@x.socket.d/.50-listen.conf.swp",
            "/etc/systemd/system/thv-x.timer.d/a.conf",
            "/etc/systemd/system/thv@y.d/a.conf",
        ] {
            write(fine);
            assert_eq!(told(), [""; 0], "{fine}");
        }
        // The file of all servers is no server's, whatever one is called.
        assert_eq!(of(root.path(), &ServerName::parse("thv").unwrap()), []);
        for (stray, cure) in [
            ("/etc/thv/servers/x.d/a.toml", "x.toml.d"),
            ("/etc/thv/servers/x.toml.d/a.conf", "`.toml`"),
            ("/etc/thv/thv.toml.d/a.conf", "`.toml`"),
            ("/etc/thv/x.toml", "`/etc/thv/servers/x.toml`"),
            ("/etc/thv/servers.d/x.toml", "`/etc/thv/servers/x.toml`"),
            ("/etc/systemd/system/thv@x.d/a.conf", "`thv@x.service.d`"),
            (
                "/etc/systemd/system/thv-x.service.d/a.conf",
                "`thv@x.service.d`",
            ),
            (
                "/etc/systemd/system/thv-runner@x.service.d/override",
                "`.conf`",
            ),
            ("/etc/systemd/system/thv@.service.d/a.cfg", "`.conf`"),
        ] {
            let before = told().len();
            write(stray);
            let all = told();
            assert_eq!(all.len(), before + 1, "{stray}: {all:?}");
            assert!(all.iter().any(|one| one.contains(cure)), "{stray}: {all:?}");
        }
        // A unit of somebody's own may be called so.
        let before = told().len();
        write("/etc/systemd/system/thv-x.service");
        assert_eq!(told().len(), before - 1);
    }

    #[test]
    fn a_servers_file_in_another_directory_is_told_with_the_command() {
        let root = tempfile::tempdir().unwrap();
        for file in [
            "thv.toml",
            "y.toml",
            "conf.d/z.toml",
            "keys.json",
            "servers/a.toml",
            "a.toml",
            "A_b.toml",
        ] {
            let path = root.path().join("etc/thv").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let top = root.path().join("etc/thv").display().to_string();
        let told: Vec<_> = of_all(root.path())
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(told.len(), 2, "{told:?}");
        for (one, from, to) in [
            (&told[0], "y.toml", "y.toml"),
            (&told[1], "conf.d/z.toml", "z.toml"),
        ] {
            assert!(
                one.contains(&format!("`mv -n {top}/{from} {top}/servers/{to}`")),
                "{one}"
            );
        }
    }
}

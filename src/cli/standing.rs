//! How the units of a server stand, as far as it keeps somebody from being served: what is masked, replaced, failed,
//! not read again, not enabled or not started. Called by `check`.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use super::{
    fragments::{self, Found},
    overlooked::Remark,
    unit,
};
use crate::config::{Auth, Config};

/// What files say: units that are masked, or that stand in place of the package's.
pub(super) fn of_files(root: &Path, config: &Config) -> Vec<Remark> {
    let name = &config.server;
    let mut units = vec![
        (format!("thv@{name}.socket"), "thv@.socket"),
        (format!("thv@{name}.service"), "thv@.service"),
    ];
    // Nothing is run here of a server that somebody else runs.
    if !config.command.is_empty() || config.image.is_some() {
        units.push((format!("thv-runner@{name}.socket"), "thv-runner@.socket"));
        units.push((format!("thv-runner@{name}.service"), "thv-runner@.service"));
    }
    if config.image.is_some() {
        units.push((format!("thv-fetch@{name}.service"), "thv-fetch@.service"));
        units.push((format!("thv-pull@{name}.service"), "thv-pull@.service"));
    }
    units.push((TARGETS[0].to_owned(), TARGETS[0]));
    units.push((TARGETS[1].to_owned(), TARGETS[1]));
    let remark = |(unit, of_all): (String, &str)| match fragments::found(root, &unit, of_all) {
        Found::Shipped => None,
        Found::Masked(path) => {
            let path = Path::new("/").join(path.strip_prefix(root).unwrap_or(&path));
            let file = path.file_name().unwrap_or_default().display();
            let runtime = match path.starts_with("/run") {
                true => "--runtime ",
                false => "",
            };
            Some((
                format!(
                    "{unit} is masked by `{}`: {}",
                    path.display(),
                    without(&unit)
                ),
                format!("run `systemctl unmask {runtime}{file}`"),
            ))
        }
        Found::Replaced(path) => Some((
            format!(
                "`{}` stands in place of the package's unit, whose later versions do not count for {unit}",
                path.display()
            ),
            format!(
                "remove it, run `systemctl daemon-reload`, and say what is to differ by `systemctl edit {of_all}`"
            ),
        )),
    };
    let remarks = units.into_iter().filter_map(remark);
    remarks
        .map(|(message, help)| (String::new(), message, help))
        .collect()
}

/// Whom the socket lets in where the server asks which user of this host connects: unless a drop-in says it, root alone.
pub(super) fn of_users(root: &Path, config: &Config) -> Option<Remark> {
    let texts = fragments::of_socket(root, config.server.as_str());
    let says = ["SocketGroup", "SocketUser", "SocketMode"]
        .iter()
        .any(|setting| unit::has(&texts, setting));
    let is_shut = matches!(config.auth, Auth::Peer) && !says;
    let socket = format!("thv@{}.socket", config.server);
    is_shut.then(|| {
        (
            "auth.mode".to_owned(),
            format!("root alone can open {socket}, so no user of this host is served"),
            format!("run `systemctl edit {socket}`, and add `SocketGroup=GROUP` below [Socket]"),
        )
    })
}

/// What it means that there is no such unit.
fn without(unit: &str) -> &'static str {
    match unit {
        "thv-sockets.target" => "after the next boot nobody is served",
        "thv.target" => "upgrades of the package do not restart what runs",
        _ if unit.starts_with("thv-runner@") => "no server is started",
        _ if unit.starts_with("thv@") => "nobody is served",
        _ => "no image is pulled",
    }
}

/// How a unit stands for systemd.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct State {
    unit: String,
    active: String,
    /// Whether its files have changed since systemd has read them.
    pub(super) is_stale: bool,
    /// Whether something starts it at the next boot.
    is_wanted: bool,
    is_loaded: bool,
    /// Where it listens.
    listens: Vec<String>,
}

/// How the units of these servers stand; none where systemd cannot be asked.
pub(super) fn ask<'a>(servers: impl Iterator<Item = &'a str>) -> Vec<State> {
    let sockets = servers.flat_map(|name| {
        [
            format!("thv@{name}.socket"),
            format!("thv-runner@{name}.socket"),
            format!("thv@{name}.service"),
        ]
    });
    states(&shown(sockets.chain(TARGETS.map(str::to_owned))))
}

/// Whether the unit's files have changed since systemd has read them.
pub(super) fn is_stale(unit: &str) -> bool {
    let states = states(&shown([unit.to_owned()].into_iter()));
    states.iter().any(|state| state.is_stale)
}

fn shown(units: impl Iterator<Item = String>) -> String {
    let shown = Command::new("systemctl")
        .arg("show")
        .arg("--property=Id,LoadState,ActiveState,NeedDaemonReload,UnitFileState,WantedBy,RequiredBy,Listen")
        .args(units)
        .stderr(Stdio::null())
        .output();
    let text = shown.map(|done| done.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text).into_owned()
}

fn states(shown: &str) -> Vec<State> {
    let state = |block: &str| {
        let value = |key: &str| {
            let mut lines = block.lines();
            lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        };
        // Its own service requires it and does not start it.
        let has_others = |key: &str| {
            let units = value(key).unwrap_or_default();
            units
                .split_whitespace()
                .any(|unit| !unit.starts_with("thv@"))
        };
        let file = value("UnitFileState").unwrap_or_default();
        Some(State {
            unit: value("Id")?.to_owned(),
            active: value("ActiveState").unwrap_or_default().to_owned(),
            is_stale: value("NeedDaemonReload") == Some("yes"),
            // What is wanted by another's link is known only while that is loaded.
            is_wanted: !["", "disabled", "indirect"].contains(&file)
                || has_others("WantedBy")
                || has_others("RequiredBy"),
            is_loaded: value("LoadState") == Some("loaded"),
            listens: block
                .lines()
                .filter_map(|line| line.strip_prefix("Listen=")?.rsplit_once(" ("))
                .map(|(address, _)| address.to_owned())
                .collect(),
        })
    };
    shown.split("\n\n").filter_map(state).collect()
}

/// What is to be said of a server whose units stand so; `is_outdated` where its files say something else than its
/// gateway has noted that it serves.
pub(super) fn remarks(server: &str, states: &[State], is_outdated: bool) -> Vec<(String, String)> {
    let of = |unit: &str| {
        states
            .iter()
            .find(|state| state.unit == unit && state.is_loaded)
    };
    let mut remarks = Vec::new();
    let socket = format!("thv@{server}.socket");
    let Some(state) = of(&socket) else {
        return remarks;
    };
    let failed = |unit: &str, so: &str| {
        (
            format!("{unit} has failed, so {so}"),
            format!(
                "`journalctl -u {unit} -n 5` says why; mend it, then `systemctl restart {unit}`"
            ),
        )
    };
    if state.is_stale {
        remarks.push((
            format!("systemd has not read what {socket} says now"),
            format!("run `systemctl daemon-reload && systemctl restart {socket}`"),
        ));
    } else if state.active == "failed" {
        remarks.push(failed(&socket, "nobody is served"));
    } else if state.active == "inactive" && state.is_wanted {
        remarks.push((
            format!("{socket} is enabled and not started, so nobody is served"),
            format!("run `systemctl start {socket}`"),
        ));
    } else if state.active == "active" && !state.is_wanted {
        remarks.push((
            format!("{socket} listens and is not enabled: after the next boot nobody is served"),
            format!("run `systemctl enable {socket}`"),
        ));
    }
    if let [_, second, ..] = &state.listens[..] {
        remarks.push((
            format!("{socket} listens at {}, and a server has one address: nobody is served", state.listens.join(" and ")),
            format!("run `thv listen {server} ADDRESS`, or `systemctl edit {socket}` with an empty `ListenStream=` in front of `ListenStream={second}`"),
        ));
    }
    let runner = format!("thv-runner@{server}.socket");
    if of(&runner).is_some_and(|state| state.active == "failed") {
        remarks.push(failed(&runner, "no server is started"));
    }
    let gateway = format!("thv@{server}.service");
    if is_outdated && of(&gateway).is_some_and(|state| state.active == "active") {
        remarks.push((
            format!("{gateway} serves what the files said before they were changed"),
            format!("run `systemctl try-reload-or-restart {gateway}`"),
        ));
    }
    // A socket that is enabled is so by the target.
    if state.is_wanted && of(TARGETS[0]).is_some_and(|target| !target.is_wanted) {
        remarks.push((
            format!(
                "{} is not enabled: after the next boot nobody is served",
                TARGETS[0]
            ),
            format!("run `systemctl enable --now {} {}`", TARGETS[1], TARGETS[0]),
        ));
    }
    remarks
}

/// The next command where all is well and nothing listens, for it was not enabled yet.
pub(super) fn next(server: &str, states: &[State]) -> Option<String> {
    let socket = format!("thv@{server}.socket");
    let state = states.iter().find(|state| state.unit == socket)?;
    let is_off = state.is_loaded && state.active == "inactive" && !state.is_wanted;
    is_off.then(|| format!("`systemctl enable --now {socket}` has it listen"))
}

const TARGETS: [&str; 2] = ["thv-sockets.target", "thv.target"];

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::config::{self, OwnerRule, ServerName};

    fn shown(unit: &str, active: &str, file: &str, more: &str) -> String {
        format!(
            "Id={unit}\nLoadState=loaded\nActiveState={active}\nUnitFileState={file}\n{more}\n\n"
        )
    }

    fn said(blocks: &[String]) -> String {
        let lines = remarks("a", &states(&blocks.concat()), false);
        let lines: Vec<_> = lines
            .iter()
            .map(|(message, help)| format!("{message}; {help}"))
            .collect();
        lines.join("\n")
    }

    #[test]
    fn a_socket_that_keeps_people_out_is_told_with_the_command() {
        let good = shown("thv-sockets.target", "active", "enabled", "");
        for (active, file, more, words) in [
            ("active", "enabled", "", ""),
            ("active", "disabled", "WantedBy=other.target", ""),
            // What listens without is not spoken of twice, and what was never begun is not wrong.
            ("inactive", "disabled", "WantedBy=", ""),
            ("failed", "enabled", "", "journalctl -u thv@a.socket"),
            ("inactive", "enabled", "", "`systemctl start thv@a.socket`"),
            (
                "active",
                "disabled",
                "WantedBy=",
                "`systemctl enable thv@a.socket`",
            ),
            (
                "active",
                "disabled",
                "RequiredBy=thv@a.service",
                "`systemctl enable thv@a.socket`",
            ),
            ("active", "enabled", "Listen=127.0.0.1:80 (Stream)", ""),
            (
                "active",
                "enabled",
                "Listen=/run/thv/a.sock (Stream)\nListen=[::1]:80 (Stream)",
                "listens at /run/thv/a.sock and [::1]:80",
            ),
            (
                "active",
                "enabled",
                "NeedDaemonReload=yes",
                "`systemctl daemon-reload && systemctl restart thv@a.socket`",
            ),
        ] {
            let told = said(&[shown("thv@a.socket", active, file, more), good.clone()]);
            assert!(
                told.contains(words) && told.is_empty() == words.is_empty(),
                "{active} {file} {more}: {told}"
            );
            let others = shown("thv@b.socket", active, file, more);
            assert_eq!(said(&[others]), "", "another's is not this one's");
        }
        // Where no unit of thv is installed, nothing is wrong with it.
        let none =
            "Id=thv@a.socket\nLoadState=not-found\nActiveState=inactive\nUnitFileState=enabled\n";
        assert_eq!(said(&[none.to_owned()]), "");
        assert_eq!(said(&[]), "");
    }

    #[test]
    fn what_stands_behind_the_socket_is_told_too() {
        let socket = shown("thv@a.socket", "active", "enabled", "");
        let runner = shown("thv-runner@a.socket", "failed", "static", "");
        let told = said(&[socket.clone(), runner]);
        assert!(
            told.contains("`systemctl restart thv-runner@a.socket`"),
            "{told}"
        );
        let target = shown("thv-sockets.target", "inactive", "disabled", "WantedBy=");
        let told = said(&[socket, target.clone()]);
        assert!(
            told.contains("`systemctl enable --now thv.target thv-sockets.target`"),
            "{told}"
        );
        let socket = shown("thv@a.socket", "inactive", "disabled", "");
        assert_eq!(said(&[socket, target]), "", "nothing of it is in use yet");
    }

    /// Who mends a file because of what he was told is told so again by a gateway that has not read it.
    #[test]
    fn a_gateway_that_has_not_read_what_its_files_say_is_told_while_it_runs() {
        let socket = shown("thv@a.socket", "active", "enabled", "");
        for (active, is_outdated, words) in [
            (
                "active",
                true,
                "`systemctl try-reload-or-restart thv@a.service`",
            ),
            ("active", false, ""),
            ("inactive", true, ""),
        ] {
            let gateway = shown("thv@a.service", active, "indirect", "");
            let told = remarks("a", &states(&format!("{socket}{gateway}")), is_outdated);
            let told: String = told
                .into_iter()
                .map(|(message, help)| message + &help)
                .collect();
            assert!(
                told.contains(words) && told.is_empty() == words.is_empty(),
                "{told}"
            );
        }
    }

    #[test]
    fn where_nothing_listens_yet_the_next_command_is_named() {
        let next = |active, file| next("a", &states(&shown("thv@a.socket", active, file, "")));
        assert!(
            next("inactive", "disabled")
                .is_some_and(|text| text.contains("enable --now thv@a.socket"))
        );
        assert_eq!(next("active", "disabled"), None);
        assert_eq!(next("inactive", "enabled"), None);
    }

    #[test]
    fn a_server_for_users_whose_socket_root_alone_can_open_is_told() {
        let root = tempfile::tempdir().unwrap();
        let servers = root.path().join("etc/thv/servers");
        fs::create_dir_all(&servers).unwrap();
        let told = |mode: &str| {
            let text = format!(
                "command = [\"/bin/sh\"]\nresource = \"https://h/x\"\nauth.mode = \"{mode}\"\nauthz.allow = \"authenticated\"\n"
            );
            fs::write(servers.join("x.toml"), text).unwrap();
            let name = ServerName::parse("x").unwrap();
            let config = config::load(root.path(), &name, OwnerRule::RootOrCaller).unwrap();
            of_users(root.path(), &config).map(|(.., help)| help)
        };
        assert_eq!(told("none"), None);
        assert!(told("peer").is_some_and(|help| help.contains("`systemctl edit thv@x.socket`")));
        let text = "[Service]\nSocketGroup=users\n";
        unit::write_drop_in(root.path(), "thv@x.service", "g.conf", text).unwrap();
        assert!(told("peer").is_some(), "it is not the socket's");
        unit::write_drop_in(root.path(), "thv@x.socket", "g.conf", text).unwrap();
        assert_eq!(told("peer"), None);
    }

    #[test]
    fn units_that_are_masked_or_replaced_are_told() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let told = |of: &str| {
            let rest = "resource = \"https://h/x\"\nauth.mode = \"none\"\nauthz.allow = \"authenticated\"\n";
            write("etc/thv/servers/x.toml", &format!("{of}\n{rest}"));
            let name = ServerName::parse("x").unwrap();
            let config = config::load(root.path(), &name, OwnerRule::RootOrCaller).unwrap();
            let lines = of_files(root.path(), &config).into_iter();
            lines
                .map(|(_, message, help)| format!("{message}; {help}"))
                .collect::<Vec<_>>()
        };
        let command = "command = [\"/bin/sh\"]";
        write("usr/lib/systemd/system/thv@.service", "[Service]\n");
        assert!(told(command).is_empty());
        write("etc/systemd/system/thv@.service", "[Service]\n");
        fs::create_dir_all(root.path().join("run/systemd/system")).unwrap();
        let mask = |at: &str| symlink("/dev/null", root.path().join(at)).unwrap();
        mask("run/systemd/system/thv-runner@x.service");
        mask("etc/systemd/system/thv@.socket");
        mask("etc/systemd/system/thv.target");
        let found = told(command);
        let all = found.join("\n");
        assert_eq!(found.len(), 4, "{all}");
        for words in [
            "`systemctl edit thv@.service`",
            "`systemctl unmask --runtime thv-runner@x.service`",
            "thv@x.socket is masked by `/etc/systemd/system/thv@.socket`",
            "`systemctl unmask thv@.socket`",
            "`systemctl unmask thv.target`",
        ] {
            assert!(all.contains(words), "{words}: {all}");
        }
        // A server elsewhere has no runner.
        assert_eq!(told("url = \"https://h/y\"").len(), 3);
    }
}

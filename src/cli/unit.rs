//! Systemd's units: their drop-ins, telling systemd of them, and what their journal says.
//!
//! Used by `listen`, `path`, `secret`, `check`, `pull` and `run`. A drop-in is an ordinary file that
//! `systemctl cat` shows and an administrator may edit or delete.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, Write as _},
    os::{
        fd::AsFd as _,
        unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail};

use super::{below, fragments, say, standing};
use crate::config::{self, OwnerRule, ServerName};

/// Writes `text` as the drop-in `file` of `unit`; gives its path.
pub(super) fn write_drop_in(root: &Path, unit: &str, file: &str, text: &str) -> Result<PathBuf> {
    let directory = below(root, &format!("{UNITS}/{unit}.d"));
    let path = directory.join(file);
    write(&directory, &path, text).with_context(|| {
        format!(
            "writing `{}` (this is root's to do: try `sudo`)",
            path.display()
        )
    })?;
    Ok(path)
}

/// Removes the drop-in `file` of `unit`, and its directory if nothing else is in it;
/// gives its path if it was there.
pub(super) fn remove_drop_in(root: &Path, unit: &str, file: &str) -> Result<Option<PathBuf>> {
    let directory = below(root, &format!("{UNITS}/{unit}.d"));
    let path = directory.join(file);
    match fs::remove_file(&path) {
        Ok(()) => {
            let _ = fs::remove_dir(&directory);
            Ok(Some(path))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| {
            format!(
                "removing `{}` (this is root's to do: try `sudo`)",
                path.display()
            )
        }),
    }
}

/// What these drop-ins set, and to what, in order.
pub(super) fn settings(drop_ins: &[String]) -> impl Iterator<Item = (&str, &str)> {
    let lines = drop_ins.iter().flat_map(|text| text.lines());
    lines.filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        Some((name.trim(), value.trim()))
    })
}

/// Whether one of these drop-ins has the setting.
pub(super) fn has(drop_ins: &[String], setting: &str) -> bool {
    settings(drop_ins).any(|(name, _)| name == setting)
}

/// Whether these drop-ins switch the setting off.
pub(super) fn is_off(drop_ins: &[String], setting: &str) -> bool {
    let said = settings(drop_ins).filter(|(name, _)| *name == setting);
    said.last().is_some_and(|(_, value)| is_one_of(NO, value))
}

/// Whether it is one of systemd's words for yes or for no, which may be written in capitals.
pub(super) fn is_one_of(words: &[&str], value: &str) -> bool {
    words.iter().any(|word| value.eq_ignore_ascii_case(word))
}

/// Whether a server is there: what is written for one that is not is likely to be a slip.
pub(super) fn warn_of_no_server(root: &Path, name: &ServerName) -> bool {
    let own = format!("/etc/thv/servers/{name}.toml");
    if below(root, &own).exists() {
        return true;
    }
    let names: Vec<_> = config::servers(root)
        .iter()
        .map(ToString::to_string)
        .collect();
    say(&format!(
        "thv: there is no {own} yet, and without it thv@{name}.socket does not start; configured are: {}",
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    ));
    false
}

/// Whether this socket unit listens at the port now, at whatever address.
pub(super) fn listens_at(socket: &str, port: u16) -> bool {
    let port = port.to_string();
    let has_port = |address: &str| address.rsplit_once(':').is_some_and(|(_, has)| has == port);
    sockets_at(has_port).iter().any(|holder| holder == socket)
}

/// The socket units that systemd listens with at such an address.
pub(super) fn sockets_at(is_meant: impl Fn(&str) -> bool) -> Vec<String> {
    let listed = Command::new("systemctl")
        .args(["list-sockets", "--no-legend", "--plain"])
        .output();
    let text = listed.map(|done| done.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            is_meant(words.next()?).then(|| words.next().map(ToOwned::to_owned))?
        })
        .collect()
}

/// The last that the unit's own process has said since then, where the journal can be asked.
pub(super) fn last_words(unit: &str, since: SystemTime) -> Option<String> {
    let since = since.duration_since(UNIX_EPOCH).ok()?.as_secs();
    let _ = Command::new("journalctl").arg("--sync").status();
    // Not by the invocation: of a process that is gone already journald knows the unit alone.
    let said = Command::new("journalctl")
        .args(["--quiet", "--output=cat", "--lines=1", "_TRANSPORT=stdout"])
        .arg(format!("_SYSTEMD_UNIT={unit}"))
        .arg(format!("--since=@{since}"))
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&said.stdout);
    let text = text.trim().trim_start_matches("thv: ");
    (!text.is_empty()).then(|| text.to_owned())
}

/// Does `work`, and meanwhile shows the lines of a unit's journal that match.
pub(super) fn followed<T>(unit: &str, pattern: &str, work: impl FnOnce() -> T) -> T {
    let shown = follow(unit, pattern);
    let done = work();
    if let Some(mut shown) = shown {
        let _ = shown.kill();
        let _ = shown.wait();
    }
    done
}

fn follow(unit: &str, pattern: &str) -> Option<Child> {
    let stderr = io::stderr().as_fd().try_clone_to_owned().ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Command::new("journalctl")
        // From this moment, not from when it is ready to look.
        .args(["--quiet", "--follow", "--no-tail", "--output=cat"])
        .arg(format!(
            "--since=@{}.{:06}",
            now.as_secs(),
            now.subsec_micros()
        ))
        .arg(format!("--unit={unit}"))
        .arg(format!("--grep={pattern}"))
        .stdin(Stdio::null())
        .stdout(stderr)
        .stderr(Stdio::null())
        .spawn()
        .ok()
}

/// Whether systemd is to be told: only about this host's own units.
pub(super) fn is_host(root: &Path) -> bool {
    root == Path::new("/")
}

/// Whose files gateway and runner accept that are started for this root: root's, where systemd does it.
pub(super) fn owner_rule(root: &Path) -> OwnerRule {
    if is_host(root) && Path::new("/run/systemd/system").is_dir() {
        OwnerRule::Root
    } else {
        OwnerRule::RootOrCaller
    }
}

/// What gateway and runner refuse for certain: a group that a drop-in has them join may let them in.
pub(super) fn certain(root: &Path, name: &ServerName, units: OwnerRule) -> OwnerRule {
    let joins = |template| {
        let drop_ins = fragments::said(root, template, name.as_str());
        ["SupplementaryGroups", "Group", "User"]
            .iter()
            .any(|setting| has(&drop_ins, setting))
    };
    if units == OwnerRule::Root && ["thv@", "thv-runner@"].into_iter().any(joins) {
        OwnerRule::RootAndGroup
    } else {
        units
    }
}

/// The command by which the unit is started anew as its drop-ins say: those that systemd has not read yet would not count.
pub(super) fn restart(root: &Path, service: &str) -> String {
    match is_host(root) && standing::is_stale(service) {
        true => format!("`systemctl daemon-reload && systemctl restart {service}`"),
        false => format!("`systemctl restart {service}`"),
    }
}

pub(super) fn is_active(unit: &str) -> bool {
    Command::new("systemctl")
        .args(["--quiet", "is-active", unit])
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs `systemctl`, whose own words go to stderr.
pub(super) fn systemctl(args: &[&str]) -> Result<()> {
    let status = Command::new("systemctl")
        .args(args)
        .status()
        .with_context(|| format!("running `systemctl {}`", args.join(" ")))?;
    if !status.success() {
        bail!(
            "`systemctl {}` failed ({status}); the drop-in is written",
            args.join(" ")
        );
    }
    Ok(())
}

fn write(directory: &Path, path: &Path, text: &str) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let new = path.with_extension(format!("new-{}", std::process::id()));
    // Units are no secrets.
    write_in_one_step((path, &new), 0o644, text)
}

/// Writes a file of this mode, whatever the umask, by way of `new` beside it: whoever reads it
/// finds all of it, or what was there.
pub(super) fn write_in_one_step(
    (path, new): (&Path, &Path),
    mode: u32,
    text: &str,
) -> io::Result<()> {
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(new)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::set_permissions(new, Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(new, path));
    if written.is_err() {
        let _ = fs::remove_file(new);
    }
    written
}

pub(super) const YES: &[&str] = &["1", "yes", "y", "true", "t", "on"];
const NO: &[&str] = &["0", "no", "n", "false", "f", "off"];
/// Where an administrator's units and drop-ins are.
const UNITS: &str = "/etc/systemd/system";

//! `thv doctor`: what of the sandbox works on this host, and what to do where it does not.
//!
//! Looks, and tries: a sandbox is built around `true` as for any server. Changes
//! nothing. A line that is not good is an exit status, so that scripts can ask.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use nix::{sys::utsname::uname, unistd::geteuid};
use serde::Serialize;

use super::{exit, print, scratch::Scratch};
use crate::{config::Layer, sandbox, sys};

/// How one thing is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Good,
    /// Servers do not start, or not with all their layers.
    Bad,
    /// Not here, and needed only where a server asks for it.
    Absent,
}

#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    found: String,
    /// What to do; empty where nothing is to be done.
    fix: String,
}

pub(super) fn run(json: bool) -> Result<ExitCode> {
    let mut findings = vec![
        kernel(),
        user_namespaces(),
        debian_switch(),
        apparmor(),
        seccomp(),
        landlock(),
        cgroup(),
        systemd(),
        podman(),
    ];
    findings.extend(trial()?);
    if json {
        let text = serde_json::to_string_pretty(&findings).context("writing JSON")?;
        print(&format!("{text}\n"))?;
    } else {
        print(&table(&findings))?;
    }
    let is_good = findings.iter().all(|finding| finding.state != State::Bad);
    Ok(if is_good {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::OS)
    })
}

fn table(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let state = match finding.state {
            State::Good => "good",
            State::Bad => "BAD",
            State::Absent => "absent",
        };
        let _ = writeln!(text, "{:<16} {state:<7} {}", finding.what, finding.found);
        if !finding.fix.is_empty() {
            let _ = writeln!(text, "{:<24} → {}", "", finding.fix);
        }
    }
    text
}

fn good(what: &'static str, found: impl Into<String>) -> Finding {
    Finding {
        what,
        state: State::Good,
        found: found.into(),
        fix: String::new(),
    }
}

fn bad(what: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding {
        what,
        state: State::Bad,
        found: found.into(),
        fix: fix.into(),
    }
}

fn absent(what: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding {
        state: State::Absent,
        ..bad(what, found, fix)
    }
}

fn kernel() -> Finding {
    let release = uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    if version(&release).is_some_and(|version| version >= OLDEST_KERNEL) {
        good("kernel", format!("Linux {release}"))
    } else {
        bad(
            "kernel",
            format!("Linux {release}"),
            "5.14 or newer is needed (`cgroup.kill`, mount_setattr(2))",
        )
    }
}

/// The first two numbers of a release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn user_namespaces() -> Finding {
    match setting("user/max_user_namespaces").as_deref() {
        Some("0") => bad(
            "user namespaces",
            "user.max_user_namespaces = 0",
            "`sysctl -w user.max_user_namespaces=15000`, and the same in /etc/sysctl.d",
        ),
        Some(most) => good("user namespaces", format!("at most {most}")),
        None => bad(
            "user namespaces",
            "this kernel has none",
            "one with CONFIG_USER_NS is needed",
        ),
    }
}

/// A switch that Debian's kernels have besides.
fn debian_switch() -> Finding {
    match setting("kernel/unprivileged_userns_clone").as_deref() {
        Some("0") => bad(
            "unprivileged",
            "kernel.unprivileged_userns_clone = 0",
            "`sysctl -w kernel.unprivileged_userns_clone=1`, and the same in /etc/sysctl.d",
        ),
        _ => good("unprivileged", "ordinary users may make namespaces"),
    }
}

fn apparmor() -> Finding {
    let what = "AppArmor";
    if setting("kernel/apparmor_restrict_unprivileged_userns").as_deref() != Some("1") {
        return good(what, "does not restrict namespaces");
    }
    let said = "only programs with a profile may make namespaces";
    // Readable by root alone; whoever cannot look takes the file for it.
    let is_loaded = fs::read_to_string("/sys/kernel/security/apparmor/profiles")
        .map(|profiles| profiles.lines().any(|line| line.starts_with(PROFILE)))
        .unwrap_or(true);
    let installed = Path::new("/etc/apparmor.d").join(PROFILE);
    if !installed.exists() {
        bad(
            what,
            format!("{said}, and thv has none"),
            format!(
                "`install -m 0644 /usr/share/thv/apparmor/{PROFILE} /etc/apparmor.d/`, then \
                 `apparmor_parser -r /etc/apparmor.d/{PROFILE}`; \
                 or `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`"
            ),
        )
    } else if is_loaded {
        good(what, format!("{said}; thv has one"))
    } else {
        bad(
            what,
            format!("{said}, and that of thv is not loaded"),
            format!("`apparmor_parser -r {}`", installed.display()),
        )
    }
}

fn seccomp() -> Finding {
    match setting("kernel/seccomp/actions_avail") {
        Some(actions) if actions.split_whitespace().any(|it| it == "kill_process") => {
            good("seccomp", "filters can be loaded")
        }
        _ => bad(
            "seccomp",
            "this kernel has no filters",
            "one with CONFIG_SECCOMP_FILTER is needed",
        ),
    }
}

fn landlock() -> Finding {
    match sys::privileges::landlock_abi() {
        Ok(abi) if abi < SCOPES_SINCE => good(
            "Landlock",
            format!("ABI {abi}: files; signals and abstract sockets since Linux 6.12"),
        ),
        Ok(abi) => good(
            "Landlock",
            format!("ABI {abi}: files, signals, abstract sockets"),
        ),
        Err(error) => bad(
            "Landlock",
            error.to_string(),
            "add `landlock` to the kernel's `lsm=`, or \"landlock\" to sandbox.optional",
        ),
    }
}

fn cgroup() -> Finding {
    let uid = geteuid();
    if uid.is_root() {
        return cgroup_of_units();
    }
    delegated(
        "your units",
        &format!(
            "/sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service/cgroup.controllers"
        ),
        "`systemctl edit user@.service` with `Delegate=cpu memory pids`; the servers of thv@NAME.socket have theirs",
    )
}

fn cgroup_of_units() -> Finding {
    delegated(
        "units",
        "/sys/fs/cgroup/cgroup.controllers",
        "this host (or container) hides them: `sandbox.optional = [\"cgroup\"]` starts servers without limits",
    )
}

fn delegated(whose: &str, path: &str, fix: &str) -> Finding {
    let what = "cgroup";
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return bad(
            what,
            "cgroup v2 is not what is mounted at /sys/fs/cgroup",
            "boot with `systemd.unified_cgroup_hierarchy=1`, or let servers start without limits: \
             `sandbox.optional = [\"cgroup\"]`",
        );
    }
    let there = fs::read_to_string(path).unwrap_or_default();
    let missing: Vec<_> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|wanted| !there.split_whitespace().any(|it| it == *wanted))
        .collect();
    if missing.is_empty() {
        good(
            what,
            format!("cpu, memory and pids can be delegated to {whose}"),
        )
    } else {
        bad(
            what,
            format!("not delegated to {whose}: {}", missing.join(", ")),
            fix,
        )
    }
}

/// What the units of servers cannot have on this host of the layers that are required: what it is, and what to do.
/// Looks, and tries nothing.
pub(super) fn lacking(is_required: impl Fn(Layer) -> bool) -> Vec<(String, String)> {
    let findings = [
        (Layer::Namespaces, user_namespaces()),
        (Layer::Namespaces, debian_switch()),
        (Layer::Namespaces, apparmor()),
        (Layer::Seccomp, seccomp()),
        (Layer::Landlock, landlock()),
        (Layer::Cgroup, cgroup_of_units()),
    ];
    lacked(findings, is_required)
}

fn lacked(
    findings: impl IntoIterator<Item = (Layer, Finding)>,
    is_required: impl Fn(Layer) -> bool,
) -> Vec<(String, String)> {
    let bad = findings
        .into_iter()
        .filter(|(layer, finding)| finding.state == State::Bad && is_required(*layer));
    bad.map(|(_, finding)| (format!("{}: {}", finding.what, finding.found), finding.fix))
        .collect()
}

fn systemd() -> Finding {
    if !Path::new("/run/systemd/system").exists() {
        return absent(
            "systemd",
            "does not run here",
            "`thv run --foreground` does without",
        );
    }
    let said = Command::new("systemctl").arg("--version").output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let number = said
        .unwrap_or_default()
        .split_whitespace()
        .nth(1)
        .and_then(|number| number.split('.').next()?.parse::<u32>().ok());
    match number {
        Some(number) if number >= OLDEST_SYSTEMD => good("systemd", number.to_string()),
        Some(number) => bad("systemd", number.to_string(), "252 or newer is needed"),
        None => absent("systemd", "`systemctl --version` does not say", ""),
    }
}

/// podman, what it starts containers with, and what stands between the two.
fn podman() -> Finding {
    let what = "podman";
    let is_there = |program: &str| Path::new("/usr/bin").join(program).exists();
    if !Path::new(sandbox::PODMAN).exists() {
        return absent(
            what,
            "not installed; only servers with `engine = \"podman\"` need it",
            "",
        );
    }
    let missing: Vec<_> = ["crun", "conmon"]
        .into_iter()
        .filter(|program| !is_there(program))
        .collect();
    if !missing.is_empty() {
        return absent(
            what,
            format!("installed without {}", missing.join(" and ")),
            "install them: servers with `engine = \"podman\"` do not start without",
        );
    }
    let said = Command::new(sandbox::PODMAN).arg("--version").output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let said = said.unwrap_or_default();
    let version = said.trim().trim_start_matches("podman version ");
    good(what, format!("{version}, with crun"))
}

/// Builds a sandbox, as for a server, and looks at what is not the same on every host.
fn trial() -> Result<Vec<Finding>> {
    let files = Scratch::new("thv-doctor")?;
    let servers = files.root().join("etc/thv/servers");
    fs::create_dir_all(&servers)?;
    fs::write(
        servers.join("trial.toml"),
        "command = [\"/usr/bin/true\"]\nresource = \"http://localhost/\"\nauth.mode = \"none\"\nauthz.allow = \"authenticated\"\n",
    )?;
    let look = format!("test -e /proc/meminfo && echo {WHOLE} || true");
    let output = Command::new(std::env::current_exe().context("finding this program")?)
        .arg("--root")
        .arg(files.root())
        .args(["sandbox", "trial", "--", "/bin/sh", "-c", &look])
        .output()
        .context("trying a sandbox")?;
    if output.status.success() {
        let is_whole = output.stdout.starts_with(WHOLE.as_bytes());
        return Ok(vec![
            good(
                "a sandbox",
                "was made, with every layer but cgroup, and ended",
            ),
            proc(is_whole),
        ]);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or("it ended without a word");
    Ok(vec![bad(
        "a sandbox",
        last.trim_start_matches("thv: "),
        "mend what is BAD above; in a container, the container must allow user namespaces",
    )])
}

/// What stands at /proc in that sandbox.
fn proc(is_whole: bool) -> Finding {
    if is_whole {
        good(
            "/proc",
            "whole, of a server's own processes; thv@.service(8) says where units give less",
        )
    } else {
        absent(
            "/proc",
            "a server sees its own processes alone, without /proc/meminfo, /proc/cpuinfo and /proc/sys: \
             this kernel lets nobody mount more than is around thv, see thv@.service(8)",
            "",
        )
    }
}

fn setting(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
    Some(text.trim().to_owned())
}

const OLDEST_KERNEL: (u32, u32) = (5, 14);
const OLDEST_SYSTEMD: u32 = 252;
/// The ABI of Landlock that has them (landlock(7)).
const SCOPES_SINCE: i64 = 6;
/// What the trial says where /proc shows more than processes.
const WHOLE: &str = "whole";
/// The profile's name, and its file's.
const PROFILE: &str = "thv-runner";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_by_number() {
        assert_eq!(version("6.18.5-arch1"), Some((6, 18)));
        assert!(version("5.4.0-generic").unwrap() < OLDEST_KERNEL);
        assert!(version("5.14.0-503.el9").unwrap() >= OLDEST_KERNEL);
        assert_eq!(version("linux"), None);
    }

    #[test]
    fn each_line_that_is_not_good_says_what_to_do() {
        let findings = [
            good("a", "fine"),
            bad("b", "wrong", "mend it"),
            absent("c", "not here", ""),
        ];
        assert_eq!(
            table(&findings),
            "a                good    fine\nb                BAD     wrong\n                         → mend it\nc                absent  not here\n"
        );
    }

    #[test]
    fn what_a_server_may_lack_is_not_told_of_it() {
        let findings = || {
            [
                (Layer::Namespaces, good("a", "fine")),
                (Layer::Cgroup, bad("cgroup", "not delegated", "mend it")),
                (Layer::Landlock, absent("b", "not here", "")),
            ]
        };
        let told = ("cgroup: not delegated".to_owned(), "mend it".to_owned());
        assert_eq!(lacked(findings(), |_| true), [told]);
        assert_eq!(lacked(findings(), |layer| layer != Layer::Cgroup), []);
    }
}

//! Serving as a transient systemd unit: the system manager's for root, else the user's.
//!
//! The unit runs gateway and runner in one process tree, as the foreground form
//! does, but under a user of its own (where root asks) and with a delegated
//! cgroup, so that the server's memory is limited. It is gone with its stop.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::SystemTime,
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;

use super::{announce, file::Wish, load, program, pulled};
use crate::cli::{Usage, print, pull, say, unit::last_words};

/// Starts the unit, and says what became of it.
pub(super) fn run(mut wish: Wish, address: SocketAddr) -> Result<ExitCode> {
    if address.port() == 0 {
        return Err(Usage(
            "--port 0: a unit's port must be known; name one, or add --foreground".to_owned(),
        )
        .into());
    }
    let manager = Manager::of_caller()?;
    if address.port() < FIRST_ORDINARY_PORT {
        return Err(Usage(format!(
            "--port {}: the unit is an ordinary user, who may not listen there; \
             use a port above 1023, or --foreground as root",
            address.port()
        ))
        .into());
    }
    let unit = format!("thv-run-{}.service", wish.name);
    if manager.is_active(&unit) {
        bail!(
            "`{unit}` runs already; stop it with `{} stop {unit}`, or choose another --name",
            manager.systemctl()
        );
    }
    announce(&wish);
    wish.cgroup_is_optional = !manager.delegates_all();
    if wish.cgroup_is_optional {
        say(
            "thv: systemd has no cpu, memory and pids controllers to delegate here: nothing limits the server's memory",
        );
    }
    let credentials = credentials(&manager, &wish)?;
    let root = manager.directory(wish.name.as_str())?;
    let _ = fs::remove_dir_all(&root);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&root)
        .and_then(|()| wish.write(&root, address))
        .and_then(|()| readable(&root))
        .with_context(|| format!("writing the server's configuration to `{}`", root.display()))?;
    let config = match load(&root, &wish)? {
        Ok(config) => config,
        Err(code) => {
            let _ = fs::remove_dir_all(&root);
            return Ok(code);
        }
    };
    // The system's unit has a user of its own, which pulls as it starts; a person's is theirs.
    let pulled = match &wish.image {
        Some(image) if manager.is_system => {
            say(&format!("thv: `{image}` is pulled as the unit starts"));
            pulled::link(&root, &wish.name, &state_of(&wish))
        }
        Some(_) => pulled::pull(&root, &wish, None),
        None => Ok(()),
    };
    let started = pulled.and_then(|()| start(&manager, &unit, &root, &wish, address, &credentials));
    if started.is_err() {
        let _ = fs::remove_dir_all(&root);
    }
    started?;
    let uid = manager.uid_of(&unit);
    print(&format!("{unit}\n"))?;
    say(&format!(
        "thv: `{}` is served at {}, listening on {address}",
        wish.name, config.resource.url
    ));
    match uid {
        Some(uid) => say(&format!(
            "thv: gateway and server run as uid {uid}, the same for both{}",
            if manager.is_system {
                ", which is nobody else's"
            } else {
                ": yours"
            }
        )),
        None => say("thv: it has ended already; its journal says why"),
    }
    say(&format!(
        "thv: `{} stop {unit}` ends it; `{} -u {unit}` shows who did what",
        manager.systemctl(),
        if manager.is_system {
            "journalctl"
        } else {
            "journalctl --user"
        }
    ));
    Ok(if uid.is_some() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn start(
    manager: &Manager,
    unit: &str,
    root: &Path,
    wish: &Wish,
    address: SocketAddr,
    credentials: &[String],
) -> Result<()> {
    let mut command = Command::new("systemd-run");
    if !manager.is_system {
        command.arg("--user");
    }
    command.args(["--quiet", "--collect", "--service-type=notify"]);
    command.arg(format!("--unit={unit}"));
    command.arg(format!("--description=MCP server {} (thv run)", wish.name));
    let mut property = |text: &str| {
        command.arg(format!("--property={text}"));
    };
    for text in PROPERTIES {
        property(text);
    }
    if manager.is_system {
        property(&format!("User=thvx-{}", wish.name));
        for text in SYSTEM_PROPERTIES {
            property(text);
        }
        if wish.image.is_some() {
            property(&format!("StateDirectory={STATE}/{}", wish.name));
            property("StateDirectoryMode=0700");
            property("TimeoutStartSec=1h");
            // Systemd mounts the state directory of such a user noexec; the image is run from it.
            property(&format!(
                "ExecPaths=-/var/lib/private/{STATE}/{}/image",
                wish.name
            ));
            property(&format!(
                "ExecStartPre={} --root {} pull {} --into {}",
                program()?.display(),
                root.display(),
                wish.name,
                state_of(wish).display()
            ));
        }
        // As root: the files are root's.
        property(&format!("ExecStopPost=+/bin/rm -rf {}", root.display()));
    } else {
        property(&format!("ExecStopPost=/bin/rm -rf {}", root.display()));
    }
    for credential in credentials {
        property(credential);
    }
    command.arg("--").arg(program()?);
    command.arg("--root").arg(root);
    command.args(["run-unit", wish.name.as_str(), &address.to_string()]);
    let since = SystemTime::now();
    let mut run = || command.output();
    // A person's own is pulled before, by this process.
    let output = if manager.is_system && wish.image.is_some() {
        pull::shown(unit, run)
    } else {
        run()
    };
    let output = output.context("running `systemd-run`; without systemd add --foreground")?;
    if !output.status.success() {
        let systemd = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        // Where it was started and ended, systemd-run itself says nothing.
        let silent = systemd.is_empty() && manager.is_system;
        let why = silent
            .then(|| last_words(unit, since))
            .flatten()
            .unwrap_or(systemd);
        bail!(
            "`{unit}` did not start: {why}; `{} -u {unit}` says more",
            if manager.is_system {
                "journalctl"
            } else {
                "journalctl --user"
            }
        );
    }
    Ok(())
}

/// Where the system's unit keeps its image.
fn state_of(wish: &Wish) -> PathBuf {
    Path::new("/var/lib").join(STATE).join(wish.name.as_str())
}

/// The unit's credentials, as properties.
fn credentials(manager: &Manager, wish: &Wish) -> Result<Vec<String>> {
    wish.secrets
        .iter()
        .map(|(_, name)| {
            let found = manager.stores().into_iter().find_map(|(store, key)| {
                let path = store.join(name);
                path.exists()
                    .then(|| format!("{key}={name}:{}", path.display()))
            });
            found.ok_or_else(|| {
                let (store, _) = manager.stores().swap_remove(0);
                let path = store.join(name);
                Usage(format!(
                    "--secret {name}: there is no such credential; make it with `systemd-creds encrypt --name={name} - {}`",
                    path.display()
                ))
                .into()
            })
        })
        .collect()
}

/// The systemd that starts the unit.
struct Manager {
    is_system: bool,
    /// Where the user's own files are, for a user's manager.
    runtime: PathBuf,
}

impl Manager {
    fn of_caller() -> Result<Self> {
        if geteuid().is_root() {
            if !Path::new("/run/systemd/system").exists() {
                bail!("this host does not run systemd: add --foreground");
            }
            return Ok(Self {
                is_system: true,
                runtime: PathBuf::from("/run"),
            });
        }
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        match runtime.filter(|runtime| runtime.join("systemd").exists()) {
            Some(runtime) => Ok(Self {
                is_system: false,
                runtime,
            }),
            None => bail!(
                "your user has no systemd here (XDG_RUNTIME_DIR): log in, or add --foreground"
            ),
        }
    }

    fn systemctl(&self) -> &'static str {
        if self.is_system {
            "systemctl"
        } else {
            "systemctl --user"
        }
    }

    /// Where the configuration of a server is written.
    fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.runtime.join("thv-run").join(name);
        match path.to_str() {
            Some(text) if !text.contains([' ', '%', '$', '"', '\\']) => Ok(path),
            _ => bail!("`{}` cannot be named in a unit", path.display()),
        }
    }

    /// Where credentials are looked for, and the property that loads from there.
    fn stores(&self) -> Vec<(PathBuf, &'static str)> {
        let base = if self.is_system {
            PathBuf::from("/etc")
        } else {
            std::env::var_os("XDG_CONFIG_HOME")
                .or_else(|| {
                    let mut home = std::env::var_os("HOME")?;
                    home.push("/.config");
                    Some(home)
                })
                .map_or_else(|| PathBuf::from("/nonexistent"), PathBuf::from)
        };
        vec![
            (base.join("credstore.encrypted"), "LoadCredentialEncrypted"),
            (base.join("credstore"), "LoadCredential"),
        ]
    }

    /// Whether a unit gets every controller that limits need.
    fn delegates_all(&self) -> bool {
        let uid = geteuid();
        let path = if self.is_system {
            "/sys/fs/cgroup/cgroup.controllers".to_owned()
        } else {
            format!(
                "/sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service/cgroup.controllers"
            )
        };
        let there = fs::read_to_string(path).unwrap_or_default();
        ["cpu", "memory", "pids"]
            .iter()
            .all(|wanted| there.split_whitespace().any(|it| it == *wanted))
    }

    fn is_active(&self, unit: &str) -> bool {
        self.ask(&["is-active", unit])
            .is_some_and(|answer| answer == "active" || answer == "activating")
    }

    /// Under which user the unit's main process runs.
    fn uid_of(&self, unit: &str) -> Option<u32> {
        let pid = self.ask(&["show", "--property=MainPID", "--value", unit])?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        uids.split_whitespace().next()?.parse().ok()
    }

    fn ask(&self, arguments: &[&str]) -> Option<String> {
        let mut command = Command::new("systemctl");
        if !self.is_system {
            command.arg("--user");
        }
        let output = command.args(arguments).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// Whoever the unit's user is reads its configuration.
fn readable(path: &Path) -> std::io::Result<()> {
    let kind = fs::symlink_metadata(path)?;
    if kind.is_symlink() {
        return Ok(());
    }
    let mode = if kind.is_dir() { 0o755 } else { 0o644 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    if kind.is_dir() {
        for entry in fs::read_dir(path)? {
            readable(&entry?.path())?;
        }
    }
    Ok(())
}

/// What any manager can give a unit.
const PROPERTIES: &[&str] = &[
    "NotifyAccess=main",
    "Delegate=yes",
    "KillMode=mixed",
    "OOMPolicy=continue",
    "TimeoutStopSec=45s",
    "WatchdogSec=30s",
    // No core dump of a child's, neither to a file nor, which 0 would allow, to a program.
    "LimitCORE=1",
    "LimitNOFILE=65536",
    "NoNewPrivileges=yes",
    "UMask=0077",
    "SyslogIdentifier=thv",
    "LogRateLimitIntervalSec=0",
];

/// What the system manager gives besides: those lines of thv-runner@.service that
/// leave a network, for the gateway is in the same unit.
const SYSTEM_PROPERTIES: &[&str] = &[
    "DynamicUser=yes",
    "Slice=system-thv.slice",
    "CapabilityBoundingSet=",
    "AmbientCapabilities=",
    "ProtectSystem=strict",
    "PrivateDevices=yes",
    "DevicePolicy=closed",
    "PrivateMounts=yes",
    "PrivateIPC=yes",
    "ProtectClock=yes",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelLogs=yes",
    "ProtectProc=invisible",
    "ProcSubset=pid",
    "KeyringMode=private",
    "LockPersonality=yes",
    "RestrictRealtime=yes",
    "SystemCallArchitectures=native",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
];

/// State directories of the system's units.
const STATE: &str = "thv-run";
/// Ports below are for root.
const FIRST_ORDINARY_PORT: u16 = 1024;

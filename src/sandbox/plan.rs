//! From a configuration to what its child may see and do. Pure.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{
    host::{Host, RESOLVER},
    installed::Installed,
};
use crate::config::{
    Addition, Config, EnvValue, IDENTITY_VARIABLES, InsideDoor, Layer, Limits, Network, PROXY,
    SOCKETS, Seccomp, Transport,
};

/// What a child may see and do, in the order in which it is applied.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    /// The host's name inside.
    pub hostname: String,
    /// A directory that is the root, read-only, in place of an empty one.
    pub base: Option<PathBuf>,
    /// What the root directory holds.
    pub root: Vec<Entry>,
    /// The program, and its arguments. A name without a slash is looked for in PATH.
    pub argv: Vec<String>,
    /// The environment, but for what is secret.
    pub env: Vec<(String, String)>,
    /// Variables, each with the credential whose text is its value.
    pub secret_env: Vec<(String, String)>,
    /// Where the program starts.
    pub cwd: PathBuf,
    pub home: PathBuf,
    /// Its own loopback with its ways out, or the host's.
    pub network: Network,
    /// Where it listens, if it speaks HTTP.
    pub listens: Option<InsideDoor>,
    /// The limits of the child's own cgroup.
    pub cgroup: CgroupLimits,
    /// Connections and bytes that its ways out carry at most; the gateway counts.
    pub egress: (usize, u64),
    /// The system calls that are let through, and additions to them.
    pub seccomp: (Seccomp, Vec<Addition>),
    /// It runs podman, which runs the server: see `within_podman`.
    pub is_podman: bool,
    /// Layers without which the child starts all the same.
    pub optional: BTreeSet<Layer>,
}

/// One thing that the root holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Entry {
    Directory {
        at: PathBuf,
    },
    File {
        at: PathBuf,
        text: String,
    },
    Link {
        at: PathBuf,
        to: PathBuf,
    },
    /// A file that holds this credential of the runner's.
    Secret {
        credential: String,
        at: PathBuf,
    },
    /// A part of the host, at the same or another place.
    Bind {
        from: PathBuf,
        at: PathBuf,
        access: Access,
    },
    /// Writable, private, in memory, gone with the child.
    Scratch {
        at: PathBuf,
        bytes: u64,
    },
    /// The processes of the child's own namespace.
    Processes {
        at: PathBuf,
    },
}

/// What may be done with a part of the host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    ReadOnly,
    Writable,
    /// One of the five device nodes.
    Device,
}

/// The limits of one child's cgroup (cgroups(7)).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CgroupLimits {
    /// Bytes; there is no swap.
    pub memory: u64,
    pub tasks: u64,
    /// Per cent of one processor.
    pub cpu: u64,
    /// `io.weight`, where one is asked for.
    pub io_weight: Option<u64>,
}

/// The plan of `config` on `host`; `state` is the principal's own directory,
/// where the configuration asks for one.
///
/// `image` is what is installed where the configuration names an image; without it the
/// plan is that of an image about which nothing is known.
pub fn plan(config: &Config, host: &Host, state: Option<&Path>, image: Option<&Installed>) -> Plan {
    let home = PathBuf::from(if state.is_some() { STATE } else { "/tmp" });
    let mut env = vec![
        ("HOME".to_owned(), home.display().to_string()),
        ("LANG".to_owned(), "C.UTF-8".to_owned()),
        ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()),
        ("TMPDIR".to_owned(), "/tmp".to_owned()),
    ];
    for (name, value) in image.iter().flat_map(|image| &image.env) {
        // Its HOME and TMPDIR may not be writable here.
        if name != "HOME" && name != "TMPDIR" {
            env.retain(|(known, _)| known != name);
            env.push((name.clone(), value.clone()));
        }
    }
    env.extend(proxy(&config.sandbox.network));
    // The commonest way to tell a server where to listen.
    env.extend(listens(config).map(|door| match door {
        InsideDoor::Port(port) => ("PORT".to_owned(), port.to_string()),
        InsideDoor::Socket(name) => ("SOCKET".to_owned(), format!("{SOCKETS}/{name}")),
    }));
    env.retain(|(name, _)| !config.env.contains_key(name));
    let mut secret_env = Vec::new();
    for (name, value) in &config.env {
        match value {
            EnvValue::Text(text) => env.push((name.clone(), text.clone())),
            EnvValue::CredentialFile(credential) => {
                env.push((name.clone(), secret_file(credential).display().to_string()));
            }
            EnvValue::Credential(credential) => {
                secret_env.push((name.clone(), credential.clone()));
            }
        }
    }
    if config.names_caller_to_child() {
        // Their values are known when there is a caller.
        env.retain(|(name, _)| !IDENTITY_VARIABLES.contains(&name.as_str()));
        env.extend(IDENTITY_VARIABLES.map(|name| (name.to_owned(), String::new())));
    }
    Plan {
        hostname: config.server.to_string(),
        base: image.map(|image| image.root.clone()),
        root: if config.image.is_some() {
            over_image(config, state)
        } else {
            root(config, host, state)
        },
        argv: match image {
            Some(image) => {
                let arguments = config.arguments.as_ref().unwrap_or(&image.arguments);
                image.entrypoint.iter().chain(arguments).cloned().collect()
            }
            None => config.command.clone(),
        },
        env,
        secret_env,
        cwd: image.map_or_else(|| home.clone(), |image| image.cwd.clone()),
        home,
        network: config.sandbox.network.clone(),
        listens: listens(config),
        cgroup: cgroup(&config.limits),
        egress: (config.limits.egress_connections, config.limits.egress_bytes),
        seccomp: (config.sandbox.seccomp, config.sandbox.seccomp_allow.clone()),
        is_podman: false,
        optional: config.sandbox.optional.iter().copied().collect(),
    }
}

impl Plan {
    /// Says in the environment whom the child serves.
    pub fn name_caller(&mut self, values: [&str; 3]) {
        for (name, value) in IDENTITY_VARIABLES.iter().zip(values) {
            let known = self.env.iter_mut().filter(|(known, _)| known == name);
            known.for_each(|(_, text)| value.clone_into(text));
        }
    }
}

fn listens(config: &Config) -> Option<InsideDoor> {
    match &config.transport {
        Transport::Http(inside) => Some(inside.door.clone()),
        Transport::Stdio | Transport::Remote(_) => None,
    }
}

/// What tells programs of the proxy, where some ways lead by it. Exact hosts are
/// reached without. There is no variable for plain HTTP, which the proxy refuses.
fn proxy(network: &Network) -> Vec<(String, String)> {
    if !network.has_proxy() {
        return Vec::new();
    }
    let mut direct = vec!["localhost", "127.0.0.1", "::1"];
    direct.extend(network.names().iter().map(|(_, name)| *name));
    let (proxy, direct) = (format!("http://{PROXY}"), direct.join(","));
    [
        ("HTTPS_PROXY", &proxy),
        ("https_proxy", &proxy),
        ("NO_PROXY", &direct),
        ("no_proxy", &direct),
        // Node's own `fetch` looks at the others only where this is set.
        ("NODE_USE_ENV_PROXY", &"1".to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value.clone()))
    .to_vec()
}

/// The hosts file: what its ways out are called, and itself. Of two lines for a name the first counts.
fn hosts(config: &Config) -> String {
    let names = config.sandbox.network.names();
    let mut lines: Vec<_> = names
        .iter()
        .map(|(address, name)| format!("{address} {name}\n"))
        .collect();
    lines.push(format!(
        "127.0.0.1 localhost {}\n::1 localhost\n",
        config.server
    ));
    lines.concat()
}

fn root(config: &Config, host: &Host, state: Option<&Path>) -> Vec<Entry> {
    let same = |path: &Path, access| Entry::Bind {
        from: path.to_owned(),
        at: path.to_owned(),
        access,
    };
    let mut entries = vec![same(Path::new("/usr"), Access::ReadOnly)];
    entries.extend(host.links.iter().map(|(at, to)| Entry::Link {
        at: at.clone(),
        to: to.clone(),
    }));
    entries.extend(host.present.iter().map(|path| same(path, Access::ReadOnly)));
    let own_network = config.sandbox.network != Network::Host;
    if !own_network {
        entries.extend(
            host.resolver
                .iter()
                .map(|path| same(path, Access::ReadOnly)),
        );
    }
    for (at, text) in [
        (
            "/etc/passwd",
            format!(
                "root:x:0:0::/:/usr/sbin/nologin\nserver:x:{ID}:{ID}::{}:/bin/sh\n",
                home_of(state)
            ),
        ),
        ("/etc/group", format!("root:x:0:\nserver:x:{ID}:\n")),
        (
            "/etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files\n".to_owned(),
        ),
    ]
    .into_iter()
    .chain(names(config))
    {
        if own_network || !RESOLVER.contains(&at) {
            entries.push(Entry::File {
                at: at.into(),
                text,
            });
        }
    }
    devices(&mut entries);
    for (at, to) in [
        ("/etc/os-release", "../usr/lib/os-release"),
        ("/var/tmp", "../tmp"),
    ] {
        entries.push(Entry::Link {
            at: at.into(),
            to: to.into(),
        });
    }
    memory_and_processes(&mut entries, config);
    entries.push(Entry::Directory { at: "/run".into() });
    entries.extend(sockets(config));
    secrets(&mut entries, config);
    entries.extend(state.map(kept));
    // Shorter paths first, so that what lies below another comes after it.
    let mut shown: Vec<&Path> = config
        .sandbox
        .read_only
        .iter()
        .map(PathBuf::as_path)
        .collect();
    shown.extend(config.command.first().map(Path::new));
    shown.sort_by_key(|path| path.components().count());
    for path in shown {
        let seen = entries.iter().any(|entry| match entry {
            Entry::Bind {
                at,
                access: Access::ReadOnly,
                ..
            } => path.starts_with(at),
            Entry::Link { at, .. } => {
                host.links.iter().any(|(link, _)| link == at) && path.starts_with(at)
            }
            _ => false,
        });
        if !seen {
            entries.push(same(path, Access::ReadOnly));
        }
    }
    entries
}

impl Plan {
    /// The credentials that it needs, each once.
    pub fn credentials(&self) -> BTreeSet<&str> {
        let files = self.root.iter().filter_map(|entry| match entry {
            Entry::Secret { credential, .. } => Some(credential.as_str()),
            _ => None,
        });
        let values = self.secret_env.iter().map(|(_, name)| name.as_str());
        files.chain(values).collect()
    }
}

/// Where a credential stands inside.
fn secret_file(credential: &str) -> PathBuf {
    Path::new("/run/secrets").join(credential)
}

/// What is mounted over an image, whose own places it hides.
fn over_image(config: &Config, state: Option<&Path>) -> Vec<Entry> {
    let mut entries = Vec::new();
    devices(&mut entries);
    memory_and_processes(&mut entries, config);
    entries.push(Entry::Scratch {
        at: "/run".into(),
        bytes: RUN,
    });
    entries.extend(sockets(config));
    for (at, text) in names(config) {
        entries.push(Entry::File {
            at: at.into(),
            text,
        });
    }
    secrets(&mut entries, config);
    entries.extend(state.map(kept));
    entries.extend(config.sandbox.read_only.iter().map(|path| Entry::Bind {
        from: path.clone(),
        at: path.clone(),
        access: Access::ReadOnly,
    }));
    entries
}

fn devices(entries: &mut Vec<Entry>) {
    entries.push(Entry::Directory { at: "/dev".into() });
    for device in ["null", "zero", "full", "random", "urandom"] {
        let path = Path::new("/dev").join(device);
        entries.push(Entry::Bind {
            from: path.clone(),
            at: path,
            access: Access::Device,
        });
    }
    for (at, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        entries.push(Entry::Link {
            at: at.into(),
            to: to.into(),
        });
    }
}

fn memory_and_processes(entries: &mut Vec<Entry>, config: &Config) {
    entries.push(Entry::Scratch {
        at: "/dev/shm".into(),
        bytes: SHARED_MEMORY,
    });
    entries.push(Entry::Processes { at: "/proc".into() });
    entries.push(Entry::Scratch {
        at: "/tmp".into(),
        bytes: config.limits.tmp,
    });
}

/// The place of the server's own socket, if it listens at one.
fn sockets(config: &Config) -> Option<Entry> {
    matches!(listens(config), Some(InsideDoor::Socket(_))).then(|| Entry::Scratch {
        at: SOCKETS.into(),
        bytes: SOCKETS_SIZE,
    })
}

/// The files that say what this host and others are called.
fn names(config: &Config) -> [(&'static str, String); 3] {
    let name = &config.server;
    [
        ("/etc/hosts", hosts(config)),
        ("/etc/hostname", format!("{name}\n")),
        ("/etc/resolv.conf", String::new()),
    ]
}

fn kept(state: &Path) -> Entry {
    Entry::Bind {
        from: state.to_owned(),
        at: STATE.into(),
        access: Access::Writable,
    }
}

/// A file for each credential that a variable names so.
fn secrets(entries: &mut Vec<Entry>, config: &Config) {
    let files: BTreeSet<&String> = config
        .env
        .values()
        .filter_map(|value| match value {
            EnvValue::CredentialFile(credential) => Some(credential),
            _ => None,
        })
        .collect();
    entries.extend(files.into_iter().map(|credential| Entry::Secret {
        credential: credential.clone(),
        at: secret_file(credential),
    }));
}

fn home_of(state: Option<&Path>) -> &'static str {
    if state.is_some() { STATE } else { "/tmp" }
}

fn cgroup(limits: &Limits) -> CgroupLimits {
    CgroupLimits {
        memory: limits.memory,
        tasks: limits.tasks,
        cpu: limits.cpu,
        io_weight: limits.io_weight,
    }
}

/// Where the state directory stands inside.
const STATE: &str = "/state";
/// The user and group inside.
pub(super) const ID: u32 = 1000;
/// Bytes of an image's `/run`.
const RUN: u64 = 16 << 20;
/// Bytes of the directory of a server's socket.
const SOCKETS_SIZE: u64 = 1 << 20;
/// Bytes of `/dev/shm`.
const SHARED_MEMORY: u64 = 64 << 20;

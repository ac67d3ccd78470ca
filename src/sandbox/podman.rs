//! The same child by podman: from its plan to that of a podman that runs it. Pure.
//!
//! podman stands in a sandbox of our own making, with its program and its files in it and
//! nothing else: the child's namespaces, ways out, limits and credentials are there before
//! podman is. In it podman is root of a user namespace that has one user, the runner's,
//! so it needs no newuidmap, no subordinate ids and no root of the host. It makes its
//! container from the image that thv has unpacked; what it writes is in memory, and ends
//! with the namespace of its processes: a crash leaves nothing to sweep.

use std::path::{Path, PathBuf};

use super::{
    host::Host,
    oci::oci,
    plan::{Access, Entry, Plan},
    stage::Fault,
};

/// The program.
pub const PODMAN: &str = "/usr/bin/podman";

/// The plan of a podman that does what `plan`, that of an image, says.
pub fn within_podman(plan: Plan, host: &Host) -> Result<Plan, Fault> {
    let fault = |reason: String| Fault {
        layer: LAYER.to_owned(),
        reason,
    };
    let (profile, additions) = &plan.seccomp;
    let profile = oci((*profile, additions)).map_err(|error| fault(error.to_string()))?;
    let Some(image) = plan.base else {
        return Err(fault("podman runs images, and this is none".to_owned()));
    };
    let mut root = of_podman(host, profile);
    root.push(Entry::Bind {
        from: image,
        at: IMAGE.into(),
        access: Access::ReadOnly,
    });
    let mut arguments: Vec<String> = FLAGS.iter().map(|flag| (*flag).to_owned()).collect();
    for (number, entry) in plan.root.into_iter().enumerate() {
        let place = PathBuf::from(format!("{OWN}/{number}"));
        match entry {
            Entry::File { at, text } => {
                root.push(Entry::File {
                    at: place.clone(),
                    text,
                });
                arguments.push(mounted(&place, &at, "ro").map_err(fault)?);
            }
            Entry::Secret { credential, at } => {
                root.push(Entry::Secret {
                    credential,
                    at: place.clone(),
                });
                arguments.push(mounted(&place, &at, "ro").map_err(fault)?);
            }
            Entry::Bind { from, at, access } if access != Access::Device => {
                root.push(Entry::Bind {
                    from,
                    at: place.clone(),
                    access,
                });
                let mode = if access == Access::Writable {
                    "rw"
                } else {
                    "ro"
                };
                arguments.push(mounted(&place, &at, mode).map_err(fault)?);
            }
            Entry::Scratch { at, bytes } if at == Path::new("/dev/shm") => {
                arguments.push(format!("--shm-size={bytes}b"));
            }
            Entry::Scratch { at, bytes } => {
                arguments.push(format!(
                    "--tmpfs={}:rw,nosuid,nodev,mode=1777,size={bytes},notmpcopyup",
                    at.display()
                ));
            }
            // podman makes these by itself, of what its own sandbox has.
            Entry::Bind { .. }
            | Entry::Directory { .. }
            | Entry::Link { .. }
            | Entry::Processes { .. } => {}
        }
    }
    // Over what podman would show besides: nothing of it is for a server, and a mount of
    // terminals wants a group that is not in the namespace.
    for (from, at) in [
        (SYS, "/sys"),
        (EMPTY, "/sys/fs/cgroup"),
        (EMPTY, "/dev/pts"),
        (EMPTY, "/dev/mqueue"),
    ] {
        arguments.push(mounted(Path::new(from), Path::new(at), "ro").map_err(fault)?);
    }
    arguments.extend([
        format!("--security-opt=seccomp={PROFILE}"),
        format!("--hostname={}", plan.hostname),
        format!("--workdir={}", plan.cwd.display()),
    ]);
    arguments.extend(
        plan.env
            .iter()
            .map(|(name, value)| format!("--env={name}={value}")),
    );
    // The value is found in podman's own environment, and is no argument.
    arguments.extend(
        plan.secret_env
            .iter()
            .map(|(name, _)| format!("--env={name}")),
    );
    let words = serde_json::to_string(&plan.argv).map_err(|error| fault(error.to_string()))?;
    arguments.push(format!("--entrypoint={words}"));
    arguments.push(IMAGE.to_owned());
    Ok(Plan {
        base: None,
        root,
        argv: arguments,
        env: ENVIRONMENT
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        cwd: "/".into(),
        home: "/tmp".into(),
        is_podman: true,
        ..plan
    })
}

/// What podman itself needs.
fn of_podman(host: &Host, profile: String) -> Vec<Entry> {
    let shown = |path: &str, access| Entry::Bind {
        from: path.into(),
        at: path.into(),
        access,
    };
    let mut root = vec![shown("/usr", Access::ReadOnly)];
    root.extend(host.links.iter().map(|(at, to)| Entry::Link {
        at: at.clone(),
        to: to.clone(),
    }));
    root.extend(host.present.iter().map(|path| Entry::Bind {
        from: path.clone(),
        at: path.clone(),
        access: Access::ReadOnly,
    }));
    root.push(Entry::Directory { at: "/dev".into() });
    for device in ["null", "zero", "full", "random", "urandom", "tty"] {
        root.push(shown(&format!("/dev/{device}"), Access::Device));
    }
    for at in ["/dev/shm", "/tmp", "/run", "/var/lib/containers"] {
        root.push(Entry::Scratch {
            at: at.into(),
            bytes: SCRATCH,
        });
    }
    root.push(Entry::Processes { at: "/proc".into() });
    // It looks here for the version of control groups, and makes none.
    root.push(if host.has_cgroup2 {
        shown("/sys/fs/cgroup", Access::ReadOnly)
    } else {
        Entry::Directory {
            at: "/sys/fs/cgroup".into(),
        }
    });
    root.push(Entry::Directory { at: EMPTY.into() });
    for (at, text) in [
        (
            "/etc/passwd",
            "root:x:0:0::/tmp:/usr/sbin/nologin\n".to_owned(),
        ),
        ("/etc/group", "root:x:0:\n".to_owned()),
        // A container has the keyring of its child, or none; podman cannot make one here.
        (CONFIGURATION, "[containers]\nkeyring = false\n".to_owned()),
        (PROFILE, profile),
    ] {
        root.push(Entry::File {
            at: at.into(),
            text,
        });
    }
    root
}

/// An argument of podman's that mounts `from` at `at`. Its two ways to write that have
/// separators of their own.
fn mounted(from: &Path, at: &Path, mode: &str) -> Result<String, String> {
    let (from, at) = (from.display().to_string(), at.display().to_string());
    if !at.contains(':') {
        return Ok(format!("--volume={from}:{at}:{mode}"));
    }
    if at.contains([',', '"']) {
        return Err(format!(
            "`{at}` cannot be named to podman, which has `:` and `,` for itself; use engine = \"native\""
        ));
    }
    let read_only = if mode == "ro" { ",ro=true" } else { "" };
    Ok(format!("--mount=type=bind,src={from},dst={at}{read_only}"))
}

/// Named so where it cannot be had.
const LAYER: &str = "podman";
/// Where the image stands in podman's own root.
const IMAGE: &str = "/image";
/// Where what is mounted into the container stands there.
const OWN: &str = "/run/thv";
/// An empty directory, and one that leads to it as `/sys` would.
const EMPTY: &str = "/run/thv/sys/fs/cgroup";
const SYS: &str = "/run/thv/sys";
const PROFILE: &str = "/run/thv/seccomp.json";
const CONFIGURATION: &str = "/run/thv/containers.conf";
/// Bytes of each of podman's own writable places.
const SCRATCH: u64 = 64 << 20;

const ENVIRONMENT: &[(&str, &str)] = &[
    ("PATH", "/usr/bin:/bin:/usr/sbin:/sbin"),
    ("HOME", "/tmp"),
    ("TMPDIR", "/tmp"),
    ("XDG_RUNTIME_DIR", "/run"),
    ("CONTAINERS_CONF", CONFIGURATION),
    // As within `podman unshare`: the user namespace is there already.
    ("_CONTAINERS_USERNS_CONFIGURED", "done"),
    ("_CONTAINERS_ROOTLESS_UID", "0"),
    ("_CONTAINERS_ROOTLESS_GID", "0"),
];

const FLAGS: &[&str] = &[
    PODMAN,
    "--log-level=error",
    // All of its state is in memory, and this child's alone.
    "--root=/var/lib/containers",
    "--runroot=/run/containers",
    "--tmpdir=/run/libpod",
    "--storage-driver=vfs",
    "--cgroup-manager=cgroupfs",
    "--events-backend=none",
    "--runtime=crun",
    "run",
    "--rm",
    "--interactive",
    // The child's own pipes, with no process between.
    "--log-driver=passthrough",
    "--rootfs",
    "--read-only",
    "--read-only-tmpfs=false",
    // The child is in its cgroup already.
    "--cgroups=disabled",
    // That of this sandbox: a loopback with the child's ways out.
    "--network=host",
    "--uts=private",
    "--no-hosts",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--ulimit=host",
    "--sdnotify=ignore",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_named_to_podman_or_not_at_all() {
        let named = |at: &str, mode| mounted(Path::new("/x"), Path::new(at), mode);
        assert_eq!(named("/a,b", "ro").unwrap(), "--volume=/x:/a,b:ro");
        assert_eq!(
            named("/a:b", "ro").unwrap(),
            "--mount=type=bind,src=/x,dst=/a:b,ro=true"
        );
        assert_eq!(
            named("/a:b", "rw").unwrap(),
            "--mount=type=bind,src=/x,dst=/a:b"
        );
        assert!(named("/a:b,c", "ro").is_err());
    }
}

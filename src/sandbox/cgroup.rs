//! A cgroup of its own for each child, below the one that systemd delegated
//! (cgroups(7), cgroup v2).

use std::{
    cell::Cell,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use nix::unistd::{getpid, getppid};

use super::{plan::CgroupLimits, stage::Fault};
use crate::config::Layer;

/// The delegated part of the tree, prepared: this process moved out of the way,
/// and the controllers handed on.
pub struct Delegated {
    path: PathBuf,
    /// The number of the next group: a gateway's own numbers begin anew with each connection.
    next: Cell<u64>,
}

/// One child's cgroup. Removed when dropped; what is still in it is killed.
pub struct Group {
    path: PathBuf,
    directory: File,
}

impl Delegated {
    /// Prepares the cgroup that this process is in.
    pub fn prepare() -> Result<Self, Fault> {
        let own = own_path().map_err(|error| fault("finding its own cgroup", error))?;
        // A leaf of its own: a cgroup with processes hands on no controllers.
        let leaf = own.join("runner");
        empty(&own, &leaf)
            .map_err(|error| fault("using its own cgroup; the unit needs Delegate=yes", error))?;
        let there = fs::read_to_string(own.join("cgroup.controllers")).unwrap_or_default();
        let missing: Vec<_> = CONTROLLERS
            .iter()
            .copied()
            .filter(|wanted| !there.split_whitespace().any(|it| it == *wanted))
            .collect();
        if !missing.is_empty() {
            let reason = format!(
                "the controllers {} are not delegated to `{}`; it needs cgroup v2 and Delegate=yes",
                missing.join(", "),
                own.display()
            );
            return Err(Fault {
                layer: Layer::Cgroup.name().to_owned(),
                reason,
            });
        }
        // Asked for by few, and not everywhere: its lack is told to those.
        let wanted = CONTROLLERS
            .into_iter()
            .chain(there.split_whitespace().any(|it| it == IO).then_some(IO));
        let enable: Vec<_> = wanted.map(|controller| format!("+{controller}")).collect();
        let enable = enable.join(" ");
        fs::write(own.join("cgroup.subtree_control"), enable)
            .map_err(|error| fault("handing controllers on to children", error))?;
        Ok(Self {
            path: own,
            next: Cell::new(1),
        })
    }

    /// Makes the cgroup of one child.
    pub fn group(&self, limits: CgroupLimits) -> Result<Group, Fault> {
        let number = self.next.replace(self.next.get() + 1);
        let path = self.path.join(format!("child-{number}"));
        self.make(&path, limits)
            .map_err(|error| fault(&format!("setting up `{}`", path.display()), error))
    }

    fn make(&self, path: &Path, limits: CgroupLimits) -> io::Result<Group> {
        create(path)?;
        let group = Group {
            path: path.to_owned(),
            directory: File::open(path)?,
        };
        group.write("memory.max", &limits.memory.to_string())?;
        // Not there without swap.
        match group.write("memory.swap.max", "0") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        group.write("memory.oom.group", "1")?;
        group.write("pids.max", &limits.tasks.to_string())?;
        group.write(
            "cpu.max",
            &format!("{} {CPU_PERIOD}", limits.cpu * CPU_PERIOD / 100),
        )?;
        if let Some(weight) = limits.io_weight {
            group.write("io.weight", &weight.to_string()).map_err(|error| {
                if error.kind() == io::ErrorKind::NotFound {
                    io::Error::other("this host's kernel shares no disks by weight (the controller `io`): leave limits.io-weight out")
                } else {
                    error
                }
            })?;
        }
        Ok(group)
    }
}

impl Group {
    /// The cgroup's directory, to be cloned into.
    pub fn directory(&self) -> &File {
        &self.directory
    }

    /// Whether the kernel killed something in it for want of memory.
    pub fn ran_out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.path.join("memory.events")).unwrap_or_default();
        events.lines().any(|line| {
            line.strip_prefix("oom_kill ")
                .is_some_and(|count| count.trim() != "0")
        })
    }

    /// Ends everything in it.
    pub fn kill(&self) {
        let _ = self.write("cgroup.kill", "1");
    }

    fn write(&self, name: &str, value: &str) -> io::Result<()> {
        fs::write(self.path.join(name), value)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its init is reaped, and with it everything: this only fails if something
        // outlived that, which kill has just ended; the next runner starts afresh.
        if fs::remove_dir(&self.path).is_err() {
            self.kill();
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Moves this process, and the gateway of `thv run` that has started it, to `leaf`.
///
/// Nothing is moved where others are: of a unit's own cgroup thv is the only one, and
/// elsewhere (a person's shell, the root of a host) they are not its to move.
fn empty(own: &Path, leaf: &Path) -> io::Result<()> {
    let (this, parent) = (getpid(), getppid());
    let there = fs::read_to_string(own.join("cgroup.procs"))?;
    // 0 is a process of a namespace outside.
    let is_ours = |pid: i32| pid > 0 && [this.as_raw(), parent.as_raw()].contains(&pid);
    let there: Vec<i32> = there.lines().map(|pid| pid.parse().unwrap_or(0)).collect();
    if let Some(other) = there.iter().find(|pid| !is_ours(**pid)) {
        return Err(io::Error::other(format!(
            "process {other}, which is not thv's, is in `{}`, too",
            own.display()
        )));
    }
    create(leaf)?;
    let procs = leaf.join("cgroup.procs");
    fs::write(&procs, "0")?;
    if there.contains(&parent.as_raw()) {
        match fs::write(&procs, parent.to_string()) {
            // It has ended meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            other => other?,
        }
    }
    Ok(())
}

fn create(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Where this process stands in the v2 tree (cgroups(7), `/proc/[pid]/cgroup`).
fn own_path() -> io::Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup")?;
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap_or("/");
    // The runner may have been moved already, by itself.
    let path = path.strip_suffix("/runner").unwrap_or(path);
    let mounted = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        "/sys/fs/cgroup"
    } else {
        "/sys/fs/cgroup/unified"
    };
    Ok(Path::new(mounted).join(path.trim_start_matches('/')))
}

fn fault(what: &str, error: io::Error) -> Fault {
    Fault::of(Layer::Cgroup, what, error)
}

const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
const IO: &str = "io";
/// Microseconds.
const CPU_PERIOD: u64 = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    /// Run by root in the root of a host it once took every process there with it, the first one included.
    #[test]
    fn what_is_not_thvs_stays_where_it_is() {
        let own = tempfile::tempdir().unwrap();
        let (procs, leaf) = (own.path().join("cgroup.procs"), own.path().join("leaf"));
        let (this, parent) = (getpid(), getppid());
        for other in [1, 0, i32::MAX] {
            fs::write(&procs, format!("{other}\n{parent}\n{this}\n")).unwrap();
            let error = empty(own.path(), &leaf).unwrap_err().to_string();
            assert!(error.contains(&format!("process {other},")), "{error}");
            assert!(!leaf.exists(), "{other}");
        }
        for (there, moved) in [
            (format!("{this}\n"), "0".to_owned()),
            (String::new(), "0".to_owned()),
            (format!("{parent}\n{this}\n"), parent.to_string()),
        ] {
            fs::write(&procs, there).unwrap();
            empty(own.path(), &leaf).unwrap();
            assert_eq!(
                fs::read_to_string(leaf.join("cgroup.procs")).unwrap(),
                moved
            );
        }
    }
}

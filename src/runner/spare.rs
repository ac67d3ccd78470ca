//! One child ahead: its sandbox is made while nobody waits, and its server is
//! executed when somebody does.
//!
//! Only for servers whose sandbox and environment are the same for every principal
//! and hold no secret, only while others of its kind run, and only as long as the parts of
//! the host that it shows are those that a new one would show.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    rc::Rc,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    Setup,
    child::{Child, NOBODY},
};
use crate::{
    config::Config,
    sandbox::{Entry, Fault, Filter, Plan, cgroup::Delegated},
};

/// A child that waits for its principal.
pub(super) struct Spare {
    child: Child,
    seen: Seen,
}

impl Spare {
    /// Whether there may be one for `config`.
    pub(super) fn is_possible(config: &Config) -> bool {
        Child::is_for_anybody(config)
    }

    /// Makes one; nothing where it could not stand for another.
    pub(super) fn make(
        config: &Config,
        setup: &Setup,
        filter: &Filter,
        cgroups: &Result<Delegated, Fault>,
    ) -> Option<Self> {
        let plan = Rc::new(Child::plan(config, setup, (NOBODY, None)).ok()?);
        if !plan.credentials().is_empty() {
            return None;
        }
        // First looked at, then made: what changes in between is noticed.
        let seen = Seen::of(&plan, setup).ok()?;
        let child = Child::prepare(plan, setup, filter, cgroups).ok()?;
        Some(Self { child, seen })
    }

    /// The child, if `plan` would make the same and it still waits.
    pub(super) fn stand_in(self, plan: &Plan, setup: &Setup) -> Option<Child> {
        let is_the_same = self.child.is_waiting()
            && self.child.made_by() == plan
            && !self.seen.mounts_have_changed()
            && Seen::files(plan, setup).is_ok_and(|files| files == self.seen.files);
        // Whether it lives is the word of a moment: what was killed just now still does.
        let mut child = self.child;
        child.is_replaceable = true;
        is_the_same.then_some(child)
    }
}

/// What of the host a sandbox was made of.
struct Seen {
    /// The file behind each source: device and number.
    files: Vec<(u64, u64)>,
    /// `mountinfo`, which tells of changes since it was opened (proc(5)).
    mounts: File,
}

impl Seen {
    fn of(plan: &Plan, setup: &Setup) -> io::Result<Self> {
        Ok(Self {
            mounts: File::open("/proc/self/mountinfo")?,
            files: Self::files(plan, setup)?,
        })
    }

    fn files(plan: &Plan, setup: &Setup) -> io::Result<Vec<(u64, u64)>> {
        let sources = plan.root.iter().filter_map(|entry| match entry {
            Entry::Bind { from, .. } => Some(from),
            _ => None,
        });
        let staged = |path: &PathBuf| -> PathBuf { setup.staged.get(path).unwrap_or(path).clone() };
        sources
            .chain(&plan.base)
            .map(|path| file(&staged(path)))
            .collect()
    }

    fn mounts_have_changed(&self) -> bool {
        let mut watched = [PollFd::new(self.mounts.as_fd(), PollFlags::POLLPRI)];
        // Readable it always is; this is not asked.
        !matches!(poll(&mut watched, PollTimeout::ZERO), Ok(0))
    }
}

fn file(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::metadata(path)?;
    Ok((file.dev(), file.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_replaced_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let (old, new) = (directory.path().join("old"), directory.path().join("new"));
        fs::write(&old, "1").unwrap();
        let before = file(&old).unwrap();
        fs::write(&old, "written to, and the same").unwrap();
        assert_eq!(file(&old).unwrap(), before);
        fs::write(&new, "2").unwrap();
        fs::rename(&new, &old).unwrap();
        assert_ne!(file(&old).unwrap(), before);
        fs::remove_file(&old).unwrap();
        assert!(file(&old).is_err());
    }

    #[test]
    fn a_mount_that_came_meanwhile_is_noticed() {
        use nix::{
            mount::{MsFlags, mount},
            sched::{CloneFlags, unshare},
            sys::wait::{WaitStatus, waitpid},
            unistd::ForkResult,
        };

        use crate::sys::process;
        // In a mount namespace of its own, which only a process with one thread can have.
        match process::fork().unwrap() {
            ForkResult::Child => {
                let look = || -> io::Result<bool> {
                    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
                    let seen = Seen {
                        files: Vec::new(),
                        mounts: File::open("/proc/self/mountinfo")?,
                    };
                    let before = seen.mounts_have_changed();
                    let none = None::<&str>;
                    mount(Some("x"), "/tmp", Some("tmpfs"), MsFlags::empty(), none)?;
                    Ok(!before && seen.mounts_have_changed())
                };
                process::leave(i32::from(!look().unwrap_or_default()));
            }
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            }
        }
    }
}

//! Whom a process that root has started by hand becomes.

use std::fs;

use anyhow::{Context as _, Result};
use nix::unistd::{Gid, Uid, getegid, geteuid, setegid, seteuid, setgroups, setresgid, setresuid};

/// An ordinary user.
#[derive(Clone, Copy, Debug)]
pub struct Person {
    uid: Uid,
    gid: Gid,
}

impl Person {
    /// Nobody else for an ordinary user; for root the user that `sudo` was
    /// called by, or nobody. Root of a user namespace that has no other user is
    /// an ordinary user, too.
    pub fn to_become() -> Option<Self> {
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        if !geteuid().is_root() || !maps(&map, NOBODY) {
            return None;
        }
        let id = |name| {
            std::env::var(name)
                .ok()
                .and_then(|id: String| id.parse::<u32>().ok())
                .filter(|id| *id != 0)
        };
        let (uid, gid) = id("SUDO_UID")
            .zip(id("SUDO_GID"))
            .unwrap_or((NOBODY, NOBODY));
        Some(Self {
            uid: Uid::from_raw(uid),
            gid: Gid::from_raw(gid),
        })
    }

    pub fn uid(&self) -> u32 {
        self.uid.as_raw()
    }

    pub fn gid(&self) -> u32 {
        self.gid.as_raw()
    }

    /// Does something as this user, and is root again.
    pub fn for_a_moment<T>(&self, what: impl FnOnce() -> T) -> Result<T> {
        let group = getegid();
        setegid(self.gid).context("changing the group")?;
        seteuid(self.uid).context("changing the user")?;
        let done = what();
        seteuid(Uid::from_raw(0)).context("being root again")?;
        setegid(group).context("being of its group again")?;
        Ok(done)
    }

    /// Gives up root. Only while there is one thread.
    pub fn become_for_good(&self) -> Result<()> {
        setgroups(&[]).context("dropping supplementary groups")?;
        setresgid(self.gid, self.gid, self.gid).context("dropping the group")?;
        setresuid(self.uid, self.uid, self.uid).context("dropping the user")
    }
}

/// Whether a user exists here (user_namespaces(7), `/proc/[pid]/uid_map`).
fn maps(map: &str, uid: u32) -> bool {
    map.lines().any(|line| {
        let numbers: Vec<u64> = line
            .split_whitespace()
            .filter_map(|number| number.parse().ok())
            .collect();
        matches!(numbers[..], [first, _, count] if (first..first + count).contains(&u64::from(uid)))
    })
}

/// The user and group that own nothing.
const NOBODY: u32 = 65534;

#[cfg(test)]
mod tests {
    use super::maps;

    #[test]
    fn a_user_exists_where_the_map_has_it() {
        assert!(maps("         0          0 4294967295\n", 65534));
        assert!(maps("0 1000 1\n1 100000 65536\n", 65534));
        assert!(!maps("0 1000 1\n", 65534));
        assert!(!maps("", 65534));
    }
}

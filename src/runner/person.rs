//! Whom a process that root has started by hand becomes.

use anyhow::{Context as _, Result};
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};

/// An ordinary user.
#[derive(Clone, Copy, Debug)]
pub struct Person {
    uid: Uid,
    gid: Gid,
}

impl Person {
    /// Nobody else for an ordinary user; for root the user that `sudo` was
    /// called by, or nobody.
    pub fn to_become() -> Option<Self> {
        if !geteuid().is_root() {
            return None;
        }
        let id = |name| std::env::var(name).ok().and_then(|id: String| id.parse::<u32>().ok()).filter(|id| *id != 0);
        let (uid, gid) = id("SUDO_UID").zip(id("SUDO_GID")).unwrap_or((NOBODY, NOBODY));
        Some(Self { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) })
    }

    pub fn uid(&self) -> u32 {
        self.uid.as_raw()
    }

    pub fn gid(&self) -> u32 {
        self.gid.as_raw()
    }

    /// Gives up root. Only while there is one thread.
    pub fn become_for_good(&self) -> Result<()> {
        setgroups(&[]).context("dropping supplementary groups")?;
        setresgid(self.gid, self.gid, self.gid).context("dropping the group")?;
        setresuid(self.uid, self.uid, self.uid).context("dropping the user")
    }
}

/// The user and group that own nothing.
const NOBODY: u32 = 65534;

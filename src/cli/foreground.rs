//! What a gateway without systemd must do for itself: a runner of its own, and
//! nothing of root kept.

use anyhow::{Context as _, Result};
use nix::unistd::{Gid, Uid, getuid, setgroups, setresgid, setresuid};

/// The ordinary user that a gateway started by root becomes.
pub(crate) struct Person {
    uid: Uid,
    gid: Gid,
}

/// Whom to become: nobody else for an ordinary user; for root the user that
/// `sudo` was called by, or nobody.
pub(crate) fn unprivileged() -> Result<Option<Person>> {
    if !getuid().is_root() {
        return Ok(None);
    }
    let id = |name| std::env::var(name).ok().and_then(|id: String| id.parse::<u32>().ok()).filter(|id| *id != 0);
    let (uid, gid) = id("SUDO_UID").zip(id("SUDO_GID")).unwrap_or((NOBODY, NOBODY));
    Ok(Some(Person { uid: Uid::from_raw(uid), gid: Gid::from_raw(gid) }))
}

impl Person {
    pub(crate) fn uid(&self) -> u32 {
        self.uid.as_raw()
    }

    pub(crate) fn gid(&self) -> u32 {
        self.gid.as_raw()
    }

    /// Gives up root. Only while there is one thread.
    pub(crate) fn become_for_good(&self) -> Result<()> {
        setgroups(&[]).context("dropping supplementary groups")?;
        setresgid(self.gid, self.gid, self.gid).context("dropping the group")?;
        setresuid(self.uid, self.uid, self.uid).context("dropping the user")
    }
}

/// The user and group that own nothing.
const NOBODY: u32 = 65534;

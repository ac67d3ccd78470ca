//! Making what root can reach reachable for whom root becomes.
//!
//! A checkout below a 0700 home is the usual case. The runner enters a mount
//! namespace of its own, and binds the server's program and paths below a
//! directory that everybody can enter; nobody else sees any of it.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::config::Config;

/// Binds what the configuration shows its child, and says where to.
pub(super) fn stage(config: &Config) -> Result<HashMap<PathBuf, PathBuf>> {
    unshare(CloneFlags::CLONE_NEWNS).context("entering a mount namespace")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("making the mounts private")?;
    let program = config.command.first().map(PathBuf::from);
    let paths: Vec<PathBuf> = config
        .sandbox
        .read_only
        .iter()
        .cloned()
        .chain(program)
        .filter(|path| !path.starts_with("/usr"))
        .collect();
    // The sources first: the place may hide one of them.
    let opened = paths
        .iter()
        .map(fs::File::open)
        .collect::<std::io::Result<Vec<_>>>();
    let opened = opened.context("opening what the configuration shows the server")?;
    mount(
        Some("thv"),
        PLACE,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=0755,size=1m"),
    )
    .with_context(|| format!("mounting at `{PLACE}`"))?;
    let mut staged = HashMap::new();
    for (number, (path, source)) in paths.into_iter().zip(opened).enumerate() {
        use std::os::fd::AsRawFd;
        let target = Path::new(PLACE).join(number.to_string());
        if source.metadata()?.is_dir() {
            fs::create_dir(&target)?;
        } else {
            fs::File::create(&target)?;
        }
        let source = format!("/proc/self/fd/{}", source.as_raw_fd());
        mount(
            Some(source.as_str()),
            &target,
            none,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            none,
        )
        .with_context(|| format!("binding `{}`", path.display()))?;
        staged.insert(path, target);
    }
    Ok(staged)
}

/// A directory that every host has, and that no server is shown.
const PLACE: &str = "/mnt";

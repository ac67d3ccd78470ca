//! Making what root can reach reachable for whom root becomes.
//!
//! A checkout below a 0700 home is the usual case. The runner enters a mount
//! namespace of its own, and binds the server's program and paths below a
//! directory that everybody can enter; nobody else sees any of it.

use std::{
    collections::HashMap,
    fs,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::{
    fcntl::AT_FDCWD,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::stat::{SFlag, fstat},
};

use crate::{config::Config, sys::mounts};

/// Binds what the configuration shows its child, and says where to.
pub(super) fn stage(config: &Config, images: &Path) -> Result<HashMap<PathBuf, PathBuf>> {
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
        .chain(config.image.is_some().then(|| images.to_owned()))
        .filter(|path| !path.starts_with("/usr"))
        .collect();
    // The sources first: the place may hide one of them.
    // As places: opening a pipe or a device would do something. What cannot be opened
    // is left out here, and missing by name when a child starts.
    let opened: Vec<(PathBuf, OwnedFd)> = paths
        .into_iter()
        .filter_map(|path| {
            let place = mounts::open_place(AT_FDCWD, &path, mounts::Follow::Yes).ok()?;
            Some((path, place))
        })
        .collect();
    mount(
        Some("thv"),
        PLACE,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=0755,size=1m"),
    )
    .with_context(|| format!("mounting at `{PLACE}`"))?;
    let mut staged = HashMap::new();
    for (number, (path, source)) in opened.into_iter().enumerate() {
        let target = Path::new(PLACE).join(number.to_string());
        let kind = SFlag::from_bits_truncate(fstat(&source)?.st_mode);
        if kind & SFlag::S_IFMT == SFlag::S_IFDIR {
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

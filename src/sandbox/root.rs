//! A private root: what the plan names, and nothing else of the host
//! (mount_namespaces(7), pivot_root(2)).
//!
//! Every source is opened once and mounted by its descriptor, so that what was
//! looked at is what is mounted (CVE-2025-31133).

use std::{
    collections::HashMap,
    fs,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{OpenOptionsExt as _, symlink},
    },
    path::{Path, PathBuf},
};

use nix::{
    fcntl::AT_FDCWD,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, fstat, umask},
    unistd::{chdir, pivot_root},
};

use super::{
    credentials::Credentials,
    plan::{Access, Entry, Plan},
    stage::Fault,
};
use crate::{
    config::Layer,
    sys::mounts::{self, NO_DEVICES, NO_EXEC, NO_SUID, READ_ONLY},
};

/// Builds the root and makes it this process's.
pub(super) fn build(
    plan: &Plan,
    staged: &HashMap<PathBuf, PathBuf>,
    credentials: &Credentials,
) -> Result<(), Fault> {
    umask(Mode::from_bits_truncate(0o022));
    // All sources first: the new root is built over a place of the old one.
    let trees = plan
        .root
        .iter()
        .map(|entry| source(entry, staged))
        .collect::<Result<Vec<_>, _>>()?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("thv"),
        BUILDING_SITE,
        Some("tmpfs"),
        flags,
        Some("mode=0755,size=4m,nr_inodes=16k"),
    )
    .map_err(|error| fault("mounting a new root", error))?;
    chdir(BUILDING_SITE).map_err(|error| fault("entering the new root", error))?;
    for (entry, tree) in plan.root.iter().zip(trees) {
        place(entry, tree, credentials)
            .map_err(|error| fault(&format!("placing `{}`", at(entry).display()), error))?;
    }
    let root = mounts::open_place(AT_FDCWD, Path::new("."), mounts::Follow::Yes)
        .map_err(|error| fault("opening the new root", error))?;
    mounts::restrict_tree(root.as_fd(), READ_ONLY, false)
        .map_err(|error| fault("making the root read-only", error))?;
    pivot_root(".", ".").map_err(|error| fault("changing the root", error))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(|error| fault("leaving the old root", error))?;
    chdir("/").map_err(|error| fault("entering the root", error))?;
    umask(Mode::from_bits_truncate(0o077));
    Ok(())
}

/// A part of the host, copied, restricted and attached nowhere yet.
struct Tree {
    mounts: OwnedFd,
    is_directory: bool,
}

fn source(entry: &Entry, staged: &HashMap<PathBuf, PathBuf>) -> Result<Option<Tree>, Fault> {
    let Entry::Bind { from, access, .. } = entry else {
        return Ok(None);
    };
    let path = staged.get(from).unwrap_or(from);
    let wrong =
        |what: &str, error: io::Error| fault(&format!("{what} `{}`", from.display()), error);
    let place = mounts::open_place(AT_FDCWD, path, mounts::Follow::Yes)
        .map_err(|error| wrong("opening", error))?;
    let kind = SFlag::from_bits_truncate(
        fstat(&place)
            .map_err(|error| wrong("looking at", error.into()))?
            .st_mode,
    );
    let tree =
        mounts::copy_tree(place.as_fd()).map_err(|error| wrong("copying the mounts of", error))?;
    let attributes = match access {
        Access::ReadOnly => READ_ONLY | NO_SUID | NO_DEVICES,
        Access::Writable => NO_SUID | NO_DEVICES,
        Access::Device => NO_SUID | NO_EXEC,
    };
    // With all that is mounted below it: a read-only tree has no writable branch.
    mounts::restrict_tree(tree.as_fd(), attributes, true)
        .map_err(|error| wrong("restricting", error))?;
    Ok(Some(Tree {
        mounts: tree,
        is_directory: kind & SFlag::S_IFMT == SFlag::S_IFDIR,
    }))
}

fn place(entry: &Entry, tree: Option<Tree>, credentials: &Credentials) -> io::Result<()> {
    let inside = at(entry).strip_prefix("/").unwrap_or(at(entry));
    if let Some(parent) = inside
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        fs::create_dir_all(parent)?;
    }
    match entry {
        Entry::Directory { .. } => fs::create_dir_all(inside),
        Entry::File { text, .. } => fs::File::create(inside)?.write_all(text.as_bytes()),
        Entry::Link { to, .. } => symlink(to, inside),
        Entry::Secret { credential, .. } => {
            let secret = credentials.read(credential)?;
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o400)
                .open(inside)?;
            file.write_all(&secret)
        }
        Entry::Bind { .. } => {
            let tree = tree.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            if tree.is_directory {
                fs::create_dir_all(inside)?;
            } else if fs::symlink_metadata(inside).is_err() {
                fs::File::create(inside)?;
            }
            let target = mounts::open_place(AT_FDCWD, inside, mounts::Follow::No)?;
            mounts::attach_tree(tree.mounts.as_fd(), target.as_fd())
        }
        Entry::Scratch { bytes, .. } => {
            fs::create_dir_all(inside)?;
            let options = format!("mode=1777,size={bytes},nr_inodes=64k");
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(
                Some("thv"),
                inside,
                Some("tmpfs"),
                flags,
                Some(options.as_str()),
            )
            .map_err(Into::into)
        }
        Entry::Processes { .. } => {
            fs::create_dir_all(inside)?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("proc"), inside, Some("proc"), flags, None::<&str>).map_err(Into::into)
        }
    }
}

fn at(entry: &Entry) -> &Path {
    match entry {
        Entry::Directory { at }
        | Entry::File { at, .. }
        | Entry::Link { at, .. }
        | Entry::Secret { at, .. }
        | Entry::Bind { at, .. }
        | Entry::Scratch { at, .. }
        | Entry::Processes { at } => at,
    }
}

fn fault(what: &str, error: impl Into<io::Error>) -> Fault {
    Fault::of(Layer::Root, what, error)
}

/// A directory that every host has. Only this process sees what is mounted there.
const BUILDING_SITE: &str = "/tmp";

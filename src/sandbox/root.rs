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
    errno::Errno,
    fcntl::AT_FDCWD,
    mount::{MsFlags, mount},
    sys::stat::{Mode, SFlag, fstat, umask},
    unistd::{chdir, pivot_root},
};

use super::{
    credentials::Credentials,
    namespaces,
    plan::{Access, Entry, Plan},
    stage::Fault,
};
use crate::{
    config::Layer,
    sys::{
        beside::{self, Beside},
        mounts::{self, NO_DEVICES, NO_EXEC, NO_SUID, READ_ONLY},
    },
};

/// Room for what a root is built of; had before anything is beside this process.
pub(super) fn room(plan: &Plan) -> Room {
    Room(Vec::with_capacity(plan.root.len()))
}

/// The sources of a plan's entries, as far as they have one.
pub(super) struct Room(Vec<Option<Tree>>);

/// Builds the root and makes it this process's. The old one is on its way out when this
/// returns; until it is, nobody may be let in.
pub(super) fn build(
    plan: &Plan,
    staged: &HashMap<PathBuf, PathBuf>,
    credentials: &Credentials,
    (network, Room(mut trees)): (Option<Beside>, Room),
    skipped: &mut Vec<Fault>,
) -> Result<Beside, Fault> {
    umask(Mode::from_bits_truncate(0o022));
    // All sources first: the new root is built over a place of the old one.
    for entry in &plan.root {
        trees.push(source(entry, staged)?);
    }
    match &plan.base {
        None => mount_empty(Path::new(BUILDING_SITE), "mode=0755,size=4m,nr_inodes=16k")
            .map_err(|error| fault("mounting a new root", error))?,
        Some(base) => {
            let image = tree(staged.get(base).unwrap_or(base), Access::ReadOnly)?;
            let site = mounts::open_place(AT_FDCWD, Path::new(BUILDING_SITE), mounts::Follow::Yes)
                .map_err(|error| fault("opening a place for the root", error))?;
            mounts::attach_tree(image.mounts.as_fd(), site.as_fd())
                .map_err(|error| fault("mounting the image", error))?;
        }
    }
    chdir(BUILDING_SITE).map_err(|error| fault("entering the new root", error))?;
    let mut site = Site {
        over_image: plan.base.is_some(),
        credentials,
        parent: Path::new(""),
        opened: None,
        shows_processes_alone: false,
    };
    for (entry, tree) in plan.root.iter().zip(trees) {
        site.place(entry, tree)
            .map_err(|error| fault(&format!("placing `{}`", at(entry).display()), error))?;
    }
    if site.shows_processes_alone {
        skipped.push(Fault {
            layer: PROC.to_owned(),
            reason: PROCESSES_ALONE.to_owned(),
        });
    }
    let root = mounts::open_place(AT_FDCWD, Path::new("."), mounts::Follow::Yes)
        .map_err(|error| fault("opening the new root", error))?;
    mounts::restrict_tree(root.as_fd(), READ_ONLY, false)
        .map_err(|error| fault("making the root read-only", error))?;
    if plan.base.is_some() {
        // Over an image these are mounts of their own.
        for entry in &plan.root {
            let Entry::Directory { at } = entry else {
                continue;
            };
            let own = mounts::open_place(AT_FDCWD, inside(at), mounts::Follow::No)
                .map_err(|error| fault("opening a directory", error))?;
            mounts::restrict_tree(own.as_fd(), READ_ONLY, false)
                .map_err(|error| fault("making a directory read-only", error))?;
        }
    }
    // Before the root changes: that changes it for whoever works beside, too.
    if let Some(network) = network {
        namespaces::enter(network)?;
    }
    pivot_root(".", ".").map_err(|error| fault("changing the root", error))?;
    // It waits for every processor of the machine to have noticed.
    let leaving = beside::leave_old_root().map_err(|error| fault(LEAVING, error))?;
    chdir("/").map_err(|error| fault("entering the root", error))?;
    umask(Mode::from_bits_truncate(0o077));
    Ok(leaving)
}

/// Waits until the old root is gone.
pub(super) fn left(leaving: Beside) -> Result<(), Fault> {
    leaving.end().map_err(|error| fault(LEAVING, error))
}

/// The same, for the server's process, which its init waits for.
pub(super) fn is_left(leaving: &Beside) -> Result<(), Fault> {
    leaving.ended().map_err(|error| fault(LEAVING, error))
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
    tree(staged.get(from).unwrap_or(from), *access).map(Some)
}

fn tree(from: &Path, access: Access) -> Result<Tree, Fault> {
    let wrong =
        |what: &str, error: io::Error| fault(&format!("{what} `{}`", from.display()), error);
    // Once by name; what is looked at below is what was opened.
    let tree = mounts::copy_tree_at(from).map_err(|error| wrong("opening", error))?;
    let kind = SFlag::from_bits_truncate(
        fstat(&tree)
            .map_err(|error| wrong("looking at", error.into()))?
            .st_mode,
    );
    let attributes = match access {
        Access::ReadOnly => READ_ONLY | NO_SUID | NO_DEVICES,
        Access::Writable => NO_SUID | NO_DEVICES,
        Access::Device => NO_SUID | NO_EXEC,
    };
    // With all that is mounted below it: a read-only tree has no writable branch.
    mounts::restrict_tree(tree.as_fd(), attributes, true)
        .map_err(|error| wrong("restricting", error))?;
    Ok(Tree {
        mounts: tree,
        is_directory: kind & SFlag::S_IFMT == SFlag::S_IFDIR,
    })
}

/// Where the root is being built.
struct Site<'a> {
    /// There every place is there already, and nothing can be made but in a mount of its own.
    over_image: bool,
    credentials: &'a Credentials,
    /// The directory that the last entry was put into.
    parent: &'a Path,
    /// That directory, once it was needed.
    opened: Option<OwnedFd>,
    /// Whether no more than that could be mounted at /proc.
    shows_processes_alone: bool,
}

impl<'a> Site<'a> {
    fn place(&mut self, entry: &'a Entry, tree: Option<Tree>) -> io::Result<()> {
        let inside = inside(at(entry));
        let parent = inside.parent().unwrap_or(Path::new(""));
        // Most entries stand beside the one before. Whatever is put over the directory itself
        // has another parent, so what is open is what its name means.
        if parent != self.parent {
            fs::create_dir_all(parent)?;
            self.parent = parent;
            self.opened = None;
        }
        match entry {
            Entry::Directory { .. } if self.over_image => {
                mount_empty(inside, "mode=0755,size=1m,nr_inodes=1k")
            }
            Entry::Directory { .. } => fs::create_dir_all(inside),
            Entry::File { text, .. } if self.over_image => {
                fs::write(MADE, text)?;
                let made = mounts::open_place(AT_FDCWD, Path::new(MADE), mounts::Follow::No)?;
                let copy = mounts::copy_tree(made.as_fd())?;
                mounts::restrict_tree(
                    copy.as_fd(),
                    READ_ONLY | NO_SUID | NO_DEVICES | NO_EXEC,
                    false,
                )?;
                mounts::attach_tree(copy.as_fd(), self.open(inside)?.as_fd())?;
                // The mount keeps it.
                fs::remove_file(MADE)
            }
            Entry::File { text, .. } => fs::File::create(inside)?.write_all(text.as_bytes()),
            Entry::Link { to, .. } => symlink(to, inside),
            Entry::Secret { credential, .. } => {
                let secret = self.credentials.read(credential)?;
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
                } else {
                    let made = fs::OpenOptions::new()
                        .write(true)
                        .create_new(true)
                        .open(inside);
                    match made {
                        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                            return Err(error);
                        }
                        _ => {}
                    }
                }
                mounts::attach_tree(tree.mounts.as_fd(), self.open(inside)?.as_fd())
            }
            Entry::Scratch { bytes, .. } => {
                fs::create_dir_all(inside)?;
                let options = format!("mode=1777,size={bytes},nr_inodes=64k");
                mount_empty(inside, &options)
            }
            Entry::Processes { .. } => {
                fs::create_dir_all(inside)?;
                let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
                let mount = |options: Option<&str>| {
                    mount(Some("proc"), inside, Some("proc"), flags, options)
                };
                // Where the one outside shows processes alone, as the runner's unit has it, newer
                // kernels let nobody mount one that shows more.
                match mount(None) {
                    Err(Errno::EPERM) => {
                        self.shows_processes_alone = true;
                        mount(Some("subset=pid")).map_err(Into::into)
                    }
                    other => other.map_err(Into::into),
                }
            }
        }
    }

    /// The place of an entry, through no link (CVE-2025-31133).
    fn open(&mut self, inside: &Path) -> io::Result<OwnedFd> {
        let (Some(name), false) = (inside.file_name(), self.parent.as_os_str().is_empty()) else {
            return mounts::open_place(AT_FDCWD, inside, mounts::Follow::No);
        };
        let parent = match self.opened.take() {
            Some(opened) => opened,
            None => mounts::open_place(AT_FDCWD, self.parent, mounts::Follow::No)?,
        };
        let place = mounts::open_place(parent.as_fd(), Path::new(name), mounts::Follow::No);
        self.opened = Some(parent);
        place
    }
}

fn mount_empty(at: &Path, options: &str) -> io::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("thv"), at, Some("tmpfs"), flags, Some(options)).map_err(Into::into)
}

/// A path inside, from the root that is being built.
fn inside(at: &Path) -> &Path {
    at.strip_prefix("/").unwrap_or(at)
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
    let error = error.into();
    // Of what is around thv, or of the kernel; other errors are about a place, which is named.
    let is_of_host = matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM));
    let mut fault = Fault::of(Layer::Root, what, error);
    if is_of_host {
        fault.reason.push_str(
            "; Linux 5.14 or newer is needed, and its calls for mounts in what is around thv: see `thv doctor`",
        );
    }
    fault
}

/// Stands for a layer where what is told is which /proc a server was given.
pub const PROC: &str = "proc";
const PROCESSES_ALONE: &str = "the kernel lets nobody mount one that shows more than the one around thv (ProcSubset=pid): \
     /proc/meminfo, /proc/cpuinfo and /proc/sys are not there";
const LEAVING: &str = "leaving the old root";
/// Where a file is made that is then mounted over one of an image.
const MADE: &str = "dev/.made";
/// A directory that every host has. Only this process sees what is mounted there.
const BUILDING_SITE: &str = "/tmp";

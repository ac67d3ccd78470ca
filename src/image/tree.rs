//! The tree that layers are applied to.
//!
//! Every name is walked component by component from the tree's own directory, and
//! through no link: what a layer says can only ever change what is in the tree
//! (RUSTSEC-2026-0148). Owners, setuid bits and extended attributes are left out:
//! everything belongs to the runner's user.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::{
        stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstatat, futimens, mkdirat},
        time::TimeSpec,
    },
    unistd::{LinkatFlags, UnlinkatFlags, linkat, symlinkat, unlinkat},
};

use super::ImageError;
use crate::sys::mounts::{self, Follow};

/// A directory that stands for `/`.
pub(super) struct Tree {
    root: OwnedFd,
    bytes: u64,
    entries: u64,
}

impl Tree {
    /// An empty tree at a path where nothing is.
    pub(super) fn create(path: &Path) -> Result<Self, ImageError> {
        let failed = |source| ImageError::Store {
            path: path.to_owned(),
            source,
        };
        fs::create_dir(path).map_err(failed)?;
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(failed)?;
        Ok(Self {
            root: File::open(path).map_err(failed)?.into(),
            bytes: 0,
            entries: 0,
        })
    }

    pub(super) fn directory(&mut self, path: &Path, mode: u32) -> Result<(), ImageError> {
        let (parent, name) = self.place(path)?;
        self.count(0)?;
        // Whoever unpacks must be able to go on, and to take it away again.
        let mode = Mode::from_bits_truncate(mode & 0o777 | 0o700);
        let wrong = |error: Errno| ImageError::refused(path, error.desc());
        if kind(&parent, &name) != Some(SFlag::S_IFDIR) {
            remove(&parent, &name).map_err(|error| ImageError::refused(path, error.to_string()))?;
            mkdirat(&parent, &name, mode).map_err(wrong)?;
        }
        fchmodat(&parent, &name, mode, FchmodatFlags::FollowSymlink).map_err(wrong)
    }

    /// A file of `size` bytes, which `content` must have.
    pub(super) fn file(
        &mut self,
        path: &Path,
        mode: u32,
        modified: u64,
        size: u64,
        content: &mut impl Read,
    ) -> Result<(), ImageError> {
        self.count(size)?;
        let mut file = self.new_file(path, mode)?;
        let wrong = |error: io::Error| ImageError::refused(path, error.to_string());
        let written = io::copy(&mut content.take(size), &mut file).map_err(wrong)?;
        if written != size {
            return Err(ImageError::refused(path, "a file that ends too early"));
        }
        // Python compares it with what its compiled files say.
        let modified = TimeSpec::new(i64::try_from(modified).unwrap_or_default(), 0);
        futimens(&file, &modified, &modified).map_err(|error| wrong(error.into()))
    }

    pub(super) fn symlink(&mut self, path: &Path, target: &Path) -> Result<(), ImageError> {
        let (parent, name) = self.free(path)?;
        symlinkat(target, &parent, &name).map_err(|error| ImageError::refused(path, error.desc()))
    }

    /// Another name for a file that is in the tree already.
    pub(super) fn link(&mut self, path: &Path, target: &Path) -> Result<(), ImageError> {
        let (from, old) = self.existing(target, path)?;
        if !matches!(kind(&from, &old), Some(SFlag::S_IFREG | SFlag::S_IFLNK)) {
            return Err(ImageError::refused(
                path,
                "a hard link to what is no file of the image",
            ));
        }
        if path == target {
            return Ok(());
        }
        let (parent, name) = self.free(path)?;
        linkat(&from, &old, &parent, &name, LinkatFlags::empty())
            .map_err(|error| ImageError::refused(path, error.desc()))
    }

    /// Takes away what is there, if anything.
    pub(super) fn remove(&mut self, path: &Path) -> Result<(), ImageError> {
        let Some((parent, name)) = self.looked_up(path)? else {
            return Ok(());
        };
        remove(&parent, &name).map_err(|error| ImageError::refused(path, error.to_string()))
    }

    /// Takes away what is in a directory.
    pub(super) fn empty(&mut self, path: &Path) -> Result<(), ImageError> {
        let directory = if path.as_os_str().is_empty() {
            self.root
                .try_clone()
                .map_err(|error| ImageError::refused(path, error.to_string()))?
        } else {
            match self.looked_up(path)? {
                Some((parent, name)) if kind(&parent, &name) == Some(SFlag::S_IFDIR) => {
                    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                    openat(&parent, &name, flags, Mode::empty())
                        .map_err(|error| ImageError::refused(path, error.desc()))?
                }
                _ => return Ok(()),
            }
        };
        let wrong = |error: io::Error| ImageError::refused(path, error.to_string());
        for entry in fs::read_dir(by_descriptor(&directory)).map_err(wrong)? {
            let name = PathBuf::from(entry.map_err(wrong)?.file_name());
            remove(&directory, &name).map_err(wrong)?;
        }
        Ok(())
    }

    /// A directory, with those above it, in place of whatever is there.
    pub(super) fn make_directory(&mut self, path: &Path) -> Result<(), ImageError> {
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        if self
            .looked_up(path)?
            .is_some_and(|(parent, name)| kind(&parent, &name) == Some(SFlag::S_IFDIR))
        {
            return Ok(());
        }
        self.directory(path, 0o755)
    }

    /// A file in place of whatever is there.
    pub(super) fn replace(&mut self, path: &Path, text: &[u8]) -> Result<(), ImageError> {
        let mut file = self.new_file(path, 0o644)?;
        file.write_all(text)
            .map_err(|error| ImageError::refused(path, error.to_string()))
    }

    /// A file's bytes; `None` where there is no file.
    pub(super) fn read(&self, path: &Path, most: u64) -> Result<Option<Vec<u8>>, ImageError> {
        let Some((parent, name)) = self.looked_up(path)? else {
            return Ok(None);
        };
        if kind(&parent, &name) != Some(SFlag::S_IFREG) {
            return Ok(None);
        }
        let wrong = |error: io::Error| ImageError::refused(path, error.to_string());
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file =
            openat(&parent, &name, flags, Mode::empty()).map_err(|error| wrong(error.into()))?;
        let mut bytes = Vec::new();
        File::from(file)
            .take(most)
            .read_to_end(&mut bytes)
            .map_err(wrong)?;
        Ok(Some(bytes))
    }

    fn new_file(&mut self, path: &Path, mode: u32) -> Result<File, ImageError> {
        let (parent, name) = self.free(path)?;
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        // No setuid, no setgid, no sticky bit; its owner is who runs it.
        let mode = Mode::from_bits_truncate(mode & 0o777 | 0o400);
        let file = openat(&parent, &name, flags, mode)
            .map_err(|error| ImageError::refused(path, error.desc()))?;
        Ok(File::from(file))
    }

    /// The place of a new entry, cleared of what was there.
    fn free(&mut self, path: &Path) -> Result<(OwnedFd, PathBuf), ImageError> {
        self.count(0)?;
        let (parent, name) = self.place(path)?;
        remove(&parent, &name).map_err(|error| ImageError::refused(path, error.to_string()))?;
        Ok((parent, name))
    }

    /// The directory of an entry, made where it is missing, and the entry's name in it.
    fn place(&self, path: &Path) -> Result<(OwnedFd, PathBuf), ImageError> {
        let wrong = |error: Errno| match error {
            Errno::ELOOP | Errno::ENOTDIR => ImageError::refused(
                path,
                "a name that goes through a link or a file of the image",
            ),
            other => ImageError::refused(path, other.desc()),
        };
        let name = path
            .file_name()
            .ok_or_else(|| ImageError::refused(path, "no name"))?;
        let mut at = self
            .root
            .try_clone()
            .map_err(|error| ImageError::refused(path, error.to_string()))?;
        for part in path.parent().unwrap_or(Path::new("")) {
            match mkdirat(&at, part, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(wrong(error)),
            }
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            at = openat(&at, part, flags, Mode::empty()).map_err(wrong)?;
        }
        Ok((at, PathBuf::from(name)))
    }

    /// Where something may be; `None` where its directory is not.
    fn looked_up(&self, path: &Path) -> Result<Option<(OwnedFd, PathBuf)>, ImageError> {
        match self.existing(path, path) {
            Ok(found) => Ok(Some(found)),
            Err(_) if self.is_missing(path) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn is_missing(&self, path: &Path) -> bool {
        let parent = path.parent().unwrap_or(Path::new(""));
        mounts::open_place(self.root.as_fd(), parent, Follow::No)
            .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    fn existing(&self, path: &Path, about: &Path) -> Result<(OwnedFd, PathBuf), ImageError> {
        let wrong = |error: io::Error| ImageError::refused(about, error.to_string());
        let name = path
            .file_name()
            .ok_or_else(|| ImageError::refused(about, "no name"))?;
        let parent = path.parent().unwrap_or(Path::new(""));
        let parent = if parent.as_os_str().is_empty() {
            self.root.try_clone().map_err(wrong)?
        } else {
            mounts::open_place(self.root.as_fd(), parent, Follow::No).map_err(wrong)?
        };
        Ok((parent, PathBuf::from(name)))
    }

    fn count(&mut self, bytes: u64) -> Result<(), ImageError> {
        self.entries += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.entries > MAX_ENTRIES {
            Err(ImageError::TooLarge(format!(
                "it has more than {MAX_ENTRIES} entries"
            )))
        } else if self.bytes > MAX_BYTES {
            Err(ImageError::TooLarge(format!(
                "it has more than {} GiB of files",
                MAX_BYTES >> 30
            )))
        } else {
            Ok(())
        }
    }
}

fn kind(parent: &OwnedFd, name: &Path) -> Option<SFlag> {
    let stat = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
    Some(SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT)
}

/// Takes away a file, a link or a whole directory; nothing there is fine.
fn remove(parent: &OwnedFd, name: &Path) -> io::Result<()> {
    match kind(parent, name) {
        None => Ok(()),
        // Removal by path follows no link below it; the name itself has no slash.
        Some(SFlag::S_IFDIR) if !name.as_os_str().as_bytes().contains(&b'/') => {
            fs::remove_dir_all(by_descriptor(parent).join(name))
        }
        Some(_) => Ok(unlinkat(parent, name, UnlinkatFlags::NoRemoveDir)?),
    }
}

fn by_descriptor(directory: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()))
}

/// Entries of all layers.
const MAX_ENTRIES: u64 = 1_000_000;
/// Bytes of all files.
const MAX_BYTES: u64 = 16 << 30;

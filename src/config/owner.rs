//! Opens configuration files below a root, only where the right people own them.
//!
//! The rule is applied to descriptors, component by component, and the bytes
//! come out of the descriptor that was checked: a path that passed is never
//! opened again by name. Symbolic links are followed by hand, below the root.
//! Called by `config` only; writes nothing.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs, io,
    io::Read as _,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat, readlinkat},
    sys::stat::{FileStat, Mode, fstat},
    unistd::{getegid, geteuid},
};

/// Who may own, and hence write, what is read as configuration.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OwnerRule {
    /// Root alone: what `serve` and the runner ask for under systemd.
    Root,
    /// The same where gateway and runner join a group: what a group may read is not hidden from them.
    RootAndGroup,
    /// Root, or whoever runs this: for `check`, the demo and tests.
    RootOrCaller,
}

/// The files below one root, under one rule.
pub(super) struct Files {
    root: PathBuf,
    rule: OwnerRule,
    caller: (u32, u32),
}

impl Files {
    pub(super) fn new(root: &Path, rule: OwnerRule) -> Self {
        Self {
            root: root.to_owned(),
            rule,
            caller: (geteuid().as_raw(), getegid().as_raw()),
        }
    }

    /// Where an absolute configuration path lies on this host.
    pub(super) fn below_root(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The bytes of a file; `path` is absolute, as configuration writes it.
    pub(super) fn read(&self, path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
        let End::File(file) = self.walk(path)? else {
            return Err(FileError::NotAFile);
        };
        let Some(file) = file else {
            return Ok(Vec::new());
        };
        let mut bytes = Vec::new();
        fs::File::from(file)
            .take(limit + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            Err(FileError::TooLarge(limit))
        } else {
            Ok(bytes)
        }
    }

    /// The names in a directory that end in `.EXTENSION` and are not hidden, sorted by bytes.
    pub(super) fn list(&self, path: &Path, extension: &str) -> Result<Vec<PathBuf>, FileError> {
        let End::Directory = self.walk(path)? else {
            return Err(FileError::NotADirectory);
        };
        let mut names = BTreeSet::new();
        let on_host = self.below_root(path);
        let entries = match fs::read_dir(&on_host) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(FileError::Hidden { name: on_host });
            }
            entries => entries?,
        };
        for entry in entries {
            let name = entry?.file_name();
            let hidden = name.as_bytes().starts_with(b".");
            if !hidden && Path::new(&name).extension() == Some(OsStr::new(extension)) {
                names.insert(name);
            }
            if names.len() > MAX_NAMES {
                return Err(FileError::TooMany);
            }
        }
        Ok(names.into_iter().map(|name| path.join(name)).collect())
    }

    /// Follows `path` from the root down, checking everything on the way.
    ///
    /// What lies above and at the root itself is not looked at: whoever chose
    /// the root vouches for it.
    fn walk(&self, path: &Path) -> Result<End, FileError> {
        let here = OFlag::O_PATH | OFlag::O_CLOEXEC;
        let mut directories: Vec<(PathBuf, OwnedFd)> = vec![(
            self.root.clone(),
            open(&self.root, here | OFlag::O_DIRECTORY, Mode::empty())?,
        )];
        let mut ahead = Vec::new();
        push_parts(&mut ahead, path);
        let mut links = 0;
        while let Some(part) = ahead.pop() {
            if part == ".." {
                if directories.len() > 1 {
                    directories.pop();
                }
                continue;
            }
            let (parent, parent_fd) = directories.last().expect("the root is never popped");
            let name = parent.join(&part);
            let fd = openat(
                parent_fd,
                part.as_os_str(),
                here | OFlag::O_NOFOLLOW,
                Mode::empty(),
            )
            .map_err(|errno| FileError::of(errno, parent))?;
            let stat = fstat(fd.as_fd())?;
            match stat.st_mode & libc::S_IFMT {
                libc::S_IFDIR => {
                    self.check(&name, &stat, true)?;
                    directories.push((name, fd));
                }
                libc::S_IFLNK => {
                    // A link has no mode of its own: its owner and its directory decide.
                    self.check(&name, &stat, false)?;
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::ELOOP.into());
                    }
                    let target = PathBuf::from(readlinkat(parent_fd, part.as_os_str())?);
                    if target.is_absolute() {
                        directories.truncate(1);
                    }
                    push_parts(&mut ahead, &target);
                }
                _ if !ahead.is_empty() => return Err(Errno::ENOTDIR.into()),
                // Masks a drop-in, as systemd has it.
                libc::S_IFCHR if stat.st_rdev == libc::makedev(1, 3) => return Ok(End::File(None)),
                libc::S_IFREG => {
                    let how =
                        OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
                    let file = openat(parent_fd, part.as_os_str(), how, Mode::empty())
                        .map_err(|errno| FileError::of(errno, &name))?;
                    // This descriptor is the one that is read, so this is the one that counts.
                    let stat = fstat(file.as_fd())?;
                    if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
                        return Err(FileError::NotAFile);
                    }
                    self.check(&name, &stat, true)?;
                    return Ok(End::File(Some(file)));
                }
                _ => return Err(FileError::NotAFile),
            }
        }
        Ok(End::Directory)
    }

    fn check(&self, name: &Path, stat: &FileStat, has_mode: bool) -> Result<(), FileError> {
        let (uid, gid) = self.caller;
        let (owner_ok, own_group) = match self.rule {
            OwnerRule::Root | OwnerRule::RootAndGroup => (stat.st_uid == 0, false),
            // Where each user has a group of his own, a group-writable file is his alone.
            OwnerRule::RootOrCaller => (stat.st_uid == 0 || stat.st_uid == uid, stat.st_gid == gid),
        };
        if !owner_ok {
            return Err(FileError::Owner {
                name: name.to_owned(),
                uid: stat.st_uid,
                rule: self.rule,
            });
        }
        let forbidden = if own_group { 0o002 } else { 0o022 };
        if has_mode && stat.st_mode & forbidden != 0 {
            return Err(FileError::Writable {
                name: name.to_owned(),
                mode: stat.st_mode & 0o7777,
            });
        }
        // Root reads everything, and would not notice what gateway and runner cannot.
        let others = if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
            0o001
        } else {
            0o004
        };
        let wanted = match self.rule {
            OwnerRule::Root => others,
            OwnerRule::RootAndGroup => others | others << 3,
            OwnerRule::RootOrCaller => !0,
        };
        if has_mode && uid == 0 && stat.st_mode & wanted == 0 {
            return Err(FileError::Hidden {
                name: name.to_owned(),
            });
        }
        Ok(())
    }
}

/// Where a walk ended. `None` is `/dev/null`.
enum End {
    File(Option<OwnedFd>),
    Directory,
}

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error("there is no such file")]
    Missing,
    #[error("`{}` belongs to uid {uid}, which may not configure this", name.display())]
    Owner {
        name: PathBuf,
        uid: u32,
        rule: OwnerRule,
    },
    #[error("`{}` can be written by others (mode {mode:04o})", name.display())]
    Writable { name: PathBuf, mode: u32 },
    #[error("`{}` cannot be read by other users than root, such as those of gateway (thvg-NAME) and runner (thvr-NAME)", name.display())]
    Hidden { name: PathBuf },
    #[error("this is not a file")]
    NotAFile,
    #[error("this is not a directory")]
    NotADirectory,
    #[error("the file is larger than {0} bytes")]
    TooLarge(u64),
    #[error("there are more than {MAX_NAMES} files here")]
    TooMany,
    #[error("it cannot be read: {0}")]
    Io(io::Error),
}

impl FileError {
    /// What the kernel said of `name`, or of what is in it.
    fn of(errno: Errno, name: &Path) -> Self {
        if errno == Errno::EACCES {
            let name = name.to_owned();
            return Self::Hidden { name };
        }
        errno.into()
    }

    /// The next command.
    pub(super) fn help(&self) -> String {
        match self {
            Self::Owner {
                name,
                rule: OwnerRule::Root | OwnerRule::RootAndGroup,
                ..
            } => format!("run `chown root: {}`", name.display()),
            Self::Owner {
                name,
                rule: OwnerRule::RootOrCaller,
                ..
            } => format!(
                "it must belong to root or to you: run `chown root: {}`",
                name.display()
            ),
            Self::Writable { name, .. } => format!("run `chmod go-w {}`", name.display()),
            // Whatever its mode: the units of gateway and runner show them nothing of it (`ProtectHome=`).
            Self::Hidden { name } if HOMES.iter().any(|home| name.starts_with(home)) => {
                "their units hide homes: put the file elsewhere, such as below /etc/thv".to_owned()
            }
            Self::Hidden { name } => format!(
                "configuration holds no secrets: run `chmod a+rX {}`",
                name.display()
            ),
            _ => String::new(),
        }
    }
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound {
            Self::Missing
        } else {
            Self::Io(error)
        }
    }
}

impl From<Errno> for FileError {
    fn from(errno: Errno) -> Self {
        io::Error::from(errno).into()
    }
}

/// Puts the parts of `path` on top of what is still to walk, the first one uppermost.
fn push_parts(ahead: &mut Vec<OsString>, path: &Path) {
    ahead.extend(path.components().rev().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    }));
}

/// As many links as the kernel follows.
const MAX_LINKS: usize = 40;

/// What the units hide whatever its mode (`ProtectHome=`, systemd.exec(5)).
pub const HOMES: &[&str] = &["/home", "/root", "/run/user"];

/// Files in one drop-in directory.
const MAX_NAMES: usize = 1000;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    fn tree() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("etc/thv");
        fs::create_dir_all(&dir).unwrap();
        for path in ["etc", "etc/thv"] {
            chmod(&root.path().join(path), 0o755);
        }
        fs::write(dir.join("a.toml"), "x").unwrap();
        chmod(&dir.join("a.toml"), 0o644);
        (root, dir)
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn read(root: &tempfile::TempDir, rule: OwnerRule, path: &str) -> Result<Vec<u8>, FileError> {
        Files::new(root.path(), rule).read(Path::new(path), 10)
    }

    #[test]
    fn what_others_can_write_is_refused_file_and_directory_alike() {
        let (root, dir) = tree();
        let own = OwnerRule::RootOrCaller;
        assert_eq!(read(&root, own, "/etc/thv/a.toml").unwrap(), b"x");
        for path in [dir.join("a.toml"), dir.clone(), root.path().join("etc")] {
            let before = fs::metadata(&path).unwrap().permissions();
            chmod(&path, before.mode() | 0o002);
            assert!(
                matches!(
                    read(&root, own, "/etc/thv/a.toml"),
                    Err(FileError::Writable { .. })
                ),
                "{path:?}"
            );
            fs::set_permissions(&path, before).unwrap();
        }
        assert_eq!(read(&root, own, "/etc/thv/a.toml").unwrap(), b"x");
    }

    /// Root could read it all, and says what the gateway could not.
    #[test]
    fn what_only_root_can_read_is_named_with_its_cure() {
        let (root, dir) = tree();
        if !geteuid().is_root() {
            return;
        }
        for (path, mode) in [(dir.join("a.toml"), 0o640), (dir.clone(), 0o750)] {
            let before = fs::metadata(&path).unwrap().permissions();
            chmod(&path, mode);
            let error = read(&root, OwnerRule::Root, "/etc/thv/a.toml").unwrap_err();
            let cure = format!("chmod a+rX {}`", path.display());
            assert!(error.help().ends_with(&cure), "{error}; {}", error.help());
            let own = OwnerRule::RootOrCaller;
            assert_eq!(read(&root, own, "/etc/thv/a.toml").unwrap(), b"x");
            fs::set_permissions(&path, before).unwrap();
        }
    }

    #[test]
    fn the_strict_rule_wants_root_and_no_group_writer() {
        let (root, dir) = tree();
        if !geteuid().is_root() {
            assert!(matches!(
                read(&root, OwnerRule::Root, "/etc/thv/a.toml"),
                Err(FileError::Owner { .. })
            ));
            return;
        }
        assert_eq!(
            read(&root, OwnerRule::Root, "/etc/thv/a.toml").unwrap(),
            b"x"
        );
        chmod(&dir.join("a.toml"), 0o664);
        assert!(matches!(
            read(&root, OwnerRule::Root, "/etc/thv/a.toml"),
            Err(FileError::Writable { .. })
        ));
        chmod(&dir.join("a.toml"), 0o644);
        for path in [dir.join("a.toml"), dir.clone()] {
            chown(&path, Some(12345), None).unwrap();
            for rule in [OwnerRule::Root, OwnerRule::RootOrCaller] {
                assert!(
                    matches!(
                        read(&root, rule, "/etc/thv/a.toml"),
                        Err(FileError::Owner { .. })
                    ),
                    "{path:?}"
                );
            }
            chown(&path, Some(0), None).unwrap();
        }
    }

    #[test]
    fn links_are_followed_below_the_root_and_their_directories_checked() {
        let (root, dir) = tree();
        let own = OwnerRule::RootOrCaller;
        fs::create_dir(root.path().join("opt")).unwrap();
        chmod(&root.path().join("opt"), 0o755);
        fs::write(root.path().join("opt/b"), "y").unwrap();
        chmod(&root.path().join("opt/b"), 0o644);
        symlink("/opt/b", dir.join("absolute")).unwrap();
        symlink("../../../../../opt/b", dir.join("relative")).unwrap();
        symlink("loop", dir.join("loop")).unwrap();
        assert_eq!(read(&root, own, "/etc/thv/absolute").unwrap(), b"y");
        assert_eq!(read(&root, own, "/etc/thv/relative").unwrap(), b"y");
        assert!(matches!(
            read(&root, own, "/etc/thv/loop"),
            Err(FileError::Io(_))
        ));
        chmod(&root.path().join("opt"), 0o777);
        assert!(matches!(
            read(&root, own, "/etc/thv/absolute"),
            Err(FileError::Writable { .. })
        ));
    }

    #[test]
    fn what_is_no_plain_file_is_not_opened_and_what_is_too_large_not_kept() {
        let (root, dir) = tree();
        let own = OwnerRule::RootOrCaller;
        nix::unistd::mkfifo(&dir.join("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
        assert!(matches!(
            read(&root, own, "/etc/thv/fifo"),
            Err(FileError::NotAFile)
        ));
        assert!(matches!(
            read(&root, own, "/etc/thv"),
            Err(FileError::NotAFile)
        ));
        assert!(matches!(
            read(&root, own, "/etc/thv/none"),
            Err(FileError::Missing)
        ));
        assert!(matches!(
            read(&root, own, "/etc/thv/a.toml/b"),
            Err(FileError::Io(_))
        ));
        fs::write(dir.join("a.toml"), "0123456789").unwrap();
        assert_eq!(read(&root, own, "/etc/thv/a.toml").unwrap().len(), 10);
        fs::write(dir.join("a.toml"), "0123456789a").unwrap();
        assert!(matches!(
            read(&root, own, "/etc/thv/a.toml"),
            Err(FileError::TooLarge(10))
        ));
        let null = Files::new(Path::new("/"), own).read(Path::new("/dev/null"), 1);
        assert_eq!(null.unwrap(), b"");
    }
}

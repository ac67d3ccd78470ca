//! The descriptor-based mount calls: a mount is made, restricted and put in
//! place without ever being named twice.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    path::{Component, Path},
};

use nix::{
    NixPath as _,
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, openat},
    sys::stat::{Mode, SFlag, fstat},
};

use super::done;

/// Copies the mounts at `place` and below, attached nowhere (open_tree(2)).
pub(crate) fn copy_tree(place: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    open_tree(place, c"", libc::AT_EMPTY_PATH)
}

/// Opens `path` and copies the mounts there and below in one step, so that there is no
/// second look at the name.
pub(crate) fn copy_tree_at(path: &Path) -> io::Result<OwnedFd> {
    // Without a word to the allocator; see `beside`.
    path.with_nix_path(|path| open_tree(AT_FDCWD, path, 0))?
}

fn open_tree(base: BorrowedFd<'_>, path: &CStr, more: i32) -> io::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC | libc::AT_RECURSIVE | more;
    // SAFETY: the descriptor is open and the path a C string, both for the time of the call.
    let result =
        unsafe { libc::syscall(libc::SYS_open_tree, base.as_raw_fd(), path.as_ptr(), flags) };
    owned(result)
}

/// Puts an unattached tree over `target`, a descriptor of the place (move_mount(2)).
pub(crate) fn attach_tree(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
    // SAFETY: both descriptors are open, both paths constant C strings.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            flags,
        )
    };
    done(result)
}

/// Sets attributes (`MOUNT_ATTR_…`) on a tree and, with `recursive`, on all below it (mount_setattr(2)).
pub(crate) fn restrict_tree(
    tree: BorrowedFd<'_>,
    attributes: u64,
    recursive: bool,
) -> io::Result<()> {
    let arguments = Attributes {
        set: attributes,
        clear: 0,
        propagation: 0,
        userns: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptor is open, the path a constant C string, and the
    // structure that of mount_setattr(2), passed with its size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(&arguments),
            size_of::<Attributes>(),
        )
    };
    done(result)
}

/// Whether symbolic links are followed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Follow {
    Yes,
    /// None, anywhere in the path, which must also stay below its base; no `..`.
    No,
}

/// Opens `path` below `base` as a place (`O_PATH`).
///
/// Component by component where no link is to be followed, because openat2(2) is
/// not to be had: `DynamicUser=` implies `RestrictSUIDSGID=`, which answers ENOSYS.
pub(crate) fn open_place(base: BorrowedFd<'_>, path: &Path, follow: Follow) -> io::Result<OwnedFd> {
    let place = OFlag::O_PATH | OFlag::O_CLOEXEC;
    if follow == Follow::Yes {
        return Ok(openat(base, path, place, Mode::empty())?);
    }
    let mut reached: Option<OwnedFd> = None;
    for component in path.components() {
        let Component::Normal(name) = component else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        let from = reached.as_ref().map_or(base, AsFd::as_fd);
        let next = openat(from, name, place | OFlag::O_NOFOLLOW, Mode::empty())?;
        // Without following, a link opens as itself.
        if SFlag::from_bits_truncate(fstat(&next)?.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK {
            return Err(Errno::ELOOP.into());
        }
        reached = Some(next);
    }
    reached.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptor = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// `struct mount_attr`.
#[repr(C)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

pub(crate) const READ_ONLY: u64 = 0x1;
pub(crate) const NO_SUID: u64 = 0x2;
pub(crate) const NO_DEVICES: u64 = 0x4;
pub(crate) const NO_EXEC: u64 = 0x8;

const OPEN_TREE_CLONE: i32 = 1;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_place_is_opened_through_no_link_and_below_its_base() {
        let base = tempfile::tempdir().unwrap();
        fs::create_dir_all(base.path().join("a/b")).unwrap();
        symlink("b", base.path().join("a/link")).unwrap();
        fs::create_dir(base.path().join("a/b/c")).unwrap();
        let at = fs::File::open(base.path()).unwrap();
        let open = |path: &str, follow| open_place(at.as_fd(), Path::new(path), follow).is_ok();
        assert!(open("a/b/c", Follow::No));
        assert!(open("a/link/c", Follow::Yes));
        for refused in [
            "a/link", "a/link/c", "a/../a", "/", "/etc", ".", "", "a/none",
        ] {
            assert!(!open(refused, Follow::No), "{refused:?}");
        }
    }
}

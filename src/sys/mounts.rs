//! The descriptor-based mount calls: a mount is made, restricted and put in
//! place without ever being named twice.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

/// Copies the mounts at `place` and below, attached nowhere (open_tree(2)).
pub(crate) fn copy_tree(place: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC | libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the descriptor is open and the path a constant C string.
    let result = unsafe { libc::syscall(libc::SYS_open_tree, place.as_raw_fd(), c"".as_ptr(), flags) };
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
pub(crate) fn restrict_tree(tree: BorrowedFd<'_>, attributes: u64, recursive: bool) -> io::Result<()> {
    let arguments = Attributes { set: attributes, clear: 0, propagation: 0, userns: 0 };
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
    /// None, anywhere in the path, which must also stay below its base.
    No,
}

/// Opens `path` below `base` as a place (`O_PATH`), through no magic link (openat2(2)).
pub(crate) fn open_place(base: BorrowedFd<'_>, path: &CStr, follow: Follow) -> io::Result<OwnedFd> {
    #[allow(clippy::cast_sign_loss, reason = "flags are a bit pattern")]
    let how = OpenHow {
        flags: (libc::O_PATH | libc::O_CLOEXEC) as u64,
        mode: 0,
        resolve: match follow {
            Follow::Yes => RESOLVE_NO_MAGICLINKS,
            Follow::No => RESOLVE_NO_SYMLINKS | RESOLVE_BENEATH,
        },
    };
    // SAFETY: the path is a C string that outlives the call, the structure that
    // of openat2(2), passed with its size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_openat2,
            base.as_raw_fd(),
            path.as_ptr(),
            std::ptr::from_ref(&how),
            size_of::<OpenHow>(),
        )
    };
    owned(result)
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptor = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct mount_attr`.
#[repr(C)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// `struct open_how`.
#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

pub(crate) const READ_ONLY: u64 = 0x1;
pub(crate) const NO_SUID: u64 = 0x2;
pub(crate) const NO_DEVICES: u64 = 0x4;
pub(crate) const NO_EXEC: u64 = 0x8;

const OPEN_TREE_CLONE: i32 = 1;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
const RESOLVE_NO_MAGICLINKS: u64 = 0x2;
const RESOLVE_NO_SYMLINKS: u64 = 0x4;
const RESOLVE_BENEATH: u64 = 0x8;

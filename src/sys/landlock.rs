//! Rules on files and scopes that a process binds itself to (landlock(7)).

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

use super::done;

/// The newest version of the interface that this kernel speaks.
pub(crate) fn version() -> io::Result<u32> {
    // SAFETY: with this flag no memory is passed.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ptr::null::<u8>(),
            0,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).map_err(|_| io::Error::last_os_error())
}

/// A set of rules that handles these rights and scopes, with no rule yet: nothing is allowed.
pub(crate) fn ruleset(files: u64, scopes: u64) -> io::Result<OwnedFd> {
    let attributes = Ruleset {
        files,
        network: 0,
        scopes,
    };
    // Older kernels know a shorter structure, and one without what it holds is as good.
    let size = if scopes == 0 {
        size_of::<u64>()
    } else {
        size_of::<Ruleset>()
    };
    // SAFETY: the structure is that of landlock_create_ruleset(2) and at least `size` long.
    let made = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ptr::from_ref(&attributes),
            size,
            0,
        )
    };
    let descriptor = i32::try_from(made).map_err(io::Error::other)?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Allows `rights` at `place` and below.
pub(crate) fn allow(ruleset: BorrowedFd<'_>, place: BorrowedFd<'_>, rights: u64) -> io::Result<()> {
    let attributes = PathBeneath {
        rights,
        place: place.as_raw_fd(),
    };
    // SAFETY: both descriptors are open, and the structure is that of LANDLOCK_RULE_PATH_BENEATH.
    let added = unsafe {
        libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset.as_raw_fd(),
            RULE_PATH_BENEATH,
            ptr::from_ref(&attributes),
            0,
        )
    };
    done(added)
}

/// Binds this thread, and what it execs, for good.
pub(crate) fn restrict(ruleset: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open; no memory is passed.
    let bound = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) };
    done(bound)
}

/// `struct landlock_ruleset_attr`.
#[repr(C)]
struct Ruleset {
    files: u64,
    network: u64,
    scopes: u64,
}

/// `struct landlock_path_beneath_attr`, which is packed.
#[repr(C, packed)]
struct PathBeneath {
    rights: u64,
    place: i32,
}

const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: i32 = 1;

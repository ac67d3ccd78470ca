//! Giving up: capabilities, keyrings, the terminal's insides.

use std::{io, os::fd::RawFd};

/// Drops every capability: bounding, ambient, and the three sets (capabilities(7)).
pub(crate) fn drop_capabilities() -> io::Result<()> {
    for capability in 0..=MAX_CAPABILITY {
        // SAFETY: no memory is passed.
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if dropped != 0 {
            let error = io::Error::last_os_error();
            // The kernel has no more of them.
            if error.raw_os_error() == Some(libc::EINVAL) {
                break;
            }
            return Err(error);
        }
    }
    // SAFETY: no memory is passed.
    let cleared = unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        )
    };
    if cleared != 0 {
        return Err(io::Error::last_os_error());
    }
    let header = Header {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let none = [Sets {
        effective: 0,
        permitted: 0,
        inheritable: 0,
    }; 2];
    // SAFETY: header and data are those of capset(2) for version 3: two elements.
    let set =
        unsafe { libc::syscall(libc::SYS_capset, std::ptr::from_ref(&header), none.as_ptr()) };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The version of Landlock that this kernel has (landlock_create_ruleset(2)).
pub(crate) fn landlock_abi() -> io::Result<i64> {
    // SAFETY: a null attribute of length zero with this flag only asks.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0_usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    if version >= 0 {
        Ok(version)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Leaves the session keyring that was inherited for a new, empty one (keyctl(2)).
pub(crate) fn new_session_keyring() -> io::Result<()> {
    // SAFETY: a null name asks for an anonymous keyring; no other memory is passed.
    let joined = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<u8>(),
        )
    };
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        _ if joined >= 0 => Ok(()),
        // A filter around this process, as containers have, takes keyctl away from
        // it and from all that it starts: no keyring is in reach. The call itself
        // has no such answer for an anonymous keyring.
        Some(libc::EPERM | libc::ENOSYS) => Ok(()),
        _ => Err(error),
    }
}

/// Brings the loopback interface of the socket's network up (netdevice(7)), and says whether
/// it did. Allocates nothing.
pub(super) fn loopback_up(socket: RawFd) -> bool {
    let mut request = Interface {
        name: [0; 16],
        flags: 0,
        padding: [0; 22],
    };
    request.name[..2].copy_from_slice(b"lo");
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the kernel keeps these in a short"
    )]
    let up = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    request.flags = up;
    // SAFETY: the structure is that of SIOCSIFFLAGS, of 40 bytes; of a number that is no
    // socket the kernel says so.
    unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, std::ptr::from_ref(&request)) == 0 }
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `struct ifreq` with its flags.
#[repr(C)]
struct Interface {
    name: [u8; 16],
    flags: i16,
    padding: [u8; 22],
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// More than there are.
const MAX_CAPABILITY: libc::c_ulong = 63;
const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
const KEYCTL_JOIN_SESSION_KEYRING: i32 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process;

    /// probe-32: whoever makes a keyring of its own has left the one that it was given.
    #[test]
    fn a_new_session_keyring_is_another() {
        const KEYCTL_GET_KEYRING_ID: i32 = 0;
        const SESSION: i32 = -3;
        let own = || {
            // SAFETY: no memory is passed.
            unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_GET_KEYRING_ID, SESSION, 0) }
        };
        if own() < 0 {
            eprintln!("not proven here: keyctl(2) is refused");
            return;
        }
        // SAFETY: what the child does are system calls.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                let before = own();
                let made = new_session_keyring().is_ok();
                process::leave(i32::from(!(made && own() > 0 && own() != before)));
            }
            nix::unistd::ForkResult::Parent { child } => {
                let ended = nix::sys::wait::waitpid(child, None).unwrap();
                assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(child, 0));
            }
        }
    }
}

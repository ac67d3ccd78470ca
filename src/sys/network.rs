//! Which network a socket is of.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// What tells the network of this socket from all others of this boot (`SO_NETNS_COOKIE`,
/// socket(7), since Linux 5.14).
pub(crate) fn of_socket(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `socket` is borrowed, hence open throughout; the kernel writes at most `length`
    // bytes to `cookie`, which is that long, and both live until the call returns.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    super::done(result.into()).map(|()| cookie)
}

#[cfg(test)]
mod tests {
    use std::os::{fd::AsFd as _, unix::net::UnixDatagram};

    use nix::{
        sched::{CloneFlags, unshare},
        sys::wait::{WaitStatus, waitpid},
        unistd::ForkResult,
    };

    use super::*;
    use crate::sys::process;

    #[test]
    fn a_socket_stays_of_the_network_that_it_was_made_in() {
        let here = || of_socket(UnixDatagram::unbound()?.as_fd());
        let brought = UnixDatagram::unbound().unwrap();
        assert_eq!(of_socket(brought.as_fd()).unwrap(), here().unwrap());
        // In a network of its own, which only a process with one thread can have.
        match process::fork().unwrap() {
            ForkResult::Child => {
                let look = || -> io::Result<bool> {
                    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
                    Ok(of_socket(brought.as_fd())? != here()?)
                };
                process::leave(i32::from(!look().unwrap_or_default()));
            }
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            }
        }
    }
}

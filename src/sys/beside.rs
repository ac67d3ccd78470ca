//! What the kernel takes long for, while its caller goes on: a process that shares the
//! caller's memory and descriptors makes a few calls and ends.
//!
//! It runs code of this file alone, which touches nothing of that memory but its own
//! stack and one number: no allocation, no lock, no output. Only the stage uses it, which has
//! one thread. Whatever page that writes for the first time while the other runs costs a word
//! to the other's processor, ten times the price: what can be is allocated before.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    sync::atomic::{AtomicI32, Ordering},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::wait::{WaitStatus, waitpid},
    unistd::Pid,
};

use super::{privileges::loopback_up, stack::Stack};

/// A process beside this one. Dropping it waits for its end.
pub(crate) struct Beside {
    pid: Pid,
    /// Readable once it has ended.
    pidfd: OwnedFd,
    /// Where it leaves a descriptor, or how its work went. Boxed, as the process has its address.
    left: Box<AtomicI32>,
    /// What it runs on, until it has ended.
    _stack: Stack,
    has_ended: bool,
}

/// Makes a network namespace whose loopback is up, for [`Beside::enter_network`].
pub(crate) fn new_network() -> io::Result<Beside> {
    extern "C" fn make(left: *mut libc::c_void) -> libc::c_int {
        // SAFETY: no memory is passed; the namespace becomes this process's alone.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return why();
        }
        // SAFETY: no memory is passed. What is made lies in the table that both share.
        let socket =
            unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if socket < 0 {
            return why();
        }
        if !loopback_up(socket) {
            return why();
        }
        // SAFETY: the box of the structure below, which waits for the end of this process.
        let left = unsafe { &*left.cast::<AtomicI32>() };
        left.store(socket, Ordering::Release);
        0
    }
    beside(make)
}

/// Takes the old root away that pivot_root(2) has put over the new one: it is the current directory.
pub(crate) fn leave_old_root() -> io::Result<Beside> {
    extern "C" fn leave(left: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the path is a constant C string.
        let went = unsafe { libc::umount2(c".".as_ptr(), libc::MNT_DETACH) };
        let why = if went == 0 { DONE } else { why() };
        // SAFETY: as above.
        let left = unsafe { &*left.cast::<AtomicI32>() };
        left.store(why, Ordering::Release);
        why
    }
    beside(leave)
}

/// What a process beside ends with where a call has failed: never the zero of one that has
/// not, though `errno` is shared with the caller, who may have set it anew.
fn why() -> libc::c_int {
    match Errno::last_raw() {
        0 => libc::EIO,
        error => error,
    }
}

impl Beside {
    /// Waits for its end, and says how it went.
    pub(crate) fn end(mut self) -> io::Result<()> {
        self.wait()
    }

    /// What [`Self::ended`] needs to be open.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Waits for its end, and says how it went, for one without a descriptor to leave: for another
    /// process with this memory, who is not its parent. That one still has to take it in.
    pub(crate) fn ended(&self) -> io::Result<()> {
        let mut end = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        while let Err(error) = poll(&mut end, PollTimeout::NONE) {
            if error != Errno::EINTR {
                return Err(error.into());
            }
        }
        match self.left.load(Ordering::Acquire) {
            DONE => Ok(()),
            // By a signal.
            NONE => Err(io::Error::from(io::ErrorKind::Interrupted)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Waits for its end, and goes into the network that it has made.
    pub(crate) fn enter_network(mut self) -> io::Result<()> {
        self.wait()?;
        let socket = self.left.swap(NONE, Ordering::Acquire);
        if socket < 0 {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        // SAFETY: the process has left it to this one, and nobody else knows it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: the descriptor is open; the request takes nothing and gives a new descriptor.
        let network = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) };
        if network < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it for the caller.
        let network = unsafe { OwnedFd::from_raw_fd(network) };
        nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET)?;
        Ok(())
    }

    fn wait(&mut self) -> io::Result<()> {
        loop {
            let waited = waitpid(self.pid, None);
            self.has_ended = !matches!(waited, Err(Errno::EINTR));
            return match waited {
                Ok(WaitStatus::Exited(_, 0)) => Ok(()),
                Ok(WaitStatus::Exited(_, error)) => Err(io::Error::from_raw_os_error(error)),
                Err(Errno::EINTR) => continue,
                Err(error) => Err(error.into()),
                // By a signal.
                Ok(_) => Err(io::Error::from(io::ErrorKind::Interrupted)),
            };
        }
    }
}

fn beside(what: extern "C" fn(*mut libc::c_void) -> libc::c_int) -> io::Result<Beside> {
    let stack = Stack::new()?;
    let left = Box::new(AtomicI32::new(NONE));
    let mut pidfd: RawFd = -1;
    // SAFETY: stack and number live in what is returned, which is not dropped before the
    // process has ended; `pidfd` is written before the call returns here. The process runs one
    // of the two functions above: system calls, and one store to the number. Where a call fails it writes the `errno` that both share, and
    // whatever that makes of a call of the caller's, all of it fails.
    let pid = unsafe {
        libc::clone(
            what,
            stack.end(),
            libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_PIDFD | libc::SIGCHLD,
            ptr::from_ref(&*left).cast_mut().cast(),
            ptr::from_mut(&mut pidfd),
        )
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for the caller.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Beside {
        pid: Pid::from_raw(pid),
        pidfd,
        left,
        _stack: stack,
        has_ended: false,
    })
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Its stack goes now, so it must have gone.
        if !self.has_ended {
            let _ = self.wait();
        }
    }
}

const NONE: i32 = -1;
/// Neither a descriptor, as these begin above the standard ones here, nor an error.
const DONE: i32 = 0;
/// The network of a socket (sockios.h).
const SIOCGSKNS: libc::Ioctl = 0x894c;

#[cfg(test)]
mod tests {
    use nix::unistd::ForkResult;

    use super::*;
    use crate::sys::process;

    /// Runs it in a process with one thread, and with the rights of its own users' root.
    fn alone(what: impl FnOnce() -> io::Result<bool>) {
        match process::fork().unwrap() {
            ForkResult::Child => {
                let flags = nix::sched::CloneFlags::CLONE_NEWUSER;
                let went = nix::sched::unshare(flags).map_err(io::Error::from);
                let went = went.and_then(|()| what());
                process::leave(i32::from(!went.unwrap_or(false)));
            }
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
            }
        }
    }

    #[test]
    fn a_network_that_was_made_beside_is_entered_and_its_loopback_is_up() {
        let network = || std::fs::read_link("/proc/thread-self/ns/net");
        alone(|| {
            let before = network()?;
            let made = new_network()?;
            let unchanged = network()? == before;
            made.enter_network()?;
            let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
            std::net::TcpStream::connect(listener.local_addr()?)?;
            Ok(unchanged && network()? != before)
        });
    }

    #[test]
    fn what_fails_beside_says_why() {
        alone(|| {
            let leaving = leave_old_root()?;
            let [to_another, to_its_parent] = [leaving.ended(), leaving.end()].map(|ended| {
                // It is no mount of this process's to take away.
                ended.is_err_and(|error| {
                    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM))
                })
            });
            Ok(to_another && to_its_parent)
        });
    }
}

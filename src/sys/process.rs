//! Processes: made into namespaces, known by descriptor.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

use nix::unistd::{ForkResult, Pid};

use super::stack::Stack;

/// What [`clone_process`] returns on either side.
pub(crate) enum Cloned {
    /// In the new process.
    Child,
    /// In the caller: the child, and a descriptor of it (`CLONE_PIDFD`).
    Parent { pid: Pid, pidfd: OwnedFd },
}

/// Makes a copy of this process in new namespaces (`flags`: `CLONE_NEW…`), and
/// where given in a cgroup (clone3(2)).
///
/// Only for a process with one thread: then the copy may do whatever the
/// original might have done.
pub(crate) fn clone_process(flags: i32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let into_cgroup = if cgroup.is_some() {
        CLONE_INTO_CGROUP
    } else {
        0
    };
    #[allow(
        clippy::cast_sign_loss,
        reason = "flags and signals are bit patterns and small positive numbers"
    )]
    let arguments = CloneArguments {
        flags: flags as u32 as u64 | libc::CLONE_PIDFD as u64 | into_cgroup,
        pidfd: ptr::from_mut(&mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |cgroup| cgroup.as_raw_fd() as u64),
    };
    // SAFETY: the structure is that of clone3(2), with its size; `pidfd` lives
    // on this stack and is written before the call returns to the parent. No
    // stack, tid or tls is passed, so the child goes on with a copy of this one,
    // as after fork(2). The caller has one thread, so no lock is held elsewhere.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            ptr::from_ref(&arguments),
            size_of::<CloneArguments>(),
        )
    };
    match result {
        0 => Ok(Cloned::Child),
        pid if pid > 0 => {
            let pid = Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?);
            // SAFETY: the kernel has just put a new descriptor here, owned by nobody else.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Cloned::Parent { pid, pidfd })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Starts a process that shares this one's memory, in which nothing else happens until
/// `what` has executed a program or ended, with its code (vfork(2), but on a stack of its own).
///
/// Under the same condition as [`clone_process`]. Descriptors, directories, signals and
/// credentials are its own; what it leaves on the heap stays there.
pub(crate) fn lend<F: FnOnce() -> i32>(what: F) -> io::Result<Pid> {
    extern "C" fn enter<F: FnOnce() -> i32>(what: *mut libc::c_void) -> libc::c_int {
        // SAFETY: this is the `Option<F>` of the call below, which waits for the end of this
        // and, in the same memory, does nothing meanwhile.
        let what = unsafe { &mut *what.cast::<Option<F>>() };
        leave(what.take().map_or(1, |what| what()))
    }
    let stack = Stack::new()?;
    // Taken by the process where there is one, dropped here where there is none.
    let mut what = Some(what);
    // SAFETY: the stack is mapped until the call returns, and is nobody
    // else's; the function takes exactly this pointer. CLONE_VFORK keeps this thread, the
    // only one, from running before the process has memory of its own or is gone.
    let pid = unsafe {
        libc::clone(
            enter::<F>,
            stack.end(),
            libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD,
            ptr::from_mut(&mut what).cast(),
        )
    };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Pid::from_raw(pid))
}

/// As [`lend`], in a copy of the memory.
pub(crate) fn copy(what: impl FnOnce() -> i32) -> io::Result<Pid> {
    match fork()? {
        ForkResult::Child => leave(what()),
        ForkResult::Parent { child } => Ok(child),
    }
}

/// fork(2), under the same condition as [`clone_process`].
pub(crate) fn fork() -> nix::Result<ForkResult> {
    // SAFETY: the caller has one thread, so the child may allocate and lock.
    unsafe { nix::unistd::fork() }
}

/// Signals the process behind `pidfd`; immune to the reuse of its number.
pub(crate) fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: `pidfd` is borrowed, hence open; the null siginfo asks the kernel
    // to make one; no other memory is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Has every signal do what it does by default: Rust's own start has SIGPIPE ignored, as
/// systemd has (`IgnoreSIGPIPE=`), and what is ignored stays so through exec (signal(7)).
pub(crate) fn default_signals() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    for number in Signal::iterator() {
        // SAFETY: no handler is installed, so none can run at a bad moment. That
        // of SIGKILL and SIGSTOP cannot be changed, nor need it be.
        let _ = unsafe { signal(number, SigHandler::SigDfl) };
    }
}

/// Ends this process at once: no destructors, no buffers, nothing that the
/// copied memory of another process would do twice.
pub(crate) fn leave(code: i32) -> ! {
    // SAFETY: _exit(2) touches no memory of the caller's.
    unsafe { libc::_exit(code) }
}

/// Marks every descriptor from `first` on to be closed at exec (close_range(2)).
pub(crate) fn close_at_exec_from(first: u32) -> io::Result<()> {
    close_range(first, libc::CLOSE_RANGE_CLOEXEC)
}

/// Closes every descriptor from `first` on. For a process that is about to
/// become something else: whoever owns one of them must never use it again.
pub(crate) fn close_from(first: u32) -> io::Result<()> {
    close_range(first, 0)
}

/// Closes every descriptor above the standard ones but these; see [`close_from`].
pub(crate) fn close_all_but(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<u32> = kept
        .iter()
        .map(|kept| kept.as_raw_fd().unsigned_abs())
        .collect();
    kept.sort_unstable();
    let mut first = 3;
    for kept in kept.into_iter().filter(|kept| *kept >= 3) {
        if first < kept {
            close(first, kept - 1, 0)?;
        }
        first = kept + 1;
    }
    close(first, u32::MAX, 0)
}

fn close_range(first: u32, flags: u32) -> io::Result<()> {
    close(first, u32::MAX, flags)
}

fn close(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: no memory is passed. What is closed is no longer used: callers are
    // the stage and the init, which keep only descriptors outside of the range.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `struct clone_args` of clone3(2).
#[repr(C)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Not in libc as a number that fits.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Descriptor 2 as a file, for a process that has put something there itself.
pub(crate) fn standard_error() -> io::Result<std::fs::File> {
    use std::os::fd::AsFd;
    Ok(std::fs::File::from(
        io::stderr().as_fd().try_clone_to_owned()?,
    ))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_memory_is_lent_to_leaves_its_words_and_takes_its_descriptors() {
        // In a process with one thread, which a test is not.
        // SAFETY: as below.
        match unsafe { nix::unistd::fork() }.unwrap() {
            ForkResult::Child => {
                let file = std::fs::File::open("/dev/null").unwrap();
                let number = file.as_raw_fd();
                let mut said = String::new();
                let lent = lend(|| {
                    said.push_str("in the same memory");
                    drop(file);
                    leave(7)
                });
                // SAFETY: no memory is passed.
                let is_open = unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 };
                let ended = lent.map(|pid| (pid, nix::sys::wait::waitpid(pid, None)));
                let is_right = ended.is_ok_and(|(pid, ended)| {
                    ended == Ok(nix::sys::wait::WaitStatus::Exited(pid, 7))
                });
                leave(i32::from(
                    !(is_right && is_open && said == "in the same memory"),
                ));
            }
            ForkResult::Parent { child } => {
                let ended = nix::sys::wait::waitpid(child, None).unwrap();
                assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(child, 0));
            }
        }
    }

    #[test]
    fn only_what_is_kept_stays_open() {
        // Descriptors are a whole process's: this is asked of one of its own.
        let [kept, also] = [0; 2].map(|_| std::fs::File::open("/dev/null").unwrap());
        let gone = std::fs::File::open("/dev/null").unwrap();
        let last = std::fs::File::open("/dev/null").unwrap();
        let open = |number: RawFd| {
            // SAFETY: no memory is passed.
            unsafe { libc::fcntl(number, libc::F_GETFD) >= 0 }
        };
        let numbers = [&kept, &also, &gone, &last].map(|file| file.as_raw_fd());
        // SAFETY: what the child does are system calls and one small allocation; tests beside
        // this one may hold the allocator's lock only while they are inside of it, and the C
        // library makes it usable after fork(2).
        match unsafe { nix::unistd::fork() }.unwrap() {
            ForkResult::Child => {
                let closed = close_all_but(&[last.as_fd(), kept.as_fd(), also.as_fd()]).is_ok();
                leave(i32::from(
                    !(closed && numbers.map(open) == [true, true, false, true]),
                ));
            }
            ForkResult::Parent { child } => {
                let ended = nix::sys::wait::waitpid(child, None).unwrap();
                assert_eq!(ended, nix::sys::wait::WaitStatus::Exited(child, 0));
            }
        }
        assert!(numbers.map(open).iter().all(|open| *open), "here they are");
    }
}

//! PID 1 of a sandbox: reaps, passes SIGTERM on, and ends with the server.
//!
//! When it ends the kernel ends everything else in its namespace
//! (pid_namespaces(7)), so a server's forgotten children leave nothing behind.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
};

use nix::{
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout},
};

use crate::{frames::Status, sys::process};

/// Keeps the signals that [`run`] waits for from being lost.
pub(super) fn block_signals() -> nix::Result<()> {
    awaited().thread_block()
}

/// Gives the server the signals of an ordinary program.
pub(super) fn unblock_signals() -> nix::Result<()> {
    process::default_signals();
    SigSet::all().thread_unblock()
}

/// Is the init until `server` has ended. Never returns.
pub(super) fn run(server: Pid, status: OwnedFd) -> ! {
    let mut status = match settle(status) {
        Ok(status) => status,
        // The server must not live beside descriptors that are not its own.
        Err(_) => process::leave(1),
    };
    loop {
        match awaited().wait() {
            Ok(Signal::SIGTERM) => {
                let _ = kill(server, Signal::SIGTERM);
            }
            _ => {
                if let Some(ended) = reap(server) {
                    let _ = status.write_all(&ended);
                    process::leave(0)
                }
            }
        }
    }
}

/// Holds nothing but the pipe to the runner. What it gave up it gave up before the server was made.
fn settle(status: OwnedFd) -> io::Result<File> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&status)?;
    // From here on the pipe is descriptor 2, the only one besides the nulls.
    drop((null, status));
    process::close_from(3)?;
    process::standard_error()
}

/// Takes all that has ended; says how the server did, once it has.
fn reap(server: Pid) -> Option<[u8; 5]> {
    let mut ended = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == server => {
                ended = Some(encode(EXITED, code))
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == server => {
                ended = Some(encode(KILLED, signal as i32))
            }
            Ok(WaitStatus::StillAlive) | Err(_) => return ended,
            Ok(_) => {}
        }
    }
}

/// What the init of a child said of the server's end, if it could.
pub fn read_status(status: &mut impl Read) -> Option<Status> {
    let mut said = [0; 5];
    status.read_exact(&mut said).ok()?;
    let number = i32::from_be_bytes([said[1], said[2], said[3], said[4]]);
    match said[0] {
        EXITED => Some(Status::Code(number)),
        KILLED => Some(Status::Signal(number)),
        _ => None,
    }
}

fn encode(how: u8, number: i32) -> [u8; 5] {
    let [a, b, c, d] = number.to_be_bytes();
    [how, a, b, c, d]
}

fn awaited() -> SigSet {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGCHLD);
    signals
}

const EXITED: u8 = 1;
const KILLED: u8 = 2;

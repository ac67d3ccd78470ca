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
        prctl,
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, dup2_stderr, dup2_stdin, dup2_stdout},
};

use super::{filter::Filter, plan::Plan, privileges};
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
pub(super) fn run(server: Pid, status: OwnedFd, filter: &Filter, plan: &Plan) -> ! {
    let mut status = match settle(status, filter, plan) {
        Ok(status) => status,
        // The server must not live without its init's own restrictions.
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

/// Holds nothing but the pipe to the runner, and is closed to the server's looks
/// (probe-3: `/proc/1/environ` would show the runner's).
fn settle(status: OwnedFd, filter: &Filter, plan: &Plan) -> io::Result<File> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&status)?;
    // From here on the pipe is descriptor 2, the only one besides the nulls.
    drop((null, status));
    process::close_from(3)?;
    // Before the capabilities go, not after: from here on the kernel lets nobody without
    // CAP_SYS_PTRACE over it look inside, and the server, which has as few, never could
    // in between. Dropping them leaves the mark as it is; only an exec or a change of
    // user would set it anew (prctl(2), ptrace(2)).
    prctl::set_dumpable(false)?;
    let refused = |_| io::Error::from(io::ErrorKind::PermissionDenied);
    // What an optional layer leaves out is told by the server's own process, which does the same.
    let mut skipped = Vec::new();
    privileges::give_up(plan, &mut skipped).map_err(refused)?;
    privileges::bind(plan, filter, &mut skipped).map_err(refused)?;
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

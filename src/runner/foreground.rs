//! A runner that a gateway starts for itself, where no systemd does.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};
use nix::{
    sys::socket::{AddressFamily, Shutdown, SockFlag, SockType, shutdown, socketpair},
    unistd::{dup, pipe2},
};

use crate::{config::ServerName, frames, sys::random};

/// A running runner; ended and reaped when this is dropped.
pub struct Foreground {
    /// The gateway's end.
    pub socket: OwnedFd,
    pub key: String,
    /// Until it is taken.
    process: Option<Child>,
}

impl Foreground {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, Child::id)
    }

    /// Lets go of the socket and leaves the process to the caller.
    pub fn abandon(mut self) -> Child {
        self.process
            .take()
            .expect("only this takes it, and only once")
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // It ends by itself then; while it is root's still, it may not be killed by whom root became.
            let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Starts `program runner NAME --foreground`: its standard input is its end of a
/// packet socket, and its standard output a pipe that holds the key.
pub fn foreground(program: &Path, root: &Path, server: &ServerName) -> Result<Foreground> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
        .context("making a socket for the runner")?;
    let key = random::digits::<32>().context("getting random bytes")?;
    let (key_end, mut key_in) =
        pipe2(nix::fcntl::OFlag::O_CLOEXEC).map(|(read, write)| (read, File::from(write)))?;
    key_in.write_all(key.as_bytes())?;
    drop(key_in);
    let process = Command::new(program)
        .args([
            "--root".as_ref(),
            root.as_os_str(),
            "runner".as_ref(),
            server.as_str().as_ref(),
            "--foreground".as_ref(),
        ])
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::from(key_end))
        .spawn()
        .with_context(|| format!("starting `{}`", program.display()))?;
    Ok(Foreground {
        socket: ours,
        key,
        process: Some(process),
    })
}

/// The runner's side of [`foreground`]: its socket, and the key.
pub(super) fn inherited() -> Result<(OwnedFd, String)> {
    let channel = dup(io::stdin().as_fd()).context("taking the socket from standard input")?;
    let mut key = Vec::new();
    File::from(dup(io::stdout().as_fd())?)
        .take(frames::MAX_KEY as u64)
        .read_to_end(&mut key)
        .context("reading the key from standard output")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    Ok((channel, super::text(key)?))
}

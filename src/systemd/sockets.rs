//! The listening socket that systemd passes (sd_listen_fds(3)).
//!
//! The crate listenfd takes the descriptor; around it stand the checks it does
//! not make: that it is meant for this process, and the one of that name.

use std::{io, os::fd::OwnedFd};

use listenfd::ListenFd;
use nix::sys::socket::{getsockopt, sockopt};

/// What kind of socket is wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wanted {
    /// TCP or Unix stream: the gateway's.
    Stream,
    /// Unix packets: the runner's.
    Packets,
}

/// Takes the one socket passed, which must have that name (`FileDescriptorName=`).
///
/// Call it once, and while there is one thread: it unsets `LISTEN_*`.
pub fn take(name: &str, wanted: Wanted) -> Result<OwnedFd, SocketError> {
    let variable = |name: &str| std::env::var(name).ok();
    let passed = Passed {
        pid: variable("LISTEN_PID"),
        count: variable("LISTEN_FDS"),
        names: variable("LISTEN_FDNAMES"),
    };
    passed.check(name, std::process::id())?;
    let mut sockets = ListenFd::from_env();
    let mut of_family =
        |family, kind| sockets.take_custom::<OwnedFd>(0, family, kind, "listening socket");
    let taken = match wanted {
        Wanted::Stream => of_family(libc::AF_UNIX, libc::SOCK_STREAM)
            .or_else(|_| of_family(libc::AF_INET, libc::SOCK_STREAM)),
        Wanted::Packets => of_family(libc::AF_UNIX, libc::SOCK_SEQPACKET),
    };
    let wrong = |_: io::Error| SocketError::Kind {
        name: name.to_owned(),
        wanted,
    };
    let socket = taken.map_err(wrong)?.ok_or(SocketError::None)?;
    match getsockopt(&socket, sockopt::AcceptConn) {
        Ok(true) => Ok(socket),
        _ => Err(SocketError::Kind {
            name: name.to_owned(),
            wanted,
        }),
    }
}

/// Why there is no socket to serve on.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum SocketError {
    #[error("systemd passed no socket to this process; start the unit, not the program")]
    None,
    #[error(
        "the sockets are meant for process {0}, not for this one; do not start it through a wrapper"
    )]
    OtherProcess(String),
    #[error(
        "systemd passed {0} sockets where one is expected; a drop-in has a second ListenStream=, see `systemctl cat`"
    )]
    Many(String),
    #[error(
        "the socket is called `{found}`, not `{wanted}`; FileDescriptorName= of the socket unit was changed"
    )]
    Name { found: String, wanted: String },
    #[error("the socket `{name}` is not a listening {} socket", match wanted { Wanted::Stream => "stream", Wanted::Packets => "Unix packet" })]
    Kind { name: String, wanted: Wanted },
}

/// What the environment says was passed.
struct Passed {
    pid: Option<String>,
    count: Option<String>,
    names: Option<String>,
}

impl Passed {
    fn check(&self, name: &str, own_pid: u32) -> Result<(), SocketError> {
        let count = self.count.as_deref().unwrap_or("0");
        let Some(pid) = self.pid.as_deref().filter(|_| count != "0") else {
            return Err(SocketError::None);
        };
        if pid != own_pid.to_string() {
            return Err(SocketError::OtherProcess(pid.to_owned()));
        }
        if count != "1" {
            return Err(SocketError::Many(count.to_owned()));
        }
        match self.names.as_deref().unwrap_or_default() {
            found if found == name => Ok(()),
            found => Err(SocketError::Name {
                found: found.to_owned(),
                wanted: name.to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pid: &str, count: &str, names: &str) -> Result<(), SocketError> {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Passed {
            pid: some(pid),
            count: some(count),
            names: some(names),
        }
        .check("mcp", 7)
    }

    /// fault-12: each way in which the socket can be missing or wrong has words of its own.
    #[test]
    fn only_one_socket_of_that_name_for_this_process_is_taken() {
        assert_eq!(check("7", "1", "mcp"), Ok(()));
        assert_eq!(check("", "", ""), Err(SocketError::None));
        assert_eq!(check("7", "0", "mcp"), Err(SocketError::None));
        assert_eq!(check("", "1", "mcp"), Err(SocketError::None));
        assert_eq!(
            check("8", "1", "mcp"),
            Err(SocketError::OtherProcess("8".to_owned()))
        );
        assert_eq!(
            check("7", "2", "mcp:mcp"),
            Err(SocketError::Many("2".to_owned()))
        );
        let name = |found: &str| {
            Err(SocketError::Name {
                found: found.to_owned(),
                wanted: "mcp".to_owned(),
            })
        };
        assert_eq!(check("7", "1", "other"), name("other"));
        assert_eq!(check("7", "1", ""), name(""));
    }
}

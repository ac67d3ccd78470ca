//! What gateway and runner say to each other.
//!
//! One frame is one packet of a `SOCK_SEQPACKET` Unix socket: a JSON object of
//! at most [`MAX_FRAME`] bytes, with descriptors attached where the frame says
//! so. The gateway can name no command, path or host; the runner computes what
//! to start from the root-owned configuration. Used by `child` (the gateway's
//! side) and `runner`.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{ControlMessage, MsgFlags, recvmsg, sendmsg},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::sys;

/// The version of this conversation; both sides must speak the same.
pub const VERSION: u16 = 4;

/// The systemd credential that holds the key.
pub const KEY_CREDENTIAL: &str = "runner-key";

/// Bytes of the key's file: hex, and perhaps a line end.
pub const MAX_KEY: usize = 256;

/// Bytes of one frame.
pub const MAX_FRAME: usize = 4096;

/// Bytes of each part of a [`Caller`]: all three fit into a frame, however they are escaped.
const MAX_CALLER: usize = 512;

/// Sockets that reach the loopback of a child that speaks HTTP: so many connections at once.
pub const DIALERS: usize = 40;

/// What the gateway asks.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "frame")]
pub enum Request {
    /// The first frame, and only the first. The runner re-reads its
    /// configuration, answers [`Reply::Hello`], or [`Reply::Refused`] and hangs up.
    Hello {
        version: u16,
        /// The key both were given (a systemd credential), lower-case hex.
        key: String,
        /// `config::Config::digest` as the gateway read it.
        digest: String,
    },
    /// Start a child. Answered by [`Reply::Started`] or [`Reply::Failed`].
    Start {
        /// The gateway's number for it, never used twice on one connection.
        child: u64,
        /// Whose it is: `auth::PrincipalKey`, 64 hex digits. Names the state directory.
        principal: String,
        /// Who that is, where the configuration has the child told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        caller: Option<Caller>,
    },
    /// End a child: its process gets the signal; `Kill` ends everything in its sandbox at once.
    Signal { child: u64, signal: Signal },
}

/// Whom a child of one user serves. Only plain text that fits: it becomes part of an environment.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, try_from = "Said")]
pub struct Caller {
    issuer: String,
    subject: String,
    kind: String,
}

/// A [`Caller`] before it was looked at.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    issuer: String,
    subject: String,
    kind: String,
}

/// It is not plain, or too long.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "the caller's {0} cannot be told to a child: it is empty, too long, or holds control characters"
)]
pub struct NotPlain(&'static str);

impl Caller {
    pub fn new(issuer: &str, subject: &str, kind: &str) -> Result<Self, NotPlain> {
        Said {
            issuer: issuer.to_owned(),
            subject: subject.to_owned(),
            kind: kind.to_owned(),
        }
        .try_into()
    }

    /// Issuer, subject, and whether that is a `user` or a `client`.
    pub fn values(&self) -> [&str; 3] {
        [&self.issuer, &self.subject, &self.kind]
    }
}

impl TryFrom<Said> for Caller {
    type Error = NotPlain;

    fn try_from(said: Said) -> Result<Self, NotPlain> {
        let Said {
            issuer,
            subject,
            kind,
        } = said;
        for (name, text) in [("issuer", &issuer), ("subject", &subject), ("kind", &kind)] {
            if text.is_empty() || text.len() > MAX_CALLER || text.chars().any(char::is_control) {
                return Err(NotPlain(name));
            }
        }
        Ok(Self {
            issuer,
            subject,
            kind,
        })
    }
}

/// The signals a gateway may ask for.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Signal {
    /// SIGTERM to the server process.
    Terminate,
    /// SIGKILL to the sandbox's init: everything in it ends.
    Kill,
}

/// What the runner answers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "frame")]
pub enum Reply {
    Hello {
        version: u16,
        /// The digest as the runner read it; when it differs from the gateway's, one of both is stale.
        digest: String,
    },
    /// Carries four descriptors: write end of the child's stdin, read ends of
    /// its stdout and stderr, and a pidfd of its init (to wait on); then the
    /// listening sockets of its ways out, which stand in its own network; then
    /// [`DIALERS`] unconnected ones of that network, if it speaks HTTP.
    Started {
        child: u64,
        pid: u32,
        listeners: usize,
        dialers: usize,
    },
    /// The child was not started, and nothing of it is left.
    Failed {
        child: u64,
        /// The sandbox layer that could not be applied, or `exec`, `limit`, `config`.
        layer: String,
        /// Cause and cure, for the journal.
        reason: String,
    },
    /// The child has ended and is reaped.
    Exited {
        child: u64,
        status: Status,
        out_of_memory: bool,
    },
    /// The conversation ends: wrong key, version or configuration. For the journal.
    Refused { reason: String },
}

/// What the stage of a child says to its runner, with the sockets that it has made
/// in the child's network.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Listening {
    pub listeners: usize,
    pub dialers: usize,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    Code(i32),
    Signal(i32),
}

/// Sends one frame with its descriptors. `WouldBlock` passes through.
pub fn send(
    socket: BorrowedFd<'_>,
    frame: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let text = serde_json::to_vec(frame)?;
    if text.len() > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the frame is too long",
        ));
    }
    let raw: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    // The peer may have gone; that is an error to handle, not a signal to die of.
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(&text)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Receives one frame with its descriptors; `None` when the peer has hung up.
/// `WouldBlock` passes through.
pub fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut text = [0; MAX_FRAME];
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; MAX_DESCRIPTORS]);
    let mut slices = [IoSliceMut::new(&mut text)];
    let received = loop {
        match recvmsg::<()>(
            socket.as_raw_fd(),
            &mut slices,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let (length, flags) = (received.bytes, received.flags);
    let descriptors = sys::received_descriptors(received)?;
    if length == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the frame is too long",
        ));
    }
    Ok(Some((
        serde_json::from_slice(&text[..length])?,
        descriptors,
    )))
}

/// Receives one frame as [`receive`] does, from somebody who has no descriptors to
/// send: without room for them the kernel drops what comes. Opened here they would
/// have to be closed here, and closing some files takes as long as their owner likes.
pub fn receive_bare<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<T>> {
    let mut text = [0; MAX_FRAME];
    let mut slices = [IoSliceMut::new(&mut text)];
    let received = loop {
        match recvmsg::<()>(
            socket.as_raw_fd(),
            &mut slices,
            None,
            MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let (length, flags) = (received.bytes, received.flags);
    if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the frame is too long, or brings descriptors",
        ));
    }
    if length == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&text[..length])?))
}

/// Descriptors of one frame: four of a child, a listening socket for each line of
/// `egress` and `forward`, and those that reach it (the kernel has 253 at most).
const MAX_DESCRIPTORS: usize = 208 + DIALERS;

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
        os::fd::AsFd,
    };

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap()
    }

    #[test]
    fn frames_arrive_whole_in_order_and_with_their_descriptors() {
        let (gateway, runner) = pair();
        let (read, write) = nix::unistd::pipe().unwrap();
        let started = Reply::Started {
            child: 7,
            pid: 12,
            listeners: 0,
            dialers: 0,
        };
        send(runner.as_fd(), &started, &[write.as_fd()]).unwrap();
        send(
            runner.as_fd(),
            &Reply::Exited {
                child: 7,
                status: Status::Signal(9),
                out_of_memory: true,
            },
            &[],
        )
        .unwrap();
        drop(write);
        let (first, mut descriptors): (Reply, _) = receive(gateway.as_fd()).unwrap().unwrap();
        assert_eq!(first, started);
        let mut sent = File::from(descriptors.pop().unwrap());
        sent.write_all(b"through").unwrap();
        drop(sent);
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        let (second, none): (Reply, _) = receive(gateway.as_fd()).unwrap().unwrap();
        assert!(
            matches!(
                second,
                Reply::Exited {
                    out_of_memory: true,
                    ..
                }
            ) && none.is_empty()
        );
    }

    /// A stranger that sends descriptors leaves none behind in the runner, however many and however often.
    #[test]
    fn descriptors_that_nobody_wants_are_never_opened() {
        let (gateway, runner) = pair();
        let own = || {
            std::fs::read_dir("/proc/self/fd")
                .unwrap()
                .filter_map(|entry| {
                    let target = std::fs::read_link(entry.unwrap().path()).ok()?;
                    (target == std::path::Path::new("/proc/version")).then_some(())
                })
                .count()
        };
        let file = File::open("/proc/version").unwrap();
        let hello = Request::Signal {
            child: 1,
            signal: Signal::Kill,
        };
        for count in [1, MAX_DESCRIPTORS, MAX_DESCRIPTORS + 1] {
            send(gateway.as_fd(), &hello, &vec![file.as_fd(); count]).unwrap();
            assert!(receive_bare::<Request>(runner.as_fd()).is_err());
            assert_eq!(own(), 1, "{count}");
        }
        send(gateway.as_fd(), &hello, &[]).unwrap();
        assert_eq!(
            receive_bare::<Request>(runner.as_fd()).unwrap(),
            Some(hello)
        );
    }

    /// inc-2: no frame can name a command.
    #[test]
    fn nothing_there_a_hang_up_and_a_wrong_frame_are_told_apart() {
        let (gateway, runner) = pair();
        let nothing = receive::<Request>(runner.as_fd()).unwrap_err();
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        for wrong in [
            &b"{}"[..],
            b"[\"hello\",1]",
            br#"{"frame":"start","child":1,"principal":"x","command":"/bin/sh"}"#,
        ] {
            nix::unistd::write(&gateway, wrong).unwrap();
            assert_eq!(
                receive::<Request>(runner.as_fd()).unwrap_err().kind(),
                io::ErrorKind::InvalidData
            );
        }
        nix::unistd::write(&gateway, &[b' '; MAX_FRAME + 1]).unwrap();
        assert!(receive::<Request>(runner.as_fd()).is_err());
        drop(gateway);
        assert!(receive::<Request>(runner.as_fd()).unwrap().is_none());
    }

    /// What becomes part of an environment is plain, and the longest of it fits into a frame, however it is escaped.
    #[test]
    fn a_caller_is_plain_text_that_fits() {
        let longest = "\"".repeat(MAX_CALLER);
        let caller = Caller::new(&longest, &longest, "client").unwrap();
        let start = Request::Start {
            child: u64::MAX,
            principal: "0".repeat(64),
            caller: Some(caller.clone()),
        };
        let (gateway, runner) = pair();
        send(gateway.as_fd(), &start, &[]).unwrap();
        assert_eq!(receive_bare(runner.as_fd()).unwrap(), Some(start));
        assert_eq!(caller.values(), [&longest, &longest, "client"]);
        for bad in [
            "",
            "a\0b",
            "a\nb",
            "\u{7f}",
            "\u{9b}31m",
            &"x".repeat(MAX_CALLER + 1),
        ] {
            assert_eq!(Caller::new(bad, "s", "user"), Err(NotPlain("issuer")));
            assert_eq!(Caller::new("i", bad, "user"), Err(NotPlain("subject")));
        }
    }
}

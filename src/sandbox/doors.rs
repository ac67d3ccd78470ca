//! The addresses in a child's own network at which its ways out begin, and the
//! sockets by which the gateway comes in where the child speaks HTTP.
//!
//! They are bound in the child's namespace and handed to the runner, which hands
//! them on to the gateway: whoever connects to one inside is accepted by a
//! process that has a network. The child itself has none. A socket stays in the
//! network that it was made in: who connects one of those that are made here
//! reaches the child's own loopback, from wherever.

use std::{
    io,
    net::TcpListener,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use nix::{
    fcntl::AT_FDCWD,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::{plan::Plan, stage::Fault};
use crate::{
    config::{InsideDoor, SOCKETS},
    frames::{self, Listening},
    sys::mounts,
};

/// Binds every door of the plan and sends them over `channel`, and the sockets by which
/// the child is reached after them, all in one packet. Low ports included: nothing has
/// been given up yet.
pub(super) fn open(plan: &Plan, channel: &OwnedFd) -> Result<(), Fault> {
    let fault = |what: &str, error: io::Error| Fault {
        layer: LAYER.to_owned(),
        reason: format!("{what}: {error}"),
    };
    let doors = plan.network.doors();
    if doors.is_empty() && plan.listens.is_none() {
        return Ok(());
    }
    let listeners = doors
        .iter()
        .map(|door| {
            TcpListener::bind(door)
                .map_err(|error| fault(&format!("listening on `{door}` for the child"), error))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let dialers =
        ways_in(plan).map_err(|error| fault("making a way to reach the child by", error))?;
    let doors = listeners.iter().map(AsFd::as_fd);
    let descriptors: Vec<_> = doors.chain(dialers.iter().map(AsFd::as_fd)).collect();
    let frame = Listening {
        listeners: listeners.len(),
        dialers: dialers.len(),
    };
    frames::send(channel.as_fd(), &frame, &descriptors)
        .map_err(|error| fault("handing over the child's ways out", error))
}

/// What the gateway comes in by: sockets of this network, or the directory with the child's own socket.
fn ways_in(plan: &Plan) -> io::Result<Vec<OwnedFd>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    match &plan.listens {
        None => Ok(Vec::new()),
        Some(InsideDoor::Port(_)) => (0..frames::DIALERS)
            .map(|_| Ok(socket(AddressFamily::Inet, SockType::Stream, flags, None)?))
            .collect(),
        Some(InsideDoor::Socket(_)) => {
            let root = mounts::open_place(AT_FDCWD, Path::new("/"), mounts::Follow::Yes)?;
            let below = Path::new(SOCKETS.trim_start_matches('/'));
            Ok(vec![mounts::open_place(
                root.as_fd(),
                below,
                mounts::Follow::No,
            )?])
        }
    }
}

fn dialers(plan: &Plan) -> usize {
    match &plan.listens {
        None => 0,
        Some(InsideDoor::Port(_)) => frames::DIALERS,
        Some(InsideDoor::Socket(_)) => 1,
    }
}

/// The sockets of a child whose stage is done.
#[derive(Debug, Default)]
pub struct Doors {
    /// They listen, for its ways out.
    pub out: Vec<OwnedFd>,
    /// They lead to its own loopback, or to its socket's directory.
    pub into: Vec<OwnedFd>,
}

/// Takes over what the stage of a child has made.
pub fn received(plan: &Plan, channel: &OwnedFd) -> Result<Doors, Fault> {
    let fault = |reason: String| Fault {
        layer: LAYER.to_owned(),
        reason,
    };
    let (wanted, dialers) = (plan.network.doors().len(), dialers(plan));
    if wanted + dialers == 0 {
        return Ok(Doors::default());
    }
    let (frame, mut out) = frames::receive::<Listening>(channel.as_fd())
        .map_err(|error| fault(format!("taking over the child's ways out: {error}")))?
        .ok_or_else(|| fault("the child's ways out were not handed over".to_owned()))?;
    if (frame.listeners, frame.dialers) == (wanted, dialers) && out.len() == wanted + dialers {
        let into = out.split_off(wanted);
        Ok(Doors { out, into })
    } else {
        Err(fault(format!(
            "{} sockets were handed over, not {}",
            out.len(),
            wanted + dialers
        )))
    }
}

/// What stands in for a layer's name.
const LAYER: &str = "egress";

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
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::{plan::Plan, stage::Fault};
use crate::frames::{self, Listening};

/// Binds every door of the plan and sends them over `channel`, and the sockets by which
/// the child is reached after them, all in one packet. Low ports included: nothing has
/// been given up yet.
pub(super) fn open(plan: &Plan, channel: &OwnedFd) -> Result<(), Fault> {
    let fault = |what: &str, error: io::Error| Fault {
        layer: LAYER.to_owned(),
        reason: format!("{what}: {error}"),
    };
    let doors = plan.network.doors();
    if doors.is_empty() && plan.port.is_none() {
        return Ok(());
    }
    let listeners = doors
        .iter()
        .map(|door| {
            TcpListener::bind(door)
                .map_err(|error| fault(&format!("listening on `{door}` for the child"), error))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let dialers = (0..dialers(plan))
        .map(|_| {
            socket(AddressFamily::Inet, SockType::Stream, flags, None)
                .map_err(|error| fault("making a socket to reach the child by", error.into()))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let doors = listeners.iter().map(AsFd::as_fd);
    let descriptors: Vec<_> = doors.chain(dialers.iter().map(AsFd::as_fd)).collect();
    let frame = Listening {
        listeners: listeners.len(),
        dialers: dialers.len(),
    };
    frames::send(channel.as_fd(), &frame, &descriptors)
        .map_err(|error| fault("handing over the child's ways out", error))
}

fn dialers(plan: &Plan) -> usize {
    plan.port.map_or(0, |_| frames::DIALERS)
}

/// The sockets of a child whose stage is done.
#[derive(Debug, Default)]
pub struct Doors {
    /// They listen, for its ways out.
    pub out: Vec<OwnedFd>,
    /// They are there to be connected, to its own loopback.
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

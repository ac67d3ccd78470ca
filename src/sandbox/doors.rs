//! The addresses in a child's own network at which its ways out begin.
//!
//! They are bound in the child's namespace and handed to the runner, which hands
//! them on to the gateway: whoever connects to one inside is accepted by a
//! process that has a network. The child itself has none.

use std::{
    io,
    net::TcpListener,
    os::fd::{AsFd, OwnedFd},
};

use super::{plan::Plan, stage::Fault};
use crate::frames::{self, Listening};

/// Binds every door of the plan and sends them over `socket`, all in one packet.
/// Low ports included: nothing has been given up yet.
pub(super) fn open(plan: &Plan, socket: &OwnedFd) -> Result<(), Fault> {
    let fault = |what: &str, error: io::Error| Fault {
        layer: LAYER.to_owned(),
        reason: format!("{what}: {error}"),
    };
    let doors = plan.network.doors();
    if doors.is_empty() {
        return Ok(());
    }
    let listeners = doors
        .iter()
        .map(|door| {
            TcpListener::bind(door)
                .map_err(|error| fault(&format!("listening on `{door}` for the child"), error))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let descriptors: Vec<_> = listeners.iter().map(AsFd::as_fd).collect();
    let frame = Listening {
        listeners: descriptors.len(),
    };
    frames::send(socket.as_fd(), &frame, &descriptors)
        .map_err(|error| fault("handing over the child's ways out", error))
}

/// The doors of a child whose stage is done.
pub fn received(plan: &Plan, socket: &OwnedFd) -> Result<Vec<OwnedFd>, Fault> {
    let fault = |reason: String| Fault {
        layer: LAYER.to_owned(),
        reason,
    };
    let wanted = plan.network.doors().len();
    if wanted == 0 {
        return Ok(Vec::new());
    }
    let (frame, listeners) = frames::receive::<Listening>(socket.as_fd())
        .map_err(|error| fault(format!("taking over the child's ways out: {error}")))?
        .ok_or_else(|| fault("the child's ways out were not handed over".to_owned()))?;
    if frame.listeners == wanted && listeners.len() == wanted {
        Ok(listeners)
    } else {
        Err(fault(format!(
            "{} ways out were handed over, not {wanted}",
            listeners.len()
        )))
    }
}

/// What stands in for a layer's name.
const LAYER: &str = "egress";

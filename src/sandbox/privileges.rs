//! Giving up: limits, capabilities, new privileges, system calls.

use std::io;

use nix::sys::{
    prctl,
    resource::{Resource, getrlimit, setrlimit},
};

use super::{filter::Filter, plan::Plan, stage::Fault};
use crate::{config::Layer, sys::privileges};

/// The limits that init and server share (setrlimit(2)), and a keyring of their own.
pub(super) fn limit(plan: &Plan) -> Result<(), Fault> {
    unless_optional(plan, Layer::Rlimits, || {
        for (resource, most) in [
            (Resource::RLIMIT_CORE, 0),
            (Resource::RLIMIT_NOFILE, MAX_FILES),
            (Resource::RLIMIT_MSGQUEUE, 0),
            (Resource::RLIMIT_RTPRIO, 0),
            (Resource::RLIMIT_MEMLOCK, MAX_LOCKED),
        ] {
            // Down only: raising needs what nobody here has.
            let (_, hard) = getrlimit(resource)?;
            let most = most.min(hard);
            setrlimit(resource, most, most)?;
        }
        Ok(())
    })?;
    unless_optional(plan, Layer::Privileges, privileges::new_session_keyring)
}

/// Drops capabilities and the way to new ones.
pub(super) fn give_up(plan: &Plan) -> Result<(), Fault> {
    unless_optional(plan, Layer::Privileges, || {
        privileges::drop_capabilities()?;
        prctl::set_no_new_privs()?;
        Ok(())
    })
}

/// Binds this process to the system calls of the profile; the last thing before exec.
pub(super) fn bind(plan: &Plan, filter: &Filter) -> Result<(), Fault> {
    unless_optional(plan, Layer::Seccomp, || {
        filter.apply().map_err(io::Error::other)
    })
}

fn unless_optional(
    plan: &Plan,
    layer: Layer,
    apply: impl FnOnce() -> io::Result<()>,
) -> Result<(), Fault> {
    match apply() {
        Err(error) if !plan.optional.contains(&layer) => {
            Err(Fault::of(layer, "this host refuses it", error))
        }
        _ => Ok(()),
    }
}

/// Open files of one process.
const MAX_FILES: u64 = 65_536;
/// Bytes that cannot be swapped out.
const MAX_LOCKED: u64 = 8 << 20;

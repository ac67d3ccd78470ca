//! Giving up: limits, capabilities, new privileges, system calls.

use std::io;

use nix::sys::{
    prctl,
    resource::{Resource, getrlimit, setrlimit},
};

use super::{filter::Filter, plan::Plan, stage::Fault};
use crate::{config::Layer, sys::privileges};

/// The limits that init and server share (setrlimit(2)), and a keyring of their own.
pub(super) fn limit(plan: &Plan, skipped: &mut Vec<Fault>) -> Result<(), Fault> {
    unless_optional(plan, skipped, Layer::Rlimits, || {
        for (resource, most) in [
            (Resource::RLIMIT_CORE, NO_CORE),
            (Resource::RLIMIT_NOFILE, MAX_FILES),
            // Counted in the child's own user namespace, init and all threads included.
            // The cgroup says it, too; this holds where there is none (probe-23).
            (Resource::RLIMIT_NPROC, plan.cgroup.tasks.saturating_add(1)),
            (Resource::RLIMIT_SIGPENDING, MAX_SIGNALS),
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
    unless_optional(
        plan,
        skipped,
        Layer::Privileges,
        privileges::new_session_keyring,
    )
}

/// Drops capabilities and the way to new ones.
pub(super) fn give_up(plan: &Plan, skipped: &mut Vec<Fault>) -> Result<(), Fault> {
    unless_optional(plan, skipped, Layer::Privileges, || {
        // podman makes its container with those of this user namespace, and drops them there.
        if !plan.is_podman {
            privileges::drop_capabilities()?;
        }
        prctl::set_no_new_privs()?;
        Ok(())
    })
}

/// Binds this process, and the server that it makes, to the system calls of the profile.
pub(super) fn bind(plan: &Plan, filter: &Filter, skipped: &mut Vec<Fault>) -> Result<(), Fault> {
    if plan.is_podman {
        // It is given the same profile, and binds its container to it.
        return Ok(());
    }
    unless_optional(plan, skipped, Layer::Seccomp, || {
        filter.apply().map_err(io::Error::other)
    })
}

/// Applies a layer; what an optional one lacks is noted, and goes on without.
pub(super) fn unless_optional(
    plan: &Plan,
    skipped: &mut Vec<Fault>,
    layer: Layer,
    apply: impl FnOnce() -> io::Result<()>,
) -> Result<(), Fault> {
    let Err(error) = apply() else { return Ok(()) };
    let mut fault = Fault::of(layer, "this host refuses it", error);
    if let Some(cure) = cure(layer) {
        fault.reason.push_str(&format!("; {cure}"));
    }
    if plan.optional.contains(&layer) {
        skipped.push(fault);
        Ok(())
    } else {
        Err(fault.of_required(layer))
    }
}

/// What to do where this kernel, or what is around thv, refuses a layer. That of Landlock
/// knows more of its cause.
fn cure(layer: Layer) -> Option<&'static str> {
    match layer {
        Layer::Privileges => {
            Some("let capset(2), prctl(2) and keyctl(2) through what is around thv")
        }
        Layer::Rlimits => Some("let prlimit(2) through what is around thv"),
        Layer::Seccomp => Some(
            "a kernel with CONFIG_SECCOMP_FILTER is needed, and seccomp(2) in what is around thv",
        ),
        Layer::Landlock | Layer::Namespaces | Layer::Root | Layer::Cgroup => None,
    }
}

/// Bytes of a core dump: less than any has, so no file is written. Not 0: a kernel that gives
/// dumps to a program, which runs as root of the host, does so whatever the limit (core(5)),
/// but for this one, by which it knows that there is to be none (probe-26).
const NO_CORE: u64 = 1;
/// Open files of one process.
const MAX_FILES: u64 = 65_536;
/// Signals that wait for a user.
const MAX_SIGNALS: u64 = 4_096;
/// Bytes that cannot be swapped out.
const MAX_LOCKED: u64 = 8 << 20;

//! Own users, mounts, processes, network, IPC, names and cgroups (namespaces(7)).

use std::{
    fs,
    io::{self, Write as _},
};

use nix::{
    mount::{MsFlags, mount},
    sys::{prctl, signal::Signal},
    unistd::{Gid, Uid, sethostname},
};

use super::{
    plan::{ID, Plan},
    stage::Fault,
};
use crate::{
    config::{Layer, Network},
    sys::beside::{self, Beside},
};

/// What a child is cloned into. All but the network: that of its own is made by `settle`.
pub const FLAGS: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP;

/// Makes the new namespaces a place to work in.
/// `uid` and `gid` are the runner's.
///
/// Its network takes the kernel longest: it is under way when this returns, for [`enter`].
pub(super) fn settle(plan: &Plan, (uid, gid): (Uid, Gid)) -> Result<Option<Beside>, Fault> {
    let fault = |what: &str, error: io::Error| Fault::of(Layer::Namespaces, what, error);
    // The runner's end is this sandbox's end (probe-78).
    prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|error| fault("tying its life to the runner's", error.into()))?;
    // Whoever gave up root is not dumpable, and may not write its own maps.
    prctl::set_dumpable(true).map_err(|error| fault("becoming dumpable", error.into()))?;
    // First of all: nothing takes longer, and it needs none of what follows.
    let network = match plan.network {
        Network::Own(_) => Some(beside::new_network().map_err(no_network)?),
        Network::Host => None,
    };
    fs::write("/proc/self/setgroups", "deny")
        .map_err(|error| fault("refusing supplementary groups", error))?;
    // podman wants to be root of the namespace in which it makes its container.
    let id = if plan.is_podman { 0 } else { ID };
    map("/proc/self/uid_map", id, uid.as_raw())
        .map_err(|error| fault("mapping the user", error))?;
    map("/proc/self/gid_map", id, gid.as_raw())
        .map_err(|error| fault("mapping the group", error))?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .map_err(|error| fault("making the mounts private", error.into()))?;
    sethostname(&plan.hostname).map_err(|error| fault("naming the host", error.into()))?;
    Ok(network)
}

/// One user or group inside is one outside (user_namespaces(7)). In one write, as that wants it.
fn map(file: &str, inside: u32, outside: u32) -> io::Result<()> {
    let mut line = [0; LINE];
    let mut rest = &mut line[..];
    write!(rest, "{inside} {outside} 1")?;
    let unused = rest.len();
    fs::write(file, &line[..LINE - unused])
}

/// Goes into the network that was made meanwhile, whose loopback is up.
pub(super) fn enter(network: Beside) -> Result<(), Fault> {
    network.enter_network().map_err(no_network)
}

fn no_network(error: io::Error) -> Fault {
    let cure = match error.raw_os_error() {
        Some(libc::ENOSPC) => "; allow some with `sysctl user.max_net_namespaces=15000`",
        Some(libc::EPERM | libc::EACCES) => {
            "; what is around thv (a container, a unit's RestrictNamespaces=) must allow networks of its own"
        }
        _ => "",
    };
    Fault {
        layer: Layer::Namespaces.name().to_owned(),
        reason: format!("making a network: {error}{cure}"),
    }
}

/// Bytes of two numbers, and some.
const LINE: usize = 32;

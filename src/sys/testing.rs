//! What tests of several rooms do to their own thread.

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Gives this thread an empty `/run` of its own, away from the others' mounts; or says why not.
pub(crate) fn own_run() -> Result<(), String> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
        .and_then(|()| mount(Some("run"), "/run", Some("tmpfs"), MsFlags::empty(), none))
        .map_err(|error| format!("a mount namespace of our own needs root here ({error})"))
}

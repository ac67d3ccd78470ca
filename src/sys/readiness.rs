//! Readiness of a descriptor that tokio has no type for.

use std::{io, os::fd::OwnedFd};

use tokio::io::unix::AsyncFd;

/// Registers a non-blocking descriptor with the running tokio runtime.
pub(crate) fn readiness(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` names the same open descriptor for as long as it
    // lives, and `AsyncFd` owns it and deregisters before it is closed.
    unsafe { AsyncFd::register(descriptor) }.map_err(Into::into)
}

//! Descriptors that come with a message.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::sys::socket::{ControlMessageOwned, RecvMsg, SockFlag, accept4};

/// Accepts a connection, non-blocking and closed at exec (accept4(2)).
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = accept4(listener.as_raw_fd(), flags)?;
    // SAFETY: the kernel has just made this descriptor for the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(socket) })
}

/// The descriptors of a received message (unix(7), `SCM_RIGHTS`), owned.
///
/// Takes the message by value, so that they are taken over once.
pub(crate) fn received_descriptors<S>(message: RecvMsg<'_, '_, S>) -> io::Result<Vec<OwnedFd>> {
    let mut owned = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = part {
            for descriptor in descriptors {
                // SAFETY: the kernel has just installed this descriptor for this
                // process with this message, which is consumed here, so nobody
                // else owns or closes it.
                owned.push(unsafe { OwnedFd::from_raw_fd(descriptor) });
            }
        }
    }
    Ok(owned)
}

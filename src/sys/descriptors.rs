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

/// Makes a connected TCP socket one that can be connected anew (connect(2), `AF_UNSPEC`);
/// what it was connected to hears a reset, if it has not heard the end.
pub(crate) fn disconnect(socket: BorrowedFd<'_>) -> io::Result<()> {
    let nobody = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: `socket` is borrowed, hence open throughout; the kernel reads `length`
    // bytes of `nobody`, which is that long and lives until the call returns.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, length) };
    super::done(result.into())
}

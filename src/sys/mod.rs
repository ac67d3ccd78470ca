//! The only `unsafe` code: one system call a function, safe at its face.
#![allow(
    unsafe_code,
    reason = "this room is where it stands, each use with its proof"
)]

pub(crate) mod beside;
mod descriptors;
mod entropy;
pub(crate) mod landlock;
pub(crate) mod memfd;
pub(crate) mod memory;
pub(crate) mod mounts;
pub(crate) mod network;
pub(crate) mod privileges;
pub(crate) mod process;
pub(crate) mod random;
mod readiness;
mod stack;
#[cfg(test)]
pub(crate) mod testing;

pub(crate) use descriptors::{accept, disconnect, received_descriptors};
pub(crate) use entropy::is_random;
pub(crate) use readiness::readiness;

/// What a call that answers zero or an error has answered.
fn done(result: libc::c_long) -> std::io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

//! Files, signals and abstract sockets once more, by Landlock (landlock(7)).
//!
//! The root and the namespaces say the same already; this holds where one of
//! them has a hole. Whatever is handled and not allowed below is refused.

use std::{io, os::fd::AsFd, path::Path};

use nix::fcntl::AT_FDCWD;

use super::{
    plan::{Access, Entry, Plan},
    privileges::unless_optional,
    stage::Fault,
};
use crate::{
    config::Layer,
    sys::{landlock, mounts},
};

/// Binds this process to what the plan lets it write. Inside the new root, without new privileges.
pub(super) fn bind(plan: &Plan, skipped: &mut Vec<Fault>) -> Result<(), Fault> {
    if plan.is_podman {
        return bind_scopes(plan, skipped);
    }
    unless_optional(plan, skipped, Layer::Landlock, || {
        let version = landlock::version().map_err(|error| {
            let (what, cure) = match error.kind() {
                io::ErrorKind::PermissionDenied => (
                    "a filter around this service refuses the calls of Landlock",
                    "let landlock_create_ruleset(2) and its kin through (containers: seccomp profile)",
                ),
                _ => (
                    "the kernel has no Landlock",
                    "add `landlock` to the kernel's `lsm=`",
                ),
            };
            io::Error::other(format!("{what} ({error}); {cure}"))
        })?;
        let handled = handled(version);
        let scopes = if version >= SCOPES_SINCE {
            SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS
        } else {
            0
        };
        let ruleset = landlock::ruleset(handled, scopes)?;
        let allow = |at: &Path, rights: u64| {
            let place = mounts::open_place(AT_FDCWD, at, mounts::Follow::Yes)?;
            landlock::allow(ruleset.as_fd(), place.as_fd(), rights & handled)
        };
        allow(Path::new("/"), READ)?;
        for entry in &plan.root {
            match entry {
                Entry::Scratch { at, .. }
                | Entry::Bind {
                    at,
                    access: Access::Writable,
                    ..
                } => allow(at, READ | WRITE)?,
                Entry::Bind {
                    at,
                    access: Access::Device,
                    ..
                } => allow(at, READ_FILE | WRITE_FILE | TRUNCATE)?,
                Entry::Processes { at } => allow(at, READ | WRITE_FILE | TRUNCATE)?,
                Entry::Directory { .. }
                | Entry::File { .. }
                | Entry::Link { .. }
                | Entry::Secret { .. }
                | Entry::Bind { .. } => {}
            }
        }
        landlock::restrict(ruleset.as_fd())
    })
}

/// Signals and abstract sockets alone. Whoever is bound in files can mount nothing, and podman
/// must (landlock(7)): of those its container is kept by the root that podman makes it, and
/// podman by its own.
fn bind_scopes(plan: &Plan, skipped: &mut Vec<Fault>) -> Result<(), Fault> {
    // Where the kernel knows no scopes there is nothing of it that podman can be bound by.
    if !landlock::version().is_ok_and(|version| version >= SCOPES_SINCE) {
        return Ok(());
    }
    unless_optional(plan, skipped, Layer::Landlock, || {
        let ruleset = landlock::ruleset(0, SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS)?;
        landlock::restrict(ruleset.as_fd())
    })
}

/// Every right that this version knows; without the nodes of devices, which are in no rule.
fn handled(version: u32) -> u64 {
    let mut rights = READ | WRITE | MAKE_CHARACTER_DEVICE | MAKE_BLOCK_DEVICE;
    // Before version 2 what REFER allows is never allowed.
    for (since, right) in [(2, REFER), (3, TRUNCATE), (5, DEVICE_IOCTL)] {
        if version >= since {
            rights |= right;
        } else {
            rights &= !right;
        }
    }
    rights
}

const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIRECTORY: u64 = 1 << 3;
const REMOVE_DIRECTORY: u64 = 1 << 4;
const REMOVE_FILE: u64 = 1 << 5;
const MAKE_CHARACTER_DEVICE: u64 = 1 << 6;
const MAKE_DIRECTORY: u64 = 1 << 7;
const MAKE_FILE: u64 = 1 << 8;
const MAKE_SOCKET: u64 = 1 << 9;
const MAKE_PIPE: u64 = 1 << 10;
const MAKE_BLOCK_DEVICE: u64 = 1 << 11;
const MAKE_LINK: u64 = 1 << 12;
/// Links and renames from one directory to another.
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const DEVICE_IOCTL: u64 = 1 << 15;

const READ: u64 = EXECUTE | READ_FILE | READ_DIRECTORY;
const WRITE: u64 = WRITE_FILE
    | REMOVE_DIRECTORY
    | REMOVE_FILE
    | MAKE_DIRECTORY
    | MAKE_FILE
    | MAKE_SOCKET
    | MAKE_PIPE
    | MAKE_LINK
    | REFER
    | TRUNCATE;

const SCOPES_SINCE: u32 = 6;
const SCOPE_ABSTRACT_SOCKETS: u64 = 1;
const SCOPE_SIGNALS: u64 = 1 << 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_is_asked_only_for_what_its_version_knows() {
        assert_eq!(handled(1), (1 << 13) - 1);
        assert_eq!(handled(2), (1 << 14) - 1);
        assert_eq!(handled(3), (1 << 15) - 1);
        assert_eq!(handled(4), handled(3));
        assert_eq!(handled(5), (1 << 16) - 1);
        assert_eq!(handled(9), handled(5));
    }
}

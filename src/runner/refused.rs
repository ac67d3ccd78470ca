//! Why no namespaces can be made here, and what would let them.

use std::{fs, io, path::Path};

use nix::{
    sys::wait::{WaitStatus, waitpid},
    unistd::ForkResult,
};

use super::Person;
use crate::{
    config::Layer,
    sandbox::{self, Fault},
    sys::process::{self, Cloned},
};

/// The fault of a child whose namespaces were refused with `error`.
pub(super) fn no_namespaces(error: &io::Error) -> Fault {
    let cure = cure(error, |name| {
        let text = fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
        Some(text.trim().to_owned())
    });
    Fault {
        layer: Layer::Namespaces.name().to_owned(),
        reason: format!("making namespaces: {error}; {cure}"),
    }
}

/// Why those of a sandbox are refused to `person`, or to the caller; nothing where they are not.
/// Tries it. Only while there is one thread.
pub fn are_namespaces_refused(person: Option<&Person>) -> io::Result<Option<Fault>> {
    let ended = match process::fork()? {
        ForkResult::Child => process::leave(try_them(person)),
        ForkResult::Parent { child } => waitpid(child, None)?,
    };
    Ok(match ended {
        WaitStatus::Exited(_, 0) => None,
        WaitStatus::Exited(_, number) => Some(no_namespaces(&io::Error::from_raw_os_error(number))),
        // By a filter that ends whoever asks, most likely.
        _ => Some(no_namespaces(&io::Error::from_raw_os_error(libc::ENOSYS))),
    })
}

/// The error's number, or zero.
fn try_them(person: Option<&Person>) -> i32 {
    if let Some(person) = person
        && person.become_for_good().is_err()
    {
        return libc::EPERM;
    }
    match process::clone_process(sandbox::FLAGS | libc::CLONE_NEWNET, None) {
        Ok(Cloned::Child) => process::leave(0),
        Ok(Cloned::Parent { pid, .. }) => {
            let _ = waitpid(pid, None);
            0
        }
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    }
}

/// `setting` reads one of sysctl(8), by its path.
fn cure(error: &io::Error, setting: impl Fn(&str) -> Option<String>) -> String {
    let is = |name: &str, value: &str| setting(name).as_deref() == Some(value);
    match error.raw_os_error() {
        Some(libc::ENOSPC) => {
            let none = KINDS.iter().find(|kind| is(&most(kind), "0"));
            let (kind, said) = match none {
                Some(kind) => (*kind, format!("`/proc/sys/{}` is 0", most(kind))),
                None => ("user", "there are as many as there may be".to_owned()),
            };
            format!("{said}: allow some with `sysctl -w user.max_{kind}_namespaces=15000`")
        }
        Some(libc::EPERM | libc::EACCES) if is("kernel/unprivileged_userns_clone", "0") => {
            "`/proc/sys/kernel/unprivileged_userns_clone` is 0: \
             `sysctl -w kernel.unprivileged_userns_clone=1`"
                .to_owned()
        }
        Some(libc::EPERM | libc::EACCES)
            if is("kernel/apparmor_restrict_unprivileged_userns", "1") =>
        {
            "`/proc/sys/kernel/apparmor_restrict_unprivileged_userns` is 1, and no AppArmor profile \
             lets thv: `thv doctor` says how to install it"
                .to_owned()
        }
        Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => {
            "no setting of this host forbids it, so what is around thv does: a container's seccomp \
             profile must let clone3, unshare and mount through, a unit must not have RestrictNamespaces="
                .to_owned()
        }
        _ => "see `thv doctor` and user_namespaces(7)".to_owned(),
    }
}

fn most(kind: &str) -> String {
    format!("user/max_{kind}_namespaces")
}

/// Those of a sandbox, as their limits are named.
const KINDS: [&str; 7] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_that_forbids_them_is_named() {
        let said = |number, settings: &[(&str, &str)]| {
            cure(&io::Error::from_raw_os_error(number), |name| {
                let of_name = settings.iter().find(|(known, _)| *known == name);
                of_name.map(|(_, value)| (*value).to_owned())
            })
        };
        let debian = "kernel/unprivileged_userns_clone";
        let ubuntu = "kernel/apparmor_restrict_unprivileged_userns";
        for (number, settings, words) in [
            (
                libc::ENOSPC,
                &[("user/max_user_namespaces", "0")][..],
                &[
                    "max_user_namespaces` is 0",
                    "user.max_user_namespaces=15000",
                ][..],
            ),
            (
                libc::ENOSPC,
                &[
                    ("user/max_user_namespaces", "9"),
                    ("user/max_net_namespaces", "0"),
                ],
                &["max_net_namespaces` is 0", "user.max_net_namespaces=15000"],
            ),
            (libc::ENOSPC, &[], &["as many as there may be"]),
            (
                libc::EPERM,
                &[(debian, "0")],
                &["kernel.unprivileged_userns_clone=1"],
            ),
            (
                libc::EACCES,
                &[(debian, "1"), (ubuntu, "1")],
                &["thv doctor"],
            ),
            (libc::EPERM, &[(debian, "1"), (ubuntu, "0")], &["seccomp"]),
            (libc::ENOSYS, &[], &["clone3", "RestrictNamespaces="]),
            (libc::ENOMEM, &[], &["user_namespaces(7)"]),
        ] {
            let said = said(number, settings);
            assert!(
                words.iter().all(|word| said.contains(word)),
                "{number}: {said}"
            );
        }
    }
}

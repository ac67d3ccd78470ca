//! Users of this host, as the kernel names them (`mode = "peer"`; unix(7), SO_PEERCRED).

use std::ffi::CString;

use nix::{
    errno::Errno,
    unistd::{Gid, Group, Uid, User, getgrouplist},
};

use super::{AuthError, Identity};

/// The user and group of the process at the other end of a Unix socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LocalPeer {
    pub uid: u32,
    pub gid: u32,
}

/// The identity of a local user. Asks the host's user database, which may take a while.
/// While that cannot answer there is none: a policy that forbids a name or a group would
/// not know the number.
pub(super) fn identity(peer: LocalPeer) -> Result<Identity, AuthError> {
    let user = known(User::from_uid(Uid::from_raw(peer.uid)))?;
    let mut gids = vec![Gid::from_raw(peer.gid)];
    if let Some(user) = &user {
        let name = CString::new(user.name.as_str()).map_err(|_| away())?;
        gids.extend(getgrouplist(&name, user.gid).map_err(|_| away())?);
    }
    let mut groups = gids
        .into_iter()
        .map(group_name)
        .collect::<Result<Vec<_>, _>>()?;
    groups.sort_unstable();
    groups.dedup();
    // One without a name goes by its number, which is no user's name (useradd(8)).
    let subject = user.map_or_else(|| peer.uid.to_string(), |user| user.name);
    Ok(Identity {
        groups: groups[..].into(),
        ..Identity::user(ISSUER, &subject)
    })
}

/// The identity of whoever connects, asked for on a thread where waiting harms nobody.
pub(super) async fn identify(peer: Option<LocalPeer>) -> Result<Identity, AuthError> {
    let peer = peer.ok_or(AuthError::Missing)?;
    tokio::task::spawn_blocking(move || identity(peer))
        .await
        .unwrap_or_else(|_| Err(away()))
}

fn group_name(gid: Gid) -> Result<String, AuthError> {
    let group = known(Group::from_gid(gid))?;
    Ok(group.map_or_else(|| gid.to_string(), |group| group.name))
}

/// What the user database says, if it says anything; some of its modules report
/// an error where there is no such entry (getpwnam(3), ERRORS).
fn known<T>(found: Result<Option<T>, Errno>) -> Result<Option<T>, AuthError> {
    match found {
        Ok(found) => Ok(found),
        Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF | Errno::EPERM) => Ok(None),
        Err(_) => Err(away()),
    }
}

fn away() -> AuthError {
    AuthError::IssuerDown {
        issuer: ISSUER.to_owned(),
        retry_after: RETRY,
    }
}

/// Seconds that callers are told to wait while the user database is away.
const RETRY: u64 = 5;
/// The issuer of local users: no URL, so no provider can speak for them.
pub const ISSUER: &str = "unix";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_a_name_and_groups() {
        let root = identity(LocalPeer { uid: 0, gid: 0 }).unwrap();
        assert_eq!((root.issuer(), root.subject()), ("unix", "root"));
        assert!(root.groups().contains("root"));
        assert_eq!(root.kind(), crate::auth::Kind::User);
    }

    #[test]
    fn a_user_without_a_name_goes_by_its_number() {
        let nobody_knows = identity(LocalPeer {
            uid: 3_999_999_999,
            gid: 3_999_999_999,
        })
        .unwrap();
        assert_eq!(nobody_knows.subject(), "3999999999");
        assert_eq!(nobody_knows.groups(), ["3999999999"]);
    }

    #[tokio::test]
    async fn nobody_comes_without_a_socket_that_says_who() {
        assert_eq!(identify(None).await, Err(AuthError::Missing));
    }

    /// A user database that is away must not turn a user whom policies forbid into a number
    /// that they do not know.
    #[test]
    fn a_user_database_that_does_not_answer_is_not_one_without_the_user() {
        for unknown in [Errno::ENOENT, Errno::ESRCH, Errno::EBADF, Errno::EPERM] {
            assert_eq!(known::<Group>(Err(unknown)), Ok(None), "{unknown}");
        }
        for away in [Errno::EIO, Errno::EMFILE, Errno::EAGAIN, Errno::ETIMEDOUT] {
            assert!(
                matches!(known::<Group>(Err(away)), Err(AuthError::IssuerDown { .. })),
                "{away}"
            );
        }
    }
}

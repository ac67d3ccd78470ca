//! Users of this host, as the kernel names them (`mode = "peer"`; unix(7), SO_PEERCRED).

use std::ffi::CString;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use super::{AuthError, Identity, Kind};

/// The user and group of the process at the other end of a Unix socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LocalPeer {
    pub uid: u32,
    pub gid: u32,
}

/// The identity of a local user. Asks the host's user database, which may take a while.
pub(super) fn identity(peer: LocalPeer) -> Identity {
    let user = User::from_uid(Uid::from_raw(peer.uid)).ok().flatten();
    let mut gids = vec![Gid::from_raw(peer.gid)];
    if let Some(user) = &user
        && let Ok(name) = CString::new(user.name.as_str())
        && let Ok(groups) = getgrouplist(&name, user.gid)
    {
        gids.extend(groups);
    }
    let mut groups: Vec<_> = gids.into_iter().map(group_name).collect();
    groups.sort_unstable();
    groups.dedup();
    Identity {
        issuer: ISSUER.to_owned(),
        // One without a name goes by its number, which is no user's name (useradd(8)).
        subject: user.map_or_else(|| peer.uid.to_string(), |user| user.name),
        kind: Kind::User,
        client: None,
        scopes: Vec::new(),
        groups,
        expires_at: u64::MAX,
    }
}

/// The identity of whoever connects, asked for on a thread where waiting harms nobody.
pub(super) async fn identify(peer: Option<LocalPeer>) -> Result<Identity, AuthError> {
    let peer = peer.ok_or(AuthError::Missing)?;
    tokio::task::spawn_blocking(move || identity(peer))
        .await
        .map_err(|_| AuthError::Missing)
}

fn group_name(gid: Gid) -> String {
    Group::from_gid(gid)
        .ok()
        .flatten()
        .map_or_else(|| gid.to_string(), |group| group.name)
}

/// The issuer of local users: no URL, so no provider can speak for them.
pub(super) const ISSUER: &str = "unix";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_a_name_and_groups() {
        let root = identity(LocalPeer { uid: 0, gid: 0 });
        assert_eq!((root.issuer(), root.subject()), ("unix", "root"));
        assert!(root.groups().contains(&"root".to_owned()));
        assert_eq!(root.kind(), Kind::User);
    }

    #[test]
    fn a_user_without_a_name_goes_by_its_number() {
        let nobody_knows = identity(LocalPeer {
            uid: 3_999_999_999,
            gid: 3_999_999_999,
        });
        assert_eq!(nobody_knows.subject(), "3999999999");
        assert_eq!(nobody_knows.groups(), ["3999999999"]);
    }

    #[tokio::test]
    async fn nobody_comes_without_a_socket_that_says_who() {
        assert_eq!(identify(None).await, Err(AuthError::Missing));
    }
}

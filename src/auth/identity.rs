//! Who a caller is, once a token has been checked.

use std::{
    fmt,
    hash::{Hash, Hasher},
};

use aws_lc_rs::digest;

use super::Texts;

/// A validated caller.
///
/// Only `auth` makes one (the constructor is private to it), so holding one is
/// the proof that a token was validated against the configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    pub(super) issuer: String,
    pub(super) subject: String,
    pub(super) kind: Kind,
    pub(super) client: Option<String>,
    pub(super) scopes: Texts,
    pub(super) groups: Texts,
    pub(super) expires_at: u64,
    /// Of kind, issuer and subject.
    pub(super) principal_key: PrincipalKey,
}

/// Whom the subject names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A person or another end user.
    User,
    /// A program acting for itself (client credentials, RFC 9700 §4.15).
    Client,
}

impl Identity {
    /// A user of whom nothing else is known, for ever.
    pub(super) fn user(issuer: &str, subject: &str) -> Self {
        Self {
            issuer: issuer.to_owned(),
            subject: subject.to_owned(),
            kind: Kind::User,
            client: None,
            scopes: Texts::default(),
            groups: Texts::default(),
            expires_at: u64::MAX,
            principal_key: PrincipalKey::of(Kind::User, issuer, subject),
        }
    }

    /// The issuer, verbatim.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The subject, verbatim; unique only within its issuer.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The OAuth client that the token was issued to, where the token says so.
    pub fn client(&self) -> Option<&str> {
        self.client.as_deref()
    }

    pub fn scopes(&self) -> &Texts {
        &self.scopes
    }

    pub fn groups(&self) -> &Texts {
        &self.groups
    }

    /// Unix time in seconds after which the token is no longer good.
    pub fn expires_at(&self) -> u64 {
        self.expires_at
    }

    /// Whether both are the same principal through the same client: what a
    /// session is bound to (mcp-L10).
    pub fn owns_session_of(&self, other: &Self) -> bool {
        self.issuer == other.issuer
            && self.subject == other.subject
            && self.kind == other.kind
            && self.client == other.client
    }

    /// The name of this principal's own directory and children.
    pub fn principal_key(&self) -> PrincipalKey {
        self.principal_key
    }
}

/// A fixed-size name for a principal, fit for a path. Displayed as lower-case hex.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PrincipalKey([u8; 32]);

impl Hash for PrincipalKey {
    /// It is a hash: a part of it tells one from the other as well as all of it.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.0[..8]);
    }
}

impl PrincipalKey {
    /// SHA-256 of kind, issuer and subject. Made once a token, as it costs more than to look up
    /// what is kept under it.
    pub(super) fn of(kind: Kind, issuer: &str, subject: &str) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        let kind = match kind {
            Kind::User => "user",
            Kind::Client => "client",
        };
        for part in [kind, issuer, subject] {
            // Length first, so that no two triples give the same bytes.
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        let mut key = [0; 32];
        key.copy_from_slice(context.finish().as_ref());
        Self(key)
    }

    /// Of what belongs to all of a server's users: no hash of one is this.
    pub const EVERYBODY: Self = Self([0; 32]);
}

impl fmt::Display for PrincipalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
impl Identity {
    /// For the tests of other modules: a user without groups or scopes.
    pub(crate) fn example(issuer: &str, subject: &str) -> Self {
        Self::user(issuer, subject)
    }

    pub(crate) fn with(
        mut self,
        kind: Kind,
        client: Option<&str>,
        groups: &[&str],
        scopes: &[&str],
    ) -> Self {
        (self.kind, self.client) = (kind, client.map(str::to_owned));
        self.principal_key = PrincipalKey::of(kind, &self.issuer, &self.subject);
        (self.groups, self.scopes) = (groups.into(), scopes.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// mcp-L10: a session is of one issuer's, one subject's, one kind's and one program's; what its token says besides may
    /// change.
    #[test]
    fn a_session_is_its_users_through_one_program() {
        let with = |identity: Identity, kind, client| identity.with(kind, client, &[], &[]);
        let alice = || Identity::example("https://a", "alice");
        let owner = with(alice(), Kind::User, Some("editor"));
        let later = Identity {
            expires_at: 7,
            ..alice().with(Kind::User, Some("editor"), &["admins"], &["write"])
        };
        assert!(owner.owns_session_of(&owner) && owner.owns_session_of(&later));
        for (what, other) in [
            ("program", with(alice(), Kind::User, Some("other"))),
            ("no program", with(alice(), Kind::User, None)),
            ("kind", with(alice(), Kind::Client, Some("editor"))),
            (
                "subject",
                with(
                    Identity::example("https://a", "bob"),
                    Kind::User,
                    Some("editor"),
                ),
            ),
            (
                "issuer",
                with(
                    Identity::example("https://b", "alice"),
                    Kind::User,
                    Some("editor"),
                ),
            ),
        ] {
            assert!(!owner.owns_session_of(&other), "{what}");
            assert!(!other.owns_session_of(&owner), "{what}");
        }
    }
}

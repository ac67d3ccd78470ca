//! A server's name: the one word that unit, path, user and journal share.

use std::fmt;

use serde::Deserialize;

/// A server's name: the `%i` in `thv@%i.socket`.
///
/// Invariant: 1–26 bytes of `[a-z0-9-]`, not starting with `-`. 26, because the
/// users `thvg-NAME` and `thvr-NAME` must fit into 31 characters. (Units say
/// `%i`; `%I` would read `-` as `/`.)
#[derive(Clone, Debug, Eq, Hash, PartialEq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct ServerName(String);

impl ServerName {
    /// Reads a name, or says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        let ok = (1..=MAX_LEN).contains(&text.len())
            && !text.starts_with('-')
            && text
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadName(text.chars().take(64).collect()))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for ServerName {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        Self::parse(&text)
    }
}

impl std::str::FromStr for ServerName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        Self::parse(text)
    }
}

/// Not a server's name.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a server's name: 1 to 26 of a-z, 0-9 and -, not starting with -")]
pub struct BadName(String);

const MAX_LEN: usize = 26;

#[cfg(test)]
mod tests {
    use super::ServerName;

    #[test]
    fn a_name_is_what_fits_into_a_unit_a_path_and_a_user() {
        for good in ["a", "github", "9-b", &"a".repeat(26)] {
            assert!(ServerName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a_b", "a.b", "a/b", "ä", &"a".repeat(27)] {
            assert!(ServerName::parse(bad).is_err(), "{bad}");
        }
    }
}

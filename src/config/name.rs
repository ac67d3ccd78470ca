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
            Err(BadName {
                text: text.chars().take(64).collect(),
                meant: meant(text),
            })
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

/// The name in the name of one of its units or of its file, which people write in its place, or in a spelling that no
/// name has.
fn meant(text: &str) -> Option<ServerName> {
    let name = text.rsplit('/').next().unwrap_or(text);
    let name = name.split_once('@').map_or(name, |(_, name)| name);
    let ending = [".service", ".socket", ".toml"]
        .iter()
        .find_map(|ending| name.strip_suffix(ending));
    let name = ending.unwrap_or(name).to_ascii_lowercase();
    let name = name.replace(['_', '.', ' '], "-");
    // What has no letter is no name that anybody meant.
    let is_one = name != text && name.contains(|c: char| c.is_ascii_alphanumeric());
    is_one
        .then(|| ServerName::parse(name.trim_matches('-')).ok())
        .flatten()
}

impl BadName {
    /// The name that was meant, where that can be told.
    pub fn meant(&self) -> Option<&ServerName> {
        self.meant.as_ref()
    }
}

/// Not a server's name.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{text}` is not a server's name: 1 to 26 of a-z, 0-9 and -, not starting with -{}",
    .meant.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
)]
pub struct BadName {
    text: String,
    meant: Option<ServerName>,
}

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

    #[test]
    fn whoever_names_a_unit_or_a_file_is_told_the_servers_name() {
        for long in [
            "thv@github",
            "thv@github.socket",
            "thv-runner@github.service",
            "github.toml",
            "/etc/thv/servers/github.toml",
            "GitHub",
            "thv@GitHub.socket",
            "_github",
        ] {
            let error = ServerName::parse(long).unwrap_err().to_string();
            assert!(error.ends_with("did you mean `github`?"), "{error}");
        }
        let error = ServerName::parse("Git_Hub 2").unwrap_err().to_string();
        assert!(error.ends_with("did you mean `git-hub-2`?"), "{error}");
        for none in [
            "thv@.socket",
            "",
            ".",
            "_",
            "gïthub",
            "A-name-that-is-longer-than-any",
        ] {
            let error = ServerName::parse(none).unwrap_err().to_string();
            assert!(!error.contains("did you mean"), "{error}");
        }
    }
}

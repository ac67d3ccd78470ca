//! What is wrong with the files, in words for the person who wrote them.
//!
//! Called by every part of `config`, and printed by `cli` and `daemon`. Says
//! where, what and what to do; never quotes a value that could be a secret.

use std::{fmt, path::Path, sync::Arc};

use serde::Serialize;

/// Where something stands in a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Place {
    pub(super) file: Arc<Path>,
    /// From 1; 0 means the file as a whole.
    pub(super) line: u32,
    /// From 1, in characters; 0 means the file as a whole.
    pub(super) column: u32,
    /// The way to the key, such as `auth.issuer[0].audience`; empty outside keys.
    pub(super) key: String,
}

impl Place {
    /// The file as a whole.
    pub(super) fn file(file: &Path) -> Self {
        Self {
            file: file.into(),
            line: 0,
            column: 0,
            key: String::new(),
        }
    }

    /// The same file and position, speaking of another key.
    pub(super) fn about(&self, key: &str) -> Self {
        Self {
            key: key.to_owned(),
            ..self.clone()
        }
    }

    /// A problem here.
    pub(super) fn problem(&self, message: impl Into<String>, help: impl Into<String>) -> Problem {
        Problem {
            file: Arc::clone(&self.file),
            line: self.line,
            column: self.column,
            key: self.key.clone(),
            message: message.into(),
            help: help.into(),
        }
    }
}

/// One thing that is wrong, and what to do about it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct Problem {
    /// The file, as a path on this host.
    pub file: Arc<Path>,
    /// From 1; 0 means the file as a whole.
    pub line: u32,
    /// From 1, in characters; 0 means the file as a whole.
    pub column: u32,
    /// The key, such as `auth.issuer[0].audience`; empty where no key is meant.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do; may be empty.
    pub help: String,
}

impl Problem {
    /// A problem of a whole file, for those who find one after loading.
    pub fn of_file(file: &Path, message: impl Into<String>, help: impl Into<String>) -> Self {
        Place::file(file).problem(message, help)
    }
}

/// `file:line:column: key: what is wrong; what to do`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if self.line > 0 {
            write!(f, "{}:{}:", self.line, self.column)?;
        }
        if !self.key.is_empty() {
            write!(f, " {}:", self.key)?;
        }
        write!(f, " {}", self.message)?;
        if !self.help.is_empty() {
            write!(f, "; {}", self.help)?;
        }
        Ok(())
    }
}

/// Everything that is wrong; never empty. Displayed one a line, in file order.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// `Ok` when there is none.
    pub fn check(mut problems: Vec<Problem>) -> Result<(), Self> {
        problems.sort();
        problems.dedup();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(Self(problems))
        }
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    /// The first one, for a log line that has room for one.
    pub fn first(&self) -> &Problem {
        self.0.first().expect("check() makes no empty list")
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl<'a> IntoIterator for &'a Problems {
    type IntoIter = std::slice::Iter<'a, Problem>;
    type Item = &'a Problem;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_reads_as_one_line_that_an_editor_can_jump_to() {
        let place = Place {
            file: Path::new("/etc/a.toml").into(),
            line: 3,
            column: 7,
            key: "auth.mode".into(),
        };
        assert_eq!(
            place.problem("wrong", "do this").to_string(),
            "/etc/a.toml:3:7: auth.mode: wrong; do this"
        );
        assert_eq!(
            Place::file(Path::new("/x"))
                .problem("missing", "")
                .to_string(),
            "/x: missing"
        );
    }
}

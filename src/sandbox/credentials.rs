//! Secrets on their way from the runner's credentials to one child.
//!
//! They stay files until the last moment: opened by the runner, read by the
//! process that becomes the server, and by nobody before it but for those that
//! the server is given as files. Never in a plan, a message or a log.

use std::{
    collections::HashMap,
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt as _,
    },
};

/// Open credentials, by name.
#[derive(Debug, Default)]
pub struct Credentials(HashMap<String, File>);

impl Credentials {
    /// Adds one that is open for reading.
    pub fn add(&mut self, name: &str, file: OwnedFd) {
        self.0.insert(name.to_owned(), file.into());
    }

    /// What they are open by.
    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        self.0.values().map(AsFd::as_fd).collect()
    }

    /// The bytes of one. Reads at places: the descriptor is shared with other children.
    pub(super) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let file = self.0.get(name).ok_or(io::ErrorKind::NotFound)?;
        let mut value = vec![0; MAX_CREDENTIAL + 1];
        let mut length = 0;
        loop {
            match file.read_at(&mut value[length..], length as u64)? {
                0 => break,
                read => length += read,
            }
            if length > MAX_CREDENTIAL {
                return Err(wrong("it is longer than 128 KiB"));
            }
        }
        value.truncate(length);
        Ok(value)
    }

    /// One as `NAME=VALUE`. A final line break is an editor's or `echo`'s, and goes.
    pub(super) fn variable(&self, name: &str, credential: &str) -> io::Result<CString> {
        let mut value = self.read(credential)?;
        if value.ends_with(b"\n") {
            value.pop();
        }
        let mut variable = format!("{name}=").into_bytes();
        variable.append(&mut value);
        if variable.len() >= MAX_VARIABLE {
            return Err(wrong(
                "it is too long for a variable, use `credential-file`",
            ));
        }
        CString::new(variable).map_err(|_| {
            wrong("it has a null byte, which no variable can hold, use `credential-file`")
        })
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Bytes of one credential; the private root has room for several.
const MAX_CREDENTIAL: usize = 128 << 10;
/// Bytes of one variable with its name and its end (execve(2), `MAX_ARG_STRLEN`).
const MAX_VARIABLE: usize = 128 << 10;

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn with(text: &[u8]) -> Credentials {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text).unwrap();
        let mut credentials = Credentials::default();
        credentials.add("key", file.into());
        credentials
    }

    #[test]
    fn a_value_is_its_text_without_the_final_line_break() {
        for (text, value) in [
            (&b"s3cret\n"[..], "A=s3cret"),
            (b"a\n\n", "A=a\n"),
            (b"", "A="),
        ] {
            let credentials = with(text);
            assert_eq!(
                credentials.variable("A", "key").unwrap().to_str(),
                Ok(value)
            );
            assert_eq!(credentials.read("key").unwrap(), text, "a file is as it is");
        }
    }

    #[test]
    fn what_no_variable_can_hold_is_refused_without_being_shown() {
        for text in [
            b"s3\0cret".to_vec(),
            vec![b's'; MAX_VARIABLE],
            vec![b's'; MAX_CREDENTIAL + 1],
        ] {
            let error = with(&text).variable("A", "key").unwrap_err().to_string();
            assert!(!error.contains("s3"), "{error}");
        }
        assert!(with(b"x").variable("A", "other").is_err());
    }
}

//! Why an image cannot be had.

use std::{
    io,
    path::{Path, PathBuf},
};

use http::StatusCode;

use crate::fetch::FetchError;

/// Each says what, where, and what would be right.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("the server has a `command` and no `image`: there is nothing to pull")]
    NoImage,
    #[error("`{}`: {source}{}", path.display(), readable(path, source))]
    Archive { path: PathBuf, source: io::Error },
    #[error("the image's {what}: {why}")]
    Malformed { what: String, why: String },
    #[error(
        "the image's {what} is not what its digest says: {expected} was promised, {found} is there"
    )]
    Digest {
        what: String,
        expected: String,
        found: String,
    },
    #[error("`{url}`: the registry answered {status}; {help}")]
    Answer {
        url: String,
        status: StatusCode,
        help: String,
    },
    #[error("the archive has no `{0}`")]
    Missing(String),
    #[error("the image is for {found}, and this machine is {wanted}")]
    Machine { found: String, wanted: String },
    #[error("a layer holds `{entry}`: {why}")]
    Entry { entry: String, why: String },
    #[error("the image is larger than what is unpacked: {0}")]
    TooLarge(String),
    #[error("`{0}` was not fetched, or another image was since; `thv pull NAME` does both")]
    NotFetched(String),
    #[error("`{url}`: {source}")]
    Fetch { url: String, source: FetchError },
    #[error(
        "`{0}`: the answer was cut off again and again; the next `thv pull` goes on from there"
    )]
    Cut(String),
    #[error("the registry's credential: {0}")]
    Credential(String),
    #[error("`{}`: {source}", path.display())]
    Store { path: PathBuf, source: io::Error },
}

/// What lets the runner's user read an archive.
fn readable(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!(
                "; the runner's user must be able to read it: put it where all may pass, such as /srv, and run `chmod a+r {}`",
                path.display()
            )
        }
        io::ErrorKind::NotFound => {
            "; nothing below /home, /root and /tmp is seen by the unit".to_owned()
        }
        // What it is read with says no more than that it goes no further.
        io::ErrorKind::Other | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => {
            "; is it whole, and an archive as `skopeo copy` or `docker save` writes it?".to_owned()
        }
        _ => String::new(),
    }
}

impl ImageError {
    /// Whether the same question may have a better answer in a moment.
    pub(super) fn is_cut(&self) -> bool {
        match self {
            Self::Cut(_) => true,
            Self::Answer { status, .. } => status.is_server_error(),
            Self::Fetch { source, .. } => matches!(
                source,
                FetchError::Http(_) | FetchError::Silent | FetchError::Connect { .. }
            ),
            _ => false,
        }
    }

    pub(super) fn malformed(what: &str, why: impl Into<String>) -> Self {
        Self::Malformed {
            what: what.to_owned(),
            why: why.into(),
        }
    }

    pub(super) fn refused(entry: &Path, why: impl Into<String>) -> Self {
        Self::Entry {
            // Names in an archive are a stranger's: no control characters reach a terminal.
            entry: entry.to_string_lossy().escape_debug().to_string(),
            why: why.into(),
        }
    }
}

//! What systemd gives a service: sockets by name, a place to report to,
//! credentials and directories.
//!
//! Reads the environment, so it is called first of all, while there is one
//! thread.

mod notify;
mod sockets;

use std::{fs, io, path::PathBuf};

pub use notify::Notifier;
pub use sockets::{SocketError, Wanted, take};

use crate::files;

/// Where systemd put the service's credentials (systemd.exec(5), CREDENTIALS).
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    directory: Option<PathBuf>,
}

impl Credentials {
    pub fn from_environment() -> Self {
        Self {
            directory: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from),
        }
    }

    /// Those in a directory that somebody else has made.
    pub fn within(directory: PathBuf) -> Self {
        Self {
            directory: Some(directory),
        }
    }

    /// Reads one of at most `max` bytes.
    pub fn read(&self, name: &str, max: usize) -> Result<Vec<u8>, CredentialError> {
        let directory = self
            .directory
            .as_ref()
            .ok_or(CredentialError::NoDirectory)?;
        let path = directory.join(name);
        files::read(&path, max).map_err(|source| CredentialError::Unreadable { path, source })
    }

    /// What there is, by name.
    pub fn names(&self) -> Vec<String> {
        let entries = self.directory.iter().filter_map(|it| fs::read_dir(it).ok());
        let names = entries
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.collect()
    }

    /// Where one is, if it is there.
    pub fn look_for(&self, name: &str) -> Result<PathBuf, CredentialError> {
        let directory = self
            .directory
            .as_ref()
            .ok_or(CredentialError::NoDirectory)?;
        let path = directory.join(name);
        match path.metadata() {
            Ok(_) => Ok(path),
            Err(source) => Err(CredentialError::Unreadable { path, source }),
        }
    }
}

/// The service's own writable directory (`StateDirectory=`).
pub fn state_directory() -> Option<PathBuf> {
    std::env::var_os("STATE_DIRECTORY").map(PathBuf::from)
}

/// Why a credential cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("systemd passed no credentials; this is started by its unit, see thv@.service(8)")]
    NoDirectory,
    #[error("`{}`: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
}

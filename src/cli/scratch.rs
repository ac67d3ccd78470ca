//! A configuration root of its own: real files in a directory that is gone afterwards.
//!
//! Used by the demo and by `thv run`, which have no `/etc/thv` to read.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, chown},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{runner::Person, sys::random};

/// A directory that is removed when this is dropped.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// Makes it where temporary files are.
    pub(super) fn new(prefix: &str) -> Result<Self> {
        directory(prefix)
            .map(Self)
            .with_context(|| format!("making a directory in `{}`", std::env::temp_dir().display()))
    }

    /// What stands in for `/` when the configuration is read.
    pub(super) fn root(&self) -> &Path {
        &self.0
    }

    /// Gives all of it to whom this process becomes.
    pub(super) fn give(&self, person: &Person) -> Result<()> {
        give(&self.0, person).with_context(|| format!("giving `{}` away", self.0.display()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn directory(prefix: &str) -> io::Result<PathBuf> {
    let name = random::digits::<8>()?;
    let path = std::env::temp_dir().join(format!("{prefix}-{name}"));
    // Fails if somebody was there before. Nobody else reads it: it may hold values of variables.
    fs::DirBuilder::new().mode(0o700).create(&path)?;
    Ok(path)
}

fn give(path: &Path, person: &Person) -> io::Result<()> {
    let kind = fs::symlink_metadata(path)?;
    if kind.is_symlink() {
        return Ok(());
    }
    if kind.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), person)?;
        }
    }
    chown(path, Some(person.uid()), Some(person.gid()))
}

//! `thv runner-key NAME`: the random key by which a runner knows its own gateway.
//!
//! Run by the runner's socket unit before it listens. Both units load the file
//! as a credential; nobody but root can read the file itself.

use std::{
    fs::{self, DirBuilder, Permissions},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result};

use super::{below, unit};
use crate::{config::ServerName, sys::random};

/// Writes a new key, in one step for whoever reads it.
pub(super) fn run(root: &Path, name: &ServerName) -> Result<ExitCode> {
    let directory = below(root, KEYS);
    let context = || format!("writing the key of `{name}` into `{}`", directory.display());
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .with_context(context)?;
    // The directory may be older than this program's idea of its mode.
    fs::set_permissions(&directory, Permissions::from_mode(0o700)).with_context(context)?;

    let text = random::digits::<KEY_BYTES>().context("getting random bytes")?;

    // A server's name has no dot, so this is no server's key.
    let new = directory.join(format!(".{name}.{}", std::process::id()));
    let key = directory.join(name.as_str());
    unit::write_in_one_step((&key, &new), 0o600, &text).with_context(context)?;
    Ok(ExitCode::SUCCESS)
}

/// Where the units' `LoadCredential=` looks.
const KEYS: &str = "/run/thv/key";

const KEY_BYTES: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_start_of_the_socket_gives_a_new_key_that_only_its_owner_reads() {
        let root = tempfile::tempdir().unwrap();
        let name = ServerName::parse("github").unwrap();
        let file = root.path().join("run/thv/key/github");
        let make = || {
            run(root.path(), &name).unwrap();
            fs::read_to_string(&file).unwrap()
        };
        let (first, second) = (make(), make());
        assert_ne!(first, second);
        assert!(
            first.len() == 64
                && first
                    .bytes()
                    .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        );
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
        assert_eq!(
            fs::read_dir(file.parent().unwrap()).unwrap().count(),
            1,
            "nothing else is left behind"
        );
    }
}

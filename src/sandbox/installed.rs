//! An image that was unpacked, as it stands in the runner's state directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::stage::Fault;
use crate::{config::ImageName, files};

/// What the image itself says of how it is run, and where its root is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Installed {
    /// The name under which it was pulled.
    pub image: String,
    pub digest: String,
    pub entrypoint: Vec<String>,
    pub arguments: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: PathBuf,
    /// Places of the server's own that were made in the tree, to be mounted over.
    #[serde(default)]
    pub prepared: Vec<PathBuf>,
    /// Found beside the record, not in it.
    #[serde(skip)]
    pub root: PathBuf,
}

impl Installed {
    /// The link to the image that is run.
    pub const CURRENT: &str = "current";
    /// The record beside a tree.
    pub const RECORD: &str = "image.json";
    /// The tree that becomes the root.
    pub const TREE: &str = "rootfs";

    /// Where images stand in a state directory.
    pub fn store(state: &Path) -> PathBuf {
        state.join("image")
    }

    /// The current image of a store, if it is the one that is configured.
    pub fn open(store: &Path, name: &ImageName) -> Result<Self, Fault> {
        // The state directory that the store is in is named after its server.
        let server = store.parent().and_then(Path::file_name).unwrap_or_default();
        let fault = |reason: String| Fault {
            layer: "image".to_owned(),
            reason: format!(
                "{reason}; `thv pull {}` unpacks what is configured",
                server.to_string_lossy()
            ),
        };
        // Once, through the link: a pull meanwhile changes where it leads.
        let place = fs::canonicalize(store.join(Self::CURRENT));
        let place = place.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => fault(format!("`{}` is not pulled", name.text)),
            _ => fault(format!("`{}`: {error}", store.display())),
        })?;
        let record = place.join(Self::RECORD);
        let text = files::read(&record, MAX_RECORD)
            .map_err(|error| fault(format!("`{}`: {error}", record.display())))?;
        let mut installed: Self = serde_json::from_slice(&text)
            .map_err(|error| fault(format!("`{}`: {error}", record.display())))?;
        if installed.image != name.text {
            return Err(fault(format!(
                "`{}` is configured, and `{}` was pulled",
                name.text, installed.image
            )));
        }
        installed.root = place.join(Self::TREE);
        Ok(installed)
    }
}

/// Bytes of a record: most of it is what the image says of itself.
const MAX_RECORD: usize = 16 << 20;

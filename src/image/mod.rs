//! Container images, unpacked to be run by our own sandbox.
//!
//! [`fetch`] brings what a registry has into the runner's state directory, as it is.
//! [`pull`] reads that, or an archive that the configuration names, checks every
//! digest, and unpacks its layers. The one never unpacks, the other never asks the
//! network, and neither runs anything. Used by `cli` alone, each in a unit of its own
//! (thv-fetch@NAME.service, thv-pull@NAME.service); the runner reads what
//! `sandbox::Installed` finds.

mod archive;
mod blob;
mod challenge;
mod document;
mod error;
mod layer;
mod registry;
mod tree;
mod zstd;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use archive::Archive;
use document::Image;
pub use error::ImageError;
pub use registry::Progress;

use crate::{config::Config, sandbox::Installed};

/// Fetches the image of `config` from its registry, into a place beside `store`'s images.
///
/// An archive is where it is already. `login` finds the credential of a registry.
pub async fn fetch(
    config: &Config,
    store: &Path,
    login: impl Fn(&str) -> Result<String, String>,
    tell: &mut dyn FnMut(Progress),
) -> Result<(), ImageError> {
    let name = config.image.as_ref().ok_or(ImageError::NoImage)?;
    let Some(repository) = name.repository() else {
        return Ok(());
    };
    let settings = config.registries.get(&repository.registry);
    let settings = settings.cloned().unwrap_or_default();
    let login = settings
        .credential
        .as_deref()
        .map(login)
        .transpose()
        .map_err(ImageError::Credential)?;
    registry::fetch(name, repository, &settings, login, &fetched(store), tell).await
}

/// Where what was fetched lies.
fn fetched(store: &Path) -> PathBuf {
    store.join(FETCHED)
}

/// Unpacks the image of `config` below `store` and makes it the current one.
///
/// What is there already is left as it is.
///
/// What is half done is never current: the tree is built beside, and put in place by
/// one rename. The image before stays until the next pull, for children that run it.
pub fn pull(config: &Config, store: &Path) -> Result<Installed, ImageError> {
    let name = config.image.as_ref().ok_or(ImageError::NoImage)?;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ImageError::Store { path, source }
    };
    fs::create_dir_all(store).map_err(failed(store))?;
    let archive = archive::open(name, &fetched(store))?;
    let image = archive.image(name)?;
    if let Ok(there) = Installed::open(store, name)
        && there.digest == image.installed.digest
        && places(config).all(|path| there.prepared.contains(path))
    {
        return Ok(there);
    }
    let building = store.join("building");
    clear(&building).map_err(failed(&building))?;
    fs::create_dir(&building).map_err(failed(&building))?;
    let installed = unpack(config, &archive, image, &building)?;
    let hex = installed.digest.trim_start_matches("sha256:").to_owned();
    let (place, before) = (store.join(&hex), current(store));
    for old in entries(store).map_err(failed(store))? {
        let keep = old == fetched(store)
            || old == place
            || old == building
            || Some(&old) == before.as_ref();
        if !keep && !old.is_symlink() {
            clear(&old).map_err(failed(&old))?;
        }
    }
    if before.as_ref() == Some(&place) {
        // The same image again, perhaps for other mount points: children run the one that is there.
        let aside = store.join(format!("{hex}.before"));
        clear(&aside).map_err(failed(&aside))?;
        fs::rename(&place, &aside).map_err(failed(&aside))?;
    } else {
        clear(&place).map_err(failed(&place))?;
    }
    fs::rename(&building, &place).map_err(failed(&place))?;
    let link = store.join("new");
    clear(&link).map_err(failed(&link))?;
    std::os::unix::fs::symlink(&hex, &link)
        .and_then(|()| fs::rename(&link, store.join(Installed::CURRENT)))
        .map_err(failed(&link))?;
    Ok(Installed {
        root: place.join(Installed::TREE),
        ..installed
    })
}

fn unpack(
    config: &Config,
    archive: &Archive,
    image: Image,
    into: &Path,
) -> Result<Installed, ImageError> {
    let path = into.join(Installed::TREE);
    let mut tree = tree::Tree::create(&path)?;
    for (index, layer) in image.layers.iter().enumerate() {
        let open = || archive.part(layer);
        layer::apply(&mut tree, &open, &image.diff_ids[index])?;
    }
    let mut installed = image.installed;
    installed.root = path;
    installed.prepared = places(config).cloned().collect();
    prepare(&mut tree, config, &installed)?;
    let text = serde_json::to_vec_pretty(&installed).map_err(io::Error::from);
    let file = into.join(Installed::RECORD);
    text.and_then(|text| fs::write(&file, text))
        .map_err(|source| ImageError::Store { path: file, source })?;
    Ok(installed)
}

/// Makes the places that the sandbox mounts over: the root itself will be read-only.
fn prepare(tree: &mut tree::Tree, config: &Config, image: &Installed) -> Result<(), ImageError> {
    for directory in ["dev", "proc", "sys", "tmp", "run", "etc", "state"] {
        tree.make_directory(Path::new(directory))?;
    }
    for file in ["etc/hosts", "etc/hostname", "etc/resolv.conf"] {
        tree.replace(Path::new(file), b"")?;
    }
    // podman would make it, and the root is read-only.
    if tree.read(Path::new("etc/mtab"), 0)?.is_none() {
        tree.symlink(Path::new("etc/mtab"), Path::new("/proc/mounts"))?;
    }
    // The user that everything runs as has a name, or `whoami` and its like would fail.
    for (file, line) in [
        ("etc/passwd", "server:x:1000:1000::/tmp:/bin/sh\n"),
        ("etc/group", "server:x:1000:\n"),
    ] {
        let file = Path::new(file);
        let mut text = tree.read(file, MAX_ACCOUNTS)?.unwrap_or_default();
        if !text.is_empty() && !text.ends_with(b"\n") {
            text.push(b'\n');
        }
        let known = String::from_utf8_lossy(&text)
            .lines()
            .any(|line| line.split(':').nth(2) == Some("1000"));
        if !known {
            text.extend_from_slice(line.as_bytes());
        }
        tree.replace(file, &text)?;
    }
    let inside = |path: &Path| path.strip_prefix("/").map(Path::to_owned);
    if let Ok(cwd) = inside(&image.cwd) {
        tree.make_directory(&cwd)?;
    }
    for path in places(config) {
        let Ok(at) = inside(path) else { continue };
        if path.is_file() {
            tree.replace(&at, b"")?;
        } else {
            tree.make_directory(&at)?;
        }
    }
    Ok(())
}

/// What of the host is mounted into the tree.
fn places(config: &Config) -> impl Iterator<Item = &PathBuf> {
    config.sandbox.read_only.iter()
}

fn current(store: &Path) -> Option<PathBuf> {
    let target = fs::read_link(store.join(Installed::CURRENT)).ok()?;
    Some(store.join(target))
}

fn entries(store: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(store)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect()
}

fn clear(path: &Path) -> io::Result<()> {
    let cleared = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match cleared {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// What came from a registry, an OCI layout in the store.
const FETCHED: &str = "fetched";
/// Bytes of an image's own `/etc/passwd` or `/etc/group`.
const MAX_ACCOUNTS: u64 = 1 << 20;

#[cfg(test)]
mod tests;

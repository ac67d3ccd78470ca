//! One layer over the tree of those below it (OCI image specification, layer.md).
//!
//! Read twice: first for its digest and for what it takes away from the layers
//! below, then for what it adds. Nothing of it touches the tree before its digest
//! is known to be right.

use std::{
    ffi::OsStr,
    io::{self, BufReader, Read},
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use aws_lc_rs::digest;
use flate2::bufread::MultiGzDecoder;
use tar::EntryType;

use super::{
    ImageError,
    archive::Part,
    document::hex,
    tree::Tree,
    zstd::{self, Zstd},
};

/// Applies the layer that `open` opens, if its digest when unpacked is `diff_id`.
pub(super) fn apply(
    tree: &mut Tree,
    open: &impl Fn() -> Result<Part, ImageError>,
    diff_id: &str,
) -> Result<(), ImageError> {
    let mut hashing = Hashing {
        inner: unpacked(open()?)?.take(MAX_LAYER),
        context: digest::Context::new(&digest::SHA256),
    };
    let mut gone = Vec::new();
    each(&mut hashing, |entry| {
        let path = name_of(entry)?;
        if let Some(whiteout) = whiteout(&path)? {
            gone.push(whiteout);
        }
        Ok(())
    })?;
    // What follows the end of the archive counts for the digest, too.
    io::copy(&mut hashing, &mut io::sink()).map_err(broken)?;
    if hashing.inner.limit() == 0 {
        return Err(ImageError::TooLarge(format!(
            "a layer has more than {MAX_LAYER} bytes"
        )));
    }
    let found = format!("sha256:{}", hex(hashing.context.finish().as_ref()));
    if found != diff_id {
        return Err(ImageError::Digest {
            what: "layer".to_owned(),
            expected: diff_id.to_owned(),
            found,
        });
    }
    for whiteout in gone {
        match whiteout {
            Whiteout::Of(path) => tree.remove(&path)?,
            Whiteout::Below(path) => tree.empty(&path)?,
        }
    }
    each(unpacked(open()?)?, |entry| add(tree, entry))
}

fn add(tree: &mut Tree, entry: &mut tar::Entry<'_, impl Read>) -> Result<(), ImageError> {
    let path = name_of(entry)?;
    if path.as_os_str().is_empty() || whiteout(&path)?.is_some() || is_replaced(&path) {
        return Ok(());
    }
    let header = entry.header();
    let mode = header.mode().map_err(broken)?;
    let modified = header.mtime().unwrap_or_default();
    let target = || {
        entry
            .link_name_bytes()
            .filter(|target| !target.is_empty() && target.len() <= MAX_PATH && !target.contains(&0))
            .map(|target| PathBuf::from(OsStr::from_bytes(&target)))
            .ok_or_else(|| ImageError::refused(&path, "a link without a target"))
    };
    match header.entry_type() {
        EntryType::Regular | EntryType::Continuous => {
            let size = entry.size();
            tree.file(&path, mode, modified, size, entry)
        }
        EntryType::Directory => tree.directory(&path, mode),
        // Only the sandbox ever follows it, and there `/` is the image.
        EntryType::Symlink => tree.symlink(&path, &target()?),
        EntryType::Link => {
            let target = target()?;
            let target = normal(&target).ok_or_else(|| {
                ImageError::refused(&path, "a hard link that leads out of the image")
            })?;
            tree.link(&path, &target)
        }
        EntryType::Char | EntryType::Block => Err(ImageError::refused(
            &path,
            "a device; a server has those that the sandbox gives it",
        )),
        EntryType::Fifo => Err(ImageError::refused(&path, "a pipe, which no image needs")),
        other => Err(ImageError::refused(
            &path,
            format!("an entry of the kind {other:?}, which is not unpacked"),
        )),
    }
}

fn each<R: Read>(
    reader: R,
    mut visit: impl FnMut(&mut tar::Entry<'_, R>) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    let mut archive = tar::Archive::new(reader);
    let mut entries = 0;
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        if entry.header().entry_type() == EntryType::XGlobalHeader {
            continue;
        }
        entries += 1;
        if entries > MAX_ENTRIES {
            return Err(ImageError::TooLarge(format!(
                "a layer has more than {MAX_ENTRIES} entries"
            )));
        }
        visit(&mut entry)?;
    }
    Ok(())
}

/// What a layer takes away from those below.
enum Whiteout {
    Of(PathBuf),
    /// Everything in a directory.
    Below(PathBuf),
}

fn whiteout(path: &Path) -> Result<Option<Whiteout>, ImageError> {
    let Some(name) = path.file_name() else {
        return Ok(None);
    };
    let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) else {
        return Ok(None);
    };
    let parent = path.parent().unwrap_or(Path::new(""));
    if name.as_bytes() == OPAQUE {
        return Ok(Some(Whiteout::Below(parent.to_owned())));
    }
    // `.wh...` would be the parent itself.
    let is_name =
        !hidden.is_empty() && hidden != b"." && hidden != b".." && !hidden.starts_with(WHITEOUT);
    if is_name {
        Ok(Some(Whiteout::Of(parent.join(OsStr::from_bytes(hidden)))))
    } else {
        Err(ImageError::refused(
            path,
            "a whiteout of nothing that can be named",
        ))
    }
}

fn name_of(entry: &tar::Entry<'_, impl Read>) -> Result<PathBuf, ImageError> {
    let raw = entry.path_bytes();
    let path = Path::new(OsStr::from_bytes(&raw));
    if raw.len() > MAX_PATH || raw.contains(&0) {
        return Err(ImageError::refused(
            path,
            "a name that is too long, or has a null byte",
        ));
    }
    normal(path).ok_or_else(|| ImageError::refused(path, "a name that leads out of the image"))
}

/// Below the root of the image, whatever it says; `None` with `..` in it.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut inside = PathBuf::new();
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => inside.push(name),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(inside)
}

/// What the sandbox puts its own in place of.
fn is_replaced(path: &Path) -> bool {
    ["dev", "proc", "sys"]
        .iter()
        .any(|own| path.starts_with(own) && path != Path::new(own))
}

/// Through gzip or zstd where the bytes say so, whatever the media type.
fn unpacked(part: Part) -> Result<Box<dyn Read>, ImageError> {
    let mut part = BufReader::with_capacity(1 << 16, part);
    let start = io::BufRead::fill_buf(&mut part).map_err(broken)?;
    match start {
        [0x1f, 0x8b, ..] => Ok(Box::new(MultiGzDecoder::new(part))),
        _ if zstd::is_zstd(start) => Ok(Box::new(Zstd::new(part))),
        _ => Ok(Box::new(part)),
    }
}

fn broken(error: io::Error) -> ImageError {
    ImageError::malformed("layer", error.to_string())
}

struct Hashing<R> {
    inner: R,
    context: digest::Context,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(into)?;
        self.context.update(&into[..read]);
        Ok(read)
    }
}

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const MAX_PATH: usize = 4096;
/// Entries of one layer.
const MAX_ENTRIES: u64 = 500_000;
/// Bytes of one layer when unpacked.
const MAX_LAYER: u64 = 16 << 30;

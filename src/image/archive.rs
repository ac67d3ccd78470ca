//! Archives of images: the OCI image layout, in a tar file or a directory, and what
//! `docker save` writes.
//!
//! A tar file is scanned once for where its parts are; each part is then read from
//! its place. Every digest that the archive gives is checked against what is read.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use super::{
    ImageError,
    document::{Descriptor, Image, Json, MAX_DOCUMENT, blob, fitting, list, sha256, text},
};
use crate::{
    config::{ImageName, ImageSource},
    json::Value,
};

/// An archive and where its parts are.
pub(super) struct Archive {
    path: PathBuf,
    parts: Parts,
}

enum Parts {
    /// In a file: where each begins, and its length.
    Within(Arc<File>, HashMap<String, (u64, u64)>),
    /// Each a file of the directory.
    Below,
}

/// Opens and scans the archive of `name`; what came from a registry lies in `fetched`.
pub(super) fn open(name: &ImageName, fetched: &Path) -> Result<Archive, ImageError> {
    match &name.source {
        ImageSource::OciArchive(path) | ImageSource::DockerArchive(path) => scan(path),
        ImageSource::Registry(_) => Ok(Archive {
            path: fetched.to_owned(),
            parts: Parts::Below,
        }),
    }
}

fn scan(path: &Path) -> Result<Archive, ImageError> {
    let failed = |source| ImageError::Archive {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is not a file")));
    }
    let mut parts = HashMap::new();
    let mut scan = tar::Archive::new(&mut file);
    for entry in scan.entries_with_seek().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if parts.len() >= MAX_PARTS {
            return Err(ImageError::TooLarge(format!(
                "the archive has more than {MAX_PARTS} parts"
            )));
        }
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let Some(part) = entry.path().ok().and_then(|path| plain(&path)) else {
            return Err(ImageError::malformed("archive", "a part has no plain name"));
        };
        let place = (entry.raw_file_position(), entry.size());
        // Two readings of one archive are one too many.
        if parts.insert(part.clone(), place).is_some() {
            return Err(ImageError::malformed(
                "archive",
                format!("`{part}` is there twice"),
            ));
        }
    }
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    Ok(Archive {
        path: path.to_owned(),
        parts: Parts::Within(Arc::new(file), parts),
    })
}

impl Archive {
    /// Reads what the archive says of its one image.
    pub(super) fn image(&self, name: &ImageName) -> Result<Image, ImageError> {
        match name.source {
            ImageSource::OciArchive(_) | ImageSource::Registry(_) => self.oci(name),
            ImageSource::DockerArchive(_) => self.docker(name),
        }
    }

    /// One part, to be read from its beginning.
    pub(super) fn part(&self, name: &str) -> Result<Part, ImageError> {
        match &self.parts {
            Parts::Within(file, parts) => {
                let (start, length) = parts
                    .get(name)
                    .ok_or_else(|| ImageError::Missing(name.to_owned()))?;
                Ok(Part {
                    file: Arc::clone(file),
                    at: *start,
                    left: *length,
                })
            }
            Parts::Below => {
                let path = self.path.join(name);
                let failed = |source: io::Error| match source.kind() {
                    io::ErrorKind::NotFound => ImageError::Missing(name.to_owned()),
                    _ => ImageError::Archive {
                        path: path.clone(),
                        source,
                    },
                };
                let file = File::open(&path).map_err(failed)?;
                let left = file.metadata().map_err(failed)?.len();
                Ok(Part {
                    file: Arc::new(file),
                    at: 0,
                    left,
                })
            }
        }
    }

    fn oci(&self, name: &ImageName) -> Result<Image, ImageError> {
        let index = self.document("index.json")?;
        if let ImageSource::Registry(_) = name.source {
            let of = index
                .root()
                .get("annotations")
                .and_then(|it| it.get(REF_NAME));
            if of.and_then(Value::as_str).is_none_or(|of| of != name.text) {
                return Err(ImageError::NotFetched(name.text.clone()));
            }
        }
        let mut digests = Vec::new();
        let manifests = list(index.root(), "manifests", "index")?;
        let manifest = self.manifest(&manifests, &mut digests)?;
        // Of an index as of the one image in it: both name all that is unpacked.
        let is_wanted = |wanted: &String| digests.contains(wanted);
        let digest = digests.last().cloned().unwrap_or_default();
        if let Some(wanted) = name.digest.as_ref().filter(|wanted| !is_wanted(wanted)) {
            return Err(ImageError::Digest {
                what: "manifest".to_owned(),
                expected: wanted.clone(),
                found: digest,
            });
        }
        let manifest = manifest.manifest()?;
        let layers = manifest
            .layers
            .iter()
            .map(|layer| blob(&layer.digest))
            .collect();
        self.checked(&manifest.config)?.image(layers, name, digest)
    }

    /// The manifest of this machine's image: an index may name another index, once.
    fn manifest(
        &self,
        candidates: &[Value<'_>],
        digests: &mut Vec<String>,
    ) -> Result<Json, ImageError> {
        let chosen = fitting(candidates)?;
        let document = self.checked(&chosen)?;
        digests.push(chosen.digest);
        match document.images() {
            None => Ok(document),
            Some(nested) if digests.len() == 1 => self.manifest(&nested, digests),
            Some(_) => Err(ImageError::malformed(
                "index",
                "it leads to indexes of indexes",
            )),
        }
    }

    fn docker(&self, name: &ImageName) -> Result<Image, ImageError> {
        let manifest = self.document("manifest.json")?;
        let images: Vec<_> = manifest.root().elements().collect();
        let [image] = images[..] else {
            return Err(ImageError::malformed(
                "manifest.json",
                format!("it has {} images; one is needed", images.len()),
            ));
        };
        let config = text(image, "Config", "manifest.json")?;
        let layers = list(image, "Layers", "manifest.json")?
            .into_iter()
            .map(|layer| {
                layer
                    .as_str()
                    .and_then(|layer| plain(Path::new(layer.as_ref())))
                    .ok_or_else(|| {
                        ImageError::malformed("manifest.json", "a layer has no plain name")
                    })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let config = self.document(&config)?;
        // Such an archive has no digest of its own: the configuration names all that is in it.
        let digest = sha256(&config.text);
        if name.digest.as_ref().is_some_and(|wanted| *wanted != digest) {
            return Err(ImageError::Digest {
                what: "configuration".to_owned(),
                expected: name.digest.clone().unwrap_or_default(),
                found: digest,
            });
        }
        config.image(layers, name, digest)
    }

    /// A blob of the OCI layout, of which the digest is its name.
    fn checked(&self, of: &Descriptor) -> Result<Json, ImageError> {
        Json::checked("document", self.bytes(&blob(&of.digest))?, &of.digest)
    }

    fn document(&self, name: &str) -> Result<Json, ImageError> {
        Json::parse(name, self.bytes(name)?)
    }

    fn bytes(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let mut part = self.part(name)?;
        if part.left > MAX_DOCUMENT {
            return Err(ImageError::TooLarge(format!(
                "`{name}` has {} bytes",
                part.left
            )));
        }
        let mut text = Vec::new();
        part.read_to_end(&mut text)
            .map_err(|source| ImageError::Archive {
                path: self.path.clone(),
                source,
            })?;
        Ok(text)
    }
}

/// One part of an archive, read from its place.
pub(super) struct Part {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Part {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(into.len());
        let read = self.file.read_at(&mut into[..most], self.at)?;
        if read == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// A name without `./`, `..` and roots.
fn plain(path: &Path) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) => parts.push(name.to_str()?),
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(parts.join("/"))
}

/// The annotation of an index that says under which name it was fetched.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Files in an archive: blobs, or layers with what older writers put beside each.
const MAX_PARTS: usize = 4096;

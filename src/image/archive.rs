//! Archives of images: the OCI image layout in a tar file, and what `docker save` writes.
//!
//! The archive is scanned once for where its parts are; each part is then read from
//! its place. Every digest that the archive gives is checked against what is read.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::{Component, Path, PathBuf},
};

use aws_lc_rs::digest;

use super::ImageError;
use crate::{
    config::{ImageKind, ImageName},
    json::{Document, Limits, Value},
    sandbox::Installed,
};

/// An archive and where its parts are.
pub(super) struct Archive {
    path: PathBuf,
    file: File,
    parts: HashMap<String, (u64, u64)>,
}

/// What an archive says of one image.
pub(super) struct Image {
    /// Names of the layers' parts, lowest first.
    pub(super) layers: Vec<String>,
    /// The digests of the layers when unpacked, as many.
    pub(super) diff_ids: Vec<String>,
    /// Where its root will be is not known yet.
    pub(super) installed: Installed,
}

/// Opens and scans an archive.
pub(super) fn open(name: &ImageName) -> Result<Archive, ImageError> {
    let path = name.path.clone();
    let failed = |source| ImageError::Archive {
        path: path.clone(),
        source,
    };
    let mut file = File::open(&path).map_err(failed)?;
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
    Ok(Archive { path, file, parts })
}

impl Archive {
    /// Reads what the archive says of its one image.
    pub(super) fn image(&self, name: &ImageName) -> Result<Image, ImageError> {
        match name.kind {
            ImageKind::OciArchive => self.oci(name),
            ImageKind::DockerArchive => self.docker(name),
        }
    }

    /// One part, to be read from its beginning.
    pub(super) fn part(&self, name: &str) -> Result<Part<'_>, ImageError> {
        let (start, length) = self
            .parts
            .get(name)
            .ok_or_else(|| ImageError::Missing(name.to_owned()))?;
        Ok(Part {
            file: &self.file,
            at: *start,
            left: *length,
        })
    }

    fn oci(&self, name: &ImageName) -> Result<Image, ImageError> {
        let index = self.document("index.json")?;
        let index = index.root();
        let manifests: Vec<_> = list(index, "manifests", "index")?;
        let (digest, manifest) = self.manifest(&manifests, 0)?;
        if name.digest.as_ref().is_some_and(|wanted| *wanted != digest) {
            return Err(ImageError::Digest {
                what: "manifest".to_owned(),
                expected: name.digest.clone().unwrap_or_default(),
                found: digest,
            });
        }
        let manifest = manifest.root();
        let config = member(manifest, "config", "manifest").and_then(descriptor)?;
        let layers = list(manifest, "layers", "manifest")?
            .into_iter()
            .map(|layer| descriptor(layer).map(|digest| blob(&digest)))
            .collect::<Result<Vec<_>, _>>()?;
        let config = self.checked(&config)?;
        finish(config.root(), layers, name, digest)
    }

    /// The manifest of this machine's image: an index may name another index, once.
    fn manifest(&self, candidates: &[Value<'_>], depth: u8) -> Result<(String, Json), ImageError> {
        let here = |candidate: &&Value<'_>| {
            candidate.get("platform").is_none_or(|platform| {
                let is = |key, wanted: &str| {
                    platform
                        .get(key)
                        .and_then(Value::as_str)
                        .is_some_and(|found| found == wanted)
                };
                is("os", "linux") && is("architecture", architecture())
            })
        };
        let fitting: Vec<_> = candidates.iter().filter(here).collect();
        let [one] = fitting[..] else {
            return Err(ImageError::malformed(
                "index",
                format!(
                    "it has {} images for this machine; one is needed",
                    fitting.len()
                ),
            ));
        };
        let digest = descriptor(*one)?;
        let document = self.checked(&digest)?;
        match document.root().get("manifests") {
            Some(_) if depth == 0 => {
                let nested = document.root();
                let nested = list(nested, "manifests", "index")?;
                self.manifest(&nested, 1)
            }
            Some(_) => Err(ImageError::malformed(
                "index",
                "it leads to indexes of indexes",
            )),
            None => Ok((digest, document)),
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
        let digest = format!(
            "sha256:{}",
            hex(digest::digest(&digest::SHA256, &config.text).as_ref())
        );
        if name.digest.as_ref().is_some_and(|wanted| *wanted != digest) {
            return Err(ImageError::Digest {
                what: "configuration".to_owned(),
                expected: name.digest.clone().unwrap_or_default(),
                found: digest,
            });
        }
        finish(config.root(), layers, name, digest)
    }

    /// A blob of the OCI layout, of which the digest is its name.
    fn checked(&self, digest: &str) -> Result<Json, ImageError> {
        let json = self.document(&blob(digest))?;
        let found = format!(
            "sha256:{}",
            hex(digest::digest(&digest::SHA256, &json.text).as_ref())
        );
        if found != digest {
            return Err(ImageError::Digest {
                what: "document".to_owned(),
                expected: digest.to_owned(),
                found,
            });
        }
        Ok(json)
    }

    fn document(&self, name: &str) -> Result<Json, ImageError> {
        let part = self.part(name)?;
        if part.left > MAX_DOCUMENT {
            return Err(ImageError::TooLarge(format!(
                "`{name}` has {} bytes",
                part.left
            )));
        }
        let mut text = Vec::new();
        let mut part = part;
        part.read_to_end(&mut text)
            .map_err(|source| ImageError::Archive {
                path: self.path.clone(),
                source,
            })?;
        let document = Document::parse(&text, JSON)
            .map_err(|error| ImageError::malformed(name, error.to_string()))?;
        Ok(Json { text, document })
    }
}

/// One part of an archive, read from its place.
pub(super) struct Part<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Part<'_> {
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

struct Json {
    text: Vec<u8>,
    document: Document,
}

impl Json {
    fn root(&self) -> Value<'_> {
        self.document.root(&self.text)
    }
}

/// The image's configuration (OCI image specification, config.md).
fn finish(
    config: Value<'_>,
    layers: Vec<String>,
    name: &ImageName,
    digest: String,
) -> Result<Image, ImageError> {
    let what = "configuration";
    let found = text(config, "architecture", what)?;
    if found != architecture() || text(config, "os", what)? != "linux" {
        return Err(ImageError::Machine {
            found,
            wanted: architecture().to_owned(),
        });
    }
    let diff_ids = list(member(config, "rootfs", what)?, "diff_ids", what)?
        .into_iter()
        .map(|id| {
            id.as_str()
                .map(|id| id.into_owned())
                .filter(|id| is_digest(id))
        })
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| ImageError::malformed(what, "a diff_id is no sha256 digest"))?;
    if diff_ids.len() != layers.len() || layers.is_empty() || layers.len() > MAX_LAYERS {
        return Err(ImageError::malformed(
            what,
            format!(
                "{} layers and {} digests of layers",
                layers.len(),
                diff_ids.len()
            ),
        ));
    }
    let run = config.get("config");
    let words = |key: &str| -> Result<Vec<String>, ImageError> {
        match run.and_then(|run| run.get(key)) {
            None => Ok(Vec::new()),
            Some(value) if value.is_null() => Ok(Vec::new()),
            Some(value) => value
                .elements()
                .map(|word| word.as_str().map(|word| word.into_owned()))
                .collect::<Option<Vec<_>>>()
                .filter(|words| words.iter().all(|word| !word.contains('\0')))
                .ok_or_else(|| {
                    ImageError::malformed(what, format!("`{key}` is no list of strings"))
                }),
        }
    };
    let cwd = run
        .and_then(|run| run.get("WorkingDir"))
        .and_then(Value::as_str)
        .filter(|cwd| !cwd.is_empty())
        .map_or_else(|| "/".to_owned(), |cwd| cwd.into_owned());
    let cwd = PathBuf::from(cwd);
    let is_plain = cwd
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !cwd.is_absolute() || !is_plain {
        return Err(ImageError::malformed(
            what,
            "`WorkingDir` is no plain absolute path",
        ));
    }
    let env = words("Env")?
        .into_iter()
        .filter_map(|line| {
            line.split_once('=')
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
        })
        .collect();
    Ok(Image {
        layers,
        diff_ids,
        installed: Installed {
            image: name.text.clone(),
            digest,
            entrypoint: words("Entrypoint")?,
            arguments: words("Cmd")?,
            env,
            cwd,
            root: PathBuf::new(),
        },
    })
}

fn member<'a>(of: Value<'a>, key: &str, what: &str) -> Result<Value<'a>, ImageError> {
    of.get(key)
        .ok_or_else(|| ImageError::malformed(what, format!("`{key}` is missing")))
}

fn list<'a>(of: Value<'a>, key: &str, what: &str) -> Result<Vec<Value<'a>>, ImageError> {
    Ok(member(of, key, what)?.elements().collect())
}

fn text(of: Value<'_>, key: &str, what: &str) -> Result<String, ImageError> {
    member(of, key, what)?
        .as_str()
        .map(|text| text.into_owned())
        .ok_or_else(|| ImageError::malformed(what, format!("`{key}` is no string")))
}

/// The digest of a descriptor.
fn descriptor(of: Value<'_>) -> Result<String, ImageError> {
    let digest = text(of, "digest", "descriptor")?;
    if is_digest(&digest) {
        Ok(digest)
    } else {
        Err(ImageError::malformed(
            "descriptor",
            "its digest is no sha256",
        ))
    }
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64
            && hex
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
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

/// This machine, by its name in images (Go's).
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Files in an archive: blobs, or layers with what older writers put beside each.
const MAX_PARTS: usize = 4096;
const JSON: Limits = Limits {
    depth: 16,
    nodes: 100_000,
};
const MAX_LAYERS: usize = 256;
/// Bytes of an index, a manifest or a configuration.
const MAX_DOCUMENT: u64 = 4 << 20;

//! The documents of an image: indexes, manifests, configurations (OCI image specification).

use std::path::{Component, PathBuf};

use aws_lc_rs::digest;

use super::ImageError;
use crate::{
    config::ImageName,
    json::{Document, Limits, Value},
    sandbox::Installed,
};

/// One document and its text.
pub(super) struct Json {
    pub(super) text: Vec<u8>,
    document: Document,
}

/// What refers to something: its digest, and how long it is where that is said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Descriptor {
    pub(super) digest: String,
    pub(super) size: Option<u64>,
}

/// What documents say of one image.
pub(super) struct Image {
    /// Names of the layers' parts, lowest first.
    pub(super) layers: Vec<String>,
    /// The digests of the layers when unpacked, as many.
    pub(super) diff_ids: Vec<String>,
    /// Where its root will be is not known yet.
    pub(super) installed: Installed,
}

/// What a manifest refers to.
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

impl Json {
    pub(super) fn parse(what: &str, text: Vec<u8>) -> Result<Self, ImageError> {
        let document = Document::parse(&text, JSON)
            .map_err(|error| ImageError::malformed(what, error.to_string()))?;
        Ok(Self { text, document })
    }

    /// The same, if it has the digest that it should have.
    pub(super) fn checked(what: &str, text: Vec<u8>, wanted: &str) -> Result<Self, ImageError> {
        let found = sha256(&text);
        if found == wanted {
            Self::parse(what, text)
        } else {
            Err(ImageError::Digest {
                what: what.to_owned(),
                expected: wanted.to_owned(),
                found,
            })
        }
    }

    pub(super) fn root(&self) -> Value<'_> {
        self.document.root(&self.text)
    }

    /// The images of an index; `None` where this is no index.
    pub(super) fn images(&self) -> Option<Vec<Value<'_>>> {
        let manifests = self.root().get("manifests")?;
        Some(manifests.elements().collect())
    }

    pub(super) fn manifest(&self) -> Result<Manifest, ImageError> {
        let root = self.root();
        let layers = list(root, "layers", "manifest")?;
        if layers.len() > MAX_LAYERS {
            return Err(ImageError::TooLarge(format!("{} layers", layers.len())));
        }
        Ok(Manifest {
            config: member(root, "config", "manifest").and_then(descriptor)?,
            layers: layers
                .into_iter()
                .map(descriptor)
                .collect::<Result<_, _>>()?,
        })
    }

    /// How the image is run (config.md), with its `layers` and under its `digest`.
    pub(super) fn image(
        &self,
        layers: Vec<String>,
        name: &ImageName,
        digest: String,
    ) -> Result<Image, ImageError> {
        finish(self.root(), layers, name, digest)
    }
}

/// The one image of an index that is for this machine.
pub(super) fn fitting(candidates: &[Value<'_>]) -> Result<Descriptor, ImageError> {
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
    match fitting[..] {
        [one] => descriptor(*one),
        _ => Err(ImageError::malformed(
            "index",
            format!(
                "it has {} images for this machine; one is needed",
                fitting.len()
            ),
        )),
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
            prepared: Vec::new(),
            root: PathBuf::new(),
        },
    })
}

pub(super) fn member<'a>(of: Value<'a>, key: &str, what: &str) -> Result<Value<'a>, ImageError> {
    of.get(key)
        .ok_or_else(|| ImageError::malformed(what, format!("`{key}` is missing")))
}

pub(super) fn list<'a>(of: Value<'a>, key: &str, what: &str) -> Result<Vec<Value<'a>>, ImageError> {
    Ok(member(of, key, what)?.elements().collect())
}

pub(super) fn text(of: Value<'_>, key: &str, what: &str) -> Result<String, ImageError> {
    member(of, key, what)?
        .as_str()
        .map(|text| text.into_owned())
        .ok_or_else(|| ImageError::malformed(what, format!("`{key}` is no string")))
}

/// What a descriptor says.
pub(super) fn descriptor(of: Value<'_>) -> Result<Descriptor, ImageError> {
    let digest = text(of, "digest", "descriptor")?;
    if !is_digest(&digest) {
        return Err(ImageError::malformed(
            "descriptor",
            "its digest is no sha256",
        ));
    }
    let size = of.get("size").and_then(Value::as_number);
    Ok(Descriptor {
        digest,
        size: size.and_then(|size| size.parse().ok()),
    })
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64
            && hex
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Where a blob stands in the OCI layout.
pub(super) fn blob(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}

/// This machine, by its name in images (Go's).
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The digest of bytes, as documents write it.
pub(super) fn sha256(bytes: &[u8]) -> String {
    format!(
        "sha256:{}",
        hex(digest::digest(&digest::SHA256, bytes).as_ref())
    )
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const JSON: Limits = Limits {
    depth: 16,
    nodes: 100_000,
};
const MAX_LAYERS: usize = 256;
/// Bytes of an index, a manifest or a configuration.
pub(super) const MAX_DOCUMENT: u64 = 4 << 20;

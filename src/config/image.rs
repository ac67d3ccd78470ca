//! What names an image: an archive on this host.

use std::path::PathBuf;

use super::value::absolute_path;

/// Where a server's image comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImageName {
    /// As configured; what was pulled under it is run under it alone.
    pub text: String,
    pub kind: ImageKind,
    pub path: PathBuf,
    /// The digest that the image must have, `sha256:` and 64 hex digits.
    pub digest: Option<String>,
}

/// The form of an archive.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ImageKind {
    /// The OCI image layout in a tar file.
    OciArchive,
    /// What `docker save` and `podman save` write.
    DockerArchive,
}

/// `oci-archive:PATH` or `docker-archive:PATH`, and `@sha256:…` perhaps.
pub(super) fn image(text: &str) -> Result<ImageName, String> {
    let (kind, rest) = if let Some(rest) = text.strip_prefix("oci-archive:") {
        (ImageKind::OciArchive, rest)
    } else if let Some(rest) = text.strip_prefix("docker-archive:") {
        (ImageKind::DockerArchive, rest)
    } else {
        return Err(format!(
            "{text:?} is no archive; a registry is not asked by this version of thv: \
             `skopeo copy docker://IMAGE oci-archive:/PATH.tar`, then write \"oci-archive:/PATH.tar\""
        ));
    };
    let (path, digest) = match rest.split_once('@') {
        None => (rest, None),
        Some((path, digest)) => {
            let hex = digest.strip_prefix("sha256:").unwrap_or_default();
            let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            if hex.len() != 64 || !hex.bytes().all(is_hex) {
                return Err(
                    "a digest is `@sha256:` and 64 lower-case hexadecimal digits".to_owned(),
                );
            }
            (path, Some(digest.to_owned()))
        }
    };
    Ok(ImageName {
        text: text.to_owned(),
        kind,
        path: absolute_path(path)?,
        digest,
    })
}

/// The engine that runs an image.
pub(super) fn engine(text: &str) -> Result<(), String> {
    match text {
        "native" => Ok(()),
        "podman" => Err(
            "podman is not supported by this version of thv; \"native\" runs the image in thv's own sandbox"
                .to_owned(),
        ),
        _ => Err(format!("{text:?} is not \"native\", the only engine")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_an_archive_and_perhaps_a_digest() {
        let plain = image("oci-archive:/srv/x.tar").unwrap();
        assert_eq!((plain.kind, plain.digest), (ImageKind::OciArchive, None));
        let digest = format!("sha256:{}", "a".repeat(64));
        let pinned = image(&format!("docker-archive:/srv/x.tar@{digest}")).unwrap();
        assert_eq!(
            (pinned.path, pinned.digest),
            (PathBuf::from("/srv/x.tar"), Some(digest))
        );
        for wrong in [
            "docker.io/mcp/everything",
            "oci-archive:x.tar",
            "oci-archive:/a/../b",
            "oci-archive:/x.tar@sha256:12",
            "oci-archive:/x.tar@md5:12",
            "oci-archive:",
        ] {
            assert!(image(wrong).is_err(), "{wrong}");
        }
        assert!(engine("podman").unwrap_err().contains("not supported"));
    }
}

//! What names an image: an archive on this host, or a repository of a registry.

use std::{collections::BTreeMap, path::PathBuf};

use ipnet::IpNet;

use super::{
    table::{Said, Table, Value},
    url,
    value::{absolute_path, credential, may_be_secret, shown},
};

/// Where a server's image comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImageName {
    /// As configured; what was pulled under it is run under it alone.
    pub text: String,
    pub source: ImageSource,
    /// The digest that the image must have, `sha256:` and 64 hex digits.
    pub digest: Option<String>,
}

/// What holds an image.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ImageSource {
    /// The OCI image layout in a tar file.
    OciArchive(PathBuf),
    /// What `docker save` and `podman save` write.
    DockerArchive(PathBuf),
    Registry(Repository),
}

/// A repository of a registry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Repository {
    /// `HOST` or `HOST:PORT`, lower case, as the image's name says.
    pub registry: String,
    /// The path below it, such as `library/debian`.
    pub path: String,
    pub tag: Option<String>,
}

/// `[registry."HOST"]`: how one registry is asked.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Registry {
    /// `HOST[:PORT][/PREFIX]` that is asked in its place.
    pub mirror: Option<String>,
    /// Authorities that vouch for it besides the system's.
    pub ca_file: Option<PathBuf>,
    /// The credential that holds `USER:PASSWORD`.
    pub credential: Option<String>,
    /// Where what it refers to may lie besides public addresses.
    pub allow_addresses: Vec<IpNet>,
}

/// What runs an image.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Engine {
    /// Our own sandbox, with the image as its root.
    #[default]
    Native,
    /// podman, within namespaces of our own making.
    Podman,
}

impl ImageName {
    /// The repository, if it is one.
    pub fn repository(&self) -> Option<&Repository> {
        match &self.source {
            ImageSource::Registry(repository) => Some(repository),
            ImageSource::OciArchive(_) | ImageSource::DockerArchive(_) => None,
        }
    }
}

/// `oci-archive:PATH`, `docker-archive:PATH` or `HOST/PATH[:TAG]`, and `@sha256:…` perhaps.
pub fn image(text: &str) -> Result<ImageName, String> {
    let (name, digest) = match text.split_once('@') {
        None => (text, None),
        Some((name, digest)) => {
            let hex = digest.strip_prefix("sha256:").unwrap_or_default();
            let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            if hex.len() != 64 || !hex.bytes().all(is_hex) {
                return Err(
                    "a digest is `@sha256:` and 64 lower-case hexadecimal digits".to_owned(),
                );
            }
            (name, Some(digest.to_owned()))
        }
    };
    let source = if let Some(path) = name.strip_prefix("oci-archive:") {
        ImageSource::OciArchive(absolute_path(path)?)
    } else if let Some(path) = name.strip_prefix("docker-archive:") {
        ImageSource::DockerArchive(absolute_path(path)?)
    } else {
        ImageSource::Registry(repository(name, digest.is_some())?)
    };
    Ok(ImageName {
        text: text.to_owned(),
        source,
        digest,
    })
}

/// Nothing is guessed: a short name means another image to each who reads it.
fn repository(name: &str, has_digest: bool) -> Result<Repository, String> {
    let example = "write `docker.io/mcp/everything:1.0`, `oci-archive:/PATH.tar` or `docker-archive:/PATH.tar`";
    if name.contains("://") {
        return Err(format!(
            "{} has a scheme, and an image's name has none: {example}",
            shown(name)
        ));
    }
    let (registry, rest) = name
        .split_once('/')
        .filter(|(host, _)| host.contains(['.', ':']) || *host == "localhost")
        .ok_or_else(|| {
            let digest = if has_digest { "@sha256:…" } else { "" };
            let of_the_hub = match name.contains('/') {
                _ if may_be_secret(name) => "docker.io/mcp/everything:1.0".to_owned(),
                true => format!("docker.io/{name}"),
                false => format!("docker.io/library/{name}"),
            };
            format!(
                "{} does not say of which registry it is: write `{of_the_hub}{digest}` if that is Docker's, `oci-archive:/PATH.tar` or `docker-archive:/PATH.tar`",
                shown(name)
            )
        })?;
    let registry = url::host(registry)?;
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) => (path, Some(tag.to_owned())),
        None => (rest, None),
    };
    let is_part = |part: &str| {
        let end = |byte: Option<u8>| {
            byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        end(part.bytes().next())
            && end(part.bytes().next_back())
            && part
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
    };
    if path.len() > MAX_PATH || !path.split('/').all(is_part) {
        return Err(format!(
            "{} is no path of a registry: lower-case words with `.`, `_` and `-` in them, and `/` between",
            shown(path)
        ));
    }
    let is_tag = |tag: &str| {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        !tag.is_empty()
            && tag.len() <= MAX_TAG
            && tag.bytes().all(good)
            && !tag.starts_with(['.', '-'])
    };
    if let Some(tag) = tag.as_deref().filter(|tag| !is_tag(tag)) {
        return Err(format!(
            "{}, behind the last colon, is no tag: letters, digits, `.`, `_` and `-`",
            shown(tag)
        ));
    }
    // Of the official images of Docker the first part goes without saying.
    let path = if registry == "docker.io" && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    let tag = tag.or_else(|| (!has_digest).then(|| "latest".to_owned()));
    Ok(Repository {
        registry,
        path,
        tag,
    })
}

/// The engine that runs an image.
pub(super) fn engine(text: &str) -> Result<Engine, String> {
    match text {
        "native" => Ok(Engine::Native),
        "podman" => Ok(Engine::Podman),
        _ => Err(format!("{text:?} is neither \"native\" nor \"podman\"")),
    }
}

/// The tables of all registries.
pub(super) fn registries(
    mut table: Table<'_>,
    lower: BTreeMap<String, Said<Registry>>,
) -> BTreeMap<String, Said<Registry>> {
    let tables = table.rest(|name, value| match url::host(name) {
        Ok(host) if host == name => value.table(registry)?,
        _ => value.wrong(
            "a registry is named by `HOST` or `HOST:PORT`, as in the images' names",
            "write `[registry.\"docker.io\"]`",
        ),
    });
    table.finish(&[]);
    lower.into_iter().chain(tables).collect()
}

fn registry(mut table: Table<'_>) -> Option<Registry> {
    let mirror_said = table.take("mirror", |value| value.parsed(mirror));
    let ca_file = table.take("ca-file", |value| value.parsed(absolute_path));
    let login = table.take("credential", |value| value.parsed(credential));
    let allowed = table.take("allow-addresses", |value| {
        let blocks = value.list(0, |block: &Value<'_>| block.parsed(super::value::network))?;
        Some(super::table::plain(blocks))
    });
    table.finish(&[]);
    Some(Registry {
        mirror: mirror_said.given(),
        ca_file: ca_file.given(),
        credential: login.given(),
        allow_addresses: allowed.given().unwrap_or_default(),
    })
}

fn mirror(text: &str) -> Result<String, String> {
    let (host, prefix) = text.split_once('/').unwrap_or((text, ""));
    let host = url::host(host).map_err(|_| {
        format!(
            "{} is no mirror: write `HOST[:PORT][/PREFIX]`; it is always asked over HTTPS",
            shown(text)
        )
    })?;
    if prefix.is_empty() {
        return Ok(host);
    }
    let of = repository(&format!("registry.invalid/{prefix}"), true);
    match of {
        Ok(_) if !prefix.contains(':') => Ok(format!("{host}/{prefix}")),
        _ => Err(format!("{} is no path of a registry", shown(prefix))),
    }
}

/// Bytes of a repository's path, and of a tag (OCI distribution specification).
const MAX_PATH: usize = 255;
const MAX_TAG: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_an_archive_and_perhaps_a_digest() {
        let plain = image("oci-archive:/srv/x.tar").unwrap();
        assert_eq!(
            (plain.source, plain.digest),
            (ImageSource::OciArchive("/srv/x.tar".into()), None)
        );
        let digest = format!("sha256:{}", "a".repeat(64));
        let pinned = image(&format!("docker-archive:/srv/x.tar@{digest}")).unwrap();
        assert_eq!(
            (pinned.source, pinned.digest),
            (
                ImageSource::DockerArchive("/srv/x.tar".into()),
                Some(digest)
            )
        );
        for wrong in [
            "oci-archive:x.tar",
            "oci-archive:/a/../b",
            "oci-archive:/x.tar@sha256:12",
            "oci-archive:/x.tar@md5:12",
            "oci-archive:",
        ] {
            assert!(image(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_image_of_a_registry_names_the_registry() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, registry, path, tag) in [
            (
                "docker.io/mcp/everything",
                "docker.io",
                "mcp/everything",
                Some("latest"),
            ),
            (
                "docker.io/debian:12",
                "docker.io",
                "library/debian",
                Some("12"),
            ),
            (
                "localhost:5000/a/b/c:x",
                "localhost:5000",
                "a/b/c",
                Some("x"),
            ),
            (
                &format!("ghcr.io/a/b:1@{digest}"),
                "ghcr.io",
                "a/b",
                Some("1"),
            ),
            (&format!("ghcr.io/a/b@{digest}"), "ghcr.io", "a/b", None),
        ] {
            let name = image(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let found = name.repository().unwrap();
            assert_eq!(
                (&*found.registry, &*found.path, found.tag.as_deref()),
                (registry, path, tag),
                "{text}"
            );
        }
        for wrong in [
            "everything",
            "mcp/everything",
            "docker://docker.io/mcp/everything",
            "https://docker.io/mcp/everything",
            "docker.io/",
            "docker.io/MCP/x",
            "docker.io/../x",
            "docker.io/a//b",
            "docker.io/a:",
            "docker.io/a:x/y",
            "docker.io/a:x y",
            "docker.io/a?b",
            "docker.io/a@sha256:12",
            "a@b.example/x",
        ] {
            assert!(image(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_mirror_is_a_host_and_perhaps_a_path() {
        assert_eq!(
            mirror("Mirror.corp:5000/hub").unwrap(),
            "mirror.corp:5000/hub"
        );
        assert_eq!(mirror("mirror.corp").unwrap(), "mirror.corp");
        for wrong in [
            "https://mirror.corp",
            "mirror.corp/..",
            "mirror.corp/a:1",
            "",
        ] {
            assert!(mirror(wrong).is_err(), "{wrong}");
        }
    }
}

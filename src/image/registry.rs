//! Fetches an image from a registry into an OCI layout (OCI distribution specification).
//!
//! Every document and blob is checked against the digest that names it, blobs as they
//! come; of what was cut off the rest is asked for. Unpacks nothing and follows only
//! what the client lets it. What is there already is not fetched again.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use http::{StatusCode, header};
use serde_json::json;

use super::{
    ImageError,
    archive::REF_NAME,
    blob::Blob,
    challenge::{Challenge, Scheme, basic},
    document::{Descriptor, Json, MAX_DOCUMENT, blob, fitting, sha256},
};
use crate::{
    config::{ImageName, Registry, Repository},
    fetch::{FetchError, Fetcher, Question, Transfer},
};

/// How far it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Progress {
    /// One of the parts begins, or goes on, at this byte.
    Part {
        number: usize,
        of: usize,
        at: u64,
        size: u64,
    },
    /// The connection was cut; it is tried again.
    Again,
}

/// Fetches `name` into the layout `into`; `login` is `USER:PASSWORD`.
pub(super) async fn fetch(
    name: &ImageName,
    repository: &Repository,
    settings: &Registry,
    login: Option<String>,
    into: &Path,
    tell: &mut dyn FnMut(Progress),
) -> Result<(), ImageError> {
    let mut registry = Asked::new(repository, settings, login)?;
    let store = |path: &Path| {
        let path = path.to_owned();
        move |source| ImageError::Store { path, source }
    };
    let blobs = into.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(store(&blobs))?;
    let reference = name.digest.as_ref().or(repository.tag.as_ref());
    let reference = reference.map_or("latest", String::as_str);
    let top = registry.document(reference, name.digest.as_deref()).await?;
    let mut kept = BTreeSet::new();
    let mut keep = |json: &Json| -> Result<String, ImageError> {
        let digest = sha256(&json.text);
        let path = into.join(blob(&digest));
        write_new(&path, &json.text).map_err(store(&path))?;
        kept.insert(path);
        Ok(digest)
    };
    let top_digest = keep(&top)?;
    let manifest = match top.images() {
        None => top.manifest()?,
        Some(images) => {
            let chosen = fitting(&images)?;
            let document = registry
                .document(&chosen.digest, Some(&chosen.digest))
                .await?;
            keep(&document)?;
            document.manifest()?
        }
    };
    let mut parts = vec![manifest.config];
    parts.extend(manifest.layers);
    let total = parts.iter().try_fold(0_u64, |sum, part| {
        let size = part.size.filter(|size| *size <= MAX_BLOB)?;
        sum.checked_add(size).filter(|sum| *sum <= MAX_IMAGE)
    });
    if total.is_none() {
        return Err(ImageError::TooLarge(format!(
            "a part must say that it has at most {} GiB, and all of them {} GiB",
            MAX_BLOB >> 30,
            MAX_IMAGE >> 30
        )));
    }
    let of = parts.len();
    for (index, part) in parts.iter().enumerate() {
        let path = into.join(blob(&part.digest));
        let size = part.size.unwrap_or_default();
        // What is in place was checked when it came.
        if fs::metadata(&path).is_err() {
            let mut said = |at: Option<u64>| {
                tell(at.map_or(Progress::Again, |at| Progress::Part {
                    number: index + 1,
                    of,
                    at,
                    size,
                }));
            };
            registry.blob(part, size, &path, &mut said).await?;
        }
        kept.insert(path);
    }
    let index = json!({
        "schemaVersion": 2,
        "annotations": { REF_NAME: name.text },
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": top_digest, "size": top.text.len(),
        }],
    });
    for (file, text) in [
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json", index.to_string().into_bytes()),
    ] {
        let path = into.join(file);
        write_new(&path, &text).map_err(store(&path))?;
    }
    // What no image needs any more.
    for entry in fs::read_dir(&blobs).map_err(store(&blobs))?.flatten() {
        if !kept.contains(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// A repository, and how it is asked.
struct Asked<'a> {
    fetcher: Fetcher,
    /// As people call it.
    called: &'a Repository,
    /// `https://HOST/v2/PATH`.
    base: String,
    /// Its path as a scope names it.
    path: String,
    login: Option<String>,
    /// What it is shown; found out by its first refusal.
    authorization: Option<String>,
}

impl<'a> Asked<'a> {
    fn new(
        called: &'a Repository,
        settings: &Registry,
        login: Option<String>,
    ) -> Result<Self, ImageError> {
        let (host, path) = match settings.mirror.as_deref() {
            None => (api_host(&called.registry).to_owned(), called.path.clone()),
            Some(mirror) => match mirror.split_once('/') {
                None => (mirror.to_owned(), called.path.clone()),
                Some((host, prefix)) => (host.to_owned(), format!("{prefix}/{}", called.path)),
            },
        };
        let base = format!("https://{host}/v2/{path}");
        let fetcher = Fetcher::new(settings.ca_file.as_deref())
            .map_err(|source| ImageError::Fetch {
                url: base.clone(),
                source,
            })?
            .reaching(&settings.allow_addresses);
        Ok(Self {
            fetcher,
            called,
            base,
            path,
            login,
            authorization: None,
        })
    }

    /// A manifest or an index, by tag or digest.
    async fn document(
        &mut self,
        reference: &str,
        digest: Option<&str>,
    ) -> Result<Json, ImageError> {
        let url = format!("{}/manifests/{reference}", self.base);
        let answer = self.ask(&url, MANIFESTS, 0).await?;
        if answer.status != StatusCode::OK {
            return Err(self.refused(&url, answer.status));
        }
        let most = usize::try_from(MAX_DOCUMENT).unwrap_or(usize::MAX);
        let text = answer.whole(most).await;
        let text = text.map_err(|source| ImageError::Fetch { url, source })?;
        match digest {
            Some(digest) => Json::checked("manifest", text, digest),
            None => Json::parse("manifest", text),
        }
    }

    /// A blob to a file, from where an earlier try has left off.
    async fn blob(
        &mut self,
        part: &Descriptor,
        size: u64,
        path: &Path,
        tell: &mut dyn FnMut(Option<u64>),
    ) -> Result<(), ImageError> {
        let url = format!("{}/blobs/{}", self.base, part.digest);
        let mut blob = Blob::open(path, &part.digest, size)?;
        let mut tries = 0;
        loop {
            let before = blob.length();
            tell(Some(before));
            let mut come = |at| tell(Some(at));
            let cut = match self.transfer(&url, &mut blob, &mut come).await {
                Ok(()) => return blob.finish(),
                Err(error) if !error.is_cut() => return Err(error),
                Err(error) => error,
            };
            // What goes on, however slowly, is not given up.
            tries = if blob.length() > before { 0 } else { tries + 1 };
            if tries >= TRIES {
                return Err(cut);
            }
            tell(None);
            tokio::time::sleep(PAUSE * (tries + 1)).await;
        }
    }

    async fn transfer(
        &mut self,
        url: &str,
        blob: &mut Blob,
        tell: &mut dyn FnMut(u64),
    ) -> Result<(), ImageError> {
        if blob.is_whole() {
            return Ok(());
        }
        let failed = |source| ImageError::Fetch {
            url: url.to_owned(),
            source,
        };
        let mut answer = self.ask(url, "*/*", blob.length()).await?;
        match answer.status {
            StatusCode::OK => blob.restart()?,
            StatusCode::PARTIAL_CONTENT if begins_at(&answer, blob.length()) => {}
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                // It has another thing there, or none of what was asked for: from the beginning.
                blob.restart()?;
                return Err(ImageError::Cut(url.to_owned()));
            }
            status => return Err(self.refused(url, status)),
        }
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            blob.write(&chunk)?;
            tell(blob.length());
        }
        if blob.is_whole() {
            Ok(())
        } else {
            Err(ImageError::Cut(url.to_owned()))
        }
    }

    /// Asks, with what the registry wants to be shown.
    async fn ask(&mut self, url: &str, accept: &str, from: u64) -> Result<Transfer, ImageError> {
        let failed = |source| ImageError::Fetch {
            url: url.to_owned(),
            source,
        };
        let first = self.open(url, accept, from).await.map_err(failed)?;
        if first.status != StatusCode::UNAUTHORIZED {
            return Ok(first);
        }
        // The first question, or the token has expired.
        let challenges = first.headers.get_all(header::WWW_AUTHENTICATE);
        let challenges: Vec<_> = challenges
            .iter()
            .filter_map(|value| Challenge::parse(value.to_str().ok()?))
            .collect();
        self.authorization = Some(self.authorize(&challenges).await?);
        let second = self.open(url, accept, from).await.map_err(failed)?;
        if second.status == StatusCode::UNAUTHORIZED {
            return Err(self.refused(url, second.status));
        }
        Ok(second)
    }

    async fn open(&self, url: &str, accept: &str, from: u64) -> Result<Transfer, FetchError> {
        let question = Question {
            url,
            named_by: None,
            accept,
            authorization: self.authorization.as_deref(),
            from,
        };
        self.fetcher.open(question).await
    }

    /// The Authorization header that a challenge asks for.
    async fn authorize(&self, challenges: &[Challenge]) -> Result<String, ImageError> {
        let login = self.login.as_deref().map(basic);
        let bearer = challenges
            .iter()
            .find(|challenge| challenge.scheme == Scheme::Bearer);
        let Some(bearer) = bearer else {
            let asks = challenges
                .iter()
                .any(|challenge| challenge.scheme == Scheme::Basic);
            return login
                .filter(|_| asks)
                .ok_or_else(|| self.refused(&self.base, StatusCode::UNAUTHORIZED));
        };
        let url = bearer.token_url(&self.path).ok_or_else(|| {
            ImageError::malformed("registry's challenge", "it names no realm with `https`")
        })?;
        let failed = |source| ImageError::Fetch {
            url: url.clone(),
            source,
        };
        let question = Question {
            url: &url,
            named_by: Some(&self.base),
            accept: "application/json",
            authorization: login.as_deref(),
            from: 0,
        };
        let answer = self.fetcher.open(question).await.map_err(failed)?;
        if answer.status != StatusCode::OK {
            return Err(self.refused(&url, answer.status));
        }
        let text = answer.whole(MAX_TOKEN_ANSWER).await.map_err(failed)?;
        let json = Json::parse("registry's token", text)?;
        let member = |key| json.root().get(key).and_then(|it| it.as_str());
        let token = member("token").or_else(|| member("access_token"));
        token
            .filter(|token| !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()))
            .map(|token| format!("Bearer {token}"))
            .ok_or_else(|| ImageError::malformed("registry's token", "there is none in it"))
    }

    fn refused(&self, url: &str, status: StatusCode) -> ImageError {
        let registry = &self.called.registry;
        let why = match status.as_u16() {
            401 | 403 if self.login.is_some() => {
                format!("is the name right, and the credential of `registry.\"{registry}\"`?")
            }
            401 | 403 | 404 => format!(
                "is the name right? An image that is not public needs `credential` in [registry.\"{registry}\"]"
            ),
            429 => "it has been asked too often; a mirror of your own, or a credential, helps"
                .to_owned(),
            _ => "it may work later".to_owned(),
        };
        ImageError::Answer {
            url: url.to_owned(),
            status,
            help: why,
        }
    }
}

/// The one registry that answers under another name than its images have.
fn api_host(registry: &str) -> &str {
    if registry == "docker.io" {
        "registry-1.docker.io"
    } else {
        registry
    }
}

/// `Content-Range: bytes FIRST-LAST/ALL` (RFC 9110 §14.4).
fn begins_at(answer: &Transfer, wanted: u64) -> bool {
    let range = answer.headers.get(header::CONTENT_RANGE);
    let range = range.and_then(|range| range.to_str().ok());
    range
        .and_then(|range| range.strip_prefix("bytes ")?.split_once('-'))
        .is_some_and(|(first, _)| first.parse() == Ok(wanted))
}

/// In place of what is there, whole or not at all.
fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut new = PathBuf::from(path).into_os_string();
    new.push(".new");
    fs::write(&new, bytes)?;
    fs::rename(&new, path)
}

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// Bytes of one blob, and of all of an image, as they are fetched.
const MAX_BLOB: u64 = 8 << 30;
const MAX_IMAGE: u64 = 16 << 30;
/// Bytes of a token and what comes with it.
const MAX_TOKEN_ANSWER: usize = 64 << 10;
/// Tries in a row that bring nothing.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);

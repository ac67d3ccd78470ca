//! The only HTTP client.
//!
//! Fetches small public documents: one GET, a deadline for all of it, a cap on
//! what comes back, at most one redirect and that within the origin. No
//! proxies, no cookies, no credentials. The address that was resolved is the
//! one that is dialled. Used by `auth` for discovery documents and key sets.

use std::{io, net::IpAddr, path::Path, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    sync::OnceCell,
    time::timeout,
};
use tokio_rustls::TlsConnector;

/// Fetches documents; holds the authorities that it trusts.
pub struct Fetcher {
    /// Authorities besides the system's.
    extra: Vec<CertificateDer<'static>>,
    /// Made at the first `https`: reading the system's authorities takes a while.
    tls: OnceCell<TlsConnector>,
}

/// A document that was fetched.
#[derive(Clone, Debug)]
pub struct Fetched {
    pub body: Bytes,
    /// The media type without parameters, lower case.
    pub media_type: String,
    /// `Cache-Control: max-age`, in seconds.
    pub max_age: Option<u64>,
}

/// Why a document cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("`{0}` is not an https URL; plain http is for loopback alone")]
    Url(String),
    #[error("`{path}`: {source}")]
    Authorities { path: String, source: io::Error },
    #[error("`{host}` cannot be resolved: {source}")]
    Resolve { host: String, source: io::Error },
    #[error("`{host}` cannot be reached: {source}")]
    Connect { host: String, source: io::Error },
    #[error("{0}")]
    Http(#[from] hyper::Error),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("it redirects elsewhere")]
    Redirect,
    #[error("its answer is longer than {MAX_BODY} bytes")]
    TooLong,
    #[error("it did not answer within {} seconds", DEADLINE.as_secs())]
    Deadline,
}

impl Fetcher {
    /// Trusts the system's authorities, and those of a PEM file besides.
    pub fn new(ca_file: Option<&Path>) -> Result<Self, FetchError> {
        let extra = match ca_file {
            Some(path) => authorities(path)
                .map_err(|source| FetchError::Authorities { path: path.display().to_string(), source })?,
            None => Vec::new(),
        };
        Ok(Self { extra, tls: OnceCell::new() })
    }

    /// Fetches `url` whole, within the deadline.
    pub async fn get(&self, url: &str) -> Result<Fetched, FetchError> {
        timeout(DEADLINE, self.follow(url)).await.unwrap_or(Err(FetchError::Deadline))
    }

    async fn follow(&self, url: &str) -> Result<Fetched, FetchError> {
        let first = Target::parse(url)?;
        match self.once(&first).await? {
            Answer::Document(fetched) => Ok(fetched),
            Answer::Elsewhere(location) => {
                let second = first.redirected(&location).ok_or(FetchError::Redirect)?;
                match self.once(&second).await? {
                    Answer::Document(fetched) => Ok(fetched),
                    Answer::Elsewhere(_) => Err(FetchError::Redirect),
                }
            }
        }
    }

    async fn once(&self, target: &Target) -> Result<Answer, FetchError> {
        let stream = connect(&target.host, target.port).await?;
        if !target.tls {
            return ask(stream, target).await;
        }
        let failed = |source| FetchError::Connect { host: target.host.clone(), source };
        let name = ServerName::try_from(target.host.clone()).map_err(|error| failed(io::Error::other(error)))?;
        let tls = self.tls.get_or_try_init(|| async { self.connector() }).await.map_err(failed)?;
        ask(tls.connect(name, stream).await.map_err(failed)?, target).await
    }

    fn connector(&self) -> io::Result<TlsConnector> {
        let mut roots = RootCertStore::empty();
        // Some of a system's files may be broken; the others still count.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for authority in &self.extra {
            roots.add(authority.clone()).map_err(io::Error::other)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

enum Answer {
    Document(Fetched),
    Elsewhere(String),
}

/// A URL taken apart, once.
#[derive(Debug, PartialEq)]
struct Target {
    tls: bool,
    /// Without brackets.
    host: String,
    port: u16,
    /// As the Host header wants it.
    authority: String,
    path: String,
}

impl Target {
    fn parse(url: &str) -> Result<Self, FetchError> {
        let wrong = || FetchError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if is_loopback(&host) => false,
            _ => return Err(wrong()),
        };
        if authority.as_str().contains('@') || host.is_empty() {
            return Err(wrong());
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Self { tls, host, port, authority: authority.to_string(), path })
    }

    /// Where a redirect leads, if that is within the origin.
    fn redirected(&self, location: &str) -> Option<Self> {
        if location.starts_with('/') && !location.starts_with("//") {
            return Some(Self { path: location.to_owned(), authority: self.authority.clone(), host: self.host.clone(), ..*self });
        }
        let other = Self::parse(location).ok()?;
        (other.tls == self.tls && other.host == self.host && other.port == self.port).then_some(other)
    }
}

/// Whether a host names this one only: an address literal, or the name that RFC 6761 §6.3 reserves.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, FetchError> {
    let resolved = lookup_host((host, port)).await;
    let addresses = resolved.map_err(|source| FetchError::Resolve { host: host.to_owned(), source })?;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(FetchError::Connect { host: host.to_owned(), source: last })
}

async fn ask(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, target: &Target) -> Result<Answer, FetchError> {
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await?;
    let request = Request::get(&target.path)
        .header(header::HOST, &target.authority)
        .header(header::ACCEPT, "application/json, application/jwk-set+json")
        // Nothing to unpack is nothing that can explode.
        .header(header::ACCEPT_ENCODING, "identity")
        .header(header::USER_AGENT, concat!("thv/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|_| FetchError::Url(target.path.clone()))?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let (head, mut body) = response.into_parts();
        if head.status.is_redirection() {
            let location = head.headers.get(header::LOCATION).and_then(|location| location.to_str().ok());
            return location.map(|location| Answer::Elsewhere(location.to_owned())).ok_or(FetchError::Redirect);
        }
        if head.status != StatusCode::OK {
            return Err(FetchError::Status(head.status));
        }
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                if whole.len() + data.len() > MAX_BODY {
                    return Err(FetchError::TooLong);
                }
                whole.extend_from_slice(&data);
            }
        }
        Ok(Answer::Document(Fetched {
            body: whole.freeze(),
            media_type: media_type(&head.headers),
            max_age: max_age(&head.headers),
        }))
    };
    // The connection is driven here, so that it ends with the question.
    tokio::pin!(exchange, connection);
    let mut driving = true;
    loop {
        tokio::select! {
            answer = &mut exchange => return answer,
            _ = &mut connection, if driving => driving = false,
        }
    }
}

fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn max_age(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(header::CACHE_CONTROL)?.to_str().ok()?;
    value.split(',').find_map(|part| part.trim().strip_prefix("max-age=")?.parse().ok())
}

fn authorities(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let pem = std::fs::read(path)?;
    let found = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().map_err(io::Error::other)?;
    if found.is_empty() { Err(io::Error::other("it holds no certificate")) } else { Ok(found) }
}

/// All of one fetch, name resolution and redirect included.
const DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of a document.
const MAX_BODY: usize = 512 << 10;
/// Bytes of an answer's head.
const MAX_HEAD: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_and_loopback_urls_are_fetched() {
        let target = Target::parse("https://sso.example.com/realms/corp?x=1").unwrap();
        assert_eq!((target.port, target.path.as_str()), (443, "/realms/corp?x=1"));
        assert!(Target::parse("http://127.0.0.1:8080/keys").is_ok());
        assert_eq!(Target::parse("http://[::1]:80/").unwrap().host, "::1");
        for url in [
            "http://sso.example.com/",
            "http://127.0.0.1.evil.example/",
            "file:///etc/passwd",
            "ftp://127.0.0.1/",
            "https://user@sso.example.com/",
            "/keys",
            "",
        ] {
            assert!(Target::parse(url).is_err(), "{url}");
        }
    }

    /// tok-100: a redirect stays within the origin.
    #[test]
    fn a_redirect_leads_nowhere_else() {
        let first = Target::parse("https://sso.example.com/a").unwrap();
        assert_eq!(first.redirected("/b").unwrap().path, "/b");
        assert_eq!(first.redirected("https://sso.example.com/b").unwrap().path, "/b");
        for elsewhere in ["http://sso.example.com/b", "https://evil.example/b", "//evil.example/b", "https://sso.example.com:8443/b"] {
            assert!(first.redirected(elsewhere).is_none(), "{elsewhere}");
        }
    }
}

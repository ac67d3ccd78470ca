//! The only HTTP client.
//!
//! Fetches small documents: one question, a deadline for all of it, a cap on
//! what comes back, at most one redirect and that within the origin. No
//! proxies, no cookies, no credentials but those it was given for one origin.
//! The address that was resolved is the one that is dialled. Used by `auth` for
//! discovery documents, key sets and introspection, and by `image`, whose answers
//! are long ([`Transfer`]); an [`Endpoint`] dials by the same rules for those who
//! speak at length (`child`).

mod endpoint;
mod target;
mod transfer;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    net::{TcpStream, lookup_host},
    sync::OnceCell,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub use endpoint::{Endpoint, Io};
use target::Target;
pub use target::{is_loopback, is_public};
pub use transfer::{Question, Transfer};

use crate::files;

/// Fetches documents; holds the authorities that it trusts.
pub struct Fetcher {
    /// Authorities besides the system's.
    extra: Vec<CertificateDer<'static>>,
    /// Made at the first `https`: reading the system's authorities takes a while.
    tls: OnceCell<TlsConnector>,
    /// A file with a token, and the origin that is shown it.
    token: Option<(PathBuf, Target)>,
    /// Where linked documents may lie besides public addresses.
    allowed: Vec<IpNet>,
}

/// A question that has a body.
struct Form<'a> {
    /// Name and secret (RFC 6749 §2.3.1), as the Authorization header wants them.
    authorization: &'a str,
    body: &'a str,
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
    #[error("the token in `{path}` cannot be shown: {source}")]
    Token { path: String, source: io::Error },
    #[error("`{host}` cannot be resolved: {source}")]
    Resolve { host: String, source: io::Error },
    #[error(
        "`{0}` is no name of a public address, and only a fetched document names it; if it is right, list its block in `allow-addresses`"
    )]
    NotPublic(String),
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
    #[error("its answer is longer than {0} bytes")]
    TooLarge(usize),
    #[error("it did not answer within {} seconds", DEADLINE.as_secs())]
    Deadline,
    #[error("nothing came from it for a while")]
    Silent,
}

impl Fetcher {
    /// Trusts the system's authorities, and those of a PEM file besides.
    pub fn new(ca_file: Option<&Path>) -> Result<Self, FetchError> {
        let extra = match ca_file {
            Some(path) => authorities(path).map_err(|source| FetchError::Authorities {
                path: path.display().to_string(),
                source,
            })?,
            None => Vec::new(),
        };
        Ok(Self {
            extra,
            tls: OnceCell::new(),
            token: None,
            allowed: Vec::new(),
        })
    }

    /// Shows the token in the file `path` to `origin`, and to nobody else. The file is
    /// read for each question, for such tokens are changed every hour or so.
    pub fn showing(mut self, path: &Path, origin: &str) -> Result<Self, FetchError> {
        self.token = Some((path.to_owned(), Target::parse(origin)?));
        Ok(self)
    }

    /// Lets linked documents lie at these addresses, too.
    pub fn reaching(mut self, allowed: &[IpNet]) -> Self {
        self.allowed = allowed.to_vec();
        self
    }

    /// Fetches `url`, which an administrator named, whole and within the deadline.
    pub async fn get(&self, url: &str) -> Result<Fetched, FetchError> {
        self.within_deadline(Target::parse(url)?, None).await
    }

    /// Posts a form with these credentials; redirects are not followed. `origin`
    /// as with [`Fetcher::get_linked`], where a document named the URL.
    pub async fn post(
        &self,
        url: &str,
        origin: Option<&str>,
        authorization: &str,
        body: &str,
    ) -> Result<Fetched, FetchError> {
        let target = match origin {
            Some(origin) => Target::linked(url, origin)?,
            None => Target::parse(url)?,
        };
        let form = Form {
            authorization,
            body,
        };
        self.within_deadline(target, Some(&form)).await
    }

    /// Fetches `url`, which was found in a document of `origin`. On another host it
    /// must have a public address: a provider says where its keys are, not what
    /// thv knocks at inside (tok-101, inc-13).
    pub async fn get_linked(&self, url: &str, origin: &str) -> Result<Fetched, FetchError> {
        self.within_deadline(Target::linked(url, origin)?, None)
            .await
    }

    async fn within_deadline(
        &self,
        target: Target,
        form: Option<&Form<'_>>,
    ) -> Result<Fetched, FetchError> {
        timeout(DEADLINE, self.follow(target, form))
            .await
            .unwrap_or(Err(FetchError::Deadline))
    }

    async fn follow(&self, first: Target, form: Option<&Form<'_>>) -> Result<Fetched, FetchError> {
        match self.once(&first, form).await? {
            Answer::Document(fetched) => Ok(fetched),
            // What was posted is for one address.
            Answer::Elsewhere(_) if form.is_some() => Err(FetchError::Redirect),
            Answer::Elsewhere(location) => {
                let second = first.redirected(&location).ok_or(FetchError::Redirect)?;
                match self.once(&second, form).await? {
                    Answer::Document(fetched) => Ok(fetched),
                    Answer::Elsewhere(_) => Err(FetchError::Redirect),
                }
            }
        }
    }

    async fn once(&self, target: &Target, form: Option<&Form<'_>>) -> Result<Answer, FetchError> {
        let request = self.request(target, form)?;
        ask(self.dial(target).await?, request).await
    }

    /// A connection to the address that was checked, and to whom it was meant for.
    async fn dial(&self, target: &Target) -> Result<Box<dyn Io>, FetchError> {
        let stream = connect(target, &self.allowed).await?;
        if !target.tls {
            return Ok(Box::new(stream));
        }
        Ok(Box::new(self.secured(target, stream).await?))
    }

    /// Speaks TLS with whom the name says.
    async fn secured(
        &self,
        target: &Target,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, FetchError> {
        let failed = |source| FetchError::Connect {
            host: target.host.clone(),
            source,
        };
        let name = ServerName::try_from(target.host.clone())
            .map_err(|error| failed(io::Error::other(error)))?;
        let tls = self
            .tls
            .get_or_try_init(|| async { self.connector() })
            .await
            .map_err(failed)?;
        let known = |error: io::Error| {
            let unknown =
                rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
            let said = error.get_ref().and_then(|said| said.downcast_ref());
            match said == Some(&unknown) {
                true => io::Error::other(
                    "its certificate is of no authority that this host or `ca-file` knows",
                ),
                false => error,
            }
        };
        tls.connect(name, stream)
            .await
            .map_err(|error| failed(known(error)))
    }

    fn request(
        &self,
        target: &Target,
        form: Option<&Form<'_>>,
    ) -> Result<Request<Full<Bytes>>, FetchError> {
        let mut request = Request::get(&target.path)
            .header(header::HOST, &target.authority)
            .header(header::ACCEPT, "application/json, application/jwk-set+json")
            // Nothing to unpack is nothing that can explode.
            .header(header::ACCEPT_ENCODING, "identity")
            .header(
                header::USER_AGENT,
                concat!("thv/", env!("CARGO_PKG_VERSION")),
            )
            .header(header::CONNECTION, "close");
        let mut body = Bytes::new();
        if let Some(form) = form {
            request = request
                .method(Method::POST)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .header(header::AUTHORIZATION, form.authorization);
            body = Bytes::copy_from_slice(form.body.as_bytes());
        } else if let Some((path, origin)) = &self.token
            && target.is_of_origin(origin)
        {
            let token = read_token(path).map_err(|source| FetchError::Token {
                path: path.display().to_string(),
                source,
            })?;
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        request
            .body(Full::new(body))
            .map_err(|_| FetchError::Url(target.path.clone()))
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

/// Resolves once, checks every address, and dials those that were checked (tok-102).
async fn connect(target: &Target, allowed: &[IpNet]) -> Result<TcpStream, FetchError> {
    let host = || target.host.clone();
    let resolved = lookup_host((target.host.as_str(), target.port)).await;
    let addresses = resolved.map_err(|source| FetchError::Resolve {
        host: host(),
        source,
    })?;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in target.checked(addresses, allowed)? {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(FetchError::Connect {
        host: host(),
        source: last,
    })
}

async fn ask(stream: Box<dyn Io>, request: Request<Full<Bytes>>) -> Result<Answer, FetchError> {
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let (head, mut body) = response.into_parts();
        if head.status.is_redirection() {
            let location = head
                .headers
                .get(header::LOCATION)
                .and_then(|location| location.to_str().ok());
            return location
                .map(|location| Answer::Elsewhere(location.to_owned()))
                .ok_or(FetchError::Redirect);
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

fn read_token(path: &Path) -> io::Result<String> {
    let text = files::read_text(path, MAX_TOKEN)?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(io::Error::other("it holds no token"));
    }
    Ok(token.to_owned())
}

fn media_type(headers: &HeaderMap) -> String {
    let value = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

fn max_age(headers: &HeaderMap) -> Option<u64> {
    let value = headers
        .get(header::CACHE_CONTROL)?
        .to_str()
        .ok()?
        .to_ascii_lowercase();
    value
        .split(',')
        .find_map(|part| part.trim().strip_prefix("max-age=")?.parse().ok())
}

fn authorities(path: &Path) -> io::Result<Vec<CertificateDer<'static>>> {
    let pem = files::read(path, MAX_PEM)?;
    let found = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(io::Error::other)?;
    if found.is_empty() {
        Err(io::Error::other("it holds no certificate"))
    } else {
        Ok(found)
    }
}

/// Bytes of a token file.
const MAX_TOKEN: usize = 16 << 10;
/// Bytes of a file of authorities; those that a distribution trusts are 220 KiB.
const MAX_PEM: usize = 4 << 20;
/// All of one fetch, name resolution and redirect included.
const DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of a document.
const MAX_BODY: usize = 512 << 10;
/// Bytes of an answer's head.
const MAX_HEAD: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn tls(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/tls")
            .join(name)
    }

    /// Answers one connection over TLS with the certificate for `localhost`.
    async fn serve_tls() -> (u16, tokio::task::JoinHandle<()>) {
        use rustls::{ServerConfig, pki_types::PrivateKeyDer};
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

        let certificates = authorities(&tls("localhost.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_file(tls("localhost.key")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = tokio_rustls::TlsAcceptor::from(Arc::new(config))
                .accept(stream)
                .await
            else {
                return;
            };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") && stream.read_buf(&mut head).await.unwrap_or(0) > 0
            {
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
        });
        (port, serving)
    }

    /// tok-98: certificates are checked, name and authority, and a `ca-file` adds one.
    #[tokio::test]
    async fn https_is_spoken_with_those_whom_an_authority_vouches_for() {
        let ours = Fetcher::new(Some(&tls("ca.pem"))).unwrap();
        let system = Fetcher::new(None).unwrap();
        let (port, serving) = serve_tls().await;
        let fetched = ours
            .get(&format!("https://localhost:{port}/jwks"))
            .await
            .unwrap();
        assert_eq!(
            (&fetched.body[..], &*fetched.media_type),
            (&b"{}"[..], "application/json")
        );
        serving.await.unwrap();
        for (fetcher, host) in [(&system, "localhost"), (&ours, "127.0.0.1")] {
            let (port, serving) = serve_tls().await;
            let error = fetcher
                .get(&format!("https://{host}:{port}/jwks"))
                .await
                .unwrap_err();
            assert!(
                matches!(&error, FetchError::Connect { source, .. } if source.to_string().contains("certificate")),
                "{error}"
            );
            serving.await.unwrap();
        }
    }

    #[test]
    fn a_file_of_authorities_holds_some() {
        assert_eq!(authorities(&tls("ca.pem")).unwrap().len(), 1);
        for (file, says) in [
            ("README.md", "no certificate"),
            ("localhost.key", "no certificate"),
            ("missing", "No such file"),
        ] {
            let error = Fetcher::new(Some(&tls(file))).err().unwrap().to_string();
            assert!(error.contains(file) && error.contains(says), "{error}");
        }
    }
}

//! The only HTTP client.
//!
//! Fetches small public documents: one GET, a deadline for all of it, a cap on
//! what comes back, at most one redirect and that within the origin. No
//! proxies, no cookies, no credentials. The address that was resolved is the
//! one that is dialled. Used by `auth` for discovery documents and key sets.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

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
    #[error(
        "`{0}` is no public address, and only a fetched document names it; set `jwks-url` if it is right"
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
    #[error("it did not answer within {} seconds", DEADLINE.as_secs())]
    Deadline,
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
        })
    }

    /// Fetches `url`, which an administrator named, whole and within the deadline.
    pub async fn get(&self, url: &str) -> Result<Fetched, FetchError> {
        self.within_deadline(Target::parse(url)?).await
    }

    /// Fetches `url`, which was found in a document of `origin`. On another host it
    /// must have a public address: a provider says where its keys are, not what
    /// thv knocks at inside (tok-101, inc-13).
    pub async fn get_linked(&self, url: &str, origin: &str) -> Result<Fetched, FetchError> {
        let mut target = Target::parse(url)?;
        target.public_only = target.host != Target::parse(origin)?.host;
        self.within_deadline(target).await
    }

    async fn within_deadline(&self, target: Target) -> Result<Fetched, FetchError> {
        timeout(DEADLINE, self.follow(target))
            .await
            .unwrap_or(Err(FetchError::Deadline))
    }

    async fn follow(&self, first: Target) -> Result<Fetched, FetchError> {
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
        let stream = connect(target).await?;
        if !target.tls {
            return ask(stream, target).await;
        }
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
    /// Only public addresses are dialled.
    public_only: bool,
}

impl Target {
    fn parse(url: &str) -> Result<Self, FetchError> {
        let wrong = || FetchError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if is_loopback(&host) => false,
            _ => return Err(wrong()),
        };
        if authority.as_str().contains('@') || host.is_empty() {
            return Err(wrong());
        }
        let path = uri
            .path_and_query()
            .map_or("/", |path| path.as_str())
            .to_owned();
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Self {
            tls,
            host,
            port,
            authority: authority.to_string(),
            path,
            public_only: false,
        })
    }

    /// The addresses, if all may be dialled: one that may not makes the others suspect.
    fn checked(
        &self,
        addresses: impl Iterator<Item = SocketAddr>,
    ) -> Result<Vec<SocketAddr>, FetchError> {
        let addresses: Vec<_> = addresses.collect();
        if !self.tls && addresses.iter().any(|address| !address.ip().is_loopback()) {
            return Err(FetchError::Url(format!("http://{}", self.authority)));
        }
        if self.public_only && addresses.iter().any(|address| !is_public(address.ip())) {
            return Err(FetchError::NotPublic(self.host.clone()));
        }
        Ok(addresses)
    }

    /// Where a redirect leads, if that is within the origin.
    fn redirected(&self, location: &str) -> Option<Self> {
        if location.starts_with('/') && !location.starts_with("//") {
            return Some(Self {
                path: location.to_owned(),
                authority: self.authority.clone(),
                host: self.host.clone(),
                ..*self
            });
        }
        let other = Self {
            public_only: self.public_only,
            ..Self::parse(location).ok()?
        };
        (other.tls == self.tls && other.host == self.host && other.port == self.port)
            .then_some(other)
    }
}

/// Whether a host names this one only: an address literal, or the name that RFC 6761 §6.3 reserves.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Resolves once, checks every address, and dials those that were checked (tok-102).
async fn connect(target: &Target) -> Result<TcpStream, FetchError> {
    let host = || target.host.clone();
    let resolved = lookup_host((target.host.as_str(), target.port)).await;
    let addresses = resolved.map_err(|source| FetchError::Resolve {
        host: host(),
        source,
    })?;
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in target.checked(addresses)? {
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

/// Whether packets to an address leave for the public internet: everything that is
/// assigned to another purpose (IANA's special-purpose registries) does not, nor what
/// could be translated into such an address.
fn is_public(address: IpAddr) -> bool {
    let within = |networks: &[(&str, u32)], bits: u128, width: u32| {
        networks.iter().any(|(network, prefix)| {
            let network: IpAddr = network.parse().expect("the table holds addresses");
            (as_bits(network) ^ bits) >> (width - prefix) == 0
        })
    };
    match address {
        IpAddr::V4(_) => !within(SPECIAL_V4, as_bits(address), 32),
        IpAddr::V6(_) => {
            within(GLOBAL_V6, as_bits(address), 128) && !within(SPECIAL_V6, as_bits(address), 128)
        }
    }
}

fn as_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => Ipv4Addr::to_bits(address).into(),
        IpAddr::V6(address) => Ipv6Addr::to_bits(address),
    }
}

async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    target: &Target,
) -> Result<Answer, FetchError> {
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await?;
    let request = Request::get(&target.path)
        .header(header::HOST, &target.authority)
        .header(header::ACCEPT, "application/json, application/jwk-set+json")
        // Nothing to unpack is nothing that can explode.
        .header(header::ACCEPT_ENCODING, "identity")
        .header(
            header::USER_AGENT,
            concat!("thv/", env!("CARGO_PKG_VERSION")),
        )
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|_| FetchError::Url(target.path.clone()))?;
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
    let pem = std::fs::read(path)?;
    let found = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(io::Error::other)?;
    if found.is_empty() {
        Err(io::Error::other("it holds no certificate"))
    } else {
        Ok(found)
    }
}

const SPECIAL_V4: &[(&str, u32)] = &[
    ("0.0.0.0", 8),
    ("10.0.0.0", 8),
    // Carriers' address translation.
    ("100.64.0.0", 10),
    ("127.0.0.0", 8),
    ("169.254.0.0", 16),
    ("172.16.0.0", 12),
    ("192.0.0.0", 24),
    ("192.0.2.0", 24),
    ("192.88.99.0", 24),
    ("192.168.0.0", 16),
    ("198.18.0.0", 15),
    ("198.51.100.0", 24),
    ("203.0.113.0", 24),
    // Multicast, reserved, broadcast.
    ("224.0.0.0", 3),
];
/// What is assigned to be global at all; NAT64 and IPv4-mapped addresses are outside.
const GLOBAL_V6: &[(&str, u32)] = &[("2000::", 3)];
const SPECIAL_V6: &[(&str, u32)] = &[
    // Protocol assignments, Teredo among them.
    ("2001::", 23),
    ("2001:db8::", 32),
    // 6to4.
    ("2002::", 16),
    ("3fff::", 20),
];
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
        assert_eq!(
            (target.port, target.path.as_str()),
            (443, "/realms/corp?x=1")
        );
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
        assert_eq!(
            first.redirected("https://sso.example.com/b").unwrap().path,
            "/b"
        );
        for elsewhere in [
            "http://sso.example.com/b",
            "https://evil.example/b",
            "//evil.example/b",
            "https://sso.example.com:8443/b",
        ] {
            assert!(first.redirected(elsewhere).is_none(), "{elsewhere}");
        }
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts
            .iter()
            .map(|text| SocketAddr::new(text.parse().unwrap(), 443))
            .collect()
    }

    /// tok-101: by IANA's registries of special-purpose addresses.
    #[test]
    fn an_address_is_public_or_not() {
        for public in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.128.0.0",
            "172.32.0.1",
            "223.255.255.255",
            "2606:4700::1",
            "2a00:1450::1",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for special in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.168.1.1",
            "198.18.0.1",
            "203.0.113.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::ffff:8.8.8.8",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "100::1",
            "2001::1",
            "2001:db8::1",
            "2002:a00:1::",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "ff02::1",
            "3fff::1",
        ] {
            assert!(!is_public(special.parse().unwrap()), "{special}");
        }
    }

    /// tok-102: what is dialled is what was checked, all of it.
    #[test]
    fn an_address_that_may_not_be_dialled_spoils_the_others() {
        let plain = Target::parse("http://localhost/").unwrap();
        assert!(
            plain
                .checked(addresses(&["127.0.0.1", "::1"]).into_iter())
                .is_ok()
        );
        assert!(matches!(
            plain.checked(addresses(&["127.0.0.1", "192.168.1.1"]).into_iter()),
            Err(FetchError::Url(_))
        ));
        let named = Target::parse("https://sso.example.com/").unwrap();
        assert_eq!(
            named
                .checked(addresses(&["10.0.0.1", "1.1.1.1"]).into_iter())
                .unwrap(),
            addresses(&["10.0.0.1", "1.1.1.1"])
        );
        let linked = Target {
            public_only: true,
            ..named
        };
        assert_eq!(
            linked.checked(addresses(&["1.1.1.1"]).into_iter()).unwrap(),
            addresses(&["1.1.1.1"])
        );
        for mixed in [["1.1.1.1", "127.0.0.1"], ["10.0.0.1", "1.1.1.1"]] {
            assert!(matches!(
                linked.checked(addresses(&mixed).into_iter()),
                Err(FetchError::NotPublic(_))
            ));
        }
        assert!(
            linked.redirected("/b").unwrap().public_only
                && linked
                    .redirected("https://sso.example.com/b")
                    .unwrap()
                    .public_only
        );
    }

    fn tls(name: &str) -> std::path::PathBuf {
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

//! TLS on the gateway's own socket: one pair of certificate and key, and the next one
//! when its files change.
//!
//! A new pair is tried before it counts: one that is broken, or only half written,
//! leaves the old one in place. Connections keep what they began with.

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use nix::unistd::geteuid;
use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::certificate;
use crate::{
    config::{self, Pem},
    files,
    http::connection::Version,
    systemd::{CredentialError, Credentials},
};

/// What a TLS socket needs.
pub struct Tls {
    acceptor: TlsAcceptor,
    current: Arc<Current>,
    source: Source,
    handshakes: Semaphore,
}

/// Where the pair comes from.
#[derive(Clone, Debug)]
pub struct Source {
    pub config: config::Tls,
    pub credentials: Credentials,
}

impl Tls {
    /// Reads the pair for the first time.
    pub fn load(source: Source) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let current = Arc::new(Current(RwLock::new(Arc::new(source.pair(&provider)?))));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Pair)?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            current,
            source,
            handshakes: Semaphore::new(MAX_HANDSHAKES),
        })
    }

    /// The certificate that new connections are shown.
    pub fn certificate(&self) -> CertificateDer<'static> {
        let pair = self.current.pair();
        // A pair has a certificate: `Source::pair` refuses an empty file.
        pair.cert
            .first()
            .expect("a pair has its certificate")
            .clone()
    }

    /// Whether anything comes after that certificate.
    pub fn is_alone(&self) -> bool {
        self.current.pair().cert.len() == 1
    }

    /// Reads the pair again.
    pub fn reload(&self, now: u64) -> Result<(), TlsError> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let pair = self.source.pair(&provider)?;
        let until = pair
            .cert
            .first()
            .and_then(certificate::validity)
            .map(|(_, to)| to);
        if until.is_some_and(|until| until <= now) {
            return Err(TlsError::Expired);
        }
        let mut current = self
            .current
            .0
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(pair);
        Ok(())
    }

    /// What changes when a file of the pair does.
    pub fn stamp(&self) -> Stamp {
        let Source {
            config,
            credentials,
        } = &self.source;
        Stamp([&config.certificate, &config.key].map(|pem| {
            let path = match pem {
                Pem::File(path) => path.clone(),
                Pem::Credential(name) => credentials.look_for(name).ok()?,
            };
            let meta = std::fs::metadata(path).ok()?;
            Some((
                meta.ino(),
                meta.size(),
                (meta.mtime(), meta.mtime_nsec()),
                (meta.ctime(), meta.ctime_nsec()),
            ))
        }))
    }

    /// Shakes hands; says which HTTP was agreed on.
    pub(super) async fn accept<S>(&self, stream: S) -> io::Result<(TlsStream<S>, Version)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let shaken = async {
            let _one_of_few = self.handshakes.acquire().await.map_err(io::Error::other)?;
            self.acceptor.accept(stream).await
        };
        let stream = timeout(HANDSHAKE_DEADLINE, shaken)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let version = match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Version::Two,
            _ => Version::One,
        };
        Ok((stream, version))
    }
}

/// See [`Tls::stamp`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stamp([Option<Mark>; 2]);

/// Inode, size, and when contents and the rest were changed.
type Mark = (u64, u64, (i64, i64), (i64, i64));

impl Source {
    /// The pair as it is now.
    fn pair(&self, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let text = self
            .read(&self.config.certificate, false)
            .map_err(TlsError::Certificate)?;
        let chain = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<Vec<_>, _>>()
            .unwrap_or_default();
        if chain.is_empty() {
            let error = PemError::without("certificate", &self.config.certificate);
            return Err(TlsError::Certificate(error));
        }
        let text = self.read(&self.config.key, true).map_err(TlsError::Key)?;
        let key = PrivateKeyDer::from_pem_slice(&text)
            .map_err(|_| TlsError::Key(PemError::without("private key", &self.config.key)))?;
        CertifiedKey::from_der(chain, key, provider).map_err(TlsError::Pair)
    }

    fn read(&self, pem: &Pem, secret: bool) -> Result<Vec<u8>, PemError> {
        match pem {
            Pem::File(path) => file(path, secret),
            Pem::Credential(name) => Ok(self.credentials.read(name, MAX_PEM)?),
        }
    }
}

fn file(path: &Path, secret: bool) -> Result<Vec<u8>, PemError> {
    let wrong = |source| PemError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = files::open(path).map_err(wrong)?;
    let meta = file.metadata().map_err(wrong)?;
    let (uid, mode) = (meta.uid(), meta.mode() & 0o777);
    if uid != 0 && uid != geteuid().as_raw() {
        return Err(PemError::Owner {
            path: path.to_owned(),
            uid,
        });
    }
    let forbidden = if secret { 0o027 } else { 0o022 };
    if mode & forbidden != 0 {
        return Err(PemError::Mode {
            path: path.to_owned(),
            mode,
            cure: if secret { "o-rwx,g-w" } else { "go-w" },
        });
    }
    files::up_to(&file, MAX_PEM).map_err(wrong)
}

/// The pair that new connections are shown.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl Current {
    fn pair(&self) -> Arc<CertifiedKey> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.pair())
    }
}

/// Why there is no pair to serve with.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{0}")]
    Certificate(PemError),
    #[error("{0}")]
    Key(PemError),
    #[error("certificate and key are no pair that can be used: {0}")]
    Pair(rustls::Error),
    #[error("the certificate has expired")]
    Expired,
}

/// Why a part of it cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PemError {
    #[error("`{}`: {source}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("`{}` belongs to uid {uid}, neither to root nor to this process", path.display())]
    Owner { path: PathBuf, uid: u32 },
    #[error("others may read or write `{}` (mode {mode:04o}): `chmod {cure} {}`", path.display(), path.display())]
    Mode {
        path: PathBuf,
        mode: u32,
        cure: &'static str,
    },
    #[error("{0}")]
    Credential(#[from] CredentialError),
    #[error("there is no {kind} (PEM) in {place}")]
    NotPem { kind: &'static str, place: String },
}

impl PemError {
    fn without(kind: &'static str, pem: &Pem) -> Self {
        let place = match pem {
            Pem::File(path) => format!("`{}`", path.display()),
            Pem::Credential(name) => format!("the credential `{name}`"),
        };
        Self::NotPem { kind, place }
    }
}

impl TlsError {
    /// Whether the unit's credentials lack a part of it.
    pub fn is_of_credential(&self) -> bool {
        matches!(
            self,
            Self::Certificate(PemError::Credential(_)) | Self::Key(PemError::Credential(_))
        )
    }

    /// The key of the configuration that it is about.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Certificate(_) | Self::Expired => "tls.certificate",
            Self::Key(_) => "tls.key",
            Self::Pair(_) => "tls",
        }
    }
}

/// Bytes of a certificate chain, or of a key.
const MAX_PEM: usize = 256 << 10;
/// How long a client may take to shake hands.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// Handshakes at once: each costs a signature.
const MAX_HANDSHAKES: usize = 64;

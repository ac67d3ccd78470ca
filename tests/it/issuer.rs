//! An identity provider on loopback that does as it is told, fails in every way that
//! one can, and counts who asks.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::{remote, request};

pub const DISCOVERY: &str = "/.well-known/openid-configuration";
pub const JWKS: &str = "/jwks";

/// What is answered when a path is asked for.
#[derive(Clone)]
pub enum Reply {
    Json(Value),
    /// Head and body as they go over the wire.
    Raw(Vec<u8>),
    /// Nothing is said, ever.
    Silence,
    /// A head, and then a byte twice a second.
    Drip,
}

pub struct Issuer {
    pub address: SocketAddr,
    scheme: &'static str,
    host: String,
    shared: Arc<Shared>,
    _serving: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    replies: Mutex<HashMap<String, Reply>>,
    /// Every request as it came, body and all.
    heard: Mutex<Vec<String>>,
    connections: AtomicUsize,
    tls: Mutex<Option<TlsAcceptor>>,
}

impl Issuer {
    /// One that works, and publishes these keys.
    pub async fn with(keys: &[Value]) -> Self {
        Self::publishing("http", "127.0.0.1", keys).await
    }

    /// The same as `localhost`, over TLS, with a certificate of tests/tls/ca.pem.
    pub async fn with_tls(keys: &[Value]) -> Self {
        let issuer = Self::publishing("https", "localhost", keys).await;
        issuer.shows("localhost");
        issuer
    }

    async fn publishing(scheme: &'static str, host: &str, keys: &[Value]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let issuer = Self::on(listener, scheme, host);
        issuer.discovers(&issuer.name(), &issuer.url(JWKS));
        issuer.publishes(keys);
        issuer
    }

    /// One that listens here, and has nothing to say yet.
    pub fn on(listener: TcpListener, scheme: &'static str, host: &str) -> Self {
        let address = listener.local_addr().unwrap();
        let shared = Arc::<Shared>::default();
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, shared.clone()));
        Self {
            address,
            scheme,
            host: host.to_owned(),
            shared,
            _serving: serving,
        }
    }

    /// Its identifier.
    pub fn name(&self) -> String {
        format!("{}://{}:{}", self.scheme, self.host, self.address.port())
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.name())
    }

    pub fn set(&self, path: &str, reply: Reply) {
        let mut replies = self.shared.replies.lock().unwrap();
        replies.insert(path.to_owned(), reply);
    }

    pub fn publishes(&self, keys: &[Value]) {
        self.set(JWKS, Reply::Json(json!({ "keys": keys })));
    }

    pub fn discovers(&self, issuer: &str, jwks_uri: &str) {
        self.set(
            DISCOVERY,
            Reply::Json(json!({ "issuer": issuer, "jwks_uri": jwks_uri })),
        );
    }

    /// From now on it shows this certificate of tests/tls.
    pub fn shows(&self, certificate: &str) {
        *self.shared.tls.lock().unwrap() = Some(remote::acceptor(certificate));
    }

    /// Every request so far.
    pub fn heard(&self) -> Vec<String> {
        self.shared.heard.lock().unwrap().clone()
    }

    /// How often a path was asked for.
    pub fn asked(&self, path: &str) -> usize {
        let of_path = |request: &&String| request.split(' ').nth(1) == Some(path);
        self.heard().iter().filter(of_path).count()
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }
}

/// An answer of these bytes, with its length.
pub fn raw(status: &str, headers: &str, body: impl AsRef<[u8]>) -> Reply {
    let body = body.as_ref();
    let head = format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    Reply::Raw([head.as_bytes(), body].concat())
}

pub const AS_JSON: &str = "Content-Type: application/json\r\n";

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut open = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        shared.connections.fetch_add(1, Ordering::Relaxed);
        open.spawn(greet(stream, shared.clone()));
        while open.try_join_next().is_some() {}
    }
}

async fn greet(stream: TcpStream, shared: Arc<Shared>) {
    let tls = shared.tls.lock().unwrap().clone();
    match tls {
        None => answer(stream, &shared).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                answer(stream, &shared).await;
            }
        }
    }
}

async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Shared) {
    let Some(text) = request::whole(&mut stream).await else {
        return;
    };
    let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
    shared.heard.lock().unwrap().push(text);
    let reply = shared.replies.lock().unwrap().get(&path).cloned();
    let reply = match reply {
        Some(Reply::Json(value)) => raw("200 OK", AS_JSON, value.to_string()),
        Some(other) => other,
        None => raw("404 Not Found", "", ""),
    };
    match reply {
        Reply::Raw(text) => {
            let _ = stream.write_all(&text).await;
            let _ = stream.shutdown().await;
        }
        Reply::Drip => {
            let head = format!("HTTP/1.1 200 OK\r\n{AS_JSON}Content-Length: 100000\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).await;
            // The pace is the point, no event is waited for.
            while stream.write_all(b" ").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
        Reply::Silence | Reply::Json(_) => std::future::pending().await,
    }
}

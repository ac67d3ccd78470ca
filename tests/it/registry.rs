//! A registry of container images: the part of the OCI distribution specification that
//! a pull needs, over TLS on loopback, with the moods that real ones have.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
};

use aws_lc_rs::digest;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};

/// A running registry. It ends with this.
pub struct Registry {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    _serving: JoinSet<()>,
}

/// What it has, and how it is.
#[derive(Default)]
pub struct State {
    /// Media types and bytes, by path.
    things: HashMap<String, (String, Vec<u8>)>,
    /// Every request line, with what was shown to it.
    pub asked: Vec<String>,
    /// What a token costs: `USER:PASSWORD`, or nothing.
    pub token_for: Option<String>,
    /// How long blobs may be before the connection ends, once each.
    pub cut: Vec<usize>,
    /// `Range` means nothing to it.
    pub no_ranges: bool,
    /// Blobs are elsewhere.
    pub blobs_at: Option<String>,
}

pub fn sha256(bytes: &[u8]) -> String {
    let sum = digest::digest(&digest::SHA256, bytes);
    let hex: String = sum
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// The authority that vouches for it.
pub fn authority() -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls/ca.pem");
    std::fs::read_to_string(file).unwrap()
}

impl Registry {
    pub async fn open() -> Self {
        let acceptor = crate::remote::acceptor("localhost");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let mut serving = JoinSet::new();
        let known = Arc::clone(&state);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, state) = (acceptor.clone(), Arc::clone(&known));
                connections.spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    let head = String::from_utf8(head).unwrap();
                    let (answer, is_whole) = state.lock().unwrap().answer(&head, address.port());
                    let _ = stream.write_all(&answer).await;
                    let _ = stream.flush().await;
                    if is_whole {
                        let _ = stream.shutdown().await;
                    }
                });
            }
        });
        Self {
            address,
            state,
            _serving: serving,
        }
    }

    /// `HOST:PORT`, as images name it.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.address.port())
    }

    pub fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    pub fn asked(&self) -> Vec<String> {
        self.with(|state| state.asked.clone())
    }

    /// Puts an image there, as an index of one for this machine and one for another;
    /// gives the digests of the index and of the manifest.
    pub fn push(
        &self,
        path: &str,
        tag: &str,
        configuration: &[u8],
        layers: &[(&str, Vec<u8>)],
    ) -> (String, String) {
        let machine = if cfg!(target_arch = "x86_64") {
            "amd64"
        } else {
            "arm64"
        };
        self.with(|state| {
            let mut blob = |bytes: &[u8]| {
                let digest = sha256(bytes);
                state.put(
                    path,
                    "blobs",
                    &digest,
                    "application/octet-stream",
                    bytes.to_vec(),
                );
                json!({ "digest": digest, "size": bytes.len() })
            };
            let described: Vec<Value> = layers
                .iter()
                .map(|(kind, bytes)| {
                    let mut layer = blob(bytes);
                    layer["mediaType"] = (*kind).into();
                    layer
                })
                .collect();
            let manifest = json!({
                "schemaVersion": 2, "mediaType": MANIFEST, "config": blob(configuration), "layers": described,
            })
            .to_string()
            .into_bytes();
            let digest = sha256(&manifest);
            let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [
                { "digest": sha256(b"another"), "size": 7, "platform": { "os": "linux", "architecture": "s390x" } },
                { "digest": digest, "size": manifest.len(), "platform": { "os": "linux", "architecture": machine } },
                { "digest": sha256(b"signed"), "size": 6, "platform": { "os": "unknown", "architecture": "unknown" } },
            ] })
            .to_string()
            .into_bytes();
            let of_index = sha256(&index);
            state.put(path, "manifests", &digest, MANIFEST, manifest);
            state.put(path, "manifests", &of_index, INDEX, index.clone());
            state.put(path, "manifests", tag, INDEX, index);
            (of_index, digest)
        })
    }
}

impl State {
    pub fn put(&mut self, path: &str, what: &str, name: &str, kind: &str, bytes: Vec<u8>) {
        self.things.insert(
            format!("/v2/{path}/{what}/{name}"),
            (kind.to_owned(), bytes),
        );
    }

    /// Other bytes under a name.
    pub fn spoil(&mut self, wanted: &str, bytes: &[u8]) {
        for (path, thing) in &mut self.things {
            if path.ends_with(wanted) {
                thing.1 = bytes.to_vec();
            }
        }
    }

    fn answer(&mut self, head: &str, port: u16) -> (Vec<u8>, bool) {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let header = |name: &str| {
            head.lines().find_map(|line| {
                let (found, value) = line.split_once(':')?;
                found
                    .eq_ignore_ascii_case(name)
                    .then(|| value.trim().to_owned())
            })
        };
        let shown = header("authorization").unwrap_or_default();
        self.asked.push(format!(
            "{path} {shown} {}",
            header("range").unwrap_or_default()
        ));
        let said = |status: &str, more: &str, body: &[u8]| {
            let head = format!(
                "HTTP/1.1 {status}\r\n{more}Content-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            );
            [head.as_bytes(), body].concat()
        };
        if let Some(login) = &self.token_for {
            let bare = path.split('?').next().unwrap_or_default();
            if bare == "/token" {
                let wanted = format!("Basic {}", base64(login));
                let good = login.is_empty() && shown.is_empty() || shown == wanted;
                return if good && path.contains("scope=repository:") && path.ends_with(":pull") {
                    (
                        said("200 OK", "", br#"{"token":"good","expires_in":60}"#),
                        true,
                    )
                } else {
                    (said("401 Unauthorized", "", b""), true)
                };
            }
            if shown != "Bearer good" {
                let challenge = format!(
                    "WWW-Authenticate: Bearer realm=\"https://localhost:{port}/token\",service=\"it\",scope=\"repository:x:pull\"\r\n"
                );
                return (said("401 Unauthorized", &challenge, b"{}"), true);
            }
        }
        let is_blob = path.contains("/blobs/");
        if let (true, Some(place)) = (is_blob, &self.blobs_at) {
            let location = format!("Location: {place}{path}\r\n");
            return (said("307 Temporary Redirect", &location, b""), true);
        }
        let Some((kind, bytes)) = self.things.get(path) else {
            return (said("404 Not Found", "", b"{\"errors\":[]}"), true);
        };
        let kind = format!("Content-Type: {kind}\r\n");
        let first = header("range")
            .filter(|_| !self.no_ranges)
            .and_then(|range| {
                range
                    .strip_prefix("bytes=")?
                    .strip_suffix('-')?
                    .parse::<usize>()
                    .ok()
            });
        let answer = match first {
            Some(first) if first >= bytes.len() => {
                return (said("416 Range Not Satisfiable", "", b""), true);
            }
            Some(first) => {
                let more = format!(
                    "{kind}Content-Range: bytes {first}-{}/{}\r\n",
                    bytes.len() - 1,
                    bytes.len()
                );
                said("206 Partial Content", &more, &bytes[first..])
            }
            None => said("200 OK", &kind, bytes),
        };
        // The configuration is small, and not cut.
        if is_blob && bytes.len() > 4096 && !self.cut.is_empty() {
            let most = self.cut.remove(0);
            return (answer[..most.min(answer.len())].to_vec(), false);
        }
        (answer, true)
    }
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

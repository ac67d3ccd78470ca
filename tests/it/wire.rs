//! HTTP as bytes, so that tests can say what no library would.

use std::{net::SocketAddr, path::Path, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpStream, UnixStream},
    time::timeout,
};

/// An answer, read to its end.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The JSON body, or the JSON of the last event.
    pub fn json(&self) -> Value {
        let text = self.text();
        let json = text
            .lines()
            .rev()
            .find_map(|line| line.strip_prefix("data: "))
            .unwrap_or(&text);
        serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The bytes of the body's message, or those of the last event's: what took long comes as one.
    pub fn message(&self) -> &[u8] {
        let body = self.body.trim_ascii_end();
        let line = body.rsplit(|byte| *byte == b'\n').next();
        line.and_then(|line| line.strip_prefix(b"data: "))
            .unwrap_or(&self.body)
    }

    /// The text of a tool's result.
    pub fn said(&self) -> String {
        self.json()["result"]["content"][0]["text"]
            .as_str()
            .unwrap_or_else(|| panic!("no result: {self:?}"))
            .to_owned()
    }
}

/// Sends bytes, reads until the connection closes.
pub async fn exchange(address: SocketAddr, request: &[u8]) -> Answer {
    ask(TcpStream::connect(address).await.unwrap(), request).await
}

/// Sends bytes, and reads the status of what is answered, which may not end.
pub async fn head(address: SocketAddr, request: &[u8]) -> u16 {
    let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
    stream.write_all(request).await.unwrap();
    let mut line = String::new();
    let read = timeout(PATIENCE, stream.read_line(&mut line)).await;
    read.expect("no answer in time").unwrap();
    line.split(' ').nth(1).unwrap().parse().unwrap()
}

/// The same over a Unix socket.
pub async fn exchange_unix(path: &Path, request: &[u8]) -> Answer {
    ask(UnixStream::connect(path).await.unwrap(), request).await
}

/// The same over whatever is open.
pub async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> Answer {
    stream.write_all(request).await.unwrap();
    let mut bytes = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut bytes))
        .await
        .expect("no answer in time")
        .unwrap();
    parse(&bytes)
}

/// A request's bytes: the head lines as given, `Connection: close`, and the body with its length.
pub fn request(method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut text = format!(
        "{method} {target} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text.push_str(body);
    text.into_bytes()
}

/// A stream of events that is read as it comes.
pub struct Events(BufReader<TcpStream>);

impl Events {
    /// Sends a request and reads the head of its answer.
    pub async fn open(address: SocketAddr, request: &[u8]) -> Self {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        Self(BufReader::new(stream))
    }

    /// The connection itself.
    pub fn stream(&self) -> &TcpStream {
        self.0.get_ref()
    }

    /// The next line that says something.
    pub async fn line(&mut self) -> String {
        let mut line = String::new();
        while line.trim().is_empty() {
            line.clear();
            let read = timeout(PATIENCE, self.0.read_line(&mut line));
            let read = read.await.expect("no line in time").unwrap();
            assert!(read > 0, "the stream ended");
        }
        line.trim_end().to_owned()
    }

    /// The next line that begins so, without its beginning.
    pub async fn field(&mut self, name: &str) -> String {
        // In all: a stream on which nothing comes says every 15 seconds that it is open.
        let field = async {
            loop {
                if let Some(value) = self.line().await.strip_prefix(name) {
                    return value.to_owned();
                }
            }
        };
        timeout(PATIENCE, field).await.expect("no field in time")
    }

    /// Waits for the end of the stream.
    pub async fn end(&mut self) -> String {
        let mut rest = String::new();
        timeout(PATIENCE, self.0.read_to_string(&mut rest))
            .await
            .expect("no end in time")
            .unwrap();
        rest
    }

    /// The next event that is a message: priming events are none.
    pub async fn next_request(&mut self) -> Value {
        loop {
            let data = self.field("data:").await;
            if !data.trim().is_empty() {
                return serde_json::from_str(data.trim()).unwrap();
            }
        }
    }

    /// The next event's JSON.
    pub async fn next(&mut self) -> Value {
        let mut line = String::new();
        let next = async {
            loop {
                line.clear();
                let read = self.0.read_line(&mut line).await.unwrap();
                assert!(read > 0, "the stream ended");
                if let Some(data) = line.strip_prefix("data: ") {
                    return serde_json::from_str(data.trim_end()).unwrap();
                }
            }
        };
        timeout(PATIENCE, next).await.expect("no event in time")
    }
}

pub fn parse(bytes: &[u8]) -> Answer {
    let end = bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap_or_else(|| {
            panic!("no answer: {:?}", String::from_utf8_lossy(bytes));
        });
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .unwrap()
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let headers: Vec<_> = lines
        .map(|line| line.split_once(':').unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let chunked = headers
        .iter()
        .any(|(name, value)| name == "transfer-encoding" && value == "chunked");
    let body = if chunked {
        unchunk(&bytes[end + 4..])
    } else {
        bytes[end + 4..].to_vec()
    };
    Answer {
        status,
        headers,
        body,
    }
}

fn unchunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        body.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[end + 4 + size..];
    }
    body
}

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

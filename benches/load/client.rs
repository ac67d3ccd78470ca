//! The load: so many callers, each in a closed loop on a connection of its own.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::timeout,
};

/// What callers speak.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Era {
    Legacy,
    Modern,
}

/// What all callers of one run share.
#[derive(Default)]
pub struct Shared {
    pub answered: AtomicU64,
    pub errors: AtomicU64,
    /// Latencies count.
    pub recording: AtomicBool,
    /// Whether they call now.
    pub calling: watch::Sender<bool>,
    pub over: AtomicBool,
}

/// One caller on its connection.
pub struct Caller {
    address: SocketAddr,
    stream: TcpStream,
    /// When it was answered last.
    used: Instant,
    /// The head of each request, up to the length of its body.
    head: String,
    /// The arguments of its calls: nobody else's.
    mark: String,
    era: Era,
    next: u64,
    request: String,
    buffer: Vec<u8>,
}

impl Caller {
    /// Opens a connection, and a session where there are such.
    pub async fn open(
        address: SocketAddr,
        token: &str,
        number: usize,
        era: Era,
    ) -> Result<Self, String> {
        let mut caller = Self::connect(address, token, number, era).await?;
        if era == Era::Legacy {
            caller.initialize().await?;
            caller.initialized().await?;
        }
        Ok(caller)
    }

    /// The connection alone.
    pub async fn connect(
        address: SocketAddr,
        token: &str,
        number: usize,
        era: Era,
    ) -> Result<Self, String> {
        let stream = dial(address).await.map_err(|error| error.to_string())?;
        let version = match era {
            Era::Legacy => "2025-11-25",
            Era::Modern => "2026-07-28\r\nMcp-Method: tools/call\r\nMcp-Name: echo",
        };
        Ok(Self {
            address,
            stream,
            used: Instant::now(),
            head: format!(
                "POST /mcp HTTP/1.1\r\nHost: {address}\r\nUser-Agent: load/1\r\nAuthorization: Bearer {token}\r\n\
                 Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n\
                 MCP-Protocol-Version: {version}\r\n"
            ),
            mark: format!("caller {number:06}"),
            era,
            next: FIRST_ID,
            request: String::new(),
            buffer: Vec::with_capacity(1 << 10),
        })
    }

    pub async fn initialize(&mut self) -> Result<(), String> {
        let body = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"load","version":"1"}}}"#;
        let (head, _) = self.exchange(body, 200).await?;
        if let Some(session) = header(&head, "mcp-session-id") {
            self.head = format!("{}Mcp-Session-Id: {session}\r\n", self.head);
        }
        Ok(())
    }

    async fn initialized(&mut self) -> Result<(), String> {
        // The floor knows of no sessions.
        if self.head.contains("Mcp-Session-Id") {
            let body = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
            self.exchange(body, 202).await?;
        }
        Ok(())
    }

    /// One call, and what was answered to it.
    pub async fn call(&mut self) -> Result<String, String> {
        let (id, mark) = (self.next, &self.mark);
        self.next += 1;
        let meta = match self.era {
            Era::Legacy => "",
            Era::Modern => {
                r#","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#
            }
        };
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"echo","arguments":{{"text":"{mark}"}}{meta}}}}}"#
        );
        Ok(self.exchange(&body, 200).await?.1)
    }

    /// Calls until the run is over; gives back what each took, in microseconds.
    pub async fn run(mut self, shared: Arc<Shared>, check: bool) -> Vec<u32> {
        let mut took = Vec::new();
        let mut calling = shared.calling.subscribe();
        loop {
            let _ = calling.wait_for(|calling| *calling).await;
            if shared.over.load(Ordering::Relaxed) {
                return took;
            }
            let started = Instant::now();
            let id = self.next;
            match self.call().await {
                Ok(answer) => {
                    shared.answered.fetch_add(1, Ordering::Relaxed);
                    let own =
                        answer.contains(&format!("\"id\":{id},")) && answer.contains(&self.mark);
                    if check && !own {
                        complain(&shared, &format!("another's answer: {answer}"));
                    }
                }
                Err(error) => {
                    complain(&shared, &error);
                    return took;
                }
            }
            if shared.recording.load(Ordering::Relaxed) && took.len() < MAX_RECORDED {
                took.push(u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX));
            }
        }
    }

    async fn exchange(&mut self, body: &str, status: u16) -> Result<(String, String), String> {
        use std::fmt::Write as _;
        self.request.clear();
        let (head, length) = (&self.head, body.len());
        write!(self.request, "{head}Content-Length: {length}\r\n\r\n{body}").unwrap();
        let mut answer = timeout(PATIENCE, self.ask()).await;
        // A server closes a connection on which nothing was asked for a while, and is asked on
        // another then.
        if matches!(answer, Ok(Err(_))) && self.buffer.is_empty() && self.used.elapsed() > IDLE {
            self.stream = dial(self.address)
                .await
                .map_err(|error| error.to_string())?;
            answer = timeout(PATIENCE, self.ask()).await;
        }
        self.used = Instant::now();
        answer
            .map_err(|_| "no answer in time".to_owned())?
            .map_err(|error| error.to_string())
            .and_then(|(head, body)| {
                if head.starts_with(&format!("HTTP/1.1 {status} ")) {
                    Ok((head, body))
                } else {
                    Err(format!("{head}{body}"))
                }
            })
    }

    /// Sends what is to be sent, and reads a whole answer.
    async fn ask(&mut self) -> io::Result<(String, String)> {
        self.buffer.clear();
        self.stream.write_all(self.request.as_bytes()).await?;
        loop {
            if let Some(whole) = whole(&self.buffer) {
                return Ok(whole);
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Counts an error, and says what the first was.
fn complain(shared: &Shared, error: &str) {
    use std::io::Write as _;
    if shared.errors.fetch_add(1, Ordering::Relaxed) == 0 {
        let _ = writeln!(io::stderr(), "load: {error}");
    }
}

/// Head and body of an answer that has come whole.
fn whole(bytes: &[u8]) -> Option<(String, String)> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let length = header(head, "content-length").map_or(0, |length| length.parse().unwrap());
    let body = bytes.get(end..end + length)?;
    Some((head.to_owned(), String::from_utf8_lossy(body).into_owned()))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.split("\r\n").find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// As long as all that come after it, for the floor's answers are no longer.
const FIRST_ID: u64 = 1_000_000;
/// How long one answer may take before it is an error.
const PATIENCE: Duration = Duration::from_secs(20);
/// After so long without a request a connection may have been closed for it.
const IDLE: Duration = Duration::from_secs(5);
/// Latencies of one caller.
const MAX_RECORDED: usize = 1 << 20;

//! How long messages take that are as large as they may be, and how much work they are.
//!
//! `cargo bench --bench large`. One call with arguments of 1, 2, 4 … 32 MiB, which a server
//! that reads no JSON gives back: so the gateway reads and writes twice as much. For each
//! size the least of several rounds: the time to the last byte of the answer, and the
//! gateway's own processor time, in all and for each MiB. Work that grows with the size
//! alone has the same number in the fourth column of each line. The last one is how long others wait
//! meanwhile: the longest that a ping of another session took, in the best of the rounds. Then how long it takes
//! to read one object of as many members as a message may have.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench that cannot go on has failed, and what it prints is what it is for"
)]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use thv::{
    audit::Audit,
    config::ServerName,
    daemon::{self, Setup},
    json::{Document, MESSAGE},
    runner,
    systemd::Credentials,
};

const ROUNDS: usize = 5;
const SIZES: [usize; 6] = [1, 2, 4, 8, 16, 32];
const PING: &str = r#"{"jsonrpc":"2.0","id":5,"method":"ping"}"#;
/// What a person waits for without wondering (the issue's own number).
const GOAL: Duration = Duration::from_secs(1);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("--echo") => echo(),
        Some("--gateway") => gateway(Path::new(&arguments[2])),
        _ => measure(),
    }
}

fn measure() {
    let files = tempfile::tempdir().unwrap();
    let program = std::env::current_exe().unwrap();
    let mut process = Command::new(&program)
        .arg("--gateway")
        .arg(files.path())
        .stdout(Stdio::piped())
        .env("THV_LOG", "error")
        .spawn()
        .unwrap();
    let mut address = String::new();
    let said = process.stdout.take().unwrap();
    BufReader::new(said).read_line(&mut address).unwrap();
    let address: SocketAddr = address.trim().parse().unwrap();
    let gateway = Gateway { process };
    let (session, other) = (open(address), open(address));
    println!("32 MiB in {} s or less is the goal", GOAL.as_secs());
    println!(
        "{:>8} {:>10} {:>14} {:>14} {:>14}",
        "MiB", "ms", "CPU ms", "CPU ms/MiB", "others ms"
    );
    for size in SIZES {
        let body = call(size << 20);
        let (mut took, mut worked, mut waited) = (Duration::MAX, Duration::MAX, Duration::MAX);
        for _ in 0..ROUNDS {
            let (before, start) = (gateway.worked(), Instant::now());
            let answer = exchange(address, Some(&session), &body);
            took = took.min(start.elapsed());
            worked = worked.min(gateway.worked() - before);
            assert!(answer.len() > size << 20, "{}", answer.len());
        }
        // By themselves: they are work, too.
        for _ in 0..ROUNDS {
            let others = Others::ask(address, other.clone());
            exchange(address, Some(&session), &body);
            waited = waited.min(others.longest());
        }
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        println!(
            "{size:>8} {:>10.1} {:>14.1} {:>14.2} {:>14.1}{}",
            ms(took),
            ms(worked),
            ms(worked) / size as f64,
            ms(waited),
            if took > GOAL { "   over the goal" } else { "" }
        );
    }
    println!(
        "most memory of the gateway's: {} MiB",
        gateway.most_held() >> 20
    );
    let members: Vec<String> = (0..MESSAGE.nodes / 2 - 2)
        .map(|number| format!("\"a-member-of-many-{number}\":0"))
        .collect();
    let object = format!("{{{}}}", members.join(","));
    let read = |_| {
        let start = Instant::now();
        Document::parse(object.as_bytes(), MESSAGE).unwrap();
        start.elapsed()
    };
    let took = (0..ROUNDS).map(read).min().unwrap();
    println!("{} members in one object: {took:.1?}", members.len());
}

/// Whoever asks small things all the time, one after the other.
struct Others {
    enough: Arc<AtomicBool>,
    asking: std::thread::JoinHandle<Duration>,
}

impl Others {
    fn ask(address: SocketAddr, session: String) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let done = enough.clone();
        let asking = std::thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !done.load(Ordering::Relaxed) {
                let start = Instant::now();
                exchange(address, Some(&session), PING);
                longest = longest.max(start.elapsed());
            }
            longest
        });
        Self { enough, asking }
    }

    /// The longest that an answer took.
    fn longest(self) -> Duration {
        self.enough.store(true, Ordering::Relaxed);
        self.asking.join().unwrap()
    }
}

/// The process that is measured.
struct Gateway {
    process: Child,
}

impl Gateway {
    /// Its processor time, to a microsecond or so: `/proc/PID/stat` counts hundredths of a second.
    fn worked(&self) -> Duration {
        let mut sum = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap() {
            let path = thread.unwrap().path().join("schedstat");
            // A thread may have ended by now.
            let text = fs::read_to_string(path).unwrap_or_default();
            sum += text
                .split(' ')
                .next()
                .and_then(|ns| ns.parse().ok())
                .unwrap_or(0_u64);
        }
        Duration::from_nanos(sum)
    }

    fn most_held(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.unwrap().trim().trim_end_matches(" kB");
        kilobytes.parse::<usize>().unwrap() << 10
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What many servers say: some structure, and much text.
fn call(size: usize) -> String {
    let part = r#"{"path":"src/main.rs","line":17,"score":0.875,"text":"fn main() { println!(\"h\u00e9llo, w\u00f6rld\"); } // and so on, and so forth, as sources go, line after line, with a \\n here and a \"word\" there, until there is enough of it to be worth a search"},"#;
    let mut body = r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"t","arguments":{"all":["#.to_owned();
    while body.len() < size {
        body.push_str(part);
    }
    body + "0]}}}"
}

fn open(address: SocketAddr) -> String {
    let initialize = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"large","version":"1"}}}"#;
    let answer = String::from_utf8(exchange(address, None, initialize)).unwrap();
    let lower = answer.to_ascii_lowercase();
    let at = lower
        .find("mcp-session-id: ")
        .unwrap_or_else(|| panic!("{answer}"));
    answer[at + 16..].split("\r\n").next().unwrap().to_owned()
}

/// The whole answer, head included.
fn exchange(address: SocketAddr, session: Option<&str>, body: &str) -> Vec<u8> {
    let session = session.map(|id| format!("Mcp-Session-Id: {id}\r\n"));
    let head = format!(
        "POST /mcp HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\n{}Content-Length: {}\r\n\r\n",
        session.unwrap_or_default(),
        body.len()
    );
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut answer = Vec::with_capacity(body.len() + 4096);
    stream.read_to_end(&mut answer).unwrap();
    answer
}

/// The server: its answer is what it was given.
fn echo() {
    let (mut input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line).unwrap() == 0 {
            return;
        }
        let start = String::from_utf8_lossy(&line[..line.len().min(300)]).into_owned();
        let Some((_, id)) = start.split_once("\"id\":") else {
            continue;
        };
        let id = id.split([',', '}']).next().unwrap();
        if start.contains("\"ping\"") {
            writeln!(output, r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#).unwrap();
        } else if start.contains("\"initialize\"") {
            let said = r#"{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"large","version":"1"}}"#;
            writeln!(output, r#"{{"jsonrpc":"2.0","id":{id},"result":{said}}}"#).unwrap();
        } else {
            let at = start.find("\"arguments\":").map_or(0, |at| at + 12);
            write!(
                output,
                r#"{{"jsonrpc":"2.0","id":{id},"result":{{"content":[],"structuredContent":"#
            )
            .unwrap();
            output.write_all(&line[at..line.len() - 3]).unwrap();
            output.write_all(b"}}\n").unwrap();
        }
        output.flush().unwrap();
    }
}

/// The gateway and its runner, on loopback, until they are killed.
fn gateway(root: &Path) {
    // One loop, as the gateway has it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    // Where whoever the runner becomes can read it.
    let echo = root.join("echo");
    fs::copy(std::env::current_exe().unwrap(), &echo).unwrap();
    let servers = root.join("etc/thv/servers");
    fs::create_dir_all(&servers).unwrap();
    fs::write(
        servers.join("large.toml"),
        format!(
            "command = [{echo:?}, \"--echo\"]\nresource = \"http://{address}/mcp\"\n[auth]\nmode = \"none\"\n\
             [authz]\nallow = \"authenticated\"\n[sandbox]\noptional = [\"cgroup\"]\nread-only = [{root:?}]\n\
             [limits]\nbody = \"64M\"\nmessage = \"64M\"\noutput = \"1G\"\nmemory = \"1G\"\n"
        ),
    )
    .unwrap();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    let server = ServerName::parse("large").unwrap();
    let thv = PathBuf::from(env!("CARGO_BIN_EXE_thv"));
    let runner = runner::foreground(&thv, root, &server).unwrap();
    let (audit, _records) = Audit::memory(&server);
    let setup = Setup {
        credentials: Credentials::within(root.join("credentials")),
        ..Setup::in_foreground(root, &server, listener, &runner, audit).unwrap()
    };
    println!("{address}");
    std::io::stdout().flush().unwrap();
    runtime.block_on(daemon::run(setup)).unwrap();
}

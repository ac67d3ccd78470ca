//! A gateway as its unit runs it: sockets, key and journal as systemd would pass them.
//!
//! All of it happens in a mount and a network namespace of its own, with a /run of its own:
//! nothing of this host is touched, and there is no network but this loopback.

use std::{
    fs,
    io::{IoSliceMut, Write as _},
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            fs::PermissionsExt as _,
            net::UnixDatagram,
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::{
    cmsg_space,
    errno::Errno,
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        resource::{Resource, getrlimit, setrlimit},
        signal::{Signal, kill},
        socket::{
            AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, UnixCredentials, bind,
            listen, recv, recvmsg, setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
    unistd::Pid,
};
use tempfile::TempDir;

/// Starts this program again where it may do as it likes; returns there.
pub fn enter() {
    if std::env::var_os(INSIDE).is_none() {
        let mut again = Command::new("unshare");
        again.args(["--mount", "--net", "--propagation", "private"]);
        if !nix::unistd::geteuid().is_root() {
            again.arg("--map-root-user");
        }
        again.arg("--").arg(std::env::current_exe().unwrap());
        again.args(std::env::args_os().skip(1)).env(INSIDE, "1");
        panic!(
            "starting it again in namespaces of its own: {}",
            again.exec()
        );
    }
    let lo = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status();
    assert!(lo.unwrap().success(), "this network has no loopback");
    let none: Option<&str> = None;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), none).unwrap();
    // As systemd sets it: a new network begins with ten.
    fs::write("/proc/sys/net/unix/max_dgram_qlen", "512").unwrap();
    // As LimitNOFILE= of both units, or what there is.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let wanted = most.min(LIMIT_NOFILE);
    setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted).unwrap();
}

/// The files of one server, and what takes the place of journald.
pub struct House {
    pub thv: PathBuf,
    pub address: SocketAddr,
    files: TempDir,
    door: OwnedFd,
    runners: OwnedFd,
    ready: UnixDatagram,
    /// Records that have come, and those that say that some have not.
    pub records: Arc<Records>,
}

#[derive(Default)]
pub struct Records {
    pub came: AtomicU64,
    pub losses: AtomicU64,
}

impl House {
    /// Writes everything down for a server that takes tokens signed by `keys`.
    pub fn build(thv: PathBuf, keys: &str) -> Self {
        let files = tempfile::Builder::new()
            .prefix("thv-load-")
            .tempdir()
            .unwrap();
        let door = TcpListener::bind("127.0.0.1:0").unwrap();
        // As a socket unit has it; the standard library's is shorter.
        listen(&door, Backlog::new(4096).unwrap()).unwrap();
        let address = door.local_addr().unwrap();
        let root = files.path();
        for directory in [
            "etc/thv/servers",
            "etc/thv/policies",
            "bin",
            "credentials",
            "state",
        ] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        let echo = root.join("bin/echo");
        fs::copy(std::env::current_exe().unwrap(), &echo).unwrap();
        fs::write(
            root.join("credentials/runner-key"),
            "0123456789abcdef".repeat(4),
        )
        .unwrap();
        fs::write(root.join("etc/thv/keys.json"), keys).unwrap();
        fs::write(root.join("etc/thv/policies/load.cedar"), POLICY).unwrap();
        let server = root.join("etc/thv/servers/load.toml");
        fs::write(server, server_file(&echo, address)).unwrap();
        for directory in [root.to_owned(), root.join("bin")] {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
        }

        fs::create_dir_all("/run/thv/runner").unwrap();
        let ready = UnixDatagram::bind(root.join("notify")).unwrap();
        ready
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        Self {
            thv,
            address,
            door: door.into(),
            runners: packets("/run/thv/runner/load.sock"),
            ready,
            records: journal(),
            files,
        }
    }

    fn command(&self, verb: &str, socket: &OwnedFd, name: &str) -> Command {
        let root = self.files.path();
        let mut command = Command::new("/bin/sh");
        // The pid that LISTEN_PID names must be the program's.
        command
            .args([
                "-c",
                r#"exec 3<&0 </dev/null; export LISTEN_PID=$$; exec "$@""#,
                "sh",
            ])
            // As CPUSchedulingPolicy= of its unit.
            .args(["chrt", "--batch", "0"].iter().filter(|_| verb == "runner"))
            .arg(&self.thv)
            .arg("--root")
            .arg(root)
            .args([verb, "load"])
            .env_clear()
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", name)
            .env("CREDENTIALS_DIRECTORY", root.join("credentials"))
            .env("STATE_DIRECTORY", root.join("state"))
            .env("NOTIFY_SOCKET", root.join("notify"))
            .stdin(Stdio::from(socket.try_clone().unwrap()));
        if let Some(filter) = std::env::var_os("THV_LOG") {
            command.env("THV_LOG", filter);
        }
        command
    }

    pub fn gateway(&self) -> Ends {
        Ends(self.command("serve", &self.door, "mcp").spawn().unwrap())
    }

    /// Starts the runner when somebody connects, as its socket unit does.
    pub fn runner_on_demand(&self) -> OnDemand {
        self.on_demand("runner", &self.runners, "runner")
    }

    /// The same for the gateway.
    pub fn gateway_on_demand(&self) -> OnDemand {
        self.on_demand("serve", &self.door, "mcp")
    }

    /// Starts the runner, and waits until it is ready.
    pub fn runner(&self) -> Ends {
        while self.ready.set_nonblocking(true).is_ok() && self.ready.recv(&mut [0; 512]).is_ok() {}
        self.ready.set_nonblocking(false).unwrap();
        let runner = Ends(
            self.command("runner", &self.runners, "runner")
                .spawn()
                .unwrap(),
        );
        let mut said = [0; 512];
        loop {
            let length = self
                .ready
                .recv(&mut said)
                .expect("the runner is not ready in time");
            if said[..length].windows(7).any(|part| part == b"READY=1") {
                return runner;
            }
        }
    }

    fn on_demand(&self, verb: &str, socket: &OwnedFd, name: &str) -> OnDemand {
        let mut command = self.command(verb, socket, name);
        let socket = socket.try_clone().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let mut asked = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                if poll(&mut asked, PollTimeout::from(50_u8)).unwrap_or(0) == 0 {
                    continue;
                }
                let mut child = Ends(command.spawn().unwrap());
                while !told.load(Ordering::Relaxed) && child.0.try_wait().unwrap().is_none() {
                    // Nobody waits for this.
                    let _ = poll(&mut [], PollTimeout::from(10_u8));
                }
            }
        });
        OnDemand {
            over,
            thread: Some(thread),
        }
    }
}

/// A process that is ended with this: asked to, and then made to.
pub struct Ends(pub Child);

impl Ends {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        let deadline = Instant::now() + Duration::from_secs(30);
        while let Ok(None) = self.0.try_wait() {
            // Again and again, for the first may come before there is a handler.
            let signal = if Instant::now() < deadline {
                Signal::SIGTERM
            } else {
                Signal::SIGKILL
            };
            let _ = kill(pid, signal);
            let _ = poll(&mut [], PollTimeout::from(20_u8));
        }
        if let Ok(status) = self.0.wait()
            && status.signal().is_none()
            && !status.success()
        {
            let _ = writeln!(std::io::stderr(), "load: a process ended with {status}");
        }
    }
}

/// Starts a process whenever its socket is asked for; none is left when this is gone.
pub struct OnDemand {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for OnDemand {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn packets(path: &str) -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
    bind(socket.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    listen(&socket, Backlog::new(64).unwrap()).unwrap();
    socket
}

/// Takes what journald would, and counts it. It reads as journald does, for what wakes the reader
/// is part of what a record costs who sends it: by epoll, one datagram each time, its size first,
/// and with the credentials of its sender and its time.
fn journal() -> Arc<Records> {
    let path = Path::new("/run/systemd/journal/socket");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let socket = UnixDatagram::bind(path).unwrap();
    setsockopt(&socket, sockopt::PassCred, &true).unwrap();
    setsockopt(&socket, sockopt::ReceiveTimestamp, &true).unwrap();
    let events = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let readable = EpollEvent::new(EpollFlags::EPOLLIN, 0);
    events.add(&socket, readable).unwrap();
    let records = Arc::new(Records::default());
    let counts = records.clone();
    std::thread::spawn(move || {
        let mut record = vec![0; 1 << 16];
        let mut aside = cmsg_space!(UnixCredentials, TimeVal);
        loop {
            match events.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                ready => ready.unwrap(),
            };
            let size = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
            recv(socket.as_raw_fd(), &mut [], size).unwrap();
            let mut parts = [IoSliceMut::new(&mut record)];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
            let came = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut aside), flags);
            let length = came.unwrap().bytes;
            // Only records begin with their message.
            if let Some(message) = record[..length].strip_prefix(b"MESSAGE=") {
                let digits = message.iter().take_while(|byte| byte.is_ascii_digit());
                let says_loss = message[digits.count()..].starts_with(b" records dropped");
                let count = if says_loss {
                    &counts.losses
                } else {
                    &counts.came
                };
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    records
}

fn server_file(echo: &Path, address: SocketAddr) -> String {
    let (echo, shown) = (echo.display(), echo.parent().unwrap().display());
    format!(
        r#"command = ["{echo}", "echo"]
resource = "http://{address}/mcp"
[[auth.issuer]]
issuer = "{ISSUER}"
audience = "{AUDIENCE}"
jwks-file = "/etc/thv/keys.json"
[authz]
policies = ["/etc/thv/policies/load.cedar"]
[sandbox]
optional = ["cgroup"]
read-only = ["{shown}"]
[limits]
sessions = 4000
sessions-per-user = 4000
connections = 8000
"#
    )
}

pub const ISSUER: &str = "https://sso.example.com/realms/corp";
pub const AUDIENCE: &str = "https://mcp.example.com/load";
/// What a small team might write.
const POLICY: &str = r#"
@id("conversation")
permit (principal is User, action in [Action::"initialize", Action::"tools/list"], resource);
@id("staff")
permit (principal is User, action == Action::"tools/call", resource)
when { principal.groups.contains("staff") && principal.scopes.contains("mcp:call") };
@id("no deletion")
forbid (principal, action == Action::"tools/call", resource)
when { resource.name like "delete*" && !principal.groups.contains("admins") };
@id("robots only read")
forbid (principal is Client, action == Action::"tools/call", resource)
unless { resource.name like "get*" };
"#;
const LIMIT_NOFILE: u64 = 65_536;
const INSIDE: &str = "THV_LOAD_INSIDE";

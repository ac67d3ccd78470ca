//! A whole thv on loopback: real files, real tokens, a real runner and its sandbox.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use thv::{
    audit::{Audit, Memory, Record},
    cli::demo::DemoIssuer,
    config::{self, ServerName},
    daemon::{self, Setup},
    egress::Resolver,
    runner,
    systemd::Credentials,
    time::Clock,
};
use tokio::{task::JoinHandle, time::timeout};

use crate::wire::{self, Answer, Events, PATIENCE};

/// What a house is to be like.
pub struct Plan {
    command: Option<Vec<String>>,
    arguments: Vec<String>,
    policy: Option<String>,
    top: String,
    readable: Vec<PathBuf>,
    more: String,
    /// More lines of the issuer's table.
    issuer: String,
    /// More files below `etc/thv`.
    files: Vec<(&'static str, String)>,
    optional: &'static str,
    /// More lines of `[sandbox]`.
    sandbox: String,
    resolver: Resolver,
    clock: Clock,
    /// Another issuer than the demo's.
    trusted: Option<String>,
    /// Where the gateway keeps keys.
    state: Option<PathBuf>,
    /// Listens on a Unix socket instead.
    unix: bool,
    /// Replaces the whole server file.
    file: Option<String>,
    /// A server that somebody else runs, and more lines of `[upstream]`.
    remote: Option<(String, String)>,
    /// Credentials of the gateway's.
    credentials: Vec<(&'static str, String)>,
    /// Done when the files are there and nothing has started.
    before: Option<fn(&Path)>,
    /// Where the runner's credentials are.
    runner_credentials: Option<PathBuf>,
}

/// A running gateway; it ends when this is dropped.
pub struct House {
    pub address: SocketAddr,
    pub issuer: DemoIssuer,
    pub records: Records,
    trusted: String,
    files: TempDir,
    gateway: JoinHandle<anyhow::Result<daemon::Exit>>,
    runner: Option<runner::Foreground>,
}

/// A server that many may share: who gets another's answer can tell.
pub const CROWD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/servers/crowd.py");

/// A house with that server, which is configured so.
pub fn crowd(top: &str) -> Plan {
    house().command(&["/usr/bin/python3", "-u", CROWD]).top(top)
}

/// A house with the scripted server, in which everybody may do everything.
pub fn house() -> Plan {
    Plan {
        command: None,
        arguments: Vec::new(),
        policy: None,
        top: String::new(),
        readable: Vec::new(),
        more: String::new(),
        issuer: String::new(),
        files: Vec::new(),
        optional: "\"cgroup\"",
        sandbox: String::new(),
        resolver: Resolver::system(),
        clock: Clock::system(),
        trusted: None,
        state: None,
        unix: false,
        file: None,
        remote: None,
        credentials: Vec::new(),
        before: None,
        runner_credentials: None,
    }
}

impl Plan {
    /// Another server than the scripted one.
    pub fn command(mut self, command: &[&str]) -> Self {
        self.command = Some(command.iter().map(|part| (*part).to_owned()).collect());
        self
    }

    /// The server's own arguments.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    pub fn policy(mut self, cedar: &str) -> Self {
        self.policy = Some(cedar.to_owned());
        self
    }

    /// More lines before the tables of the server's file.
    pub fn top(mut self, toml: &str) -> Self {
        self.top.push_str(toml);
        self
    }

    /// Another directory that the server may read.
    pub fn readable(mut self, directory: &Path) -> Self {
        self.readable.push(directory.to_owned());
        self
    }

    /// More lines of the server's file.
    pub fn with(mut self, toml: &str) -> Self {
        self.more.push_str(toml);
        self
    }

    /// More lines of `[sandbox]`.
    pub fn sandbox(mut self, toml: &str) -> Self {
        self.sandbox.push_str(toml);
        self
    }

    /// Who is asked for addresses of what children may reach.
    pub fn resolver(mut self, resolver: Resolver) -> Self {
        self.resolver = resolver;
        self
    }

    /// Another clock than the system's.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Trusts this issuer in place of the demo's.
    pub fn trusting(mut self, issuer: &str) -> Self {
        self.trusted = Some(issuer.to_owned());
        self
    }

    /// Keeps keys in this directory from one house to the next.
    pub fn state(mut self, directory: &Path) -> Self {
        self.state = Some(directory.to_owned());
        self
    }

    /// More lines of the issuer's table, and more such tables; `{address}` as in `file`.
    pub fn issuer(mut self, toml: &str) -> Self {
        self.issuer.push_str(toml);
        self
    }

    /// One more file below `etc/thv`.
    pub fn also(mut self, name: &'static str, text: String) -> Self {
        self.files.push((name, text));
        self
    }

    pub fn on_unix_socket(mut self) -> Self {
        self.unix = true;
        self
    }

    /// Without any layer of the sandbox being optional.
    pub fn layers_required(mut self) -> Self {
        self.optional = "";
        self
    }

    /// Another server file than the usual one; `{address}` stands for where the house is.
    pub fn file(mut self, toml: &str) -> Self {
        self.file = Some(toml.to_owned());
        self
    }

    /// A server that somebody else runs, in place of one of our own.
    pub fn remote(mut self, url: &str, upstream: &str) -> Self {
        self.remote = Some((url.to_owned(), upstream.to_owned()));
        self
    }

    /// A credential of the gateway's.
    pub fn credential(mut self, name: &'static str, text: &str) -> Self {
        self.credentials.push((name, text.to_owned()));
        self
    }

    /// Something to do below the root before anything starts.
    pub fn before(mut self, prepare: fn(&Path)) -> Self {
        self.before = Some(prepare);
        self
    }

    /// Gives the runner a directory of credentials, as systemd would.
    pub fn credentials(mut self, directory: &Path) -> Self {
        self.runner_credentials = Some(directory.to_owned());
        self
    }

    pub async fn open(self) -> House {
        let files = tempfile::Builder::new()
            .prefix("thv-it-")
            .tempdir()
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let issuer = DemoIssuer::start(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let trusted = self
            .trusted
            .as_deref()
            .unwrap_or(issuer.issuer())
            .to_owned();
        let good = self
            .server_file(address, &trusted)
            .replace("{address}", &address.to_string());
        let etc = files.path().join("etc/thv");
        for dir in ["servers", "policies"] {
            fs::create_dir_all(etc.join(dir)).unwrap();
        }
        fs::write(
            etc.join("policies/it.cedar"),
            self.policy.as_deref().unwrap_or_default(),
        )
        .unwrap();
        for (name, text) in &self.files {
            fs::write(etc.join(name), text).unwrap();
        }
        fs::write(etc.join("good.toml.kept"), &good).unwrap();
        fs::write(
            etc.join("servers/it.toml"),
            self.file.as_ref().map_or(good.clone(), |file| {
                file.replace("{address}", &address.to_string())
            }),
        )
        .unwrap();
        readable(files.path());
        if let Some(prepare) = self.before {
            prepare(files.path());
        }

        let socket: OwnedFd = if self.unix {
            UnixListener::bind(files.path().join(SOCKET))
                .unwrap()
                .into()
        } else {
            listener.into()
        };
        let secrets = files.path().join("credentials");
        fs::create_dir(&secrets).unwrap();
        for (name, text) in &self.credentials {
            fs::write(secrets.join(name), text).unwrap();
        }
        let server = ServerName::parse("it").unwrap();
        let mut program = PathBuf::from(env!("CARGO_BIN_EXE_thv"));
        if let Some(credentials) = &self.runner_credentials {
            let script = format!(
                "#!/bin/sh\nCREDENTIALS_DIRECTORY={} exec {} \"$@\"\n",
                credentials.display(),
                program.display()
            );
            program = files.path().join("runner");
            fs::write(&program, script).unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            fs::set_permissions(&program, mode).unwrap();
        }
        let runner = runner::foreground(&program, files.path(), &server).unwrap();
        let (audit, memory) = Audit::memory(&server);
        let records = Records(memory);
        let (root, name) = (files.path().to_owned(), server.clone());
        let mut stamp = config::stamp(&root, &name, config::OwnerRule::RootOrCaller);
        let setup = Setup {
            credentials: Credentials::within(secrets),
            changed: Box::new(move || {
                let now = config::stamp(&root, &name, config::OwnerRule::RootOrCaller);
                now != std::mem::replace(&mut stamp, now.clone())
            }),
            clock: self.clock,
            resolver: self.resolver,
            state: self.state,
            ..Setup::in_foreground(files.path(), &server, socket, &runner, audit).unwrap()
        };
        let gateway = tokio::spawn(daemon::run(setup));
        House {
            address,
            issuer,
            records,
            trusted,
            files,
            gateway,
            runner: Some(runner),
        }
    }

    fn server_file(&self, address: SocketAddr, issuer: &str) -> String {
        let servers = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/servers");
        let mut command = vec!["/usr/bin/python3".to_owned(), "-u".to_owned()];
        command.push(servers.join("scripted.py").display().to_string());
        command.extend(self.arguments.iter().cloned());
        let command = self.command.clone().unwrap_or(command);
        let mut shown = vec![servers];
        shown.extend(self.readable.iter().cloned());
        let authz = if self.policy.is_some() {
            r#"policies = ["/etc/thv/policies/it.cedar"]"#
        } else {
            r#"allow = "authenticated""#
        };
        if let Some((url, upstream)) = &self.remote {
            return format!(
                "url = \"{url}\"\nresource = \"http://{address}/mcp\"\n{}\n[[auth.issuer]]\nissuer = \"{issuer}\"\n\
                 audience = \"http://{address}/mcp\"\n{}\n[authz]\n{authz}\n\n[upstream]\n{upstream}\n\n{}",
                self.top, self.issuer, self.more
            );
        }
        format!(
            "command = {command:?}\nresource = \"http://{address}/mcp\"\n{}\n[[auth.issuer]]\nissuer = \"{issuer}\"\n\
             audience = \"http://{address}/mcp\"\n{}\n[authz]\n{authz}\n\n[sandbox]\noptional = [{}]\n\
             read-only = {shown:?}\n{}\n\n{}",
            self.top, self.issuer, self.optional, self.sandbox, self.more
        )
    }
}

impl House {
    /// A good token for `subject`, in the group `it`.
    pub fn token(&self, subject: &str) -> String {
        self.token_in(subject, &["it"])
    }

    /// The same, in other groups.
    pub fn token_in(&self, subject: &str, groups: &[&str]) -> String {
        let resource = self.resource();
        self.issuer.token(subject, &resource, groups).unwrap()
    }

    /// The identifier of the issuer that it trusts.
    pub fn issuer(&self) -> &str {
        &self.trusted
    }

    pub fn resource(&self) -> String {
        format!("http://{}/mcp", self.address)
    }

    /// Mends the server's file.
    pub fn mend(&self) {
        let etc = self.files.path().join("etc/thv");
        fs::rename(etc.join("good.toml.kept"), etc.join("servers/it.toml")).unwrap();
    }

    /// Where it listens, if not at its address.
    pub fn socket(&self) -> PathBuf {
        self.files.path().join(SOCKET)
    }

    /// What stands in for `/` in its configuration.
    pub fn root(&self) -> PathBuf {
        self.files.path().to_owned()
    }

    /// Edits the server's file without breaking it.
    pub fn edit(&self) {
        let path = self.files.path().join("etc/thv/servers/it.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("# edited\n{text}")).unwrap();
    }

    /// Waits for the gateway to end by itself.
    pub async fn ended(mut self) -> daemon::Exit {
        timeout(PATIENCE, &mut self.gateway)
            .await
            .unwrap()
            .unwrap()
            .unwrap()
    }

    /// A caller with a good token and no session yet.
    pub fn caller(&self, subject: &str) -> Caller {
        Caller {
            address: self.address,
            token: Some(self.token(subject)),
            session: None,
        }
    }

    /// A caller with a session.
    pub async fn session(&self, subject: &str) -> Caller {
        let mut caller = self.caller(subject);
        let answer = caller.initialize().await;
        assert_eq!(
            answer.status,
            200,
            "{}\n{:#?}",
            answer.text(),
            self.records.all()
        );
        caller
    }

    /// That a new session of theirs is opened, and a call in it answered.
    pub async fn serves(&self, subject: &str) {
        let caller = self.session(subject).await;
        let answer = caller.call("echo", json!({})).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    pub fn runner_pid(&self) -> u32 {
        self.runner.as_ref().unwrap().pid()
    }

    /// Ends the gateway, as if it had been killed: nothing of it is left when this returns.
    pub async fn end(mut self) {
        self.gateway.abort();
        let _ = (&mut self.gateway).await;
    }

    /// The same, and leaves its runner.
    pub async fn leave(mut self) -> std::process::Child {
        let runner = self.runner.take().unwrap().abandon();
        self.gateway.abort();
        let _ = (&mut self.gateway).await;
        runner
    }

    /// How many children were ever started.
    pub fn children_started(&self) -> usize {
        self.records
            .all()
            .iter()
            .filter(|record| record.contains("child-started"))
            .count()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.gateway.abort();
    }
}

/// What the house has recorded.
#[derive(Clone)]
pub struct Records(Memory);

impl Records {
    /// Every record as one line of its fields.
    pub fn all(&self) -> Vec<String> {
        self.0.records().iter().map(line).collect()
    }

    /// Whether there is one with all of these in it.
    pub fn have(&self, words: &[&str]) -> bool {
        let has_all = |record: &String| words.iter().all(|word| record.contains(word));
        self.all().iter().any(has_all)
    }

    /// How many there are of that kind.
    pub fn count(&self, kind: &str) -> usize {
        let event = format!("THV_EVENT={kind} ");
        self.all()
            .iter()
            .filter(|record| record.contains(&event))
            .count()
    }

    /// Waits until something of that kind is recorded.
    pub async fn wait_for(&self, kind: &str) {
        self.wait_for_more(kind, 0).await;
    }

    /// Waits until there are more of that kind than before.
    pub async fn wait_for_more(&self, kind: &str, before: usize) {
        let event = format!("THV_EVENT={kind} ");
        let there = self.0.until(|records| {
            let of_kind = |record: &&Record| line(record).contains(&event);
            records.iter().filter(of_kind).count() > before
        });
        timeout(PATIENCE, there)
            .await
            .unwrap_or_else(|_| panic!("no {kind}: {:#?}", self.all()));
    }

    /// Waits until there are so many with all of these in them; gives those.
    pub async fn wait_for_all(&self, words: &[&str], count: usize) -> Vec<String> {
        let found = |records: &[Record]| -> Vec<String> {
            let lines = records.iter().map(line);
            lines
                .filter(|line| words.iter().all(|word| line.contains(word)))
                .collect()
        };
        let there = self.0.until(|records| found(records).len() >= count);
        timeout(PATIENCE, there)
            .await
            .unwrap_or_else(|_| panic!("no {count} of {words:?}: {:#?}", self.all()));
        found(&self.0.records())
    }

    /// Waits until the server has said on its standard error that it holds this call.
    pub async fn wait_until_held(&self, what: &str) {
        let said = format!("holding {what}");
        self.wait_for_all(&["THV_EVENT=child-stderr ", said.trim_end()], 1)
            .await;
    }

    /// Waits, for as long as whoever asks likes, until a record has this in it.
    pub async fn until(&self, text: &str) {
        let has = |record: &Record| line(record).contains(text);
        self.0.until(|records| records.iter().any(has)).await;
    }
}

/// The processes that this one has begun, as a runner's children are.
pub fn children_of(pid: u32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace()
        .filter_map(|child| child.parse().ok())
        .collect()
}

/// What a record (of [`Records::all`]) says in this field, up to its first space.
pub fn field<'r>(record: &'r str, name: &str) -> Option<&'r str> {
    let (_, rest) = record.split_once(&format!("{name}="))?;
    rest.split(' ').next()
}

fn line(record: &Record) -> String {
    let field = |(name, value)| format!("{name}={value}");
    record.fields().map(field).collect::<Vec<_>>().join(" ")
}

/// One MCP client.
#[derive(Clone)]
pub struct Caller {
    pub address: SocketAddr,
    pub token: Option<String>,
    pub session: Option<String>,
}

impl Caller {
    pub async fn initialize(&mut self) -> Answer {
        let answer = self.post(&initialize("2025-11-25")).await;
        self.session = answer.header("mcp-session-id").map(str::to_owned);
        answer
    }

    /// Calls a tool and waits for the whole answer.
    pub async fn call(&self, tool: &str, arguments: Value) -> Answer {
        self.post(&call(1, tool, arguments)).await
    }

    /// The same, beside what the test does meanwhile.
    pub fn begins(&self, tool: &str, arguments: Value) -> JoinHandle<Answer> {
        let (caller, tool) = (self.clone(), tool.to_owned());
        tokio::spawn(async move { caller.call(&tool, arguments).await })
    }

    /// The lines that have reached this session's server.
    pub async fn seen(&self) -> Vec<String> {
        serde_json::from_str(&self.post(&call("\"seen\"", "seen", json!({}))).await.said()).unwrap()
    }

    /// The same, when there is one of that among them.
    pub async fn until_seen(&self, what: &str) -> Vec<String> {
        let seen = async {
            loop {
                let lines = self.seen().await;
                if lines.iter().any(|line| line.contains(what)) {
                    return lines;
                }
            }
        };
        timeout(PATIENCE, seen).await.expect(what)
    }

    pub async fn post(&self, body: &str) -> Answer {
        wire::exchange(self.address, &self.bytes("POST", body)).await
    }

    /// The same, and hears the answer as it comes.
    pub async fn stream(&self, body: &str) -> Events {
        Events::open(self.address, &self.bytes("POST", body)).await
    }

    pub async fn send(&self, method: &str, body: &str) -> Answer {
        wire::exchange(self.address, &self.bytes(method, body)).await
    }

    /// The request's bytes, with more headers.
    pub fn bytes_with(&self, method: &str, more: &[(&str, &str)], body: &str) -> Vec<u8> {
        let bytes = self.bytes(method, body);
        let text = String::from_utf8(bytes).unwrap();
        let (line, rest) = text.split_once("\r\n").unwrap();
        let more: String = more
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect();
        format!("{line}\r\n{more}{rest}").into_bytes()
    }

    /// The request's bytes, with all the headers that a good client sends.
    pub fn bytes(&self, method: &str, body: &str) -> Vec<u8> {
        let host = self.address.to_string();
        let bearer = self.token.as_ref().map(|token| format!("Bearer {token}"));
        let mut headers = vec![
            ("Host", host.as_str()),
            ("Content-Type", "application/json"),
            ("Accept", "application/json, text/event-stream"),
        ];
        headers.extend(bearer.as_deref().map(|bearer| ("Authorization", bearer)));
        headers.extend(
            self.session
                .as_deref()
                .map(|session| ("Mcp-Session-Id", session)),
        );
        wire::request(method, "/mcp", &headers, body)
    }
}

const SOCKET: &str = "it.sock";

pub fn initialize(version: &str) -> String {
    json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": version, "capabilities": {}, "clientInfo": { "name": "it", "version": "1" },
    } })
    .to_string()
}

/// A `tools/call` with the id as JSON.
pub fn call(id: impl std::fmt::Display, tool: &str, arguments: Value) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":{id},"method":"tools/call","params":{{"name":"{tool}","arguments":{arguments},"_meta":{{"progressToken":"p-{tool}"}}}}}}"#
    )
}

/// The runner gives up root, and must still be able to read.
fn readable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if path.is_symlink() {
        return;
    }
    let mode = if path.is_dir() { 0o755 } else { 0o644 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            readable(&entry.unwrap().path());
        }
    }
}

/// Writes the configuration of a server `it` below `root`, for whoever the runner becomes.
pub fn write_server(root: &Path, toml: &str) {
    fs::create_dir_all(root.join("etc/thv/servers")).unwrap();
    fs::write(root.join("etc/thv/servers/it.toml"), toml).unwrap();
    readable(root);
}

/// Plays one ignored test by `command`, which ends in this test's program, where it
/// may do to its process and its network what no other test would bear.
pub fn in_a_process_of_its_own(mut command: std::process::Command, test: &str) {
    let ran = command
        .args(["--ignored", "--exact", test, "--nocapture"])
        .env(OWN_PROCESS, "1")
        .output()
        .unwrap();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr)
    );
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
}

/// Whether an ignored test was started by `in_a_process_of_its_own`.
pub fn is_in_a_process_of_its_own() -> bool {
    std::env::var_os(OWN_PROCESS).is_some()
}

const OWN_PROCESS: &str = "THV_TEST_IN_OWN_PROCESS";

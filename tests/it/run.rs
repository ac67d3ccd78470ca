//! `thv run` as a person types it: the program itself, its server and what they leave.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener},
    os::unix::{fs::PermissionsExt, net::UnixListener},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread::JoinHandle,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use thv::cli::demo::DemoIssuer;

use crate::{
    house::{Caller, write_server},
    image,
    modern::{self, body},
    registry::{Registry, authority},
    wire,
};

/// A running `thv run`. Killed where a test fails before it ends it.
pub struct Running {
    process: Child,
    pub address: SocketAddr,
    resource: String,
    /// What it said until it served.
    said: Vec<String>,
    /// What it has said since, and who hears it.
    heard: Arc<Heard>,
    rest: Option<JoinHandle<()>>,
    issuer: DemoIssuer,
    temporary: TempDir,
}

#[derive(Default)]
struct Heard {
    text: Mutex<String>,
    more: Condvar,
}

fn thv() -> Command {
    Command::new(env!("CARGO_BIN_EXE_thv"))
}

fn servers() -> String {
    format!("{}/tests/it/servers", env!("CARGO_MANIFEST_DIR"))
}

/// A temporary directory that whoever root becomes can enter.
fn temporary() -> TempDir {
    let directory = tempfile::Builder::new()
        .prefix("thv-run-it-")
        .tempdir()
        .unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    directory
}

/// The article's command line, with `more` before the scripted server.
fn typed(issuer: &str, more: &[&str]) -> Vec<String> {
    let volume = format!("--volume={}:ro", servers());
    let script = format!("{}/scripted.py", servers());
    let usual = [
        ("--name", "it"),
        ("--transport", "stdio"),
        ("--port", "0"),
        ("--oidc-issuer", issuer),
        ("--oidc-audience", "toolhive"),
    ];
    let mut line = vec!["run", &volume, "--foreground=true"];
    for (flag, value) in usual {
        // What a test says itself is not said twice.
        if flag == "--oidc-issuer" || !more.contains(&flag) {
            line.extend([flag, value]);
        }
    }
    line.extend(more);
    if !more.contains(&"--") {
        line.extend(["--", "/usr/bin/python3", "-u", &script]);
    }
    line.into_iter().map(ToOwned::to_owned).collect()
}

impl Running {
    pub async fn start(more: &[&str], credentials: Option<&Path>) -> Self {
        let issuer = DemoIssuer::start(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let temporary = temporary();
        let mut command = thv();
        command
            .args(typed(issuer.issuer(), more))
            .env("TMPDIR", temporary.path())
            .env_remove("CREDENTIALS_DIRECTORY");
        if let Some(credentials) = credentials {
            command.env("CREDENTIALS_DIRECTORY", credentials);
        }
        Self::ready(command, issuer, temporary)
    }

    fn ready(mut command: Command, issuer: DemoIssuer, temporary: TempDir) -> Self {
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(process.stderr.take().unwrap());
        let mut said = Vec::new();
        let served = loop {
            let mut line = String::new();
            assert!(
                stderr.read_line(&mut line).unwrap() > 0,
                "it ended: {said:#?}"
            );
            said.push(line.trim_end().to_owned());
            if line.contains("listening on") {
                break line;
            }
        };
        let word = |after: &str| {
            let rest = served.split_once(after).unwrap().1;
            rest.split([',', '\n', ' ']).next().unwrap().to_owned()
        };
        let heard = Arc::<Heard>::default();
        let hears = heard.clone();
        let rest = std::thread::spawn(move || {
            let mut line = String::new();
            while stderr.read_line(&mut line).unwrap() > 0 {
                hears.text.lock().unwrap().push_str(&line);
                hears.more.notify_all();
                line.clear();
            }
        });
        Self {
            address: word("listening on ").parse().unwrap(),
            resource: word("served at "),
            process,
            said,
            heard,
            rest: Some(rest),
            issuer,
            temporary,
        }
    }

    pub fn caller(&self, audience: &str) -> Caller {
        Caller {
            address: self.address,
            token: Some(self.issuer.token("alice", audience, &["it"]).unwrap()),
            session: None,
        }
    }

    pub async fn session(&self) -> Caller {
        let mut caller = self.caller("toolhive");
        let answer = caller.initialize().await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        caller
    }

    /// Waits until it, or its server, has said this.
    pub async fn says(&self, what: &'static str) {
        self.says_often(what, 1).await;
    }

    /// The same, so many times.
    pub async fn says_often(&self, what: &'static str, times: usize) {
        let heard = self.heard.clone();
        let waits = tokio::task::spawn_blocking(move || {
            let lacks = |text: &mut String| text.matches(what).count() < times;
            let text = heard.text.lock().unwrap();
            let waited = heard.more.wait_timeout_while(text, wire::PATIENCE, lacks);
            let (text, waited) = waited.unwrap();
            assert!(!waited.timed_out(), "it does not say {what:?}: {text}");
        });
        waits.await.unwrap();
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    pub fn pid(&self) -> i32 {
        self.process.id().cast_signed()
    }

    /// Ends it as Ctrl-C does; gives all that it said, and its exit code.
    pub fn end(self) -> (String, Option<i32>, TempDir) {
        self.signal(Signal::SIGINT);
        self.ended()
    }

    /// Waits for its end; the same.
    pub fn ended(mut self) -> (String, Option<i32>, TempDir) {
        let code = self.process.wait().unwrap().code();
        self.rest.take().unwrap().join().unwrap();
        let rest = self.heard.text.lock().unwrap().clone();
        let said = format!("{}\n{rest}", self.said.join("\n"));
        let temporary = std::mem::replace(&mut self.temporary, tempfile::tempdir().unwrap());
        (said, code, temporary)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn probe(caller: &Caller, probe: &str, argument: &str) -> (bool, String) {
    let arguments = json!({ "probe": probe, "argument": argument });
    serde_json::from_str(&caller.call("probe", arguments).await.said()).unwrap()
}

/// Runs a command line that is refused; `more` replaces nothing, it is added.
#[track_caller]
fn refused(line: &[String], code: i32, words: &[&str]) {
    let Output { status, stderr, .. } = thv().args(line).output().unwrap();
    let said = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(code), "{line:?}: {said}");
    for word in words {
        assert!(
            said.contains(word),
            "{line:?} does not say {word:?}: {said}"
        );
    }
}

#[tokio::test]
async fn the_articles_command_line_serves_in_the_foreground() {
    let running = Running::start(&["--oidc-client-id=thv-demo"], None).await;
    assert!(
        running.said[0]
            .contains("no --policy: every caller with a valid token may call everything"),
        "{:#?}",
        running.said
    );
    assert!(running.said.iter().any(|line| line.contains("run as uid ")));
    assert!(running.address.ip().is_loopback());
    assert_eq!(running.resource, format!("http://{}/mcp", running.address));
    let caller = running.session().await;
    assert_eq!(caller.call("echo", json!({})).await.status, 200);

    // Beside each refusal, the success above.
    assert_eq!(
        running.caller("somebody-else").initialize().await.status,
        401
    );
    let mut anonymous = running.caller("toolhive");
    anonymous.token = None;
    assert_eq!(anonymous.initialize().await.status, 401);

    let (said, code, temporary) = running.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(r#""THV_DECISION":"allow""#), "{said}");
    assert!(!said.contains(caller.token.as_deref().unwrap()));
    assert_eq!(
        fs::read_dir(temporary.path()).unwrap().count(),
        0,
        "its files are gone"
    );
}

/// A server that speaks HTTP in its sandbox is one line more.
#[tokio::test]
async fn a_server_that_speaks_http_runs_from_the_command_line() {
    let server = format!("{}/streamable.py", servers());
    let more = [
        "--transport",
        "streamable-http",
        "--target-port=9000",
        "--",
        "/usr/bin/python3",
        "-u",
        &server,
        "9000",
    ];
    let running = Running::start(&more, None).await;
    let caller = running.session().await;
    let answer = caller.call("echo", json!({ "n": 1 })).await;
    assert_eq!(answer.said(), "{\"n\": 1}");
    let (said, code, _) = running.end();
    assert_eq!(code, Some(0), "{said}");
}

#[tokio::test]
async fn a_client_id_is_compared() {
    let running = Running::start(&["--oidc-client-id=other"], None).await;
    assert_eq!(running.caller("toolhive").initialize().await.status, 401);
    // A service account of Kubernetes: this token is of none.
    let running = Running::start(&["--oidc-client-id=a.tools.svc.cluster.local"], None).await;
    assert_eq!(running.caller("toolhive").initialize().await.status, 401);
    for (namespace, account, status) in [
        ("tools", "a", 200),
        ("tools", "b", 401),
        ("other", "a", 401),
    ] {
        let token = running.issuer.sign(&json!({
            "iss": running.issuer.issuer(), "aud": "toolhive",
            "sub": format!("system:serviceaccount:{namespace}:{account}"),
            "iat": seconds(), "exp": seconds() + 600, "jti": "1",
            "kubernetes.io": {
                "namespace": namespace, "serviceaccount": { "name": account, "uid": "1" },
            },
        }));
        let mut caller = running.caller("toolhive");
        caller.token = Some(token.unwrap());
        let answer = caller.initialize().await;
        assert_eq!(
            answer.status,
            status,
            "{namespace}/{account}: {}",
            answer.text()
        );
    }
}

fn seconds() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

#[tokio::test]
async fn a_policy_decides() {
    let policies = temporary();
    let file = policies.path().join("it.cedar");
    fs::write(
        &file,
        r#"permit (principal, action == Action::"initialize", resource);
           permit (principal, action == Action::"tools/call", resource == Tool::"echo");"#,
    )
    .unwrap();
    let file = file.to_str().unwrap();
    let running = Running::start(&["--policy", file], None).await;
    assert!(!running.said.iter().any(|line| line.contains("everything")));
    let caller = running.session().await;
    assert_eq!(caller.call("echo", json!({})).await.status, 200);
    assert_eq!(caller.call("seen", json!({})).await.status, 403);
}

#[tokio::test]
async fn flags_reach_the_server_and_the_edge() {
    let data = temporary();
    fs::write(data.path().join("note"), "shown").unwrap();
    let profile = data.path().join("profile.json");
    fs::write(&profile, json!({ "read": [data.path()] }).to_string()).unwrap();
    let running = Running::start(
        &[
            "--env",
            "GREETING=a\"b\nc",
            "-e",
            "EMPTY=",
            "--permission-profile",
            profile.to_str().unwrap(),
            "--hosts",
            "mcp.example.com,other.example.com",
            "--resource",
            "https://mcp.example.com/mcp",
        ],
        None,
    )
    .await;
    assert_eq!(running.resource, "https://mcp.example.com/mcp");
    let caller = running.session().await;
    let environment: Value =
        serde_json::from_str(&probe(&caller, "environment", "").await.1).unwrap();
    assert_eq!(environment["GREETING"], "a\"b\nc");
    assert_eq!(environment["EMPTY"], "");
    let note = data.path().join("note");
    let note = note.to_str().unwrap();
    assert_eq!(
        probe(&caller, "read", note).await,
        (true, "shown".to_owned())
    );
    assert!(!probe(&caller, "write", note).await.0);
    let fresh = running.caller("toolhive");
    let bytes = fresh.bytes("POST", &crate::house::initialize("2025-11-25"));
    let text = String::from_utf8(bytes).unwrap();
    for (host, status) in [("other.example.com", 200), ("evil.example.com", 421)] {
        let host_line = format!("Host: {}", running.address);
        let request = text.replace(&host_line, &format!("Host: {host}"));
        let got = wire::exchange(running.address, request.as_bytes()).await;
        assert_eq!(got.status == 200, status == 200, "{host}: {}", got.text());
    }
}

/// The address that is listened on, and how it is named to clients.
#[tokio::test]
async fn another_address_is_listened_on() {
    for (host, more, resource) in [
        ("127.0.0.2", &[][..], "http://127.0.0.2:"),
        ("::1", &[], "http://[::1]:"),
        (
            "0.0.0.0",
            &["--resource", "https://mcp.example.com/mcp"],
            "https://mcp.example.com/mcp",
        ),
    ] {
        let running = Running::start(&[&["--host", host], more].concat(), None).await;
        assert_eq!(running.address.ip().to_string(), host);
        assert!(
            running.resource.starts_with(resource),
            "{}",
            running.resource
        );
        let mut caller = running.caller("toolhive");
        if host == "0.0.0.0" {
            // From outside it has the name that clients were given.
            caller.address = SocketAddr::from(([127, 0, 0, 3], running.address.port()));
            let bytes = caller.bytes("POST", &crate::house::initialize("2025-11-25"));
            let text = String::from_utf8(bytes).unwrap();
            let text = text.replace(
                &format!("Host: {}", caller.address),
                "Host: mcp.example.com",
            );
            let answer = wire::exchange(caller.address, text.as_bytes()).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        } else {
            let answer = caller.initialize().await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    }
}

/// Keys of an issuer without discovery; and each of several audiences.
#[tokio::test]
async fn keys_are_fetched_from_where_it_is_said() {
    let keys = DemoIssuer::start(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let silent = "http://127.0.0.1:9/realm";
    let start = |more: &[&str]| {
        let temporary = temporary();
        let mut command = thv();
        command
            .args(typed(silent, more))
            .env("TMPDIR", temporary.path());
        let issuer = DemoIssuer::start(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        Running::ready(command, issuer, temporary)
    };
    let status = async |running: &Running, audience: &str| {
        let token = keys.sign(&json!({
            "iss": silent, "aud": audience, "sub": "alice", "client_id": "c",
            "iat": seconds(), "exp": seconds() + 600, "jti": "1",
        }));
        let mut caller = running.caller(audience);
        caller.token = Some(token.unwrap());
        caller.initialize().await.status
    };
    let url = format!("{}/jwks", keys.issuer());
    let more = ["--oidc-jwks-url", &url, "--oidc-audience=second"];
    let running = start(&more);
    assert_eq!(status(&running, "toolhive").await, 200);
    assert_eq!(status(&running, "second").await, 200);
    assert_eq!(status(&running, "third").await, 401);
    // The control: discovery leads nowhere.
    let running = start(&[]);
    assert_eq!(status(&running, "toolhive").await, 503);
}

/// A profile's hosts are the server's only ways out.
#[tokio::test]
async fn a_profile_says_what_is_reached() {
    let place = temporary();
    let profile = place.path().join("profile.json");
    let outbound =
        json!({ "allow_host": ["allowed.invalid", ".wild.invalid"], "allow_port": [8443] });
    let text = json!({ "network": { "outbound": outbound } }).to_string();
    fs::write(&profile, text).unwrap();
    let running = Running::start(&["--permission-profile", profile.to_str().unwrap()], None).await;
    let caller = running.session().await;
    let (named, at) = probe(&caller, "name", "allowed.invalid").await;
    assert!(named && at.starts_with("127.77.0."), "{at}");
    let says = |to: &str| json!({ "to": to, "say": "x" }).to_string();
    for nowhere in ["other.invalid:8443", "allowed.invalid:443"] {
        assert!(!probe(&caller, "says", &says(nowhere)).await.0, "{nowhere}");
    }
    // It has no address: a door is there, and what came of it is on record.
    probe(&caller, "says", &says("allowed.invalid:8443")).await;
    let environment = probe(&caller, "environment", "").await.1;
    assert!(environment.contains("HTTPS_PROXY"), "{environment}");
    let (said, code, _) = running.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains(r#""THV_EGRESS":"allowed.invalid:8443""#),
        "{said}"
    );

    let running = Running::start(&["--permission-profile", "none"], None).await;
    let caller = running.session().await;
    assert!(!probe(&caller, "name", "allowed.invalid").await.0);
}

/// Without `--name` a server is called as its program is.
#[tokio::test]
async fn a_server_without_a_name_has_its_programs() {
    let issuer = DemoIssuer::start(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let temporary = temporary();
    let script = format!("{}/scripted.py", servers());
    let (shown, trusted) = (format!("{}:ro", servers()), issuer.issuer().to_owned());
    let mut command = thv();
    command
        .args(["run", "--foreground", "--port=0", "-v", &shown])
        .args(["--oidc-issuer", &trusted, "--oidc-audience", "toolhive"])
        .args(["--", "/usr/bin/python3", "-u", &script])
        .env("TMPDIR", temporary.path());
    let running = Running::ready(command, issuer, temporary);
    running.session().await;
    let (said, _, _) = running.end();
    assert!(said.contains("`python3` is served at"), "{said}");
}

/// probe-3, probe-4: what the gateway and its runner were given, by environment, arguments, policy and
/// credentials, is nowhere in a server's sight.
#[tokio::test]
async fn nothing_of_the_gateways_is_in_sight() {
    let (canary, place) = (canary(), temporary());
    let policy = place.path().join("it.cedar");
    fs::write(
        &policy,
        format!("// {canary}\npermit (principal, action, resource);"),
    )
    .unwrap();
    fs::write(place.path().join("other"), &canary).unwrap();
    let host = format!("{}.example.com", canary.replace('_', "-").to_lowercase());
    let issuer = DemoIssuer::start(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let temporary = temporary();
    let mut command = thv();
    let more = ["--policy", policy.to_str().unwrap(), "--hosts", &host];
    command
        .args(typed(issuer.issuer(), &more))
        .env("TMPDIR", temporary.path())
        .env("CREDENTIALS_DIRECTORY", place.path())
        .env("THV_CANARY", &canary);
    let running = Running::ready(command, issuer, temporary);
    let caller = running.session().await;
    for planted in [canary.as_str(), &host] {
        let marker: String = planted.bytes().map(|byte| format!("{byte:02x}")).collect();
        if nix::unistd::geteuid().is_root() {
            let (found, places) = crate::sandbox::outside("finds", &marker);
            assert!(found, "the control: {places}");
            let of = |pid: i32| places.contains(&format!("/proc/{pid}/"));
            assert!(of(running.pid()), "{places}");
            // The server's init is a copy of the runner, with all that it was given.
            let runner = children(running.process.id())[0];
            let init = children(runner)[0];
            assert!(
                planted == host || of(init.cast_signed()),
                "{planted}: {places}"
            );
        }
        let (found, places) = probe(&caller, "finds", &marker).await;
        assert!(!found && places.starts_with("in none of"), "{places}");
    }
}

/// probe-3, probe-4: a secret reaches the server that it is for, and nothing else.
#[tokio::test]
async fn a_secret_is_in_its_variable_and_nowhere_else() {
    let credentials = temporary();
    fs::set_permissions(credentials.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let canary = canary();
    let file = credentials.path().join("api-key");
    fs::write(&file, format!("{canary}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o400)).unwrap();
    let running = Running::start(
        &["--secret", "api-key,target=API_KEY"],
        Some(credentials.path()),
    )
    .await;
    let caller = running.session().await;

    // Before the server says it to anybody.
    let gateway = running.process.id();
    let [runner] = children(gateway)[..] else {
        panic!("the gateway has {:?}", children(gateway));
    };
    let init = children(runner)[0];
    let server = children(init)[0];
    if nix::unistd::geteuid().is_root() {
        assert!(holds(server, &canary), "the control: the server has it");
        for other in [gateway, runner, init] {
            assert!(!holds(other, &canary), "process {other} holds the secret");
        }
    }
    for process in [gateway, runner, init, server] {
        let line = fs::read(format!("/proc/{process}/cmdline")).unwrap();
        assert!(!String::from_utf8_lossy(&line).contains(&canary));
    }
    for found in files(running.temporary.path()) {
        let text = fs::read(&found).unwrap();
        assert!(
            !String::from_utf8_lossy(&text).contains(&canary),
            "{}",
            found.display()
        );
    }

    let environment: Value =
        serde_json::from_str(&probe(&caller, "environment", "").await.1).unwrap();
    assert_eq!(
        environment["API_KEY"],
        canary.as_str(),
        "without its line break"
    );
    for path in [
        "/proc/1/environ",
        credentials.path().to_str().unwrap(),
        "/run/credentials",
    ] {
        assert!(!probe(&caller, "open", path).await.0, "{path}");
    }
    let (said, _, _) = running.end();
    assert!(!said.contains(&canary), "{said}");
}

/// A secret that is missing starts no server, and says so where it is looked for.
#[tokio::test]
async fn a_secret_that_is_not_there_is_refused() {
    let issuer = DemoIssuer::start(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let line = typed(issuer.issuer(), &["--secret", "api-key,target=API_KEY"]);
    let run = thv()
        .args(&line)
        .env("CREDENTIALS_DIRECTORY", "/nonexistent")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(
        !run.status.success() && said.contains("--secret api-key"),
        "{said}"
    );
    assert_eq!(said.matches("No such file").count(), 1, "{said}");
    // Nor is whoever has no such directory sent to a unit.
    let run = thv()
        .args(&line)
        .env_remove("CREDENTIALS_DIRECTORY")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(
        !run.status.success() && said.contains("`CREDENTIALS_DIRECTORY=DIR thv run …`"),
        "{said}"
    );
}

/// probe-3, probe-4: `credential-file` is a private file, for the server to read alone.
#[tokio::test]
async fn a_secret_as_a_file_is_private_and_read_only() {
    let root = temporary();
    let credentials = temporary();
    let canary = canary();
    fs::write(credentials.path().join("api-key"), &canary).unwrap();
    fs::write(credentials.path().join("runner-key"), "x").unwrap();
    let issuer = DemoIssuer::start(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    // Its port is free again when the gateway takes it.
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let toml = |credential: &str| {
        format!(
            "command = [\"/usr/bin/python3\", \"-u\", \"{0}/scripted.py\"]\nresource = \"http://{address}/mcp\"\n\
             authz.allow = \"authenticated\"\n[[auth.issuer]]\nissuer = \"{1}\"\naudience = \"toolhive\"\n\
             [sandbox]\noptional = [\"cgroup\"]\nread-only = [\"{0}\"]\n\
             [env]\nKEY_FILE = {{ credential-file = \"{credential}\" }}\nSAME = {{ credential-file = \"{credential}\" }}\n",
            servers(),
            issuer.issuer()
        )
    };
    for (credential, starts) in [("api-key", true), ("missing", false), ("runner-key", false)] {
        write_server(root.path(), &toml(credential));
        let mut gateway = thv()
            .args([
                "--root",
                root.path().to_str().unwrap(),
                "run-unit",
                "it",
                &address.to_string(),
            ])
            .env("CREDENTIALS_DIRECTORY", credentials.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stderr = BufReader::new(gateway.stderr.take().unwrap());
        stderr.read_line(&mut line).unwrap();
        assert!(line.contains("serving"), "{line}");
        let mut caller = Caller {
            address,
            token: Some(issuer.token("alice", "toolhive", &[]).unwrap()),
            session: None,
        };
        let answer = caller.initialize().await;
        assert_eq!(
            answer.status == 200,
            starts,
            "{credential}: {}",
            answer.text()
        );
        if starts {
            let environment: Value =
                serde_json::from_str(&probe(&caller, "environment", "").await.1).unwrap();
            let path = environment["KEY_FILE"].as_str().unwrap();
            assert_eq!(environment["SAME"], path);
            assert_eq!(path, "/run/secrets/api-key");
            assert_eq!(probe(&caller, "read", path).await, (true, canary.clone()));
            assert!(!probe(&caller, "write", path).await.0);
            assert!(!probe(&caller, "write", "/run/secrets/x").await.0);
            assert_eq!(probe(&caller, "list", "/run/secrets").await.1, "api-key");
        }
        kill(Pid::from_raw(gateway.id().cast_signed()), Signal::SIGTERM).unwrap();
        gateway.wait().unwrap();
    }
}

#[tokio::test]
async fn what_would_not_take_effect_is_refused_with_the_line_to_type() {
    let issuer = "http://127.0.0.1:9";
    let place = temporary();
    let socket = place.path().join("docker.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    for (more, words) in [
        (&["--transport", "sse"][..], &["--transport stdio"][..]),
        (&["--transport", "streamable-http"], &["--target-port PORT"]),
        (&["--target-port", "8080"], &["--transport streamable-http"]),
        (
            &["--oidc-audience \"toolhive\""],
            &["--oidc-audience=toolhive", "one argument"],
        ),
        (
            &["--oidc-client-id=\"x\""],
            &["--oidc-client-id=x", "quotes"],
        ),
        (&["--foregruond"], &["--foreground"]),
        (&["--oidc-issuer", issuer], &["--oidc-issuer"]),
        (&["--host", "0.0.0.0"], &["--resource https://"]),
        (&["--host", "my-host"], &["an address is wanted"]),
        (&["--env", "A"], &["--env A=VALUE"]),
        (&["--env", "A=1", "--env", "A=2"], &["twice"]),
        (&["--secret", "key"], &["CREDENTIAL,target=VARIABLE"]),
        (&["--env", "A=1", "--secret", "key,target=A"], &["twice"]),
        (
            &["--volume", "/usr:/data:ro"],
            &["own place", "--volume /usr:ro"],
        ),
        (&["--volume", "/usr"], &["--volume /usr:ro"]),
        (&["--volume", "/nonexistent:ro"], &["not there"]),
        (&["--volume", ":ro"], &["--volume PATH:ro"]),
        (
            &["--volume", &format!("{}:ro", socket.display())],
            &["docker.sock", "is a socket", "leave it out"],
        ),
        (&["--foreground", "false"], &["--foreground=false"]),
        (&["--policy", "/nonexistent"], &["--policy"]),
        (&["--permission-profile", "network"], &["network"]),
        (
            &["mcp/everything"],
            &["which registry", "docker.io/mcp/everything"],
        ),
        (&["npx://server"], &["-- PROGRAM"]),
        (&["--port", "70000"], &["--port"]),
    ] {
        refused(&typed(issuer, more), 64, words);
    }
    // What only the configuration can judge is said in the words of the command line.
    let policies = temporary();
    let bad = policies.path().join("bad.cedar");
    fs::write(
        &bad,
        "permit (principal, action, resource) when { nonsense };",
    )
    .unwrap();
    let inward = policies.path().join("profile.json");
    fs::write(
        &inward,
        r#"{"network":{"outbound":{"allow_host":["localhost"]}}}"#,
    )
    .unwrap();
    for (more, words) in [
        (
            &["--permission-profile", inward.to_str().unwrap()][..],
            &["--permission-profile: inside, `localhost`"][..],
        ),
        (
            &["--resource", "http://mcp.example.com/"][..],
            &["--resource", "https"][..],
        ),
        (&["--hosts", "https://x"], &["--hosts"]),
        (&["--env", "1A=x"], &["--env"]),
        (&["--secret", "good,target=1A"], &["--secret", "variable"]),
        (&["--secret", "../x,target=A"], &["--secret", "credential"]),
        (&["--volume", "/etc:ro"], &["--volume"]),
        (
            &["--oidc-jwks-url", "http://sso.example.com/"],
            &["--oidc-jwks-url", "https"],
        ),
        (
            &["--policy", bad.to_str().unwrap()],
            &["--policy", "bad.cedar:1:"],
        ),
    ] {
        refused(&typed(issuer, more), 78, words);
    }
    let line = |line: &[&str]| {
        line.iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    refused(
        &line(&["run", "--foreground", "--", "cat"]),
        64,
        &["--oidc-issuer"],
    );
    // As a unit, which has a port that is known and that it may take.
    for (port, word) in [("0", "--foreground"), ("80", "above 1023")] {
        let mut line = typed(issuer, &["--port", port]);
        line.retain(|word| !word.starts_with("--foreground"));
        if port == "0" || Path::new("/run/systemd/system").exists() {
            refused(&line, 64, &["--port", word]);
        }
    }
    refused(
        &line(&["run", "--foreground", "--oidc-issuer", issuer, "--", "cat"]),
        64,
        &["--oidc-audience"],
    );
    refused(
        &line(&["run", "--oidc-issuer", issuer, "--oidc-audience", "a"]),
        64,
        &["-- COMMAND"],
    );
    refused(
        &line(&[
            "run",
            "--oidc-issuer",
            issuer,
            "--oidc-audience",
            "a",
            "--",
            "no-such-program",
        ]),
        64,
        &["no-such-program"],
    );
}

/// A program below a home that only root may enter, started by root, which becomes somebody else.
#[tokio::test]
async fn a_program_in_a_closed_directory_runs() {
    let home = temporary();
    let program = home.path().join("server");
    let script = format!(
        "#!/bin/sh\nexec /usr/bin/python3 -u {}/scripted.py\n",
        servers()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let running = Running::start(&["--", program.to_str().unwrap()], None).await;
    assert!(
        running
            .said
            .iter()
            .any(|line| line.contains("outside /usr"))
    );
    let caller = running.session().await;
    assert_eq!(caller.call("echo", json!({})).await.status, 200);
}

/// Something that is in no other process.
fn canary() -> String {
    format!("CANARY_{}_{}", std::process::id(), seconds()).replace('C', "c")
}

/// The children of a process, which has one thread that forks.
fn children(process: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for thread in fs::read_dir(format!("/proc/{process}/task")).unwrap() {
        let list = fs::read_to_string(thread.unwrap().path().join("children")).unwrap();
        found.extend(
            list.split_whitespace()
                .map(|pid| pid.parse::<u32>().unwrap()),
        );
    }
    found
}

/// Whether a process has a text anywhere in its memory.
fn holds(process: u32, text: &str) -> bool {
    use std::os::unix::fs::FileExt;
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let memory = fs::File::open(format!("/proc/{process}/mem")).unwrap();
    maps.lines().any(|line| {
        let mut words = line.split_whitespace();
        let (from, to) = words.next().unwrap().split_once('-').unwrap();
        let is_private_data = words.next().unwrap().starts_with("rw");
        let from = u64::from_str_radix(from, 16).unwrap();
        let to = u64::from_str_radix(to, 16).unwrap();
        let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
        is_private_data
            && bytes.len() < 256 << 20
            && memory.read_at(&mut bytes, from).is_ok()
            && bytes
                .windows(text.len())
                .any(|window| window == text.as_bytes())
    })
}

/// Every file below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files(&entry.path()));
        } else if kind.is_file() {
            found.push(entry.path());
        }
    }
    found
}

/// probe-80: where no network can be made beside the rest, that is said with the cure, and nothing is left.
#[test]
fn a_network_that_cannot_be_made_says_what_to_do() {
    let root = temporary();
    write_server(
        root.path(),
        "command = [\"/usr/bin/true\"]\nresource = \"http://localhost/\"\nauth.mode = \"none\"\n\
         authz.allow = \"authenticated\"\n",
    );
    // The limit is that of a user namespace of its own, and so is what it is counted in.
    let visit = |most: &str| {
        Command::new("unshare")
            .args(["--user", "--map-root-user", "sh", "-c"])
            .arg("echo \"$2\" >/proc/sys/user/max_net_namespaces && exec \"$0\" --root \"$1\" sandbox it -- true")
            .args([Path::new(env!("CARGO_BIN_EXE_thv")), root.path()])
            .arg(most)
            .output()
            .unwrap()
    };
    let none = visit("0");
    let said = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(!none.status.success(), "{said}");
    for word in [
        "namespaces: making a network",
        "sysctl user.max_net_namespaces",
    ] {
        assert!(said.contains(word), "{said}");
    }
    let some = visit("10");
    assert!(some.status.success(), "{some:?}");
}

/// A look around sees what the server would, and ends as its command does.
#[tokio::test]
async fn a_visitor_sees_what_the_server_would() {
    let root = temporary();
    let shown = temporary();
    fs::write(shown.path().join("note"), "shown").unwrap();
    let write = |more: &str| {
        write_server(
            root.path(),
            &format!(
                "command = [\"/usr/bin/true\"]\nresource = \"http://localhost/\"\nauth.mode = \"none\"\n\
                 authz.allow = \"authenticated\"\nsandbox.read-only = [{:?}]\n[env]\nPLAIN = \"x\"\n\
                 TOKEN = {{ credential = \"t\" }}\n{more}",
                shown.path()
            ),
        );
    };
    write("");
    let visit = |command: &[&str]| {
        thv()
            .args([
                "--root",
                root.path().to_str().unwrap(),
                "sandbox",
                "it",
                "--",
            ])
            .args(command)
            .output()
            .unwrap()
    };
    let note = shown.path().join("note");
    let looked = visit(&["cat", note.to_str().unwrap()]);
    assert_eq!(looked.stdout, b"shown", "{looked:?}");
    let said = String::from_utf8(looked.stderr).unwrap();
    assert!(said.contains("TOKEN"), "{said}");
    assert_eq!(visit(&["sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(visit(&["sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    assert!(
        String::from_utf8(visit(&["env"]).stdout)
            .unwrap()
            .contains("PLAIN=x")
    );
    // A person who is not root looks around as well, under their own name.
    if nix::unistd::geteuid().is_root() {
        use std::os::unix::process::CommandExt as _;
        let mut ordinary = thv();
        ordinary.uid(65534).gid(65534).arg("--root");
        ordinary.arg(root.path()).args(["sandbox", "it", "--"]);
        let looked = ordinary.args(["cat", note.to_str().unwrap()]).output();
        let looked = looked.unwrap();
        assert_eq!(looked.stdout, b"shown", "{looked:?}");
    }
    // Beside it, what it does not see.
    assert_ne!(visit(&["cat", "/etc/shadow"]).status.code(), Some(0));
    assert_ne!(visit(&["ls", "/root"]).status.code(), Some(0));
    assert_eq!(visit(&["no-such-program"]).status.code(), Some(64));
    let gone = visit(&["/usr/bin/no-such-program"]);
    assert!(
        String::from_utf8_lossy(&gone.stderr).contains("exec: "),
        "{gone:?}"
    );
}

#[test]
fn the_doctor_tells_of_each_layer_and_tries_a_sandbox() {
    let run = thv().args(["doctor", "--json"]).output().unwrap();
    let findings: Vec<Value> = serde_json::from_slice(&run.stdout).unwrap();
    let state = |what: &str| {
        let found = findings.iter().find(|finding| finding["what"] == what);
        found.unwrap_or_else(|| panic!("nothing of {what}: {findings:#?}"))["state"].clone()
    };
    for what in [
        "kernel",
        "user namespaces",
        "unprivileged",
        "AppArmor",
        "seccomp",
        "a sandbox",
    ] {
        assert_eq!(state(what), "good", "{what}: {findings:#?}");
    }
    let bad = findings.iter().filter(|finding| finding["state"] == "bad");
    for finding in bad.clone() {
        assert_ne!(finding["fix"], "", "{finding}");
    }
    assert_eq!(
        run.status.code(),
        Some(if bad.count() == 0 { 0 } else { 71 })
    );
    // Without namespaces it is not good, and says so.
    let nested = Command::new("unshare")
        .args(["--user", "--map-root-user", "sh", "-c"])
        .arg(format!(
            "echo 0 > /proc/sys/user/max_user_namespaces && exec {} doctor",
            env!("CARGO_BIN_EXE_thv")
        ))
        .output()
        .unwrap();
    let table = String::from_utf8_lossy(&nested.stdout);
    assert_eq!(nested.status.code(), Some(71), "{table}");
    assert!(table.contains("max_user_namespaces=15000"), "{table}");
    let trial = table
        .lines()
        .find(|line| line.starts_with("a sandbox"))
        .unwrap();
    assert!(trial.contains("BAD"), "{table}");
}

/// Where no namespaces can be made, as in many containers, nothing is fetched and nothing starts: what
/// forbids them is named, and what to do instead.
#[test]
fn where_no_sandbox_can_be_made_the_setting_and_the_ways_out_are_named() {
    let without = format!("{}/without_calls.py", servers());
    let image = ["docker.io/mcp/everything:1"];
    let program = ["--", "/usr/bin/cat"];
    let nested = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" \"$@\"";
    for (around, forbids) in [
        (
            &["unshare", "--user", "--map-root-user", "sh", "-c", nested][..],
            "`/proc/sys/user/max_user_namespaces` is 0: allow some with `sysctl -w user.max_user_namespaces=15000`",
        ),
        (
            &["/usr/bin/python3", &without, "435"],
            "a container's seccomp profile must let clone3, unshare and mount through",
        ),
    ] {
        for (is_in_container, runs, what) in [
            (true, &image[..], "IMAGE"),
            (false, &program[..], "COMMAND"),
        ] {
            let mut command = Command::new(around[0]);
            command
                .args(&around[1..])
                .arg(env!("CARGO_BIN_EXE_thv"))
                .args(["run", "--foreground", "--port", "0"])
                .args([
                    "--oidc-issuer",
                    "http://127.0.0.1:9",
                    "--oidc-audience",
                    "x",
                ])
                .args(runs)
                .env_remove("container")
                .env_remove("KUBERNETES_SERVICE_HOST");
            if is_in_container {
                command.env("container", "oci");
            }
            let run = command.output().unwrap();
            let said = String::from_utf8_lossy(&run.stderr);
            assert_eq!(run.status.code(), Some(71), "{said}");
            for word in [
                &format!("thv: {what}: "),
                forbids,
                "on the host itself",
                "[upstream]",
            ] {
                assert!(said.contains(word), "{word}: {said}");
            }
            assert!(
                !is_in_container || said.contains("this container"),
                "{said}"
            );
            assert!(
                !said.contains("pulling") && !said.contains("kubernetes"),
                "{said}"
            );
        }
    }
}

/// Newer kernels let nobody mount a /proc that shows more than the one around: which of the two
/// a server has is said.
#[test]
fn the_doctor_tells_which_proc_a_server_has() {
    let without = format!("{}/without_calls.py", servers());
    let no_whole_proc = format!("{}:3=14:4=0", libc::SYS_mount);
    for (calls, state, word) in [
        (libc::SYS_kexec_load.to_string(), "good", "whole"),
        (no_whole_proc, "absent", "/proc/meminfo"),
    ] {
        let run = Command::new("/usr/bin/python3")
            .args([&without, &calls, env!("CARGO_BIN_EXE_thv")])
            .args(["doctor", "--json"])
            .output()
            .unwrap();
        let findings: Vec<Value> = serde_json::from_slice(&run.stdout).unwrap();
        let found = findings.iter().find(|finding| finding["what"] == "/proc");
        let found = found.unwrap_or_else(|| panic!("{findings:#?}"));
        assert_eq!(found["state"], state, "{found}");
        assert!(found["found"].as_str().unwrap().contains(word), "{found}");
    }
}

/// On a host where each thing is wrong that can be, each is said with what to do.
#[test]
fn the_doctor_says_what_to_do_about_each_layer() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: making a host look ill needs root");
        return;
    }
    let without = format!("{}/without_calls.py", servers());
    // Settings of a kernel that is not this one, its control groups, its programs and its age.
    let script = "\
        set -e
        mount -t tmpfs none /proc/sys
        mkdir -p /proc/sys/kernel/seccomp /proc/sys/user
        echo 0 > /proc/sys/user/max_user_namespaces
        echo 0 > /proc/sys/kernel/unprivileged_userns_clone
        echo 1 > /proc/sys/kernel/apparmor_restrict_unprivileged_userns
        echo allow > /proc/sys/kernel/seccomp/actions_avail
        mount -t tmpfs none /sys/fs/cgroup
        test ! -d /etc/apparmor.d || mount -t tmpfs none /etc/apparmor.d
        exec setarch --uname-2.6 /usr/bin/python3 \"$1\" \"$2\" \"$0\" doctor --json";
    let run = Command::new("unshare")
        .args(["--mount", "--propagation=private", "sh", "-c", script])
        .args([env!("CARGO_BIN_EXE_thv"), &without])
        .arg(libc::SYS_landlock_create_ruleset.to_string())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    let findings: Vec<Value> =
        serde_json::from_slice(&run.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(run.status.code(), Some(71), "{findings:#?}");
    for (what, fix) in [
        ("kernel", "5.14"),
        ("user namespaces", "sysctl -w user.max_user_namespaces"),
        (
            "unprivileged",
            "sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        ("AppArmor", "apparmor_parser -r /etc/apparmor.d/thv-runner"),
        ("seccomp", "CONFIG_SECCOMP_FILTER"),
        ("Landlock", "`lsm=`"),
        ("cgroup", "systemd.unified_cgroup_hierarchy=1"),
        ("a sandbox", "mend what is BAD"),
    ] {
        let found = findings.iter().find(|finding| finding["what"] == what);
        let found = found.unwrap_or_else(|| panic!("nothing of {what}"));
        assert_eq!(found["state"], "bad", "{found:#}");
        assert!(found["fix"].as_str().unwrap().contains(fix), "{found:#}");
    }
    // Without podman nothing is wrong where nobody asks for it; with half of it there is.
    for (there, state, word) in [
        (
            ": > /usr/bin/podman && : > /usr/bin/conmon",
            "absent",
            "installed without crun",
        ),
        ("true", "absent", "not installed"),
    ] {
        let run = Command::new("unshare")
            .args(["--mount", "--propagation=private", "sh", "-c"])
            .arg(format!(
                "mount -t tmpfs none /usr/bin && {there} && exec \"$0\" doctor --json"
            ))
            .arg(env!("CARGO_BIN_EXE_thv"))
            .output()
            .unwrap();
        let findings: Vec<Value> = serde_json::from_slice(&run.stdout).unwrap();
        let found = findings.iter().find(|finding| finding["what"] == "podman");
        let found = found.unwrap();
        assert_eq!(found["state"], state, "{found:#}");
        assert!(found["found"].as_str().unwrap().contains(word), "{found:#}");
    }
}

/// mcp-T28: subscriptions end well when thv ends, and a call that waits for its client is not waited for.
#[tokio::test]
async fn what_waits_for_a_client_does_not_hold_up_the_end() {
    let running = Running::start(&[], None).await;
    let alice = running.caller("toolhive");
    let meta = json!({ "io.modelcontextprotocol/clientCapabilities": { "elicitation": {} } });
    let ask = body(1, "tools/call", json!({ "name": "ask" }), meta);
    let asked = wire::exchange(
        alice.address,
        &modern::bytes(&alice, "tools/call", Some("ask"), &ask),
    )
    .await;
    assert_eq!(asked.json()["result"]["resultType"], "input_required");
    let listen = modern::listens(&alice, 2, json!({}));
    let mut stream = wire::Events::open(alice.address, &listen).await;
    stream.next().await;
    let since = std::time::Instant::now();
    let ending = tokio::task::spawn_blocking(move || running.end());
    assert_eq!(stream.next().await["result"]["resultType"], "complete");
    drop(stream);
    let (said, code, _) = ending.await.unwrap();
    assert_eq!(code, Some(0), "{said}");
    // Running calls would be given twice that.
    assert!(
        since.elapsed() < std::time::Duration::from_secs(10),
        "{said}"
    );
}

/// An image in place of a command, pulled into the state of whom the server runs as.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_a_registry_is_served() {
    let registry = Registry::open().await;
    let (layer, configuration) = image::demo();
    let kind = "application/vnd.oci.image.layer.v1.tar";
    let (_, digest) = registry.push("mcp/it", "latest", &configuration, &[(kind, layer)]);
    let name = format!("{}/mcp/it", registry.host());
    let start = |ordinary: bool, temporary: TempDir| {
        let issuer = DemoIssuer::start(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        let authorities = temporary.path().join("ca.pem");
        fs::write(&authorities, authority()).unwrap();
        let mut command = thv();
        command
            .args([
                "run",
                "--port=0",
                "--foreground",
                "--oidc-audience=toolhive",
            ])
            .args(["--oidc-issuer", issuer.issuer(), "--env=GIVEN=1", &name])
            .env("TMPDIR", temporary.path())
            .env("HOME", temporary.path())
            .env_remove("XDG_STATE_HOME")
            .env("SSL_CERT_FILE", authorities);
        if ordinary && nix::unistd::geteuid().is_root() {
            std::os::unix::process::CommandExt::uid(&mut command, 65534);
            std::os::unix::process::CommandExt::gid(&mut command, 65534);
        }
        tokio::task::spawn_blocking(move || Running::ready(command, issuer, temporary))
    };
    let running = start(false, temporary()).await.unwrap();
    assert!(
        running.said.iter().any(|line| line.contains(&digest)),
        "{:#?}",
        running.said
    );
    let caller = running.session().await;
    let looked = caller.call("look_around", json!({})).await;
    assert_eq!(looked.status, 200, "{}", looked.text());
    let (said, code, place) = running.end();
    assert_eq!(code, Some(0), "{said}");
    let mut left: Vec<_> = fs::read_dir(place.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.retain(|name| name != "ca.pem" && name != ".local");
    assert!(left.is_empty(), "{left:?}");

    // A person keeps it: the second time nothing but the manifest is asked for.
    let mut place = temporary();
    for blobs in [2, 0] {
        registry.with(|state| state.asked.clear());
        let running = start(true, place).await.unwrap();
        running.session().await;
        (_, _, place) = running.end();
        let asked = registry.asked();
        let of_blobs = asked
            .iter()
            .filter(|asked| asked.contains("/blobs/"))
            .count();
        assert_eq!(of_blobs, blobs, "{asked:#?}");
        assert!(
            place
                .path()
                .join(".local/state/thv/run/it/image/current")
                .exists()
        );
    }
}

/// What stands after `--` is what the image's own program is given, in place of the image's own.
#[tokio::test(flavor = "multi_thread")]
async fn an_images_program_is_given_what_is_typed() {
    let place = temporary();
    let archive = place.path().join("image.tar");
    crate::podman::save(&archive);
    fs::set_permissions(&archive, fs::Permissions::from_mode(0o644)).unwrap();
    let image = format!("docker-archive:{}", archive.display());
    let script = format!("{}/scripted.py", servers());
    let list = r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#;
    for (typed, tools) in [
        (&["--", &script, "--tools", "3", "1"][..], 3),
        (&["--", &script, "--tools", "7", "1"], 7),
    ] {
        let more = [&["--volume=/usr:ro", &image], typed].concat();
        let running = Running::start(&more, None).await;
        let caller = running.session().await;
        let listed = caller.post(list).await.json();
        let found = listed["result"]["tools"].as_array().unwrap().len();
        assert_eq!(found, tools, "{listed}");
        let (here, _) = probe(&caller, "open", "/etc/of-the-image").await;
        assert!(here, "the root is the image's");
    }
}

#[test]
fn what_is_no_image_is_refused() {
    let with = |image: &str| {
        let line = "run --foreground --oidc-issuer=https://x.example --oidc-audience=x";
        let mut line: Vec<String> = line.split(' ').map(str::to_owned).collect();
        line.push(image.to_owned());
        line
    };
    refused(&with("npx://x"), 64, &["install the package"]);
    refused(
        &with("everything"),
        64,
        &[
            "does not say of which registry",
            "`docker.io/library/everything`",
            "not looked up",
        ],
    );
    refused(&with("io.github.stacklok/fetch"), 64, &["MCP's registry"]);
    refused(
        &with("oci-archive:/nowhere.tar"),
        1,
        &["/nowhere.tar", "not pulled"],
    );
}

/// fault-36: without a descriptor left, accepting pauses; who is connected is answered, and others when there is room.
#[tokio::test]
async fn a_full_descriptor_table_is_waited_out() {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        time::timeout,
    };
    let running = few_descriptors(42);
    // Half of the descriptors are for connections: these sessions hold more than the other half.
    let callers = [
        running.session().await,
        running.session().await,
        running.session().await,
    ];
    let mut kept = TcpStream::connect(running.address).await.unwrap();
    let request = format!("GET /mcp HTTP/1.1\r\nHost: {}\r\n\r\n", running.address);
    let mut ask = async || {
        kept.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 4096];
        let read = timeout(wire::PATIENCE, kept.read(&mut answer));
        let read = read.await.unwrap().unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 401"));
    };
    ask().await;
    let mut crowd = Vec::new();
    let started = std::time::Instant::now();
    for _ in 0..30 {
        crowd.push(TcpStream::connect(running.address).await.unwrap());
    }
    ask().await;
    for _ in 0..200 {
        ask().await;
    }
    let pauses = started.elapsed().as_secs() + 2;
    drop(crowd);
    for caller in callers {
        assert_eq!(caller.call("echo", json!({})).await.status, 200);
    }
    let (said, code, _) = running.end();
    assert_eq!(code, Some(0), "{said}");
    // One a second at the most: it must not spin.
    let failures = said.matches("accepting failed, pausing").count() as u64;
    assert!((1..=pauses + 1).contains(&failures), "{failures}: {said}");
}

/// fault-36: half of the descriptors are for connections, so that children can be started.
#[tokio::test]
async fn connections_leave_descriptors_for_children() {
    let running = few_descriptors(64);
    let mut crowd = Vec::new();
    for _ in 0..100 {
        crowd.push(
            tokio::net::TcpStream::connect(running.address)
                .await
                .unwrap(),
        );
    }
    let caller = running.session().await;
    assert_eq!(caller.call("echo", json!({})).await.status, 200);
    let (said, code, _) = running.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("accepting failed"), "{said}");
}

/// A thv that may open so many descriptors.
fn few_descriptors(limit: usize) -> Running {
    let issuer = DemoIssuer::start(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let temporary = temporary();
    let mut command = Command::new("prlimit");
    command
        .arg(format!("--nofile={limit}:{limit}"))
        .arg(env!("CARGO_BIN_EXE_thv"))
        .args(typed(issuer.issuer(), &[]))
        .env("TMPDIR", temporary.path())
        .env_remove("CREDENTIALS_DIRECTORY");
    Running::ready(command, issuer, temporary)
}

/// As thv(1) has it, whether it is help or an answer.
#[test]
fn output_that_cannot_be_written_has_an_exit_code_of_its_own() {
    let root = temporary();
    let file = root.path().join("etc/thv/servers/it.toml");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let text = "command = [\"/bin/sh\"]\nresource = \"https://h/x\"\nauth.mode = \"peer\"\nauthz.allow = \"authenticated\"\n";
    fs::write(file, text).unwrap();
    let root = root.path().to_str().unwrap();
    for line in [
        &["--help"][..],
        &["--root", root, "check", "it"],
        &["--root", root, "check", "--json"],
        &["doctor"],
        &["demo", "--once"],
    ] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let done = thv().args(line).stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.code(), Some(74), "{line:?}: {said}");
    }
    // A reader that has seen enough is no failure.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let done = thv().arg("--help").stdout(writer).output().unwrap();
    assert!(done.status.success());
}

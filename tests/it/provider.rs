//! A certified identity provider in a process of its own, through its whole life:
//! it issues tokens, rotates its keys, is flooded with questions, halted, killed
//! and started again. What the gateway asks of it is counted at its own listener.
//!
//! The gateway measures the age of keys by tokio's clock, which these tests
//! advance between requests (`pass`); provider, sockets and the tokens' own
//! times are real, and nothing in the gateway knows of it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::{
    house::{Caller, House, call, house},
    identity::{is_refused, is_refused_beside},
    refusals_keys::is_put_off,
    wire::{self, Answer, PATIENCE},
};

const DISCOVERY: &str = "/.well-known/openid-configuration";
const JWKS: &str = "/jwks";
const TOKEN: &str = "/token";
/// Between two questions, while the gateway has keys (tests/cases/tokens.md 1.7).
const COOL_DOWN: Duration = Duration::from_secs(30);
/// Longer than any set is fresh.
const TIME_TO_LIVE: Duration = Duration::from_secs(601);
/// Longer than any set is used while its issuer is away.
const MAX_STALE: Duration = Duration::from_secs(3601);

/// oidc-provider, running.
struct Provider {
    address: SocketAddr,
    files: TempDir,
    process: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Provider {
    /// `None`, and why on standard error, where it cannot run.
    fn start() -> Option<Self> {
        let modules =
            PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".cache/host/npm/node_modules");
        let node = Command::new("node").arg("--version").output().is_ok();
        if !node || !modules.join("oidc-provider").exists() {
            let mut out = std::io::stderr();
            let _ = writeln!(
                out,
                "skipped: `node` and the packages of tests/host/peers are needed; `tests/run` installs them"
            );
            return None;
        }
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let files = tempfile::tempdir().unwrap();
        // Modules are looked for beside the script.
        symlink(modules, files.path().join("node_modules")).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/servers/provider.mjs");
        std::fs::copy(script, files.path().join("provider.mjs")).unwrap();
        let (process, orders, answers) = run(address, files.path());
        Some(Self {
            address,
            files,
            process,
            orders,
            answers,
        })
    }

    /// Gone: nobody listens there any more.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// The same provider again, as after a restart of its service.
    fn start_again(&mut self) {
        (self.process, self.orders, self.answers) = run(self.address, self.files.path());
    }

    /// Connections are still accepted, by the kernel, and nothing is ever said.
    fn halt(&self) {
        kill(Pid::from_raw(self.process.id() as i32), Signal::SIGSTOP).unwrap();
    }

    fn go_on(&self) {
        kill(Pid::from_raw(self.process.id() as i32), Signal::SIGCONT).unwrap();
    }

    fn order(&mut self, order: &str) -> Value {
        writeln!(self.orders, "{order}").unwrap();
        line(&mut self.answers)
    }

    fn connections(&mut self) -> u64 {
        self.order("counts")["connections"].as_u64().unwrap()
    }

    fn asked(&mut self, path: &str) -> u64 {
        self.order("counts")["requests"][path]
            .as_u64()
            .unwrap_or_default()
    }

    /// The name of the key that signs.
    fn rotate(&mut self) -> String {
        self.order("rotate")["signs"].as_str().unwrap().to_owned()
    }

    async fn post(&self, body: &str) -> Answer {
        ask(self.address, "POST", TOKEN, &[], body).await
    }

    /// A program's token for itself (RFC 6749 §4.4, RFC 8707).
    async fn token(&self, resource: &str) -> String {
        issued(self.address, resource).await
    }

    /// A person's token: authorization code with PKCE, cookies and redirects as a browser does it.
    async fn token_of_a_person(&self, resource: &str) -> String {
        let verifier = "a-verifier-of-at-least-forty-three-characters-0";
        let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, verifier.as_bytes()));
        let resource = escaped(resource);
        let mut at = format!(
            "/auth?client_id=desktop&response_type=code&redirect_uri=http%3A%2F%2F127.0.0.1%2Fcallback&scope=openid%20mcp\
             &resource={resource}&code_challenge={challenge}&code_challenge_method=S256"
        );
        let mut cookies: Vec<String> = Vec::new();
        let mut steps = 0;
        let code = loop {
            steps += 1;
            assert!(steps < 10, "led around: {at}");
            let jar = cookies.join("; ");
            let answer = ask(self.address, "GET", &at, &[("Cookie", &jar)], "").await;
            assert!((302..=303).contains(&answer.status), "{at}: {answer:?}");
            for (_, cookie) in answer
                .headers
                .iter()
                .filter(|(name, _)| name == "set-cookie")
            {
                let cookie = cookie.split(';').next().unwrap().to_owned();
                let name = format!("{}=", cookie.split('=').next().unwrap());
                cookies.retain(|held| !held.starts_with(&name));
                cookies.push(cookie);
            }
            let location = answer.header("location").unwrap().to_owned();
            if let Some(query) = location.strip_prefix("http://127.0.0.1/callback?") {
                let code = query.split('&').find_map(|pair| pair.strip_prefix("code="));
                break code.unwrap_or_else(|| panic!("{location}")).to_owned();
            }
            at = location
                .strip_prefix(&format!("http://{}", self.address))
                .unwrap_or(&location)
                .to_owned();
        };
        let answer = self
            .post(&format!(
                "grant_type=authorization_code&client_id=desktop&code={code}&code_verifier={verifier}\
                 &redirect_uri=http%3A%2F%2F127.0.0.1%2Fcallback&resource={resource}"
            ))
            .await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["access_token"].as_str().unwrap().to_owned()
    }

    /// A gateway that trusts it.
    async fn house(&self) -> House {
        let servers = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/servers");
        let file = format!(
            "command = [\"/usr/bin/python3\", \"-u\", \"{servers}/scripted.py\"]\nresource = \"http://{{address}}/mcp\"\n\
             [[auth.issuer]]\nissuer = \"http://{}\"\naudience = \"http://{{address}}/mcp\"\n\
             [authz]\nallow = \"authenticated\"\n[sandbox]\noptional = [\"cgroup\"]\nread-only = [{servers:?}]\n\
             [limits]\nconnections = 2000\n",
            self.address,
            servers = servers.display().to_string(),
        );
        house().file(&file).open().await
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(address: SocketAddr, files: &Path) -> (Child, ChildStdin, BufReader<ChildStdout>) {
    let mut process = Command::new("node")
        .arg(files.join("provider.mjs"))
        .arg(address.port().to_string())
        .arg(files.join("keys.json"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // It warns about settings that are only for tests.
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let orders = process.stdin.take().unwrap();
    let mut answers = BufReader::new(process.stdout.take().unwrap());
    assert_eq!(line(&mut answers)["ready"], true);
    (process, orders, answers)
}

fn line(answers: &mut BufReader<ChildStdout>) -> Value {
    loop {
        let mut line = String::new();
        assert!(
            answers.read_line(&mut line).unwrap() > 0,
            "the provider ended"
        );
        // What it says of settings that are only for tests is no answer.
        if line.starts_with('{') {
            return serde_json::from_str(&line).unwrap();
        }
    }
}

async fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    more: &[(&str, &str)],
    body: &str,
) -> Answer {
    let host = address.to_string();
    let mut headers = vec![
        ("Host", host.as_str()),
        ("Content-Type", "application/x-www-form-urlencoded"),
    ];
    headers.extend_from_slice(more);
    wire::exchange(address, &wire::request(method, path, &headers, body)).await
}

async fn issued(provider: SocketAddr, resource: &str) -> String {
    let body = format!(
        "grant_type=client_credentials&client_id=agent&client_secret=secret-of-agent&scope=mcp&resource={}",
        escaped(resource)
    );
    let answer = ask(provider, "POST", TOKEN, &[], &body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["access_token"].as_str().unwrap().to_owned()
}

fn escaped(url: &str) -> String {
    url.replace(':', "%3A").replace('/', "%2F")
}

fn part(token: &str, at: usize) -> Value {
    let part = token.split('.').nth(at).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

/// A good token but for its header: another key's name.
fn under_another_name(token: &str, kid: &str) -> String {
    let mut header = part(token, 0);
    header["kid"] = json!(kid);
    let (_, rest) = token.split_once('.').unwrap();
    format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header.to_string()))
}

fn caller(house: &House, token: String) -> Caller {
    Caller {
        address: house.address,
        token: Some(token),
        session: None,
    }
}

/// Whether a token is good, without a session: who is let in is told that there is none of that name.
async fn status(house: &House, token: &str) -> u16 {
    let mut caller = caller(house, token.to_owned());
    caller.session = Some("0".repeat(32));
    caller.call("echo", json!({})).await.status
}

/// What `status` says of a good token.
const LET_IN: u16 = 404;

/// Lets time pass for the gateway. Between calls its clock runs, so that no deadline is jumped
/// over while bytes are on their way.
pub(crate) async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// Programs and people get in with what the provider gives them, and the server knows which is which.
#[tokio::test]
async fn tokens_of_programs_and_of_people_open_sessions() {
    let Some(provider) = Provider::start() else {
        return;
    };
    let house = provider.house().await;
    for (token, subject, kind) in [
        (provider.token(&house.resource()).await, "agent", "Client"),
        (
            provider.token_of_a_person(&house.resource()).await,
            "alice",
            "User",
        ),
    ] {
        assert_eq!(part(&token, 1)["sub"], subject);
        let mut caller = caller(&house, token);
        assert_eq!(caller.initialize().await.status, 200);
        assert_eq!(caller.call("echo", json!({})).await.status, 200);
        let records = house.records.all();
        let known = |record: &String| {
            record.contains(&format!("THV_SUBJECT={subject}"))
                || record.contains(&format!("|{subject}"))
        };
        assert!(records.iter().any(known), "{kind} {subject}: {records:#?}");
    }
    // A token for somebody else's server is good there, and not here.
    let elsewhere = provider.token("https://other.example/mcp").await;
    assert_eq!(status(&house, &elsewhere).await, 401);
}

/// tok-94: four callers go on calling, each time with a new token, while the key changes twice.
#[tokio::test]
async fn no_request_fails_while_the_provider_rotates_its_keys() {
    let Some(mut provider) = Provider::start() else {
        return;
    };
    let house = provider.house().await;
    let resource = house.resource();
    let old = provider.token(&resource).await;
    let mut session = caller(&house, old.clone());
    assert_eq!(session.initialize().await.status, 200);
    let mut served = 0;
    for _ in 0..2 {
        // Not within a moment of the last question: that pause is another test's.
        pass(COOL_DOWN).await;
        let before = part(&provider.token(&resource).await, 0)["kid"].clone();
        let mut calls = JoinSet::new();
        for name in 0..4 {
            let (address, resource, mut caller) =
                (provider.address, resource.clone(), session.clone());
            let before = before.clone();
            calls.spawn(async move {
                let (mut with_old, mut with_new) = (0, 0);
                while with_new < 20 {
                    let token = issued(address, &resource).await;
                    if part(&token, 0)["kid"] == before {
                        with_old += 1;
                    } else {
                        with_new += 1;
                    }
                    caller.token = Some(token);
                    // Callers of one session tell their requests apart.
                    let answer = caller.post(&call(name, "echo", json!({}))).await;
                    assert_eq!(answer.status, 200, "{}", answer.text());
                }
                (with_old, with_new)
            });
        }
        // Some calls are made with the old key before. The provider can only be asked.
        while provider.asked(TOKEN) < served + 20 {
            tokio::task::yield_now().await;
        }
        let new = provider.rotate();
        assert_ne!(before, json!(new));
        let counts = calls.join_all().await;
        assert!(
            counts.iter().any(|(with_old, _)| *with_old > 0),
            "{counts:?}"
        );
        assert_eq!(
            status(&house, &old).await,
            LET_IN,
            "the old key is still published"
        );
        served = provider.asked(TOKEN);
    }
    assert_eq!(
        (provider.asked(DISCOVERY), provider.asked(JWKS)),
        (1, 3),
        "one question at first, one a rotation"
    );
    // tok-95: what is no longer published is no longer good, after its time.
    provider.order("retire");
    pass(TIME_TO_LIVE).await;
    let new = provider.token(&resource).await;
    assert_eq!(status(&house, &new).await, LET_IN);
    let answer = caller(&house, old).initialize().await;
    is_refused_beside(&house, &answer, "token-key-unknown", 1);
}

/// tok-96, tok-97: killed, its keys go on for an hour; then nobody is called a liar; and when it is there
/// again, so is everybody within half a minute.
#[tokio::test]
async fn a_provider_that_is_killed_and_started_again_is_survived() {
    let Some(mut provider) = Provider::start() else {
        return;
    };
    let house = provider.house().await;
    let tokens = [
        provider.token(&house.resource()).await,
        provider.token(&house.resource()).await,
    ];
    assert_eq!(status(&house, &tokens[0]).await, LET_IN);
    provider.kill();
    // One that was seen before, and one that was not.
    for passed in [
        Duration::ZERO,
        TIME_TO_LIVE,
        MAX_STALE - TIME_TO_LIVE - 30 * Duration::from_secs(1),
    ] {
        pass(passed).await;
        for token in &tokens {
            assert_eq!(status(&house, token).await, LET_IN, "{passed:?} later");
        }
    }
    house.records.wait_for("keys-unavailable").await;
    pass(COOL_DOWN).await;
    let mut late = caller(&house, tokens[0].clone());
    let wait = is_put_off(&house, &late.initialize().await, 0);
    provider.start_again();
    // As a client that was told so waits.
    pass(wait).await;
    for token in &tokens {
        assert_eq!(status(&house, token).await, LET_IN);
    }
    assert_eq!((provider.asked(DISCOVERY), provider.asked(JWKS)), (1, 1));
}

/// tok-96, fault-28: a provider that accepts and says nothing holds up one request, for its deadline, and no other.
#[tokio::test]
async fn a_provider_that_falls_silent_holds_up_one_request() {
    let Some(mut provider) = Provider::start() else {
        return;
    };
    let house = provider.house().await;
    let mut tokens = Vec::new();
    for _ in 0..21 {
        tokens.push(provider.token(&house.resource()).await);
    }
    assert_eq!(status(&house, &tokens[0]).await, LET_IN);
    let before = provider.connections();
    provider.halt();
    pass(TIME_TO_LIVE).await;
    let start = Instant::now();
    assert_eq!(status(&house, &tokens[0]).await, LET_IN);
    let deadline = Duration::from_secs(5)..Duration::from_secs(8);
    assert!(deadline.contains(&start.elapsed()), "{:?}", start.elapsed());
    let start = Instant::now();
    for token in &tokens[1..] {
        assert_eq!(status(&house, token).await, LET_IN);
    }
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "{:?}",
        start.elapsed()
    );
    provider.go_on();
    pass(COOL_DOWN).await;
    assert_eq!(status(&house, &tokens[0]).await, LET_IN);
    // The one that nobody answered in time, and the two documents once it was back, which are
    // asked for behind that last caller.
    let asked = async {
        while provider.connections() < before + 3 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap();
    assert_eq!(status(&house, &tokens[0]).await, LET_IN);
    assert_eq!(provider.connections() - before, 3);
}

/// tok-92, tok-93: strangers who name keys that nobody has do not make the gateway ask for each.
#[tokio::test]
async fn ten_thousand_names_of_keys_are_one_question_a_cool_down() {
    const NAMES: usize = 10_000;
    const AT_ONCE: usize = 50;
    let Some(mut provider) = Provider::start() else {
        return;
    };
    let house = provider.house().await;
    let good = provider.token(&house.resource()).await;
    assert_eq!(status(&house, &good).await, LET_IN);
    pass(COOL_DOWN).await;
    let before = provider.connections();
    let start = Instant::now();
    for batch in 0..NAMES / AT_ONCE {
        let mut requests = JoinSet::new();
        for number in 0..AT_ONCE {
            let name = format!("{:x}-{batch}-{number}", rand());
            let mut stranger = caller(&house, under_another_name(&good, &name));
            stranger.session = Some("0".repeat(32));
            requests.spawn(async move { stranger.call("echo", json!({})).await.status });
        }
        let statuses = requests.join_all().await;
        assert!(statuses.iter().all(|status| *status == 401), "{statuses:?}");
    }
    // One cool-down may end, and another begin, while this runs.
    let cool_downs = start.elapsed().as_secs() / COOL_DOWN.as_secs() + 1;
    let asked = provider.connections() - before;
    assert!(
        (1..=cool_downs).contains(&asked),
        "{asked} connections in {:?}",
        start.elapsed()
    );
    let one_more = under_another_name(&good, "one-more");
    let answer = caller(&house, one_more).initialize().await;
    is_refused(&house, &answer, "token-key-unknown");
    // Nor do they push out the keys that are there.
    assert_eq!(status(&house, &good).await, LET_IN);
}

/// tok-103: those who come first all wait for one question.
#[tokio::test]
async fn a_thousand_first_requests_are_one_discovery_and_one_key_set() {
    let Some(mut provider) = Provider::start() else {
        return;
    };
    let house = provider.house().await;
    let mut tokens = Vec::new();
    for _ in 0..100 {
        tokens.push(provider.token(&house.resource()).await);
    }
    let before = provider.connections();
    let mut requests = JoinSet::new();
    for number in 0..1000 {
        let mut caller = caller(&house, tokens[number % tokens.len()].clone());
        caller.session = Some("0".repeat(32));
        requests.spawn(async move { caller.call("echo", json!({})).await.status });
    }
    let statuses = requests.join_all().await;
    assert!(
        statuses.iter().all(|status| *status == LET_IN),
        "{statuses:?}"
    );
    assert_eq!((provider.asked(DISCOVERY), provider.asked(JWKS)), (1, 1));
    assert_eq!(provider.connections() - before, 2);
}

fn rand() -> u64 {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    u64::from_ne_bytes(bytes)
}

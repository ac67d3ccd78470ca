//! Clients that are not ours, of both SDKs and both eras, at servers of either and of both.
//!
//! `tests/run` fetches them, as the lock files in tests/host/peers and tests/peers name them, and says where
//! they are in `THV_PEERS`. Each does all that a client does, and sees the same whatever is spoken between.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::house::{House, house};

/// For all that one client does, on a machine that has other work.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where they were put, if this package is there.
pub fn peers(package: &str) -> Option<PathBuf> {
    let place = std::env::var_os("THV_PEERS").map(PathBuf::from);
    let place = place.filter(|place| place.join(package).exists());
    if place.is_none() {
        eprintln!(
            "left out: a client that is not ours, as THV_PEERS does not say where `{package}` is"
        );
    }
    place
}

/// A house with a server that speaks both eras, or the one that is named.
async fn serving(era: &[&str]) -> House {
    let servers = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/conformance");
    let server = servers.join("server.py").display().to_string();
    let command = [&["/usr/bin/python3", server.as_str()], era].concat();
    house().command(&command).readable(&servers).open().await
}

/// Has the client do its work at a server of each kind; it agrees on `version` where the server has both.
async fn check(client: impl Fn(&House) -> Command, version: &str) {
    for era in [&[][..], &["--legacy"], &["--modern"]] {
        let house = serving(era).await;
        let mut client = client(&house);
        let done = tokio::task::spawn_blocking(move || client.output());
        let done = timeout(PATIENCE, done).await.unwrap().unwrap().unwrap();
        let seen: Value = serde_json::from_slice(&done.stdout).unwrap_or_else(|_| {
            let told = String::from_utf8_lossy(&done.stderr);
            panic!("{era:?}: {told}\n{:#?}", house.records.all())
        });
        // What the server keeps from round to round it has a spelling of its own for in each era.
        let is_modern = era == ["--modern"] || (era.is_empty() && version == "2026-07-28");
        let rounds = match is_modern {
            true => "{\"name\": \"Ann\"} likes {'color': 'Ann'}",
            false => "{'name': 'Ann'} likes {'color': 'Ann'}",
        };
        let expected = json!({
            "version": version, "server": "thv-conformance", "tools": true, "text": "Hello, é!", "failed": true,
            "unknown": -32602, "progress": [0, 50, 100], "form": "Hello, Ann!", "model": "Paris",
            "roots": [{ "uri": "file:///a" }], "rounds": rounds,
            "resource": "This is the content of the static text resource.",
            "prompt": "Prompt with arguments: arg1='a', arg2='b'", "asking": "Context: Ann",
            "logged": ["Tool execution started", "Tool processing data", "Tool execution completed"],
            "after": "Hello, again!", "changed": true,
        });
        assert_eq!(seen, expected, "{era:?}");
        // What it had no more patience for was cancelled, in the way of its version.
        let why = match version {
            "2026-07-28" => "THV_REASON=client-gone ",
            _ => "THV_REASON=cancelled ",
        };
        assert!(house.records.have(&["THV_EVENT=outcome", why]), "{era:?}");
        assert_eq!(house.records.count("child-died"), 0);
    }
}

fn python(peers: &Path, mode: &'static str) -> impl Fn(&House) -> Command {
    let packages = peers.join("peers/python");
    move |house| {
        let mut client = Command::new("/usr/bin/python3");
        client.arg(script("sdk-client.py"));
        client.args([&house.resource(), &house.token("alice"), mode]);
        client.env("PYTHONPATH", &packages);
        client
    }
}

/// Modules are looked for beside the script.
fn node(place: &Path, peers: &Path, mode: &'static str) -> impl Fn(&House) -> Command {
    let modules = place.join("node_modules");
    std::os::unix::fs::symlink(peers.join("host/npm/node_modules"), modules).unwrap();
    let copy = place.join("sdk-client.mjs");
    std::fs::copy(script("sdk-client.mjs"), &copy).unwrap();
    move |house| {
        let mut client = Command::new("/usr/bin/node");
        client.arg(&copy);
        client.args([&house.resource(), &house.token("alice"), mode]);
        client
    }
}

fn script(name: &str) -> PathBuf {
    let servers = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/servers");
    servers.join(name)
}

#[tokio::test]
async fn the_python_sdk_speaks_to_servers_of_both_eras_by_sessions() {
    let Some(peers) = peers("peers/python/mcp") else {
        return;
    };
    check(python(&peers, "legacy"), "2025-11-25").await;
}

#[tokio::test]
async fn the_python_sdk_speaks_to_servers_of_both_eras_without_sessions() {
    let Some(peers) = peers("peers/python/mcp") else {
        return;
    };
    check(python(&peers, "auto"), "2026-07-28").await;
}

#[tokio::test]
async fn the_first_typescript_sdk_speaks_to_servers_of_both_eras() {
    let Some(peers) = peers("host/npm/node_modules/@modelcontextprotocol/sdk") else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    check(node(place.path(), &peers, "first"), "2025-11-25").await;
}

#[tokio::test]
async fn the_typescript_sdk_speaks_to_servers_of_both_eras_by_sessions() {
    let Some(peers) = peers("host/npm/node_modules/@modelcontextprotocol/client") else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    check(node(place.path(), &peers, "legacy"), "2025-11-25").await;
}

#[tokio::test]
async fn the_typescript_sdk_speaks_to_servers_of_both_eras_without_sessions() {
    let Some(peers) = peers("host/npm/node_modules/@modelcontextprotocol/client") else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    check(node(place.path(), &peers, "auto"), "2026-07-28").await;
}

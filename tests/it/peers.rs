//! Servers that are not ours, as they come from npm, PyPI and a Go module, unchanged in the sandbox.
//!
//! `tests/run` fetches what the lock files in tests/host/peers and tests/peers name,
//! and says where it is in `THV_PEERS`. Each is asked for its tools, and one of them
//! for its work, whose outcome is looked at from outside.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::house::{Caller, House, Plan, house};

/// Where they were put.
fn peers() -> Option<PathBuf> {
    let place = std::env::var_os("THV_PEERS").map(PathBuf::from);
    if place.is_none() {
        eprintln!("left out: servers that are not ours, as THV_PEERS does not say where they are");
    }
    place
}

/// A session in which the server has named at least these tools.
async fn session(plan: Plan, tools: &[&str]) -> (House, Caller) {
    let house = plan.open().await;
    let mut caller = house.caller("alice");
    let answer = caller.initialize().await;
    assert_eq!(answer.status, 200, "{answer:?}\n{:?}", house.records.all());
    let result = &answer.json()["result"];
    eprintln!(
        "{} {}",
        result["serverInfo"]["name"], result["serverInfo"]["version"]
    );
    let initialized = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    assert_eq!(caller.post(initialized).await.status, 202);
    let listed = caller
        .post(r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#)
        .await
        .json();
    let names: Vec<&str> = listed["result"]["tools"]
        .as_array()
        .unwrap_or_else(|| panic!("{listed}"))
        .iter()
        .filter_map(|tool| tool["name"].as_str())
        .collect();
    for tool in tools {
        assert!(names.contains(tool), "no `{tool}` in {names:?}");
    }
    (house, caller)
}

async fn result(caller: &Caller, tool: &str, arguments: Value) -> Value {
    let answer = caller.call(tool, arguments).await.json();
    let result = answer["result"].clone();
    assert!(
        result.is_object() && result["isError"] != true,
        "{tool}: {answer}"
    );
    result
}

fn node(peers: &Path, package: &str, arguments: &[&str]) -> Plan {
    let npm = peers.join("host/npm");
    let script = npm.join("node_modules/@modelcontextprotocol").join(package);
    let script = script.join("dist/index.js").display().to_string();
    let node = ["/usr/bin/node", script.as_str()];
    house().command(&[&node, arguments].concat()).readable(&npm)
}

/// A module of the packages from PyPI, run by the host's own Python.
fn python(peers: &Path, module: &str, arguments: &[&str], env: &str) -> Plan {
    let packages = peers.join("peers/python");
    let command = ["/usr/bin/python3", "-m", module];
    house()
        .command(&[&command, arguments].concat())
        .readable(&packages)
        .with(&format!("[env]\nPYTHONPATH = {packages:?}\n{env}"))
}

/// A directory that whoever the runner becomes can read.
fn shown() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(directory.path(), open).unwrap();
    directory
}

#[tokio::test]
async fn server_everything_of_npm_runs_unchanged() {
    let Some(peers) = peers() else { return };
    let plan = node(&peers, "server-everything", &["stdio"]);
    let (_house, caller) = session(plan, &["echo", "get-sum"]).await;
    let sum = result(&caller, "get-sum", json!({ "a": 19, "b": 23 })).await;
    assert!(sum.to_string().contains("42"), "{sum}");
}

#[tokio::test]
async fn server_filesystem_of_npm_reads_what_it_is_shown_and_nothing_else() {
    let Some(peers) = peers() else { return };
    let files = shown();
    fs::write(files.path().join("note"), "what is written here").unwrap();
    let place = files.path().display().to_string();
    let plan = node(&peers, "server-filesystem", &[&place, "/tmp"]).readable(files.path());
    let (_house, caller) = session(plan, &["read_text_file", "write_file"]).await;
    let note = files.path().join("note");
    let read = result(&caller, "read_text_file", json!({ "path": note })).await;
    assert!(read.to_string().contains("what is written here"), "{read}");
    // Its own rules would let it write there; the mount does not.
    let write = json!({ "path": note, "content": "changed" });
    let refused = caller.call("write_file", write).await.json();
    assert_eq!(refused["result"]["isError"], true, "{refused}");
    assert_eq!(fs::read_to_string(&note).unwrap(), "what is written here");
    let scratch = json!({ "path": "/tmp/scratch", "content": "gone with the session" });
    result(&caller, "write_file", scratch).await;
    assert!(!Path::new("/tmp/scratch").exists());
}

#[tokio::test]
async fn mcp_server_git_of_pypi_reads_a_repository() {
    let Some(peers) = peers() else { return };
    let repository = shown();
    let git = |arguments: &[&str]| {
        let done = Command::new("git")
            .args(["-c", "user.name=it", "-c", "user.email=it@localhost"])
            .args(arguments)
            .current_dir(repository.path())
            .status()
            .unwrap();
        assert!(done.success(), "git {arguments:?}");
    };
    git(&["init", "--quiet"]);
    git(&[
        "commit",
        "--quiet",
        "--allow-empty",
        "-m",
        "the first of all",
    ]);
    let place = repository.path().display().to_string();
    let plan = python(
        &peers,
        "mcp_server_git",
        &["--repository", &place],
        // Git refuses what belongs to others unless it is told so.
        "GIT_CONFIG_COUNT = \"1\"\nGIT_CONFIG_KEY_0 = \"safe.directory\"\nGIT_CONFIG_VALUE_0 = \"*\"\n",
    )
    .readable(repository.path());
    let (_house, caller) = session(plan, &["git_log", "git_status"]).await;
    let log = result(&caller, "git_log", json!({ "repo_path": place })).await;
    assert!(log.to_string().contains("the first of all"), "{log}");
}

#[tokio::test]
async fn mcp_server_time_of_pypi_knows_what_time_it_is() {
    let Some(peers) = peers() else { return };
    let plan = python(&peers, "mcp_server_time", &["--local-timezone", "UTC"], "");
    let (_house, caller) = session(plan, &["get_current_time", "convert_time"]).await;
    let asked = json!({ "source_timezone": "Asia/Tokyo", "time": "16:30", "target_timezone": "Asia/Kolkata" });
    let told = result(&caller, "convert_time", asked).await;
    assert!(told.to_string().contains("13:00:00"), "{told}");
    let now = result(&caller, "get_current_time", json!({ "timezone": "UTC" })).await;
    // probe-76: the clock is right; a day's end may lie between the two looks.
    let today = |output: std::process::Output| String::from_utf8(output.stdout).unwrap();
    let date = Command::new("date").args(["-u", "+%Y-%m-%d"]).output();
    let today = today(date.unwrap());
    assert!(
        now.to_string().contains(today.trim()) || now.to_string().contains("T23:59:"),
        "{now}"
    );
}

#[tokio::test]
async fn a_static_server_of_the_go_sdk_keeps_what_it_is_told() {
    let Some(peers) = peers() else { return };
    let program = peers.join("peers/go/memory");
    if !program.exists() {
        eprintln!("left out: the server in Go, as none was built (there is no Go)");
        return;
    }
    let plan = house().command(&[&program.display().to_string()]);
    let (_house, caller) = session(plan, &["create_entities", "read_graph"]).await;
    let entity = json!({ "name": "thv", "entityType": "gateway", "observations": ["it holds"] });
    result(&caller, "create_entities", json!({ "entities": [entity] })).await;
    let graph = result(&caller, "read_graph", json!({})).await;
    assert!(graph.to_string().contains("it holds"), "{graph}");
}

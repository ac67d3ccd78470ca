//! A server that comes as a container image, run by our own sandbox.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use aws_lc_rs::digest;
use serde_json::{Value, json};

use crate::{
    house::{House, house},
    sandbox::descendants,
};

const THV: &str = env!("CARGO_BIN_EXE_thv");

/// An archive as `docker save` writes it: the demo's server and the libraries that it is linked to.
fn save(into: &Path) {
    let mut layer = tar::Builder::new(Vec::new());
    layer.sparse(false);
    let linked = Command::new("ldd").arg(THV).output().unwrap();
    let linked = String::from_utf8(linked.stdout).unwrap();
    layer.append_path_with_name(THV, "opt/app/server").unwrap();
    for library in linked
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let inside = library.trim_start_matches('/');
        layer
            .append_path_with_name(fs::canonicalize(library).unwrap(), inside)
            .unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_size(7);
    header.set_mode(0o644);
    layer
        .append_data(&mut header, "etc/of-the-image", &b"layered"[..])
        .unwrap();
    let layer = layer.into_inner().unwrap();
    let sum = digest::digest(&digest::SHA256, &layer);
    let id: String = sum
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let architecture = if cfg!(target_arch = "x86_64") {
        "amd64"
    } else {
        "arm64"
    };
    let configuration = json!({
        "architecture": architecture, "os": "linux",
        "config": {
            // Found in PATH, inside.
            "Entrypoint": ["server"], "Cmd": ["demo-server"], "WorkingDir": "/opt/app",
            "Env": ["PATH=/nowhere:/opt/app", "OF_THE_IMAGE=1", "HOME=/root"],
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{id}")] },
    });
    let manifest = json!([{ "Config": "c.json", "RepoTags": ["it:1"], "Layers": ["l.tar"] }]);
    let mut archive = tar::Builder::new(fs::File::create(into).unwrap());
    for (name, bytes) in [
        ("manifest.json", manifest.to_string().into_bytes()),
        ("c.json", configuration.to_string().into_bytes()),
        ("l.tar", layer),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    archive.finish().unwrap();
}

fn pull(root: &Path) {
    let state = root.join("var/lib/thv-runner/it");
    let pulled = Command::new(THV)
        .args([
            "--root".as_ref(),
            root.as_os_str(),
            "pull".as_ref(),
            "it".as_ref(),
            "--into".as_ref(),
            state.as_os_str(),
        ])
        .output()
        .unwrap();
    assert!(
        pulled.status.success(),
        "{}",
        String::from_utf8_lossy(&pulled.stderr)
    );
    assert!(String::from_utf8_lossy(&pulled.stdout).starts_with("sha256:"));
}

fn file(archive: &Path, more: &str) -> String {
    format!(
        "image = \"docker-archive:{}\"\nresource = \"http://{{address}}/mcp\"\n{more}\n[auth]\nmode = \"none\"\n\
         [authz]\nallow = \"authenticated\"\n[sandbox]\noptional = [\"cgroup\"]\n[env]\nGIVEN = \"yes\"\n",
        archive.display()
    )
}

async fn open(archive: &Path) -> House {
    house().file(&file(archive, "")).before(pull).open().await
}

/// The image's root, read-only, its own program, its own working directory: and no file of the host.
#[tokio::test]
async fn a_server_from_an_image_runs_in_the_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("image.tar");
    save(&archive);
    let house = open(&archive).await;
    let began = Instant::now();
    let caller = house.session("alice").await;
    println!("image to its first answer: {:?}", began.elapsed());
    let told = caller.call("look_around", json!({})).await.said();
    println!("{told}");
    let pid = descendants(house.runner_pid());
    let server = pid.last().unwrap();
    let inside = |path: &str| PathBuf::from(format!("/proc/{server}/root{path}"));
    let read = |path: &str| fs::read_to_string(inside(path)).unwrap_or_default();
    if nix::unistd::geteuid().is_root() {
        assert_eq!(read("/etc/of-the-image"), "layered");
        assert_eq!(read("/etc/hostname"), "it\n");
        assert!(!inside("/usr").exists() && !inside("/etc/shadow").exists());
        assert_eq!(
            fs::read_link(format!("/proc/{server}/cwd")).unwrap(),
            Path::new("/opt/app")
        );
        let environment = fs::read(format!("/proc/{server}/environ")).unwrap();
        let environment = String::from_utf8(environment).unwrap();
        for line in [
            "OF_THE_IMAGE=1",
            "GIVEN=yes",
            "HOME=/tmp",
            "PATH=/nowhere:/opt/app",
        ] {
            assert!(
                environment.split('\0').any(|found| found == line),
                "{line}: {environment}"
            );
        }
        let mounts = fs::read_to_string(format!("/proc/{server}/mountinfo")).unwrap();
        for place in ["/", "/dev", "/etc/hosts"] {
            let line = mounts
                .lines()
                .find(|line| line.split(' ').nth(4) == Some(place))
                .unwrap();
            assert!(
                line.split(' ').nth(5).unwrap().starts_with("ro,nosuid"),
                "{line}"
            );
        }
    }
    let status = fs::read_to_string(format!("/proc/{server}/status")).unwrap();
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000000000000000"] {
        assert!(status.contains(line), "{status}");
    }
}

/// probe-80: what is configured and not pulled is no child, with the command that helps.
#[tokio::test]
async fn an_image_that_is_not_pulled_is_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("image.tar");
    save(&archive);
    let house = house()
        .file(&file(&archive, "arguments = [\"x\"]"))
        .open()
        .await;
    let answer = house.caller("alice").initialize().await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["data"]["reason"]),
        (503, &Value::from("start-failed"))
    );
    let records = house.records.all().join("\n");
    assert!(
        records.contains("THV_LAYER=image") && records.contains("thv pull"),
        "{records}"
    );
}

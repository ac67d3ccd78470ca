//! How long the start of a server from an image takes: by our own sandbox, by podman within
//! one, and by podman alone.
//!
//! `cargo bench --bench image`. From the question to the end of a program that does nothing;
//! medians, in turn, and their ratios to the native engine's.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench that cannot go on has failed, and what it prints is what it is for"
)]

#[path = "runner/mod.rs"]
mod runner;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::json;
use thv::{
    frames::{Reply, Request},
    runner::Foreground,
};

use runner::{THV, ask, receive};

const ROUNDS: u64 = 30;

fn main() {
    runner::quietly();
    let native = Place::new("native");
    let podman = Path::new("/usr/bin/podman")
        .exists()
        .then(|| Place::new("podman"));
    let mut times = vec![Vec::new(); 3];
    for round in 0..ROUNDS {
        times[0].push(start(&native.runner, round));
        if let Some(podman) = &podman {
            times[1].push(start(&podman.runner, round));
            times[2].extend(alone(&native.tree()));
        }
    }
    let fastest = median(&mut times[0]).unwrap();
    for (times, name) in times.iter_mut().zip([
        "engine = \"native\"",
        "engine = \"podman\"",
        "podman run, by itself",
    ]) {
        match median(times) {
            Some(took) => println!(
                "{name:<28} {:>8.2} ms   {:.1} times the first",
                took.as_secs_f64() * 1000.0,
                took.as_secs_f64() / fastest.as_secs_f64()
            ),
            None => println!("{name:<28} not here"),
        }
    }
}

/// A root with a server from an image of one program, and its runner.
struct Place {
    files: tempfile::TempDir,
    runner: Foreground,
}

impl Place {
    fn new(engine: &str) -> Self {
        let files = tempfile::tempdir().unwrap();
        let archive = files.path().join("image.tar");
        save(&archive);
        let image = format!(
            "image = \"docker-archive:{}\"\nengine = \"{engine}\"",
            archive.display()
        );
        runner::write_server(files.path(), &image);
        let pulled = Command::new(THV)
            .arg("--root")
            .arg(files.path())
            .args(["pull", "bench", "--into"])
            .arg(files.path().join("var/lib/thv-runner/bench"))
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(pulled.success());
        let runner = runner::start(files.path());
        Self { files, runner }
    }

    fn tree(&self) -> PathBuf {
        self.files
            .path()
            .join("var/lib/thv-runner/bench/image/current/rootfs")
    }
}

/// An archive as `docker save` writes it, of a static program that does nothing.
fn save(into: &Path) {
    let program = Path::new("/bin/busybox");
    assert!(program.exists(), "this needs a static busybox");
    let mut layer = tar::Builder::new(Vec::new());
    layer.append_path_with_name(program, "bin/busybox").unwrap();
    let layer = layer.into_inner().unwrap();
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &layer);
    let id: String = sum
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let machine = if cfg!(target_arch = "x86_64") {
        "amd64"
    } else {
        "arm64"
    };
    let configuration = json!({
        "architecture": machine, "os": "linux", "config": { "Entrypoint": ["/bin/busybox", "true"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{id}")] },
    });
    let manifest = json!([{ "Config": "c.json", "RepoTags": ["bench:1"], "Layers": ["l.tar"] }]);
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

/// One start and end.
fn start(runner: &Foreground, child: u64) -> Duration {
    let start = Instant::now();
    ask(
        runner,
        &Request::Start {
            child,
            principal: "0".repeat(64),
            caller: None,
        },
    );
    loop {
        match receive(runner).0 {
            Reply::Exited { .. } => return start.elapsed(),
            Reply::Started { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// podman as a person types it, from the same tree: nothing where it does not run here.
fn alone(tree: &Path) -> Option<Duration> {
    let mut command = Command::new("unshare");
    command
        // crun wants to see one version of control groups.
        .args(["--mount", "--", "sh", "-c"])
        .arg("mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec podman \"$@\"")
        .args([
            "podman",
            "run",
            "--rm",
            "--network=none",
            "--cgroups=disabled",
        ])
        .args([
            "--read-only",
            "--cap-drop=all",
            "--ulimit=nofile=1024:1024",
            "--ulimit=nproc=1024:1024",
            "--rootfs",
        ])
        .arg(tree)
        .args(["/bin/busybox", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let start = Instant::now();
    let status = command.status().ok()?;
    status.success().then(|| start.elapsed())
}

fn median(times: &mut [Duration]) -> Option<Duration> {
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

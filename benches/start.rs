//! How long a sandboxed start takes, beside bwrap with the same mounts and a bare unshare.
//!
//! `cargo bench --bench start`. From the question to the end of a program that does
//! nothing; medians, and their ratios to thv's.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench that cannot go on has failed, and what it prints is what it is for"
)]

use std::{
    os::{fd::AsFd, unix::process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thv::{
    config::ServerName,
    frames::{self, Reply, Request},
    runner::{self, Foreground},
};

const ROUNDS: u64 = 200;
const LOG: &str = "THV_LOG";

fn main() {
    // The runner's talk about what this host lacks is not what is measured.
    if std::env::var_os(LOG).is_none() {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(std::env::args_os().skip(1)).env(LOG, "error");
        panic!("starting it again: {}", again.exec());
    }
    let program: &[&str] = if Path::new("/bin/busybox").exists() {
        &["/bin/busybox", "true"]
    } else {
        &["/usr/bin/true"]
    };
    let files = tempfile::tempdir().unwrap();
    let runner = start_runner(files.path(), program);
    let others = [
        ("bwrap --unshare-all", bwrap()),
        ("bare unshare", unshare()),
        ("the program alone", Vec::new()),
    ];
    // In turn, so that whatever else this machine does is shared by all.
    let mut times = vec![Vec::new(); 1 + others.len()];
    for round in 0..ROUNDS {
        times[0].push(thv(&runner, round));
        for (which, (_, arguments)) in others.iter().enumerate() {
            times[1 + which].extend(command(arguments, program));
        }
    }
    let thv = median(&mut times[0]).unwrap();
    println!(
        "{:<28} {:>8.2} ms",
        format!("thv, {}", program.join(" ")),
        ms(thv)
    );
    for (times, (name, _)) in times[1..].iter_mut().zip(&others) {
        match median(times) {
            Some(took) => println!(
                "{name:<28} {:>8.2} ms   thv takes {:.2} of it",
                ms(took),
                thv.as_secs_f64() / took.as_secs_f64()
            ),
            None => println!("{name:<28} not here"),
        }
    }
}

fn start_runner(files: &Path, program: &[&str]) -> Foreground {
    let servers = files.join("etc/thv/servers");
    std::fs::create_dir_all(&servers).unwrap();
    std::fs::write(
        servers.join("bench.toml"),
        format!(
            "command = {program:?}\nresource = \"http://127.0.0.1:1/mcp\"\n[auth]\nmode = \"none\"\n\
             [authz]\nallow = \"authenticated\"\n[sandbox]\noptional = [\"cgroup\"]\n"
        ),
    )
    .unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(files, open).unwrap();
    let server = ServerName::parse("bench").unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_thv"));
    let runner = runner::foreground(program, files, &server).unwrap();
    ask(
        &runner,
        &Request::Hello {
            version: frames::VERSION,
            key: runner.key.clone(),
            digest: String::new(),
        },
    );
    assert!(matches!(next(&runner), Reply::Hello { .. }));
    runner
}

/// One start and end.
fn thv(runner: &Foreground, child: u64) -> Duration {
    let start = Instant::now();
    ask(
        runner,
        &Request::Start {
            child,
            principal: "0".repeat(64),
        },
    );
    loop {
        match next(runner) {
            Reply::Exited { .. } => return start.elapsed(),
            Reply::Started { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

fn ask(runner: &Foreground, request: &Request) {
    frames::send(runner.socket.as_fd(), request, &[]).unwrap();
}

fn next(runner: &Foreground) -> Reply {
    let mut watched = [PollFd::new(runner.socket.as_fd(), PollFlags::POLLIN)];
    assert_eq!(
        poll(&mut watched, PollTimeout::from(10_000_u16)).unwrap(),
        1
    );
    frames::receive(runner.socket.as_fd()).unwrap().unwrap().0
}

fn bwrap() -> Vec<&'static str> {
    let mut all = vec![
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--ro-bind",
        "/usr",
        "/usr",
    ];
    for (target, link) in [
        ("usr/bin", "/bin"),
        ("usr/sbin", "/sbin"),
        ("usr/lib", "/lib"),
        ("usr/lib64", "/lib64"),
    ] {
        all.extend(["--symlink", target, link]);
    }
    for etc in [
        "/etc/alternatives",
        "/etc/ld.so.cache",
        "/etc/localtime",
        "/etc/ssl",
        "/etc/services",
    ] {
        all.extend(["--ro-bind-try", etc, etc]);
    }
    all.extend([
        "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--tmpfs", "/dev/shm", "--dir",
        "/run",
    ]);
    all
}

fn unshare() -> Vec<&'static str> {
    let kinds = [
        "--user", "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup",
    ];
    ["unshare"]
        .into_iter()
        .chain(kinds)
        .chain(["--map-root-user", "--fork"])
        .collect()
}

/// One run of the program behind `arguments`; nothing if that does not work here.
fn command(arguments: &[&str], program: &[&str]) -> Option<Duration> {
    let all: Vec<_> = arguments.iter().chain(program).collect();
    let mut command = Command::new(all[0]);
    command
        .args(&all[1..])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    if nix::unistd::geteuid().is_root() {
        // As thv's runner: an ordinary user.
        command.uid(65534).gid(65534);
    }
    let start = Instant::now();
    let status = command.status().ok()?;
    status.success().then(|| start.elapsed())
}

fn median(times: &mut [Duration]) -> Option<Duration> {
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

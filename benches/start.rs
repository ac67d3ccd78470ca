//! How long a sandboxed start takes, beside bwrap with the same mounts and a bare unshare.
//!
//! `cargo bench --bench start`. From the question to the first answer of a static
//! program that gives back what it is told; their times, and their ratios to thv's. Twice
//! for thv: the first session of a server, and one beside another, for which the runner
//! has made the sandbox ahead.
//!
//! On a machine that does other things: `cargo bench --bench start --no-run`, and what that
//! names by `chrt --fifo 10`. A server is in a session of its own, for which the kernel
//! gives others their turn first (sched(7), autogroups), and `bwrap` as it is called here is not.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench that cannot go on has failed, and what it prints is what it is for"
)]

#[path = "runner/mod.rs"]
mod runner;

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use thv::{
    frames::{Reply, Request},
    runner::Foreground,
    sandbox::Host,
};

use runner::{ask, receive};

const ROUNDS: u64 = 200;

fn main() {
    runner::quietly();
    // As static as there is one.
    let program: &[&str] = if Path::new("/bin/busybox").exists() {
        &["/bin/busybox", "cat"]
    } else {
        &["/usr/bin/cat"]
    };
    let files = tempfile::tempdir().unwrap();
    runner::write_server(files.path(), &format!("command = {program:?}"));
    let runner = runner::start(files.path());
    let others = [
        ("bwrap --unshare-all", bwrap()),
        ("bare unshare", unshare()),
        ("the program alone", Vec::new()),
    ];
    // In turn, so that whatever else this machine does is shared by all.
    let mut first = Vec::new();
    let mut next = Vec::new();
    let mut times = vec![Vec::new(); others.len()];
    let mut number = 0;
    for _ in 0..ROUNDS {
        let (held, took) = start(&runner, &mut number);
        first.push(took);
        let (second, _) = start(&runner, &mut number);
        end(&runner, second);
        wait_for_spare(runner.pid());
        let (third, took) = start(&runner, &mut number);
        next.push(took);
        end(&runner, third);
        end(&runner, held);
        for (times, (_, arguments)) in times.iter_mut().zip(&others) {
            times.extend(command(arguments, program));
        }
    }
    println!("{}, to its first answer:", program.join(" "));
    // The quick ones are those that nothing else on the machine has got in the way of.
    for (which, share) in [("half of them within", 2), ("a tenth of them within", 10)] {
        let within = |times: &mut [Duration]| {
            times.sort_unstable();
            times.get(times.len() / share).copied()
        };
        let (first, next) = (within(&mut first).unwrap(), within(&mut next).unwrap());
        println!("{which}");
        println!("  {:<26} {:>8.2} ms", "thv, a first session", ms(first));
        println!("  {:<26} {:>8.2} ms", "thv, beside another", ms(next));
        for (times, (name, _)) in times.iter_mut().zip(&others) {
            match within(times) {
                Some(took) => println!(
                    "  {name:<26} {:>8.2} ms   thv takes {:.2} of it, beside another {:.2}",
                    ms(took),
                    first.as_secs_f64() / took.as_secs_f64(),
                    next.as_secs_f64() / took.as_secs_f64(),
                ),
                None => println!("  {name:<26} not here"),
            }
        }
    }
}

/// A session of thv's: its number, and what leads to its server.
type Held = (u64, Vec<OwnedFd>);

/// One start, and how long it took to the first answer.
fn start(runner: &Foreground, number: &mut u64) -> (Held, Duration) {
    *number += 1;
    let start = Instant::now();
    ask(
        runner,
        &Request::Start {
            child: *number,
            principal: "0".repeat(64),
            caller: None,
        },
    );
    let (reply, descriptors) = receive(runner);
    assert!(matches!(reply, Reply::Started { .. }), "{reply:?}");
    let mut streams = descriptors.iter().map(|end| end.try_clone().unwrap());
    let (stdin, stdout) = (streams.next().unwrap(), streams.next().unwrap());
    exchange(&mut File::from(stdin), &mut File::from(stdout)).unwrap();
    ((*number, descriptors), start.elapsed())
}

fn end(runner: &Foreground, (number, descriptors): Held) {
    drop(descriptors);
    let (reply, _) = receive(runner);
    assert!(
        matches!(reply, Reply::Exited { child, .. } if child == number),
        "{reply:?}"
    );
}

/// Waits until the runner has another child beside the held one, which waits to be one: it
/// sleeps, and not for a process of its own, which would mean that it is still being made.
fn wait_for_spare(runner: u32) {
    let children = |pid: u32| -> Vec<u32> {
        let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let list = list.unwrap_or_default();
        list.split(' ').filter_map(|pid| pid.parse().ok()).collect()
    };
    let sleeps = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") S "))
    };
    loop {
        let inits = children(runner);
        let waits = |pid: &u32| sleeps(pid) && children(*pid).is_empty();
        if inits.len() == 2
            && inits.iter().all(sleeps)
            && inits.iter().filter(|pid| waits(pid)).count() == 1
        {
            return;
        }
        std::thread::yield_now();
    }
}

/// Says one line, and waits until it has come back.
fn exchange(stdin: &mut impl Write, stdout: &mut impl Read) -> io::Result<()> {
    stdin.write_all(b"here\n")?;
    stdout.read_exact(&mut [0; 5])
}

/// With the parts of this host that thv shows a server, too.
fn bwrap() -> Vec<String> {
    let mut all: Vec<String> = [
        "bwrap",
        "--unshare-all",
        "--die-with-parent",
        "--ro-bind",
        "/usr",
        "/usr",
    ]
    .map(str::to_owned)
    .to_vec();
    let host = Host::look();
    for (at, to) in &host.links {
        let (at, to) = (at.display().to_string(), to.display().to_string());
        all.extend(["--symlink".to_owned(), to, at]);
    }
    for path in &host.present {
        let path = path.display().to_string();
        all.extend(["--ro-bind".to_owned(), path.clone(), path]);
    }
    all.extend(
        [
            "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp", "--tmpfs", "/dev/shm", "--dir",
            "/run",
        ]
        .map(str::to_owned),
    );
    all
}

fn unshare() -> Vec<String> {
    let kinds = [
        "--user", "--mount", "--pid", "--net", "--ipc", "--uts", "--cgroup",
    ];
    ["unshare"]
        .into_iter()
        .chain(kinds)
        .chain(["--map-root-user", "--fork"])
        .map(str::to_owned)
        .collect()
}

/// One run of the program behind `arguments`; nothing if that does not work here.
fn command(arguments: &[String], program: &[&str]) -> Option<Duration> {
    let program = program.iter().copied();
    let all: Vec<_> = arguments
        .iter()
        .map(String::as_str)
        .chain(program)
        .collect();
    let mut command = Command::new(all[0]);
    command
        .args(&all[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    if nix::unistd::geteuid().is_root() {
        // As thv's runner: an ordinary user.
        command.uid(65534).gid(65534);
    }
    let start = Instant::now();
    let mut child = command.spawn().ok()?;
    let (mut stdin, mut stdout) = (child.stdin.take()?, child.stdout.take()?);
    exchange(&mut stdin, &mut stdout).ok()?;
    let took = start.elapsed();
    drop(stdin);
    child.wait().unwrap().success().then_some(took)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

//! The runner towards whoever finds its socket: only its own gateway is served.

use std::{
    fs,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::sys::socket::UnixAddr;
use serde_json::json;
use thv::{
    config::ServerName,
    frames::{self, Reply, Request},
    runner::{self, Foreground},
};

use crate::{
    house::{self, children_of},
    lease::{self, Lease},
};

fn runner() -> (tempfile::TempDir, Foreground) {
    runner_with("")
}

/// With more lines of `[sandbox]`.
fn runner_with(sandbox: &str) -> (tempfile::TempDir, Foreground) {
    let program = Path::new(env!("CARGO_BIN_EXE_thv"));
    runner_of(&format!("optional = [\"cgroup\"]\n{sandbox}"), program)
}

/// With these lines of `[sandbox]`, and started by this program.
fn runner_of(sandbox: &str, program: &Path) -> (tempfile::TempDir, Foreground) {
    let files = tempfile::tempdir().unwrap();
    house::write_server(
        files.path(),
        &format!(
            "command = [\"/usr/bin/cat\"]\nresource = \"http://127.0.0.1:1/mcp\"\n[auth]\nmode = \"none\"\n\
         [authz]\nallow = \"authenticated\"\n[sandbox]\n{sandbox}"
        ),
    );
    let server = ServerName::parse("it").unwrap();
    let runner = runner::foreground(program, files.path(), &server).unwrap();
    (files, runner)
}

/// The next frame, waited for; `None` when the runner has hung up.
fn next(runner: &Foreground) -> Option<Reply> {
    next_on(runner.socket.as_fd())
}

fn next_on(socket: BorrowedFd<'_>) -> Option<Reply> {
    await_frame(socket);
    frames::receive(socket).unwrap().map(|(reply, _)| reply)
}

/// The next frame, and what came with it.
fn with_descriptors(socket: BorrowedFd<'_>) -> (Reply, Vec<OwnedFd>) {
    await_frame(socket);
    frames::receive(socket).unwrap().unwrap()
}

fn await_frame(socket: BorrowedFd<'_>) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut watched = [PollFd::new(socket, PollFlags::POLLIN)];
    let patience = PollTimeout::try_from(crate::wire::PATIENCE).unwrap();
    assert_eq!(poll(&mut watched, patience).unwrap(), 1, "no frame in time");
}

fn hello(runner: &Foreground, version: u16, key: &str) {
    let frame = Request::Hello {
        version,
        key: key.to_owned(),
        digest: String::new(),
    };
    frames::send(runner.socket.as_fd(), &frame, &[]).unwrap();
}

/// As the gateway that has started it.
#[track_caller]
fn greet(runner: &Foreground) {
    hello(runner, frames::VERSION, &runner.key);
    let reply = next(runner);
    assert!(matches!(reply, Some(Reply::Hello { .. })), "{reply:?}");
}

/// Asks for a child for whoever.
fn start(runner: &Foreground, child: u64) {
    let frame = Request::Start {
        child,
        principal: "0".repeat(64),
        caller: None,
    };
    frames::send(runner.socket.as_fd(), &frame, &[]).unwrap();
}

#[test]
fn who_does_not_know_the_key_is_refused_and_let_go() {
    for key in ["", "00", &"0".repeat(64)] {
        let (_files, runner) = runner();
        hello(&runner, frames::VERSION, key);
        assert!(matches!(next(&runner), Some(Reply::Refused { reason }) if reason == "wrong key"));
        assert!(next(&runner).is_none());
    }
    let (_files, runner) = runner();
    hello(&runner, frames::VERSION, &runner.key);
    assert!(
        matches!(next(&runner), Some(Reply::Hello { version: frames::VERSION, digest }) if digest.len() == 64)
    );
}

#[test]
fn another_version_is_refused_by_number() {
    let (_files, runner) = runner();
    hello(&runner, 99, &runner.key);
    assert!(matches!(next(&runner), Some(Reply::Refused { reason }) if reason.contains("99")));
}

#[test]
fn nothing_is_started_before_hello() {
    let (_files, runner) = runner();
    start(&runner, 1);
    assert!(next(&runner).is_none());
}

/// As a unit: it listens at `address`, and has this directory of credentials and these variables.
fn service(root: &Path, address: &UnixAddr, variables: &[(&str, &Path)]) -> std::process::Child {
    use nix::sys::socket::{Backlog, bind, listen};
    fs::write(root.join(frames::KEY_CREDENTIAL), "00").unwrap();
    let listener = packets();
    bind(listener.as_raw_fd(), address).unwrap();
    listen(&listener, Backlog::new(8).unwrap()).unwrap();
    // What systemd does: the socket is descriptor 3, and meant for this very process.
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=runner exec \"$0\" \"$@\" 3<&0";
    Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_thv"), "--root"])
        .arg(root)
        .args(["runner", "it"])
        .env("CREDENTIALS_DIRECTORY", root)
        .envs(variables.iter().copied())
        .stdin(Stdio::from(listener))
        .spawn()
        .unwrap()
}

fn packets() -> OwnedFd {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let flags = SockFlag::SOCK_CLOEXEC;
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap()
}

/// What a server keeps is its principal's alone and there again with the next session, and as a
/// sandbox that is made ahead would have nobody's, none is made.
#[test]
fn a_principal_finds_its_own_state_again_and_none_is_made_ahead_without_one() {
    use nix::sys::socket::connect;
    use std::io::{BufRead as _, BufReader};
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: a runner that is a unit reads root's files alone");
        return;
    }
    let files = tempfile::tempdir().unwrap();
    let state = files.path().join("state");
    fs::create_dir(&state).unwrap();
    let script = "echo x >> /state/n; wc -l < /state/n; exec cat";
    house::write_server(
        files.path(),
        &format!(
            "command = [\"/bin/sh\", \"-c\", {script:?}]\nresource = \"http://127.0.0.1:1/mcp\"\n\
             [auth]\nmode = \"none\"\n[authz]\nallow = \"authenticated\"\n\
             [sandbox]\noptional = [\"cgroup\"]\nstate = true\n"
        ),
    );
    let address = UnixAddr::new(&files.path().join("runner.sock")).unwrap();
    let mut runner = service(files.path(), &address, &[("STATE_DIRECTORY", &state)]);
    let socket = packets();
    connect(socket.as_raw_fd(), &address).unwrap();
    let hello = Request::Hello {
        version: frames::VERSION,
        key: "00".to_owned(),
        digest: String::new(),
    };
    frames::send(socket.as_fd(), &hello, &[]).unwrap();
    assert!(matches!(next_on(socket.as_fd()), Some(Reply::Hello { .. })));
    let mut held = Vec::new();
    let (alice, bob) = ("a".repeat(64), "b".repeat(64));
    for (child, (principal, times)) in
        (1..).zip([(&alice, "1"), (&bob, "1"), (&alice, "2"), (&bob, "2")])
    {
        let start = Request::Start {
            child,
            principal: principal.clone(),
            caller: None,
        };
        frames::send(socket.as_fd(), &start, &[]).unwrap();
        let (reply, mut descriptors) = with_descriptors(socket.as_fd());
        assert!(matches!(reply, Reply::Started { .. }), "{reply:?}");
        let mut said = String::new();
        let stdout = fs::File::from(descriptors.remove(1));
        BufReader::new(stdout).read_line(&mut said).unwrap();
        assert_eq!(said.trim(), times, "{principal}");
        held.push(descriptors);
        // Longer than the runner would wait before it made one.
        let end = Instant::now() + Duration::from_millis(100);
        while Instant::now() < end {
            assert_eq!(children_of(runner.id()).len(), held.len());
            std::thread::yield_now();
        }
    }
    for principal in [&alice, &bob] {
        assert_eq!(
            fs::read_to_string(state.join(principal).join("n")).unwrap(),
            "x\nx\n"
        );
    }
    drop((socket, held));
    assert!(runner.wait().unwrap().success());
}

/// One that was made ahead can end between the look at it and the word that it is wanted, which
/// is held open here: then another is made, unless the gateway wants its end.
#[test]
fn a_child_that_was_made_ahead_and_ends_as_it_is_wanted_is_replaced() {
    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };
    for is_wanted in [true, false] {
        let (_files, runner) = runner();
        greet(&runner);
        let start = |child| start(&runner, child);
        let mut held = Vec::new();
        let mut begun = |number| {
            let (reply, descriptors) = with_descriptors(runner.socket.as_fd());
            held.push(descriptors);
            match reply {
                Reply::Started { child, pid, .. } if child == number => pid.cast_signed(),
                other => panic!("{other:?}"),
            }
        };
        start(1);
        let first = begun(1);
        start(2);
        let taken = [first, begun(2)];
        // It is looked for: nobody is told of what is made ahead.
        let end = Instant::now() + crate::wire::PATIENCE;
        let spare = loop {
            let there = children_of(runner.pid());
            if let Some(spare) = there.into_iter().find(|pid| !taken.contains(pid)) {
                break spare;
            }
            assert!(Instant::now() < end, "none was made ahead");
            std::thread::yield_now();
        };
        let is_stopped = || {
            let stat = fs::read_to_string(format!("/proc/{spare}/stat")).unwrap();
            stat.rsplit_once(") ").unwrap().1.starts_with('T')
        };
        kill(Pid::from_raw(spare), Signal::SIGSTOP).unwrap();
        while !is_stopped() {
            assert!(Instant::now() < end, "it does not stop");
            std::thread::yield_now();
        }
        start(3);
        if !is_wanted {
            let signal = frames::Signal::Kill;
            let frame = Request::Signal { child: 3, signal };
            frames::send(runner.socket.as_fd(), &frame, &[]).unwrap();
            let reply = next(&runner);
            assert!(
                matches!(reply, Some(Reply::Failed { child: 3, .. })),
                "{reply:?}"
            );
            continue;
        }
        // Asked for after the third, and begun before it: the third waits for the spare one.
        start(4);
        let fourth = begun(4);
        kill(Pid::from_raw(spare), Signal::SIGKILL).unwrap();
        let third = begun(3);
        assert!(![first, taken[1], fourth, spare].contains(&third));
    }
}

/// Until its exec there is nobody who could obey, and the exec can hang: whoever is told to end
/// then is ended at once, and not at its deadline.
#[test]
fn a_child_that_hangs_in_its_exec_ends_when_it_is_told_to() {
    let (place, program) = lease::program(&["/usr/bin/cat"]);
    let files = tempfile::tempdir().unwrap();
    house::write_server(
        files.path(),
        &format!(
            "command = [{program:?}]\nresource = \"http://127.0.0.1:1/mcp\"\n[auth]\nmode = \"none\"\n\
             [authz]\nallow = \"authenticated\"\n[sandbox]\noptional = [\"cgroup\"]\nread-only = [{:?}]\n\
             [limits]\nstart-timeout = \"25s\"\n",
            place.path()
        ),
    );
    let server = ServerName::parse("it").unwrap();
    let program_of_runner = Path::new(env!("CARGO_BIN_EXE_thv"));
    let runner = runner::foreground(program_of_runner, files.path(), &server).unwrap();
    greet(&runner);
    let mut lease = Lease::on(&program);
    start(&runner, 1);
    lease.is_asked();
    let signal = frames::Signal::Terminate;
    let frame = Request::Signal { child: 1, signal };
    frames::send(runner.socket.as_fd(), &frame, &[]).unwrap();
    let mut last = next(&runner);
    if matches!(last, Some(Reply::Started { child: 1, .. })) {
        last = next(&runner);
    }
    assert!(
        matches!(last, Some(Reply::Exited { child: 1, .. })),
        "{last:?}"
    );
    assert_eq!(children_of(runner.pid()).len(), 0);
}

/// As a unit it listens: whoever connects and says nothing is let go, and with nobody left it ends.
#[test]
fn a_stranger_who_says_nothing_is_not_kept() {
    let files = tempfile::tempdir().unwrap();
    let address = UnixAddr::new(&files.path().join("runner.sock")).unwrap();
    let mut service = service(files.path(), &address, &[]);
    let stranger = packets();
    nix::sys::socket::connect(stranger.as_raw_fd(), &address).unwrap();
    assert!(
        next_on(stranger.as_fd()).is_none(),
        "after the hello deadline"
    );
    assert!(service.wait().unwrap().success());
}

#[test]
fn a_child_is_started_once_by_its_number_and_named_when_it_ends() {
    let (_files, runner) = runner();
    greet(&runner);
    start(&runner, 7);
    // Its descriptors are dropped here, so `cat` reads the end of its input and leaves.
    assert!(matches!(
        next(&runner),
        Some(Reply::Started { child: 7, .. })
    ));
    assert!(matches!(
        next(&runner),
        Some(Reply::Exited { child: 7, .. })
    ));
    start(&runner, 8);
    assert!(matches!(
        next(&runner),
        Some(Reply::Started { child: 8, .. })
    ));
}

/// A gateway can say who calls only where the configuration has a child told, and only in plain text.
#[test]
fn a_caller_is_taken_where_the_configuration_says_so_alone() {
    let start = |child, caller| Request::Start {
        child,
        principal: "0".repeat(64),
        caller,
    };
    let alice = frames::Caller::new("https://sso.example.com", "alice", "user").ok();
    let (_files, runner) = runner();
    greet(&runner);
    frames::send(runner.socket.as_fd(), &start(1, alice), &[]).unwrap();
    assert!(
        matches!(next(&runner), Some(Reply::Failed { child: 1, layer, .. }) if layer == "config")
    );
    frames::send(runner.socket.as_fd(), &start(2, None), &[]).unwrap();
    assert!(matches!(
        next(&runner),
        Some(Reply::Started { child: 2, .. })
    ));
    // The end of the one before may be told first.
    let caller = json!({ "issuer": "https://i", "subject": "a\nLD_PRELOAD=x", "kind": "user" });
    let forged =
        json!({ "frame": "start", "child": 3, "principal": "0".repeat(64), "caller": caller });
    frames::send(runner.socket.as_fd(), &forged, &[]).unwrap();
    while let Some(reply) = next(&runner) {
        assert!(matches!(reply, Reply::Exited { child: 2, .. }), "{reply:?}");
    }
}

/// probe-80: what a configuration shows and the host lacks is named by the start; the runner lives.
#[test]
fn a_path_that_is_missing_is_named_when_a_child_starts() {
    let (_files, runner) = runner_with("read-only = [\"/srv/thv-missing\"]\n");
    greet(&runner);
    start(&runner, 1);
    match next(&runner) {
        Some(Reply::Failed { layer, reason, .. }) => {
            assert_eq!(layer, "root");
            assert!(reason.contains("`/srv/thv-missing`"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
}

/// A gateway that has started its runner for itself says hello with its first child: minutes
/// later, if nobody comes before.
#[test]
fn a_runner_waits_for_its_parents_first_word() {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let (_files, runner) = runner();
    let longer_than_strangers_have = PollTimeout::from(6000_u16);
    let mut watched = [PollFd::new(runner.socket.as_fd(), PollFlags::POLLIN)];
    let heard = poll(&mut watched, longer_than_strangers_have).unwrap();
    assert_eq!(heard, 0, "it has hung up");
    greet(&runner);
}

/// A program that is the runner on a host that has not these calls, and where it logs.
fn lacking(calls: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let (program, log) = (place.path().join("runner"), place.path().join("log"));
    let script = format!(
        "#!/bin/sh\nTHV_LOG=info exec /usr/bin/python3 '{}/tests/it/servers/without_calls.py' {calls} '{}' \"$@\" 2>>'{}'\n",
        env!("CARGO_MANIFEST_DIR"),
        env!("CARGO_BIN_EXE_thv"),
        log.display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    (place, program, log)
}

/// Where the kernel lets nobody mount a /proc that shows more than the one around, a server has
/// one of its processes alone, and the journal says so.
#[test]
fn a_child_that_is_given_less_of_proc_starts_and_that_is_told() {
    // The call by which a whole one is mounted: with these flags, and without options.
    let (_place, program, log) = lacking(&format!("{}:3=14:4=0", libc::SYS_mount));
    let (_files, runner) = runner_of("optional = [\"cgroup\"]", &program);
    greet(&runner);
    start(&runner, 1);
    let started = next(&runner);
    assert!(
        matches!(started, Some(Reply::Started { child: 1, .. })),
        "{started:?}"
    );
    let said = fs::read_to_string(&log).unwrap();
    let told = said
        .lines()
        .find(|line| line.contains("a child's /proc shows its processes alone"));
    let told = told.unwrap_or_else(|| panic!("{said}"));
    assert!(
        told.contains("INFO") && told.contains("/proc/meminfo"),
        "{told}"
    );
}

/// probe-80: a layer that the host lacks ends the start with cause and cure, unless it may be missing:
/// then the child runs, and the journal (here the standard error) names each that was left out, with
/// the reason. Without namespaces and root there is nothing that could be left out.
#[test]
fn each_layer_is_required_and_one_that_is_left_out_is_named_each_time() {
    for (layer, calls, cure) in [
        (
            "landlock",
            libc::SYS_landlock_create_ruleset,
            "add \"landlock\" to sandbox.optional",
        ),
        (
            "seccomp",
            libc::SYS_seccomp,
            "add \"seccomp\" to sandbox.optional",
        ),
        (
            "privileges",
            libc::SYS_capset,
            "add \"privileges\" to sandbox.optional",
        ),
        (
            "rlimits",
            libc::SYS_prlimit64,
            "add \"rlimits\" to sandbox.optional",
        ),
        (
            "namespaces",
            libc::SYS_clone3,
            "a container's seccomp profile",
        ),
        ("root", libc::SYS_open_tree, "thv doctor"),
    ] {
        let (_place, program, log) = lacking(&calls.to_string());
        // No cgroup is handed on to a test, which has its own among others.
        let (_files, runner) = runner_of("optional = [\"cgroup\"]", &program);
        greet(&runner);
        start(&runner, 1);
        match next(&runner) {
            Some(Reply::Failed {
                layer: named,
                reason,
                ..
            }) => {
                assert_eq!(named, layer, "{reason}");
                assert!(reason.contains(cure), "{layer}: {reason}");
                println!("{layer}: {reason}");
            }
            other => panic!("{layer}: {other:?}"),
        }
        drop(runner);
        if matches!(layer, "namespaces" | "root") {
            continue;
        }
        fs::remove_file(&log).unwrap();

        let (_files, runner) = runner_of(&format!("optional = [\"cgroup\", {layer:?}]"), &program);
        greet(&runner);
        for child in [1, 2] {
            start(&runner, child);
            while !matches!(next(&runner), Some(Reply::Exited { .. })) {}
            let said = fs::read_to_string(&log).unwrap();
            for layer in ["cgroup", layer] {
                let named = said.lines().filter(|line| {
                    line.contains("WARN") && line.contains(&format!("layer=\"{layer}\" reason=\""))
                });
                let named: Vec<_> = named.collect();
                assert!(named.len() >= child as usize, "{layer}: {said}");
                assert!(
                    named
                        .iter()
                        .all(|line| line.contains("a child starts without an optional layer")),
                    "{said}"
                );
                // Who has written that line already is not told to.
                assert!(!said.contains("to sandbox.optional"), "{said}");
            }
        }
    }
}

/// A runner that has no network of the host has none to give: it says so, and how it comes to one.
#[test]
fn the_hosts_network_is_not_claimed_by_a_runner_that_is_apart_from_it() {
    let place = tempfile::tempdir().unwrap();
    let (program, log) = (place.path().join("runner"), place.path().join("log"));
    let network = "optional = [\"cgroup\"]\nnetwork = \"host\"\ndangerous = true";
    // As PrivateNetwork= does, and without.
    for (around, is_apart) in [
        ("unshare --user --map-current-user --net --", true),
        ("", false),
    ] {
        let script = format!(
            "#!/bin/sh\nexec {around} '{}' \"$@\" 2>'{}'\n",
            env!("CARGO_BIN_EXE_thv"),
            log.display()
        );
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let (_files, runner) = runner_of(network, &program);
        greet(&runner);
        start(&runner, 1);
        let reply = next(&runner);
        let said = fs::read_to_string(&log).unwrap();
        let claimed = said.contains("THIS HOST'S network");
        match reply {
            Some(Reply::Failed { layer, reason, .. }) if is_apart => {
                assert_eq!(layer, "network");
                assert!(
                    reason.contains("`systemctl edit thv-runner@it.service`"),
                    "{reason}"
                );
                assert!(
                    reason.contains("PrivateNetwork=no") && !claimed,
                    "{reason} {said}"
                );
            }
            Some(Reply::Started { .. }) if !is_apart => assert!(claimed, "{said}"),
            other => panic!("{other:?}: {said}"),
        }
    }
}

//! The start of a server call by call: held up, refused and killed by strace(1).

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use crate::house;

/// probe-3: the old root is on its way out while the server's process is made, which has only
/// its exec left to do: it waits for that, however long it takes.
#[test]
fn a_server_begins_when_the_old_root_is_gone_and_not_before() {
    let Some(started) = hindered("umount2:delay_enter=500000") else {
        return;
    };
    assert!(started.said.contains("STARTED"), "{}", started.said);
    let line = |call: &dyn Fn(&str) -> bool| {
        let found = started.calls.iter().position(|line| call(line));
        found.unwrap_or_else(|| panic!("{:#?}", started.calls))
    };
    let made = line(&|line| line.contains("clone(") && line.contains("CLONE_VFORK"));
    let gone = line(&|line| line.contains("umount2") && line.contains("= 0 (DELAYED)"));
    let begun = line(&|line| line.contains("execve(\"/usr/bin/sh\""));
    assert!(made < gone && gone < begun, "{:#?}", started.calls);
}

/// probe-80: whatever is refused or killed on the way there is no server, and whoever wants it is told.
#[test]
fn a_start_that_is_cut_short_anywhere_is_told_and_there_is_no_server() {
    let cut_short = "ended while the sandbox was being made";
    for (call, refused, killed) in [
        ("sethostname", "naming the host", cut_short),
        ("setns", "making a network", cut_short),
        ("pivot_root", "changing the root", cut_short),
        (
            "umount2",
            "leaving the old root: Operation not permitted",
            "leaving the old root",
        ),
        ("capset", "privileges: this host refuses it", cut_short),
        ("seccomp", "seccomp: this host refuses it", cut_short),
        ("setsid", "setting up its standard streams", cut_short),
        (
            "landlock_restrict_self",
            "landlock: this host refuses it",
            cut_short,
        ),
    ] {
        for (how, words) in [("error=EPERM", refused), ("signal=SIGKILL", killed)] {
            let Some(started) = hindered(&format!("{call}:{how}")) else {
                return;
            };
            assert!(
                started.said.contains(words) && !started.said.contains("STARTED"),
                "{call}, {how}: {}",
                started.said
            );
        }
    }
}

struct Started {
    /// What server and thv have said.
    said: String,
    /// What strace has seen, in order.
    calls: Vec<String>,
}

/// A server that is started while something is done to its calls; `None` where that cannot be.
fn hindered(how: &str) -> Option<Started> {
    let files = tempfile::tempdir().unwrap();
    house::write_server(
        files.path(),
        "command = [\"/usr/bin/cat\"]\nresource = \"http://127.0.0.1:1/mcp\"\n[auth]\nmode = \"none\"\n\
         [authz]\nallow = \"authenticated\"\n",
    );
    let log = files.path().join("calls");
    let traced = |program: &str| {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-o"]).arg(&log);
        strace.arg("-e").arg(format!("inject={how}")).arg(program);
        strace
    };
    if !Path::new("/usr/bin/strace").exists() || !traced("true").status().unwrap().success() {
        eprintln!("not proven here: there is no strace(1), or it may trace nothing");
        return None;
    }
    let output = traced(env!("CARGO_BIN_EXE_thv"))
        .arg("--root")
        .arg(files.path())
        .args([
            "sandbox",
            "it",
            "--",
            "/usr/bin/sh",
            "-c",
            "echo STARTED; exec cat",
        ])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Some(Started {
        said: [output.stdout, output.stderr]
            .map(|said| String::from_utf8_lossy(&said).into_owned())
            .concat(),
        calls: fs::read_to_string(log)
            .unwrap()
            .lines()
            .map(ToOwned::to_owned)
            .collect(),
    })
}

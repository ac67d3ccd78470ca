//! A runner of the benchmark's own, asked as a gateway asks it.

use std::{
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{fs::PermissionsExt as _, process::CommandExt as _},
    },
    path::Path,
    process::Command,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thv::{
    config::ServerName,
    frames::{self, Reply, Request},
    runner::{self, Foreground},
};

/// The program whose runner it is.
pub(crate) const THV: &str = env!("CARGO_BIN_EXE_thv");
const LOG: &str = "THV_LOG";

/// Starts this program again where the runner would talk about what this host lacks,
/// which is not what is measured.
pub(crate) fn quietly() {
    if std::env::var_os(LOG).is_none() {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(std::env::args_os().skip(1)).env(LOG, "error");
        panic!("starting it again: {}", again.exec());
    }
}

/// Writes the configuration of the server `bench`, which anybody may call.
pub(crate) fn write_server(root: &Path, lines: &str) {
    let servers = root.join("etc/thv/servers");
    fs::create_dir_all(&servers).unwrap();
    let text = format!(
        "{lines}\nresource = \"http://127.0.0.1:1/mcp\"\n[auth]\nmode = \"none\"\n\
         [authz]\nallow = \"authenticated\"\n[sandbox]\noptional = [\"cgroup\"]\n"
    );
    fs::write(servers.join("bench.toml"), text).unwrap();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A runner of that server that has been said hello.
pub(crate) fn start(root: &Path) -> Foreground {
    let server = ServerName::parse("bench").unwrap();
    let runner = runner::foreground(Path::new(THV), root, &server).unwrap();
    let hello = Request::Hello {
        version: frames::VERSION,
        key: runner.key.clone(),
        digest: String::new(),
    };
    ask(&runner, &hello);
    assert!(matches!(receive(&runner).0, Reply::Hello { .. }));
    runner
}

pub(crate) fn ask(runner: &Foreground, request: &Request) {
    frames::send(runner.socket.as_fd(), request, &[]).unwrap();
}

/// The next reply, and what came with it.
pub(crate) fn receive(runner: &Foreground) -> (Reply, Vec<OwnedFd>) {
    let mut watched = [PollFd::new(runner.socket.as_fd(), PollFlags::POLLIN)];
    let ready = poll(&mut watched, PollTimeout::from(10_000_u16)).unwrap();
    assert_eq!(ready, 1, "the runner says nothing");
    frames::receive(runner.socket.as_fd()).unwrap().unwrap()
}

//! Which files are read, and in which order: each is a layer over those before it.

use std::path::{Path, PathBuf};

use super::ServerName;

/// Whom a file speaks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reach {
    /// All servers of this host: `thv.toml` and its drop-ins.
    Host,
    /// One server: `servers/NAME.toml` and its drop-ins.
    Server,
}

/// One place to look for files, lowest first.
pub(super) enum Source {
    /// A file that may be missing.
    File(PathBuf, Reach),
    /// Every `*.toml` in a directory that may be missing, by name.
    DropIns(PathBuf, Reach),
}

/// Where one server's configuration comes from, lowest layer first.
pub(super) fn sources(name: &ServerName) -> [Source; 5] {
    let server = server_file(name);
    let mut drop_ins = server.clone().into_os_string();
    drop_ins.push(".d");
    [
        Source::File(PathBuf::from("/usr/lib/thv/thv.toml"), Reach::Host),
        Source::File(PathBuf::from("/etc/thv/thv.toml"), Reach::Host),
        Source::DropIns(PathBuf::from("/etc/thv/thv.toml.d"), Reach::Host),
        Source::File(server, Reach::Server),
        Source::DropIns(PathBuf::from(drop_ins), Reach::Server),
    ]
}

/// The file that makes a server exist.
pub(super) fn server_file(name: &ServerName) -> PathBuf {
    Path::new(SERVERS).join(format!("{name}.toml"))
}

/// Where the servers' files are.
pub(super) const SERVERS: &str = "/etc/thv/servers";

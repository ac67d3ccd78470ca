//! `thv listen NAME ADDRESS`: a drop-in of the socket unit.
//!
//! Ports belong to the socket unit, so that `systemctl cat thv@NAME.socket` is
//! the whole truth. Refuses what other machines can reach unless told `--public`.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};

use super::{Usage, print, say, unit};
use crate::config::{self, Auth, Config, OwnerRule, ServerName};

pub(super) fn run(root: &Path, name: &ServerName, address: &str, public: bool) -> Result<ExitCode> {
    let address = Address::parse(address).map_err(Usage)?;
    if matches!(address, Address::Tcp(_)) {
        // A configuration that does not load says nothing of this; the gateway asks again when it starts.
        let config = config::load(root, name, OwnerRule::RootOrCaller).ok();
        refuse_nameless(name, &address, config.as_ref())?;
        if address.is_public() {
            refuse_public(name, &address, public, config.as_ref())?;
        }
    }
    let is_there = unit::warn_of_no_server(root, name);
    let socket = format!("thv@{name}.socket");
    if unit::is_host(root) {
        match &address {
            Address::Tcp(wanted) => refuse_taken(&socket, *wanted)?,
            Address::Unix(path) => refuse_taken_path(&socket, path)?,
        }
    }
    let path = unit::write_drop_in(root, &socket, "50-listen.conf", &drop_in(name, &address))?;
    print(&format!("{}\n", path.display()))?;
    if !unit::is_host(root) {
        return Ok(ExitCode::SUCCESS);
    }
    unit::systemctl(&["daemon-reload"])?;
    // Both in one transaction: systemd starts no socket whose service is running.
    // What is not running stays so.
    // A socket without its server's file would only be lost.
    if is_there {
        unit::systemctl(&["try-restart", &socket, &format!("thv@{name}.service")]).with_context(
            // What has failed is not active, so the same would do nothing.
            || format!("`journalctl -u {socket} -n 5` says why; mend it, then `systemctl restart {socket}`"),
        )?;
    }
    let when = match is_there && unit::is_active(&socket) {
        true => "now".to_owned(),
        false => format!("when it is enabled: `systemctl enable --now {socket}`"),
    };
    say(&format!(
        "thv: {socket} listens on {address} {when}\n\
         thv: to see it: `systemctl cat {socket}`; to undo it: remove the file, `systemctl daemon-reload` and `systemctl try-restart {socket} thv@{name}.service`"
    ));
    Ok(ExitCode::SUCCESS)
}

/// A socket that cannot listen is down, and its server with it: better asked before.
fn refuse_taken(socket: &str, wanted: SocketAddr) -> Result<()> {
    let Err(error) = TcpListener::bind(wanted) else {
        return Ok(());
    };
    let port = wanted.port();
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            // Its own, at this address or at another: it is restarted.
            if unit::listens_at(socket, port) {
                return Ok(());
            }
            let holders = unit::sockets_at(|address| address == wanted.to_string());
            let who = match holders.first() {
                Some(holder) => format!("by {holder}"),
                None => format!("`ss -ltnp 'sport = :{port}'` shows by whom"),
            };
            bail!("{wanted} is taken already, {who}; choose another port (nothing is changed)")
        }
        // `FreeBind=yes`: an address that comes later is no mistake.
        io::ErrorKind::AddrNotAvailable => {
            say(&format!(
                "thv: no interface of this host has the address {} now; {socket} listens there as soon as one has",
                wanted.ip()
            ));
            Ok(())
        }
        // A low port, and whatever else only systemd may.
        _ => Ok(()),
    }
}

/// systemd removes what stands at the path, whosever it is, and nobody would reach that any more.
fn refuse_taken_path(socket: &str, path: &Path) -> Result<()> {
    // By whatever way it is written: `/var/run` is `/run`.
    let path = &resolved(path);
    let is_it = |other: &str| {
        let other = Path::new(other);
        other.file_name() == path.file_name() && resolved(other) == *path
    };
    let holders = unit::sockets_at(is_it);
    if holders.iter().any(|holder| holder == socket) {
        return Ok(());
    }
    let place = path.display();
    if let Some(holder) = holders.first() {
        bail!("`{place}` is taken already, by {holder}; choose another path (nothing is changed)");
    }
    let Ok(meta) = path.symlink_metadata() else {
        return Ok(());
    };
    if !meta.file_type().is_socket() {
        bail!(
            "`{place}` is there already, and is no socket; choose another path (nothing is changed)"
        );
    }
    // A connection would start whoever is started by one.
    let open = fs::read("/proc/net/unix").with_context(|| {
        format!("reading `/proc/net/unix`, to see whether anybody has `{place}`")
    })?;
    // Names of others may be anything.
    let open = String::from_utf8_lossy(&open);
    let mut paths = open
        .lines()
        .filter_map(|line| line.split_whitespace().nth(7));
    if paths.any(is_it) {
        bail!(
            "`{place}` is taken already, `ss -lxp` shows by whom; choose another path (nothing is changed)"
        );
    }
    Ok(())
}

/// A path without the links on the way to it.
fn resolved(path: &Path) -> PathBuf {
    let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
    match (parent, path.file_name()) {
        (Some(parent), Some(name)) => parent.join(name),
        _ => path.to_owned(),
    }
}

/// Where a socket listens.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Address {
    fn parse(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return unix(text);
        }
        let address = match text.parse::<u16>() {
            Ok(port) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            Err(_) => text.parse().map_err(|_| {
                format!("`{text}` is not an address: 127.0.0.1:PORT, [::1]:PORT, PORT or /run/PATH.sock (no host names)")
            })?,
        };
        if address.port() == 0 {
            Err("port 0 is no port to be found at".to_owned())
        } else {
            Ok(Self::Tcp(address))
        }
    }

    /// Whether other machines can reach it.
    fn is_public(&self) -> bool {
        match self {
            Self::Tcp(address) => !address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => false,
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

fn unix(text: &str) -> Result<Address, String> {
    let path = config::plain_path(text)?;
    if text.len() > MAX_SOCKET_PATH {
        return Err(format!(
            "the path of a Unix socket has at most {MAX_SOCKET_PATH} bytes"
        ));
    }
    Ok(Address::Unix(path))
}

/// The kernel names the users of Unix sockets alone.
fn refuse_nameless(name: &ServerName, address: &Address, config: Option<&Config>) -> Result<()> {
    if config.is_some_and(|config| matches!(config.auth, Auth::Peer)) {
        let message = format!(
            "at {address} nobody says which user connects, and `{name}` asks for that (auth.mode = \"peer\"): `thv listen {name} /run/thv/{name}.sock`"
        );
        return Err(Usage(message).into());
    }
    Ok(())
}

fn refuse_public(
    name: &ServerName,
    address: &Address,
    public: bool,
    config: Option<&Config>,
) -> Result<()> {
    let secured = config.is_some_and(|config| config.tls.is_some());
    if !public && !secured {
        let message = format!(
            "other machines can reach {address}; add [tls] to the server's file, put a TLS reverse proxy before 127.0.0.1, or say `thv listen {name} {address} --public`"
        );
        return Err(Usage(message).into());
    }
    if config.is_some_and(|config| matches!(config.auth, Auth::None)) {
        let message = format!(
            "`{name}` asks for no token (auth.mode = \"none\"): it may listen on loopback or a Unix socket only"
        );
        return Err(Usage(message).into());
    }
    if secured {
        return Ok(());
    }
    say(&format!(
        "thv: {address} speaks plain HTTP: tokens pass readable unless a TLS reverse proxy stands before it"
    ));
    Ok(())
}

fn drop_in(name: &ServerName, address: &Address) -> String {
    // The empty line takes back the unit's own address.
    let mut text = format!(
        "# written by `thv listen {name} {address}`\n[Socket]\nListenStream=\nListenStream={address}\n"
    );
    if matches!(address, Address::Tcp(_)) {
        text.push_str("NoDelay=yes\nFreeBind=yes\n");
    }
    text
}

/// `sun_path` without its null byte.
const MAX_SOCKET_PATH: usize = 107;

#[cfg(test)]
mod tests {
    use std::os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr as UnixAddress, UnixListener},
    };

    use super::*;

    #[test]
    fn a_path_that_somebody_has_is_refused() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("it.sock");
        refuse_taken_path("thv@x.socket", &path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        let error = refuse_taken_path("thv@x.socket", &path).unwrap_err();
        assert!(error.to_string().contains("`ss -lxp`"), "{error}");
        let link = place.path().join("link");
        std::os::unix::fs::symlink(place.path(), &link).unwrap();
        let error = refuse_taken_path("thv@x.socket", &link.join("it.sock")).unwrap_err();
        assert!(error.to_string().contains("`ss -lxp`"), "{error}");
        // A name that is no text hides nobody's.
        let abstract_name = UnixAddress::from_abstract_name(b"thv-test-\xff\xfe").unwrap();
        let _odd = UnixListener::bind_addr(&abstract_name).unwrap();
        assert!(refuse_taken_path("thv@x.socket", &path).is_err());
        drop(listener);
        // What is left of one that has ended is in nobody's way.
        refuse_taken_path("thv@x.socket", &path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "text").unwrap();
        let error = refuse_taken_path("thv@x.socket", &path).unwrap_err();
        assert!(error.to_string().contains("no socket"), "{error}");
    }

    #[test]
    fn a_port_that_somebody_has_is_refused_with_the_way_to_find_out_who() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = refuse_taken("thv@x.socket", address).unwrap_err();
        let command = format!("ss -ltnp 'sport = :{}'", address.port());
        assert!(error.to_string().contains(&command), "{error:#}");
        drop(taken);
        refuse_taken("thv@x.socket", address).unwrap();
        // An address that comes later (FreeBind=) is no mistake.
        refuse_taken("thv@x.socket", "192.0.2.1:8081".parse().unwrap()).unwrap();
    }

    #[test]
    fn addresses_are_read_and_the_public_ones_known() {
        for (text, canonical, public) in [
            ("127.0.0.1:8081", "127.0.0.1:8081", false),
            ("8081", "127.0.0.1:8081", false),
            ("[::1]:8081", "[::1]:8081", false),
            ("[::ffff:127.0.0.1]:1", "[::ffff:127.0.0.1]:1", false),
            ("/run/x.sock", "/run/x.sock", false),
            ("0.0.0.0:80", "0.0.0.0:80", true),
            ("[::]:80", "[::]:80", true),
            ("10.0.0.1:80", "10.0.0.1:80", true),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!(
                (address.to_string().as_str(), address.is_public()),
                (canonical, public),
                "{text}"
            );
        }
        for bad in [
            "",
            "0",
            "127.0.0.1:0",
            "127.0.0.1",
            "localhost:80",
            "70000",
            "x.sock",
            "/run/../x",
            "/run/a b",
            "/run/%t",
        ] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_drop_in_takes_back_the_default_address() {
        let root = tempfile::tempdir().unwrap();
        let name = ServerName::parse("github").unwrap();
        run(root.path(), &name, "127.0.0.1:8081", false).unwrap();
        let file = root
            .path()
            .join("etc/systemd/system/thv@github.socket.d/50-listen.conf");
        assert_eq!(
            fs::read_to_string(&file).unwrap(),
            "# written by `thv listen github 127.0.0.1:8081`\n[Socket]\nListenStream=\nListenStream=127.0.0.1:8081\n\
             NoDelay=yes\nFreeBind=yes\n"
        );
        run(root.path(), &name, "/run/x.sock", false).unwrap();
        assert!(
            fs::read_to_string(&file)
                .unwrap()
                .ends_with("ListenStream=\nListenStream=/run/x.sock\n")
        );
    }

    #[test]
    fn a_server_that_asks_for_the_user_who_connects_listens_at_no_port() {
        let root = tempfile::tempdir().unwrap();
        let name = ServerName::parse("x").unwrap();
        let servers = root.path().join("etc/thv/servers");
        fs::create_dir_all(&servers).unwrap();
        let text = "command = [\"/bin/true\"]\nresource = \"https://h/x\"\nauth.mode = \"peer\"\nauthz.allow = \"authenticated\"\n";
        fs::write(servers.join("x.toml"), text).unwrap();
        config::load(root.path(), &name, OwnerRule::RootOrCaller).unwrap();
        let file = root
            .path()
            .join("etc/systemd/system/thv@x.socket.d/50-listen.conf");
        for (address, public) in [("8081", false), ("0.0.0.0:80", true)] {
            let error = run(root.path(), &name, address, public).unwrap_err();
            let command = "`thv listen x /run/thv/x.sock`";
            assert!(error.to_string().contains(command), "{error:#}");
            assert!(!file.exists());
        }
        run(root.path(), &name, "/run/thv/x.sock", false).unwrap();
        assert!(file.exists());
    }

    #[test]
    fn a_public_address_must_be_agreed_to_and_wants_tokens() {
        let root = tempfile::tempdir().unwrap();
        let name = ServerName::parse("x").unwrap();
        let file = root
            .path()
            .join("etc/systemd/system/thv@x.socket.d/50-listen.conf");
        assert!(run(root.path(), &name, "0.0.0.0:80", false).is_err());
        assert!(!file.exists());
        run(root.path(), &name, "0.0.0.0:80", true).unwrap();
        assert!(file.exists());
        fs::remove_file(&file).unwrap();
        let servers = root.path().join("etc/thv/servers");
        fs::create_dir_all(&servers).unwrap();
        let text = "command = [\"/bin/true\"]\nresource = \"https://h/x\"\nauth.mode = \"none\"\nauthz.allow = \"authenticated\"\n";
        fs::write(servers.join("x.toml"), text).unwrap();
        config::load(root.path(), &name, OwnerRule::RootOrCaller).unwrap();
        assert!(run(root.path(), &name, "0.0.0.0:80", true).is_err());
        assert!(!file.exists());
        run(root.path(), &name, "8081", true).unwrap();
        assert!(file.exists());
        fs::remove_file(&file).unwrap();
        // With TLS of its own nobody has to agree, and without tokens nobody can.
        let tls = "[tls]\ncertificate = \"/etc/thv/chain.pem\"\nkey = { credential = \"key\" }\n";
        fs::write(servers.join("x.toml"), format!("{text}{tls}")).unwrap();
        assert!(run(root.path(), &name, "0.0.0.0:443", false).is_err());
        let issuer = "[[auth.issuer]]\nissuer = \"https://sso.example.com\"\naudience = \"x\"\n";
        let text = text.replace("auth.mode = \"none\"\n", "");
        fs::write(servers.join("x.toml"), format!("{text}{tls}{issuer}")).unwrap();
        run(root.path(), &name, "0.0.0.0:443", false).unwrap();
        assert!(file.exists());
    }
}

//! The demo's configuration: real files in a directory of their own.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::chown,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aws_lc_rs::rand;

use crate::runner::Person;

/// A directory that is removed when this is dropped.
pub(super) struct Files(PathBuf);

impl Files {
    /// What stands in for `/` when the configuration is read.
    pub(super) fn root(&self) -> &Path {
        &self.0
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes the configuration of a server at `address` whose callers come from
/// `issuer`, readable by `person`.
pub(super) fn write(
    address: SocketAddr,
    issuer: SocketAddr,
    person: Option<&Person>,
) -> Result<Files> {
    let files = Files(directory().context("making a directory for the demo")?);
    let program = std::env::current_exe().context("finding this program")?;
    let etc = files.root().join("etc/thv");
    let server = format!(
        r#"command  = [{program:?}, "demo-server"]
resource = "http://{address}/mcp"

[[auth.issuer]]
issuer   = "http://{issuer}"
audience = "http://{address}/mcp"

[authz]
policies = ["/etc/thv/policies/demo.cedar"]

[sandbox]
# Nothing limits memory here: that needs a cgroup, which systemd delegates to a unit.
optional = ["cgroup"]
"#,
        program = program.display().to_string(),
    );
    for dir in ["servers", "policies"] {
        fs::create_dir_all(etc.join(dir))?;
    }
    fs::write(etc.join("servers/demo.toml"), server)?;
    fs::write(etc.join("policies/demo.cedar"), POLICY)?;
    if let Some(person) = person {
        give(files.root(), person)?;
    }
    Ok(files)
}

fn directory() -> io::Result<PathBuf> {
    let mut random = [0; 8];
    rand::fill(&mut random).map_err(|_| io::Error::other("no random bytes"))?;
    let name = random
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<String>();
    let path = std::env::temp_dir().join(format!("thv-demo-{name}"));
    // Fails if somebody was there before.
    fs::create_dir(&path)?;
    Ok(path)
}

fn give(path: &Path, person: &Person) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), person)?;
        }
    }
    chown(path, Some(person.uid()), Some(person.gid()))
}

/// Who may do what in the demo.
const POLICY: &str = r#"// People of the group "demo" may talk to the server and see its tools …
@id("talk")
permit (
    principal is User,
    action in [Action::"initialize", Action::"tools/list"],
    resource
) when { principal.groups.contains("demo") };

// … and use two of them. Nothing permits `clock`.
@id("two-tools")
permit (
    principal is User,
    action == Action::"tools/call",
    resource in Server::"demo"
) when {
    principal.groups.contains("demo") &&
    (resource == Tool::"whoami" || resource == Tool::"look_around")
};
"#;

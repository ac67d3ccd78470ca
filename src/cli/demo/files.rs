//! The demo's configuration: real files in a directory of their own.

use std::{fs, net::SocketAddr};

use anyhow::{Context as _, Result};

use crate::{cli::scratch::Scratch, runner::Person};

/// Writes the configuration of a server at `address` whose callers come from
/// `issuer`, readable by `person`.
pub(super) fn write(
    address: SocketAddr,
    issuer: SocketAddr,
    person: Option<&Person>,
) -> Result<Scratch> {
    let files = Scratch::new("thv-demo")?;
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
        files.give(person)?;
    }
    Ok(files)
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

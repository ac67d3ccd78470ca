//! `thv sandbox NAME -- COMMAND`: a look around from where a server runs.

use std::{path::Path, process::ExitCode};

use anyhow::Result;

use super::{Usage, say};
use crate::{
    config::{self, OwnerRule, ServerName, Transport},
    frames::Status,
    runner,
};

pub(super) fn run(root: &Path, name: &ServerName, command: &[String]) -> Result<ExitCode> {
    let mut command = command.to_vec();
    let Some(program) = command.first_mut() else {
        return Err(
            Usage("write a command, as in `thv sandbox NAME -- ls -l /`".to_owned()).into(),
        );
    };
    *program = inside(program)?;
    let config = config::load(root, name, OwnerRule::RootOrCaller)?;
    if let Transport::Remote(upstream) = &config.transport {
        return Err(Usage(format!(
            "`{name}` runs elsewhere, at {}: there is no sandbox of its to look at",
            upstream.url
        ))
        .into());
    }
    for missing in runner::missing_from_visits(&config) {
        say(&format!(
            "thv: unlike in the server's own sandbox, {missing}"
        ));
    }
    Ok(ExitCode::from(match runner::visit(root, name, command)? {
        Status::Code(code) => u8::try_from(code).unwrap_or(u8::MAX),
        // As shells have it.
        Status::Signal(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
    }))
}

/// Where the program stands inside, whose PATH has what this host's has there.
fn inside(program: &str) -> Result<String, Usage> {
    if program.starts_with('/') {
        return Ok(program.to_owned());
    }
    if program.contains('/') {
        return Err(Usage(format!(
            "`{program}`: write an absolute path; what the server sees is not this directory"
        )));
    }
    DIRECTORIES
        .iter()
        .map(|directory| format!("{directory}/{program}"))
        .find(|path| Path::new(path).exists())
        .ok_or_else(|| {
            Usage(format!(
                "`{program}` is in none of {}: install it, or write its path",
                DIRECTORIES.join(", ")
            ))
        })
}

/// Where a program without a path is looked for: the server's own PATH.
const DIRECTORIES: &[&str] = &["/usr/local/bin", "/usr/bin", "/bin"];

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_server_elsewhere_has_no_sandbox_to_look_at() {
        let root = tempfile::tempdir().unwrap();
        let servers = root.path().join("etc/thv/servers");
        fs::create_dir_all(&servers).unwrap();
        let text = "url = \"https://up.example/mcp\"\nresource = \"https://h/x\"\nauth.mode = \"none\"\nauthz.allow = \"authenticated\"\n";
        fs::write(servers.join("x.toml"), text).unwrap();
        let name = ServerName::parse("x").unwrap();
        let error = run(root.path(), &name, &["/bin/true".to_owned()]).unwrap_err();
        assert!(
            error.is::<Usage>() && error.to_string().contains("https://up.example/mcp"),
            "{error}"
        );
    }
}

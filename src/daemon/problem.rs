//! What is wrong with a configuration that loads, once it meets what surrounds it.

use std::path::{Path, PathBuf};

use crate::config::{Config, Problem, Problems, ServerName};

/// What to do about a credential that this process was not given. One that a drop-in names since
/// it started looks good to `thv check`, and comes with a start alone.
pub(super) fn credential_help(server: &ServerName, credential: &str) -> String {
    format!(
        "`thv check {server}` says whether a drop-in gives {credential}; where one does, `systemctl restart thv@{server}.service`"
    )
}

/// One problem, of the server's own file.
pub(super) fn problem(config: &Config, message: &str, help: &str) -> Problems {
    problem_of(config, message, help).into()
}

pub(super) fn problem_of(config: &Config, message: &str, help: &str) -> Problem {
    let own = format!("/etc/thv/servers/{}.toml", config.server);
    let on_host = config
        .files
        .iter()
        .find(|file| file.ends_with(own.trim_start_matches('/')));
    let file = on_host.map_or(Path::new(&own), PathBuf::as_path);
    Problem::of_file(file, message, help)
}

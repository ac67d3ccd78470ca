//! `thv runner NAME`: the runner, as thv-runner@NAME.service starts it.

use std::{path::Path, process::ExitCode};

use anyhow::{Result, bail};

use crate::config::ServerName;

/// Serves its gateway until told to stop. Called before there is any thread.
pub(super) fn run(_root: &Path, name: &ServerName) -> Result<ExitCode> {
    bail!("this build has no runner to start `{name}` with")
}

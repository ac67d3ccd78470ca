//! `thv serve NAME`: the gateway, as thv@NAME.service starts it.

use std::{path::Path, process::ExitCode};

use anyhow::{Result, bail};

use crate::config::ServerName;

/// Serves until told to stop, or idle.
pub(super) fn run(_root: &Path, name: &ServerName) -> Result<ExitCode> {
    bail!("this build has no gateway to serve `{name}` with")
}

//! `thv pull NAME`: unpacks a server's image for its runner.
//!
//! By itself it starts thv-pull@NAME.service, which runs as the runner's user and
//! calls this again with `--into`: no archive is ever read by root.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};

use super::{Usage, print, say};
use crate::{
    config::{self, OwnerRule, ServerName},
    image,
    sandbox::Installed,
};

pub(super) fn run(root: &Path, name: &ServerName, into: Option<PathBuf>) -> Result<ExitCode> {
    let config = config::load(root, name, OwnerRule::RootOrCaller)?;
    if config.image.is_none() {
        return Err(Usage(format!(
            "`{name}` has a `command` and no `image`: there is nothing to pull"
        ))
        .into());
    }
    if let Some(state) = into {
        let installed = image::pull(&config, &Installed::store(&state))?;
        print(&format!(
            "{} {}\n",
            installed.digest,
            installed.root.display()
        ))?;
        return Ok(ExitCode::SUCCESS);
    }
    let unit = format!("thv-pull@{name}.service");
    let runner = format!("thv-runner@{name}.service");
    let start = Command::new("systemctl")
        .args(["start", &unit])
        .status()
        .context("running `systemctl`; without systemd, say where to with `--into DIR`")?;
    if !start.success() {
        bail!("`{unit}` failed; `journalctl -u {unit} -n 20` says why");
    }
    say(&format!(
        "thv: unpacked; it counts from the next start of the runner: `systemctl try-restart {runner}`"
    ));
    Ok(ExitCode::SUCCESS)
}

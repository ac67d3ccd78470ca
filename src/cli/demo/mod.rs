//! `thv demo`: the whole of it on loopback.

pub mod server;

use std::{io::Write, process::ExitCode};

use anyhow::{Result, bail};

/// Plays the demo; with `once` it ends after it, else it serves until Ctrl-C.
pub fn run(_once: bool, _out: &mut (impl Write + Send)) -> Result<ExitCode> {
    bail!("this build has no demo")
}

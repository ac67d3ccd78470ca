//! The demo's MCP server.

use std::io::{self, BufRead, Write};

/// Answers until the input ends.
pub fn run(_input: impl BufRead, _output: impl Write) -> io::Result<()> {
    Err(io::Error::other("this build has no demo server"))
}

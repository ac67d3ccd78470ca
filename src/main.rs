//! A call and an exit code. Nothing here or before `cli::run`'s dispatch starts
//! a thread: the runner's way in needs a process that has none.

use std::process::ExitCode;

fn main() -> ExitCode {
    thv::cli::run(std::env::args_os())
}

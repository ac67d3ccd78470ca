//! The way from a copy of the runner to the server's program, in order.
//!
//! Runs in the process that [`sys::process::clone_process`] has made: PID 1 of
//! its namespaces. It sets up what the plan says, forks the server, and stays
//! as its init. Whatever fails is reported by layer, and nothing is left.

use std::{
    collections::HashMap,
    ffi::CString,
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    path::PathBuf,
};

use nix::unistd::{
    ForkResult, Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, setsid,
};

use super::{
    credentials::Credentials, filter::Filter, init, namespaces, plan::Plan, privileges, root,
};
use crate::{config::Layer, sys};

/// What a child is started with.
pub struct Start<'a> {
    pub plan: &'a Plan,
    pub filter: &'a Filter,
    /// Parts of the host that were put elsewhere before privileges were given up.
    pub staged: &'a HashMap<PathBuf, PathBuf>,
    /// The secrets that the plan names.
    pub credentials: &'a Credentials,
    /// The runner's user and group: inside the new namespaces nobody can tell any more.
    pub owner: (Uid, Gid),
    /// What become the server's standard input, output and error.
    pub streams: [OwnedFd; 3],
    /// Where failures are reported; closed without a word by a successful exec.
    pub report: OwnedFd,
    /// Where the init says how the server ended.
    pub status: OwnedFd,
}

/// Why a child did not start.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// A layer's name, or `exec`.
    pub layer: String,
    /// Cause and cure.
    pub reason: String,
}

impl Fault {
    pub(super) fn of(layer: Layer, what: &str, error: impl Into<io::Error>) -> Self {
        Self {
            layer: layer.name().to_owned(),
            reason: format!("{what}: {}", error.into()),
        }
    }
}

/// Becomes the child. Never returns.
pub fn run(start: Start<'_>) -> ! {
    let prepared = prepare(&start).and_then(|()| {
        init::block_signals()
            .map_err(|error| Fault::of(Layer::Namespaces, "blocking signals", error))?;
        sys::process::fork()
            .map_err(|error| Fault::of(Layer::Namespaces, "making the server's process", error))
    });
    let mut report = File::from(start.report);
    match prepared {
        Ok(ForkResult::Parent { child }) => {
            // The report is the server's alone now: its exec must be the last to close it.
            drop(report);
            init::run(child, start.status, start.filter, start.plan)
        }
        Ok(ForkResult::Child) => {
            drop(start.status);
            let fault = become_server(start.plan, start.filter, start.credentials, start.streams);
            fail(&mut report, &fault)
        }
        Err(fault) => fail(&mut report, &fault),
    }
}

fn prepare(start: &Start<'_>) -> Result<(), Fault> {
    namespaces::settle(start.plan, start.owner)?;
    root::build(start.plan, start.staged, start.credentials)?;
    privileges::limit(start.plan)
}

/// Only returns where something failed.
fn become_server(
    plan: &Plan,
    filter: &Filter,
    credentials: &Credentials,
    streams: [OwnedFd; 3],
) -> Fault {
    let exec = |what: &str, error: io::Error| Fault {
        layer: "exec".to_owned(),
        reason: format!("{what}: {error}"),
    };
    let [stdin, stdout, stderr] = &streams;
    let standard = setsid()
        .and_then(|_| dup2_stdin(stdin))
        .and_then(|()| dup2_stdout(stdout))
        .and_then(|()| dup2_stderr(stderr));
    if let Err(error) = standard {
        return exec("setting up its standard streams", error.into());
    }
    // Everything else, the report included, ends with the exec (probe-63, probe-79).
    if let Err(error) = sys::process::close_at_exec_from(3) {
        return exec("closing descriptors", error);
    }
    if let Err(error) = chdir(plan.home.as_path()) {
        return exec(
            &format!("changing to `{}`", plan.home.display()),
            error.into(),
        );
    }
    let text = |text: &str| CString::new(text).unwrap_or_default();
    let argv: Vec<CString> = plan.argv.iter().map(|part| text(part)).collect();
    let mut env: Vec<CString> = plan
        .env
        .iter()
        .map(|(name, value)| text(&format!("{name}={value}")))
        .collect();
    // Read here and not before: neither the runner nor the init ever has them in its memory.
    for (name, credential) in &plan.secret_env {
        match credentials.variable(name, credential) {
            Ok(variable) => env.push(variable),
            Err(error) => {
                return Fault {
                    layer: "credential".to_owned(),
                    reason: format!("`{credential}` for `{name}`: {error}"),
                };
            }
        }
    }
    let Some(program) = argv.first().cloned() else {
        return exec(
            "the command is empty",
            io::Error::from(io::ErrorKind::InvalidInput),
        );
    };
    if let Err(fault) =
        init::unblock_signals().map_err(|error| exec("unblocking signals", error.into()))
    {
        return fault;
    }
    if let Err(fault) = privileges::give_up(plan).and_then(|()| privileges::bind(plan, filter)) {
        return fault;
    }
    let Err(error) = execve(&program, &argv, &env);
    let program = program.to_string_lossy();
    Fault {
        layer: "exec".to_owned(),
        reason: format!(
            "`{program}`: {}; the program, its interpreter and its libraries must be in /usr or in `sandbox.read-only`",
            io::Error::from(error)
        ),
    }
}

fn fail(report: &mut File, fault: &Fault) -> ! {
    let _ = report.write_all(format!("{}\n{}", fault.layer, fault.reason).as_bytes());
    sys::process::leave(1)
}

/// Reads a report: `None` where the exec succeeded.
pub fn read_report(report: &mut impl Read) -> io::Result<Option<Fault>> {
    let mut text = String::new();
    report.take(MAX_REPORT).read_to_string(&mut text)?;
    Ok(text.split_once('\n').map(|(layer, reason)| Fault {
        layer: layer.to_owned(),
        reason: reason.to_owned(),
    }))
}

/// Bytes of a report that are read.
const MAX_REPORT: u64 = 2048;

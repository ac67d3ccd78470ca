//! The way from a copy of the runner to the server's program, in order.
//!
//! Runs in the process that [`sys::process::clone_process`] has made: PID 1 of
//! its namespaces. It sets up what the plan says, starts the server, and stays
//! as its init. Whatever fails is reported by layer, and nothing is left.

use std::{
    collections::HashMap,
    ffi::CString,
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        stat::{Mode, umask},
    },
    unistd::{Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, execve, setsid},
};

use super::{
    credentials::Credentials, doors, filter::Filter, init, landlock, namespaces, plan::Plan,
    privileges, root,
};
use crate::{
    config::{InsideDoor, Layer},
    sys::{self, beside::Beside},
};

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
    /// Where the start is reported; see [`read_report`].
    pub report: OwnedFd,
    /// Where the init says how the server ended.
    pub status: OwnedFd,
    /// Where the word comes from that a principal waits for the server; see [`GO`]. Without
    /// it nothing is waited for.
    pub go: Option<OwnedFd>,
    /// Where the sockets of the plan's ways out are sent, if there is anybody behind them.
    pub doors: Option<OwnedFd>,
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

    /// Of a layer that is required here: with the other way out, which who has gone it already need not be told.
    pub fn of_required(mut self, layer: Layer) -> Self {
        let otherwise = format!(", or add \"{}\" to sandbox.optional", layer.name());
        self.reason.push_str(&otherwise);
        self
    }
}

/// Becomes the child. Never returns.
pub fn run(start: Start<'_>) -> ! {
    let mut skipped = Vec::new();
    // It reads secrets, and only its own memory may ever hold them; where it does not, the copy
    // would cost more than most of the rest, and be thrown away.
    let is_lent = start.plan.credentials().is_empty();
    let prepared =
        prepare(&start, &mut skipped).and_then(|leaving| wait_for_word(&start, leaving, is_lent));
    let mut report = File::from(start.report);
    let leaving = match prepared {
        Ok(leaving) => leaving,
        Err(fault) => fail(&mut report, &fault),
    };
    let become_it = || {
        let fault = become_server(
            start.plan,
            start.credentials,
            &start.streams,
            (skipped, leaving.as_ref()),
            &mut report,
        );
        tell(&mut report, &fault)
    };
    let server = if is_lent {
        sys::process::lend(become_it)
    } else {
        sys::process::copy(become_it)
    };
    match server {
        Ok(server) => {
            // The server has seen it end.
            drop(leaving);
            // The report is the server's alone now: its exec must be the last to close it.
            drop(report);
            init::run(server, start.status)
        }
        Err(error) => fail(
            &mut report,
            &Fault::of(Layer::Namespaces, "making the server's process", error),
        ),
    }
}

/// Holds nothing but its own, and waits until somebody wants the server. Where somebody does
/// already, the old root may still be on its way out: the server's process waits for that,
/// when it has nothing else to do.
fn wait_for_word(
    start: &Start<'_>,
    leaving: Beside,
    is_lent: bool,
) -> Result<Option<Beside>, Fault> {
    let is_awaited = start.go.as_ref().is_none_or(|go| {
        let mut word = [PollFd::new(go.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut word, PollTimeout::ZERO), Ok(1))
    });
    let leaving = if is_lent && is_awaited {
        Some(leaving)
    } else {
        root::left(leaving)?;
        None
    };
    let Some(go) = &start.go else {
        return Ok(leaving);
    };
    // It may wait for long, and must not hold open what is the runner's alone: whoever
    // is at the other end would not hear of its end.
    let mut kept = start.credentials.descriptors();
    kept.extend(start.streams.iter().map(AsFd::as_fd));
    kept.extend([go, &start.report, &start.status].map(AsFd::as_fd));
    kept.extend(leaving.as_ref().map(Beside::descriptor));
    sys::process::close_all_but(&kept).map_err(|error| exec("closing descriptors", error))?;
    loop {
        match nix::unistd::read(go, &mut [0; GO.len()]) {
            Ok(1) => return Ok(leaving),
            Err(nix::errno::Errno::EINTR) => {}
            // The runner has no use for it any more, and takes no report.
            _ => sys::process::leave(1),
        }
    }
}

fn exec(what: &str, error: impl Into<io::Error>) -> Fault {
    Fault {
        layer: "exec".to_owned(),
        reason: format!("{what}: {}", error.into()),
    }
}

/// What it gives is what takes the old root away.
fn prepare(start: &Start<'_>, skipped: &mut Vec<Fault>) -> Result<Beside, Fault> {
    let room = root::room(start.plan);
    let network = namespaces::settle(start.plan, start.owner)?;
    let leaving = root::build(
        start.plan,
        start.staged,
        start.credentials,
        (network, room),
        skipped,
    )?;
    if let Some(doors) = &start.doors {
        doors::open(start.plan, doors)?;
    }
    privileges::limit(start.plan, skipped)?;
    init::block_signals()
        .map_err(|error| Fault::of(Layer::Namespaces, "blocking signals", error))?;
    // Before the capabilities go, not after: from here on the kernel lets nobody without
    // CAP_SYS_PTRACE over it look inside, and the server, which has as few, never could
    // in between (probe-3: `/proc/1/environ` would show the runner's). Dropping them leaves
    // the mark as it is; the server's exec sets it anew (prctl(2), ptrace(2)).
    prctl::set_dumpable(false)
        .map_err(|error| Fault::of(Layer::Privileges, "closing itself to looks", error))?;
    // Once, for init and server alike: to load a filter costs more than most of the rest.
    privileges::give_up(start.plan, skipped)?;
    privileges::bind(start.plan, start.filter, skipped)?;
    Ok(leaving)
}

/// Only returns where something failed.
fn become_server(
    plan: &Plan,
    credentials: &Credentials,
    [stdin, stdout, stderr]: &[OwnedFd; 3],
    (mut skipped, leaving): (Vec<Fault>, Option<&Beside>),
    report: &mut File,
) -> Fault {
    let standard = setsid()
        .and_then(|_| dup2_stdin(stdin))
        .and_then(|()| dup2_stdout(stdout))
        .and_then(|()| dup2_stderr(stderr));
    if let Err(error) = standard {
        return exec("setting up its standard streams", error);
    }
    let mut kept = credentials.descriptors();
    kept.push(report.as_fd());
    kept.extend(leaving.map(Beside::descriptor));
    if let Err(error) = sys::process::close_all_but(&kept) {
        return exec("closing descriptors", error);
    }
    // These, too, end with the exec (probe-63, probe-79).
    if let Err(error) = sys::process::close_at_exec_from(3) {
        return exec("closing descriptors", error);
    }
    if let Err(error) = init::unblock_signals() {
        return exec("unblocking signals", error);
    }
    if let Err(fault) = landlock::bind(plan, &mut skipped) {
        return fault;
    }
    if matches!(plan.listens, Some(InsideDoor::Socket(_))) {
        // The gateway is another user, and must be able to connect to what the server makes;
        // nobody but these two can see the place.
        umask(Mode::empty());
    }
    if let Err(error) = chdir(plan.cwd.as_path()) {
        return exec(&format!("changing to `{}`", plan.cwd.display()), error);
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
    if let Some(Err(fault)) = leaving.map(root::is_left) {
        return fault;
    }
    // All that is left is the exec. Without this word an end before it, from outside or
    // for want of memory, would look like one that has succeeded.
    let ready: String = skipped.iter().map(|fault| record(SKIPPED, fault)).collect();
    if let Err(error) = report.write_all(format!("{ready}{READY}").as_bytes()) {
        return exec("reporting", error);
    }
    let mut error = nix::errno::Errno::ENOENT;
    for candidate in candidates(plan) {
        let Err(refused) = execve(&text(&candidate), &argv, &env);
        // As execvp(3) does: what is there and may not be run is the better reason.
        if refused != nix::errno::Errno::ENOENT || error == nix::errno::Errno::ENOENT {
            error = refused;
        }
    }
    let program = program.to_string_lossy();
    Fault {
        layer: "exec".to_owned(),
        reason: format!(
            "`{program}`: {}; {}",
            io::Error::from(error),
            unexecuted(error)
        ),
    }
}

/// What to do about a program that could not be executed.
fn unexecuted(error: nix::errno::Errno) -> &'static str {
    match error {
        nix::errno::Errno::ENOEXEC => {
            "it is neither a program for this machine nor a script, whose first line is `#!/PATH/OF/ITS/INTERPRETER`"
        }
        nix::errno::Errno::EACCES => {
            "its mode, or that of its interpreter or of a directory above, has no x: run `chmod a+x` on it; or it lies where this host executes nothing (`findmnt -o OPTIONS -T` on it says `noexec`)"
        }
        _ => {
            "the program, its interpreter and its libraries must be in /usr or in `sandbox.read-only`"
        }
    }
}

/// Where the program may be: by its path, or in the directories of PATH.
fn candidates(plan: &Plan) -> Vec<String> {
    let program = plan.argv.first().cloned().unwrap_or_default();
    if program.contains('/') {
        return vec![program];
    }
    let path = plan.env.iter().find(|(name, _)| name == "PATH");
    path.map_or("/usr/bin:/bin", |(_, path)| path.as_str())
        .split(':')
        .filter(|directory| directory.starts_with('/'))
        .map(|directory| format!("{}/{program}", directory.trim_end_matches('/')))
        .collect()
}

fn fail(report: &mut File, fault: &Fault) -> ! {
    sys::process::leave(tell(report, fault))
}

/// Says why there is no server; the code to leave with.
fn tell(report: &mut File, fault: &Fault) -> i32 {
    let _ = report.write_all(record(FAILED, fault).as_bytes());
    1
}

/// One record: its kind, the layer, a line end, the reason, a null.
fn record(kind: char, fault: &Fault) -> String {
    let clean = |text: &str| text.replace('\0', "?");
    format!("{kind}{}\n{}\0", fault.layer, clean(&fault.reason))
}

/// What a start has reported.
#[derive(Debug, Eq, PartialEq)]
pub struct Report {
    /// Optional layers that could not be applied, and why; and [`PROC`](root::PROC), where that
    /// shows less than it could.
    pub skipped: Vec<Fault>,
    /// Why there is no server; `None` where the exec succeeded.
    pub fault: Option<Fault>,
    /// Whether it ended without a word of why: from outside, or for want of memory.
    pub is_cut_short: bool,
}

/// Reads what there is of a report behind what was read of it before; the report, where
/// that was its end, which the exec is, or the end of the process.
///
/// `None` where a pipe that does not block has no more to say yet: an exec can hang, at a
/// file server that is away, when all else has been reported.
pub fn read_report(report: impl Read, text: &mut Vec<u8>) -> io::Result<Option<Report>> {
    let room = MAX_REPORT.saturating_sub(text.len());
    match report.take(room as u64).read_to_end(text) {
        Ok(_) => Ok(Some(understood(&String::from_utf8_lossy(text)))),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Records of what was skipped, then the word that everything is done and the exec is
/// next, then nothing, because the exec closes the pipe; or the record of a failure.
fn understood(text: &str) -> Report {
    let mut said = Report {
        skipped: Vec::new(),
        fault: None,
        is_cut_short: false,
    };
    let mut ready = false;
    for part in text.split_terminator('\0') {
        // READY is a record of its own that ends in a null, too.
        let mut rest = part.chars();
        match rest.next() {
            Some(kind @ (SKIPPED | FAILED)) => {
                let (layer, reason) = rest.as_str().split_once('\n').unwrap_or_default();
                let fault = Fault {
                    layer: layer.to_owned(),
                    reason: reason.to_owned(),
                };
                if kind == FAILED {
                    said.fault = Some(fault);
                } else {
                    said.skipped.push(fault);
                }
            }
            Some('R') => ready = true,
            _ => {}
        }
    }
    if !ready && said.fault.is_none() {
        said.is_cut_short = true;
        said.fault = Some(Fault {
            layer: "exec".to_owned(),
            reason: "its process ended while the sandbox was being made; was it killed, or is limits.memory too small?".to_owned(),
        });
    }
    said
}

/// What is written to a prepared child that is to become its server.
pub const GO: &[u8; 1] = b"g";

const SKIPPED: char = 's';
const FAILED: char = 'f';
const READY: &str = "R\0";
/// Bytes of a report that are read.
const MAX_REPORT: usize = 8192;

#[cfg(test)]
mod tests {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    fn read(text: &str) -> Report {
        let read = read_report(text.as_bytes(), &mut Vec::new());
        read.unwrap()
            .expect("the end of a text is that of the report")
    }

    fn fault(layer: &str) -> Fault {
        Fault {
            layer: layer.to_owned(),
            reason: "why\nand how".to_owned(),
        }
    }

    #[test]
    fn a_start_an_exec_that_failed_and_an_end_before_it_are_told_apart() {
        assert_eq!(read(READY).fault, None);
        let failed = format!("{READY}{}", record(FAILED, &fault("exec")));
        assert_eq!(read(&failed).fault, Some(fault("exec")));
        assert_eq!(
            read(&record(FAILED, &fault("root"))).fault,
            Some(fault("root"))
        );
        assert!(!read(&failed).is_cut_short);
        let ended = read("");
        assert!(ended.is_cut_short);
        let ended = ended.fault.unwrap();
        assert!(ended.reason.contains("ended while"), "{ended:?}");
    }

    /// probe-75: what hangs in its exec has said that it is ready, and holds nobody up.
    #[test]
    fn a_report_is_over_with_its_pipe_and_not_before() {
        let (reader, mut writer) = io::pipe().unwrap();
        let flags = FcntlArg::F_SETFL(OFlag::O_NONBLOCK);
        fcntl(&reader, flags).unwrap();
        let mut text = Vec::new();
        for record in [&record(SKIPPED, &fault("rlimits")), READY] {
            assert_eq!(read_report(&reader, &mut text).unwrap(), None);
            writer.write_all(record.as_bytes()).unwrap();
            assert_eq!(read_report(&reader, &mut text).unwrap(), None);
        }
        drop(writer);
        let report = read_report(&reader, &mut text).unwrap().unwrap();
        assert_eq!(
            (report.skipped, report.fault),
            (vec![fault("rlimits")], None)
        );
    }

    #[test]
    fn what_was_skipped_is_told_beside_the_start() {
        let text = format!(
            "{}{}{READY}",
            record(SKIPPED, &fault("rlimits")),
            record(SKIPPED, &fault("seccomp"))
        );
        let report = read(&text);
        assert_eq!(report.skipped, [fault("rlimits"), fault("seccomp")]);
        assert_eq!(report.fault, None);
        // Skipping is no start.
        assert!(read(&record(SKIPPED, &fault("rlimits"))).fault.is_some());
    }
}

//! One child, from its clone to its reaping.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    rc::Rc,
    time::Instant,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        socket::{AddressFamily, SockFlag, SockType, socketpair},
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, getegid, geteuid, pipe2},
};

use tracing::{info, warn};

use super::{Setup, refused::no_namespaces};
use crate::{
    config::{Config, Engine, Layer, Network, ServerName},
    frames::{Caller, Signal, Status},
    sandbox::{
        self, Fault, Start,
        cgroup::{Delegated, Group},
    },
    sys::process::{self, Cloned},
};

/// A child that is starting or runs. Killed and reaped when dropped.
pub(super) struct Child {
    pub(super) number: u64,
    pid: Pid,
    pidfd: OwnedFd,
    /// Open until the exec has succeeded, or failed, and what was read of it so far.
    report: Option<File>,
    reported: Vec<u8>,
    status: File,
    /// The gateway's ends, until they are handed over.
    streams: Option<[OwnedFd; 3]>,
    /// Where it waits for the word that its principal is there.
    go: File,
    /// Where its stage sends its ways out, and how many there are.
    doors: Option<OwnedFd>,
    plan: Rc<sandbox::Plan>,
    group: Option<Group>,
    pub(super) since: Instant,
    /// Whether it was made before it was asked for, and nobody has wanted its end since.
    pub(super) is_replaceable: bool,
    reaped: bool,
}

/// How a start went.
pub(super) enum Told {
    /// Not known yet.
    Nothing,
    /// With the sockets of its network.
    Started(sandbox::Doors),
    Failed(Fault),
    /// It was made ahead, and ended before it could become its server: another is to be made.
    Replace(Rc<sandbox::Plan>),
}

impl Child {
    /// Whether children are the same for every principal.
    pub(super) fn is_for_anybody(config: &Config) -> bool {
        !config.sandbox.state && !config.names_caller_to_child()
    }

    /// Whether a plan of one is that of all to come, for as long as the configuration holds. An
    /// image may be another with each start.
    pub(super) fn is_planned_once(config: &Config) -> bool {
        Self::is_for_anybody(config) && config.image.is_none()
    }

    /// What a child of `principal` (64 hex digits) may see and do, and is told of its caller.
    pub(super) fn plan(
        config: &Config,
        setup: &Setup,
        (principal, caller): (&str, Option<&Caller>),
    ) -> Result<sandbox::Plan, Fault> {
        let state = if config.sandbox.state {
            Some(state_directory(setup, principal)?)
        } else {
            None
        };
        let image = match (&config.image, &setup.images) {
            (Some(name), Some(store)) => Some(sandbox::Installed::open(store, name)?),
            (Some(_), None) => {
                return Err(Fault {
                    layer: "image".to_owned(),
                    reason: "images stand in a state directory, which only the unit has (StateDirectory=)".to_owned(),
                });
            }
            (None, _) => None,
        };
        let (state, image) = (state.as_deref(), image.as_ref());
        let mut plan = sandbox::plan(config, &setup.host, state, image);
        match (config.names_caller_to_child(), caller) {
            (false, None) => {}
            (true, Some(caller)) => plan.name_caller(caller.values()),
            (true, None) | (false, Some(_)) => {
                return Err(Fault {
                    layer: "config".to_owned(),
                    reason: "gateway and runner differ about `pass-identity`".to_owned(),
                });
            }
        }
        match config.engine {
            Engine::Native => Ok(plan),
            Engine::Podman if !Path::new(sandbox::PODMAN).exists() => Err(Fault {
                layer: "podman".to_owned(),
                reason: format!(
                    "`{}` is not there; install podman and crun, or leave `engine` away",
                    sandbox::PODMAN
                ),
            }),
            Engine::Podman => sandbox::within_podman(plan, &setup.host),
        }
    }

    /// Clones a child and has its sandbox made; [`Self::begin`] lets its server start.
    pub(super) fn prepare(
        plan: Rc<sandbox::Plan>,
        setup: &Setup,
        filter: &sandbox::Filter,
        cgroups: &Result<Delegated, Fault>,
    ) -> Result<Self, Fault> {
        let credentials = setup.vault.of(&plan)?;
        let group = match cgroups {
            Ok(cgroups) => cgroups.group(plan.cgroup).map(Some),
            Err(fault) => Err(fault.clone()),
        };
        let group = match group {
            Err(fault) if plan.optional.contains(&Layer::Cgroup) => {
                without(&fault);
                None
            }
            other => other.map_err(|fault| fault.of_required(Layer::Cgroup))?,
        };
        let fault = |what: &str, error: io::Error| Fault {
            layer: "runner".to_owned(),
            reason: format!("{what}: {error}"),
        };
        let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(|error| fault("making a pipe", error.into()));
        let ((stdin, to_stdin), (from_stdout, stdout), (from_stderr, stderr)) =
            (pipe()?, pipe()?, pipe()?);
        let ((report, report_in), (status, status_in), (go, go_in)) = (pipe()?, pipe()?, pipe()?);
        // Whoever hangs while it reports must not have its siblings wait.
        fcntl(&report, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
            .map_err(|error| fault("making a pipe", error.into()))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (doors, doors_in) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
                .map_err(|error| fault("making a socket for its ways out", error.into()))?;
        if plan.network == Network::Host {
            if setup.is_apart {
                return Err(no_host_network(&setup.server));
            }
            warn!("a child starts in THIS HOST'S network (sandbox.network = \"host\")");
        }
        let owner = (geteuid(), getegid());
        let cgroup = group.as_ref().map(|group| group.directory().as_fd());
        match process::clone_process(sandbox::FLAGS, cgroup)
            .map_err(|error| no_namespaces(&error))?
        {
            Cloned::Child => {
                drop((to_stdin, from_stdout, from_stderr));
                drop((report, status, go_in, doors));
                sandbox::run(Start {
                    plan: &plan,
                    filter,
                    staged: &setup.staged,
                    credentials: &credentials,
                    owner,
                    streams: [stdin, stdout, stderr],
                    report: report_in,
                    status: status_in,
                    go: Some(go),
                    doors: Some(doors_in),
                })
            }
            Cloned::Parent { pid, pidfd } => Ok(Self {
                number: 0,
                pid,
                pidfd,
                report: Some(File::from(report)),
                reported: Vec::new(),
                status: File::from(status),
                streams: Some([to_stdin, from_stdout, from_stderr]),
                go: File::from(go_in),
                doors: Some(doors),
                plan,
                group,
                since: Instant::now(),
                is_replaceable: false,
                reaped: false,
            }),
        }
    }

    /// Lets its server start, as the gateway's number `number`; what becomes of it is read
    /// from its report.
    pub(super) fn begin(mut self, number: u64) -> Self {
        self.number = number;
        self.since = Instant::now();
        // One that is gone already is told of by its report.
        let _ = self.go.write_all(sandbox::GO);
        self
    }

    /// Whether it can still be begun: it has reported nothing, and lives.
    pub(super) fn is_waiting(&self) -> bool {
        let Some(report) = &self.report else {
            return false;
        };
        let mut watched = [
            PollFd::new(report.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN),
        ];
        matches!(poll(&mut watched, PollTimeout::ZERO), Ok(0))
    }

    /// The plan that it was made by.
    pub(super) fn made_by(&self) -> &sandbox::Plan {
        &self.plan
    }

    /// What to wait for while it starts: its report.
    pub(super) fn report(&self) -> Option<BorrowedFd<'_>> {
        self.report.as_ref().map(AsFd::as_fd)
    }

    /// What to wait for once it runs: its end.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The process id of its init.
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    pub(super) fn is_starting(&self) -> bool {
        self.report.is_some()
    }

    /// Reads what there is of the report.
    pub(super) fn hear(&mut self) -> Told {
        let Some(report) = &self.report else {
            return Told::Nothing;
        };
        let read = sandbox::read_report(report, &mut self.reported);
        let Some(whole) = read.transpose() else {
            return Told::Nothing;
        };
        (self.report, self.reported) = (None, Vec::new());
        match whole {
            Ok(report) => {
                if report.is_cut_short && self.is_replaceable {
                    return Told::Replace(self.plan.clone());
                }
                for fault in report.skipped {
                    without(&fault);
                }
                match report.fault {
                    Some(fault) => Told::Failed(fault),
                    None => match self.take_doors() {
                        Ok(doors) => Told::Started(doors),
                        Err(fault) => Told::Failed(fault),
                    },
                }
            }
            Err(error) => Told::Failed(Fault {
                layer: "runner".to_owned(),
                reason: format!("reading its report: {error}"),
            }),
        }
    }

    fn take_doors(&mut self) -> Result<sandbox::Doors, Fault> {
        match self.doors.take() {
            Some(socket) => sandbox::received(&self.plan, &socket),
            None => Ok(sandbox::Doors::default()),
        }
    }

    /// The gateway's ends of its streams, once.
    pub(super) fn take_streams(&mut self) -> Option<[OwnedFd; 3]> {
        self.streams.take()
    }

    pub(super) fn signal(&mut self, signal: Signal) {
        self.is_replaceable = false;
        // The init passes SIGTERM on to the server, once there is one: until its exec there is
        // nobody who could take it, and that can hang. SIGKILL ends all of it.
        let number = match signal {
            Signal::Terminate if !self.is_starting() => libc::SIGTERM,
            Signal::Terminate | Signal::Kill => libc::SIGKILL,
        };
        // It may have ended already: then it is about to be reaped.
        let _ = process::signal(self.pidfd.as_fd(), number);
    }

    /// Reaps the init, which has ended, and says how the server did.
    pub(super) fn reap(mut self) -> (Status, bool) {
        let waited = self.wait();
        let said = sandbox::read_status(&mut self.status);
        let out_of_memory = self.group.as_ref().is_some_and(Group::ran_out_of_memory);
        (said.unwrap_or(waited), out_of_memory)
    }

    fn wait(&mut self) -> Status {
        self.reaped = true;
        loop {
            match waitpid(self.pid, None) {
                Ok(WaitStatus::Exited(_, code)) => return Status::Code(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Status::Signal(signal as i32),
                Err(nix::errno::Errno::EINTR) | Ok(_) => {}
                Err(_) => return Status::Code(-1),
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            self.signal(Signal::Kill);
            if let Some(group) = &self.group {
                group.kill();
            }
            // What hangs in the kernel (a file server that is away) outlives even
            // that, and this thread has others to look after.
            let mut end = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            if matches!(poll(&mut end, PollTimeout::from(TIME_TO_DIE)), Ok(1)) {
                self.wait();
            } else {
                warn!(
                    pid = self.pid.as_raw(),
                    "a child does not end, leaving it behind"
                );
            }
        }
    }
}

/// Stands for a principal where there is no state of anybody's.
pub(super) const NOBODY: &str = "";
/// Milliseconds from the kill to the end of a child that nothing holds.
const TIME_TO_DIE: u16 = 2_000;

/// The principal's own directory; made when it is first needed.
fn state_directory(setup: &Setup, principal: &str) -> Result<PathBuf, Fault> {
    let fault = |reason: String| Fault {
        layer: "state".to_owned(),
        reason,
    };
    let is_key = principal.len() == 64
        && principal
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if !is_key {
        return Err(fault("the principal's name is not a key".to_owned()));
    }
    let base = setup.state.as_ref().ok_or_else(|| {
        fault(
            "sandbox.state needs a state directory, which only the unit has (StateDirectory=)"
                .to_owned(),
        )
    })?;
    let path = base.join(principal);
    match fs::DirBuilder::new().mode(0o700).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(fault(format!("`{}`: {error}", path.display())))
        }
        _ => Ok(path),
    }
}

/// An optional layer that is missing is never passed over in silence.
pub(super) fn without(fault: &Fault) {
    if fault.layer == sandbox::PROC {
        // No layer less, and where it is so, it is so each time.
        return info!(
            reason = fault.reason,
            "a child's /proc shows its processes alone"
        );
    }
    warn!(
        layer = fault.layer,
        reason = fault.reason,
        "a child starts without an optional layer"
    );
}

/// What would be called the host's network is the empty one of the runner's unit.
fn no_host_network(server: &ServerName) -> Fault {
    let service = format!("thv-runner@{server}.service");
    Fault {
        layer: "network".to_owned(),
        reason: format!(
            "sandbox.network = \"host\", and {service} has a network of its own, with nothing in it: \
             run `systemctl edit {service}`, add `[Service]` and `PrivateNetwork=no`, \
             and `systemctl restart {service}`"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, os::unix::fs::PermissionsExt as _};

    use super::*;
    use crate::{config::OwnerRule, runner::vault::Vault, systemd::Notifier};

    /// Everybody's directory is one, and no user's; each is made when it is first needed, and its owner's alone.
    #[test]
    fn each_principal_has_one_directory_and_everybody_together_another() {
        let base = tempfile::tempdir().unwrap();
        let server = ServerName::parse("x").unwrap();
        let setup = Setup {
            root: PathBuf::from("/"),
            vault: Vault::from_environment(&server),
            server,
            owner: OwnerRule::RootOrCaller,
            key: String::new(),
            state: Some(base.path().to_owned()),
            images: None,
            staged: HashMap::new(),
            is_apart: false,
            host: sandbox::Host::default(),
            notifier: Notifier::none(),
        };
        let (everybody, user) = ("0".repeat(64), "a".repeat(64));
        let made = state_directory(&setup, &everybody).unwrap();
        assert_eq!(state_directory(&setup, &everybody).unwrap(), made);
        assert_ne!(state_directory(&setup, &user).unwrap(), made);
        let mode = fs::metadata(&made).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        for wrong in ["", "..", &"A".repeat(64), &format!("../{}", "a".repeat(61))] {
            assert!(state_directory(&setup, wrong).is_err(), "{wrong}");
        }
    }
}

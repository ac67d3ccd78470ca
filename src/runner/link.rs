//! One connection: a stranger until it has said hello, then a gateway.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
    time::{Duration, Instant},
};

use aws_lc_rs::constant_time;
use tracing::{debug, warn};

use super::{
    Setup,
    child::{Child, NOBODY, Told},
    spare::Spare,
};
use crate::{
    config::{self, Config},
    frames::{self, Reply, Request},
    sandbox::{Fault, Filter, Plan, cgroup::Delegated},
};

/// A connection and the children that were started over it.
pub(super) struct Link {
    socket: OwnedFd,
    /// What its gateway was told it may have started; `None` before hello.
    config: Option<(Config, Filter)>,
    /// The plan of every child, where it is the same for all.
    plan: Option<Rc<Plan>>,
    pub(super) children: BTreeMap<u64, Child>,
    /// The next child, as far as it can be made before anybody asks for it.
    spare: Option<Spare>,
    /// Children that were asked for so far.
    starts: usize,
    /// Whether a spare one was made, or could not be, since the last of them.
    has_tried: bool,
    /// Until when a stranger may say hello.
    hello_by: Option<Instant>,
    over: bool,
}

/// The connection is over, and its children with it.
#[derive(Debug)]
struct Over;

impl Link {
    /// One that was accepted: anybody's, who may have nothing to say.
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self {
            hello_by: Some(Instant::now() + HELLO_DEADLINE),
            ..Self::of_parent(socket)
        }
    }

    /// The gateway's that has started this runner for itself, and says hello when it needs it.
    pub(super) fn of_parent(socket: OwnedFd) -> Self {
        Self {
            socket,
            config: None,
            plan: None,
            children: BTreeMap::new(),
            spare: None,
            starts: 0,
            has_tried: false,
            hello_by: None,
            over: false,
        }
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn is_stranger(&self) -> bool {
        self.config.is_none()
    }

    /// Ends it, to make room.
    pub(super) fn dismiss(&mut self) {
        self.over = true;
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// Ends the connection.
    pub(super) fn close(&mut self) {
        self.over = true;
    }

    /// Whether time alone can change something here.
    pub(super) fn has_deadline(&self) -> bool {
        (self.is_stranger() && self.hello_by.is_some())
            || self.children.values().any(Child::is_starting)
    }

    /// Whether there is time to make a spare child, and use for it: where several have
    /// come, another will. One that is alone needs none.
    pub(super) fn wants_spare(&self) -> bool {
        let Some((config, _)) = &self.config else {
            return false;
        };
        !self.has_tried
            && self.starts >= SEVERAL
            && (1..config.limits.sessions).contains(&self.children.len())
            && !self.children.values().any(Child::is_starting)
            && Spare::is_possible(config)
    }

    /// Makes it.
    pub(super) fn make_spare(&mut self, setup: &Setup, cgroups: &Result<Delegated, Fault>) {
        if let Some((config, filter)) = &self.config {
            self.has_tried = true;
            self.spare = Spare::make(config, setup, filter, cgroups);
        }
    }

    /// Takes a child off the list; with the last one the spare one goes, too: a runner
    /// whose sessions have ended has no process but itself.
    fn remove(&mut self, number: u64) -> Option<Child> {
        let child = self.children.remove(&number);
        if self.children.is_empty() {
            self.spare = None;
        }
        child
    }

    /// Reads the frames that are there.
    pub(super) fn read(&mut self, setup: &Setup, cgroups: &Result<Delegated, Fault>) {
        self.over |= self.read_all(setup, cgroups).is_err();
    }

    /// Reads a child's report and tells the gateway.
    pub(super) fn hear(&mut self, number: u64, setup: &Setup, cgroups: &Result<Delegated, Fault>) {
        self.over |= self.tell_start(number, setup, cgroups).is_err();
    }

    /// Reaps a child that has ended and tells the gateway.
    pub(super) fn reap(&mut self, number: u64) {
        self.over |= self.tell_end(number).is_err();
    }

    /// Ends what takes too long.
    pub(super) fn mind_deadlines(&mut self, now: Instant) {
        if self.is_stranger() && self.hello_by.is_some_and(|end| now >= end) {
            debug!("no hello in time, closing the connection");
            self.over = true;
        }
        let patience = match &self.config {
            Some((config, _)) => config.limits.start_timeout,
            None => return,
        };
        let late =
            |child: &&Child| child.is_starting() && now.duration_since(child.since) >= patience;
        let late: Vec<u64> = self
            .children
            .values()
            .filter(late)
            .map(|child| child.number)
            .collect();
        for number in late {
            self.remove(number);
            let fault = Fault {
                layer: "exec".to_owned(),
                reason: "it did not start within limits.start-timeout".to_owned(),
            };
            self.over |= self.failed(number, fault).is_err();
        }
    }

    fn read_all(&mut self, setup: &Setup, cgroups: &Result<Delegated, Fault>) -> Result<(), Over> {
        loop {
            match frames::receive_bare::<Request>(self.socket.as_fd()) {
                Ok(Some(request)) => self.handle(request, setup, cgroups)?,
                Ok(None) => return Err(Over),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    warn!(%error, "a frame cannot be read, closing the connection");
                    return Err(Over);
                }
            }
        }
    }

    fn handle(
        &mut self,
        request: Request,
        setup: &Setup,
        cgroups: &Result<Delegated, Fault>,
    ) -> Result<(), Over> {
        match (request, &self.config) {
            (Request::Hello { version, key, .. }, None) => self.hello(version, &key, setup),
            (
                Request::Start {
                    child,
                    principal,
                    caller,
                },
                Some((config, filter)),
            ) => {
                let started = if self.children.contains_key(&child)
                    || self.children.len() >= config.limits.sessions
                {
                    let reason =
                        "the gateway asks for more children than limits.sessions".to_owned();
                    Err(Fault {
                        layer: "limit".to_owned(),
                        reason,
                    })
                } else {
                    self.starts += 1;
                    self.has_tried = false;
                    let spare = self.spare.take();
                    let whose = (principal.as_str(), caller.as_ref());
                    let plan = match &self.plan {
                        Some(plan) if caller.is_none() => Ok(plan.clone()),
                        _ => Child::plan(config, setup, whose).map(Rc::new),
                    };
                    plan.and_then(|plan| {
                        match spare.and_then(|spare| spare.stand_in(&plan, setup)) {
                            Some(ready) => Ok(ready.begin(child)),
                            None => Child::prepare(plan, setup, filter, cgroups)
                                .map(|made| made.begin(child)),
                        }
                    })
                };
                match started {
                    Ok(started) => {
                        self.children.insert(child, started);
                        Ok(())
                    }
                    Err(fault) => self.failed(child, fault),
                }
            }
            (Request::Signal { child, signal }, Some(_)) => {
                if let Some(child) = self.children.get_mut(&child) {
                    child.signal(signal);
                }
                Ok(())
            }
            _ => {
                warn!("a frame out of turn, closing the connection");
                Err(Over)
            }
        }
    }

    fn hello(&mut self, version: u16, key: &str, setup: &Setup) -> Result<(), Over> {
        let refuse = |link: &mut Self, reason: String| {
            warn!(reason, "a connection was refused");
            let _ = link.send(&Reply::Refused { reason }, &[]);
            Err(Over)
        };
        // Compared in constant time, and before anything else is looked at.
        if setup.key.is_empty()
            || constant_time::verify_slices_are_equal(key.as_bytes(), setup.key.as_bytes()).is_err()
        {
            return refuse(self, "wrong key".to_owned());
        }
        if version != frames::VERSION {
            return refuse(
                self,
                format!(
                    "it speaks version {version}, not {}; restart thv.target",
                    frames::VERSION
                ),
            );
        }
        // Read anew for each gateway, so that a restarted one never meets an old plan.
        match config::load(&setup.root, &setup.server, setup.owner) {
            Ok(config) => {
                let digest = config.digest.clone();
                let sandbox = &config.sandbox;
                let filter = Filter::compile((sandbox.seccomp, &sandbox.seccomp_allow));
                match filter {
                    Ok(filter) => {
                        // What cannot be planned is told to whoever wants it.
                        self.plan = Child::is_planned_once(&config)
                            .then(|| Child::plan(&config, setup, (NOBODY, None)).ok())
                            .flatten()
                            .map(Rc::new);
                        self.config = Some((config, filter));
                    }
                    Err(error) => return refuse(self, error.to_string()),
                }
                self.send(
                    &Reply::Hello {
                        version: frames::VERSION,
                        digest,
                    },
                    &[],
                )
            }
            Err(problems) => refuse(self, format!("configuration: {}", problems.first())),
        }
    }

    fn tell_start(
        &mut self,
        number: u64,
        setup: &Setup,
        cgroups: &Result<Delegated, Fault>,
    ) -> Result<(), Over> {
        let Some(child) = self.children.get_mut(&number) else {
            return Ok(());
        };
        match child.hear() {
            Told::Nothing => Ok(()),
            Told::Replace(plan) => {
                debug!(
                    number,
                    "a child that was made ahead has ended, making another"
                );
                let since = child.since;
                self.children.remove(&number);
                let Some((_, filter)) = &self.config else {
                    return Ok(());
                };
                match Child::prepare(plan, setup, filter, cgroups) {
                    Ok(made) => {
                        let mut made = made.begin(number);
                        // Whoever waits has done so since then.
                        made.since = since;
                        self.children.insert(number, made);
                        Ok(())
                    }
                    Err(fault) => self.failed(number, fault),
                }
            }
            Told::Failed(fault) => {
                // Reaped here: nothing of it is left when the gateway hears of it.
                self.remove(number);
                self.failed(number, fault)
            }
            Told::Started(doors) => {
                let (pid, streams) = (child.pid(), child.take_streams());
                let Some([stdin, stdout, stderr]) = streams else {
                    return Ok(());
                };
                let pidfd = child.pidfd().try_clone_to_owned().map_err(|_| Over)?;
                let reply = Reply::Started {
                    child: number,
                    pid,
                    listeners: doors.out.len(),
                    dialers: doors.into.len(),
                };
                let own = [&stdin, &stdout, &stderr, &pidfd];
                let descriptors: Vec<_> = own
                    .into_iter()
                    .chain(&doors.out)
                    .chain(&doors.into)
                    .map(AsFd::as_fd)
                    .collect();
                self.send(&reply, &descriptors)
            }
        }
    }

    fn tell_end(&mut self, number: u64) -> Result<(), Over> {
        let Some(child) = self.remove(number) else {
            return Ok(());
        };
        let (status, out_of_memory) = child.reap();
        debug!(number, ?status, out_of_memory, "child ended");
        self.send(
            &Reply::Exited {
                child: number,
                status,
                out_of_memory,
            },
            &[],
        )
    }

    fn failed(&mut self, child: u64, fault: Fault) -> Result<(), Over> {
        warn!(
            layer = fault.layer,
            reason = fault.reason,
            "a child did not start"
        );
        self.send(
            &Reply::Failed {
                child,
                layer: fault.layer,
                reason: fault.reason,
            },
            &[],
        )
    }

    /// A gateway that does not read its answers is no gateway any more.
    fn send(&mut self, reply: &Reply, descriptors: &[BorrowedFd<'_>]) -> Result<(), Over> {
        frames::send(self.socket.as_fd(), reply, descriptors).map_err(|error| {
            warn!(%error, "the gateway does not take an answer, closing the connection");
            Over
        })
    }
}

/// Starts over one connection from which on the next is prepared.
const SEVERAL: usize = 2;
/// How long a connection may take to say hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(2);

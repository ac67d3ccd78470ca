//! A command in a server's sandbox, on the caller's own terminal: for a look around.
//!
//! The plan is the server's, but for what only its unit has: secrets, a state
//! directory and a cgroup. Called by `cli` alone, while there is one thread.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use anyhow::{Context as _, Result};
use nix::{
    fcntl::OFlag,
    sys::wait::{WaitStatus, waitpid},
    unistd::{dup, getegid, geteuid, pipe2},
};

use super::{Person, staging};
use crate::{
    config::{self, Engine, EnvValue, Layer, OwnerRule, ServerName},
    frames::Status,
    sandbox::{self, Credentials, Fault, Installed, Start},
    sys::process::{self, Cloned},
};

/// What a visitor does not find as the server does.
pub fn missing_from_visits(config: &config::Config) -> Vec<String> {
    let mut missing = vec!["its memory is not limited".to_owned()];
    if config.engine == Engine::Podman {
        missing.push("the image is run by thv itself, not by podman".to_owned());
    }
    if config.sandbox.state {
        missing.push("its state directory is not there".to_owned());
    }
    if !config.sandbox.network.ways().is_empty() {
        missing.push("the hosts of `egress` and `forward` do not answer".to_owned());
    }
    for (name, value) in &config.env {
        if !matches!(value, EnvValue::Text(_)) {
            missing.push(format!("the secret in `{name}` is not there"));
        }
    }
    missing
}

/// Runs `command`, whose program is an absolute path, in the sandbox of `server`; says how it ended.
pub fn visit(root: &Path, server: &ServerName, command: Vec<String>) -> Result<Status> {
    let mut config = config::load(root, server, OwnerRule::RootOrCaller)?;
    config.sandbox.optional.push(Layer::Cgroup);
    config
        .env
        .retain(|_, value| matches!(value, EnvValue::Text(_)));
    let state = root.join("var/lib/thv-runner").join(server.as_str());
    let images = Installed::store(&state);
    let image = match &config.image {
        Some(name) => Some(Installed::open(&images, name).map_err(failed)?),
        None => None,
    };
    let mut plan = sandbox::plan(&config, &sandbox::Host::look(), None, image.as_ref());
    plan.argv = command;
    let filter = sandbox::Filter::compile((
        config.sandbox.seccomp,
        config.sandbox.seccomp_allow.as_slice(),
    ))?;
    let mut staged = HashMap::new();
    if let Some(person) = Person::to_become() {
        staged = staging::stage(&config, &images)
            .context("making the server reachable for an ordinary user")?;
        person.become_for_good()?;
    }
    let streams: [OwnedFd; 3] = [
        dup(io::stdin().as_fd())?,
        dup(io::stdout().as_fd())?,
        dup(io::stderr().as_fd())?,
    ];
    let (report, report_in) = pipe2(OFlag::O_CLOEXEC)?;
    let (status, status_in) = pipe2(OFlag::O_CLOEXEC)?;
    let owner = (geteuid(), getegid());
    let cloned = process::clone_process(sandbox::FLAGS, None)
        .map_err(|error| super::refused::no_namespaces(&error));
    let pid = match cloned {
        Ok(Cloned::Child) => {
            drop((report, status));
            sandbox::run(Start {
                plan: &plan,
                filter: &filter,
                staged: &staged,
                credentials: &Credentials::default(),
                owner,
                streams,
                report: report_in,
                status: status_in,
                go: None,
                doors: None,
            })
        }
        Ok(Cloned::Parent { pid, .. }) => pid,
        Err(fault) => return Err(failed(fault)),
    };
    drop((report_in, status_in, streams));
    let told = sandbox::read_report(File::from(report), &mut Vec::new())
        .context("reading its report")?
        .context("its report has no end")?;
    let said = sandbox::read_status(&mut File::from(status));
    let waited = loop {
        match waitpid(pid, None) {
            Ok(WaitStatus::Exited(_, code)) => break Status::Code(code),
            Ok(WaitStatus::Signaled(_, signal, _)) => break Status::Signal(signal as i32),
            Err(nix::errno::Errno::EINTR) | Ok(_) => {}
            Err(error) => return Err(error).context("waiting for it"),
        }
    };
    for fault in &told.skipped {
        super::child::without(fault);
    }
    if let Some(fault) = told.fault {
        return Err(failed(fault));
    }
    Ok(said.unwrap_or(waited))
}

fn failed(fault: Fault) -> anyhow::Error {
    io::Error::other(format!("{}: {}", fault.layer, fault.reason)).into()
}

//! A plan in words: what `thv check --explain` prints.

use std::{fmt, path::Path};

use super::plan::{Access, Entry, Plan};
use crate::config::{Door, Host, InsideDoor, Layer, Network, SOCKETS};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Runs      {}", self.argv.join(" "))?;
        writeln!(
            f,
            "          in `{}`, as an unprivileged user, alone on a host called `{}`",
            self.cwd.display(),
            self.hostname
        )?;
        writeln!(f, "May read")?;
        if let Some(base) = &self.base {
            line(
                f,
                Path::new("/"),
                format!("the image in `{}`", base.display()),
            )?;
        }
        for entry in &self.root {
            if let Entry::Bind {
                from,
                at,
                access: Access::ReadOnly,
            } = entry
            {
                line(
                    f,
                    at,
                    if from == at {
                        "of this host".to_owned()
                    } else {
                        format!("`{}` of this host", from.display())
                    },
                )?;
            }
        }
        for entry in &self.root {
            if let Entry::Processes { at } = entry {
                line(
                    f,
                    at,
                    "its own processes; the rest, as /proc/meminfo, unless the kernel holds it to the \
                     ProcSubset=pid of its runner, whose journal says so"
                        .to_owned(),
                )?;
            }
        }
        let made = self.root.iter().filter_map(|entry| match entry {
            Entry::File { at, .. } => Some(at.display().to_string()),
            _ => None,
        });
        writeln!(
            f,
            "          {}: made for it",
            made.collect::<Vec<_>>().join(" ")
        )?;
        writeln!(f, "May write")?;
        for entry in &self.root {
            match entry {
                Entry::Bind {
                    from,
                    at,
                    access: Access::Writable,
                } => {
                    line(
                        f,
                        at,
                        format!(
                            "`{}` of this host: kept, one for each principal",
                            from.display()
                        ),
                    )?;
                }
                Entry::Scratch { at, bytes } => line(
                    f,
                    at,
                    format!(
                        "at most {} MiB in memory, gone with the session",
                        bytes >> 20
                    ),
                )?,
                _ => {}
            }
        }
        let devices = self.root.iter().filter_map(|entry| match entry {
            Entry::Bind {
                at,
                access: Access::Device,
                ..
            } => Some(at.display().to_string()),
            _ => None,
        });
        writeln!(f, "Devices   {}", devices.collect::<Vec<_>>().join(" "))?;
        network(f, self)?;
        match &self.listens {
            Some(InsideDoor::Port(port)) => {
                writeln!(f, "Speaks    HTTP at port {port} of its own loopback")?;
            }
            Some(InsideDoor::Socket(name)) => {
                writeln!(f, "Speaks    HTTP at its socket `{SOCKETS}/{name}`")?;
            }
            None => {}
        }
        let names: Vec<_> = self.env.iter().map(|(name, _)| name.as_str()).collect();
        writeln!(f, "Variables {}", names.join(" "))?;
        for (name, credential) in &self.secret_env {
            writeln!(
                f,
                "Secrets   {name}: the text of the credential `{credential}`"
            )?;
        }
        for entry in &self.root {
            if let Entry::Secret { credential, at } = entry {
                writeln!(
                    f,
                    "Secrets   {}: the credential `{credential}`, for it alone",
                    at.display()
                )?;
            }
        }
        write!(
            f,
            "Limits    {} MiB of memory, no swap, {} processes and threads, {} % of a processor",
            self.cgroup.memory >> 20,
            self.cgroup.tasks,
            self.cgroup.cpu
        )?;
        if let Some(weight) = self.cgroup.io_weight {
            write!(f, ", a weight of {weight} at the disks")?;
        }
        writeln!(f)?;
        let (profile, additions) = &self.seccomp;
        write!(
            f,
            "Kernel    system calls of the profile `{}`",
            profile.name()
        )?;
        for addition in additions {
            write!(f, " and of `{}`", addition.name())?;
        }
        writeln!(f, ", no capabilities, no new privileges")?;
        write!(f, "Layers   ")?;
        for layer in Layer::ALL {
            let optional = if self.optional.contains(&layer) {
                " (optional)"
            } else {
                ""
            };
            write!(f, " {}{optional}", layer.name())?;
        }
        Ok(())
    }
}

fn network(f: &mut fmt::Formatter<'_>, plan: &Plan) -> fmt::Result {
    let Network::Own(ways) = &plan.network else {
        return writeln!(
            f,
            "Network   THIS HOST'S: whatever it reaches, its loopback and abstract sockets included (`dangerous`)"
        );
    };
    if ways.is_empty() {
        return writeln!(f, "Network   none but its own loopback");
    }
    writeln!(
        f,
        "Network   none but its own loopback, and from there by the gateway"
    )?;
    for way in ways {
        let (at, how) = match way.door {
            Door::Named(address) => (way.to.to_string(), format!("by `{}`", address.ip())),
            Door::Proxy => (way.to.to_string(), "by the proxy (HTTPS_PROXY)".to_owned()),
            Door::Forward(address) => (address.to_string(), format!("leads to {}", way.to)),
        };
        let blocks: Vec<_> = way.to.blocks.iter().map(ToString::to_string).collect();
        let also = match &way.to.host {
            Host::Address(_) => String::new(),
            _ if blocks.is_empty() => ", public addresses alone".to_owned(),
            _ => format!(", public addresses and {}", blocks.join(", ")),
        };
        line(f, Path::new(&at), format!("{how}{also}"))?;
    }
    let (connections, bytes) = plan.egress;
    writeln!(
        f,
        "          at most {connections} connections at once and {} MiB in all",
        bytes >> 20
    )
}

fn line(f: &mut fmt::Formatter<'_>, at: &Path, what: String) -> fmt::Result {
    writeln!(f, "          {:<28} {what}", at.display().to_string())
}

//! A plan in words: what `thv check --explain` prints. It is read by more people than the
//! configuration: what may be a secret in it is left out.

use std::{fmt, path::Path};

use super::plan::{Access, Entry, Plan};
use crate::config::{Door, Host, InsideDoor, Layer, Network, SOCKETS, may_be_secret};

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (command, is_whole) = command(&self.argv);
        writeln!(f, "Runs      {command}")?;
        if !is_whole {
            writeln!(
                f,
                "          where `{LEFT_OUT}` is an argument that may hold a secret; one belongs in `env`, as a credential"
            )?;
        }
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
                // It was to be a program with its arguments, and is looked for as it stands.
                let program = self.argv.first().filter(|program| !is_program(program));
                let is_left_out = program.is_some_and(|program| at == Path::new(program));
                line(
                    f,
                    if is_left_out { Path::new(LEFT_OUT) } else { at },
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

/// The program and its arguments, and whether that is all of them.
fn command(argv: &[String]) -> (String, bool) {
    let mut is_whole = true;
    let mut left_out = || {
        is_whole = false;
        LEFT_OUT.to_owned()
    };
    let mut words = Vec::with_capacity(argv.len());
    let mut before = "";
    for (place, argument) in argv.iter().enumerate() {
        let (name, value) = match argument.split_once('=') {
            // Else it is the end of something in base64.
            Some((name, value)) if !value.trim_end_matches('=').is_empty() => (Some(name), value),
            _ => (None, argument.as_str()),
        };
        let is_option = name.is_none() && value.starts_with('-');
        // A package of a scope begins so.
        let plain = value.strip_prefix('@').unwrap_or(value);
        let is_left_out = match place {
            0 => !is_program(argument),
            // A header is named within its value.
            _ if value
                .split_once(':')
                .is_some_and(|(name, _)| names_secret(name)) =>
            {
                true
            }
            _ if !is_option && names_secret(name.unwrap_or(before)) => true,
            // Of a path it is a part that may be one, and the whole may be long.
            _ if plain.starts_with('/') => plain
                .split('/')
                .any(|part| may_be_secret(part.strip_prefix('@').unwrap_or(part))),
            _ => may_be_secret(plain),
        };
        words.push(match name {
            _ if !is_left_out => argument.clone(),
            Some(name) if !name.contains(':') && !may_be_secret(name) => {
                format!("{name}={}", left_out())
            }
            _ => left_out(),
        });
        before = if is_option { argument } else { "" };
    }
    (words.join(" "), is_whole)
}

/// Whether it names a program alone: where that lies says nothing, however long.
fn is_program(argument: &str) -> bool {
    !argument.contains(|c: char| c.is_whitespace() || c == '=')
}

/// Whether what comes behind an option of that name is likely one.
fn names_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    NAMES.iter().any(|part| name.contains(part))
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

/// What stands for an argument that nobody is shown.
const LEFT_OUT: &str = "…";
/// What is in names of secrets.
const NAMES: &[&str] = &[
    "token", "secret", "pass", "pwd", "key", "auth", "cred", "bearer", "cookie", "header",
];

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written there by mistake is not what `thv check --explain` prints, and what is not one is.
    #[test]
    fn an_argument_that_may_be_a_secret_is_left_out() {
        for (argv, shown) in [
            (
                &["/bin/x", "--token", "s3cret", "-v"][..],
                "/bin/x --token … -v",
            ),
            (&["/bin/x", "--api-key=s3cret"], "/bin/x --api-key=…"),
            (&["/bin/x", "API_KEY=s3cret"], "/bin/x API_KEY=…"),
            (&["/bin/x", "s3cret=="], "/bin/x …"),
            (
                &["/bin/x", "ghp_s3cretAwBQYDK2VwBCIEIJQAwBQYDK2VwBCI"],
                "/bin/x …",
            ),
            (&["/bin/x", "https://user:s3cret@h/"], "/bin/x …"),
            (&["/bin/sh", "-c", "x --token s3cret"], "/bin/sh -c …"),
            (&["/bin/x", "--header", "X: s3cret"], "/bin/x --header …"),
            (&["/bin/x", "-H", "X-Api-Key:s3cret"], "/bin/x -H …"),
            (&["/bin/x", "-H", "X-Api-Key:s3cret=x"], "/bin/x -H …"),
            (&["/bin/x --token s3cret"], "…"),
            (
                &["/bin/x", "/srv/ghp_s3cretAwBQYDK2VwBCIEIJQAwBQYDK2VwBCI/x"],
                "/bin/x …",
            ),
            (&["/bin/x", "--token", "/srv/x"], "/bin/x --token …"),
            (&["TOKEN=s3cret"], "TOKEN=…"),
        ] {
            let argv: Vec<String> = argv.iter().map(ToString::to_string).collect();
            assert_eq!(command(&argv), (shown.to_owned(), false));
        }
        for argv in [
            "/nix/store/0123456789abcdefghijklmnopqrstuv-python3-3.13/bin/python3 -u /srv/x.py",
            "/usr/bin/npx -y @modelcontextprotocol/server-filesystem /srv/data --port=80",
            "/usr/bin/node /opt/peers/node_modules/@modelcontextprotocol/server-everything/dist/index.js stdio",
            "/bin/x --toolsets=repos,issues --path /srv --verbose read-only",
        ] {
            let words: Vec<String> = argv.split(' ').map(str::to_owned).collect();
            assert_eq!(command(&words), (argv.to_owned(), true));
        }
    }
}

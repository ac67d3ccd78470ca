//! A plan in words: what `thv check --explain` prints.

use std::fmt;

use super::plan::{Access, Entry, Plan};
use crate::config::Layer;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Runs      {}", self.argv.join(" "))?;
        writeln!(
            f,
            "          in `{}`, as an unprivileged user, alone on a host called `{}`",
            self.home.display(),
            self.hostname
        )?;
        writeln!(f, "May read")?;
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
        writeln!(f, "Network   none but its own loopback")?;
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
        writeln!(
            f,
            "Limits    {} MiB of memory, no swap, {} processes and threads, {} % of a processor",
            self.cgroup.memory >> 20,
            self.cgroup.tasks,
            self.cgroup.cpu
        )?;
        writeln!(
            f,
            "Kernel    system calls of the profile `default`, no capabilities, no new privileges"
        )?;
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

fn line(f: &mut fmt::Formatter<'_>, at: &std::path::Path, what: String) -> fmt::Result {
    writeln!(f, "          {:<28} {what}", at.display().to_string())
}

//! `thv pull NAME`: fetches a server's image, and unpacks it for its runner.
//!
//! By itself it starts thv-fetch@NAME.service, which has a network and unpacks nothing,
//! then thv-pull@NAME.service, which unpacks and has no network. Both run as the
//! runner's user and call this again with `--into`: nothing of a registry's, and no
//! archive, is ever read by root.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use super::{Usage, below, print, say, unit};
use crate::{
    config::{self, Config, OwnerRule, ServerName},
    image::{self, Progress},
    sandbox::Installed,
    systemd::Credentials,
};

/// One half of a pull.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Half {
    Fetch,
    Unpack,
}

pub(super) fn run(
    root: &Path,
    name: &ServerName,
    into: Option<PathBuf>,
    only: Option<Half>,
) -> Result<ExitCode> {
    let config = config::load(root, name, OwnerRule::RootOrCaller)?;
    let Some(image) = &config.image else {
        return Err(Usage(format!(
            "`{name}` has a `command` and no `image`: there is nothing to pull"
        ))
        .into());
    };
    let is_fetched = image.repository().is_some();
    if let Some(state) = into {
        let store = Installed::store(&state);
        if is_fetched && only != Some(Half::Unpack) {
            fetch(&config, &store)?;
        }
        if only != Some(Half::Fetch) {
            let installed = image::pull(&config, &store).map_err(told)?;
            print(&format!(
                "{} {}\n",
                installed.digest,
                installed.root.display()
            ))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    // Systemd has mounted what is there to be executed when it starts the runner.
    let state = below(root, RUNNERS).join(name.as_str());
    let is_first = !Installed::store(&state).join(Installed::CURRENT).exists();
    if is_fetched {
        say(&format!("thv: fetching `{}`", image.text));
        start(&format!("thv-fetch@{name}.service"))?;
    }
    start(&format!("thv-pull@{name}.service"))?;
    say(&unpacked(name, is_first));
    Ok(ExitCode::SUCCESS)
}

/// What comes next.
fn unpacked(name: &ServerName, is_first: bool) -> String {
    if is_first {
        format!(
            "thv: unpacked; a runner that runs already must be started again for this first image: `systemctl try-restart thv-runner@{name}.service`"
        )
    } else {
        "thv: unpacked; children that start from now on have it, and those that run keep theirs"
            .to_owned()
    }
}

/// Starts one half and waits for it; how far it is, and why it failed, is shown here.
fn start(unit: &str) -> Result<()> {
    let since = SystemTime::now();
    let started = shown(unit, || {
        Command::new("systemctl").args(["start", unit]).output()
    })
    .context("running `systemctl`; without systemd, say where to with `--into DIR`")?;
    if !started.status.success() {
        let why = unit::last_words(unit, since)
            .unwrap_or_else(|| String::from_utf8_lossy(&started.stderr).trim().to_owned());
        bail!("`{unit}` failed: {why}; `journalctl -u {unit} -n 20` says more");
    }
    Ok(())
}

/// Does `work`, for which `unit` pulls an image, and shows how far that is.
pub(super) fn shown<T>(unit: &str, work: impl FnOnce() -> T) -> T {
    unit::followed(unit, PROGRESS, work)
}

/// How the lines of [`Shown`] begin in the unit's journal.
const PROGRESS: &str = "^thv: (part|the connection) ";

fn fetch(config: &Config, store: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let login = |credential: &str| {
        let read = Credentials::from_environment().read(credential, MAX_LOGIN);
        let text = read.map_err(|error| {
            format!(
                "{error}; `thv secret set --pull {} {credential}` gives it to the unit that fetches",
                config.server
            )
        })?;
        match String::from_utf8(text) {
            Ok(text) if text.trim().contains(':') => Ok(text.trim().to_owned()),
            _ => Err(format!("`{credential}` is not `USER:PASSWORD`")),
        }
    };
    let mut shown = Shown::default();
    let mut tell = |progress| shown.show(progress);
    let fetched = runtime.block_on(image::fetch(config, store, login, &mut tell));
    shown.end();
    fetched.map_err(told)
}

/// Its text says all that its causes do.
fn told(error: image::ImageError) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}

/// Progress as a person sees it: one line that changes on a terminal, few lines elsewhere.
#[derive(Default)]
struct Shown {
    last: Option<Instant>,
    /// A line is begun.
    open: bool,
}

impl Shown {
    fn show(&mut self, progress: Progress) {
        let is_terminal = io::stderr().is_terminal();
        let Progress::Part {
            number,
            of,
            at,
            size,
        } = progress
        else {
            self.end();
            return say("thv: the connection was cut; going on from there");
        };
        let every = if is_terminal { REDRAW } else { LINE };
        // Beginnings and ends are always shown.
        let is_middle = at > 0 && at < size;
        if is_middle && self.last.is_some_and(|last| last.elapsed() < every) {
            return;
        }
        self.last = Some(Instant::now());
        let text = format!("thv: part {number} of {of}: {} of {}", mib(at), mib(size));
        if is_terminal {
            let _ = write!(io::stderr(), "\r\x1b[K{text}");
            self.open = true;
            if at >= size {
                self.end();
            }
        } else if at == 0 || is_middle {
            say(&text);
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            say("");
        }
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "shown with one digit after the point"
)]
fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

const REDRAW: Duration = Duration::from_millis(100);
const LINE: Duration = Duration::from_secs(10);
/// Bytes of a registry's credential.
const MAX_LOGIN: usize = 16 << 10;
/// The state directories of runners, as `ExecPaths=` of their unit has them.
const RUNNERS: &str = "/var/lib/private/thv-runner";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_first_image_asks_for_the_runner_to_be_started_again() {
        let name = ServerName::parse("x").unwrap();
        assert!(unpacked(&name, true).contains("`systemctl try-restart thv-runner@x.service`"));
        assert!(!unpacked(&name, false).contains("restart"));
        let unit = include_str!("../../systemd/system/thv-runner@.service");
        assert!(unit.contains(&format!("ExecPaths=-{RUNNERS}/%i/image\n")));
    }
}

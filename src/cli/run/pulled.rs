//! The image of a `thv run`: pulled by whom the server will run as, into their own state.
//!
//! A process of its own does it, so that a caller who is root reads nothing of a
//! registry's. The runner finds the image below the root that was written for it.

use std::{
    fs,
    os::unix::{fs::symlink, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use nix::unistd::{Uid, User};

use super::{file::Wish, program};
use crate::{cli::say, config::ServerName, runner::Person};

/// Pulls what `wish` names for `person`, or for the caller.
pub(super) fn pull(root: &Path, wish: &Wish, person: Option<&Person>) -> Result<()> {
    let runners = runners_state(root, &wish.name);
    let state = match kept(person) {
        Some(kept) => kept.join(wish.name.as_str()),
        // Gone with the root.
        None => runners.clone(),
    };
    say(&format!(
        "thv: pulling `{}` into `{}`",
        wish.image.as_deref().unwrap_or_default(),
        state.display()
    ));
    let mut command = Command::new(program()?);
    command
        .arg("--root")
        .arg(root)
        .args(["pull", wish.name.as_str(), "--into"])
        .arg(&state)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    if let Some(person) = person {
        command.uid(person.uid()).gid(person.gid());
    }
    let output = command.output().with_context(|| {
        format!(
            "starting `{}` as the user that the server runs as",
            command.get_program().display()
        )
    })?;
    if !output.status.success() {
        bail!("the image was not pulled");
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let digest = said.split(' ').next().unwrap_or_default();
    say(&format!("thv: the image is {digest}"));
    if state == runners {
        return Ok(());
    }
    link(root, &wish.name, &state)
}

/// Lets the runner of `root` find the image that is kept in `state`.
pub(super) fn link(root: &Path, name: &ServerName, state: &Path) -> Result<()> {
    let runners = runners_state(root, name);
    fs::create_dir_all(runners.parent().unwrap_or(root))
        .and_then(|()| symlink(state, &runners))
        .with_context(|| format!("writing `{}`", runners.display()))
}

/// Where the runner of a root looks, without systemd.
fn runners_state(root: &Path, name: &ServerName) -> PathBuf {
    root.join("var/lib/thv-runner").join(name.as_str())
}

/// Where a person's images are kept: nowhere for who has no home.
fn kept(person: Option<&Person>) -> Option<PathBuf> {
    let from = |name: &str| {
        let value = std::env::var_os(name).map(PathBuf::from);
        value.filter(|path| path.is_absolute() && path.is_dir())
    };
    let state = match person {
        None => from("XDG_STATE_HOME").or_else(|| Some(from("HOME")?.join(".local/state"))),
        // The environment is root's.
        Some(person) => {
            let user = User::from_uid(Uid::from_raw(person.uid())).ok()??;
            user.dir.is_dir().then(|| user.dir.join(".local/state"))
        }
    };
    Some(state?.join("thv/run"))
}

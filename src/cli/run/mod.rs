//! `thv run`: one server from one command line, in the foreground or as a
//! transient unit.
//!
//! The command line becomes the files of a configured server, in a root of
//! their own; what serves them is the daemon and the runner that serve every
//! other. Reads no file below `/etc/thv`.

mod arguments;
mod file;
mod foreground;
mod profile;
mod pulled;
mod transient;

use std::{path::Path, process::ExitCode};

use anyhow::{Context as _, Result};

pub(super) use arguments::{Run, mistyped};
pub(super) use foreground::serve_in_unit;

use self::file::Wish;
use super::{exit, say, sockets};
use crate::{
    authz::Engine,
    config::{self, Config, OwnerRule, Problems},
    daemon,
};

/// Runs what the arguments say.
pub(super) fn run(run: &Run) -> Result<ExitCode> {
    let wish = run.wish()?;
    let address = run.address()?;
    if run.foreground {
        foreground::run(wish, address)
    } else {
        transient::run(wish, address)
    }
}

/// What is said before anything else.
fn announce(wish: &Wish) {
    match &wish.policy {
        None => say(&format!(
            "thv: no --policy: every caller with a valid token may call everything that `{}` offers",
            wish.name
        )),
        Some((path, _)) => say(&format!(
            "thv: `{}` decides who may call what",
            path.display()
        )),
    }
    if wish.accepts_untyped() {
        say(&format!(
            "thv: tokens of {} do not say that they are access tokens; they are accepted all the same (typ = \"legacy\")",
            wish.issuer
        ));
    }
    let program = wish.command.first().filter(|_| wish.image.is_none());
    if let Some(program) = program.filter(|it| !it.starts_with("/usr/")) {
        say(&format!(
            "thv: of what is outside /usr the server sees `{program}` and what --volume shows; \
             a program that needs more files needs more of these"
        ));
    }
    for path in &wish.read_only {
        if let sockets::Found::Below(socket) = sockets::among(path) {
            say(&format!(
                "thv: WARNING: the server may connect to sockets below `{}`, such as `{}`: \
                 read-only does not hold for them, show it less if it must not",
                path.display(),
                socket.display()
            ));
        }
    }
    for argument in wish.command.iter().skip(usize::from(wish.image.is_none())) {
        let path = Path::new(argument);
        let shown = (path.starts_with("/usr") && wish.image.is_none())
            || wish.read_only.iter().any(|shown| path.starts_with(shown));
        if path.is_absolute() && path.exists() && !shown && !path.starts_with("/tmp") {
            say(&format!(
                "thv: the server does not see `{argument}`; if it must, add `--volume {argument}:ro`"
            ));
        }
    }
}

/// Loads what was written, and says what is wrong with it in the words of the command line.
fn load(root: &Path, wish: &Wish) -> Result<Result<Config, ExitCode>> {
    let loaded = config::load(root, &wish.name, OwnerRule::RootOrCaller).and_then(|config| {
        Engine::build(&config.authz, &config.server).map_err(daemon::policy_problems)?;
        Ok(config)
    });
    match loaded {
        Ok(config) => Ok(Ok(config)),
        Err(problems) => {
            complain(&problems, wish);
            Ok(Err(ExitCode::from(exit::CONFIG)))
        }
    }
}

fn complain(problems: &Problems, wish: &Wish) {
    for problem in problems.iter() {
        let help = match problem.help.as_str() {
            "" => String::new(),
            help => format!("; {help}"),
        };
        let is_policy = problem.file.extension().is_some_and(|it| it == "cedar");
        let of_a_secret = wish.secrets.iter().any(|(variable, _)| {
            let rest = problem.key.strip_prefix("env.").unwrap_or_default();
            let named = rest.strip_suffix(".credential").unwrap_or(rest);
            named.trim_matches('"') == variable
        });
        let flag = if of_a_secret {
            Some("--secret")
        } else {
            file::flag_of(&problem.key)
        };
        match (&wish.policy, flag) {
            (Some((path, _)), _) if is_policy => say(&format!(
                "thv: --policy {}:{}:{}: {}{help}",
                path.display(),
                problem.line,
                problem.column,
                problem.message
            )),
            (_, Some(flag)) => say(&format!("thv: {flag}: {}{help}", problem.message)),
            (_, None) => say(&format!("thv: {}: {}{help}", problem.key, problem.message)),
        }
    }
}

/// This program, to be started again.
fn program() -> Result<std::path::PathBuf> {
    std::env::current_exe().context("finding this program")
}

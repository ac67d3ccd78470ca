//! The command line: a file a verb. Parses, calls one function, prints.
//!
//! Data goes to stdout, talk to stderr. Exit codes are those of sysexits.h:
//! systemd's unit of the gateway names 78 as not worth a restart.

mod check;
mod credentials;
pub mod demo;
mod doctor;
mod edge;
mod elsewhere;
mod explained;
mod fragments;
mod key;
mod listen;
mod overlooked;
mod path;
mod provider;
mod pull;
mod run;
mod scratch;
mod script;
mod secret;
mod serve;
mod sockets;
mod standing;
mod strays;
mod token;
mod unit;
mod unseen;
mod visit;

use std::{
    ffi::OsString,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::{Parser, Subcommand};

use self::credentials::Whose;
use crate::{
    config::{Problems, ServerName},
    systemd::SocketError,
};

/// MCP servers behind single sign-on, as systemd units.
#[derive(Debug, Parser)]
#[command(
    name = "thv",
    version,
    max_term_width = 100,
    after_help = "See thv(1), thv.toml(5) and thv@.service(8)."
)]
pub struct Cli {
    /// Read and write configuration below this directory.
    #[arg(
        long,
        global = true,
        hide = true,
        default_value = "/",
        value_name = "DIR"
    )]
    root: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run the gateway of a server (what thv@NAME.service does)
    Serve {
        /// The server's name: that of its file in /etc/thv/servers, without `.toml`
        name: ServerName,
    },
    /// Run the runner of a server (what thv-runner@NAME.service does)
    Runner {
        /// The server's name: that of its file in /etc/thv/servers, without `.toml`
        name: ServerName,
        /// Serve the gateway at the other end of standard input
        #[arg(long, hide = true)]
        foreground: bool,
    },
    /// Make the key by which a runner knows its gateway
    #[command(hide = true)]
    RunnerKey {
        /// The server's name: that of its file in /etc/thv/servers, without `.toml`
        name: ServerName,
    },
    /// Say what is wrong with the configuration of one server, or of all
    Check {
        /// The server's name; every server, if none is named
        name: Option<ServerName>,
        /// Print what the child will be allowed to see and do
        #[arg(long)]
        explain: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Say what its running gateway would refuse to take without a restart, too
        #[arg(long, requires = "name")]
        reload: bool,
    },
    /// Make a server listen on another address
    Listen {
        /// The server's name: that of its file in /etc/thv/servers, without `.toml`
        name: ServerName,
        /// `IP:PORT`, `[IPv6]:PORT`, `PORT` (on 127.0.0.1) or the absolute path of a Unix socket
        address: String,
        /// Agree to an address that other machines can reach
        #[arg(long)]
        public: bool,
    },
    /// Let a server's runner reach a path that its unit hides
    Path {
        /// The server's name: that of its file in /etc/thv/servers, without `.toml`
        name: ServerName,
        /// An absolute path of this host
        path: PathBuf,
        /// Reach it for writing, too
        #[arg(long)]
        write: bool,
    },
    /// Say what of the sandbox works on this host, and what to do where it does not
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Run a command in a server's sandbox, for a look around
    Sandbox {
        /// The server's name: that of its file in /etc/thv/servers, without `.toml`
        name: ServerName,
        /// What to run there, and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Give a server a secret, take one away, or list them
    #[command(subcommand)]
    Secret(Secret),
    /// Run one server from this command line, without configuration
    Run(Box<run::Run>),
    /// Serve what `run` has written, in the unit that it has started
    #[command(hide = true)]
    RunUnit {
        name: ServerName,
        address: std::net::SocketAddr,
    },
    /// Fetch a server's image, and unpack it for its runner
    Pull {
        /// The server's name: that of its file in /etc/thv/servers, without `.toml`
        name: ServerName,
        /// Do it here, below this state directory, not in units of its runner's user
        #[arg(long, value_name = "DIR")]
        into: Option<PathBuf>,
        /// Do one half of it
        #[arg(long, hide = true, requires = "into")]
        only: Option<pull::Half>,
    },
    /// Say why a server accepts or refuses a token
    #[command(subcommand)]
    Token(Token),
    /// Show the whole of it on loopback: no root, no configuration, no network
    Demo {
        /// End after the show instead of serving on
        #[arg(long)]
        once: bool,
    },
    /// The small MCP server of the demo
    #[command(hide = true)]
    DemoServer,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Secret {
    /// Encrypt standard input as a credential that one unit of the server's is given: its runner
    Set {
        /// The server's name: that of its file in /etc/thv/servers, without `.toml`
        name: ServerName,
        /// What the server's file calls it: `{ credential = "KEY" }`
        key: String,
        /// Give it to the unit that fetches the server's image instead: USER:PASSWORD for a registry
        #[arg(long)]
        pull: bool,
        /// Give it to the gateway instead, for what it shows to others: `introspection`, `[upstream]`
        #[arg(long, conflicts_with = "pull")]
        gateway: bool,
    },
    /// Take a secret that `set` has stored away from the server, and delete it
    Remove {
        /// The server's name: that of its file in /etc/thv/servers, without `.toml`
        name: ServerName,
        /// What `set` was told
        key: String,
    },
    /// List what secrets the server's units are given, and which of them its file names
    List {
        /// The server's name: that of its file in /etc/thv/servers, without `.toml`
        name: ServerName,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Read a token from standard input and print each check, what it compared, and the verdict
    Explain {
        /// The server's name: that of its file in /etc/thv/servers, without `.toml`
        name: ServerName,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command line `args`, the program's name first.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let typed = match args.get(1..) {
        // What a YAML list makes of a flag is told before clap wonders at it.
        Some([verb, typed @ ..]) if verb == "run" => run::mistyped(typed).map_err(Into::into),
        _ => Ok(()),
    };
    let done = typed
        .and_then(|()| match of_a_unit(&args) {
            Some(cli) => Ok(cli),
            None => Cli::try_parse_from(args).map_err(anyhow::Error::from),
        })
        .and_then(dispatch);
    match done {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

/// What the units of a server type. It is understood without building the whole command line,
/// which takes a start as long as reading its configuration; all else is clap's.
fn of_a_unit(args: &[OsString]) -> Option<Cli> {
    let (root, typed) = match args.get(1..)? {
        [flag, root, typed @ ..] if flag == "--root" => (Path::new(root), typed),
        typed => (Path::new("/"), typed),
    };
    let [verb, name] = typed else { return None };
    let name = ServerName::parse(name.to_str()?).ok()?;
    let verb = match verb.to_str()? {
        "serve" => Verb::Serve { name },
        "runner" => Verb::Runner {
            name,
            foreground: false,
        },
        _ => return None,
    };
    root.is_absolute().then(|| Cli {
        root: root.to_owned(),
        verb,
    })
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    let root = cli.root.as_path();
    match cli.verb {
        // First, to be seen: it must find no thread and no async runtime.
        Verb::Runner {
            name,
            foreground: false,
        } => crate::runner::run_as_service(root, &name),
        Verb::Runner {
            name,
            foreground: true,
        } => crate::runner::run_in_foreground(root, &name),
        Verb::Serve { name } => serve::run(root, &name),
        Verb::RunnerKey { name } => key::run(root, &name),
        Verb::Check {
            name,
            explain,
            json,
            reload,
        } => {
            let form = check::Form {
                explain,
                json,
                reload,
            };
            check::run(root, name.as_ref(), form)
        }
        Verb::Listen {
            name,
            address,
            public,
        } => listen::run(root, &name, &address, public),
        Verb::Path { name, path, write } => path::run(root, &name, &path, write),
        Verb::Doctor { json } => doctor::run(json),
        Verb::Sandbox { name, command } => visit::run(root, &name, &command),
        Verb::Secret(Secret::Set {
            name,
            key,
            pull,
            gateway,
        }) => {
            let whose = match (pull, gateway) {
                (true, _) => Whose::Fetch,
                (_, true) => Whose::Gateway,
                _ => Whose::Runner,
            };
            secret::set(root, &name, &key, whose)
        }
        Verb::Secret(Secret::Remove { name, key }) => secret::remove(root, &name, &key),
        Verb::Secret(Secret::List { name, json }) => secret::list(root, &name, json),
        Verb::Run(arguments) => run::run(&arguments),
        Verb::RunUnit { name, address } => run::serve_in_unit(root, &name, address),
        Verb::Pull { name, into, only } => pull::run(root, &name, into, only),
        Verb::Token(Token::Explain { name, json }) => token::explain_token(root, &name, json),
        Verb::Demo { once } => demo::run(once, &mut Output(io::stdout())),
        Verb::DemoServer => {
            unless_broken_pipe(demo::server::run(io::stdin().lock(), io::stdout().lock()))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Says why, and chooses the exit code.
fn fail(error: &anyhow::Error) -> ExitCode {
    if let Some(error) = error.downcast_ref::<clap::Error>() {
        let text = error.render().to_string();
        return if error.use_stderr() {
            match elsewhere::hint(error) {
                Some(hint) => say(&format!(
                    "{}\n\n  tip: {hint}",
                    text.lines().next().unwrap_or_default()
                )),
                None => say(text.trim_end()),
            }
            ExitCode::from(exit::USAGE)
        } else {
            print(&text).map_or(ExitCode::from(exit::IO), |()| ExitCode::SUCCESS)
        };
    }
    say(&format!("thv: {}", in_full(error)));
    ExitCode::from(code_of(error))
}

/// With its causes, but for those that it has named itself.
fn in_full(error: &anyhow::Error) -> String {
    let mut causes = error.chain().map(ToString::to_string);
    let first = causes.next().unwrap_or_default();
    causes.fold(first, |text, cause| {
        if text.ends_with(&cause) {
            text
        } else {
            format!("{text}: {cause}")
        }
    })
}

fn code_of(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        // Without its socket it was started in another way than by its unit.
        if cause.is::<Usage>() || cause.is::<SocketError>() {
            return exit::USAGE;
        }
        if cause.is::<Problems>() {
            return exit::CONFIG;
        }
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            let is_output = error.get_ref().is_some_and(|inner| inner.is::<Unwritten>());
            return if is_output {
                exit::IO
            } else if error.kind() == io::ErrorKind::PermissionDenied {
                exit::NO_PERMISSION
            } else {
                exit::OS
            };
        }
    }
    exit::GENERAL
}

/// An argument that clap cannot judge.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Prints data.
fn print(text: &str) -> io::Result<()> {
    let mut out = Output(io::stdout());
    unless_broken_pipe(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Standard output. That it cannot be written is told from all else that the system refuses.
struct Output(io::Stdout);

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(Unwritten::of)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(Unwritten::of)
    }
}

/// Within an [`io::Error`] of the same kind.
#[derive(Debug, thiserror::Error)]
#[error("standard output: {0}")]
struct Unwritten(io::Error);

impl Unwritten {
    fn of(error: io::Error) -> io::Error {
        io::Error::new(error.kind(), Self(error))
    }
}

/// Talks. What cannot be said is lost: there is nobody to tell.
fn say(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A reader that has seen enough (`thv check | head -1`) is no failure.
fn unless_broken_pipe(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Where an absolute path lies below `root`.
fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// Exit codes, from sysexits.h.
pub mod exit {
    /// Something else.
    pub const GENERAL: u8 = 1;
    /// The command line is wrong.
    pub const USAGE: u8 = 64;
    /// The operating system refuses, or lacks, something.
    pub const OS: u8 = 71;
    /// Output cannot be written.
    pub const IO: u8 = 74;
    /// Another user must do this.
    pub const NO_PERMISSION: u8 = 77;
    /// The configuration is wrong.
    pub const CONFIG: u8 = 78;
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::config::Problem;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_units_type_is_understood_as_clap_would() {
        let args = |typed: &str| typed.split(' ').map(OsString::from).collect::<Vec<_>>();
        for typed in ["thv serve a", "thv runner a-1", "thv --root /x serve a"] {
            let plain = of_a_unit(&args(typed)).unwrap();
            let clap = Cli::try_parse_from(args(typed)).unwrap();
            assert_eq!(format!("{plain:?}"), format!("{clap:?}"), "{typed}");
        }
        for typed in [
            "thv",
            "thv serve",
            "thv serve -h",
            "thv serve A",
            "thv serve a b",
            "thv check a",
            "thv runner a --foreground",
            "thv --root serve a",
            "thv --root -x serve a",
            "thv --json serve a",
        ] {
            assert!(of_a_unit(&args(typed)).is_none(), "{typed}");
        }
    }

    /// Whoever asks for help is told of every argument and flag, in words without markup.
    #[test]
    fn every_argument_is_explained() {
        fn look(command: &clap::Command) {
            let name = command.get_name();
            for argument in command.get_arguments().filter(|one| !one.is_hide_set()) {
                let help = argument.get_help().map(ToString::to_string);
                let help = help.unwrap_or_default();
                let id = argument.get_id();
                assert!(!help.is_empty(), "{name}: {id} has no help");
                assert!(!help.contains('\\'), "{name}: {id}: {help}");
            }
            let shown = command.get_subcommands().filter(|one| !one.is_hide_set());
            shown.for_each(look);
        }
        look(&Cli::command());
    }

    #[test]
    fn each_failure_has_its_exit_code() {
        let io = |kind| anyhow::Error::from(io::Error::from(kind)).context("writing");
        let problems = Problems::from(Problem::of_file(Path::new("/x"), "wrong", ""));
        for (error, code) in [
            (Usage("no".into()).into(), exit::USAGE),
            (
                anyhow::Error::from(problems).context("loading"),
                exit::CONFIG,
            ),
            (io(io::ErrorKind::PermissionDenied), exit::NO_PERMISSION),
            (io(io::ErrorKind::NotFound), exit::OS),
            (
                Unwritten::of(io::ErrorKind::StorageFull.into()).into(),
                exit::IO,
            ),
            (anyhow::anyhow!("else"), exit::GENERAL),
        ] {
            assert_eq!(code_of(&error), code, "{error:#}");
        }
    }

    #[test]
    fn a_cause_is_told_once() {
        let missing = crate::systemd::Credentials::within("/nonexistent".into())
            .read("sso", 1)
            .unwrap_err();
        let error = crate::auth::IntrospectionError::from(missing);
        assert_eq!(
            in_full(&anyhow::Error::from(error).context("asking")),
            "asking: the secret of a client: `/nonexistent/sso`: No such file or directory (os error 2)"
        );
        assert_eq!(
            in_full(&anyhow::anyhow!("a").context("b").context("c")),
            "c: b: a"
        );
    }

    #[test]
    fn a_name_that_no_unit_can_have_is_a_usage_error() {
        let parse = |args: &[&str]| Cli::try_parse_from(args);
        assert!(parse(&["thv", "serve", "github"]).is_ok());
        assert!(parse(&["thv", "check"]).is_ok());
        for bad in [
            &["thv", "serve", "Git_Hub"][..],
            &["thv", "serve"],
            &["thv"],
            &["thv", "listen", "x"],
            &["thv", "xyz"],
        ] {
            let error = parse(bad).unwrap_err();
            assert!(
                error.use_stderr() || error.kind() == clap::error::ErrorKind::DisplayHelp,
                "{bad:?}"
            );
        }
        assert!(!parse(&["thv", "--version"]).unwrap_err().use_stderr());
    }
}

//! What is typed after `thv run`, and what is wrong with it.
//!
//! Every flag that is accepted takes effect; whatever would not is refused here,
//! with the line to type instead. Reads the files that flags name; writes nothing.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use clap::Args;

use super::{file::Wish, profile};
use crate::{
    cli::{Usage, sockets},
    config::{self, ImageName, ImageSource, ServerName},
};

/// The flags of `thv run`.
#[derive(Args, Debug)]
pub(crate) struct Run {
    /// The server's name [default: that of the program or the image]
    #[arg(long)]
    name: Option<ServerName>,
    /// How the server speaks: stdio or streamable-http
    #[arg(long, default_value = "stdio")]
    transport: String,
    /// Where a server that speaks HTTP listens, in its own network
    #[arg(long, value_name = "PORT")]
    target_port: Option<u16>,
    /// Listen on this port; 0 takes a free one, in the foreground
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Listen on this address instead of loopback
    #[arg(long, value_name = "ADDRESS")]
    host: Option<String>,
    /// Whose tokens are accepted: the issuer's URL, exactly as in `iss`
    #[arg(long, value_name = "URL")]
    oidc_issuer: Option<String>,
    /// The audience that tokens must be made for
    #[arg(long, value_name = "AUDIENCE")]
    oidc_audience: Vec<String>,
    /// The only client whose tokens are accepted; ACCOUNT.NAMESPACE.svc.cluster.local is a Kubernetes service account
    #[arg(long, value_name = "CLIENT")]
    oidc_client_id: Option<String>,
    /// Where the issuer's keys are [default: found by discovery]
    #[arg(long, value_name = "URL", requires = "oidc_issuer")]
    oidc_jwks_url: Option<String>,
    /// The Cedar policies that decide; without, any authenticated caller may call everything
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The URL that clients are given [default: `http://ADDRESS:PORT/mcp` on loopback]
    #[arg(long, value_name = "URL")]
    resource: Option<String>,
    /// More accepted Host values, separated by commas
    #[arg(long, value_name = "HOST,…", value_delimiter = ',')]
    hosts: Vec<String>,
    /// What the server may reach: `none`, or the path of a profile (JSON)
    #[arg(long, value_name = "PROFILE")]
    permission_profile: Option<String>,
    /// A variable of the server's environment
    #[arg(long, short, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// A credential whose value the server finds in a variable
    #[arg(long, value_name = "CREDENTIAL,target=VARIABLE")]
    secret: Vec<String>,
    /// A path of this host that the server may read, at the same place
    #[arg(long, short, value_name = "PATH[:PATH]:ro")]
    volume: Vec<String>,
    /// Stay in the foreground instead of starting a systemd unit
    #[arg(
        long,
        num_args = 0..=1,
        require_equals = true,
        default_value = "false",
        default_missing_value = "true",
        value_name = "true|false",
        action = clap::ArgAction::Set
    )]
    pub(super) foreground: bool,
    /// The server's image: `REGISTRY/PATH[:TAG]`, or an archive of one
    image: Option<String>,
    /// The server's program and its arguments; those of the image's program, if there is an image
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Finds what is an argument too few: a flag and its value in one, as in a YAML
/// list. Looks at what stands before `--` only.
pub(in crate::cli) fn mistyped(arguments: &[OsString]) -> Result<(), Usage> {
    for (at, argument) in arguments.iter().enumerate() {
        let Some(text) = argument.to_str() else {
            continue;
        };
        if text == "--" {
            break;
        }
        let next = arguments.get(at + 1).and_then(|next| next.to_str());
        if let ("--foreground", Some(value @ ("true" | "false"))) = (text, next) {
            return Err(Usage(format!(
                "`{value}` after a space would be the server's image; write `--foreground={value}`"
            )));
        }
        let flag_ends = text.find([' ', '\t', '=']).unwrap_or(text.len());
        let (flag, rest) = text.split_at(flag_ends);
        if flag.starts_with("--") && rest.starts_with([' ', '\t']) {
            let value = rest.trim().trim_matches(['"', '\'']);
            return Err(Usage(format!(
                "`{text}` is one argument with a space in it, so no flag; write `{flag}={value}` \
                 (in a YAML list: `- {flag}={value}`)"
            )));
        }
        let value = rest.trim_start_matches('=');
        if flag.starts_with("--oidc-") && (is_quoted(value, '"') || is_quoted(value, '\'')) {
            let bare = value.trim_matches(['"', '\'']);
            return Err(Usage(format!(
                "`{text}` has quotes that no shell has removed, so they would be part of the value; write `{flag}={bare}`"
            )));
        }
    }
    Ok(())
}

fn is_quoted(value: &str, quote: char) -> bool {
    value.len() > 1 && value.starts_with(quote) && value.ends_with(quote)
}

impl Run {
    /// What is asked for, complete but for what this host has to add.
    pub(super) fn wish(&self) -> Result<Wish, Usage> {
        let image = self.image.as_deref().map(named_image).transpose()?;
        let target_port = self.target_port()?;
        let command = self.command()?;
        let name = match &self.name {
            Some(name) => name.clone(),
            None => named_after(&command, image.as_ref())?,
        };
        let Some(issuer) = self.oidc_issuer.clone() else {
            return Err(Usage(
                "who may call? Add `--oidc-issuer URL` and `--oidc-audience AUDIENCE`; \
                 a server without authentication is a line of its file, see `auth.mode` in thv.toml(5)"
                    .to_owned(),
            ));
        };
        if self.oidc_audience.is_empty() {
            return Err(Usage(
                "--oidc-audience is missing: without it tokens made for others would be accepted; \
                 add `--oidc-audience AUDIENCE`"
                    .to_owned(),
            ));
        }
        let profile = match &self.permission_profile {
            Some(name) => profile::read(name)?,
            None => profile::Profile::default(),
        };
        let egress = profile.egress;
        let mut read_only = profile.read;
        for volume in &self.volume {
            read_only.push(shown(volume)?);
        }
        for path in &read_only {
            no_socket(path)?;
        }
        let mut env = BTreeMap::new();
        for variable in &self.env {
            let (name, value) = variable.split_once('=').ok_or_else(|| {
                Usage(format!(
                    "--env {variable}: write `--env {variable}=VALUE`; nothing is taken over from this environment"
                ))
            })?;
            if env.insert(name.to_owned(), value.to_owned()).is_some() {
                return Err(Usage(format!("--env {name} is said twice; remove one")));
            }
        }
        let secrets = self.secrets(&env)?;
        Ok(Wish {
            name,
            image: image.map(|image| image.text),
            command,
            target_port,
            resource: self.resource.clone(),
            hosts: self.hosts.clone(),
            issuer,
            audience: self.oidc_audience.clone(),
            client: self.oidc_client_id.clone(),
            jwks_url: self.oidc_jwks_url.clone(),
            policy: self.policy.as_deref().map(policy).transpose()?,
            env,
            secrets,
            read_only,
            egress,
            cgroup_is_optional: false,
        })
    }

    /// Where to listen.
    pub(super) fn address(&self) -> Result<SocketAddr, Usage> {
        let ip = match self.host.as_deref() {
            None | Some("localhost") => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Some(text) => text.trim_matches(['[', ']']).parse().map_err(|_| {
                Usage(format!(
                    "--host {text}: an address is wanted, such as 127.0.0.1 or 0.0.0.0"
                ))
            })?,
        };
        if !ip.is_loopback() && self.resource.is_none() {
            return Err(Usage(format!(
                "--host {ip} lets other machines in, and thv itself speaks plain HTTP: \
                 add `--resource https://HOST/PATH`, the URL that clients are given"
            )));
        }
        Ok(SocketAddr::new(ip, self.port))
    }

    fn target_port(&self) -> Result<Option<u16>, Usage> {
        match (self.transport.as_str(), self.target_port) {
            ("stdio", None) => Ok(None),
            ("stdio", Some(port)) => Err(Usage(format!(
                "--target-port {port}: a server that speaks stdio listens nowhere; add `--transport streamable-http`"
            ))),
            ("streamable-http" | "http", Some(port @ 1..)) => Ok(Some(port)),
            (transport @ ("streamable-http" | "http"), _) => Err(Usage(format!(
                "--transport {transport}: where does it listen, in its own network? Add `--target-port PORT`"
            ))),
            (other, _) => Err(Usage(format!(
                "--transport {other}: servers that speak stdio or Streamable HTTP are started; \
                 write `--transport stdio` or `--transport streamable-http --target-port PORT`"
            ))),
        }
    }

    fn command(&self) -> Result<Vec<String>, Usage> {
        match (&self.image, self.command.split_first()) {
            (None, Some((program, arguments))) => {
                let mut command = vec![found(program)?];
                command.extend(arguments.iter().cloned());
                Ok(command)
            }
            (None, None) => Err(Usage(
                "what is to run? Write the server's image or program at the end: `thv run … IMAGE` or `thv run … -- COMMAND…`"
                    .to_owned(),
            )),
            (Some(_), _) => Ok(self.command.clone()),
        }
    }

    fn secrets(&self, env: &BTreeMap<String, String>) -> Result<Vec<(String, String)>, Usage> {
        let mut secrets: Vec<(String, String)> = Vec::new();
        for secret in &self.secret {
            let (credential, variable) = secret
                .split_once(",target=")
                .filter(|(credential, variable)| !credential.is_empty() && !variable.is_empty())
                .ok_or_else(|| {
                    Usage(format!(
                        "--secret {secret}: write `--secret CREDENTIAL,target=VARIABLE`"
                    ))
                })?;
            if env.contains_key(variable) || secrets.iter().any(|(other, _)| other == variable) {
                return Err(Usage(format!(
                    "`{variable}` is said twice, by --secret and by another --env or --secret; remove one"
                )));
            }
            secrets.push((variable.to_owned(), credential.to_owned()));
        }
        Ok(secrets)
    }
}

/// The image that a person names.
fn named_image(text: &str) -> Result<ImageName, Usage> {
    let scheme = text.split_once("://").map(|(scheme, _)| scheme);
    if matches!(scheme, Some("npx" | "uvx" | "go")) {
        return Err(Usage(format!(
            "`{text}` would be downloaded and built when it starts, which thv does not do; \
             install the package and run its program: `thv run … -- PROGRAM…`"
        )));
    }
    if text.starts_with(['/', '.']) {
        return Err(Usage(format!(
            "`{text}` is a path: a program stands behind `--`, as in `thv run … -- {text}`; an archive is `oci-archive:{text}` or `docker-archive:{text}`"
        )));
    }
    // An archive is where the person is.
    let absolute = match text.split_once(':') {
        Some((kind @ ("oci-archive" | "docker-archive"), path)) if !path.starts_with('/') => {
            let path =
                std::path::absolute(path).map_err(|error| Usage(format!("{text}: {error}")))?;
            Some(format!("{kind}:{}", path.display()))
        }
        _ => None,
    };
    // A domain the wrong way round is no host that has images.
    if text.starts_with("io.github.") {
        return Err(Usage(format!(
            "`{text}` is a name of MCP's registry, which is not asked: write the image that its entry there names, or run the server's program: `thv run … -- PROGRAM…`"
        )));
    }
    config::image(absolute.as_deref().unwrap_or(text)).map_err(|error| {
        Usage(format!(
            "{error} (names of ToolHive's own registry are not looked up)"
        ))
    })
}

/// The program as a path: configuration has no other.
fn found(program: &str) -> Result<String, Usage> {
    let path = if program.contains('/') {
        std::path::absolute(program).ok()
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .filter(|directory| directory.is_absolute())
            .map(|directory| directory.join(program))
            .find(|candidate| is_program(candidate))
    };
    let path = path.filter(|path| is_program(path)).ok_or_else(|| {
        Usage(format!(
            "`{program}` is not a program here; install it, or write its path"
        ))
    })?;
    // `..` on the way is resolved: a server sees no directory by two names.
    let path = if path
        .components()
        .any(|part| part == std::path::Component::ParentDir)
    {
        fs::canonicalize(&path).unwrap_or(path)
    } else {
        path
    };
    path.into_os_string()
        .into_string()
        .map_err(|_| Usage(format!("the path of `{program}` is not UTF-8")))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn named_after(command: &[String], image: Option<&ImageName>) -> Result<ServerName, Usage> {
    let program = match image.map(|image| &image.source) {
        None => command.first().map(Path::new),
        Some(ImageSource::Registry(repository)) => Some(Path::new(&repository.path)),
        Some(ImageSource::OciArchive(path) | ImageSource::DockerArchive(path)) => Some(&**path),
    };
    program
        .and_then(Path::file_stem)
        .and_then(|stem| stem.to_str())
        .and_then(|stem| {
            ServerName::parse(&stem.to_ascii_lowercase().replace(['_', '.'], "-")).ok()
        })
        .ok_or_else(|| {
            Usage("no name can be made from the program's: add `--name NAME`".to_owned())
        })
}

/// The host path that `--volume` shows.
fn shown(volume: &str) -> Result<PathBuf, Usage> {
    let parts: Vec<&str> = volume.split(':').collect();
    let (from, at, mode) = match parts[..] {
        [path, mode @ ("ro" | "rw")] => (path, path, mode),
        [from, at, mode @ ("ro" | "rw")] => (from, at, mode),
        [path] => (path, path, "rw"),
        [from, at] => (from, at, "rw"),
        _ => {
            return Err(Usage(format!(
                "--volume {volume}: write `--volume PATH:ro`"
            )));
        }
    };
    if from.is_empty() {
        return Err(Usage(format!(
            "--volume {volume}: which path? Write `--volume PATH:ro`"
        )));
    }
    if from != at {
        return Err(Usage(format!(
            "--volume {volume}: a server sees paths of this host at their own place; write `--volume {from}:ro` \
             and give the server `{from}`"
        )));
    }
    if mode == "rw" {
        return Err(Usage(format!(
            "--volume {volume}: a server does not write to this host; write `--volume {from}:ro`. \
             What it may write is /tmp, or its own directory: `sandbox.state` in thv.toml(5)"
        )));
    }
    let path =
        std::path::absolute(from).map_err(|error| Usage(format!("--volume {volume}: {error}")))?;
    if path.exists() {
        Ok(path)
    } else {
        Err(Usage(format!(
            "--volume {volume}: `{}` is not there",
            path.display()
        )))
    }
}

/// That it is read-only would not hold for it.
fn no_socket(path: &Path) -> Result<(), Usage> {
    if sockets::among(path) != sockets::Found::Itself {
        return Ok(());
    }
    let path = path.display();
    Err(Usage(format!(
        "`{path}` is a socket, and a server that is shown one has all that is behind it, read-only or not \
         (Docker's: root on this host); leave it out. What the server must reach by TCP is named in \
         --permission-profile; a configured server may be shown a socket by `sandbox.read-only`, see thv.toml(5)"
    )))
}

fn policy(path: &Path) -> Result<(PathBuf, String), Usage> {
    match fs::read_to_string(path) {
        Ok(text) => Ok((path.to_owned(), text)),
        Err(error) => Err(Usage(format!(
            "--policy {}: {error}; without --policy any authenticated caller may call everything",
            path.display()
        ))),
    }
}

//! `thv check [NAME]`: what a start would say, without starting.
//!
//! Problems would stop a start; warnings would not, but what they speak of will
//! not work as it looks. Both are data here, so both go to stdout.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{
    below, credentials, doctor, edge, exit, explained, fragments, overlooked, path, print,
    provider, say, standing, strays, unit, unseen,
};
use crate::{
    authz::Engine,
    config::{
        self, Auth, Config, Engine as ImageEngine, EnvValue, ImageSource, Network, OwnerRule,
        Problem, Scope, ServerName, Transport, UpstreamAuthorization,
    },
    daemon, sandbox,
    time::Clock,
};

/// How the answer is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub(super) explain: bool,
    pub(super) json: bool,
    /// A gateway runs, which is to take it without a start.
    pub(super) reload: bool,
}

pub(super) fn run(root: &Path, name: Option<&ServerName>, form: Form) -> Result<ExitCode> {
    let (servers, misnamed) = match name {
        Some(name) => (vec![name.clone()], Vec::new()),
        None => (config::servers(root), config::misnamed(root)),
    };
    let mut checks = Vec::new();
    for server in &servers {
        checks.push(check(root, server, form, unit::owner_rule(root))?);
    }
    warn_of_shared_resources(root, &mut checks);
    let mut next = None;
    if unit::is_host(root) && !form.reload {
        let states = standing::ask(checks.iter().map(|checked| checked.server.as_str()));
        for checked in &mut checks {
            let private = format!("/var/lib/private/thv/{}", checked.server);
            let served = daemon::served(&below(root, &private));
            // Root alone can look.
            let is_outdated =
                served.is_some() && checked.digest.is_some() && served != checked.digest;
            for (message, help) in standing::remarks(&checked.server, &states, is_outdated) {
                let said = warning(root, &checked.server, "", message, help);
                checked.warnings.push(said);
            }
            // All of them at once is more than anybody asked for.
            if name.is_some() && checked.problems.is_empty() && checked.warnings.is_empty() {
                next = standing::next(&checked.server, &states);
            }
        }
    }
    let answer = Answer {
        servers: checks,
        misnamed,
        unread: match name {
            Some(_) => Vec::new(),
            None => strays::of_all(root),
        },
    };
    if form.json {
        print(&format!(
            "{}\n",
            serde_json::to_string_pretty(&answer).context("writing JSON")?
        ))?;
    } else {
        print(&answer.text())?;
    }
    if let Some(next) = next {
        say(&format!("thv: nothing listens yet: {next}"));
    }
    if servers.is_empty() && answer.misnamed.is_empty() && answer.unread.is_empty() {
        say(
            "thv: no server is configured: write /etc/thv/servers/NAME.toml, thv.toml(5) has an example",
        );
    }
    Ok(if answer.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::CONFIG)
    })
}

/// What `check` found.
#[derive(Debug, Serialize)]
struct Answer {
    servers: Vec<Checked>,
    /// Files that no server can have.
    misnamed: Vec<Problem>,
    /// Files that would be servers', were they in their directory.
    unread: Vec<Problem>,
}

/// What is to be said of one server.
#[derive(Debug, Serialize)]
struct Checked {
    server: String,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    /// What its child may do, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    explanation: Option<String>,
    /// Its `resource`, if it loads.
    #[serde(skip)]
    resource: Option<String>,
    /// That of its configuration, if it loads.
    #[serde(skip)]
    digest: Option<String>,
}

impl Answer {
    fn is_good(&self) -> bool {
        self.misnamed.is_empty()
            && self
                .servers
                .iter()
                .all(|checked| checked.problems.is_empty())
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut seen = BTreeSet::new();
        for Checked {
            server,
            problems,
            warnings,
            explanation,
            ..
        } in &self.servers
        {
            // Host-wide files have the same problems for every server.
            for problem in problems {
                if seen.insert(problem) {
                    let _ = writeln!(text, "{problem}");
                }
            }
            for warning in warnings {
                let _ = writeln!(text, "{server}: warning: {warning}");
            }
            let _ = match problems.len() {
                0 => writeln!(text, "{server}: ok"),
                1 => writeln!(text, "{server}: 1 problem"),
                many => writeln!(text, "{server}: {many} problems"),
            };
            if let Some(explanation) = explanation {
                let _ = writeln!(text, "{}", explanation.trim_end());
            }
        }
        for problem in &self.misnamed {
            let _ = writeln!(text, "{problem}");
        }
        for stray in &self.unread {
            let _ = writeln!(text, "warning: {stray}");
        }
        text
    }
}

/// What is to be said of a server whose gateway and runner ask for that of its files.
fn check(root: &Path, server: &ServerName, form: Form, units: OwnerRule) -> Result<Checked> {
    let mut checked = Checked {
        server: server.to_string(),
        problems: Vec::new(),
        warnings: Vec::new(),
        explanation: None,
        resource: None,
        digest: None,
    };
    match config::load(root, server, OwnerRule::RootOrCaller) {
        Ok(config) => {
            let engine = Engine::build(&config.authz, &config.server);
            checked.warnings = warnings(root, &config);
            let mut overlooked = overlooked::remarks(root, &config);
            if let Ok(engine) = &engine {
                overlooked.extend(overlooked::policies(engine, &config.server));
                overlooked.extend(overlooked::nobodies(engine, &config));
            }
            for (key, message, help) in overlooked {
                let said = warning(root, config.server.as_str(), &key, message, help);
                checked.warnings.push(said);
            }
            // The units are stricter than this verb, which accepts the caller's own files.
            if let Err(problems) = config::load(root, server, unit::certain(root, server, units)) {
                checked.problems.extend(problems.iter().cloned());
            } else if let Err(perhaps) = config::load(root, server, units) {
                checked.warnings.extend(perhaps.iter().cloned());
            }
            // What is wrong with the policies of a configuration that loads.
            if let Err(found) = engine {
                let found = daemon::policy_problems(found);
                checked.problems.extend(found.iter().cloned());
            }
            for remark in edge::remarks(root, &config, &Clock::system(), units) {
                let name = config.server.as_str();
                let said = warning(root, name, remark.key, remark.message, remark.help);
                if remark.stops {
                    checked.problems.push(said);
                } else {
                    checked.warnings.push(said);
                }
            }
            if form.reload {
                let problem = |(key, message, help): overlooked::Remark| {
                    warning(root, config.server.as_str(), &key, message, help)
                };
                let lacking = overlooked::lacking(root, &config);
                checked.problems.extend(lacking.into_iter().map(problem));
            }
            // A reload is checked from within the gateway's unit, which is shown less of the host.
            if units == OwnerRule::Root && !form.reload && runs_here(&config) {
                let optional = &config.sandbox.optional;
                // podman's containers start without it on kernels that have none.
                let is_podmans = config.engine == ImageEngine::Podman;
                let is_required = |layer| {
                    let is_spared = is_podmans && layer == config::Layer::Landlock;
                    !is_spared && !optional.contains(&layer)
                };
                for (message, help) in doctor::lacking(is_required) {
                    let message = format!("this host lets no server start; {message}");
                    let said = warning(root, config.server.as_str(), "sandbox", message, help);
                    checked.warnings.push(said);
                }
            }
            // Not a problem, for a reload would be refused by it: a unit can be told more than is read here.
            for (key, message, help) in unseen::below_homes(root, &config) {
                let said = warning(root, config.server.as_str(), &key, message, help);
                checked.warnings.push(said);
            }
            checked.resource = Some(config.resource.url.clone());
            checked.digest = Some(config.digest.clone());
            if form.explain {
                checked.explanation = Some(explained::serves(&config) + &explained::plan(&config));
            }
        }
        Err(problems) => checked.problems = problems.iter().cloned().collect(),
    }
    Ok(checked)
}

/// A token for one resource opens every server that has it.
fn warn_of_shared_resources(root: &Path, checks: &mut [Checked]) {
    let mut first = BTreeMap::new();
    for checked in checks {
        let Some(resource) = checked.resource.clone() else {
            continue;
        };
        if let Some(other) = first.get(&resource) {
            let message = format!("`{other}` has the same resource, so a token for one opens both");
            checked.warnings.push(warning(
                root,
                &checked.server,
                "resource",
                message,
                "give each server its own".into(),
            ));
        } else {
            first.insert(resource, checked.server.clone());
        }
    }
}

/// A warning about a key of a server's own file.
fn warning(root: &Path, server: &str, key: &str, message: String, help: String) -> Problem {
    let own = below(root, &format!("/etc/thv/servers/{server}.toml"));
    Problem {
        key: key.to_owned(),
        ..Problem::of_file(&own, message, help)
    }
}

/// Whether the server is a process of this host's.
fn runs_here(config: &Config) -> bool {
    !matches!(config.transport, Transport::Remote(_))
}

/// Whether a drop-in gives the runner of `name` the host's network.
fn has_network(root: &Path, name: &ServerName) -> bool {
    let drop_ins = fragments::said(root, "thv-runner@", name.as_str());
    unit::is_off(&drop_ins, "PrivateNetwork")
}

/// Whether it is a program with its arguments, rather than a program: they may hold a secret.
fn is_line(program: &Path) -> bool {
    program.to_string_lossy().contains(char::is_whitespace)
}

fn warnings(root: &Path, config: &Config) -> Vec<Problem> {
    let mut warnings = Vec::new();
    let mut warn = |key: &str, message: String, help: String| {
        warnings.push(warning(root, config.server.as_str(), key, message, help));
    };

    // An image brings its own, and its archive stands in for it.
    let (key, program) = match (&config.image, config.command.first()) {
        (Some(image), _) => match &image.source {
            ImageSource::OciArchive(path) | ImageSource::DockerArchive(path) => {
                ("image", Some(path.as_path()))
            }
            // A registry is not asked here.
            ImageSource::Registry(_) => ("image", None),
        },
        (None, program) => ("command", program.map(Path::new)),
    };
    // Nothing at all is run here of a server that somebody else runs.
    if let Some(program) = program {
        match std::fs::metadata(program) {
            Ok(meta) if key == "image" && meta.is_file() => {}
            Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => {}
            Ok(meta) if key == "image" || !meta.is_file() => {
                let is = if meta.is_dir() {
                    "a directory"
                } else {
                    "no file"
                };
                warn(
                    key,
                    format!("`{}` is {is}", program.display()),
                    "correct the path".into(),
                );
            }
            Ok(_) => warn(
                key,
                format!(
                    "`{}` is not a program: its mode has no x",
                    program.display()
                ),
                format!("run `chmod a+x {}`", program.display()),
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_line(program) => {
                let text = program.to_string_lossy();
                let first = text.split_whitespace().next().unwrap_or_default();
                warn(
                    key,
                    format!("there is no `{first} …`, whose name would have spaces in it"),
                    format!("write each argument as a string of its own: [\"{first}\", \"…\"]"),
                );
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => warn(
                key,
                format!("there is no `{}`", program.display()),
                if key == "image" {
                    format!(
                        "put the archive there, then run `thv pull {}`",
                        config.server
                    )
                } else {
                    "install it, or correct the path".to_owned()
                },
            ),
            Err(error) => warn(
                key,
                format!("`{}`: {error}", program.display()),
                "run this as root to have it looked at".into(),
            ),
        }
    }
    if config.engine == ImageEngine::Podman && !Path::new(sandbox::PODMAN).exists() {
        warn(
            "engine",
            format!("`{}` is not there", sandbox::PODMAN),
            "install podman and crun".into(),
        );
    }
    let shown = config
        .sandbox
        .read_only
        .iter()
        .map(|path| ("sandbox.read-only", path.as_path()));
    let program = program.filter(|program| !is_line(program) || program.exists());
    for (key, path) in shown.chain(program.map(|program| (key, program))) {
        if path::is_hidden(path) && key == "image" {
            // Its unit is another, for which `thv path` does nothing.
            let message = format!(
                "`{}` is hidden from the unit that unpacks it",
                path.display()
            );
            warn(key, message, "put it elsewhere, such as /srv".into());
        } else if path::is_hidden(path)
            && !path::is_shown(root, ("thv-runner@", &config.server), path)
        {
            let message = format!("`{}` is hidden from the runner by its unit", path.display());
            warn(
                key,
                message,
                format!("run `thv path {} {}`", config.server, path.display()),
            );
        }
    }
    for (variable, value) in &config.env {
        let (EnvValue::Credential(credential) | EnvValue::CredentialFile(credential)) = value
        else {
            continue;
        };
        if !credentials::is_loaded(root, &config.server, credential) {
            warn(
                &format!("env.{variable}"),
                format!("no drop-in gives the runner the credential `{credential}`"),
                format!("run `thv secret set {} {credential}`", config.server),
            );
        }
    }
    if let Transport::Remote(upstream) = &config.transport {
        let (key, credential) = match &upstream.authorization {
            UpstreamAuthorization::Nothing => ("", None),
            UpstreamAuthorization::Credential(name) => ("upstream.authorization", Some(name)),
            UpstreamAuthorization::Exchange(exchange) => {
                ("upstream.token-exchange", Some(&exchange.credential))
            }
        };
        if let Some(credential) = credential
            && !credentials::is_given(root, ("thv@", &config.server), credential)
        {
            let service = format!("thv@{}.service", config.server);
            warn(
                key,
                format!("no drop-in gives {service} the credential `{credential}`"),
                format!(
                    "run `thv secret set --gateway {} {credential}`",
                    config.server
                ),
            );
        }
    }
    if config.scope == Scope::Server && config.sandbox.state {
        warn(
            "sandbox.state",
            "the child is everybody's, and so is what it keeps: one user's data are in the next one's reach".into(),
            "write `scope = \"user\"` if they are no common good".into(),
        );
    }
    if config.sandbox.network == Network::Host {
        warn(
            "sandbox.network",
            "the server runs in THIS HOST'S network: it reaches whatever this host reaches, its loopback, other servers and abstract sockets included".into(),
            "name hosts in `egress` instead".into(),
        );
        if !has_network(root, &config.server) {
            let service = format!("thv-runner@{}.service", config.server);
            let message =
                format!("the unit {service} has no network, so the server would have none");
            warn(
                "sandbox.network",
                message,
                format!(
                    "run `systemctl edit {service}` and add `[Service]` and `PrivateNetwork=no`"
                ),
            );
        }
    }
    if let Auth::Oidc(issuers) = &config.auth {
        for issuer in issuers {
            if let Some((message, help)) = provider::hint(issuer, &config.server) {
                let key = format!("auth.issuer `{}`", issuer.issuer);
                warn(&key, message.to_owned(), help);
            }
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A hint stands beside each provider that needs one, and is gone once it is followed.
    #[test]
    fn widespread_providers_have_hints() {
        let issuer = |name: &str, more: &str| {
            format!(
                "command = [\"/bin/sh\"]\nresource = \"https://h/x\"\nauthz.allow = \"authenticated\"\n\
                 [[auth.issuer]]\nissuer = \"{name}\"\naudience = \"x\"\n{more}\n"
            )
        };
        for (name, word, cure) in [
            (
                "https://sso.example.com/realms/x",
                "Keycloak",
                "typ = \"legacy\"",
            ),
            (
                "https://login.microsoftonline.com/t/v2.0",
                "Entra",
                "typ = \"legacy\"",
            ),
            (
                "https://x.okta.com/oauth2/default",
                "Okta",
                "typ = \"legacy\"",
            ),
            ("https://accounts.google.com", "Google", "token = \"id\""),
            (
                "https://token.actions.githubusercontent.com",
                "subjects",
                "subjects = [\"repo:a/b\"]\ntyp = \"legacy\"",
            ),
            (
                "https://kubernetes.default.svc.cluster.local",
                "Kubernetes",
                "typ = \"legacy\"",
            ),
        ] {
            let (bare, cured) = (issuer(name, ""), issuer(name, cure));
            let root = root_with(&[("servers/bare.toml", &bare), ("servers/cured.toml", &cured)]);
            let warnings = answer(root.path(), "bare").warnings;
            assert!(
                warnings
                    .iter()
                    .any(|warning| warning.to_string().contains(word)),
                "{name}: {warnings:?}"
            );
            assert_eq!(answer(root.path(), "cured").warnings, [], "{name}");
        }
        let other = issuer("https://notokta.com", "");
        let root = root_with(&[("servers/other.toml", &other)]);
        assert_eq!(answer(root.path(), "other").warnings, []);
    }

    #[test]
    fn a_secret_that_no_unit_is_given_is_warned_of_and_never_shown() {
        let server = format!(
            "{GOOD}allow = \"authenticated\"\n[env]\nA = {{ credential = \"key\" }}\nB = {{ credential-file = \"file\" }}\n"
        );
        let root = root_with(&[("servers/x.toml", &server)]);
        let unit = "thv-runner@x.service";
        let text = "[Service]\nLoadCredential=file:/etc/thv/servers/x.toml\n";
        unit::write_drop_in(root.path(), unit, "50-secret-file.conf", text).unwrap();
        let warnings = answer(root.path(), "x").warnings;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let warning = warnings[0].to_string();
        assert!(
            warning.contains("env.A") && warning.contains("thv secret set x key"),
            "{warning}"
        );
        let name = ServerName::parse("x").unwrap();
        let config = config::load(root.path(), &name, OwnerRule::RootOrCaller).unwrap();
        let explained = explained::plan(&config);
        for line in [
            "A: the text of the credential `key`",
            "/run/secrets/file: the credential `file`",
        ] {
            assert!(explained.contains(line), "{explained}");
        }
    }

    /// Whatever is wrong with a file: what may be a secret in it is in none of the answers.
    #[test]
    fn no_answer_shows_a_secret() {
        for text in [
            "command = [\"/bin/sh\", s3cret]",
            "command = [\n\"/bin/sh\",\ns3cret\n]",
            "command = [\"/bin/sh\", \"--token\", \"s3cret\"]",
            "command = [\"/bin/sh\", \"-c\", \"/usr/bin/none --token s3cret\"]",
            "command = [\"/bin/sh\", \"/usr/bin/none --token s3cret\"]",
            "command = [\"/usr/bin/none --token s3cret\"]",
            "command = [\"/home/x/none --token s3cret\"]",
            "command = [\"TOKEN=s3cret /bin/sh\"]",
            "command = [\"TOKEN=s3cret\", \"/bin/sh\"]",
            "command = [\"npx -y x --token s3cret\"]",
            "command = \"/bin/sh --token s3cret\"",
            "env.TOKEN = [\"s3cret\"]",
            "env.TOKEN = [s3cret]",
            "env.TOKEN = { s3cret = 1 }\nenv.TOKEN = { s3cret }",
            "env.TOKEN = { credential = \"sk/s3cret\" }",
            "env.TOKEN = { credential-file = \"s3cret==\" }",
            "env.TOKEN = { credential = [\"s3cret\"] }",
            "env.TOKEN = { value = \"s3cret\" }",
            "env.TOKEN = \"s3cret\\u0000\"",
            "env = \"TOKEN=s3cret\"",
            "env = [\"TOKEN=s3cret\"]",
            "url = \"https://user:s3cret@h/x\"",
            "url = \"https://user:s3cret/more@h/x\"",
            "url = \"user:s3cret@h/x\"",
            "upstream.authorization = \"Bearer s3cret\"",
            "upstream.authorization = { credential = \"Bearer s3cret\" }",
            "upstream.token-exchange = { client-secret = \"s3cret\" }",
            "tls.key = \"-----BEGIN PRIVATE KEY-----\\ns3cret\"",
            "tls.key = \"\"\"-----BEGIN PRIVATE KEY-----\ns3cret\n\"\"\"",
            "image = \"https://user:s3cret@ghcr.io/x/y\"",
            "image = \"user:s3cret@ghcr.io/x/y\"",
            "registry.\"ghcr.io\" = \"user:s3cret\"",
            "registry.\"ghcr.io\".credential = \"user:s3cret\"",
            "sandbox.egress = [\"https://user:s3cret@h\"]",
            "sandbox.egress = [\"user:s3cret@h:443\"]",
            "sandbox.egress = [\"user@h:s3cret\"]",
            "sandbox.forward = [\"user:s3cret@127.0.0.1:1=h:2\"]",
            "tls.key = \"MC4CAQAwBQYDK2VwBCIEIJs3cretAwBQYDK2VwBCIEIJQAwBQYDK2VwBCIEIJ\"",
            "tls.certificate = \"s3cret+==\"\ntls.key = \"-----BEGIN\"",
            "env = { \"TOKEN=s3cret\" = \"\" }",
            "env = { \"TOKEN s3cret\" = \"\" }",
            "command = [\"ghp_s3cretAwBQYDK2VwBCIEIJQAwBQYDK2VwBCI\", \"x\"]",
            "url = \"https://h/x?token=s3cret#f\"",
            "url = \"https://h:s3cret/x\"",
            "url = \"https://h/x\"\nupstream.authorization = { credential-file = \"/etc/s3cret+key\" }",
            "url = \"https://h/x\"\nupstream.token-exchange = { url = \"https://u:s3cret@h/\", credential = \"x\" }",
            "url = \"https://h/x\"\nupstream.token-exchange = { client-id = [\"s3cret\"] }",
            "registry = \"user:s3cret\"",
            "registry.\"user:s3cret@ghcr.io\".credential = \"x\"",
            "registry.\"ghcr.io\".mirror = \"https://user:s3cret@h/x\"",
            "registry.\"ghcr.io\".mirror = \"user:s3cret@h/x\"",
            "image = \"ghcr.io/x/y:s3cret@z\"",
            "image = \"user:s3cret@ghcr.io/x/y:1\"",
            "sandbox.egress = [\"https://h/?token=s3cret\"]",
            "sandbox.read-only = [\"s3cret+==\"]",
            "sandbox.read-only = [\"/x;token=s3cret\"]",
            "authz.scopes = [\"Bearer s3cret\"]",
        ] {
            let text = format!(
                "{text}\nresource = \"https://h/x\"\nauth.mode = \"none\"\nauthz.allow = \"authenticated\"\n"
            );
            let root = root_with(&[("servers/x.toml", &text)]);
            let answer = Answer {
                servers: vec![answer(root.path(), "x")],
                misnamed: Vec::new(),
                unread: Vec::new(),
            };
            let json = serde_json::to_string(&answer).unwrap();
            let name = ServerName::parse("x").unwrap();
            let config = config::load(root.path(), &name, OwnerRule::RootOrCaller);
            let explained =
                config.map_or_else(|_| String::new(), |config| explained::plan(&config));
            for shown in [answer.text(), json, explained] {
                assert!(!shown.contains("s3cret"), "{text}\n{shown}");
            }
        }
    }

    #[test]
    fn a_program_with_its_arguments_in_one_string_is_told_apart() {
        let text = "command = [\"/usr/bin/none --y\"]\nresource = \"https://h/x\"\n\
                    auth.mode = \"none\"\nauthz.allow = \"authenticated\"\n";
        let root = root_with(&[("servers/x.toml", text)]);
        let warnings = answer(root.path(), "x").warnings;
        assert!(
            matches!(&warnings[..], [one] if one.message.contains("`/usr/bin/none …`") && one.help.contains("[\"/usr/bin/none\", \"…\"]")),
            "{warnings:?}"
        );
    }

    #[test]
    fn a_server_elsewhere_is_explained_without_a_sandbox() {
        let server = "url = \"https://up.example.com/mcp\"\nresource = \"https://h/x\"\n[auth]\nmode = \"none\"\n\
                      [authz]\nallow = \"authenticated\"\n[upstream]\nauthorization = { credential = \"up\" }\n";
        let root = root_with(&[("servers/x.toml", server)]);
        let warnings = answer(root.path(), "x").warnings;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(
            warnings[0]
                .to_string()
                .contains("`thv secret set --gateway x up`")
        );
        let text = "[Service]\nLoadCredentialEncrypted=up\n";
        unit::write_drop_in(root.path(), "thv@x.service", "50-up.conf", text).unwrap();
        let store = root.path().join("etc/credstore.encrypted");
        fs::create_dir_all(&store).unwrap();
        fs::write(store.join("up"), "").unwrap();
        assert_eq!(answer(root.path(), "x").warnings, []);
        let name = ServerName::parse("x").unwrap();
        let config = config::load(root.path(), &name, OwnerRule::RootOrCaller).unwrap();
        let explained = explained::plan(&config);
        for line in [
            "https://up.example.com/mcp",
            "`up`",
            "never the caller's token",
        ] {
            assert!(explained.contains(line), "{explained}");
        }
    }

    const GOOD: &str =
        "command = [\"/bin/sh\"]\nresource = \"https://h/x\"\n[auth]\nmode = \"none\"\n[authz]\n";

    fn root_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join("etc/thv").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    fn answer(root: &Path, name: &str) -> Checked {
        answer_for(root, name, OwnerRule::RootOrCaller)
    }

    fn answer_for(root: &Path, name: &str, units: OwnerRule) -> Checked {
        let form = Form {
            explain: false,
            json: false,
            reload: false,
        };
        check(root, &ServerName::parse(name).unwrap(), form, units).unwrap()
    }

    /// What the units refuse, though it loads for whoever asks, has every request answered 503: no mere warning.
    #[test]
    fn a_file_that_the_units_do_not_accept_is_a_problem_where_they_run() {
        let text = format!("{GOOD}allow = \"authenticated\"\n");
        let root = root_with(&[("servers/x.toml", &text)]);
        let file = root.path().join("etc/thv/servers/x.toml");
        // Of root's it is the mode, of anybody else's the owner.
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(answer(root.path(), "x").problems, []);
        let units = answer_for(root.path(), "x", OwnerRule::Root);
        assert!(!units.problems.is_empty());
        let said = Answer {
            servers: vec![units],
            misnamed: Vec::new(),
            unread: Vec::new(),
        };
        assert!(!said.is_good());
        let text = said.text();
        let is_root = nix::unistd::geteuid().is_root();
        assert!(
            text.contains(if is_root {
                "thvg-NAME"
            } else {
                "belongs to uid"
            }),
            "{text}"
        );
    }

    #[test]
    fn a_policy_below_a_home_is_warned_of() {
        let text = format!("{GOOD}policies = [\"/home/x.cedar\"]\n");
        let policy = "permit (principal, action, resource);";
        let root = root_with(&[("servers/x.toml", &text), ("../../home/x.cedar", policy)]);
        let checked = answer_for(root.path(), "x", OwnerRule::Root);
        let hidden = |found: &[Problem]| {
            let said = |it: &&Problem| it.message.contains("hidden from the gateway");
            found.iter().filter(said).count()
        };
        assert_eq!(
            (hidden(&checked.problems), hidden(&checked.warnings)),
            (0, 1)
        );
    }

    /// Gateway and runner look at what they can read and not at its mode, so it is not certain what root finds.
    #[test]
    fn a_file_that_a_group_of_the_units_reads_is_warned_of() {
        if !nix::unistd::geteuid().is_root() {
            return println!("skipped: only root can make a file of root's");
        }
        let text = format!("{GOOD}allow = \"authenticated\"\n");
        let root = root_with(&[("servers/x.toml", &text)]);
        let file = root.path().join("etc/thv/servers/x.toml");
        let found = |mode| {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            let checked = answer_for(root.path(), "x", OwnerRule::Root);
            let hidden = |found: &[Problem]| {
                let said = |it: &&Problem| it.message.contains("thvg-NAME");
                found.iter().filter(said).count()
            };
            (hidden(&checked.problems), hidden(&checked.warnings))
        };
        assert_eq!(found(0o640), (1, 0), "they join none");
        let drop_ins = root
            .path()
            .join("etc/systemd/system/thv-runner@x.service.d");
        fs::create_dir_all(&drop_ins).unwrap();
        let joins = "[Service]\nSupplementaryGroups = thv\n";
        fs::write(drop_ins.join("group.conf"), joins).unwrap();
        assert_eq!(found(0o640), (0, 1));
        assert_eq!(found(0o600), (1, 0), "no group reads it");
        assert_eq!(found(0o644), (0, 0));
    }

    /// Whom a child serves is said, with what follows from it: what everybody shares is warned of.
    #[test]
    fn whom_a_child_serves_is_said() {
        let server = |top: &str, more: &str| {
            format!(
                "command = [\"/bin/sh\"]\nresource = \"https://h/x\"\n{top}\nauth.issuer = [{{ issuer = \"https://i\", audience = \"x\" }}]\n\
                 authz.allow = \"authenticated\"\n{more}\n"
            )
        };
        let state = "sandbox.state = true";
        for (top, more, said, warns) in [
            (
                "warm = 2",
                "",
                "one session; what is asked without one belongs to its principal; 2 wait",
                false,
            ),
            (
                "scope = \"user\"\npass-identity = true",
                state,
                "principal\nTold      who calls: THV_ISSUER THV_SUBJECT ",
                false,
            ),
            (
                "scope = \"server\"\npass-identity = true",
                "",
                "Told      who calls, in each request, as `thv/identity`",
                false,
            ),
            ("scope = \"server\"", state, "Serves    everybody\n", true),
        ] {
            let root = root_with(&[("servers/x.toml", &server(top, more))]);
            let name = ServerName::parse("x").unwrap();
            let config = config::load(root.path(), &name, OwnerRule::RootOrCaller).unwrap();
            let explained = explained::serves(&config);
            assert!(explained.contains(said), "{explained}");
            let warnings = answer(root.path(), "x").warnings;
            let warned = warnings
                .iter()
                .any(|warning| warning.key == "sandbox.state");
            assert_eq!(warned, warns, "{top}: {warnings:?}");
            let path = explained::plan(&config);
            assert_eq!(path.contains(&"0".repeat(64)), warns, "{path}");
        }
    }

    #[test]
    fn a_good_server_is_ok_and_a_bad_one_has_every_problem() {
        let good = format!("{GOOD}allow = \"authenticated\"\n");
        let root = root_with(&[
            ("servers/good.toml", &good),
            ("servers/bad.toml", "x = 1\n"),
        ]);
        let found = Answer {
            servers: vec![answer(root.path(), "good")],
            misnamed: Vec::new(),
            unread: Vec::new(),
        };
        assert!(found.is_good());
        assert_eq!(found.text(), "good: ok\n");
        let found = Answer {
            servers: vec![answer(root.path(), "bad")],
            misnamed: Vec::new(),
            unread: Vec::new(),
        };
        assert!(!found.is_good());
        assert_eq!(found.text().lines().count(), 6, "{}", found.text());
    }

    /// `thv path` opens the runner's unit, and an archive is read by another.
    #[test]
    fn an_archive_that_its_unit_does_not_see_belongs_elsewhere() {
        let hidden = GOOD.replace(
            "command = [\"/bin/sh\"]",
            "image = \"oci-archive:/root/none.tar\"",
        );
        let root = root_with(&[(
            "servers/x.toml",
            &format!("{hidden}allow = \"authenticated\"\n"),
        )]);
        let warnings = answer(root.path(), "x").warnings;
        let said = |words: &str| warnings.iter().any(|one| one.to_string().contains(words));
        assert!(said("image: `/root/none.tar` is hidden"), "{warnings:?}");
        assert!(
            said("put it elsewhere") && !said("thv path"),
            "{warnings:?}"
        );
    }

    #[test]
    fn two_servers_with_one_resource_are_warned_about() {
        let good = format!("{GOOD}allow = \"authenticated\"\n");
        let root = root_with(&[("servers/a.toml", &good), ("servers/b.toml", &good)]);
        let mut checks = vec![answer(root.path(), "a"), answer(root.path(), "b")];
        warn_of_shared_resources(root.path(), &mut checks);
        assert!(checks[0].warnings.is_empty());
        assert_eq!(checks[1].warnings.len(), 1);
    }

    #[test]
    fn a_policy_that_cedar_refuses_is_a_problem_with_its_place() {
        let text = format!("{GOOD}policies = [\"/etc/thv/x.cedar\"]\n");
        let root = root_with(&[
            ("servers/x.toml", &text),
            ("x.cedar", "permit (principal, action, resource);\n"),
        ]);
        assert!(answer(root.path(), "x").problems.is_empty());
        fs::write(
            root.path().join("etc/thv/x.cedar"),
            "permit (principal, action, resource);\npermit oops\n",
        )
        .unwrap();
        let problems = answer(root.path(), "x").problems;
        assert_eq!(problems[0].line, 2, "{problems:?}");
        assert!(problems[0].file.ends_with("x.cedar"));
    }

    #[test]
    fn a_principal_that_nobody_can_be_is_warned_of() {
        let text = GOOD.replace(
            "[auth]\nmode = \"none\"",
            "auth.issuer = [{ issuer = \"https://i.example\", audience = \"x\" }]",
        ) + "policies = [\"/etc/thv/x.cedar\"]\n";
        for (id, said) in [
            ("alice@example.com", "ISSUER|SUBJECT"),
            (
                "https://other.example|alice",
                "the issuers are https://i.example",
            ),
            ("https://i.example|alice", ""),
            ("https://i.example|auth0|alice", ""),
        ] {
            let policy = format!(
                "permit (principal == User::\"{id}\", action, resource);\n\
                 permit (principal, action, resource) when {{ principal == Client::\"{id}\" }};"
            );
            let root = root_with(&[("servers/x.toml", &text), ("x.cedar", &policy)]);
            let warnings = answer(root.path(), "x").warnings;
            let expected = if said.is_empty() { 0 } else { 2 };
            assert_eq!(warnings.len(), expected, "{id}: {warnings:?}");
            let told = |one: &Problem| one.message.contains(said);
            assert!(warnings.iter().all(told), "{warnings:?}");
        }
    }

    #[test]
    fn a_hidden_path_is_warned_about_until_its_drop_in_exists() {
        let text = format!(
            "{GOOD}allow = \"authenticated\"\n[sandbox]\nread-only = [\"/home/a/repos\", \"/srv\"]\n"
        );
        let root = root_with(&[("servers/x.toml", &text)]);
        let checked = answer(root.path(), "x");
        assert!(checked.problems.is_empty());
        assert_eq!(checked.warnings.len(), 1);
        assert!(
            checked.warnings[0]
                .to_string()
                .ends_with("run `thv path x /home/a/repos`"),
            "{}",
            checked.warnings[0]
        );
        path::run(
            root.path(),
            &ServerName::parse("x").unwrap(),
            Path::new("/home/a/repos"),
            false,
        )
        .unwrap();
        assert!(answer(root.path(), "x").warnings.is_empty());
    }

    #[test]
    fn the_hosts_network_is_warned_about_always_and_without_its_drop_in_twice() {
        let text = format!(
            "{GOOD}allow = \"authenticated\"\n[sandbox]\nnetwork = \"host\"\ndangerous = true\n"
        );
        let root = root_with(&[("servers/x.toml", &text)]);
        let checked = answer(root.path(), "x");
        assert!(checked.problems.is_empty());
        assert_eq!(checked.warnings.len(), 2, "{:?}", checked.warnings);
        assert!(
            checked.warnings[1]
                .to_string()
                .contains("PrivateNetwork=no")
        );
        for (value, warnings) in [("yes", 2), ("no", 1)] {
            let drop_in = format!("[Service]\nPrivateNetwork={value}\n");
            unit::write_drop_in(root.path(), "thv-runner@x.service", "net.conf", &drop_in).unwrap();
            assert_eq!(answer(root.path(), "x").warnings.len(), warnings, "{value}");
        }
    }

    /// What a child reaches is said in words, each line with how it is reached.
    #[test]
    fn the_explanation_names_every_way_out() {
        let lines = "egress = [\"api.github.com:443\", \"*.x.org:443 in 10.0.0.0/8\"]\nforward = [\"127.0.0.1:5432=10.0.0.7:5432\"]";
        let text = format!("{GOOD}allow = \"authenticated\"\n[sandbox]\n{lines}\n");
        let root = root_with(&[("servers/x.toml", &text)]);
        let form = Form {
            explain: true,
            json: false,
            reload: false,
        };
        let name = ServerName::parse("x").unwrap();
        let said = check(root.path(), &name, form, OwnerRule::RootOrCaller).unwrap();
        let said = said.explanation.unwrap();
        for part in [
            "api.github.com:443           by `127.77.0.1`, public addresses alone",
            "*.x.org:443                  by the proxy (HTTPS_PROXY), public addresses and 10.0.0.0/8",
            "127.0.0.1:5432               leads to 10.0.0.7:5432",
            "at most 64 connections at once and 8192 MiB in all",
            "HTTPS_PROXY https_proxy NO_PROXY no_proxy",
            "/proc                        its own processes; the rest",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[test]
    fn the_shipped_examples_have_no_problem() {
        let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging");
        let host = fs::read_to_string(packaging.join("etc/thv.toml")).unwrap();
        let root = root_with(&[
            ("thv.toml", &host),
            ("servers/x.toml", ""),
            ("policies/x.cedar", ""),
        ]);
        fs::remove_file(root.path().join("etc/thv/servers/x.toml")).unwrap();
        for entry in fs::read_dir(packaging.join("examples")).unwrap() {
            let file = entry.unwrap().path();
            let place = if file.extension().unwrap() == "toml" {
                "servers"
            } else {
                "policies"
            };
            fs::copy(
                &file,
                root.path()
                    .join("etc/thv")
                    .join(place)
                    .join(file.file_name().unwrap()),
            )
            .unwrap();
        }
        let servers = config::servers(root.path());
        assert!(servers.len() >= 3);
        for server in servers {
            let found = answer(root.path(), server.as_str());
            assert_eq!(found.problems, [], "{server}");
            // Nor does what they say of providers and policies want mending.
            let said = |warning: &Problem| {
                let about = warning.key.as_str();
                about.starts_with("authz") || warning.help.contains("typ =")
            };
            let said: Vec<_> = found.warnings.iter().filter(|one| said(one)).collect();
            assert!(said.is_empty(), "{server}: {said:?}");
        }
    }
}

//! `thv check [NAME]`: what a start would say, without starting.
//!
//! Problems would stop a start; warnings would not, but what they speak of will
//! not work as it looks. Both are data here, so both go to stdout.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{below, exit, path, print, provider, say, secret, unit};
use crate::{
    authz::Engine,
    config::{self, Auth, Config, EnvValue, OwnerRule, Problem, ServerName},
    daemon,
    sandbox::{self, Host},
};

/// How the answer is wanted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    pub(super) explain: bool,
    pub(super) json: bool,
}

pub(super) fn run(root: &Path, name: Option<&ServerName>, form: Form) -> Result<ExitCode> {
    let (servers, misnamed) = match name {
        Some(name) => (vec![name.clone()], Vec::new()),
        None => (config::servers(root), config::misnamed(root)),
    };
    let mut checks = Vec::new();
    for server in &servers {
        checks.push(check(root, server, form)?);
    }
    warn_of_shared_resources(root, &mut checks);
    let answer = Answer {
        servers: checks,
        misnamed,
    };
    if form.json {
        print(&format!(
            "{}\n",
            serde_json::to_string_pretty(&answer).context("writing JSON")?
        ))?;
    } else {
        print(&answer.text())?;
    }
    if servers.is_empty() && answer.misnamed.is_empty() {
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
        text
    }
}

fn check(root: &Path, server: &ServerName, form: Form) -> Result<Checked> {
    let mut checked = Checked {
        server: server.to_string(),
        problems: Vec::new(),
        warnings: Vec::new(),
        explanation: None,
        resource: None,
    };
    match config::load(root, server, OwnerRule::RootOrCaller) {
        Ok(config) => {
            checked.problems = policies(&config);
            checked.warnings = warnings(root, &config);
            checked.resource = Some(config.resource.url.clone());
            if form.explain {
                checked.explanation = Some(plan(&config));
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

/// What is wrong with the policies of a configuration that loads.
fn policies(config: &Config) -> Vec<Problem> {
    match Engine::build(&config.authz, &config.server) {
        Ok(_) => Vec::new(),
        Err(found) => daemon::policy_problems(found).iter().cloned().collect(),
    }
}

/// What a child of `config` may see and do, as its runner will apply it.
fn plan(config: &Config) -> String {
    // Which directory is the principal's is not known before there is one.
    let state = config.sandbox.state.then(|| {
        PathBuf::from(format!(
            "/var/lib/private/thv-runner/{}/PRINCIPAL",
            config.server
        ))
    });
    sandbox::plan(config, &Host::look(), state.as_deref()).to_string()
}

fn warnings(root: &Path, config: &Config) -> Vec<Problem> {
    let mut warnings = Vec::new();
    let mut warn = |key: &str, message: String, help: String| {
        warnings.push(warning(root, config.server.as_str(), key, message, help));
    };

    let program = config
        .command
        .first()
        .map(Path::new)
        .expect("a command has a program");
    match std::fs::metadata(program) {
        Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => {}
        Ok(_) => warn(
            "command",
            format!("`{}` is not a program", program.display()),
            "its mode must have x".into(),
        ),
        Err(error) => warn(
            "command",
            format!("`{}`: {error}", program.display()),
            "install it".into(),
        ),
    }
    let shown = config
        .sandbox
        .read_only
        .iter()
        .map(|path| ("sandbox.read-only", path.as_path()));
    for (key, path) in shown.chain([("command", program)]) {
        if path::is_hidden(path) && !path::is_shown(root, &config.server, path) {
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
        if !secret::is_loaded(root, &config.server, credential) {
            warn(
                &format!("env.{variable}"),
                format!("no drop-in gives the runner the credential `{credential}`"),
                format!("run `thv secret set {} {credential}`", config.server),
            );
        }
    }
    if let Auth::Oidc(issuers) = &config.auth {
        for issuer in issuers {
            if let Some((message, help)) = provider::hint(issuer) {
                let key = format!("auth.issuer `{}`", issuer.issuer);
                warn(&key, message.to_owned(), help);
            }
        }
    }
    if unit::is_host(root)
        && let Err(problems) = config::load(root, &config.server, OwnerRule::Root)
    {
        // The units are stricter than this verb, which accepts the caller's own files.
        warnings.extend(problems.iter().cloned());
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
        check(
            root,
            &ServerName::parse(name).unwrap(),
            Form {
                explain: false,
                json: false,
            },
        )
        .unwrap()
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
        };
        assert!(found.is_good());
        assert_eq!(found.text(), "good: ok\n");
        let found = Answer {
            servers: vec![answer(root.path(), "bad")],
            misnamed: Vec::new(),
        };
        assert!(!found.is_good());
        assert_eq!(found.text().lines().count(), 6, "{}", found.text());
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
            assert_eq!(
                answer(root.path(), server.as_str()).problems,
                [],
                "{server}"
            );
        }
    }
}

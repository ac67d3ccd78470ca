//! What `thv check` says of files that are there, and that whoever is to read them does not see:
//! what a command names and its sandbox does not show, and what the configuration names
//! and the units of gateway and runner hide.
//!
//! Looks at names alone. Called by `overlooked`.

use std::path::{Path, PathBuf};

use super::{fragments, overlooked::Remark, path, script, unit};
use crate::{
    config::{Auth, Authz, Config, EnvValue, KeySource, Pem, Transport},
    sandbox::{Access, Entry, Host, plan},
};

/// Files of the configuration's own that lie where gateway and runner see nothing, whatever their modes.
pub(super) fn below_homes(root: &Path, config: &Config) -> Vec<Remark> {
    let texts = fragments::said(root, "thv@", config.server.as_str());
    // Who has the unit find other files there knows which.
    if OTHERS.iter().any(|setting| unit::has(&texts, setting)) {
        return Vec::new();
    }
    let files = named_files(config).into_iter();
    // The configuration's paths are this host's.
    let hidden = files.filter(|(_, file)| {
        let inside = Path::new("/").join(file.strip_prefix(root).unwrap_or(file));
        path::is_hidden(&inside) && !path::is_shown(root, ("thv@", &config.server), &inside)
    });
    let remark = |(key, file): (String, PathBuf)| {
        let message = format!(
            "`{}` is hidden from the gateway by its unit, which answers 503 without it",
            file.display()
        );
        (
            key,
            message,
            "put it elsewhere, such as below /etc/thv".to_owned(),
        )
    };
    hidden.map(remark).collect()
}

/// Settings by which a unit may find files where this host has none of its own.
const OTHERS: &[&str] = &[
    "ExecStartPre",
    "JoinsNamespaceOf",
    "MountImages",
    "RootDirectory",
    "RootImage",
];

/// The files that the gateway reads besides its configuration.
fn named_files(config: &Config) -> Vec<(String, PathBuf)> {
    let mut files = Vec::new();
    let mut add = |key: String, file: Option<&PathBuf>| {
        files.extend(file.map(|file| (key, file.clone())));
    };
    if let Authz::Policies(policies) = &config.authz {
        for policy in policies {
            add("authz.policies".to_owned(), Some(&policy.path));
        }
    }
    if let Auth::Oidc(issuers) = &config.auth {
        for issuer in issuers {
            let key = |what: &str| format!("auth.issuer `{}` {what}", issuer.issuer);
            add(key("ca-file"), issuer.ca_file.as_ref());
            if let KeySource::File(file) = &issuer.keys {
                add(key("jwks-file"), Some(file));
            }
        }
    }
    if let Some(tls) = &config.tls {
        for (key, pem) in [("tls.certificate", &tls.certificate), ("tls.key", &tls.key)] {
            if let Pem::File(file) = pem {
                add(key.to_owned(), Some(file));
            }
        }
    }
    if let Transport::Remote(upstream) = &config.transport {
        add("upstream.ca-file".to_owned(), upstream.ca_file.as_ref());
    }
    files
}

/// Files of this host that the command or a variable names and that its sandbox does not show.
pub(super) fn remarks(config: &Config) -> Vec<Remark> {
    if config.command.is_empty() {
        return Vec::new();
    }
    let plan = plan(config, &Host::look(), None, None);
    let shown = plan.root;
    let is_seen = |path: &Path| shown.iter().any(|entry| shows(entry, path));
    let path = plan.env.iter().find(|(name, _)| name == "PATH");
    let path = path.map(|(_, path)| path.as_str());
    let script = script::fault(Path::new(&config.command[0]), path, is_seen);
    let script = script.map(|(message, help)| ("command".to_owned(), message, help));
    let words = config.command.iter().map(String::as_str);
    let hidden = words
        .clone()
        .skip(1)
        .zip(words)
        .filter_map(|(argument, before)| {
            let path = named(argument, before)?;
            let is_there = path.is_absolute() && path.symlink_metadata().is_ok();
            let is_shown = path.parent().is_none() || is_seen(path);
            // Where the server may write, or the sandbox has its own, nothing need be there yet.
            let of_host = shown.iter().any(|entry| is_of_host(entry, path));
            if of_host && matches!(path.try_exists(), Ok(false)) {
                return Some((
                    "command".to_owned(),
                    format!("there is no `{}`", path.display()),
                    "install it, or correct the path".to_owned(),
                ));
            }
            (is_there && !is_shown).then(|| unseen("command".to_owned(), path))
        });
    let variables = config.env.iter().filter_map(|(name, value)| {
        let EnvValue::Text(text) = value else {
            return None;
        };
        let path = Path::new(text);
        let is_there = path.is_absolute() && path.parent().is_some() && path.exists();
        (is_there && !is_seen(path)).then(|| unseen(format!("env.{name}"), path))
    });
    let package = package(Path::new(&config.command[0]), is_seen);
    script
        .into_iter()
        .chain(package)
        .chain(hidden)
        .chain(variables)
        .collect()
}

fn unseen(key: String, path: &Path) -> Remark {
    let message = format!("the server does not see `{}` of this host", path.display());
    let help = format!(
        "if it is to read it, add `\"{}\"` to `read-only` in [sandbox]",
        whole(path).unwrap_or(path).display()
    );
    (key, message, help)
}

/// A program of npm's, of which the sandbox shows that file alone: it would not find its own other files.
fn package(program: &Path, is_seen: impl Fn(&Path) -> bool) -> Option<Remark> {
    let file = program.canonicalize().ok()?;
    let place = whole(&file)?;
    (!is_seen(place)).then(|| {
        (
            "command".to_owned(),
            format!(
                "the server does not see the packages that `{}` is one of",
                program.display()
            ),
            format!("add `\"{}\"` to `read-only` in [sandbox]", place.display()),
        )
    })
}

/// The directory that all packages of npm's lie below which a file of one of them needs.
fn whole(path: &Path) -> Option<&Path> {
    let mut above = path.ancestors();
    let outermost = above
        .by_ref()
        .filter(|place| place.ends_with("node_modules"))
        .last();
    outermost?.parent()
}

/// The file that an argument names, if it names one. `before` stands before it.
fn named<'a>(argument: &'a str, before: &str) -> Option<&'a Path> {
    if is_script_next(before) {
        // What it does with others is the shell's business; what it starts must be there.
        let mut words = argument.split_ascii_whitespace();
        let first = words.next().filter(|word| *word != "exec");
        let program = first.or_else(|| words.next())?;
        let is_plain = |c: char| c.is_alphanumeric() || "/._-+@,~".contains(c);
        return program.chars().all(is_plain).then(|| Path::new(program));
    }
    let path = match argument.split_once('=') {
        Some((_, path)) => path,
        None => argument,
    };
    let path = Path::new(path);
    // A text that begins with a slash is no file for that.
    let is_text = argument.contains(char::is_whitespace) && path.symlink_metadata().is_err();
    (!is_text).then_some(path)
}

/// Whether a shell takes what stands behind this option for a script: `-c`, `-ec`.
fn is_script_next(option: &str) -> bool {
    let letters = option
        .strip_prefix('-')
        .and_then(|rest| rest.strip_suffix('c'));
    letters.is_some_and(|letters| letters.bytes().all(|byte| byte.is_ascii_lowercase()))
}

fn shows(entry: &Entry, path: &Path) -> bool {
    match entry {
        Entry::Bind { at, .. }
        | Entry::Link { at, .. }
        | Entry::Scratch { at, .. }
        | Entry::Processes { at } => path.starts_with(at),
        Entry::File { at, .. } | Entry::Secret { at, .. } => path == at,
        Entry::Directory { .. } => false,
    }
}

/// Whether a server finds at `path` what this host has there, and cannot make it itself.
fn is_of_host(entry: &Entry, path: &Path) -> bool {
    matches!(entry, Entry::Bind { at, from, access: Access::ReadOnly, .. } if at == from && path.starts_with(at))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::{
        cli::below,
        config::{self, OwnerRule, ServerName},
    };

    /// The file alone would be shown, and the server would end at its first import.
    #[test]
    fn of_npms_packages_the_directory_of_all_is_to_be_shown() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let modules = root.join("mcp/node_modules");
        let main = modules.join("@x/server/dist/index.js");
        fs::create_dir_all(main.parent().unwrap()).unwrap();
        fs::create_dir_all(modules.join(".bin")).unwrap();
        fs::write(&main, "").unwrap();
        let linked = modules.join(".bin/server");
        symlink(&main, &linked).unwrap();
        let home = format!("add `{:?}` to `read-only`", root.join("mcp"));
        for program in [&main, &linked] {
            let (_, _, help) = package(program, |_| false).unwrap();
            assert!(help.starts_with(&home), "{help}");
            assert_eq!(package(program, |path| path.starts_with(&root)), None);
        }
        let (_, _, help) = unseen("command".to_owned(), &main);
        assert!(help.contains(&home), "{help}");
        assert_eq!(package(Path::new("/bin/sh"), |_| false), None);
    }

    #[test]
    fn a_file_of_the_gateways_below_a_home_is_warned_of_and_so_is_a_variable_that_names_what_is_not_shown()
     {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc/thv/servers");
        fs::create_dir_all(&etc).unwrap();
        fs::create_dir_all(root.path().join("home")).unwrap();
        fs::write(root.path().join("home/x.pem"), "").unwrap();
        let text = "resource = \"https://h/x\"\nauthz.allow = \"authenticated\"\ncommand = [\"/bin/sh\"]\n\
                    env.A = \"/etc/shadow\"\nenv.B = \"/usr/bin\"\nenv.C = \"/none/such\"\nenv.D = \"/\"\n\
                    [tls]\ncertificate = \"/home/x.pem\"\nkey = \"/etc/key.pem\"\n\
                    [[auth.issuer]]\nissuer = \"https://i.example\"\naudience = \"a\"\n";
        fs::write(etc.join("x.toml"), text).unwrap();
        let name = ServerName::parse("x").unwrap();
        let config = config::load(root.path(), &name, OwnerRule::RootOrCaller).unwrap();
        let keys = || {
            let found = remarks(&config)
                .into_iter()
                .chain(below_homes(root.path(), &config));
            found.map(|(key, _, _)| key).collect::<Vec<_>>()
        };
        assert_eq!(keys(), ["env.A", "tls.certificate"]);
        let open = "[Service]\nProtectHome=no\n";
        unit::write_drop_in(root.path(), "thv@x.service", "x.conf", open).unwrap();
        assert_eq!(keys(), ["env.A"]);
    }

    /// It is a problem to `thv check`, and refuses a reload: what works is none.
    #[test]
    fn a_file_that_a_drop_in_shows_to_the_gateway_is_not_warned_of_and_one_that_it_hides_is() {
        for (place, line, is_shown) in [
            ("/tmp/certs", "BindReadOnlyPaths=/tmp/certs", true),
            (
                "/var/tmp/certs",
                "BindPaths=/var/tmp/certs:/var/tmp/certs:rbind",
                true,
            ),
            (
                "/tmp/certs",
                "BindReadOnlyPaths=/etc/ssl/x:/tmp/certs",
                true,
            ),
            (
                "/tmp/certs",
                "BindReadOnlyPaths=/tmp/certs:/etc/ssl/x",
                false,
            ),
            ("/tmp/certs", "BindReadOnlyPaths=/tmp/other", false),
            ("/tmp/certs", "BindReadOnlyPaths=\"/tmp/certs\"", true),
            (
                "/tmp/certs",
                "ExecStartPre=/usr/bin/cp -r /etc/ssl/x /tmp/certs",
                true,
            ),
            // The unit's user is dynamic, and that makes it private.
            ("/tmp/certs", "PrivateTmp=no", false),
            ("/tmp/certs", "PrivateTmp=no\nDynamicUser=no", true),
            ("/tmp/certs", "ProtectHome=no", false),
            (
                "/home/a",
                "ProtectHome=tmpfs\nBindReadOnlyPaths=/home/a",
                true,
            ),
            ("/home/a", "ProtectHome=tmpfs", false),
            ("/home/a", "ProtectHome=yes", false),
            ("/home/a", "ProtectHome=1\nBindPaths=/home/a", false),
            ("/home/a", "ProtectHome=read-only", true),
            ("/home/a", "ProtectHome = off", true),
            ("/home/a", "PrivateTmp=no", false),
        ] {
            let root = tempfile::tempdir().unwrap();
            let etc = root.path().join("etc/thv/servers");
            fs::create_dir_all(&etc).unwrap();
            let certificate = below(root.path(), place).join("x.pem");
            fs::create_dir_all(certificate.parent().unwrap()).unwrap();
            fs::write(&certificate, "").unwrap();
            let text = format!(
                "resource = \"https://h/x\"\nauthz.allow = \"authenticated\"\ncommand = [\"/bin/sh\"]\n\
                 [tls]\ncertificate = \"{place}/x.pem\"\nkey = \"/etc/key.pem\"\n\
                 [[auth.issuer]]\nissuer = \"https://i.example\"\naudience = \"a\"\n"
            );
            fs::write(etc.join("x.toml"), text).unwrap();
            let drop_in = format!("[Service]\n{line}\n");
            unit::write_drop_in(root.path(), "thv@x.service", "x.conf", &drop_in).unwrap();
            let name = ServerName::parse("x").unwrap();
            let config = config::load(root.path(), &name, OwnerRule::RootOrCaller).unwrap();
            let found = below_homes(root.path(), &config);
            assert_eq!(found.is_empty(), is_shown, "{place}: {line}: {found:?}");
        }
    }
}

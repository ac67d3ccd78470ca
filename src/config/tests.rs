//! Directories in, expectations out: each `tests/trees/config-*` is a root, and its
//! `expected.txt` says what loading every server of it gives.
//!
//! `THV_BLESS=1 cargo test config` writes the files anew; read the difference.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use proptest::prelude::*;

use super::{fragment::Fragment, sources::Reach, table::Document, *};

#[test]
fn every_tree_loads_as_its_expectation_says() {
    let trees = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/trees");
    let mut names: Vec<_> = fs::read_dir(&trees)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.retain(|path| {
        path.file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .starts_with("config-")
    });
    names.sort();
    assert!(
        names.len() >= 4,
        "the trees are missing from {}",
        trees.display()
    );
    let mut differing = Vec::new();
    for tree in names {
        let root = planted(&tree);
        let got = describe(root.path());
        let expected = tree.join("expected.txt");
        if std::env::var_os("THV_BLESS").is_some() {
            fs::write(&expected, &got).unwrap();
        }
        if got != fs::read_to_string(&expected).unwrap_or_default() {
            differing.push(format!("{}:\n{got}", expected.display()));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

/// thv.toml(5) promises defaults: each, written out, changes nothing.
#[test]
fn the_defaults_of_the_manual_are_the_defaults() {
    let server = "command = [\"/bin/sh\"]\nresource = \"https://h/x\"\nauthz.allow = \"authenticated\"\nauth.mode = \"none\"\n";
    let limits = |more: &str| {
        let text = format!("{server}[limits]\n{more}\n");
        let root = planted_files(&[("etc/thv/servers/x.toml", &text)]);
        let config = load(root.path(), &name("x"), OwnerRule::RootOrCaller).unwrap();
        format!("{:?}", config.limits)
    };
    let default = limits("");
    let page = include_str!("../../man/thv.toml.5");
    let (_, section) = page.split_once(".Sh [limits]\n").unwrap();
    let (section, _) = section.split_once("\n.Sh ").unwrap();
    let mut found = 0;
    for item in section.split("\n.It Cm ").skip(1) {
        let (key, text) = item.split_once('\n').unwrap();
        let text = text.replace("\\(dq", "\"").replace("\n.Ql ", " ");
        let Some((_, rest)) = text.split_once("default ") else {
            continue;
        };
        let value = rest
            .lines()
            .next()
            .unwrap()
            .trim_end_matches([' ', '.', ',']);
        let value = value.split([',', ' ']).next().unwrap();
        // `half of …` is no value.
        if value.starts_with(|first: char| first == '"' || first.is_ascii_digit()) {
            found += 1;
            assert_eq!(
                limits(&format!("{key} = {value}")),
                default,
                "{key} = {value}"
            );
        }
    }
    assert!(found >= 14, "{found} defaults were found in the manual");
}

#[test]
fn a_missing_server_is_a_problem_that_names_the_file() {
    let root = planted_files(&[("etc/thv/thv.toml", "")]);
    let problems = load(root.path(), &name("x"), OwnerRule::RootOrCaller).unwrap_err();
    assert_eq!(
        *problems.first().file,
        *root.path().join("etc/thv/servers/x.toml")
    );
    assert!(servers(root.path()).is_empty());
    // Whoever has mistyped a name is told which there are.
    let file = |name: &str| (format!("etc/thv/servers/{name}.toml"), "");
    let (github, files) = (file("github"), file("files"));
    let root = planted_files(&[(&github.0, github.1), (&files.0, files.1)]);
    for (typed, said) in [
        ("githb", "did you mean `github`?"),
        ("x", "configured are: files, github"),
    ] {
        let problems = load(root.path(), &name(typed), OwnerRule::RootOrCaller).unwrap_err();
        let help = &problems.first().help;
        assert!(help.contains(said), "{help}");
    }
    // A link to nowhere has the right name.
    std::os::unix::fs::symlink("nowhere", root.path().join("etc/thv/servers/gone.toml")).unwrap();
    let problems = load(root.path(), &name("gone"), OwnerRule::RootOrCaller).unwrap_err();
    let help = &problems.first().help;
    assert!(!help.contains("`gone`?"), "{help}");
}

/// inc-25: who can write the configuration can run commands, so only its owner may.
#[test]
fn the_owner_rule_holds_for_every_file_that_is_read() {
    let files = [
        ("etc/thv/thv.toml", "[limits]\ntasks = 5\n"),
        ("etc/thv/thv.toml.d/a.toml", ""),
        (
            "etc/thv/servers/x.toml",
            &minimal("policies = [\"/etc/thv/x.cedar\"]"),
        ),
        ("etc/thv/servers/x.toml.d/a.toml", ""),
        ("etc/thv/x.cedar", "permit(principal, action, resource);"),
    ];
    let root = planted_files(&files);
    let get = || load(root.path(), &name("x"), OwnerRule::RootOrCaller);
    get().unwrap();
    for (path, _) in files {
        let path = root.path().join(path);
        chmod(&path, 0o666);
        let problems = get().unwrap_err();
        assert!(
            problems.to_string().contains("can be written by others"),
            "{problems}"
        );
        assert!(
            problems.to_string().contains(path.to_str().unwrap()),
            "{problems}"
        );
        chmod(&path, 0o644);
    }
    for directory in [
        "etc/thv/thv.toml.d",
        "etc/thv/servers/x.toml.d",
        "etc/thv/servers",
        "etc/thv",
    ] {
        let path = root.path().join(directory);
        chmod(&path, 0o777);
        assert!(
            get()
                .unwrap_err()
                .to_string()
                .contains("can be written by others"),
            "{directory}"
        );
        chmod(&path, 0o755);
    }
    get().unwrap();
}

#[test]
fn the_digest_follows_every_byte_that_is_read_and_nothing_else() {
    let root = planted_files(&[
        (
            "etc/thv/servers/x.toml",
            &minimal("policies = [\"/etc/thv/x.cedar\"]"),
        ),
        ("etc/thv/x.cedar", "permit(principal, action, resource);"),
    ]);
    let digest = || {
        load(root.path(), &name("x"), OwnerRule::RootOrCaller)
            .unwrap()
            .digest
    };
    let first = digest();
    assert_eq!((first.len(), digest()), (64, first.clone()));
    plant(root.path(), "etc/thv/servers/y.toml", "nothing = 1");
    assert_eq!(digest(), first);
    plant(
        root.path(),
        "etc/thv/x.cedar",
        "permit(principal, action, resource); ",
    );
    let second = digest();
    assert_ne!(second, first);
    plant(root.path(), "etc/thv/thv.toml", "");
    assert_ne!(digest(), second);
}

#[test]
fn a_stamp_differs_when_a_file_appears_changes_or_goes() {
    let root = planted_files(&[(
        "etc/thv/servers/x.toml",
        &minimal("policies = [\"/etc/thv/x.cedar\"]"),
    )]);
    let now = || stamp(root.path(), &name("x"), OwnerRule::RootOrCaller);
    let mut last = now();
    assert_eq!(now(), last);
    let mut changed = |what: &str| {
        let now = now();
        assert_ne!(now, last, "{what}");
        last = now;
    };
    plant(
        root.path(),
        "etc/thv/x.cedar",
        "permit(principal, action, resource);",
    );
    changed("a missing policy appears");
    plant(root.path(), "etc/thv/servers/x.toml.d/a.toml", "");
    changed("a drop-in appears");
    plant(root.path(), "etc/thv/servers/x.toml.d/a.toml", "[limits]");
    changed("a drop-in changes");
    chmod(&root.path().join("etc/thv/x.cedar"), 0o600);
    changed("a policy's mode changes");
    fs::remove_file(root.path().join("etc/thv/servers/x.toml.d/a.toml")).unwrap();
    changed("a drop-in goes");
    fs::remove_file(root.path().join("etc/thv/servers/x.toml")).unwrap();
    changed("the server goes");
}

/// What is refused there may be a directory above, or a link: whoever mends it is noticed.
#[test]
fn a_stamp_differs_when_what_a_load_refuses_is_mended() {
    let text = minimal("allow = \"authenticated\"");
    let root = planted_files(&[("etc/thv/servers/x.toml", &text)]);
    let mode = |mode| {
        chmod(&root.path().join("etc/thv/servers"), mode);
        stamp(root.path(), &name("x"), OwnerRule::RootOrCaller)
    };
    let refused = mode(0o777);
    assert_eq!(mode(0o777), refused);
    assert_ne!(mode(0o755), refused);
}

#[test]
fn a_name_that_no_unit_can_have_is_reported_not_listed() {
    let root = planted_files(&[
        ("etc/thv/servers/ok.toml", ""),
        ("etc/thv/servers/not-ok.toml", ""),
        ("etc/thv/servers/Not_Ok.toml", ""),
        ("etc/thv/servers/GitHub.toml", ""),
        ("etc/thv/servers/My Server.toml", ""),
        ("etc/thv/servers/late.TOML", ""),
        ("etc/thv/servers/gïthub.toml", ""),
        ("etc/thv/servers/ok.toml.bak", ""),
    ]);
    assert_eq!(servers(root.path()), [name("not-ok"), name("ok")]);
    let problems = misnamed(root.path());
    let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
    let told = told.join("\n");
    assert_eq!(problems.len(), 5, "{told}");
    let top = root.path().join("etc/thv/servers").display().to_string();
    for cure in [
        format!("run `mv -n {top}/GitHub.toml {top}/github.toml`"),
        format!("`{top}/not-ok.toml` is there already"),
        format!("run `mv -n {top}/late.TOML {top}/late.toml`"),
        format!("run `mv -n '{top}/My Server.toml' {top}/my-server.toml`"),
        "rename the file".to_owned(),
    ] {
        assert!(told.contains(&cure), "{cure}: {told}");
    }
}

#[test]
fn a_servers_file_that_lies_elsewhere_is_told_with_the_command() {
    let root = planted_files(&[("etc/thv/thv.toml", ""), ("etc/thv/servers/ok.toml", "")]);
    let told = |server: &str| {
        let problems = load(root.path(), &name(server), OwnerRule::RootOrCaller).unwrap_err();
        problems.first().to_string()
    };
    assert!(!told("thv").contains("`mv"), "{}", told("thv"));
    for place in ["servers/x", "servers.d/x.toml", "x.toml"] {
        let file = root.path().join("etc/thv").join(place);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "").unwrap();
        let right = root.path().join("etc/thv/servers/x.toml");
        let cure = format!("`mv -n {} {}`", file.display(), right.display());
        assert!(told("x").contains(&cure), "{}", told("x"));
    }
}

/// Keys and authorities are named by the configuration: absent ones are problems there.
#[test]
fn files_that_the_configuration_names_must_be_there() {
    let text = "command = [\"/bin/true\"]\nresource = \"https://h/x\"\n[[auth.issuer]]\nissuer = \"https://i\"\n\
                audience = \"a\"\njwks-file = \"/etc/thv/keys.json\"\nca-file = \"/etc/thv/ca.pem\"\n\
                [authz]\nallow = \"authenticated\"\n";
    let root = planted_files(&[("etc/thv/servers/x.toml", text)]);
    let problems = load(root.path(), &name("x"), OwnerRule::RootOrCaller).unwrap_err();
    let keys: Vec<_> = problems
        .iter()
        .map(|problem| (problem.line, problem.key.as_str()))
        .collect();
    assert_eq!(
        keys,
        [
            (6, "auth.issuer[0].jwks-file"),
            (7, "auth.issuer[0].ca-file")
        ]
    );
    plant(root.path(), "etc/thv/keys.json", "{}");
    plant(root.path(), "etc/thv/ca.pem", "");
    let config = load(root.path(), &name("x"), OwnerRule::RootOrCaller).unwrap();
    let Auth::Oidc(issuers) = config.auth else {
        panic!("an issuer is configured")
    };
    assert_eq!(
        issuers[0].keys,
        KeySource::File(root.path().join("etc/thv/keys.json"))
    );
    assert!(config.files.contains(&root.path().join("etc/thv/ca.pem")));
}

proptest! {
    #[test]
    fn no_text_panics_and_every_problem_is_one_line(text in prop::collection::vec(
        prop::sample::select(vec![
            "command", "resource", "auth", "issuer", "[[auth.issuer]]", "[auth]", "[limits]", "[env]", "env", ".", " = ",
            "\n", "[", "]", "{", "}", "\"", "'", "\"\"\"", ",", "1", "-0x1F", "true", "1979-05-27", "\\u0000", "\u{1b}",
            "\"a\\nb\" = 1", "ä", "#", "memory", "leeway", "\"5min\"", "hosts", "inf",
        ]),
        0..40,
    )) {
        let text = text.concat();
        let document = Document::new(Path::new("/f"), Reach::Server, &text);
        let read = document.read(|table| Fragment::read(table, Fragment::default()));
        let problems = document.into_problems();
        prop_assert!(read.is_some() || !problems.is_empty());
        for problem in problems {
            let line = problem.to_string();
            prop_assert!(line.chars().all(|c| !c.is_control()), "{line:?}");
            prop_assert!(problem.line as usize <= text.lines().count().max(1) + 1);
        }
    }
}

fn minimal(authz: &str) -> String {
    format!(
        "command = [\"/bin/true\"]\nresource = \"https://h/x\"\n[[auth.issuer]]\nissuer = \"https://i\"\naudience = \"a\"\n\
         [authz]\n{authz}\n"
    )
}

fn name(text: &str) -> ServerName {
    ServerName::parse(text).unwrap()
}

/// What loading each server below `root` gives, with `root` itself cut out.
fn describe(root: &Path) -> String {
    let mut out = String::new();
    for server in servers(root) {
        writeln!(out, "== {server}").unwrap();
        match load(root, &server, OwnerRule::RootOrCaller) {
            Ok(config) => summarize(&mut out, &config),
            Err(problems) => writeln!(out, "{problems}").unwrap(),
        }
    }
    out.replace(&format!("{}/", root.display()), "/")
}

fn summarize(out: &mut String, config: &Config) {
    let Config {
        server: _,
        digest: _,
        files,
        transport,
        command,
        image,
        arguments,
        engine,
        registries,
        resource,
        hosts,
        origins,
        tls,
        proxies,
        legacy_sse,
        any_tool_name,
        auth,
        authz,
        sandbox,
        scope,
        warm,
        pass_identity,
        limits,
        env,
    } = config;
    writeln!(out, "files {files:#?}").unwrap();
    if !registries.is_empty() {
        writeln!(out, "{registries:#?}").unwrap();
    }
    if let Some(image) = image {
        writeln!(out, "{image:#?} {arguments:?} {engine:?}").unwrap();
    }
    if let Some(tls) = tls {
        writeln!(out, "{tls:?}").unwrap();
    }
    if let Some(proxies) = proxies {
        writeln!(out, "{proxies:?}").unwrap();
    }
    if *legacy_sse {
        writeln!(out, "legacy-sse").unwrap();
    }
    if *any_tool_name {
        writeln!(out, "any-tool-name").unwrap();
    }
    if *transport != Transport::Stdio {
        writeln!(out, "{transport:#?}").unwrap();
    }
    writeln!(
        out,
        "command {command:?}\n{resource:?}\nhosts {hosts:?}\norigins {origins:?}\n{auth:#?}"
    )
    .unwrap();
    match authz {
        Authz::Authenticated => writeln!(out, "everybody who is authenticated").unwrap(),
        Authz::Policies(files) => {
            for file in files {
                writeln!(out, "policy {} {:?}", file.path.display(), file.text).unwrap();
            }
        }
    }
    writeln!(
        out,
        "scope {} warm {warm} pass-identity {pass_identity}\n{sandbox:?}\n{limits:#?}\nenv {env:?}",
        scope.name()
    )
    .unwrap();
}

/// A copy of a tree with the modes that an installation has, whatever the checkout's are.
fn planted(tree: &Path) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let mut ahead = vec![PathBuf::new()];
    while let Some(directory) = ahead.pop() {
        for entry in fs::read_dir(tree.join(&directory)).unwrap() {
            let entry = entry.unwrap();
            let path = directory.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                ahead.push(path);
            } else {
                plant(
                    root.path(),
                    path.to_str().unwrap(),
                    &fs::read_to_string(entry.path()).unwrap(),
                );
            }
        }
    }
    root
}

fn planted_files(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        plant(root.path(), path, text);
    }
    root
}

fn plant(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    let parent = path.parent().unwrap();
    fs::create_dir_all(parent).unwrap();
    let mut directory = parent;
    while directory != root {
        chmod(directory, 0o755);
        directory = directory.parent().unwrap();
    }
    fs::write(&path, text).unwrap();
    chmod(&path, 0o644);
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

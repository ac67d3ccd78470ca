//! What can drift is a test: the house against its own rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use clap::CommandFactory;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every file below `dir` whose name ends in one of `ends`.
fn files(dir: &str, ends: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![root().join(dir)];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "node_modules" && name != "target"
            {
                left.push(path);
            } else if ends.iter().any(|end| name.ends_with(end)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}

/// Whether a file's `mod` line says that it is compiled for tests alone.
fn is_test_module(file: &Path) -> bool {
    let (Some(dir), Some(stem)) = (file.parent(), file.file_stem()) else {
        return false;
    };
    let parent = fs::read_to_string(dir.join("mod.rs")).unwrap_or_default();
    parent.contains(&format!("#[cfg(test)]\nmod {};", stem.to_string_lossy()))
        // A room's helpers may be several files.
        || (dir.join("mod.rs").exists() && is_test_module(dir))
}

/// The numbers of cases in a text: `tok-24`, `mcp-L9`, and ranges `tok-24…30` (`to` in Rust comments: `tok-24..=30`).
fn cases_in(text: &str) -> BTreeSet<String> {
    let families = [
        "tok-", "h1-", "conn-", "json-", "sse-", "probe-", "fault-", "inc-", "cedar-", "mcp-T",
        "mcp-L", "mcp-O", "mcp-M",
    ];
    let mut found = BTreeSet::new();
    for family in families {
        for (at, _) in text.match_indices(family) {
            if text[..at]
                .chars()
                .next_back()
                .is_some_and(|c| c.is_alphanumeric() || c == '-')
            {
                continue;
            }
            let rest = &text[at + family.len()..];
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            let Ok(first) = digits.parse::<u32>() else {
                continue;
            };
            let after = &rest[digits.len()..];
            let last = ["…", "..="]
                .iter()
                .find_map(|to| after.strip_prefix(to))
                .and_then(|after| {
                    after
                        .chars()
                        .take_while(char::is_ascii_digit)
                        .collect::<String>()
                        .parse::<u32>()
                        .ok()
                });
            found.extend((first..=last.unwrap_or(first)).map(|number| format!("{family}{number}")));
        }
    }
    found
}

#[test]
fn every_numbered_case_has_a_test_or_a_reason() {
    let mut wanted = BTreeMap::new();
    for list in files("tests/cases", &[".md"]) {
        if list.ends_with("not-here.md") {
            continue;
        }
        // A case is introduced in bold: `- **tok-1** …`.
        let text = fs::read_to_string(&list).unwrap();
        for (at, _) in text.match_indices("**") {
            let rest = &text[at + 2..];
            let bold = rest
                .find("**")
                .map(|end| &rest[..end])
                .filter(|bold| bold.len() < 12);
            for case in bold.map(cases_in).unwrap_or_default() {
                wanted.insert(case, shown(&list));
            }
        }
    }
    assert!(wanted.len() > 300, "the case lists were not found");
    let mut tested = BTreeSet::new();
    for dir in ["src", "tests"] {
        for file in files(dir, &[".rs", ".mjs", ".py", ".sh", "run"]) {
            let text = fs::read_to_string(&file).unwrap_or_default();
            // In sources only the documentation of tests counts.
            let start = if dir == "src" {
                text.find("#[cfg(test)]").unwrap_or(text.len())
            } else {
                0
            };
            tested.extend(cases_in(if is_test_module(&file) {
                &text
            } else {
                &text[start..]
            }));
        }
    }
    // `- tok-1, tok-2: why`: what the reason names besides is not excused.
    let excused: BTreeSet<String> = read("tests/cases/not-here.md")
        .lines()
        .filter_map(|line| line.strip_prefix("- ")?.split_once(": "))
        .flat_map(|(cases, _)| cases_in(cases))
        .collect();
    let missing: Vec<_> = wanted
        .keys()
        .filter(|case| !tested.contains(*case) && !excused.contains(*case))
        .collect();
    assert!(
        missing.is_empty(),
        "no test and no reason in not-here.md: {missing:?}"
    );
    let both: Vec<_> = excused
        .iter()
        .filter(|case| tested.contains(*case))
        .collect();
    assert!(
        both.is_empty(),
        "tested, but still excused in not-here.md: {both:?}"
    );
    let unknown: Vec<_> = tested
        .iter()
        .chain(&excused)
        .filter(|case| !wanted.contains_key(*case))
        .collect();
    assert!(unknown.is_empty(), "no list has these cases: {unknown:?}");
}

#[test]
fn a_layer_uses_only_those_below_it() {
    // Each room, and what it may use. `sandbox` and `runner` start a process: they
    // may know nothing of tokens, HTTP or policies.
    let base = ["sys", "time", "aside", "scan", "json", "files"];
    let second = ["config", "telemetry", "systemd", "fetch", "frames"];
    let mut may: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut allow = |room: &'static str, rooms: &[&[&'static str]]| {
        may.insert(room, rooms.concat().into_iter().chain([room]).collect());
    };
    for room in base {
        allow(room, &[&base]);
    }
    for room in second {
        allow(room, &[&base, &second]);
    }
    for room in ["auth", "mcp", "sandbox"] {
        allow(room, &[&base, &second]);
    }
    allow("image", &[&base, &second, &["sandbox"]]);
    let values = ["auth", "mcp"];
    allow("audit", &[&base, &second, &values]);
    allow(
        "runner",
        &[&[
            "sys",
            "time",
            "files",
            "config",
            "systemd",
            "telemetry",
            "frames",
            "sandbox",
        ]],
    );
    for room in ["authz", "child", "egress"] {
        allow(room, &[&base, &second, &values, &["audit"]]);
    }
    let lower = ["auth", "mcp", "audit", "authz", "child", "egress"];
    allow("session", &[&base, &second, &lower]);
    allow("http", &[&base, &second, &lower, &["session", "pipeline"]]);
    allow("pipeline", &[&base, &second, &lower, &["session", "http"]]);
    let all = [
        "sandbox", "image", "runner", "session", "http", "pipeline", "daemon", "cli",
    ];
    allow("daemon", &[&base, &second, &lower, &all]);
    allow("cli", &[&base, &second, &lower, &all]);

    let mut wrong = Vec::new();
    for file in files("src", &[".rs"]) {
        // What a room's tests look at is nobody's dependency.
        if is_test_module(&file) {
            continue;
        }
        let path = shown(&file);
        let room = path
            .trim_start_matches("src/")
            .split(['/', '.'])
            .next()
            .unwrap_or_default()
            .to_owned();
        let Some(may) = may.get(room.as_str()) else {
            assert!(
                ["lib", "main"].contains(&room.as_str()),
                "`{path}` belongs to no layer: add it to the map in lib.rs and here"
            );
            continue;
        };
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let code: String = code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .collect::<Vec<_>>()
            .join("\n");
        let flat = code.split_whitespace().collect::<Vec<_>>().join(" ");
        for used in used_rooms(&flat) {
            if !may.contains(used.as_str()) && room != used {
                wrong.push(format!("{path} uses {used}"));
            }
        }
    }
    assert!(wrong.is_empty(), "against the layers: {wrong:#?}");
}

/// The rooms that `crate::…` names in code with single spaces: `crate::a::b` and `crate::{ a::…, b }`.
fn used_rooms(code: &str) -> BTreeSet<String> {
    let word = |text: &str| {
        text.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect::<String>()
    };
    let mut rooms = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(inner) = rest.strip_prefix('{') else {
            rooms.insert(word(rest));
            continue;
        };
        let (mut depth, mut start) = (0, true);
        for (at, c) in inner.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                ' ' => {}
                _ if start => {
                    rooms.insert(word(&inner[at..]));
                    start = false;
                }
                _ => {}
            }
        }
    }
    rooms.remove("");
    rooms
}

#[test]
fn unsafe_code_stands_in_sys_alone_and_says_why_it_is_safe() {
    for file in files("src", &[".rs"]) {
        let text = fs::read_to_string(&file).unwrap();
        let has = ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
            .iter()
            .any(|word| text.contains(word));
        assert!(
            !has || shown(&file).starts_with("src/sys/"),
            "unsafe code in {}",
            shown(&file)
        );
    }
}

#[test]
fn files_stay_short_enough_to_read() {
    let mut sizes = Vec::new();
    for file in files("src", &[".rs"]) {
        let text = fs::read_to_string(&file).unwrap();
        let lines = text
            .split("#[cfg(test)]")
            .next()
            .unwrap_or_default()
            .lines()
            .count();
        assert!(
            lines <= 500 || is_test_module(&file),
            "{} has {lines} lines without its tests",
            shown(&file)
        );
        sizes.push(lines);
    }
    sizes.sort_unstable();
    let median = sizes[sizes.len() / 2];
    assert!(median <= 200, "half of the files are over {median} lines");
}

#[test]
fn every_verb_and_every_flag_is_in_the_manual() {
    let manual = read("man/thv.1").replace("\\-", "-");
    for verb in thv::cli::Cli::command()
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set())
    {
        assert!(
            manual.contains(&format!("Cm {}", verb.get_name())),
            "`{}` is missing from man/thv.1",
            verb.get_name()
        );
        for nested in verb.get_subcommands() {
            assert!(
                manual.contains(&format!("Cm {}", nested.get_name())),
                "`{}` is missing from man/thv.1",
                nested.get_name()
            );
        }
        for flag in verb
            .get_arguments()
            .filter(|flag| !flag.is_hide_set())
            .filter_map(|flag| flag.get_long())
        {
            let known = flag == "help" || manual.contains(&format!("Fl -{flag}"));
            assert!(
                known,
                "`--{flag}` of `{}` is missing from man/thv.1",
                verb.get_name()
            );
        }
    }
}

#[test]
fn every_key_is_in_the_manual() {
    let manual = read("man/thv.toml.5").replace("\\-", "-");
    let mut keys = 0;
    for file in files("src/config", &[".rs"]) {
        let text = read(&file);
        for taking in ["take(", "over(", "table(", "needed("] {
            let keys_taken = text
                .split(taking)
                .skip(1)
                .filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next());
            for key in keys_taken {
                assert!(
                    manual.contains(key),
                    "`{key}` is missing from man/thv.toml.5"
                );
                keys += 1;
            }
        }
    }
    assert!(keys >= 80, "the keys were not found in src/config: {keys}");
}

#[test]
fn every_shipped_file_is_on_the_one_list() {
    let list = read("packaging/install");
    for dir in ["systemd", "man", "packaging/examples", "packaging/etc"] {
        for file in files(dir, &[""]) {
            let path = shown(&file);
            let folder = Path::new(&path)
                .parent()
                .map(|dir| format!("{}/*", dir.display()))
                .unwrap_or_default();
            assert!(
                list.contains(&path) || list.contains(&folder),
                "`{path}` is not in packaging/install, so no package has it"
            );
        }
    }
}

/// probe-26: a limit of 0 lets the kernel give a dump to a program all the same (core(5)).
#[test]
fn no_unit_dumps_core_to_a_file_or_to_a_program() {
    let units = files("systemd/system", &[".service"]);
    assert!(units.len() >= 4, "{units:?}");
    for unit in units {
        let text = read(&unit);
        let limit = text.lines().find(|line| line.starts_with("LimitCORE="));
        assert_eq!(limit, Some("LimitCORE=1"), "{}", shown(&unit));
    }
}

#[test]
fn every_journal_message_has_a_catalog_entry() {
    let catalog = read("systemd/catalog/thv.catalog");
    let entries: BTreeSet<_> = catalog
        .lines()
        .filter_map(|line| line.strip_prefix("-- "))
        .map(str::trim)
        .collect();
    let used: BTreeSet<String> = files("src/audit", &[".rs"])
        .iter()
        .flat_map(|file| {
            let text = fs::read_to_string(file).unwrap();
            text.split('"')
                .filter(|word| is_message_id(word))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(!used.is_empty());
    for id in &used {
        assert!(
            entries.contains(id.as_str()),
            "MESSAGE_ID {id} has no entry in systemd/catalog/thv.catalog"
        );
    }
    for id in entries {
        assert!(used.contains(id), "catalog entry {id} is sent by nobody");
    }
}

fn is_message_id(word: &str) -> bool {
    word.len() == 32
        && word
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[test]
fn the_shipped_examples_load() {
    use thv::config::{OwnerRule, ServerName, load};
    let dir = tempfile::tempdir().unwrap();
    let etc = dir.path().join("etc/thv");
    fs::create_dir_all(etc.join("servers")).unwrap();
    fs::create_dir_all(etc.join("policies")).unwrap();
    fs::copy(root().join("packaging/etc/thv.toml"), etc.join("thv.toml")).unwrap();
    let mut loaded = 0;
    for example in files("packaging/examples", &[".toml", ".cedar"]) {
        let place = if example.extension().is_some_and(|end| end == "toml") {
            "servers"
        } else {
            "policies"
        };
        fs::copy(&example, etc.join(place).join(example.file_name().unwrap())).unwrap();
    }
    for example in files("packaging/examples", &[".toml"]) {
        let name = ServerName::parse(&example.file_stem().unwrap().to_string_lossy()).unwrap();
        let config = load(dir.path(), &name, OwnerRule::RootOrCaller);
        let config = config.unwrap_or_else(|problems| panic!("{}:\n{problems}", shown(&example)));
        if let Err(problems) = thv::authz::Engine::build(&config.authz, &name) {
            panic!("{}: {problems:?}", shown(&example));
        }
        loaded += 1;
    }
    assert!(loaded > 0);
}

#[test]
fn the_manual_shows_providers_as_the_examples_do() {
    let manual = read("man/thv.toml.5");
    let providers = manual.split(".Sh PROVIDERS").nth(1).unwrap();
    let mut shown = 0;
    for block in providers.split(".Bd -literal\n").skip(1) {
        let block = block.split("\n.Ed").next().unwrap();
        let in_an_example = files("packaging/examples", &[".toml"])
            .iter()
            .any(|example| fs::read_to_string(example).unwrap().contains(block));
        assert!(in_an_example, "no example says:\n{block}");
        shown += 1;
    }
    assert!(shown > 5);
}

#[test]
fn manual_pages_give_no_warning() {
    let Ok(version) = Command::new("groff").arg("--version").output() else {
        println!("not checked: groff is not installed");
        return;
    };
    assert!(version.status.success());
    for page in files("man", &[".1", ".5", ".7", ".8"]) {
        let checked = Command::new("groff")
            .args(["-ww", "-z", "-mdoc", "-Tutf8"])
            .arg(&page)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&checked.stderr);
        assert!(
            checked.status.success() && said.is_empty(),
            "{}: {said}",
            shown(&page)
        );
    }
}

#[test]
fn the_repository_speaks_of_thv_alone() {
    // Put together here so that this file does not name them itself.
    let foreign = [
        ["/", "work/"].concat(),
        ["/", "farm/"].concat(),
        ["../", "shared"].concat(),
    ];
    for dir in ["src", "tests", "man", "systemd", "packaging", "benches"] {
        for file in files(
            dir,
            &[
                ".rs", ".md", ".1", ".5", ".7", ".8", ".toml", ".mjs", ".py", "run", "build", ".sh",
            ],
        ) {
            let text = fs::read_to_string(&file).unwrap_or_default();
            for word in &foreign {
                assert!(
                    !text.contains(word.as_str()),
                    "{} names {word}",
                    shown(&file)
                );
            }
        }
    }
}

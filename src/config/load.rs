//! Reads all files of one server and collects what is wrong with them.
//!
//! The entry points of `config`. Reads only below `root`, only what the owner
//! rule lets pass, and remembers every place it looked at.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;

use super::{
    Config, ServerName,
    fragment::Fragment,
    owner::{FileError, Files, OwnerRule},
    problem::{Place, Problem, Problems},
    resolve::resolve,
    sources::{self, Reach, Source},
    spelling::nearest,
    table::Document,
};

/// Reads the configuration of `name` below `root` (`/`, but for tests and the demo).
///
/// Paths of configuration (the layers, policies, `jwks-file`, `ca-file`) are
/// below `root` and come out as host paths; the command and the sandbox's paths
/// are the host's.
pub fn load(root: &Path, name: &ServerName, owner: OwnerRule) -> Result<Config, Problems> {
    load_stamped(root, name, owner).0
}

/// The same, and the state of the files before they were read: see [`stamp`].
pub fn load_stamped(
    root: &Path,
    name: &ServerName,
    owner: OwnerRule,
) -> (Result<Config, Problems>, Stamp) {
    let mut loader = Loader::new(root, owner);
    let config = loader.load(name);
    let stamp = Stamp {
        files: loader.looked_for,
        is_good: loader.problems.is_empty(),
    };
    let config = Problems::check(loader.problems).map(|()| {
        let mut config = config.expect("what is missing from a configuration is reported");
        config.digest = hex(loader.digest.finish().as_ref());
        config.files = stamp.files.iter().map(|(_, path)| path.clone()).collect();
        config
    });
    (config, stamp)
}

/// The servers that have a file, sorted. Files whose name is no server's name are left out: see [`misnamed`].
pub fn servers(root: &Path) -> Vec<ServerName> {
    server_files(root)
        .into_iter()
        .filter_map(|file| ServerName::parse(file.file_stem()?.to_str()?).ok())
        .collect()
}

/// Files below `servers/` that no server will ever read.
pub fn misnamed(root: &Path) -> Vec<Problem> {
    let ends_so = |ending: &str| ending.eq_ignore_ascii_case("toml");
    let problem = |file: PathBuf| {
        let stem = file.file_stem().and_then(|stem| stem.to_str());
        let (message, meant) = match stem.map(ServerName::parse) {
            Some(Ok(_)) if file.extension() == Some("toml".as_ref()) => return None,
            // On this host that is another ending.
            Some(Ok(name)) => ("a server's file ends with `.toml`".to_owned(), Some(name)),
            Some(Err(error)) => (error.to_string(), error.meant().cloned()),
            None => ("this is not a server's name".to_owned(), None),
        };
        let help = match meant.map(|name| file.with_file_name(format!("{name}.toml"))) {
            Some(other) if other.exists() => {
                format!("`{}` is there already: remove one of them", other.display())
            }
            Some(other) => format!("run `mv -n {} {}`", typed(&file), typed(&other)),
            None => "rename the file".to_owned(),
        };
        Some(Problem::of_file(&file, message, help))
    };
    files_of_servers(root, ends_so)
        .into_iter()
        .filter_map(problem)
        .collect()
}

/// A path as a shell takes it.
fn typed(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+,:@%".contains(c);
    match text.chars().all(is_plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

/// The state of every file that a load looks at: it differs when a new load could.
///
/// To compare with that of [`load_stamped`], by the same rule: it says what a load goes on to.
pub fn stamp(root: &Path, name: &ServerName, owner: OwnerRule) -> Stamp {
    load_stamped(root, name, owner).1
}

/// See [`stamp`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stamp {
    files: Vec<(Option<Mark>, PathBuf)>,
    /// What a load refuses may be a directory above, or a link, which has no mark.
    is_good: bool,
}

/// What changes when a file is edited, replaced, re-owned or made readable.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Mark {
    identity: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Mark {
    fn of(path: &Path) -> Option<Self> {
        let meta = fs::metadata(path).ok()?;
        Some(Self {
            identity: (meta.dev(), meta.ino()),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// One load in progress.
pub(super) struct Loader {
    files: Files,
    problems: Vec<Problem>,
    /// Each as it was before it was read.
    looked_for: Vec<(Option<Mark>, PathBuf)>,
    digest: digest::Context,
    /// A file could not be taken in, so that what seems missing may stand in it.
    blind: bool,
}

impl Loader {
    fn new(root: &Path, owner: OwnerRule) -> Self {
        Self {
            files: Files::new(root, owner),
            problems: Vec::new(),
            looked_for: Vec::new(),
            digest: digest::Context::new(&digest::SHA256),
            blind: false,
        }
    }

    fn load(&mut self, name: &ServerName) -> Option<Config> {
        let mut merged = Fragment::default();
        for source in sources::sources(name) {
            let (files, reach) = match source {
                Source::File(file, reach) => (vec![file], reach),
                Source::DropIns(directory, reach) => (self.list(&directory), reach),
            };
            for file in files {
                if let Some(text) = self.layer(&file) {
                    merged = self.read(&file, reach, &text, merged);
                }
            }
        }
        let server_file = sources::server_file(name);
        let on_host = self.files.below_root(&server_file);
        if !on_host.exists()
            && !self
                .problems
                .iter()
                .any(|problem| *problem.file == *on_host)
        {
            let top = self.files.below_root(Path::new("/"));
            let help = match elsewhere(&top, name) {
                Some(file) => format!("run `mv -n {} {}`", typed(&file), typed(&on_host)),
                None => format!(
                    "{}write it (thv.toml(5) has an example), then run `thv check {name}`",
                    likely(&servers(&top), name)
                ),
            };
            self.problems.push(Problem::of_file(
                &on_host,
                format!("there is no such file, so no server `{name}`"),
                help,
            ));
            return None;
        }
        if self.blind {
            return None;
        }
        let start = Place {
            line: 1,
            column: 1,
            ..Place::file(&on_host)
        };
        resolve(self, name, merged, &start)
    }

    /// The text of one file, if it is there and can be read.
    fn layer(&mut self, path: &Path) -> Option<String> {
        let on_host = self.files.below_root(path);
        self.look_for(&on_host);
        let bytes = match self.files.read(path, MAX_TOML) {
            Ok(bytes) => bytes,
            Err(FileError::Missing) => return None,
            Err(error) => {
                self.blind = true;
                self.report(Problem::of_file(&on_host, error.to_string(), error.help()));
                return None;
            }
        };
        self.count_in(path, &bytes);
        let text = String::from_utf8(bytes);
        if text.is_err() {
            self.blind = true;
            self.report(Problem::of_file(&on_host, "the file is not UTF-8", ""));
        }
        text.ok()
    }

    /// What it says over the lower layers; nothing that matters where it is no TOML.
    fn read(&mut self, path: &Path, reach: Reach, text: &str, lower: Fragment) -> Fragment {
        let document = Document::new(&self.files.below_root(path), reach, text);
        let merged = document.read(|table| Fragment::read(table, lower));
        self.blind |= merged.is_none();
        self.problems.extend(document.into_problems());
        merged.unwrap_or_default()
    }

    fn list(&mut self, directory: &Path) -> Vec<PathBuf> {
        let on_host = self.files.below_root(directory);
        self.look_for(&on_host);
        match self.files.list(directory, "toml") {
            Ok(files) => files,
            Err(FileError::Missing) => Vec::new(),
            Err(error) => {
                self.blind = true;
                self.report(Problem::of_file(&on_host, error.to_string(), error.help()));
                Vec::new()
            }
        }
    }

    /// A text file that `place` names: its path on this host and its text, which counts into the digest.
    pub(super) fn text(&mut self, path: &Path, place: &Place) -> Option<(PathBuf, String)> {
        let bytes = self.named(path, place)?;
        self.count_in(path, &bytes);
        match String::from_utf8(bytes) {
            Ok(text) => Some((self.files.below_root(path), text)),
            Err(_) => {
                self.report(
                    place.problem(format!("`{}`: the file is not UTF-8", path.display()), ""),
                );
                None
            }
        }
    }

    /// A file that `place` names and that others read later: its path on this host.
    ///
    /// Not in the digest: keys and authorities change while a server runs. That
    /// it may be opened by name again rests on its directories having passed.
    pub(super) fn vouch(&mut self, path: &Path, place: &Place) -> Option<PathBuf> {
        self.named(path, place).map(|_| self.files.below_root(path))
    }

    fn look_for(&mut self, on_host: &Path) {
        self.looked_for
            .push((Mark::of(on_host), on_host.to_owned()));
    }

    /// Where a path of configuration lies on this host.
    pub(super) fn on_host(&self, path: &Path) -> PathBuf {
        self.files.below_root(path)
    }

    pub(super) fn report(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    fn named(&mut self, path: &Path, place: &Place) -> Option<Vec<u8>> {
        let on_host = self.files.below_root(path);
        self.look_for(&on_host);
        self.files
            .read(path, MAX_NAMED)
            .map_err(|error| {
                let help = match error {
                    FileError::Missing => "write it, or correct the path".to_owned(),
                    _ => error.help(),
                };
                self.report(place.problem(format!("`{}`: {error}", on_host.display()), help));
            })
            .ok()
    }

    /// Lengths first, so that no two sets of files give the same bytes.
    fn count_in(&mut self, path: &Path, bytes: &[u8]) {
        for part in [path.as_os_str().as_encoded_bytes(), bytes] {
            self.digest.update(&(part.len() as u64).to_be_bytes());
            self.digest.update(part);
        }
    }
}

/// What somebody who has named a server that is none may have meant.
fn likely(servers: &[ServerName], name: &ServerName) -> String {
    // A link to nowhere has the name, too.
    let others = servers.iter().filter(|server| *server != name);
    let names: Vec<&str> = others.map(ServerName::as_str).collect();
    match nearest(name.as_str(), &names) {
        Some(near) => format!("did you mean `{near}`? Or "),
        None if names.is_empty() || names.len() > MAX_LISTED => String::new(),
        None => format!("configured are: {}; or ", names.join(", ")),
    }
}

/// A file that was likely meant to be the server's.
fn elsewhere(root: &Path, name: &ServerName) -> Option<PathBuf> {
    let places = [
        format!("etc/thv/{name}.toml"),
        format!("etc/thv/servers.d/{name}.toml"),
        format!("etc/thv/conf.d/{name}.toml"),
        format!("etc/thv/servers/{name}"),
        format!("etc/thv/servers/{name}.conf"),
        format!("etc/thv/servers/{name}.TOML"),
    ];
    // The defaults of the host are nobody's.
    let own = places.iter().filter(|place| *place != "etc/thv/thv.toml");
    own.map(|place| root.join(place))
        .find(|file| file.is_file())
}

fn server_files(root: &Path) -> Vec<PathBuf> {
    files_of_servers(root, |ending| ending == "toml")
}

fn files_of_servers(root: &Path, ends_so: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let directory = Files::new(root, OwnerRule::Root).below_root(Path::new(sources::SERVERS));
    let mut files: Vec<PathBuf> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|ending| ends_so(&ending.to_string_lossy()))
                && !path.is_dir()
        })
        .collect();
    files.sort();
    files
}

/// More names than these are a list that nobody reads.
const MAX_LISTED: usize = 10;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One TOML file.
const MAX_TOML: u64 = 1 << 20;

/// One file that the configuration names: policies, keys, authorities.
const MAX_NAMED: u64 = 4 << 20;

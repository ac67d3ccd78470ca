//! Images made here, good and bad, through the whole of [`pull`].

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde_json::json;
use tar::{EntryType, Header};
use tempfile::TempDir;

use super::{document::sha256 as sha, *};
use crate::config::{self, ImageName, OwnerRule, ServerName};

/// One entry of a layer: its kind, name, mode and content, or target.
type Entry<'a> = (EntryType, &'a str, u32, &'a str);

const FILE: EntryType = EntryType::Regular;
const DIRECTORY: EntryType = EntryType::Directory;
const SYMLINK: EntryType = EntryType::Symlink;
const LINK: EntryType = EntryType::Link;

/// Names go in as they are: a builder would refuse the ones that matter.
fn tar_of(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (kind, name, mode, text) in entries {
        let mut header = Header::new_gnu();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_mtime(1_000_000_000);
        let content = if *kind == FILE { text.as_bytes() } else { b"" };
        if matches!(*kind, SYMLINK | LINK) {
            header.as_mut_bytes()[157..157 + text.len()].copy_from_slice(text.as_bytes());
        }
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

fn configuration(layers: &[Vec<u8>]) -> Vec<u8> {
    let architecture = if cfg!(target_arch = "x86_64") {
        "amd64"
    } else {
        "arm64"
    };
    let ids: Vec<_> = layers.iter().map(|layer| sha(layer)).collect();
    json!({
        "architecture": architecture, "os": "linux",
        "config": { "Entrypoint": ["/server"], "Cmd": ["--stdio"], "Env": ["A=1", "PATH=/bin"], "WorkingDir": "/app" },
        "rootfs": { "type": "layers", "diff_ids": ids },
    })
    .to_string()
    .into_bytes()
}

/// What is put into an archive: names and bytes.
fn archive(parts: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in parts {
        let mut header = Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn docker(layers: &[Vec<u8>]) -> Vec<(String, Vec<u8>)> {
    let names: Vec<_> = (0..layers.len())
        .map(|n| format!("{n}/layer.tar"))
        .collect();
    let manifest = json!([{ "Config": "config.json", "RepoTags": ["it:1"], "Layers": names }]);
    let mut parts = vec![
        (
            "manifest.json".to_owned(),
            manifest.to_string().into_bytes(),
        ),
        ("config.json".to_owned(), configuration(layers)),
    ];
    parts.extend(names.into_iter().zip(layers.iter().cloned()));
    parts
}

fn oci(layers: &[Vec<u8>]) -> (Vec<(String, Vec<u8>)>, String) {
    let config = configuration(layers);
    let blob = |bytes: &[u8]| format!("blobs/{}", sha(bytes).replacen(':', "/", 1));
    let packed: Vec<_> = layers.iter().map(|layer| gzip(layer)).collect();
    let described: Vec<_> = packed
        .iter()
        .map(|layer| json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": sha(layer), "size": layer.len() }))
        .collect();
    let manifest = json!({ "schemaVersion": 2, "config": { "digest": sha(&config), "size": config.len() }, "layers": described })
        .to_string()
        .into_bytes();
    let index = json!({ "schemaVersion": 2, "manifests": [{ "digest": sha(&manifest), "size": manifest.len() }] });
    let digest = sha(&manifest);
    let mut parts = vec![
        (
            "oci-layout".to_owned(),
            br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
        ),
        ("index.json".to_owned(), index.to_string().into_bytes()),
        (blob(&config), config),
        (blob(&manifest), manifest),
    ];
    parts.extend(packed.into_iter().map(|layer| (blob(&layer), layer)));
    (parts, digest)
}

struct Place {
    files: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            files: tempfile::tempdir().unwrap(),
        }
    }

    fn store(&self) -> PathBuf {
        self.files.path().join("state/image")
    }

    fn pull(
        &self,
        kind: &str,
        parts: &[(String, Vec<u8>)],
        more: &str,
    ) -> Result<Installed, ImageError> {
        let path = self.files.path().join("image.tar");
        fs::write(&path, archive(parts)).unwrap();
        let servers = self.files.path().join("etc/thv/servers");
        fs::create_dir_all(&servers).unwrap();
        fs::write(
            servers.join("it.toml"),
            format!(
                "image = \"{kind}:{}{more}\"\nresource = \"http://127.0.0.1:1/mcp\"\n[auth]\nmode = \"none\"\n\
                 [authz]\nallow = \"authenticated\"\n",
                path.display()
            ),
        )
        .unwrap();
        let server = ServerName::parse("it").unwrap();
        let config = config::load(self.files.path(), &server, OwnerRule::RootOrCaller).unwrap();
        pull(&config, &self.store())
    }

    fn layers(&self, layers: &[&[Entry<'_>]]) -> Result<Installed, ImageError> {
        let layers: Vec<_> = layers.iter().map(|layer| tar_of(layer)).collect();
        self.pull("docker-archive", &docker(&layers), "")
    }
}

#[test]
fn layers_go_over_each_other_and_the_image_says_how_it_is_run() {
    let place = Place::new();
    let layers = [
        tar_of(&[
            (DIRECTORY, "bin/", 0o755, ""),
            (FILE, "bin/a", 0o4755, "one"),
            (FILE, "bin/gone", 0o644, ""),
            (DIRECTORY, "old/", 0o755, ""),
            (FILE, "old/x", 0o644, ""),
            (SYMLINK, "lib", 0o777, "/bin"),
            (FILE, "dev/null", 0o644, "not a device"),
        ]),
        tar_of(&[
            (FILE, "./bin/a", 0o755, "two"),
            (LINK, "bin/b", 0, "bin/a"),
            (FILE, "bin/.wh.gone", 0, ""),
            // Stands after what the same layer adds, and is about the lower ones all the same.
            (FILE, "old/new", 0o600, "kept"),
            (FILE, "old/.wh..wh..opq", 0, ""),
        ]),
    ];
    let (parts, digest) = oci(&layers);
    let installed = place
        .pull("oci-archive", &parts, &format!("@{digest}"))
        .unwrap();
    let root = &installed.root;
    let read = |path: &str| fs::read_to_string(root.join(path));
    assert_eq!(read("bin/a").unwrap(), "two");
    assert_eq!(read("bin/b").unwrap(), "two");
    assert!(read("bin/gone").is_err() && read("old/x").is_err());
    assert_eq!(read("old/new").unwrap(), "kept");
    assert_eq!(fs::read_link(root.join("lib")).unwrap(), Path::new("/bin"));
    assert!(read("dev/null").is_err() && read("bin/.wh.gone").is_err());
    assert!(read("etc/passwd").unwrap().contains("server:x:1000:"));
    assert!(root.join("app").is_dir() && root.join("etc/hosts").is_file());
    // probe-11: no setuid bit comes out of a layer.
    assert_eq!(
        fs::metadata(root.join("bin/a"))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777,
        0o755
    );
    let name = config::load(
        place.files.path(),
        &ServerName::parse("it").unwrap(),
        OwnerRule::RootOrCaller,
    );
    let name = name.unwrap().image.unwrap();
    let opened = Installed::open(&place.store(), &name).unwrap();
    assert_eq!(opened.entrypoint, ["/server"]);
    assert_eq!(opened.arguments, ["--stdio"]);
    assert_eq!(opened.env[0], ("A".to_owned(), "1".to_owned()));
    assert_eq!((opened.cwd, opened.digest), (PathBuf::from("/app"), digest));
    // Another name than what was pulled is not run.
    let other = ImageName {
        text: "oci-archive:/other.tar".to_owned(),
        ..name
    };
    assert!(
        Installed::open(&place.store(), &other)
            .unwrap_err()
            .reason
            .contains("thv pull")
    );
}

/// probe-8: nothing that a layer says leaves the tree (RUSTSEC-2026-0148).
#[test]
fn what_leads_out_of_the_image_is_refused() {
    let outside = tempfile::tempdir().unwrap();
    let out = outside.path().to_str().unwrap();
    let marker = outside.path().join("marker");
    fs::write(&marker, "untouched").unwrap();
    let marker_path = marker.to_str().unwrap();
    let cases: &[(&str, &[&[Entry<'_>]])] = &[
        ("leads out", &[&[(FILE, "../marker", 0o644, "x")]]),
        ("leads out", &[&[(FILE, "a/../../marker", 0o644, "x")]]),
        (
            "through a link",
            &[&[(SYMLINK, "a", 0, out), (FILE, "a/marker", 0o644, "x")]],
        ),
        (
            "through a link",
            &[&[(SYMLINK, "a", 0, out)], &[(FILE, "a/marker", 0o644, "x")]],
        ),
        (
            "through a link",
            &[&[(SYMLINK, "a", 0, "/"), (DIRECTORY, "a/b/", 0o755, "")]],
        ),
        ("hard link", &[&[(LINK, "a", 0, "../marker")]]),
        ("", &[&[(SYMLINK, "a", 0, out), (LINK, "b", 0, "a/marker")]]),
        ("", &[&[(LINK, "b", 0, marker_path)]]),
        (
            "hard link",
            &[&[(DIRECTORY, "d/", 0o755, ""), (LINK, "b", 0, "d")]],
        ),
        (
            "",
            &[&[(SYMLINK, "a", 0, out)], &[(FILE, "a/.wh.marker", 0, "")]],
        ),
        ("whiteout", &[&[(FILE, "a/.wh...", 0, "")]]),
        ("whiteout", &[&[(FILE, ".wh.", 0, "")]]),
        ("device", &[&[(EntryType::Block, "sda", 0o666, "")]]),
        ("device", &[&[(EntryType::Char, "null", 0o666, "")]]),
        ("pipe", &[&[(EntryType::Fifo, "p", 0o666, "")]]),
        ("", &[&[(EntryType::GNUSparse, "s", 0o666, "")]]),
    ];
    for (reason, layers) in cases {
        let place = Place::new();
        let error = place.layers(layers).unwrap_err().to_string();
        assert!(error.contains(reason), "{layers:?}: {error}");
        assert!(!place.store().join(Installed::CURRENT).exists());
        assert_eq!(
            fs::read_to_string(&marker).unwrap(),
            "untouched",
            "{layers:?}"
        );
        assert_eq!(
            fs::read_dir(outside.path()).unwrap().count(),
            1,
            "{layers:?}"
        );
    }
    // A link that leads out is only followed inside, where `/` is the image.
    let place = Place::new();
    let opaque = &[(SYMLINK, "a", 0, out)][..];
    place
        .layers(&[opaque, &[(FILE, "a/.wh..wh..opq", 0, "")]])
        .unwrap();
    assert!(marker.exists());
}

#[test]
fn what_is_not_what_its_digest_says_is_refused() {
    let layer = tar_of(&[(FILE, "a", 0o644, "a")]);
    let refused = |kind: &str, parts: &[(String, Vec<u8>)], more: &str| {
        let place = Place::new();
        let error = place.pull(kind, parts, more).unwrap_err().to_string();
        assert!(!place.store().join(Installed::CURRENT).exists(), "{error}");
        error
    };
    let (good, _) = oci(std::slice::from_ref(&layer));
    let pinned = format!("@sha256:{}", "0".repeat(64));
    assert!(refused("oci-archive", &good, &pinned).contains("promised"));
    assert!(
        refused(
            "docker-archive",
            &docker(std::slice::from_ref(&layer)),
            &pinned
        )
        .contains("promised")
    );
    for (index, what) in [(2, "document"), (3, "document")] {
        let mut parts = good.clone();
        parts[index].1.push(b' ');
        assert!(refused("oci-archive", &parts, "").contains(what));
    }
    let mut parts = docker(std::slice::from_ref(&layer));
    parts[2].1 = tar_of(&[(FILE, "a", 0o644, "b")]);
    assert!(refused("docker-archive", &parts, "").contains("layer"));
    let mut twice = docker(std::slice::from_ref(&layer));
    twice.push(twice[1].clone());
    assert!(refused("docker-archive", &twice, "").contains("twice"));
    let mut zstd = docker(std::slice::from_ref(&layer));
    zstd[2].1.splice(0..4, [0x28, 0xb5, 0x2f, 0xfd]);
    // It only begins like one.
    assert!(refused("docker-archive", &zstd, "").contains("the image's layer:"));
    let mut alien = docker(std::slice::from_ref(&layer));
    alien[1].1 = String::from_utf8(alien[1].1.clone())
        .unwrap()
        .replace("amd64", "s390x")
        .replace("arm64", "s390x")
        .into_bytes();
    assert!(refused("docker-archive", &alien, "").contains("s390x"));
    let mut missing = docker(&[layer]);
    missing.pop();
    assert!(refused("docker-archive", &missing, "").contains("no `0/layer.tar`"));
}

#[test]
fn a_pull_that_fails_leaves_the_image_before_and_a_good_one_replaces_it() {
    let place = Place::new();
    let first = place.layers(&[&[(FILE, "a", 0o644, "1")]]).unwrap();
    place.layers(&[&[(FILE, "../a", 0o644, "x")]]).unwrap_err();
    let current = || fs::canonicalize(place.store().join(Installed::CURRENT)).unwrap();
    assert_eq!(
        current().join(Installed::TREE),
        first.root.canonicalize().unwrap()
    );
    let second = place.layers(&[&[(FILE, "a", 0o644, "2")]]).unwrap();
    assert_eq!(
        current().join(Installed::TREE),
        second.root.canonicalize().unwrap()
    );
    assert!(first.root.exists(), "children may run it still");
    place.layers(&[&[(FILE, "a", 0o644, "3")]]).unwrap();
    assert!(!first.root.exists());
    // The same again.
    let again = place.layers(&[&[(FILE, "a", 0o644, "3")]]).unwrap();
    assert_eq!(fs::read_to_string(again.root.join("a")).unwrap(), "3");
    // A link in place of a mount point gives way.
    let place = Place::new();
    let linked = place
        .layers(&[&[
            (SYMLINK, "tmp", 0, "/etc"),
            (DIRECTORY, "etc/", 0o755, ""),
            (SYMLINK, "etc/hosts", 0, "/x"),
        ]])
        .unwrap();
    assert!(
        fs::symlink_metadata(linked.root.join("tmp"))
            .unwrap()
            .is_dir()
    );
    assert!(
        fs::symlink_metadata(linked.root.join("etc/hosts"))
            .unwrap()
            .is_file()
    );
}

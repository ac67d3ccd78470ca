//! A server that comes as a container image, run by our own sandbox.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use serde_json::{Value, json};

use crate::{
    house::{House, house, write_server},
    registry::{Registry, authority, sha256},
    sandbox::descendants,
};

const THV: &str = env!("CARGO_BIN_EXE_thv");

/// The demo's server and the libraries that it is linked to, as one layer; and how it is run.
pub fn demo() -> (Vec<u8>, Vec<u8>) {
    let mut layer = tar::Builder::new(Vec::new());
    layer.sparse(false);
    let linked = Command::new("ldd").arg(THV).output().unwrap();
    let linked = String::from_utf8(linked.stdout).unwrap();
    layer.append_path_with_name(THV, "opt/app/server").unwrap();
    for library in linked
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let inside = library.trim_start_matches('/');
        layer
            .append_path_with_name(fs::canonicalize(library).unwrap(), inside)
            .unwrap();
    }
    put(&mut layer, "etc/of-the-image", b"layered");
    let layer = layer.into_inner().unwrap();
    let configuration = configuration(&[sha256(&layer)]);
    (layer, configuration)
}

pub fn put(archive: &mut tar::Builder<impl std::io::Write>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, bytes).unwrap();
}

pub fn configuration(diff_ids: &[String]) -> Vec<u8> {
    // The program is found in PATH, inside.
    configuration_of(
        &json!({
            "Entrypoint": ["server"], "Cmd": ["demo-server"], "WorkingDir": "/opt/app",
            "Env": ["PATH=/nowhere:/opt/app", "OF_THE_IMAGE=1", "HOME=/root"],
        }),
        diff_ids,
    )
}

/// What an image says of how it is run.
pub fn configuration_of(run: &Value, diff_ids: &[String]) -> Vec<u8> {
    let architecture = if cfg!(target_arch = "x86_64") {
        "amd64"
    } else {
        "arm64"
    };
    json!({
        "architecture": architecture, "os": "linux",
        "config": run,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    })
    .to_string()
    .into_bytes()
}

/// An archive as `docker save` writes it.
fn save(into: &Path) {
    let (layer, configuration) = demo();
    save_as(into, &layer, &configuration);
}

/// An archive of one layer.
pub fn save_as(into: &Path, layer: &[u8], configuration: &[u8]) {
    let manifest = json!([{ "Config": "c.json", "RepoTags": ["it:1"], "Layers": ["l.tar"] }]);
    let mut archive = tar::Builder::new(fs::File::create(into).unwrap());
    put(
        &mut archive,
        "manifest.json",
        manifest.to_string().as_bytes(),
    );
    put(&mut archive, "c.json", configuration);
    put(&mut archive, "l.tar", layer);
    archive.finish().unwrap();
}

pub fn pull(root: &Path) {
    let state = root.join("var/lib/thv-runner/it");
    let pulled = Command::new(THV)
        .args([
            "--root".as_ref(),
            root.as_os_str(),
            "pull".as_ref(),
            "it".as_ref(),
            "--into".as_ref(),
            state.as_os_str(),
        ])
        .output()
        .unwrap();
    assert!(
        pulled.status.success(),
        "{}",
        String::from_utf8_lossy(&pulled.stderr)
    );
    assert!(String::from_utf8_lossy(&pulled.stdout).starts_with("sha256:"));
}

fn file(archive: &Path, more: &str) -> String {
    format!(
        "image = \"docker-archive:{}\"\nresource = \"http://{{address}}/mcp\"\n{more}\n[auth]\nmode = \"none\"\n\
         [authz]\nallow = \"authenticated\"\n[sandbox]\noptional = [\"cgroup\"]\n[env]\nGIVEN = \"yes\"\n",
        archive.display()
    )
}

async fn open(archive: &Path) -> House {
    house().file(&file(archive, "")).before(pull).open().await
}

/// The image's root, read-only, its own program, its own working directory: and no file of the host.
#[tokio::test]
async fn a_server_from_an_image_runs_in_the_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("image.tar");
    save(&archive);
    let house = open(&archive).await;
    let began = Instant::now();
    let caller = house.session("alice").await;
    println!("image to its first answer: {:?}", began.elapsed());
    let told = caller.call("look_around", json!({})).await.said();
    println!("{told}");
    let pid = descendants(house.runner_pid());
    let server = pid.last().unwrap();
    let inside = |path: &str| PathBuf::from(format!("/proc/{server}/root{path}"));
    let read = |path: &str| fs::read_to_string(inside(path)).unwrap_or_default();
    if nix::unistd::geteuid().is_root() {
        assert_eq!(read("/etc/of-the-image"), "layered");
        assert_eq!(read("/etc/hostname"), "it\n");
        assert!(!inside("/usr").exists() && !inside("/etc/shadow").exists());
        assert_eq!(
            fs::read_link(format!("/proc/{server}/cwd")).unwrap(),
            Path::new("/opt/app")
        );
        let environment = fs::read(format!("/proc/{server}/environ")).unwrap();
        let environment = String::from_utf8(environment).unwrap();
        for line in [
            "OF_THE_IMAGE=1",
            "GIVEN=yes",
            "HOME=/tmp",
            "PATH=/nowhere:/opt/app",
        ] {
            assert!(
                environment.split('\0').any(|found| found == line),
                "{line}: {environment}"
            );
        }
        let mounts = fs::read_to_string(format!("/proc/{server}/mountinfo")).unwrap();
        for place in ["/", "/dev", "/etc/hosts"] {
            let line = mounts
                .lines()
                .find(|line| line.split(' ').nth(4) == Some(place))
                .unwrap();
            assert!(
                line.split(' ').nth(5).unwrap().starts_with("ro,nosuid"),
                "{line}"
            );
        }
    }
    let status = fs::read_to_string(format!("/proc/{server}/status")).unwrap();
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000000000000000"] {
        assert!(status.contains(line), "{status}");
    }
}

/// probe-80: what is configured and not pulled is no child, with the command that helps.
#[tokio::test]
async fn an_image_that_is_not_pulled_is_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("image.tar");
    save(&archive);
    let house = house()
        .file(&file(&archive, "arguments = [\"x\"]"))
        .open()
        .await;
    let answer = house.caller("alice").initialize().await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["data"]["reason"]),
        (503, &Value::from("start-failed"))
    );
    let records = house.records.all().join("\n");
    assert!(
        records.contains("THV_LAYER=image") && records.contains("thv pull"),
        "{records}"
    );
}

/// A root with a server whose image is in `registry`, and what its tables say of that.
pub struct Puller {
    root: tempfile::TempDir,
}

/// Small layers, one of each packing, with enough in them to be cut.
struct Layers {
    configuration: Vec<u8>,
    packed: Vec<(&'static str, Vec<u8>)>,
}

fn layers() -> Layers {
    let one = |name: &str, bytes: &[u8]| {
        let mut layer = tar::Builder::new(Vec::new());
        put(&mut layer, name, bytes);
        layer.into_inner().unwrap()
    };
    // Not to be made smaller: what is cut is then known.
    let mut noise = vec![0; 64 << 10];
    aws_lc_rs::rand::fill(&mut noise).unwrap();
    let layers = [
        one("plain", b"plain"),
        one("gzip", &noise),
        one("zstd", b"zstd"),
    ];
    let configuration = configuration(&layers.each_ref().map(|layer| sha256(layer)));
    let [plain, gzip, zstd] = layers;
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packer, &gzip).unwrap();
    Layers {
        configuration,
        packed: vec![
            ("application/vnd.oci.image.layer.v1.tar", plain),
            (
                "application/vnd.oci.image.layer.v1.tar+gzip",
                packer.finish().unwrap(),
            ),
            (
                "application/vnd.oci.image.layer.v1.tar+zstd",
                ruzstd::encoding::compress_to_vec(
                    &zstd[..],
                    ruzstd::encoding::CompressionLevel::Fastest,
                ),
            ),
        ],
    }
}

impl Puller {
    pub fn new(image: &str, more: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/thv")).unwrap();
        fs::write(root.path().join("etc/thv/ca.pem"), authority()).unwrap();
        write_server(
            root.path(),
            &format!(
                "image = \"{image}\"\nresource = \"http://127.0.0.1:1/mcp\"\n{more}\n[auth]\nmode = \"none\"\n\
                 [authz]\nallow = \"authenticated\"\n"
            ),
        );
        Self { root }
    }

    /// What a registry at `host` is trusted by, and `more` of its table.
    fn from(registry: &Registry, image: &str, more: &str) -> Self {
        let host = registry.host();
        Self::new(
            &format!("{host}/{image}"),
            &format!("[registry.\"{host}\"]\nca-file = \"/etc/thv/ca.pem\"\n{more}\n"),
        )
    }

    pub fn state(&self) -> PathBuf {
        self.root.path().join("state")
    }

    /// What it printed, and what it said.
    pub async fn pull(
        &self,
        more: &[&str],
        credentials: Option<&Path>,
    ) -> (Option<String>, String) {
        let mut command = Command::new(THV);
        command.arg("--root").arg(self.root.path());
        command.args(["pull", "it", "--into"]).arg(self.state());
        command.args(more).env_remove("CREDENTIALS_DIRECTORY");
        if let Some(credentials) = credentials {
            command.env("CREDENTIALS_DIRECTORY", credentials);
        }
        let output = tokio::task::spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        (output.status.success().then_some(printed), said)
    }

    async fn fails(&self, with: &str) {
        let (printed, said) = self.pull(&[], None).await;
        assert!(printed.is_none() && said.contains(with), "{with}: {said}");
        assert!(!self.state().join("image/current").exists());
    }

    pub fn read(&self, path: &str) -> Vec<u8> {
        fs::read(self.state().join("image/current/rootfs").join(path)).unwrap()
    }
}

/// By tag, through an index, a token and a redirect, in every packing, checked and resumed.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_a_registry_is_fetched_and_unpacked() {
    let registry = Registry::open().await;
    let storage = Registry::open().await;
    let layers = layers();
    let (index, manifest) = registry.push("a/b", "1", &layers.configuration, &layers.packed);
    storage.push("a/b", "1", &layers.configuration, &layers.packed);
    let place = format!("https://{}", storage.host());
    registry.with(|state| {
        state.token_for = Some(String::new());
        state.blobs_at = Some(place);
    });
    // Twice in the middle of the blob, once in the head of the answer.
    storage.with(|state| state.cut = vec![20_000, 30_000, 10]);
    let puller = Puller::from(&registry, "a/b:1", "");
    let (printed, said) = puller.pull(&[], None).await;
    let printed = printed.unwrap_or_else(|| panic!("{said}"));
    assert!(printed.starts_with(&manifest), "{printed}");
    assert!(
        said.contains("part 1 of 4") && said.contains("was cut"),
        "{said}"
    );
    assert_eq!(puller.read("plain"), b"plain");
    assert_eq!(puller.read("zstd"), b"zstd");
    assert_eq!(puller.read("gzip").len(), 64 << 10);
    let asked = storage.asked();
    assert!(
        asked.iter().any(|asked| asked.contains("bytes=19")),
        "{asked:#?}"
    );
    // A token is for who asked for it.
    assert!(
        asked.iter().all(|asked| !asked.contains("Bearer")),
        "{asked:#?}"
    );
    let of_registry = registry.asked();
    assert!(
        of_registry
            .iter()
            .any(|asked| asked.contains("/token?service=it&scope=repository:a/b:pull")),
        "{of_registry:#?}"
    );
    // Again: only what may have changed is asked for.
    let (again, said) = puller.pull(&[], None).await;
    assert_eq!(again.as_ref(), Some(&printed), "{said}");
    assert_eq!(storage.asked().len(), asked.len());
    // By the digest of the index, and by that of the image in it.
    for digest in [&index, &manifest] {
        let pinned = Puller::from(&registry, &format!("a/b@{digest}"), "");
        let (printed, said) = pinned.pull(&[], None).await;
        assert!(printed.is_some(), "{said}");
    }
}

/// What is not what its digest says is nowhere, and neither is what says nothing of its size.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_registry_changes_is_refused() {
    let registry = Registry::open().await;
    let layers = layers();
    let push = || registry.push("a/b", "1", &layers.configuration, &layers.packed);
    let (index, manifest) = push();
    let layer = sha256(&layers.packed[1].1);
    let mut other = layers.packed[1].1.clone();
    other[100] ^= 1;
    let blob = Puller::from(&registry, "a/b:1", "");
    registry.with(|state| state.spoil(&layer, &other));
    blob.fails("is not what its digest says").await;
    other.push(0);
    registry.with(|state| state.spoil(&layer, &other));
    blob.fails("goes on after its").await;
    push();
    registry.with(|state| state.spoil(&manifest, b"{}"));
    blob.fails("is not what its digest says").await;
    push();
    registry.with(|state| state.spoil(&index, b"{}"));
    Puller::from(&registry, &format!("a/b@{index}"), "")
        .fails("is not what its digest says")
        .await;
    push();
    for (document, says) in [
        (json!({ "layers": [] }), "`config` is missing"),
        (json!({ "manifests": [] }), "0 images for this machine"),
        (
            json!({ "config": { "digest": layer }, "layers": [] }),
            "a part must say",
        ),
        (
            json!({ "config": { "digest": layer, "size": 1_u64 << 40 }, "layers": [] }),
            "a part must say",
        ),
        (
            json!({ "config": { "digest": "md5:x", "size": 1 }, "layers": [] }),
            "no sha256",
        ),
    ] {
        registry.with(|state| state.spoil("manifests/1", document.to_string().as_bytes()));
        blob.fails(says).await;
    }
    // What was there before stays what is run.
    push();
    let (printed, said) = blob.pull(&[], None).await;
    assert!(printed.is_some(), "{said}");
    registry.with(|state| state.spoil("manifests/1", b"{}"));
    assert!(blob.pull(&[], None).await.0.is_none());
    assert_eq!(blob.read("plain"), b"plain");
}

/// A registry without ranges, one that is not there, one that nobody vouches for, one that leads inside.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_has_its_moods() {
    let registry = Registry::open().await;
    let layers = layers();
    registry.push("a/b", "latest", &layers.configuration, &layers.packed);
    registry.with(|state| {
        state.no_ranges = true;
        state.cut = vec![20_000];
    });
    let puller = Puller::from(&registry, "a/b", "");
    let (printed, said) = puller.pull(&[], None).await;
    assert!(printed.is_some(), "{said}");
    assert_eq!(puller.read("gzip").len(), 64 << 10);
    Puller::from(&registry, "a/c", "")
        .fails("answered 404")
        .await;
    Puller::new(&format!("{}/a/b", registry.host()), "")
        .fails("certificate")
        .await;
    // Another name of loopback is another host, and no public one.
    let inside = format!("https://127.0.0.1:{}", registry.address.port());
    registry.with(|state| state.blobs_at = Some(inside));
    Puller::from(&registry, "a/b", "").fails("public").await;
    registry.with(|state| state.blobs_at = Some("http://localhost:1".to_owned()));
    Puller::from(&registry, "a/b", "").fails("redirects").await;
    // Round and round.
    let itself = format!("https://{}", registry.host());
    registry.with(|state| state.blobs_at = Some(itself));
    Puller::from(&registry, "a/b", "").fails("redirects").await;
}

/// A mirror stands in for the registry that the name says, and a login is shown to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_is_asked_in_place_of_the_registry() {
    let registry = Registry::open().await;
    let layers = layers();
    registry.push("hub/library/x", "2", &layers.configuration, &layers.packed);
    registry.with(|state| state.token_for = Some("me:secret".to_owned()));
    let table = format!(
        "[registry.\"docker.io\"]\nmirror = \"{}/hub\"\nca-file = \"/etc/thv/ca.pem\"\ncredential = \"login\"\n",
        registry.host()
    );
    let puller = Puller::new("docker.io/x:2", &table);
    puller.fails("`thv secret set --pull").await;
    let credentials = tempfile::tempdir().unwrap();
    fs::write(credentials.path().join("login"), "me:wrong\n").unwrap();
    let (printed, said) = puller.pull(&[], Some(credentials.path())).await;
    assert!(
        printed.is_none() && said.contains("the credential of"),
        "{said}"
    );
    fs::write(credentials.path().join("login"), "me:secret\n").unwrap();
    let (printed, said) = puller.pull(&[], Some(credentials.path())).await;
    assert!(printed.is_some(), "{said}");
    assert!(!said.contains("secret"), "{said}");
}

/// The two halves of a pull, as two units do them; unpacking alone asks nobody.
#[tokio::test(flavor = "multi_thread")]
async fn fetching_and_unpacking_are_two_things() {
    let registry = Registry::open().await;
    let layers = layers();
    registry.push("a/b", "latest", &layers.configuration, &layers.packed);
    let puller = Puller::from(&registry, "a/b", "");
    let (printed, said) = puller.pull(&["--only", "unpack"], None).await;
    assert!(printed.is_none() && said.contains("index.json"), "{said}");
    let (printed, said) = puller.pull(&["--only", "fetch"], None).await;
    assert_eq!(printed.as_deref(), Some(""), "{said}");
    assert!(!puller.state().join("image/current").exists());
    let asked = registry.asked().len();
    let (printed, said) = puller.pull(&["--only", "unpack"], None).await;
    assert!(printed.is_some(), "{said}");
    assert_eq!(registry.asked().len(), asked);
    // What was fetched under one name is not unpacked under another.
    let text = fs::read_to_string(puller.root.path().join("etc/thv/servers/it.toml")).unwrap();
    write_server(puller.root.path(), &text.replace("/a/b", "/a/c"));
    let (printed, said) = puller.pull(&["--only", "unpack"], None).await;
    assert!(
        printed.is_none() && said.contains("was not fetched"),
        "{said}"
    );
}

/// The same image by podman.
#[tokio::test]
async fn a_server_from_an_image_runs_by_podman() {
    let dir = tempfile::tempdir().unwrap();
    let archive = dir.path().join("image.tar");
    save(&archive);
    let house = house()
        .file(&file(&archive, "engine = \"podman\""))
        .before(pull)
        .open()
        .await;
    let began = Instant::now();
    let caller = house.session("alice").await;
    println!("image by podman to its first answer: {:?}", began.elapsed());
    let told = caller.call("look_around", json!({})).await.said();
    println!("{told}");
    println!("{}", house.records.all().join("\n"));
}

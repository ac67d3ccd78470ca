//! Debian's `docker-registry`, filled by `skopeo`; and an image that is made of nothing but
//! packages of Debian, as `tests/run` puts it into its cache.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Instant,
};

use serde_json::json;

use crate::{
    house::house,
    image::{Puller, configuration, configuration_of, pull, put, save_as},
    registry::{authority, sha256},
};

const REGISTRY: &str = "/usr/bin/docker-registry";
const SKOPEO: &str = "/usr/bin/skopeo";

/// A registry that is not ours, on loopback and by TLS. Ends with this.
struct Others {
    process: Child,
    host: String,
    place: tempfile::TempDir,
}

impl Others {
    /// Starts it; nothing where the programs are not here.
    async fn open(test: &str) -> Option<Self> {
        let programs = [REGISTRY, SKOPEO];
        if let Some(missing) = programs.iter().find(|program| !Path::new(program).exists()) {
            eprintln!("skipped: `{test}` needs `{missing}`");
            return None;
        }
        let place = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let tls = format!("{}/tests/tls", env!("CARGO_MANIFEST_DIR"));
        fs::write(
            place.path().join("registry.yml"),
            format!(
                "version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\n\
                 http: {{ addr: 127.0.0.1:{port}, tls: {{ certificate: {tls}/localhost.pem, key: {tls}/localhost.key }} }}\n",
                place.path().join("storage").display()
            ),
        )
        .unwrap();
        let log = fs::File::create(place.path().join("log")).unwrap();
        let mut process = Command::new(REGISTRY)
            .arg("serve")
            .arg(place.path().join("registry.yml"))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        // It is tried: nobody says when a port is bound.
        let deadline = Instant::now() + crate::wire::PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline && process.try_wait().unwrap().is_none());
            tokio::task::yield_now().await;
        }
        let authorities = place.path().join("certs");
        fs::create_dir(&authorities).unwrap();
        fs::write(authorities.join("ca.crt"), authority()).unwrap();
        Some(Self {
            process,
            host: format!("localhost:{port}"),
            place,
        })
    }

    /// Pushes what `from` names, in this format and packing.
    fn push(&self, from: &str, name: &str, format: &str, packing: &str) {
        let authorities = self.place.path().join("certs");
        skopeo(&[
            "--format",
            format,
            "--dest-compress-format",
            packing,
            "--dest-cert-dir",
            authorities.to_str().unwrap(),
            from,
            &format!("docker://{}/{name}", self.host),
        ]);
    }

    /// The lines of a server's file that trust it.
    fn trusted(&self) -> String {
        format!(
            "[registry.\"{}\"]\nca-file = \"/etc/thv/ca.pem\"\n",
            self.host
        )
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn skopeo(arguments: &[&str]) {
    let done = Command::new(SKOPEO)
        .args(["--insecure-policy", "copy", "--quiet"])
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{arguments:?}: {said}");
}

/// What they hold and push is what is pulled.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_of_others_is_understood() {
    let Some(others) = Others::open("a_registry_of_others_is_understood").await else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    for (tag, format) in [("zstd", "oci"), ("gzip", "v2s2")] {
        // Of each its own layer: of a blob that is there another packing is not pushed.
        let archive = place.path().join(tag);
        let mut layer = tar::Builder::new(Vec::new());
        put(&mut layer, "etc/of-the-image", b"layered");
        put(&mut layer, tag, &[b'x'; 4096]);
        let layer = layer.into_inner().unwrap();
        save_as(&archive, &layer, &configuration(&[sha256(&layer)]));
        // Plain layers, which it then packs as it is told.
        let plain = format!("oci:{}:it", place.path().join("plain").display());
        skopeo(&[
            "--dest-oci-accept-uncompressed-layers",
            &format!("docker-archive:{}", archive.display()),
            &plain,
        ]);
        others.push(&plain, &format!("mcp/it:{tag}"), format, tag);
        let puller = Puller::new(&format!("{}/mcp/it:{tag}", others.host), &others.trusted());
        let (printed, said) = puller.pull(&[], None).await;
        assert!(printed.is_some(), "{tag}: {said}");
        assert_eq!(puller.read("etc/of-the-image"), b"layered");
        let state = puller.state();
        let fetched = fs::read_dir(state.join("image/fetched/blobs/sha256")).unwrap();
        let zstd = fetched
            .flatten()
            .filter(|blob| {
                fs::read(blob.path())
                    .unwrap()
                    .starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
            })
            .count();
        assert_eq!(zstd, usize::from(tag == "zstd"), "{tag}");
    }
}

/// A distribution's own Python and C library, from a registry, and nothing of this host's.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_debian_packages_runs_unchanged() {
    let debian = std::env::var_os("THV_PEERS").map(|it| PathBuf::from(it).join("peers/debian.tar"));
    let Some(debian) = debian.filter(|debian| debian.exists()) else {
        eprintln!("left out: an image of Debian's packages, as THV_PEERS does not lead to one");
        return;
    };
    let Some(others) = Others::open("an_image_of_debian_packages_runs_unchanged").await else {
        return;
    };
    let place = tempfile::tempdir().unwrap();
    // The packages, and behind them the server.
    let mut layer = fs::read(debian).unwrap();
    let end = layer.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    layer.truncate(end.next_multiple_of(512));
    let mut layer = tar::Builder::new(layer);
    for file in ["scripted.py", "probes.py"] {
        let servers = format!("{}/tests/it/servers/{file}", env!("CARGO_MANIFEST_DIR"));
        put(
            &mut layer,
            &format!("opt/{file}"),
            &fs::read(servers).unwrap(),
        );
    }
    let layer = layer.into_inner().unwrap();
    let run = json!({ "Entrypoint": ["/usr/bin/python3", "-u"], "Cmd": ["/opt/scripted.py"] });
    let archive = place.path().join("image.tar");
    save_as(&archive, &layer, &configuration_of(&run, &[sha256(&layer)]));
    let archive = format!("docker-archive:{}", archive.display());
    others.push(&archive, "mcp/debian:1", "v2s2", "gzip");
    let house = house()
        .file(&format!(
            "image = \"{}/mcp/debian:1\"\nresource = \"http://{{address}}/mcp\"\n{}\
             [auth]\nmode = \"none\"\n[authz]\nallow = \"authenticated\"\n[sandbox]\noptional = [\"cgroup\"]\n",
            others.host,
            others.trusted(),
        ))
        .before(|root| {
            fs::write(root.join("etc/thv/ca.pem"), authority()).unwrap();
            pull(root);
        })
        .open()
        .await;
    let began = Instant::now();
    let caller = house.session("alice").await;
    println!("Debian's Python to its first answer: {:?}", began.elapsed());
    let opens = |path: &str| {
        let arguments = json!({ "probe": "open", "argument": path });
        let caller = &caller;
        async move { caller.call("probe", arguments).await.said() }
    };
    assert!(opens("/etc/debian_version").await.contains("true"));
    assert!(opens("/opt/scripted.py").await.contains("true"));
    assert!(opens("/etc/shadow").await.contains("ENOENT"));
}

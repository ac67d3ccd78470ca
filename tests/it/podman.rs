//! What a server can see and do under podman: the probes of `sandbox`, where they apply,
//! as one table; and what is left of podman, which is nothing.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::{
    house::{Plan, house},
    image,
    sandbox::{
        FURTHER, Outcome, Sandbox,
        Wanted::{Never, Refused, Works},
        descendants, is_alive, outside, play,
    },
};

/// Whether it is here; says so where it is not.
fn has_podman(test: &str) -> bool {
    let is_there = ["podman", "crun", "conmon"]
        .iter()
        .all(|program| Path::new("/usr/bin").join(program).exists());
    if !is_there {
        eprintln!("skipped: `{test}` needs podman and crun");
    }
    is_there
}

fn servers() -> String {
    format!("{}/tests/it/servers", env!("CARGO_MANIFEST_DIR"))
}

/// An image of nothing but the links that this host has: its programs are shown from the host.
pub fn save(into: &Path) {
    let mut layer = tar::Builder::new(Vec::new());
    for name in ["bin", "sbin", "lib", "lib64"] {
        let Ok(to) = fs::read_link(format!("/{name}")) else {
            continue;
        };
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        layer.append_link(&mut header, name, to).unwrap();
    }
    image::put(&mut layer, "etc/of-the-image", b"layered");
    let layer = layer.into_inner().unwrap();
    let script = format!("{}/scripted.py", servers());
    let configuration = image::configuration_of(
        &json!({ "Entrypoint": ["/usr/bin/python3", "-u"], "Cmd": [script] }),
        &[crate::registry::sha256(&layer)],
    );
    image::save_as(into, &layer, &configuration);
}

/// The scripted server by podman, with `more` lines of its file.
fn by_podman(archive: &Path, top: &str, sandbox: &str, more: &str) -> Plan {
    save(archive);
    house()
        .file(&format!(
            "image = \"docker-archive:{}\"\nengine = \"podman\"\nresource = \"http://{{address}}/mcp\"\n{top}\n\
             [auth]\nmode = \"none\"\n[authz]\nallow = \"authenticated\"\n[sandbox]\noptional = [\"cgroup\"]\n\
             read-only = [\"/usr\", {:?}]\n{sandbox}\n{more}",
            archive.display(),
            servers(),
        ))
        .before(image::pull)
}

struct Contained {
    inner: Sandbox,
    _archive: tempfile::TempDir,
}

impl Contained {
    async fn open(sandbox: &str, more: &str) -> Self {
        let archive = tempfile::tempdir().unwrap();
        let plan = by_podman(&archive.path().join("image.tar"), "", sandbox, more);
        let house = plan.open().await;
        let caller = house.session("alice").await;
        Self {
            inner: Sandbox { house, caller },
            _archive: archive,
        }
    }

    async fn inside(&self, probe: &str, argument: &str) -> Outcome {
        self.inner.inside(probe, argument).await
    }
}

/// probe-1, probe-2, probe-4…7, probe-10, probe-12, probe-16, probe-19, probe-20, probe-25, probe-26, probe-39, probe-41, probe-42, probe-45, probe-49…53, probe-62, probe-76, probe-82, probe-83.
#[tokio::test]
async fn the_table_of_probes_holds_under_podman() {
    if !has_podman("the_table_of_probes_holds_under_podman") {
        return;
    }
    let contained = Contained::open("", "").await;
    let gateway = contained.inner.house.address.to_string();
    let ourselves = std::process::id().to_string();
    let marker = tempfile::NamedTempFile::with_prefix("thv-marker-").unwrap();
    let marker = marker.path().to_str().unwrap();
    let is_root = nix::unistd::geteuid().is_root();
    let mut table = vec![
        ("open", marker, Refused("ENOENT")),
        ("open", "/run/credentials", Never("E")),
        ("open", "/run/thv", Never("E")),
        ("open", "/etc/thv", Never("E")),
        ("list", "/var/lib", Refused("ENOENT")),
        ("list", "/home", Refused("ENOENT")),
        ("open", "/run/dbus/system_bus_socket", Never("E")),
        ("open", "/run/systemd/journal/socket", Never("E")),
        ("open", "/proc/1/root/etc/shadow", Never("E")),
        ("list", "/sys/kernel", Refused("ENOENT")),
        ("open", "/sys/fs/cgroup/cgroup.procs", Never("E")),
        ("write", "/sys/fs/cgroup/memory.max", Never("E")),
        ("open", "/dev/kmsg", Never("E")),
        ("open", "/dev/mem", Never("E")),
        ("open", "/dev/fuse", Never("E")),
        ("open", "/dev/net/tun", Never("E")),
        ("terminal", "", Never("E")),
        ("open", "/dev/urandom", Works),
        ("write", "/dev/null", Works),
        ("scratch", "", Works),
        ("new-user-namespace", "", Refused("EPERM")),
        ("tcp", &gateway, Refused("ECONNREFUSED")),
        ("tcp", "10.0.0.1:80", Never("E")),
        ("tcp", "169.254.169.254:80", Never("E")),
        ("udp", "8.8.8.8", Never("E")),
        ("raise-limit", "", Never("not allowed")),
        ("pair", "unix", Works),
        ("pair", "inet", Never("E")),
        ("family", "unix", Works),
        ("family", "inet", Works),
        ("family", "inet6", Works),
        ("family", "netlink-route", Works),
        ("family", "alg", Never("E")),
        ("family", "key", Never("E")),
        ("writable-code", "", Works),
    ];
    if is_root {
        table.extend([
            ("open", "/etc/shadow", Refused("ENOENT")),
            ("list", "/root", Refused("ENOENT")),
            ("write", "/usr/thv-podman", Refused("EROFS")),
            ("write", "/etc/thv-podman", Refused("EROFS")),
            ("write", "/thv-podman", Refused("EROFS")),
            ("write", "/proc/sys/kernel/core_pattern", Refused("E")),
            ("write", "/proc/sys/vm/overcommit_memory", Refused("E")),
            ("mknod", "/tmp/thv-podman-node", Refused("EPERM")),
            ("kill", &ourselves, Refused("ESRCH")),
            ("real-time", "", Refused("EPERM")),
            ("family", "packet", Refused("EPERM")),
            ("family", "netlink-audit", Refused("EPERM")),
            ("family", "vsock", Refused("EPERM")),
            ("family", "raw", Refused("EPERM")),
        ]);
    }
    if cfg!(target_arch = "x86_64") {
        table.extend([
            ("tiocsti", "0", Refused("EPERM")),
            ("tiocsti", "1", Refused("EPERM")),
        ]);
    }
    if is_root && cfg!(target_arch = "x86_64") {
        table.extend(FURTHER);
    }
    let wrong = play(&table, async |probe, argument| {
        contained.inside(probe, argument).await
    })
    .await;
    assert!(contained.inside("open", "/etc/of-the-image").await.0);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// probe-19, probe-27…38, probe-44…46, probe-48: the exported profile answers as our own filter does.
#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn dangerous_system_calls_are_refused_under_podman() {
    if !has_podman("dangerous_system_calls_are_refused_under_podman")
        || !nix::unistd::geteuid().is_root()
    {
        return;
    }
    let contained = Contained::open("", "").await;
    for call in crate::sandbox::CALLS {
        let (through, what) = contained.inside("call", call).await;
        assert!(!through && what.starts_with("EPERM"), "{call}: {what}");
    }
    let numa = Contained::open("seccomp-allow = [\"numa\"]", "").await;
    assert!(numa.inside("call", "mbind").await.0);
    assert!(!numa.inside("call", "ptrace").await.0);
    let strict = Contained::open("seccomp = \"strict\"", "").await;
    let (through, what) = strict.inside("writable-code", "").await;
    assert!(!through && what.starts_with("EPERM"), "{what}");
    assert!(strict.inside("scratch", "").await.0);
}

/// probe-2, probe-3, probe-15, probe-23, probe-63, probe-65, probe-66, probe-77, probe-79, probe-83: itself alone, with its limits and no privilege.
#[tokio::test]
async fn a_container_is_alone_and_limited() {
    if !has_podman("a_container_is_alone_and_limited") {
        return;
    }
    let contained = Contained::open("", "[limits]\ntmp = \"4M\"\ntasks = 48\n").await;
    let status: Value = serde_json::from_str(&contained.inside("status", "").await.1).unwrap();
    for set in ["CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb"] {
        assert_eq!(status[set], "0000000000000000", "{set}");
    }
    assert_eq!(
        (&status["NoNewPrivs"], &status["Seccomp"]),
        (&json!("1"), &json!("2"))
    );
    // The only user of its namespace, which is the runner's on the host.
    assert_eq!(status["Uid"], "0\t0\t0\t0");
    let pids = contained.inside("list", "/proc").await.1;
    let pids = pids.split(' ').filter(|name| name.parse::<u32>().is_ok());
    assert_eq!(pids.count(), 1);
    let environment: Value =
        serde_json::from_str(&contained.inside("environment", "").await.1).unwrap();
    let mut names: Vec<_> = environment.as_object().unwrap().keys().collect();
    names.sort();
    assert_eq!(
        names,
        ["HOME", "HOSTNAME", "LANG", "PATH", "TERM", "TMPDIR"]
    );
    assert_eq!(contained.inside("descriptors", "").await.1, "0 1 2 3");
    assert!(contained.inside("forks", "10").await.0);
    for (probe, argument, why) in [
        ("forks", "64", "EAGAIN"),
        ("fills", "/tmp/x:8388608", "ENOSPC"),
        ("fills", "/dev/shm/x:134217728", "ENOSPC"),
        ("fills", "/run/x:33554432", "ENOSPC"),
        ("opens", "70000", "EMFILE"),
    ] {
        let (through, what) = contained.inside(probe, argument).await;
        assert!(!through && what.starts_with(why), "{probe}: {what}");
    }
    assert!(contained.inside("fills", "/tmp/x:2097152").await.0);
}

/// probe-21, probe-22, probe-78, fault-25: however it ends, no container, no podman and no file of theirs is left.
#[tokio::test]
async fn nothing_of_podman_is_left() {
    if !has_podman("nothing_of_podman_is_left") {
        return;
    }
    let before = places();
    for probe in ["hide", "stay"] {
        let contained = Contained::open("", "").await;
        let (house, caller) = (&contained.inner.house, &contained.inner.caller);
        let runner = house.runner_pid();
        assert!(contained.inside(probe, "").await.0);
        assert!(
            descendants(runner).len() >= 4,
            "init, podman, conmon, server"
        );
        caller.send("DELETE", "").await;
        house.records.wait_for("child-exited").await;
        assert_eq!(descendants(runner), Vec::<i32>::new(), "{probe}");
    }
    // A runner that is killed takes all of it along.
    let contained = Contained::open("", "").await;
    let runner = contained.inner.house.runner_pid();
    let children = descendants(runner);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(runner.cast_signed()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    contained.inner.house.records.wait_for("child-died").await;
    // They are looked for: the kernel tells their parents alone of their ends.
    let deadline = std::time::Instant::now() + crate::wire::PATIENCE;
    while children.iter().any(|child| is_alive(*child)) {
        assert!(
            std::time::Instant::now() < deadline,
            "{children:?} are left"
        );
        tokio::task::yield_now().await;
    }
    assert_eq!(places(), before, "files of podman's are left");
}

/// What a podman leaves where it is not told otherwise.
fn places() -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut left: Vec<std::path::PathBuf> = ["/var/lib/containers", "/run/containers", "/run/crun"]
        .map(Into::into)
        .to_vec();
    while let Some(place) = left.pop() {
        for entry in fs::read_dir(&place).into_iter().flatten().flatten() {
            found.push(entry.path());
            left.push(entry.path());
        }
    }
    found.sort();
    found
}

/// fault-25: an image without the program that it names is an error with podman's own words, and no child.
#[tokio::test]
async fn what_podman_cannot_run_is_an_error() {
    if !has_podman("what_podman_cannot_run_is_an_error") {
        return;
    }
    let archive = tempfile::tempdir().unwrap();
    let place = archive.path().join("image.tar");
    save(&place);
    let missing = house()
        .file(&format!(
            "image = \"docker-archive:{}\"\nengine = \"podman\"\nresource = \"http://{{address}}/mcp\"\n[auth]\nmode = \"none\"\n\
             [authz]\nallow = \"authenticated\"\n[sandbox]\noptional = [\"cgroup\"]\n",
            place.display()
        ))
        .before(image::pull)
        .open()
        .await;
    let answer = missing.caller("alice").initialize().await;
    assert_ne!(answer.status, 200, "{}", answer.text());
    missing.records.wait_for("child-stderr").await;
    let records = missing.records.all().join("\n");
    assert!(records.contains("python3"), "{records}");
    assert_eq!(descendants(missing.runner_pid()), Vec::<i32>::new());
}

/// probe-50: what the child's namespace has, the container has.
#[tokio::test]
async fn the_ways_out_of_a_container_are_those_of_its_child() {
    if !has_podman("the_ways_out_of_a_container_are_those_of_its_child") {
        return;
    }
    let elsewhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = elsewhere.local_addr().unwrap();
    let answering = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        loop {
            let (mut stream, _) = elsewhere.accept().await.unwrap();
            let _ = stream.write_all(b"reached").await;
        }
    });
    let contained = Contained::open(&format!("forward = [\"127.0.0.1:5432={at}\"]"), "").await;
    let says = json!({ "to": "127.0.0.1:5432", "say": "x" }).to_string();
    assert_eq!(
        contained.inside("says", &says).await,
        (true, "reached".to_owned())
    );
    // Beside it, the host's own loopback.
    let direct = json!({ "to": at.to_string(), "say": "x" }).to_string();
    let (through, what) = contained.inside("says", &direct).await;
    assert!(!through && what.starts_with("ECONNREFUSED"), "{what}");
    answering.abort();
}

/// probe-50, probe-54, probe-55: a host that is named is reached by its name, and no other is asked for.
#[tokio::test]
async fn a_container_reaches_the_hosts_that_are_named() {
    use std::sync::{Arc, Mutex};
    if !has_podman("a_container_reaches_the_hosts_that_are_named") {
        return;
    }
    let host = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = host.local_addr().unwrap().port();
    let answering = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        loop {
            let (mut stream, _) = host.accept().await.unwrap();
            let _ = stream.read(&mut [0; 4096]).await;
            let said = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\nConnection: close\r\n\r\nreached";
            let _ = stream.write_all(said.as_bytes()).await;
        }
    });
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let questions = Arc::clone(&asked);
    let resolver = thv::egress::Resolver::new(move |name| {
        questions.lock().unwrap().push(name);
        async { Ok(vec!["127.0.0.1".parse().unwrap()]) }
    });
    let archive = tempfile::tempdir().unwrap();
    let lines = format!(
        "egress = [\"allowed.test:{port} in 127.0.0.1\", \"*.wild.test:{port} in 127.0.0.1\"]"
    );
    let house = by_podman(&archive.path().join("image.tar"), "", &lines, "")
        .resolver(resolver)
        .open()
        .await;
    let sandbox = Sandbox {
        caller: house.session("alice").await,
        house,
    };
    let fetched = sandbox
        .inside("fetch", &format!("http://allowed.test:{port}/"))
        .await;
    assert_eq!(fetched, (true, "reached".to_owned()));
    let connect = |name: &str| {
        let say = format!("CONNECT {name}:{port} HTTP/1.1\r\n\r\n");
        json!({ "to": "127.77.1.1:3128", "say": say, "end": false, "patience": 2 }).to_string()
    };
    let (_, said) = sandbox.inside("says", &connect("a.wild.test")).await;
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
    for name in ["c2VjcmV0.evil.example", "c2VjcmV0.allowed.test"] {
        let (_, said) = sandbox.inside("says", &connect(name)).await;
        assert!(said.starts_with("HTTP/1.1 403 "), "{said}");
        assert!(!sandbox.inside("name", name).await.0, "{name}");
    }
    for to in ["8.8.8.8:53", "127.0.0.53:53"] {
        assert!(!sandbox.inside("datagram", to).await.0, "{to}");
    }
    assert_eq!(*asked.lock().unwrap(), ["allowed.test", "a.wild.test"]);
    answering.abort();
}

/// probe-16, probe-62: where the host's network is the container's, too, Landlock's scopes are all that is
/// between it and abstract sockets; and they hold podman as well as what it runs.
#[tokio::test]
async fn a_container_is_bound_by_the_scopes_of_landlock() {
    use std::os::linux::net::SocketAddrExt as _;
    if !has_podman("a_container_is_bound_by_the_scopes_of_landlock") {
        return;
    }
    let contained = Contained::open("network = \"host\"\ndangerous = true", "").await;
    let name = format!("thv-podman-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    let control = outside("abstract", &name);
    let (through, what) = contained.inside("abstract", &name).await;
    println!("abstract socket of the host: outside {control:?} inside {through} {what}");
    assert!(control.0, "{control:?}");
    assert!(!through && what.starts_with("EPERM"), "{what}");
    let gateway = contained.inner.house.address.to_string();
    assert!(
        contained.inside("tcp", &gateway).await.0,
        "its network is the host's"
    );
}

/// probe-3: a secret is in its variable or its file, and in no argument of podman's.
#[tokio::test]
async fn a_secret_reaches_the_container_and_no_command_line() {
    if !has_podman("a_secret_reaches_the_container_and_no_command_line") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let canary = format!("canary-{}", std::process::id());
    fs::write(place.path().join("key"), &canary).unwrap();
    let env = "[env]\nKEY = { credential = \"key\" }\nFILE = { credential-file = \"key\" }\n";
    let house = by_podman(&place.path().join("image.tar"), "", "", env)
        .credentials(place.path())
        .open()
        .await;
    let sandbox = Sandbox {
        caller: house.session("alice").await,
        house,
    };
    let environment: Value =
        serde_json::from_str(&sandbox.inside("environment", "").await.1).unwrap();
    assert_eq!(environment["KEY"], canary.as_str());
    let file = environment["FILE"].as_str().unwrap();
    assert_eq!(sandbox.inside("read", file).await, (true, canary.clone()));
    assert!(!sandbox.inside("write", file).await.0);
    let children = descendants(sandbox.house.runner_pid());
    assert!(children.len() >= 4, "{children:?}");
    for child in children {
        let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&line).contains(&canary), "{child}");
    }
}

/// fault-25: a podman that hangs is an error when the time is over, and ends with its child.
#[tokio::test(flavor = "multi_thread")]
async fn a_podman_that_hangs_is_an_error() {
    if !has_podman("a_podman_that_hangs_is_an_error") {
        return;
    }
    let archive = tempfile::tempdir().unwrap();
    let limits = "[limits]\ncall-timeout = \"2s\"\n";
    let house = by_podman(&archive.path().join("image.tar"), "", "", limits)
        .open()
        .await;
    let runner = house.runner_pid();
    for _ in 0..10 {
        let mut caller = house.caller("alice");
        let asking = tokio::spawn(async move { (caller.initialize().await, caller) });
        let is_podman = |pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "podman\n")
        };
        // It is looked for: nobody tells of another's new process.
        let podman = loop {
            match descendants(runner).into_iter().find(is_podman) {
                Some(pid) => break pid,
                None => tokio::task::yield_now().await,
            }
        };
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(podman),
            nix::sys::signal::Signal::SIGSTOP,
        )
        .unwrap();
        let (answer, caller) = asking.await.unwrap();
        if answer.status == 200 {
            // The container was quicker.
            let ended = ["THV_EVENT=child-", "THV_EXIT"];
            let before = house.records.wait_for_all(&ended, 0).await.len();
            caller.send("DELETE", "").await;
            house.records.wait_for_all(&ended, before + 1).await;
            continue;
        }
        println!("{}", answer.text());
        let deadline = std::time::Instant::now() + crate::wire::PATIENCE;
        while !descendants(runner).is_empty() {
            assert!(std::time::Instant::now() < deadline, "podman is left");
            tokio::task::yield_now().await;
        }
        return;
    }
    panic!("podman was never stopped in time");
}

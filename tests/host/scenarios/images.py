"""Servers that are images: fetched, unpacked and run by the units, by thv itself and by podman."""

import hashlib
import http.server
import io
import json
import pathlib
import ssl
import tarfile
import threading
import time

import machine
import wire

NAME, PORT, REGISTRY = "pictured", 8097, 5443
RUNNER = f"thv-runner@{NAME}.service"
PODMANS = ("podman", "conmon", "crun")


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def layer(host):
    """Links into /usr as the host has them: its programs are shown from there."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name in ("bin", "sbin", "lib", "lib64"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{name}"
            archive.addfile(entry)
        entry = tarfile.TarInfo("etc/of-the-image")
        entry.size = 7
        archive.addfile(entry, io.BytesIO(b"layered"))
    return out.getvalue()


def things(host):
    """What the registry has, by path."""
    import gzip
    packed = layer(host)
    architecture = {"x86_64": "amd64", "aarch64": "arm64"}[host.text("uname", "-m")]
    configuration = json.dumps({
        "architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": [sha256(gzip.decompress(packed))]},
        "config": {"Entrypoint": ["/usr/bin/python3", "-u"], "Cmd": ["/opt/peers/scripted.py"], "Env": ["OF_THE_IMAGE=1"]},
    }).encode()
    manifest = json.dumps({
        "schemaVersion": 2, "config": {"digest": sha256(configuration), "size": len(configuration)},
        "layers": [{"digest": sha256(packed), "size": len(packed)}],
    }).encode()
    base = "/v2/mcp/pictured"
    return {f"{base}/manifests/1": manifest, f"{base}/blobs/{sha256(configuration)}": configuration,
            f"{base}/blobs/{sha256(packed)}": packed}, sha256(manifest)


class Registry:
    """On the machine's loopback, by TLS, for whom it knows."""

    def __init__(self, host, is_open=False, pause=0):
        known, self.digest = things(host)
        asked = self.asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                if "/blobs/" in self.path:
                    # The pace is the point: of a pull that takes no time nothing is shown.
                    time.sleep(pause)
                # BASE64 of caller:canary-of-registry
                if not is_open and self.headers.get("Authorization") != "Basic Y2FsbGVyOmNhbmFyeS1vZi1yZWdpc3RyeQ==":
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="it"')
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                body = known.get(self.path)
                self.send_response(200 if body else 404)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_):
                pass

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls = machine.TOP / "tests/tls"
        context.load_cert_chain(tls / "localhost.pem", tls / "localhost.key")
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", REGISTRY), Handler)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def configure(host, engine):
    host.write("/etc/thv/ca.pem", (machine.TOP / "tests/tls/ca.pem").read_text())
    host.write(f"/etc/thv/servers/{NAME}.toml", f"""\
image    = "localhost:{REGISTRY}/mcp/pictured:1"
engine   = "{engine}"
resource = "http://127.0.0.1:{PORT}/mcp"

[registry."localhost:{REGISTRY}"]
ca-file    = "/etc/thv/ca.pem"
credential = "registry-login"

[auth]
mode = "none"

[authz]
allow = "authenticated"

[sandbox]
optional  = ["cgroup"]
read-only = ["/usr", "/opt/peers"]
state     = true
""")


def probe(client, name, argument=""):
    return json.loads(client.said("probe", {"probe": name, "argument": argument}))


def names_of(host, pids):
    return [pathlib.Path(host.path(f"/proc/{pid}/comm")).read_text().strip() for pid in pids]


def an_image_is_fetched_by_one_unit_and_unpacked_by_another(host):
    configure(host, "native")
    host.run("thv", "listen", NAME, f"127.0.0.1:{PORT}")
    host.run("systemctl", "enable", "--now", f"thv@{NAME}.socket")
    with Registry(host) as registry:
        refused = host.run("thv", "pull", NAME, check=False)
        assert refused.returncode != 0 and f"journalctl -u thv-fetch@{NAME}.service" in refused.stderr, refused
        # What its unit has said is said here, too.
        assert f"thv secret set --pull {NAME} registry-login" in refused.stderr, refused
        host.write("/tmp/login", "caller:canary-of-registry\n", mode=0o600)
        host.run("sh", "-c", f"thv secret set --pull {NAME} registry-login < /tmp/login; rm /tmp/login")
        done = host.run("thv", "pull", NAME)
        assert "unpacked" in done.stderr, done
        host.flush_journal()
        said = host.text("journalctl", "-u", f"thv-pull@{NAME}.service", "-o", "cat")
        assert registry.digest in said, said
        assert "canary-of-registry" not in host.text("journalctl", "-o", "json")
        asked = len(registry.asked)
        host.run("thv", "pull", NAME)
        # The manifest, refused and shown; nothing else.
        assert len(registry.asked) == asked + 2, registry.asked
    state = f"/var/lib/private/thv-runner/{NAME}"
    assert host.text("stat", "--format=%a", state) == "700"
    assert host.run("find", state, "-user", "root", check=False).stdout == "", "root has written there"


def an_image_runs_by_thv_itself(host):
    with wire.opened(PORT, None) as client:
        assert probe(client, "read", "/etc/of-the-image") == [True, "layered"]
        status = json.loads(probe(client, "status")[1])
        assert status["Uid"].split()[0] == "1000" and status["CapEff"] == "0" * 16, status
        client.leave()


def an_image_runs_by_podman_under_the_runners_unit(host):
    """probe-21, probe-78, fault-25: under the hardening of the unit, without root, and without a trace."""
    configure(host, "podman")
    host.run("thv", "check", NAME)
    host.run("systemctl", "stop", f"thv@{NAME}.service", RUNNER)
    with wire.opened(PORT, None) as client:
        assert probe(client, "read", "/etc/of-the-image") == [True, "layered"]
        status = json.loads(probe(client, "status")[1])
        assert status["Uid"].split()[0] == "0" and status["CapEff"] == status["CapBnd"] == "0" * 16, status
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), status
        for what, argument in (("write", "/usr/x"), ("open", "/etc/shadow"), ("call", "mount"), ("new-user-namespace", ""),
                               ("open", "/sys/fs/cgroup/cgroup.procs"), ("tcp", f"127.0.0.1:{PORT}")):
            through, said = probe(client, what, argument)
            assert not through, (what, argument, said)
        assert probe(client, "write", "/state/kept")[0] and probe(client, "scratch")[0]
        pids = host.processes_of(RUNNER)
        names = names_of(host, pids)
        assert "podman" in names and "conmon" in names, names
        owners = {int(host.text("stat", "--format=%u", f"/proc/{pid}")) for pid in pids}
        assert owners == {host.uid_of(RUNNER)}, owners
        client.leave()
    podman_is_gone(host)
    # The state is the principal's own, whatever the engine.
    with wire.opened(PORT, None) as client:
        assert "kept" in probe(client, "list", "/state")[1]
        host.run("systemctl", "kill", "--signal=KILL", RUNNER)
        podman_is_gone(host)
    for place in ("/var/lib/containers", "/run/containers", "/run/crun", "/run/libpod"):
        assert host.run("find", place, "-name", "*.json", "-newer", "/etc/thv/ca.pem", check=False).stdout == "", place
    host.run("systemctl", "stop", f"thv@{NAME}.socket", f"thv@{NAME}.service", RUNNER)
    host.run("systemctl", "disable", f"thv@{NAME}.socket")


def podman_is_gone(host):
    """Waits until there is none of its processes; an end may begin others, which clean up."""
    while pids := host.text("pgrep", "--exact", "|".join(PODMANS), check=False).split():
        host.gone(pids)


def an_image_of_a_command_line_is_pulled_by_whom_it_runs_as(host):
    host.write("/usr/local/share/ca-certificates/it.crt", (machine.TOP / "tests/tls/ca.pem").read_text())
    host.run("update-ca-certificates")
    port, unit = 8090, "thv-run-pictured.service"
    audience = f"http://127.0.0.1:{port}/mcp"
    line = ["/usr/bin/thv", "run", "--name", NAME, "--port", str(port), "--oidc-issuer", wire.ISSUER, "--oidc-audience", audience,
            "--volume", "/usr:ro", "--volume", "/opt/peers:ro", f"localhost:{REGISTRY}/mcp/pictured:1"]
    token = wire.token("alice", audience)

    def serves():
        with wire.Client(port, token) as client:
            answer = client.initialize()
            assert answer.status == 200, answer
            assert probe(client, "read", "/etc/of-the-image") == [True, "layered"]
            client.leave()

    with Registry(host, is_open=True, pause=1) as registry:
        done = host.run(*line)
        assert done.stdout.strip() == unit and "as the unit starts" in done.stderr, done
        assert "thv: part 1 of " in done.stderr, done
        serves()
        state = f"/var/lib/private/thv-run/{NAME}"
        assert host.run("find", state, "-user", "root", check=False).stdout == "", "root has written there"
        assert "which is nobody else's" in done.stderr, done.stderr
        host.run("systemctl", "stop", unit)
        asked = len(registry.asked)
        host.run(*line)
        serves()
        host.run("systemctl", "stop", unit)
        # What is there is kept from one start to the next.
        assert len(registry.asked) == asked + 1, registry.asked

        uid = host.text("id", "--user", "caller")
        runtime = f"/run/user/{uid}"
        host.run("install", "--directory", "--mode=0700", "--owner=caller", "--group=caller", runtime)
        host.run("systemd-run", "--quiet", "--unit=manager-of-caller", "--uid=caller", "--property=Delegate=yes", "--property=Type=notify",
                 "--property=NotifyAccess=all", f"--setenv=XDG_RUNTIME_DIR={runtime}", "/usr/lib/systemd/systemd", "--user")
        user = ["env", f"XDG_RUNTIME_DIR={runtime}", "HOME=/home/caller"]
        done = host.run(*user, *line, user="caller")
        assert f"/home/caller/.local/state/thv/run/{NAME}" in done.stderr and registry.digest in done.stderr, done
        serves()
        host.run(*user, "systemctl", "--user", "stop", unit, user="caller")
        host.run("systemctl", "stop", "manager-of-caller")


ALL = [
    an_image_of_a_command_line_is_pulled_by_whom_it_runs_as,
    an_image_is_fetched_by_one_unit_and_unpacked_by_another,
    an_image_runs_by_thv_itself,
    an_image_runs_by_podman_under_the_runners_unit,
]

"""Played inside a whole machine: what a child's own cgroup does, seen from outside it."""

import base64
import gzip
import hashlib
import http.client
import http.server
import io
import json
import pathlib
import socket
import subprocess
import sys
import tarfile
import threading
import time

import gateway
from journal import Journal

JOURNAL = Journal()
MEMORY, TASKS = 64 << 20, 32
GATEWAY = "thv@limits.service"


class Connection(http.client.HTTPConnection):
    server = "limits"

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(120)
        self.sock.connect(f"/run/thv/{self.server}.sock")


class Session:
    def __init__(self):
        self.id = None
        status, headers, _ = self.send("initialize", {"protocolVersion": "2025-11-25", "capabilities": {},
                                                      "clientInfo": {"name": "limits", "version": "1"}})
        assert status == 200, status
        self.id = headers["Mcp-Session-Id"]

    def send(self, method, params=None, verb="POST"):
        connection = Connection("localhost")
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if self.id:
            headers["Mcp-Session-Id"] = self.id
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params or {}}) if verb == "POST" else None
        connection.request(verb, "/mcp", body, headers)
        answer = connection.getresponse()
        text = answer.read()
        for line in text.splitlines():
            if line.startswith(b"data: "):
                text = line[6:]
        return answer.status, answer.headers, json.loads(text) if text else None

    def call(self, tool):
        return self.send("tools/call", {"name": tool, "arguments": {}})

    def said(self, tool):
        status, _, message = self.call(tool)
        assert status == 200 and "result" in message, (status, message)
        return message["result"]["content"][0]["text"]


def groups():
    return sorted(pathlib.Path("/sys/fs/cgroup").rglob("child-*"))


def pid():
    return subprocess.run(["systemctl", "show", "--value", "--property=MainPID", GATEWAY], capture_output=True, text=True).stdout.strip()


def each_child_has_a_cgroup_with_its_limits():
    Session()
    (group,) = groups()
    wanted = {"memory.max": str(MEMORY), "memory.oom.group": "1", "pids.max": str(TASKS), "cpu.max": "50000 100000", "io.weight": "default 50"}
    found = {name: (group / name).read_text().strip() for name in wanted}
    assert found == wanted, found
    assert len((group / "cgroup.procs").read_text().split()) == 2, "init and server"


def a_child_does_not_leave_its_group():
    """probe-82"""
    session = Session()
    before = {group: processes(group) for group in groups()}
    said = json.loads(session.said("escape"))
    assert said == {"done": [], "group": "0::/\n"}, said
    # The same by root outside, where there is something to write to.
    own = pathlib.Path("/sys/fs/cgroup") / pathlib.Path("/proc/self/cgroup").read_text().strip().partition("::/")[2]
    (own / "cgroup.procs").write_text("0")
    # Beside these there may be the one that is made ahead by now.
    found = {group: processes(group) for group in before}
    assert found == before and 2 in found.values(), (before, found)
    assert {(group / "memory.max").read_text().strip() for group in found} == {str(MEMORY)}
    assert session.send("", verb="DELETE")[0] == 204


def a_child_that_crashes_gives_its_memory_to_nobody():
    """probe-26: the kernel gives core dumps to a program that runs as root, also those whose limit is 0."""
    taken, handler = pathlib.Path("/run/cores"), pathlib.Path("/usr/local/bin/take-core")
    handler.write_text(f"#!/bin/sh\necho \"$1 $(wc -c)\" >> {taken}\n")
    handler.chmod(0o755)
    kernel = pathlib.Path("/proc/sys/kernel")
    kept = {name: (kernel / name).read_text() for name in ("core_pattern", "core_pipe_limit")}
    # With a limit on them the kernel waits for each: what was taken is there when its program is gone.
    (kernel / "core_pipe_limit").write_text("16")
    (kernel / "core_pattern").write_text(f"|{handler} %E")
    try:
        def control():
            subprocess.run(["sh", "-c", "ulimit -c 0; exec python3 -c 'import os; os.abort()'"], stderr=subprocess.DEVNULL)
            return len(taken.read_text().splitlines())
        assert control() == 1, "the control's dump is not taken, so this proves nothing"
        for server in ("limits", "contained"):
            Connection.server = server
            session = Session()
            status, _, message = session.call("crash")
            assert status in (200, 502) and message["error"]["data"]["reason"] == "server-ended", (status, message)
        assert control() == 2, taken.read_text()
    finally:
        Connection.server = "limits"
        for name, text in kept.items():
            (kernel / name).write_text(text)
    subprocess.run(["systemctl", "stop", *(f"{unit}@{server}.service" for unit in ("thv", "thv-runner") for server in ("limits", "contained"))], check=True)
    assert not groups(), groups()


def a_fork_bomb_ends_at_its_limit_and_the_gateway_answers_meanwhile():
    """probe-23"""
    before = pid()
    session = Session()
    said = json.loads(session.said("fork"))
    assert said["refused"] == "Resource temporarily unavailable" and said["children"] < TASKS, said
    assert session.said("echo") == "here"
    assert pid() == before


def a_child_that_spins_gets_its_share_and_the_others_are_answered():
    """probe-67"""
    other = Session()
    quiet = times(other)
    spinner = Session()
    before = set(groups())
    assert spinner.said("spin") == "spinning"
    group = next(group for group in before if processes(group) > 2)
    start, used = time.monotonic(), usage(group)
    loud = times(other)
    # The time is the point: it is given that long to use its share.
    while time.monotonic() - start < 5:
        time.sleep(0.1)
    share = (usage(group) - used) / 1e6 / (time.monotonic() - start)
    print(f"        echo of another session, ms at 50 and 99 %: {quiet} quiet, {loud} beside it; it had {share:.0%} of a processor", flush=True)
    assert 0.2 < share < 0.6, share
    # An emulator's milliseconds: what is bounded is how much worse it gets.
    assert loud[1] < max(10 * quiet[1], 500), (quiet, loud)
    assert spinner.send("", verb="DELETE")[0] == 204
    assert other.send("", verb="DELETE")[0] == 204


def processes(group):
    return len((group / "cgroup.procs").read_text().split())


def usage(group):
    return int((group / "cpu.stat").read_text().split()[1])


def times(session):
    took = []
    for _ in range(100):
        start = time.monotonic()
        session.said("echo")
        took.append((time.monotonic() - start) * 1000)
    took.sort()
    return round(took[50], 1), round(took[98], 1)


def the_profile_of_apparmor_is_in_force():
    """A real kernel has loaded it at boot, and what runs bears its name."""
    loaded = pathlib.Path("/sys/kernel/security/apparmor/profiles").read_text()
    assert "thv-runner (unconfined)" in loaded, loaded
    runner = subprocess.run(["systemctl", "show", "--value", "--property=MainPID", "thv-runner@limits.service"],
                            capture_output=True, text=True, check=True).stdout.strip()
    current = pathlib.Path(f"/proc/{runner}/attr/current").read_text().strip()
    assert current == "thv-runner (unconfined)", current


def a_child_that_eats_its_memory_ends_alone():
    """probe-64, fault-22"""
    before, eater, other = pid(), Session(), Session()
    status, _, message = eater.call("eat")
    # What takes long is answered by a stream, which has begun.
    assert status in (200, 502) and message["error"]["data"]["reason"] == "server-out-of-memory", (status, message)
    assert other.said("echo") == "here"
    assert eater.call("echo")[0] == 404
    assert pid() == before, "the gateway lives"


def nothing_of_a_child_is_left_when_its_session_ends():
    for _ in range(3):
        assert Session().send("", verb="DELETE")[0] == 204
    # Only the sessions that were left open above are still there, and the sandbox that waits for the next.
    JOURNAL.until("the groups to be gone", 20, lambda: len(groups()) <= 4)
    subprocess.run(["systemctl", "stop", GATEWAY, "thv-runner@limits.service"], check=True)
    assert not groups(), groups()


def image_of_this_host(place):
    """An archive as `docker save` writes it, of links into /usr, where its program is shown from."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        for name in ("bin", "sbin", "lib", "lib64"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, f"usr/{name}"
            archive.addfile(entry)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    configuration = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
                     "config": {"Entrypoint": ["/usr/bin/python3", "/usr/local/lib/limits/server.py"]}}
    with tarfile.open(place, mode="w") as archive:
        for name, data in (("manifest.json", json.dumps([{"Config": "c.json", "Layers": ["l.tar"]}]).encode()),
                           ("c.json", json.dumps(configuration).encode()), ("l.tar", gzip.compress(layer.getvalue()))):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def the_limits_are_a_containers_too():
    """probe-23, probe-64, fault-22: by podman, in the child's own cgroup, and nothing of it is left."""
    image_of_this_host("/srv/contained.tar")
    subprocess.run(["thv", "pull", "contained"], check=True, stderr=subprocess.DEVNULL)
    subprocess.run(["systemctl", "start", "thv@contained.socket"], check=True)
    Connection.server = "contained"
    eater, other = Session(), Session()
    said = json.loads(other.said("fork"))
    assert said["refused"] == "Resource temporarily unavailable" and said["children"] < 64, said
    ahead = []
    for group in groups():
        assert (group / "memory.max").read_text().strip() == str(192 << 20)
        names = [pathlib.Path(f"/proc/{pid}/comm").read_text().strip() for pid in (group / "cgroup.procs").read_text().split()]
        if names == ["thv"]:
            # The one that is made ahead: its init waits for the word to start podman.
            ahead.append(group)
            continue
        assert "podman" in names and "python3" in names, names
    assert len(ahead) <= 1, ahead
    status, _, message = eater.call("eat")
    # What takes long is answered by a stream, which has begun.
    assert status in (200, 502) and message["error"]["data"]["reason"] == "server-out-of-memory", (status, message)
    assert other.said("echo") == "here"
    assert other.send("", verb="DELETE")[0] == 204
    has_podman = lambda: subprocess.run(["pgrep", "podman|conmon|crun"], stdout=subprocess.DEVNULL).returncode == 0  # noqa: E731
    JOURNAL.until("groups and podman to be gone", 20, lambda: not groups() and not has_podman())


def a_command_line_has_limits_too():
    """`thv run` as a transient unit: gateway and runner in one unit, and its child in a cgroup of its own."""
    issuer, key = "http://127.0.0.1:9001", pathlib.Path("/run/issuer.pem")
    run = {"capture_output": True, "check": True}
    key.write_bytes(subprocess.run(["openssl", "genrsa", "2048"], **run).stdout)
    modulus = subprocess.run(["openssl", "rsa", "-in", key, "-noout", "-modulus"], text=True, **run).stdout.strip().partition("=")[2]
    keys = {"keys": [{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "1", "e": "AQAB", "n": base64url(bytes.fromhex(modulus))}]}
    documents = {"/keys": keys, "/.well-known/openid-configuration": {"issuer": issuer, "jwks_uri": f"{issuer}/keys"}}

    class Issuer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = json.dumps(documents.get(self.path, {})).encode()
            self.send_response(200 if self.path in documents else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 9001), Issuer)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    audience = "http://127.0.0.1:8090/mcp"
    claims = {"iss": issuer, "aud": audience, "sub": "alice", "client_id": "c", "jti": "1", "iat": int(time.time()), "exp": int(time.time()) + 3000}
    signed = ".".join(base64url(json.dumps(part).encode()) for part in ({"alg": "RS256", "typ": "at+jwt", "kid": "1"}, claims))
    signature = subprocess.run(["openssl", "dgst", "-sha256", "-sign", key], input=signed.encode(), **run).stdout
    done = subprocess.run(["thv", "run", "--name", "typed", "--transport", "stdio", "--port", "8090", "--oidc-issuer", issuer,
                           "--oidc-audience", audience, "--foreground=false", "--", "/usr/bin/python3", "/usr/local/lib/limits/server.py"],
                          capture_output=True, text=True)
    assert done.returncode == 0 and "nothing limits" not in done.stderr, done
    connection = http.client.HTTPConnection("127.0.0.1", 8090, timeout=120)
    connection.request("POST", "/mcp", json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "limits", "version": "1"}}}),
        {"Content-Type": "application/json", "Accept": "application/json, text/event-stream",
         "Authorization": f"Bearer {signed}.{base64url(signature)}"})
    answer = connection.getresponse()
    assert answer.status == 200, (answer.status, answer.read())
    (group,) = groups()
    assert "thv-run-typed.service" in str(group), group
    found = {name: (group / name).read_text().strip() for name in ("memory.max", "memory.oom.group", "pids.max", "cpu.max")}
    # The defaults of thv.toml(5).
    assert found == {"memory.max": str(512 << 20), "memory.oom.group": "1", "pids.max": "64", "cpu.max": "100000 100000"}, found
    names = [pathlib.Path(f"/proc/{pid}/comm").read_text().strip() for pid in (group / "cgroup.procs").read_text().split()]
    assert "python3" in names, names
    connection.close()
    subprocess.run(["systemctl", "stop", "thv-run-typed.service"], check=True)
    assert not groups(), groups()


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


KEPT = pathlib.Path("/var/lib/private/thv-runner/keeping")
MAKE = {"ext4": ["mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota"], "xfs": ["mkfs.xfs", "-q"]}


def keeps_on(kind):
    """A server whose state is on a new file system of this kind, with project quotas; a session of it."""
    disk = f"/srv/kept-{kind}"
    subprocess.run(["systemctl", "stop", "thv@keeping.socket", "thv@keeping.service", "thv-runner@keeping.service"], check=True)
    if KEPT.is_mount():
        subprocess.run(["umount", KEPT], check=True)
    KEPT.parent.parent.mkdir(mode=0o700, exist_ok=True)
    KEPT.mkdir(parents=True, exist_ok=True)
    pathlib.Path(disk).unlink(missing_ok=True)
    subprocess.run(["truncate", "--size=400M", disk], check=True)
    subprocess.run([*MAKE[kind], disk], check=True)
    subprocess.run(["mount", "-o", "loop,prjquota", disk, KEPT], check=True)
    subprocess.run(["systemctl", "start", "thv@keeping.socket"], check=True)
    Connection.server = "keeping"
    return Session()


def is_full_at_its_quota(session):
    said = session.said("keep-32")
    # xfs has no errno of its own for projects.
    assert said in ("Disk quota exceeded", "No space left on device"), said
    (state,) = [path for path in KEPT.iterdir() if len(path.name) == 64]
    used = int(subprocess.run(["du", "-sm", state], capture_output=True, text=True, check=True).stdout.split()[0])
    assert 8 < used <= 17, used
    # Beside it there is room, and the server lives.
    assert session.said("echo") == "here"
    assert session.send("", verb="DELETE")[0] == 204


def what_a_server_keeps_ends_at_a_quota():
    """Project quotas on a runner's state directory, as thv.toml(5) says they are set: full is the server's own error."""
    for kind in MAKE:
        session = keeps_on(kind)
        assert session.said("keep-8") == "kept", "without a quota there is room"
        subprocess.run(["chattr", "-R", "-p", "4711", KEPT], check=True)
        subprocess.run(["find", KEPT, "-type", "d", "-exec", "chattr", "+P", "{}", "+"], check=True)
        subprocess.run(["setquota", "-P", "4711", "0", "16M", "0", "1000", KEPT], check=True)
        is_full_at_its_quota(session)
        print(f"        on {kind}", flush=True)


def what_a_server_keeps_ends_at_the_quota_of_its_unit():
    """StateDirectoryQuota=, systemd 258 and newer; on xfs 262 fails to set it up (238/STATE_DIRECTORY)."""
    version = int(subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=True).stdout.split()[1].split(".")[0])
    if version < 258:
        print(f"        not played: systemd is {version}, and StateDirectoryQuota= came with 258 (THV_GUEST_SUITE=sid)", flush=True)
        return
    drop_in = pathlib.Path("/etc/systemd/system/thv-runner@keeping.service.d/quota.conf")
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Service]\nStateDirectoryQuota=16M\n")
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    session = keeps_on("ext4")
    assert session.said("keep-8") == "kept", "there is room"
    is_full_at_its_quota(session)


def the_doctor_finds_every_layer():
    done = subprocess.run(["thv", "doctor", "--json"], capture_output=True, text=True)
    found = {finding["what"]: finding for finding in json.loads(done.stdout)}
    for finding in found.values():
        print(f"        {finding['what']:<16} {finding['state']:<7} {finding['found']}", flush=True)
    assert done.returncode == 0 and not [it for it in found.values() if it["state"] != "good" and it["fix"]], found
    assert "signals" in found["Landlock"]["found"], found["Landlock"]


def a_session_of_limits():
    Connection.server = "limits"
    return Session()


failed = 0
subprocess.run(["systemctl", "start", "thv@limits.socket"], check=True)
SCENARIOS = (each_child_has_a_cgroup_with_its_limits, a_child_does_not_leave_its_group, the_profile_of_apparmor_is_in_force,
             a_child_that_spins_gets_its_share_and_the_others_are_answered, a_fork_bomb_ends_at_its_limit_and_the_gateway_answers_meanwhile,
             a_child_that_eats_its_memory_ends_alone, nothing_of_a_child_is_left_when_its_session_ends,
             the_limits_are_a_containers_too, a_child_that_crashes_gives_its_memory_to_nobody, a_command_line_has_limits_too, what_a_server_keeps_ends_at_a_quota,
             what_a_server_keeps_ends_at_the_quota_of_its_unit, the_doctor_finds_every_layer, *gateway.scenarios(a_session_of_limits, GATEWAY, JOURNAL))
for scenario in SCENARIOS:
    sentence = scenario.__name__.replace("_", " ")
    try:
        scenario()
        print(f"ok      {sentence}", flush=True)
    except Exception as error:
        failed += 1
        print(f"FAILED  {sentence}: {type(error).__name__} {error}", flush=True)
if failed:
    subprocess.run(["journalctl", "--no-pager", "--lines=40", "--output=cat", "--unit=thv*"])
print(f"{len(SCENARIOS) - failed} passed, {failed} failed", flush=True)
sys.exit(1 if failed else 0)

"""`thv run` as a transient unit, and secrets that only a runner is given."""

import json

import servers
import wire
from servers import PROBES

PORT = 8090
AUDIENCE = f"http://127.0.0.1:{PORT}/mcp"
UNIT = "thv-run-notes.service"
LINE = ["/usr/bin/thv", "run", "--name", "notes", "--transport", "stdio", "--port", str(PORT), "--oidc-issuer", wire.ISSUER,
        "--oidc-audience", AUDIENCE, "--volume", "/opt/peers:ro"]
SERVER = ["--", "/usr/bin/python3", "-u", "/opt/peers/scripted.py"]


def variables(client):
    answer = client.post("tools/call", {"name": "probe", "arguments": {"probe": "environment", "argument": ""}})
    through, said = json.loads(answer.message["result"]["content"][0]["text"])
    assert through, said
    return json.loads(said)


def a_command_line_becomes_a_transient_unit_with_a_user_of_its_own(host):
    host.run("mkdir", "--parents", "--mode=0700", "/etc/credstore")
    host.write("/etc/credstore/notes-key", "canary-of-notes\n", mode=0o600)
    refused = host.run(*LINE, "--secret", "no-such,target=KEY", *SERVER, check=False)
    assert refused.returncode == 64 and "systemd-creds encrypt" in refused.stderr, refused
    done = host.run(*LINE, "--secret", "notes-key,target=KEY", *SERVER)
    assert done.stdout.strip() == UNIT, done
    assert "every caller with a valid token may call everything" in done.stderr.splitlines()[0], done.stderr
    # It is not dumpable, so its directory in /proc is root's.
    status = host.text("grep", "^Uid:", f"/proc/{host.pid(UNIT)}/status")
    uid = status.split()[1]
    assert f"run as uid {uid}," in done.stderr and int(uid) >= 61184, (uid, done.stderr)
    with wire.Client(PORT) as client:
        assert client.initialize().status == 401
    with wire.Client(PORT, wire.token("alice", AUDIENCE)) as client:
        answer = client.initialize()
        assert answer.status == 200, answer
        assert variables(client)["KEY"] == "canary-of-notes"
        again = host.run(*LINE, *SERVER, check=False)
        assert again.returncode != 0 and f"systemctl stop {UNIT}" in again.stderr, again
        client.leave()
    host.run("systemctl", "stop", UNIT)
    assert host.state(UNIT) == "inactive"
    assert host.run("test", "-e", "/run/thv-run/notes", check=False).returncode != 0, "its files are left"
    host.flush_journal()
    journal = host.text("journalctl", "-u", UNIT, "-o", "json")
    assert "THV_DECISION" in journal and "canary-of-notes" not in journal


def an_ordinary_users_command_line_becomes_a_unit_of_their_own_manager(host):
    uid = host.text("id", "--user", "caller")
    # What logging in would start; there is no PAM here.
    runtime = f"/run/user/{uid}"
    host.run("install", "--directory", "--mode=0700", "--owner=caller", "--group=caller", runtime)
    host.run("systemd-run", "--quiet", "--unit=manager-of-caller", "--uid=caller", "--property=Delegate=yes", "--property=Type=notify",
             "--property=NotifyAccess=all", f"--setenv=XDG_RUNTIME_DIR={runtime}", "/usr/lib/systemd/systemd", "--user")
    user = ["env", f"XDG_RUNTIME_DIR={runtime}"]
    done = host.run(*user, *LINE, *SERVER, user="caller")
    assert done.stdout.strip() == UNIT, done
    assert f"run as uid {uid}, the same for both: yours" in done.stderr, done.stderr
    with wire.Client(PORT, wire.token("alice", AUDIENCE)) as client:
        assert client.initialize().status == 200
        assert "KEY" not in variables(client)
        client.leave()
    host.run(*user, "systemctl", "--user", "stop", UNIT, user="caller")
    assert host.run("test", "-e", f"/run/user/{uid}/thv-run/notes", check=False).returncode != 0, "its files are left"
    host.run("systemctl", "stop", "manager-of-caller")
    bare = host.run(*LINE, *SERVER, user="caller", check=False)
    assert bare.returncode != 0 and "--foreground" in bare.stderr, bare


def a_unit_that_cannot_listen_does_not_count_as_started(host):
    done = host.run(*LINE, "--port", "9000", *SERVER, check=False)
    assert done.returncode == 64, "twice is refused before anything"
    line = [str(wire.IDP_PORT) if word == str(PORT) else word for word in LINE]
    done = host.run(*line, *SERVER, check=False)
    assert done.returncode != 0 and "did not start" in done.stderr, done
    assert host.run("test", "-e", "/run/thv-run/notes", check=False).returncode != 0, "its files are left"


def a_secret_that_is_set_reaches_its_server_encrypted(host):
    """probe-3, probe-4: from standard input to the server, readable by nobody on the way."""
    host.write("/tmp/secret", "canary-of-probes\n", mode=0o600)
    host.run("sh", "-c", f"thv secret set {PROBES} probe-key < /tmp/secret; rm /tmp/secret")
    stored = f"/etc/credstore.encrypted/thv.{PROBES}.probe-key"
    assert host.text("stat", "--format=%a %U", stored) == "600 root"
    assert "canary-of-probes" not in host.text("cat", stored)
    file = host.path(f"/etc/thv/servers/{PROBES}.toml")
    before = file.read_text()
    file.write_text(before + '\n[env]\nKEY = { credential = "probe-key" }\n'
                    'FILE = { credential-file = "probe-key" }\nNONE = { credential = "other" }\n')
    warned = host.text("thv", "check", PROBES)
    assert "probe-key" not in warned and f"thv secret set {PROBES} other" in warned, warned
    file.write_text(file.read_text().replace('NONE = { credential = "other" }\n', ""))
    host.run("systemctl", "stop", f"thv@{PROBES}.service", f"thv-runner@{PROBES}.service")
    try:
        with wire.Client(servers.PORTS[PROBES], wire.token("alice", servers.resource(PROBES))) as client:
            answer = client.initialize()
            assert answer.status == 200, answer
            seen = variables(client)
            assert seen["KEY"] == "canary-of-probes" and seen["FILE"] == "/run/secrets/probe-key", seen
            gateway = host.pid(f"thv@{PROBES}.service")
            credentials = host.text("ls", f"/run/credentials/thv@{PROBES}.service")
            assert "probe-key" not in credentials, "the gateway is given it"
            assert "canary-of-probes" not in host.text("cat", f"/proc/{gateway}/environ")
            # Of all that runs it is the server's alone, and no command line's.
            holding = host.text("sh", "-c", "grep -l canary[-]of-probes /proc/[0-9]*/environ 2> /dev/null; true").split()
            assert len(holding) == 1, holding
            assert host.text("sh", "-c", "grep -l canary[-]of-probes /proc/[0-9]*/cmdline 2> /dev/null; true") == ""
            client.leave()
        host.flush_journal()
        assert "canary-of-probes" not in host.text("journalctl", "-o", "json", "--no-pager")
        kept = ("/var/lib/private/thv", "/var/lib/private/thv-runner", "/etc/thv", "/etc/systemd", "/etc/credstore.encrypted", "/run/thv", "/run/systemd/system")
        assert host.run("grep", "-rl", "canary-of-probes", *kept, check=False).stdout == "", "it is written somewhere"
    finally:
        file.write_text(before)
        # As an administrator takes it back.
        host.run("rm", stored, f"/etc/systemd/system/thv-runner@{PROBES}.service.d/50-secret-probe-key.conf")
        host.run("systemctl", "daemon-reload")
        host.run("systemctl", "stop", f"thv@{PROBES}.service", f"thv-runner@{PROBES}.service")


ALL = [
    a_command_line_becomes_a_transient_unit_with_a_user_of_its_own,
    an_ordinary_users_command_line_becomes_a_unit_of_their_own_manager,
    a_unit_that_cannot_listen_does_not_count_as_started,
    a_secret_that_is_set_reaches_its_server_encrypted,
]

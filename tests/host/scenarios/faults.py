"""What breaks on a host: a restart in the middle, a kill, a freeze, a new program, a bad or a changed configuration."""

import http.client
import json
import socket
import threading
import time

import names
import servers
import wire
from servers import FAULTS

PORT = servers.PORTS[FAULTS]
GATEWAY, RUNNER = f"thv@{FAULTS}.service", f"thv-runner@{FAULTS}.service"
FILE, POLICY = f"/etc/thv/servers/{FAULTS}.toml", f"/etc/thv/policies/{FAULTS}.cedar"
MODERN = "2026-07-28"


def a_restart_in_a_long_call_drains_it_to_the_deadline_and_does_not_do_it_again(host):
    """fault-4"""
    ready(host)
    with session(timeout=90) as client, session() as other:
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(client.call("count", {"number": 41, "seconds": 600})))
        waiting.start()
        host.until("the call to be at work", 20, lambda: 41 in done(host))
        start = time.monotonic()
        host.run("systemctl", "restart", GATEWAY)
        waiting.join()
        waited = time.monotonic() - start
        other.close()
        assert other.call("count", {"number": 0}).status == 404, "legacy sessions begin anew"
    error = answers[0].message["error"]
    assert error["code"] == -32603 and error["message"] == "shutting down, outcome unknown", answers
    assert error["data"]["reason"] == "shutting-down", error
    assert 19 < waited < 40, f"given {waited:.1f} s"
    with session() as client:
        assert client.said("count", {"number": 42}) == "42"
        client.leave()
    assert done(host).count(41) == 1 and done(host)[-1] == 42, done(host)
    host.flush_journal()
    made = [record for record in records(host, "decision") if record.get("THV_TOOL") == "count"]
    ended = [record for record in records(host, "outcome") if record.get("THV_REASON") == "stopping"]
    assert {record["THV_REQUEST_ID"] for record in ended} <= {record["THV_REQUEST_ID"] for record in made}, ended
    assert len(ended) == 1, ended


def a_gateway_that_is_killed_between_record_and_dispatch_has_done_nothing(host):
    """fault-7; fault-6: the next one says that there was a violent end."""
    ready(host)
    host.run("systemctl", "restart", GATEWAY)
    host.run("systemctl", "start", RUNNER)
    gateway, runner = host.pid(GATEWAY), host.pid(RUNNER)
    # Whoever is to start the server stands still: what is permitted is on record, and goes nowhere.
    kill(host, "STOP", runner)
    lost = []
    try:
        asking = threading.Thread(target=lambda: lost.append(modern(77)))
        asking.start()

        def recorded():
            host.flush_journal()
            return [record for record in records(host, "decision", f"_PID={gateway}") if record.get("THV_METHOD") == "tools/call"]

        (decision,) = host.until("the decision to be on record", 20, recorded)
        assert decision["THV_DECISION"] == "allow", decision
        kill(host, "KILL", gateway)
        asking.join()
    finally:
        kill(host, "CONT", runner)
    assert isinstance(lost[0], OSError | http.client.HTTPException), f"the client was told: {lost}"
    host.wait_for_another(GATEWAY, gateway)
    with session() as client:
        assert client.said("count", {"number": 78}) == "78", "and it is served"
        client.leave()
    assert 77 not in done(host), "nothing had happened"
    host.flush_journal()
    request = decision["THV_REQUEST_ID"]
    assert not records(host, "outcome", f"THV_REQUEST_ID={request}"), "nobody knows the outcome, and nobody says one"
    (told,) = records(host, "unfinished", f"_PID={host.pid(GATEWAY)}")
    assert told["THV_LAST_PID"] == str(gateway), told
    host.run("systemctl", "restart", GATEWAY)
    host.flush_journal()
    assert not records(host, "unfinished", f"_PID={host.pid(GATEWAY)}"), "the last one came to its end"


def a_bad_configuration_is_refused_by_a_reload_and_a_good_one_taken(host):
    """fault-9, fault-51"""
    ready(host)
    good, before = servers.TEXTS[FAULTS], host.pid(GATEWAY)
    bad = good.replace("audience =", "audiense =")
    line = next(number for number, text in enumerate(bad.splitlines(), 1) if "audiense" in text)
    try:
        with session() as client:
            host.write(FILE, bad)
            refused = host.run("systemctl", "reload", GATEWAY, check=False)
            assert refused.returncode != 0, "a refused configuration is a failed reload"
            # And told by the bare signal.
            host.run("systemctl", "kill", "--signal=HUP", "--kill-whom=main", GATEWAY)

            def refusals():
                host.flush_journal()
                return records(host, "config-refused", f"_PID={before}")

            told = host.until("the refusal to be on record", 10, refusals)
            assert (FILE, str(line)) in [(record["THV_CONFIG_FILE"], record["THV_CONFIG_LINE"]) for record in told], told
            said = host.text("journalctl", "--unit", GATEWAY, "--output=cat", "--no-pager", "--lines=40")
            assert f"{FILE}:{line}" in said and "going on with the one from before" in said, said
            assert client.said("count", {"number": 51}) == "51", "the old one is in force"
            host.write(POLICY, "permit (principal, action, resourc);")
            host.write(FILE, good)
            assert host.run("systemctl", "reload", GATEWAY, check=False).returncode != 0
            assert client.said("count", {"number": 52}) == "52", "and its policies"
            host.write(POLICY, servers.POLICIES[FAULTS])
            host.run("systemctl", "reload", GATEWAY)
            assert client.said("count", {"number": 53}) == "53", "what has not changed ends no session"
            assert host.pid(GATEWAY) == before and host.is_active(GATEWAY)
            version = versions(host)[-1]
            host.write(POLICY, servers.POLICIES[FAULTS] + "// another\n")
            host.run("systemctl", "reload", GATEWAY)
            host.until("the old one to make way", 30, lambda: host.pid(GATEWAY) != before)
        assert host.unit(f"thv@{FAULTS}.socket", "ActiveState") == "active"
        with session() as client:
            assert client.said("count", {"number": 54}) == "54"
            client.leave()
        assert host.unit(GATEWAY, "Result") == "success"
        assert versions(host)[-1] != version, "another configuration has another name"
    finally:
        host.write(FILE, good)
        host.write(POLICY, servers.POLICIES[FAULTS])


def each_decision_under_reloads_is_of_one_version(host):
    """fault-52"""
    ready(host)
    base = '@id("open")\npermit (principal, action, resource);\n'
    forbids = {tool: base + f'@id("no")\nforbid (principal, action == Action::"tools/call", resource == Tool::"{tool}");\n' for tool in ("a", "b")}
    host.write(POLICY, forbids["a"])
    host.run("systemctl", "restart", GATEWAY)
    host.flush_journal()
    cursor = host.text("journalctl", "--lines=1", "--show-cursor", "--output=cat").rsplit("-- cursor: ", 1)[1]
    ended, odd, answered = threading.Event(), [], []

    def call_on():
        while not ended.is_set():
            try:
                with session() as client:
                    for number in range(10_000):
                        tool = "ab"[number % 2]
                        status = client.call(tool, {"number": 100}).status
                        if status in (404, 503) or ended.is_set():
                            break
                        if status not in (200, 403):
                            odd.append((tool, status))
                        answered.append(status)
            except (AssertionError, OSError, http.client.HTTPException):
                # A session that begins while one gateway follows the other.
                pass

    callers = [threading.Thread(target=call_on) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        for tool in "babab":
            before = host.pid(GATEWAY)
            host.write(POLICY, forbids[tool])
            # A session that begins just now has it go by itself: then there is nothing to reload.
            host.run("systemctl", "try-reload-or-restart", GATEWAY, check=False)
            host.wait_for_another(GATEWAY, before, 40)
            calls = len(answered) + 100
            host.until("calls under this version", 40, lambda: len(answered) >= calls)
    finally:
        ended.set()
        for caller in callers:
            caller.join()
    assert not odd, odd[:5]
    host.flush_journal()
    # What a session that has ended is told is no policy's word.
    decided = [record for record in records(host, "decision", f"--after-cursor={cursor}")
               if record.get("THV_TOOL") and record.get("THV_REASON", "policy") == "policy"]
    verdicts = {}
    for record in decided:
        verdicts.setdefault(record["THV_CONFIG"], set()).add((record["THV_TOOL"], record["THV_DECISION"]))
    assert sorted(map(sorted, verdicts.values())) == [
        [("a", "allow"), ("b", "deny")], [("a", "deny"), ("b", "allow")]], verdicts
    print(f"        {len(decided)} decisions of {len(verdicts)} versions in 6 gateways, each of one")
    host.write(POLICY, servers.POLICIES[FAULTS])
    host.run("systemctl", "restart", GATEWAY)


def a_new_program_on_disk_changes_nothing_until_the_next_start(host):
    """fault-11"""
    ready(host)
    with session() as client:
        host.run("cp", "--preserve", "/usr/bin/thv", "/usr/bin/thv.kept")
        before = host.pid(GATEWAY), host.pid(RUNNER)
        try:
            # A program that can do nothing, put in place as packages do it.
            host.write("/usr/bin/thv", "#!/bin/sh\nexit 1\n", mode=0o755)
            assert client.said("count", {"number": 61}) == "61"
            with session() as other:
                assert other.said("count", {"number": 62}) == "62", "children, too, are the old program's"
                other.leave()
            assert (host.pid(GATEWAY), host.pid(RUNNER)) == before
        finally:
            host.run("mv", "/usr/bin/thv.kept", "/usr/bin/thv")
        client.leave()
    host.run("systemctl", "restart", GATEWAY)
    with session() as client:
        assert client.said("count", {"number": 63}) == "63"
        client.leave()


def a_gateway_that_hangs_is_killed_by_the_watchdog_and_the_next_one_serves(host):
    """fault-13"""
    ready(host)
    before, restarts = host.pid(GATEWAY), int(host.unit(GATEWAY, "NRestarts"))
    start = time.monotonic()
    kill(host, "STOP", before)
    # It waits in the queue of a process that will never take it.
    with session(timeout=60) as client:
        assert client.said("count", {"number": 71}) == "71"
        waited = time.monotonic() - start
        client.leave()
    assert host.pid(GATEWAY) != before
    assert int(host.unit(GATEWAY, "NRestarts")) == restarts + 1
    # WatchdogSec=25s since it was last heard, and RestartSec=1s.
    assert waited < 30, f"{waited:.1f} s"
    host.flush_journal()
    assert "watchdog" in host.text("journalctl", "--no-pager", "--output=cat", "_PID=1", f"UNIT={GATEWAY}", "--lines=20").lower()
    print(f"        served again after {waited:.1f} s")


def a_gateway_that_is_killed_is_started_again_and_its_backlog_is_served(host):
    """fault-23: as the kernel kills where memory ends; its doing so is tests/host/limits/gateway.py"""
    ready(host)
    before, crowd = host.pid(GATEWAY), []
    request = (f"GET /.well-known/oauth-protected-resource/mcp HTTP/1.1\r\nHost: 127.0.0.1:{PORT}\r\nConnection: close\r\n\r\n").encode()
    kill(host, "STOP", before)
    for _ in range(200):
        stranger = socket.create_connection(("127.0.0.1", PORT), timeout=30)
        stranger.sendall(request)
        crowd.append(stranger)
    start = time.monotonic()
    kill(host, "KILL", before)
    answers = set()
    for stranger in crowd:
        with stranger, stranger.makefile("rb") as answer:
            answers.add(answer.readline())
    waited = time.monotonic() - start
    assert answers == {b"HTTP/1.1 200 OK\r\n"}, answers
    assert host.pid(GATEWAY) != before and host.unit(f"thv@{FAULTS}.socket", "ActiveState") == "active"
    print(f"        200 that waited were served {waited:.1f} s after the kill")


def a_second_gateway_on_one_state_directory_is_turned_away(host):
    """fault-53"""
    ready(host)
    with session() as client:
        host.run("install", "-D", "--mode=0600", f"/run/thv/key/{FAULTS}", "/run/second/runner-key")
        second = ["systemd-socket-activate", "--fdname=mcp", "--listen=127.0.0.1:8096",
                  f"--setenv=STATE_DIRECTORY=/var/lib/private/thv/{FAULTS}", "--setenv=CREDENTIALS_DIRECTORY=/run/second",
                  "/usr/bin/thv", "serve", FAULTS]
        done = []
        serving = threading.Thread(target=lambda: done.append(host.run(*second, check=False)))
        serving.start()

        def turned_away():
            try:
                with socket.create_connection(("127.0.0.1", 8096), timeout=5) as stranger:
                    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    stranger.recv(100)
            except OSError:
                pass
            return done

        host.until("the second to end", 30, turned_away)
        serving.join()
        said = done[0].stdout + done[0].stderr
        assert done[0].returncode != 0 and "another gateway serves from the state directory" in said, done[0]
        assert client.said("count", {"number": 91}) == "91", "the first one serves on"
        client.leave()


def what_is_missing_at_a_start_is_said_and_nothing_half_starts(host):
    """fault-50: no room in /run, and no randomness"""
    ready(host)
    socket_unit = f"thv-runner@{FAULTS}.socket"
    for unit in (f"thv@{FAULTS}.socket", GATEWAY, RUNNER, socket_unit):
        host.run("systemctl", "stop", unit)
    host.run("mount", "-t", "tmpfs", "-o", "size=4k,mode=0700", "full", "/run/thv/key")
    try:
        host.path("/run/thv/key/full").write_bytes(b"x" * 4096)
        assert host.run("systemctl", "start", socket_unit, check=False).returncode != 0
        host.flush_journal()
        said = host.text("journalctl", "--no-pager", "--output=cat", "--unit", socket_unit, "--lines=20")
        assert "/run/thv/key" in said and "No space left" in said, said
    finally:
        host.run("umount", "/run/thv/key")
        host.run("systemctl", "reset-failed", socket_unit, check=False)
    drop_in = f"/etc/systemd/system/{GATEWAY}.d/dice.conf"
    host.write(drop_in, "[Service]\nSystemCallFilter=~getrandom\nRestart=no\n")
    host.run("systemctl", "daemon-reload")
    try:
        assert host.run("systemctl", "start", GATEWAY, check=False).returncode != 0
        host.flush_journal()
        said = host.text("journalctl", "--no-pager", "--output=cat", "--unit", GATEWAY, "--lines=20")
        assert "the kernel gives no random bytes" in said, said
    finally:
        host.run("rm", "-r", f"/etc/systemd/system/{GATEWAY}.d")
        host.run("systemctl", "daemon-reload")
        host.run("systemctl", "reset-failed", GATEWAY, check=False)
    host.run("systemctl", "start", f"thv@{FAULTS}.socket")
    with session() as client:
        assert client.said("count", {"number": 95}) == "95"
        client.leave()
    host.run("systemctl", "stop", f"thv@{FAULTS}.socket", GATEWAY)


def an_issuer_whose_name_does_not_resolve_is_away_and_one_that_moves_is_found(host):
    """fault-30"""
    name, place = "named", "/etc/thv/names"
    port, unit = servers.PORTS[name], f"thv@{name}.service"
    issuer = names.Issuer(host, "idp.test", 9443, place)
    resolver, kept = names.NameServer(), host.text("cat", "/etc/resolv.conf", check=False)
    host.write("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    text = servers.configuration(name, '["/usr/bin/python3", "/opt/peers/scripted.py"]', 'allow = "authenticated"', issuer=f'ca-file = "{issuer.ca}"')
    host.write(f"/etc/thv/servers/{name}.toml", text.replace(wire.ISSUER, issuer.url))
    host.run("chmod", "755", place)
    host.run("thv", "listen", name, f"127.0.0.1:{port}")
    host.run("systemctl", "start", f"thv@{name}.socket")
    audience = servers.resource(name)

    def status(token):
        with wire.Client(port, token) as client:
            answer = client.initialize()
            if answer.status == 200:
                client.leave()
            return answer.status

    try:
        issuer.serve_at("127.0.0.2")
        token = issuer.token("alice", audience)
        for says in (names.NXDOMAIN, names.SERVFAIL, names.SILENT):
            resolver.says, asked = says, resolver.asked
            host.run("systemctl", "restart", unit)
            start = time.monotonic()
            assert status(token) == 503, says
            assert time.monotonic() - start < 8, says
            assert resolver.asked > asked, "nobody was asked"
            host.flush_journal()
            (alarm, *_) = host.text("journalctl", "--unit", unit, "THV_EVENT=keys-unavailable", "--reverse", "--output=json").splitlines()
            alarm = json.loads(alarm)
            assert alarm["PRIORITY"] == "3" and "`idp.test` cannot be resolved" in alarm["THV_ERROR"] or says == names.SILENT, alarm
        resolver.says = "127.0.0.2"
        host.until("the gateway to find it", 15, lambda: status(token) == 200)
        # It moves, and has a new key there. What is good stays good, and the new key is found at the new address.
        issuer.rotate("second")
        issuer.serve_at("127.0.0.3")
        resolver.says = "127.0.0.3"
        moved, heard, told = issuer.token("alice", audience), issuer.heard, set()

        def is_found():
            assert status(token) == 200, "the old key"
            told.add(status(moved))
            return 200 in told

        host.until("the new address to be asked", 60, is_found)
        assert issuer.heard > heard
    finally:
        issuer.close()
        resolver.close()
        host.write("/etc/resolv.conf", kept + "\n")
        host.run("systemctl", "stop", f"thv@{name}.socket", unit)
        host.run("rm", f"/etc/thv/servers/{name}.toml")


def ready(host):
    """The server is enabled, and its gateway runs."""
    if host.state(f"thv@{FAULTS}.socket") != "active":
        servers.enable(host, FAULTS)
    with session() as client:
        client.leave()


def kill(host, signal, pid):
    # Zero would be the driver's own group.
    assert pid > 1, f"there is no process to send SIG{signal}"
    host.run("kill", f"-{signal}", pid)


def session(timeout=30):
    return wire.opened(PORT, wire.token("alice", servers.resource(FAULTS)), timeout)


def modern(number):
    """One call without a session; what comes of it, be it an error."""
    meta = {"io.modelcontextprotocol/protocolVersion": MODERN, "io.modelcontextprotocol/clientCapabilities": {}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call",
            "params": {"name": "count", "arguments": {"number": number}, "_meta": meta}}
    headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": "count"}
    with wire.Client(PORT, wire.token("alice", servers.resource(FAULTS)), timeout=60) as client:
        try:
            return client.request("POST", json.dumps(body), headers)
        except (OSError, http.client.HTTPException) as error:
            return error


def done(host):
    """The numbers that the server has counted, in order."""
    lists = host.text("find", f"/var/lib/private/thv-runner/{FAULTS}", "-name", "calls").splitlines()
    return [int(line) for name in lists for line in host.text("cat", name).splitlines()]


def records(host, event, *more):
    text = host.text("journalctl", "--output=json", "--no-pager", f"--unit={GATEWAY}", f"THV_EVENT={event}", *more, check=False)
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def versions(host):
    host.flush_journal()
    return [record["THV_CONFIG"] for record in records(host, "decision")]


ALL = [
    a_restart_in_a_long_call_drains_it_to_the_deadline_and_does_not_do_it_again,
    a_gateway_that_is_killed_between_record_and_dispatch_has_done_nothing,
    a_bad_configuration_is_refused_by_a_reload_and_a_good_one_taken,
    each_decision_under_reloads_is_of_one_version,
    a_new_program_on_disk_changes_nothing_until_the_next_start,
    a_gateway_that_hangs_is_killed_by_the_watchdog_and_the_next_one_serves,
    a_gateway_that_is_killed_is_started_again_and_its_backlog_is_served,
    a_second_gateway_on_one_state_directory_is_turned_away,
    what_is_missing_at_a_start_is_said_and_nothing_half_starts,
    an_issuer_whose_name_does_not_resolve_is_away_and_one_that_moves_is_found,
]

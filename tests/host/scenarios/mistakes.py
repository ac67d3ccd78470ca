"""Configurations that cannot be served, and a journal that does not listen."""

import json
import socket as socketlib
import threading
import time

import servers
import wire
from servers import PROBES, UNASKED, WRONG

CLIENTS = 100
SECONDS = 60
GOOD = servers.configuration(WRONG, '["/usr/bin/python3", "/opt/peers/scripted.py"]', 'allow = "authenticated"')
# The thirteenth line: an audience is mandatory.
BAD = GOOD.replace("audience =", "audiense =")
LINE = next(number for number, line in enumerate(BAD.splitlines(), 1) if "audiense" in line)


def a_misconfigured_server_tells_every_client_so_and_serves_once_it_is_mended(host):
    host.write(f"/etc/thv/servers/{WRONG}.toml", BAD)
    host.run("thv", "listen", WRONG, f"127.0.0.1:{servers.PORTS[WRONG]}")
    host.run("systemctl", "start", f"thv@{WRONG}.socket")
    told, slowest = [], []

    def ask(number):
        # The pace is the point: they come one after the other for so long.
        time.sleep(number * SECONDS / CLIENTS)
        start = time.monotonic()
        with wire.Client(servers.PORTS[WRONG]) as client:
            answer = client.initialize()
        slowest.append(time.monotonic() - start)
        told.append((answer.status, answer.headers["Retry-After"], b"misconfigured" in answer.body, b"audience" in answer.body))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [(503, "30", True, False)] * CLIENTS, (len(told), set(told))
    assert max(slowest) < 1, f"one waited {max(slowest):.2f} s"
    assert host.is_active(f"thv@{WRONG}.socket")
    assert host.unit(f"thv@{WRONG}.service", "NRestarts") == "0"
    host.flush_journal()
    records = [json.loads(line) for line in host.text(
        "journalctl", f"--unit=thv@{WRONG}.service", "THV_EVENT=config-refused", "--output=json").splitlines()]
    places = {(record["THV_CONFIG_FILE"], record["THV_CONFIG_LINE"], record["THV_CONFIG_KEY"]) for record in records}
    file = f"/etc/thv/servers/{WRONG}.toml"
    assert any(place[:2] == (file, str(LINE)) and "audiense" in place[2] for place in places), places
    assert any("audiense" in record["MESSAGE"] and f"{file}:{LINE}" in record["MESSAGE"] for record in records), records[0]["MESSAGE"]
    check = host.run("thv", "check", WRONG, check=False)
    assert check.returncode == 78 and f"{file}:{LINE}" in check.stdout, check

    gateway = host.pid(f"thv@{WRONG}.service")
    host.write(file, GOOD)
    token = wire.token("alice", servers.resource(WRONG))
    with wire.opened(servers.PORTS[WRONG], token) as client:
        client.said("echo")
        client.leave()
    assert host.pid(f"thv@{WRONG}.service") == gateway, "nothing had to be restarted"
    host.run("systemctl", "stop", f"thv@{WRONG}.socket")


def a_misconfigured_server_that_nobody_asks_any_more_has_told_so_once(host):
    """Its end is minutes away: others are played meanwhile."""
    host.write(f"/etc/thv/servers/{UNASKED}.toml", BAD)
    host.run("thv", "listen", UNASKED, f"127.0.0.1:{servers.PORTS[UNASKED]}")
    host.run("systemctl", "start", f"thv@{UNASKED}.socket")
    with wire.Client(servers.PORTS[UNASKED]) as client:
        assert client.initialize().status == 503


def a_misconfigured_server_that_nobody_asks_leaves_with_78_and_its_socket_stays(host):
    service = f"thv@{UNASKED}.service"
    host.wait_for(service, "failed", 180)
    assert host.unit(service, "ExecMainStatus") == "78"
    assert host.unit(f"thv@{UNASKED}.socket", "SubState") == "listening"
    with wire.Client(servers.PORTS[UNASKED]) as client:
        assert client.initialize().status == 503
    host.run("systemctl", "stop", f"thv@{UNASKED}.socket")
    host.run("systemctl", "reset-failed", service, check=False)


def a_server_whose_program_is_missing_says_why_and_its_gateway_stays(host):
    text = GOOD.replace("/usr/bin/python3", "/usr/bin/no-such-program")
    host.write(f"/etc/thv/servers/{WRONG}.toml", text)
    host.run("thv", "listen", WRONG, f"127.0.0.1:{servers.PORTS[WRONG]}")
    host.run("systemctl", "start", f"thv@{WRONG}.socket")
    with wire.Client(servers.PORTS[WRONG], wire.token("alice", servers.resource(WRONG))) as client:
        for _ in range(2):
            answer = client.initialize()
            assert answer.status == 503 and answer.message["error"]["code"] == -32603, answer
    assert host.is_active(f"thv@{WRONG}.service")
    host.flush_journal()
    journal = host.text("journalctl", f"--unit=thv@{WRONG}.service", "--output=cat")
    assert "no-such-program" in journal, journal[-500:]
    host.run("systemctl", "stop", f"thv@{WRONG}.socket")


def a_file_that_root_alone_can_read_is_named_by_check_and_journal(host):
    file, policy = f"/etc/thv/servers/{WRONG}.toml", "/etc/thv/policies/wrong.cedar"
    host.write(policy, "permit (principal, action, resource);\n")
    text = GOOD.replace('allow = "authenticated"', f'policies = ["{policy}"]')
    service = f"thv@{WRONG}.service"
    host.run("thv", "listen", WRONG, f"127.0.0.1:{servers.PORTS[WRONG]}")
    for hidden, mode, good in [(file, "600", "644"), (policy, "640", "644"), ("/etc/thv/policies", "700", "755")]:
        host.run("systemctl", "stop", f"thv@{WRONG}.socket", service)
        host.write(file, text)
        host.run("chmod", mode, hidden)
        cure = f"`chmod a+rX {hidden}`"
        said = host.text("thv", "check", WRONG, check=False)
        assert cure in said, (hidden, said)
        host.run("systemctl", "start", f"thv@{WRONG}.socket")
        with wire.Client(servers.PORTS[WRONG]) as client:
            assert client.initialize().status == 503
        host.flush_journal()
        refused = host.text("journalctl", f"--unit={service}", "THV_EVENT=config-refused", "--output=cat", "--lines=1")
        assert cure in refused, (hidden, refused)
        assert cure in host.unit(service, "StatusText"), hidden
        host.run("chmod", good, hidden)
        assert cure not in host.text("thv", "check", WRONG)
    host.run("systemctl", "stop", f"thv@{WRONG}.socket", service)
    host.run("rm", policy)


def a_credential_whose_file_is_missing_is_named_by_check_and_by_the_gateway(host):
    service = f"thv-runner@{WRONG}.service"
    drop_in = f"/etc/systemd/system/{service}.d/key.conf"
    host.write(f"/etc/thv/servers/{WRONG}.toml", GOOD)
    host.write(drop_in, "[Service]\nLoadCredential=key:/etc/no-such-key\n")
    host.run("systemctl", "daemon-reload")
    host.run("thv", "listen", WRONG, f"127.0.0.1:{servers.PORTS[WRONG]}")
    said = host.text("thv", "check", WRONG)
    assert service in said and "/etc/no-such-key" in said, said
    host.run("systemctl", "start", f"thv@{WRONG}.socket")
    with wire.Client(servers.PORTS[WRONG], wire.token("alice", servers.resource(WRONG)), timeout=60) as client:
        answer = client.initialize()
        assert answer.status == 503 and f"journalctl -u {service}".encode() in answer.body, answer
    host.run("rm", "-r", drop_in.rpartition("/")[0])
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "stop", f"thv@{WRONG}.socket", f"thv@{WRONG}.service", service)
    host.run("systemctl", "reset-failed", service, check=False)


def a_gateway_whose_credential_is_missing_tries_ever_less_often_and_serves_once_it_is_there(host):
    """systemd's status 243: thv itself never runs, and the socket must not be lost over it."""
    service, socket = f"thv@{WRONG}.service", f"thv@{WRONG}.socket"
    drop_in = f"/etc/systemd/system/{service}.d/key.conf"
    text = GOOD.replace("[authz]", 'introspection = { client-id = "thv", credential = "idp" }\n[authz]')
    host.write(f"/etc/thv/servers/{WRONG}.toml", text)
    host.run("thv", "listen", WRONG, f"127.0.0.1:{servers.PORTS[WRONG]}")
    token = wire.token("alice", servers.resource(WRONG))

    def configure(line):
        host.write(drop_in, f"[Service]\n{line}\n")
        host.run("systemctl", "daemon-reload")

    # By a path: nothing of thv's runs, the tries become rarer, and who has connected waits.
    secret = "/etc/thv-idp-secret"
    configure(f"LoadCredential=idp:{secret}")
    host.run("systemctl", "start", socket)
    waiting = wire.Client(servers.PORTS[WRONG], token, timeout=60)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(waiting.initialize()))
    thread.start()
    host.until("three tries", 60, lambda: int(host.unit(service, "NRestarts")) >= 3)
    host.until("its status", 30, lambda: host.unit(service, "ExecMainStatus") == "243")
    said = host.text("systemctl", "show", "--property=RestartUSec,RestartUSecNext,RestartMaxDelayUSec", service)
    values = dict(line.split("=") for line in said.splitlines())
    assert values["RestartUSec"] == "1s" and values["RestartMaxDelayUSec"] == "15s", values
    assert values["RestartUSecNext"] not in ("1s", "0", ""), values
    assert host.is_active(socket), host.state(socket)
    assert secret in host.text("thv", "check", WRONG), "check names the file"
    host.write(secret, "secret-of-thv", mode=0o600)
    thread.join(60)
    waiting.close()
    assert answers and answers[0].status == 200, answers

    # By its name alone: thv runs, and says what is missing.
    host.run("rm", secret)
    configure("LoadCredential=idp")
    host.run("systemctl", "stop", socket, service)
    host.run("systemctl", "start", socket)
    with wire.Client(servers.PORTS[WRONG], token) as client:
        answer = client.initialize()
        assert answer.status == 503 and b"misconfigured" in answer.body, answer
    assert host.is_active(service)
    host.flush_journal()
    refused = host.text("journalctl", f"--unit={service}", "THV_EVENT=config-refused", "--output=cat", "--lines=1")
    assert "/idp`" in refused, refused
    host.write("/etc/credstore/idp", "secret-of-thv", mode=0o600)
    host.run("systemctl", "restart", service)
    with wire.opened(servers.PORTS[WRONG], token) as client:
        client.said("echo")
        client.leave()
    host.run("rm", "/etc/credstore/idp")
    host.run("rm", "-r", drop_in.rpartition("/")[0])
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "stop", socket, service)
    host.run("systemctl", "reset-failed", service, check=False)


def the_hosts_network_needs_its_drop_in_and_the_runner_says_which(host):
    runner = f"thv-runner@{WRONG}.service"
    text = GOOD.replace("[sandbox]", '[sandbox]\nnetwork = "host"\ndangerous = true')
    host.write(f"/etc/thv/servers/{WRONG}.toml", text)
    host.run("thv", "listen", WRONG, f"127.0.0.1:{servers.PORTS[WRONG]}")
    host.run("systemctl", "start", f"thv@{WRONG}.socket")
    token = wire.token("alice", servers.resource(WRONG))
    since = host.text("date", "+%s")

    def journal():
        host.flush_journal()
        return host.text("journalctl", f"--unit={runner}", f"--since=@{since}", "--output=cat")

    with wire.Client(servers.PORTS[WRONG], token) as client:
        assert client.initialize().status == 503
    said = journal()
    assert f"systemctl edit {runner}" in said and "PrivateNetwork=no" in said, said
    assert "THIS HOST'S" not in said, said
    # As it says.
    drop_in = f"/etc/systemd/system/{runner}.d/network.conf"
    host.write(drop_in, "[Service]\nPrivateNetwork=no\n")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "restart", runner)
    with wire.opened(servers.PORTS[WRONG], token) as client:
        said = json.loads(client.said("probe", {"probe": "tcp", "argument": f"127.0.0.1:{wire.IDP_PORT}"}))
        assert said[0], said
        client.leave()
    assert "THIS HOST'S" in journal()
    host.run("rm", "-r", drop_in.rpartition("/")[0])
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "stop", f"thv@{WRONG}.socket", f"thv@{WRONG}.service", runner)


def a_service_that_systemd_cannot_start_is_given_up_and_check_says_what_to_do(host):
    """While somebody waits systemd tries again at once: it did so a thousand times a second, without end."""
    socket, needed = f"thv@{WRONG}.socket", "needed.service"
    drop_in = f"/etc/systemd/system/thv@{WRONG}.service.d/wrong.conf"
    # Its own start limit fails what requires it without a process.
    host.write(f"/etc/systemd/system/{needed}", "[Service]\nType=oneshot\nExecStart=/usr/bin/false\n")
    host.write(f"/etc/thv/servers/{WRONG}.toml", GOOD)
    host.run("thv", "listen", WRONG, f"127.0.0.1:{servers.PORTS[WRONG]}")
    host.write(drop_in, f"[Unit]\nRequires={needed}\nAfter={needed}\n")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", socket)
    try:
        answer = wire.Client(servers.PORTS[WRONG]).initialize()
        raise AssertionError(answer)
    except OSError:
        pass
    host.wait_for(socket, "failed")
    assert host.unit(socket, "Result") == "trigger-limit-hit"
    said = host.text("thv", "check", WRONG)
    assert f"`journalctl -u {socket} -n 5`" in said and f"`systemctl restart {socket}`" in said, said
    host.run("rm", "-r", drop_in.rpartition("/")[0], f"/etc/systemd/system/{needed}")
    host.run("systemctl", "daemon-reload")
    # The limit looks back: it was tried within two seconds.
    time.sleep(2)
    host.run("systemctl", "restart", socket)
    with wire.opened(servers.PORTS[WRONG], wire.token("alice", servers.resource(WRONG))) as client:
        client.said("echo")
        client.leave()
    host.run("systemctl", "stop", socket, f"thv@{WRONG}.service")


def a_fault_of_the_runners_socket_ends_nothing_for_good(host):
    """What fails for a moment while somebody waits is tried again, and serves when it can be started."""
    socket, runner = f"thv@{WRONG}.socket", f"thv-runner@{WRONG}.socket"
    drop_in = f"/etc/systemd/system/{runner}.d/wrong.conf"
    host.write(f"/etc/thv/servers/{WRONG}.toml", GOOD)
    host.run("thv", "listen", WRONG, f"127.0.0.1:{servers.PORTS[WRONG]}")
    # More often than systemd's own start limit allows, and then not again.
    host.write("/run/faults", "1\n2\n3\n4\n5\n6\n7\n8\n")
    host.write(
        drop_in,
        "[Socket]\nExecStartPre=\nExecStartPre=+/bin/sh -c 'test ! -s /run/faults || ! sed -i 1d /run/faults'\n"
        "ExecStartPre=/usr/bin/thv runner-key %i\n",
    )
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", socket)
    with wire.opened(servers.PORTS[WRONG], wire.token("alice", servers.resource(WRONG))) as client:
        client.said("echo")
        client.leave()
    assert host.text("cat", "/run/faults") == ""
    host.run("systemctl", "stop", socket, f"thv@{WRONG}.service")
    host.run("rm", "-r", drop_in.rpartition("/")[0], "/run/faults")
    host.run("systemctl", "daemon-reload")


def a_socket_with_two_addresses_is_named_and_its_gateway_is_not_started_without_a_pause(host):
    socket, service = f"thv@{WRONG}.socket", f"thv@{WRONG}.service"
    drop_in = f"/etc/systemd/system/{socket}.d/60-second.conf"
    host.write(f"/etc/thv/servers/{WRONG}.toml", GOOD)
    host.run("thv", "listen", WRONG, f"127.0.0.1:{servers.PORTS[WRONG]}")
    host.write(drop_in, f"[Socket]\nListenStream=/run/thv/{WRONG}.sock\n")
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", socket)
    said = host.text("thv", "check", WRONG)
    assert f"listens at 127.0.0.1:{servers.PORTS[WRONG]} and /run/thv/{WRONG}.sock" in said, said
    with socketlib.create_connection(("127.0.0.1", servers.PORTS[WRONG])):
        host.until("a second try", 30, lambda: int(host.unit(service, "NRestarts")) >= 1)
        host.flush_journal()
        tries = host.text("journalctl", f"--unit={service}", "--output=cat", "--since=-10s", "--grep=2 sockets where one is expected").splitlines()
        assert 1 <= len(tries) <= 10, len(tries)
        host.run("rm", drop_in)
        host.run("systemctl", "daemon-reload")
        host.run("systemctl", "restart", socket, service)
    with wire.opened(servers.PORTS[WRONG], wire.token("alice", servers.resource(WRONG))) as client:
        client.said("echo")
        client.leave()
    host.run("systemctl", "stop", socket, service)


def a_path_that_another_unit_listens_at_is_not_taken_from_it(host):
    refused = host.run("thv", "listen", WRONG, "/run/dbus/system_bus_socket", check=False)
    assert refused.returncode == 1 and "taken already, by dbus.socket" in refused.stderr, refused


def units_that_are_masked_replaced_or_not_enabled_are_told_by_check(host):
    host.write(f"/etc/thv/servers/{WRONG}.toml", GOOD)
    socket, runner = f"thv@{WRONG}.socket", f"thv-runner@{WRONG}.service"
    check = lambda: host.run("thv", "check", WRONG)
    assert f"`systemctl enable --now {socket}`" in check().stderr
    host.run("systemctl", "start", socket)
    assert f"`systemctl enable {socket}`" in check().stdout
    host.run("systemctl", "enable", socket)
    assert check().stdout == f"{WRONG}: ok\n" and not check().stderr
    host.run("systemctl", "stop", socket)
    assert f"`systemctl start {socket}`" in check().stdout
    host.run("systemctl", "disable", socket)
    host.run("systemctl", "mask", runner)
    assert f"`systemctl unmask {runner}`" in check().stdout
    host.run("systemctl", "unmask", runner)
    own = "/etc/systemd/system/thv@.service"
    host.run("cp", "/usr/lib/systemd/system/thv@.service", own)
    assert f"`{own}` stands in place of the package's unit" in check().stdout
    host.run("rm", own)
    # Where systemd looks, there thv looks, too.
    shared = "/etc/systemd/system/thv-.service.d/net.conf"
    host.write(shared, "[Service]\nPrivateNetwork=no\n")
    host.write(f"/etc/thv/servers/{WRONG}.toml", GOOD.replace("[sandbox]", '[sandbox]\nnetwork = "host"\ndangerous = true'))
    host.run("systemctl", "daemon-reload")
    assert host.unit(runner, "PrivateNetwork") == "no"
    assert "PrivateNetwork=no" not in check().stdout
    host.run("rm", "-r", shared.rpartition("/")[0])
    host.run("systemctl", "daemon-reload")
    assert "PrivateNetwork=no" in check().stdout


def a_stopped_journal_stalls_no_request_and_gets_the_records_later(host):
    with wire.opened(servers.PORTS[PROBES], wire.token("alice", servers.resource(PROBES))) as client:
        client.said("echo")
        marks = [f"journal-{number}" for number in range(300)]
        host.run("systemctl", "kill", "--signal=STOP", "systemd-journald.service")
        try:
            slowest = 0.0
            for mark in marks:
                start = time.monotonic()
                assert client.call("secret", {"mark": mark}).status == 403
                slowest = max(slowest, time.monotonic() - start)
            assert slowest < 1, f"one waited {slowest:.2f} s"
        finally:
            host.run("systemctl", "kill", "--signal=CONT", "systemd-journald.service")
        said = client.said("echo")
        assert said
        client.leave()

    def written():
        host.flush_journal()
        records = host.text(
            "journalctl", f"--unit=thv@{PROBES}.service", "THV_TOOL=secret", "THV_EVENT=decision", "--output=cat", "--lines=all")
        return len(records.splitlines()) >= len(marks)

    host.until("the journal to have them all", 30, written)


FIRST = [a_misconfigured_server_that_nobody_asks_any_more_has_told_so_once]
ALL = [
    a_misconfigured_server_tells_every_client_so_and_serves_once_it_is_mended,
    a_server_whose_program_is_missing_says_why_and_its_gateway_stays,
    a_file_that_root_alone_can_read_is_named_by_check_and_journal,
    a_credential_whose_file_is_missing_is_named_by_check_and_by_the_gateway,
    a_gateway_whose_credential_is_missing_tries_ever_less_often_and_serves_once_it_is_there,
    the_hosts_network_needs_its_drop_in_and_the_runner_says_which,
    a_service_that_systemd_cannot_start_is_given_up_and_check_says_what_to_do,
    a_fault_of_the_runners_socket_ends_nothing_for_good,
    a_socket_with_two_addresses_is_named_and_its_gateway_is_not_started_without_a_pause,
    a_path_that_another_unit_listens_at_is_not_taken_from_it,
    units_that_are_masked_replaced_or_not_enabled_are_told_by_check,
    a_stopped_journal_stalls_no_request_and_gets_the_records_later,
    a_misconfigured_server_that_nobody_asks_leaves_with_78_and_its_socket_stays,
]

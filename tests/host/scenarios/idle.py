"""Nothing runs when nobody calls, and nothing is lost on the edge of it."""

import random
import socket
import time

import servers
import wire
from servers import COUNTER, EVERYTHING

REQUESTS = 1000
# Twice `limits.exit-idle` of that server: half of the pauses end after the exit.
LONGEST_PAUSE = 0.1
SEED = 2


def an_idle_server_has_no_process_and_serves_the_next_request(host):
    """fault-1"""
    # Sessions that earlier scenarios have left open end with it.
    host.run("systemctl", "restart", f"thv@{EVERYTHING}.service")
    token = wire.token("alice", servers.resource(EVERYTHING))
    with wire.opened(servers.PORTS[EVERYTHING], token) as client:
        client.said("echo", {"message": "x"})
        client.leave()
    for unit in (f"thv@{EVERYTHING}.service", f"thv-runner@{EVERYTHING}.service"):
        host.wait_for(unit, "inactive")
        assert host.unit(unit, "Result") == "success"
    for unit in (f"thv@{EVERYTHING}.socket", f"thv-runner@{EVERYTHING}.socket"):
        assert host.unit(unit, "SubState") == "listening"
    with wire.opened(servers.PORTS[EVERYTHING], token) as client:
        client.said("echo", {"message": "again"})
        client.leave()


def a_thousand_connections_during_a_cold_start_are_all_answered(host):
    """fault-2"""
    port = servers.PORTS[EVERYTHING]
    for unit in (f"thv@{EVERYTHING}.service", f"thv-runner@{EVERYTHING}.service"):
        host.run("systemctl", "stop", unit)
    request = (
        f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        "Accept: application/json, text/event-stream\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}").encode()
    clients = []
    for _ in range(1000):
        client = socket.create_connection(("127.0.0.1", port), timeout=60)
        client.sendall(request)
        clients.append(client)
    answers = []
    for client in clients:
        with client, client.makefile("rb") as answer:
            answers.append(answer.readline().split()[1])
    assert answers == [b"401"] * 1000, set(answers)
    assert host.unit(f"thv@{EVERYTHING}.service", "NRestarts") == "0"


def a_thousand_numbered_requests_around_the_idle_moment_are_each_served_once(host):
    """fault-5"""
    servers.enable(host, COUNTER)
    token = wire.token("alice", servers.resource(COUNTER))
    pauses, slowest, starts = random.Random(SEED), 0.0, host_starts(host)
    for number in range(REQUESTS):
        # The pace is the point: around the moment at which it ends.
        time.sleep(pauses.uniform(0, LONGEST_PAUSE))
        start = time.monotonic()
        with wire.Client(servers.PORTS[COUNTER], token) as client:
            answer = client.initialize()
            assert answer.status == 200, f"request {number}: {answer}"
            assert client.said("count", {"number": number}) == str(number)
            assert client.leave().status in (200, 204)
        slowest = max(slowest, time.monotonic() - start)
    starts = host_starts(host) - starts
    state = host.text("find", f"/var/lib/private/thv-runner/{COUNTER}", "-name", "calls").splitlines()
    assert len(state) == 1, state
    logged = [int(line) for line in host.text("cat", state[0]).splitlines()]
    assert logged == list(range(REQUESTS)), "the server's own list differs from the client's"
    assert starts > REQUESTS / 10, f"the idle moment was met {starts} times only"
    assert host.is_active(f"thv@{COUNTER}.socket")
    print(f"        {REQUESTS} requests, {starts} gateways, the slowest took {slowest * 1000:.0f} ms (seed {SEED})")


def host_starts(host):
    """How often the gateway was started since boot."""
    host.flush_journal()
    # MESSAGE_ID of a unit that has started (systemd's own catalog).
    return len(host.text(
        "journalctl", "--output=cat", "MESSAGE_ID=39f53479d3a045ac8e11786248231fbf", f"UNIT=thv@{COUNTER}.service",
        check=False).splitlines())


def a_full_or_read_only_state_directory_stops_nobody(host):
    """fault-39, fault-40"""
    unit, place = f"thv@{EVERYTHING}.service", f"/var/lib/private/thv/{EVERYTHING}"
    token = wire.token("alice", servers.resource(EVERYTHING))

    def serves():
        host.flush_journal()
        since = host.text("date", "+%Y-%m-%d %H:%M:%S.%6N")
        with wire.opened(servers.PORTS[EVERYTHING], token) as client:
            for _ in range(3):
                assert "Echo" in client.said("echo", {"message": "x"})
            client.leave()
        # A second session is authenticated from memory, and does not tell it again.
        with wire.opened(servers.PORTS[EVERYTHING], token) as client:
            client.leave()
        host.flush_journal()
        said = host.text("journalctl", "--no-pager", "--output=cat", f"--since={since}", "--unit", unit)
        assert said.count("the key set was not kept") == 1, said
        decided = host.text("journalctl", "--no-pager", "--output=json", f"--since={since}", "--unit", unit, "THV_EVENT=decision")
        assert '"THV_DECISION":"allow"' in decided.replace(" ", ""), "audited all the same"

    with wire.opened(servers.PORTS[EVERYTHING], token) as client:
        client.leave()
    host.run("systemctl", "stop", unit)
    host.run("mount", "-t", "tmpfs", "-o", "size=4k,mode=0700", "full", place)
    try:
        host.path(f"{place}/full").write_bytes(b"x" * 4096)
        assert host.run("sh", "-c", f"echo x > {place}/more", check=False).returncode != 0, "it is not full"
        serves()
        host.run("systemctl", "stop", unit)
        host.run("mount", "-o", "remount,ro", place)
        serves()
        host.run("systemctl", "stop", unit)
    finally:
        host.run("umount", "--lazy", place)


ALL = [
    an_idle_server_has_no_process_and_serves_the_next_request,
    a_thousand_connections_during_a_cold_start_are_all_answered,
    a_thousand_numbered_requests_around_the_idle_moment_are_each_served_once,
    a_full_or_read_only_state_directory_stops_nobody,
]

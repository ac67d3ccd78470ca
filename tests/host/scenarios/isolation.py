"""Two servers on one host: users of their own, and no way into each other's runner."""

import json

import servers
import wire
from servers import EVERYTHING, PROBES

GATEWAYS = [f"thv@{name}.service" for name in (EVERYTHING, PROBES)]
RUNNERS = [f"thv-runner@{name}.service" for name in (EVERYTHING, PROBES)]


def two_servers_run_under_four_users(host):
    with session(EVERYTHING), session(PROBES):
        uids = {unit: host.uid_of(unit) for unit in GATEWAYS + RUNNERS}
        assert len(set(uids.values())) == 4 and 0 not in uids.values(), uids
        for runner in RUNNERS:
            children = [pid for pid in host.processes_of(runner) if pid != host.pid(runner)]
            assert children, f"{runner} has no child"
            owners = {int(host.text("stat", "--format=%u", f"/proc/{pid}")) for pid in children}
            assert owners == {uids[runner]}, f"children of {runner} are {owners}"


def a_gateway_cannot_use_the_runner_of_another(host):
    with session(EVERYTHING), session(PROBES):
        key = host.text("cat", f"/run/thv/key/{PROBES}")
        gateway = f"#{host.uid_of(GATEWAYS[0])}"
        control = hello(host, PROBES, key, "#0")
        assert control["frame"] == "hello", f"the control, with the right key, is refused: {control}"
        assert hello(host, PROBES, key, gateway)["frame"] == "hello", "it is the key that counts, not the user"
        own = host.text("cat", f"/run/thv/key/{EVERYTHING}")
        for wrong in (own, "", key[:-1], key.upper() + "0"):
            assert hello(host, PROBES, wrong, gateway)["frame"] == "refused", wrong
        # And the right key is out of its reach; root, the control, reads each of these.
        for secret in (f"/run/thv/key/{PROBES}", f"/run/credentials/{GATEWAYS[1]}/runner-key",
                       f"/run/credentials/{RUNNERS[1]}/runner-key"):
            assert host.text("cat", secret) == key
            denied = as_user(host, gateway, "cat", secret)
            assert denied.returncode != 0 and "Permission denied" in denied.stderr, (secret, denied)


def states_of_principals_are_apart(host):
    for who in ("alice", "bob"):
        with session(PROBES, who) as client:
            said = json.loads(client.said("probe", {"probe": "write", "argument": f"/state/from-{who}"}))
            assert said[0], said
            seen = json.loads(client.said("probe", {"probe": "list", "argument": "/state"}))
            assert seen == [True, f"from-{who}"], seen
            client.leave()
    with session(PROBES, "alice") as client:
        seen = json.loads(client.said("probe", {"probe": "list", "argument": "/state"}))
        assert seen == [True, "from-alice"], f"kept between sessions: {seen}"
        client.leave()


def a_killed_gateway_takes_its_children_along_and_the_next_request_is_served(host):
    """fault-6"""
    client = session(PROBES)
    runner = RUNNERS[1]
    children = [pid for pid in host.processes_of(runner) if pid != host.pid(runner)]
    assert children
    host.run("systemctl", "kill", "--signal=KILL", GATEWAYS[1])
    host.gone(children)
    client.close()
    with session(PROBES) as client:
        client.said("echo")
        client.leave()


def session(name, who="alice"):
    return wire.opened(servers.PORTS[name], wire.token(who, servers.resource(name)))


def as_user(host, user, *argv):
    uid = user.lstrip("#")
    return host.run("setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", *argv, check=False)


def hello(host, name, key, user):
    """What a runner answers to a connection of `user` with `key` (src/frames.rs)."""
    program = (
        "import json, socket, sys\n"
        "runner = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "runner.settimeout(10)\n"
        f"runner.connect('/run/thv/runner/{name}.sock')\n"
        "runner.send(json.dumps({'frame': 'hello', 'version': 4, 'key': sys.stdin.read(), 'digest': ''}).encode())\n"
        "print(runner.recv(4096).decode())\n")
    uid = user.lstrip("#")
    done = host.run("setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", "python3", "-c", program, input=key)
    return json.loads(done.stdout)


ALL = [
    two_servers_run_under_four_users,
    a_gateway_cannot_use_the_runner_of_another,
    states_of_principals_are_apart,
    a_killed_gateway_takes_its_children_along_and_the_next_request_is_served,
]

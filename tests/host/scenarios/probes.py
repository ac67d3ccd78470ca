"""What a server tries from inside, under the shipped units: each probe beside its control.

The control is the same probe by root, outside of any sandbox: there it must get
through, or its failing inside proves nothing. More probes, without the units,
are in tests/it/sandbox.rs.
"""

import json

import servers
import wire
from servers import PROBES

RUNNER = f"thv-runner@{PROBES}.service"


def the_hosts_secrets_cannot_be_read(host):
    with session() as client:
        for probe, argument in (
            ("open", "/etc/shadow"),
            ("open", "/etc/thv/thv.toml"),
            ("open", f"/etc/thv/servers/{PROBES}.toml"),
            ("open", "/etc/machine-id"),
            ("list", "/etc/thv"),
            ("list", "/run/credentials"),
            ("open", f"/run/credentials/{RUNNER}/runner-key"),
            ("open", f"/run/thv/key/{PROBES}"),
            ("list", "/run/thv"),
            ("list", "/run/systemd"),
            ("list", "/var/lib/private"),
            ("list", "/home/caller"),
            ("list", "/sys"),
            ("list", "/root"),
        ):
            refused(host, client, probe, argument)
        client.leave()


def nothing_but_its_state_and_scratch_can_be_written(host):
    with session() as client:
        for path in ("/usr/thv-probe", "/etc/thv-probe", "/thv-probe", "/opt/peers/thv-probe", "/dev/thv-probe", "/run/thv-probe"):
            refused(host, client, "write", path)
            host.run("rm", path)
        for path in ("/state/probe", "/tmp/probe", "/dev/shm/probe"):
            works(client, "write", path)
        client.leave()


def other_processes_are_neither_seen_nor_signalled(host):
    with session() as client:
        inside = works(client, "list", "/proc").split()
        numbers = sorted(int(entry) for entry in inside if entry.isdigit())
        assert len(numbers) <= 2, f"init and server alone: {numbers}"
        outside = control(host, "list", "/proc").split()
        assert len([entry for entry in outside if entry.isdigit()]) > 5, outside
        refused(host, client, "kill", str(host.pid("idp.service")))
        refused(host, client, "kill", str(host.pid(RUNNER)))
        refused(host, client, "open", "/proc/1/environ")
        client.leave()


def there_is_no_network(host):
    with session() as client:
        refused(host, client, "tcp", f"127.0.0.1:{wire.IDP_PORT}")
        refused(host, client, "tcp", f"127.0.0.1:{servers.PORTS[PROBES]}")
        for path in ("/run/systemd/journal/stdout", "/run/dbus/system_bus_socket", "/run/systemd/private"):
            refused(host, client, "unix", path)
        for family in ("packet", "raw"):
            refused(host, client, "family", family)
        for family in ("inet", "inet6", "unix", "netlink-route"):
            works(client, "family", family)
        client.leave()


def the_hosts_that_are_named_are_reached_through_the_gateway_and_are_on_record(host):
    with open(host.path("/etc/hosts"), "a") as hosts:
        hosts.write("127.0.0.1 named.test inside.test other.test\n")
    question = "GET /.well-known/openid-configuration HTTP/1.0\r\n\r\n"
    ask = lambda to: json.dumps({"to": to, "say": question, "end": False})  # noqa: E731
    control(host, "says", ask(f"other.test:{wire.IDP_PORT}"))
    with session() as client:
        for door in (f"named.test:{wire.IDP_PORT}", "127.0.0.1:443"):
            said = works(client, "says", ask(door))
            assert "token_endpoint" in said, f"{door}: {said}"
        # It leads inside, and its line does not say so.
        through, said = inside(client, "says", ask(f"inside.test:{wire.IDP_PORT}"))
        assert "HTTP" not in said, said
        for nowhere in (f"other.test:{wire.IDP_PORT}", f"127.0.0.1:{wire.IDP_PORT}", "named.test:22"):
            through, said = inside(client, "says", ask(nowhere))
            assert not through, f"{nowhere}: {said}"
        client.leave()
    records = lambda: [json.loads(line) for line in host.text(  # noqa: E731
        "journalctl", "--no-pager", "-o", "json", "-u", f"thv@{PROBES}.service", "THV_EVENT=egress").splitlines()]
    host.until("the records of three connections", 15, lambda: len(records()) == 3)
    assert [record["THV_DECISION"] for record in records()] == ["allow", "allow", "deny"], records()
    assert records()[2]["THV_REASON"] == "egress-address", records()[2]


def no_privilege_is_left_and_none_can_be_had(host):
    with session() as client:
        status = json.loads(works(client, "status"))
        sets = {name: status[name] for name in ("CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb")}
        assert set(sets.values()) == {"0" * 16}, status
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), status
        outside = json.loads(control(host, "status"))
        assert outside["CapEff"] != "0" * 16 and outside["Seccomp"] != "0" or outside["NoNewPrivs"] == "0", outside
        for call in ("mount", "unshare", "setns", "pivot_root", "chroot", "sethostname"):
            refused(host, client, "call", call)
        refused(host, client, "new-user-namespace")
        client.leave()


def neither_mounts_nor_programs_nor_namespaces_are_its_to_change(host):
    """probe-7, probe-20, probe-25, probe-26, probe-41, probe-83"""
    with session() as client:
        for probe, argument in (
            ("mounts-over", "/usr"), ("remounts", "/usr"), ("overwrites", "/usr/bin/tac"), ("priority", ""), ("capability", ""),
            ("map", "uid_map"), ("namespace", "clone:20000000"), ("namespace", "unshare:20000"), ("namespace", "clone3:10000000"),
        ):
            refused(host, client, probe, argument)
        # As the host sees it: by the unit's own limit a dump would be a program's that core_pattern names.
        runner = host.pid(RUNNER)
        for pid in host.processes_of(RUNNER):
            limits = dict(line.rsplit(None, 3)[:2] for line in host.text("cat", f"/proc/{pid}/limits").splitlines() if line.startswith("Max core"))
            assert limits == {"Max core file size": "1"}, (pid, pid == runner, limits)
        client.leave()


def its_descriptors_are_the_three_standard_ones_and_its_environment_is_its_own(host):
    with session() as client:
        # The fourth is the directory being listed.
        assert works(client, "descriptors") == "0 1 2 3"
        environment = json.loads(works(client, "environment"))
        assert sorted(environment) == ["HOME", "LANG", "PATH", "TMPDIR"], environment
        outside = json.loads(control(host, "environment", environment={"NOTIFY_SOCKET": "x", "LISTEN_FDS": "1"}))
        assert "NOTIFY_SOCKET" in outside, "the control sees what it was given"
        client.leave()


def nothing_of_a_child_is_left_when_its_session_ends(host):
    with session() as client:
        works(client, "hide")
        runner = host.pid(RUNNER)
        children = [pid for pid in host.processes_of(RUNNER) if pid != runner]
        assert len(children) >= 3, f"init, server and the hidden one: {children}"
        client.leave()
    host.gone(children)


def a_program_with_another_users_rights_that_it_leaves_can_be_run_by_nobody(host):
    """probe-11, probe-13"""
    control(host, "plants", "/opt/planted")
    # Root's, outside: whoever runs it is root.
    assert "euid=0" in host.run("/opt/planted", user="caller").stdout, "the control has no effect"
    host.run("rm", "/opt/planted")
    with session() as client:
        # The mark is refused (RestrictSUIDSGID=); what is left of it is a plain file …
        through, said = inside(client, "plants", "/state/planted")
        assert not through and said.startswith("EPERM"), said
        state = f"/var/lib/private/thv-runner/{PROBES}"
        planted = host.text("find", state, "-name", "planted", "-not", "-perm", "/7000")
        assert planted.startswith(state), host.text("find", state, "-ls")
        # … that nobody outside reaches or may run, were it marked: not another user, not the gateway's.
        host.run("chmod", "4755", planted)
        for uid in (host.text("id", "-u", "caller"), host.uid_of(f"thv@{PROBES}.service")):
            # Not by setpriv(1), which has its capabilities until the exec is done.
            become = f"import os; os.setgroups([]); os.setresgid({uid}, {uid}, {uid}); os.setresuid({uid}, {uid}, {uid}); "
            tried = host.run("python3", "-c", f"{become}os.execv('{planted}', ['id'])", check=False)
            assert "PermissionError" in tried.stderr and "uid=" not in tried.stdout, f"{uid}: {tried.stdout}{tried.stderr}"
        mount = host.text("findmnt", "--noheadings", "--output=OPTIONS", f"--task={host.pid(RUNNER)}", f"--target={planted}")
        assert {"nosuid", "noexec", "nodev"} <= set(mount.split(",")), mount
        through, said = inside(client, "run", json.dumps(["/state/planted"]))
        assert not through, f"what it keeps is not run: {said}"
        works(client, "run", json.dumps(["/usr/bin/rm", "/state/planted"]))
        client.leave()


def node_and_python_run_in_it(host):
    with wire.opened(servers.PORTS[servers.EVERYTHING], wire.token("alice", servers.resource(servers.EVERYTHING))) as client:
        assert "Echo" in client.said("echo", {"message": "node"})
        client.leave()
    with session() as client:
        works(client, "scratch")
        client.leave()


def session():
    return wire.opened(servers.PORTS[PROBES], wire.token("alice", servers.resource(PROBES)))


def control(host, probe, argument="", environment=None):
    given = [f"{name}={value}" for name, value in (environment or {}).items()]
    through, said = json.loads(host.text("env", *given, "python3", "/opt/peers/probes.py", probe, argument))
    assert through, f"the control of `{probe} {argument}` failed, so it proves nothing: {said}"
    return said


def inside(client, probe, argument=""):
    return json.loads(client.said("probe", {"probe": probe, "argument": argument}))


def refused(host, client, probe, argument=""):
    control(host, probe, argument)
    through, said = inside(client, probe, argument)
    assert not through, f"`{probe} {argument}` got through: {said}"


def works(client, probe, argument=""):
    through, said = inside(client, probe, argument)
    assert through, f"`{probe} {argument}` should work inside: {said}"
    return said


ALL = [
    the_hosts_secrets_cannot_be_read,
    nothing_but_its_state_and_scratch_can_be_written,
    other_processes_are_neither_seen_nor_signalled,
    there_is_no_network,
    the_hosts_that_are_named_are_reached_through_the_gateway_and_are_on_record,
    no_privilege_is_left_and_none_can_be_had,
    neither_mounts_nor_programs_nor_namespaces_are_its_to_change,
    its_descriptors_are_the_three_standard_ones_and_its_environment_is_its_own,
    nothing_of_a_child_is_left_when_its_session_ends,
    a_program_with_another_users_rights_that_it_leaves_can_be_run_by_nobody,
    node_and_python_run_in_it,
]

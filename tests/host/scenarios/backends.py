"""Servers that speak HTTP, between real units: at a port, at a socket, and elsewhere."""

import json
import socket

import servers
import wire
from servers import INSIDE, REMOTE, SOCKET


def a_server_at_a_port_of_its_own_network_is_reached_by_the_gateway_alone(host):
    servers.enable(host, INSIDE)
    with session(INSIDE) as client:
        assert client.said("echo", {"message": "hällo"}) == "Echo: hällo"
        assert host.uid_of(f"thv@{INSIDE}.service") != host.uid_of(f"thv-runner@{INSIDE}.service")
        # It listens in its own network: neither here nor in the runner's is there such a port.
        assert not listens(3001)
        client.leave()


def a_server_at_a_socket_of_its_own_is_reached_by_another_user(host):
    servers.enable(host, SOCKET)
    with session(SOCKET) as client:
        assert json.loads(client.said("echo", {"n": 1})) == {"n": 1}
        assert host.uid_of(f"thv@{SOCKET}.service") != host.uid_of(f"thv-runner@{SOCKET}.service")
        assert not host.path("/run/mcp").exists(), "the directory is the sandbox's alone"
        client.leave()


def a_server_elsewhere_is_shown_the_gateways_credential(host):
    host.run("systemd-run", "--unit=upstream", "/usr/bin/python3", "-u", "/opt/peers/streamable.py", str(servers.UPSTREAM))
    host.until("the upstream to listen", 10, lambda: listens(servers.UPSTREAM))
    drop_in = f"/etc/systemd/system/thv@{REMOTE}.service.d/50-upstream.conf"
    host.write("/etc/upstream-token", "sesame\n", 0o600)
    host.write(drop_in, "[Service]\nLoadCredential=up:/etc/upstream-token\n")
    host.run("systemctl", "daemon-reload")
    try:
        servers.enable(host, REMOTE)
        with session(REMOTE) as client:
            seen = json.loads(client.said("seen"))
            assert {it["headers"]["authorization"] for it in seen} == {"Bearer sesame"}, seen
            assert host.state(f"thv-runner@{REMOTE}.service") == "inactive", "there is nothing to run here"
            client.leave()
    finally:
        host.run("systemctl", "stop", "upstream.service")
        host.run("rm", "-r", drop_in.rpartition("/")[0], "/etc/upstream-token")
        host.run("systemctl", "daemon-reload")


def listens(port):
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def session(name):
    token = wire.token("alice", servers.resource(name))
    return wire.opened(servers.PORTS[name], token)


ALL = [
    a_server_at_a_port_of_its_own_network_is_reached_by_the_gateway_alone,
    a_server_at_a_socket_of_its_own_is_reached_by_another_user,
    a_server_elsewhere_is_shown_the_gateways_credential,
]

"""Tokens that are more than a signed text: opaque ones, and such that are bound to a key."""

import json

import servers
import wire
from servers import OPAQUE

PORT = servers.PORTS[OPAQUE]


def an_opaque_token_is_asked_about_with_the_gateways_own_credential(host):
    host.write("/etc/thv/idp.secret", "secret-of-thv\n")
    host.run("chmod", "600", "/etc/thv/idp.secret")
    drop_in = f"/etc/systemd/system/thv@{OPAQUE}.service.d/idp.conf"
    host.write(drop_in, "[Service]\nLoadCredential=idp:/etc/thv/idp.secret\n")
    host.run("systemctl", "daemon-reload")
    servers.enable(host, OPAQUE)
    token = wire.token("alice", servers.resource(OPAQUE))
    assert "." not in token, "the provider gave no opaque token"
    with wire.opened(PORT, token) as alice:
        alice.said("echo", {"x": 1})
        alice.leave()
    for bad in (token[:-1] + ("A" if token[-1] != "A" else "B"), "x" * 43):
        with wire.Client(PORT, bad) as client:
            answer = client.initialize()
            assert answer.status == 401 and 'error="invalid_token"' in answer.headers["WWW-Authenticate"], answer
    host.flush_journal()
    refused = host.text("journalctl", "--unit", f"thv@{OPAQUE}.service", "THV_REASON=token-inactive", "--output=cat")
    assert refused, "no record of the refusal"
    everything = host.text("journalctl", "--output=export")
    assert token not in everything and "secret-of-thv" not in everything, "a secret is in the journal"


def an_opaque_token_for_another_server_is_refused(host):
    # The provider knows it, and says for whom it is.
    token = wire.token("alice", servers.resource(OPAQUE).replace("/mcp", "/other"))
    with wire.Client(PORT, token) as client:
        answer = client.initialize()
        assert answer.status == 401, answer
    host.flush_journal()
    refused = host.text("journalctl", "--unit", f"thv@{OPAQUE}.service", "THV_REASON=token-audience", "--output=cat")
    assert refused, "no record of the refusal"


def a_token_that_is_bound_to_a_key_is_good_with_a_proof_once(host):
    done = host.run("/usr/bin/node", "/opt/peers/dpop.mjs", servers.resource(OPAQUE), user="caller")
    granted, bearer, told, good, again = (json.loads(line) for line in done.stdout.splitlines())
    assert granted["type"] == "DPoP", granted
    assert bearer["status"] == 401 and "invalid_token" in bearer["challenge"], bearer
    assert told["status"] == 401 and "use_dpop_nonce" in told["challenge"] and told["nonce"], told
    assert good["status"] == 200, good
    assert again["status"] == 401 and "invalid_dpop_proof" in again["challenge"], again


def a_user_of_the_host_needs_no_token_on_a_unix_socket(host):
    name = "peer"
    host.write(f"/etc/thv/policies/{name}.cedar", """\
@id("caller")
permit (principal == User::"unix|caller", action, resource);
""")
    host.write(f"/etc/thv/servers/{name}.toml", """\
command  = ["/usr/bin/python3", "/opt/peers/scripted.py"]
resource = "http://localhost/mcp"
auth.mode = "peer"
authz.policies = ["/etc/thv/policies/peer.cedar"]

[sandbox]
optional  = ["cgroup"]
read-only = ["/opt/peers"]
""")
    host.write(f"/etc/systemd/system/thv@{name}.socket.d/mode.conf", "[Socket]\nSocketMode=0666\n")
    host.run("systemctl", "daemon-reload")
    host.run("thv", "check", name)
    host.run("systemctl", "start", f"thv@{name}.socket")
    initialize = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": wire.VERSION, "capabilities": {}, "clientInfo": {"name": "curl", "version": "1"}}})

    def status(user):
        return host.text(
            "curl", "--silent", "--unix-socket", f"/run/thv/{name}.sock", "--write-out", "%{http_code}",
            "--output", "/dev/null", "--header", "Accept: application/json, text/event-stream",
            "http://localhost/mcp", "--json", initialize, user=user)

    assert status("caller") == "200"
    assert status("root") == "403", "the policy permits one user, and root is another"
    host.run("systemctl", "stop", f"thv@{name}.socket")


ALL = [
    an_opaque_token_is_asked_about_with_the_gateways_own_credential,
    an_opaque_token_for_another_server_is_refused,
    a_token_that_is_bound_to_a_key_is_good_with_a_proof_once,
    a_user_of_the_host_needs_no_token_on_a_unix_socket,
]

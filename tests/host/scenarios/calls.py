"""The main job: who may call, who may not, and what is written down about it."""

import json

import servers
import wire
from scenarios import foundation
from servers import EVERYTHING, PROBES

PORT = servers.PORTS[EVERYTHING]
GATEWAY, RUNNER = f"thv@{EVERYTHING}.service", f"thv-runner@{EVERYTHING}.service"


@foundation
def enabling_a_socket_starts_no_process(host):
    for name in (EVERYTHING, PROBES):
        servers.enable(host, name)
        assert host.is_active(f"thv@{name}.socket")
        assert host.state(f"thv@{name}.service") == "inactive"
        assert host.state(f"thv-runner@{name}.service") == "inactive"
    assert host.text("pgrep", "--count", "--exact", "thv", check=False) == "0"


def a_request_without_a_token_is_challenged_and_starts_no_child(host):
    with wire.Client(PORT) as client:
        answer = client.initialize()
        assert answer.status == 401, answer
        challenge = answer.headers["WWW-Authenticate"]
        place = f"http://127.0.0.1:{PORT}/.well-known/oauth-protected-resource/mcp"
        assert challenge.startswith("Bearer ") and f'resource_metadata="{place}"' in challenge, challenge
        metadata = client.request("GET", path="/.well-known/oauth-protected-resource/mcp")
        assert json.loads(metadata.body)["authorization_servers"] == [wire.ISSUER], metadata
        assert host.is_active(GATEWAY)
        assert host.state(RUNNER) == "inactive", "nobody has shown a token, and a runner runs"


def the_sdk_lists_and_calls_tools_with_a_token_of_the_provider(host):
    token = wire.token("alice", servers.resource(EVERYTHING))
    steps = [["tools/list"], ["tools/call", "echo", {"message": "hällo"}], ["tools/call", "get-sum", {"a": 2, "b": 40}]]
    connected, tools, echo, total, left = sdk(host, token, steps)
    assert connected["result"]["server"]["name"], connected
    assert sorted(tool["name"] for tool in tools["result"]["tools"]) == ["echo", "get-sum"], tools
    assert echo["result"]["content"][0]["text"] == "Echo: hällo", echo
    assert "42" in total["result"]["content"][0]["text"], total
    assert "error" not in left, left


def the_sdk_is_told_that_it_is_not_authorized_without_a_token(host):
    (refused,) = sdk(host, "", [])
    assert refused["error"]["code"] == 401 or "401" in refused["error"]["message"] or \
        refused["error"]["name"] == "UnauthorizedError", refused


def tokens_for_others_expired_forged_and_unsigned_are_refused(host):
    own = servers.resource(EVERYTHING)
    with wire.Client(PORT, wire.minted("good", "alice", own)) as control:
        assert control.initialize().status == 200, "the control, minted like the others, is refused"
        control.leave()
    bad = {
        "for another audience": wire.token("alice", servers.resource(PROBES)),
        "expired": wire.minted("expired", "alice", own),
        "signed by another key": wire.minted("other-key", "alice", own),
        "not signed": wire.minted("none", "alice", own),
    }
    for kind, token in bad.items():
        with wire.Client(PORT, token) as client:
            answer = client.initialize()
            assert answer.status == 401 and 'error="invalid_token"' in answer.headers["WWW-Authenticate"], f"{kind}: {answer}"
    with wire.Client(servers.PORTS[PROBES], bad["for another audience"]) as control:
        assert control.initialize().status == 200, "that token is good where it belongs"
        control.leave()


def a_tool_that_no_policy_permits_is_refused_not_listed_and_never_reaches_the_server(host):
    with wire.opened(servers.PORTS[PROBES], wire.token("alice", servers.resource(PROBES))) as client:
        listed = client.post("tools/list").message["result"]["tools"]
        names = {tool["name"] for tool in listed}
        assert "echo" in names and "secret" not in names, names
        refused = client.call("secret")
        assert refused.status == 403, refused
        unknown = client.call("no-such-tool")
        client.said("echo", {"seen": "yes"})
        seen = json.loads(client.said("seen"))
        assert any('"echo"' in line for line in seen), "the control: what is permitted reaches the server"
        assert not any('"secret"' in line for line in seen), seen
        assert unknown.status == 200, "permitted by the policy, unknown to the server"
        client.leave()
    with wire.opened(PORT, wire.token("bob", servers.resource(EVERYTHING))) as client:
        assert client.call("get-sum", {"a": 1, "b": 1}).status == 403, "bob may not add"
        hidden, none = client.call("printEnv"), client.call("no-such-tool")
        assert (hidden.status, none.status) == (403, 403), "a hidden tool and none at all look alike"
        assert len(client.post("tools/list").message["result"]["tools"]) == 1
        client.leave()


def another_users_session_is_not_found_and_its_owner_still_has_it(host):
    alice = wire.opened(PORT, wire.token("alice", servers.resource(EVERYTHING)))
    with wire.Client(PORT, wire.token("bob", servers.resource(EVERYTHING))) as bob:
        bob.session = alice.session
        for answer in (bob.call("echo", {"message": "x"}), bob.request("DELETE")):
            assert answer.status == 404, answer
    assert "Echo" in alice.said("echo", {"message": "still here"})
    assert alice.leave().status in (200, 204)
    alice.close()


def the_default_socket_is_a_unix_socket_that_curl_can_use(host):
    name = "local"
    text = servers.TEXTS[PROBES].replace(servers.resource(PROBES), "http://127.0.0.1:8089/mcp")
    host.write(f"/etc/thv/servers/{name}.toml", text)
    host.run("systemctl", "start", f"thv@{name}.socket")
    mode = host.text("stat", "--format=%a %U", f"/run/thv/{name}.sock")
    assert mode == "660 root", mode
    said = host.text(
        "curl", "--silent", "--unix-socket", f"/run/thv/{name}.sock", "--write-out", "%{http_code}", "--output", "/dev/null",
        "http://127.0.0.1:8089/mcp", "--json", "{}")
    assert said == "401", said
    denied = host.run("curl", "--silent", "--unix-socket", f"/run/thv/{name}.sock", "http://127.0.0.1:8089/mcp", user="caller", check=False)
    assert denied.returncode == 7, "mode 0660 keeps other users of this host out"
    host.run("systemctl", "stop", f"thv@{name}.socket")
    assert host.state(f"thv-runner@{name}.socket") == "inactive"
    assert not host.path(f"/run/thv/{name}.sock").exists()
    host.run("rm", f"/etc/thv/servers/{name}.toml")


def the_journal_finds_exactly_the_refused_requests(host):
    token = wire.token("bob", servers.resource(EVERYTHING))
    with wire.opened(PORT, token) as bob:
        host.flush_journal()
        cursor = host.text("journalctl", "--lines=1", "--show-cursor", "--output=cat").rsplit("-- cursor: ", 1)[1]
        assert bob.call("get-sum", {"a": 1, "b": 1}).status == 403
        assert bob.call("echo", {"message": "allowed"}).status == 200
        bob.leave()
    with wire.Client(PORT, wire.minted("expired", "alice", servers.resource(EVERYTHING))) as client:
        assert client.initialize().status == 401
    with wire.Client(PORT) as client:
        assert client.initialize().status == 401
    host.flush_journal()
    text = host.text(
        "journalctl", "--unit", f"thv@{EVERYTHING}.service", "THV_DECISION=deny", "--output=json", f"--after-cursor={cursor}")
    records = [json.loads(line) for line in text.splitlines()]
    seen = [(record["THV_STATUS"], record.get("THV_TOOL"), record.get("THV_SUBJECT")) for record in records]
    assert len(seen) == 3, seen
    forbidden = records[0]
    assert seen[0] == ("403", "get-sum", "bob"), seen
    assert forbidden["THV_ISSUER"] == wire.ISSUER and forbidden["THV_SERVER"] == EVERYTHING, forbidden
    assert "not-bob" in str(forbidden["THV_POLICY"]), forbidden
    assert [status for status, _, _ in seen[1:]] == ["401", "401"], seen
    assert all(record["THV_REASON"] and record["THV_REQUEST_ID"] for record in records)
    everything = host.text("journalctl", "--output=export", f"--after-cursor={cursor}")
    assert token.rsplit(".", 1)[1] not in everything and "secret-of-" not in everything, "a token is in the journal"


def sdk(host, token, steps):
    """What the real client sees, a value for each step."""
    done = host.run("/usr/bin/node", "/opt/peers/client.mjs", servers.resource(EVERYTHING), token, json.dumps(steps), user="caller")
    return [json.loads(line) for line in done.stdout.splitlines()]


ALL = [
    enabling_a_socket_starts_no_process,
    a_request_without_a_token_is_challenged_and_starts_no_child,
    the_sdk_lists_and_calls_tools_with_a_token_of_the_provider,
    the_sdk_is_told_that_it_is_not_authorized_without_a_token,
    tokens_for_others_expired_forged_and_unsigned_are_refused,
    a_tool_that_no_policy_permits_is_refused_not_listed_and_never_reaches_the_server,
    another_users_session_is_not_found_and_its_owner_still_has_it,
    the_default_socket_is_a_unix_socket_that_curl_can_use,
    the_journal_finds_exactly_the_refused_requests,
]

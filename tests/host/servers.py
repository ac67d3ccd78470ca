"""The servers of the tests: what an administrator would write."""

from wire import ISSUER

EVERYTHING, PROBES, COUNTER, WRONG, OPAQUE = "everything", "probes", "counter", "wrong", "opaque"
PORTS = {EVERYTHING: 8081, PROBES: 8082, COUNTER: 8083, WRONG: 8084, OPAQUE: 8085}


def resource(name):
    return f"http://127.0.0.1:{PORTS[name]}/mcp"


def configuration(name, command, authz, sandbox="", limits="", issuer=""):
    return f"""\
command  = {command}
resource = "{resource(name)}"

[[auth.issuer]]
issuer   = "{ISSUER}"
audience = "{resource(name)}"
{issuer}
[authz]
{authz}

[sandbox]
optional  = ["cgroup"]
read-only = ["/opt/peers"]
{sandbox}

[limits]
{limits}
"""


TEXTS = {
    EVERYTHING: configuration(
        EVERYTHING,
        '["/usr/bin/node", "/opt/peers/node_modules/@modelcontextprotocol/server-everything/dist/index.js", "stdio"]',
        'policies = ["/etc/thv/policies/everything.cedar"]', limits='exit-idle = "1s"'),
    PROBES: configuration(
        PROBES, '["/usr/bin/python3", "/opt/peers/scripted.py"]',
        'policies = ["/etc/thv/policies/probes.cedar"]', sandbox="state = true", limits='exit-idle = "2s"'),
    COUNTER: configuration(
        COUNTER, '["/usr/bin/python3", "-IS", "/opt/peers/counter.py"]', 'allow = "authenticated"',
        sandbox="state = true", limits='exit-idle = "50ms"'),
    OPAQUE: configuration(
        OPAQUE, '["/usr/bin/python3", "/opt/peers/scripted.py"]', 'allow = "authenticated"',
        issuer='introspection = { client-id = "thv", credential = "idp" }\ndpop = "accepted"\nscopes = ["mcp"]'),
}

POLICIES = {
    EVERYTHING: """\
@id("connect")
permit (principal, action in [Action::"initialize", Action::"tools/list"], resource);

@id("harmless-tools")
permit (principal, action == Action::"tools/call", resource is Tool)
when { ["echo", "get-sum"].contains(resource.name) };

@id("not-bob")
forbid (principal, action == Action::"tools/call", resource == Tool::"get-sum")
when { principal.subject == "bob" };
""",
    PROBES: """\
@id("all-but-secrets")
permit (principal, action, resource);

@id("no-secrets")
forbid (principal, action == Action::"tools/call", resource == Tool::"secret");
""",
}


def enable(host, name):
    """Configures a server, gives it a port, enables its socket."""
    if name in POLICIES:
        host.write(f"/etc/thv/policies/{name}.cedar", POLICIES[name])
    host.write(f"/etc/thv/servers/{name}.toml", TEXTS[name])
    host.run("thv", "check", name)
    host.run("thv", "listen", name, f"127.0.0.1:{PORTS[name]}")
    host.run("systemctl", "enable", "--now", f"thv@{name}.socket")

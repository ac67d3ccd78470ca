"""The servers of the tests: what an administrator would write."""

from wire import IDP_PORT, ISSUER

EVERYTHING, PROBES, COUNTER, WRONG, OPAQUE = "everything", "probes", "counter", "wrong", "opaque"
INSIDE, SOCKET, REMOTE, FAULTS, UNASKED = "inside", "socket", "remote", "faults", "unasked"
PORTS = {EVERYTHING: 8081, PROBES: 8082, COUNTER: 8083, WRONG: 8084, OPAQUE: 8085, INSIDE: 8086, SOCKET: 8087, REMOTE: 8088, FAULTS: 8095, "named": 8098, UNASKED: 8099}
# Where somebody else's server listens.
UPSTREAM = 8089


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
        'policies = ["/etc/thv/policies/probes.cedar"]', limits='exit-idle = "2s"',
        sandbox=f"""\
state     = true
egress    = ["named.test:{IDP_PORT} in 127.0.0.0/8", "inside.test:{IDP_PORT}"]
forward   = ["127.0.0.1:443=127.0.0.1:{IDP_PORT}"]"""),
    COUNTER: configuration(
        COUNTER, '["/usr/bin/python3", "-IS", "/opt/peers/counter.py"]', 'allow = "authenticated"',
        sandbox="state = true", limits='exit-idle = "50ms"'),
    FAULTS: configuration(
        FAULTS, '["/usr/bin/python3", "-IS", "/opt/peers/counter.py"]', 'policies = ["/etc/thv/policies/faults.cedar"]',
        sandbox="state = true", limits='exit-idle = "1h"'),
    OPAQUE: configuration(
        OPAQUE, '["/usr/bin/python3", "/opt/peers/scripted.py"]', 'allow = "authenticated"',
        issuer='introspection = { client-id = "thv", credential = "idp" }\ndpop = "accepted"\nscopes = ["mcp"]'),
    INSIDE: "transport = \"http\"\nport = 3001\n" + configuration(
        INSIDE,
        '["/usr/bin/node", "/opt/peers/node_modules/@modelcontextprotocol/server-everything/dist/index.js", "streamableHttp"]',
        'allow = "authenticated"', limits='start-timeout = "25s"'),
    SOCKET: "transport = \"http\"\nsocket = \"/run/mcp/x.sock\"\n" + configuration(
        SOCKET, '["/usr/bin/python3", "-u", "/opt/peers/streamable.py", "/run/mcp/x.sock"]', 'allow = "authenticated"'),
    REMOTE: f"""\
url      = "http://127.0.0.1:{UPSTREAM}/mcp"
resource = "{resource(REMOTE)}"

[[auth.issuer]]
issuer   = "{ISSUER}"
audience = "{resource(REMOTE)}"

[authz]
allow = "authenticated"

[upstream]
authorization = {{ credential = "up" }}
""",
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
    FAULTS: """\
@id("all")
permit (principal, action, resource);
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

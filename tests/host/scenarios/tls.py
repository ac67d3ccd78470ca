"""TLS of the gateway's own, between real units and a real curl: what the manual says, literally."""

import json
import ssl
import threading

import wire

NAME, PORT = "tls", 8091
URL = f"https://localhost:{PORT}/mcp"
PLACE = "/etc/ssl/mcp"
DROP_IN = f"/etc/systemd/system/thv@{NAME}.service.d/tls.conf"
SERVICE, SOCKET = f"thv@{NAME}.service", f"thv@{NAME}.socket"
# As in thv.toml(5).
CREDENTIALS = f"""\
[Service]
LoadCredential=tls-certificate:{PLACE}/chain.pem
LoadCredential=tls-key:{PLACE}/key.pem
"""
GROUP = "[Service]\nSupplementaryGroups=mcp-tls\n"
INITIALIZE = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
    "protocolVersion": wire.VERSION, "capabilities": {}, "clientInfo": {"name": "curl", "version": "1"}}})


def configuration(certificate, key):
    return f"""\
command  = ["/usr/bin/python3", "/opt/peers/scripted.py"]
resource = "{URL}"

[[auth.issuer]]
issuer   = "{wire.ISSUER}"
audience = "{URL}"

[authz]
allow = "authenticated"

[sandbox]
optional  = ["cgroup"]
read-only = ["/opt/peers"]

[tls]
certificate = {certificate}
key         = {key}
"""


def a_port_speaks_tls_and_http2_with_a_certificate_from_credentials(host):
    authorities(host)
    renew(host)
    credentials = configuration('{ credential = "tls-certificate" }', '{ credential = "tls-key" }')
    host.write(f"/etc/thv/servers/{NAME}.toml", credentials)
    warned = host.text("thv", "check", NAME)
    assert "tls-certificate" in warned and "tls-key" in warned and SERVICE in warned, warned
    host.write(DROP_IN, CREDENTIALS)
    host.run("systemctl", "daemon-reload")
    assert host.text("thv", "check", NAME) == f"{NAME}: ok"
    host.run("thv", "listen", NAME, str(PORT))
    host.run("systemctl", "enable", "--now", SOCKET)
    assert curl(host) == ("200", "2")
    assert curl(host, "--http1.1") == ("200", "1.1")
    # Who does not know the authority does not get in, and who forgets the `s` is told so.
    assert host.run("curl", "--silent", "--output", "/dev/null", URL, check=False).returncode == 60
    told = host.text("curl", "--silent", URL.replace("https", "http"))
    assert "use https" in told, told


def a_certificate_that_was_renewed_is_shown_after_a_restart_that_nobody_notices(host):
    before, gateway = shown(), host.pid(SERVICE)
    renew(host)
    assert shown() == before, "credentials are systemd's copies"
    stop, answers = threading.Event(), []

    def ask():
        while not stop.is_set():
            answers.append(curl(host, check=False))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        host.until("a request", 20, lambda: answers)
        # As in thv.toml(5).
        host.run("systemctl", "try-restart", SERVICE)
        host.wait_for_another(SERVICE, gateway)
        count = len(answers)
        host.until("requests to it", 30, lambda: len(answers) > count + 3)
    finally:
        stop.set()
        thread.join()
    assert set(answers) == {("200", "2")}, set(answers)
    assert shown() == ssl_text(host) != before


def a_certificate_in_files_is_read_again_without_a_restart(host):
    host.run("groupadd", "--force", "mcp-tls")
    host.write(f"/etc/thv/servers/{NAME}.toml", configuration(f'"{PLACE}/chain.pem"', f'"{PLACE}/key.pem"'))
    host.run("systemctl", "stop", SERVICE)
    # The gateway would not start with it.
    found = host.run("thv", "check", NAME, check=False)
    said = found.stdout + found.stderr
    assert found.returncode == 78 and "tls.key" in said and f"{PLACE}/key.pem" in said, said
    host.write(DROP_IN, GROUP)
    renew(host, group="mcp-tls")
    host.run("systemctl", "daemon-reload")
    assert host.text("thv", "check", NAME) == f"{NAME}: ok"
    assert curl(host) == ("200", "2")
    before, gateway = shown(), host.pid(SERVICE)
    renew(host, group="mcp-tls")
    host.until("the new certificate", 20, lambda: shown() != before)
    assert shown() == ssl_text(host)
    assert host.pid(SERVICE) == gateway, "nothing had to be restarted"
    # Half a renewal is none.
    before = shown()
    good = host.path(f"{PLACE}/chain.pem").read_text()
    host.write(f"{PLACE}/chain.pem", "half of it")
    host.until("a warning", 20, lambda: "chain.pem" in journal(host))
    assert shown() == before and curl(host) == ("200", "2")
    host.write(f"{PLACE}/chain.pem", good)


def a_certificate_that_cannot_be_used_is_named_with_its_cure(host):
    host.write(f"/etc/thv/servers/{NAME}.toml", configuration(
        '{ credential = "tls-certificate" }', '{ credential = "tls-key" }'))
    for wrong, words in [
        (CREDENTIALS.replace("chain.pem", "chian.pem"), [SERVICE, f"{PLACE}/chian.pem"]),
        (CREDENTIALS.replace("chain.pem", "leaf.pem"), ["one certificate", "full chain"]),
        (CREDENTIALS.replace("key.pem", "other.pem"), ["no pair"]),
    ]:
        host.write(DROP_IN, wrong)
        said = host.text("thv", "check", NAME, check=False)
        assert all(word in said for word in words), (wrong, said)
    host.run("systemctl", "disable", "--now", SOCKET)
    host.run("systemctl", "stop", SERVICE)
    host.run("rm", "-r", DROP_IN.rpartition("/")[0], PLACE, f"/etc/thv/servers/{NAME}.toml")
    host.run("systemctl", "daemon-reload")


def authorities(host):
    """A root that curl is told of, and an intermediate that signs."""
    shell(host, f"""
        mkdir -p {PLACE}; cd {PLACE}
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -subj /CN=root -days 30
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout int.key -out int.csr -subj /CN=intermediate
        openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out other.pem
        echo basicConstraints=critical,CA:TRUE > int.ext
        openssl x509 -req -in int.csr -CA ca.pem -CAkey ca.key -out int.pem -days 30 -extfile int.ext
        chmod 600 *.key other.pem
        """)


def renew(host, group=None):
    """A new pair, as a program for certificates writes it: complete, then in place."""
    owner = f"chgrp {group} new.key; chmod 640 new.key" if group else "chmod 600 new.key"
    shell(host, f"""
        cd {PLACE}
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout new.key -out leaf.csr -subj /CN=localhost
        echo subjectAltName=DNS:localhost > leaf.ext
        openssl x509 -req -in leaf.csr -CA int.pem -CAkey int.key -out leaf.pem -days 30 -extfile leaf.ext
        cat leaf.pem int.pem > new.pem; {owner}
        mv new.key key.pem; mv new.pem chain.pem
        """)


def shell(host, script):
    host.run("bash", "-euc", script)


def curl(host, *options, check=True):
    """Status and version of HTTP of an `initialize`."""
    token = wire.token("alice", URL)
    said = host.run(
        "curl", "--silent", "--show-error", "--cacert", f"{PLACE}/ca.pem", "--output", "/dev/null",
        "--write-out", "%{http_code} %{http_version}", "--header", "Accept: application/json, text/event-stream",
        "--header", f"Authorization: Bearer {token}", "--json", INITIALIZE, *options, URL, check=check)
    return tuple(said.stdout.split()) or (said.stderr,)


def shown():
    """The certificate that the port shows."""
    return ssl.get_server_certificate(("127.0.0.1", PORT), timeout=10).strip()


def ssl_text(host):
    return host.path(f"{PLACE}/leaf.pem").read_text().strip()


def journal(host):
    host.flush_journal()
    return host.text("journalctl", f"--unit={SERVICE}", "--priority=warning", "--output=cat", "--since=-1min")


ALL = [
    a_port_speaks_tls_and_http2_with_a_certificate_from_credentials,
    a_certificate_that_was_renewed_is_shown_after_a_restart_that_nobody_notices,
    a_certificate_in_files_is_read_again_without_a_restart,
    a_certificate_that_cannot_be_used_is_named_with_its_cure,
]

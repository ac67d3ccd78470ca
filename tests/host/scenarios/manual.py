"""A tired administrator: types what manual, README and examples show, and what thv's messages say to type next."""

import json
import re
import subprocess

import examples
import names
import wire

NAME, PORT = "github", 8081
FILE, POLICY = f"/etc/thv/servers/{NAME}.toml", f"/etc/thv/policies/{NAME}.cedar"
PROGRAM, AUDIENCE = "/usr/local/bin/github-mcp-server", "https://mcp.example.com/github"
PAGES = ["thv.toml.5", "thv-cedar.7", "thv.1", "thv@.service.8", "thv-journal.7"]

# What is not typed here, and why.
LEFT_OUT = {
    "FILE:LINE:COLUMN: KEY: what is wrong; what to do": "a shape",
    "thv run": "a mention", "thv pull": "a mention", "thv path": "a mention", "thv listen": "a mention", "thv secret set": "a mention",
    "thv secret set --gateway": "a mention",
    "docker save": "a mention, and another's program",
    "systemctl edit thv@NAME.service": "an editor; what is to be written there is played",
    "skopeo copy docker://IMAGE oci-archive:PATH": "another's program, and a registry",
    "semanage port -l": "no SELinux here", "semanage port -a -t http_port_t -p tcp 8081": "no SELinux here",
    "chattr -R -p 4711 /var/lib/private/thv-runner/NAME\n"
    "find /var/lib/private/thv-runner/NAME -type d -exec chattr +P {} +\n"
    "setquota -P 4711 0 1G 0 100000 /var/lib/private/thv-runner/NAME": "tests/host/machine plays it",
    "thv pull NAME": "scenarios/images.py plays it", "thv pull github": "scenarios/images.py plays it",
    "thv run --name everything --oidc-issuer https://sso.example.com/realms/corp --oidc-audience toolhive docker.io/mcp/everything":
        "a registry; tests/it plays it",
    "cargo run --release -- demo": "scenarios/demo.py plays it", "tests/run": "this is it",
    "packaging/build deb": "tests/run does", "packaging/build rpm": "tests/run does",
    "sudo apt install ./dist/thv_0.1.0_amd64.deb": "scenarios/package.py plays it",
    "sudo dnf install ./dist/thv-0.1.0-1.x86_64.rpm": "scenarios/rpm.py plays it",
    "sudo systemctl enable --now thv.target thv-sockets.target": "scenarios/rpm.py plays it",
}
# Other than 0: here no cgroup controllers are delegated, which doctor calls BAD.
STATUS = {"thv doctor": 71}
# What the pages leave for the reader to fill in.
FILLED_IN = {"NAME": NAME, "ADDRESS": f"127.0.0.1:{PORT}", "CREDENTIAL": "hub"}

# This machine has none, which is told of each server that wants it.
NO_CGROUP = "this host lets no server start; cgroup: "

SERVER = """\
#!/usr/bin/python3
import json, sys
print("at your service", file=sys.stderr, flush=True)
for line in sys.stdin:
    message = json.loads(line)
    answers = {
        "initialize": {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "g", "version": "1"}},
        "tools/list": {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in ("search", "search_issues", "delete_repo")]},
        "tools/call": {"content": []},
    }
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": answers.get(message["method"], {})}), flush=True)
"""


def what_manual_and_readme_show_works_as_it_is_typed(host):
    issuer = prepare(host)
    try:
        shown = {page: examples.of_page(page) for page in PAGES} | {"README.md": examples.of_readme()}
        texts = {bare(example.text) for page in shown.values() for example in page}
        assert not LEFT_OUT.keys() - texts, f"nothing says any longer: {sorted(LEFT_OUT.keys() - texts)}"
        assert all(len(page) > 4 for page in shown.values()), "the pages are no longer read as they are written"
        for page, found in shown.items():
            typed_before = set()
            for example in found:
                if bare(example.text) not in LEFT_OUT:
                    play(host, example, typed_before)
                    typed_before.add(example.kind)
            if page in ("thv.1", "README.md"):
                visit(host, issuer)
        # Once more, now that somebody was there.
        for example in shown["thv-journal.7"]:
            if "THV_STREAM" in example.text or "THV_SUBJECT=" in example.text or "jq" in example.text and "egress" not in example.text:
                said = typed(host, example.text)
                assert said.stdout.strip() not in ("", "-- No entries --"), f"{example} shows nothing"
    finally:
        forget(host, issuer)


def prepare(host):
    """The host that the pages speak of: a program, an issuer that answers at its name, and a token of it."""
    host.write(PROGRAM, SERVER, mode=0o755)
    host.run("ln", "-sf", PROGRAM, "/usr/bin/notes-mcp")
    host.write(POLICY, "permit (principal, action, resource);\n")
    host.write(FILE, next(example.text for example in examples.of_page("thv.toml.5") if example.text.startswith(f"# {FILE}")) + "\n")
    # No cgroup controllers here; the files of the pages stay as they are.
    host.write("/etc/thv/thv.toml.d/host.toml", '[sandbox]\noptional = ["cgroup"]\n')
    issuer = names.Issuer(host, "sso.example.com", 443, "/root/issuer", "/realms/corp")
    issuer.serve_at("127.0.0.43")
    host.run("sh", "-ec", f"""
        cp /etc/hosts /root/hosts && echo '127.0.0.43 sso.example.com' >> /etc/hosts
        cp {issuer.ca} /usr/local/share/ca-certificates/examples.crt && update-ca-certificates
        install -d /etc/ssl/mcp && cp /root/issuer/tls.pem /etc/ssl/mcp/chain.pem && cp /root/issuer/tls.key /etc/ssl/mcp/key.pem
        echo secret | systemd-creds encrypt --name=KEY - /etc/credstore.encrypted/KEY
        echo user:password > /root/secret.txt""")
    host.write("/root/token.txt", issuer.token("alice", AUDIENCE, client_id="desktop", groups=["developers", "engineering"]) + "\n", mode=0o600)
    return issuer


def forget(host, issuer):
    issuer.close()
    host.run("sh", "-c", f"""
        systemctl disable --now thv@{NAME}.socket; systemctl stop thv@{NAME}.service
        cp /root/hosts /etc/hosts; rm /usr/local/share/ca-certificates/examples.crt; update-ca-certificates --fresh
        rm -rf /etc/thv/servers/{NAME}.toml* {POLICY} /etc/thv/thv.toml.d /etc/ssl/mcp /etc/credstore.encrypted/KEY {PROGRAM} /usr/bin/notes-mcp
        rm -rf /etc/credstore.encrypted/thv.{NAME}.* /etc/systemd/system/thv*@{NAME}.*.d /root/issuer
        rm -rf /etc/credstore/late /etc/credstore/soon /var/lib/private/thv/{NAME} /var/lib/private/thv-runner/{NAME}
        systemctl daemon-reload; systemctl reset-failed""")


def play(host, example, typed_before):
    if example.kind == "toml":
        configure(host, example)
    elif example.kind == "cedar":
        # A page's policies stand in one file.
        before = host.path(POLICY).read_text() if "cedar" in typed_before else ""
        host.write(POLICY, before + example.text + "\n")
        is_good(host, example)
    elif example.kind == "unit":
        host.write("/root/drop-in", example.text + "\n")
        host.run("sh", "-ec", f"systemctl edit --stdin thv@{NAME}.service < /root/drop-in")
        is_good(host, example)
    elif example.kind == "nginx":
        # Another's program, which is not here: its paths and its port are those of the server.
        assert f"/{NAME} " in example.text and f"127.0.0.1:{PORT};" in example.text and "Host $host" in example.text, example
    elif "--foreground" in example.text:
        serves_until_interrupted(host, example)
    else:
        done = typed(host, example.text)
        wanted = STATUS.get(bare(example.text), 0)
        assert done.returncode == wanted, f"{example}\nends with {done.returncode}:\n{done.stdout}{done.stderr}"


def configure(host, example):
    """A whole file is the server's; of a piece the rest is made up, and what it says is only checked."""
    text = example.text.replace("NAME", NAME) + "\n"
    if "resource " in text:
        host.write(FILE, text)
        return is_good(host, example)
    text = f'command = ["{PROGRAM}"]\nresource = "https://mcp.example.com/piece"\n' + text
    if "[[auth.issuer]]" not in text:
        text += '[[auth.issuer]]\nissuer = "https://i.example"\naudience = "a"\n'
    if "[authz]" not in text:
        text += f'[authz]\npolicies = ["{POLICY}"]\n'
    host.write("/etc/thv/servers/piece.toml", text)
    try:
        is_good(host, example, "piece")
    finally:
        host.run("rm", "/etc/thv/servers/piece.toml")


def is_good(host, example, name=NAME):
    done = host.run("thv", "check", name, check=False)
    # A secret that nobody has stored yet is not the page's fault.
    left_out = ("no drop-in gives", "initialize", NO_CGROUP, UNREAD)
    warnings = [line for line in done.stdout.splitlines() if ": warning: " in line and not any(word in line for word in left_out)]
    assert done.returncode == 0 and not warnings, f"{example}\nis not good:\n{done.stdout}{done.stderr}"


def bare(text):
    """Without the remark behind it."""
    return re.sub(r" +# .*", "", text)


def typed(host, command):
    for word, meant in FILLED_IN.items():
        command = re.sub(rf"\b{word}\b", meant, command)
    # A pipe that is asked for a secret is given one; whoever reads a file says so.
    return host.run("sh", "-ec", f"cd /root; export EDITOR=true TOKEN=x; {command}", check=False, input="user:password\n")


def serves_until_interrupted(host, example):
    process = subprocess.Popen(
        host._within("sh", "-ec", f"cd /root; exec {example.text}"), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    said = []
    for line in process.stderr:
        said.append(line)
        if "is served at" in line:
            host.run("pkill", "--signal", "INT", "--full", "thv run --name notes")
    assert process.wait(30) == 0 and any("is served at" in line for line in said), f"{example}\n{''.join(said)}"


def visit(host, issuer):
    """Somebody without a token, and somebody with one who may do one thing and not another."""
    token = host.path("/root/token.txt").read_text().strip()
    assert ask(None).status == 401
    opened = ask(token)
    assert opened.status == 200, opened
    session = opened.headers["Mcp-Session-Id"]
    allowed = [tool for tool in ("search", "search_issues") if ask(token, session, tool).status == 200]
    assert allowed, "the policies that are shown let nobody search"
    assert ask(token, session, "delete_repo").status == 403
    host.flush_journal()


def ask(token, session=None, tool=None):
    if tool:
        method, params = "tools/call", {"name": tool, "arguments": {}}
    else:
        method, params = "initialize", {"protocolVersion": wire.VERSION, "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
    with wire.Client(PORT, token) as client:
        client.session = session
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        return client.request("POST", body, {"Host": "mcp.example.com"}, f"/{NAME}")


def what_an_installed_example_says_to_type_makes_it_a_good_one(host):
    host.write(PROGRAM, SERVER, mode=0o755)
    host.write("/root/secret.txt", "user:password\n")
    host.run("sh", "-ec", "cd /usr/share/doc/thv/examples; cp *.toml /etc/thv/servers; cp *.cedar /etc/thv/policies")
    shown = examples.of_installed(host)
    try:
        assert {"lemonldap", "upstream", NAME} <= {name for name, commands in shown.items() if commands}, shown
        for name, commands in shown.items():
            for command in commands:
                command, _, drop_in = command.partition("  # ")
                if drop_in:
                    # There is nobody with an editor.
                    header, setting = drop_in.split(" ", 1)
                    command = f"printf '%s\\n%s\\n' '{header}' '{setting}' | {command.replace('edit', 'edit --stdin')}"
                done = typed(host, command)
                assert done.returncode == 0, f"{name}: {command}\n{done.stdout}{done.stderr}"
            done = typed(host, f"thv check {name}")
            # Other people's programs are not installed here, and there are no controllers to delegate.
            said = [line for line in done.stdout.splitlines() if ": there is no `/" not in line and NO_CGROUP not in line]
            assert said == [f"{name}: ok"], f"{name}: {done.stdout}"
    finally:
        host.run("sh", "-c", f"""
            systemctl disable --now thv@{NAME}.socket
            cd /etc/thv; rm -f servers/*.toml policies/*.cedar {PROGRAM} /etc/credstore.encrypted/*
            rm -rf /etc/systemd/system/thv*@*.d; systemctl daemon-reload""")


CHECK = f"thv check {NAME}"
ASK = f"""curl -s -H "Authorization: Bearer $(cat token.txt)" -H 'Host: mcp.example.com' -H 'Content-Type: application/json' \\
    -H 'Accept: application/json, text/event-stream' -d @initialize.json http://127.0.0.1:{PORT}/{NAME}"""
# Where the files have changed the last command has them read, and this is said in front of it.
UNREAD = "serves what the files said before they were changed"
# How it goes wrong, what is asked then, and a word of what is said. The last command that is said mends it.
MISTAKES = [
    (f"chmod 666 {FILE}", CHECK, "written by others"),
    (f"chmod 600 {POLICY}", CHECK, "other users than root"),
    (f"chown caller {FILE}", CHECK, "belongs to uid"),
    ("chmod 777 /etc/thv/servers", CHECK, "written by others"),
    (f"thv secret remove {NAME} github-token", CHECK, "no drop-in gives the runner"),
    (f"rm /etc/credstore.encrypted/thv.{NAME}.github-token", CHECK, "where there is no file"),
    (f"echo x > /etc/credstore/soon; printf '[Service]\\nLoadCredential=soon\\n' > /etc/systemd/system/thv@{NAME}.service.d/soon.conf",
     CHECK, "daemon-reload"),
    (f"chmod 644 {PROGRAM}", CHECK, "its mode has no x"),
    (f"sed -i '1s/$/\\r/' {PROGRAM}", CHECK, "carriage return"),
    (f"""install -d {FILE}.d; printf '[sandbox]\\nread-only = ["/home/caller"]\\n' > {FILE}.d/home.toml""", CHECK, "hidden from the runner"),
    ("true", f"thv listen {NAME} 0.0.0.0:{PORT}", "other machines can reach"),
    (f"systemctl stop thv-runner@{NAME}.service; rm /run/thv/runner/{NAME}.sock", ASK, "the runner cannot be reached"),
    (f"echo x > /etc/credstore/late; printf '[Service]\\nLoadCredential=late\\n' > /etc/systemd/system/thv@{NAME}.service.d/late.conf;"
     " systemctl daemon-reload", CHECK, "runs since before"),
    (f"cp /root/drop-in-of-tls /etc/systemd/system/thv@{NAME}.service.d/tls.conf; systemctl daemon-reload; cp /root/tls.toml {FILE}.d/;"
     f" ! systemctl reload thv@{NAME}", CHECK, "runs since before"),
]


def what_a_message_says_to_type_next_mends_the_mistake(host):
    issuer = prepare(host)
    try:
        host.write("/root/initialize.json", json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": wire.VERSION, "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}}))
        host.write("/root/drop-in-of-tls", "[Service]\nLoadCredential=c:/root/issuer/both.pem\nLoadCredential=k:/root/issuer/both.key\n")
        host.write("/root/tls.toml", '[tls]\ncertificate = { credential = "c" }\nkey = { credential = "k" }\n')
        host.run("sh", "-ec", f"""
            cd /root; thv secret set {NAME} github-token < secret.txt; thv listen {NAME} {PORT}; systemctl enable --now thv@{NAME}.socket
            install -d {FILE}.d /etc/systemd/system/thv@{NAME}.service.d""")
        pair(host)
        for make, question, word in MISTAKES:
            host.run("sh", "-ec", make)
            text = host.until(f"`{word}` after `{make}`", 30, lambda: told(host, question, word))
            text = "".join(line for line in text.splitlines(keepends=True) if UNREAD not in line)
            commands = re.findall(r"`((?:thv|systemctl|chmod|chown|sed) [^`]*)`", text)
            assert commands, f"{make}\n{text}"
            mended = typed(host, commands[-1])
            assert mended.returncode == 0, f"{make}\n{text}{mended.stderr}"
            again = typed(host, CHECK)
            if UNREAD in again.stdout:
                assert typed(host, re.findall(r"`([^`]*)`", again.stdout)[-1]).returncode == 0, again.stdout
                again = typed(host, CHECK)
            assert again.stdout == f"{NAME}: ok\n", f"{make}\n{text}after `{commands[-1]}`:\n{again.stdout}"
            scheme = "https" if "tls" in make else "http"
            answer = typed(host, ASK.replace("http:", f"{scheme}:").replace("curl -s", "curl -sk"))
            assert '"result"' in answer.stdout, f"{make}\n{text}after `{commands[-1]}`:\n{answer.stdout}"
    finally:
        forget(host, issuer)


def told(host, question, word):
    done = typed(host, question)
    return word in done.stdout + done.stderr and done.stdout + done.stderr


def pair(host):
    """A certificate for the name of the resource."""
    host.run("openssl", "req", "-quiet", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-keyout", "/root/issuer/both.key",
             "-out", "/root/issuer/both.pem", "-subj", "/CN=x", "-addext", "subjectAltName=DNS:mcp.example.com")


ALL = [
    what_an_installed_example_says_to_type_makes_it_a_good_one,
    what_a_message_says_to_type_next_mends_the_mistake,
    what_manual_and_readme_show_works_as_it_is_typed,
]

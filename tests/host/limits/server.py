"""An MCP server that runs into its limits when it is asked to."""

import ctypes
import json
import os
import sys
import time


def fork_until_refused():
    """probe-23: how many processes there could be, and how the next was refused."""
    children, refused = [], None
    while refused is None and len(children) < 1000:
        try:
            pid = os.fork()
        except OSError as error:
            refused = error.strerror
            break
        if pid == 0:
            # Else it would itself keep the gate from closing.
            os.close(GATE_IN)
            os.read(GATE, 1)
            os._exit(0)
        children.append(pid)
    os.close(GATE_IN)
    for pid in children:
        os.waitpid(pid, 0)
    return json.dumps({"children": len(children), "refused": refused})


def eat_memory():
    """probe-64: more than it may have."""
    eaten = []
    while True:
        eaten.append(bytearray(os.urandom(1 << 20)))


def spin():
    """probe-67: on every processor, for longer than anybody measures."""
    for _ in range(4):
        if os.fork() == 0:
            end = time.monotonic() + 60
            while time.monotonic() < end:
                pass
            os._exit(0)
    return "spinning"


def escape():
    """probe-82: out of its group, or at what the group may have; what was opened or written, nothing if all is well."""
    done = []
    for name in ("cgroup.procs", "cgroup.subtree_control", "memory.max", "release_agent", "../cgroup.procs", "../../cgroup.procs"):
        path = "/sys/fs/cgroup/" + name
        try:
            with open(path, "w") as file:
                file.write("0")
            done.append(path)
        except OSError:
            pass
    libc = ctypes.CDLL(None)
    for kind in (b"cgroup2", b"cgroup"):
        if libc.mount(b"none", b"/tmp", kind, 0, None) == 0:
            done.append(f"mounted {kind}")
    return json.dumps({"done": done, "group": open("/proc/self/cgroup").read()})


def keep(megabytes):
    """Writes so much into the directory that is kept."""
    try:
        with open(os.path.join(os.environ["HOME"], "kept"), "wb") as file:
            for _ in range(megabytes):
                file.write(os.urandom(1 << 20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror
    return "kept"


TOOLS = {"spin": spin, "fork": fork_until_refused, "eat": eat_memory, "crash": os.abort, "escape": escape, "echo": lambda: "here"}
GATE, GATE_IN = os.pipe()


def tool(name):
    name, _, argument = name.partition("-")
    return keep(int(argument)) if name == "keep" else TOOLS[name]()


for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    if message["method"] == "initialize":
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "limits", "version": "1"}}
    else:
        result = {"content": [{"type": "text", "text": tool(message["params"]["name"])}]}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)

"""A server that many may share: it answers late, out of order, and speaks while it works.

Every call is answered with its own arguments and its own progress token, so
that whoever gets another's can tell.
"""

import json
import os
import random
import select
import sys

waiting = []
held = {}
lines = 0
uris = []
inbox = b""


def say(**message):
    sys.stdout.buffer.write(json.dumps({"jsonrpc": "2.0"} | message).encode() + b"\n")
    sys.stdout.buffer.flush()


def text(identifier, value):
    say(id=identifier, result={"content": [{"type": "text", "text": value}]})


def take(message):
    method, identifier = message.get("method"), message.get("id")
    params = message.get("params", {})
    seen.append(message)
    if method == "initialize":
        say(id=identifier, result={"protocolVersion": params["protocolVersion"],
                                   "capabilities": {"tools": {}, "resources": {"subscribe": True}, "logging": {}},
                                   "serverInfo": {"name": "crowd", "version": "1"}})
    elif method == "tools/call" and params["name"] == "echo":
        waiting.append(message)
    elif method == "tools/call" and params["name"] == "hold":
        held[params["arguments"]["for"]] = identifier
        sys.stderr.write("holding %s\n" % params["arguments"]["for"])
        sys.stderr.flush()
    elif method == "tools/call" and params["name"] == "release":
        text(held.pop(params["arguments"]["for"]), "released")
        text(identifier, "done")
    elif method == "tools/call" and params["name"] == "seen":
        text(identifier, json.dumps(seen))
    elif method == "tools/call" and params["name"] == "environment":
        text(identifier, json.dumps(dict(os.environ)))
    elif method == "tools/call" and params["name"] == "print":
        for _ in range(params["arguments"]["lines"]):
            sys.stdout.buffer.write(params["arguments"].get("what", "what a caller said").encode() + b"\n")
        text(identifier, "printed")
    elif method == "tools/call" and params["name"] == "burst":
        token = params["_meta"]["progressToken"]
        for step in range(params["arguments"]["count"]):
            say(method="notifications/progress", params={"progressToken": token, "progress": step,
                                                         "message": "x" * params["arguments"]["bytes"]})
        text(identifier, "done")
    elif method == "tools/call" and params["name"] == "large" and "last" in params["arguments"]:
        # Whose answer it is stands at its end.
        say(result={"v": "x" * params["arguments"]["bytes"], "id": 1}, id=identifier)
    elif method == "tools/call" and params["name"] == "large":
        text(identifier, "x" * params["arguments"]["bytes"])
    elif method == "tools/call" and params["name"] == "crash":
        os._exit(3)
    elif method == "tools/call" and params["name"] == "touch":
        say(method="notifications/resources/updated", params={"uri": params["arguments"]["uri"]})
        say(method="notifications/message", params={"level": "info", "data": "touched"})
        text(identifier, "touched")
    elif method == "tools/call" and params["name"] == "ask":
        held["ask"] = identifier
        say(id="q", method="elicitation/create", params=params["arguments"] or {"message": "?"})
    elif method is None and identifier == "q":
        text(held.pop("ask"), json.dumps(message))
    elif method == "tools/list":
        say(id=identifier, result={"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]})
    elif method == "server/discover":
        say(id=identifier, error={"code": -32601, "message": "no"})
    elif identifier is not None and method is not None:
        say(id=identifier, result={})


def work():
    """All that waits, in no order, with progress between."""
    random.shuffle(waiting)
    for call in waiting:
        token = call["params"].get("_meta", {}).get("progressToken")
        if token is not None:
            say(method="notifications/progress", params={"progressToken": token, "progress": 1,
                                                         "message": json.dumps(call["params"]["arguments"])})
    random.shuffle(waiting)
    for call in waiting:
        text(call["id"], json.dumps(call["params"]["arguments"]))
    waiting.clear()


seen = []
sys.stderr.write("crowd is here\n")
sys.stderr.flush()
while True:
    patience = 0 if waiting else None
    if select.select([0], [], [], patience)[0] and len(waiting) < 100:
        more = os.read(0, 65536)
        if not more:
            sys.exit(0)
        inbox += more
        *whole, inbox = inbox.split(b"\n")
        for line in whole:
            take(json.loads(line))
    else:
        work()

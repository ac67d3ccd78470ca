"""A small, fast MCP server: writes down each call's number, and answers with it.

The list is in its state directory, so it outlives every process of the server:
what is there twice was done twice, what is missing was lost.
"""

import json
import os
import sys
import time

log = os.open("/state/calls", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    method = message["method"]
    if method == "initialize":
        result = {"protocolVersion": message["params"]["protocolVersion"], "capabilities": {"tools": {}},
                  "serverInfo": {"name": "counter", "version": "1"}}
    elif method == "tools/call":
        number = message["params"]["arguments"]["number"]
        os.write(log, f"{number}\n".encode())
        # Done, and not yet told.
        time.sleep(message["params"]["arguments"].get("seconds", 0))
        result = {"content": [{"type": "text", "text": str(number)}]}
    else:
        result = {}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)

"""An MCP server over stdio whose tools are tasks: of 2025-11-25, or with `--modern` of the extension.

`slow` is done when it was looked at twice, `bad` ends with an error, `asks` needs an
answer first, `never` runs until it is cancelled, `told` until `finish` ends it, of which this server tells by
itself. `either` is a task for whoever wants one. `early` asks before it says that it has made one, and `hasty`
says so without waiting for the answer. `visit` refuses every other call until its user has been somewhere, and `astray`
does so when it has ended. `seen` tells what has reached this server.
"""

import json
import sys

modern = "--modern" in sys.argv
seen = []
visits = []
tasks = {}
FIRST_A_VISIT = {"code": -32042, "message": "go there first",
                 "data": {"elicitations": [{"mode": "url", "elicitationId": "e", "url": "https://e", "message": "go"}]}}
listens = {}


def say(message):
    sys.stdout.write(json.dumps({"jsonrpc": "2.0"} | message) + "\n")
    sys.stdout.flush()


def answer(identifier, result):
    say({"id": identifier, "result": result})


def complete(identifier, result):
    answer(identifier, ({"resultType": "complete"} if modern else {}) | result)


def stands(task):
    times = {"createdAt": "2026-11-26T00:00:00Z", "lastUpdatedAt": "2026-11-26T00:00:01Z"}
    pause = 30000 if task["tool"] == "told" else 10
    pace = {"ttlMs": 60000, "pollIntervalMs": pause} if modern else {"ttl": 60000, "pollInterval": pause}
    return {"taskId": task["id"], "status": task["status"]} | times | pace


def result(task):
    return {"content": [{"type": "text", "text": task.get("said", task["tool"] + " is done")}]}


def look(task):
    task["looks"] += 1
    if task["status"] == "working" and task["looks"] > 1:
        ends = {"slow": "completed", "either": "completed", "bad": "failed", "astray": "failed", "asks": "input_required"}
        task["status"] = ends.get(task["tool"], "working")


def ask(task):
    question = {"method": "elicitation/create", "params": {"message": "your name?", "requestedSchema": {"type": "object", "properties": {}}}}
    if modern:
        return {"inputRequests": {"name": question}}
    if not task.get("asked"):
        task["asked"] = True
        related = {"_meta": {"io.modelcontextprotocol/related-task": {"taskId": task["id"]}}}
        say({"id": "q-" + task["id"], "method": question["method"], "params": question["params"] | related})
    return {}


def told(task, said):
    task["status"], task["said"] = "completed", json.dumps(said)
    if "made" in task:
        answer(task.pop("made"), {"task": stands(task) | {"status": "working"}})
    if "waits" in task:
        outcome(task.pop("waits"), task)


def tell(task):
    """What has changed, to whoever wants to hear it."""
    if not modern:
        say({"method": "notifications/tasks/status", "params": stands(task)})
    for identifier, wanted in listens.items():
        if task["id"] in wanted:
            label = {"_meta": {"io.modelcontextprotocol/subscriptionId": identifier}}
            say({"method": "notifications/tasks", "params": stands(task) | {"result": result(task)} | label})


def finish():
    for task in tasks.values():
        if task["tool"] == "told" and task["status"] == "working":
            task["status"] = "completed"
            tell(task)


def listen(identifier, wanted):
    listens[identifier] = wanted.get("taskIds", [])
    label = {"_meta": {"io.modelcontextprotocol/subscriptionId": identifier}}
    say({"method": "notifications/subscriptions/acknowledged", "params": {"notifications": wanted} | label})
    finish()


def outcome(identifier, task):
    """tasks/result: waits for the end, and is where questions come from."""
    if task["status"] == "completed":
        related = {"_meta": {"io.modelcontextprotocol/related-task": {"taskId": task["id"]}}}
        answer(identifier, result(task) | related)
    elif task["status"] == "failed" and task["tool"] == "astray":
        say({"id": identifier, "error": FIRST_A_VISIT})
    elif task["status"] == "failed":
        say({"id": identifier, "error": {"code": -32603, "message": "it went wrong"}})
    else:
        task["waits"] = identifier
        ask(task)


def about(method, identifier, params):
    task = tasks.get(params.get("taskId"))
    if task is None:
        return say({"id": identifier, "error": {"code": -32602, "message": "no such task here"}})
    if method == "tasks/get":
        look(task)
        more = {}
        if modern and task["status"] == "completed":
            more = {"result": result(task)}
        elif modern and task["status"] == "failed":
            more = {"error": {"code": -32603, "message": "it went wrong"}}
        elif modern and task["status"] == "input_required":
            more = ask(task)
        complete(identifier, stands(task) | more)
    elif method == "tasks/cancel" and task["status"] in ("completed", "failed", "cancelled"):
        if modern:
            complete(identifier, {})
        else:
            say({"id": identifier, "error": {"code": -32602, "message": "it has ended"}})
    elif method == "tasks/cancel":
        task["status"] = "cancelled"
        complete(identifier, {} if modern else stands(task))
    elif method == "tasks/update" and modern:
        complete(identifier, {})
        told(task, params["inputResponses"]["name"])
    elif method == "tasks/result" and not modern:
        outcome(identifier, task)
    else:
        say({"id": identifier, "error": {"code": -32601, "message": "no"}})


def call(identifier, params):
    tool = params["name"]
    if tool == "seen":
        return complete(identifier, {"content": [{"type": "text", "text": json.dumps(seen)}]})
    if tool == "finish":
        finish()
        return complete(identifier, {"content": []})
    capabilities = params.get("_meta", {}).get("io.modelcontextprotocol/clientCapabilities", {})
    takes = "io.modelcontextprotocol/tasks" in capabilities.get("extensions", {}) if modern else "task" in params
    if tool == "either" and not takes:
        return complete(identifier, {"content": [{"type": "text", "text": "at once"}]})
    if not takes:
        return say({"id": identifier, "error": {"code": -32601, "message": "only as a task"}})
    if tool == "visit":
        visits.append(params)
        if len(visits) % 2:
            return say({"id": identifier, "error": FIRST_A_VISIT})
    task = {"id": "task-%d" % (len(tasks) + 1), "tool": tool, "status": "working", "looks": 0}
    tasks[task["id"]] = task
    if tool in ("early", "hasty"):
        ask(task)
    if tool == "early":
        task["made"] = identifier
    else:
        answer(identifier, {"resultType": "task"} | stands(task) if modern else {"task": stands(task)})


for line in sys.stdin:
    seen.append(line.rstrip("\n"))
    message = json.loads(line)
    method, identifier, params = message.get("method"), message.get("id"), message.get("params", {})
    server = {"name": "tasks", "version": "1"}
    if method is None:
        waiting = tasks[identifier.removeprefix("q-")]
        told(waiting, message.get("result", message.get("error")))
    elif identifier is None:
        pass
    elif method == "server/discover" and modern:
        can = {"tools": {}, "extensions": {"io.modelcontextprotocol/tasks": {}}}
        complete(identifier, {"supportedVersions": ["2026-07-28"], "capabilities": can, "serverInfo": server, "ttlMs": 0, "cacheScope": "private"})
    elif method == "initialize" and not modern:
        can = {"tools": {}, "tasks": {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}}
        answer(identifier, {"protocolVersion": "2025-11-25", "capabilities": can, "serverInfo": server})
    elif method == "tools/list":
        names = [("slow", "required"), ("bad", "required"), ("asks", "required"), ("never", "required"), ("told", "required"),
                 ("early", "required"), ("hasty", "required"), ("visit", "required"), ("astray", "required"), ("either", "optional"), ("finish", "forbidden"), ("seen", "forbidden")]
        tools = [{"name": name, "inputSchema": {"type": "object"}} | ({} if modern else {"execution": {"taskSupport": support}})
                 for name, support in names]
        complete(identifier, {"tools": tools} | ({"ttlMs": 0, "cacheScope": "private"} if modern else {}))
    elif method == "tools/call":
        call(identifier, params)
    elif method == "subscriptions/listen" and modern:
        listen(identifier, params["notifications"])
    elif method.startswith("tasks/"):
        about(method, identifier, params)
    else:
        say({"id": identifier, "error": {"code": -32601, "message": "no"}})

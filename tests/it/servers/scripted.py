"""An MCP server over stdio that does what it is told, good or bad.

Every tool is one behaviour. `seen` tells which lines have reached this server,
byte for byte: what a test must not find there was never sent.
"""

import json
import os
import sys
import time

import probes

seen = []
TOOLS = ["echo", "seen", "progress", "ask", "crash", "hang", "sleep", "garbage", "both", "broken", "stray", "stderr", "burst", "announce", "log", "wait", "need", "mute", "strays", "notes",
         "later", "together", "unlisten", "probe", "secret"]
modern = "--modern" in sys.argv
waiting = {}
released = set()
listening = {}


def say(text):
    sys.stdout.buffer.write(text.encode("utf-8", "surrogatepass") + b"\n")
    sys.stdout.buffer.flush()


def read():
    line = sys.stdin.buffer.readline()
    if not line:
        sys.exit(0)
    seen.append(line.decode().rstrip("\n"))
    return json.loads(line)


def answer(identifier, result):
    say(json.dumps({"jsonrpc": "2.0", "id": identifier, "result": result}))


def text(identifier, value):
    answer(identifier, {"content": [{"type": "text", "text": value}]})


def call(identifier, params):
    name, arguments = params["name"], params.get("arguments", {})
    if name == "echo":
        text(identifier, json.dumps(arguments))
    elif name == "seen":
        text(identifier, json.dumps(seen))
    elif name == "progress":
        token = params.get("_meta", {}).get("progressToken")
        for step in range(1, arguments.get("steps", 2) + 1):
            say('{"jsonrpc":"2.0","method":"notifications/progress",\r"params":{"progressToken":%s,"progress":%d}}'
                % (json.dumps(token), step))
        text(identifier, "done")
    elif name == "ask":
        question = {"jsonrpc": "2.0", "id": "mine-1", "method": arguments.get("method", "elicitation/create")}
        if "ids" in arguments:
            # Asked and not waited for: the call stays open.
            for own in arguments["ids"]:
                say(json.dumps(question | {"id": own, "params": {"message": "?"}}))
            return
        own = "mine-1"
        if "id" in arguments:
            # Spelled as it comes.
            own = json.loads(arguments["id"])
            del question["id"]
            say('{"id":%s,%s' % (arguments["id"], json.dumps(question | {"params": {"message": "?"}})[1:]))
        else:
            say(json.dumps(question | {"params": arguments.get("params", {"message": "?"})}))
        if arguments.get("impatient"):
            return text(identifier, "nobody said anything")
        while True:
            message = read()
            if (message.get("params") or {}).get("name") == "crash":
                os._exit(3)
            if message.get("id") == own and arguments.get("must") and "error" in message:
                return say(json.dumps({"jsonrpc": "2.0", "id": identifier, "error": {"code": -32603, "message": "must"}}))
            if message.get("id") == own:
                return text(identifier, json.dumps(message))
    elif name == "visit" and not arguments.get("never") and sum('"visit"' in line for line in seen) % 2 == 1:
        places = [{"mode": "url", "elicitationId": place, "url": "https://" + place, "message": "go"} for place in ("a", "b")]
        say(json.dumps({"jsonrpc": "2.0", "id": identifier, "error": {"code": -32042, "message": "go there first", "data": {"elicitations": places}}}))
    elif name == "visit":
        text(identifier, json.dumps(params))
    elif name == "need" and ("inputResponses" not in params or arguments.get("forever")):
        need(identifier, arguments, "first")
    elif name == "need" and params.get("requestState") == "first" and arguments.get("twice"):
        need(identifier, arguments, "second")
    elif name == "need":
        text(identifier, json.dumps({"responses": params["inputResponses"], "state": params["requestState"]}))
    elif name == "crash":
        os._exit(3)
    elif name == "hang":
        while True:
            read()
    elif name == "sleep":
        time.sleep(600)
    elif name == "garbage":
        sys.stdout.buffer.write(b"\xff\xfe not json\n{\"half\":\n[1]\n\n")
        say('{"jsonrpc":"2.0","id":%d,"result":{"big":9007199254740993, "e":1.0e+2,"u":"\\u00e9\u00e9"}}' % identifier)
    elif name == "both":
        say('{"jsonrpc":"2.0","id":%d,"result":{},"error":{"code":1,"message":"x"}}' % identifier)
    elif name == "neither":
        say('{"jsonrpc":"2.0","id":%d}' % identifier)
    elif name == "broken":
        # No JSON, a member that is named twice, one level more than any schema needs.
        result = {"nan": "NaN", "twice": '{"x":1,"x":2}', "deep": "[" * 70 + "]" * 70, "utf8": '"\udcff"'}[arguments["how"]]
        sys.stdout.buffer.write(('{"jsonrpc":"2.0","id":%d,"result":{"v":%s}}\n' % (identifier, result)).encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()
    elif name == "stray":
        say('{"jsonrpc":"2.0","id":999999,"result":{}}')
        say('{"jsonrpc":"2.0","id":"%d","result":{}}' % identifier)
        text(identifier, "mine")
    elif name == "twice":
        text(identifier, "first")
        for _ in range(arguments["more"]):
            text(identifier, "again")
    elif name == "framed":
        # What another transport puts around messages, or leaves out, and then the answer; `@` is its id.
        raw = arguments["raw"].replace("@", str(identifier)).encode("latin-1")
        sys.stdout.buffer.write(raw)
        sys.stdout.buffer.flush()
        if arguments.get("ends"):
            os._exit(0)
        if arguments.get("answers"):
            text(identifier, "mine")
    elif name == "strays":
        # Answers to requests that nobody has made.
        for number in range(arguments["count"]):
            say('{"jsonrpc":"2.0","id":%d,"result":{}}' % (1_000_000 + number))
        text(identifier, "mine")
    elif name == "notes":
        for number in range(arguments["count"]):
            say('{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":%d}}' % number)
        text(identifier, "noted")
    elif name == "mute":
        # Alive, and never to be heard or spoken to again.
        os.close(1)
        os.close(0)
        while True:
            time.sleep(600)
    elif name == "stderr":
        sys.stderr.write("<0>MESSAGE_ID=0\x1b[31m forged\n")
        sys.stderr.flush()
        text(identifier, "said")
    elif name == "burst":
        note = '{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"%s"}}'
        notes = "\n".join(note % ("x" * arguments["size"]) for _ in range(arguments["count"]))
        say(notes)
        if "for" in arguments:
            waiting[arguments["for"]] = identifier
            return
        text(identifier, "done")
    elif name == "announce" and modern:
        for number, wanted in listening.items():
            meta = {"io.modelcontextprotocol/subscriptionId": number}
            # To who listens to `of` where that is named: it may be a part of it that has changed.
            if arguments.get("of", arguments["uri"]) in wanted.get("resourceSubscriptions", []):
                say(json.dumps({"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"_meta": meta, "uri": arguments["uri"]}}))
        text(identifier, "announced")
    elif name == "announce":
        if "uri" in arguments:
            say('{"jsonrpc":"2.0","method":"notifications/resources/updated","params":{"uri":%s}}' % json.dumps(arguments["uri"]))
        else:
            say('{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}')
        text(identifier, "announced")
    elif name == "log":
        say('{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"%s"}}' % arguments["data"])
        text(identifier, "logged")
    elif name == "wait":
        waiting[arguments["for"]] = identifier
        sys.stderr.write("holding %s\n" % arguments["for"])
        sys.stderr.flush()
    elif name == "release":
        held = waiting.pop(arguments["for"])
        released.add(arguments["for"])
        held() if callable(held) else text(held, "released")
        text(identifier, "done")
    elif name == "later":
        # Asks when nobody is at work; in one breath, so that nobody is again before it is heard.
        result = {"content": [{"type": "text", "text": "done"}]}
        say(json.dumps({"jsonrpc": "2.0", "id": identifier, "result": result})
            + '\n{"jsonrpc":"2.0","id":"mine-2","method":"roots/list"}')
    elif name == "together":
        # Several messages in one, as one version has them; then each by itself.
        note = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "one"}}
        result = {"content": [{"type": "text", "text": "together"}]}
        say(json.dumps([note, {"jsonrpc": "2.0", "id": identifier, "result": result}]))
        text(identifier, "alone")
    elif name == "unlisten":
        # Ends the eldest subscription, in one of the ways there are.
        eldest = min(listening)
        del listening[eldest]
        if arguments["by"] == "answer":
            answer(eldest, {"resultType": "complete", "_meta": {"io.modelcontextprotocol/subscriptionId": eldest}})
        else:
            say('{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":%d}}' % eldest)
        text(identifier, "ended")
    elif name == "probe":
        text(identifier, json.dumps(probes.probe(arguments["probe"], arguments.get("argument", ""))))
    elif name == "secret":
        text(identifier, "nobody may call this")
    else:
        say(json.dumps({"jsonrpc": "2.0", "id": identifier, "error": {"code": -32602, "message": "unknown tool"}}))


def need(identifier, arguments, state):
    methods = arguments.get("methods") or {"what": arguments.get("method", "elicitation/create")}
    asked = {key: {"method": method, "params": {"message": state}} for key, method in methods.items()}
    requests = {} if arguments.get("nothing") else {"inputRequests": asked}
    answer(identifier, {"resultType": "input_required", "requestState": state} | requests)


def listen(identifier, params):
    """The subscription stays open; what it hears comes with its name.

    It is refused for what is forbidden, and acknowledged without what is refused, later, or not at all.
    """
    meta = '"_meta":{"io.modelcontextprotocol/subscriptionId":%s}' % json.dumps(identifier)
    wanted = params["notifications"]
    uris = wanted.get("resourceSubscriptions", [])
    takes = [uri for uri in uris if "refused" not in uri]

    def begin():
        told = {name: value for name, value in wanted.items() if name != "resourceSubscriptions"}
        told |= {"resourceSubscriptions": takes} if takes else {}
        say('{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{%s,"notifications":%s}}'
            % (meta, json.dumps(told)))
        say('{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{%s}}' % meta)

    late = [uri for uri in uris if "later" in uri and uri not in released]
    if any("forbidden" in uri for uri in uris):
        return say(json.dumps({"jsonrpc": "2.0", "id": identifier, "error": {"code": -32000, "message": "not for you"}}))
    listening[identifier] = wanted
    if late:
        waiting[late[0]] = begin
    elif not any("mute" in uri for uri in uris):
        begin()


def cached(identifier, result):
    if modern and "--unhinted" in sys.argv:
        result |= {"resultType": "complete"}
    elif modern:
        result |= {"resultType": "complete", "ttlMs": 1000, "cacheScope": "public"}
    answer(identifier, result)


def main():
    if "--silent" in sys.argv:
        time.sleep(600)
    while True:
        message = read()
        method, identifier = message.get("method"), message.get("id")
        if "--strict" in sys.argv and len(seen) == 1 and method != "initialize":
            sys.exit("expected initialize")
        if method == "server/discover" and modern:
            can = {"tools": {"listChanged": True}, "resources": {"subscribe": True}, "logging": {}} if "--changes" in sys.argv else {"tools": {}}
            cached(identifier, {"supportedVersions": ["2026-07-28"], "capabilities": can,
                                "serverInfo": {"name": "scripted", "version": "1"}})
        elif method == "subscriptions/listen" and modern:
            listen(identifier, message["params"])
        elif method == "notifications/cancelled" and modern:
            listening.pop(message["params"]["requestId"], None)
        elif method is not None and identifier is not None and modern and not method.startswith("tools/"):
            say(json.dumps({"jsonrpc": "2.0", "id": identifier, "error": {"code": -32601, "message": "no"}}))
        elif method == "server/discover" and "--deaf" in sys.argv:
            continue
        elif method == "server/discover":
            code = int(sys.argv[sys.argv.index("--unknown") + 1]) if "--unknown" in sys.argv else -32601
            say(json.dumps({"jsonrpc": "2.0", "id": identifier, "error": {"code": code, "message": "no"}}))
        elif method == "initialize":
            if "--refuse" in sys.argv:
                say(json.dumps({"jsonrpc": "2.0", "id": identifier, "error": {"code": -32602, "message": "no"}}))
                continue
            version = message["params"].get("protocolVersion", "2025-11-25")
            if "--version" in sys.argv:
                version = sys.argv[sys.argv.index("--version") + 1]
            can = {"tools": {"listChanged": True}, "resources": {"subscribe": True}, "logging": {}} if "--changes" in sys.argv else {"tools": {}}
            answer(identifier, {"protocolVersion": version, "capabilities": can,
                                "serverInfo": {"name": "scripted", "version": "1"}})
        elif method == "tools/list" and "--tools" in sys.argv:
            size = int(sys.argv[sys.argv.index("--tools") + 2])
            tools = [{"name": "t%d" % number, "inputSchema": {"type": "object"}, "description": "x" * size}
                     for number in range(int(sys.argv[sys.argv.index("--tools") + 1]))]
            cached(identifier, {"tools": tools})
        elif method == "tools/list" and "--marked" in sys.argv:
            marked = {"region": {"type": "string", "x-mcp-header": "Region"}, "n": {"type": "integer", "x-mcp-header": "N"}}
            tools = [{"name": "seen", "inputSchema": {"type": "object"}},
                     {"name": "echo", "inputSchema": {"type": "object", "properties": marked}}]
            # In two pages, of which the second has what matters.
            second = "cursor" in message.get("params", {})
            cached(identifier, {"tools": tools[1:]} if second else {"tools": tools[:1], "nextCursor": "2"})
        elif method == "tools/list" and "--odd" in sys.argv:
            # One of them could be taken for `echo`.
            cached(identifier, {"tools": [{"name": name, "inputSchema": {}} for name in ["echo ", "echo", "\uff45cho", "a/b"]]})
        elif method == "tools/list":
            if "--chatty" in sys.argv:
                say('{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"a list"}}')
            cached(identifier, {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in TOOLS]})
        elif method == "tools/call":
            call(identifier, message["params"])
        elif method == "resources/subscribe" and "refused" in message["params"]["uri"]:
            say(json.dumps({"jsonrpc": "2.0", "id": identifier, "error": {"code": -32002, "message": "no such resource"}}))
        elif method == "resources/subscribe" and "mute" in message["params"]["uri"]:
            continue
        elif method == "resources/subscribe" and "later" in message["params"]["uri"]:
            waiting[message["params"]["uri"]] = identifier
        elif identifier is not None and method is not None:
            answer(identifier, {})


main()

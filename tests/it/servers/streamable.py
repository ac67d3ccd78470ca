"""An MCP server over Streamable HTTP that does what it is told, good or bad.

`streamable.py PORT` serves http://127.0.0.1:PORT/mcp; port 0 takes any and prints it.
A path in place of the port is that of a Unix socket.
Every tool is one behaviour. `seen` tells what has reached this server: methods,
headers and bodies, so that a test knows what was never sent.
"""

import json
import os
import queue
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

modern = "--modern" in sys.argv
stateless = "--stateless" in sys.argv
no_stream = "--no-stream" in sys.argv
seen, sessions, answers, listens = [], {}, {}, {}
lock = threading.Lock()
released = threading.Event()
TOOLS = ["echo", "seen", "progress", "ask", "crash", "hang", "hold", "release", "garbage", "huge", "endless", "status", "redirect", "drop", "polls",
         "announce", "other-type", "forget", "environ", "failure", "unanswered", "exact"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def note(self, body=""):
        with lock:
            seen.append({"method": self.command, "path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}, "body": body})

    def plain(self, status, body=b"", kind="application/json", headers=()):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if body:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def events(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def raw(self, text):
        data = text.encode() if isinstance(text, str) else text
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def event(self, message, identifier=None):
        place = "id: %s\n" % identifier if identifier else ""
        self.raw("%sdata: %s\n\n" % (place, message if isinstance(message, str) else json.dumps(message)))

    def over(self):
        self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()

    def session(self):
        if stateless or modern:
            return {"notes": queue.Queue()}
        return sessions.get(self.headers.get("Mcp-Session-Id"))

    def do_GET(self):
        self.note()
        session = self.session()
        if session is None:
            return self.plain(404, b'{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"Session not found"}}')
        last = self.headers.get("Last-Event-ID")
        if last is not None and last.startswith("poll-"):
            number = int(last.split("-")[1])
            self.events()
            if number < 3:
                self.event({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "poll %d" % number}}, "poll-%d" % (number + 1))
            else:
                self.event(answers.pop("poll"))
            return self.over()
        if last is not None and last.startswith("own-"):
            self.events()
            self.event({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
            while not session.get("over"):
                time.sleep(0.05)
            return self.over()
        if no_stream or modern:
            return self.plain(405)
        self.events()
        self.raw(": hello\n\n")
        while not session.get("over"):
            try:
                note = session["notes"].get(timeout=0.1)
                if note is None:
                    self.raw("retry: 50\nid: own-1\ndata:\n\n")
                    return self.over()
                self.event(note)
            except queue.Empty:
                pass
        self.over()

    def do_DELETE(self):
        self.note()
        session = sessions.pop(self.headers.get("Mcp-Session-Id"), None)
        if session is not None:
            session["over"] = True
        self.plain(200 if session else 404)

    def do_POST(self):
        length = int(self.headers.get("Content-Length", "0"))
        body = self.rfile.read(length).decode()
        self.note(body)
        message = json.loads(body)
        method, identifier = message.get("method"), message.get("id")
        params = message.get("params") or {}
        meta = params.get("_meta") or {}
        if modern != ("io.modelcontextprotocol/protocolVersion" in meta) and method is not None and identifier is not None:
            return self.plain(400, b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"another era"}}')
        if modern and identifier is not None:
            named = {"tools/call": params.get("name")}.get(method)
            if self.headers.get("Mcp-Method") != method or self.headers.get("Mcp-Name") != named:
                return self.error(identifier, 400, -32020)
        if method == "initialize":
            name = "s%d-%d" % (len(sessions), os.getpid())
            sessions[name] = {"notes": queue.Queue()}
            version = params["protocolVersion"]
            result = {"protocolVersion": version, "capabilities": {"tools": {}, "logging": {}}, "serverInfo": {"name": "http", "version": "1"}}
            return self.answer(identifier, result, [] if stateless else [("Mcp-Session-Id", name)])
        if self.session() is None:
            return self.plain(404, b'{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"Session not found"}}')
        if method is None:
            answers[json.dumps(identifier)] = message
            released.set()
            return self.plain(202)
        if identifier is None:
            return self.plain(202)
        if method == "server/discover":
            return self.answer(identifier, {"resultType": "complete", "ttlMs": 0, "cacheScope": "private", "supportedVersions": ["2026-07-28"],
                                            "capabilities": {"tools": {"listChanged": True}, "resources": {"subscribe": True}} if "--changes" in sys.argv else {"tools": {}}, "serverInfo": {"name": "http", "version": "1"}})
        if method == "tools/list":
            extra = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"} if modern else {}
            marked = {"name": "marked", "inputSchema": {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}}
            return self.answer(identifier, {"tools": [marked] + [{"name": name, "inputSchema": {"type": "object"}} for name in TOOLS]} | extra)
        if method == "tools/call":
            return self.call(identifier, params["name"], params.get("arguments") or {}, meta)
        if method == "subscriptions/listen" and modern:
            return self.listen(identifier, params["notifications"])
        if modern:
            return self.error(identifier, 404, -32601)
        self.answer(identifier, {})

    def listen(self, identifier, wanted):
        uris = wanted.get("resourceSubscriptions", [])
        if any("forbidden" in uri for uri in uris):
            return self.error(identifier, 200, -32000)
        changes = listens[identifier] = queue.Queue()
        label = {"_meta": {"io.modelcontextprotocol/subscriptionId": identifier}}
        self.events()
        self.event({"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": {"notifications": wanted} | label})
        try:
            while True:
                try:
                    uri = changes.get(timeout=0.05)
                except queue.Empty:
                    self.raw(": alive\n\n")
                    continue
                if uri is None:
                    # Without an answer.
                    self.over()
                    break
                if uri in uris:
                    self.event({"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"uri": uri} | label})
        except OSError:
            self.close_connection = True
        listens.pop(identifier, None)

    def error(self, identifier, status, code):
        self.plain(status, json.dumps({"jsonrpc": "2.0", "id": identifier, "error": {"code": code, "message": "no"}}).encode())

    def answer(self, identifier, result, headers=()):
        self.plain(200, json.dumps({"jsonrpc": "2.0", "id": identifier, "result": result}).encode(), headers=headers)

    def text(self, identifier, value):
        extra = {"resultType": "complete"} if modern else {}
        self.answer(identifier, {"content": [{"type": "text", "text": value}]} | extra)

    def call(self, identifier, name, arguments, meta):
        done = {"jsonrpc": "2.0", "id": identifier, "result": {"content": [{"type": "text", "text": "done"}]} | ({"resultType": "complete"} if modern else {})}
        if name == "echo":
            self.text(identifier, json.dumps(arguments))
        elif name == "marked":
            if self.headers.get("Mcp-Param-Region") != arguments["region"]:
                return self.error(identifier, 400, -32020)
            self.text(identifier, arguments["region"])
        elif name == "seen":
            with lock:
                self.text(identifier, json.dumps(seen))
        elif name == "environ":
            self.text(identifier, json.dumps(dict(os.environ)))
        elif name == "exact":
            body = '{"jsonrpc":"2.0",\n "result" : {"big":9007199254740993, "e":1.0e+2,\r\n"u":"\\u00e9\u00e9"}, "id":%d}' % identifier
            self.plain(200, body.encode())
        elif name == "progress":
            token = json.dumps(meta.get("progressToken"))
            self.events()
            for step in (1, 2):
                self.raw('event: message\r\ndata: {"jsonrpc":"2.0","method":"notifications/progress",\r\ndata: "params":{"progressToken":%s,"progress":%d}}\r\n\r\n' % (token, step))
            self.raw("event: ping\ndata: not for anybody\n\n")
            self.event(done)
            self.over()
        elif name == "ask":
            self.events()
            self.event({"jsonrpc": "2.0", "id": "mine-1", "method": "elicitation/create", "params": {"message": "?"}})
            released.wait(20)
            done["result"]["content"][0]["text"] = json.dumps(answers.get('"mine-1"'))
            self.event(done)
            self.over()
        elif name == "announce" and modern:
            for changes in list(listens.values()):
                changes.put(arguments["uri"])
            self.text(identifier, "announced")
        elif name == "cut" and modern:
            for changes in list(listens.values()):
                changes.put(None)
            self.text(identifier, "cut")
        elif name == "announce":
            for session in list(sessions.values()):
                session["notes"].put({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
            self.text(identifier, "announced")
        elif name == "cut":
            for session in list(sessions.values()):
                session["notes"].put(None)
            self.text(identifier, "cut")
        elif name == "crash":
            os._exit(3)
        elif name == "hang":
            try:
                self.events()
                while True:
                    self.raw(": alive\n\n")
                    time.sleep(0.05)
            except OSError:
                with lock:
                    seen.append({"method": "HANGUP", "body": str(identifier)})
            self.close_connection = True
        elif name == "hold":
            self.events()
            sys.stderr.write("holding\n")
            sys.stderr.flush()
            released.wait(20)
            self.event(done)
            self.over()
        elif name == "release":
            released.set()
            self.text(identifier, "released")
        elif name == "garbage":
            self.plain(200, b"\xff\xfe not json")
        elif name == "other-type":
            self.plain(200, b"<html>", "text/html")
        elif name == "unanswered":
            self.events()
            self.event({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "that is all"}})
            self.over()
        elif name == "huge":
            body = json.dumps(dict(done, padding="x" * (5 << 20))).encode()
            self.plain(200, body)
            self.close_connection = True
        elif name == "endless":
            self.events()
            try:
                while True:
                    self.raw("data: " + "x" * 65536)
            except OSError:
                pass
            self.close_connection = True
        elif name == "status":
            self.plain(arguments["status"], b"no", "text/plain", [("WWW-Authenticate", "Bearer realm=upstream")])
        elif name == "failure":
            self.error(identifier, arguments["status"], arguments["code"])
        elif name == "redirect":
            self.plain(307, b"", headers=[("Location", arguments["to"])])
        elif name == "drop":
            self.close_connection = True
            self.connection.close()
        elif name == "polls":
            answers["poll"] = done
            self.events()
            self.raw("retry: 50\nid: poll-0\ndata:\n\n")
            self.over()
        elif name == "forget":
            sessions.clear()
            self.text(identifier, "forgotten")
        else:
            self.error(identifier, 200, -32602)


port = int(sys.argv[1]) if sys.argv[1].isdigit() else sys.argv[1]
if "--wordy" in sys.argv:
    for stream in (sys.stdout, sys.stderr):
        for number in range(5000):
            print(f"{number}: a line of what a framework says of itself while it begins", file=stream)
        print("that was all", file=stream, flush=True)
if "--late" in sys.argv:
    time.sleep(0.5)
if "--never" in sys.argv:
    print("Error: I do not listen\n\nPlatform v1.2.3", file=sys.stderr, flush=True)
    time.sleep(600)
if "--ends" in sys.argv:
    print("Error: I cannot go on\n\nPlatform v1.2.3", file=sys.stderr, flush=True)
    sys.exit(3)


class Server(ThreadingHTTPServer):
    request_queue_size = 64
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass


class UnixServer(Server):
    address_family = socket.AF_UNIX

    def server_bind(self):
        self.socket.bind(self.server_address)

    def get_request(self):
        connection, _ = self.socket.accept()
        return connection, ("local", 0)


if isinstance(port, str):
    Handler.disable_nagle_algorithm = False
    server = UnixServer(port, Handler)
else:
    server = Server(("127.0.0.1", port), Handler)
    print(server.server_address[1], flush=True)
server.serve_forever()

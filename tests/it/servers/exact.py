"""An MCP server that says and keeps bytes, not values.

`exact.py` speaks over its standard streams, `exact.py PORT` over HTTP; `--modern` speaks the stateless version.
The tool `exact` says the lines that its argument `say` holds (base64), with the request's own id and token in the
places that are left for them (with `asks` the first of them, and the others when that has its answer); `heard` gives back every call of it as it came.
"""

import base64
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

modern = "--modern" in sys.argv
port = int(sys.argv[1]) if sys.argv[1:] and sys.argv[1].isdigit() else None
how = sys.argv[sys.argv.index("--list") + 1] if "--list" in sys.argv else None
heard = []
# What is said when the answer to a question has come.
waiting = []


def answers(line):
    """The messages that a line is answered with, as bytes."""
    message = json.loads(line)
    method, identifier, params = message.get("method"), message.get("id"), message.get("params") or {}
    if method is None and waiting:
        heard.append(line)
        return waiting.pop()
    if method is None or identifier is None:
        return []
    own = str(identifier).encode()
    result = lambda text: [b'{"jsonrpc":"2.0","id":%s,"result":%s}' % (own, text.encode())]
    complete = '"resultType":"complete","ttlMs":0,"cacheScope":"private",' if modern else ""
    if method == "server/discover" and modern:
        return result('{%s"supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"serverInfo":{"name":"exact","version":"1"}}' % complete)
    if method == "initialize" and not modern:
        return result('{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name": "exact","version":"1"}}')
    if method == "tools/list":
        return result('{%s"tools":[{"name":"exact","inputSchema":{"type":"object"}},{"name":"heard","inputSchema":{"type":"object"}}]}' % complete)
    if method == "ping":
        return result("{}")
    if method != "tools/call":
        return [b'{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no"}}' % own]
    if params["name"] == "heard":
        told = json.dumps([base64.b64encode(line).decode() for line in heard])
        heard.clear()
        return result(json.dumps({"content": [{"type": "text", "text": told}]} | ({"resultType": "complete"} if modern else {})))
    heard.append(line)
    token = json.dumps(params["_meta"]["progressToken"]).encode()
    said = base64.b64decode(params["arguments"]["say"])
    parts = [part.replace(b"@ID@", own).replace(b"@TOKEN@", token) for part in said.split(b"\0")]
    if params["arguments"].get("asks"):
        waiting.append(parts[1:])
        return parts[:1]
    return parts


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def send(self, status, kind, body, more=()):
        self.send_response(status)
        if kind is not None:
            self.send_header("Content-Type", kind)
        for name, value in more:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def list(self, answer):
        """The list, as a server may answer that has its own way of it."""
        events = lambda end: end.join([b"event: message", b"data: " + answer, b"", b""])
        json_type, events_type = "application/json", "text/event-stream"
        status, kind, body = {
            "json": (200, json_type, answer),
            "json-upper": (200, "Application/JSON;charset=utf-8", answer),
            "lf": (200, events_type, events(b"\n")),
            "crlf": (200, events_type, events(b"\r\n")),
            "cr": (200, events_type, events(b"\r")),
            "bom": (200, events_type, b"\xef\xbb\xbf" + events(b"\n")),
            "upper": (200, "Text/Event-Stream ; charset=UTF-8", events(b"\n")),
            "split": (200, events_type, events(b"\n").replace(b",", b",\ndata:")),
            "twice": (200, events_type, events(b"\n") * 2),
            "broken": (200, json_type, answer.replace(b"heard", b"he\nard")),
            "broken-cr": (200, json_type, answer.replace(b"heard", b"he\rard")),
            "broken-events": (200, events_type, events(b"\n").replace(b"heard", b"he\ndata: ard")),
            "201": (201, json_type, answer),
            "203": (203, json_type, answer),
            "206": (206, events_type, events(b"\n")),
            "gzip": (200, json_type, answer),
            "text": (200, "text/plain", answer),
            "two-types": (200, json_type, answer),
            "no-type": (200, None, answer),
        }[how]
        more = {"gzip": [("Content-Encoding", "gzip")], "two-types": [("Content-Type", events_type)]}.get(how, [])
        self.send(status, kind, body, more)

    def do_GET(self):
        self.send(405, "text/plain", b"")

    def do_POST(self):
        line = self.rfile.read(int(self.headers["Content-Length"]))
        said = answers(line)
        if how is not None and json.loads(line).get("method") == "tools/list":
            return self.list(said[0])
        if not said:
            self.send(202, "text/plain", b"")
        elif len(said) == 1:
            self.send(200, "application/json", said[0])
        else:
            # What has several lines is said in several lines of data.
            lines = [part.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n") for part in said]
            events = [b"".join(b"data: " + line + b"\n" for line in part) + b"\n" for part in lines]
            self.send(200, "text/event-stream", b"".join(events))


if port is None:
    for line in sys.stdin.buffer:
        for part in answers(line.rstrip(b"\n")):
            sys.stdout.buffer.write(part + b"\n")
        sys.stdout.buffer.flush()
else:
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()

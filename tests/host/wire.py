"""MCP over HTTP as bytes: for what the SDK would never send, and for asking what came back."""

import base64
import http.client
import json
import urllib.parse


IDP_PORT = 9000
ISSUER = f"http://127.0.0.1:{IDP_PORT}"
VERSION = "2025-11-25"


class Answer:
    def __init__(self, response):
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def message(self):
        """The JSON-RPC message, out of JSON or out of the one event of a stream."""
        text = self.body.decode()
        if self.headers.get_content_type() == "text/event-stream":
            events = [line[len("data:"):] for line in text.splitlines() if line.startswith("data:") and line[5:].strip()]
            text = events[-1]
        return json.loads(text)

    def __repr__(self):
        return f"{self.status} {dict(self.headers)} {self.body[:500]!r}"


class Client:
    """One caller of one server: a token, a connection, perhaps a session."""

    def __init__(self, port, token=None, timeout=30):
        self.port, self.token, self.timeout = port, token, timeout
        self.session = None
        self._next = 0
        self._connection = None

    def request(self, method, body=None, headers=None, path="/mcp"):
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)
        sent = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        if self.session:
            sent |= {"Mcp-Session-Id": self.session, "MCP-Protocol-Version": VERSION}
        self._connection.request(method, path, body, sent | (headers or {}))
        return Answer(self._connection.getresponse())

    def post(self, method, params=None):
        self._next += 1
        message = {"jsonrpc": "2.0", "id": self._next, "method": method}
        if params is not None:
            message["params"] = params
        return self.request("POST", json.dumps(message))

    def initialize(self):
        answer = self.post("initialize", {
            "protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "host-test", "version": "1"}})
        self.session = answer.headers.get("Mcp-Session-Id")
        return answer

    def note_initialized(self):
        return self.request("POST", json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}))

    def call(self, tool, arguments=None):
        return self.post("tools/call", {"name": tool, "arguments": arguments or {}})

    def said(self, tool, arguments=None):
        """The text that a tool answers; anything else is a failure."""
        answer = self.call(tool, arguments)
        assert answer.status == 200 and "result" in answer.message, answer
        return answer.message["result"]["content"][0]["text"]

    def leave(self):
        answer = self.request("DELETE")
        self.session = None
        return answer

    def close(self):
        if self._connection:
            self._connection.close()
            self._connection = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def opened(port, token, timeout=30):
    """A client with a session."""
    client = Client(port, token, timeout)
    answer = client.initialize()
    assert answer.status == 200 and client.session, answer
    noted = client.note_initialized()
    assert noted.status == 202, noted
    return client


def token(who, resource):
    """An access token of the provider: client credentials, for one resource."""
    form = urllib.parse.urlencode({"grant_type": "client_credentials", "scope": "mcp", "resource": resource})
    secret = base64.b64encode(f"{who}:secret-of-{who}".encode()).decode()
    answer = provider("POST", "/token", form, {
        "Authorization": f"Basic {secret}", "Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status == 200, answer
    return json.loads(answer.body)["access_token"]


def minted(kind, who, resource):
    """A token that a provider would not give (see idp.mjs)."""
    answer = provider("POST", "/mint", json.dumps({"kind": kind, "client": who, "resource": resource}))
    assert answer.status == 200, answer
    return answer.body.decode()


def provider(method, path, body=None, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", IDP_PORT, timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def start_provider(host):
    host.run("systemd-run", "--quiet", "--unit=idp", "--property=DynamicUser=yes", "/usr/bin/node", "/opt/peers/idp.mjs")

    def answers():
        try:
            return provider("GET", "/.well-known/openid-configuration").status == 200
        except OSError:
            return False

    host.until("the identity provider", 60, answers)

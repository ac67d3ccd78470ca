"""An MCP server over stdio with what the official conformance suite looks for by name.

It speaks both eras: `initialize` and what follows (to 2025-11-25), and the stateless 2026-07-28.
With `--legacy` it knows nothing of the latter, with `--modern` nothing of the former. Each request is worked on in a thread of its own.
Some tools are tasks: those of 2025-11-25 for whoever asks for one so, those of the extension for whoever declares it.
"""

import base64
import hashlib
import hmac
import itertools
import json
import os
import re
import struct
import sys
import threading
import time
import zlib

MODERN, LEGACY = "2026-07-28", ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
META = "io.modelcontextprotocol/"
EXTENSION = META + "tasks"
INFO = {"name": "thv-conformance", "version": "1"}
speaks_modern, speaks_legacy = "--legacy" not in sys.argv, "--modern" not in sys.argv
out, lock = sys.stdout, threading.Lock()
numbers, answers, key = itertools.count(1), {}, os.urandom(32)
subscriptions = {}
tasks, TTL, PACE = {}, 600_000, 50


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
                       + chunk(b"IDAT", zlib.compress(b"\0\xff\0\0")) + chunk(b"IEND", b"")).decode()
WAV = base64.b64encode(b"RIFF" + struct.pack("<I", 36) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
                       + b"data" + struct.pack("<I", 0)).decode()


class Refused(Exception):
    def __init__(self, code, message, data=None):
        super().__init__(message)
        self.error = {"code": code, "message": message} | ({"data": data} if data is not None else {})


class NeedsInput(Exception):
    def __init__(self, requests, state=None):
        super().__init__("input required")
        self.result = {"resultType": "input_required", "inputRequests": requests}
        if state is not None:
            self.result["requestState"] = state


def say(message):
    with lock:
        out.write(json.dumps({"jsonrpc": "2.0"} | message) + "\n")
        out.flush()


class Request:
    """One request, and what may be said while it is worked on."""

    def __init__(self, message):
        self.id, self.method, self.params = message["id"], message["method"], message.get("params") or {}
        self.meta = self.params.get("_meta") or {}
        self.modern = META + "protocolVersion" in self.meta
        self.cancelled, self.begun = threading.Event(), None

    def notify(self, method, params):
        if not self.cancelled.is_set():
            say({"method": method, "params": params})

    def log(self, text):
        if not self.modern or META + "logLevel" in self.meta:
            self.notify("notifications/message", {"level": "info", "logger": "conformance", "data": text})

    def progress(self, done):
        if "progressToken" in self.meta:
            self.notify("notifications/progress", {"progressToken": self.meta["progressToken"], "progress": done, "total": 100})

    def capabilities(self):
        return self.meta.get(META + "clientCapabilities") or {}

    def takes_tasks(self):
        """Whether this is to be answered with a task, where there is one: by the extension, or asked for in so many words."""
        return EXTENSION in (self.capabilities().get("extensions") or {}) if self.modern else "task" in self.params

    def task(self, work):
        """The work's result, or the task that it becomes."""
        task = Task(self, work)
        if not self.takes_tasks():
            task.run()
            return task.outcome()
        tasks[task.id] = self.begun = task
        stands = task.stands()
        return {"resultType": "task"} | stands if self.modern else {"task": stands}

    def ask(self, method, params):
        """What the client says to a question."""
        return self.inputs({"answer": (method, params)})["answer"]

    def asked(self, wanted, about=None):
        """A legacy client's answers: all questions are out before the first answer is waited for."""
        waiting = {}
        for name, (method, params) in wanted.items():
            with lock:
                number = name if name not in answers else f"{name}-{next(numbers)}"
                waiting[name] = number
                answers[number] = [threading.Event(), None]
            say({"id": number, "method": method, "params": params | ({"_meta": about} if about else {})})
        given = {}
        for name, number in waiting.items():
            if not answers[number][0].wait(60):
                raise Refused(-32603, "the client did not answer")
            answer = answers.pop(number)[1]
            if "error" in answer:
                raise Refused(-32603, f"the client refused: {answer['error'].get('message')}")
            given[name] = answer["result"]
        return given

    def inputs(self, wanted, state=None):
        """The client's answers to all that is wanted: legacy ones are asked, modern ones sent away to come back."""
        if not self.modern:
            return self.asked(wanted)
        given = self.params.get("inputResponses")
        given = given if isinstance(given, dict) else {}
        fits = {"elicitation/create": lambda a: a.get("action") in ("accept", "decline", "cancel"),
                "sampling/createMessage": lambda a: "content" in a, "roots/list": lambda a: isinstance(a.get("roots"), list)}
        good = {name: given[name] for name, (method, _) in wanted.items()
                if isinstance(given.get(name), dict) and fits[method](given[name])}
        if len(good) == len(wanted):
            return good
        raise NeedsInput({name: {"method": method, "params": params} for name, (method, params) in wanted.items()}, state)

    def state(self):
        """The state that came back, if it is one of ours."""
        text = self.params.get("requestState")
        if text is None:
            return None
        value, _, mark = str(text).rpartition(".")
        if not hmac.compare_digest(mark, signed(value).rpartition(".")[2]):
            raise Refused(-32602, "requestState is not ours")
        return value


class Task:
    """What goes on when its call has been answered. Whoever changes it or reads more than one thing of it holds `changed`."""

    def __init__(self, request, work):
        self.id, self.request, self.work = os.urandom(16).hex(), request, work
        self.modern, self.status, self.result, self.error = request.modern, "working", None, None
        self.made = self.touched = time.time()
        self.wanted, self.given, self.changed = {}, {}, threading.Condition()

    def turn(self, status, **more):
        """Nothing comes after an end."""
        with self.changed:
            if not self.ended():
                self.status, self.touched = status, time.time()
                vars(self).update(more)
                self.changed.notify_all()

    def ended(self):
        return self.status in ("completed", "failed", "cancelled")

    def run(self):
        try:
            self.turn("completed", result=self.work(self))
        except Refused as refused:
            self.turn("failed", error=refused.error)

    def rest(self, seconds):
        """Waits, or until it is cancelled."""
        with self.changed:
            self.changed.wait_for(self.ended, seconds)

    def inputs(self, wanted):
        """The client's answers to all that is wanted."""
        if not self.modern:
            self.turn("input_required")
            given = self.request.asked(wanted, {META + "related-task": {"taskId": self.id}})
        else:
            self.turn("input_required", wanted=dict(wanted))
            with self.changed:
                self.changed.wait_for(lambda: self.ended() or not self.wanted)
                given = self.given
        self.turn("working")
        return given

    def take(self, given):
        """What was not asked is not heard."""
        with self.changed:
            for name in set(given) & set(self.wanted):
                del self.wanted[name]
                self.given[name] = given[name]
            self.changed.notify_all()

    def outcome(self):
        """As the call would have been answered, when it has ended."""
        with self.changed:
            self.changed.wait_for(self.ended)
        if self.status == "completed":
            return self.result
        error = self.error or {"code": -32603, "message": "cancelled"}
        raise Refused(error["code"], error["message"])

    def stands(self):
        made, touched = (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)) for at in (self.made, self.touched))
        pace = {"ttlMs": TTL, "pollIntervalMs": PACE} if self.modern else {"ttl": TTL, "pollInterval": PACE}
        return {"taskId": self.id, "status": self.status, "createdAt": made, "lastUpdatedAt": touched} | pace

    def detailed(self):
        with self.changed:
            found = self.stands()
            if self.status == "completed":
                found["result"] = {"resultType": "complete"} | self.result
            elif self.status == "failed":
                found["error"] = self.error
            elif self.status == "input_required":
                found["inputRequests"] = {name: {"method": method, "params": params} for name, (method, params) in self.wanted.items()}
            return found


def about_task(request):
    """What the methods of tasks answer. Those of either era are unknown in the other."""
    kind, params = request.method.removeprefix("tasks/"), request.params
    if kind not in (("get", "update", "cancel") if request.modern else ("get", "result", "list", "cancel")):
        raise Refused(-32601, "Method not found")
    if request.modern and not request.takes_tasks():
        raise needs_tasks()
    if kind == "list":
        return {"tasks": [task.stands() for task in tasks.values() if not task.modern]}
    task = tasks.get(params.get("taskId"))
    if task is None or task.modern != request.modern:
        raise Refused(-32602, "no such task")
    if kind == "get":
        return task.detailed() if request.modern else task.stands()
    if kind == "update":
        task.take(params.get("inputResponses") or {})
        return {}
    if kind == "result":
        return task.outcome() | {"_meta": {META + "related-task": {"taskId": task.id}}}
    if task.ended() and not request.modern:
        raise Refused(-32602, f"the task is {task.status}")
    task.turn("cancelled")
    return {} if request.modern else task.stands()


def needs_tasks():
    return Refused(-32021, "tasks are needed", {"requiredCapabilities": {"extensions": {EXTENSION: {}}}})


def signed(value):
    return value + "." + hmac.new(key, value.encode(), hashlib.sha256).hexdigest()


def form(message, **properties):
    return "elicitation/create", {"message": message, "requestedSchema": {
        "type": "object", "properties": properties, "required": list(properties)}}


def sample(text, tokens=100):
    return "sampling/createMessage", {"messages": [{"role": "user", "content": {"type": "text", "text": text}}], "maxTokens": tokens}


ROOTS = ("roots/list", {})
STRING = {"type": "string"}


def text(value):
    return {"content": [{"type": "text", "text": value}]}


def image():
    return {"type": "image", "data": PNG, "mimeType": "image/png"}


def embedded(uri, mime, value):
    return {"type": "resource", "resource": {"uri": uri, "mimeType": mime, "text": value}}


TOOLS, PROMPTS = {}, {}


def tool(description, schema=None, task="forbidden"):

    def add(function):
        TOOLS[function.__name__] = (function, description, schema or {"type": "object", "properties": {}}, task)
        return function
    return add


def prompt(description, *arguments):
    def add(function):
        PROMPTS[function.__name__] = (function, description, arguments)
        return function
    return add


def one(name):
    return {"type": "object", "properties": {name: STRING}, "required": [name]}


@tool("Says something")
def test_simple_text(request, arguments):
    return text("This is a simple text response for testing.")


@tool("Says in a header what it is asked", {
    "type": "object", "properties": {"word": {"type": "string", "x-mcp-header": "Word"}}, "required": ["word"]})
def test_header_word(request, arguments):
    return text(arguments["word"])


# More of a schema than thv has any use for: it has to arrive as it is.
@tool("Finds somebody", {
    "$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object",
    "$defs": {"address": {"$anchor": "addressDef", "type": "object", "properties": {"street": STRING, "city": STRING}}},
    "properties": {"name": STRING, "address": {"$ref": "#/$defs/address"}, "phone": STRING, "email": STRING,
                   "contactMethod": {"type": "string", "enum": ["phone", "email"]}},
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]}, "else": {"required": ["email"]}, "additionalProperties": False})
def json_schema_2020_12_tool(request, arguments):
    return text("found")


@tool("Shows a picture")
def test_image_content(request, arguments):
    return {"content": [image()]}


@tool("Plays a sound")
def test_audio_content(request, arguments):
    return {"content": [{"type": "audio", "data": WAV, "mimeType": "audio/wav"}]}


@tool("Brings a resource along")
def test_embedded_resource(request, arguments):
    return {"content": [embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")]}


@tool("All kinds of content")
def test_multiple_content_types(request, arguments):
    return {"content": [{"type": "text", "text": "Multiple content types test:"}, image(),
                        embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}')]}


@tool("Logs while it works")
def test_tool_with_logging(request, arguments):
    request.log("Tool execution started")
    time.sleep(0.05)
    request.log("Tool processing data")
    time.sleep(0.05)
    request.log("Tool execution completed")
    return text("Tool with logging executed successfully")


@tool("Logs where it may")
def test_logging_tool(request, arguments):
    request.log("logging")
    return text("logged")


@tool("Tells how far it is")
def test_tool_with_progress(request, arguments):
    for done in (0, 50, 100):
        request.progress(done)
        time.sleep(0.05)
    return text("done")


@tool("Fails")
def test_error_handling(request, arguments):
    return text("This tool intentionally returns an error for testing") | {"isError": True}


@tool("Asks the client's model", one("prompt"))
def test_sampling(request, arguments):
    answer = request.ask(*sample(arguments["prompt"]))
    return text("LLM response: " + answer["content"].get("text", ""))


@tool("Asks the user", one("message"))
def test_elicitation(request, arguments):
    answer = request.ask(*form(arguments["message"], username=STRING | {"description": "User's response"},
                               email=STRING | {"description": "User's email address"}))
    return text(f"User response: action={answer['action']}, content={json.dumps(answer.get('content'))}")


def completed(answer):
    return text(f"Elicitation completed: action={answer['action']}, content={json.dumps(answer.get('content') or {})}")


@tool("Asks with defaults")
def test_elicitation_sep1034_defaults(request, arguments):
    return completed(request.ask(*form(
        "Please review", name=STRING | {"default": "John Doe"}, age={"type": "integer", "default": 30},
        score={"type": "number", "default": 95.5}, status=STRING | {"enum": ["active", "inactive", "pending"], "default": "active"},
        verified={"type": "boolean", "default": True})))


@tool("Asks for choices")
def test_elicitation_sep1330_enums(request, arguments):
    def titled(*names):
        return [{"const": f"value{n + 1}", "title": name} for n, name in enumerate(names)]
    options = ["option1", "option2", "option3"]
    return completed(request.ask(*form(
        "Please choose", untitledSingle=STRING | {"enum": options},
        titledSingle=STRING | {"oneOf": titled("First Option", "Second Option", "Third Option")},
        legacyEnum=STRING | {"enum": ["opt1", "opt2", "opt3"], "enumNames": ["Option One", "Option Two", "Option Three"]},
        untitledMulti={"type": "array", "items": STRING | {"enum": options}},
        titledMulti={"type": "array", "items": {"anyOf": titled("First Choice", "Second Choice", "Third Choice")}})))


@tool("Needs a client that samples")
def test_missing_capability(request, arguments):
    if not request.modern:
        request.ask(*sample("Are you there?"))
    elif "sampling" not in request.capabilities():
        raise Refused(-32021, "sampling is needed", {"requiredCapabilities": {"sampling": {}}})
    return text("it is there")


@tool("Asks in the middle of its answer")
def test_streaming_elicitation(request, arguments):
    request.progress(50)
    return completed(request.ask(*form("Go on?", ok={"type": "boolean"})))


def changed(request, kind):
    if not request.modern:
        say({"method": f"notifications/{kind}s/list_changed"})
    for subscription, (identifier, wanted) in list(subscriptions.items()):
        if wanted.get(f"{kind}sListChanged"):
            say({"method": f"notifications/{kind}s/list_changed", "params": {"_meta": {META + "subscriptionId": identifier}}})
    return text("changed")


@tool("Says that the tools changed")
def test_trigger_tool_change(request, arguments):
    return changed(request, "tool")


@tool("Says that the prompts changed")
def test_trigger_prompt_change(request, arguments):
    return changed(request, "prompt")


@tool("Asks for a name")
def test_input_required_result_elicitation(request, arguments):
    answer = request.inputs({"user_name": form("What is your name?", name=STRING)})["user_name"]
    return text(f"Hello, {(answer.get('content') or {}).get('name')}!")


@tool("Asks a model")
def test_input_required_result_sampling(request, arguments):
    return text(request.inputs({"capital_question": sample("What is the capital of France?")})["capital_question"]["content"]["text"])


@tool("Asks for roots")
def test_input_required_result_list_roots(request, arguments):
    return text(json.dumps(request.inputs({"client_roots": ROOTS})["client_roots"]["roots"]))


CONFIRM = {"confirm": form("Please confirm", ok={"type": "boolean"})}


@tool("Remembers through the client")
def test_input_required_result_request_state(request, arguments):
    state = request.state()
    request.inputs(CONFIRM, signed("asked"))
    return text("state-ok" if state == "asked" or not request.modern else "no state")


@tool("Notices forged memories")
def test_input_required_result_tampered_state(request, arguments):
    return test_input_required_result_request_state(request, arguments)


@tool("Asks three things at once")
def test_input_required_result_multiple_inputs(request, arguments):
    request.state()
    given = request.inputs({"user_name": form("What is your name?", name=STRING), "greeting": sample("Generate a greeting", 50),
                            "client_roots": ROOTS}, signed("three"))
    return text(json.dumps(given))


@tool("Asks one thing after the other")
def test_input_required_result_multi_round(request, arguments):
    state = request.state()
    if not request.modern:
        name = request.inputs({"step1": form("Step 1: What is your name?", name=STRING)})["step1"].get("content")
        color = request.inputs({"step2": form("Step 2: What is your favorite color?", color=STRING)})["step2"].get("content")
        return text(f"{name} likes {color}")
    if state is None or state == "1":
        name = request.inputs({"step1": form("Step 1: What is your name?", name=STRING)}, signed("1"))
        raise NeedsInput({"step2": dict(zip(("method", "params"), form("Step 2: What is your favorite color?", color=STRING)))},
                         signed("2:" + json.dumps(name["step1"].get("content"))))
    color = request.inputs({"step2": form("Step 2: What is your favorite color?", color=STRING)}, signed(state))
    return text(f"{state[2:]} likes {color['step2'].get('content')}")


@tool("Asks what the client can answer")
def test_input_required_result_capabilities(request, arguments):
    can, wanted = request.capabilities(), {}
    if not request.modern:
        try:
            return text(json.dumps(request.inputs({"user_name": form("What is your name?", name=STRING)})))
        except Refused:
            return text(json.dumps(request.inputs({"greeting": sample("Generate a greeting", 50)})))
    if "sampling" in can:
        wanted["greeting"] = sample("Generate a greeting", 50)
    if "elicitation" in can:
        wanted["user_name"] = form("What is your name?", name=STRING)
    if "roots" in can:
        wanted["client_roots"] = ROOTS
    return text(json.dumps(request.inputs(wanted)))


@tool("Greets", one("name"))
def greet(request, arguments):
    return text(f"Hello, {arguments['name']}!")


@tool("Takes its time", {"type": "object", "properties": {"seconds": {"type": "number"}, "label": STRING}, "required": ["seconds"]},
      task="optional")
def slow_compute(request, arguments):
    def work(task):
        task.rest(arguments["seconds"])
        return text(f"{arguments.get('label')} took {arguments['seconds']} s")
    return request.task(work)


@tool("Fails after a while", task="required")
def failing_job(request, arguments):
    def work(task):
        task.rest(0.2)
        return text("it went wrong") | {"isError": True}
    return request.task(work)


@tool("Ends without a result", task="optional")
def protocol_error_job(request, arguments):
    def work(task):
        task.rest(0.2)
        raise Refused(-32603, "it broke")
    return request.task(work)


@tool("Asks before it deletes", one("filename"), task="required")
def confirm_delete(request, arguments):
    def work(task):
        answer = task.inputs({"confirm": form(f"Delete {arguments['filename']}?", confirm={"type": "boolean"})})["confirm"]
        return text("deleted" if answer["action"] == "accept" else "kept")
    return request.task(work)


@tool("Asks two things at once", task="required")
def multi_input(request, arguments):
    def work(task):
        wanted = {"who": form("What is your name?", name=STRING), "sure": form("Go on?", confirm={"type": "boolean"})}
        return text(json.dumps(task.inputs(wanted)))
    return request.task(work)


@tool("Asks first, and then takes its time", task="required")
def test_tool_with_task(request, arguments):
    answer = request.inputs({"user_name": form("What is your name?", name=STRING)})["user_name"]

    def work(task):
        task.rest(0.2)
        return text(f"Hello, {(answer.get('content') or {}).get('name')}!")
    return request.task(work)


@prompt("A prompt")
def test_simple_prompt(request, arguments):
    return [{"type": "text", "text": "This is a simple prompt for testing."}]


@prompt("A prompt with words to fill in", "arg1", "arg2")
def test_prompt_with_arguments(request, arguments):
    return [{"type": "text", "text": f"Prompt with arguments: arg1='{arguments['arg1']}', arg2='{arguments['arg2']}'"}]


@prompt("A prompt with a resource", "resourceUri")
def test_prompt_with_embedded_resource(request, arguments):
    return [embedded(arguments["resourceUri"], "text/plain", "Embedded resource content for testing."),
            {"type": "text", "text": "Please process the embedded resource above."}]


@prompt("A prompt with a picture")
def test_prompt_with_image(request, arguments):
    return [image(), {"type": "text", "text": "Please analyze the image above."}]


@prompt("A prompt that asks first")
def test_input_required_result_prompt(request, arguments):
    answer = request.inputs({"user_context": form("What context should the prompt use?", context=STRING)})["user_context"]
    return [{"type": "text", "text": f"Context: {(answer.get('content') or {}).get('context')}"}]


RESOURCES = {
    "test://static-text": ("text/plain", "This is the content of the static text resource."),
    "test://static-binary": ("image/png", None),
    "test://watched-resource": ("text/plain", "Watched resource content"),
}


def read(uri):
    template = re.fullmatch(r"test://template/([^/]+)/data", uri)
    if template:
        data = {"id": template[1], "templateTest": True, "data": f"Data for ID: {template[1]}"}
        return {"uri": uri, "mimeType": "application/json", "text": json.dumps(data)}
    if uri not in RESOURCES:
        raise Refused(-32602, "Resource not found", {"uri": uri})
    mime, content = RESOURCES[uri]
    return {"uri": uri, "mimeType": mime} | ({"text": content} if content else {"blob": PNG})


def capabilities(modern):
    changes = {"listChanged": True}
    found = {"tools": changes, "prompts": changes, "resources": changes | {"subscribe": True}, "completions": {}, "logging": {}}
    if modern:
        return found | {"extensions": {EXTENSION: {}}}
    return found | {"tasks": {"list": {}, "cancel": {}, "requests": {"tools": {"call": {}}}}}


def listed(request):
    kinds = {
        "tools/list": ("tools", [{"name": name, "description": description, "inputSchema": schema}
                                 | ({} if request.modern or task == "forbidden" else {"execution": {"taskSupport": task}})
                                 for name, (_, description, schema, task) in TOOLS.items()]),
        "prompts/list": ("prompts", [{"name": name, "description": description,
                                      "arguments": [{"name": a, "description": a, "required": True} for a in arguments]}
                                     for name, (_, description, arguments) in PROMPTS.items()]),
        "resources/list": ("resources", [{"uri": uri, "name": uri[7:], "description": uri[7:], "mimeType": mime}
                                         for uri, (mime, _) in RESOURCES.items()]),
        "resources/templates/list": ("resourceTemplates", [{"uriTemplate": "test://template/{id}/data", "name": "template",
                                                            "description": "A template", "mimeType": "application/json"}]),
    }
    return dict([kinds[request.method]])


def result(request):
    method, params = request.method, request.params
    if method == "tools/call":
        if params.get("name") not in TOOLS:
            raise Refused(-32602, f"Unknown tool: {params.get('name')}")
        function, _, _, task = TOOLS[params["name"]]
        if task == "required" and not request.takes_tasks():
            raise needs_tasks() if request.modern else Refused(-32601, "only as a task")
        if task == "forbidden" and not request.modern and request.takes_tasks():
            raise Refused(-32601, "never as a task")
        return function(request, params.get("arguments") or {})
    if method == "prompts/get":
        if params.get("name") not in PROMPTS:
            raise Refused(-32602, f"Unknown prompt: {params.get('name')}")
        function, description, wanted = PROMPTS[params["name"]]
        arguments = params.get("arguments") or {}
        if not all(name in arguments for name in wanted):
            raise Refused(-32602, "an argument is missing")
        return {"description": description, "messages": [{"role": "user", "content": content} for content in function(request, arguments)]}
    if method == "resources/read":
        return {"contents": [read(params.get("uri", ""))]}
    if method == "completion/complete":
        return {"completion": {"values": [], "total": 0, "hasMore": False}}
    if method.startswith("tasks/"):
        return about_task(request)
    if method.endswith("/list"):
        return listed(request)
    if request.modern:
        if method == "server/discover":
            return {"supportedVersions": [MODERN], "capabilities": capabilities(True), "instructions": "For tests."}
    elif method == "initialize":
        version = params.get("protocolVersion")
        return {"protocolVersion": version if version in LEGACY else LEGACY[0], "capabilities": capabilities(False), "serverInfo": INFO}
    elif method in ("ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"):
        return {}
    raise Refused(-32601, "Method not found")


CACHED = ("server/discover", "tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read")


def listen(request):
    wanted = request.params.get("notifications") or {}
    known = {name: wanted[name] for name in ("toolsListChanged", "promptsListChanged", "resourcesListChanged", "resourceSubscriptions")
             if wanted.get(name)}
    subscriptions[request.id] = (request.id, known)
    say({"method": "notifications/subscriptions/acknowledged",
         "params": {"_meta": {META + "subscriptionId": request.id}, "notifications": known}})


def work(request):
    try:
        if speaks_modern and request.modern:
            version = request.meta[META + "protocolVersion"]
            if version != MODERN:
                raise Refused(-32022, "unsupported protocol version", {"supported": [MODERN], "requested": version})
            if request.method == "subscriptions/listen":
                return listen(request)
        elif request.modern:
            raise Refused(-32601, "Method not found")
        elif not speaks_legacy:
            raise Refused(-32022, "unsupported protocol version", {"supported": [MODERN], "requested": "none"})
        found = result(request)
        if request.modern:
            found = {"resultType": "complete"} | found
            found["_meta"] = {META + "serverInfo": INFO}
            if request.method in CACHED:
                found |= {"ttlMs": 0, "cacheScope": "public"}
        reply = {"result": found}
    except NeedsInput as needs:
        reply = {"result": needs.result | {"_meta": {META + "serverInfo": INFO}}}
    except Refused as refused:
        reply = {"error": refused.error}
    if not request.cancelled.is_set():
        say({"id": request.id} | reply)
    # It asks nothing before its client knows of it.
    if request.begun:
        request.begun.run()


def main():
    running = {}
    for line in sys.stdin:
        message = json.loads(line)
        if "method" not in message:
            if message.get("id") in answers:
                answers[message["id"]][1] = message
                answers[message["id"]][0].set()
        elif "id" in message:
            request = Request(message)
            running[request.id] = request
            threading.Thread(target=work, args=(request,), daemon=True).start()
        elif message["method"] == "notifications/cancelled":
            identifier = message["params"].get("requestId")
            subscriptions.pop(identifier, None)
            if identifier in running:
                running[identifier].cancelled.set()


main()

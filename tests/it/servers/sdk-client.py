"""A client made of the Python SDK: `sdk-client.py URL TOKEN MODE`, where MODE is `legacy` or `auto`.

Does what a client does at the server of tests/conformance, whatever is spoken between, and prints one line of JSON:
what it has seen.
"""

import asyncio
import json
import sys

import anyio
import mcp_types as types
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client

url, token, mode = sys.argv[1:]
logged, changed = [], asyncio.Event()


async def elicit(context, params):
    (name, _), *_ = params.requested_schema["properties"].items()
    return types.ElicitResult(action="accept", content={name: "Ann"})


async def sample(context, params):
    return types.CreateMessageResult(role="assistant", model="m", content=types.TextContent(type="text", text="Paris"))


async def roots(context):
    return types.ListRootsResult(roots=[types.Root(uri="file:///a")])


async def log(params):
    logged.append(params.data)


async def hear(message):
    if isinstance(message, types.ToolListChangedNotification):
        changed.set()


async def main():
    seen, steps = {}, []

    async def step(done, total, message):
        steps.append(int(done))

    async def say(name, arguments=None, **more):
        result = await client.call_tool(name, arguments or {}, **more)
        return result.content[0].text

    transport = streamable_http_client(url, http_client=create_mcp_http_client(headers={"Authorization": f"Bearer {token}"}))
    async with Client(transport, mode=mode, log_level="info", elicitation_callback=elicit, sampling_callback=sample,
                      list_roots_callback=roots, logging_callback=log, message_handler=hear) as client:
        is_modern = client.protocol_version == "2026-07-28"
        seen["version"], seen["server"] = client.protocol_version, client.server_info.name
        seen["tools"] = "greet" in [tool.name for tool in (await client.list_tools()).tools]
        seen["text"] = await say("greet", {"name": "é"})
        seen["failed"] = (await client.call_tool("test_error_handling", {})).is_error
        try:
            await say("no-such-tool")
        except MCPError as error:
            seen["unknown"] = error.error.code
        await say("test_tool_with_progress", progress_callback=step)
        seen["progress"] = steps
        seen["form"] = await say("test_input_required_result_elicitation")
        seen["model"] = await say("test_input_required_result_sampling")
        seen["roots"] = json.loads(await say("test_input_required_result_list_roots"))
        seen["rounds"] = await say("test_input_required_result_multi_round")
        found = await client.read_resource("test://static-text")
        seen["resource"] = found.contents[0].text
        found = await client.get_prompt("test_prompt_with_arguments", {"arg1": "a", "arg2": "b"})
        seen["prompt"] = found.messages[0].content.text
        found = await client.get_prompt("test_input_required_result_prompt", {})
        seen["asking"] = found.messages[0].content.text
        if not is_modern:
            await client.set_logging_level("info")
        await say("test_tool_with_logging")
        seen["logged"] = logged
        # Its own way out of a call that takes too long, and the next one is served.
        with anyio.move_on_after(0.5):
            await say("slow_compute", {"seconds": 60})
        seen["after"] = await say("greet", {"name": "again"})
        if is_modern:
            async with client.listen(tools_list_changed=True) as events:
                await say("test_trigger_tool_change")
                async for _ in events:
                    changed.set()
                    break
        else:
            await say("test_trigger_tool_change")
        await asyncio.wait_for(changed.wait(), 20)
        seen["changed"] = changed.is_set()
    print(json.dumps(seen))


asyncio.run(main())

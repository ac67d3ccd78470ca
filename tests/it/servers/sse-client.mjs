// A client of the transport of 2024-11-05, made of the real SDK: `sse-client.mjs URL TOKEN`.
// Prints one line of JSON: what it has seen.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { SSEClientTransport } from "@modelcontextprotocol/sdk/client/sse.js";
import { ElicitRequestSchema } from "@modelcontextprotocol/sdk/types.js";

const [url, token] = process.argv.slice(2);
const headers = { authorization: `Bearer ${token}` };
const transport = new SSEClientTransport(new URL(url), {
  requestInit: { headers },
  eventSourceInit: { fetch: (input, init) => fetch(input, { ...init, headers: { ...init.headers, ...headers } }) },
});
const client = new Client({ name: "it", version: "1" }, { capabilities: { elicitation: {} } });
client.setRequestHandler(ElicitRequestSchema, async () => ({ action: "decline" }));
await client.connect(transport);
const list = await client.listTools();
const echo = await client.callTool({ name: "echo", arguments: { n: 1 } });
const asked = await client.callTool({ name: "ask", arguments: {} });
process.stdout.write(JSON.stringify({
  server: client.getServerVersion().name,
  tools: list.tools.length,
  echo: echo.content[0].text,
  asked: asked.content[0].text,
}) + "\n");
await client.close();

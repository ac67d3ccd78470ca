// A client made of the real SDK: `client.mjs URL TOKEN STEPS`, where STEPS is a JSON
// list such as [["tools/list"], ["tools/call", "echo", {"message": "hi"}]]. Prints one
// line of JSON a step: what came back, or the error as the SDK sees it.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [url, token, steps] = process.argv.slice(2);
const client = new Client({ name: "host-test", version: "1" });
const transport = new StreamableHTTPClientTransport(new URL(url), {
  requestInit: token ? { headers: { authorization: `Bearer ${token}` } } : {},
});

const say = (value) => process.stdout.write(JSON.stringify(value) + "\n");

async function attempt(work) {
  try {
    say({ result: (await work()) ?? null });
    return true;
  } catch (error) {
    say({ error: { name: error.name, code: error.code ?? null, message: error.message } });
    return false;
  }
}

const connected = await attempt(async () => {
  await client.connect(transport);
  return { server: client.getServerVersion(), session: transport.sessionId };
});
if (connected) {
  for (const [method, name, args] of JSON.parse(steps)) {
    await attempt(() => {
      if (method === "tools/list") return client.listTools();
      if (method === "tools/call") return client.callTool({ name, arguments: args });
      throw new Error(`client.mjs knows no step ${method}`);
    });
  }
  await attempt(() => transport.terminateSession());
}
await client.close();

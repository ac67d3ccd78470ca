// A client made of the TypeScript SDK: `sdk-client.mjs URL TOKEN MODE`, where MODE is `first` for the SDK that knows the
// older versions alone, or what its successor is to speak: `legacy` or `auto`.
// Does what a client does at the server of tests/conformance, whatever is spoken between, and prints one line of JSON:
// what it has seen.

const [url, token, mode] = process.argv.slice(2);
const isFirst = mode === "first";
const load = async () => {
  if (!isFirst) return import("@modelcontextprotocol/client");
  const parts = ["client/index.js", "client/streamableHttp.js", "types.js"];
  return Object.assign({}, ...(await Promise.all(parts.map((part) => import(`@modelcontextprotocol/sdk/${part}`)))));
};
const sdk = await load();
// The first SDK knows messages by their schema, its successor by their name.
const of = (method, schema) => (isFirst ? sdk[schema] : method);

const logged = [];
let change;
const changed = new Promise((resolve) => (change = () => resolve(true)));
const client = new sdk.Client(
  { name: "it", version: "1" },
  {
    capabilities: { elicitation: {}, sampling: {}, roots: {} },
    versionNegotiation: { mode },
    listChanged: { tools: { autoRefresh: false, debounceMs: 0, onChanged: change } },
  },
);
client.setRequestHandler(of("elicitation/create", "ElicitRequestSchema"), async ({ params }) => {
  const [name] = Object.keys(params.requestedSchema.properties);
  return { action: "accept", content: { [name]: "Ann" } };
});
client.setRequestHandler(of("sampling/createMessage", "CreateMessageRequestSchema"), async () => ({
  role: "assistant", model: "m", content: { type: "text", text: "Paris" },
}));
client.setRequestHandler(of("roots/list", "ListRootsRequestSchema"), async () => ({ roots: [{ uri: "file:///a" }] }));
client.setNotificationHandler(of("notifications/message", "LoggingMessageNotificationSchema"), ({ params }) => {
  logged.push(params.data);
});

const call = (params, options) => (isFirst ? client.callTool(params, undefined, options) : client.callTool(params, options));
const say = async (name, args = {}, more = {}, options = {}) =>
  (await call({ name, arguments: args, ...more }, options)).content[0].text;

const headers = { authorization: `Bearer ${token}` };
await client.connect(new sdk.StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } }));
const version = client.getNegotiatedProtocolVersion?.() ?? client.transport.protocolVersion;
const seen = { version, server: client.getServerVersion().name };
seen.tools = (await client.listTools()).tools.some((tool) => tool.name === "greet");
seen.text = await say("greet", { name: "é" });
seen.failed = (await call({ name: "test_error_handling", arguments: {} })).isError;
seen.unknown = await say("no-such-tool").catch((error) => error.code);
seen.progress = [];
await say("test_tool_with_progress", {}, {}, { onprogress: ({ progress }) => seen.progress.push(progress) });
seen.form = await say("test_input_required_result_elicitation");
seen.model = await say("test_input_required_result_sampling");
seen.roots = JSON.parse(await say("test_input_required_result_list_roots"));
seen.rounds = await say("test_input_required_result_multi_round");
seen.resource = (await client.readResource({ uri: "test://static-text" })).contents[0].text;
const prompt = await client.getPrompt({ name: "test_prompt_with_arguments", arguments: { arg1: "a", arg2: "b" } });
seen.prompt = prompt.messages[0].content.text;
seen.asking = (await client.getPrompt({ name: "test_input_required_result_prompt" })).messages[0].content.text;
const isModern = version === "2026-07-28";
if (!isModern) await client.setLoggingLevel("info");
const level = isModern ? { _meta: { "io.modelcontextprotocol/logLevel": "info" } } : {};
await say("test_tool_with_logging", {}, level);
seen.logged = logged;
// Its own way out of a call that takes too long, and the next one is served.
const aborted = new AbortController();
setTimeout(() => aborted.abort(), 500);
await say("slow_compute", { seconds: 60 }, {}, { signal: aborted.signal }).catch(() => {});
seen.after = await say("greet", { name: "again" });
await say("test_trigger_tool_change");
seen.changed = await changed;
process.stdout.write(JSON.stringify(seen) + "\n");
await client.transport.terminateSession?.();
await client.close();

// The identity provider of tests/it/provider.rs: oidc-provider, which is certified, in a
// process of its own, so that it can really be killed, halted and started again.
//
//     node provider.mjs PORT KEYS
//
// KEYS is a file of its private keys, made if it is not there. Lines on standard input
// tell it what to do; each is answered by one line of JSON:
//     counts    connections accepted, and requests by path
//     rotate    a new key signs from now on; those before stay published
//     retire    only the key that signs stays published

import { createHash, generateKeyPairSync, randomUUID } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { createInterface } from "node:readline";
import { exportJWK } from "jose";
import Provider from "oidc-provider";

const [port, file] = process.argv.slice(2);
const issuer = `http://127.0.0.1:${port}`;
if (!existsSync(file)) writeFileSync(file, JSON.stringify([await fresh()]));
let keys = JSON.parse(readFileSync(file));
let answer = serve();

const counts = { connections: 0, requests: {} };
const server = createServer((request, response) => {
  const path = request.url.split("?")[0];
  counts.requests[path] = (counts.requests[path] ?? 0) + 1;
  return answer(request, response);
});
server.on("connection", () => counts.connections++);
server.listen(Number(port), "127.0.0.1", () => say({ ready: true }));

for await (const line of createInterface({ input: process.stdin })) {
  if (line === "rotate") keys = [await fresh(), ...keys];
  if (line === "retire") keys = keys.slice(0, 1);
  if (line !== "counts") {
    writeFileSync(file, JSON.stringify(keys));
    answer = serve();
  }
  say({ ...counts, signs: keys[0].kid });
}

function serve() {
  const provider = new Provider(issuer, {
    jwks: { keys },
    cookies: { keys: [createHash("sha256").update(issuer).digest("hex")] },
    clientDefaults: { id_token_signed_response_alg: "ES256" },
    clients: [
      {
        client_id: "agent", client_secret: "secret-of-agent", grant_types: ["client_credentials"],
        redirect_uris: [], response_types: [],
      },
      {
        client_id: "desktop", application_type: "native", token_endpoint_auth_method: "none",
        grant_types: ["authorization_code"], response_types: ["code"], redirect_uris: ["http://127.0.0.1/callback"],
      },
    ],
    findAccount: (_context, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
    // Who comes is alice, and she agrees: the page for people is not what is tested.
    interactions: { url: (_context, interaction) => `/login/${interaction.uid}` },
    loadExistingGrant: async ({ oidc }) => {
      const grant = new oidc.provider.Grant({ clientId: oidc.client.clientId, accountId: oidc.session.accountId });
      grant.addOIDCScope("openid");
      for (const resource of [oidc.params.resource].flat()) grant.addResourceScope(resource, "mcp");
      await grant.save();
      return grant;
    },
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_context, resource) => ({
          scope: "mcp", audience: resource, accessTokenFormat: "jwt", accessTokenTTL: 3600, jwt: { sign: { alg: "ES256" } },
        }),
      },
    },
  });
  const callback = provider.callback();
  return (request, response) =>
    request.url.startsWith("/login/")
      ? provider.interactionFinished(request, response, { login: { accountId: "alice" }, consent: {} }, { mergeWithLastSubmission: false })
      : callback(request, response);
}

async function fresh() {
  const { privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  return { ...(await exportJWK(privateKey)), kid: randomUUID(), alg: "ES256", use: "sig" };
}

function say(value) {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}

// The identity provider of the host tests: oidc-provider, which is certified, on
// loopback. Programs get access tokens (RFC 9068) for themselves with client
// credentials, for the resource that they name (RFC 8707).
//
// POST /mint, which no provider has, makes the tokens that a provider would not:
// expired, unsigned, or signed by a key that is not the provider's.

import { createServer } from "node:http";
import { generateKeyPairSync, randomUUID } from "node:crypto";
import { exportJWK, importJWK, SignJWT } from "jose";
import Provider from "oidc-provider";

const PORT = 9000;
const ISSUER = `http://127.0.0.1:${PORT}`;
// The last one is thv itself, which asks about opaque tokens.
const CLIENTS = ["alice", "bob", "thv"];
// The server at this port gets opaque tokens.
const OPAQUE = ":8085/";

const key = await rsa("provider-1");
const stranger = await rsa("provider-1");

const provider = new Provider(ISSUER, {
  clients: CLIENTS.map((client_id) => ({
    client_id,
    client_secret: `secret-of-${client_id}`,
    grant_types: ["client_credentials"],
    redirect_uris: [],
    response_types: [],
  })),
  jwks: { keys: [key] },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    dPoP: { enabled: true },
    introspection: { enabled: true, allowedPolicy: (_context, client) => client.clientId === "thv" },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (_context, resource) => ({
        scope: "mcp",
        audience: resource,
        accessTokenFormat: resource.includes(OPAQUE) ? "opaque" : "jwt",
        accessTokenTTL: 3600,
        jwt: { sign: { alg: "RS256" } },
      }),
    },
  },
});

const answer = provider.callback();
createServer(async (request, response) => {
  if (request.url !== "/mint") return answer(request, response);
  const chunks = await request.toArray();
  const { kind, client, resource } = JSON.parse(Buffer.concat(chunks));
  response.end(await mint(kind, client, resource));
}).listen(PORT, "127.0.0.1");

async function mint(kind, client, resource) {
  const now = Math.floor(Date.now() / 1000);
  const lifetime = kind === "expired" ? -600 : 3600;
  const claims = {
    iss: ISSUER, sub: client, client_id: client, aud: resource, scope: "mcp", jti: randomUUID(),
    iat: now + Math.min(lifetime, 0) - 60, exp: now + lifetime,
  };
  if (kind === "none") {
    const part = (value) => Buffer.from(JSON.stringify(value)).toString("base64url");
    return `${part({ alg: "none", typ: "at+jwt", kid: key.kid })}.${part(claims)}.`;
  }
  // `good` is the control of the others: made in the same way, and accepted.
  const signer = { good: key, expired: key, "other-key": stranger }[kind];
  return new SignJWT(claims)
    .setProtectedHeader({ alg: "RS256", typ: "at+jwt", kid: key.kid })
    .sign(await importJWK(signer, "RS256"));
}

async function rsa(kid) {
  const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
  return { ...(await exportJWK(privateKey)), kid, alg: "RS256", use: "sig" };
}

// A client whose tokens are bound to its key (RFC 9449): gets one from the provider,
// shows it to a server, with and without proofs. Prints a JSON value for each step.
//
//     node dpop.mjs RESOURCE

import { createHash, randomUUID } from "node:crypto";
import { calculateJwkThumbprint, exportJWK, generateKeyPair, SignJWT } from "jose";

const [resource] = process.argv.slice(2);
const IDP = "http://127.0.0.1:9000";
const { publicKey, privateKey } = await generateKeyPair("ES256");
const jwk = await exportJWK(publicKey);

function proof(method, target, extra) {
  return new SignJWT({ htm: method, htu: target, jti: randomUUID(), ...extra })
    .setProtectedHeader({ typ: "dpop+jwt", alg: "ES256", jwk })
    .setIssuedAt()
    .sign(privateKey);
}

const granted = await fetch(`${IDP}/token`, {
  method: "POST",
  headers: {
    Authorization: `Basic ${Buffer.from("alice:secret-of-alice").toString("base64")}`,
    DPoP: await proof("POST", `${IDP}/token`),
  },
  body: new URLSearchParams({ grant_type: "client_credentials", scope: "mcp", resource }),
});
const { access_token: token, token_type: type } = await granted.json();
const ath = createHash("sha256").update(token).digest("base64url");

async function initialize(headers) {
  const answer = await fetch(resource, {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "application/json, text/event-stream", ...headers },
    body: JSON.stringify({
      jsonrpc: "2.0", id: 1, method: "initialize",
      params: { protocolVersion: "2025-11-25", capabilities: {}, clientInfo: { name: "dpop", version: "1" } },
    }),
  });
  await answer.arrayBuffer();
  return {
    status: answer.status,
    challenge: answer.headers.get("www-authenticate"),
    nonce: answer.headers.get("dpop-nonce"),
  };
}

const say = (value) => console.log(JSON.stringify(value));
say({ type, jkt: await calculateJwkThumbprint(jwk) });
say(await initialize({ Authorization: `Bearer ${token}` }));
const told = await initialize({ Authorization: `DPoP ${token}`, DPoP: await proof("POST", resource, { ath }) });
say(told);
const good = await proof("POST", resource, { ath, nonce: told.nonce });
say(await initialize({ Authorization: `DPoP ${token}`, DPoP: good }));
say(await initialize({ Authorization: `DPoP ${token}`, DPoP: good }));

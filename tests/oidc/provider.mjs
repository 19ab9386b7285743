// A certified OpenID Connect provider on a free port of this machine. It prints its issuer.
//
// Beside the protocol, for a test that has to be on both sides: GET /test/token signs an ID token as
// the query says, GET /test/rotate exchanges the signing key.

import http from 'node:http';
import { SignJWT, UnsecuredJWT, exportJWK, exportSPKI, generateKeyPair } from 'jose';
import Provider from 'oidc-provider';

const keys = new Map();

async function generate(kid) {
  const pair = await generateKeyPair('RS256', { extractable: true });
  keys.set(kid, pair);
  const jwk = await exportJWK(pair.privateKey);
  return { ...jwk, kid, alg: 'RS256', use: 'sig' };
}

function provider(issuer, jwk) {
  return new Provider(issuer, {
    clients: [{
      client_id: 'claviger',
      application_type: 'native',
      token_endpoint_auth_method: 'none',
      grant_types: ['authorization_code'],
      response_types: ['code'],
      redirect_uris: ['http://127.0.0.1/callback'],
    }],
    jwks: { keys: [jwk] },
    cookies: { keys: ['of a test'] },
    findAccount: (_, id) => ({ accountId: id, claims: async () => ({ sub: id, name: id }) }),
  });
}

async function token(issuer, query) {
  const said = (name, otherwise) => query.get(name) ?? otherwise;
  const now = Math.floor(Date.now() / 1000);
  const claims = {
    iss: said('iss', issuer),
    aud: said('aud', 'claviger'),
    sub: said('sub', 'alice'),
    iat: now + Number(said('iat', 0)),
    exp: now + Number(said('exp', 300)),
  };
  const [alg, kid] = [said('alg', 'RS256'), said('kid', 'one')];
  if (alg === 'none') return new UnsecuredJWT(claims).encode();
  const signed = new SignJWT(claims).setProtectedHeader({ alg, kid });
  if (alg === 'HS256') {
    // Under what everybody knows: the public key.
    const known = await exportSPKI(keys.get(kid).publicKey);
    return signed.sign(new TextEncoder().encode(known));
  }
  return signed.sign(keys.get(said('by', kid)).privateKey);
}

let current;
const server = http.createServer(async (request, response) => {
  const url = new URL(request.url, issuer);
  if (url.pathname === '/test/token') {
    response.end(await token(issuer, url.searchParams));
  } else if (url.pathname === '/test/rotate') {
    current = provider(issuer, await generate('two')).callback();
    response.end('rotated');
  } else {
    current(request, response);
  }
});
await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
const issuer = `http://127.0.0.1:${server.address().port}`;
await generate('stranger');
current = provider(issuer, await generate('one')).callback();
console.log(`issuer: ${issuer}`);
// Whoever started it has gone.
process.stdin.on('end', () => process.exit()).resume();

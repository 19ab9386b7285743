// Makes every public call of npm `@ibm-cloud/ibm-key-protect` once against a key service.
'use strict';

const crypto = require('crypto');
const fs = require('fs');
const KeyProtect = require('@ibm-cloud/ibm-key-protect/ibm-key-protect-api/v2');
const { IamAuthenticator } = require('@ibm-cloud/ibm-key-protect/auth');

const URL = process.env.CLAVIGER_URL;
const bluemixInstance = process.env.CONFORMANCE_INSTANCE_ID;
// The longest wait of Key Protect that a test can sit out: enable and restore come 30 s after the
// action before.
const WAIT_MS = 31000;
const KEY = 'application/vnd.ibm.kms.key+json';
const POLICY = 'application/vnd.ibm.kms.policy+json';

function client(apikey) {
  const authenticator = new IamAuthenticator({ apikey, url: URL });
  return new KeyProtect({ authenticator, serviceUrl: URL });
}
const kp = client(process.env.CONFORMANCE_API_KEY);
// The last of dual authorization's two people.
const second = client(process.env.CLAVIGER_API_KEY_2 || process.env.CONFORMANCE_API_KEY);

const made = new Set();
function write(name, outcome, note) {
  fs.appendFileSync(process.env.CONFORMANCE_REPORT, JSON.stringify({ name, outcome, note }) + '\n');
}

// `refused` is [status, words, why] where the right answer is a refusal.
async function call(name, work, refused) {
  made.add(name.split(' ')[0]);
  let answer;
  try {
    answer = await work();
  } catch (error) {
    const said = typeof error.body === 'string' ? error.body : JSON.stringify(error.body || error.message);
    if (refused && error.status === refused[0] && said.includes(refused[1])) {
      write(name, 'works', `refused, as it should be: ${refused[2]}`);
    } else {
      write(name, 'fails', `${error.status || ''} ${gist(said)}`.trim().slice(0, 300));
    }
    return undefined;
  }
  if (refused) {
    write(name, 'fails', `answered; a refusal was right: ${refused[2]}`);
  } else {
    write(name, 'works', '');
  }
  return answer;
}

// The reason's code and message in an error of the key service; else the text itself.
function gist(said) {
  try {
    const error = JSON.parse(said).resources[0];
    return (error.reasons || []).map((r) => `${r.code}: ${r.message}`).join('; ') || error.errorMsg;
  } catch (_) {
    return said.replace(/\s+/g, ' ');
  }
}

function equal(is, should) {
  const [a, b] = [is, should].map((x) => JSON.stringify(x));
  if (a !== b) throw new Error(`${a} instead of ${b}`);
}

const buffer = (body) => Buffer.from(JSON.stringify(body));
const envelope = (kind, ...resources) => ({
  metadata: { collectionType: kind, collectionTotal: resources.length },
  resources,
});
const b64 = (data) => Buffer.from(data).toString('base64');

async function create(name, more) {
  const resource = { type: KEY, name, extractable: false, ...more };
  const body = buffer(envelope(KEY, resource));
  const answer = await kp.createKey({ bluemixInstance, body, prefer: 'return=representation' });
  equal(answer.status, 201);
  return answer.result.resources[0];
}

async function text(stream) {
  const parts = [];
  for await (const part of stream) parts.push(Buffer.from(part));
  return Buffer.concat(parts).toString();
}

async function main() {
  const root = await call('createKey', () => create('conformance-root'));
  const secret = b64('any length, so also forty-odd bytes of text');
  const standard = await call('createKey (standard, with payload)', () =>
    create('conformance-standard', { extractable: true, payload: secret }));
  const imported = await call('createKey (import)', () =>
    create('conformance-imported', { payload: b64(crypto.randomBytes(32)) }));
  const paused = await call('createKey (to be disabled)', () => create('conformance-paused'));
  const spare = await call('createKey (to be deleted)', () => create('conformance-spare'));
  const doomed = await call('createKey (to be deleted by two)', () => create('conformance-doomed'));
  const id = (root || {}).id || crypto.randomUUID();
  const on = (key) => ({ id: (key || {}).id || crypto.randomUUID(), bluemixInstance });

  // What has to be waited for begins first.
  await call('disableKey', () => kp.disableKey(on(paused)));
  await call('deleteKey', async () => {
    const answer = await kp.deleteKey({ ...on(spare), prefer: 'return=representation', force: false });
    equal(answer.result.resources[0].state, 5);
  });
  const later = Date.now() + WAIT_MS;

  await call('getKey', async () => {
    equal((await kp.getKey({ id, bluemixInstance })).result.resources[0].id, id);
  });
  await call('getKey (standard)', async () => {
    equal((await kp.getKey(on(standard))).result.resources[0].payload, secret);
  });
  await call('getKeyMetadata', () => kp.getKeyMetadata({ id, bluemixInstance }));
  await call('getKeys', async () => {
    const answer = await kp.getKeys({ bluemixInstance, limit: 10, state: [1, 2], extractable: false });
    equal(answer.result.metadata.collectionTotal, 4);
  });
  await call('getKeyCollectionMetadata', async () => {
    const answer = await kp.getKeyCollectionMetadata({ bluemixInstance, state: [1] });
    equal(answer.headers['key-total'], '4');
  });

  const aad = ['volume-1', 'namespace'];
  const wrapped = await call('wrapKey', async () => {
    const keyActionWrapBody = buffer({ plaintext: b64('twenty bytes of text'), aad });
    return (await kp.wrapKey({ id, bluemixInstance, keyActionWrapBody })).result;
  });
  await call('wrapKey (new data key)', async () => {
    const answer = await kp.wrapKey({ id, bluemixInstance, keyActionWrapBody: buffer({}) });
    equal(Buffer.from(answer.result.plaintext, 'base64').length, 32);
  });
  const { ciphertext } = wrapped || { ciphertext: '' };
  await call('rotateKey', () => kp.rotateKey({ id, bluemixInstance, keyActionRotateBody: buffer({}) }));
  await call('rotateKey (import)', () => {
    const keyActionRotateBody = buffer({ payload: b64(crypto.randomBytes(32)) });
    return kp.rotateKey({ ...on(imported), keyActionRotateBody });
  });
  const unwrap = async (body, old) => {
    const { result } = await kp.unwrapKey({ id, bluemixInstance, keyActionUnwrapBody: buffer(body) });
    equal(result.plaintext, b64('twenty bytes of text'));
    equal('rewrappedKeyVersion' in result, old);
  };
  await call('unwrapKey', () => unwrap({ ciphertext, aad }, true));
  await call('unwrapKey (wrong aad)', () => unwrap({ ciphertext, aad: ['volume-2'] }, true),
    [422, 'UNPROCESSABLE_CIPHERTEXT_ERR', 'other authenticated data']);
  await call('rewrapKey', async () => {
    const keyActionRewrapBody = buffer({ ciphertext, aad });
    const { result } = await kp.rewrapKey({ id, bluemixInstance, keyActionRewrapBody });
    await unwrap({ ciphertext: result.ciphertext, aad }, false);
  });
  await call('getKeyVersions', async () => {
    const answer = await kp.getKeyVersions({ id, bluemixInstance, limit: 5 });
    equal(answer.result.resources.length, 2);
  });

  await call('createKeyAlias', () => kp.createKeyAlias({ id, alias: 'conformance', bluemixInstance }));
  await call('getKey (alias)', async () => {
    equal((await kp.getKey({ id: 'conformance', bluemixInstance })).result.resources[0].id, id);
  });
  await call('deleteKeyAlias', () => kp.deleteKeyAlias({ id, alias: 'conformance', bluemixInstance }));
  await call('createKeyRing', () => kp.createKeyRing({ keyRingId: 'conformance', bluemixInstance }));
  await call('listKeyRings', async () => {
    const { result } = await kp.listKeyRings({ bluemixInstance });
    equal(result.resources.map((ring) => ring.id).sort(), ['conformance', 'default']);
  });
  await call('deleteKeyRing', () => kp.deleteKeyRing({ keyRingId: 'conformance', bluemixInstance }));

  await call('putPolicy', async () => {
    const resource = { type: POLICY, rotation: { interval_month: 3 } };
    const setKeyPoliciesOneOf = envelope(POLICY, resource);
    const { result } = await kp.putPolicy({ id, bluemixInstance, setKeyPoliciesOneOf, policy: 'rotation' });
    equal(result.resources[0].rotation.interval_month, 3);
  });
  await call('putPolicy (dual authorization)', () => {
    const setKeyPoliciesOneOf = envelope(POLICY, { type: POLICY, dualAuthDelete: { enabled: true } });
    return kp.putPolicy({ ...on(doomed), setKeyPoliciesOneOf, policy: 'dualAuthDelete' });
  });
  await call('getPolicy', async () => {
    equal((await kp.getPolicy(on(doomed))).result.resources[0].dualAuthDelete.enabled, true);
  });
  await call('putInstancePolicy', () => {
    const resource = { policy_type: 'metrics', policy_data: { enabled: true } };
    return kp.putInstancePolicy({ bluemixInstance, setInstancePoliciesOneOf: envelope(POLICY, resource) });
  });
  await call('getInstancePolicy', async () => {
    const { result } = await kp.getInstancePolicy({ bluemixInstance, policy: 'metrics' });
    equal(result.resources[0].policy_data.enabled, true);
  });
  await call('getAllowedIpPort', async () => {
    equal((await kp.getAllowedIpPort({ bluemixInstance })).result.resources, []);
  });

  await call('postImportToken', () =>
    kp.postImportToken({ bluemixInstance, expiration: 600, maxAllowedRetrievals: 2 }));
  const token = await call('getImportToken', async () => (await kp.getImportToken({ bluemixInstance })).result);
  await call('createKey (secure import)', async () => {
    const material = crypto.randomBytes(32);
    const iv = crypto.randomBytes(12);
    const cipher = crypto.createCipheriv('aes-256-gcm', material, iv);
    const nonce = [cipher.update(Buffer.from(token.nonce, 'base64')), cipher.final(), cipher.getAuthTag()];
    const key = Buffer.from(token.payload, 'base64').toString();
    const padding = crypto.constants.RSA_PKCS1_OAEP_PADDING;
    const payload = crypto.publicEncrypt({ key, padding, oaepHash: 'sha256' }, material);
    const answer = await create('conformance-secure-import', {
      payload: b64(payload),
      encryptedNonce: b64(Buffer.concat(nonce)),
      iv: b64(iv),
      encryptionAlgorithm: 'RSAES_OAEP_SHA_256',
    });
    equal(answer.imported, true);
  });

  await call('getRegistrations', async () => {
    equal((await kp.getRegistrations({ id, bluemixInstance })).result.resources, []);
  });
  await call('getRegistrationsAllKeys', async () => {
    const { result } = await kp.getRegistrationsAllKeys({ bluemixInstance, totalCount: true });
    equal(result.metadata.totalCount, 0);
  });
  await call('syncAssociatedResources', () => kp.syncAssociatedResources(on(doomed)));
  await call('deleteKey (not authorized)', () => kp.deleteKey(on(doomed)),
    [409, 'AUTHORIZATIONS_NOT_MET', 'nobody else has agreed']);
  await call('setKeyForDeletion', () => kp.setKeyForDeletion(on(doomed)));
  await call('unsetKeyForDeletion', () => kp.unsetKeyForDeletion(on(doomed)));
  await call('setKeyForDeletion (again)', () => kp.setKeyForDeletion(on(doomed)));
  await call('deleteKey (by another person)', () => second.deleteKey(on(doomed)));

  await new Promise((done) => setTimeout(done, Math.max(0, later - Date.now())));
  await call('enableKey', () => kp.enableKey(on(paused)));
  await call('restoreKey', async () => {
    const answer = await kp.restoreKey({ ...on(spare), keyRestoreBody: buffer({}), prefer: 'return=representation' });
    equal(answer.status, 201);
    equal(JSON.parse(await text(answer.result)).resources[0].state, 1);
  });

  for (const name of Object.getOwnPropertyNames(KeyProtect.prototype)) {
    if (name !== 'constructor' && !made.has(name)) {
      write(name, 'fails', 'not called: what it needs did not work');
    }
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});

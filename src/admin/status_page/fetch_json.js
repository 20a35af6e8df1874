
// Requests to the listener. The secret is sent as a bearer token. Pages of other sites cannot send it,
// because a browser does not add it by itself.

const SECRET_KEY = 'jobcache-secret';
const TIMEOUT_MS = 6000;
let secret = '';
try { secret = sessionStorage.getItem(SECRET_KEY) ?? ''; } catch { /* storage is disabled: the variable is enough */ }

class Unauthorized extends Error {}

function storeSecret(value) {
  secret = value;
  try {
    if (value) sessionStorage.setItem(SECRET_KEY, value); else sessionStorage.removeItem(SECRET_KEY);
  } catch { /* as above */ }
  byId('forget').hidden = !value;
}

function send(path, { headers = {}, ...options } = {}) {
  if (secret) headers.Authorization = `Bearer ${secret}`;
  // Relative, so that the page also works below the path of a gateway.
  return fetch(path, { cache: 'no-store', redirect: 'error', headers, ...options });
}

// All responses are JSON, errors too.
async function fetchJson(path, options) {
  const response = await send(path, { signal: AbortSignal.timeout(TIMEOUT_MS), ...options });
  const data = await response.json();
  if (response.headers.has('WWW-Authenticate')) { lock(data.error); throw new Unauthorized(data.error); }
  return { ok: response.ok, status: response.status, data };
}

function lock(error) {
  const tried = secret !== '';
  storeSecret('');
  const wasOpen = byId('unlock').hidden;
  byId('unlock').hidden = false;
  byId('page').classList.add('locked');
  if (tried) setText(byId('refused'), String(error));
  if (wasOpen) byId('secret').focus();
}

byId('unlock').addEventListener('submit', (event) => {
  event.preventDefault();
  const input = byId('secret').value.trim();
  if (!/^[\x21-\x7e]+$/.test(input)) {
    setText(byId('refused'), 'A secret consists of visible ASCII characters without spaces.');
    return;
  }
  byId('secret').value = '';
  setText(byId('refused'), '');
  storeSecret(input);
  restart();
});
byId('forget').addEventListener('click', () => { storeSecret(''); location.reload(); });
byId('forget').hidden = !secret;

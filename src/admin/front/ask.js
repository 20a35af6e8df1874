
// Asking the listener. The secret goes as a bearer token, which no page of another site can send; a
// browser adds nothing of it by itself.

const KEPT = 'jobcache-secret';
const PATIENCE_MS = 6000;
let secret = '';
try { secret = sessionStorage.getItem(KEPT) ?? ''; } catch { /* kept in this variable only */ }

class Refused extends Error {}

function keep(value) {
  secret = value;
  try {
    if (value) sessionStorage.setItem(KEPT, value); else sessionStorage.removeItem(KEPT);
  } catch { /* as above */ }
  at('forget').hidden = !value;
}

function send(path, { headers = {}, ...options } = {}) {
  if (secret) headers.Authorization = `Bearer ${secret}`;
  // Relative, so that the page also works below a path of a gateway.
  return fetch(path, { cache: 'no-store', redirect: 'error', headers, ...options });
}

// Answers are JSON, also those that refuse.
async function ask(path, options) {
  const response = await send(path, { signal: AbortSignal.timeout(PATIENCE_MS), ...options });
  const told = await response.json();
  if (response.headers.has('WWW-Authenticate')) { lock(told.error); throw new Refused(told.error); }
  return { ok: response.ok, status: response.status, told };
}

function lock(error) {
  const tried = secret !== '';
  keep('');
  const wasOpen = at('unlock').hidden;
  at('unlock').hidden = false;
  at('page').classList.add('locked');
  if (tried) say(at('refused'), String(error));
  if (wasOpen) at('secret').focus();
}

at('unlock').addEventListener('submit', (event) => {
  event.preventDefault();
  const given = at('secret').value.trim();
  if (!/^[\x21-\x7e]+$/.test(given)) {
    say(at('refused'), 'A secret is of visible ASCII characters, without spaces.');
    return;
  }
  at('secret').value = '';
  say(at('refused'), '');
  keep(given);
  again();
});
at('forget').addEventListener('click', () => { keep(''); location.reload(); });
at('forget').hidden = !secret;

'use strict';
// Data becomes text nodes only, never markup, because clients choose the ids.

const byId = (id) => document.getElementById(id);

function make(tag, kind, ...inside) {
  const node = document.createElement(tag);
  if (kind) node.className = kind;
  node.append(...inside.filter((part) => part !== null && part !== undefined && part !== ''));
  return node;
}

const dot = (kind) => {
  const node = make('i', `dot ${kind}`);
  node.setAttribute('aria-hidden', 'true');
  return node;
};

// Sets a text only if it differs, so that screen readers do not repeat it.
function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });
const count = (n) => (n >= 1e6 ? short.format(n) : whole.format(n));
const brief = (n) => (n >= 1e4 ? short.format(n) : whole.format(n));
const rate = (n) => (n > 0 && n < 10 ? n.toFixed(1) : count(n));
const plural = (n, one, more = `${one}s`) => `${count(n)} ${n === 1 ? one : more}`;

// Rounds down, so that 100 % means all.
const percent = (part) => `${(Math.floor(part * 1000) / 10).toFixed(1)}\u00a0%`;

function ms(n) {
  if (n === null || n === undefined) return '–';
  if (n >= 1000) return `${(n / 1000).toFixed(1)}\u00a0s`;
  return `${n >= 100 ? n.toFixed(0) : n >= 1 ? n.toFixed(1) : n.toFixed(2)}\u00a0ms`;
}

function bytes(n) {
  if (n < 1024) return `${n} B`;
  const units = ['KiB', 'MiB', 'GiB', 'TiB'];
  let unit = -1;
  do { n /= 1024; unit += 1; } while (n >= 1024 && unit < 3);
  return `${n >= 100 ? n.toFixed(0) : n.toFixed(1)}\u00a0${units[unit]}`;
}

function span(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor(s / 3600) % 24} h`;
}

const clock = (at_ms) => new Date(at_ms).toLocaleTimeString('en-GB');

// Each detail of Cache-Status: its meaning and the remedy.
const REASONS = {
  path: ['not the path of a job', 'check routes'],
  method: ['a method that does not fill an entry, such as HEAD', ''],
  query: ['the URL has a query string', 'drop cache busters, or name the parameters in query.ignore or query.allow'],
  spelling: ['not the canonical spelling of a job’s path or id', 'poll the canonical one, or set ids = "opaque" if the API compares ids as text'],
  word: ['an id without a digit, such as stats or latest: taken for no job', 'set ids = "opaque" if it is one'],
  except: ['a path that is never cached (except)', ''],
  'request-body': ['a GET with a body', ''],
  upgrade: ['asks for a protocol upgrade', ''],
  range: ['asks for a range', ''],
  precondition: ['only the API can evaluate its If-Match or If-Unmodified-Since', ''],
  'method-override': ['a header names another method', ''],
  'url-override': ['a header names another URL', ''],
  credentials: ['carries a credential, and credentials.mode is bypass', 'use partition'],
  'bound-connection': ['its connection carries a login over NTLM, Negotiate or Kerberos', 'use logins that every request carries, such as bearer tokens'],
  'no-store': ['the client or the API says no-store', 'drop that from the frontend or the API'],
  'no-cache': ['the client or the API says no-cache', 'drop it from the frontend (or set ignore_client_cache_control) or from the API'],
  'only-if-cached': ['the client accepts only a cached answer', ''],
  uncacheable: ['the last answer could not be stored; bypassed for 10 s', 'see why the fill was refused'],
  fenced: ['a write is in flight, its outcome is unknown, or it ended within settle', 'wait; if it lasts, look at the writes of this job'],
  leased: ['another caller or sidecar was reading it at that moment', 'nothing if rare; if common, see the other reasons for reads of this job'],
  pending: ['Redis has not confirmed an invalidation', 'look at Redis'],
  'store-down': ['Redis is down', 'look at Redis and the log'],
  'store-slow': ['Redis is too far away for store.budget', 'set store.budget to the value in the log'],
  'store-timeout': ['Redis did not answer in time, or the value of the job took too long a moment ago', 'look at Redis and the log'],
  'store-error': ['Redis answered with an error', 'look at Redis and the log'],
  grace: ['Redis has just restarted or failed over, and other sidecars may still owe it invalidations', 'wait (store.reconnect_grace)'],
  foreign: ['the application itself writes this key', 'switch its own cache off, and keep its DELs'],
  audience: ['the API answers each client differently, or too many clients poll this job', 'ask /explain which header differs, and name it in responses.volatile; name the cookies that count in credentials.cookies; or raise credentials.audience'],
  flights: ['the limit of shared reads of the API was reached', 'find out why so many are in flight, or raise max_flights'],
  alone: ['the answer that it waited for could not be shared', ''],
  'shadow-hit': ['shadow mode: this would have been a hit', 'see “Shadow mode” above'],
  shadow: ['shadow mode: this would have shared a read', ''],
  off: ['the cache is switched off', 'set mode to on'],
  status: ['the API did not answer 200', 'look at the API'],
  private: ['the API’s answer is marked private', 'change its Cache-Control'],
  'set-cookie': ['the API’s answer sets a cookie', 'drop the cookie there, or see credentials.cookies'],
  vary: ['the API’s answer varies by a header that jobcache does not distinguish', 'change its Vary'],
  'event-stream': ['the API’s answer is an event stream', ''],
  trailers: ['the API’s answer has trailers', ''],
  unframed: ['the API’s answer has neither a length nor chunks, so a truncated body looks complete', 'let the API send a Content-Length'],
  encoding: ['the API’s answer is compressed although jobcache did not ask for it', 'switch that off for this path'],
  'too-large': ['the API’s answer is larger than max_body', 'raise max_body'],
  stale: ['the API’s answer was already too old, or its lifetime cannot be read', 'look at its Age and max-age'],
  unstated: ['the API’s answer states no lifetime, and ttl.stated_only is set', 'state one'],
  empty: ['the API’s answer has no body', ''],
  malformed: ['the API’s Cache-Control cannot be read', 'look at the API'],
  revoked: ['a write, a purge or a newer read came first', 'nothing if rare'],
  memory: ['no memory left for the answer (max_captured)', 'raise max_captured'],
};
const meaning = (why) => (Object.hasOwn(REASONS, why) ? REASONS[why][0] : '');
const remedy = (why) => (Object.hasOwn(REASONS, why) ? REASONS[why][1] : '');

// The colour of each event.
const TONES = {
  hit: 'hit', fill: 'hit', admitted: 'hit', confirmed: 'hit',
  'store-up': 'hit', 'tracking-up': 'hit', 'upstream-up': 'hit',
  miss: 'miss', 'fill-refused': 'miss', replaced: 'miss', lost: 'miss', drain: 'miss',
  pass: 'pass', write: 'pass', 'write-ended': 'pass', changed: 'pass', purge: 'pass', 'purge-all': 'pass',
  error: 'bad', flushed: 'bad', 'store-down': 'bad', 'tracking-down': 'bad', 'upstream-down': 'bad',
};
const EVENT_TEXT = {
  hit: 'answered from the cache', miss: 'read from the API', pass: 'bypassed the cache', error: 'jobcache answered with an error',
  fill: 'the answer was stored', 'fill-refused': 'the answer was not stored', admitted: 'a client was added to the audience',
  replaced: 'the entry was replaced', write: 'a write began', 'write-ended': 'a write ended', purge: 'a purge',
  'purge-all': 'a purge of every job', changed: 'changed in Redis by another sidecar or a third party',
  flushed: 'all keys left Redis at once', evicted: 'evicted from the memory of this process', confirmed: 'a pending invalidation is confirmed',
  'store-up': 'Redis is up: the breaker closed', 'store-down': 'Redis is down: the breaker opened',
  'tracking-up': 'changes in Redis are tracked', 'tracking-down': 'changes in Redis are not tracked: each hit asks Redis',
  'upstream-up': 'the API answers', 'upstream-down': 'the API does not answer',
  drain: 'a shutdown has begun', lost: 'this page read too slowly and missed events',
};
const chip = (what) => make('span', `chip ${Object.hasOwn(TONES, what) ? TONES[what] : ''}`, what);
const eventText = (what) => (Object.hasOwn(EVENT_TEXT, what) ? EVENT_TEXT[what] : '');

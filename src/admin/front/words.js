'use strict';
// What comes from the network becomes text nodes and nothing else: ids are whatever clients send.

const at = (id) => document.getElementById(id);

function make(tag, kind, ...inside) {
  const it = document.createElement(tag);
  if (kind) it.className = kind;
  it.append(...inside.filter((part) => part !== null && part !== undefined && part !== ''));
  return it;
}

const dot = (kind) => {
  const it = make('i', `dot ${kind}`);
  it.setAttribute('aria-hidden', 'true');
  return it;
};

// Sets a text only if it is another one: what did not change is not read out again.
function say(it, text) {
  if (it.textContent !== text) it.textContent = text;
}

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });
const count = (n) => (n >= 1e6 ? short.format(n) : whole.format(n));
const brief = (n) => (n >= 1e4 ? short.format(n) : whole.format(n));
const rate = (n) => (n > 0 && n < 10 ? n.toFixed(1) : count(n));
const many = (n, one, more = `${one}s`) => `${count(n)} ${n === 1 ? one : more}`;

// Never rounded up to all of them.
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

// The words of Cache-Status: what each means, and what to do.
const REASONS = {
  path: ['not the path of a job', 'check routes'],
  method: ['a method that fills nothing, such as HEAD', ''],
  query: ['the URL has a query string', 'drop cache busters, or name the parameters in query.ignore or query.allow'],
  spelling: ['not the canonical spelling of a job’s path or id', 'poll the canonical one'],
  'request-body': ['a GET with a body', ''],
  upgrade: ['asks for another protocol', ''],
  range: ['asks for a part', ''],
  precondition: ['only the API can judge its If-Match or If-Unmodified-Since', ''],
  'method-override': ['a header names another method', ''],
  'url-override': ['a header names another URL', ''],
  credentials: ['carries a credential, and credentials.mode is bypass', 'use partition'],
  'no-store': ['the client or the API says no-store', 'drop that from the frontend or the API'],
  'no-cache': ['the client or the API says no-cache', 'drop it from the frontend (or set ignore_client_cache_control) or from the API'],
  'only-if-cached': ['the client takes nothing but a cached answer', ''],
  uncacheable: ['the last answer could not be stored; bypassed for 10 s', 'see why the fill was refused'],
  fenced: ['a write is in flight, its outcome is unknown, or it ended within settle', 'wait; if it lasts, look at the writes of this job'],
  leased: ['somebody else (another caller here, or another sidecar) was reading it at that moment', 'nothing if rare; if common, see the other reasons for which it is read'],
  pending: ['Redis has not confirmed an invalidation', 'look at Redis'],
  'store-down': ['Redis is down', 'look at Redis and the log'],
  'store-timeout': ['Redis did not answer in time', 'look at Redis and the log'],
  'store-error': ['Redis answered with an error', 'look at Redis and the log'],
  foreign: ['the application itself writes this key', 'switch its own cache off, and keep its DELs'],
  audience: ['the API answers each client differently, or too many clients poll this job', 'name the cookies that count in credentials.cookies, or raise credentials.audience'],
  flights: ['as many reads of the API were shared as may be', 'see why so many are under way, or raise max_flights'],
  alone: ['what it waited for could not be shared', ''],
  'shadow-hit': ['shadow mode: this would have been a hit', 'see “Shadow mode” above'],
  shadow: ['shadow mode: another’s read would have been shared', ''],
  off: ['the cache is switched off', 'set mode to on'],
  status: ['the API did not answer 200', 'look at the API'],
  private: ['the API’s answer is marked private', 'change its Cache-Control'],
  'set-cookie': ['the API’s answer sets a cookie', 'drop the cookie there, or see credentials.cookies'],
  vary: ['the API’s answer varies by something that jobcache does not tell apart', 'change its Vary'],
  'event-stream': ['the API’s answer is a stream of events', ''],
  trailers: ['the API’s answer has trailers', ''],
  unframed: ['the API’s answer has neither a length nor chunks, so that its end cannot be told from a break', 'let the API send a Content-Length'],
  encoding: ['the API’s answer is compressed though nobody asked', 'switch that off for this path'],
  'too-large': ['the API’s answer is larger than max_body', 'raise max_body'],
  stale: ['the API’s answer was already too old', 'look at its Age and max-age'],
  unstated: ['the API’s answer states no lifetime, and ttl.stated_only is set', 'state one'],
  empty: ['the API’s answer has no body', ''],
  malformed: ['the API’s answer cannot be read', 'look at the API'],
  revoked: ['a write, a purge or a newer read came meanwhile', 'nothing if rare'],
  memory: ['no room to hold the answer (max_captured)', 'raise max_captured'],
};
const meaning = (why) => (Object.hasOwn(REASONS, why) ? REASONS[why][0] : '');
const mend = (why) => (Object.hasOwn(REASONS, why) ? REASONS[why][1] : '');

// What happened, in the tone that it is shown in.
const TONES = {
  hit: 'hit', fill: 'hit', admitted: 'hit', confirmed: 'hit',
  'store-up': 'hit', 'tracking-up': 'hit', 'upstream-up': 'hit',
  miss: 'miss', 'fill-refused': 'miss', replaced: 'miss', lost: 'miss', drain: 'miss',
  pass: 'pass', write: 'pass', 'write-ended': 'pass', changed: 'pass', purge: 'pass', 'purge-all': 'pass',
  error: 'bad', flushed: 'bad', 'store-down': 'bad', 'tracking-down': 'bad', 'upstream-down': 'bad',
};
const SAID = {
  hit: 'answered from the cache', miss: 'read from the API', pass: 'went past the cache', error: 'answered with an error of ours',
  fill: 'the answer was stored', 'fill-refused': 'the answer was not stored', admitted: 'another client was let in',
  replaced: 'the entry was replaced', write: 'a write began', 'write-ended': 'a write ended', purge: 'a purge',
  'purge-all': 'a purge of every job', changed: 'changed in Redis by another sidecar or a third party',
  flushed: 'all keys left Redis at once', evicted: 'left this process for want of room', confirmed: 'a pending invalidation is confirmed',
  'store-up': 'Redis is trusted again', 'store-down': 'Redis is not trusted: the breaker is open',
  'tracking-up': 'changes in Redis are tracked', 'tracking-down': 'changes in Redis are not tracked: each hit asks Redis',
  'upstream-up': 'the API answers', 'upstream-down': 'the API does not answer',
  drain: 'a shutdown has begun', lost: 'this page read too slowly and lost events',
};
const chip = (what) => make('span', `chip ${Object.hasOwn(TONES, what) ? TONES[what] : ''}`, what);
const said = (what) => (Object.hasOwn(SAID, what) ? SAID[what] : '');

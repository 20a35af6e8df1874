
// Events as they happen. An `EventSource` cannot send the secret, so the stream is read by `fetch`.

const SHOWN = 200;
// The listener gives a sign of life every 15 s, and a second's counts each second.
const SILENCE_MS = 20000;
const RENDER_MS = 250;
const UNSEEN_MS = 60000;
const streaming = { last: '', paused: false, waiting: [], stop: null, retry_ms: 2000, tries: 0 };

async function listen() {
  const stop = new AbortController();
  streaming.stop = stop;
  let silence = 0;
  const alive = () => { clearTimeout(silence); silence = setTimeout(() => stop.abort(), SILENCE_MS); };
  try {
    alive();
    const headers = streaming.last ? { 'Last-Event-ID': streaming.last } : {};
    const response = await send('events', { headers, signal: stop.signal });
    if (response.headers.has('WWW-Authenticate')) { lock((await response.json()).error); return false; }
    if (!response.ok) { say(at('stream'), `No live events: ${(await response.json()).error}.`); return true; }
    say(at('stream'), '');
    streaming.tries = 0;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = '';
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      alive();
      text += value;
      const parts = text.split('\n\n');
      text = parts.pop();
      parts.forEach(take);
    }
    say(at('stream'), 'The stream has ended; asking again.');
  } catch {
    say(at('stream'), 'The stream is lost; asking again.');
  } finally {
    clearTimeout(silence);
    stop.abort();
    streaming.stop = null;
  }
  return true;
}

// One event: lines of `field: value`.
function take(part) {
  for (const field of part.split('\n')) {
    const [, name, value] = /^(\w+): ?(.*)$/.exec(field) ?? [];
    if (name === 'id') streaming.last = value;
    if (name === 'retry') streaming.retry_ms = Math.min(Number(value) || 2000, 10000);
    if (name !== 'data') continue;
    const event = JSON.parse(value);
    if (event.what === 'second') second(event);
    else {
      streaming.waiting.push(event);
      if (streaming.waiting.length > SHOWN) streaming.waiting.shift();
    }
  }
}

function second(event) {
  const parts = [[event.hit, 'hit'], [event.miss, 'miss', 'misses'], [event.pass, 'pass', 'passes'], [event.write, 'write'], [event.error, 'error']];
  say(at('second'), `${parts.filter(([n], i) => n || i < 2).map(([n, ...words]) => many(n, ...words)).join(', ')} a second`);
}

function render() {
  const list = at('events');
  if (streaming.paused) {
    say(at('pause'), streaming.waiting.length ? `Go on (${streaming.waiting.length} new)` : 'Go on');
    return;
  }
  if (!streaming.waiting.length) return;
  const items = streaming.waiting.splice(0).map(happened).reverse();
  // Who reads further down is not moved.
  const tall = list.scrollHeight;
  list.prepend(...items);
  if (list.scrollTop > 4) list.scrollTop += list.scrollHeight - tall;
  while (list.children.length > SHOWN) list.lastChild.remove();
}

function happened(event) {
  const { at_ms, what, why, by, job, jobs, events } = event;
  const text = [said(what), why && (meaning(why) ? `${why}: ${meaning(why)}` : why), by && `by ${by}`].filter(Boolean).join(' · ');
  const time = make('time', '', clock(at_ms ?? Date.now()));
  const who = job ? named(job) : jobs ? many(jobs, 'job') : events ? many(events, 'event') : '';
  const it = make('li', 'new', time, chip(what), who, make('span', 'said', text));
  it.dataset.text = `${what} ${why ?? ''} ${by ?? ''} ${job ?? ''}`.toLowerCase();
  it.hidden = !it.dataset.text.includes(at('only').value.trim().toLowerCase());
  return it;
}

at('only').addEventListener('input', () => {
  const text = at('only').value.trim().toLowerCase();
  for (const it of at('events').children) it.hidden = !it.dataset.text.includes(text);
});

at('pause').addEventListener('click', () => {
  streaming.paused = !streaming.paused;
  at('pause').setAttribute('aria-pressed', String(streaming.paused));
  if (!streaming.paused) say(at('pause'), 'Pause');
  render();
});
setInterval(render, RENDER_MS);

const wait = (how_long_ms) => new Promise((done) => { setTimeout(done, how_long_ms); });

const seen = () => new Promise((done) => {
  if (document.hidden) document.addEventListener('visibilitychange', done, { once: true }); else done();
});

// Until the secret is asked for. Who listens are few, so a tab that nobody looks at gives its place back.
async function follow() {
  while (await listen()) {
    streaming.tries += 1;
    await wait(Math.min(streaming.retry_ms * streaming.tries, 15000));
    await seen();
  }
  streaming.following = false;
}

let unseen = 0;
document.addEventListener('visibilitychange', () => {
  clearTimeout(unseen);
  if (document.hidden) unseen = setTimeout(() => streaming.stop?.abort(), UNSEEN_MS);
});


// The live events. An `EventSource` cannot send the secret, so the stream is read with `fetch`.

const SHOWN = 200;
// The listener sends the counts of each second, and a comment at least every 15 s.
const SILENCE_MS = 20000;
const RENDER_MS = 250;
const HIDDEN_MS = 60000;
const streaming = { last: '', paused: false, waiting: [], stop: null, retry_ms: 2000, tries: 0 };

async function readEvents() {
  const stop = new AbortController();
  streaming.stop = stop;
  let silence = 0;
  const alive = () => { clearTimeout(silence); silence = setTimeout(() => stop.abort(), SILENCE_MS); };
  try {
    alive();
    const headers = streaming.last ? { 'Last-Event-ID': streaming.last } : {};
    const response = await send('events', { headers, signal: stop.signal });
    if (response.headers.has('WWW-Authenticate')) { lock((await response.json()).error); return false; }
    if (!response.ok) { setText(byId('stream'), `No live events: ${(await response.json()).error}.`); return true; }
    setText(byId('stream'), '');
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
      parts.forEach(handlePart);
    }
    setText(byId('stream'), 'The stream has ended; reconnecting.');
  } catch {
    setText(byId('stream'), 'The stream is lost; reconnecting.');
  } finally {
    clearTimeout(silence);
    stop.abort();
    streaming.stop = null;
  }
  return true;
}

// One server-sent event: lines of `field: value`.
function handlePart(part) {
  for (const field of part.split('\n')) {
    const [, name, value] = /^(\w+): ?(.*)$/.exec(field) ?? [];
    if (name === 'id') streaming.last = value;
    if (name === 'retry') streaming.retry_ms = Math.min(Number(value) || 2000, 10000);
    if (name !== 'data') continue;
    const event = JSON.parse(value);
    if (event.what === 'second') showSecond(event);
    else {
      streaming.waiting.push(event);
      if (streaming.waiting.length > SHOWN) streaming.waiting.shift();
    }
  }
}

function showSecond(event) {
  const parts = [[event.hit, 'hit'], [event.miss, 'miss', 'misses'], [event.pass, 'pass', 'passes'], [event.write, 'write'], [event.error, 'error']];
  setText(byId('second'), `${parts.filter(([n], i) => n || i < 2).map(([n, ...words]) => plural(n, ...words)).join(', ')} per second`);
}

function render() {
  const list = byId('events');
  if (streaming.paused) {
    setText(byId('pause'), streaming.waiting.length ? `Resume (${streaming.waiting.length} new)` : 'Resume');
    return;
  }
  if (!streaming.waiting.length) return;
  const items = streaming.waiting.splice(0).map(eventRow).reverse();
  // Keeps the position of a list that is scrolled down.
  const tall = list.scrollHeight;
  list.prepend(...items);
  if (list.scrollTop > 4) list.scrollTop += list.scrollHeight - tall;
  while (list.children.length > SHOWN) list.lastChild.remove();
}

function eventRow(event) {
  const { at_ms, what, why, by, job, jobs, events } = event;
  const text = [eventText(what), why && (meaning(why) ? `${why}: ${meaning(why)}` : why), by && `by ${by}`].filter(Boolean).join(' · ');
  const time = make('time', '', clock(at_ms ?? Date.now()));
  const subject = job ? jobButton(job) : jobs ? plural(jobs, 'job') : events ? plural(events, 'event') : '';
  const row = make('li', 'new', time, chip(what), subject, make('span', 'said', text));
  row.dataset.text = `${what} ${why ?? ''} ${by ?? ''} ${job ?? ''}`.toLowerCase();
  row.hidden = !row.dataset.text.includes(byId('only').value.trim().toLowerCase());
  return row;
}

byId('only').addEventListener('input', () => {
  const text = byId('only').value.trim().toLowerCase();
  for (const row of byId('events').children) row.hidden = !row.dataset.text.includes(text);
});

byId('pause').addEventListener('click', () => {
  streaming.paused = !streaming.paused;
  byId('pause').setAttribute('aria-pressed', String(streaming.paused));
  if (!streaming.paused) setText(byId('pause'), 'Pause');
  render();
});
setInterval(render, RENDER_MS);

const sleep = (delay_ms) => new Promise((done) => { setTimeout(done, delay_ms); });

const untilVisible = () => new Promise((done) => {
  if (document.hidden) document.addEventListener('visibilitychange', done, { once: true }); else done();
});

// Ends when the secret is needed. Places are few, so a hidden tab gives its place back.
async function followEvents() {
  while (await readEvents()) {
    streaming.tries += 1;
    await sleep(Math.min(streaming.retry_ms * streaming.tries, 15000));
    await untilVisible();
  }
  streaming.following = false;
}

let hiddenTimer = 0;
document.addEventListener('visibilitychange', () => {
  clearTimeout(hiddenTimer);
  if (document.hidden) hiddenTimer = setTimeout(() => streaming.stop?.abort(), HIDDEN_MS);
});


// Explains and purges one job.

const ARMED_MS = 5000;
const VALUES = {
  entry: 'an entry', none: 'nothing', placeholder: 'a placeholder: a read of the API will fill it',
  foreign: 'a value that another program wrote', unreadable: 'an entry that this version cannot read',
  'other-epoch': 'an entry from before Redis restarted or failed over',
  purged: 'an entry from before a purge of all',
  'other-route': 'an entry of another route or API with the same key',
};
const STANDING = { included: 'this one is among them', lapsed: 'this one was among them too long ago', outside: 'this one is not among them' };
let explainCount = 0;

// A job id as a button that explains the job.
function jobButton(job) {
  const button = make('button', 'id', job);
  button.type = 'button';
  button.title = 'Explain this job';
  button.addEventListener('click', () => {
    byId('id').value = job;
    setText(byId('receipt'), '');
    explain();
    byId('job').scrollIntoView({ block: 'nearest' });
  });
  return button;
}

// The input may be an id, a path or a URL.
function parseInput() {
  const text = byId('id').value.trim();
  const path = text.replace(/^[a-z]+:\/\/[^/]*/i, '').replace(/#.*/, '');
  if (!path.includes('/')) return { id: text, line: '' };
  const [plain] = path.split('?');
  return { id: plain.replace(/\/+$/, '').split('/').pop(), line: `GET ${path.startsWith('/') ? path : `/${path}`}` };
}

// The browser would remove these segments from the path.
const isDots = (id) => /^(\.|%2e){1,2}$/i.test(id);

async function explain() {
  const { id, line: target } = parseInput();
  const box = byId('answer');
  if (!id || isDots(id)) { box.replaceChildren(make('p', 'verdict error', 'Enter a job id, or the path of a request for the job.')); return; }
  const call = explainCount += 1;
  const head = byId('head').value.trim();
  // The head has a request line, or is output of `curl -v`.
  const isWhole = /^[A-Za-z-]+ [/*h]/.test(head) || /^>/m.test(head);
  const body = [isWhole ? '' : target, head].filter(Boolean).join('\n');
  history.replaceState(null, '', `#job=${encodeURIComponent(id)}`);
  try {
    const { ok, data } = await fetchJson(`explain/${encodeURIComponent(id)}`, { method: 'POST', headers: { 'Content-Type': 'text/plain' }, body });
    if (call !== explainCount) return;
    if (ok) showExplanation(box, data);
    else box.replaceChildren(make('p', 'verdict error', data.error ?? 'No explanation.'));
  } catch (error) {
    if (call === explainCount && !(error instanceof Unauthorized)) box.replaceChildren(make('p', 'verdict error', 'No answer from jobcache.'));
  }
}

function showExplanation(box, data) {
  const { verdict } = data;
  const sentence = make('p', `verdict ${verdict.outcome}`, fullSentence(verdict.why), '.', make('br'), make('code', '', verdict.cache_status));
  const parts = [sentence];
  const last = data.events.findLast(({ what }) => what === 'fill' || what === 'fill-refused');
  const refused = !data.entry && last?.what === 'fill-refused' ? last : null;
  if (refused) {
    const ago = span((Date.now() - refused.at_ms) / 1000);
    sentence.append(make('p', 'remedy', make('b', '', 'The last answer was not stored: '), `${refused.why}${meaning(refused.why) && ` (${meaning(refused.why)})`}, ${ago} ago.`));
  }
  const what = remedy(verdict.detail === 'uncacheable' && refused ? refused.why : verdict.detail ?? refused?.why ?? '');
  if (what) sentence.append(make('p', 'remedy', make('b', '', 'What to do: '), what, '.'));
  parts.push(facts(data), make('h3', '', 'Recent events'));
  parts.push(data.events.length || data.all_purged ? eventList(data)
    : make('p', 'sub', 'None known. Is the job polled through this sidecar?'));
  box.replaceChildren(...parts);
}

// Without a head the text is a whole sentence.
const fullSentence = (why) => (why.startsWith('a request') ? `A${why.slice(1)}` : `A request like this ${why}`);

function facts({ job, request, store, value, entry, lease, fence, near, marks }) {
  const left = (ms_left) => `${(Math.max(0, ms_left) / 1000).toFixed(1)} s left`;
  const rows = [
    ['request', `${request.method} ${request.path}${request.form_assumed && entry ? ', in the variant of the entry (no Host was given)' : ''}`],
    ['job', job],
    ['in Redis', value === null ? `not known: ${store.error ?? 'no answer'}` : Object.hasOwn(VALUES, value) ? VALUES[value] : value],
  ];
  if (entry) {
    rows.push(['age', `${span(entry.age_s)} old, ${span(entry.ttl_s)} left`], ['size', `${bytes(entry.size)}${entry.stored_size < entry.size ? `, ${bytes(entry.stored_size)} in Redis (zstd)` : ''}`]);
    const audience = entry.public ? 'all callers (the API says public)' : plural(entry.audience, 'caller');
    rows.push(['for', entry.standing && !entry.public ? `${audience}; ${STANDING[entry.standing]}` : audience]);
    rows.push(['generation', make('span', 'mono', entry.generation)]);
  }
  rows.push(['this process', near ? 'has it in memory' : 'does not have it in memory']);
  if (lease) rows.push(['lease', `a read of the API will fill it, at most ${left(lease.left_ms)}`]);
  if (fence) rows.push(['fence', `no fills because of a write, at most ${left(fence.left_ms)}`]);
  if (store.pending) rows.push(['pending', 'an invalidation is not confirmed; bypassed here']);
  if (marks.uncacheable) rows.push(['mark', 'the last answer could not be stored; bypassed for 10 s']);
  if (marks.replaced) rows.push(['replaced', `${count(marks.replaced)} × recently: the API answers callers differently`]);
  if (marks.differing_headers?.length) rows.push(['differs', `${marks.differing_headers.join(', ')}: the API gives callers the same body, but other values of this header`]);
  if (marks.foreign) rows.push(['foreign', `another program’s value under its key, seen ${count(marks.foreign)} ${marks.foreign === 1 ? 'time' : 'times'} recently`]);
  return make('dl', 'facts', ...rows.flatMap(([name, text]) => [make('dt', '', name), make('dd', '', text)]));
}

function eventList({ events, all_purged }) {
  const all = (all_purged ? [...events, all_purged] : [...events]).reverse();
  all.sort((a, b) => b.at_ms - a.at_ms);
  return make('ol', 'past', ...all.map(({ what, why, by, at_ms, since_ms, times }) => {
    const more = times > 1 ? ` · ${count(times)} ×${since_ms ? ` since ${clock(since_ms)}` : ''}` : '';
    const text = [eventText(what), why, by && `by ${by}`].filter(Boolean).join(' · ');
    const time = make('time', '', `${span((Date.now() - at_ms) / 1000)} ago`);
    time.dateTime = new Date(at_ms).toISOString();
    return make('li', '', chip(what), make('span', '', `${text}${more}`), time);
  }));
}

byId('ask').addEventListener('submit', (event) => {
  event.preventDefault();
  setText(byId('receipt'), '');
  explain();
});

let disarmTimer = 0;
function disarm() {
  clearTimeout(disarmTimer);
  byId('purge').classList.remove('armed');
  setText(byId('purge'), 'Purge');
}

// Needs two clicks, because a purge cannot be undone. A mistake costs one read of the API.
byId('purge').addEventListener('click', () => {
  const { id } = parseInput();
  if (!id) { byId('id').focus(); return; }
  if (byId('purge').classList.contains('armed')) { disarm(); purge(id); return; }
  byId('purge').classList.add('armed');
  setText(byId('purge'), 'Really purge?');
  disarmTimer = setTimeout(disarm, ARMED_MS);
});
byId('id').addEventListener('input', disarm);

async function purge(id) {
  const show = (tone, text) => byId('receipt').replaceChildren(make('p', tone, text));
  try {
    // Same origin: the listener rejects cross-site requests (admin/csrf.rs).
    const { ok, data } = await fetchJson('purge', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ job_id: id }) });
    if (!ok && !data.pending) { show('worse', data.error ?? 'Not purged.'); return; }
    const lines = (data.receipts ?? []).map(receipt);
    show(ok ? 'good' : 'worse', `${ok ? 'Purged and confirmed by the store. ' : `Not confirmed: ${data.error}. `}${lines.join(' ')}`);
  } catch (error) {
    if (!(error instanceof Unauthorized)) show('worse', 'No answer from jobcache. The job may or may not be purged.');
  }
  explain();
}

function receipt({ job, confirmed, entry, fill_voided, flights_detached, near_dropped }) {
  const parts = [!confirmed ? 'the previous value is not known' : entry ? `there was an entry of ${bytes(entry.stored_size)} in the store, ${span(entry.age_ms / 1000)} old` : 'there was no entry'];
  if (fill_voided) parts.push('a fill was in progress and is void');
  if (flights_detached) parts.push(`${plural(flights_detached, 'read')} of the API detached here`);
  if (near_dropped) parts.push('this process dropped it from memory');
  return `${job}: ${parts.join('; ')}.`;
}

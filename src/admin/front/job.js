
// One job: why it is or is not cached, and a purge of it.

const ARMED_MS = 5000;
const VALUES = {
  entry: 'an entry', none: 'nothing', placeholder: 'a placeholder: somebody is reading the API for it',
  foreign: 'a value that somebody else wrote', unreadable: 'an entry that this version cannot read',
  'other-epoch': 'an entry from before Redis restarted or failed over',
};
const STANDING = { included: 'this one is among them', lapsed: 'this one was among them too long ago', outside: 'this one is not among them' };
let answered = 0;

// A job's id as a button that explains it.
function named(job) {
  const it = make('button', 'id', job);
  it.type = 'button';
  it.title = 'Explain this job';
  it.addEventListener('click', () => {
    at('id').value = job;
    say(at('receipt'), '');
    explain();
    at('job').scrollIntoView({ block: 'nearest' });
  });
  return it;
}

// Operators paste ids, paths and whole URLs.
function wanted() {
  const text = at('id').value.trim();
  const path = text.replace(/^[a-z]+:\/\/[^/]*/i, '').replace(/#.*/, '');
  if (!path.includes('/')) return { id: text, line: '' };
  const [plain] = path.split('?');
  return { id: plain.replace(/\/+$/, '').split('/').pop(), line: `GET ${path.startsWith('/') ? path : `/${path}`}` };
}

// Of a path the browser would make another one.
const isDots = (id) => /^(\.|%2e){1,2}$/i.test(id);

async function explain() {
  const { id, line: target } = wanted();
  const box = at('answer');
  if (!id || isDots(id)) { box.replaceChildren(make('p', 'verdict error', 'Give the id of a job, or the path of a request for it.')); return; }
  const turn = answered += 1;
  const head = at('head').value.trim();
  // As it is copied: with a request line of its own, or as `curl -v` shows it.
  const isWhole = /^[A-Za-z-]+ [/*h]/.test(head) || /^>/m.test(head);
  const body = [isWhole ? '' : target, head].filter(Boolean).join('\n');
  history.replaceState(null, '', `#job=${encodeURIComponent(id)}`);
  try {
    const { ok, told } = await ask(`explain/${encodeURIComponent(id)}`, { method: 'POST', headers: { 'Content-Type': 'text/plain' }, body });
    if (turn !== answered) return;
    if (ok) explained(box, told);
    else box.replaceChildren(make('p', 'verdict error', told.error ?? 'It was not explained.'));
  } catch (error) {
    if (turn === answered && !(error instanceof Refused)) box.replaceChildren(make('p', 'verdict error', 'No answer from jobcache.'));
  }
}

function explained(box, told) {
  const { verdict } = told;
  const sentence = make('p', `verdict ${verdict.outcome}`, sentence_of(verdict.why), '.', make('br'), make('code', '', verdict.cache_status));
  const parts = [sentence];
  const last = told.events.findLast(({ what }) => what === 'fill' || what === 'fill-refused');
  const refused = !told.entry && last?.what === 'fill-refused' ? last : null;
  if (refused) {
    const ago = span((Date.now() - refused.at_ms) / 1000);
    sentence.append(make('p', 'mend', make('b', '', 'Last time its answer was not stored: '), `${refused.why}${meaning(refused.why) && ` (${meaning(refused.why)})`}, ${ago} ago.`));
  }
  const what = mend(verdict.detail === 'uncacheable' && refused ? refused.why : verdict.detail ?? refused?.why ?? '');
  if (what) sentence.append(make('p', 'mend', make('b', '', 'What to do: '), what, '.'));
  parts.push(facts(told), make('h3', '', 'What happened to it lately'));
  parts.push(told.events.length || told.all_purged ? happenings(told)
    : make('p', 'sub', 'Nothing that is still known here. Is it polled through this sidecar?'));
  box.replaceChildren(...parts);
}

// Of a client without a head it says itself whose it is.
const sentence_of = (why) => (why.startsWith('a client') ? `A${why.slice(1)}` : `A request like this ${why}`);

function facts({ job, request, store, value, entry, lease, fence, near, marks }) {
  const left = (ms_left) => `${(Math.max(0, ms_left) / 1000).toFixed(1)} s left`;
  const rows = [
    ['request', `${request.method} ${request.path}${request.form_assumed && entry ? ', in the form that the entry was read in (no Host was given)' : ''}`],
    ['job', job],
    ['in Redis', value === null ? `not known: ${store.error ?? 'no answer'}` : Object.hasOwn(VALUES, value) ? VALUES[value] : value],
  ];
  if (entry) {
    rows.push(['age', `${span(entry.age_s)} old, ${span(entry.ttl_s)} left`], ['size', `${bytes(entry.size)}${entry.stored_size < entry.size ? `, ${bytes(entry.stored_size)} in Redis (zstd)` : ''}`]);
    const who = entry.public ? 'anybody (the API says public)' : many(entry.audience, 'caller');
    rows.push(['for', entry.standing && !entry.public ? `${who}; ${STANDING[entry.standing]}` : who]);
    rows.push(['generation', make('span', 'mono', entry.generation)]);
  }
  rows.push(['this process', near ? 'has it in memory' : 'does not have it in memory']);
  if (lease) rows.push(['lease', `somebody is reading the API to fill it, ${left(lease.left_ms)} at most`]);
  if (fence) rows.push(['fence', `no fills after a write, ${left(fence.left_ms)} at most`]);
  if (store.pending) rows.push(['pending', 'an invalidation of it is not confirmed; bypassed here']);
  if (marks.uncacheable) rows.push(['mark', 'its last answer could not be stored; bypassed for 10 s']);
  if (marks.replaced) rows.push(['replaced', `${count(marks.replaced)} × lately: the API answers callers differently`]);
  if (marks.foreign) rows.push(['foreign', `somebody else’s value under its key, seen ${count(marks.foreign)} ${marks.foreign === 1 ? 'time' : 'times'} lately`]);
  return make('dl', 'facts', ...rows.flatMap(([name, text]) => [make('dt', '', name), make('dd', '', text)]));
}

function happenings({ events, all_purged }) {
  const all = (all_purged ? [...events, all_purged] : [...events]).reverse();
  all.sort((a, b) => b.at_ms - a.at_ms);
  return make('ol', 'past', ...all.map(({ what, why, by, at_ms, since_ms, times }) => {
    const more = times > 1 ? ` · ${count(times)} ×${since_ms ? ` since ${clock(since_ms)}` : ''}` : '';
    const text = [said(what), why, by && `by ${by}`].filter(Boolean).join(' · ');
    const time = make('time', '', `${span((Date.now() - at_ms) / 1000)} ago`);
    time.dateTime = new Date(at_ms).toISOString();
    return make('li', '', chip(what), make('span', '', `${text}${more}`), time);
  }));
}

at('ask').addEventListener('submit', (event) => {
  event.preventDefault();
  say(at('receipt'), '');
  explain();
});

let disarm = 0;
function calm() {
  clearTimeout(disarm);
  at('purge').classList.remove('armed');
  say(at('purge'), 'Purge');
}

// Asked twice, for there is no way back; a job that is purged by mistake is read once more, no worse.
at('purge').addEventListener('click', () => {
  const { id } = wanted();
  if (!id) { at('id').focus(); return; }
  if (at('purge').classList.contains('armed')) { calm(); purge(id); return; }
  at('purge').classList.add('armed');
  say(at('purge'), 'Really purge?');
  disarm = setTimeout(calm, ARMED_MS);
});
at('id').addEventListener('input', calm);

async function purge(id) {
  const show = (tone, text) => at('receipt').replaceChildren(make('p', tone, text));
  try {
    // JSON of our own origin: the listener turns away what another site's page sends (origin.rs).
    const { ok, told } = await ask('purge', { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ job_id: id }) });
    if (!ok && !told.pending) { show('worse', told.error ?? 'It was not purged.'); return; }
    const lines = (told.receipts ?? []).map(receipt);
    show(ok ? 'good' : 'worse', `${ok ? 'Purged, and confirmed by the store. ' : `Not confirmed: ${told.error}. `}${lines.join(' ')}`);
  } catch (error) {
    if (!(error instanceof Refused)) show('worse', 'No answer from jobcache: whether it was purged is not known.');
  }
  explain();
}

function receipt({ job, confirmed, entry, fill_voided, flights_detached, near_dropped }) {
  const parts = [!confirmed ? 'what there was is not known' : entry ? `there was an entry of ${bytes(entry.stored_size)} in the store, ${span(entry.age_ms / 1000)} old` : 'there was no entry'];
  if (fill_voided) parts.push('a fill was under way and is void');
  if (flights_detached) parts.push(`${many(flights_detached, 'read')} of the API here detached`);
  if (near_dropped) parts.push('this process had it in memory and has dropped it');
  return `${job}: ${parts.join('; ')}.`;
}

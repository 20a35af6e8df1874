
// The figures of `status`.

// This one may be full, and is nothing to look after: what is used least makes room.
const NEAR = 'near_max_bytes';

function show(told) {
  const { requests, store, upstream } = told;
  const minute = requests.last_minute;
  say(at('about'), `${told.version} · up ${span(told.uptime_s)} · cache ${told.mode.cache} · store ${told.mode.store} · near ${told.mode.near} · credentials ${told.mode.credentials}`);
  document.title = minute.hit_ratio === null ? 'jobcache' : `${percent(minute.hit_ratio)} · jobcache`;
  say(at('headline'), headline(told));
  say(at('ratio'), minute.hit_ratio === null ? '–' : percent(minute.hit_ratio));
  at('kinds').replaceChildren(...Object.entries(PLOTS.reads.lines).map(([kind, name]) => make('span', '', dot(kind), `${name} `, make('b', '', brief(minute[kind])))));
  const longer = [['last_10_minutes', 'in ten'], ['life', 'since the start']].filter(([window]) => requests[window].hit_ratio !== null);
  const rest = longer.map(([window, name]) => `${percent(requests[window].hit_ratio)} ${name}`).join(', ');
  say(at('ratio-sub'), `in the last minute${rest && `; ${rest}`}`);
  for (const bar of at('split').children) {
    bar.style.width = minute.reads ? `${minute[bar.className] / minute.reads * 100}%` : '0';
  }
  say(at('saved'), count(minute.saved));
  say(at('saved-life'), `${count(requests.life.saved)} since the start, of ${many(requests.life.reads, 'read')}`);
  latencies(told.latency_ms);
  health(told, store, upstream);
  evidence(told);
  reasons(told);
  limits(told);
  busiest(told.busiest);
  alarms(told);
}

function headline({ requests, store, upstream, draining }) {
  const { last_minute: minute } = requests;
  if (draining) return 'This sidecar is shutting down.';
  if (!store.up) return 'Redis is not trusted: every read goes to the API.';
  const source = upstream.up ? '' : ' The API does not answer.';
  if (!minute.reads) return `No reads of jobs in the last minute.${source}`;
  if (minute.saved === 0) return `All ${many(minute.reads, 'read')} of the last minute went to the API.${source}`;
  const rest = minute.reads - minute.saved;
  return `The API saw ${count(rest)} of ${many(minute.reads, 'read')} in the last minute: ${percent(minute.saved / minute.reads)} were saved.${source}`;
}

const cell = (text, kind = 'n') => make('td', kind, text);

function row(name, ...cells) {
  const head = make('th', '', ...[name].flat());
  head.scope = 'row';
  return make('tr', '', head, ...cells);
}

function latencies(told) {
  const names = { hit: 'hits', miss: 'misses', upstream: 'API', store: 'Redis' };
  at('latency').replaceChildren(...Object.entries(names).map(([kind, name]) =>
    row([dot(kind), name], cell(ms(told[kind].p50)), cell(ms(told[kind].p99)))));
}

// Of a cluster, how many of its masters are trusted.
function shards({ up, nodes }) {
  if (!nodes.length) return up ? 'up' : 'down';
  return `${nodes.filter((node) => node.up).length} of ${nodes.length} shards up`;
}

function health(told, store, upstream) {
  const near = told.near;
  const rows = [
    ['Redis', store.up ? 'good' : 'bad', shards(store)],
    ['breaker', store.breaker === 'closed' ? 'good' : 'bad', store.breaker],
    ['tracking', store.tracking || told.mode.near === 'off' ? 'good' : 'warn', store.tracking ? 'on' : 'off'],
    ['pending', store.pending_invalidations ? 'bad' : 'good', many(store.pending_invalidations, 'invalidation')],
    ['API', upstream.up ? 'good' : 'bad', upstream.up
      ? `up · ${count(upstream.in_use)} busy${upstream.waiting ? ` · ${count(upstream.waiting)} wait` : ''}` : 'no answer'],
    ['near', 'good', `${many(near.entries, 'entry', 'entries')} · ${bytes(near.bytes)}`],
  ];
  if (told.mode.store === 'memory') rows.splice(0, 3, ['store', 'good', 'in this process']);
  at('health').replaceChildren(...rows.map(([name, tone, text]) =>
    make('li', `is-${tone}`, dot(tone), make('b', '', name), make('span', '', text))));
}

function sums({ miss, pass }) {
  const sums = new Map();
  for (const [why, n] of [...Object.entries(miss), ...Object.entries(pass)]) sums.set(why, (sums.get(why) ?? 0) + n);
  return sums;
}

// Each with what it means, and how often it was in the last minute.
function reasons(told) {
  const minute = sums(told.reasons_last_minute);
  const rows = [...sums(told.reasons)].map(([why, n]) => [why, n, minute.get(why) ?? 0]);
  rows.sort((a, b) => b[2] - a[2] || b[1] - a[1]);
  at('reasons').replaceChildren(...rows.slice(0, 12).map(([why, n, lately]) => {
    const what = make('td', '', make('span', 'mono', why));
    const words = [meaning(why), mend(why)].filter(Boolean).join(' → ');
    if (words) what.append(make('p', '', words));
    return make('tr', '', what, cell(count(lately)), cell(count(n)));
  }));
  at('reasons').closest('table').hidden = !rows.length;
  say(at('reasons-none'), rows.length
    ? 'By the detail of Cache-Status; a plain miss, of a job that is not in the cache yet, has none. Lately: in the last minute.'
    : 'No read had a reason (detail of Cache-Status) to go past the cache.');
}

// What is used of each limit, the nearest first.
function used(told) {
  const all = Object.entries(told.limits).map(([name, { used, limit, times_met }]) => ({ name, used, limit, times_met, part: limit ? used / limit : 0 }));
  all.push({ name: NEAR, used: told.near.bytes, limit: told.near.max_bytes, times_met: null, part: told.near.max_bytes ? told.near.bytes / told.near.max_bytes : 0 });
  return all.sort((a, b) => b.part - a.part);
}

function limits(told) {
  const all = used(told);
  const first = all.find(({ name }) => name !== NEAR);
  const near = all.filter(({ name, part, times_met }) => (part >= 0.7 && name !== NEAR) || times_met > 0);
  at('limits').replaceChildren(...all.map(bounded));
  at('near-limits').replaceChildren(...(near.length ? near.map(bounded)
    : [make('li', 'sub', `None is near: ${first.name} is the nearest, at ${Math.floor(first.part * 100)} %.`)]));
}

function bounded({ name, used, limit, times_met, part }) {
  const shown = /captured|inspected|bytes/.test(name) ? bytes : count;
  const met = times_met ? ` · met ${count(times_met)} ×` : '';
  const fill = make('i', name === NEAR ? '' : part >= 0.9 ? 'bad' : part >= 0.7 ? 'warn' : '');
  fill.style.width = `${Math.min(100, part * 100)}%`;
  return make('li', '', make('span', 'mono', name), make('span', 'sub', `${shown(used)} of ${shown(limit)}${met}`), make('div', 'bar', fill));
}

function busiest(jobs) {
  at('busiest').replaceChildren(...jobs.slice(0, 10).map(({ job, requests, hits }) => {
    const part = requests ? hits / requests : 0;
    const fill = make('i');
    fill.style.width = `${part * 100}%`;
    return make('tr', '', make('td', '', named(job), make('div', 'bar', fill)), cell(count(requests)), cell(percent(part)));
  }));
  if (!jobs.length) {
    const none = cell('No job was asked for.', 'sub');
    none.colSpan = 3;
    at('busiest').replaceChildren(make('tr', '', none));
  }
}

// What an operator has to know first.
function alarms(told) {
  const list = [];
  const { store, upstream } = told;
  if (told.draining) list.push(['', 'Draining.', 'A shutdown has begun; new clients should go elsewhere.']);
  if (!store.up) list.push(['worse', 'Redis is not trusted.', 'It is down, slow or refuses; the breaker is open. Clients get the API’s own answers, and nothing is cached until it answers again.']);
  if (store.pending_invalidations) list.push(['worse', `${many(store.pending_invalidations, 'invalidation')} not confirmed.`, 'Those jobs bypass the cache here; other sidecars may serve the older body until Redis confirms, or until the TTL ends.']);
  if (store.up && !store.tracking && told.mode.near !== 'off' && told.mode.store !== 'memory') list.push(['', 'Changes in Redis are not tracked.', 'Each hit asks Redis; that is slower, not wrong.']);
  for (const { name, part } of used(told)) {
    if (part >= 0.9 && name !== NEAR) list.push(['', `${name} is at ${Math.floor(part * 100)} %.`, 'Past it clients wait or are refused, or answers are not stored.']);
  }
  if (!upstream.up) list.push(['worse', 'The API does not answer.', 'Hits are served; all else gets 502 or 504.']);
  alarm(list);
}

function alarm(list) {
  const key = JSON.stringify(list);
  const box = at('alarms');
  if (box.dataset.shown === key) return;
  box.dataset.shown = key;
  box.replaceChildren(...list.map(([kind, title, text]) => make('p', kind, make('b', '', title), ' ', text)));
}


// Shows the data of `status`.

// A full near cache is normal, because it evicts entries.
const NEAR = 'near_max_bytes';

function showStatus(data) {
  const { requests, store, upstream } = data;
  const minute = requests.last_minute;
  setText(byId('about'), `${data.version} · up ${span(data.uptime_s)} · cache ${data.mode.cache} · store ${data.mode.store} · near ${data.mode.near} · credentials ${data.mode.credentials} · routes ${data.routes.join(' ')}`);
  document.title = minute.hit_ratio === null ? 'jobcache' : `${percent(minute.hit_ratio)} · jobcache`;
  setText(byId('headline'), headline(data));
  setText(byId('ratio'), minute.hit_ratio === null ? '–' : percent(minute.hit_ratio));
  byId('kinds').replaceChildren(...Object.entries(PLOTS.reads.lines).map(([kind, name]) => make('span', '', dot(kind), `${name} `, make('b', '', brief(minute[kind])))));
  const longer = [['last_10_minutes', 'in ten minutes'], ['life', 'since the start']].filter(([window]) => requests[window].hit_ratio !== null);
  const rest = longer.map(([window, name]) => `${percent(requests[window].hit_ratio)} ${name}`).join(', ');
  setText(byId('ratio-sub'), `in the last minute${rest && `; ${rest}`}`);
  for (const bar of byId('split').children) {
    bar.style.width = minute.reads ? `${minute[bar.className] / minute.reads * 100}%` : '0';
  }
  setText(byId('saved'), count(minute.saved));
  setText(byId('saved-life'), `${count(requests.life.saved)} since the start, of ${plural(requests.life.reads, 'read')}`);
  showLatencies(data.latency_ms);
  showHealth(data, store, upstream);
  showComparison(data);
  showPush(data);
  showReasons(data);
  showLimits(data);
  showBusiest(data.busiest);
  showAlarms(data);
}

function headline({ requests, store, upstream, draining }) {
  const { last_minute: minute } = requests;
  if (draining) return 'This sidecar is shutting down.';
  if (!store.up) return 'Redis is down: every read goes to the API.';
  if (store.problem?.kind === 'far') return 'Redis is too far away: every read goes to the API.';
  if (store.problem) return `Redis refuses what jobcache needs (${store.problem.kind}): the API answers instead.`;
  const source = upstream.up ? '' : ' The API does not answer.';
  if (!minute.reads) return `No reads of jobs in the last minute.${source}`;
  if (minute.saved === 0) return `All ${plural(minute.reads, 'read')} in the last minute went to the API.${source}`;
  const rest = minute.reads - minute.saved;
  return `The API saw ${count(rest)} of ${plural(minute.reads, 'read')} in the last minute: ${percent(minute.saved / minute.reads)} were saved.${source}`;
}

const cell = (text, kind = 'n') => make('td', kind, text);

function row(name, ...cells) {
  const head = make('th', '', ...[name].flat());
  head.scope = 'row';
  return make('tr', '', head, ...cells);
}

function showLatencies(data) {
  const names = { hit: 'hits', miss: 'misses', upstream: 'API', store: 'Redis' };
  byId('latency').replaceChildren(...Object.entries(names).map(([kind, name]) =>
    row([dot(kind), name], cell(ms(data[kind].p50)), cell(ms(data[kind].p99)))));
}

// Of a cluster: how many masters are up.
function shards({ up, nodes }) {
  if (!nodes.length) return up ? 'up' : 'down';
  return `${nodes.filter((node) => node.up).length} of ${nodes.length} shards up`;
}

function showHealth(data, store, upstream) {
  const near = data.near;
  const rows = [
    ['Redis', store.up ? 'good' : 'bad', shards(store)],
    ['breaker', store.breaker === 'closed' ? 'good' : 'bad', store.breaker],
    ['tracking', store.tracking || data.mode.near === 'off' ? 'good' : 'warn', store.tracking ? 'on' : 'off'],
    ['pending', store.pending_invalidations ? 'bad' : 'good', plural(store.pending_invalidations, 'invalidation')],
    ['API', upstream.up ? 'good' : 'bad', upstream.up
      ? `up · ${count(upstream.in_use)} busy${upstream.waiting ? ` · ${count(upstream.waiting)} waiting` : ''}` : 'no answer'],
    ['near', 'good', `${plural(near.entries, 'entry', 'entries')} · ${bytes(near.bytes)}`],
  ];
  if (data.mode.store === 'memory') rows.splice(0, 3, ['store', 'good', 'in this process']);
  byId('health').replaceChildren(...rows.map(([name, tone, text]) =>
    make('li', `is-${tone}`, dot(tone), make('b', '', name), make('span', '', text))));
}

// Clients that wait, only while push is on.
function showPush({ push, mode }) {
  byId('push').hidden = push.mode === 'off' || mode.cache !== 'on';
  if (byId('push').hidden) return;
  setText(byId('push-title'), `Push: ${push.mode}`);
  const { p50, p99 } = push.delivery_ms;
  const rows = [
    ['held polls', count(push.held_polls)], ['open streams', count(push.open_streams)],
    ['deliveries', brief(push.delivered)], ['delivery p50', ms(p50)], ['delivery p99', ms(p99)],
    ['refused', brief(push.refused), push.refused ? 'bad' : ''],
  ];
  byId('push-counts').replaceChildren(...rows.map(([name, value, tone]) => make('div', '', make('dt', '', name), make('dd', tone, value))));
  const room = push.refused ? ` Above push.max_waiting (${count(push.max_waiting)}) requests are answered as if push were off.` : '';
  setText(byId('push-sub'), `Delivery is the time from the news about a job to its clients, in the last minute. Waited for: ${plural(push.topics, 'job')}, counted once a caller. Since the start ${plural(push.woken, 'read')} because of news and ${count(push.rechecks)} without.${room}`);
}

function sumReasons({ miss, pass }) {
  const counts = new Map();
  for (const [why, n] of [...Object.entries(miss), ...Object.entries(pass)]) counts.set(why, (counts.get(why) ?? 0) + n);
  return counts;
}

// Each reason with its meaning and its counts.
function showReasons(data) {
  const minute = sumReasons(data.reasons_last_minute);
  const rows = [...sumReasons(data.reasons)].map(([why, n]) => [why, n, minute.get(why) ?? 0]);
  rows.sort((a, b) => b[2] - a[2] || b[1] - a[1]);
  byId('reasons').replaceChildren(...rows.slice(0, 12).map(([why, n, recent]) => {
    const what = make('td', '', make('span', 'mono', why));
    const words = [meaning(why), remedy(why)].filter(Boolean).join(' → ');
    if (words) what.append(make('p', '', words));
    return make('tr', '', what, cell(count(recent)), cell(count(n)));
  }));
  byId('reasons').closest('table').hidden = !rows.length;
  setText(byId('reasons-none'), rows.length
    ? 'Reasons are the detail of Cache-Status. A plain miss, of a job that is not cached yet, has none.'
    : 'No read had a reason (detail of Cache-Status) to bypass the cache.');
}

// The use of each limit, the fullest first.
function limitUse(data) {
  const all = Object.entries(data.limits).map(([name, { used, limit, times_met }]) => ({ name, used, limit, times_met, part: limit ? used / limit : 0 }));
  all.push({ name: NEAR, used: data.near.bytes, limit: data.near.max_bytes, times_met: null, part: data.near.max_bytes ? data.near.bytes / data.near.max_bytes : 0 });
  return all.sort((a, b) => b.part - a.part);
}

function showLimits(data) {
  const all = limitUse(data);
  const first = all.find(({ name }) => name !== NEAR);
  const near = all.filter(({ name, part, times_met }) => (part >= 0.7 && name !== NEAR) || times_met > 0);
  byId('limits').replaceChildren(...all.map(limitRow));
  byId('near-limits').replaceChildren(...(near.length ? near.map(limitRow)
    : [make('li', 'sub', `All limits have room. The fullest is ${first.name}, at ${Math.floor(first.part * 100)} %.`)]));
}

function limitRow({ name, used, limit, times_met, part }) {
  const shown = /captured|inspected|bytes/.test(name) ? bytes : count;
  const met = times_met ? ` · reached ${count(times_met)} ×` : '';
  const fill = make('i', name === NEAR ? '' : part >= 0.9 ? 'bad' : part >= 0.7 ? 'warn' : '');
  fill.style.width = `${Math.min(100, part * 100)}%`;
  return make('li', '', make('span', 'mono', name), make('span', 'sub', `${shown(used)} of ${shown(limit)}${met}`), make('div', 'bar', fill));
}

function showBusiest(jobs) {
  byId('busiest').replaceChildren(...jobs.slice(0, 10).map(({ job, requests, hits }) => {
    const part = requests ? hits / requests : 0;
    const fill = make('i');
    fill.style.width = `${part * 100}%`;
    return make('tr', '', make('td', '', jobButton(job), make('div', 'bar', fill)), cell(count(requests)), cell(percent(part)));
  }));
  if (!jobs.length) {
    const none = cell('No requests for jobs.', 'sub');
    none.colSpan = 3;
    byId('busiest').replaceChildren(make('tr', '', none));
  }
}

function storeTrouble({ up, problem }) {
  if (!up) return 'Redis cannot be used.';
  if (problem.kind === 'far') return 'Redis is too far away.';
  return `Redis refuses ${problem.commands.join(', ') || 'what jobcache needs'}.`;
}

// What an operator has to know first.
function showAlarms(data) {
  const list = [];
  const { store, upstream } = data;
  if (data.draining) list.push(['', 'Draining.', 'A shutdown has begun. Send new clients elsewhere.']);
  if (store.problem) list.push(['worse', storeTrouble(store), `${store.problem.kind}: ${store.problem.remedy}.`]);
  else if (!store.up) list.push(['worse', 'Redis is down.', 'It does not answer, is slow or returns errors, so the breaker is open. Clients get the answers of the API, and nothing is cached until Redis answers again.']);
  if (store.pending_invalidations) list.push(['worse', `${plural(store.pending_invalidations, 'invalidation')} not confirmed.`, 'Those jobs bypass the cache here. Other sidecars may serve the old body until Redis confirms, or until its TTL ends.']);
  if (store.up && !store.tracking && data.mode.near !== 'off' && data.mode.store !== 'memory') list.push(['', 'Changes in Redis are not tracked.', 'Each hit asks Redis. That is slower, but correct.']);
  for (const { name, part } of limitUse(data)) {
    if (part >= 0.9 && name !== NEAR) list.push(['', `${name} is at ${Math.floor(part * 100)} %.`, 'At the limit clients wait or are refused, or answers are not stored.']);
  }
  for (const { route } of data.silent_changes.routes.filter((one) => one.without_purges)) {
    list.push(['worse', `Jobs of ${route} change without a purge.`, 'The API gave other answers after the TTL, and nothing had reported a change, so clients see changes late. Call the purge webhook or DEL the key when a job changes, or set a shorter ttl.']);
  }
  for (const { prefix, left_s } of data.aside) {
    list.push(['worse', `The application caches ${prefix}… itself.`, `It stores values of its own under the keys of this cache, so its reads pass for ${plural(Math.ceil(left_s / 60), 'more minute')}. Switch the application's own cache off, but keep its DELs.`]);
  }
  if (store.journal?.sibling_invalidations) list.push(['', `${plural(store.journal.sibling_invalidations, 'invalidation')} of another process not confirmed.`, 'It has the same pending.journal. Those jobs bypass the cache here too; they are taken over when that process ends.']);
  if (!upstream.up) list.push(['worse', 'The API does not answer.', 'Hits are served. Other requests get 502 or 504.']);
  setAlarms(list);
}

function setAlarms(list) {
  const key = JSON.stringify(list);
  const box = byId('alarms');
  if (box.dataset.shown === key) return;
  box.dataset.shown = key;
  box.replaceChildren(...list.map(([kind, title, text]) => make('p', kind, make('b', '', title), ' ', text)));
}

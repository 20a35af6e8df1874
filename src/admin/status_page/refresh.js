
// Refreshes the page every two seconds, and shows when there is no answer.

const REFRESH_MS = 2000;
// After a gap this long, and every HISTORY_EVERY times because steps drift, the history is loaded again.
const LATE_MS = 5000;
const HISTORY_EVERY = 60;
const page = { before: null, since: 0, refreshes: 0, timer: 0, lost_ms: 0 };

async function refresh() {
  clearTimeout(page.timer);
  try {
    const { ok, data } = await fetchJson('status');
    if (!ok) throw new Error('no status');
    const now = performance.now();
    const restarted = page.before !== null && data.uptime_s < page.before.uptime_s;
    if (restarted) { streaming.last = ''; }
    if (page.before === null || restarted || now - page.since > LATE_MS || page.refreshes % HISTORY_EVERY === 0) {
      setHistory((await fetchJson('history')).data);
    } else {
      addPoint(step(page.before, data, now - page.since));
    }
    page.refreshes += 1;
    page.since = now;
    page.before = data;
    showStatus(data);
    drawAll();
    showConnected();
  } catch (error) {
    if (error instanceof Unauthorized) { setText(byId('link'), 'locked'); byId('link').className = ''; return; }
    showLost();
  }
  // Two calls may overlap; only one continues.
  clearTimeout(page.timer);
  page.timer = setTimeout(refresh, REFRESH_MS);
}

// Counts between two refreshes, scaled to one step.
function step(before, now, took_ms) {
  const [from, to] = [before.requests.life, now.requests.life];
  const share = series.step_s * 1000 / took_ms;
  const part = (kind) => Math.max(0, to[kind] - from[kind]) * share;
  const p99 = Object.fromEntries(Object.entries(now.latency_ms).map(([kind, { p99: n }]) => [kind, n]));
  return { hit: part('hit'), miss: part('miss'), pass: part('pass'), saved: part('saved'), p99 };
}

function showConnected() {
  page.lost_ms = 0;
  byId('unlock').hidden = true;
  byId('page').classList.remove('locked', 'old');
  byId('link').className = 'live';
  setText(byId('link'), 'live');
  if (!streaming.following) { streaming.following = true; followEvents(); }
}

function showLost() {
  page.lost_ms ||= Date.now();
  byId('page').classList.add('old');
  byId('link').className = 'lost';
  setText(byId('link'), 'connection lost');
  document.title = 'connection lost · jobcache';
  const from = page.before ? 'The data shown is old.' : '';
  setAlarms([['worse', `No connection to jobcache since ${clock(page.lost_ms)}.`, `${from} Retrying every two seconds.`]]);
}

// Starts over, for example with a new secret.
function restart() {
  page.before = null;
  refresh();
}

window.addEventListener('online', restart);
document.addEventListener('visibilitychange', () => { if (!document.hidden) refresh(); });
const linkedJob = new URLSearchParams(location.hash.slice(1)).get('job');
if (linkedJob) byId('id').value = linkedJob;
refresh().then(() => { if (linkedJob && page.before) explain(); });

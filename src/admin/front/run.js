
// The page's own clock: every two seconds a look, and what becomes of the page when there is no answer.

const LOOK_MS = 2000;
// Of looks that came this late the history knows more; and it is asked now and then, as ours drifts.
const LATE_MS = 5000;
const REFRESH = 60;
const page = { before: null, since: 0, looked: 0, timer: 0, lost_ms: 0 };

async function look() {
  clearTimeout(page.timer);
  try {
    const { ok, told } = await ask('status');
    if (!ok) throw new Error('no status');
    const now = performance.now();
    const restarted = page.before !== null && told.uptime_s < page.before.uptime_s;
    if (restarted) { streaming.last = ''; looks = []; }
    if (page.before === null || restarted || now - page.since > LATE_MS || page.looked % REFRESH === 0) {
      remember((await ask('history')).told);
    } else {
      append(step(page.before, told, now - page.since));
    }
    page.looked += 1;
    page.since = now;
    page.before = told;
    show(told);
    drawAll();
    found();
  } catch (error) {
    if (error instanceof Refused) { say(at('link'), 'locked'); at('link').className = ''; return; }
    lost();
  }
  // Two looks may be under way; one goes on.
  clearTimeout(page.timer);
  page.timer = setTimeout(look, LOOK_MS);
}

// What was counted between two looks, as of one step.
function step(before, now, took_ms) {
  const [from, to] = [before.requests.life, now.requests.life];
  const share = past.step_s * 1000 / took_ms;
  const part = (kind) => Math.max(0, to[kind] - from[kind]) * share;
  const p99 = Object.fromEntries(Object.entries(now.latency_ms).map(([kind, { p99: n }]) => [kind, n]));
  return { hit: part('hit'), miss: part('miss'), pass: part('pass'), saved: part('saved'), p99 };
}

function found() {
  page.lost_ms = 0;
  at('unlock').hidden = true;
  at('page').classList.remove('locked', 'old');
  at('link').className = 'live';
  say(at('link'), 'live');
  if (!streaming.following) { streaming.following = true; follow(); }
}

function lost() {
  page.lost_ms ||= Date.now();
  at('page').classList.add('old');
  at('link').className = 'lost';
  say(at('link'), 'connection lost');
  document.title = 'connection lost · jobcache';
  const from = page.before ? 'What is shown is from before.' : '';
  alarm([['worse', `No connection to jobcache since ${clock(page.lost_ms)}.`, `${from} Asking again every two seconds.`]]);
}

// From the start, as when a secret was given.
function again() {
  page.before = null;
  look();
}

window.addEventListener('online', again);
document.addEventListener('visibilitychange', () => { if (!document.hidden) look(); });
const asked = new URLSearchParams(location.hash.slice(1)).get('job');
if (asked) at('id').value = asked;
look().then(() => { if (asked && page.before) explain(); });

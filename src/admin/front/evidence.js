
// What comparisons with the API have shown: in shadow mode, and of hits that are drawn (verify).

// Fewer say little.
const ENOUGH = 1000;
const FOUND = {
  same: ['the same', 'good'], different: ['different', 'bad'], refused: ['refused by the API', 'bad'],
  changed: ['changed meanwhile', ''], failed: ['no answer of the API', ''], unchecked: ['not checked', ''], skipped: ['skipped', ''],
};
const all = (counts) => Object.values(counts).reduce((sum, n) => sum + n, 0);

function evidence(told) {
  const { shadow, verify } = told;
  const isShadow = told.mode.cache === 'shadow';
  const counts = isShadow ? shadow : verify;
  const sum = all(counts);
  at('evidence').hidden = !isShadow && !sum;
  if (at('evidence').hidden) return;
  const wrong = counts.different + counts.refused;
  const { reads, hit } = told.requests.life;
  const rest = reads - hit;
  say(at('evidence-title'), isShadow ? 'Shadow mode: what the cache would have answered' : 'Hits compared with the API (verify)');
  say(at('would'), isShadow ? (rest > 0 ? percent(Math.min(1, sum / rest)) : '–') : count(sum));
  say(at('would-sub'), isShadow ? `would have been hits, of ${many(rest, 'read')} since the start` : `${sum === 1 ? 'comparison' : 'comparisons'} since the start`);
  at('found').replaceChildren(...Object.entries(FOUND).filter(([what]) => counts[what] || ['same', 'different', 'refused'].includes(what))
    .map(([what, [name, tone]]) => make('li', '', dot(counts[what] ? tone : ''), `${name} `, make('b', '', count(counts[what])))));
  at('next').className = wrong ? 'worse' : '';
  say(at('next'), next(isShadow, counts, wrong));
}

// Never to switch on what was seen to be wrong.
function next(isShadow, { same }, wrong) {
  if (wrong) {
    return `Next: find out why ${many(wrong, 'answer')} of the API ${wrong === 1 ? 'was' : 'were'} not what the cache had. The log names jobs and headers (“an entry was not what the upstream answers”). `
      + `Most likely something changes jobs without a purge, or the API does not always answer the same. ${isShadow ? 'Stay in shadow mode until a day passes without one; a restart counts anew.' : 'Those entries were dropped.'}`;
  }
  if (!isShadow) return 'Nothing was found wrong.';
  if (!same) return 'Next: wait. There is something to compare once a job is polled twice within its TTL.';
  if (same < ENOUGH) return `Next: wait. Nothing was found wrong, but ${many(same, 'comparison')} ${same === 1 ? 'is' : 'are'} few.`;
  return 'Next: if that was a usual day, set mode to on, and verify to 0.01 to go on comparing a few hits.';
}

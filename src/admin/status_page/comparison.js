
// Results of comparisons with the API, in shadow mode or of sampled hits (verify).

// Fewer comparisons prove little.
const ENOUGH = 1000;
const RESULTS = {
  same: ['the same', 'good'], different: ['different', 'bad'], refused: ['refused by the API', 'bad'],
  changed: ['changed meanwhile', ''], failed: ['no answer from the API', ''], unchecked: ['not checked', ''], skipped: ['skipped', ''],
};
const total = (counts) => Object.values(counts).reduce((sum, n) => sum + n, 0);

function showComparison(data) {
  const { shadow, verify } = data;
  const isShadow = data.mode.cache === 'shadow';
  const counts = isShadow ? shadow : verify;
  const sum = total(counts);
  byId('evidence').hidden = !isShadow && !sum;
  if (byId('evidence').hidden) return;
  const wrong = counts.different + counts.refused;
  const { reads, hit } = data.requests.life;
  const rest = reads - hit;
  setText(byId('evidence-title'), isShadow ? 'Shadow mode: what the cache would have answered' : 'Hits compared with the API (verify)');
  setText(byId('would'), isShadow ? (rest > 0 ? percent(Math.min(1, sum / rest)) : '–') : count(sum));
  setText(byId('would-sub'), isShadow ? `of ${plural(rest, 'read')} since the start would have been hits` : `${sum === 1 ? 'comparison' : 'comparisons'} since the start`);
  byId('found').replaceChildren(...Object.entries(RESULTS).filter(([what]) => counts[what] || ['same', 'different', 'refused'].includes(what))
    .map(([what, [name, tone]]) => make('li', '', dot(counts[what] ? tone : ''), `${name} `, make('b', '', count(counts[what])))));
  byId('next').className = wrong ? 'worse' : '';
  setText(byId('next'), nextStep(isShadow, counts, wrong));
}

// Never advises to switch on what was seen to be wrong.
function nextStep(isShadow, { same }, wrong) {
  if (wrong) {
    return `Next: find out why ${plural(wrong, 'answer')} of the API ${wrong === 1 ? 'differs' : 'differ'} from the cache. The log names jobs and headers (“a cached entry differed from the API's answer”). `
      + `Most likely something changes jobs without a purge, or the API does not always answer the same. ${isShadow ? 'Stay in shadow mode until a day passes without one; a restart resets the counts.' : 'Those entries were dropped.'}`;
  }
  if (!isShadow) return 'No differences found.';
  if (!same) return 'Next: wait. A comparison needs a job that is polled twice within its TTL.';
  if (same < ENOUGH) return `Next: wait. No differences found, but ${plural(same, 'comparison')} ${same === 1 ? 'is' : 'are'} few.`;
  return 'Next: if this was a typical day, set mode to on, and set verify to 0.01 to keep comparing a few hits.';
}

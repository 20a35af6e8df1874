
// Plots of the last ten minutes, drawn as SVG paths. All share the same steps, the newest on the right.

const POINTS = 300;
const WIDTH = 300;
const HEIGHT = 100;
const series = { step_s: 2, hit: [], miss: [], pass: [], saved: [], p99: { hit: [], miss: [], upstream: [], store: [] } };

const PLOTS = {
  reads: {
    lines: { hit: 'hits', miss: 'misses', pass: 'passes' }, stacked: true, format: (n) => `${rate(n)}/s`,
    values: (kind) => series[kind].map((n) => n / series.step_s),
  },
  saved: {
    lines: { saved: 'saved' }, format: (n) => `${count(n)}/min`,
    values: () => smooth(series.saved.map((n) => n * 60 / series.step_s)),
  },
  p99: {
    lines: { hit: 'hits', miss: 'misses', upstream: 'API', store: 'Redis' }, logarithmic: true, format: ms,
    values: (kind) => series.p99[kind],
  },
};

// A rate per minute from two seconds is too noisy, so average over ten.
const smooth = (all) => all.map((_, i) => {
  const recent = all.slice(Math.max(0, i - 4), i + 1);
  return recent.reduce((sum, n) => sum + n, 0) / recent.length;
});

function setHistory(data) {
  series.step_s = data.step_s;
  for (const kind of ['hit', 'miss', 'pass', 'saved']) series[kind] = data[kind].slice(-POINTS);
  for (const kind of Object.keys(series.p99)) series.p99[kind] = data.p99_ms[kind].slice(-POINTS);
}

function addPoint(point) {
  const add = (all, n) => { all.push(n); if (all.length > POINTS) all.shift(); };
  for (const kind of ['hit', 'miss', 'pass', 'saved']) add(series[kind], point[kind]);
  for (const kind of Object.keys(series.p99)) add(series.p99[kind], point.p99[kind]);
}

// The smallest round number that is not less.
function ceiling(n) {
  const power = 10 ** Math.floor(Math.log10(n));
  return [1, 1.5, 2, 3, 4, 6, 8, 10].map((step) => step * power).find((step) => step >= n) ?? n;
}

const xOf = (i, length) => WIDTH - (length - 1 - i) * WIDTH / (POINTS - 1);
const xy = (x, y) => `${x.toFixed(1)} ${y.toFixed(1)}`;

// A line with gaps at unknown values.
function line(all, yOf) {
  let path = '';
  let pen = 'M';
  all.forEach((n, i) => {
    if (n === null) { pen = 'M'; return; }
    path += pen + xy(xOf(i, all.length), yOf(n));
    pen = 'L';
  });
  return path;
}

// The area between two lines.
function area(low, high, yOf) {
  if (high.length < 2) return '';
  const edge = (all) => all.map((n, i) => xy(xOf(i, all.length), yOf(n)));
  return `M${edge(high).join('L')}L${edge(low).reverse().join('L')}Z`;
}

// The y position of values, and the values of the labelled lines.
function scale(plot, tallest, all) {
  if (!plot.logarithmic) {
    const top = ceiling(Math.max(tallest, 2));
    return { yOf: (n) => HEIGHT - n / top * (HEIGHT - 4), marks: [top, top / 2] };
  }
  const known = all.flat().filter((n) => n !== null && n > 0);
  if (!known.length) return { yOf: () => HEIGHT, marks: [] };
  const low = Math.floor(Math.log10(Math.min(...known)));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...known))));
  const marks = [];
  for (let power = high; power >= low; power -= 1) marks.push(10 ** power);
  const yOf = (n) => HEIGHT - (Math.log10(Math.max(n, 10 ** low)) - low) / (high - low) * (HEIGHT - 4);
  return { yOf, marks };
}

function draw(figure) {
  const plot = PLOTS[figure.dataset.plot];
  const svg = figure.querySelector('svg');
  const kinds = Object.keys(plot.lines);
  const all = kinds.map((kind) => plot.values(kind));
  let below = all[0].map(() => 0);
  const stacks = all.map((values) => {
    const low = below;
    below = plot.stacked ? values.map((n, i) => low[i] + n) : values;
    return [plot.stacked ? low : values.map(() => 0), below];
  });
  const { yOf, marks } = scale(plot, Math.max(0, ...plot.logarithmic ? [] : stacks.flatMap(([, high]) => high)), all);
  kinds.forEach((kind, k) => {
    svg.querySelector(`.area.${kind}`)?.setAttribute('d', area(...stacks[k], yOf));
    svg.querySelector(`.line.${kind}`)?.setAttribute('d', line(all[k], yOf));
  });
  drawMarks(figure, plot, marks, yOf);
  figure.values = { plot, kinds, all };
  showValues(figure);
}

function drawMarks(figure, plot, marks, yOf) {
  const grid = figure.querySelector('.grid');
  const label = (n) => (plot.logarithmic ? (n >= 1000 ? `${n / 1000} s` : `${+n.toFixed(3)} ms`) : n % 1 ? n.toFixed(1) : count(n));
  const key = marks.join();
  if (figure.marks === key) return;
  figure.marks = key;
  grid.replaceChildren(...marks.map((n) => {
    const path = figure.querySelector('.cursor').cloneNode();
    path.setAttribute('class', '');
    path.setAttribute('d', `M0 ${yOf(n)}H${WIDTH}`);
    return path;
  }));
  figure.querySelector('.scale').replaceChildren(...marks.map((n) => {
    const node = make('span', '', label(n));
    node.style.top = `${yOf(n) / HEIGHT * 100}%`;
    // Otherwise the label would extend below the plot.
    if (yOf(n) > HEIGHT * 0.85) node.className = 'low';
    return node;
  }));
}

// Shows the values of now or of the pointer, also as the label for screen readers.
function showValues(figure) {
  const { plot, kinds, all } = figure.values;
  const length = all[0].length;
  const back = Math.min(figure.back ?? 0, Math.max(0, length - 1));
  const i = length - 1 - back;
  const parts = kinds.map((kind, k) => [kind, plot.lines[kind], plot.format(all[k][i] ?? (plot.logarithmic ? null : 0))]);
  const when = figure.back ? `${span(back * series.step_s)} ago` : '';
  figure.querySelector('.legend').replaceChildren(
    ...parts.map(([kind, name, value]) => make('span', '', dot(kind), `${name} `, make('b', '', value))),
  );
  setText(figure.querySelector('.sub'), when);
  const title = figure.querySelector('h2').textContent;
  figure.querySelector('svg').setAttribute('aria-label',
    `${title}, ${when || 'now'}: ${parts.map(([, name, value]) => `${name} ${value}`).join(', ')}`);
  const x = xOf(i, length).toFixed(1);
  figure.querySelector('.cursor').setAttribute('d', figure.back ? `M${x} 0V${HEIGHT}` : '');
}

const figures = [...document.querySelectorAll('figure')];
const drawAll = () => figures.forEach(draw);

for (const figure of figures) {
  const svg = figure.querySelector('svg');
  const point = (back) => {
    figure.back = back === null ? null : Math.max(0, Math.min(POINTS - 1, back));
    if (figure.values) showValues(figure);
  };
  svg.addEventListener('pointermove', (event) => {
    const box = svg.getBoundingClientRect();
    point(Math.round((1 - (event.clientX - box.left) / box.width) * (POINTS - 1)));
  });
  svg.addEventListener('pointerleave', () => point(null));
  svg.addEventListener('blur', () => point(null));
  svg.addEventListener('keydown', (event) => {
    const step = { ArrowLeft: 5, ArrowRight: -5 }[event.key];
    if (!step) return;
    event.preventDefault();
    point((figure.back ?? 0) + step);
  });
}

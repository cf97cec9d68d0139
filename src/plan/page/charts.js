// Pictures of a plan: what memory, or a step, is made of; speed over batches.

import { by, h } from './dom.js';
import { compiled } from './expression.js';
import { logTicks } from './formats.js';
import { makePlan, PlanError } from './plan.js';
import { general, optionText, pointed, showValue } from './show.js';

// Parts are formulas over the plan's values, as those of formulas.toml.
const kBars = {
  memory: [
    {
      title: 'Memory to serve, the fullest GPU', unit: 'bytes', whole: 'available_bytes',
      parts: [['Weights', 'rank_weight_bytes'], ['Caches', 'rank_cache_bytes'], ['Activations, buffers, context', 'work_bytes']]
    },
    {
      title: 'Memory to train, the fullest GPU', unit: 'bytes', whole: 'is_host ? ram : gpu_memory_bytes',
      parts: [
        ['Weights to compute with', 'rank_copy_bytes'], ['Gradients', 'rank_gradient_bytes'], ['Optimizer', 'rank_optimizer_bytes'],
        ['Activations', 'rank_activation_bytes'],
        ['Context and buffers', 'rank_bytes - rank_copy_bytes - rank_gradient_bytes - rank_optimizer_bytes - rank_activation_bytes']
      ]
    }
  ],
  train: [
    {
      title: 'A step', unit: 's',
      parts: [
        ['Computing', 'chunks * time_fb'], ['Exposed communication', 'chunks * exposed_s'], ['Bubble', 'bubble_s'], ['Optimizer', 'optimizer_s'],
        ['Waiting, imbalance, optimizer', 'max(0, step_s - busy_s - bubble_s - optimizer_s)']
      ]
    }
  ],
  serve: [
    {
      title: 'Memory of a GPU that decodes', unit: 'bytes', whole: 'is_host ? ram : gpu_memory_bytes',
      parts: [['Weights', 'rank_weight_bytes'], ['Caches', 'batch * context * cache_token_bytes'], ['Context and buffers', 'is_host ? 2e9 : reserve_bytes']]
    }
  ]
};
for (const bar of Object.values(kBars).flat()) {
  bar.parts = bar.parts.map(([name, formula]) => [name, compiled(formula)]);
  bar.whole = bar.whole ? compiled(bar.whole) : null;
}

const kCurves = [['decode_gpu', 'series-1'], ['tpot_s', 'series-2']];
const kMostBatch = 4096;

// ---- Bars

function barFigure(bar, values) {
  const parts = bar.parts.map(([name, part], i) => ({ name, value: Math.max(0, part(values)), color: `var(--series-${i + 1})` })).filter(({ value }) => value > 0);
  const total = parts.reduce((sum, { value }) => sum + value, 0);
  const whole = bar.whole?.(values) ?? total;
  const scale = Math.max(total, whole);
  if (!(scale > 0)) return null;
  const said = parts.map(({ name, value }) => `${name} ${showValue(value, bar.unit)}`).join(', ');
  const sum = bar.whole ? `${showValue(total, bar.unit)} of ${showValue(whole, bar.unit)}` : showValue(total, bar.unit);
  const track = h('div', { class: 'track', role: 'img', 'aria-label': `${bar.title}: ${said}; ${sum}` });
  for (const { name, value, color } of parts) {
    const piece = h('span', { class: 'piece', title: `${name}: ${showValue(value, bar.unit)}` });
    piece.style.width = `${100 * value / scale}%`;
    piece.style.background = color;
    track.append(piece);
  }
  if (bar.whole) {
    const mark = h('span', { class: 'mark' });
    mark.style.left = `${100 * whole / scale}%`;
    track.append(mark);
  }
  const legend = h('ul', { class: 'legend' }, ...parts.map(({ name, value, color }) => {
    const dot = h('span', { class: 'dot', 'aria-hidden': 'true' });
    dot.style.background = color;
    return h('li', {}, dot, `${name} `, h('b', { text: showValue(value, bar.unit) }), h('span', { class: 'hint', text: ` ${general(100 * value / total, 3)} %` }));
  }));
  return h('figure', { class: 'panel bar', data: { over: total > whole ? 'true' : 'false' } },
           h('figcaption', {}, h('h2', { text: bar.title }), h('span', { class: 'sum', text: sum })), track, legend);
}

// ---- Curves

const kSvgSpace = 'http://www.w3.org/2000/svg';
function svg(tag, attributes, ...children) {
  const element = document.createElementNS(kSvgSpace, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// null where there is none.
function possiblePlan(...wanted) {
  try {
    return makePlan(...wanted);
  } catch (error) {
    if (error instanceof PlanError) return null;
    throw error;
  }
}

// Plans that differ in the batch alone, those that can be.
function overBatches(data, plan, given) {
  const now = plan.inputs.get('batch').value;
  const batches = [...new Set([...Array.from({ length: Math.log2(kMostBatch) + 1 }, (_, i) => 2 ** i), now])].sort((a, b) => a - b);
  const points = [];
  for (const batch of batches) {
    const other = possiblePlan(data, plan.kind, plan.model, plan.device, { ...given, batch: String(batch) });
    if (other) points.push({ batch, now: batch === now, fits: other.lines.get('fits').value !== 0, plan: other });
  }
  return points;
}

const kBox = { width: 420, height: 220, left: 62, right: 20, top: 14, bottom: 34 };

function curve(points, name, color) {
  const { line } = points[0].plan.lines.get(name);
  const at = points.map(({ batch, now, fits, plan }) => ({ batch, now, fits, y: plan.lines.get(name).value })).filter(({ y }) => y > 0);
  if (at.length < 2) return null;
  const log = Math.log;
  const [x0, x1] = [at[0].batch, at.at(-1).batch];
  const ys = at.map(({ y }) => y);
  const [y0, y1] = [Math.min(...ys) / 1.1, Math.max(...ys) * 1.1];
  const x = (batch) => kBox.left + log(batch / x0) / log(x1 / x0) * (kBox.width - kBox.left - kBox.right);
  const y = (value) => kBox.height - kBox.bottom - log(value / y0) / log(y1 / y0) * (kBox.height - kBox.top - kBox.bottom);
  const picture = svg('svg', { viewBox: `0 0 ${kBox.width} ${kBox.height}`, 'aria-hidden': 'true', class: 'curve' });
  for (const tick of logTicks(y0, y1)) {
    const text = svg('text', { x: kBox.left - 6, y: y(tick) + 4, 'text-anchor': 'end' });
    text.textContent = showValue(tick, line.unit).replace(/ tokens\/s$/, '');
    picture.append(svg('line', { x1: kBox.left, x2: kBox.width - kBox.right, y1: y(tick), y2: y(tick), class: 'grid' }), text);
  }
  for (const tick of [1, 4, 16, 64, 256, 1024, 4096]) {
    if (tick < x0 || tick > x1) continue;
    const text = svg('text', { x: x(tick), y: kBox.height - kBox.bottom + 18, 'text-anchor': 'middle' });
    text.textContent = String(tick);
    picture.append(svg('line', { x1: x(tick), x2: x(tick), y1: kBox.height - kBox.bottom, y2: kBox.height - kBox.bottom + 4, class: 'grid' }), text);
  }
  for (let i = 1; i < at.length; ++i) {
    const piece = svg('line', { x1: x(at[i - 1].batch), y1: y(at[i - 1].y), x2: x(at[i].batch), y2: y(at[i].y), class: at[i].fits ? 'drawn' : 'drawn beyond' });
    piece.style.stroke = `var(--${color})`;
    picture.append(piece);
  }
  const here = at.find(({ now }) => now);
  if (here) {
    const dot = svg('circle', { cx: x(here.batch), cy: y(here.y), r: 5 });
    dot.style.fill = `var(--${color})`;
    picture.append(dot);
  }
  const said = here ? `${showValue(here.y, line.unit)} at a batch of ${optionText(here.batch, '')}` : '';
  const holder = h('div', { role: 'img', 'aria-label': `${line.title}, over batches from ${x0} to ${x1}. ${said}` });
  holder.append(picture);
  return h('figure', { class: 'panel' }, h('figcaption', {}, h('h2', { text: line.title }), h('span', { class: 'sum', text: said })), holder);
}

function batchTable(points, lines) {
  const head = ['Batch', ...lines.map(({ title }) => title), 'Fits'];
  return h('div', { class: 'table' }, h('table', {}, h('caption', { class: 'visually-hidden', text: 'Speed over batches' }),
    h('thead', {}, h('tr', {}, ...head.map((text) => h('th', { scope: 'col', text })))),
    h('tbody', {}, ...points.map(({ batch, fits, plan }) => h('tr', {}, h('th', { scope: 'row', text: optionText(batch, '') }),
      ...lines.map(({ name, unit }) => h('td', { text: showValue(plan.lines.get(name).value, unit) })), h('td', { text: fits ? 'yes' : 'no' }))))));
}

let table_open = false;

function speedFigures(data, plan, given) {
  const points = overBatches(data, plan, given);
  if (points.length < 2) return [];
  const curves = kCurves.map(([name, color]) => curve(points, name, color)).filter((each) => each !== null);
  const lines = kCurves.map(([name]) => plan.lines.get(name).line);
  const details = h('details', { on: { toggle: () => { table_open = details.open; } } }, h('summary', { text: 'As a table' }), batchTable(points, lines));
  details.open = table_open;
  const note = points.some(({ fits }) => !fits) ? 'Along: sequences that decode on a GPU. Dashed: their caches do not fit.' : 'Along: sequences that decode on a GPU.';
  return [h('div', { class: 'curves' }, ...curves), h('div', { class: 'panel' }, h('p', { class: 'hint', text: note }), details)];
}

// How many of each kind of hardware would hold weights and caches, as the program counts them: in the formats of the plan.
function othersText(data, plan, given) {
  const same = Object.fromEntries(['context', 'batch', 'ram'].filter((name) => given[name] !== undefined).map((name) => [name, given[name]]));
  for (const name of ['weights', 'kv_type']) same[name] = plan.inputs.get(name).choice;
  const counts = data.devices.filter(({ values }) => values.gpu_memory_bytes > 0).map((device) => {
    const other = possiblePlan(data, plan.kind, plan.model, device, same);
    return other && other.values.gpus_needed > 0 ? [`${pointed(other.values.gpus_needed, 0)} x ${device.name}`] : [];
  });
  return counts.flat().length > 0 ? `Weights in ${same.weights} and caches would fit into ${counts.flat().join(', ')}.` : '';
}

export function drawCharts(data, plan, given) {
  const bars = kBars[plan.kind].map((bar) => barFigure(bar, plan.values)).filter((each) => each !== null);
  const others = plan.kind === 'memory' ? [h('p', { id: 'others', class: 'panel', text: othersText(data, plan, given) })] : [];
  by('charts').replaceChildren(...bars, ...others, ...(plan.kind === 'serve' ? speedFigures(data, plan, given) : []));
}

// The planner's page: puts the parts together.

import { announce, banner, by, copyText, h } from './dom.js';
import { drawCharts } from './charts.js';
import { Controls } from './controls.js';
import { Behind, Lines } from './lines.js';
import { makePlan, readData } from './plan.js';
import { PlanError, showValue } from './show.js';
import { commandOf, fromFragment, standardState, toFragment } from './state.js';
import { themeChoice } from './theme_choice.js';

const kStore_ms = 250;
const kAnnounce_ms = 1200;

// What stands at the top; small windows show the first four.
const kFigures = {
  memory: [
    ['needed_bytes', 'Needed to serve'], ['rank_bytes', 'Needed to train, of a GPU'], ['fits', 'Fits, to serve'], ['training_fits', 'Fits, to train'],
    ['parameters', 'Parameters'], ['active_parameters', 'Active for a token'], ['cache_token_bytes', 'Cache of a token']
  ],
  train: [
    ['days', 'Time'], ['dollars', 'Price'], ['tokens_per_s', 'Speed'], ['mfu', 'MFU'], ['gpu_hours', 'GPU hours'], ['bubble_share', 'Bubble'],
    ['exposed_share', 'Exposed communication']
  ],
  serve: [
    ['tpot_s', 'Time per output token'], ['first_token_s', 'Time to the first token'], ['decode_node', 'Output of a node'], ['prefill_node', 'Input of a node'],
    ['price_output_s', '10^6 output tokens'], ['price_input_s', '10^6 input tokens'], ['fits', 'The batch fits'], ['host_tokens_s', 'A host']
  ]
};

const data = readData(by('data').textContent);
let state = standardState(data);
const kFirst = toFragment(data, state);  // what an address without a fragment means
let frame = 0;
let shown = '';  // kind of the plan on the page
let stored = '';  // the fragment that was written last
let store_timer = 0;
let announce_timer = 0;
let last_said = '';

function change() {
  frame ||= requestAnimationFrame(draw);
}

const given = () => state.given[state.kind];
const controls = new Controls(data, {
  give(name, text) {
    given()[name] = text;
    change();
  },
  withdraw(name) {
    delete given()[name];
    change();
  }
});
const behind = new Behind(data);
const lines = new Lines(data, behind);

// ---- Drawing

function draw() {
  frame = 0;
  const model = data.models.find(({ name }) => name === state.model);
  const device = data.devices.find(({ name }) => name === state.gpu);
  let plan = null;
  let error = '';
  let inputs;
  try {
    plan = makePlan(data, state.kind, model, device, given());
    inputs = plan.inputs;
  } catch (thrown) {
    if (!(thrown instanceof PlanError)) throw thrown;
    error = thrown.message;
    inputs = thrown.inputs;
  }
  for (const radio of document.querySelectorAll('input[name=kind]')) radio.checked = radio.value === state.kind;
  by('model').value = state.model;
  by('gpu').value = state.gpu;
  controls.draw({ kind: state.kind, inputs, given: given(), error, model_context: model.values.model_context });
  by('reset').disabled = Object.keys(given()).length === 0;
  by('command').textContent = commandOf(data, state);
  by('error').hidden = error === '';
  if (by('error').textContent !== error) by('error').textContent = error;
  // While a slider passes what cannot be, the page stays as it was.
  const stale = plan === null && shown === state.kind;
  by('stale').hidden = !stale;
  document.body.dataset.stale = String(stale);
  by('plan').inert = stale;
  by('plan').hidden = by('summary').querySelector('dl').hidden = plan === null && !stale;
  if (!stale) by('what').textContent = `${model.name} on ${device.title}`;
  document.body.dataset.drawn = toFragment(data, state);
  if (plan) drawPlan(plan);
  shown = plan || stale ? state.kind : '';
  store();
}

function drawPlan(plan) {
  const figures = kFigures[plan.kind].filter(([name]) => plan.lines.get(name)?.shown).map(([name, title]) => {
    const { line, value } = plan.lines.get(name);
    return { name, title, text: showValue(value, line.unit) };
  });
  by('summary').querySelector('dl').replaceChildren(...figures.map(({ name, title, text }) => h('div', { data: { figure: name } }, h('dt', { text: title }), h('dd', { text }))));
  by('advice').hidden = plan.advice.length === 0;
  by('advice').replaceChildren(...plan.advice.map((text) => h('li', { text })));
  drawCharts(data, plan, given());
  lines.draw(plan);
  by('sureness').textContent = data.sureness[plan.kind];
  behind.draw(plan);
  say(figures.map(({ title, text }) => `${title}: ${text}`).join('; '));
}

// Once the user rests.
function say(text) {
  last_said ||= text;
  clearTimeout(announce_timer);
  announce_timer = setTimeout(() => {
    if (text !== last_said) announce(text);
    last_said = text;
  }, kAnnounce_ms);
}

// ---- The address

function store() {
  clearTimeout(store_timer);
  store_timer = setTimeout(() => {
    const fragment = toFragment(data, state);
    // Another address, which was written there meanwhile, is about to be read.
    if (location.hash !== stored || fragment === stored || (stored === '' && fragment === kFirst)) return;
    history.replaceState(null, '', fragment);
    stored = location.hash;
  }, kStore_ms);
}

function restore() {
  if (location.hash === stored) return;
  stored = location.hash;
  const read = fromFragment(data, location.hash, state);
  state = read.state;
  banner('unknown', read.unknown.length > 0 ? `The link names what this page does not have: ${read.unknown.join(', ')}` : '');
  change();
}

// ---- Controls

function fill() {
  by('version').textContent = data.version;
  by('model').replaceChildren(...data.models.map(({ name }) => h('option', { value: name, text: name })));
  const group = (label, of) => (of.length > 0 ? [h('optgroup', { label }, ...of.map(({ name, title }) => h('option', { value: name, text: title })))] : []);
  by('gpu').replaceChildren(...group('GPUs', data.devices.filter(({ is_host }) => !is_host)), ...group('Hosts', data.devices.filter(({ is_host }) => is_host)));
}

for (const radio of document.querySelectorAll('input[name=kind]')) {
  radio.addEventListener('change', () => {
    state.kind = radio.value;
    change();
  });
}
by('model').addEventListener('change', () => {
  state.model = by('model').value;
  change();
});
by('gpu').addEventListener('change', () => {
  state.gpu = by('gpu').value;
  change();
});
by('reset').addEventListener('click', () => {
  state.given[state.kind] = {};
  change();
});
by('link').addEventListener('click', () => {
  const address = new URL(location.href);
  address.hash = toFragment(data, state);
  copyText(address.href);
});
by('copy').addEventListener('click', () => copyText(by('command').textContent));
addEventListener('hashchange', restore);
document.querySelector('.skip').addEventListener('click', (event) => {  // the fragment is the plan's
  event.preventDefault();
  by('results').focus();
});

fill();
themeChoice(() => {});
if (location.hash === '') change();
else restore();

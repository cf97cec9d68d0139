// The planner's page: puts the parts together.

import { announce, banner, by, copyText, h } from './dom.js';
import { drawCharts } from './charts.js';
import { Controls } from './controls.js';
import { drawBehind, Lines } from './lines.js';
import { makePlan, readData } from './plan.js';
import { PlanError, showValue } from './show.js';
import { commandOf, fromFragment, standardState, toFragment } from './state.js';
import { themeChoice } from './theme_choice.js';

const kStore_ms = 250;
const kAnnounce_ms = 1200;

// What stands at the top.
const kFigures = {
  memory: ['parameters', 'active_parameters', 'cache_token_bytes', 'needed_bytes', 'fits', 'rank_bytes', 'training_fits'],
  train: ['tokens_per_s', 'mfu', 'days', 'gpu_hours', 'dollars'],
  serve: ['decode_node', 'prefill_node', 'tpot_s', 'first_token_s', 'price_input_s', 'price_output_s', 'fits']
};

const data = readData(by('data').textContent);
let state = standardState(data);
let frame = 0;
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
const lines = new Lines(data);

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
  by('plan').hidden = plan === null;
  document.body.dataset.drawn = toFragment(data, state);
  if (plan) drawPlan(plan);
  store();
}

function drawPlan(plan) {
  const figures = kFigures[plan.kind].map((name) => plan.lines.get(name)).filter((each) => each?.shown);
  by('what').textContent = `${plan.model.name} on ${plan.device.title}`;
  by('summary').querySelector('dl').replaceChildren(...figures.map(({ line, value }) => h(
    'div', {}, h('dt', { text: line.unit === 'yes' || line.title.length < 8 ? `${line.title}, ${line.section.toLowerCase()}` : line.title }), h('dd', { text: showValue(value, line.unit) }))));
  by('advice').hidden = plan.advice.length === 0;
  by('advice').replaceChildren(...plan.advice.map((text) => h('li', { text })));
  drawCharts(data, plan, given());
  lines.draw(plan);
  by('sureness').textContent = data.sureness[plan.kind];
  drawBehind(data, plan);
  say(figures.map(({ line, value }) => `${line.title}: ${showValue(value, line.unit)}`).join('; '));
}

// Once the user rests.
function say(text) {
  clearTimeout(announce_timer);
  announce_timer = setTimeout(() => {
    if (last_said !== '' && text !== last_said) announce(text);
    last_said = text;
  }, kAnnounce_ms);
}

// ---- The address

function store() {
  clearTimeout(store_timer);
  store_timer = setTimeout(() => {
    const fragment = toFragment(data, state);
    if (fragment === stored || (stored === '' && location.hash === '' && Object.keys(given()).length === 0)) return;
    stored = fragment;
    history.replaceState(null, '', fragment);
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

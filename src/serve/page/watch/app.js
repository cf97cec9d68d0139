// The page of fathom watch: puts the parts together.

import { apiKey } from '/ask.js';
import { banner, by, h, number } from '/dom.js';
import { askForKey } from '/key.js';
import { themeChoice } from '/theme_choice.js';
import { BalanceView } from './balance.js';
import { short } from './formats.js';
import { Plot } from './plot.js';
import { Reader } from './reader.js';
import { RunData } from './run_data.js';
import { RunCards, Samples, SkippedSteps } from './runs.js';
import { sources } from './sources.js';
import { View } from './view.js';

const kTick_ms = 1000;
const kParts = { all: null, half: 0.5, tenth: 0.1, hundredth: 0.01 };

let frame = 0;
let drawn = -1;  // version of the data
let chosen = 0;  // run whose balance and samples are shown

// ---- Drawing

const view = new View({ changed: () => draw(true), pointed: () => plots.forEach((plot) => plot.drawOver()) });
const chosenRun = () => view.runs[chosen];
const plots = sources(view, chosenRun).map((source) => new Plot(source, view));
const cards = new RunCards(by('runs'), view, (run) => {
  run.hidden = !run.hidden;
  draw(true);
});
const skipped = new SkippedSteps(by('skips'), view);
const balance = new BalanceView(view, chosenRun);
const samples = new Samples(by('samples'), chosenRun);
by('plots').append(...plots.map(({ element }) => element));

// With the next frame; `all`: whether anything is new or not.
function draw(all = false) {
  if (all) drawn = -1;
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    cards.draw();
    drawControls();
    if (drawn === RunData.version) return;
    drawn = RunData.version;
    for (const plot of plots) plot.draw();
    balance.draw();
    samples.draw();
    skipped.draw();
    drawTitle();
  });
}

function drawControls() {
  by('controls').hidden = by('keys').hidden = !view.runs.some(({ data }) => data.n_rows > 0);
  for (const radio of document.querySelectorAll('input[name=axis]')) radio.checked = radio.value === view.axis;
  const text = view.window === 1 ? 'off' : `${number(view.window)} steps`;
  by('window-text').textContent = text;
  by('window').setAttribute('aria-valuetext', text);
  const { part } = view;
  const known = Object.keys(kParts).find((name) => kParts[name] === (part === null ? null : part.last));
  by('part').value = known ?? 'chosen';
  by('part').querySelector('[value=chosen]').hidden = known !== undefined;
  by('whole').disabled = part === null;
}

function drawTitle() {
  const run = view.shown().find(({ data }) => data.n_rows > 0);
  if (!run) return;
  const { last_step, steps, n_rows } = run.data;
  document.title = `${number(last_step)}${steps > 0 ? ' / ' + number(steps) : ''} · loss ${short(run.data.smooth('loss', view.window).values[n_rows - 1])} · ${run.name} · fathom watch`;
}

function choose(index) {
  chosen = index;
  for (const select of document.querySelectorAll('select.which-run')) select.value = String(index);
  balance.stop();
  draw(true);
}

// ---- The server

const reader = new Reader({
  meet(list) {
    by('version').textContent = String(list.version);
    view.runs = list.runs.map(({ name, path }, index) => {
      const run = { index, name: String(name), path: String(path), data: new RunData(), hidden: false, server: {}, seen_ms: 0 };
      run.share = () => reader.share(index);
      run.age = () => (run.server.age_s ?? 0) + (performance.now() - run.seen_ms) / 1000;
      return run;
    });
    chosen = 0;
    cards.build();
    for (const select of document.querySelectorAll('select.which-run')) {
      select.replaceChildren(...view.runs.map(({ name, index }) => h('option', { value: String(index), text: name })));
      select.closest('.which').hidden = view.runs.length < 2;
    }
    return view.runs;
  },
  told(states) {
    states.forEach((state, i) => {
      const run = view.runs[i];
      if (run.server === state) return;
      run.server = state;
      run.seen_ms = performance.now();
    });
    draw();
  },
  failed(error) {
    if (error?.status === 401) return askForKey(apiKey() ? error.message : '', () => reader.retry());
    banner('server', error === null ? '' : error.status === 0 ? 'fathom watch cannot be reached: what is seen here is what it last told.' : error.message);
  }
});

// ---- Controls

const windowOf = (value) => Math.round(10 ** Number(value));

for (const radio of document.querySelectorAll('input[name=axis]')) radio.addEventListener('change', () => view.setAxis(radio.value));
by('window').value = String(Math.log10(view.window));
by('window').addEventListener('input', () => view.setWindow(windowOf(by('window').value)));
by('part').addEventListener('change', () => view.showLast(kParts[by('part').value] ?? null));
by('whole').addEventListener('click', () => view.zoom(null));
for (const select of document.querySelectorAll('select.which-run')) select.addEventListener('change', () => choose(Number(select.value)));
setInterval(() => { if (!document.hidden) draw(); }, kTick_ms);  // ages grow

themeChoice(() => {
  view.readColors();
  balance.repaint();
  draw(true);
});
reader.retry();

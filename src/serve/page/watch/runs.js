// The runs by name: how far each is, its numbers, and whether it still goes on.

import { announce, by, h, iconButton, number } from '/dom.js';
import { about, compact, fixed, percent, span } from './formats.js';

const kQuiet_s = 60;      // without a new step, and
const kQuietSteps = 10;   // so many steps' time: nothing may run any more
const kMostReasons = 100;

// {state, text} of a run: 'waiting', 'reading', 'running', 'quiet', 'finished', 'failed'.
export function stateOf(run) {
  const { data, server } = run;
  if (server.error) return { state: 'failed', text: server.error };
  if (!server.there && data.n_rows === 0) return { state: 'waiting', text: 'waiting for the log' };
  if (!server.there) return { state: 'quiet', text: 'the log is gone' };
  if (run.share() < 0.995 && server.bytes > 1e6) return { state: 'reading', text: `reading, ${Math.floor(100 * run.share())} %` };
  if (data.n_rows === 0) return { state: 'waiting', text: data.n_bad > 0 ? 'no step in the log' : 'waiting for the first step' };
  if (data.steps > 0 && data.last_step >= data.steps) return { state: 'finished', text: 'finished' };
  const age = run.age();
  if (age > Math.max(kQuiet_s, kQuietSteps * (data.step_seconds || 0))) return { state: 'quiet', text: `no new step since ${about(age)}` };
  return { state: 'running', text: 'running' };
}

// [name, text, title] of what is told of a run.
function numbersOf(run, view, { state }) {
  const { data } = run;
  const n = data.n_rows;
  const smooth = (name) => (n > 0 ? data.smooth(name, view.window).values[n - 1] : NaN);
  const all = [['Loss', fixed(4)(smooth('loss')), view.window > 1 ? `smoothed over ${view.window} steps` : '']];
  const val = data.columns.val_loss.before(n - 1);
  if (val >= 0) all.push(['Held-out', fixed(4)(data.columns.val_loss.values[val]), `at step ${number(data.columns.step.values[val])}`]);
  all.push(['Tokens', compact(n > 0 ? data.columns.tokens.values[n - 1] : NaN), 'learned from so far']);
  all.push(['Tokens/s', compact(Math.round(smooth('tokens_per_s'))), '']);
  if (data.has('mfu')) all.push(['MFU', percent(smooth('mfu')), 'model FLOPs utilization']);
  all.push(['MaxVio', fixed(3)(data.latest('max_violation')), 'of the last step, worst layer']);
  all.push(['Time', n > 0 ? span(data.columns.time.values[n - 1]) : '–', 'of training so far']);
  const left = state === 'running' && data.steps > 0 ? (data.steps - data.last_step) * data.step_seconds : NaN;
  if (Number.isFinite(left)) all.push(['Left', about(left), 'at the speed of the last hundred steps']);
  if (state === 'running') all.push(['Last step', run.age() < 1.5 ? 'now' : `${span(Math.round(run.age()))} ago`, '']);
  if (data.n_skipped > 0) all.push(['Skipped', number(data.n_skipped), 'steps that were not taken']);
  return all;
}

export class RunCards {
  #list;
  #view;
  #cards = [];

  constructor(list, view, toggle) {
    this.#list = list;
    this.#view = view;
    this.toggle = toggle;
  }

  build() {
    this.#cards = this.#view.runs.map((run) => {
      const dot = h('span', { class: 'dot', 'aria-hidden': 'true' });
      const several = this.#view.runs.length > 1;
      const name = several ? h('button', { type: 'button', class: 'run-toggle', 'aria-pressed': 'true', title: 'Show or hide this run', on: { click: () => this.toggle(run) } },
                               dot, h('span', { class: 'run-name', text: run.name }))
                           : h('span', { class: 'run-title' }, dot, h('span', { class: 'run-name', text: run.name }));
      const card = {
        run, dot, name, said: '',
        path: h('span', { class: 'path', text: run.path }), state: h('span', { class: 'state' }), bar: h('progress', { 'aria-label': `${run.name}: steps done` }),
        steps: h('span', { class: 'steps' }), bad: h('span', { class: 'hint' }), numbers: h('dl', { class: 'numbers' })
      };
      card.element = h('article', { class: 'run', 'aria-label': run.name, data: { run: String(run.index) } },
                       h('div', { class: 'run-head' }, h('h2', {}, name), card.path, card.state),
                       h('div', { class: 'progress' }, card.bar, card.steps, card.bad), card.numbers);
      return card;
    });
    this.#list.classList.toggle('runs-many', this.#cards.length > 2);
    this.#list.replaceChildren(...this.#cards.map(({ element }) => element));
  }

  draw() {
    for (const card of this.#cards) {
      const { run } = card;
      const { data } = run;
      const now = stateOf(run);
      card.element.style.setProperty('--color', this.#view.color(run));
      card.element.dataset.state = now.state;
      card.element.dataset.hidden = String(run.hidden);
      if (card.name.hasAttribute('aria-pressed')) card.name.setAttribute('aria-pressed', String(!run.hidden));
      card.state.textContent = now.text;
      if (card.said && card.said !== now.state && now.state !== 'reading') announce(`${run.name}: ${now.text}`);
      card.said = now.state;
      card.bar.hidden = data.steps === 0;
      card.bar.max = Math.max(1, data.steps);
      card.bar.value = data.last_step;
      card.steps.textContent = data.n_rows === 0 ? '' : data.steps > 0
        ? `step ${number(data.last_step)} of ${number(data.steps)} (${number(100 * data.last_step / data.steps, data.steps > 1000 ? 1 : 0)} %)`
        : `step ${number(data.last_step)}`;
      card.bad.textContent = data.n_bad > 0 ? `${number(data.n_bad)} ${data.n_bad === 1 ? 'line is no step' : 'lines are no steps'}` : '';
      const numbers = data.n_rows > 0 ? numbersOf(run, this.#view, now) : [];
      if (card.numbers.children.length !== numbers.length) {
        card.numbers.replaceChildren(...numbers.map(() => h('div', {}, h('dt'), h('dd'))));
      }
      numbers.forEach(([label, text, title], i) => {
        const [dt, dd] = card.numbers.children[i].children;
        if (dt.textContent !== label) {
          dt.textContent = label;
          card.numbers.children[i].dataset.number = label;
          card.numbers.children[i].title = title;
        }
        if (dd.textContent !== text) dd.textContent = text;
      });
    }
  }
}

// Steps that were skipped, the newest first.
export class SkippedSteps {
  #shown = '';

  constructor(section, view) {
    Object.assign(this, { section, view });
  }

  draw() {
    const runs = this.view.shown().filter(({ data }) => data.n_skipped > 0);
    this.section.hidden = runs.length === 0;
    const now = runs.map(({ index, data }) => `${index}:${data.n_skipped}:${data.skips.last?.step}`).join();
    if (now === this.#shown) return;
    this.#shown = now;
    const all = runs.flatMap((run) => run.data.skips.list.slice(-kMostReasons).map((skip) => ({ run, ...skip })));
    all.sort((a, b) => b.step - a.step);
    const total = runs.reduce((sum, { data }) => sum + data.n_skipped, 0);
    this.section.querySelector('summary').textContent = `Skipped steps (${number(total)})`;
    this.section.querySelector('ul').replaceChildren(...all.slice(0, kMostReasons).map(({ run, step, reason }) => {
      const name = this.view.runs.length > 1 ? `${run.name}, ` : '';
      return h('li', {}, h('b', { text: `${name}step ${number(step)}` }), h('span', { class: 'untrusted', text: reason }));
    }));
  }
}

// Texts that the run drew: the newest, and older ones when asked for.
export class Samples {
  #step = null;  // null: the newest
  #shown = null;

  constructor(section, run) {
    Object.assign(this, { section, run });
    this.select = by('sample-step');
    this.text = section.querySelector('pre');
    this.select.addEventListener('change', () => this.#choose(this.select.selectedIndex));
    this.older = iconButton('left', 'Older sample', () => this.#choose(this.select.selectedIndex + 1));
    this.newer = iconButton('right', 'Newer sample', () => this.#choose(this.select.selectedIndex - 1));
    this.select.before(this.older);
    this.select.after(this.newer);
  }

  get #list() { return (this.run()?.data.samples.list ?? []).toReversed(); }

  #choose(i) {
    const list = this.#list;
    if (i < 0 || i >= list.length) return;
    this.#step = i === 0 ? null : list[i].step;
    this.draw();
  }

  draw() {
    const list = this.#list;
    this.section.hidden = list.length === 0;
    if (list.length === 0) return;
    const options = this.select.options;
    if (options.length !== list.length || options[0].value !== String(list[0].step)) {
      this.select.replaceChildren(...list.map(({ step }, i) => h('option', { value: String(step), text: `step ${number(step)}${i === 0 ? ' (latest)' : ''}` })));
    }
    const i = Math.max(0, list.findIndex(({ step }) => step === this.#step));
    if (this.#step !== null && list[i].step !== this.#step) this.#step = null;
    this.select.selectedIndex = i;
    this.newer.disabled = i === 0;
    this.older.disabled = i === list.length - 1;
    if (this.#shown === list[i]) return;
    this.#shown = list[i];
    this.text.textContent = list[i].text;
  }
}

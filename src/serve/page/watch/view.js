// What all plots share: the runs, the axis along which they are drawn, the stretch of it that is seen, the crosshair, smoothing.

import { lowerBound } from './columns.js';
import { nearestRow } from './traces.js';

const kKey = 'fathom.watch';
const kAxes = ['step', 'tokens', 'time'];
const kColors = 8;  // of runs, in style.css
const kLeastShare = 1e-7;  // of the whole run, that can be seen alone

export class View {
  runs = [];  // {index, name, data, hidden}
  axis = 'step';
  at = null;  // of the crosshair, on the axis
  window = 10;  // steps over which lines are smoothed; 1: none
  colors = {};
  #part = null;  // null: all; {last: share}: the end of it; {from, to}
  #logs = new Set();
  #changed;
  #pointed;

  constructor({ changed, pointed }) {
    this.#changed = changed;
    this.#pointed = pointed;
    this.#restore();
    this.readColors();
  }

  shown() { return this.runs.filter((run) => !run.hidden); }
  color(run) { return this.colors.runs[run.index % kColors]; }
  places(run) { return run.data.columns[this.axis].values; }

  readColors() {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue('--' + name).trim();
    this.colors = {
      runs: Array.from({ length: kColors }, (_, i) => color(`series-${i + 1}`)),
      under: color('load-under'), even: color('load-even'), over: color('load-over')
    };
    for (const name of ['page', 'line', 'muted', 'text', 'accent', 'danger']) this.colors[name] = color(name);
  }

  // ---- The stretch that is seen

  // Of all that there is; null: nothing.
  all() {
    const runs = this.shown().filter(({ data }) => data.n_rows > 0);
    if (runs.length === 0) return null;
    const from = this.axis === 'step' ? Math.min(...runs.map((run) => this.places(run)[0])) : 0;
    const to = Math.max(...runs.map((run) => this.places(run)[run.data.n_rows - 1]));
    return { from, to: to > from ? to : from + 1 };
  }

  span() {
    const all = this.all();
    if (!all || !this.#part) return all;
    if (this.#part.last) return { from: all.to - (all.to - all.from) * this.#part.last, to: all.to };
    return this.#part;
  }

  get part() { return this.#part; }

  showLast(share) {
    this.#part = share === null ? null : { last: share };
    this.#changed();
  }

  // From here to there; null: all. What reaches to the end follows it.
  zoom(from, to) {
    const all = this.all();
    if (!all) return;
    const length = all.to - all.from;
    if (from === null || to - from >= length) {
      this.#part = null;
    } else {
      const width = Math.max(to - from, length * kLeastShare);
      const left = Math.min(Math.max(from, all.from), all.to - width);
      this.#part = left + width >= all.to - length * 1e-3 ? { last: width / length } : { from: left, to: left + width };
    }
    this.#changed();
  }

  setAxis(axis) {
    if (!kAxes.includes(axis) || axis === this.axis) return;
    const part = this.#part;
    // The stretch and the crosshair stay on the steps where they were, of the longest run.
    const longest = this.shown().reduce((best, run) => (run.data.n_rows > (best?.data.n_rows ?? 0) ? run : best), null);
    const rowAt = (x) => Math.min(longest.data.n_rows - 1, lowerBound(this.places(longest), 0, longest.data.n_rows, x));
    const rows = part?.to !== undefined && longest ? [rowAt(part.from), rowAt(part.to)] : null;
    const row = this.at !== null && longest ? rowAt(this.at) : null;
    this.axis = axis;
    this.at = row === null ? null : this.places(longest)[row];
    if (rows) {
      const [from, to] = rows.map((each) => this.places(longest)[each]);
      this.#part = to > from ? { from, to } : null;
    }
    this.#store();
    this.#changed();
  }

  // The next place in a direction: a row further, or `pixel` where rows are closer.
  neighbour(at, direction, pixel) {
    const run = this.shown().find(({ data }) => data.n_rows > 0);
    const further = at + direction * pixel;
    if (!run) return further;
    const x = this.places(run);
    const row = nearestRow(x, run.data.n_rows, at, Infinity) + direction;
    return row >= 0 && row < run.data.n_rows && Math.abs(x[row] - at) > pixel ? x[row] : further;
  }

  point(at) {
    if (this.at === at && at === null) return;
    this.at = at;
    this.#pointed();
  }

  // ---- What is kept in the browser

  setWindow(window) {
    this.window = window;
    this.#store();
    this.#changed();
  }

  isLog(plot) { return this.#logs.has(plot); }
  toggleLog(plot) {
    if (!this.#logs.delete(plot)) this.#logs.add(plot);
    this.#store();
    this.#changed();
  }

  #store() {
    try {
      localStorage.setItem(kKey, JSON.stringify({ axis: this.axis, window: this.window, logs: [...this.#logs] }));
    } catch {
      // for this visit at least
    }
  }

  #restore() {
    try {
      const kept = JSON.parse(localStorage.getItem(kKey)) ?? {};
      if (kAxes.includes(kept.axis)) this.axis = kept.axis;
      if (Number.isInteger(kept.window) && kept.window >= 1 && kept.window <= 10000) this.window = kept.window;
      if (Array.isArray(kept.logs)) this.#logs = new Set(kept.logs.filter((each) => typeof each === 'string'));
    } catch {
      // none, or not ours
    }
  }
}

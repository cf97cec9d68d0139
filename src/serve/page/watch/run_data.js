// What a run's log says, as columns: a row a step. Lines come from a file that anybody may have written: what is no step is
// counted and passed over, what is no number is a gap.

import { Column, Smoothed, Snapshots } from './columns.js';

const kValues = ['loss', 'mtp_loss', 'lr', 'grad_norm', 'tokens_per_s', 'mfu', 'max_violation', 'val_loss', 'val_loss_average', 'val_max_violation',
                 'reward', 'val_reward', 'val_exact', 'length', 'length_max', 'entropy', 'kl'];  // fathom grpo's
const kSpoiled = ['loss', 'mtp_loss', 'grad_norm'];  // of a step that was not taken: of no batch that was learned from
const kMostLayers = 1024;
const kMostExperts = 4096;
const kMostReason = 300;  // characters
const kMostFloat = 3.4e38;

const numberOr = (value, other) => (typeof value === 'number' && Math.abs(value) <= kMostFloat ? value : other);
const isCount = (value) => Number.isSafeInteger(value) && value >= 0;

// [layers][experts] as one array, or null where it is not that.
function checkedLoads(loads) {
  if (!Array.isArray(loads) || loads.length === 0 || loads.length > kMostLayers) return null;
  const n_experts = Array.isArray(loads[0]) ? loads[0].length : 0;
  if (n_experts === 0 || n_experts > kMostExperts) return null;
  const counts = new Float32Array(loads.length * n_experts);
  for (const [l, row] of loads.entries()) {
    if (!Array.isArray(row) || row.length !== n_experts) return null;
    for (const [e, n] of row.entries()) {
      if (!(numberOr(n, -1) >= 0)) return null;
      counts[l * n_experts + e] = n;
    }
  }
  return { n_layers: loads.length, n_experts, counts };
}

// MaxVio of each layer: the busiest expert's load beside the mean, less one.
function violationsOf({ n_layers, n_experts, counts }) {
  return Float32Array.from({ length: n_layers }, (_, l) => {
    const row = counts.subarray(l * n_experts, (l + 1) * n_experts);
    const total = row.reduce((sum, n) => sum + n, 0);
    return total > 0 ? Math.max(...row) * n_experts / total - 1 : 0;
  });
}

// [least, greatest] of each layer, one behind the other, or null.
function checkedRanges(ranges) {
  if (!Array.isArray(ranges) || ranges.length === 0 || ranges.length > kMostLayers) return null;
  const ends = new Float32Array(ranges.length * 2);
  for (const [l, range] of ranges.entries()) {
    if (!Array.isArray(range) || range.length !== 2) return null;
    for (const end of [0, 1]) {
      ends[2 * l + end] = numberOr(range[end], NaN);
      if (Number.isNaN(ends[2 * l + end])) return null;
    }
  }
  return ends;
}

export class RunData {
  static version = 0;  // grows with every change of any run

  constructor() { this.clear(); }

  clear() {
    this.columns = { step: new Column(Float64Array), tokens: new Column(Float64Array), time: new Column(Float64Array) };
    for (const name of kValues) this.columns[name] = new Column();
    this.loads = new Snapshots(2000, 8e6);
    this.biases = new Snapshots(4000, 4e6);
    this.samples = new Snapshots(300, 8e6);
    this.skips = new Snapshots(2000, 1e6);
    this.n_skipped = 0;
    this.n_bad = 0;        // lines that are no steps
    this.steps = 0;        // that the run is to have; 0: the log does not say
    this.step_tokens = 0;  // of the last step that was taken
    this.seconds = NaN;    // as the log counts them
    this.smoothed = new Map();
    ++RunData.version;
  }

  get n_rows() { return this.columns.step.length; }
  get last_step() { return this.n_rows > 0 ? this.columns.step.values[this.n_rows - 1] : 0; }
  has(name) { return this.columns[name].before(this.n_rows - 1) >= 0; }
  // The last number of a column; NaN: there is none.
  latest(name) {
    const row = this.columns[name].before(this.n_rows - 1);
    return row >= 0 ? this.columns[name].values[row] : NaN;
  }
  smooth(name, window) {
    const kept = this.smoothed.get(name);
    const one = kept?.window === window ? kept.one : new Smoothed(this.columns[name], window);
    this.smoothed.set(name, { window, one });
    return one.follow();
  }

  // Whole lines.
  add(text) {
    for (let begin = 0; begin < text.length;) {
      let end = text.indexOf('\n', begin);
      if (end < 0) end = text.length;
      this.#addLine(text.slice(begin, end));
      begin = end + 1;
    }
    ++RunData.version;
  }

  #addLine(line) {
    let o = null;
    try {
      o = JSON.parse(line);
    } catch {
      // no JSON, or deeper than the parser goes
    }
    if (o === null || typeof o !== 'object' || !isCount(o.step)) {
      this.n_bad += line.trim() === '' ? 0 : 1;
      return;
    }
    // A step that is told again takes the place of what was told from there on.
    if (this.n_rows > 0 && o.step <= this.last_step) this.#truncate(o.step);
    if (isCount(o.steps)) this.steps = o.steps;
    const row = this.n_rows;
    const skipped = typeof o.skipped === 'string';
    this.columns.step.push(o.step);
    this.#addPlace(o, row);
    for (const name of kValues) this.columns[name].push(skipped && kSpoiled.includes(name) ? NaN : numberOr(o[name], NaN));
    if (skipped) {
      ++this.n_skipped;
      const reason = o.skipped.slice(0, kMostReason);
      this.skips.push({ row, step: o.step, reason, size: reason.length });
    }
    const loads = checkedLoads(o.expert_load);
    if (loads) this.loads.push({ row, step: o.step, ...loads, violations: violationsOf(loads), size: loads.counts.length });
    const ends = checkedRanges(o.bias_range);
    if (ends) this.biases.push({ row, step: o.step, ends, size: ends.length });
    if (typeof o.sample === 'string') this.samples.push({ row, step: o.step, text: o.sample, size: o.sample.length });
  }

  // Tokens and time until the step; neither falls, whatever the log says.
  #addPlace(o, row) {
    const { tokens, time } = this.columns;
    const tokens_before = row > 0 ? tokens.values[row - 1] : 0;
    const time_before = row > 0 ? time.values[row - 1] : 0;
    const now = Math.max(tokens_before, numberOr(o.tokens, tokens_before));
    if (now > tokens_before) this.step_tokens = now - tokens_before;
    tokens.push(now);
    const seconds = numberOr(o.seconds, NaN);
    const speed = numberOr(o.tokens_per_s, 0);
    let passed = speed > 0 ? this.step_tokens / speed : 0;  // where the log has no times, that of the steps alone
    if (row === 0 && seconds >= 0) passed = seconds;
    else if (seconds >= this.seconds) passed = seconds - this.seconds;
    this.seconds = seconds;
    time.push(time_before + passed);
  }

  #truncate(step) {
    const { values } = this.columns.step;
    let rows = this.n_rows;
    while (rows > 0 && values[rows - 1] >= step) --rows;
    for (const column of Object.values(this.columns)) column.truncate(rows);
    for (const each of [this.loads, this.biases, this.samples, this.skips]) each.truncate(rows);
    this.n_skipped = this.skips.list.length + this.skips.n_dropped;
    this.seconds = NaN;
    this.step_tokens = rows > 0 ? this.columns.tokens.values[rows - 1] - (rows > 1 ? this.columns.tokens.values[rows - 2] : 0) : 0;
  }

  // Seconds a step, over the last hundred.
  get step_seconds() {
    const n = this.n_rows;
    const { values } = this.columns.time;
    const from = Math.max(0, n - 101);
    return n > from + 1 ? (values[n - 1] - values[from]) / (this.last_step - this.columns.step.values[from]) : NaN;
  }
}

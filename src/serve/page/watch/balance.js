// How the tokens of a step were spread over the experts of each MoE layer: a row a layer, a column an expert, coloured by the load
// beside the even one; with a slider over the steps that the log has this of.

import { by, h, mixed, number } from '/dom.js';
import { fixed, short } from './formats.js';

const kGutter_px = 34;
const kMostCell_px = 120;
const kLeastCell_px = 4;  // narrower ones scroll
const kDoublings = 2;     // from the even load, at which the colours end
const kShades = 32;       // to either side

// Of a layer's loads: the busiest and the idlest beside the even one, and how many got nothing.
export function spreadOf(counts, begin, n) {
  let total = 0;
  let most = begin;
  let least = begin;
  let unused = 0;
  for (let i = begin; i < begin + n; ++i) {
    total += counts[i];
    if (counts[i] > counts[most]) most = i;
    if (counts[i] < counts[least]) least = i;
    if (counts[i] === 0) ++unused;
  }
  const even = total / n;
  const beside = (i) => (even > 0 ? counts[i] / even : 0);
  return { even, most: most - begin, least: least - begin, over: beside(most), under: beside(least), unused };
}

export class BalanceView {
  #view;
  #run;
  #step = null;   // null: the newest
  #shown = null;  // a snapshot
  #cell = null;   // {l, e}
  #width = 0;
  #height = 0;
  #playing = 0;

  constructor(view, run) {
    this.#view = view;
    this.#run = run;
    const canvas = by('load-canvas');
    new ResizeObserver(() => this.#paint()).observe(by('load-scroll'));
    canvas.addEventListener('pointermove', (event) => this.#point(event));
    canvas.addEventListener('pointerdown', (event) => this.#point(event));
    canvas.addEventListener('keydown', (event) => this.#key(event));
    by('load-time').addEventListener('input', () => {
      this.stop();
      const list = this.#list;
      const i = Number(by('load-time').value);
      this.#step = i >= list.length - 1 ? null : list[i].step;
      this.draw();
    });
    by('load-play').addEventListener('click', () => (this.#playing ? this.stop() : this.#play()));
  }

  get #list() { return this.#run()?.data.loads.list ?? []; }

  draw() {
    const list = this.#list;
    by('balance').hidden = list.length === 0;
    if (list.length === 0) return;
    const found = this.#step === null ? -1 : list.findIndex(({ step }) => step === this.#step);
    const i = found < 0 ? list.length - 1 : found;
    if (found < 0) this.#step = null;
    const slider = by('load-time');
    slider.max = String(list.length - 1);
    slider.value = String(i);
    slider.disabled = by('load-play').disabled = list.length < 2;
    const label = `step ${number(list[i].step)}${i === list.length - 1 ? ' (latest)' : ''}`;
    slider.setAttribute('aria-valuetext', label);
    by('load-step').textContent = label;
    if (this.#shown === list[i]) return;
    this.#shown = list[i];
    this.#tell();
    this.#table();
    this.#paint();
  }

  repaint() { this.#paint(); }

  // All that was logged, one after the other, in about six seconds.
  #play() {
    const list = this.#list;
    let i = this.#step === null ? 0 : list.findIndex(({ step }) => step === this.#step);
    this.#label('Stop');
    this.#playing = setInterval(() => {
      this.#step = list[i].step;
      this.draw();
      if (++i >= list.length) {
        this.#step = null;
        this.stop();
        this.draw();
      }
    }, Math.min(250, 6000 / list.length));
  }

  stop() {
    clearInterval(this.#playing);
    this.#playing = 0;
    this.#label('Play');
  }

  #label(text) { by('load-play').textContent = text; }

  #color(ratio) {
    const { under, even, over } = this.#view.colors;
    const share = Math.max(-1, Math.min(1, Math.log2(Math.max(ratio, 1e-9)) / kDoublings));
    const shade = Math.round(Math.abs(share) * kShades) / kShades;
    return mixed(even, share < 0 ? under : over, shade);
  }

  #paint() {
    const canvas = by('load-canvas');
    const room = by('load-scroll').clientWidth;
    if (!this.#shown || room === 0) return;
    const { n_layers, n_experts, counts } = this.#shown;
    this.#width = Math.min(kMostCell_px, Math.max(kLeastCell_px, (room - kGutter_px) / n_experts));
    this.#height = n_layers > 24 ? 12 : n_layers > 8 ? 20 : 28;
    const [width, height] = [kGutter_px + this.#width * n_experts, this.#height * n_layers];
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    const { colors } = this.#view;
    const context = canvas.getContext('2d');
    context.scale(scale, scale);
    context.font = '11px system-ui, sans-serif';
    context.textBaseline = 'middle';
    context.textAlign = 'right';
    const gap = this.#width > 6 ? 1 : 0.5;
    for (let l = 0; l < n_layers; ++l) {
      const { even } = spreadOf(counts, l * n_experts, n_experts);
      context.fillStyle = colors.muted;
      context.fillText(String(l + 1), kGutter_px - 8, this.#height * (l + 0.5));
      for (let e = 0; e < n_experts; ++e) {
        context.fillStyle = this.#color(even > 0 ? counts[l * n_experts + e] / even : 1);
        context.fillRect(kGutter_px + this.#width * e, this.#height * l, this.#width - gap, this.#height - 1);
      }
    }
    if (this.#cell) {
      context.strokeStyle = colors.text;
      context.lineWidth = 2;
      context.strokeRect(kGutter_px + this.#width * this.#cell.e + 1, this.#height * this.#cell.l + 1, this.#width - gap - 2, this.#height - 3);
    }
  }

  #point(event) {
    if (!this.#shown) return;
    const l = Math.floor(event.offsetY / this.#height);
    const e = Math.floor((event.offsetX - kGutter_px) / this.#width);
    if (l >= 0 && l < this.#shown.n_layers && e >= 0 && e < this.#shown.n_experts) this.#select({ l, e });
  }

  #key(event) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step || !this.#shown) return;
    event.preventDefault();
    const within = (x, n) => Math.min(Math.max(x, 0), n - 1);
    const from = this.#cell ?? { l: 0, e: -1 };
    this.#select({ l: within(from.l + step[0], this.#shown.n_layers), e: within(from.e + step[1], this.#shown.n_experts) });
  }

  #select(cell) {
    if (this.#cell?.l === cell.l && this.#cell?.e === cell.e) return;
    this.#cell = cell;
    this.#tell();
    this.#paint();
  }

  #tell() {
    const { n_layers, n_experts, counts } = this.#shown;
    if (this.#cell && (this.#cell.l >= n_layers || this.#cell.e >= n_experts)) this.#cell = null;
    if (!this.#cell) {
      by('load-cell').textContent = '';
      return;
    }
    const { l, e } = this.#cell;
    const n = counts[l * n_experts + e];
    const { even } = spreadOf(counts, l * n_experts, n_experts);
    by('load-cell').textContent = `MoE layer ${l + 1}, expert ${e}: ${number(n)} ${n === 1 ? 'token' : 'tokens'}, ${even > 0 ? short(n / even) : '–'} × the even load`;
  }

  // The same in words, for whoever cannot see the colours.
  #table() {
    const { n_layers, n_experts, counts, step } = this.#shown;
    const spreads = Array.from({ length: n_layers }, (_, l) => spreadOf(counts, l * n_experts, n_experts));
    by('load-table').replaceChildren(...spreads.map(({ most, least, over, under, unused }, l) =>
      h('tr', {}, h('th', { scope: 'row', text: String(l + 1) }), h('td', { text: fixed(3)(over - 1) }), h('td', { text: `${most} (${short(over)} ×)` }),
        h('td', { text: `${least} (${short(under)} ×)` }), h('td', { text: number(unused) }))));
    const worst = spreads.reduce((l, each, i) => (each.over > spreads[l].over ? i : l), 0);
    by('load-canvas').setAttribute('aria-label', `Loads of ${n_experts} experts in each of ${n_layers} MoE layers at step ${number(step)}. The busiest is expert ` +
      `${spreads[worst].most} of layer ${worst + 1} with ${short(spreads[worst].over)} times the even load. Arrow keys read single experts.`);
  }
}

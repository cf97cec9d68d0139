// Which experts an answer used: a row for each layer, a column for each expert, the stronger the colour the more tokens.

import { by, h, mixed, number } from './dom.js';

const kGutter_px = 34;  // the numbers of the layers
const kMostCell_px = 22;
const kLeastCell_px = 4;  // narrower ones scroll
const kShades = 64;

// What the server sent, or null where it is not what is drawn here.
export function checkedCounts(experts) {
  const { layers, counts } = experts ?? {};
  if (!Array.isArray(layers) || !Array.isArray(counts) || layers.length === 0 || layers.length !== counts.length) return null;
  const n_experts = counts[0]?.length ?? 0;
  const sound = counts.every((row) => Array.isArray(row) && row.length === n_experts && row.every((n) => Number.isFinite(n) && n >= 0));
  if (n_experts === 0 || n_experts > 4096 || layers.length > 1024 || !sound || !layers.every(Number.isInteger)) return null;
  return { layers, counts, n_experts };
}

// How a layer's tokens are spread: the busiest expert, how many were used at all, and the busiest one's load over the mean.
export function spread(row) {
  const total = row.reduce((sum, n) => sum + n, 0);
  const most = Math.max(...row);
  return { total, most, busiest: row.indexOf(most), used: row.filter((n) => n > 0).length, over_mean: total > 0 ? most * row.length / total : 0 };
}

export class ExpertsView {
  #shown = null;
  #cell = null;  // {layer, expert}: indices
  #width = 0;
  #height = 0;

  constructor() {
    const canvas = by('experts-canvas');
    new ResizeObserver(() => this.draw()).observe(by('experts-scroll'));
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => this.draw());
    canvas.addEventListener('pointermove', (event) => this.#point(event));
    canvas.addEventListener('pointerdown', (event) => this.#point(event));
    canvas.addEventListener('keydown', (event) => this.#key(event));
  }

  get shown() { return this.#shown; }

  show(experts, label) {
    this.#shown = checkedCounts(experts);
    this.#cell = null;
    by('experts-label').textContent = label;
    by('experts-cell').textContent = '';
    this.#table();
    this.draw();
  }

  draw() {
    const canvas = by('experts-canvas');
    const room = by('experts-scroll').clientWidth;
    if (!this.#shown || room === 0) return;
    const { layers, counts, n_experts } = this.#shown;
    this.#width = Math.min(kMostCell_px, Math.max(kLeastCell_px, (room - kGutter_px) / n_experts));
    this.#height = layers.length > 24 ? 12 : 20;
    const [width, height] = [kGutter_px + this.#width * n_experts, this.#height * layers.length];
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.width = width + 'px';
    canvas.style.height = height + 'px';
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const [none, least, most] = ['--heat-none', '--heat-least', '--heat-most'].map(color);
    const context = canvas.getContext('2d');
    context.scale(scale, scale);
    context.font = '11px system-ui, sans-serif';
    context.textBaseline = 'middle';
    context.textAlign = 'right';
    const shades = Array.from({ length: kShades + 1 }, (_, i) => mixed(least, most, i / kShades));
    const top = Math.max(1, ...counts.map((row) => Math.max(...row)));
    const gap = this.#width > 6 ? 1 : 0.5;
    counts.forEach((row, i) => {
      context.fillStyle = color('--muted');
      context.fillText(String(layers[i]), kGutter_px - 6, this.#height * (i + 0.5));
      row.forEach((n, j) => {
        context.fillStyle = n === 0 ? none : shades[Math.round(kShades * Math.sqrt(n / top))];
        context.fillRect(kGutter_px + this.#width * j, this.#height * i, this.#width - gap, this.#height - 1);
      });
    });
    if (this.#cell) {
      context.strokeStyle = color('--text');
      context.lineWidth = 2;
      context.strokeRect(kGutter_px + this.#width * this.#cell.expert, this.#height * this.#cell.layer + 1, this.#width - gap, this.#height - 3);
    }
    by('experts-most').textContent = number(top);
  }

  #point(event) {
    if (!this.#shown) return;
    const layer = Math.floor(event.offsetY / this.#height);
    const expert = Math.floor((event.offsetX - kGutter_px) / this.#width);
    if (layer >= 0 && layer < this.#shown.layers.length && expert >= 0 && expert < this.#shown.n_experts) this.#select({ layer, expert });
  }

  #key(event) {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step || !this.#shown) return;
    event.preventDefault();
    const within = (x, n) => Math.min(Math.max(x, 0), n - 1);
    const from = this.#cell ?? { layer: 0, expert: -1 };
    this.#select({ layer: within(from.layer + step[0], this.#shown.layers.length), expert: within(from.expert + step[1], this.#shown.n_experts) });
  }

  #select(cell) {
    if (this.#cell?.layer === cell.layer && this.#cell?.expert === cell.expert) return;
    this.#cell = cell;
    const { layers, counts, n_experts } = this.#shown;
    const n = counts[cell.layer][cell.expert];
    const { total } = spread(counts[cell.layer]);
    const share = total > 0 ? `, ${number(100 * n / total, 1)} % (evenly: ${number(100 / n_experts, 1)} %)` : '';
    by('experts-cell').textContent = `Layer ${layers[cell.layer]}, expert ${cell.expert}: ${number(n)} ${n === 1 ? 'token' : 'tokens'}${share}`;
    this.draw();
  }

  // The same in words, for whoever cannot see the colours.
  #table() {
    const rows = [];
    const body = by('experts-table');
    if (this.#shown) {
      const { layers, counts, n_experts } = this.#shown;
      const spreads = counts.map(spread);
      layers.forEach((layer, i) => {
        const { most, busiest, used, over_mean } = spreads[i];
        rows.push(h('tr', {}, h('th', { scope: 'row', text: String(layer) }), h('td', { text: `${used} of ${n_experts}` }),
                    h('td', { text: `${busiest} (${number(most)})` }), h('td', { text: number(over_mean, 1) })));
      });
      const worst = Math.max(...spreads.map((each) => each.over_mean));
      by('experts-canvas').setAttribute('aria-label', `Heat map of ${layers.length} layers with ${n_experts} experts each. ` +
        `The busiest expert of a layer has up to ${number(worst, 1)} times the mean. Arrow keys read single experts.`);
    }
    body.replaceChildren(...rows);
  }
}

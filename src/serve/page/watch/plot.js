// A plot: axes, traces, a crosshair that all plots share, and the pointer and the keys that move it. What is drawn comes from a
// source:
//   title, key          name on the page and in `data-plot`
//   hint()              what stands beside the name
//   has_log, from_zero  whether a logarithmic axis is offered; whether the axis begins at 0
//   there()             whether there is anything to draw
//   traces(view, width) [{xs, lows, highs, n, color, style: 'line' | 'band' | 'points' | 'area', alpha, dash, weight}]
//   marks(view, width)  places on the axis that are marked below
//   values(at)          {head: [texts], swatches: [{color, kind} of a column], rows: [{name, color, cells: [texts]}],
//                       dots: [{x, y, color}], note}; a note that may come has a line kept for it ('' for now)

import { announce, h } from '/dom.js';
import { logTicks, positionText, short, tickText, ticks } from './formats.js';

const kLeft = 54;
const kRight = 14;
const kTop = 8;
const kBottom = 24;
const kLeastDrag_px = 6;
const kCut = 0.005;       // of the pixels, whose outliers do not set the scale
const kCutFrom = 60;      // pixels
const kMostPoints = 160;  // of a line, that are marked

// The least and the greatest of what is to be seen, outliers of single steps aside.
function extent(traces, view, log) {
  let low = Infinity;
  let high = -Infinity;
  for (const { xs, lows, highs, n, cuts } of traces) {
    const least = [];
    const greatest = [];
    for (let i = 0; i < n; ++i) {
      if (xs[i] < view.from || xs[i] > view.to) continue;
      if (log ? lows[i] > 0 : !Number.isNaN(lows[i])) least.push(lows[i]);
      if (log ? highs[i] > 0 : !Number.isNaN(highs[i])) greatest.push(highs[i]);
    }
    if (greatest.length === 0) continue;
    const cut = cuts && greatest.length > kCutFrom ? Math.ceil(greatest.length * kCut) : 0;
    if (cut > 0) {
      least.sort((a, b) => a - b);
      greatest.sort((a, b) => a - b);
      low = Math.min(low, least[Math.min(cut, least.length - 1)] ?? Infinity);
      high = Math.max(high, greatest[greatest.length - 1 - cut]);
    } else {
      for (const value of least) low = Math.min(low, value);
      for (const value of greatest) high = Math.max(high, value);
    }
  }
  return [low, high];
}

export class Plot {
  #source;
  #view;      // what plots share, see view.js
  #base;      // the lines
  #over;      // crosshair and selection
  #table;
  #note;
  #hint;
  #log_button = null;
  #scale = null;  // of the last drawing: {from, to, low, high, log, width, height}
  #drag = null;   // {pointer, from_px, to_px}
  #head = '';

  constructor(source, view) {
    this.#source = source;
    this.#view = view;
    this.#base = h('canvas', { class: 'base', 'aria-hidden': 'true' });
    this.#over = h('canvas', { class: 'over', role: 'img', tabindex: '0', 'aria-label': source.title, 'aria-describedby': 'plot-keys' });
    this.#table = h('table', { class: 'values' });
    this.#note = h('p', { class: 'note', hidden: true });
    this.#hint = h('span', { class: 'hint' });
    this.frame = h('div', { class: 'frame' }, this.#base, this.#over);
    const head = h('figcaption', {}, h('h2', { text: source.title }), this.#hint);
    if (source.has_log) {
      this.#log_button = h('button', { type: 'button', class: 'toggle', text: 'log', title: 'Logarithmic axis', 'aria-label': `${source.title}: logarithmic axis`,
                                       on: { click: () => view.toggleLog(source.key) } });
      head.append(this.#log_button);
    }
    this.element = h('figure', { class: 'plot', data: { plot: source.key, wide: source.wide ? 'true' : 'false' } }, head, this.frame, this.#table, this.#note);
    this.#listen();
    new ResizeObserver(() => this.draw()).observe(this.frame);
  }

  get key() { return this.#source.key; }

  // The lines and all that hangs on them.
  draw() {
    const there = this.#source.there();
    this.element.hidden = !there;
    if (!there) return;
    this.#hint.textContent = this.#hint.title = this.#source.hint?.() ?? '';
    this.#drawValues();
    const { clientWidth, clientHeight } = this.frame;
    const width = clientWidth - kLeft - kRight;
    const height = clientHeight - kTop - kBottom;
    const span = this.#view.span();
    if (width < 20 || height < 20 || !span) return;
    const log = this.#source.has_log && this.#view.isLog(this.#source.key);
    this.#log_button?.setAttribute('aria-pressed', String(log));
    const traces = this.#source.traces(span, width);
    let [low, high] = extent(traces, span, log);
    if (!(low <= high)) [low, high] = log ? [1, 10] : [0, 1];
    if (log) {
      const room = Math.max((high / low) ** 0.04, 1.02);
      [low, high] = [low / room, high * room];
    } else {
      if (this.#source.from_zero) low = Math.min(low, 0);
      const room = high > low ? (high - low) * 0.05 : Math.abs(high) * 0.1 || 1;
      [low, high] = [this.#source.from_zero && low === 0 ? 0 : low - room, high + room];
    }
    this.#scale = { ...span, low, high, log, width, height, axis: this.#view.axis };
    this.#paint(traces);
    this.drawOver();
  }

  #x(x) { return kLeft + (x - this.#scale.from) / (this.#scale.to - this.#scale.from) * this.#scale.width; }
  #y(y) {
    const { low, high, log, height } = this.#scale;
    const share = log ? Math.log(Math.max(y, low / 10) / low) / Math.log(high / low) : (y - low) / (high - low);
    return kTop + (1 - Math.min(2, Math.max(-1, share))) * height;
  }
  #at(px) {
    const { from, to, width } = this.#scale;
    return Math.min(to, Math.max(from, from + (px - kLeft) / width * (to - from)));
  }

  #fresh(canvas) {
    const { clientWidth, clientHeight } = this.frame;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(clientWidth * ratio), Math.round(clientHeight * ratio)];
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const context = canvas.getContext('2d');
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, clientWidth, clientHeight);
    return context;
  }

  #paint(traces) {
    const { colors } = this.#view;
    const { from, to, low, high, log, width, height } = this.#scale;
    const context = this.#fresh(this.#base);
    context.font = '11px system-ui, sans-serif';
    context.lineWidth = 1;
    context.strokeStyle = colors.line;
    context.fillStyle = colors.muted;
    context.textAlign = 'right';
    context.textBaseline = 'middle';
    for (const value of log ? logTicks(low, high) : ticks(low, high, Math.max(2, Math.round(height / 44)))) {
      const y = Math.round(this.#y(value)) + 0.5;
      context.beginPath();
      context.moveTo(kLeft, y);
      context.lineTo(kLeft + width, y);
      context.stroke();
      context.fillText(this.#source.tick?.(value) ?? short(value), kLeft - 7, y);
    }
    context.textBaseline = 'top';
    const axis = this.#view.axis;
    for (const value of ticks(from, to, Math.max(2, Math.floor(width / (axis === 'time' ? 90 : 60))), axis)) {
      const x = this.#x(value);
      context.fillRect(Math.round(x), kTop + height, 1, 4);
      const text = tickText(axis, value);
      const half = context.measureText(text).width / 2;
      context.textAlign = x + half > kLeft + width + kRight ? 'right' : x - half < 4 ? 'left' : 'center';
      context.fillText(text, context.textAlign === 'right' ? kLeft + width + kRight : x, kTop + height + 8);
    }
    context.save();
    context.beginPath();
    context.rect(kLeft - 1, kTop - 3, width + 2, height + 6);
    context.clip();
    for (const trace of traces) this.#trace(context, trace);
    context.restore();
    context.fillStyle = colors.danger;
    for (const x of this.#source.marks?.(this.#scale, width) ?? []) {
      const at = this.#x(x);
      context.beginPath();
      context.moveTo(at, kTop + height - 7);
      context.lineTo(at + 4, kTop + height);
      context.lineTo(at - 4, kTop + height);
      context.fill();
    }
  }

  #trace(context, { xs, lows, highs, n, color, style, alpha = 1, dash = [], weight = 1.6 }) {
    context.globalAlpha = alpha;
    context.strokeStyle = context.fillStyle = color;
    context.lineWidth = weight;
    context.lineJoin = 'round';
    context.setLineDash(dash);
    context.beginPath();
    if (style === 'area') {
      for (let i = 0; i < n; ++i) context[i === 0 ? 'moveTo' : 'lineTo'](this.#x(xs[i]), this.#y(highs[i]));
      for (let i = n - 1; i >= 0; --i) context.lineTo(this.#x(xs[i]), this.#y(lows[i]));
      context.fill();
    } else {
      let drawn = false;
      for (let i = 0; i < n; ++i) {
        if (Number.isNaN(lows[i])) {
          drawn = false;
          continue;
        }
        const x = this.#x(xs[i]);
        context[drawn ? 'lineTo' : 'moveTo'](x, this.#y(lows[i]));
        if (highs[i] !== lows[i]) context.lineTo(x, this.#y(highs[i]));
        drawn = true;
      }
      context.stroke();
      context.setLineDash([]);
      if (style === 'points' || n === 1) {
        context.beginPath();
        for (let i = 0; i < n && n <= kMostPoints; ++i) {
          const [x, y] = [this.#x(xs[i]), this.#y(lows[i])];
          context.moveTo(x, y);
          context.arc(x, y, 2.6, 0, 7);
        }
        context.fill();
      }
    }
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  // The crosshair, what is being chosen, and the values there.
  drawOver() {
    if (!this.#scale || this.element.hidden) return;
    const { from, to, width, height } = this.#scale;
    const { at, colors } = this.#view;
    const context = this.#fresh(this.#over);
    if (this.#drag?.moved) {
      const [a, b] = [this.#drag.from_px, this.#drag.to_px].sort((x, y) => x - y);
      context.globalAlpha = 0.14;
      context.fillStyle = colors.accent;
      context.fillRect(a, kTop, b - a, height);
      context.globalAlpha = 1;
      context.fillRect(a, kTop, 1, height);
      context.fillRect(b - 1, kTop, 1, height);
    }
    this.#drawValues();
    if (at === null || at < from || at > to) return;
    context.fillStyle = colors.muted;
    context.fillRect(Math.round(this.#x(at)), kTop, 1, height);
    for (const { x, y, color } of this.#source.values(at).dots) {
      if (Number.isNaN(y)) continue;
      context.beginPath();
      context.arc(Math.min(kLeft + width, Math.max(kLeft, this.#x(x))), this.#y(y), 4, 0, 7);
      context.fillStyle = color;
      context.fill();
      context.lineWidth = 1.5;
      context.strokeStyle = colors.page;
      context.stroke();
    }
  }

  // The table below: built anew only where its rows or columns are others.
  #drawValues() {
    const { head, swatches = [], rows, note } = this.#source.values(this.#view.at);
    const shape = JSON.stringify([head.slice(1), swatches, rows.map((row) => [row.name, row.color])]);
    if (shape !== this.#head) {
      this.#head = shape;
      const head_row = h('tr', {}, ...head.map((text, i) => {
        const swatch = i > 0 && swatches[i - 1] ? h('span', { class: 'swatch', 'aria-hidden': 'true' }) : null;
        if (swatch) swatch.style.borderTop = `2px ${swatches[i - 1].kind} ${swatches[i - 1].color}`;
        return h('th', { scope: 'col' }, swatch, text);
      }));
      const body = rows.map((row) => {
        const dot = h('span', { class: 'dot', 'aria-hidden': 'true' });
        dot.style.background = row.color;
        return h('tr', {}, h('th', { scope: 'row' }, dot, h('span', { class: 'run-name', text: row.name })), ...row.cells.map(() => h('td')));
      });
      this.#table.replaceChildren(h('caption', { class: 'visually-hidden', text: this.#source.title }), h('thead', {}, head_row), h('tbody', {}, ...body));
    }
    this.#table.tHead.rows[0].cells[0].textContent = head[0];
    rows.forEach((row, i) => row.cells.forEach((text, j) => {
      const cell = this.#table.tBodies[0].rows[i].cells[j + 1];
      if (cell.textContent !== text) cell.textContent = text;
    }));
    const said = rows.map((row) => `${row.name}: ${row.cells.map((text, j) => `${head[j + 1]} ${text}`).join(', ')}`).join('; ');
    this.#over.setAttribute('aria-label', `${this.#source.title}, ${head[0]}. ${said}${note ? '. ' + note : ''}`);
    this.#note.hidden = note === undefined;
    this.#note.textContent = note || '\u00a0';
  }

  // ---- Pointer and keys

  #listen() {
    const over = this.#over;
    over.addEventListener('pointermove', (event) => {
      if (this.#scale?.axis !== this.#view.axis) return;  // not drawn yet
      if (this.#drag && event.pointerId === this.#drag.pointer) {
        this.#drag.to_px = Math.min(kLeft + this.#scale.width, Math.max(kLeft, event.offsetX));
        this.#drag.moved ||= Math.abs(this.#drag.to_px - this.#drag.from_px) >= kLeastDrag_px;
      }
      this.#view.point(this.#at(event.offsetX));
    });
    over.addEventListener('pointerdown', (event) => {
      if (this.#scale?.axis !== this.#view.axis || event.button !== 0) return;
      this.#drag = { pointer: event.pointerId, from_px: Math.min(kLeft + this.#scale.width, Math.max(kLeft, event.offsetX)), moved: false };
      this.#drag.to_px = this.#drag.from_px;
      over.setPointerCapture(event.pointerId);
      this.#view.point(this.#at(event.offsetX));
    });
    over.addEventListener('pointerup', () => {
      const drag = this.#drag;
      this.#drag = null;
      if (drag?.moved) this.#view.zoom(...[this.#at(drag.from_px), this.#at(drag.to_px)].sort((a, b) => a - b));
      else this.drawOver();
    });
    over.addEventListener('pointercancel', () => {
      this.#drag = null;
      this.drawOver();
    });
    over.addEventListener('pointerleave', () => { if (!this.#drag && document.activeElement !== over) this.#view.point(null); });
    over.addEventListener('dblclick', () => this.#view.zoom(null));
    over.addEventListener('blur', () => this.#view.point(null));
    over.addEventListener('keydown', (event) => this.#key(event));
  }

  #key(event) {
    if (!this.#scale || event.ctrlKey || event.metaKey || event.altKey) return;
    const { from, to, width } = this.#scale;
    const pixel = (to - from) / width;
    const at = this.#view.at ?? to;
    const clamped = (x) => Math.min(to, Math.max(from, x));
    const middle = clamped(at);
    const zoomed = (share) => {
      const left = middle - (middle - from) * share;
      return this.#view.zoom(left, left + (to - from) * share);
    };
    const actions = {
      ArrowLeft: () => this.#view.point(clamped(this.#view.neighbour(at, -1, event.shiftKey ? 40 * pixel : pixel))),
      ArrowRight: () => this.#view.point(clamped(this.#view.neighbour(at, 1, event.shiftKey ? 40 * pixel : pixel))),
      Home: () => this.#view.point(from),
      End: () => this.#view.point(to),
      PageUp: () => this.#view.zoom(from - (to - from) / 2, to - (to - from) / 2),
      PageDown: () => this.#view.zoom(from + (to - from) / 2, to + (to - from) / 2),
      '+': () => zoomed(0.5),
      '=': () => zoomed(0.5),
      '-': () => zoomed(2),
      0: () => this.#view.zoom(null),
      Escape: () => (this.#view.at === null ? this.#view.zoom(null) : this.#view.point(null))
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
    // What a screen reader says of it; the label itself is not read again when it changes.
    const { head, rows } = this.#source.values(this.#view.at);
    const span = this.#view.span();
    const stretch = span ? `${positionText(this.#view.axis, span.from)} to ${positionText(this.#view.axis, span.to)}. ` : '';
    announce((['+', '=', '-', '0', 'PageUp', 'PageDown'].includes(event.key) ? stretch : '') + `${head[0]}: ` +
             rows.map((row) => `${rows.length > 1 ? row.name + ' ' : ''}${row.cells.map((text, j) => `${head[j + 1]} ${text}`).join(', ')}`).join('; '));
  }
}

// What the plots draw (see plot.js): lines of the columns of all runs, and the router's biases of one.

import { mixed, number } from '/dom.js';
import { fixed, percent, positionText, short } from './formats.js';
import { denseTrace, nearestRow, smoothTrace, sparseTrace } from './traces.js';

const kMarks_px = 6;  // as near to a mark the reason is told
const kMostLayers = 6;  // of biases, that are told one by one

// series: {column, name, smooth: smoothed, with the steps faint; sparse: in few rows}
const kPlots = [
  {
    key: 'reward', title: 'Reward', wide: true, has_marks: true, text: fixed(4),
    series: [{ column: 'reward', name: 'sampled', smooth: true }, { column: 'val_reward', name: 'held-out', sparse: true },
             { column: 'val_exact', name: 'held-out, exact', sparse: true }]
  },
  {
    key: 'length', title: 'Tokens of an answer', from_zero: true, text: fixed(1),
    series: [{ column: 'length', name: 'mean', smooth: true }, { column: 'length_max', name: 'longest' }]
  },
  { key: 'entropy', title: 'Entropy', hint: () => 'nats a token', from_zero: true, text: fixed(4), series: [{ column: 'entropy', name: 'policy', smooth: true }] },
  { key: 'kl', title: 'KL divergence', hint: () => 'from the reference', from_zero: true, text: fixed(5), series: [{ column: 'kl', name: 'KL', smooth: true }] },
  {
    key: 'loss', title: 'Loss', wide: true, has_log: true, has_marks: true, text: fixed(4),
    series: [{ column: 'loss', name: 'training', smooth: true }, { column: 'val_loss', name: 'held-out', sparse: true },
             { column: 'val_loss_average', name: 'averaged', sparse: true }]
  },
  { key: 'mtp_loss', title: 'MTP loss', has_log: true, text: fixed(4), series: [{ column: 'mtp_loss', name: 'MTP', smooth: true }] },
  {
    key: 'max_violation', title: 'MaxVio', hint: () => 'of the worst layer', has_log: true, from_zero: true, text: fixed(3),
    series: [{ column: 'max_violation', name: 'batch', smooth: true }, { column: 'val_max_violation', name: 'held-out', sparse: true }]
  },
  { key: 'grad_norm', title: 'Gradient norm', has_log: true, from_zero: true, series: [{ column: 'grad_norm', name: 'norm', smooth: true }] },
  { key: 'lr', title: 'Learning rate', from_zero: true, series: [{ column: 'lr', name: 'rate' }] },
  {
    key: 'tokens_per_s', title: 'Tokens a second', from_zero: true, text: (value) => (Number.isFinite(value) ? number(value) : '–'),
    series: [{ column: 'tokens_per_s', name: 'tokens/s', smooth: true }]
  },
  { key: 'mfu', title: 'Model FLOPs utilization', from_zero: true, text: percent, tick: percent, series: [{ column: 'mfu', name: 'MFU', smooth: true }] }
];

function lineSource(plot, view) {
  const present = () => plot.series.filter(({ column }) => view.shown().some(({ data }) => data.has(column)));
  const smooths = (series) => series.smooth && view.window > 1;
  // Of several runs each has its colour, and lines tell series apart; of one, colours do.
  const styleOf = (run, i) => {
    const several = view.runs.length > 1;
    return { color: several ? view.color(run) : view.colors.runs[i], dash: i === 0 ? [] : several ? [[6, 4], [2, 3]][i - 1] : i > 1 ? [4, 3] : [] };
  };

  function tracesOf(run, series, i, span, width) {
    const { data } = run;
    const column = data.columns[series.column];
    const x = view.places(run);
    const style = styleOf(run, i);
    if (series.sparse) return [{ ...sparseTrace(x, column, span, width), ...style, style: 'points' }];
    const each = { ...denseTrace(x, column, span, width), ...style, style: 'line', cuts: true };
    if (!smooths(series)) return [{ ...each, weight: 1.4 }];
    return [{ ...each, alpha: each.ranges ? 0.2 : 0.3, weight: 1 }, { ...smoothTrace(x, data.smooth(series.column, view.window), span, width), ...style, style: 'line', weight: 1.9 }];
  }

  // The step that was skipped next to the crosshair, as a text; '' where there is none.
  function skipAt(at) {
    const span = view.span();
    if (at === null || !span) return '';
    let best = null;
    for (const run of view.shown()) {
      const x = view.places(run);
      for (const { row, step, reason } of run.data.skips.list) {
        const away = Math.abs(x[row] - at);
        if (away < (best?.away ?? (span.to - span.from) * kMarks_px / 600)) best = { away, run, step, reason };
      }
    }
    if (!best) return '';
    return `${view.runs.length > 1 ? best.run.name + ', s' : 'S'}tep ${number(best.step)} was skipped: ${best.reason}`;
  }

  return {
    ...plot,
    there: () => present().length > 0,
    traces(span, width) {
      // What is faint lies below all that is not.
      const all = view.shown().flatMap((run) => plot.series.flatMap((series, i) => (run.data.has(series.column) ? tracesOf(run, series, i, span, width) : [])));
      return all.sort((a, b) => (a.alpha ?? 1) - (b.alpha ?? 1));
    },
    marks(span, width) {
      if (!plot.has_marks) return [];
      const pixels = new Set();
      for (const run of view.shown()) {
        const x = view.places(run);
        for (const { row } of run.data.skips.list) {
          if (x[row] >= span.from && x[row] <= span.to) pixels.add(Math.round((x[row] - span.from) / (span.to - span.from) * width));
        }
      }
      return [...pixels].map((pixel) => span.from + pixel / width * (span.to - span.from));
    },
    values(at) {
      const series = present();
      const span = view.span();
      const slack = span ? (span.to - span.from) * 0.02 : 0;
      const head = [at === null ? 'latest' : positionText(view.axis, at),
                    ...series.flatMap((each) => (smooths(each) ? [each.name, 'raw'] : [each.name]))];
      const several = view.runs.length > 1;
      const swatches = plot.series.length === 1 ? [] : series.flatMap((each) => {
        const { color, dash } = styleOf(view.runs[0], plot.series.indexOf(each));
        const swatch = { color: several ? view.colors.muted : color, kind: dash.length === 0 ? 'solid' : dash[0] > 3 ? 'dashed' : 'dotted' };
        return smooths(each) ? [swatch, null] : [swatch];
      });
      const dots = [];
      const rows = view.shown().map((run) => {
        const { data } = run;
        const x = view.places(run);
        const row = at === null ? data.n_rows - 1 : nearestRow(x, data.n_rows, at, slack);
        const cells = series.flatMap((each) => {
          const column = data.columns[each.column];
          const text = plot.text ?? short;
          const style = styleOf(run, plot.series.indexOf(each));
          const at_row = each.sparse || at === null ? column.before(row) : row;
          const value = at_row >= 0 ? column.values[at_row] : NaN;
          if (!smooths(each)) {
            if (at_row >= 0) dots.push({ x: x[at_row], y: value, color: style.color });
            return [text(value)];
          }
          const smooth = at_row >= 0 ? data.smooth(each.column, view.window).values[at_row] : NaN;
          if (at_row >= 0) dots.push({ x: x[at_row], y: smooth, color: style.color });
          return [text(smooth), text(value)];
        });
        return { name: run.name, color: view.color(run), cells };
      });
      const may_skip = plot.has_marks && view.shown().some(({ data }) => data.skips.list.length > 0);
      return { head, swatches, rows, dots, note: may_skip ? skipAt(at) : undefined };
    }
  };
}

// What the log tells of each MoE layer now and then, of one run: snapshots {row, step, ...}, of which `ends(snapshot, layer)` gives
// [least, greatest]; where these are the same number it is one line.
function layerSource(plot, view, run) {
  const list = () => run()?.data[plot.snapshots].list ?? [];
  const n_layers = () => (list().length > 0 ? plot.n_layers(list().at(-1)) : 0);
  const color = (l) => {
    const share = n_layers() > 1 ? l / (n_layers() - 1) : 0;
    const [first, middle, last] = [0, 2, 1].map((i) => view.colors.runs[i]);
    return share < 0.5 ? mixed(first, middle, share * 2) : mixed(middle, last, share * 2 - 1);
  };
  // The last one up to a place.
  function before(at) {
    const x = view.places(run());
    return at === null ? list().at(-1) : list().findLast(({ row }) => x[row] <= at);
  }

  return {
    ...plot,
    hint: () => `by MoE layer${view.runs.length > 1 ? ', ' + run().name : ''}`,
    there: () => n_layers() > 0 && !run().hidden,
    traces(span, width) {
      const x = view.places(run());
      const layers = Array.from({ length: n_layers() }, (_, l) => l);
      const all = list().filter((each) => plot.n_layers(each) === layers.length);
      const every = Math.ceil(all.length / width);
      const rows = all.filter((_, i) => (all.length - 1 - i) % every === 0);
      const xs = Float64Array.from(rows, ({ row }) => x[row]);
      return layers.flatMap((l) => {
        const [lows, highs] = [0, 1].map((end) => Float32Array.from(rows, (each) => plot.ends(each, l)[end]));
        const shared = { xs, n: rows.length, color: color(l), weight: layers.length > 12 ? 0.8 : 1.4 };
        const line = (values) => ({ ...shared, lows: values, highs: values, style: 'line' });
        if (plot.head.length === 1) return [line(highs)];
        return [{ ...shared, lows, highs, style: 'area', alpha: Math.max(0.03, 0.3 / layers.length) }, line(lows), line(highs)];
      });
    },
    values(at) {
      const found = run() ? before(at) : undefined;
      const head = [found ? `step ${number(found.step)}` : 'latest', ...plot.head];
      if (!found) return { head, rows: [], dots: [] };
      const layers = Array.from({ length: plot.n_layers(found) }, (_, l) => ({ l, ends: plot.ends(found, l) }));
      const told = layers.length <= kMostLayers ? layers : layers.toSorted((a, b) => plot.rank(b.ends) - plot.rank(a.ends)).slice(0, kMostLayers).sort((a, b) => a.l - b.l);
      const rows = told.map(({ l, ends }) => ({ name: `layer ${l + 1}`, color: color(l), cells: ends.slice(2 - plot.head.length).map(plot.text) }));
      return { head, rows, dots: [] };
    }
  };
}

const kBiases = {
  key: 'bias', title: 'Router biases', head: ['least', 'greatest'], snapshots: 'biases', text: fixed(3),
  n_layers: ({ ends }) => ends.length / 2, ends: ({ ends }, l) => [ends[2 * l], ends[2 * l + 1]], rank: ([low, high]) => high - low
};
const kLayerLoads = {
  key: 'layer_max_violation', title: 'MaxVio', head: ['batch'], snapshots: 'loads', text: fixed(3), from_zero: true,
  n_layers: ({ violations }) => violations.length, ends: ({ violations }, l) => [violations[l], violations[l]], rank: ([high]) => high
};

export function sources(view, chosen_run) {
  const lines = kPlots.map((plot) => lineSource(plot, view));
  lines.splice(3, 0, layerSource(kLayerLoads, view, chosen_run), layerSource(kBiases, view, chosen_run));
  return lines;
}

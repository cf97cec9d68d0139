// What is drawn of a column: its rows within a stretch of the axis where these are few, else for each pixel the least and the
// greatest (`ranges`). A trace is {xs, lows, highs, n}, in the units of the axes; NaN in `lows` is a gap.

import { lowerBound } from './columns.js';

const kRowsOfPixel = 2;  // more are drawn as their range

function newTrace(most) {
  return { xs: new Float64Array(most), lows: new Float32Array(most), highs: new Float32Array(most), n: 0 };
}

function put(trace, x, low, high) {
  trace.xs[trace.n] = x;
  trace.lows[trace.n] = low;
  trace.highs[trace.n++] = high;
}

// Rows of the stretch, and the one on either side that a line comes from and goes to.
export function rowsOf(x, n_rows, { from, to }) {
  const begin = Math.max(0, lowerBound(x, 0, n_rows, from) - 1);
  let end = lowerBound(x, begin, n_rows, to);
  while (end < n_rows && x[end] === to) ++end;  // places without progress: few
  return [begin, Math.min(end + 1, n_rows)];
}

// `visit(begin, end, x)` for the rows of each pixel that has any.
function eachPixel(x, begin, end, { from, to }, width, visit) {
  const of_pixel = (to - from) / width;
  let row = begin;
  for (let pixel = 0; pixel < width && row < end; ++pixel) {
    const edge = pixel === width - 1 ? end : lowerBound(x, row, end, from + (pixel + 1) * of_pixel);
    if (edge > row) visit(row, edge, from + (pixel + 0.5) * of_pixel);
    row = edge;
  }
}

// Of a column with a number in (nearly) every row.
export function denseTrace(x, column, view, width) {
  const [begin, end] = rowsOf(x, column.length, view);
  if (end - begin <= kRowsOfPixel * width) {
    const trace = newTrace(end - begin);
    for (let i = begin; i < end; ++i) put(trace, x[i], column.values[i], column.values[i]);
    return trace;
  }
  const trace = { ...newTrace(width), ranges: true };
  const range = [0, 0];
  eachPixel(x, begin, end, view, width, (a, b, at) => {
    if (column.range(a, b, range)) put(trace, at, range[0], range[1]);
  });
  return trace;
}

// Of a smoothed column: a pixel's last row stands for it.
export function smoothTrace(x, smoothed, view, width) {
  const [begin, end] = rowsOf(x, smoothed.length, view);
  const few = end - begin <= kRowsOfPixel * width;
  const trace = newTrace(few ? end - begin : width);
  const take = (i, at) => put(trace, at, smoothed.values[i], smoothed.values[i]);
  if (few) {
    for (let i = begin; i < end; ++i) take(i, x[i]);
  } else {
    eachPixel(x, begin, end, view, width, (_, b, at) => take(b - 1, at));
  }
  return trace;
}

// Of a column with numbers here and there, which a line joins.
export function sparseTrace(x, column, view, width) {
  const [first, last] = rowsOf(x, column.length, view);
  const begin = Math.max(0, column.before(first));
  const end = Math.min(column.length, column.from(last - 1) + 1);
  const rows = [];
  for (let i = column.from(begin); i < end && rows.length <= kRowsOfPixel * width; i = column.from(i + 1)) rows.push(i);
  if (rows.length <= kRowsOfPixel * width) {
    const trace = newTrace(rows.length);
    for (const i of rows) put(trace, x[i], column.values[i], column.values[i]);
    return trace;
  }
  const trace = newTrace(width);
  const range = [0, 0];
  eachPixel(x, begin, end, view, width, (a, b, at) => {
    if (column.range(a, b, range)) put(trace, at, (range[0] + range[1]) / 2, (range[0] + range[1]) / 2);
  });
  return trace;
}

// The row whose place is nearest to `at`; -1 where the rows end far from it.
export function nearestRow(x, n_rows, at, slack) {
  if (n_rows === 0 || at > x[n_rows - 1] + slack || at < x[0] - slack) return -1;
  const i = lowerBound(x, 0, n_rows, at);
  if (i === 0) return 0;
  if (i === n_rows) return n_rows - 1;
  return x[i] - at < at - x[i - 1] ? i : i - 1;
}

// Numbers as people read them, and the round ones that axes are marked with.

import { number } from '/dom.js';

const kMinus = '−';

function withMinus(text) {
  return text.replace('-', kMinus);
}

// Four digits, whatever the size.
export function short(value) {
  if (!Number.isFinite(value)) return '–';
  const size = Math.abs(value);
  if (value === 0) return '0';
  if (size >= 1e5 || size < 1e-3) return withMinus(value.toExponential(2).replace('e+', 'e'));
  if (size >= 1000) return withMinus(number(value, 0));
  return withMinus(String(Number(value.toPrecision(4))));
}

// So many digits behind the point, for what is compared line by line.
export function fixed(digits) {
  return (value) => (!Number.isFinite(value) || Math.abs(value) >= 1e5 ? short(value) : withMinus(value.toFixed(digits)));
}

export const percent = (value) => (Number.isFinite(value) ? `${number(100 * value, 1)} %` : '–');

// 1.25M; whole numbers below ten thousand as they are.
export function compact(value) {
  if (!Number.isFinite(value)) return '–';
  if (Math.abs(value) < 10000) return withMinus(number(value, Number.isInteger(value) ? 0 : 2));
  const power = Math.min(4, Math.floor(Math.log10(Math.abs(value)) / 3));
  return withMinus(String(Number((value / 1000 ** power).toPrecision(4)))) + ['', 'K', 'M', 'B', 'T'][power];
}

// Of seconds: "42 s", "3 min 5 s", "2 h 10 min", "3 d 4 h".
export function span(seconds) {
  if (!Number.isFinite(seconds)) return '–';
  const s = Math.max(0, Math.round(seconds));
  if (seconds < 9.95) return `${number(Math.max(0, seconds), 1)} s`;
  if (s < 60) return `${s} s`;
  const parts = (a, unit_a, b, unit_b) => (b > 0 ? `${number(a)} ${unit_a} ${b} ${unit_b}` : `${number(a)} ${unit_a}`);
  if (s < 3600) return parts(Math.floor(s / 60), 'min', s % 60, 's');
  if (s < 86400) return parts(Math.floor(s / 3600), 'h', Math.floor(s / 60) % 60, 'min');
  return parts(Math.floor(s / 86400), 'd', Math.floor(s / 3600) % 24, 'h');
}

// The same without what is too fine to matter.
export function about(seconds) {
  if (!(seconds >= 60)) return span(Math.round(seconds));
  return seconds < 600 ? span(Math.round(seconds / 5) * 5) : span(Math.round(seconds / 60) * 60);
}

// What a mark on an axis, and any position, is called.
export const tickText = (axis, x) => (axis === 'time' ? span(x) : compact(x));

export function positionText(axis, x) {
  return axis === 'step' ? `step ${number(Math.round(x))}` : axis === 'tokens' ? `${compact(Math.round(x))} tokens` : span(x);
}

const kTimeSteps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200];

// About n round numbers from `low` to `high`.
export function ticks(low, high, n, axis = '') {
  const raw = (high - low) / Math.max(1, n);
  if (!(raw > 0) || !Number.isFinite(raw)) return [];
  const power = 10 ** Math.floor(Math.log10(raw));
  let step = power * [1, 2, 5, 10].find((m) => m * power >= raw * 0.75);
  if (axis === 'step') step = Math.max(1, step);
  if (axis === 'time' && raw >= 0.5) step = kTimeSteps.find((s) => s >= raw) ?? Math.ceil(raw / 86400) * 86400;
  const all = [];
  const first = Math.ceil(low / step - 1e-9);
  for (let i = first; i * step <= high + step * 1e-9 && all.length < 50; ++i) all.push(Number((i * step).toPrecision(12)));
  return all;
}

// Powers of ten and, where there is room, what lies between; round numbers where there is not even one power.
export function logTicks(low, high) {
  const decades = Math.log10(high / low);
  if (decades < 0.7) return ticks(low, high, 5).filter((value) => value > 0);
  const every = Math.max(1, Math.ceil(decades / 6));
  const all = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); ++power) {
    if (power % every !== 0) continue;
    for (const m of decades < 2 ? [1, 2, 5] : decades < 3 ? [1, 3] : [1]) all.push(m * 10 ** power);
  }
  return all.filter((value) => value >= low && value <= high);
}

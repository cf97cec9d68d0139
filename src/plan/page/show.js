// Numbers as the program writes them (src/plan/plan.cc), to the digit, and read as it reads them.

// The digits of |x| and its power of ten, cut to `places` digits behind the first one as exact decimals are rounded: half to even. `places`
// may be negative.
function roundedDigits(x, places) {
  const kept = places + 1;
  const tie = (mantissa) => /^50*$/.test(mantissa.replace('.', '').slice(Math.max(0, kept)));
  let [mantissa, power] = Math.abs(x).toExponential(Math.min(99, Math.max(0, places) + 20)).split('e');
  if (tie(mantissa)) [mantissa, power] = Math.abs(x).toExponential(99).split('e');  // every digit there is
  const all = mantissa.replace('.', '');
  if (kept < 0) return { digits: '0', power: -places + Number(power) };
  const rest = all.slice(kept);
  const before = kept === 0 ? '0' : all.slice(0, kept);
  const up = rest !== '' && (tie(mantissa) ? Number(before.at(-1)) % 2 === 1 : rest[0] >= '5');
  const digits = up ? String(BigInt(before) + 1n).padStart(before.length, '0') : before;
  const exponent = kept === 0 ? Number(power) + 1 : Number(power);
  return digits.length > Math.max(1, kept) ? { digits: digits.slice(0, kept === 0 ? 1 : kept), power: exponent + 1 } : { digits, power: exponent };
}

// {:.Pg} of C.
export function general(x, precision = 6) {
  if (!Number.isFinite(x)) return Number.isNaN(x) ? 'nan' : x > 0 ? 'inf' : '-inf';
  const sign = x < 0 || Object.is(x, -0) ? '-' : '';
  if (x === 0) return sign + '0';
  const { digits, power } = roundedDigits(x, precision - 1);
  const stripped = digits.replace(/0+$/, '') || '0';
  if (power < -4 || power >= precision) {
    const tail = stripped.length > 1 ? '.' + stripped.slice(1) : '';
    return `${sign}${stripped[0]}${tail}e${power < 0 ? '-' : '+'}${String(Math.abs(power)).padStart(2, '0')}`;
  }
  if (power < 0) return `${sign}0.${'0'.repeat(-power - 1)}${stripped}`;
  const whole = digits.slice(0, power + 1).padEnd(power + 1, '0');
  const tail = digits.slice(power + 1).replace(/0+$/, '');
  return sign + whole + (tail ? '.' + tail : '');
}

// {:.Df} of C.
export function pointed(x, decimals) {
  if (!Number.isFinite(x)) return general(x);
  const sign = x < 0 || Object.is(x, -0) ? '-' : '';
  if (x === 0) return sign + (decimals > 0 ? '0.' + '0'.repeat(decimals) : '0');
  const first = Number(Math.abs(x).toExponential(20).split('e')[1]);
  const { digits, power } = roundedDigits(x, first + decimals);
  const all = power < 0 ? '0'.repeat(-power) + digits : digits.padEnd(power + 1, '0');
  const before = power < 0 ? 1 : power + 1;
  const tail = all.slice(before).padEnd(decimals, '0').slice(0, decimals);
  return sign + all.slice(0, before) + (decimals > 0 ? '.' + tail : '');
}

export function showNumber(x) {
  return x === Math.floor(x) && Math.abs(x) < 1e15 ? pointed(x, 0) : general(x, 6);
}

function significant(x, digits) {
  return Math.abs(x) >= 10 ** digits - 0.5 ? pointed(x, 0) : general(x, digits);
}

function showBytes(x) {
  const units = ['bytes', 'KB', 'MB', 'GB', 'TB', 'PB', 'EB', 'ZB', 'YB'];
  let unit = 0;
  let y = x;
  for (; Math.abs(y) >= 1000 && unit + 1 < units.length; ++unit) y /= 1000;
  const text = unit === 0 ? `${general(y)} bytes` : `${significant(y, 5)} ${units[unit]}`;
  return Math.abs(x) >= 1e9 ? `${text} (${significant(x / 2 ** 30, 4)} GiB)` : text;
}

function showScaled(x, unit) {
  for (const [size, letter] of [[1e24, 'Y'], [1e21, 'Z'], [1e18, 'E'], [1e15, 'P'], [1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e3, 'K']]) {
    if (Math.abs(x) >= size) return `${significant(x / size, 4)} ${letter}${unit}`;
  }
  return `${general(x, 4)} ${unit}`;
}

function showSeconds(x) {
  const size = Math.abs(x);
  if (size === 0) return '0 s';
  if (size < 1e-3) return `${general(x * 1e6, 4)} us`;
  if (size < 1) return `${general(x * 1e3, 4)} ms`;
  if (size < 3600) return `${general(x, 4)} s`;
  return size < 86400 ? `${general(x / 3600, 4)} hours` : `${significant(x / 86400, 4)} days`;
}

function showCount(x) {
  for (const [size, letter] of [[1e12, 'T'], [1e9, 'B'], [1e6, 'M']]) {
    if (Math.abs(x) >= size) return `${significant(x / size, 5)} ${letter}`;
  }
  return Math.abs(x) >= 100 ? pointed(x, 0) : general(x, 4);
}

export function showValue(x, unit) {
  if (unit === 'bytes') return showBytes(x);
  if (unit === 'bytes/s') return showScaled(x, 'B/s');
  if (unit === 's') return showSeconds(x);
  if (unit === 'share') return `${significant(100 * x, 4)} %`;
  if (unit === 'dollars') return Math.abs(x) >= 1e6 ? `$${significant(x / 1e6, 4)} M` : `$${pointed(x, Math.abs(x) >= 1000 ? 0 : 2)}`;
  if (unit === 'FLOP' || unit === 'FLOP/s') return showScaled(x, unit);
  if (unit === 'yes') return x !== 0 ? 'yes' : 'no';
  if (['hours', 'days', 'times', 'tokens/s'].includes(unit)) return `${showCount(x)} ${unit}`;
  return showCount(x);
}

// What cannot be planned, in the program's words.
export class PlanError extends Error {}

const kSizes = {
  '': 1, '%': 0.01, K: 1e3, k: 1e3, M: 1e6, B: 1e9, G: 1e9, T: 1e12, KB: 1e3, MB: 1e6, GB: 1e9, TB: 1e12, KiB: 1024, MiB: 2 ** 20, GiB: 2 ** 30, TiB: 2 ** 40
};

// "14.8T", "400GB", "80%", "2,048": a number; PlanError, beginning with `what`, for another text.
export function parseQuantity(text, what) {
  const match = /^([-+]?)((?:[0-9]{1,3}(?:[,_][0-9]{3})+|[0-9]*)(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)(.*)$/s.exec(text);
  const digits = match[2].replace(/[,_]/g, '');
  const unit = match[3].replace(/^ +/, '').replace(/\/s$/, '');
  const value = /^([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$/.test(digits) && Object.hasOwn(kSizes, unit) ? Number((match[1] === '-' ? '-' : '') + digits) * kSizes[unit] : NaN;
  const commas = text.includes(',') ? '; commas part groups of three digits, as 1,024' : '';
  if (!Number.isFinite(value)) throw new PlanError(`${what} ${printableText(text, 60)}: should be a number, as 4096, 14.8T, 400GB or 80%${commas}`);
  return value;
}

// Made fit for a line as the program does it: control characters become \xNN, what is longer "...".
export function printableText(text, most_bytes = 200) {
  let out = '';
  let bytes = 0;
  const append = (part) => {
    out += part;
    bytes += new TextEncoder().encode(part).length;
  };
  for (const character of text) {
    if (bytes >= most_bytes) return out + '...';
    const code = character.codePointAt(0);
    if (code < 0x20 || code === 0x7f) append('\\x' + code.toString(16).padStart(2, '0'));
    else if (code >= 0x80 && code < 0xa0) append('\\xc2\\x' + code.toString(16));
    else append(character);
  }
  return out;
}

// A number as one would write it for an option: a text that parseQuantity makes this number of again.
export function optionText(x, unit) {
  if (unit === 'share') return reads(`${general(100 * x, 12)}%`, x) ?? String(x);
  const ends = unit === 'bytes' || unit === 'bytes/s' ? ['TB', 'TiB', 'GB', 'GiB', 'MB', 'KB'] : unit === 'tokens' || x >= 1e6 ? ['T', 'B', 'M'] : [];
  for (const end of ends) {
    if (Math.abs(x) < kSizes[end]) continue;
    const text = general(x / kSizes[end], 12);
    const found = text.length <= 6 ? reads(text + end + (unit === 'bytes/s' ? '/s' : ''), x) : null;
    if (found) return found;
  }
  return String(x);
}

function reads(text, x) {
  return parseQuantity(text, '') === x ? text : null;
}

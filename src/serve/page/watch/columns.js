// Columns of numbers that grow line by line, made so that a million of them are drawn as fast as a thousand.

const kBlock = 64;
const kFirstRows = 1024;

function grown(array) {
  const larger = new array.constructor(array.length * 2);
  larger.set(array);
  return larger;
}

// The first of rows [begin, end) whose value is not below x; values do not fall.
export function lowerBound(values, begin, end, x) {
  while (begin < end) {
    const middle = (begin + end) >>> 1;
    if (values[middle] < x) begin = middle + 1;
    else end = middle;
  }
  return begin;
}

// Numbers, some of them missing (NaN), and of each block of 64 the least and the greatest.
export class Column {
  length = 0;
  cuts = 0;  // how often rows were taken away
  #low;
  #high;

  constructor(Type = Float32Array) {
    this.values = new Type(kFirstRows);
    this.#low = new Type(kFirstRows / kBlock);
    this.#high = new Type(kFirstRows / kBlock);
  }

  push(value) {
    if (this.length === this.values.length) {
      this.values = grown(this.values);
      this.#low = grown(this.#low);
      this.#high = grown(this.#high);
    }
    this.values[this.length] = value;
    this.#count(this.length++);
  }

  truncate(length) {
    if (length >= this.length) return;
    this.length = length;
    ++this.cuts;
    for (let i = length - (length % kBlock); i < length; ++i) this.#count(i);
  }

  #count(row) {
    const block = Math.floor(row / kBlock);
    if (row % kBlock === 0) {
      this.#low[block] = Infinity;
      this.#high[block] = -Infinity;
    }
    const value = this.values[row];
    if (value < this.#low[block]) this.#low[block] = value;
    if (value > this.#high[block]) this.#high[block] = value;
  }

  // [least, greatest] of rows [begin, end) into `out`; false where none has a number.
  range(begin, end, out) {
    let low = Infinity;
    let high = -Infinity;
    for (let i = begin; i < end;) {
      if (i % kBlock === 0 && i + kBlock <= end) {
        const block = i / kBlock;
        if (this.#low[block] < low) low = this.#low[block];
        if (this.#high[block] > high) high = this.#high[block];
        i += kBlock;
      } else {
        const value = this.values[i++];
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
    out[0] = low;
    out[1] = high;
    return low <= high;
  }

  #isEmpty(block) { return !(this.#low[block] <= this.#high[block]); }

  // The last row up to `row` that has a number; -1: none.
  before(row) {
    for (let i = Math.min(row, this.length - 1); i >= 0;) {
      if (!Number.isNaN(this.values[i])) return i;
      i = i % kBlock === kBlock - 1 && this.#isEmpty(Math.floor(i / kBlock)) ? i - kBlock : i - 1;
    }
    return -1;
  }

  // The first row from `row` on that has a number; `length`: none.
  from(row) {
    for (let i = Math.max(row, 0); i < this.length;) {
      if (!Number.isNaN(this.values[i])) return i;
      i = i % kBlock === 0 && i + kBlock <= this.length && this.#isEmpty(i / kBlock) ? i + kBlock : i + 1;
    }
    return this.length;
  }
}

// The moving average of a column in which a row counts for as much as all behind it together after about `window` rows; it
// begins with the first number. Rows without one have the average before.
export class Smoothed {
  #column;
  #keep;
  #cuts;
  #sum = 0;
  #weight = 0;
  length = 0;

  constructor(column, window) {
    this.#column = column;
    this.#keep = (window - 1) / (window + 1);
    this.#cuts = column.cuts;
    this.values = new Float32Array(column.values.length);
  }

  follow() {
    const { values, length, cuts } = this.#column;
    if (this.#cuts !== cuts) {
      this.#cuts = cuts;
      this.#sum = this.#weight = this.length = 0;
    }
    while (this.values.length < length) this.values = grown(this.values);
    for (; this.length < length; ++this.length) {
      const value = values[this.length];
      if (!Number.isNaN(value)) {
        this.#sum = this.#sum * this.#keep + value * (1 - this.#keep);
        this.#weight = this.#weight * this.#keep + (1 - this.#keep);
      }
      this.values[this.length] = this.#sum / this.#weight;
    }
    return this;
  }
}

// What stands in few rows (loads of experts, samples) and is large: once there is too much, every second is dropped, but
// the newest.
export class Snapshots {
  list = [];  // {row, size, ...}
  n_dropped = 0;
  #size = 0;

  constructor(most, most_size) {
    this.most = most;
    this.most_size = most_size;
  }

  push(item) {
    this.list.push(item);
    this.#size += item.size;
    while (this.list.length > 1 && (this.list.length > this.most || this.#size > this.most_size)) {
      const n = this.list.length;
      this.list = this.list.filter((_, i) => i === n - 1 || (n - 1 - i) % 2 === 0);
      if (this.list.length === n) this.list.shift();
      this.n_dropped += n - this.list.length;
      this.#size = this.list.reduce((sum, each) => sum + each.size, 0);
    }
  }

  truncate(rows) {
    if (!(this.last?.row >= rows)) return;
    this.list = this.list.filter(({ row }) => row < rows);
    this.#size = this.list.reduce((sum, each) => sum + each.size, 0);
  }

  get last() { return this.list.at(-1); }
}

// Reads the logs of the runs as they grow.

import { ApiError, ask } from '/ask.js';

const kSoon_ms = 1000;   // between two looks while steps come
const kLater_ms = 3000;  // while none do
const kHidden_ms = 15000;
const kQuietFor_ms = 15000;

// The text of an answer, or ApiError where it breaks off.
function textOf(response) {
  return response.text().catch(() => { throw new ApiError(0, 'The server’s answer broke off.'); });
}

class LogReader {
  #next = 0;
  #mark = '';
  #changed = '';

  constructor(index, data) {
    this.index = index;
    this.data = data;
    this.bytes = 0;
  }

  get share() { return this.bytes > 0 ? this.#next / this.bytes : 1; }

  // Up to the end, piece by piece; `told` after each. Whether anything came.
  async follow(changed, told) {
    if (changed === this.#changed) return false;
    let came = false;
    for (;;) {
      const from = this.#next;
      const response = await ask('GET', `/runs/${this.index}/log?from=${from}${this.#mark ? '&mark=' + this.#mark : ''}`);
      if (response.status === 204) return came;
      const header = (name) => response.headers.get('X-Log-' + name) ?? '';
      const text = await textOf(response);
      const replaced = Number(header('From')) !== from;
      if (replaced) this.data.clear();
      this.#next = Number(header('Next'));
      this.#mark = header('Mark');
      this.bytes = Number(header('Bytes'));
      this.data.add(text);
      came ||= text !== '';
      told();
      if (this.#next >= this.bytes || !(replaced || this.#next > from)) break;  // the last line may not be whole
    }
    this.#changed = changed;  // as it was before: what was written meanwhile is looked for again
    return came;
  }
}

// Looks again and again. `meet(list)` gives the runs to read into, [{index, data}], for what the server names; `told(states)` is
// called when something is new, `failed(error)` when the server does not answer; it waits for retry() where a key is missing.
export class Reader {
  #readers = [];
  #names = '';
  #timer = 0;
  #last_news = performance.now();
  #busy = false;

  constructor({ meet, told, failed }) {
    Object.assign(this, { meet, told, failed });
    document.addEventListener('visibilitychange', () => { if (!document.hidden) this.retry(); });
  }

  share(index) { return this.#readers[index]?.share ?? 1; }

  retry() {
    clearTimeout(this.#timer);
    this.#look();
  }

  async #look() {
    if (this.#busy) return;
    this.#busy = true;
    let waits = false;
    try {
      const list = JSON.parse(await textOf(await ask('GET', '/runs')));
      const names = JSON.stringify(list.runs.map(({ name, path }) => [name, path]));
      if (names !== this.#names) {  // the first time, or another server's runs
        this.#names = names;
        this.#readers = this.meet(list).map(({ index, data }) => new LogReader(index, data));
      }
      this.told(list.runs);
      const came = await Promise.all(list.runs.map(({ there, changed }, i) =>
        (there ? this.#readers[i].follow(changed, () => this.told(list.runs)) : false)));
      if (came.some(Boolean)) this.#last_news = performance.now();
      this.failed(null);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      waits = error.status === 401;
      this.failed(error);
    } finally {
      this.#busy = false;
      const wait = document.hidden ? kHidden_ms : performance.now() - this.#last_news < kQuietFor_ms ? kSoon_ms : kLater_ms;
      if (!waits) this.#timer = setTimeout(() => this.#look(), wait);
    }
  }
}

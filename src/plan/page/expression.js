// Formulas of formulas.toml, as functions made once. They are expressions of JavaScript, but making functions of texts is what the page's
// Content-Security-Policy forbids, so that no text can become a script; this reads them as src/plan/expression.cc does.

// The least number of places, each with room for its share of `things` and of `others`, whole ones; 0 if there is none.
function leastParts(things, thing, others, other, room) {
  const fits = (n) => Math.ceil(things / n) * thing + Math.ceil(others / n) * other <= room;
  let [low, high] = [1, Math.max(1, things, others)];
  if (!(high <= 1e15) || !fits(high)) return 0;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if (fits(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}

const kFunctions = {
  min: (a, b) => (b < a ? b : a),
  max: (a, b) => (a < b ? b : a),
  ceil: Math.ceil,
  floor: Math.floor,
  round: (a) => Math.floor(a + 0.5),
  sqrt: Math.sqrt,
  pow: Math.pow,
  log: Math.log,
  exp: Math.exp,
  least_parts: leastParts
};
const kTwoArguments = ['min', 'max', 'pow'];

const flag = (x) => (x ? 1 : 0);
export const holds = (x) => x !== 0 && !Number.isNaN(x);

// The loosest first.
const kLevels = [
  { '||': (a, b) => (v) => { const x = a(v); return holds(x) ? x : b(v); } },
  { '&&': (a, b) => (v) => { const x = a(v); return holds(x) ? b(v) : x; } },
  { '==': (a, b) => (v) => flag(a(v) === b(v)), '!=': (a, b) => (v) => flag(a(v) !== b(v)) },
  {
    '<=': (a, b) => (v) => flag(a(v) <= b(v)),
    '>=': (a, b) => (v) => flag(a(v) >= b(v)),
    '<': (a, b) => (v) => flag(a(v) < b(v)),
    '>': (a, b) => (v) => flag(a(v) > b(v))
  },
  { '+': (a, b) => (v) => a(v) + b(v), '-': (a, b) => (v) => a(v) - b(v) },
  { '*': (a, b) => (v) => a(v) * b(v), '/': (a, b) => (v) => a(v) / b(v) }
];

// [{text, kind: 'number' | 'name' | 'sign' | 'space'}], which joined are the text again.
export function tokensOf(text) {
  const pattern = /([0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?)|([a-z_][a-z_0-9]*)|(\|\||&&|[=!<>]=|[-+*/<>!?:(),])|(\s+)/y;
  const tokens = [];
  while (pattern.lastIndex < text.length) {
    const at = pattern.lastIndex;
    const match = pattern.exec(text);
    if (!match) throw new Error(`formula '${text}', character ${at + 1}: no sign of a formula`);
    const kind = ['number', 'name', 'sign', 'space'][match.slice(1).findIndex((part) => part !== undefined)];
    tokens.push({ text: match[0], kind });
  }
  return tokens;
}

class FormulaReader {
  #tokens;
  #at = 0;
  #text;

  constructor(text) {
    this.#text = text;
    this.#tokens = tokensOf(text).filter(({ kind }) => kind !== 'space');
  }

  whole() {
    const read = this.#choice();
    if (this.#at < this.#tokens.length) this.#fail();
    return read;
  }

  #fail() { throw new Error(`formula '${this.#text}', sign ${this.#at + 1}: is none`); }

  #accept(sign) {
    const token = this.#tokens[this.#at];
    if (token?.kind !== 'sign' || token.text !== sign) return false;
    ++this.#at;
    return true;
  }

  #demand(sign) { if (!this.#accept(sign)) this.#fail(); }

  #choice() {
    const condition = this.#level(0);
    if (!this.#accept('?')) return condition;
    const yes = this.#choice();
    this.#demand(':');
    const no = this.#choice();
    return (v) => (holds(condition(v)) ? yes(v) : no(v));
  }

  #level(i) {
    if (i === kLevels.length) return this.#unary();
    let left = this.#level(i + 1);
    for (;;) {
      const sign = Object.keys(kLevels[i]).find((each) => this.#accept(each));
      if (!sign) return left;
      left = kLevels[i][sign](left, this.#level(i + 1));
    }
  }

  #unary() {
    if (this.#accept('-')) {
      const a = this.#unary();
      return (v) => -a(v);
    }
    if (this.#accept('!')) {
      const a = this.#unary();
      return (v) => flag(!holds(a(v)));
    }
    return this.#primary();
  }

  #primary() {
    if (this.#accept('(')) {
      const inner = this.#choice();
      this.#demand(')');
      return inner;
    }
    const token = this.#tokens[this.#at++];
    if (token?.kind === 'number') {
      const value = Number(token.text);
      return () => value;
    }
    if (token?.kind !== 'name') this.#fail();
    if (Object.hasOwn(kFunctions, token.text)) return this.#call(token.text);
    const name = token.text;
    return (v) => {
      const value = v[name];
      if (value === undefined) throw new Error(`formula '${this.#text}': ${name} has no value`);
      return value;
    };
  }

  #call(name) {
    const f = kFunctions[name];
    this.#demand('(');
    let left = this.#choice();
    if (kTwoArguments.includes(name)) {
      this.#demand(',');
      do {
        const [a, b] = [left, this.#choice()];
        left = (v) => f(a(v), b(v));
      } while (name !== 'pow' && this.#accept(','));
    } else if (name === 'least_parts') {
      const all = [left];
      while (all.length < f.length) {
        this.#demand(',');
        all.push(this.#choice());
      }
      left = (v) => f(...all.map((each) => each(v)));
    } else {
      const a = left;
      left = (v) => f(a(v));
    }
    this.#demand(')');
    return left;
  }
}

// A function from values by name to a number. Error for what is no formula, and from the function for a name without a value.
export const compiled = (text) => new FormulaReader(text).whole();

// A slider and a field for each input of a plan, a list for each choice.

import { by, h, iconButton } from './dom.js';
import { general, optionText, parseQuantity, showValue } from './show.js';

// Which inputs stand together; those that are not here stand at the end.
const kGroups = {
  memory: [
    ['To serve', ['gpus', 'weights', 'kv_type', 'context', 'batch', 'ram']],
    ['To train', ['precision', 'moments', 'pp', 'dp', 'ep', 'pp_schedule', 'batch_size', 'micro_batch', 'seq_len']]
  ],
  train: [
    ['Training', ['tokens', 'precision', 'mtp', 'price']],
    ['Layout', ['gpus', 'pp', 'dp', 'ep', 'pp_schedule']],
    ['Batch', ['batch_size', 'micro_batch', 'seq_len']]
  ],
  serve: [
    ['Requests', ['prompt', 'context', 'batch', 'mtp_acceptance', 'cache_hits', 'utilization']],
    ['Layout', ['gpus', 'ep', 'prefill_ep', 'redundant_experts', 'weights', 'kv_type']],
    ['Price', ['price', 'price_hit', 'price_miss', 'price_output', 'input_tokens_a_day', 'output_tokens_a_day']],
    ['Network and host', ['network_bandwidth', 'ram', 'ram_bandwidth', 'nvme_bandwidth']]
  ]
};
const kTokensOfContext = ['context', 'prompt', 'seq_len'];

const powers = (from, to) => Array.from({ length: Math.round(Math.log2(to / from)) + 1 }, (_, i) => from * 2 ** i);
const even = (from, to, step) => Array.from({ length: Math.round((to - from) / step) + 1 }, (_, i) => Number((from + i * step).toPrecision(12)));
// Round numbers of each power of ten, from 10^a up to 10^b.
const round = (a, b, digits = [1, 1.5, 2, 3, 4, 5, 6, 8]) =>
  [...Array.from({ length: b - a }, (_, i) => digits.map((digit) => Number(`${digit}e${a + i}`))).flat(), Number(`1e${b}`)];

// Where a slider stops; any other number can be written beside it.
const kStops = {
  gpus: () => powers(1, 16384),
  pp: () => powers(1, 64),
  dp: () => powers(1, 8192),
  ep: () => powers(1, 512),
  prefill_ep: () => powers(1, 512),
  redundant_experts: () => [0, ...powers(8, 256)],
  batch_size: () => powers(1, 65536),
  micro_batch: () => powers(1, 64),
  tokens: () => round(9, 14, [1, 1.5, 2, 3, 4, 5, 6, 8]),
  price: () => even(0, 10, 0.1),
  ram: () => [0, ...powers(16, 4096).map((gib) => gib * 2 ** 30)],
  input_tokens_a_day: () => [0, ...round(6, 13, [1, 2, 5])],
  output_tokens_a_day: () => [0, ...round(6, 13, [1, 2, 5])]
};
const kStopsOfUnit = {
  share: () => even(0, 1, 0.01),
  tokens: () => powers(128, 1048576),
  dollars: () => even(0, 10, 0.05),
  'bytes/s': () => [0, ...round(9, 13, [1, 1.5, 2, 3, 4, 5, 6, 8])],
  bytes: () => [0, ...round(9, 14, [1, 2, 5])]
};

function stopsOf(input) {
  const stops = (kStops[input.name] ?? kStopsOfUnit[input.unit] ?? (() => powers(1, 8192)))();
  return stops.filter((stop) => stop >= input.least && stop <= input.most);
}

// The nearest stop, by ratio where there is one.
function nearest(stops, value) {
  let best = 0;
  const distance = (stop) => (stop > 0 && value > 0 ? Math.abs(Math.log(stop / value)) : stop === value ? 0 : 1e6 + Math.abs(stop - value));
  stops.forEach((stop, i) => { if (distance(stop) < distance(stops[best])) best = i; });
  return best;
}

class Control {
  #input;
  #stops;
  #slider = null;
  #field;
  #reset;

  constructor(input, { give, withdraw }) {
    this.#input = input;
    const { name, title, option } = input;
    const id = 'input-' + name;
    this.#reset = iconButton('undo', `${title}: default`, () => {
      withdraw(name);
      this.#field.focus();
    }, { class: 'icon-button reset' });
    const label = h('label', { for: id, id: 'label-' + name }, title, ' ', h('code', { text: option }));
    const row = h('div', { class: 'control-row' });
    if (input.choices.length > 0) {
      this.#field = h('select', { id, on: { change: () => give(name, this.#field.value) } }, ...input.choices.map((choice) => h('option', { value: choice, text: choice })));
      row.append(this.#field, this.#reset);
    } else {
      this.#stops = stopsOf(input);
      this.#slider = h('input', {
        type: 'range', min: 0, max: this.#stops.length - 1, step: 1, 'aria-labelledby': 'label-' + name,
        on: { input: () => give(name, optionText(this.#stops[Number(this.#slider.value)], input.unit)) }
      });
      this.#field = h('input', {
        type: 'text', id, autocomplete: 'off', spellcheck: 'false', maxlength: 60,
        on: { input: () => (this.#field.value.trim() === '' ? withdraw(name) : give(name, this.#field.value.trim())), blur: () => this.draw(this.#drawn) }
      });
      row.append(this.#slider, this.#field, this.#reset);
    }
    this.element = h('div', { class: 'control', data: { input: name } }, label, row);
  }

  #drawn = null;

  // Of a fraction not more digits than anyone reads.
  #standardText(value) {
    return optionText(value % 1 === 0 ? value : Number(general(value, 9)), this.#input.unit);
  }

  // planned: what the plan took; without it, of a plan that cannot be, what was given stays.
  draw(drawn) {
    this.#drawn = drawn;
    if (!drawn) return;
    const { planned, given, error, model_context } = drawn;
    const { name, unit, option } = this.#input;
    this.element.dataset.given = String(given !== undefined);
    this.#reset.disabled = given === undefined;
    const wrong = error !== '' && error.includes(option + ' ');
    for (const element of [this.#field, this.#slider]) {
      if (!element) continue;
      element.toggleAttribute('aria-invalid', false);
      element.removeAttribute('aria-describedby');
      if (!wrong) continue;
      element.setAttribute('aria-invalid', 'true');
      element.setAttribute('aria-describedby', 'error');
    }
    if (this.#slider && kTokensOfContext.includes(name)) {
      const n = this.#stops.filter((stop) => stop <= model_context).length;
      this.#slider.max = String(Math.max(1, n) - 1);
    }
    this.element.dataset.value = planned ? planned.choice || String(planned.value) : '';
    if (planned) {
      if (this.#slider) {
        this.#slider.value = String(nearest(this.#stops, planned.value));
        this.#slider.setAttribute('aria-valuetext', showValue(planned.value, unit));
      }
      // What is being written stays as it is.
      const typing = this.#slider && this.#field === document.activeElement && this.#field.value.trim() === (given ?? '');
      if (!typing) this.#field.value = given ?? (planned.choice || this.#standardText(planned.value));
      return;
    }
    if (given === undefined || this.#field === document.activeElement) return;
    this.#field.value = given;
    if (!this.#slider) return;
    try {
      this.#slider.value = String(nearest(this.#stops, parseQuantity(given, '')));
      this.#slider.setAttribute('aria-valuetext', given);
    } catch {
      // no number: the slider stays where it is
    }
  }
}

// Controls of one kind of plan at a time. give(name, text), withdraw(name).
export class Controls {
  #kind = '';
  #all = new Map();
  #data;
  #actions;

  constructor(data, actions) {
    this.#data = data;
    this.#actions = actions;
  }

  #build(kind) {
    this.#kind = kind;
    const { inputs } = this.#data.kinds[kind];
    this.#all = new Map(inputs.map((input) => [input.name, new Control(input, this.#actions)]));
    const grouped = new Set(kGroups[kind].flatMap(([, names]) => names));
    const groups = [...kGroups[kind], ['More', inputs.map(({ name }) => name).filter((name) => !grouped.has(name))]];
    by('inputs').replaceChildren(...groups.map(([title, names]) => {
      const controls = names.filter((name) => this.#all.has(name)).map((name) => this.#all.get(name).element);
      return controls.length > 0 ? h('fieldset', { class: 'group' }, h('legend', { text: title }), ...controls) : '';
    }).filter((group) => group !== ''));
  }

  // inputs: planned ones by name; given: texts by name; error: what is wrong, or ''.
  draw({ kind, inputs, given, error, model_context }) {
    if (kind !== this.#kind) this.#build(kind);
    for (const [name, control] of this.#all) control.draw({ planned: inputs.get(name), given: given[name], error, model_context });
  }
}

// The lines of a plan by sections: each with its value, and behind it formula, numbers in it, basis and source.

import { by, h } from './dom.js';
import { tokensOf } from './expression.js';
import { withNumbers } from './plan.js';
import { pointed, showNumber, showValue } from './show.js';

const kBases = {
  exact: 'exact: follows from the architecture',
  published: 'published: a figure or rule of the source',
  fitted: 'fitted: rests on constants that were fitted to published runs',
  estimate: 'estimate: a model of what happens, not fitted'
};

// Shows where a name of a formula has its value.
function goTo(name, behind) {
  const line = by('line-' + name);
  if (line && !line.hidden) {
    line.open = true;
    line.querySelector('summary').focus();
    return;
  }
  const field = by('input-' + name) ?? by('input-' + name.replace(/_is_.*$/, ''));
  if (field) return field.focus();
  behind.show(name);
}

function formulaNodes(text, titles, behind) {
  return tokensOf(text).map(({ kind, text: part }) => (
    kind === 'name' && titles(part) !== undefined
      ? h('button', { type: 'button', class: 'name', title: titles(part), text: part, on: { click: () => goTo(part, behind) } })
      : part));
}

class LineRow {
  #line;
  #value;
  #whole;
  #working;
  #drawn = null;

  constructor(line) {
    this.#line = line;
    this.#value = h('span', { class: 'value' });
    this.#whole = h('span', { class: 'whole' });
    this.#working = h('dl', { class: 'working' });
    this.element = h(
      'details', { class: 'line', id: 'line-' + line.name, data: { line: line.name, basis: line.basis }, on: { toggle: () => this.#work() } },
      h('summary', {}, h('span', { class: 'title', text: line.title }), this.#whole, this.#value,
        h('span', { class: 'basis', text: line.basis === 'exact' ? '' : line.basis })),
      this.#working);
  }

  draw(plan, titles, behind) {
    const { value, shown } = plan.lines.get(this.#line.name);
    this.#drawn = { plan, titles, behind };
    this.element.hidden = !shown;
    if (this.element.dataset.value === String(value)) {
      this.#work();
      return shown;
    }
    this.element.dataset.value = String(value);
    this.#value.textContent = showValue(value, this.#line.unit);
    this.#whole.textContent = this.#line.unit === 'parameters' && Math.abs(value) >= 1e6 ? pointed(value, 0).replace(/\B(?=(\d{3})+$)/g, ',') : '';
    this.#work();
    return shown;
  }

  #work() {
    if (!this.element.open || !this.#drawn) return;
    const { plan, titles, behind } = this.#drawn;
    const { name, value: formula, unit, basis, source } = this.#line;
    const exact = plan.lines.get(name).value;
    const entries = [
      ['Formula', h('code', {}, `${name} = `, ...formulaNodes(formula, titles, behind))],
      ['With numbers', h('code', { class: 'numbers-in', text: withNumbers(formula, plan.values) })],
      ['Value', unit === 'yes' || unit === 'count' ? showNumber(exact) : `${showNumber(exact)} ${unit}`],
      ['Basis', kBases[basis]],
      ['Source', source]
    ];
    if (!/[a-z]/.test(formula)) entries.splice(1, 1);
    this.#working.replaceChildren(...entries.flatMap(([term, what]) => [h('dt', { text: term }), h('dd', {}, what)]));
  }
}

export class Lines {
  #data;
  #kind = '';
  #sections = [];

  #behind;

  constructor(data, behind) {
    this.#data = data;
    this.#behind = behind;
  }

  #build(kind) {
    this.#kind = kind;
    this.#sections = [];
    for (const line of this.#data.kinds[kind].lines) {
      if (!line.show) continue;
      let section = this.#sections.find(({ title }) => title === line.section);
      if (!section) {
        const id = `section-${this.#sections.length}`;
        section = { title: line.section, rows: [], element: h('section', { class: 'panel lines', 'aria-labelledby': id }, h('h2', { id, text: line.section })) };
        this.#sections.push(section);
      }
      const row = new LineRow(line);
      section.rows.push(row);
      section.element.append(row.element);
    }
    by('lines').replaceChildren(...this.#sections.map(({ element }) => element));
  }

  draw(plan) {
    if (plan.kind !== this.#kind) this.#build(plan.kind);
    const titles = (name) => plan.lines.get(name)?.line.title ?? plan.inputs.get(name)?.input.title ?? plan.inputs.get(name.replace(/_is_.*$/, ''))?.input.title ??
      (plan.values[name] !== undefined ? name : undefined);
    for (const { rows, element } of this.#sections) {
      const shown = rows.map((row) => row.draw(plan, titles, this.#behind));
      element.hidden = !shown.includes(true);
    }
  }
}

// ---- What formulas take beside inputs: facts of the model, numbers of the hardware, constants, lines that are not shown

const table = (title, rows) => h(
  'div', { class: 'table' },
  h('table', {}, h('caption', { class: 'visually-hidden', text: title }),
    h('tbody', {}, ...rows.map(([name, value, about]) => h('tr', { id: 'behind-' + name }, h('th', { scope: 'row', tabindex: -1 }, h('code', { text: name })),
      h('td', { text: showNumber(value) }), h('td', { text: about }))))));

// A choice's numbers stand behind the model's.
function modelRows({ model, inputs, values }) {
  const of_choices = Object.entries(model.of_choice).flatMap(([input, choices]) => {
    const planned = inputs.get(input);
    return planned ? Object.keys(choices[planned.choice]).map((name) => [name, values[name], `of ${input} ${planned.choice}`]) : [];
  });
  return [...Object.entries(model.values).map(([name, value]) => [name, value, '']), ...of_choices];
}

// Keys of the hardware's table have other units and names than formulas: sources stand by themselves.
const sourceList = ({ sources }) => h('dl', { class: 'working' }, ...Object.entries(sources).flatMap(([key, text]) => [h('dt', {}, h('code', { text: key })), h('dd', { text })]));

export class Behind {
  #parts;
  #plan = null;

  constructor(data) {
    const hidden = ({ lines }) => [...lines.values()].filter(({ shown }) => !shown).map(({ line, value }) => [line.name, value, `${line.title}: ${line.value}`]);
    const part = (title, rows, more = () => []) => {
      const summary = h('summary');
      const body = h('div');
      const element = h('details', { on: { toggle: () => this.#fill() } }, summary, body);
      return { title, rows, more, summary, body, element, filled: null };
    };
    const constants = data.constants.map(({ name, value, title, source }) => [name, value, `${title}; ${source}`]);
    this.#parts = [
      part(({ model }) => `Facts of ${model.name}`, modelRows),
      part(({ device }) => `Numbers of ${device.title}`, ({ device }) => Object.entries(device.values).map(([name, value]) => [name, value, '']), ({ device }) => [sourceList(device)]),
      part(() => 'Constants', () => constants),
      part(() => 'Lines that are not shown', hidden)
    ];
    by('behind').replaceChildren(h('h2', { text: 'Numbers behind' }), ...this.#parts.map(({ element }) => element));
  }

  draw(plan) {
    this.#plan = plan;
    for (const { summary, title } of this.#parts) summary.textContent = title(plan);
    this.#fill();
  }

  #fill() {
    if (!this.#plan) return;
    for (const part of this.#parts) {
      const wanted = part.element.open ? this.#plan : null;
      if (part.filled === wanted) continue;
      part.filled = wanted;
      part.body.replaceChildren(...(wanted ? [table(part.title(wanted), part.rows(wanted)), ...part.more(wanted)] : []));
    }
  }

  // Opens and focuses the row of a name.
  show(name) {
    const part = this.#parts.find(({ rows }) => rows(this.#plan).some(([row]) => row === name));
    if (!part) return;
    part.element.open = true;
    this.#fill();
    by('behind-' + name).querySelector('th').focus();
  }
}

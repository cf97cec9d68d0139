// A plan, as make_plan of src/plan/plan.cc makes it: the same formulas in the same order.

import { compiled, holds, tokensOf } from './expression.js';
import { parseQuantity, PlanError, printableText, showNumber, showValue } from './show.js';

// The page's data with every formula as a function.
export function readData(text) {
  const data = JSON.parse(text);
  const { inputs, constants, lines, checks, advice } = data.formulas;
  for (const input of inputs) input.standard_of = compiled(input.standard);
  for (const line of lines) line.value_of = compiled(line.value);
  for (const each of [...lines, ...checks, ...advice]) each.when_of = each.when === '' ? () => 1 : compiled(each.when);
  const of = (list, kind) => list.filter(({ plans }) => plans.includes(kind));
  const kinds = {};
  for (const kind of ['memory', 'train', 'serve']) {
    kinds[kind] = { inputs: of(inputs, kind), lines: of(lines, kind), checks: of(checks, kind), advice: of(advice, kind) };
  }
  return { ...data, kinds, constants };
}

function filled(text, plan) {
  return text.replace(/\{([^}]*)\}/g, (_, name) => {
    const planned = plan.inputs.get(name);
    if (planned) return planned.input.choices.length === 0 ? showValue(planned.value, planned.input.unit) : planned.choice;
    const line = plan.lines.get(name);
    return line ? showValue(line.value, line.line.unit) : showNumber(plan.values[name]);
  });
}

function chosenInput(kind, input, given, values) {
  const is_given = given !== undefined;
  if (input.choices.length > 0) {
    const at = is_given ? input.choices.indexOf(given) : Math.min(Math.max(input.standard_of(values), 0), input.choices.length - 1);
    if (at < 0) throw new PlanError(`plan ${kind}: ${input.option} ${printableText(given)}: must be one of ${input.choices.join(', ')}`);
    return { input, value: Math.floor(at), choice: input.choices[Math.floor(at)], given: is_given };
  }
  const what = `plan ${kind}: ${input.option}`;
  const value = is_given ? parseQuantity(given, what) : input.standard_of(values);
  if (is_given && !(value >= input.least && value <= input.most)) {
    throw new PlanError(`${what} ${printableText(given)}: must be from ${showNumber(input.least)} to ${showNumber(input.most)}`);
  }
  if (is_given && input.whole && value !== Math.floor(value)) throw new PlanError(`${what} ${printableText(given)}: must be a whole number`);
  return { input, value, choice: '', given: is_given };
}

// {values, inputs: by name, lines: by name, advice: [text]}. given: texts by the names of inputs. PlanError, which has the inputs that were
// read before, where there is no such plan.
export function makePlan(data, kind, model, device, given) {
  const { inputs, lines, checks, advice } = data.kinds[kind];
  const values = Object.assign(Object.create(null), model.values, device.values);
  for (const constant of data.constants) values[constant.name] = constant.value;
  const plan = { kind, model, device, values, inputs: new Map(), lines: new Map(), advice: [] };
  try {
    for (const input of inputs) {
      const planned = chosenInput(kind, input, given[input.name], values);
      values[input.name] = planned.value;
      for (const choice of input.choices) values[`${input.name}_is_${choice}`] = choice === planned.choice ? 1 : 0;
      Object.assign(values, model.of_choice[input.name]?.[planned.choice]);
      plan.inputs.set(input.name, planned);
    }
    for (const check of checks) {
      if (holds(check.when_of(values))) throw new PlanError(`plan ${kind}: ${filled(check.text, plan)}`);
    }
    for (const line of lines) {
      const there = holds(line.when_of(values));
      const value = there ? line.value_of(values) : 0;
      if (!Number.isFinite(value)) {
        throw new PlanError(`plan ${kind}: ${line.name} (${line.title}) comes out as no finite number: ${withNumbers(line.value, values)}`);
      }
      values[line.name] = value;
      plan.lines.set(line.name, { line, value, shown: there && line.show });
    }
    for (const each of advice) {
      if (holds(each.when_of(values))) plan.advice.push(filled(each.text, plan));
    }
  } catch (error) {
    error.inputs = plan.inputs;
    throw error;
  }
  return plan;
}

// The formula with each name's value in its place.
export function withNumbers(text, values) {
  return tokensOf(text).map((token) => (token.kind === 'name' && values[token.text] !== undefined ? showNumber(values[token.text]) : token.text)).join('');
}

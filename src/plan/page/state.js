// What the user has chosen; the address's fragment holds it, so that a link shows the same plan.

export const kKinds = ['memory', 'train', 'serve'];
const kMostText = 60;

// The first model and the first hardware are what the program takes where nothing is said.
export function standardState(data) {
  return { kind: 'memory', model: data.models[0].name, gpu: data.devices[0].name, given: { memory: {}, train: {}, serve: {} } };
}

// {state, unknown: what the fragment names and this page has not}. Inputs of other kinds of plans stay as `state` has them.
export function fromFragment(data, fragment, state) {
  const all = new URLSearchParams(fragment.replace(/^#/, ''));
  const unknown = [];
  const one_of = (key, names, standard) => {
    const name = all.get(key) ?? standard;
    all.delete(key);
    if (names.includes(name)) return name;
    unknown.push(`${key} ${name.slice(0, kMostText)}`);
    return standard;
  };
  const standard = standardState(data);
  const kind = one_of('plan', kKinds, standard.kind);
  const model = one_of('model', data.models.map(({ name }) => name), standard.model);
  const gpu = one_of('gpu', data.devices.map(({ name }) => name), standard.gpu);
  const given = {};
  for (const [name, text] of all) {
    if (data.kinds[kind].inputs.some((input) => input.name === name)) given[name] = text.slice(0, kMostText);
    else unknown.push(name.slice(0, kMostText));
  }
  return { state: { kind, model, gpu, given: { ...state.given, [kind]: given } }, unknown };
}

export function toFragment(data, state) {
  const all = new URLSearchParams({ plan: state.kind, model: state.model, gpu: state.gpu });
  for (const { name } of data.kinds[state.kind].inputs) {
    const text = state.given[state.kind][name];
    if (text !== undefined) all.set(name, text);
  }
  return '#' + all.toString();
}

function quoted(text) {
  return /^[A-Za-z0-9._%\/+:,=@-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;
}

// The command that prints the same plan.
export function commandOf(data, state) {
  const device = data.devices.find(({ name }) => name === state.gpu);
  const words = ['fathom', 'plan', state.kind, '--model-config', data.models.find(({ name }) => name === state.model).argument];
  if (device.of_file) words.push('--hardware', data.hardware_file);
  words.push('--gpu', state.gpu);
  for (const { name, option } of data.kinds[state.kind].inputs) {
    const text = state.given[state.kind][name];
    if (text !== undefined) words.push(option, text);
  }
  return words.map(quoted).join(' ');
}

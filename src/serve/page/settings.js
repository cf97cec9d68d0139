// What the user may set, kept in the browser, and the fields of a request that follow from it.

import { by, h } from './dom.js';

const kKey = 'fathom.settings';

// An empty field is not sent: the server's own default holds.
const kFields = [
  { name: 'system', label: 'System prompt', kind: 'area', help: 'Stands before every conversation.' },
  { name: 'temperature', label: 'Temperature', kind: 'number', min: 0, max: 2, step: 'any', help: '0: always the likeliest token' },
  { name: 'top_p', label: 'Top p', kind: 'number', min: 0, max: 1, step: 'any' },
  { name: 'top_k', label: 'Top k', kind: 'number', min: 0, max: 1000000, step: 1, help: '0: all tokens' },
  { name: 'min_p', label: 'Min p', kind: 'number', min: 0, max: 1, step: 'any' },
  {
    name: 'max_tokens', label: 'Max tokens', kind: 'number', min: 1, max: 1048576, step: 1,
    help: 'Empty: up to the context’s end; 256 for a model that continues text'
  },
  { name: 'seed', label: 'Seed', kind: 'number', min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, help: 'The same seed gives the same answer' },
  { name: 'stop', label: 'Stop texts', kind: 'area', help: 'One a line; \\n stands for a line break' },
  { name: 'thinking', label: 'Thinking', kind: 'choice', choices: { '': 'Model’s default', enabled: 'On', disabled: 'Off' } },
  { name: 'tools', label: 'Tools (JSON)', kind: 'area', help: 'A list as in OpenAI’s API; their results are asked of you' },
  { name: 'format', label: 'Show answers as', kind: 'choice', choices: { '': 'What fits the model', markdown: 'Markdown', plain: 'Plain text' } },
  { name: 'experts', label: 'Count experts', kind: 'choice', choices: { '': 'On', off: 'Off' } },
  { name: 'theme', label: 'Theme', kind: 'choice', choices: { '': 'As the system', light: 'Light', dark: 'Dark' } }
];
const kContinuationTokens = 256;

export const stopsOf = (value) => value.split('\n').filter(Boolean).map((line) => line.replaceAll('\\n', '\n'));

// The value as it is kept, or an Error that says what is wrong.
function checkedValue(field, value) {
  const wrong = (message) => new Error(`${field.label}: ${message}`);
  if (field.kind === 'choice') return Object.hasOwn(field.choices, value) ? value : '';
  if (field.kind === 'number' && value !== '') {
    const x = Number(value);
    if (!Number.isFinite(x) || x < field.min || x > field.max) throw wrong(`must be between ${field.min} and ${field.max}`);
    if (field.step === 1 && !Number.isInteger(x)) throw wrong('must be a whole number');
  }
  if (field.name === 'stop') {
    if (stopsOf(value).length > 16) throw wrong('at most 16');
    if (stopsOf(value).some((stop) => new TextEncoder().encode(stop).length > 256)) throw wrong('at most 256 bytes each');
  }
  if (field.name === 'tools' && value.trim()) {
    let tools;
    try {
      tools = JSON.parse(value);
    } catch {
      throw wrong('is no JSON');
    }
    if (!Array.isArray(tools)) throw wrong('must be a list');
  }
  return value;
}

export class Settings {
  values = {};
  #onChange;

  constructor(onChange) {
    this.#onChange = onChange;
    this.read();
    this.#build();
  }

  read() {
    let stored = {};
    try {
      stored = JSON.parse(localStorage.getItem(kKey)) ?? {};
    } catch {
      // none, or not ours
    }
    for (const field of kFields) {
      const value = typeof stored[field.name] === 'string' ? stored[field.name] : '';
      try {
        this.values[field.name] = checkedValue(field, value);
      } catch {
        this.values[field.name] = '';
      }
    }
    this.applyTheme();
  }

  set(name, value) {
    this.values[name] = value;
    try {
      localStorage.setItem(kKey, JSON.stringify(this.values));
    } catch {
      // for this visit at least
    }
    this.applyTheme();
    this.#onChange(name);
  }

  applyTheme() {
    const root = document.documentElement;
    if (this.values.theme) root.dataset.theme = this.values.theme;
    else delete root.dataset.theme;
  }

  open() {
    for (const field of kFields) by('setting-' + field.name).value = this.values[field.name];
    by('settings-error').textContent = '';
    by('settings').showModal();
  }

  #build() {
    const rows = kFields.map((field) => {
      const id = 'setting-' + field.name;
      const help = field.help ? h('small', { id: id + '-help', text: field.help }) : null;
      const shared = { id, name: field.name, 'aria-describedby': help ? id + '-help' : null };
      let control;
      if (field.kind === 'area') {
        control = h('textarea', { ...shared, rows: field.name === 'stop' ? 2 : 3, spellcheck: 'false' });
      } else if (field.kind === 'choice') {
        control = h('select', shared, ...Object.entries(field.choices).map(([value, label]) => h('option', { value, text: label })));
      } else {
        control = h('input', { ...shared, type: 'number', min: field.min, max: field.max, step: field.step, placeholder: 'default' });
      }
      return h('div', { class: 'setting', data: { kind: field.kind } }, h('label', { for: id, text: field.label }), control, help);
    });
    by('settings-fields').append(...rows);
    by('settings-form').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#store();
    });
    by('settings-form').addEventListener('invalid', () => { by('settings-error').textContent = ''; }, true);
    by('settings-close').addEventListener('click', () => by('settings').close());
    by('settings-reset').addEventListener('click', () => {
      for (const field of kFields) by('setting-' + field.name).value = '';
    });
  }

  #store() {
    try {
      const values = kFields.map((field) => [field.name, checkedValue(field, by('setting-' + field.name).value)]);
      for (const [name, value] of values) this.set(name, value);
      by('settings').close();
    } catch (error) {
      by('settings-error').textContent = error.message;
    }
  }

  // The fields of a request besides its messages. `continues`: the model has no chat template.
  request(continues) {
    const { values } = this;
    const fields = {};
    for (const { name, kind } of kFields) {
      if (kind === 'number' && values[name] !== '') fields[name] = Number(values[name]);
    }
    if (continues && fields.max_tokens === undefined) fields.max_tokens = kContinuationTokens;
    if (stopsOf(values.stop).length > 0) fields.stop = stopsOf(values.stop);
    if (values.thinking) fields.thinking = { type: values.thinking };
    if (values.tools.trim()) fields.tools = JSON.parse(values.tools);
    if (values.experts !== 'off') fields.expert_counts = true;
    return fields;
  }
}

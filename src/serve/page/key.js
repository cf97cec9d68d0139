// Asks for the API key where the server wants one.

import { setApiKey } from './ask.js';
import { by, h } from './dom.js';

let retries = [];

function dialog() {
  const field = h('input', { id: 'key', type: 'password', autocomplete: 'off', 'aria-describedby': 'key-message', required: true });
  const form = h(
    'form', { id: 'key-form' },
    h('h2', { id: 'key-title', text: 'API key' }),
    h('p', { text: 'This server asks for a key. It is kept until this tab is closed.' }),
    h('label', { for: 'key', text: 'Key' }), field,
    h('p', { id: 'key-message', class: 'error-text', role: 'alert' }),
    h('div', { class: 'dialog-buttons' },
      h('button', { type: 'button', class: 'text-button', text: 'Cancel', on: { click: () => made.close() } }),
      h('button', { type: 'submit', class: 'primary', text: 'Continue' })));
  const made = h('dialog', { id: 'key-dialog', 'aria-labelledby': 'key-title' }, form);
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    const key = field.value.trim();
    if (!key) return;
    setApiKey(key);
    made.close('given');
    retries.splice(0).forEach((retry) => retry());
  });
  made.addEventListener('close', () => {
    if (made.returnValue !== 'given') retries = [];
    made.returnValue = '';
  });
  document.body.append(made);
  return made;
}

// `message` says what was wrong with the last one, `retry` is called once there is a new one.
export function askForKey(message, retry) {
  const shown = by('key-dialog') ?? dialog();
  if (retry) retries.push(retry);
  by('key-message').textContent = message;
  by('key').value = '';
  if (!shown.open) shown.showModal();
}

// Small helpers around the document. Nothing here, or anywhere on the page, makes nodes out of a text of HTML.

const kSvg = 'http://www.w3.org/2000/svg';

// An element: properties by name, `on` holds listeners, `data` what goes to dataset; null and false are left out.
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === 'on') {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (name === 'data') {
      Object.assign(element.dataset, value);
    } else if (name === 'text') {
      element.textContent = value;
    } else {
      element.setAttribute(name, value === true ? '' : value);
    }
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const by = (id) => document.getElementById(id);

export function icon(name) {
  const svg = document.createElementNS(kSvg, 'svg');
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  const use = document.createElementNS(kSvg, 'use');
  use.setAttribute('href', '#icon-' + name);
  svg.append(use);
  return svg;
}

export function iconButton(name, label, action, properties = {}) {
  return h(
    'button', { type: 'button', class: 'icon-button', 'aria-label': label, title: label, on: { click: action }, ...properties },
    icon(name));
}

// What a screen reader should say without anything to be seen.
export function announce(text) {
  by('announcer').textContent = '';
  // A text that changes is read; the same one put twice would not be.
  setTimeout(() => { by('announcer').textContent = text; }, 50);
}

// A notice at the bottom, with one thing to do about it: {label, run}.
export function toast(text, action = null, lasts_ms = 10000) {
  const close = () => note.remove();
  const note = h('div', { class: 'toast' }, h('span', { text }));
  if (action) {
    note.append(h('button', { type: 'button', class: 'text-button', text: action.label, on: { click: () => { close(); action.run(); } } }));
  }
  note.append(iconButton('close', 'Dismiss', close));
  by('toasts').append(note);
  setTimeout(close, lasts_ms);
  return close;
}

// A notice above the messages that stays until it is taken away: one for each name. No text: none.
export function banner(name, text, ...actions) {
  const list = by('banners');
  list.querySelector(`[data-name="${name}"]`)?.remove();
  if (!text) return;
  list.append(h('div', { class: 'banner', data: { name } }, h('span', { text }),
                ...actions.map(({ label, run }) => h('button', { type: 'button', class: 'text-button', text: label, on: { click: run } }))));
}

// The clipboard is there for secure pages alone; over plain HTTP from another machine the old way still works.
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h('textarea', { class: 'visually-hidden', 'aria-hidden': 'true' });
    area.value = text;
    const focused = document.activeElement;
    (document.querySelector('dialog[open]') ?? document.body).append(area);
    area.select();
    const copied = document.execCommand('copy');
    area.remove();
    focused?.focus();
    if (!copied) return toast('The browser did not let the page copy.');
  }
  announce('Copied');
}

export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: 'application/json' }));
  h('a', { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// Random, and there on insecure pages too, unlike crypto.randomUUID.
export function newId(prefix) {
  const bytes = crypto.getRandomValues(new Uint8Array(9));
  return prefix + Array.from(bytes, (byte) => byte.toString(36).padStart(2, '0')).join('');
}

export function number(value, digits = 0) {
  return value.toLocaleString('en', { minimumFractionDigits: 0, maximumFractionDigits: digits });
}

export function duration(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60000) return `${number(ms / 1000, ms < 10000 ? 1 : 0)} s`;
  return `${Math.floor(ms / 60000)} min ${Math.floor(ms / 1000) % 60} s`;
}

// A colour between two (#rrggbb): `share` 0 is the first.
export function mixed(from, to, share) {
  const parts = (color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
  const [a, b] = [parts(from), parts(to)];
  return `rgb(${a.map((x, i) => Math.round(x + (b[i] - x) * share)).join(' ')})`;
}

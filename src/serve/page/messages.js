// The messages of a conversation as they are seen, and what can be done with each.

import { copyText, duration, h, icon, iconButton, number } from './dom.js';
import { path, siblings } from './conversations.js';
import { showMarkdown, showPlain } from './markdown.js';

const kNear_px = 48;  // so close to the end counts as at the end

const kEnds = { length: 'ended by the limit of tokens', content_filter: 'ended by a filter', insufficient_system_resource: 'ended by the server' };

export function statsText(stats) {
  if (!stats) return '';
  const about = stats.estimated ? '≈ ' : '';
  const parts = [];
  if (stats.per_second > 0) parts.push(`${about}${number(stats.per_second, stats.per_second < 100 ? 1 : 0)} tokens/s`);
  parts.push(`${about}${number(stats.predicted_n)} ${stats.predicted_n === 1 ? 'token' : 'tokens'}`);
  if (stats.prompt_n + stats.cache_n > 0) {
    const cached = stats.cache_n > 0 ? `, ${number(stats.cache_n)} cached` : '';
    parts.push(`prompt ${number(stats.prompt_n + stats.cache_n)}${cached}, ${duration(stats.prompt_ms)}`);
  }
  if (stats.draft_n > 0) parts.push(draftsText(stats));
  return parts.join(' · ');
}

export function draftsText({ draft_n, draft_n_accepted }) {
  return `${number(100 * draft_n_accepted / draft_n)} % of ${number(draft_n)} drafts accepted`;
}

function prettyArguments(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;  // not complete yet, or no JSON
  }
}

export class MessageLog {
  #root;
  #host;
  #parts = new Map();  // node's id to the parts of its article
  #conversation = null;
  #sticks = true;
  #last_top = 0;

  // The host: {settings, model(), run(conversation), edit, regenerate, resume, remove, choose, results, sticky(at_end)}.
  constructor(root, host) {
    this.#root = root;
    this.#host = host;
    root.addEventListener('scroll', () => this.#scrolled(), { passive: true });
    new ResizeObserver(() => this.stick()).observe(root);
  }

  // ---- Scrolling: at the end it stays at the end; who scrolls up is left alone

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.#root;
    if (scrollHeight - scrollTop - clientHeight < kNear_px) this.#sticks = true;
    else if (scrollTop < this.#last_top - 1) this.#sticks = false;
    this.#last_top = scrollTop;
    this.#host.sticky(this.#sticks);
  }

  stick(anyway = false) {
    if (anyway) this.#sticks = true;
    if (this.#sticks) this.#root.scrollTop = this.#root.scrollHeight;
    this.#last_top = this.#root.scrollTop;
    this.#host.sticky(this.#sticks);
  }

  // ---- Messages

  show(conversation) {
    this.#conversation = conversation;
    this.#parts.clear();
    const nodes = path(conversation);
    this.#root.dataset.continues = String(this.#host.model().continues);
    this.#root.replaceChildren(...(nodes.length > 0 ? nodes.map((node) => this.#article(node)) : [this.#welcome()]));
    for (const node of nodes) this.update(node);
    this.stick(true);
  }

  #welcome() {
    const { continues, name } = this.#host.model();
    const hint = continues ? 'This model has no chat template: it writes on where your text ends.' : 'Ask something. What is said stays in this browser.';
    return h('div', { class: 'welcome' }, icon('logo'), h('h2', { text: name || 'fathom' }), h('p', { text: hint }));
  }

  // Appends what is new on the path, for instance a question and the answer that begins.
  extend(conversation) {
    if (this.#parts.size === 0) return this.show(conversation);
    for (const node of path(conversation)) {
      if (this.#parts.has(node.id)) continue;
      this.#root.append(this.#article(node));
      this.update(node);
    }
    this.stick(true);
  }

  // Redraws what can be done with each message: little while an answer is being written.
  refreshActions() {
    for (const node of path(this.#conversation)) {
      const parts = this.#parts.get(node.id);
      if (parts) this.#updateActions(node, parts);
    }
  }

  #article(node) {
    const { continues, name } = this.#host.model();
    const who = { user: 'You', tool: 'Result of a tool', assistant: continues ? 'Continuation' : name || 'Model' }[node.role];
    const parts = {
      thinking: h('details', { class: 'thinking', hidden: true },
                  h('summary', {}, h('span', { class: 'thinking-label' })), h('div', { class: 'body' })),
      content: h('div', { class: 'body content', dir: 'auto' }),
      calls: h('div', { class: 'calls' }),
      error: h('div', { class: 'error', hidden: true }),
      stats: h('p', { class: 'stats' }),
      actions: h('div', { class: 'actions', role: 'group', 'aria-label': 'Actions for this message' })
    };
    parts.thinking.addEventListener('toggle', () => this.#showThoughts(node, parts));
    parts.article = h('article', { class: 'message', 'aria-label': who, data: { id: node.id, role: node.role } },
                      h('h2', { class: 'who', text: who }), parts.thinking, parts.content, parts.calls, parts.error,
                      h('footer', {}, parts.stats, parts.actions));
    this.#parts.set(node.id, parts);
    return parts.article;
  }

  get #plain() {
    const { format } = this.#host.settings.values;
    return format === 'plain' || (format === '' && this.#host.model().continues);
  }

  update(node, final = true) {
    const parts = this.#parts.get(node.id);
    if (!parts) return;
    const streams = node.status === 'streaming';
    parts.article.dataset.status = node.status;
    parts.article.setAttribute('aria-busy', String(streams));
    if (!parts.editing) {
      if (node.role !== 'assistant' || this.#plain) showPlain(parts.content, node.content);
      else showMarkdown(parts.content, node.content, { done: () => this.stick(), final: final && !streams });
    }
    this.#updateThoughts(node, parts);
    this.#updateCalls(node, parts);
    parts.error.hidden = !node.error;
    if (node.error && parts.error.dataset.text !== node.error.message) {
      parts.error.dataset.text = node.error.message;
      parts.error.replaceChildren(
          h('span', { text: node.error.message }),
          h('button', { type: 'button', class: 'text-button', text: 'Retry', on: { click: () => this.#host.regenerate(node) } }));
    }
    if (!node.error) delete parts.error.dataset.text;
    const end = node.status === 'stopped' ? 'stopped' : kEnds[node.finish];
    parts.stats.textContent = streams ? '' : [statsText(node.stats), end].filter(Boolean).join(' · ');
    this.#updateActions(node, parts);
    this.stick();
  }

  #updateThoughts(node, parts) {
    parts.thinking.hidden = !node.reasoning;
    if (!node.reasoning) return;
    const run = this.#host.run(this.#conversation);
    const thinks_since = run?.node === node ? run.thinks_since : 0;
    const spent_ms = node.thinking_ms + (thinks_since ? performance.now() - thinks_since : 0);
    const label = thinks_since ? `Thinking… ${duration(spent_ms)}` : spent_ms > 0 ? `Thought for ${duration(Math.max(spent_ms, 1))}` : 'Thoughts';
    parts.thinking.querySelector('.thinking-label').textContent = label;
    parts.thinking.dataset.thinks = String(thinks_since > 0);
    this.#showThoughts(node, parts);
  }

  #showThoughts(node, parts) {
    if (!parts.thinking.open) return;
    const body = parts.thinking.querySelector('.body');
    if (this.#plain) showPlain(body, node.reasoning);
    else showMarkdown(body, node.reasoning, { done: () => this.stick(), final: node.status !== 'streaming' });
  }

  // ---- Calls of tools

  #updateCalls(node, parts) {
    while (parts.calls.children.length < node.tool_calls.length) {
      const text = h('pre', { tabindex: '0', role: 'group', 'aria-label': 'Arguments' });
      parts.calls.append(h('div', { class: 'call' }, h('p', {}, icon('tool'), h('strong')), text));
    }
    node.tool_calls.forEach((call, i) => {
      const shown = parts.calls.children[i];
      shown.querySelector('strong').textContent = call.name || '…';
      shown.querySelector('pre').textContent = node.status === 'streaming' ? call.arguments : prettyArguments(call.arguments);
    });
    const nodes = path(this.#conversation);
    const asks = node.tool_calls.length > 0 && node.status === 'done' && nodes.at(-1) === node;
    if (asks === !!parts.results) return;
    parts.results?.remove();
    parts.results = asks ? this.#resultsForm(node) : null;
    if (asks) parts.calls.after(parts.results);
  }

  #resultsForm(node) {
    const labels = node.tool_calls.map(({ name }) => `Result of ${name}`);
    const areas = labels.map((label) => h('textarea', { rows: 2, 'aria-label': label, placeholder: label }));
    const submit = (event) => {
      event.preventDefault();
      this.#host.results(node, areas.map((area) => area.value));
    };
    return h('form', { class: 'results', on: { submit } }, ...areas, h('button', { type: 'submit', class: 'text-button', text: 'Send results' }));
  }

  // ---- Actions

  #updateActions(node, parts) {
    const streams = node.status === 'streaming';
    const among = siblings(this.#conversation, node);
    const busy = this.#host.run(this.#conversation) !== undefined;
    const state = [busy, among.length, among.indexOf(node), node.status, node.finish, node.content === ''].join();
    if (parts.state === state) return;
    parts.state = state;
    const focused = parts.actions.contains(document.activeElement) ? document.activeElement.getAttribute('aria-label') : null;
    const buttons = [];
    if (among.length > 1 && !busy) buttons.push(...this.#versions(node, among));
    if (node.content && !streams) buttons.push(iconButton('copy', 'Copy message', () => copyText(node.content)));
    if (!busy) {
      if (node.role === 'user') buttons.push(iconButton('edit', 'Edit and send again', () => this.edit(node)));
      if (node.role === 'assistant') buttons.push(iconButton('again', 'Regenerate', () => this.#host.regenerate(node)));
      const goes_on = node.role === 'assistant' && node.content && (node.finish === 'length' || ['stopped', 'error'].includes(node.status));
      if (goes_on) buttons.push(iconButton('forward', 'Continue', () => this.#host.resume(node)));
      buttons.push(iconButton('delete', 'Delete message', () => this.#host.remove(node)));
    }
    parts.actions.replaceChildren(...buttons);
    if (focused) parts.actions.querySelector(`[aria-label="${focused}"]`)?.focus();
  }

  #versions(node, among) {
    const i = among.indexOf(node);
    const to = (j, name, label) => iconButton(name, label, () => this.#host.choose(among[j], label), { disabled: j < 0 || j >= among.length });
    const place = h('span', { class: 'version', role: 'img', text: `${i + 1}/${among.length}`, 'aria-label': `Version ${i + 1} of ${among.length}` });
    return [to(i - 1, 'left', 'Previous version'), place, to(i + 1, 'right', 'Next version')];
  }

  // Focus on a button of a message, for instance after it has been drawn anew.
  focus(node, label) {
    this.#parts.get(node.id)?.actions.querySelector(`[aria-label="${label}"]:not(:disabled)`)?.focus();
  }

  edit(node) {
    const parts = this.#parts.get(node.id);
    if (!parts || parts.editing) return;
    const area = h('textarea', { 'aria-label': 'Edit your message', rows: Math.min(12, node.content.split('\n').length + 1) });
    area.value = node.content;
    const close = () => {
      parts.editing = false;
      form.remove();
      parts.content.hidden = parts.actions.hidden = false;
      this.focus(node, 'Edit and send again');
    };
    const send = (event) => {
      event?.preventDefault();
      const text = area.value;
      if (!text.trim()) return;
      close();
      this.#host.edit(node, text);
    };
    const keys = (event) => {
      if (event.isComposing) return;
      if (event.key === 'Escape') {
        event.stopPropagation();
        close();
      } else if (event.key === 'Enter' && !event.shiftKey) {
        send(event);
      }
    };
    const form = h('form', { class: 'edit', on: { submit: send, keydown: keys } }, area,
                   h('div', { class: 'edit-buttons' }, h('button', { type: 'submit', class: 'primary', text: 'Send' }),
                     h('button', { type: 'button', class: 'text-button', text: 'Cancel', on: { click: close } })));
    parts.editing = true;
    parts.content.hidden = parts.actions.hidden = true;
    parts.content.after(form);
    area.focus();
  }
}

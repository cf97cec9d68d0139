// Conversations as trees, kept in the browser's storage, one key each. A message that is edited or answered anew gets a
// sibling, so that nothing written is lost; a path leads from the root to `leaf`, and that is what is shown and sent.
//
//   conversation  {id, title, named, created, updated, leaf, draft, nodes: {id: node}}     times in ms
//   node          {id, parent, role, content, reasoning, thinking_ms, tool_calls: [{id, name, arguments}], tool_call_id,
//                  status: done | streaming | stopped | error, finish, error: {status, message}, time, stats}

import { newId } from './dom.js';

const kPrefix = 'fathom.conversation.';
export const kMostCharacters = 4 << 20;  // of all conversations; browsers hold about 5 million
const kMostNodes = 20000;                // of one, when it is read: more do not fit
const kTitleLength = 60;
// As newId makes them: no name of an object's own, no number (those would not stay in order).
const kConversationId = /^c[0-9a-z]{8,62}$/;
const kNodeId = /^n[0-9a-z]{8,62}$/;

// ---- Trees

export function newConversation() {
  const now = Date.now();
  return { id: newId('c'), title: 'New chat', named: false, created: now, updated: now, leaf: null, draft: '', nodes: {} };
}

export function append(conversation, parent, fields) {
  const node = {
    id: newId('n'), parent, role: 'user', content: '', reasoning: '', thinking_ms: 0, tool_calls: [], tool_call_id: '',
    status: 'done', finish: '', error: null, time: Date.now(), stats: null, ...fields
  };
  conversation.nodes[node.id] = node;
  conversation.leaf = node.id;
  conversation.updated = node.time;
  if (!conversation.named && node.role === 'user') conversation.title = titleOf(conversation);
  return node;
}

export function path(conversation, leaf = conversation.leaf) {
  const nodes = [];
  for (let node = conversation.nodes[leaf]; node; node = conversation.nodes[node.parent]) nodes.push(node);
  return nodes.reverse();
}

const childrenOf = (conversation, parent) => Object.values(conversation.nodes).filter((node) => node.parent === parent);

export const siblings = (conversation, node) => childrenOf(conversation, node.parent);

// Shows another sibling, and behind it what was written last.
export function choose(conversation, node) {
  for (let children = [node]; children.length > 0; children = childrenOf(conversation, conversation.leaf)) {
    conversation.leaf = children.at(-1).id;
  }
}

// Takes a message and all that follows it out. The path then leads to its last sibling, or ends above.
export function removeNode(conversation, node) {
  const gone = new Set([node.id]);
  for (const other of Object.values(conversation.nodes)) {
    if (gone.has(other.parent)) gone.add(other.id);  // parents stand before their children
  }
  const shown = path(conversation).some((other) => gone.has(other.id));
  for (const id of gone) delete conversation.nodes[id];
  if (!shown) return;
  const left = childrenOf(conversation, node.parent);
  if (left.length > 0) choose(conversation, left.at(-1));
  else conversation.leaf = node.parent;
}

export function titleOf(conversation) {
  const first = path(conversation).find((node) => node.role === 'user' && node.content.trim());
  const text = first?.content.trim().replace(/\s+/g, ' ') ?? 'New chat';
  return text.length > kTitleLength ? text.slice(0, kTitleLength - 1) + '…' : text;
}

// ---- What comes from outside: storage, an imported file

const text = (value) => (typeof value === 'string' ? value : '');
const time = (value) => (Number.isFinite(value) && value > 0 ? value : Date.now());
const finite = (value) => (Number.isFinite(value) ? value : 0);

function checkedNode(value, nodes) {
  const id = text(value?.id);
  const parent = value?.parent ?? null;
  if (!kNodeId.test(id) || Object.hasOwn(nodes, id)) return null;
  if (parent !== null && !Object.hasOwn(nodes, parent)) return null;  // so that there are no circles
  if (!['user', 'assistant', 'tool'].includes(value.role)) return null;
  const calls = Array.isArray(value.tool_calls) ? value.tool_calls.slice(0, 128) : [];
  const stats = value.stats && typeof value.stats === 'object' ? value.stats : null;
  const known = ['predicted_n', 'per_second', 'prompt_n', 'cache_n', 'prompt_ms', 'draft_n', 'draft_n_accepted', 'total_tokens', 'estimated'];
  return {
    id, parent, role: value.role, content: text(value.content), reasoning: text(value.reasoning), thinking_ms: finite(value.thinking_ms),
    tool_calls: calls.map((call) => ({ id: text(call?.id), name: text(call?.name), arguments: text(call?.arguments) })),
    tool_call_id: text(value.tool_call_id),
    // The page was closed while this was being written.
    status: value.status === 'streaming' ? 'stopped' : ['done', 'stopped', 'error'].includes(value.status) ? value.status : 'done',
    finish: text(value.finish), time: time(value.time),
    error: value.error ? { status: finite(value.error.status), message: text(value.error.message) } : null,
    stats: stats && Object.fromEntries(known.map((name) => [name, finite(stats[name])]))
  };
}

// A conversation made of what is sound in the value, or null where it is none.
export function checked(value) {
  if (!value || typeof value !== 'object' || !value.nodes || typeof value.nodes !== 'object') return null;
  if (!kConversationId.test(text(value.id))) return null;
  const nodes = {};
  for (const each of Object.values(value.nodes).slice(0, kMostNodes)) {
    const node = checkedNode(each, nodes);
    if (node) nodes[node.id] = node;
  }
  const conversation = {
    id: value.id, title: text(value.title).slice(0, 200), named: value.named === true, created: time(value.created),
    updated: time(value.updated), draft: text(value.draft), nodes, leaf: null
  };
  const leaf = Object.hasOwn(nodes, text(value.leaf)) ? nodes[value.leaf] : Object.values(nodes).at(-1);
  conversation.leaf = leaf?.id ?? null;
  conversation.title ||= titleOf(conversation);
  return conversation;
}

// ---- Storage

export class Conversations {
  #all = new Map();
  #sizes = new Map();  // characters in storage
  #storage = null;

  constructor() {
    try {
      this.#storage = window.localStorage;
      for (const key of Object.keys(this.#storage)) {
        if (key.startsWith(kPrefix)) this.read(key.slice(kPrefix.length));
      }
    } catch {
      this.#storage = null;  // the browser keeps nothing for this page
    }
  }

  get kept() { return this.#storage !== null; }
  get size() { return this.#all.size; }
  get characters() { return [...this.#sizes.values()].reduce((sum, n) => sum + n, 0); }
  get(id) { return this.#all.get(id); }
  list() { return [...this.#all.values()].sort((a, b) => b.updated - a.updated); }

  // Reads what storage has of a conversation: at the start, and when another tab has written it.
  read(id) {
    const stored = this.#storage.getItem(kPrefix + id);
    let conversation = null;
    try {
      conversation = checked(JSON.parse(stored));
    } catch {
      // not ours
    }
    if (conversation?.id !== id) {
      this.#all.delete(id);
      this.#sizes.delete(id);
      return null;
    }
    this.#all.set(id, conversation);
    this.#sizes.set(id, stored.length + kPrefix.length + id.length);
    return conversation;
  }

  // Keeps the conversation here and, where there is room, in storage: 'kept', 'full' or 'unavailable'.
  save(conversation) {
    this.#all.set(conversation.id, conversation);
    if (!this.#storage) return 'unavailable';
    const stored = JSON.stringify(conversation);
    const size = stored.length + kPrefix.length + conversation.id.length;
    const before = this.#sizes.get(conversation.id) ?? 0;
    if (size > before && this.characters - before + size > kMostCharacters) return 'full';
    try {
      this.#storage.setItem(kPrefix + conversation.id, stored);
    } catch {
      return 'full';
    }
    this.#sizes.set(conversation.id, size);
    return 'kept';
  }

  remove(id) {
    this.#all.delete(id);
    this.#sizes.delete(id);
    try {
      this.#storage?.removeItem(kPrefix + id);
    } catch {
      // it is gone from here at least
    }
  }

  search(words) {
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    const holds = (conversation) => {
      const texts = [conversation.title, ...Object.values(conversation.nodes).map((node) => node.content)].join('\n').toLowerCase();
      return wanted.every((word) => texts.includes(word));
    };
    return this.list().filter(holds);
  }

  exported(conversations = this.list()) {
    return JSON.stringify({ format: 'fathom-conversations', version: 1, conversations }, null, 1);
  }

  // Adds the conversations of an exported file, under new names where they would take another's place. Throws with a reason.
  imported(file) {
    let value;
    try {
      value = JSON.parse(file);
    } catch {
      throw new Error('The file is no JSON.');
    }
    if (value?.format !== 'fathom-conversations' || !Array.isArray(value.conversations)) {
      throw new Error('The file holds no conversations that were exported here.');
    }
    const added = value.conversations.map(checked).filter(Boolean);
    const results = added.map((conversation) => {
      if (this.#all.has(conversation.id)) conversation.id = newId('c');
      return this.save(conversation);
    });
    return { added, full: results.includes('full'), skipped: value.conversations.length - added.length };
  }
}

export const storageKeyId = (key) => (key?.startsWith(kPrefix) ? key.slice(kPrefix.length) : null);

// Asks the server for answers and writes them into their nodes as they come.

import { ApiError } from './ask.js';
import { path } from './conversations.js';
import { streamChat } from './stream.js';

const kWindow_ms = 3000;     // of the speed shown
const kSaveEvery_ms = 2000;  // so that a closed tab costs no more than that
const kMostExperts = 40;     // answers whose counts are remembered, until the page is closed

const count = (value) => (Number.isFinite(value) && value >= 0 ? value : 0);

// What is sent for a path of nodes. Empty answers are left out, and calls of tools that nobody has answered.
export function messagesOf(nodes, system) {
  const messages = system ? [{ role: 'system', content: system }] : [];
  nodes.forEach((node, i) => {
    if (node.role !== 'assistant') {
      messages.push(node.role === 'tool' ? { role: 'tool', tool_call_id: node.tool_call_id, content: node.content }
                                         : { role: node.role, content: node.content });
      return;
    }
    const message = { role: 'assistant', content: node.content };
    if (node.tool_calls.length > 0 && nodes[i + 1]?.role === 'tool') {
      // What was thought before a call belongs to the same answer.
      if (node.reasoning) message.reasoning_content = node.reasoning;
      message.tool_calls = node.tool_calls.map(({ id, name, arguments: text }) => ({ id, type: 'function', function: { name, arguments: text } }));
    }
    if (message.content || message.tool_calls) messages.push(message);
  });
  return messages;
}

// Tokens a second, from the pieces that arrive: the server sends one for each token or run of accepted drafts.
class Speed {
  #times = [];
  n = 0;
  first = 0;

  add() {
    const now = performance.now();
    this.first ||= now;
    ++this.n;
    this.#times.push(now);
    if (this.#times.length > 4096) this.#drop(now);
  }
  #drop(now) {
    const old = this.#times.findIndex((time) => time >= now - kWindow_ms);
    this.#times.splice(0, old < 0 ? this.#times.length : old);
  }
  now() {
    const now = performance.now();
    this.#drop(now);
    const span = this.#times.length > 1 ? now - this.#times[0] : 0;
    return span > 0 ? (this.#times.length - 1) / span * 1000 : 0;
  }
  mean(until) {
    return this.n > 1 && until > this.first ? (this.n - 1) / (until - this.first) * 1000 : 0;
  }
}

export class Answering {
  #runs = new Map();  // conversation's id to {node, controller, speed, since, thinks_since, timings}
  #host;
  experts = new Map();  // node's id to {layers, counts}

  // The host: {settings, model(), changed(conversation, node, final), save(conversation), needsKey(retry)}.
  constructor(host) {
    this.#host = host;
  }

  run(conversation) {
    return this.#runs.get(conversation.id);
  }

  get busy() {
    return this.#runs.size > 0;
  }

  stop(conversation) {
    this.run(conversation)?.controller.abort();
  }

  stopAll() {
    for (const run of this.#runs.values()) run.controller.abort();
  }

  // Lets the model write the node, or write on where it has a text.
  async answer(conversation, node) {
    if (this.run(conversation)) return;
    const { settings, model, changed, save, needsKey } = this.#host;
    const begun = node.content !== '' || node.reasoning !== '';
    const above = node.parent ? path(conversation, node.parent) : [];
    const messages = messagesOf(above, settings.values.system);
    if (begun) {
      const prefix = { role: 'assistant', content: node.content, prefix: true };
      if (node.reasoning) prefix.reasoning_content = node.reasoning;
      messages.push(prefix);
    }
    const run = { node, controller: new AbortController(), speed: new Speed(), since: performance.now(), thinks_since: 0, timings: null };
    this.#runs.set(conversation.id, run);
    Object.assign(node, { status: 'streaming', error: null, finish: '', stats: null });
    changed(conversation, node, false);
    save(conversation);
    const saving = setInterval(() => save(conversation), kSaveEvery_ms);
    let error = null;
    try {
      const body = {
        model: model().name, messages, stream: true, stream_options: { include_usage: true }, timings_per_token: true,
        ...settings.request(model().continues)
      };
      for await (const chunk of streamChat(body, run.controller.signal)) {
        this.#take(run, chunk, node.tool_calls);
        changed(conversation, node, false);
      }
      node.status = 'done';
    } catch (failure) {
      if (run.controller.signal.aborted) {
        node.status = 'stopped';
      } else {
        error = failure instanceof ApiError ? failure : new ApiError(0, String(failure?.message ?? failure));
        node.status = 'error';
        node.error = { status: error.status, message: error.message };
      }
    } finally {
      clearInterval(saving);
    }
    this.#endThinking(run);
    if (!node.stats && run.speed.n > 0) node.stats = { predicted_n: run.speed.n, per_second: run.speed.mean(performance.now()), estimated: 1 };
    this.#runs.delete(conversation.id);
    save(conversation);
    changed(conversation, node, true);
    if (error?.status === 401) needsKey(error.message, () => this.answer(conversation, node));
  }

  #take(run, chunk, calls) {
    const { node } = run;
    const choice = chunk.choices?.[0];
    const delta = choice?.delta ?? {};
    const thought = delta.reasoning_content ?? delta.reasoning;
    if (typeof thought === 'string' && thought) {
      run.thinks_since ||= performance.now();
      node.reasoning += thought;
      run.speed.add();
    }
    if (typeof delta.content === 'string' && delta.content) {
      this.#endThinking(run);
      node.content += delta.content;
      run.speed.add();
    }
    for (const part of Array.isArray(delta.tool_calls) ? delta.tool_calls : []) {
      this.#endThinking(run);
      const i = Math.min(count(part.index), calls.length);
      calls[i] ??= { id: '', name: '', arguments: '' };
      if (part.id) calls[i].id = String(part.id);
      calls[i].name += part.function?.name ?? '';
      calls[i].arguments += part.function?.arguments ?? '';
      run.speed.add();
    }
    if (choice?.finish_reason) node.finish = String(choice.finish_reason);
    if (chunk.timings) run.timings = chunk.timings;
    if (chunk.usage) {
      const t = chunk.timings ?? {};
      node.stats = {
        predicted_n: count(t.predicted_n ?? chunk.usage.completion_tokens), per_second: count(t.predicted_per_second),
        prompt_n: count(t.prompt_n), cache_n: count(t.cache_n), prompt_ms: count(t.prompt_ms), draft_n: count(t.draft_n),
        draft_n_accepted: count(t.draft_n_accepted), total_tokens: count(chunk.usage.total_tokens), estimated: 0
      };
    }
    if (Array.isArray(chunk.experts?.layers) && Array.isArray(chunk.experts?.counts)) {
      this.experts.set(node.id, chunk.experts);
      if (this.experts.size > kMostExperts) this.experts.delete(this.experts.keys().next().value);
    }
  }

  #endThinking(run) {
    if (run.thinks_since) run.node.thinking_ms += performance.now() - run.thinks_since;
    run.thinks_since = 0;
  }
}

// The page: puts the parts together and answers the keyboard.

import { announce, banner, by, download, duration, icon, number, toast } from './dom.js';
import { Answering } from './answering.js';
import { apiKey, getJson, postJson } from './ask.js';
import { Conversations, append, choose, newConversation, path, removeNode, storageKeyId } from './conversations.js';
import { ExpertsView } from './experts.js';
import { askForKey } from './key.js';
import { MessageLog, draftsText } from './messages.js';
import { Settings } from './settings.js';
import { Sidebar } from './sidebar.js';

const kTick_ms = 250;     // of the line that tells the speed
const kLookAgain_ms = 2000;
const kKeepDraft_ms = 500;
const kThemes = ['', 'light', 'dark'];

const model = { name: '', context: 0, continues: false };
const conversations = new Conversations();
let current = newConversation();
let frame = 0;
const changed_nodes = new Map();  // since the last frame: node to whether it is final
let draft_timer = 0;
const deleted = new Set();  // ids: an answer that still ends there brings nothing back

const settings = new Settings((name) => {
  if (name === 'theme') drawTheme();
  if (name === 'format') log.show(current);
});

// ---- Keeping

function save(conversation) {
  if (!deleted.has(conversation.id)) noteSaved(conversations.save(conversation));
}

function noteSaved(result) {
  if (result === 'kept') return banner('storage', '');
  if (result === 'unavailable') {
    return banner('storage', 'This browser keeps nothing for the page: conversations are gone when it is closed.', exportAll);
  }
  banner('storage', 'The browser’s storage is full: what is new is kept only until the page is closed.', exportAll,
         { label: 'Delete the oldest half', run: dropOldest });
}

const exportAll = { label: 'Export all', run: () => download('fathom-conversations.json', conversations.exported()) };

function dropOldest() {
  const old = conversations.list().filter((conversation) => conversation.id !== current.id && !answering.run(conversation));
  const dropped = old.slice(Math.floor(old.length / 2));
  for (const { id } of dropped) conversations.remove(id);
  for (const conversation of conversations.list()) save(conversation);
  sidebar.draw();
  toast(`Deleted ${dropped.length} ${dropped.length === 1 ? 'conversation' : 'conversations'}`, {
    label: 'Undo', run: () => { dropped.forEach(save); sidebar.draw(); }
  });
}

// ---- Answers

const answering = new Answering({
  settings,
  model: () => model,
  save,
  changed(conversation, node, final) {
    if (conversation === current) {
      changed_nodes.set(node, final);
      frame ||= requestAnimationFrame(drawChanged);
    }
    if (!final) return;
    if (conversation === current) {
      if (document.hidden) drawChanged();  // no frames are drawn of a hidden page
      log.refreshActions();
      announce(node.status === 'error' ? node.error.message : node.status === 'stopped' ? 'Stopped' : 'The answer is complete');
    }
    drawState();
    sidebar.draw();
  },
  needsKey: askForKey
});

function drawChanged() {
  cancelAnimationFrame(frame);
  frame = 0;
  for (const [node, final] of changed_nodes) log.update(node, final);
  changed_nodes.clear();
}

function answer(node) {
  answering.answer(current, node);
  log.extend(current);
  log.refreshActions();
  drawState();
  sidebar.draw();
}

function answerTo(parent) {
  answer(append(current, parent, { role: 'assistant' }));
}

function send() {
  const text = by('text').value;
  if (!text.trim() || answering.run(current)) return;
  clearTimeout(draft_timer);
  current.draft = '';
  by('text').value = '';
  fitText();
  answerTo(append(current, current.leaf, { role: 'user', content: text }).id);
}

// Says what has been undone and how to have it back.
function changeWithUndo(what, change) {
  const conversation = current;
  const before = JSON.stringify({ nodes: conversation.nodes, leaf: conversation.leaf });
  change();
  save(conversation);
  log.show(conversation);
  drawState();
  const undo = () => {
    if (answering.run(conversation)) return toast('An answer is being written.');
    Object.assign(conversation, JSON.parse(before));
    save(conversation);
    open(conversation.id);
  };
  toast(what, { label: 'Undo', run: undo });
}

const log = new MessageLog(by('log'), {
  settings,
  model: () => model,
  run: (conversation) => answering.run(conversation),
  edit(node, text) {
    append(current, node.parent, { role: 'user', content: text });
    log.show(current);
    answerTo(current.leaf);
  },
  regenerate(node) {
    if (answering.run(current)) return;
    // What failed before it said anything is nobody's loss.
    if (!node.content && !node.reasoning && node.tool_calls.length === 0) removeNode(current, node);
    current.leaf = node.parent;
    log.show(current);
    answerTo(node.parent);
    focusText();
  },
  resume(node) {
    // Written on where it ended; what followed stays with the version that it followed.
    const follows = Object.values(current.nodes).some((other) => other.parent === node.id);
    const { role, content, reasoning, thinking_ms } = node;
    const resumed = follows ? append(current, node.parent, { role, content, reasoning, thinking_ms }) : node;
    current.leaf = resumed.id;
    if (follows) log.show(current);
    answer(resumed);
    focusText();
  },
  remove(node) {
    changeWithUndo('Message deleted', () => removeNode(current, node));
    focusText();
  },
  choose(node, label) {
    choose(current, node);
    save(current);
    log.show(current);
    drawState();
    log.focus(node, label);
  },
  results(node, results) {
    let parent = node.id;
    node.tool_calls.forEach((call, i) => {
      parent = append(current, parent, { role: 'tool', tool_call_id: call.id, content: results[i] }).id;
    });
    log.show(current);
    answerTo(parent);
  },
  sticky(at_end) {
    by('to-end').hidden = at_end;
  }
});

// ---- Conversations

const sidebar = new Sidebar(conversations, {
  current: () => current,
  open,
  create,
  busy: (id) => answering.run({ id }) !== undefined,
  renamed(conversation) {
    save(conversation);
    drawState();
  },
  restored(conversation) {
    deleted.delete(conversation.id);
    save(conversation);
    open(conversation.id);
  },
  imported: noteSaved,
  removed(conversation, was_current) {
    deleted.add(conversation.id);
    answering.stop(conversation);
    if (was_current) create();
  }
});

function open(id) {
  const conversation = conversations.get(id);
  if (!conversation) return;
  keepDraft();
  current = conversation;
  by('text').value = current.draft;
  fitText();
  log.show(current);
  drawState();
  sidebar.draw();
  focusText();
}

function create() {
  keepDraft();
  current = newConversation();
  by('text').value = '';
  fitText();
  log.show(current);
  drawState();
  sidebar.draw();
  if (!sidebar.wide) sidebar.toggle(false, false);
  focusText();
}

// A text that is not sent yet belongs to its conversation; one without messages is not kept.
function keepDraft() {
  clearTimeout(draft_timer);
  if (current.draft === by('text').value) return;
  current.draft = by('text').value;
  if (conversations.get(current.id)) save(current);
}

// ---- What is drawn beside the messages

function drawState() {
  const run = answering.run(current);
  by('stop').hidden = !run;
  by('send').hidden = !!run;
  by('title').textContent = current.title;
  document.title = current.leaf ? `${current.title} · fathom` : 'fathom';
  drawLine();
  drawExperts();
}

function lineText(run) {
  if (!run) {
    const stats = path(current).findLast((node) => node.stats?.total_tokens)?.stats;
    if (!stats || !model.context) return model.context ? `Context: ${number(model.context)} tokens` : '';
    return `Context: ${number(stats.total_tokens)} of ${number(model.context)} tokens`;
  }
  const { speed, timings } = run;
  if (speed.n === 0) return `Waiting… ${duration(performance.now() - run.since)}`;
  const per_second = timings?.predicted_per_second > 0 ? timings.predicted_per_second : speed.now();
  const about = timings ? '' : '≈ ';
  const parts = [`${about}${number(per_second, per_second < 100 ? 1 : 0)} tokens/s`, `${about}${number(timings?.predicted_n ?? speed.n)} tokens`];
  if (timings?.draft_n > 0) parts.push(draftsText(timings));
  return parts.join(' · ');
}

function drawLine() {
  by('line').textContent = lineText(answering.run(current));
}

setInterval(() => {
  const run = answering.run(current);
  if (!run || document.hidden) return;
  drawLine();
  if (run.thinks_since) log.update(run.node, false);
}, kTick_ms);

const experts_view = new ExpertsView();

function drawExperts() {
  const nodes = path(current);
  const last = nodes.findLast((node) => answering.experts.has(node.id));
  by('toggle-experts').hidden = answering.experts.size === 0;
  if (answering.experts.size === 0) return showExperts(false);
  const n = last ? nodes.filter((node) => node.role === 'assistant').indexOf(last) + 1 : 0;
  const label = last ? `Answer ${n} of “${current.title}”` : 'No answer of this conversation has counts.';
  experts_view.show(last ? answering.experts.get(last.id) : null, label);
  by('experts-figure').hidden = experts_view.shown === null;
  experts_view.draw();
}

function showExperts(shown) {
  const had_focus = by('experts').contains(document.activeElement);
  by('experts').hidden = !shown;
  by('toggle-experts').setAttribute('aria-expanded', String(shown));
  document.body.dataset.experts = shown ? 'open' : 'closed';
  if (shown) {
    drawExperts();
    by('close-experts').focus();
  } else if (had_focus) {
    by('toggle-experts').focus();
  }
}

function drawTheme() {
  const label = { '': 'Theme: as the system', light: 'Theme: light', dark: 'Theme: dark' }[settings.values.theme];
  const button = by('theme');
  button.setAttribute('aria-label', label);
  button.title = label;
  button.replaceChildren(icon({ '': 'auto', light: 'sun', dark: 'moon' }[settings.values.theme]));
  experts_view.draw();
}

// The field grows with its text, up to what the style allows.
function fitText() {
  const field = by('text');
  field.style.height = 'auto';
  field.style.height = `${field.scrollHeight + 2}px`;
  by('send').disabled = !field.value.trim();
}

// Not where that would open a keyboard over half of the page.
function focusText() {
  if (matchMedia('(hover: hover)').matches) by('text').focus();
}

// ---- The server

async function meetServer() {
  try {
    await waitUntilReady();
    const { data } = await getJson('/v1/models');
    Object.assign(model, { name: String(data[0].id), context: Number(data[0].max_model_len) || 0 });
    by('model').textContent = model.name;
    // A model without a chat template is asked nothing: its text is written on.
    const { prompt } = await postJson('/apply-template', { messages: [{ role: 'user', content: 'fathom?' }] });
    model.continues = String(prompt).endsWith('fathom?');
    banner('server', '');
  } catch (error) {
    if (error.status === 401) return askForKey(apiKey() ? error.message : '', meetServer);
    if (error.status === 0) {
      banner('server', 'The server cannot be reached.');
      setTimeout(meetServer, kLookAgain_ms);
    } else {
      banner('server', error.message);
    }
  }
  by('text').placeholder = model.continues ? 'Begin a text…' : 'Message…';
  if (!answering.busy) log.show(current);
  drawState();
}

async function waitUntilReady() {
  for (;;) {
    try {
      return await getJson('/ready');
    } catch (error) {
      if (error.status !== 503) throw error;
      banner('server', error.message.replace(/^./, (c) => c.toUpperCase()));
      await new Promise((done) => setTimeout(done, kLookAgain_ms));
    }
  }
}

// ---- Listening

by('composer').addEventListener('submit', (event) => {
  event.preventDefault();
  send();
});
by('text').addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  send();
});
by('text').addEventListener('input', () => {
  fitText();
  clearTimeout(draft_timer);
  draft_timer = setTimeout(keepDraft, kKeepDraft_ms);
});
by('stop').addEventListener('click', () => {
  answering.stop(current);
  focusText();
});
by('to-end').addEventListener('click', () => {
  log.stick(true);
  focusText();
});
by('theme').addEventListener('click', () => {
  settings.set('theme', kThemes[(kThemes.indexOf(settings.values.theme) + 1) % kThemes.length]);
  announce(by('theme').title);
});
by('toggle-experts').addEventListener('click', () => showExperts(by('experts').hidden));
by('close-experts').addEventListener('click', () => showExperts(false));
by('open-settings').addEventListener('click', () => settings.open());

document.addEventListener('keydown', (event) => {
  if (event.isComposing || document.querySelector('dialog[open]')) return;
  if (event.key === 'Escape') {
    if (!by('experts').hidden && by('experts').contains(event.target)) showExperts(false);
    else if (!sidebar.wide && sidebar.open) sidebar.toggle(false);
    else answering.stop(current);
  } else if ((event.ctrlKey || event.metaKey) && event.shiftKey && event.key.toLowerCase() === 'o') {
    event.preventDefault();
    create();
  }
});

window.addEventListener('offline', () => banner('offline', 'This machine is offline.'));
window.addEventListener('online', () => banner('offline', ''));
window.addEventListener('storage', ({ key }) => {
  if (key === 'fathom.settings') {
    settings.read();
    drawTheme();
    return;
  }
  // Another tab has written a conversation.
  const id = storageKeyId(key);
  if (!id || answering.run({ id })) return;
  const conversation = conversations.read(id);
  if (id === current.id && conversation) {
    const draft = by('text').value;
    current = conversation;
    current.draft = draft;
    log.show(current);
    drawState();
  }
  sidebar.draw();
});
// What is being written is kept as far as it has come.
const keepAll = () => {
  keepDraft();
  for (const conversation of conversations.list()) {
    if (answering.run(conversation)) save(conversation);
  }
};
window.addEventListener('pagehide', () => {
  keepAll();
  answering.stopAll();
});
document.addEventListener('visibilitychange', () => {
  if (document.hidden) keepAll();
  else log.stick();
});

drawTheme();
if (!conversations.kept) noteSaved('unavailable');
log.show(current);
sidebar.draw();
drawState();
fitText();
focusText();
meetServer();

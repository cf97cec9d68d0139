// Shows a text as markdown. worker.js reads it; here nodes are built from its tree, of the names and attributes below and no
// others. Texts of models are hostile: no HTML of theirs is read, links lead to the web and mail alone, and pictures come
// from nowhere but the text itself.

import { copyText, h, iconButton } from './dom.js';

const kPatience_ms = 6000;  // for a text; then it stays plain
const kElements = new Set([
  'p', 'br', 'hr', 'h3', 'h4', 'h5', 'h6', 'ul', 'ol', 'li', 'blockquote', 'div', 'table', 'thead', 'tbody', 'tr', 'th', 'td', 'span', 'strong',
  'em', 'del', 'code'
]);
const kMath = new Set([
  'math', 'semantics', 'annotation', 'mrow', 'mi', 'mn', 'mo', 'ms', 'mtext', 'mspace', 'mfrac', 'msqrt', 'mroot', 'msub', 'msup', 'msubsup',
  'munder', 'mover', 'munderover', 'mmultiscripts', 'mprescripts', 'none', 'mtable', 'mtr', 'mtd', 'mlabeledtr', 'mstyle', 'mpadded',
  'mphantom', 'menclose', 'merror', 'mglyph'
]);
const kSvg = new Set(['svg', 'path', 'line', 'g']);
const kNamespaces = { math: 'http://www.w3.org/1998/Math/MathML', svg: 'http://www.w3.org/2000/svg' };
const kAttributes = {
  html: new Set(['class', 'start', 'aria-hidden', 'title']),
  math: new Set([
    'class', 'display', 'displaystyle', 'scriptlevel', 'mathvariant', 'mathcolor', 'mathbackground', 'mathsize', 'stretchy', 'fence', 'separator',
    'accent', 'accentunder', 'largeop', 'movablelimits', 'symmetric', 'minsize', 'maxsize', 'lspace', 'rspace', 'width', 'height', 'depth',
    'voffset', 'linethickness', 'notation', 'rowspacing', 'columnspacing', 'columnalign', 'rowalign', 'columnlines', 'rowlines', 'encoding'
  ]),
  svg: new Set(['class', 'd', 'width', 'height', 'viewBox', 'preserveAspectRatio', 'x1', 'x2', 'y1', 'y2', 'stroke-width'])
};
const kStyles = new Set([
  'height', 'width', 'minWidth', 'maxWidth', 'top', 'bottom', 'left', 'margin', 'marginLeft', 'marginRight', 'marginTop', 'paddingLeft',
  'verticalAlign', 'color', 'backgroundColor', 'borderColor', 'borderStyle', 'borderWidth', 'borderRightStyle', 'borderRightWidth', 'borderTopWidth',
  'borderBottomWidth', 'fontSize', 'position', 'textShadow'
]);
const kStyleValue = /^(?!.*fixed|.*sticky|.*url)[\w.%#,() -]{1,100}$/i;
const kPicture = /^data:image\/(?:png|jpeg|gif|webp|avif);base64,[A-Za-z0-9+/=\s]+$/;
const kMostDepth = 400;

// The address of a link that may be followed, or null.
export function safeHref(href) {
  let url;
  try {
    url = new URL(href);
  } catch {
    return null;  // a path: the model knows no pages of this server
  }
  return ['http:', 'https:', 'mailto:'].includes(url.protocol) ? url.href : null;
}

function linkTo(href, children) {
  const safe = safeHref(href);
  if (!safe) return h('span', { class: 'dead-link' }, ...children, href ? ` (${href})` : '');
  return h('a', { href: safe, target: '_blank', rel: 'noopener noreferrer nofollow', title: safe }, ...children);
}

function picture({ src = '', alt = '' }) {
  if (kPicture.test(src)) return h('img', { src, alt, loading: 'lazy' });
  return linkTo(src, ['picture: ' + (alt || src.slice(0, 200))]);
}

function codeBlock({ code, lang, c }, depth) {
  const label = lang || 'text';
  return h('figure', { class: 'code' },
           h('figcaption', {}, h('span', { text: label }), iconButton('copy', 'Copy code', () => copyText(code))),
           h('pre', { tabindex: '0', role: 'group', 'aria-label': `Code, ${label}` }, h('code', {}, ...c.map((child) => built(child, depth + 1)))));
}

export function built(tree, depth = 0) {
  if (typeof tree === 'string') return document.createTextNode(tree);
  if (!tree || depth > kMostDepth) return document.createTextNode('');
  if (tree.code !== undefined) return codeBlock(tree, depth);
  const children = () => (tree.c ?? []).map((child) => built(child, depth + 1));
  const { n, x, a = {}, s = {} } = tree;
  let element;
  if (x === undefined) {
    if (n === 'a') return linkTo(a.href ?? '', children());
    if (n === 'img') return picture(a);
    if (n === 'input') {
      const checked = a.checked !== undefined;
      return h('input', { type: 'checkbox', checked, disabled: true, 'aria-label': checked ? 'done' : 'not done' });
    }
    if (!kElements.has(n)) return h('span', {}, ...children());
    // What scrolls can be reached by the keyboard.
    element = h(n, a.class === 'table' ? { tabindex: '0', role: 'group', 'aria-label': 'Table' } : {});
  } else {
    if (!(x === 'math' ? kMath : kSvg).has(n)) return h('span', {}, ...children());
    element = document.createElementNS(kNamespaces[x], n);
  }
  for (const [name, value] of Object.entries(a)) {
    if (kAttributes[x ?? 'html'].has(name)) element.setAttribute(name, value);
  }
  for (const [name, value] of Object.entries(s)) {
    if (kStyles.has(name) && kStyleValue.test(value)) element.style[name] = value;
  }
  element.append(...children());
  return element;
}

// ---- The worker and its jobs: one is read at a time; of each element the last text counts

const kWorker = globalThis.trustedTypes?.createPolicy('fathom', { createScriptURL: () => '/worker.js' }).createScriptURL('') ?? '/worker.js';
const kPause_ms = 80;  // between two readings of an element, or three times as long as one takes: the model may need the CPU

let worker = null;
let ready = false;
let broken = false;  // it does not even start
let timer = 0;  // of the text being read
let rest = 0;   // until the next may be
let running = null;
let n_jobs = 0;
let n_elements = 0;
const waiting = new Map();  // element to job
const states = new WeakMap();

function stateOf(element) {
  if (!states.has(element)) states.set(element, { number: ++n_elements, have: 0, hopeless: false, rests_until: 0 });
  return states.get(element);
}

function start() {
  ready = false;
  worker = new Worker(kWorker);
  worker.onmessage = ({ data }) => {
    if (data.ready) {
      ready = true;
      next();
    } else if (running && data.job === running.number) {
      finish(data);
    }
  };
  worker.onerror = (event) => {
    event.preventDefault();
    if (!ready) broken = true;
    giveUp();
  };
}

function finish({ keep, blocks }) {
  clearTimeout(timer);
  const { element, done, dropped, since } = running;
  running = null;
  if (dropped) return next();
  const state = stateOf(element);
  if (state.have === 0) element.replaceChildren();
  while (element.childNodes.length > keep) element.lastChild.remove();
  element.classList.remove('plain');
  element.append(...blocks.map((tree) => built(tree)));
  state.have = element.childNodes.length;
  const now = performance.now();
  state.rests_until = now + Math.max(kPause_ms, 3 * (now - since));
  done();
  next();
}

// The text that is being read stays plain, and a new worker takes the others.
function giveUp() {
  clearTimeout(timer);
  worker.terminate();
  worker = null;
  const failed = running ? [running] : [];
  running = null;
  if (broken) {
    failed.push(...waiting.values());
    waiting.clear();
  }
  for (const { element, text, done, dropped } of failed) {
    if (dropped) continue;
    stateOf(element).hopeless = true;
    showPlain(element, text);
    done();
  }
  next();
}

function next() {
  if (running || waiting.size === 0) return;
  if (!worker) return start();
  if (!ready) return;
  const now = performance.now();
  const wait_of = (job) => (job.final ? 0 : stateOf(job.element).rests_until - now);
  const job = [...waiting.values()].reduce((best, each) => (wait_of(each) < wait_of(best) ? each : best));
  clearTimeout(rest);
  if (wait_of(job) > 0) {
    rest = setTimeout(next, wait_of(job));
    return;
  }
  waiting.delete(job.element);
  const state = stateOf(job.element);
  running = { ...job, number: ++n_jobs, since: now };
  worker.postMessage({ job: running.number, element: state.number, text: job.text, have: state.have });
  timer = setTimeout(giveUp, kPatience_ms);
}

export function showPlain(element, text) {
  waiting.delete(element);
  if (running?.element === element) running.dropped = true;
  stateOf(element).have = 0;
  element.classList.add('plain');
  const only = element.childNodes.length === 1 && element.firstChild.nodeType === Node.TEXT_NODE ? element.firstChild : null;
  if (only && text.startsWith(only.data)) only.appendData(text.slice(only.data.length));
  else element.textContent = text;
}

// Shows the text in the element, at once as it is where nothing of it is there yet. `done` is called when the element has
// changed later. `final`: there is no more to come.
export function showMarkdown(element, text, { done = () => {}, final = true } = {}) {
  const state = stateOf(element);
  if (state.hopeless || broken) return showPlain(element, text);
  if (state.have === 0) {
    element.classList.add('plain');
    element.textContent = text;
  }
  waiting.set(element, { element, text, done, final });
  next();
}

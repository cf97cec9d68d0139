// Reads markdown, maths and code with marked, KaTeX and Prism, away from the page: a text that makes one of them run for ever
// is given up by markdown.js, which ends this worker. Nothing here has a document: what comes out is a tree of plain objects
//   'text'   {n: name, a: {attribute: value}, s: {property: value}, c: [children], x: 'math' | 'svg'}   {code, lang, c}
// of which markdown.js builds what it allows.
'use strict';

const kMostDepth = 60;            // of blocks in blocks
const kMostHighlighted = 50000;   // characters of code
const kMostCached = 600;          // blocks
const kMostTex = 20000;           // characters of a formula

const policy = self.trustedTypes?.createPolicy('fathom', { createScriptURL: (url) => url });
const load = (...names) => importScripts(...names.map((name) => (policy ? policy.createScriptURL('/lib/' + name) : '/lib/' + name)));

self.Prism = { manual: true, disableWorkerMessageHandler: true };
load('marked.js', 'prism-core.min.js');

const el = (n, c = [], a = undefined) => ({ n, c, a });

// ---- Code

// What each language needs, in order, before it.
const kLanguages = {
  markup: [], css: [], clike: [], javascript: ['clike'], typescript: ['javascript'], jsx: ['markup', 'javascript'],
  tsx: ['jsx', 'typescript'], c: ['clike'], cpp: ['c'], csharp: ['clike'], java: ['clike'], kotlin: ['clike'], scala: ['java'],
  go: ['clike'], rust: [], swift: [], python: [], ruby: ['clike'], 'markup-templating': ['markup'], php: ['clike', 'markup-templating'],
  perl: [], lua: [], r: [], julia: [], haskell: [], bash: [], powershell: [], sql: [], json: [], yaml: [], toml: [], ini: [],
  markdown: ['markup'], latex: [], diff: [], docker: [], makefile: [], cmake: [], nasm: [], glsl: ['c'], verilog: []
};
const kAliases = {
  html: 'markup', xml: 'markup', svg: 'markup', js: 'javascript', mjs: 'javascript', ts: 'typescript', 'c++': 'cpp', cc: 'cpp', cxx: 'cpp',
  h: 'cpp', hpp: 'cpp', cuda: 'cpp', cu: 'cpp', cs: 'csharp', 'c#': 'csharp', kt: 'kotlin', golang: 'go', rs: 'rust', py: 'python',
  python3: 'python', rb: 'ruby', pl: 'perl', jl: 'julia', hs: 'haskell', sh: 'bash', shell: 'bash', zsh: 'bash', console: 'bash',
  ps1: 'powershell', jsonc: 'json', yml: 'yaml', md: 'markdown', tex: 'latex', patch: 'diff', dockerfile: 'docker', make: 'makefile',
  asm: 'nasm', sv: 'verilog', systemverilog: 'verilog'
};

function grammarOf(name) {
  if (!Object.hasOwn(kLanguages, name)) return null;
  if (!Object.hasOwn(Prism.languages, name)) {
    kLanguages[name].forEach(grammarOf);
    load(`prism-${name}.min.js`);
  }
  return Prism.languages[name] ?? null;
}

function tokenTree(token) {
  if (typeof token === 'string') return token;
  if (Array.isArray(token)) return token.map(tokenTree);
  const content = tokenTree(token.content);
  const names = ['token', token.type].concat(token.alias ?? []);
  return el('span', Array.isArray(content) ? content.flat(Infinity) : [content], { class: names.join(' ') });
}

function codeTree(text, info) {
  const lang = (info ?? '').trim().split(/\s/)[0].replace(/^\{?\.?|\}$/g, '').slice(0, 40);
  const lower = lang.toLowerCase();
  const name = Object.hasOwn(kAliases, lower) ? kAliases[lower] : lower;
  let c = [text];
  if (text.length <= kMostHighlighted) {
    try {
      const grammar = grammarOf(name);
      if (grammar) {
        const env = { code: text, grammar, language: name };
        Prism.hooks.run('before-tokenize', env);
        env.tokens = Prism.tokenize(env.code, env.grammar);
        Prism.hooks.run('after-tokenize', env);
        c = [tokenTree(env.tokens)].flat(Infinity);
      }
    } catch {
      c = [text];
    }
  }
  return { code: text, lang, c };
}

// ---- Maths

// KaTeX makes nodes with `document`; this one writes down what it is asked for.
class TreeNode {
  constructor(name, namespace) {
    this.n = name;
    this.a = {};
    this.s = {};
    this.c = [];
    if (namespace?.endsWith('MathML')) this.x = 'math';
    if (namespace?.endsWith('svg')) this.x = 'svg';
  }
  get style() { return this.s; }
  set className(value) { if (value) this.a.class = value; }
  set textContent(value) { this.c = value ? [value] : []; }
  setAttribute(name, value) { this.a[name] = String(value); }
  appendChild(child) { this.c.push(child); }
}

const plain = (node) => (typeof node === 'string' ? node : { n: node.n, x: node.x, a: node.a, s: { ...node.s }, c: node.c.flatMap(flat) });
const flat = (node) => (node instanceof TreeNode && node.n === '' ? node.c.flatMap(flat) : [plain(node)]);

function mathTree(tex, display, source) {
  try {
    if (tex.length > kMostTex) throw new Error('too long');
    if (!self.katex) {
      self.document = {
        compatMode: 'CSS1Compat', createElement: (name) => new TreeNode(name), createElementNS: (namespace, name) => new TreeNode(name, namespace),
        createTextNode: (text) => String(text), createDocumentFragment: () => new TreeNode('')
      };
      load('katex.js');
    }
    const root = new TreeNode(display ? 'div' : 'span');
    self.katex.render(tex, root, { displayMode: display, throwOnError: true, trust: false, strict: 'ignore', maxSize: 20, maxExpand: 500 });
    root.a.class = display ? 'math math-display' : 'math';
    return plain(root);
  } catch {
    return el('code', [source], { class: 'math-source' });  // as it was written
  }
}

// $…$ as Pandoc reads it: no space inside the dollars, no digit behind them, so that prices are no formulas; nor is code.
const kInlineMath = new RegExp([
  /^\$((?:[^\s$\\`]|\\[^])(?:(?:[^$\\`]|\\[^]){0,2000}?(?:[^\s$\\`]|\\[^]))?)\$(?!\d)/.source,
  /^\\\(([^]{1,4000}?)\\\)/.source,
  /^\$\$([^$]{1,4000}?)\$\$/.source,
  /^\\\[([^]{1,4000}?)\\\]/.source
].join('|'));
const kBlockMath = /^ {0,3}(?:\$\$([^]+?)\$\$|\\\[([^]+?)\\\]) *(?:\n|$)/;

marked.use({
  extensions: [
    {
      name: 'mathBlock', level: 'block',
      start(source) {
        const end = source.indexOf('\n\n');  // no need to look behind the paragraph
        return (end < 0 ? source : source.slice(0, end)).match(/^ {0,3}(?:\$\$|\\\[)/m)?.index;
      },
      tokenizer(source) {
        const found = kBlockMath.exec(source);
        if (found && !/\n\s*\n/.test(found[0])) return { type: 'mathBlock', raw: found[0], tex: found[1] ?? found[2] };
      }
    },
    {
      name: 'mathInline', level: 'inline',
      start: (source) => source.match(/\$|\\[([]/)?.index,
      tokenizer(source) {
        const found = kInlineMath.exec(source);
        if (found) return { type: 'mathInline', raw: found[0], tex: found[1] ?? found[2] ?? found[3] ?? found[4], display: !!(found[3] ?? found[4]) };
      }
    }
  ]
});
marked.setOptions({ gfm: true, breaks: true, mangle: false, headerIds: false });

// ---- Markdown

const kEntities = {
  amp: '&', lt: '<', gt: '>', quot: '"', apos: '\'', nbsp: '\u00a0', copy: '©', reg: '®', hellip: '…', mdash: '—', ndash: '–', times: '×',
  middot: '·', bull: '•', deg: '°', plusmn: '±', larr: '←', rarr: '→', harr: '↔', le: '≤', ge: '≥', ne: '≠', infin: '∞', euro: '€',
  lsquo: '‘', rsquo: '’', ldquo: '“', rdquo: '”', sect: '§', para: '¶', frac12: '½', sup2: '²', micro: 'µ', alpha: 'α', beta: 'β',
  lambda: 'λ', pi: 'π'
};

const decoded = (text) => text.replace(/&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|(\w{2,8}));/g, (whole, decimal, hex, name) => {
  if (name) return Object.hasOwn(kEntities, name) ? kEntities[name] : whole;
  const code = decimal ? Number(decimal) : parseInt(hex, 16);
  return code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code <= 0xdfff) ? String.fromCodePoint(code) : '\ufffd';
});

function codeSpan(raw) {
  const ticks = /^`+/.exec(raw)[0].length;
  const text = raw.slice(ticks, raw.length - ticks).replace(/\n/g, ' ');
  return /[^ ]/.test(text) && text.startsWith(' ') && text.endsWith(' ') ? text.slice(1, -1) : text;
}

function inline(tokens, depth) {
  if (depth > kMostDepth) return [tokens.map((token) => token.raw).join('')];
  return tokens.flatMap((token) => {
    const inner = () => inline(token.tokens ?? [], depth + 1);
    switch (token.type) {
      case 'escape': return [token.raw.slice(1)];
      case 'text': return token.tokens ? inner() : [decoded(token.raw)];
      case 'html': return [token.raw];  // shown, never read
      case 'strong': case 'em': case 'del': return [el(token.type, inner())];
      case 'codespan': return [el('code', [codeSpan(token.raw)])];
      case 'br': return [el('br')];
      case 'link': return [el('a', inner(), { href: decoded(token.href ?? '') })];
      case 'image': return [el('img', [], { src: token.href ?? '', alt: decoded(token.text ?? '') })];
      case 'mathInline': return [mathTree(token.tex, token.display, token.raw)];
      default: return [token.raw ?? ''];
    }
  });
}

function listTree(token, depth) {
  const items = token.items.map((item) => {
    const c = blocks(item.tokens, depth + 1, !item.loose);
    if (item.task) c.unshift(el('input', [], item.checked ? { type: 'checkbox', checked: '' } : { type: 'checkbox' }));
    return el('li', c);
  });
  const start = token.ordered && Number.isInteger(token.start) && token.start !== 1 ? { start: String(token.start) } : undefined;
  return el(token.ordered ? 'ol' : 'ul', items, start);
}

function tableTree(token, depth) {
  const cells = (name, row) => el('tr', row.map((cell, i) => {
    const align = token.align[i];
    return el(name, inline(cell.tokens, depth + 1), align ? { class: 'align-' + align } : undefined);
  }));
  const table = el('table', [el('thead', [cells('th', token.header)]), el('tbody', token.rows.map((row) => cells('td', row)))]);
  return el('div', [table], { class: 'table' });
}

function block(token, depth, tight) {
  switch (token.type) {
    case 'space': case 'def': return null;
    case 'hr': return el('hr');
    case 'heading': return el('h' + Math.min(token.depth + 2, 6), inline(token.tokens, depth), { class: 'heading-' + token.depth });
    case 'code': return codeTree(token.text, token.lang);
    case 'blockquote': return el('blockquote', blocks(token.tokens, depth + 1, false));
    case 'list': return listTree(token, depth);
    case 'table': return tableTree(token, depth);
    case 'mathBlock': return mathTree(token.tex, true, token.raw);
    case 'html': return el('p', [token.raw.replace(/\n+$/, '')], { class: 'source' });
    case 'text': return el(tight ? 'span' : 'p', token.tokens ? inline(token.tokens, depth) : [decoded(token.raw)]);
    case 'paragraph': return el('p', inline(token.tokens, depth));
    default: return el('p', [token.raw ?? '']);
  }
}

function blocks(tokens, depth, tight) {
  if (depth > kMostDepth) return [tokens.map((token) => token.raw).join('')];
  return tokens.map((token) => block(token, depth, tight)).filter(Boolean);
}

// ---- Work

const cache = new Map();  // a block's text to its tree; the order is that of last use
const sent = new Map();   // an element's number to the texts of the blocks that it has

function treeOf(token, links) {
  const key = links + token.raw;
  const known = cache.get(key);
  cache.delete(key);
  const tree = known ?? block(token, 0, false);
  cache.set(key, tree);
  if (cache.size > kMostCached) cache.delete(cache.keys().next().value);
  return tree;
}

self.onmessage = ({ data: { job, element, text, have } }) => {
  let tokens;
  try {
    tokens = marked.lexer(text + '\n');  // a fence that has not ended yet is one only so
  } catch {
    tokens = [{ type: 'html', raw: text }];
  }
  const links = Object.keys(tokens.links ?? {}).length > 0 ? JSON.stringify(tokens.links) : '';
  tokens = tokens.filter((token) => token.type !== 'space' && token.type !== 'def');
  const raws = tokens.map((token) => links + token.raw);
  const before = sent.get(element) ?? [];
  let keep = 0;
  while (keep < Math.min(before.length, raws.length, have) && before[keep] === raws[keep]) ++keep;
  sent.delete(element);
  sent.set(element, raws);
  if (sent.size > 8) sent.delete(sent.keys().next().value);
  self.postMessage({ job, keep, blocks: tokens.slice(keep).map((token) => treeOf(token, links)) });
};
self.postMessage({ ready: true });

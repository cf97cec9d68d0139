// The list of conversations: open, rename, delete, search, import and export.

import { announce, by, download, h, iconButton, toast } from './dom.js';

const kWide = '(min-width: 56rem)';
const kFresh_ms = [[86400000, 'Today'], [7 * 86400000, 'Last 7 days'], [Infinity, 'Older']];

export class Sidebar {
  #conversations;
  #host;
  #renaming = null;

  // The host: {current(), open(id), create(), busy(id), renamed(conversation), removed(conversation, was_current),
  // restored(conversation), imported(result)}.
  constructor(conversations, host) {
    this.#conversations = conversations;
    this.#host = host;
    by('new-chat').addEventListener('click', () => host.create());
    by('search').addEventListener('input', () => this.draw());
    by('export').addEventListener('click', () => this.#export());
    by('import').addEventListener('click', () => by('import-file').click());
    by('import-file').addEventListener('change', (event) => this.#import(event.target));
    by('toggle-sidebar').addEventListener('click', () => this.toggle());
    by('close-sidebar').addEventListener('click', () => this.toggle(false));
    by('backdrop').addEventListener('click', () => this.toggle(false));
    matchMedia(kWide).addEventListener('change', () => this.toggle(this.wide, false));
    this.toggle(this.wide, false);
  }

  get wide() { return matchMedia(kWide).matches; }
  get open() { return document.body.dataset.sidebar === 'open'; }

  // On a narrow page the list lies over the rest, which must not be reached behind it.
  toggle(open = !this.open, move_focus = true) {
    const had_focus = by('sidebar').contains(document.activeElement);
    document.body.dataset.sidebar = open ? 'open' : 'closed';
    by('toggle-sidebar').setAttribute('aria-expanded', String(open));
    by('sidebar').inert = !open;
    by('main').inert = open && !this.wide;
    if (!move_focus) return;
    if (open && !this.wide) by('close-sidebar').focus();
    if (!open && had_focus) by('toggle-sidebar').focus();
  }

  draw() {
    if (this.#renaming && by('conversations').querySelector('.rename')) return;  // not under somebody's hands
    const focused = by('conversations').contains(document.activeElement) ? document.activeElement : null;
    const words = by('search').value;
    const found = words.trim() ? this.#conversations.search(words) : this.#conversations.list();
    const groups = kFresh_ms.map(([, label]) => ({ label, items: [] }));
    for (const conversation of found) {
      const age_ms = Date.now() - conversation.updated;
      groups[kFresh_ms.findIndex(([limit]) => age_ms < limit)].items.push(conversation);
    }
    const filled = groups.filter(({ items }) => items.length > 0);
    by('conversations').replaceChildren(...filled.flatMap(({ label, items }) => {
      const id = 'group-' + label.replaceAll(' ', '-');
      return [h('h2', { id, text: label }), h('ul', { 'aria-labelledby': id }, ...items.map((conversation) => this.#item(conversation)))];
    }));
    if (filled.length === 0) by('conversations').append(h('p', { class: 'hint', text: words.trim() ? 'Nothing found.' : 'No conversations yet.' }));
    if (this.#renaming) return by('conversations').querySelector('.rename')?.focus();
    if (!focused) return;
    const item = by('conversations').querySelector(`li[data-id="${focused.closest('li')?.dataset.id}"]`);
    const label = focused.getAttribute('aria-label');
    [...item?.querySelectorAll('button') ?? []].find((button) => button.getAttribute('aria-label') === label)?.focus();
  }

  #item(conversation) {
    const current = conversation.id === this.#host.current()?.id;
    if (this.#renaming === conversation.id) return h('li', {}, this.#renameField(conversation));
    const open = () => {
      this.#host.open(conversation.id);
      if (!this.wide) this.toggle(false);
    };
    const menu = [
      iconButton('edit', `Rename ${conversation.title}`, () => this.rename(conversation.id)),
      iconButton('export', `Export ${conversation.title}`, () => this.#export([conversation])),
      iconButton('delete', `Delete ${conversation.title}`, () => this.remove(conversation))
    ];
    const busy = this.#host.busy(conversation.id);
    const button = h(
        'button', {
          type: 'button', class: 'open', title: conversation.title, 'aria-current': current ? 'true' : null,
          on: { click: open, dblclick: () => this.rename(conversation.id) }
        },
        h('span', { class: 'name', text: conversation.title }),
        busy ? h('span', { class: 'busy', role: 'img', 'aria-label': 'is being answered' }) : null);
    return h('li', { data: { id: conversation.id }, class: current ? 'current' : null }, button, h('span', { class: 'menu' }, ...menu));
  }

  rename(id) {
    this.#renaming = id;
    this.draw();
    by('conversations').querySelector('.rename')?.select();
  }

  #renameField(conversation) {
    const field = h('input', { class: 'rename', 'aria-label': 'Name of the conversation', maxlength: 200 });
    field.value = conversation.title;
    const end = (keeps) => {
      if (this.#renaming !== conversation.id) return;
      this.#renaming = null;
      const name = field.value.trim();
      if (keeps && name && name !== conversation.title) {
        const kept = this.#conversations.get(conversation.id) ?? conversation;  // another tab may have written it meanwhile
        Object.assign(kept, { title: name, named: true });
        this.#host.renamed(kept);
      }
      this.draw();
      by('conversations').querySelector(`li[data-id="${conversation.id}"] .open`)?.focus();
    };
    field.addEventListener('blur', () => end(true));
    field.addEventListener('keydown', (event) => {
      if (event.isComposing) return;
      if (event.key === 'Enter') end(true);
      if (event.key === 'Escape') end(false);
      event.stopPropagation();
    });
    return field;
  }

  remove(conversation) {
    const was_current = conversation.id === this.#host.current()?.id;
    this.#conversations.remove(conversation.id);
    this.#host.removed(conversation, was_current);
    this.draw();
    const undo = () => {
      this.#host.restored(conversation);
      announce('Conversation restored');
    };
    toast(`Deleted “${conversation.title}”`, { label: 'Undo', run: undo });
    by('new-chat').focus();
  }

  #export(conversations = this.#conversations.list()) {
    const name = conversations.length === 1 ? conversations[0].title.replace(/[^\p{L}\p{N}]+/gu, '-').slice(0, 40) : 'conversations';
    download(`fathom-${name || 'conversation'}.json`, this.#conversations.exported(conversations));
  }

  async #import(input) {
    const [file] = input.files;
    if (!file) return;
    try {
      const { added, full, skipped } = this.#conversations.imported(await file.text());
      const left_out = skipped > 0 ? `, ${skipped} left out as damaged` : '';
      toast(`Imported ${added.length} ${added.length === 1 ? 'conversation' : 'conversations'}${left_out}`);
      this.#host.imported(full ? 'full' : 'kept');
      if (added.length > 0) this.#host.open(added[0].id);
    } catch (error) {
      toast(`Not imported: ${error.message}`);
    }
    input.value = '';
    this.draw();
  }
}

// The button that changes between the system's theme, light and dark; what was chosen is kept where theme.js looks.

import { announce, by, icon } from './dom.js';

const kThemes = ['', 'light', 'dark'];
const kThemeStore = 'fathom.settings';

function readTheme() {
  return document.documentElement.dataset.theme ?? '';
}

function labelTheme() {
  const label = { '': 'Theme: as the system', light: 'Theme: light', dark: 'Theme: dark' }[readTheme()];
  by('theme').setAttribute('aria-label', label);
  by('theme').title = label;
  by('theme').replaceChildren(icon({ '': 'auto', light: 'sun', dark: 'moon' }[readTheme()]));
}

// `changed` is called now and whenever the colors are others.
export function themeChoice(changed) {
  const drawn = () => {
    labelTheme();
    changed();
  };
  by('theme').addEventListener('click', () => {
    const theme = kThemes[(kThemes.indexOf(readTheme()) + 1) % kThemes.length];
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    try {
      localStorage.setItem(kThemeStore, JSON.stringify({ ...JSON.parse(localStorage.getItem(kThemeStore) ?? '{}'), theme }));
    } catch {
      // for this visit at least
    }
    drawn();
    announce(by('theme').title);
  });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawn);
  drawn();
}

// Runs before the first paint, so that a chosen theme does not flash. A classic script: modules wait for the whole page.
try {
  const theme = JSON.parse(localStorage.getItem('fathom.settings') || '{}').theme;
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
} catch {
  // No storage, or not ours: the system's theme it is.
}

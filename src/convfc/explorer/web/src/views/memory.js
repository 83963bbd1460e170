// What a browser remembers between visits; some forbid it (private windows, notebooks), which is
// fine.

const PREFIX = "convfc-explorer-";

/** What was remembered, or null. */
export function remembered(key) {
  try {
    return localStorage.getItem(PREFIX + key);
  } catch {
    return null;
  }
}

/** Remember a text. */
export function remember(key, value) {
  try {
    localStorage.setItem(PREFIX + key, value);
  } catch {
    // Nothing is remembered then.
  }
}

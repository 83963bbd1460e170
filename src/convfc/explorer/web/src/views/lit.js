// The way back: what lights up when an element of the input is looked at.

/**
 * Every entry [p, q] of M that reads the element, and the output positions p that it feeds; null unless
 * the backward view is on and an element is looked at.
 */
export function lit(store) {
  const { element } = store.shown;
  if (!store.view.backward || element === null) return null;
  const entries = store.map.readers(element);
  return { element, entries, outputs: [...new Set(entries.map(([p]) => p))] };
}

// The way back: what lights up when a number of the input, of dK or of dX is looked at.

/** Entries of M, and outputs, that are lit at most; of more, evenly chosen ones. */
const MOST = 500;

/**
 * What lights up with the number that is looked at: {element, entries, outputs, of} for an element of the
 * input, whose readers are entries [p, q] of M and feed outputs p; {column} for a weight, which meets
 * one column of M. Null unless that is what the page is asked to show.
 */
export function lit(store) {
  if (store.moment !== null) return null; // the film lights what it reads and writes
  const { element, q, of } = store.shown;
  if (element !== null && (store.view.feeds || of === "dX")) {
    const entries = [...store.map.readers(element, MOST)];
    return { element, entries, outputs: [...new Set(entries.map(([p]) => p))] };
  }
  if (q !== null && of === "dK") return { column: q, entries: [], outputs: [] };
  return null;
}

// Numbers that keep what was given. Input, filters and bias are cut from what was given or continued
// around it whenever sizes change, never from one another, so that a size typed over and typed back
// loses nothing; what was changed by hand lies above, place by place.

import { filtersShape, inputShape, product } from "./geometry.js";
import { ravel, unravel } from "./indexmap.js";
import { cropped, digitInput, gradient, someFilters } from "./start.js";

/** Numbers that differ from the given ones; of more, they are other numbers altogether. */
const BY_HAND = 5000;

/** Of each kind its shape, and the numbers that stand where none were given. */
const KINDS = {
  input: {
    shape: inputShape,
    // Around a picture there is nothing; a picture of two axes says nothing of one.
    made: (settings, source) =>
      source?.shape?.length === settings.axes + 1
        ? new Float64Array(product(inputShape(settings)))
        : gradient(settings),
  },
  filters: {
    shape: filtersShape,
    // Beside trained weights, which are small, made-up ones are as large as the largest of them.
    made: (settings, source) => {
      const made = someFilters(settings);
      const scale = source ? Math.min(1, largest(source.values) / largest(made)) : 1;
      return scale === 1 ? made : made.map((w) => w * scale);
    },
  },
  bias: { shape: ({ filters }) => [filters], made: ({ filters }) => new Float64Array(filters) },
};

/**
 * Kept numbers are {source, edits}: a source {shape, values, range?, said?}, {digit}, or null for made-up
 * ones, and a Map from places ("i,j,d") to numbers. They are never changed, only replaced.
 */
export function kept(kind, given, settings) {
  return { source: sourceOf(kind, given, settings), edits: new Map() };
}

function sourceOf(kind, given, settings) {
  if (Number.isInteger(given?.digit) && given.digit >= 0) return { digit: given.digit, said: "a digit" };
  const values = kind === "input" ? given?.values : given;
  const shape = KINDS[kind].shape(settings);
  if (!values || values.length !== product(shape)) return null;
  return { shape, values: Float64Array.from(values), range: given.range ?? null };
}

/** The numbers of a kind for settings. */
export function numbersFor(kind, { source, edits }, settings) {
  const shape = KINDS[kind].shape(settings);
  let values = source?.digit === undefined ? KINDS[kind].made(settings, source) : digitInput(source.digit, settings);
  if (source?.values) values = cropped(source.values, source.shape, shape, values);
  for (const [place, value] of edits) {
    const at = flatOf(place, shape);
    if (at >= 0) values[at] = value;
  }
  return values;
}

/** Kept numbers with one of them changed; changed back, it is as if it had never been. */
export function edited(kind, { source, edits }, settings, index, value) {
  const place = unravel(index, KINDS[kind].shape(settings)).join();
  const next = new Map(edits);
  next.delete(place);
  if (numbersFor(kind, { source, edits: next }, settings)[index] !== value) next.set(place, value);
  return { source, edits: next };
}

/** What a state says of numbers that began as others: the same, some changed by hand, or new ones. */
export function continued(kind, before, given, settings) {
  const now = kept(kind, given, settings);
  if (!now.source || (now.source.digit !== undefined && now.source.digit === before.source?.digit)) return before;
  if (now.source.digit !== undefined) return now;
  const { shape, values } = now.source;
  const usual = numbersFor(kind, before, settings);
  const edits = new Map(before.edits);
  for (let at = 0; at < values.length; at++) {
    if (values[at] === usual[at]) continue;
    if (edits.size === BY_HAND) return now;
    edits.set(unravel(at, shape).join(), values[at]);
  }
  return edits.size ? { source: before.source, edits } : before;
}

/** How kept numbers differ from those that were given: {other, edits, made}, counts but for `other`. */
export function differences(kind, now, given, settings) {
  const shape = KINDS[kind].shape(settings);
  const { source } = now;
  const common = source?.shape?.length === shape.length && source.shape.map((n, axis) => Math.min(n, shape[axis]));
  return {
    other: source !== given.source,
    edits: [...now.edits.keys()].filter((place) => flatOf(place, shape) >= 0).length,
    made: source?.values ? product(shape) - (common ? product(common) : 0) : 0,
  };
}

/** The largest modulus of numbers; of those that are finite, and never 0. */
export function largest(numbers) {
  let most = 0;
  for (const value of numbers) if (Number.isFinite(value)) most = Math.max(most, Math.abs(value));
  return most || 1;
}

/** The flat index of a place; -1 outside the shape. */
function flatOf(place, shape) {
  const index = place.split(",").map(Number);
  const inside = index.length === shape.length && index.every((i, axis) => i < shape[axis]);
  return inside ? ravel(index, shape) : -1;
}

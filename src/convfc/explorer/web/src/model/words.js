// The selection and numbers in words: for the live region, labels and tables.

import { PER_AXIS, SINGLE } from "./geometry.js";
import { unravel } from "./indexmap.js";
import { differences } from "./kept.js";
import { columnsOf } from "./numbers.js";

/** Names of settings that have no label of their own. */
const NAMES = { padding: "padding", mode: "padding mode", axes: "axes", flip: "flip", transposed: "transposed", bias: "bias" };

/** What is selected, as a sentence. */
export function describe(store) {
  const { map, selection, moment: step } = store;
  if (step !== null) return `Step ${step} of ${store.trace.steps}: line ${store.trace.at(step).line}.`;
  const position = map.position(selection.p);
  const { first } = columnsOf(map, selection.f);
  const names = position.length > 1 ? ["rows", "columns"] : ["elements"];
  const window = map.axes.map((a, i) => {
    const corner = map.paddedCoordinates(selection.p, first)[i];
    const end = corner + (a.taps - 1) * a.tapStep;
    const [low, high] = [Math.min(corner, end), Math.max(corner, end)].map((n) => short(n));
    return `${names[i]} ${low} to ${high}`;
  });
  const sum = short(store.value(selection.p, selection.f));
  const where = `Output ${place(position)}, filter ${selection.f}: window ${window.join(", ")}; sum ${sum}.`;
  const { of, q, element } = selection;
  if (of === "dX" && element !== null && store.dX) return `${where} dX at input ${element}: ${short(store.dX[element])}.`;
  if (of === "dK" && q !== null && store.dK(selection.f)) {
    return `${where} dK at row ${q - first}: ${short(store.dK(selection.f)[q - first])}.`;
  }
  return store.view.feeds && element !== null ? `${where} ${readers(store, element)}` : where;
}

/** How often an element of the input is read, as a sentence. */
export function readers(store, element) {
  const index = unravel(element, store.map.inputShape);
  const channel = index.pop();
  const { entries, outputs } = store.map.readerCounts(element);
  const of = store.settings.channels > 1 ? `, channel ${channel}` : "";
  return `Input ${place(index)}${of} feeds ${count(outputs, "output position")} through ${count(entries, "entry", "entries")} of M.`;
}

/** A position: "row 3, column 5", or "element 3" on one axis. */
export function place(position) {
  return position.length > 1 ? `row ${position[0]}, column ${position[1]}` : `element ${position[0]}`;
}

/** "1 entry", "4 entries". */
export function count(n, one, many = `${one}s`) {
  return `${n} ${n === 1 ? one : many}`;
}

/** What of a store is not as it was given, each in a few words; empty if all of it is. */
export function changes(store) {
  const { given, settings } = store;
  // With another number of axes all that is said per axis is another, too.
  const axes = given.settings.axes !== settings.axes;
  const found = Object.keys(given.settings)
    .filter((name) => !axes || !Array.isArray(settings[name]))
    .filter((name) => JSON.stringify(given.settings[name]) !== JSON.stringify(settings[name]))
    .map((name) => {
      const label = NAMES[name] ?? (PER_AXIS[name] ?? SINGLE[name]).label;
      return `${label} ${plain(given.settings[name])} → ${plain(settings[name])}`;
    });
  const kinds = { input: "the input", filters: "the filters", bias: "the bias" };
  for (const [kind, words] of Object.entries(kinds)) {
    if (kind === "bias" && !settings.bias) continue;
    const { other, edits, made } = differences(kind, store.kept[kind], given.kept[kind], settings);
    if (other) found.push(`${words}: ${store.kept[kind].source?.said ?? "other numbers"}`);
    if (edits) found.push(`${count(edits, "number")} of ${words}`);
    if (made && !other) found.push(`${count(made, "number")} of ${words} made up`);
  }
  return found;
}

/** The value of a setting as people write it. */
function plain(value) {
  if (Array.isArray(value)) return value.map((v) => (Array.isArray(v) ? v.join("+") : v)).join(" × ");
  return typeof value === "boolean" ? (value ? "on" : "off") : String(value);
}

/** A number as it is shown: whole numbers as they are, others with a few digits, a true minus; "?" of what is covered. */
export function short(value, digits = 4) {
  if (Number.isNaN(value)) return "?";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (Object.is(value, -0)) value = 0;
  const text = Number.isInteger(value) && Math.abs(value) < 1e6 ? String(value) : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−");
}

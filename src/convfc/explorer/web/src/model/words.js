// The selection and numbers in words: for the live region, labels and tables.

import { unravel } from "./indexmap.js";
import { columnsOf } from "./numbers.js";

/** What is selected, as a sentence. */
export function describe(store) {
  const { map, selection } = store;
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
  return store.view.backward && selection.element !== null ? `${where} ${readers(store, selection.element)}` : where;
}

/** How often an element of the input is read, as a sentence. */
export function readers(store, element) {
  const index = unravel(element, store.map.inputShape);
  const channel = index.pop();
  const pairs = store.map.readers(element);
  const outputs = new Set(pairs.map(([p]) => p)).size;
  const of = store.settings.channels > 1 ? `, channel ${channel}` : "";
  return `Input ${place(index)}${of} feeds ${count(outputs, "output position")} through ${count(pairs.length, "entry", "entries")} of M.`;
}

/** A position: "row 3, column 5", or "element 3" on one axis. */
export function place(position) {
  return position.length > 1 ? `row ${position[0]}, column ${position[1]}` : `element ${position[0]}`;
}

/** "1 entry", "4 entries". */
export function count(n, one, many = `${one}s`) {
  return `${n} ${n === 1 ? one : many}`;
}

/** A number as it is shown: whole numbers as they are, others with a few digits, a true minus. */
export function short(value, digits = 4) {
  if (Object.is(value, -0)) value = 0;
  const text = Number.isInteger(value) && Math.abs(value) < 1e6 ? String(value) : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−");
}

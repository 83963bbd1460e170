// The one store of the page: settings, numbers, selection and view. Views read it and call it; nothing
// else holds state. What follows from it (map, M, K, Y) is computed when it is asked for, and kept.

import { complete, filtersShape, inputShape, problems, product } from "./geometry.js";
import { indexMap, unravel } from "./indexmap.js";
import { columnsOf, filterMatrix, output, outputAt, patchMatrix, readCounts, unrolledRow } from "./numbers.js";
import { DIGITS } from "./digits.js";

export const VERSION = 1;
export const TABS = ["arithmetic", "map", "matrix", "code"];

/** Entries above which M is not held whole: its cells are then worked out as they are drawn. */
export const HELD = 4_000_000;

export class Store {
  constructor(state = {}) {
    this.listeners = new Set();
    this.load(state);
  }

  // --- what there is -------------------------------------------------------------------------

  /** Take a state {settings, input, filters, bias, selection, view, title}; what is missing is made. */
  load(state) {
    this.title = state.title ?? "";
    this.source = state.source ?? "";
    this.preset = state.preset ?? null;
    this.wanted = complete(state.settings ?? {});
    this.problems = problems(this.wanted);
    this.settings = this.problems.length ? complete({}) : this.wanted;
    this._numbers(state);
    this.selection = { p: 0, f: 0, q: null, element: null, ...state.selection };
    this.view = { tab: "arithmetic", backward: false, ...state.view };
    this._forget();
    this._clampSelection();
    this._tell("load");
  }

  /** The state as plain JSON, for the address, for Python and to be loaded again. */
  toJSON() {
    return {
      version: VERSION,
      title: this.title,
      source: this.source,
      preset: this.preset,
      settings: structuredClone(this.settings),
      input: { values: Array.from(this.input) },
      filters: Array.from(this.filters),
      bias: this.settings.bias ? Array.from(this.bias) : null,
      selection: { ...this.selection },
      view: { ...this.view },
    };
  }

  get map() {
    return this._once("map", () => indexMap(this.settings));
  }

  get outputSize() {
    return this.map.outputSize;
  }

  /** M as an array, or null where it is too large to be held; see `entry`. */
  get M() {
    return this._once("M", () => (this.map.rows * this.map.columns > HELD ? null : patchMatrix(this.map, this.input)));
  }

  get K() {
    return this._once("K", () => filterMatrix(this.settings, this.filters));
  }

  /** Y, (L, f); null where it would take too long, see `value`. */
  get Y() {
    const { map, settings } = this;
    const work = map.rows * map.taps * settings.filters;
    return this._once("Y", () => (work > 40 * HELD ? null : output(map, this.input, this.filters, this._bias())));
  }

  get counts() {
    return this._once("counts", () => readCounts(this.map));
  }

  /** The number at (p, q) of M, whether M is held or not. */
  entry(p, q) {
    if (this.M) return this.M[p * this.map.columns + q];
    const from = this.map.element(p, q);
    return from < 0 ? 0 : this.input[from];
  }

  /** The output of filter f at position p. */
  value(p, f) {
    return this.Y ? this.Y[p * this.settings.filters + f] : this.arithmetic(p, f).sum;
  }

  /** The selected output, or another one, term by term. */
  arithmetic(p = this.selection.p, f = this.selection.f) {
    return outputAt(this.map, this.input, this.filters, this._bias(), p, f);
  }

  /** The selected row of the one big matrix: element -> weight. */
  bigRow(p = this.selection.p, f = this.selection.f) {
    return unrolledRow(this.map, this.filters, p, f);
  }

  // --- changes ---------------------------------------------------------------------------------

  /** Change settings. Broken ones are kept in `wanted` with their problems; the last good ones stay. */
  set(patch) {
    this.wanted = complete({ ...this.wanted, ...patch });
    this.problems = problems(this.wanted);
    if (!this.problems.length) {
      const before = this.settings;
      this.settings = this.wanted;
      this._resize(before);
      this._forget();
      this._clampSelection();
    }
    this._tell("settings");
  }

  /** Select: an output position p, a filter f, a column q, an input element; the rest follows. */
  select({ p, f, q, element }) {
    const { map, settings } = this;
    const next = { ...this.selection };
    if (p !== undefined) next.p = clamp(p, map.rows);
    if (f !== undefined) next.f = clamp(f, settings.filters);
    if (q !== undefined) {
      next.q = q === null ? null : clamp(q, map.columns);
      if (q !== null) {
        const { first, count } = columnsOf(map, next.f);
        if (next.q < first || next.q >= first + count) {
          // A column of another group: the first filter that reads it.
          next.f = map.tap(next.q).group * (settings.filters / settings.groups);
        }
        const from = map.element(next.p, next.q);
        next.element = from < 0 ? null : from;
      } else if (element === undefined) next.element = null;
    } else if (p !== undefined || f !== undefined) {
      if (next.q !== null) return this.select({ p: next.p, f: next.f, q: this._columnFor(next.q, next.f) });
      next.element = null;
    }
    if (element !== undefined) {
      next.element = element === null ? null : clamp(element, product(map.inputShape));
      if (q === undefined) {
        next.q = null;
        if (next.element !== null) {
          const column = map.row(next.p).indexOf(next.element);
          next.q = column < 0 ? null : column;
        }
      }
    }
    if (Object.keys(next).every((key) => next[key] === this.selection[key])) return;
    this.selection = next;
    this._tell("selection");
  }

  /** Move the output position by steps along an axis (the last one by default), within the output. */
  step(by, axis = this.outputSize.length - 1) {
    const position = this.map.position(this.selection.p);
    const at = position[axis] + by;
    if (at < 0 || at >= this.outputSize[axis]) return false;
    position[axis] = at;
    this.select({ p: position.reduce((flat, i, a) => flat * this.outputSize[a] + i, 0) });
    return true;
  }

  /** Change one number: kind is "input", "filters" or "bias". */
  edit(kind, index, value) {
    if (!Number.isFinite(value)) return false;
    if (kind === "bias" && !this.settings.bias) return false;
    this[kind][index] = value;
    for (const name of ["M", "K", "Y"]) delete this._kept[name];
    this._tell("numbers");
    return true;
  }

  /** Change many numbers of the input at once, as a drawing does. */
  draw(values) {
    this.input.set(values);
    for (const name of ["M", "Y"]) delete this._kept[name];
    this._tell("numbers");
  }

  show(view) {
    this.view = { ...this.view, ...view };
    this._tell("view");
  }

  /** Call a function with the kind of every change; returns how to stop. */
  subscribe(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  // --- in words ----------------------------------------------------------------------------------

  /** What is selected, as a sentence. */
  describe() {
    const { map, selection } = this;
    const position = map.position(selection.p);
    const { first } = columnsOf(map, selection.f);
    const names = position.length > 1 ? ["rows", "columns"] : ["elements"];
    const window = map.axes.map((a, i) => {
      const corner = map.paddedCoordinates(selection.p, first)[i];
      const end = corner + (a.taps - 1) * a.tapStep;
      const [low, high] = [Math.min(corner, end), Math.max(corner, end)];
      return `${names[i]} ${low} to ${high}`;
    });
    const where = position.length > 1 ? `row ${position[0]}, column ${position[1]}` : `element ${position[0]}`;
    return `Output ${where}, filter ${selection.f}: window ${window.join(", ")}; sum ${short(this.value(selection.p, selection.f))}.`;
  }

  // --- inside ---------------------------------------------------------------------------------------

  _bias() {
    return this.settings.bias ? this.bias : null;
  }

  _once(name, make) {
    if (!(name in this._kept)) this._kept[name] = make();
    return this._kept[name];
  }

  _forget() {
    this._kept = {};
  }

  _tell(kind) {
    for (const listener of this.listeners) listener(kind);
  }

  _columnFor(q, f) {
    const { first, count } = columnsOf(this.map, f);
    return first + (q % count);
  }

  _clampSelection() {
    const { rows, columns } = this.map;
    const s = this.selection;
    s.p = clamp(s.p, rows);
    s.f = clamp(s.f, this.settings.filters);
    if (s.q !== null) {
      s.q = this._columnFor(clamp(s.q, columns), s.f);
      const from = this.map.element(s.p, s.q);
      s.element = from < 0 ? null : from;
    } else if (s.element !== null && s.element >= product(this.map.inputShape)) s.element = null;
  }

  _numbers(state) {
    const { settings } = this;
    const fits = !this.problems.length;
    this.input = filled(product(inputShape(settings)), fits ? given(state.input, settings) : null, (n) => gradient(n, settings));
    this.filters = filled(product(filtersShape(settings)), fits ? state.filters : null, (n) => someFilters(n, settings));
    this.bias = filled(settings.filters, fits ? state.bias : null, (n) => new Float64Array(n));
  }

  /** Keep what fits of the numbers when sizes change: pixels stay where they are, filters too. */
  _resize(before) {
    const after = this.settings;
    this.input = cropped(this.input, inputShape(before), inputShape(after), gradient(product(inputShape(after)), after));
    const fresh = someFilters(product(filtersShape(after)), after);
    this.filters = cropped(this.filters, filtersShape(before), filtersShape(after), fresh);
    this.bias = cropped(this.bias, [before.filters], [after.filters], new Float64Array(after.filters));
  }
}

/** Numbers of an input: values, or a digit that fits its size. */
function given(input, settings) {
  if (!input) return null;
  if (input.values) return input.values;
  if (input.digit !== undefined) return digitInput(input.digit, settings);
  return null;
}

/** A digit of the library as an input of any size: from its middle, each channel alike. */
export function digitInput(index, settings) {
  const pixels = DIGITS[index % DIGITS.length].pixels;
  const shape = inputShape(settings);
  const values = new Float64Array(product(shape));
  for (let flat = 0; flat < values.length; flat++) {
    const at = unravel(flat, shape);
    const [i, j] = shape.length === 3 ? at : [Math.floor(shape[0] / 2), at[0]];
    const [height, width] = shape.length === 3 ? shape : [28, shape[0]];
    const row = shape.length === 3 ? Math.floor(((i + 0.5) * 28) / height) : 14;
    const column = Math.floor(((j + 0.5) * 28) / width);
    values[flat] = Math.round((pixels[row * 28 + column] / 255) * 100) / 100;
  }
  return values;
}

function filled(length, values, make) {
  if (values && values.length === length) return Float64Array.from(values);
  return make(length);
}

/** Small whole numbers that differ from place to place: sums stay exact and can be checked by head. */
function gradient(length, settings) {
  const shape = inputShape(settings);
  return Float64Array.from({ length }, (_, flat) => {
    const at = unravel(flat, shape);
    return (at.reduce((sum, i, axis) => sum + i * (axis + 1), 0) * 3 + 1) % 10;
  });
}

/** Filters that show something: edges of several directions, then a mean, then whole numbers. */
function someFilters(length, settings) {
  const shape = filtersShape(settings);
  const kernel = settings.kernel;
  return Float64Array.from({ length }, (_, flat) => {
    const [f, ...rest] = unravel(flat, shape);
    rest.pop();
    const from = rest.map((t, axis) => Math.sign(t - (kernel[axis] - 1) / 2));
    const kinds = [from.at(-1), from[0], from.reduce((a, b) => a * b, 1), 1, rest.every((t, a) => t === Math.floor(kernel[a] / 2)) ? 1 : 0];
    const value = kinds[f % kinds.length];
    return f < kinds.length ? value : value * (((flat * 7) % 5) - 2);
  });
}

/** Copy what two shapes have in common. */
function cropped(values, before, after, fresh) {
  if (before.length !== after.length) return fresh;
  const out = fresh;
  for (let flat = 0; flat < out.length; flat++) {
    const at = unravel(flat, after);
    if (at.every((i, axis) => i < before[axis])) {
      out[flat] = values[at.reduce((sum, i, axis) => sum * before[axis] + i, 0)];
    }
  }
  return out;
}

function clamp(value, count) {
  return Math.min(Math.max(Math.trunc(value), 0), count - 1);
}

/** A number as it is shown: whole numbers as they are, others with a few digits, a true minus. */
export function short(value, digits = 4) {
  if (Object.is(value, -0)) value = 0;
  const text = Number.isInteger(value) && Math.abs(value) < 1e6 ? String(value) : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−");
}

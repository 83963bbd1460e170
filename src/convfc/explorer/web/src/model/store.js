// The one store of the page: settings, numbers, selection and view. Views read it and call it; nothing
// else holds state. What follows from it (map, M, K, Y) is computed when it is asked for, and kept.

import { complete, filtersShape, inputShape, problems, product } from "./geometry.js";
import { indexMap } from "./indexmap.js";
import {
  columnsOf, filterMatrix, output, outputAt, outputPlane, outputRow, patchMatrix, readCounts, unrolledRow,
} from "./numbers.js";
import { cropped, digitInput, filled, givenInput, gradient, someFilters } from "./start.js";
import { describe } from "./words.js";

export { short } from "./words.js";

export const VERSION = 1;
export const TABS = ["arithmetic", "map", "matrix", "code"];

/** Entries above which M is not held whole: its cells are then worked out as they are drawn. */
export const HELD = 1_000_000;

/** Products above which Y is not computed whole, but by the rows and planes that are looked at. */
const PATIENCE = 20_000_000;

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
    this.hover = null;
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
      input: { values: Array.from(this.input), ...(this.range && { range: this.range }) },
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

  /** Y, (L, f); null where it would take too long, see `value`, `outputRow` and `plane`. */
  get Y() {
    const { map, settings } = this;
    const work = map.rows * map.taps * settings.filters;
    return this._once("Y", () => (work > PATIENCE ? null : output(map, this.input, this.filters, this._bias())));
  }

  /** How many entries of M read each element of the input. */
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
    return this.Y ? this.Y[p * this.settings.filters + f] : this.outputRow(p)[f];
  }

  /** All outputs at position p: row p of Y; if Y is not held, only those that are asked for. */
  outputRow(p, only = null) {
    const f = this.settings.filters;
    if (this.Y) return this.Y.subarray(p * f, (p + 1) * f);
    if (only && only.length < f) return outputRow(this.map, this.input, this.filters, this._bias(), p, only);
    return this._once(`row ${p}`, () => outputRow(this.map, this.input, this.filters, this._bias(), p));
  }

  /** The output of one filter at every position: a column of Y, a plane of the output. */
  plane(f) {
    return this._once(`plane ${f}`, () => {
      if (!this.Y) return outputPlane(this.map, this.input, this.filters, this._bias(), f);
      return Float64Array.from({ length: this.map.rows }, (_, p) => this.Y[p * this.settings.filters + f]);
    });
  }

  /** The end of the scale of colours of "input", "filters" or "output". */
  largest(kind) {
    return this._once(`largest ${kind}`, () => {
      if (kind === "input" && this.range) return Math.max(...this.range.map(Math.abs));
      const values = kind === "output" ? (this.Y ?? this.plane(0)) : this[kind];
      const most = values.reduce((so, value) => Math.max(so, Math.abs(value)), 0) || 1;
      // Many weights are as large as the largest: they stay readable if they end short of the darkest.
      return kind === "filters" ? 1.5 * most : most;
    });
  }

  /** The selected output, or another one, term by term. */
  arithmetic(p = this.shown.p, f = this.shown.f) {
    return outputAt(this.map, this.input, this.filters, this._bias(), p, f);
  }

  /** The selected row of the one big matrix: element -> weight. */
  bigRow(p = this.shown.p, f = this.shown.f) {
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
      this.hover = null;
      this._forget();
      this._clampSelection();
    }
    this._tell("settings");
  }

  /** Select: an output position p, a filter f, a column q, an input element; the rest follows. */
  select(patch) {
    const next = this._completed(this.selection, patch);
    this.hover = null;
    if (same(next, this.selection)) return;
    this.selection = next;
    this._tell("selection");
  }

  /** Look at something without selecting it, as a pointer does; null ends it. */
  preview(patch) {
    const next = patch && this._completed(this.selection, patch);
    if (next === this.hover || (next && this.hover && same(next, this.hover))) return;
    this.hover = next;
    this._tell("hover");
  }

  /** What views light up: what the pointer looks at, else the selection. */
  get shown() {
    return this.hover ?? this.selection;
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
    if (kind === "input") this.digit = null;
    this._numbersChanged();
    return true;
  }

  /** Change many numbers of the input at once, as a drawing does. */
  draw(values, digit = null) {
    this.input.set(values);
    this.digit = digit;
    this.pictured = true;
    this.range = null;
    this._numbersChanged();
  }

  /** Take a digit of the library as the input. */
  chooseDigit(index) {
    this.draw(digitInput(index, this.settings), index);
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

  /** What is selected, as a sentence. */
  describe() {
    return describe(this);
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

  /** Numbers changed: what follows from them goes, what follows from the settings alone stays. */
  _numbersChanged() {
    const { map, counts } = this._kept;
    this._kept = { ...(map && { map }), ...(counts && { counts }) };
    this._tell("numbers");
  }

  _tell(kind) {
    for (const listener of this.listeners) listener(kind);
  }

  /** A selection with a change, and what follows: a column or an element name each other. */
  _completed(selection, { p, f, q, element }) {
    const { map, settings } = this;
    const next = { ...selection };
    if (p !== undefined) next.p = clamp(p, map.rows);
    if (f !== undefined) next.f = clamp(f, settings.filters);
    if (q !== undefined && q !== null) {
      next.q = clamp(q, map.columns);
    } else if (element !== undefined && element !== null) {
      next.element = clamp(element, product(map.inputShape));
      const column = map.row(next.p).indexOf(next.element);
      next.q = column < 0 ? null : column;
    } else if (q === null || element === null) {
      next.q = next.element = null;
    } else if (next.q === null) {
      next.element = null; // it was an element outside the window that has now moved
    } else next.q = this._columnFor(next.q, next.f);
    if (next.q !== null) {
      this._followGroup(next);
      const from = map.element(next.p, next.q);
      next.element = from < 0 ? null : from;
    }
    return next;
  }

  /** A column of another group than the filter's: the first filter that reads it. */
  _followGroup(next) {
    const { first, count } = columnsOf(this.map, next.f);
    if (next.q >= first && next.q < first + count) return;
    next.f = this.map.tap(next.q).group * (this.settings.filters / this.settings.groups);
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
    const values = fits ? givenInput(state.input, settings) : null;
    this.digit = Number.isInteger(state.input?.digit) && fits ? state.input.digit : null;
    this.range = state.input?.range ?? null;
    this.pictured = Boolean(values);
    this.input = filled(product(inputShape(settings)), values, () => gradient(settings));
    this.filters = filled(product(filtersShape(settings)), fits ? state.filters : null, () => someFilters(settings));
    this.bias = filled(settings.filters, fits ? state.bias : null, (n) => new Float64Array(n));
  }

  /** Keep what fits of the numbers when sizes change: pixels stay where they are, filters too. */
  _resize(before) {
    const after = this.settings;
    const length = product(inputShape(after));
    if (this.digit !== null) this.input = digitInput(this.digit, after);
    else {
      const around = this.pictured ? new Float64Array(length) : gradient(after);
      this.input = cropped(this.input, inputShape(before), inputShape(after), around);
    }
    this.filters = cropped(this.filters, filtersShape(before), filtersShape(after), someFilters(after));
    this.bias = cropped(this.bias, [before.filters], [after.filters], new Float64Array(after.filters));
  }
}

function same(a, b) {
  return ["p", "f", "q", "element"].every((key) => a[key] === b[key]);
}

function clamp(value, count) {
  return Math.min(Math.max(Math.trunc(value) || 0, 0), count - 1);
}

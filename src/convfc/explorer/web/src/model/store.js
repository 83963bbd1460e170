// The one store of the page: settings, numbers, selection and view. Views read it and call it; nothing
// else holds state. What follows from it (map, M, K, Y) is computed when it is asked for, and kept.

import { complete, problems, product } from "./geometry.js";
import { indexMap, ravel } from "./indexmap.js";
import { continued, edited, kept, largest, numbersFor } from "./kept.js";
import {
  columnsOf, filterGradient, filterMatrix, groupOf, inputGradient, inputGradientOfOnes, output, outputAt, outputPlane,
  outputRow, patchMatrix, turnedFilters, unrolledBins, unrolledRow,
} from "./numbers.js";
import { pictureInput } from "./start.js";
import { LANES, Trace, compared } from "./trace.js";
import { readPlan } from "./training.js";
import { changes, describe } from "./words.js";

export { short } from "./words.js";

export const VERSION = 1;
export const TABS = ["arithmetic", "algorithm", "matrix", "backward", "train", "code"];

/** What a gradient dY of the output is, but for what is changed in it: 1 at the chosen output, 1 everywhere, or 0. */
export const GRADIENTS = ["one", "ones", "zeros"];

/** Everything is written: there is no film. */
const WHOLE = { M: Infinity, K: Infinity, Y: Infinity, output: Infinity };

/** Entries above which M is not held whole: its cells are then worked out as they are drawn. */
export const HELD = 1_000_000;

/** Products that one picture may take; of what would take more, some are drawn, or none. */
const PATIENCE = 20_000_000;

/** The same of the output of one filter, which is seen in every view. */
const PATIENCE_OF_A_PLANE = 30_000_000;

/** Numbers of planes that are kept. */
const PLANES = 4_000_000;

/** Changes that can be undone, and milliseconds within which changes of one setting are one change. */
const UNDONE = 100;
const TOGETHER = 800;

const KINDS = ["input", "filters", "bias"];

/** The way that the film of Algorithm 1 shows, and the step at which it stands: null before it has begun. */
const FILM = { lane: "im2col", step: null };

export class Store {
  constructor(state = {}) {
    this.listeners = new Set();
    this.training = null; // what the tab “Train” has trained, as the text of a plan
    this.past = [];
    this.future = [];
    this.load(state);
  }

  // --- what there is -------------------------------------------------------------------------

  /**
   * Take a state {settings, input, filters, bias, selection, view, title, source, preset, dY, given, mark};
   * what is missing is made. `given` is what settings and numbers were before they were changed on a page,
   * `mark` what an address calls the layer that they are of; `covered`, which outputs are not shown yet.
   */
  load(state) {
    if (state.view?.story || this.view?.story) [this.past, this.future] = [[], []]; // none leads into a picture of the story
    else this._remember();
    const origin = state.given ?? state;
    const start = complete(origin.settings ?? {});
    const sound = !problems(start).length;
    const settings = sound ? start : complete({});
    this.given = {
      title: state.title ?? "",
      source: state.source ?? "",
      preset: state.preset ?? null,
      mark: state.mark ?? null,
      settings,
      kept: eachKind((kind) => kept(kind, sound ? origin[kind] : null, settings)),
    };
    this.wanted = complete(state.settings ?? settings);
    this.problems = problems(this.wanted);
    this.settings = this.problems.length ? settings : this.wanted;
    this.kept = state.given
      ? eachKind((kind) => continued(kind, this.given.kept[kind], state[kind], this.settings))
      : this.given.kept;
    // Another layer leaves what is trained as it is.
    if (state.training) this.training = readPlan(state.training) && state.training;
    this.hover = null;
    this.view = { tab: TABS[0], feeds: false, ...FILM, ...state.view };
    if (!TABS.includes(this.view.tab)) this.view.tab = TABS[0];
    if (!(this.view.lane in LANES)) Object.assign(this.view, FILM);
    this.covered = new Set(state.covered);
    this._forget();
    this.dY = { start: GRADIENTS[0], edits: new Map(), ...this._gradient(state.dY) };
    this.selection = { p: 0, f: 0, q: null, element: null, of: null };
    Object.assign(this.selection, this._ours(state.selection ?? {}));
    this._clampSelection();
    if (this.moment !== null && !state.selection)
      this.selection = this._completed(this.selection, this.trace.at(this.moment).select);
    this._tell("load");
  }

  /** The state as plain JSON, for the address, for Python and to be loaded again. */
  toJSON() {
    const { title, source, preset } = this.given;
    return {
      version: VERSION,
      title,
      source,
      preset,
      ...this._written(this.settings, this.kept),
      ...(this.changed && { given: this._written(this.given.settings, this.given.kept) }),
      ...(this.dY.start !== GRADIENTS[0] || this.dY.edits.size
        ? { dY: { start: this.dY.start, edits: [...this.dY.edits] } }
        : {}),
      ...(this.training && { training: this.training }),
      selection: this.chosen,
      view: { ...this.view },
    };
  }

  get title() {
    return this.given.title;
  }

  get source() {
    return this.given.source;
  }

  get preset() {
    return this.given.preset;
  }

  /** What on the page is not what was given, in words; empty if all of it is. */
  get changes() {
    return this._once("changes", () => changes(this));
  }

  get changed() {
    return this.changes.length > 0;
  }

  /** The selection as Python and addresses have it: its column is one of convfc's M. */
  get chosen() {
    const { p, f, q, element } = this._ours(this.selection);
    return { p, f, q, element };
  }

  get input() {
    return this._once("input", () => numbersFor("input", this.kept.input, this.settings));
  }

  /** In convfc's order. */
  get filters() {
    return this._once("filters", () => numbersFor("filters", this.kept.filters, this.settings));
  }

  get bias() {
    return this._once("bias", () => numbersFor("bias", this.kept.bias, this.settings));
  }

  /** The filters in the order of the page's windows. */
  get weights() {
    return this._once("weights", () => turnedFilters(this.map, this.filters));
  }

  /** The digit of the library that is the input, or null. */
  get digit() {
    const { source, edits } = this.kept.input;
    return edits.size ? null : (source?.digit ?? null);
  }

  /** The least and the greatest number that the input's picture can have, if it is known. */
  get range() {
    return this.kept.input.source?.range ?? null;
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
    return this._once("K", () => filterMatrix(this.settings, this.weights));
  }

  /** Y, (L, f); null where it would take too long, see `value`, `outputRow` and `plane`. */
  get Y() {
    const { map, settings } = this;
    return this._once("Y", () => (map.work * settings.filters > PATIENCE ? null : output(...this._layer())));
  }

  /** How many outputs one picture may show where they are worked out as they are drawn. */
  get affordable() {
    const { map } = this;
    return Math.max(1, Math.floor((PATIENCE * map.rows) / Math.max(1, map.work + map.rows * map.spatial)));
  }

  /** The number at (p, q) of M, whether M is held or not. */
  entry(p, q) {
    if (this.M) return this.M[p * this.map.columns + q];
    const from = this.map.element(p, q);
    return from < 0 ? 0 : this.input[from];
  }

  /** The numbers of row p of M in some columns. */
  entries(p, columns) {
    return Float64Array.from(this.map.row(p, columns), (from) => (from < 0 ? 0 : this.input[from]));
  }

  /** The output of filter f at position p; NaN while it is covered. */
  value(p, f) {
    if (this.covered.has(p)) return NaN;
    return this.Y ? this.Y[p * this.settings.filters + f] : this.outputRow(p, [f])[0];
  }

  /** The outputs of some filters at position p. */
  outputRow(p, filters) {
    return outputRow(...this._layer(), p, filters);
  }

  /** The output of one filter at every position, a plane of the output, NaN where it is covered; null where it would take too long. */
  plane(f) {
    const { rows, work } = this.map;
    if (!this.Y && work > PATIENCE_OF_A_PLANE) return null;
    const planes = this._once("planes", () => new Map());
    if (!planes.has(f)) {
      if (planes.size * rows > PLANES) planes.clear();
      const own = (_, p) => this.Y[p * this.settings.filters + f];
      planes.set(f, this.Y ? Float64Array.from({ length: rows }, own) : outputPlane(...this._layer(), f));
    }
    const plane = planes.get(f);
    return this.covered.size ? plane.map((value, p) => (this.covered.has(p) ? NaN : value)) : plane;
  }

  /** The end of the scale of colours of "input", "filters" or "output". */
  largest(kind) {
    return this._once(`largest ${kind}`, () => {
      if (kind === "input" && this.range) return Math.max(...this.range.map(Math.abs));
      const most = largest(kind === "output" ? (this.Y ?? this.plane(0) ?? this._some()) : this[kind]);
      // Many weights are as large as the largest: they stay readable if they end short of the darkest.
      return kind === "filters" ? 1.5 * most : most;
    });
  }

  /** The selected output, or another one, term by term: the first `most` of them. */
  arithmetic(p = this.shown.p, f = this.shown.f, most = Infinity) {
    const found = outputAt(...this._layer(), p, f, most);
    return this.covered.has(p) ? { ...found, sum: NaN } : found;
  }

  /** The selected row of the one big matrix: element -> weight. */
  bigRow(p = this.shown.p, f = this.shown.f) {
    return unrolledRow(this.map, this.weights, p, f);
  }

  /** One entry of the one big matrix: what filter f at position p multiplies an element with. */
  bigEntry(p, f, element) {
    const { map, settings } = this;
    const { tap, at } = map.reads(p);
    const d = (element % settings.channels) - groupOf(map, f) * map.perGroup;
    if (d < 0 || d >= map.perGroup) return 0;
    let sum = 0;
    for (let n = 0; n < at.length; n++) {
      if (at[n] === Math.floor(element / settings.channels))
        sum += this.weights[f * map.taps + tap[n] * map.perGroup + d];
    }
    return sum;
  }

  /** A row of the one big matrix in so many equal parts; NaN where it has no entry. */
  bigBins(p, f, bins) {
    return unrolledBins(this.map, this.weights, p, f, bins);
  }

  // --- the film of Algorithm 1 -----------------------------------------------------------------

  /** The way that the film takes, step by step. */
  get trace() {
    return this._once(`trace ${this.view.lane}`, () => new Trace(this.map, this.view.lane));
  }

  /** The step at which the film stands, while it is seen; null if it is not. */
  get moment() {
    const { tab, step } = this.view;
    return tab === "algorithm" && Number.isInteger(step) ? clamp(step, this.trace.steps + 1) : null;
  }

  /** The results of all ways, compared. */
  get compared() {
    return this._once("compared", () => compared(this));
  }

  /** How much of M, K, Y and the output is written. */
  get written() {
    const { view, map } = this;
    if (this.filled?.view !== view || this.filled.map !== map)
      this.filled = { view, map, ...(this.moment === null ? WHOLE : this.trace.written(this.moment)) };
    return this.filled;
  }

  /** Go to a step of the film, whose last step is selected; as a whole, if only rows or parts are gone by. */
  goTo(step, wholes = false) {
    this.view = { ...this.view, step: clamp(step, this.trace.steps + 1) };
    const { select } = this.trace.at(this.view.step);
    this.hover = null;
    this.selection = this._completed(this.selection, wholes ? { p: select.p, f: select.f, q: null } : select);
    this._tell("film");
  }

  // --- the backward pass -----------------------------------------------------------------------

  /** dL/dY of filter f at position p. */
  gradient(p, f) {
    return this.dY.edits.get(this._place(p, f)) ?? this._started(p, f);
  }

  /** The largest modulus of dY. */
  get largestGradient() {
    return largest([this.dY.start === "zeros" ? 0 : 1, ...this.dY.edits.values()]);
  }

  /** The entries [p, filter, dY] that are not 0, ascending; of one filter, if it is named. */
  *gradients(filter = null) {
    const { start, edits } = this.dY;
    if (start === "ones") {
      const all = filter === null ? Array.from({ length: this.settings.filters }, (_, f) => f) : [filter];
      for (let p = 0; p < this.map.rows; p++) {
        for (const f of all) {
          const value = edits.size ? this.gradient(p, f) : 1;
          if (value !== 0) yield [p, f, value];
        }
      }
      return;
    }
    const places = [...edits.keys()].map((place) => this._output(place)).filter(Boolean);
    const { p: chosen, f: of } = this.selection;
    if (start === "one" && !edits.has(this._place(chosen, of))) places.push([chosen, of]);
    places.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    for (const [p, f] of places) {
      const value = this.gradient(p, f);
      if (value !== 0 && (filter === null || f === filter)) yield [p, f, value];
    }
  }

  /** Column f of dK = Mᵀ dY; null where it would take too long. */
  dK(f) {
    return this._ofGradient(`dK ${f}`, () => {
      if (this._heavy(1)) return null;
      return filterGradient(this.map, this.input, this.gradients(f), f);
    });
  }

  /** dX = col2im(dY Kᵀ); null where it would take too long. */
  get dX() {
    return this._ofGradient("dX", () => {
      if (this._heavy(this.settings.groups)) return null;
      if (this.dY.start !== "ones") return inputGradient(this.map, this.weights, this.gradients());
      const others = [...this.dY.edits.keys()].map((place) => this._output(place)).filter(Boolean);
      const rest = inputGradient(this.map, this.weights, others.map(([p, f]) => [p, f, this.gradient(p, f) - 1]));
      return inputGradientOfOnes(this.map, this.weights).map((value, at) => value + rest[at]);
    });
  }

  /** What dY starts as: one of GRADIENTS. What was changed by hand is dropped. */
  startGradient(start) {
    this._remember();
    this._takeGradient({ start, edits: new Map() });
  }

  // --- changes ---------------------------------------------------------------------------------

  /** Change settings. Broken ones are kept in `wanted` with their problems; the last good ones stay. */
  set(patch) {
    this.wanted = complete({ ...this.wanted, ...patch });
    this.problems = problems(this.wanted);
    if (!this.problems.length && JSON.stringify(this.wanted) !== JSON.stringify(this.settings)) {
      this._remember(Object.keys(patch).join());
      this._take(this.wanted);
    }
    this._tell("settings");
  }

  /** Select as Python does, with a column of convfc's M. */
  choose(selection) {
    this.select("q" in selection ? this._ours(selection) : selection);
  }

  /**
   * Select: an output position p, a filter f, a column q, an input element; the rest follows. `of` is "dK"
   * or "dX" where q or element were chosen for their gradient.
   */
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

  /** Move the output position by steps along an axis (the last one by default), as far as the output goes. */
  step(by, axis = this.outputSize.length - 1) {
    const position = this.map.position(this.selection.p);
    position[axis] = clamp(position[axis] + by, this.outputSize[axis]);
    this.select({ p: ravel(position, this.outputSize) });
  }

  /** Change one number: kind is "input", "filters", "bias" or "dY". */
  edit(kind, index, value) {
    if (!Number.isFinite(value) || value === this.number(kind, index)) return false;
    if (kind === "bias" && !this.settings.bias) return false;
    this._remember();
    if (kind === "dY") {
      const { filters } = this.settings;
      const [p, f] = [Math.floor(index / filters), index % filters];
      const edits = new Map(this.dY.edits);
      // A 1 that follows the choice would run away from under what is typed: it stays where it is.
      const start = this.dY.start === "one" ? "zeros" : this.dY.start;
      if (this.dY.start === "one") edits.set(this._place(this.selection.p, this.selection.f), 1);
      edits.set(this._place(p, f), value);
      if (value === (start === "ones" ? 1 : 0)) edits.delete(this._place(p, f));
      this._takeGradient({ start, edits });
      return true;
    }
    this.kept = { ...this.kept, [kind]: edited(kind, this.kept[kind], this.settings, index, value) };
    this._numbersChanged();
    return true;
  }

  /** One number of "input", "filters", "bias" or "dY". */
  number(kind, index) {
    const { filters } = this.settings;
    return kind === "dY" ? this.gradient(Math.floor(index / filters), index % filters) : this[kind][index];
  }

  /** Take a picture as the input: its numbers, what it is in words, and the settings that it comes with. */
  draw(values, said, { range = null, settings = {} } = {}) {
    this._remember();
    this._take(complete({ ...this.settings, ...settings }));
    const source = { shape: this.map.inputShape, values: Float64Array.from(values), range, said };
    this._takeInput({ source, edits: new Map() });
  }

  /** Take a drawing of 28 x 28 grey values, or a digit of the library, as the input. */
  drawPixels(pixels, said) {
    this.draw(pictureInput(pixels, this.settings), said);
  }

  chooseDigit(digit) {
    this._remember();
    this._takeInput({ source: { digit, said: "a digit" }, edits: new Map() });
  }

  /** Everything as it was given: the layer, the preset, the state of an address. */
  restore() {
    this._remember();
    this.return({ ...this.snapshot(), settings: this.given.settings, kept: this.given.kept });
  }

  get canUndo() {
    return this.past.length + this.problems.length > 0;
  }

  get canRedo() {
    return this.future.length > 0;
  }

  undo() {
    if (!this.problems.length) return this._travel(this.past, this.future);
    // What is wrong has not been taken: it alone goes.
    this._take(this.settings);
    this._tell("settings");
  }

  redo() {
    this._travel(this.future, this.past);
  }

  /** Say what has been trained, as the text of a plan. */
  train(training) {
    this.training = training;
    this._tell("training");
  }

  /** Show another tab, another channel, what a pixel feeds. */
  show(view) {
    this.view = { ...this.view, ...view };
    this._tell(Object.keys(view).join() === "tab" ? "tab" : "view");
  }

  /** Call a function with the kind of every change; returns how to stop. */
  subscribe(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Show outputs that were covered, for good. */
  reveal(positions) {
    for (const p of positions) this.covered.delete(p);
    [this.past, this.future] = [[], []];
    this._numbersChanged();
  }

  /** What is selected, as a sentence. */
  describe() {
    return describe(this);
  }

  // --- inside ---------------------------------------------------------------------------------------

  _layer() {
    return [this.map, this.input, this.weights, this.settings.bias ? this.bias : null];
  }

  /** Outputs of the first filter here and there, for a scale of colours. */
  _some() {
    const count = Math.min(64, this.affordable);
    const at = (i) => Math.floor(((i + 0.5) * this.map.rows) / count);
    return Float64Array.from({ length: count }, (_, i) => this.value(at(i), 0));
  }

  _once(name, make) {
    if (!(name in this._found)) this._found[name] = make();
    return this._found[name];
  }

  _forget() {
    this._found = {};
  }

  /** Numbers changed: what follows from them goes, what follows from the settings alone stays. */
  _numbersChanged() {
    const { map } = this._found;
    this._found = map ? { map } : {};
    this._tell("numbers");
  }

  _tell(kind) {
    for (const listener of this.listeners) listener(kind);
  }

  /** Settings and numbers as JSON. */
  _written(settings, kept) {
    const [input, filters, bias] = KINDS.map((kind) => Array.from(numbersFor(kind, kept[kind], settings)));
    const range = kept.input.source?.range;
    return {
      settings: structuredClone(settings),
      input: { values: input, ...(range && { range }) },
      filters,
      bias: settings.bias ? bias : null,
    };
  }

  // --- what can be undone

  /** Everything that can be undone, to be handed to `return`. */
  snapshot() {
    const { given, settings, kept, dY, selection, covered, view } = this;
    return { given, settings, kept, dY, selection: { ...selection }, covered, view };
  }

  /** Keep what is there, before a change; changes of one setting right after each other are one. */
  _remember(what = null) {
    if (!this.settings) return; // the first state follows nothing
    const now = Date.now();
    const goesOn = what !== null && what === this.last?.what && now - this.last.at < TOGETHER;
    this.last = { what, at: now };
    this.future = [];
    if (!goesOn) this.past = [...this.past, this.snapshot()].slice(-UNDONE);
  }

  _travel(from, to) {
    if (!from.length) return;
    to.push(this.snapshot());
    this.last = null;
    this.return(from.pop());
  }

  /** Go back to a snapshot; out of the story, or into it, with its view. */
  return({ given, settings, kept, dY, selection, covered, view }) {
    if (view.story !== this.view.story) Object.assign(this, { view, past: [], future: [] });
    Object.assign(this, { given, kept, dY, selection, covered });
    this._take(settings);
    this._tell("load");
  }

  /** Settings that are a convolution become the present ones. */
  _take(settings) {
    if (settings !== this.settings) this.view = { ...this.view, step: null };
    this.settings = this.wanted = settings;
    this.problems = [];
    this.hover = null;
    this._forget();
    this._clampSelection();
  }

  _takeInput(input) {
    this.kept = { ...this.kept, input };
    this._forget();
    this._clampSelection();
    this._tell("settings"); // sizes may have changed with it
  }

  // --- dY

  /** Another dY: what follows from it goes, all else stays. */
  _takeGradient(dY) {
    this.dY = dY;
    this._found = Object.fromEntries(Object.entries(this._found).filter(([name]) => !/^(dK|dX|selected)/.test(name)));
    this._tell("gradient");
  }

  _gradient(state) {
    if (!GRADIENTS.includes(state?.start) || !Array.isArray(state.edits)) return {};
    const sound = ([place, value]) => /^\d+(,\d+)*$/.test(place) && Number.isFinite(value);
    return { start: state.start, edits: new Map(state.edits.filter(sound)) };
  }

  _started(p, f) {
    const { start } = this.dY;
    const chosen = start === "one" && p === this.selection.p && f === this.selection.f;
    return chosen || start === "ones" ? 1 : 0;
  }

  /** A place of dY that stays what it is when sizes change, and the [p, f] of one; null if it is none now. */
  _place(p, f) {
    return [...this.map.position(p), f].join();
  }

  _output(place) {
    const index = place.split(",").map(Number);
    const shape = [...this.outputSize, this.settings.filters];
    if (index.length !== shape.length || index.some((i, axis) => i >= shape[axis])) return null;
    const f = index.pop();
    return [ravel(index, this.outputSize), f];
  }

  /** Whether a pass over all of dY takes too long. */
  _heavy(groups) {
    return this.dY.start === "ones" && this.map.work * groups > PATIENCE_OF_A_PLANE;
  }

  /** What follows from dY: kept, and if dY is that of the selected output, while that is selected. */
  _ofGradient(name, make) {
    if (this.dY.start !== "one") return this._once(name, make);
    const { p, f } = this.selection;
    const { selected } = this._found;
    if (selected?.p !== p || selected?.f !== f) this._found.selected = { p, f };
    return (this._found.selected[name] ??= make());
  }

  // --- the selection

  /** A selection of convfc's with its column among the page's, or back. */
  _ours(selection) {
    const q = selection.q ?? null;
    const inside = Number.isInteger(q) && q >= 0 && q < this.map.columns;
    return { ...selection, q: inside ? this.map.turn(q) : q };
  }

  /** A selection with a change, and what follows: a column or an element name each other. */
  _completed(selection, { p, f, q, element, of = null }) {
    const { map, settings } = this;
    const next = { ...selection };
    if (q !== undefined || element !== undefined) next.of = of;
    if (p !== undefined) next.p = clamp(p, map.rows);
    if (f !== undefined) next.f = clamp(f, settings.filters);
    if (q !== undefined && q !== null) {
      next.q = clamp(q, map.columns);
    } else if (element !== undefined && element !== null) {
      next.element = clamp(element, product(map.inputShape));
      const column = map.columnReading(next.p, next.element);
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
}

function eachKind(make) {
  return Object.fromEntries(KINDS.map((kind) => [kind, make(kind)]));
}

function same(a, b) {
  return ["p", "f", "q", "element", "of"].every((key) => a[key] === b[key]);
}

function clamp(value, count) {
  return Math.min(Math.max(Math.trunc(value) || 0, 0), count - 1);
}

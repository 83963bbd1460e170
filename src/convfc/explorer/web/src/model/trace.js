// Three ways to compute the same convolution, step by step: nested loops, Algorithm 1, the one big
// matrix. What happens at a step follows from its number alone, so a film of half a million steps
// goes to any of them at once, forwards or backwards.

import { product } from "./geometry.js";
import { columnsOf, outputAt, outputRow, unrolledRow } from "./numbers.js";

/** The ways, and their titles. */
export const LANES = { loops: "Nested loops", im2col: "im2col, one product", matrix: "One big matrix" };

/** What a film goes on by: one number, all of an output or a row, a loop with all that is in it. */
export const UNITS = ["number", "row", "part"];

/** Products for which results of the three ways are compared. */
const COMPARED = 200_000;

/** One way through one convolution: `steps` of them, between which the film stands at 0 to `steps`. */
export class Trace {
  constructor(map, lane) {
    this.map = map;
    this.lane = lane;
    const { rows, columns, taps, settings } = map;
    const { filters } = settings;
    const outputs = rows * filters;
    this.inputs = product(map.inputShape);
    // What is made, part after part: in so many rows, of so many steps each.
    const parts = {
      loops: [["sum", outputs, taps]],
      im2col: [["M", rows, columns], ["K", filters, 1], ["Y", rows, filters], ["output", rows, 1]],
      matrix: [["T", outputs, this.inputs], ["output", rows, 1]],
    };
    this.steps = 0;
    this.parts = parts[lane].map(([what, count, per]) => {
      const start = this.steps;
      this.steps += count * per;
      return { what, start, sizes: [1, per, count * per] };
    });
    /** Numbers in the matrix between input and output. */
    this.memory = { loops: 0, im2col: rows * columns, matrix: outputs * this.inputs }[lane];
  }

  /** Where the film stands after its next step by a unit (0, 1, 2), or before the last one. */
  next(n, unit) {
    return this._moved(n, unit, (part) => n >= part.start, (count) => Math.floor(count) + 1);
  }

  before(n, unit) {
    return this._moved(n, unit, (part) => n > part.start, (count) => Math.ceil(count) - 1);
  }

  _moved(n, unit, within, to) {
    const part = this.parts.findLast(within);
    const size = part?.sizes[unit];
    return part ? Math.min(part.start + to((n - part.start) / size) * size, this.steps) : 0;
  }

  /** How much is written after n steps: entries of M and of Y, columns of K, outputs (p, f) in a row. */
  written(n) {
    const done = { M: 0, K: 0, Y: 0, output: 0 };
    for (const { what, start, sizes } of this.parts) done[what] = Math.min(Math.max(n - start, 0), sizes[2]);
    if (this.lane === "loops") done.output = Math.floor(n / this.map.taps);
    else done.output *= this.map.settings.filters;
    if (this.lane === "matrix") done.Y = Math.floor(done.T / this.inputs);
    return done;
  }

  /** What n steps take: multiplications, numbers that are read, and places that Eq. (8) looks up. */
  counts(n) {
    const { taps } = this.map;
    const { M, K, Y, T, sum } = this.written(n);
    if (this.lane === "im2col") return [Y * taps, M + K * taps + 2 * Y * taps, M];
    return sum === undefined ? [T, 2 * T, 0] : [sum, 2 * sum, sum];
  }

  /**
   * What the last of n steps did: {line, variables: [[name, number]], select}. `select` is what it worked on:
   * entry (p, q) of M, column f of K, entry (p, f) of Y, or of T with the input element that is read.
   */
  at(n) {
    const step = Math.min(Math.max(n, 1), this.steps) - 1;
    const { map } = this;
    const { filters } = map.settings;
    const { what, start, sizes } = this.parts.findLast((part) => step >= part.start);
    const [row, within] = [Math.floor((step - start) / sizes[1]), (step - start) % sizes[1]];
    const last = Number(within === sizes[1] - 1);
    const of = { p: Math.floor(row / filters), f: row % filters };
    const [line, select] = {
      sum: () => [5 + last, { ...of, q: columnsOf(map, of.f).first + within }],
      M: () => [14, { p: row, q: within }],
      K: () => [20, { f: row, q: null }],
      Y: () => [23, { p: row, f: within, q: null }],
      T: () => [5 + last, { ...of, element: within }],
      output: () => [this.lane === "matrix" ? 7 : 24, { p: row, q: null }],
    }[what]();
    const lines = this.lines;
    const end = n === 0 ? lines[0] : n === this.steps && lines.at(-1);
    return { line: end ? end.number : line, variables: [...this._variables(select)], select };
  }

  *_variables({ p, f, q, element }) {
    const { map } = this;
    const { length } = map.axes;
    const named = (marks, values) => values.map((value, axis) => [marks[axis], value]);
    if (p !== undefined) {
      const position = map.position(p);
      yield ["p", p];
      yield* named(["i″", "j″"], position);
      if (this.lane === "im2col" && q !== null) yield* named(["ish", "isw"], position.map((i, axis) => i * map.axes[axis].step));
    }
    if (f !== undefined) yield ["f", f];
    if (element !== undefined) yield* [["r", p * map.settings.filters + f], ["c", element]];
    if (q === undefined || q === null) return;
    const { group, tap, channel } = map.tap(q);
    yield ["q", q];
    if (map.settings.groups > 1) yield ["g", group];
    yield* named(["i′", "j′"], tap);
    yield ["d′", channel];
    const names = length > 1 ? ["i", "j", "d"] : ["i", "d"];
    yield* named(names, map.coordinates(p, q) ?? names.map(() => null));
  }

  /** The lines of the way, {number, depth, text}; those of Algorithm 1 have the paper's numbers. */
  get lines() {
    const { axes, dilation, groups, bias } = this.map.settings;
    const two = axes > 1;
    const [out, shape, place] = two ? ["Hout · Wout", "Hout × Wout × f", "i″, j″"] : ["Hout", "Hout × f", "i″"];
    const [from, tap] = two ? ["i, j, d", "i′, j′, d′"] : ["i, d", "i′, d′"];
    const slices = this.map.axes.map((_, axis) => {
      const [from, k, d] = [["ish", "isw"][axis], ["kh", "kw"][axis], dilation[axis]];
      return d > 1 ? `${from} : ${from} + ${d} · ${k} : ${d}` : `${from} : ${from} + ${k}`;
    });
    const start = bias ? "bias(f)" : 0;
    const [i, j] = this.map.axes.map(({ step }) => step);
    const text = {
      loops: `1 for ${place} in the output:
2  for f in the filters:
3   y = ${start}
4   for ${tap} in the window:
5    y = y + B(${from}) · filter(f, ${tap})
6   output(${place}, f) = y
7 return the output`,
      im2col: `2 M = zeros(L, k)
3 K = zeros(k, f)
4 Step 1: ${two ? "Hout and Wout" : "Hout"} by Eq. (5) and (6)
5 Step 2: stretch B to M
7  for p in range(${out}):
10   i″ = ${two ? "⌊p / Wout⌋" : "p"}${two ? `
11   j″ = p mod Wout
12   isw = j″ · ${j}` : ""}
13   ish = i″ · ${i}
14   M(p, :) = B(${slices.join(", ")}, :).flatten()${groups > 1 ? ", by groups" : ""}
17 Step 3: stretch the filters to K
19  for f in range(filters):
20   K(:, f) = filter(f, :).flatten()
23 Step 4: Y = M K${bias ? " + bias" : ""}
24 Step 5: reshape Y to ${shape}
25 Step 6: return it`,
      matrix: `1 T = what each input weighs in each output
2 for r in range(${out} · f):
3  y = ${start}
4  for c in range(inputs):
5   y = y + T(r, c) · x(c)
6  Y(r) = y
7 reshape Y to ${shape}
8 return it`,
    }[this.lane];
    return text.split("\n").map((line) => {
      const [, number, space, rest] = /^(\d+) ( *)(.*)$/.exec(line);
      return { number: Number(number), depth: space.length, text: rest };
    });
  }
}

/**
 * The results of the three ways side by side, computed by three programs: {largest: their largest difference,
 * outputs: how many were compared}. Of a layer that is too large for it, evenly chosen outputs.
 */
export function compared({ map, input, weights, bias, settings }) {
  const offsets = settings.bias ? bias : null;
  const all = map.rows * settings.filters;
  const outputs = Math.min(all, Math.max(1, Math.floor(COMPARED / map.taps)));
  let largest = 0;
  for (let i = 0; i < outputs; i++) {
    const r = Math.floor(((i + 0.5) * all) / outputs);
    const [p, f] = [Math.floor(r / settings.filters), r % settings.filters];
    let y = 0;
    for (const [c, weight] of unrolledRow(map, weights, p, f)) y += weight * input[c];
    if (offsets) y += offsets[f];
    const [loops] = outputRow(map, input, weights, offsets, p, [f]);
    const { sum } = outputAt(map, input, weights, offsets, p, f);
    for (const other of [sum, y]) if (other !== loops) largest = Math.max(largest, Math.abs(other - loops));
  }
  return { largest, outputs };
}

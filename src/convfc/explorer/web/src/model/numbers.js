// Algorithm 1 with the numbers: M, K, Y = M K, one dot product in full, a row of the one big matrix,
// and the way back (col2im). All arrays are flat and row-major, in the layouts of convfc.

import { filtersShape, product } from "./geometry.js";

/** The patch matrix (L, groups k); zeros of the padding are 0. */
export function patchMatrix(map, input) {
  const M = new Float64Array(map.rows * map.columns);
  for (let p = 0; p < map.rows; p++) {
    const row = map.row(p);
    for (let q = 0; q < map.columns; q++) if (row[q] >= 0) M[p * map.columns + q] = input[row[q]];
  }
  return M;
}

/** The filter matrix (k, f): one column per filter. */
export function filterMatrix(settings, filters) {
  const f = settings.filters;
  const k = product(filtersShape(settings)) / f;
  const K = new Float64Array(k * f);
  for (let i = 0; i < f; i++) for (let t = 0; t < k; t++) K[t * f + i] = filters[i * k + t];
  return K;
}

/** The first column of M that a filter meets, and how many: the columns of its group. */
export function columnsOf(map, filter) {
  const group = Math.floor(filter / (map.settings.filters / map.settings.groups));
  return { group, first: group * map.taps, count: map.taps };
}

/** The output (L, f). */
export function output(map, input, filters, bias) {
  const { filters: f } = map.settings;
  const Y = new Float64Array(map.rows * f);
  for (let p = 0; p < map.rows; p++) Y.set(outputRow(map, input, filters, bias, p), p * f);
  return Y;
}

/** Row p of the output: one number per filter; only those of some filters, if they are given. */
export function outputRow(map, input, filters, bias, p, only = null) {
  const row = map.row(p);
  const y = new Float64Array(map.settings.filters);
  if (only) for (const i of only) y[i] = dot(map, row, input, filters, bias, i);
  else for (let i = 0; i < y.length; i++) y[i] = dot(map, row, input, filters, bias, i);
  return y;
}

/** Column `filter` of the output: one number per position. */
export function outputPlane(map, input, filters, bias, filter) {
  return Float64Array.from({ length: map.rows }, (_, p) => dot(map, map.row(p), input, filters, bias, filter));
}

function dot(map, row, input, filters, bias, filter) {
  const { first, count } = columnsOf(map, filter);
  let sum = 0;
  for (let t = 0; t < count; t++) {
    const from = row[first + t];
    if (from >= 0) sum += input[from] * filters[filter * count + t];
  }
  return bias ? sum + bias[filter] : sum;
}

/** One output, term by term: x and w, their products, and the sum. */
export function outputAt(map, input, filters, bias, p, filter) {
  const { first, count } = columnsOf(map, filter);
  const row = map.row(p);
  let sum = 0;
  const terms = Array.from({ length: count }, (_, t) => {
    const q = first + t;
    const element = row[q];
    const x = element < 0 ? 0 : input[element];
    const w = filters[filter * count + t];
    sum += x * w;
    return { q, tap: t, x, w, product: x * w, element };
  });
  const offset = bias ? bias[filter] : 0;
  return { terms, bias: offset, sum: sum + offset };
}

/** Row (p, filter) of the one big matrix T: element -> weight, ascending; weights of one element add. */
export function unrolledRow(map, filters, p, filter) {
  const { first, count } = columnsOf(map, filter);
  const row = map.row(p);
  const found = new Map();
  for (let t = 0; t < count; t++) {
    const element = row[first + t];
    if (element >= 0) found.set(element, (found.get(element) ?? 0) + filters[filter * count + t]);
  }
  return new Map([...found].sort((a, b) => a[0] - b[0]));
}

/** The adjoint: what an output gradient (L, f) gives to the input; col2im of dY K^T. */
export function backward(map, filters, dY) {
  const { filters: f } = map.settings;
  const dx = new Float64Array(product(map.inputShape));
  for (let p = 0; p < map.rows; p++) {
    const row = map.row(p);
    for (let i = 0; i < f; i++) {
      const { first, count } = columnsOf(map, i);
      for (let t = 0; t < count; t++) {
        const to = row[first + t];
        if (to >= 0) dx[to] += dY[p * f + i] * filters[i * count + t];
      }
    }
  }
  return dx;
}

/** How many times each element is read, over all patches: the backward pass of ones. */
export function readCounts(map) {
  const counts = new Int32Array(product(map.inputShape));
  for (let p = 0; p < map.rows; p++) for (const from of map.row(p)) if (from >= 0) counts[from]++;
  return counts;
}

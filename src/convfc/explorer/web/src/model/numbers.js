// Algorithm 1 with the numbers: M, K, Y = M K, one dot product in full, a row of the one big matrix,
// and the backward pass. All arrays are flat and row-major, in the layouts of convfc; weights are the
// filters as the page shows them, turned where convfc reads windows backwards.

import { filtersShape, product } from "./geometry.js";

/** Weights in the order of the page's windows, from filters in convfc's, or back. */
export function turnedFilters(map, filters) {
  if (!map.turned) return filters;
  const { taps: k, perGroup } = map;
  const turned = new Float64Array(filters.length);
  for (let t = 0; t < k; t += perGroup) {
    const from = map.turn(t);
    for (let start = 0; start < filters.length; start += k)
      for (let d = 0; d < perGroup; d++) turned[start + t + d] = filters[start + from + d];
  }
  return turned;
}

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
export function filterMatrix(settings, weights) {
  const f = settings.filters;
  const k = product(filtersShape(settings)) / f;
  const K = new Float64Array(k * f);
  for (let i = 0; i < f; i++) for (let t = 0; t < k; t++) K[t * f + i] = weights[i * k + t];
  return K;
}

/** The group of a filter. */
export function groupOf(map, filter) {
  return Math.floor(filter / (map.settings.filters / map.settings.groups));
}

/** The first column of M that a filter meets, and how many: the columns of its group. */
export function columnsOf(map, filter) {
  const group = groupOf(map, filter);
  return { group, first: group * map.taps, count: map.taps };
}

/** The output (L, f). */
export function output(map, input, weights, bias) {
  const { filters: f } = map.settings;
  const Y = new Float64Array(map.rows * f);
  for (let p = 0; p < map.rows; p++) {
    const reads = map.reads(p);
    for (let i = 0; i < f; i++) Y[p * f + i] = dot(map, reads, input, weights, bias, i);
  }
  return Y;
}

/** Row p of the output: one number for each of some filters. */
export function outputRow(map, input, weights, bias, p, filters) {
  const reads = map.reads(p);
  return Float64Array.from(filters, (i) => dot(map, reads, input, weights, bias, i));
}

/** Column `filter` of the output: one number per position. */
export function outputPlane(map, input, weights, bias, filter) {
  return Float64Array.from({ length: map.rows }, (_, p) => dot(map, map.reads(p), input, weights, bias, filter));
}

function dot(map, { count, tap, at }, input, weights, bias, filter) {
  const { perGroup } = map;
  const { channels } = map.settings;
  const offset = groupOf(map, filter) * perGroup;
  const start = filter * map.taps;
  let sum = 0;
  for (let n = 0; n < count; n++) {
    const x = at[n] * channels + offset;
    const w = start + tap[n] * perGroup;
    for (let d = 0; d < perGroup; d++) sum += input[x + d] * weights[w + d];
  }
  return bias ? sum + bias[filter] : sum;
}

/**
 * One output, term by term: x and w and their products, of whole channels as far as `most` goes (of one
 * channel, if it alone has more), each channel's subtotal; the rest as one number, and the sum.
 */
export function outputAt(map, input, weights, bias, p, filter, most = Infinity) {
  const { first, count } = columnsOf(map, filter);
  const { perGroup } = map;
  const channels = Math.min(perGroup, Math.max(1, Math.floor((most * perGroup) / count)));
  const length = Math.min(most, (count / perGroup) * channels);
  const written = Array.from({ length }, (_, n) => Math.floor(n / channels) * perGroup + (n % channels));
  const row = map.row(p, written.map((t) => first + t));
  const subtotals = new Float64Array(channels);
  let so = 0;
  const terms = Array.from(row, (element, at) => {
    const t = written[at];
    const x = element < 0 ? 0 : input[element];
    const w = weights[filter * count + t];
    so += x * w;
    subtotals[t % perGroup] += x * w;
    return { q: first + t, channel: t % perGroup, x, w, product: x * w, element };
  });
  const offset = bias ? bias[filter] : 0;
  const sum = written.length < count ? dot(map, map.reads(p), input, weights, bias, filter) : so + offset;
  return { terms, count, subtotals, rest: sum - offset - so, bias: offset, sum };
}

/** Row (p, filter) of the one big matrix T: element -> weight, ascending; weights of one element add. */
export function unrolledRow(map, weights, p, filter) {
  const found = new Map();
  eachRead(map, p, groupOf(map, filter), (element, t) => {
    found.set(element, (found.get(element) ?? 0) + weights[filter * map.taps + t]);
  });
  return new Map([...found].sort((a, b) => a[0] - b[0]));
}

/** Weights of a row of T that are looked at for a picture of it; of more, every nth channel's. */
const SEEN = 30_000;

/**
 * The same row in so many equal parts of the input: of each part the weight that is furthest from 0,
 * and NaN where T has no entry.
 */
export function unrolledBins(map, weights, p, filter, bins) {
  const length = product(map.inputShape);
  const found = new Float64Array(bins).fill(NaN);
  const { perGroup } = map;
  if (bins === length) {
    // An element that is read more than once has the sum of its weights.
    for (const [element, w] of unrolledRow(map, weights, p, filter)) found[element] = w;
    return found;
  }
  const { count, tap, at } = map.reads(p);
  const step = Math.max(1, Math.ceil((count * perGroup) / SEEN));
  const offset = groupOf(map, filter) * perGroup;
  for (let n = 0; n < count; n++) {
    for (let d = 0; d < perGroup; d += step) {
      const bin = Math.floor(((at[n] * map.settings.channels + offset + d) * bins) / length);
      const w = weights[filter * map.taps + tap[n] * perGroup + d];
      if (!(Math.abs(found[bin]) >= Math.abs(w))) found[bin] = w;
    }
  }
  return found;
}

/** Column `filter` of dK = Mᵀ dY, (k,), from its entries [p, filter, dY(p, filter)] of dY that are not 0. */
export function filterGradient(map, input, dY, filter) {
  const dK = new Float64Array(map.taps);
  for (const [p, , gradient] of dY) {
    eachRead(map, p, groupOf(map, filter), (element, t) => {
      dK[t] += gradient * input[element];
    });
  }
  return dK;
}

/** dX = col2im(dY Kᵀ), as flat as the input, from the entries [p, filter, dY(p, filter)] that are not 0. */
export function inputGradient(map, weights, dY) {
  const dX = new Float64Array(product(map.inputShape));
  for (const [p, filter, gradient] of dY) {
    eachRead(map, p, groupOf(map, filter), (element, t) => {
      dX[element] += gradient * weights[filter * map.taps + t];
    });
  }
  return dX;
}

/** The same where dY is 1 everywhere: filters of a group are added before they are moved. */
export function inputGradientOfOnes(map, weights) {
  const { groups, filters } = map.settings;
  const added = new Float64Array(groups * map.taps);
  for (let i = 0; i < filters; i++) {
    const to = groupOf(map, i) * map.taps;
    for (let t = 0; t < map.taps; t++) added[to + t] += weights[i * map.taps + t];
  }
  const dX = new Float64Array(product(map.inputShape));
  for (let p = 0; p < map.rows; p++) {
    for (let group = 0; group < groups; group++) {
      eachRead(map, p, group, (element, t) => {
        dX[element] += added[group * map.taps + t];
      });
    }
  }
  return dX;
}

/** Call with every element that a group reads in the window at p, and the tap 0 to k - 1 that reads it. */
function eachRead(map, p, group, take) {
  const { perGroup } = map;
  const { channels } = map.settings;
  const { count, tap, at } = map.reads(p);
  for (let n = 0; n < count; n++) {
    const element = at[n] * channels + group * perGroup;
    for (let d = 0; d < perGroup; d++) take(element + d, tap[n] * perGroup + d);
  }
}

// The index map, Eq. (8) of Ma & Lu (2017): which element of the input entry (p, q) of M reads. It is
// the twin of convfc/indexmap.py, compared with it entry by entry in the tests, and the only file of
// the page that knows what a convolution is.

import { outputSize, product, taps as tapsOf } from "./geometry.js";

/** The map on one axis: output o reads through tap t the padded element first + o step + t tapStep. */
function axisMap(settings, axis, positions) {
  const size = settings.size[axis];
  const taps = settings.kernel[axis];
  const dilation = settings.dilation[axis];
  const stride = settings.stride[axis];
  const [low, high] = settings.padding[axis];
  const reach = dilation * (taps - 1);
  let source, step, backwards;
  if (settings.transposed) {
    // A window that moves by one over the input with stride - 1 zeros between its elements.
    step = 1;
    source = Int32Array.from({ length: positions + reach }, (_, i) => {
      const spread = i - (reach - low);
      const from = spread / stride;
      return spread % stride === 0 && from >= 0 && from < size ? from : -1;
    });
    backwards = !settings.flip;
  } else {
    step = stride;
    source = Int32Array.from({ length: size + low + high }, (_, i) => padded(settings.mode, i - low, size));
    backwards = settings.flip;
  }
  const [first, tapStep] = backwards ? [reach, -dilation] : [0, dilation];
  return { source, first, step, tapStep, positions, taps, size, low: settings.transposed ? reach - low : low };
}

/** The input index that an index of the padded axis, which starts at -low, holds; -1 is a zero. */
function padded(mode, index, size) {
  switch (mode) {
    case "reflect":
      return size - 1 - Math.abs(size - 1 - Math.abs(index));
    case "replicate":
      return Math.min(Math.max(index, 0), size - 1);
    case "circular":
      return ((index % size) + size) % size;
    default:
      return index >= 0 && index < size ? index : -1;
  }
}

/** Split a flat index into one per axis, row-major. */
export function unravel(flat, shape) {
  const index = new Array(shape.length);
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    index[axis] = flat % shape[axis];
    flat = Math.floor(flat / shape[axis]);
  }
  return index;
}

/** The flat index of one per axis. */
export function ravel(index, shape) {
  return index.reduce((flat, i, axis) => flat * shape[axis] + i, 0);
}

/** Which element each entry of M reads, for settings that have no problems. */
export class IndexMap {
  constructor(settings) {
    this.settings = settings;
    this.outputSize = outputSize(settings);
    this.axes = this.outputSize.map((positions, axis) => axisMap(settings, axis, positions));
    this.perGroup = settings.channels / settings.groups;
    this.taps = tapsOf(settings);
    this.rows = product(this.outputSize);
    this.columns = settings.groups * this.taps;
    this.inputShape = [...settings.size, settings.channels];
    this.columnShape = [settings.groups, ...settings.kernel, this.perGroup];
  }

  /** The output position of a row p, one index per axis. */
  position(p) {
    return unravel(p, this.outputSize);
  }

  /** Group, tap (one index per axis) and channel of a column q. */
  tap(q) {
    const [group, ...rest] = unravel(q, this.columnShape);
    const channel = rest.pop();
    return { group, tap: rest, channel };
  }

  /** The padded element that (p, q) reads, one index per axis, counted from the input's own 0. */
  paddedCoordinates(p, q) {
    const position = this.position(p);
    const { tap } = this.tap(q);
    return this.axes.map((a, i) => a.first + position[i] * a.step + tap[i] * a.tapStep - a.low);
  }

  /** The input element (i, j, ..., d) that entry (p, q) reads; null for a zero. */
  coordinates(p, q) {
    const position = this.position(p);
    const { group, tap, channel } = this.tap(q);
    const read = this.axes.map((a, i) => a.source[a.first + position[i] * a.step + tap[i] * a.tapStep]);
    return read.some((i) => i < 0) ? null : [...read, group * this.perGroup + channel];
  }

  /** The same as a flat index into (*spatial, c); -1 for a zero. */
  element(p, q) {
    const found = this.coordinates(p, q);
    return found ? ravel(found, this.inputShape) : -1;
  }

  /** Every entry [p, q] that reads a flat input index, ascending. */
  readers(flat) {
    const index = unravel(flat, this.inputShape);
    const d = index.pop();
    const group = Math.floor(d / this.perGroup);
    const channel = d % this.perGroup;
    let pairs = [[[], []]];
    this.axes.forEach((a, i) => {
      const own = [];
      for (let o = 0; o < a.positions; o++) {
        for (let t = 0; t < a.taps; t++) {
          if (a.source[a.first + o * a.step + t * a.tapStep] === index[i]) own.push([o, t]);
        }
      }
      pairs = pairs.flatMap(([os, ts]) => own.map(([o, t]) => [[...os, o], [...ts, t]]));
    });
    return pairs
      .map(([os, ts]) => [ravel(os, this.outputSize), ravel([group, ...ts, channel], this.columnShape)])
      .sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  }

  /** The elements that one row p reads, one per column; -1 for a zero. */
  row(p) {
    const position = this.position(p);
    const read = this.axes.map((a, i) =>
      Int32Array.from({ length: a.taps }, (_, t) => a.source[a.first + position[i] * a.step + t * a.tapStep]));
    const found = new Int32Array(this.columns);
    const { channels, groups } = this.settings;
    const spatial = product(this.settings.kernel);
    for (let tap = 0; tap < spatial; tap++) {
      const index = unravel(tap, this.settings.kernel);
      let flat = 0;
      for (let i = 0; i < index.length && flat >= 0; i++) {
        const at = read[i][index[i]];
        flat = at < 0 ? -1 : flat * this.settings.size[i] + at;
      }
      for (let group = 0; group < groups; group++) {
        for (let channel = 0; channel < this.perGroup; channel++) {
          const q = (group * spatial + tap) * this.perGroup + channel;
          found[q] = flat < 0 ? -1 : flat * channels + group * this.perGroup + channel;
        }
      }
    }
    return found;
  }

  /** The whole map, rows * columns entries. */
  flat() {
    const found = new Int32Array(this.rows * this.columns);
    for (let p = 0; p < this.rows; p++) found.set(this.row(p), p * this.columns);
    return found;
  }
}

export function indexMap(settings) {
  return new IndexMap(settings);
}

// The index map, Eq. (8) of Ma & Lu (2017): which element of the input entry (p, q) of M reads. It is
// the twin of convfc/indexmap.py, compared with it entry by entry in the tests, and the only file of
// the page that knows what a convolution is. The page reads every window forwards and turns the filter
// instead where convfc reads backwards (`turned`): that is how textbooks draw it, and the sums are the same.

import { outputSize, product, taps as tapsOf } from "./geometry.js";

/** The map on one axis: output o reads through tap t the padded element o step + t tapStep. */
function axisMap(settings, axis, positions) {
  const size = settings.size[axis];
  const taps = settings.kernel[axis];
  const tapStep = settings.dilation[axis];
  const stride = settings.stride[axis];
  const reach = tapStep * (taps - 1);
  let [low, high] = settings.padding[axis];
  let source;
  if (settings.transposed) {
    // A window that moves by one over the input with stride - 1 zeros between its elements.
    low = reach - low;
    source = Int32Array.from({ length: positions + reach }, (_, i) => {
      const from = (i - low) / stride;
      return Number.isInteger(from) && from >= 0 && from < size ? from : -1;
    });
  } else {
    source = Int32Array.from({ length: size + low + high }, (_, i) => padded(settings.mode, i - low, size));
  }
  const step = settings.transposed ? 1 : stride;
  return { source, step, tapStep, positions, taps, size, low, ...readsOf(source, { step, tapStep, positions, taps }) };
}

/** What every output position of an axis reads, without the zeros: its taps and elements from start[o] on. */
function readsOf(source, { step, tapStep, positions, taps }) {
  const [tap, at, start] = [[], [], [0]];
  for (let o = 0; o < positions; o++) {
    for (let t = 0; t < taps; t++) {
      const from = source[o * step + t * tapStep];
      if (from < 0) continue;
      tap.push(t);
      at.push(from);
    }
    start.push(tap.length);
  }
  return { start: Int32Array.from(start), tap: Int32Array.from(tap), at: Int32Array.from(at) };
}

/** Stands for the rows of an input that has only one axis. */
const UNIT = { positions: 1, taps: 1, size: 1, start: [0, 1], tap: [0], at: [0] };

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
    this.spatial = product(settings.kernel);
    this.pair = this.axes.length > 1 ? this.axes : [UNIT, this.axes[0]];
    this.turned = settings.flip !== settings.transposed;
    /** Products of one filter at all positions, those with the zeros of the padding left out. */
    this.work = this.axes.reduce((work, { at }) => work * at.length, this.perGroup);
  }

  /** The column of convfc's M for a column of the page's, and back; also of the taps of one filter. */
  turn(q) {
    if (!this.turned) return q;
    const block = Math.floor(q / this.taps);
    const tap = Math.floor((q % this.taps) / this.perGroup);
    return block * this.taps + (this.spatial - 1 - tap) * this.perGroup + (q % this.perGroup);
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
    return this.axes.map((a, i) => position[i] * a.step + tap[i] * a.tapStep - a.low);
  }

  /** The input element (i, j, ..., d) that entry (p, q) reads; null for a zero. */
  coordinates(p, q) {
    const position = this.position(p);
    const { group, tap, channel } = this.tap(q);
    const read = this.axes.map((a, i) => a.source[position[i] * a.step + tap[i] * a.tapStep]);
    return read.some((i) => i < 0) ? null : [...read, group * this.perGroup + channel];
  }

  /** The same as a flat index into (*spatial, c); -1 for a zero. */
  element(p, q) {
    const found = this.coordinates(p, q);
    return found ? ravel(found, this.inputShape) : -1;
  }

  /** How many entries of M read a flat input index, and at how many output positions. */
  readerCounts(flat) {
    const own = this._own(flat);
    return {
      entries: own.reduce((n, list) => n * list.length, 1),
      outputs: own.reduce((n, list) => n * new Set(list.map(([o]) => o)).size, 1),
    };
  }

  /** The entries [p, q] that read a flat input index, ascending; of more than `most`, evenly chosen ones. */
  *readers(flat, most = Infinity) {
    const d = flat % this.settings.channels;
    const side = Math.floor(most ** (1 / this.axes.length));
    const own = this._own(flat).map((list) => byPosition(thinned(list, side)));
    const [rows, columns] = own.length > 1 ? own : [[[0, [0]]], own[0]];
    const [group, channel] = [Math.floor(d / this.perGroup), d % this.perGroup];
    for (const [i, tapsI] of rows) {
      for (const [j, tapsJ] of columns) {
        const p = i * this.pair[1].positions + j;
        for (const ti of tapsI) {
          for (const tj of tapsJ) {
            const tap = group * this.spatial + ti * this.pair[1].taps + tj;
            yield [p, tap * this.perGroup + channel];
          }
        }
      }
    }
  }

  /** Per axis, every [output, tap] that reads the element's index there. */
  _own(flat) {
    const index = unravel(flat, this.inputShape);
    return this.axes.map((a, axis) => {
      const own = [];
      for (let o = 0; o < a.positions; o++) {
        for (let i = a.start[o]; i < a.start[o + 1]; i++) if (a.at[i] === index[axis]) own.push([o, a.tap[i]]);
      }
      return own;
    });
  }

  /** What the window at p reads, without zeros: taps of the kernel, and elements without their channel. */
  reads(p) {
    const [rows, columns] = this.pair;
    const [i, j] = [Math.floor(p / columns.positions), p % columns.positions];
    const [r0, r1, c0, c1] = [rows.start[i], rows.start[i + 1], columns.start[j], columns.start[j + 1]];
    const count = (r1 - r0) * (c1 - c0);
    const found = { count, tap: new Int32Array(count), at: new Int32Array(count) };
    let n = 0;
    for (let r = r0; r < r1; r++) {
      for (let c = c0; c < c1; c++) {
        found.tap[n] = rows.tap[r] * columns.taps + columns.tap[c];
        found.at[n] = rows.at[r] * columns.size + columns.at[c];
        n++;
      }
    }
    return found;
  }

  /** The column through which the window at p reads an element first; -1 if it does not. */
  columnReading(p, element) {
    const d = element % this.settings.channels;
    const { tap, at } = this.reads(p);
    const n = at.indexOf(Math.floor(element / this.settings.channels));
    if (n < 0) return -1;
    return (Math.floor(d / this.perGroup) * this.spatial + tap[n]) * this.perGroup + (d % this.perGroup);
  }

  /** The elements that row p reads in some columns (in all, if none are named); -1 for a zero. */
  row(p, columns = null) {
    const cells = new Int32Array(this.spatial).fill(-1);
    const { count, tap, at } = this.reads(p);
    for (let n = 0; n < count; n++) cells[tap[n]] = at[n];
    const element = (q) => {
      const whole = Math.floor(q / this.perGroup); // group and tap
      const cell = cells[whole % this.spatial];
      const group = Math.floor(whole / this.spatial);
      return cell < 0 ? -1 : cell * this.settings.channels + group * this.perGroup + (q % this.perGroup);
    };
    if (columns) return Int32Array.from(columns, element);
    return Int32Array.from({ length: this.columns }, (_, q) => element(q));
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

/** Pairs [output, tap], ascending, as [output, [taps]]. */
function byPosition(pairs) {
  const found = new Map();
  for (const [o, t] of pairs) found.set(o, [...(found.get(o) ?? []), t]);
  return [...found];
}

/** At most so many of a list, evenly. */
function thinned(list, most) {
  if (list.length <= most) return list;
  return Array.from({ length: most }, (_, i) => list[Math.floor((i * list.length) / most)]);
}

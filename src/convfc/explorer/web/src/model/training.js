// The paper's experiment, small: a CONV layer and its FC layer on the patches M learn to read digits of
// 8 x 8, from the same weights and in the same order. There is no chance in it but the seed's, and no
// function whose last digit a browser may choose, so that the same plan makes the same bits everywhere.

import { complete, product } from "./geometry.js";
import { indexMap } from "./indexmap.js";
import { BYTES, COUNT, PACKED, PIXELS } from "./manydigits.js";

export const CLASSES = 10;
export const UNSEEN = 360;
export const EPOCH = Math.ceil((COUNT - UNSEEN) / 32);
const BATCH = 32;

/** How much darker a drawing is made: its strokes are thinner than those of the set. */
const GAIN = 1.6;

/** The layer that is trained. */
export const LAYER = complete({ size: [8, 8], filters: 4, kernel: [3, 3] });

/** Steps after which training ends, also that of an address. */
export const MOST = 100 * EPOCH;

export const OPTIMISERS = ["sgd", "momentum", "adam"];
export const RATES = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5];

/** What is trained, and how: with order 1 the FC layer adds from the last term on; bits are those of a number. */
export const PLAN = Object.freeze({ seed: 1, steps: 0, optimiser: "sgd", rate: 0.1, order: 0, bits: 32 });

const NUMBERS = { 32: Float32Array, 64: Float64Array };

/** A plan as the text of an address, and back; null if it is none. */
export function planText({ seed, steps, optimiser, rate, order, bits }) {
  return [seed, steps, optimiser, rate.toExponential(), order, bits].join(".");
}

export function readPlan(text) {
  const found = /^(\d{1,6})\.(\d{1,4})\.([a-z]+)\.(\de[+-]\d)\.([01])\.(32|64)$/.exec(text);
  if (!found) return null;
  const [seed, steps, , rate, order, bits] = found.slice(1).map(Number);
  const sound = steps <= MOST && OPTIMISERS.includes(found[3]) && RATES.includes(rate);
  return sound ? { seed, steps, optimiser: found[3], rate, order, bits } : null;
}

/** The signs of base 85 (RFC 1924), five for four bytes. */
const SIGNS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~";

function unpacked(text) {
  const words = new DataView(new ArrayBuffer((text.length / 5) * 4));
  for (let at = 0; at < text.length; at += 5) {
    const word = [...text.slice(at, at + 5)].reduce((sum, sign) => 85 * sum + SIGNS.indexOf(sign), 0);
    words.setUint32((at / 5) * 4, word);
  }
  return words.buffer.slice(0, BYTES);
}

/** All digits: {inputs: images one after the other, 0 to 1, labels}. */
export async function manyDigits() {
  const stream = new Blob([unpacked(PACKED)]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
  const pixel = (_, at) => bytes[(at % PIXELS) * COUNT + Math.floor(at / PIXELS)] / 16;
  return { inputs: Float64Array.from({ length: COUNT * PIXELS }, pixel), labels: bytes.slice(COUNT * PIXELS) };
}

/**
 * A drawing of side x side grey values from 0 to 255, some above 40, as the digits of the set are: as high as
 * the image, five pixels wide at most, in the middle.
 */
export function asDigit(pixels, side) {
  const inked = [...pixels.keys()].filter((at) => pixels[at] > 40);
  const from = (all) => all.map((place) => place - Math.min(...all));
  const rows = from(inked.map((at) => Math.floor(at / side)));
  const columns = from(inked.map((at) => at % side));
  const [height, width] = [rows, columns].map((all) => Math.max(...all) + 1);
  const high = height / 8;
  const wide = Math.max(high, width / 5);
  const image = new Float64Array(PIXELS);
  const within = (start, size, at) => Math.max(0, Math.min(start + size, at + 1) - Math.max(start, at));
  for (let to = 0; to < PIXELS; to++) {
    const y = Math.floor(to / 8) * high;
    const x = width / 2 + ((to % 8) - 4) * wide;
    const ink = inked.reduce(
      (sum, at, n) => sum + pixels[at] * within(y, high, rows[n]) * within(x, wide, columns[n]),
      0,
    );
    image[to] = Math.min(16, Math.round((16 * GAIN * ink) / (255 * high * wide))) / 16;
  }
  return image;
}

/** Numbers from 0 up to 1 from a seed: a counter whose bits are stirred. */
function chance(seed) {
  let count = Math.imul(seed, 0x3c6ef35f);
  return () => {
    count = (count + 0x6a09e667) | 0;
    let bits = Math.imul(count ^ (count >>> 15), 0x2c1b3c6d);
    bits = Math.imul(bits ^ (bits >>> 12), 0x297a2d39);
    return ((bits ^ (bits >>> 15)) >>> 0) / 2 ** 32;
  };
}

/** e to a power that is not above 0; Math.exp has other last digits in other browsers. */
function exp(power) {
  if (!(power > -700)) return 0;
  const halvings = Math.floor(-power / Math.LN2);
  const rest = power + halvings * Math.LN2;
  let sum = 1;
  for (let n = 18; n > 0; n--) sum = 1 + (sum * rest) / n;
  for (let n = 0; n < halvings; n++) sum /= 2;
  return sum;
}

/** A CONV layer: its window slides over each image. Its filters are (f, k), its output (images, L, f). */
export class SlidingLayer {
  constructor(map, filters, Numbers) {
    Object.assign(this, { map, filters, weights: new Numbers(filters * map.taps), gradient: new Numbers(filters * map.taps) });
  }

  place(tap, f) {
    return f * this.map.taps + tap;
  }

  forward(x, Y) {
    const { weights, filters, map } = this;
    Y.fill(0);
    this._slide(x, (from, tap, to) => {
      for (let f = 0; f < filters; f++) Y[to + f] += x[from] * weights[f * map.taps + tap];
    });
  }

  /** The gradient dY slides over the image as the filters did. */
  backward(x, dY) {
    const { gradient, filters, map } = this;
    gradient.fill(0);
    this._slide(x, (from, tap, to) => {
      for (let f = 0; f < filters; f++) gradient[f * map.taps + tap] += x[from] * dY[to + f];
    });
  }

  _slide(x, visit) {
    const { filters, map } = this;
    const [down, across] = map.pair;
    const pixels = product(map.inputShape);
    let to = 0;
    for (let image = 0; image < x.length; image += pixels) {
      for (let i = 0; i < down.positions; i++) {
        for (let j = 0; j < across.positions; j++, to += filters) {
          for (let u = down.start[i]; u < down.start[i + 1]; u++) {
            for (let v = across.start[j]; v < across.start[j + 1]; v++) {
              const from = image + down.at[u] * across.size + across.at[v];
              visit(from, down.tap[u] * across.taps + across.tap[v], to);
            }
          }
        }
      }
    }
  }
}

/** An FC layer on the patches: Y = M K and dK = Mᵀ dY, K is (k, f); `backwards` adds from the last term on. */
export class PatchLayer {
  constructor(map, filters, Numbers, backwards = false) {
    Object.assign(this, { map, filters, Numbers, backwards, reads: map.flat() });
    Object.assign(this, { weights: new Numbers(filters * map.taps), gradient: new Numbers(filters * map.taps) });
  }

  place(tap, f) {
    return tap * this.filters + f;
  }

  /** All images' rows of M, one after the other. */
  stretch(x) {
    const { reads, map } = this;
    const pixels = product(map.inputShape);
    this.M = new this.Numbers((x.length / pixels) * reads.length);
    for (let image = 0, at = 0; image < x.length; image += pixels)
      for (let n = 0; n < reads.length; n++, at++) if (reads[n] >= 0) this.M[at] = x[image + reads[n]];
  }

  forward(x, Y) {
    this.stretch(x);
    const { M, weights, filters, backwards } = this;
    const k = this.map.taps;
    Y.fill(0);
    for (let row = 0; row < M.length / k; row++) {
      for (let n = 0; n < k; n++) {
        const q = backwards ? k - 1 - n : n;
        for (let f = 0; f < filters; f++) Y[row * filters + f] += M[row * k + q] * weights[q * filters + f];
      }
    }
  }

  backward(x, dY) {
    const { M, gradient, filters, backwards } = this;
    const k = this.map.taps;
    const rows = M.length / k;
    gradient.fill(0);
    for (let n = 0; n < rows; n++) {
      const row = backwards ? rows - 1 - n : n;
      for (let q = 0; q < k; q++)
        for (let f = 0; f < filters; f++) gradient[q * filters + f] += M[row * k + q] * dY[row * filters + f];
    }
  }
}

/** A network: its first layer, ReLU, an FC layer to the classes, softmax. */
export class Network {
  constructor(first, Numbers) {
    const { map, filters } = first;
    this.first = first;
    this.Numbers = Numbers;
    this.width = map.rows * filters;
    this.pixels = product(map.inputShape);
    this.head = { weights: new Numbers(this.width * CLASSES), gradient: new Numbers(this.width * CLASSES) };
    this.layers = [first, this.head];
  }

  /** The probability of every class for each of the images. */
  forward(x) {
    const { width, Numbers, head: { weights } } = this;
    const images = x.length / this.pixels;
    this.Y = new Numbers(images * width);
    this.first.forward(x, this.Y);
    const p = new Numbers(images * CLASSES);
    for (let b = 0; b < images; b++) {
      const own = p.subarray(b * CLASSES, (b + 1) * CLASSES);
      for (let n = 0; n < width; n++) {
        const z = this.Y[b * width + n];
        if (z > 0) for (let c = 0; c < CLASSES; c++) own[c] += z * weights[n * CLASSES + c];
      }
      const most = own.reduce((a, score) => Math.max(a, score), -Infinity);
      for (let c = 0; c < CLASSES; c++) own[c] = exp(own[c] - most);
      const sum = own.reduce((a, score) => a + score, 0);
      for (let c = 0; c < CLASSES; c++) own[c] /= sum;
    }
    return p;
  }

  /** The mean cross-entropy of images, whose gradients the layers then have. */
  learn(x, labels) {
    const { width, Numbers, head } = this;
    const p = this.forward(x);
    const dY = new Numbers(this.Y.length);
    head.gradient.fill(0);
    let loss = 0;
    for (let b = 0; b < labels.length; b++) {
      loss -= Math.log(p[b * CLASSES + labels[b]]) / labels.length;
      p[b * CLASSES + labels[b]] -= 1;
      for (let c = b * CLASSES; c < (b + 1) * CLASSES; c++) p[c] /= labels.length;
      for (let n = 0; n < width; n++) {
        const z = this.Y[b * width + n];
        if (!(z > 0)) continue;
        for (let c = 0; c < CLASSES; c++) {
          head.gradient[n * CLASSES + c] += z * p[b * CLASSES + c];
          dY[b * width + n] += p[b * CLASSES + c] * head.weights[n * CLASSES + c];
        }
      }
    }
    this.first.backward(x, dY);
    this.dY = dY;
    return loss;
  }

  /** One step of an optimiser with the gradients that there are; the first has t = 1. */
  move({ optimiser, rate }, t) {
    for (const layer of this.layers) {
      const { weights, gradient, Numbers = this.Numbers } = layer;
      const m = (layer.m ??= new Numbers(weights.length));
      const v = (layer.v ??= new Numbers(weights.length));
      if (optimiser === "adam") {
        const [first, second] = [1 - power(0.9, t), 1 - power(0.999, t)];
        for (let i = 0; i < weights.length; i++) {
          m[i] = 0.9 * m[i] + 0.1 * gradient[i];
          v[i] = 0.999 * v[i] + 0.001 * gradient[i] * gradient[i];
          weights[i] -= ((rate / first) * m[i]) / (Math.sqrt(v[i] / second) + 1e-8);
        }
      } else {
        const kept = optimiser === "momentum" ? 0.9 : 0;
        for (let i = 0; i < weights.length; i++) {
          m[i] = kept * m[i] + gradient[i];
          weights[i] -= rate * m[i];
        }
      }
    }
  }
}

/** The same bits in every browser, which `**` does not promise. */
function power(base, exponent) {
  let result = 1;
  for (let n = 0; n < exponent; n++) result *= base;
  return result;
}

/** The two networks of a plan, trained step by step on digits {inputs, labels}. */
export class Twins {
  constructor(digits, plan) {
    this.digits = digits;
    this.plan = plan;
    this.steps = 0;
    const { filters } = LAYER;
    const map = indexMap(LAYER);
    const Numbers = NUMBERS[plan.bits];
    const conv = new Network(new SlidingLayer(map, filters, Numbers), Numbers);
    const fc = new Network(new PatchLayer(map, filters, Numbers, plan.order === 1), Numbers);
    this.nets = [conv, fc];
    this.random = chance(plan.seed);
    const uniform = (inputs) => (2 * this.random() - 1) * Math.sqrt(6 / inputs); // He et al. (2015)
    for (let f = 0; f < filters; f++) {
      for (let tap = 0; tap < map.taps; tap++) {
        const weight = uniform(map.taps);
        for (const { first } of this.nets) first.weights[first.place(tap, f)] = weight;
      }
    }
    conv.head.weights.forEach((_, i) => {
      conv.head.weights[i] = fc.head.weights[i] = uniform(conv.width);
    });
    const turn = Array.from({ length: COUNT }, (_, i) => i);
    this.unseen = this._shuffle(turn).splice(COUNT - UNSEEN);
    this.turn = turn;
    this.losses = [[], []];
    this.differences = [];
  }

  /** Both networks learn from the next batch. */
  step() {
    const at = (this.steps % EPOCH) * BATCH;
    if (at === 0) this._shuffle(this.turn);
    const { inputs, labels } = this._some(this.turn.slice(at, at + BATCH));
    this.steps += 1;
    this.nets.forEach((net, n) => {
      this.losses[n].push(net.learn(inputs, labels));
      net.move(this.plan, this.steps);
    });
    this.differences.push(this.difference);
  }

  /** The largest difference of all weights. */
  get difference() {
    const [conv, fc] = this.nets;
    const { map, filters } = conv.first;
    let most = 0;
    for (let f = 0; f < filters; f++) {
      for (let tap = 0; tap < map.taps; tap++) {
        const apart = conv.first.weights[conv.first.place(tap, f)] - fc.first.weights[fc.first.place(tap, f)];
        most = Math.max(most, Math.abs(apart));
      }
    }
    conv.head.weights.forEach((weight, i) => {
      most = Math.max(most, Math.abs(weight - fc.head.weights[i]));
    });
    return most;
  }

  /** What each network takes the unseen digits for: two arrays. */
  guesses() {
    const { inputs } = this._some(this.unseen);
    return this.nets.map((net) => {
      const p = net.forward(inputs);
      return Array.from({ length: UNSEEN }, (_, b) => likeliest(p.subarray(b * CLASSES, (b + 1) * CLASSES)));
    });
  }

  _some(which) {
    const inputs = new Float64Array(which.length * PIXELS);
    which.forEach((digit, b) => inputs.set(this.digits.inputs.subarray(digit * PIXELS, (digit + 1) * PIXELS), b * PIXELS));
    return { inputs, labels: which.map((digit) => this.digits.labels[digit]) };
  }

  _shuffle(turn) {
    for (let i = turn.length - 1; i > 0; i--) {
      const j = Math.floor(this.random() * (i + 1));
      [turn[i], turn[j]] = [turn[j], turn[i]];
    }
    return turn;
  }
}

/** The class of the largest probability. */
export function likeliest(p) {
  return p.indexOf(p.reduce((most, value) => Math.max(most, value), -Infinity));
}

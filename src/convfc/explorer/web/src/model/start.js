// The numbers that a convolution starts with when nobody gave any, and what becomes of numbers when
// sizes change.

import { filtersShape, inputShape, product } from "./geometry.js";
import { DIGITS } from "./digits.js";

/** Side of a digit's picture. */
export const SIDE = 28;

/** A digit of the library as an input of any size. */
export function digitInput(index, settings) {
  return pictureInput(DIGITS[index % DIGITS.length].pixels, settings);
}

/** A 28 x 28 picture (0 to 255) as an input of any size, each channel alike; of one axis, its middle row. */
export function pictureInput(pixels, settings) {
  const { channels } = settings;
  const [height, width] = settings.axes === 2 ? settings.size : [1, settings.size[0]];
  const values = new Float64Array(height * width * channels);
  for (let i = 0; i < height; i++) {
    const row = Math.floor(((i + 0.5) * SIDE) / height);
    for (let j = 0; j < width; j++) {
      const column = Math.floor(((j + 0.5) * SIDE) / width);
      const value = Math.round((pixels[row * SIDE + column] / 255) * 100) / 100;
      values.fill(value, (i * width + j) * channels, (i * width + j + 1) * channels);
    }
  }
  return values;
}

/**
 * Bright boxes on a darker ground, one in every six rows and columns: whole numbers from 1 to 9, so
 * that sums stay exact and can be checked by head. Each channel has its boxes elsewhere. A number
 * depends on its place alone: an input that grows shows more of the same picture.
 */
export function gradient(settings) {
  const { channels } = settings;
  const [height, width] = settings.axes === 2 ? settings.size : [1, settings.size[0]];
  const values = new Float64Array(height * width * channels);
  let at = 0;
  for (let i = 0; i < height; i++) {
    for (let j = 0; j < width; j++) {
      for (let d = 0; d < channels; d++) {
        const moved = 5 - (d % 3); // the first box begins one step from the edge, or two, or three
        const row = settings.axes === 2 ? i + moved : 6; // one axis runs through the first boxes
        const column = j + moved;
        const box = row % 6 < 3 && column % 6 < 3;
        const tile = 2 * Math.floor(row / 6) + Math.floor(column / 6);
        values[at++] = box ? 9 - ((tile + d + 2) % 5) : 1 + (d % 3);
      }
    }
  }
  return values;
}

/**
 * Filters of which no two are equal. First those that show something: differences along each axis, a
 * sum, corners, a point, a difference of channels, as far as the kernel has room for them, or what shows
 * something in a photograph; then others.
 */
export function someFilters(settings, photo = false) {
  const shape = filtersShape(settings);
  const channels = shape.at(-1);
  const [height, width] = settings.axes === 2 ? settings.kernel : [1, settings.kernel[0]];
  const across = (j) => Math.sign(j - (width - 1) / 2);
  const down = (i) => Math.sign(i - (height - 1) / 2);
  const middle = (i, size) => Number(i === Math.floor(size / 2));
  // Of a photograph the edges, red against blue, and a blur: each about as large as the others.
  const few = 1 / (height * width);
  const shown = [
    width > 1 && ((i, j) => across(j) / (channels * height)),
    height > 1 && ((i) => down(i) / (channels * width)),
    channels === 3 && ((i, j, d) => few * (1 - d)),
    () => few / channels,
  ];
  const kinds = (photo ? shown : [
    width > 1 && ((i, j) => across(j)),
    height > 1 && down,
    () => 1,
    height > 1 && width > 1 && ((i, j) => down(i) * across(j) || 0), // not -0
    height * width > 1 && ((i, j) => middle(i, height) * middle(j, width)),
    channels > 1 && ((i, j, d) => Math.sign(d - (channels - 1) / 2)),
  ]).filter(Boolean);
  const values = new Float64Array(product(shape));
  const taps = height * width * channels;
  for (let f = 0; f < settings.filters; f++) {
    const weights = values.subarray(f * taps, (f + 1) * taps);
    if (f >= kinds.length) spell(weights, f - kinds.length);
    else
      for (let t = 0; t < taps; t++) {
        const place = Math.floor(t / channels);
        weights[t] = kinds[f](Math.floor(place / width), place % width, t % channels);
      }
  }
  return values;
}

/**
 * Spell a number in weights from -2 to 2: its digits to the base of five, stirred by the weights
 * before. What is left goes to the last weight, which is never -1, 0 or 1 as those of the kinds are:
 * so two numbers never have the same weights, even if there is only one.
 */
function spell(weights, number) {
  let rest = number >> 1;
  let stir = 2500 * (number % 2);
  const last = weights.length - 1;
  for (let t = 0; t < last; t++) {
    const digit = (rest + stir) % 5;
    rest = Math.floor(rest / 5);
    stir = (75 * stir + 74 * digit + 1) % 65537;
    weights[t] = digit - 2;
  }
  weights[last] = (number % 2 ? -1 : 1) * (rest + 2);
}

/** Copy what two shapes have in common into the fresh numbers of the second. */
export function cropped(values, before, after, fresh) {
  if (before.length !== after.length) return fresh;
  const last = before.length - 1;
  const common = before.map((n, axis) => Math.min(n, after[axis]));
  const copy = (axis, from, to) => {
    if (axis === last) {
      const start = from * before[last];
      fresh.set(values.subarray(start, start + common[last]), to * after[last]);
      return;
    }
    for (let i = 0; i < common[axis]; i++) copy(axis + 1, from * before[axis] + i, to * after[axis] + i);
  };
  copy(0, 0, 0);
  return fresh;
}

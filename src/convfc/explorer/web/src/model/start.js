// The numbers that a convolution starts with when nobody gave any, and what becomes of numbers when
// sizes change.

import { filtersShape, inputShape, product } from "./geometry.js";
import { unravel } from "./indexmap.js";
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

/** Small whole numbers that differ from place to place: sums stay exact and can be checked by head. */
export function gradient(settings) {
  const shape = inputShape(settings);
  return Float64Array.from({ length: product(shape) }, (_, flat) => {
    const at = unravel(flat, shape);
    return (at.reduce((sum, i, axis) => sum + i * (axis + 1), 0) * 3 + 1) % 10;
  });
}

/** Filters that show something: edges of several directions, a mean, a point; then these, weighted. */
export function someFilters(settings) {
  const shape = filtersShape(settings);
  const kernel = settings.kernel;
  return Float64Array.from({ length: product(shape) }, (_, flat) => {
    const [f, ...rest] = unravel(flat, shape);
    rest.pop();
    const from = rest.map((t, axis) => Math.sign(t - (kernel[axis] - 1) / 2));
    const point = rest.every((t, axis) => t === Math.floor(kernel[axis] / 2)) ? 1 : 0;
    const kinds = [from.at(-1), from[0], from.reduce((a, b) => a * b, 1), 1, point];
    const value = kinds[f % kinds.length];
    return f < kinds.length ? value : value * (((flat * 7) % 5) - 2);
  });
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

// Where to start: a picture that one can read, the paper's figures, its experiment, and other kinds of
// convolution.

import { complete } from "./geometry.js";

/** A picture: for each channel its rows, a number from 0 to 9 in each character. */
function picture(...channels) {
  const values = [];
  channels[0].forEach((row, i) => {
    for (let j = 0; j < row.length; j++)
      for (const rows of channels) values.push(Number(rows[i][j]));
  });
  return { values };
}

const rows = (count, row) => new Array(count).fill(row);

const FIGURE_2 = { input: [1, 0, 2, 3, 1, 0, 0, 2, 1], filter: [1, 0, -1, 2, 0, -2, 1, 0, -1] };

/** {id, title, text, settings, input, filters, at}; input is {values} or {digit}, `at` the output shown first. */
export const PRESETS = [
  {
    id: "first",
    title: "A sliding window",
    text: "Nine windows are nine rows of M, and every output is a row of M times a column of K.",
    settings: { axes: 2, size: [5, 5], channels: 1, filters: 2, kernel: [3, 3] },
    // A seven, in shades. Its filters look for edges, standing and lying.
    input: picture(["02891", "00193", "00740", "03900", "05600"]),
  },
  {
    id: "figure-2",
    title: "One patch, one filter",
    paper: "Figure 2",
    text: "A 3 × 3 patch meets a 3 × 3 filter: nine products, one sum. Flip it to see what Eq. (3) means.",
    settings: { axes: 2, size: [3, 3], channels: 1, filters: 1, kernel: [3, 3] },
    input: { values: FIGURE_2.input },
    filters: FIGURE_2.filter,
  },
  {
    id: "figure-3",
    at: 5,
    title: "Three filters",
    paper: "Figure 3",
    text: "Three filters slide over an input with three channels: for vertical edges, for horizontal edges, for the sum. Each makes a plane of the output.",
    settings: { axes: 2, size: [6, 6], channels: 3, filters: 3, kernel: [3, 3] },
    // A standing bar, a lying bar, and a box where they cross.
    input: picture(
      rows(6, "009900"),
      [...rows(2, "000000"), ...rows(2, "999999"), ...rows(2, "000000")],
      [...rows(2, "000000"), ...rows(2, "009900"), ...rows(2, "000000")],
    ),
  },
  {
    id: "figure-6",
    at: 24,
    title: "A digit in 49 patches",
    paper: "Figure 6",
    text: "Stride and kernel are both 4, so patches do not overlap: 28 × 28 pixels become 49 rows of 16.",
    settings: { axes: 2, size: [28, 28], channels: 1, filters: 1, kernel: [4, 4], stride: [4, 4] },
    input: { digit: 10 },
  },
  {
    id: "experiment",
    at: 97,
    title: "The experiment",
    paper: "Section 5",
    text: "4 × 4 windows at stride 2: 169 rows of 16. The paper trains 128 filters; here are four.",
    settings: { axes: 2, size: [28, 28], channels: 1, filters: 4, kernel: [4, 4], stride: [2, 2] },
    input: { digit: 5 },
  },
  {
    id: "depthwise",
    at: 8,
    title: "Depthwise",
    text: "As many groups as channels: every filter reads one channel, and M falls into blocks.",
    settings: { axes: 2, size: [7, 7], channels: 3, filters: 3, kernel: [3, 3], groups: 3, padding: [[1, 1], [1, 1]] },
    // For its own filter, in this order, each channel has something: vertical edges, horizontal ones, a cross.
    input: picture(
      rows(7, "0099900"),
      [...rows(2, "0000000"), ...rows(3, "9999999"), ...rows(2, "0000000")],
      [...rows(3, "0009000"), "9999999", ...rows(3, "0009000")],
    ),
  },
  {
    id: "dilated",
    at: 10,
    title: "Dilated",
    text: "Taps two apart: a 3 × 3 kernel looks at a 5 × 5 neighbourhood.",
    settings: { axes: 2, size: [9, 9], channels: 1, filters: 2, kernel: [3, 3], dilation: [2, 2], padding: [[2, 2], [2, 2]] },
    input: picture([...rows(2, "000000000"), ...rows(5, "009999900"), ...rows(2, "000000000")]),
  },
  {
    id: "transposed",
    at: 9,
    title: "Transposed",
    text: "The adjoint: the input is spread apart with zeros, and the output is larger than the input. One filter repeats each number, the other fills in the means between them.",
    settings: { axes: 2, size: [4, 4], channels: 1, filters: 2, kernel: [3, 3], stride: [2, 2], padding: [[1, 1], [1, 1]], outputPadding: [1, 1], transposed: true },
    input: picture(["0440", "4884", "4884", "0440"]),
    filters: [0, 0, 0, 0, 1, 1, 0, 1, 1, 0.25, 0.5, 0.25, 0.5, 1, 0.5, 0.25, 0.5, 0.25],
  },
  {
    id: "signal",
    at: 4,
    title: "A signal",
    text: "One axis: a moving difference and a moving mean of twelve numbers.",
    settings: { axes: 1, size: [12], channels: 1, filters: 2, kernel: [3], padding: [[1, 1]] },
    input: picture(["039996300630"]),
    filters: [-1, 0, 1, 1 / 3, 1 / 3, 1 / 3],
  },
];

/** The state that a preset stands for. */
export function stateOf(preset) {
  return {
    title: preset.title,
    settings: complete(preset.settings),
    input: preset.input ?? null,
    filters: preset.filters ?? null,
    preset: preset.id,
    selection: { p: preset.at ?? 0 },
  };
}

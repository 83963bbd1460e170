// "Convolution in nine pictures": the paper told in nine chapters. Each shows a state, says at most forty
// words, and asks for something that the page checks with its own numbers. All that is read is in WORDS.

import { complete } from "./geometry.js";
import { output } from "./numbers.js";
import { PRESETS } from "./presets.js";
import { someFilters } from "./start.js";
import { short } from "./words.js";

export const WORDS = {
  title: "Convolution in nine pictures",
  offer: "Start here: convolution in nine pictures (6 minutes)",
  short: "Story",
  leave: "Leave the story",
  place: "Picture {n} of {all}",
  chapter: "Picture {n}: {title}",
  passed: "done",
  back: "Back",
  next: "Next",
  last: "Finish",
  answer: "Your answer",
  check: "Check",
  chapters: {
    numbers: {
      title: "A picture is numbers",
      text: "To a computer, a picture is a table of numbers. This one has five rows and five columns. The larger a number, the stronger its colour. Can you see the upright stroke?",
      tasks: [
        {
          ask: "Choose the largest number.",
          hint: "Not yet: this is {value}, and there is a larger one in row {row}.",
          done: "{value}, in row {row} and column {column}: we count from 0.",
        },
        {
          ask: "Change it: double-click it (or tap it twice), type 0, press Enter.",
          done: "The picture has changed, too: it is nothing but its numbers.",
        },
      ],
    },
    filter: {
      title: "A filter asks one question",
      text: "A filter is nine weights. Lay it on nine pixels, multiply each pixel by the weight on it, and add the nine products. This filter asks: is the right side larger than the left?",
      tasks: [
        {
          ask: "Add the nine products. What is the output?",
          hint: "Not yet: the first line of products adds up to {first}. Now add the other two lines.",
          done: "{value}. More than 0 means: larger on the right. Less than 0: larger on the left.",
        },
      ],
    },
    slide: {
      title: "Slide it",
      text: "The same filter asks its question everywhere: the window slides over the picture, and every place gives one output. Only the pixels change; the nine weights stay the same.",
      tasks: [
        {
          ask: "Move the window one step to the right: press → or the button below the picture.",
          hint: "Not yet: go to row 0, column 1 of the output.",
          done: "A new window, the same weights.",
        },
        {
          ask: "Predict its output. Add the products.",
          hint: "Not yet: the positive products add up to {plus}, the negative ones to {minus}.",
          done: "{value}. Here are all nine: the output finds both edges, one positive, one negative.",
        },
      ],
    },
    rows: {
      title: "Write each window as a row",
      text: "Read a window line by line, and write its nine numbers in one row. Nine windows make nine rows: the matrix M. Nothing is computed; numbers are only copied, most of them several times.",
      tasks: [
        {
          ask: "Which row of M is the window in the middle? Choose it in M.",
          hint: "Not yet: row {p} is the window that starts in row {row}, column {column}. The middle one starts in row 1, column 1.",
          done: "Row 4: the three windows above it come first, then the one on its left.",
        },
      ],
    },
    columns: {
      title: "A filter is a column",
      text: "Written from top to bottom, each filter is a column of K; here are two. A row of M times a column of K: the same nine products, the same sum. So Y = M K.",
      tasks: [
        {
          ask: "Find {target} in Y. Choose the row of M and the column of K that make it.",
          hint: "Not yet: row {p} of M times column {f} of K is {value}.",
          done: "Row {p} of M times column {f} of K is {value}. One matrix product makes every output.",
        },
      ],
    },
    reshape: {
      title: "Back to a picture",
      text: "Y lists the outputs: one row for each window, one column for each filter. Put a column back into three lines of three, and there is the output. The convolution is done, by a matrix product.",
      tasks: [
        {
          ask: "Which row of Y becomes the output in row 1, column 2? We count from 0.",
          hint: "Not yet: row {answer} becomes row {row}, column {column}.",
          wrong: "Not yet: Y has the rows 0 to {last}.",
          done: "Row 5: row 1 comes after the three of row 0, and column 2 after two more.",
        },
      ],
    },
    sizes: {
      title: "Stride and padding",
      text: "The stride is how far the window jumps. Padding puts zeros around the picture. With the kernel’s size they decide how many windows fit: the rows of M, and the size of the output.",
      tasks: [
        {
          ask: "Make the output 2 × 2. There is more than one way.",
          hint: "Not yet: the output is {size} now.",
          done: "{rows} windows, {rows} rows of M. The rule: (input + padding − kernel) / stride + 1, rounded down.",
        },
      ],
    },
    matrix: {
      title: "One big matrix",
      text: "Write the picture as one column x. Now the whole layer is one matrix: y = T x, a fully connected layer. Every row of T holds the same nine weights, moved; blank fields are zeros.",
      tasks: [
        {
          ask: "Choose a zero of T.",
          hint: "Not yet: this is the weight {value}. Every row has it, elsewhere.",
          done: "A zero: output {row} never looks at pixel {column}.",
        },
        {
          ask: "T has 9 × 25 = 225 numbers. How many different weights can the layer learn?",
          hint: "Not yet: count the weights in one row, without the zeros.",
          done: "9, not 225. A CONV layer is an FC layer whose weights are shared and mostly zero.",
        },
      ],
    },
    tools: {
      title: "So what?",
      text: "K is a matrix, so tools for FC layers work on a CONV layer. One is low rank: the nearest matrix whose columns are all multiples of one column. It needs 9 + 4 numbers, not 36.",
      tasks: [
        {
          ask: "Will the outputs stay nearly the same? Predict, then look.",
          button: "Make the rank of K one",
          done: "No output has moved by more than {share} % of the largest: close, with 13 numbers.",
        },
        {
          ask: "Your turn, with the paper’s own layer: draw a digit, then choose the filter that finds upright edges.",
          button: "Draw",
          hint: "Not yet: look for negative weights on the left and positive ones on the right, in every line.",
          done: "Filter 2. You now know a whole CONV layer, and the FC layer that it equals.",
        },
      ],
    },
  },
};

const PICTURE = [1, 1, 8, 7, 3, 0, 2, 9, 6, 0, 1, 1, 7, 8, 2, 0, 2, 8, 7, 1, 1, 0, 6, 8, 1];
const UPRIGHT = [-1, 0, 1, -1, 0, 1, -1, 0, 1];
const SUM = new Array(9).fill(1);

/** Nearly the same filter four times. */
const ALIKE = [
  ...[-2, 0, 2, -2, 0, 2, -2, 0, 2],
  ...[-3, 0, 3, -3, 0, 3, -3, 1, 3],
  ...[2, 0, -2, 2, 0, -2, 3, 0, -2],
  ...[-3, 0, 3, -4, 0, 4, -3, 0, 3],
];

/** The picture under a kernel, with what else differs between chapters. */
function shown({ size = 3, filters = UPRIGHT, tab = "arithmetic", covered = [], ...selection }) {
  const settings = { axes: 2, size: [5, 5], channels: 1, filters: filters.length / size ** 2, kernel: [size, size] };
  return { settings, input: { values: PICTURE }, filters, selection, covered, view: { tab } };
}

const from = (first) => Array.from({ length: 9 - first }, (_, i) => first + i);
const EDGES = ["input", "filters", "output", "arithmetic"];
const PRODUCT = ["input", "filters", "M", "K", "Y"];

/** The layer of the paper's experiment, with four filters. */
const PAPER = PRESETS.find(({ id }) => id === "experiment");

/** The output that has to be found among those of the second filter. */
const FOUND = [7, 1];

/**
 * {id, parts: what of the page is seen, frame: the part that it is about, state, tasks}. A task has a check(store,
 * answer), which is true, or false, or what its hint says; `number` if the answer is typed, `press` if there is a
 * button: it returns the state to go on with. `asks` and `says` fill in what is asked and what is said once it is
 * done; `after` changes what is selected then.
 */
export const CHAPTERS = [
  {
    id: "numbers",
    parts: ["input"],
    frame: "input",
    state: shown({ size: 1, filters: [1] }),
    tasks: [
      {
        check({ input, selection: { element } }) {
          const at = input.indexOf(Math.max(...input));
          return element !== null && (input[element] === input[at] || { value: input[element], row: Math.floor(at / 5) });
        },
        says: ({ input, selection: { element } }) => ({ value: input[element], row: Math.floor(element / 5), column: element % 5 }),
      },
      { check: (store) => store.changed },
    ],
  },
  {
    id: "filter",
    parts: EDGES,
    frame: "filters",
    state: shown({ covered: from(0) }),
    tasks: [{ number: true, check: sums, says: value, reveals: ({ selection }) => [selection.p] }],
  },
  {
    id: "slide",
    parts: [...EDGES, "transport"],
    frame: "input",
    state: shown({ covered: from(1) }),
    tasks: [
      { check: ({ selection: { p } }) => p === 1 || (p > 1 && {}) },
      { number: true, check: sums, says: value, reveals: () => from(0) },
    ],
  },
  {
    id: "rows",
    parts: ["input", "M"],
    frame: "M",
    state: shown({}),
    tasks: [{ check: ({ selection: { p }, map }) => p === 4 || placed(map.position(p), { p }) }],
  },
  {
    id: "columns",
    parts: PRODUCT,
    frame: "K",
    state: shown({ filters: [...UPRIGHT, ...SUM] }),
    tasks: [
      {
        check(store) {
          const { p, f } = store.selection;
          return (p === FOUND[0] && f === FOUND[1]) || { p, f, value: store.value(p, f) };
        },
        asks: (store) => ({ target: store.value(...FOUND) }),
        says: (store) => ({ ...store.selection, ...value(store) }),
      },
    ],
  },
  {
    id: "reshape",
    parts: [...PRODUCT, "output"],
    frame: "output",
    state: shown({ filters: [...UPRIGHT, ...SUM] }),
    tasks: [
      {
        number: true,
        check({ map }, answer) {
          if (answer === 5) return true;
          return map.rows > answer && answer >= 0 && answer % 1 === 0
            ? placed(map.position(answer), { answer })
            : { wrong: true, last: map.rows - 1 };
        },
        after: { p: 5 },
      },
    ],
  },
  {
    id: "sizes",
    parts: ["input", "filters", "output", "settings"],
    frame: "output",
    state: shown({}),
    tasks: [
      {
        check: ({ outputSize }) => outputSize.every((n) => n === 2) || { size: outputSize.join(" × ") },
        says: ({ map }) => ({ rows: map.rows }),
      },
    ],
  },
  {
    id: "matrix",
    parts: ["matrix"],
    frame: "T",
    state: shown({ filters: [1, 2, 3, 4, 5, 6, 7, 8, 9], tab: "matrix" }),
    tasks: [
      {
        check(store) {
          const { p, f, element } = store.selection;
          const weight = element !== null && store.bigEntry(p, f, element);
          return weight === 0 || (weight !== false && { value: weight });
        },
        says: ({ selection: { p, element } }) => ({ row: p, column: element }),
      },
      { number: true, check: ({ filters }, answer) => answer === filters.length || {} },
    ],
  },
  {
    id: "tools",
    parts: [...PRODUCT, "output"],
    frame: "K",
    state: shown({ filters: ALIKE, p: 4 }),
    tasks: [
      {
        press: (store) => ({ ...store.toJSON(), given: store.toJSON(), filters: rankOne(store.filters, 4) }),
        check: ({ filters }) => rankOne(filters, 4).every((w, at) => Math.abs(w - filters[at]) < 1e-9),
        says: (store) => ({ share: Math.round(100 * moved(store)) }),
      },
      {
        press: () => ({ settings: PAPER.settings, input: PAPER.input, filters: paperFilters() }),
        draws: true,
        check: ({ settings, selection: { f } }) => settings.size[0] === PAPER.settings.size[0] && (f === 2 || (f !== 0 && {})),
      },
    ],
  },
];

/** The state of a chapter, 1 to 9, as a store takes it. */
export function chapterState(n) {
  const { id, state } = CHAPTERS[n - 1];
  return { ...state, title: WORDS.chapters[id].title, view: { ...state.view, story: n } };
}

/** A text with its {places} filled in. */
export function filled(text, values = {}) {
  return text.replace(/\{(\w+)\}/g, (_, name) => (typeof values[name] === "number" ? short(values[name]) : values[name]));
}

/** Whether an answer is the sum of the products at the window; else what helps to add them. */
function sums(store, answer) {
  const products = store.arithmetic(store.selection.p, store.selection.f).terms.map(({ product }) => product);
  const add = (some) => some.reduce((sum, product) => sum + product, 0);
  if (Math.abs(answer - add(products)) < 1e-6) return true; // of numbers that somebody has changed, too
  return {
    first: add(products.slice(0, 3)),
    plus: add(products.filter((product) => product > 0)),
    minus: add(products.filter((product) => product < 0)),
  };
}

function value(store) {
  return { value: store.value(store.selection.p, store.selection.f) };
}

function placed([row, column], rest) {
  return { row, column, ...rest };
}

/** The nearest matrix of rank one, of `count` filters with their weights one after the other: by power iteration. */
export function rankOne(filters, count) {
  const taps = filters.length / count;
  const weights = Array.from({ length: count }, (_, f) => Array.from(filters.slice(f * taps, (f + 1) * taps)));
  const dot = (a, b) => a.reduce((sum, x, at) => sum + x * b[at], 0);
  let factors = [];
  let column = weights[0];
  for (let i = 0; i < 60; i++) {
    factors = weights.map((w) => dot(w, column) / (dot(column, column) || 1));
    column = column.map((_, t) => weights.reduce((sum, w, f) => sum + factors[f] * w[t], 0) / (dot(factors, factors) || 1));
  }
  return factors.flatMap((g) => column.map((c) => g * c));
}

/** How far outputs are from those of the chapter's own filters at most, as a share of the largest. */
function moved({ map, input, Y }) {
  const before = output(map, input, Float64Array.from(ALIKE), null);
  const most = (numbers) => numbers.reduce((so, number) => Math.max(so, Math.abs(number)), 0);
  return most(before.map((number, at) => Y[at] - number)) / most(before);
}

/** Four filters of 4 × 4: for lying edges, the sum, upright edges, corners. */
function paperFilters() {
  const all = someFilters(complete(PAPER.settings)); // upright edges, lying ones, the sum, corners
  return [1, 2, 0, 3].flatMap((f) => [...all.subarray(16 * f, 16 * f + 16)]);
}

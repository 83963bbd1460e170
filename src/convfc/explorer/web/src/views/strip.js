// The strip that reads as the equation: input -> M × K = Y -> output, and how much room each part
// gets.

import { el } from "./dom.js";
import { MARGIN } from "./grid.js";
import { InputView } from "./input.js";
import { FiltersView } from "./filters.js";
import { FilterMatrixView, PatchView, ProductView } from "./matrices.js";
import { OutputView } from "./output.js";
import { Links } from "./links.js";

const SIGNS = 46 + 20 + 20 + 46 + 8 * 12; // between them, with gaps
const EDGE = 18; // around them, left and right
const LARGEST = 34; // side of a cell

/** Least widths of the grids in a row: what their captions and buttons need, if not their cells. */
const LEAST = { image: 116, M: 92, K: 68, Y: 68 };

/** The narrowest strip that is a row, and the narrowest that is one with the settings beside it. */
const ROW = 2 * LEAST.image + LEAST.M + LEAST.K + LEAST.Y + 5 * 2 * MARGIN + SIGNS + 2 * EDGE;
const BESIDE = ROW + 120;

/** All panels of the equation, side by side or one below the other. */
export class Strip {
  constructor(explorer) {
    this.explorer = explorer;
    this.input = new InputView(explorer);
    this.filters = new FiltersView(explorer);
    this.M = new PatchView(explorer);
    this.K = new FilterMatrixView(explorer);
    this.Y = new ProductView(explorer);
    this.output = new OutputView(explorer);
    this.views = [this.input, this.filters, this.M, this.K, this.Y, this.output];
    this.links = new Links(explorer, this);
    for (const { panel } of [this.M, this.K, this.Y])
      panel.element.style.minWidth = `${LEAST[panel.options.view] + 2 * MARGIN}px`;
    this.element = el(
      "div",
      { class: "strip", role: "group", "aria-label": "The convolution as a product of matrices" },
      el("div", { class: "stack" }, this.input.element, this.filters.element),
      step("stretch"),
      this.M.element,
      sign("×"),
      this.K.element,
      sign("="),
      this.Y.element,
      step("reshape"),
      el("div", { class: "stack" }, this.output.element),
      this.links.element,
    );
    this.legend = el(
      "div",
      { class: "legend" },
      el("span", { class: "scale" }, "−", el("i", { class: "bar" }), "+"),
      el(
        "span",
        { class: "pointing" },
        "Point at anything to see what belongs to it, click to keep it, double-click a number to change it.",
      ),
      el(
        "span",
        { class: "touching" },
        "Tap anything to see what belongs to it, tap a number twice to change it.",
      ),
    );
  }

  /** Numbers or settings have changed: take them, make room for them, draw them. */
  update() {
    for (const view of this.views) view.update();
    this.fit();
  }

  /** Whether this layout of the page, if it is the present one, leaves the strip enough width. */
  holds(layout) {
    return this.element.clientWidth >= { wide: BESIDE, middle: ROW, narrow: 0 }[layout];
  }

  /** Which sizes everything gets in the room that there is. */
  fit() {
    const width = this.element.clientWidth - 2 * EDGE;
    if (width <= 0) return;
    if (this.explorer.narrow) this._fitColumn(width);
    else this._fitRow(width);
    this.links.fit();
  }

  light() {
    for (const view of this.views) view.light();
    this.links.light();
  }

  _fitRow(width) {
    const { map, settings } = this.explorer.store;
    const room = width - SIGNS - 5 * 2 * MARGIN;
    const height = Math.min(430, Math.max(330, 0.3 * width)); // of the matrices
    const k = map.taps;
    const f = settings.filters;
    // Panels keep their least width even if their cells need less.
    const need = (cell) =>
      Math.max(LEAST.M, map.columns * cell) + 2 * Math.max(LEAST.K, f * cell);
    const least = Math.min(Math.max(0.24 * room, LEAST.image), 230);
    const side = Math.max(least, Math.min(270, (room - need(LARGEST)) / 2));
    this.input.panel.fitPicture(side, height * 0.72);
    this.output.panel.fitPicture(side, height * 0.72);
    this.filters.panel.fitPicture(side, 92, 26);
    for (const views of [[this.input, this.filters], [this.output]]) {
      const widest = Math.max(LEAST.image, ...views.map((view) => view.panel.grid.width));
      views[0].element.parentElement.style.setProperty("--side", `${widest + 2 * MARGIN}px`);
    }
    // One width of cells for all three matrices, unless many filters then leave too little for M.
    const product = room - 2 * side;
    const cell = largestThat((c) => need(c) <= product, LARGEST);
    const fair = Math.max(LEAST.M, Math.min(0.4 * product, map.columns * LARGEST));
    const wideM = Math.max(fair, map.columns * cell);
    const cellM = Math.min(wideM / map.columns, LARGEST);
    const rest = (product - wideM) / 2;
    // K and Y may be wider where their captions leave room.
    const cellK = Math.min(rest / f, Math.max(cell, Math.min(LEAST.K / f, LARGEST)));
    const tall = tallness(map.rows, cellM, height);
    this.M.panel.fit(cellM, tall);
    this.K.panel.fit(cellK, tallness(k, Math.max(cellM, 14), height));
    this.Y.panel.fit(cellK, tall);
  }

  _fitColumn(width) {
    const room = width - 2 * MARGIN;
    this.input.panel.fitPicture(room, 300);
    this.output.panel.fitPicture(room, 300);
    this.filters.panel.fitPicture(room, 120, 30);
    for (const view of [this.M, this.K, this.Y]) {
      const source = view.panel.grid.source;
      const cell = Math.min(room / source.columns, LARGEST);
      const readable = source.rows * 15 <= 500; // tall enough for numbers, if that is not too tall
      view.panel.fit(
        cell,
        tallness(source.rows, Math.max(cell, 14), readable ? source.rows * 22 : 260),
      );
    }
  }
}

/** Height of a row: square-ish where numbers can be read, as low as needed where there are many. */
function tallness(rows, cellWidth, height) {
  const equal = height / rows;
  return equal < 8 ? equal : Math.min(equal, 30, Math.max(9, cellWidth * 1.25));
}

/** The largest size that passes, by halving. */
function largestThat(passes, most) {
  if (passes(most)) return most;
  let [low, high] = [0, most];
  for (let i = 0; i < 20; i++) {
    const middle = (low + high) / 2;
    if (passes(middle)) low = middle;
    else high = middle;
  }
  return low;
}

function step(word) {
  return el(
    "div",
    { class: "step" },
    el("span", { class: "arrow", "aria-hidden": "true" }),
    el("span", {}, word),
  );
}

function sign(text) {
  return el("div", { class: "sign", "aria-hidden": "true" }, text);
}

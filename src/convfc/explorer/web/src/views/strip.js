// The strip that reads as the equation: input -> M × K = Y -> output, and how much room each part
// gets.

import { el } from "./dom.js";
import { MARGIN } from "./grid.js";
import { InputView } from "./input.js";
import { FiltersView } from "./filters.js";
import { FilterMatrixView, PatchView, ProductView } from "./matrices.js";
import { OutputView } from "./output.js";
import { Links } from "./links.js";

const SIGNS = 46 + 20 + 20 + 46 + 6 * 12; // between them, with gaps
const LARGEST = 34; // side of a cell

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

  /** Which sizes everything gets in the room that there is. */
  fit() {
    const width = this.element.clientWidth - 2 * 18;
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
    // Panels keep a least width for their captions even if their cells need less.
    const need = (cell) => Math.max(92, map.columns * cell) + 2 * Math.max(76, f * cell);
    const least = Math.min(Math.max(0.24 * room, 130), 230);
    const side = Math.max(least, Math.min(270, (room - need(LARGEST)) / 2));
    const cell = largestThat((c) => need(c) <= room - 2 * side, LARGEST);
    this._image(this.input.panel, side, height * 0.72);
    this._image(this.output.panel, side, height * 0.72);
    const { rows, columns } = this.filters.panel.grid.source;
    const small = Math.min(side / columns, 92 / rows, 26);
    this.filters.panel.fit(small, small);
    const tall = tallness(map.rows, cell, height);
    this.M.panel.fit(cell, tall);
    // K and Y may be wider where their captions leave room.
    const wider = Math.max(cell, Math.min(76 / f, LARGEST));
    this.K.panel.fit(wider, tallness(k, Math.max(cell, 14), height));
    this.Y.panel.fit(wider, tall);
  }

  _fitColumn(width) {
    const room = width - 2 * MARGIN;
    this._image(this.input.panel, room, 300);
    this._image(this.output.panel, room, 300);
    const { rows, columns } = this.filters.panel.grid.source;
    const small = Math.min(room / columns, 120 / rows, 30);
    this.filters.panel.fit(small, small);
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

  _image(panel, width, height) {
    const { rows, columns } = panel.grid.source;
    const cell = Math.min(width / columns, height / rows, 46);
    panel.fit(cell, cell);
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
  return Math.max(low, 0.05);
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

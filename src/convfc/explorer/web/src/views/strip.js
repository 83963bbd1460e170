// The strip that reads as the equation: input -> M × K = Y -> output, and how much room each part
// gets.

import { el } from "./dom.js";
import { MARGIN } from "./grid.js";
import { InputView } from "./input.js";
import { FiltersView } from "./filters.js";
import { FilterMatrixView, PatchView, ProductView } from "./matrices.js";
import { OutputView } from "./output.js";
import { Links } from "./links.js";

const SIGNS = 38 + 18 + 18 + 38 + 8 * 8; // between them, with gaps
const EDGE = 12; // around them, left and right

/** Sides of a cell, at most: the larger the picture, the larger. */
const LARGEST = 34;
const LARGER = 64;

/** Least widths of the grids in a row: what their captions and buttons need, if not their cells. */
const LEAST = { image: 102, M: 144, K: 66, Y: 66 };

/** The part of the row that M gets, unless it has too few columns, whatever K and Y need. */
const SHARE = 0.35;

/** Heights of the matrices on a page of its own, and what a few products need below the strip. */
const LOWEST = 226;
const HIGHEST = 820;
const PRODUCTS = 234;

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
    const height = this._height(width); // of the matrices
    const largest = Math.min(LARGER, Math.max(LARGEST, Math.min(width / 26, height / 8)));
    const k = map.taps;
    const f = settings.filters;
    const most = room - 2 * (LEAST.image + LEAST.K);
    const fair = Math.max(LEAST.M, Math.min(SHARE * room, most, map.columns * largest));
    // Panels keep their least width even if their cells need less.
    const need = (cell) => Math.max(fair, map.columns * cell) + 2 * Math.max(LEAST.K, f * cell);
    const least = Math.min(Math.max(Math.min(0.2 * room, (most + 2 * LEAST.image - fair) / 2), LEAST.image), 230);
    const side = Math.max(least, Math.min(0.62 * height, (room - need(largest)) / 2));
    // The filter stands below the input: both together are as high as the matrices.
    const [above, below] = [Math.min(0.72 * height, height - 108), Math.min(0.3 * height, 150)];
    this.input.panel.fitPicture(side, above, Math.max(46, largest));
    this.output.panel.fitPicture(side, 0.72 * height, Math.max(46, largest));
    this.filters.panel.fitPicture(side, below, Math.max(26, 0.7 * largest));
    for (const views of [[this.input, this.filters], [this.output]]) {
      const widest = Math.max(LEAST.image, ...views.map((view) => view.panel.grid.width));
      views[0].element.parentElement.style.setProperty("--side", `${widest + 2 * MARGIN}px`);
    }
    // One width of cells for all three matrices, unless many filters then leave too little for M.
    const product = room - 2 * side;
    const cell = largestThat((c) => need(c) <= product, largest);
    const wideM = Math.max(fair, map.columns * cell);
    const cellM = Math.min(wideM / map.columns, largest);
    const rest = (product - wideM) / 2;
    // K and Y may be wider where their captions leave room.
    const cellK = Math.min(rest / f, Math.max(cell, Math.min(LEAST.K / f, largest)));
    const tall = tallness(map.rows, cellM, height, largest);
    this.M.panel.fit(cellM, tall);
    this.K.panel.fit(cellK, tallness(k, Math.max(cellM, 14), height, largest));
    this.Y.panel.fit(cellK, tall);
  }

  /**
   * Height of the matrices: on a page of its own so much that the window, its row, its column and
   * the products below are in view together; in a notebook what its width suggests.
   */
  _height(width) {
    const { options, root, tabs, transport } = this.explorer;
    if (!options.page) return Math.min(430, Math.max(330, 0.3 * width));
    const card = this.element.parentElement;
    const top = card.getBoundingClientRect().top - root.getBoundingClientRect().top;
    const others = transport.element.offsetHeight + tabs.element.firstElementChild.offsetHeight;
    // Captions, edges and legend; the card has no height while the strip is not seen.
    const around = 66 + Math.max(0, card.offsetHeight - this.element.offsetHeight);
    // In a lecture hall the picture comes first: the last products may be below the edge.
    const shown = tabs.element.offsetHeight ? PRODUCTS : 64;
    const below = root.dataset.present ? 0.7 * shown : shown;
    const room = window.innerHeight - top - others - around - below;
    return Math.min(HIGHEST, Math.max(LOWEST, room));
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
function tallness(rows, cellWidth, height, largest = LARGEST) {
  const equal = height / rows;
  return equal < 8 ? equal : Math.min(equal, 0.9 * largest, Math.max(9, cellWidth * 1.25));
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

// A matrix or an image on a canvas, of any size: only what is visible is drawn. The cells are
// drawn once (base); what is selected lies on a second canvas above (overlay), so that selecting
// costs little.

import { el, unique } from "./dom.js";
import { paintCells, paintNumbers, paintOver } from "./paint.js";
import { listen } from "./gestures.js";

/** Room around the cells, for outlines that run along the edge. */
export const MARGIN = 5;

/** Cells lower or narrower than this are enlarged where they are selected. */
const READABLE = 13;

/** Cells on two canvases, with zoom, and the keyboard pattern of a grid. */
export class Grid {
  /**
   * options: {label, pick(r, c), hover(r, c) or hover(null), edit(r, c), cursor() -> [r, c], say(r, c),
   * overlay(grid, context), decorate(grid, context), cells(grid, context) in place of numbers,
   * move(dr, dc, withShift) in place of what arrows do}
   */
  constructor(options) {
    this.options = options;
    this.base = el("canvas", { "aria-hidden": "true", class: "base" });
    this.cell = el("div", { role: "gridcell", id: unique("cell"), "aria-selected": "true" });
    this.overlay = el(
      "canvas",
      {
        class: "overlay",
        role: "grid",
        tabindex: "0",
        "aria-label": options.label,
        "aria-activedescendant": this.cell.id,
      },
      el("div", { role: "row" }, this.cell),
    );
    this.element = el("div", { class: "grid" }, this.base, this.overlay);
    this.source = { rows: 1, columns: 1, value: () => 0, largest: 1 };
    this.written = Infinity; // numbers that a film has written
    this.zoom = 1;
    this.x = this.y = 0; // what part of the cells is seen, in pixels
    this.width = this.height = 0;
    this.fitted = [1, 1];
    this.sharpness = null; // pixels per CSS pixel; of the screen, unless it is set
    this.stop = listen(this);
  }

  destroy() {
    this.stop();
  }

  /**
   * What is shown: {rows, columns, value(r, c), largest, pixel(r, c)?, line(r, columns) -> their
   * numbers?, cells: how many of them are worked out for a picture, at most?, place(r, c): how many are
   * written before this one?}.
   */
  show(source, palette) {
    const before = this.source;
    this.source = source;
    this.palette = palette;
    if (before.rows !== source.rows || before.columns !== source.columns)
      [this.zoom, this.x, this.y] = [1, 0, 0];
    this.overlay.setAttribute("aria-rowcount", source.rows);
    this.overlay.setAttribute("aria-colcount", source.columns);
  }

  /**
   * Size of a cell that makes everything fit; the box is as large as all cells, within the
   * bounds.
   */
  fit(cellWidth, cellHeight) {
    this.fitted = [cellWidth, cellHeight];
    const { rows, columns } = this.source;
    this.resize(Math.max(1, columns * cellWidth), Math.max(1, rows * cellHeight));
  }

  resize(width, height) {
    this.width = width;
    this.height = height;
    const { ratio } = this;
    for (const canvas of [this.base, this.overlay]) {
      canvas.width = Math.round((width + 2 * MARGIN) * ratio);
      canvas.height = Math.round((height + 2 * MARGIN) * ratio);
      canvas.style.width = `${width + 2 * MARGIN}px`;
      canvas.style.height = `${height + 2 * MARGIN}px`;
    }
    this._clampView();
  }

  get ratio() {
    return this.sharpness ?? (window.devicePixelRatio || 1);
  }

  /** Everything again, with so many pixels per CSS pixel (of the screen, if null). */
  sharpen(ratio) {
    this.sharpness = ratio;
    this.resize(this.width, this.height);
    this.redraw();
  }

  /** Width and height of a cell now: zooming makes oblong cells square before they grow on. */
  get size() {
    let [w, h] = this.fitted.map((side) => side * this.zoom);
    const [w0, h0] = this.fitted;
    if (w0 > 1.5 * h0) w = Math.max(w0, Math.min(w, 1.5 * h));
    else if (h0 > w0) h = Math.max(h0, Math.min(h, w));
    return [w, h];
  }

  get closest() {
    return Math.max(1, 44 / Math.min(...this.fitted));
  }

  /** Zoom by a factor around a point of the box. */
  zoomBy(factor, at = [this.width / 2, this.height / 2]) {
    const [w, h] = this.size;
    const [c, r] = [(this.x + at[0]) / w, (this.y + at[1]) / h];
    this.zoom = Math.min(Math.max(this.zoom * factor, 1), this.closest);
    if (this.zoom < 1.02) this.zoom = 1;
    const [w1, h1] = this.size;
    [this.x, this.y] = [c * w1 - at[0], r * h1 - at[1]];
    this._clampView();
    this.redraw();
  }

  /** Everything again. */
  reset() {
    [this.zoom, this.x, this.y] = [1, 0, 0];
    this.redraw();
  }

  panBy(dx, dy) {
    this.x -= dx;
    this.y -= dy;
    this._clampView();
    this.redraw();
  }

  /** Whether there is more than the box shows. */
  get cropped() {
    const [w, h] = this.size;
    return this.source.columns * w > this.width + 1 || this.source.rows * h > this.height + 1;
  }

  /** Bring a cell into view, if it is not. */
  reveal(r, c) {
    if (!this.cropped) return;
    const [w, h] = this.size;
    const before = [this.x, this.y];
    if (c !== null) this.x = Math.min(Math.max(this.x, (c + 1) * w - this.width), c * w);
    if (r !== null) this.y = Math.min(Math.max(this.y, (r + 1) * h - this.height), r * h);
    this._clampView();
    if (before[0] !== this.x || before[1] !== this.y) this.draw();
  }

  /** The cell at a point of the canvas, or null. */
  at(px, py) {
    const [w, h] = this.size;
    const c = Math.floor((px - MARGIN + this.x) / w);
    const r = Math.floor((py - MARGIN + this.y) / h);
    const { rows, columns } = this.source;
    if (
      px < MARGIN - 2 ||
      py < MARGIN - 2 ||
      px > this.width + MARGIN + 2 ||
      py > this.height + MARGIN + 2
    )
      return null;
    if (r > rows || c > columns) return null;
    return [Math.min(Math.max(r, 0), rows - 1), Math.min(Math.max(c, 0), columns - 1)];
  }

  /** Where cells from (r0, c0) to (r1, c1), both included, are on the canvas. */
  box(r0, c0, r1 = r0, c1 = c0) {
    const [w, h] = this.size;
    return {
      x: MARGIN + c0 * w - this.x,
      y: MARGIN + r0 * h - this.y,
      w: (c1 - c0 + 1) * w,
      h: (r1 - r0 + 1) * h,
    };
  }

  /** First and last visible row and column. */
  get visible() {
    const [w, h] = this.size;
    const { rows, columns } = this.source;
    return {
      r0: Math.max(0, Math.floor(this.y / h)),
      r1: Math.min(rows - 1, Math.ceil((this.y + this.height) / h) - 1),
      c0: Math.max(0, Math.floor(this.x / w)),
      c1: Math.min(columns - 1, Math.ceil((this.x + this.width) / w) - 1),
    };
  }

  redraw() {
    this.draw();
    this.light();
    this.options.viewed?.(this);
  }

  /** The cells. */
  draw() {
    const context = this._context(this.base);
    this._clip(context);
    (this.options.cells ?? paintCells)(this, context);
    this.options.decorate?.(this, context);
    if (!this.options.cells) paintNumbers(this, context);
    context.restore();
    context.strokeStyle = this.palette.line;
    context.lineWidth = 1;
    context.strokeRect(MARGIN - 0.5, MARGIN - 0.5, this.width + 1, this.height + 1);
    context.restore();
  }

  /** Whether a cell is not yet written; null where all are. */
  get empty() {
    const { written, source } = this;
    return written < Infinity ? (r, c) => source.place(r, c) >= written : null;
  }

  /** The colour of a cell. */
  ground(r, c) {
    const { value, largest } = this.source;
    return this.empty?.(r, c) ? this.palette.empty : this.palette.css(value(r, c), largest);
  }

  /** What is selected. */
  light() {
    const context = this._context(this.overlay);
    this.options.overlay?.(this, context);
    context.restore();
    const [r, c] = this.options.cursor();
    this.cell.setAttribute("aria-rowindex", r + 1);
    this.cell.setAttribute("aria-colindex", c + 1);
    this.cell.textContent = this.empty?.(r, c) ? "not yet written" : this.options.say(r, c);
  }

  /** An outline around cells: a halo, then the line; never smaller than can be seen. */
  outline(context, [r0, c0, r1, c1], colour, { width = 2, dash = [], least = 5 } = {}) {
    let { x, y, w, h } = this.box(r0, c0, r1, c1);
    if (w < least) [x, w] = [x + w / 2 - least / 2, least];
    if (h < least) [y, h] = [y + h / 2 - least / 2, least];
    context.save();
    context.beginPath();
    context.rect(
      MARGIN - width - 1,
      MARGIN - width - 1,
      this.width + 2 * width + 2,
      this.height + 2 * width + 2,
    );
    context.clip();
    context.lineJoin = "round";
    context.strokeStyle = this.palette.halo;
    context.lineWidth = width + 2.5;
    context.strokeRect(x, y, w, h);
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.setLineDash(dash);
    context.strokeRect(x, y, w, h);
    context.restore();
    return { x, y, w, h };
  }

  /** Tint cells; their numbers are written again above it. */
  tint(context, [r0, c0, r1 = r0, c1 = c0], colour, alpha = 0.2) {
    const { x, y, w, h } = this.box(r0, c0, r1, c1);
    context.save();
    this._clip(context, false);
    context.globalAlpha = alpha;
    context.fillStyle = colour;
    context.fillRect(x, y, Math.max(w, 1.5), Math.max(h, 1.5));
    context.globalAlpha = 1;
    paintOver(this, context, [r0, c0, r1, c1], { colour, alpha });
    context.restore();
  }

  /** A row too low to be seen, enlarged in its place, or outlined if it is not; returns its box. */
  lens(context, r, [c0, c1], colour, dash = []) {
    const [, h] = this.size;
    if (h >= READABLE) return this.outline(context, [r, c0, r, c1], colour, { dash });
    const { x, y, w } = this.box(r, c0, r, c1);
    const top = Math.min(
      Math.max(y + h / 2 - READABLE / 2, MARGIN - 1),
      this.height + MARGIN - READABLE + 1,
    );
    return this._enlarged(
      context,
      { x, y: top, w, h: READABLE },
      colour,
      dash,
      (c) => this.ground(r, c),
      "column",
      [c0, c1],
    );
  }

  /** The same for a column. */
  lensColumn(context, c, [r0, r1], colour, dash = []) {
    const [w] = this.size;
    if (w >= 9) return this.outline(context, [r0, c, r1, c], colour, { dash });
    const { x, y, h } = this.box(r0, c, r1, c);
    const left = Math.min(Math.max(x + w / 2 - 5, MARGIN - 1), this.width + MARGIN - 9);
    return this._enlarged(
      context,
      { x: left, y, w: 10, h },
      colour,
      dash,
      (r) => this.ground(r, c),
      "row",
      [r0, r1],
    );
  }

  _enlarged(context, box, colour, dash, ground, along, [from, to]) {
    const inside = { x: Math.max(box.x, MARGIN), y: Math.max(box.y, MARGIN - 1) };
    inside.w = Math.min(box.x + box.w, this.width + MARGIN) - inside.x;
    inside.h = Math.min(box.y + box.h, this.height + MARGIN + 1) - inside.y;
    context.save();
    context.shadowColor = "rgba(0,0,0,0.35)";
    context.shadowBlur = 5;
    context.fillStyle = this.palette.paper;
    context.fillRect(inside.x, inside.y, inside.w, inside.h);
    context.shadowBlur = 0;
    const [w, h] = this.size;
    const side = along === "column" ? w : h;
    const step = Math.max(1, Math.floor(0.7 / side));
    for (let i = from; i <= to; i += step) {
      const { x, y } = along === "column" ? this.box(0, i) : this.box(i, 0);
      context.fillStyle = ground(i);
      if (along === "column") context.fillRect(x, box.y, Math.max(side, 0.8) + 0.3, box.h);
      else context.fillRect(box.x, y, box.w, Math.max(side, 0.8) + 0.3);
    }
    context.strokeStyle = colour;
    context.lineWidth = 2;
    context.setLineDash(dash);
    context.strokeRect(inside.x, inside.y, inside.w, inside.h);
    context.restore();
    return inside;
  }

  _context(canvas) {
    const context = canvas.getContext("2d");
    const { ratio } = this;
    context.save();
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    return context;
  }

  _clip(context, save = true) {
    if (save) context.save();
    context.beginPath();
    context.rect(MARGIN, MARGIN, this.width, this.height);
    context.clip();
  }

  _clampView() {
    const [w, h] = this.size;
    this.x = Math.max(0, Math.min(this.x, this.source.columns * w - this.width));
    this.y = Math.max(0, Math.min(this.y, this.source.rows * h - this.height));
  }
}

// One matrix or image of the strip: its caption with name and shape, its grid, and what zooms it.

import { button, el, fill, unique } from "./dom.js";
import { Grid } from "./grid.js";

/** Caption, grid and zoom. */
export class Panel {
  /**
   * options: those of Grid, and {view, name, label, long?: what follows the name in the caption}; `explorer` hands out store, palette,
   * editing.
   */
  constructor(explorer, options) {
    this.explorer = explorer;
    this.options = options;
    this.grid = new Grid({ viewed: () => this._viewed(), ...options });
    const id = unique("caption");
    this.shape = el("span", { class: "shape" });
    this.name = el("span", { class: options.formula ? "name formula" : "name" }, options.name);
    const long = options.long && el("span", { class: "long" }, options.long);
    this.caption = el("h3", { class: "caption", id }, this.name, long, " ", this.shape);
    this.out = button("zoom-out", `${options.label}: smaller`, () => this.grid.zoomBy(1 / 1.6), {
      symbol: "minus",
    });
    this.whole = button("zoom-fit", `${options.label}: all of it`, () => this.grid.reset(), {
      symbol: "fit",
    });
    this.in = button("zoom-in", `${options.label}: larger`, () => this._closer(), {
      symbol: "plus",
    });
    this.zoom = el("div", { class: "zoom" }, this.out, this.whole, this.in);
    this.extra = el("div", { class: "extra" });
    this.element = el(
      "section",
      { class: `panel panel-${options.view}`, data: { view: options.view }, "aria-labelledby": id },
      this.caption,
      this.grid.element,
      this.zoom,
      this.extra,
    );
  }

  /** Take what is to be shown; `shape` is the text of the caption. */
  show(source, shape) {
    this.grid.show(source, this.explorer.palette);
    this.shape.textContent = shape;
  }

  /** Lay the cells out and draw them. */
  fit(cellWidth, cellHeight) {
    this.grid.fit(cellWidth, cellHeight);
    this.grid.redraw();
  }

  /** Square cells within a box, but for a long line of them, which would be too thin to be seen. */
  fitPicture(width, height, most = 46) {
    const { rows, columns } = this.grid.source;
    const [w, h] = [Math.min(width / columns, most), Math.min(height / rows, most)];
    const cell = Math.min(w, h);
    const seen = (count) => Math.max(cell, Math.min(24 / count, 20), Math.min(60 / count, 3));
    this.fit(Math.min(w, seen(columns)), Math.min(h, seen(rows)));
  }

  /** What is selected; all cells anew if the film has written more of them, or less. */
  light(written) {
    const { grid } = this;
    const other = written !== grid.written;
    grid.written = written;
    if (other) grid.draw();
    grid.light();
  }

  addExtra(...children) {
    fill(this.extra, ...children);
  }

  destroy() {
    this.grid.destroy();
  }

  /** Zoom towards what is selected, and keep it in view. */
  _closer() {
    const [r, c] = this.options.cursor();
    const { x, y, w, h } = this.grid.box(r, c);
    this.grid.zoomBy(1.6, [x + w / 2, y + h / 2]);
    this.grid.reveal(r, c);
    this.grid.light();
  }

  _viewed() {
    this.explorer.strip?.links.light();
    const [w, h] = this.grid.fitted;
    this.zoom.hidden = Math.min(w, h) >= 15;
    this.out.disabled = this.whole.disabled = this.grid.zoom === 1;
    this.grid.overlay.classList.toggle("movable", this.grid.cropped);
    this.in.disabled = this.grid.zoom >= this.grid.closest;
  }
}

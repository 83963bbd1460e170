// Thin ribbons between the panels: from the window to its row of M, from the row of Y to the
// output.

import { el } from "./dom.js";
import { lit } from "./lit.js";
import { drawFlights, flights, shareOf } from "./flight.js";

/** The canvas behind the panels of the strip. */
export class Links {
  constructor(explorer, strip) {
    this.explorer = explorer;
    this.strip = strip;
    this.element = el("canvas", { class: "links", "aria-hidden": "true" });
    this.calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  }

  /**
   * Let the numbers of the selected window fly to where they go, if there is room and time for
   * it.
   */
  fly() {
    if (this.explorer.narrow || this.calm.matches || lit(this.explorer.store)) return;
    cancelAnimationFrame(this.frame);
    this.light();
    const all = flights(this.strip, this, this.explorer.palette);
    const start = performance.now();
    const step = (now) => {
      const { playing, every } = this.explorer.transport;
      const share = shareOf(start, now, playing ? every : undefined, this.explorer.store.view.story);
      this.light();
      if (share >= 1) return;
      drawFlights(this.element.getContext("2d"), all, Math.max(0, share));
      this.frame = requestAnimationFrame(step);
    };
    this.frame = requestAnimationFrame(step);
  }

  destroy() {
    cancelAnimationFrame(this.frame);
  }

  fit() {
    this.element.hidden = this.explorer.narrow;
    this.places = null;
  }

  /**
   * How large the strip is and where its canvases are: measured once everything in it is drawn,
   * and not again before the next fit, as selecting must not make the browser lay out again.
   */
  _measure() {
    const { element } = this.strip;
    const ratio = window.devicePixelRatio || 1;
    this.element.width = Math.round(element.clientWidth * ratio);
    this.element.height = Math.round(element.clientHeight * ratio);
    const origin = element.getBoundingClientRect();
    this.places = new Map(
      [this.strip.input, this.strip.M, this.strip.Y, this.strip.output].map((view) => {
        const box = view.panel.grid.overlay.getBoundingClientRect();
        return [view, box.width ? [box.left - origin.left, box.top - origin.top] : null];
      }),
    );
  }

  light() {
    if (this.explorer.narrow) return;
    if (!this.places) this._measure();
    const { store, palette } = this.explorer;
    const context = this.element.getContext("2d");
    const ratio = window.devicePixelRatio || 1;
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, this.element.width, this.element.height);
    if (lit(store)) return;
    const { input, M, Y, output } = this.strip;
    const { p, f } = store.shown;
    if (this.sees(input, M)) {
      const from = this.place(input, ...input.window(p));
      const row = this.place(M, p, 0, p, M.panel.grid.source.columns - 1, 13);
      ribbon(
        context,
        [from.x + from.w, from.y, from.y + from.h],
        [row.x, row.y, row.y + row.h],
        palette.window,
      );
    }
    if (!this.sees(Y, output)) return;
    const made = this.place(Y, p, 0, p, Y.panel.grid.source.columns - 1, 13);
    const columns = output.panel.grid.source.columns;
    const pixel = this.place(
      output,
      Math.floor(p / columns),
      p % columns,
      Math.floor(p / columns),
      p % columns,
      8,
    );
    ribbon(
      context,
      [made.x + made.w, made.y, made.y + made.h],
      [pixel.x, pixel.y, pixel.y + pixel.h],
      palette.hue(f),
    );
  }

  /** Whether all of these views are on the page, as not all are in the story. */
  sees(...views) {
    return views.every((view) => this.places.get(view));
  }

  /** Cells of a view in the strip's own pixels, not outside their box. */
  place(view, r0, c0, r1, c1, least = 0) {
    const { grid } = view.panel;
    const [left, top] = this.places.get(view);
    const { x, y, w, h } = grid.box(r0, c0, r1, c1);
    const clamp = (value, most) => Math.min(Math.max(value, 0), most + 10);
    const [x0, x1] = [clamp(x, grid.width), clamp(x + w, grid.width)];
    let [y0, y1] = [clamp(y, grid.height), clamp(y + h, grid.height)];
    if (y1 - y0 < least) [y0, y1] = [(y0 + y1 - least) / 2, (y0 + y1 + least) / 2];
    return { x: left + x0, y: top + y0, w: x1 - x0, h: y1 - y0 };
  }
}

function ribbon(context, [x0, top0, bottom0], [x1, top1, bottom1], colour) {
  const middle = (x0 + x1) / 2;
  context.beginPath();
  context.moveTo(x0, top0);
  context.bezierCurveTo(middle, top0, middle, top1, x1, top1);
  context.lineTo(x1, bottom1);
  context.bezierCurveTo(middle, bottom1, middle, bottom0, x0, bottom0);
  context.closePath();
  context.fillStyle = colour;
  context.globalAlpha = 0.1;
  context.fill();
  context.globalAlpha = 0.55;
  context.strokeStyle = colour;
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(x0, top0);
  context.bezierCurveTo(middle, top0, middle, top1, x1, top1);
  context.moveTo(x0, bottom0);
  context.bezierCurveTo(middle, bottom0, middle, bottom1, x1, bottom1);
  context.stroke();
  context.globalAlpha = 1;
}

// The whole equation in a band at the top of a phone, while the picture itself is scrolled: the
// window, its row of M on the column of K, their number, and where it goes.

import { el } from "./dom.js";
import { FONT } from "./paint.js";
import { columnsOf } from "../model/numbers.js";
import { short } from "../model/words.js";

const HEIGHT = 76;
const EDGE = 8;

/** Numbers of the row that are drawn; of more, the first. */
const MOST = 64;

/** A band that sticks to the top where the page is one column. */
export class Pocket {
  constructor(explorer) {
    this.explorer = explorer;
    this.canvas = el("canvas", { "aria-hidden": "true" });
    this.element = el("div", { class: "pocket", hidden: true }, this.canvas);
    // It is there while the input itself is not.
    this.watch = new IntersectionObserver(([{ isIntersecting, boundingClientRect }]) => {
      this.passed = !isIntersecting && boundingClientRect.top < 0;
      this.light();
    });
    this.watch.observe(explorer.strip.input.element);
  }

  destroy() {
    this.watch.disconnect();
  }

  light() {
    const { explorer } = this;
    this.element.hidden = !(explorer.narrow && this.passed && explorer.options.page);
    if (this.element.hidden) return;
    const width = this.element.clientWidth;
    const ratio = window.devicePixelRatio || 1;
    [this.canvas.width, this.canvas.height] = [width * ratio, HEIGHT * ratio];
    this.canvas.style.height = `${HEIGHT}px`;
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    const { input, output } = explorer.strip;
    const side = HEIGHT - 2 * EDGE;
    picture(context, input.panel.grid, EDGE, side);
    picture(context, output.panel.grid, width - EDGE - side, side);
    this._product(context, 2 * EDGE + side, width - 4 * EDGE - 2 * side);
  }

  /** The row above the column, cell on cell, and the number that both make. */
  _product(context, left, width) {
    const { store, palette } = this.explorer;
    const { p, f } = store.shown;
    const { first, count } = columnsOf(store.map, f);
    const sum = `= ${short(store.value(p, f), 3)}`;
    context.font = `600 15px ${FONT}`;
    context.textBaseline = "middle";
    context.textAlign = "left";
    const room = context.measureText(sum).width + EDGE;
    context.fillStyle = palette.ink;
    context.fillText(sum, left + width - room + EDGE, HEIGHT / 2);
    const shown = Math.min(count, MOST);
    const side = Math.min((width - room) / shown, 24);
    const h = Math.min(22, Math.max(12, side));
    const lines = [
      [(t) => store.entry(p, first + t), store.largest("input"), palette.window],
      [(t) => store.weights[f * store.map.taps + t], store.largest("filters"), palette.hue(f)],
    ];
    for (const [at, [value, largest, edge]] of lines.entries()) {
      const y = HEIGHT / 2 + (at ? 3 : -3 - h);
      for (let t = 0; t < shown; t++) {
        const number = value(t);
        context.fillStyle = palette.css(number, largest);
        context.fillRect(left + t * side, y, side + 0.3, h);
        const text = short(number, 2);
        context.font = `11px ${FONT}`;
        if (context.measureText(text).width > side - 2) continue;
        context.fillStyle = palette.on(number, largest);
        context.textAlign = "center";
        context.fillText(text, left + (t + 0.5) * side, y + h / 2 + 0.5);
      }
      context.strokeStyle = edge;
      context.lineWidth = 2;
      context.strokeRect(left, y, shown * side, h);
    }
  }
}

/** A grid as it stands on the page, small. */
function picture(context, grid, left, side) {
  const scale = side / Math.max(grid.base.width, grid.base.height);
  const [w, h] = [grid.base.width * scale, grid.base.height * scale];
  const at = [left + (side - w) / 2, (HEIGHT - h) / 2, w, h];
  context.drawImage(grid.base, ...at);
  context.drawImage(grid.overlay, ...at);
}

// A pad to draw a digit on, by mouse, pen or finger: 28 x 28 cells under a soft brush.

import { button, el } from "./dom.js";
import { SIDE } from "../model/start.js";

const SCALE = 10;
const REACH = 1.7; // of the brush, in cells

/** The dialog with the pad. */
export class Pad {
  /** `use` is given the 784 grey values of a drawing, unless it is opened for another use. */
  constructor(use) {
    this.use = use;
    this.pixels = new Float64Array(SIDE * SIDE);
    this.canvas = el("canvas", {
      width: SIDE * SCALE,
      height: SIDE * SCALE,
      role: "img",
      "aria-label": "Pad: draw here with mouse, pen or finger",
    });
    const done = () => {
      this.element.close();
      if (this.pixels.some((value) => value > 0)) this.taken(this.pixels);
    };
    this.element = el(
      "dialog",
      { class: "pad", data: { view: "pad" }, "aria-label": "Draw a digit" },
      el("p", { class: "hint" }, "Draw with the mouse or a finger."),
      this.canvas,
      el(
        "div",
        { class: "row" },
        button("clear", "Clear the pad", () => this.clear(), { text: "Clear" }),
        button("cancel", "Cancel: close without using the drawing", () => this.element.close(), {
          text: "Cancel",
        }),
        el(
          "button",
          { type: "button", class: "primary", data: { action: "use" }, onclick: done },
          "Use it",
        ),
      ),
    );
    let last = null;
    const point = (event) => {
      const box = this.canvas.getBoundingClientRect();
      return [
        ((event.clientX - box.left) / box.width) * SIDE,
        ((event.clientY - box.top) / box.height) * SIDE,
      ];
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      this.canvas.setPointerCapture?.(event.pointerId);
      last = point(event);
      this._stroke(last, last);
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!last) return;
      const now = point(event);
      this._stroke(last, now);
      last = now;
    });
    for (const name of ["pointerup", "pointercancel"])
      this.canvas.addEventListener(name, () => {
        last = null;
      });
  }

  open(taken = this.use) {
    this.taken = taken;
    this.clear();
    this.element.showModal();
  }

  clear() {
    this.pixels.fill(0);
    this._draw();
  }

  /** Ink along a line: full in the middle of the brush, less towards its edge. */
  _stroke(from, to) {
    const steps = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) * 3));
    for (let s = 0; s <= steps; s++) {
      const x = from[0] + ((to[0] - from[0]) * s) / steps;
      const y = from[1] + ((to[1] - from[1]) * s) / steps;
      for (let i = Math.max(0, Math.floor(y - REACH)); i <= Math.min(SIDE - 1, y + REACH); i++) {
        for (let j = Math.max(0, Math.floor(x - REACH)); j <= Math.min(SIDE - 1, x + REACH); j++) {
          const away = Math.hypot(i + 0.5 - y, j + 0.5 - x);
          const ink = 255 * Math.min(1, Math.max(0, 1.55 * (1 - away / REACH)));
          const at = i * SIDE + j;
          this.pixels[at] = Math.max(this.pixels[at], Math.round(ink));
        }
      }
    }
    this._draw();
  }

  _draw() {
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    const ink = getComputedStyle(this.canvas).color;
    context.fillStyle = ink;
    this.pixels.forEach((value, at) => {
      if (!value) return;
      context.globalAlpha = value / 255;
      context.fillRect((at % SIDE) * SCALE, Math.floor(at / SIDE) * SCALE, SCALE, SCALE);
    });
    context.globalAlpha = 1;
  }
}

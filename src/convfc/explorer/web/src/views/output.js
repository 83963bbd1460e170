// The output: one plane per filter. The filter's hue frames its plane; small planes stand below
// to choose.

import { el, fill, put, typed } from "./dom.js";
import { Panel } from "./panel.js";
import { lit } from "./lit.js";
import { place, short } from "../model/words.js";

/** Planes that are drawn small beside each other; more are chosen by number. */
const PLANES = 16;

/** The panel of the output. */
export class OutputView {
  constructor(explorer) {
    this.explorer = explorer;
    const { store } = explorer;
    const index = (r, c) => r * this.panel.grid.source.columns + c;
    this.panel = new Panel(explorer, {
      view: "output",
      name: "output",
      label: "Output",
      pick: (r, c) => store.select({ p: index(r, c) }),
      hover: (r, c) => store.preview(r === null ? null : { p: index(r, c) }),
      cursor: () => this._cell(store.shown.p),
      say: (r, c) =>
        `${place(store.map.position(index(r, c)))}: ${short(store.value(index(r, c), store.shown.f))}`,
      overlay: (grid, context) => this._overlay(grid, context),
    });
    this.element = this.panel.element;
    this.planes = el("div", { class: "planes", role: "group", "aria-label": "Filter shown" });
    this.panel.addExtra(this.planes);
  }

  update() {
    const { store } = this.explorer;
    this._showPlane(store.selection.f);
    this._showPlanes();
  }

  light() {
    const { store } = this.explorer;
    if (store.shown.f !== this.drawn) {
      this._showPlane(store.shown.f);
      this.panel.grid.draw();
    }
    if (!store.hover) this.panel.grid.reveal(...this._cell(store.shown.p));
    this.panel.light(store.written.output);
    for (const chip of this.planes.children) {
      if (chip.dataset.filter)
        chip.setAttribute("aria-pressed", String(Number(chip.dataset.filter) === store.shown.f));
    }
    if (this.number) put(this.number, store.shown.f);
  }

  _cell(p) {
    const { columns } = this.panel.grid.source;
    return [Math.floor(p / columns), p % columns];
  }

  _showPlane(f) {
    const { store, palette } = this.explorer;
    this.drawn = f;
    const size = store.outputSize;
    const [rows, columns] = size.length > 1 ? size : [1, size[0]];
    const plane = store.plane(f);
    this.panel.show(
      {
        rows,
        columns,
        largest: store.largest("output"),
        value: (r, c) => (plane ? plane[r * columns + c] : store.value(r * columns + c, f)),
        place: (r, c) => (r * columns + c) * store.settings.filters + f,
        ...(!plane && { cells: store.affordable }),
      },
      [...size, store.settings.filters].join(" × "),
    );
    this.panel.grid.element.style.setProperty("--hue", palette.hue(f));
  }

  _overlay(grid, context) {
    const { store, palette } = this.explorer;
    const { p, f } = store.shown;
    const { rows, columns } = grid.source;
    grid.outline(context, [0, 0, rows - 1, columns - 1], palette.hue(f), {
      width: 2,
      dash: palette.dash(f),
    });
    const reading = lit(store);
    if (reading?.outputs.length) {
      for (const at of reading.outputs) {
        const [r, c] = this._cell(at);
        grid.tint(context, [r, c], palette.lit, 0.3);
        grid.outline(context, [r, c, r, c], palette.lit, { width: 2 });
      }
      return;
    }
    const [r, c] = this._cell(p);
    grid.outline(context, [r, c, r, c], palette.window, { width: 2.5, least: 8 });
  }

  _showPlanes() {
    const { store } = this.explorer;
    const { filters } = store.settings;
    this.number = null;
    this.planes.hidden = filters === 1;
    if (filters === 1) return;
    if (filters <= PLANES && store.Y) {
      fill(
        this.planes,
        Array.from({ length: filters }, (_, f) => this._chip(f)),
      );
      return;
    }
    this.number = el("input", {
      type: "number",
      min: 0,
      max: filters - 1,
      name: "filter",
      "aria-label": "Filter shown",
    });
    typed(this.number, (f) => Number.isNaN(f) || store.select({ f }));
    fill(
      this.planes,
      el("span", { class: "hint" }, "filter"),
      this.number,
      el("span", { class: "hint" }, `of ${filters}`),
    );
  }

  /** A plane as a small picture, framed in its filter's hue. */
  _chip(f) {
    const { store, palette } = this.explorer;
    const { rows, columns } = this.panel.grid.source;
    const canvas = el("canvas", { width: columns, height: rows, "aria-hidden": "true" });
    const image = new ImageData(columns, rows);
    const pixels = new Uint32Array(image.data.buffer);
    const plane = store.plane(f);
    const largest = store.largest("output");
    for (let p = 0; p < pixels.length; p++) pixels[p] = palette.packed(plane[p], largest);
    canvas.getContext("2d").putImageData(image, 0, 0);
    const chip = el(
      "button",
      {
        type: "button",
        class: "plane",
        data: { filter: f },
        "aria-label": `Filter ${f}`,
        "aria-pressed": "false",
        onclick: () => store.select({ f }),
      },
      canvas,
      el("span", {}, String(f)),
    );
    chip.style.setProperty("--hue", palette.hue(f));
    return chip;
  }
}

// The whole layer as one matrix: y = T x. T is never held; its rows are asked for as they are
// drawn.

import { el, fill } from "./dom.js";
import { MARGIN } from "./grid.js";
import { Panel } from "./panel.js";
import { editCell } from "./editor.js";
import { lit } from "./lit.js";
import { groupOf } from "../model/numbers.js";
import { product } from "../model/geometry.js";
import { count, short } from "../model/words.js";

const SLIM = 22; // width of x and y
const HEIGHT = 330; // of T, at most

/** The tab “One big matrix”. */
export class BigMatrixView {
  constructor(explorer) {
    this.explorer = explorer;
    const { store } = explorer;
    const f = () => store.settings.filters;
    const row = (r) => ({ p: Math.floor(r / f()), f: r % f() });
    this.panel = new Panel(explorer, {
      view: "T",
      name: "T",
      formula: true,
      label: "T, the one big matrix",
      pick: (r, c) => store.select({ ...row(r), element: c }),
      hover: (r, c) => store.preview(r === null ? null : { ...row(r), element: c }),
      cursor: () => [store.shown.p * f() + store.shown.f, this._column()],
      say: (r, c) =>
        `row ${r}, column ${c}: ${short(store.bigEntry(Math.floor(r / f()), r % f(), c))}`,
      cells: (grid, context) => this._cells(grid, context),
      overlay: (grid, context) => this._overlay(grid, context),
    });
    this.x = new Panel(explorer, {
      view: "x",
      name: "x",
      formula: true,
      label: "x, the input as one column",
      pick: (r) => store.select({ element: r }),
      hover: (r) => store.preview(r === null ? null : { element: r }),
      edit: (r, c) =>
        editCell(store, this.x.grid, r, c, {
          kind: "input",
          index: r,
          label: `New number for element ${r} of x`,
        }),
      cursor: () => [this._column(), 0],
      say: (r) => `element ${r}: ${short(store.input[r])}`,
      overlay: (grid, context) => this._overlayX(grid, context),
    });
    this.y = new Panel(explorer, {
      view: "y",
      name: "y",
      formula: true,
      label: "y, the output as one column",
      pick: (r) => store.select(row(r)),
      hover: (r) => store.preview(r === null ? null : row(r)),
      cursor: () => [store.shown.p * f() + store.shown.f, 0],
      say: (r) => `element ${r}: ${short(store.value(Math.floor(r / f()), r % f()))}`,
      overlay: (grid, context) => this._overlayY(grid, context),
    });
    this.words = el("p", { class: "hint" });
    const sign = (text) => el("span", { class: "sign", "aria-hidden": "true" }, text);
    this.element = el(
      "div",
      { class: "big" },
      el(
        "div",
        { class: "product" },
        this.y.element,
        sign("="),
        this.panel.element,
        sign("×"),
        this.x.element,
      ),
      this.words,
    );
  }

  update() {
    const { store } = this.explorer;
    const { filters } = store.settings;
    const rows = store.map.rows * filters;
    const columns = product(store.map.inputShape);
    this.panel.show(
      {
        rows,
        columns,
        largest: store.largest("filters"),
        value: (r, c) => store.bigEntry(Math.floor(r / filters), r % filters, c),
      },
      `${rows} × ${columns}`,
    );
    this.x.show(
      { rows: columns, columns: 1, largest: store.largest("input"), value: (r) => store.input[r] },
      `${columns}`,
    );
    this.y.show(
      {
        rows,
        columns: 1,
        largest: store.largest("output"),
        value: (r) => store.value(Math.floor(r / filters), r % filters),
        ...(!store.Y && { cells: store.affordable }),
      },
      `${rows}`,
    );
    this.fit();
  }

  /** T as large as there is room, in its own proportions as far as these can be shown. */
  fit() {
    const beside = this.explorer.narrow ? 172 : 250; // x, y and the signs
    const width = Math.max(120, (this.element.clientWidth || 600) - beside);
    const { rows, columns } = this.panel.grid.source;
    const cell = Math.min(width / columns, HEIGHT / rows, 26);
    const w = Math.min(width, Math.max(columns * cell, Math.min(26 * columns, 640)));
    const h = Math.min(HEIGHT, Math.max(rows * cell, Math.min(26 * rows, 110)));
    this.panel.fit(w / columns, h / rows);
    this.x.fit(SLIM, Math.min(26, HEIGHT / columns));
    this.y.fit(SLIM, h / rows);
  }

  light() {
    const { store } = this.explorer;
    for (const panel of [this.panel, this.x, this.y]) panel.grid.light();
    const { p, f } = store.shown;
    const nonzeros = new Set(store.map.reads(p).at).size * store.map.perGroup;
    const columns = this.panel.grid.source.columns;
    fill(
      this.words,
      `Row ${p * store.settings.filters + f} of T is the filter ${f} at output position ${p}: ${count(nonzeros, "entry", "entries")} that can differ from 0, of ${columns}. `,
      el(
        "span",
        {},
        "Every row holds the same weights, moved: the layer is a fully connected one whose weights are shared and mostly zero.",
      ),
    );
  }

  /** The element that is looked at, else the first one that the window reads. */
  _column() {
    const { store } = this.explorer;
    const { element, p, f } = store.shown;
    if (element !== null) return element;
    const { count: found, at } = store.map.reads(p);
    return found ? at[0] * store.settings.channels + groupOf(store.map, f) * store.map.perGroup : 0;
  }

  /** The entries of the visible rows; of more than there are pixels, every nth row and column. */
  _cells(grid, context) {
    const { store, palette } = this.explorer;
    const { filters } = store.settings;
    const { r0, r1, c0, c1 } = grid.visible;
    const { columns } = grid.source;
    const [w, h] = grid.size;
    const largest = store.largest("filters");
    const [across, wide] = parts(grid);
    const numbers = numbered(grid);
    context.font = `${Math.min(12, h * 0.6)}px sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (let at = r0; at <= r1; at += Math.max(1, 1 / h)) {
      const r = Math.floor(at);
      const line = store.bigBins(Math.floor(r / filters), r % filters, across);
      const [first, last] = [c0, c1 + 1].map((c) => Math.floor((c * across) / columns));
      const { y } = grid.box(r, 0);
      for (let i = first; i < Math.min(last + 1, across); i++) {
        const weight = line[i];
        if (Number.isNaN(weight)) continue;
        const x = grid.box(0, 0).x + i * wide;
        context.fillStyle = weight === 0 ? palette.line : palette.css(weight, largest);
        const gap = wide > 5 ? 1 : 0;
        context.fillRect(x, y, Math.max(wide - gap, 1), Math.max(h - (h > 5 ? 1 : 0), 1));
        if (!numbers) continue;
        context.fillStyle = weight === 0 ? palette.muted : palette.on(weight, largest);
        context.fillText(short(weight, 2), x + w / 2, y + h / 2);
      }
    }
  }

  _overlay(grid, context) {
    const { store, palette } = this.explorer;
    const { p, f, element } = store.shown;
    const { filters } = store.settings;
    const r = p * filters + f;
    const [, h] = grid.size;
    const reading = lit(store);
    if (element !== null) {
      const column = [0, element, grid.source.rows - 1, element];
      if (numbered(grid)) grid.outline(context, column, palette.ink, { width: 1.5 });
      else grid.tint(context, column, palette.ink, 0.16);
    }
    if (reading?.outputs.length) {
      for (const at of reading.outputs)
        grid.outline(context, [at * filters + f, element, at * filters + f, element], palette.lit, {
          width: 1.5,
        });
      return;
    }
    const high = Math.max(h, 9);
    const box = grid.box(r, 0, r, grid.source.columns - 1);
    const top = Math.min(Math.max(box.y + h / 2 - high / 2, MARGIN), grid.height + MARGIN - high);
    context.save();
    context.beginPath();
    context.rect(MARGIN, MARGIN, grid.width, grid.height);
    context.clip();
    if (h < 9) {
      context.fillStyle = palette.paper;
      context.fillRect(MARGIN, top, grid.width, high);
      const [across, wide] = parts(grid);
      store.bigBins(p, f, across).forEach((weight, i) => {
        if (Number.isNaN(weight)) return;
        const x = grid.box(0, 0).x + i * wide;
        context.fillStyle =
          weight === 0 ? palette.muted : palette.css(weight, store.largest("filters"));
        context.fillRect(x + wide / 2 - Math.max(wide, 2.5) / 2, top, Math.max(wide, 2.5), high);
      });
    }
    context.restore();
    context.strokeStyle = palette.window;
    context.lineWidth = 2;
    context.strokeRect(MARGIN - 1, top, grid.width + 2, high);
  }

  _overlayX(grid, context) {
    const { store, palette } = this.explorer;
    const { shown, map } = store;
    const readable = grid.size[1] >= 13;
    const { at } = lit(store) ? { at: [] } : map.reads(shown.p);
    const { channels } = store.settings;
    const first = groupOf(map, shown.f) * map.perGroup;
    // Elements of a pixel lie together: one tint for all channels of the group.
    for (const cell of new Set(at)) {
      const from = cell * channels + first;
      if (!readable) grid.tint(context, [from, 0, from + map.perGroup - 1, 0], palette.window, 0.6);
      else
        for (let d = 0; d < map.perGroup; d++)
          grid.outline(context, [from + d, 0, from + d, 0], palette.window, { width: 2 });
    }
    const { element } = shown;
    if (element !== null)
      grid.outline(context, [element, 0, element, 0], palette.ink, { width: 2 });
  }

  _overlayY(grid, context) {
    const { store, palette } = this.explorer;
    const { p, f } = store.shown;
    const { filters } = store.settings;
    const reading = lit(store);
    const rows = reading?.outputs.length ? reading.outputs : [p];
    for (const at of rows)
      grid.outline(
        context,
        [at * filters + f, 0, at * filters + f, 0],
        reading ? palette.lit : palette.hue(f),
        { width: 2.5, least: 7 },
      );
  }
}

/** In how many parts a row is drawn, a column each or a pixel, and how wide they are. */
function parts({ source: { columns }, size: [w] }) {
  const across = Math.min(columns, Math.max(1, Math.floor(columns * w)));
  return [across, (columns * w) / across];
}

/** Whether the cells are large enough for their numbers, on which there is then no tint. */
function numbered({ size: [w, h] }) {
  return w >= 22 && h >= 13;
}

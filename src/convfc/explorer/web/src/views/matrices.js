// M, K and Y: the product in the middle of the strip. The row of the window in M, the column of the
// filter in K, and the number that both make in Y.

import { el } from "./dom.js";
import { Panel } from "./panel.js";
import { editCell } from "./editor.js";
import { columnsOf } from "../model/numbers.js";
import { short } from "../model/words.js";
import { lit } from "./lit.js";

/** The patch matrix. */
export class PatchView {
  constructor(explorer) {
    this.explorer = explorer;
    const { store } = explorer;
    this.panel = new Panel(explorer, {
      view: "M",
      name: "M",
      formula: true,
      long: ": patches",
      label: "M, the patch matrix",
      pick: (p, q) => store.select({ p, q }),
      hover: (p, q) => store.preview(p === null ? null : { p, q }),
      edit: (p, q) => editCell(store, this.panel.grid, p, q, this._target(p, q)),
      cursor: () => this.cursor(),
      say: (p, q) => `row ${p}, column ${q}: ${short(store.entry(p, q))}`,
      overlay: (grid, context) => this._overlay(grid, context),
    });
    this.element = this.panel.element;
  }

  update() {
    const { store } = this.explorer;
    const { rows, columns } = store.map;
    this.panel.show(
      {
        rows,
        columns,
        largest: store.largest("input"),
        value: (p, q) => store.entry(p, q),
        place: (p, q) => p * columns + q,
        ...(!store.M && { line: (p, columns) => store.entries(p, columns) }),
      },
      `${rows} × ${columns}`,
    );
  }

  light() {
    const { store } = this.explorer;
    if (!store.hover) this.panel.grid.reveal(store.shown.p, store.shown.q);
    this.panel.light(store.written.M);
  }

  cursor() {
    const { store } = this.explorer;
    const { p, f, q } = store.shown;
    return [p, q ?? columnsOf(store.map, f).first];
  }

  _overlay(grid, context) {
    const { store, palette } = this.explorer;
    const { p, q, f } = store.shown;
    const { first, count } = columnsOf(store.map, f);
    const reading = lit(store);
    if (count < store.map.columns) this._blocks(grid, context, first, count);
    if (reading?.column !== undefined) {
      const { column } = reading;
      grid.lensColumn(context, column, [0, store.map.rows - 1], palette.lit);
      return;
    }
    if (reading) {
      for (const [row, column] of reading.entries)
        grid.outline(context, [row, column, row, column], palette.lit, { width: 1.5, least: 4 });
      return;
    }
    const box = grid.lens(context, p, [first, first + count - 1], palette.window);
    grid.row = box;
    if (q !== null) {
      const cell = grid.box(p, q);
      const [, h] = grid.size;
      if (h >= 13) grid.outline(context, [p, q, p, q], palette.ink, { width: 2 });
      else marker(context, cell.x, box.y, Math.max(cell.w, 3), box.h, palette);
    }
  }

  /** Columns of other groups do not belong to the filter: they are dimmed. */
  _blocks(grid, context, first, count) {
    const { rows, columns } = this.explorer.store.map;
    if (first > 0)
      grid.tint(context, [0, 0, rows - 1, first - 1], this.explorer.palette.paper, 0.55);
    if (first + count < columns)
      grid.tint(
        context,
        [0, first + count, rows - 1, columns - 1],
        this.explorer.palette.paper,
        0.55,
      );
  }

  _target(p, q) {
    const { store } = this.explorer;
    const element = store.map.element(p, q);
    if (element >= 0)
      return {
        kind: "input",
        index: element,
        label: `New number for row ${p}, column ${q} of M: it is the input's`,
      };
    return {
      why: store.settings.transposed
        ? "This entry reads a zero that the transposed convolution puts between or around the elements. It cannot be edited."
        : "This entry reads the zero padding, which is not part of the input. It cannot be edited.",
    };
  }
}

/** The filter matrix. */
export class FilterMatrixView {
  constructor(explorer) {
    this.explorer = explorer;
    const { store } = explorer;
    const column = (t, f) => columnsOf(store.map, f).first + t;
    this.panel = new Panel(explorer, {
      view: "K",
      name: "K",
      formula: true,
      long: ": filters",
      label: "K, the filter matrix",
      pick: (t, f) => store.select({ f, q: column(t, f) }),
      hover: (t, f) => store.preview(t === null ? null : { f, q: column(t, f) }),
      edit: (t, f) =>
        editCell(store, this.panel.grid, t, f, {
          kind: "filters",
          index: f * store.map.taps + store.map.turn(t),
          label: `New weight for row ${t}, column ${f} of K`,
        }),
      cursor: () => this.cursor(),
      say: (t, f) => `row ${t}, column ${f}: ${short(store.K[t * store.settings.filters + f])}`,
      overlay: (grid, context) => this._overlay(grid, context),
    });
    this.element = this.panel.element;
  }

  update() {
    const { store } = this.explorer;
    const { filters } = store.settings;
    this.panel.show(
      {
        rows: store.map.taps,
        columns: filters,
        largest: store.largest("filters"),
        value: (t, f) => store.K[t * filters + f],
        place: (t, f) => f,
      },
      `${store.map.taps} × ${filters}${store.map.turned ? ", turned" : ""}`,
    );
  }

  light() {
    const { store } = this.explorer;
    if (!store.hover) this.panel.grid.reveal(this.cursor()[0], store.shown.f);
    this.panel.light(store.written.K);
  }

  cursor() {
    const { store } = this.explorer;
    const { f, q } = store.shown;
    return [q === null ? 0 : q - columnsOf(store.map, f).first, f];
  }

  _overlay(grid, context) {
    const { store, palette } = this.explorer;
    const { f, q } = store.shown;
    const box = grid.lensColumn(
      context,
      f,
      [0, store.map.taps - 1],
      palette.hue(f),
      palette.dash(f),
    );
    if (q === null) return;
    const [t] = this.cursor();
    const [w, h] = grid.size;
    if (w >= 9 && h >= 6) grid.outline(context, [t, f, t, f], palette.ink, { width: 2 });
    else marker(context, box.x, grid.box(t, f).y, box.w, Math.max(h, 3), palette);
  }
}

/** The product, before it is reshaped. */
export class ProductView {
  constructor(explorer) {
    this.explorer = explorer;
    const { store } = explorer;
    this.panel = new Panel(explorer, {
      view: "Y",
      name: "Y",
      formula: true,
      long: [" = ", el("var", {}, "M"), " ", el("var", {}, "K")],
      label: "Y, the product",
      pick: (p, f) => store.select({ p, f }),
      hover: (p, f) => store.preview(p === null ? null : { p, f }),
      cursor: () => [store.shown.p, store.shown.f],
      say: (p, f) => `row ${p}, column ${f}: ${short(store.value(p, f))}`,
      overlay: (grid, context) => this._overlay(grid, context),
    });
    this.element = this.panel.element;
  }

  update() {
    const { store } = this.explorer;
    const { filters } = store.settings;
    this.panel.show(
      {
        rows: store.map.rows,
        columns: filters,
        largest: store.largest("output"),
        value: (p, f) => store.value(p, f),
        place: (p, f) => p * filters + f,
        ...(!store.Y && { line: (p, filters) => store.outputRow(p, filters), cells: store.affordable }),
      },
      `${store.map.rows} × ${filters}`,
    );
  }

  light() {
    const { store } = this.explorer;
    if (!store.hover) this.panel.grid.reveal(store.shown.p, store.shown.f);
    this.panel.light(store.written.Y);
  }

  _overlay(grid, context) {
    const { store, palette } = this.explorer;
    const { p, f } = store.shown;
    const { filters } = store.settings;
    const reading = lit(store);
    if (reading?.outputs.length) {
      for (const row of reading.outputs)
        grid.outline(context, [row, f, row, f], palette.lit, { width: 1.5, least: 4 });
      return;
    }
    grid.outline(context, [0, f, store.map.rows - 1, f], palette.hue(f), {
      width: 1.5,
      dash: palette.dash(f),
    });
    const [w, h] = grid.size;
    if (filters > 1) {
      const row = grid.lens(context, p, [0, filters - 1], palette.window);
      if (h < 13) {
        const { x } = grid.box(p, f);
        context.strokeStyle = palette.hue(f);
        context.lineWidth = 2.5;
        context.strokeRect(x, row.y + 1.5, Math.max(w, 4), row.h - 3);
        return;
      }
    }
    grid.outline(context, [p, f, p, f], palette.hue(f), {
      width: 3,
      dash: palette.dash(f),
      least: 9,
    });
  }
}

/** A small frame in an enlarged row or column. */
function marker(context, x, y, w, h, palette) {
  context.strokeStyle = palette.ink;
  context.lineWidth = 2;
  context.strokeRect(x, y, w, h);
}

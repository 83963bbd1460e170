// The backward pass with its numbers: a gradient dY of the output, which one can change, and what follows
// for the filters, dK = Mᵀ dY, and for the input, dX = col2im(dY Kᵀ).

import { el, fill } from "./dom.js";
import { Panel } from "./panel.js";
import { KernelView } from "./filters.js";
import { Sum } from "./arithmetic.js";
import { editCell } from "./editor.js";
import { ravel, unravel } from "../model/indexmap.js";
import { columnsOf, groupOf } from "../model/numbers.js";
import { count, place, short } from "../model/words.js";

/** Terms that are written out; of more, the rest is one number. */
const WRITTEN = 200;

/** Products up to which those of one number of dX are looked through. */
const ADDED = 2_000_000;

/** Side of a picture and of its cells, at most. */
const SIDE = 230;
const CELL = 34;

const STARTS = {
  one: ["1 at the chosen output", "What one output asks of the weights and of the input"],
  ones: ["1 everywhere", "The gradient of the sum of all outputs"],
  zeros: ["your own", "0 but for the numbers that you type"],
};

/** The tab “Backward”. */
export class BackwardView {
  constructor(explorer) {
    this.explorer = explorer;
    const { store } = explorer;
    this.starts = el(
      "div",
      { class: "chips", role: "group", "aria-label": "dL/dY starts as" },
      Object.entries(STARTS).map(([start, [text, title]]) =>
        el(
          "button",
          {
            type: "button",
            class: "chip",
            title,
            data: { start },
            onclick: () => store.startGradient(start),
          },
          text,
        ),
      ),
    );
    const output = (r, c) => ravel(store.outputSize.length > 1 ? [r, c] : [c], store.outputSize);
    const where = (r, c) => place(store.map.position(output(r, c)));
    this.dY = new Panel(explorer, {
      view: "dY",
      name: "dY = ∂L/∂Y",
      label: "dY, the gradient of the output",
      pick: (r, c) => store.select({ p: output(r, c) }),
      hover: (r, c) => store.preview(r === null ? null : { p: output(r, c) }),
      edit: (r, c) =>
        editCell(store, this.dY.grid, r, c, {
          kind: "dY",
          index: output(r, c) * store.settings.filters + this.filter,
          label: `New number of dY at ${where(r, c)}, filter ${this.filter}`,
        }),
      cursor: () => twoOf(store.map.position(store.shown.p)),
      say: (r, c) => `${where(r, c)}: ${short(store.gradient(output(r, c), this.filter))}`,
      overlay: (grid, context) => this._overlayY(grid, context),
    });
    this.dK = new KernelView(explorer, {
      view: "dK",
      name: (f) => (f === undefined ? "dK = Mᵀ dY" : `dK = Mᵀ dY, filter ${f},`),
      label: "dK, the gradient of the filter",
      values: (f) => store.dK(f),
      largest: (values) => scale(values),
      of: "dK",
    });
    const element = (r, c) => {
      const at = store.settings.axes > 1 ? [r, c] : [c];
      return ravel([...at, this.channel], store.map.inputShape);
    };
    this.dX = new Panel(explorer, {
      view: "dX",
      name: "dX = col2im(dY Kᵀ)",
      label: "dX, the gradient of the input",
      pick: (r, c) => store.select({ element: element(r, c), of: "dX" }),
      hover: (r, c) => store.preview(r === null ? null : { element: element(r, c), of: "dX" }),
      cursor: () => this._cell() ?? [0, 0],
      say: (r, c) => {
        const at = place(store.settings.axes > 1 ? [r, c] : [c]);
        return `${at}: ${short(store.dX?.[element(r, c)] ?? NaN)}`;
      },
      overlay: (grid, context) => {
        const cell = this._cell();
        if (cell) grid.outline(context, [...cell, ...cell], explorer.palette.ink, { width: 2 });
      },
    });
    this.note = el("p", { class: "problem" });
    this.sum = new Sum(explorer, (how, term) => store[how](term?.look ?? null));
    this.element = el(
      "div",
      { data: { view: "backward" }, class: "backward" },
      el(
        "div",
        { class: "row" },
        el("span", { class: "hint" }, "The gradient of the output is"),
        this.starts,
      ),
      el("div", { class: "gradients" }, this.dY.element, this.dK.element, this.dX.element),
      this.note,
      this.sum.result,
      this.sum.terms,
      el(
        "p",
        { class: "hint" },
        "Double-click a number of dY to change it. Choose a number of dK or dX to see the products that make it.",
      ),
    );
  }

  update() {
    const { store } = this.explorer;
    for (const chip of this.starts.children)
      chip.setAttribute("aria-pressed", String(chip.dataset.start === store.dY.start));
    this._show();
  }

  light() {
    const { store } = this.explorer;
    const { p, f } = store.selection;
    const key = [p, store.dY.start === "one" && f, store.shown.f, this._channel()].join();
    if (key !== this.key) this._show(); // dY is another with another output
    this.dK.light();
    for (const panel of [this.dY, this.dX]) panel.grid.light();
    this._write();
  }

  /** The channel that the input shows; where it shows all, that of the element that is looked at. */
  _channel() {
    const { store, strip } = this.explorer;
    const { channel } = strip.input;
    if (channel !== "rgb") return channel;
    return (store.shown.element ?? 0) % store.settings.channels;
  }

  _show() {
    const { store } = this.explorer;
    const { p, f } = store.selection;
    this.said = null; // the same number may have another value now
    this.filter = store.shown.f;
    this.channel = this._channel();
    this.key = [p, store.dY.start === "one" && f, this.filter, this.channel].join();
    const { filters, channels, size } = store.settings;
    const [rows, columns] = twoOf(store.outputSize, 1);
    this._fit(
      this.dY,
      {
        rows,
        columns,
        largest: store.largestGradient,
        value: (r, c) => store.gradient(r * columns + c, this.filter),
      },
      filters > 1 ? `filter ${this.filter}` : "",
    );
    this.dK.update();
    this.dK.panel.fitPicture(SIDE, SIDE, CELL);
    const { dX } = store;
    const [high, wide] = twoOf(size, 1);
    this._fit(
      this.dX,
      {
        rows: high,
        columns: wide,
        largest: scale(dX),
        value: (i, j) => dX?.[(i * wide + j) * channels + this.channel] ?? NaN,
      },
      channels > 1 ? `channel ${this.channel}` : "",
    );
    this.note.hidden = Boolean(dX && store.dK(this.filter));
    this.note.textContent =
      "These gradients would take more products than the page computes at once. Choose “1 at the chosen output”, or a smaller layer.";
  }

  _fit(panel, source, shape) {
    panel.show(source, shape);
    panel.fitPicture(SIDE, SIDE, CELL);
  }

  /** The drawn cell of the element that is looked at. */
  _cell() {
    const { store } = this.explorer;
    const { element } = store.shown;
    const other = element !== null && element % store.settings.channels !== this.channel;
    return element === null || other ? null : twoOf(unravel(element, store.map.inputShape).slice(0, -1));
  }

  _overlayY(grid, context) {
    const { store, palette } = this.explorer;
    const { p } = store.shown;
    const { rows, columns } = grid.source;
    const frame = { width: 2, dash: palette.dash(this.filter) };
    grid.outline(context, [0, 0, rows - 1, columns - 1], palette.hue(this.filter), frame);
    const cell = twoOf(store.map.position(p));
    grid.outline(context, [...cell, ...cell], palette.window, { width: 2.5, least: 8 });
  }

  /** Spell out the number of dK or dX that is looked at. */
  _write() {
    const { store } = this.explorer;
    const { element, of, q, f } = store.shown;
    const said = [of, element, q, f].join();
    if (said === this.said) return;
    this.said = said;
    const spelled = of === "dX" && element !== null ? this._ofInput(element) : this._ofFilter();
    this.sum.result.hidden = this.sum.terms.hidden = !spelled;
    if (spelled) this.sum.write(spelled);
  }

  /** dK(t, f): column q of M times column f of dY. */
  _ofFilter() {
    const { store } = this.explorer;
    const { f } = store.shown;
    const dK = store.dK(f);
    if (!dK) return null;
    const { first } = columnsOf(store.map, f);
    const q = store.shown.q ?? first;
    const gradients = [...store.gradients(f)];
    const terms = gradients.slice(0, WRITTEN).map(([p, , w]) => {
      const x = store.entry(p, q);
      return { x, w, product: x * w, zero: store.map.element(p, q) < 0, look: { p, q, of: "dK" } };
    });
    const zeros = store.map.rows - gradients.length;
    return {
      what: [
        el("var", {}, "dK"),
        `(${q - first}, ${f}) = `,
        el("span", { class: "key window" }, `column ${q}`),
        " of ",
        el("var", {}, "M"),
        " · ",
        hued(this.explorer, f, `column ${f}`),
        " of ",
        el("var", {}, "dY"),
      ],
      sum: dK[q - first],
      hint: `${count(gradients.length, "product")}${zeros ? `; ${zeros} more where dY is 0` : ""}`,
      terms,
      rest: others(gradients.length, terms, dK[q - first]),
    };
  }

  /** dX of an element: what every entry of M that reads it hands back. */
  _ofInput(element) {
    const { store } = this.explorer;
    const { dX, map, settings } = store;
    if (!dX) return null;
    const perGroup = settings.filters / settings.groups;
    const group = Math.floor((element % settings.channels) / map.perGroup);
    const terms = [];
    let all = 0;
    const many = map.readerCounts(element).entries * perGroup > ADDED;
    const readers = many ? [] : store.dY.start !== "ones" ? this._readersOfSome(element) : map.readers(element);
    for (const [p, q] of readers) {
      for (let f = group * perGroup; f < (group + 1) * perGroup; f++) {
        const w = store.gradient(p, f);
        if (w === 0) continue;
        all += 1;
        if (all > WRITTEN) continue;
        const x = store.weights[f * map.taps + (q % map.taps)];
        terms.push({ x, w, product: x * w, look: { p, f, q, of: "dX" } });
      }
    }
    return {
      what: [
        el("var", {}, "dX"),
        `(${unravel(element, map.inputShape).join(", ")}) = the entries of `,
        el("var", {}, "dY Kᵀ"),
        " that read it, added up",
      ],
      sum: dX[element],
      hint: many
        ? "too many products to write out"
        : `${count(all, "product")} of a weight and a number of dY, where that is not 0`,
      terms,
      rest: many ? [] : others(all, terms, dX[element]),
    };
  }

  /** The entries that read an element at those outputs alone where dY is not 0. */
  _readersOfSome(element) {
    const { store } = this.explorer;
    const positions = new Set([...store.gradients()].map(([p]) => p));
    const found = [];
    for (const p of positions) {
      const { tap, at } = store.map.reads(p);
      const { channels } = store.settings;
      const { perGroup, spatial } = store.map;
      const d = element % channels;
      at.forEach((cell, n) => {
        if (cell !== Math.floor(element / channels)) return;
        found.push([p, (Math.floor(d / perGroup) * spatial + tap[n]) * perGroup + (d % perGroup)]);
      });
    }
    return found;
  }
}

function hued(explorer, f, text) {
  const key = el("span", { class: "key" }, text);
  key.style.setProperty("--hue", explorer.palette.hue(f));
  return key;
}

/** A line for the terms that are not written. */
function others(all, terms, sum) {
  if (all === terms.length) return [];
  const written = terms.reduce((total, { product }) => total + product, 0);
  return [`and ${all - terms.length} more, together ${short(sum - written)}`];
}

/** The end of a scale of colours. */
function scale(values) {
  return (values ?? []).reduce((most, value) => Math.max(most, Math.abs(value) || 0), 0) || 1;
}

/** One index per axis as row and column. */
function twoOf(index, missing = 0) {
  return index.length > 1 ? index : [missing, index[0]];
}

// The filters as what they are before they are stretched: small windows of weights, one for each
// channel of a group, beside each other.

import { el, fill, put, typed } from "./dom.js";
import { Panel } from "./panel.js";
import { editCell } from "./editor.js";
import { columnsOf } from "../model/numbers.js";
import { short } from "../model/words.js";

/** Channels that are drawn beside each other; of more, the one of the selection. */
const BESIDE = 4;

/** What "turned" in a caption means. */
const TURNED =
  "Turned by 180°, in the order in which the window meets it; the layer has it the other way round.";

/** One filter, or what has its shape, as windows of numbers. */
export class KernelView {
  /**
   * options: {view, name(f?), label, values(f) -> its k numbers, or null, largest(values), edit(f, t), of}; taps
   * are counted as the page shows them, `of` says what its numbers are to the selection.
   */
  constructor(explorer, options) {
    this.explorer = explorer;
    this.options = options;
    const { store } = explorer;
    const choose = (how, r, c) => store[how]({ q: this._column(r, c), of: options.of });
    this.panel = new Panel(explorer, {
      view: options.view,
      name: options.name(),
      label: options.label,
      pick: (r, c) => choose("select", r, c),
      hover: (r, c) => (r === null ? store.preview(null) : choose("preview", r, c)),
      edit: options.edit && ((r, c) => editCell(store, this.panel.grid, r, c, this._target(r, c))),
      cursor: () => this.cursor(),
      say: (r, c) => this._say(r, c),
      decorate: (grid, context) => this._decorate(grid, context),
      overlay: (grid, context) => this._overlay(grid, context),
    });
    this.element = this.panel.element;
  }

  update() {
    this._showFilter(this.explorer.store.selection.f);
  }

  light() {
    const { f } = this.explorer.store.shown;
    if (f !== this.drawn || this._channel() !== this.channel) {
      this._showFilter(f);
      this.panel.grid.draw();
    }
    this.panel.grid.light();
  }

  cursor() {
    const { store } = this.explorer;
    const { map, shown } = store;
    if (shown.q === null) return [0, 0];
    const { tap, channel } = map.tap(shown.q);
    const [i, j] = tap.length > 1 ? tap : [0, tap[0]];
    return [i, (this.beside > 1 ? channel * this.width : 0) + j];
  }

  _showFilter(f) {
    const { store } = this.explorer;
    const { kernel, filters } = store.settings;
    this.drawn = f;
    this.channel = this._channel();
    this.width = kernel.at(-1);
    this.beside = store.map.perGroup <= BESIDE ? store.map.perGroup : 1;
    const values = this.options.values(f);
    const turned = store.map.turned ? ", turned" : "";
    this.panel.show(
      {
        rows: kernel.length > 1 ? kernel[0] : 1,
        columns: this.width * this.beside,
        largest: this.options.largest(values),
        value: (r, c) => values?.[this._tap(r, c)] ?? NaN,
      },
      `${[...kernel, store.map.perGroup].join(" × ")}${turned}`,
    );
    this.panel.shape.title = turned && TURNED;
    this.panel.name.textContent = filters > 1 ? this.options.name(f) : this.options.name();
  }

  /** The channel shown where they are not all beside each other. */
  _channel() {
    const { map, shown } = this.explorer.store;
    return map.perGroup <= BESIDE || shown.q === null ? 0 : map.tap(shown.q).channel;
  }

  /** The tap of a drawn cell: which of the k weights it is. */
  _tap(r, c) {
    const { perGroup } = this.explorer.store.map;
    const channel = this.beside > 1 ? Math.floor(c / this.width) : this.channel;
    return (r * this.width + (c % this.width)) * perGroup + channel;
  }

  _target(r, c) {
    const { kind, index } = this.options.edit(this.drawn, this._tap(r, c));
    return { kind, index, label: `New weight of filter ${this.drawn}, ${this._say(r, c)}` };
  }

  _column(r, c) {
    const { store } = this.explorer;
    return columnsOf(store.map, store.shown.f).first + this._tap(r, c);
  }

  _say(r, c) {
    const of = this.beside > 1 ? `, channel ${Math.floor(c / this.width)}` : "";
    const value = this.panel.grid.source.value(r, c);
    return `row ${r}, column ${c % this.width}${of}: ${short(value)}`;
  }

  _decorate(grid, context) {
    context.strokeStyle = this.explorer.palette.muted;
    context.lineWidth = 2;
    for (let d = 1; d < this.beside; d++) {
      const { x, y, h } = grid.box(0, d * this.width, grid.source.rows - 1);
      context.beginPath();
      context.moveTo(x, y);
      context.lineTo(x, y + h);
      context.stroke();
    }
  }

  _overlay(grid, context) {
    const { store, palette } = this.explorer;
    const { f, q } = store.shown;
    const { rows, columns } = grid.source;
    grid.outline(context, [0, 0, rows - 1, columns - 1], palette.hue(f), {
      width: 2.5,
      dash: palette.dash(f),
    });
    if (q === null) return;
    const [r, c] = this.cursor();
    grid.outline(context, [r, c, r, c], palette.ink, { width: 2 });
  }
}

/** The panel of the filter that is looked at. */
export class FiltersView extends KernelView {
  constructor(explorer) {
    const { store } = explorer;
    super(explorer, {
      view: "filters",
      name: (f) => (f === undefined ? "filter" : `filter ${f}`),
      label: "Filter",
      values: (f) => store.weights.subarray(f * store.map.taps, (f + 1) * store.map.taps),
      largest: () => store.largest("filters"),
      edit: (f, t) => ({ kind: "filters", index: f * store.map.taps + store.map.turn(t) }),
    });
    this.chips = el("div", { class: "chips", role: "group", "aria-label": "Filter" });
    this.bias = el("input", { type: "number", step: "any", name: "bias-value" });
    this.biasRow = el("label", { class: "bias-row" }, el("span", {}, "bias"), this.bias);
    typed(this.bias, (value) => store.edit("bias", store.selection.f, value));
    this.panel.addExtra(this.chips, this.biasRow);
  }

  update() {
    super.update();
    this._showChips();
  }

  light() {
    super.light();
    const { store } = this.explorer;
    const { f } = store.shown;
    for (const chip of this.chips.children)
      chip.setAttribute("aria-pressed", String(Number(chip.dataset.filter) === f));
    this.biasRow.hidden = !store.settings.bias;
    if (store.settings.bias) put(this.bias, Number(store.bias[f].toPrecision(6)));
  }

  _showChips() {
    const { store, palette } = this.explorer;
    const { filters } = store.settings;
    this.chips.hidden = filters === 1 || filters > 8;
    if (this.chips.hidden) return fill(this.chips);
    fill(
      this.chips,
      Array.from({ length: filters }, (_, f) => {
        const chip = el(
          "button",
          {
            type: "button",
            class: "chip hued",
            data: { filter: f },
            "aria-label": `Filter ${f}`,
            "aria-pressed": "false",
            onclick: () => store.select({ f }),
          },
          String(f),
        );
        chip.style.setProperty("--hue", palette.hue(f));
        return chip;
      }),
    );
  }
}

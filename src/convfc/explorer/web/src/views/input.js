// The input: its numbers or its picture, with the padding around it (or, if transposed, the zeros
// between its elements) as the convolution reads it, and the window on it.

import { el, fill, put, typed } from "./dom.js";
import { packedRgb } from "./palette.js";
import { hatch } from "./paint.js";
import { Panel } from "./panel.js";
import { editCell } from "./editor.js";
import { lit } from "./lit.js";
import { count, short } from "../model/words.js";
import { ravel } from "../model/indexmap.js";
import { columnsOf } from "../model/numbers.js";

/** Cells in view up to which padding is hatched. */
const HATCHED = 200_000;

/** The panel of the input. */
export class InputView {
  constructor(explorer) {
    this.explorer = explorer;
    this.panel = new Panel(explorer, {
      view: "input",
      name: "input",
      label: "Input",
      pick: (r, c) => this._select("select", r, c),
      hover: (r, c) => (r === null ? explorer.store.preview(null) : this._select("preview", r, c)),
      move: (dr, dc, ofElement) => this._move(dr, dc, ofElement),
      edit: (r, c) => editCell(explorer.store, this.panel.grid, r, c, this._target(r, c)),
      cursor: () => this.cursor(),
      say: (r, c) => this._say(r, c),
      decorate: (grid, context) => this._decorate(grid, context),
      overlay: (grid, context) => this._overlay(grid, context),
    });
    this.element = this.panel.element;
    this.channels = el("div", { class: "chips", role: "group", "aria-label": "Channel shown" });
    this.fed = el("p", { class: "hint fed" });
    this.panel.addExtra(this.fed, this.channels);
  }

  get store() {
    return this.explorer.store;
  }

  /** The channel that is drawn, or "rgb": the one that was chosen, or, while one looks at it, a tap's. */
  get channel() {
    const { settings, view, hover } = this.store;
    if (view.channel === "rgb" && settings.channels === 3) return "rgb";
    const known = Number.isInteger(view.channel) && view.channel < settings.channels;
    if (!known && settings.channels === 3 && settings.size[0] > 16) return "rgb";
    return this._channelOf(hover?.q ?? null) ?? (known ? view.channel : 0);
  }

  /** The channel that a column of M reads. */
  _channelOf(q) {
    if (q === null) return null;
    const { group, channel } = this.store.map.tap(q);
    return group * this.store.map.perGroup + channel;
  }

  update() {
    const { store } = this;
    const { map, settings, input } = store;
    const axes = map.axes;
    this.rowSource = axes.length > 1 ? axes[0].source : Int32Array.of(0);
    this.columnSource = axes.at(-1).source;
    const { channel } = this;
    this.drawn = channel;
    const shown = channel === "rgb" ? 0 : channel;
    const source = {
      rows: this.rowSource.length,
      columns: this.columnSource.length,
      largest: store.largest("input"),
      value: (r, c) => this._value(r, c, shown),
      faint: (r, c) => !this._own(r, c),
    };
    if (channel === "rgb") source.pixel = this._rgb(input);
    this.panel.show(source, [...settings.size, settings.channels].join(" × "));
    this._showChannels(settings.channels, channel);
  }

  light() {
    if (this.channel !== this.drawn) {
      this.update();
      this.panel.grid.redraw();
    }
    this.panel.grid.light();
    const { shown, view, map } = this.store;
    if (this.fed.hidden === view.feeds) this.explorer.strip.links.fit(); // a line more, or less
    this.fed.hidden = !view.feeds;
    if (!view.feeds) return;
    if (shown.element === null) {
      this.fed.textContent = "choose an element to see what it feeds";
      return;
    }
    const { entries, outputs } = map.readerCounts(shown.element);
    this.fed.textContent = `read ${count(entries, "time")}, feeds ${count(outputs, "output")}`;
  }

  /** Follow the selection into its channel. */
  follow() {
    const { store } = this;
    const d = this._channelOf(store.selection.q);
    if (d === null || this.channel === "rgb" || d === this.channel) return;
    if (store.moment === null) return store.show({ channel: d });
    // A film draws the other panels anyway.
    store.view.channel = d;
    this.update();
    this.panel.grid.draw();
  }

  /** The drawn cell of the selected element, or of the first tap of the window. */
  cursor() {
    const { map, shown } = this.store;
    const q = shown.q ?? (shown.element === null ? columnsOf(map, shown.f).first : null);
    return q === null ? this._cellOf(shown.element) : this.cellRead(shown.p, q);
  }

  /** The window on the drawn cells: first and last row and column. */
  window(p) {
    const { map } = this.store;
    const position = map.position(p);
    const ends = map.axes.map((a, i) => {
      const from = position[i] * a.step;
      return [from, from + (a.taps - 1) * a.tapStep];
    });
    if (ends.length === 1) ends.unshift([0, 0]);
    return [ends[0][0], ends[1][0], ends[0][1], ends[1][1]];
  }

  // --- cells -------------------------------------------------------------------------------

  _element(r, c, d) {
    const { settings } = this.store;
    const [i, j] = [this.rowSource[r], this.columnSource[c]];
    if (i < 0 || j < 0) return -1;
    return (i * settings.size.at(-1) + j) * settings.channels + d;
  }

  _value(r, c, d) {
    const at = this._element(r, c, d);
    return at < 0 ? 0 : this.store.input[at];
  }

  /** Whether a drawn cell is an element of the input itself, not padding. */
  _own(r, c) {
    const { map, settings } = this.store;
    if (settings.transposed) return this._element(r, c, 0) >= 0;
    const axes = map.axes;
    const inside = (a, i) => i >= a.low && i < a.low + a.size;
    return inside(axes.at(-1), c) && (axes.length === 1 || inside(axes[0], r));
  }

  /** The drawn cell that entry (p, q) of M reads. */
  cellRead(p, q) {
    const { map } = this.store;
    const position = map.position(p);
    const { tap } = map.tap(q);
    const cells = map.axes.map((a, i) => position[i] * a.step + tap[i] * a.tapStep);
    return cells.length > 1 ? cells : [0, cells[0]];
  }

  _cellOf(element) {
    const { map, settings } = this.store;
    const flat = Math.floor(element / settings.channels);
    const width = settings.size.at(-1);
    const index = settings.axes > 1 ? [Math.floor(flat / width), flat % width] : [flat];
    const cells = map.axes.map((a, i) =>
      settings.transposed ? Math.max(0, a.source.indexOf(index[i])) : a.low + index[i],
    );
    return cells.length > 1 ? cells : [0, cells[0]];
  }

  // --- what happens ------------------------------------------------------------------------

  /** The window follows, unless the way back is shown: then the element alone is chosen. */
  _select(how, r, c) {
    const { store } = this;
    const element = this._element(r, c, this.channel === "rgb" ? 0 : this.channel);
    if (store.view.feeds) {
      if (element >= 0) store[how]({ element });
      return;
    }
    const cell = store.map.axes.length > 1 ? [r, c] : [c];
    const position = store.map.axes.map((a, i) => {
      const middle = ((a.taps - 1) / 2) * a.tapStep;
      return Math.min(Math.max(Math.round((cell[i] - middle) / a.step), 0), a.positions - 1);
    });
    const p = ravel(position, store.outputSize);
    store[how](element >= 0 ? { p, element } : { p, q: null });
  }

  /** Arrows move the window; with Shift, or where only elements are chosen, the element. */
  _move(dr, dc, ofElement) {
    const { store } = this;
    if (!ofElement && !store.view.feeds) {
      if (dr && store.map.axes.length > 1) store.step(dr, 0);
      if (dc) store.step(dc);
      return;
    }
    const { rows, columns } = this.panel.grid.source;
    const [di, dj] = [Math.sign(dr), Math.sign(dc)];
    let [r, c] = this.cursor();
    do [r, c] = [r + di, c + dj];
    while (r >= 0 && c >= 0 && r < rows && c < columns && this._element(r, c, 0) < 0);
    if (r >= 0 && c >= 0 && r < rows && c < columns) this._select("select", r, c);
  }

  _target(r, c) {
    const { settings } = this.store;
    const element = this._element(r, c, this.channel === "rgb" ? 0 : this.channel);
    if (element >= 0)
      return {
        kind: "input",
        index: element,
        label: `New number for the input, ${this._say(r, c)}`,
      };
    const why = settings.transposed
      ? "A zero between the elements: the stride of a transposed convolution puts it there. It cannot be edited; a smaller stride removes it."
      : "Zero padding is not part of the input, so it cannot be edited. Choose another padding mode, or less padding.";
    return { why };
  }

  _say(r, c) {
    const { map } = this.store;
    const own =
      map.axes.length > 1 ? [r - map.axes[0].low, c - map.axes[1].low] : [c - map.axes[0].low];
    const where = own.length > 1 ? `row ${own[0]}, column ${own[1]}` : `element ${own[0]}`;
    const value = this._value(r, c, this.channel === "rgb" ? 0 : this.channel);
    return `${where}: ${this._element(r, c, 0) < 0 ? "zero of the padding" : short(value)}`;
  }

  // --- drawing -----------------------------------------------------------------------------

  _rgb(input) {
    const range = this.store.range ?? spread(input);
    const scale = (v) => (v - range[0]) / (range[1] - range[0] || 1);
    const nothing = packedRgb(
      ...(this.explorer.palette.scheme === "dark" ? [0.13, 0.16, 0.2] : [0.94, 0.95, 0.96]),
    );
    return (r, c) => {
      const at = this._element(r, c, 0);
      return at < 0
        ? nothing
        : packedRgb(scale(input[at]), scale(input[at + 1]), scale(input[at + 2]));
    };
  }

  _decorate(grid, context) {
    const { r0, r1, c0, c1 } = grid.visible;
    if ((r1 - r0 + 1) * (c1 - c0 + 1) > HATCHED) return; // too small to be seen
    const cells = [];
    for (let r = r0; r <= r1; r++)
      for (let c = c0; c <= c1; c++) if (!this._own(r, c)) cells.push([r, c]);
    if (cells.length && cells.length < 4000) hatch(grid, context, cells);
  }

  _overlay(grid, context) {
    const { store } = this;
    const { shown, view, map } = store;
    const colour = this.explorer.palette.window;
    const box = this.window(shown.p);
    const faint = view.feeds && shown.element !== null;
    const [w, h] = grid.size;
    const dilated = map.axes.some((a) => Math.abs(a.tapStep) > 1);
    if (!faint) {
      if (!dilated) grid.tint(context, box, colour, 0.13);
      else for (const [r, c] of this._taps(shown.p)) grid.tint(context, [r, c], colour, 0.26);
    }
    if (dilated && Math.min(w, h) > 5 && !faint) {
      for (const [r, c] of this._taps(shown.p))
        grid.outline(context, [r, c, r, c], colour, { width: 1 });
    }
    grid.outline(context, box, colour, { width: faint ? 1 : 2.5, dash: faint ? [3, 3] : [] });
    if (shown.element !== null || shown.q !== null) {
      const [r, c] = this.cursor();
      grid.outline(context, [r, c, r, c], faint ? colour : this.explorer.palette.ink, { width: 2 });
    }
  }

  _taps(p) {
    const { map, settings } = this.store;
    const count = settings.kernel.reduce((a, b) => a * b, 1);
    return Array.from({ length: count }, (_, tap) => this.cellRead(p, tap * map.perGroup));
  }

  _showChannels(channels, channel) {
    this.channels.hidden = channels === 1;
    if (channels === 1) return;
    const choose = (value) => () => this.store.show({ channel: value });
    const chip = (value, text) =>
      el(
        "button",
        {
          type: "button",
          class: "chip",
          "aria-pressed": String(channel === value),
          "aria-label": `Channel ${text}`,
          data: { channel: value },
          onclick: choose(value),
        },
        text,
      );
    if (channels <= 8) {
      const numbers = Array.from({ length: channels }, (_, d) => chip(d, String(d)));
      fill(this.channels, channels === 3 ? chip("rgb", "RGB") : null, numbers);
      return;
    }
    const number = el("input", {
      type: "number",
      min: 0,
      max: channels - 1,
      name: "channel",
      "aria-label": "Channel shown",
    });
    put(number, channel);
    typed(number, (d) =>
      this.store.show({ channel: Math.min(Math.max(Math.trunc(d) || 0, 0), channels - 1) }),
    );
    fill(
      this.channels,
      el("span", { class: "hint" }, "channel"),
      number,
      el("span", { class: "hint" }, `of ${count(channels, "channel")}`),
    );
  }
}

function spread(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) [low, high] = [Math.min(low, value), Math.max(high, value)];
  return [low, high];
}

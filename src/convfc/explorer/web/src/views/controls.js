// The column of settings. What is wrong with a typed value is said beside the control, and the last
// valid settings stay on show.

import { button, check, el, fill, put, radioGroup, typed, unique } from "./dom.js";
import { MODES, PADDING, PER_AXIS, SINGLE, problems } from "../model/geometry.js";
import { PRESETS, stateOf } from "../model/presets.js";
import { Pictures } from "./pictures.js";

const FLAG_LABELS = {
  transposed: ["transposed", "The adjoint: spreads the input instead of sampling it"],
  flip: ["flip the filter", "The true convolution of Eq. (3); without it, correlation"],
  bias: ["bias", "One number per filter, added to every output"],
};

/** What rows and columns have alike while they are locked together. */
const LOCKED = ["kernel", "stride", "padding", "dilation", "outputPadding"];

/** The last number that a slider offers, but for the present one, which may be larger. */
const FARTHEST = { kernel: 11, stride: 8, padding: 8, dilation: 6, groups: 64, outputPadding: 7 };

/** Every setting with its control and its problems. */
export class Controls {
  constructor(explorer) {
    this.explorer = explorer;
    this.inputs = new Map(); // name -> [control, read from settings]
    this.notes = new Map(); // field -> where its problem is written
    this.sliders = []; // what brings each slider and its buttons up to date
    this.offered = {}; // field -> the numbers that its slider offers
    this.locked = true;
    this.pictures = new Pictures(explorer);
    // The arrow keys only move: to choose is to load another state, and to lose what was edited.
    this.presets = radioGroup(
      { class: "presets", "aria-label": "Start from" },
      PRESETS.map((preset) => this._start(preset.id, preset.paper, stateOf(preset), preset.text)),
    );
    if (explorer.options.own) this.offer(explorer.options.own);
    this.feeds = this._check(
      "feeds",
      "which outputs a pixel feeds",
      "Point at an input element: every entry of M that reads it and every output that it feeds light up",
      (on) => {
        explorer.store.show({ feeds: on });
        explorer.announce(); // what is fed, or no longer
      },
    );
    this.start = this._group("Start from", explorer.story.offer, this.presets);
    this.start.classList.add("start");
    this.lock = this._check(
      "lock",
      "rows = columns",
      "Kernel, stride, padding and dilation are alike on both axes",
      (on) => this._lock(on),
    );
    this.lock.row.dataset.of = "axes";
    this.main = this._group(
      "Window",
      this._perAxis("kernel"),
      this._perAxis("stride"),
      this._padding(),
      this._perAxis("dilation"),
      this._groups(),
      this.lock.row,
    );
    this.main.classList.add("main-settings");
    const others = [
      this._group(
        "Input",
        this._axes(),
        this._perAxis("size"),
        this._single("channels"),
        this.pictures.element,
      ),
      this._group("Filters", this._single("filters"), this._flag("flip"), this._flag("bias")),
      this._group(
        "Kind",
        this._mode(),
        this._flag("transposed"),
        this._perAxis("outputPadding"),
        this.feeds.row,
      ),
    ];
    this.more = el(
      "button",
      {
        type: "button",
        class: "more",
        data: { action: "more" },
        "aria-expanded": "false",
        onclick: () => this._showMore(this.more.getAttribute("aria-expanded") !== "true"),
      },
      "More settings",
    );
    this.others = el("div", { class: "others", id: unique("others") }, others);
    this.more.setAttribute("aria-controls", this.others.id);
    this.element = el(
      "aside",
      { class: "controls", data: { view: "controls" }, "aria-label": "Settings" },
      this.start,
      this.main,
      this.others,
    );
  }

  update() {
    const { store } = this.explorer;
    const { wanted } = store;
    // A state comes locked if it is alike on both axes, and what is not alike is never locked.
    if (this.given !== store.given) [this.given, this.locked] = [store.given, true];
    this.locked &&= alike(wanted);
    this.lock.control.checked = this.locked;
    for (const [control, value] of this.inputs.values()) {
      const now = value(wanted);
      if (control.type === "checkbox") control.checked = now;
      else if (!Number.isNaN(now) && now !== undefined) put(control, now);
    }
    this._hide(wanted.axes === 1);
    for (const slider of this.sliders) slider(wanted);
    this.feeds.control.checked = store.view.feeds;
    const ours = this.own && store.given.mark === (this.own.mark ?? null);
    const start = store.preset ?? (ours ? "own" : null);
    check(this.presets, (tile) => tile.dataset.preset === start);
    this._showProblems(store.problems);
    this.pictures.update();
  }

  /** Hide what does not apply: each part of a row says in `data-of` when it is there. */
  _hide(one) {
    const there = {
      axes: !one,
      unlocked: !this.locked,
      locked: this.locked && !one,
      sides: one || !this.locked,
      slider: one || this.locked,
    };
    for (const node of this.element.querySelectorAll("[data-of]"))
      node.hidden = !node.dataset.of.split(" ").every((word) => there[word]);
  }

  _showProblems(problems) {
    for (const [field, { note, controls }] of this.notes) {
      const own = problems.filter((problem) => problem.field === field);
      if (own.length)
        fill(
          note,
          own.map((problem) => el("span", {}, problem.message)),
        );
      else if (note.hasChildNodes()) fill(note);
      note.hidden = !own.length;
      for (const [axis, control] of controls) {
        const wrong = own.some(
          (problem) => problem.axis === undefined || axis === null || problem.axis === axis,
        );
        if (wrong) {
          control.setAttribute("aria-invalid", "true");
          control.setAttribute("aria-describedby", note.id);
        } else {
          control.removeAttribute("aria-invalid");
          control.removeAttribute("aria-describedby");
        }
      }
    }
  }

  /** Offer the layer that the page was made for as the first to start from. */
  offer(own) {
    this.own = own;
    const tile = this._start("own", "your layer", own);
    const before = this.presets.querySelector("[data-preset=own]");
    if (before) before.replaceWith(tile);
    else this.presets.prepend(tile);
  }

  /** A tile to start from. */
  _start(id, small, state, text = state.source) {
    return el(
      "button",
      {
        type: "button",
        class: "preset",
        data: { preset: id },
        title: text || null,
        onclick: () => this.explorer.start(state),
      },
      el("span", {}, state.title || "CONV layer"),
      small ? el("small", {}, small) : null,
    );
  }

  // --- parts -------------------------------------------------------------------------------

  _group(title, ...children) {
    return el("fieldset", {}, el("legend", {}, title), ...children);
  }

  _row(field, label, controls, extra = null) {
    const note = el("div", {
      class: "problem",
      id: unique("problem"),
      role: "alert",
      data: { problem: field },
    });
    note.hidden = true;
    this.notes.set(field, { note, controls });
    return el(
      "div",
      { class: "field" },
      el(
        "div",
        { class: "line" },
        label,
        el(
          "div",
          { class: "values" },
          controls.map(([axis, control]) => wrapped(axis, control)),
          extra,
        ),
      ),
      note,
    );
  }

  _number(name, label, { min, max }, read, write) {
    const control = el("input", {
      type: "number",
      name,
      id: unique(name),
      min,
      max,
      step: 1,
      inputmode: "numeric",
      "aria-label": label,
    });
    typed(control, write);
    control.addEventListener("blur", () => this.update());
    this.inputs.set(name, [control, read]);
    return control;
  }

  _single(field) {
    const { label, ...bounds } = SINGLE[field];
    const control = this._number(
      field,
      capital(label),
      bounds,
      (s) => s[field],
      (value) => this.explorer.store.set({ [field]: value }),
    );
    return this._row(field, el("label", { for: control.id }, label), [[null, control]]);
  }

  _perAxis(field) {
    const { label, ...bounds } = PER_AXIS[field];
    const lockable = LOCKED.includes(field);
    const controls = [0, 1].map((axis) => [
      axis,
      this._number(
        `${field}-${axis}`,
        `${capital(label)}, ${axis ? "columns" : "rows"}`,
        bounds,
        (s) => s[field][axis],
        (value) => {
          if (lockable && this.locked) return this._fill(field, value);
          const values = [...this.explorer.store.wanted[field]];
          values[axis] = value;
          this.explorer.store.set({ [field]: values });
        },
      ),
    ]);
    const row = this._row(field, el("label", { for: controls[0][1].id }, label), controls);
    if (!lockable) return row;
    controls[1][1].parentElement.dataset.of = "axes unlocked";
    return this._stepped(row, controls[0][1], field, label);
  }

  /** The number of groups: a slider from an ordinary layer to a depthwise one. */
  _groups() {
    const { label, ...bounds } = SINGLE.groups;
    const write = (value) => this._fill("groups", value);
    const control = this._number("groups", capital(label), bounds, (s) => s.groups, write);
    const row = this._row("groups", el("label", { for: control.id }, label), [[null, control]]);
    return this._stepped(row, control, "groups", label, null);
  }

  /** Padding on the four sides; one number for all of them while rows and columns are locked. */
  _padding() {
    const sides = [
      ["low", "before"],
      ["high", "after"],
    ];
    const names = [
      ["top", "bottom"],
      ["left", "right"],
    ];
    const write = (value) => this._fill("padding", value);
    const all = this._number("padding", "Padding, all sides", PADDING, (s) => s.padding[0][0], write);
    const controls = [0, 1].flatMap((axis) =>
      sides.map(([side, word], at) => {
        const control = this._number(
          `padding-${axis}-${side}`,
          `Padding, ${names[axis][at]}`,
          PADDING,
          (s) => s.padding[axis]?.[at],
          (value) => {
            const padding = structuredClone(this.explorer.store.wanted.padding);
            padding[axis][at] = value;
            this.explorer.store.set({ padding });
          },
        );
        control.title = `${names[axis][at]} (${word})`;
        return [axis, control];
      }),
    );
    const label = el("label", { for: all.id }, "padding");
    const row = this._row("padding", label, [[null, all], ...controls]);
    row.classList.add("four");
    all.parentElement.dataset.of = "locked";
    for (const [axis, { parentElement: span }] of controls)
      span.dataset.of = axis ? "axes sides" : "sides";
    const heads = el(
      "div",
      { class: "line heads", "aria-hidden": "true", data: { of: "axes sides" } },
      el("span", {}),
      el(
        "div",
        { class: "values" },
        names.flat().map((name) => el("span", {}, name)),
      ),
    );
    row.prepend(heads);
    return this._stepped(row, all, "padding", "padding", "locked");
  }

  /**
   * Buttons and a slider around a number; they offer what is a convolution, of any number of which
   * the page takes more. Keys have the number itself, so that Tab stops once.
   */
  _stepped(row, control, field, label, of = "slider") {
    const choices = (settings) => {
      const now = first(settings[field]);
      const from = Number(control.min);
      const all = Array.from({ length: FARTHEST[field] - from + 1 }, (_, i) => from + i);
      const sound = (n) => !problems({ ...settings, [field]: filled(settings[field], n) }).length;
      const offered = all.filter((n) => n === now || sound(n));
      return now > FARTHEST[field] ? [...offered, now] : offered;
    };
    const slide = el("input", { type: "range", class: "slide", min: 0, step: 1, tabindex: -1, "aria-hidden": "true" });
    const step = (by, word, symbol) =>
      button(`${field}-${word}`, `${capital(label)}: ${word}`, () => {
        const { settings } = this.explorer.store;
        const all = choices(settings);
        const next = all.indexOf(first(settings[field])) + by;
        if (next in all) this._fill(field, all[next]);
      }, { symbol });
    const [less, more] = [step(-1, "less", "minus"), step(1, "more", "plus")];
    for (const one of [less, more]) one.tabIndex = -1;
    slide.addEventListener("input", () => this._fill(field, this.offered[field][Number(slide.value)]));
    const values = control.closest(".values");
    control.parentElement.before(less);
    control.parentElement.after(more);
    values.prepend(slide);
    if (of) for (const node of [slide, less, more]) node.dataset.of = of;
    this.sliders.push((settings) => {
      const all = (this.offered[field] = choices(settings));
      const at = all.indexOf(first(settings[field]));
      slide.max = all.length - 1;
      slide.value = at;
      slide.disabled = all.length < 2;
      less.disabled = at <= 0;
      more.disabled = at >= all.length - 1;
    });
    return row;
  }

  /** Lock rows and columns: columns become what rows are, and the padding of all sides that of the top. */
  _lock(on) {
    const { store } = this.explorer;
    this.locked = on;
    if (!on || alike(store.wanted)) return this.update();
    store.set(Object.fromEntries(LOCKED.map((name) => [name, even(store.wanted[name])])));
  }

  /** Set a field to one number, on every axis and side. */
  _fill(field, value) {
    const { store } = this.explorer;
    store.set({ [field]: filled(store.wanted[field], value) });
  }

  _showMore(on) {
    this.more.setAttribute("aria-expanded", String(on));
    this.more.textContent = on ? "Fewer settings" : "More settings";
    this.explorer.root.classList.toggle("all", on);
  }

  _mode() {
    const control = this._select(
      "mode",
      MODES.map((mode) => [mode, mode]),
      (s) => s.mode,
      (value) => this.explorer.store.set({ mode: value }),
    );
    return this._row("mode", el("label", { for: control.id }, "filled with"), [[null, control]]);
  }

  _axes() {
    const control = this._select(
      "axes",
      [
        ["1", "one (signal)"],
        ["2", "two (image)"],
      ],
      (s) => s.axes,
      (value) => this.explorer.store.set({ axes: Number(value) }),
    );
    return this._row("axes", el("label", { for: control.id }, "axes"), [[null, control]]);
  }

  _select(name, options, read, write) {
    const control = el(
      "select",
      { name, id: unique(name) },
      options.map(([value, text]) => el("option", { value }, text)),
    );
    control.addEventListener("change", () => write(control.value));
    this.inputs.set(name, [control, read]);
    return control;
  }

  _flag(name) {
    const [label, title] = FLAG_LABELS[name];
    const { control, row } = this._check(name, label, title, (on) =>
      this.explorer.store.set({ [name]: on }),
    );
    this.inputs.set(name, [control, (s) => s[name]]);
    return row;
  }

  _check(name, label, title, write) {
    const control = el("input", { type: "checkbox", name, role: "switch", id: unique(name) });
    control.addEventListener("change", () => write(control.checked));
    return {
      control,
      row: el(
        "div",
        { class: "field check", title },
        el("label", { for: control.id }, label),
        control,
      ),
    };
  }
}

/** Whether rows and columns have the same window, with the same padding on all sides. */
function alike(settings) {
  return LOCKED.every((name) => JSON.stringify(settings[name]) === JSON.stringify(even(settings[name])));
}

/** One number in every place of what may be a list, of lists. */
function filled(old, n) {
  return Array.isArray(old) ? old.map((one) => filled(one, n)) : n;
}

/** The first number of what may be a list, of lists; and that number everywhere. */
function first(value) {
  return Array.isArray(value) ? first(value[0]) : value;
}

function even(value) {
  return filled(value, first(value));
}

function wrapped(axis, control) {
  return el("span", { data: axis === 1 ? { of: "axes" } : {} }, control);
}

function capital(text) {
  return text[0].toUpperCase() + text.slice(1);
}

// The column of settings. What is wrong with a typed value is said beside the control, and the last
// valid settings stay on show.

import { check, el, fill, put, radioGroup, typed, unique } from "./dom.js";
import { MODES, PADDING, PER_AXIS, SINGLE } from "../model/geometry.js";
import { PRESETS, stateOf } from "../model/presets.js";
import { Pictures } from "./pictures.js";

const FLAG_LABELS = {
  transposed: ["transposed", "The adjoint: spreads the input instead of sampling it"],
  flip: ["flip the filter", "The true convolution of Eq. (3); without it, correlation"],
  bias: ["bias", "One number per filter, added to every output"],
};

/** Every setting with its control and its problems. */
export class Controls {
  constructor(explorer) {
    this.explorer = explorer;
    this.inputs = new Map(); // name -> [control, read from settings]
    this.notes = new Map(); // field -> where its problem is written
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
    this.element = el(
      "aside",
      { class: "controls", data: { view: "controls" }, "aria-label": "Settings" },
      this.start,
      this._group(
        "Input",
        this._axes(),
        this._perAxis("size"),
        this._single("channels"),
        this.pictures.element,
      ),
      this._group(
        "Filters",
        this._single("filters"),
        this._perAxis("kernel"),
        this._flag("flip"),
        this._flag("bias"),
      ),
      this._group("Movement", this._perAxis("stride"), this._perAxis("dilation")),
      this._group("Padding", this._padding(), this._mode()),
      this._group(
        "Kind",
        this._single("groups"),
        this._flag("transposed"),
        this._perAxis("outputPadding"),
      ),
      this._group("Show", this.feeds.row),
    );
  }

  update() {
    const { store } = this.explorer;
    const { wanted } = store;
    for (const [control, value] of this.inputs.values()) {
      const now = value(wanted);
      if (control.type === "checkbox") control.checked = now;
      else if (!Number.isNaN(now) && now !== undefined) put(control, now);
    }
    for (const node of this.element.querySelectorAll("[data-axis='1']"))
      node.hidden = wanted.axes === 1;
    for (const node of this.element.querySelectorAll("[data-of=heads]"))
      node.hidden = wanted.axes === 1;
    this.feeds.control.checked = store.view.feeds;
    const ours = this.own && store.given.mark === (this.own.mark ?? null);
    const start = store.preset ?? (ours ? "own" : null);
    check(this.presets, (tile) => tile.dataset.preset === start);
    this._showProblems(store.problems);
    this.pictures.update();
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
    const controls = [0, 1].map((axis) => [
      axis,
      this._number(
        `${field}-${axis}`,
        `${capital(label)}, ${axis ? "columns" : "rows"}`,
        bounds,
        (s) => s[field][axis],
        (value) => {
          const values = [...this.explorer.store.wanted[field]];
          values[axis] = value;
          this.explorer.store.set({ [field]: values });
        },
      ),
    ]);
    return this._row(field, el("label", { for: controls[0][1].id }, label), controls);
  }

  _padding() {
    const sides = [
      ["low", "before"],
      ["high", "after"],
    ];
    const names = [
      ["top", "bottom"],
      ["left", "right"],
    ];
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
    const row = this._row("padding", el("span", {}, "amount"), controls);
    row.classList.add("four");
    const heads = el(
      "div",
      { class: "line heads", "aria-hidden": "true", data: { of: "heads" } },
      el("span", {}),
      el(
        "div",
        { class: "values" },
        names.flat().map((name) => el("span", {}, name)),
      ),
    );
    row.prepend(heads);
    return row;
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

function wrapped(axis, control) {
  return el("span", { data: axis === 1 ? { axis: "1" } : {} }, control);
}

function capital(text) {
  return text[0].toUpperCase() + text.slice(1);
}

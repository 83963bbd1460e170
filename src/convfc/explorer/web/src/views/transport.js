// Step, play and scrub over the output positions.

import { button, el, icon, fill } from "./dom.js";

const SPEEDS = { slow: 900, normal: 320, fast: 60 };

/** Milliseconds between positions while the window walks by itself. */
const WALK = 600;

/** Buttons, slider and speed over the output positions. */
export class Transport {
  constructor(explorer) {
    this.explorer = explorer;
    const { store } = explorer;
    const go = (p) => () => {
      this.pause();
      store.select({ p: p(store.selection.p) });
    };
    this.play = button("play", "Play", () => this.toggle(), { symbol: "play" });
    this.range = el("input", {
      type: "range",
      name: "position",
      min: "0",
      step: "1",
      "aria-label": "Output position",
    });
    this.range.addEventListener("input", () => {
      this.pause();
      store.select({ p: Number(this.range.value) });
    });
    this.words = el("output", { class: "where" });
    this.speed = el(
      "select",
      { name: "speed" },
      Object.keys(SPEEDS).map((name) => el("option", { value: name }, name)),
    );
    this.speed.value = "normal";
    this.speed.addEventListener("change", () => {
      if (this.timer) {
        this.pause();
        this.toggle();
      }
    });
    this.settings = button("settings", "Settings", () => explorer.openSheet(), { symbol: "sliders" });
    this.element = el(
      "div",
      {
        class: "card transport",
        data: { view: "transport" },
        role: "group",
        "aria-label": "Steps over the output",
      },
      el(
        "div",
        { class: "buttons" },
        button(
          "first",
          "First position",
          go(() => 0),
          { symbol: "first" },
        ),
        button(
          "back",
          "One position back",
          go((p) => p - 1),
          { symbol: "back" },
        ),
        this.play,
        button(
          "forward",
          "One position on",
          go((p) => p + 1),
          { symbol: "forward" },
        ),
        button(
          "last",
          "Last position",
          go(() => store.map.rows - 1),
          { symbol: "last" },
        ),
      ),
      this.range,
      this.words,
      el("label", { class: "speed" }, el("span", { class: "unseen" }, "Speed"), this.speed),
      el("span", { class: "scale", "aria-hidden": "true" }, "−", el("i", { class: "bar" }), "+"),
      this.settings,
    );
  }

  update() {
    const { store } = this.explorer;
    this.range.max = String(store.map.rows - 1);
    if (store.map.rows === 1) this.pause();
    this.light();
  }

  light() {
    const { store } = this.explorer;
    const { p } = store.selection;
    this.range.value = String(p);
    this.words.textContent = `${p + 1} of ${store.map.rows}`;
    this.range.setAttribute(
      "aria-valuetext",
      `output position ${store.map.position(p).join(", ")}`,
    );
    this.range.style.setProperty("--share", store.map.rows > 1 ? p / (store.map.rows - 1) : 0);
  }

  /** Start or stop; at the end it starts again from the beginning. */
  toggle() {
    if (this.timer) return this.pause();
    const { store } = this.explorer;
    if (store.selection.p === store.map.rows - 1) store.select({ p: 0 });
    this._run(SPEEDS[this.speed.value], () => this.pause());
  }

  /** Walk over all positions again and again, until anything is touched; never where motion is unwelcome. */
  walk() {
    if (window.matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    const { root, store } = this.explorer;
    const touches = ["pointerdown", "keydown", "wheel", "touchstart"];
    const stop = (event) => {
      for (const touch of touches) root.ownerDocument.removeEventListener(touch, stop, true);
      // The button itself pauses.
      if (!event.composedPath().includes(this.play)) this.pause();
    };
    for (const touch of touches)
      root.ownerDocument.addEventListener(touch, stop, { capture: true, passive: true });
    this._run(WALK, () => store.select({ p: 0 }));
  }

  _run(every, atEnd) {
    const { store } = this.explorer;
    this.every = every;
    this.timer = setInterval(() => {
      if (store.selection.p >= store.map.rows - 1) return atEnd();
      store.select({ p: store.selection.p + 1 });
    }, every);
    this._show("pause", "Pause");
  }

  pause() {
    if (!this.timer) return;
    clearInterval(this.timer);
    this.timer = null;
    this._show("play", "Play");
    this.explorer.announce(); // what was passed while it played was not said
    this.explorer.options.onChange?.("selection");
  }

  /** Whether positions pass too quickly for anything to fly. */
  get hurried() {
    return this.playing && this.speed.value === "fast";
  }

  get playing() {
    return Boolean(this.timer);
  }

  _show(symbol, label) {
    fill(this.play, icon(symbol));
    this.play.setAttribute("aria-label", label);
    this.play.title = label;
  }
}

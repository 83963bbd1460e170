// Step, play and scrub over the output positions.

import { button, el, icon, fill } from "./dom.js";

const SPEEDS = { slow: 900, normal: 320, fast: 60 };

/** Milliseconds between positions while the window walks by itself. */
const WALK = 600;

/** The buttons beside Play; each names where it goes, too. */
const NAMES = { first: "To the start", back: "One step back", forward: "One step on", last: "To the end" };

/** Buttons, slider and speed over the output positions; in the tab “Algorithm”, over its film. */
export class Transport {
  constructor(explorer) {
    this.explorer = explorer;
    const buttons = Object.entries(NAMES).map(([name, label]) => button(name, label, () => this.move(name), { symbol: name }));
    this.play = button("play", "Play", () => this.toggle(), { symbol: "play" });
    this.calm = window.matchMedia("(prefers-reduced-motion: reduce)");
    this.range = el("input", { type: "range", name: "position", min: "0", step: "1", "aria-label": "Position" });
    this.range.addEventListener("input", () => {
      this.pause();
      this.track.go(Number(this.range.value));
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
      { class: "card transport", data: { view: "transport" }, role: "group", "aria-label": "Step by step" },
      el("div", { class: "buttons" }, buttons.slice(0, 2), this.play, buttons.slice(2)),
      this.range,
      this.words,
      el("label", { class: "speed" }, el("span", { class: "unseen" }, "Speed"), this.speed),
      el("span", { class: "scale", "aria-hidden": "true" }, "−", el("i", { class: "bar" }), "+"),
      this.settings,
    );
  }

  /** What it runs over: where it is, its ends, one step from there, and how to go somewhere. */
  get track() {
    const { store } = this.explorer;
    if (store.view.tab === "algorithm") return this.explorer.tabs.views.algorithm.track;
    const { p } = store.selection;
    const { rows } = store.map;
    const say = (at) => `output position ${store.map.position(at).join(", ")}`;
    const go = (to) => store.select({ p: to });
    return { at: p, first: 0, back: p - 1, forward: p + 1, last: rows - 1, words: `${p + 1} of ${rows}`, say, go };
  }

  /** Go "first", "back", "forward" or "last". */
  move(to) {
    this.pause();
    const { track } = this;
    track.go(track[to]);
  }

  update() {
    const film = this.explorer.store.view.tab === "algorithm";
    if (film !== this.film || this.track.last === 0) this.pause();
    this.film = film;
    this.play.hidden = film && this.calm.matches; // who wants no motion has the steps
    this.light();
  }

  light() {
    const { at, last, words, say } = this.track;
    this.range.max = String(last);
    this.range.value = String(at);
    this.words.textContent = words;
    this.range.setAttribute("aria-valuetext", say(at));
    this.range.style.setProperty("--share", last > 0 ? at / last : 0);
  }

  /** Start or stop; at the end it starts again from the beginning. */
  toggle() {
    if (this.timer) return this.pause();
    const { at, first, last, go } = this.track;
    if (at >= last) go(first);
    this._run(SPEEDS[this.speed.value], () => this.pause());
  }

  /** Walk over all positions again and again, until anything is touched; never where motion is unwelcome. */
  walk() {
    if (this.calm.matches) return;
    const { root } = this.explorer;
    const touches = ["pointerdown", "keydown", "wheel", "touchstart"];
    const stop = (event) => {
      for (const touch of touches) root.ownerDocument.removeEventListener(touch, stop, true);
      // The button itself pauses.
      if (!event.composedPath().includes(this.play)) this.pause();
    };
    for (const touch of touches)
      root.ownerDocument.addEventListener(touch, stop, { capture: true, passive: true });
    this._run(WALK, () => this.track.go(this.track.first));
  }

  _run(every, atEnd) {
    this.every = every;
    this.timer = setInterval(() => {
      const { at, last, forward, go } = this.track;
      if (at >= last) return atEnd();
      go(forward);
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

  _show(symbol, name) {
    fill(this.play, icon(symbol));
    label(this.play, name);
  }
}

function label(element, name) {
  element.setAttribute("aria-label", name);
  element.title = name;
}

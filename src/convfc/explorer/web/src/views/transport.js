// Step, play and scrub over the output positions.

import { button, el, icon, fill } from "./dom.js";

const SPEEDS = { slow: 900, normal: 320, fast: 60 };

/** The buttons beside Play; each names where it goes, too. */
const NAMES = { first: "To the start", back: "One step back", forward: "One step on", last: "To the end" };

/** Buttons, slider and speed over the output positions; in the tab “Algorithm”, over its film. */
export class Transport {
  constructor(explorer) {
    this.explorer = explorer;
    const go = (to) => () => {
      this.pause();
      this.track.go(this.track[to]);
    };
    const buttons = Object.entries(NAMES).map(([name, label]) => button(name, label, go(name), { symbol: name }));
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
    this.element = el(
      "div",
      { class: "card transport", data: { view: "transport" }, role: "group", "aria-label": "Step by step" },
      el("div", { class: "buttons" }, buttons.slice(0, 2), this.play, buttons.slice(2)),
      this.range,
      this.words,
      el("label", { class: "speed" }, el("span", { class: "unseen" }, "Speed"), this.speed),
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
    if (this.track.at === this.track.last) this.track.go(0);
    this.timer = setInterval(() => {
      const { at, last, forward, go } = this.track;
      if (at >= last) return this.pause();
      go(forward);
    }, SPEEDS[this.speed.value]);
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

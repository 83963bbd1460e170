// "Convolution in nine pictures" beside the strip, in place of the settings: says what a chapter says, asks,
// checks what is typed or chosen, and goes on. What the chapters are is in model/story.js.

import { button, el, fill, icon, unique } from "./dom.js";
import { PRESETS, stateOf } from "../model/presets.js";
import { CHAPTERS, WORDS, chapterState, filled } from "../model/story.js";

/** Where keys have a meaning of their own. */
const BUSY = "canvas, input, select, textarea, pre, dialog, [role=radiogroup], [role=tablist]";

/** CSS pixels of a swipe. */
const SWIPE = 50;

/** The text column of the story, and the buttons that lead to it. */
export class Story {
  constructor(explorer) {
    this.explorer = explorer;
    this.at = 0; // the chapter that is shown; 0 if none is
    this.before = null; // what was there before the story
    this.passed = new Set();
    const open = () => this.open();
    this.offer = el("button", { type: "button", class: "primary offer", data: { action: "start-story" }, onclick: open }, WORDS.offer);
    this.button = button("story", WORDS.title, open, { symbol: "guide", text: WORDS.short });
    this.place = el("p", { class: "hint" });
    this.title = el("h2", { tabindex: "-1" });
    this.text = el("p");
    this.tasks = el("ol", { class: "tasks" });
    this.said = el("p", { class: "said", "aria-live": "polite" });
    this.dots = el(
      "div",
      { class: "row dots" },
      CHAPTERS.map((_, i) => el("button", { type: "button", class: "bare", onclick: () => this.go(i + 1) }, String(i + 1))),
    );
    this.back = button("story-back", WORDS.back, () => this.go(this.at - 1), { text: WORDS.back });
    this.next = el("button", { type: "button", class: "primary", data: { action: "story-next" }, onclick: () => this.go(this.at + 1) });
    this.element = el(
      "section",
      { class: "story", "aria-label": WORDS.title, data: { view: "story" } },
      el("div", { class: "row" }, this.place, button("story-leave", WORDS.leave, () => this.leave(), { symbol: "close" })),
      this.title,
      this.text,
      this.tasks,
      this.said,
      el("div", { class: "row steps" }, this.back, this.next),
      this.dots,
    );
    this.element.hidden = true;
    this._swipe();
    this.around = explorer.options.page ? document : explorer.root;
    this.listener = (event) => this._key(event);
    this.around.addEventListener("keydown", this.listener);
  }

  destroy() {
    this.around.removeEventListener("keydown", this.listener);
  }

  open() {
    const { store, options, transport } = this.explorer;
    transport.pause();
    this.explorer.openSheet(false);
    options.onLeave?.();
    const { activeElement } = this.element.getRootNode();
    this.before = { state: store.snapshot(), undone: [store.past, store.future], focus: activeElement };
    this.go(1);
    options.onArrive?.();
  }

  /** Show a chapter as it begins; after the last one the story is over. */
  go(n) {
    const { store, transport, options } = this.explorer;
    if (n > CHAPTERS.length) return this.leave();
    if (n < 1) return;
    transport.pause();
    store.load(chapterState(n));
    this.title.focus({ preventScroll: true });
    this.element.scrollTop = 0;
    if (options.page) scrollTo(0, 0);
  }

  /** Back to what was there before, or to where the page begins if the story was opened by its address. */
  leave() {
    const { before, explorer } = this;
    const { store, options } = explorer;
    if (!before) return explorer.start(options.own ?? stateOf(PRESETS[0]));
    explorer.transport.pause();
    options.onLeave?.();
    store.return(before.state);
    options.onArrive?.();
    before.focus?.focus();
  }

  /** Take the chapter that the store has come to; true if it is another one, with another layout. */
  follow() {
    const n = this.explorer.store.view.story ?? 0;
    if (n === this.at) return false;
    const { root, store } = this.explorer;
    if (!n && this.before) {
      [store.past, store.future] = this.before.undone; // however the story has ended
      this.before = null;
    }
    this.at = n;
    this.element.hidden = !n;
    this.target?.classList.remove("guided");
    this.target = null;
    root.classList.toggle("telling", n > 0);
    root.dataset.parts = n ? CHAPTERS[n - 1].parts.join(" ") : "";
    if (n) this._show(CHAPTERS[n - 1]);
    return true;
  }

  /** Where there is no M, its room goes to the pictures. */
  fit() {
    if (!this.at || this.explorer.narrow || this._chapter.parts.includes("M")) return;
    const { strip } = this.explorer;
    const side = this._chapter.parts.includes("arithmetic") ? 240 : 300;
    for (const { panel } of [strip.input, strip.filters, strip.output]) panel.fitPicture(side, side, side / 5);
    strip.links.fit();
  }

  /** Something has changed: it may be what was asked for. */
  look(kind) {
    const task = this.at && this._task;
    if (!task || task.number || ["hover", "view", "tab"].includes(kind)) return;
    const result = task.check(this.explorer.store);
    if (result === true || kind === "selection" || kind === "settings") this._judge(task, result);
  }

  // --- inside ---------------------------------------------------------------------------------------

  get _chapter() {
    return CHAPTERS[this.at - 1];
  }

  get _words() {
    return WORDS.chapters[this._chapter.id];
  }

  /** The task that is to be done, if one is left. */
  get _task() {
    return this._chapter.tasks[this.done];
  }

  _show({ frame }) {
    const { title, text } = this._words;
    const all = CHAPTERS.length;
    this.done = 0;
    this.place.textContent = filled(WORDS.place, { n: this.at, all });
    this.title.textContent = title;
    this.text.textContent = text;
    this.back.disabled = this.at === 1;
    this.next.textContent = this.at === all ? WORDS.last : WORDS.next;
    this.target = this.explorer.root.querySelector(`[data-view="${frame}"]`);
    this.target.classList.add("guided");
    this.lines = [];
    fill(this.tasks);
    this.said.textContent = "";
    this._ask();
    this._mark();
  }

  _mark() {
    [...this.dots.children].forEach((dot, i) => {
      const passed = this.passed.has(i + 1);
      const { title } = WORDS.chapters[CHAPTERS[i].id];
      dot.title = filled(WORDS.chapter, { n: i + 1, title });
      dot.setAttribute("aria-label", dot.title + (passed ? `, ${WORDS.passed}` : ""));
      dot.setAttribute("aria-pressed", String(i + 1 === this.at));
      dot.classList.toggle("passed", passed);
    });
  }

  /** Write the next task, with its field or its button. */
  _ask() {
    const task = this._task;
    if (!task) return;
    const { ask, button: text } = this._words.tasks[this.done];
    const { store } = this.explorer;
    const line = el("li", {}, el("span", {}, filled(ask, task.asks?.(store))));
    if (task.number) line.append(this._field(task));
    if (task.press) line.append(el("button", { type: "button", data: { action: "story-press" }, onclick: () => this._press(task) }, text));
    this.tasks.append(line);
  }

  _field(task) {
    const id = unique("answer");
    const field = el("input", { type: "number", step: "any", name: "answer", id, autocomplete: "off" });
    const onsubmit = (event) => {
      event.preventDefault();
      if (field.value !== "") this._judge(task, task.check(this.explorer.store, Number(field.value)));
    };
    const label = el("label", { class: "unseen", for: id }, WORDS.answer);
    return el("form", { class: "row", onsubmit }, label, field, el("button", { data: { action: "story-check" } }, WORDS.check));
  }

  _press(task) {
    const { store } = this.explorer;
    const state = task.press(store);
    store.load({ ...state, view: { tab: store.view.tab, story: this.at } });
    if (task.draws) this.explorer.controls.pictures.pad.open();
  }

  /** Tick a task that is done, or say what helps; `result` is what its check has said. */
  _judge(task, result) {
    const { store } = this.explorer;
    const words = this._words.tasks[this.done];
    if (result !== true) {
      if (result) this._say(result.wrong ? words.wrong : (words.hint ?? ""), result);
      return;
    }
    const line = this.tasks.lastElementChild;
    const inside = line.contains(line.getRootNode().activeElement);
    this.done += 1;
    if (task.reveals) store.reveal(task.reveals(store));
    if (task.after) store.select(task.after);
    this._say(words.done, task.says?.(store));
    line.classList.add("done");
    for (const part of line.querySelectorAll("form, button")) part.remove();
    line.prepend(icon("done"), el("span", { class: "unseen" }, `${WORDS.passed}: `));
    if (this._task) this._ask();
    else this.passed.add(this.at);
    this._mark();
    if (inside) (this.tasks.querySelector("input") ?? this.next).focus();
  }

  _say(text, values) {
    this.said.textContent = filled(text, values);
    this.element.scrollTop = this.element.scrollHeight; // on a phone there is little room
  }

  _key(event) {
    const { explorer } = this;
    const { key, target } = event;
    if (!this.at || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (key === "Escape" && target.name === "answer" && target.value) target.value = "";
    else if (key === "Escape" && !explorer.root.querySelector("dialog[open]")) return this.leave();
    const by = { ArrowLeft: -1, ArrowRight: 1 }[key];
    if (!by || target.closest?.(BUSY)) return;
    event.preventDefault();
    // Where the window is to be moved, the arrows move it.
    if (this._task && this._chapter.parts.includes("transport")) explorer.store.step(by);
    else this.go(this.at + by);
  }

  /** A finger on the text goes on or back. */
  _swipe() {
    let start = null;
    const touch = ({ changedTouches: [{ clientX, clientY }] }) => [clientX, clientY];
    this.element.addEventListener("touchstart", (event) => (start = touch(event)), { passive: true });
    this.element.addEventListener("touchend", (event) => {
      if (!start) return;
      const [x, y] = touch(event).map((to, i) => to - start[i]);
      start = null;
      if (Math.abs(x) > SWIPE && Math.abs(y) < Math.abs(x) / 2) this.go(this.at - Math.sign(x));
    });
  }
}

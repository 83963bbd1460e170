// The selected output spelled out: every product of the window with the filter, and their sum.

import { el, fill } from "./dom.js";
import { count, place, short } from "../model/words.js";

/** Terms that are written out; of more, the rest is one number. */
const WRITTEN = 400;

/** One number spelled out: what it is, its sum, and the products that make it. */
export class Sum {
  /** `look(how, term)` is called with "preview" or "select" and a term that was written; null ends it. */
  constructor(explorer, look) {
    this.explorer = explorer;
    this.result = el("p", { class: "result" });
    this.terms = el("div", { class: "sums" });
    const termOf = (event) => this.written[event.target.closest("li[data-term]")?.dataset.term];
    this.terms.addEventListener("pointerover", (event) => {
      const term = termOf(event);
      if (event.pointerType === "mouse" && term) look("preview", term);
    });
    this.terms.addEventListener("pointerleave", () => look("preview", null));
    this.terms.addEventListener("click", (event) => {
      const term = termOf(event);
      if (term) look("select", term);
    });
  }

  /**
   * {what, sum, hint, terms, rest, across, blocks}: `terms` are {x, w, product, zero?, block?}, `rest` lines
   * about what is not written, `across` how many terms stand in a line, if that means something, `blocks`
   * what is said above each of several lists of terms.
   */
  write({ what, sum, hint, terms, rest = [], across = null, blocks = [null] }) {
    this.written = terms;
    fill(
      this.result,
      el("span", { class: "what" }, what),
      el("strong", { class: "sum" }, `= ${short(sum, 6)}`),
      el("span", { class: "hint" }, hint),
    );
    const longest = terms.reduce(
      (most, { x, w }) => Math.max(most, short(x, 3).length + short(w, 3).length),
      0,
    );
    this.terms.style.setProperty("--across", across ?? (blocks.length > 1 ? 8 : "auto-fill"));
    const least = blocks.length > 1 ? 26 + longest * 7 : 46 + longest * 7.6;
    this.terms.style.setProperty("--wide", `${Math.max(72, least)}px`);
    this.terms.classList.toggle("blocks", blocks.length > 1);
    this.items = terms.map(item);
    const list = (block) =>
      el(
        "ol",
        { class: "terms", "aria-label": block === null ? "Products" : `Products, ${blocks[block]}` },
        this.items.filter((_, at) => block === null || terms[at].block === block),
      );
    fill(
      this.terms,
      blocks.length > 1
        ? blocks.map((title, block) => el("div", {}, el("p", {}, title), list(block)))
        : list(null),
      rest.map((line) => el("p", { class: "rest" }, line)),
    );
    // Where there is little room the list has its own scrolling, which the keyboard reaches.
    const { narrow, options } = this.explorer;
    const low = narrow || !options.page || (blocks.length > 1 && (across ?? 8) > 7);
    const region = { tabindex: "0", role: "region", "aria-label": "Products" };
    for (const [name, value] of Object.entries(region))
      this.terms.toggleAttribute(name, low) && this.terms.setAttribute(name, value);
  }

  /** Frame the term that passes. */
  mark(passes) {
    this.marked?.classList.remove("marked");
    this.marked = this.items[this.written.findIndex(passes)];
    this.marked?.classList.add("marked");
  }
}

function item({ x, w, product, zero }, at) {
  return el(
    "li",
    {
      data: { term: at },
      class: zero ? "zero" : product === 0 ? "nothing" : null,
      title: zero ? "a zero of the padding" : null,
    },
    el("span", { class: "x" }, short(x, 3)),
    el("span", { class: "by" }, "×"),
    el("span", { class: "w" }, short(w, 3)),
    el("span", { class: "product" }, short(product, 3)),
  );
}

/** The tab “Arithmetic”. */
export class ArithmeticView {
  constructor(explorer) {
    this.explorer = explorer;
    const { store } = explorer;
    this.sum = new Sum(explorer, (how, term) => store[how](term && { q: term.q }));
    this.element = el(
      "div",
      { data: { view: "arithmetic" }, class: "arithmetic" },
      this.sum.result,
      this.sum.terms,
    );
  }

  update() {
    this.key = "";
    this.light();
  }

  light() {
    const { p, f, q } = this.explorer.store.shown;
    const key = `${p} ${f}`;
    if (key !== this.key) {
      this.key = key;
      this._write(p, f);
    }
    this.sum.mark((term) => term.q === q);
  }

  _write(p, f) {
    const { store, palette } = this.explorer;
    const { terms, count: all, subtotals, rest, bias, sum } = store.arithmetic(p, f, WRITTEN);
    const filter = el("span", { class: "key" }, `column ${f}`);
    filter.style.setProperty("--hue", palette.hue(f));
    const { kernel } = store.settings;
    const { perGroup } = store.map;
    const wide = kernel.at(-1);
    // Blocks as the window is, a channel each, with what they add to the sum.
    const first = store.map.tap(terms[0].q).group * perGroup;
    const blocks = Array.from(subtotals, (part, d) => `${d ? "+ " : ""}channel ${first + d}: ${short(part)}`);
    const more = [];
    const left = perGroup - blocks.length;
    if (blocks.length > 1 && left)
      more.push(`+ ${count(left, "more channel")}: ${short(rest)}`);
    else if (all > terms.length)
      more.push(`and ${all - terms.length} more, together ${short(rest)}`);
    if (store.settings.bias) more.push(`${blocks.length > 1 ? "+ " : ""}bias ${short(bias)}`);
    if (blocks.length > 1) more.push(`= ${short(sum, 6)}`);
    this.sum.write({
      what: [
        el("var", {}, "Y"),
        `(${p}, ${f})`,
        " = ",
        el("span", { class: "key window" }, `row ${p}`),
        " of ",
        el("var", {}, "M"),
        " · ",
        filter,
        " of ",
        el("var", {}, "K"),
      ],
      sum,
      hint: `${count(all, "product")}${store.settings.bias ? `, and the bias ${short(bias)}` : ""}; it is the output at ${place(store.map.position(p))}, filter ${f}`,
      terms: terms.map((term) => ({ ...term, zero: term.element < 0, block: term.channel })),
      rest: more,
      blocks,
      across: wide <= 12 && (blocks.length > 1 || (kernel.length === 2 && wide <= 8)) ? wide : null,
    });
  }
}

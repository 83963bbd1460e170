// The selected output spelled out: every product of the window with the filter, and their sum.

import { el, fill } from "./dom.js";
import { place, short } from "../model/words.js";

/** Terms that are written out; of more, the rest is one number. */
const WRITTEN = 400;

/** The tab “Arithmetic”. */
export class ArithmeticView {
  constructor(explorer) {
    this.explorer = explorer;
    this.result = el("p", { class: "result" });
    this.terms = el("ol", { class: "terms", "aria-label": "Products" });
    this.element = el(
      "div",
      { data: { view: "arithmetic" }, class: "arithmetic" },
      this.result,
      this.terms,
    );
    const column = (event) => event.target.closest("li[data-q]")?.dataset.q;
    this.terms.addEventListener("pointerover", (event) => {
      const q = column(event);
      if (event.pointerType === "mouse" && q !== undefined)
        explorer.store.preview({ q: Number(q) });
    });
    this.terms.addEventListener("pointerleave", () => explorer.store.preview(null));
    this.terms.addEventListener("click", (event) => {
      const q = column(event);
      if (q !== undefined) explorer.store.select({ q: Number(q) });
    });
  }

  update() {
    this.key = "";
    this.light();
  }

  light() {
    const { store } = this.explorer;
    const { p, f, q } = store.shown;
    const key = `${p} ${f}`;
    if (key !== this.key) {
      this.key = key;
      this._write(p, f);
    }
    this.marked?.classList.remove("marked");
    this.marked = q === null ? null : this.terms.querySelector(`[data-q="${q}"]`);
    this.marked?.classList.add("marked");
  }

  _write(p, f) {
    const { store, palette } = this.explorer;
    const { terms, bias, sum } = store.arithmetic(p, f);
    const position = store.map.position(p);
    const variable = (text) => el("var", {}, text);
    const filter = el("span", { class: "key" }, `column ${f}`);
    filter.style.setProperty("--hue", palette.hue(f));
    fill(
      this.result,
      el(
        "span",
        { class: "what" },
        variable("Y"),
        `(${p}, ${f})`,
        " = ",
        el("span", { class: "key window" }, `row ${p}`),
        " of ",
        variable("M"),
        " · ",
        filter,
        " of ",
        variable("K"),
      ),
      el("strong", { class: "sum" }, `= ${short(sum, 6)}`),
      el(
        "span",
        { class: "hint" },
        `${terms.length} ${terms.length === 1 ? "product" : "products"}${store.settings.bias ? `, and the bias ${short(bias)}` : ""}; it is the output at ${place(position)}, filter ${f}`,
      ),
    );
    const { kernel } = store.settings;
    const square = store.map.perGroup === 1 && kernel.length === 2 && kernel[1] <= 8;
    this.terms.style.setProperty("--across", square ? kernel[1] : "auto-fill");
    const longest = terms.reduce(
      (most, { x, w }) => Math.max(most, short(x, 3).length + short(w, 3).length),
      0,
    );
    this.terms.style.setProperty("--wide", `${Math.max(72, 46 + longest * 7.6)}px`);
    const items = terms.slice(0, WRITTEN).map((term) => this._term(term));
    if (terms.length > WRITTEN) {
      const rest = terms.slice(WRITTEN).reduce((total, term) => total + term.product, 0);
      items.push(
        el("li", { class: "rest" }, `and ${terms.length - WRITTEN} more, together ${short(rest)}`),
      );
    }
    if (store.settings.bias) items.push(el("li", { class: "rest" }, `bias ${short(bias)}`));
    fill(this.terms, items);
  }

  _term({ q, x, w, product, element }) {
    return el(
      "li",
      {
        data: { q },
        class: element < 0 ? "zero" : product === 0 ? "nothing" : null,
        title: element < 0 ? "a zero of the padding" : null,
      },
      el("span", { class: "x" }, short(x, 3)),
      el("span", { class: "by" }, "×"),
      el("span", { class: "w" }, short(w, 3)),
      el("span", { class: "product" }, short(product, 3)),
    );
  }
}

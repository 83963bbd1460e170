// Five steps that tell the paper's story, each beside the part of the page that it is about.

import { button, el } from "./dom.js";
import { remember, remembered } from "./memory.js";

const SEEN = "guide-seen";
const STEPS = [
  {
    at: "input",
    title: "1  The input",
    text: "A filter looks at the input through a small window. Point at the input, or use the arrow keys: the window follows. Where it reaches past the edge it reads padding, drawn hatched.",
  },
  {
    at: "M",
    title: "2  Stretch",
    text: "Each window, row by row, becomes one row of the matrix M. All windows together are all rows: this is Algorithm 1 of the paper, known as im2col.",
  },
  {
    at: "K",
    title: "3  Multiply",
    text: "Each filter becomes one column of K. The row of a window times the column of a filter is one number: the same products and the same sum as the sliding window, so Y = M K.",
  },
  {
    at: "output",
    title: "4  Reshape",
    text: "Every column of Y, put back into rows and columns, is one plane of the output. Convolving and multiplying have given the same numbers.",
  },
  {
    at: "T",
    tab: "matrix",
    title: "5  One big matrix",
    text: "The whole layer is also a single matrix T for the flattened input: a fully connected layer whose rows hold the same few weights, moved, and zeros. That is the paper’s equivalence.",
  },
];

/** The card that walks through the steps. */
export class Guide {
  constructor(explorer) {
    this.explorer = explorer;
    this.step = null;
    this.title = el("h3", { tabindex: "-1" });
    this.text = el("p");
    this.dots = el(
      "span",
      { class: "dots", "aria-hidden": "true" },
      STEPS.map(() => el("i")),
    );
    this.back = button("guide-back", "Back one step", () => this._go(this.step - 1), {
      text: "Back",
    });
    this.next = el(
      "button",
      {
        type: "button",
        class: "primary",
        data: { action: "guide-next" },
        onclick: () => this._go(this.step + 1),
      },
      "Next",
    );
    this.element = el(
      "div",
      {
        class: "guide",
        role: "dialog",
        "aria-modal": "false",
        "aria-label": "Guide",
        data: { view: "guide" },
      },
      button("guide-close", "Close the guide", () => this.close(), { symbol: "close" }),
      this.title,
      this.text,
      el("div", { class: "row" }, this.dots, this.back, this.next),
    );
    this.element.hidden = true;
    this.element.addEventListener("focusin", (event) => {
      if (!this.element.contains(event.relatedTarget)) this.returnTo = event.relatedTarget;
    });
    // From anywhere, on a page of its own even where nothing has the focus. A cell's editor keeps its
    // Escape for itself; that of a dialog closes the dialog only.
    const around = explorer.options.page ? document : explorer.root;
    around.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.defaultPrevented || this.element.hidden) return;
      if (!explorer.root.querySelector("dialog[open]")) this.close();
    });
  }

  /** Open it by itself, on somebody's first visit only. */
  offer() {
    if (remembered(SEEN)) return;
    remember(SEEN, "1");
    this._go(0, false);
  }

  open() {
    this._go(0);
  }

  /** Close it; if it has the focus, that goes back to where it came from. */
  close() {
    const inside = this.element.contains(this.element.getRootNode().activeElement);
    this._mark(null);
    this.step = null;
    this.element.hidden = true;
    if (inside) this.returnTo?.focus();
  }

  _go(step, focus = true) {
    if (step >= STEPS.length) return this.close();
    const { at, tab, title, text } = STEPS[Math.max(0, step)];
    this.step = Math.max(0, step);
    if (tab) this.explorer.store.show({ tab });
    this.title.textContent = title;
    this.text.textContent = text;
    this.back.disabled = this.step === 0;
    this.next.textContent = this.step === STEPS.length - 1 ? "Done" : "Next";
    [...this.dots.children].forEach((dot, i) => dot.classList.toggle("on", i === this.step));
    this.element.hidden = false;
    this._mark(at);
    this._stand(focus);
    if (focus) this.title.focus({ preventScroll: true });
  }

  _mark(view) {
    this.target?.classList.remove("guided");
    this.target = view && this.explorer.root.querySelector(`[data-view="${view}"]`);
    this.target?.classList.add("guided");
  }

  /** Stand below the part that it is about, within the page. */
  _stand(scroll) {
    if (!this.target) return;
    const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (scroll)
      this.target.scrollIntoView({
        block: this.explorer.narrow ? "start" : "nearest",
        behavior: calm ? "auto" : "smooth",
      });
    if (this.explorer.narrow) {
      this.element.style.left = this.element.style.top = "";
      return;
    }
    const root = this.explorer.root.getBoundingClientRect();
    const box = this.target.getBoundingClientRect();
    const width = 330;
    const middle = box.left - root.left + box.width / 2;
    const left = Math.min(Math.max(middle - width / 2, 12), root.width - width - 12);
    this.element.style.left = `${left}px`;
    const below = box.bottom - root.top + 14;
    const over = box.top - root.top - this.element.offsetHeight - 14;
    this.element.style.top = `${STEPS[this.step].tab ? over : below}px`;
    this.element.style.setProperty("--point", `${middle - left}px`);
    this.element.classList.toggle("over", Boolean(STEPS[this.step].tab));
  }
}

// The present settings as a program, to copy.

import { button, el, fill, unique } from "./dom.js";
import { download } from "./export.js";
import { FEW, LANGUAGES, MANY, code, notebook, numbersIn } from "../model/code.js";

/** The tab “Code”. */
export class CodeView {
  constructor(explorer) {
    this.explorer = explorer;
    this.language = LANGUAGES[0].id;
    this.choices = el(
      "div",
      { class: "chips", role: "group", "aria-label": "Language" },
      LANGUAGES.map(({ id, title }) =>
        el(
          "button",
          {
            type: "button",
            class: "chip",
            data: { language: id },
            onclick: () => {
              this.language = id;
              this.update();
            },
          },
          title,
        ),
      ),
    );
    this.text = el("code");
    this.copy = button(
      "copy-code",
      "Copy the code",
      () => explorer.copy(this._code(), "The code is copied."),
      { symbol: "copy", text: "Copy" },
    );
    this.wanted = null; // with the page's numbers, without them, or as many as they are
    const id = unique("numbers");
    this.numbers = el("input", { type: "checkbox", role: "switch", name: "numbers", id });
    this.numbers.addEventListener("change", () => {
      this.wanted = this.numbers.checked;
      this.update();
    });
    this.element = el(
      "div",
      { data: { view: "code" }, class: "code" },
      el(
        "div",
        { class: "row" },
        this.choices,
        el("div", { class: "check" }, el("label", { for: id }, "with these numbers"), this.numbers),
        this.copy,
        button("notebook", "Save as notebook", () => this._save(), { text: "Save as notebook" }),
      ),
      el("pre", { tabindex: "0", role: "region", "aria-label": "Code" }, this.text),
    );
  }

  update() {
    for (const choice of this.choices.children)
      choice.setAttribute("aria-pressed", String(choice.dataset.language === this.language));
    const count = numbersIn(this.explorer.store);
    this.numbers.disabled = count > MANY;
    this.numbers.checked = count <= MANY && (this.wanted ?? count <= FEW);
    this.light(true);
  }

  /** The program checks the output that is selected. */
  light(anew = false) {
    const { p, f } = this.explorer.store.selection;
    const key = `${p} ${f}`;
    if (!anew && (key === this.key || !this.numbers.checked)) return;
    this.key = key;
    fill(this.text, ...coloured(this._code()));
  }

  _code() {
    const { store } = this.explorer;
    return code(store.settings, this.language, this.numbers.checked ? store : null);
  }

  _save() {
    const { explorer, language } = this;
    const about = { title: explorer.header.title.textContent, language, address: explorer.link };
    const text = notebook(this._code(), about);
    const name = `convfc-${explorer.store.preset ?? "convolution"}-${language}.ipynb`;
    download(new Blob([text], { type: "application/x-ipynb+json" }), name);
    explorer.say(`Saved as ${name}.`);
  }
}

/** Comments, strings and keywords as elements; the text itself is unchanged. */
function coloured(text) {
  const parts = text.split(/(#[^\n]*|"[^"\n]*"|\b(?:import|from|as|with|None|True|False)\b)/);
  return parts.map((part, i) =>
    i % 2 === 0
      ? part
      : el(
          "span",
          { class: part[0] === "#" ? "comment" : part[0] === '"' ? "string" : "keyword" },
          part,
        ),
  );
}

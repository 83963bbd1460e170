// The present settings as a program, to copy.

import { button, el, fill } from "./dom.js";
import { LANGUAGES, code } from "../model/code.js";

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
      () => explorer.copy(code(explorer.store.settings, this.language), "The code is copied."),
      { symbol: "copy", text: "Copy" },
    );
    this.element = el(
      "div",
      { data: { view: "code" }, class: "code" },
      el("div", { class: "row" }, this.choices, this.copy),
      el("pre", { tabindex: "0", role: "region", "aria-label": "Code" }, this.text),
    );
  }

  update() {
    for (const choice of this.choices.children)
      choice.setAttribute("aria-pressed", String(choice.dataset.language === this.language));
    fill(this.text, ...coloured(code(this.explorer.store.settings, this.language)));
  }

  light() {}
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

// The head of the page: what is shown, and what can be done with it.

import { button, el, fill } from "./dom.js";
import { PRESETS } from "../model/presets.js";

/** Ma & Lu: what the page shows is theirs. */
const PAPER = "https://arxiv.org/abs/1712.01252";

/** The title of what has none. */
const OWN = "A convolution of your own";

/** Title, text, and the buttons of the page. */
export class Header {
  constructor(explorer) {
    this.explorer = explorer;
    this.title = el("h2", { class: "title" });
    this.text = el("p", { class: "text" });
    this.note = el("p", { class: "note", role: "status" });
    this.note.hidden = true;
    this.theme = el(
      "select",
      { name: "theme" },
      ["auto", "light", "dark"].map((name) => el("option", { value: name }, name)),
    );
    this.theme.addEventListener("change", () => explorer.theme.choose(this.theme.value));
    this.restore = el("button", {
      type: "button",
      data: { action: "restore" },
      onclick: () => explorer.store.restore(),
    });
    this.undo = button("undo", "Undo (Ctrl+Z)", () => explorer.store.undo(), { symbol: "undo" });
    this.redo = button("redo", "Redo (Ctrl+Shift+Z)", () => explorer.store.redo(), {
      symbol: "redo",
    });
    this.actions = el(
      "div",
      { class: "actions" },
      this.undo,
      this.redo,
      explorer.story.button,
      explorer.options.page
        ? button("copy-link", "Copy a link to this view", () => explorer.copyLink(), {
            symbol: "link",
            text: "Link",
          })
        : null,
      explorer.options.page
        ? button("present", "Present: the picture alone, and larger (Esc ends it)", () => explorer.present(), {
            symbol: "screen",
            text: "Present",
          })
        : null,
      button("png", "Save the strip as PNG", () => explorer.save("png"), { text: "PNG" }),
      button("svg", "Save the strip as SVG", () => explorer.save("svg"), { text: "SVG" }),
      el("label", { class: "theme" }, el("span", { class: "unseen" }, "Theme"), this.theme),
    );
    this.element = el(
      "header",
      { class: "top" },
      el(
        "div",
        { class: "brand" },
        el(explorer.options.page ? "h1" : "span", { class: "logo" }, "convfc"),
        el(
          "span",
          {},
          "a convolution is a matrix product: ",
          el("a", { href: PAPER, target: "_blank", rel: "noopener" }, "the paper"),
          el("span", { class: "authors" }, " (Ma & Lu, 2017)"),
        ),
      ),
      this.actions,
    );
    this.intro = el("div", { class: "intro" }, this.title, this.text, this.restore, this.note);
  }

  update() {
    const { store } = this.explorer;
    const preset = PRESETS.find(({ id }) => id === store.preset);
    const given = store.given.kept.filters.source && "CONV layer";
    const title = store.title || preset?.title || given || "";
    const changed = Boolean(title) && store.changed;
    this.title.textContent = title ? `${title}${changed ? ", changed here" : ""}` : OWN;
    this.text.textContent = changed
      ? `Changed: ${store.changes.join("; ")}.`
      : store.source || preset?.text || "";
    this.restore.hidden = !changed;
    this.restore.textContent = `Back to ${preset ? `“${title}”` : title}`;
    this.undo.disabled = !store.canUndo;
    this.redo.disabled = !store.canRedo;
    this.theme.value = this.explorer.theme.choice;
  }

  /** Say something that went wrong or well, until it is said no more. */
  say(lines) {
    this.note.hidden = !lines.length;
    fill(
      this.note,
      lines.map((line) => el("span", {}, line)),
    );
  }
}

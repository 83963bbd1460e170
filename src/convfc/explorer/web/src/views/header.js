// The head of the page: what is shown, and what can be done with it.

import { button, el, fill } from "./dom.js";
import { complete } from "../model/geometry.js";
import { PRESETS } from "../model/presets.js";

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
    this.element = el(
      "header",
      { class: "top" },
      el(
        "div",
        { class: "brand" },
        el(explorer.options.page ? "h1" : "span", { class: "logo" }, "convfc"),
        el("span", {}, "a convolution is a matrix product"),
      ),
      el(
        "div",
        { class: "actions" },
        button("guide", "Guide in five steps", () => explorer.guide.open(), {
          symbol: "guide",
          text: "Guide",
        }),
        explorer.options.page
          ? button("copy-link", "Copy a link to this view", () => explorer.copyLink(), {
              symbol: "link",
              text: "Link",
            })
          : null,
        button("png", "Save the strip as PNG", () => explorer.save("png"), { text: "PNG" }),
        button("svg", "Save the strip as SVG", () => explorer.save("svg"), { text: "SVG" }),
        el("label", { class: "theme" }, el("span", { class: "unseen" }, "Theme"), this.theme),
      ),
    );
    this.intro = el("div", { class: "intro" }, this.title, this.text, this.note);
  }

  update() {
    const { store } = this.explorer;
    const preset = PRESETS.find(({ id }) => id === store.preset);
    const changed =
      preset && JSON.stringify(complete(preset.settings)) !== JSON.stringify(store.settings);
    if (changed) {
      this.title.textContent = "A convolution of your own";
      this.text.textContent = `Changed from “${preset.title}”.`;
    } else {
      this.title.textContent = store.title || preset?.title || "A convolution of your own";
      this.text.textContent = store.source || preset?.text || "";
    }
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

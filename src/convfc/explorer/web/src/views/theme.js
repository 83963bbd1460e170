// Light or dark: what the switch says, else JupyterLab's theme, else what the system prefers.

import { remembered, remember } from "./memory.js";

const KEY = "theme";

/** Keeps the scheme of a root, "light" or "dark". */
export class Theme {
  /** `changed(scheme)` is called at once and whenever the scheme is another. */
  constructor(root, changed) {
    this.root = root;
    this.changed = changed;
    this.choice = remembered(KEY) ?? "auto";
    this.media = window.matchMedia("(prefers-color-scheme: dark)");
    this.apply = this.apply.bind(this);
    this.media.addEventListener("change", this.apply);
    this.observer = new MutationObserver(this.apply);
    this.observer.observe(document.body, {
      attributes: true,
      attributeFilter: ["data-jp-theme-light"],
    });
    this.apply();
  }

  choose(choice) {
    this.choice = choice;
    remember(KEY, choice);
    this.apply();
  }

  apply() {
    const jupyter =
      this.root.closest("[data-jp-theme-light]")?.dataset.jpThemeLight ??
      document.body.dataset.jpThemeLight;
    const system =
      jupyter === undefined
        ? this.media.matches
          ? "dark"
          : "light"
        : jupyter === "false"
          ? "dark"
          : "light";
    const scheme = this.choice === "light" || this.choice === "dark" ? this.choice : system;
    if (scheme === this.scheme) return;
    this.scheme = scheme;
    this.root.dataset.scheme = scheme;
    this.changed(scheme);
  }

  destroy() {
    this.media.removeEventListener("change", this.apply);
    this.observer.disconnect();
  }
}

// The panel under the strip: tabs, of which only the open one is kept up to date.

import { el, unique } from "./dom.js";
import { TABS } from "../model/store.js";

const TITLES = {
  arithmetic: "Arithmetic",
  algorithm: "Algorithm",
  matrix: "One big matrix",
  backward: "Backward",
  train: "Train",
  code: "Code",
};

/** The tabs and their panels. */
export class Tabs {
  /** views: {arithmetic, algorithm, matrix, backward, train, code}, each {element, update(), light(), fit(width)?}. */
  constructor(explorer, views) {
    this.explorer = explorer;
    this.views = views;
    this.tabs = TABS.map((id) =>
      el(
        "button",
        {
          type: "button",
          role: "tab",
          id: unique(`tab-${id}`),
          data: { tab: id },
          onclick: () => explorer.store.show({ tab: id }),
          onkeydown: (event) => this._key(event),
        },
        TITLES[id],
      ),
    );
    this.panels = TABS.map((id, i) => {
      const panel = el(
        "div",
        {
          role: "tabpanel",
          id: unique(`panel-${id}`),
          "aria-labelledby": this.tabs[i].id,
          class: "tabpanel",
        },
        views[id].element,
      );
      this.tabs[i].setAttribute("aria-controls", panel.id);
      return panel;
    });
    this.element = el(
      "section",
      { class: "card tabs", "aria-label": "In detail" },
      el("div", { role: "tablist", "aria-label": "In detail" }, this.tabs),
      this.panels,
    );
  }

  get open() {
    return this.views[this.explorer.store.view.tab];
  }

  update() {
    const { tab } = this.explorer.store.view;
    TABS.forEach((id, i) => {
      this.tabs[i].setAttribute("aria-selected", String(id === tab));
      this.tabs[i].tabIndex = id === tab ? 0 : -1;
      this.panels[i].hidden = id !== tab;
    });
    this.open.update();
  }

  light() {
    this.open.light();
  }

  _key(event) {
    const at = this.tabs.indexOf(event.target);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: this.tabs.length - 1 }[
      event.key
    ];
    if (to === undefined) return;
    event.preventDefault();
    const next = (to + this.tabs.length) % this.tabs.length;
    this.explorer.store.show({ tab: TABS[next] });
    this.tabs[next].focus();
  }
}

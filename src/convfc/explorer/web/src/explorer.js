// The explorer: one store, the views around it, and when each of them is drawn again.

import { Store } from "./model/store.js";
import { PRESETS, stateOf } from "./model/presets.js";
import { toAddress } from "./model/address.js";
import { el } from "./views/dom.js";
import { palette } from "./views/palette.js";
import { Theme } from "./views/theme.js";
import { Header } from "./views/header.js";
import { Controls } from "./views/controls.js";
import { Strip } from "./views/strip.js";
import { Transport } from "./views/transport.js";
import { Tabs } from "./views/tabs.js";
import { ArithmeticView } from "./views/arithmetic.js";
import { IndexMapView } from "./views/indexmap.js";
import { BigMatrixView } from "./views/bigmatrix.js";
import { BackwardView } from "./views/backward.js";
import { TrainView } from "./views/train.js";
import { CodeView } from "./views/code.js";
import { Guide } from "./views/guide.js";
import { download, png, svg } from "./views/export.js";

/** Settings beside the strip, the strip as a row above them, all in one column. */
const LAYOUTS = ["wide", "middle", "narrow"];

/** Milliseconds to read a letter of what is said. */
const READING = 60;

/** Hosts that are the machine itself. */
const LOOPBACK = /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/;

/** What a selection, a look, or a change of view does not touch is not drawn again. */
const LIGHT = new Set(["selection", "hover", "training"]);

/** One explorer in an element: its store, its views, and the redrawing of them. */
export class Explorer {
  /**
   * options: {state, own: the state of the layer that it was made for, page: whether it is alone on a
   * page, onChange(kind), onLeave() and onArrive() around another start}.
   */
  constructor(element, options = {}) {
    this.options = options;
    this.store = new Store(options.state ?? stateOf(PRESETS.find(({ id }) => id === "experiment")));
    this.root = el("div", { class: "convfc-explorer", data: { page: options.page ? "1" : "" } });
    this.root.explorer = this;
    element.append(this.root);
    this.palette = palette("light");
    this.theme = new Theme(this.root, (scheme) => this._recolour(scheme));
    this._build();
    this.pending = null;
    this.stop = this.store.subscribe((kind) => this._changed(kind));
    this.resize = new ResizeObserver(() => this._resized());
    this.resize.observe(this.root);
    this.root.addEventListener("keydown", (event) => this._key(event));
    this._resized();
    this.ready = new Promise((resolve) => requestAnimationFrame(() => resolve(this)));
  }

  /** Load a preset, or another state to start from; the tab stays as it is. */
  start(state) {
    this.transport.pause();
    this.options.onLeave?.();
    this.store.load({ ...state, view: { tab: this.store.view.tab } });
    this.options.onArrive?.();
  }

  /** Draw the selection again, now; how many milliseconds it took. */
  redraw() {
    const start = performance.now();
    this._light();
    this.took = performance.now() - start;
    return this.took;
  }

  /** Put text on the clipboard and say so. */
  async copy(text, done) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      copyByHand(text, this.root); // without a secure context there is no clipboard
    }
    this.say(done);
  }

  copyLink() {
    const address = location.href.replace(/#.*$/, "") + toAddress(this.store);
    const own = location.protocol === "file:" || LOOPBACK.test(location.hostname);
    const where = "The link is copied. It opens on this machine only";
    const until = location.protocol === "file:" ? "." : ", while convfc explore runs.";
    return this.copy(address, own ? where + until : "The link is copied.");
  }

  async save(kind) {
    const name = `convfc-${this.store.preset ?? "convolution"}.${kind}`;
    const blob =
      kind === "png" ? await png(this) : new Blob([svg(this)], { type: "image/svg+xml" });
    download(blob, name);
    this.say(`Saved as ${name}.`);
  }

  /** Say something to everybody: on the page for a while, and in the live region. */
  say(text) {
    this.live.textContent = text;
    this.toast.textContent = text;
    this.toast.hidden = false;
    clearTimeout(this.toastTimer);
    this.toastTimer = setTimeout(
      () => {
        this.toast.hidden = true;
      },
      1000 + READING * text.length,
    );
  }

  /** Say what is selected in the live region, once things have come to rest. */
  announce() {
    clearTimeout(this.liveTimer);
    this.liveTimer = setTimeout(() => {
      this.live.textContent = this.store.describe();
    }, 120);
  }

  destroy() {
    this.stop();
    this.transport.pause();
    this.strip.links.destroy();
    this.resize.disconnect();
    this.theme.destroy();
    cancelAnimationFrame(this.pending);
    clearTimeout(this.liveTimer);
    clearTimeout(this.toastTimer);
    this.root.remove();
  }

  // --- inside ---------------------------------------------------------------------------------

  _build() {
    this.header = new Header(this);
    this.strip = new Strip(this);
    this.transport = new Transport(this);
    this.controls = new Controls(this);
    this.tabs = new Tabs(this, {
      arithmetic: new ArithmeticView(this),
      map: new IndexMapView(this),
      matrix: new BigMatrixView(this),
      backward: new BackwardView(this),
      train: new TrainView(this),
      code: new CodeView(this),
    });
    this.guide = new Guide(this);
    this.live = el("p", { class: "unseen", "aria-live": "polite", data: { live: "" } });
    this.toast = el("div", { class: "toast", "aria-hidden": "true" });
    this.toast.hidden = true;
    const main = el(
      this.options.page ? "main" : "div",
      { class: "main" },
      this.header.intro,
      el("div", { class: "card" }, this.strip.element, this.strip.legend),
      this.transport.element,
      this.tabs.element,
    );
    // Tab meets first what leads past all settings, then the guide, which lies over the page.
    this.root.append(
      this._skip(),
      this.guide.element,
      this.header.element,
      el("div", { class: "body" }, this.controls.element, main),
      this.live,
      this.toast,
    );
  }

  _skip() {
    const onclick = (event) => {
      event.preventDefault(); // the address is for the state
      this.strip.input.panel.grid.overlay.focus();
    };
    return el("a", { class: "skip", href: "#", onclick }, "Skip to the picture");
  }

  /** Ctrl+Z and Ctrl+Shift+Z, but for a text that is being typed. */
  _key(event) {
    const { typing } = event.target.dataset;
    if (!(event.ctrlKey || event.metaKey) || event.altKey || typing) return;
    const key = event.key.toLowerCase();
    if (key !== "z" && key !== "y") return;
    event.preventDefault();
    if (key === "y" || event.shiftKey) this.store.redo();
    else this.store.undo();
  }

  _changed(kind) {
    if (kind === "selection") {
      this.strip.input.follow();
      const moved = this.flown !== this.store.selection.p;
      if (moved && !this.transport.hurried && !this._away()) this.strip.links.fly();
    }
    this.flown = this.store.selection.p;
    if (LIGHT.has(kind)) {
      this.pending ??= requestAnimationFrame(() => {
        this.pending = null;
        if (!this._away()) this.redraw();
      });
    } else this._update(kind);
    if (!["hover", "view", "tab", "training"].includes(kind) && !this.transport.playing) this.announce();
    this.options.onChange?.(kind);
  }

  /** Numbers, settings or view: everything that shows them. */
  _update(kind) {
    if (this._away()) return;
    if (kind !== "settings" || !this.store.problems.length) {
      if (kind !== "tab" && kind !== "gradient") this.strip.update();
      this.transport.update();
      this.tabs.update();
    }
    this.header.update();
    this.controls.update();
    this.redraw();
  }

  _light() {
    this.strip.light();
    this.transport.light();
    this.tabs.light();
  }

  _recolour(scheme) {
    this.palette = palette(scheme);
    if (this.options.page)
      document.documentElement.style.background = getComputedStyle(this.root).backgroundColor;
    if (this.strip) this._update("theme");
  }

  /**
   * Whether there is no room to draw in, as in an inactive tab or a cell that a notebook has taken
   * out. Coming back is then a change of size, which draws everything, and it is told even of an
   * absence shorter than a frame, because observing starts anew.
   */
  _away() {
    if (this.root.clientWidth) return false;
    this.width = 0;
    this.resize.unobserve(this.root);
    this.resize.observe(this.root);
    return true;
  }

  _resized() {
    const { clientWidth } = this.root;
    if (!clientWidth || clientWidth === this.width) return;
    this.width = clientWidth;
    const { dataset } = this.root;
    dataset.width = LAYOUTS.find((layout) => {
      dataset.width = layout;
      return this.strip.holds(layout);
    });
    this.narrow = dataset.width === "narrow";
    // Where to start from stands above the strip if there is no column beside it.
    if (dataset.width === "wide") this.controls.element.prepend(this.controls.start);
    else this.header.intro.before(this.controls.start);
    this._update("size");
  }
}

/** Put an explorer into an element. */
export function mount(element, options = {}) {
  return new Explorer(element, options);
}

function copyByHand(text, root) {
  const area = el("textarea", { class: "unseen", "aria-hidden": "true" });
  area.value = text;
  root.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

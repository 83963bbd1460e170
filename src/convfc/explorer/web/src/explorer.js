// The explorer: one store, the views around it, and when each of them is drawn again.

import { Store, TABS } from "./model/store.js";
import { PRESETS, stateOf } from "./model/presets.js";
import { toAddress } from "./model/address.js";
import { el } from "./views/dom.js";
import { palette } from "./views/palette.js";
import { Theme } from "./views/theme.js";
import { Header } from "./views/header.js";
import { Controls } from "./views/controls.js";
import { Pocket } from "./views/pocket.js";
import { Strip } from "./views/strip.js";
import { Transport } from "./views/transport.js";
import { Tabs } from "./views/tabs.js";
import { ArithmeticView } from "./views/arithmetic.js";
import { AlgorithmView } from "./views/algorithm.js";
import { BigMatrixView } from "./views/bigmatrix.js";
import { BackwardView } from "./views/backward.js";
import { TrainView } from "./views/train.js";
import { CodeView } from "./views/code.js";
import { Story } from "./views/story.js";
import { download, png, svg } from "./views/export.js";

/** Settings beside the strip, the strip as a row above them, all in one column. */
const LAYOUTS = ["wide", "middle", "narrow"];

/** Milliseconds to read a letter of what is said. */
const READING = 60;

/** Whether the page opens on this machine only. */
function local() {
  const { protocol, hostname } = location;
  return protocol === "file:" || /^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(hostname);
}

/** What a selection, a look, or a change of view does not touch is not drawn again. */
const LIGHT = new Set(["selection", "hover", "film", "training"]);

/** One explorer in an element: its store, its views, and the redrawing of them. */
export class Explorer {
  /**
   * options: {state, own: the state of the layer that it was made for, page: whether it is alone on a
   * page, site: the public address of such a page, onChange(kind), onLeave() and onArrive() around another
   * start}.
   */
  constructor(element, options = {}) {
    this.options = options;
    this.store = new Store(options.state ?? stateOf(PRESETS[0]));
    this.root = el("div", { class: "convfc-explorer", data: { page: options.page ? "1" : "" } });
    this.root.explorer = this;
    element.append(this.root);
    this.palette = palette("light");
    this.theme = new Theme(this.root, (scheme) => this._recolour(scheme));
    this._build();
    this.pending = null;
    this.stop = this.store.subscribe((kind) => this._changed(kind));
    this._resized = this._resized.bind(this);
    this.resize = new ResizeObserver(this._resized);
    this.resize.observe(this.root);
    if (options.page) window.addEventListener("resize", this._resized); // of its height
    this.root.addEventListener("keydown", (event) => this._key(event));
    this.presenting = (event) => this._presentingKey(event);
    this._resized();
    this.ready = new Promise((resolve) => requestAnimationFrame(() => resolve(this)));
  }

  /** Load a preset, or another state to start from; the tab stays, but for one without the picture. */
  start(state) {
    const tab = this.apart ? TABS[0] : this.store.view.tab;
    this.transport.pause();
    this.options.onLeave?.();
    this.store.load({ ...state, view: { tab } });
    this.options.onArrive?.();
  }

  /** The picture alone, and larger, for a lecture hall; again, or Escape, and all is back. */
  present(on = !this.root.dataset.present) {
    const { dataset, ownerDocument } = this.root;
    if (on) dataset.present = "1";
    else delete dataset.present;
    const full = on ? this.root.requestFullscreen?.() : document.fullscreenElement && document.exitFullscreen();
    full?.catch?.(() => {}); // it is presented in the window, then
    ownerDocument[on ? "addEventListener" : "removeEventListener"]("keydown", this.presenting);
    ownerDocument[on ? "addEventListener" : "removeEventListener"]("fullscreenchange", this.presenting);
    this.width = 0;
    this._resized();
    if (on) this.say("Page Down and Page Up move the window, Space plays, Escape ends.");
  }

  /** On a phone the settings come from below, over half of the picture. */
  openSheet(on = !this.root.dataset.sheet) {
    if (on) this.root.dataset.sheet = "1";
    else delete this.root.dataset.sheet;
    this.transport.settings.setAttribute("aria-expanded", String(on));
  }

  /** Whether the open tab has pictures of its own, in place of the strip. */
  get apart() {
    return this.store.view.tab === "train";
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

  /**
   * The address of what is shown: on the public site, if the page itself opens on this machine only; in a
   * notebook only what the page has behind its own.
   */
  get link() {
    const here = this.options.page ? location.href.replace(/#.*$/, "") : "";
    return (local() ? (this.options.site ?? here) : here) + toAddress(this.store);
  }

  copyLink() {
    const { link } = this;
    const { site } = this.options;
    const told = (where) => this.copy(link, `The link is copied.${where}`);
    if (!local()) return told("");
    if (site) {
      const usual = /;cut=1/.test(link) ? " and has the usual numbers: these are too many for an address" : "";
      return told(` It opens on ${new URL(site).host}${usual}.`);
    }
    const until = location.protocol === "file:" ? "" : ", while convfc explore runs";
    return told(` It opens on this machine only${until}.`);
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
    this.story.destroy();
    this.resize.disconnect();
    window.removeEventListener("resize", this._resized);
    document.removeEventListener("keydown", this.presenting);
    document.removeEventListener("fullscreenchange", this.presenting);
    this.pocket.destroy();
    this.theme.destroy();
    cancelAnimationFrame(this.pending);
    clearTimeout(this.liveTimer);
    clearTimeout(this.toastTimer);
    this.root.remove();
  }

  // --- inside ---------------------------------------------------------------------------------

  _build() {
    this.story = new Story(this);
    this.header = new Header(this);
    this.strip = new Strip(this);
    this.transport = new Transport(this);
    this.pocket = new Pocket(this);
    this.controls = new Controls(this);
    this.header.actions.prepend(this.controls.more);
    this.tabs = new Tabs(this, {
      arithmetic: new ArithmeticView(this),
      algorithm: new AlgorithmView(this),
      matrix: new BigMatrixView(this),
      backward: new BackwardView(this),
      train: new TrainView(this),
      code: new CodeView(this),
    });
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
    // Tab meets first what leads past all settings.
    this.root.append(
      this._skip(),
      this.header.element,
      this.pocket.element,
      el("div", { class: "body" }, this.story.element, this.controls.element, main),
      this.controls.pictures.pad.element, // not in the settings, which may be hidden
      this.live,
      this.toast,
    );
  }

  _skip() {
    const onclick = (event) => {
      event.preventDefault(); // the address is for the state
      const [tab] = this.tabs.tabs.filter((one) => one.ariaSelected === "true");
      (this.apart ? tab : this.strip.input.panel.grid.overlay).focus();
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

  /** What a presenter's remote control sends, and the way out. */
  _presentingKey(event) {
    const { transport } = this;
    if (event.type === "fullscreenchange") {
      if (!document.fullscreenElement) this.present(false);
      return;
    }
    const what = {
      PageDown: () => transport.move("forward"),
      PageUp: () => transport.move("back"),
      " ": () => transport.toggle(),
      Escape: () => this.present(false),
    }[event.key];
    // A button has its own Space, and an editor its own Escape.
    if (!what || event.defaultPrevented || event.target.closest?.("button, input, select, dialog")) return;
    event.preventDefault();
    what();
  }

  _changed(kind) {
    if (kind === "selection" || kind === "film") this.strip.input.follow();
    if (kind === "selection") {
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
    this.story.look(kind);
    this.options.onChange?.(kind);
  }

  /** Numbers, settings or view: everything that shows them. */
  _update(kind) {
    if (this._away()) return;
    if (this.story.follow()) {
      this.width = 0;
      return this._resized();
    }
    this.header.update(); // first, as the strip has the height that it leaves
    if (this.apart !== this.root.hasAttribute("data-apart")) {
      this.root.toggleAttribute("data-apart", this.apart);
      kind = "size";
    }
    if (kind !== "settings" || !this.store.problems.length) {
      if (kind !== "tab" && kind !== "gradient") this.strip.update();
      this.story.fit();
      this.transport.update();
      this.tabs.update();
    }
    this.controls.update();
    this.redraw();
  }

  _light() {
    this.root.toggleAttribute("data-film", this.store.moment !== null);
    this.strip.light();
    this.transport.light();
    this.tabs.light();
    this.pocket.light();
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
    // A phone's window has another height whenever its address bar comes or goes.
    const height = this.options.page && !this.narrow ? window.innerHeight : 0;
    if (!clientWidth || (clientWidth === this.width && height === this.height)) return;
    [this.width, this.height] = [clientWidth, height];
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

// The paper's experiment, live: a CONV layer and its FC layer are trained side by side, and how far apart
// their weights are is counted along. Training goes on between frames, never for longer than one.

import { button, check, el, fill, icon, put, radioGroup, typed, unique } from "./dom.js";
import { Grid } from "./grid.js";
import { drawCurves } from "./curves.js";
import { thumbnail } from "./pictures.js";
import { COUNT } from "../model/manydigits.js";
import { SIDE } from "../model/start.js";
import { count, short } from "../model/words.js";
import {
  CLASSES, EPOCH, LAYER, MOST, OPTIMISERS, PLAN, RATES, Twins, UNSEEN, asDigit, likeliest, manyDigits, planText, readPlan,
} from "../model/training.js";

/** Milliseconds of a frame in which there is training. */
const SLICE = 9;

/** Epochs of a run, and of the older runs whose curves stay. */
const RUN = 20;
const OLDER = 3;

/** Filters beside each other. */
const ACROSS = 2;

/** Wrong digits that are shown. */
const WRONG = 30;

const NAMES = ["CONV layer (sliding window)", "FC layer (M K)"];
const OPTIMISER = { sgd: "SGD", momentum: "momentum", adam: "Adam" };
const ORDER = ["in the same order", "in another order"];

const WHY = {
  same: "Both layers add the same numbers in the same order, so every bit is the same, whatever the optimiser.",
  sgd: "Another order of additions rounds in another way. A step of SGD is the gradient times the rate: a rounding stays as small as it is.",
  adam: "Adam divides every step by the usual size of the gradient, and so it divides the difference of the two gradients, which is rounding. The smaller the gradients, the larger that becomes. So the layers drift apart once the training digits are learnt: at a rate of 0.1 after some epochs, at 0.005 not within 20.",
};

/** The tab “Train”. */
export class TrainView {
  constructor(explorer) {
    this.explorer = explorer;
    this.plan = PLAN;
    this.told = null; // the plan that the store has from here
    this.older = [];
    this.queue = []; // plans that come next
    this.cell = [0, 0]; // tap and filter that are looked at
    this.digits = null;
    this._build();
  }

  update() {
    if (!this.digits) return this._load();
    const { training } = this.explorer.store;
    if (training && training !== this.told) this._take(readPlan((this.told = training)));
    this._go();
    this._draw();
  }

  light() {}

  // --- training --------------------------------------------------------------------------------

  async _load() {
    if (this.element.inert) return;
    this.element.inert = true;
    try {
      this.digits = await manyDigits();
    } catch {
      this.why.textContent = "This browser cannot unpack the digits; a newer one can.";
      return;
    }
    this.element.inert = false;
    this._start();
    this.update();
  }

  /** The networks of the plan, untrained. */
  _start() {
    this.twins = new Twins(this.digits, this.plan);
    this.counted = null;
    this.shown ??= { at: this.twins.unseen[0] };
  }

  /** Train by another plan from the start, as far as it says; the curve of the former one stays. */
  _take(plan) {
    const former = this.twins;
    if (former.steps >= EPOCH) {
      const name = this._name(former.plan);
      const others = this.older.filter((run) => run.name !== name);
      this.older = [{ name, points: former.differences }, ...others].slice(0, OLDER);
    }
    this.plan = plan;
    this.older = this.older.filter((run) => run.name !== this._name(plan));
    this._start();
    this._go();
    this._draw();
  }

  /** Change something of the plan: trained again, as far as before. */
  _change(patch) {
    this.queue = [];
    this._take({ ...this.plan, ...patch });
  }

  /** Train up to a number of steps. */
  _until(steps) {
    this.plan = { ...this.plan, steps: Math.min(steps, MOST) };
    this._go();
    this._draw();
  }

  get running() {
    return this.twins && (this.twins.steps < this.plan.steps || this.counted !== this.twins.steps);
  }

  /** Go on while somebody looks; what is hidden waits. */
  _go() {
    if (this.frame || !this.running || !this.element.clientWidth) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      this._advance();
      if (!this.running) this._arrived();
      this._go();
      this._draw();
    });
  }

  /** A slice of training, or, after an epoch and at the end, a look at the unseen digits. */
  _advance() {
    const { twins, plan } = this;
    const due = twins.steps % EPOCH === 0 || twins.steps >= plan.steps;
    if (due && this.counted !== twins.steps) return this._count();
    if (twins.steps >= plan.steps) return; // paused when the digits were counted already
    const end = performance.now() + SLICE;
    do twins.step();
    while (twins.steps < plan.steps && twins.steps % EPOCH && performance.now() < end);
  }

  _count() {
    const { twins } = this;
    const { labels } = this.digits;
    this.counted = twins.steps;
    const guesses = twins.guesses();
    this.right = guesses.map((all) => all.filter((c, i) => c === labels[twins.unseen[i]]).length);
    this.wrong = twins.unseen.filter((at, i) => guesses[0][i] !== labels[at]);
    this._showWrong();
  }

  _arrived() {
    const next = this.queue.shift();
    if (next) return this._take(next);
    this.told = planText(this.plan);
    this.explorer.store.train(this.told);
    this.explorer.live.textContent = `${this.difference}. ${this.score}`;
  }

  _toggle() {
    this.queue = [];
    if (this.twins.steps < this.plan.steps) this._until(this.twins.steps);
    else this._until(this.twins.steps + RUN * EPOCH);
  }

  _reset() {
    this.older = this.queue = [];
    this.plan = { ...this.plan, steps: 0 };
    this._start();
    this._until(0);
  }

  /** The finding of the paper: with another order of additions SGD keeps the two together, Adam does not. */
  _finding() {
    const plan = { ...PLAN, seed: this.plan.seed, order: 1, steps: RUN * EPOCH };
    this.older = [];
    this.queue = ["sgd", "adam"].map((optimiser) => ({ ...plan, optimiser }));
    this._take({ ...plan, order: 0 });
  }

  // --- words -----------------------------------------------------------------------------------

  _name({ optimiser, order, rate, bits }) {
    const { plan } = this;
    return [
      OPTIMISER[optimiser], order ? "another order" : "same order", rate !== plan.rate && `rate ${rate}`, bits === 64 && "float64",
    ].filter(Boolean).join(", ");
  }

  get difference() {
    return `Largest difference of all weights: ${tiny(this.twins.difference)}`;
  }

  get score() {
    const [conv, fc] = this.right ?? [0, 0];
    const of = (right) => `${((100 * right) / UNSEEN).toFixed(1)} %`;
    const both = conv === fc ? `${of(conv)} by both` : `${of(conv)} by the CONV layer, ${of(fc)} by the FC layer`;
    return `Unseen digits told: ${both}.`;
  }

  // --- what is seen ----------------------------------------------------------------------------

  _build() {
    this.run = button("train-run", "Run", () => this._toggle(), { symbol: "play", text: "Run" });
    this.run.classList.add("primary");
    this.rate = el("input", { type: "range", name: "train-rate", min: 0, max: RATES.length - 1, step: 1, id: unique("rate") });
    this.rate.addEventListener("change", () => this._change({ rate: RATES[this.rate.value] }));
    this.rate.addEventListener("input", () => this._showRate(RATES[this.rate.value]));
    this.rateText = el("output", {});
    this.seed = typed(el("input", { type: "number", name: "train-seed", min: 0, max: 999999, step: 1 }), (seed) => {
      if (Number.isInteger(seed) && seed >= 0 && seed < 1e6) this._change({ seed });
      else put(this.seed, this.plan.seed);
    });
    this.choices = [
      this._choice("optimiser", "Optimiser", OPTIMISERS.map((name) => [name, OPTIMISER[name]])),
      this._choice("order", "The FC layer adds", ORDER.map((name, order) => [order, name])),
      this._choice("bits", "Numbers", [[32, "float32"], [64, "float64"]]),
    ];
    this.apart = el("strong", { class: "apart" });
    this.after = el("span", { class: "hint" });
    this.why = el("p", { class: "hint" });
    this.loss = el("canvas", { role: "img" });
    this.gap = el("canvas", { role: "img" });
    this.grids = NAMES.map((name, n) => this._weights(name, n));
    this.image = new Grid({
      label: "The digit shown",
      cursor: () => this.pixel ?? [0, 0],
      pick: (r, c) => this._look("pixel", [r, c]),
      hover: () => {},
      say: (r, c) => `row ${r}, column ${c}: ${short(this.input?.[8 * r + c] ?? 0)}`,
    });
    this.bars = el("ol", { class: "classes", "aria-label": "Probability of each class" });
    this.said = el("p", { class: "guess" });
    this.wrongTitle = el("p", {});
    this.thumbs = radioGroup({ class: "digits", "aria-label": "An unseen digit that is told wrong" }, []);
    const figure = (title, ...children) => el("figure", {}, el("figcaption", {}, title), ...children);
    this.element = el(
      "div",
      { class: "train", data: { view: "train" } },
      el(
        "p",
        {},
        "Two networks start from the same weights and see the same digits. The first layer of one slides its filters over the image, that of the other multiplies M by K. Do they stay the same?",
      ),
      el(
        "div",
        { class: "row" },
        this.run,
        button("train-step", "One step: a batch of 32 digits", () => this._until(this.twins.steps + 1), { text: "Step" }),
        button("train-reset", "Reset: untrained, and no older curves", () => this._reset(), { text: "Reset" }),
        button("finding", "Show the paper's finding: same order, then another order with SGD, then with Adam", () => this._finding(), {
          text: "Show the paper's finding",
        }),
      ),
      el(
        "div",
        { class: "row settings" },
        this.choices,
        el("span", { class: "pick" }, el("label", { for: this.rate.id }, "Rate"), this.rate, this.rateText),
        el("label", { class: "pick" }, "Seed", this.seed),
      ),
      el("p", { class: "line" }, this.apart, this.after),
      this.why,
      el(
        "div",
        { class: "curves" },
        figure("Largest difference of all weights, on a logarithmic scale", this.gap),
        figure(
          ["Loss: ", el("i", { class: "conv" }), NAMES[0], " ", el("i", { class: "fc" }), NAMES[1]],
          this.loss,
        ),
      ),
      el(
        "div",
        { class: "learnt" },
        el("div", { class: "weights" }, this.grids.map(({ figure }) => figure)),
        el(
          "div",
          { class: "reading" },
          this.image.element,
          el("div", {}, this.said, this.bars),
          el(
            "div",
            { class: "row" },
            button("another", "Another digit, unseen in training", () => this._another(), { text: "Another digit" }),
            button("train-draw", "Draw a digit and let it guess", () => this._pad(), { symbol: "pen", text: "Draw" }),
            button("open-trained", "Open in the picture: the trained filters and this digit", () => this._open(), {
              text: "Open in the picture",
            }),
            button("open-head", "Open the FC layer to the classes in the picture, as a kernel of the whole size", () => this._openHead(), {
              text: "Open the FC layer",
            }),
          ),
        ),
      ),
      el("div", {}, this.wrongTitle, this.thumbs),
      el(
        "p",
        { class: "hint" },
        `${count(COUNT, "digit")} of 8 × 8 (UCI, Alpaydin & Kaynak 1998), ${UNSEEN} of them unseen, chosen by the seed. Four 3 × 3 filters, ReLU, an FC layer to ten classes; batches of 32. The paper trains 128 filters on MNIST for 400 epochs.`,
      ),
    );
  }

  _choice(field, label, options) {
    const chips = options.map(([value, text]) =>
      el(
        "button",
        { type: "button", class: "chip", data: { train: value }, onclick: () => this._change({ [field]: value }) },
        text,
      ),
    );
    const group = el("span", { class: "chips", role: "group", "aria-label": label }, chips);
    return el("span", { class: "pick", data: { field } }, el("span", { "aria-hidden": "true" }, label), group);
  }

  /** The first layer's weights of a network: filters beside each other, or K. */
  _weights(name, n) {
    const { kernel, filters } = LAYER;
    const [high, wide] = kernel;
    const place = (r, c) =>
      n ? [r, c] : [(r % high) * wide + (c % wide), ACROSS * Math.floor(r / high) + Math.floor(c / wide)];
    const corner = (f) => [high * Math.floor(f / ACROSS), wide * (f % ACROSS)];
    const value = (r, c) => {
      const { first } = this.twins.nets[n];
      return first.weights[first.place(...place(r, c))];
    };
    const cursor = () => {
      const [tap, f] = this.cell;
      const [r, c] = corner(f);
      return n ? [tap, f] : [r + Math.floor(tap / wide), c + (tap % wide)];
    };
    const grid = new Grid({
      label: `${name}: its weights`,
      cursor,
      pick: (r, c) => this._look("cell", place(r, c)),
      hover: () => {},
      say: (r, c) => `filter ${place(r, c)[1]}, weight ${place(r, c)[0]}: ${short(value(r, c))}`,
      overlay: (own, context) => {
        const [r, c] = cursor();
        own.outline(context, [r, c, r, c], this.explorer.palette.ink, { width: 2 });
      },
      decorate: (own, context) => {
        if (n) return;
        for (let f = 0; f < filters; f++) {
          const [r, c] = corner(f);
          own.outline(context, [r, c, r + high - 1, c + wide - 1], this.explorer.palette.muted, { width: 1.5 });
        }
      },
    });
    const shape = n ? `K, ${high * wide} × ${filters}` : `${filters} filters of ${kernel.join(" × ")}`;
    const figure = el("figure", {}, el("figcaption", {}, el("b", {}, name), el("br"), shape), grid.element);
    const [rows, columns] = n ? [high * wide, filters] : [(high * filters) / ACROSS, wide * ACROSS];
    return { figure, grid, source: { rows, columns, value }, cell: n ? [44, 20] : [40, 30] };
  }

  _look(what, at) {
    this[what] = at;
    for (const { grid } of this.grids) grid.light();
    this.image.light();
  }

  _draw() {
    if (!this.twins || !this.element.clientWidth) return;
    const { twins, plan, explorer } = this;
    const { palette } = explorer;
    const moving = twins.steps < plan.steps;
    this._showRun(moving);
    for (const { dataset, lastChild } of this.choices)
      for (const chip of lastChild.children)
        chip.setAttribute("aria-pressed", String(chip.dataset.train === String(plan[dataset.field])));
    this.rate.value = RATES.indexOf(plan.rate);
    this._showRate(plan.rate);
    put(this.seed, plan.seed);
    this.apart.textContent = this.difference;
    this.apart.dataset.zero = String(twins.difference === 0);
    const epochs = Math.round((10 * twins.steps) / EPOCH) / 10;
    this.after.textContent = `after ${count(twins.steps, "step")} (${count(epochs, "epoch")}). ${this.right ? this.score : ""}`;
    this.why.textContent = WHY[!plan.order ? "same" : plan.optimiser === "adam" ? "adam" : "sgd"];
    const hue = palette.hue(1);
    this.element.style.setProperty("--hue", hue);
    const last = Math.max(RUN * EPOCH, twins.steps, ...this.older.map(({ points }) => points.length));
    const axis = { palette, last, tick: EPOCH };
    drawCurves(this.gap, {
      ...axis,
      log: true,
      curves: [
        ...this.older.map(({ name, points }, i) => ({ name, points, colour: palette.hue(i + 2), dash: palette.dash(i + 1) })),
        { name: this._name(plan), points: twins.differences, colour: palette.window, width: 2.5 },
      ],
    });
    drawCurves(this.loss, {
      ...axis,
      curves: [
        { points: twins.losses[0], colour: hue, width: 6 },
        { points: twins.losses[1], colour: palette.ink, dash: [4, 4] },
      ],
    });
    this.gap.setAttribute("aria-label", [...this.older, { name: this._name(plan), points: twins.differences }]
      .map(({ name, points }) => `${name}: ${tiny(points.at(-1) ?? 0)} after ${count(points.length, "step")}`).join("; "));
    this.loss.setAttribute("aria-label", `Loss of the last batch: ${twins.losses.map((all) => short(all.at(-1) ?? NaN)).join(" and ")}`);
    const most = Math.max(...twins.nets[0].first.weights.map(Math.abs));
    for (const { grid, source, cell } of this.grids) {
      grid.show({ ...source, largest: 1.5 * most || 1 }, palette);
      grid.fit(...cell);
      grid.redraw();
    }
    this._showDigit();
  }

  _showRun(moving) {
    const label = moving ? "Pause" : "Run";
    if (this.run.lastChild.textContent === label) return;
    fill(this.run, icon(label.toLowerCase().replace("run", "play")), el("span", {}, label));
    this.run.removeAttribute("aria-label");
  }

  _showRate(rate) {
    this.rateText.textContent = rate;
    this.rate.setAttribute("aria-valuetext", rate);
  }

  get input() {
    if (!this.shown) return null;
    const { at, drawn } = this.shown;
    return drawn ?? this.digits.inputs.subarray(64 * at, 64 * at + 64);
  }

  /** The digit, and what both networks take it for. */
  _showDigit() {
    const { palette } = this.explorer;
    const { at, drawn } = this.shown;
    this.image.show({ rows: 8, columns: 8, largest: 1, value: (r, c) => this.input[8 * r + c] }, palette);
    this.image.fit(22, 22);
    this.image.redraw();
    const [conv, fc] = this.twins.nets.map((net) => net.forward(this.input));
    const said = [conv, fc].map(likeliest);
    const what = drawn ? "Your drawing" : `A ${this.digits.labels[at]}`;
    const both = said[0] === said[1] ? `both say ${said[0]}` : `the CONV layer says ${said[0]}, the FC layer ${said[1]}`;
    this.said.textContent = `${what}: ${both}.`;
    if (!this.bars.children.length)
      fill(this.bars, Array.from({ length: CLASSES }, (_, c) =>
        el("li", {}, el("b", {}, String(c)), el("span", { class: "bar2" }, el("i", { class: "conv" }), el("i", { class: "fc" })), el("span", {}))));
    [...this.bars.children].forEach((row, c) => {
      row.classList.toggle("most", c === said[0]);
      [conv, fc].forEach((p, n) => row.children[1].children[n].style.setProperty("width", `${100 * p[c] || 0}%`));
      row.lastChild.textContent = `${Math.round(100 * conv[c]) || 0} %`;
    });
  }

  _showWrong() {
    const { inputs, labels } = this.digits;
    const { wrong } = this;
    const rest = wrong.length > WRONG ? `, the first ${WRONG} of them` : "";
    this.wrongTitle.textContent = wrong.length ? `Told wrong by the CONV layer: ${wrong.length} of ${UNSEEN}${rest}` : "None is told wrong.";
    fill(this.thumbs, wrong.slice(0, WRONG).map((at) =>
      el(
        "button",
        {
          type: "button", class: "digit", data: { unseen: at }, "aria-label": `A ${labels[at]}, digit ${at}`,
          onclick: () => this._show({ at }),
        },
        thumbnail(inputs.subarray(64 * at, 64 * at + 64).map((value) => 255 * value), 8),
      )));
    this.thumbs.hidden = !wrong.length;
    this._check();
  }

  _check() {
    if (this.thumbs.children.length) check(this.thumbs, (thumb) => thumb.dataset.unseen === String(this.shown.at));
  }

  _show(shown) {
    this.shown = shown;
    this._check();
    this._showDigit();
  }

  _another() {
    const { unseen } = this.twins;
    this._show({ at: unseen[(unseen.indexOf(this.shown.at) + 1) % unseen.length] });
  }

  _pad() {
    this.explorer.controls.pictures.pad.open((pixels) => this._show({ drawn: asDigit(pixels, SIDE) }));
  }

  /** The trained filters with the digit in the strip; its dY is that of the loss, for the tab “Backward”. */
  _open() {
    const { twins, plan, input } = this;
    const { at, drawn } = this.shown;
    const [net] = twins.nets;
    const { first } = net;
    let dY = null;
    if (!drawn) {
      net.learn(input, [this.digits.labels[at]]);
      const places = Array.from(net.dY, (value, n) => [[...first.map.position(Math.floor(n / first.filters)), n % first.filters].join(), value]);
      dY = { start: "zeros", edits: places.filter(([, value]) => value !== 0) };
    }
    const state = {
      title: "Filters trained here",
      source: `${OPTIMISER[plan.optimiser]}, ${count(twins.steps, "step")}. ${drawn ? "" : "In the tab Backward dY is the gradient of the loss for this digit."}`,
      settings: LAYER,
      input: { values: input, range: [0, 1] },
      filters: first.weights,
      dY,
    };
    this.explorer.start(state);
  }

  /** The FC layer to the classes: a CONV layer whose kernel is as large as what it reads. */
  _openHead() {
    const [net] = this.twins.nets;
    const { first, head, width } = net;
    net.forward(this.input);
    const size = first.map.outputSize;
    this.explorer.start({
      title: "The FC layer to the ten classes",
      source: "Its kernel is as large as its input, so there is one window: M has one row, and filter 7 scores a seven.",
      settings: { axes: 2, size, channels: first.filters, filters: CLASSES, kernel: size },
      input: { values: Array.from(net.Y, (z) => Math.max(z, 0)) },
      filters: Array.from({ length: head.weights.length }, (_, i) => head.weights[(i % width) * CLASSES + Math.floor(i / width)]),
    });
  }
}

/** A small number with two digits. */
function tiny(value) {
  return value === 0 || !(value < 0.01) ? short(value, 2) : value.toExponential(1).replace("-", "−");
}

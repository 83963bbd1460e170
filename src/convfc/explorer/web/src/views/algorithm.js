// Algorithm 1 as a film, beside two other ways to the same numbers: the line that runs, its variables,
// and what it has cost so far. The transport under the strip moves it, the strip shows what is written.

import { button, el, fill } from "./dom.js";
import { Inspector } from "./indexmap.js";
import { saveFilm } from "./film.js";
import { LANES, Trace, UNITS } from "../model/trace.js";
import { short } from "../model/words.js";

/** Entries of M that are shown one by one unless a reader wants larger steps. */
const FEW = 250;

const COSTS = ["multiplications", "numbers read", "places looked up by Eq. (8)"];

/** The tab “Algorithm”. */
export class AlgorithmView {
  constructor(explorer) {
    this.explorer = explorer;
    const choose = (lane) => () => {
      explorer.transport.pause();
      explorer.store.show({ lane, step: null });
    };
    this.chips = Object.entries(LANES).map(([lane, title]) =>
      el("button", { type: "button", class: "chip", data: { lane }, onclick: choose(lane) }, title),
    );
    this.unit = el("select", { name: "unit" }, UNITS.map((name) => el("option", {}, name)));
    this.unit.addEventListener("change", () => {
      this.chosen = this.unit.selectedIndex;
    });
    this.save = button("gif", "Save as GIF", () => saveFilm(explorer, this.save), { text: "Save as GIF" });
    this.lines = el("ol", { class: "lines", tabindex: "0", "aria-label": "Lines of the algorithm" });
    this.variables = el("tbody");
    this.costs = el("tbody");
    this.same = el("p");
    this.why = el("p", { class: "hint" });
    this.note = el("p", { class: "hint" });
    this.inspector = new Inspector(explorer);
    const heads = ["cost for one image", "loops", "im2col", "T x"];
    this.heads = heads.map((text) => el("th", { scope: "col" }, text));
    this.element = el(
      "div",
      { data: { view: "algorithm" }, class: "algorithm" },
      el(
        "div",
        { class: "row" },
        el("div", { class: "chips", role: "group", "aria-label": "Way to compute it" }, this.chips),
        el("label", { class: "hint" }, "step by ", this.unit),
        this.save,
      ),
      el(
        "div",
        { class: "film" },
        el("div", {}, this.lines, this.note),
        el("table", { class: "variables", "aria-label": "Variables" }, this.variables),
        el(
          "div",
          {},
          el(
            "div",
            { class: "scroll", tabindex: "0", role: "region", "aria-label": "Costs of the three ways" },
            el("table", { class: "costs" }, el("thead", {}, el("tr", {}, this.heads)), this.costs),
          ),
          this.same,
          this.why,
        ),
      ),
      this.inspector.element,
    );
  }

  /** What the film goes on by: a number, a row, a part. */
  get by() {
    const { rows, columns } = this.explorer.store.map;
    return this.chosen ?? Number(rows * columns > FEW);
  }

  /** What the transport runs over in this tab. */
  get track() {
    const { store } = this.explorer;
    const { trace } = store;
    const [at, unit, last] = [store.moment ?? 0, this.by, trace.steps];
    return {
      at,
      first: 0,
      back: trace.before(at, unit),
      forward: trace.next(at, unit),
      last,
      words: `line ${trace.at(at).line} · ${written(at)} of ${written(last)}`,
      say: (step) => `step ${step}, line ${trace.at(step).line}`,
      go: (step) => store.goTo(step, unit > 0),
    };
  }

  update() {
    const { store } = this.explorer;
    const { trace, map, settings } = store;
    const { lane } = trace;
    this.ways = Object.keys(LANES).map((name) => new Trace(map, name));
    const totals = this.ways.map((way) => way.counts(way.steps));
    this.totals = totals;
    this.now = this.ways.findIndex((way) => way.lane === lane);
    this.chips.forEach((chip, i) => chip.setAttribute("aria-pressed", String(i === this.now)));
    this.heads.forEach((head, i) => head.classList.toggle("now", i === this.now + 1));
    this.unit.selectedIndex = this.by;
    fill(
      this.lines,
      trace.lines.map(({ number, depth, text }) => {
        const line = el("li", { data: { line: number } }, el("span", {}, number), el("code", {}, text));
        line.style.setProperty("--depth", depth);
        return line;
      }),
    );
    const b = `B is the input ${settings.transposed ? "spread apart with zeros" : "with its padding"}.`;
    this.note.textContent = {
      loops: b,
      im2col: `The paper’s line numbers, for one image. ${b} In lines 10 and 14 the paper prints Hout and s, which is not what it means.`,
      matrix: "T is made once for the layer, x is the input as one column.",
    }[lane];
    const { largest, outputs } = store.compared;
    const all = map.rows * settings.filters;
    fill(
      this.same,
      "largest difference of the results: ",
      el("strong", {}, short(largest, 2)),
      ` (computed in all three ways, ${outputs < all ? `${written(outputs)} of ` : ""}${written(all)} outputs${largest ? "; sums are rounded in another order" : ""})`,
    );
    const [loops, im2col, matrix] = this.ways;
    const zeros = Math.floor(100 * (1 - (map.work * settings.filters) / matrix.memory));
    this.why.textContent =
      `Why machines choose im2col: as many products as the loops, but each place is looked up once for all filters, ${written(totals[1][2])} times and not ${written(totals[0][2])}; ` +
      `the rest is one product of two matrices, which machines do fast. Its price: M has ${short(im2col.memory / loops.inputs, 2)} × the numbers of the input. ` +
      `${zeros} % of T’s products are with zeros.`;
    this.light();
  }

  light() {
    const { trace, moment } = this.explorer.store;
    const { line, variables } = trace.at(moment ?? 0);
    for (const item of this.lines.children) {
      const here = moment !== null && item.dataset.line === String(line);
      item.setAttribute("aria-current", here ? "step" : "false");
      if (here) this.lines.scrollTop = item.offsetTop - this.lines.clientHeight / 2;
    }
    const row = (name, cells) => el("tr", {}, el("th", { scope: "row" }, name), cells);
    const cell = (now, ...text) => el("td", { class: now ? "now" : null }, text);
    fill(
      this.variables,
      variables.map(([name, value]) => row(name, cell(false, moment ? (value ?? "–") : ""))),
    );
    const counts = trace.counts(moment ?? 0);
    const cost = (title, what) =>
      row(
        title,
        this.totals.map((total, i) =>
          i === this.now
            ? cell(true, el("strong", {}, written(counts[what])), el("small", {}, ` of ${written(total[what])}`))
            : cell(false, written(total[what])),
        ),
      );
    fill(
      this.costs,
      COSTS.map(cost),
      row("numbers in the middle", this.ways.map((way, i) => cell(i === this.now, ["none", "M: ", "T: "][i], i ? written(way.memory) : ""))),
    );
    this.inspector.light();
  }
}

function written(n) {
  return n.toLocaleString("en");
}

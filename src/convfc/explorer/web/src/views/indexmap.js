// The index map, Eq. (8), with the numbers of the selected entry filled in, and the way back.

import { el, fill } from "./dom.js";
import { columnsOf } from "../model/numbers.js";
import { count, short } from "../model/words.js";

/** Readers that are listed. */
const LISTED = 24;

/** What the tab “Algorithm” says of the entry that is looked at. */
export class Inspector {
  constructor(explorer) {
    this.explorer = explorer;
    this.pair = el("p", { class: "pair" });
    this.body = el("tbody");
    this.note = el("p", { class: "hint" });
    this.back = el("p", { class: "readers" });
    this.element = el(
      "div",
      { data: { view: "map" }, class: "map" },
      this.pair,
      el(
        "div",
        { class: "scroll", tabindex: "0", role: "region", "aria-label": "Index map, step by step" },
        el(
          "table",
          {},
          el(
            "thead",
            {},
            el(
              "tr",
              {},
              ...["", "rule", "here", ""].map((text) =>
                el("th", { scope: "col" }, text || el("span", { class: "unseen" }, "value")),
              ),
            ),
          ),
          this.body,
        ),
      ),
      this.back,
      this.note,
    );
  }

  update() {
    this.light();
  }

  light() {
    const { store } = this.explorer;
    const { map, settings } = store;
    const { p, f } = store.shown;
    const q = store.shown.q ?? columnsOf(map, f).first;
    const position = map.position(p);
    const { group, tap, channel } = map.tap(q);
    const read = map.coordinates(p, q);
    const value = short(store.entry(p, q));
    fill(
      this.pair,
      el("span", { class: "key window" }, `M(${p}, ${q})`),
      " = ",
      read
        ? el("span", { class: "key plain" }, `input(${read.join(", ")})`)
        : el("span", { class: "key plain" }, "a zero"),
      ` = ${value}`,
    );
    const two = settings.axes > 1;
    const [o, t, e] = two
      ? [
          ["i″", "j″"],
          ["i′", "j′"],
          ["i", "j"],
        ]
      : [["i″"], ["i′"], ["i"]];
    const rows = [];
    rows.push(
      two
        ? ["p", "i″ · Wout + j″", `${position[0]} · ${store.outputSize[1]} + ${position[1]}`, p]
        : ["p", "i″", `${position[0]}`, p],
    );
    rows.push(["q", ...this._column(tap, channel, group), q]);
    map.axes.forEach((a, i) =>
      rows.push([e[i], ...axisRule(settings, a, i, position[i], tap[i], [o[i], t[i]])]),
    );
    if (settings.channels > 1) {
      rows.push([
        "d",
        settings.groups > 1 ? "g · C/G + d′" : "d′",
        settings.groups > 1 ? `${group} · ${map.perGroup} + ${channel}` : `${channel}`,
        group * map.perGroup + channel,
      ]);
    }
    if (map.turned) {
      // Which weight of the layer the tap meets.
      map.axes.forEach((a, i) =>
        rows.push([`${t[i]} of the filter`, `${a.taps - 1} − ${t[i]}`, `${a.taps - 1} − ${tap[i]}`, a.taps - 1 - tap[i]]),
      );
    }
    fill(
      this.body,
      rows.map(([name, rule, here, result]) =>
        el(
          "tr",
          {},
          el("th", { scope: "row" }, name),
          el("td", {}, rule),
          el("td", {}, here),
          el("td", {}, String(result).replace("-", "−")),
        ),
      ),
    );
    this._readers(p, q);
    this.note.textContent =
      "Counted from 0, row by row. The paper’s Eq. (8) is the case of stride 1 without padding, counted from 1.";
  }

  _column(tap, channel, group) {
    const { settings, perGroup, taps } = this.explorer.store.map;
    const two = settings.axes > 1;
    let rule = two ? "i′ · kw + j′" : "i′";
    let here = two ? `${tap[0]} · ${settings.kernel[1]} + ${tap[1]}` : `${tap[0]}`;
    if (perGroup > 1) {
      const inner = (text) => (two ? `(${text})` : text);
      [rule, here] = [`${inner(rule)} · C + d′`, `${inner(here)} · ${perGroup} + ${channel}`];
    }
    if (settings.groups > 1) [rule, here] = [`g · k + ${rule}`, `${group} · ${taps} + ${here}`];
    return [rule, here];
  }

  _readers(p, q) {
    const { store } = this.explorer;
    const element = store.shown.element ?? store.map.element(p, q);
    this.back.hidden = element < 0;
    if (element < 0) return;
    const { entries } = store.map.readerCounts(element);
    const written = [];
    for (const [row, column] of store.map.readers(element)) {
      if (written.length === LISTED) break;
      written.push(`(${row}, ${column})`);
    }
    const more = entries > LISTED ? ` and ${entries - LISTED} more` : "";
    fill(
      this.back,
      el(
        "strong",
        {},
        `The way back: this element stands in ${count(entries, "entry", "entries")} of M`,
      ),
      " ",
      el("span", {}, written.join("  ") + more),
    );
  }
}

/** Rule, numbers and result of one axis. */
function axisRule(settings, a, axis, o, t, [output, tap]) {
  // Of this axis alone: the entry is a zero as soon as one of the axes reads one.
  const read = a.source[o * a.step + t * a.tapStep];
  const stride = settings.stride[axis];
  const dilated = a.tapStep > 1 ? `${a.tapStep} · ` : "";
  const [tapRule, tapHere] = [`${dilated}${tap}`, `${dilated}${t}`];
  const scale = a.step > 1 ? `${a.step} · ` : "";
  const shift = a.low === 0 ? "" : a.low > 0 ? ` − ${a.low}` : ` + ${-a.low}`;
  const index = o * a.step + t * a.tapStep - a.low;
  if (settings.transposed) {
    const [rule, here] = [`${output} + ${tapRule}${shift}`, `${o} + ${tapHere}${shift}`];
    const outcome =
      read < 0
        ? `${index / stride === Math.trunc(index / stride) ? "outside" : "between elements"}: 0`
        : read;
    return stride > 1
      ? [`(${rule}) / ${stride}`, `(${here}) / ${stride}`, outcome]
      : [rule, here, outcome];
  }
  const inside = index >= 0 && index < a.size;
  const outcome = inside
    ? index
    : read < 0
      ? `${index}: padding`
      : `${index} → ${read} (${settings.mode})`;
  const zero = !inside && settings.mode === "zeros";
  return [
    `${scale}${output} + ${tapRule}${shift}`,
    `${scale}${o} + ${tapHere}${shift}`,
    zero ? `${index}: padding, 0` : outcome,
  ];
}

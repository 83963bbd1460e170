// Answers the tests in Python: one question a line, {ask, with}, one answer a line, {is} or {threw}.
// It imports the sources of the page's model; there is no DOM in them.

import { Session } from "node:inspector";
import { createInterface } from "node:readline";
import { fromAddress, toAddress } from "../../src/convfc/explorer/web/src/model/address.js";
import { code, notebook } from "../../src/convfc/explorer/web/src/model/code.js";
import { DIGITS } from "../../src/convfc/explorer/web/src/model/digits.js";
import * as geometry from "../../src/convfc/explorer/web/src/model/geometry.js";
import { indexMap } from "../../src/convfc/explorer/web/src/model/indexmap.js";
import { PRESETS, stateOf } from "../../src/convfc/explorer/web/src/model/presets.js";
import { gradient, someFilters } from "../../src/convfc/explorer/web/src/model/start.js";
import { Store, VERSION } from "../../src/convfc/explorer/web/src/model/store.js";

const each = (count, what) => Array.from({ length: count }, (_, i) => what(i));

const engine = new Session();
engine.connect();
engine.post("Profiler.enable");

const answers = {
  facts: () => ({
    version: VERSION, modes: geometry.MODES, perAxis: geometry.PER_AXIS, single: geometry.SINGLE,
    padding: geometry.PADDING, most: geometry.MOST, flags: geometry.FLAGS, defaults: geometry.DEFAULTS,
    presets: PRESETS.map((preset) => ({ ...preset, state: stateOf(preset) })),
    digits: DIGITS.map(({ label, pixels }) => ({ label, pixels: [...pixels] })),
  }),

  problems: (settings) => geometry.problems(settings),

  // The map, entry by entry in each of the ways in which it can be asked.
  map(settings) {
    const map = indexMap(settings);
    const { rows, columns } = map;
    return {
      rows, columns, taps: map.taps, outputSize: map.outputSize, flat: [...map.flat()],
      elements: each(rows * columns, (i) => map.element(Math.floor(i / columns), i % columns)),
      coordinates: each(rows * columns, (i) => map.coordinates(Math.floor(i / columns), i % columns)),
      padded: each(rows * columns, (i) => map.paddedCoordinates(Math.floor(i / columns), i % columns)),
      readers: each(geometry.product(map.inputShape), (flat) => [...map.readers(flat)]),
      readerCounts: each(geometry.product(map.inputShape), (flat) => map.readerCounts(flat)),
      turn: each(columns, (q) => map.turn(q)),
    };
  },

  // Everything that is computed with numbers, of a store that holds them.
  numbers(state) {
    const store = new Store(state);
    const { map, settings } = store;
    const cells = each(map.rows * settings.filters, (i) => [Math.floor(i / settings.filters), i % settings.filters]);
    return {
      problems: store.problems, state: store.toJSON(),
      M: [...store.M], K: [...store.K], Y: [...store.Y],
      entries: each(map.rows * map.columns, (i) => store.entry(Math.floor(i / map.columns), i % map.columns)),
      planes: each(settings.filters, (f) => [...store.plane(f)]),
      sums: cells.map(([p, f]) => store.arithmetic(p, f).sum),
      terms: cells.map(([p, f]) => store.arithmetic(p, f).terms.map(({ q, x, w, product }) => [q, x, w, product])),
      // Of all channels, and of as many as six terms hold, with the rest.
      subtotals: cells.map(([p, f]) => [...store.arithmetic(p, f).subtotals]),
      few: cells.map(([p, f]) => {
        const { subtotals, rest, terms, bias } = store.arithmetic(p, f, 6);
        return { subtotals: [...subtotals], rest, bias, terms: terms.map(({ q, channel }) => [q, channel]) };
      }),
      T: cells.map(([p, f]) => [...store.bigRow(p, f)]),
      dX: [...store.dX],
      dK: each(settings.filters, (f) => [...store.dK(f)]),
    };
  },

  code: (settings, language) => code(settings, language),

  // The program with the numbers of a store, for each of some selections, and all outputs.
  programs(state, language, selections) {
    const store = new Store(state);
    const programs = selections.map((selection) => {
      store.select(selection);
      return code(store.settings, language, store);
    });
    return { programs, Y: [...store.Y], state: store.toJSON() };
  },

  notebook: (program, about) => notebook(program, about),

  // A store's address, and the state that it leads to.
  address(state) {
    const store = new Store(state);
    const address = toAddress(store);
    const { state: found, notes } = fromAddress(address);
    return { address, notes, before: store.toJSON(), after: found && new Store(found).toJSON() };
  },

  // What an address of anybody leads to: a state that a store can hold, or none.
  visit(address) {
    const { state, notes } = fromAddress(address);
    const store = state && new Store(state);
    return { notes, settings: store?.settings, problems: store?.problems, selection: store?.selection, said: store?.describe() };
  },

  load: (state) => new Store(state).toJSON(),

  // The numbers that settings start with.
  start(settings) {
    const [input, filters] = [gradient(settings), someFilters(settings)];
    return { input: [...input], filters: [...filters], signed: filters.some((w) => Object.is(w, -0)) };
  },

  // How often functions, branches and loops' bodies are run to make them, which the engine counts in
  // what it compiles from now on: in a module of its own.
  async startSteps(settings) {
    engine.post("Profiler.startPreciseCoverage", { callCount: true, detailed: true });
    const fresh = await import(`../../src/convfc/explorer/web/src/model/start.js?${Math.random()}`);
    fresh.gradient(settings);
    fresh.someFilters(settings);
    let sum = 0;
    engine.post("Profiler.takePreciseCoverage", (_, { result }) => {
      for (const { functions } of result)
        for (const { ranges } of functions) for (const { count } of ranges) sum += count;
    });
    engine.post("Profiler.stopPreciseCoverage");
    return sum;
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const { ask, with: given } = JSON.parse(line);
  let answer;
  try {
    answer = { is: (await answers[ask](...given)) ?? null };
  } catch (error) {
    answer = { threw: String(error.stack) };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}

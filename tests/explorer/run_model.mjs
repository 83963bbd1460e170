// Answers the tests in Python: one question a line, {ask, with}, one answer a line, {is} or {threw}.
// It imports the sources of the page's model; there is no DOM in them.

import { Session } from "node:inspector";
import { createInterface } from "node:readline";
import { fromAddress, toAddress } from "../../src/convfc/explorer/web/src/model/address.js";
import { code } from "../../src/convfc/explorer/web/src/model/code.js";
import { DIGITS } from "../../src/convfc/explorer/web/src/model/digits.js";
import * as geometry from "../../src/convfc/explorer/web/src/model/geometry.js";
import { indexMap } from "../../src/convfc/explorer/web/src/model/indexmap.js";
import { PRESETS, stateOf } from "../../src/convfc/explorer/web/src/model/presets.js";
import { gradient, someFilters } from "../../src/convfc/explorer/web/src/model/start.js";
import * as training from "../../src/convfc/explorer/web/src/model/training.js";
import { Store, VERSION } from "../../src/convfc/explorer/web/src/model/store.js";

const each = (count, what) => Array.from({ length: count }, (_, i) => what(i));

const engine = new Session();
engine.connect();
engine.post("Profiler.enable");

// How often functions, branches and loops' bodies of a module are run, which the engine counts in what it
// compiles from now on: in a module of its own.
async function counted(module, run) {
  engine.post("Profiler.startPreciseCoverage", { callCount: true, detailed: true });
  run(await import(`../../src/convfc/explorer/web/src/model/${module}.js?${Math.random()}`));
  let sum = 0;
  engine.post("Profiler.takePreciseCoverage", (_, { result }) => {
    for (const { functions } of result)
      for (const { ranges } of functions) for (const { count } of ranges) sum += count;
  });
  engine.post("Profiler.stopPreciseCoverage");
  return sum;
}

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
      T: cells.map(([p, f]) => [...store.bigRow(p, f)]),
      dX: [...store.dX],
      dK: each(settings.filters, (f) => [...store.dK(f)]),
    };
  },

  code: (settings, language) => code(settings, language),

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

  startSteps: (settings) =>
    counted("start", (fresh) => {
      fresh.gradient(settings);
      fresh.someFilters(settings);
    }),

  // --- the tab Train

  async manyDigits() {
    const { inputs, labels } = await training.manyDigits();
    return { pixels: Array.from(inputs, (value) => 16 * value), labels: [...labels] };
  },

  plan: (text) => training.readPlan(text),

  // Loss and gradients of both networks with these numbers, in float64; K is (taps, filters).
  gradients(settings, { x, K, W, labels, backwards }) {
    const map = indexMap(settings);
    const layers = [
      new training.SlidingLayer(map, settings.filters, Float64Array),
      new training.PatchLayer(map, settings.filters, Float64Array, backwards),
    ];
    return layers.map((first) => {
      const net = new training.Network(first, Float64Array);
      const at = each(K.length, (i) => first.place(Math.floor(i / settings.filters), i % settings.filters));
      at.forEach((place, i) => (first.weights[place] = K[i]));
      net.head.weights.set(W);
      const loss = net.learn(Float64Array.from(x), labels);
      return { loss, dK: at.map((place) => first.gradient[place]), dW: [...net.head.gradient], dY: [...net.dY] };
    });
  },

  // Weights after steps of an optimiser with these gradients, in float64.
  moves(plan, weights, gradients) {
    const layer = { weights: Float64Array.from(weights) };
    const net = { layers: [layer], Numbers: Float64Array };
    gradients.forEach((gradient, step) => {
      layer.gradient = gradient;
      training.Network.prototype.move.call(net, plan, step + 1);
    });
    return [...layer.weights];
  },

  // What a plan leads to; K of both networks is (taps, filters).
  async train(plan) {
    const digits = await training.manyDigits();
    const twins = new training.Twins(digits, { ...training.PLAN, ...plan });
    while (twins.steps < plan.steps) twins.step();
    const { map, filters } = twins.nets[0].first;
    return {
      differences: twins.differences, losses: twins.losses, seen: twins.turn, unseen: twins.unseen,
      K: twins.nets.map(({ first }) => each(map.taps * filters, (i) => first.weights[first.place(Math.floor(i / filters), i % filters)])),
      W: twins.nets.map(({ head }) => [...head.weights]),
      right: twins.guesses().map((all) => all.filter((c, i) => c === digits.labels[twins.unseen[i]]).length / all.length),
    };
  },

  // Steps of the engine for one step of training.
  async trainSteps(plan) {
    const digits = await training.manyDigits();
    return counted("training", (fresh) => new fresh.Twins(digits, { ...training.PLAN, ...plan }).step());
  },

  asDigit: (pixels, side) => [...training.asDigit(pixels, side)],
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

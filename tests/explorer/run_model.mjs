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
import { Gif } from "../../src/convfc/explorer/web/src/model/gif.js";
import { palette } from "../../src/convfc/explorer/web/src/views/palette.js";
import { CHAPTERS, WORDS, chapterState, filled } from "../../src/convfc/explorer/web/src/model/story.js";
import * as training from "../../src/convfc/explorer/web/src/model/training.js";
import { Store, VERSION } from "../../src/convfc/explorer/web/src/model/store.js";
import { Trace } from "../../src/convfc/explorer/web/src/model/trace.js";

const each = (count, what) => Array.from({ length: count }, (_, i) => what(i));

// What a store shows of its output; null where it is covered.
const numbersOf = (store) => {
  const { map, settings: { filters: f } } = store;
  const seen = (what) => each(map.rows * f, (i) => what(Math.floor(i / f), i % f));
  return {
    problems: store.problems, size: store.outputSize, filters: [...store.filters],
    values: seen((p, f) => store.value(p, f)),
    planes: each(f, (i) => [...store.plane(i)]),
    sums: seen((p, f) => store.arithmetic(p, f).sum),
  };
};

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

  // What happens after each of some numbers of steps, asked backwards; and what stands between them.
  trace(settings, lane, at) {
    const trace = new Trace(indexMap(settings), lane);
    const { steps, memory, lines } = trace;
    const asked = at.map((n) => n ?? steps).reverse();
    const log = asked.map((n) => ({ n, ...trace.at(n), written: trace.written(n), counts: trace.counts(n), rows: [trace.before(n, 1), trace.next(n, 1)] }));
    const moves = [0, 1, 2].map((unit) => {
      const [on, back] = [[0], [steps]];
      while (on.at(-1) < steps && on.length < 3000) on.push(trace.next(on.at(-1), unit));
      while (back.at(-1) > 0 && back.length < 3000) back.push(trace.before(back.at(-1), unit));
      return [on, back.reverse(), trace.next(steps, unit), trace.before(0, unit)];
    });
    return { steps, memory, lines, log: log.reverse(), moves };
  },

  // The page's colours of numbers, of what is empty, and of the window.
  colours(values, largest) {
    const light = palette("light");
    return { cells: values.map((value) => light.css(value, largest)), empty: light.empty, window: light.window };
  },

  compared: (state) => new Store(state).compared,

  // A film of pictures of packed pixels, as the bytes of a file.
  gif(width, height, pictures, hundredths) {
    const pixels = pictures.map((picture) => Uint32Array.from(picture));
    const gif = new Gif(width, height, pixels);
    for (const picture of pixels) gif.add(picture, hundredths);
    return [...gif.end()];
  },

  // The story, as far as it is data.
  story: () => ({
    words: WORDS,
    chapters: CHAPTERS.map(({ id, parts, frame, tasks }, i) => ({
      id, parts, frame, tasks: tasks.length, state: new Store(chapterState(i + 1)).toJSON(),
      begins: chapterState(i + 1), numbers: numbersOf(new Store(chapterState(i + 1))),
    })),
  }),

  // A chapter with what somebody does, [wrong, right] for each task: what its checks say, and what is read.
  told(n, steps) {
    const { id, tasks } = CHAPTERS[n - 1];
    const store = new Store(chapterState(n));
    const said = tasks.map((task, i) => {
      const words = WORDS.chapters[id].tasks[i];
      const ask = filled(words.ask, task.asks?.(store));
      const [before, wrong, right] = [{}, ...steps[i]].map((step) => {
        for (const [name, given] of Object.entries(step)) {
          if (name === "press") store.load({ ...task.press(store), view: { tab: "arithmetic", story: n } });
          else if (name !== "answer") store[name](...given);
        }
        return task.check(store, step.answer);
      });
      const shown = { ...numbersOf(store), said: store.describe() };
      if (task.reveals) store.reveal(task.reveals(store));
      if (task.after) store.select(task.after);
      const hint = wrong && filled(wrong.wrong ? words.wrong : (words.hint ?? ""), wrong);
      return { ask, before, wrong, right, hint, done: filled(words.done, task.says?.(store)), shown };
    });
    return { said, after: numbersOf(store) };
  },

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

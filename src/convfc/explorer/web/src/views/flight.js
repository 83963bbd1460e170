// The numbers of the window on their way into the row of M, and the sum on its way into the output:
// what "stretch" and "reshape" mean, for less than half a second after a choice.

import { columnsOf } from "../model/numbers.js";

const LASTING = 420; // milliseconds, at most
const TOLD = 900; // the same in the story, where it is what one is to see
const MOST = 64; // numbers that fly; of more, these stand for all

/** Where everything starts and ends: [{from, to, value colour}], boxes in the strip's pixels. */
export function flights(strip, links, palette) {
  const { store } = strip.explorer;
  const { p, f } = store.selection;
  const { first, count } = columnsOf(store.map, f);
  const step = Math.max(1, Math.ceil(count / MOST));
  const place = (...where) => links.place(...where);
  const found = [];
  for (let t = 0; links.sees(strip.input, strip.M) && t < count; t += step) {
    const q = first + t;
    found.push({
      from: place(strip.input, ...twice(strip.input.cellRead(p, q))),
      to: place(strip.M, p, q, p, q, 11),
      colour: palette.css(store.entry(p, q), store.largest("input")),
      edge: palette.window,
    });
  }
  if (!links.sees(strip.Y, strip.output)) return found;
  const columns = strip.output.panel.grid.source.columns;
  found.push({
    from: place(strip.Y, p, f, p, f, 11),
    to: place(
      strip.output,
      Math.floor(p / columns),
      p % columns,
      Math.floor(p / columns),
      p % columns,
    ),
    colour: palette.css(store.value(p, f), store.largest("output")),
    edge: palette.hue(f),
  });
  return found;
}

/** Draw the flights at a share of their way, 0 to 1, easing in and out. */
export function drawFlights(context, all, share) {
  const eased = share < 0.5 ? 2 * share * share : 1 - (2 - 2 * share) ** 2 / 2;
  const between = (a, b) => a + (b - a) * eased;
  context.lineWidth = 1;
  for (const { from, to, colour, edge } of all) {
    const [x, y, w, h] = ["x", "y", "w", "h"].map((side) => between(from[side], to[side]));
    context.globalAlpha = 0.95 * Math.min(1, 5 * share, 5 * (1 - share));
    context.fillStyle = colour;
    context.strokeStyle = edge;
    context.fillRect(x, y, w, h);
    context.strokeRect(x, y, w, h);
  }
  context.globalAlpha = 1;
}

/** The share of the way at a time after the start; 1 when it is over, which is before the next one. */
export function shareOf(start, now, every = Infinity, told = false) {
  return Math.min(1, (now - start) / Math.min(told ? TOLD : LASTING, 0.8 * every));
}

function twice([r, c]) {
  return [r, c, r, c];
}

// Curves over the steps of a training, on a canvas: with a scale from 0, or a logarithmic one, on which what
// is exactly 0 has a band of its own.

import { FONT } from "./paint.js";

const HIGH = 190;
const ROOM = { left: 46, right: 10, top: 18, bottom: 24, band: 28 };

/**
 * options: {palette, last: the last step, tick: steps of an epoch, log?, curves: {points, colour, width?, dash?,
 * name?: written at its end}}.
 */
export function drawCurves(canvas, { palette, last, tick, log = false, curves }) {
  const wide = canvas.parentElement.clientWidth;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(wide * ratio);
  canvas.height = Math.round(HIGH * ratio);
  canvas.style.height = `${HIGH}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  context.font = `12px ${FONT}`;
  const { left, top } = ROOM;
  const [right, bottom] = [wide - ROOM.right, HIGH - ROOM.bottom];
  const floor = log ? bottom - ROOM.band : bottom;
  const x = (step) => left + ((right - left) * step) / last;
  const ends = extent(curves, log);
  const y = (value) => {
    if (log && value === 0) return bottom - ROOM.band / 2;
    const share = ((log ? Math.log10(value) : value) - ends[0]) / (ends[1] - ends[0]);
    return floor - (floor - top) * Math.min(Math.max(share, 0), 1);
  };
  const write = (text, at, align, colour = palette.muted) => {
    context.fillStyle = colour;
    context.textAlign = align;
    context.textBaseline = "middle";
    context.fillText(text, ...at);
  };
  const line = (x0, y0, x1, y1) => {
    context.beginPath();
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
    context.stroke();
  };
  context.strokeStyle = palette.line;
  if (log) {
    context.fillStyle = palette.grid;
    context.fillRect(left, floor, right - left, ROOM.band);
    write("0", [left - 6, bottom - ROOM.band / 2], "right");
  }
  const step = log ? Math.ceil((ends[1] - ends[0]) / 5) : ends[1] / 4;
  for (let at = ends[0]; at <= ends[1] + 1e-9; at += step) {
    const level = y(log ? 10 ** at : at);
    line(left, level, right, level);
    write(log ? `1e${at}`.replace("-", "−") : at.toFixed(1), [left - 6, level], "right");
  }
  const apart = tick * Math.max(1, 5 * Math.ceil(last / tick / 30));
  for (let at = 0; x(at) < right - 56; at += apart) write(String(at / tick), [x(at), bottom + 13], at ? "center" : "left");
  write(`${Math.round(last / tick)} epochs`, [right, bottom + 13], "right");
  const taken = [];
  for (const { points, colour, width = 2, dash = [], name } of curves) {
    if (!points.length) continue;
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.lineJoin = "round";
    context.setLineDash(dash);
    context.beginPath();
    // One point for a pixel: of the loss the mean, of a difference the last.
    const bin = Math.max(1, Math.floor(last / (right - left)));
    for (let at = 0; at < points.length; at += bin) {
      const own = points.slice(at, at + bin);
      context.lineTo(x(at + own.length), y(log ? own.at(-1) : own.reduce((a, b) => a + b, 0) / own.length));
    }
    context.stroke();
    context.setLineDash([]);
    if (!name) continue;
    let level = Math.max(8, y(points.at(-1)) - 9);
    while (taken.some((other) => Math.abs(other - level) < 13)) level += 1;
    taken.push(level);
    const end = x(points.length);
    const inside = Math.max(end, left + context.measureText(name).width + 8);
    context.lineWidth = 4;
    context.strokeStyle = palette.paper;
    context.textAlign = "right";
    context.textBaseline = "middle";
    context.strokeText(name, inside, level);
    write(name, [inside, level], "right", palette.ink);
  }
}

/** The ends of the scale: whole powers of ten, or 0 and a round number. */
function extent(curves, log) {
  const all = curves.flatMap(({ points }) => points).filter((value) => Number.isFinite(value) && value > 0);
  const most = all.reduce((a, b) => Math.max(a, b), log ? 1e-6 : 2);
  if (!log) return [0, Math.min(8, 2 * Math.ceil(most / 2))];
  const least = all.reduce((a, b) => Math.min(a, b), 1e-8);
  return [Math.floor(Math.log10(least)), Math.max(1, Math.ceil(Math.log10(most)))];
}

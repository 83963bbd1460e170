// How the cells of a grid are painted: as pixels of an image where they are small, with lines and
// numbers where there is room for them.

import { short } from "../model/words.js";

/**
 * The visible cells, one pixel each, scaled up; where cells are smaller than a pixel, or more than
 * `source.cells`, every nth.
 */
export function paintCells(grid, context) {
  const { source, palette, empty } = grid;
  const { r0, r1, c0, c1 } = grid.visible;
  const [most, wide] = evaluated(
    Math.min(r1 - r0 + 1, Math.max(1, Math.round(grid.height * grid.ratio))),
    Math.min(c1 - c0 + 1, Math.max(1, Math.round(grid.width * grid.ratio))),
    source.cells ?? Infinity,
  );
  const rows = sampled(r0, r1, most);
  const columns = sampled(c0, c1, wide);
  const image = new ImageData(columns.count, rows.count);
  const pixels = new Uint32Array(image.data.buffer);
  const along = Array.from({ length: columns.count }, (_, j) => columns.index(j));
  for (let i = 0, at = 0; i < rows.count; i++) {
    const r = rows.index(i);
    const line = source.line?.(r, along);
    for (const [j, c] of along.entries()) {
      pixels[at] = source.pixel
        ? source.pixel(r, c)
        : palette.packed(line ? line[j] : source.value(r, c), source.largest);
      if (empty && empty(r, c)) pixels[at] = palette.blank;
      at++;
    }
  }
  const small = scratch(columns.count, rows.count);
  small.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  const box = grid.box(r0, c0, r1, c1);
  context.drawImage(small, 0, 0, columns.count, rows.count, box.x, box.y, box.w, box.h);
  paintLines(grid, context, [r0, r1, c0, c1]);
}

function paintLines(grid, context, [r0, r1, c0, c1]) {
  const [w, h] = grid.size;
  context.strokeStyle = grid.palette.grid;
  context.lineWidth = 1;
  context.beginPath();
  const all = grid.box(r0, c0, r1, c1);
  if (w >= 6)
    for (let c = c0 + 1; c <= c1; c++)
      line(context, grid.box(0, c).x, all.y, grid.box(0, c).x, all.y + all.h);
  if (h >= 6)
    for (let r = r0 + 1; r <= r1; r++)
      line(context, all.x, grid.box(r, 0).y, all.x + all.w, grid.box(r, 0).y);
  context.stroke();
}

function line(context, x0, y0, x1, y1) {
  context.moveTo(Math.round(x0) + 0.5 * (x0 === x1), Math.round(y0) + 0.5 * (y0 === y1));
  context.lineTo(Math.round(x1) + 0.5 * (x0 === x1), Math.round(y1) + 0.5 * (y0 === y1));
}

/** The visible numbers, if there is room for the longest of them. */
export function paintNumbers(grid, context) {
  grid.font = numberFont(grid, context);
  paintOver(grid, context, [0, 0, grid.source.rows - 1, grid.source.columns - 1], null);
}

/**
 * The visible numbers from (r0, c0) to (r1, c1), above a tint {colour, alpha} if there is one. A
 * halo covers what is behind them and no ground to read on: the hatch, the number under the tint.
 */
export function paintOver(grid, context, [r0, c0, r1, c1], tint) {
  const { source, palette, font, visible, empty } = grid;
  if (!font) return;
  const [w, h] = grid.size;
  context.font = font.css;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.lineJoin = "round";
  context.lineWidth = 3;
  for (let r = Math.max(r0, visible.r0); r <= Math.min(r1, visible.r1); r++) {
    for (let c = Math.max(c0, visible.c0); c <= Math.min(c1, visible.c1); c++) {
      if (empty && empty(r, c)) continue;
      const value = source.value(r, c);
      const { x, y } = grid.box(r, c);
      const number = [short(value, font.digits), x + w / 2, y + h / 2 + 0.5];
      const faint = source.faint?.(r, c);
      if (tint || faint) {
        context.strokeStyle = palette.css(value, source.largest, tint);
        context.strokeText(...number);
      }
      context.fillStyle = palette.on(value, source.largest, tint, faint);
      context.fillText(...number);
    }
  }
}

/** Font and digits with which every visible number fits into its cell; null if there are none. */
export function numberFont(grid, context) {
  const [w, h] = grid.size;
  const { r0, r1, c0, c1 } = grid.visible;
  const most = Math.min(4000, grid.source.cells ?? Infinity);
  if (grid.source.pixel || w < 10 || h < 11 || (r1 - r0 + 1) * (c1 - c0 + 1) > most) return null;
  const texts = new Set();
  for (const digits of [3, 2]) {
    texts.clear();
    for (let r = r0; r <= r1; r++)
      for (let c = c0; c <= c1; c++) texts.add(short(grid.source.value(r, c), digits));
    context.font = `10px ${FONT}`;
    const widest = [...texts].reduce(
      (so, text) => Math.max(so, context.measureText(text).width),
      1,
    );
    const size = Math.min(Math.max(13, 0.4 * h), h * 0.63, ((w - 4) / widest) * 10);
    if (size >= 7.5) return { css: `${size}px ${FONT}`, digits, size };
  }
  return null;
}

/** The fonts of numbers, as in theme.css. */
export const FONT =
  'ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif';

/** Thin diagonal lines over cells: what lies there is padding. */
export function hatch(grid, context, cells) {
  const [w, h] = grid.size;
  context.save();
  context.strokeStyle = grid.palette.padding;
  context.lineWidth = 0.8;
  const gap = Math.min(w, h) < 8 ? Math.max(2.5, Math.min(w, h)) : 5;
  for (const [r, c] of cells) {
    const { x, y } = grid.box(r, c);
    context.save();
    context.beginPath();
    context.rect(x, y, w, h);
    context.clip();
    context.beginPath();
    // Lines x + y = constant, the same for all cells, so that they run on from cell to cell.
    for (let k = Math.floor((x + y) / gap) * gap; k < x + y + w + h; k += gap) {
      context.moveTo(k - y, y);
      context.lineTo(k - y - h, y + h);
    }
    context.stroke();
    context.restore();
  }
  context.restore();
}

/** So many rows and columns, or fewer in their proportions if these are too many cells. */
function evaluated(rows, columns, cells) {
  if (rows * columns <= cells) return [rows, columns];
  const share = Math.sqrt(cells / (rows * columns));
  const some = Math.min(Math.max(1, Math.floor(rows * share)), cells);
  return [some, Math.min(Math.max(1, Math.floor(columns * share)), Math.floor(cells / some))];
}

/** So many cells from `first` to `last`, evenly. */
function sampled(first, last, count) {
  const cells = last - first + 1;
  return { count, index: (i) => first + Math.floor(((i + 0.5) * cells) / count) };
}

let canvas = null;

function scratch(width, height) {
  canvas ??= document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

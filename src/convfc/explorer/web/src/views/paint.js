// How the cells of a grid are painted: as pixels of an image where they are small, with lines and
// numbers where there is room for them.

import { short } from "../model/words.js";

/**
 * The visible cells, one pixel each, scaled up; where cells are smaller than a pixel, every nth.
 */
export function paintCells(grid, context) {
  const { source, palette } = grid;
  const { r0, r1, c0, c1 } = grid.visible;
  const rows = sampled(r0, r1, grid.height * grid.ratio);
  const columns = sampled(c0, c1, grid.width * grid.ratio);
  const image = new ImageData(columns.count, rows.count);
  const pixels = new Uint32Array(image.data.buffer);
  const along = Array.from({ length: columns.count }, (_, j) => columns.index(j));
  for (let i = 0, at = 0; i < rows.count; i++) {
    const r = rows.index(i);
    const line = source.line?.(r, along);
    for (const c of along) {
      pixels[at] = source.pixel
        ? source.pixel(r, c)
        : palette.packed(line ? line[c] : source.value(r, c), source.largest);
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
  const { source, palette } = grid;
  const font = numberFont(grid, context);
  if (!font) return;
  const { r0, r1, c0, c1 } = grid.visible;
  const [w, h] = grid.size;
  context.font = font.css;
  context.textAlign = "center";
  context.textBaseline = "middle";
  for (let r = r0; r <= r1; r++) {
    for (let c = c0; c <= c1; c++) {
      const value = source.value(r, c);
      const { x, y } = grid.box(r, c);
      context.fillStyle = source.pixel ? palette.ink : palette.on(value, source.largest);
      context.globalAlpha = source.faint?.(r, c) ? 0.55 : 1;
      context.fillText(short(value, font.digits), x + w / 2, y + h / 2 + 0.5);
    }
  }
  context.globalAlpha = 1;
}

/** Font and digits with which every visible number fits into its cell; null if there are none. */
export function numberFont(grid, context) {
  const [w, h] = grid.size;
  const { r0, r1, c0, c1 } = grid.visible;
  if (grid.source.pixel || w < 10 || h < 11 || (r1 - r0 + 1) * (c1 - c0 + 1) > 4000) return null;
  const texts = new Set();
  for (const digits of [3, 2]) {
    texts.clear();
    for (let r = r0; r <= r1; r++)
      for (let c = c0; c <= c1; c++) texts.add(short(grid.source.value(r, c), digits));
    context.font = `10px ${FONT}`;
    const widest = [...texts].reduce(
      (most, text) => Math.max(most, context.measureText(text).width),
      1,
    );
    const size = Math.min(13, h * 0.63, ((w - 4) / widest) * 10);
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

/** Every cell from `first` to `last`, or as many of them as there are pixels. */
function sampled(first, last, pixels) {
  const cells = last - first + 1;
  const most = Math.max(1, Math.round(pixels));
  if (cells <= most) return { count: cells, index: (i) => first + i };
  return { count: most, index: (i) => first + Math.floor(((i + 0.5) * cells) / most) };
}

let canvas = null;

function scratch(width, height) {
  canvas ??= document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

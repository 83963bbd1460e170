// The strip as a picture: PNG from the canvases, SVG with true text and shapes where the cells
// are few.

import { MARGIN } from "./grid.js";
import { FONT, numberFont } from "./paint.js";
import { short } from "../model/words.js";

const SCALE = 2;
const EDGE = 24;
const CELLS = 2500; // beyond which a matrix goes into the SVG as an image

/**
 * What the strip shows, laid out: grids with their captions, and the words and signs between
 * them.
 */
function parts(explorer) {
  const { element, views, links } = explorer.strip;
  const shown = [...element.querySelectorAll(".caption, .grid, .step, .sign")].map((node) =>
    node.getBoundingClientRect(),
  );
  const [left, top] = [
    Math.min(...shown.map((box) => box.left)) - EDGE,
    Math.min(...shown.map((box) => box.top)) - EDGE,
  ];
  const place = (node) => {
    const box = node.getBoundingClientRect();
    return { x: box.left - left, y: box.top - top, w: box.width, h: box.height };
  };
  const grids = views.map((view) => ({
    grid: view.panel.grid,
    ...place(view.panel.grid.element),
    caption: place(view.panel.caption),
    lines: [view.panel.caption.textContent.replace(view.panel.shape.textContent, "").trim(), view.panel.shape.textContent],
    formula: view.panel.options.formula,
  }));
  const words = [...element.querySelectorAll(".step, .sign")].map((node) => ({
    ...place(node),
    text: node.textContent,
    sign: node.classList.contains("sign"),
  }));
  return {
    width: Math.max(...shown.map((box) => box.right)) - left + EDGE,
    height: Math.max(...shown.map((box) => box.bottom)) - top + EDGE,
    grids,
    words,
    links: links.element.hidden ? null : { canvas: links.element, ...place(links.element) },
  };
}

/** Do something while the canvases are sharp enough to be enlarged. */
function sharp(explorer, work, scale = SCALE) {
  const grids = explorer.strip.views.map((view) => view.panel.grid);
  for (const grid of grids) grid.sharpen(scale);
  const done = work();
  for (const grid of grids) grid.sharpen(null);
  return done;
}

/** The strip as a PNG blob. */
export function png(explorer) {
  return new Promise((resolve) => picture(explorer, SCALE).toBlob(resolve, "image/png"));
}

/** The strip on a canvas of its own. */
export function picture(explorer, scale) {
  const draw = () => {
    const { width, height, grids, words, links } = parts(explorer);
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [Math.round(width * scale), Math.round(height * scale)];
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    context.fillStyle = explorer.palette.paper;
    context.fillRect(0, 0, width, height);
    if (links) context.drawImage(links.canvas, links.x, links.y, links.w, links.h);
    for (const { grid, x, y, w, h } of grids) {
      context.drawImage(grid.base, x, y, w, h);
      context.drawImage(grid.overlay, x, y, w, h);
    }
    for (const label of labels(grids, words, explorer.palette)) {
      context.font = label.font;
      context.fillStyle = label.colour;
      context.textAlign = label.anchor === "middle" ? "center" : "left";
      context.fillText(label.text, label.x, label.y);
    }
    return canvas;
  };
  return sharp(explorer, draw, scale);
}

/** The strip as an SVG text. */
export function svg(explorer) {
  return sharp(explorer, () => {
    const { width, height, grids, words, links } = parts(explorer);
    const { palette } = explorer;
    const shapes = [
      tag("title", {}, escaped(explorer.store.describe())),
      tag("defs", {}, hatching(palette)),
      tag("rect", { width: "100%", height: "100%", fill: palette.paper }),
    ];
    if (links) shapes.push(image(links.canvas, links.x, links.y, links.w, links.h));
    for (const part of grids) shapes.push(...gridShapes(part, palette));
    for (const { x, y, text, size, colour, anchor, italic } of labels(grids, words, palette)) {
      const style = italic ? { "font-style": "italic" } : {};
      const how = { "font-size": size, fill: colour, "text-anchor": anchor, ...style };
      shapes.push(tag("text", { x, y, ...how }, escaped(text)));
    }
    const box = { width, height, viewBox: `0 0 ${n(width)} ${n(height)}` };
    const root = { xmlns: "http://www.w3.org/2000/svg", ...box, "font-family": FONT };
    return tag("svg", root, `\n${shapes.join("\n")}\n`) + "\n";
  });
}

/** A grid: its cells as shapes and text, or its canvas as an image; above them the selection. */
function gridShapes({ grid, x, y, w, h }, palette) {
  const { r0, r1, c0, c1 } = grid.visible;
  const few = (r1 - r0 + 1) * (c1 - c0 + 1) <= CELLS && !grid.source.pixel && !grid.cropped;
  const shapes = few ? cellShapes(grid, x, y, palette) : [image(grid.base, x, y, w, h)];
  return [...shapes, image(grid.overlay, x, y, w, h)];
}

function cellShapes(grid, x, y, palette) {
  const { rows, columns, value, largest, faint } = grid.source;
  const font = numberFont(grid, grid.base.getContext("2d"));
  const [width, height] = grid.size;
  const lines = { stroke: palette.line, "stroke-width": 0.5 };
  const edge = Math.min(width, height) < 6 ? {} : lines;
  const shapes = [];
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      const number = value(r, c);
      const at = grid.box(r, c);
      const box = { x: x + at.x, y: y + at.y, width, height };
      shapes.push(tag("rect", { ...box, fill: grid.ground(r, c), ...edge }));
      if (faint?.(r, c)) shapes.push(tag("rect", { ...box, fill: "url(#padding)" }));
      if (!font || grid.empty?.(r, c)) continue;
      const middle = { x: box.x + width / 2, y: box.y + height / 2 + font.size * 0.35 };
      const how = { "font-size": font.size, "text-anchor": "middle" };
      const colour = palette.on(number, largest);
      shapes.push(tag("text", { ...middle, ...how, fill: colour }, short(number, font.digits)));
    }
  }
  const frame = { x: x + MARGIN, y: y + MARGIN, width: grid.width, height: grid.height };
  shapes.push(tag("rect", { ...frame, fill: "none", stroke: palette.line }));
  return shapes;
}

/** The thin diagonals of padding, as on the page. */
function hatching(palette) {
  const line = tag("path", { d: "M0 5L5 0", stroke: palette.padding, "stroke-width": 0.8 });
  return tag(
    "pattern",
    { id: "padding", width: 5, height: 5, patternUnits: "userSpaceOnUse" },
    line,
  );
}

function image(canvas, x, y, width, height) {
  return tag("image", { x, y, width, height, href: canvas.toDataURL("image/png") });
}

/** One element as text; numbers get two decimals, and `content` has to be escaped already. */
function tag(name, attributes, content = null) {
  const written = Object.entries(attributes).map(
    ([key, value]) => ` ${key}="${typeof value === "number" ? n(value) : escaped(value)}"`,
  );
  const open = `<${name}${written.join("")}`;
  return content === null ? `${open}/>` : `${open}>${content}</${name}>`;
}

/** Captions, words and signs as lines of text. */
function labels(grids, words, palette) {
  const captions = grids.flatMap(({ caption, lines, formula }) =>
    // A caption that is broken on the page is so here.
    (caption.h > 30 ? lines : [lines.join(" ")]).map((text, i, all) => ({
      x: caption.x + caption.w / 2,
      y: caption.y + caption.h - 5 - 16 * (all.length - 1 - i),
      text,
      colour: palette.ink,
      size: 13,
      anchor: "middle",
      italic: formula,
      font: `${formula ? "italic " : ""}13px ${FONT}`,
    })),
  );
  const between = words.map(({ x, y, w, h, text, sign }) => ({
    x: x + w / 2,
    y: y + h / 2 + (sign ? 8 : 16),
    text: sign ? text : `→ ${text}`,
    colour: palette.muted,
    size: sign ? 22 : 11,
    anchor: "middle",
    font: `${sign ? 22 : 11}px ${FONT}`,
  }));
  return [...captions, ...between];
}

/** Hand a blob to the person as a file. */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function n(value) {
  return Number(value.toFixed(2));
}

function escaped(text) {
  return text.replace(
    /[&<>"]/g,
    (letter) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[letter],
  );
}

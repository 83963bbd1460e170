// The colours that canvases draw with. Values: a diverging scale whose zero is the background,
// blue and orange, which stay apart for every kind of colour vision. Filters: the order of Okabe
// and Ito, and a dash of their own, so that nothing is said by colour alone. The window and its
// row of M: one colour.

const SCHEMES = {
  light: {
    paper: [255, 255, 255],
    empty: [226, 230, 236],
    positive: [18, 58, 105],
    negative: [176, 72, 14],
    ink: "#1b2430",
    muted: "#5a6675",
    line: "#dfe4ea",
    grid: "rgba(27,36,48,0.10)",
    window: "#b0127f",
    halo: "rgba(255,255,255,0.9)",
    padding: "rgba(90,102,117,0.55)",
    lit: "#b0127f",
    hues: ["#c77700", "#2a8fc9", "#00835d", "#0060b0", "#c44900", "#6b7280", "#8a7a00"],
  },
  dark: {
    paper: [20, 25, 33],
    empty: [50, 58, 70],
    positive: [150, 203, 255],
    negative: [255, 158, 92],
    ink: "#e8edf3",
    muted: "#a3afbd",
    line: "#313b48",
    grid: "rgba(232,237,243,0.11)",
    window: "#ff7fd6",
    halo: "rgba(20,25,33,0.9)",
    padding: "rgba(163,175,189,0.5)",
    lit: "#ff7fd6",
    hues: ["#e69f00", "#56b4e9", "#2fc796", "#78a9ff", "#ff8548", "#b4bdc9", "#f0e442"],
  },
};

const DASHES = [[], [7, 3], [2.5, 2.5], [9, 3, 2.5, 3], [14, 4], [5, 2], [1.5, 3]];

/** For numbers. Black is only for the few grounds where neither of the others can be read. */
const INKS = ["#10161e", "#ffffff", "#000000"];

/** Steps of the scale on each side of zero. */
const STEPS = 255;

/** Everything a canvas needs to draw in a scheme, "light" or "dark". */
export function palette(scheme) {
  const colours = SCHEMES[scheme];
  const table = Array.from({ length: 2 * STEPS + 1 }, (_, i) => {
    const share = Math.abs(i - STEPS) / STEPS;
    return mixed(colours.paper, i < STEPS ? colours.negative : colours.positive, share ** 0.85);
  });
  const packed = Uint32Array.from(
    table,
    ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0,
  );
  // What is infinite is at an end of the scale, what is no number is nothing: the paper.
  const step = (value, largest) => {
    const share = Number.isFinite(value) ? value / largest : Math.sign(value);
    return Math.round(Math.min(Math.max(share || 0, -1), 1) * STEPS) + STEPS;
  };
  const behind = (value, largest, tint) => {
    const colour = table[step(value, largest)];
    return tint ? mixed(colour, parts(tint.colour), tint.alpha) : colour;
  };
  return {
    ...colours,
    scheme,
    paper: rgb(colours.paper),
    empty: rgb(colours.empty),
    blank: packedRgb(...colours.empty.map((v) => v / 255)),
    hue: (f) => colours.hues[f % colours.hues.length],
    dash: (f) => DASHES[f % DASHES.length],
    packed: (value, largest) => packed[step(value, largest)],
    /** The colour of a cell, maybe under a tint {colour, alpha}. */
    css: (value, largest, tint = null) => rgb(behind(value, largest, tint)),
    /** The colour of a number on it, faint or not: with a contrast of 4.5 : 1 at least. */
    on: (value, largest, tint = null, faint = false) => {
      const ground = luminance(behind(value, largest, tint));
      const inks = faint ? [colours.muted, ...INKS] : INKS;
      return inks.find((ink) => contrast(luminance(parts(ink)), ground) >= 4.5);
    },
  };
}

/** Three numbers from 0 to 1 as one packed pixel. */
export function packedRgb(r, g, b) {
  const [x, y, z] = [r, g, b].map((v) => Math.round(Math.min(Math.max(v, 0), 1) * 255));
  return ((255 << 24) | (z << 16) | (y << 8) | x) >>> 0;
}

/** Red, green and blue of "#rrggbb" or "rgb(r, g, b)". */
function parts(colour) {
  if (colour.startsWith("#"))
    return [1, 3, 5].map((at) => Number.parseInt(colour.slice(at, at + 2), 16));
  return colour.match(/\d+/g).map(Number);
}

/** Contrast of two luminances, as WCAG defines it. */
function contrast(a, b) {
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}

/** Relative luminance, as WCAG defines it. */
function luminance(colour) {
  const [r, g, b] = colour.map((v) =>
    v <= 10 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4,
  );
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function mixed(a, b, share) {
  return a.map((from, i) => Math.round(from + (b[i] - from) * share));
}

function rgb([r, g, b]) {
  return `rgb(${r}, ${g}, ${b})`;
}

// Where the input can come from: a digit of the library, a drawing, a file.

import { button, check, el, fill, radioGroup } from "./dom.js";
import { DIGITS } from "../model/digits.js";
import { outputSize, problems } from "../model/geometry.js";
import { SIDE, someFilters } from "../model/start.js";
import { Pad } from "./pad.js";

/** Side of an opened photograph, at least. */
const PHOTO = 64;

/** Digits, pad and file, below the settings of the input. */
export class Pictures {
  constructor(explorer) {
    this.explorer = explorer;
    // The arrow keys choose: a digit only changes the input, and is seen there at once.
    this.digits = radioGroup(
      { class: "digits", "aria-label": "A digit as the input" },
      DIGITS.map(({ label, pixels }, index) =>
        el(
          "button",
          {
            type: "button",
            class: "digit",
            data: { digit: index },
            "aria-label": `Digit ${label}, number ${index}`,
            onclick: () => explorer.store.chooseDigit(index),
          },
          thumbnail(pixels),
        ),
      ),
      { follow: true },
    );
    this.pad = new Pad((pixels) => explorer.store.drawPixels(pixels, "a drawing"));
    this.file = el("input", {
      type: "file",
      name: "picture",
      accept: "image/*",
      class: "unseen",
      "aria-label": "Open an image file",
    });
    this.file.addEventListener("change", () => this._open(this.file.files[0]));
    const target = explorer.strip.input.element;
    target.addEventListener("dragover", (event) => event.preventDefault());
    target.addEventListener("drop", (event) => {
      event.preventDefault();
      this._open(event.dataTransfer.files[0]);
    });
    this.note = el("p", { class: "problem", role: "alert" });
    this.note.hidden = true;
    this.element = el(
      "div",
      { class: "pictures" },
      this.digits,
      el(
        "div",
        { class: "row" },
        button("draw", "Draw a digit", () => this.pad.open(), { symbol: "pen", text: "Draw" }),
        el("label", { class: "button" }, this.file, "Open image"),
      ),
      this.note,
    );
  }

  update() {
    const { digit } = this.explorer.store;
    check(this.digits, (chip) => chip.dataset.digit === String(digit));
  }

  async _open(file) {
    if (!file) return;
    const { explorer } = this;
    try {
      const bitmap = await createImageBitmap(file);
      // The filters of a layer have their own size and channels: the picture is made to fit them.
      const { preset, kept } = explorer.store.given;
      const own = !preset && kept.filters.source && explorer.store.given !== this.opened;
      const start = own ? null : this._start(bitmap, file.name);
      if (start) {
        explorer.start(start);
        this.opened = explorer.store.given;
      } else {
        const { settings } = explorer.store;
        const { values, said } = picture(bitmap, settings);
        explorer.store.draw(values, `${file.name}, ${said}`, { range: [0, 1], settings });
      }
      this.note.hidden = true;
    } catch {
      fill(
        this.note,
        `“${file.name}” is not an image that this browser can read. Use a PNG or JPEG file.`,
      );
      this.note.hidden = false;
    }
    this.file.value = "";
  }

  /**
   * A state that starts with a picture: a small one as it is, another one so large that one knows it
   * again, in colour if it has any, and filters that show something in it. Null where the settings have
   * no room for it.
   */
  _start(bitmap, name) {
    const { settings } = this.explorer.store;
    if (settings.axes === 1) return null;
    const small = Math.max(bitmap.width, bitmap.height) <= SIDE;
    const size = small ? [bitmap.height, bitmap.width] : settings.size.map((n) => Math.max(n, PHOTO));
    let wanted = { ...settings, size };
    if (settings.groups === 1)
      wanted = { ...wanted, filters: Math.max(settings.filters, 4), channels: 3 };
    if (problems(wanted).length) return null;
    let { values, said, grey } = picture(bitmap, wanted);
    if (grey && settings.groups === 1) {
      wanted = { ...wanted, channels: 1 };
      ({ values, said } = picture(bitmap, wanted));
    }
    const colours = wanted.channels / wanted.groups === 3 ? "red against blue, " : "";
    const kinds = `vertical edges, horizontal edges, ${colours}a blur`;
    return {
      title: name,
      source: `Input: ${said}. Filters: ${kinds}.`,
      settings: wanted,
      input: { values, range: [0, 1] },
      filters: someFilters(wanted, true),
      selection: { p: outputSize(wanted).reduce((p, n) => p * n + Math.floor(n / 2), 0) },
    };
  }
}

/** A bitmap as an input for settings: {values, said, grey: whether it has no colours}. */
function picture(bitmap, { axes, size, channels }) {
  const [height, width] = axes > 1 ? size : [1, size[0]];
  const side = Math.min(bitmap.width / width, axes > 1 ? bitmap.height / height : Infinity);
  const [w, h] = [width * side, axes > 1 ? height * side : 1];
  const context = el("canvas", { width, height }).getContext("2d");
  context.fillStyle = "#fff"; // under what is seen through
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  const corner = [(bitmap.width - w) / 2, (bitmap.height - h) / 2];
  context.drawImage(bitmap, ...corner, w, h, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  const now = size.join(" × ");
  const resized = `${axes > 1 ? "cut and resized" : "its middle row, resized"} from ${bitmap.height} × ${bitmap.width} to ${now}`;
  const same = axes > 1 && bitmap.height === height && bitmap.width === width;
  const shown = channels === 3 ? "in colour" : "its grey values";
  return {
    values: fromPixels(data, channels),
    said: `${same ? now : resized}, ${shown}`,
    grey: data.every((value, i) => i % 4 === 3 || value === data[i - (i % 4)]),
  };
}

/**
 * Pixels (red, green, blue, alpha) as channels: three are the colours, any other number is grey.
 */
function fromPixels(data, channels) {
  const values = new Float64Array((data.length / 4) * channels);
  for (let i = 0; i < data.length / 4; i++) {
    const colour = [0, 1, 2].map((d) => data[4 * i + d] / 255);
    const grey = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2];
    for (let d = 0; d < channels; d++)
      values[i * channels + d] = Math.round((channels === 3 ? colour[d] : grey) * 1000) / 1000;
  }
  return values;
}

/** A digit as a small picture in the colour of the text, whatever the theme. */
export function thumbnail(pixels, side = SIDE) {
  const canvas = el("canvas", { width: side, height: side, "aria-hidden": "true" });
  const image = new ImageData(side, side);
  for (let i = 0; i < pixels.length; i++) image.data.set([110, 125, 145, pixels[i]], 4 * i);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

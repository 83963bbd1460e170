// Where the input can come from: a digit of the library, a drawing, a file.

import { button, check, el, fill, radioGroup } from "./dom.js";
import { DIGITS } from "../model/digits.js";
import { problems } from "../model/geometry.js";
import { SIDE } from "../model/start.js";
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
      this.pad.element,
    );
  }

  update() {
    const { digit } = this.explorer.store;
    check(this.digits, (chip) => chip.dataset.digit === String(digit));
  }

  async _open(file) {
    if (!file) return;
    const { store } = this.explorer;
    try {
      const bitmap = await createImageBitmap(file);
      const settings = this._roomFor(store.settings);
      const { axes, size, channels } = settings;
      const [height, width] = axes > 1 ? size : [1, size[0]];
      const side = Math.min(bitmap.width / width, axes > 1 ? bitmap.height / height : Infinity);
      const [w, h] = [width * side, axes > 1 ? height * side : 1];
      const canvas = el("canvas", { width, height });
      const context = canvas.getContext("2d");
      context.imageSmoothingQuality = "high";
      const corner = [(bitmap.width - w) / 2, (bitmap.height - h) / 2];
      context.drawImage(bitmap, ...corner, w, h, 0, 0, width, height);
      const { data } = context.getImageData(0, 0, width, height);
      const said = [
        file.name,
        `${axes > 1 ? "cut and resized" : "its middle row, resized"} from ${bitmap.height} × ${bitmap.width} to ${size.join(" × ")}`,
        channels === 3 ? "in colour" : "its grey values",
      ];
      store.draw(fromPixels(data, channels), said.join(", "), { range: [0, 1], settings });
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
   * The settings with an input on which one knows a photograph again, unless the filters are those of a
   * layer, which has its own size and channels.
   */
  _roomFor(settings) {
    const { given: start, preset } = this.explorer.store;
    const given = (!preset && start.kept.filters.source) || settings.axes === 1;
    const size = settings.size.map((n) => Math.max(n, PHOTO));
    const larger = { ...settings, size, channels: settings.groups === 1 ? 3 : settings.channels };
    return given || problems(larger).length ? settings : larger;
  }
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

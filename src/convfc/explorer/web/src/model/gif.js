// A film as a GIF file, which slides and mails take: one palette for all pictures, each packed by LZW,
// and of each only what has changed.

/** Colours of a GIF. */
const COLOURS = 256;

/**
 * The encoder: `add` takes pictures as packed pixels (Uint32Array, as from a canvas), all of one size, and
 * how long they stay, in hundredths of a second; `end` gives the file's bytes. The palette is that of `samples`.
 */
export class Gif {
  constructor(width, height, samples) {
    this.size = [width, height];
    this.bytes = [...letters("GIF89a"), ...word(width), ...word(height), 0xf7, 0, 0];
    this.palette = common(samples);
    this.known = new Map();
    for (let i = 0; i < COLOURS; i++) this.bytes.push(...(this.palette[i] ?? [0, 0, 0]));
    this.bytes.push(0x21, 0xff, 11, ...letters("NETSCAPE2.0"), 3, 1, 0, 0, 0); // again and again
    this.before = null;
    this.pictures = 0;
  }

  add(pixels, hundredths) {
    const [width, height] = this.size;
    const indices = new Uint8Array(pixels.length);
    for (let at = 0; at < pixels.length; at++)
      indices[at] = pixels[at] === pixels[at - 1] ? indices[at - 1] : this._index(pixels[at]);
    const [x0, y0, x1, y1] = this.before ? changed(this.before, indices, width) : [0, 0, width, height];
    this.before = indices;
    const part = new Uint8Array((x1 - x0) * (y1 - y0));
    for (let y = y0; y < y1; y++) part.set(indices.subarray(y * width + x0, y * width + x1), (y - y0) * (x1 - x0));
    this.bytes.push(0x21, 0xf9, 4, 4, ...word(hundredths), 0, 0);
    this.bytes.push(0x2c, ...word(x0), ...word(y0), ...word(x1 - x0), ...word(y1 - y0), 0);
    for (const byte of packed(part)) this.bytes.push(byte);
    this.pictures += 1;
  }

  end() {
    return Uint8Array.from([...this.bytes, 0x3b]);
  }

  /** The nearest colour of the palette. */
  _index(pixel) {
    const found = this.known.get(pixel);
    if (found !== undefined) return found;
    const own = parts(pixel);
    let [best, least] = [0, Infinity];
    this.palette.forEach((colour, i) => {
      const off = colour.reduce((sum, v, c) => sum + (v - own[c]) ** 2, 0);
      if (off < least) [best, least] = [i, off];
    });
    this.known.set(pixel, best);
    return best;
  }
}

/** The most frequent colours of pictures, no two of them closer than can be seen. */
function common(samples) {
  const counts = new Map();
  for (const pixels of samples) for (const pixel of pixels) counts.set(pixel, (counts.get(pixel) ?? 0) + 1);
  const seen = new Set();
  const found = [];
  for (const [pixel] of [...counts].sort((a, b) => b[1] - a[1])) {
    const near = parts(pixel).map((v) => v >> 3).join();
    if (seen.has(near)) continue;
    seen.add(near);
    found.push(parts(pixel));
    if (found.length === COLOURS) break;
  }
  return found;
}

/** The box around what differs; never empty. */
function changed(before, after, width) {
  let [x0, y0, x1, y1] = [width, Infinity, 0, 0];
  after.forEach((index, at) => {
    if (index === before[at]) return;
    const [x, y] = [at % width, Math.floor(at / width)];
    [x0, y0, x1, y1] = [Math.min(x0, x), Math.min(y0, y), Math.max(x1, x + 1), y + 1];
  });
  return x1 ? [x0, y0, x1, y1] : [0, 0, 1, 1];
}

/** LZW of bytes, in the blocks of a GIF. */
function* packed(bytes) {
  const [clear, end] = [COLOURS, COLOURS + 1];
  yield 8;
  const block = [];
  let [bits, room] = [0, 0];
  let [codes, next, width] = [new Map(), end + 1, 9];
  const out = [];
  const put = (code) => {
    bits |= code << room;
    room += width;
    while (room >= 8) {
      block.push(bits & 255);
      bits >>>= 8;
      room -= 8;
      if (block.length === 255) out.push(255, ...block.splice(0));
    }
  };
  put(clear);
  let prefix = bytes[0];
  for (let at = 1; at < bytes.length; at++) {
    const key = prefix * COLOURS + bytes[at];
    const known = codes.get(key);
    if (known !== undefined) {
      prefix = known;
      continue;
    }
    put(prefix);
    if (next === 4096) {
      put(clear);
      [codes, next, width] = [new Map(), end + 1, 9];
    } else {
      if (next === 1 << width) width += 1;
      codes.set(key, next++);
    }
    prefix = bytes[at];
    if (out.length > 4096) yield* out.splice(0);
  }
  put(prefix);
  put(end);
  if (room) block.push(bits & 255);
  yield* out;
  if (block.length) yield* [block.length, ...block];
  yield 0;
}

/** Red, green and blue of a packed pixel. */
function parts(pixel) {
  return [pixel & 255, (pixel >> 8) & 255, (pixel >> 16) & 255];
}

function letters(text) {
  return [...text].map((letter) => letter.charCodeAt(0));
}

function word(n) {
  return [n & 255, n >> 8];
}

// The film as a GIF, which slides take: the strip at some of its steps, as large as it is on the page.

import { download, picture } from "./export.js";
import { Gif } from "../model/gif.js";

/** Pictures of a film, and how long each of them and the last stays, in hundredths of a second. */
const PICTURES = 48;
const EACH = 18;
const LAST = 130;

/** Save ten seconds of the film, or less; its button says how far it is. */
export async function saveFilm(explorer, button) {
  const { store, transport } = explorer;
  const { map } = store;
  const { lane, steps } = store.trace;
  transport.pause();
  const text = button.textContent;
  const said = button.lastChild;
  const count = Math.min(PICTURES, steps + 1);
  const at = (i) => Math.round((i * steps) / (count - 1));
  const pixels = (i) => {
    store.goTo(at(i), steps > PICTURES);
    explorer.redraw();
    const canvas = picture(explorer, 1);
    const { data, width, height } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return { data: new Uint32Array(data.buffer), width, height };
  };
  const some = [0, count >> 1, count - 1].map(pixels);
  const [{ width, height }] = some;
  const gif = new Gif(width, height, some.map(({ data }) => data));
  for (let i = 0; i < count; i++) {
    said.textContent = `${i + 1} of ${count}`;
    await new Promise((resolve) => setTimeout(resolve)); // the page is drawn, and can be used
    const { data, ...size } = pixels(i);
    const same = store.map === map && store.view.lane === lane && store.moment !== null;
    if (!same || size.width !== width || size.height !== height) break;
    gif.add(data, i < count - 1 ? EACH : LAST);
  }
  said.textContent = text;
  if (gif.pictures < count) return explorer.say("The film is not saved: the page was changed meanwhile.");
  const name = `convfc-${store.preset ?? "convolution"}-${lane}.gif`;
  download(new Blob([gif.end()], { type: "image/gif" }), name);
  explorer.say(`Saved as ${name}.`);
}

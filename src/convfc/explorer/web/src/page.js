// The explorer alone on a page: it starts from the state in the page and what the address says of it,
// else from the address alone, else from the paper's experiment, and keeps the address in step.

import { fromAddress, toAddress } from "./model/address.js";
import { complete } from "./model/geometry.js";
import { mount } from "./explorer.js";

const PATIENCE = 300; // milliseconds between a change and its address

/** Start on the element `#convfc-explorer`, if the document has one. */
export function startOnPage() {
  const element = document.getElementById("convfc-explorer");
  if (!element) return null;
  const written = document.getElementById("convfc-state")?.textContent.trim();
  const own = written && written !== "null" ? JSON.parse(written) : null;
  const given = asked(own);
  let timer = null;
  const explorer = mount(element, {
    page: true,
    state: given.state ?? undefined,
    onChange(kind) {
      if (kind === "hover" || explorer.transport.playing) return;
      clearTimeout(timer);
      timer = setTimeout(keep, PATIENCE);
    },
  });
  const keep = () => {
    const address = toAddress(explorer.store);
    if (address !== location.hash) history.replaceState(null, "", address);
  };
  addEventListener("hashchange", () => {
    const { state, notes } = asked(own);
    explorer.header.say(notes);
    if (state) explorer.store.load(state);
  });
  explorer.header.say(given.notes);
  explorer.ready.then(() => explorer.guide.offer());
  return explorer;
}

/** {state, notes}: what the address asks for, of the layer that the page was written with, if any. */
function asked(own) {
  const found = fromAddress(location.hash);
  if (!own) return found;
  if (!found.state) return { state: own, notes: found.notes };
  const { settings, selection, view, ...numbers } = found.state;
  if (JSON.stringify(complete(settings)) !== JSON.stringify(complete(own.settings))) return found;
  // The same layer: numbers that are not in the address, or were too many for it, are the page's.
  const edited = ["input", "filters", "bias"].filter((name) => numbers[name]);
  const state = { ...own, selection, view };
  for (const name of edited) state[name] = numbers[name];
  return { state, notes: found.cut ? [] : found.notes };
}

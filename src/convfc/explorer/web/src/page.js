// The explorer alone on a page: it starts from the state in the page, else from the address, else
// from the paper's experiment, and keeps the address in step.

import { fromAddress, toAddress } from "./model/address.js";
import { mount } from "./explorer.js";

const PATIENCE = 300; // milliseconds between a change and its address

/** Start on the element `#convfc-explorer`, if the document has one. */
export function startOnPage() {
  const element = document.getElementById("convfc-explorer");
  if (!element) return null;
  const written = document.getElementById("convfc-state")?.textContent.trim();
  const given =
    written && written !== "null"
      ? { state: JSON.parse(written), notes: [] }
      : fromAddress(location.hash);
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
    const { state, notes } = fromAddress(location.hash);
    explorer.header.say(notes);
    if (state) explorer.store.load(state);
  });
  explorer.header.say(given.notes);
  explorer.ready.then(() => explorer.guide.offer());
  return explorer;
}

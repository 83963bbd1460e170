// The explorer alone on a page: it starts from the state in the page and what the address says of it,
// else from the address alone, else from the first preset, and keeps the address in step.

import { fromAddress, toAddress } from "./model/address.js";
import { mount } from "./explorer.js";

const PATIENCE = 300; // milliseconds between a change and its address

/** Start on the element `#convfc-explorer`, if the document has one. */
export function startOnPage() {
  const element = document.getElementById("convfc-explorer");
  if (!element) return null;
  const written = document.getElementById("convfc-state")?.textContent.trim();
  const own = written && written !== "null" ? { ...JSON.parse(written), mark: markOf(written) } : null;
  const asked = () => {
    const found = fromAddress(location.hash, own);
    return found.state ? found : { ...found, state: own };
  };
  const given = asked();
  // What each entry of the browser's history showed, exactly; those of an earlier load have only addresses.
  const visits = new Map();
  const load = Date.now();
  let visit = history.state?.visit ?? `${load}.0`;
  let timer = null;
  let returning = false;
  let returned = null; // the address of an entry that was gone back to
  const explorer = mount(element, {
    page: true,
    site: element.dataset.site,
    own,
    state: given.state ?? undefined,
    onChange(kind) {
      if (kind === "hover" || returning || explorer.transport.playing) return;
      clearTimeout(timer);
      timer = setTimeout(keep, PATIENCE);
    },
    onLeave() {
      // Another start is a new entry: Back comes to this one again, as it is now.
      clearTimeout(timer);
      history.replaceState({ visit }, "", toAddress(explorer.store));
      visits.set(visit, explorer.store.snapshot());
    },
    onArrive() {
      visit = `${load}.${visits.size}`;
      history.pushState({ visit }, "", toAddress(explorer.store));
    },
  });
  const keep = () => {
    const address = toAddress(explorer.store);
    if (address !== location.hash) history.replaceState({ visit }, "", address);
  };
  const back = (change) => {
    clearTimeout(timer);
    returning = true;
    change();
    returning = false;
  };
  addEventListener("popstate", ({ state }) => {
    visits.set(visit, explorer.store.snapshot());
    visit = state?.visit ?? `${load}.${visits.size}`;
    if (!visits.has(visit)) return; // there is only its address: see hashchange
    returned = location.hash;
    const there = visits.get(visit);
    back(() => {
      explorer.store.return(there);
      explorer.store.show({ tab: there.view.tab });
    });
  });
  addEventListener("hashchange", () => {
    const known = location.hash === returned;
    returned = null;
    if (known || location.hash === toAddress(explorer.store)) return;
    const { state, notes } = asked();
    explorer.header.say(notes);
    if (state) back(() => explorer.store.load(state));
  });
  explorer.header.say(given.notes);
  if (!given.state) explorer.transport.walk();
  return explorer;
}

/** A short name for a state, by which an address says that it is of this page's layer. */
function markOf(text) {
  let hash = 2166136261;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 16777619);
  return (hash >>> 0).toString(36);
}

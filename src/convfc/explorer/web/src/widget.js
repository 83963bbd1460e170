// The explorer in a notebook, for anywidget: the traitlets `state`, `selection` and `height`.

import { mount } from "./explorer.js";

const PATIENCE = 150; // milliseconds between a change on the page and its way to Python

/** anywidget's render: returns how to clean up. */
export function render({ model, el }) {
  let timer = null;
  let taking = false; // a change that comes from Python must not go back to it
  const changed = new Set();
  const given = model.get("state");
  const stated = Boolean(given && Object.keys(given).length);
  const explorer = mount(el, {
    state: stated ? given : undefined,
    own: stated && !given.preset ? given : null,
    onChange(kind) {
      if (taking || kind === "hover") return;
      changed.add(["selection", "film"].includes(kind) ? "selection" : "state");
      clearTimeout(timer);
      timer = setTimeout(send, PATIENCE);
    },
  });
  const { store } = explorer;
  // Keys that work a grid or a control must not also work the notebook around it.
  explorer.root.addEventListener("keydown", (event) => event.stopPropagation());
  const send = () => {
    if (store.view.story) return; // its numbers are not the layer's; leaving it is a change again
    // What was typed but is no convolution stays on the page; Python sees the last that is one.
    if (changed.has("state")) model.set("state", store.toJSON());
    model.set("selection", store.chosen);
    changed.clear();
    model.save_changes();
  };
  const take = (change) => () => {
    taking = true;
    try {
      change();
    } finally {
      taking = false;
    }
  };
  const onState = take(() => {
    const state = model.get("state");
    if (!state || JSON.stringify(state) === JSON.stringify(store.toJSON())) return;
    if (!state.preset && state.settings) explorer.controls.offer(state);
    store.load(state);
  });
  const onSelection = take(() => {
    const { p, f, q, element } = model.get("selection") ?? {};
    const patch = Object.entries({ p, f, q, element }).filter(([, value]) => value !== undefined);
    store.choose(Object.fromEntries(patch));
  });
  const onHeight = () => {
    const height = model.get("height");
    explorer.root.style.height = height ? `${height}px` : "";
    explorer.root.classList.toggle("scrolling", Boolean(height));
  };
  model.on("change:state", onState);
  model.on("change:selection", onSelection);
  model.on("change:height", onHeight);
  onHeight();
  const { p = 0, f = 0, q = null, element = null } = model.get("selection") ?? {};
  if (stated || p || f || q !== null || element !== null)
    onSelection(); // chosen before anything was shown
  else {
    changed.add("state"); // Python has said nothing: it is told what the page starts from
    send();
  }
  return () => {
    clearTimeout(timer);
    model.off("change:state", onState);
    model.off("change:selection", onSelection);
    model.off("change:height", onHeight);
    explorer.destroy();
  };
}

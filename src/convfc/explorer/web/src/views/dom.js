// Small helpers to make elements; text always goes in as text, never as HTML.

/**
 * An element: properties starting with "on" are listeners, "data" a dataset, the rest attributes.
 */
export function el(tag, attributes = {}, ...children) {
  const element =
    tag === "svg" || tag === "path"
      ? document.createElementNS("http://www.w3.org/2000/svg", tag)
      : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(element.dataset, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(2).filter((child) => child !== null && child !== undefined));
  return element;
}

/** Replace what an element holds. */
export function fill(element, ...children) {
  element.replaceChildren(
    ...children.flat().filter((child) => child !== null && child !== undefined),
  );
}

const PATHS = {
  first: "M6 5v14M19 5 9 12l10 7z",
  back: "M15 5 6 12l9 7M18 5v14",
  play: "M7 4.5 19 12 7 19.5z",
  pause: "M8 5v14M16 5v14",
  forward: "M9 5l9 7-9 7M6 5v14",
  last: "M18 5v14M5 5l10 7-10 7z",
  plus: "M12 6v12M6 12h12",
  minus: "M6 12h12",
  fit: "M5 9V5h4M15 5h4v4M19 15v4h-4M9 19H5v-4",
  close: "M6 6l12 12M18 6 6 18",
  copy: "M9 9h10v10H9zM5 15V5h10",
  undo: "M8 5 4 9l4 4M4 9h10a5 5 0 0 1 0 10H9",
  redo: "M16 5l4 4-4 4M20 9H10a5 5 0 0 0 0 10h5",
  pen: "M5 19l1-4L16 5l3 3L9 18z",
  link: "M10 14a4 4 0 0 0 6 0l3-3a4 4 0 0 0-6-6l-1 1M14 10a4 4 0 0 0-6 0l-3 3a4 4 0 0 0 6 6l1-1",
  image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4",
  sliders: "M5 7h14M5 12h14M5 17h14M9 5v4M15 10v4M8 15v4",
  screen: "M4 5h16v11H4zM9 20h6M12 16v4",
  done: "M5 13l5 5L19 7",
  guide: "M12 19v-1M9 9a3 3 0 1 1 4.5 2.6c-1 .6-1.5 1.2-1.5 2.9",
};

/** A line icon; hidden from screen readers, so its button needs a label. */
export function icon(name) {
  return el(
    "svg",
    { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" },
    el("path", { d: PATHS[name] }),
  );
}

/** A button with an icon, a label, and a data-action. */
export function button(action, label, onclick, { symbol, text, title } = {}) {
  const named = text === undefined || text !== label;
  return el(
    "button",
    {
      type: "button",
      class: text === undefined ? "bare" : "",
      data: { action },
      "aria-label": named ? label : null,
      title: title ?? (text === undefined ? label : null),
      onclick,
    },
    symbol ? icon(symbol) : null,
    text === undefined ? null : el("span", {}, text),
  );
}

/** Milliseconds after which a number that is being typed is taken. */
const PAUSE = 600;

/**
 * Take what is typed into a control once it is meant: on Enter, on leaving, on a step of the arrow keys,
 * or after a pause; never the first digit of two. Escape puts back what was there.
 */
export function typed(control, take) {
  let timer = null;
  const end = () => {
    clearTimeout(timer);
    delete control.dataset.typing;
  };
  const now = () => {
    if (!control.dataset.typing) return;
    end();
    take(control.value.trim() === "" ? NaN : Number(control.value));
  };
  control.addEventListener("input", () => {
    clearTimeout(timer);
    control.dataset.typing = "1";
    timer = setTimeout(now, PAUSE);
  });
  control.addEventListener("change", now);
  control.addEventListener("keydown", (event) => {
    if (event.key === "Enter") now();
    if (event.key !== "Escape" || !control.dataset.typing) return;
    event.preventDefault(); // it ends the typing alone, not the story
    end();
    control.value = control.defaultValue;
  });
  return control;
}

/** Show a value in a control, unless somebody is typing in it. */
export function put(control, value) {
  if (control.dataset.typing) return;
  control.value = control.defaultValue = String(value);
}

/** Whether an element has the focus, also inside a shadow root. */
export function focused(element) {
  return element.getRootNode().activeElement === element;
}

/**
 * A radio group that is one tab stop. Arrows, Home and End move the focus among its children, and a
 * click, Space or Enter chooses one; if `follow` is set, the one with the focus is chosen at once.
 */
export function radioGroup(attributes, radios, { follow = false } = {}) {
  const group = el("div", { role: "radiogroup", ...attributes }, radios);
  group.addEventListener("keydown", (event) => {
    const all = [...group.children];
    const at = all.indexOf(event.target);
    const to = {
      ArrowRight: at + 1,
      ArrowDown: at + 1,
      ArrowLeft: at - 1,
      ArrowUp: at - 1,
      Home: 0,
      End: all.length - 1,
    }[event.key];
    if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    const next = all[(to + all.length) % all.length];
    next.focus();
    stopAt(group, next);
    if (follow) next.click();
  });
  group.addEventListener("focusout", (event) => {
    if (!group.contains(event.relatedTarget)) stopAt(group, checked(group));
  });
  return group;
}

/** Check the child of a radio group that `chosen` is true of, or none; Tab then enters there. */
export function check(group, chosen) {
  for (const radio of group.children) {
    radio.setAttribute("role", "radio");
    radio.setAttribute("aria-checked", String(chosen(radio)));
  }
  stopAt(group, [...group.children].find(focused) ?? checked(group));
}

function checked(group) {
  return group.querySelector("[aria-checked=true]") ?? group.firstElementChild;
}

function stopAt(group, stop) {
  for (const radio of group.children) radio.tabIndex = radio === stop ? 0 : -1;
}

let last = 0;

/** An id that no other element has, also with several explorers in one document. */
export function unique(stem) {
  return `convfc-${stem}-${(last += 1)}`;
}

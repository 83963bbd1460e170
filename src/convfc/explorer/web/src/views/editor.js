// A number changed in its place: an input over the cell. What cannot be changed says why.

import { el } from "./dom.js";
import { short } from "../model/words.js";

/** Open an editor over cell (r, c) of a grid; target: {kind, index, label} or {why}. */
export function editCell(store, grid, r, c, target) {
  grid.element.querySelector(".cell-editor, .cell-note")?.remove();
  grid.reveal(r, c);
  const { x, y, w, h } = grid.box(r, c);
  if (target.why) return explain(grid, { x, y, w, h }, target.why);
  const before = store.number(target.kind, target.index);
  const input = el("input", {
    class: "cell-editor",
    name: "cell",
    type: "text",
    inputmode: "decimal",
    autocomplete: "off",
    "aria-label": target.label,
  });
  input.value = String(before);
  const width = Math.max(w, 56);
  const height = Math.max(h, 26);
  Object.assign(input.style, {
    left: `${Math.max(0, Math.min(x + w / 2 - width / 2, grid.element.clientWidth - width))}px`,
    top: `${y + h / 2 - height / 2}px`,
    width: `${width}px`,
    height: `${height}px`,
  });
  let open = true;
  const close = (refocus) => {
    if (!open) return;
    open = false;
    input.remove();
    if (refocus) grid.overlay.focus({ preventScroll: true });
  };
  const take = (refocus) => {
    if (!open) return true;
    const value = read(input.value);
    if (!Number.isFinite(value)) {
      input.setAttribute("aria-invalid", "true");
      input.title = `“${input.value}” is not a number; ${short(before)} stays until it is one.`;
      return false;
    }
    close(refocus);
    store.edit(target.kind, target.index, value);
    return true;
  };
  input.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter") take(true);
    if (event.key === "Escape") close(true);
  });
  input.addEventListener("blur", () => take(false) || close(false));
  grid.element.append(input);
  input.focus();
  input.select();
  return input;
}

/** A number as people type it: with a comma, or with the minus that we show. */
function read(text) {
  const plain = text.trim().replace("−", "-").replace(",", ".");
  return plain === "" ? NaN : Number(plain);
}

function explain(grid, { x, y, w, h }, why) {
  const note = el("p", { class: "cell-note", role: "alert" }, why);
  grid.element.append(note);
  note.style.left = `${Math.max(0, x + w / 2 - 20)}px`;
  note.style.top = `${y + h + 6}px`;
  const gone = () => note.remove();
  setTimeout(gone, 5000);
  grid.overlay.addEventListener("pointerdown", gone, { once: true });
  grid.overlay.addEventListener("blur", gone, { once: true });
  return null;
}

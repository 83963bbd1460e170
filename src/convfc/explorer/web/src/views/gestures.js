// Pointer, wheel and keyboard on a grid: hover looks, a click or tap selects, dragging moves what
// is larger than its box, the wheel and two fingers zoom.

import { focused } from "./dom.js";

const STILL = 5; // pixels that a click may move

/** Listen to a grid's canvas; returns how to stop. */
export function listen(grid) {
  const canvas = grid.overlay;
  const pointers = new Map();
  let start = null;
  let pinch = null;
  const point = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const hover = (event) => {
    if (event.pointerType === "touch") return;
    const cell = grid.at(...point(event));
    if (cell) grid.options.hover?.(...cell);
    else grid.options.hover?.(null);
  };
  const handlers = {
    pointerdown(event) {
      if (event.button) return;
      pointers.set(event.pointerId, [event.clientX, event.clientY]);
      start = { at: [event.clientX, event.clientY], moved: false };
      if (pointers.size === 2) pinch = spread(pointers);
      canvas.setPointerCapture?.(event.pointerId);
    },
    pointermove(event) {
      const before = pointers.get(event.pointerId);
      if (!before) return hover(event);
      const now = [event.clientX, event.clientY];
      pointers.set(event.pointerId, now);
      if (Math.hypot(now[0] - start.at[0], now[1] - start.at[1]) > STILL) start.moved = true;
      if (pointers.size === 2) {
        const wide = spread(pointers);
        const box = canvas.getBoundingClientRect();
        grid.zoomBy(wide.distance / pinch.distance, [
          wide.middle[0] - box.left,
          wide.middle[1] - box.top,
        ]);
        pinch = wide;
      } else if (start.moved && grid.cropped) grid.panBy(now[0] - before[0], now[1] - before[1]);
    },
    pointerup(event) {
      const known = pointers.delete(event.pointerId);
      if (!known || pointers.size || start.moved || pinch) {
        if (!pointers.size) pinch = null;
        return;
      }
      const cell = grid.at(...point(event));
      if (cell) grid.options.pick(...cell);
    },
    pointercancel(event) {
      pointers.delete(event.pointerId);
      pinch = null;
    },
    pointerleave() {
      grid.options.hover?.(null);
    },
    dblclick(event) {
      const cell = grid.at(...point(event));
      if (cell) grid.options.edit?.(...cell);
    },
    wheel(event) {
      // The page scrolls unless the grid has been chosen (focus), or Ctrl says what is meant.
      if (!event.ctrlKey && !event.metaKey && !focused(canvas)) return;
      event.preventDefault();
      grid.zoomBy(
        Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0022)),
        point(event).map((v) => v - 5),
      );
    },
    touchmove(event) {
      if (event.touches.length > 1) event.preventDefault(); // two fingers zoom the grid, not the page
    },
    keydown(event) {
      if (key(grid, event)) event.preventDefault();
    },
  };
  for (const [name, handler] of Object.entries(handlers))
    canvas.addEventListener(name, handler, { passive: false });
  return () => {
    for (const [name, handler] of Object.entries(handlers))
      canvas.removeEventListener(name, handler);
  };
}

/** Keys of the grid pattern: arrows, Home and End, pages; Enter edits; + − 0 zoom. */
function key(grid, event) {
  if (event.altKey || event.metaKey) return false;
  const { rows, columns } = grid.source;
  const [r, c] = grid.options.cursor();
  const moves = {
    ArrowUp: [-1, 0],
    ArrowDown: [1, 0],
    ArrowLeft: [0, -1],
    ArrowRight: [0, 1],
    PageUp: [-10, 0],
    PageDown: [10, 0],
    Home: event.ctrlKey ? [-r, -c] : [0, -c],
    End: event.ctrlKey ? [rows - 1 - r, columns - 1 - c] : [0, columns - 1 - c],
  };
  if (moves[event.key]) {
    const [dr, dc] = moves[event.key];
    if (grid.options.move) {
      grid.options.move(dr, dc, event.shiftKey);
      return true;
    }
    const to = [
      Math.min(Math.max(r + dr, 0), rows - 1),
      Math.min(Math.max(c + dc, 0), columns - 1),
    ];
    grid.options.pick(...to);
    return true;
  }
  if (event.key === "Enter" || event.key === "F2") {
    if (grid.options.edit) grid.options.edit(r, c);
    else grid.options.pick(r, c);
    return true;
  }
  if (event.key === " ") {
    grid.options.pick(r, c);
    return true;
  }
  const zooms = { "+": 1.5, "=": 1.5, "-": 1 / 1.5 };
  if (zooms[event.key] && !event.ctrlKey) {
    const { x, y, w, h } = grid.box(r, c);
    grid.zoomBy(zooms[event.key], [x + w / 2, y + h / 2]);
    return true;
  }
  if (event.key === "0" && !event.ctrlKey) {
    grid.reset();
    return true;
  }
  return false;
}

function spread(pointers) {
  const [a, b] = [...pointers.values()];
  return {
    distance: Math.max(1, Math.hypot(a[0] - b[0], a[1] - b[1])),
    middle: [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2],
  };
}

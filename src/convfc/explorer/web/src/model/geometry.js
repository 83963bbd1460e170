// What a convolution is, but for its weights: the rules of ConvGeometry (convfc/geometry.py), in the
// page's words. Settings are one plain object:
// {axes, size, channels, filters, kernel, stride, padding: [[low, high], ...], mode, dilation, groups,
//  transposed, outputPadding, flip, bias}

export const AXES = [1, 2];
export const MODES = ["zeros", "reflect", "replicate", "circular"];

/** Fields that hold one number per axis, with their bounds on the page. */
export const PER_AXIS = {
  size: { label: "input size", min: 1, max: 224 },
  kernel: { label: "kernel", min: 1, max: 64 },
  stride: { label: "stride", min: 1, max: 64 },
  dilation: { label: "dilation", min: 1, max: 64 },
  outputPadding: { label: "output padding", min: 0, max: 63 },
};

/** Fields that hold one number. */
export const SINGLE = {
  channels: { label: "channels", min: 1, max: 4096 },
  filters: { label: "filters", min: 1, max: 4096 },
  groups: { label: "groups", min: 1, max: 4096 },
};

export const PADDING = { label: "padding", min: 0, max: 224 };

/** Numbers that a page holds at most: of input and filters together, and of one filter's output. */
export const MOST = 2_000_000;
export const FLAGS = ["transposed", "flip", "bias"];

export const DEFAULTS = Object.freeze({
  axes: 2,
  size: [6, 6],
  channels: 1,
  filters: 3,
  kernel: [3, 3],
  stride: [1, 1],
  padding: [[0, 0], [0, 0]],
  mode: "zeros",
  dilation: [1, 1],
  groups: 1,
  transposed: false,
  outputPadding: [0, 0],
  flip: false,
  bias: false,
});

/** Complete settings from some of them; what is missing is the default. */
export function complete(some) {
  const axes = some.axes ?? some.kernel?.length ?? some.size?.length ?? DEFAULTS.axes;
  const all = { ...structuredClone(DEFAULTS), ...structuredClone(some), axes };
  return AXES.includes(axes) ? withAxes(all, axes) : all; // other numbers of axes are a problem
}

/** The same settings with another number of axes: entries are dropped, or the last one is repeated. */
export function withAxes(settings, axes) {
  const next = { ...structuredClone(settings), axes };
  for (const name of [...Object.keys(PER_AXIS), "padding"]) {
    const values = next[name].slice(0, axes);
    while (values.length < axes) values.push(structuredClone(values.at(-1)));
    next[name] = values;
  }
  return next;
}

/** Extent of the dilated kernel on an axis. */
export function extent(settings, axis) {
  return settings.dilation[axis] * (settings.kernel[axis] - 1) + 1;
}

/** Number of output positions per axis: Eq. (5) and (6), with their floor; of every geometry. */
export function outputSize(settings) {
  return settings.size.map((size, axis) => {
    const [low, high] = settings.padding[axis];
    if (settings.transposed) {
      const spread = (size - 1) * settings.stride[axis] + extent(settings, axis);
      return spread - low - high + settings.outputPadding[axis];
    }
    return Math.floor((size + low + high - extent(settings, axis)) / settings.stride[axis]) + 1;
  });
}

/** Number of taps k: kernel size times channels of a group. */
export function taps(settings) {
  return product(settings.kernel) * (settings.channels / settings.groups);
}

export function inputShape(settings) {
  return [...settings.size, settings.channels];
}

export function filtersShape(settings) {
  return [settings.filters, ...settings.kernel, settings.channels / settings.groups];
}

export function product(numbers) {
  return numbers.reduce((a, b) => a * b, 1);
}

/**
 * Every rule that the settings break: [{field, message}]; empty if they are a convolution.
 * A message says what is wrong, what is expected and what was given, and a way out.
 */
export function problems(settings) {
  if (!AXES.includes(settings.axes)) {
    return [{ field: "axes", message: `The page shows 1 or 2 axes; these are ${settings.axes ?? "none"}.` }];
  }
  const found = [...numberProblems(settings)];
  if (found.length) return found; // the other rules compare numbers
  for (const field of ["channels", "filters"]) {
    if (settings[field] % settings.groups) {
      found.push({
        field: "groups",
        message: `${settings.groups} groups do not divide the ${settings[field]} ${field}. Use a divisor of ${settings[field]}, or change ${field}.`,
      });
    }
  }
  if (!MODES.includes(settings.mode)) {
    found.push({ field: "mode", message: `There is no padding mode “${settings.mode}”; use one of ${MODES.join(", ")}.` });
  }
  if (settings.transposed && settings.mode !== "zeros") {
    found.push({ field: "mode", message: `A transposed convolution pads with zeros only, not “${settings.mode}”. Choose zeros.` });
  }
  for (let axis = 0; axis < settings.axes; axis++) found.push(...axisProblems(settings, axis));
  return found.length ? found : tooManyProblems(settings);
}

/** What would fill the memory of the browser. */
function tooManyProblems(settings) {
  const given = product(inputShape(settings)) + product(filtersShape(settings));
  const made = product(outputSize(settings));
  const far = (count, of) => `${of} would have ${count.toLocaleString("en")} numbers, more than the ${MOST.toLocaleString("en")} that the page holds.`;
  if (given > MOST) {
    return [{ field: "channels", message: `${far(given, "Input and filters")} Use fewer channels or filters, or smaller sizes.` }];
  }
  if (made > MOST) {
    return [{ field: "stride", message: `${far(made, "The output of one filter")} Use a smaller stride, or a smaller input.` }];
  }
  return [];
}

function* numberProblems(settings) {
  for (const [field, { label, min, max }] of Object.entries(SINGLE)) {
    const value = settings[field];
    if (!whole(value, min, max)) yield { field, message: notWhole(label, value, min, max) };
  }
  for (const [field, { label, min, max }] of Object.entries(PER_AXIS)) {
    for (let axis = 0; axis < settings.axes; axis++) {
      const value = settings[field]?.[axis];
      if (!whole(value, min, max)) yield { field, axis, message: notWhole(label, value, min, max) };
    }
  }
  for (let axis = 0; axis < settings.axes; axis++) {
    for (const value of settings.padding?.[axis] ?? [undefined]) {
      const { label, min, max } = PADDING;
      if (!whole(value, min, max)) yield { field: "padding", axis, message: notWhole(label, value, min, max) };
    }
  }
}

function axisProblems(settings, axis) {
  const found = [];
  const size = settings.size[axis];
  const [low, high] = settings.padding[axis];
  const reach = extent(settings, axis);
  const extra = settings.outputPadding[axis];
  const on = settings.axes > 1 ? ` along the ${["rows", "columns"][axis]}` : "";
  if (settings.transposed) {
    const open = Math.max(settings.stride[axis], settings.dilation[axis]);
    if (extra && extra >= open) {
      found.push({ field: "outputPadding", axis, message: `Output padding of ${extra}${on} is more than stride and dilation leave open: it has to be below ${open}.` });
    }
    const whole = (size - 1) * settings.stride[axis] + reach + extra;
    if (low + high >= whole) {
      found.push({ field: "padding", axis, message: `Padding ${low} + ${high} cuts away all ${whole} elements of the transposed output${on}. Use less padding, or a larger input.` });
    }
    return found;
  }
  if (extra) {
    found.push({ field: "outputPadding", axis, message: "Only a transposed convolution has output padding. Use 0, or switch to transposed." });
  }
  if (settings.mode === "reflect" && Math.max(low, high) >= size) {
    found.push({ field: "padding", axis, message: `Reflection cannot take ${Math.max(low, high)} elements from the ${size}${on}: the edge is not repeated, so at most ${size - 1}. Use less padding, or the mode replicate.` });
  }
  if (reach > size + low + high) {
    found.push({ field: "kernel", axis, message: `The kernel reaches over ${reach} elements${on}, but the padded input has ${size + low + high}. Use a larger input, more padding, or a smaller kernel or dilation.` });
  }
  return found;
}

function whole(value, min, max) {
  return Number.isInteger(value) && value >= min && value <= max;
}

function notWhole(label, value, min, max) {
  const none = value === undefined || value === null || Number.isNaN(value);
  const given = none ? "Type a number." : `This is ${value}.`;
  return `${label[0].toUpperCase()}${label.slice(1)} is a whole number from ${min} to ${max}. ${given}`;
}

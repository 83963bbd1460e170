// The present settings as code to copy. The tests run what stands here, and compare sizes and numbers.

import { extent, outputSize } from "./geometry.js";

export const LANGUAGES = [
  { id: "numpy", title: "NumPy" },
  { id: "torch", title: "PyTorch" },
  { id: "keras", title: "Keras" },
];

/** The settings as a program; it makes `y`, (1, *output, f), from random whole numbers. */
export function code(settings, language) {
  return { numpy, torch, keras }[language](settings);
}

function numpy(s) {
  const rest = [
    arg("stride", tuple(s.stride), s.stride.some((n) => n !== 1)),
    arg("padding", tuple(s.padding.map(tuple)), s.padding.flat().some(Boolean)),
    arg("dilation", tuple(s.dilation), s.dilation.some((n) => n !== 1)),
    arg("groups", s.groups, s.groups !== 1),
    arg("padding_mode", quoted(s.mode), s.mode !== "zeros"),
    arg("transposed", "True", s.transposed),
    arg("output_padding", tuple(s.outputPadding), s.outputPadding.some(Boolean)),
    arg("flip", "True", s.flip),
  ].filter(Boolean);
  const geometry = [s.channels, s.filters, tuple(s.kernel), ...rest].join(", ");
  const filters = tuple([s.filters, ...s.kernel, s.channels / s.groups]);
  return lines(
    "import numpy as np",
    "from convfc import ConvGeometry, filters_to_matrix, im2col, patch_product, rows_to_output",
    "",
    `geometry = ConvGeometry(${geometry})`,
    "rng = np.random.default_rng(0)",
    `x = rng.integers(-9, 10, (1, ${[...s.size, s.channels].join(", ")}))`,
    `filters = rng.integers(-9, 10, ${filters})`,
    ...(s.bias ? [`bias = rng.integers(-9, 10, ${s.filters})`] : []),
    "",
    ...(s.flip !== s.transposed
      ? ["# The page shows plain windows and the filter turned; here it is the other way round."]
      : []),
    "M = im2col(x, geometry)                       # one row per output position",
    "K = filters_to_matrix(filters, geometry)      # one column per filter",
    `rows = patch_product(M, K, geometry)${s.bias ? " + bias" : ""}`,
    `y = rows_to_output(rows, geometry, ${tuple(s.size)})`,
  );
}

function torch(s) {
  const kind = `Conv${s.transposed ? "Transpose" : ""}${s.axes}d`;
  const even = s.padding.every(([low, high]) => low === high);
  // PyTorch's layers pad both sides alike; a transposed one cuts both sides alike.
  const wraps = s.mode === "circular" && s.padding.some((pair, axis) => Math.max(...pair) > s.size[axis]);
  const outside = (!even || wraps) && !s.transposed;
  const padding = even && !outside ? s.padding.map(([low]) => low) : s.padding.map(() => 0);
  const rest = [
    arg("stride", tuple(s.stride), s.stride.some((n) => n !== 1)),
    arg("padding", tuple(padding), padding.some(Boolean)),
    arg("output_padding", tuple(s.outputPadding), even && s.outputPadding.some(Boolean)),
    arg("dilation", tuple(s.dilation), s.dilation.some((n) => n !== 1)),
    arg("groups", s.groups, s.groups !== 1),
    arg("padding_mode", quoted(s.mode), s.mode !== "zeros" && !outside),
    arg("bias", "False", !s.bias),
  ].filter(Boolean);
  const layer = [s.channels, s.filters, tuple(s.kernel), ...rest].join(", ");
  const body = [
    "import torch",
    "from torch import nn",
    "",
    `layer = nn.${kind}(${layer})`,
    `x = torch.randint(-9, 10, (1, ${[s.channels, ...s.size].join(", ")})).float()`,
  ];
  if (s.flip) {
    const dims = tuple(s.kernel.map((_, axis) => axis + 2));
    body.push("# PyTorch does not flip: flip the weight for the true convolution of Eq. (3).");
    body.push("with torch.no_grad():", `    layer.weight.copy_(layer.weight.flip(${dims}))`);
  }
  if (outside) body.push(...torchPadded(s, wraps), "y = layer(x)");
  else if (!even) body.push(...torchCut(s));
  else body.push("y = layer(x)");
  return lines(...body, `# y: (1, ${[s.filters, ...outputSize(s)].join(", ")}), channels first`);
}

/** Padding that a layer of PyTorch cannot say, done before it. */
function torchPadded(s, wraps) {
  if (wraps) {
    return [
      "# The padding goes round the input more than once, which PyTorch does not do: pick the elements.",
      ...s.padding.map(([low, high], axis) =>
        `x = x.index_select(${axis + 2}, torch.arange(${-low}, ${s.size[axis] + high}) % ${s.size[axis]})`),
    ];
  }
  const pairs = [...s.padding].reverse().flat().join(", ");
  const mode = s.mode === "zeros" ? "constant" : s.mode;
  return [
    "# The two sides differ, which the layer cannot say: pad the input first.",
    `x = nn.functional.pad(x, (${pairs}), mode=${quoted(mode)})`,
  ];
}

/** A transposed layer whose output is cut differently on its two sides. */
function torchCut(s) {
  const cut = s.padding.map(([low, high], axis) => {
    const whole = (s.size[axis] - 1) * s.stride[axis] + extent(s, axis);
    return `${low}:${whole - high + s.outputPadding[axis]}`;
  });
  const missing = s.padding.map(([, high], axis) => Math.max(0, s.outputPadding[axis] - high));
  const note = "# The two sides are cut differently, which the layer cannot say: cut its whole output.";
  if (!missing.some(Boolean)) return [note, "y = layer(x)", `y = y[..., ${cut.join(", ")}]`];
  const pairs = [...missing].reverse().flatMap((n) => [0, n]).join(", ");
  const kind = `nn.functional.conv_transpose${s.axes}d`;
  return [
    note,
    `y = ${kind}(x, layer.weight, stride=${tuple(s.stride)}, groups=${s.groups}, dilation=${tuple(s.dilation)})`,
    `y = nn.functional.pad(y, (${pairs}))[..., ${cut.join(", ")}]`,
    ...(s.bias ? [`y = y + layer.bias.view(${["-1", ...s.size.map(() => "1")].join(", ")})`] : []),
  ];
}

function keras(s) {
  const even = s.padding.flat().every((n) => n === 0);
  const kind = `Conv${s.axes}D${s.transposed ? "Transpose" : ""}`;
  const notes = [];
  if (s.transposed && (s.groups > 1 || s.outputPadding.some(Boolean) || s.dilation.some((d, a) => d > 1 && s.stride[a] > 1))) {
    return lines(
      "# Keras has no transposed layer with these groups, output padding or dilation.",
      "# Take the product of matrices instead: see the NumPy tab, which computes it.",
    );
  }
  if (s.dilation.some((n) => n !== 1) && s.stride.some((n) => n !== 1)) {
    return lines(
      "# Keras has no layer with both a stride and a dilation.",
      "# Take the product of matrices instead: see the NumPy tab, which computes it.",
    );
  }
  const rest = [
    arg("strides", tuple(s.stride), s.stride.some((n) => n !== 1)),
    arg("dilation_rate", tuple(s.dilation), s.dilation.some((n) => n !== 1)),
    arg("groups", s.groups, s.groups !== 1),
    arg("use_bias", "False", !s.bias),
  ].filter(Boolean);
  const layer = [s.filters, tuple(s.kernel), ...rest].join(", ");
  const body = [
    "import keras",
    "import numpy as np",
    "",
    `layer = keras.layers.${kind}(${layer})`,
    `x = np.random.default_rng(0).integers(-9, 10, (1, ${[...s.size, s.channels].join(", ")})).astype("float32")`,
  ];
  if (s.flip) notes.push("# Keras does not flip: reverse the kernel for the true convolution of Eq. (3).");
  if (!s.transposed && !even) {
    const mode = { zeros: "constant", reflect: "reflect", replicate: "edge", circular: "wrap" }[s.mode];
    const pairs = [[0, 0], ...s.padding, [0, 0]].map(tuple).join(", ");
    body.push("# Keras pads by rule, not by number: pad the input first.");
    body.push(`x = np.pad(x, [${pairs}], mode=${quoted(mode)})`);
  }
  body.push("y = layer(x)");
  if (s.flip) {
    const axes = s.kernel.map((_, axis) => axis);
    body.push(...notes, `layer.kernel.assign(keras.ops.flip(layer.kernel, ${tuple(axes)}))`, "y = layer(x)");
  }
  if (s.transposed) {
    // Keras's "valid" output is (n - 1) stride + max(extent, stride): cut to ours.
    const cut = s.padding.map(([low, high], axis) => `${low}:${(s.size[axis] - 1) * s.stride[axis] + extent(s, axis) - high}`);
    body.push("# Padding of a transposed convolution is what is cut off its output.");
    body.push(`y = y[:, ${cut.join(", ")}]`);
  }
  return lines(...body, `# y: (1, ${[...outputSize(s), s.filters].join(", ")}), channels last`);
}

function arg(name, value, wanted) {
  return wanted ? `${name}=${value}` : "";
}

function tuple(values) {
  return values.length === 1 ? `(${values[0]},)` : `(${values.join(", ")})`;
}

function quoted(text) {
  return `"${text}"`;
}

function lines(...all) {
  return all.join("\n") + "\n";
}

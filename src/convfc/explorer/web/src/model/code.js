// The present settings as code to copy. The tests run what stands here, and compare sizes and numbers.

import { extent, filtersShape, outputSize, product } from "./geometry.js";

export const LANGUAGES = [
  { id: "numpy", title: "NumPy" },
  { id: "torch", title: "PyTorch" },
  { id: "keras", title: "Keras" },
];

/** Numbers of input and filters up to which a program has them from the start, and at most. */
export const FEW = 2000;
export const MANY = 20_000;

/** Half the distance from 1 to the next number of a language's floats. */
const ROUNDING = { numpy: 2 ** -53, torch: 2 ** -24, keras: 2 ** -24 };

/**
 * The settings as a program; it makes `y`, (1, *output, f), from random whole numbers, or from those of
 * a store, and checks the output that is chosen there.
 */
export function code(settings, language, store = null) {
  return { numpy, torch, keras }[language](settings, store);
}

/** Numbers that a program would have to write. */
export function numbersIn({ input, filters }) {
  return input.length + filters.length;
}

/** A program as a notebook (nbformat 4.5); `address` opens the page as it is. */
export function notebook(program, { title, language, address }) {
  const name = LANGUAGES.find(({ id }) => id === language).title;
  const needs = { numpy: "convfc", torch: "torch", keras: "keras" }[language];
  const about = [
    `# ${title.replace(/[\\`*_<>[\]#]/g, "\\$&")}`,
    `A convolution as a program in ${name}, as the explorer of convfc shows it. It needs \`pip install ${needs}\`.`,
    /^#/.test(address)
      ? `The same on the page: start \`convfc explore\`, and put this behind its address: \`${address}\``
      : `The same on the page: [settings, numbers and selection](<${address}>).`,
  ];
  const cell = (kind, id, source, more) => ({ cell_type: kind, id, metadata: {}, ...more, source });
  const kernel = { name: "python3", language: "python", display_name: "Python 3" };
  return JSON.stringify({
    nbformat: 4,
    nbformat_minor: 5,
    metadata: { kernelspec: kernel, language_info: { name: "python" } },
    cells: [
      cell("markdown", "about", about.join("\n\n")),
      cell("code", "program", program.trimEnd(), { execution_count: null, outputs: [] }),
    ],
  });
}

/** Numbers as an array, a line of the text for each row of theirs. */
function array(name, make, values, shape, row, end = "") {
  const rows = Array.from({ length: values.length / row }, (_, i) => values.subarray(i * row, (i + 1) * row));
  const text = rows.map((numbers) => wrapped(`${Array.from(numbers, String).join(", ")},`));
  return [`${name} = ${make}([`, ...text, `]${end}).reshape(${shape.join(", ")})`];
}

/** A line in lines of about 90 signs. */
function wrapped(line) {
  return line.replace(/(.{1,90})(?: |$)/g, "    $1\n").trimEnd();
}

/** x, the filters and the bias of a store as arrays that a function makes. */
function given(s, store, make, end) {
  const shape = filtersShape(s);
  const rows = [s.size.at(-1) * s.channels, product(shape.slice(-2))];
  return [
    ...array("x", make, store.input, [1, ...s.size, s.channels], rows[0], end),
    ...array("filters", make, store.filters, shape, rows[1], end),
    ...(s.bias ? array("bias", make, store.bias, [s.filters], s.filters, end) : []),
  ];
}

/** The assertion that a program ends with: the chosen output, to the bit or as near as rounding lets it be. */
function check(s, store, language) {
  const { p, f } = store.selection;
  const { terms, bias, sum } = store.arithmetic(p, f);
  const index = store.map.position(p);
  const y = `y[${[0, ...(language === "torch" ? [f, ...index] : [...index, f])].join(", ")}]`;
  const size = terms.reduce((all, term) => all + Math.abs(term.product), Math.abs(bias));
  const unit = ROUNDING[language];
  const whole = [bias, ...terms.flatMap(({ x, w }) => [x, w])].every(Number.isInteger);
  const note = ["", `# The output that is chosen on the page: position ${index.join(", ")}, filter ${f}.`];
  if (!(size < (unit < 1e-9 ? 1e300 : 1e30))) return ["", "# The chosen output is too large a number to be checked here."];
  if (whole && size * unit <= 1) return [...note, `assert ${y} == ${sum}`];
  // Every product and sum rounds once, and so do x, w and what is written here.
  const bound = (terms.length + 4) * unit * size + 1e-12 * Math.abs(sum) + 1e-37;
  const near = Math.abs(Number(sum.toPrecision(12)));
  return [...note, `assert abs(${y} ${sum < 0 ? "+" : "-"} ${near}) < 1e${Math.ceil(Math.log10(bound))}`];
}

function numpy(s, store) {
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
    ...(store
      ? given(s, store, "np.array", ", dtype=float")
      : [
          "rng = np.random.default_rng(0)",
          `x = rng.integers(-9, 10, (1, ${[...s.size, s.channels].join(", ")}))`,
          `filters = rng.integers(-9, 10, ${filters})`,
          ...(s.bias ? [`bias = rng.integers(-9, 10, ${s.filters})`] : []),
        ]),
    "",
    ...(s.flip !== s.transposed
      ? ["# The page shows plain windows and the filter turned; here it is the other way round."]
      : []),
    "M = im2col(x, geometry)                       # one row per output position",
    "K = filters_to_matrix(filters, geometry)      # one column per filter",
    `rows = patch_product(M, K, geometry)${s.bias ? " + bias" : ""}`,
    `y = rows_to_output(rows, geometry, ${tuple(s.size)})`,
    ...(store ? check(s, store, "numpy") : []),
  );
}

function torch(s, store) {
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
    ...(store
      ? torchGiven(s, store)
      : [`x = torch.randint(-9, 10, (1, ${[s.channels, ...s.size].join(", ")})).float()`]),
  ];
  if (s.flip) {
    const dims = tuple(s.kernel.map((_, axis) => axis + 2));
    body.push("# PyTorch does not flip: flip the weight for the true convolution of Eq. (3).");
    body.push("with torch.no_grad():", `    layer.weight.copy_(layer.weight.flip(${dims}))`);
  }
  if (outside) body.push(...torchPadded(s, wraps), "y = layer(x)");
  else if (!even) body.push(...torchCut(s));
  else body.push("y = layer(x)");
  const shape = `# y: (1, ${[s.filters, ...outputSize(s)].join(", ")}), channels first`;
  return lines(...body, shape, ...(store ? check(s, store, "torch") : []));
}

/** The page's numbers, and a layer of PyTorch with them. */
function torchGiven(s, store) {
  const weight = !s.transposed
    ? "filters.movedim(-1, 1)"
    : s.groups === 1
      ? "filters.movedim(-1, 0)"
      : `filters.unflatten(0, (${s.groups}, -1)).movedim(-1, 1).flatten(0, 1)`;
  return [
    ...given(s, store, "torch.tensor", ", dtype=torch.float32"),
    "x = x.movedim(-1, 1)  # channels first",
    "with torch.no_grad():",
    `    layer.weight.copy_(${weight})`,
    ...(s.bias ? ["    layer.bias.copy_(bias)"] : []),
  ];
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

function keras(s, store) {
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
    ...(store
      ? given(s, store, "np.array", ', dtype="float32"')
      : [`x = np.random.default_rng(0).integers(-9, 10, (1, ${[...s.size, s.channels].join(", ")})).astype("float32")`]),
  ];
  if (s.flip) notes.push("# Keras does not flip: reverse the kernel for the true convolution of Eq. (3).");
  if (!s.transposed && !even) {
    const mode = { zeros: "constant", reflect: "reflect", replicate: "edge", circular: "wrap" }[s.mode];
    const pairs = [[0, 0], ...s.padding, [0, 0]].map(tuple).join(", ");
    body.push("# Keras pads by rule, not by number: pad the input first.");
    body.push(`x = np.pad(x, [${pairs}], mode=${quoted(mode)})`);
  }
  if (store) {
    body.push("layer.build(x.shape)");
    body.push(`layer.kernel.assign(np.moveaxis(filters, 0, ${s.transposed ? -2 : -1}))`);
    if (s.bias) body.push("layer.bias.assign(bias)");
  }
  if (!store || !s.flip) body.push("y = layer(x)");
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
  const shape = `# y: (1, ${[...outputSize(s), s.filters].join(", ")}), channels last`;
  return lines(...body, shape, ...(store ? check(s, store, "keras") : []));
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

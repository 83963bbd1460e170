"""The curves of the experiment: the paper's Figures 7, 9 and 10, and those that go beyond it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convfc.extras import needing

with needing("paper"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

from convfc.drawing import INK, WIDTH
from convfc.paper.findings import measured
from convfc.paper.record import Record

__all__ = [
    "COLOURS",
    "LABELS",
    "OPTIMIZERS",
    "cost_figure",
    "difference_figure",
    "histogram_figure",
    "loss_figure",
]

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = {
    "cnn": "#0072B2",
    "fc": "#D55E00",
    "control": "#009E73",
    "direct sliding": "#CC79A7",
    "product": "#D55E00",
    "product in row blocks": "#E69F00",
    "native": "#0072B2",
}
LABELS = {"cnn": "CNN", "fc": "FC network", "control": "control"}
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam"}
# CNN wide and solid below, FC dashed on top, control thin: equal curves stay visible.
_STROKES: Mapping[str, Mapping[str, Any]] = {
    "cnn": {"linewidth": 4.5, "alpha": 0.55, "solid_capstyle": "butt"},
    "fc": {"linewidth": 1.8, "linestyle": (0, (4, 3))},
    "control": {"linewidth": 0.9},
}


def loss_figure(record: Record, optimizer: str) -> Figure:
    """Training and validation loss of all networks against the epoch (Figures 7 and 10).

    Parameters
    ----------
    record : Record
        The run.
    optimizer : str
        ``"sgd"`` (Figure 7) or ``"adam"`` (Figure 10).

    Returns
    -------
    matplotlib.figure.Figure
        Above, the losses; below, how far the FC network's are from the CNN's.
    """
    figure = Figure(figsize=(WIDTH, 4.4), layout="constrained")
    rows = figure.subplots(
        2, 2, sharex=True, gridspec_kw={"height_ratios": [2.6, 1]}, squeeze=False
    )
    rows[0][1].sharey(rows[0][0])
    networks = {
        name: record.networks[record.dtype, optimizer, name]
        for name in _STROKES
        if (record.dtype, optimizer, name) in record.networks
    }
    for column, (part, title) in enumerate((("loss", "training"), ("val_loss", "validation"))):
        above, below = rows[0][column], rows[1][column]
        for name, trained in networks.items():
            label, colour = LABELS[name], COLOURS[name]
            losses = getattr(trained, part)
            above.plot(trained.epoch, losses, color=colour, label=label, **_STROKES[name])
        apart = np.abs(getattr(networks["fc"], part) - getattr(networks["cnn"], part))
        if apart.any():
            # Points, because between two of them the difference may be exactly 0.
            below.plot(networks["fc"].epoch, _positive(apart), ".", color=INK, markersize=4)
            below.set_yscale("log")
            decades = np.log10(apart[apart > 0])
            below.set_ylim(10.0 ** np.floor(decades.min()), 10.0 ** np.ceil(decades.max() + 0.5))
        else:
            below.set_yticks([])
        equal = f"exactly 0 in {(apart == 0).sum()} of {apart.size} epochs"
        below.text(0.02, 0.95, equal, transform=below.transAxes, va="top", fontsize="small")
        above.set_title(f"{title} loss, {OPTIMIZERS[optimizer]}")
        below.set_xlabel("epoch")
        below.xaxis.set_major_locator(MaxNLocator(integer=True))
    rows[0][0].set_ylabel("mean square error")
    rows[1][0].set_ylabel("|FC − CNN|")
    rows[0][1].legend(handlelength=3.2)
    return figure


def histogram_figure(record: Record, optimizers: Sequence[str]) -> Figure:
    """Histograms of the first layer's weights after training, CNN and FC network (Figure 9).

    Parameters
    ----------
    record : Record
        The run.
    optimizers : sequence of str
        One panel each.

    Returns
    -------
    matplotlib.figure.Figure
        The CNN filled, the FC network as an outline on top of it, in the same bins.
    """
    figure = Figure(figsize=(WIDTH, 3.1), layout="constrained")
    panels = figure.subplots(1, len(optimizers), squeeze=False, sharey=True)[0]
    for panel, letter, optimizer in zip(panels, "ab", optimizers, strict=False):
        weights = {
            name: record.networks[record.dtype, optimizer, name].first_layer[-1].ravel()
            for name in ("cnn", "fc")
        }
        everything = np.concatenate(list(weights.values()))
        bins = np.linspace(everything.min(), everything.max(), 41)
        filled = {"histtype": "stepfilled", "alpha": 0.5}
        panel.hist(weights["cnn"], bins, color=COLOURS["cnn"], label="CNN", **filled)
        panel.hist(
            weights["fc"],
            bins,
            color=COLOURS["fc"],
            histtype="step",
            linewidth=1.6,
            linestyle=(0, (4, 2)),
            label="FC network",
        )
        panel.set_title(f"({letter}) {OPTIMIZERS[optimizer]}")
        panel.set_xlabel("weight of the first layer")
    panels[0].set_ylabel("number of weights")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2)
    return figure


def difference_figure(record: Record) -> Figure:
    """How far the first layers are apart after every epoch, on a logarithmic axis.

    A logarithm has no zero, so what is exactly 0 is drawn as 0 in a band of its own below the axis,
    never as a small number.

    Parameters
    ----------
    record : Record
        The run.

    Returns
    -------
    matplotlib.figure.Figure
        One line per pair, optimizer and dtype that the run has.
    """
    lines = [
        (dtype, optimizer, pair, difference)
        for pair in (("fc", "cnn"), ("control", "fc"))
        for dtype in dict.fromkeys((record.dtype, *sorted(d for d, _, _ in record.networks)))
        for optimizer in reversed(record.optimizers(dtype))
        if (difference := record.weight_difference(dtype, optimizer, *pair)) is not None
    ]
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    above, band = figure.subplots(
        2, 1, sharex=True, gridspec_kw={"height_ratios": [4, 0.17 * len(lines) + 0.1]}
    )
    dashes = {"adam": "solid", "sgd": (0, (6, 2))}
    for lane, (dtype, optimizer, (network, other), difference) in enumerate(lines):
        stroke: dict[str, Any] = {
            "color": COLOURS[network] if dtype == record.dtype else "#7B3294",
            "linestyle": dashes.get(optimizer, "solid"),
            "linewidth": 2,
        }
        names = f"{LABELS[network]} − {LABELS[other]}"
        epoch = np.arange(len(difference))
        above.plot(
            epoch,
            _positive(difference),
            marker="o" if len(difference) < 25 else None,
            markersize=3,
            label=f"{names}, {OPTIMIZERS[optimizer]}, {dtype}",
            **stroke,
        )
        zero = np.where(difference == 0, -float(lane), np.nan)
        band.plot(epoch, zero, **stroke)
        alone = difference == 0
        alone[1:] &= difference[:-1] != 0
        alone[:-1] &= difference[1:] != 0
        band.plot(epoch[alone], zero[alone], marker="o", markersize=4.5, **stroke)
    _mark_rounding(above, record)
    above.set_yscale("log")
    above.set_ylabel("‖difference of the first layers‖$_F$")
    above.grid(visible=True, which="major")
    band.set_ylim(-len(lines) + 0.3, 0.7)
    band.set_yticks([(1 - len(lines)) / 2], ["exactly 0"])
    band.grid(visible=False, axis="y")
    band.set_facecolor("#f4f4f4")
    band.set_xlabel("epoch (0: before training)")
    band.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=2, handlelength=3, fontsize=8.5)
    return figure


def _mark_rounding(axes: Axes, record: Record) -> None:
    """Mark the size of one rounding of all weights, for every dtype of the run."""
    for dtype in sorted({d for d, _, _ in record.networks}):
        start = next(t for (d, _, _), t in record.networks.items() if d == dtype).first_layer[0]
        unit = float(np.finfo(start.dtype).eps) / 2
        size = unit * float(np.linalg.norm(start.astype(np.float64)))
        axes.axhline(size, color="#888888", linewidth=0.9, linestyle=":")
        axes.annotate(
            f"one rounding of every weight, {dtype}",
            (1, size),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, 2.5),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color="#666666",
        )


_METHODS = {
    "direct sliding": ("direct sliding", "v"),
    "product": ("M K", "o"),
    "product in row blocks": ("M K in row blocks", "s"),
    "native": ("native layer", "D"),
}
_AXES = {
    "image": "image height and width",
    "kernel": "kernel height and width",
    "batch": "images in a batch",
}


def cost_figure(cost: Mapping[str, Any]) -> Figure:
    """Time and peak memory of the ways to compute a CONV layer, as its sizes grow.

    Parameters
    ----------
    cost : mapping
        The content of ``cost.json``; what was not measured is drawn as a gap.

    Returns
    -------
    matplotlib.figure.Figure
        Columns: what grows; rows: seconds and bytes.
    """
    axes = {name: rows for name, rows in cost["axes"].items() if rows}
    figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
    panels = figure.subplots(2, len(axes), squeeze=False, sharey="row", sharex="col")
    kinds: Sequence[tuple[str, str, Callable[[Any], Any]]] = (
        ("seconds", "time in milliseconds", lambda seconds: seconds * 1e3),
        ("peak_bytes", "peak memory in MiB", lambda size: size / 2**20),
    )
    for column, (name, rows) in enumerate(axes.items()):
        values = [row["value"] for row in rows]
        for line, (kind, title, scaled) in enumerate(kinds):
            panel = panels[line][column]
            for method, (label, marker) in _METHODS.items():
                found = [measured(row, method, kind) for row in rows]
                panel.plot(
                    values,
                    scaled(np.array(found, float)),  # None becomes NaN, a gap
                    marker=marker,
                    markersize=4,
                    color=COLOURS[method],
                    label=label if (line, column) == (0, 0) else None,
                )
            if kind == "peak_bytes":
                sizes = np.array([row.get("patch_matrix_bytes") or np.nan for row in rows], float)
                alone = "M alone" if column == 0 else None
                panel.plot(values, scaled(sizes), color="#888888", linestyle=":", label=alone)
            panel.set_xscale("log", base=2)
            panel.set_yscale("log")
            panel.set_xticks(values, [str(value) for value in values])
            panel.xaxis.minorticks_off()
            panels[line][0].set_ylabel(title)
        panels[1][column].set_xlabel(_AXES.get(name, name))
    figure.legend(loc="outside upper center", ncols=5, fontsize=8.5)
    return figure


def _positive(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what a logarithmic axis can show; the rest becomes a gap."""
    return np.where(values > 0, values, np.nan)

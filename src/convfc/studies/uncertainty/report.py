"""What the report says and shows: every conclusion is drawn here, from numbers alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from convfc.extras import needing

with needing("study"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

from convfc.drawing import WIDTH
from convfc.methods import uncertainty
from convfc.runs.folder import FinishedRun
from convfc.studies.uncertainty.methods import ANGLES, DRAWS, MEASURES, METHODS
from convfc.tables import TextTable

_PERCENT = {"accuracy", "ece", "moved_accuracy", "moved_ece"}
_COLUMNS = ("accuracy", "nll", "ece", "brier", "auroc_entropy", "auroc_mutual")
_MOVED = ("moved_accuracy", "moved_nll", "moved_ece")


def find(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the report's template, from ``results.json``."""
    table, drawn = results["table"], results["drawn"]
    # How many times as long all draws take as one evaluation.
    seconds = {key: results["seconds"][f"predict-{key}"]["sampling"] for key in METHODS}
    times = [seconds[key] / seconds["plain"] for key in METHODS if key != "plain"]
    return {
        "methods": METHODS,
        "bootstrap": DRAWS,
        "titles": {measure: title for measure, (title, _) in MEASURES.items()},
        "seeds": len(results.get("tables", [table])),
        "seed_rows": _seed_rows(results.get("tables", [table])),
        "rows": _rows(results, _COLUMNS, costs=True),
        "moved_rows": _rows(results, _MOVED, costs=False),
        "columns": _COLUMNS,
        "moved_columns": _MOVED,
        "sorted": {measure: sorted_out(table, measure) for measure in MEASURES},
        "epistemic": _epistemic(table),
        "turned": _turned(results["turned"]),
        "rates": _rates(results["rates"]),
        "sampling": {"least": min(times), "most": max(times)},
        "drawn": {
            "rows": [(METHODS[key].title, one) for key, one in drawn.items()],
            "broken": [METHODS[key].title for key, one in drawn.items() if not one["holds"]],
            "failures": [reason for one in drawn.values() for reason in one["failures"]],
        },
        "weights": results["weights"],
    }


def sorted_out(table: Mapping[str, Any], measure: str) -> dict[str, list[str]]:
    """Sort the methods by a measure; better or worse is a whole interval on one side of 0."""
    found: dict[str, list[str]] = {"better": [], "worse": [], "same": []}
    for key, row in table.items():
        if key != "plain":
            found[_verdict(row[measure], measure)].append(METHODS[key].title)
    return found


def _verdict(cell: Mapping[str, float], measure: str) -> str:
    low, high = (MEASURES[measure][1] * cell[end] for end in ("low", "high"))
    if min(low, high) > 0:
        return "better"
    return "worse" if max(low, high) < 0 else "same"


def _rows(
    results: Mapping[str, Any], measures: Sequence[str], *, costs: bool
) -> list[tuple[str, list[str]]]:
    """Return the rows of a table in words."""
    rows = []
    for key, row in results["table"].items():
        cells = [_cell(row[measure], measure) for measure in measures]
        if costs:
            seconds = results["seconds"]
            # Laplace needs a trained network.
            parts = ("plain", "predict-laplace") if key == "laplace" else (key,)
            cells.append(f"{sum(seconds[part]['training'] for part in parts):.1f}")
            cells.append(f"{seconds[f'predict-{key}']['sampling']:.2f}")
        rows.append((METHODS[key].title, cells))
    return rows


def _cell(cell: Mapping[str, float] | None, measure: str) -> str:
    if cell is None:
        return "–"
    value = cell["value"]
    text = f"{100 * value:.1f} %" if measure in _PERCENT else f"{value:.3f}"
    if "difference" not in cell:
        return text
    return text + {"better": " ▲", "worse": " ▼", "same": ""}[_verdict(cell, measure)]


def _seed_rows(tables: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """Return the rows of the table over the seeds: median, least and most, and a mark.

    The mark compares a method with the network without it, seed by seed: in all the same way.
    """
    rows = []
    for key, method in METHODS.items():
        cells = []
        for measure in _COLUMNS:
            found = [table[key][measure] for table in tables]
            if None in found:
                cells.append("–")
                continue
            times, form = (100, "{:.1f}") if measure in _PERCENT else (1, "{:.3f}")
            values = [times * cell["value"] for cell in found]
            middle, least, most = (form.format(of(values)) for of in (statistics.median, min, max))
            sign = MEASURES[measure][1]
            gains = [sign * cell.get("difference", 0.0) for cell in found]
            mark = " ▲" if min(gains) > 0 else " ▼" if max(gains) < 0 else ""
            unit = " %" if measure in _PERCENT else ""
            cells.append(f"{middle} ({least} to {most}){unit}{mark}")
        rows.append((method.title, cells))
    return rows


def _epistemic(table: Mapping[str, Any]) -> dict[str, list[str]]:
    """Sort the methods by which of their uncertainties tells letters from digits better."""
    found: dict[str, list[str]] = {"mutual": [], "entropy": []}
    for key, row in table.items():
        if key != "plain":
            more = row["auroc_mutual"]["value"] > row["auroc_entropy"]["value"]
            found["mutual" if more else "entropy"].append(METHODS[key].title)
    return found


def _turned(turned: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is said of the turned 1: where it is taken for something else, and how surely."""
    plain = turned["plain"]
    wrong = [n for n, label in enumerate(plain["class"]) if label != 1]
    found: dict[str, Any] = {
        "wrong": [ANGLES[n] for n in wrong],
        "classes": sorted({plain["class"][n] for n in wrong}),
        "less": [],
        "not": [],
    }
    for key in METHODS if wrong else ():  # the network without a method is the first
        mean = sum(turned[key]["confidence"][n] for n in wrong) / len(wrong)
        if key == "plain":
            found["plain"] = mean
        else:
            words = f"{100 * mean:.0f} % with {METHODS[key].title}"
            found["less" if mean < found["plain"] else "not"].append(words)
    return found


def _rates(rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return the learned rates, the first layer first, with the way they went."""
    start = METHODS["concrete"].options["rate"]
    return [
        {
            "place": place.removesuffix(".fc"),
            "kind": "CONV" if place.endswith("fc") else "FC",
            "rate": rate,
            "way": "up" if rate > start else "down",
        }
        for place, rate in rates.items()
    ]


def summary(results: Mapping[str, Any]) -> TextTable:
    """Return the table for the terminal."""
    draws = results["settings"]["samples"]
    measures = [MEASURES[measure][0] for measure in _COLUMNS]
    titles = ("method", *measures, "training, CPU s", f"{draws} draws, CPU s")
    rows = [(title, *cells) for title, cells in _rows(results, _COLUMNS, costs=True)]
    note = "▲ better, ▼ worse than no method, more than the choice of the images explains."
    if "tables" in results:
        note += f" The first of {len(results['tables'])} seeds; all of them are in the report."
    spare = {title: number for number, title in enumerate(titles[5:], 4)}
    return TextTable.of(titles, rows, (note,), spare=spare)


# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = {
    "plain": "#666666",
    "kernels": "#D55E00",
    "taps": "#E69F00",
    "concrete": "#009E73",
    "gaussian": "#0072B2",
    "laplace": "#CC79A7",
}
_CLASS_COLOURS = ("#0072B2", "#D55E00", "#009E73")
_DASHES = {"plain": (0, (1, 1)), "taps": (0, (4, 2)), "laplace": (0, (6, 1, 1, 1))}
_IN_THE_STRIP = "kernels"


def figures(run: FinishedRun) -> Iterator[tuple[str, Figure]]:
    """Yield the figures of the report by file name."""
    yield "figure-images", _images_figure(run)
    yield "figure-turned", _turned_figure(run)
    labels = run.load("scores").arrays["test.labels"]
    means = {
        method.title: run.load(f"predict-{key}").arrays["test.mean"]
        for key, method in METHODS.items()
    }
    found = {title: uncertainty.calibration(mean, labels) for title, mean in means.items()}
    yield "figure-reliability", uncertainty.reliability_figure(found)
    yield "figure-entropy", _entropy_figure(run)
    yield "figure-rates", _rates_figure(run)


def _images_figure(run: FinishedRun) -> Figure:
    """Show some of the images: digits, digits turned and moved, letters."""
    shown = run.load("scores").arrays
    rows = (("test", "digits"), ("moved", "moved digits"), ("letters", "letters"))
    figure = Figure(figsize=(WIDTH, 1.9), layout="constrained")
    for panel, (name, title) in zip(figure.subplots(3, 1), rows, strict=True):
        count = min(16, len(shown[f"{name}.images"]))
        strip = np.concatenate([image[0] for image in shown[f"{name}.images"][:count]], axis=1)
        panel.imshow(strip, cmap="gray", vmin=0, vmax=1)
        panel.set_axis_off()
        panel.text(-0.01, 0.5, title, transform=panel.transAxes, ha="right", va="center")
    return figure


def _turned_figure(run: FinishedRun) -> Figure:
    """Draw Figure 4 of Gal & Ghahramani (2016, arXiv 1506.02142), and below all uncertainties.

    Above is, for one method, every draw of the three classes that are most probable.
    """
    found = run.load(f"predict-{_IN_THE_STRIP}").arrays
    draws, mean = found["turned.draws"], found["turned.mean"]
    probabilities = np.exp(draws - draws.max(axis=2, keepdims=True))
    probabilities /= probabilities.sum(axis=2, keepdims=True)
    classes = np.sort(mean.mean(axis=0).argsort()[::-1][:3])
    figure = Figure(figsize=(WIDTH, 8.6), layout="constrained")
    rows = figure.subplots(
        5, 1, sharex=True, gridspec_kw={"height_ratios": [0.5, 2, 2, 1.6, 1.6]}, squeeze=True
    )
    _strip(rows[0], run.load("scores").arrays["turned.images"])
    for panel, values, title in (
        (rows[1], draws, "softmax input"),
        (rows[2], probabilities, "softmax output"),
    ):
        for number, (label, colour) in enumerate(zip(classes, _CLASS_COLOURS, strict=True)):
            # Side by side, so that the clouds of the classes do not hide one another.
            x = np.broadcast_to(np.array(ANGLES) + 3.4 * (number - 1), values.shape[:2])
            dash: dict[str, Any] = {"s": 12, "marker": "_", "alpha": 0.35, "linewidth": 1.1}
            panel.scatter(x, values[:, :, label], color=colour, **dash)
            panel.plot([], [], color=colour, linewidth=3, label=f"class {label}")
        panel.set_ylabel(title)
    rows[1].set_title(f"{METHODS[_IN_THE_STRIP].title}: {len(draws)} draws", loc="left")
    rows[1].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=8.5)
    for panel, kind, title in (
        (rows[3], "entropy", "predictive entropy"),
        (rows[4], "mutual", "mutual information"),
    ):
        for key, numbers in run.results["turned"].items():
            if (key, kind) == ("plain", "mutual"):
                continue
            stroke: Any = {"color": COLOURS[key], "linestyle": _DASHES.get(key, "solid")}
            dots: Any = {"marker": "o", "markersize": 3}
            panel.plot(ANGLES, numbers[kind], label=METHODS[key].title, **stroke, **dots)
        panel.set_ylabel(f"{title}\nnats")
        panel.set_ylim(bottom=0)
    handles, labels = rows[3].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8.5)
    rows[4].set_xlabel("turned by, degrees")
    rows[4].set_xticks(ANGLES)
    return figure


def _strip(panel: Axes, images: np.ndarray[Any, Any]) -> None:
    """Show the images above their angles."""
    half = 6.6
    for angle, image in zip(ANGLES, images[:, 0], strict=True):
        panel.imshow(image, cmap="gray_r", extent=(angle - half, angle + half, 0, 1), aspect="auto")
    panel.set_xlim(-10, 190)
    panel.set_ylim(0, 1)
    panel.set_axis_off()


def _entropy_figure(run: FinishedRun) -> Figure:
    """Draw histograms of the predictive entropy of digits and of letters."""
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
    bins = np.linspace(0, np.log(10), 26)
    for panel, (key, method) in zip(panels, METHODS.items(), strict=True):
        found = run.load(f"predict-{key}").arrays
        for name, title, colour in (
            ("test", "digits", "#0072B2"),
            ("letters", "letters", "#D55E00"),
        ):
            values = found[f"{name}.entropy"]
            share = np.full(len(values), 1 / len(values))
            panel.hist(values, bins, weights=share, color=colour, alpha=0.55, label=title)
        value = run.results["table"][key]["auroc_entropy"]["value"]
        panel.set_title(f"{method.title}\nAUROC {value:.3f}")
    for panel in panels[3:]:
        panel.set_xlabel("predictive entropy, nats")
    for panel in panels[::3]:
        panel.set_ylabel("share of the images")
    panels[0].legend()
    return figure


def _rates_figure(run: FinishedRun) -> Figure:
    """Draw the dropout rate of each layer against the epoch."""
    arrays = run.load("concrete").arrays
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    panel = figure.subplots()
    curves = {n[6:]: a for n, a in arrays.items() if n.startswith("curve.") and n != "curve.loss"}
    for place, colour in zip(curves, ("#0072B2", "#D55E00", "#009E73", "#CC79A7"), strict=True):
        kind = "CONV" if place.endswith("fc") else "FC"
        name = place.removesuffix(".fc")
        panel.plot(curves[place], color=colour, marker="o", markersize=3, label=f"{kind} {name}")
    panel.set_xlabel("epoch (0: before training)")
    panel.set_ylabel("dropout rate")
    panel.set_ylim(bottom=0)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.legend(ncols=2)
    return figure

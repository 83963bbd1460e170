"""What the report says and shows: every conclusion is drawn here, from numbers alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convfc.extras import needing

with needing("study"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from convfc.drawing import INK, WIDTH
from convfc.runs.folder import FinishedRun
from convfc.studies.torch_training import BATCH
from convfc.tables import TextTable

ROLES = ("teacher", "on", "student", "scratch")
"""The teacher; the teacher trained on; the student; the student's layers from first weights."""

Runs = Sequence[Mapping[str, Mapping[str, Any]]]


def find(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the report's template, from ``results.json``."""
    runs: Runs = results["runs"]
    settings = results["settings"]
    morphs = [morph for run in runs for morph in run["student"]["morphs"]]
    steps_per_epoch = -(-settings["images"] // BATCH)
    return {
        "seeds": len(runs),
        "teacher_epochs": len(runs[0]["teacher"]["loss"]),
        "scratch_epochs": len(runs[0]["scratch"]["loss"]),
        "steps": settings["epochs"] * steps_per_epoch,
        "weights": {role: runs[0][role]["weights"] for role in ROLES},
        "titles": _titles(results),
        "rows": _rows(results),
        "start": _start(runs),
        "morphs": _morphs(morphs),
        "broken": sorted({reason for morph in morphs for reason in morph["failures"]}),
        "noise": max(morph["noise"] for morph in morphs),
        "against": {
            other: {kind: _compared(runs, other, kind) for kind in ("test_accuracy", "test_loss")}
            for other in ("on", "scratch", "scratch_longer")
        },
        "reach": _reach(runs, steps_per_epoch),
    }


def _titles(results: Mapping[str, Any]) -> dict[str, str]:
    epochs = results["settings"]["epochs"]
    before, longer = (len(results["runs"][0][role]["loss"]) for role in ("teacher", "scratch"))
    return {
        "teacher": f"teacher, {before} epoch{'' if before == 1 else 's'}",
        "on": f"teacher trained on, {epochs} more",
        "student": f"student, {epochs} more",
        "scratch": f"student's layers from scratch, {epochs}",
        "scratch_longer": f"student's layers from scratch, {longer}",
    }


def _last(run: Mapping[str, Mapping[str, Any]], row: str, kind: str) -> float:
    """Return the last value of a curve; of the run from scratch, also that at equal steps."""
    if row == "scratch":
        return float(run["scratch"][kind][len(run["student"]["loss"])])
    return float(run[row.removesuffix("_longer")][kind][-1])


def _rows(results: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the table in words: median over the seeds, least and most."""
    runs, rows = results["runs"], []
    for row, title in _titles(results).items():
        cells = [f"{runs[0][row.removesuffix('_longer')]['weights']:,}"]
        for kind, form, unit in (("test_accuracy", "{:.1f}", " %"), ("test_loss", "{:.3f}", "")):
            values = [_last(run, row, kind) * (100 if unit else 1) for run in runs]
            middle, least, most = (form.format(of(values)) for of in (statistics.median, min, max))
            cells.append((middle if least == most else f"{middle} ({least} to {most})") + unit)
        rows.append((title, cells))
    return rows


def _start(runs: Runs) -> dict[str, float]:
    """Return how far the student's loss before its first step is from the teacher's last one."""
    gaps = [abs(run["student"]["test_loss"][0] - run["teacher"]["test_loss"][-1]) for run in runs]
    return {
        "gap": max(gaps),
        "teacher": statistics.median(run["teacher"]["test_loss"][-1] for run in runs),
        "same_accuracy": all(
            run["student"]["test_accuracy"][0] == run["teacher"]["test_accuracy"][-1]
            for run in runs
        ),
    }


def _morphs(morphs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each kind of morph, over all seeds."""
    rows = []
    for what in dict.fromkeys(morph["what"] for morph in morphs):
        same = [morph for morph in morphs if morph["what"] == what]
        rows.append(
            {
                "what": what,
                "count": len(same),
                "held": sum(morph["holds"] for morph in same),
                "ratio": max(morph["ratio"] for morph in same),
                "integers": all(morph["integers"] for morph in same),
                "difference": max(morph["difference"] for morph in same),
            }
        )
    return rows


def _compared(runs: Runs, other: str, kind: str) -> dict[str, Any]:
    """Return in how many seeds the student ends better than another, and by how much."""
    sign = 1 if kind == "test_accuracy" else -1
    gains = [sign * (_last(run, "student", kind) - _last(run, other, kind)) for run in runs]
    better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
    return {
        "verdict": {better: "better", worse: "worse"}.get(len(gains), "mixed"),
        "better": better,
        "worse": worse,
        "median": statistics.median(gains),
        "least": min(gains),
        "most": max(gains),
    }


def _reach(runs: Runs, steps_per_epoch: int) -> dict[str, Any]:
    """Return when the run from scratch is as right as the student after its first epoch."""
    reached = []
    for run in runs:
        goal = run["student"]["test_accuracy"][1]
        epochs = [n for n, value in enumerate(run["scratch"]["test_accuracy"]) if value >= goal]
        reached.append(epochs[0] * steps_per_epoch if epochs else None)
    known = [steps for steps in reached if steps is not None]
    return {
        "first": steps_per_epoch,
        "goal": statistics.median(run["student"]["test_accuracy"][1] for run in runs),
        "never": len(reached) - len(known),
        "within": len(runs[0]["scratch"]["loss"]) * steps_per_epoch,
        "median": statistics.median(known) if known else None,
        "least": min(known, default=None),
        "most": max(known, default=None),
    }


def summary(results: Mapping[str, Any]) -> TextTable:
    """Return the table for the terminal."""
    titles = ("network", "weights", "test accuracy", "test loss")
    gap = _start(results["runs"])["gap"]
    count = len(results["runs"])
    seeds = "1 seed" if count == 1 else f"{count} seeds: median (least to most)"
    note = (
        f"{seeds}. Before its first step the student's loss is within {gap:.2g} of its teacher's."
    )
    return TextTable.of(titles, [(title, *cells) for title, cells in _rows(results)], (note,))


# Okabe and Ito's palette: told apart by colour-blind readers too.
_STROKES = {
    "teacher": ("teacher", "#666666", "solid"),
    "on": ("teacher trained on", "#0072B2", (0, (5, 2))),
    "student": ("student", "#D55E00", "solid"),
    "scratch": ("student's layers from scratch", "#009E73", (0, (2, 1.5))),
}


def figures(run: FinishedRun) -> Iterator[tuple[str, Figure]]:
    """Draw loss and errors on the test against the epochs after the morph."""
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, kind, title, unit, form in zip(
        panels,
        ("test_loss", "test_accuracy"),
        ("loss on the test", "errors on the test"),
        ("cross-entropy, nats", "share of the images, %"),
        (lambda value, _: f"{value:g}", lambda value, _: f"{100 * value:g}"),
        strict=True,
    ):
        for role in _STROKES:
            values = np.array([seed[role][kind] for seed in run.results["runs"]])
            if kind == "test_accuracy":
                # On a logarithmic axis an error of 0 is a gap.
                values = np.where(values < 1, 1 - values, np.nan)
            _curve(panel, role, values)
        panel.axvline(0, color=INK, linewidth=0.8)
        panel.set_yscale("log")
        # 0.2 and not 2 times a power, at 1, 2 and 5 of each decade.
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_major_formatter(FuncFormatter(form))
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set(title=title, xlabel="epochs after the morph", ylabel=unit)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(visible=True, which="minor", linewidth=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    yield "figure-curves", figure


def _curve(panel: Axes, role: str, values: NDArray[np.float64]) -> None:
    """Draw the median over the seeds, and a band from the least to the most."""
    title, colour, dashes = _STROKES[role]
    epochs = np.arange(values.shape[1])
    if role == "teacher":
        epochs = epochs - epochs[-1]
    ends = values.min(axis=0), values.max(axis=0)
    panel.fill_between(epochs, *ends, color=colour, alpha=0.15, linewidth=0)
    stroke: dict[str, Any] = {"linestyle": dashes, "marker": "o", "markersize": 3}
    panel.plot(epochs, np.median(values, axis=0), color=colour, label=title, **stroke)

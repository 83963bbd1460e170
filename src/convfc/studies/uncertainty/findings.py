"""What the report says: every conclusion is drawn here, from the numbers of ``results.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convfc.studies.uncertainty.methods import METHODS, Settings
from convfc.studies.uncertainty.parts import ANGLES
from convfc.studies.uncertainty.scores import DRAWS, MEASURES
from convfc.tables import Column, TextTable

__all__ = ["find", "sorted_out", "summary"]

_PERCENT = {"accuracy", "ece", "moved_accuracy", "moved_ece"}
_COLUMNS = ("accuracy", "nll", "ece", "brier", "auroc_entropy", "auroc_mutual")
_MOVED = ("moved_accuracy", "moved_nll", "moved_ece")
BETTER, WORSE = " ▲", " ▼"


def find(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the report's template.

    Parameters
    ----------
    results : mapping
        ``results.json``.
    """
    table, settings = results["table"], results["settings"]
    return {
        "results": dict(results),
        "settings": settings,
        "methods": METHODS,
        "bootstrap": DRAWS,
        "titles": {measure: title for measure, (title, _) in MEASURES.items()},
        "rows": _rows(results, _COLUMNS, costs=True),
        "moved_rows": _rows(results, _MOVED, costs=False),
        "columns": _COLUMNS,
        "moved_columns": _MOVED,
        "sorted": {measure: sorted_out(table, measure) for measure in MEASURES},
        "epistemic": _epistemic(table),
        "turned": _turned(results["turned"]),
        "rates": _rates(results["rates"]),
        "sampling": _sampling(results["seconds"]),
        "drawn": _drawn(results["drawn"]),
        "weights": results["weights"],
        "command": _command(settings),
    }


def sorted_out(table: Mapping[str, Any], measure: str) -> dict[str, list[str]]:
    """Sort the methods by what can be said of a measure: better, worse, or not told apart.

    A method is better, or worse, if the whole interval of its difference is on one side of 0.
    """
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
            cells += [f"{_training(results['seconds'], key):.1f}"]
            cells += [f"{results['seconds'][f'predict-{key}']['sampling']:.2f}"]
        rows.append((METHODS[key].title, cells))
    return rows


def _cell(cell: Mapping[str, float] | None, measure: str) -> str:
    if cell is None:
        return "–"
    value = cell["value"]
    text = f"{100 * value:.1f} %" if measure in _PERCENT else f"{value:.3f}"
    if "difference" not in cell:
        return text
    return text + {"better": BETTER, "worse": WORSE, "same": ""}[_verdict(cell, measure)]


def _training(seconds: Mapping[str, Any], key: str) -> float:
    """Return how long a method took until it could be asked; Laplace needs a trained network."""
    if key == "laplace":
        return float(seconds["plain"]["training"] + seconds["predict-laplace"]["training"])
    return float(seconds[key]["training"])


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
    }
    if not wrong:
        return found
    means = {
        key: sum(numbers["confidence"][n] for n in wrong) / len(wrong)
        for key, numbers in turned.items()
    }
    found["plain"] = means["plain"]
    found["less"], found["not"] = [], []
    for key, mean in means.items():
        if key != "plain":
            words = f"{100 * mean:.0f} % with {METHODS[key].title}"
            found["less" if mean < means["plain"] else "not"].append(words)
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


def _sampling(seconds: Mapping[str, Any]) -> dict[str, float]:
    """Return how many times as long all draws take as one evaluation, least and most."""
    once = seconds["predict-plain"]["sampling"]
    ratios = [
        seconds[f"predict-{key}"]["sampling"] / once for key in METHODS if key not in ("plain",)
    ]
    return {"least": min(ratios), "most": max(ratios)}


def _drawn(drawn: Mapping[str, Any]) -> dict[str, Any]:
    """Return whether every network that was drawn is the same function in CONV form."""
    broken = [METHODS[key].title for key, one in drawn.items() if not one["holds"]]
    return {
        "rows": [(METHODS[key].title, one) for key, one in drawn.items()],
        "broken": broken,
        "failures": [reason for one in drawn.values() for reason in one["failures"]],
    }


def _command(settings: Mapping[str, Any]) -> str:
    """Return the command that repeats the run."""
    ordinary = Settings()
    options = [
        f" --{name} {settings[name]}"
        for name in ("epochs", "seed", "images", "samples")
        if settings[name] != getattr(ordinary, name)
    ]
    return f"convfc reproduce --study uncertainty{''.join(options)}"


def summary(results: Mapping[str, Any]) -> TextTable:
    """Return the table for the terminal."""
    rows = _rows(results, _COLUMNS, costs=True)
    titles = [MEASURES[measure][0] for measure in _COLUMNS]
    draws = results["settings"]["samples"]
    columns = [Column("method", tuple(title for title, _ in rows))]
    for number, title in enumerate((*titles, "training, CPU s", f"{draws} draws, CPU s")):
        cells = tuple(cells[number] for _, cells in rows)
        columns.append(Column(title, cells, right=True, spare=number if number > 3 else 0))
    return TextTable(
        tuple(columns),
        (f"{BETTER.strip()} better, {WORSE.strip()} worse than no method, more than the choice of "
         "the images explains.",),
    )  # fmt: skip

"""What a sweep says: how far the two networks are apart over the seeds, and what decides it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convfc.extras import needing

with needing("paper"):
    from rich.table import Table

from convfc.paper.optimizers import INITIALIZERS, TITLES
from convfc.runs.reporting import number

VARIED = ("optimizer", "epsilon", "rate", "dtype", "filters", "initializer")
"""What the points of one seed may differ in."""


@dataclass(frozen=True)
class Group:
    """The points that differ in their seeds alone."""

    label: str
    optimizer: str
    epsilon: float | None
    dtype: str
    other: tuple[Any, ...]  # filters, rate and initializer
    points: Sequence[Mapping[str, Any]]
    diverged: Sequence[int] = ()  # seeds that have no point, since their numbers were not finite

    def values(self, key: str = "weights") -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return what was measured at each point, in the order of the seeds."""
        return np.array([point[key] for point in self.points], np.float64)

    def quantiles(self, key: str = "weights") -> list[float]:
        """Return the least value, the quartiles, and the largest value."""
        found = np.quantile(self.values(key), (0, 0.25, 0.5, 0.75, 1))
        return [float(value) for value in found]

    @property
    def median(self) -> float:
        """Return the median of the weights' difference."""
        return self.quantiles()[2]


def groups_of(
    points: Sequence[Mapping[str, Any]], diverged: Sequence[Mapping[str, Any]] = ()
) -> list[Group]:
    """Return the points in groups, which are labelled by what tells them from one another."""
    every = [*points, *diverged]
    differing = {
        key: len({point[key] for point in every}) > 1
        for key in ("dtype", "filters", "rate", "initializer")
    }
    epsilons = {point["epsilon"] for point in every} - {None}
    made: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for point in every:
        made.setdefault(tuple(point[key] for key in VARIED), []).append(point)
    groups = []
    for (optimizer, epsilon, rate, dtype, filters, initializer), members in made.items():
        words = [
            TITLES[optimizer],
            f"ε {number(epsilon)}" if len(epsilons) > 1 and epsilon else "",
            f"rate {number(rate)}" if differing["rate"] and rate else "",
            dtype if differing["dtype"] else "",
            f"{filters} filters" if differing["filters"] else "",
            INITIALIZERS[initializer] if differing["initializer"] else "",
        ]
        label = ", ".join(word for word in words if word)
        other = (filters, rate, initializer)
        whole = [point for point in members if "weights" in point]
        lost = [point["seed"] for point in members if "weights" not in point]
        groups.append(Group(label, optimizer, epsilon, dtype, other, whole, lost))
    return groups


def pairs_of(one: Group, other: Group) -> list[tuple[float, float]]:
    """Return the weights' differences of two groups, for each seed that both have."""
    there = {point["seed"]: point["weights"] for point in other.points}
    found = ((point["weights"], there.get(point["seed"])) for point in one.points)
    return [(here, value) for here, value in found if value is not None]


def findings(
    points: Sequence[Mapping[str, Any]], diverged: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Return what the report says about the points of a sweep."""
    every = groups_of(points, diverged)
    groups = [group for group in every if group.points]
    return {
        "groups": groups,
        "lost": [group for group in every if group.diverged],
        "settings_count": len(every),
        "titles": TITLES,
        "initializers": INITIALIZERS,
        "control": max(float(group.values("control").max()) for group in groups),
        "largest": max(group.quantiles("roundings")[-1] for group in groups),
        "against_sgd": _against_sgd(groups),
        "epsilons": _epsilons(groups),
        "precision": _precision(groups),
        "seconds": sum(point["seconds"] for point in points),
    }


def _against_sgd(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Compare each group with SGD's, seed by seed, all else alike."""
    found = []
    for group in groups:
        for sgd in groups:
            if (sgd.optimizer, sgd.dtype, sgd.other) != ("sgd", group.dtype, group.other):
                continue
            pairs = pairs_of(group, sgd)
            if group is sgd or not pairs:
                continue
            larger = sum(gap > other for gap, other in pairs)
            times = group.median / sgd.median if sgd.median else None
            own = {"label": group.label, "larger": larger, "seeds": len(pairs), "times": times}
            found.append(own)
    return found


def _epsilons(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Follow the gap of each optimizer as its epsilon grows, all else alike."""
    found = []
    for key, members in itertools.groupby(
        sorted(
            (group for group in groups if group.epsilon is not None),
            key=lambda group: (*_but_epsilon(group), group.epsilon),
        ),
        key=_but_epsilon,
    ):
        line = list(members)
        if len(line) < 2:
            continue
        rounding = float(np.median(np.concatenate([group.values("gradient") for group in line])))
        first, last = line[0], line[-1]
        pairs = pairs_of(first, last)
        if not pairs:
            continue
        found.append(
            {
                "label": _without_epsilon(first),
                "optimizer": key[0],
                "groups": line,
                "rounding": rounding,
                "size": float(
                    np.median(np.concatenate([group.values("gradient_size") for group in line]))
                ),
                "from": first.epsilon,
                "to": last.epsilon,
                "first": first.median,
                "last": last.median,
                "larger": sum(gap > other for gap, other in pairs),
                "seeds": len(pairs),
                "past": last.epsilon is not None and last.epsilon > rounding,
            }
        )
    return found


def _but_epsilon(group: Group) -> tuple[str, ...]:
    return (group.optimizer, group.dtype, *map(str, group.other))


def _without_epsilon(group: Group) -> str:
    return ", ".join(word for word in group.label.split(", ") if not word.startswith("ε "))


def _precision(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Compare float32 with float64, all else alike."""
    wide = {
        (group.optimizer, group.epsilon, group.other): group
        for group in groups
        if group.dtype == "float64"
    }
    unit = float(np.finfo(np.float32).eps / np.finfo(np.float64).eps)
    found = []
    for group in groups:
        other = wide.get((group.optimizer, group.epsilon, group.other))
        if group.dtype != "float32" or other is None:
            continue
        shrinks = group.median / other.median if other.median else None
        # Rounding shrinks by the ratio of the units, another cause by 1: which one is nearer?
        rounding = shrinks is None or shrinks > math.sqrt(unit)
        label = group.label.replace(", float32", "")
        found.append({"label": label, "shrinks": shrinks, "rounding": rounding})
    return found


def summary_table(results: Mapping[str, Any]) -> Table:
    """Return the spread of a finished sweep, for the terminal."""
    settings = results["settings"]
    count = settings["seeds"]
    seeds = f"{count} seed{'s' if count > 1 else ''}"
    table = Table(title=f"‖W_cnn − W_fc‖ after {settings['epochs']} epochs, {seeds}")
    table.add_column("")
    for title in ("least", "quartile", "median", "quartile", "largest", "control"):
        table.add_column(title, justify="right")
    lost = []
    for group in groups_of(results["points"], results["diverged"]):
        if group.points:
            control = number(group.values("control").max())
            table.add_row(group.label, *map(number, group.quantiles()), control)
        if group.diverged:
            lost.append(f"{group.label} (seed {', '.join(map(str, group.diverged))})")
    if lost:
        table.caption = f"Diverged, and not counted: {'; '.join(lost)}"
    return table

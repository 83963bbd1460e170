"""What the benchmarks share: two cores for every library, a header, and tables."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from convfc.files import replacing
from convfc.runs.machine import describe_machine

CORES = 2
RESULTS = pathlib.Path(__file__).with_name("results")
Shown = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""A table: title, columns, rows."""
console = Console(width=max(110, Console().width))


def use_two_cores() -> None:
    """Give every library the same two cores; call it before the first of them is imported."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(CORES)
    if hasattr(os, "sched_setaffinity"):  # JAX has no such variable: it counts the cores
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def header(title: str, *packages: str) -> None:
    """Print what is measured, on what, and with which versions."""
    machine = describe_machine()
    console.rule(f"[bold]{title}")
    console.print(f"{machine['processor']}, {machine['cores']} cores, {machine['system']}")
    console.print(", ".join(f"{name} {version(name)}" for name in packages))


def version(package: str) -> str:
    """Return the version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: its first column is text, the others are numbers."""
    printed = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        printed.add_column(column, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        printed.add_row(*row)
    console.print(printed)


def milliseconds(seconds: float | None) -> str:
    """Return a time for a table; a dash where nothing was measured."""
    return "-" if seconds is None else f"{seconds * 1e3:,.2f}"


def mebibytes(size: float | None) -> str:
    """Return a size for a table; a dash where nothing was measured."""
    return "-" if size is None else f"{size / 2**20:,.1f}"


def ratio(value: float | None, reference: float | None) -> str:
    """Return how many times the reference a value is; a dash where one is missing."""
    return f"{value / reference:.2f}x" if value and reference else "-"


def per_round(times: Sequence[float], reference: Sequence[float]) -> float:
    """Return the median ratio of calls that stood side by side."""
    return statistics.median(a / b for a, b in zip(times, reference, strict=True))


def write_tables(name: str, tables: Sequence[Shown], packages: Sequence[str], note: str) -> None:
    """Write what was shown to ``results/<name>.md``, with the machine and the versions."""
    RESULTS.mkdir(exist_ok=True)
    machine = describe_machine()
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    text = [
        f"Measured on {machine['processor']}, {CORES} threads, {machine['system']}; {versions}; "
        f"{note}."
    ]
    for title, columns, lines in tables:
        text += ["", f"**{title}**", "", "| " + " | ".join(columns) + " |"]
        text.append("|---" + "|---:" * (len(columns) - 1) + "|")
        text += ["| " + " | ".join(line) + " |" for line in lines]
    with replacing(RESULTS / f"{name}.md") as handle:
        handle.write(("\n".join(text) + "\n").encode())

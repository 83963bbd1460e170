"""The table at the end of a run: what the paper printed, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convfc.extras import needing

with needing():
    from rich.table import Table

from convfc.paper.findings import PAPER, PAPER_EPOCHS

__all__ = ["summary_table"]

_TITLES = {
    "output_difference_mean": "outputs of layer 1, mean ‖V − U‖",
    "output_difference_printed": "the same as printed, ‖V − U‖ / 1000",
    "weight_difference": "weights of layer 1, ‖W − W′‖",
    "max_loss_difference": "largest difference of a loss",
}


def summary_table(results: Mapping[str, Any]) -> Table:
    """Return the differences of a finished run beside the paper's."""
    table = Table(title=f"Differences after {results['epochs']} epochs, {results['dtype']}")
    table.add_column("")
    for title in (f"paper, {PAPER_EPOCHS} epochs", "FC − CNN", "control − FC"):
        table.add_column(title, justify="right")
    for optimizer in (name for name in ("sgd", "adam") if name in results):
        table.add_section()
        for key, title in _TITLES.items():
            measured = (_number(results[optimizer][n][key]) for n in ("fc", "control"))
            table.add_row(f"{optimizer}: {title}", PAPER[optimizer].get(key, "–"), *measured)
    return table


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}"

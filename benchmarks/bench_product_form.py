"""The paper's claim: the product form is "more efficient but needs much memory storage".

The measurement of the report, ``convfc.paper.cost``, on larger layers: direct sliding, M K, M K in
row blocks, and Keras's own layer, while the image, the kernel and the batch grow.
"""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Callable
from typing import Any

from harness import console, header, mebibytes, milliseconds, ratio, table, use_two_cores

from convfc.files import write_json
from convfc.paper.cost import WAYS, measure_cost

NAMES = {
    "image": "image height and width",
    "kernel": "kernel height and width",
    "batch": "images in a batch",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the small layers of the report")
    parser.add_argument("--backend", help="Keras's backend of the native layer (default: jax)")
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    use_two_cores()
    if arguments.backend:
        os.environ["KERAS_BACKEND"] = arguments.backend
    with console.status("measuring") as status:
        cost = measure_cost(quick=arguments.quick, progress=status.update)
    header("The product form: time and memory", "numpy", "keras", cost["backend"])
    console.print(
        f"float32; times are medians of rounds in turn; native: Keras on {cost['backend']}"
    )
    console.print(f"peak memory of one call, its output included: {cost['memory_method']}")
    console.print(f"row blocks of {mebibytes(cost['row_block_bytes'])} MiB")
    for axis, rows in cost["axes"].items():
        print_series(axis, rows)
    if arguments.json:
        write_json(arguments.json, cost)


def print_series(axis: str, rows: list[dict[str, Any]]) -> None:
    """Print time and memory of one series, each with its ratio to the product."""
    constant = {key: rows[0][key] for key in ("batch", "image", "channels", "filters", "kernel")}
    constant.pop(axis)
    console.print(f"\n[bold]{NAMES[axis]}[/]: {', '.join(f'{k} {v}' for k, v in constant.items())}")
    print_kind("time, ms", "seconds", milliseconds, axis, rows)
    print_kind("peak memory, MiB", "peak_bytes", mebibytes, axis, rows)


def print_kind(
    unit: str,
    kind: str,
    shown: Callable[[float | None], str],
    axis: str,
    rows: list[dict[str, Any]],
) -> None:
    """Print one figure of a series; memory comes with the size of M."""
    lines = []
    for row in rows:
        measured = {way: row["methods"][way][kind] for way in WAYS}
        cells = [
            f"{shown(measured[way])} {ratio(measured[way], measured['product']):>7}" for way in WAYS
        ]
        size = [mebibytes(row["patch_matrix_bytes"])] if kind == "peak_bytes" else []
        lines.append([str(row["value"]), *cells, *size])
    size = ["M alone"] if kind == "peak_bytes" else []
    table(f"{unit}, and ratio to the product", [axis, *WAYS, *size], lines)


if __name__ == "__main__":
    main()

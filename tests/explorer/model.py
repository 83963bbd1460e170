"""The page's own model, asked from Python: one process of Node for all questions."""

from __future__ import annotations

import json
import pathlib
import shutil
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from browser import PATIENCE, lacking
from hypothesis import given, settings

from convfc import ConvGeometry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hypothesis import strategies as st

RUNNER = pathlib.Path(__file__).with_name("run_model.mjs")


class Model:
    """The modules in ``web/src/model``, running in Node; ``run_model.mjs`` lists the questions."""

    def __init__(self, node: str) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            [node, str(RUNNER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, question: str, *given: Any) -> Any:
        """Return the answer; what the model throws is a failure."""
        self._process.stdin.write(json.dumps({"ask": question, "with": given}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert "threw" not in answer, f"{question}{given}: {answer['threw']}"
        return answer["is"]

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()


def running() -> Iterator[Model]:
    """Yield the model, for a fixture; without Node the tests are skipped, or fail if required."""
    node = shutil.which("node")
    if node is None:
        lacking("there is no Node to run the page's model in; remedy: apt-get install nodejs")
    made = Model(node)
    yield made
    made.close()


def drawn(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """Return so many examples of a strategy, the same in every run."""
    found: list[Any] = []

    @settings(max_examples=count, derandomize=True, database=None, deadline=None)
    @given(strategy)
    def collect(example: Any) -> None:
        found.append(example)

    collect()
    return found


def settings_of(
    geometry: ConvGeometry, input_size: Sequence[int], *, bias: bool = False
) -> dict[str, Any]:
    """Return the page's settings of a geometry, written down once more, beside `state.py`."""
    return {
        "axes": geometry.spatial_ndim,
        "size": list(input_size),
        "channels": geometry.in_channels,
        "filters": geometry.out_channels,
        "kernel": list(geometry.kernel_size),
        "stride": list(geometry.stride),
        "padding": [list(pair) for pair in geometry.padding],
        "mode": geometry.padding_mode,
        "dilation": list(geometry.dilation),
        "groups": geometry.groups,
        "transposed": geometry.transposed,
        "outputPadding": list(geometry.output_padding),
        "flip": geometry.flip,
        "bias": bias,
    }


def geometry_of(settings: dict[str, Any]) -> tuple[ConvGeometry, tuple[int, ...]]:
    """Return what settings stand for, and raise what convfc raises if they are no convolution."""
    geometry = ConvGeometry(
        settings["channels"],
        settings["filters"],
        settings["kernel"],
        stride=settings["stride"],
        padding=settings["padding"],
        padding_mode=settings["mode"],
        dilation=settings["dilation"],
        groups=settings["groups"],
        transposed=settings["transposed"],
        output_padding=settings["outputPadding"],
        flip=settings["flip"],
    )
    geometry.output_size(settings["size"])
    return geometry, tuple(settings["size"])


def forwards(geometry: ConvGeometry) -> ConvGeometry:
    """Return the geometry whose windows are read forwards, as the page shows all of them."""
    return replace(geometry, flip=geometry.transposed)


def turned(filters: np.ndarray, geometry: ConvGeometry) -> np.ndarray:
    """Return filters as the page shows them: turned where the geometry reads backwards."""
    kernel = tuple(range(1, geometry.spatial_ndim + 1))
    return np.flip(filters, kernel) if geometry.flip != geometry.transposed else filters

"""Inspection as data and as a table, without any framework."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from cases import CASES

import convfc
from convfc import ConvGeometry
from convfc.inspection import Inspection, LayerRow, short_geometry

if TYPE_CHECKING:
    from cases import Case

PLAIN = ConvGeometry(3, 64, (7, 7), stride=2, padding=3)
ROW = LayerRow(
    ("stem.conv",), "Conv2d", "native", PLAIN, 9408, call=0, batch=2, input_size=(224, 224),
    output_size=(112, 112), dtype="float32", itemsize=4,
)  # fmt: skip
UP = LayerRow(
    ("up", "again.up"), "ConvTranspose2d", "patch",
    ConvGeometry(64, 8, (2, 2), stride=2, transposed=True), 2056, call=1, batch=2,
    input_size=(112, 112), output_size=(224, 224), dtype="float32", itemsize=4,
)  # fmt: skip
OWN = LayerRow(("",), "F.conv2d", "functional", reason="it is a function", remedy="use a layer")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_shapes_and_numbers_are_those_of_the_arrays(case: Case) -> None:
    size = case.geometry.output_size(case.input_size)
    facts = {"call": 0, "batch": case.batch, "input_size": case.input_size, "output_size": size}
    row = LayerRow(("layer",), "Conv", "native", case.geometry, itemsize=8, **facts)
    x, filters, _ = case.integers()
    M = convfc.im2col(x, case.geometry)
    K = convfc.filters_to_matrix(filters, case.geometry)
    y = convfc.conv_as_matmul(x, filters, case.geometry)
    assert row.patch_matrix_shape == M.shape
    assert row.patch_matrix_bytes == M.nbytes
    assert row.filter_matrix_shape == K.shape
    assert row.unrolled_shape == (y[0].size, x[0].size)
    assert row.multiplications == math.prod(M.shape) // case.geometry.groups * K.shape[1]
    if not case.geometry.transposed:
        assert row.native_multiplications == row.multiplications
    if case.geometry.padding_mode != "zeros" or not np.any(case.geometry.padding):
        # On ones every product that is not with padding adds 1.
        ones = convfc.conv_as_matmul(np.ones_like(x), np.ones_like(filters), case.geometry)
        assert row.native_multiplications == ones.sum()


def test_totals() -> None:
    totals = Inspection("Net", (ROW, UP, replace(UP, call=0), OWN), 11464, 12000, True).totals
    assert (totals.layers, totals.convertible, totals.calls) == (3, 2, 3)
    assert totals.multiplications == ROW.multiplications + 2 * UP.multiplications
    assert totals.native_multiplications == ROW.multiplications + UP.multiplications // 2
    assert totals.patch_matrix_bytes == ROW.patch_matrix_bytes + 2 * UP.patch_matrix_bytes
    assert totals.largest_patch_matrix_bytes == UP.patch_matrix_bytes


def test_of_a_model_that_was_not_run_sizes_are_unknown() -> None:
    row = LayerRow(("conv",), "Conv2d", "native", PLAIN, 9408)
    unknown = (row.patch_matrix_shape, row.unrolled_shape, row.multiplications)
    assert (*unknown, row.native_multiplications, row.patch_matrix_bytes) == (None,) * 5
    assert row.filter_matrix_shape == (147, 64)
    totals = Inspection("Net", (row,), 9408, 9408).totals
    assert (totals.calls, totals.multiplications, totals.patch_matrix_bytes) == (0, None, None)


def test_the_table() -> None:
    inspection = Inspection("Net", (ROW, UP, OWN), 11464, 1_000_000, was_run=True)
    lines = str(inspection).splitlines()
    assert max(map(len, lines)) <= 120
    assert [" | ".join(re.split(r" {2,}", line)) for line in lines] == [
        "layer | type | geometry | in | out | M (b=2) | K | param. | mult. | M bytes | to FC",
        "stem.conv | Conv2d | 7×7 s2 p3 | 224×224 | 112×112 | 12544×147 | 147×64 | 9.41 k | 236 M "
        "| 14.1 MiB | yes",
        "up | ConvTranspose2d (patch) | T 2×2 s2 | 112×112 | 224×224 | 50176×256 | 256×8 | 2.06 k "
        "| 206 M | 98.0 MiB | yes",
        "= again.up#1",
        "(itself) | F.conv2d | no [1]",
        "",
        "Net: 3 CONV layers, 2 convertible; 11.5 k of 1.00 M parameters, 442 M multiplications "
        "(287 M in the native layers),",
        "patch matrices 112 MiB (largest 98.0 MiB)",
        "[1] it is a function. Remedy: use a layer",
        "Left out for width: unrolled.",
    ]


def test_rows_with_different_batches_show_them() -> None:
    inspection = Inspection("Net", (ROW, replace(ROW, batch=7)), 9408, 9408, was_run=True)
    title, first, second, *_ = str(inspection).splitlines()
    assert " M " in title
    assert "  2×12544×147  " in first
    assert "  7×12544×147  " in second


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ((), "Net: no CONV layers"),
        ((ROW,), "Net: 1 CONV layer, convertible; 10 of 20 parameters"),
        ((OWN,), "Net: 1 CONV layer, 0 convertible; 10 of 20 parameters"),
        ((ROW, UP), "Net: 2 CONV layers, all convertible; 10 of 20 parameters"),
    ],
    ids=["none", "one", "not-one", "all"],
)
def test_the_summary(rows: tuple[LayerRow, ...], text: str) -> None:
    assert text in str(Inspection("Net", rows, 10, 20)).splitlines()


def test_it_is_a_sequence_and_json_and_html() -> None:
    inspection = Inspection("<Net>", (ROW, OWN), 1, 2, was_run=True)
    assert "<div>&lt;Net&gt;: 2 CONV layers" in inspection._repr_html_()
    assert (list(inspection), len(inspection)) == ([ROW, OWN], 2)
    data = json.loads(json.dumps(inspection.to_dict()))
    assert data["totals"]["layers"] == 2
    assert data["rows"][0]["unrolled_shape"] == [802816, 150528]
    assert data["rows"][0]["geometry"]["kernel_size"] == [7, 7]
    own = data["rows"][1]
    assert (own["remedy"], own["convertible"]) == ("use a layer", False)


@pytest.mark.parametrize(
    ("geometry", "text"),
    [
        (ConvGeometry(1, 1, (3,)), "3 s1"),
        (ConvGeometry(1, 1, (3, 3), stride=(2, 1), padding=(0, 1)), "3×3 s2×1 p0×1"),
        (ConvGeometry(1, 1, (3, 3), padding=[(1, 2), (1, 2)]), "3×3 s1 p1.2"),
        (ConvGeometry(4, 4, (3, 3), groups=4, dilation=2), "3×3 s1 d2 g4"),
        (ConvGeometry(1, 1, (1, 2, 3), padding=1, padding_mode="circular"), "1×2×3 s1 p1 circular"),
        (
            ConvGeometry(1, 1, (2, 2), stride=2, transposed=True, output_padding=(1, 0), flip=True),
            "T 2×2 s2 op1×0 flip",
        ),
    ],
    ids=str,
)
def test_a_geometry_in_short(geometry: ConvGeometry, text: str) -> None:
    assert short_geometry(geometry) == text


NUMBERS = {0: "0", 999: "999", 1000: "1.00 k", 9994: "9.99 k", 9996: "10.0 k", 99_940: "99.9 k"}
NUMBERS |= {99_960: "100 k", 999_499: "999 k", 999_500: "1.00 M", 1_234_567_890: "1.23 G"}


BYTES = {1: "3.52 MiB", 64: "225 MiB", 290: "1020 MiB", 292: "1.00 GiB"}


@pytest.mark.parametrize(
    ("field", "number", "text"),
    [
        *(("parameters", number, text) for number, text in NUMBERS.items()),
        *(("itemsize", number, text) for number, text in BYTES.items()),
    ],
)
def test_large_numbers_are_readable(field: str, number: int, text: str) -> None:
    row = replace(ROW, **{field: number})
    assert f"  {text}  " in str(Inspection("Net", (row,), 1, 2, was_run=True))

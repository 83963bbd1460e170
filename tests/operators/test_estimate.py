"""The size of the matrix, told before it is built, is its size; and what the machine has free."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import Case
from hypothesis import given
from libraries import traced_peak
from strategies import cases
from torch import nn

from convfc import ConvGeometry
from convfc.errors import ArgumentError, MemoryBudgetError
from convfc.operators.estimate import (
    MatrixEstimate,
    available_memory,
    check_fits,
    matrix_estimate,
)
from convfc.operators.matrix import conv_matrix


@given(cases())
def test_the_estimate_is_exact(subject: Case):
    _, filters, _ = subject.integers(dtype=np.float32)
    for layout in ("csr", "dense"):
        estimate = matrix_estimate(filters, subject.input_size, subject.geometry, layout=layout)
        A = conv_matrix(filters, subject.input_size, subject.geometry, layout=layout)
        assert estimate.shape == A.shape
        if layout == "dense":
            assert estimate.bytes == A.nbytes
        else:
            assert estimate.nonzeros == A.nnz
            assert estimate.bytes == A.data.nbytes + A.indices.nbytes + A.indptr.nbytes


def test_a_layer_filters_and_a_geometry_alone_in_any_library_s_dtype():
    layer = nn.Conv2d(2, 3, 3, padding="same", dtype=torch.bfloat16)
    geometry = ConvGeometry(2, 3, (3, 3), padding=1)
    of_layer = matrix_estimate(layer, (6, 5))
    filters = torch.ones(geometry.filters_shape, dtype=torch.bfloat16)
    assert of_layer == matrix_estimate(filters, (6, 5), geometry)
    narrow = np.ones(geometry.filters_shape, np.int8)  # widened to 8 bytes
    for estimate, size in (
        (of_layer, 2),
        (matrix_estimate(geometry, (6, 5)), 4),
        (matrix_estimate(narrow, (6, 5), geometry), 8),
        *(
            (matrix_estimate(layer, (6, 5), dtype=dtype), size)
            for dtype, size in ((np.float32, 4), ("float16", 2), (np.dtype("complex128"), 16))
        ),
    ):
        assert estimate.bytes == estimate.nonzeros * (size + 4) + (estimate.shape[0] + 1) * 4


def test_nothing_is_built_for_it():
    geometry = ConvGeometry(64, 64, (3, 3), padding=1)
    estimate, peak = traced_peak(lambda: matrix_estimate(geometry, (224, 224)))
    assert peak < 2**20  # the matrix takes 14 GB
    # Of 224 positions the two at the ends read two elements of an axis, the others three.
    assert estimate.nonzeros == (3 * 224 - 2) ** 2 * 64 * 64
    assert estimate.shape == (64 * 224**2, 64 * 224**2)
    assert estimate.bytes == estimate.nonzeros * 8 + (estimate.shape[0] + 1) * 4


def test_two_geometries_are_refused_and_any_size_is_readable():
    geometry = ConvGeometry(1, 1, (2,))
    with pytest.raises(ArgumentError, match="geometry: two geometries were given"):
        matrix_estimate(geometry, (4,), geometry)
    text = "1 x 1,024, 1 entries (0.0977 %), 1.05e+06 PiB"
    assert str(MatrixEstimate((1, 1024), 1, 2**70)) == text


def test_check_fits_says_what_is_allowed_and_what_else_to_do():
    estimate = MatrixEstimate((3, 4), 6, 2048)
    check_fits(estimate, 2048)
    check_fits(estimate, float("inf"))
    message = (
        "memory: the matrix does not fit; expected at most the 1.95 KiB that it may take; got "
        "3 x 4, 6 entries (50 %), 2 KiB. Remedy: buy more"
    )
    with pytest.raises(MemoryBudgetError, match=f"^{re.escape(message)}$"):
        check_fits(estimate, 2000, "buy more")
    with pytest.raises(MemoryBudgetError, match=r"convfc\.conv_operator\(layer, input_size\)"):
        check_fits(estimate, 2000)
    with pytest.raises(MemoryBudgetError, match="that the machine has free"):
        check_fits(MatrixEstimate((3, 4), 6, 2**62))


@pytest.mark.parametrize("memory", [0, True, "1 GiB", float("nan")])
def test_memory_is_a_number_of_bytes(memory: Any):
    with pytest.raises(MemoryBudgetError, match="memory: this is not an amount of memory"):
        check_fits(MatrixEstimate((1, 1), 1, 1), memory)


def group(limit: str, used: int, cached: str = "", place: str = "") -> dict[str, str]:
    """The files of a control group of version 2."""
    place = f"sys/fs/cgroup/{place}memory."
    return {f"{place}max": f"{limit}\n", f"{place}current": f"{used}\n", f"{place}stat": cached}


def group_1(limit: int, used: int, cached: str = "") -> dict[str, str]:
    place = "sys/fs/cgroup/memory/memory."
    names = {"limit_in_bytes": f"{limit}\n", "usage_in_bytes": f"{used}\n", "stat": cached}
    return {f"{place}{name}": text for name, text in names.items()}


CACHED = "anon 1\ninactive_file 300\n"


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        ("", {}, 1_024_000),
        ("0::/box\n", group("5000", 4000, CACHED, "box/"), 1300),
        (  # a group's limit holds for the groups within
            "0::/box/in\n",
            group("max", 10, place="box/in/") | group("5000", 4000, place="box/"),
            1000,
        ),
        (  # a container that is told the host's path
            "8:pids:/\n4:cpu,memory:/host/path\n",
            group_1(5000, 4000, "inactive_file 1\ntotal_inactive_file 200\n"),
            1200,
        ),
        # version 1's way to say that there is no limit
        ("4:memory:/\n", group_1(9223372036854771712, 4000), 1_024_000),
        # more in use than allowed, since the limit was lowered
        ("0::/\n", group("5000", 6000), 0),
    ],
    ids=["no-groups", "v2", "v2-parent", "v1-host-path", "v1-no-limit", "overfull"],
)
def test_free_memory_is_what_the_kernel_and_the_groups_leave(
    tmp_path: Path, groups: str, files: dict[str, str], free: int
):
    memory = "MemTotal: 9 kB\nMemAvailable:   1000 kB\n"
    told = {"proc/meminfo": memory, "proc/self/cgroup": groups, **files}
    for name, text in told.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_memory(tmp_path) == free


def test_without_a_proc_the_system_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    numbers = {"SC_AVPHYS_PAGES": 7, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", numbers.__getitem__)
    assert available_memory(tmp_path) == 7 * 4096

    def unknown(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", unknown)
    assert available_memory(tmp_path) is None

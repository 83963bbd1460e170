"""Choosing Keras's backend and precision; and the layers' tests on the other two backends."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from convfc.errors import ArgumentError, MissingDependencyError, RunError
from convfc.frameworks.keras import backend
from convfc.frameworks.keras.backend import BACKENDS, choose_backend, precision

HERE = pathlib.Path(__file__).parent
CURRENT = keras.config.backend()
OTHERS = [name for name in BACKENDS if name != CURRENT]


@pytest.mark.long
@pytest.mark.parametrize("name", OTHERS)
def test_layers_on_the_other_backends(name: str) -> None:
    """Each in a process of its own: a backend cannot change."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "OMP_NUM_THREADS": "1"}
    reading = "test_keras_read.py::test_"
    files = (f"{reading}a_layer_is_what_keras_computes", "test_keras_forms.py")
    files += (f"{reading}the_matrix_of_a_small_transposed_layer_cuts_where_keras_does",)
    files += ("test_keras_unrolled.py", "test_keras_simplify.py")
    tools = "test_keras_tools.py::test_"
    files += (f"{tools}what_is_exported_multiplies_and_does_not_convolve",)
    if name == "torch":  # whole networks, too, of which the others compile every layer
        files += (f"{tools}parameters_on_pytorch_are_those_of_the_fc_layers",)
        files += ("test_keras_models_real.py",)
    # Kernels of every size; and what another process loads, once.
    some = "(strides2 or Depthwise or causal or not test_a_layer_is) and not another_process"
    options = ("-q", "-p", "no:cacheprovider", "-n", "0", "-k", some, "-m", "not slow")
    tests = subprocess.run(  # noqa: S603 (our own interpreter)
        [sys.executable, "-m", "pytest", *options, *files],
        cwd=HERE,
        env={**os.environ, **quiet, "KERAS_BACKEND": name},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert tests.returncode == 0, tests.stdout[-3000:] + tests.stderr[-3000:]
    assert " passed" in tests.stdout
    # TensorFlow lacks some transposed layers, and channels first; only it has graphs without sizes.
    skipped = re.search(r"(\d+) skipped", tests.stdout)
    assert (int(skipped[1]) if skipped else 0) <= (23 if name == "tensorflow" else 1)


def test_the_chosen_backend_is_the_one_that_runs_and_no_other_is_known() -> None:
    choose_backend(CURRENT)
    assert keras.config.backend() == CURRENT
    with pytest.raises(ArgumentError, match=r"backend: .* 'tensorflow'; got 'numpy'"):
        choose_backend("numpy")


@pytest.mark.parametrize("name", OTHERS)
def test_backend_cannot_change_within_a_process(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    before = os.environ.get("KERAS_BACKEND")
    with pytest.raises(RunError, match=f"expected {name}; got {CURRENT}. Remedy: start a new proc"):
        choose_backend(name)
    assert os.environ.get("KERAS_BACKEND") == before


def test_missing_backend_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, CURRENT)
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=f"{CURRENT} is not installed.*pip install"):
        choose_backend(CURRENT)


def test_precision_holds_inside_and_ends_outside() -> None:
    with precision("float64"):
        inside = keras.layers.Dense(2, use_bias=False)
        output = keras.ops.convert_to_numpy(inside(np.full((1, 1), 1 / 3)))
        assert keras.config.floatx() == "float64"
        with precision("float32"):
            assert keras.layers.Dense(2).compute_dtype == "float32"
        assert keras.layers.Dense(2).compute_dtype == "float64"
    assert output.dtype == np.float64
    assert keras.config.floatx() == "float32"
    assert keras.layers.Dense(2).compute_dtype == "float32"
    assert keras.ops.convert_to_numpy(keras.ops.ones(1)).dtype == np.float32


def test_precision_ends_after_an_error_and_no_other_is_known() -> None:
    with pytest.raises(KeyError, match="inner"), precision("float64"):
        raise KeyError("inner")
    assert keras.config.floatx() == "float32"
    unknown = pytest.raises(ArgumentError, match=r"dtype: .*'float32' or 'float64'; got 'float16'")
    with unknown, precision("float16"):
        pass

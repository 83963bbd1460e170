"""The code that the page gives away runs, and computes what the page shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cases import Case
from hypothesis import strategies as st
from model import drawn, geometry_of, settings_of
from strategies import cases

from convfc import ConvGeometry, conv_as_matmul
from convfc.registry import read_layer

if TYPE_CHECKING:
    from model import Model

COUNT = 60


@pytest.fixture(scope="module")
def wanted(model: Model) -> list[dict[str, Any]]:
    """Settings of every kind, those of the presets among them."""
    by_hand = [
        Case(ConvGeometry(1, 1, (2,), padding=5, padding_mode="circular"), (2,)),
        Case(ConvGeometry(2, 2, (3,), padding=((2, 9),), padding_mode="circular"), (4,)),
        Case(ConvGeometry(1, 2, (2,), stride=3, transposed=True, output_padding=2), (3,)),
        Case(ConvGeometry(1, 2, (1, 1), stride=3, transposed=True, output_padding=(2, 1),
             padding=((0, 1), (0, 0))), (2, 2)),
    ]  # fmt: skip
    found = [
        settings_of(case.geometry, case.input_size, bias=bias)
        for case, bias in [
            *((case, bias) for case in by_hand for bias in (False, True)),
            *drawn(st.tuples(cases(max_ndim=2), st.booleans()), COUNT),
        ]
    ]
    return found + [preset["state"]["settings"] for preset in model.ask("facts")["presets"]]


def run(program: str) -> dict[str, Any]:
    """Run a program, which is short and ends its last line, and return its names."""
    assert program.endswith("\n")
    assert max(map(len, program.splitlines())) <= 250
    names: dict[str, Any] = {}
    exec(program, names)  # noqa: S102
    return names


def expected(settings: dict[str, Any], x: Any, filters: Any, bias: Any) -> np.ndarray:
    geometry, size = geometry_of(settings)
    assert x.shape == (1, *size, geometry.in_channels)
    return conv_as_matmul(np.asarray(x), np.asarray(filters), geometry, bias)


def weights(names: dict[str, Any], settings: dict[str, Any], size: Any = None) -> tuple[Any, Any]:
    """Return the filters and the bias of a program's layer, as the settings mean them."""
    layer = read_layer(names["layer"], input_size=size or settings["size"]).layer
    filters = np.asarray(layer.filters)
    if settings["flip"]:  # the program has turned the layer's own weight round
        filters = np.flip(filters, tuple(range(1, filters.ndim - 1)))
    assert (layer.bias is None) != settings["bias"]
    return filters, None if layer.bias is None else np.asarray(layer.bias)


def test_the_numpy_program_computes_the_output(model: Model, wanted: list[dict[str, Any]]) -> None:
    nonzero = 0
    for settings in wanted:
        names = run(model.ask("code", settings, "numpy"))
        assert ("bias" in names) == settings["bias"]
        y = expected(settings, names["x"], names["filters"], names.get("bias"))
        assert names["y"].shape == y.shape, settings
        assert names["y"].tolist() == y.tolist(), settings
        nonzero += bool(y.any())
    assert nonzero > len(wanted) // 2


def test_the_pytorch_program_computes_the_output(
    model: Model, wanted: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def whole(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        with torch.no_grad():
            return tensor.random_(-4, 5)

    # Weights that are whole numbers: then nothing is rounded.
    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", whole)
    monkeypatch.setattr(torch.nn.init, "uniform_", whole)
    for settings in wanted:
        torch.manual_seed(0)
        program = model.ask("code", settings, "torch")
        names = run(_keeping_x(program))
        y = expected(settings, names["given"].movedim(1, -1), *weights(names, settings))
        assert tuple(names["y"].shape) == (1, y.shape[-1], *y.shape[1:-1]), program
        assert names["y"].movedim(1, -1).tolist() == y.tolist(), program


def _keeping_x(program: str) -> str:
    """Keep the input as `given`, before a program pads it."""
    lines = program.splitlines()
    made = next(i for i, line in enumerate(lines) if line.startswith("x = "))
    return "\n".join([*lines[: made + 1], "given = x", *lines[made + 1 :], ""])


def keras_can(settings: dict[str, Any]) -> bool:
    """Say whether Keras has such a layer, apart from padding."""
    strided, dilated = (any(n > 1 for n in settings[name]) for name in ("stride", "dilation"))
    if strided and dilated:
        return False
    return not settings["transposed"] or not (
        settings["groups"] > 1 or any(settings["outputPadding"])
    )


def test_the_keras_program_computes_the_output(
    model: Model, wanted: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import keras

    rng = np.random.default_rng(0)

    def whole(self: Any, shape: Any, dtype: Any = None) -> Any:
        return keras.ops.convert_to_tensor(rng.integers(-4, 5, shape).astype("float32"))

    for kind in ("GlorotUniform", "Zeros"):
        monkeypatch.setattr(getattr(keras.initializers, kind), "__call__", whole)
    ran = 0
    for settings in wanted:
        program = model.ask("code", settings, "keras")
        if not keras_can(settings):
            assert all(line.startswith("#") for line in program.splitlines()), program
            assert "NumPy" in program
            continue
        names = run(_keeping_x(program))
        size = names["x"].shape[1:-1]  # of an input that the program has padded
        y = expected(settings, names["given"], *weights(names, settings, size))
        found = keras.ops.convert_to_numpy(names["y"])
        assert found.shape == y.shape, program
        assert found.tolist() == y.tolist(), program
        ran += 1
    assert ran > COUNT // 3

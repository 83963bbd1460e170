"""The code that the page gives away runs, and computes what the page shows."""

from __future__ import annotations

import json
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


# --- with the numbers of the page ---


def state_of(settings: dict[str, Any], *, whole: bool, seed: int) -> dict[str, Any]:
    """Return a state with numbers of its own: whole ones, or others."""
    rng = np.random.default_rng(seed)
    geometry, size = geometry_of(settings)

    def some(*shape: int) -> list[float]:
        if whole:
            return rng.integers(-9, 10, shape).ravel().tolist()
        return (rng.normal(size=shape) * 10.0 ** rng.integers(-3, 4)).ravel().tolist()

    return {
        "settings": settings,
        "input": {"values": some(*size, geometry.in_channels)},
        "filters": some(*geometry.filters_shape),
        "bias": some(geometry.out_channels) if settings["bias"] else None,
    }


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "fractions"])
@pytest.mark.parametrize("language", ["numpy", "torch", "keras"])
def test_a_program_with_the_numbers_of_the_page_finds_the_output_that_is_chosen_there(
    model: Model, wanted: list[dict[str, Any]], language: str, *, whole: bool
) -> None:
    ran = 0
    for seed, settings in enumerate(wanted[:: 1 if whole else 2]):
        if language == "keras" and not keras_can(settings):
            continue
        state = state_of(settings, whole=whole, seed=seed)
        geometry, size = geometry_of(settings)
        output = geometry.output_size(size)
        ends = [(0, 0), (int(np.prod(output)) - 1, geometry.out_channels - 1)]
        asked = [{"p": p, "f": f} for p, f in [*ends, (int(np.prod(output)) // 2, 0)]]
        found = model.ask("programs", state, language, asked)
        assert found["state"]["input"]["values"] == state["input"]["values"]
        names = run(found["programs"][0])
        y = np.asarray(names["y"].detach().movedim(1, -1) if language == "torch" else names["y"])
        assert y.shape == (1, *output, geometry.out_channels)
        Y = np.reshape(found["Y"], y.shape)
        if whole:
            assert y.tolist() == Y.tolist(), settings
        for chosen, program in zip(asked, found["programs"], strict=True):
            # The assertion is about the output that is chosen, and holds for it only.
            at = (0, *np.unravel_index(chosen["p"], output), chosen["f"])
            last = program.splitlines()[-1]
            index = [0, *map(int, at[1:])]
            if language == "torch":
                index = [0, index[-1], *index[1:-1]]
            assert f"y[{', '.join(map(str, index))}]" in last, program
            exec(last, {"y": names["y"]})  # noqa: S102
            assert ("==" in last) == whole
            wrong = {"y": names["y"] + 1e-3 * (1 + abs(Y).max())}
            with pytest.raises(AssertionError):
                exec(last, wrong)  # noqa: S102
        ran += 1
    assert ran > COUNT // 6


def test_an_output_that_no_float_holds_is_not_checked(model: Model) -> None:
    settings = settings_of(ConvGeometry(1, 1, (2,)), (3,))
    numbers = {"input": {"values": [1e200, 1, 0]}, "filters": [1e200, 2]}
    for language in ("numpy", "torch"):
        state = {"settings": settings, **numbers}
        program = model.ask("programs", state, language, [{"p": 0}])["programs"][0]
        assert "assert" not in program
        assert "too large" in program.splitlines()[-1]


@pytest.mark.parametrize("language", ["numpy", "torch", "keras"])
def test_a_notebook_is_valid_and_runs(model: Model, language: str) -> None:
    import nbformat  # here: it takes two seconds

    settings = settings_of(ConvGeometry(2, 2, (2, 2), padding=1), (3, 4), bias=True)
    state = state_of(settings, whole=True, seed=0)
    program = model.ask("programs", state, language, [{"p": 3, "f": 1}])["programs"][0]
    about = {"title": "a_net, *conv* <b>", "language": language, "address": "file:///p.html#1;a=1"}
    text = model.ask("notebook", program, about)
    read = nbformat.reads(text, as_version=nbformat.NO_CONVERT)
    nbformat.validate(read)
    assert (read.nbformat, read.nbformat_minor) == (4, 5)
    said, code = read.cells
    assert (said.cell_type, code.cell_type) == ("markdown", "code")
    assert "(<file:///p.html#1;a=1>)" in said.source
    assert "# a\\_net, \\*conv\\* \\<b\\>\n" in said.source
    assert "pip install" in said.source
    assert code.source + "\n" == program
    run(code.source + "\n")
    alone = model.ask("notebook", program, {**about, "address": "#1;at=1"})
    assert "behind its address: `#1;at=1`" in json.loads(alone)["cells"][0]["source"]

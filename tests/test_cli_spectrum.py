"""``convfc spectrum``, as a user calls it."""

from __future__ import annotations

import json
import pathlib
from typing import TYPE_CHECKING, Any

import pytest
import torch
from commands import call, enter, refused
from safetensors.torch import save_file

from convfc.cli import spectrum as spectrum_command
from convfc.errors import DtypeError
from convfc.frameworks.torch import checkpoint
from convfc.methods import spectrum
from convfc.methods.spectrum import models

if TYPE_CHECKING:
    from pathlib import Path

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels=1):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.unused = nn.Conv2d(1, 1, 1)
        self.last = nn.Linear(6 * 4 * 4, 2)

    def forward(self, x):
        return self.last(self.second(self.norm(self.first(x))).flatten(1))
"""


SPECTRUM = ("spectrum", "spectral_net:Net", "--input", "1,8,8")


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return enter(tmp_path, monkeypatch, spectral_net=NET)


@pytest.mark.parametrize(
    ("sizes", "name"), [("1,8,8", None), ("1,1,8,8", "out.png"), ("1,8,8", "out.SVG")]
)
def test_a_table_and_a_figure(place: Path, sizes: str, name: str | None) -> None:
    asked = ("--figure", name) if name else ()
    result = call(*SPECTRUM[:-1], sizes, *asked)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["layer", "first", "second"]
    assert lines[1].split()[1] == "8×8"
    name = name or "Net-spectrum.svg"
    assert lines[-1] == f"Figure: {name}"
    assert [path.name for path in place.iterdir() if path.suffix != ".py"] == [name]
    assert (place / name).read_bytes()[:4] == (b"\x89PNG" if name.endswith("png") else b"<?xm")


def test_json_has_the_numbers_of_the_functions(place: Path) -> None:
    result = call(*SPECTRUM, "--json", "--k", "3", "--smallest")
    assert result.exit_code == 0, result.output
    import spectral_net

    layers = json.loads(result.stdout)["layers"]
    known = spectrum.layer_spectra(
        spectral_net.Net(), torch.zeros(1, 1, 8, 8), k=3, smallest=True, tolerance=1e-3
    )
    for layer in (*layers, *(told := [found.to_dict() for found in known])):
        assert layer.pop("seconds") >= 0
    assert layers == told
    assert [layer["name"] for layer in layers] == ["first", "second"]
    own = spectrum.singular_values(spectral_net.Net().second, (8, 8))
    assert layers[1]["own"]["values"] == own.values[:3].tolist()
    assert layers[1]["condition_number"] == pytest.approx(own.condition_number)
    assert layers[1]["norm"] == float(
        spectrum.singular_values(spectral_net.Net().second, (8, 8), k=1)
    )
    assert not list(place.glob("*.svg"))


@pytest.mark.parametrize(
    ("boundary", "present"), [("own", [True, False]), ("circular", [False, True])]
)
def test_one_boundary_and_one_layer(boundary: str, present: list[bool]) -> None:
    options = ("--boundary", boundary, "--layer", "sec*", "--json")
    (layer,) = json.loads(call(*SPECTRUM, *options).stdout)["layers"]
    assert layer["name"] == "second"
    assert [layer[name] is not None for name in ("own", "circular")] == present


def saved(kinds: dict[str, torch.dtype], times: int = 1) -> tuple[str, ...]:
    """Save the network's tensors, those that end in these names as these dtypes."""
    import spectral_net

    tensors = {name: times * tensor for name, tensor in spectral_net.Net().state_dict().items()}
    for end, dtype in kinds.items():
        tensors |= {name: t.to(dtype) for name, t in tensors.items() if name.endswith(end)}
    save_file(tensors, "kinds.safetensors")
    options = ("--layer", "first", "--boundary", "own", "--json")
    return (*SPECTRUM, *options, "--weights", "kinds.safetensors")


def test_weights_come_from_a_file() -> None:
    results = [call(*saved({}, times)) for times in (1, 2)]
    assert [(result.exit_code, result.stderr) for result in results] == [(0, "")] * 2
    one, two = (json.loads(result.stdout)["layers"][0]["norm"] for result in results)
    assert two == 2 * one  # exact: a power of 2


@pytest.mark.parametrize(
    ("kinds", "text"),
    [
        ({"weight": torch.float16}, "cast from float16 to float32: first.weight, last.weight, "),
        (
            {"first.bias": torch.float64, "last.bias": torch.bfloat16},
            "cast from float64 to float32: first.bias; cast from bfloat16 to float32: last.bias\n",
        ),
        ({"tracked": torch.int32}, ""),
    ],
    ids=["half", "two", "counter"],
)
def test_weights_that_are_cast_are_said(kinds: dict[str, torch.dtype], text: str) -> None:
    result = call(*saved(kinds))
    assert result.exit_code == 0, result.output
    said = f"Weights: kinds.safetensors: {text}" if text else ""
    assert result.stderr.startswith(said)
    assert result.stderr.count("\n") == bool(text)


@pytest.mark.parametrize(
    ("end", "dtype", "text"),
    [
        ("first.weight", torch.int32, "got first.weight int32 instead of float32. Remedy: save"),
        ("first.bias", torch.bool, "got first.bias bool instead of float32. Remedy: save"),
        ("first.bias", torch.complex64, "got first.bias complex64 instead of float32. Remedy"),
        ("weight", torch.uint8, "got first.weight uint8 instead of float32, last.weight uint8 "),
        ("tracked", torch.float32, "got norm.num_batches_tracked float32 instead of int64. Rem"),
    ],
)
def test_weights_that_are_other_numbers_are_refused(
    end: str, dtype: torch.dtype, text: str
) -> None:
    result = call(*saved({end: dtype}))
    line = refused(result, "; expected floating-point numbers for floating-point numbers, ", text)
    assert line.startswith("Error: kinds.safetensors: these are not the model's kinds")
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("own", "given"),
    [
        (torch.zeros(1, dtype=torch.int8), torch.tensor([300])),
        (torch.zeros(1, dtype=torch.int64), torch.tensor([2**63], dtype=torch.uint64)),
        (torch.zeros(1), torch.zeros(1, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)),
    ],
    ids=["too-large", "sign", "packed"],
)
def test_numbers_that_their_dtype_would_change_are_refused(
    own: torch.Tensor, given: torch.Tensor
) -> None:
    """Counts that the model's dtype does not hold, and two numbers in each element."""
    net = torch.nn.Module()
    net.register_buffer("own", own)
    save_file({"own": given}, "own.safetensors")
    kinds = (str(t.dtype).removeprefix("torch.") for t in (given, own))
    with pytest.raises(DtypeError, match=rf"got own {' instead of '.join(kinds)}\. Remedy"):
        checkpoint.load_weights(net, pathlib.Path("own.safetensors"))
    assert net.own.item() == 0


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("--layer third", "no CONV layer was called of these names"),
        ("--arg channels=5", "x: the model does not run on this input"),
        ("--figure a.pdf", "figures are PNG or SVG; expected .png or"),
        ("--figure no/a.png", "no: there is no such folder"),
        ("--weights no.safetensors", "there is no such file"),
        ("--weights text.safetensors", "this is not a safetensors file"),
        (
            "--weights other.safetensors",
            "missing: first.bias, first.weight, last.bias and 9 more; "
            "unknown to the model: extra; of another shape: last.weight (2, 3) instead of (2, 96)",
        ),
        (
            "--weights names.safetensors",
            r"unknown to the model: \x1b]0;owned\x07, "
            f"{'z' * 180} … {'z' * 180} (2,000,000 characters). Remedy: give",
        ),
    ],
    ids=["layer", "input", "pdf", "folder", "no-file", "format", "tensors", "names"],
)
def test_errors_are_one_line(place: Path, options: str, text: str) -> None:
    (place / "text.safetensors").write_text("this is text")
    tensors = {"last.weight": torch.zeros(2, 3), "extra": torch.zeros(1)}
    save_file(tensors, place / "other.safetensors")
    names = ("\x1b]0;owned\x07", "z" * 2_000_000)
    save_file({name: torch.zeros(1) for name in names}, place / "names.safetensors")
    result = call(*SPECTRUM, *options.split())
    refused(result, text)
    assert result.stdout == ""
    assert not list(place.glob("*.svg"))


def test_ctrl_c_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "singular_values", stopped)
    result = call(*SPECTRUM)
    assert result.exit_code == 130
    assert "Stopped; nothing was written." in result.stderr
    assert not list(place.glob("*spectrum*"))


def test_two_wishes_about_the_figure_are_wrong_usage() -> None:
    result = call(*SPECTRUM, "--figure", "a.png", "--no-figure")
    assert result.exit_code == 2
    assert "give only one of --figure and --no-figure" in result.stderr
    assert call(*SPECTRUM[:2]).exit_code == 2


OTHER = """
from torch import nn

def small():
    return nn.Sequential(nn.Conv2d(1, 2, 3))

def broken():
    raise ValueError("no weights here")
"""
MODELS = ("spectrum", "spectral_net:Net", "./other_net.py:small", "--input", "1,8,8")


def all_of(*options: str) -> dict[str, Any]:
    result = call(*MODELS, *options, "--json")
    assert result.exit_code == 0, result.output
    return {one["model"]: one["layers"] for one in json.loads(result.stdout)["models"]}


def test_several_models_are_kept_and_not_computed_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "other_net.py").write_text(OTHER)
    result = call(*MODELS)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0][:2] == ["model", "layer"]
    assert [line[:2] for line in lines[1:4]] == [
        ["Net", "first"],
        ["Net", "second"],
        ["small", "0"],
    ]
    assert result.stdout.endswith("Figure: spectra/spectra.svg\n")
    names = {"spectral_net-Net.json", "other_net.py-small.json", "spectra.svg"}
    assert {path.name for path in (place / "spectra").iterdir()} == names
    # The numbers are those of each model alone, also when they are read and not computed.
    alone = json.loads(call(*SPECTRUM, "--json").stdout)["layers"]
    computed: list[str] = []
    whole = spectrum_command.make_model
    monkeypatch.setattr(
        spectrum_command, "make_model", lambda m, a: computed.append(m) or whole(m, a)
    )
    found = all_of()
    assert computed == []
    for layer in (*found["spectral_net:Net"], *alone):
        del layer["seconds"]
    assert found["spectral_net:Net"] == alone
    # Other settings are other numbers; and so are another file, and one that was damaged.
    assert all_of("--k", "2")["spectral_net:Net"][0]["own"]["values"] != alone[0]["own"]["values"]
    assert computed == ["spectral_net:Net", "./other_net.py:small"]
    with (place / "other_net.py").open("a") as file:
        file.write("# another one\n")
    all_of("--k", "2")
    assert computed[2:] == ["./other_net.py:small"]
    (place / "spectra" / "spectral_net-Net.json").write_text("{")
    all_of("--k", "2")
    assert computed[3:] == ["spectral_net:Net"]


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["here", "dask"])
def test_a_model_that_fails_is_named_and_the_others_are_done(
    place: Path, workers: tuple[str, ...]
) -> None:
    (place / "other_net.py").write_text(OTHER)
    models = ("./other_net.py:broken", "./other_net.py:smal", "spectral_net:Net")
    result = call("spectrum", *models, "--input", "1,8,8", *workers)
    assert result.exit_code == 1
    *_, error = result.stderr.splitlines()
    assert error.startswith("Error: ./other_net.py:")
    assert "2 of 3 failed, and the others are done" in error
    assert "./other_net.py:broken: failed: ValueError: no weights here" in result.stderr
    assert " has no smal; expected one like small" in result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()[:3]] == ["model", "Net", "Net"]
    result = call("spectrum", *models, "--input", "1,8,8", "--json")
    found = json.loads(result.stdout)
    assert list(found["failed"]) == list(models[:2])
    assert [one["model"] for one in found["models"]] == ["spectral_net:Net"]
    assert "spectral_net:Net: finished earlier" in result.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("spectral_net:Net --workers 2", "--workers: an option of several models"),
        ("spectral_net:Net --folder a", "--folder: an option of several models"),
        ("a:A b:B --weights w.safetensors", "--weights: an option of a single model"),
        ("a:A b:B --workers 2 --scheduler tcp://a:1", "give only one of --workers and --scheduler"),
    ],
)
def test_options_of_one_model_and_of_several(place: Path, options: str, text: str) -> None:
    result = call("spectrum", *options.split(), "--input", "1,8,8")
    assert result.exit_code == 2
    assert text in result.stderr
    assert not (place / "spectra").exists()


def test_a_model_given_twice_is_refused() -> None:
    refused(call(*SPECTRUM, "spectral_net:Net"), "two of the models have one name")

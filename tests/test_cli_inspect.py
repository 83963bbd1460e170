"""``convfc inspect``, as a user calls it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import keras
import pytest
import torch
from commands import call, enter, refused

import convfc

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, channels=1, bias=True):
        super().__init__()
        self.first = nn.Conv2d(channels, 8, 4, stride=2, bias=bias)
        self.second = nn.Conv2d(channels, 8, 4, stride=2, dtype=self.first.weight.dtype)

    def forward(self, x, y):
        return self.first(x) + self.second(y)

def classifier():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 26 * 26, 3))

def hostile():
    net = nn.Sequential()
    net.add_module("\\x1b]0;owned\\x07\\n[/red]", nn.Conv2d(1, 1, 1))
    return net
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return enter(tmp_path, monkeypatch, own_net=NET)


def test_a_model_of_a_library() -> None:
    """What is not a terminal gets the whole table."""
    spec = ("torchvision.models:resnet18", "--input", "1,3,64,64", "--arg", "weights=None")
    shown = call("inspect", *spec, columns=60)
    assert (shown.exit_code, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert lines[1].split()[:3] == ["conv1", "Conv2d", "7×7"]
    assert lines[20].startswith("layer4.1.conv2")
    assert lines[22].startswith("ResNet: 20 CONV layers, all convertible; 11.2 M of 11.7 M param")
    assert "unrolled" in lines[0]


def test_json_is_the_data_of_inspect() -> None:
    options = ("--input", "2,3,28,28", "--arg", "channels=3", "--arg", "bias=False", "--json")
    result = call("inspect", "own_net:Net", "--input", "2,3,28,28", *options)
    assert result.exit_code == 0, result.output
    import own_net

    x = torch.zeros(2, 3, 28, 28)
    known = convfc.inspect(own_net.Net(3, bias=False), (x, x))
    assert json.loads(result.stdout) == known.to_dict()
    assert known.totals.calls == 2


def test_without_an_input_the_model_is_not_run() -> None:
    result = call("inspect", "own_net:Net")
    assert result.exit_code == 0, result.output
    assert "mult." not in result.stdout
    assert "Net: 2 CONV layers, all convertible; 272 of 272 parameters" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("own_net:Net", "--arg", "channel=3"), "unexpected keyword argument 'channel'"),
        (("own_net:Net", "--input", "1,1,8,8"), "x: the model does not run on this input: "),
        (("math:pi",), "model: this is not a model that convfc knows; expected a torch.nn.Module"),
    ],
    ids=["argument", "input", "not-a-model"],
)
def test_errors_are_one_line(arguments: tuple[str, ...], text: str) -> None:
    result = call("inspect", *arguments)
    refused(result, text, "Remedy: ")
    assert result.stdout == ""


@pytest.mark.parametrize("sizes", ["1,28,28", "1,1,28,28"])
def test_an_input_may_be_without_its_batch_axis(sizes: str) -> None:
    one = call("inspect", "own_net:classifier", "--input", sizes, "--json")
    assert (one.exit_code, one.stderr) == (0, "")
    (row,) = json.loads(one.stdout)["rows"]
    assert (row["batch"], row["input_size"]) == (1, [28, 28])


def test_the_error_is_of_the_input_as_it_was_given() -> None:
    result = call("inspect", "own_net:classifier", "--input", "1,27,28")
    refused(result, "x: the model does not run on this input: ", "got (1, 27, 28)")


@pytest.mark.parametrize("sizes", ["1,3,x", "1,,3", "", "1,0,3"])
def test_sizes_that_are_not_sizes_are_wrong_usage(sizes: str) -> None:
    result = call("inspect", "torchvision.models:resnet18", "--input", sizes)
    assert result.exit_code == 2
    assert "--input takes sizes such as 1,3,224,224" in result.stderr


@pytest.mark.parametrize(
    "command", [("inspect",), ("spectrum", "--no-figure"), ("explore", "--html", "out.html")]
)
def test_a_name_is_not_a_command_to_the_terminal(command: tuple[str, ...]) -> None:
    result = call(*command, "own_net:hostile", "--input", "1,1,4,4")
    assert (result.exit_code, result.stderr) == (0, "")
    assert r"\x1b]0;owned\x07\n[/red]" in result.stdout
    assert "\x1b" not in result.stdout


def saved(path: str, *more: keras.layers.Layer) -> keras.Model:
    conv = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="first")
    layers = [keras.Input((9, 8, 1)), *more, conv, keras.layers.Flatten(), keras.layers.Dense(2)]
    model = keras.Sequential(layers, name="net")
    model.save(path)
    return model


@pytest.mark.parametrize("end", ["keras", "h5"])
def test_a_file_of_keras(end: str) -> None:
    saved(f"net.{end}")
    result = call("inspect", f"net.{end}", "--input", "2,9,8,1")
    assert (result.exit_code, result.stderr) == (0, "")
    row = result.stdout.splitlines()[1].split()
    assert row[:4] == ["first", "Conv2D", "3×3", "s2"]
    assert "20×9" in row
    assert "Sequential: 1 CONV layer, convertible; 40 of 202 parameters" in result.stdout


def with_lambda(path: Path) -> None:
    """Its code says that it was run; nothing of this module is in the file."""
    told = lambda x: (__import__("pathlib").Path("ran").write_text("ran"), x)[1]  # noqa: E731
    saved(str(path), keras.layers.Lambda(told))
    path.with_name("ran").unlink()


def cut(path: Path) -> None:
    saved(str(path))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def of_own_layers(path: Path) -> None:
    class Own(keras.layers.Layer):
        pass

    saved(str(path), Own())


FILES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "missing": (lambda _: None, "there is no such file", "check its path"),
    "truncated": (cut, "it is damaged, or no file of Keras", "save the model once more"),
    "text": (lambda path: path.write_text("hello"), "damaged", "save the model once more"),
    "lambda": (with_lambda, "Requested the deserialization of a `Lambda` layer", "load it in"),
    "own": (of_own_layers, "'Own'", "with your custom_objects"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("end", ["keras", "h5"])
def test_what_is_no_file_of_keras_is_refused_and_not_run(place: Path, kind: str, end: str) -> None:
    made, reason, remedy = FILES[kind]
    made(place / f"net.{end}")
    result = call("inspect", f"net.{end}")
    refused(result, f"net.{end}: ", reason, "Remedy: ", remedy)
    assert result.stdout == ""
    assert not (place / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--input", "1,9,9,1"), "x: the model does not run on it (ValueError: Input 0 with name"),
        (("--arg", "bias=False"), "a file holds a model, and no function that takes arguments"),
    ],
    ids=["input", "argument"],
)
def test_a_file_of_keras_and_other_arguments(arguments: tuple[str, ...], text: str) -> None:
    saved("net.keras")
    refused(call("inspect", "net.keras", *arguments), text, "Remedy: ")


def test_singular_values_of_a_file_of_keras() -> None:
    saved("net.keras")
    result = call("spectrum", "net.keras", "--input", "9,8,1", "--no-figure")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[1].split()[:2] == ["first", "9×8"]

"""``convfc inspect``, as a user calls it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from commands import call, enter, refused

import convfc

if TYPE_CHECKING:
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

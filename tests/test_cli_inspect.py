"""``convfc inspect``, as a user calls it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner, Result

import convfc
from convfc.cli import app

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


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_net.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_net", raising=False)
    return tmp_path


def call(*arguments: str, columns: str = "200") -> Result:
    return CliRunner().invoke(app, ["inspect", *arguments], env={"COLUMNS": columns})


def test_a_model_of_a_library() -> None:
    """What is not a terminal gets the whole table."""
    spec = ("torchvision.models:resnet18", "--input", "1,3,64,64", "--arg", "weights=None")
    shown = call(*spec, columns="60")
    assert (shown.exit_code, shown.stderr) == (0, "")
    lines = shown.stdout.splitlines()
    assert lines[1].split()[:3] == ["conv1", "Conv2d", "7×7"]
    assert lines[20].startswith("layer4.1.conv2")
    assert lines[22].startswith("ResNet: 20 CONV layers, all convertible; 11.2 M of 11.7 M param")
    assert "unrolled" in lines[0]


@pytest.mark.usefixtures("place")
def test_json_is_the_data_of_inspect() -> None:
    inputs = ("--input", "2,3,28,28", "--input", "2,3,28,28")
    result = call("own_net:Net", "--arg", "channels=3", "--arg", "bias=False", *inputs, "--json")
    assert result.exit_code == 0, result.output
    import own_net
    import torch

    x = torch.zeros(2, 3, 28, 28)
    known = convfc.inspect(own_net.Net(3, bias=False), (x, x))
    assert json.loads(result.stdout) == known.to_dict()
    assert known.totals.calls == 2


@pytest.mark.usefixtures("place")
def test_without_an_input_the_model_is_not_run() -> None:
    result = call("own_net:Net")
    assert result.exit_code == 0, result.output
    assert "mult." not in result.stdout
    assert "Net: 2 CONV layers, all convertible; 272 of 272 parameters" in result.stdout


@pytest.mark.usefixtures("place")
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
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")
    assert text in result.stderr
    assert "Remedy: " in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("sizes", ["1,3,x", "1,,3", "", "1,0,3"])
def test_sizes_that_are_not_sizes_are_wrong_usage(sizes: str) -> None:
    result = call("torchvision.models:resnet18", "--input", sizes)
    assert result.exit_code == 2
    assert "--input takes sizes such as 1,3,224,224" in result.stderr


def test_help_has_an_example() -> None:
    shown = call("--help").stdout
    assert "convfc inspect torchvision.models:resnet18 --input 1,3,224,224" in shown
    for option in ("--input", "--arg", "--json"):
        assert option in shown


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    "command", [("inspect",), ("spectrum", "--no-figure"), ("explore", "--html", "{place}/o.html")]
)
def test_a_name_is_not_a_command_to_the_terminal(place: Path, command: tuple[str, ...]) -> None:
    options = [option.format(place=place) for option in command[1:]]
    arguments = [command[0], "own_net:hostile", "--input", "1,1,4,4", *options]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert (result.exit_code, result.stderr) == (0, "")
    assert r"\x1b]0;owned\x07\n[/red]" in result.stdout
    assert "\x1b" not in result.stdout

"""``convfc explore``, as a user calls it: what is shown, what is refused, and how it ends."""

from __future__ import annotations

import http.client
import importlib
import json
import re
import signal
import subprocess
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest
import torch
from browser import PATIENCE
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from convfc.cli import app
from convfc.explorer.page import ExplorerServer
from convfc.explorer.state import state_layer

if TYPE_CHECKING:
    from convfc.layer import ConvLayer

TESTS = Path(__file__).parents[1]

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels=1, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(channels, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.again = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.unused = nn.Conv2d(1, 1, 1)
        self.flat = nn.Linear(4, 2)

    def forward(self, x):
        x = self.pool(self.norm(self.first(x)).relu())
        return self.flat(self.again(self.again(x)).mean((2, 3)))

def signal():
    return nn.Sequential(nn.Conv1d(2, 3, 5))

def volume():
    return nn.Conv3d(1, 1, 2)

class Odd(Net):
    def forward(self, x):
        raise ZeroDivisionError

def none():
    return nn.Linear(2, 2)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "explored_net.py").write_text(NET)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "explored_net", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["explore", *arguments], env={"COLUMNS": "200"})


def shown(path: str = "out.html") -> dict[str, Any]:
    """The state that stands in a page that was written."""
    text = Path(path).read_text(encoding="utf-8")
    (written,) = re.findall(r'id="convfc-state">(.*?)</script>', text, flags=re.DOTALL)
    return json.loads(written)


def pages(*arguments: str) -> tuple[ConvLayer, np.ndarray]:
    """Write a page, and return the layer and the input on it."""
    result = call(*arguments, "--html", "out.html")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "Page: out.html"
    layer, x = state_layer(shown())
    return layer, x


def same(layer: ConvLayer, conv: torch.nn.Conv2d) -> bool:
    """Whether a page shows the very weights of a layer."""
    weight, bias = conv.weight.detach().movedim(1, -1).numpy(), conv.bias.detach().numpy()
    kept = np.asarray(layer.filters, np.float32), np.asarray(layer.bias, np.float32)
    return np.array_equal(kept[0], weight) and np.array_equal(kept[1], bias)


def test_without_a_model_the_page_has_its_own_start() -> None:
    result = call("--html", "deep/out.html")
    assert (result.exit_code, result.stdout) == (0, "Page: deep/out.html\n")
    assert shown("deep/out.html") is None


def test_the_first_layer_and_its_input(place: Path) -> None:
    layer, x = pages("explored_net:Net", "--input", "1,9,8")
    from explored_net import Net

    assert same(layer, Net().first)
    noise = np.random.default_rng(0).random((1, 1, 9, 8)).astype(np.float32)
    assert np.array_equal(np.asarray(x, np.float32), np.moveaxis(noise[0], 0, -1))
    state = shown()
    assert (state["title"], state["source"]) == (
        "Net, first",
        "Input: random numbers, 1 × 9 × 8",
    )


def test_a_layer_within_a_model_sees_what_reaches_it() -> None:
    """Also if it is called twice: then what reaches it first."""
    layer, x = pages("explored_net:Net", "--layer", "again", "--input", "1,1,9,8")
    from explored_net import Net

    net = Net().eval()
    noise = np.random.default_rng(0).random((1, 1, 9, 8)).astype(np.float32)
    with torch.no_grad():
        reaching = net.pool(net.norm(net.first(torch.from_numpy(noise))).relu())
    assert same(layer, net.again)
    assert np.array_equal(np.asarray(x, np.float32), reaching[0].movedim(0, -1).numpy())
    assert layer.geometry.groups == 2


def test_a_layer_in_a_file_of_keras(place: Path) -> None:
    first = keras.layers.Conv2D(4, 3, padding="same", activation="relu", name="first")
    again = keras.layers.Conv2D(6, 3, groups=2, name="again")
    model = keras.Sequential([keras.Input((9, 8, 1)), first, again])
    model.save(place / "net.keras")
    layer, x = pages("net.keras", "--layer", "again", "--input", "1,9,8")
    noise = np.random.default_rng(0).random((1, 1, 9, 8)).astype(np.float32)
    reaching = np.asarray(keras.ops.convert_to_numpy(first(np.moveaxis(noise, 1, -1))))
    assert np.array_equal(np.asarray(x, np.float32), reaching[0])
    kernel = np.moveaxis(np.asarray(again.kernel), -1, 0)
    assert np.array_equal(np.asarray(layer.filters, np.float32), kernel)
    assert layer.geometry.groups == 2
    assert shown()["title"] == "net.keras, again"
    (place / "cut.keras").write_bytes((place / "net.keras").read_bytes()[:1000])
    result = call("cut.keras", "--layer", "again", "--html", "other.html")
    (line,) = result.stderr.splitlines()
    assert (result.exit_code, line[:28]) == (1, "Error: cut.keras: it is dama")
    assert not (place / "other.html").exists()


def test_arguments_of_the_factory_and_weights_from_a_file(place: Path) -> None:
    import explored_net

    kept = explored_net.Net(3, seed=7)
    save_file(kept.state_dict(), place / "w.safetensors")
    arguments = ["--arg", "channels=3", "--weights", "w.safetensors", "--input", "3,6,6"]
    layer, x = pages("explored_net:Net", *arguments)
    assert same(layer, kept.first)
    assert x.shape == (6, 6, 3)


def test_a_digit_some_of_the_filters_one_axis() -> None:
    layer, x = pages("explored_net:Net", "--image", "7", "--filters", "2")
    from explored_net import Net

    first = Net().first.weight.detach()[:2].movedim(1, -1).numpy()
    assert np.array_equal(np.asarray(layer.filters, np.float32), first)
    assert x.shape == (28, 28, 1)
    assert x.max() > 0.9
    assert "handwritten 7" in shown()["source"]
    layer, x = pages("explored_net:signal", "--input", "1,2,9")
    assert (layer.geometry.kernel_size, x.shape) == ((5,), (9, 2))


def test_an_image_as_the_image(place: Path) -> None:
    from PIL import Image

    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3
    Image.fromarray(pixels).save(place / "photo.png")
    _, x = pages("explored_net:Net", "--arg", "channels=3", "--image", "photo.png")
    assert np.array_equal(np.rint(x * 255), pixels)
    assert shown()["source"] == "Input: photo.png"


def test_an_image_as_the_model_was_trained_with_it(place: Path) -> None:
    from PIL import Image
    from torchvision import models
    from torchvision.transforms import functional

    pixels = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)
    Image.fromarray(pixels).save(place / "photo.png")
    arguments = ["torchvision.models:resnet18", "--image", "photo.png", "--layer"]
    result = call(*arguments, "conv1", "--html", "plain.html")
    trained = "mean 0.485, 0.456, 0.406 and std 0.229, 0.224, 0.225"
    assert (
        result.stderr
        == f"The image's numbers are 0 to 1. Trained with {trained}: --normalize auto\n"
    )
    _, plain = pages(*arguments, "conv1")
    assert 0 <= plain.min() < plain.max() <= 1
    for how in ("auto", "imagenet", "0.485,0.456,0.406/0.229,0.224,0.225"):
        result = call(*arguments, "conv1", "--normalize", how, "--html", "out.html")
        assert (result.exit_code, result.stderr) == (0, "")
        source = f"Input: photo.png, normalized with {trained}"
        assert result.stdout.splitlines()[0] == f"resnet18, conv1. {source}"
        assert shown()["source"] == source
        x = np.asarray(state_layer(shown())[1], np.float32)
        theirs = models.ResNet18_Weights.DEFAULT.transforms(resize_size=40, crop_size=(40, 50))
        theirs = functional.normalize(functional.to_tensor(pixels), theirs.mean, theirs.std)
        assert np.array_equal(x, theirs.movedim(0, -1).numpy()), how
    # A layer deep inside sees what follows from them.
    torch.manual_seed(0)
    _, x = pages(*arguments, "layer1.0.conv1", "--normalize", "auto")
    torch.manual_seed(0)
    net = models.resnet18().eval()
    with torch.no_grad():
        reaching = net.maxpool(net.relu(net.bn1(net.conv1(theirs[None]))))
    assert np.array_equal(np.asarray(x, np.float32), reaching[0].movedim(0, -1).numpy())


def test_what_a_run_has_trained(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TESTS / "paper")
    run = importlib.import_module("synthetic").make_run(place / "run", cost=False)
    layer, x = pages("--run", str(run))
    walk = np.load(run / "parts" / "float32-sgd-cnn.npz")["first_layer"]
    assert np.array_equal(np.asarray(layer.matrix, np.float32), walk[-1])
    assert x.shape == (28, 28, 1)
    assert shown()["source"] == "run run, sgd"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ("explored_net:Net", "--layer", "conv9", "--input", "1,9,8"),
            "no such CONV layer; expected one of first, again, unused; got conv9",
        ),
        (("explored_net:Net", "--layer", "unused", "--input", "1,9,8"), "does not call it"),
        (("explored_net:none", "--input", "1,9,8"), "the model has no CONV layer"),
        (("explored_net:Net",), "input: the size of the model's input is not known"),
        (
            ("explored_net:Net", "--input", "5,9,8"),
            "input: the model refuses an input of 5 × 9 × 8 (its words: Given groups=1, weight",
        ),
        (("explored_net:Odd", "--image", "7"), "1 × 28 × 28 (its words: ZeroDivisionError)"),
        (("explored_net:none", "--image", "7", "--normalize", "auto"), "nothing says what"),
        (("explored_net:Net", "--image", "no.png"), "no.png: there is no such file"),
        (("explored_net:Net", "--input", "1,400,8"), "the page does not go so far"),
        (("explored_net:volume", "--input", "1,4,4,4"), "the page shows one or two spatial axes"),
        (("explored_net:Missing", "--input", "1,9,8"), "Missing"),
        (("--run", "nowhere"), "nowhere"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_shown_is_said_in_one_line(
    arguments: tuple[str, ...], text: str, place: Path
) -> None:
    result = call(*arguments, "--html", "out.html")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert text in line
    assert not (place / "out.html").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("explored_net:Net", "--run", "x"), "give only one of MODULE:FACTORY and --run"),
        (("--layer", "first"), "--layer needs a MODULE:FACTORY"),
        (("--filters", "2", "--weights", "w"), "--weights, --filters needs a MODULE:FACTORY"),
        (("--run", "x", "--image", "3"), "--image needs a MODULE:FACTORY"),
        (("explored_net:Net", "--normalize", "auto"), "--normalize needs an --image"),
        (("--port", "65536"), "Invalid value for '--port'"),
        (("explored_net:Net", "--input", "0,3"), "--input takes sizes such as 1,3,224,224"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_do_not_go_together(arguments: tuple[str, ...], text: str) -> None:
    result = call(*arguments, "--no-browser")
    assert result.exit_code == 2
    assert text in " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.stderr).split())


@pytest.mark.parametrize("quiet", [True, False])
def test_a_browser_is_opened_unless_it_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch, *, quiet: bool
) -> None:
    opened: list[str] = []

    def stops(_: ExplorerServer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(ExplorerServer, "serve_forever", stops)
    result = call(*(["--no-browser"] if quiet else []))
    assert result.exit_code == 0
    first, last = result.stdout.splitlines()
    (url,) = re.findall(r"^Explorer: (http://127\.0\.0\.1:\d+/)   \(Ctrl-C ends it\)$", first)
    assert last == "Stopped."
    assert opened == ([] if quiet else [url])


def test_it_serves_until_ctrl_c() -> None:
    arguments = ["explored_net:Net", "--input", "1,9,8", "--no-browser"]
    command = [sys.executable, "-m", "convfc", "explore", *arguments]
    with subprocess.Popen(  # noqa: S603 (our own interpreter)
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        try:
            assert program.stdout.readline() == "Net, first. Input: random numbers, 1 × 9 × 8\n"
            port = re.findall(r"http://127\.0\.0\.1:(\d+)/", program.stdout.readline())[0]
            connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=PATIENCE)
            connection.request("GET", "/state.json")
            state = json.loads(connection.getresponse().read())
            connection.close()
            program.send_signal(signal.SIGINT)
            rest, errors = program.communicate(timeout=PATIENCE)
        finally:
            program.kill()
    assert state["settings"]["size"] == [9, 8]
    assert (program.returncode, rest, errors) == (0, "Stopped.\n", "")

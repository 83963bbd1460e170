"""How an FC child is called: on all rows of M at once, unless it is known to take them in blocks.

A child may draw a weight, or measure its input, for a whole call: in blocks it would do so several
times inside one image.
"""

from __future__ import annotations

import os
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import convfc
from convfc.frameworks.torch import GroupedLinear
from convfc.frameworks.torch.forms import blocks
from convfc.methods import uncertainty

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when peft is imported

from peft import LoraConfig, VeraConfig, get_peft_model

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
]

K, F = 27, 4


class Noisy(nn.Module):
    """A parametrization that draws at every call."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight + torch.randn_like(weight)


class OneDraw(nn.Linear):
    """A subclass whose forward draws a weight for the whole call."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight + torch.randn_like(self.weight), self.bias)


class Subclassed(nn.Parameter):
    """A weight of another class: what its product does is its own business."""


class Promises(OneDraw):
    """A child that its author says takes rows in blocks."""

    takes_blocks = True


def linear() -> nn.Linear:
    return nn.Linear(K, F)


def noisy() -> nn.Module:
    return parametrize.register_parametrization(linear(), "weight", Noisy())


def of_another_weight() -> nn.Module:
    layer = linear()
    layer.weight = Subclassed(layer.weight.detach())
    return layer


def patched() -> nn.Module:
    layer = linear()
    layer.forward = lambda x: nn.functional.linear(x, torch.randn(F, K))  # type: ignore[method-assign]
    return layer


def tuned(config: Any) -> nn.Module:
    model = get_peft_model(nn.Sequential(linear()), config)
    child: nn.Module = model.base_model.model[0]
    return child


def lora(**options: Any) -> nn.Module:
    return tuned(LoraConfig(r=2, target_modules=["0"], lora_dropout=0.5, **options))


def vera() -> nn.Module:
    return tuned(VeraConfig(r=2, target_modules=["0"], vera_dropout=0.5))


def random_layer(method: str, per: str) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, F, 3), nn.Flatten())
    options: dict[str, Any] = {"rate": 0.5, "where": "0"} if method == "dropout" else {}
    layer = uncertainty.to_bayesian(model, method, per=per, **options)[0]
    child: nn.Module = layer.fc
    return child


def quantised() -> nn.Module:
    """Its scale is that of all rows of a call."""
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(linear()))
    child: nn.Module = model[0]
    return child


IN_BLOCKS = {
    "one-linear": lambda: nn.Sequential(linear()),
    "factored": lambda: nn.Sequential(nn.Linear(K, 2), nn.GELU(), nn.Linear(2, F)),
    "nested": lambda: nn.Sequential(nn.Sequential(linear()), nn.Dropout(0.5)),
    "lora": lora,
    "vera": vera,
    "dropout-per-patch": lambda: random_layer("dropout", "patch"),
    "gaussian-per-patch": lambda: random_layer("gaussian", "patch"),
    "gaussian-evaluated": lambda: random_layer("gaussian", "call").eval(),
    "promises": lambda: Promises(K, F),
    "grouped": lambda: nn.Sequential(GroupedLinear(nn.Parameter(torch.ones(1, F, K)), None)),
}
ALL_ROWS = {
    "subclass": lambda: OneDraw(K, F),
    "subclass-in-a-chain": lambda: nn.Sequential(nn.Linear(K, K), OneDraw(K, F)),
    "parametrization": noisy,
    "other-weight": of_another_weight,
    "own-forward": patched,
    "normalised": lambda: nn.Sequential(nn.LayerNorm(K), linear()),
    "dora": lambda: lora(use_dora=True),
    "quantised": quantised,
    "gaussian-per-call": lambda: random_layer("gaussian", "call"),
    "dropout-per-image": lambda: random_layer("dropout", "image"),
}


def calls_of(child: nn.Module, x: Tensor) -> list[tuple[int, ...]]:
    """The rows that each call of a child receives, seen from inside it."""
    layer = convfc.to_fc(nn.Conv2d(3, F, 3))
    layer.fc = child
    seen = []
    rows = layer.rows
    layer.rows = lambda patches: (seen.append(tuple(patches.shape)), rows(patches))[1]
    layer(x)
    return seen


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("n", [1, 3], ids=lambda n: f"n{n}")
@pytest.mark.parametrize("kind", [*IN_BLOCKS, *ALL_ROWS])
def test_only_a_child_known_to_take_rows_alone_is_called_in_blocks(
    kind: str, n: int, grad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)
    child = (IN_BLOCKS | ALL_ROWS)[kind]()
    x = torch.ones(n, 3, 8, 8)
    with torch.set_grad_enabled(grad):
        seen = calls_of(child, x)
    if kind in ALL_ROWS:
        assert seen == [(n, 36, K)]
        return
    # M is never held: no block is larger than what it is read from.
    assert len(seen) > 1
    assert sum(rows for _, rows, _ in seen) == n * 36
    assert max(map(prod, seen)) <= x.numel()


@pytest.mark.parametrize("size", [16, 64, 200])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_one_draw_holds_for_every_position_of_every_image(size: int, mode: str) -> None:
    """On small integers every position gives the same number, to the bit."""

    class Digits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, torch.randint(-9, 10, (8, K)).float())

    layer = convfc.to_fc(nn.Conv2d(3, 8, 3))
    layer.fc = Digits()
    getattr(layer, mode)()
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            y = layer(torch.ones(2, 3, size, size))
        assert torch.equal(y, y[:1, :, :1, :1].expand_as(y))
        assert len(y[0, :, 0, 0].unique()) > 1

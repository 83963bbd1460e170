"""How an FC child is called: on all rows of M at once, unless it is known to take them in blocks.

A child may draw a weight, or measure its input, for a whole call: in blocks it would do so several
times inside one image.
"""

from __future__ import annotations

import copy
import os
from contextlib import nullcontext
from math import prod
from typing import TYPE_CHECKING, Any

import pytest
import torch
from conv_cases import CASES, ConvCase, integers
from torch import Tensor, nn
from torch.nn.utils import parametrize

import convfc
from convfc.frameworks.torch import GroupedLinear
from convfc.frameworks.torch.forms import blocks, patch
from convfc.frameworks.torch.forms.windows import patches_at_once
from convfc.methods import uncertainty

if TYPE_CHECKING:
    from collections.abc import Callable

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
    layer = convfc.to_fc(nn.Conv2d(3, F, 3), product="matrix")
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


def halved(k: int, f: int) -> nn.Module:
    class Half(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    return parametrize.register_parametrization(nn.Linear(k, f), "weight", Half())


def adapted(k: int, f: int, dropout: float = 0.0, **options: Any) -> nn.Module:
    config = LoraConfig(
        r=2, target_modules=["0"], lora_dropout=dropout, init_lora_weights=False, **options
    )
    child: nn.Module = get_peft_model(nn.Sequential(nn.Linear(k, f)), config).base_model.model[0]
    return child


def hooked(k: int, f: int) -> nn.Module:
    child = nn.Sequential(nn.Linear(k, f))
    child[0].register_forward_hook(lambda module, args, y: None)
    return child


def replaced(k: int, f: int) -> nn.Module:
    child = nn.Sequential(nn.Linear(k, f))
    weight = child[0].weight
    child[0].forward = lambda x: nn.functional.linear(x, weight)  # type: ignore[method-assign]
    return child


def compiled(k: int, f: int) -> nn.Module:
    child = nn.Sequential(nn.Linear(k, f))
    child[0].compile(backend="eager")
    return child


MULTIPLIES: dict[str, Callable[[int, int], nn.Module]] = {
    "factored": lambda k, f: nn.Sequential(nn.Linear(k, 2), nn.ReLU(), nn.Linear(2, f)),
    "nested": lambda k, f: nn.Sequential(nn.Sequential(nn.Linear(k, f)), nn.Identity()),
    "lora": adapted,
    "parametrization": halved,
    "named": type("Named", (nn.Linear,), {}),
}
LOOKS: dict[str, Callable[[int, int], nn.Module]] = {
    "dropout": lambda k, f: nn.Sequential(nn.Dropout(0.0), nn.Linear(k, f)),
    "lora-dropout": lambda k, f: adapted(k, f, 0.5).eval(),
    "dora": lambda k, f: adapted(k, f, use_dora=True),
    "promises": Promises,
    "hooked": hooked,
    "replaced": replaced,
    "compiled": compiled,
    "empty-first": lambda k, f: nn.Sequential(nn.Sequential(), nn.Linear(k, f)),
}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of every M, or block of it, that is built."""
    shapes: list[tuple[int, ...]] = []

    def noted(*args: Any, **options: Any) -> Tensor:
        matrix = patches_at_once(*args, **options)
        shapes.append(tuple(matrix.shape))
        return matrix

    for module in (blocks, patch):
        monkeypatch.setattr(module, "patches_at_once", noted)
    return shapes


def with_child(layer: nn.Module, child: nn.Module, product: str) -> nn.Module:
    """A layer in patch form with a child of small even numbers, of which halves are integers."""
    for seed, parameter in enumerate(child.to(torch.float64).parameters()):
        parameter.data = 2 * integers(parameter.shape, seed=seed)
    after = convfc.to_fc(layer, product=product)
    after.fc = child
    return after


ALONE = [case for case in CASES if case.rest.get("groups", 1) == 1]


@pytest.mark.parametrize("kind", MULTIPLIES)
@pytest.mark.parametrize("case", ALONE, ids=str)
def test_m_is_not_built_for_a_child_that_only_multiplies(
    kind: str, case: ConvCase, built: list[tuple[int, ...]]
) -> None:
    layer = case.layer()
    filters, columns = convfc.to_fc(layer).fc.weight.shape
    child = MULTIPLIES[kind](columns, filters)
    wanted = [p for p in child.parameters() if p.requires_grad]
    found: dict[str, list[Tensor]] = {}
    for product in ("matrix", "auto"):
        after = with_child(layer, child, product)
        for x in (case.x().requires_grad_(), case.x()[0].requires_grad_()):
            y = after(x)
            assert y.stride() == layer(x).stride()
            gradients = torch.autograd.grad(y.square().sum(), [x, *wanted])
            found[product] = [*found.get(product, []), y, *gradients]
        assert bool(built) == (product == "matrix" or layer.transposed)
        built.clear()
    assert all(map(torch.equal, found["auto"], found["matrix"]))


@pytest.mark.parametrize("kind", LOOKS)
def test_m_is_built_for_a_child_that_looks_at_it(kind: str, built: list[tuple[int, ...]]) -> None:
    layer = nn.Conv2d(3, F, 3)
    after = with_child(layer.double(), LOOKS[kind](K, F), "auto")
    types = []
    rows = after.rows
    after.rows = lambda patches: (types.append(type(patches)), rows(patches))[1]  # type: ignore[assignment]
    assert after(integers((2, 3, 6, 6))).shape == (2, F, 4, 4)
    assert set(types) == {Tensor}
    assert built


def test_one_child_for_all_groups_is_given_m(built: list[tuple[int, ...]]) -> None:
    layer = nn.Conv2d(4, 6, 3, groups=2).double()
    after = with_child(layer, halved(36, 6), "auto")
    assert after(integers((1, 4, 5, 5))).shape == (1, 6, 3, 3)
    assert built == [(1, 9, 36)]


class Scaled(nn.Conv2d):
    """A forward of its own, which convolves with another weight than its own, and elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, 2 * self.weight, self.bias, stride=2)


@pytest.mark.parametrize("cls", [nn.Conv2d, Scaled])
def test_m_is_m_where_tensor_classes_are_not_asked(cls: Any, built: list[tuple[int, ...]]) -> None:
    layer, child, x = cls(3, F, 3).double(), adapted(K, F), integers((2, 3, 7, 7))
    ours, theirs = (with_child(layer, child, product) for product in ("auto", "matrix"))
    with torch._C.DisableTorchFunctionSubclass() if cls is nn.Conv2d else nullcontext():
        y = ours(x)
    assert built
    assert torch.equal(y, theirs(x))


def test_what_stands_for_m_is_m_for_whatever_is_asked_of_it() -> None:
    x, weight, bias = integers((2, 6)).requires_grad_(), integers((3, 6)), integers((3,))
    calls = []

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(weight.shape)
        return nn.functional.linear(x, weight, bias)[..., None]

    m = blocks.Unbuilt.of(x, (2, 1, 6), lambda x: x[:, None], convolve)
    assert (m.shape, m.dtype, m.device) == ((2, 1, 6), torch.float64, x.device)
    assert torch.equal(nn.functional.linear(m, weight, bias), (x @ weight.t() + bias)[:, None])
    assert calls == [(3, 6)]
    narrow = m.to(dtype=torch.float32)
    assert torch.equal(nn.functional.linear(narrow, weight.float()), (x @ weight.t())[:, None])
    assert (len(calls), narrow.dtype) == (2, torch.float32)
    calls.clear()
    for found, expected in (
        (m @ weight.t(), x @ weight.t()),
        (weight @ m.mT, (weight @ x.t()).t()[..., None]),
        (m + 1, x + 1),
        (nn.functional.linear(m, Subclassed(weight), bias), x @ weight.t() + bias),
        (nn.functional.linear(m, weight[0]), x @ weight[0]),
        (nn.functional.linear(input=m, weight=weight), x @ weight.t()),
        (nn.functional.linear(m, weight=weight), x @ weight.t()),
        (torch.cat([m, m]), torch.cat([x, x])),
    ):
        assert torch.equal(found.reshape(expected.shape), expected)
        assert type(found) is not blocks.Unbuilt
        assert found.grad_fn is not None
    assert not calls


def test_an_adapter_of_another_dtype_needs_no_m(built: list[tuple[int, ...]]) -> None:
    layer, child = nn.Conv2d(3, F, 3).double(), adapted(K, F)
    ours, theirs = (with_child(layer, copy.deepcopy(child), p) for p in ("auto", "matrix"))
    x = integers((2, 3, 6, 6))
    for after in (ours, theirs):
        after.fc.lora_A.float()
        after.fc.lora_B.float()
    y = ours(x)
    assert not built
    assert torch.equal(y, theirs(x))
    assert built
    assert y.dtype == torch.float64


def test_a_tuned_child_under_autocast_gives_what_it_gives_by_m() -> None:
    layer, child = nn.Conv2d(3, F, 3), adapted(K, F)
    ours, theirs = (with_child(layer.double(), child, p).float() for p in ("auto", "matrix"))
    x = integers((2, 3, 6, 6), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, z = ours(x), theirs(x)
    assert y.dtype == z.dtype == torch.bfloat16
    assert torch.allclose(y, z, rtol=2**-6, atol=0.5)

"""Layers drawn at random, each compared in all forms with PyTorch's own, on integers: ``==``.

The suite draws some. ``make fuzz MINUTES=30`` draws new ones for that long, tells how many, and
stops at the first that differs with its seed and the smallest layer that still does.
"""

from __future__ import annotations

import argparse
import collections
import copy
import random
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from conv_cases import CHANNELS_LAST, HYPER_PARAMETERS, integers
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_fixtures import in_form

import convfc
from convfc.comparing import strides_of
from convfc.errors import ConvfcError
from convfc.frameworks.torch.certify.pairs import UnrolledLayer

MODES = ("zeros", "reflect", "replicate", "circular")
LARGEST_INPUT = {1: 12, 2: 12, 3: 5}
LARGEST_KERNEL = {1: 5, 2: 4, 3: 3}
FORMS = ("patch", "batched", "untouched", "weight", "unrolled")
ODD = "of these, PyTorch's own numbers depend on the memory format"
CERTIFIED = 40
"""One layer in so many is certified as well: a certificate runs a layer a dozen times."""


@dataclass(frozen=True)
class DrawnLayer:
    """A layer's class and arguments, an input's shape, and how both lie in memory."""

    cls: type[nn.Module]
    rest: dict[str, Any]
    shape: tuple[int, ...]
    memory: str
    weight_channels_last: bool
    certified: bool

    def __str__(self) -> str:
        rest = ", ".join(f"{key}={value!r}" for key, value in self.rest.items())
        last = ", weight channels last" * self.weight_channels_last
        return f"nn.{self.cls.__name__}({rest}) on {self.shape}, {self.memory}{last}"

    def layer(self) -> nn.Module:
        layer = self.cls(**self.rest, dtype=torch.float64)
        if self.weight_channels_last:
            layer.to(memory_format=CHANNELS_LAST[layer.weight.dim()])
        with torch.no_grad():
            for number, parameter in enumerate(layer.parameters(), start=1):
                parameter.copy_(integers(parameter.shape, seed=number))
        return layer

    def x(self) -> Tensor:
        x = integers(self.shape)
        if self.memory == "channels last":
            return x.to(memory_format=CHANNELS_LAST[x.dim()])
        if self.memory == "every second":
            return torch.stack([x, x + 1], -1).flatten(-2)[..., ::2]
        if self.memory == "transposed":
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        return x if self.memory == "contiguous" else x[:1].expand_as(x)


@st.composite
def drawn_layers(draw: st.DrawFn) -> DrawnLayer:
    """A layer with every hyper-parameter, and an input that it may or may not take."""
    ndim = draw(st.sampled_from([1, 2, 2, 3]))
    transposed = draw(st.sampled_from([False, False, True]))

    def per_axis(values: st.SearchStrategy[int]) -> Any:
        return st.tuples(*[values] * ndim)

    kernel = draw(per_axis(st.integers(1, LARGEST_KERNEL[ndim])))
    # Stride 1 on all axes has a way of its own, and so has a window beside the other.
    stride = draw(st.one_of(st.just(1), st.just(kernel), per_axis(st.integers(1, 3))))
    dilation = draw(st.one_of(st.just(1), per_axis(st.integers(1, 3))))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    rest: dict[str, Any] = {
        "in_channels": groups * draw(st.integers(1, 3)),
        "out_channels": groups * draw(st.integers(1, 3)),
        "kernel_size": kernel,
        "stride": stride,
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    numbers = st.one_of(st.just(0), st.integers(0, 3), per_axis(st.integers(0, 3)))
    if transposed:
        rest["padding"] = draw(numbers)
        steps, apart = (
            value if isinstance(value, tuple) else (value,) * ndim for value in (stride, dilation)
        )
        rest["output_padding"] = draw(
            st.tuples(*[st.integers(0, max(s, d) - 1) for s, d in zip(steps, apart, strict=True)])
        )
    else:
        words = ["valid", "same"] if stride in (1, (1,) * ndim) else ["valid"]
        rest["padding"] = draw(st.one_of(numbers, st.sampled_from(words)))
        rest["padding_mode"] = draw(st.sampled_from(MODES))
    size = draw(per_axis(st.integers(1, LARGEST_INPUT[ndim])))
    batch = draw(st.sampled_from([(), (1,), (2,), (3,)]))
    memory = ["contiguous", "every second", "transposed", "one image repeated"]
    if batch and ndim > 1:
        memory.append("channels last")
    return DrawnLayer(
        cls=getattr(nn, f"Conv{'Transpose' if transposed else ''}{ndim}d"),
        rest=rest,
        shape=(*batch, rest["in_channels"], *size),
        memory=draw(st.sampled_from(memory)),
        weight_channels_last=ndim > 1 and draw(st.booleans()),
        certified=draw(st.integers(1, CERTIFIED)) == CERTIFIED,
    )


def ran(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the output and the gradient of the input; the parameters have theirs."""
    x = x.detach().requires_grad_()
    y = layer(x)
    y.backward(integers(y.shape, seed=3))
    assert x.grad is not None
    return y.detach(), x.grad


def check(drawn: DrawnLayer, counted: collections.Counter[str]) -> None:
    """Compare a layer in all forms with PyTorch's own: output, gradients, and the way back."""
    layer, x = drawn.layer(), drawn.x()
    try:
        y, dx = ran(layer, x)
    except RuntimeError:
        counted["refused by PyTorch, and by all forms"] += 1
        check_refused(layer, x)
        return
    counted[drawn.cls.__name__] += 1
    # PyTorch's gradient of K is wrong for a few layouts (a 1x1 layer with groups, its weight
    # channels last, its input transposed). The weight form and an untouched layer run that kernel;
    # the others are judged by the layer in plain memory.
    plain = copy.deepcopy(layer).to(memory_format=torch.contiguous_format)
    own = y, dx, layer
    judges = {"weight": own, "untouched": own, "plain": (*ran(plain, x.contiguous()), plain)}
    both = own, judges["plain"]
    numbers = [(y, dx, judge.weight.grad) for y, dx, judge in both]
    sound = all(map(torch.equal, *numbers))
    if not sound:
        counted[ODD] += 1
    for form in FORMS:
        if form == "batched" and layer.groups == 1:
            continue  # the patch form again
        converted = in_form(copy.deepcopy(layer), form, x)
        our_y, our_dx = ran(converted, x)
        wanted_y, wanted_dx, judge = judges.get(form, judges["plain"])
        assert torch.equal(our_y, wanted_y), f"{form}: output"
        assert torch.equal(our_dx, wanted_dx), f"{form}: gradient of x"
        if form == "unrolled":
            check_unrolled_gradients(converted, judge)
        else:
            if not one_format_only(x, layer):
                assert strides_of(our_y) == strides_of(y), f"{form}: memory format"
            assert torch.equal(converted.weight.grad, judge.weight.grad), f"{form}: gradient of K"
            check_bias_gradient(converted, judge, form)
        if drawn.certified and sound:
            certificate = convfc.verify(layer, converted, x)
            assert certificate.holds, f"{form}: {certificate}"
        check_same(convfc.to_conv(converted), layer, form)


def one_format_only(x: Tensor, layer: nn.Module) -> bool:
    """Say whether an axis of x has one element: PyTorch's kernels then differ in what they call
    channels last, and x is both."""
    return 1 in x.shape[-len(layer.kernel_size) :]


def check_refused(layer: nn.Module, x: Tensor) -> None:
    """What PyTorch's layer refuses, no form answers."""
    for form in FORMS:
        try:
            y = in_form(layer, form, x)(x)
        except ConvfcError:
            continue
        except RuntimeError:
            assert form in ("weight", "untouched"), f"{form}: an error in PyTorch's words"
            continue
        raise AssertionError(f"{form}: answers {tuple(y.shape)} where PyTorch refuses")


def check_bias_gradient(converted: nn.Module, layer: nn.Module, form: str) -> None:
    if layer.bias is None:
        assert converted.bias is None
        return
    found = [p.grad for p in converted.parameters() if p.dim() == 1]
    assert torch.equal(torch.cat(found), layer.bias.grad), f"{form}: gradient of b"


def check_unrolled_gradients(converted: nn.Module, layer: nn.Module) -> None:
    """The gradients of matrix and vector are folded to the layer's."""
    unrolled = UnrolledLayer(converted)
    given = (None if p is None else p.grad for p in (unrolled.linear.weight, unrolled.linear.bias))
    weight, bias = unrolled.folded(*given)
    assert torch.equal(weight, layer.weight.grad), "unrolled: gradient of K"
    if layer.bias is not None:
        assert torch.equal(bias, layer.bias.grad), "unrolled: gradient of b"


def check_same(back: nn.Module, layer: nn.Module, form: str) -> None:
    """A layer that came back is the layer: class, settings, numbers, memory."""
    assert type(back) is type(layer)
    settings_of = [
        {name: vars(one).get(name) for name in HYPER_PARAMETERS} for one in (back, layer)
    ]
    assert settings_of[0] == settings_of[1], f"{form}: settings of the layer that came back"
    ours, theirs = back.state_dict(), layer.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), f"{form}: {name} of the layer that came back"
        assert ours[name].stride() == tensor.stride(), f"{form}: memory format that came back"


def main() -> int:
    """Draw layers until the time is over; 1 if one of them differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, help="of the first draws, to repeat a run")
    options = parser.parse_args()
    first = random.SystemRandom().randrange(2**32) if options.seed is None else options.seed
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "Using padding='same' with even kernel")
    counted: collections.Counter[str] = collections.Counter()
    started, told = time.monotonic(), 0.0
    number = first
    while time.monotonic() - started < 60 * options.minutes:

        @seed(number)
        @settings(
            max_examples=500,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(drawn_layers())
        def draw(drawn: DrawnLayer) -> None:
            try:
                check(drawn, counted)
            except AssertionError as error:
                raise AssertionError(f"{drawn}: {error}") from error

        try:
            draw()
        except Exception:
            traceback.print_exc()
            print(f"seed {number}; again: make fuzz SEED={number}", flush=True)
            return 1
        number += 1
        if time.monotonic() - told > 60:
            told = time.monotonic()
            minutes = (told - started) / 60
            print(
                f"{minutes:5.1f} min: {counted.total() - counted[ODD]:,} layers, seed {number}",
                flush=True,
            )
    layers = counted.total() - counted[ODD]
    print(f"{layers:,} layers without a difference, seeds {first} to {number - 1}:")
    for kind, count in counted.most_common():
        print(f"  {count:9,} {kind}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

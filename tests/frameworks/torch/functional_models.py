"""Models whose forwards convolve by a function, each in its own way, and some that only seem to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import conv_transpose2d as stretch
from torch import nn

OPERATIONS = {"one": F.conv1d, "two": F.conv2d}


def helper(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, weight)


def helper_of_helper(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return helper(x, weight)


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any) -> Any:  # without functools.wraps
        return function(*args)

    return wrapper


class Weighted(nn.Module):
    """A weight, and what else it is given."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1, 2, 2))
        vars(self).update(attributes)


def of(**forwards: Callable[..., Any]) -> list[type[Weighted]]:
    """Return a class for each forward."""
    return [type(name, (Weighted,), {"forward": run}) for name, run in forwards.items()]


ONE_LINE = Direct, _, _, _, _, _, _, ByTable, ByName = of(
    Direct=lambda m, x: F.conv2d(x, m.weight),
    FullName=lambda m, x: torch.nn.functional.conv2d(x, m.weight),
    OneDimensional=lambda m, x: torch.conv1d(x[:, 0, :1], m.weight[0, :, :1]),
    Transposed=lambda m, x: stretch(x, m.weight),
    Operator=lambda m, x: torch.ops.aten.convolution(
        x, m.weight, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1
    ),
    ByHelperOfHelper=lambda m, x: helper_of_helper(x, m.weight),
    ByComprehension=lambda m, x: torch.stack([F.conv2d(part, m.weight) for part in x]),
    ByTable=lambda m, x: OPERATIONS["two"](x, m.weight),
    ByName=lambda m, x: getattr(F, f"conv{x.dim() - 2}d")(x, m.weight),
)


class ByMethod(Weighted):
    def blur(self, x):
        return F.conv2d(x, self.weight)

    def forward(self, x):
        return self.blur(x)


class BySuper(ByMethod):
    def blur(self, x):
        return super().blur(x)


class ByStatic(Weighted):
    blur = staticmethod(helper)

    def forward(self, x):
        return self.blur(x, self.weight)


class ByProperty(Weighted):
    @property
    def blur(self):
        return functools.partial(F.conv2d, weight=self.weight)

    def forward(self, x):
        return self.blur(x)


class ByLambda(Weighted):
    def forward(self, x):
        blur = lambda y: F.conv2d(y, self.weight)  # noqa: E731
        return blur(x)


class ByNested(ByMethod):
    def forward(self, x):
        def outer():
            def inner():
                return self.blur(x)

            return inner()

        return outer()


class ByAttribute(Weighted):
    def __init__(self, operation: Callable[..., Any] = F.conv2d) -> None:
        super().__init__(operation=operation)

    def forward(self, x):
        return self.operation(x, self.weight)


class ByPartial(ByAttribute):
    def __init__(self) -> None:
        super().__init__(functools.partial(F.conv2d, stride=2))


class ByLocalImport(Weighted):
    def forward(self, x):
        import torch.nn.functional as G

        return G.conv2d(x, self.weight)


class ByLocalName(Weighted):
    def forward(self, x):
        from torch import conv2d as blur

        return blur(x, self.weight)


class ByAutograd(Weighted):
    class Blur(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight):
            return F.conv2d(x, weight)

    def forward(self, x):
        return self.Blur.apply(x, self.weight)


class Blur:
    def __call__(self, x, weight):
        return self.run(x, weight)

    def run(self, x, weight):
        return F.conv2d(x, weight)


class ByCallable(ByAttribute):
    def __init__(self) -> None:
        super().__init__(Blur())


class ByNoGrad(Weighted):
    @torch.no_grad()
    def forward(self, x):
        return F.conv2d(x, self.weight)


class ByDecorator(Weighted):
    @decorated
    def forward(self, x):
        return F.conv2d(x, self.weight)


class ByPrivateForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 2)

    def forward(self, x):
        return self.conv._conv_forward(x, self.conv.weight, None)


REAL = [
    *(*ONE_LINE, ByMethod, BySuper, ByStatic, ByProperty, ByLambda, ByNested, ByAttribute),
    *(ByPartial, ByLocalImport, ByLocalName, ByAutograd, ByCallable, ByNoGrad, ByDecorator),
    ByPrivateForward,
]


class Parent(nn.Module):
    """Calls a method of its part that the part's own forward does not call."""

    class Part(ByMethod):
        def forward(self, x):
            return x

    def __init__(self) -> None:
        super().__init__()
        self.part = self.Part()

    def forward(self, x):
        return self.part.blur(x)


class OwnName(nn.Module):
    """Names that look like a convolution and are none."""

    conv3d = 3

    def __init__(self) -> None:
        super().__init__()
        self.conv2d = nn.Conv2d(1, 1, 2)

    def conv1d(self, x):
        return x

    def forward(self, x):
        names = {"conv1d": 1, "convolution": 2}
        conv2d = self.conv2d(x)
        return self.conv1d(conv2d) + names["conv1d"] + self.conv3d


class Unused(nn.Module):
    """A method that forward does not reach, and a function that only shares the module."""

    def fold(self, x):
        return F.conv2d(x, torch.ones(1, 1, 2, 2))

    def forward(self, x):
        return F.relu(F.pad(x, [1, 1])) + torch.ones(1)


class Calls(nn.Module):
    """Calls its CONV layer by forward and by super().forward of a torch class."""

    class Flat(nn.Sequential):
        def forward(self, x):
            return super().forward(x)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.flat = nn.Conv2d(1, 1, 2), self.Flat(nn.Conv2d(1, 1, 2))

    def forward(self, x):
        return self.flat(self.conv.forward(x))


class Shadowed(nn.Module):
    """Locals and arguments that hide the names of the module."""

    def forward(self, x, helper=None):
        F = nn.ReLU()
        stretch = x + 1
        return F(stretch) if helper is None else helper


SEEMING = [OwnName, Unused, Calls, Shadowed]

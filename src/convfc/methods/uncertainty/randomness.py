"""What all FC layers with a random weight share: for whom a draw holds, and when they draw."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from convfc.errors import ArgumentError, Refusal
from convfc.sizes import one_of

__all__ = ["Per", "RandomLinear", "check_choice", "check_number", "draws"]

Per: TypeAlias = Literal["patch", "image", "call"]
"""For whom one draw of the weight holds: one row of M, all rows of one image, all of a call."""


class RandomLinear(nn.Module):
    """An FC layer ``(*, k) -> (*, f)`` whose weight is random: base of the layers of this room.

    In training mode every call draws; in evaluation mode the layer computes with the mean weight,
    as `nn.Dropout` does. The random numbers are those of PyTorch's global generator.

    Parameters
    ----------
    per : {"patch", "image", "call"}
        For whom a draw holds. A CONV layer hands over its patch matrix ``(N, L, k)``: ``"patch"``
        draws for each of the N·L rows, ``"image"`` for each of the N images, ``"call"`` once. For
        an input ``(N, k)`` the first two are the same.
    """

    def __init__(self, per: Per) -> None:
        super().__init__()
        check_choice("per", per, Per)
        self.per = per

    @property
    def takes_blocks(self) -> bool:
        """Whether M may come in blocks of rows: no draw holds for more than one row."""
        return not self.training or self.per == "patch"

    def draw(self) -> tuple[Tensor, Tensor | None]:
        """Draw a weight ``(f, k)`` and a bias ``(f,)``: one sample of the FC layer itself."""
        raise NotImplementedError

    def mean(self) -> tuple[Tensor, Tensor | None]:
        """Return the mean weight ``(f, k)`` and bias ``(f,)``."""
        raise NotImplementedError

    def kl(self) -> Tensor:
        """Return the Kullback-Leibler divergence from the prior, in nats; a scalar."""
        raise NotImplementedError

    def as_plain(self) -> nn.Module | Refusal:
        """Return what `convfc.to_conv` is to make CONV layers of."""
        return Refusal(
            f"its FC part is random ({type(self).__name__})",
            "take one draw first, with convfc.methods.uncertainty.sample, or the mean, with "
            "mean_network",
        )

    def _shape_of_a_draw(self, x: Tensor, width: int) -> tuple[int, ...]:
        """Return the shape of random numbers for rows of this width that broadcasts against x."""
        if self.per == "patch":
            return (*x.shape[:-1], width)
        if self.per == "image":
            return (x.shape[0], *(1,) * (x.dim() - 2), width) if x.dim() > 1 else (width,)
        return (width,)


def draws(module: nn.Module) -> bool:
    """Say whether a module draws in training mode: a random FC layer, or dropout."""
    return isinstance(module, (RandomLinear, _DropoutNd))


def check_choice(name: str, value: object, choices: object) -> None:
    """Raise an `ArgumentError` if a value is none of a `typing.Literal`'s."""
    one_of(name, value, get_args(choices), what="no such choice", remedy=None)


def check_number(
    name: str, value: float, *, above: float = 0.0, below: float = math.inf, open_: bool = True
) -> None:
    """Raise if a number is not between two others; ``open_``: nor equal to the lower one.

    Raises
    ------
    ArgumentError
    """
    if not (above < value if open_ else above <= value) or not value < below:
        sign = "above" if open_ else "at least"
        limit = "" if math.isinf(below) else f" and below {below:g}"
        raise ArgumentError(
            "a number out of range", where=name, expected=f"{sign} {above:g}{limit}", got=value
        )

"""GroupedLinear: the FC layers of all groups of a CONV layer as one module, a batched product."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn


class GroupedLinear(nn.Module):
    """FC layers side by side: each has its own share of the inputs and gives its own outputs.

    It equals one ``nn.Linear`` whose weight is block-diagonal, and holds the blocks only. Opacus
    finds a rule for its per-sample gradients.

    Parameters
    ----------
    weight : nn.Parameter, shape (groups, f / groups, k)
        The blocks. That is the shape ``(f, k)`` of all rows, cut into groups.
    bias : nn.Parameter, shape (f,), or None

    Examples
    --------
    >>> weight = nn.Parameter(torch.tensor([[[1.0, 1.0]], [[10.0, 0.0]]]))
    >>> layer = GroupedLinear(weight, None)
    >>> layer
    GroupedLinear(in_features=4, out_features=2, groups=2, bias=False)
    >>> layer(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist()
    [3.0, 30.0]
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = weight
        self.register_parameter("bias", bias)
        _tell_opacus()

    def forward(self, input: Tensor) -> Tensor:
        """Return the outputs ``(..., f)`` of rows ``(..., groups * k)``."""
        groups, _, columns = self.weight.shape
        rows = input.unflatten(-1, (groups, columns))
        y = torch.einsum("...gk,gfk->...gf", rows, self.weight).flatten(-2)
        return y if self.bias is None else y + self.bias.to(y.dtype)  # autocast has chosen y's

    def extra_repr(self) -> str:
        """Return the sizes, as ``nn.Linear`` tells them."""
        groups, filters, columns = self.weight.shape
        sizes = f"in_features={groups * columns}, out_features={groups * filters}"
        return f"{sizes}, groups={groups}, bias={self.bias is not None}"


def _tell_opacus() -> None:
    """Give Opacus the rule, once it has been imported; without one it vectorises the forward."""
    opacus = sys.modules.get("opacus.grad_sample")
    if opacus is not None:
        opacus.register_grad_sampler(GroupedLinear)(_per_sample_gradients)


def _per_sample_gradients(
    layer: GroupedLinear, activations: list[Tensor], backprops: Tensor
) -> dict[Any, Tensor]:
    """Return each sample's gradients of the parameters that train, as Opacus asks for them."""
    groups, _, columns = layer.weight.shape
    found: dict[Any, Tensor] = {}
    if layer.weight.requires_grad:
        rows = activations[0].unflatten(-1, (groups, columns))
        found[layer.weight] = torch.einsum(
            "n...gf,n...gk->ngfk", backprops.unflatten(-1, (groups, -1)), rows
        )
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = torch.einsum("n...f->nf", backprops)
    return found

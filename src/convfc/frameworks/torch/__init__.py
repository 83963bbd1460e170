"""PyTorch's room: reads, builds and replaces its layers. Only this room imports torch.

CONTRIBUTING.md has the plan of its files and rooms.
"""

from __future__ import annotations

from convfc.extras import needing

with needing():
    from torch import nn

from convfc.frameworks.torch.certify.verify import verify
from convfc.frameworks.torch.convert.heads import to_fully_convolutional
from convfc.frameworks.torch.convert.optimizers import convert_optimizer_state
from convfc.frameworks.torch.convert.to_conv import to_conv
from convfc.frameworks.torch.convert.to_fc import to_fc, unroll
from convfc.frameworks.torch.export import fc_decompositions
from convfc.frameworks.torch.forms.grouped import GroupedLinear
from convfc.frameworks.torch.forms.patch import PatchConv
from convfc.frameworks.torch.inspection import inspect
from convfc.frameworks.torch.matrix import read_layer
from convfc.frameworks.torch.simplification import simplify

__all__ = [
    "GroupedLinear",
    "PatchConv",
    "convert_optimizer_state",
    "fc_decompositions",
    "inspect",
    "order_of",
    "owns",
    "read_layer",
    "simplify",
    "to_conv",
    "to_fc",
    "to_fully_convolutional",
    "unroll",
    "verify",
]


def owns(model: object) -> bool:
    """Say whether a model is PyTorch's.

    Examples
    --------
    >>> owns(nn.ReLU())
    True
    """
    return isinstance(model, nn.Module)


def order_of(layer: object) -> str:
    """Return how PyTorch's layers lay out inputs and outputs: (b, c, *spatial).

    Examples
    --------
    >>> order_of(nn.Conv1d(1, 1, 1))
    'channels_first'
    """
    return "channels_first"

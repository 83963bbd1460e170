"""PyTorch's room: reads, builds and replaces its layers. Only this room imports torch.

============== ==================================================================================
`read`         what is one of PyTorch's CONV layers, and what it computes
`tensors`      comparing tensors, and saying what they are
`parts`        FC children, and what moves over from one layer to another
`whole`        the weights of groups as one tensor, and what is written into it
`layers`       the patch form, ``PatchConv``; how it computes is in `forward`
`weights`      the weight form
`unrolled`     the unrolled form
`simplify`     whole networks as FC layers and activations only
`functional`   convolutions that no layer computes
`references`   who holds a part of a model beside its registry, and exchanging it for all
`rewrite`      ``to_fc``
`restore`      ``to_conv``; what a tool has left in an FC child's place is in `factors`
`heads`        plain FC layers to CONV layers
`certify`      ``verify``
`inspection`   ``inspect``; how it sees what a model convolves is in `watch`
`matrix`       a layer as one matrix; its native maps, without one, are in `maps`
`checkpoint`   weights from a file
`optimizers`   ``convert_optimizer_state``
============== ==================================================================================
"""

from __future__ import annotations

from convfc.extras import needing

with needing():
    from torch import nn

from convfc.frameworks.torch.certify.verify import verify
from convfc.frameworks.torch.inspection import inspect
from convfc.frameworks.torch.layers import PatchConv
from convfc.frameworks.torch.matrix import read_layer
from convfc.frameworks.torch.optimizers import convert_optimizer_state
from convfc.frameworks.torch.restore import to_conv
from convfc.frameworks.torch.rewrite import to_fc

__all__ = [
    "PatchConv",
    "convert_optimizer_state",
    "inspect",
    "order_of",
    "owns",
    "read_layer",
    "to_conv",
    "to_fc",
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
